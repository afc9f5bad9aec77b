"""An explorer of a data set's categories: the tail and a table, thumbnails, and which categories appear together."""

import functools

import anywidget
import numpy as np
import pandas as pd
import traitlets

from rio.analysis.distribution import area_shares, image_class_pairs
from rio.data.annotations import Annotations
from rio.data.images import read_image
from rio.widgets import theme
from rio.widgets.dataset import Data

THUMBNAILS_A_ROW = 5
THUMBNAILS_OF_ONE = 8
PARTNERS = 6


class Explorer(anywidget.AnyWidget):
    """The tail and a table of all categories; what is selected in one is selected in the other.

    Attributes:
        selected: class id (0-based) of the chosen category, -1: none.
    """

    _esm = (theme.FOLDER / "chart.js").read_text("utf-8") + (theme.FOLDER / "explorer.js").read_text("utf-8")
    _css = theme.STYLE
    categories = traitlets.Dict().tag(sync=True)
    selected = traitlets.Int(-1).tag(sync=True)

    def __init__(self, data: Data, *, selected: int = -1) -> None:
        self._data = data
        super().__init__(categories=_columns(data), selected=selected)
        self.on_msg(self.answer)

    def answer(self, _widget: object, message: dict, _buffers: object) -> None:
        """Send what the browser asked for: the thumbnails of some rows, or the details of one category."""
        classes = range(self._data.annotations.num_classes)
        if message.get("kind") == "crops":
            wanted = [int(k) for k in message.get("classes", []) if k in classes]
            self.send({"kind": "crops", "crops": {k: self.thumbnails(k, THUMBNAILS_A_ROW) for k in wanted}})
        elif message.get("kind") == "detail" and message.get("index") in classes:
            self.send({"kind": "detail", **self.detail(int(message["index"]))})

    def thumbnails(self, class_id: int, count: int) -> list[str]:
        """Data URIs of a class's largest objects, from different images if it has that many; [] without image files."""
        if not self._data.has_images:
            return []
        return [uri for uri, _ in largest_objects(self._data.annotations, class_id, count)]

    def detail(self, class_id: int) -> dict:
        """What the panel shows of one class: thumbnails, and the categories it shares its images with."""
        a, (image, classes) = self._data.annotations, self._pairs
        own = np.bincount(image[classes == class_id], minlength=a.num_images) > 0
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


def largest_objects(a: Annotations, class_id: int, count: int, *, side: int = 72) -> list[tuple[str, str]]:
    """Thumbnails of a class's objects, the largest first, from different images as far as possible.

    Args:
        a: with an image folder.
        class_id: 0-based.
        count: at most this many; only their images are opened.
        side: of a thumbnail, px.

    Returns:
        (data URI, file name) pairs. Images that cannot be opened are left out; the next object stands in.
    """
    found: list[tuple[str, str]] = []
    rows = np.flatnonzero((a.annotation_class == class_id) & ~a.iscrowd)
    rows = rows[np.argsort(-a.areas[rows], kind="stable")]
    nth = pd.Series(rows).groupby(a.annotation_image[rows]).cumcount()  # of its image
    for row in rows[np.argsort(nth, kind="stable")][: 3 * count].tolist():
        image = int(a.annotation_image[row])
        try:
            picture = open_image(a.image_path(image))
        except (OSError, ValueError):
            continue
        found.append((theme.thumbnail(picture, a.boxes[row], side=side), a.file_names[image]))
        if len(found) == count:
            break
    return found


open_image = functools.lru_cache(maxsize=32)(read_image)


def _columns(data: Data) -> dict:
    """The table as JSON columns, with objects per image and the median side, as `distribution.sizes` has it."""
    table, shares = data.table, area_shares(data.annotations)
    sides = 100 * np.sqrt(shares["area"])
    median = sides.groupby(shares["class_id"]).median().reindex(range(len(table)))
    ratio = (table["instance_count"] / table["image_count"].where(table["image_count"] > 0)).round(3)
    table = table.assign(per_image=ratio, side=median.to_numpy())
    columns = {name: [None if pd.isna(v) else v for v in table[name].tolist()] for name in table}
    return columns | {"pictures": data.has_images}


@theme.sentences
def explore(data: Data, *, category: str | None = None) -> Explorer:
    """The categories of a data set, to look through.

    Args:
        data: from `open_dataset`.
        category: name of the category to begin with; None: the rarest one that has an image.

    Raises:
        NotebookError: no category of that name.
    """
    names, counts = data.annotations.category_names, data.annotations.image_count
    if category is None:
        return Explorer(data, selected=int(np.argmin(np.where(counts > 0, counts, counts.max() + 1))))
    if category not in names:
        raise ValueError(f"category: expected one of {data.name}'s {len(names)} categories, found {category!r}")
    return Explorer(data, selected=names.index(category))
