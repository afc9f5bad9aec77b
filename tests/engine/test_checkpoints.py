"""Checkpoints: which one a run resumes from, which ones stay, and disks without room."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from rio.engine.weights import CheckpointError
from rio.trainer import Trainer
from tests.support.steps import differing, train_until


def saved(prepared, folder: Path) -> Trainer:
    """A trainer that has saved itself before its first step."""
    run = prepared(folder)
    run.iter = 0  # TrainerBase sets it when training starts
    run.checkpointer.save("model_0000000")
    return run


def test_a_broken_checkpoint_is_named_and_the_one_before_it_used(straight, prepared, tmp_path):
    train_until(prepared(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 2), 4)
    newest = tmp_path / "model_0000004.pth"
    newest.write_bytes(newest.read_bytes()[:-1000])
    second = prepared(tmp_path, resume=True)
    assert second.start_iter == 4  # from model_0000003
    log = (tmp_path / "log.txt").read_text()
    assert "model_0000004.pth" in log and "Trying the one before it" in log
    second.train()
    assert not differing(second.model.state_dict(), straight.model.state_dict())

    for path in tmp_path.glob("model_*.pth"):
        path.write_bytes(b"nothing of ours")
    with pytest.raises(CheckpointError, match="none of its checkpoints can be read"):
        prepared(tmp_path, resume=True)


def test_a_checkpoint_of_another_model_is_refused(straight, prepared, tmp_path):
    run = shutil.copytree(straight.cfg.OUTPUT_DIR, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"belongs to another model: .*\(24, .*\) in the file, \(32, "):
        prepared(run, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, resume=True)


def test_a_foreign_checkpoint_is_named_and_the_last_good_one_used(prepared, tmp_path):
    run = saved(prepared, tmp_path)
    state = torch.load(tmp_path / "model_0000000.pth", weights_only=True)
    name = next(name for name in state["model"] if name.endswith("box_predictor.bbox_pred.bias"))
    foreign = {
        "model_0000001.pth": {**state, "model": {**state["model"], name: torch.zeros(3)}},
        "model_0000002.pth": {**state, "trainer": {"iteration": 2}},
        "model_0000003.pth": {"model": state["model"]},
    }
    for file, content in foreign.items():
        torch.save(content, tmp_path / file)
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    again = prepared(tmp_path, resume=True)
    assert again.start_iter == 1
    log = (tmp_path / "log.txt").read_text()
    for file, why in zip(sorted(foreign), ("belongs to another model", "another layout", "weights only")):
        assert any(file in line and why in line and "Trying" in line for line in log.splitlines()), file
    assert not differing(again.model.state_dict(), run.model.state_dict())


def test_weights_are_no_run_to_resume(straight, prepared, tmp_path):
    weights = Path(straight.cfg.OUTPUT_DIR, "model_best.pth")
    assert torch.load(weights, weights_only=True).keys() == {"model"}
    (tmp_path / "model_best.pth").write_bytes(weights.read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_best.pth")
    with pytest.raises(CheckpointError, match="found weights only"):
        prepared(tmp_path, resume=True)
    fresh = prepared(tmp_path / "fresh", "MODEL.WEIGHTS", weights)
    learned = {k: v for k, v in fresh.model.state_dict().items() if "memory_bank" not in k}
    assert all(torch.equal(v, straight.model.state_dict()[k]) for k, v in learned.items())
    assert fresh.start_iter == 0


@pytest.fixture
def full_disk(request, monkeypatch):
    """Function: from now on writing a file fails, at the moment that the test's parameter names."""

    def fails(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    def fill() -> None:
        if request.param == "limit":  # of the process, for that of the disk: torch's zip file fails in the middle
            resource = pytest.importorskip("resource")
            before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            request.addfinalizer(lambda: signal.signal(signal.SIGXFSZ, handler))
            request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before))
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        else:
            monkeypatch.setattr(os, request.param, fails)

    return fill


@pytest.mark.parametrize("full_disk", ["fsync", "replace", "limit"], indirect=True)
def test_a_full_disk_leaves_the_checkpoint_before(prepared, tmp_path, full_disk, request):
    run = saved(prepared, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")}
    full_disk()
    with pytest.raises(CheckpointError, match=r"model_0000001.pth: could not be written.*--resume"):
        run.checkpointer.save("model_0000001")
    if request.node.callspec.params["full_disk"] != "limit":
        with pytest.raises(CheckpointError, match=r"last_checkpoint: could not be written.*No space left.*--res"):
            run.checkpointer.tag_last_checkpoint("model_0000001.pth")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")} == before
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    assert not list(tmp_path.glob(".*.tmp"))


def test_old_checkpoints_leave_over_a_resume_too(prepared, tmp_path):
    options = ["SOLVER.CHECKPOINT_PERIOD", 1, "DATASETS.TEST", "()"]
    train_until(prepared(tmp_path, *options), 3)
    assert prepared(tmp_path, *options, resume=True).train() == {}
    names = sorted(path.name for path in tmp_path.glob("model_*.pth"))
    assert names == ["model_0000002.pth", "model_0000003.pth", "model_0000004.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_the_best_weights_are_kept_over_a_resume_too(prepared, tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 2.0])
    score = staticmethod(lambda cfg, model: {"bbox": {"AP": next(scores), "APr": float("nan")}})
    monkeypatch.setattr(Trainer, "test", score)
    options = ["TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 2]
    train_until(prepared(tmp_path, *options), 4)
    prepared(tmp_path, *options, resume=True).train()
    assert json.loads((tmp_path / "model_best.json").read_text()) == {"metric": "bbox/AP", "value": 3.0, "iteration": 4}
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)["model"]
    assert not differing(best, torch.load(tmp_path / "model_0000003.pth", weights_only=True)["model"])
