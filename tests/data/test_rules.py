"""The rules of annotation files: every kind of fault is an error that names it, or a record left out, listed and counted."""

import json
import os
import pickle
import re
from typing import Any

import pytest

from rio.data.errors import AnnotationError
from rio.data.rules import missing_images, require_images
from tests.support.annotation_files import SQUARE, TRIANGLE, at, coco, lvis, obj, touch


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
    # More names that lead out of the image folder: test_security.py.
    ("absolute", at("images", 1, file_name="/etc/passwd"), "file_name", "relative path"),
    ("duplicate image", lambda d: d["images"].append(dict(d["images"][1])), "duplicate_image_id", "image 3"),
    ("annotation is a list", lambda d: d["annotations"].__setitem__(1, [1]), "type", "at position 1"),
    ("annotation without id", obj(id=...), "missing_key", "annotation at position 1, key 'id'"),
    ("box of three", obj(bbox=[1, 2, 3]), "type", "`array` of length 4"),
    ("box of text", obj(bbox=[1, 2, "3", 4]), "type", "'bbox[2]': expected `float`, found `str`"),
    ("negative id", obj(id=-1), "type", "`int` >= 0"),
    ("huge id", obj(id=2**80), "type", "'id'"),
    ("unknown image", obj(image_id=4), "unknown_image", "annotation 102 (image 4), key 'image_id'"),
    ("unknown category", obj(category_id=6), "unknown_category", "id of a category, found 6"),
    ("crowd is 2", obj(iscrowd=2), "type", "'iscrowd'"),
    ("negative width", obj(bbox=[30, 10, -20, 20]), "negative_box", "width, height >= 0"),
    ("far outside", obj(bbox=[0, 0, 1e300, 1e300]), "box_outside", "1e+300"),
    ("only polygons of two points", obj(segmentation=[[1, 1, 2, 2], [5]]), "polygon", "6 coordinates, found one of 4"),
    ("a mask of text", obj(segmentation=[["a", "b"]]), "type", "`float`, found `str`"),
    ("negative area", obj(area=-1.0), "area", "found -1.0"),
    ("odd length", obj(segmentation=[[1, 1, 2, 2, 3, 3, 4]]), "polygon", "one of 7"),
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


# The annotations that stay when the broken record is left out, where these are not all but the second.
STAY = {"duplicate_image_id": [102, 101, 100, 99]}


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
    error, copy = caught.value, pickle.loads(pickle.dumps(caught.value))
    assert error.kind == kind and error.path == str(tmp_path / "set.json") and str(copy) == str(error)
    assert all((error.record, error.key, error.expected, error.found, error.fix)) and "on_error='skip'" in error.fix
    assert words in str(error) and error.path in str(error) and "Fix: " in str(error)
    assert (copy.kind, copy.record, copy.fix) == (error.kind, error.record, error.fix)

    a = load(data, on_error="skip")
    counts = a.skipped_counts()
    assert counts.pop(kind) == 1 and set(counts) <= {"image_skipped", "unknown_image"}  # of a lost image
    intact = STAY.get(kind, [101, 100, 99])
    assert a.annotation_ids.tolist() == intact
    assert a.num_images == 1 + ("annotation" in error.record or "duplicate" in kind)
    assert a.segmentation(len(intact) - 1) == {"size": [50, 100], "counts": [4990, 10]}
    assert a.segmentation(len(intact) - 2) == [SQUARE]


GOOD = json.dumps(coco())
TEXTS = [
    ("empty file", "", "an empty file"),
    ("cut off", GOOD[:-40], "truncated"),
    ("cut off in the middle", GOOD[:200], "truncated"),
    ("no JSON", "<html>404</html>", "malformed"),
    ("a list", "[]", "expected `object`, found `array`"),
    ("a number", "7", "expected `object`, found `int`"),
    ("null", "null", "`object`"),
    ("not UTF-8", json.dumps(coco(), ensure_ascii=False).encode("latin-1", "replace"), "valid JSON in UTF-8"),
    ("nested without end", '{"images":' + "[" * 200_000, "nesting too deep|truncated"),  # Python 3.14 reads on
    ("NaN", GOOD.replace("250.0", "NaN"), "NaN or infinity"),
    ("infinity", GOOD.replace("250.0", "-Infinity"), "NaN or infinity"),
    ("NaN in a polygon", GOOD.replace("25.0", "NaN"), "NaN or infinity"),
    ("half a surrogate pair", GOOD.replace('"mug"', r'"\ud800"'), "valid JSON in UTF-8"),
    ("UTF-16", GOOD.encode("utf-16"), "valid JSON in UTF-8"),
    ("PNG", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "malformed"),
]


