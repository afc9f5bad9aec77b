"""What is in a data set: an explorer of its categories, and the tables behind notebook 01's figures.

I: images, A: annotations, K: categories. Crowd regions are left out throughout, as in the counts.
"""

from __future__ import annotations

import functools

import anywidget
import numpy as np
import pandas as pd
import traitlets

from rio.widgets import theme as _theme
from rio.widgets.dataset import Data

THUMBNAILS_A_ROW = 5
THUMBNAILS_OF_ONE = 8
PARTNERS = 6


# ----------------------------------------------------------------------------------------------------- tables


def per_image(data: Data) -> pd.DataFrame:
    """Objects and categories of every image: image_id, objects, categories, and `rarest` ('r', 'c', 'f' or
    '')."""
    a = data.annotations
    kept = ~a.iscrowd
    image, classes = a.annotation_image[kept].astype(np.int64), a.annotation_class[kept].astype(np.int64)
    pairs = np.unique(image * a.num_classes + classes)
    rarest = np.full(a.num_images, "", dtype="<U1")
    for group in "fcr":  # the rarest comes last and stays
        rarest[image[a.frequency[classes] == group]] = group
    return pd.DataFrame(
        {
            "image_id": a.image_ids,
            "objects": np.bincount(image, minlength=a.num_images),
            "categories": np.bincount(pairs // a.num_classes, minlength=a.num_images),
            "rarest": rarest,
        }
    )


def sizes(data: Data) -> pd.DataFrame:
    """Size of every object: frequency, and `side`, the root of its share of the image's area, in percent."""
    a = data.annotations
    kept = ~a.iscrowd
    image = a.annotation_image[kept]
    pixels = a.image_width[image].astype(np.float64) * a.image_height[image]
    side = 100 * np.sqrt(np.clip(a.areas[kept], 0, None) / np.maximum(pixels, 1))
    table = pd.DataFrame({"frequency": a.frequency[a.annotation_class[kept]], "side": side})
    return table[table["side"] > 0].reset_index(drop=True)


def company_of(data: Data, group: str = "r") -> pd.DataFrame:
    """With what the objects of a frequency group share their images.

    Args:
        data: the data set.
        group: "r", "c" or "f".

    Returns:
        One row a category that shares an image with one of the group, by falling `share`: name, frequency,
        `share` of the images with the group that also hold it, and `share_of_all` images that hold it. A
        category of the group itself counts where another one of the group is beside it. Empty where the group
        has no image.
    """
    a = data.annotations
    image, classes = _pairs(data)
    of_group = a.frequency[classes] == group
    members = np.bincount(image[of_group], minlength=a.num_images)  # categories of the group, by image
    beside = members[image] - of_group > 0
    with_group = np.count_nonzero(members)
    together = np.bincount(classes[beside], minlength=a.num_classes)
    table = pd.DataFrame(
        {
            "name": a.category_names,
            "frequency": a.frequency,
            "share": together / max(with_group, 1),
            "share_of_all": a.image_count / max(a.num_images, 1),
        }
    )
    return table[together > 0].sort_values("share", ascending=False, kind="stable").reset_index(drop=True)


def _pairs(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Every (image, class) once: image indices and class ids, by image."""
    a = data.annotations
    kept = ~a.iscrowd
    keys = a.annotation_image[kept].astype(np.int64) * a.num_classes + a.annotation_class[kept]
    return np.divmod(np.unique(keys), max(a.num_classes, 1))


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
        return _pairs(self._data)

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
    return _theme.read_image(path)


def _columns(data: Data) -> dict:
    """The table as JSON columns, with objects an image and the median size (percent of the image's area)."""
    a, table = data.annotations, data.table
    kept = ~a.iscrowd
    image = a.annotation_image[kept]
    pixels = a.image_width[image].astype(np.float64) * a.image_height[image]
    share = 100 * a.areas[kept] / np.maximum(pixels, 1)
    median = pd.Series(share).groupby(a.annotation_class[kept]).median().reindex(range(a.num_classes))
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
