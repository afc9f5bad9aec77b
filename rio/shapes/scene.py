"""One picture: toys and clutter are placed so that enough of each is visible, drawn, lit, and labelled.

Shapes: S = image side in px, H = S * supersampling = side of the canvas that is drawn on before it is reduced.
"""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np

from rio.shapes.outlines import Contours, polar, unit_outline
from rio.shapes.spec import HUES, STREAMS, Category, ShapesError, ShapesSpec
from rio.shapes.surfaces import GROUNDS, hsv, texture

# An object of which less is visible is not ground truth; its category becomes not-exhaustive in that image.
MIN_VISIBLE = 0.5


@dataclasses.dataclass
class _Item:
    """Something on the canvas: an object (class_id >= 0) or clutter (-1). Lengths in canvas px."""

    class_id: int
    outline: Contours  # of unit size
    radius: float
    matrix: np.ndarray  # (2, 2) unit -> px
    centre: np.ndarray  # (2,)
    texture: str
    colours: tuple[np.ndarray, np.ndarray]  # RGB 0..1
    phase: np.ndarray  # (3,)
    gloss: float
    extra: bool = False  # may end up mostly hidden


Slices = tuple[slice, slice]


def _coverage(item: _Item, side: int, pad: int) -> tuple[np.ndarray, int, int, Slices, Slices]:
    """Mask (h, w) uint8 0/255 of the outline and `pad` px around it; corner x, y; the common part on both."""
    contours = [c @ item.matrix.T + item.centre for c in item.outline]
    points = np.concatenate(contours)
    x0, y0 = (np.floor(points.min(0)).astype(int) - pad).tolist()
    x1, y1 = (np.ceil(points.max(0)).astype(int) + pad + 1).tolist()
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    # shift=4: corners are placed to 1/16 canvas px
    cv2.fillPoly(mask, [np.round((c - (x0, y0)) * 16).astype(np.int32) for c in contours], 255, shift=4)
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = max(min(x1, side), left), max(min(y1, side), top)  # empty if off the canvas
    on, of = (slice(top, bottom), slice(left, right)), (slice(top - y0, bottom - y0), slice(left - x0, right - x0))
    return mask, x0, y0, on, of


def _place(canvas: np.ndarray, item: _Item, light: np.ndarray, shadow: float) -> None:
    """Draws an item and its soft shadow onto canvas (H, H, 3) float32. light: (3,) unit vector towards the light."""
    side, r = canvas.shape[0], item.radius
    pad = int(0.55 * r) + 4
    mask, x0, y0, on, of = _coverage(item, side, pad)
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
    height = np.sqrt(np.maximum(1 - depth * depth, 0)) * rim * np.float32(0.8)
    height = cv2.GaussianBlur(height, (0, 0), 0.035 * r + 0.5)
    dx, dy = (cv2.Sobel(height, cv2.CV_32F, *axis, scale=0.125) for axis in ((1, 0), (0, 1)))
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
    mix = texture(item.texture, u, v, item.phase)[..., None]
    colour = item.colours[0] * (1 - mix) + item.colours[1] * mix
    colour = colour * (np.float32(0.42) + np.float32(0.72) * lambert)[..., None] + shine[..., None]

    cover = solid[of][..., None]
    canvas[on] = canvas[on] * (1 - dark[of][..., None]) * (1 - cover) + colour[of] * cover


def _pose(rng: np.random.Generator, radius: float, turn: float) -> np.ndarray:
    """(2, 2): scale, a little stretch and shear, rotation by up to +-turn radians."""
    angle = rng.uniform(-turn, turn)
    c, s = math.cos(angle), math.sin(angle)
    shape = np.array([[rng.uniform(0.9, 1.05), rng.uniform(-0.08, 0.08)], [0.0, rng.uniform(0.9, 1.05)]])
    return radius * np.array([[c, -s], [s, c]]) @ shape


def _toy(rng: np.random.Generator, class_id: int, category: Category, radius: float) -> _Item:
    shape, pattern, hue = category
    base = np.float32(HUES[hue]) / 255 * np.float32(rng.uniform(0.92, 1.05))
    base = base + rng.normal(0, 0.015, 3).astype(np.float32)
    colours = np.clip(base, 0, 1), 0.2 * base + 0.8 * np.float32([0.98, 0.96, 0.9])
    pose, phase = _pose(rng, radius, math.radians(38)), rng.random(3)
    return _Item(
        class_id, unit_outline(shape), radius, pose, np.zeros(2), pattern, colours, phase, rng.uniform(0.1, 0.55)
    )


