"""Weights of the reference, the model zoo and our own load; what does not fit or could run code is named."""

import doctest
import io
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

import rio.roi_heads  # noqa: F401  (registers the heads)
from rio.config import load_config
from rio.engine import weights
from rio.engine.weights import CheckpointError, load_weights, read_weights

SMALL = """
MODEL:
  DEVICE: cpu
  MASK_ON: True
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res2, res3]}
  FPN: {IN_FEATURES: [res2, res3], OUT_CHANNELS: 8}
  RPN: {IN_FEATURES: [p2, p3, p4]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128]]}
  ROI_HEADS: {IN_FEATURES: [p2, p3], NUM_CLASSES: 7}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 3}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 4}
  RIO: {BANK_CLASS_IDS: [1, 2], SLOTS_PER_CLASS: 4, REPLAY_PER_CLASS: 2}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Function: a whole detector, tiny (ResNet-18 FPN), with one key changed."""
    file = tmp_path_factory.mktemp("config") / "small.yaml"
    file.write_text(SMALL)
    return lambda *options: build_model(load_config(file, list(options)))


@pytest.fixture(scope="module")
def reference_file(small, tmp_path_factory):
    """A checkpoint as the reference saves it: detectron2 v0.3's layout, `cls_score.L`, no bank."""
    torch.manual_seed(11)
    model = small("MODEL.RIO.BANK_ENABLED", False)
    state = {
        name.replace("cls_score.weight_", "cls_score.L.weight_"): value for name, value in model.state_dict().items()
    }
    assert {n for n in state if ".L." in n} == {f"roi_heads.box_predictor.cls_score.L.weight_{x}" for x in "gv"}
    for size in range(5):  # saved by detectron2 before v0.4
        state[f"proposal_generator.anchor_generator.cell_anchors.{size}"] = torch.zeros(3, 4)
    path = tmp_path_factory.mktemp("reference") / "model_final.pth"
    torch.save({"model": state, "iteration": 89999, "optimizer": {"param_groups": [{"lr": 0.1}]}}, path)
    return path, model


def test_a_checkpoint_of_the_reference(small, reference_file):
    path, original = reference_file
    torch.manual_seed(12)
    model = small()
    report = load_weights(model, path)
    state = model.state_dict()
    for name, value in original.state_dict().items():
        assert torch.equal(state[name], value), name
    assert report.missing == [] and report.unexpected == [] and report.skipped == {}
    assert "roi_heads.box_predictor.cls_score.weight_g" in report.loaded
    assert str(len(report.loaded)) in str(report)


def test_conversion_leaves_all_else():
    assert doctest.testmod(weights).failed == 0
    state = {"cls_score.L.weight_v": 1, "a.cls_score.Labels.weight_g": 2, "b.cls_score.weight": 3, "cls_score.L.x": 4}
    converted = {"cls_score.weight_v" if name == "cls_score.L.weight_v" else name: n for name, n in state.items()}
    assert weights.convert_reference_state_dict(state) == converted


