"""What is drawn: the set's sizes, its categories, its long tail, and which classes each image holds.

A category is a shape, a texture and a hue ("striped teal star"). A rare category shares two of the three with a more
frequent one, so no single attribute gives it away. Image counts fall log-linearly across LVIS's group thresholds.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rio.shapes.outlines import SHAPES

# Raised whenever the same spec would give other pictures or labels: folders drawn by another version are refused.
DRAWING_VERSION = 1
GROUP_LIMITS = RARE_MAX_IMAGES, COMMON_MAX_IMAGES = 10, 100  # LVIS: r 1..10, c 11..100, f > 100 training images
# The random stream of each split, part of several seeds. 2..5 seed classes, JPEG qualities, plans and absences.
STREAMS = {"train": 0, "val": 1, "tune": 6, "balanced": 7}
EXTRA_SPLITS = ("tune", "balanced")  # drawn only when asked for
HUES: dict[str, tuple[int, int, int]] = {  # sRGB, 0..255
    "red": (205, 38, 44), "orange": (240, 126, 28), "yellow": (244, 206, 48), "green": (62, 158, 62),
    "teal": (22, 150, 152), "blue": (46, 92, 206), "purple": (122, 62, 178), "pink": (240, 128, 176),
}  # fmt: skip
TEXTURES = ("plain", "striped", "dotted", "checkered", "zigzag", "marbled")

Category = tuple[str, str, str]  # shape, texture, hue


class ShapesError(ValueError):
    """A spec that cannot be drawn, or a folder that is not ours to overwrite."""


@dataclasses.dataclass(frozen=True)
class ShapesSpec:
    """What to draw. The same spec gives the same bytes for any number of workers (same opencv and numpy)."""

    name: str  # folder name below the root
    image_size: int  # side S of the square images, px
    train_images: int
    val_images: int
    num_classes: int  # K, all categories
    num_rare: int  # categories with 1..10 training images
    num_common: int  # categories with 11..100 training images; the other K - num_rare - num_common are frequent
    seed: int = 0  # chooses categories, where they appear, and every picture
    max_image_frequency: float = 0.5  # share of the training images that hold the most frequent category, in (0, 1]
    min_image_count: int = 2  # training images of the rarest category, 1..10
    val_exponent: float = 0.35  # val share ~ (train share) ** this; 0: all categories equal, 1: the tail of training
    val_classes_per_image: float = 4.0  # mean number of categories in a validation image
    negative_share: float = 0.4  # share of an image's absent categories that are verified (`neg_category_ids`), 0..1
    supersampling: int = 3  # canvas px per final px, along one axis

    @property
    def num_frequent(self) -> int:
        """Categories with more than 100 training images."""
        return self.num_classes - self.num_rare - self.num_common

    def validate(self) -> None:
        """Raises ShapesError naming the first bad field, its value and what was expected."""
        for holds, field, expected in self._checks():
            if not holds:
                raise ShapesError(f"ShapesSpec {self.name!r}: {field} = {getattr(self, field)!r}; expected {expected}.")

    def _checks(self) -> Iterator[tuple[bool, str, str]]:
        """(holds, field, expected), one at a time: a later check may rest on an earlier one."""
        plain = bool(self.name) and Path(self.name).name == self.name and not self.name.startswith(".")
        yield plain, "name", "a plain folder name"
        most = len(SHAPES) * len(TEXTURES) * len(HUES) // 2
        bounds = {"image_size": (32, 2048), "train_images": (1, math.inf), "val_images": (1, math.inf)}
        bounds |= {"num_classes": (2, most), "num_rare": (0, math.inf), "num_common": (0, math.inf)}
        bounds |= {"min_image_count": (1, RARE_MAX_IMAGES), "val_exponent": (0, 1), "negative_share": (0, 1)}
        bounds |= {"supersampling": (1, 8)}
        for field, (low, high) in bounds.items():
            expected = f"{low}..{high}" if high < math.inf else f"at least {low}"
            yield low <= getattr(self, field) <= high, field, expected
        others = f"more than num_rare + num_common = {self.num_rare + self.num_common}"
        yield self.num_frequent >= 1, "num_classes", f"{others}: at least one category must be frequent"
        yield 0 < self.max_image_frequency <= 1, "max_image_frequency", "a share in (0, 1]"
        yield (
            self.max_image_frequency * self.train_images > COMMON_MAX_IMAGES,
            "train_images",
            f"more than {COMMON_MAX_IMAGES / self.max_image_frequency:.0f}: a frequent category needs more than "
            f"{COMMON_MAX_IMAGES} images and gets at most max_image_frequency of all",
        )
        yield 0 < self.val_classes_per_image <= 6, "val_classes_per_image", "above 0, at most 6 (more do not fit)"


SPECS: dict[str, ShapesSpec] = {
    # Small enough for three trainings in a few minutes on two CPU cores.
    "demo": ShapesSpec("shapes_demo", 128, 400, 160, num_classes=30, num_rare=11, num_common=13, seed=1),
    # A tail as long as LVIS's, 900 : 1 images, still drawn in half a minute: for classifiers on frozen features.
    "tail": ShapesSpec(
        "shapes_tail", 128, 3000, 800, num_classes=80, num_rare=29, num_common=28, seed=3,
        max_image_frequency=0.3, min_image_count=1, supersampling=2,
    ),
    # For a GPU.
    "bench": ShapesSpec(
        "shapes_bench", 192, 6000, 1500, num_classes=100, num_rare=36, num_common=34, seed=2,
        max_image_frequency=0.3, min_image_count=1,
    ),
}  # fmt: skip


def image_counts(spec: ShapesSpec) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation images of every class, (K,) int each, falling with the class's rank.

    Log-linear in three pieces that cross 100.5 and 10.5 images between the groups, so each group has exactly the wanted
    number of classes.
    """
    f, c, r = spec.num_frequent, spec.num_common, spec.num_rare
    # (rank, images): the corners; without common classes the line drops straight from frequent to rare.
    corners = [(0.0, spec.max_image_frequency * spec.train_images)]
    corners += [(f - 0.5 - (1e-6 if r and not c else 0), COMMON_MAX_IMAGES + 0.5)]
    corners += [(f + c - 0.5, RARE_MAX_IMAGES + 0.5)] if c or r else []
    corners += [(f + c + r - 1.0, float(spec.min_image_count))] if r else []
    knots, values = zip(*corners, strict=True)
    rank = np.arange(spec.num_classes)
    train = np.round(np.exp(np.interp(rank, knots, np.log(values)))).astype(int)
    train[f + c :] = np.minimum(train[f + c :], RARE_MAX_IMAGES)
    share = (train / spec.train_images) ** spec.val_exponent
    val = share * (spec.val_images * spec.val_classes_per_image / share.sum())
    return train, np.clip(np.round(val).astype(int), 1, spec.val_images)


