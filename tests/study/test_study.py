"""Studies: files and their mistakes, running side by side, going on, failing, stopping, comparing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from rio import study
from rio.config import load_config
from rio.data.load import load_annotations
from rio.engine import info
from rio.results.evaluation import METRICS, Evaluation
from rio.study import Category, Run, RunResult, StudyError, StudyResult, format_table, load_study, makespan, run_study
from tests.support import tiny_shapes


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
    assert found.comparisons == (("rfs", "none"), ("rio", "none")) and found.tune_on is None
    assert found.arms["none"] == ["MODEL.RIO.SAMPLER", "none", "MODEL.RIO.BANK_ENABLED", "False"]
    assert os.path.samefile(found.config, tiny_shapes.DEMO_CONFIG)


@pytest.mark.parametrize("name", ["bench", "bench_tune", "demo", "demo_tune", "factors"])
def test_every_arm_of_the_projects_own_studies_is_a_config(repository, name):
    plan = load_study(repository / "configs" / "studies" / f"{name}.yaml")
    assert plan.file == f"configs/studies/{name}.yaml"
    assert (plan.tune_on is not None) == name.endswith("_tune")
    seen = set()
    for arm, options in plan.arms.items():
        settings = load_config(plan.config, options).dump()
        assert settings not in seen, f"{arm} is another arm under another name"
        seen.add(settings)


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
        ({"gpus": "all"}, "'gpus': expected an integer >= 1"),
        ({"comparisons": {"b": "a"}}, "'comparisons': expected a list of"),
        ({"comparisons": [["b", "a"], ["b"]]}, r"'comparisons.1.': expected .ARM, BASELINE., two different"),
        ({"comparisons": [["b", "b"]]}, "two different of a, b, found .'b', 'b'."),
        ({"comparisons": [["b", "c"]]}, "two different of a, b, found .'b', 'c'."),
        ({"comparisons": [[["b"], "a"]]}, "two different"),
        ({"tune_on": ["x"]}, "'tune_on': expected the name of a data set"),
    ],
)
def test_mistakes_in_a_study_file_are_named(tmp_path, change, message):
    with pytest.raises(StudyError, match=message):
        load_study(_write(tmp_path / "study.yaml", **change))


def test_comparisons_are_as_the_file_says_or_all_against_the_first(tmp_path):
    assert load_study(_write(tmp_path / "study.yaml")).comparisons == (("b", "a"),)
    own = load_study(_write(tmp_path / "study.yaml", comparisons=[["a", "b"]]))
    assert own.comparisons == (("a", "b"),) and own.gpus == 1 and own.file == "study.yaml"


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


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_a_study_without_data_is_refused(tmp_path, key):
    plan = load_study(_write(tmp_path / "study.yaml"))
    with pytest.raises(StudyError, match=f"arm 'a': DATASETS.{key}: expected a data set, found none"):
        run_study(plan, tmp_path / "out", options=[*_data(tmp_path), f"DATASETS.{key}", "()"])


# ---------------------------------------------------------------------------------------------- running


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_shapes.draw(tmp_path_factory.mktemp("shapes"))


def _data(root: Path) -> list[str]:
    return tiny_shapes.data_options(tiny_shapes.draw(root))


@pytest.fixture
def stand_in(monkeypatch):
    """Runs are a small script in place of a training: tested here is who is started, when, and what after."""

    popen = subprocess.Popen

    def use(script: str) -> None:
        def start(command, **kwargs):
            return popen([sys.executable, "-c", script, *command[4:]], **kwargs)

        monkeypatch.setattr(study.subprocess, "Popen", start)
        monkeypatch.setattr(study, "POLL_SECONDS", 0.02)

    monkeypatch.setattr(study, "_draw", lambda result, root: None)  # seconds; one test draws
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


def test_what_is_written_tells_the_runs_finished_so_far(stand_in, folder, tmp_path, draw=study._draw):
    stand_in(SCRIPT.replace("BODY", "if 'a-seed1' in str(folder): sys.exit(1)"))
    plan = load_study(_write(tmp_path / "study.yaml", comparisons=[["b", "a"]], seeds=[1, 2]))
    out = tmp_path / "out"
    out.mkdir()
    _evaluation(folder, 12.5).to_json(out / "made.json")
    options = tiny_shapes.data_options(folder)
    with pytest.raises(StudyError, match="1 of 4 runs failed"):
        run_study(plan, out, options=options)
    found = StudyResult.from_json(out / "study.json")
    assert found.progress == "3 of 4 runs" and not found.complete and found.role == "report"
    assert [(run.arm, run.seed) for run in found.runs] == [("b", 1), ("a", 2), ("b", 2)]
    assert found.trained_on == ["train.json@train"] and found.evaluated_on == ["val.json@val"]
    train = load_annotations(folder / "train.json")
    assert [c.image_count for c in found.categories] == train.image_count.tolist()
    assert [c.frequency for c in found.categories] == train.frequency.tolist()
    run = found.runs[0]
    assert run.metrics["bbox"]["APr"] is None and run.metrics["bbox"]["AP"] == 12.5
    assert run.per_category["bbox"].count(None) == 2 and "segm" not in run.metrics
    assert "torch" in found.versions and "core" in found.machine
    assert found.command.startswith("python -m rio study study.yaml DATASETS.TRAIN ")
    text = (out / "study.json").read_text() + (out / "study.md").read_text()
    for secret in (str(tmp_path), str(folder), socket.gethostname()):
        assert secret not in text, "where and on which machine it was made is nobody's business"
    assert "3 of 4 runs finished" in text and "**Not complete.**" in text
    draw(found, out)
    names = {path.name for path in out.glob("study_*")}
    assert names == {f"study_{n}_bbox.{s}" for n in ("arms", "differences") for s in ("svg", "png")}

    stand_in(SCRIPT.replace("BODY", ""))
    run_study(plan, out, options=options)
    again = StudyResult.from_json(out / "study.json")
    assert again.complete and "Not complete" not in (out / "study.md").read_text()
    written = (out / "study.json").read_bytes()
    run_study(plan, out, options=options)
    assert (out / "study.json").read_bytes() == written


def test_a_failed_attempts_time_counts(tmp_path, monkeypatch):
    run = Run("a", 1, tmp_path, [], started=time.monotonic() - 5)
    for total in (5, 10):
        runner = _runner(tmp_path)
        runner._running = [run]
        runner._ended(run)
        assert run.seconds == pytest.approx(total, abs=1)


def _runner(folder: Path, **changes) -> study._Runner:
    own = {"devices": [], "about": None, "after_each": lambda: None, **changes}
    return study._Runner("base.yaml", [], 4, 0, **own)


def test_arms_trained_on_other_data_are_compared_by_the_same_groups(folder):
    evaluation = _evaluation(folder, 10.0)
    groups = evaluation.per_category["frequency"].tolist()
    evaluation.per_category["AP_bbox"] = [40.0, 20.0, 1.0, 2.0, 3.0, 4.0]
    evaluation.per_category["frequency"] = "f"  # as a balanced training set says
    categories = [Category(i, "x", f, 1) for i, f in enumerate("rrcccf")]
    metrics = study._metrics(evaluation, "bbox", categories)
    assert (metrics["APr"], metrics["APc"], metrics["APf"], metrics["AP"]) == (30.0, 2.0, 4.0, 10.0)
    evaluation.per_category["frequency"] = groups
    same = [Category(i, "x", f, 1) for i, f in enumerate(groups)]
    assert study._metrics(evaluation, "bbox", same)["APf"] == 10.0  # the evaluation's own


def test_telemetry_is_the_mean_of_the_second_half(tmp_path):
    run = Run("a", 0, tmp_path, [], max_iter=8)
    assert study._telemetry(run) == {}
    rows = [
        {"iteration": 3, "rois/share_r": 9.0},
        {"iteration": 5, "rois/share_r": 9.0, "memory_bank/fill": 1.0, "total_loss": 3.0},
        {"iteration": 5, "rois/share_r": 0.25, "memory_bank/fill": 1.0, "total_loss": 3.0},  # written again
        {"iteration": 7, "rois/share_r": 0.75, "total_loss": 3.0},
        {"iteration": 8, "bbox/AP": 3.0},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.json").write_text(text + '{"iteration": 7, "rois/sh')
    assert study._telemetry(run) == {"memory_bank/fill": 1.0, "rois/share_r": 0.5}


# ---------------------------------------------------------------------------------------------- settings


def test_a_key_added_since_with_its_default_is_the_same_run(tmp_path):
    run = Run("a", 1, tmp_path / "a", [])
    now = load_config(tiny_shapes.DEMO_CONFIG)
    before = now.clone()
    del before.MODEL.RIO["SAMPLER_SQRT"]
    study._keep_settings(run, before.dump())
    study._keep_settings(run, now.dump())  # True, the default
    now.MODEL.RIO.SAMPLER_SQRT = False
    with pytest.raises(StudyError, match="MODEL.RIO.SAMPLER_SQRT: True -> False"):
        study._keep_settings(run, now.dump())
    now.MODEL.RIO.SAMPLER_SQRT = True
    del now.MODEL.RIO["BANK_SYNC"]  # it was set then, and means nothing now
    with pytest.raises(StudyError, match="MODEL.RIO.BANK_SYNC: True -> None"):
        study._keep_settings(run, now.dump())


# ---------------------------------------------------------------------------------------------- tuning


@pytest.fixture(scope="module")
def other(folder, tmp_path_factory) -> str:
    """The name of a third set with the same classes, in a folder of its own."""
    copy = tmp_path_factory.mktemp("other") / "tiny"
    shutil.copytree(folder, copy)
    return f"{copy}/val.json@{copy}/val"


def test_a_tuning_study_is_evaluated_on_its_own_set_alone(stand_in, folder, other, tmp_path, capsys):
    stand_in(SCRIPT.replace("BODY", "print('told:', sys.argv)"))
    plan = load_study(_write(tmp_path / "study.yaml", tune_on=other))
    out = tmp_path / "out"
    out.mkdir()
    _evaluation(folder, 5.0).to_json(out / "made.json")
    outcome = run_study(plan, out, options=tiny_shapes.data_options(folder))
    for run in outcome.folders.values():
        told = (run / "stdout.log").read_text()
        assert told.rindex("DATASETS.TEST") > told.rindex(f"{folder}/val.json"), "the last word counts"
        assert yaml.safe_load((run / "study_settings.yaml").read_text())["DATASETS"]["TEST"] == [other]
    assert outcome.result.role == "tune" and outcome.result.evaluated_on == ["val.json@val"]
    markdown = (out / "study.md").read_text()
    titles = [line for line in markdown.splitlines() if line.startswith("## ")]
    assert "They are no results" in markdown and all("(tuning)" in title for title in titles)
    assert "They are no results" in study.format_result(outcome.result)


@pytest.mark.parametrize("split", ["train", "val"])
def test_tuning_on_trained_or_reported_images_is_refused(folder, tmp_path, split):
    plan = load_study(_write(tmp_path / "study.yaml", tune_on=f"{folder}/{split}.json@{folder}/{split}"))
    with pytest.raises(StudyError, match=r"expected other images than those of .*, found \d+ in both"):
        run_study(plan, tmp_path / "out", options=tiny_shapes.data_options(folder))


def test_images_are_the_same_under_another_file_and_name(folder, other, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    plan = load_study(_write(tmp_path / "study.yaml", tune_on=f"{tmp_path}/link/val.json@{tmp_path}/link/val"))
    with pytest.raises(StudyError, match="found 6 in both"):
        run_study(plan, tmp_path / "out", options=tiny_shapes.data_options(folder))
    # Not the config's training set, but an arm's.
    data = dict(zip(*[iter(map(str, tiny_shapes.data_options(folder)))] * 2, strict=True))
    sets = {key.partition(".")[2]: yaml.safe_load(value.strip("(),")) for key, value in data.items()}
    config = {"_BASE_": str(tiny_shapes.DEMO_CONFIG), "DATASETS": {key: [name] for key, name in sets.items()}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(config))
    arms = {"a": [], "b": ["DATASETS.TRAIN", f"('{other}',)"]}
    plan = load_study(_write(tmp_path / "study.yaml", tune_on=other, arms=arms))
    with pytest.raises(StudyError, match="found 6 in both"):
        run_study(plan, tmp_path / "out")


def test_an_arm_of_a_tuning_study_names_no_test_set(folder, other, tmp_path):
    arms = {"a": [], "b": ["DATASETS.TEST", f"('{other}',)"]}
    plan = load_study(_write(tmp_path / "study.yaml", tune_on=other, arms=arms))
    with pytest.raises(StudyError, match="arm 'b': DATASETS.TEST: expected no such key in a tuning study"):
        run_study(plan, tmp_path / "out", options=tiny_shapes.data_options(folder))


# ---------------------------------------------------------------------------------------------- pieces, GPUs


def test_minutes_stop_what_runs_and_the_same_call_goes_on(stand_in, folder, tmp_path, capsys, monkeypatch):
    save = "lambda *a: ((folder / 'saved').touch(), sys.exit(130))"
    wait = f"import signal; signal.signal(signal.SIGINT, {save})\ntime.sleep(60)"
    body = f"if 'b-' in str(folder):\n    {wait}".replace("\ntime", "; time")
    stand_in(SCRIPT.replace("BODY", body))
    monkeypatch.setattr(study, "START_SECONDS", 0.5)
    plan = load_study(_write(tmp_path / "study.yaml", processes=1, seeds=[1, 2]))
    out = tmp_path / "out"
    out.mkdir()
    _evaluation(folder, 12.5).to_json(out / "made.json")
    options = tiny_shapes.data_options(folder)
    run_study(plan, tmp_path / "warm", minutes=1e-9, options=options)  # imports what there is to import
    assert "0 of 4 runs are finished, 0 more begun; how much is left" in capsys.readouterr().out
    assert not list((tmp_path / "warm").glob("*/stdout.log")), "there was no time to start anything"

    started = time.monotonic()
    outcome = run_study(plan, out, minutes=0.1, options=options)
    assert time.monotonic() - started < 6 + 5
    shown = capsys.readouterr()
    assert "Time is up after 0:" in shown.out and "1 of 4 runs are finished, 1 more begun; about 1:" in shown.out
    assert "The same command goes on." in shown.out
    assert (out / "b-seed1" / "saved").exists() and not (out / "a-seed2" / "stdout.log").exists()
    assert outcome.result.progress == "1 of 4 runs"

    stand_in(SCRIPT.replace("BODY", ""))
    assert run_study(plan, out, minutes=5, options=options).result.complete
    assert "Time is up" not in capsys.readouterr().out


def test_no_run_is_started_that_would_get_nowhere(tmp_path):
    runner, now = _runner(tmp_path), time.monotonic()
    assert runner._worth_a_start(None) and runner._worth_a_start(now + 5), "the first is always started"
    assert not runner._worth_a_start(now - 1)
    runner._running = [Run("a", 1, tmp_path, [])]
    assert runner._worth_a_start(now + 40) and not runner._worth_a_start(now + 5)
    runner._start_seconds = [2.0, 3.0]  # so long took those before
    assert runner._worth_a_start(now + 5) and not runner._worth_a_start(now + 2.5)


def test_remaining_time_counts_runs_that_earlier_calls_began(tmp_path):
    runner = _runner(tmp_path)
    assert runner._remaining() == 0
    begun = Run("a", 1, tmp_path, [], max_iter=10, iteration=4, seconds_per_iteration=2.0)
    runner._waiting = [begun, Run("a", 2, tmp_path, [], max_iter=10)]
    runner._overhead = [3.0]
    assert runner._remaining() == 20 + 3  # 4 slots: side by side; the second goes at the first one's pace


def test_runs_are_dealt_over_gpus(monkeypatch):
    assert study._devices(1) == [], "as rio train does it: the first one, or the CPU"
    monkeypatch.setattr(info, "gpus", lambda: {"found": 3})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert study._devices(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,GPU-7")
    assert study._devices(3) == ["2", "5", "GPU-7"]
    with pytest.raises(StudyError, match="--num-gpus 4: expected as many GPUs on this machine, found 3"):
        study._devices(4)
    assert study._environment(None)["CUDA_VISIBLE_DEVICES"] == "2,5,GPU-7"
    environment = study._environment("5")
    assert environment["CUDA_VISIBLE_DEVICES"] == "5" and environment["OMP_NUM_THREADS"] == "1"


def test_each_run_gets_the_gpu_that_fewest_are_on(stand_in, folder, tmp_path, monkeypatch):
    ready = "(folder / 'gpu').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', 'none'))\n"
    wait = "while len(list(folder.parent.glob('*/gpu'))) < 4: time.sleep(0.02)"
    stand_in(SCRIPT.replace("BODY", ready + wait))
    monkeypatch.setattr(study, "_devices", lambda gpus: ["3", "4"][:gpus])
    plan = load_study(_write(tmp_path / "study.yaml", seeds=[1, 2], processes=4, gpus=2))
    out = tmp_path / "out"
    out.mkdir()
    _evaluation(folder, 12.5).to_json(out / "made.json")
    run_study(plan, out, options=tiny_shapes.data_options(folder))
    assert sorted(path.read_text() for path in out.glob("*/gpu")) == ["3", "3", "4", "4"]


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


@pytest.mark.slow
def test_real_trainings_in_pieces(folder, tmp_path, capsys):
    """Each piece goes on where the one before stopped; on a busy machine the first ones get nowhere."""
    from rio.cli.parser import main

    plan = _write(tmp_path / "study.yaml", seeds=[1], processes=2)
    words = ["study", str(plan), *tiny_shapes.data_options(folder), *tiny_shapes.model_options(200)]
    begun = []
    for minutes in ("0.25", "1", "2", "4", "8"):
        assert main([*words, "--output-dir", str(tmp_path / "out"), "--minutes", minutes]) == 0
        found = StudyResult.from_json(tmp_path / "out" / "study.json")
        begun.append(found.progress)
        if found.complete:
            break
        assert "The same command goes on" in capsys.readouterr().out
    assert found.complete, begun
    logs = [path.read_text() for path in (tmp_path / "out").glob("*/stdout.log")]
    for log in logs:  # saved after k iterations, and gone on from there
        stopped = re.findall(r"Stopped after (\d+) of 200 iterations", log)
        assert set(stopped) <= set(re.findall(r"Starting training from iteration (\d+)", log)), log
    assert all(run.iterations == 200 for run in found.runs) and "memory_bank/fill" in found.runs[1].telemetry


# ---------------------------------------------------------------------------------------------- comparing


FREQUENCIES = "r" * 6 + "c" * 6 + "f" * 8


def _result(values: dict[tuple[str, int], Sequence[float]], *, kind: str = "bbox", **changes) -> StudyResult:
    """A result from (arm, seed) -> AP of each of 20 categories: 6 rare, 6 common, 8 frequent."""
    categories = [Category(i + 1, f"c{i}", f, 5 * i + 1) for i, f in enumerate(FREQUENCIES)]
    runs = []
    for (arm, seed), ap in values.items():
        ap = np.broadcast_to(np.asarray(ap, float), len(FREQUENCIES))
        mean = {"AP": pd.Series(ap).mean(), **pd.Series(ap).groupby([f"AP{f}" for f in FREQUENCIES]).mean()}
        metrics = {m: study._rounded(mean.get(m, 1.0)) for m in METRICS}
        stored = [study._rounded(v) for v in ap]
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


def test_a_result_survives_its_file(tmp_path):
    ap = [np.nan, *range(1, 20)]
    made = _result({("a", 1): ap, ("b", 1): [30.0], ("b", 2): [31.5]}, role="tune")
    made.to_json(tmp_path / "study.json")
    again = StudyResult.from_json(tmp_path / "study.json")
    assert again == made and again.runs[0].per_category["bbox"][0] is None
    pd.testing.assert_frame_equal(again.comparisons(), made.comparisons())
    again.to_json(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "study.json").read_bytes()
    assert list(json.loads((tmp_path / "study.json").read_bytes())) == [
        "format", "name", "role", "trained_on", "evaluated_on", "command", "machine", "versions", "date", "arms",
        "comparisons", "seeds", "categories", "runs",
    ]  # fmt: skip
    lines = (tmp_path / "study.json").read_text().splitlines()
    assert sum(line.startswith("  {") for line in lines) == 20 + 3, "a line a category and a run"
    runs = again.per_run()
    assert runs[["arm", "seed"]].values.tolist() == [["a", 1], ["b", 1], ["b", 2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('"format": 1|"format": 2', "format: expected 1"),
        ('"tune"|"tuned"', "Invalid enum value 'tuned'"),
        ('["b", "a"]|["b", "c"]', "comparisons: expected two of a, b, found"),
        ('"arm": "b", "seed": 2|"arm": "b", "seed": 1', r"runs.2.: expected an arm and a seed of the study, once"),
        ('"seed": 2|"seed": 3', r"runs.2.: expected an arm and a seed"),
        ('"segm"|"mask"', "expected one of .'bbox', 'segm'., found 'mask'"),
        ("[30.0, |[", r"runs.1..per_category.segm: expected 20 values, one a category, found 19"),
        ('"APr": 30.0|"AP2": 30.0', r"runs.1..metrics.segm: expected AP, APr, APc, APf, found .'AP', 'AP2'"),
        ('"runs"|"ruins"', "missing required field `runs`"),
        ("{|", "expected what StudyResult.to_json writes"),
    ],
)
def test_files_that_are_no_result_are_refused(tmp_path, change, message):
    made = _result({("a", 1): [1.0], ("b", 1): [30.0], ("b", 2): [31.5]}, kind="segm", role="tune")
    made.to_json(tmp_path / "study.json")
    old, new = change.split("|")
    (tmp_path / "study.json").write_text((tmp_path / "study.json").read_text().replace(old, new))
    with pytest.raises(StudyError, match=message):
        StudyResult.from_json(tmp_path / "study.json")


def test_a_result_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such study result"):
        StudyResult.from_json(tmp_path / "study.json")


def test_a_study_without_a_finished_run_can_be_read(tmp_path):
    made = _result({}, arms={"a": [], "b": []}, pairs=[("b", "a")], seeds=[1])
    made.to_json(tmp_path / "study.json")
    again = StudyResult.from_json(tmp_path / "study.json")
    assert again.progress == "0 of 2 runs" and len(again.table()) == 0 and len(again.comparisons()) == 0
    assert len(again.telemetry()) == 0 and "0 of 2 runs finished" in again.to_markdown()
    assert study.format_result(again).splitlines() == ["made, on val: 0 of 2 runs finished"]


def test_differences_by_hand():
    step = np.r_[[6.0] * 6, [3.0] * 6, [0.0] * 8]  # rare gain 6, common 3, frequent none
    made = _result({("a", 1): [10.0], ("a", 2): [12.0], ("b", 1): 10 + step, ("b", 2): 14 + step})
    rows = made.comparisons()
    assert rows["metric"].tolist() == ["AP", "APr", "APc", "APf"] and (rows["seeds"] == 2).all()
    # seed 1: + step, seed 2: + step + 2; no category differs from its group, so no draw does.
    assert rows["difference"].tolist() == pytest.approx([54 / 20 + 1, 7, 4, 1])
    assert rows["low"].tolist() == pytest.approx(rows["difference"].tolist())
    assert rows["high"].tolist() == pytest.approx(rows["difference"].tolist())
    assert rows["resolved"].tolist() == [True, True, True, False]  # frequent: seed 1 shows no gain at all
    assert rows["seeds_agree"].tolist() == [True, True, True, False]


def test_identical_arms_differ_by_exactly_nothing():
    rng = np.random.default_rng(0)
    ap = {seed: rng.uniform(0, 90, 20) for seed in (1, 2, 3)}
    rows = _result({(arm, seed): ap[seed] for arm in "ab" for seed in ap}).comparisons()
    assert (rows[["difference", "low", "high"]] == 0).all(axis=None)
    assert not rows["resolved"].any() and not rows["seeds_agree"].any()


def test_one_seed_resolves_nothing():
    made = _result({("a", 1): [10.0], ("b", 1): [50.0], ("b", 2): [50.0]})
    row = _row(made)
    assert (row["seeds"], row["difference"], row["low"]) == (1, 40, 40) and row["seeds_agree"]
    assert not row["resolved"], "seed 2 has no partner"


def test_seeds_that_disagree_resolve_nothing():
    row = _row(_result({("a", 1): [10.0], ("a", 2): [10.0], ("b", 1): [30.0], ("b", 2): [9.0]}))
    assert row["difference"] == 9.5 and row["low"] > 0 and not row["seeds_agree"] and not row["resolved"]


def test_classes_that_one_arm_was_not_judged_on_are_left_out():
    ap = np.full(20, 10.0)
    gap, gain = ap.copy(), ap + 2
    gap[0], gain[0], gain[19] = np.nan, 80.0, np.nan
    rows = _result({("a", 1): gap, ("b", 1): gain}).comparisons()
    assert rows["difference"].tolist() == [2, 2, 2, 2]
    # Five rare classes are left: no interval; AP and the others have one.
    assert rows["low"].isna().tolist() == [False, True, False, False]
    nothing = _result({("a", 1): [np.nan] * 6 + [1.0] * 14, ("b", 1): [2.0] * 20})
    assert np.isnan(_row(nothing, "APr")["difference"]) and not _row(nothing, "APr")["resolved"]


def test_the_interval_is_the_bootstraps_own():
    """Against the plain definition: draw categories with replacement within groups, again and again; and for
    the few there are, widened: 6 rare classes by sqrt(6 / 5), cut off where normal tails are Student's of 5."""
    rng = np.random.default_rng(1)
    gain = rng.normal(3, 5, 20)
    made = _result({("a", 1): [20.0], ("b", 1): 20 + gain})
    blocks = [gain[:6], gain[6:12], gain[12:]]
    wide = [b.mean() + (rng.choice(b, (20_000, len(b))) - b.mean()) * np.sqrt(len(b) / (len(b) - 1)) for b in blocks]
    row, means = _row(made), np.concatenate(wide, axis=1).mean(axis=1)
    tail = 0.0171  # of about 14 degrees of freedom, t = 2.14, by Satterthwaite and the three variances
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(means, [tail, 1 - tail]).tolist(), abs=0.15)
    rare, means = _row(made, "APr"), wide[0].mean(axis=1)
    tail = 0.00508  # t = 2.571
    assert [rare["low"], rare["high"]] == pytest.approx(np.quantile(means, [tail, 1 - tail]).tolist(), abs=0.3)


