"""Training: a run that was stopped, killed or resumed ends as an uninterrupted one; errors say what to change."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from rio.engine.errors import Interrupted, TrainingError, is_out_of_memory
from rio.engine.setup import setup_training
from rio.trainer import Trainer
from tests.support.steps import differing, do_in, lines_of, stopped_and_resumed, train_until

BANK = "roi_heads.box_predictor.memory_bank."


# ----------------------------------------------------------------------------------------------- exact resume


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(straight, prepared, tmp_path):
    stopped = train_until(prepared(tmp_path), 2)
    assert re.search(r"after 3 of 6 iterations.*--resume", str(stopped)) and stopped.exit_code == 130
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"

    # Two processes load the second half, none the first, and none the straight run.
    second = prepared(tmp_path, "DATALOADER.NUM_WORKERS", 2, resume=True)
    assert second.start_iter == 3
    second.train()
    ours = second.model.state_dict()
    assert not differing(ours, straight.model.state_dict())
    assert ours[BANK + "num_written"].sum() > 0, "the bank should hold something, or this test says little"
    states = [run.optimizer.state_dict()["state"] for run in (second, straight)]
    assert all(torch.equal(states[0][k]["momentum_buffer"], states[1][k]["momentum_buffer"]) for k in states[0])
    iterations = [line["iteration"] for line in lines_of(tmp_path)]
    assert iterations == sorted(set(iterations))
    assert [line["iteration"] for line in lines_of(tmp_path) if "resumed" in line] == [3]
    results = [Path(run.cfg.OUTPUT_DIR, "instances_results.json").read_bytes() for run in (second, straight)]
    assert results[0] == results[1]


@pytest.mark.slow
def test_killed_at_random_moments():
    """Three of them here; `python -m tests.support.kill_and_resume --points 20` is the same with more."""
    command = [sys.executable, "-m", "tests.support.kill_and_resume", "--points", "3", "--iterations", "16"]
    top = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=top, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"3 kills survived, \d+ runs compared with the uninterrupted one, 0 different", done.stdout)


def test_a_killed_run_forgets_what_came_after_its_checkpoint(straight, prepared, tmp_path):
    def kill() -> None:
        raise SystemExit

    first = prepared(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 2)
    do_in(first, 5, kill)
    with pytest.raises(SystemExit):
        first.train()
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 4, "total_lo')  # the line that a kill cuts off
    second = prepared(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 2, resume=True)
    assert second.start_iter == 4
    second.train()
    assert not differing(second.model.state_dict(), straight.model.state_dict())
    iterations = [line["iteration"] for line in lines_of(tmp_path)]
    assert len(set(iterations)) == len(iterations)


def test_resuming_a_finished_run_only_evaluates(straight, prepared, tmp_path):
    run = shutil.copytree(straight.cfg.OUTPUT_DIR, tmp_path / "run")
    before = (run / "model_final.pth").read_bytes()
    again = prepared(run, resume=True)
    assert again.start_iter == again.max_iter == 6
    assert set(again.train()) == {"bbox", "segm"}
    assert (run / "model_final.pth").read_bytes() == before


def test_a_signal_to_all_processes_of_a_job_stops_none_of_the_loaders(prepared, tmp_path):
    def signal_all() -> None:
        for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)  # a loader that dies would be noticed

    run = prepared(tmp_path, "DATALOADER.NUM_WORKERS", 1)
    do_in(run, 1, signal_all)
    with pytest.raises(Interrupted, match="after 2 of 6"):
        run.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not multiprocessing.active_children()


def test_a_second_signal_stops_at_once_without_a_checkpoint(prepared, tmp_path):
    run = prepared(tmp_path)
    do_in(run, 1, lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        run.train()
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert not (tmp_path / "last_checkpoint").exists()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_run_of_an_earlier_version_is_resumed(prepared, tmp_path):
    """Its config has other keys, its bank (format 2) knows the objects; training goes on as it would have."""
    options = ["MODEL.RIO.BANK_MAX_IMAGE_COUNT", 1000, "DATASETS.TEST", "()"]
    whole = prepared(tmp_path / "whole", *options, max_iter=4)
    whole.train()
    run = tmp_path / "run"
    train_until(prepared(run, *options, max_iter=4), 1)
    state = torch.load(run / "model_0000001.pth", weights_only=True)
    state["model"][BANK + "object_ids"] = torch.ones(*state["model"][BANK + "written_at"].shape, 2, dtype=torch.int64)
    state["model"][BANK + "_extra_state"][0] = 2
    torch.save(state, run / "model_0000001.pth")
    config = yaml.safe_load((run / "config.yaml").read_text())
    for newer in (
        "WRITE_MAX_PER_OBJECT", "REPLAY_ABSENT_CLASSES", "CLASS_FREQUENCY", "CLS_LOSS", "IMAGE_COUNT", "NUM_IMAGES",
    ):  # fmt: skip
        del config["MODEL"]["RIO"][newer]
    config["MODEL"]["RIO"]["REPLAY_ORDER"] = "newest"
    (run / "config.yaml").write_text(yaml.safe_dump(config))

    second = prepared(run, *options, resume=True, max_iter=4)
    assert second.start_iter == 2
    second.train()
    assert "Resumed with another" not in (run / "log.txt").read_text()
    assert whole.model.state_dict()[BANK + "num_written"].any()
    assert not differing(second.model.state_dict(), whole.model.state_dict())


def test_telemetry_is_written_and_repeated_by_a_resumed_run(prepared, tmp_path):
    """The variants on; the second half's lines are those of the uninterrupted run, except for time and memory."""
    options = ["MODEL.RIO.WRITE_MAX_PER_OBJECT", 2, "MODEL.RIO.REPLAY_ABSENT_CLASSES", 1, "DATASETS.TEST", "()"]
    whole = prepared(tmp_path / "whole", *options, max_iter=20)
    whole.train()
    halves = stopped_and_resumed(prepared, tmp_path / "halves", *options, at=14, max_iter=20)
    assert not differing(whole.model.state_dict(), halves.model.state_dict())
    lines = [
        [{k: v for k, v in line.items() if k.startswith(("memory_bank/", "rois/"))} for line in lines_of(folder)]
        for folder in (tmp_path / "whole", tmp_path / "halves")
    ]
    found, again = ([line for line in one if line] for one in lines)
    assert found == again and len(found) == 1  # every 20 steps
    names = ("fill", "stored", "replayed_per_foreground", "age")
    assert {f"memory_bank/{name}" for name in names} | {"rois/share_r", "rois/share_f_with_replay"} <= set(found[0])


