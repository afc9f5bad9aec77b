"""Rows of tensors: ranks within groups, IoU of pairs, and the rows of all processes gathered or summed.

R: RoIs, W: rows of one process.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def rank_in_group(*keys: Tensor) -> Tensor:
    """(R,) int64: how many earlier entries an entry equals in all of keys, each (R,).

    >>> rank_in_group(torch.tensor([7, 7, 3, 7]), torch.tensor([0, 1, 0, 0])).tolist()
    [0, 0, 0, 1]
    """
    position = torch.arange(len(keys[0]), device=keys[0].device)
    order = position
    for key in keys:  # sorted by all keys, and by position where those are equal
        order = order[key[order].argsort(stable=True)]
    first = torch.zeros_like(order, dtype=torch.bool)
    first[:1] = True
    for key in keys:
        ordered = key[order]
        first[1:] |= ordered[1:] != ordered[:-1]
    rank = position - (position * first).cummax(dim=0).values
    return torch.empty_like(order).scatter_(0, order, rank)


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(R,) IoU of each of boxes (R, 4) with its partner in others (R, 4), XYXY; 0 where both are empty."""
    low, high = boxes[:, :2].maximum(others[:, :2]), boxes[:, 2:].minimum(others[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    either = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (others[:, 2:] - others[:, :2]).prod(1) - both
    return torch.where(either > 0, both / either, 0.0)


def image_of_row(rois_per_image: Sequence[int], like: Tensor) -> Tensor:
    """(R,) int64, the place of each row's image in this rank's batch, on the device of ``like``."""
    counts = torch.tensor(rois_per_image, dtype=torch.int64)  # repeated on the host, and the copy is not waited for
    return torch.repeat_interleave(counts, output_size=sum(rois_per_image)).to(like.device, non_blocking=True)


def world_size() -> int:
    """Number of processes, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(*columns: Tensor) -> list[Tensor]:
    """The rows of all processes, in order of rank.

    Two collectives, the second only if some rank has a row. Rows travel as bytes, so nothing is rounded. `columns` are
    (W, ...), contiguous, of the same width and dtype on every rank; W may differ and be 0.
    """
    world, own = world_size(), columns[0].shape[0]
    counts = torch.empty(world, dtype=torch.int64, device=columns[0].device)
    dist.all_gather(list(torch.split(counts, 1)), torch.full_like(counts[:1], own))
    sizes = counts.tolist()  # waits for the device: otherwise room for every RoI would have to travel
    if not max(sizes):
        return list(columns)

    parts = [column.view(torch.uint8) for column in columns]
    widths = [part.shape[1] for part in parts]
    payload = parts[0].new_zeros(max(sizes), sum(widths))
    payload[:own] = torch.cat(parts, dim=1)
    received = payload.new_empty(world, *payload.shape)
    dist.all_gather(list(received.unbind(0)), payload)
    rows = torch.cat([received[rank, :size] for rank, size in enumerate(sizes)])
    # Cloned, as contiguous() leaves a single row with the stride it had in the table.
    found = (part.clone(memory_format=torch.contiguous_format) for part in torch.split(rows, widths, dim=1))
    return [part.view(column.dtype) for part, column in zip(found, columns, strict=True)]


def summed(column: Tensor) -> Tensor:
    """The column summed over all processes, in place; every rank must call it."""
    if world_size() > 1:
        dist.all_reduce(column)
    return column
