"""What tools write in another spelling, and can mean one thing only: taken so, and counted by kind."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rio.data.annotations import Annotations, check_same_categories
from rio.data.errors import AnnotationError
from rio.data.names import annotations_of, repairs
from tests.support.annotation_files import (
    SQUARE,
    TRIANGLE,
    at,
    coco,
    lvis,
    masks_of,
    obj,
    same_id,
    touch,
    with_root,
    write,
)

FRAME = [10.0, 10.0, 50.0, 10.0, 50.0, 30.0, 10.0, 30.0]  # of annotation 102's box


def rle(size: list[float], counts: list[float]):
    return at("annotations", 3, segmentation={"size": size, "counts": counts})


def floats(value: Any) -> Any:
    """Every whole number as a data frame with a gap in it writes it: 1.0."""
    if isinstance(value, dict):
        return {key: floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [floats(item) for item in value]
    return float(value) if type(value) is int else value


SAME = [
    ("ids as floats", obj(id=102.0, image_id=3.0, category_id=5.0), {"integral_float": 3}),
    ("sizes as floats", at("images", 0, width=100.0, height=50.0), {"integral_float": 2}),
    ("iscrowd 0.0", obj(iscrowd=0.0), {"integral_float": 1}),
    ("iscrowd empty text", obj(iscrowd=""), {"empty_value": 1}),
    ("all whole numbers as floats", lambda d: d.update(floats(d)), {"integral_float": 27}),
    ("numbers as text", obj(category_id="5", image_id="3"), {"text_id": 2}),
    ("width as text", at("images", 0, width="100"), {"text_number": 1}),
    ("coco_url empty", at("images", 0, coco_url=""), {}),
    ("flat polygon", at("annotations", 0, segmentation=TRIANGLE), {"polygon_form": 1}),
    ("points", at("annotations", 0, segmentation=[[10, 10], [30, 10], [10, 25]]), {"polygon_form": 1}),
    ("polygons of points", at("annotations", 0, segmentation=[[[10, 10], [30, 10], [10, 25]]]), {"polygon_form": 1}),
    ("a part of two points", obj(segmentation=[TRIANGLE, [1, 1, 2, 2], SQUARE]), {"polygon_part": 1}),
    ("a part of seven numbers", obj(segmentation=[TRIANGLE, SQUARE, [1, 2, 3, 4, 5, 6, 7]]), {"polygon_part": 1}),
    ("a part far away", obj(segmentation=[TRIANGLE, SQUARE, [1e9, 2, 3, 4, 5, 6]]), {"polygon_part": 1}),
    ("an empty part", obj(segmentation=[[], TRIANGLE, SQUARE]), {"polygon_part": 1}),
    ("box around a polygon", at("annotations", 0, bbox=[]), {"no_box": 1}),
    ("no box beside a polygon", at("annotations", 0, bbox=...), {"no_box": 1}),
    ("box null beside a mask", at("annotations", 3, bbox=None), {"no_box": 1}),
    ("RLE with floats", rle([50.0, 100], [4990, 10.0]), {"integral_float": 2}),
    ("RLE with its size swapped", rle([100, 50], [4990, 10]), {"mask_transposed": 1}),
    ("file name with ./", at("images", 0, file_name="./b.jpg"), {"file_name": 1}),
    ("ignore where it means nothing", at("annotations", 2, ignore=0), {}),
]  # fmt: skip


@pytest.mark.parametrize(("change", "counts"), [row[1:] for row in SAME], ids=[row[0] for row in SAME])
def test_the_columns_are_those_of_the_right_spelling(load, change, counts):
    data = coco()
    data["annotations"][3]["bbox"] = [99, 40, 1, 10]
    expected = load(data)
    change(data)
    found = load(data)
    assert {finding.kind: finding.count for finding in found.repaired} == counts
    assert all(finding.examples and finding.taken for finding in found.repaired) and not found.skipped
    for mine, other in zip(masks_of(found), masks_of(expected), strict=True):
        assert mine == other
    for field in dataclasses.fields(Annotations):
        if field.name not in ("mask_json", "mask_start", "mask_length", "repaired", "text_ids"):
            mine, other = (getattr(columns, field.name) for columns in (found, expected))
            assert np.array_equal(mine, other), field.name


def test_a_mask_of_a_turned_picture_is_turned_back_if_its_box_says_so(load):
    data = coco()
    wide = {"size": [100, 50], "counts": [40, 10, 4950]}  # of a picture 50 px wide: rows 40 to 49 of the first column
    data["annotations"][3] |= {"segmentation": wide, "bbox": [40, 0, 10, 1]}
    found = load(data)
    assert [finding.kind for finding in found.repaired] == ["mask_transposed"]
    assert found.segmentation(3)["size"] == [50, 100]
    data["annotations"][3]["bbox"] = [5, 5, 9, 9]  # fits neither reading
    with pytest.raises(AnnotationError, match=r"segmentation.size.*\[50, 100\], found \[100, 50\]"):
        load(data)


@pytest.mark.parametrize("empty", [None, [], "", [[]], {}, ...], ids=str)
def test_an_object_without_a_mask_among_others_gets_its_boxs_rectangle(load, empty):
    data = coco()
    obj(segmentation=empty)(data)
    found = load(data)
    assert found.segmentation(0) == [FRAME] and found.annotation_ids.tolist() == [102, 101, 100, 99]
    assert found.repaired[-1].kind == "no_segmentation" and found.repaired[-1].count == 1


def test_a_box_that_sticks_out_stays_as_it_is_and_is_counted(load):
    data = coco()
    boxes = [[-5, 10, 25, 30], [50, 10, 20, 15], [10, 40, 20, 15]]
    for annotation, box in zip(data["annotations"][:3], boxes, strict=True):
        annotation["bbox"] = box
    found = load(data)
    assert [box for box in found.boxes.tolist() if box in boxes] == [boxes[1], boxes[0], boxes[2]]
    (finding,) = found.repaired
    assert (finding.kind, finding.count) == ("box_clipped", 3)
    assert finding.examples[1] == ("annotation 102 (image 3)", "bbox", "[50.0, 10.0, 20.0, 15.0] in 64 x 48 px")


def corners(data: Any) -> None:
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]


def shares(data: Any) -> None:
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    for annotation in data["annotations"]:
        width, height = sizes[annotation["image_id"]]
        annotation["bbox"] = [v / n for v, n in zip(annotation["bbox"], (width, height) * 2, strict=True)]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_corners_and_shares_are_refused_by_what_most_boxes_say(load, on_error):
    data = coco()
    for annotation, box in zip(
        data["annotations"], ([60, 20, 30, 15], [30, 20, 30, 20], [40, 20, 50, 20]), strict=False
    ):
        annotation["bbox"] = box
    load(data)
    for change, words in ((corners, "x1, y1, x2, y2.*convert them"), (shares, "first pixel.*multiply")):
        changed = json.loads(json.dumps(data))
        change(changed)
        with pytest.raises(AnnotationError, match=words):
            load(changed, on_error=on_error)
    load(data | {"annotations": [data["annotations"][0] | {"bbox": [0, 0, 1, 1]}]})  # one pixel is one


def text_ids(data: Any) -> None:
    """Ids as databases give them; image 3 is "c3", image 7 "c7", category 5 "k05"."""
    for image in data["images"]:
        image["id"] = f"c{image['id']}"
    for category in data["categories"]:
        category["id"] = f"k{category['id']:02d}"
    for annotation in data["annotations"]:
        annotation["id"] = f"{annotation['id']:x}-{annotation['image_id']}"
        annotation["image_id"] = f"c{annotation['image_id']}"
        annotation["category_id"] = f"k{annotation['category_id']:02d}"
    for image in data["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if key in image:
                image[key] = [f"k{k:02d}" for k in image[key]]


@pytest.mark.parametrize("make", [coco, lvis])
def test_ids_that_are_text_are_numbered_and_kept(load, make):
    data, expected = make(), load(make())
    text_ids(data)
    found = load(data)
    assert found.image_ids.tolist() == [1, 2] and found.category_ids.tolist() == [1, 2, 3]
    assert found.text_ids == {"image": {1: "c3", 2: "c7"}, "category": {1: "k05", 2: "k11", 3: "k90"}}
    for name in ("annotation_class", "annotation_image", "boxes", "file_names", "category_names", "neg_offsets"):
        assert list(map(str, getattr(found, name))) == list(map(str, getattr(expected, name)))
    data["categories"].reverse()
    check_same_categories(found, load(data))
    data["annotations"][0]["image_id"] = "c8"
    with pytest.raises(AnnotationError, match="image_id.*'str'|image_id.*`str`"):
        load(data)


def test_repeated_annotation_ids_get_new_ones_where_records_may_go(load):
    data = coco()
    same_id(data)
    with pytest.raises(AnnotationError, match=r"annotation 1 .*1 twice \(2 more like it\)"):
        load(data)
    found = load(data, on_error="skip")
    assert sorted(found.annotation_ids.tolist()) == [1, 2, 3, 4] and not found.skipped
    assert (found.repaired[0].kind, found.repaired[0].count) == ("duplicate_annotation_id", 3)


def test_the_root_category_of_exporters_is_no_class(load):
    data, beasts = coco(), coco()
    with_root(data)
    found = load(data)
    assert found.category_ids.tolist() == [5, 11, 90] and found.skipped_counts() == {"root_category": 1}
    data["annotations"][0]["category_id"] = 0  # it has an object: a class
    assert load(data).num_classes == 4
    with_root(beasts, name="beasts", supercategory="animals")
    assert load(beasts).num_classes == 4 and load(coco()).num_classes == 3


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """a.jpg and b.jpg in a folder."""
    return touch(tmp_path / "project" / "train", "a.jpg", "b.jpg")


SPELLED = {
    "backslash": (".\\sub\\b.jpg", "sub/b.jpg"),
    "backslashes": ("sub\\B 1.jpg", "sub/B 1.jpg"),
    "absolute": ("{root}/b.jpg", "b.jpg"),
    "absolute, of another machine": ("/elsewhere/ann/train/b.jpg", "b.jpg"),
    "absolute, of Windows": ("C:\\Users\\ann\\train\\sub\\b.jpg", "sub/b.jpg"),
    "other case": ("B.JPG", "b.jpg"),
    "other case of a folder": ("SUB/b.jpg", "sub/b.jpg"),
    "percent-encoded": ("sub/B%201.jpg", "sub/B 1.jpg"),
    "two slashes": ("sub//b.jpg", "sub/b.jpg"),
    "another normal form": ("e\u0301.jpg", "\u00e9.jpg"),
}


@pytest.mark.parametrize("kind", SPELLED)
def test_file_names_in_other_spellings(load, pictures, kind):
    touch(pictures, "sub/b.jpg", "sub/B 1.jpg", "\u00e9.jpg")
    name, meant = SPELLED[kind]
    data = coco()
    data["images"][0]["file_name"] = name.format(root=pictures)
    found = load(data, image_root=pictures, check_images=True)
    assert found.file_names[1] == meant
    assert {finding.kind: finding.count for finding in found.repaired} == {"file_name": 1}


def test_a_name_that_could_be_two_files_is_not_guessed(load, pictures):
    touch(pictures, "c.JPG", "C.jpg")
    data = coco()
    data["images"][0]["file_name"] = "c.jpg"
    with pytest.raises(AnnotationError, match=r"none at .*c\.jpg"):
        load(data, image_root=pictures, check_images=True)
    data["images"][0]["file_name"] = "A.jpg"  # the other image's file
    with pytest.raises(AnnotationError, match=r"none at .*A\.jpg"):
        load(data, image_root=pictures, check_images=True)


@pytest.mark.parametrize("name", ["C:\\Users\\ann\\b.jpg", "/elsewhere/b.jpg", "../val/b.jpg"])
def test_a_path_that_leads_out_says_that_the_picture_is_there(load, pictures, name):
    data = coco()
    data["images"][0]["file_name"] = name
    with pytest.raises(AnnotationError, match="below the image folder.*the folder has a picture of that name"):
        load(data, image_root=pictures, check_images=True)
    with pytest.raises(AnnotationError) as caught:
        load(data)
    assert "of that name" not in str(caught.value)


HINTS = {
    "the folder named twice": ("train/b.jpg", "train", "the pictures lie below .*project: give that folder"),
    "the folder above given": ("b.jpg", ".", "the pictures lie below .*train: give that folder"),
    "a folder in front": ("old/b.jpg", ".", "lies in .*train: give that folder, or write 'train/b.jpg'"),
    "a folder too much": ("old/b.jpg", "train", "lies in .*train itself: write names without folders"),
    "the folder beside": ("b.jpg", "empty", "the pictures lie below .*train: give that folder"),
    "nowhere": ("z.jpg", "train", r"found none at .*z\.jpg\."),
}


@pytest.mark.parametrize("kind", HINTS)
def test_the_error_names_the_folder_that_holds_the_pictures(load, pictures, kind):
    name, root, words = HINTS[kind]
    (pictures.parent / "empty").mkdir()
    data = coco()
    data["images"] = [data["images"][0] | {"file_name": name}]
    data["annotations"] = data["annotations"][:1]
    with pytest.raises(AnnotationError, match=words):
        load(data, image_root=pictures.parent / root, check_images=True)


def test_a_data_set_says_what_was_taken_for_what(tmp_path, pictures, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    data = coco()
    data["annotations"][0]["id"] = 101.0
    data["images"][0]["file_name"] = "B.jpg"
    write(tmp_path / "set.JSON", data)
    found = annotations_of(f"set.JSON@{pictures}")
    assert found.file_names == ["a.jpg", "b.jpg"]
    assert "integral_float 1, as in annotation at position 0 (id 101.0), key 'id': 101.0, taken for 101" in caplog.text
    assert "image 7, key 'file_name': B.jpg, taken for b.jpg" in caplog.text and "rio check" in caplog.text
    write(tmp_path / "sound.json", coco())
    assert repairs(found) and not repairs(annotations_of(f"sound.json@{pictures}"))
