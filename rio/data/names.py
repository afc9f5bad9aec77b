"""Data set names -> annotation columns: the one place that knows the names, and where their files lie.

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
"""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rio.data.annotations import Annotations
from rio.data.load import load_annotations
from rio.data.rules import require_images

__all__ = [
    "DatasetNameError",
    "DatasetNotFoundError",
    "annotations_of",
    "browse",
    "datasets_root",
    "find",
    "find_datasets",
    "project_root",
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
    on_error: Literal["raise", "skip"]
    shapes: tuple[str, str] | None  # size and split of the embedded set to draw, if it is one
    own: bool  # given by path


_loaded: dict[_Source, tuple[tuple[int, int, int], Annotations]] = {}


def datasets_root() -> str:
    """The folder of all named data sets: DETECTRON2_DATASETS, or ``datasets`` in the working directory."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS") or "datasets")


def _lvis_splits() -> dict[str, tuple[str, str]]:
    """detectron2's names for LVIS, each with image folder and annotation file below `datasets_root`."""
    files = {f"lvis_{v}_{split}": f"lvis_{v}_{split}" for v in ("v1", "v0.5") for split in ("train", "val")}
    files |= {f"lvis_v1_{split}": f"lvis_v1_image_info_{split}" for split in ("test_dev", "test_challenge")}
    files |= {"lvis_v0.5_val_rand_100": "lvis_v0.5_val_rand_100", "lvis_v0.5_test": "lvis_v0.5_image_info_test"}
    files |= {name: name for name in ("lvis_v0.5_train_cocofied", "lvis_v0.5_val_cocofied")}
    return {name: ("coco/", f"lvis/{file}.json") for name, file in files.items()}


def _shapes_splits() -> dict[str, tuple[str, str]]:
    return {f"shapes_{size}_{split}": (size, split) for size in SHAPES for split in _SHAPES_SPLITS}


def _source(name: str, root: str | None = None) -> _Source:
    """Reads a name; touches no file. `root` stands in for `datasets_root()`.

    Raises:
        DatasetNameError: None of the accepted forms.
    """
    if not isinstance(name, str):
        raise DatasetNameError(f"data set name: expected a string, found {name!r}")
    root = root or datasets_root()
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
        on_error: Literal["raise", "skip"] = "skip" if images.endswith(_SKIP) else "raise"
        images = images.removesuffix(_SKIP)
        if path and images:
            return _Source(os.path.expanduser(path + ".json"), os.path.expanduser(images), on_error, None, True)
    known = [*shapes, *lvis]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    if name.endswith(".json"):
        hint = f" Name its image folder too: '{name}@path/to/images'."
    raise DatasetNameError(
        f"data set name: expected one of {', '.join(known)}, or 'path/to/file.json@path/to/images' (LVIS or "
        f"COCO format), found {name!r}.{hint}"
    )


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


def project_root() -> Path:
    """The nearest folder above that holds rio's configs; else the repository that rio was imported from; else here."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "configs" / "base").is_dir() and (folder / "rio").is_dir():
            return folder
    return here


def find(path: str | os.PathLike[str]) -> Path:
    """A path as a notebook means it: absolute, or relative to the notebook or to the top of the repository."""
    given = Path(path).expanduser()
    return given if given.is_absolute() or given.exists() else project_root() / given


def browse(name: str | os.PathLike[str], *, segmentations: bool = False) -> tuple[Annotations, bool]:
    """A data set to look at rather than to train on: as `annotations_of`, with less asked of it.

    Args:
        name: as for `annotations_of`, or "path/to/file.json" without images. Paths are resolved by `find`. Image files
            may be missing.
        segmentations: read masks too; takes longer on large files.

    Returns:
        The columns, and whether it is an embedded set.

    Raises:
        DatasetNameError, DatasetNotFoundError, AnnotationError: as for `annotations_of`.
    """
    text = os.fspath(name)
    root, file = str(find(datasets_root())), text.removesuffix(_SKIP)
    if file.endswith(".json"):
        source = _Source(str(find(file)), "", "skip" if text.endswith(_SKIP) else "raise", None, True)
    else:
        source = _source(text, root)
        if source.own:
            source = source._replace(json_file=str(find(source.json_file)), image_root=str(find(source.image_root)))
    if source.shapes is not None:
        _draw(*source.shapes, root, progress=False)
    for path in filter(None, [source.json_file, source.image_root if source.own else ""]):
        if not os.path.exists(path):
            raise _not_found(text, source, path)
    found = load_annotations(
        source.json_file, image_root=source.image_root or None, on_error=source.on_error, segmentations=segmentations
    )
    return found, source.shapes is not None


def _draw(size: str, split: str, root: str | None = None, *, progress: bool = True) -> None:
    from rio.shapes import dataset, spec  # needed only here; OpenCV takes a while to import

    dataset.generate(root or datasets_root(), spec.SPECS[size], split, progress=progress)


def _not_found(name: str, source: _Source, path: str) -> DatasetNotFoundError:
    where = f"{path} (that is {os.path.abspath(path)})" if not os.path.isabs(path) else path
    if source.own:
        remedy = "give paths that are absolute or relative to the working directory, as 'file.json@image_folder'"
    else:
        remedy = (
            "put the file there (detectron2's layout: lvis/*.json and coco/*2017/ below one folder), or set "
            "the environment variable DETECTRON2_DATASETS to that folder (now "
            f"{os.getenv('DETECTRON2_DATASETS')!r}, which means {os.path.abspath(datasets_root())})"
        )
    return DatasetNotFoundError(f"data set {name!r}: expected {where}, found nothing there. Fix: {remedy}.")


def _log_skipped(annotations: Annotations) -> None:
    if annotations.skipped:
        counts = ", ".join(f"{kind} {count}" for kind, count in annotations.skipped_counts().items())
        first = annotations.skipped[0]
        logger.warning(
            "%s: left out %d records (%s); the first: %s, %s",
            annotations.path, len(annotations.skipped), counts, first.record, first.detail,
        )  # fmt: skip


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
