"""The sampler: detectron2's factors, a stream that starts anywhere, batches that resume exactly."""

import doctest
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import RepeatFactorTrainingSampler
from torch.utils.data import DataLoader

import rio.sampler
from rio.data.load import load_annotations
from rio.sampler import (
    METHODS,
    BatchSampler,
    SamplerError,
    aspect_ratio_groups,
    category_repeat_factors,
    epoch_indices,
    image_repeat_factors,
)
from tests.support.columns import columns


def detectron2_factors(objects, threshold):
    dicts = [{"annotations": [{"category_id": c} for c in classes]} for classes in objects]
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, threshold).numpy()


def take(iterable, n):
    return list(itertools.islice(iterable, n))


ONE_RARE = [[0, 0], [0, 1], [0], [0]]  # category 0 in all four images, 1 in one
CROWDS = ((3, 1), (1, 0))  # so that category 1 is only ever a crowd


@pytest.mark.parametrize(
    ("objects", "crowd", "arguments", "expected"),
    [
        # t = 1: r = max(1, sqrt(1 / f)).
        (ONE_RARE, (), ("rfs", 1.0), [1, 2, 1, 1]),
        (ONE_RARE, (), ("rfs", 1.0, False), [1, 4, 1, 1]),
        # n = [3, 1]; N / K' = 3 / 2. Images of 0: 3/2 * 1/3; the one with both: 3/2 * (1/3 + 1). Doubles count once.
        ([[0, 0, 0], [0], [0, 1], []], (), ("class_aware", 0.001), [0.5, 0.5, 2, 1]),
        ([[0, 0, 0], [0], [0, 1], []], (), ("class_aware", 0.001, True, True), [0.5, 0.5, 2, 0]),
        ([[0], [1], [], [0, 1]], CROWDS, ("rfs", 2.0), [2, 1, 1, 2]),
        # Images 1 and 2 gone: f(0) = 2 / 2.
        ([[0], [1], [], [0, 1]], CROWDS, ("rfs", 4.0, True, True), [2, 0, 0, 2]),
        *(([[], []], (), (method, 0.1), [1, 1]) for method in METHODS),
        (ONE_RARE, (), ("none", 1.0), [1, 1, 1, 1]),
    ],
)
def test_factors_of_images_by_hand(objects, crowd, arguments, expected):
    method, threshold, *flags = arguments
    sqrt, filter_empty = flags + [True, False][len(flags) :]
    found = image_repeat_factors(columns(objects, "rrr", crowd), method, threshold, sqrt, filter_empty=filter_empty)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.float32(expected), rtol=1e-6)


def test_irfs_by_hand():
    assert doctest.testmod(rio.sampler).failed == 0
    # Both categories in 1 of 4 images; 1 and 15 of 16 instances. f = sqrt(1/4 * 1/16) = 1/8 and sqrt(1/4 * 15/16).
    factors = category_repeat_factors(np.array([1, 1]), 4, 0.5, instance_count=np.array([1, 15]), method="irfs")
    np.testing.assert_allclose(factors, [2.0, np.sqrt(0.5 / np.sqrt(15 / 64))], rtol=1e-6)
    rfs = category_repeat_factors(np.array([1, 1]), 4, 0.5)
    assert factors[0] > rfs[0] > factors[1]  # fewer objects: repeated more; many: less


def assert_detectron2s(annotations, objects, thresholds):
    for threshold in thresholds:
        ours = image_repeat_factors(annotations, "rfs", threshold)
        np.testing.assert_array_equal(ours, detectron2_factors(objects, threshold))


@pytest.mark.parametrize("seed", range(5))
def test_rfs_is_detectron2s_in_float32_on_random_sets(seed):
    rng = np.random.default_rng(seed)
    num_categories = int(rng.integers(1, 200))
    tail = rng.dirichlet(np.full(num_categories, 0.1))
    objects = [rng.choice(num_categories, size=rng.integers(0, 12), p=tail).tolist() for _ in range(400)]
    assert_detectron2s(columns(objects, "r" * num_categories), objects, (1e-3, 0.037, 0.5))


