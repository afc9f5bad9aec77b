"""Masks as a file's own JSON bytes: decoded when asked for, judged once.

Shapes: n masks, M bytes of all of them, one after the other.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

POLYGON_TOLERANCE = 10_000
"""How far (px) a polygon may stick out of its image: pycocotools walks edges pixel by pixel, so a point a million px
away costs it a GB and one further away crashes it."""

Pixels = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class RLE(msgspec.Struct, gc=False):
    """COCO's run-length encoding."""

    size: tuple[Pixels, Pixels]
    counts: str | list[Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]]


Mask = list[list[float]] | RLE | None
decode = msgspec.json.Decoder(Mask).decode


def rle_of(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Polygons in pixels, or an RLE in either spelling, as a compressed RLE."""
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))  # type: ignore[no-any-return]
    rle = dict(segmentation)
    return coco_mask.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle


def decoded_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool of a COCO segmentation: polygons or None in an image of that size, or an RLE of its own."""
    from pycocotools import mask as coco_mask

    if segmentation is None:
        return np.zeros(size, bool)
    return coco_mask.decode(rle_of(segmentation, *size)).astype(bool)  # type: ignore[no-any-return]


def rle_counts(counts: str | bytes | Sequence[int]) -> np.ndarray:
    """The run lengths of a COCO mask, (runs,) int64: background, object, background, ..., column by column.

    `counts`: run lengths, or COCO's compressed string of them (5 bits per character; from the fourth run on,
    differences to the run before the last). A ValueError for another string, or a negative run length.

    >>> rle_counts("0512").tolist()
    [0, 5, 1, 7]
    """
    if not isinstance(counts, (str, bytes)):
        runs = np.asarray(counts, dtype=np.int64)
    else:
        text = counts.encode() if isinstance(counts, str) else counts
        digits = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - ord("0")
        if len(digits) and (digits.min() < 0 or digits.max() > 63):
            raise ValueError("RLE counts: expected ASCII characters 0..o, found others")
        if len(digits) and digits[-1] & 0x20:  # more is to come
            raise ValueError("RLE counts: the string is cut off")
        ends = np.flatnonzero((digits & 0x20) == 0)
        lengths = np.diff(ends, prepend=-1)
        starts = ends + 1 - lengths
        if len(lengths) and lengths.max() > 7:  # 35 bits: more than any mask has pixels
            raise ValueError("RLE counts: a run length of more than 7 characters")
        place = np.arange(len(digits)) - np.repeat(starts, lengths)
        runs = np.add.reduceat((digits & 0x1F) << (5 * place), starts) if len(starts) else starts
        runs -= ((digits[ends] & 0x10) != 0) * (np.int64(1) << (5 * lengths))  # negative differences
        runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    if len(runs) and runs.min() < 0:
        raise ValueError(f"RLE counts: expected runs >= 0, found {int(runs.min())}")
    return runs


def fault_of(mask: list[list[float]] | RLE, height: int, width: int) -> tuple[str, str, str, str, str | None] | None:
    """What is wrong with a mask of an image of that size, if anything: kind, key, expected, found, fix."""
    if isinstance(mask, RLE):
        if mask.size != (height, width):
            expected, fix = f"the image's [height, width] {[height, width]}", "encode the mask at the image's size"
            return "rle_size", "segmentation.size", expected, str(list(mask.size)), fix
        try:
            total: int | str = int(rle_counts(mask.counts).sum())
        except ValueError as error:
            total = str(error)
        # pycocotools does not check this and would read or write outside its memory.
        if total != height * width or height * width >= 2**32:
            return "rle", "segmentation.counts", f"runs that sum to the image's {height * width} px", str(total), None
        return None
    for polygon in mask:
        if len(polygon) < 6 or len(polygon) % 2:
            expected = "polygons of an even number of at least 6 coordinates"
            return "polygon", "segmentation", expected, f"one of {len(polygon)}", None
        if max(-min(polygon), max(polygon[0::2]) - width, max(polygon[1::2]) - height) > POLYGON_TOLERANCE:
            expected = f"points within {POLYGON_TOLERANCE} px of the image's {width} x {height} px"
            found = f"coordinates from {min(polygon):g} to {max(polygon):g}"
            return "polygon", "segmentation", expected, found, "clip the polygon to its image"
    return None


def are_plain(text: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(n,) bool: which masks are sound for sure, by their bytes: polygons of 6, 8, ... numbers from 0 to 9999.99.

    To decode every polygon would take as long as reading the file. Those that are not plain may be sound too. `text`
    (M,) uint8 holds valid JSON values, each of which begins at one of `offsets` (n + 1,) int64.
    """
    starts = offsets[:-1]
    plain = np.diff(offsets) >= len("[[1,2,3,4,5,6]]")
    plain[plain] = (text[starts[plain]] == ord("[")) & (text[starts[plain] + 1] == ord("["))
    begin = 0
    while begin < len(plain):  # blocks of about 1 MB, which stay in the processor's cache
        end = max(int(np.searchsorted(starts, starts[begin] + (1 << 20))), begin + 1)
        rows = np.flatnonzero(plain[begin:end]) + begin
        if len(rows) == end - begin:
            block = text[offsets[begin] : offsets[end]].tobytes()
        else:
            block = b"".join([text[offsets[row] : offsets[row + 1]].tobytes() for row in rows.tolist()])
        plain[rows] = _is_plain(block)
        begin = end
    return np.asarray(plain)


def _is_plain(block: bytes) -> bool:
    """Whether JSON lists that stand one after the other are plain polygons, and nothing else."""
    characters = np.frombuffer(block, dtype=np.uint8)
    digit = (characters - np.uint8(ord("0"))) < 10  # what is below "0" wraps round
    pairs = digit[1:] & digit[:-1]
    if (pairs[:-3] & pairs[2:-1] & digit[4:]).any():
        return False  # five digits in a row: perhaps 10,000 px and more
    marks = np.frombuffer(block.translate(None, b"0123456789. \t\r\n"), dtype=np.uint8)
    opening, closing = marks == ord("["), marks == ord("]")
    depth = np.cumsum(opening.view(np.int8) - closing.view(np.int8), dtype=np.int32)
    if not (opening | closing | (marks == ord(","))).all() or depth.max(initial=0) != 2:
        return False
    # Within a polygon there are only commas, one fewer than numbers; and no number lies outside.
    lengths = np.flatnonzero(closing & (depth == 1)) - np.flatnonzero(opening & (depth == 2))
    in_number = digit | (characters == ord("."))
    numbers = np.count_nonzero(in_number[1:] & ~in_number[:-1])
    return bool(numbers == lengths.sum() and lengths.min() >= 6 and not (lengths & 1).any())