@pytest.mark.parametrize(("text", "words"), [t[1:] for t in TEXTS], ids=[t[0] for t in TEXTS])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_text_that_is_no_annotation_file(load, text, words, on_error):
    with pytest.raises(AnnotationError, match="Fix: ") as caught:
        load(text, on_error=on_error)
    assert re.search(words, str(caught.value)) and len(str(caught.value)) < 1000


def test_the_error_says_how_many_more_and_a_record_is_listed_once(load):
    data = coco()
    for annotation in data["annotations"][:3]:
        annotation["category_id"] = 6
    with pytest.raises(AnnotationError, match=r"annotation 101 \(image 7\).*found 6 \(2 more like it\)"):
        load(data)

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


LVIS_REJECTED = [
    (at("images", 0, neg_category_ids=[11, 999]), "key 'neg_category_ids'.*found 999", [3, 7]),
    (at("images", 0, not_exhaustive_category_ids=[1]), "key 'not_exhaustive_category_ids'.*found 1", [3, 7]),
    (at("images", 0, neg_category_ids=...), "key 'neg_category_ids'.*no such key", [3]),
    (at("images", 0, coco_url="http://images.example.org/../b.jpg"), "key 'coco_url'.*'../b.jpg'", [3]),
]


@pytest.mark.parametrize(("change", "words", "stay"), LVIS_REJECTED)
def test_what_only_lvis_has(load, change, words, stay):
    data = lvis()
    change(data)
    with pytest.raises(AnnotationError, match=f"image 7, {words}"):
        load(data)
    a = load(data, on_error="skip")
    assert a.image_ids.tolist() == stay and a.skipped and a.neg_category_ids == [[11]] * len(stay)


NOT_THERE = {
    "nothing": lambda path: None,
    "a link loop": lambda path: path.symlink_to(path),
    "a dangling link": lambda path: path.symlink_to("gone.jpg"),
    "a pipe": os.mkfifo,  # opening it would wait for ever
}


@pytest.mark.parametrize("how", [*NOT_THERE, "too long a name"])
def test_an_image_that_is_no_file_is_found_before_training(load, tmp_path, how):
    data = coco()
    (tmp_path / "b.jpg").touch()
    if how in NOT_THERE:
        NOT_THERE[how](tmp_path / "a.jpg")
    else:
        data["images"][1]["file_name"] = "a" * 5000 + ".jpg"
    with pytest.raises(AnnotationError, match="image 3, key 'file_name': expected an image file, found none at .*Fix"):
        load(data, image_root=tmp_path, check_images=True)
    rest = load(data, image_root=tmp_path, check_images=True, on_error="skip")
    assert rest.skipped_counts() == {"missing_image": 1, "image_skipped": 1} and rest.image_ids.tolist() == [7]


@pytest.mark.parametrize("many", [0, 150], ids=["file by file", "by listing the folder"])
def test_missing_images(load, tmp_path, many):
    data = coco()
    data["images"] += [{"id": 100 + i, "width": 9, "height": 9, "file_name": f"more/{i}.jpg"} for i in range(many)]
    root = touch(tmp_path / "images", "a.jpg", *(f"more/{i}.jpg" for i in range(many)))
    for name, target in (
        {5: None, 6: "7.jpg", 8: "8.jpg"}.items() if many else ()
    ):  # a link is a file; a loop, a folder are not
        path = root / f"more/{name}.jpg"
        path.unlink()
        path.symlink_to(target) if target else path.mkdir()
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
