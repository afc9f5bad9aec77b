"""Studies: files and their mistakes, running side by side, going on, failing, stopping, comparing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_shapes
import yaml

from rio import study
from rio.annotations import load_annotations
from rio.evaluation import METRICS, Evaluation
from rio.study import (
    Category,
    Run,
    RunResult,
    StudyError,
    StudyResult,
    format_table,
    load_study,
    makespan,
    run_study,
)


def _write(path: Path, **content) -> Path:
    config = path.parent / "base.yaml"
    if not config.exists():
        config.write_text(f"_BASE_: {tiny_shapes.DEMO_CONFIG}\n")
    base = {"config": "base.yaml", "arms": {"a": ["MODEL.RIO.BANK_ENABLED", False], "b": []}, "seeds": [1]}
    path.write_text(yaml.safe_dump({**base, "processes": 2, **content}))
    return path


# ---------------------------------------------------------------------------------------------- files


def test_the_projects_own_studies_load(repository):
    found = load_study(repository / "configs" / "studies" / "demo.yaml")
    assert list(found.arms) == ["none", "rfs", "rio"] and found.processes == 3 and found.seeds == (1,)
    assert found.arms["none"] == ["MODEL.RIO.SAMPLER", "none", "MODEL.RIO.BANK_ENABLED", "False"]
    assert os.path.samefile(found.config, tiny_shapes.DEMO_CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": 3}, "'config': expected the path"),
        ({"arms": {}}, "'arms': expected names"),
        ({"arms": {"a": ["SEED"]}}, "'arms.a': expected .KEY, VALUE"),
        ({"arms": {"../a": []}}, "a name that can be a folder's"),
        ({"seeds": [1, 1]}, "'seeds': expected a list of different integers"),
        ({"seeds": 1}, "'seeds'"),
        ({"seeds": [True]}, "'seeds'"),
        ({"processes": 0}, "'processes': expected an integer >= 1"),
        ({"procesess": 2}, "'procesess'"),
    ],
)
def test_mistakes_in_a_study_file_are_named(tmp_path, change, message):
    with pytest.raises(StudyError, match=message):
        load_study(_write(tmp_path / "study.yaml", **change))


def test_files_that_are_not_there_or_no_yaml(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such study file"):
        load_study(tmp_path / "none.yaml")
    with pytest.raises(FileNotFoundError, match="named by 'config'"):
        load_study(_write(tmp_path / "study.yaml", config="none.yaml"))
    (tmp_path / "broken.yaml").write_text("arms: [")
    with pytest.raises(StudyError, match="expected YAML"):
        load_study(tmp_path / "broken.yaml")
    (tmp_path / "code.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(StudyError, match="expected YAML"):
        load_study(tmp_path / "code.yaml")


def test_a_wrong_key_in_an_arm_is_found_before_anything_starts(tmp_path):
    plan = load_study(_write(tmp_path / "study.yaml", arms={"good": [], "bad": ["SOLVER.MAX_ITR", 3]}))
    with pytest.raises(StudyError, match="arm 'bad'.*SOLVER.MAX_ITR"):
        run_study(plan, tmp_path / "out", options=_data(tmp_path))
    assert not list((tmp_path / "out").glob("*/stdout.log"))


# ---------------------------------------------------------------------------------------------- running


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_shapes.draw(tmp_path_factory.mktemp("shapes"))


def _data(root: Path) -> list[str]:
    return tiny_shapes.data_options(tiny_shapes.draw(root))


@pytest.fixture
def stand_in(monkeypatch):
    """Runs are a small script in place of a training: tested here is who is started, when, and what after."""

    def use(script: str) -> None:
        popen = subprocess.Popen

        def start(command, **kwargs):
            return popen([sys.executable, "-c", script, *command[4:]], **kwargs)

        monkeypatch.setattr(study.subprocess, "Popen", start)
        monkeypatch.setattr(study, "POLL_SECONDS", 0.02)

    return use


def _evaluation(folder: Path, ap: float) -> Evaluation:
    """Of the tiny set's classes: all have the same AP, the rare ones were never looked for."""
    train = load_annotations(folder / "train.json")
    frame = pd.DataFrame(
        {
            "category_id": train.category_ids,
            "name": train.category_names,
            "frequency": train.frequency,
            "image_count": 1,
            "instance_count": 1,
            "AP_bbox": np.where(train.frequency == "r", np.nan, ap),
            "AP_segm": np.nan,
        }
    )
    return Evaluation({"bbox": {**dict.fromkeys(METRICS, ap), "APr": float("nan")}}, frame)


