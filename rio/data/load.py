"""LVIS and COCO annotation files as validated columns (NumPy arrays).

A file is checked once, here; nothing behind this module checks again. The rules, by the `kind` of an error or a skip:

Always an error:
    ``json`` (truncated, NaN, infinite, not UTF-8), ``type`` and ``missing_key`` of the file or of a category,
    ``duplicate_category_id``, ``duplicate_category_name``, ``frequency``, ``no_category``, ``normalised_boxes`` (nearly
    all end in the first pixel), ``corner_boxes`` (half do not fit, and all do as x1, y1, x2, y2).
An error, or a skip with ``on_error="skip"``:
    ``type`` and ``missing_key`` of an image or annotation, ``duplicate_image_id`` (the first one stays),
    ``duplicate_annotation_id`` (not skipped: they get new ids), ``unknown_image``, ``unknown_category`` (of the lists
    of an image only the id goes), ``file_name`` (leads out of the image folder; links in it are followed),
    ``missing_image``, ``negative_box``, ``box_outside`` (by more than `POLYGON_TOLERANCE`), ``area`` (negative),
    ``polygon`` (no polygon of an even number of at least 6 coordinates within `POLYGON_TOLERANCE`), ``rle``,
    ``rle_size``.
A skip in either case:
    ``empty_box`` (no width or no height inside the image: it can neither be trained on nor found), ``image_skipped``,
    ``root_category`` (without objects, the supercategory of all others).
Taken for what it can only mean, and counted in `Annotations.repaired` (`rio.data.repairs`, `rio.data.locate`):
    ``integral_float`` (1.0 for 1), ``text_id`` (numbered, the text kept in `Annotations.text_ids`), ``text_number``,
    ``empty_value``, ``no_box`` (beside a mask: the box around it), ``no_segmentation`` (among others with masks: the
    box's rectangle), ``polygon_form`` (flat lists, nested pairs), ``polygon_part`` (the good polygons stay),
    ``mask_transposed`` (if the box tells how), ``file_name`` (backslashes, ``./``, absolute below the folder; other
    case, percent-encoding), ``box_clipped`` (sticks out by more than `BOX_TOLERANCE`: training clips it).
Fine:
    ids with gaps, images or files without annotations, ``area`` 0, box-only files.
"""

import dataclasses
import hashlib
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from rio.data.annotations import Annotations, frequency_groups, map_array
from rio.data.errors import Finding, Problems, Skipped
from rio.data.files import write_atomically
from rio.data.object_rules import annotation_columns
from rio.data.reading import read_file, rows_of, without_collection
from rio.data.rules import category_columns, image_columns, missing_images

__all__ = ["CACHE_MIN_BYTES", "SETTLED_SECONDS", "cache_folder", "load_annotations"]

logger = logging.getLogger(__name__)

CACHE_MIN_BYTES = 16 << 20
"""JSON files from this size on are cached; smaller ones are read in a moment."""

SETTLED_SECONDS = 2.0
"""A file that changes twice within the clock's tick keeps its time stamps: one that changed just now is not cached."""

