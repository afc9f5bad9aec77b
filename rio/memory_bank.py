"""Object level: one first-in-first-out ring buffer of RoIs a target class, as fixed-shape tensors.

Shape shorthand in this module:

    K: number of foreground classes; class_id K is background
    T: number of target classes (those whose objects are resampled)
    S: slots a target class (stored RoIs)
    M: rows replayed at most a step and target class (replay_per_class)
    R: number of RoIs of a step, all images together
    W: rows of a step that are written
    D: width of an RoI feature

The bank lives on the device of the model, is part of its state dict, and costs two device synchronisations a
step: one ``nonzero`` in ``sample``, one in ``write``. All other shapes are known to the host.

Several processes (``sync=True``): every rank appends the writes of all ranks, in the order in which one process
would have met them, so all ranks hold the same bank. The training sampler deals the images of a global batch
like cards, image p to rank p modulo P of P ranks. Hence the order is: first image of rank 0, of rank 1, ...,
of rank P - 1, second image of rank 0, ...; within an image as the RoIs come. Given the same RoIs, features
and boxes, the bank is bit for bit the one-process bank. What a run of P processes draws differently stays so:
which proposals become RoIs (each rank has its own random numbers), the rounding of summed gradients, and with
DATALOADER.ASPECT_RATIO_GROUPING which images share a batch.

Beside each RoI the bank keeps the identity of the object it was matched to: two numbers, the image's id and
the object's place among the annotations of that image. ``write`` may be called without; the identity is then
unknown (-1), as it is for what a checkpoint of format 1 brings. Unknown objects count as different from all
others, and ``statistics`` does not count objects and images as long as an unknown one is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

REPLAY_ORDERS = ("newest", "random", "diverse")
_FORMAT = 2  # of the extra state; 1 had no object_ids


@dataclass(frozen=True)
class Replay:
    """What ``MemoryBank.sample`` read back; M' rows, no gradient.

    Attributes:
        features: (M', D), in the dtype that was asked for.
        proposal_boxes: (M', 4) float32, XYXY absolute pixels of the image they came from.
        gt_boxes: (M', 4) float32, the ground-truth box each was matched to, XYXY.
        gt_classes: (M',) int64 class ids, never background.
        written_at: (M',) int64, the step (counted by the bank) at which each was written.
    """

    features: Tensor
    proposal_boxes: Tensor
    gt_boxes: Tensor
    gt_classes: Tensor
    written_at: Tensor

    def __len__(self) -> int:
        return self.gt_classes.shape[0]


def memory_bank_bytes(
    num_target_classes: int, slots_per_class: int, feature_dim: int, dtype: torch.dtype = torch.float32
) -> int:
    """Bytes that a bank's buffers take on the device, and in each checkpoint.

    >>> memory_bank_bytes(553, 60, 1024) / 2**20  # LVIS v1, reference settings, MiB  # doctest: +ELLIPSIS
    131.3...
    """
    slot = feature_dim * dtype.itemsize + 2 * 4 * torch.float32.itemsize + 3 * torch.int64.itemsize
    return num_target_classes * (slots_per_class * slot + 2 * torch.int64.itemsize)


class MemoryBank(nn.Module):
    """Stores RoI features of target classes and replays them when their class is in the batch.

    A training step calls ``sample`` and then ``write``, once each: what is replayed was there before the
    step's own write. Nothing is copied but the rows themselves; the bank never gives or takes a gradient.
    Of several processes each has a bank of its own, filled from its own images, unless ``sync``.

    Args:
        num_classes: K, foreground classes of the model.
        class_ids: the T target classes, 0-based, each once.
        feature_dim: D.
        slots_per_class: S >= 1.
        replay_per_class: M, 1..S.
        replay_order: which slots of a class: "newest"; "random" (without replacement, reproducible from
            ``seed`` and the step); or "diverse", as many different objects as there are: the newest slot of
            each object, then the second newest of each, ..., newer ones first.
        replay_absent_classes: so many target classes that have something stored and are not in the batch are
            replayed as well, drawn anew each step; 0 = none.
        write_max_per_object: at most so many RoIs of one object a write, those whose proposal box has the
            highest IoU with the ground-truth box, earlier ones first where equal; 0 = all.
        storage_dtype: a floating dtype for the features; boxes are always float32.
        seed: of the random order, of the absent classes, and of who is served first under a cap.
        sync: with torch.distributed at work, append the writes of all ranks; the module's docstring says in
            which order. Every rank must then call ``write`` every step, rows or not. It costs one gather of
            a number a step and one of the rows in steps that have any. No effect with one process.

    Raises:
        ValueError: names the argument, what was expected, what came, the config key to change.
    """

    features: Tensor
    proposal_boxes: Tensor
    gt_boxes: Tensor
    object_ids: Tensor
    num_written: Tensor
    written_at: Tensor
    class_ids: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        class_ids: Sequence[int],
        feature_dim: int,
        slots_per_class: int = 60,
        replay_per_class: int = 20,
        replay_order: str = "newest",
        replay_absent_classes: int = 0,
        write_max_per_object: int = 0,
        storage_dtype: torch.dtype = torch.float32,
        seed: int = 0,
        sync: bool = False,
    ) -> None:
        super().__init__()
        class_ids = [int(c) for c in class_ids]
        _check_arguments(num_classes, class_ids, feature_dim, slots_per_class, replay_per_class)
        if replay_order not in REPLAY_ORDERS:
            raise ValueError(f"replay_order: expected one of {list(REPLAY_ORDERS)}, found {replay_order!r}")
        for name, value in (
            ("replay_absent_classes", replay_absent_classes),
            ("write_max_per_object", write_max_per_object),
        ):
            if value < 0:
                raise ValueError(f"{name}: expected >= 0, found {value} (MODEL.RIO.{name.upper()})")
        if not storage_dtype.is_floating_point:
            raise ValueError(f"storage_dtype: expected a floating dtype, found {storage_dtype}")
        self.num_classes = num_classes
        self.num_target_classes = len(class_ids)
        self.feature_dim = feature_dim
        self.slots_per_class = slots_per_class
        self.replay_per_class = replay_per_class
        self.replay_order = replay_order
        self.replay_absent_classes = replay_absent_classes
        self.write_max_per_object = write_max_per_object
        self.seed = seed
        self.sync = sync
        self.iteration = 0  # training steps seen; a host number, so that reading it is no synchronisation

        t, s = self.num_target_classes, slots_per_class
        self.register_buffer("features", torch.zeros(t, s, feature_dim, dtype=storage_dtype))
        self.register_buffer("proposal_boxes", torch.zeros(t, s, 4))
        self.register_buffer("gt_boxes", torch.zeros(t, s, 4))
        # (image id, place among its annotations), -1 = unknown
        self.register_buffer("object_ids", torch.full((t, s, 2), -1, dtype=torch.int64))
        self.register_buffer("num_written", torch.zeros(t, dtype=torch.int64))  # since the start, not capped at S
        self.register_buffer("written_at", torch.full((t, s), -1, dtype=torch.int64))
        self.register_buffer("class_ids", torch.tensor(class_ids, dtype=torch.int64))
        # class_id + 1 -> index into the bank, T = not a target. The shift gives detectron2's "ignore" (-1) a
        # place.
        target_index = torch.full((num_classes + 2,), t, dtype=torch.int64)
        target_index[self.class_ids + 1] = torch.arange(t)
        self.register_buffer("target_index", target_index, persistent=False)

    def extra_repr(self) -> str:
        return (
            f"num_target_classes={self.num_target_classes}, slots_per_class={self.slots_per_class}, "
            f"replay_per_class={self.replay_per_class}, feature_dim={self.feature_dim}, "
            f"replay_order={self.replay_order!r}, replay_absent_classes={self.replay_absent_classes}, "
            f"write_max_per_object={self.write_max_per_object}, storage_dtype={self.features.dtype}, "
            f"sync={self.sync}"
        )

    @torch.no_grad()
    def sample(
        self, gt_classes: Tensor, *, max_per_foreground: float = 0.0, dtype: torch.dtype | None = None
    ) -> Replay:
        """Read back stored RoIs of the target classes among ``gt_classes``, and of some that are absent.

        Up to ``replay_per_class`` of each of these classes, and of each of ``replay_absent_classes`` others.
        Changes nothing: the same call gives the same rows until the next ``write``.

        Args:
            gt_classes: (R,) int64 class ids of this step's RoIs; K (background) and -1 (ignore) allowed, R
                may be 0.
            max_per_foreground: replay at most floor(this * number of foreground RoIs) rows; 0 = no cap. Under
                a cap every class is served its first row before any gets a second; which classes come first
                changes from step to step.
            dtype: of the features returned; None = as stored.

        Returns:
            The replay, rank-major (all classes' first row, then all their second, ...), without duplicates.
        """
        self._check_device(gt_classes)
        device = self.num_written.device
        num_targets, num_slots = self.num_target_classes, self.slots_per_class

        target = self.target_index.index_select(0, gt_classes + 1)  # (R,)
        present = torch.zeros(num_targets + 1, dtype=torch.bool, device=device)
        present = present.index_fill_(0, target, True)[:num_targets]
        available = self.num_written.clamp(max=self.replay_per_class)  # (T,); M <= S
        rank = torch.arange(self.replay_per_class, device=device)

        generator = None
        if max_per_foreground > 0 or self.replay_order == "random" or self.replay_absent_classes:
            generator = self._generator(device)
        if self.replay_absent_classes:
            absent = ~present & (available > 0)
            key = torch.rand(num_targets, generator=generator, device=device).masked_fill_(~absent, 2.0)
            drawn = key.topk(min(self.replay_absent_classes, num_targets), largest=False).indices
            present = present | (absent & torch.zeros_like(absent).index_fill_(0, drawn, True))
        wanted = present & (rank[:, None] < available)  # (M, T)
        columns = None
        if max_per_foreground > 0:
            foreground = (gt_classes >= 0) & (gt_classes < self.num_classes)
            limit = (foreground.sum() * max_per_foreground + 1e-3).floor()  # 100 * 0.29 is 29, not 28.99...
            # In class order a cap would always favour the front of the alphabet.
            columns = torch.rand(num_targets, generator=generator, device=device).argsort()
            wanted = wanted[:, columns]
            wanted = wanted & (wanted.flatten().cumsum(0) <= limit).view_as(wanted)

        rank, column = wanted.nonzero(as_tuple=True)  # the synchronisation
        index = column if columns is None else columns[column]
        if self.replay_order == "newest":
            slot = (self.num_written[index] - 1 - rank) % num_slots
        elif self.replay_order == "diverse":
            slot = self._diverse_slots(index, rank)
        else:
            key = torch.rand(num_targets, num_slots, generator=generator, device=device)
            empty = torch.arange(num_slots, device=device) >= self.num_written[:, None]
            # Sorted for the rows wanted, not for all classes: tens of rows, not hundreds.
            order = key.masked_fill_(empty, 2.0).index_select(0, index).argsort(dim=1)
            slot = order.gather(1, rank[:, None]).squeeze(1)

        row = index * num_slots + slot
        features = self.features.flatten(0, 1).index_select(0, row)
        return Replay(
            features=features if dtype is None else features.to(dtype),
            proposal_boxes=self.proposal_boxes.flatten(0, 1).index_select(0, row),
            gt_boxes=self.gt_boxes.flatten(0, 1).index_select(0, row),
            gt_classes=self.class_ids[index],
            written_at=self.written_at.flatten()[row],
        )

    def _diverse_slots(self, index: Tensor, rank: Tensor) -> Tensor:
        """(M',) the slot of rank (M',) of target class index (M',), if its objects take turns."""
        num_slots = self.slots_per_class
        written, age = self.num_written[index, None], torch.arange(num_slots, device=index.device)
        by_age = (written - 1 - age) % num_slots  # (M', S), the newest first
        ids = self.object_ids[index[:, None], by_age]  # (M', S, 2)
        image, place = ids.unbind(2)
        place = place.where(place >= 0, -1 - age)  # each unknown object is one of its own
        # Turn 0 is each object's newest slot. Within a turn the newer slot comes first.
        turn = _rank_in_group(image, place)
        key = (turn * num_slots + age).masked_fill_(age >= written, num_slots * num_slots)  # empty ones last
        return by_age.gather(1, key.argsort(dim=1).gather(1, rank[:, None])).squeeze(1)

    @torch.no_grad()
    def write(
        self,
        features: Tensor,
        proposal_boxes: Tensor,
        gt_boxes: Tensor,
        gt_classes: Tensor,
        *,
        rois_per_image: Sequence[int] | None = None,
        object_ids: Tensor | None = None,
    ) -> None:
        """Store the RoIs of target classes, oldest slots leaving first, and count the step.

        All of them, or the best ``write_max_per_object`` of each object: RoIs of one image, of one class,
        with one ground-truth box. They are appended in the order given, with ``sync`` image by image over the
        ranks. If a step holds more than S of a class, its last S stay.

        Args:
            features: (R, D), any floating dtype; R may be 0.
            proposal_boxes: (R, 4) XYXY, absolute pixels.
            gt_boxes: (R, 4) XYXY; only read where the class is a target.
            gt_classes: (R,) int64; K and -1 are never stored.
            rois_per_image: how many of the R rows belong to the first, second, ... image; only read with
                ``sync`` and ``write_max_per_object``. None: all belong to one.
            object_ids: (R, 2) int64, which object each was matched to: (image id, its place >= 0 among the
                image's annotations), place -1 = unknown; only read where the class is a target. None: all
                unknown.

        Raises:
            ValueError: shapes that do not fit the bank or each other, or another device.
        """
        self._check_rows(features, proposal_boxes, gt_boxes, gt_classes, object_ids)
        if rois_per_image is not None and sum(rois_per_image) != gt_classes.shape[0]:
            raise ValueError(
                f"rois_per_image: expected numbers that sum to the {gt_classes.shape[0]} rows, found "
                f"{list(rois_per_image)}"
            )
        target = self.target_index.index_select(0, gt_classes + 1)  # (R,)
        stored = target < self.num_target_classes
        if self.write_max_per_object and gt_classes.numel():
            image = _image_of_row(rois_per_image, gt_classes)
            stored &= self._best_of_objects(proposal_boxes, gt_boxes, target, image)
        row = stored.nonzero().squeeze(1)  # (W,), the synchronisation
        index = target[row]
        if object_ids is None:
            object_ids = self.object_ids.new_full((1, 2), -1).expand(gt_classes.numel(), 2)
        if self.sync and _world_size() > 1:
            image = _image_of_row(rois_per_image, gt_classes)[row]
            features = self._as_stored(features.detach().index_select(0, row))
            proposal_boxes, gt_boxes = (
                boxes.detach().index_select(0, row).to(self.gt_boxes.dtype) for boxes in (proposal_boxes, gt_boxes)
            )
            index, row, features, proposal_boxes, gt_boxes, object_ids = _gathered(
                index, image, features, proposal_boxes, gt_boxes, object_ids.index_select(0, row)
            )
        if row.numel():
            self._append(index, row, features, proposal_boxes, gt_boxes, object_ids)
        self.iteration += 1

    def _best_of_objects(self, proposal_boxes: Tensor, gt_boxes: Tensor, target: Tensor, image: Tensor) -> Tensor:
        """(R,) bool: the RoI is among the ``write_max_per_object`` best of its object."""
        iou = _paired_iou(proposal_boxes, gt_boxes)
        order = iou.argsort(descending=True, stable=True)  # (R,), the best first
        # An RoI's ground-truth box is a copy of its object's, so equal means the same bits.
        keys = (column[order][None] for column in (image, target, *gt_boxes.unbind(1)))
        rank = torch.empty_like(order).scatter_(0, order, _rank_in_group(*keys)[0])
        return rank < self.write_max_per_object

    def _append(
        self, index: Tensor, row: Tensor, features: Tensor, proposal_boxes: Tensor, gt_boxes: Tensor, object_ids: Tensor
    ) -> None:
        """Append rows ``row`` (W,) of the other tensors, in this order, to the target classes index (W,)."""
        num_slots = self.slots_per_class
        index, order = index.sort(stable=True)  # class by class, arrival order within a class
        row = row[order]
        count = torch.zeros_like(self.num_written).scatter_add_(0, index, torch.ones_like(index))
        first = count.cumsum(0) - count
        rank = torch.arange(row.numel(), device=row.device) - first[index]  # within the class
        slot = (self.num_written[index] + rank) % num_slots

        # With more than S rows of a class several go to one slot, and a scatter leaves open which of them
        # stays. So each writes what the last of them brings. S = 3, ranks 0 1 2 3 4: slots 0 1 2 0 1;
        # ranks 0 and 3 share slot 0, hence both write rank 3's row: last = 0 + (5 - 1 - 0) // 3 * 3 = 3.
        last = rank + (count[index] - 1 - rank) // num_slots * num_slots
        row = row[first[index] + last]

        place = index * num_slots + slot
        store = self.features.view(-1, self.feature_dim)  # view, not flatten: never a copy
        store.index_copy_(0, place, self._as_stored(features.detach().index_select(0, row)))
        for name, boxes in (("proposal_boxes", proposal_boxes), ("gt_boxes", gt_boxes)):
            store = getattr(self, name).view(-1, 4)
            store.index_copy_(0, place, boxes.detach().index_select(0, row).to(store.dtype))
        self.object_ids.view(-1, 2).index_copy_(0, place, object_ids.index_select(0, row))
        self.written_at.view(-1).index_fill_(0, place, self.iteration)
        self.num_written += count

    def _as_stored(self, features: Tensor) -> Tensor:
        if self.features.dtype == torch.float16:
            limit = torch.finfo(torch.float16).max
            features = features.clamp(-limit, limit)  # an infinite feature would come back as a NaN loss
        return features.to(self.features.dtype)

    def fill(self) -> Tensor:
        """Share of the slots that hold an RoI: a 0-dim float tensor in [0, 1] on the bank's device."""
        stored = self.num_written.clamp(max=self.slots_per_class).sum()
        return stored / (self.num_target_classes * self.slots_per_class)

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """What the bank holds, as 0-dim float tensors on its device; NaN where there is nothing to tell.

        Returns:
            "fill": share of the slots that hold an RoI. And, as means over the target classes with a stored
            RoI: "stored", the RoIs of a class; "distinct_objects" and "distinct_images", how many different
            objects and images these came from, NaN as long as the object of some stored RoI is unknown.
        """
        slot = torch.arange(self.slots_per_class, device=self.num_written.device)
        filled = slot < self.num_written[:, None]  # (T, S)
        num_classes = (self.num_written > 0).sum()
        image, place = self.object_ids.unbind(2)
        unknown = (filled & (place < 0)).any()

        def distinct(*keys: Tensor) -> Tensor:  # the slots that are the first of their kind
            number = (filled & (_rank_in_group(*keys) == 0)).sum() / num_classes
            return number.masked_fill(unknown, torch.nan)

        return {
            "fill": self.fill(),
            "stored": filled.sum() / num_classes,  # 0 / 0 is NaN
            "distinct_objects": distinct(image, place),
            "distinct_images": distinct(image),
        }

    @torch.no_grad()
    def drift(self, replay: Replay, features: Tensor, gt_classes: Tensor) -> Tensor:
        """How stale a replay is: the mean cosine between its features and what their classes look like now.

        Args:
            replay: from ``sample``.
            features: (R, D) of this step.
            gt_classes: (R,) int64, their class ids; K and -1 allowed.

        Returns:
            0-dim float: the mean over the replayed rows of the cosine between the row's feature and the mean
            feature of this step's RoIs of its class, rows whose class has none left out. NaN if none is left.
        """
        target = self.target_index.index_select(0, gt_classes + 1)
        # The sum has the direction of the mean.
        now = torch.zeros(self.num_target_classes + 1, self.feature_dim, device=features.device)
        now.index_add_(0, target, features.float())
        index = self.target_index.index_select(0, replay.gt_classes + 1)
        seen = torch.zeros_like(now[:, 0], dtype=torch.bool).index_fill_(0, target, True)[index]
        cosine = torch.cosine_similarity(replay.features.float(), now[index], dim=1)
        return cosine.masked_fill(~seen, 0.0).sum() / seen.sum()

    def nbytes(self) -> int:
        """Bytes that this bank's persistent buffers take."""
        return memory_bank_bytes(self.num_target_classes, self.slots_per_class, self.feature_dim, self.features.dtype)

    def _generator(self, device: torch.device) -> torch.Generator:
        # Made anew from (seed, step): nothing to checkpoint beyond the step, and no other draw can shift it.
        # The mixing is splitmix64's; torch's CPU generator only looks at the low 32 bits of its seed.
        x = (self.seed * 0x9E3779B97F4A7C15 + self.iteration * 0xD1342543DE82EF95 + 1) & (2**64 - 1)
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        return torch.Generator(device=device).manual_seed((x ^ (x >> 31)) >> 32)

    def _check_device(self, gt_classes: Tensor) -> None:
        if gt_classes.ndim != 1 or gt_classes.is_floating_point():
            raise ValueError(
                f"gt_classes: expected class ids of shape (R,), found {tuple(gt_classes.shape)} {gt_classes.dtype}"
            )
        if gt_classes.device != self.num_written.device:
            raise ValueError(
                f"gt_classes: expected a tensor on the bank's device {self.num_written.device}, found one on "
                f"{gt_classes.device}. Move the bank with the model: model.to(device)"
            )

    def _check_rows(
        self, features: Tensor, proposal_boxes: Tensor, gt_boxes: Tensor, gt_classes: Tensor, object_ids: Tensor | None
    ) -> None:
        self._check_device(gt_classes)
        if features.ndim != 2 or features.shape[1] != self.feature_dim:
            raise ValueError(
                f"features: expected (R, {self.feature_dim}), the width this bank was built for, found "
                f"{tuple(features.shape)}. Build the bank with the width of the box head's output "
                "(MODEL.ROI_BOX_HEAD.FC_DIM)"
            )
        rows = gt_classes.shape[0]
        if features.shape[0] != rows:
            raise ValueError(f"features: expected {rows} rows, one a class id, found {features.shape[0]}")
        for name, boxes in (("proposal_boxes", proposal_boxes), ("gt_boxes", gt_boxes)):
            if tuple(boxes.shape) != (rows, 4):
                raise ValueError(
                    f"{name}: expected ({rows}, 4), one XYXY box an RoI, found {tuple(boxes.shape)}. "
                    "Rotated boxes are not supported"
                )
        if object_ids is not None and (tuple(object_ids.shape) != (rows, 2) or object_ids.dtype != torch.int64):
            raise ValueError(
                f"object_ids: expected ({rows}, 2) int64, image id and place of each RoI's object, found "
                f"{tuple(object_ids.shape)} {object_ids.dtype}"
            )

    # State: the buffers, and the step as a small tensor (fvcore's Checkpointer takes nothing but tensors).

    def get_extra_state(self) -> Tensor:
        return torch.tensor([_FORMAT, self.iteration], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        version, iteration = (int(v) for v in state)
        if version not in (1, _FORMAT):
            raise ValueError(
                f"memory bank state: expected format 1 or {_FORMAT}, found {version}. Use the version that wrote it"
            )
        self.iteration = iteration

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors) -> None:
        # All or nothing. A bank loaded in part (checkpointers drop tensors of another shape) would replay
        # zeros.
        extra = state_dict.get(prefix + "_extra_state")
        if extra is not None and int(extra[0]) == 1:
            state_dict[prefix + "object_ids"] = torch.full_like(self.object_ids, -1)
        names = list(self._buffers.keys() - self._non_persistent_buffers_set)
        found = {n: state_dict[prefix + n] for n in names if prefix + n in state_dict}
        problems = []
        for name, tensor in found.items():
            own = self._buffers[name]
            if tuple(tensor.shape) != tuple(own.shape):
                problems.append(f"{prefix}{name}: expected {tuple(own.shape)}, found {tuple(tensor.shape)}")
            elif name == "class_ids" and not torch.equal(tensor.to(own.device), own):
                problems.append(f"{prefix}{name}: the same number of target classes, but other ones")
        if found and len(found) < len(names):
            problems.append(f"{prefix}{{{','.join(sorted(set(names) - set(found)))}}}: absent, or of another shape")
        if problems:
            errors.append(
                f"the memory bank in the checkpoint does not fit: {'; '.join(sorted(problems))}. Shapes are"
                " (target classes, SLOTS_PER_CLASS, feature width): keep MODEL.RIO and the training set of"
                " the run, or load without the bank (rio.engine.weights.load_weights does)"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)


def _rank_in_group(*keys: Tensor) -> Tensor:
    """(B, S) int64: how many earlier entries of its row an entry equals in all of keys, each (B, S).

    >>> _rank_in_group(torch.tensor([[7, 7, 3, 7]]), torch.tensor([[0, 1, 0, 0]])).tolist()
    [[0, 0, 0, 1]]
    """
    position = torch.arange(keys[0].shape[1], device=keys[0].device).expand_as(keys[0])
    order = position
    for key in keys:  # sorted by all keys, and by position where those are equal
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    first = torch.zeros_like(order, dtype=torch.bool)
    first[:, :1] = True
    for key in keys:
        ordered = key.gather(1, order)
        first[:, 1:] |= ordered[:, 1:] != ordered[:, :-1]
    rank = position - (position * first).cummax(dim=1).values
    return torch.empty_like(order).scatter_(1, order, rank)


def _paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(R,) IoU of each of boxes (R, 4) with its partner in others (R, 4), XYXY; 0 where both are empty."""
    low, high = boxes[:, :2].maximum(others[:, :2]), boxes[:, 2:].minimum(others[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    either = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (others[:, 2:] - others[:, :2]).prod(1) - both
    return torch.where(either > 0, both / either, 0.0)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _image_of_row(rois_per_image: Sequence[int] | None, like: Tensor) -> Tensor:
    """(R,) int64, the place of each row's image in this rank's batch, on the device of (R,) `like`."""
    if rois_per_image is None:
        return torch.zeros_like(like)
    counts = torch.tensor(list(rois_per_image), dtype=torch.int64)
    # Counted on the host, and not waited for: no synchronisation.
    return torch.repeat_interleave(counts).to(like.device, non_blocking=True)


def _gathered(index: Tensor, image: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """The rows of all ranks as (index, row, *columns): index and row in the order (image, rank, place).

    Two collectives, the second only where some rank has a row. Rows travel as bytes, so nothing is rounded.

    Args:
        index: (W,) int64 of this rank; W may differ between ranks and be 0.
        image: (W,) int64, see ``_image_of_row``.
        *columns: (W, ...) of the same widths and dtypes on every rank.
    """
    world = _world_size()
    own = index.numel()
    counts = torch.empty(world, dtype=torch.int64, device=index.device)
    dist.all_gather(list(counts.split(1)), torch.tensor([own], dtype=torch.int64, device=index.device))
    sizes = counts.tolist()  # a second synchronisation: without it, room for every RoI would have to travel
    if not max(sizes):
        return index, index, *columns

    table = [torch.stack([index, image], dim=1), *columns]
    parts = [column.contiguous().view(torch.uint8) for column in table]
    payload = parts[0].new_zeros(max(sizes), sum(part.shape[1] for part in parts))
    payload[:own] = torch.cat(parts, dim=1)
    received = payload.new_empty(world, *payload.shape)
    dist.all_gather(list(received.unbind(0)), payload)
    rows = torch.cat([received[rank, :size] for rank, size in enumerate(sizes)])

    found = rows.split([part.shape[1] for part in parts], dim=1)
    keys, *columns = (
        # Not contiguous(), which leaves a single row with the stride it had in the table.
        part.clone(memory_format=torch.contiguous_format).view(column.dtype)
        for part, column in zip(found, table, strict=True)
    )
    index, image = keys.unbind(1)
    # Rank-major now: a stable sort by image leaves the ranks, and the rows of an image, in order.
    order = image.argsort(stable=True)
    return index[order], order, *columns


def _check_arguments(
    num_classes: int, class_ids: list[int], feature_dim: int, slots_per_class: int, replay_per_class: int
) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, found {num_classes}")
    if not class_ids:
        raise ValueError(
            "class_ids: expected at least one target class, found none. MODEL.RIO.BANK_CLASS_IDS is filled in"
            " from the training set; if no class of it has few enough images, raise"
            " MODEL.RIO.BANK_MAX_IMAGE_COUNT or set MODEL.RIO.BANK_ENABLED False"
        )
    if len(set(class_ids)) != len(class_ids):
        twice = sorted({c for c in class_ids if class_ids.count(c) > 1})
        raise ValueError(f"class_ids: expected each class once, found {twice[:5]} more than once")
    if min(class_ids) < 0 or max(class_ids) >= num_classes:
        bad = [c for c in class_ids if not 0 <= c < num_classes]
        raise ValueError(
            f"class_ids: expected 0-based class ids below num_classes ({num_classes}), found {bad[:5]}."
            " category_ids of a file are another numbering"
        )
    if feature_dim < 1:
        raise ValueError(f"feature_dim: expected at least 1, found {feature_dim}")
    if slots_per_class < 1:
        raise ValueError(f"slots_per_class: expected at least 1, found {slots_per_class} (MODEL.RIO.SLOTS_PER_CLASS)")
    if not 1 <= replay_per_class <= slots_per_class:
        raise ValueError(
            f"replay_per_class: expected 1..slots_per_class ({slots_per_class}), found {replay_per_class} "
            "(MODEL.RIO.REPLAY_PER_CLASS)"
        )
