"""Annotation files: the columns by hand, every broken record, and real files."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rio.annotations import (
    AnnotationError,
    AnnotationFileNotFoundError,
    Annotations,
    category_id_to_class_id,
    check_same_categories,
    frequency_groups,
    load_annotations,
    missing_images,
    require_images,
    rle_counts,
    training_image_indices,
)
from annotation_files import SQUARE, TRIANGLE, coco, lvis, write


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
        assert (
            a.skipped[1].record == "annotation 100 (image 7)"
            and "[40.0, 20.0, 10.0, 0.0]" in a.skipped[1].detail
        )
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
    (
        "category without a name",
        at("categories", 0, name=...),
        "missing_key",
        "position 0 (id 90), key 'name'",
    ),
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
    (
        "not UTF-8",
        json.dumps(coco(), ensure_ascii=False).encode("latin-1", "replace").replace(b"\xe8", b"\xff"),
        "",
    ),
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
        {"id": i, "image_id": 3, "category_id": 5, "bbox": [0.1, 0.2, 0.05 * i + 0.01, 0.3]}
        for i in range(10)
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
    data["images"] += [
        {"id": 100 + i, "width": 9, "height": 9, "file_name": f"more/{i}.jpg"} for i in range(many)
    ]
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
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "size", "counts"]), inner)
    ),
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
    for change in (
        at("categories", 2, name="cup"),
        lambda d: d["categories"].append({"id": 12, "name": "cup"}),
    ):
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
    assert (
        (a.num_images, a.num_annotations, a.num_classes) == (100, 977, 1230) and a.federated and not a.skipped
    )
    data = json.loads(path.read_text())
    categories = sorted(
        data["categories"], key=lambda c: c["id"]
    )  # this file's counts are of its own 100 images
    assert a.image_count.tolist() == [c["image_count"] for c in categories]
    assert a.instance_count.tolist() == [c["instance_count"] for c in categories]
    assert a.frequency.tolist() == [c["frequency"] for c in categories]
    images = {image["id"]: image for image in data["images"]}
    assert a.neg_category_ids == [images[i]["neg_category_ids"] for i in a.image_ids.tolist()]
    assert a.not_exhaustive_category_ids == [
        images[i]["not_exhaustive_category_ids"] for i in a.image_ids.tolist()
    ]
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
        root / "annotations" / f"instances_{split}2017.json",
        image_root=root / f"{split}2017",
        check_images=True,
    )
    assert (a.num_images, a.num_annotations, a.num_classes) == (50, annotations, 80)
    assert a.iscrowd.sum() == 5 == len(a.rles) and not a.federated and not a.skipped
    assert a.category_ids[-1] == 90 and a.annotation_class.max() < 80
    assert a.instance_count.sum() == annotations - 5 and a.declared_frequency is None
    for rle in a.rles.values():
        assert rle_counts(rle["counts"]).sum() == rle["size"][0] * rle["size"][1]


def test_importing_takes_neither_torch_nor_detectron2():
    code = (
        "import sys, rio.annotations; print(sorted({'torch', 'detectron2'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
