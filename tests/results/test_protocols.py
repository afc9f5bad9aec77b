"""The protocols beside LVIS's own: COCO's against pycocotools, AP-fixed against the official `lvis`, bit for bit."""

import contextlib
import copy
import dataclasses
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rio.data.load import load_annotations
from rio.results.evaluation import evaluate
from rio.results.protocols import PROTOCOLS
from rio.results.reading import load_results
from tests.support.annotation_files import write
from tests.support.evaluations import assert_identical, official, random_ground_truth, random_results, without_boxes
from tests.support.result_files import GOOD, category, coco_file, image, prediction, rle, thing


def pycocotools_says(path, records, iou_type):
    """From file to numbers, nothing of ours in between: precision (T, R, K, A), the metrics in 0..1."""
    records = without_boxes(records) if iou_type == "segm" else copy.deepcopy(records)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        run = COCOeval(truth, truth.loadRes(records), iou_type)
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval["precision"][..., -1]
    metrics = dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), run.stats.tolist(), strict=False))
    groups = [c.get("frequency", "r") for c in truth.loadCats(sorted(truth.getCatIds()))]
    for group in "rcf":
        there = precision[:, :, [g == group for g in groups], 0]
        there = there[there > -1]
        metrics[f"AP{group}"] = float(np.mean(there)) if len(there) else -1
    return precision, metrics


@pytest.mark.parametrize("seed", range(4))
def test_coco_is_pycocotools_to_the_bit(seed, tmp_path):
    rng = np.random.default_rng(seed)
    truth = random_ground_truth(rng)
    for i in truth["images"]:
        del i["neg_category_ids"], i["not_exhaustive_category_ids"]
    for a in truth["annotations"]:
        a["iscrowd"] = int(rng.random() < 0.3)
    records = random_results(rng, truth, per_image=(30, 1500, 30, 30)[seed])  # 1500: the cap of 100 bites
    if seed == 2:
        records = without_boxes(records)
    path, results = write(tmp_path / "gt.json", truth), write(tmp_path / "dt.json", records)
    for backend in PROTOCOLS["coco"].backends:
        result = evaluate(path, results, protocol="coco", backend=backend)
        for iou_type in ("bbox", "segm"):
            assert_identical(result, pycocotools_says(path, records, iou_type), iou_type)
    counts = result.info["predictions_bbox"]
    assert sum(counts.values()) == len(records) and (counts["over_max_dets"] > 0) == (seed == 1)
    assert result.info["protocol"] == "COCO" and result.info["max_dets"] == 100


@pytest.mark.parametrize(
    ("truth", "results", "iou_type", "expected"),
    [
        ("instances_val2014_100", "instances_val2014_fakebbox100_results", "bbox", 0.5045806987249628),
        ("instances_val2014_100", "instances_val2014_fakesegm100_results", "segm", 0.3195452758576433),
        ("gt_coco611_val", "fastestdet_coco611val_bbox", "bbox", "fastestdet_expected"),
        ("gt_coco611_val", "yolox_nano_coco611val_bbox", "bbox", "yolox_nano_expected"),
    ],
)
def test_coco_on_real_photographs(shared_dir, truth, results, iou_type, expected):
    """cocoapi's own example, and two real detectors among eleven crowd regions."""
    folder = shared_dir / "golden" / "coco_eval"
    if not folder.is_dir():
        pytest.skip(f"no golden numbers: {folder}")
    if isinstance(expected, str):
        expected = json.loads((folder / f"{expected}.json").read_text())["all 217"]["AP"]
    path, results = folder / f"{truth}.json", folder / f"{results}.json"
    result = evaluate(path, results, iou_types=(iou_type,), protocol="coco")
    assert result.metrics[iou_type]["AP"] == expected * 100
    precision, _ = pycocotools_says(path, json.loads(results.read_text()), iou_type)
    np.testing.assert_array_equal(result.precision[iou_type], precision)


@pytest.mark.parametrize(
    ("wrong", "lvis", "coco"),
    [
        ([prediction(2, 1, 0.9, [40, 40, 20, 20])] * 2, 100, 100),  # in the crowd
        ([prediction(2, 1, 0.9, [0, 0, 20, 20])], 100, 50),  # beside it, same image, same class
        ([prediction(1, 1, 0.9, [50, 50, 20, 20])], 50, 50),  # another image
    ],
)
def test_a_crowd_region_excuses_its_image_under_lvis_and_what_lies_in_it_under_coco(wrong, lvis, coco, tmp_path):
    crowd = thing(2, 2, 1, [40, 40, 40, 40], iscrowd=1, segmentation=rle([40, 40, 40, 40]))
    path = coco_file(tmp_path, [thing(1, 1, 1, [10, 10, 20, 20], iscrowd=0), crowd])
    records = [*wrong, prediction(1, 1, 0.8, [10, 10, 20, 20])]
    for protocol, ap in (("lvis", lvis), ("coco", coco)):
        for backend in PROTOCOLS[protocol].backends:
            result = evaluate(path, records, iou_types=("bbox",), protocol=protocol, backend=backend)
            assert result.metrics["bbox"]["AP"] == pytest.approx(ap)


