"""Studies running: side by side, resuming, failing, stopping, dealt over GPUs; with small scripts in place of runs."""

import os
import re
import signal
import socket
import time

import pytest
import yaml

from rio.data.load import load_annotations
from rio.engine import info
from rio.study import collect, runner
from rio.study.plan import StudyError
from rio.study.process import Training
from rio.study.result import StudyResult
from rio.study.runner import devices_for, run_study
from tests.support import stub_training, tiny_shapes

WAITS = "(folder / 'ready').touch()\nwhile not stopped: time.sleep(0.02)\n(folder / 'saved').touch(); sys.exit(130)"


def test_arms_run_finish_and_are_skipped_the_next_time(stand_in, study, data, out, capsys, monkeypatch):
    stand_in("assert os.environ['OMP_NUM_THREADS'] == '1' and '--resume' in sys.argv")
    monkeypatch.setattr(runner, "LINE_SECONDS", 0.0)
    plan = study(seeds=[1, 2])
    outcome = run_study(plan, out, options=data)
    assert set(outcome.folders) == {("a", 1), ("a", 2), ("b", 1), ("b", 2)}
    table = outcome.result.table()
    assert table["AP"].tolist() == [12.5, 12.5] and table["seeds"].tolist() == [2, 2]
    assert outcome.result.runs[0].telemetry["memory_bank/fill"] == 0.25
    shown = capsys.readouterr().err
    assert shown.count("started") == 4 and shown.count("finished in 00:0") == 4 and "box AP 12.5" in shown
    assert re.search(r"study: +\d+%.*<.*a-seed1 \d/", shown), "how far all is, the remaining time, the runs at work"
    assert "told:" in (out / "b-seed2" / "stdout.log").read_text()
    assert "SEED: 2" in (out / "b-seed2" / "study_settings.yaml").read_text()
    assert 0.01 < outcome.peak_gib < 6

    run_study(plan, out, options=data)
    again = capsys.readouterr()
    assert "4 of 4 runs are finished already" in again.out and "started" not in again.err
    with pytest.raises(StudyError, match="begun with other settings .SOLVER.BASE_LR: 0.03 -> 0.5"):
        run_study(plan, out, options=[*data, "SOLVER.BASE_LR", "0.5"])


def test_a_study_judges_its_runs_by_other_protocols_too(stand_in, study, data, out, evaluation):
    stand_in()
    assert len(run_study(study(), out, options=data).result.runs) == 2
    evaluation(14.0).to_json(out / "fixed.json")
    judge = (
        "new = folder / 'lvis_fixed'; new.mkdir(); shutil.copy(folder.parent / 'fixed.json', new / 'evaluation.json')"
    )
    stand_in(f"assert sys.argv[-2:] == ['--protocol', 'lvis_fixed']; {judge}")
    result = run_study(study(protocols=["lvis", "lvis_fixed"]), out, options=data).result
    table = result.table().set_index(["arm", "iou_type"])["AP"]
    assert table.to_dict() == {
        ("a", "bbox"): 12.5, ("b", "bbox"): 12.5, ("a", "bbox_lvis_fixed"): 14.0, ("b", "bbox_lvis_fixed"): 14.0,
    }  # fmt: skip
    text = (out / "study.md").read_text()
    assert "|  | seeds | bbox AP | APr | APc | APf | box AP-fixed | APr | APc | APf |" in text
    assert "## Differences in box AP-fixed" in text and "| b - a | 1 | +0.0" in text
    result.to_json(out / "again.json")
    assert StudyResult.from_json(out / "again.json") == result


