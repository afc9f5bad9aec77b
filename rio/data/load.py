"""LVIS and COCO annotation files as validated columns (NumPy arrays).

Shapes: I images, A annotations, K categories, Q polygons, P polygon coordinates.

A file is read once and checked once, here; nothing behind this module checks again. The rules, by the `kind`
that an error or a skip carries:

Always an error:
    ``json`` (truncated, NaN or infinite numbers, not UTF-8), ``type`` and ``missing_key`` of the file or of a
    category, ``duplicate_category_id``, ``duplicate_category_name``, ``frequency`` (other than r, c, f),
    ``no_category``, ``normalised_boxes``.
An error, or a skip with ``on_error="skip"``:
    ``type`` and ``missing_key`` of an image or annotation, ``duplicate_image_id`` and
    ``duplicate_annotation_id`` (the first one stays), ``unknown_image``, ``unknown_category``, ``file_name``
    (absolute, ``..``, empty; a link below the image folder is followed, as whoever set up the folder made it),
    ``missing_image``, ``negative_box``, ``box_outside`` (sticks out of its image
    by more than `BOX_TOLERANCE` = 1 px), ``area`` (negative), ``polygon`` (odd length, fewer than 3 points,
    a point further than `POLYGON_TOLERANCE` from the image),
    ``no_segmentation`` (where other annotations of the file have one), ``rle``, ``rle_size``. Of an unknown
    id in ``neg_category_ids`` or ``not_exhaustive_category_ids`` only the id is left out, not the image.
A skip in either case:
    ``empty_box``: no width or no height inside the image, as tools leave them behind. Such a box can neither
    be trained on nor found.
Fine:
    ids with gaps, images or files without annotations, any number of categories, unicode names, boxes that
    stick out by up to 1 px (kept as they are), ``area`` 0, box-only files.

A skipped image takes its annotations with it (kind ``image_skipped``). Everything skipped is listed in
`Annotations.skipped` and counted by `Annotations.skipped_counts`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import operator
import os
import re
import time
import uuid
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NoReturn

import msgspec
import numpy as np

from rio.data.annotations import Annotations, _listing, _mapped, frequency_groups, index_of
from rio.data.errors import AnnotationError, AnnotationFileNotFoundError, Skipped
from rio.data.masks import rle_counts
from rio.data.reading import without_collection
from rio.data.rules import (
    _MISSING_IMAGE_REMEDY,
    BOX_TOLERANCE,
    POLYGON_TOLERANCE,
    _Problems,
    _reject_missing,
    missing_images,
)

logger = logging.getLogger(__name__)


# Reading a file
_Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


_Pixels = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class _Image(msgspec.Struct, gc=False):
    id: _Id
    width: _Pixels
    height: _Pixels
    file_name: str | None = None
    coco_url: str | None = None
    neg_category_ids: list[_Id] | None = None
    not_exhaustive_category_ids: list[_Id] | None = None


class _Box(msgspec.Struct, gc=False):
    id: _Id
    image_id: _Id
    category_id: _Id
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: Literal[0, 1] | bool | None = 0


class _Object(_Box, gc=False):
    # Kept as bytes of the file: as Python floats the polygons of LVIS would take 4 GB.
    segmentation: msgspec.Raw = msgspec.Raw()


class _Category(msgspec.Struct, gc=False):
    id: _Id
    name: Annotated[str, msgspec.Meta(min_length=1)]
    frequency: str | None = None


class _RLE(msgspec.Struct, gc=False):
    size: tuple[_Pixels, _Pixels]
    counts: str | list[Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]]


_Segmentation = list[list[float]] | _RLE | None


class _BoxFile(msgspec.Struct, gc=False):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Box] | None = None


class _ObjectFile(msgspec.Struct, gc=False):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Object] | None = None


class _RawFile(msgspec.Struct, gc=False):
    images: list[msgspec.Raw]
    categories: list[msgspec.Raw]
    annotations: list[msgspec.Raw] | None = None


_KIND_BY_MISSING = "missing_key"


def load_annotations(
    path: str | os.PathLike[str],
    *,
    image_root: str | os.PathLike[str] | None = None,
    check_images: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    segmentations: bool = True,
    require_annotations: bool = True,
    cache: bool | None = None,
) -> Annotations:
    """Read an LVIS (v0.5, v1) or COCO annotation file.

    The module's docstring lists what is checked, and what is an error, a skip, or fine. A file is taken as
    LVIS (`Annotations.federated`) if its images have ``neg_category_ids``. An image's file name is the last
    two parts of ``coco_url`` (``train2017/000000155379.jpg``) for LVIS, as detectron2 does, and where there
    is no ``file_name``; it is ``file_name`` otherwise.

    A large file is read once: its columns are then kept in `cache_folder`, under what the file holds, not
    where it lies, and mapped from there, read-only, by every process. A file that changed is read again; an
    entry that is damaged is made anew.

    Args:
        path: The JSON file.
        image_root: The folder that file names are relative to.
        check_images: Also make sure that each image file is there.
        on_error: "raise", or "skip": leave broken records out, listed in `Annotations.skipped`.
        segmentations: Read masks; without them loading is faster and takes less memory (and leaves them
            unchecked).
        require_annotations: False lets a file without the key "annotations" (LVIS's test sets) count as one
            with no annotation. Such files are not cached.
        cache: True or False to use the cache or not; None uses it for files of `CACHE_MIN_BYTES` and more.

    Returns:
        The file as columns.

    Raises:
        AnnotationFileNotFoundError: There is no such file.
        AnnotationError: The file breaks a rule; the message names the record and the remedy.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: expected 'raise' or 'skip', found {on_error!r}")
    path, root = os.fspath(path), None if image_root is None else os.fspath(image_root)
    folder = cache_folder() if cache is not False and require_annotations else None
    if folder is not None and (cache or _is_large(path)):
        return _load_cached(path, root, check_images, on_error, segmentations, folder)
    return _load(path, root, check_images, on_error, segmentations, require_annotations)


def _is_large(path: str) -> bool:
    try:
        return os.stat(path).st_size >= CACHE_MIN_BYTES
    except OSError:
        return False  # reading it says what is wrong


@without_collection()
def _load(
    path: str,
    root: str | None,
    check_images: bool,
    on_error: str,
    segmentations: bool,
    require_annotations: bool,
    digest: _Digest | None = None,
) -> Annotations:
    """The columns of the JSON file.

    With a `digest`, which is fed all of the file's bytes, `polygon_xy` may still be `_Coordinates`.
    """
    problems = _Problems(path, on_error)
    plain = _read_plain(path, segmentations, digest)
    if plain is not None:
        images, rows, categories = plain
    else:
        images, objects, categories = _decode(_read(path, digest), problems, segmentations)
        if objects is None:
            if require_annotations:
                problems.fatal(_KIND_BY_MISSING, "file", "annotations", "a list", "no such key")
            objects = []
        rows = _Rows.of(objects, _Masks(objects) if segmentations else _NoMasks())
        del objects

    category_columns = _category_columns(categories, problems)
    category_ids = category_columns["category_ids"]
    image_columns, gone = _image_columns(images, category_ids, problems, root, check_images)
    del images
    columns = _annotation_columns(rows, image_columns, gone, category_ids, problems)

    if digest is None and isinstance(columns["polygon_xy"], _Coordinates):
        columns["polygon_xy"] = columns["polygon_xy"].array()
    counted = ~columns["iscrowd"]
    classes = columns["annotation_class"][counted].astype(np.int64)
    num_images, num_classes = len(image_columns["image_ids"]), len(category_ids)
    pairs = np.unique(classes * num_images + columns["annotation_image"][counted])
    image_count = np.bincount(pairs // max(num_images, 1), minlength=num_classes)
    declared = category_columns["declared_frequency"]
    derived = frequency_groups(image_count)
    return Annotations(
        path=path,
        image_root=root,
        image_count=image_count.astype(np.int64),
        instance_count=np.bincount(classes, minlength=num_classes).astype(np.int64),
        frequency=derived if declared is None else np.where(declared == "", derived, declared).astype("<U1"),
        skipped=problems.skipped,
        **category_columns,
        **image_columns,
        **columns,
    )


def _read(path: str, digest: _Digest | None) -> memoryview:
    try:
        data = memoryview(Path(path).read_bytes())
    except FileNotFoundError:
        folder = os.path.dirname(os.path.abspath(path))
        state = "its folder has no such file" if os.path.isdir(folder) else f"there is no folder {folder}"
        raise AnnotationFileNotFoundError(
            f"{path}: expected an LVIS or COCO annotation file, found none: {state}. Remedy: give the path "
            "of the JSON file, absolute or relative to the working directory."
        ) from None
    except IsADirectoryError:
        raise AnnotationError(
            path, "file", "-", "a JSON file", "a folder", "give the path of the JSON file in it", kind="json"
        ) from None
    if digest is not None:
        digest.restart()
        digest.update(data)
    return data[3:] if bytes(data[:3]) == _BYTE_ORDER_MARK else data


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # as Windows tools write


def _decode(
    data: memoryview, problems: _Problems, segmentations: bool
) -> tuple[list[_Image], Sequence[_Box] | None, list[_Category]]:
    """The file's three lists; a valid file takes one pass, any other a second one record by record."""
    try:
        file = msgspec.json.decode(data, type=_ObjectFile if segmentations else _BoxFile)
        return file.images, file.annotations, file.categories
    except msgspec.ValidationError:
        pass  # a record has a wrong type or misses a key: find out which below
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _raise_malformed(data, error, problems)
    try:
        raw = msgspec.json.decode(data, type=_RawFile)
    except msgspec.ValidationError as error:
        _invalid(str(error), "file", problems.fatal)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _raise_malformed(data, error, problems)
    categories = _decode_each(raw.categories, _Category, "category", problems.fatal)
    images = _decode_each(raw.images, _Image, "image", problems.reject)
    if raw.annotations is None:
        return images, None, categories
    objects = _decode_each(raw.annotations, _Object if segmentations else _Box, "annotation", problems.reject)
    return images, objects, categories


def _decode_each(raws: list[msgspec.Raw], kind: type, noun: str, reject: Callable[..., None]) -> list[Any]:
    decoder = msgspec.json.Decoder(kind)
    records = []
    for position, raw in enumerate(raws):
        try:
            records.append(decoder.decode(raw))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            record = f"{noun} at position {position}"
            try:
                record += f" (id {msgspec.json.decode(raw)['id']!r})"
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
                pass  # it has no id to name
            _invalid(str(error), record, reject)
    return records


def _invalid(message: str, record: str, reject: Callable[..., None]) -> None:
    """msgspec's words as ours: "Expected `int`, got `str` - at `$.image_id`"."""
    text, _, where = message.partition(" - at `")
    key = where.rstrip("`").removeprefix("$").lstrip(".") or "-"
    missing = re.search(r"missing required field `(.+?)`", text)
    wrong = re.fullmatch(r"Expected (.+?)(?:, got (.+))?", text)
    if missing:
        parent = "" if key == "-" else f"{key}."
        reject(_KIND_BY_MISSING, record, parent + missing[1], "a value", "no such key")
    elif wrong:
        reject("type", record, key, wrong[1], wrong[2] or "another value")
    else:
        reject("type", record, key, "a valid value", text)


def _raise_malformed(data: memoryview, error: Exception, problems: _Problems) -> NoReturn:
    where = re.search(r"\(byte (\d+)\)", str(error))
    position = int(where[1]) if where else 0
    excerpt = bytes(data[max(position - 20, 0) : position + 20]).decode("utf-8", errors="replace")
    if where and re.match(rb"-?(NaN|Inf)|N$|I$|aN|nf", bytes(data[position : position + 4])):
        expected, found = "finite numbers", f"NaN or infinity at byte {position}: {excerpt!r}"
        remedy = "write such records without the value, or leave them out"
    elif isinstance(error, RecursionError):
        expected, found, remedy = ("lists and objects", "nesting too deep to read", "this is no annotation file")
    elif len(data) == 0:
        expected, found, remedy = "a JSON object", "an empty file", "copy or download the file again"
    else:
        expected, found = "valid JSON in UTF-8", str(error) + (f": {excerpt!r}" if where else "")
        remedy = "copy or download the file again; it may be cut off"
    problems.fatal("json", "file", "-", expected, found, remedy)


def _category_columns(categories: list[_Category], problems: _Problems) -> dict[str, Any]:
    if not categories:
        problems.fatal("no_category", "file", "categories", "at least one category", "an empty list")
    names: dict[str, int] = {}
    ids: set[int] = set()
    for category in categories:
        record = f"category {category.id}"
        if category.id in ids:
            problems.fatal(
                "duplicate_category_id", record, "id", "an id of its own", "the same id twice", "give it a new id"
            )
        if category.name in names:
            problems.fatal(
                "duplicate_category_name", record, "name", "a name of its own",
                f"{category.name!r}, the name of category {names[category.name]} too",
                "rename it: tables and frequency groups go by name",
            )  # fmt: skip
        if category.frequency not in (None, "r", "c", "f"):
            problems.fatal("frequency", record, "frequency", "r, c or f", repr(category.frequency))
        ids.add(category.id)
        names[category.name] = category.id
    categories = sorted(categories, key=lambda category: category.id)
    declared = np.array([category.frequency or "" for category in categories], dtype="<U1")
    return {
        "category_ids": np.array([category.id for category in categories], dtype=np.int64),
        "category_names": [category.name for category in categories],
        "declared_frequency": declared if (declared != "").any() else None,
    }


def _image_columns(
    images: list[_Image], category_ids: np.ndarray, problems: _Problems, root: str | None, check_images: bool
) -> tuple[dict[str, Any], set[int]]:
    """The image columns, and the ids of the images that were skipped."""
    federated = any(image.neg_category_ids is not None for image in images)
    names = _plain_names(images, category_ids, federated)
    if names is not None:
        kept, gone = list(zip(images, names, strict=True)), set()
    else:
        kept, gone = _checked_images(images, category_ids, problems, federated)
    kept.sort(key=lambda pair: pair[0].id)
    columns = _stack_images(kept, federated)
    if check_images:
        probe = _Files(problems.path, root, columns["file_names"], columns["image_ids"])
        missing = missing_images(probe).tolist()
        _reject_missing(problems, probe.image_ids, probe.image_path, missing, _MISSING_IMAGE_REMEDY)
        if missing:
            gone.update(kept[index][0].id for index in missing)
            lost = set(missing)
            kept = [pair for index, pair in enumerate(kept) if index not in lost]
            columns = _stack_images(kept, federated)
    return columns, gone


def _plain_names(images: list[_Image], category_ids: np.ndarray, federated: bool) -> list[str] | None:
    """The images' file names if nothing is wrong with any image, as far as can be told of all at once."""
    if len(set(map(_IMAGE_ID, images))) < len(images):
        return None
    if federated:
        sources = list(map(_COCO_URL, images))
        lists = [image.neg_category_ids for image in images]
        if None in sources or None in lists:
            return None
        lists += [image.not_exhaustive_category_ids or [] for image in images]
        if not np.isin(_flatten(lists)[0], category_ids).all():
            return None
        names = ["/".join(url.rsplit("/", 2)[-2:]) for url in sources]
    else:
        names = list(map(_FILE_NAME, images))
        if None in names:
            return None
    # What `_HARMLESS_NAME` asks of each, but for the number of folders, which does not matter to anybody.
    text = "\n" + "\n".join(names) + "\n"
    if text.count("\n") != len(names) + 1 or _NOT_HARMLESS.search(text):
        return None
    return names


_IMAGE_ID, _COCO_URL, _FILE_NAME = map(operator.attrgetter, ("id", "coco_url", "file_name"))


_NOT_HARMLESS = re.compile(r"[^A-Za-z0-9_./\n-]|[/\n][^A-Za-z0-9_]")


def _checked_images(
    images: list[_Image], category_ids: np.ndarray, problems: _Problems, federated: bool
) -> tuple[list[tuple[_Image, str]], set[int]]:
    """The images that stay, with their file names, and the ids of those that were skipped."""
    known = set(category_ids.tolist())
    kept: list[tuple[_Image, str]] = []
    seen: set[int] = set()
    gone: set[int] = set()
    for image in images:
        record = f"image {image.id}"
        if image.id in seen:
            problems.reject("duplicate_image_id", record, "id", "an id of its own", "the same id twice")
            continue
        name = _file_name(image, federated, problems)
        if name is None:
            gone.add(image.id)
            continue
        if federated and image.neg_category_ids is None:
            problems.reject(
                _KIND_BY_MISSING, record, "neg_category_ids", "a list, as the file's other images have",
                "no such key", "add the list (it may be empty)",
            )  # fmt: skip
            gone.add(image.id)
            continue
        if federated:
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                ids = getattr(image, key) or []
                if known.issuperset(ids):
                    continue
                unknown = [i for i in ids if i not in known]
                # With "skip" the unknown ids leave the list, the image stays.
                problems.reject("unknown_category", record, key, "ids of the file's categories", _listing(unknown))
                setattr(image, key, [i for i in ids if i in known])
        seen.add(image.id)
        kept.append((image, name))
    return kept, gone - seen


@dataclasses.dataclass(frozen=True)
class _Files:
    """The part of `Annotations` that looking for image files takes."""

    path: str
    image_root: str | None
    file_names: list[str]
    image_ids: np.ndarray
    image_path = Annotations.image_path


def _stack_images(kept: list[tuple[_Image, str]], federated: bool) -> dict[str, Any]:
    neg, neg_offsets = _flatten([image.neg_category_ids or [] for image, _ in kept] if federated else [[]] * len(kept))
    rest, rest_offsets = _flatten(
        [image.not_exhaustive_category_ids or [] for image, _ in kept] if federated else [[]] * len(kept)
    )
    return {
        "image_ids": np.array([image.id for image, _ in kept], dtype=np.int64),
        "image_width": np.array([image.width for image, _ in kept], dtype=np.int32),
        "image_height": np.array([image.height for image, _ in kept], dtype=np.int32),
        "file_names": [name for _, name in kept],
        "federated": federated,
        "neg_ids": neg,
        "neg_offsets": neg_offsets,
        "not_exhaustive_ids": rest,
        "not_exhaustive_offsets": rest_offsets,
    }


def _flatten(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, lists), np.int64, len(lists)), out=offsets[1:])
    return np.fromiter(itertools.chain.from_iterable(lists), np.int64, int(offsets[-1])), offsets


