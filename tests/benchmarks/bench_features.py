"""Frozen features: how fast they are taken, and what training a classifier on them to 25 epochs takes.

    python -m tests.benchmarks.bench_features

The embedded bench set (6,000 / 1,500 images of 192 px, 100 classes), drawn on first use into RIO_BENCH, default the
temporary folder. The detector has the demo's size and is hardly trained: what matters here does not depend on its
weights, but for more detections to score than of a good one. One core. Peer: the same 25 epochs of the whole detector,
extrapolated from 20 iterations.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

EPOCHS, IMAGES, BATCH = 25, 6000, 16
SMALL = (
    "INPUT.MIN_SIZE_TRAIN", "(192,)", "INPUT.MAX_SIZE_TRAIN", "192",
    "INPUT.MIN_SIZE_TEST", "192", "INPUT.MAX_SIZE_TEST", "192",
    "DATASETS.TRAIN", "('shapes_bench_train',)", "DATASETS.TEST", "('shapes_bench_val',)",
    "DATALOADER.REPEAT_THRESHOLD", "0.01", "MODEL.RIO.CLASSIFIER", "cosine", "MODEL.MASK_ON", "False", "SEED", "1",
)  # fmt: skip


def rio(datasets: Path, *words: object) -> tuple[float, float, str]:
    """CPU seconds, peak GiB and output of a command in one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(datasets)}
    with tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, "-m", "rio", *map(str, words)]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
        output.seek(0)
        text = output.read()
    if status:
        raise RuntimeError(text[-3000:])
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20, text


def run(scale: float = 1.0) -> list[dict[str, Any]]:
    """The rows of `python -m tests.benchmarks`; a smaller scale trains shorter."""
    root = Path(os.environ.get("RIO_BENCH") or tempfile.gettempdir()) / "rio-bench-features"
    steps = round(scale * EPOCHS * IMAGES / BATCH)
    with tempfile.TemporaryDirectory(prefix="rio-bench-") as name:
        folder, config = Path(name), ["--config-file", "configs/shapes/demo.yaml"]
        options = [*SMALL, "SOLVER.IMS_PER_BATCH", BATCH]

        def detector(iterations: int) -> tuple[float, float]:
            short = ["SOLVER.MAX_ITER", iterations, "DATASETS.TEST", "()"]
            return rio(root, "train", *config, "--output-dir", folder / str(iterations), *options, *short)[:2]

        detector(1)  # draws the set, if it is not there
        start, _ = detector(2)
        cpu, peer_gib = detector(22)
        whole = (cpu - start) / 20 * steps
        weights = ["--weights", folder / "2" / "model_final.pth", "--output", folder / "features"]
        taken, gib, text = rio(root, "features", *config, *weights, *options)
        schedule = ["MODEL.RIO.FEATURES", folder / "features", "SOLVER.MAX_ITER", steps, "SOLVER.BASE_LR", 0.03]
        arm, arm_gib, _ = rio(root, "train", *config, "--output-dir", folder / "run", *options, *schedule)
    images = sum(map(int, re.findall(r"shapes_bench_\w+: (\d+) images", text)))
    pace = images / taken
    return [
        {
            "what": f"features of {images:,} images, {pace:.0f} images a second and core",
            "ours_cpu_s": taken, "ours_peak_gib": gib, "reach": "25 images a second and core", "met": pace >= 25,
        },
        {
            "what": f"{steps:,} steps of 16 images on frozen features, RFS + bank + cosine, scoring 1,500 images",
            "peer": "the whole detector, extrapolated", "ours_cpu_s": arm, "peer_cpu_s": whole,
            "cpu_ratio": whole / arm,
            "ours_peak_gib": arm_gib, "peer_peak_gib": peer_gib, "memory_ratio": peer_gib / arm_gib,
            "reach": "40 s, 2 GiB", "met": arm <= 40 and arm_gib < 2,
        },
    ]  # fmt: skip


if __name__ == "__main__":
    for row in run():
        print(row)
