"""The rules that an annotation file must keep to, as tables over arrays, and the columns of what keeps to them.

Shapes: I images, A annotations, K categories, n records in the file.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rio.data.annotations import Annotations, index_of, require_root
from rio.data.errors import Problems, Skipped, listing
from rio.data.masks import are_plain, decode, fault_of
from rio.data.reading import ANNOTATION, BROKEN_JSON, Category, Image, Rows, reject_type

BOX_TOLERANCE = 1.0
"""How far (px) a box may stick out of its image: annotation tools round, and detectron2 clips anyway."""

Table = dict[str, Any]
"""Columns of n values, by the names that the texts of a `Rule` use."""


class Rule(NamedTuple):
    """One rule; the texts may name columns. Without `expected`, a record that breaks it is skipped in either case."""

    kind: str
    key: str
    broken: Callable[[Table], Any]  # -> (n,) bool
    expected: str
    found: str
    fix: str | None = None


def apply_rules(rules: Sequence[Rule], table: Table, record: str, problems: Problems, keep: np.ndarray) -> None:
    """Reject the kept records that break a rule, for the first rule they break; `keep` (n,) loses them."""
    for rule in rules:
        rows = np.flatnonzero(rule.broken(table) & keep).tolist()
        for row in rows:
            values = {name: c[row].tolist() if isinstance(c, np.ndarray) else c[row] for name, c in table.items()}
            name, key, expected, found = (
                text.format(**values) for text in (record, rule.key, rule.expected, rule.found)
            )
            if expected:
                problems.reject(rule.kind, name, key, expected, found, rule.fix, more=len(rows) - 1)
            else:
                problems.skipped.append(Skipped(rule.kind, name, found))
        keep[rows] = False


def _repeated(ids: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """(n,) bool: whose id a kept record before has."""
    if (ids[1:] > ids[:-1]).all():
        return np.zeros(len(ids), dtype=bool)
    rows = np.flatnonzero(keep)
    repeated = keep.copy()
    repeated[rows[np.unique(ids[rows], return_index=True)[1]]] = False
    return repeated


def category_columns(categories: list[Category], problems: Problems) -> dict[str, Any]:
    """The columns of the categories, whose faults are always errors."""
    if not categories:
        problems.fatal("no_category", "file", "categories", "at least one category", "an empty list")
    names: dict[str, int] = {}
    ids: set[int] = set()
    for category in categories:
        record, name = f"category {category.id}", category.name
        if category.id in ids:
            found, fix = "the same id twice", "give it a new id"
            problems.fatal("duplicate_category_id", record, "id", "an id of its own", found, fix)
        if name in names:
            found = f"{name!r}, the name of category {names[name]} too"
            fix = "rename it: tables and frequency groups go by name"
            problems.fatal("duplicate_category_name", record, "name", "a name of its own", found, fix)
        if category.frequency not in (None, "r", "c", "f"):
            problems.fatal("frequency", record, "frequency", "r, c or f", repr(category.frequency))
        names[name] = category.id
        ids.add(category.id)
    categories = sorted(categories, key=lambda category: category.id)
    declared = np.array([category.frequency or "" for category in categories], dtype="<U1")
    return {
        "category_ids": np.array([category.id for category in categories], dtype=np.int64),
        "category_names": [category.name for category in categories],
        "declared_frequency": declared if (declared != "").any() else None,
    }


# A file name is data from outside: it must not lead out of the image folder, on any system.
_HARMLESS_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/){0,9}[A-Za-z0-9_][A-Za-z0-9_.-]*")


def _leads_out(name: str | None) -> bool:
    if name is None or _HARMLESS_NAME.fullmatch(name):
        return False
    parts = re.split(r"[/\\]", name)
    return not (parts[0] and parts[-1]) or ".." in parts or bool(re.match("[A-Za-z]:", name)) or "\0" in name


_IMAGE_RULES = (
    Rule("missing_key", "{key}", lambda t: t["nameless"], "a value", "no such key"),
    Rule(
        "file_name", "{key}", lambda t: t["leads_out"], "a path below the image folder", "{name!r}",
        "give a relative path without '..'",
    ),
    Rule(
        "missing_key", "neg_category_ids", lambda t: t["unlisted"], "a list, as the file's other images have",
        "no such key", "add the list (it may be empty)",
    ),
    Rule("duplicate_image_id", "id", lambda t: _repeated(t["id"], t["keep"]), "an id of its own", "the same id twice"),
)  # fmt: skip
_MISSING_IMAGE = Rule(
    "missing_image", "file_name", lambda t: t["missing"], "an image file", "none at {path}",
    "check the image folder (the file name of LVIS images comes from coco_url: FOLDER/val2017/ID.jpg)",
)  # fmt: skip


def image_columns(
    images: list[Image], category_ids: np.ndarray, problems: Problems, root: str | None, check_images: bool
) -> tuple[dict[str, Any], np.ndarray]:
    """The columns of the images, and the ids of those that were skipped."""
    federated = any(image.neg_category_ids is not None for image in images)
    by_url = [image.coco_url is not None and (federated or image.file_name is None) for image in images]
    # LVIS has no file names; as in detectron2, they are the last two parts of the URL.
    names = [
        "/".join((image.coco_url or "").rsplit("/", 2)[-2:]) if use_url else image.file_name
        for image, use_url in zip(images, by_url, strict=True)
    ]
    ids, keep = np.array([image.id for image in images], dtype=np.int64), np.ones(len(images), dtype=bool)
    table: Table = {
        "id": ids, "name": names, "key": ["coco_url" if use_url else "file_name" for use_url in by_url],
        "nameless": np.array([name is None for name in names], dtype=bool),
        "leads_out": np.array([_leads_out(name) for name in names], dtype=bool),
        "unlisted": np.array([federated and image.neg_category_ids is None for image in images], dtype=bool),
        "keep": keep,
    }  # fmt: skip
    apply_rules(_IMAGE_RULES, table, "image {id}", problems, keep)
    if check_images:
        sound = [(name or "") if stays else "" for name, stays in zip(names, keep.tolist(), strict=True)]
        table |= _files(require_root(problems.path, root), sound)
        apply_rules([_MISSING_IMAGE], table, "image {id}", problems, keep)
    order = np.flatnonzero(keep)
    order = order[np.argsort(ids[order], kind="stable")]
    kept = [images[row] for row in order.tolist()]
    columns: dict[str, Any] = {
        "image_ids": ids[order],
        "image_width": np.array([image.width for image in kept], dtype=np.int32),
        "image_height": np.array([image.height for image in kept], dtype=np.int32),
        "file_names": [names[row] for row in order.tolist()],
        "federated": federated,
    }
    known = set(category_ids.tolist())
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        lists = [getattr(image, key) or [] if federated else [] for image in kept]
        flat, offsets = _flatten(lists)
        if (index_of(category_ids, flat) < 0).any():  # with "skip" the unknown ids leave the list, the image stays
            for image, of_image in zip(kept, lists, strict=True):
                if unknown := [i for i in of_image if i not in known]:
                    expected = "ids of the file's categories"
                    problems.reject("unknown_category", f"image {image.id}", key, expected, listing(unknown))
            flat, offsets = _flatten([[i for i in of_image if i in known] for of_image in lists])
        columns |= {key.replace("category_", ""): flat, key.replace("category_ids", "offsets"): offsets}
    return columns, np.setdiff1d(ids, columns["image_ids"])


def _flatten(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return np.fromiter(itertools.chain.from_iterable(lists), np.int64, int(offsets[-1])), offsets


def _files(root: str, names: Sequence[str]) -> Table:
    """Where the images' files are, and which are missing. Folders are listed: to ask for each file takes minutes."""
    paths = [os.path.join(root, name) for name in names]
    folders = Counter(map(os.path.dirname, paths))
    present = {folder: _files_in(folder) if count > 100 else set() for folder, count in folders.items()}
    there = [os.path.basename(p) in present[os.path.dirname(p)] or os.path.isfile(p) for p in paths]
    return {"path": paths, "missing": ~np.array(there, dtype=bool)}


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_symlink() and entry.is_file()}
    except OSError:
        return set()  # every file is then asked for by itself


