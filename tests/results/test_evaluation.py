"""Evaluation against the official `lvis` package, bit for bit, and by hand."""

import copy
import dataclasses
import json
import math
import os

import numpy as np
import pandas as pd
import pytest

from rio.data.load import load_annotations
from rio.results import matching, reading
from rio.results.evaluation import METRICS, Evaluation, evaluate
from rio.results.official import numpy_float
from rio.results.reading import ResultsError
from tests.support.annotation_files import write
from tests.support.evaluations import assert_identical, official, random_ground_truth, random_results, without_boxes
from tests.support.finished_runs import FOUND, invented
from tests.support.result_files import GOOD, MASK, category, coco_file, image, prediction, rle, thing


def checked(path, records, *iou_types, max_dets=300, backend="hotcoco"):
    """Our evaluation, after it was found to be the official one to the bit."""
    result = evaluate(path, records, iou_types=iou_types, max_dets=max_dets, backend=backend)
    for iou_type in iou_types:
        assert_identical(result, official(path, records, iou_type, max_dets), iou_type)
    return result


def test_real_annotations_are_bit_identical(shared_dir, tmp_path):
    path = shared_dir / "data" / "lvis_val_100.json"
    records = invented(load_annotations(path), FOUND["none"], np.random.default_rng(0))
    result = evaluate(path, write(tmp_path / "dt.json", records))
    for iou_type in ("bbox", "segm"):
        assert_identical(result, official(path, records, iou_type), iou_type)
    assert all(20 < metrics["AP"] < 100 for metrics in result.metrics.values())  # no empty comparison


@pytest.mark.parametrize("seed", range(9))
def test_random_cases_are_bit_identical(seed, tmp_path):
    rng = np.random.default_rng(seed)
    ground_truth = random_ground_truth(rng)
    records = random_results(rng, ground_truth)
    if seed > 6:
        records = without_boxes(records)
    path = write(tmp_path / "gt.json", ground_truth)
    max_dets = (300, 8, -1)[seed % 3]  # 8: the cap bites in many images
    for backend in ("lvis", "hotcoco"):
        ours = checked(path, records, "bbox", "segm", max_dets=max_dets, backend=backend)
    assert ours.info["predictions_bbox"]["without_area"] > 0


@pytest.mark.parametrize("boxes, library", [(True, "hotcoco"), (True, "pycocotools"), (False, "pycocotools")])
def test_masks_compared_while_a_file_is_read_are_bit_identical(boxes, library, tmp_path, monkeypatch):
    """Pieces of a few records, of all images mixed; the cap, which is known at the end only, bites."""
    rng = np.random.default_rng(5)
    ground_truth = random_ground_truth(rng)
    for a in ground_truth["annotations"][::2]:  # equally close objects, some of them outside the area range
        twin = {**a, "id": a["id"] + 1000, "area": float(rng.choice([500.0, 2000.0]))}
        ground_truth["annotations"].append(twin)
    records = random_results(rng, ground_truth)
    if not boxes:
        records = without_boxes(records)
    path, results = write(tmp_path / "gt.json", ground_truth), write(tmp_path / "dt.json", records)
    monkeypatch.setattr(reading, "PIECE_BYTES", 700)
    monkeypatch.setattr(matching, "PAIRS_FOR_C", 0 if library == "pycocotools" else 10**9)
    result = evaluate(path, results, max_dets=8)
    for iou_type in ("bbox", "segm"):
        assert_identical(result, official(path, records, iou_type, 8), iou_type)
    monkeypatch.undo()
    assert result.info["predictions_segm"] == evaluate(path, records, max_dets=8).info["predictions_segm"]


def test_how_many_objects_a_recall_takes_is_decided_by_the_quotient():
    for total in (*range(1, 130), 997, 41_234):
        recalls = np.arange(1, total + 1) / total
        expected = np.searchsorted(recalls, matching.RECALL_THRESHOLDS) + 1
        assert matching.objects_needed(np.array([total]))[0].tolist() == expected.tolist(), total


