"""Training: setup, data order, checkpoints, exact resume, evaluation, errors that say what to change."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rio.config import ConfigError, load_config
from rio.data import names as datasets
from rio.data.images import ImageError, read_image
from rio.engine.errors import OUT_OF_MEMORY, Interrupted, TrainingError
from rio.engine.inference import Predictor, evaluate_model, load_model
from rio.engine.loader import build_training_loader
from rio.engine.setup import setup_inference, setup_training
from rio.engine.weights import CheckpointError
from rio.results.evaluation import Evaluation, evaluate
from rio.trainer import Trainer
from tests.support import tiny_shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_shapes.draw(tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def config(folder):
    """Config for a run in a folder, with options on top of the tiny ones."""

    def make(output: Path, *options: str, max_iter: int = 6):
        common = [*tiny_shapes.data_options(folder), *tiny_shapes.model_options(max_iter)]
        return load_config(tiny_shapes.DEMO_CONFIG, [*common, "OUTPUT_DIR", str(output), *map(str, options)])

    return make


@pytest.fixture
def prepared(config):
    """A trainer that is ready to train."""

    def make(output: Path, *options: str, resume: bool = False, max_iter: int = 6) -> Trainer:
        run = Trainer(setup_training(config(output, *options, max_iter=max_iter), resume=resume))
        run.resume_or_load(resume=resume)
        return run

    return make


def _stop_in(run: Trainer, iteration: int, action) -> None:
    step = run.run_step

    def run_step() -> None:
        if run.iter == iteration:
            action()
        step()

    run.run_step = run_step


def _same(a: dict, b: dict) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a)


# ---------------------------------------------------------------------------------------------- exact resume


@pytest.fixture(scope="module")
def straight(folder, tmp_path_factory) -> Trainer:
    """Six iterations without a break."""
    output = tmp_path_factory.mktemp("straight")
    options = [*tiny_shapes.data_options(folder), *tiny_shapes.model_options(), "OUTPUT_DIR", str(output)]
    run = Trainer(setup_training(load_config(tiny_shapes.DEMO_CONFIG, options)))
    run.resume_or_load(resume=False)
    run.train()
    return run


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(straight, prepared, tmp_path):
    first = prepared(tmp_path)
    _stop_in(first, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="after 3 of 6 iterations.*--resume") as stopped:
        first.train()
    assert stopped.value.exit_code == 130
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"

    # The second half is loaded by two processes, the first was by none, and the straight run was too.
    second = prepared(tmp_path, "DATALOADER.NUM_WORKERS", "2", resume=True)
    assert second.start_iter == 3
    second.train()

    ours, theirs = second.model.state_dict(), straight.model.state_dict()
    assert _same(ours, theirs), [key for key in ours if not torch.equal(ours[key], theirs[key])]
    bank = "roi_heads.box_predictor.memory_bank."
    assert ours[bank + "num_written"].sum() > 0, "the bank should hold something, or this test says little"
    states = [run.optimizer.state_dict()["state"] for run in (second, straight)]
    assert all(torch.equal(states[0][k]["momentum_buffer"], states[1][k]["momentum_buffer"]) for k in states[0])
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    iterations = [line["iteration"] for line in lines]
    assert iterations == sorted(set(iterations))
    results = [Path(run.cfg.OUTPUT_DIR, "instances_results.json").read_bytes() for run in (second, straight)]
    assert results[0] == results[1]


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """Three of them here; `python -m tests.support.kill_and_resume --points 20` is the same with more."""
    command = [sys.executable, "-m", "tests.support.kill_and_resume", "--points", "3", "--iterations", "16"]
    top = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=top, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"3 kills survived, \d+ runs compared with the uninterrupted one, 0 different", done.stdout)


def test_a_killed_run_forgets_what_came_after_its_checkpoint(straight, prepared, tmp_path):
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    first = prepared(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 2)
    _stop_in(first, 5, kill)
    with pytest.raises(Killed):
        first.train()
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 4, "total_lo')  # the line that a kill cuts off
    second = prepared(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 2, resume=True)
    assert second.start_iter == 4
    second.train()
    assert _same(second.model.state_dict(), straight.model.state_dict())
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert len({line["iteration"] for line in lines}) == len(lines)


def test_resuming_a_finished_run_only_evaluates(straight, prepared):
    output = Path(straight.cfg.OUTPUT_DIR)
    before = (output / "model_final.pth").read_bytes()
    again = prepared(output, resume=True)
    assert again.start_iter == again.max_iter == 6
    assert set(again.train()) == {"bbox", "segm"}
    assert (output / "model_final.pth").read_bytes() == before


def test_a_second_signal_stops_at_once_without_a_checkpoint(prepared, tmp_path):
    run = prepared(tmp_path)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    _stop_in(run, 1, twice)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        run.train()
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert not (tmp_path / "last_checkpoint").exists()
    assert signal.getsignal(signal.SIGTERM) is handler


# ---------------------------------------------------------------------------------------------- data


def test_augmentation_depends_on_the_position_alone(folder, config, tmp_path):
    cfg = setup_training(config(tmp_path))
    samples = build_training_loader(cfg).samples
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = [samples[position, 5]["image"] for position in range(8)]
    assert random.getstate() == states[0], "loading in this process must not move the model's random numbers"
    assert (np.random.get_state()[1] == states[1]).all() and torch.equal(torch.get_rng_state(), states[2])
    np.random.seed(2)
    again = [samples[position, 5]["image"] for position in reversed(range(8))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    different = {(tuple(image.shape), image.float().sum().item(), image[0, 0, 0].item()) for image in first}
    assert len(different) > 1, "one image shown at eight positions should not look the same each time"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_loaded_is_named(prepared, folder, tmp_path, workers):
    run = prepared(tmp_path / "run", "DATALOADER.NUM_WORKERS", workers)
    broken = tmp_path / "half.jpg"
    broken.write_bytes((folder / "train" / "000001.jpg").read_bytes()[:300])
    samples = run._loader.samples
    samples.records = [{**record, "file_name": str(broken)} for record in samples.records]
    with pytest.raises(TrainingError, match=r"^image .*half\.jpg \(image_id \d+\): could not be loaded") as error:
        run.train()
    assert "Traceback" not in str(error.value)


def test_each_object_keeps_its_identity(folder, config, tmp_path):
    """(image id, place in the record), whatever is cropped away, in every showing."""
    options = ["MODEL.MASK_ON", False, "INPUT.CROP.ENABLED", True]
    options += ["INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", "[0.5, 0.5]"]
    samples = build_training_loader(setup_training(config(tmp_path, *options))).samples
    shown = dropped = 0
    for position in range(40):
        record, instances = samples.records[position], samples[position, position]["instances"]
        image, place = instances.gt_object_ids.unbind(1)
        assert instances.gt_object_ids.dtype == torch.int64 and (image == record["image_id"]).all()
        classes = [annotation["category_id"] for annotation in record["annotations"]]
        assert [classes[p] for p in place.tolist()] == instances.gt_classes.tolist()
        assert place.tolist() == sorted(set(place.tolist()))
        shown, dropped = shown + len(place), dropped + len(classes) - len(place)
    assert shown and dropped, "the crops should keep some objects and lose some"
    nothing = {**samples.records[0], "annotations": []}
    assert samples.mapper(nothing)["instances"].gt_object_ids.shape == (0, 2)


# ---------------------------------------------------------------------------------------------- setup


def test_setup_fills_in_what_the_config_leaves_open(config, folder, tmp_path):
    cfg = setup_training(config(tmp_path, "SEED", -1))
    train = datasets.annotations_of(cfg.DATASETS.TRAIN[0])
    assert cfg.is_frozen() and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 6 and cfg.SEED >= 0
    assert list(cfg.MODEL.RIO.BANK_CLASS_IDS) == np.flatnonzero(train.image_count <= 30).tolist()
    assert cfg.MODEL.RIO.CLASS_FREQUENCY == "".join(train.frequency) == "fcccrr"
    stored = load_config(tmp_path / "config.yaml")
    assert stored.MODEL.RIO.CLASS_FREQUENCY == "fcccrr"
    assert stored.SEED == cfg.SEED and stored.MODEL.RIO.BANK_CLASS_IDS == cfg.MODEL.RIO.BANK_CLASS_IDS
    if not torch.cuda.is_available():
        assert cfg.MODEL.DEVICE == "cpu"
        assert "MODEL.DEVICE cuda -> cpu" in (tmp_path / "log.txt").read_text()
        assert not setup_training(config(tmp_path, "SOLVER.AMP.ENABLED", True)).SOLVER.AMP.ENABLED
        assert "SOLVER.AMP.ENABLED True -> False" in (tmp_path / "log.txt").read_text()


def test_a_seed_that_was_drawn_is_kept_on_resume_and_changes_are_said(config, straight, prepared, tmp_path):
    run = prepared(tmp_path, "SEED", -1, max_iter=1)
    run.checkpointer.save("model_0000000")
    again = setup_training(config(tmp_path, "SEED", -1, "SOLVER.BASE_LR", 0.5), resume=True)
    assert again.SEED == run.cfg.SEED
    assert "Resumed with another SOLVER.BASE_LR: 0.03 -> 0.5" in (tmp_path / "log.txt").read_text()


def test_a_run_of_an_earlier_version_is_resumed(prepared, tmp_path):
    """Its config has fewer keys, its bank (format 1) knows no objects; training goes on as it would have."""
    options = ["MODEL.RIO.BANK_MAX_IMAGE_COUNT", 1000, "DATASETS.TEST", "()"]
    whole = prepared(tmp_path / "whole", *options, max_iter=4)
    whole.train()
    run, name = tmp_path / "run", "roi_heads.box_predictor.memory_bank."
    first = prepared(run, *options, max_iter=4)
    _stop_in(first, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        first.train()
    state = torch.load(run / "model_0000001.pth", weights_only=True)
    del state["model"][name + "object_ids"]
    state["model"][name + "_extra_state"][0] = 1
    torch.save(state, run / "model_0000001.pth")
    newer = ("WRITE_MAX_PER_OBJECT", "REPLAY_ABSENT_CLASSES", "CLASS_FREQUENCY")
    lines = (run / "config.yaml").read_text().splitlines(keepends=True)
    (run / "config.yaml").write_text("".join(line for line in lines if not any(key in line for key in newer)))

    second = prepared(run, *options, resume=True, max_iter=4)
    assert second.start_iter == 2
    second.train()
    assert "Resumed with another" not in (run / "log.txt").read_text()
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    ids, known = ours.pop(name + "object_ids"), ours[name + "written_at"] >= 2
    assert (theirs.pop(name + "object_ids") >= 0).any() and _same(ours, theirs)
    assert known.any() and (ids[known] >= 0).all() and (ids[~known] == -1).all()
    prepared(run, *options, "MODEL.RIO.WRITE_MAX_PER_OBJECT", 1, resume=True)
    assert "Resumed with another MODEL.RIO.WRITE_MAX_PER_OBJECT: 0 -> 1" in (run / "log.txt").read_text()


def test_telemetry_is_written_and_told_again_by_a_resumed_run(prepared, tmp_path):
    """The variants on; the second half's lines are those of the uninterrupted run, time and memory apart."""
    options = ["MODEL.RIO.REPLAY_ORDER", "diverse", "MODEL.RIO.WRITE_MAX_PER_OBJECT", 2]
    options += ["MODEL.RIO.REPLAY_ABSENT_CLASSES", 1, "DATASETS.TEST", "()"]
    whole = prepared(tmp_path / "whole", *options, max_iter=40)
    whole.train()
    halves = prepared(tmp_path / "halves", *options, max_iter=40)
    _stop_in(halves, 30, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        halves.train()
    halves = prepared(tmp_path / "halves", *options, max_iter=40, resume=True)
    halves.train()
    assert _same(whole.model.state_dict(), halves.model.state_dict())

    def telemetry(folder: Path) -> list[tuple]:
        lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
        ours = [{k: v for k, v in line.items() if k[:5] in ("memor", "rois/")} for line in lines]
        return [line for line in ours if line]

    found = telemetry(tmp_path / "whole")
    assert found == telemetry(tmp_path / "halves") and len(found) == 2
    names = ("fill", "stored", "distinct_objects", "distinct_images", "replayed_per_foreground", "age")
    assert {f"memory_bank/{name}" for name in names} <= set(found[1])
    assert {"rois/share_r", "rois/share_f_with_replay"} <= set(found[1])


def test_schedule_follows_the_reference_world_size(config, tmp_path):
    cfg = setup_training(config(tmp_path, "SOLVER.REFERENCE_WORLD_SIZE", 2, "SOLVER.CHECKPOINT_PERIOD", 50))
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (1, 12, 0.015)
    assert load_config(tmp_path / "config.yaml").SOLVER.IMS_PER_BATCH == 1


def test_setup_errors_name_the_key_and_the_remedy(config, folder, straight, tmp_path):
    def error(kind: type, text: str, *options: str) -> None:
        with pytest.raises(kind, match=text):
            setup_training(config(tmp_path, *options))

    error(ConfigError, r"NUM_CLASSES: expected 6, .* found 80", "MODEL.ROI_HEADS.NUM_CLASSES", 80)
    two = repr((f"{folder}/train.json@{folder}/train",) * 2)
    error(ConfigError, r"DATASETS.TRAIN: expected one data set", "DATASETS.TRAIN", two)
    error(ConfigError, r"DATASETS.TRAIN: expected one data set", "DATASETS.TRAIN", "()")
    error(ConfigError, r"the rarest has 2 images.*BANK_ENABLED False", "MODEL.RIO.BANK_MAX_IMAGE_COUNT", 1)
    error(ConfigError, r"PRECISE_BN", "TEST.PRECISE_BN.ENABLED", True)
    with pytest.raises(TrainingError, match=r"found a checkpoint.*--resume"):
        setup_training(config(Path(straight.cfg.OUTPUT_DIR)))
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="expected a folder that can be written to"):
        setup_training(config(tmp_path / "file" / "run"))


