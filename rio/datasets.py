"""Names -> detectron2's catalogs, and annotation columns -> detectron2's records, built one at a time.

A name in DATASETS.TRAIN or DATASETS.TEST is one of

- ``lvis_v1_train``, ``lvis_v0.5_val``, ...: detectron2's own LVIS names, below the folder that the
  environment variable DETECTRON2_DATASETS names (default ``./datasets``), laid out as detectron2 documents
  it: ``lvis/lvis_v1_train.json`` and ``coco/train2017/*.jpg``. Broken records of these files are left out,
  listed and logged: nobody can mend them.
- ``shapes_demo_train``, ``shapes_demo_val``, ``shapes_bench_train``, ``shapes_bench_val``: the embedded
  synthetic sets, drawn on first use into the same folder; and of each ``shapes_demo_tune``, to choose
  settings by, and ``shapes_demo_balanced``, a training set without the tail (see `rio.shapes`).
- ``path/to/train.json@path/to/images``: any LVIS- or COCO-format file with its image folder. A broken record
  is an error; with ``?skip`` at the end it is left out, listed and logged. The name says all, so a dumped
  config.yaml is complete.

Shapes: I images, A annotations, K categories.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import _PREDEFINED_SPLITS_LVIS
from detectron2.structures import BoxMode

from rio.annotations import (
    AnnotationError,
    Annotations,
    load_annotations,
    require_images,
    training_image_indices,
)

__all__ = [
    "DatasetNameError",
    "DatasetNotFoundError",
    "Records",
    "annotations_of",
    "datasets_root",
    "find_datasets",
    "records",
    "resolve",
    "target_class_ids",
    "training_image_indices",
]

logger = logging.getLogger(__name__)

SHAPES = ("demo", "bench")
_SHAPES_SPLITS = ("train", "val", "tune", "balanced")
_SKIP = "?skip"


class DatasetNameError(ValueError):
    """A name that is none of the accepted forms. The message lists them."""


class DatasetNotFoundError(FileNotFoundError):
    """A data set's file is not there. The message names the path looked at and the remedy."""


class _Source(NamedTuple):
    """What a name stands for."""

    json_file: str
    image_root: str
    on_error: str
    shapes: tuple[str, str] | None  # size and split of the embedded set to draw, if it is one
    own: bool  # given by path


_loaded: dict[_Source, tuple[tuple[int, int, int], Annotations]] = {}
_registered: dict[str, Annotations] = {}


