"""What the toys are painted with, and the six grounds they lie on. Images are (h, w) or (h, w, 3) float32, RGB 0..1."""

import math

import cv2
import numpy as np

from rio.shapes.spec import TEXTURES, ShapesError


def _noise(rng: np.random.Generator, side: int, cells: float, octaves: int = 3, stretch: float = 1.0) -> np.ndarray:
    """Smooth noise in about [-1, 1], (side, side) float32; `cells` along a side in the first octave."""
    total = np.zeros((side, side), np.float32)
    weight, norm = 1.0, 0.0
    for octave in range(octaves):
        n = cells * 2**octave
        rows, columns = max(2, round(n)), max(2, round(n / stretch))
        grid = rng.random((min(rows, side) + 1, min(columns, side) + 1), np.float32) * 2 - 1
        total += np.float32(weight) * cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        norm += weight
        weight *= 0.55
    return total / np.float32(norm)


def _smoothstep(x: np.ndarray, edge: float) -> np.ndarray:
    return np.clip(x / np.float32(2 * edge) + np.float32(0.5), 0, 1)


def texture(name: str, u: np.ndarray, v: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Share of the second colour, (h, w) in [0, 1]. u, v: (h, w) object coordinates in [-1, 1]; phase: (3,), 0..1."""
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
        swirl = np.sin(3.1 * u + 2.3 * np.sin(2.4 * v + 6.3 * a) + 6.3 * b)
        swirl = swirl + np.sin(4.3 * v + 1.9 * np.sin(3.7 * u + 6.3 * c))
        return np.exp(-6 * swirl * swirl).astype(np.float32)
    raise ShapesError(f"texture {name!r}; expected one of {TEXTURES}.")


def hsv(h: float, s: float, v: float) -> np.ndarray:
    """(3,) RGB of hue, saturation and value, all 0..1."""
    k = (np.array([5.0, 3.0, 1.0]) + h * 6) % 6
    return (v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


def _wood(rng: np.random.Generator, side: int) -> np.ndarray:
    planks = int(rng.integers(3, 6))
    y = np.arange(side, dtype=np.float32)[:, None] / side * planks + np.float32(rng.random())
    board = np.floor(y).astype(int)
    shade = rng.uniform(-0.12, 0.12, board.max() + 1).astype(np.float32)[board]
    grain = _noise(rng, side, 30, 2, stretch=14)
    rings = np.sin(26 * _noise(rng, side, 7, 1, stretch=5) + 4 * y) * np.float32(0.5)
    gap = np.minimum(y - np.floor(y), 1 - (y - np.floor(y))) < 0.02
    value = (1 + shade + 0.16 * grain + 0.05 * rings) * np.where(gap, np.float32(0.55), np.float32(1))
    return value[..., None] * hsv(rng.uniform(0.05, 0.11), rng.uniform(0.25, 0.55), rng.uniform(0.42, 0.8))


def _cloth(rng: np.random.Generator, side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    threads = rng.uniform(28, 46)
    weave = np.sin(2 * np.pi * threads * x) * np.sin(2 * np.pi * threads * y)
    folds = _noise(rng, side, 2.5, 3)
    value = 1 + 0.07 * weave + 0.16 * folds
    colour = hsv(rng.random(), rng.uniform(0.04, 0.3), rng.uniform(0.45, 0.85))
    image = value[..., None] * colour
    if rng.random() < 0.5:  # a band woven into it
        band = np.abs((x * math.cos(0.4) + y * math.sin(0.4)) * 3 % 1 - 0.5) < 0.12
        image = image * np.where(band, np.float32(0.84), np.float32(1))[..., None]
    return image


def _stone(rng: np.random.Generator, side: int) -> np.ndarray:
    value = 1 + 0.22 * _noise(rng, side, 4, 5) + 0.1 * _noise(rng, side, 60, 2)
    vein = np.exp(-60 * _noise(rng, side, 3, 3) ** 2) * np.float32(rng.uniform(-0.25, 0.25))
    return (value + vein)[..., None] * hsv(rng.random(), rng.uniform(0.02, 0.14), rng.uniform(0.4, 0.85))


def _tiles(rng: np.random.Generator, side: int) -> np.ndarray:
    n = int(rng.integers(3, 6))
    y, x = np.mgrid[:side, :side].astype(np.float32) / side * n + rng.random(2).astype(np.float32)[:, None, None]
    tint = rng.uniform(-0.09, 0.09, (n + 2, n + 2)).astype(np.float32)[np.floor(y).astype(int), np.floor(x).astype(int)]
    edge = np.minimum(np.minimum(x % 1, 1 - x % 1), np.minimum(y % 1, 1 - y % 1))
    grout = _smoothstep(0.03 - edge, 0.012)
    value = (1 + tint + 0.07 * _noise(rng, side, 20, 3)) * (1 - 0.35 * grout)
    return value[..., None] * hsv(rng.random(), rng.uniform(0.03, 0.25), rng.uniform(0.5, 0.88))


def _lawn(rng: np.random.Generator, side: int) -> np.ndarray:
    blades = _noise(rng, side, 90, 2, stretch=0.25)
    value = 1 + 0.3 * blades + 0.2 * _noise(rng, side, 4, 3)
    return value[..., None] * hsv(rng.uniform(0.17, 0.32), rng.uniform(0.25, 0.5), rng.uniform(0.35, 0.6))


def _paper(rng: np.random.Generator, side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    angle = rng.uniform(0, 2 * math.pi)
    t = np.clip((x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle) + 0.5, 0, 1)[..., None]
    h = rng.random()
    ends = (
        hsv(h, rng.uniform(0.05, 0.35), rng.uniform(0.6, 0.95)),
        hsv(h + rng.uniform(-0.12, 0.12), 0.25, rng.uniform(0.35, 0.8)),
    )
    return (ends[0] * (1 - t) + ends[1] * t) * (1 + 0.06 * _noise(rng, side, 70, 2))[..., None]


GROUNDS = (_wood, _cloth, _stone, _tiles, _lawn, _paper)