def missing_images(annotations: Annotations) -> np.ndarray:
    """Which images have no file below `image_root`: ascending int64 image indices."""
    root = require_root(annotations.path, annotations.image_root)
    return np.flatnonzero(_files(root, annotations.file_names)["missing"])


def require_images(annotations: Annotations) -> None:
    """Make sure that every image file is there, before a training that lasts days finds out.

    Raises:
        AnnotationError: Names the first missing file and how many there are.
    """
    files = _files(require_root(annotations.path, annotations.image_root), annotations.file_names)
    problems, keep = Problems(annotations.path, "raise"), np.ones(annotations.num_images, dtype=bool)
    apply_rules([_MISSING_IMAGE], {"id": annotations.image_ids, **files}, "image {id}", problems, keep)


def _sticks_out(t: Table) -> Any:
    before = (t["bbox"][:, :2] < -BOX_TOLERANCE).any(1)
    return before | (t["right"] > t["width"] + BOX_TOLERANCE) | (t["bottom"] > t["height"] + BOX_TOLERANCE)


def _is_empty(t: Table) -> Any:
    x, y = t["bbox"].T[:2]
    across = np.minimum(t["right"], t["width"]) <= np.maximum(x, 0)
    return across | (np.minimum(t["bottom"], t["height"]) <= np.maximum(y, 0))


