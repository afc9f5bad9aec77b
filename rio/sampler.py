"""Image level: how often each image is repeated, and an endless training stream that starts at any position.

NumPy only, so a notebook can ask "what would RFS do?" without torch; a DataLoader takes `BatchSampler` as its
`batch_sampler`. I: images, K: categories, L: length of an epoch, n: showings of one epoch on one rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from rio.data.errors import check

if TYPE_CHECKING:
    from rio.data.annotations import Annotations

METHODS = ("none", "rfs", "irfs", "class_aware")


class SamplerError(ValueError):
    """An argument that cannot work; the message names it, what was expected, what was found and the fix."""


_check = partial(check, error=SamplerError)


def category_repeat_factors(
    image_count: np.ndarray,
    num_images: int,
    repeat_threshold: float,
    *,
    instance_count: np.ndarray | None = None,
    method: str = "rfs",
    sqrt: bool = True,
) -> np.ndarray:
    """How often images of each category should be repeated in an epoch, >= 1.

    RFS (LVIS paper, appendix B.2), with f(c) the share of images that hold category c and t the threshold:

        r(c) = max(1, sqrt(t / f(c)))                                                                    (1)

    IRFS (arXiv 2305.08069): many objects in few images are repeated less than as many images with one each.

        f(c) = sqrt( images with c / all images  *  instances of c / all instances )                     (2)

    Args:
        image_count: (K,) integer, number of images that hold the category.
        num_images: number of images in the training set, annotated or not.
        repeat_threshold: t, a share of images, > 0. Categories rarer than t are repeated.
        instance_count: (K,) integer, number of objects of the category; needed by "irfs".
        method: "none" (all ones), "rfs" or "irfs".
        sqrt: take the square root in (1); False repeats harder.

    Returns:
        (K,) float32. A category without images gets 1: there is nothing to repeat.

    Raises:
        SamplerError: unknown method, threshold <= 0, no images, counts that contradict each other.

    >>> category_repeat_factors(np.array([1, 25, 100]), 100, 0.25)
    array([5., 1., 1.], dtype=float32)
    """
    image_count = np.asarray(image_count, dtype=np.int64)
    expected, advice = f"one of {', '.join(METHODS[:3])}", "see MODEL.RIO.SAMPLER"
    _check(method in METHODS[:3], "method", expected, repr(method), advice)
    _check(image_count.ndim == 1, "image_count", "shape (K,)", image_count.shape, "pass one number per category")
    _check(num_images >= 1, "num_images", "at least 1", num_images, "check that the annotation file holds images")
    possible = (image_count >= 0) & (image_count <= num_images)
    _check_each(possible, "image_count", f"0..{num_images} images", image_count, "count each image once per category")
    factors = np.ones(len(image_count))
    if method == "none":
        return factors.astype(np.float32)
    threshold, advice = "repeat_threshold (DATALOADER.REPEAT_THRESHOLD)", "LVIS uses 0.001; 'none' does not resample"
    _check(0 < repeat_threshold < np.inf, threshold, "a share of images > 0", repeat_threshold, advice)
    # In float64 and in this order, as detectron2 computes in Python floats: the float32 results are identical.
    frequency = image_count / num_images
    if method == "irfs":
        objects = np.asarray(-1 if instance_count is None else instance_count, dtype=np.int64)
        expected, advice = f"shape {image_count.shape}", "take both counts from the same annotations"
        found = "None" if instance_count is None else f"shape {objects.shape}"
        _check(objects.shape == image_count.shape, "instance_count", expected, found, advice)
        _check_each(objects >= image_count, "instance_count", "at least image_count objects", objects, advice)
        frequency = np.sqrt(frequency * (objects / max(int(objects.sum()), 1)))  # (2)
    seen = image_count > 0
    ratio = repeat_threshold / frequency[seen]
    factors[seen] = np.maximum(1.0, np.sqrt(ratio) if sqrt else ratio)  # (1)
    return factors.astype(np.float32)


def image_repeat_factors(
    annotations: Annotations, method: str, repeat_threshold: float, sqrt: bool = True, *, filter_empty: bool = False
) -> np.ndarray:
    """Expected number of times each image is shown in an epoch.

    "rfs" and "irfs": the largest repeat factor of the image's categories; "rfs" equals detectron2's
    `RepeatFactorTrainingSampler.repeat_factors_from_category_frequency` in float32. "none": ones.
    "class_aware": each category equally often, and equally in each of its images. With K' categories that have
    images, N annotated images and n(c) images of category c:

        r(image) = N / K' * sum over categories c of the image of 1 / n(c)                               (3)

    This sums to N, so an epoch keeps its length; images with only frequent categories drop below 1.
    Crowd regions do not count, as training never sees them. Images without other annotations get 1.0.

    Args:
        annotations: the training set.
        method: one of `METHODS`.
        repeat_threshold: share of images below which a category is repeated, > 0 ("rfs", "irfs" only).
        sqrt: square root in r(c); see `category_repeat_factors`.
        filter_empty: leave out images without annotations: they get 0.0 and do not count in the number of
            images, as with detectron2's DATALOADER.FILTER_EMPTY_ANNOTATIONS.

    Returns:
        (I,) float32.

    Raises:
        SamplerError: see `category_repeat_factors`; or no image is left to train on.
    """
    _check(method in METHODS, "method", f"one of {', '.join(METHODS)}", repr(method), "see MODEL.RIO.SAMPLER")
    num_images, path = len(annotations.image_ids), str(annotations.path)
    _check(num_images > 0, path, "at least 1 image to train on", "no images", "choose another file")
    kept = ~np.asarray(annotations.iscrowd, dtype=bool)
    image = np.asarray(annotations.annotation_image)[kept].astype(np.int64)
    category = np.asarray(annotations.annotation_class)[kept].astype(np.int64)
    annotated = np.zeros(num_images, dtype=bool)
    annotated[image] = True
    advice = "check the file, or set DATALOADER.FILTER_EMPTY_ANNOTATIONS False"
    _check(not filter_empty or annotated.any(), path, "annotations to train on", "none but crowd regions", advice)

    factors = np.ones(num_images, dtype=np.float32)
    if method in ("rfs", "irfs"):
        per_category = category_repeat_factors(
            annotations.image_count,
            int(annotated.sum()) if filter_empty else num_images,
            repeat_threshold,
            instance_count=annotations.instance_count,
            method=method,
            sqrt=sqrt,
        )
        np.maximum.at(factors, image, per_category[category])
    elif method == "class_aware" and annotated.any():
        num_categories = len(annotations.category_ids)
        pairs = np.unique(image * num_categories + category)  # each image once per category, as in image_count
        image, category = np.divmod(pairs, num_categories)
        images = np.bincount(category, minlength=num_categories)
        scale = annotated.sum() / np.count_nonzero(images)
        share = np.bincount(image, weights=1.0 / images[category], minlength=num_images)
        factors[annotated] = (scale * share)[annotated]  # (3)
    if filter_empty:
        factors[~annotated] = 0.0
    return factors


def epoch_indices(repeat_factors: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Image indices of one epoch: repeat factors rounded stochastically, then shuffled.

    A factor of 2.3 gives two showings, and a third with probability 0.3, drawn anew each epoch. The result
    depends only on the arguments: epoch e does not need epochs 0..e-1.

    Args:
        repeat_factors: (I,) float, >= 0.
        seed: integer >= 0.
        epoch: number of the epoch, from 0.

    Returns:
        (L,) int64 indices into the images; L varies between epochs unless all factors are whole.

    >>> sorted(epoch_indices(np.array([1.0, 0.0, 3.0]), seed=0, epoch=0).tolist())
    [0, 2, 2, 2]
    """
    repeats, bits = _rounded(np.asarray(repeat_factors, dtype=np.float32), seed, epoch)
    # Sort raw 64-bit keys: NumPy promises never to change a bit generator's raw stream, and promises nothing
    # about Generator.permutation. A run resumed on another NumPy sees the same images.
    order = np.argsort(bits.random_raw(int(repeats.sum())), kind="stable")
    return np.repeat(np.arange(len(repeats)), repeats)[order]


