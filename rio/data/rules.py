"""The rules of categories and images, as tables over arrays, and the columns of what keeps to them.

`rio.data.object_rules` has those of annotations. Shapes: I images, A annotations, K categories, n records in the file.
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rio.data.annotations import Annotations, index_of, require_root
from rio.data.errors import EXAMPLES, Problems, listing
from rio.data.locate import hint, plain_name, resolved
from rio.data.reading import Category, Image

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
        broken = np.flatnonzero(rule.broken(table) & keep)
        rows = broken.tolist()
        for row in rows[: EXAMPLES if problems.lists else None]:
            values = {name: c[row].tolist() if isinstance(c, np.ndarray) else c[row] for name, c in table.items()}
            name, key, expected, found = (
                text.format(**values) for text in (record, rule.key, rule.expected, rule.found)
            )
            if expected:
                problems.reject(rule.kind, name, key, expected, found, rule.fix, more=len(rows) - 1)
            else:
                problems.leave_out(rule.kind, name, found)
        if problems.lists and len(rows) > EXAMPLES:
            problems.findings[rule.kind].count += len(rows) - EXAMPLES
        keep[broken] = False


def repeated(ids: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """(n,) bool: whose id a kept record before has."""
    if (ids[1:] > ids[:-1]).all():
        return np.zeros(len(ids), dtype=bool)
    rows = np.flatnonzero(keep)
    repeated = keep.copy()
    repeated[rows[np.unique(ids[rows], return_index=True)[1]]] = False
    return repeated


def root_category(categories: Sequence[Category], used: np.ndarray) -> Category | None:
    """What some exporters put first: the name of the data set, without objects and the supercategory of all others."""
    if len(categories) < 2:
        return None
    named = {str(category.supercategory) for category in categories[1:]}
    first = categories[0]
    return first if named == {first.name} and first.supercategory != first.name and first.id not in used else None


def category_columns(categories: list[Category], used: np.ndarray, problems: Problems) -> dict[str, Any]:
    """The columns of the categories, whose faults are always errors; `used` are the ids that annotations have."""
    if not categories:
        problems.refuse("no_category", "file", "categories", "at least one category", "an empty list")
    names: dict[str, int] = {}
    ids: set[int] = set()
    kept = []
    for category in categories:
        record, name = f"category {category.id}", category.name
        if category.id in ids:
            found, fix = "the same id twice", "give it a new id"
            problems.refuse("duplicate_category_id", record, "id", "an id of its own", found, fix)
            continue
        if name in names:
            found = f"{name!r}, the name of category {names[name]} too"
            fix = "rename it: tables and frequency groups go by name"
            problems.refuse("duplicate_category_name", record, "name", "a name of its own", found, fix)
        if category.frequency not in (None, "r", "c", "f"):
            problems.refuse("frequency", record, "frequency", "r, c or f", repr(category.frequency))
            category.frequency = None
        names[name] = category.id
        ids.add(category.id)
        kept.append(category)
    if root := root_category(kept, used):
        detail = f"{root.name!r} has no object and is the supercategory of all others: no class of its own"
        problems.leave_out("root_category", f"category {root.id}", detail)
        kept.remove(root)
    categories = sorted(kept, key=lambda category: category.id)
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


def _nearby(root: str | None, name: str | None) -> str:
    base = re.split(r"[/\\]", name or "")[-1]
    there = root is not None and base and "\0" not in base and os.path.isfile(os.path.join(root, base))
    return "; the folder has a picture of that name: write the bare name" if there else ""


_IMAGE_RULES = (
    Rule("missing_key", "{key}", lambda t: t["nameless"], "a value", "no such key"),
    Rule(
        "file_name", "{key}", lambda t: t["leads_out"], "a path below the image folder", "{name!r}{nearby}",
        "give a relative path without '..'",
    ),
    Rule(
        "missing_key", "neg_category_ids", lambda t: t["unlisted"], "a list, as the file's other images have",
        "no such key", "add the list (it may be empty)",
    ),
    Rule("duplicate_image_id", "id", lambda t: repeated(t["id"], t["keep"]), "an id of its own", "the same id twice"),
)  # fmt: skip
_MISSING_IMAGE = Rule(
    "missing_image", "file_name", lambda t: t["missing"], "an image file", "none at {path}{hint}",
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
    names = _plain_names(names, root, problems, ids)
    leads_out = [_leads_out(name) for name in names]
    table: Table = {
        "nearby": [_nearby(root, name) if out else "" for name, out in zip(names, leads_out, strict=True)],
        "id": ids, "name": names, "key": ["coco_url" if use_url else "file_name" for use_url in by_url],
        "nameless": np.array([name is None for name in names], dtype=bool),
        "leads_out": np.array(leads_out, dtype=bool),
        "unlisted": np.array([federated and image.neg_category_ids is None for image in images], dtype=bool),
        "keep": keep,
    }  # fmt: skip
    apply_rules(_IMAGE_RULES, table, "image {id}", problems, keep)
    if check_images:
        sound = [(name or "") if stays else "" for name, stays in zip(names, keep.tolist(), strict=True)]
        files = _files(require_root(problems.path, root), sound)
        for row, name in resolved(root or "", sound, np.flatnonzero(files["missing"] & keep)).items():
            problems.repair("file_name", f"image {ids[row]}", table["key"][row], names[row] or "", name)
            names[row], files["missing"][row] = name, False
        table |= files | {"hint": hint(root or "", files["path"], files["missing"] & keep)}
        # Where faults are listed, what else is wrong with these images is too.
        apply_rules([_MISSING_IMAGE], table, "image {id}", problems, keep.copy() if problems.lists else keep)
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


def _plain_names(names: list[str | None], root: str | None, problems: Problems, ids: np.ndarray) -> list[str | None]:
    """File names in their plain spelling, relative to the folder; repairs are counted."""
    plain = [name if name is None or _HARMLESS_NAME.fullmatch(name) else plain_name(name, root) for name in names]
    for image_id, name, taken in zip(ids.tolist(), names, plain, strict=True):
        if name != taken:
            problems.repair("file_name", f"image {image_id}", "file_name", str(name), str(taken))
    return plain


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
    """An AnnotationError that names the first missing image file and how many there are, before a training of days
    finds out.
    """
    files = _files(require_root(annotations.path, annotations.image_root), annotations.file_names)
    files |= {"hint": hint(annotations.image_root or "", files["path"], files["missing"])}
    problems, keep = Problems(annotations.path, "raise"), np.ones(annotations.num_images, dtype=bool)
    apply_rules([_MISSING_IMAGE], {"id": annotations.image_ids, **files}, "image {id}", problems, keep)