def _clutter(rng: np.random.Generator, radius: float) -> _Item:
    """A pebble, a twig or a scrap of paper: in no category, and in colours that no category has."""
    kind = int(rng.integers(3))
    pattern = "plain"
    if kind == 0:
        w = rng.uniform(-0.13, 0.13, 4)
        waves = (np.cos, 2), (np.sin, 2), (np.cos, 3), (np.sin, 3)
        outline = polar(lambda a: sum((w[i] * f(n * a) for i, (f, n) in enumerate(waves)), 0.8), 48)
        colour = hsv(rng.uniform(0.02, 0.16), rng.uniform(0.02, 0.18), rng.uniform(0.25, 0.75))
        pattern = "marbled"
        radius *= 0.6
    elif kind == 1:
        bend = rng.uniform(-0.3, 0.3)
        t = np.linspace(-1, 1, 16)
        spine = bend * (1 - t**2)
        width = 0.1 * (1.15 - 0.4 * t)
        outline = [np.concatenate([np.stack([t, spine - width], 1), np.stack([t, spine + width], 1)[::-1]])]
        colour = hsv(rng.uniform(0.04, 0.1), rng.uniform(0.3, 0.5), rng.uniform(0.2, 0.45))
    else:
        corners = np.sort(rng.uniform(0, 2 * np.pi, 2)) * 0.15 + np.array([0.2, 1.6])
        angles = np.array([corners[0], corners[1], corners[0] + np.pi, corners[1] + np.pi + rng.uniform(-0.2, 0.2)])
        outline = [np.stack([np.cos(angles), np.sin(angles)], 1)]
        colour = hsv(rng.uniform(0.08, 0.16), rng.uniform(0.0, 0.12), rng.uniform(0.7, 0.97))
        radius *= 0.65
    pose = _pose(rng, radius, math.pi)
    return _Item(-1, outline, radius, pose, np.zeros(2), pattern, (colour, colour * 1.15), rng.random(3), 0.0)


def _arrange(rng: np.random.Generator, items: list[_Item], side: int, closeness: float) -> None:
    """Gives every item a centre, where possible at least `closeness` * (sum of the radii) from every other."""
    placed: list[_Item] = []
    for item in sorted(items, key=lambda it: -it.radius):
        margin = min(0.8 * item.radius, side / 2)
        tries = rng.uniform(margin, side - margin, (48, 2))
        if placed:
            gaps = np.min([np.hypot(*(tries - p.centre).T) / (p.radius + item.radius) for p in placed], axis=0)
            enough = np.flatnonzero(gaps >= closeness)
            # an extra is meant to be hidden: as close to another as possible
            best = int(np.argmin(gaps)) if item.extra else int(enough[0] if enough.size else np.argmax(gaps))
        else:
            best = 0
        item.centre = tries[best]
        placed.append(item)


