"""Annotation columns -> detectron2's records, built one at a time; data set names -> its catalogs.

Shapes: I images, A annotations, K categories.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from rio.data.annotations import Annotations
from rio.data.errors import AnnotationError
from rio.data.names import annotations_of

__all__ = ["Records", "records", "resolve", "target_class_ids"]

_registered: dict[str, Annotations] = {}


def resolve(name: str) -> str:
    """Makes a data set known to detectron2 under its name; does nothing where that is done.

    The catalog's function builds no list: it returns the lazy `Records`. The metadata has ``json_file``,
    ``image_root``, ``evaluator_type`` "lvis", ``thing_classes``, ``thing_dataset_id_to_contiguous_id``,
    ``class_image_count`` (a dict of id, image_count, instance_count a class) and ``frequency`` (r, c, f a
    class). Where detectron2 itself has an entry of the name, ours takes its place. A file that changed on
    disk is read again.

    Args:
        name: See `rio.data.names`.

    Returns:
        The name.

    Raises:
        DatasetNameError: None of the accepted forms.
        DatasetNotFoundError: No file there; put it there, or set DETECTRON2_DATASETS.
        AnnotationError: The file breaks a rule of `rio.data.annotations`.
    """
    annotations = annotations_of(name)
    if _registered.get(name) is annotations and name in DatasetCatalog:
        return name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)
    DatasetCatalog.register(name, lambda: records(annotations_of(name)))
    category_ids = annotations.category_ids.tolist()
    counts = zip(category_ids, annotations.image_count.tolist(), annotations.instance_count.tolist(), strict=True)
    MetadataCatalog.get(name).set(
        json_file=annotations.path,
        image_root=annotations.image_root,
        evaluator_type="lvis",
        thing_classes=list(annotations.category_names),
        thing_dataset_id_to_contiguous_id={category_id: k for k, category_id in enumerate(category_ids)},
        class_image_count=[
            {"id": category_id, "image_count": images, "instance_count": instances}
            for category_id, images, instances in counts
        ],
        frequency=annotations.frequency.tolist(),
    )
    _registered[name] = annotations
    return name


class Records(Sequence[dict[str, Any]]):
    """detectron2's dataset dicts, each built when it is asked for, from the columns.

    Equal to what detectron2's ``load_lvis_json`` gives, but never held as a list: 1.3 million dicts take
    gigabytes in every loader worker, the columns are arrays that forked workers share. Each dict is a new
    one, so a mapper may change it. Crowd regions are left out (`num_crowd` of them): they outline groups,
    not objects to learn.

    Args:
        annotations: The data set, loaded with an `image_root`.
    """

    def __init__(self, annotations: Annotations) -> None:
        self.annotations = annotations
        self._rows = np.flatnonzero(~annotations.iscrowd)
        self._offsets = np.searchsorted(self._rows, annotations.image_offsets)

    @property
    def num_crowd(self) -> int:
        """How many crowd regions are left out."""
        return self.annotations.num_annotations - len(self._rows)

    def __len__(self) -> int:
        return self.annotations.num_images

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = int(index) + len(self) * (index < 0)
        if not 0 <= i < len(self):
            raise IndexError(f"record: expected -{len(self)}..{len(self) - 1}, found {index}")
        columns = self.annotations
        neg = columns.neg_ids[columns.neg_offsets[i] : columns.neg_offsets[i + 1]]
        rest = columns.not_exhaustive_ids[columns.not_exhaustive_offsets[i] : columns.not_exhaustive_offsets[i + 1]]
        return {
            "file_name": columns.image_path(i),
            "height": int(columns.image_height[i]),
            "width": int(columns.image_width[i]),
            "not_exhaustive_category_ids": rest.tolist(),
            "neg_category_ids": neg.tolist(),
            "image_id": int(columns.image_ids[i]),
            "annotations": [self._object(row) for row in self._rows[self._offsets[i] : self._offsets[i + 1]].tolist()],
        }

    def _object(self, row: int) -> dict[str, Any]:
        columns = self.annotations
        obj: dict[str, Any] = {
            "bbox": columns.boxes[row].tolist(),
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": int(columns.annotation_class[row]),
        }
        segmentation = columns.segmentation(row)
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
            # detectron2's mapper hands RLEs to pycocotools.decode, which reads the compressed form only.
            from pycocotools import mask

            segmentation = mask.frPyObjects(segmentation, *segmentation["size"])
        if segmentation is not None:
            obj["segmentation"] = segmentation
        return obj

    def __repr__(self) -> str:
        return f"Records({self.annotations!r}, {self.num_crowd} crowd regions left out)"


def records(annotations: Annotations) -> Records:
    """detectron2's dataset dicts of `annotations`: a sequence of I dicts, built lazily.

    Raises:
        AnnotationError: The annotations have no image folder; load them with `image_root`.
    """
    if annotations.image_root is None:
        raise AnnotationError(
            annotations.path, "file", "file_name", "an image folder", "none given",
            "call load_annotations(path, image_root=FOLDER)", kind="no_image_root",
        )  # fmt: skip
    return Records(annotations)


def target_class_ids(annotations: Annotations, max_image_count: int) -> list[int]:
    """The classes whose objects the memory bank stores: 1 <= image_count <= `max_image_count`.

    A class that the training set never shows has nothing to replay.

    Args:
        annotations: The training set.
        max_image_count: MODEL.RIO.BANK_MAX_IMAGE_COUNT, images, >= 0.

    Returns:
        Ascending class ids (0-based).

    Raises:
        ValueError: `max_image_count` is negative.
    """
    if max_image_count < 0:
        raise ValueError(f"max_image_count (MODEL.RIO.BANK_MAX_IMAGE_COUNT): expected >= 0, found {max_image_count}")
    counts = annotations.image_count
    return np.flatnonzero((counts >= 1) & (counts <= max_image_count)).tolist()