_HARMLESS_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/){0,9}[A-Za-z0-9_][A-Za-z0-9_.-]*")


def _file_name(image: _Image, federated: bool, problems: _Problems) -> str | None:
    """The image's path below the image folder, or None where it is refused."""
    record = f"image {image.id}"
    use_url = image.coco_url is not None and (federated or image.file_name is None)
    key = "coco_url" if use_url else "file_name"
    name = "/".join(image.coco_url.rsplit("/", 2)[-2:]) if use_url else image.file_name
    if name is None:
        problems.reject(_KIND_BY_MISSING, record, key, "a value", "no such key")
        return None
    # A file name is data from outside: it must not lead out of the image folder, on any system.
    if _HARMLESS_NAME.fullmatch(name):
        return name
    parts = re.split(r"[/\\]", name)
    if not parts[-1] or not parts[0] or ".." in parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
        problems.reject(
            "file_name", record, key, "a path below the image folder", repr(name),
            "give a relative path without '..'",
        )  # fmt: skip
        return None
    return name


def _annotation_columns(
    rows: _Rows, images: dict[str, Any], gone: set[int], category_ids: np.ndarray, problems: _Problems
) -> dict[str, Any]:
    ids, image_ids, class_of = rows.ids, rows.image_ids, rows.category_ids
    boxes, areas, iscrowd = rows.boxes, rows.areas, rows.iscrowd
    n = len(ids)

    def record(row: int) -> str:
        return f"annotation {ids[row]} (image {image_ids[row]})"

    keep = np.ones(n, dtype=bool)

    def reject(bad: np.ndarray, kind: str, key: str, *args: Any) -> None:
        bad = bad & keep  # one reason a record
        problems.reject_where(bad, kind, key, record, *args)
        keep[bad] = False

    if not (ids[1:] > ids[:-1]).all():
        first = np.zeros(n, dtype=bool)
        first[np.unique(ids, return_index=True)[1]] = True
        reject(~first, "duplicate_annotation_id", "id", "an id of its own", lambda row: f"{ids[row]} twice")
    image_index = index_of(images["image_ids"], image_ids)
    class_ids = index_of(category_ids, class_of)
    lost = np.isin(image_ids, np.fromiter(gone, np.int64, len(gone))) if gone else np.zeros(n, dtype=bool)
    for row in np.flatnonzero(lost & keep & (image_index < 0)).tolist():  # its image was skipped, and said so
        problems.skipped.append(Skipped("image_skipped", record(row), f"image {image_ids[row]} was skipped"))
        keep[row] = False
    reject(image_index < 0, "unknown_image", "image_id", "the id of an image", lambda row: str(image_ids[row]))
    reject(class_ids < 0, "unknown_category", "category_id", "the id of a category", lambda row: str(class_of[row]))
    # Rows of rejected records have index -1 here; they are masked by `keep`.
    if not len(images["image_ids"]):
        width = height = np.zeros(n)
    else:
        width = images["image_width"][image_index].astype(np.float64)
        height = images["image_height"][image_index].astype(np.float64)
    x, y, w, h = boxes.T

    def box(row: int) -> str:
        return str(boxes[row].tolist())

    with np.errstate(over="ignore"):  # of numbers near the largest float, which are refused all the same
        right, bottom = x + w, y + h
    if n >= 10 and keep.all() and (right <= 1).all() and (bottom <= 1).all() and (width > 2).all():
        problems.fatal(
            "normalised_boxes", record(0), "bbox", "[x, y, width, height] in px",
            f"{box(0)}, and no box of the file reaches beyond the first pixel",
            "multiply boxes and polygons by the image's width and height",
        )  # fmt: skip
    reject((w < 0) | (h < 0), "negative_box", "bbox", "[x, y, width, height] with width, height >= 0", box)
    reject(
        np.maximum.reduce([-x, -y, right - width, bottom - height]) > BOX_TOLERANCE,
        "box_outside", "bbox",
        lambda row: (
            f"[x, y, width, height] within {width[row]:.0f} x {height[row]:.0f} px "
            f"(tolerance {BOX_TOLERANCE} px)"
        ),
        box, "clip the box to its image; if the numbers are x1, y1, x2, y2, convert them",
    )  # fmt: skip
    empty = (np.minimum(right, width) <= np.maximum(x, 0)) | (np.minimum(bottom, height) <= np.maximum(y, 0))
    for row in np.flatnonzero(empty & keep).tolist():
        problems.skipped.append(Skipped("empty_box", record(row), f"bbox: {box(row)} covers nothing of its image"))
    keep &= ~empty
    without_area = np.isnan(areas) & keep  # JSON cannot hold a NaN: the key is not there
    areas[without_area] = w[without_area] * h[without_area]
    reject(areas < 0, "area", "area", "an area >= 0", lambda row: str(areas[row]))

    order = np.flatnonzero(keep)
    order = order[np.argsort(image_index[order], kind="stable")]
    order, masks = rows.masks.read(order, record, width, height, iscrowd, problems)
    image_index = image_index[order]
    image_offsets = np.searchsorted(image_index, np.arange(len(images["image_ids"]) + 1))
    return {
        "annotation_ids": ids[order],
        "annotation_image": image_index.astype(np.int32),
        "annotation_class": class_ids[order].astype(np.int32),
        "boxes": boxes[order],
        "areas": areas[order],
        "iscrowd": iscrowd[order],
        "image_offsets": image_offsets.astype(np.int64),
        **masks,
    }


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The file's annotations as arrays, in the file's order, checked by type only."""

    ids: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray  # (n, 4)
    areas: np.ndarray  # NaN where the file has none
    iscrowd: np.ndarray
    masks: _Masks | _FlatMasks | _NoMasks

    @staticmethod
    def of(objects: Sequence[_Box], masks: _Masks | _FlatMasks | _NoMasks) -> _Rows:
        n = len(objects)
        xywh = itertools.chain.from_iterable([o.bbox for o in objects])
        return _Rows(
            ids=np.fromiter([o.id for o in objects], np.int64, n),
            image_ids=np.fromiter([o.image_id for o in objects], np.int64, n),
            category_ids=np.fromiter([o.category_id for o in objects], np.int64, n),
            boxes=np.fromiter(xywh, np.float64, 4 * n).reshape(n, 4),
            areas=np.fromiter([np.nan if o.area is None else o.area for o in objects], np.float64, n),
            iscrowd=np.fromiter([bool(o.iscrowd) for o in objects], np.bool_, n),
            masks=masks,
        )

    @staticmethod
    def join(parts: list[_Rows], masks: _FlatMasks | _NoMasks) -> _Rows:
        names = [field.name for field in dataclasses.fields(_Rows) if field.name != "masks"]
        if not parts:
            return _Rows.of([], masks)
        return _Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}, masks=masks)


class _NoMasks:
    """Segmentations were not asked for."""

    def read(self, order: np.ndarray, *_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return order, _without_masks(len(order))


def _without_masks(num_annotations: int) -> dict[str, Any]:
    return {
        "polygon_xy": np.zeros(0),
        "polygon_offsets": np.zeros(1, dtype=np.int64),
        "annotation_polygons": np.zeros(num_annotations + 1, dtype=np.int64),
        "rles": {},
    }


class _Masks:
    """Segmentations of a file with something wrong in it, decoded and judged one annotation at a time."""

    def __init__(self, objects: Sequence[_Object]) -> None:
        self.objects = objects
        self.xy = array("d")
        self.polygon_offsets = array("q", [0])
        self.annotation_polygons: Sequence[int] = array("q", [0])
        self.rles: dict[int, dict[str, Any]] = {}

    def read(
        self,
        order: np.ndarray,
        record: Callable[[int], str],
        width: np.ndarray,
        height: np.ndarray,
        iscrowd: np.ndarray,
        problems: _Problems,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Decode the rows of `order`; returns the rows that stay and their columns."""
        decoder = msgspec.json.Decoder(_Segmentation)
        kept: list[int] = []
        without: list[tuple[int, int]] = []  # (position in kept, row) of objects that have no mask
        for row in order.tolist():
            raw = self.objects[row].segmentation
            try:
                segmentation = decoder.decode(raw) if memoryview(raw).nbytes else None
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                message, _, where = str(error).partition(" - at `$")
                _invalid(f"{message} - at `$.segmentation{where or '`'}", record(row), problems.reject)
                continue
            if not segmentation:
                if not iscrowd[row]:
                    without.append((len(kept), row))
            elif isinstance(segmentation, _RLE):
                size = (int(height[row]), int(width[row]))
                if not _check_rle(segmentation, size, record(row), problems):
                    continue
                self.rles[len(kept)] = {"size": list(segmentation.size), "counts": segmentation.counts}
            else:
                bad = next((p for p in segmentation if len(p) < 6 or len(p) % 2), None)
                if bad is not None:
                    problems.reject(
                        "polygon", record(row), "segmentation",
                        "polygons of an even number of at least 6 coordinates", f"one of {len(bad)}",
                    )  # fmt: skip
                    continue
                far = next((p for p in segmentation if _is_far_away(p, width[row], height[row])), None)
                if far is not None:
                    problems.reject(
                        "polygon", record(row), "segmentation",
                        f"points within {POLYGON_TOLERANCE} px of the image's {width[row]:.0f} x {height[row]:.0f} px",
                        f"coordinates from {min(far):g} to {max(far):g}", "clip the polygon to its image",
                    )  # fmt: skip
                    continue
                for polygon in segmentation:
                    self.xy.extend(polygon)
                    self.polygon_offsets.append(len(self.xy))
            kept.append(row)
            self.annotation_polygons.append(len(self.polygon_offsets) - 1)
        if without and (self.rles or len(self.polygon_offsets) > 1):
            kept = self._drop_maskless(kept, without, record, problems)
        return np.array(kept, dtype=np.int64), {
            "polygon_xy": np.frombuffer(self.xy, dtype=np.float64) if self.xy else np.zeros(0),
            "polygon_offsets": np.array(self.polygon_offsets, dtype=np.int64),
            "annotation_polygons": np.array(self.annotation_polygons, dtype=np.int64),
            "rles": self.rles,
        }

    def _drop_maskless(
        self, kept: list[int], without: list[tuple[int, int]], record: Callable[[int], str], problems: _Problems
    ) -> list[int]:
        _reject_maskless([row for _, row in without], record, problems)
        lost = {position for position, _ in without}
        # An annotation without a mask holds no polygon: only its own offset has to go.
        self.annotation_polygons = [0] + [
            end for position, end in enumerate(self.annotation_polygons[1:]) if position not in lost
        ]
        stay = [position for position in range(len(kept)) if position not in lost]
        self.rles = {new: self.rles[old] for new, old in enumerate(stay) if old in self.rles}
        return [kept[position] for position in stay]


