"""Detections as result records: in the order of the data set, with the annotation file's own ids."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, Instances

from rio.data.load import load_annotations
from rio.engine.inference import ResultsCollector
from tests.data.test_repairs import text_ids
from tests.support.annotation_files import coco, write


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
