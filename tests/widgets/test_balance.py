"""The balance view: its numbers are rio.analysis.balance's, its check runs the real sampler and bank, its sliders move
them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

from rio import plots, widgets
from rio.analysis.arms import ARMS, BANK, NONE, RFS, RFS_BANK, Settings, disagreement
from rio.analysis.balance import exposures
from rio.sampler import image_repeat_factors
from tests.support import tiny_shapes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tiny_shapes.draw(tmp_path_factory.mktemp("balance"))
    return widgets.open_dataset(f"{folder}/train.json@{folder}/train")


@pytest.fixture(scope="module")
def balance(data):
    return widgets.balance_of(data, repeat_threshold=0.4, batch_size=4, replay_per_class=3, slots_per_class=5)


def test_the_usual_settings():
    assert Settings.usual(100_170).repeat_threshold == 0.001  # LVIS's own
    assert Settings.usual(50).repeat_threshold == 0.1
    assert Settings.usual(50, embedded=True).replay_per_class == 4


def test_tables_are_those_of_the_modules_below(data, balance):
    factors = image_repeat_factors(data.annotations, "rfs", 0.4)
    expected = exposures(data.annotations, factors)
    np.testing.assert_allclose(balance.table(RFS)["images"], expected["images"])
    assert (balance.table(RFS)["replayed"] == 0).all()
    replayed = balance.table(RFS_BANK)["replayed"].to_numpy()
    assert (np.flatnonzero(replayed) == balance.target_class_ids()).all()
    assert set(balance.compare()["arm"]) == set(ARMS)


def test_the_bank_acts_on_rois_alone_and_the_sampler_on_both(balance):
    effective = balance.effective()
    assert effective["images"][NONE] == effective["images"][BANK] < effective["images"][RFS]
    assert effective["rois"][NONE] < effective["rois"][BANK]
    assert effective["rois"][RFS] < effective["rois"][RFS_BANK]


@pytest.mark.parametrize("arm", [NONE, RFS_BANK])
def test_sampler_and_bank_do_what_the_arithmetic_expects(balance, arm):
    totals = disagreement(balance.check(arm, epochs=20)).set_index("level")
    assert set(totals.index) == ({"images", "instances"} if arm == NONE else {"images", "instances", "replayed"})
    assert (totals["difference"].abs() < 0.05).all(), totals
    if arm == NONE:
        assert (totals["difference"] == 0).all()  # every image once: nothing is left to chance


def test_check_without_target_classes(data):
    totals = disagreement(widgets.balance_of(data, max_image_count=0).check(epochs=1)).set_index("level")
    assert totals.loc["replayed"].tolist() == [0, 0, 0]


def test_advice_grows_with_the_threshold_and_suggests_once_a_method(balance):
    advice = balance.advice()
    for _, rows in advice.groupby("method"):
        assert rows["epoch_length"].is_monotonic_increasing
        assert rows["suggested"].sum() == 1
        assert rows["current"].sum() == 1
        best = rows["effective_classes"].max()
        first = rows["effective_classes"].iloc[0]
        assert rows.loc[rows["suggested"], "effective_classes"].iloc[0] >= first + 0.9 * (best - first) - 1e-6


def controls(panel):
    left, right = panel.children[0].children
    return {
        "threshold": left.children[0],
        "replay": left.children[1],
        "targets": right.children[0],
        "slots": right.children[1],
        "status": panel.children[1],
        "level": panel.children[2],
        "chart": panel.children[3],
        "measures": panel.children[4],
    }


def lines(view):
    return {series["name"]: series["y"] for series in view["chart"].spec["series"]}


def test_sliders_change_chart_measures_and_status(balance):
    view = controls(balance.panel())
    assert set(lines(view)) == {"none (bars)", BANK, RFS, "IRFS", "class-aware", RFS_BANK}
    before, status, measures = lines(view), view["status"].value, view["measures"].value
    view["replay"].value = 20
    view["slots"].value = 40
    assert lines(view)[RFS] == before[RFS]
    assert sum(lines(view)[RFS_BANK]) > sum(before[RFS_BANK])
    assert view["status"].value != status
    assert view["measures"].value != measures
    view["threshold"].value = 1.0
    assert sum(lines(view)[RFS]) > sum(before[RFS])
    view["level"].value = "images"
    assert BANK not in lines(view)
    view["targets"].value = 0
    assert "0 of 6 categories" in view["status"].value


def test_categories_stand_from_most_to_least_frequent(data, balance):
    spec = controls(balance.panel())["chart"].spec
    counts = dict(zip(data.annotations.category_names, data.annotations.image_count, strict=True))
    listed = [counts[name] for name in spec["names"]]
    assert listed == sorted(listed, reverse=True)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"repeat_threshold": 0}, "threshold"),
        ({"batch_size": 0}, "batch_size"),
        ({"replay_per_class": -1}, "replay_per_class"),
        ({"slots_per_class": 0}, "slots_per_class"),
        ({"rois_per_instance": -2}, "rois_per_instance"),
        ({"slots": 3}, "slots_per_class"),
    ],
)
def test_settings_out_of_range_are_one_sentence(data, settings, word):
    with pytest.raises(widgets.NotebookError, match=word):
        widgets.balance_of(data, **settings)


def test_figures(data, balance):
    ax = plots.image_or_object(balance.compare())
    named = {text.get_text() for text in ax.texts}
    assert set(ARMS) <= named
    ax = plots.threshold_advice(balance.advice())
    assert sum(text.get_text().startswith("suggested") for text in ax.texts) == 2
    ax = plots.expected_vs_counted(balance.check(NONE, epochs=1))
    assert ax.get_xscale() == ax.get_yscale() == "log"
    for figure in (plots.image_or_object, plots.threshold_advice, plots.expected_vs_counted):
        with pytest.raises(plots.PlotError, match="column"):
            figure(data.table)
