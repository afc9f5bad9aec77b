"""Run-length encoded masks, many at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Rles(Sequence[dict[str, Any]]):
    """N run-length encoded masks, each {"size": [height, width], "counts": str} when it is asked for."""

    counts: np.ndarray  # (B,) uint8, COCO's compressed run lengths of all masks, one after the other
    offsets: np.ndarray  # (N + 1,) int64, where those of each mask begin
    sizes: np.ndarray  # (N, 2) int32, height and width in pixels

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, row: int) -> dict[str, Any]:
        size = self.sizes[row].tolist()  # an IndexError past the end
        return {"size": size, "counts": str(self.counts[self.offsets[row] : self.offsets[row + 1]], "ascii")}


def rle_totals(strings: Sequence[str]) -> np.ndarray:
    """How many pixels each compressed COCO RLE describes, without decoding it: (n,) int64; a ValueError where one is no
    RLE.

    All strings at once; `rio.data.masks.rle_counts` reads one of them, and describes the format. A total is right where
    no run is negative, which is not seen here.

    >>> rle_totals(["042", "04"])  # an image of six pixels; a mask that stops short
    array([6, 4])
    """
    lengths = np.fromiter(map(len, strings), np.int64, len(strings))
    digits = np.frombuffer("".join(strings).encode("ascii"), np.uint8) - np.uint8(48)  # wraps round below "0"
    string_ends = np.cumsum(lengths) - 1
    if lengths.min(initial=1) == 0 or digits.max(initial=0) > 63 or (digits[string_ends] & 32).any():
        raise ValueError("not an RLE string")
    run_ends = np.flatnonzero(digits < 32)  # 32: more digits follow
    size = np.diff(run_ends, prepend=-1)
    if size.max(initial=0) > 7:
        raise ValueError("a run length of more than 7 characters")
    value = (digits[run_ends] ^ 16).astype(np.int64) - 16  # the highest digit, of two's complement
    place, longer = 1, np.flatnonzero(size > 1)
    while len(longer):
        value[longer] = value[longer] << 5 | digits[run_ends[longer] - place] & 31
        place += 1
        longer = longer[size[longer] > place]
    # From the fourth run on, a run is written as its difference from the run two before. So a number counts once for
    # its own run and once for every second one after it; the first run's is no other's base.
    last = np.searchsorted(run_ends, string_ends)
    first = np.concatenate([[0], last[:-1] + 1])[: len(last)]
    times = ((np.repeat(last, last - first + 1) - np.arange(len(value))) >> 1) + 1
    times[first] = 1
    return np.add.reduceat(value * times, first)
