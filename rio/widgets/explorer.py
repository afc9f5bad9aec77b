"""An explorer of a data set's categories: the tail and a table, thumbnails, and which categories appear together."""

from __future__ import annotations

import functools

import anywidget
import numpy as np
import pandas as pd
import traitlets

from rio.analysis.distribution import area_shares, image_class_pairs
from rio.data.images import read_image
from rio.widgets import theme as _theme
from rio.widgets.dataset import Data

THUMBNAILS_A_ROW = 5
THUMBNAILS_OF_ONE = 8
PARTNERS = 6


# ------------------------------------------------------------------------------------------------------- view


class Explorer(anywidget.AnyWidget):
    """The tail and a table of all categories; what is selected in one is selected in the other.

    Attributes:
        selected: class id (0-based) of the chosen category, -1: none.
    """

    _esm = (_theme.FOLDER / "chart.js").read_text("utf-8") + (_theme.FOLDER / "explorer.js").read_text("utf-8")
    _css = _theme.STYLE
    categories = traitlets.Dict().tag(sync=True)
    selected = traitlets.Int(-1).tag(sync=True)

    def __init__(self, data: Data, *, selected: int = -1) -> None:
        self._data = data
        super().__init__(categories=_columns(data), selected=selected)
        self.on_msg(self._answer)

    def _answer(self, _widget: object, message: dict, _buffers: object) -> None:
        classes = range(self._data.annotations.num_classes)
        if message.get("kind") == "crops":
            wanted = [int(k) for k in message.get("classes", []) if k in classes]
            self.send({"kind": "crops", "crops": {k: self.thumbnails(k, THUMBNAILS_A_ROW) for k in wanted}})
        elif message.get("kind") == "detail" and message.get("index") in classes:
            self.send({"kind": "detail", **self.detail(int(message["index"]))})

    def thumbnails(self, class_id: int, count: int) -> list[str]:
        """Data URIs of a class's largest objects, one an image where it has so many images; [] without image
        files."""
        a = self._data.annotations
        if not self._data.has_images:
            return []
        rows = self._rows(class_id)
        # Largest first, but the second object of an image comes after the first of every other.
        rows = rows[np.argsort(-a.areas[rows], kind="stable")]
        images = a.annotation_image[rows]
        nth = pd.Series(images).groupby(images).cumcount().to_numpy()
        uris = []
        for row in rows[np.argsort(nth, kind="stable")][: 2 * count].tolist():
            try:
                image = _open(a.image_path(int(a.annotation_image[row])))
            except (OSError, ValueError):
                continue  # a missing or broken file: the next object stands in
            uris.append(_theme.data_uri(_theme.crop(image, a.boxes[row])))
            if len(uris) == count:
                break
        return uris

    def detail(self, class_id: int) -> dict:
        """What the panel shows of one class: thumbnails, and the categories it shares its images with."""
        a = self._data.annotations
        image, classes = self._pairs
        own = np.zeros(a.num_images, dtype=bool)
        own[image[classes == class_id]] = True
        together = np.bincount(classes[own[image]], minlength=a.num_classes)
        together[class_id] = 0
        best = np.argsort(-together, kind="stable")[:PARTNERS]
        best = best[together[best] > 0]
        return {
            "index": class_id,
            "crops": self.thumbnails(class_id, THUMBNAILS_OF_ONE),
            "names": [a.category_names[k] for k in best.tolist()],
            "groups": a.frequency[best].tolist(),
            "shares": (together[best] / max(int(own.sum()), 1)).tolist(),
        }

    @functools.cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        return image_class_pairs(self._data.annotations)

    @functools.cached_property
    def _by_class(self) -> tuple[np.ndarray, np.ndarray]:
        a = self._data.annotations
        rows = np.flatnonzero(~a.iscrowd)
        rows = rows[np.argsort(a.annotation_class[rows], kind="stable")]
        return rows, np.searchsorted(a.annotation_class[rows], np.arange(a.num_classes + 1))

    def _rows(self, class_id: int) -> np.ndarray:
        rows, offsets = self._by_class
        return rows[offsets[class_id] : offsets[class_id + 1]]


@functools.lru_cache(maxsize=32)
def _open(path: str) -> np.ndarray:
    return read_image(path)


def _columns(data: Data) -> dict:
    """The table as JSON columns, with objects an image and the median size (percent of the image's area)."""
    a, table = data.annotations, data.table
    shares = area_shares(a)
    median = 100 * shares["area"].groupby(shares["class_id"]).median().reindex(range(a.num_classes))
    ratio = table["instance_count"] / table["image_count"].where(table["image_count"] > 0)
    columns = {name: table[name].tolist() for name in table.columns}
    columns["per_image"] = [None if pd.isna(v) else round(float(v), 3) for v in ratio]
    columns["size"] = [None if pd.isna(v) else float(v) for v in median]
    return columns | {"pictures": data.has_images}


@_theme.sentences
def explore(data: Data, *, category: str | None = None) -> Explorer:
    """The categories of a data set, to look through.

    Args:
        data: from `open_dataset`.
        category: name of the category to begin with; None: the rarest one that has an image.

    Raises:
        NotebookError: no category of that name.
    """
    names = data.annotations.category_names
    if category is None:
        counts = data.annotations.image_count
        selected = int(np.argmin(np.where(counts > 0, counts, counts.max() + 1)))
    elif category in names:
        selected = names.index(category)
    else:
        raise ValueError(f"category {category!r}: {data.name} has no category of that name (it has {len(names)})")
    return Explorer(data, selected=selected)
