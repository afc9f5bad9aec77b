"""An image with its objects drawn on it."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from rio.data.masks import decoded_mask
from rio.plots import parts
from rio.plots.labels import Labels
from rio.plots.style import COLORS, GROUPS, ink_on, styled

Mask = np.ndarray | list[list[float]] | Mapping[str, object] | None
OPACITY = 0.34  # of the masks
PAD = 1.2  # points around a label
ZOOM_SCRIPT = pathlib.Path(__file__).with_name("zoom.js").read_text("utf-8")  # for pictures in a page
SHOWN, LETTERS = 320, 6.5  # of `object_shapes`: the longer side, px; the letters, points


@styled
def draw_objects(
    ax: Axes,
    image: np.ndarray,
    boxes: np.ndarray,
    masks: Sequence[Mask] | None = None,
    labels: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
    *,
    font_size: float = 7.5,
) -> Axes:
    """An image with its objects in the colours of their frequency groups; rare ones on top, with bolder outlines.

    Give the Axes its final size before: labels are placed so that they stay in the image and off each other
    at that size.

    Args:
        ax: where to draw.
        image: (H, W, 3) or (H, W) uint8, RGB.
        boxes: (n, 4) XYWH in px; n may be 0.
        masks: n entries, each an (H, W) array of bool, a list of polygons [x0, y0, x1, y1, ...] in px, a COCO
            RLE {"size": [H, W], "counts": ...} as results files hold it, or None.
        labels: n names; None draws none.
        groups: n of 'r', 'c', 'f'; None draws all in one colour.
        scores: n in [0, 1], printed behind the name; None for ground truth.
        font_size: of the labels, in points.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise parts.PlotError(f"image: expected (H, W, 3) or (H, W), found {image.shape}.")
    height, width = image.shape[:2]
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    for name, values in (("masks", masks), ("labels", labels), ("groups", groups), ("scores", scores)):
        if values is not None and len(values) != len(boxes):
            raise parts.PlotError(f"{name}: expected one for each of the {len(boxes)} boxes, found {len(values)}.")
    if groups is not None and not set(groups) <= set(GROUPS):
        raise parts.PlotError(f"groups: expected r, c or f, found {sorted(set(groups) - set(GROUPS))}.")
    groups = ["f"] * len(boxes) if groups is None else list(groups)

    ax.imshow(image, cmap="gray" if image.ndim == 2 else None, interpolation="antialiased", zorder=0)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)

    order = _order(boxes, groups)
    for depth, i in enumerate(order, start=2):
        bold, mask = groups[i] == "r", None if masks is None else masks[i]
        look = {"edgecolor": COLORS[groups[i]], "linewidth": 1.9 if bold else 1.0, "zorder": depth}
        if mask is not None:
            _draw_mask(ax, mask, (height, width), f"masks[{i}]", look)
            look |= {} if bold else {"linewidth": 0.6, "linestyle": (0, (3, 2))}
        # Pixel k covers k - 0.5 .. k + 0.5 of the Axes.
        ax.add_patch(Rectangle(boxes[i, :2] - 0.5, *boxes[i, 2:], fill=False, **look))
    if labels is not None or scores is not None:
        placed = Labels(ax, avoid_data=False)
        for i in reversed(order):  # the rare ones choose their places first
            words = [] if labels is None else [str(labels[i])]
            words += [] if scores is None else [f"{100 * scores[i]:.0f}%"]
            weight = "bold" if groups[i] == "r" else "normal"
            look = {"fontsize": font_size, "fontweight": weight, "zorder": 10 + len(boxes), "clip_on": True}
            _name_box(placed, boxes[i], " ".join(words).strip(), COLORS[groups[i]], look)
    return ax


def _order(boxes: np.ndarray, groups: Sequence[str]) -> list[int]:
    """Frequent first, rare last and so on top; within a group large before small, so that small ones stay visible."""
    return sorted(range(len(boxes)), key=lambda i: (-GROUPS.index(groups[i]), -boxes[i, 2] * boxes[i, 3]))