def _rounded(factors: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.random.PCG64]:
    """(I,) int64, each float32 factor's whole part plus one with the probability of its fraction; the generator."""
    bits = np.random.PCG64(np.random.SeedSequence((seed, epoch)))
    fraction = factors % 1
    repeats = (factors - fraction).astype(np.int64)
    if fraction.any():  # whole factors draw nothing
        repeats += (bits.random_raw(len(fraction)) >> np.uint64(11)) * 2.0**-53 < fraction  # uniform in [0, 1)
    return repeats, bits


class BatchSampler:
    """This rank's share of every batch, as lists of (position, image index), from any iteration on.

    The global stream is epoch 0, epoch 1, ... back to back. Rank r of W takes the positions r, r + W, ..., so
    the union over ranks is the same stream for any W. The position seeds the augmentation of that showing,
    whichever worker loads it. A bucket per group takes images from the rank's stream and is emitted when full,
    as in detectron2's AspectRatioGroupedDataset, but on indices: a resumed run gets the same batches without
    loading an image. Without groups, iteration i takes the global positions i * batch_size and following.

    Args:
        repeat_factors: (I,) float, expected showings per epoch; 0 leaves an image out.
        batch_size: images per step over all ranks (SOLVER.IMS_PER_BATCH), a multiple of the world size.
        seed: integer >= 0, the same on each rank.
        rank, world_size: this process, 0..W - 1, and the number W of processes.
        groups: (I,) small integers; a batch holds images of one group. None: no grouping.
        start_iteration: number of batches this rank has had already; may be changed before iterating.

    Raises:
        SamplerError: nothing to show, NaN or negative factors, a batch_size that W does not divide, groups of
            another shape, a rank, seed or start out of range.
    """

    def __init__(
        self,
        repeat_factors: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        groups: np.ndarray | None = None,
        start_iteration: int = 0,
    ) -> None:
        factors, advice = np.asarray(repeat_factors, dtype=np.float32), "pass one number per image"
        self.groups = np.zeros(factors.shape, dtype=np.int8) if groups is None else np.asarray(groups)
        _check(factors.ndim == 1 and factors.size > 0, "repeat_factors", "shape (I,), I >= 1", factors.shape, advice)
        _check_each((factors >= 0) & (factors < np.inf), "repeat_factors", "a finite number >= 0", factors, advice)
        _check(factors.sum() >= 1, "repeat_factors", "at least 1 showing per epoch", factors.sum(), "raise some")
        _check(self.groups.shape == factors.shape, "groups", f"shape {factors.shape}", self.groups.shape, advice)
        _check(0 <= rank < world_size, "rank", f"0 <= rank < world_size ({world_size})", rank, "number them from 0")
        whole, expected = batch_size >= 1 and batch_size % world_size == 0, f"a multiple of {world_size} processes"
        _check(whole, "batch_size (SOLVER.IMS_PER_BATCH)", expected, batch_size, "change one of the two")
        _check(seed >= 0, "seed", "an integer >= 0", seed, "choose one and give it to each rank")
        _check(start_iteration >= 0, "start_iteration", "at least 0", start_iteration, "count batches from 0")
        self.repeat_factors, self.batch_size, self.seed = factors, batch_size, seed
        self.rank, self.world_size, self.start_iteration = rank, world_size, start_iteration

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, to_skip, start = self.batch_size // self.world_size, self.start_iteration, 0
        buckets = {kind: np.empty((2, 0), dtype=np.int64) for kind in np.unique(self.groups).tolist()}
        if len(buckets) == 1:  # nothing waits in other buckets: start at the position itself
            to_skip, start = 0, to_skip * self.batch_size
        for rows in self.stream(start):
            group, full = self.groups[rows[1]], []
            for kind, waiting in buckets.items():
                waiting = np.concatenate([waiting, rows[:, group == kind]], axis=1)
                whole = waiting.shape[1] // size * size
                full.append(waiting[:, :whole].reshape(2, -1, size))
                buckets[kind] = waiting[:, whole:]
            batches = np.concatenate(full, axis=1)  # (2, batches, size)
            order = np.argsort(batches[0, :, -1])  # a bucket is emitted when its last image arrives
            for positions, indices in batches[:, order[to_skip:]].transpose(1, 0, 2).tolist():
                yield list(zip(positions, indices, strict=True))
            to_skip = max(to_skip - len(order), 0)

    def stream(self, start: int) -> Iterator[np.ndarray]:
        """(2, n) int64, the positions and image indices of this rank from global position `start`, by epoch."""
        first = 0
        for epoch in count():
            length = int(_rounded(self.repeat_factors, self.seed, epoch)[0].sum())
            if first + length > start:  # else only its length is needed, not its order
                indices = epoch_indices(self.repeat_factors, self.seed, epoch)
                skip = max(start - first, 0)
                mine = np.arange(skip + (self.rank - first - skip) % self.world_size, length, self.world_size)
                yield np.stack([first + mine, indices[mine]])
            first += length


def aspect_ratio_groups(annotations: Annotations) -> np.ndarray:
    """(I,) int8: 0 for images wider than high, 1 for the others; batches of one kind need less padding."""
    return np.where(np.asarray(annotations.image_width) > np.asarray(annotations.image_height), 0, 1).astype(np.int8)


def _check_each(good: np.ndarray, what: str, expected: str, values: np.ndarray, fix: str) -> None:
    for worst in np.flatnonzero(~good)[:1]:
        _check(False, f"{what}[{worst}]", expected, values[worst], fix)
