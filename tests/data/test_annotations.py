"""Annotation files: the columns by hand, every broken record, and real files."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rio.data import load as module
from rio.data.annotations import (
    Annotations,
    category_id_to_class_id,
    check_same_categories,
    frequency_groups,
    training_image_indices,
)
from rio.data.errors import AnnotationError, AnnotationFileNotFoundError
from rio.data.load import cache_folder, load_annotations
from rio.data.masks import rle_counts
from rio.data.rules import missing_images, require_images
from tests.support.annotation_files import SQUARE, TRIANGLE, coco, lvis, write


@pytest.fixture
def load(tmp_path: Path):
    def _load(data: Any, **kwargs: Any) -> Annotations:
        return load_annotations(write(tmp_path / "set.json", data), **kwargs)

    return _load


# ------------------------------------------------------------------------------------------------ the columns


def test_columns_by_hand(load):
    a = load(coco(), image_root="images")
    assert (a.num_images, a.num_annotations, a.num_classes) == (2, 4, 3)
    assert a.image_ids.tolist() == [3, 7]
    assert a.image_width.tolist() == [64, 100] and a.image_height.tolist() == [48, 50]
    assert a.file_names == ["a.jpg", "b.jpg"] and a.image_path(1).replace("\\", "/") == "images/b.jpg"
    assert a.category_ids.tolist() == [5, 11, 90] and a.category_names == ["zèbre 斑马", "mug", "teddy"]
    # Image 3 first, then image 7's in the file's order.
    assert a.annotation_ids.tolist() == [102, 101, 100, 99]
    assert a.annotation_image.tolist() == [0, 1, 1, 1] and a.image_offsets.tolist() == [0, 1, 4]
    assert a.annotation_class.tolist() == [0, 2, 2, 0]
    assert a.boxes.tolist() == [[10, 10, 40, 20], [10, 10, 20, 15], [40, 20, 10, 10], [99, 40, 1, 10]]
    assert a.areas.tolist() == [250, 150, 100, 10]  # the third has no "area": 10 * 10
    assert a.iscrowd.tolist() == [False, False, False, True]
    # The crowd region does not count: one zebra image, two teddies in one image, no mug.
    assert a.image_count.tolist() == [1, 0, 1] and a.instance_count.tolist() == [1, 0, 2]
    assert a.declared_frequency is None and a.frequency.tolist() == ["r", "r", "r"]
    assert not a.federated and a.neg_category_ids == [[], []] == a.not_exhaustive_category_ids
    assert a.annotations_of(1) == slice(1, 4)
    assert not a.skipped and a.skipped_counts() == {}
    dtypes = {
        "image_ids": "int64", "image_width": "int32", "category_ids": "int64", "image_count": "int64",
        "instance_count": "int64", "frequency": "<U1", "annotation_ids": "int64", "annotation_image": "int32",
        "annotation_class": "int32", "boxes": "float64", "areas": "float64", "iscrowd": "bool",
        "polygon_xy": "float64", "polygon_offsets": "int64", "annotation_polygons": "int64",
    }  # fmt: skip
    assert {name: getattr(a, name).dtype for name in dtypes} == {n: np.dtype(d) for n, d in dtypes.items()}


def test_masks_are_flat_polygons_with_offsets(load):
    a = load(coco())
    assert a.polygon_xy.tolist() == TRIANGLE + SQUARE + TRIANGLE + SQUARE
    assert a.polygon_offsets.tolist() == [0, 6, 14, 20, 28]
    assert a.annotation_polygons.tolist() == [0, 2, 3, 4, 4]
    assert a.segmentation(0) == [TRIANGLE, SQUARE] and a.segmentation(2) == [SQUARE]
    assert a.segmentation(3) == {"size": [50, 100], "counts": [4990, 10]}
    assert a.has_segmentations and not a.has_rle_objects
    with pytest.raises(IndexError, match="0..3"):
        a.segmentation(4)
    with pytest.raises(IndexError, match="0..1"):
        a.annotations_of(2)


def test_without_segmentations_the_rest_is_the_same(load):
    a, b = load(coco()), load(coco(), segmentations=False)
    assert not b.has_segmentations and b.segmentation(0) is None and b.segmentation(3) is None
    for name in ("annotation_ids", "boxes", "areas", "image_count", "image_offsets"):
        assert np.array_equal(getattr(a, name), getattr(b, name))


def test_lvis_has_verified_categories_groups_and_file_names_by_url(load):
    a = load(lvis())
    assert a.federated
    assert a.file_names == ["train2017/a.jpg", "val2017/b.jpg"]
    assert a.neg_category_ids == [[11], [11]] and a.not_exhaustive_category_ids == [[90], []]
    assert a.frequency.tolist() == ["c", "r", "f"] == a.declared_frequency.tolist()  # in the order of the ids


def test_a_group_that_is_not_declared_comes_from_the_image_count(load):
    data = lvis()
    del data["categories"][0]["frequency"]  # teddy, 1 image
    a = load(data)
    assert a.declared_frequency.tolist() == ["c", "r", ""] and a.frequency.tolist() == ["c", "r", "r"]


def test_lvis_takes_the_url_and_coco_the_file_name_where_both_are_there(load):
    for data, expected in ((lvis(), "train2017/a.jpg"), (coco(), "a.jpg")):
        for image in data["images"]:
            image.setdefault("file_name", "other.jpg")
            image.setdefault("coco_url", "http://images.example.org/other/other.jpg")
        assert load(data).file_names[0] == expected


def test_a_subset_pickles_small_and_equal(load):
    a = load(lvis())
    assert a.neg_category_ids == [[11], [11]]  # fills the cache that must not be pickled
    b = pickle.loads(pickle.dumps(a))
    assert "neg_category_ids" not in b.__dict__ and b.neg_category_ids == a.neg_category_ids
    assert np.array_equal(a.polygon_xy, b.polygon_xy) and b.segmentation(0) == a.segmentation(0)


# ------------------------------------------------------------------------------------------ empty and extreme


def test_a_file_without_annotations(load):
    data = coco()
    data["annotations"] = []
    a = load(data)
    assert a.num_annotations == 0 and a.boxes.shape == (0, 4) and a.image_offsets.tolist() == [0, 0, 0]
    assert a.image_count.tolist() == [0, 0, 0] and a.annotation_polygons.tolist() == [0]
    assert a.polygon_offsets.tolist() == [0] and len(a.polygon_xy) == 0
    assert load(data, segmentations=False).annotation_polygons.tolist() == [0]


def test_a_file_without_images(load):
    data = coco()
    data["annotations"] = data["images"] = []
    a = load(data)
    assert a.num_images == 0 and a.image_offsets.tolist() == [0] and a.neg_category_ids == []


def test_lvis_test_sets_have_no_key_annotations(load):
    data = coco()
    del data["annotations"]
    assert load(data, require_annotations=False).num_annotations == 0


def test_one_category_and_thirty_thousand(load):
    data = coco()
    data["categories"] = [{"id": 90, "name": "teddy"}]
    data["annotations"] = data["annotations"][:1]
    assert load(data).annotation_class.tolist() == [0]
    data["categories"] = [{"id": 3 * i, "name": f"name {i}"} for i in range(30_000)]
    assert load(data).annotation_class.tolist() == [30] and load(data).num_classes == 30_000


def test_boxes_may_stick_out_by_one_pixel_and_stay_as_they_are(load):
    data = coco()
    data["annotations"][0]["bbox"] = [-0.6, -1.0, 101.5, 52.0]  # reaches 100.9 of 100 and 51 of 50
    assert load(data).boxes[1].tolist() == [-0.6, -1.0, 101.5, 52.0]


def test_a_box_only_file(load):
    data = coco()
    for annotation, empty in zip(data["annotations"], (None, [], ..., []), strict=True):
        del annotation["segmentation"]
        if empty is not ...:
            annotation["segmentation"] = empty
    a = load(data)
    assert a.num_annotations == 4 and not a.has_segmentations and a.segmentation(0) is None


def test_a_byte_order_mark_is_no_error(load):
    assert load(b"\xef\xbb\xbf" + json.dumps(coco()).encode()).num_annotations == 4


def test_crowd_may_be_true_or_false_and_area_null(load):
    data = coco()
    data["annotations"][0] |= {"iscrowd": True, "area": None}
    a = load(data)
    assert a.iscrowd.tolist() == [False, True, False, True] and a.areas[1] == 20 * 15


def test_a_box_without_extent_is_left_out_and_listed_in_either_case(load):
    data = coco()
    data["annotations"][1]["bbox"] = [64.0, 10, 0.5, 20]  # image 3 is 64 px wide: starts where it ends
    data["annotations"][2]["bbox"] = [40, 20, 10, 0]
    for on_error in ("raise", "skip"):
        a = load(data, on_error=on_error)
        assert a.annotation_ids.tolist() == [101, 99] and a.skipped_counts() == {"empty_box": 2}
        assert a.skipped[1].record == "annotation 100 (image 7)" and "[40.0, 20.0, 10.0, 0.0]" in a.skipped[1].detail
        assert a.instance_count.tolist() == [0, 0, 1] and a.segmentation(0) == [TRIANGLE]


# ----------------------------------------------------------------------------------------------- broken files


def at(list_name: str, position: int, **changes: Any):
    """Change keys of one record; `...` removes a key."""

    def change(data: dict[str, Any]) -> None:
        for key, value in changes.items():
            if value is ...:
                del data[list_name][position][key]
            else:
                data[list_name][position][key] = value

    return change


def obj(**changes: Any):
    return at("annotations", 1, **changes)  # annotation 102 in image 3


# what, change, kind, words of the message
FATAL = [
    ("no images", lambda d: d.pop("images"), "missing_key", "'images': expected a value, found no such key"),
    ("no annotations", lambda d: d.pop("annotations"), "missing_key", "'annotations': expected a list"),
    ("no categories", lambda d: d.pop("categories"), "missing_key", "'categories'"),
    ("empty categories", lambda d: d["categories"].clear(), "no_category", "at least one"),
    ("images is a dict", lambda d: d.update(images={}), "type", "'images': expected `array`, found `object`"),
    ("category without a name", at("categories", 0, name=...), "missing_key", "position 0 (id 90), key 'name'"),
    ("category with an empty name", at("categories", 0, name=""), "type", "category at position 0 (id 90)"),
    ("category id is text", at("categories", 0, id="90"), "type", "'id': expected `int`, found `str`"),
    ("category id twice", at("categories", 0, id=5), "duplicate_category_id", "category 5"),
    ("category name twice", at("categories", 0, name="mug"), "duplicate_category_name", "category 90 too"),
    ("unknown group", at("categories", 0, frequency="x"), "frequency", "r, c or f, found 'x'"),
]
REJECTED = [
    ("image without id", at("images", 1, id=...), "missing_key", "image at position 1, key 'id'"),
    ("image without width", at("images", 1, width=...), "missing_key", "position 1 (id 3), key 'width'"),
    ("image height 0", at("images", 1, height=0), "type", "'height': expected `int` >= 1"),
    ("image width 1e30", at("images", 1, width=10**30), "type", "'width'"),
    ("image id 1.5", at("images", 1, id=1.5), "type", "`int`, found `float`"),
    ("image without file name", at("images", 1, file_name=...), "missing_key", "image 3, key 'file_name'"),
    ("file name is a number", at("images", 1, file_name=3), "type", "`str | null`, found `int`"),
    ("file name leads out", at("images", 1, file_name="../../etc/passwd"), "file_name", "'../../etc/passwd'"),
    ("hidden ..", at("images", 1, file_name="x/../../a.jpg"), "file_name", "without '..'"),
    ("Windows ..", at("images", 1, file_name="..\\a.jpg"), "file_name", "image 3"),
    ("absolute", at("images", 1, file_name="/etc/passwd"), "file_name", "relative path"),
    ("Windows absolute", at("images", 1, file_name="C:\\a.jpg"), "file_name", "relative path"),
    ("a folder", at("images", 1, file_name="a/"), "file_name", "'a/'"),
    ("no name", at("images", 1, file_name=""), "file_name", "''"),
    ("NUL", at("images", 1, file_name="a\0.jpg"), "file_name", "image 3"),
    ("duplicate image", lambda d: d["images"].append(dict(d["images"][1])), "duplicate_image_id", "image 3"),
    ("annotation is a list", lambda d: d["annotations"].__setitem__(1, [1]), "type", "at position 1"),
    ("annotation without id", obj(id=...), "missing_key", "annotation at position 1, key 'id'"),
    ("annotation without box", obj(bbox=...), "missing_key", "(id 102), key 'bbox'"),
    ("box of three", obj(bbox=[1, 2, 3]), "type", "`array` of length 4"),
    ("box of text", obj(bbox=[1, 2, "3", 4]), "type", "'bbox[2]': expected `float`, found `str`"),
    ("box null", obj(bbox=None), "type", "'bbox': expected `array`, found `null`"),
    ("category is text", obj(category_id="5"), "type", "'category_id'"),
    ("negative id", obj(id=-1), "type", "`int` >= 0"),
    ("huge id", obj(id=2**80), "type", "'id'"),
    ("unknown image", obj(image_id=4), "unknown_image", "annotation 102 (image 4), key 'image_id'"),
    ("unknown category", obj(category_id=6), "unknown_category", "id of a category, found 6"),
    ("duplicate annotation", obj(id=101), "duplicate_annotation_id", "101 twice"),
    ("crowd is 2", obj(iscrowd=2), "type", "'iscrowd'"),
    ("negative width", obj(bbox=[30, 10, -20, 20]), "negative_box", "width, height >= 0"),
    ("outside right", obj(bbox=[30, 10, 36, 20]), "box_outside", "within 64 x 48 px (tolerance 1.0 px)"),
    ("outside left", obj(bbox=[-1.5, 10, 36, 20]), "box_outside", "clip the box"),
    ("far outside", obj(bbox=[1e300, 1e300, 1e300, 1e300]), "box_outside", "1e+300"),
    ("negative area", obj(area=-1.0), "area", "found -1.0"),
    ("two points", obj(segmentation=[TRIANGLE, [1, 1, 2, 2]]), "polygon", "6 coordinates, found one of 4"),
    ("odd length", obj(segmentation=[[1, 1, 2, 2, 3, 3, 4]]), "polygon", "one of 7"),
    ("empty polygon", obj(segmentation=[[]]), "polygon", "one of 0"),
    ("no mask among masks", obj(segmentation=[]), "no_segmentation", "a mask, as the file's other"),
    ("no mask key among masks", obj(segmentation=...), "no_segmentation", "annotation 102 (image 3)"),
    ("flat polygon", obj(segmentation=TRIANGLE), "type", "'segmentation[0]': expected `array`"),
    ("nested polygon", obj(segmentation=[[[1, 1], [2, 2], [3, 1]]]), "type", "segmentation[0][0]"),
    ("mask is text", obj(segmentation="mask.png"), "type", "'segmentation'"),
    ("RLE without size", obj(segmentation={"counts": [3072]}), "missing_key", "'segmentation.size'"),
    ("RLE of another size", obj(segmentation={"size": [64, 48], "counts": [3072]}), "rle_size", "[48, 64]"),
    ("RLE of too few px", obj(segmentation={"size": [48, 64], "counts": [3000]}), "rle", "px, found 3000"),
    ("RLE with a negative run", obj(segmentation={"size": [48, 64], "counts": [-1]}), "type", ">= 0"),
    ("RLE string cut off", obj(segmentation={"size": [48, 64], "counts": "P"}), "rle", "cut off"),
    ("RLE string not ours", obj(segmentation={"size": [48, 64], "counts": "~~é"}), "rle", "ASCII"),
    ("RLE run too long", obj(segmentation={"size": [48, 64], "counts": "o" * 99 + "0"}), "rle", "characters"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "words"), [p[1:] for p in FATAL], ids=[p[0] for p in FATAL])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_what_cannot_be_skipped_is_an_error_in_either_case(load, tmp_path, change, kind, words, on_error):
    data = coco()
    change(data)
    with pytest.raises(AnnotationError) as caught:
        load(data, on_error=on_error)
    assert caught.value.kind == kind
    message = str(caught.value)
    assert words in message and str(tmp_path / "set.json") in message and "Remedy: " in message


@pytest.mark.parametrize(("change", "kind", "words"), [p[1:] for p in REJECTED], ids=[p[0] for p in REJECTED])
def test_a_broken_record_is_an_error_that_names_it_or_a_listed_skip(load, tmp_path, change, kind, words):
    data = coco()
    change(data)
    with pytest.raises(AnnotationError) as caught:
        load(data)
    assert caught.value.kind == kind
    message = str(caught.value)
    assert words in message and str(tmp_path / "set.json") in message and "on_error='skip'" in message

    a = load(data, on_error="skip")
    assert kind in a.skipped_counts()
    intact = [101, 100, 99]
    if kind == "duplicate_annotation_id":
        intact = [101, 100, 99]  # 101's first one stays
    elif kind == "duplicate_image_id":
        intact = [102, 101, 100, 99]
    assert a.annotation_ids.tolist() == intact
    assert len(a.annotation_polygons) == len(intact) + 1
    assert a.segmentation(len(intact) - 1) == {"size": [50, 100], "counts": [4990, 10]}
    assert a.segmentation(len(intact) - 2) == [SQUARE]


TEXTS = [
    ("empty file", b"", "an empty file"),
    ("cut off", json.dumps(coco())[:-40].encode(), "truncated"),
    ("cut off in the middle", json.dumps(coco())[:200].encode(), "truncated"),
    ("no JSON", b"<html>404</html>", "malformed"),
    ("a list", b"[]", "expected `object`, found `array`"),
    ("a number", b"7", "expected `object`, found `int`"),
    ("null", b"null", "`object`"),
    ("not UTF-8", json.dumps(coco(), ensure_ascii=False).encode("latin-1", "replace").replace(b"\xe8", b"\xff"), ""),
    ("nested without end", b'{"images":' + b"[" * 200_000, "nesting too deep"),
    ("NaN", json.dumps(coco()).replace("250.0", "NaN").encode(), "NaN or infinity"),
    ("infinity", json.dumps(coco()).replace("250.0", "-Infinity").encode(), "NaN or infinity"),
    ("NaN in a polygon", json.dumps(coco()).replace("25.0", "NaN").encode(), "NaN or infinity"),
    ("PNG", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "malformed"),
]


@pytest.mark.parametrize(("text", "words"), [t[1:] for t in TEXTS], ids=[t[0] for t in TEXTS])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_text_that_is_no_annotation_file(load, text, words, on_error):
    with pytest.raises(AnnotationError, match="Remedy: ") as caught:
        load(text, on_error=on_error)
    assert words in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
@pytest.mark.parametrize("place", ["250.0", "25.0"], ids=["area", "polygon"])
def test_numbers_beyond_floats(load, number, place):
    with pytest.raises(AnnotationError, match="out of range"):
        load(json.dumps(coco()).replace(place, number))


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(AnnotationFileNotFoundError, match="no such file.*Remedy"):
        load_annotations(tmp_path / "none.json")
    with pytest.raises(AnnotationFileNotFoundError, match="there is no folder"):
        load_annotations(tmp_path / "none" / "none.json")
    with pytest.raises(AnnotationError, match="a folder"):
        load_annotations(tmp_path)
    with pytest.raises(ValueError, match="'raise' or 'skip', found 'warn'"):
        load_annotations(tmp_path, on_error="warn")


def test_boxes_as_fractions_of_the_image(load):
    data = coco()
    data["annotations"] = [
        {"id": i, "image_id": 3, "category_id": 5, "bbox": [0.1, 0.2, 0.05 * i + 0.01, 0.3]} for i in range(10)
    ]
    with pytest.raises(AnnotationError, match="multiply boxes and polygons by the image's width"):
        load(data)


def test_the_error_says_how_many_more(load):
    data = coco()
    for annotation in data["annotations"][:3]:
        annotation["category_id"] = 6
    with pytest.raises(AnnotationError, match=r"annotation 101 \(image 7\).*found 6 \(2 more like it\)"):
        load(data)


def test_a_record_is_listed_once_however_much_is_wrong_with_it(load):
    data = coco()
    data["annotations"][1] |= {"image_id": 4, "category_id": 6, "bbox": [-9, -9, -9, -9], "area": -1}
    assert load(data, on_error="skip").skipped_counts() == {"unknown_image": 1}


def test_annotations_of_a_skipped_image_go_with_it(load):
    data = coco()
    data["images"][0]["file_name"] = "/b.jpg"  # image 7
    a = load(data, on_error="skip")
    assert a.image_ids.tolist() == [3] and a.annotation_ids.tolist() == [102]
    assert a.skipped_counts() == {"file_name": 1, "image_skipped": 3}


def test_unknown_ids_among_the_negative_categories(load):
    data = lvis()
    data["images"][0]["neg_category_ids"] = [11, 999]
    with pytest.raises(AnnotationError, match="image 7, key 'neg_category_ids'.*found 999"):
        load(data)
    a = load(data, on_error="skip")
    assert a.neg_category_ids == [[11], [11]] and a.num_images == 2 and len(a.skipped) == 1


def test_an_image_without_negative_categories_among_others(load):
    data = lvis()
    del data["images"][0]["neg_category_ids"]
    with pytest.raises(AnnotationError, match="image 7, key 'neg_category_ids'"):
        load(data)
    assert load(data, on_error="skip").image_ids.tolist() == [3]


def test_url_that_leads_out(load):
    data = lvis()
    data["images"][0]["coco_url"] = "http://images.example.org/../b.jpg"
    with pytest.raises(AnnotationError, match="key 'coco_url'.*'../b.jpg'"):
        load(data)


def test_errors_survive_pickling(load):
    data = coco()
    data["images"][0]["file_name"] = "/b.jpg"
    with pytest.raises(AnnotationError) as caught:
        load(data)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value) and copy.kind == "file_name" and copy.record == "image 7"


@pytest.mark.parametrize("many", [0, 150], ids=["file by file", "by listing the folder"])
def test_missing_images(load, tmp_path, many):
    data = coco()
    data["images"] += [{"id": 100 + i, "width": 9, "height": 9, "file_name": f"more/{i}.jpg"} for i in range(many)]
    (tmp_path / "images" / "more").mkdir(parents=True)
    (tmp_path / "images" / "a.jpg").touch()
    for i in range(many):
        (tmp_path / "images" / "more" / f"{i}.jpg").touch()
    if many:
        (tmp_path / "images" / "more" / "5.jpg").unlink()
        (tmp_path / "images" / "more" / "6.jpg").unlink()
        (tmp_path / "images" / "more" / "6.jpg").symlink_to("7.jpg")  # a link is as good as a file
        (tmp_path / "images" / "more" / "8.jpg").unlink()
        (tmp_path / "images" / "more" / "8.jpg").symlink_to("8.jpg")  # a loop is not
    root = tmp_path / "images"
    with pytest.raises(AnnotationError, match="image 7, key 'file_name'.*none at .*b.jpg"):
        load(data, image_root=root, check_images=True)
    a = load(data, image_root=root)
    assert missing_images(a).tolist() == ([1] if not many else [1, 7, 10])
    with pytest.raises(AnnotationError, match="image 7") as caught:
        require_images(a)
    assert ("(2 more like it)" in str(caught.value)) == bool(many)
    b = load(data, image_root=root, check_images=True, on_error="skip")
    assert b.skipped_counts() == {"missing_image": 3 if many else 1, "image_skipped": 3}
    assert b.annotation_ids.tolist() == [102] and not len(missing_images(b))


def test_images_cannot_be_looked_for_without_a_folder(load):
    for call in (lambda: load(coco(), check_images=True), lambda: load(coco()).image_path(0)):
        with pytest.raises(AnnotationError, match="image_root=FOLDER"):
            call()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "size", "counts"]), inner),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_a_file_holds_the_only_error_is_ours(tmp_path_factory, data):
    content = lvis() if data.draw(st.booleans()) else coco()
    for _ in range(data.draw(st.integers(1, 3))):
        records = content[data.draw(st.sampled_from(sorted(content)))]
        record = data.draw(st.sampled_from(records))
        record[data.draw(st.sampled_from(sorted(record)))] = data.draw(json_values)
    path = write(tmp_path_factory.getbasetemp() / "fuzz.json", content)
    for on_error in ("raise", "skip"):
        try:
            a = load_annotations(path, on_error=on_error)
        except AnnotationError as error:
            assert "Remedy: " in str(error)
            continue
        assert len(a.annotation_ids) == len(a.boxes) == len(a.annotation_polygons) - 1
        assert np.isfinite(a.boxes).all() and np.isfinite(a.areas).all()
        for i in range(a.num_annotations):
            a.segmentation(i)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 1200))
def test_broken_bytes_are_only_our_error(tmp_path_factory, junk, position):
    text = json.dumps(coco()).encode()
    path = write(tmp_path_factory.getbasetemp() / "junk.json", text[:position] + junk + text[position:])
    try:
        load_annotations(path, on_error="skip")
    except AnnotationError as error:
        assert "Remedy: " in str(error)


# -------------------------------------------------------------------------------------- reading piece by piece


def assert_equal_columns(a: Annotations, b: Annotations) -> None:
    for field in dataclasses.fields(Annotations):
        mine, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == other.dtype and np.array_equal(mine, other), field.name
        else:
            assert mine == other, field.name


def read_as_a_whole(monkeypatch, path, **kwargs) -> Annotations:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_read_plain", lambda *_: None)
        return load_annotations(path, cache=False, **kwargs)


def many(number: int, seed: int = 0, decimals: int = 2) -> dict[str, Any]:
    """`number` annotations like LVIS's in a fifth as many images, in no order."""
    rng = np.random.default_rng(seed)
    data = lvis()
    data["images"] = [
        {"id": int(i), "width": 640, "height": 480, "coco_url": f"http://images.example.org/train2017/{i}.jpg",
         "neg_category_ids": rng.choice([5, 11, 90], 2).tolist(), "not_exhaustive_category_ids": []}
        for i in rng.permutation(number // 5 + 1)
    ]  # fmt: skip
    data["annotations"] = [
        {"id": i, "image_id": int(rng.integers(number // 5 + 1)), "category_id": int(rng.choice([5, 11, 90])),
         "bbox": [1.5, 2, 30.25, 40], "area": 7.5, "segmentation": [
             np.round(rng.uniform(0, 640, 2 * rng.integers(3, 9)), decimals).tolist()
             for _ in range(rng.integers(1, 3))
         ]}
        for i in range(number)
    ]  # fmt: skip
    return data


SPELLINGS = {
    "compact": {"separators": (",", ":")},
    "as json.dumps": {},
    "indented": {"indent": 2},
    "spaced": {"separators": (" \t,\r\n ", "  :\n")},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("window", [1, 1000, 1 << 23])
def test_pieces_give_what_the_whole_gives(tmp_path, monkeypatch, spelling, window):
    data = {"info": {"a": [{"}, {": "]}"}]}, **many(200), "licenses": [{"id": 1}], "version": 1.5}
    data["annotations"][7]["segmentation"] = {"size": [480, 640], "counts": [300_000, 7_200]}
    data["annotations"][8]["segmentation"] = None
    data["annotations"][8]["iscrowd"] = data["annotations"][7]["iscrowd"] = 1
    data["annotations"][9]["note"] = 'a quote \\" and },{ }] within'
    path = write(tmp_path / "set.json", json.dumps(data, **SPELLINGS[spelling]))
    monkeypatch.setattr(module, "_WINDOW", window)
    for segmentations in (True, False):
        assert module._read_plain(str(path), segmentations, None) is not None
        assert_equal_columns(
            load_annotations(path, segmentations=segmentations),
            read_as_a_whole(monkeypatch, path, segmentations=segmentations),
        )


@pytest.mark.parametrize(
    "numbers",
    [
        [0, 0.1, 0.25, 7, 7.0, 12.5],
        [9999.99, 9999.9, 9999, 10.01, 0.01, 100],
        [10000.5, 1, 2, 3, 4, 5],  # more digits than a word holds
        [1.125, 1, 2, 3, 4, 5],
        [1e2, 1.5e-1, 2, 3, 4, 5],
        [-0.5, -0.0, 2, 3, 4, 5],
        [0.1 + 0.2, 1 / 3, 2, 3, 4, 5],
    ],
    ids=str,
)
def test_every_spelling_of_a_number_is_the_same_float(tmp_path, monkeypatch, numbers):
    data = many(30)
    data["annotations"][11]["segmentation"] = [numbers, [1, 2, 3, 4, 5, 6.5]]
    path = write(tmp_path / "set.json", data)
    a = load_annotations(path)
    row = a.annotation_ids.tolist().index(11)
    assert a.segmentation(row) == [numbers, [1, 2, 3, 4, 5, 6.5]]
    assert [math.copysign(1, v) for v in a.segmentation(row)[0]] == [math.copysign(1, v) for v in numbers]
    assert_equal_columns(a, read_as_a_whole(monkeypatch, path))


def test_numbers_change_their_kind_between_pieces(tmp_path, monkeypatch):
    data = many(100)
    data["annotations"] += [a | {"id": a["id"] + 100} for a in many(50, 1, decimals=9)["annotations"]]
    data["annotations"] += [a | {"id": a["id"] + 200, "image_id": 0} for a in many(50, 2)["annotations"]]
    path = write(tmp_path / "set.json", data)
    monkeypatch.setattr(module, "_WINDOW", 2000)
    assert module._read_plain(str(path), True, None) is not None
    assert_equal_columns(load_annotations(path), read_as_a_whole(monkeypatch, path))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=12), st.integers(1, 50))
def test_coordinates_in_blocks(ranges, size):
    values = np.arange(0, 8100, 100, dtype=np.int32)
    starts = np.array([start for start, _ in ranges], dtype=np.int64)
    stops = starts + np.array([length for _, length in ranges], dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_COORDINATES_A_BLOCK", size)
        coordinates = module._Coordinates(values, starts, stops)
        blocks = list(coordinates.blocks())
    expected = [float(i) for start, length in ranges for i in range(start, start + length)]
    assert [v for block in blocks for v in block.tolist()] == expected and len(coordinates) == len(expected)
    assert coordinates.array().tolist() == expected and all(block.dtype == np.float64 for block in blocks)
    assert max(map(len, blocks), default=0) <= size


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 999_999), min_size=1), st.sampled_from(["", " ", "\n", "\t "]), st.data())
def test_hundredths_are_read_exactly(numbers, space, data):
    texts = []
    for n in numbers:
        spellings = [f"{n // 100}.{n % 100:02d}"]
        if n % 10 == 0:
            spellings.append(f"{n // 100}.{n % 100 // 10}")
        if n % 100 == 0:
            spellings.append(str(n // 100))
        texts.append(data.draw(st.sampled_from(spellings)))
    text = "[" + f",{space}".join(texts) + "]"
    values = module._hundredths(text.encode())
    assert values.tolist() == numbers
    assert (values / 100.0).tolist() == [float(v) for v in json.loads(text)]


def test_what_pieces_cannot_read_is_left_to_the_whole(tmp_path):
    def plain(text: str) -> bool:
        return module._read_plain(str(write(tmp_path / "x.json", text)), True, None) is not None

    text = json.dumps(coco())
    assert plain(text) and plain(f" {text}\n ") and plain("\ufeff" + text)
    assert not plain(text + "x") and not plain(text[:-1]) and not plain(f"[{text}]") and not plain("")
    assert not plain('{"images": [], ' + text[1:])  # a key twice
    assert not plain('{"info": NaN, ' + text[1:]) and not plain('{"info": {, ' + text[1:])
    assert not plain(text.replace('"annotations"', '"objects"')) and plain('{"\\u00e9": 1, ' + text[1:])
    assert not plain(text.replace("[[10.0, 10.0,", "[[[10.0], 10.0,"))
    for segmentation in ("5", "[5, [1, 2, 3, 4, 5, 6]]", "[[]]", "[[1, 2, 3, 4, 5]]", "[[1, 2, 3, 4]]", '"x"',
                         "[[1, 2, 3, 4, 5, 6], 7]", "[[1, 2, 3, 4, 5, null]]", "[{}]", "[[[1, 2], [3, 4]]]"):  # fmt: skip
        data = coco()
        data["annotations"][1]["segmentation"] = "HERE"
        assert not plain(json.dumps(data).replace('"HERE"', segmentation)), segmentation


# --------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder; files count as old enough to trust their time stamps at once."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RIO_CACHE", str(folder))
    monkeypatch.setattr(module, "_SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(module, "_COPIED_BYTES", 256)  # so that small files' columns are mapped too
    monkeypatch.setattr(module, "_said", set())
    return folder


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.columns"))


def no_reading(monkeypatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the JSON file was read")

    monkeypatch.setattr(module, "_load", fail)


@pytest.mark.parametrize("segmentations", [True, False])
@pytest.mark.parametrize("make", [coco, lvis, lambda: many(60)], ids=["coco", "lvis", "many"])
def test_the_cache_gives_the_same_columns(tmp_path, cache, monkeypatch, make, segmentations):
    path = write(tmp_path / "set.json", make())
    plain = load_annotations(path, image_root="x", segmentations=segmentations, cache=False)
    assert not cache.exists()
    first = load_annotations(path, image_root="x", segmentations=segmentations, cache=True)
    assert len(entries(cache)) == 1 and not list(cache.glob("*.lock")) and not list(cache.glob(".*"))
    no_reading(monkeypatch)
    second = load_annotations(path, image_root="x", segmentations=segmentations, cache=True)
    for a in (first, second):
        assert_equal_columns(a, plain)
        assert [a.segmentation(i) for i in range(a.num_annotations)] == [
            plain.segmentation(i) for i in range(plain.num_annotations)
        ]
    other_root = load_annotations(path, image_root="y", segmentations=segmentations, cache=True)
    assert other_root.image_path(0) == os.path.join("y", plain.file_names[0])


def test_columns_are_mapped_and_read_only(tmp_path, cache):
    a = load_annotations(write(tmp_path / "set.json", many(60)), cache=True)
    assert isinstance(a.polygon_xy.base, np.memmap) and type(a.polygon_xy) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        a.polygon_xy[0] = 1
    assert a.image_count.flags.writeable  # small ones are copies


def test_small_files_are_not_cached_unless_asked(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "set.json", coco())
    load_annotations(path)
    assert not cache.exists()
    monkeypatch.setattr(module, "CACHE_MIN_BYTES", path.stat().st_size)
    load_annotations(path)
    assert len(entries(cache)) == 1


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RIO_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "rio"
    monkeypatch.setenv("RIO_CACHE", "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"
    monkeypatch.setenv("RIO_CACHE", "off")
    assert cache_folder() is None
    load_annotations(write(tmp_path / "set.json", coco()), cache=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.json"]


def test_a_changed_file_is_read_again_even_with_its_size_and_time(tmp_path, cache):
    data = coco()
    path = write(tmp_path / "set.json", data)
    before = path.stat()
    assert load_annotations(path, cache=True).boxes[1].tolist() == [10, 10, 20, 15]
    data["annotations"][0]["bbox"] = [10, 10, 20, 14]
    write(path, data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert load_annotations(path, cache=True).boxes[1].tolist() == [10, 10, 20, 14]
    assert len(entries(cache)) == 2


def test_a_change_within_the_clocks_tick_is_noticed(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 2.0)  # the real value: a new file's stamps are not trusted
    monkeypatch.setattr(module, "_stamp", lambda status: "stamp-always-the-same")
    data = coco()
    path = write(tmp_path / "set.json", data)
    load_annotations(path, cache=True)
    data["annotations"][0]["bbox"] = [10, 10, 20, 14]
    assert load_annotations(write(path, data), cache=True).boxes[1].tolist() == [10, 10, 20, 14]


def test_the_same_content_elsewhere_is_a_hit(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "set.json", many(60))
    plain = load_annotations(path, cache=True)
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / "other.json"
    moved.write_bytes(path.read_bytes())
    no_reading(monkeypatch)
    a = load_annotations(moved, cache=True)
    assert a.path == str(moved) and np.array_equal(a.polygon_xy, plain.polygon_xy) and len(entries(cache)) == 1
    # From now on its time stamps are known too: the content is not looked at again.
    monkeypatch.setattr(module._Digest, "update", None)
    assert load_annotations(moved, cache=True).num_annotations == 60


def test_a_file_written_to_while_it_is_read_is_not_kept(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "set.json", coco())
    read = module._load

    def slow(*args: Any) -> Annotations:
        annotations = read(*args)
        path.write_text(path.read_text() + " ")
        return annotations

    monkeypatch.setattr(module, "_load", slow)
    assert load_annotations(path, cache=True).num_annotations == 4
    assert not entries(cache)


def test_entries_by_what_was_asked(tmp_path, cache, monkeypatch):
    data = coco()
    path = write(tmp_path / "set.json", data)
    load_annotations(path, cache=True)
    with monkeypatch.context() as patch:
        no_reading(patch)
        load_annotations(path, cache=True, on_error="skip")  # nothing had to be skipped: the same entry
        boxes = load_annotations(path, cache=True, segmentations=False)  # it holds the boxes too
    assert_equal_columns(boxes, load_annotations(path, segmentations=False, cache=False))

    data["annotations"][0]["bbox"] = [90, 10, 20, 15]
    data["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]
    write(path, data)
    for segmentations in (True, False):
        kwargs = {"on_error": "skip", "segmentations": segmentations}
        plain = load_annotations(path, cache=False, **kwargs)
        assert len(plain.skipped) == 1 + segmentations
        assert_equal_columns(load_annotations(path, cache=True, **kwargs), plain)
        with monkeypatch.context() as patch:
            no_reading(patch)
            assert_equal_columns(load_annotations(path, cache=True, **kwargs), plain)
        with pytest.raises(AnnotationError):  # an entry with records skipped is none for "raise"
            load_annotations(path, cache=True, segmentations=segmentations)


def test_missing_images_are_looked_for_behind_the_cache(tmp_path, cache):
    path = write(tmp_path / "set.json", coco())
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (images / name).touch()
    kwargs = {"image_root": images, "check_images": True, "cache": True}
    assert load_annotations(path, **kwargs).num_images == 2 == load_annotations(path, **kwargs).num_images
    (images / "b.jpg").unlink()
    with pytest.raises(AnnotationError, match="image 7"):
        load_annotations(path, **kwargs)
    assert load_annotations(path, on_error="skip", **kwargs).annotation_ids.tolist() == [102]
    (images / "b.jpg").touch()
    assert load_annotations(path, **kwargs).num_images == 2


def test_a_broken_file_is_never_cached(tmp_path, cache):
    path = write(tmp_path / "set.json", json.dumps(coco())[:-40])
    for _ in range(2):
        with pytest.raises(AnnotationError, match="truncated"):
            load_annotations(path, cache=True)
    assert not entries(cache)
    with pytest.raises(AnnotationFileNotFoundError):
        load_annotations(tmp_path / "none.json", cache=True)
    with pytest.raises(AnnotationError, match="a folder"):
        load_annotations(tmp_path, cache=True)


@pytest.mark.parametrize(
    "damage", ["empty", "cut off", "foreign", "another file's", "short", *range(0, 100, 7)], ids=str
)
def test_a_broken_entry_is_made_anew(tmp_path, cache, caplog, damage):
    path = write(tmp_path / "set.json", many(60))
    plain = load_annotations(path, cache=True)
    (entry,) = entries(cache)
    good = entry.read_bytes()
    if damage == "empty":
        bad = b""
    elif damage == "cut off":
        bad = good[: len(good) // 2]
    elif damage == "foreign":
        bad = np.random.default_rng(0).bytes(len(good))
    elif damage == "another file's":
        load_annotations(write(tmp_path / "other.json", coco()), cache=True)
        bad = next(e for e in entries(cache) if e != entry).read_bytes()
    elif damage == "short":
        bad = good[:10]
    else:  # one bit, anywhere
        place = len(good) * damage // 100
        bad = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
    del plain  # its columns are mapped
    entry.unlink()
    entry.write_bytes(bad)
    with caplog.at_level(logging.WARNING, logger="rio.data.load"):
        again = load_annotations(path, cache=True)
    assert_equal_columns(again, load_annotations(path, cache=False))
    if entry.read_bytes() != bad:
        assert "it is made anew" in caplog.text and str(entry) in caplog.text and entry.read_bytes() == good
    else:
        assert isinstance(damage, int)  # the bit lay between two columns, where nothing is


@pytest.mark.parametrize("how", ["a file in the way", "cannot be written"])
def test_without_a_folder_it_works_and_says_so_once(tmp_path, cache, monkeypatch, caplog, how):
    path = write(tmp_path / "set.json", coco())
    if how == "a file in the way":
        cache.write_text("")
    else:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module, "_write_atomically", full)
    with caplog.at_level(logging.WARNING, logger="rio.data.load"):
        for _ in range(3):
            assert_equal_columns(load_annotations(path, cache=True), load_annotations(path, cache=False))
    assert len(caplog.records) == 1 and "Remedy: set RIO_CACHE" in caplog.text


def test_a_cache_that_can_only_be_read_is_used(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "set.json", coco())
    load_annotations(path, cache=True)
    for stamp in cache.glob("stamp-*"):
        stamp.unlink()
    no_reading(monkeypatch)

    def read_only(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "_write_atomically", read_only)
    assert load_annotations(path, cache=True).num_annotations == 4


def test_a_crash_while_writing_leaves_no_entry(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "set.json", coco())

    def crash(handle: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", crash)
        with pytest.raises(KeyboardInterrupt):
            load_annotations(path, cache=True)
    assert list(cache.iterdir()) == []
    old = cache / ".killed.tmp"
    old.write_bytes(b"x")
    os.utime(old, (0, 0))
    load_annotations(path, cache=True)
    assert not old.exists() and len(entries(cache)) == 1


READ = """
import sys, numpy as np
from rio.data import load as module
module._SETTLED_SECONDS = -1.0
loads = []
load = module._load
module._load = lambda *args: (loads.append(1), load(*args))[1]
a = module.load_annotations(sys.argv[1], cache=True)
print(len(loads), a.num_annotations, float(a.polygon_xy.sum()))
"""


def test_processes_at_once_share_one_reading(tmp_path, cache, repository):
    path = write(tmp_path / "set.json", many(2000))
    expected = load_annotations(path, cache=False)
    running = [
        subprocess.Popen([sys.executable, "-c", READ, str(path)], stdout=subprocess.PIPE, text=True, cwd=repository)
        for _ in range(4)
    ]
    results = [process.communicate(timeout=60)[0].split() for process in running]
    assert all(process.returncode == 0 for process in running)
    assert {(int(n), float(total)) for _, n, total in results} == {(2000, float(expected.polygon_xy.sum()))}
    # A process that looks before another's entry is there, and locks after, reads it too; none of them is wrong.
    assert 1 <= sum(int(reads) for reads, *_ in results) <= 4
    assert len(entries(cache)) == 1 and not list(cache.glob(".*.tmp"))


def _describe(annotations: Annotations, queue) -> None:
    mapped = isinstance(annotations.polygon_xy.base, np.memmap)
    queue.put((mapped, float(annotations.polygon_xy.sum()), annotations.frequency.tolist()))


def test_a_started_process_maps_the_columns_a_pickle_holds_them(tmp_path, cache):
    a = load_annotations(write(tmp_path / "set.json", many(60)), cache=True)
    a = dataclasses.replace(a, frequency=np.array(["f", "f", "r"]))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_describe, args=(a, queue))
    process.start()
    assert queue.get(timeout=60) == (True, float(a.polygon_xy.sum()), ["f", "f", "r"])
    process.join()

    text = pickle.dumps(a)
    for entry in entries(cache):
        entry.unlink()
    again = pickle.loads(text)
    assert np.array_equal(again.polygon_xy, a.polygon_xy) and again.segmentation(0) == a.segmentation(0)


# --------------------------------------------------------------------------------------------- pure functions


def test_frequency_groups_at_their_borders():
    groups = frequency_groups(np.array([0, 1, 10, 11, 100, 101, 10**6]))
    assert "".join(groups.tolist()) == "rrrccff" and groups.dtype == np.dtype("<U1")
    assert frequency_groups([]).shape == (0,)


def test_category_ids_to_class_ids():
    class_ids = category_id_to_class_id(np.array([5, 11, 90]), [[90, 5], [11, 11]])
    assert class_ids.tolist() == [[2, 0], [1, 1]] and class_ids.dtype == np.int64
    assert category_id_to_class_id([5], []).shape == (0,) and int(category_id_to_class_id([5, 6], 6)) == 1
    with pytest.raises(AnnotationError, match="2 of 4 ids.*one of 2 known ids, found 4, 6"):
        category_id_to_class_id([5, 7], [4, 5, 6, 7])
    with pytest.raises(AnnotationError):
        category_id_to_class_id([], [1])


def test_training_images_by_detectron2s_rule(load):
    data = coco()
    data["images"].append({"id": 9, "width": 5, "height": 5, "file_name": "empty.jpg"})
    a = load(data)
    assert training_image_indices(a, filter_empty=True).tolist() == [0, 1]
    assert training_image_indices(a, filter_empty=False).tolist() == [0, 1, 2]
    data["annotations"] = data["annotations"][3:]  # the crowd region only
    assert training_image_indices(load(data), filter_empty=False).tolist() == [0, 1, 2]
    with pytest.raises(AnnotationError, match="3 images, none with an object"):
        training_image_indices(load(data))


def test_validation_groups_come_from_the_training_set_by_name(load):
    train = load(lvis())
    data = coco()
    for category in data["categories"]:
        category["id"] += 1000  # other ids, another order, same names
    for annotation in data["annotations"]:
        annotation["category_id"] += 1000
    val = load(data)
    assert val.frequency.tolist() == ["r", "r", "r"]
    grouped = val.with_frequency_of(train)
    assert grouped.frequency.tolist() == ["c", "r", "f"] == grouped.declared_frequency.tolist()
    assert val.frequency.tolist() == ["r", "r", "r"] and grouped.boxes is val.boxes
    data["categories"][0]["name"] = "teddy bear"
    with pytest.raises(AnnotationError, match="category 1090.*'teddy bear'.*same list of categories"):
        load(data).with_frequency_of(train)


def test_both_files_need_the_same_categories(load):
    train = load(lvis())
    check_same_categories(train, load(coco()))
    for change in (at("categories", 2, name="cup"), lambda d: d["categories"].append({"id": 12, "name": "cup"})):
        data = coco()
        change(data)
        with pytest.raises(AnnotationError, match="'cup'"):
            check_same_categories(train, load(data))
    data = coco()
    data["categories"].pop()  # nothing is a mug
    with pytest.raises(AnnotationError, match="the 3 ids and names.*found 2 of them"):
        check_same_categories(train, load(data))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_rle_strings_decode_as_pycocotools_does(seed, height, width):
    mask = pytest.importorskip("pycocotools.mask")
    pixels = np.asfortranarray(np.random.default_rng(seed).random((height, width)) < 0.3, dtype=np.uint8)
    encoded = mask.encode(pixels)
    runs = rle_counts(encoded["counts"])
    expected = np.diff(np.flatnonzero(np.diff(pixels.T.ravel(), prepend=0, append=2)), prepend=0)
    assert runs.tolist() == expected.tolist() and runs.sum() == height * width
    assert rle_counts(encoded["counts"].decode()).tolist() == runs.tolist()
    assert mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width) == encoded


def test_rle_of_nothing():
    assert rle_counts("").tolist() == [] == rle_counts([]).tolist()


# ------------------------------------------------------------------------------------------------- real files


def test_lvis_v05(shared_dir):
    path = shared_dir / "data" / "lvis_val_100.json"
    a = load_annotations(path)
    assert (a.num_images, a.num_annotations, a.num_classes) == (100, 977, 1230) and a.federated and not a.skipped
    data = json.loads(path.read_text())
    categories = sorted(data["categories"], key=lambda c: c["id"])  # this file's counts are of its own 100 images
    assert a.image_count.tolist() == [c["image_count"] for c in categories]
    assert a.instance_count.tolist() == [c["instance_count"] for c in categories]
    assert a.frequency.tolist() == [c["frequency"] for c in categories]
    images = {image["id"]: image for image in data["images"]}
    assert a.neg_category_ids == [images[i]["neg_category_ids"] for i in a.image_ids.tolist()]
    assert a.not_exhaustive_category_ids == [images[i]["not_exhaustive_category_ids"] for i in a.image_ids.tolist()]
    by_id = {annotation["id"]: annotation for annotation in data["annotations"]}
    for row, annotation_id in enumerate(a.annotation_ids.tolist()):
        record = by_id[annotation_id]
        assert a.segmentation(row) == record["segmentation"] and a.boxes[row].tolist() == record["bbox"]
        assert a.image_ids[a.annotation_image[row]] == record["image_id"]
        assert a.category_ids[a.annotation_class[row]] == record["category_id"]


@pytest.mark.parametrize(("split", "annotations"), [("train", 470), ("val", 382)])
def test_coco(shared_dir, split, annotations):
    root = shared_dir / "data" / "tiny_coco"
    a = load_annotations(
        root / "annotations" / f"instances_{split}2017.json", image_root=root / f"{split}2017", check_images=True
    )
    assert (a.num_images, a.num_annotations, a.num_classes) == (50, annotations, 80)
    assert a.iscrowd.sum() == 5 == len(a.rles) and not a.federated and not a.skipped
    assert a.category_ids[-1] == 90 and a.annotation_class.max() < 80
    assert a.instance_count.sum() == annotations - 5 and a.declared_frequency is None
    for rle in a.rles.values():
        assert rle_counts(rle["counts"]).sum() == rle["size"][0] * rle["size"][1]


def test_importing_takes_neither_torch_nor_detectron2():
    code = "import sys, rio.data.load; print(sorted({'torch', 'detectron2'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
