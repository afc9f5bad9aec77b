"""The rules of annotation files: every kind of fault is an error that names it, or a record left out, listed and counted."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rio.data.annotations import Annotations
from rio.data.errors import AnnotationError
from rio.data.load import load_annotations
from rio.data.rules import missing_images, require_images
from tests.support.annotation_files import SQUARE, TRIANGLE, at, coco, lvis, write


@pytest.fixture
def load(tmp_path: Path):
    def _load(data: Any, **kwargs: Any) -> Annotations:
        return load_annotations(write(tmp_path / "set.json", data), **kwargs)

    return _load


def obj(**changes: Any):
    return at("annotations", 1, **changes)  # annotation 102 in image 3


def rle(size: list[int], counts: Any):
    return obj(segmentation={"size": size, "counts": counts})


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
    ("RLE of another size", rle([64, 48], [3072]), "rle_size", "[48, 64]"),
    ("RLE of too few px", rle([48, 64], [3000]), "rle", "px, found 3000"),
    ("RLE with a negative run", rle([48, 64], [-1]), "type", ">= 0"),
    ("RLE string cut off", rle([48, 64], "P"), "rle", "cut off"),
    ("RLE string not ours", rle([48, 64], "~~é"), "rle", "ASCII"),
    ("RLE of gigapixels", rle([48, 64], [2**32 - 1] * 9), "rle", "3072 px"),
    ("a point far away", obj(segmentation=[[*TRIANGLE, 1e9, 3]]), "polygon", "3 to 1e+09"),
    ("a point below", obj(segmentation=[[*TRIANGLE, 3, -2e4]]), "polygon", "within 10000 px of the image's 64 x 48 px"),
    ("annotation is text", lambda d: d["annotations"].__setitem__(1, "x"), "type", "`object`, found `str`"),
    ("id of 5,000 digits", lambda d: json.dumps(d).replace('"id": 102', '"id": ' + "9" * 5000), "type", "'id'"),
    ("area beyond floats", lambda d: json.dumps(d).replace("250.0", "1e999"), "type", "out of range"),
    ("point beyond floats", lambda d: json.dumps(d).replace("50.0, 30.0, ", "-1e999, 30.0, ", 1), "type", "out of range"),
    ("RLE run too long", rle([48, 64], "o" * 99 + "0"), "rle", "characters"),
]  # fmt: skip


# The annotations that stay when the broken record is left out; of the images, those of the second list go.
STAY = {"duplicate_annotation_id": [101, 100, 99], "duplicate_image_id": [102, 101, 100, 99]}


@pytest.mark.parametrize(("change", "kind", "words"), [p[1:] for p in FATAL], ids=[p[0] for p in FATAL])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_what_cannot_be_skipped_is_an_error_in_either_case(load, tmp_path, change, kind, words, on_error):
    data = coco()
    change(data)
    with pytest.raises(AnnotationError) as caught:
        load(data, on_error=on_error)
    assert caught.value.kind == kind
    message = str(caught.value)
    assert words in message and str(tmp_path / "set.json") in message and "Fix: " in message


@pytest.mark.parametrize(("change", "kind", "words"), [p[1:] for p in REJECTED], ids=[p[0] for p in REJECTED])
def test_a_broken_record_is_an_error_that_names_it_or_a_listed_skip(load, tmp_path, change, kind, words):
    data = coco()
    text = change(data)
    data = text if isinstance(text, str) else data
    with pytest.raises(AnnotationError) as caught:
        load(data)
    error = caught.value
    assert error.kind == kind and error.path == str(tmp_path / "set.json")
    assert all((error.record, error.key, error.expected, error.found, error.fix)) and "on_error='skip'" in error.fix
    assert words in str(error) and error.path in str(error) and "Fix: " in str(error)

    a = load(data, on_error="skip")
    counts = a.skipped_counts()
    assert counts.pop(kind) == 1 and set(counts) <= {"image_skipped", "unknown_image"}  # of a lost image
    intact = STAY.get(kind, [101, 100, 99])
    assert a.annotation_ids.tolist() == intact and a.num_images == 1 + (
        "annotation" in error.record or "duplicate" in kind
    )
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
    ("half a surrogate pair", json.dumps(coco()).replace('"mug"', r'"\ud800"').encode(), "valid JSON in UTF-8"),
    ("UTF-16", json.dumps(coco()).encode("utf-16"), "valid JSON in UTF-8"),
    ("PNG", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "malformed"),
]


@pytest.mark.parametrize(("text", "words"), [t[1:] for t in TEXTS], ids=[t[0] for t in TEXTS])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_text_that_is_no_annotation_file(load, text, words, on_error):
    with pytest.raises(AnnotationError, match="Fix: ") as caught:
        load(text, on_error=on_error)
    assert words in str(caught.value) and len(str(caught.value)) < 1000


def test_boxes_as_fractions_of_the_image(load):
    data = coco()
    data["annotations"] = [
        {"id": i, "image_id": 3, "category_id": 5, "bbox": [0.1, 0.2, 0.05 * i + 0.01, 0.3]} for i in range(10)
    ]
    data["annotations"][3]["bbox"] = [0.1, 0.2, 0, 0]
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
    data["images"].append(data["images"][0] | {"file_name": "b.jpg"})  # the second one of this id is sound
    a = load(data, on_error="skip")
    assert a.image_ids.tolist() == [3, 7] and a.num_annotations == 4 and a.skipped_counts() == {"file_name": 1}


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
            assert "Fix: " in str(error)
            continue
        assert len(a.annotation_ids) == len(a.boxes) == len(a.mask_start) == len(a.mask_length)
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
        assert "Fix: " in str(error)