def _is_far_away(polygon: list[float], width: float, height: float) -> bool:
    return (
        min(polygon) < -POLYGON_TOLERANCE
        or max(polygon[0::2]) > width + POLYGON_TOLERANCE
        or max(polygon[1::2]) > height + POLYGON_TOLERANCE
    )


def _reject_maskless(rows: list[int], record: Callable[[int], str], problems: _Problems) -> None:
    for row in rows:
        problems.reject(
            "no_segmentation", record(row), "segmentation",
            "a mask, as the file's other annotations have", "none", more=len(rows) - 1,
        )  # fmt: skip


def _check_rle(rle: _RLE, size: tuple[int, int], record: str, problems: _Problems) -> bool:
    if rle.size != size:
        problems.reject(
            "rle_size", record, "segmentation.size", f"the image's [height, width] {list(size)}",
            str(list(rle.size)), "encode the mask at the image's size",
        )  # fmt: skip
        return False
    pixels = size[0] * size[1]
    try:
        runs = rle_counts(rle.counts)
        total = int(runs.sum())
        found = f"{total}"
    except ValueError as error:
        total, found = -1, str(error)
    # pycocotools does not check this and would read or write outside its memory.
    if total != pixels or pixels >= 2**32:
        problems.reject("rle", record, "segmentation.counts", f"runs that sum up to the image's {pixels} px", found)
        return False
    return True


