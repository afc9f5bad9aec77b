"""Object level: a first-in-first-out ring buffer of RoIs per target class, as tensors of fixed shape.

    K: foreground classes, class_id K is background     R: RoIs of a step, all images together
    T: target classes, whose objects are resampled      W: rows of a step that are written
    S: slots per target class                           M: rows replayed per step and target class at most
    D: width of an RoI feature                          N: rows of a replay

It is part of the model's state. The host waits for its device twice a step: a ``nonzero`` in ``sample`` and ``write``.

With ``sync`` each rank appends the writes of all ranks in the order in which one process would meet them. The
training sampler deals image p of a global batch to rank p modulo P, so that order is: first image of rank 0, of rank
1, ..., second image of rank 0, .... Given the same RoIs the bank is bit for bit the one-process bank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from rio.data.errors import check
from rio.engine.rows import gathered, image_of_row, paired_iou, rank_in_group, world_size

_FORMAT = 1  # of the extra state; format 2 had a buffer object_ids, which is ignored


@dataclass(frozen=True)
class Replay:
    """What ``MemoryBank.sample`` read back: N rows without gradient.

    Attributes:
        features: (N, D), in the dtype that was asked for.
        proposal_boxes: (N, 4) float32, XYXY absolute pixels of the image they came from.
        gt_boxes: (N, 4) float32, the ground-truth box each was matched to, XYXY.
        gt_classes: (N,) int64 class ids, never background.
        written_at: (N,) int64, the step at which each was written.
    """

    features: Tensor
    proposal_boxes: Tensor
    gt_boxes: Tensor
    gt_classes: Tensor
    written_at: Tensor

    def __len__(self) -> int:
        return self.gt_classes.shape[0]


class MemoryBank(nn.Module):
    """Stores RoI features of target classes and replays them when their class is in the batch.

    A training step calls ``sample`` and then ``write``, once each: what is replayed was there before the step's own
    write. The bank never gives or takes a gradient.

    Args:
        num_classes: K.
        class_ids: the T target classes, 0-based, each once.
        feature_dim: D.
        slots_per_class: S >= 1.
        replay_per_class: M, 1..S; the newest are replayed.
        replay_absent_classes: number of target classes that are not in the batch and are replayed too, drawn from
            those with stored RoIs anew each step.
        write_max_per_object: RoIs of one object per write at most, those whose proposal box has the highest IoU
            with the ground-truth box, the first of equal ones; 0 = all.
        storage_dtype: a floating dtype for the features; boxes are always float32.
        seed: of the absent classes.
        sync: append the writes of all ranks (see above); else each rank has a bank of its own. Every rank must then
            call ``write`` every step. No effect without torch.distributed.

    Raises:
        ValueError: names the argument, what was expected, what was found, and the config key to change.
    """

    features: Tensor
    proposal_boxes: Tensor
    gt_boxes: Tensor
    num_written: Tensor
    written_at: Tensor
    class_ids: Tensor
    target_index: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        class_ids: Sequence[int],
        feature_dim: int,
        slots_per_class: int = 60,
        replay_per_class: int = 20,
        replay_absent_classes: int = 0,
        write_max_per_object: int = 0,
        storage_dtype: torch.dtype = torch.float32,
        seed: int = 0,
        sync: bool = False,
    ) -> None:
        super().__init__()
        ids = [int(c) for c in class_ids]
        bad = [c for i, c in enumerate(ids) if not 0 <= c < num_classes or c in ids[:i]]
        for key, value, low, high in (
            ("ROI_HEADS.NUM_CLASSES", num_classes, 1, inf),
            ("ROI_BOX_HEAD.FC_DIM", feature_dim, 1, inf),
            ("RIO.SLOTS_PER_CLASS", slots_per_class, 1, inf),
            ("RIO.REPLAY_PER_CLASS", replay_per_class, 1, slots_per_class),
            ("RIO.REPLAY_ABSENT_CLASSES", replay_absent_classes, 0, inf),
            ("RIO.WRITE_MAX_PER_OBJECT", write_max_per_object, 0, inf),
        ):
            check(low <= value <= high, f"MODEL.{key}", f"{low}..{high}", value, "choose a number in this range")
        advice = "raise MODEL.RIO.BANK_MAX_IMAGE_COUNT, or set MODEL.RIO.BANK_ENABLED False"
        check(len(ids) > 0, "class_ids", "at least one target class of few images", "none", advice)
        expected, advice = f"ids below num_classes ({num_classes}), each once", "leave MODEL.RIO.BANK_CLASS_IDS at []"
        check(not bad, "class_ids", expected, bad[:5], f"{advice}; category_ids of a file are other numbers")
        check(storage_dtype.is_floating_point, "storage_dtype", "a floating dtype", storage_dtype, "see BANK_DTYPE")
        self.num_classes, self.num_target_classes, self.feature_dim = num_classes, len(ids), feature_dim
        self.slots_per_class, self.replay_per_class = slots_per_class, replay_per_class
        self.replay_absent_classes, self.write_max_per_object = replay_absent_classes, write_max_per_object
        self.seed, self.sync = seed, sync
        self.iteration = 0  # training steps seen; on the host, so reading it does not wait

        t, s = len(ids), slots_per_class
        self.register_buffer("features", torch.zeros(t, s, feature_dim, dtype=storage_dtype))
        self.register_buffer("proposal_boxes", torch.zeros(t, s, 4))
        self.register_buffer("gt_boxes", torch.zeros(t, s, 4))
        self.register_buffer("num_written", torch.zeros(t, dtype=torch.int64))  # since the start, not capped at S
        self.register_buffer("written_at", torch.full((t, s), -1, dtype=torch.int64))
        self.register_buffer("class_ids", torch.tensor(ids, dtype=torch.int64))
        # class_id + 1 -> index into the bank, T = not a target. The shift gives detectron2's "ignore" (-1) a place.
        target_index = torch.full((num_classes + 2,), t, dtype=torch.int64)
        target_index[self.class_ids + 1] = torch.arange(t)
        self.register_buffer("target_index", target_index, persistent=False)

    def extra_repr(self) -> str:
        names = ("num_target_classes", "slots_per_class", "replay_per_class", "feature_dim", "sync")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    @torch.no_grad()
    def sample(self, gt_classes: Tensor, *, dtype: torch.dtype | None = None) -> Replay:
        """Read back up to M stored RoIs of each target class among ``gt_classes``, and of some absent classes.

        Changes nothing: the same call gives the same rows until the next ``write``.

        Args:
            gt_classes: (R,) int64 class ids of this step's RoIs; K (background) and -1 (ignore) allowed.
            dtype: of the features returned; None = as stored.

        Returns:
            The replay without duplicates: the first row of each class, then the second of each, ....
        """
        self._check_classes(gt_classes)
        device, num_targets = gt_classes.device, self.num_target_classes
        target = self.target_index.index_select(0, gt_classes + 1)  # (R,)
        present = torch.zeros(num_targets + 1, dtype=torch.bool, device=device)
        present = present.index_fill_(0, target, True)[:num_targets]
        available = self.num_written.clamp(max=self.replay_per_class)  # (T,); M <= S
        if self.replay_absent_classes:
            absent = ~present & (available > 0)
            key = torch.rand(num_targets, generator=self._generator(device), device=device).masked_fill_(~absent, 2.0)
            drawn = key.topk(min(self.replay_absent_classes, num_targets), largest=False).indices
            present = present | (absent & torch.zeros_like(absent).index_fill_(0, drawn, True))
        wanted = present & (torch.arange(self.replay_per_class, device=device)[:, None] < available)  # (M, T)
        rank, index = wanted.nonzero(as_tuple=True)  # (N,) each; waits for the device
        slot = (self.num_written[index] - 1 - rank) % self.slots_per_class  # (N,), the newest first
        row = index * self.slots_per_class + slot
        return Replay(
            features=self.features.flatten(0, 1).index_select(0, row).to(dtype or self.features.dtype),
            proposal_boxes=self.proposal_boxes.flatten(0, 1).index_select(0, row),
            gt_boxes=self.gt_boxes.flatten(0, 1).index_select(0, row),
            gt_classes=self.class_ids[index],
            written_at=self.written_at.flatten()[row],
        )

    @torch.no_grad()
    def write(
        self,
        features: Tensor,
        proposal_boxes: Tensor,
        gt_boxes: Tensor,
        gt_classes: Tensor,
        *,
        rois_per_image: Sequence[int] | None = None,
    ) -> None:
        """Append the RoIs of target classes in the order given, oldest slots leaving first, and count the step.

        All of them, or the best ``write_max_per_object`` of each object: RoIs of one image and class with one
        ground-truth box. If a step holds more than S of a class, its last S stay.

        Args:
            features: (R, D), any floating dtype; R may be 0.
            proposal_boxes: (R, 4) XYXY, absolute pixels.
            gt_boxes: (R, 4) XYXY; only read where the class is a target.
            gt_classes: (R,) int64; K and -1 are never stored.
            rois_per_image: numbers of rows of the first, second, ... image; None: all belong to one.

        Raises:
            ValueError: shapes that do not fit the bank or each other, or another device.
        """
        self._check_classes(gt_classes)
        rows = gt_classes.shape[0]
        for name, column, width, advice in (
            ("features", features, self.feature_dim, "build the bank for the box head (MODEL.ROI_BOX_HEAD.FC_DIM)"),
            ("proposal_boxes", proposal_boxes, 4, "give XYXY boxes; rotated ones are not supported"),
            ("gt_boxes", gt_boxes, 4, "give XYXY boxes; rotated ones are not supported"),
        ):
            check(column.shape == (rows, width), name, f"shape {(rows, width)}", tuple(column.shape), advice)
        counts = [rows] if rois_per_image is None else list(rois_per_image)
        check(sum(counts) == rows, "rois_per_image", f"numbers that sum to the {rows} rows", counts, "count them anew")

        target = self.target_index.index_select(0, gt_classes + 1)  # (R,)
        stored = target < self.num_target_classes
        if self.write_max_per_object and rows:
            iou = paired_iou(proposal_boxes, gt_boxes)
            order = iou.argsort(descending=True, stable=True)  # (R,), the best first
            # An RoI's ground-truth box is a copy of its object's, so equal means the same bits.
            same = (image_of_row(counts, target), target, *gt_boxes.unbind(1))
            rank = torch.empty_like(order).scatter_(0, order, rank_in_group(*(key[order] for key in same)))
            stored &= rank < self.write_max_per_object
        row = stored.nonzero().squeeze(1)  # (W,); waits for the device
        index, columns = target[row], [features.detach(), proposal_boxes.detach(), gt_boxes.detach()]
        if self.sync and world_size() > 1:
            own = [self._as_stored(c.index_select(0, row), s) for c, s in zip(columns, self._stores(), strict=True)]
            keys, *columns = gathered(torch.stack([index, image_of_row(counts, target)[row]], dim=1), *own)
            row = keys[:, 1].argsort(stable=True)  # from (rank, image, place) to (image, rank, place)
            index = keys[row, 0]
        if row.numel():
            self._append(index, row, columns)
        self.iteration += 1

    def _append(self, index: Tensor, row: Tensor, columns: Sequence[Tensor]) -> None:
        """Append rows ``row`` (W,) of the columns, in this order, to the target classes ``index`` (W,)."""
        num_slots = self.slots_per_class
        index, order = index.sort(stable=True)  # class by class, in order of arrival
        row = row[order]
        count = torch.zeros_like(self.num_written).scatter_add_(0, index, torch.ones_like(index))
        first = count.cumsum(0) - count
        rank = torch.arange(row.numel(), device=row.device) - first[index]  # within the class
        place = index * num_slots + (self.num_written[index] + rank) % num_slots

        # With more than S rows of a class several go to one slot, and a scatter leaves open which of them
        # stays. So each writes what the last of them brings. S = 3, ranks 0 1 2 3 4: slots 0 1 2 0 1;
        # ranks 0 and 3 share slot 0, hence both write rank 3's row: last = 0 + (5 - 1 - 0) // 3 * 3 = 3.
        last = rank + (count[index] - 1 - rank) // num_slots * num_slots
        row = row[first[index] + last]
        for column, store in zip(columns, self._stores(), strict=True):
            store.index_copy_(0, place, self._as_stored(column.index_select(0, row), store))
        self.written_at.view(-1).index_fill_(0, place, self.iteration)
        self.num_written += count

    def _stores(self) -> list[Tensor]:
        """Views (T * S, width) of the buffers that ``write`` fills from its columns."""
        return [store.view(-1, store.shape[2]) for store in (self.features, self.proposal_boxes, self.gt_boxes)]

    @staticmethod
    def _as_stored(column: Tensor, store: Tensor) -> Tensor:
        if store.dtype == torch.float16:
            limit = torch.finfo(torch.float16).max
            column = column.clamp(-limit, limit)  # an infinite feature would come back as a NaN loss
        return column.to(store.dtype)

    def _generator(self, device: torch.device) -> torch.Generator:
        # Made anew from (seed, step): nothing to checkpoint but the step, and no other draw can shift it.
        # The mixing is splitmix64's; torch's CPU generator only looks at the low 32 bits of its seed.
        x = (self.seed * 0x9E3779B97F4A7C15 + self.iteration * 0xD1342543DE82EF95 + 1) & (2**64 - 1)
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        return torch.Generator(device=device).manual_seed((x ^ (x >> 31)) >> 32)

    def _check_classes(self, gt_classes: Tensor) -> None:
        good, found = gt_classes.ndim == 1 and not gt_classes.is_floating_point(), tuple(gt_classes.shape)
        check(good, "gt_classes", "class ids of shape (R,)", f"{found} {gt_classes.dtype}", "give whole numbers")
        own, advice = self.num_written.device, "move the bank with the model: model.to(device)"
        check(own == gt_classes.device, "gt_classes", f"the bank's device {own}", gt_classes.device, advice)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([_FORMAT, self.iteration], dtype=torch.int64)  # fvcore's Checkpointer takes only tensors

    def set_extra_state(self, state: Tensor) -> None:
        version, iteration = state.tolist()
        check(version in (1, 2), "memory bank state", "format 1 or 2", version, "use the version of rio that wrote it")
        self.iteration = iteration

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # All or nothing: a bank loaded in part (checkpointers drop tensors of another shape) would replay zeros.
        state_dict.pop(prefix + "object_ids", None)  # of format 2
        own = {prefix + name: buffer for name, buffer in self.named_buffers() if name != "target_index"}
        found = {name: state_dict[name] for name in own if name in state_dict}
        problems = [f"{name}: absent, or of another shape" for name in own.keys() - found.keys() if found]
        for name, tensor in found.items():
            if tensor.shape != own[name].shape:
                problems.append(f"{name}: expected {tuple(own[name].shape)}, found {tuple(tensor.shape)}")
            elif name.endswith("class_ids") and not torch.equal(tensor.to(own[name].device), own[name]):
                problems.append(f"{name}: the same number of target classes, but other ones")
        if problems:
            arguments[-1].append(
                f"the memory bank in the checkpoint does not fit: {'; '.join(sorted(problems))}. Shapes are (target "
                "classes, SLOTS_PER_CLASS, feature width). Fix: keep MODEL.RIO and the training set of the run, or "
                "load without the bank (rio.engine.weights.load_weights does)"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *arguments)
