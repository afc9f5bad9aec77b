"""The embedded data set: synthetic pictures of coloured toys with LVIS's long tail, drawn on your machine.

Nothing here is a photograph and nothing is downloaded. A category is a shape, a texture and a hue ("striped
teal star"); a rare category shares two of the three with a more frequent one, so that it cannot be told by
one of them alone. The image counts fall log-linearly and cross LVIS's own group thresholds (r 1..10 images,
c 11..100, f > 100). Numbers measured on it say how methods compare *on it*, not on LVIS.

A set is ``train`` and ``val``. Beside it, each in a folder of its own and with pictures of its own, go

- ``tune``: drawn as ``val`` is, to choose settings by, so that ``val`` is looked at once;
- ``balanced``: as many images as ``train``, each of as many classes, but every class in equally many images:
  a training set that shows what the tail costs. Its ``image_count`` and ``instance_count`` are its own; its
  ``frequency`` is that of ``train``, so that a detector trained on it is scored by the same groups as one
  trained on the tail. By its own counts all its classes would be of one group and APr would be of nothing.

Shapes: S = image side in px, H = S * supersampling = side of the canvas that is drawn on before it is
reduced.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm.auto import tqdm

# Raised whenever the same spec would give other pictures or labels than before: a folder drawn by another
# version is refused, not mixed with what this one draws.
DRAWING_VERSION = 1
RARE_MAX_IMAGES, COMMON_MAX_IMAGES = 10, 100  # LVIS: r 1..10, c 11..100, f > 100 images of the training set
# The random stream of each split: part of the seed of its plan, its pictures and its verified absences. 2..5
# are taken, by what is drawn from them: classes, JPEG qualities, plans, absences.
_STREAMS = {"train": 0, "val": 1, "tune": 6, "balanced": 7}
EXTRA_SPLITS = ("tune", "balanced")  # drawn on their own, when asked for
# An object of which less is visible is no ground truth; its category becomes not-exhaustive in that image.
MIN_VISIBLE = 0.5

HUES: dict[str, tuple[int, int, int]] = {  # sRGB, 0..255
    "red": (205, 38, 44),
    "orange": (240, 126, 28),
    "yellow": (244, 206, 48),
    "green": (62, 158, 62),
    "teal": (22, 150, 152),
    "blue": (46, 92, 206),
    "purple": (122, 62, 178),
    "pink": (240, 128, 176),
}
TEXTURES = ("plain", "striped", "dotted", "checkered", "zigzag", "marbled")


class ShapesError(ValueError):
    """A spec that cannot be drawn, or a folder that is not ours to overwrite."""


@dataclasses.dataclass(frozen=True)
class ShapesSpec:
    """What to draw. The same spec gives the same bytes, whatever the number of workers (same opencv and
    numpy).

    Args:
        name: folder name below the root.
        image_size: side S of the square images, px.
        train_images: number of training images.
        val_images: number of validation images.
        num_classes: K, all categories.
        num_rare: categories with 1..10 training images.
        num_common: categories with 11..100 training images; the others, K - num_rare - num_common, are
            frequent.
        seed: chooses categories, where they appear and every picture.
        max_image_frequency: share of the training images that hold the most frequent category, in (0, 1].
        min_image_count: training images of the rarest category, 1..10.
        val_exponent: how much of the tail is left in validation: val share ~ (train share) ** val_exponent,
            0 = every category in as many images, 1 = the tail of the training set.
        val_classes_per_image: mean number of categories in a validation image.
        negative_share: share of the categories absent from an image that are verified as absent
            (LVIS's ``neg_category_ids``), in [0, 1].
        supersampling: canvas px a final px, along one axis.
    """

    name: str
    image_size: int
    train_images: int
    val_images: int
    num_classes: int
    num_rare: int
    num_common: int
    seed: int = 0
    max_image_frequency: float = 0.5
    min_image_count: int = 2
    val_exponent: float = 0.35
    val_classes_per_image: float = 4.0
    negative_share: float = 0.4
    supersampling: int = 3

    @property
    def num_frequent(self) -> int:
        """Categories with more than 100 training images."""
        return self.num_classes - self.num_rare - self.num_common

    def validate(self) -> None:
        """Raises ShapesError that names the field, what came and what would do."""

        def need(holds: bool, field: str, expected: str) -> None:
            if not holds:
                raise ShapesError(f"ShapesSpec {self.name!r}: {field} = {getattr(self, field)!r}; expected {expected}.")

        need(
            bool(self.name) and Path(self.name).name == self.name and not self.name.startswith("."),
            "name",
            "a plain folder name",
        )
        need(32 <= self.image_size <= 2048, "image_size", "32..2048 px")
        need(self.train_images >= 1, "train_images", "at least 1")
        need(self.val_images >= 1, "val_images", "at least 1")
        most = len(SHAPES) * len(TEXTURES) * len(HUES)
        need(2 <= self.num_classes <= most // 2, "num_classes", f"2..{most // 2} (half of all {most} combinations)")
        need(self.num_rare >= 0, "num_rare", "0 or more")
        need(self.num_common >= 0, "num_common", "0 or more")
        need(
            self.num_frequent >= 1,
            "num_classes",
            f"more than num_rare + num_common = "
            f"{self.num_rare + self.num_common}: at least one category must be frequent",
        )
        need(0 < self.max_image_frequency <= 1, "max_image_frequency", "a share in (0, 1]")
        top = self.max_image_frequency * self.train_images
        need(
            top > COMMON_MAX_IMAGES,
            "train_images",
            f"more than {COMMON_MAX_IMAGES / self.max_image_frequency:.0f}: "
            f"a frequent category needs more than {COMMON_MAX_IMAGES} images and gets at most "
            "max_image_frequency of all",
        )
        need(1 <= self.min_image_count <= RARE_MAX_IMAGES, "min_image_count", f"1..{RARE_MAX_IMAGES}")
        need(0 <= self.val_exponent <= 1, "val_exponent", "0..1")
        need(0 < self.val_classes_per_image <= 6, "val_classes_per_image", "above 0, at most 6 (more do not fit)")
        need(0 <= self.negative_share <= 1, "negative_share", "a share in [0, 1]")
        need(1 <= self.supersampling <= 8, "supersampling", "1..8")


# ---- outlines: each returns contours (n, 2), x right and y down; several contours fill by the even-odd rule


def _polar(radius: Callable[[np.ndarray], np.ndarray], points: int = 96) -> list[np.ndarray]:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    r = radius(angle)
    return [np.stack([r * np.sin(angle), -r * np.cos(angle)], 1)]


def _regular(corners: int, turn: float = 0.0, inner: float | None = None) -> list[np.ndarray]:
    count = corners if inner is None else 2 * corners
    angle = 2 * np.pi * (np.arange(count) / count + turn)
    r = np.ones(count)
    if inner is not None:
        r[1::2] = inner
    return [np.stack([r * np.sin(angle), -r * np.cos(angle)], 1)]


def _points(*xy: float) -> list[np.ndarray]:
    return [np.array(xy, dtype=float).reshape(-1, 2)]


def _heart() -> list[np.ndarray]:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [np.stack([x, y], 1)]


def _crescent() -> list[np.ndarray]:
    outer = np.linspace(np.radians(40), np.radians(320), 72)
    inner = np.linspace(np.radians(307), np.radians(53), 72)
    tip = math.cos(math.radians(40)), math.sin(math.radians(40))
    r = tip[1] / math.sin(math.radians(53))
    centre = tip[0] - r * math.cos(math.radians(53))
    return [
        np.concatenate(
            [np.stack([np.cos(outer), np.sin(outer)], 1), np.stack([centre + r * np.cos(inner), r * np.sin(inner)], 1)]
        )
    ]


def _drop() -> list[np.ndarray]:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    return [np.stack([0.78 * np.sin(t) * np.sin(t / 2) ** 1.4, -np.cos(t)], 1)]


def _gear() -> list[np.ndarray]:
    angle = np.linspace(0, 2 * np.pi, 192, endpoint=False)
    r = 0.86 + 0.14 * np.tanh(5 * np.cos(8 * angle))
    wheel = np.stack([r * np.sin(angle), -r * np.cos(angle)], 1)
    hole = 0.27 * np.stack([np.sin(angle[::4]), -np.cos(angle[::4])], 1)
    return [wheel, hole]


def _ring() -> list[np.ndarray]:
    circle = _regular(72)[0]
    return [circle, 0.5 * circle]


def _fish() -> list[np.ndarray]:
    t = np.linspace(0.14 * np.pi, 1.86 * np.pi, 64)
    body = np.stack([-0.25 + 0.75 * np.cos(t), 0.62 * np.sin(t)], 1)
    return [np.concatenate([body, [[1.0, -0.6], [0.86, 0.0], [1.0, 0.6]]])]


def _cloud() -> list[np.ndarray]:
    angle = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    r = 0.72 + 0.28 * np.abs(np.cos(2.5 * angle))
    xy = np.stack([1.3 * r * np.sin(angle), -r * np.cos(angle)], 1)
    xy[:, 1] = np.minimum(xy[:, 1], 0.42)
    return [xy]


SHAPES: dict[str, Callable[[], list[np.ndarray]]] = {
    "disc": lambda: _regular(72),
    "square": lambda: _regular(4, 0.125),
    "triangle": lambda: _regular(3),
    "hexagon": lambda: _regular(6),
    "star": lambda: _regular(5, inner=0.45),
    "heart": _heart,
    "crescent": _crescent,
    "ring": _ring,
    "cross": lambda: _points(
        -0.34,
        -1,
        0.34,
        -1,
        0.34,
        -0.34,
        1,
        -0.34,
        1,
        0.34,
        0.34,
        0.34,
        0.34,
        1,
        -0.34,
        1,
        -0.34,
        0.34,
        -1,
        0.34,
        -1,
        -0.34,
        -0.34,
        -0.34,
    ),
    "arrow": lambda: _points(0, -1, 0.85, -0.1, 0.36, -0.1, 0.36, 1, -0.36, 1, -0.36, -0.1, -0.85, -0.1),
    "drop": _drop,
    "gear": _gear,
    "flower": lambda: _polar(lambda a: 0.72 + 0.28 * np.cos(6 * a)),
    "bolt": lambda: _points(0.28, -1, -0.62, 0.18, -0.06, 0.18, -0.3, 1, 0.64, -0.3, 0.08, -0.3),
    "crown": lambda: _points(-1, -0.62, -0.5, -0.05, 0, -0.85, 0.5, -0.05, 1, -0.62, 0.82, 0.75, -0.82, 0.75),
    "fish": _fish,
    "house": lambda: _points(0, -1, 1, -0.1, 0.72, -0.1, 0.72, 0.9, -0.72, 0.9, -0.72, -0.1, -1, -0.1),
    "tree": lambda: _points(
        0,
        -1,
        0.5,
        -0.35,
        0.28,
        -0.35,
        0.75,
        0.35,
        0.2,
        0.35,
        0.2,
        0.95,
        -0.2,
        0.95,
        -0.2,
        0.35,
        -0.75,
        0.35,
        -0.28,
        -0.35,
        -0.5,
        -0.35,
    ),
    "cloud": _cloud,
    "kite": lambda: _points(0, -1, 0.68, -0.28, 0, 1, -0.68, -0.28),
}


def _unit_outline(shape: str) -> list[np.ndarray]:
    """Contours (n, 2) centred on their bounding box, the farther corner of which is at distance 1 along its
    axis.
    """
    contours = SHAPES[shape]()
    everything = np.concatenate(contours)
    low, high = everything.min(0), everything.max(0)
    return [(contour - (low + high) / 2) * (2 / (high - low).max()) for contour in contours]


# ---- surfaces


def _noise(
    rng: np.random.Generator, height: int, width: int, cells: float, octaves: int = 3, stretch: float = 1.0
) -> np.ndarray:
    """Smooth noise in about [-1, 1], (height, width) float32; ``cells`` across the longer side at the first
    octave.
    """
    total = np.zeros((height, width), np.float32)
    weight, norm = 1.0, 0.0
    side = max(height, width)
    for octave in range(octaves):
        n = cells * 2**octave
        rows, columns = max(2, round(n * height / side)), max(2, round(n / stretch * width / side))
        grid = rng.random((min(rows, height) + 1, min(columns, width) + 1), np.float32) * 2 - 1
        total += np.float32(weight) * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        norm += weight
        weight *= 0.55
    return total / np.float32(norm)


def _smoothstep(x: np.ndarray, edge: float) -> np.ndarray:
    return np.clip(x / np.float32(2 * edge) + np.float32(0.5), 0, 1)


def _texture(name: str, u: np.ndarray, v: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """How much of the second colour, in [0, 1], at object coordinates u, v in [-1, 1] (h, w). phase: (3,) in
    [0, 1).
    """
    a, b, c = (float(p) for p in phase)
    if name == "plain":
        return np.zeros_like(u)
    if name == "striped":
        return _smoothstep(np.sin(2 * np.pi * (1.6 * u + a)), 0.25)
    if name == "dotted":
        x, y = 2.1 * u + a, 2.1 * v + b
        x = x + 0.5 * (np.floor(y) % 2)
        return _smoothstep(np.float32(0.34) - np.hypot(x - np.floor(x) - 0.5, y - np.floor(y) - 0.5), 0.06)
    if name == "checkered":
        return _smoothstep(np.sin(np.pi * (2.2 * u + a)) * np.sin(np.pi * (2.2 * v + b)), 0.12)
    if name == "zigzag":
        x = 1.7 * u + a
        teeth = np.abs(x - np.floor(x) - 0.5)
        return _smoothstep(np.sin(2 * np.pi * (1.5 * v + b + 0.9 * teeth)), 0.25)
    if name == "marbled":
        swirl = np.sin(3.1 * u + 2.3 * np.sin(2.4 * v + 6.3 * a) + 6.3 * b) + np.sin(
            4.3 * v + 1.9 * np.sin(3.7 * u + 6.3 * c)
        )
        return np.exp(-6 * swirl * swirl).astype(np.float32)
    raise ShapesError(f"texture {name!r}; expected one of {TEXTURES}.")


def _hsv(h: float, s: float, v: float) -> np.ndarray:
    k = (np.array([5.0, 3.0, 1.0]) + h * 6) % 6
    return (v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


def _wood(rng: np.random.Generator, side: int) -> np.ndarray:
    planks = int(rng.integers(3, 6))
    y = np.arange(side, dtype=np.float32)[:, None] / side * planks + np.float32(rng.random())
    board = np.floor(y).astype(int)
    shade = rng.uniform(-0.12, 0.12, board.max() + 1).astype(np.float32)[board]
    grain = _noise(rng, side, side, 30, 2, stretch=14)
    rings = np.sin(26 * _noise(rng, side, side, 7, 1, stretch=5) + 4 * y) * np.float32(0.5)
    gap = np.minimum(y - np.floor(y), 1 - (y - np.floor(y))) < 0.02
    value = (1 + shade + 0.16 * grain + 0.05 * rings) * np.where(gap, np.float32(0.55), np.float32(1))
    return value[..., None] * _hsv(rng.uniform(0.05, 0.11), rng.uniform(0.25, 0.55), rng.uniform(0.42, 0.8))


def _cloth(rng: np.random.Generator, side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    threads = rng.uniform(28, 46)
    weave = np.sin(2 * np.pi * threads * x) * np.sin(2 * np.pi * threads * y)
    folds = _noise(rng, side, side, 2.5, 3)
    value = 1 + 0.07 * weave + 0.16 * folds
    colour = _hsv(rng.random(), rng.uniform(0.04, 0.3), rng.uniform(0.45, 0.85))
    image = value[..., None] * colour
    if rng.random() < 0.5:  # a band woven into it
        band = np.abs((x * math.cos(0.4) + y * math.sin(0.4)) * 3 % 1 - 0.5) < 0.12
        image = image * np.where(band, np.float32(0.84), np.float32(1))[..., None]
    return image


def _stone(rng: np.random.Generator, side: int) -> np.ndarray:
    value = 1 + 0.22 * _noise(rng, side, side, 4, 5) + 0.1 * _noise(rng, side, side, 60, 2)
    vein = np.exp(-60 * _noise(rng, side, side, 3, 3) ** 2) * np.float32(rng.uniform(-0.25, 0.25))
    return (value + vein)[..., None] * _hsv(rng.random(), rng.uniform(0.02, 0.14), rng.uniform(0.4, 0.85))


def _tiles(rng: np.random.Generator, side: int) -> np.ndarray:
    n = int(rng.integers(3, 6))
    y, x = np.mgrid[:side, :side].astype(np.float32) / side * n + rng.random(2).astype(np.float32)[:, None, None]
    tint = rng.uniform(-0.09, 0.09, (n + 2, n + 2)).astype(np.float32)[np.floor(y).astype(int), np.floor(x).astype(int)]
    edge = np.minimum(np.minimum(x % 1, 1 - x % 1), np.minimum(y % 1, 1 - y % 1))
    grout = _smoothstep(0.03 - edge, 0.012)
    value = (1 + tint + 0.07 * _noise(rng, side, side, 20, 3)) * (1 - 0.35 * grout)
    return value[..., None] * _hsv(rng.random(), rng.uniform(0.03, 0.25), rng.uniform(0.5, 0.88))


def _lawn(rng: np.random.Generator, side: int) -> np.ndarray:
    blades = _noise(rng, side, side, 90, 2, stretch=0.25)
    value = 1 + 0.3 * blades + 0.2 * _noise(rng, side, side, 4, 3)
    return value[..., None] * _hsv(rng.uniform(0.17, 0.32), rng.uniform(0.25, 0.5), rng.uniform(0.35, 0.6))


def _paper(rng: np.random.Generator, side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    angle = rng.uniform(0, 2 * math.pi)
    t = np.clip((x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle) + 0.5, 0, 1)[..., None]
    h = rng.random()
    ends = (
        _hsv(h, rng.uniform(0.05, 0.35), rng.uniform(0.6, 0.95)),
        _hsv(h + rng.uniform(-0.12, 0.12), 0.25, rng.uniform(0.35, 0.8)),
    )
    return (ends[0] * (1 - t) + ends[1] * t) * (1 + 0.06 * _noise(rng, side, side, 70, 2))[..., None]


_GROUNDS = (_wood, _cloth, _stone, _tiles, _lawn, _paper)


# ---- toys and clutter


@dataclasses.dataclass
class _Item:
    """Something on the canvas: an object (class_id >= 0) or clutter (-1). Lengths in canvas px."""

    class_id: int
    outline: list[np.ndarray]  # unit contours
    radius: float
    matrix: np.ndarray  # (2, 2) unit -> px
    centre: np.ndarray  # (2,)
    texture: str
    colours: tuple[np.ndarray, np.ndarray]  # RGB 0..1
    phase: np.ndarray  # (3,)
    gloss: float
    extra: bool = False  # may end up mostly hidden


def _coverage(item: _Item, side: int, pad: int) -> tuple[np.ndarray, int, int]:
    """Mask (h, w) uint8 0/255 of the whole outline, `pad` px around it, and its corner x, y on the canvas."""
    contours = [c @ item.matrix.T + item.centre for c in item.outline]
    points = np.concatenate(contours)
    x0, y0 = (np.floor(points.min(0)).astype(int) - pad).tolist()
    x1, y1 = (np.ceil(points.max(0)).astype(int) + pad + 1).tolist()
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    # shift=4: corners are placed to 1/16 canvas px
    cv2.fillPoly(mask, [np.round((c - (x0, y0)) * 16).astype(np.int32) for c in contours], 255, shift=4)
    return mask, x0, y0


def _overlap(
    x0: int, y0: int, shape: Sequence[int], side: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """The part of a patch at (x0, y0) that lies on the canvas: slices into the canvas and into the patch."""
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x0 + shape[1], side), min(y0 + shape[0], side)
    if left >= right or top >= bottom:
        return None
    return (slice(top, bottom), slice(left, right)), (slice(top - y0, bottom - y0), slice(left - x0, right - x0))


def _place(canvas: np.ndarray, item: _Item, light: np.ndarray, shadow: float) -> None:
    """Draws one item with its soft shadow onto canvas (H, H, 3) float32. light: (3,) unit vector towards the
    light.
    """
    side, r = canvas.shape[0], item.radius
    pad = int(0.55 * r) + 4
    mask, x0, y0 = _coverage(item, side, pad)
    solid = mask.astype(np.float32) / 255

    # shadow: a contact shadow close by and a softer one cast away from the light
    shift = np.float32([[1, 0, -light[0] * 0.28 * r], [0, 1, -light[1] * 0.28 * r]])
    cast = cv2.warpAffine(solid, shift, (mask.shape[1], mask.shape[0]))
    dark = np.float32(shadow) * cv2.GaussianBlur(cast, (0, 0), 0.13 * r + 0.8)
    dark = np.maximum(dark, np.float32(0.35) * cv2.GaussianBlur(solid, (0, 0), 0.05 * r + 0.6))

    # surface: a rounded rim, from the distance to the outline
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    rim = np.float32(0.3 * r)
    depth = 1 - np.minimum(distance / rim, 1)
    height = cv2.GaussianBlur(
        np.sqrt(np.maximum(1 - depth * depth, 0)) * rim * np.float32(0.8), (0, 0), 0.035 * r + 0.5
    )
    dx, dy = (cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125), cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125))
    norm = 1 / np.sqrt(dx * dx + dy * dy + 1)
    lambert = np.maximum((light[2] - dx * light[0] - dy * light[1]) * norm, 0)
    half = light + np.float32([0, 0, 1])
    half /= np.linalg.norm(half)
    shine = np.maximum((half[2] - dx * half[0] - dy * half[1]) * norm, 0) ** 40 * np.float32(item.gloss)

    inverse = np.linalg.inv(item.matrix).astype(np.float32)
    py, px = np.mgrid[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]].astype(np.float32)
    px -= np.float32(item.centre[0])
    py -= np.float32(item.centre[1])
    u, v = inverse[0, 0] * px + inverse[0, 1] * py, inverse[1, 0] * px + inverse[1, 1] * py
    mix = _texture(item.texture, u, v, item.phase)[..., None]
    colour = item.colours[0] * (1 - mix) + item.colours[1] * mix
    colour = colour * (np.float32(0.42) + np.float32(0.72) * lambert)[..., None] + shine[..., None]

    parts = _overlap(x0, y0, mask.shape, side)
    if parts is None:
        return
    on, of = parts
    cover = solid[of][..., None]
    canvas[on] = canvas[on] * (1 - dark[of][..., None]) * (1 - cover) + colour[of] * cover


def _pose(rng: np.random.Generator, radius: float, turn: float) -> np.ndarray:
    """(2, 2): scale, a little stretch and shear, rotation by up to +-turn radians."""
    angle = rng.uniform(-turn, turn)
    c, s = math.cos(angle), math.sin(angle)
    shape = np.array([[rng.uniform(0.9, 1.05), rng.uniform(-0.08, 0.08)], [0.0, rng.uniform(0.9, 1.05)]])
    return radius * np.array([[c, -s], [s, c]]) @ shape


def _toy(rng: np.random.Generator, class_id: int, attributes: tuple[str, str, str], radius: float) -> _Item:
    shape, texture, hue = attributes
    base = np.float32(HUES[hue]) / 255 * np.float32(rng.uniform(0.92, 1.05)) + rng.normal(0, 0.015, 3).astype(
        np.float32
    )
    second = 0.2 * base + 0.8 * np.float32([0.98, 0.96, 0.9])
    return _Item(
        class_id,
        _unit_outline(shape),
        radius,
        _pose(rng, radius, math.radians(38)),
        np.zeros(2),
        texture,
        (np.clip(base, 0, 1), second),
        rng.random(3),
        rng.uniform(0.1, 0.55),
    )


def _clutter(rng: np.random.Generator, radius: float) -> _Item:
    """A pebble, a twig or a scrap of paper: in no category, and in colours that none has."""
    kind = int(rng.integers(3))
    texture, gloss = "plain", 0.0
    if kind == 0:
        wobble = rng.uniform(-0.13, 0.13, 4)
        outline = _polar(
            lambda a: (
                0.8
                + wobble[0] * np.cos(2 * a)
                + wobble[1] * np.sin(2 * a)
                + wobble[2] * np.cos(3 * a)
                + wobble[3] * np.sin(3 * a)
            ),
            48,
        )
        colour, texture = (_hsv(rng.uniform(0.02, 0.16), rng.uniform(0.02, 0.18), rng.uniform(0.25, 0.75)), "marbled")
        radius *= 0.6
    elif kind == 1:
        bend = rng.uniform(-0.3, 0.3)
        t = np.linspace(-1, 1, 16)
        spine = bend * (1 - t**2)
        width = 0.1 * (1.15 - 0.4 * t)
        outline = [np.concatenate([np.stack([t, spine - width], 1), np.stack([t, spine + width], 1)[::-1]])]
        colour = _hsv(rng.uniform(0.04, 0.1), rng.uniform(0.3, 0.5), rng.uniform(0.2, 0.45))
    else:
        corners = np.sort(rng.uniform(0, 2 * np.pi, 2)) * 0.15 + np.array([0.2, 1.6])
        angles = np.array([corners[0], corners[1], corners[0] + np.pi, corners[1] + np.pi + rng.uniform(-0.2, 0.2)])
        outline = [np.stack([np.cos(angles), np.sin(angles)], 1)]
        colour = _hsv(rng.uniform(0.08, 0.16), rng.uniform(0.0, 0.12), rng.uniform(0.7, 0.97))
        radius *= 0.65
    return _Item(
        -1,
        outline,
        radius,
        _pose(rng, radius, math.pi),
        np.zeros(2),
        texture,
        (colour, colour * 1.15),
        rng.random(3),
        gloss,
    )


def _arrange(rng: np.random.Generator, items: list[_Item], side: int, closeness: float) -> None:
    """Gives every item a centre: apart by at least `closeness` times the sum of the radii where that can be
    had.
    """
    placed: list[_Item] = []
    for item in sorted(items, key=lambda it: -it.radius):
        margin = min(0.8 * item.radius, side / 2)
        tries = rng.uniform(margin, side - margin, (48, 2))
        if placed:
            gaps = np.min([np.hypot(*(tries - p.centre).T) / (p.radius + item.radius) for p in placed], axis=0)
            enough = np.flatnonzero(gaps >= closeness)
            # an extra wants to be hidden: as close to another as it gets
            best = int(np.argmin(gaps)) if item.extra else int(enough[0] if enough.size else np.argmax(gaps))
        else:
            best = 0
        item.centre = tries[best]
        placed.append(item)


def _owners(items: list[_Item], side: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, H) int16: index of the topmost item, -1 = background; and each item's whole area (n,), off-canvas
    included.
    """
    owner = np.full((side, side), -1, np.int16)
    areas = np.zeros(len(items))
    for index, item in enumerate(items):
        mask, x0, y0 = _coverage(item, side, 0)
        areas[index] = np.count_nonzero(mask)
        parts = _overlap(x0, y0, mask.shape, side)
        if parts is not None:
            on, of = parts
            owner[on][mask[of] > 0] = index
    return owner, areas


def _compose(
    rng: np.random.Generator, objects: list[_Item], clutter: list[_Item], side: int
) -> tuple[list[_Item], np.ndarray, np.ndarray]:
    """Items in drawing order, the owner map, the visible share of each. Every object but extras is visible
    enough.
    """
    for attempt in range(40):
        # twigs and scraps lie below and above the toys; crowded scenes are loosened attempt by attempt
        _arrange(rng, objects + clutter, side, 0.62 + 0.012 * attempt)
        order = [(objects + clutter)[i] for i in rng.permutation(len(objects) + len(clutter))]
        order.sort(key=lambda it: not it.extra)  # extras lowest; the sort is stable
        for _ in range(3):
            owner, areas = _owners(order, side)
            seen = np.bincount(owner.ravel()[owner.ravel() >= 0], minlength=len(order)) / np.maximum(areas, 1)
            hidden = [
                i for i, it in enumerate(order) if it.class_id >= 0 and not it.extra and seen[i] < MIN_VISIBLE + 0.05
            ]
            if not hidden:
                return order, owner, seen
            order = [it for i, it in enumerate(order) if i not in hidden] + [order[i] for i in hidden]
        for item in objects + clutter:  # smaller, a little, and again
            item.radius *= 0.95
            item.matrix = item.matrix * 0.95
    raise ShapesError(f"could not lay out {len(objects)} objects visibly; fewer classes an image are needed.")


# ---- ground truth


def mask_to_polygons(mask: np.ndarray, scale: float = 1.0, tolerance: float = 0.5) -> list[list[float]]:
    """Polygons [x0, y0, x1, y1, ...] of a mask. COCO polygons know no holes: a mask with one is cut through
    it.

    Args:
        mask: (h, w) bool.
        scale: canvas px a px of the result.
        tolerance: how far a polygon may leave the outline, canvas px.

    Returns:
        Polygons in px of the result, a pixel's corner (not its centre) at integer coordinates.
    """
    polygons: list[list[float]] = []
    pieces = [mask.astype(np.uint8)]
    while pieces:
        piece = pieces.pop()
        contours, hierarchy = cv2.findContours(piece, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        if hierarchy is None:
            continue
        holes = [c for c, h in zip(contours, hierarchy[0]) if h[3] >= 0 and cv2.contourArea(c) > 4 * scale**2 / 9]
        if holes:
            column = int(np.mean(max(holes, key=cv2.contourArea)[:, 0, 0]))
            left, right = piece.copy(), piece.copy()
            left[:, column:] = 0
            right[:, :column] = 0
            pieces += [right, left]
            continue
        for contour, links in zip(contours, hierarchy[0]):
            if links[3] >= 0 or len(contour) < 3:
                continue
            contour = cv2.approxPolyDP(contour, tolerance, True)[:, 0].astype(np.float64)
            if len(contour) < 3:
                continue
            contour = _outset(contour)
            xy = np.round((contour + 0.5) / scale, 2)
            if len(xy) >= 3 and abs(cv2.contourArea(xy.astype(np.float32))) >= 1.0:
                polygons.append(xy.ravel().tolist())
    return polygons


def _outset(contour: np.ndarray) -> np.ndarray:
    """Moves an outline that runs through pixel centres (n, 2) outward by half a px, to the pixels' edges."""
    ahead = np.roll(contour, -1, 0) - contour
    ahead /= np.maximum(np.hypot(*ahead.T), 1e-9)[:, None]
    behind = np.roll(ahead, 1, 0)
    x, y = contour.T
    sign = 1.0 if np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) > 0 else -1.0
    normal = sign * np.stack([ahead[:, 1] + behind[:, 1], -ahead[:, 0] - behind[:, 0]], 1)
    length = np.hypot(*normal.T)[:, None]
    # a corner of 180 degrees has no normal, and a very sharp one must not fly away
    return contour + 0.5 * np.where(
        length > 0.3, normal / np.maximum(length, 0.3) * np.minimum(2 / np.maximum(length, 0.3), 1.6), 0
    )


def draw_image(
    spec: ShapesSpec, classes: Sequence[tuple[str, str, str]], present: Sequence[int], split: str, index: int
) -> tuple[np.ndarray, list[dict], list[int]]:
    """One picture and its labels; depends on nothing but its arguments.

    Args:
        spec: the data set.
        classes: (shape, texture, hue) of all K classes.
        present: class ids that the image must hold.
        split: "train", "val", "tune" or "balanced".
        index: number of the image in its split.

    Returns:
        image: (S, S, 3) uint8 RGB.
        objects: dicts with class_id, bbox (XYWH px), area (px^2, visible), segmentation (polygons).
        not_exhaustive: class ids of which one more object is there, too hidden to be labelled.
    """
    rng = np.random.default_rng([spec.seed, _STREAMS[split], index])
    size, ss = spec.image_size, spec.supersampling
    side = size * ss

    def radius() -> float:
        return side * math.exp(rng.uniform(math.log(0.085), math.log(0.185)))

    wanted = [k for k in present for _ in range(1 + int(rng.random() < 0.22))]
    objects = [_toy(rng, k, classes[k], radius()) for k in wanted]
    if objects and rng.random() < 0.12:
        extra = _toy(rng, wanted[0], classes[wanted[0]], radius())
        extra.extra = True
        objects.append(extra)
    clutter = [_clutter(rng, radius()) for _ in range(int(rng.integers(0, 5)))]
    order, owner, seen = _compose(rng, objects, clutter, side)

    canvas = np.clip(_GROUNDS[int(rng.integers(len(_GROUNDS)))](rng, side), 0, 1.2).astype(np.float32)
    azimuth, height = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(38, 65))
    light = np.float32([math.cos(azimuth) * math.cos(height), math.sin(azimuth) * math.cos(height), math.sin(height)])
    shadow = rng.uniform(0.35, 0.65)
    for item in order:
        _place(canvas, item, light, shadow)

    # light falls off over the scene and has a tint; the camera adds blur, noise and a tone curve
    y, x = np.mgrid[:side, :side].astype(np.float32) / side - np.float32(0.5)
    falloff = (
        1 + np.float32(rng.uniform(0.1, 0.45)) * (x * light[0] + y * light[1]) - np.float32(0.35) * (x * x + y * y)
    )
    canvas *= (
        falloff[..., None] * (1 + rng.normal(0, 0.035, 3)).astype(np.float32) * np.float32(rng.uniform(0.82, 1.12))
    )
    image = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.6))
    image += rng.normal(0, rng.uniform(0.004, 0.018), image.shape).astype(np.float32)
    image = np.round(np.clip(image, 0, 1) ** np.float32(rng.uniform(0.85, 1.1)) * 255).astype(np.uint8)

    labels, not_exhaustive = [], set()
    for i, item in enumerate(order):
        if item.class_id < 0:
            continue
        visible = owner == i
        area = np.count_nonzero(visible) / ss**2
        polygons = mask_to_polygons(visible, ss) if seen[i] >= MIN_VISIBLE else []
        if not polygons:
            if area > 0:
                not_exhaustive.add(item.class_id)
            continue
        xy = np.clip(np.concatenate([np.reshape(p, (-1, 2)) for p in polygons]), 0, size)
        (x0, y0), (x1, y1) = xy.min(0), xy.max(0)
        polygons = [np.clip(p, 0, size).tolist() for p in polygons]
        labels.append(
            {
                "class_id": item.class_id,
                "bbox": [round(float(b), 2) for b in (x0, y0, x1 - x0, y1 - y0)],
                "area": round(area, 2),
                "segmentation": polygons,
            }
        )
    return image, labels, sorted(not_exhaustive)