@pytest.mark.parametrize("max_dets", [300, 400, -1])
def test_the_cap_of_300_an_image_over_all_categories(lvis_file, max_dets):
    path = lvis_file(
        [image(1), image(2, [5])],
        [category(4), category(5)],
        [thing(1, 1, 4, [10, 10, 20, 20]), thing(2, 1, 5, [60, 10, 20, 20])],
    )
    # 320 better-scored empty or wrong predictions stand before the right one
    records = [prediction(1, 5, 0.9, [0, 0, 5, 0 if i % 2 else 5]) for i in range(320)]
    records += [prediction(1, 4, 0.1, [10, 10, 20, 20]), prediction(2, 5, 0.95, [0, 0, 9, 9])]
    result = checked(path, records, "bbox", max_dets=max_dets)
    assert result.per_category["AP_bbox"].tolist() == pytest.approx([0.0 if max_dets == 300 else 100.0, 0.0])
    assert result.info["predictions_bbox"]["over_max_dets"] == (21 if max_dets == 300 else 0)


@pytest.mark.parametrize("max_dets", [400, -1])
def test_more_than_300_predictions_of_one_category_in_an_image(lvis_file, max_dets):
    path = lvis_file([image(1)], [category(1)], [thing(1, 1, 1, [10, 10, 20, 20])])
    records = [prediction(1, 1, 0.9, box, segmentation=rle(box)) for box in [[60, 60, 20, 20]] * 350]
    records.append(prediction(1, 1, 0.1, [10, 10, 20, 20], segmentation=rle([10, 10, 20, 20])))
    result = checked(path, records, "bbox", "segm", max_dets=max_dets)
    assert result.metrics["bbox"]["AP"] == result.metrics["segm"]["AP"] == pytest.approx(100 / 351)


def test_a_masks_area_is_the_masks_even_where_a_box_stands_beside_it(lvis_file):
    """An unmatched mask of 100 pixels in a box of 80 x 80 is a false positive among the small, not the large."""
    path = lvis_file([image(1)], [category(1)], [thing(1, 1, 1, [10, 10, 10, 10])])
    records = [
        prediction(1, 1, 0.9, [0, 0, 80, 80], segmentation=rle([40, 40, 10, 10])),
        prediction(1, 1, 0.8, [10, 10, 10, 10], segmentation=rle([10, 10, 10, 10])),
    ]
    result = checked(path, records, "bbox", "segm")
    assert result.metrics["bbox"]["APs"] == pytest.approx(100) and result.metrics["segm"]["APs"] == pytest.approx(50)


def test_nothing_left_to_judge_is_what_the_official_package_says(lvis_file):
    path = lvis_file(
        [image(1)],
        [category(1, "r"), category(2, "c"), category(3, "f")],
        [thing(1, 1, 1, [10, 10, 20, 20]), thing(2, 1, 3, [10, 10, 60, 60])],
    )
    records = [prediction(1, 2, 0.9, [10, 10, 20, 20])]  # unverified in the only image
    for backend in ("hotcoco", "lvis"):
        result = checked(path, records, "bbox", backend=backend)
    assert result.metrics["bbox"]["AP"] == 0 and math.isnan(result.metrics["bbox"]["APc"])


def test_federation_by_hand(lvis_file):
    """Class 1 is found in image 1; a false positive of it comes first in score, in an image of each sort."""
    things = [thing(1, 1, 1, [10, 10, 20, 20]), thing(2, 3, 2, [10, 10, 20, 20])]

    def wrong(image_id):
        return [prediction(image_id, 1, 0.9, [50, 50, 20, 20]), prediction(1, 1, 0.8, [10, 10, 20, 20])]

    path = lvis_file(
        [image(1), image(2, negative=[1]), image(3), image(4, [1], [1])], [category(1), category(2)], things
    )
    ap = {i: evaluate(path, wrong(i), iou_types=("bbox",)).per_category["AP_bbox"][0] for i in (1, 2, 3, 4)}
    assert ap[1] == ap[2] == pytest.approx(50)  # verified absent, or present elsewhere in the image: it counts
    assert ap[3] == pytest.approx(100)  # nobody looked for class 1 in image 3
    assert ap[4] == pytest.approx(100)  # looked for, but not exhaustively
    exhaustive = lvis_file([image(1, [], [1])], [category(1), category(2)], things[:1], "nel.json")
    assert evaluate(exhaustive, wrong(1), iou_types=("bbox",)).per_category["AP_bbox"][0] == pytest.approx(100)


