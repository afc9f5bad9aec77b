"""Real photographs in COCO format, from the command line as a user with her own data would.

The commands are those of the README's section "Your own data", with fewer iterations.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rio.cli.parser import main
from rio.data.load import load_annotations
from rio.results.evaluation import Evaluation
from tests.support.steps import lines_of


@pytest.fixture(scope="module")
def coco(shared_dir) -> Path:
    return shared_dir / "data" / "tiny_coco"


@pytest.fixture(scope="module")
def run(coco, repository, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "mine"
    words = [
        "train",
        "--config-file", repository / "configs" / "custom" / "rio_small_cpu.yaml",
        "--train-json", coco / "annotations" / "instances_train2017.json",
        "--train-images", coco / "train2017",
        "--val-json", coco / "annotations" / "instances_val2017.json",
        "--val-images", coco / "val2017",
        "--output-dir", output,
        "SOLVER.MAX_ITER", 3, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.WARMUP_ITERS", 1,
        # Random weights, so that the test needs no further package; the README's command keeps the config's.
        "MODEL.WEIGHTS", "", "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0,
        "TEST.DETECTIONS_PER_IMAGE", 10, "INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160,
    ]  # fmt: skip
    assert main(list(map(str, words))) == 0
    return output


def test_training_on_photographs_gives_a_whole_run(run, coco):
    config = (run / "config.yaml").read_text()
    assert "NUM_CLASSES: 80" in config and "instances_train2017.json@" in config
    train = load_annotations(coco / "annotations" / "instances_train2017.json", on_error="skip")
    stored = Evaluation.from_json(run / "evaluation.json")
    assert set(stored.metrics) == {"bbox", "segm"} and stored.info["images"] == 50
    assert stored.per_category["frequency"].tolist() == train.frequency.tolist(), "groups come from the training set"
    assert np.isfinite(lines_of(run)[0]["total_loss"])


def test_evaluating_and_predicting_afterwards(run, coco, tmp_path, command):
    judged = ["--results", run / "instances_results.json", "--gt", coco / "annotations" / "instances_val2017.json"]
    train = ["--train-json", coco / "annotations" / "instances_train2017.json"]
    command("eval", *judged, *train, "--output-dir", tmp_path / "eval")
    again, own = (Evaluation.from_json(p / "evaluation.json").metrics["bbox"] for p in (tmp_path / "eval", run))
    assert again["AP"] == pytest.approx(own["AP"])
    photographs, threshold = coco / "val2017", ["--score-threshold", 0.05]
    weights = ["--weights", run / "model_final.pth", "--output", tmp_path / "pictures"]
    command("predict", sorted(photographs.glob("*.jpg"))[0], *weights, *threshold)
    drawn = ["--gt-images", photographs, "--output", tmp_path / "results", "--limit", 1]
    command("predict", *judged, *drawn, *threshold)
    for folder in ("pictures", "results"):
        (picture,) = (tmp_path / folder).iterdir()
        with Image.open(picture) as image:
            assert min(image.size) > 100 and np.asarray(image).std() > 5
