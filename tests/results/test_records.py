"""Results in the spellings of other tools; results that hold more than the ground truth; what AP leaves unsaid."""

import codecs
import json

import numpy as np
import pytest

from rio.data.errors import AnnotationError
from rio.data.load import load_annotations
from rio.results import reading
from rio.results.evaluation import evaluate
from rio.results.reading import ResultsError, load_results
from tests.support.annotation_files import write
from tests.support.result_files import GOOD, HEIGHT, WIDTH, category, coco_file, image, prediction, rle, thing

BOX = [10.0, 10.0, 20.0, 20.0]
OUTLINE = [10, 10, 30, 10, 30, 30, 10, 30]
MASKED = prediction(5, 8, 0.5, BOX, segmentation=rle(BOX))
SPELLINGS = {
    "whole floats": (MASKED | {"image_id": 5.0, "category_id": 8.0}, MASKED),
    "a size of floats": (MASKED | {"segmentation": {**rle(BOX), "size": [float(HEIGHT), float(WIDTH)]}}, MASKED),
    "no mask as []": (GOOD | {"segmentation": []}, GOOD),
    "no mask as [[]]": (GOOD | {"segmentation": [[]]}, GOOD),
    "no mask as text": (GOOD | {"segmentation": ""}, GOOD),
    "no box as []": (MASKED | {"bbox": []}, {k: v for k, v in MASKED.items() if k != "bbox"}),
    "polygons": (MASKED | {"segmentation": [OUTLINE]}, MASKED),
    "a flat polygon": (MASKED | {"segmentation": OUTLINE}, MASKED),
    "a polygon of pairs": (MASKED | {"segmentation": [np.reshape(OUTLINE, (-1, 2)).tolist()]}, MASKED),
}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("source", ["list", "file"])
def test_a_spelling_that_means_one_thing_is_taken(name, source, small, tmp_path):
    odd, plain = ([record, record | {"score": 0.25}] for record in SPELLINGS[name])
    found = load_results(odd if source == "list" else write(tmp_path / "dt.json", odd), small)
    expected = load_results(plain, small)
    assert found.has_boxes == expected.has_boxes and found.scores.tolist() == expected.scores.tolist()
    for column in ("image_index", "class_id", "boxes", "mask_areas"):
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))
    assert list(found.rles or ()) == list(expected.rles or ())


def test_ids_that_are_text_in_the_ground_truth(tmp_path):
    truth = {"images": [{"id": "street-2", "width": WIDTH, "height": HEIGHT, "file_name": "a.jpg"}]}
    truth |= {"categories": [{"id": "car", "name": "car"}, {"id": "bus", "name": "bus"}]}
    truth |= {"annotations": [{"id": 1, "image_id": "street-2", "category_id": "car", "bbox": BOX, "area": 400}]}
    path = write(tmp_path / "gt.json", truth)
    assert evaluate(path, [prediction("street-2", "car", 0.9, BOX)], iou_types=None).metrics["bbox"]["AP"] > 99
    with pytest.raises(ResultsError, match="record 0, key 'category_id'.*found `str`"):
        load_results([prediction("street-2", "van", 0.9, BOX)], load_annotations(path))