# ---- the long tail


def image_counts(spec: ShapesSpec) -> tuple[np.ndarray, np.ndarray]:
    """Images of every class in training and in validation, (K,) int each, falling with the class's rank.

    Log-linear in three pieces that cross 100.5 and 10.5 images between the groups, so that each group has
    exactly the wanted number of classes.
    """
    f, c, r = spec.num_frequent, spec.num_common, spec.num_rare
    knots = [0.0, f - 0.5]
    values = [spec.max_image_frequency * spec.train_images, COMMON_MAX_IMAGES + 0.5]
    if c:
        knots.append(f + c - 0.5)
        values.append(RARE_MAX_IMAGES + 0.5)
    if r:
        if not c:  # straight from f to r
            knots[-1] -= 1e-6
            knots.append(f - 0.5)
            values.append(RARE_MAX_IMAGES + 0.5)
        knots.append(f + c + r - 1.0 if r > 1 else f + c + 0.0)
        values.append(float(spec.min_image_count))
    rank = np.arange(spec.num_classes)
    train = np.round(np.exp(np.interp(rank, knots, np.log(values)))).astype(int)
    train[f + c :] = np.minimum(train[f + c :], RARE_MAX_IMAGES)
    share = (train / spec.train_images) ** spec.val_exponent
    val = share * (spec.val_images * spec.val_classes_per_image / share.sum())
    return train, np.clip(np.round(val).astype(int), 1, spec.val_images)


