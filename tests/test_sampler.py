"""The sampler: detectron2's factors, a stream that starts anywhere, batches that resume exactly."""

from __future__ import annotations

import doctest
import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest

import rio.sampler
from rio.sampler import (
    METHODS,
    BatchSampler,
    SamplerError,
    aspect_ratio_groups,
    category_repeat_factors,
    epoch_indices,
    image_repeat_factors,
)


def columns(objects: list[list[int]], num_categories: int, crowd: set[tuple[int, int]] = frozenset()):
    """Just the columns of Annotations that the sampler reads; objects[i] lists the class ids of image i."""
    image = np.array([i for i, classes in enumerate(objects) for _ in classes], dtype=np.int32)
    category = np.array([c for classes in objects for c in classes], dtype=np.int32)
    iscrowd = np.array([(i, j) in crowd for i, classes in enumerate(objects) for j in range(len(classes))], bool)
    seen = [{c for j, c in enumerate(classes) if (i, j) not in crowd} for i, classes in enumerate(objects)]
    kept = [c for i, classes in enumerate(objects) for j, c in enumerate(classes) if (i, j) not in crowd]
    return SimpleNamespace(
        path="made_up.json",
        image_ids=np.arange(len(objects)),
        category_ids=np.arange(1, num_categories + 1),
        image_count=np.array([sum(c in s for s in seen) for c in range(num_categories)]),
        instance_count=np.array([kept.count(c) for c in range(num_categories)]),
        annotation_image=image,
        annotation_class=category,
        iscrowd=iscrowd,
        image_width=np.arange(len(objects)) % 3 + 1,
        image_height=np.full(len(objects), 2),
    )


def detectron2_factors(objects, threshold):
    samplers = pytest.importorskip("detectron2.data.samplers")
    dicts = [{"annotations": [{"category_id": c} for c in classes]} for classes in objects]
    return samplers.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, threshold).numpy()


def take(iterable, n):
    return list(itertools.islice(iterable, n))


# ------------------------------------------------------------------------------------------ factors


def test_doctests():
    assert doctest.testmod(rio.sampler).failed == 0


def test_rfs_by_hand():
    # 4 images; category 0 in all, 1 in one, 2 in none. t = 1: r = max(1, sqrt(1 / f)).
    annotations = columns([[0, 0], [0, 1], [0], [0]], 3)
    np.testing.assert_array_equal(category_repeat_factors(annotations.image_count, 4, 1.0), np.float32([1, 2, 1]))
    np.testing.assert_array_equal(image_repeat_factors(annotations, "rfs", 1.0), np.float32([1, 2, 1, 1]))
    np.testing.assert_array_equal(image_repeat_factors(annotations, "rfs", 1.0, sqrt=False), np.float32([1, 4, 1, 1]))
    np.testing.assert_array_equal(image_repeat_factors(annotations, "none", 1.0), np.ones(4, np.float32))


def test_irfs_by_hand():
    # Both categories in 1 of 4 images; 1 and 15 of 16 instances. f = sqrt(1/4 * 1/16) = 1/8 and sqrt(1/4 *
    # 15/16).
    factors = category_repeat_factors(np.array([1, 1]), 4, 0.5, instance_count=np.array([1, 15]), method="irfs")
    np.testing.assert_allclose(factors, [2.0, np.sqrt(0.5 / np.sqrt(15 / 64))], rtol=1e-6)
    rfs = category_repeat_factors(np.array([1, 1]), 4, 0.5)
    assert factors[0] > rfs[0] > factors[1]  # fewer objects: repeated more; many: less


def test_class_aware_by_hand():
    # n = [3, 1]; N / K' = 3 / 2. Images of 0 only: 3/2 * 1/3; the one with both: 3/2 * (1/3 + 1). Doubles
    # count once.
    annotations = columns([[0, 0, 0], [0], [0, 1], []], 3)
    factors = image_repeat_factors(annotations, "class_aware", 0.001)
    np.testing.assert_allclose(factors, [0.5, 0.5, 2.0, 1.0], rtol=1e-6)
    assert image_repeat_factors(annotations, "class_aware", 0.001, filter_empty=True)[3] == 0


def test_images_without_annotations_keep_one_and_crowds_do_not_count():
    objects = [[0], [1], [], [0, 1]]
    annotations = columns(objects, 2, crowd={(3, 1), (1, 0)})  # category 1 is only ever a crowd
    np.testing.assert_array_equal(image_repeat_factors(annotations, "rfs", 2.0), np.float32([2, 1, 1, 2]))
    without_crowds = [[0], [], [], [0]]
    np.testing.assert_array_equal(
        image_repeat_factors(annotations, "rfs", 2.0), detectron2_factors(without_crowds, 2.0)
    )
    # Images 1 and 2 gone: f(0) = 2 / 2.
    np.testing.assert_array_equal(
        image_repeat_factors(annotations, "rfs", 4.0, filter_empty=True), np.float32([2, 0, 0, 2])
    )


