"""Trainings as processes of their own: found again, stopped, resumed, told from others, and explained in plain words.

The processes here are small scripts that write what a training writes; `tests/test_notebooks.py` trains for real.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ipywidgets", reason="ipywidgets is not installed (the extra `notebooks`)")

from rio.widgets import training
from rio.widgets.training import LaunchError, RunFolder, TrainingPanel, birth_of, draw_progress, train_command

CONFIG = "SEED: 1\nSOLVER: {MAX_ITER: 50, IMS_PER_BATCH: 8}\nMODEL: {RIO: {BANK_ENABLED: true}}\n"
ROW = {
    "total_loss": 2.5, "loss_cls": 1.5, "loss_box_reg": 1.0, "lr": 0.01, "time": 0.5, "eta_seconds": 20.0,
    "memory_bank/fill": 0.25, "memory_bank/replayed_per_foreground": 0.1,
}  # fmt: skip

# Writes a row every 50 ms; Ctrl-C: a checkpoint, the sentence, exit code 130, as `python -m rio train` does.
TRAINS = r"""
import json, os, signal, sys, time
folder = sys.argv[sys.argv.index("--output-dir") + 1]
row, config, iterations = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
open(os.path.join(folder, "config.yaml"), "w").write(config)
first = 10 if "--resume" in sys.argv else 0
for i in range(first, iterations):
    with open(os.path.join(folder, "metrics.json"), "a") as file:
        file.write(json.dumps({"iteration": i, **row}) + "\n")
    time.sleep(0.05)
    if stopped:
        open(os.path.join(folder, "last_checkpoint"), "w").write("model_0000009.pth")
        print(f"\nStopped after {i + 1} of {iterations} iterations. Go on with the same command and --resume", flush=True)
        sys.exit(130)
