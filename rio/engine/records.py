"""Annotation columns -> detectron2's records, built one at a time; data set names -> its catalogs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from rio.data.annotations import Annotations
from rio.data.errors import AnnotationError
from rio.data.masks import rle_of
from rio.data.names import annotations_of


def resolve(name: str) -> str:
    """Make a data set (`rio.data.names`) known to detectron2 under its name, which it returns; read again if it
    changed.

    The catalog's function returns the lazy `Records`. Beside detectron2's usual metadata there are
    ``class_image_count`` (per class a dict of id, image_count, instance_count) and ``frequency`` (per class r, c or f).
    An entry that detectron2 itself has under the name is replaced. Raises what `rio.data.names.annotations_of` raises.
    """
    annotations = annotations_of(name)
    if name in DatasetCatalog and MetadataCatalog.get(name).get("annotations") is annotations:
        return name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)
    DatasetCatalog.register(name, lambda: records(annotations_of(name)))
    ids = annotations.category_ids.tolist()
    counts = zip(ids, annotations.image_count.tolist(), annotations.instance_count.tolist(), strict=True)
    MetadataCatalog.get(name).set(
        annotations=annotations,
        json_file=annotations.path,
        image_root=annotations.image_root,
        evaluator_type="lvis",
        thing_classes=list(annotations.category_names),
        thing_dataset_id_to_contiguous_id={category_id: k for k, category_id in enumerate(ids)},
        class_image_count=[dict(zip(("id", "image_count", "instance_count"), row, strict=True)) for row in counts],
        frequency=annotations.frequency.tolist(),
    )
    return name


class Records(Sequence[dict[str, Any]]):
    """detectron2's dataset dicts, each built when it is asked for: equal to what its ``load_lvis_json`` gives.

    Never a list: 1.3 million dicts take gigabytes in every loader worker, arrays are shared. Each dict is new. Crowd
    regions are left out (`num_crowd` of them): they outline groups, not objects to learn.
    """

    def __init__(self, annotations: Annotations) -> None:
        self.annotations = annotations
        self._rows = np.flatnonzero(~annotations.iscrowd)
        self._offsets = np.searchsorted(self._rows, annotations.image_offsets)
        self.num_crowd = annotations.num_annotations - len(self._rows)

    def __len__(self) -> int:
        return self.annotations.num_images

    def __getitem__(self, index: int | slice) -> Any:
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
        found = {
            "bbox": columns.boxes[row].tolist(),
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": int(columns.annotation_class[row]),
        }
        segmentation = columns.segmentation(row)
        if isinstance(segmentation, dict):  # detectron2 reads compressed ones only
            segmentation = rle_of(segmentation, *segmentation["size"])
        return found if segmentation is None else found | {"segmentation": segmentation}

    def __repr__(self) -> str:
        return f"Records({self.annotations!r}, {self.num_crowd} crowd regions left out)"


def records(annotations: Annotations) -> Records:
    """detectron2's dataset dicts, one per image; an AnnotationError without an image folder."""
    if annotations.image_root is None:
        raise AnnotationError(
            annotations.path, "file", "file_name", "an image folder", "none given",
            "call load_annotations(path, image_root=FOLDER)", kind="no_image_root",
        )  # fmt: skip
    return Records(annotations)


def rarer_half(annotations: Annotations) -> int:
    """The most images of a class of the rarer half: at least half of the classes with an image have 1 to that many.

    What MODEL.RIO.BANK_MAX_IMAGE_COUNT 0 stands for; on LVIS v1 46 % of the classes have at most the reference's 30.
    """
    counts = np.sort(annotations.image_count[annotations.image_count > 0])
    return int(counts[(len(counts) - 1) // 2]) if len(counts) else 1


def target_class_ids(annotations: Annotations, max_image_count: int) -> list[int]:
    """Ascending 0-based class ids that the memory bank stores: 1 <= image_count <= `max_image_count`."""
    if max_image_count < 0:
        raise ValueError(f"max_image_count (MODEL.RIO.BANK_MAX_IMAGE_COUNT): expected >= 0, found {max_image_count}")
    counts = annotations.image_count
    return np.flatnonzero((counts >= 1) & (counts <= max_image_count)).tolist()


def fractal_dimensions(annotations: Annotations) -> list[float]:
    """The box-counting dimension, 1..2, of the centres of each class's objects within their images, for FRACAL.

    The least-squares slope of ln(occupied cells) over ln G, for grids of G x G cells, G = 1..64, with G * G at most the
    class's number of objects; at least 1, and 1 for fewer than 4 objects. Crowd regions do not count.
    """
    kept = ~annotations.iscrowd
    columns = annotations.annotation_class, annotations.annotation_image, annotations.boxes
    category, image, boxes = (column[kept] for column in columns)
    size = np.stack([annotations.image_width, annotations.image_height], axis=1)[image]
    centre, number = (boxes[:, :2] + boxes[:, 2:] / 2) / size, len(annotations.category_ids)
    count, sides = np.bincount(category, minlength=number), np.arange(1, 65)
    occupied = np.zeros((len(sides), number))
    for row, side in enumerate(sides.tolist()):
        rows = count[category] >= side * side
        cell = np.clip((centre[rows] * side).astype(np.int64), 0, side - 1)
        cells = np.zeros((number, side, side), dtype=bool)
        cells[category[rows], cell[:, 0], cell[:, 1]] = True
        occupied[row] = cells.sum(axis=(1, 2))
    used = sides[:, None] ** 2 <= count
    x, y, n = np.log(sides)[:, None] * used, np.log(np.maximum(occupied, 1)), np.maximum(used.sum(0), 1)
    spread = (x**2).sum(0) - x.sum(0) ** 2 / n
    slope = np.divide((x * y).sum(0) - x.sum(0) * y.sum(0) / n, spread, out=np.ones(number), where=spread > 0)
    return np.maximum(slope, 1).round(6).tolist()
