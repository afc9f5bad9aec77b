"""Balance: exposures worked by hand, replay held to a simulation, measures with known values."""

import doctest

import numpy as np
import pandas as pd
import pytest

import rio.analysis.balance
from rio.analysis.balance import BalanceError, compare, exposures, imbalance, share_by_group, with_replay
from rio.sampler import epoch_indices, image_repeat_factors
from tests.support.columns import columns


def test_exposures_by_hand():
    assert doctest.testmod(rio.analysis.balance).failed == 0
    # Image 0: two of class 0. Image 1: one of each (and a crowd of class 2). Image 2: empty. Shown 1, 2 and 5 times.
    annotations = columns([[0, 0], [0, 1, 2], []], "fcr", crowd=((1, 2),))
    table = exposures(annotations, np.array([1.0, 2.0, 5.0]), rois_per_instance=3, foreground_per_image=4)
    assert table["images"].tolist() == [3, 2, 0]
    assert table["instances"].tolist() == [4, 2, 0]
    # Two objects in either image, 4 foreground RoIs: 2 RoIs an object.
    assert table["rois"].tolist() == [8, 4, 0]
    assert table["replayed"].tolist() == [0, 0, 0]
    assert table["frequency"].tolist() == ["f", "c", "r"] and table["category_id"].tolist() == [1, 2, 3]


def test_an_epoch_of_the_sampler_sees_what_is_expected():
    rng = np.random.default_rng(0)
    objects = [rng.choice(6, size=rng.integers(0, 6), p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.02]).tolist() for _ in range(80)]
    annotations = columns(objects, "ffccrr")
    for method in ("none", "rfs", "irfs", "class_aware"):
        factors = image_repeat_factors(annotations, method, 0.2)
        table = exposures(annotations, factors)
        seen = np.zeros(6)
        for epoch in range(300):
            for image in epoch_indices(factors, 1, epoch):
                seen += np.bincount(objects[image], minlength=6)
        np.testing.assert_allclose(seen / 300, table["instances"], rtol=0.05)


def test_replay_by_hand():
    # 8 showings an epoch, 2 a step, class 1 in 2 showings: P = 1 - (3/4)^2 = 7/16; 4 steps x 7/16 x 3 rows = 5.25.
    annotations = columns([[0]] * 6 + [[0, 1]] * 2, "fr")
    table = exposures(annotations, np.ones(8), rois_per_instance=1)
    arguments = dict(batch_size=2, epoch_length=8)
    replayed = with_replay(table, [1], replay_per_class=3, **arguments)
    np.testing.assert_allclose(replayed["present_in_batch"], [1.0, 7 / 16])
    np.testing.assert_allclose(replayed["replayed"], [0, 5.25])
    assert table["replayed"].sum() == 0  # the input is left as it was
    fewer = with_replay(table, [1], replay_per_class=3, slots_per_class=2, **arguments)
    np.testing.assert_allclose(fewer["replayed"], [0, 3.5])
    assert with_replay(table, [], replay_per_class=3, **arguments)["replayed"].sum() == 0
    # Both classes targets, class 0 in every image: only class 1 can be absent.
    always = with_replay(table, [0, 1], replay_per_class=3, absent_classes=1, **arguments)
    np.testing.assert_allclose(always["replayed"], [12, 12])