@pytest.mark.parametrize(
    ("freedom", "value", "within"), [(2, 4.303, 0.04), (5, 2.571, 0.003), (10, 2.228, 5e-4), (100, 1.984, 5e-4)]
)
def test_students_quantile(freedom, value, within):
    """Against the tables of any textbook."""
    assert study.student_t(freedom) == pytest.approx(value, abs=within)


def test_shift_scale_and_sign_of_the_interval():
    rng = np.random.default_rng(2)
    base, gain = rng.uniform(20, 40, 20), rng.normal(1, 4, 20)

    def interval(change):
        row = _row(_result({("a", 1): base, ("b", 1): base + change}))
        return np.array([row["difference"], row["low"], row["high"]])

    plain = interval(gain)  # what is stored has four decimals
    assert interval(gain + 5) == pytest.approx(plain + 5, abs=1e-3)
    assert interval(2 * gain) == pytest.approx(2 * plain, abs=1e-3)
    assert interval(-gain) == pytest.approx(-plain[[0, 2, 1]], abs=1e-3)  # the same draws, mirrored


def test_intervals_cover_what_they_say():
    """Of many made-up sets of categories, about 19 in 20 intervals hold the true difference."""
    rng = np.random.default_rng(3)
    groups = np.array(["r"] * 11 + ["c"] * 40 + ["f"] * 6)
    hit = {"AP": 0, "APr": 0, "APf": 0}
    for _ in range(300):
        gain = rng.normal(2, 6, (1, 57)) + rng.normal(0, 2, (3, 57))  # of the category, and of each seed
        for metric in hit:
            own = (groups == metric[2:]) | (metric == "AP")
            found = study._difference(gain[:, own], groups[own])
            hit[metric] += found["low"] <= 2 <= found["high"]
    assert all(273 <= number <= 297 for number in hit.values()), hit  # 91 to 99 %