def test_a_failing_arm_shows_its_end_and_the_result_the_others(stand_in, study, tiny_set, data, out, tmp_path, capsys):
    stand_in("if 'a-seed1' in str(folder): sys.exit('error: no memory for this')")
    plan = study(seeds=[1, 2])
    with pytest.raises(StudyError, match=r"1 of 4 runs failed: a-seed1\..*same command again"):
        run_study(plan, out, options=data)
    shown = capsys.readouterr().err
    assert "a-seed1: failed (exit code 1)" in shown and "error: no memory for this" in shown
    found = StudyResult.from_json(out / "study.json")
    assert found.progress == "3 of 4 runs" and not found.complete and found.role == "report"
    assert [(run.arm, run.seed) for run in found.runs] == [("b", 1), ("a", 2), ("b", 2)]
    assert found.trained_on == ["train.json@train"] and found.evaluated_on == ["val.json@val"]
    train = load_annotations(tiny_set / "train.json")
    assert [c.image_count for c in found.categories] == train.image_count.tolist()
    assert [c.frequency for c in found.categories] == train.frequency.tolist()
    run = found.runs[0]
    assert run.metrics["bbox"]["APr"] is None and run.metrics["bbox"]["AP"] == 12.5
    assert run.per_category["bbox"].count(None) == 2 and "segm" not in run.metrics
    assert "torch" in found.versions and "core" in found.machine
    assert found.command.startswith("python -m rio study study.yaml DATASETS.TRAIN ")
    text = (out / "study.json").read_text() + (out / "study.md").read_text()
    for secret in (str(tmp_path), str(tiny_set), socket.gethostname()):
        assert secret not in text, "a published result tells neither where nor on which machine it was made"
    assert "3 of 4 runs finished" in text and "**Not complete.**" in text
    collect.draw(found, out)
    names = {path.name for path in out.glob("study_*")}
    assert names == {f"study_{n}_bbox.{s}" for n in ("arms", "differences") for s in ("svg", "png")}

    stand_in()
    run_study(plan, out, options=data)
    assert StudyResult.from_json(out / "study.json").complete and "Not complete" not in (out / "study.md").read_text()
    written = (out / "study.json").read_bytes()
    run_study(plan, out, options=data)
    assert (out / "study.json").read_bytes() == written


def test_the_time_of_every_attempt_counts(stand_in, study, data, out):
    (out / "a-seed1").mkdir()
    (out / "a-seed1" / "study_seconds.json").write_text('{"seconds": 100.0}')
    stand_in()
    seconds = [run.seconds for run in run_study(study(), out, options=data).result.runs]
    assert 100 < seconds[0] < 160 and seconds[1] < 60


def test_arms_trained_on_other_data_are_compared_by_the_same_groups(stand_in, study, data, out, evaluation):
    made = evaluation(10.0)
    made.per_category["AP_bbox"] = [40.0, 20.0, 1.0, 2.0, 3.0, 4.0]
    made.to_json(out / "made.json")
    made.per_category["frequency"] = "f"  # as a balanced training set says
    made.to_json(out / "balanced.json")
    stand_in("if 'b-' in str(folder): folder.parent.joinpath('balanced.json').rename(folder.parent / 'made.json')")
    own, other = (run.metrics["bbox"] for run in run_study(study(processes=1), out, options=data).result.runs)
    assert [own[m] for m in ("APr", "APc", "APf", "AP")] == [None, 10, 10, 10], "the evaluation's own"
    groups = [c.frequency for c in StudyResult.from_json(out / "study.json").categories]
    means = {g: [v for v, f in zip([40, 20, 1, 2, 3, 4], groups, strict=True) if f == g] for g in "rcf"}
    assert [other[f"AP{g}"] for g in "rcf"] == [round(sum(v) / len(v), 4) for v in means.values()] and other["AP"] == 10


def test_ctrl_c_stops_every_run_and_leaves_none_behind(stand_in, study, data, out, monkeypatch):
    stand_in(WAITS)

    def interrupt_when_ready(pid):
        if len(list(out.glob("*/ready"))) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return 0

    monkeypatch.setattr(runner, "memory_of", interrupt_when_ready)
    monkeypatch.setattr(runner, "MEMORY_SECONDS", 0.0)
    # A shell without job control starts what it puts into the background with Ctrl-C ignored, this test too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="it resumes"):
            run_study(study(), out, options=data)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(list(out.glob("*/saved"))) == 2 and not list(out.glob("*/study_finished.json"))
    assert all(Training(path.parent).pid() is None for path in out.glob("*/run.json"))


def test_a_tuning_study_says_so(stand_in, study, tiny_set, data, out, other):
    stand_in()
    outcome = run_study(study(tune_on=other), out, options=data)
    for run in outcome.folders.values():
        told = (run / "stdout.log").read_text()
        assert told.rindex("DATASETS.TEST") > told.rindex(f"{tiny_set}/val.json"), "the last word counts"
    assert outcome.result.role == "tune" and outcome.result.evaluated_on == ["val.json@val"]
    markdown = (out / "study.md").read_text()
    titles = [line for line in markdown.splitlines() if line.startswith("## ")]
    assert "They are no results" in markdown and titles and all("(tuning)" in title for title in titles)