def choose_classes(spec: ShapesSpec) -> list[Category]:
    """(shape, texture, hue) of the K classes, most frequent first. A rare one differs from another in one attribute."""
    rng = np.random.default_rng([spec.seed, 2])
    axes = (list(SHAPES), list(TEXTURES), list(HUES))
    chosen: list[Category] = []
    decks: list[list[str]] = [[], [], []]  # each is used up before it is shuffled again, so no attribute prevails
    while len(chosen) < spec.num_frequent + spec.num_common:
        for deck, axis in zip(decks, axes, strict=True):
            if not deck:
                deck.extend(axis[int(i)] for i in rng.permutation(len(axis)))
        new = (decks[0].pop(), decks[1].pop(), decks[2].pop())
        if new not in chosen:
            chosen.append(new)
    models = list(chosen)
    while len(chosen) < spec.num_classes:
        changed = list(models[int(rng.integers(len(models)))])
        which = len(chosen) % 3  # each attribute in turn, so every kind of confusion occurs
        changed[which] = str(axes[which][int(rng.integers(len(axes[which])))])
        shape, texture, hue = changed
        if (shape, texture, hue) not in chosen:
            chosen.append((shape, texture, hue))
    return chosen


def category_names(spec: ShapesSpec) -> list[str]:
    """Names of the K classes, most frequent first, such as "striped teal star"."""
    return [f"{texture} {hue} {shape}" for shape, texture, hue in choose_classes(spec)]


def plan_images(counts: np.ndarray, num_images: int, num_frequent: int, rng: np.random.Generator) -> list[list[int]]:
    """Class ids of each image: class k in exactly counts[k] images, spread evenly.

    Rare and common classes go only where a frequent one is: as in LVIS, few images hold nothing but rare objects.
    """
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
    """Ascending class ids of each image: sizes[i] different ones in image i, all classes equally often (+-1); `rng`
    decides between classes that were dealt equally often.
    """
    dealt = np.zeros(num_classes, int)
    held = []
    for size in sizes:
        least = np.lexsort((rng.random(num_classes), dealt))[:size]
        dealt[least] += 1
        held.append(sorted(least.tolist()))
    return held


def plan_split(spec: ShapesSpec, split: str) -> list[list[int]]:
    """Class ids of each image of a split.

    "tune" follows the rules of "val", to choose settings on. "balanced" has as many images as "train", as crowded, but
    every class in equally many.
    """
    rng = np.random.default_rng([spec.seed, 4, STREAMS[split]])
    train, val = image_counts(spec)
    if split in ("val", "tune"):
        return plan_images(val, spec.val_images, spec.num_frequent, rng)
    held = plan_images(train, spec.train_images, spec.num_frequent, rng)
    return held if split == "train" else deal_evenly([len(h) for h in held], spec.num_classes, rng)