def choose_classes(spec: ShapesSpec) -> list[tuple[str, str, str]]:
    """(shape, texture, hue) of the K classes, most frequent first. A rare one differs in one attribute from
    another.
    """
    rng = np.random.default_rng([spec.seed, 2])
    axes = (list(SHAPES), list(TEXTURES), list(HUES))
    chosen: list[tuple[str, str, str]] = []
    decks: list[list[str]] = [[], [], []]  # drawn from to the last card, so that no shape, texture or hue prevails
    while len(chosen) < spec.num_frequent + spec.num_common:
        for deck, axis in zip(decks, axes):
            if not deck:
                deck.extend(axis[int(i)] for i in rng.permutation(len(axis)))
        new = (decks[0].pop(), decks[1].pop(), decks[2].pop())
        if new not in chosen:
            chosen.append(new)
    models = list(chosen)
    while len(chosen) < spec.num_classes:
        new_list = list(models[int(rng.integers(len(models)))])
        # each attribute in turn, so that every way of being confused is there
        which = len(chosen) % 3
        new_list[which] = str(axes[which][int(rng.integers(len(axes[which])))])
        if tuple(new_list) not in chosen:
            chosen.append(tuple(new_list))  # type: ignore[arg-type]
    return chosen


def plan_images(counts: np.ndarray, num_images: int, num_frequent: int, rng: np.random.Generator) -> list[list[int]]:
    """Which classes each image holds: class k in exactly counts[k] images, spread evenly; rare and common
    classes only where a frequent one is, as in LVIS few images hold nothing but rare objects."""
    held: list[list[int]] = [[] for _ in range(num_images)]
    load = rng.uniform(0, 2.5, num_images)  # some images are emptier than others
    for k, count in enumerate(counts):
        priority = load + rng.uniform(0, 1.5, num_images)
        if k >= num_frequent:
            with_frequent = np.array([bool(h) for h in held])
            if with_frequent.sum() >= count:
                priority[~with_frequent] = np.inf
        for i in np.argsort(priority, kind="stable")[:count]:
            held[int(i)].append(k)
            load[i] += 1
    return held