# Reading a file piece by piece
#
# LVIS's file is 1 GB. A file in which nothing is wrong is read through a window of some MB and becomes arrays
# at once: a fraction of the memory. Whatever such reading does not understand makes `_read_plain` return
# None, and the file is then read as a whole, by the code above, which finds out what is wrong and says so. So
# the reading below may give up, but what it accepts is right: pieces are decoded from left to right, and a
# piece that decodes as whole records from where the last one ended cannot end anywhere but behind a record.
_WINDOW = 1 << 20
"""Bytes decoded at a time: their records stay in the processor's cache until they are columns."""


_LONGEST = 256 << 20
"""Bytes of a record, or of a value nobody asks for, from which on a file is none of those meant here."""


_RECORD_BORDER = re.compile(rb"\}\s*,\s*\{")


_BEFORE_RECORD = re.compile(rb"\}\s*,\s*\Z")


_LIST_END = re.compile(rb"\}\s*\]")


_KEY = re.compile(rb'\s*("(?:[^"\\\x00-\x1f]|\\.)*")\s*:\s*')


_SPACE = re.compile(rb"\s*")


class _Unplain(Exception):
    """The file is not for reading piece by piece."""


class _Window:
    """The part of a file that is being looked at: `data[at:]`, followed by what `file` still holds."""

    def __init__(self, file: BinaryIO, digest: _Digest | None) -> None:
        self.file, self.digest = file, digest
        self.data, self.at, self.complete = b"", 0, False

    def fill(self, size: int) -> None:
        """Have `size` bytes to look at, or all that are left."""
        missing = size - (len(self.data) - self.at)
        if missing <= 0 or self.complete:
            return
        more = self.file.read(missing)
        self.complete = len(more) < missing
        if self.digest is not None:
            self.digest.update(more)
        self.data = b"".join((memoryview(self.data)[self.at :], more))
        self.at = 0

    def skip_space(self) -> bytes:
        """The next byte that is no white space."""
        while True:
            self.fill(1 << 16)
            self.at = _SPACE.match(self.data, self.at).end()
            if self.at < len(self.data) or self.complete:
                return self.data[self.at : self.at + 1]

    def take(self, byte: bytes) -> None:
        if self.skip_space() != byte:
            raise _Unplain
        self.at += 1

    def take_key(self) -> str:
        self.fill(1 << 16)
        match = _KEY.match(self.data, self.at)
        if not match:
            raise _Unplain
        self.at = match.end()
        return msgspec.json.decode(match[1], type=str)

    def skip_value(self) -> None:
        """Past any value, as of "info"; Python's parser says where it ends, msgspec whether it is valid."""
        size = 1 << 16
        while True:
            self.fill(size)
            text = self.data[self.at : self.at + size].decode("latin-1")  # a byte a character
            try:
                end = json.JSONDecoder().raw_decode(text)[1]
            except ValueError:
                end = len(text)
            if end < len(text):
                msgspec.json.decode(memoryview(self.data)[self.at : self.at + end])
                self.at += end
                return
            if size > _LONGEST or (self.complete and self.at + len(text) == len(self.data)):
                raise _Unplain
            size *= 4

    def records(self, kind: type) -> Iterator[list[Any]]:
        """The objects of the list that begins here, in portions; ends behind the list."""
        decoder = msgspec.json.Decoder(list[kind])
        self.take(b"[")
        if self.skip_space() == b"]":
            self.at += 1
            return
        size = _WINDOW
        while True:
            self.fill(size)
            stop = min(self.at + size, len(self.data))
            last = stop == len(self.data) and self.complete
            end = None if last else self._last_border(stop)
            if end is not None:
                try:
                    portion = self._decode(decoder, end)
                except msgspec.ValidationError:
                    raise
                except msgspec.DecodeError:
                    pass  # the list ends before
                else:
                    yield portion
                    self.take(b",")
                    size = _WINDOW
                    continue
            for match in itertools.islice(_LIST_END.finditer(self.data, self.at, stop), 4):
                try:
                    portion = self._decode(decoder, match.start() + 1)
                except msgspec.ValidationError:
                    raise
                except msgspec.DecodeError:
                    continue  # in a text, or the end of a list within a record
                yield portion
                self.take(b"]")
                return
            if last or size > _LONGEST:
                raise _Unplain
            size *= 2

    def _last_border(self, stop: int) -> int | None:
        """Behind the last record that is followed by another one before `stop`."""
        at = stop
        for _ in range(100):
            at = self.data.rfind(b"{", self.at, at)
            if at < 0:
                return None
            match = _BEFORE_RECORD.search(self.data, max(at - 200, self.at), at)
            if match:
                return match.start() + 1
        end = None  # objects within records: from the front, then
        for match in _RECORD_BORDER.finditer(self.data, self.at, stop):
            end = match.start() + 1
        return end

    def _decode(self, decoder: msgspec.json.Decoder, end: int) -> list[Any]:
        portion = decoder.decode(b"".join((b"[", memoryview(self.data)[self.at : end], b"]")))
        self.at = end
        return portion


