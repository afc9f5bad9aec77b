"""What a training step logs about classes and replay: metrics.json and TensorBoard, every LOG_PERIOD steps.

In a cascade under "stage0/..." and so on. What cannot be computed in a step is left out of it.

    memory_bank/fill                        share of the slots that hold an RoI
    memory_bank/stored                      RoIs stored, mean over the target classes with any
    memory_bank/replayed_per_foreground     replayed rows per foreground RoI of the step
    memory_bank/age                         mean steps since the replayed rows were written
    memory_bank/drift                       mean cosine of a replayed feature and the mean of the step's own RoI
                                            features of its class, if the class has any
    rois/share_r, _c, _f                    the step's foreground RoIs by frequency group of their class, 0..1
    rois/share_r_with_replay, ...           the same with the replayed rows

K: classes, T: target classes, S: slots, R: RoIs of a step, N: replayed rows, D: feature width.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from detectron2.utils.events import get_event_storage
from torch import Tensor

from rio.data.annotations import GROUP_NAMES
from rio.memory_bank import MemoryBank, Replay

LOG_PERIOD = 20  # steps; the period of detectron2's writers, for each of their lines
FREQUENCY_GROUPS = "".join(GROUP_NAMES)


def frequency_groups(letters: str, num_classes: int) -> Tensor | None:
    """(K + 2,) int64, class_id + 1 -> r, c, f = 0, 1, 2, or 3 = none of them; the shift gives "ignore" (-1) a place.

    `letters`: the frequency group of each of the K classes, "" = not known; others are a ValueError.
    """
    if len(letters) not in (0, num_classes) or not set(letters) <= set(FREQUENCY_GROUPS):
        expected, found = f"{num_classes} letters r, c or f", f"{len(letters)}: {letters[:40]!r}"
        raise ValueError(f"class_frequency: expected {expected}, found {found}. Fix: correct MODEL.RIO.CLASS_FREQUENCY")
    return torch.tensor([3, *map(FREQUENCY_GROUPS.index, letters), 3]) if letters else None


Later = tuple[Tensor, Callable[[list[float]], None]]  # values on the device, and what writes them
_later: list[Later] | None = None  # what the step has put off; None: nobody collects


@contextlib.contextmanager
def collected() -> Iterator[list[Later]]:
    """Collect what the block gives to `put_later`; whoever opened it moves the values to the host at once."""
    global _later
    before, _later = _later, []
    try:
        yield _later
    finally:
        _later = before


def put_later(values: Tensor, named: Callable[[list[float]], dict[str, float]], *, smoothing_hint: bool = True) -> None:
    """Write scalars with the step's losses, or now, which waits for the device: `named` makes {name: scalar} of
    `values`, (n,) on the device, once they are on the host.
    """
    storage = get_event_storage()
    scope = "" if _later is None else storage._current_prefix  # of a cascade's stage, which is over by then

    def put(host: list[float]) -> None:
        scalars = {f"{scope}{name}": value for name, value in named(host).items()}
        storage.put_scalars(smoothing_hint=smoothing_hint, **scalars)

    if _later is None:
        put(values.tolist())
    else:
        _later.append((values, put))


def log_accuracy(logits: Tensor, gt_classes: Tensor, num_classes: int) -> None:
    """detectron2's fast_rcnn/cls_accuracy, fg_cls_accuracy and false_negative, without its 6 waits.

    logits: (R, C), or scores; gt_classes: (R,) int64 class ids.
    """
    found, foreground = logits.argmax(dim=1), (gt_classes >= 0) & (gt_classes < num_classes)
    right = found == gt_classes
    counts = torch.stack([right, foreground, foreground & right, foreground & (found == num_classes)]).sum(dim=1)

    def named(counts: list[float]) -> dict[str, float]:
        right, number, right_foreground, missed = counts
        shares = {"cls_accuracy": right / len(gt_classes)}
        if number:
            shares |= {"fg_cls_accuracy": right_foreground / number, "false_negative": missed / number}
        return {f"fast_rcnn/{name}": share for name, share in shares.items()}

    if len(gt_classes):
        put_later(counts, named)


def is_log_step() -> bool:
    """Whether the writers take this step's scalars."""
    return bool((get_event_storage().iter + 1) % LOG_PERIOD == 0)


