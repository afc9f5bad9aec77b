"""On a pretend GPU: all ways to train, evaluate and predict keep their tensors on one device, and rarely wait."""

import json
import math
import warnings
from collections import Counter
from functools import partial

import pytest
import torch

from rio.engine import telemetry
from rio.losses import LOSSES
from tests.support import tiny_shapes
from tests.support.bank import make, rows
from tests.support.pretend_cuda import pretend_cuda
from tests.support.steps import differing, lines_of, stopped_and_resumed

NO_TEST = ("DATASETS.TEST", "()")
AMP = ("SOLVER.AMP.ENABLED", True)
CASCADE = ("MODEL.ROI_HEADS.NAME", "RIOCascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
PER_CLASS = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False)
# Each loss with something else that training knows.
WITH = {
    "softmax": ("MODEL.RIO.CLASSIFIER", "cosine", "MODEL.RIO.REPLAY_LOSSES", "('cls', 'box')", *PER_CLASS),
    "sigmoid": ("MODEL.RIO.BANK_ENABLED", False, "MODEL.MASK_ON", False),
    "federated": ("MODEL.RIO.REPLAY_ABSENT_CLASSES", 1),
    "eql": ("MODEL.RIO.WRITE_MAX_PER_OBJECT", 1),
    "eqlv2": ("MODEL.RIO.BANK_SYNC", False),
    "seesaw": CASCADE,
    "balanced_softmax": (*AMP, "MODEL.RIO.CLASSIFIER", "cosine"),
    "bags": (*AMP, *CASCADE),
    "ecm": ("MODEL.RIO.BANK_DTYPE", "float16", "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True),
    "gumbel": (*AMP, "MODEL.RIO.BANK_DTYPE", "bfloat16"),  # AMP in bfloat16 too
    "droploss": ("INPUT.MASK_FORMAT", "bitmask", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"),
}
OWN_WAITS = {"sigmoid": 0, "seesaw": 6, "bags": 6}  # without a bank; three stages. Else 2: sample's and write's nonzero


@pytest.fixture
def gpu():
    """What the pretend GPU reports; at the end, that nothing swallowed what it refused."""
    with pretend_cuda() as report:
        yield report
    assert not report.errors


def waits_by_step(run, report) -> list[Counter]:
    """Train; what made the host wait in each step."""
    found, step = [], run.run_step

    def run_step() -> None:
        before = report.waits.copy()
        step()
        found.append(report.waits - before)

    run.run_step = run_step
    run.train()
    return found


def ours(waits: Counter) -> dict[str, int]:
    """Those of rio's own code, by line; not those that stand in for detectron2's."""
    return {site: times for (_, own, site), times in waits.items() if own == "rio" and "fewer_waits.py" not in site}


@pytest.mark.parametrize("name", LOSSES)
def test_training(name, gpu, prepared, tmp_path, monkeypatch):
    if name == "gumbel":  # detectron2 knows float16 only
        monkeypatch.setattr("torch.cuda.amp.autocast", partial(torch.autocast, "cuda", dtype=torch.bfloat16))
    run = prepared(tmp_path, *NO_TEST, "MODEL.RIO.CLS_LOSS", name, *WITH.get(name, ()), max_iter=2)
    assert run.cfg.MODEL.DEVICE == "cuda"
    first, second = (ours(waits) for waits in waits_by_step(run, gpu))
    assert sum(first.values()) <= sum(second.values()) == OWN_WAITS.get(name, 2), second
    assert all(value.is_cuda for key, value in run.model.state_dict().items() if "_extra_state" not in key)
    log = lines_of(tmp_path)[-1]
    assert all(math.isfinite(value) for key, value in log.items() if "loss" in key)


def test_a_whole_step_waits_40_times_at_most_and_telemetry_adds_nothing(gpu, prepared, tmp_path, monkeypatch):
    """detectron2's own parts: 81 with these three levels and two images, which are 84 with four."""
    monkeypatch.setattr(telemetry, "LOG_PERIOD", 2)
    first, second = waits_by_step(prepared(tmp_path, *NO_TEST, max_iter=2), gpu)
    assert sum(first.values()) <= sum(second.values()) <= 40, gpu.table()
    log = lines_of(tmp_path)[-1]
    assert log["memory_bank/stored"] > 0 and "fast_rcnn/cls_accuracy" in log


def test_a_shared_bank_waits_once_more(gpu, monkeypatch):
    """Two ranks: the number of rows that each brings has to be known."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather", lambda out, own: [part.copy_(own) for part in out])
    bank, step = make(sync=True, write_max_per_object=1).cuda(), [column.cuda() for column in rows([1, 2], [1, 4])]
    gpu.waits.clear()
    bank.write(*step)
    assert len(ours(gpu.waits)) == 2 and sum(gpu.waits.values()) == 2
    gpu.waits.clear()
    assert len(bank.sample(step[3])) == 4 and sum(gpu.waits.values()) == 1


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(gpu, prepared, tmp_path):
    options = [*NO_TEST, *AMP]
    straight = prepared(tmp_path / "straight", *options, max_iter=3)
    straight.train()
    second = stopped_and_resumed(prepared, tmp_path / "run", *options, at=1, max_iter=3)
    assert not differing(second.model.state_dict(), straight.model.state_dict())
    saved = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert all(type(value) is torch.Tensor and not value.is_cuda for value in saved["model"].values())
    assert saved["model"]["roi_heads.box_predictor.memory_bank.num_written"].sum() > 0


@pytest.mark.parametrize(
    "changes", [{}, {"replay_absent_classes": 1}, {"write_max_per_object": 1}, {"storage_dtype": torch.float16}]
)
def test_a_bank_holds_the_same_on_both_devices(changes, gpu):
    banks = [make(**changes), make(**changes).cuda()]
    for step in ([1, 2, 3, 4], [1, 1, 4, 6]), ([5, 6, 7], [4, 4, 1]):
        on_cpu = rows(*step)
        replays = [bank.sample(on_cpu[3].to(bank.features.device)) for bank in banks]
        assert torch.equal(replays[0].features, replays[1].features.cpu())
        for bank in banks:
            bank.write(*(column.to(bank.features.device) for column in on_cpu))
    states = [{key: value.cpu() for key, value in bank.state_dict().items()} for bank in banks]
    assert not differing(*states)


def test_the_commands(gpu, tiny_set, tmp_path, command):
    """A detector with AMP, evaluated, augmented, predicting; its features kept, trained on, and put back."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        command(*tiny_shapes.train_words(tiny_set, tmp_path / "run", *AMP, max_iter=2))
    assert not [str(w.message) for w in caught if "torch.cuda.amp" in str(w.message)], "every user of AMP would see it"
    weights = ["--weights", tmp_path / "run" / "model_final.pth"]
    augmented = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48,)"]
    command("eval", *weights, "--output-dir", tmp_path / "eval", *augmented)
    found = [json.loads((tmp_path / where).read_text()) for where in ("run/evaluation.json", "eval/evaluation.json")]
    assert found[0]["metrics"] == found[1]["metrics"] and (tmp_path / "eval" / "tta" / "evaluation.json").exists()
    command("predict", tiny_set / "val" / "000001.jpg", *weights, "--output", tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").iterdir())) == 1

    command("features", *weights, "--output", tmp_path / "features")
    config = ["--config-file", tmp_path / "run" / "config.yaml", "--output-dir", tmp_path / "classifier"]
    command("train", *config, "MODEL.RIO.FEATURES", tmp_path / "features")
    command("features", "--export", tmp_path / "classifier", "--output", tmp_path / "exported")
    command("eval", "--weights", tmp_path / "exported" / "model_final.pth")
    assert json.loads((tmp_path / "exported" / "eval" / "evaluation.json").read_text())["metrics"]["segm"]
