"""Annotation files: from LVIS-size JSON to counts, and to a training loader, against `lvis` and detectron2.

    python -m tests.benchmarks.bench_data [--scale 0.05]

Every measurement is a fresh process with one thread (`tests.benchmarks.process`); CPU time and, with workers, memory
are those of all its processes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from tests.benchmarks import lvis_size
from tests.benchmarks.process import measure, row

WORKERS, BATCH_SIZE, BATCHES, REPEAT_THRESHOLD = 4, 16, 50, 0.001


# What is measured: each runs in a process of its own, and returns what its peer must return as well.


def counts_ours(path: str) -> Callable[[], Any]:
    from rio.data.load import load_annotations

    def run() -> Any:
        annotations = load_annotations(path, segmentations=False)
        return [int(annotations.image_count.sum()), int(annotations.instance_count.sum())]

    return run


def counts_lvis(path: str) -> Callable[[], Any]:
    from lvis import LVIS

    def run() -> Any:
        truth = LVIS(path)  # with its indices of annotations by image and category
        images = defaultdict(set)
        for annotation in truth.anns.values():
            images[annotation["category_id"]].add(annotation["image_id"])
        return [sum(map(len, images.values())), len(truth.anns)]

    return run


def training_ours(path: str) -> Callable[[], Any]:
    from rio.data.load import load_annotations
    from rio.engine.loader import TrainingLoader, TrainingSamples
    from rio.engine.records import records
    from rio.sampler import BatchSampler, aspect_ratio_groups, image_repeat_factors

    def run() -> Any:
        annotations = load_annotations(path, image_root="images/")
        factors = image_repeat_factors(annotations, "rfs", REPEAT_THRESHOLD)
        batches = BatchSampler(factors, batch_size=BATCH_SIZE, seed=0, groups=aspect_ratio_groups(annotations))
        loader = TrainingLoader(TrainingSamples(records(annotations), _count, 0), batches, WORKERS)
        _draw(loader)
        loader.close()
        return float(factors.sum(dtype="float64"))

    return run


def training_detectron2(path: str) -> Callable[[], Any]:
    from detectron2.data import build_detection_train_loader
    from detectron2.data.datasets.lvis import load_lvis_json
    from detectron2.data.samplers import RepeatFactorTrainingSampler

    def run() -> Any:
        dicts = load_lvis_json(path, "images/")
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, REPEAT_THRESHOLD)
        loader = build_detection_train_loader(
            dicts, mapper=_count, sampler=RepeatFactorTrainingSampler(factors, seed=0),
            total_batch_size=BATCH_SIZE, num_workers=WORKERS,
        )  # fmt: skip
        del dicts  # as its own train loader does
        _draw(loader)
        return float(factors.double().sum())

    return run


def _count(record: dict[str, Any]) -> dict[str, Any]:
    """In the place of a mapper that reads the image: touches all of the record."""
    coordinates = sum(len(polygon) for a in record["annotations"] for polygon in a["segmentation"])
    return {"width": record["width"], "height": record["height"], "coordinates": coordinates}


def _draw(loader: Any) -> None:
    batches = iter(loader)
    for _ in range(BATCHES):
        assert len(next(batches)) == BATCH_SIZE


def notebook(path: str) -> Callable[[], Any]:
    def run() -> Any:  # notebook 01 up to its first figure, the imports included
        import rio

        data = rio.open_dataset(path)
        with tempfile.TemporaryFile() as file:
            rio.plots.count_by_group(data.table).figure.savefig(file, format="svg")

    return run


def import_rio(path: str) -> Callable[[], Any]:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rio"]:
        del sys.modules[name]  # this module has imported a part of it

    def run() -> Any:
        import rio  # noqa: F401

    return run


def run(scale: float = 1.0) -> list[dict[str, Any]]:
    """The rows of the table; `tests.benchmarks.__main__` says what is in one."""
    path = lvis_size.cached(scale)
    with tempfile.TemporaryDirectory(prefix="rio-benchmark-cache-") as folder:
        cache, other = f"{folder}/counts", f"{folder}/training"
        cold, warm = (measure(counts_ours, path, cache=cache) for _ in range(2))
        first_figure = measure(notebook, path, cache=cache)
        train_cold, train_warm = (measure(training_ours, path, cache=other, tree=True) for _ in range(2))
        instant = measure(import_rio, path, cache=cache)
    lvis = measure(counts_lvis, path, cache="off")
    detectron2 = measure(training_detectron2, path, cache="off", tree=True)
    assert cold["answer"] == warm["answer"] == lvis["answer"], "ours and lvis count differently"
    assert train_cold["answer"] == train_warm["answer"] == detectron2["answer"], "repeat factors differ"
    size = f"{path.stat().st_size / 1e9:.2g} GB JSON"
    ready = f"{size} -> training batches, RFS, {WORKERS} workers"
    return [
        row(f"{size} -> columns and counts, cold", cold, "8x less CPU, 4x less memory", "lvis.LVIS", lvis, (8, 4)),
        row("the same, cached", warm, "1 s, 0.4 GB", "lvis.LVIS", lvis, most=(1.0, 0.4)),
        row(f"{ready}, cold", train_cold, "5x less CPU, 4x less memory", "detectron2", detectron2, (5, 4)),
        row("the same, cached", train_warm, "3 s", "detectron2", detectron2, most=(3.0, None)),
        row("import rio", instant, "0.2 s", most=(0.2, None)),
        row("notebook 01's first figure, cached", first_figure, "3 s", most=(3.0, None)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of LVIS's 100,170 images")
    for line in run(parser.parse_args().scale):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
