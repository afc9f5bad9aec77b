"""Curves of several runs: one x for all, a log scale, a run that begins later."""

import json

import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

from rio.widgets.training import TrainingPanel


def log(folder, *rows):
    folder.mkdir(exist_ok=True)
    with open(folder / "metrics.json", "a") as file:
        file.writelines(json.dumps({"iteration": i, **values}) + "\n" for i, values in rows)


def curves(view):
    return {series["name"]: series["y"] for series in view.chart.spec["series"]}


def test_runs_side_by_side(tmp_path):
    log(
        tmp_path / "a",
        (0, {"total_loss": 4.0, "lr": 0.1}),
        (20, {"total_loss": 2.0, "lr": 0.1}),
        (20, {"bbox/APr": 7.0}),
    )
    view = TrainingPanel("shapes/demo", tmp_path / "a").beside(tmp_path / "b")
    assert list(view.scalar.options) == ["total_loss", "bbox/APr", "lr"]
    assert curves(view) == {"a": [4.0, 2.0], "b": [None, None]} and "b: No run in this folder yet." in view.status.value
    log(tmp_path / "b", (10, {"total_loss": 3.5}), (30, {"total_loss": 0.0}))
    view.refresh()
    # Iterations 0, 10, 20, 30; values between those logged are interpolated, so that a point names both.
    assert curves(view) == {"a": [4.0, 3.0, 2.0, None], "b": [None, 3.5, 1.75, 0.0]}
    assert view.chart.spec["names"][1] == "iteration 10" and view.chart.spec["y"]["domain"][0] == 0
    view.logarithmic.value = True
    assert curves(view)["b"] == [None, 3.5, None] and view.chart.spec["y"]["scale"] == "log"
    assert view.chart.spec["y"]["domain"][0] > 0
    view.scalar.value = "bbox/APr"
    assert curves(view) == {"a": [7.0], "b": [None]} and view.chart.spec["y"]["label"] == "bbox/APr"


def test_a_resumed_run_is_marked_and_smoothed_over_the_seam(tmp_path):
    log(tmp_path / "a", (4, {"total_loss": 4.0}), (10, {"resumed": 1.0}), (14, {"total_loss": 2.0}))
    view = TrainingPanel("shapes/demo", tmp_path / "a").beside()
    assert list(view.scalar.options) == ["total_loss"]
    assert [(mark["at"], mark["text"]) for mark in view.chart.spec["x"]["marks"]] == [(10, "resumed")]
    assert curves(view) == {"a": [4.0, 3.5]}  # the last 20 steps: 5 at 2.0, the others from before at 4.0
    view.smooth.value = False
    assert curves(view) == {"a": [4.0, 2.0]}


def test_no_run_anywhere(tmp_path):
    view = TrainingPanel("shapes/demo", tmp_path / "a").beside()
    assert view.chart.spec == {} and "a: No run" in view.status.value
