"""A repaired copy of an annotation file: what has one right answer, and nothing else; all other bytes stay."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from rio.data.errors import AnnotationError
from rio.data.files import write_atomically
from rio.data.images import read_header
from rio.data.locate import plain_name, resolved
from rio.data.masks import rle_of
from rio.data.reading import BROKEN_JSON, NOUNS, Category, content_of, ids_of
from rio.data.repairs import Change, Ids, repair_fields, repair_mask, short, without_nan
from rio.data.rules import root_category

Record = dict[str, Any]
Line = tuple[str, Change]
_LISTS = dict(zip(("images", "categories", "annotations"), NOUNS, strict=True))


def write(path: str, target: str, root: str | None) -> list[Line]:
    """Write a repaired copy of a file to `target`, atomically; every change: the record, and what became what.

    File names and sizes are held against the image folder `root`, if there is one. An AnnotationError where the file
    cannot be read, or `target` is the file itself.
    """
    if os.path.realpath(path) == os.path.realpath(target):
        fix = "name another file: the input is never changed"
        raise AnnotationError(path, "file", "--write", "another file", "the input itself", fix, "same_file")
    data, nans = without_nan(content_of(path))
    content = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    raws = {key: msgspec.json.decode(content[key], type=list[msgspec.Raw]) for key in _LISTS if key in content}
    copy = _Copy(raws, root)
    if nans:
        copy.lines.append(("file", Change("nan", "-", f"NaN or infinity, {nans} times", "null")))
    records = {key: getattr(copy, key)(found) for key, found in raws.items()}

    def text(file: BinaryIO) -> None:
        for number, (key, raw) in enumerate(content.items()):
            file.write(b", " if number else b"{")
            file.write(msgspec.json.encode(key) + b": ")
            if key in records:
                _write_list(file, records[key])
            else:
                file.write(raw)
        file.write(b"}\n")

    write_atomically(Path(target), text)
    return copy.lines


def _write_list(file: BinaryIO, records: Iterable[bytes | msgspec.Raw]) -> None:
    file.write(b"[")
    for number, record in enumerate(records):
        file.write(b",\n" if number else b"\n")
        file.write(record)
    file.write(b"]")


class _Copy:
    """The repaired lists of a file, made in the order images, categories, annotations; and what was changed."""

    def __init__(self, raws: dict[str, list[msgspec.Raw]], root: str | None) -> None:
        self.raws, self.root, self.lines = raws, root, list[Line]()
        self.ids: Ids = ids_of([raws.get(key) for key in _LISTS])
        self.sizes: dict[Any, tuple[int, int]] = {}
        for raw in raws.get("images", ()):
            record = _decoded(raw)
            if isinstance(record, dict):
                repair_fields("image", record, self.ids)
                if all(type(record.get(key)) is int for key in ("id", "width", "height")):
                    self.sizes[record["id"]] = record["height"], record["width"]

    def _fields(self, noun: str, raw: msgspec.Raw) -> tuple[Any, list[Change]]:
        record = _decoded(raw)
        original = record.get("id") if isinstance(record, dict) else None
        changes = repair_fields(noun, record, self.ids)
        if isinstance(original, str) and type(record["id"]) is int and str(record["id"]) != original:
            record.setdefault("original_id", original)
        return record, changes

    def _took(self, noun: str, record: Any, changes: list[Change], raw: msgspec.Raw) -> bytes | msgspec.Raw:
        if not changes:
            return raw
        image = f" (image {record.get('image_id')})" if noun == "annotation" else ""
        self.lines += [(f"{noun} {record.get('id')}{image}", change) for change in changes]
        return msgspec.json.encode(record)

    def images(self, raws: list[msgspec.Raw]) -> list[bytes | msgspec.Raw]:
        found = [self._fields("image", raw) for raw in raws]
        names = [record.get("file_name") if isinstance(record, dict) else None for record, _ in found]
        plain = [plain_name(name, self.root) if isinstance(name, str) else "" for name in names]
        if self.root:
            there = [os.path.isfile(os.path.join(self.root, name)) if name else True for name in plain]
            for row, name in resolved(self.root, plain, np.flatnonzero(~np.array(there, dtype=bool))).items():
                plain[row] = name
        kept, seen = [], set[bytes]()
        for raw, (record, changes), name, right in zip(raws, found, names, plain, strict=True):
            if isinstance(name, str) and right != name:
                changes.append(Change("file_name", "file_name", name, right))
                record["file_name"] = right
            if self.root and isinstance(record, dict) and right:
                changes += self._size(record, os.path.join(self.root, right))
            if (text := bytes(raw)) in seen:
                self.lines.append(
                    (f"image {record.get('id')}", Change("duplicate_image_id", "-", "there twice", "once"))
                )
                continue
            seen.add(text)
            kept.append(self._took("image", record, changes, raw))
        return kept

    def _size(self, record: Record, path: str) -> list[Change]:
        """Width and height of a picture that is not turned, if they are swapped."""
        size = record.get("width"), record.get("height")
        if not os.path.isfile(path):
            return []
        found = read_header(path)
        if found.fault or found.turned or size != (found.height, found.width) or size[0] == size[1]:
            return []
        record["width"], record["height"] = found.width, found.height
        if type(record.get("id")) is int:
            self.sizes[record["id"]] = found.height, found.width
        text = "{} x {} px".format
        return [Change("picture_size", "width, height", text(*size), text(found.width, found.height))]

    def categories(self, raws: list[msgspec.Raw]) -> list[bytes | msgspec.Raw]:
        found = [self._fields("category", raw) for raw in raws]
        try:
            typed = [msgspec.convert(record, Category) for record, _ in found]
        except msgspec.ValidationError:
            typed = []
        found_ids = (one.category_id for one in map(_reference, self.raws.get("annotations", ())))
        used = {value for value in found_ids if isinstance(value, (int, float, str))}
        used |= {self.ids.number("category", text) for text in used if isinstance(text, str)}
        root = root_category(typed, used)
        if root is not None:
            self.lines.append((f"category {root.id}", Change("root_category", "-", root.name, "removed")))
            raws, found = raws[1:], found[1:]
        return [
            self._took("category", record, changes, raw) for raw, (record, changes) in zip(raws, found, strict=True)
        ]

    def annotations(self, raws: list[msgspec.Raw]) -> list[bytes | msgspec.Raw]:
        kept: list[bytes | msgspec.Raw] = []
        seen, first = set[int](), dict[int, int]()
        highest = max((int(one.id) for one in map(_reference, raws) if isinstance(one.id, (int, float))), default=0)
        for place, raw in enumerate(raws):
            record, changes = self._fields("annotation", raw)
            if not isinstance(record, dict):
                kept.append(raw)
                continue
            if not all(type(record.get(key)) is int for key in ("id", "image_id", "category_id")):
                kept.append(self._took("annotation", record, changes, raw))
                continue
            size, box = self.sizes.get(record["image_id"]), record.get("bbox")
            if record.get("segmentation") is not None:
                mask, more = repair_mask(record["segmentation"], size, box if _is_box(box) else None)
                if more:
                    record["segmentation"], changes = mask, changes + more
            if "area" in record and record["area"] in (0, None) and (area := _area(record, size)):
                changes.append(Change("area_zero", "area", short(record["area"]), short(area)))
                record["area"] = area
            key = hash((record["image_id"], record["category_id"], str(box)))
            if first.setdefault(key, place) != place and _equal(raws[first[key]], raw):
                name = f"annotation {record['id']} (image {record['image_id']})"
                self.lines.append((name, Change("box_twice", "-", "equal to another in all but its id", "removed")))
                continue
            if (number := record["id"]) in seen:
                highest += 1
                changes.append(Change("duplicate_annotation_id", "id", f"{number} again", str(highest)))
                record["id"] = highest
            seen.add(record["id"])
            kept.append(self._took("annotation", record, changes, raw))
        return kept


def _decoded(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except BROKEN_JSON:
        return None


class _Reference(msgspec.Struct):
    id: Any = None
    category_id: Any = None


_reference_decoder = msgspec.json.Decoder(_Reference)


def _reference(raw: msgspec.Raw) -> _Reference:
    try:
        return _reference_decoder.decode(raw)
    except BROKEN_JSON:
        return _Reference()


def _equal(raw: msgspec.Raw, other: msgspec.Raw) -> bool:
    """Whether two records are equal in all but their id."""
    mine, others = _decoded(raw), _decoded(other)
    return {**mine, "id": None} == {**others, "id": None}


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)


def _area(record: Record, size: tuple[int, int] | None) -> float:
    """The area of a record's mask, else of its box; 0 where it has neither."""
    mask, box = record.get("segmentation"), record.get("bbox")
    if mask and size is not None:
        from pycocotools import mask as coco_mask

        try:
            return float(coco_mask.area(rle_of(mask, *size)))
        except (ValueError, TypeError, KeyError, IndexError):
            return 0.0
    return float(box[2] * box[3]) if _is_box(box) else 0.0
