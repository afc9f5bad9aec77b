"""Image-level resampling: repeat factors, and a training stream that can be entered at any position.

Two halves. The arithmetic (`category_repeat_factors`, `image_repeat_factors`, `epoch_indices`) says how often
an image is shown; `TrainingSampler` and `BatchSampler` turn that into an endless, shuffled,
position-addressable stream. All of it is NumPy, so the notebooks can ask "what would RFS do?" without loading
torch; torch's DataLoader takes `BatchSampler` as its `batch_sampler` as it is.

I: images, K: categories, W: world size (number of processes).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rio.data.annotations import Annotations

METHODS = ("none", "rfs", "irfs", "class_aware")


class SamplerError(ValueError):
    """An argument of the sampler that cannot work; the message names it, what was expected and the remedy."""


# --------------------------------------------------------------------------------------------- repeat factors


def category_repeat_factors(
    image_count: np.ndarray,
    num_images: int,
    repeat_threshold: float,
    *,
    instance_count: np.ndarray | None = None,
    method: str = "rfs",
    sqrt: bool = True,
) -> np.ndarray:
    """How often each category asks for its images to be shown in an epoch.

    RFS (LVIS paper, appendix B.2), with f(c) the share of the images that hold category c and t the
    threshold:

        r(c) = max(1, sqrt(t / f(c)))                                                                    (1)

    IRFS (arXiv 2305.08069) puts the geometric mean of image and instance frequency in the place of f(c), so
    that a category with many objects in few images is repeated less than one with as many images and one
    object in each:

        f(c) = sqrt( images with c / all images  *  instances of c / all instances )                     (2)

    `sqrt=False` leaves out the root in (1), which repeats harder.

    Args:
        image_count: (K,) integer, number of images that hold the category.
        num_images: number of images of the training set, annotated or not.
        repeat_threshold: t in (1) as a share of images, > 0. Categories rarer than t are repeated.
        instance_count: (K,) integer, number of objects of the category; needed by "irfs".
        method: "none" (all ones), "rfs" or "irfs".
        sqrt: take the square root in (1).

    Returns:
        (K,) float32, >= 1. A category without images gets 1: there is nothing to repeat.

    Raises:
        SamplerError: unknown method, threshold <= 0, no images, counts that contradict each other.

    >>> category_repeat_factors(np.array([1, 25, 100]), 100, 0.25)
    array([5., 1., 1.], dtype=float32)
    >>> category_repeat_factors(np.array([1, 25, 100]), 100, 0.25, sqrt=False)
    array([25.,  1.,  1.], dtype=float32)
    """
    image_count = np.asarray(image_count, dtype=np.int64)
    _check_method(method, ("none", "rfs", "irfs"))
    if image_count.ndim != 1:
        raise SamplerError(f"image_count: expected shape (K,), found {image_count.shape}.")
    if num_images < 1:
        raise SamplerError(f"num_images: expected at least 1, found {num_images}. Is the annotation file empty?")
    if image_count.size and (image_count.min() < 0 or image_count.max() > num_images):
        worst = int(np.argmax((image_count < 0) | (image_count > num_images)))
        raise SamplerError(
            f"image_count[{worst}]: expected 0..{num_images} (the number of images), "
            f"found {image_count[worst]}. Count every image once per category."
        )
    if method == "none":
        return np.ones(len(image_count), dtype=np.float32)
    _check_threshold(repeat_threshold)

    # float64 and in this order of operations, as detectron2 does in Python floats: the float32 results are
    # identical.
    frequency = image_count / num_images
    if method == "irfs":
        if instance_count is None:
            raise SamplerError("instance_count: method 'irfs' needs the number of objects per category, found None.")
        instance_count = np.asarray(instance_count, dtype=np.int64)
        if instance_count.shape != image_count.shape or (instance_count < image_count).any():
            raise SamplerError(
                f"instance_count: expected shape {image_count.shape} with at least image_count objects per "
                f"category, found shape {instance_count.shape}. Take both counts from the same annotations."
            )
        frequency = np.sqrt(frequency * (instance_count / max(int(instance_count.sum()), 1)))  # (2)
    factors = np.ones(len(image_count), dtype=np.float64)
    seen = image_count > 0
    ratio = repeat_threshold / frequency[seen]
    factors[seen] = np.maximum(1.0, np.sqrt(ratio) if sqrt else ratio)  # (1)
    return factors.astype(np.float32)


def image_repeat_factors(
    annotations: Annotations, method: str, repeat_threshold: float, sqrt: bool = True, *, filter_empty: bool = False
) -> np.ndarray:
    """Expected number of times each image is shown in an epoch.

    "rfs" and "irfs": the largest repeat factor of the categories in the image; "rfs" is identical, in
    float32, to detectron2's `RepeatFactorTrainingSampler.repeat_factors_from_category_frequency`. "none":
    ones. "class_aware": every category is asked for equally often, and equally in each of its images. With K'
    categories that have images, N annotated images and n(c) images of category c:

        r(image) = N / K' * sum over categories c of the image of 1 / n(c)                               (3)

    which sums to N: an epoch keeps its length, and images of frequent categories alone drop below 1.

    Crowd regions do not count, as training never sees them. Images without (other) annotations get 1.0
    whatever the
    method: as backgrounds they are shown once an epoch.

    Args:
        annotations: the training set.
        method: one of `METHODS`.
        repeat_threshold: share of images below which a category is repeated, > 0 ("rfs", "irfs" only).
        sqrt: square root in r(c); see `category_repeat_factors`.
        filter_empty: treat images without annotations as not there: they get 0.0, are never shown and do not
            count in the number of images. This is what detectron2's DATALOADER.FILTER_EMPTY_ANNOTATIONS does.

    Returns:
        (I,) float32.

    Raises:
        SamplerError: see `category_repeat_factors`; or no image at all is left to train on.
    """
    _check_method(method, METHODS)
    num_images = len(annotations.image_ids)
    if num_images == 0:
        raise SamplerError(f"{annotations.path}: holds no images; expected at least 1 to train on.")
    kept = ~np.asarray(annotations.iscrowd, dtype=bool)
    image = np.asarray(annotations.annotation_image)[kept].astype(np.int64)
    category = np.asarray(annotations.annotation_class)[kept].astype(np.int64)
    annotated = np.zeros(num_images, dtype=bool)
    annotated[image] = True
    if filter_empty and not annotated.any():
        raise SamplerError(
            f"{annotations.path}: no image has an annotation (crowd regions aside), so nothing is left to "
            "train on. Check the file, or set DATALOADER.FILTER_EMPTY_ANNOTATIONS False."
        )

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
        pairs = np.unique(image * num_categories + category)  # an image counts once a category, as in image_count
        image, category = np.divmod(pairs, num_categories)
        count = np.bincount(category, minlength=num_categories)
        scale = annotated.sum() / np.count_nonzero(count)
        share = np.bincount(image, weights=1.0 / count[category], minlength=num_images)
        factors[annotated] = (scale * share)[annotated]  # (3)
    if filter_empty:
        factors[~annotated] = 0.0
    return factors


# ------------------------------------------------------------------------------------------------- one epoch


def epoch_indices(repeat_factors: np.ndarray, seed: int, epoch: int, *, shuffle: bool = True) -> np.ndarray:
    """Image indices of one epoch: repeat factors rounded stochastically, then shuffled.

    A factor of 2.3 gives two showings, and a third with probability 0.3, anew every epoch. The result is a
    function of its arguments alone: epochs 0..e-1 need not be drawn to know epoch e.

    Args:
        repeat_factors: (I,) float, >= 0.
        seed: non-negative integer.
        epoch: number of the epoch, from 0.
        shuffle: False keeps the images in order.

    Returns:
        (L,) int64 indices into the images; L varies from epoch to epoch when the factors are not whole.

    >>> epoch_indices(np.array([1.0, 0.0, 3.0]), seed=0, epoch=0, shuffle=False)
    array([0, 2, 2, 2])
    """
    repeat_factors = np.asarray(repeat_factors, dtype=np.float32)
    bits = _bit_generator(seed, epoch)
    repeats = _rounded(repeat_factors, bits)
    indices = np.repeat(np.arange(len(repeats), dtype=np.int64), repeats)
    if shuffle:
        # Sorting raw 64-bit keys, not Generator.permutation: NumPy promises that the raw stream of a bit
        # generator never changes, and promises nothing of the kind for Generator's methods. A run resumed on
        # another NumPy goes on with the same images.
        indices = indices[np.argsort(bits.random_raw(len(indices)), kind="stable")]
    return indices


def _bit_generator(seed: int, epoch: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence((seed, epoch)))


def _rounded(repeat_factors: np.ndarray, bits: np.random.PCG64) -> np.ndarray:
    """(I,) int64: each factor's whole part, plus one with the probability of its fraction."""
    whole = np.trunc(repeat_factors)
    fraction = repeat_factors - whole
    repeats = whole.astype(np.int64)
    if fraction.any():  # whole factors (no resampling) need no random numbers, and every epoch has the same length
        uniform = (bits.random_raw(len(fraction)) >> np.uint64(11)) * 2.0**-53  # in [0, 1), exact in float64
        repeats += uniform < fraction
    return repeats