def _owners(items: list[_Item], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Index of the topmost item (-1 = background), (H, H) int16; each item's area (n,), off-canvas included."""
    owner = np.full((side, side), -1, np.int16)
    areas = np.zeros(len(items))
    for index, item in enumerate(items):
        mask, _, _, on, of = _coverage(item, side, 0)
        areas[index] = np.count_nonzero(mask)
        owner[on][mask[of] > 0] = index
    return owner, areas


def _compose(
    rng: np.random.Generator, objects: list[_Item], clutter: list[_Item], side: int
) -> tuple[list[_Item], np.ndarray, np.ndarray]:
    """Items in drawing order, the owner map, each item's visible share. All objects but extras are visible enough."""
    for attempt in range(40):
        # twigs and scraps lie below and above the toys; crowded scenes are loosened attempt by attempt
        _arrange(rng, objects + clutter, side, 0.62 + 0.012 * attempt)
        order = [(objects + clutter)[i] for i in rng.permutation(len(objects) + len(clutter))]
        order.sort(key=lambda it: not it.extra)  # extras lowest; the sort is stable
        for _ in range(3):
            owner, areas = _owners(order, side)
            seen = np.bincount(owner.ravel()[owner.ravel() >= 0], minlength=len(order)) / np.maximum(areas, 1)
            must = [i for i, it in enumerate(order) if it.class_id >= 0 and not it.extra]
            hidden = [i for i in must if seen[i] < MIN_VISIBLE + 0.05]
            if not hidden:
                return order, owner, seen
            order = [it for i, it in enumerate(order) if i not in hidden] + [order[i] for i in hidden]
        for item in objects + clutter:  # a little smaller, and again
            item.radius *= 0.95
            item.matrix = item.matrix * 0.95
    raise ShapesError(f"could not lay out {len(objects)} objects visibly. Fix: ask for fewer classes per image.")


def mask_to_polygons(mask: np.ndarray, scale: float = 1.0, tolerance: float = 0.5) -> list[list[float]]:
    """Polygons [x0, y0, x1, y1, ...] of a mask (h, w). COCO polygons have no holes: a mask with a hole is cut through
    it.

    `scale`: canvas px per px of the result; `tolerance`: how far a polygon may leave the outline, canvas px. In the
    result a pixel's corner (not its centre) is at integer coordinates.
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
    """Moves an outline (n, 2) that runs through pixel centres outward by half a px, to the pixels' edges."""
    ahead = np.roll(contour, -1, 0) - contour
    ahead /= np.maximum(np.hypot(*ahead.T), 1e-9)[:, None]
    behind = np.roll(ahead, 1, 0)
    x, y = contour.T
    sign = 1.0 if np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) > 0 else -1.0
    normal = sign * np.stack([ahead[:, 1] + behind[:, 1], -ahead[:, 0] - behind[:, 0]], 1)
    length = np.hypot(*normal.T)[:, None]
    long = np.maximum(length, 0.3)  # a corner of 180 degrees has no normal, and a very sharp one must not fly away
    return contour + 0.5 * np.where(length > 0.3, normal / long * np.minimum(2 / long, 1.6), 0)


def draw_image(
    spec: ShapesSpec, classes: Sequence[Category], present: Sequence[int], split: str, index: int
) -> tuple[np.ndarray, list[dict], list[int]]:
    """One picture that holds the classes `present`, and its labels; depends only on the arguments.

    `classes` are (shape, texture, hue) of all K, `index` the image's number in its split.

    Returns:
        image: (S, S, 3) uint8 RGB.
        objects: dicts with class_id, bbox (XYWH px), area (px^2, visible), segmentation (polygons).
        not_exhaustive: class ids of which another object is there, too hidden to be labelled.
    """
    rng = np.random.default_rng([spec.seed, STREAMS[split], index])
    size, ss = spec.image_size, spec.supersampling
    side = size * ss

    def radius() -> float:
        return side * math.exp(rng.uniform(math.log(0.085), math.log(0.185)))

    wanted = [k for k in present for _ in range(1 + int(rng.random() < 0.22))]  # now and then two of a class
    objects = [_toy(rng, k, classes[k], radius()) for k in wanted]
    if objects and rng.random() < 0.12:
        extra = _toy(rng, wanted[0], classes[wanted[0]], radius())
        extra.extra = True
        objects.append(extra)
    clutter = [_clutter(rng, radius()) for _ in range(int(rng.integers(0, 5)))]
    order, owner, seen = _compose(rng, objects, clutter, side)

    canvas = np.clip(GROUNDS[int(rng.integers(len(GROUNDS)))](rng, side), 0, 1.2).astype(np.float32)
    azimuth, height = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(38, 65))
    light = np.float32([math.cos(azimuth) * math.cos(height), math.sin(azimuth) * math.cos(height), math.sin(height)])
    shadow = rng.uniform(0.35, 0.65)
    for item in order:
        _place(canvas, item, light, shadow)

    # light falls off over the scene and has a tint; the camera adds blur, noise and a tone curve
    y, x = np.mgrid[:side, :side].astype(np.float32) / side - np.float32(0.5)
    falloff = 1 + np.float32(rng.uniform(0.1, 0.45)) * (x * light[0] + y * light[1])
    falloff = falloff - np.float32(0.35) * (x * x + y * y)
    tint = (1 + rng.normal(0, 0.035, 3)).astype(np.float32)
    canvas *= falloff[..., None] * tint * np.float32(rng.uniform(0.82, 1.12))
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
        box = [round(float(b), 2) for b in (x0, y0, x1 - x0, y1 - y0)]
        polygons = [np.clip(p, 0, size).tolist() for p in polygons]
        labels.append({"class_id": item.class_id, "bbox": box, "area": round(area, 2), "segmentation": polygons})
    return image, labels, sorted(not_exhaustive)
