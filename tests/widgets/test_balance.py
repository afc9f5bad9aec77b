"""The balance view: its sliders move chart, measures and status."""

import json

import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

import rio
from rio.analysis.arms import BANK, RFS, RFS_BANK
from rio.widgets import theme
from tests.support.result_files import image, thing


@pytest.fixture(scope="module")
def data(tiny_set):
    return rio.open_dataset(f"{tiny_set}/train.json@{tiny_set}/train")


@pytest.fixture
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


def test_more_categories_than_pixels_are_shown_in_bins(tmp_path):
    images = [image(i, (), (), 10, 10) for i in range(1, 301)]
    categories = [{"id": k, "name": f"c{k}", "frequency": "r" if k > 100 else "f"} for k in range(1, 301)]
    things = [thing(k * 301 + i, i, k, [0, 0, 5, 5]) for k in range(1, 301) for i in range(1, 302 - k, 20)]
    content = {"images": images, "categories": categories, "annotations": things}
    (tmp_path / "many.json").write_text(json.dumps(content))
    panel = rio.compare_sampling(rio.open_dataset(str(tmp_path / "many.json"))).panel()
    spec = panel.chart.spec
    assert (
        len(spec["names"]) == 60 and "5 categories around" in spec["names"][0] and "median of 5 each" in str(spec["x"])
    )
    none, rfs = (next(s for s in spec["series"] if s["name"].startswith(arm)) for arm in ("none", RFS))
    assert none["kind"] == "line" and none["y"] == sorted(none["y"], reverse=True)
    assert all(low <= y <= high for low, y, high in zip(none["low"], none["y"], none["high"], strict=True))
    assert "low" not in rfs, "six bands would hide each other"


def test_sliders_and_later_figures_have_one_state(data):
    balance = rio.compare_sampling(data)
    panel = balance.panel()
    before = balance.compare()
    assert "run again" not in panel.status.value
    panel.threshold.value, panel.replay.value = 0.9, 7
    assert (balance.settings.repeat_threshold, balance.settings.replay_per_class) == (panel.threshold.value, 7)
    assert "figures below take these settings when their cells are run again" in panel.status.value
    assert not balance.compare().equals(before)


def test_rois_an_object_are_those_that_a_run_on_this_data_logged(data, tmp_path):
    assert "8 RoIs an object (assumed)" in rio.compare_sampling(data, run=tmp_path / "none")._repr_html_()
    a = data.annotations
    objects = a.instance_count.sum() / len(set(a.annotation_image[~a.iscrowd].tolist()))
    (tmp_path / "metrics.json").write_text(
        json.dumps({"iteration": 9, "roi_head/num_fg_samples": 3.0 * objects}) + "\n"
    )
    for name, expected in ((data.name, 3.0), ("elsewhere", 8.0)):
        (tmp_path / "config.yaml").write_text(json.dumps({"DATASETS": {"TRAIN": [name]}}))
        assert rio.compare_sampling(data, run=tmp_path).settings.rois_per_instance == pytest.approx(expected)


def test_shows_its_settings_and_refuses_others_in_one_sentence(data, balance):
    assert "threshold 0.4 · batches of 4 images" in balance._repr_html_()
    for wrong in ({"slots_per_class": 0}, {"slots": 3}):
        with pytest.raises(theme.NotebookError, match=next(iter(wrong))):
            rio.compare_sampling(data, **wrong)
