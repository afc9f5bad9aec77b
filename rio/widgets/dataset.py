"""Data sets for the notebooks, found by name or path without detectron2.

I: images, A: annotations, K: categories.
"""

from __future__ import annotations

import dataclasses
import html
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from rio.analysis import distribution
from rio.data.annotations import Annotations
from rio.data.load import load_annotations
from rio.widgets import theme as _theme

SHAPES = ("demo", "bench")
SPLITS = ("train", "val", "tune", "balanced")


class DatasetError(ValueError):
    """A name that is no data set, or files that are not there; the message says where was looked and what to
    do."""


def project_root() -> Path:
    """The repository that the notebook lies in: the nearest folder above with rio's configs; else the one
    that rio was imported from, for a notebook that was copied elsewhere; else where we are."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "configs" / "base").is_dir() and (folder / "rio").is_dir():
            return folder
    return here


def find(path: str | os.PathLike[str]) -> Path:
    """A path as a user means it: absolute, or relative to the notebook or to the top of the repository."""
    given = Path(path).expanduser()
    if given.is_absolute() or given.exists():
        return given
    return project_root() / given


def datasets_root() -> Path:
    """The folder of all named data sets: DETECTRON2_DATASETS, else `datasets` at the top of the
    repository."""
    named = os.environ.get("DETECTRON2_DATASETS")
    return Path(named).expanduser() if named else find("datasets")


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set as the notebooks see it.

    Attributes:
        name: as it was asked for.
        annotations: its columns.
        embedded: whether it is the synthetic set that comes with rio.
    """

    name: str
    annotations: Annotations
    embedded: bool

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a category: category_id, name, frequency, image_count, instance_count."""
        return distribution.category_table(self.annotations)

    def per_image(self) -> pd.DataFrame:
        """One row per image: image_id, objects, categories, and the group of its rarest category, `rarest`."""
        return distribution.per_image(self.annotations)

    def sizes(self) -> pd.DataFrame:
        """One row per object: frequency, and `side`, the root of its share of the image's area, in percent."""
        return distribution.sizes(self.annotations)

    def company(self, group: str = "r") -> pd.DataFrame:
        """Which categories share images with those of a frequency group: `rio.analysis.distribution.company_of`."""
        return distribution.company_of(self.annotations, group)

    @cached_property
    def has_images(self) -> bool:
        """Whether the first image file is there (thumbnails can be cut)."""
        a = self.annotations
        return a.image_root is not None and a.num_images > 0 and os.path.isfile(a.image_path(0))

    def share(self, group: str, column: str | None = None) -> float:
        """Share of a frequency group ("r", "c", "f") in the categories, or in a column of `table`."""
        of_group = (self.table["frequency"] == group).to_numpy()
        weights = np.ones(len(of_group)) if column is None else self.table[column].to_numpy(float)
        return float(weights[of_group].sum() / weights.sum())

    def _repr_html_(self) -> str:
        a = self.annotations
        counts = self.table["frequency"].value_counts()
        tiles = [
            (f"{a.num_images:,}", "images"),
            (f"{int(a.instance_count.sum()):,}", "objects"),
            (f"{a.num_classes:,}", "categories"),
        ]
        cells = "".join(_tile(value, label) for value, label in tiles)
        cells += "".join(
            _tile(f"{int(counts.get(g, 0)):,}", f'<span class="rio-dot {g}"></span>{name} categories')
            for g, name in (("r", "rare"), ("c", "common"), ("f", "frequent"))
        )
        notes = [self.name]
        if self.embedded:
            notes.append("synthetic, drawn by rio: what it shows holds for this set")
        if not self.has_images:
            notes.append("no image files: counts and sizes, but no thumbnails")
        if a.skipped:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in a.skipped_counts().items())
            notes.append(f"{len(a.skipped):,} records left out ({kinds})")
        line = html.escape(" · ".join(notes))
        return (
            f'<div class="rio-view"><style>{_theme.STYLE}</style><div class="rio-tiles">{cells}</div>'
            f'<div class="rio-quiet">{line}</div></div>'
        )

    def __repr__(self) -> str:
        a = self.annotations
        counts = f"{a.num_images} images, {a.num_annotations} objects, {a.num_classes} categories"
        return f"Data({self.name!r}: {counts})"


def _tile(value: str, label: str) -> str:
    inner = f'<div class="rio-value">{value}</div><div class="rio-label">{label}</div>'
    return f'<div class="rio-tile">{inner}</div>'


@_theme.sentences
def open_dataset(name: str | os.PathLike[str], *, segmentations: bool = False) -> Data:
    """Open a data set by name or path.

    Args:
        name: "shapes_demo_train" and its like (the embedded sets, drawn if they are not there); detectron2's
            LVIS names, such as "lvis_v1_train", below the folder of data sets; "file.json@images" (LVIS or
            COCO format); or "file.json" alone, without thumbnails. Broken records of a file given by path are
            errors; "?skip" at the end leaves them out and says how many.
        segmentations: read masks too. Takes longer on large files.

    Returns:
        The data set. It shows itself as the last line of a cell.

    Raises:
        NotebookError: no such data set, or a file that breaks a rule of `rio.data.annotations`.
    """
    text = os.fspath(name)
    json_file, images, on_error, embedded = _where(text)
    annotations = load_annotations(
        json_file, image_root=None if images is None else str(images), on_error=on_error, segmentations=segmentations
    )
    if not annotations.instance_count.sum():
        raise DatasetError(f"{json_file}: expected annotated objects, found none. There is no distribution to look at.")
    return Data(text, annotations, embedded)


def _where(name: str) -> tuple[Path, Path | None, str, bool]:
    """JSON file, image folder, what to do about broken records, and whether it is an embedded set (then
    drawn)."""
    root = datasets_root()
    for size in SHAPES:
        for split in SPLITS:
            if name == f"shapes_{size}_{split}":
                folder = _draw(root, size, split)
                return folder / f"{split}.json", folder / split, "raise", True
    if name.startswith("lvis_") and "/" not in name and not name.endswith(".json"):
        file = root / "lvis" / f"{name}.json"
        if not file.is_file():
            raise DatasetError(
                f"data set {name!r}: expected {file}, found nothing there; put the file there (images below "
                f"{root / 'coco'}), set DETECTRON2_DATASETS to the folder that holds lvis/, or name a file: "
                "'path/to/file.json@path/to/images'"
            )
        # v0.5 names its images without the folder, v1 by coco_url, which holds it (as detectron2 has it).
        folder = "" if "_v1_" in name else "train2017" if name.endswith("train") else "val2017"
        return file, root / "coco" / folder, "skip", False
    path, _, images = name.partition(".json@")
    on_error = "skip" if name.endswith("?skip") else "raise"
    if images:
        file, folder = find(path + ".json"), find(images.removesuffix("?skip"))
        if not folder.is_dir():
            raise DatasetError(f"data set {name!r}: expected a folder of images at {folder}, found none")
        return file, folder, on_error, False
    file = name.removesuffix("?skip")
    if file.endswith(".json"):
        return find(file), None, on_error, False
    raise DatasetError(
        f"data set {name!r}: expected 'shapes_demo_train' (the embedded set), 'lvis_v1_train' and the like, "
        "'path/to/file.json@path/to/images' or 'path/to/file.json'"
    )


def _draw(root: Path, size: str, split: str) -> Path:
    """The folder that holds the split, drawn if it was not there."""
    from rio.shapes import dataset, spec  # OpenCV takes a while to import

    return dataset.generate(root, spec.SPECS[size], split, progress=False)