def test_our_own_with_and_without_its_bank(small, tmp_path):
    model = small()
    bank = model.roi_heads.box_predictor.memory_bank
    bank.write(torch.ones(1, 16), torch.ones(1, 4), torch.ones(1, 4), torch.tensor([2]))
    DetectionCheckpointer(model, str(tmp_path)).save("ours")

    fresh = small()
    bank = fresh.roi_heads.box_predictor.memory_bank
    load_weights(fresh, tmp_path / "ours.pth")
    assert bank.num_written.sum() == 0  # a new start has a bank of its own
    load_weights(fresh, tmp_path / "ours.pth", bank=True)
    assert bank.num_written.tolist() == [0, 1] and bank.iteration == 1

    without = small("MODEL.RIO.BANK_ENABLED", False)  # as for inference
    assert load_weights(without, tmp_path / "ours.pth").unexpected == []

    state = torch.load(tmp_path / "ours.pth", weights_only=True)  # of an earlier version: it knew the objects
    name = "roi_heads.box_predictor.memory_bank."
    state["model"][name + "object_ids"] = torch.full((2, bank.slots_per_class, 2), -1)
    state["model"][name + "_extra_state"][0] = 2
    torch.save(state, tmp_path / "earlier.pth")
    fresh = small()
    report = load_weights(fresh, tmp_path / "earlier.pth", bank=True)
    assert report.missing == report.unexpected == []
    assert fresh.roi_heads.box_predictor.memory_bank.num_written.tolist() == [0, 1]

    resumed = small()  # detectron2's own checkpointer, as for a resume
    DetectionCheckpointer(resumed, str(tmp_path)).load(str(tmp_path / "ours.pth"))
    assert resumed.roi_heads.box_predictor.memory_bank.iteration == 1
    other = small("MODEL.RIO.SLOTS_PER_CLASS", 5)
    with pytest.raises(RuntimeError, match="memory bank in the checkpoint does not fit"):
        DetectionCheckpointer(other, str(tmp_path)).load(str(tmp_path / "ours.pth"))
    with pytest.raises(CheckpointError, match="MODEL.RIO and the training set"):
        load_weights(other, tmp_path / "ours.pth", bank=True)


def caffe2_resnet(model) -> dict[str, np.ndarray]:
    """The ResNet stem and first block under the names of the ImageNet model zoo."""
    state = {k.removeprefix("backbone.bottom_up."): v.numpy() for k, v in model.state_dict().items()}
    rng = np.random.default_rng(0)
    names = {"stem.conv1": "conv1", "res2.0.conv1": "res2_0_branch2a", "res2.0.conv2": "res2_0_branch2b"}
    blobs = {}
    for ours, theirs in names.items():
        bn = "res_conv1" if theirs == "conv1" else theirs
        blobs[f"{theirs}_w"] = rng.random(state[f"{ours}.weight"].shape, dtype=np.float32)
        blobs[f"{bn}_bn_s"] = rng.random(state[f"{ours}.norm.weight"].shape, dtype=np.float32)
        blobs[f"{bn}_bn_b"] = rng.random(state[f"{ours}.norm.bias"].shape, dtype=np.float32)
    return blobs


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("layout", ["imagenet", "blobs"])
def test_a_backbone_of_the_model_zoo(small, layout, protocol, tmp_path):
    model = small()
    blobs = caffe2_resnet(model)
    content = {"blobs": blobs | {"conv1_w_momentum": np.zeros(1)}} if layout == "blobs" else blobs
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = load_weights(model, path)
    after = model.state_dict()
    assert torch.equal(after["backbone.bottom_up.stem.conv1.weight"], torch.from_numpy(blobs["conv1_w"]))
    assert torch.equal(after["backbone.bottom_up.res2.0.conv2.weight"], torch.from_numpy(blobs["res2_0_branch2b_w"]))
    theirs = small()
    DetectionCheckpointer(theirs).load(str(path))  # detectron2 loads the same tensors
    for name in report.loaded:
        assert torch.equal(after[name], theirs.state_dict()[name]), name
    for name in report.missing:  # frozen batch norm takes absent statistics for absorbed ones: mean 0, variance 1
        if not name.endswith((".running_mean", ".running_var")):
            assert torch.equal(after[name], before[name]), name
    assert "roi_heads.box_predictor.bbox_pred.weight" in report.missing  # as it should be for a backbone


