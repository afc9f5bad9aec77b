"""A repaired copy: what has one right answer, every change listed; the rest, and the input, as they were."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rio
from rio.cli.parser import main
from rio.data.errors import AnnotationError
from rio.data.load import load_annotations
from tests.data.test_repairs import SAME, text_ids
from tests.support.annotation_files import SQUARE, at, coco, lvis, same_id, twice, with_root, write


def repaired(folder: Path, data: Any, **options: Any) -> tuple[Any, Any]:
    """The report and the content of the copy; the input is as it was."""
    path = write(folder / "set.json", data)
    before = path.read_bytes()
    report = rio.check(path, write=folder / "fixed.json", **options)
    assert path.read_bytes() == before
    return report, json.loads((folder / "fixed.json").read_text())


@pytest.mark.parametrize("make", [coco, lvis])
def test_a_sound_file_keeps_its_content(tmp_path, make):
    data = {"info": {"year": 2026, "note": 'a "NaN" and },{'}, **make(), "licenses": [1.50], "extra": {"a": [None]}}
    data["annotations"][0]["attributes"] = {"occluded": False, "area": 0}
    report, fixed = repaired(tmp_path, data)
    assert fixed == data and list(fixed) == list(data) and not report.changes
    assert '"licenses": [1.5]' in (tmp_path / "fixed.json").read_text()


@pytest.mark.parametrize("change", [row[1] for row in SAME], ids=[row[0] for row in SAME])
def test_what_the_loader_takes_is_written_as_it_takes_it(tmp_path, change):
    data = coco()
    data["annotations"][3]["bbox"] = [99, 40, 1, 10]
    change(data)
    report, _ = repaired(tmp_path, data)
    assert {finding.kind for finding in report.left} == {"category_unused"}
    expected, found = load_annotations(tmp_path / "set.json"), load_annotations(tmp_path / "fixed.json")
    taken = sum(finding.count for finding in expected.repaired)
    assert not found.repaired and (len(report.changes) == taken or not taken)
    for name in ("image_ids", "annotation_ids", "annotation_image", "annotation_class", "boxes", "areas", "iscrowd"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert found.file_names == expected.file_names


def test_ids_that_are_text_get_numbers_and_are_kept(tmp_path):
    data = coco()
    text_ids(data)
    _, fixed = repaired(tmp_path, data)
    assert [(image["id"], image["original_id"]) for image in fixed["images"]] == [(2, "c7"), (1, "c3")]
    assert [(k["id"], k["original_id"]) for k in fixed["categories"]] == [(3, "k90"), (1, "k05"), (2, "k11")]
    assert [a["image_id"] for a in fixed["annotations"]] == [2, 1, 2, 2]
    assert not rio.check(tmp_path / "fixed.json").exit_code


def box_only(data: dict[str, Any]) -> None:
    for annotation in data["annotations"]:
        del annotation["segmentation"]
    data["annotations"][0]["area"] = 0.0


def areas(data: dict[str, Any]) -> list[float]:
    return [annotation.get("area") for annotation in data["annotations"]]


def ids(data: dict[str, Any], key: str = "annotations") -> list[int]:
    return [record["id"] for record in data[key]]


NANS = {"nan": 1, "area_zero": 1}
TWINS, DOUBLED = {"box_twice": 4}, {"duplicate_image_id": 1}
# what, change, how many changes of which kind, what holds of the copy
ALSO = [
    ("NaN", lambda d: json.dumps(d).replace("250.0", "NaN"), NANS, lambda f: areas(f)[1] > 200),
    ("infinity", lambda d: json.dumps(d).replace("150.0", "-Infinity"), NANS, lambda f: areas(f)[0] == 150),
    ("area 0", at("annotations", 0, area=0), {"area_zero": 1}, lambda f: 140 < areas(f)[0] < 160),
    ("area 0 of a box", box_only, {"area_zero": 1}, lambda f: areas(f)[0] == 300),
    ("area null", at("annotations", 2, area=None), {"area_zero": 1}, lambda f: areas(f)[2] == 100),
    ("ids repeated", same_id, {"duplicate_annotation_id": 3}, lambda f: ids(f) == [1, 2, 3, 4]),
    ("objects twice", lambda d: d.update(annotations=d["annotations"] * 2), TWINS, lambda f: len(ids(f)) == 4),
    ("objects twice, under new ids", twice("annotations"), TWINS, lambda f: len(ids(f)) == 4),
    ("an image twice", lambda d: d["images"].append(d["images"][0]), DOUBLED, lambda f: ids(f, "images") == [7, 3]),
    ("the root category", with_root, {"root_category": 1}, lambda f: ids(f, "categories") == [90, 5, 11]),
    ("a byte-order mark", lambda d: "\ufeff" + json.dumps(d), {}, lambda f: f == coco()),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kinds", "holds"), [row[1:] for row in ALSO], ids=[row[0] for row in ALSO])
def test_what_has_one_right_answer(tmp_path, change, kinds, holds):
    data = coco()
    text = change(data)
    report, fixed = repaired(tmp_path, text if isinstance(text, str) else data)
    assert Counter(change.kind for _, change in report.changes) == kinds
    assert holds(fixed) and not rio.check(tmp_path / "fixed.json").exit_code


ALIKE = {"id": 7, "attributes": {"occluded": True}}
LEFT = {
    "unknown category": (at("annotations", 0, category_id=6), "unknown_category"),
    "negative box": (at("annotations", 0, bbox=[9, 9, -5, 5]), "negative_box"),
    "a box that sticks out": (at("annotations", 0, bbox=[90, 10, 20, 15]), "box_clipped"),
    "no mask among masks": (at("annotations", 0, segmentation=[]), "no_segmentation"),
    "name twice": (at("categories", 0, name="mug"), "duplicate_category_name"),
    "two objects alike but for a key": (lambda d: d["annotations"].append(d["annotations"][0] | ALIKE), "box_twice"),
    "a record that is none": (lambda d: d["annotations"].append([1, 2]), "type"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LEFT)
def test_what_has_none_stays_and_is_said(tmp_path, kind, capsys):
    change, expected = LEFT[kind]
    data = coco()
    change(data)
    report, fixed = repaired(tmp_path, data)
    assert fixed == data and expected in {finding.kind for finding in report.left}
    main(["check", str(tmp_path / "set.json"), "--write", str(tmp_path / "fixed.json")])
    assert "Left in it: " in capsys.readouterr().out


def test_file_names_and_sizes_are_held_against_the_pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (50, 100)).save(folder / "sub" / "b 1.jpg")
    Image.new("RGB", (64, 48)).save(folder / "a.jpg")
    data = coco()
    data["images"][0]["file_name"] = "sub\\B%201.jpg"
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] == 3] + [
        {"id": 5, "image_id": 7, "category_id": 5, "bbox": [5, 60, 10, 10], "segmentation": [[5, 60, 15, 60, 15, 70]]}
    ]
    report, fixed = repaired(tmp_path, data, images=folder)
    assert fixed["images"][0] == {"id": 7, "width": 50, "height": 100, "file_name": "sub/b 1.jpg"}
    assert [change.kind for _, change in report.changes] == ["file_name", "picture_size"]
    assert not rio.check(tmp_path / "fixed.json", images=folder).exit_code


def test_the_input_itself_is_refused(tmp_path, command):
    path = write(tmp_path / "set.json", coco())
    (tmp_path / "link.json").symlink_to(path)
    for target in (path, tmp_path / "." / "set.json", tmp_path / "link.json"):
        with pytest.raises(AnnotationError, match="the input itself.*Fix: name another file"):
            rio.check(path, write=target)
    command("check", path, "--write", path, code=2)
    assert json.loads(path.read_text()) == coco()


def test_the_command_lists_every_change(tmp_path, command):
    data = coco()
    data["annotations"][0] |= {"id": 101.0, "segmentation": SQUARE}
    path, fixed = write(tmp_path / "set.json", data), tmp_path / "fixed.json"
    out = command("check", path, "--write", fixed, code=1)
    assert f"Written: {fixed}, with 2 changes:" in out
    assert "annotation 101 (image 7), key 'id': 101.0 -> 101 (integral_float)" in out
    assert "key 'segmentation': [40.0, 20.0, 50.0, 20.0" in out and "(polygon_form)" in out