@pytest.mark.parametrize("seed", range(5))
def test_rfs_is_detectron2s_in_float32_on_random_sets(seed):
    rng = np.random.default_rng(seed)
    num_categories = int(rng.integers(1, 200))
    tail = rng.dirichlet(np.full(num_categories, 0.1))
    objects = [rng.choice(num_categories, size=rng.integers(0, 12), p=tail).tolist() for _ in range(400)]
    for threshold in (1e-3, 0.037, 0.5):
        ours = image_repeat_factors(columns(objects, num_categories), "rfs", threshold)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, detectron2_factors(objects, threshold))


def test_rfs_is_detectron2s_in_float32_on_lvis(shared_dir):
    annotations_module = pytest.importorskip("rio.data.load")
    annotations = annotations_module.load_annotations(shared_dir / "data" / "lvis_val_100.json")
    objects = [[] for _ in annotations.image_ids]
    for image, category in zip(annotations.annotation_image, annotations.annotation_class, strict=True):
        objects[image].append(int(category))
    for threshold in (0.001, 0.05, 0.3):
        ours = image_repeat_factors(annotations, "rfs", threshold)
        np.testing.assert_array_equal(ours, detectron2_factors(objects, threshold))


# ------------------------------------------------------------------------------------------ one epoch


def test_epoch_rounds_stochastically_and_without_bias():
    factors = np.array([1.0, 2.25, 0.5, 0.0], dtype=np.float32)
    counts = np.stack([np.bincount(epoch_indices(factors, 7, e), minlength=4) for e in range(2000)])
    assert set(counts[:, 0]) == {1} and set(counts[:, 1]) == {2, 3} and set(counts[:, 2]) == {0, 1}
    assert not counts[:, 3].any()
    np.testing.assert_allclose(counts.mean(axis=0), factors, atol=0.05)


def test_epoch_depends_on_seed_and_epoch_only():
    factors = np.full(50, 1.5, dtype=np.float32)
    first = epoch_indices(factors, 3, 4)
    np.random.seed(0)  # not on the global generator
    np.testing.assert_array_equal(first, epoch_indices(factors, 3, 4))
    assert not np.array_equal(first, epoch_indices(factors, 3, 5))
    assert not np.array_equal(first, epoch_indices(factors, 4, 4))


def test_epoch_order_is_golden_and_even():
    # PCG64's raw stream is promised never to change. If this fails, resumed runs change their data order.
    assert epoch_indices(np.ones(8, np.float32), 1, 0).tolist() == [2, 4, 7, 5, 0, 6, 3, 1]
    assert epoch_indices(np.float32([0.4, 2.7, 1.0, 0.3]), 5, 2).tolist() == [0, 1, 1, 2, 1]
    order = np.stack([epoch_indices(np.ones(5, np.float32), 0, e) for e in range(5000)])
    for place in range(5):
        assert abs(np.bincount(order[:, place], minlength=5) / 5000 - 0.2).max() < 0.03


# ------------------------------------------------------------------------------------------ the stream and its batches


FACTORS = np.linspace(0.2, 3.0, 23, dtype=np.float32)


def sampler(world_size=1, rank=0, *, batch_size=12, factors=FACTORS, seed=2, **changes):
    return BatchSampler(factors, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, **changes)


def stream(start, number, *args, **changes):
    chunks = sampler(*args, batch_size=88 * 3, **changes).stream(start)
    return take((tuple(item) for chunk in chunks for item in chunk.T.tolist()), number)


@pytest.mark.parametrize("factors", [[1.0] * 7, [0.4, 2.7, 1.0, 0.3], [0.5, 0.5]], ids=["whole", "fractions", "empty"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 11])
def test_ranks_share_one_stream_and_start_anywhere(factors, world_size):
    """With factors of 0.5 an epoch of two images is empty one time in four."""
    whole = stream(0, 200, factors=factors)
    assert [position for position, _ in whole] == list(range(200))
    for start in (0, 1, 5, 17, 64, 111):
        for rank in range(world_size):
            expected = [item for item in whole if item[0] >= start and item[0] % world_size == rank][:8]
            assert stream(start, len(expected), world_size, rank, factors=factors) == expected


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_union_over_ranks_is_the_one_process_batch(world_size):
    ranks = [take(sampler(world_size, rank), 40) for rank in range(world_size)]
    one = take(sampler(), 40)
    assert [sorted(item for rank in ranks for item in rank[i]) for i in range(40)] == one
    assert [item for batch in one for item in batch] == stream(0, 480)