SCRIPT = """
import json, os, pathlib, shutil, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--output-dir") + 1])
assert "--resume" in sys.argv and os.environ["OMP_NUM_THREADS"] == "1"
with open(folder / "metrics.json", "a") as file:
    for i in range(3):
        print(json.dumps({"iteration": i, "total_loss": 2.5 - i, "time": 0.1}), file=file, flush=True)
print("working in", folder)
BODY
shutil.copy(folder.parent / "made.json", folder / "evaluation.json")
"""


def test_arms_run_finish_and_are_skipped_the_next_time(stand_in, folder, tmp_path, capsys):
    stand_in(SCRIPT.replace("BODY", ""))
    plan = load_study(_write(tmp_path / "study.yaml", seeds=[1, 2]))
    out = tmp_path / "out"
    out.mkdir()
    _evaluation(folder, 12.5).to_json(out / "made.json")
    options = tiny_shapes.data_options(folder)
    outcome = run_study(plan, out, options=options)
    assert set(outcome.folders) == {("a", 1), ("a", 2), ("b", 1), ("b", 2)}
    table = outcome.result.table()
    assert table["AP"].tolist() == [12.5, 12.5] and table["seeds"].tolist() == [2, 2]
    shown = capsys.readouterr().err
    assert shown.count("started") == 4 and shown.count("finished in") == 4
    assert b"working in" in (out / "b-seed2" / "stdout.log").read_bytes()
    assert "SEED: 2" in (out / "b-seed2" / "study_settings.yaml").read_text()
    if sys.platform == "linux":
        assert 0.01 < outcome.peak_gib < 6

    run_study(plan, out, options=options)
    again = capsys.readouterr()
    assert "4 of 4 runs are finished already" in again.out and "started" not in again.err
    with pytest.raises(StudyError, match="begun with other settings .SOLVER.BASE_LR: 0.03 -> 0.5"):
        run_study(plan, out, options=[*options, "SOLVER.BASE_LR", "0.5"])


def test_a_failing_arm_shows_its_end_and_the_others_finish(stand_in, folder, tmp_path, capsys):
    stand_in(SCRIPT.replace("BODY", "if 'a-seed1' in str(folder): sys.exit('error: no memory for this')"))
    plan = load_study(_write(tmp_path / "study.yaml"))
    out = tmp_path / "out"
    out.mkdir()
    _evaluation(folder, 1.0).to_json(out / "made.json")
    with pytest.raises(StudyError, match=r"1 of 2 runs failed: a-seed1\..*same command again"):
        run_study(plan, out, options=tiny_shapes.data_options(folder))
    shown = capsys.readouterr().err
    assert "a-seed1: failed (exit code 1)" in shown and "error: no memory for this" in shown
    assert (out / "b-seed1" / "study_finished.json").exists()


def test_ctrl_c_stops_every_run_and_leaves_none_behind(stand_in, folder, tmp_path):
    save = "lambda *a: ((folder / 'saved').touch(), sys.exit(130))"
    wait = f"import signal; signal.signal(signal.SIGINT, {save})\n"
    stand_in(SCRIPT.replace("BODY", wait + "(folder / 'ready').touch()\ntime.sleep(60)"))
    plan = load_study(_write(tmp_path / "study.yaml"))
    out = tmp_path / "out"
    poll = study.memory_of_sessions

    def interrupt_when_ready(sessions):
        if len(list(out.glob("*/ready"))) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return poll(sessions)

    study.memory_of_sessions, started = interrupt_when_ready, time.monotonic()
    # A shell without job control starts what it puts into the background with Ctrl-C ignored, this test too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="The same command goes on"):
            run_study(plan, out, options=tiny_shapes.data_options(folder))
    finally:
        study.memory_of_sessions = poll
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 40
    assert len(list(out.glob("*/saved"))) == 2 and not list(out.glob("*/study_finished.json"))


def test_two_studies_do_not_share_a_folder(tmp_path):
    with study._locked(tmp_path), pytest.raises(StudyError, match=rf"process {os.getpid()}.*is at work here"):
        with study._locked(tmp_path):
            pass
    with study._locked(tmp_path):
        pass


