"""An annotation file as columns."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from multiprocessing.context import get_spawning_popen
from typing import Any, NamedTuple

import numpy as np

from rio.data.errors import AnnotationError, Skipped, listing
from rio.data.masks import RLE, decode

RARE_MAX_IMAGES = 10


COMMON_MAX_IMAGES = 100
GROUP_NAMES = {"r": "rare", "c": "common", "f": "frequent"}  # in this order wherever groups are listed


# The columns
class _MappedFile(NamedTuple):
    """A column that a cache entry holds: where to map it from."""

    path: str


def map_array(path: str | os.PathLike[str]) -> np.ndarray:
    """A ``.npy`` file as a read-only array that processes share (as `np.memmap` its items would come slowly)."""
    return np.lib.format.open_memmap(path, mode="r").view(np.ndarray)


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
    """An annotation file as columns.

    Images are sorted by id. Annotations are sorted by image and keep the file's order within one. Class ids
    are 0..K-1 in the order of ascending category ids.

    Attributes:
        path: The file it was loaded from.
        image_root: The folder that `file_names` are relative to, or None.
        image_ids: (I,) int64, ascending.
        image_width: (I,) int32, px.
        image_height: (I,) int32, px.
        file_names: I names relative to `image_root`.
        category_ids: (K,) int64, ascending.
        category_names: K names.
        image_count: (K,) int64, images of this file with the class (crowd regions do not count).
        instance_count: (K,) int64, annotations of this file with the class (crowd regions do not count).
        declared_frequency: (K,) '<U1', the file's own "frequency" keys, '' where absent; None without any.
        frequency: (K,) '<U1', r, c or f: declared where present, else from `image_count`.
        annotation_ids: (A,) int64.
        annotation_image: (A,) int32, index into the images, ascending.
        annotation_class: (A,) int32, class id.
        boxes: (A, 4) float64, x, y, width, height in px.
        areas: (A,) float64, px²; the file's "area", or width * height where the file has none.
        iscrowd: (A,) bool.
        image_offsets: (I + 1,) int64; image i's annotations are `image_offsets[i]:image_offsets[i + 1]`.
        mask_json: (M,) uint8, every annotation's "segmentation" as it is in the file, in the file's order.
        mask_start: (A,) int64 into `mask_json`.
        mask_length: (A,) int32, bytes; 0 without a mask.
        federated: LVIS: only an image's annotated, negative and not-exhaustive categories were verified.
        neg_ids, neg_offsets: flat category ids and (I + 1,) offsets behind `neg_category_ids`.
        not_exhaustive_ids, not_exhaustive_offsets: the same behind `not_exhaustive_category_ids`.
        skipped: The records that were left out.
    """

    path: str
    image_root: str | None
    image_ids: np.ndarray
    image_width: np.ndarray
    image_height: np.ndarray
    file_names: list[str]
    category_ids: np.ndarray
    category_names: list[str]
    image_count: np.ndarray
    instance_count: np.ndarray
    declared_frequency: np.ndarray | None
    frequency: np.ndarray
    annotation_ids: np.ndarray
    annotation_image: np.ndarray
    annotation_class: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    iscrowd: np.ndarray
    image_offsets: np.ndarray
    mask_json: np.ndarray
    mask_start: np.ndarray
    mask_length: np.ndarray
    federated: bool
    neg_ids: np.ndarray
    neg_offsets: np.ndarray
    not_exhaustive_ids: np.ndarray
    not_exhaustive_offsets: np.ndarray
    skipped: list[Skipped] = dataclasses.field(default_factory=list)

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
        """The rows of one image's annotations.

        Args:
            image_index: 0..I-1.

        Returns:
            A slice into the annotation columns.
        """
        if not 0 <= image_index < self.num_images:
            raise IndexError(f"image index: expected 0..{self.num_images - 1}, found {image_index}")
        return slice(int(self.image_offsets[image_index]), int(self.image_offsets[image_index + 1]))

    def segmentation(self, annotation_index: int) -> list[list[float]] | dict[str, Any] | None:
        """One annotation's mask as in the file.

        Args:
            annotation_index: 0..A-1.

        Returns:
            Polygons as flat [x, y, x, y, ...] lists in px, an RLE dict, or None where there is no mask.
        """
        if not 0 <= annotation_index < self.num_annotations:
            raise IndexError(f"annotation index: expected 0..{self.num_annotations - 1}, found {annotation_index}")
        if not self.mask_length[annotation_index]:
            return None
        start = self.mask_start[annotation_index]
        mask = decode(self.mask_json[start : start + self.mask_length[annotation_index]].data)
        return {"size": list(mask.size), "counts": mask.counts} if isinstance(mask, RLE) else mask

    def polygons(self, annotation_index: int) -> list[list[float]]:
        """One annotation's polygons; none where the mask is an RLE, or there is none."""
        segmentation = self.segmentation(annotation_index)
        return segmentation if isinstance(segmentation, list) else []

    def image_path(self, image_index: int) -> str:
        """Where one image's file is.

        Raises:
            AnnotationError: There is no `image_root`; pass one to `load_annotations`.
        """
        root = require_root(self.path, self.image_root, f"image {self.image_ids[image_index]}")
        return os.path.join(root, self.file_names[image_index])

    def skipped_counts(self) -> dict[str, int]:
        """How many records were left out, by kind."""
        return dict(Counter(skip.kind for skip in self.skipped))

    def with_frequency_of(self, train: Annotations) -> Annotations:
        """These annotations with the frequency groups of a training set, matched by category name.

        A validation file's own image counts say nothing about how rare a class was in training, so groups of
        a custom validation set come from the training set.

        Args:
            train: The training set.

        Returns:
            A copy that shares the arrays; `declared_frequency` and `frequency` are the training set's.

        Raises:
            AnnotationError: A category is unknown to the training set; both files need the same categories.
        """
        groups = dict(zip(train.category_names, train.frequency.tolist(), strict=True))
        for category_id, name in zip(self.category_ids.tolist(), self.category_names, strict=True):
            if name not in groups:
                raise AnnotationError(
                    self.path, f"category {category_id}", "name", f"a category of {train.path}", repr(name),
                    "give both files the same list of categories", kind="unknown_category",
                )  # fmt: skip
        frequency = np.array([groups[name] for name in self.category_names], dtype="<U1")
        return dataclasses.replace(self, declared_frequency=frequency, frequency=frequency.copy())

    def __getstate__(self) -> dict[str, Any]:
        state = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if get_spawning_popen() is not None:  # a process that starts here maps the files that this one has mapped
            for name, value in state.items():
                if isinstance(getattr(value, "base", None), np.memmap):
                    state[name] = _MappedFile(str(value.base.filename))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            self.__dict__[name] = map_array(value.path) if isinstance(value, _MappedFile) else value

    def __repr__(self) -> str:
        return (
            f"Annotations({self.path!r}: {self.num_images} images, {self.num_annotations} annotations, "
            f"{self.num_classes} classes, {len(self.skipped)} skipped)"
        )


