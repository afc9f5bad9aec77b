"""What the memory bank costs: by itself in milliseconds, and as a share of a training step.

    python -m tests.benchmarks.bench_memory_bank [--scale 0.2]

The step is the box branch only, forward and backward, on 4 x 512 RoIs: two-layer box head, classifier and
class-specific box regression of 1,203 classes, losses. A real step has more, so the bank's share of it is smaller. The
step without a bank and what a bank adds (sample, write, the losses of the replayed rows) are timed in turns on the same
RoIs. CPU time, as the machine may be busy; all figures are medians. `tests.benchmarks.gpu` times the bank on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from rio.engine import telemetry
from rio.engine.telemetry import LOG_PERIOD
from rio.memory_bank import MemoryBank
from rio.roi_heads import RIOFastRCNNOutputLayers

NUM_CLASSES, WIDTH, IMAGES, ROIS = 1203, 1024, 4, 512
TARGETS = list(range(0, 2 * 553, 2))  # LVIS v1 has 553 classes of at most 30 images
TARGETS_A_STEP, ROIS_A_TARGET = 3, 20  # rare objects are few, also under repeat factor sampling
FREQUENCY = "".join("r" if c % 4 == 0 else "c" if c % 4 == 2 else "f" for c in range(NUM_CLASSES))
# Every way of writing and replaying that the reference has not.
VARIANTS = {"replay_absent_classes": 2, "write_max_per_object": 4}


def labels(generator: torch.Generator, rois: int = ROIS) -> torch.Tensor:
    """(IMAGES * rois,): a quarter foreground; of it 3 target classes with 20 RoIs each, the rest others."""
    classes = torch.full((IMAGES, rois), NUM_CLASSES)
    classes[:, : rois // 4] = 2 * torch.randint(0, 600, (IMAGES, rois // 4), generator=generator) + 1
    for target in torch.randint(0, len(TARGETS), (TARGETS_A_STEP,), generator=generator).tolist():
        image = int(torch.randint(0, IMAGES, (1,), generator=generator))
        first = int(torch.randint(0, rois // 4 - ROIS_A_TARGET, (1,), generator=generator))
        classes[image, first : first + ROIS_A_TARGET] = TARGETS[target]
    return classes.flatten()


def boxes(generator: torch.Generator, number: int) -> torch.Tensor:
    corner = torch.rand(number, 2, generator=generator) * 600
    return torch.cat([corner, corner + 16 + 100 * torch.rand(number, 2, generator=generator)], 1)


def objects(classes: torch.Tensor, proposals: torch.Tensor) -> torch.Tensor:
    """Ground-truth boxes (R, 4) of an image's RoIs: a class has one object."""
    return proposals[(classes[:, None] == classes).int().argmax(dim=1)] + 2  # by the first RoI of the class


def full_bank(device: str, **changes) -> MemoryBank:
    arguments = dict(num_classes=NUM_CLASSES, class_ids=TARGETS, feature_dim=WIDTH)
    bank = MemoryBank(**(arguments | changes)).to(device)
    every = torch.tensor(TARGETS, device=device).repeat_interleave(bank.slots_per_class)
    some = torch.rand(len(every), 4, device=device) + torch.tensor([0.0, 0.0, 9.0, 9.0], device=device)
    bank.write(torch.rand(len(every), WIDTH, device=device), some, some + 1, every)
    return bank


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def bank_alone(device: str, rounds: int = 200, *, work_between: bool = False, **changes) -> tuple[float, float]:
    """Median milliseconds of (sample, write) on a full bank.

    One call after the other or, with work_between, each after work on other memory, as in a training step: on a
    CPU the caches then hold nothing of the bank's, neither rows nor code.
    """
    generator = torch.Generator().manual_seed(0)
    bank = full_bank(device, **changes)
    features = torch.rand(IMAGES * ROIS, WIDTH, device=device)
    rois = boxes(generator, IMAGES * ROIS).to(device)

    def steps() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for _ in range(rounds):
            classes = labels(generator).to(device)
            yield classes, objects(classes, rois)

    times = []
    for classes, gt_boxes in steps() if work_between else list(steps()):
        start = clock(device)
        bank.sample(classes)
        middle = clock(device)
        bank.write(features, rois, gt_boxes, classes, rois_per_image=[ROIS] * IMAGES)
        times.append((middle - start, clock(device) - middle))
    return tuple(1e3 * statistics.median(t) for t in zip(*times))