open(os.path.join(folder, "model_final.pth"), "w").close()
"""


def fake(folder: Path, iterations: int = 2000, script: str = TRAINS) -> list[str]:
    words = [json.dumps(ROW), CONFIG.replace("50", str(iterations), 1), str(iterations)]
    return [sys.executable, "-c", script, *words, "--output-dir", str(folder)]


def until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    yield run
    if run.pid() is not None:
        run.stop(at_once=True)
        until(lambda: run.pid() is None)


def test_command():
    words = train_command(
        "c.yaml", "out", num_gpus=8, seed=3, data={"train_json": "a b.json", "val_json": ""}, options=["A", 1]
    )
    assert words[1:] == [
        "-m", "rio", "train", "--config-file", "c.yaml", "--output-dir", "out", "--num-gpus", "8", "--train-json", "a b.json",
        "SEED", "3", "A", "1",
    ]  # fmt: skip
    with pytest.raises(LaunchError, match="the last alone: 'A'"):
        train_command("c.yaml", "out", options=["A"])


def test_the_real_command_line_knows_these_words():
    from rio.cli.parser import _parser

    data = {"train_json": "t", "train_images": "ti", "val_json": "v", "val_images": "vi"}
    words = train_command("c.yaml", "out", num_gpus=2, seed=3, data=data, options=["A", "1"], resume=True)
    args = _parser().parse_args(words[3:])
    assert (args.command, args.num_gpus, args.resume, args.val_images) == ("train", 2, True, "vi")
    assert args.opts == ["SEED", "3", "A", "1"]


def test_start_stop_resume(run):
    assert run.state() == "new"
    with pytest.raises(LaunchError, match="nothing to stop"):
        run.stop()
    pid = run.start(fake(run.path))
    assert run.state() in ("starting", "training")
    until(lambda: run.state() == "training" and run.progress()[0] >= 3)
    with pytest.raises(LaunchError, match="at work here already"):
        run.start(fake(run.path))
    assert RunFolder(run.path).pid() == pid, "whoever opens the folder finds it"
    run.stop()
    assert run.state() in ("stopping", "stopped")
    until(lambda: run.state() == "stopped")
    assert run.explain().startswith("Stopped after")
    with pytest.raises(LaunchError, match="holds a run already"):
        run.start(fake(run.path))
    again = run.resume()
    assert again != pid and "--resume" in run.note()["command"]
    until(lambda: run.state() == "training")
    run.stop(at_once=True)
    until(lambda: run.pid() is None)
    assert run.state() == "failed" and "was killed (SIGKILL)" in run.explain()


def test_it_finishes(run):
    run.start(fake(run.path, iterations=5))
    until(lambda: run.pid() is None)
    assert run.state() == "finished" and run.progress() == (5, 5)


def test_it_outlives_who_started_it(run):
    code = (
        "import json, sys; from rio.widgets.training import RunFolder; "
        "RunFolder(sys.argv[1]).start(json.loads(sys.argv[2]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(training.__file__).parents[2])}
    starter = [sys.executable, "-c", code, str(run.path), json.dumps(fake(run.path))]
    subprocess.run(starter, check=True, env=environment, timeout=60)
    until(lambda: run.state() == "training")
    pid = run.pid()
    assert os.getsid(pid) == pid, "a session of its own: no terminal's or kernel's end reaches it"
    run.stop()
    until(lambda: run.pid() is None)
    assert run.state() == "stopped"


def test_a_recycled_process_id_is_nobody(run):
    run.start(fake(run.path, iterations=3))
    until(lambda: run.pid() is None)
    note = run.note()
    run._write_note({**note, "pid": os.getpid()})  # the id now belongs to somebody else: this very process
    assert birth_of(os.getpid()) is not None
    assert run.pid() is None and run.state() == "finished"
    with pytest.raises(LaunchError, match="nothing to stop"):
        run.stop()


def test_ended_processes_are_dead_even_before_anyone_asks():
    child = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: birth_of(child.pid) is None)
    child.wait()
    assert birth_of(child.pid) is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; print('error: the loss is not finite. Lower\\n SOLVER.BASE_LR', file=sys.stderr); sys.exit(2)",
         "the loss is not finite. Lower SOLVER.BASE_LR"),
        ("{}['x']", "An unforeseen error ended the process: KeyError: 'x'"),
        ("import os; os.kill(os.getpid(), 9)", "killed (SIGKILL), by the system if memory ran out"),
        ("", "ended without a word"),
    ],
)  # fmt: skip
def test_errors_in_plain_words(run, script, words):
    run.start([sys.executable, "-c", script])
    until(lambda: run.pid() is None)
    assert run.state() == "failed"
    assert words in run.explain() and "stdout.log" in run.explain()


def test_only_the_last_start_counts(run):
    run.start([sys.executable, "-c", "import sys; sys.exit('error: of the first start')"])
    until(lambda: run.pid() is None)
    run.start(fake(run.path, iterations=3))
    until(lambda: run.pid() is None)
    assert run.state() == "finished"


def test_metrics_are_read_as_they_grow(tmp_path):
    run, file = RunFolder(tmp_path), tmp_path / "metrics.json"
    assert len(run.metrics()) == 0
    file.write_text('{"iteration": 0, "total_loss": 3.0}\n{"iteration": 5, "tot')
    assert run.metrics()["iteration"].tolist() == [0]
    with open(file, "a") as more:
        more.write('al_loss": 2.0}\nnonsense\n{"iteration": 5, "bbox/AP": 12.0}\n')
    table = run.metrics()
    assert table["iteration"].tolist() == [0, 5]
    assert table.loc[1, "total_loss"] == 2.0 and table.loc[1, "bbox/AP"] == 12.0
    replacement = tmp_path / "new"  # a resumed run forgets what came after its checkpoint
    replacement.write_text('{"iteration": 0, "total_loss": 3.5}\n')
    os.replace(replacement, file)
    assert run.metrics()["total_loss"].tolist() == [3.5]


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "x"}', "{", '{"pid": 1}', '{"pid": 1, "command": []}'])
def test_a_broken_note_is_no_run(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    run = RunFolder(tmp_path)
    assert run.pid() is None
    assert run.state() in ("new", "failed")


def test_a_run_from_elsewhere_is_shown(tmp_path):
    """`make demo` leaves no run.json."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "metrics.json").write_text("".join(json.dumps({"iteration": i, **ROW}) + "\n" for i in range(0, 50, 5)))
    assert RunFolder(tmp_path).state() == "elsewhere"
    (tmp_path / "evaluation.json").write_text("{}")
    panel = TrainingPanel("shapes/demo", tmp_path)
    assert panel.run.state() == "finished"
    assert panel.figure.value[:4] == b"\x89PNG"
    page = panel.status.value
    for shown in ("46 / 50", "16.0", "images/s", "25%", "bank filled", "replayed / foreground RoI"):
        assert shown in page, shown
    assert panel.start_button.disabled and panel.stop_button.disabled and panel.resume_button.disabled


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
    monkeypatch.setattr(panel, "words", lambda: fake(panel.run.path))
    panel.start_button.click()
    until(lambda: panel.run.state() == "training")
    panel.refresh()
    assert not panel.stop_button.disabled and panel.start_button.disabled
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
        monkeypatch.setattr(panel, "words", lambda: fake(panel.run.path, iterations=30))
        panel.start()
        first = panel.status.value
        await asyncio.wait_for(panel._task, 60)
        return first, panel.status.value

    first, last = asyncio.run(session())
    assert "finished" not in first and "finished" in last and "30 / 30" in last


def test_long_runs_draw_few_points():
    rows = [{"iteration": i, **ROW, "bbox/AP": 10.0 if i % 30_000 == 0 else None} for i in range(0, 90_000, 20)]
    figure = draw_progress(training.pd.DataFrame(rows), 90_000)
    assert len(figure.axes[0].lines[0].get_xdata()) <= 1000
    assert len(figure.axes[-1].lines[0].get_xdata()) == 3, "no evaluation is thinned away"


def test_without_torch():
    code = "import sys, rio.widgets.training; print({'torch', 'detectron2'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path(training.__file__).parents[2])}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert answer.stdout.strip() == "set()", answer.stderr