def test_minutes_stop_what_runs_and_the_same_call_resumes(stand_in, study, data, out, tmp_path, capsys, monkeypatch):
    stand_in("if 'b-' in str(folder):\n    " + WAITS.replace("\n", "\n    "))
    monkeypatch.setattr(runner, "START_SECONDS", 0.1)
    plan = study(processes=1, seeds=[1, 2])
    run_study(plan, tmp_path / "warm", minutes=1e-9, options=data)  # imports what there is to import
    assert "0 of 4 runs are finished, 0 more begun; how much is left" in capsys.readouterr().out
    assert not list((tmp_path / "warm").glob("*/stdout.log")), "there was no time to start anything"

    started = time.monotonic()
    outcome = run_study(plan, out, minutes=0.1, options=data)  # on a busy machine half of it sees no run end
    assert time.monotonic() - started < 0.1 * 60 + 5
    shown = capsys.readouterr().out
    assert "Time is up after 00:0" in shown and "1 of 4 runs are finished, 1 more begun; about " in shown
    assert "Run the same command again" in shown
    assert (out / "b-seed1" / "saved").exists() and not (out / "a-seed2" / "stdout.log").exists()
    assert outcome.result.progress == "1 of 4 runs"

    stand_in()
    assert run_study(plan, out, minutes=5, options=data).result.complete
    assert "Time is up" not in capsys.readouterr().out


def test_no_run_is_started_that_would_get_nowhere(stand_in, study, data, out):
    """One run a call is always started; the next one not within the last half minute."""
    stand_in()
    assert run_study(study(processes=1), out, minutes=0.5, options=data).result.progress == "1 of 2 runs"
    assert not (out / "b-seed1" / "stdout.log").exists()


def test_runs_are_dealt_over_gpus(stand_in, study, data, out, monkeypatch):
    monkeypatch.setattr(info, "gpus", lambda: {"found": 3, "devices": []})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices_for(1) == [], "as rio train does it: the first one, or the CPU"
    assert devices_for(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,GPU-7")
    assert devices_for(3) == ["2", "5", "GPU-7"]
    with pytest.raises(StudyError, match="--num-gpus 4: expected as many GPUs on this machine, found 3"):
        devices_for(4)
    ready = "(folder / 'gpu').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    stand_in(ready + "while len(list(folder.parent.glob('*/gpu'))) < 4: time.sleep(0.02)")
    run_study(study(seeds=[1, 2], processes=4, gpus=2), out, options=data)
    assert sorted(path.read_text() for path in out.glob("*/gpu")) == ["2", "2", "5", "5"]


def test_a_folder_in_use_is_refused(stand_in, study, data, out):
    """By a study; by a training that a killed study left behind."""
    plan = study()
    orphan = Training(out / "a-seed1")
    orphan.start(stub_training.command(orphan.path))
    stand_in()
    with pytest.raises(StudyError, match=rf"a-seed1: a training is running here .process {orphan.pid()}"):
        run_study(plan, out, options=data)
    orphan.stop(at_once=True)
    stub_training.until(lambda: orphan.pid() is None)
    with runner.FileLock(out / ".lock"):
        (out / ".lock.pid").write_text("77")
        with pytest.raises(StudyError, match="another study .process 77. is running here"):
            run_study(plan, out, options=data)


def test_paths_lose_their_folders():
    assert collect.without_folders("('/a/b/train.json@/a/b/train',)") == "('train.json@train',)"
    assert collect.without_folders("~/mine/val.json@mine/val") == "val.json@mine/val"
    assert collect.without_folders("configs/studies/x.yaml") == "configs/studies/x.yaml"


@pytest.mark.slow
def test_real_trainings_in_pieces(write, data, tmp_path, capsys):
    """Side by side, by the command line; each piece resumes where the one before stopped."""
    from rio.cli.parser import main

    words = ["study", str(write()), *data, *tiny_shapes.model_options(60), "--output-dir", str(tmp_path / "out")]
    for minutes in ("0.25", "1", "2", "4", "8"):  # on a busy machine the first ones get nowhere
        assert main([*words, "--minutes", minutes]) == 0
        found = StudyResult.from_json(tmp_path / "out" / "study.json")
        if found.complete:
            break
        assert "Run the same command again" in capsys.readouterr().out
    assert found.complete and "box AP" in capsys.readouterr().err
    for path in (tmp_path / "out").glob("*/stdout.log"):
        log = path.read_text()
        stopped = re.findall(r"Stopped after (\d+) of 60 iterations", log)
        assert set(stopped) <= set(re.findall(r"Starting training from iteration (\d+)", log)), log
    assert all(run.iterations == 60 for run in found.runs) and "memory_bank/fill" in found.runs[1].telemetry
    assert {kind for run in found.runs for kind in run.metrics} == {"bbox", "segm"}
    settings = yaml.safe_load((tmp_path / "out" / "a-seed1" / "config.yaml").read_text())
    assert settings["MODEL"]["RIO"]["BANK_ENABLED"] is False and settings["SEED"] == 1