def test_test_sets_must_have_the_training_sets_classes(config, folder, tmp_path):
    content = json.loads((folder / "val.json").read_text())
    content["categories"][0]["name"] = "something else"
    (tmp_path / "other.json").write_text(json.dumps(content))
    other = repr((f"{tmp_path}/other.json@{folder}/val",))
    with pytest.raises(ValueError, match="something else"):
        setup_training(config(tmp_path / "run", "DATASETS.TEST", other))


def test_box_only_files_want_masks_off(config, folder, tmp_path):
    content = json.loads((folder / "train.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    boxes = ["DATASETS.TRAIN", repr((f"{tmp_path}/boxes.json@{folder}/train",))]
    with pytest.raises(ConfigError, match="found boxes alone. Set MODEL.MASK_ON False"):
        setup_training(config(tmp_path / "run", *boxes))
    assert not setup_training(config(tmp_path / "run", *boxes, "MODEL.MASK_ON", False)).MODEL.MASK_ON


def test_inference_needs_no_training_set(config, straight, tmp_path):
    nowhere = "('gone/train.json@gone/images',)"
    cfg = setup_inference(config(tmp_path, "DATASETS.TRAIN", nowhere))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 6 and not cfg.MODEL.RIO.BANK_ENABLED
    with pytest.raises(ConfigError, match="NUM_CLASSES"):
        setup_inference(config(tmp_path, "DATASETS.TRAIN", nowhere, "DATASETS.TEST", "()"))
    neither = ["DATASETS.TRAIN", nowhere, "DATASETS.TEST", nowhere, "MODEL.ROI_HEADS.NUM_CLASSES", 6]
    with pytest.raises(FileNotFoundError, match="gone/train.json"):
        setup_inference(config(tmp_path, *neither))
    assert len(setup_inference(config(tmp_path, *neither), need_test_sets=False).DATASETS.TEST) == 0


# ---------------------------------------------------------------------------------------------- checkpoints


def test_a_broken_checkpoint_is_named_and_the_one_before_it_used(straight, prepared, tmp_path):
    first = prepared(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 2)
    _stop_in(first, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        first.train()
    newest = tmp_path / "model_0000004.pth"
    newest.write_bytes(newest.read_bytes()[:-1000])
    second = prepared(tmp_path, resume=True)
    assert second.start_iter == 4  # from model_0000003
    log = (tmp_path / "log.txt").read_text()
    assert "model_0000004.pth" in log and "Trying the one before it" in log
    second.train()
    assert _same(second.model.state_dict(), straight.model.state_dict())

    for path in tmp_path.glob("model_*.pth"):
        path.write_bytes(b"nothing of ours")
    with pytest.raises(CheckpointError, match="none of its checkpoints can be read"):
        prepared(tmp_path, resume=True)


def test_a_checkpoint_of_another_model_is_refused(straight, prepared):
    output = Path(straight.cfg.OUTPUT_DIR)
    with pytest.raises(CheckpointError, match=r"belongs to another model: .*\(24, .*\) in the file, \(32, "):
        prepared(output, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, resume=True)
    before = (output / "config.yaml").read_text()
    assert "FC_DIM" in before


def test_a_foreign_checkpoint_is_named_and_the_last_good_one_used(prepared, tmp_path):
    run = prepared(tmp_path)
    run.iter = 0  # TrainerBase sets it when training starts
    run.checkpointer.save("model_0000000")
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
    for file, why in zip(sorted(foreign), ("belongs to another model", "another layout", "weights alone")):
        assert any(file in line and why in line and "Trying" in line for line in log.splitlines()), file
    assert _same(again.model.state_dict(), run.model.state_dict())


def test_weights_alone_are_no_run_to_resume(straight, prepared, tmp_path):
    weights = Path(straight.cfg.OUTPUT_DIR, "model_best.pth")
    (tmp_path / "model_best.pth").write_bytes(weights.read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_best.pth")
    with pytest.raises(CheckpointError, match="found weights alone"):
        prepared(tmp_path, resume=True)
    fresh = prepared(tmp_path / "fresh", "MODEL.WEIGHTS", weights)
    learned = {k: v for k, v in fresh.model.state_dict().items() if "memory_bank" not in k}
    assert all(torch.equal(v, straight.model.state_dict()[k]) for k, v in learned.items())
    assert fresh.start_iter == 0


def test_a_full_disk_leaves_the_checkpoint_before(prepared, tmp_path, monkeypatch):
    run = prepared(tmp_path)
    run.checkpointer.save("model_0000000")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")}

    def fails(state, file) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(CheckpointError, match=r"could not be written.*No space left.*--resume"):
        run.checkpointer.save("model_0000000")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")} == before
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_no_room_for_the_note_of_the_last_checkpoint(prepared, tmp_path, monkeypatch, where):
    run = prepared(tmp_path)
    run.iter = 0
    run.checkpointer.save("model_0000000")

    def fails(*arguments) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, where, fails)
    with pytest.raises(CheckpointError, match=r"last_checkpoint: could not be written.*No space left.*--res"):
        run.checkpointer.tag_last_checkpoint("model_0000001.pth")
    with pytest.raises(CheckpointError, match=r"model_0000001.pth: could not be written.*No space left"):
        run.checkpointer.save("model_0000001")
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*.tmp"))
    assert prepared(tmp_path, resume=True).start_iter == 1


def test_a_file_system_that_takes_no_more_bytes(prepared, tmp_path):
    """The write itself fails, in the middle of torch's zip file: a limit of the process stands for the disk."""
    resource = pytest.importorskip("resource")
    run = prepared(tmp_path)
    run.iter = 0
    run.checkpointer.save("model_0000000")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"model_0000001.pth: could not be written.*--resume"):
            run.checkpointer.save("model_0000001")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000000.pth"]
    assert not list(tmp_path.glob(".*.tmp"))
    assert prepared(tmp_path, resume=True).start_iter == 1


def test_old_checkpoints_leave(prepared, tmp_path):
    run = prepared(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 1, "DATASETS.TEST", "()")
    assert run.train() == {}
    names = sorted(path.name for path in tmp_path.glob("model_*.pth"))
    assert names == ["model_0000002.pth", "model_0000003.pth", "model_0000004.pth", "model_final.pth"]


# ------------------------------------------------------------------------------------------ errors of a step


def test_a_loss_that_is_not_finite_says_what_to_change(prepared, tmp_path, monkeypatch, capsys):
    run = prepared(tmp_path)
    forward = run.model.forward
    monkeypatch.setattr(run.model, "forward", lambda x: {k: v * float("nan") for k, v in forward(x).items()})
    with pytest.raises(TrainingError, match=r"not finite at iteration 0 .*SOLVER.BASE_LR \(now 0.03\)"):
        run.train()
    assert "Traceback" not in capsys.readouterr().out
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize(
    "error",
    [
        OUT_OF_MEMORY("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_says_what_to_change(prepared, tmp_path, monkeypatch, error):
    run = prepared(tmp_path)

    def forward(x):
        raise error

    monkeypatch.setattr(run.model, "forward", forward)
    with pytest.raises(TrainingError, match=r"out of memory at iteration 0 with 2 images.*IMS_PER_BATCH"):
        run.train()


# ---------------------------------------------------------------------------------------------- evaluation


def test_evaluation_is_that_of_the_written_results(straight, folder):
    output = Path(straight.cfg.OUTPUT_DIR)
    stored = Evaluation.from_json(output / "evaluation.json")
    train, val = (datasets.annotations_of(f"{folder}/{s}.json@{folder}/{s}") for s in ("train", "val"))
    direct = evaluate(val.with_frequency_of(train), output / "instances_results.json")
    for kind in ("bbox", "segm"):
        assert stored.metrics[kind] == pytest.approx(direct.metrics[kind], nan_ok=True, rel=0, abs=0)
    assert stored.per_category["frequency"].tolist() == train.frequency.tolist()
    results = json.loads((output / "instances_results.json").read_text())
    assert {r["category_id"] for r in results} <= set(val.category_ids.tolist())
    last = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    assert last["iteration"] == 6 and last["bbox/AP"] == pytest.approx(stored.metrics["bbox"]["AP"])
    assert torch.load(output / "model_best.pth", weights_only=True).keys() == {"model"}


def test_the_best_weights_are_kept_also_over_a_resume(prepared, tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 2.0])
    score = staticmethod(lambda cfg, model: {"bbox": {"AP": next(scores), "APr": float("nan")}})
    monkeypatch.setattr(Trainer, "test", score)
    options = ["TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 2]
    first = prepared(tmp_path, *options)
    _stop_in(first, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        first.train()
    prepared(tmp_path, *options, resume=True).train()
    assert json.loads((tmp_path / "model_best.json").read_text()) == {"metric": "bbox/AP", "value": 3.0, "iteration": 4}
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)["model"]
    at_4 = torch.load(tmp_path / "model_0000003.pth", weights_only=True)["model"]
    assert _same(best, at_4)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_nothing_found_is_an_ap_of_zero_and_said(prepared, tmp_path):
    run = prepared(tmp_path, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0, max_iter=1)
    assert run.train()["bbox"]["AP"] == 0
    assert "found nothing at all" in (tmp_path / "log.txt").read_text()


def test_test_time_augmentation_is_evaluated_beside(straight, config, tmp_path):
    cfg = setup_inference(
        config(tmp_path, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48,)", "TEST.AUG.MAX_SIZE", 64)
    )
    model = load_model(cfg, str(Path(straight.cfg.OUTPUT_DIR, "model_final.pth")))
    found = evaluate_model(cfg, model, output_dir=str(tmp_path))
    name = cfg.DATASETS.TEST[0]
    assert list(found) == [name, f"{name} (tta)"]
    plain = Evaluation.from_json(Path(straight.cfg.OUTPUT_DIR) / "evaluation.json")
    for kind in plain.metrics:
        assert found[name].metrics[kind] == pytest.approx(plain.metrics[kind], nan_ok=True)
    assert (tmp_path / "tta" / "instances_results.json").exists()


def test_predictor_takes_rgb_and_answers_in_the_images_pixels(straight, config, folder, tmp_path):
    cfg = setup_inference(config(tmp_path))
    predictor = Predictor(cfg, str(Path(straight.cfg.OUTPUT_DIR, "model_final.pth")))
    image = read_image(str(folder / "val" / "000001.jpg"))
    assert image.shape == (48, 48, 3) and image.dtype == np.uint8
    found = predictor(np.kron(image, np.ones((2, 3, 1), np.uint8)))
    assert found.image_size == (96, 144) and found.pred_masks.shape[1:] == (96, 144)
    with pytest.raises(ImageError, match="expected a picture"):
        (tmp_path / "text.jpg").write_text("no picture")
        read_image(str(tmp_path / "text.jpg"))
    with pytest.raises(CheckpointError, match="--weights"):
        load_model(cfg)
