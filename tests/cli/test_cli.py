"""The command line: what a user types, what comes out, and how a mistake is answered."""

import errno
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rio.cli.common import UsageError
from rio.cli.parser import main
from rio.data.load import load_annotations
from rio.results.evaluation import Evaluation, evaluate
from rio.results.protocols import PROTOCOLS
from rio.shapes.spec import SPECS
from tests.support import tiny_shapes
from tests.support.tiny_shapes import train_words

CONFIG = ["--config-file", str(tiny_shapes.DEMO_CONFIG)]
SHARED = [["train"], ["features", "--weights", "w.pth", "--output", "out"]]  # commands that several processes share


def test_help_is_instant_and_lists_the_commands():
    script = (
        "import sys, rio.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'detectron2', 'numpy', 'matplotlib'} & set(sys.modules), 'imports on --help'"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for command in ("check", "train", "eval", "predict", "study", "demo", "info", "shapes"):
        assert f"    {command} " in shown.stdout


# ---- train


def test_train_writes_a_whole_run(run):
    found = {path.name for path in run.iterdir()}
    assert found >= {
        "config.yaml", "metrics.json", "log.txt", "last_checkpoint", "model_final.pth", "model_best.pth",
        "instances_results.json", "evaluation.json",
    }  # fmt: skip
    assert any(name.startswith("events.out.tfevents") for name in found)
    config = (run / "config.yaml").read_text()
    assert "train.json@" in config and "val.json@" in config and "NUM_CLASSES: 6" in config


def test_train_refuses_a_folder_in_use_and_resumes_on_demand(run, tiny_set, tmp_path, command):
    words = train_words(tiny_set, run)
    assert "--resume" in command(*words, code=2)
    assert "3 of 3 iterations are done" in command(*words, "--resume")
    # Keys may stand on both sides of a flag.
    words = ["SOLVER.MAX_ITER", "5", *CONFIG, "MODEL.ROI_HEADS.NUM_CLASSES", "80", "--output-dir", tmp_path]
    assert "expected 6" in command("train", *words, *tiny_shapes.data_options(tiny_set), code=2)


def test_the_loader_works_under_the_start_method_of_python_3_14(tiny_set, tmp_path):
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        options = ["DATALOADER.NUM_WORKERS", 1, "DATASETS.TEST", "()"]
        assert main(train_words(tiny_set, tmp_path / "run", *options, max_iter=2)) == 0
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert (tmp_path / "run" / "model_final.pth").is_file()


@pytest.mark.parametrize(
    ("target", "number"), [("os.makedirs", errno.EACCES), ("os.replace", errno.EROFS), ("os.fsync", errno.ENOSPC)]
)
def test_an_output_folder_that_cannot_be_written_is_named(tiny_set, tmp_path, command, monkeypatch, target, number):
    def fails(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    importlib.import_module("rio.trainer")  # some libraries make folders of their own when first imported
    monkeypatch.setattr(target, fails)
    said = command(*train_words(tiny_set, tmp_path / "run"), code=2)
    assert str(tmp_path / "run") in said and os.strerror(number) in said and "--output-dir" in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_the_run_resumes(tiny_set, tmp_path, number):
    words = train_words(tiny_set, tmp_path / "run", "DATALOADER.NUM_WORKERS", 1, max_iter=400)
    process = subprocess.Popen(
        [sys.executable, "-m", "rio", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "iter: 9" in line:
            os.killpg(process.pid, number)  # as a terminal and SLURM do: the loader's process gets it as well
            break
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, "".join(lines) + rest
    assert "--resume" in rest and "Traceback" not in rest
    assert (tmp_path / "run" / "last_checkpoint").read_text().startswith("model_00000")


@pytest.mark.parametrize("words", SHARED)
@pytest.mark.parametrize(
    ("device", "gpus", "processes", "expected"),
    [("cuda", 2, 2, ("nccl", 1)), ("cpu", 2, 2, ("gloo", None)), ("cpu", 1, 2, ("gloo", None)), ("cuda", 1, 2, None)],
)
def test_torchruns_children_go_by_the_configs_device(monkeypatch, command, words, device, gpus, processes, expected):
    import torch

    chosen = []
    ranks = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    for name, value in ranks.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)

    def joined(backend, **_given):
        raise UsageError(f"{backend}, {chosen[0] if chosen else None}")

    monkeypatch.setattr(torch.distributed, "init_process_group", joined)
    said = command(*words, *CONFIG, "MODEL.DEVICE", device, code=2)
    if expected is None:
        assert "--nproc_per_node 2: expected as many GPUs on this machine, found 1. Fix: lower it" in said
    else:
        assert f"error: {expected[0]}, {expected[1]}" in said


# ---- eval and predict


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())["metrics"]


def test_eval_of_weights_equals_the_runs_own(run, command):
    shown = command("eval", "--weights", run / "model_final.pth")
    assert f"Config: {run}/config.yaml" in shown and "bbox" in shown
    assert metrics_of(run / "eval") == metrics_of(run)


@pytest.fixture
def eval_results(run, tiny_set, tmp_path, command):
    """Function: evaluate the run's results in groups of its training set; what was printed."""
    words = ["eval", "--results", run / "instances_results.json", "--gt", tiny_set / "val.json"]
    words += ["--train-json", tiny_set / "train.json", "--output-dir", tmp_path]
    return lambda *more: command(*words, *more)


@pytest.mark.parametrize("backend", ["hotcoco", "lvis"])
def test_eval_of_a_results_file(run, tmp_path, eval_results, backend):
    eval_results("--backend", backend)
    written, own = metrics_of(tmp_path), metrics_of(run)
    assert all(written[kind] == pytest.approx(own[kind], abs=1e-9) for kind in own)


@pytest.mark.parametrize(
    ("protocol", "kinds"), [("lvis_fixed", ("bbox", "segm")), ("coco", ("bbox", "segm")), ("coco", ("boundary",))]
)
def test_eval_by_another_protocol(run, tiny_set, tmp_path, eval_results, protocol, kinds):
    iou_types = ["--iou-type", "boundary"] if kinds == ("boundary",) else []
    assert f"Protocol: {PROTOCOLS[protocol].title}\n" in eval_results("--protocol", protocol, *iou_types)
    truth, train = (load_annotations(tiny_set / f"{split}.json") for split in ("val", "train"))
    results = run / "instances_results.json"
    expected = evaluate(truth.with_frequency_of(train), results, protocol=protocol, iou_types=kinds).metrics
    np.testing.assert_equal(Evaluation.from_json(tmp_path / "evaluation.json").metrics, expected)


def test_eval_of_weights_by_another_protocol_warns_of_the_configs_cap(run, tmp_path, command):
    words = ["eval", "--weights", run / "model_final.pth", "--protocol", "lvis_fixed"]
    words += ["--output-dir", tmp_path, "--iou-type", "boundary", "--iou-type", "segm"]
    for options, warned in (([], True), (["TEST.DETECTIONS_PER_IMAGE", "-1"], False)):
        assert ("TEST.DETECTIONS_PER_IMAGE: expected -1 (all)" in command(*words, *options)) == warned
        evaluation = Evaluation.from_json(tmp_path / "evaluation.json")
        assert list(evaluation.metrics) == ["boundary", "segm"]
        assert evaluation.info["protocol"].startswith("LVIS, AP-fixed")
        assert (evaluation.info["predictions"] <= 60) == warned


def test_weights_that_do_not_fit_are_named(run, command):
    error = command("eval", "--weights", run / "model_final.pth", "MODEL.ROI_BOX_HEAD.FC_DIM", 32, code=2)
    assert "box_head.fc1.weight" in error and "(24, " in error
    (run / "cut.pth").write_bytes((run / "model_final.pth").read_bytes()[:1000])
    assert "cut.pth" in command("eval", "--weights", run / "cut.pth", code=2)


def test_shapes_draws_the_extra_splits(tmp_path, command, monkeypatch):
    monkeypatch.setitem(SPECS, "demo", tiny_shapes.SPEC)
    said = command("shapes", "--root", tmp_path, "--split", "tune", "balanced")
    assert str(tmp_path / "tiny_balanced") in said
    assert all((tmp_path / f"tiny_{split}" / f"{split}.json").is_file() for split in ("tune", "balanced"))


def test_shapes_draws_any_other_set(tmp_path, command):
    words = ["shapes", "--root", tmp_path, "--workers", "1"]
    options = "name mine image_size 32 train_images 102 val_images 2 num_classes 4 num_rare 1 num_common 2"
    command(*words, *options.split(), "max_image_frequency", "1.0")
    assert (tmp_path / "mine" / "train.json").exists()
    for wrong, message in (
        ("image_size 32", "another name"),
        ("size 32", "one of name, image"),
        ("seed x", "expected int"),
    ):
        assert message in command(*words, *wrong.split(), code=2)


def test_study_passes_on_its_flags_and_prints_the_tables(monkeypatch, tmp_path, command):
    from rio.study import result, runner

    said = {}

    def run_study(plan, folder, **words):
        said.update(words, name=plan.name, folder=folder)
        return SimpleNamespace(result="the result")

    monkeypatch.setattr(runner, "run_study", run_study)
    monkeypatch.setattr(result, "format_result", "the tables of {}".format)
    plan = tiny_shapes.DEMO_CONFIG.parents[1] / "studies" / "demo.yaml"
    words = ["--processes", 4, "--num-gpus", 2, "--minutes", 9.5, "--output-dir", tmp_path, "SEED", 3]
    shown = command("study", plan, *words)
    limits = {"processes": 4, "gpus": 2, "minutes": 9.5, "options": ["SEED", "3"]}
    assert said == {**limits, "name": "demo", "folder": str(tmp_path)}
    assert "the tables of the result" in shown and f"Runs: {tmp_path}" in shown
    command("study", plan)
    assert (said["processes"], said["gpus"], said["minutes"]) == (None, None, None)
    assert said["folder"] == str(Path("output") / "demo")


@pytest.mark.parametrize("words", SHARED)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_on_several_gpus_waits_for_its_processes_to_save(monkeypatch, number, words):
    import detectron2.engine
    import torch

    saved = []

    def launch(_work, processes, *_given):
        assert processes == 2
        os.kill(os.getpid(), number)  # as a terminal and SLURM do, to all processes
        saved.append("model_0000009")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(detectron2.engine, "launch", launch)
    assert main([*words, *CONFIG, "--num-gpus", "2"]) == 128 + number and saved


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--output-dir", "x"], "--config-file: expected a config"),
        (["train", *CONFIG, "SOLVER.MAX_ITR", "1"], "SOLVER.MAX_ITR"),
        (["train", *CONFIG, "--train-json", "a.json"], "--train-json and --train-images: expected both"),
        *(([*words, *CONFIG, "--num-gpus", "64"], "--num-gpus 64") for words in SHARED),
        (["eval"], "expected --weights CHECKPOINT, or --results"),
        (["eval", "--weights", "none.pth"], "--weights none.pth: expected a checkpoint"),
        (["eval", "--protocol", "coco", "--backend", "lvis"], "--backend: expected hotcoco or pycocotools"),
        (["eval", "--results", "none.json"], "expected --gt JSON"),
        (["eval", "--results", "none.json", "--gt", "none.json"], "none.json"),
        (["predict", "--output", "OUT"], "expected images or folders"),
        (["predict", "none.jpg", "--weights", "w.pth", "--output", "OUT"], "none.jpg"),
        (["predict", ".", "--weights", "w.pth", "--output", "OUT"], "found none in this folder"),
        (["predict", "--results", "r.json", "--gt", "g.json", "--output", "OUT"], "--gt-images"),
        (["study", "none.yaml"], "none.yaml"),
    ],
)
def test_mistakes_get_one_message(command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in command(*words, code=2)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--reume"], ["fly"], [], ["info", "--x"], ["info", "x"], ["train", "--num-gpus", "0"],
        ["study", "s.yaml", "--num-gpus", "0"],
        *(["study", "s.yaml", "--minutes", minutes] for minutes in ("0", "nan", "inf", "ten")),
    ],
)  # fmt: skip
def test_unknown_flags_and_commands_are_usage_errors(capsys, words):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_info_prints_and_verbose_shows_the_traceback(command, capsys, tmp_path, monkeypatch):
    assert "detectron2" in command("info")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-v", "--config-file", "none.yaml"]) == 2
    assert "Traceback" in capsys.readouterr().err