def deal_evenly(sizes: Sequence[int], num_classes: int, rng: np.random.Generator) -> list[list[int]]:
    """Which classes each image holds: sizes[i] different ones in image i, all classes in equally many images,
    give or take one.

    Args:
        sizes: number of classes of each image, 0..num_classes.
        num_classes: K.
        rng: decides between classes that were dealt equally often.

    Returns:
        Ascending class ids of each image.
    """
    dealt = np.zeros(num_classes, int)
    held = []
    for size in sizes:
        least = np.lexsort((rng.random(num_classes), dealt))[:size]
        dealt[least] += 1
        held.append(sorted(least.tolist()))
    return held


def plan_split(spec: ShapesSpec, split: str) -> list[list[int]]:
    """Which classes each image of a split holds; one list an image."""
    rng = np.random.default_rng([spec.seed, 4, _STREAMS[split]])
    train, val = image_counts(spec)
    if split in ("val", "tune"):
        return plan_images(val, spec.val_images, spec.num_frequent, rng)
    held = plan_images(train, spec.train_images, spec.num_frequent, rng)
    # Balanced images are as crowded as those of a training set with the tail.
    return held if split == "train" else deal_evenly([len(h) for h in held], spec.num_classes, rng)


def category_names(spec: ShapesSpec) -> list[str]:
    """Names of the K classes, most frequent first, such as "striped teal star"."""
    return [f"{texture} {hue} {shape}" for shape, texture, hue in choose_classes(spec)]


