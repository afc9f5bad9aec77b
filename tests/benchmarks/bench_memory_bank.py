"""What the memory bank costs: alone in milliseconds, and as a share of a training step.

    python -m tests.benchmarks.bench_memory_bank [--device cuda] [--rounds 5]

The step is the box branch alone, forward and backward, on 4 x 512 RoIs: two-layer box head (1024 wide, 7 x
7 x 256 in), classifier and class-specific box regression of 1,203 classes, losses. A real step also has a
backbone, an RPN and a mask head, so the share printed is more than the bank's share of that. Arms alternate
within a round, and CPU time is taken (wall time on a GPU), because the machine may be busy with other
things.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from rio.memory_bank import MemoryBank
from rio.roi_heads import RIOFastRCNNOutputLayers

NUM_CLASSES, WIDTH, IMAGES, ROIS = 1203, 1024, 4, 512
TARGETS = list(range(0, 2 * 553, 2))  # LVIS v1 has 553 classes of at most 30 images
TARGETS_A_STEP, ROIS_A_TARGET = 3, 20  # rare objects are few, also under repeat factor sampling


def labels(generator: torch.Generator) -> torch.Tensor:
    """(IMAGES * ROIS,): a quarter foreground; of it 3 target classes with 20 RoIs each, the rest others."""
    classes = torch.full((IMAGES, ROIS), NUM_CLASSES)
    classes[:, : ROIS // 4] = 2 * torch.randint(0, 600, (IMAGES, ROIS // 4), generator=generator) + 1
    for target in torch.randint(0, len(TARGETS), (TARGETS_A_STEP,), generator=generator).tolist():
        image = int(torch.randint(0, IMAGES, (1,), generator=generator))
        first = int(torch.randint(0, ROIS // 4 - ROIS_A_TARGET, (1,), generator=generator))
        classes[image, first : first + ROIS_A_TARGET] = TARGETS[target]
    return classes.flatten()


def boxes(generator: torch.Generator, number: int) -> torch.Tensor:
    corner = torch.rand(number, 2, generator=generator) * 600
    return torch.cat([corner, corner + 16 + 100 * torch.rand(number, 2, generator=generator)], 1)


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


def bank_alone(device: str, rounds: int = 200, **changes) -> tuple[float, float]:
    """Median milliseconds of (sample, write) on a full bank."""
    generator = torch.Generator().manual_seed(0)
    cap = changes.pop("max_per_foreground", 0.0)
    bank = full_bank(device, **changes)
    features = torch.rand(IMAGES * ROIS, WIDTH, device=device)
    rois = boxes(generator, IMAGES * ROIS).to(device)
    times = []
    for _ in range(rounds):
        classes = labels(generator).to(device)
        start = clock(device)
        bank.sample(classes, max_per_foreground=cap)
        middle = clock(device)
        bank.write(features, rois, rois, classes)
        times.append((middle - start, clock(device) - middle))
    return tuple(1e3 * statistics.median(t) for t in zip(*times))


def synchronisations(device: str) -> int:
    """How often one sample and one write make the host wait for the GPU."""
    bank, generator = full_bank(device), torch.Generator().manual_seed(0)
    classes = labels(generator).to(device)
    features = torch.rand(IMAGES * ROIS, WIDTH, device=device)
    rois = boxes(generator, IMAGES * ROIS).to(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        bank.sample(classes)
        bank.write(features, rois, rois, classes)
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


def step_share(device: str, rounds: int) -> tuple[float, float, float]:
    """Median seconds of a step without and with the bank, and the mean number of replayed rows."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    head = FastRCNNConvFCHead(
        ShapeSpec(channels=256, height=7, width=7), conv_dims=[], fc_dims=[WIDTH, WIDTH]
    )
    predictor = RIOFastRCNNOutputLayers(
        ShapeSpec(channels=WIDTH),
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        num_classes=NUM_CLASSES,
        classifier="cosine",
        memory_bank=full_bank(device),
    )
    head, predictor, bank = head.to(device), predictor.to(device), predictor.memory_bank
    replayed, sample = [], bank.sample
    bank.sample = lambda *a, **k: replayed.append(sample(*a, **k)) or replayed[-1]
    pooled = torch.rand(IMAGES * ROIS, 256, 7, 7, device=device)

    def one(with_bank: bool, classes: torch.Tensor, proposals: list[Instances]) -> float:
        predictor.memory_bank = bank if with_bank else None
        head.zero_grad()
        predictor.zero_grad()
        start = clock(device)
        losses = predictor.losses(predictor(head(pooled)), proposals)
        sum(losses.values()).backward()
        return clock(device) - start

    times = {False: [], True: []}
    with EventStorage():
        for i in range(rounds + 1):
            classes = labels(generator).to(device)
            proposals = []
            for own in classes.split(ROIS):
                instances = Instances((800, 800))
                instances.proposal_boxes = Boxes(boxes(generator, ROIS).to(device))
                instances.gt_boxes = Boxes(instances.proposal_boxes.tensor + 2)
                instances.gt_classes = own
                proposals.append(instances)
            for with_bank in (True, False) if i % 2 else (False, True):
                seconds = one(with_bank, classes, proposals)
                if i:  # the first round warms up
                    times[with_bank].append(seconds)
    rows = statistics.mean(len(r) for r in replayed)
    return statistics.median(times[False]), statistics.median(times[True]), rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu (one thread) or cuda")
    parser.add_argument("--rounds", type=int, default=5, help="steps measured for each arm")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = arguments.device
    where = "CPU, one thread" if device == "cpu" else torch.cuda.get_device_name()
    print(f"{where}; torch {torch.__version__}; {IMAGES} x {ROIS} RoIs, D {WIDTH}, {NUM_CLASSES} classes")
    variants = {
        "newest": {},
        "newest, float16": {"storage_dtype": torch.float16},
        "newest, capped": {"max_per_foreground": 0.3},
        "random": {"replay_order": "random"},
    }
    for name, changes in variants.items():
        sampled, written = bank_alone(device, **changes)
        print(
            f"bank alone, {name:16s} sample {sampled:.2f} + write {written:.2f} = {sampled + written:.2f} ms"
        )
    if device != "cpu":
        print(f"synchronisations a step: {synchronisations(device)}")
    without, with_bank, rows = step_share(device, arguments.rounds)
    share = 100 * (with_bank / without - 1)
    print(
        f"box branch, forward and backward: {1e3 * without:.1f} ms without, {1e3 * with_bank:.1f} ms with the"
        f" bank: {share:+.1f} % ({rows:.0f} rows replayed, {100 * rows / IMAGES / ROIS:.1f} % more rows)"
    )


if __name__ == "__main__":
    main()