def _read_plain(
    path: str, segmentations: bool, digest: _Digest | None
) -> tuple[list[_Image], _Rows, list[_Category]] | None:
    """The file's three lists if every record is well-formed, else None."""
    try:
        with open(path, "rb", buffering=0) as file:
            return _read_pieces(_Window(file, digest), segmentations)
    except (OSError, _Unplain, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # the same file read as a whole gives the error, or is fine


def _read_pieces(window: _Window, segmentations: bool) -> tuple[list[_Image], _Rows, list[_Category]]:
    # glibc takes what a program frees as a sign of how much to keep for it. Without this untouched array, it
    # would hand the memory of each piece's arrays back and fetch it again, page by page: a third of the time.
    np.empty(31 << 20, dtype=np.uint8)

    lists: dict[str, Any] = {}
    window.fill(1 << 16)
    if window.data.startswith(_BYTE_ORDER_MARK):
        window.at = len(_BYTE_ORDER_MARK)
    window.take(b"{")
    seen: set[str] = set()
    while True:
        key = window.take_key()
        if key in seen:
            raise _Unplain
        seen.add(key)
        if key == "images":
            lists[key] = list(itertools.chain.from_iterable(window.records(_Image)))
        elif key == "categories":
            lists[key] = list(itertools.chain.from_iterable(window.records(_Category)))
        elif key == "annotations":
            masks = _FlatMasks() if segmentations else _NoMasks()
            parts = []
            for objects in window.records(_Object if segmentations else _Box):
                parts.append(_Rows.of(objects, masks))
                if segmentations:
                    masks.add([o.segmentation for o in objects])
                del objects  # before the next portion is decoded
            lists[key] = _Rows.join(parts, masks)
            del parts
        else:
            window.skip_value()
        if window.skip_space() == b"}":
            break
        window.take(b",")
    window.at += 1
    if window.skip_space() != b"" or len(lists) != 3:
        raise _Unplain
    return lists["images"], lists["annotations"], lists["categories"]


class _FlatMasks:
    """Segmentations in the file's order as flat arrays: nothing is wrong with any polygon."""

    def __init__(self) -> None:
        self.hundredths = bytearray()  # int32: what LVIS and COCO write, exactly; grows in place
        self.exact: list[np.ndarray] | None = None  # float64 from the first number on that is something else
        self.lengths: list[np.ndarray] = []  # coordinates a polygon
        self.counts: list[np.ndarray] = []  # polygons an annotation
        self.rles: dict[int, _RLE] = {}  # by row
        self.rows = 0
        self.decoder = msgspec.json.Decoder(_Segmentation)

    def add(self, raws: list[msgspec.Raw]) -> None:
        """The next annotations' segmentations, as they are in the file."""
        flat = _flat_polygons(raws)
        if flat is None:
            flat = _flat_polygons([self._polygons_only(row, raw) for row, raw in enumerate(raws)])
        if flat is None:
            flat = self._decode_each(raws)
        values, lengths, counts = flat
        self.lengths.append(lengths)
        self.counts.append(counts)
        self.rows += len(raws)
        if self.exact is None and values.dtype == np.int32:
            self.hundredths += values.tobytes()
            return
        if self.exact is None:
            self.exact = [np.frombuffer(self.hundredths, dtype=np.int32) / 100.0]
            self.hundredths = bytearray()
        if values.dtype != np.int32 and len(values) and np.abs(values).max() > POLYGON_TOLERANCE:
            raise _Unplain  # perhaps too far from its image; hundredths go to 9999.99 and never are
        self.exact.append(values / 100.0 if values.dtype == np.int32 else values)

    def _polygons_only(self, row: int, raw: msgspec.Raw) -> msgspec.Raw | bytes:
        """Takes what is no list out: RLEs and null."""
        view = memoryview(raw)
        if not len(view) or view[0] == ord("["):
            return raw
        segmentation = self.decoder.decode(raw)
        if isinstance(segmentation, _RLE):
            self.rles[self.rows + row] = segmentation
        return b""

    def _decode_each(self, raws: list[msgspec.Raw]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of more than two decimals, negative ones and the like."""
        polygons, counts = [], np.zeros(len(raws), dtype=np.int64)
        for row, raw in enumerate(raws):
            if (self.rows + row) not in self.rles and memoryview(raw).nbytes:
                of_row = self.decoder.decode(raw) or []
                polygons += of_row
                counts[row] = len(of_row)
        lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
        _check_lengths(lengths)
        return np.fromiter(itertools.chain.from_iterable(polygons), np.float64), lengths, counts

    def read(
        self,
        order: np.ndarray,
        record: Callable[[int], str],
        width: np.ndarray,
        height: np.ndarray,
        iscrowd: np.ndarray,
        problems: _Problems,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The masks of the rows of `order`; returns the rows that stay and their columns."""
        counts = np.concatenate([*self.counts, np.zeros(0, dtype=np.int64)])
        if self.rles:
            has_rle = np.zeros(len(counts), dtype=bool)
            has_rle[list(self.rles)] = True
            fits = np.ones(len(counts), dtype=bool)
            for row in order[has_rle[order]].tolist():
                size = (int(height[row]), int(width[row]))
                fits[row] = _check_rle(self.rles[row], size, record(row), problems)
            order = order[fits[order]]
            masked = (counts > 0) | has_rle
        else:
            masked = counts > 0
        if masked[order].any():
            maskless = ~masked & ~iscrowd
            _reject_maskless(order[maskless[order]].tolist(), record, problems)
            order = order[~maskless[order]]

        first_polygon = _offsets(counts)
        offsets = _offsets(np.concatenate([*self.lengths, np.zeros(0, dtype=np.int64)]))
        polygons = _ranges(first_polygon[order], counts[order])
        rles = {
            new: {"size": list(self.rles[row].size), "counts": self.rles[row].counts}
            for new, row in enumerate(order.tolist() if self.rles else [])
            if row in self.rles
        }
        return order, {
            "polygon_xy": _Coordinates(
                np.concatenate(self.exact) if self.exact else np.frombuffer(self.hundredths, dtype=np.int32),
                offsets[first_polygon[order]],
                offsets[first_polygon[order + 1]],
            ),
            "polygon_offsets": _offsets(np.diff(offsets)[polygons]),
            "annotation_polygons": _offsets(counts[order]),
            "rles": rles,
        }


_COORDINATES_A_BLOCK = 1 << 19


class _Coordinates:
    """`Annotations.polygon_xy` before it is one: ranges of numbers, in float64 or int32 hundredths.

    Written to the cache block by block, it never takes its 0.7 GB of memory for LVIS.
    """

    def __init__(self, values: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> None:
        self.values = values
        # Annotations of an image stand together in the file as a rule: few ranges are left.
        first = np.flatnonzero(np.concatenate([[True], starts[1:] != stops[:-1]])) if len(starts) else starts
        last = np.concatenate([first[1:], [len(starts)]])[: len(first)] - 1
        starts, stops = starts[first], stops[last]
        pieces = np.maximum(-(-(stops - starts) // _COORDINATES_A_BLOCK), 1)  # a sorted file is one range
        begin = _ranges(np.zeros_like(pieces), pieces) * _COORDINATES_A_BLOCK + np.repeat(starts, pieces)
        self.starts, self.stops = begin, np.minimum(begin + _COORDINATES_A_BLOCK, np.repeat(stops, pieces))

    def __len__(self) -> int:
        return int((self.stops - self.starts).sum())

    def blocks(self) -> Iterator[np.ndarray]:
        """The coordinates as float64, some MB at a time."""
        ends = np.cumsum(self.stops - self.starts)
        at = 0
        while at < len(ends):
            done = ends[at - 1] if at else 0
            to = max(int(np.searchsorted(ends, done + _COORDINATES_A_BLOCK, side="right")), at + 1)
            ranges = zip(self.starts[at:to].tolist(), self.stops[at:to].tolist(), strict=True)
            yield self._as_float(np.concatenate([self.values[a:b] for a, b in ranges]))
            at = to

    def array(self) -> np.ndarray:
        """All of them."""
        xy = np.empty(len(self))
        at = 0
        for block in self.blocks():
            xy[at : at + len(block)] = block
            at += len(block)
        return xy

    @staticmethod
    def _as_float(values: np.ndarray) -> np.ndarray:
        # n / 100 is the float64 nearest to the decimal fraction: division rounds correctly.
        return values / 100.0 if values.dtype == np.int32 else values


_DIGITS_AND_SPACE = b"0123456789. \t\r\n"


def _flat_polygons(raws: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Lists of polygons in JSON -> hundredths (P,) int32, coordinates a polygon (Q,), polygons a row (n,).

    Valid JSON is asked for. None where a number is not 0..9999.99 of at most two decimals, or anything is no
    list: then the caller has it decoded the ordinary way.

    Raises:
        _Unplain: Not a list of lists of an even number of at least 6 numbers.
    """
    text = b"\0".join(raws)  # no valid JSON holds a NUL
    skeleton = text.translate(None, _DIGITS_AND_SPACE)
    if skeleton.translate(None, b"[],\0"):
        return None
    marks = np.frombuffer(skeleton, dtype=np.uint8)
    opening, closing = marks == ord("["), marks == ord("]")
    depth = np.cumsum(opening.view(np.int8) - closing.view(np.int8), dtype=np.int32)
    if len(depth) and depth.max() > 2:
        raise _Unplain
    opens = np.flatnonzero(opening & (depth == 2))
    closes = np.flatnonzero(closing & (depth == 1))
    lengths = closes - opens  # only commas lie between the two
    _check_lengths(lengths)
    values = _hundredths(text)
    if values is None:
        return None
    if len(values) != lengths.sum():
        raise _Unplain  # numbers outside polygons
    rows = np.searchsorted(np.flatnonzero(marks == 0), opens)
    return values, lengths, np.bincount(rows, minlength=len(raws))


def _check_lengths(lengths: np.ndarray) -> None:
    if len(lengths) and (lengths.min() < 6 or (lengths & 1).any()):
        raise _Unplain


def _hundredths(text: bytes) -> np.ndarray | None:
    """All numbers of a text as (P,) int32 hundredths; None where one is not 0..9999.99 in two decimals.

    A hundred million numbers are most of an LVIS file, and as Python floats they take three times as long. Here
    the last eight characters of each are one 64-bit word.

    Args:
        text: Numbers as JSON has them, none negative, between white space and ``,[]`` or NUL.
    """
    text = b"\0\0\0\0\0\0\0" + text + b"\0"
    characters = np.frombuffer(text, dtype=np.uint8)[7:]
    in_number = (characters - np.uint8(ord("."))) < 12  # . / 0 .. 9; what is below wraps round
    ends = np.flatnonzero(in_number[:-1] > in_number[1:])
    ending_here = np.ndarray((len(characters),), dtype="<u8", buffer=text, strides=(1,))
    values = np.empty(len(ends), dtype=np.int32)
    decimals = 0
    for start in range(0, len(ends), _BLOCK):
        words = ending_here[ends[start : start + _BLOCK]]
        found = _words_to_hundredths(words)
        if found is None:
            return None
        values[start : start + _BLOCK] = words
        decimals += found
    # Fewer than there are points: one number has three decimals or more.
    return values if decimals == np.count_nonzero(characters == ord(".")) else None


_BLOCK = 1 << 16  # numbers, whose words stay in the processor's cache


def _words_to_hundredths(words: np.ndarray) -> int | None:
    """Turns the 8 characters that end with a number, first in the lowest byte, into its hundredths, in place.

    Args:
        words: (n,) uint64.

    Returns:
        How many numbers have one or two decimals; None if one has more than four digits before the point.
    """
    characters = words.view(np.uint8).reshape(-1, 8)
    # The point into byte 5, behind it the decimals.
    rest = np.flatnonzero(characters[:, 5] != ord("."))
    decimals = len(words) - len(rest)
    if len(rest):
        one = characters[rest, 6] == ord(".")
        decimals += int(np.count_nonzero(one))
        others = words[rest]
        words[rest] = np.where(one, (others >> 8) | (0x30 << 56), (others >> 24) | (0x30302E << 40))
    words ^= np.uint64(0x3030_3030_3030_3030)  # 0..9 where there is a digit
    # What stands before the number's first digit belongs to something else: clear it, and the point.
    clear = words & np.uint64(0x7F_7F7F_7F7F)
    clear += np.uint64(0x76_7676_7676)
    clear |= words
    clear &= np.uint64(0x80_8080_8080)  # where there is no digit, among bytes 0 to 4
    if not clear.all():
        return None
    other = clear >> np.uint64(8)
    clear |= other
    np.right_shift(clear, np.uint64(16), out=other)
    clear |= other
    np.right_shift(clear, np.uint64(32), out=other)
    clear |= other
    clear >>= np.uint64(7)
    clear *= np.uint64(0xFF)
    clear |= np.uint64(0xFF << 40)
    np.invert(clear, out=clear)
    words &= clear
    # Digits a b c d e . f g to two-digit numbers ab, cd, e0, fg in 16 bits each, to abcd and efg, to one
    # number.
    np.right_shift(words, np.uint64(8), out=other)
    words *= np.uint64(10)
    words += other
    words &= np.uint64(0x00FF_00FF_00FF_00FF)
    np.right_shift(words, np.uint64(32), out=other)
    other *= np.uint64((10 << 16) + 1)
    other >>= np.uint64(16)
    other &= np.uint64(0xFFFF)
    words &= np.uint64(0xFFFF_FFFF)
    words *= np.uint64((100 << 16) + 1)
    words >>= np.uint64(16)
    words &= np.uint64(0xFFFF)
    words *= np.uint64(1000)
    words += other
    return decimals


def _offsets(lengths: np.ndarray) -> np.ndarray:
    """(n,) lengths -> (n + 1,) int64 offsets."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices start, start + 1, ... of all ranges, one after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


# Columns kept on disk
CACHE_MIN_BYTES = 16 << 20
"""JSON files from this size on are cached; smaller ones are read in a moment."""


_FORMAT = 2  # of the entries; part of their names: an older or newer one is never looked at


_MAGIC = b"RIOCOLS\n"


_ALIGNMENT = 64


_COPIED_BYTES = 1 << 20  # columns below this size are read into memory, the others mapped


_SETTLED_SECONDS = 2.0  # a file changed within the clock's tick keeps its time stamps: trust older ones only


_LOCK_SECONDS = 300.0


_MASK_COLUMNS = frozenset({"polygon_xy", "polygon_offsets", "annotation_polygons"})


_said: set[str] = set()


class _Digest:
    """What a file holds, as a short text: its size, the CRC-32 of all and the SHA-256 of its two ends.

    One changed byte, or any up to 4 in a row, always changes it; two other files of the same size and ends
    share one with a chance of 1 : 4 billion. A cryptographic hash of all would take three times as long. This
    is asked only about a file that has moved or was touched; whether a file at its place changed, its time
    stamps tell.
    """

    _END = 1 << 20

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.size, self.crc, self.head = 0, 0, b""
        self.last: list[bytes | memoryview] = []  # what came last: one end or more

    def update(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        self.crc = zlib.crc32(data, self.crc)
        if len(self.head) < self._END:
            self.head += bytes(data[: self._END - len(self.head)])
        self.last.append(data)
        while sum(map(len, self.last[1:])) >= self._END:
            del self.last[0]

    def text(self) -> str:
        ends = hashlib.sha256(self.head + b"".join(self.last)[-self._END :]).hexdigest()[:24]
        return f"{self.size}-{self.crc:08x}-{ends}"


class _Column(msgspec.Struct):
    name: str
    dtype: Literal["<i8", "<i4", "<f8", "|b1", "<U1"]
    shape: list[int]
    offset: int
    crc: int


class _Footer(msgspec.Struct):
    """The end of an entry, behind its columns."""

    format: int
    source: str  # `_Digest.text` of the JSON
    kind: str
    federated: bool
    has_declared_frequency: bool
    category_names: list[str]
    file_names: str  # joined by NUL, which none of them holds
    rles: dict[int, dict[str, list[int] | str]]
    skipped: list[tuple[str, str, str]]
    columns: list[_Column]


class _BrokenEntry(Exception):
    """An entry of the cache that is not what it should be; the text says why."""


def cache_folder() -> Path | None:
    """Where columns are kept: RIO_CACHE, or ``~/.cache/rio``; None where RIO_CACHE is "off".

    Everything in it can be deleted at any time.
    """
    named = os.environ.get("RIO_CACHE", "")
    if named.strip().lower() == "off":
        return None
    folder = os.path.expanduser(named or os.path.join("~", ".cache", "rio"))
    return None if folder.startswith("~") else Path(folder)  # a user without a home


def _load_cached(
    path: str, root: str | None, check_images: bool, on_error: str, segmentations: bool, folder: Path
) -> Annotations:
    """The columns from the cache, else from the JSON file and into the cache."""
    try:
        status = os.stat(path)
    except OSError:
        return _load(path, root, check_images, on_error, segmentations, True)  # has the words for it
    found = _look_up(path, status, folder, on_error, segmentations)
    if found is None:
        with _lock(folder / f"{_stamp(status)}.lock") as waited:
            if waited:
                found = _look_up(path, status, folder, on_error, segmentations)
            if found is None:
                logger.info("%s: reading %.1f GB, once", path, status.st_size / 1e9)
                digest = _Digest()
                # Images that may be missing today are no property of the file: look for them afterwards.
                read = _load(path, root, False, on_error, segmentations, True, digest)
                try:
                    found = _keep(read, folder, path, status, digest.text(), segmentations)
                except OSError as error:
                    _say_without_cache(folder, error)
                if found is None and isinstance(read.polygon_xy, _Coordinates):
                    read = dataclasses.replace(read, polygon_xy=read.polygon_xy.array())
                found = found or read
                del read
    annotations = dataclasses.replace(found, path=path, image_root=root)
    if check_images and len(missing_images(annotations)):
        # Raises, or leaves those images out.
        return _load(path, root, True, on_error, segmentations, True)
    return annotations


def _say_without_cache(folder: Path, error: OSError) -> None:
    text = (
        f"cache folder {folder}: {error.strerror or error}: columns are not kept, annotation files are read "
        "anew each time. Remedy: set RIO_CACHE to a folder that can be written, or to 'off'"
    )
    if text not in _said:
        _said.add(text)
        logger.warning(text)


def _look_up(path: str, status: os.stat_result, folder: Path, on_error: str, segmentations: bool) -> Annotations | None:
    try:
        source = _source_of(path, status, folder)
        return None if source is None else _find(folder, source, on_error, segmentations)
    except OSError as error:
        _say_without_cache(folder, error)
        return None


def _stamp(status: os.stat_result) -> str:
    """A file's place and time stamps. Its change time cannot be set back as its modification time can."""
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return f"stamp-v{_FORMAT}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:32]}"


def _is_settled(status: os.stat_result) -> bool:
    # Windows has no change time (st_ctime is when the file was made).
    return os.name != "nt" and max(status.st_mtime, status.st_ctime) < time.time() - _SETTLED_SECONDS


def _source_of(path: str, status: os.stat_result, folder: Path) -> str | None:
    """The file's digest, where that can lead to an entry: from an earlier time, else from the content."""
    stamp = folder / _stamp(status)
    if _is_settled(status):
        try:
            source = stamp.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            source = ""
        if re.fullmatch(rf"{status.st_size}-[0-9a-f]{{8}}-[0-9a-f]{{24}}", source):
            return source
    if not any(folder.glob(f"{status.st_size}-*.columns")):
        return None  # no entry comes from a file of this size
    digest = _Digest()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(1 << 22):
            digest.update(data)
    with contextlib.suppress(OSError):  # a cache that can be read only will do
        _note(stamp, path, digest.text(), status)
    return digest.text()


def _same_file(path: str, status: os.stat_result) -> bool:
    return _stamp(os.stat(path)) == _stamp(status)


def _note(stamp: Path, path: str, source: str, status: os.stat_result) -> None:
    if _is_settled(status) and _same_file(path, status):
        _write_atomically(stamp, [source.encode("ascii")])


def _entry(folder: Path, source: str, kind: str) -> Path:
    return folder / f"{source}-{kind}-v{_FORMAT}.columns"


def _find(folder: Path, source: str, on_error: str, segmentations: bool) -> Annotations | None:
    """The entry that answers: one made without a skipped record serves "raise" and "skip" alike."""
    contents = ("masks",) if segmentations else ("boxes", "masks")
    for state in ("whole", "skipped") if on_error == "skip" else ("whole",):
        for content in contents:
            # Where records were skipped, which ones depends on whether masks were looked at.
            if state == "skipped" and content != contents[0]:
                continue
            kind = f"{content}-{state}"
            entry = _entry(folder, source, kind)
            try:
                return _read_entry(entry, source, kind, segmentations)
            except FileNotFoundError:
                continue
            except _BrokenEntry as error:
                logger.warning("cache entry %s: %s; it is made anew", entry, error)
    return None


def _keep(
    annotations: Annotations, folder: Path, path: str, status: os.stat_result, source: str, segmentations: bool
) -> Annotations | None:
    """Writes an entry; returns it as mapped columns, or None where it could not be kept."""
    if not _same_file(path, status) or not source.startswith(f"{status.st_size}-"):
        return None  # the JSON was written to while it was read
    whole = all(skip.kind == "empty_box" for skip in annotations.skipped)  # these are left out in either case
    kind = f"{'masks' if segmentations else 'boxes'}-{'whole' if whole else 'skipped'}"
    entry = _entry(folder, source, kind)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_leftovers(folder)
    _write_atomically(entry, _pack(annotations, source, kind))
    _note(folder / _stamp(status), path, source, status)
    logger.info("%s: columns kept in %s", path, entry)
    try:
        return _read_entry(entry, source, kind, segmentations, check=False)
    except (FileNotFoundError, _BrokenEntry) as error:
        logger.warning("cache entry %s: %s right after writing it; not used", entry, error)
        return None


def _pack(annotations: Annotations, source: str, kind: str) -> Iterator[bytes | memoryview]:
    """An entry's parts, in order: columns, footer, the footer's length and checksum, magic."""
    columns: list[_Column] = []
    at = 0
    for field in dataclasses.fields(annotations):
        value = getattr(annotations, field.name)
        if isinstance(value, np.ndarray):
            dtype, shape, blocks = value.dtype.newbyteorder("<"), value.shape, iter([value])
        elif isinstance(value, _Coordinates):
            dtype, shape, blocks = np.dtype("<f8"), (len(value),), value.blocks()
        else:
            continue
        crc = 0
        for block in blocks:
            array = np.ascontiguousarray(block.astype(dtype, copy=False))
            data = memoryview(array.reshape(-1).view(np.uint8)) if array.nbytes else b""
            crc = zlib.crc32(data, crc)
            yield data
        columns.append(_Column(field.name, dtype.str, list(shape), at, crc))
        size = math.prod(shape) * dtype.itemsize
        yield b"\0" * (-size % _ALIGNMENT)
        at += size + -size % _ALIGNMENT
    footer = _Footer(
        format=_FORMAT, source=source, kind=kind, federated=annotations.federated,
        has_declared_frequency=annotations.declared_frequency is not None,
        category_names=annotations.category_names, file_names="\0".join(annotations.file_names),
        rles=annotations.rles, skipped=[tuple(skip) for skip in annotations.skipped], columns=columns,
    )  # fmt: skip
    text = msgspec.msgpack.encode(footer)
    yield from (text, len(text).to_bytes(8, "little"), zlib.crc32(text).to_bytes(8, "little"), _MAGIC)


def _remove_leftovers(folder: Path) -> None:
    """What a process that was killed while writing left behind."""
    for left in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - 86_400:
                left.unlink()


def _write_atomically(path: Path, parts: Iterable[Any]) -> None:
    """All or nothing, for readers and after a crash alike."""
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb", buffering=0) as file:
            for part in parts:
                view = memoryview(part)
                while len(view):  # an unbuffered write may write less
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _read_entry(entry: Path, source: str, kind: str, segmentations: bool, *, check: bool = True) -> Annotations:
    """An entry as columns, large ones mapped: processes share them, and memory holds what is used of them.

    Raises:
        FileNotFoundError: There is none.
        _BrokenEntry: It is cut off, damaged, or no entry at all.
    """
    with open(entry, "rb", buffering=0) as file:
        footer, size = _read_footer(file, source, kind)
        names = {column.name for column in footer.columns}
        if names != set(_column_names(footer.has_declared_frequency)):
            raise _BrokenEntry("its columns are others")
        arrays = {}
        for column in footer.columns:
            if segmentations or column.name not in _MASK_COLUMNS:
                arrays[column.name] = _read_column(file, entry, column, size, check)
    if not segmentations:
        arrays |= _without_masks(len(arrays["annotation_ids"]))
        arrays["rles"] = {}
    file_names = footer.file_names.split("\0") if len(arrays["image_ids"]) else []
    return Annotations(
        path="", image_root=None, federated=footer.federated, file_names=file_names,
        category_names=footer.category_names, skipped=[Skipped(*skip) for skip in footer.skipped],
        **({"declared_frequency": None, "rles": footer.rles} | arrays),
    )  # fmt: skip


def _column_names(has_declared_frequency: bool) -> list[str]:
    others = {"path", "image_root", "file_names", "category_names", "rles", "federated", "skipped"}
    if not has_declared_frequency:
        others.add("declared_frequency")
    return [field.name for field in dataclasses.fields(Annotations) if field.name not in others]


def _read_footer(file: BinaryIO, source: str, kind: str) -> tuple[_Footer, int]:
    """The footer, and how many bytes lie before it."""
    size = os.fstat(file.fileno()).st_size
    tail = 16 + len(_MAGIC)
    file.seek(max(size - tail, 0))
    end = file.read(tail)
    if len(end) < tail or not end.endswith(_MAGIC):
        raise _BrokenEntry("cut off, or no entry of this cache")
    length, crc = (int.from_bytes(end[i : i + 8], "little") for i in (0, 8))
    if not 0 < length <= size - tail:
        raise _BrokenEntry("damaged")
    file.seek(size - tail - length)
    text = file.read(length)
    if len(text) < length or zlib.crc32(text) != crc:
        raise _BrokenEntry("damaged")
    try:
        footer = msgspec.msgpack.decode(text, type=_Footer)
    except msgspec.DecodeError as error:
        raise _BrokenEntry(f"not understood ({error})") from None
    if (footer.format, footer.source, footer.kind) != (_FORMAT, source, kind):
        raise _BrokenEntry("the entry of another file")
    return footer, size - tail - length


def _read_column(file: BinaryIO, entry: Path, column: _Column, size: int, check: bool) -> np.ndarray:
    dtype, offset = np.dtype(column.dtype), column.offset
    nbytes = math.prod(column.shape) * dtype.itemsize
    if min(column.shape) < 0 or offset < 0 or offset + nbytes > size:
        raise _BrokenEntry(f"column {column.name} lies outside")
    copy = bytearray() if nbytes < _COPIED_BYTES else None
    if copy is None and not check:
        return _mapped(str(entry), column.dtype, offset, tuple(column.shape))
    # Read, not mapped, to be checked: pages read so do not count as this process's memory.
    file.seek(offset)
    crc, left = 0, nbytes
    buffer = memoryview(bytearray(min(max(nbytes, 1), 1 << 20)))
    while left:
        count = file.readinto(buffer[: min(left, len(buffer))])
        if not count:
            raise _BrokenEntry("cut off")
        crc = zlib.crc32(buffer[:count], crc)
        if copy is not None:
            copy += buffer[:count]
        left -= count
    if crc != column.crc:
        raise _BrokenEntry(f"column {column.name} is damaged")
    if copy is not None:
        return np.frombuffer(copy, dtype=dtype).reshape(column.shape)
    return _mapped(str(entry), column.dtype, offset, tuple(column.shape))


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """One process reads the JSON, the others wait for its entry: True for those that waited.

    Without a lock, where there can be none, each reads it: slower, and as right.
    """
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = open(path, "ab")
    except (ImportError, OSError):  # Windows; a folder that cannot be written
        yield False
        return
    with file:
        waited = False
        give_up = time.monotonic() + _LOCK_SECONDS
        while time.monotonic() < give_up:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when the file is closed, or at exit
                break
            except BlockingIOError:
                waited = True
                time.sleep(0.05)
            except OSError:
                break
        try:
            yield waited
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
