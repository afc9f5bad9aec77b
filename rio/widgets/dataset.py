"""Data sets for the notebooks, found by name or path without detectron2."""

import dataclasses
import os
from functools import cached_property

import pandas as pd

from rio.analysis import distribution
from rio.data.annotations import GROUP_NAMES, Annotations
from rio.data.names import browse
from rio.widgets import theme


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
        """One row per category: category_id, name, frequency, image_count, instance_count."""
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
        weights = self.table[column] if column else pd.Series(1, self.table.index)
        return float(weights[self.table["frequency"] == group].sum() / weights.sum())

    def _repr_html_(self) -> str:
        a, counts = self.annotations, self.table["frequency"].value_counts()
        cells = [(a.num_images, "images"), (a.instance_count.sum(), "objects"), (a.num_classes, "categories")]
        cells += [(counts.get(g, 0), f"{g}|{name} categories") for g, name in GROUP_NAMES.items()]
        notes = [self.name] + ["synthetic, drawn by rio: what it shows holds for this set"] * self.embedded
        notes += ["no image files: counts and sizes, but no thumbnails"] * (not self.has_images)
        if a.skipped:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in a.skipped_counts().items())
            notes.append(f"{len(a.skipped):,} records left out ({kinds})")
        return theme.view(theme.tiles(cells, " · ".join(notes)))

    def __repr__(self) -> str:
        a = self.annotations
        return f"Data({self.name!r}: {a.num_images} images, {a.num_annotations} objects, {a.num_classes} categories)"


@theme.sentences
def open_dataset(name: str | os.PathLike[str]) -> Data:
    """Open a data set by name or path. It shows itself as the last line of a cell.

    Args:
        name: "shapes_demo_train" and the like (the embedded sets, drawn if they are missing); detectron2's LVIS names,
            such as "lvis_v1_train", below the folder of data sets; "file.json@images" (LVIS or COCO format); or
            "file.json", without thumbnails. Broken records of a file given by path are errors; "?skip" at the end
            leaves them out and says how many.

    Raises:
        NotebookError: no such data set, or a file that breaks a rule of `rio.data.rules`.
    """
    annotations, embedded = browse(name)
    if not annotations.instance_count.sum():
        raise ValueError(f"{annotations.path}: expected annotated objects, found none. Fix: give a file with objects.")
    return Data(os.fspath(name), annotations, embedded)