@pytest.mark.parametrize("absent_classes", [0, 1])
def test_replay_agrees_with_a_pass_of_the_sampler(absent_classes):
    rng = np.random.default_rng(3)
    objects = [[0] + [c for c, p in ((1, 0.2), (2, 0.05), (3, 0.02)) if rng.random() < p] for _ in range(400)]
    annotations = columns(objects, "fccr")
    factors = image_repeat_factors(annotations, "rfs", 0.1)
    how = {"replay_per_class": 4, "batch_size": 8, "epoch_length": factors.sum(), "absent_classes": absent_classes}
    table = with_replay(exposures(annotations, factors), [1, 2, 3], **how)
    rows, epochs = np.zeros(4), 200
    for epoch in range(epochs):
        order = epoch_indices(factors, 0, epoch)
        for step in range(len(order) // 8):
            present = {c for image in order[8 * step : 8 * step + 8] for c in objects[image]}
            rows[[c for c in present if c > 0]] += 4
            absent = [c for c in (1, 2, 3) if c not in present]
            rows[rng.permutation(absent)[:absent_classes].astype(int)] += 4
    np.testing.assert_allclose(rows[1:] / epochs, table["replayed"][1:], rtol=0.06)


def test_measures_at_their_ends():
    everything = imbalance([0, 0, 0, 7])
    assert everything["gini"] == pytest.approx(3 / 4)
    assert everything["normalised_entropy"] == 0 and everything["effective_classes"] == 1
    assert everything["max_min_ratio"] == np.inf
    assert imbalance([3])["normalised_entropy"] == 1
    equal = imbalance(np.full(1203, 17))
    assert equal["gini"] == pytest.approx(0, abs=1e-12) and equal["effective_classes"] == pytest.approx(1203)
    # Mean absolute difference of 1, 2, 5: (1 + 4 + 3) * 2 / 9 = 16/9; over twice the mean 8/3: 1/3.
    assert imbalance([5, 1, 2])["gini"] == pytest.approx(1 / 3)
    assert imbalance([50, 10, 20]) == pytest.approx(imbalance([5, 1, 2]))  # the unit does not matter


def test_compare_lists_arms_and_levels_and_counts_replay_as_rois():
    annotations = columns([[0, 0, 0, 0]] * 2 + [[0, 1]], "fr")
    table = exposures(annotations, np.ones(3), rois_per_instance=1)
    bank = with_replay(table, [1], replay_per_class=8, batch_size=3, epoch_length=3)
    both = compare({"none": table, "bank": bank})
    rows = [[arm, level] for arm in ("none", "bank") for level in ("images", "instances", "rois")]
    assert both[["arm", "level"]].to_numpy().tolist() == rows
    np.testing.assert_allclose(both[["r", "c", "f"]].sum(axis=1), 1)
    r = both.set_index(["arm", "level"])["r"]
    assert r["none", "images"] == pytest.approx(1 / 4) and r["none", "instances"] == pytest.approx(1 / 10)
    replayed = 8 * (1 - (2 / 3) ** 3)
    assert r["bank", "rois"] == pytest.approx((1 + replayed) / (10 + replayed))


FINE = pd.DataFrame({"images": [2.0], "instances": [2.0], "rois": [2.0], "replayed": [0.0], "frequency": ["r"]})


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: imbalance([]), "K >= 1"),
        (lambda: imbalance([0, 0]), "only zeros"),
        (lambda: imbalance([1, -1]), ">= 0"),
        (lambda: imbalance([1, np.nan]), "finite"),
        (lambda: share_by_group([1, 2], ["r"]), "frequency"),
        (lambda: share_by_group([1], ["x"]), "r, c, f"),
        (lambda: compare({}), "at least one arm"),
        (lambda: compare({"none": FINE.assign(rois=0.0)}), "arm 'none', level 'rois'"),
        (lambda: exposures(columns([[0]], "r"), np.ones(2)), "same annotations"),
        (lambda: exposures(columns([[0]], "r"), np.array([np.nan])), "finite"),
        (lambda: exposures(columns([[0]], "r"), np.ones(1), rois_per_instance=0), "rois_per_instance"),
        (lambda: with_replay(FINE, [1], replay_per_class=1, batch_size=1, epoch_length=2), "0-based"),
        (lambda: with_replay(FINE, [0], replay_per_class=1, batch_size=0, epoch_length=2), "batch_size"),
        (lambda: with_replay(FINE, [0], replay_per_class=1, batch_size=1, epoch_length=1), "epoch_length"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(BalanceError, match=message):
        call()
