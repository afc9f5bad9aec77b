"""Data set names -> annotation columns: the one place that knows the names, and where their files lie.

A name in DATASETS.TRAIN or DATASETS.TEST is one of

- ``lvis_v1_train``, ``lvis_v0.5_val``, ...: detectron2's own LVIS names, below the folder that the environment variable
  DETECTRON2_DATASETS names (default ``./datasets``), laid out as detectron2 documents it: ``lvis/lvis_v1_train.json``
  and ``coco/train2017/*.jpg``. Broken records are left out, listed and logged: nobody can correct these files.
- ``shapes_demo_train``, ``shapes_demo_val``, the same of ``tail`` and ``bench``: the embedded synthetic sets, drawn on
  first use into the same folder; of each also ``_tune``, to choose settings by, and ``_balanced``, a training set
  without the tail (see `rio.shapes`).
- ``path/to/train.json@path/to/images``: any LVIS- or COCO-format file with its image folder. A broken record is an
  error; with ``?skip`` at the end it is left out, listed and logged.

``?groups=5,20`` at the end of a training set's name has a class in up to 5 of its images count as rare and in up to 20
as common, in place of LVIS's 10 and 100 and of what the file declares; ``?skip&groups=5,20`` is both.
"""

import dataclasses
import difflib
import itertools
import logging
import os
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rio.data.annotations import Annotations
from rio.data.load import load_annotations
from rio.data.locate import resolved
from rio.data.rules import missing_images, require_images

logger = logging.getLogger(__name__)

SHAPES = ("demo", "tail", "bench")
_LVIS = [f"lvis_{v}_{split}" for v in ("v1", "v0.5") for split in ("train", "val")]
_LVIS += ["lvis_v1_test_dev", "lvis_v1_test_challenge", "lvis_v0.5_val_rand_100", "lvis_v0.5_test"]
_LVIS += ["lvis_v0.5_train_cocofied", "lvis_v0.5_val_cocofied"]
_OPTIONS = re.compile(r"\?([a-z]+(?:[=&][^/?]*)?)$")
_GROUPS = re.compile(r"groups=(\d{1,9}),(\d{1,9})")


class DatasetNameError(ValueError):
    """A name that has none of the accepted forms. The message lists them."""


class DatasetNotFoundError(FileNotFoundError):
    """A data set's file is not there. The message names the path looked at and the fix."""


class _Source(NamedTuple):
    """What a name stands for."""

    json_file: str
    image_root: str
    on_error: Literal["raise", "skip"]
    shapes: tuple[str, str] | None = None  # size and split of the embedded set to draw, if it is one
    own: bool = False  # given by path
    borders: tuple[int, int] | None = None  # of the frequency groups


_loaded: dict[_Source, tuple[tuple[int, int, int], Annotations]] = {}