_REFERENCE_RULES = (
    Rule("duplicate_annotation_id", "id", lambda t: _repeated(t["id"], t["keep"]), "an id of its own", "{id} twice"),
    Rule("image_skipped", "image_id", lambda t: t["lost"], "", "image {image_id} was skipped"),
    Rule("unknown_image", "image_id", lambda t: t["image_index"] < 0, "the id of an image", "{image_id}"),
    Rule("unknown_category", "category_id", lambda t: t["class_id"] < 0, "the id of a category", "{category_id}"),
)
_BOX_RULES = (
    Rule(
        "negative_box", "bbox", lambda t: (t["bbox"][:, 2:] < 0).any(1),
        "[x, y, width, height] with width, height >= 0", "{bbox}",
    ),
    Rule(
        "box_outside", "bbox", _sticks_out,
        f"[x, y, width, height] within {{width}} x {{height}} px (tolerance {BOX_TOLERANCE} px)", "{bbox}",
        "clip the box to its image; if the numbers are x1, y1, x2, y2, convert them",
    ),
    Rule("empty_box", "bbox", _is_empty, "", "bbox: {bbox} covers nothing of its image"),
    Rule("area", "area", lambda t: t["area"] < 0, "an area >= 0", "{area}"),
)  # fmt: skip
_NO_MASK = Rule(
    "no_segmentation", "segmentation", lambda t: (t["mask_length"] == 0) & ~t["iscrowd"],
    "a mask, as the file's other annotations have", "none",
)  # fmt: skip


def annotation_columns(
    rows: Rows, images: dict[str, Any], skipped_images: np.ndarray, category_ids: np.ndarray, problems: Problems
) -> dict[str, Any]:
    """The columns of the annotations, sorted by image."""
    image_index = index_of(images["image_ids"], rows.image_ids)
    # A record of an unknown image, which has the index -1, gets the last size here; it is rejected all the same.
    width, height = (np.append(images[key], np.int32(0))[image_index] for key in ("image_width", "image_height"))
    keep = np.ones(len(rows.ids), dtype=bool)
    with np.errstate(over="ignore"):  # of numbers near the largest float, which lie outside
        x, y, w, h = rows.boxes.T
        right, bottom = x + w, y + h
        areas = np.where(np.isnan(rows.areas), w * h, rows.areas)
    table: Table = {
        "id": rows.ids, "image_id": rows.image_ids, "category_id": rows.category_ids, "bbox": rows.boxes,
        "right": right, "bottom": bottom, "area": areas, "iscrowd": rows.iscrowd, "width": width, "height": height,
        "image_index": image_index, "class_id": index_of(category_ids, rows.category_ids),
        "lost": index_of(skipped_images, rows.image_ids) >= 0, "keep": keep,
        "mask_length": np.diff(rows.mask_offsets),
    }  # fmt: skip
    apply_rules(_REFERENCE_RULES, table, ANNOTATION, problems, keep)
    if len(keep) >= 10 and keep.all() and (right <= 1).all() and (bottom <= 1).all() and (width > 2).all():
        found = f"{rows.boxes[0].tolist()}, and no box of the file reaches beyond the first pixel"
        record, fix = rows.name_of(0), "multiply boxes and polygons by the image's width and height"
        problems.fatal("normalised_boxes", record, "bbox", "[x, y, width, height] in px", found, fix)
    apply_rules(_BOX_RULES, table, ANNOTATION, problems, keep)
    _check_masks(rows, table, problems, keep)

    class_ids, lengths = table["class_id"], table["mask_length"]
    del table, right, bottom, width, height  # 40 MB for LVIS
    order = np.flatnonzero(keep)
    order = order[np.argsort(image_index[order], kind="stable")]
    return {
        "annotation_ids": rows.ids[order],
        "annotation_image": image_index[order].astype(np.int32),
        "annotation_class": class_ids[order].astype(np.int32),
        "boxes": rows.boxes[order],
        "areas": areas[order],
        "iscrowd": rows.iscrowd[order],
        "image_offsets": np.searchsorted(image_index[order], np.arange(len(images["image_ids"]) + 1)),
        "mask_json": rows.mask_json,
        "mask_start": rows.mask_offsets[order],
        "mask_length": lengths[order].astype(np.int32),
    }


def _check_masks(rows: Rows, table: Table, problems: Problems, keep: np.ndarray) -> None:
    """Reject broken masks; the length of an empty one ("null", "[]") becomes 0."""
    length = table["mask_length"]
    for row in np.flatnonzero(~are_plain(rows.mask_json, rows.mask_offsets) & keep & (length > 0)).tolist():
        try:
            mask = decode(rows.mask_json[rows.mask_offsets[row] : rows.mask_offsets[row + 1]].data)
            fault = fault_of(mask, int(table["height"][row]), int(table["width"][row])) if mask else None
        except BROKEN_JSON as error:
            reject_type(error, rows.name_of(row), problems.reject, within="segmentation")
            keep[row] = False
            continue
        if fault:
            kind, key, expected, found, fix = fault
            problems.reject(kind, rows.name_of(row), key, expected, found, fix)
            keep[row] = False
        elif not mask:
            length[row] = 0
    if length[keep].any():
        apply_rules([_NO_MASK], table, ANNOTATION, problems, keep)
