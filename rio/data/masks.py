"""Run-length encoded masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def rle_counts(counts: str | bytes | Sequence[int]) -> np.ndarray:
    """The run lengths of a COCO mask: background, object, background, ..., column by column.

    Args:
        counts: Run lengths, or COCO's compressed string of them (5 bits a character, differences to the run
            before the last from the fourth run on).

    Returns:
        (runs,) int64 run lengths.

    Raises:
        ValueError: Not such a string, or a negative run length.

    >>> rle_counts("0512").tolist()
    [0, 5, 1, 7]
    """
    if not isinstance(counts, (str, bytes)):
        runs = np.asarray(counts, dtype=np.int64)
    else:
        try:
            raw = counts.encode("ascii") if isinstance(counts, str) else counts
        except UnicodeEncodeError:
            raise ValueError("RLE counts: expected ASCII characters 0..o, found others") from None
        digits = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
        if len(digits) and (digits.min() < 0 or digits.max() > 63):
            raise ValueError("RLE counts: expected ASCII characters 0..o, found others")
        is_last = (digits & 0x20) == 0
        if len(digits) and not is_last[-1]:
            raise ValueError("RLE counts: the string is cut off")
        ends = np.flatnonzero(is_last)
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        lengths = ends - starts + 1
        if len(lengths) and lengths.max() > 7:  # 35 bits: more than any mask has pixels
            raise ValueError("RLE counts: a run length of more than 7 characters")
        place = np.arange(len(digits)) - np.repeat(starts, lengths)
        runs = np.add.reduceat((digits & 0x1F) << (5 * place), starts) if len(starts) else starts
        negative = (digits[ends] & 0x10) != 0
        runs = runs - np.where(negative, np.int64(1) << (5 * lengths), 0)
        runs[1::2] = np.cumsum(runs[1::2])
        runs[2::2] = np.cumsum(runs[2::2])
    if len(runs) and runs.min() < 0:
        raise ValueError(f"RLE counts: expected runs >= 0, found {int(runs.min())}")
    return runs