def require_root(path: str, image_root: str | None, record: str = "file") -> str:
    """The image folder.

    Raises:
        AnnotationError: There is none.
    """
    if image_root is None:
        fix = "call load_annotations(path, image_root=FOLDER)"
        raise AnnotationError(path, record, "file_name", "a folder of images", "none given", fix, "no_image_root")
    return image_root


def _split(flat: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    values, bounds = flat.tolist(), offsets.tolist()
    return [values[a:b] for a, b in itertools.pairwise(bounds)]


def frequency_groups(image_count: np.ndarray | Sequence[int]) -> np.ndarray:
    """LVIS's frequency groups: r 1..10 images, c 11..100, f more; a class without an image counts as rare.

    Args:
        image_count: (K,) images with the class, >= 0.

    Returns:
        (K,) '<U1'.

    >>> frequency_groups([0, 1, 10, 11, 100, 101]).tolist()
    ['r', 'r', 'r', 'c', 'c', 'f']
    """
    image_count = np.asarray(image_count)
    common_or_frequent = np.where(image_count > COMMON_MAX_IMAGES, "f", "c")
    return np.where(image_count <= RARE_MAX_IMAGES, "r", common_or_frequent).astype("<U1")


def category_id_to_class_id(
    category_ids: np.ndarray | Sequence[int], ids: np.ndarray | Sequence[int] | int
) -> np.ndarray:
    """The one conversion from a file's category ids to contiguous, 0-based class ids.

    Args:
        category_ids: (K,) the file's category ids, ascending.
        ids: category ids to convert, any shape.

    Returns:
        int64 class ids, the shape of `ids`.

    Raises:
        AnnotationError: An id that is not among the categories; use the ids of the same file.

    >>> category_id_to_class_id([1, 3, 90], [90, 1]).tolist()
    [2, 0]
    """
    category_ids = np.asarray(category_ids, dtype=np.int64)
    ids = np.asarray(ids, dtype=np.int64)
    position = index_of(category_ids, ids)
    unknown = position < 0
    if unknown.any():
        raise AnnotationError(
            "categories", f"{int(unknown.sum())} of {ids.size} ids", "category_id",
            f"one of {len(category_ids)} known ids", listing(np.unique(ids[unknown]).tolist()),
            "use the category ids of the same annotation file", kind="unknown_category",
        )  # fmt: skip
    return position


def training_image_indices(annotations: Annotations, filter_empty: bool = True) -> np.ndarray:
    """The images to train on, by detectron2's rule for DATALOADER.FILTER_EMPTY_ANNOTATIONS.

    Args:
        annotations: The training set.
        filter_empty: Leave out images that have no annotation, or crowd regions only.

    Returns:
        Ascending int64 image indices.

    Raises:
        AnnotationError: Nothing is left to train on.
    """
    if not filter_empty:
        indices = np.arange(annotations.num_images, dtype=np.int64)
    else:
        indices = np.unique(annotations.annotation_image[~annotations.iscrowd]).astype(np.int64)
    if not len(indices):
        raise AnnotationError(
            annotations.path, "file", "annotations", "images to train on",
            f"{annotations.num_images} images, none with an object" if filter_empty else "no image",
            "train on a file with annotated objects", kind="nothing_to_train_on",
        )  # fmt: skip
    return indices


def check_same_categories(train: Annotations, other: Annotations) -> None:
    """Make sure that class ids mean the same in two files.

    Raises:
        AnnotationError: Ids or names differ; a detector trained on one cannot be evaluated on the other.
    """
    a = list(zip(train.category_ids.tolist(), train.category_names, strict=True))
    b = list(zip(other.category_ids.tolist(), other.category_names, strict=True))
    if a == b:
        return
    mine = set(a)
    first = next((category for category in b if category not in mine), None)
    found = f"{first[0]} {first[1]!r}" if first else f"{len(b)} of them"
    raise AnnotationError(
        other.path, "categories", "id, name", f"the {len(a)} ids and names of {train.path}", found,
        "give both files the same list of categories", kind="categories_differ",
    )  # fmt: skip


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