def test_the_verdict_is_seldom_wrong():
    """Arms that do not differ: seldom called different, though the interval alone would be, 1 in 20."""
    rng = np.random.default_rng(4)
    groups = np.array(["r"] * 40)
    wrong = sum(study._difference(rng.normal(0, 5, (3, 40)), groups)["resolved"] for _ in range(200))
    assert wrong <= 14


def test_many_categories_take_no_time():
    rng = np.random.default_rng(5)
    groups = np.array(["r"] * 337 + ["c"] * 461 + ["f"] * 405)
    gain = rng.normal(1, 5, (3, 1203))
    study._difference(gain, groups)  # draws once; other comparisons take the same draws
    started = time.process_time()
    found = study._difference(gain, groups)
    assert time.process_time() - started < 1 and found["low"] < found["difference"] < found["high"]


def test_tables_for_people():
    step = np.r_[[6.0] * 6, [0.0] * 14]
    made = _result({("a", 1): [10.0], ("a", 2): [12.0], ("b", 1): 10 + step, ("b", 2): 12 + step})
    markdown = made.to_markdown()
    assert "| b | 2 | 12.8 ±1.0 | 17.0 ±1.0 | 11.0 ±1.0 | 11.0 ±1.0 |" in markdown
    assert "| b - a | 2 | +1.8 [+1.8, +1.8] resolved | +6.0 [+6.0, +6.0] resolved | +0.0 [" in markdown
    assert "+0.0 [+0.0, +0.0] not resolved" in markdown and "one in twenty" in markdown
    assert "| a | 0.125 |" in markdown and "`python -m rio study made.yaml`" in markdown
    shown = study.format_result(made)
    assert "made, on val: 4 of 4 runs finished" in shown
    line = next(line for line in shown.splitlines() if line.startswith("b - a"))
    assert line.split() == ["b", "-", "a", "2", *["+1.8", "[+1.8,", "+1.8]", "*", "+6.0", "[+6.0,", "+6.0]", "*"],
                            *["+0.0", "[+0.0,", "+0.0]", "+0.0", "[+0.0,", "+0.0]"]]  # fmt: skip


