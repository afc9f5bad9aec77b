"""Inference: what is written is what is scored; test time augmentation; one image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from rio.data.images import read_image
from rio.data.load import load_annotations
from rio.data.names import annotations_of
from rio.engine.errors import TrainingError
from rio.engine.inference import Predictor, ResultsCollector, evaluate_model, load_model
from rio.engine.setup import setup_inference
from rio.engine.weights import CheckpointError
from rio.results.evaluation import Evaluation, evaluate
from tests.data.test_repairs import text_ids
from tests.support.annotation_files import coco, write


def test_evaluation_is_that_of_the_written_results(straight, tiny_set):
    output = Path(straight.cfg.OUTPUT_DIR)
    stored = Evaluation.from_json(output / "evaluation.json")
    train, val = (annotations_of(f"{tiny_set}/{s}.json@{tiny_set}/{s}") for s in ("train", "val"))
    direct = evaluate(val.with_frequency_of(train), output / "instances_results.json")
    for kind in ("bbox", "segm"):
        np.testing.assert_equal(stored.metrics[kind], direct.metrics[kind])
    assert stored.per_category["frequency"].tolist() == train.frequency.tolist()
    results = json.loads((output / "instances_results.json").read_text())
    assert {r["category_id"] for r in results} <= set(val.category_ids.tolist())
    last = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    assert last["iteration"] == 6 and last["bbox/AP"] == pytest.approx(stored.metrics["bbox"]["AP"])


def test_nothing_found_is_an_ap_of_zero_with_a_warning(prepared, tmp_path):
    run = prepared(tmp_path, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0, max_iter=1)
    assert run.train()["bbox"]["AP"] == 0
    assert "found nothing at all" in (tmp_path / "log.txt").read_text()


def test_test_time_augmentation_is_evaluated_too(straight, tiny_config, tmp_path):
    options = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48,)", "TEST.AUG.MAX_SIZE", 64]
    cfg = setup_inference(tiny_config(tmp_path, *options))
    model = load_model(cfg, str(Path(straight.cfg.OUTPUT_DIR, "model_final.pth")))
    found = evaluate_model(cfg, model, output_dir=str(tmp_path))
    name = cfg.DATASETS.TEST[0]
    assert list(found) == [name, f"{name} (tta)"]
    plain = Evaluation.from_json(Path(straight.cfg.OUTPUT_DIR) / "evaluation.json")
    for kind in plain.metrics:
        assert found[name].metrics[kind] == pytest.approx(plain.metrics[kind], nan_ok=True)
    assert (tmp_path / "tta" / "instances_results.json").exists()

    def forward(images: list) -> None:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    model.forward = forward
    with pytest.raises(TrainingError, match=r"out of memory in the evaluation on .*Fix: lower INPUT.MIN_SIZE_TEST"):
        evaluate_model(cfg, model, output_dir=str(tmp_path))


def test_predictor_takes_rgb_and_answers_in_the_images_pixels(straight, tiny_config, tiny_set, tmp_path):
    cfg = setup_inference(tiny_config(tmp_path))
    predictor = Predictor(cfg, str(Path(straight.cfg.OUTPUT_DIR, "model_final.pth")))
    image = read_image(tiny_set / "val" / "000001.jpg")
    found = predictor(np.kron(image, np.ones((2, 3, 1), np.uint8)))
    assert found.image_size == (96, 144) and found.pred_masks.shape[1:] == (96, 144)
    with pytest.raises(CheckpointError, match="--weights"):
        load_model(cfg)


@pytest.mark.parametrize(("change", "expected"), [(lambda data: None, (3, 90)), (text_ids, ("c3", "k90"))])
def test_results_have_the_ids_of_the_file(tmp_path, change, expected):
    data = coco()
    change(data)
    annotations = load_annotations(write(tmp_path / "set.json", data))
    found = Instances((48, 64))
    found.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 11.0, 22.0]]))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([2])
    collector = ResultsCollector(annotations)
    for image_id in annotations.image_ids[::-1].tolist():
        collector.process([{"image_id": image_id}], [{"instances": found}])
    first, _ = collector.evaluate()["results"]
    assert (first["image_id"], first["category_id"]) == expected and first["bbox"] == [1, 2, 10, 20]