def datasets_root() -> str:
    """The folder of all named data sets: DETECTRON2_DATASETS, or ``datasets`` in the working directory."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS") or "datasets")


def _lvis_splits() -> dict[str, tuple[str, str]]:
    return {name: split for group in _PREDEFINED_SPLITS_LVIS.values() for name, split in group.items()}


def _shapes_splits() -> dict[str, tuple[str, str]]:
    return {f"shapes_{size}_{split}": (size, split) for size in SHAPES for split in _SHAPES_SPLITS}


def _source(name: str) -> _Source:
    """Reads a name; touches no file.

    Raises:
        DatasetNameError: None of the accepted forms.
    """
    if not isinstance(name, str):
        raise DatasetNameError(f"data set name: expected a string, found {name!r}")
    root = datasets_root()
    lvis, shapes = _lvis_splits(), _shapes_splits()
    if name in lvis:
        image_root, json_file = (os.path.join(root, part) for part in lvis[name])
        return _Source(json_file, image_root, "skip", None, False)
    if name in shapes:
        size, split = shapes[name]
        folder = os.path.join(root, f"shapes_{size}" if split in ("train", "val") else name)
        return _Source(
            os.path.join(folder, f"{split}.json"), os.path.join(folder, split), "raise", (size, split), False
        )
    path, separator, images = name.partition(".json@")
    if separator:
        on_error = "skip" if images.endswith(_SKIP) else "raise"
        images = images.removesuffix(_SKIP)
        if path and images:
            return _Source(
                os.path.expanduser(path + ".json"), os.path.expanduser(images), on_error, None, True
            )
    known = [*shapes, *lvis]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    if name.endswith(".json"):
        hint = f" Name its image folder too: '{name}@path/to/images'."
    raise DatasetNameError(
        f"data set name: expected one of {', '.join(known)}, or 'path/to/file.json@path/to/images' (LVIS or "
        f"COCO format), found {name!r}.{hint}"
    )


def resolve(name: str) -> str:
    """Makes a data set known to detectron2 under its name; does nothing where that is done.

    The catalog's function builds no list: it returns the lazy `Records`. The metadata has ``json_file``,
    ``image_root``, ``evaluator_type`` "lvis", ``thing_classes``, ``thing_dataset_id_to_contiguous_id``,
    ``class_image_count`` (a dict of id, image_count, instance_count a class) and ``frequency`` (r, c, f a
    class). Where detectron2 itself has an entry of the name, ours takes its place. A file that changed on
    disk is read again.

    Args:
        name: See the module's docstring.

    Returns:
        The name.

    Raises:
        DatasetNameError: None of the accepted forms.
        DatasetNotFoundError: No file there; put it there, or set DETECTRON2_DATASETS.
        AnnotationError: The file breaks a rule of `rio.annotations`.
    """
    annotations = annotations_of(name)
    if _registered.get(name) is annotations and name in DatasetCatalog:
        return name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)
    DatasetCatalog.register(name, lambda: records(annotations_of(name)))
    category_ids = annotations.category_ids.tolist()
    counts = zip(
        category_ids, annotations.image_count.tolist(), annotations.instance_count.tolist(), strict=True
    )
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


def annotations_of(name: str, *, check_images: bool = False) -> Annotations:
    """The annotations of a named data set, read once a process as long as the file stays the same.

    Args:
        name: See the module's docstring. An embedded set that is not there is drawn.
        check_images: Make sure that all image files are there, before a long training finds out. Always done
            for data sets given by path.

    Returns:
        The columns; the same object for the same file.

    Raises:
        DatasetNameError, DatasetNotFoundError, AnnotationError: As for `resolve`.
    """
    source = _source(name)
    if source.shapes is not None and (source not in _loaded or not os.path.isfile(source.json_file)):
        _draw(*source.shapes)
    try:
        status = os.stat(source.json_file)
    except (FileNotFoundError, NotADirectoryError):
        raise _not_found(name, source, source.json_file) from None
    stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
    cached = _loaded.get(source)
    if cached is not None and cached[0] == stamp:
        annotations = cached[1]
    else:
        if source.own and not os.path.isdir(source.image_root):
            raise _not_found(name, source, source.image_root)
        annotations = load_annotations(
            source.json_file,
            image_root=source.image_root,
            check_images=source.own,
            on_error=source.on_error,
            # The file of a test set ("image_info_test") lists images only; detectors can predict on it.
            require_annotations="image_info" not in os.path.basename(source.json_file),
        )
        _log_skipped(annotations)
        _loaded[source] = (stamp, annotations)
    if check_images and not source.own:
        if not os.path.isdir(source.image_root):
            raise _not_found(name, source, source.image_root)
        require_images(annotations)
    return annotations


def _draw(size: str, split: str) -> None:
    from rio import shapes  # needed only here; OpenCV takes a while to import

    spec = shapes.SPECS[size]
    if spec.name != f"shapes_{size}":
        raise RuntimeError(f"shapes.SPECS[{size!r}].name: expected 'shapes_{size}', found {spec.name!r}")
    if split in shapes.EXTRA_SPLITS:
        shapes.generate_extra(datasets_root(), spec, split)
    else:
        shapes.generate(datasets_root(), spec)


def _not_found(name: str, source: _Source, path: str) -> DatasetNotFoundError:
    where = f"{path} (that is {os.path.abspath(path)})" if not os.path.isabs(path) else path
    if source.own:
        remedy = (
            "give paths that are absolute or relative to the working directory, as 'file.json@image_folder'"
        )
    else:
        remedy = (
            "put the file there (detectron2's layout: lvis/*.json and coco/*2017/ below one folder), or set "
            "the environment variable DETECTRON2_DATASETS to that folder (now "
            f"{os.getenv('DETECTRON2_DATASETS')!r}, which means {os.path.abspath(datasets_root())})"
        )
    return DatasetNotFoundError(
        f"data set {name!r}: expected {where}, found nothing there. Remedy: {remedy}."
    )


def _log_skipped(annotations: Annotations) -> None:
    if annotations.skipped:
        counts = ", ".join(f"{kind} {count}" for kind, count in annotations.skipped_counts().items())
        first = annotations.skipped[0]
        logger.warning(
            "%s: left out %d records (%s); the first: %s, %s",
            annotations.path, len(annotations.skipped), counts, first.record, first.detail,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------
# Records
# ------------------------------------------------------------------------------------------------------------


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
        rest = columns.not_exhaustive_ids[
            columns.not_exhaustive_offsets[i] : columns.not_exhaustive_offsets[i + 1]
        ]
        return {
            "file_name": columns.image_path(i),
            "height": int(columns.image_height[i]),
            "width": int(columns.image_width[i]),
            "not_exhaustive_category_ids": rest.tolist(),
            "neg_category_ids": neg.tolist(),
            "image_id": int(columns.image_ids[i]),
            "annotations": [
                self._object(row) for row in self._rows[self._offsets[i] : self._offsets[i + 1]].tolist()
            ],
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
        raise ValueError(
            f"max_image_count (MODEL.RIO.BANK_MAX_IMAGE_COUNT): expected >= 0, found {max_image_count}"
        )
    counts = annotations.image_count
    return np.flatnonzero((counts >= 1) & (counts <= max_image_count)).tolist()


def find_datasets() -> list[dict[str, Any]]:
    """Which named data sets are there, for ``rio info``; reads and draws nothing.

    Returns:
        A dict a name: ``name``, ``found`` (is the annotation file there), ``looked_at`` (its absolute path).
    """
    rows = []
    for name in (*_shapes_splits(), *_lvis_splits()):
        path = os.path.abspath(_source(name).json_file)
        rows.append({"name": name, "found": os.path.isfile(path), "looked_at": path})
    return rows