def test_rfs_is_detectron2s_in_float32_on_lvis(shared_dir):
    annotations = load_annotations(shared_dir / "data" / "lvis_val_100.json")
    rows = (annotations.annotations_of(image) for image in range(annotations.num_images))
    objects = [annotations.annotation_class[own].tolist() for own in rows]
    assert_detectron2s(annotations, objects, (0.001, 0.05, 0.3))


def test_epoch_rounds_stochastically_and_without_bias():
    factors = np.array([1.0, 2.25, 0.5, 0.0], dtype=np.float32)
    counts = np.stack([np.bincount(epoch_indices(factors, 7, e), minlength=4) for e in range(2000)])
    assert [set(column) for column in counts.T.tolist()] == [{1}, {2, 3}, {0, 1}, {0}]
    np.testing.assert_allclose(counts.mean(axis=0), factors, atol=0.05)


def test_epoch_depends_on_seed_and_epoch_only():
    factors = np.full(50, 1.5, dtype=np.float32)
    first = epoch_indices(factors, 3, 4)
    np.random.seed(0)  # not on the global generator
    np.testing.assert_array_equal(first, epoch_indices(factors, 3, 4))
    assert not any(np.array_equal(first, epoch_indices(factors, *other)) for other in ((3, 5), (4, 4)))


def test_epoch_order_is_golden_and_even():
    # PCG64's raw stream is promised never to change. If this fails, resumed runs change their data order.
    assert epoch_indices(np.ones(8, np.float32), 1, 0).tolist() == [2, 4, 7, 5, 0, 6, 3, 1]
    assert epoch_indices(np.float32([0.4, 2.7, 1.0, 0.3]), 5, 2).tolist() == [0, 1, 1, 2, 1]
    order = np.stack([epoch_indices(np.ones(5, np.float32), 0, e) for e in range(5000)])
    assert all(abs(np.bincount(place, minlength=5) / 5000 - 0.2).max() < 0.03 for place in order.T)


FACTORS = np.linspace(0.2, 3.0, 23, dtype=np.float32)


def sampler(world_size=1, rank=0, *, batch_size=12, factors=FACTORS, seed=2, **changes):
    return BatchSampler(factors, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, **changes)


def stream(start, number, *args, **changes):
    chunks = sampler(*args, batch_size=88 * 3, **changes).stream(start)
    return take((tuple(item) for chunk in chunks for item in chunk.T.tolist()), number)