_FORMAT = 4  # of the entries; part of their names, so others are never looked at
_LOCK_SECONDS = 300.0
_OTHERS = ("federated", "category_names", "file_names", "skipped", "repaired", "text_ids")  # columns that are no arrays
_LEFT_OUT = ("empty_box", "root_category")  # in either case
_warned: set[str] = set()


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

    The module's docstring lists what is checked. A file is taken as LVIS (`Annotations.federated`) if its images have
    ``neg_category_ids``. An image's file name is ``file_name``; for LVIS, as in detectron2, and where there is none, it
    is the last two parts of ``coco_url`` (``train2017/000000155379.jpg``).

    A large file is read once: its columns are then kept in `cache_folder` and mapped from there, read-only, by every
    process. A file that changed, or moved, is read again.

    Args:
        path: The JSON file.
        image_root: The folder that file names are relative to.
        check_images: Also make sure that each image file is there.
        on_error: "raise", or "skip": leave broken records out, listed in `Annotations.skipped`.
        segmentations: Read and check masks; without them, loading is faster and takes less memory.
        require_annotations: False lets a file without the key "annotations" (LVIS's test sets) count as one
            with no annotation. Such files are not cached.
        cache: True or False to use the cache or not; None uses it for files of `CACHE_MIN_BYTES` and more.

    Returns:
        The file as columns.

    Raises:
        AnnotationFileNotFoundError: There is no such file.
        AnnotationError: The file breaks a rule; the message names the record and the fix.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: expected 'raise' or 'skip', found {on_error!r}")
    path, root = os.fspath(path), None if image_root is None else os.fspath(image_root)
    folder = cache_folder() if cache is not False and require_annotations and os.path.isfile(path) else None
    if folder is None or not (cache or os.path.getsize(path) >= CACHE_MIN_BYTES):
        return columns_of(Problems(path, on_error), root, check_images, segmentations, require_annotations)
    cached = dataclasses.replace(_load_cached(path, folder, on_error, segmentations), image_root=root)
    if check_images and (root is None or len(missing_images(cached))):
        return columns_of(Problems(path, on_error), root, True, segmentations)  # raises, or leaves those images out
    return cached


@without_collection()
def columns_of(
    problems: Problems, root: str | None, check_images: bool, masks: bool, require_annotations: bool = True
) -> Annotations:
    """The columns of `problems.path`, which collects what is wrong with it, or raises."""
    path = problems.path
    images, categories, rows = read_file(path, problems, masks)
    if rows is None:
        if require_annotations:
            problems.fatal("missing_key", "file", "annotations", "a list", "no such key")
        rows = rows_of([])
    of_categories = category_columns(categories, np.unique(rows.category_ids), problems)
    category_ids, declared = of_categories["category_ids"], of_categories["declared_frequency"]
    of_images, skipped_images = image_columns(images, category_ids, problems, root, check_images)
    del images
    columns = annotation_columns(rows, of_images, skipped_images, category_ids, problems)

    counted = ~columns["iscrowd"]
    classes = columns["annotation_class"][counted].astype(np.int64)
    num_images, num_classes = len(of_images["image_ids"]), len(category_ids)
    pairs = np.unique(classes * num_images + columns["annotation_image"][counted])
    image_count = np.bincount(pairs // max(num_images, 1), minlength=num_classes).astype(np.int64)
    derived = frequency_groups(image_count)
    return Annotations(
        path=path, image_root=root, image_count=image_count, skipped=problems.skipped,
        repaired=list(problems.repaired.values()), text_ids=problems.ids,
        instance_count=np.bincount(classes, minlength=num_classes).astype(np.int64),
        frequency=derived if declared is None else np.where(declared == "", derived, declared).astype("<U1"),
        **of_categories, **of_images, **columns,
    )  # fmt: skip


def cache_folder() -> Path | None:
    """Where columns are kept: RIO_CACHE, or ``~/.cache/rio``; None if RIO_CACHE is "off". All in it can be deleted."""
    named = os.environ.get("RIO_CACHE", "")
    if named.strip().lower() == "off":
        return None
    folder = os.path.expanduser(named or os.path.join("~", ".cache", "rio"))
    return None if folder.startswith("~") else Path(folder)  # a user without a home


class _Meta(msgspec.Struct):
    """What an entry, a folder of ``.npy`` files, holds beside its arrays."""

    federated: bool
    category_names: list[str]
    file_names: list[str]
    skipped: list[Skipped]
    repaired: list[Finding]
    text_ids: dict[str, dict[int, str]]
    arrays: dict[str, tuple[str, list[int]]]  # name -> dtype, shape


def _load_cached(path: str, folder: Path, on_error: str, masks: bool) -> Annotations:
    """The columns from the cache, else from the JSON file and into the cache; without an image folder."""
    stamp = _stamp(path)
    if found := _find(path, folder, stamp, on_error, masks):
        return found
    import filelock  # takes as long to import as the rest of this package

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with filelock.FileLock(folder / "lock", timeout=_LOCK_SECONDS):  # one process reads, the others wait
            found = _find(path, folder, stamp, on_error, masks)
            return found or _read_and_keep(path, folder, stamp, on_error, masks)
    except (OSError, NotImplementedError) as error:
        _warn_once(folder, error)
        return columns_of(Problems(path, on_error), None, False, masks)


def _read_and_keep(path: str, folder: Path, stamp: str, on_error: str, masks: bool) -> Annotations:
    logger.info("%s: reading %.1f GB, once", path, os.path.getsize(path) / 1e9)
    # Which images are missing today is no property of the file: load_annotations looks for them afterwards.
    read = columns_of(Problems(path, on_error), None, False, masks)
    status = os.stat(path)
    if _stamp(path) != stamp or max(status.st_mtime, status.st_ctime) > time.time() - SETTLED_SECONDS:
        return read
    try:
        _write_entry(_entry(folder, stamp, masks), read)
    except OSError as error:
        _warn_once(folder, error)
    return _find(path, folder, stamp, on_error, masks) or read


def _stamp(path: str) -> str:
    """Where a file is and when it changed. Unlike its modification time, its change time cannot be set back."""
    status = os.stat(path)
    words = os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    return hashlib.sha256(repr(words).encode()).hexdigest()[:32]


def _entry(folder: Path, stamp: str, masks: bool) -> Path:
    return folder / f"{stamp}-{'masks' if masks else 'boxes'}-v{_FORMAT}"


def _find(path: str, folder: Path, stamp: str, on_error: str, masks: bool) -> Annotations | None:
    """What an entry answers: one without skipped records serves "raise" too, and one with masks "boxes"."""
    for with_masks in {masks, True}:
        entry = _entry(folder, stamp, with_masks)
        if entry.is_dir():
            try:
                found = _open_entry(entry, path, masks)
            except (OSError, EOFError, ValueError, TypeError, msgspec.DecodeError) as error:
                logger.warning("cache entry %s: %s; it is made anew", entry, error)
                continue
            # Empty boxes are left out in either case; whether others are depends on what was asked.
            if all(skip.kind in _LEFT_OUT for skip in found.skipped) or (on_error == "skip" and with_masks == masks):
                return found
    return None


def _open_entry(entry: Path, path: str, masks: bool) -> Annotations:
    meta = msgspec.json.decode((entry / "meta.json").read_bytes(), type=_Meta)
    columns: dict[str, Any] = {"declared_frequency": None}
    for name, (dtype, shape) in meta.arrays.items():
        columns[name] = array = map_array(entry / f"{name}.npy")
        if (array.dtype.str, list(array.shape)) != (dtype, shape):
            raise ValueError(f"{name} is another array")
    if not masks:
        columns["mask_json"] = np.zeros(0, dtype=np.uint8)
        columns |= {name: np.zeros_like(columns[name]) for name in ("mask_start", "mask_length")}
    columns |= {name: getattr(meta, name) for name in _OTHERS}
    return Annotations(path=path, image_root=None, **columns)


def _write_entry(entry: Path, annotations: Annotations) -> None:
    """All or nothing: written beside its place, then renamed. The caller holds the lock."""
    for left in entry.parent.glob(".*.tmp"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".", suffix=".tmp"))
    arrays = {name: value for name, value in vars(annotations).items() if isinstance(value, np.ndarray)}
    shapes = {name: (array.dtype.str, list(array.shape)) for name, array in arrays.items()}
    meta = _Meta(**{name: getattr(annotations, name) for name in _OTHERS}, arrays=shapes)
    try:
        for name, array in arrays.items():
            write_atomically(temporary / f"{name}.npy", lambda file, array=array: np.save(file, array))  # type: ignore[misc]
        write_atomically(temporary / "meta.json", msgspec.json.encode(meta))
        shutil.rmtree(entry, ignore_errors=True)
        os.replace(temporary, entry)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _warn_once(folder: Path, error: Exception) -> None:
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
    text = (
        f"cache folder {folder}: {reason}: columns are not kept, annotation files "
        "are read anew each time. Fix: set RIO_CACHE to a folder that can be written, or to 'off'"
    )
    if text not in _warned:
        _warned.add(text)
        logger.warning(text)
