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
    BatchSampler,
    SamplerError,
    TrainingSampler,
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


def test_epoch_depends_on_seed_and_epoch_only_and_not_on_the_global_generator():
    factors = np.full(50, 1.5, dtype=np.float32)
    first = epoch_indices(factors, 3, 4)
    np.random.seed(0)
    np.testing.assert_array_equal(first, epoch_indices(factors, 3, 4))
    assert not np.array_equal(first, epoch_indices(factors, 3, 5))
    assert not np.array_equal(first, epoch_indices(factors, 4, 4))


def test_epoch_order_is_the_same_on_every_machine():
    # Golden: PCG64's raw stream is promised never to change. If this fails, resumed runs change their data
    # order.
    assert epoch_indices(np.ones(8, np.float32), 1, 0).tolist() == GOLDEN_ORDER, "the order of a seed changed"


GOLDEN_ORDER = [2, 4, 7, 5, 0, 6, 3, 1]


def test_epoch_is_shuffled_evenly():
    order = np.stack([epoch_indices(np.ones(5, np.float32), 0, e) for e in range(5000)])
    for place in range(5):
        assert abs(np.bincount(order[:, place], minlength=5) / 5000 - 0.2).max() < 0.03


# ------------------------------------------------------------------------------------------ the stream


FACTORS = [np.ones(7, np.float32), np.array([0.4, 2.7, 1.0, 0.3], np.float32)]


@pytest.mark.parametrize("factors", FACTORS, ids=["whole", "fractions"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 11])
def test_ranks_share_one_stream_and_start_anywhere(factors, world_size):
    stream = take(TrainingSampler(repeat_factors=factors, seed=5), 200)
    assert [position for position, _ in stream] == list(range(200))
    for start in (0, 1, 5, 17, 64, 111):
        for rank in range(world_size):
            sampler = TrainingSampler(repeat_factors=factors, seed=5, rank=rank, world_size=world_size, start=start)
            expected = [item for item in stream if item[0] >= start and item[0] % world_size == rank]
            assert take(sampler, min(8, len(expected))) == expected[:8]


def test_epochs_with_nothing_in_them_are_passed_over():
    # Factors of 0.5: an epoch of these two images is empty one time in four.
    stream = take(TrainingSampler(repeat_factors=np.array([0.5, 0.5]), seed=0), 300)
    sampler = TrainingSampler(repeat_factors=np.array([0.5, 0.5]), seed=0)
    lengths = [sampler.epoch_start(e + 1) - sampler.epoch_start(e) for e in range(100)]
    assert 0 in lengths
    for start in range(60):
        assert next(iter(TrainingSampler(repeat_factors=np.array([0.5, 0.5]), seed=0, start=start))) == stream[start]


def test_annotations_and_method_are_the_factors():
    annotations = columns([[0], [0], [0, 1], []], 2)
    sampler = TrainingSampler(annotations=annotations, method="rfs", repeat_threshold=1.0, seed=0)
    np.testing.assert_array_equal(sampler.repeat_factors, image_repeat_factors(annotations, "rfs", 1.0))
    skipping = TrainingSampler(annotations=annotations, method="rfs", filter_empty=True, seed=0)
    assert 3 not in {index for _, index in take(skipping, 50)}


# ------------------------------------------------------------------------------------------ batches


def batches(world_size, rank, *, batch_size=12, groups=None, start_iteration=0, n=40, factors=None, seed=2):
    if factors is None:
        factors = np.linspace(0.2, 3.0, 23, dtype=np.float32)
    sampler = TrainingSampler(repeat_factors=factors, seed=seed, rank=rank, world_size=world_size)
    return take(BatchSampler(sampler, batch_size=batch_size, groups=groups, start_iteration=start_iteration), n)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_union_over_ranks_is_the_one_process_batch(world_size):
    one = batches(1, 0)
    ranks = [batches(world_size, rank) for rank in range(world_size)]
    for i, expected in enumerate(one):
        assert sorted(item for rank in ranks for item in rank[i]) == expected


@pytest.mark.parametrize("grouped", [False, True], ids=["plain", "grouped"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 2, 7, 33])
def test_resumed_batches_are_those_of_a_fresh_run(world_size, k, grouped):
    groups = np.arange(23) % 3 == 0 if grouped else None
    for rank in range(world_size):
        fresh = batches(world_size, rank, groups=groups)
        assert batches(world_size, rank, groups=groups, start_iteration=k, n=40 - k) == fresh[k:]


