"""Whether the GPU computes what the CPU does: losses and the bank over some steps, AMP against float32, and resuming.

What is drawn at random (RoIs, anchors) is drawn on the CPU for both, so that both train on the same rows.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from rio.config import load_config
from rio.engine.setup import setup_training
from rio.trainer import Trainer
from tests.benchmarks import gpu_arms
from tests.benchmarks.gpu_arms import Arm, Setting, Size, numbers
from tests.support import tiny_shapes
from tests.support.steps import train_until

STEPS, TOLERANCE = 20, 1e-4


def correctness(device: str, size: Size, batches: list) -> dict[str, Any]:
    """How far the losses are from the CPU's in float32, and those of AMP in both half precisions from float32.

    Returns:
        steps; cpu_difference, relative, of the step where it is largest, and cpu_within (of `TOLERANCE`);
        bank_rows_equal, the share of slots with the same box in both banks; amp_float16_difference and
        amp_bfloat16_difference, relative, of the last loss (not on a CPU).
    """
    cpu, cpu_bank = _train("cpu", size, batches)
    own, own_bank = _train(device, size, batches)
    difference = float(((own - cpu).abs() / cpu.abs()).max())
    found = {"steps": STEPS, "cpu_difference": difference, "cpu_within": difference <= TOLERANCE}
    found["bank_rows_equal"] = float((own_bank == cpu_bank).all(dim=-1).float().mean())
    for dtype in (torch.float16, torch.bfloat16) if device != "cpu" else ():
        losses, _ = _train(device, size, batches, dtype)
        name = str(dtype).removeprefix("torch.")
        found[f"amp_{name}_difference"] = float((losses[-1] - own[-1]).abs() / own[-1].abs())
    return found


def _train(
    device: str, size: Size, batches: list, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(steps,) losses, float64, and the boxes stored in the bank; dtype: AMP's."""
    setting = Setting("", quiet=True, amp=dtype is not None)
    cast = partial(torch.autocast, "cuda", dtype=dtype)  # detectron2 0.6 knows float16 only
    with numbers(setting), _draws_on_the_cpu(), mock.patch("torch.cuda.amp.autocast", cast):
        arm = Arm(gpu_arms.config("rio", size, device), setting, itertools.cycle(copy.deepcopy(batches)))
        arm.trainer.precision = dtype  # of later versions
        torch.manual_seed(2)
        losses = torch.tensor([arm.step() for _ in range(STEPS)], dtype=torch.float64)
        return losses, arm.model.roi_heads.box_predictor.memory_bank.proposal_boxes.round().cpu()


def resume(device: str, folder: Path) -> dict[str, Any]:
    """A small training that is stopped and resumed, against one that is not, and that one against itself repeated.

    Kernels that add in any order make two straight runs differ; the resumed one should not differ more.

    Returns:
        resumed_difference, repeated_difference: largest of a weight, by the largest weight of its tensor;
        bank_equal: the resumed run's bank holds as many rows of each class as the straight one's.
    """
    drawn, states = tiny_shapes.draw(folder), {}
    common = [*tiny_shapes.data_options(drawn), *tiny_shapes.model_options(4), "DATASETS.TEST", "()"]

    def prepared(name: str, again: bool = False) -> Trainer:
        options = [*common, "MODEL.DEVICE", device, "OUTPUT_DIR", str(folder / name)]
        run = Trainer(setup_training(load_config(tiny_shapes.DEMO_CONFIG, options), resume=again))
        run.resume_or_load(resume=again)
        return run

    train_until(prepared("resumed"), 1)
    for name in ("straight", "repeated", "resumed"):
        run = prepared(name, name == "resumed")
        run.train()
        states[name] = {key: value.cpu() for key, value in run.model.state_dict().items() if torch.is_tensor(value)}
    straight = states.pop("straight")
    found = {
        f"{name}_difference": max(
            float((own[key] - value).abs().max() / value.abs().max().clamp_min(1e-12))
            for key, value in straight.items()
            if value.is_floating_point() and value.numel() and "memory_bank" not in key
        )
        for name, own in states.items()
    }
    written = next(key for key in straight if key.endswith("num_written"))
    return found | {"bank_equal": torch.equal(straight[written], states["resumed"][written])}


@contextlib.contextmanager
def _draws_on_the_cpu() -> Iterator[None]:
    """detectron2 draws RoIs and anchors by torch.randperm on their device, whose generators differ."""
    drawn = torch.randperm

    def on_the_cpu(n: int, *, device: Any = None, **options: Any) -> torch.Tensor:
        return drawn(n, **options).to(device or "cpu")

    torch.randperm = on_the_cpu
    try:
        yield
    finally:
        torch.randperm = drawn
