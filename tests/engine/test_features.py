"""Frozen features: true to the detector, complete or resumed, refused where they do not belong; training on them."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rio.config import load_config
from rio.data.names import annotations_of
from rio.engine import feature_extraction
from rio.engine.calibration_sweep import format_sweep, sweep
from rio.engine.feature_extraction import export, extract
from rio.engine.feature_store import FeatureError, FeatureStore
from rio.engine.feature_training import FrozenFeatureClassifier
from rio.engine.inference import evaluate_model, load_model
from rio.engine.setup import setup_inference
from rio.results.evaluation import Evaluation
from tests.support import tiny_shapes
from tests.support.steps import lines_of

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("features", "proposal_boxes", "gt_boxes", "gt_classes", "sizes", "counts")


@pytest.fixture(scope="module")
def weights(straight) -> str:
    """Of a detector trained for six iterations."""
    return str(Path(straight.cfg.OUTPUT_DIR) / "model_final.pth")


@pytest.fixture(scope="module")
def detector(straight, tiny_config):
    """Function: its config, ready for inference."""
    return lambda *options: setup_inference(tiny_config(Path("."), *options))


@pytest.fixture(scope="module")
def store(detector, weights, tmp_path_factory) -> FeatureStore:
    """Two views of the tiny set's features; to be read only."""
    return extract(detector("MODEL.RIO.FEATURE_VIEWS", 2), weights, str(tmp_path_factory.mktemp("features")))


@pytest.fixture(scope="module")
def trained(prepared, store, tmp_path_factory):
    """A classifier trained on them for twenty iterations."""
    run = prepared(tmp_path_factory.mktemp("classifier"), "MODEL.RIO.FEATURES", store.folder, max_iter=20)
    run.train()
    return run


def bytes_of(store: FeatureStore) -> dict[str, bytes]:
    return {str(p.relative_to(store.folder)): p.read_bytes() for p in sorted(store.folder.rglob("*.npy"))}


def test_the_detectors_own_classifier_on_features_detects_what_the_detector_detects(detector, weights, store, tmp_path):
    cfg = detector("MODEL.MASK_ON", False)
    full = evaluate_model(cfg, load_model(cfg, weights), output_dir=str(tmp_path / "full"))
    options = ["MODEL.RIO.FEATURES", store.folder, "MODEL.META_ARCHITECTURE", "FrozenFeatureClassifier"]
    cfg = detector(*options, "MODEL.MASK_ON", False)
    model = FrozenFeatureClassifier(cfg)
    model.roi_heads["box_predictor"].load_state_dict(store.predictor(), strict=False)
    on_features = evaluate_model(cfg, model.eval(), output_dir=str(tmp_path / "features"))
    found = [json.loads((tmp_path / f / "instances_results.json").read_bytes()) for f in ("full", "features")]
    assert len(found[0]) == len(found[1]) > 20
    for kind in ("bbox", "score"):  # float16 features
        values = [np.array(sorted((r["image_id"], np.round(r["score"], 3)) for r in own)) for own in found]
        np.testing.assert_allclose(*values, atol=2e-3, err_msg=kind)
    (one,), (two,) = full.values(), on_features.values()
    assert two.metrics["bbox"]["AP"] == pytest.approx(one.metrics["bbox"]["AP"], abs=0.5)


def test_rois_are_sampled_as_in_training(store, tiny_set):
    train = annotations_of(f"{tiny_set}/train.json@{tiny_set}/train")
    rois = store.open(store.about["sets"]["train"]["data"], train=True)
    n, background = train.num_images, train.num_classes
    assert rois.features.shape == (2 * n, 16, 24) and len(rois.missing) == 0
    for row in range(2 * n):
        count, classes = int(rois.counts[row]), np.array(rois.gt_classes[row])
        assert 0 < count <= 16 and (classes[:count] <= background).all()
        own = np.flatnonzero((train.annotation_image == row % n) & ~train.iscrowd)
        foreground = np.flatnonzero(classes[:count] < background)
        assert 0 < len(foreground) <= 4, "the true boxes are among the proposals; a quarter at most is foreground"
        assert set(classes[foreground].tolist()) <= set(train.annotation_class[own].tolist())
    views = np.array(rois.proposal_boxes[:n]), np.array(rois.proposal_boxes[n:])
    assert (views[0] != views[1]).any(axis=(1, 2)).mean() > 0.8, "augmented anew"


