"""What a record says in another spelling, where it can mean one thing only: a float for an id, a flat polygon.

`rio.data.load` takes such records as they were meant and counts them; `rio check --write` writes them so.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from rio.data.masks import RLE, fault_of, rle_of

NONE: tuple[Any, ...] = (None, "", [], [[]], {})
"""How tools write "there is none": of a box, a mask, an area, a URL."""

_WHOLE = {
    "image": ("id", "width", "height"),
    "category": ("id",),
    "annotation": ("id", "image_id", "category_id", "iscrowd"),
}
_ID_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
_MATCHES = 0.9  # IoU of a mask's box and the record's from which they are one


class Change(NamedTuple):
    """One repair: its kind, the key, what was found and what it is taken for, as text."""

    kind: str
    key: str
    found: str
    taken: str


_NOT_FINITE = re.compile(rb'"(?:[^"\\]|\\.)*"|(-?(?:NaN|Infinity|nan|inf)\b)')

_MAYBE = re.compile(rb"NaN|Infinity|nan|inf")


def without_nan(data: bytes | memoryview) -> tuple[bytes | memoryview, int]:
    """A JSON text with null in place of NaN and infinity, which Python writes and JSON does not have; how many."""
    # Strings are stepped over: "NaN" may be a name.
    spans = [m.span() for m in _NOT_FINITE.finditer(data) if m[1]] if _MAYBE.search(data) else []
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(data)]
    pieces = [data[a:b] for a, b in zip(ends, starts, strict=True)]
    return b"null".join(pieces) if spans else data, len(spans)


def short(value: Any) -> str:
    """A value as text, of one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Ids:
    """The numbers that stand for ids which are text: `of[noun]` is number -> text, for "image" and "category".

    The text of a whole number is that number. Other texts are numbered in the order of the alphabet, from 1 on or
    above the file's numbers, so that two files with the same ids number them alike.
    """

    def __init__(self) -> None:
        self.of: dict[str, dict[int, str]] = {"image": {}, "category": {}}
        self._numbers: dict[str, dict[str, int]] = {}

    def learn(self, noun: str, ids: Iterable[Any]) -> None:
        """Takes all ids of the file's images, categories or annotations."""
        ids = list(ids)
        texts = sorted({value for value in ids if isinstance(value, str)})
        above = max((int(v) for v in ids if isinstance(v, (int, float)) and -1 < v < 2**62), default=0)
        above = max([above, *(int(text) for text in texts if _is_number(text))]) + 1
        names = [text for text in texts if not _is_number(text)]
        self._numbers[noun] = {text: above + place for place, text in enumerate(names)}
        self._numbers[noun] |= {text: int(text) for text in texts if _is_number(text)}
        if noun in self.of:
            self.of[noun] = {number: text for text, number in self._numbers[noun].items()}

    def number(self, noun: str, text: str) -> int | None:
        """The number of an id; None for one that no record has."""
        return self._numbers.get(noun, {}).get(text, int(text) if _is_number(text) else None)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19 and str(int(text)) == text


def repair_fields(noun: str, record: Any, ids: Ids) -> list[Change]:
    """Repair the keys of a record ("image", "category" or "annotation") in place, but its mask; what was changed."""
    changes: list[Change] = []
    if not isinstance(record, dict):
        return changes

    def change(kind: str, key: str, taken: Any) -> None:
        changes.append(Change(kind, key, short(record.get(key)), short(taken)))
        record[key] = taken

    for key in _WHOLE[noun]:
        value = record.get(key)
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            change("integral_float", key, int(value))
        elif isinstance(value, str) and (number := ids.number(_noun_of(noun, key), value)) is not None:
            change("text_id" if "id" in key.split("_") else "text_number", key, number)
    for key in _ID_LISTS if noun == "image" else ():
        values = record.get(key)
        if isinstance(values, list) and not all(type(value) is int for value in values):
            numbers = [_whole(v, lambda text: ids.number("category", text)) for v in values]
            if all(type(value) is int for value in numbers):
                change("text_id" if any(isinstance(v, str) for v in values) else "integral_float", key, numbers)
    if noun == "image" and record.get("coco_url") == "":
        change("empty_value", "coco_url", None)
    if noun == "annotation":
        for key in ("area", "iscrowd"):
            if record.get(key) in ("", []):
                change("empty_value", key, None)
        if record.get("bbox") in NONE and (box := box_of(record.get("segmentation"))) is not None:
            change("no_box", "bbox", box)
    return changes


def _noun_of(noun: str, key: str) -> str:
    return {"image_id": "image", "category_id": "category", "id": noun}.get(key, "")