# ---- to disk


def _draw_file(
    task: tuple[ShapesSpec, list[tuple[str, str, str]], list[int], str, int, str],
) -> tuple[list[dict], list[int]]:
    spec, classes, present, split, index, path = task
    image, labels, not_exhaustive = draw_image(spec, classes, present, split, index)
    quality = int(np.random.default_rng([spec.seed, 3, _STREAMS[split], index]).integers(86, 96))
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ShapesError(f"{path}: opencv could not encode the JPEG.")
    Path(path).write_bytes(data.tobytes())
    return labels, not_exhaustive


def _marker(spec: ShapesSpec, split: str | None = None) -> dict:
    """What spec.json holds. `split`: the one extra split of the folder; None: train and val."""
    marker = {
        "generator": "rio.shapes",
        "synthetic": True,
        "drawing_version": DRAWING_VERSION,
        "spec": dataclasses.asdict(spec),
    }
    return marker if split is None else {**marker, "split": split}


def _is_complete(folder: Path, marker: dict, sizes: dict[str, int]) -> bool:
    """True: drawn and whole. False: nothing there, or ours with files missing. Else an error.

    Args:
        folder: where the set is or would be.
        marker: what its spec.json must hold.
        sizes: number of images of each split in it.
    """
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / "spec.json").read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("generator") != "rio.shapes":
        if folder.is_dir() and not any(folder.iterdir()):
            return False
        raise ShapesError(
            f"{folder} exists and was not drawn by rio.shapes (no valid spec.json in it); choose another "
            "folder (DETECTRON2_DATASETS) or move it away."
        )
    if found != marker:
        old = found.get("spec", {})
        new = marker["spec"]
        differs = [f"{k}: there {old.get(k)!r}, asked {v!r}" for k, v in new.items() if old.get(k) != v]
        differs += [
            f"{k}: there {found.get(k)!r}, asked {marker.get(k)!r}"
            for k in ("drawing_version", "split")
            if found.get(k) != marker.get(k)
        ]
        raise ShapesError(
            f"{folder} was drawn otherwise ({'; '.join(differs)}); remove it to have it drawn anew, or "
            "give the new spec another name."
        )
    return all(
        (folder / f"{s}.json").is_file() and len(list((folder / s).glob("*.jpg"))) == n for s, n in sizes.items()
    )


