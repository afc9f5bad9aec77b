"""The data doctor: every kind of fault is named once, with what it means; sound files have none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rio
from rio.cli.parser import main
from rio.data.errors import AnnotationFileNotFoundError
from tests.support.annotation_files import SQUARE, TRIANGLE, at, coco, lvis, obj, same_id, twice, write


def kinds(report: Any) -> dict[str, tuple[str, int]]:
    return {finding.kind: (finding.level, finding.count) for finding in report.findings}


@pytest.fixture
def found(tmp_path):
    """Function: kind -> (level, count) of what is found in a file with this content."""

    def found(data: Any, **options: Any) -> dict[str, tuple[str, int]]:
        return kinds(rio.check(write(tmp_path / "set.json", data), **options))

    return found


UNUSED = {"category_unused": ("note", 1)}  # nothing is a mug


@pytest.mark.parametrize("make", [coco, lvis])
def test_a_sound_file(tmp_path, make, capsys):
    path = write(tmp_path / "set.json", make())
    report = rio.check(path)
    assert kinds(report) == UNUSED and report.exit_code == 0
    assert report.table.to_dict("records")[0]["first"] == "category 11 (mug): no object"
    assert main(["check", str(path)]) == 0
    assert f"{path}: 2 images, {4 - (make is lvis)} annotations, 3 categories" in capsys.readouterr().out


def test_reads_on_past_the_first_fault_and_counts_each_kind(tmp_path, capsys):
    data = coco()
    for number in range(20):
        data["annotations"].append({"id": 200 + number, "image_id": 4, "category_id": 5, "bbox": [1, 1, 5, 5]})
    data["annotations"][0]["category_id"] = 6
    data["annotations"][1] |= {"bbox": [10, 10, -40, 20]}
    data["annotations"][2] |= {"area": -1, "iscrowd": 0.0}
    data["categories"][0]["name"] = "mug"
    data["images"].append({"id": "x"})
    path = write(tmp_path / "set.json", data)
    report = rio.check(path)
    expected = {
        "unknown_image": ("error", 20), "unknown_category": ("error", 1), "negative_box": ("error", 1),
        "area": ("error", 1), "duplicate_category_name": ("error", 1), "missing_key": ("error", 1),
        "integral_float": ("warning", 1),
    }  # fmt: skip
    assert {kind: kinds(report)[kind] for kind in expected} == expected
    assert report.exit_code == main(["check", str(path)]) == 2
    text = capsys.readouterr().out
    assert "ERROR unknown_image: 20\n    annotation 200 (image 4), key 'image_id': 4\n" in text
    assert "    ... and 15 more\n" in text and text.count("unknown_image") == 1
    assert all(finding.examples and len(finding.examples) <= 5 for finding in report.findings)
    assert set(report.table.columns) == {"level", "kind", "count", "first", "means", "fix"}
    assert report.table["means"].str.len().min() > 10
    assert "<table>" in report._repr_html_() and "unknown_image" in report._repr_html_()


def boxes(*rows: list[float], **more: Any):
    def change(data: dict[str, Any]) -> None:
        data["annotations"] = [
            {"id": i, "image_id": 7, "category_id": 90, "bbox": box, **more} for i, box in enumerate(rows)
        ]

    return change


# what, change, kind, level, count
FOUND = [
    ("no images", lambda d: d.update(images=[], annotations=[]), "no_image", "error", 1),
    ("no annotations", lambda d: d.update(annotations=[]), "no_object", "warning", 1),
    ("area 0", obj(area=0), "area_zero", "warning", 1),
    ("area 0 of many", boxes([1, 1, 5, 5], [9, 9, 5, 5], area=0), "area_zero", "warning", 2),
    ("area 0.0 as text of an export", obj(area=0.0, iscrowd=0), "area_zero", "warning", 1),
    ("area of another scale", obj(area=99999.0), "area_too_large", "warning", 1),
    ("area is the image's", boxes([1, 1, 5, 5], area=5000), "area_too_large", "warning", 1),
    ("area of a mask before resizing", obj(area=3200), "area_too_large", "warning", 1),
    ("every object twice", twice("annotations"), "box_twice", "warning", 4),
    ("one box three times", boxes([1, 1, 5, 5], [1, 1, 5, 5], [1, 1, 5, 5]), "box_twice", "warning", 2),
    ("the same box as floats", boxes([1, 1, 5, 5], [1.0, 1.0, 5.0, 5.0]), "box_twice", "warning", 1),
    ("every picture twice", twice("images"), "picture_twice", "warning", 4),
    ("two ids of a picture", at("images", 0, file_name="a.jpg"), "picture_twice", "warning", 2),
    ("two spellings of a picture", at("images", 0, file_name="./a.jpg"), "picture_twice", "warning", 2),
    ("names that differ by case", at("categories", 0, name="Mug"), "names_alike", "warning", 1),
    ("names that differ by a space", at("categories", 0, name="mug "), "names_alike", "warning", 1),
    ("names that differ by a dash", at("categories", 0, name="m-u_g"), "names_alike", "warning", 1),
    ("frequency of one category", at("categories", 0, frequency="f"), "frequency_partly", "warning", 2),
    ("ignore", obj(ignore=1), "ignored", "note", 1),
    ("ignore true", obj(ignore=True), "ignored", "note", 1),
    ("a picture without objects", lambda d: d["annotations"].pop(1), "image_empty", "note", 1),
    ("width and height swapped", at("images", 1, width=48, height=64), "size_swapped", "warning", 1),
    ("a box of another object", obj(bbox=[0, 0, 9, 9]), "box_unlike_mask", "warning", 1),
    ("x and y swapped", at("annotations", 2, bbox=[20, 40, 10, 10]), "box_unlike_mask", "warning", 1),
    ("corners in one record", at("annotations", 2, bbox=[40, 20, 50, 30]), "box_unlike_mask", "warning", 1),
    ("corners", boxes([60, 10, 90, 40], [50, 20, 80, 45]), "corner_boxes", "error", 1),
    ("shares of the image", boxes([0.1, 0.1, 0.5, 0.5]), "normalised_boxes", "error", 1),
    ("id text", obj(category_id="five"), "type", "error", 1),
    ("a category without a name", at("categories", 1, name=...), "missing_key", "error", 1),
    ("no category", lambda d: d.update(categories=[], annotations=[]), "no_category", "error", 1),
    ("annotation ids all 1", same_id, "duplicate_annotation_id", "error", 3),
    ("a flat polygon", at("annotations", 0, segmentation=TRIANGLE), "polygon_form", "warning", 1),
    ("a bad part", obj(segmentation=[TRIANGLE, SQUARE, [1, 2]]), "polygon_part", "warning", 1),
    ("a box that sticks out", obj(bbox=[10, 10, 60, 20]), "box_clipped", "warning", 1),
    ("NaN", lambda d: json.dumps(d).replace("250.0", "NaN"), "nan", "error", 1),
    ("a list of results", lambda d: '[{"image_id": 1, "category_id": 1, "score": 0.5}]', "not_annotations", "error", 1),
    ("labelme", lambda d: '{"version": "5", "shapes": [], "imagePath": "a.jpg"}', "not_annotations", "error", 1),
    ("Label Studio", lambda d: '[{"id": 1, "data": {}, "annotations": []}]', "not_annotations", "error", 1),
    ("SAM", lambda d: '{"image": {"image_id": 1}, "annotations": []}', "not_annotations", "error", 1),
    ("VIA", lambda d: '{"a.jpg123": {"filename": "a.jpg", "regions": []}}', "not_annotations", "error", 1),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "level", "count"), [row[1:] for row in FOUND], ids=[r[0] for r in FOUND])
def test_kinds(found, change, kind, level, count):
    data = coco()
    text = change(data)
    assert found(text if isinstance(text, str) else data)[kind] == (level, count)


UNLIKE = "categories_unlike_train"


@pytest.mark.parametrize(
    ("change", "kind", "count"),
    [
        (at("categories", 2, name="cup"), UNLIKE, 1),
        (lambda d: [k.update(id=i) for k, i in zip(d["categories"], (5, 11, 90))], UNLIKE, 3),
        (lambda d: d["categories"].pop(), UNLIKE, 1),
        (lambda d: d.update(annotations=d["annotations"][1:2]), "category_missing_in_train", 1),
    ],
    ids=["renamed", "in another order", "one less", "without objects of one"],
)
def test_against_the_training_set(found, tmp_path, change, kind, count):
    data = coco()
    change(data)
    train = write(tmp_path / "train.json", data)
    assert found(coco(), train=train)[kind][1] == count
    same = found(coco(), train=write(tmp_path / "train.json", coco()))
    assert same == UNUSED | {"name_in_train": ("note", 2)}


def test_the_name_is_the_function_whatever_was_imported_before():
    code = (
        "import rio.checks.check, rio; assert callable(rio.check); import rio.checks.kinds; assert callable(rio.check)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_file(tmp_path):
    with pytest.raises(AnnotationFileNotFoundError, match="no such file"):
        rio.check(tmp_path / "none.json")
    assert main(["check", str(tmp_path / "none.json")]) == 2


REAL = ["coco_415/train.json", "coco_415/val.json", "ccp/train.json", "car_parts_test.json"]
REAL += ["lvis9/lvis_v0.5_val_9.json"]
REAL += [f"tiny_coco/annotations/instances_{split}2017.json" for split in ("train", "val")]


@pytest.mark.parametrize("name", REAL)
def test_no_false_alarm_on_real_files(shared_dir, name):
    report = rio.check(shared_dir / "data" / name)
    assert report.exit_code == 0, str(report)


def test_boxes_of_a_real_file_that_belong_to_other_objects(shared_dir):
    """In one picture of LVIS v0.5's excerpt, boxes and polygons show different places: a true warning."""
    report = rio.check(shared_dir / "data" / "lvis_val_100.json")
    assert {kind for kind, (level, _) in kinds(report).items() if level != "note"} == {"box_unlike_mask"}
    assert all("image 179898" in record for finding in report.findings[:1] for record, _, _ in finding.examples)


CASES = {
    "float_ids.json": {"integral_float"},
    "normalised_boxes.json": {"normalised_boxes"},
    "one_bad_polygon_of_two.json": {"polygon_part"},
    "off_by_one_results.json": {"not_annotations"},
    "02-one-rectangle-among-polygons-boxes-only-eval/gt.json": {"no_segmentation"},
    "02-one-rectangle-among-polygons-boxes-only-eval/gt2.json": {"no_segmentation", "empty_value"},
    "08-box-sticks-out-5px/gt.json": {"box_clipped", "box_unlike_mask"},
    "12-ignore-flag-in-lvis-ground-truth/gt.json": {"ignored"},
    "13-validation-set-without-images/val.json": {"no_image"},
    "13-validation-set-without-images/val_floats.json": {"integral_float"},
    "17-skip-loses-real-objects/dup_ids.json": {"duplicate_annotation_id"},
    "17-skip-loses-real-objects/polygon.json": {"polygon_part"},
}


@pytest.mark.parametrize("name", CASES)
def test_reported_cases(shared_dir: Path, name):
    found = set(kinds(rio.check(shared_dir / "cases" / name)))
    assert found - {"category_unused", "image_empty", "no_groups"} == CASES[name]