def datasets_root() -> str:
    """The folder of all named data sets: DETECTRON2_DATASETS, or ``datasets`` in the working directory."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS") or "datasets")


def _named(root: str) -> dict[str, _Source]:
    """All data sets that have a name, below a folder."""
    named = {}
    for size, split in itertools.product(SHAPES, ("train", "val", "tune", "balanced")):
        name = f"shapes_{size}_{split}"
        folder = os.path.join(root, f"shapes_{size}" if split in ("train", "val") else name)
        files = os.path.join(folder, f"{split}.json"), os.path.join(folder, split)
        named[name] = _Source(*files, "raise", shapes=(size, split))
    for name in _LVIS:
        file = name.replace("_test", "_image_info_test")  # which lists images only
        named[name] = _Source(os.path.join(root, f"lvis/{file}.json"), os.path.join(root, "coco/"), "skip")
    return named


def split_options(name: str) -> tuple[str, Literal["raise", "skip"], tuple[int, int] | None]:
    """What stands before the ``?`` of a name or path; ``on_error`` and the groups' borders that stand behind it. A
    DatasetNameError for options other than those of the module's docstring.

    >>> split_options("my/train.json@my/images?skip&groups=5,20")
    ('my/train.json@my/images', 'skip', (5, 20))
    """
    found = _OPTIONS.search(name)
    if found is None:
        return name, "raise", None
    words = found[1].split("&")
    groups = [match for word in words if (match := _GROUPS.fullmatch(word))]
    borders = (int(groups[0][1]), int(groups[0][2])) if len(groups) == 1 else None
    if (
        len(words) != words.count("skip") + len(groups)
        or len(groups) > 1
        or (borders and not 0 < borders[0] < borders[1])
    ):
        raise DatasetNameError(
            f"data set name {name!r}: expected ?skip or ?groups=R,C at its end (a class in 1 to R training images is "
            f"rare, up to C common, 0 < R < C), found ?{found[1]}. Fix: for example ?groups=5,20, or ?skip&groups=5,20"
        )
    return name[: found.start()], "skip" if "skip" in words else "raise", borders


def _source(name: str, root: str) -> _Source:
    """What a name stands for, touching no file; a DatasetNameError where it has none of the accepted forms."""
    if not isinstance(name, str):
        raise DatasetNameError(f"data set name: expected a string, found {name!r}")
    named = _named(root)
    name, on_error, borders = split_options(name)
    if name in named:
        return named[name]._replace(borders=borders)
    path, suffix, images = [*re.split(r"(\.json)@", name, maxsplit=1, flags=re.I), "", ""][:3]
    if path and images:
        files = os.path.expanduser(path + suffix), os.path.expanduser(images)
        return _Source(*files, on_error, own=True, borders=borders)
    close = difflib.get_close_matches(name, named, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    if name.lower().endswith(".json"):
        hint = f" Name its image folder too: '{name}@path/to/images'."
    raise DatasetNameError(
        f"data set name: expected one of {', '.join(named)}, or 'path/to/file.json@path/to/images' (LVIS or "
        f"COCO format), found {name!r}.{hint}"
    )


def annotations_of(name: str, *, check_images: bool = False) -> Annotations:
    """The annotations of a named data set, read once a process as long as the file stays the same: the same object
    then.

    An embedded set that is not there is drawn. `check_images` makes sure that all image files are there, before a long
    training finds out; that is always done for data sets given by path.

    Raises:
        DatasetNameError: The name has none of the accepted forms.
        DatasetNotFoundError: No file there; put it there, or set DETECTRON2_DATASETS.
        AnnotationError: The file breaks a rule of `rio.data.load`.
    """
    source = _source(name, datasets_root())
    if source.shapes is not None and (source not in _loaded or not os.path.isfile(source.json_file)):
        _draw(*source.shapes)
    _require(name, source, source.json_file)
    if source.own or check_images:
        _require(name, source, source.image_root)
    status = os.stat(source.json_file)
    stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
    if source not in _loaded or _loaded[source][0] != stamp:
        # The file of a test set lists images only; detectors can predict on it.
        complete = "image_info" not in os.path.basename(source.json_file)
        found = load_annotations(
            source.json_file, image_root=source.image_root, check_images=source.own, on_error=source.on_error,
            require_annotations=complete,
        )  # fmt: skip
        if found.skipped:
            counts = ", ".join(f"{kind} {count}" for kind, count in found.skipped_counts().items())
            first = f"{found.skipped[0].record}, {found.skipped[0].detail}"
            logger.warning("%s: left out %d records (%s); the first: %s", found.path, len(found.skipped), counts, first)
        for text in repairs(found):
            logger.warning("%s: %s", found.path, text)
        _loaded[source] = (stamp, found.with_borders(source.borders))
    annotations = _loaded[source][1]
    if check_images and not source.own:
        require_images(annotations)
    return annotations


def repairs(annotations: Annotations) -> list[str]:
    """Which records were taken for what they mean, a line a kind, and where to read all of it."""
    lines = []
    for finding in annotations.repaired:
        record, key, found = finding.examples[0]
        lines.append(f"{finding.kind} {finding.count}, as in {record}, key '{key}': {found}, taken for {finding.taken}")
    return [*lines, "`python -m rio check` lists them"] if lines else []


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
    """A data set to look at rather than to train on: as `annotations_of`, with less asked of it. And whether it is
    embedded.

    The name can be "path/to/file.json" without images, too. Paths are resolved by `find`; image files may be missing.
    To read masks (`segmentations`) takes longer on large files.
    """
    text = os.fspath(name)
    root, (file, on_error, borders) = str(find(datasets_root())), split_options(text)
    if file.lower().endswith(".json"):
        source = _Source(str(find(file)), "", on_error, own=True, borders=borders)
    else:
        source = _source(text, root)
        if source.own:
            source = source._replace(json_file=str(find(source.json_file)), image_root=str(find(source.image_root)))
    if source.shapes is not None:
        _draw(*source.shapes, root, progress=False)
    _require(text, source, source.json_file)
    if source.own and source.image_root:
        _require(text, source, source.image_root)
    found = load_annotations(
        source.json_file, image_root=source.image_root or None, on_error=source.on_error, segmentations=segmentations
    )
    if source.own and source.image_root and len(missing := missing_images(found)):  # in another spelling, perhaps
        there = resolved(source.image_root, found.file_names, missing)
        names = [there.get(row, name) for row, name in enumerate(found.file_names)]
        found = dataclasses.replace(found, file_names=names)
    return found.with_borders(source.borders), source.shapes is not None


def _draw(size: str, split: str, root: str | None = None, *, progress: bool = True) -> None:
    from rio.shapes import dataset, spec  # needed only here; OpenCV takes a while to import

    dataset.generate(root or datasets_root(), spec.SPECS[size], split, progress=progress)


def _require(name: str, source: _Source, path: str) -> None:
    if os.path.exists(path):
        return
    where = f"{path} (that is {os.path.abspath(path)})" if not os.path.isabs(path) else path
    fix = "give paths that are absolute or relative to the working directory, as 'file.json@image_folder'"
    if not source.own:
        fix = (
            "put the file there (detectron2's layout: lvis/*.json and coco/*2017/ below one folder), or set the "
            "environment variable DETECTRON2_DATASETS to that folder (now "
            f"{os.getenv('DETECTRON2_DATASETS')!r}, which means {os.path.abspath(datasets_root())})"
        )
    raise DatasetNotFoundError(f"data set {name!r}: expected {where}, found nothing there. Fix: {fix}.")


def find_datasets() -> list[dict[str, Any]]:
    """Which named data sets are there, for ``rio info``; reads and draws nothing. Dicts of ``name``, ``found`` (is the
    annotation file there) and ``looked_at`` (its absolute path).
    """
    paths = {name: os.path.abspath(source.json_file) for name, source in _named(datasets_root()).items()}
    return [{"name": name, "found": os.path.isfile(path), "looked_at": path} for name, path in paths.items()]
