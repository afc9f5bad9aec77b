"""The balance view: its sliders move chart, measures and status."""

from __future__ import annotations

import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

import rio
from rio.analysis.arms import BANK, RFS, RFS_BANK
from rio.widgets import theme


@pytest.fixture(scope="module")
def data(tiny_set):
    return rio.open_dataset(f"{tiny_set}/train.json@{tiny_set}/train")


@pytest.fixture(scope="module")
def balance(data):
    return rio.compare_sampling(data, repeat_threshold=0.4, batch_size=4, replay_per_class=3, slots_per_class=5)


def lines(panel):
    return {series["name"]: series["y"] for series in panel.chart.spec["series"]}


def test_sliders_change_chart_measures_and_status(balance):
    panel = balance.panel()
    assert set(lines(panel)) == {"none (bars)", BANK, RFS, "IRFS", "class-aware", RFS_BANK}
    before, status, measures = lines(panel), panel.status.value, panel.measures.value
    panel.replay.value = 20
    panel.slots.value = 40
    assert lines(panel)[RFS] == before[RFS]
    assert sum(lines(panel)[RFS_BANK]) > sum(before[RFS_BANK])
    assert panel.status.value != status and panel.measures.value != measures
    panel.threshold.value = 1.0
    assert sum(lines(panel)[RFS]) > sum(before[RFS])
    panel.level.value = "images"
    assert BANK not in lines(panel)
    panel.targets.value = 0
    assert "0 of 6 categories" in panel.status.value


def test_categories_stand_from_most_to_least_frequent(data, balance):
    counts = data.table.set_index("name")["image_count"]
    listed = [counts[name] for name in balance.panel().chart.spec["names"]]
    assert listed == sorted(listed, reverse=True)


def test_shows_its_settings_and_refuses_others_in_one_sentence(data, balance):
    assert "threshold 0.4 · batches of 4 images" in balance._repr_html_()
    for wrong in ({"slots_per_class": 0}, {"slots": 3}):
        with pytest.raises(theme.NotebookError, match=next(iter(wrong))):
            rio.compare_sampling(data, **wrong)