def _whole(value: Any, number: Any = lambda text: None) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    found = number(value) if isinstance(value, str) else None
    return value if found is None else found


def repair_mask(value: Any, size: tuple[int, int] | None, box: Sequence[float] | None) -> tuple[Any, list[Change]]:
    """A mask in its one right spelling (polygons, an RLE as a dict, or None where there is none), and what was changed;
    what has no right spelling comes back as it is.

    `size` is the image's [height, width], if known; `box` the record's [x, y, width, height], which tells what a mask
    of swapped size means.
    """
    if value in NONE:
        return None, [] if value in (None, []) else [Change("empty_value", "segmentation", short(value), "no mask")]
    if isinstance(value, dict):
        return _repair_rle(value, size, box)
    changes: list[Change] = []
    polygons = value
    if not isinstance(value, list):
        return value, changes
    if _are_numbers(value):
        polygons = [value]
    elif all(isinstance(p, list) and len(p) == 2 and _are_numbers(p) for p in value):
        polygons = [[c for point in value for c in point]]
    else:
        polygons = [_flat(polygon) for polygon in value]
    if polygons != value:
        changes.append(Change("polygon_form", "segmentation", short(value), short(polygons)))
    if size is not None:
        good = [p for p in polygons if _are_numbers(p) and fault_of([p], *size) is None]
        if good and len(good) < len(polygons):
            bad = next(p for p in polygons if p not in good)
            changes.append(Change("polygon_part", "segmentation", short(bad), f"the {len(good)} good ones"))
            polygons = good
    return polygons, changes


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)


def _flat(polygon: Any) -> Any:
    """A list of [x, y] as [x, y, x, y, ...]."""
    points = isinstance(polygon, list) and all(_are_numbers(point) and len(point) == 2 for point in polygon)
    return [c for point in polygon for c in point] if points else polygon


def _repair_rle(
    rle: dict[str, Any], size: tuple[int, int] | None, box: Sequence[float] | None
) -> tuple[Any, list[Change]]:
    changes: list[Change] = []
    found = dict(rle)
    for key in ("size", "counts"):
        values = rle.get(key)
        if isinstance(values, list) and any(isinstance(v, float) and v.is_integer() for v in values):
            found[key] = [_whole(v) for v in values]
            changes.append(Change("integral_float", f"segmentation.{key}", short(values), short(found[key])))
    if size is not None and found.get("size") == [size[1], size[0]] != list(size) and box is not None:
        readings = [r for r in _readings(found, size) if overlap(box_of(r), box) >= _MATCHES]
        if len(readings) == 1:
            taken = f"a mask of {list(size)}"
            changes.append(Change("mask_transposed", "segmentation.size", str(found["size"]), taken))
            found = readings[0]
    return found, changes


def _readings(rle: dict[str, Any], size: tuple[int, int]) -> list[dict[str, Any]]:
    """A mask of swapped size: of this size with the two numbers swapped, or one that is turned itself."""
    from pycocotools import mask as coco_mask

    try:
        typed = msgspec.convert({**rle, "size": list(size)}, RLE)
        if fault_of(typed, *size) is not None:
            return []
        turned = coco_mask.encode(np.asfortranarray(coco_mask.decode(rle_of(rle, size[1], size[0])).T))
    except (msgspec.ValidationError, ValueError, TypeError):
        return []
    return [{**rle, "size": list(size)}, {"size": list(size), "counts": turned["counts"].decode("ascii")}]


def box_of(mask: Any) -> list[float] | None:
    """[x, y, width, height] around a mask; None where there is none, or none that can be read."""
    mask, _ = repair_mask(mask, None, None)
    if isinstance(mask, dict):
        from pycocotools import mask as coco_mask

        try:
            rle = msgspec.convert(mask, RLE)
            if fault_of(rle, *rle.size) is not None:
                return None
            box = coco_mask.toBbox(rle_of(mask, *rle.size)).tolist()
        except (msgspec.ValidationError, ValueError, TypeError, KeyError):
            return None
        return box if box[2] and box[3] else None
    if not mask or not isinstance(mask, list):
        return None
    polygons = [p for p in mask if _are_numbers(p) and len(p) >= 6 and not len(p) % 2]
    if not polygons:
        return None
    xs, ys = ([c for p in polygons for c in p[axis::2]] for axis in (0, 1))
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def overlap(a: Sequence[float] | None, b: Sequence[float]) -> float:
    """IoU of two boxes."""
    if a is None:
        return 0.0
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / max(a[2] * a[3] + b[2] * b[3] - both, 1e-9)
