"""An annotation file as columns."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from rio.data.errors import AnnotationError, Skipped

RARE_MAX_IMAGES = 10


COMMON_MAX_IMAGES = 100
GROUP_NAMES = {"r": "rare", "c": "common", "f": "frequent"}  # in this order wherever groups are listed


# The columns
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
        polygon_xy: (P,) float64, all polygons' x, y, x, y, ... one after the other.
        polygon_offsets: (Q + 1,) int64 into `polygon_xy`.
        annotation_polygons: (A + 1,) int64 into the polygons.
        rles: annotation index -> ``{"size": [h, w], "counts": list[int] | str}``, run-length encoded masks.
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
    polygon_xy: np.ndarray
    polygon_offsets: np.ndarray
    annotation_polygons: np.ndarray
    rles: dict[int, dict[str, Any]]
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
        return len(self.polygon_offsets) > 1 or bool(self.rles)

    @property
    def has_rle_objects(self) -> bool:
        """Whether objects, not crowd regions only, have RLE masks: these need INPUT.MASK_FORMAT bitmask."""
        return any(not self.iscrowd[i] for i in self.rles)

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
        polygons = self.polygons(annotation_index)
        if polygons:
            return [polygon.tolist() for polygon in polygons]
        rle = self.rles.get(int(annotation_index))
        return None if rle is None else dict(rle)

    def polygons(self, annotation_index: int) -> list[np.ndarray]:
        """One annotation's polygons without a copy.

        Args:
            annotation_index: 0..A-1.

        Returns:
            A float64 array [x, y, x, y, ...] in px for each; none where the mask is an RLE, or there is none.
        """
        if not 0 <= annotation_index < self.num_annotations:
            raise IndexError(f"annotation index: expected 0..{self.num_annotations - 1}, found {annotation_index}")
        first, last = self.annotation_polygons[annotation_index : annotation_index + 2].tolist()
        offsets = self.polygon_offsets[first : last + 1].tolist()
        return [self.polygon_xy[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]

    def image_path(self, image_index: int) -> str:
        """Where one image's file is.

        Raises:
            AnnotationError: There is no `image_root`; pass one to `load_annotations`.
        """
        if self.image_root is None:
            raise AnnotationError(
                self.path, f"image {self.image_ids[image_index]}", "file_name", "a folder of images",
                "none given", "call load_annotations(path, image_root=FOLDER)", kind="no_image_root",
            )  # fmt: skip
        return os.path.join(self.image_root, self.file_names[image_index])

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
        # The cached lists are rebuilt from the flat columns: no need to send them to a worker.
        names = {field.name for field in dataclasses.fields(self)}
        state = {name: value for name, value in self.__dict__.items() if name in names}
        if _is_starting_a_process():  # on this machine, now: it maps what this one has mapped
            state = {name: _by_reference(value) for name, value in state.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            self.__dict__[name] = _mapped(*value) if isinstance(value, _MappedColumn) else value

    def __repr__(self) -> str:
        return (
            f"Annotations({self.path!r}: {self.num_images} images, {self.num_annotations} annotations, "
            f"{self.num_classes} classes, {len(self.skipped)} skipped)"
        )


def _split(flat: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    values, bounds = flat.tolist(), offsets.tolist()
    return [values[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


# Small pure functions
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
        AnnotationError: An id that is not among the categories; add the category or mend the id.

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
            f"one of {len(category_ids)} known ids", _listing(np.unique(ids[unknown]).tolist()),
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


def _mapped(entry: str, dtype: str, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """A column of an entry, read-only. As an ordinary array: `np.memmap`'s own indexing is slow."""
    return np.memmap(entry, dtype=dtype, mode="r", offset=offset, shape=shape).view(np.ndarray)


def _by_reference(value: Any) -> Any:
    """A mapped column as where it lies, for a process started here; anything else as it is."""
    base = getattr(value, "base", None)
    if isinstance(value, np.ndarray) and isinstance(base, np.memmap) and base.nbytes == value.nbytes:
        return _MappedColumn(str(base.filename), base.dtype.str, base.offset, value.shape)
    return value


class _MappedColumn(NamedTuple):
    """Where a mapped column lies. An entry's name says what it holds: whoever writes it writes the same."""

    entry: str
    dtype: str
    offset: int
    shape: tuple[int, ...]


def _is_starting_a_process() -> bool:
    context = sys.modules.get("multiprocessing.context")
    return context is not None and context.get_spawning_popen() is not None


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


def _listing(values: Iterable[int], most: int = 5) -> str:
    values = list(values)
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more
