"""An annotation file as columns."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any

import numpy as np

from rio.data.errors import AnnotationError, Finding, Skipped, listing
from rio.data.masks import RLE, decode

RARE_MAX_IMAGES, COMMON_MAX_IMAGES = 10, 100
GROUP_NAMES = {"r": "rare", "c": "common", "f": "frequent"}  # in this order wherever groups are listed


def map_array(path: str | os.PathLike[str]) -> np.ndarray:
    """A ``.npy`` file as a read-only array that processes share (as `np.memmap` its items would come slowly)."""
    return np.lib.format.open_memmap(path, mode="r").view(np.ndarray)


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
    """An annotation file as columns, for I images, A annotations and K categories.

    Images are sorted by id, annotations by image; within one they keep the file's order. Class ids are 0..K-1 in the
    order of ascending category ids. Counts leave crowd regions out.
    """

    path: str
    image_root: str | None  # the folder that file_names are relative to
    image_ids: np.ndarray  # (I,) int64, ascending
    image_width: np.ndarray  # (I,) int32, px
    image_height: np.ndarray  # (I,) int32, px
    file_names: list[str]  # I
    category_ids: np.ndarray  # (K,) int64, ascending
    category_names: list[str]  # K
    image_count: np.ndarray  # (K,) int64, images of this file with the class
    instance_count: np.ndarray  # (K,) int64, annotations of this file with the class
    declared_frequency: np.ndarray | None  # (K,) '<U1', the file's "frequency" keys, '' where absent; None without any
    frequency: np.ndarray  # (K,) '<U1', r, c or f: declared where present, else from image_count
    annotation_ids: np.ndarray  # (A,) int64
    annotation_image: np.ndarray  # (A,) int32, index into the images, ascending
    annotation_class: np.ndarray  # (A,) int32, class id
    boxes: np.ndarray  # (A, 4) float64, x, y, width, height in px
    areas: np.ndarray  # (A,) float64, px², the file's "area", or width * height where it has none
    iscrowd: np.ndarray  # (A,) bool
    ignored: np.ndarray  # (A,) bool, the file's "ignore", which LVIS's protocol honours
    image_offsets: np.ndarray  # (I + 1,) int64; image i's annotations are image_offsets[i]:image_offsets[i + 1]
    mask_json: np.ndarray  # (M,) uint8, every "segmentation" as it is in the file, in the file's order
    mask_start: np.ndarray  # (A,) int64 into mask_json
    mask_length: np.ndarray  # (A,) int32, bytes; 0 without a mask
    federated: bool  # LVIS: only an image's annotated, negative and not-exhaustive categories were verified
    neg_ids: np.ndarray  # flat category ids behind neg_category_ids
    neg_offsets: np.ndarray  # (I + 1,) int64 into neg_ids
    not_exhaustive_ids: np.ndarray  # as neg_ids
    not_exhaustive_offsets: np.ndarray
    skipped: list[Skipped] = dataclasses.field(default_factory=list)  # the records that were left out
    repaired: list[Finding] = dataclasses.field(default_factory=list)  # those taken for what they mean, by kind
    text_ids: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict)  # "image", "category": id -> its text

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.image_ids)

    @property
    def num_annotations(self) -> int:
        """A, crowd regions included."""
        return len(self.annotation_ids)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.category_ids)

    @cached_property
    def neg_category_ids(self) -> list[list[int]]:
        """I lists of category ids verified to be absent (empty lists if not `federated`)."""
        return _split(self.neg_ids, self.neg_offsets)

    @cached_property
    def not_exhaustive_category_ids(self) -> list[list[int]]:
        """I lists of category ids with further, unannotated objects (empty lists if not `federated`)."""
        return _split(self.not_exhaustive_ids, self.not_exhaustive_offsets)

    @property
    def has_segmentations(self) -> bool:
        """Whether any annotation has a mask (False when loaded with ``segmentations=False``)."""
        return bool(self.mask_length.any())

    @cached_property
    def has_rle_objects(self) -> bool:
        """Whether objects, not crowd regions only, have RLE masks: these need INPUT.MASK_FORMAT bitmask."""
        return bool((self.mask_json[self.mask_start[(self.mask_length > 0) & ~self.iscrowd]] == ord("{")).any())

    def annotations_of(self, image_index: int) -> slice:
        """The rows of one image's annotations, as a slice into the annotation columns."""
        if not 0 <= image_index < self.num_images:
            raise IndexError(f"image index: expected 0..{self.num_images - 1}, found {image_index}")
        return slice(int(self.image_offsets[image_index]), int(self.image_offsets[image_index + 1]))

    def segmentation(self, annotation_index: int) -> list[list[float]] | dict[str, Any] | None:
        """One annotation's mask as in the file: polygons as flat [x, y, x, y, ...] lists in px, an RLE dict or None."""
        if not 0 <= annotation_index < self.num_annotations:
            raise IndexError(f"annotation index: expected 0..{self.num_annotations - 1}, found {annotation_index}")
        start, length = self.mask_start[annotation_index], self.mask_length[annotation_index]
        mask = decode(self.mask_json[start : start + length].data) if length else None
        return {"size": list(mask.size), "counts": mask.counts} if isinstance(mask, RLE) else mask

    def image_path(self, image_index: int) -> str:
        """Where one image's file is; an `AnnotationError` without an `image_root`."""
        root = require_root(self.path, self.image_root, f"image {self.image_ids[image_index]}")
        return os.path.join(root, self.file_names[image_index])

    def skipped_counts(self) -> dict[str, int]:
        """How many records were left out, by kind."""
        return dict(Counter(skip.kind for skip in self.skipped))

    def with_frequency_of(self, train: Annotations) -> Annotations:
        """These annotations with the frequency groups of a training set, matched by category name; a copy that shares
        the arrays.

        A validation file's own image counts say nothing about how rare a class was in training. An AnnotationError
        where a category is unknown to the training set.
        """
        groups = dict(zip(train.category_names, train.frequency.tolist(), strict=True))
        for category_id, name in zip(self.category_ids.tolist(), self.category_names, strict=True):
            if name not in groups:
                expected, fix = f"a category of {train.path}", "give both files the same list of categories"
                record = f"category {category_id}"
                raise AnnotationError(self.path, record, "name", expected, repr(name), fix, "unknown_category")
        frequency = np.array([groups[name] for name in self.category_names], dtype="<U1")
        return dataclasses.replace(self, declared_frequency=frequency, frequency=frequency.copy())

    def with_borders(self, borders: tuple[int, int] | None) -> Annotations:
        """These annotations with frequency groups by other borders, see `frequency_groups`; None: as they are."""
        if borders is None:
            return self
        return dataclasses.replace(self, declared_frequency=None, frequency=frequency_groups(self.image_count, borders))

    def __getstate__(self) -> dict[str, Any]:
        state = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if get_spawning_popen() is not None:  # a process that starts here maps the files that this one has mapped
            for name, value in state.items():
                if isinstance(getattr(value, "base", None), np.memmap):
                    state[name] = Path(value.base.filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            self.__dict__[name] = map_array(value) if isinstance(value, Path) else value

    def __repr__(self) -> str:
        return (
            f"Annotations({self.path!r}: {self.num_images} images, {self.num_annotations} annotations, "
            f"{self.num_classes} classes, {len(self.skipped)} skipped)"
        )


def require_root(path: str, image_root: str | None, record: str = "file") -> str:
    """The image folder; an `AnnotationError` if there is none."""
    if image_root is None:
        fix = "call load_annotations(path, image_root=FOLDER)"
        raise AnnotationError(path, record, "file_name", "a folder of images", "none given", fix, "no_image_root")
    return image_root


def _split(flat: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    values = flat.tolist()
    return [values[a:b] for a, b in itertools.pairwise(offsets.tolist())]


def frequency_groups(
    image_count: np.ndarray | Sequence[int], borders: tuple[int, int] = (RARE_MAX_IMAGES, COMMON_MAX_IMAGES)
) -> np.ndarray:
    """LVIS's frequency groups, (K,) '<U1': r 1..10 images, c 11..100, f more; a class without an image counts as rare.

    `image_count`: (K,) images with the class; `borders`: most images of a rare and of a common class.

    >>> frequency_groups([0, 1, 10, 11, 100, 101]).tolist()
    ['r', 'r', 'r', 'c', 'c', 'f']
    """
    image_count = np.asarray(image_count)
    groups = np.where(image_count > borders[1], "f", np.where(image_count > borders[0], "c", "r"))
    return groups.astype("<U1")


def category_id_to_class_id(
    category_ids: np.ndarray | Sequence[int], ids: np.ndarray | Sequence[int] | int
) -> np.ndarray:
    """The one conversion from a file's category ids to contiguous, 0-based class ids, int64 of the shape of `ids`.

    `category_ids` (K,) are the file's, ascending; another id is an AnnotationError: use the ids of the same file.

    >>> category_id_to_class_id([1, 3, 90], [90, 1]).tolist()
    [2, 0]
    """
    category_ids, ids = np.asarray(category_ids, dtype=np.int64), np.asarray(ids, dtype=np.int64)
    class_ids = index_of(category_ids, ids)
    unknown = class_ids < 0
    if unknown.any():
        record, expected = f"{int(unknown.sum())} of {ids.size} ids", f"one of {len(category_ids)} known ids"
        found, fix = listing(np.unique(ids[unknown]).tolist()), "use the category ids of the same annotation file"
        raise AnnotationError("categories", record, "category_id", expected, found, fix, "unknown_category")
    return class_ids


def check_same_categories(train: Annotations, other: Annotations) -> None:
    """An AnnotationError unless class ids mean the same in two files: a detector trained on one can be evaluated on the
    other.
    """
    mine, others = (list(zip(a.category_ids.tolist(), a.category_names, strict=True)) for a in (train, other))
    if mine != others:
        known = set(mine)
        new = next((f"{number} {name!r}" for number, name in others if (number, name) not in known), None)
        expected, fix = f"the {len(mine)} ids and names of {train.path}", "give both files the same list of categories"
        found = new or f"{len(others)} of them"
        raise AnnotationError(other.path, "categories", "id, name", expected, found, fix, "categories_differ")


def index_of(ascending: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Where each id is in `ascending`, -1 where it is not: int64, the shape of `ids`.

    >>> index_of(np.array([3, 5, 9]), np.array([9, 4, 3])).tolist()
    [2, -1, 0]
    """
    if not len(ascending):
        return np.full(ids.shape, -1, dtype=np.int64)
    low, high = int(ascending[0]), int(ascending[-1])
    if ids.size > 1 << 16 and high - low < 4 * ids.size:  # a table, in a fifth of the time of a search
        table = np.full(high - low + 2, -1, dtype=np.int64)
        table[ascending - low] = np.arange(len(ascending))
        return table[np.where((ids >= low) & (ids <= high), ids - low, -1)]  # its last entry is -1
    position = np.minimum(np.searchsorted(ascending, ids), len(ascending) - 1)
    return np.where(ascending[position] == ids, position, -1)