def test_coco_format_verifies_every_category_in_every_image(tmp_path):
    path = coco_file(tmp_path, [thing(0, 1, 1, [10, 10, 20, 20], iscrowd=0)])  # id 0 is an id as any
    records = [prediction(2, 1, 0.9, [50, 50, 20, 20]), prediction(1, 1, 0.8, [10, 10, 20, 20])]
    for backend in ("hotcoco", "lvis"):
        result = evaluate(path, records, iou_types=("bbox",), backend=backend)
        assert result.per_category["AP_bbox"].tolist()[0] == pytest.approx(50)
        assert math.isnan(result.per_category["AP_bbox"][1])
    assert "COCO" in result.info["protocol"]


@pytest.mark.parametrize("seed", range(4))
def test_coco_format_is_lvis_with_all_the_lists_filled_in(seed, tmp_path):
    rng = np.random.default_rng(100 + seed)
    ground_truth = random_ground_truth(rng)
    for a in ground_truth["annotations"]:
        a.pop("ignore", None)  # which COCO does not know
    records = random_results(rng, ground_truth)
    ids = [c["id"] for c in ground_truth["categories"]]
    as_coco = copy.deepcopy(ground_truth)
    for i in as_coco["images"]:
        del i["neg_category_ids"], i["not_exhaustive_category_ids"]
    as_lvis = copy.deepcopy(ground_truth)
    for i in as_lvis["images"]:
        i["neg_category_ids"] = ids
        i["not_exhaustive_category_ids"] = [
            a["category_id"] for a in ground_truth["annotations"] if a["image_id"] == i["id"] and a.get("iscrowd")
        ]
    as_lvis["annotations"] = [a for a in as_lvis["annotations"] if not a.get("iscrowd")]
    result = evaluate(write(tmp_path / "coco.json", as_coco), records)
    reference = write(tmp_path / "lvis.json", as_lvis)
    for iou_type in ("bbox", "segm"):
        assert_identical(result, official(reference, records, iou_type), iou_type)


def test_frequency_groups_come_from_the_annotations(tmp_path):
    path = coco_file(tmp_path, [thing(1, 1, 1, [10, 10, 20, 20])])
    annotations = load_annotations(path)
    records = [prediction(1, 1, 0.8, [10, 10, 20, 20])]
    metrics = evaluate(annotations, records, iou_types=None).metrics["bbox"]
    assert metrics["APr"] == pytest.approx(100) and math.isnan(metrics["APf"])
    frequent = dataclasses.replace(annotations, frequency=np.array(["f", "f"]))
    assert evaluate(frequent, records, iou_types=None).metrics["bbox"]["APf"] == pytest.approx(100)
    with pytest.raises(ValueError, match=r"coco\.json.*'frequency'.*expected 'r', 'c' or 'f'.*'x'"):
        evaluate(dataclasses.replace(annotations, frequency=np.array(["f", "x"])), records)


def test_no_ground_truth_at_all(tmp_path):
    path = coco_file(tmp_path, [])
    result = evaluate(path, [prediction(1, 1, 0.8, [10, 10, 20, 20])], iou_types=None)
    assert all(math.isnan(v) for v in result.metrics["bbox"].values())
    assert "-" in result.table()


def test_empty_results(small, tmp_path):
    path = write(tmp_path / "dt.json", [])
    for results in ([], path):
        with pytest.raises(ResultsError, match="at least one prediction.*an empty list.*trained"):
            evaluate(small, results)
    metrics = evaluate(small, path, allow_empty=True).metrics
    assert metrics["bbox"]["AP"] == metrics["segm"]["AP"] == metrics["bbox"]["APr"] == 0
    assert math.isnan(metrics["bbox"]["APc"])