def generate(root: str | os.PathLike, spec: ShapesSpec, *, workers: int | None = None, progress: bool = True) -> Path:
    """Draws the data set below root, unless it is there; the folder appears when it is whole.

    Args:
        root: folder that gets `spec.name/{train,val}.json`, `{train,val}/*.jpg` and `spec.json`.
        spec: what to draw, one of SPECS or your own.
        workers: threads; None: one a usable core.
        progress: show a progress bar.

    Returns:
        root/spec.name.

    Raises:
        ShapesError: the spec is impossible (the message names the field), or the folder holds something else
            (move it, or name the spec otherwise).
    """
    spec.validate()
    sizes = {"train": spec.train_images, "val": spec.val_images}

    def draw(folder: Path) -> None:
        drawn = _draw_images(folder, spec, list(sizes), workers, progress)
        categories = _categories(spec, drawn["train"])
        for split in sizes:
            _write_json(folder / f"{split}.json", _lvis_json(spec, split, drawn[split], categories))
        _write_json(folder / "spec.json", _marker(spec))

    return _once(Path(root), spec.name, _marker(spec), sizes, draw)


def generate_extra(
    root: str | os.PathLike, spec: ShapesSpec, split: str, *, workers: int | None = None, progress: bool = True
) -> Path:
    """Draws one split that goes with a data set, and before it the set itself, unless they are there.

    Args:
        root: folder that gets `{spec.name}_{split}` with `{split}.json`, `{split}/*.jpg` and `spec.json`.
        spec: the data set; its categories and frequency groups are the split's too.
        split: "tune" or "balanced"; see the module's docstring.
        workers: threads; None: one a usable core.
        progress: show a progress bar.

    Returns:
        root/{spec.name}_{split}.

    Raises:
        ShapesError: as for `generate`, or there is no such split.
    """
    spec.validate()
    if split not in EXTRA_SPLITS:
        raise ShapesError(f"split = {split!r}; expected one of {', '.join(EXTRA_SPLITS)}.")

    def draw(folder: Path) -> None:
        base = generate(root, spec, workers=workers, progress=progress)
        categories = json.loads((base / "train.json").read_text())["categories"]
        drawn = _draw_images(folder, spec, [split], workers, progress)[split]
        if split == "balanced":
            groups = [category["frequency"] for category in categories]
            categories = _categories(spec, drawn)
            for category, group in zip(categories, groups, strict=True):
                category["frequency"] = group
        _write_json(folder / f"{split}.json", _lvis_json(spec, split, drawn, categories))
        _write_json(folder / "spec.json", _marker(spec, split))

    size = spec.val_images if split == "tune" else spec.train_images
    return _once(Path(root), f"{spec.name}_{split}", _marker(spec, split), {split: size}, draw)