@pytest.mark.parametrize("groups", [None, np.arange(23) % 3 == 0], ids=["plain", "grouped"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_resumed_batches_are_those_of_a_fresh_run(world_size, groups):
    for rank in range(world_size):
        fresh = take(sampler(world_size, rank, groups=groups), 40)
        for k in (1, 2, 7, 33):
            resumed = sampler(world_size, rank, groups=groups, start_iteration=k)
            assert take(resumed, 40 - k) == take(resumed, 40 - k) == fresh[k:]


@pytest.mark.parametrize("world_size", [1, 2])
def test_grouping_is_detectron2s(world_size):
    common = pytest.importorskip("detectron2.data.common")
    widths = np.array([3, 1, 2, 3, 3, 1, 2, 2, 3])
    groups = aspect_ratio_groups(SimpleNamespace(image_width=widths, image_height=np.full(9, 2)))
    assert groups.tolist() == [0, 1, 1, 0, 0, 1, 1, 1, 0]  # square counts as not wider than high
    factors = np.linspace(0.5, 2.0, 9, dtype=np.float32)
    for rank in range(world_size):
        items = stream(0, 400, world_size, rank, factors=factors)
        dicts = ({"width": widths[i], "height": 2, "item": (p, i)} for p, i in items)
        reference = common.AspectRatioGroupedDataset(dicts, 4 // world_size)
        expected = [[d["item"] for d in batch] for batch in take(reference, 30)]
        assert take(sampler(world_size, rank, batch_size=4, groups=groups, factors=factors), 30) == expected


def test_torch_data_loader_takes_it_as_it_is():
    data = pytest.importorskip("torch.utils.data")

    class Showings:
        def __getitem__(self, item):
            return item

    batches = sampler(batch_size=2, start_iteration=3)
    loader = data.DataLoader(Showings(), batch_sampler=batches, collate_fn=list)
    assert take(loader, 4) == take(batches, 4)


def test_a_hundred_thousand_images_take_no_time():
    rng = np.random.default_rng(0)
    factors = np.maximum(1, rng.exponential(1.0, 100_000)).astype(np.float32)
    begin = time.process_time()
    take(sampler(8, 1, batch_size=16, factors=factors, groups=factors < 1.1, start_iteration=170_000), 10)
    assert time.process_time() - begin < 5  # about 0.7 s: 20 epochs


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"factors": np.zeros(3)}, "at least 1 showing per epoch, found 0"),
        ({"factors": np.ones((2, 2))}, "shape"),
        ({"factors": np.array([])}, "I >= 1"),
        ({"factors": np.array([1, np.nan])}, r"repeat_factors\[1\]: .*found nan"),
        ({"factors": np.array([-1.0, 9])}, r"repeat_factors\[0\]: .*found -1"),
        ({"rank": 2, "world_size": 2}, r"rank: expected 0 <= rank < world_size \(2\), found 2"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 5, "world_size": 2}, "multiple of 2 processes, found 5"),
        ({"batch_size": 0}, "SOLVER.IMS_PER_BATCH"),
        ({"start_iteration": -1}, "start_iteration"),
        ({"groups": np.zeros(2)}, r"groups: expected shape \(23,\), found \(2,\)"),
    ],
)
def test_bad_batch_arguments(arguments, message):
    with pytest.raises(SamplerError, match=f"{message}.* Fix: "):
        sampler(**arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1], 0, 0.1, None, "rfs"), "num_images"),
        (([1, 3], 2, 0.1, None, "rfs"), r"image_count\[1\]: expected 0..2 images, found 3"),
        (([[1]], 2, 0.1, None, "rfs"), "shape"),
        (([1], 2, 0.0, None, "rfs"), "REPEAT_THRESHOLD"),
        (([1], 2, float("nan"), None, "rfs"), "REPEAT_THRESHOLD"),
        (([1], 2, 0.1, None, "irfs"), "instance_count: .*found None"),
        (([2], 2, 0.1, [1], "irfs"), r"instance_count\[0\]: expected at least image_count objects, found 1"),
        (([1], 2, 0.1, None, "RFS"), "expected one of none, rfs, irfs, found 'RFS'"),
    ],
)
def test_bad_factor_arguments(arguments, message):
    *counts, instance_count, method = arguments
    with pytest.raises(SamplerError, match=f"{message}.* Fix: "):
        category_repeat_factors(*counts, instance_count=instance_count, method=method)


@pytest.mark.parametrize(
    "objects, method, filter_empty, message",
    [
        ([[0]], "balanced", False, "class_aware"),
        ([], "none", False, "made_up.json: expected at least 1 image"),
        ([[]], "rfs", True, "FILTER_EMPTY_ANNOTATIONS"),
    ],
)
def test_bad_data_sets(objects, method, filter_empty, message):
    with pytest.raises(SamplerError, match=message):
        image_repeat_factors(columns(objects, 1), method, 0.1, filter_empty=filter_empty)


def test_no_annotation_at_all_is_plain_sampling():
    for method in METHODS:
        np.testing.assert_array_equal(image_repeat_factors(columns([[], []], 2), method, 0.1), [1, 1])