def waits(work: Callable[[], Any]) -> int:
    """How often work makes the host wait for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


def synchronisations(device: str) -> int:
    """How often one sample and one write make the host wait for the GPU."""
    bank, generator = full_bank(device), torch.Generator().manual_seed(0)
    classes = labels(generator).to(device)
    features = torch.rand(IMAGES * ROIS, WIDTH, device=device)
    rois = boxes(generator, IMAGES * ROIS).to(device)
    return waits(lambda: (bank.sample(classes), bank.write(features, rois, rois, classes)))


class BoxBranch:
    """A box head and predictor on the CPU, a step of them, and what a bank adds to it.

    Args:
        rois: of an image; at least 4 (ROIS_A_TARGET + 1).
        banks: name -> bank.
    """

    def __init__(self, rois: int, banks: dict[str, MemoryBank]):
        torch.manual_seed(0)
        self.generator = torch.Generator().manual_seed(0)
        self.rois, self.banks = rois, banks
        shape = ShapeSpec(channels=256, height=7, width=7)
        self.head = FastRCNNConvFCHead(shape, conv_dims=[], fc_dims=[WIDTH, WIDTH])
        self.predictor = RIOFastRCNNOutputLayers(
            ShapeSpec(channels=WIDTH),
            box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
            num_classes=NUM_CLASSES,
            classifier="cosine",
            class_frequency=FREQUENCY,
        )
        self.pooled = torch.rand(IMAGES * rois, 256, 7, 7)

    def proposals(self) -> list[Instances]:
        found = []
        for classes in labels(self.generator, self.rois).split(self.rois):
            instances = Instances((800, 800))
            instances.proposal_boxes = Boxes(boxes(self.generator, self.rois))
            instances.gt_boxes = Boxes(objects(classes, instances.proposal_boxes.tensor))
            instances.gt_classes = classes
            found.append(instances)
        return found

    def step(self, proposals: list[Instances]) -> float:
        """Seconds of a step without a bank, forward and backward."""
        self.predictor.memory_bank = None
        self.head.zero_grad()
        self.predictor.zero_grad()
        start = time.process_time()
        losses = self.predictor.losses(self.predictor(self.head(self.pooled)), proposals)
        sum(losses.values()).backward()
        return time.process_time() - start

    def added(self, bank: MemoryBank, proposals: list[Instances], features: torch.Tensor) -> float:
        """Seconds of what the bank adds to a step of the predictor; the gradients go on top of earlier ones."""
        times = []
        for self.predictor.memory_bank in (None, bank):
            start = time.process_time()
            losses = self.predictor.losses(self.predictor(features), proposals)
            sum(losses.values()).backward()
            times.append(time.process_time() - start)
        return times[1] - times[0]

    def times(self, rounds: int) -> dict[str, float]:
        """Median seconds of "step" and of what each bank adds; a first round warms up."""
        found = {name: [] for name in ("step", *self.banks)}
        features = torch.rand(IMAGES * self.rois, WIDTH)
        with EventStorage():
            for _ in range(rounds + 1):
                proposals = self.proposals()
                found["step"].append(self.step(proposals))
                for name, bank in self.banks.items():
                    found[name].append(self.added(bank, proposals, features))
        return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}

    def telemetry(self, bank: MemoryBank, rounds: int) -> float:
        """Median seconds of what a step adds when it logs."""
        features, times = torch.rand(IMAGES * self.rois, WIDTH), []
        for _ in range(rounds):
            classes = torch.cat([p.gt_classes for p in self.proposals()])
            replay = bank.sample(classes)
            with EventStorage():
                start = time.process_time()
                telemetry.log(classes, NUM_CLASSES, self.predictor.frequency_group, bank, features, replay)
                times.append(time.process_time() - start)
        return statistics.median(times)


def run(scale: float = 1.0) -> list[dict[str, Any]]:
    """The rows of ``python -m tests.benchmarks``; a smaller scale has fewer RoIs and rounds."""
    torch.set_num_threads(1)
    rois, rounds = max(round(ROIS * scale), 4 * (ROIS_A_TARGET + 1)), max(round(12 * scale), 1)
    banks = {"bank": full_bank("cpu"), "variants": full_bank("cpu", **VARIANTS)}
    branch, rows = BoxBranch(rois, banks), []
    empty = dict.fromkeys(("ours_peak_gib", "peer_peak_gib", "memory_ratio"))

    def row(what: str, seconds: float, reach: str, met: bool | None, peer_s: float | None = None) -> None:
        found = {"what": what, "peer": "without a bank" if peer_s else "", "ours_cpu_s": seconds, "peer_cpu_s": peer_s}
        rows.append(found | {"cpu_ratio": peer_s / seconds if peer_s else None, "reach": reach, "met": met} | empty)

    times = branch.times(rounds)
    step = times["step"]
    for name, title in (("bank", "memory bank"), ("variants", "the same, all variants of replay on")):
        share = times[name] / step
        what = f"{title}: box branch with replay, {IMAGES} x {rois} RoIs, {NUM_CLASSES:,} classes: {share:+.1%}"
        row(what, step * (1 + share), "2 % more", share <= 0.02, step)
    changed = {"": {}, ", after other work": {"work_between": True}, ", all variants on": VARIANTS}
    for name, changes in changed.items():
        seconds = sum(bank_alone("cpu", rounds=max(round(200 * scale), 3), **changes)) / 1e3
        reach, met = ("", None) if changes else ("1 ms", seconds <= 1e-3)
        row(f"sample and write alone, {IMAGES} x {ROIS} RoIs, D {WIDTH}{name}", seconds, reach, met)
    seconds = branch.telemetry(branch.banks["bank"], max(round(50 * scale), 3))
    share = seconds / LOG_PERIOD / step
    row(f"telemetry of one step in {LOG_PERIOD}: {share:+.2%} of all steps", seconds, "0.1 %", share <= 1e-3)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the RoIs and rounds")
    for line in run(parser.parse_args().scale):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