def test_paths_lose_their_folders():
    assert study._without_folders("('/a/b/train.json@/a/b/train',)") == "('train.json@train',)"
    assert study._without_folders("~/mine/val.json@mine/val") == "val.json@mine/val"
    assert study._without_folders("configs/studies/x.yaml") == "configs/studies/x.yaml"


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


def test_telemetry_of_a_cascade_is_kept():
    kept = ["memory_bank/fill", "rois/share_r", "stage1/memory_bank/age"]
    left = ["total_loss", "stage1/loss_cls", "other/memory_bank/fill"]
    assert [name for name in [*kept, *left] if study.TELEMETRY.match(name)] == kept


# ------------------------------------------------------------------------------------------------ committed

STUDIES = Path(__file__).resolve().parents[2] / "configs" / "studies"


@pytest.mark.parametrize("file", sorted((STUDIES / "results").glob("*.json")), ids=lambda file: file.stem)
def test_committed_results_are_of_the_study_beside_them(file):
    """What the README and notebook 04 show: whole, of the study's present arms, its text made from its values."""
    result, planned = StudyResult.from_json(file), load_study(STUDIES / f"{file.stem}.yaml")
    assert result.complete and result.arms == planned.arms and result.seeds == list(planned.seeds)
    assert tuple(result.pairs) == planned.comparisons
    assert result.role == ("report" if planned.tune_on is None else "tune")
    assert file.with_suffix(".md").read_text(encoding="utf-8") == result.to_markdown()
