"""Whether the GPU computes what the CPU does: losses and the bank over some steps, and AMP against float32.

What is drawn at random (RoIs, anchors) is drawn on the CPU for both, so that both train on the same rows.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from tests.benchmarks import gpu_arms
from tests.benchmarks.gpu_arms import Arm, Setting, Size, numbers

STEPS, TOLERANCE = 20, 1e-4


def correctness(device: str, size: Size, batches: list) -> dict[str, Any]:
    """How far the losses are from the CPU's in float32, and those of AMP in both half precisions from float32.

    Returns:
        steps; cpu_difference, relative, of the step where it is largest, and cpu_within (of `TOLERANCE`);
        bank_rows_equal, the share of slots with the same box in both banks; amp_float16_difference and
        amp_bfloat16_difference, relative, of the last loss.
    """
    plain, amp = Setting("fp32"), Setting("amp", amp=True)
    cpu, cpu_bank = _train("cpu", size, batches, plain)
    own, own_bank = _train(device, size, batches, plain)
    difference = float(((own - cpu).abs() / cpu.abs()).max())
    found = {"steps": STEPS, "cpu_difference": difference, "cpu_within": difference <= TOLERANCE}
    found["bank_rows_equal"] = float((own_bank == cpu_bank).all(dim=-1).float().mean())
    for dtype in (torch.float16, torch.bfloat16):
        losses, _ = _train(device, size, batches, amp, dtype)
        name = str(dtype).removeprefix("torch.")
        found[f"amp_{name}_difference"] = float((losses[-1] - own[-1]).abs() / own[-1].abs())
    return found


def _train(
    device: str, size: Size, batches: list, setting: Setting, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(steps,) losses, float64, and the boxes stored in the bank."""
    with numbers(setting), _draws_on_the_cpu():
        arm = Arm(gpu_arms.config("rio", size, device), setting, itertools.cycle(copy.deepcopy(batches)))
        arm.dtype = dtype or arm.dtype
        if dtype == torch.bfloat16:
            arm.scaler = None  # its range is float32's
        torch.manual_seed(2)
        losses = torch.stack([arm.step() for _ in range(STEPS)]).double().cpu()
        return losses, arm.model.roi_heads.box_predictor.memory_bank.proposal_boxes.round().cpu()


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