@pytest.mark.parametrize("factors", [[1.0] * 7, [0.4, 2.7, 1.0, 0.3], [0.5, 0.5]], ids=["whole", "fractions", "empty"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_share_one_stream_and_start_anywhere(factors, world_size):
    """With factors of 0.5 an epoch of two images is empty one time in four."""
    whole = stream(0, 100, factors=factors)
    assert [position for position, _ in whole] == list(range(100))
    for start in (0, 1, 17, 64):
        for rank in range(world_size):
            expected = [item for item in whole if item[0] >= start and item[0] % world_size == rank][:4]
            assert stream(start, len(expected), world_size, rank, factors=factors) == expected


@pytest.mark.parametrize("groups", [None, np.arange(23) % 3 == 0], ids=["plain", "grouped"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_resumed_batches_are_those_of_a_fresh_run_and_ranks_share_them(world_size, groups):
    ranks = [take(sampler(world_size, rank, groups=groups), 40) for rank in range(world_size)]
    for rank, fresh in enumerate(ranks):
        for k in (1, 2, 7, 33):
            resumed = sampler(world_size, rank, groups=groups, start_iteration=k)
            assert take(resumed, 40 - k) == take(resumed, 40 - k) == fresh[k:]
    if groups is None:  # all ranks' batches together are the one-process batch
        union = [sorted(item for batch in batches for item in batch) for batches in zip(*ranks)]
        assert union == take(sampler(), 40) and list(itertools.chain(*union)) == stream(0, 480)


def test_torch_data_loader_takes_it_as_it_is():
    class Showings:
        def __getitem__(self, item):
            return item

    batches = sampler(batch_size=2, start_iteration=3)
    assert take(DataLoader(Showings(), batch_sampler=batches, collate_fn=list), 4) == take(batches, 4)


@pytest.mark.parametrize("world_size", [1, 2])
def test_grouping_is_detectron2s(world_size):
    widths = np.array([3, 1, 2, 3, 3, 1, 2, 2, 3])
    groups = aspect_ratio_groups(SimpleNamespace(image_width=widths, image_height=np.full(9, 2)))
    assert groups.tolist() == [0, 1, 1, 0, 0, 1, 1, 1, 0]  # square counts as not wider than high
    factors = np.linspace(0.5, 2.0, 9, dtype=np.float32)
    for rank in range(world_size):
        items = stream(0, 400, world_size, rank, factors=factors)
        dicts = ({"width": widths[i], "height": 2, "item": (p, i)} for p, i in items)
        reference = AspectRatioGroupedDataset(dicts, 4 // world_size)
        expected = [[d["item"] for d in batch] for batch in take(reference, 30)]
        assert take(sampler(world_size, rank, batch_size=4, groups=groups, factors=factors), 30) == expected


def factors_of(image_count, num_images, threshold, instance_count=None, method="rfs"):
    return category_repeat_factors(image_count, num_images, threshold, instance_count=instance_count, method=method)


def factors_on(objects, method, filter_empty=False):
    return image_repeat_factors(columns(objects, "r"), method, 0.1, filter_empty=filter_empty)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (sampler, {"factors": np.zeros(3)}, "at least 1 showing per epoch, found 0"),
        (sampler, {"factors": np.ones((2, 2))}, "shape"),
        (sampler, {"factors": np.array([])}, "I >= 1"),
        (sampler, {"factors": np.array([1, np.nan])}, r"repeat_factors\[1\]: .*found nan"),
        (sampler, {"factors": np.array([-1.0, 9])}, r"repeat_factors\[0\]: .*found -1"),
        (sampler, {"rank": 2, "world_size": 2}, r"rank: expected 0 <= rank < world_size \(2\), found 2"),
        (sampler, {"seed": -1}, "seed"),
        (sampler, {"batch_size": 5, "world_size": 2}, "multiple of 2 processes, found 5"),
        (sampler, {"batch_size": 0}, "SOLVER.IMS_PER_BATCH"),
        (sampler, {"start_iteration": -1}, "start_iteration"),
        (sampler, {"groups": np.zeros(2)}, r"groups: expected shape \(23,\), found \(2,\)"),
        (factors_of, ([1], 0, 0.1), "num_images"),
        (factors_of, ([1, 3], 2, 0.1), r"image_count\[1\]: expected 0..2 images, found 3"),
        (factors_of, ([[1]], 2, 0.1), "shape"),
        (factors_of, ([1], 2, 0.0), "REPEAT_THRESHOLD"),
        (factors_of, ([1], 2, float("nan")), "REPEAT_THRESHOLD"),
        (factors_of, ([1], 2, 0.1, None, "irfs"), "instance_count: .*found None"),
        (factors_of, ([2], 2, 0.1, [1], "irfs"), r"instance_count\[0\]: .* at least image_count objects, found 1"),
        (factors_of, ([1], 2, 0.1, None, "RFS"), "expected one of none, rfs, irfs, found 'RFS'"),
        (factors_on, ([[0]], "balanced"), "class_aware"),
        (factors_on, ([], "none"), "made_up.json: expected at least 1 image"),
        (factors_on, ([[]], "rfs", True), "FILTER_EMPTY_ANNOTATIONS"),
    ],
)  # fmt: skip
def test_bad_arguments(function, arguments, message):
    with pytest.raises(SamplerError, match=message) as caught:
        function(**arguments) if isinstance(arguments, dict) else function(*arguments)
    assert "Fix: " in str(caught.value)
