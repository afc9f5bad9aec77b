"""Evaluation against the official `lvis` package: CPU time, peak memory, and whether the bits are the same.

    python -m tests.benchmarks.bench_evaluation [--scale 0.1] [--only boxes,masks,full]

Each side does all of it in a fresh process, from the two files to the metrics (importing apart). The two take turns;
the run of median CPU time counts. The ground truth has LVIS's size and tail (`lvis_size`), the results 300 predictions
per image as detectron2 writes them: objects of the ground truth moved about, six in ten under their own category.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from rio.data.annotations import Annotations
from rio.data.files import write_atomically
from rio.data.load import load_annotations
from tests.benchmarks import lvis_size

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


# Both start from the two files and end with the metrics; sys.argv: ground truth, results, bbox or segm, file
# for the precision array.
_IMPORT = {
    "rio": "import hotcoco\nimport pycocotools.mask\nfrom rio.results.evaluation import evaluate",
    "lvis": "import json\nimport numpy as np\nnp.float = float  # which lvis 0.5.3 still writes\nimport lvis",
}
_EVALUATE = {
    "rio": "precision = evaluate(truth, results, iou_types=(iou_type,)).precision[iou_type]",
    "lvis": """
with open(results) as file:
    records = json.load(file)
if iou_type == "segm":
    for record in records:  # as detectron2 does: else the boxes' areas are taken for the masks'
        del record["bbox"]
truth = lvis.LVIS(truth)
run = lvis.LVISEval(truth, lvis.LVISResults(truth, records), iou_type)
run.run()
precision = run.eval["precision"]
""",
}
_SCRIPT = """
import json, resource, sys, time
truth, results, iou_type, out = sys.argv[1:]
def clocks():
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/status") as file:  # ru_maxrss begins with the memory of the parent
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    return [used.ru_utime + used.ru_stime, time.perf_counter(), peak / 2**20]
{imports}
before = clocks()
{evaluate}
after = clocks()
import numpy
numpy.save(out, precision)
print(json.dumps([after[0] - before[0], after[1] - before[1], after[2]]))
"""


class Measured(NamedTuple):
    """One evaluation in a process of its own: seconds without imports, highest memory, what it found."""

    cpu_s: float
    wall_s: float
    peak_gib: float
    precision: np.ndarray


def measure(side: str, truth: Path, results: Path, iou_type: str) -> Measured:
    """Evaluate with "rio" or "lvis"; ours without the cache of annotation files."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "precision.npy"
        code = _SCRIPT.format(imports=_IMPORT[side], evaluate=_EVALUATE[side])
        done = subprocess.run(
            [sys.executable, "-c", code, str(truth), str(results), iou_type, str(out)],
            env=os.environ | {"RIO_CACHE": "off", "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{side} on {results}: exit code {done.returncode}\n{done.stderr}")
        return Measured(*json.loads(done.stdout.splitlines()[-1]), np.load(out))


def _median(runs: list[Measured]) -> Measured:
    return sorted(runs, key=lambda run: run.cpu_s)[len(runs) // 2]


def row(kind: str, scale: float) -> dict[str, Any]:
    """One line of the table: "boxes", "masks" or "full"."""
    images = max(round(IMAGES[kind] * scale), 20)
    things, iou_type = ("masks", "segm") if kind == "masks" else ("boxes", "bbox")
    truth, results = files(images, kind == "masks")
    runs: dict[str, list[Measured]] = {"rio": [], "lvis": []}
    for turn in range(max(TURNS[kind])):
        for side, times in zip(runs, TURNS[kind], strict=True):
            if turn < times:
                runs[side].append(measure(side, truth, results, iou_type))
    ours, *peers = map(_median, filter(None, runs.values()))
    what = f"evaluation, {images:,} images x {PREDICTIONS_AN_IMAGE} {things}"
    found = {"ours_cpu_s": ours.cpu_s, "ours_peak_gib": ours.peak_gib}
    if kind == "full":
        met = ours.wall_s < 20 and ours.peak_gib * 2**30 < 2.5e9
        found |= dict.fromkeys(("peer_cpu_s", "cpu_ratio", "peer_peak_gib", "memory_ratio")) | {"peer": ""}
        return found | {"what": f"{what}: wall time {ours.wall_s:.1f} s", "reach": "20 s, 2.5 GB", "met": met}
    (peer,) = peers
    identical = np.array_equal(ours.precision, peer.precision)
    cpu, memory = peer.cpu_s / ours.cpu_s, peer.peak_gib / ours.peak_gib
    least = 10 if kind == "masks" else 40
    return found | {
        "what": f"{what}: {'bit-identical' if identical else 'NOT THE SAME NUMBERS'}",
        "peer": "lvis",
        "peer_cpu_s": peer.cpu_s,
        "cpu_ratio": cpu,
        "peer_peak_gib": peer.peak_gib,
        "memory_ratio": memory,
        "reach": f"{least}x less CPU, 5x less memory, bit-identical",
        "met": identical and cpu >= least and memory >= 5,
    }


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
