"""Data sets for the notebooks, found by name or path without detectron2.

I: images, A: annotations, K: categories.
"""

from __future__ import annotations

import dataclasses
import html
import os
from functools import cached_property

import numpy as np
import pandas as pd

from rio.analysis import distribution
from rio.data.annotations import Annotations
from rio.data.names import browse, find, project_root  # noqa: F401  (the training panel's)
from rio.widgets import theme as _theme


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
    annotations, embedded = browse(name, segmentations=segmentations)
    if not annotations.instance_count.sum():
        raise ValueError(f"{annotations.path}: expected annotated objects, found none. Fix: give a file with objects.")
    return Data(os.fspath(name), annotations, embedded)