def test_an_interrupted_call_goes_on_and_ends_with_the_same_bytes(detector, weights, store, tmp_path, monkeypatch):
    cfg, calls = detector("MODEL.RIO.FEATURE_VIEWS", 2), []

    def stop_at_the_fifth_block(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    real = feature_extraction.training_rois
    monkeypatch.setattr(feature_extraction, "training_rois", stop_at_the_fifth_block)
    with pytest.raises(KeyboardInterrupt):
        extract(cfg, weights, str(tmp_path))
    begun = FeatureStore(tmp_path)
    with pytest.raises(FeatureError, match=r"expected all 204 images, 172 are missing. Fix: give the command that was"):
        begun.open(cfg.DATASETS.TRAIN[0], train=True)
    calls.clear()
    monkeypatch.setattr(feature_extraction, "training_rois", lambda *a: calls.append(1) or real(*a))
    assert bytes_of(extract(cfg, weights, str(tmp_path))) == bytes_of(store)
    assert len(calls) == 22, "26 blocks of 8, of which 4 were there"


def test_a_detector_of_detectron2s_own_serves(detector, weights, store, tmp_path, caplog):
    heads = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.RIO.CLASSIFIER", "linear", "MODEL.RIO.FEATURE_VIEWS", 2]
    assert bytes_of(extract(detector(*heads, "MODEL.RIO.BANK_ENABLED", False), weights, str(tmp_path))).keys()
    theirs, ours = (FeatureStore(folder).open("train", train=True) for folder in (tmp_path, store.folder))
    np.testing.assert_array_equal(theirs.gt_classes, ours.gt_classes)
    np.testing.assert_array_equal(theirs.features, ours.features)


@pytest.fixture
def by_two_processes(weights, tiny_set, tmp_path):
    """Function: `rio features` by torchrun, from a module; what it printed. The features are in tmp_path."""

    def run(module: str, *options: object) -> str:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", module]
        command += ["features", "--config-file", tiny_shapes.DEMO_CONFIG, "--weights", weights, "--output", tmp_path]
        command += [*tiny_shapes.data_options(tiny_set), *tiny_shapes.model_options(), *options]
        words = list(map(str, command))
        return subprocess.run(words, check=True, timeout=240, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout

    return run


@pytest.mark.slow
def test_two_processes_keep_the_same_features(store, by_two_processes, tmp_path):
    by_two_processes("rio", "MODEL.RIO.FEATURE_VIEWS", 2)
    assert bytes_of(FeatureStore(tmp_path)) == bytes_of(store)


@pytest.mark.slow
def test_two_processes_take_a_gpu_each(by_two_processes, tmp_path):
    said = by_two_processes("tests.support.pretend_gpus", "MODEL.DEVICE", "cuda").splitlines()
    assert sorted(line for line in said if line.startswith("rank")) == ["rank 0: cuda:0", "rank 1: cuda:1"]
    assert len([line for line in said if line.startswith("Features: ")]) == 1
    done = FeatureStore(tmp_path)
    for key, entry in done.about["sets"].items():
        assert (done.open(key, train=key == "train").counts > 0).all(), entry["data"]


def test_training_on_features_is_resumed_to_the_bit(trained, prepared, store, tmp_path):
    options = ["MODEL.RIO.FEATURES", store.folder, "SOLVER.CHECKPOINT_PERIOD", 4]
    stopped = prepared(tmp_path, *options, max_iter=20)
    stopped.max_iter = 5
    stopped.checkpointer.save = lambda name, save=stopped.checkpointer.save: name != "model_final" and save(name)
    stopped.train()
    resumed = prepared(tmp_path, *options, resume=True, max_iter=20)
    assert resumed.start_iter == 4
    resumed.train()
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_only_the_classifier_is_trained(trained, store):
    trained_state, theirs = trained.model.state_dict(), store.predictor()
    for name in ("weight", "bias"):
        assert torch.equal(trained_state[f"roi_heads.box_predictor.bbox_pred.{name}"], theirs[f"bbox_pred.{name}"])
    weight = trained_state["roi_heads.box_predictor.cls_score.weight"]
    assert weight.shape == theirs["cls_score.weight"].shape and not torch.equal(weight, theirs["cls_score.weight"])
    rows = lines_of(trained.cfg.OUTPUT_DIR)
    assert "total_loss" in rows[0] and "loss_box_reg" not in rows[0]
    assert rows[-1]["bbox/AP"] >= 0 and "segm/AP" not in rows[-1]
    assert 0 < rows[-2]["roi_head/num_fg_samples"] <= 4


def test_every_view_is_shown(store, tiny_set, trained):
    rois, loader = store.open(trained.cfg.DATASETS.TRAIN[0], train=True), trained.data_loader
    shown = {v: 0 for v in range(2)}
    for position in range(400):
        boxes = loader.read([(position, 7)]).proposals[0].proposal_boxes.tensor.numpy()
        shown[next(v for v in range(2) if np.array_equal(boxes, rois.proposal_boxes[7 + 102 * v][: len(boxes)]))] += 1
    assert 150 < shown[0] < 250


def test_a_trained_classifier_is_put_back_into_its_detector(trained, detector, weights, tmp_path):
    path = export(trained.cfg.OUTPUT_DIR, tmp_path / "exported")
    cfg = setup_inference(load_config(path.with_name("config.yaml")))
    model = load_model(cfg, str(path))
    (found,) = evaluate_model(cfg, model, output_dir=str(tmp_path / "eval")).values()
    assert found.metrics["bbox"]["AP"] == pytest.approx(lines_of(trained.cfg.OUTPUT_DIR)[-1]["bbox/AP"], abs=0.5)
    assert "segm" in found.metrics
    before, after = (load_model(detector(), str(p)).state_dict() for p in (weights, path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.cls_score.bias"}


def test_a_run_is_judged_by_another_protocol_too(trained, tmp_path, command):
    run = shutil.copytree(trained.cfg.OUTPUT_DIR, tmp_path / "run")
    command("train", "--config-file", run / "config.yaml", "--output-dir", run, "--resume", "--protocol", "lvis_fixed")
    plain, fixed = (Evaluation.from_json(run / folder / "evaluation.json") for folder in ("", "lvis_fixed"))
    assert "AP-fixed" in fixed.info["protocol"] and "AP-fixed" not in plain.info["protocol"]
    assert plain.info["predictions"] == 60 < fixed.info["predictions"], "10 an image, and all"
    assert not (run / "lvis_fixed" / "instances_results.json").exists(), "they may be large"


def test_a_classifier_alone_says_so_where_a_detector_is_needed(trained):
    with pytest.raises(FeatureError, match=r"found a picture.*Fix: python -m rio features --export RUN"):
        trained.model.eval()([{"image": torch.zeros(3, 48, 48)}])


def test_what_does_not_belong_is_refused(
    detector, weights, store, prepared, trained, straight, tmp_path, other_weights
):
    with pytest.raises(FeatureError, match=r"sha256: expected .*Fix: choose another --output, or delete"):
        extract(detector("MODEL.RIO.FEATURE_VIEWS", 2), other_weights, str(store.folder))
    with pytest.raises(FeatureError, match=r"views: expected 3, as now asked for, found 2"):
        extract(detector("MODEL.RIO.FEATURE_VIEWS", 3), weights, str(store.folder))
    with pytest.raises(FeatureError, match=r"expected a folder with features.json.*Fix: python -m rio features"):
        prepared(tmp_path, "MODEL.RIO.FEATURES", tmp_path / "none")
    val = trained.cfg.DATASETS.TEST[0]
    with pytest.raises(FeatureError, match=r"expected the data they were taken from .*found 6 images"):
        prepared(tmp_path, "MODEL.RIO.FEATURES", store.folder, "DATASETS.TRAIN", repr((val,)))
    copy = shutil.copytree(store.folder, tmp_path / "copy")
    about = json.loads((copy / "features.json").read_text())
    del about["sets"][val]
    (copy / "features.json").write_text(json.dumps(about))
    with pytest.raises(FeatureError, match=r"val, found features of .*train. Fix: add them: python -m rio features"):
        prepared(tmp_path, "MODEL.RIO.FEATURES", copy)
    with pytest.raises(ValueError, match=r"MODEL.RIO.FEATURES: expected MODEL.ROI_HEADS.NAME RIOROIHeads"):
        prepared(tmp_path, "MODEL.RIO.FEATURES", store.folder, "MODEL.ROI_HEADS.NAME", "RIOCascadeROIHeads")
    with pytest.raises(FeatureError, match="expected the folder of a training on features, found one that was trained"):
        export(straight.cfg.OUTPUT_DIR, tmp_path / "exported")


@pytest.fixture
def other_weights(weights, tmp_path) -> str:
    state = torch.load(weights, weights_only=True)["model"]
    state["roi_heads.box_head.fc2.bias"] += 1
    path = tmp_path / "other.pth"
    torch.save({"model": state}, path)
    return str(path)


def test_a_test_set_without_features_is_named(trained, tiny_set):
    with pytest.raises(FeatureError, match=r"train, found features of .*Fix: add them: python -m rio features"):
        trained.model.test_images(f"{tiny_set}/train.json@{tiny_set}/train")


@pytest.fixture(scope="module")
def tuning(trained, detector, weights, store, tiny_set, tmp_path_factory) -> tuple[str, str]:
    """A set to choose on, whose objects are what the classifier detects in it: its name; a folder with its features."""
    root = tmp_path_factory.mktemp("tuning")
    shutil.copytree(tiny_set, root / "tiny")
    shutil.copytree(store.folder, root / "features")

    def keep(file: str) -> str:
        name = f"{root}/tiny/{file}@{root}/tiny/val"
        cfg = detector("MODEL.RIO.FEATURE_VIEWS", 2, "DATASETS.TEST", repr((name,)))
        extract(cfg, weights, str(root / "features"))
        return name

    cfg = with_options(trained, "MODEL.RIO.FEATURES", root / "features", "DATASETS.TEST", (keep("val.json"),))
    evaluate_model(cfg, load_model(cfg, f"{trained.cfg.OUTPUT_DIR}/model_final.pth"), output_dir=str(root))
    content = json.loads((root / "tiny" / "val.json").read_bytes())
    found = json.loads((root / "instances_results.json").read_bytes())
    content["annotations"] = [
        {"id": i + 1, "area": o["bbox"][2] * o["bbox"][3], "segmentation": [], **o} for i, o in enumerate(found)
    ]
    (root / "tiny" / "own.json").write_text(json.dumps(content))
    return keep("own.json"), str(root / "features")


def with_options(run, *options):
    """The config of a run with options, ready for inference."""
    return setup_inference(load_config(f"{run.cfg.OUTPUT_DIR}/config.yaml", list(map(str, options))))


def test_a_calibration_in_a_sweep_is_what_it_is_alone(trained, tuning, tmp_path):
    (name, features), weights = tuning, f"{trained.cfg.OUTPUT_DIR}/model_final.pth"
    options = ["MODEL.RIO.FEATURES", features, "DATASETS.TEST", (name,), "MODEL.RIO.CALIBRATION"]
    cfg = with_options(trained, *options, "fracal")
    tried = [("norcal", 0.0), ("norcal", 0.1), ("fracal", 2.0), ("tau_norm", 1.5)]
    rows = sweep(cfg, weights, tried)
    assert [row[:2] for row in rows] == [("none", 0.0), *tried]
    for method, strength, found in rows[1:]:
        alone = with_options(trained, *options, method, "MODEL.RIO.CALIBRATION_STRENGTH", strength)
        expected = evaluate_model(alone, load_model(alone, weights), output_dir=str(tmp_path))[name]
        assert found.per_category.equals(expected.per_category) and found.info["images"] == expected.info["images"]
    ap = [evaluation.metrics["bbox"]["AP"] for _, _, evaluation in rows]
    assert ap[0] == ap[1] == 100 and 0 < max(ap[2:]) < 100
    lines = format_sweep(rows, name).splitlines()
    assert lines[1].split()[:2] == ["none", f"{ap[0]:.2f}"] and lines[3].split()[:2] == ["norcal=0.1", f"{ap[2]:.2f}"]
    assert sum(line.endswith("*") for line in lines) == 3, "the best of each method"
    assert f"(box AP {max(ap):.2f}" in lines[-1]


def test_calibrations_are_chosen_on_other_images_than_the_reported_ones(trained, tuning, tiny_set, weights, command):
    name, features = tuning
    words = ["eval", "--weights", f"{trained.cfg.OUTPUT_DIR}/model_final.pth", "--calibration"]
    on = ["--tune-on", name]
    shown = command(*words, "norcal=0.2", "--calibration", "norcal", *on, "MODEL.RIO.FEATURES", features)
    assert "\nnorcal=0.2 " in shown and "\nnorcal=0.6 " in shown and f"Best on {name}" in shown
    reported = ["--tune-on", f"{tiny_set}/val.json@{tiny_set}/val"]
    for wrong, message in (
        ([*words, "norcal=0.2,0.6"], "expected --calibration METHOD=STRENGTH,... and --tune-on DATA"),
        ([*words, "norcal=0.2,0.6", *reported], "expected other images than those of"),
        ([*words, "norcal=0.2,x", *on], "with strengths >= 0, found 'norcal=0.2,x'"),
        ([*words, "norcal", *on], "Fix: add them: python -m rio features"),
        ([*words, "norca", *on], "did you mean 'norcal'"),
        (["eval", "--weights", weights, "--calibration", "norcal", *on], "expected a classifier trained on"),
        (["eval", "--results", "r.json", "--gt", "g.json", *on], "found --results"),
    ):
        assert message in command(*wrong, code=2)


@pytest.mark.parametrize(
    ("room", "says"),
    [
        (0, r"GB of disk for 102 images.*No space left.*lower MODEL.ROI_HEADS.BATCH_SIZE"),
        (150_000, r"GB of disk for 6 images.*No space left.*lower MODEL.RPN.POST_NMS_TOPK_TEST"),  # train: 139 kB
    ],
)
def test_a_full_disk_leaves_nothing_half_written(detector, weights, tmp_path, monkeypatch, room, says):
    reserve, taken = os.posix_fallocate, []

    def on_a_small_disk(file, start, size):
        taken.append(size)
        if sum(taken) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(file, start, size)

    monkeypatch.setattr(os, "posix_fallocate", on_a_small_disk)
    with pytest.raises(FeatureError, match=says):
        extract(detector(), weights, str(tmp_path))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()] and FeatureStore(tmp_path).about["sets"] == {}


def test_a_cascade_is_refused(detector, tiny_config, tmp_path):
    from detectron2.modeling import build_model

    cfg = detector("MODEL.ROI_HEADS.NAME", "RIOCascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "cascade.pth")
    with pytest.raises(FeatureError, match="expected one box head .*a cascade has several"):
        extract(cfg, str(tmp_path / "cascade.pth"), str(tmp_path / "features"))
