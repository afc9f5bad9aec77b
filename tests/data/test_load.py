"""Annotation files: the columns by hand, extremes, reading in pieces, and real files."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rio.data import reading
from rio.data.annotations import Annotations, category_id_to_class_id, check_same_categories, frequency_groups
from rio.data.errors import AnnotationError, AnnotationFileNotFoundError, Problems
from rio.data.load import load_annotations
from rio.data.masks import rle_counts
from tests.support.annotation_files import SQUARE, TRIANGLE, assert_equal_columns, at, coco, lvis, many, masks_of, write


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
        "mask_json": "uint8", "mask_start": "int64", "mask_length": "int32",
    }  # fmt: skip
    assert {name: getattr(a, name).dtype for name in dtypes} == {n: np.dtype(d) for n, d in dtypes.items()}


def test_masks_are_the_bytes_of_the_file(load):
    a = load(coco())
    assert masks_of(a) == [[TRIANGLE, SQUARE], [TRIANGLE], [SQUARE], {"size": [50, 100], "counts": [4990, 10]}]
    assert a.mask_json[a.mask_start[1] :][: a.mask_length[1]].tobytes() == json.dumps([TRIANGLE]).encode()
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

    # A group that is not declared comes from the image count.
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


def test_pickling(load):
    a = load(lvis())
    assert a.neg_category_ids == [[11], [11]]  # fills the cache that must not be pickled
    b = pickle.loads(pickle.dumps(a))
    assert "neg_category_ids" not in b.__dict__ and b.neg_category_ids == a.neg_category_ids
    assert_equal_columns(a, b)


# ------------------------------------------------------------------------------------------ empty and extreme


def test_files_without_annotations_or_images(load):
    data = coco()
    data["annotations"] = []
    for segmentations in (True, False):
        a = load(data, segmentations=segmentations)
        assert a.num_annotations == 0 and a.boxes.shape == (0, 4) and a.image_offsets.tolist() == [0, 0, 0]
        assert a.image_count.tolist() == [0, 0, 0] and not a.has_segmentations
    del data["annotations"]  # as in LVIS's test sets
    assert load(data, require_annotations=False).num_annotations == 0
    data["annotations"] = data["images"] = []
    a = load(data)
    assert a.num_images == 0 and a.image_offsets.tolist() == [0] and a.neg_category_ids == []


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
    assert load(json.dumps(data).replace("[]", "[\n ]")).num_annotations == 4


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


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(AnnotationFileNotFoundError, match="no such file.*Fix: "):
        load_annotations(tmp_path / "none.json")
    with pytest.raises(AnnotationFileNotFoundError, match="there is no folder"):
        load_annotations(tmp_path / "none" / "none.json")
    with pytest.raises(AnnotationError, match="a folder.*Fix: "):
        load_annotations(tmp_path)
    with pytest.raises(ValueError, match="'raise' or 'skip', found 'warn'"):
        load_annotations(tmp_path, on_error="warn")


# -------------------------------------------------------------------------------------- reading piece by piece


SPELLINGS = {
    "compact": {"separators": (",", ":")},
    "as json.dumps": {},
    "indented": {"indent": 2},
    "spaced": {"separators": (" \t,\r\n ", "  :\n")},
}


def assert_pieces_give_the_whole(path: Path, **kwargs: Any) -> Annotations:
    """Both ways to read give the same columns; the pieces must not have given up."""
    *pieces, rows = reading.read_in_pieces(str(path), True)
    *whole, expected = reading.read_whole(str(path), Problems(str(path), "raise"), True)
    assert pieces == whole
    for mine, other in zip(rows, expected, strict=True):
        assert mine.dtype == other.dtype and np.array_equal(mine, other, equal_nan=mine.dtype == float)
    return load_annotations(path, **kwargs)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("piece", [1, 1000, 1 << 23])
def test_pieces_give_what_the_whole_gives(tmp_path, monkeypatch, spelling, piece):
    data = {"info": {"a": [{"}, {": "]}"}]}, **many(200), "licenses": [{"id": 1}], "version": 1.5}
    data["annotations"][7] |= {"iscrowd": 1, "segmentation": {"size": [480, 640], "counts": [300_000, 7_200]}}
    data["annotations"][8] |= {"iscrowd": 1, "segmentation": None}
    data["annotations"][9]["note"] = 'a quote \\" and },{ }] within'
    data["annotations"][10]["parts"] = [{"a": 1}, {"b": [{"c": 2}, {}]}]
    path = write(tmp_path / "set.json", json.dumps(data, **SPELLINGS[spelling]))
    monkeypatch.setattr(reading, "PIECE", piece)
    a = assert_pieces_give_the_whole(path)
    by_id = {annotation["id"]: annotation["segmentation"] for annotation in data["annotations"]}
    assert masks_of(a) == [by_id[i] for i in a.annotation_ids.tolist()]


TEXT = json.dumps(coco())
UNPLAIN = {
    "something behind": TEXT + "x",
    "cut off": TEXT[:-1],
    "within a list": f"[{TEXT}]",
    "empty": "",
    "a key twice": '{"images": [], ' + TEXT[1:],
    "NaN": '{"info": NaN, ' + TEXT[1:],
    "malformed beside the lists": '{"info": {, ' + TEXT[1:],
    "a list of another name": TEXT.replace('"annotations"', '"objects"'),
    "a list in another object": TEXT.replace('"annotations"', '"x": {"annotations"') + "}",
    "a name with a quote": TEXT.replace('"annotations"', r'"\"annotations"'),
    "a comma behind the last": TEXT.replace("}]", "},]"),
}


@pytest.mark.parametrize("kind", UNPLAIN)
def test_what_pieces_cannot_read_is_left_to_the_whole(tmp_path, kind):
    with pytest.raises(reading.BROKEN_JSON):
        reading.read_in_pieces(str(write(tmp_path / "x.json", UNPLAIN[kind])), True)


@pytest.mark.parametrize("text", [TEXT, f" {TEXT}\n ", "\ufeff" + TEXT, '{"\\u00e9": 1, ' + TEXT[1:]])
def test_what_pieces_can_read(tmp_path, text):
    assert assert_pieces_give_the_whole(write(tmp_path / "x.json", text)).num_annotations == 4


# ------------------------------------------------------------------------- pure functions


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


# ---------------------------------------------------------------------------------------------- real files


def test_lvis_v05(shared_dir):
    path = shared_dir / "data" / "lvis_val_100.json"
    a = load_annotations(path)
    assert (a.num_images, a.num_annotations, a.num_classes) == (100, 977, 1230) and a.federated and not a.skipped
    data = json.loads(path.read_text())
    categories = sorted(data["categories"], key=lambda c: c["id"])  # this file's counts are of its own 100 images
    assert a.image_count.tolist() == [c["image_count"] for c in categories]
    assert a.instance_count.tolist() == [c["instance_count"] for c in categories]
    assert a.frequency.tolist() == [c["frequency"] for c in categories]


@pytest.mark.parametrize(("split", "annotations"), [("train", 470), ("val", 382)])
def test_coco(shared_dir, split, annotations):
    root = shared_dir / "data" / "tiny_coco"
    file = root / "annotations" / f"instances_{split}2017.json"
    a = load_annotations(file, image_root=root / f"{split}2017", check_images=True)
    assert (a.num_images, a.num_annotations, a.num_classes) == (50, annotations, 80)
    assert a.iscrowd.sum() == 5 and a.has_segmentations and not a.federated and not a.skipped
    assert a.category_ids[-1] == 90 and a.annotation_class.max() < 80
    assert a.instance_count.sum() == annotations - 5 and a.declared_frequency is None
    for row in np.flatnonzero(a.iscrowd).tolist():
        rle = a.segmentation(row)
        assert rle_counts(rle["counts"]).sum() == rle["size"][0] * rle["size"][1]