@pytest.mark.parametrize("world_size", [1, 2])
def test_grouping_is_detectron2s(world_size):
    common = pytest.importorskip("detectron2.data.common")
    widths = np.array([3, 1, 2, 3, 3, 1, 2, 2, 3])
    groups = aspect_ratio_groups(SimpleNamespace(image_width=widths, image_height=np.full(9, 2)))
    assert groups.tolist() == [0, 1, 1, 0, 0, 1, 1, 1, 0]  # square counts as not wider than high
    factors = np.linspace(0.5, 2.0, 9, dtype=np.float32)
    for rank in range(world_size):
        sampler = TrainingSampler(repeat_factors=factors, seed=2, rank=rank, world_size=world_size)
        dicts = ({"width": widths[i], "height": 2, "item": (p, i)} for p, i in sampler)
        reference = common.AspectRatioGroupedDataset(dicts, 4 // world_size)
        expected = [[d["item"] for d in batch] for batch in take(reference, 30)]
        assert batches(world_size, rank, batch_size=4, groups=groups, factors=factors, n=30) == expected


def test_torch_data_loader_takes_it_as_it_is():
    data = pytest.importorskip("torch.utils.data")

    class Showings:
        def __getitem__(self, item):
            return item

    sampler = BatchSampler(TrainingSampler(num_images=5, seed=0), batch_size=2, start_iteration=3)
    loader = data.DataLoader(Showings(), batch_sampler=sampler, collate_fn=list)
    assert take(loader, 4) == take(sampler, 4)


def test_a_hundred_thousand_images_take_no_time():
    rng = np.random.default_rng(0)
    factors = np.maximum(1, rng.exponential(1.0, 100_000)).astype(np.float32)
    groups = rng.random(100_000) < 0.4
    begin = time.process_time()
    sampler = TrainingSampler(repeat_factors=factors, seed=0, rank=1, world_size=8)
    take(BatchSampler(sampler, batch_size=16, groups=groups, start_iteration=170_000), 10)
    assert time.process_time() - begin < 5  # about 0.7 s: 20 epochs


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_images": 0}, "num_images"),
        ({"repeat_factors": np.zeros(3)}, "sum to 0"),
        ({"repeat_factors": np.ones((2, 2))}, "shape"),
        ({"repeat_factors": np.array([])}, "I >= 1"),
        ({"repeat_factors": np.array([1, np.nan])}, r"repeat_factors\[1\]"),
        ({"repeat_factors": np.array([-1.0, 9])}, r"repeat_factors\[0\]"),
        ({}, "exactly one"),
        ({"num_images": 3, "repeat_factors": np.ones(3)}, "exactly one"),
        ({"num_images": 3, "method": "rfs"}, "need annotations"),
        ({"num_images": 3, "rank": 2, "world_size": 2}, "rank 2 of world_size 2"),
        ({"num_images": 3, "start": -1}, "start"),
        ({"num_images": 3, "seed": -1}, "seed"),
    ],
)
def test_bad_sampler_arguments(arguments, message):
    with pytest.raises(SamplerError, match=message):
        TrainingSampler(**{"seed": 0, **arguments})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 5}, "multiple of the 2 processes"),
        ({"batch_size": 0}, "multiple"),
        ({"batch_size": 4, "start_iteration": -1}, "start_iteration"),
        ({"batch_size": 4, "groups": np.zeros(2)}, "one an image"),
    ],
)
def test_bad_batch_arguments(arguments, message):
    with pytest.raises(SamplerError, match=message):
        BatchSampler(TrainingSampler(num_images=6, seed=0, world_size=2), **arguments)
    with pytest.raises(SamplerError, match="says where to begin"):
        BatchSampler(TrainingSampler(num_images=6, seed=0, start=2), batch_size=2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: category_repeat_factors(np.array([1]), 0, 0.1), "num_images"),
        (lambda: category_repeat_factors(np.array([1, 3]), 2, 0.1), r"image_count\[1\]"),
        (lambda: category_repeat_factors(np.array([[1]]), 2, 0.1), "shape"),
        (lambda: category_repeat_factors(np.array([1]), 2, 0.0), "REPEAT_THRESHOLD"),
        (lambda: category_repeat_factors(np.array([1]), 2, float("nan")), "REPEAT_THRESHOLD"),
        (lambda: category_repeat_factors(np.array([1]), 2, 0.1, method="irfs"), "instance_count"),
        (
            lambda: category_repeat_factors(np.array([2]), 2, 0.1, method="irfs", instance_count=np.array([1])),
            "at least image_count",
        ),
        (lambda: category_repeat_factors(np.array([1]), 2, 0.1, method="RFS"), "expected one of none, rfs, irfs"),
        (lambda: image_repeat_factors(columns([[0]], 1), "balanced", 0.1), "class_aware"),
        (lambda: image_repeat_factors(columns([], 1), "none", 0.1), "holds no images"),
        (lambda: image_repeat_factors(columns([[]], 1), "rfs", 0.1, filter_empty=True), "FILTER_EMPTY_ANNOTATIONS"),
    ],
)
def test_bad_factor_arguments(call, message):
    with pytest.raises(SamplerError, match=message):
        call()


def test_no_annotation_at_all_is_plain_sampling():
    for method in ("none", "rfs", "irfs", "class_aware"):
        np.testing.assert_array_equal(image_repeat_factors(columns([[], []], 2), method, 0.1), [1, 1])