def test_masks_asked_for_but_not_there(small):
    with pytest.raises(ResultsError, match=r"'segmentation'.*found nothing.*iou_types=\('bbox',\)"):
        evaluate(small, [GOOD])
    assert list(evaluate(small, [GOOD], iou_types=None).metrics) == ["bbox"]
    without = load_annotations(small.path, segmentations=False)
    with pytest.raises(ValueError, match=r"gt\.json: annotation 1, key 'segmentation'.*segmentations=True"):
        evaluate(without, [MASK])
    assert evaluate(without, [MASK], iou_types=("bbox",)).metrics["bbox"]["AP"] == 0


@pytest.fixture
def result(small):
    records = [prediction(5, 8, 0.5, [10, 10, 20, 20]), prediction(9, 3, 0.9, [0, 0, 20, 20])]
    return evaluate(small, records, iou_types=("bbox",))


def test_json_round_trip(result, tmp_path):
    path = tmp_path / "run" / "evaluation.json"
    result.to_json(path)
    assert "NaN" not in path.read_text() and json.loads(path.read_text())["metrics"]["bbox"]["APc"] is None
    back = Evaluation.from_json(path)
    np.testing.assert_equal(back.metrics, result.metrics)
    assert back.info == result.info and back.precision == {}
    assert back.table() == result.table()

    pd.testing.assert_frame_equal(back.per_category, result.per_category, check_dtype=False)
    assert os.listdir(path.parent) == ["evaluation.json"]


def test_what_is_no_evaluation(result, tmp_path):
    path = tmp_path / "evaluation.json"
    for text in (b"", b"[]", b"{}", b'{"metrics": {}, "info": {}, "per_category": {}}', b'{"metrics"', b"\xff"):
        path.write_bytes(text)
        with pytest.raises(ResultsError, match=r"evaluation\.json.*Evaluation\.to_json.*evaluate the results again"):
            Evaluation.from_json(path)
    result.to_json(path)
    content = json.loads(path.read_text())
    for damage in (lambda c: c["metrics"]["bbox"].pop("APr"), lambda c: c["per_category"]["name"].pop()):
        broken = copy.deepcopy(content)
        damage(broken)
        with pytest.raises(ResultsError, match="Evaluation.to_json"):
            Evaluation.from_json(write(path, broken))
    with pytest.raises(FileNotFoundError, match="python -m rio eval"):
        Evaluation.from_json(tmp_path / "none.json")


def test_tables(result):
    lines = result.table().splitlines()
    assert lines[0].split() == list(METRICS) and lines[2].split()[0] == "bbox" and len(lines) == 3
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split()[7:] == ["100.00", "-", "0.00"]
    frame = result.per_category
    assert list(frame) == ["category_id", "name", "frequency", "image_count", "instance_count", "AP_bbox", "AP_segm"]
    assert frame["category_id"].tolist() == [3, 8] and frame["AP_bbox"].tolist() == pytest.approx([0, 100])
    assert frame["AP_segm"].isna().all() and frame["instance_count"].tolist() == [1, 1]


def test_precision_recall(result, tmp_path):
    curve = result.precision_recall(8)
    assert len(curve) == 101 and np.allclose(curve["precision"], 1) and curve["recall"].iloc[-1] == 1
    for wrong in ({"category_id": 4}, {"iou_threshold": 0.6001}, {"iou_type": "segm"}):
        with pytest.raises(ValueError, match="expected"):
            result.precision_recall(**({"category_id": 8} | wrong))


def test_numpy_is_left_as_it_was():
    before = {name: vars(np).get(name) for name in ("float", "bool", "int")}
    with pytest.raises(RuntimeError), numpy_float():
        assert np.float is float
        raise RuntimeError
    assert {name: vars(np).get(name) for name in ("float", "bool", "int")} == before