def object_shapes(
    size: tuple[int, int],
    boxes: np.ndarray,
    masks: Sequence[Mask] | None,
    labels: Sequence[str],
    groups: Sequence[str],
    scores: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """What `draw_objects` draws, with its labels where it places them, as numbers for an SVG over the image.

    Args:
        size: (height, width) of the image, px; the rest as for `draw_objects`.

    Returns:
        One dict per object, in drawing order: index; box (x, y, width, height); path, the outline of its mask as an SVG
        path, "" without one; text, its label, the place of that, (x, y, width, height), and the font_size. In px of the
        image, whose longer side is taken to be shown at `SHOWN` px.
    """
    height, width = size
    boxes, inches = np.asarray(boxes, float).reshape(-1, 4), SHOWN / max(size) / 100
    ax = Figure(figsize=(width * inches, height * inches), dpi=100).add_axes((0, 0, 1, 1))
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    draw_objects(ax, np.zeros((height, width), np.uint8), boxes, None, labels, groups, scores, font_size=LETTERS)
    to_image, shapes, order = ax.transData.inverted(), [], _order(boxes, groups)
    for i, text in zip(order, ax.texts[::-1], strict=True):  # the names of the rare ones were written first
        extent = text.get_window_extent().padded(PAD * 100 / 72)
        (x, bottom), (right, y) = to_image.transform(extent) + 0.5
        edges = outlines(None if masks is None else masks[i], size)
        path = "".join(f"M{' '.join(f'{v:g}' for v in points.round(1).ravel())}Z" for points in edges)
        place = np.round((x, y, right - x, bottom - y), 1).tolist()
        shapes.append({"index": i, "box": boxes[i].round(1).tolist(), "path": path, "text": text.get_text()})
        shapes[-1] |= {"place": place, "font_size": round(LETTERS / 72 / inches, 2)}
    return shapes


def _draw_mask(ax: Axes, mask: Mask, size: tuple[int, int], name: str, look: dict[str, object]) -> None:
    """Fill and outline of one object."""
    if isinstance(mask, np.ndarray) and mask.shape != size:
        raise parts.PlotError(f"{name}: expected shape {size} of the image, found {mask.shape}.")
    if isinstance(mask, list) and any(len(polygon) < 6 or len(polygon) % 2 for polygon in mask):
        raise parts.PlotError(f"{name}: expected polygons of at least 3 points as [x0, y0, ...], found {mask!r}.")
    # Annotation px have their origin at the corner, imshow's at the centre.
    edges = [Path(np.vstack([points, points[:1]]) - 0.5, closed=True) for points in outlines(mask, size)]
    if edges:
        fill = (*to_rgb(look["edgecolor"]), OPACITY)
        ax.add_patch(PathPatch(Path.make_compound_path(*edges), facecolor=fill, joinstyle="round", **look))


def outlines(mask: Mask, size: tuple[int, int]) -> list[np.ndarray]:
    """The edges of a mask, holes included.

    Args:
        mask: as for `draw_objects`.
        size: (height, width) of the image.

    Returns:
        (points, 2) x and y each, px; the origin is the image's corner. [] for no mask.
    """
    if mask is None or isinstance(mask, list):
        return [np.reshape(polygon, (-1, 2)).astype(float) for polygon in mask or ()]
    import cv2  # only RLE and bitmaps need it

    bitmap = (mask if isinstance(mask, np.ndarray) else decoded_mask(mask, size)).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(bitmap)
    # Three times the size, so that outlines run along the pixels' edges and a single pixel has corners.
    large = bitmap[y : y + h, x : x + w].repeat(3, 0).repeat(3, 1)
    found = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_TC89_L1, offset=(3 * x, 3 * y))[0] if w else ()
    return [(contour[:, 0] + 0.5) / 3 for contour in found if len(contour) > 2]


def _name_box(labels: Labels, box: np.ndarray, words: str, color: str, look: dict[str, object]) -> None:
    """Write a label at the corner of its box where it covers least of other labels."""
    ground = {"facecolor": color, "edgecolor": "none", "pad": PAD, "alpha": 0.92}
    text = labels.write(box[:2], words, color=ink_on(color), bbox=ground, **look)
    w, h = labels.size(text, PAD)
    # The y axis of an image points down, that of px up.
    left, top, right, bottom = labels.ax.transData.transform([box[:2] - 0.5, box[:2] + box[2:] - 0.5]).ravel()
    places = [(left, top), (left, bottom - h), (right - w, top), (right - w, bottom - h)]
    places += [(left, top - h), (left, bottom)]
    places += [(right, top - h), (left - w, top - h), (right, bottom), (left - w, bottom)]
    places += [(left, top + k * h) for k in (1, 2)] + [(left, bottom - (k + 1) * h) for k in (1, 2)]
    labels.put(text, np.array(places), pad=PAD)