# ------------------------------------------------------------------------------------------------- the stream


class TrainingSampler:
    """An endless stream of (position, image index), shared over processes and resumable at any position.

    The stream is epoch 0, epoch 1, ... back to back, each ordered by (seed, epoch) alone. Rank r of W takes
    the global positions r, r + W, r + 2W, ...; the union over ranks is the same stream whatever W is. The
    position travels with the index so that a worker can seed the augmentation of a showing by (seed,
    position), not by who loads it.

    Give exactly one of `num_images` (no resampling), `repeat_factors`, or `annotations` with `method`.

    Args:
        num_images: number of images, every one shown once an epoch.
        repeat_factors: (I,) float, expected showings an epoch; 0 leaves an image out.
        annotations: the training set; the factors are `image_repeat_factors(annotations, method, ...)`.
        method: one of `METHODS`; with `annotations` only.
        repeat_threshold: share of images; with `annotations` only.
        sqrt: square root in r(c); with `annotations` only.
        filter_empty: leave out images without annotations; with `annotations` only.
        seed: non-negative integer, the same on every rank.
        rank: this process, 0..world_size - 1.
        world_size: number of processes.
        start: global position to start at, >= 0; nothing before it is loaded or drawn.
        shuffle: False goes through the images in order.

    Raises:
        SamplerError: no images, nothing to show, NaN or negative factors, a rank outside the world, start <
            0.

    >>> stream = iter(TrainingSampler(num_images=3, seed=0, start=4, shuffle=False))
    >>> next(stream), next(stream), next(stream)
    ((4, 1), (5, 2), (6, 0))
    """

    def __init__(
        self,
        *,
        num_images: int | None = None,
        repeat_factors: np.ndarray | None = None,
        annotations: Annotations | None = None,
        method: str = "none",
        repeat_threshold: float = 0.001,
        sqrt: bool = True,
        filter_empty: bool = False,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        shuffle: bool = True,
    ):
        if sum(given is not None for given in (num_images, repeat_factors, annotations)) != 1:
            raise SamplerError("Give exactly one of num_images, repeat_factors and annotations.")
        if annotations is not None:
            repeat_factors = image_repeat_factors(
                annotations, method, repeat_threshold, sqrt, filter_empty=filter_empty
            )
        elif method != "none" or filter_empty:
            raise SamplerError("method and filter_empty need annotations; repeat_factors already say how often.")
        elif num_images is not None:
            if num_images < 1:
                raise SamplerError(f"num_images: expected at least 1, found {num_images}. Is the data set empty?")
            repeat_factors = np.ones(num_images, dtype=np.float32)
        factors = np.asarray(repeat_factors, dtype=np.float32)
        if factors.ndim != 1 or factors.size == 0:
            raise SamplerError(f"repeat_factors: expected shape (I,) with I >= 1 images, found {factors.shape}.")
        if not np.isfinite(factors).all() or (factors < 0).any():
            worst = int(np.argmax(~np.isfinite(factors) | (factors < 0)))
            raise SamplerError(f"repeat_factors[{worst}]: expected a finite number >= 0, found {factors[worst]}.")
        if factors.sum() < 1:
            raise SamplerError(f"repeat_factors: they sum to {factors.sum():g} showings an epoch, expected at least 1.")
        if seed < 0:
            raise SamplerError(f"seed: expected an integer >= 0, found {seed}. Choose one and give it to every rank.")
        if world_size < 1 or not 0 <= rank < world_size:
            raise SamplerError(f"rank {rank} of world_size {world_size}: expected 0 <= rank < world_size.")
        if start < 0:
            raise SamplerError(f"start: expected a global position >= 0, found {start}.")
        self.repeat_factors = factors
        self.seed, self.rank, self.world_size, self.start, self.shuffle = (seed, rank, world_size, start, shuffle)
        # First global position of epochs 0, 1, ... as far as they were asked for.
        self._epoch_starts = [0]
        self._constant_length = int(factors.sum()) if (factors == np.trunc(factors)).all() else None

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for positions, indices in self.chunks(self.start):
            yield from zip(positions.tolist(), indices.tolist(), strict=True)

    def chunks(self, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """This rank's stream from global position `start` on, an epoch's share at a time.

        Yields:
            positions (n,) int64 and image indices (n,) int64; n may be 0 when an epoch is shorter than the
            world.
        """
        epoch = self.epoch_of(start)
        while True:
            first = self.epoch_start(epoch)
            indices = epoch_indices(self.repeat_factors, self.seed, epoch, shuffle=self.shuffle)
            skip = max(start - first, 0)
            skip += (self.rank - first - skip) % self.world_size  # on to the next position that is this rank's
            mine = np.arange(skip, len(indices), self.world_size)
            yield first + mine, indices[mine]
            epoch += 1

    def epoch_start(self, epoch: int) -> int:
        """Global position at which an epoch begins."""
        if self._constant_length is not None:
            return epoch * self._constant_length
        while len(self._epoch_starts) <= epoch:
            bits = _bit_generator(self.seed, len(self._epoch_starts) - 1)
            self._epoch_starts.append(self._epoch_starts[-1] + int(_rounded(self.repeat_factors, bits).sum()))
        return self._epoch_starts[epoch]

    def epoch_of(self, position: int) -> int:
        """The epoch that a global position falls into.

        The lengths of the epochs before it are drawn (a millisecond per 100,000 images), not their orders.
        """
        if self._constant_length is not None:
            return position // self._constant_length
        while self._epoch_starts[-1] <= position:
            self.epoch_start(len(self._epoch_starts))
        # side="right": a position at which empty epochs share their start belongs to the last of them, which
        # has it.
        return int(np.searchsorted(self._epoch_starts, position, side="right")) - 1


class BatchSampler:
    """This rank's share of every batch, as lists of (position, image index), from any iteration on.

    Without groups, iteration i takes the global positions i * B .. (i + 1) * B - 1 for a global batch of B
    images, so the union over ranks is the one-process batch. With groups (see `aspect_ratio_groups`) each
    rank fills one bucket a group from its share of the stream and emits a bucket when it is full, as
    detectron2's AspectRatioGroupedDataset does, but on indices: no image is loaded to know its shape, so a
    resumed run gets the same batches at once.

    Args:
        sampler: the stream; its `start` must be 0, as `start_iteration` says where to begin.
        batch_size: images a step over all ranks (SOLVER.IMS_PER_BATCH), a multiple of the world size.
        groups: (I,) small integers, one an image; a batch holds images of one group. None: no grouping.
        start_iteration: number of batches this rank has had already.

    Raises:
        SamplerError: batch_size not divisible by the world size, groups of the wrong length, start_iteration
            < 0.
    """

    def __init__(
        self, sampler: TrainingSampler, *, batch_size: int, groups: np.ndarray | None = None, start_iteration: int = 0
    ):
        if batch_size < 1 or batch_size % sampler.world_size:
            raise SamplerError(
                f"batch_size (SOLVER.IMS_PER_BATCH) {batch_size}: expected a positive multiple of the "
                f"{sampler.world_size} processes. Change one or the other."
            )
        if start_iteration < 0:
            raise SamplerError(f"start_iteration: expected >= 0, found {start_iteration}.")
        if sampler.start != 0:
            raise SamplerError(
                f"sampler.start: expected 0, found {sampler.start}. start_iteration says where to begin."
            )
        if groups is not None:
            groups = np.asarray(groups)
            if groups.shape != sampler.repeat_factors.shape:
                raise SamplerError(
                    f"groups: expected one an image, shape {sampler.repeat_factors.shape}, found {groups.shape}."
                )
        self.sampler = sampler
        self.batch_size = batch_size
        self.batch_size_per_rank = batch_size // sampler.world_size
        self.groups = groups
        self.start_iteration = start_iteration

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        blocks = self._grouped() if self.groups is not None else self._plain()
        for positions, indices in blocks:
            for row, column in zip(positions.tolist(), indices.tolist(), strict=True):
                yield list(zip(row, column, strict=True))

    def _plain(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Blocks of whole batches: positions and indices, each (batches, batch_size_per_rank)."""
        size = self.batch_size_per_rank
        left = np.empty((2, 0), dtype=np.int64)
        for chunk in self.sampler.chunks(self.start_iteration * self.batch_size):
            rows = np.concatenate([left, np.stack(chunk)], axis=1)
            whole = rows.shape[1] // size * size
            yield rows[0, :whole].reshape(-1, size), rows[1, :whole].reshape(-1, size)
            left = rows[:, whole:]

    def _grouped(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Blocks of whole batches in the order in which their buckets fill up."""
        size = self.batch_size_per_rank
        to_skip = self.start_iteration
        kinds = np.unique(self.groups)
        buckets = {kind: np.empty((2, 0), dtype=np.int64) for kind in kinds.tolist()}
        for chunk in self.sampler.chunks(0):
            rows = np.stack(chunk)
            group = self.groups[rows[1]]
            full = []
            for kind, waiting in buckets.items():
                waiting = np.concatenate([waiting, rows[:, group == kind]], axis=1)
                whole = waiting.shape[1] // size * size
                full.append(waiting[:, :whole].reshape(2, -1, size))
                buckets[kind] = waiting[:, whole:]
            positions, indices = np.concatenate(full, axis=1)
            order = np.argsort(positions[:, -1])[to_skip:]  # a bucket is emitted when its last image arrives
            to_skip = max(to_skip - len(positions), 0)
            yield positions[order], indices[order]


def aspect_ratio_groups(annotations: Annotations) -> np.ndarray:
    """(I,) int8: 0 for images wider than high, 1 for the others; batches of one kind need less padding."""
    return np.where(np.asarray(annotations.image_width) > np.asarray(annotations.image_height), 0, 1).astype(np.int8)


# ------------------------------------------------------------------------------------------------- checks


def _check_method(method: str, allowed: tuple[str, ...]) -> None:
    if method not in allowed:
        raise SamplerError(f"method (MODEL.RIO.SAMPLER): expected one of {', '.join(allowed)}, found {method!r}.")


def _check_threshold(repeat_threshold: float) -> None:
    if not (np.isfinite(repeat_threshold) and repeat_threshold > 0):
        raise SamplerError(
            f"repeat_threshold (DATALOADER.REPEAT_THRESHOLD): expected a share of images > 0, found "
            f"{repeat_threshold}. LVIS uses 0.001; to switch resampling off set the method to 'none'."
        )
