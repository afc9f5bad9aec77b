"""Positive and negative gradients by class: softmax by its formula, and what balancing losses are for."""

import numpy as np
import pytest
import torch

from rio.analysis.arms import Arms
from rio.analysis.gradients import ROWS, STEPS, gradient_balance
from rio.data.load import load_annotations
from rio.losses import LOSSES


@pytest.fixture(scope="module")
def arms(tiny_set):
    return Arms(load_annotations(tiny_set / "train.json"), embedded=True)


@pytest.fixture(scope="module")
def table(arms):
    return gradient_balance(arms)


def test_softmax_by_its_formula(arms, table):
    rows = table[(table["loss"] == "softmax") & (table["arm"] == "none")]
    size = arms.annotations.num_classes
    # Equal logits: a row's own class gets 1 - 1 / (K + 1), every other class 1 / (K + 1), over the rows of a step.
    seen = rows["positive"].to_numpy() * ROWS * (size + 1) / size
    assert seen == pytest.approx(seen.round(), abs=1e-3) and seen.sum() > 100
    assert rows["negative"].to_numpy() == pytest.approx((ROWS * STEPS - seen) / ROWS / (size + 1), rel=1e-5)
    expected = arms.table("none").set_index("name")["rois"].reindex(rows["name"]).to_numpy()
    np.testing.assert_allclose(seen / seen.sum(), expected / expected.sum(), atol=0.03)


def test_every_loss_and_both_arms_are_there_and_draws_are_fixed(arms, table):
    assert set(zip(table["loss"], table["arm"], strict=True)) == {
        (n, a) for n in LOSSES for a in ("none", "RFS + bank")
    }
    before = torch.get_rng_state()
    again = gradient_balance(arms, ["bags", "federated"], ["none"])  # both draw at random
    assert torch.equal(torch.get_rng_state(), before)
    same = table[table["loss"].isin(["bags", "federated"]) & (table["arm"] == "none")]
    assert sorted(again["ratio"].round(9)) == sorted(same["ratio"].round(9))


def test_balancing_losses_treat_groups_more_alike(arms, table):
    def spread(loss, arm="none"):
        rows = table[(table["loss"] == loss) & (table["arm"] == arm)]
        sums = rows.groupby("frequency")[["positive", "negative"]].sum()
        ratio = sums["positive"] / sums["negative"]
        return ratio["f"] / ratio["r"]

    assert spread("softmax") > 3 * spread("balanced_softmax") and spread("softmax") > 2 * spread("seesaw")
    assert spread("softmax") > spread("softmax", "RFS + bank") > 0
    spared = gradient_balance(arms, ["eql"], ["none"], eql_threshold=1.0)
    assert spared["negative"].sum() < table[(table["loss"] == "eql") & (table["arm"] == "none")]["negative"].sum()
