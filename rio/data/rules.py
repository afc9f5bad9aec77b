"""What an annotation file must keep to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

import numpy as np

from rio.data.annotations import Annotations
from rio.data.errors import AnnotationError, Skipped

BOX_TOLERANCE = 1.0
"""How far (px) a box may stick out of its image: annotation tools round, and detectron2 clips anyway."""


POLYGON_TOLERANCE = 10_000
"""How far (px) a polygon may stick out of its image: pycocotools walks every edge pixel by pixel, so a point a
million px away takes it a GB and one further away crashes it."""


def missing_images(annotations: Annotations) -> np.ndarray:
    """Which images have no file below `image_root`.

    Folders are listed instead of asking for every file, which takes minutes for LVIS on a network disk.

    Returns:
        Ascending int64 image indices.
    """
    if annotations.image_root is None:
        annotations.image_path(0)  # raises, with the remedy
    by_folder: dict[str, list[int]] = {}
    for index, name in enumerate(annotations.file_names):
        by_folder.setdefault(os.path.dirname(name), []).append(index)
    missing: list[int] = []
    for folder, indices in by_folder.items():
        present = _files_in(os.path.join(annotations.image_root, folder)) if len(indices) > 100 else None
        for index in indices:
            name = os.path.basename(annotations.file_names[index])
            if (present is None or name not in present) and not os.path.isfile(annotations.image_path(index)):
                missing.append(index)
    return np.array(sorted(missing), dtype=np.int64)


def require_images(annotations: Annotations) -> None:
    """Make sure that every image file is there, before a training that lasts days finds out.

    Raises:
        AnnotationError: Names the first missing file and how many there are.
    """
    missing = missing_images(annotations).tolist()
    if missing:
        problems = _Problems(annotations.path, "raise")
        _reject_missing(problems, annotations.image_ids, annotations.image_path, missing, _MISSING_IMAGE_REMEDY)


def _reject_missing(
    problems: _Problems, image_ids: np.ndarray, image_path: Callable[[int], str], missing: list[int], remedy: str | None
) -> None:
    for index in missing:
        problems.reject(
            "missing_image", f"image {image_ids[index]}", "file_name", "an image file",
            f"none at {image_path(index)}", remedy, more=len(missing) - 1,
        )  # fmt: skip


_MISSING_IMAGE_REMEDY = (
    "check the image folder (the file name of LVIS images comes from coco_url: FOLDER/val2017/ID.jpg)"
)


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_symlink() and entry.is_file()}
    except OSError:
        return set()  # every file is then asked for by itself


_REMEDIES = {
    "bbox": "give [x, y, width, height] in px as finite numbers",
    "segmentation": "give a list of polygons [[x, y, x, y, ...], ...] in px, or an RLE {size, counts}",
    "width": "give the image's size in px",
    "height": "give the image's size in px",
    "annotations": 'add "annotations": [...] (an empty list is allowed)',
    "iscrowd": "give 0 or 1",
    "frequency": "give r, c or f, or leave the key out",
}


class _Problems:
    """Raises the first broken rule, or lists it, as `on_error` asks."""

    def __init__(self, path: str, on_error: str) -> None:
        self.path, self.skip = path, on_error == "skip"
        self.skipped: list[Skipped] = []

    def fatal(self, kind: str, record: str, key: str, expected: str, found: str, remedy: str | None = None) -> NoReturn:
        remedy = remedy or _REMEDIES.get(key, "mend the file")
        raise AnnotationError(self.path, record, key, expected, found, remedy, kind=kind)

    def reject(
        self, kind: str, record: str, key: str, expected: str, found: str, remedy: str | None = None, more: int = 0
    ) -> None:
        if not self.skip:
            remedy = remedy or _REMEDIES.get(key, "mend the record")
            remedy += (
                "; or, to have such records left out and listed, load with on_error='skip' (a data set's "
                "name: end it with '?skip')"
            )
            found += f" ({more} more like it)" if more else ""
            self.fatal(kind, record, key, expected, found, remedy)
        self.skipped.append(Skipped(kind, record, f"{key}: expected {expected}, found {found}"))

    def reject_where(
        self,
        bad: np.ndarray,
        kind: str,
        key: str,
        record: Callable[[int], str],
        expected: Callable[[int], str] | str,
        found: Callable[[int], str],
        remedy: str | None = None,
    ) -> None:
        """Reject the rows where `bad` is True."""
        rows = np.flatnonzero(bad).tolist()
        for row in rows:
            wanted = expected if isinstance(expected, str) else expected(row)
            self.reject(kind, record(row), key, wanted, found(row), remedy, more=len(rows) - 1)