def log(
    gt_classes: Tensor,
    num_classes: int,
    frequency_group: Tensor | None,
    bank: MemoryBank | None = None,
    features: Tensor | None = None,
    replay: Replay | None = None,
) -> None:
    """Write the telemetry of a step, with its losses.

    gt_classes (R,) int64 and features (R, D; only with a bank) are the step's own RoIs, frequency_group is that of
    ``frequency_groups``, bank after the step's write, replay what was sampled, None if replay has not begun.
    """
    found = _shares("rois/share_{}", frequency_group, gt_classes)
    if bank is not None and features is not None:
        found |= {f"memory_bank/{name}": value for name, value in statistics(bank).items()}
        num_foreground = ((gt_classes >= 0) & (gt_classes < num_classes)).sum()
        found["memory_bank/replayed_per_foreground"] = (0 if replay is None else len(replay)) / num_foreground
        if replay is not None:
            step = bank.iteration - 1  # this one; write() has counted it
            found["memory_bank/age"] = (step - replay.written_at).float().mean()
            found["memory_bank/drift"] = drift(bank, replay, features, gt_classes)
        replayed = gt_classes[:0] if replay is None else replay.gt_classes
        found |= _shares("rois/share_{}_with_replay", frequency_group, gt_classes, replayed)
    if found:
        # Smoothed, detectron2 would write the median of the last 20, which a resumed run lacks. What is not finite
        # had nothing to be computed from, as a mean of no rows.
        values, names = torch.stack(list(found.values())), list(found)
        put_later(
            values,
            lambda host: {n: v for n, v in zip(names, host, strict=True) if math.isfinite(v)},
            smoothing_hint=False,
        )


def _shares(name: str, frequency_group: Tensor | None, *classes: Tensor) -> dict[str, Tensor]:
    """The shares of frequency group r, c, f in all the class ids, each (R,); NaN if none is of a group."""
    if frequency_group is None:
        return {}
    group = frequency_group.index_select(0, torch.cat(classes) + 1)
    counts = (group[:, None] == torch.arange(3, device=group.device)).sum(0)
    return {name.format(letter): share for letter, share in zip(FREQUENCY_GROUPS, counts / counts.sum(), strict=True)}


@torch.no_grad()
def statistics(bank: MemoryBank) -> dict[str, Tensor]:
    """What the bank holds, as 0-dim float tensors on its device, NaN where there is nothing to tell: "fill", the share
    of the slots that hold an RoI, and "stored", the mean number of RoIs over the target classes with any.
    """
    stored = bank.num_written.clamp(max=bank.slots_per_class)  # (T,)
    filled, slots = stored.sum(), stored.numel() * bank.slots_per_class
    return {"fill": filled / slots, "stored": filled / (stored > 0).sum()}  # 0 / 0 is NaN


@torch.no_grad()
def drift(bank: MemoryBank, replay: Replay, features: Tensor, gt_classes: Tensor) -> Tensor:
    """How stale a replay is, as a 0-dim float: 1 = its features look as those of their classes do now.

    The mean over the replayed rows of the cosine between the row's feature and the mean feature of this step's RoIs of
    its class: features (R, D), gt_classes (R,) int64 with K and -1 allowed. Rows whose class has none are left out; NaN
    if none is left.
    """
    target = bank.target_index.index_select(0, gt_classes + 1)
    now = torch.zeros(bank.num_target_classes + 1, bank.feature_dim, device=features.device)
    now.index_add_(0, target, features.float())  # the sum has the direction of the mean
    index = bank.target_index.index_select(0, replay.gt_classes + 1)
    seen = torch.zeros_like(now[:, 0], dtype=torch.bool).index_fill_(0, target, True)[index]
    cosine = torch.cosine_similarity(replay.features.float(), now[index], dim=1)
    return cosine.masked_fill(~seen, 0.0).sum() / seen.sum()
