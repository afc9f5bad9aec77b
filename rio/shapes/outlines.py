"""The 20 outlines: each is a list of contours (n, 2), x right and y down, filled by the even-odd rule."""

import math
from collections.abc import Callable

import numpy as np

Contours = list[np.ndarray]


def _closed(points: int) -> np.ndarray:
    return np.linspace(0, 2 * np.pi, points, endpoint=False)


def _join(*xy: np.ndarray) -> Contours:
    """One contour from x, y, and perhaps x, y of its next part, ..."""
    return [np.concatenate([np.stack(xy[i : i + 2], 1) for i in range(0, len(xy), 2)])]


def polar(radius: Callable[[np.ndarray], np.ndarray], points: int = 96) -> Contours:
    """The outline at radius(angle), clockwise from the top."""
    angle = _closed(points)
    r = radius(angle)
    return _join(r * np.sin(angle), -r * np.cos(angle))


def _regular(corners: int, turn: float = 0.0, inner: float | None = None) -> Contours:
    count = corners if inner is None else 2 * corners
    angle = 2 * np.pi * (np.arange(count) / count + turn)
    r = np.ones(count)
    if inner is not None:
        r[1::2] = inner
    return _join(r * np.sin(angle), -r * np.cos(angle))


def _points(text: str) -> Contours:
    return [np.array(text.split(), dtype=float).reshape(-1, 2)]


def _heart() -> Contours:
    t = _closed(96)
    return _join(16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)))


def _crescent() -> Contours:
    outer, inner = np.radians(40), np.radians(53)
    r = math.sin(outer) / math.sin(inner)
    centre = math.cos(outer) - r * math.cos(inner)
    outer = np.linspace(outer, np.radians(320), 72)
    inner = np.linspace(np.radians(307), inner, 72)
    return _join(np.cos(outer), np.sin(outer), centre + r * np.cos(inner), r * np.sin(inner))


def _gear() -> Contours:
    angle = _closed(192)[::4]
    hole = 0.27 * np.stack([np.sin(angle), -np.cos(angle)], 1)
    return [*polar(lambda a: 0.86 + 0.14 * np.tanh(5 * np.cos(8 * a)), 192), hole]


def _fish() -> Contours:
    t = np.linspace(0.14 * np.pi, 1.86 * np.pi, 64)
    tail = np.array([1.0, 0.86, 1.0]), np.array([-0.6, 0.0, 0.6])
    return _join(-0.25 + 0.75 * np.cos(t), 0.62 * np.sin(t), *tail)


def _cloud() -> Contours:
    angle = _closed(160)
    r = 0.72 + 0.28 * np.abs(np.cos(2.5 * angle))
    return _join(1.3 * r * np.sin(angle), np.minimum(-r * np.cos(angle), 0.42))


# The order is part of the data set: categories are drawn from it.
SHAPES: dict[str, Callable[[], Contours]] = {
    "disc": lambda: _regular(72),
    "square": lambda: _regular(4, 0.125),
    "triangle": lambda: _regular(3),
    "hexagon": lambda: _regular(6),
    "star": lambda: _regular(5, inner=0.45),
    "heart": _heart,
    "crescent": _crescent,
    "ring": lambda: [_regular(72)[0], 0.5 * _regular(72)[0]],
    "cross": lambda: _points(
        "-.34 -1  .34 -1  .34 -.34  1 -.34  1 .34  .34 .34  .34 1  -.34 1  -.34 .34  -1 .34  -1 -.34  -.34 -.34"
    ),
    "arrow": lambda: _points("0 -1  .85 -.1  .36 -.1  .36 1  -.36 1  -.36 -.1  -.85 -.1"),
    "drop": lambda: _join(0.78 * np.sin(_closed(96)) * np.sin(_closed(96) / 2) ** 1.4, -np.cos(_closed(96))),
    "gear": _gear,
    "flower": lambda: polar(lambda a: 0.72 + 0.28 * np.cos(6 * a)),
    "bolt": lambda: _points(".28 -1  -.62 .18  -.06 .18  -.3 1  .64 -.3  .08 -.3"),
    "crown": lambda: _points("-1 -.62  -.5 -.05  0 -.85  .5 -.05  1 -.62  .82 .75  -.82 .75"),
    "fish": _fish,
    "house": lambda: _points("0 -1  1 -.1  .72 -.1  .72 .9  -.72 .9  -.72 -.1  -1 -.1"),
    "tree": lambda: _points(
        "0 -1  .5 -.35  .28 -.35  .75 .35  .2 .35  .2 .95  -.2 .95  -.2 .35  -.75 .35  -.28 -.35  -.5 -.35"
    ),
    "cloud": _cloud,
    "kite": lambda: _points("0 -1  .68 -.28  0 1  -.68 -.28"),
}


def unit_outline(shape: str) -> Contours:
    """Contours (n, 2) centred on their bounding box, whose longer side is 2."""
    contours = SHAPES[shape]()
    everything = np.concatenate(contours)
    low, high = everything.min(0), everything.max(0)
    return [(contour - (low + high) / 2) * (2 / (high - low).max()) for contour in contours]
