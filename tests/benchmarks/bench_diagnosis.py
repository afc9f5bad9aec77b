"""What the diagnosis after every evaluation costs, as a share of the evaluation: of sound results, and of results of
which every other reading is tried, as their boxes lie in other images.

    python -m tests.benchmarks.bench_diagnosis [--scale 0.1]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.benchmarks import bench_evaluation, process

IMAGES = {"an evaluation": 5_000, "a small evaluation": 500}
KINDS = ("sound", "every reading tried")
MOST = 0.02


def cost(truth: str, results: str, kind: str) -> Callable[[], dict[str, float]]:
    """CPU seconds of the evaluation from file to metrics, and of the diagnosis in it (the median of five)."""
    from rio.data.load import load_annotations
    from rio.results.diagnosis import diagnose
    from rio.results.evaluation import evaluate
    from rio.results.federated import JudgedPairs
    from rio.results.reading import load_results

    def run() -> dict[str, float]:
        begin = time.process_time()
        annotations = load_annotations(truth, segmentations=False)
        loaded = load_results(results, annotations)
        read = time.process_time() - begin
        if kind != KINDS[0]:
            boxes = np.random.default_rng(0).permutation(loaded.boxes)
            loaded = dataclasses.replace(loaded, boxes=boxes)
        begin = time.process_time()
        scored = evaluate(annotations, loaded, iou_types=("bbox",))
        whole = read + time.process_time() - begin
        ap50, judged, times = scored.metrics["bbox"]["AP50"], JudgedPairs.of(annotations), []
        for _ in range(5):
            begin = time.process_time()
            found = diagnose(annotations, loaded, judged.ground_truth, ap50=ap50, max_dets=300)
            times.append(time.process_time() - begin)
        return {"evaluation": whole, "diagnosis": sorted(times)[2], "ap50": ap50, "findings": len(found)}

    return run


def row(what: str, kind: str, scale: float) -> dict[str, Any]:
    """One line of the table."""
    images = max(round(IMAGES[what] * scale), 20)
    measured = process.measure(cost, *bench_evaluation.files(images, False), kind, cache="off")
    answer = measured["answer"]
    share = answer["diagnosis"] / answer["evaluation"]
    sizes = f"{images:,} images x {bench_evaluation.PREDICTIONS_AN_IMAGE} boxes"
    text = f"diagnosis in {what} of {sizes}, {kind} (AP50 {answer['ap50']:.0f}): {100 * share:.2f} % of it"
    found = process.row(text, measured | {"cpu_s": answer["diagnosis"]}, "2 % of it", most=(np.inf, None))
    ratio = answer["evaluation"] / answer["diagnosis"]
    return found | {
        "peer": "the evaluation",
        "peer_cpu_s": answer["evaluation"],
        "cpu_ratio": ratio,
        "met": share <= MOST,
    }


def run(scale: float = 1.0) -> list[dict[str, Any]]:
    """The rows of this module for `python -m tests.benchmarks`; scale 1: the sizes of IMAGES."""
    return [row(what, kind, scale) for what in IMAGES for kind in KINDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images")
    for found in run(parser.parse_args().scale):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
