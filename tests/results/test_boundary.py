"""Boundary AP: the boundary by its definition, a case worked by hand, and both protocols against each other."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rio.data.load import load_annotations
from rio.results.boundary import boundary_of
from rio.results.evaluation import Evaluation, evaluate
from rio.results.reading import load_results
from tests.support.annotation_files import write
from tests.support.evaluations import random_ground_truth, random_results
from tests.support.result_files import category, image, lvis_file, thing

SIZE = (100, 100)  # a diagonal of 141 px, 2 % of which are 3 px


def square(left, top=10, side=40):
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + side, left : left + side] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    return rle | {"counts": rle["counts"].decode()}


def test_the_boundary_is_what_lies_near_the_outline_or_the_edge_of_the_image():
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 2, (8, 10)), np.ones((13, 11), int)).astype(np.uint8)  # a diagonal of 151: 3 px
    within = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 3), (7, 7)).min(axis=(2, 3))
    found = coco_mask.decode(boundary_of(coco_mask.encode(np.asfortranarray(mask))))
    assert (found == mask * (1 - within)).all() and 0 < within.sum() < mask.sum()


def test_by_hand(tmp_path):
    things = [thing(1, 1, 1, [10.0, 10.0, 40.0, 40.0], segmentation=square(10), area=1600)]
    path = lvis_file(tmp_path, [image(1, [], [], *SIZE)], [category(1)], things)
    # Shifted by 2 px: masks 1520 / 1680; boundaries have 40² - 34² = 444 px, of which 1520 - 1224 = 296 are common.
    records = [{"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": square(12)}]
    for protocol in ("lvis", "lvis_fixed", "coco"):
        result = evaluate(path, records, iou_types=("segm", "boundary"), protocol=protocol)
        ap = {kind: metrics["AP"] for kind, metrics in result.metrics.items()}
        assert ap == {"segm": pytest.approx(90), "boundary": pytest.approx(10)}
        assert result.per_category["AP_boundary"].tolist() == pytest.approx([10])
    result.to_json(tmp_path / "evaluation.json")
    again = Evaluation.from_json(tmp_path / "evaluation.json")
    assert again.metrics["boundary"] == pytest.approx(result.metrics["boundary"], nan_ok=True)
    assert again.table().splitlines()[-1].split()[:2] == ["boundary", "10.00"]
    same = [record | {"segmentation": square(10)} for record in records]
    assert evaluate(path, same, iou_types=("boundary",)).metrics["boundary"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("loaded", [False, True])
def test_both_protocols_agree_where_their_rules_do(tmp_path, loaded):
    rng = np.random.default_rng(3)
    truth = random_ground_truth(rng)
    for record in truth["images"]:
        del record["neg_category_ids"], record["not_exhaustive_category_ids"]
    truth["annotations"] = [a for a in truth["annotations"] if a["area"] and not a.keys() & {"iscrowd", "ignore"}]
    truth["annotations"] += [a | {"id": a["id"] + 1000} for a in truth["annotations"][::4]]  # equally close objects
    records = [r for r in random_results(rng, truth) if coco_mask.area(r["segmentation"])]
    path = write(tmp_path / "gt.json", truth)
    annotations = load_annotations(path)
    given = load_results(records, annotations) if loaded else records
    ours, coco = (evaluate(annotations, given, iou_types=("segm", "boundary"), protocol=p) for p in ("lvis", "coco"))
    assert 0 < ours.metrics["boundary"]["AP"] < ours.metrics["segm"]["AP"]
    for iou_type in ("segm", "boundary"):
        assert ours.metrics[iou_type]["AP"] == pytest.approx(coco.metrics[iou_type]["AP"], abs=1e-9)


def test_what_boundary_ap_needs(small):
    record = {"image_id": 5, "category_id": 8, "score": 0.5, "bbox": [10.0, 10.0, 20.0, 20.0]}
    with pytest.raises(ValueError, match="an RLE mask, found nothing"):
        evaluate(small, [record], iou_types=("boundary",))
    with pytest.raises(ValueError, match="with backend 'lvis', found 'boundary'"):
        evaluate(small, [record], iou_types=("boundary",), backend="lvis")