def _once(root: Path, name: str, marker: dict, sizes: dict[str, int], draw: Callable[[Path], None]) -> Path:
    """root/name; unless it is there, drawn by `draw` into a folder that gets the name when it is whole."""
    root.mkdir(parents=True, exist_ok=True)
    target = root / name
    if _is_complete(target, marker, sizes):
        return target
    # Two trainings may start side by side and both want the set: the second waits for the first. The lock
    # dies with its process, so nothing stale is left behind.
    with open(root / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_complete(target, marker, sizes):
            return target
        partial = root / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        draw(partial)
        shutil.rmtree(target, ignore_errors=True)  # ours, with files missing; or empty
        partial.rename(target)
    return target


# Of one image: the classes it was to hold, its labels, and its classes that are not exhaustive.
_Drawn = tuple[list[int], list[dict], list[int]]


def _draw_images(
    folder: Path, spec: ShapesSpec, splits: Sequence[str], workers: int | None, progress: bool
) -> dict[str, list[_Drawn]]:
    """Draws splits into folder/SPLIT/*.jpg; returns what is in the pictures, by split."""
    classes = choose_classes(spec)
    plans = {split: plan_split(spec, split) for split in splits}
    for split in splits:
        (folder / split).mkdir()
    tasks = [
        (spec, classes, held, split, i, str(folder / split / f"{i + 1:06d}.jpg"))
        for split, plan in plans.items()
        for i, held in enumerate(plan)
    ]
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise ShapesError(f"workers = {workers}; expected 1 or more, or None for one a usable core.")
    bar = tqdm(
        total=len(tasks),
        desc=f"drawing {spec.name} {' and '.join(splits)} ({spec.image_size} px)",
        unit="image",
        disable=None if progress else True,
    )
    drawn: dict[str, list[_Drawn]] = {split: [] for split in splits}
    with bar:
        # Threads, not processes: NumPy and OpenCV compute outside the interpreter's lock; spawned processes
        # would run an unguarded script of the user's a second time, forked ones can hang beside torch's
        # threads.
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            try:
                for (_, _, held, split, _, _), labels in zip(tasks, pool.map(_draw_file, tasks), strict=True):
                    drawn[split].append((held, *labels))
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return drawn


def _categories(spec: ShapesSpec, drawn: list[_Drawn]) -> list[dict]:
    """LVIS's categories, ids 1..K, with the counts and groups of a training set. As in LVIS, the file of the
    validation set carries them too."""
    instances, images = np.zeros(spec.num_classes, int), np.zeros(spec.num_classes, int)
    for _, labels, _ in drawn:
        ids = [label["class_id"] for label in labels]
        np.add.at(instances, ids, 1)
        images[sorted(set(ids))] += 1
    groups = np.where(images <= RARE_MAX_IMAGES, "r", np.where(images <= COMMON_MAX_IMAGES, "c", "f"))
    return [
        {
            "id": k + 1,
            "name": name,
            "synset": f"{name.replace(' ', '_')}.n.01",
            "synonyms": [name.replace(" ", "_")],
            "def": f"a synthetic, drawn toy: {name}",
            "frequency": str(groups[k]),
            "image_count": int(images[k]),
            "instance_count": int(instances[k]),
        }
        for k, name in enumerate(category_names(spec))
    ]


def _lvis_json(spec: ShapesSpec, split: str, drawn: list[_Drawn], categories: list[dict]) -> dict:
    rng = np.random.default_rng([spec.seed, 5, _STREAMS[split]])
    images, annotations = [], []
    for i, (held, labels, not_exhaustive) in enumerate(drawn):
        absent = np.setdiff1d(np.arange(spec.num_classes), held)
        verified = absent[rng.random(absent.size) < spec.negative_share]
        images.append(
            {
                "id": i + 1,
                "file_name": f"{i + 1:06d}.jpg",
                "width": spec.image_size,
                "height": spec.image_size,
                "neg_category_ids": (verified + 1).tolist(),
                "not_exhaustive_category_ids": [k + 1 for k in not_exhaustive],
            }
        )
        for label in labels:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": label["class_id"] + 1,
                    "bbox": label["bbox"],
                    "area": label["area"],
                    "segmentation": label["segmentation"],
                }
            )
    tail = 'no tail, but "frequency" as with it' if split == "balanced" else "long tail"
    info = {
        "description": f"rio shapes {spec.name!r} {split}: synthetic pictures, {tail}, LVIS v1 format",
        "version": str(DRAWING_VERSION),
        "synthetic": True,
    }
    return {"info": info, "licenses": [], "categories": categories, "images": images, "annotations": annotations}


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


SPECS: dict[str, ShapesSpec] = {
    # Small enough for three trainings in some minutes on two CPU cores.
    "demo": ShapesSpec(
        "shapes_demo",
        image_size=128,
        train_images=400,
        val_images=160,
        num_classes=30,
        num_rare=11,
        num_common=13,
        seed=1,
    ),
    # For a GPU.
    "bench": ShapesSpec(
        "shapes_bench",
        image_size=192,
        train_images=6000,
        val_images=1500,
        num_classes=100,
        num_rare=36,
        num_common=34,
        seed=2,
        max_image_frequency=0.3,
        min_image_count=1,
    ),
}