def test_a_set_of_one_class_trains(prepared, tiny_set, tmp_path):
    for split in ("train", "val"):
        data = json.loads((tiny_set / f"{split}.json").read_text())
        data["categories"] = data["categories"][:1]
        data["annotations"] = [a for a in data["annotations"] if a["category_id"] == data["categories"][0]["id"]]
        for image in data["images"]:
            image["neg_category_ids"] = image["not_exhaustive_category_ids"] = []
        (tmp_path / f"{split}.json").write_text(json.dumps(data))
    train, val = (repr((f"{tmp_path}/{s}.json@{tiny_set}/{s}",)) for s in ("train", "val"))
    options = ["DATASETS.TRAIN", train, "DATASETS.TEST", val, "MODEL.RIO.BANK_ENABLED", False]
    assert prepared(tmp_path / "run", *options, max_iter=1).train()["bbox"]["AP"] >= 0


def test_a_run_in_float32_goes_on_in_mixed_precision(straight, tiny_config, tmp_path):
    run = shutil.copytree(straight.cfg.OUTPUT_DIR, tmp_path / "run")
    cfg = setup_training(tiny_config(run), resume=True)
    cfg.defrost()
    cfg.SOLVER.AMP.ENABLED = True  # which setup refuses without a GPU
    again = Trainer(cfg)
    again.resume_or_load(resume=True)
    assert again.start_iter == 6 and "grad_scaler" in again.state_dict()["_trainer"]


# --------------------------------------------------------------------------------------------- errors of a step


def test_a_loss_that_is_not_finite_says_what_to_change(prepared, tmp_path, monkeypatch):
    run = prepared(tmp_path)
    forward = run.model.forward
    monkeypatch.setattr(run.model, "forward", lambda x: {k: v * float("nan") for k, v in forward(x).items()})
    with pytest.raises(TrainingError, match=r"not finite at iteration 0 .*SOLVER.BASE_LR \(now 0.03\)"):
        run.train()
    assert not (tmp_path / "evaluation.json").exists()


def test_memory_that_runs_out_says_what_to_change(prepared, tmp_path, monkeypatch, capsys):
    texts = [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ]
    assert all(is_out_of_memory(RuntimeError(text)) for text in texts)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))

    def forward(images: list) -> None:
        raise RuntimeError(texts[-1])

    run = prepared(tmp_path)
    monkeypatch.setattr(run.model, "forward", forward)
    with pytest.raises(TrainingError, match=r"out of memory at iteration 0 with 2 images.*IMS_PER_BATCH"):
        run.train()
    assert "Traceback" not in capsys.readouterr().out, "an error of ours is shown by its own sentence"