def test_coco_without_predictions_or_objects_and_on_lvis_files(tmp_path, small):
    path = coco_file(tmp_path, [thing(1, 1, 1, [10, 10, 20, 20], area=0)])  # an object without area is one
    result = evaluate(path, [], protocol="coco", allow_empty=True)
    assert result.metrics["bbox"]["AP"] == 0 and np.isnan(result.metrics["bbox"]["APm"])
    result = evaluate(coco_file(tmp_path, []), [prediction(1, 1, 0.9, [1, 2, 3, 4])], iou_types=None, protocol="coco")
    assert np.isnan(result.metrics["bbox"]["AP"])
    wrong = prediction(9, 8, 0.9, [1, 2, 3, 4])  # unverified in image 9: LVIS leaves it out
    records = [wrong, prediction(5, 8, 0.5, [10, 10, 20, 20])]
    ap = {p: evaluate(small, records, iou_types=None, protocol=p).metrics["bbox"]["APr"] for p in PROTOCOLS}
    assert ap == {"lvis": pytest.approx(100), "lvis_fixed": pytest.approx(100), "coco": pytest.approx(50)}
    assert "LVIS-format" in evaluate(small, records, iou_types=None, protocol="coco").info["protocol"]


@pytest.mark.parametrize("seed", range(3))
def test_ap_fixed_is_lvis_without_a_cap_after_the_best_of_each_category(seed, tmp_path, monkeypatch):
    rng = np.random.default_rng(seed)
    truth = random_ground_truth(rng)
    records = random_results(rng, truth)
    best = []
    for k in {r["category_id"] for r in records}:  # as the authors select; Python's sort is stable
        of_category = [r for r in records if r["category_id"] == k]
        best += sorted(of_category, key=lambda r: r["score"], reverse=True)[:7]
    assert len(best) < len(records)
    monkeypatch.setitem(PROTOCOLS, "lvis_fixed", dataclasses.replace(PROTOCOLS["lvis_fixed"], per_category=7))
    path, results = write(tmp_path / "gt.json", truth), write(tmp_path / "dt.json", records)
    for backend in PROTOCOLS["lvis_fixed"].backends:
        result = evaluate(path, results, protocol="lvis_fixed", backend=backend)
        for iou_type in ("bbox", "segm"):
            assert_identical(result, official(path, best, iou_type, max_dets=-1), iou_type)
    assert result.info["predictions_bbox"]["over_max_dets"] == len(records) - len(best)
    again = evaluate(path, load_results(records, load_annotations(path)), protocol="lvis_fixed")  # loaded before
    np.testing.assert_equal(again.metrics, result.metrics)


def test_ap_fixed_keeps_ten_thousand_of_a_category_and_caps_no_image(lvis_file):
    path = lvis_file([image(1)], [category(1), category(2)], [thing(1, 1, 1, [10, 10, 20, 20])])
    right = prediction(1, 1, 0.1, [10, 10, 20, 20])
    others = [prediction(1, 2, 0.9, [10, 10, 20, 20])] * 10_000  # of another category: no competitors
    for wrong, kept in ((0, True), (9_999, True), (10_000, False)):
        records = [*others, *[prediction(1, 1, 0.9, [60, 60, 20, 20])] * wrong, right]
        ap = evaluate(path, records, iou_types=("bbox",), protocol="lvis_fixed").metrics["bbox"]["AP"]
        assert ap == (pytest.approx(100 / (wrong + 1)) if kept else 0)
        assert evaluate(path, records, iou_types=("bbox",)).metrics["bbox"]["AP"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "voc"}, "protocol: expected one of lvis, lvis_fixed, coco, found 'voc'"),
        ({"protocol": "coco", "backend": "lvis"}, "backend: expected 'hotcoco' or 'pycocotools' for the protocol coco"),
        ({"backend": "pycocotools"}, "backend: expected 'hotcoco' or 'lvis' for the protocol lvis"),
        ({"protocol": "lvis_fixed", "max_dets": 300}, "max_dets: expected -1 for lvis_fixed.*found 300"),
        ({"backend": "coco"}, "backend: expected 'hotcoco' or 'lvis'"),
        ({"iou_types": ("keypoints",)}, "iou_types.*keypoints"),
        ({"max_dets": 0}, "max_dets.*positive"),
        ({"max_dets": 3.5}, "max_dets.*3.5"),
    ],
)
def test_arguments_that_are_wrong_or_do_not_go_together(arguments, message, small):
    with pytest.raises(ValueError, match=message):
        evaluate(small, [GOOD], **arguments)