@pytest.mark.slow
def test_real_trainings_side_by_side(folder, tmp_path, capsys):
    plan = load_study(_write(tmp_path / "study.yaml"))
    options = [*tiny_shapes.data_options(folder), *tiny_shapes.model_options(3)]
    outcome = run_study(plan, tmp_path / "out", options=options)
    assert outcome.result.table()[["arm", "iou_type"]].values.tolist() == [
        [arm, kind] for kind in ("bbox", "segm") for arm in "ab"
    ]
    settings = yaml.safe_load((tmp_path / "out" / "a-seed1" / "config.yaml").read_text())
    assert settings["MODEL"]["RIO"]["BANK_ENABLED"] is False and settings["SEED"] == 1
    assert "box AP" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- comparing


FREQUENCIES = "r" * 6 + "c" * 6 + "f" * 8


def _result(values: dict[tuple[str, int], Sequence[float]], *, kind: str = "bbox", **changes) -> StudyResult:
    """A result from (arm, seed) -> AP of each of 20 categories: 6 rare, 6 common, 8 frequent."""
    categories = [Category(i + 1, f"c{i}", f, 5 * i + 1) for i, f in enumerate(FREQUENCIES)]
    runs = []
    for (arm, seed), ap in values.items():
        ap = np.broadcast_to(np.asarray(ap, float), len(FREQUENCIES))
        groups = {f"AP{g}": np.nanmean(ap[[f == g for f in FREQUENCIES]]) for g in "rcf"}
        metrics = {m: float({"AP": np.nanmean(ap), **groups}.get(m, 1.0)) for m in METRICS}
        stored = [None if np.isnan(v) else float(v) for v in ap]
        runs.append(RunResult(arm, seed, 100, 12.5, {kind: metrics}, {kind: stored}, {"rois/share_r": 0.125}))
    arms = list(dict.fromkeys(arm for arm, _ in values))
    about = {
        "name": "made",
        "role": "report",
        "trained_on": ["train"],
        "evaluated_on": ["val"],
        "command": "python -m rio study made.yaml",
        "machine": "a processor, 2 cores, no GPU",
        "versions": {"rio": "1.0"},
        "date": "2026-01-31",
        "arms": {arm: ["SEED", "1"] for arm in arms},
        "pairs": [(arm, arms[0]) for arm in arms[1:]],
        "seeds": sorted({seed for _, seed in values}),
        "categories": categories,
        "runs": runs,
    }
    return StudyResult(**{**about, **changes})


def _row(result: StudyResult, metric: str = "AP") -> pd.Series:
    """The one comparison of a result."""
    rows = result.comparisons()
    return rows[rows["metric"] == metric].iloc[0]


def test_table_has_means_and_spreads():
    made = _result({("rfs", 1): [10.0], ("rfs", 2): [14.0], ("rio", 1): [np.nan] * 6 + [20.0] * 14})
    table = made.table()
    assert table["AP"].tolist() == [12.0, 20.0] and table["seeds"].tolist() == [2, 1]
    assert table["AP_spread"].tolist() == pytest.approx([2.0, np.nan], nan_ok=True)
    lines = format_table(table).splitlines()
    assert lines[0].split() == ["bbox", "AP", "APr", "APc", "APf"]
    assert lines[2].split() == ["rfs", *(["12.0", "±2.0"] * 4)]
    assert lines[3].split() == ["rio", "20.0", "-", "20.0", "20.0"]


def test_remaining_time_by_hand():
    assert makespan([], [], 2) == 0
    assert makespan([10, 4], [5], 2) == 10  # the waiting one starts at 4 and ends at 9
    assert makespan([10, 4], [7], 2) == 11
    assert makespan([], [3, 3, 3], 2) == 6


def test_progress_is_read_from_the_last_whole_line(tmp_path):
    run = Run("a", 0, tmp_path, [], max_iter=10)
    study._read_progress(run)  # nothing there yet
    assert run.iteration == 0
    lines = '{"iteration": 4, "total_loss": 1.5, "time": 0.5}\n{"iteration": 5, "total_lo'
    (tmp_path / "metrics.json").write_text(lines)
    study._read_progress(run)
    assert (run.iteration, run.loss, run.seconds_per_iteration) == (5, 1.5, 0.5)
    (tmp_path / "metrics.json").write_text(lines.splitlines()[0] + '\n{"iteration": 10, "bbox/AP": 3.0}\n')
    study._read_progress(run)
    assert run.iteration == 10


def test_memory_counts_this_process():
    held = study.memory_of_sessions({os.getpid()})
    if sys.platform != "linux":
        assert held is None
    else:
        assert 2**23 < held < 2**34
