"""Ways of resampling side by side: numbers of the modules below, and a check by the real sampler and bank."""

import json

import numpy as np
import pytest

from rio import plots
from rio.analysis.arms import ARMS, BANK, NONE, RFS, RFS_BANK, Arms, Settings, disagreement
from rio.analysis.balance import BalanceError, exposures
from rio.data.load import load_annotations
from rio.sampler import image_repeat_factors


@pytest.fixture(scope="module")
def data(tiny_set):
    return load_annotations(tiny_set / "train.json")


@pytest.fixture(scope="module")
def arms(data):
    return Arms(data, repeat_threshold=0.4, batch_size=4, replay_per_class=3, slots_per_class=5)


def test_the_usual_settings():
    assert Settings.usual(100_170).repeat_threshold == 0.001  # LVIS's own
    assert Settings.usual(50).repeat_threshold == 0.1
    assert Settings.usual(50, embedded=True).replay_per_class == 4


def test_tables_are_those_of_the_modules_below(data, arms):
    expected = exposures(data, image_repeat_factors(data, "rfs", 0.4))
    np.testing.assert_allclose(arms.table(RFS)["images"], expected["images"])
    assert (arms.table(RFS)["replayed"] == 0).all()
    assert np.flatnonzero(arms.table(RFS_BANK)["replayed"]).tolist() == arms.target_class_ids()
    assert set(arms.compare()["arm"]) == set(ARMS)


def test_the_bank_acts_on_rois_only_and_the_sampler_on_both(arms):
    effective = arms.effective()
    assert effective["images"][NONE] == effective["images"][BANK] < effective["images"][RFS]
    assert effective["rois"][NONE] < effective["rois"][BANK]
    assert effective["rois"][RFS] < effective["rois"][RFS_BANK]


@pytest.mark.parametrize("arm", [NONE, RFS_BANK])
def test_sampler_and_bank_do_what_the_arithmetic_expects(arms, arm):
    totals = disagreement(arms.check(arm, epochs=8)).set_index("level")
    assert set(totals.index) == ({"images", "instances"} if arm == NONE else {"images", "instances", "replayed"})
    # Without resampling every image is shown once: nothing is left to chance.
    assert (totals["difference"].abs() <= (0 if arm == NONE else 0.05)).all(), totals


def test_check_of_a_few_pictures(tiny_set, tmp_path):
    """One batch shows all of them many times: enough batches for the bank to fill and be counted."""
    content = json.loads((tiny_set / "train.json").read_text())
    held = {a["image_id"] for a in content["annotations"]}
    content["images"] = [image for image in content["images"] if image["id"] in held][:3]
    held = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in held]
    (tmp_path / "few.json").write_text(json.dumps(content))
    totals = disagreement(Arms(load_annotations(tmp_path / "few.json")).check())
    assert (totals["difference"].abs() < 0.05).all() and (totals["expected"] > 0).all(), totals


def test_check_without_target_classes(data):
    totals = disagreement(Arms(data, max_image_count=0).check(epochs=1)).set_index("level")
    assert totals.loc["replayed"].tolist() == [0, 0, 0]


def test_advice_grows_with_the_threshold_and_suggests_once_per_method(arms):
    for _, rows in arms.advice().groupby("method"):
        assert rows["epoch_length"].is_monotonic_increasing
        assert rows["suggested"].sum() == rows["current"].sum() == 1
        best, first = rows["effective_classes"].max(), rows["effective_classes"].iloc[0]
        assert rows.loc[rows["suggested"], "effective_classes"].iloc[0] >= first + 0.9 * (best - first) - 1e-6


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"repeat_threshold": 0}, "threshold"),
        ({"batch_size": 0}, "batch_size"),
        ({"replay_per_class": -1}, "replay_per_class"),
        ({"slots_per_class": 0}, "slots_per_class"),
        ({"rois_per_instance": -2}, "rois_per_instance"),
        ({"slots": 3}, "settings: expected repeat_threshold.*found 'slots'"),
    ],
)
def test_settings_out_of_range(data, settings, word):
    with pytest.raises(ValueError, match=word) as caught:
        Arms(data, **settings)
    assert isinstance(caught.value, BalanceError) or "threshold" in word


def test_figures(arms):
    assert set(ARMS) <= {text.get_text() for text in plots.image_or_object(arms.compare()).texts}
    ax = plots.threshold_advice(arms.advice())
    assert sum(text.get_text().startswith("suggested") for text in ax.texts) == 2
    ax = plots.expected_vs_counted(arms.check(NONE, epochs=1))
    assert ax.get_xscale() == ax.get_yscale() == "log"