@pytest.mark.parametrize("piece", [70, 1 << 19])
def test_a_byte_order_mark(piece, small, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PIECE_BYTES", piece)
    records = [GOOD | {"score": i / 10, "note": "},{"} for i in range(9)]
    (tmp_path / "dt.json").write_bytes(codecs.BOM_UTF8 + json.dumps(records).encode())
    assert load_results(tmp_path / "dt.json", small).scores.tolist() == [i / 10 for i in range(9)]


# ---- more than the ground truth holds


def test_predictions_of_other_categories_and_images_can_be_left_out(small, tmp_path, monkeypatch):
    others = [MASKED | {"category_id": 77}, MASKED | {"image_id": 6}]
    records = [others[0], MASKED, *others, MASKED | {"score": 0.1}] * 3
    path = write(tmp_path / "dt.json", records)
    monkeypatch.setattr(reading, "PIECE_RECORDS", 2)
    monkeypatch.setattr(reading, "PIECE_BYTES", 400)
    with pytest.raises(ResultsError, match=r"record 0, key 'category_id'.*found 77.*\?skip at the end"):
        load_results(path, small)
    for found in (load_results(f"{path}?skip", small), load_results(records, small, on_error="skip")):
        assert found.left_out == 9 and found.scores.tolist() == [0.5, 0.1] * 3 and len(found.rles) == 6
    scored = evaluate(small, f"{path}?skip", iou_types=None)
    expected = evaluate(small, [MASKED, MASKED | {"score": 0.1}] * 3, iou_types=None)
    np.testing.assert_equal(scored.metrics, expected.metrics)
    assert "9 predictions of categories or images that the ground truth lacks were left out" in scored.table()
    with pytest.raises(ResultsError, match="at least one prediction, found 2 of other categories or images"):
        evaluate(small, f"{write(tmp_path / 'others.json', others)}?skip")


def test_errors_name_the_record_although_others_were_left_out(small, tmp_path, monkeypatch):
    records = [GOOD | {"category_id": 77}, GOOD, GOOD | {"category_id": 77}, GOOD | {"bbox": [1, 2, -3, -4]}]
    for piece in (70, 1 << 19):
        monkeypatch.setattr(reading, "PIECE_BYTES", piece)
        with pytest.raises(ResultsError, match="record 3, key 'bbox'"):
            load_results(f"{write(tmp_path / 'dt.json', records)}?skip", small)


# ---- masks in results, boxes in the ground truth


@pytest.mark.parametrize("protocol", ["lvis", "lvis_fixed", "coco"])
@pytest.mark.parametrize("source", ["list", "file", "loaded"])
def test_masks_against_a_ground_truth_of_boxes(source, protocol, tmp_path):
    box = {k: v for k, v in thing(1, 1, 1, BOX).items() if k != "segmentation"}
    truth = load_annotations(coco_file(tmp_path, [box]))
    records = [prediction(1, 1, 0.5, BOX, segmentation=rle(BOX))]
    path = write(tmp_path / "dt.json", records)
    results = {"list": records, "file": path, "loaded": load_results(records, truth)}[source]
    scored = evaluate(truth, results, iou_types=None, protocol=protocol)
    assert list(scored.metrics) == ["bbox"] and scored.metrics["bbox"]["AP"] == pytest.approx(100)
    assert "the ground truth has boxes only, so the masks of the results were not judged" in scored.table()
    for kinds in (("segm",), ("bbox", "segm")):
        with pytest.raises(AnnotationError, match=r"annotation 1, key 'segmentation'.*found nothing.*--iou-type bbox"):
            evaluate(truth, results, iou_types=kinds, protocol=protocol)


@pytest.mark.parametrize("broken", [{"size": [3, 4], "counts": "0"}, [[1, 2, 3]]], ids=["RLE", "polygon"])
def test_a_broken_mask_of_the_ground_truth_matters_to_masks_only(broken, lvis_file, tmp_path):
    path = lvis_file([image(5)], [category(8)], [thing(1, 5, 8, BOX, segmentation=broken)])
    for results in ([prediction(5, 8, 0.5, BOX)], write(tmp_path / "dt.json", [prediction(5, 8, 0.5, BOX)])):
        assert evaluate(path, results, iou_types=None).metrics["bbox"]["AP"] == pytest.approx(100)
    for results in ([MASKED], write(tmp_path / "dt.json", [MASKED])):
        with pytest.raises(AnnotationError, match="segmentation"):
            evaluate(path, results, iou_types=None)
        assert evaluate(path, results, iou_types=("bbox",)).metrics["bbox"]["AP"] == pytest.approx(100)


# ---- notes


def test_notes_say_where_groups_come_from_and_what_has_no_part(tmp_path, lvis_file):
    records = [prediction(1, 1, 0.9, BOX)]
    truth = load_annotations(coco_file(tmp_path, [thing(1, 1, 1, BOX), thing(2, 2, 2, BOX, area=0)]))
    groups, empty = evaluate(truth, records, iou_types=("bbox",)).info["notes"][::-1]
    assert groups.startswith(f"the groups of APr, APc and APf are by the image counts of {truth.path} itself. Fix: ")
    assert empty.startswith("1 of 2 objects have an area of 0 and are left out, by LVIS's rule")
    assert evaluate(truth, records, iou_types=("bbox",), protocol="coco").info["notes"] == [groups]
    told = truth.with_frequency_of(truth)
    assert evaluate(told, records, iou_types=("bbox",)).info["notes"] == [empty]
    declared = lvis_file([image(1)], [category(1)], [thing(1, 1, 1, BOX)])
    assert evaluate(declared, records, iou_types=("bbox",)).info["notes"] == []
    for things, words in (([], "no object to judge by"), ([thing(1, 1, 1, BOX, area=0)], "(all 1 have area 0)")):
        nothing = evaluate(lvis_file([image(1)], [category(1)], things), records, iou_types=("bbox",))
        assert len(nothing.info["notes"]) == 1 and words in nothing.table()
