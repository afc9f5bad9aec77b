"""What the GPU benchmark trains: plain detectron2 or RIO, under a setting, on random images of LVIS's sizes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage, get_event_storage

import rio.engine.backbone
import rio.roi_heads  # noqa: F401  (both register modules)
from rio.config import load_config
from rio.engine.fewer_waits import AMPStep, Step, wait_less

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CONFIG = CONFIGS / "lvis_v1" / "rio_r50.yaml"
PLAIN = (
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    *("MODEL.RIO.BANK_ENABLED", False, "MODEL.RIO.CLASSIFIER", "linear"),
)
OBJECTS_AN_IMAGE, TARGETS_A_BATCH = 12, 3  # LVIS: 12.7; the targets are rare, also under repeat factors
SIZES = ((480, 640), (427, 640), (640, 480), (640, 640))  # most of LVIS, before resizing


@dataclass(frozen=True)
class Setting:
    """How a step is run; the same for plain and RIO."""

    name: str
    quiet: bool = False  # rio.engine.fewer_waits, as `rio train` always has it; else detectron2's own parts
    tf32: bool = False  # matrix products of the heads too; convolutions have it from PyTorch
    amp: bool = False  # float16, the gradients scaled: SOLVER.AMP.ENABLED; needs CUDA
    channels_last: bool = False
    fused: bool = False  # SGD in one kernel
    pinned: bool = False  # images are copied while the GPU computes


def settings() -> list[Setting]:
    """Each with one thing more than the one before; the last has all but the first of them, fewer waits."""
    names = ("fp32", "+ fewer waits", "+ TF32", "+ AMP", "+ channels_last", "+ fused SGD", "+ pinned memory")
    found = [Setting(name, *[True] * number) for number, name in enumerate(names)]
    return [*found, replace(found[-1], name="all but fewer waits", quiet=False)]


@dataclass(frozen=True)
class Size:
    """What is measured on: the real thing, or something that a CPU does in a second."""

    short_side: int = 800
    images: int = 4
    batches: int = 8
    classes: int = 1203
    targets: int = 553
    options: tuple = ()


TINY = Size(
    short_side=64, images=2, batches=2, classes=12, targets=5, options=(
        *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16),
        *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
        *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.ROI_MASK_HEAD.NUM_CONV", 1),
    ),
)  # fmt: skip


def config(kind: str, size: Size, device: str) -> CfgNode:
    """The config of "plain" (detectron2's own heads and classifier) or "rio"."""
    options = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device, "SEED", 1, "MODEL.ROI_HEADS.NUM_CLASSES", size.classes]
    options += ["MODEL.RIO.BANK_CLASS_IDS", target_ids(size)]
    return load_config(CONFIG, [*options, *(PLAIN if kind == "plain" else ()), *size.options])


def target_ids(size: Size) -> list[int]:
    return list(range(0, 2 * size.targets, 2))


def random_batches(size: Size, seed: int = 0) -> list[list[dict[str, Any]]]:
    """What detectron2's loader would give: uint8 images, boxes, classes, polygons; on the CPU."""
    rng = np.random.default_rng(seed)
    targets = target_ids(size)
    others = np.setdiff1d(np.arange(size.classes), targets)
    batches = []
    for _ in range(size.batches):
        classes = rng.choice(others, (size.images, OBJECTS_AN_IMAGE))
        rows = rng.choice(classes.size, TARGETS_A_BATCH, replace=False)
        classes.reshape(-1)[rows] = rng.choice(targets, TARGETS_A_BATCH)
        batches.append([_random_image(rng, size, own) for own in classes])
    return batches


def _random_image(rng: np.random.Generator, size: Size, classes: np.ndarray) -> dict[str, Any]:
    height, width = SIZES[int(rng.integers(len(SIZES)))]
    scale = size.short_side / min(height, width)
    height, width = round(height * scale), round(width * scale)
    extent = np.exp(rng.normal(np.log(0.12), 0.8, (len(classes), 2))).clip(0.03, 0.9) * (width, height)
    corner = rng.uniform(0, 1, (len(classes), 2)) * ((width, height) - extent)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1) / 2 + 0.5
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(np.concatenate([corner, corner + extent], 1), dtype=torch.float32))
    instances.gt_classes = torch.tensor(classes)
    instances.gt_masks = PolygonMasks([[(c + circle * e).ravel()] for c, e in zip(corner, extent, strict=True)])
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    return {"image": image, "instances": instances, "height": height, "width": width}


class Arm:
    """A model and its optimiser under a setting; `step` trains it on one batch.

    Args:
        cfg: what to build.
        setting: how a step is run.
        batches: what a loader gives, without end.
    """

    def __init__(self, cfg: CfgNode, setting: Setting, batches: Iterable[list[dict[str, Any]]]) -> None:
        device = torch.device(cfg.MODEL.DEVICE)
        torch.manual_seed(1)
        self.model = build_model(cfg).train()
        batches = iter(batches)
        first = next(batches)
        self._normalise(first)
        if setting.quiet:
            wait_less(self.model)
        if setting.channels_last:
            self.model.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(cfg, self.model)
        if setting.fused:
            keys = ("params", "lr", "weight_decay", "momentum", "nesterov", "dampening")
            groups = [{key: group[key] for key in keys} for group in optimizer.param_groups]
            optimizer = torch.optim.SGD(groups, lr=cfg.SOLVER.BASE_LR, fused=True)
            # Where the first step overflows, the kernel returns before it fills the momentum that torch left
            # uninitialised; the second step would add to it. From zeros the first step is the same.
            for parameter in (p for group in groups for p in group["params"]):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self.optimizer = optimizer
        batches = itertools.chain([first], batches)
        if setting.pinned:
            batches = ([d | {"image": d["image"].to(device, non_blocking=True)} for d in batch] for batch in batches)
        kinds = {False: (SimpleTrainer, Step), True: (AMPTrainer, AMPStep)}[setting.amp]
        scaler = {"grad_scaler": torch.amp.GradScaler("cuda")} if setting.amp else {}
        self.trainer = kinds[setting.quiet](self.model, batches, optimizer, **scaler)
        # The configs' rate is for their batch; warmed up, as training begins.
        share = len(first) / cfg.SOLVER.IMS_PER_BATCH
        self.rates = [group["lr"] * share for group in optimizer.param_groups]

    @torch.no_grad()
    def _normalise(self, batch: list[dict[str, Any]]) -> None:
        """Frozen norms take the first batch's statistics: with 0 and 1 random weights overflow."""

        def take(norm: FrozenBatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
            norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
            norm.running_var.copy_(inputs[0].var((0, 2, 3), unbiased=False) + 1e-5)

        norms = [m for m in self.model.modules() if isinstance(m, FrozenBatchNorm2d)]
        handles = [norm.register_forward_pre_hook(take) for norm in norms]
        self.model.backbone(self.model.preprocess_image(batch).tensor)
        for handle in handles:
            handle.remove()

    def step(self) -> float:
        """One iteration of the trainer on the next batch, metrics included; returns the loss."""
        storage = get_event_storage()
        storage.iter = self.trainer.iter
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * min(1.0, (storage.iter + 1) / 100)
        self.trainer.run_step()
        self.trainer.iter += 1
        return float(storage.history("total_loss").latest())


@contextlib.contextmanager
def numbers(setting: Setting) -> Iterator[None]:
    """float32 products in TF32 or not, for as long as the setting is measured; and where a step's metrics go."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if setting.tf32 else "highest")
    try:
        with EventStorage():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
