"""The training panel, over a small script in place of a training."""

import asyncio
import json

import pytest

pytest.importorskip("ipywidgets", reason="ipywidgets is not installed (the extra `notebooks`)")

from rio.widgets import training
from rio.widgets.training import TrainingPanel
from tests.support.stub_training import CONFIG, ROW, command, until


def test_a_run_from_elsewhere_is_shown(tmp_path):
    """`make demo` leaves runs that no panel has started."""
    (tmp_path / "config.yaml").write_text(CONFIG % 50)
    (tmp_path / "metrics.json").write_text("".join(json.dumps({"iteration": i, **ROW}) + "\n" for i in range(0, 50, 5)))
    (tmp_path / "evaluation.json").write_text("{}")
    panel = TrainingPanel("shapes/demo", tmp_path)
    assert panel.run.state() == "finished"
    assert panel.figure.value.startswith("<svg ")
    page = panel.status.value
    for shown in ("46 / 50", "16.0", "images/s", "25%", "bank filled", "replayed / foreground RoI"):
        assert shown in page, shown
    assert panel.start_button.disabled and panel.stop_button.disabled and panel.resume_button.disabled
    assert "Finished: notebook 04 compares" in page and "name another folder" in page and "Warm-up" not in page
    (tmp_path / "config.yaml").write_text("SOLVER: {MAX_ITER: 50, WARMUP_ITERS: 100}\n")
    panel.refresh()
    assert "Warm-up is as long as the run or longer (100 of 50 iterations)" in panel.status.value


def test_panel(tmp_path, monkeypatch):
    panel = TrainingPanel("shapes/demo", tmp_path / "run", seed=7, options=["SOLVER.MAX_ITER", 5])
    assert "cd " in panel.command.value and "SEED 7 SOLVER.MAX_ITER 5" in panel.command.value
    assert "--config-file configs/shapes/demo.yaml" in panel.command.value
    assert not panel.start_button.disabled and panel.stop_button.disabled
    panel.options.value = "<b>KEY"
    assert panel.start_button.disabled and "&lt;b&gt;KEY" in panel.status.value and "<b>KEY" not in panel.status.value
    panel.options.value = "'"
    assert "No closing quotation" in panel.explain()
    panel.options.value = ""
    monkeypatch.setattr(panel, "words", lambda: command(panel.run.path))
    panel.start_button.click()
    until(lambda: panel.run.state() == "training")
    panel.refresh()
    assert not panel.stop_button.disabled and panel.start_button.disabled
    assert ">left<" in panel.status.value and ">memory<" in panel.status.value
    found_again = TrainingPanel("shapes/demo", tmp_path / "run")
    assert found_again.start() == "training", "starting again finds the run and starts nothing"
    assert found_again.run.pid() == panel.run.pid()
    found_again.stop_button.click()
    until(lambda: panel.run.state() == "stopped")
    panel.refresh()
    assert not panel.resume_button.disabled and "Stopped after" in panel.status.value
    panel.resume_button.click()
    until(lambda: panel.run.state() == "training")
    panel.run.stop(at_once=True)
    assert panel.wait(30) == "failed"


def test_panel_says_what_is_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    panel = TrainingPanel("shapes/demo", tmp_path / "file" / "run")
    assert panel.start() == "new" and "expected a folder that can be written to" in panel.explain()
    panel = TrainingPanel("no/such.yaml", tmp_path / "run")
    assert "found nothing there" in panel.explain() and panel.start_button.disabled


def test_monitor_runs_between_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "REFRESH_SECONDS", 0.05)

    async def session() -> tuple[str, str]:
        panel = TrainingPanel("shapes/demo", tmp_path / "run")
        monkeypatch.setattr(panel, "words", lambda: command(panel.run.path, 15))
        panel.start()
        first = panel.status.value
        await asyncio.wait_for(panel.watching, 60)
        return first, panel.status.value

    first, last = asyncio.run(session())
    assert "finished" not in first and "finished" in last and "15 / 15" in last
