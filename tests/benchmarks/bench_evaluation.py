"""Evaluation against the official `lvis` package: CPU time, peak memory, and whether the bits are the same.

    python -m tests.benchmarks.bench_evaluation [--scale 0.1] [--only boxes,masks,full]

Each side does all of it in a fresh process, from the two files to the metrics (importing apart). The two take turns;
the run of median CPU time counts. The ground truth has LVIS's size and tail (`lvis_size`), the results 300 predictions
per image as detectron2 writes them: objects of the ground truth moved about, six in ten under their own category.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pycocotools import mask as coco_mask

from rio.data.annotations import Annotations
from rio.data.files import write_atomically
from rio.data.load import load_annotations
from tests.benchmarks import lvis_size, process

PREDICTIONS_AN_IMAGE = 300
IMAGES = {"boxes": 5_000, "masks": 500, "full": 19_809}  # the last: LVIS v1 val
TURNS = {"boxes": (3, 1), "masks": (5, 5), "full": (3, 0)}  # ours, the peer's: it takes minutes for the boxes
VERSION = 1  # of the generator: part of the cached files' names


def files(images: int, masks: bool) -> tuple[Path, Path]:
    """(ground truth, results) of `images` images, from an earlier run where there are some."""
    truth = lvis_size.cached(images / lvis_size.IMAGES)
    kind = "masks" if masks else "boxes"
    results = truth.with_name(f"{truth.stem}_{kind}_v{VERSION}.json")
    if not results.is_file():
        write_results(results, truth, masks)
    return truth, results


def write_results(path: Path, truth: Path, masks: bool, seed: int = 0) -> None:
    """Predictions for every image of the ground truth, as detectron2's evaluator writes them; atomically."""
    annotations, rng = load_annotations(truth, segmentations=masks), np.random.default_rng(seed)

    def write(file: BinaryIO) -> None:
        for image in range(annotations.num_images):
            records = json.dumps(_records(rng, annotations, image, masks))
            file.write((", " if image else "[").encode() + records[1:-1].encode())
        file.write(b"]")

    write_atomically(path, write)


def _records(rng: np.random.Generator, truth: Annotations, image: int, masks: bool) -> list[dict[str, Any]]:
    n, rows = PREDICTIONS_AN_IMAGE, truth.annotations_of(image)
    boxes, own = truth.boxes[rows], truth.category_ids[truth.annotation_class[rows]]
    if not len(boxes):  # an image of negatives only
        boxes, own = np.array([[40.0, 40.0, 80.0, 60.0]]), truth.category_ids[:1]
    source = rng.integers(0, len(boxes), n)
    moved = boxes[source] + rng.normal(0, 0.1, (n, 4)) * boxes[source][:, [2, 3, 2, 3]]
    moved[:, :2] = moved[:, :2].clip(0)
    moved[:, 2:] = moved[:, 2:].clip(0.5)
    moved = moved.astype(np.float32).astype(np.float64)  # a model's numbers have 24 bits
    classes = np.where(rng.random(n) < 0.6, own[source], rng.choice(truth.category_ids, n))
    scores = np.sort(rng.beta(0.4, 3.0, n).clip(1.1e-4).astype(np.float32))[::-1].astype(np.float64)
    columns = zip(classes.tolist(), moved.tolist(), scores.tolist(), strict=True)
    image_id, size = int(truth.image_ids[image]), (int(truth.image_height[image]), int(truth.image_width[image]))
    records = [{"image_id": image_id, "category_id": k, "bbox": box, "score": score} for k, box, score in columns]
    if masks:
        shapes = [truth.segmentation(i) for i in range(rows.start, rows.stop)] or [[[40, 40, 120, 40, 120, 100]]]
        for record, index, shift in zip(records, source.tolist(), rng.normal(0, 4, (n, 2)), strict=True):
            polygons = [(np.reshape(p, (-1, 2)) + shift).ravel().tolist() for p in shapes[index]]
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
            record["segmentation"] = {"size": list(size), "counts": rle["counts"].decode()}
    return records


# Both start from the two files and end with the metrics; compared is the precision array, to the bit.


def ours(truth: str, results: str, iou_type: str) -> Callable[[], str]:
    import hotcoco  # noqa: F401

    from rio.results.evaluation import evaluate

    return lambda: _digest(evaluate(truth, results, iou_types=(iou_type,)).precision[iou_type])


def official(truth: str, results: str, iou_type: str) -> Callable[[], str]:
    np.float = float  # which lvis 0.5.3 still writes
    import lvis

    def run() -> str:
        records = json.loads(Path(results).read_bytes())
        if iou_type == "segm":
            for record in records:  # as detectron2 does: else the boxes' areas are taken for the masks'
                del record["bbox"]
        annotations = lvis.LVIS(truth)
        done = lvis.LVISEval(annotations, lvis.LVISResults(annotations, records), iou_type)
        done.run()
        return _digest(done.eval["precision"])

    return run


def _digest(precision: np.ndarray) -> str:
    return f"{precision.shape} {hashlib.sha256(np.ascontiguousarray(precision, np.float64)).hexdigest()}"


def row(kind: str, scale: float) -> dict[str, Any]:
    """One line of the table: "boxes", "masks" or "full"."""
    images = max(round(IMAGES[kind] * scale), 20)
    things, iou_type = ("masks", "segm") if kind == "masks" else ("boxes", "bbox")
    truth, results = files(images, kind == "masks")
    runs: list[list[dict[str, Any]]] = [[], []]
    for turn in range(max(TURNS[kind])):
        for side, found, times in zip((ours, official), runs, TURNS[kind], strict=True):
            if turn < times:
                found.append(process.measure(side, truth, results, iou_type, cache="off"))
    mine, *peers = (sorted(side, key=lambda run: run["cpu_s"])[len(side) // 2] for side in runs if side)
    what = f"evaluation, {images:,} images x {PREDICTIONS_AN_IMAGE} {things}"
    if not peers:
        found = process.row(f"{what}: wall time {mine['wall_s']:.1f} s", mine, "20 s, 2.5 GB", most=(math.inf, 2.5))
        return found | {"met": found["met"] and mine["wall_s"] < 20}
    identical, least = mine["answer"] == peers[0]["answer"], 10 if kind == "masks" else 40
    what += ": bit-identical" if identical else ": NOT THE SAME NUMBERS"
    reach = f"{least}x less CPU, 5x less memory, bit-identical"
    found = process.row(what, mine, reach, "lvis", peers[0], least=(least, 5))
    return found | {"met": found["met"] and identical}


def run(scale: float = 1.0) -> list[dict[str, Any]]:
    """The rows of this module for `python -m tests.benchmarks`; scale 1: the sizes of IMAGES."""
    return [row(kind, scale) for kind in IMAGES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images")
    parser.add_argument("--only", default=",".join(IMAGES), help="some of %(default)s")
    arguments = parser.parse_args()
    for kind in arguments.only.split(","):
        print(json.dumps(row(kind, arguments.scale)), flush=True)


if __name__ == "__main__":
    main()
