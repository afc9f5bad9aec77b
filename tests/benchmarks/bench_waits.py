"""How often a training step of two images makes the host wait for its GPU, counted on a pretend one.

    python -m tests.benchmarks --only waits

A small R-18-FPN with four levels on random images with polygons: counts do not depend on sizes. The peer: detectron2's
own trainer and Mask or Cascade R-CNN, without a bank; ours has RIO's heads and waits less (`rio.engine.fewer_waits`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from detectron2.utils.events import EventStorage

from tests.benchmarks import gpu_arms
from tests.support.pretend_cuda import pretend_cuda

HEADS = {"Mask": ("StandardROIHeads", "RIOROIHeads"), "Cascade": ("CascadeROIHeads", "RIOCascadeROIHeads")}
REACH = {"Mask": 40}


def waits(kind: str, *, ours: bool) -> Counter[str]:
    """Of the third step, by the package whose code waits; the bank's under "bank"."""
    cfg = gpu_arms.config("rio" if ours else "plain", gpu_arms.TINY, "cuda")
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = HEADS[kind][ours], True
    with pretend_cuda() as report, EventStorage():
        batches = itertools.cycle(gpu_arms.random_batches(gpu_arms.TINY))
        arm = gpu_arms.Arm(cfg, gpu_arms.Setting("", quiet=ours), batches)
        arm.rates = [0.0] * len(arm.rates)  # random weights stay finite
        for _ in range(3):
            report.waits.clear()
            arm.step()
        found: Counter[str] = Counter()
        for (_, owner, site), times in report.waits.items():
            found["bank" if "memory_bank.py" in site else owner] += times
    return found


def run(scale: float) -> list[dict[str, Any]]:
    """The rows; counts are the same at every scale."""
    rows = []
    for kind in HEADS:
        found, theirs, reach = waits(kind, ours=True), waits(kind, ours=False), REACH.get(kind)
        number = sum(found.values())
        what = f"RIO, {kind} R-CNN, a step of 2 images: the host waits {number} times, {found['bank']} for the bank"
        row = dict.fromkeys(("ours_cpu_s", "peer_cpu_s", "cpu_ratio", "ours_peak_gib", "peer_peak_gib", "memory_ratio"))
        row |= {"what": what, "peer": f"detectron2: {sum(theirs.values())} times", "reach": ""}
        rows.append(row | ({"reach": f"{reach} times", "met": number <= reach} if reach else {}))
    return rows
