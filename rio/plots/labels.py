"""Labels that cover neither points, lines, bars nor each other."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation

from rio.plots.style import Color, ink

SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
GAPS = (8, 12, 17, 24, 34, 46, 60, 80)  # points between a label and what it names
LEADER = 14  # points; from further away a thin line leads to it
CLEAR = 1.5  # points between a label and what else is drawn
STEP = 3  # px between the dots that stand for a line


class Labels:
    """Writes texts into an Axes one after another, each where it covers least of the data and of earlier texts.

    Make it last, when the data is drawn and the limits are set.

    Args:
        ax: the Axes. Its figure is laid out now, because places are chosen in px.
        avoid_data: False keeps labels only off each other and off the legend.
    """

    def __init__(self, ax: Axes, *, avoid_data: bool = True) -> None:
        root = ax.figure.canvas.figure
        if root.get_layout_engine() is not None:
            root.draw_without_rendering()
        self.ax, self.point, self._inset = ax, root.dpi / 72, 3 * avoid_data
        legend = [ax.get_legend().get_window_extent().extents] if ax.get_legend() else []
        drawn = [_bars(ax), *_dots(ax, self.point)] if avoid_data else []
        self._taken = np.vstack([np.empty((0, 4)), *legend, *drawn])  # x0, y0, x1, y1 in px

    def beside(
        self, at: tuple[float, float], string: str, *, first: tuple[int, int] = (1, 0), must: bool = True, **look: Any
    ) -> None:
        """Name a point, given in data coordinates; `first` is the side to try first, (0, 1) is above.

        `must=False` leaves the name out where every place covers something.
        """
        text = self.write(at, string, path_effects=[withStroke(linewidth=2.5, foreground=ink().page)], **look)
        anchor, size = self.ax.transData.transform(at), self.size(text)
        sides = np.array(sorted(SIDES, key=lambda side: side != first))
        corners = [anchor + sides * gap * self.point - size * (1 - sides) / 2 for gap in GAPS]
        corner, cost = self.put(text, np.concatenate(corners), anchor=anchor)
        end = np.clip(anchor, corner, corner + size)
        if cost >= 1 and not must:
            text.remove()
            self._taken = self._taken[:-1]
        elif np.hypot(*(end - anchor)) > LEADER * self.point:
            ends = self.ax.transData.inverted().transform([anchor, end])
            self.ax.plot(*ends.T, color=ink().quiet, linewidth=0.6, zorder=2)
            self._taken = np.vstack([self._taken, _along(np.array([anchor, end]), CLEAR * self.point)])

    def on_top(self, at: float, string: str, **look: Any) -> None:
        """Write just above the Axes, at x = `at`; others there push it aside."""
        text = self.write((at, 1), string, xycoords=("data", "axes fraction"), **look)
        start = text.get_window_extent().min + np.array([-self.size(text)[0] / 2, 3 * self.point])
        shifts = np.array(sorted(range(-200, 201), key=abs))
        self.put(text, start + 2 * shifts[:, None] * [1.0, 0.0], inside=False)

    def on_right(self, ends: Iterable[tuple[float, str, Color]], **look: Any) -> None:
        """Name curves just right of the Axes: (y, name, colour) each, as near to its end as the others allow.

        A line leads from an end to a name that had to move.
        """
        rows = sorted(ends, key=lambda end: end[0])
        at = ("axes fraction", "data")
        texts = [self.write((1, y), name, xycoords=at, va="center", color=color, **look) for y, name, color in rows]
        if not texts:
            return
        frame, step = self.ax.get_window_extent(), max(self.size(text)[1] for text in texts)
        wanted = self.ax.transData.transform([(0, y) for y, *_ in rows])[:, 1]
        # Least squares under "one step apart": blocks of names that touch share the mean of their displacements.
        blocks: list[list[float]] = []
        for i, y in enumerate(wanted):
            blocks.append([y - i * step])
            while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
                blocks[-2:] = [blocks[-2] + blocks[-1]]
        start = np.maximum([np.mean(block) for block in blocks for _ in block], frame.y0)
        placed = start + step * np.arange(len(rows))
        moved = np.abs(placed - wanted) > 0.3 * step
        for text, low, high, lead, (*_, color) in zip(texts, wanted, placed, moved, rows, strict=True):
            gap = 16 if moved.any() else 5
            text.xyann = (gap, (high - low) / self.point)
            if lead:
                x, y = (
                    1 + np.array([1, gap - 2]) * self.point / frame.width,
                    (np.array([low, high]) - frame.y0) / frame.height,
                )
                self.ax.add_line(Line2D(x, y, transform=self.ax.transAxes, color=color, lw=0.7, clip_on=False))

    def write(self, at: tuple[float, float], string: str, **look: Any) -> Annotation:
        """A text that `put` has still to move to its place."""
        where = {"textcoords": "offset points", "ha": "left", "va": "bottom", "annotation_clip": False, "zorder": 6}
        return self.ax.annotate(string, at, (0, 0), **(where | look))

    def size(self, text: Annotation, pad: float = 0.0) -> np.ndarray:
        """(width, height) in px, with `pad` points on every side."""
        return np.array(text.get_window_extent().size) + 2 * pad * self.point

    def put(
        self, text: Annotation, corners: np.ndarray, *, anchor: Any = None, inside: bool = True, pad: float = 0.0
    ) -> tuple[np.ndarray, float]:
        """Move a text of `write` to the best of its places.

        Args:
            text: what to move.
            corners: (n, 2) px, lower left, best first.
            anchor: (2,) px, where a leader would begin.
            inside: shift places that leave the Axes back into it.
            pad: points around the text.

        Returns:
            The lower left corner chosen, and its cost: below 1 it covers nothing.
        """
        size, frame = self.size(text, pad), self.ax.get_window_extent().padded(-self._inset * self.point)
        low = np.clip(corners, frame.min, np.maximum(frame.max - size, frame.min)) if inside else np.asarray(corners)
        high = low + size
        sides = np.minimum(high[:, None], self._taken[:, 2:]) - np.maximum(low[:, None], self._taken[:, :2])
        covered = sides.clip(0).prod(axis=2) / size.prod()
        cost = ((covered > 0) + 10 * covered).sum(axis=1) + 0.9 * np.arange(len(low)) / len(low)
        if anchor is not None:
            lead = np.clip(anchor, low, high) - anchor
            path = (anchor + lead[:, None] * np.linspace(0.4, 0.9, 12)[:, None])[:, :, None]
            crossed = ((path > self._taken[:, :2]) & (path < self._taken[:, 2:])).all(axis=3).any(axis=(1, 2))
            cost += 3 * crossed * (np.hypot(*lead.T) > LEADER * self.point)
        best = int(cost.argmin())
        self._taken = np.vstack([self._taken, np.r_[low[best], high[best]]])
        text.xyann = (low[best] + pad * self.point - text.get_window_extent().min) / self.point
        return low[best], float(cost[best])


def _bars(ax: Axes) -> np.ndarray:
    """(n, 4) px: the bars of an Axes."""
    corners = [patch.get_bbox().get_points() for patch in ax.patches if isinstance(patch, Rectangle)]
    return ax.transData.transform(np.reshape(corners, (-1, 2))).reshape(-1, 4)


def _dots(ax: Axes, point: float) -> list[np.ndarray]:
    """(n, 4) px each: points, and lines and arrows as rows of points, with what has to stay clear around them."""
    found, clear = [], CLEAR * point
    for line in ax.lines:
        vertices = line.get_transform().transform(line.get_path().vertices)
        found.append(_along(vertices, line.get_linewidth() / 2 * point + clear))
        if line.get_marker() not in ("None", "", " ", None):
            found.append(_around(vertices, line.get_markersize() / 2 * point + clear))
    for drawn in ax.collections:
        if isinstance(drawn, LineCollection):
            found += [_along(drawn.get_transform().transform(part), point + clear) for part in drawn.get_segments()]
        elif isinstance(drawn, PathCollection):
            centres = drawn.get_offset_transform().transform(drawn.get_offsets())
            found.append(_around(centres, np.sqrt(drawn.get_sizes()[0]) / 2 * point + clear))
    arrows = [text for text in ax.texts if getattr(text, "arrow_patch", None)]
    ends = [ax.transData.transform([arrow.xyann, arrow.xy]) for arrow in arrows]
    return found + [_along(line, 3 * point + clear) for line in ends]


def _around(centres: np.ndarray, radius: float) -> np.ndarray:
    return np.c_[centres - radius, centres + radius]


def _along(vertices: np.ndarray, radius: float) -> np.ndarray:
    length = np.r_[0, np.hypot(*np.diff(vertices, axis=0).T).cumsum()]
    at = np.arange(0, length[-1] + STEP, STEP).clip(max=length[-1])
    return _around(np.c_[np.interp(at, length, vertices[:, 0]), np.interp(at, length, vertices[:, 1])], radius)