def test_a_detectron2_pkl(small, tmp_path):
    state = {k: v.numpy() for k, v in small().state_dict().items() if "memory_bank" not in k}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": state, "__author__": "somebody"}))
    assert load_weights(small(), tmp_path / "model.pkl").missing == []


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("ROI_HEADS.NUM_CLASSES", 9, r"weight_g: expected \(10, 1\), found \(8, 1\) .*the file has 7 classes"),
        ("ROI_HEADS.NUM_CLASSES", 9, r"bbox_pred.bias: expected \(36,\), found \(28,\) .*7 classes"),
        ("ROI_HEADS.NUM_CLASSES", 9, r"mask_head.predictor.weight: .*the file has 7 classes"),
        ("ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "trained with .*CLS_AGNOSTIC_BBOX_REG False"),
        ("ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True, "trained with .*CLS_AGNOSTIC_MASK False"),
        ("ROI_BOX_HEAD.FC_DIM", 20, r"fc1.weight: expected \(20, 72\), found \(16, 72\) .*ROI_BOX_HEAD"),
        ("FPN.OUT_CHANNELS", 12, "backbone.fpn_lateral2.weight: .*another backbone"),
        ("RIO.CLASSIFIER", "linear", "cosine classifier.*CLASSIFIER cosine"),
        ("ROI_MASK_HEAD.NUM_CONV", 2, "mask_fcn2.weight: absent .*mask head"),
    ],
)
def test_what_does_not_fit_is_named(small, reference_file, key, value, says):
    path, _ = reference_file
    model = small(f"MODEL.{key}", value)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=says) as caught:
        load_weights(model, path)
    assert "on_mismatch='skip'" in str(caught.value) and str(path) in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # nothing was half loaded


def test_a_linear_checkpoint_in_a_cosine_model(small, tmp_path):
    torch.save(small("MODEL.RIO.CLASSIFIER", "linear").state_dict(), tmp_path / "linear.pth")
    with pytest.raises(CheckpointError, match="MODEL.RIO.CLASSIFIER linear"):
        load_weights(small(), tmp_path / "linear.pth")


def test_fine_tuning_skips_what_depends_on_the_classes(small, reference_file):
    path, original = reference_file
    model = small("MODEL.ROI_HEADS.NUM_CLASSES", 9)
    report = load_weights(model, path, on_mismatch="skip")
    box = [f"box_predictor.{name}" for name in ("bbox_pred.bias", "bbox_pred.weight", "cls_score.weight_g")]
    masks = ["mask_head.predictor.bias", "mask_head.predictor.weight"]
    assert sorted(report.skipped) == [f"roi_heads.{n}" for n in (*box, "box_predictor.cls_score.weight_v", *masks)]
    name = "roi_heads.box_head.fc1.weight"
    assert torch.equal(model.state_dict()[name], original.state_dict()[name])
    with pytest.raises(ValueError, match="on_mismatch"):
        load_weights(model, path, on_mismatch="ignore")


@pytest.mark.parametrize("file", ["w.pth", "w.pkl"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04rest of a zip", b"\x80\x02}q\x00(X"])
def test_broken_files(file, content, tmp_path):
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{file}: expected"):
        read_weights(path)


def test_truncated_at_any_length(tmp_path):
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.arange(100.0)}}, buffer)
    whole = {"w.pth": buffer.getvalue(), "w.pkl": pickle.dumps({"model": {"a": np.arange(9)}, "__author__": "x"})}
    for file, content in whole.items():
        path = tmp_path / file
        path.write_bytes(content)
        assert "a" in read_weights(path)["model"]
        for length in range(0, len(content) - 1, max(1, len(content) // 40)):
            path.write_bytes(content[:length])
            with pytest.raises(CheckpointError):
                read_weights(path)


def test_wrong_content(tmp_path):
    cases = [
        ([torch.zeros(1)], "expected a state dict, found list"),
        ({"model": torch.zeros(1)}, "model: expected a state dict, found Tensor"),
        ({"model": {"a": "text"}}, "a: expected a tensor or a numeric array, found str"),
    ]
    for content, says in cases:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=says):
            read_weights(tmp_path / "w.pth")
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="found none among its 1 .*encoder.weight.*Another architecture"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(weights.CheckpointNotFound, match="nothing there") as caught:
        read_weights(tmp_path / "nowhere.pth")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(weights.CheckpointNotFound, match="a folder"):
        read_weights(tmp_path)
