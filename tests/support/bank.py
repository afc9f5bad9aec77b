"""A small memory bank, rows for it that are told apart by one number, and what a call makes a GPU wait for."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rio.memory_bank import MemoryBank

K = 6  # background is 6


def make(**changes) -> MemoryBank:
    arguments = dict(num_classes=K, class_ids=[1, 4], feature_dim=2, slots_per_class=3, replay_per_class=2)
    return MemoryBank(**(arguments | changes))


def rows(values: list[float], classes: list[int], width: int = 2) -> tuple[torch.Tensor, ...]:
    """Rows told apart by one number: feature = value, proposal box = value + 0.25, gt box = value + 0.5."""
    column = torch.tensor(values, dtype=torch.float32).reshape(-1, 1)
    boxes = column.expand(-1, 4)
    return (column.expand(-1, width).clone(), boxes + 0.25, boxes + 0.5, torch.tensor(classes, dtype=torch.int64))


def ours_in(log: dict) -> dict:
    """What rio logs beside detectron2."""
    return {k: v for k, v in log.items() if "memory_bank/" in k or "rois/" in k}


class Waits(TorchDispatchMode):
    """Collects operators that would make the host wait for a GPU: the device decides their shape or the host reads."""

    NAMES = ("nonzero", "_local_scalar_dense", "item", "masked_select", "_unique2", "unique_dim", "bincount", "equal",
             "is_nonzero")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).rsplit(".", 1)[0].removeprefix("aten.")
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        unsized = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        if name in self.NAMES or by_mask or unsized:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))
