"""The embedded set: the tail it promises, labels that fit the pictures, the same bytes every time, nothing
overwritten.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rio import shapes as S

TINY = S.ShapesSpec(
    "tiny",
    image_size=48,
    train_images=110,
    val_images=10,
    num_classes=6,
    num_rare=2,
    num_common=2,
    seed=3,
    max_image_frequency=0.95,
    val_classes_per_image=3.0,
    supersampling=2,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return S.generate(tmp_path_factory.mktemp("shapes"), TINY, workers=2, progress=False)


def _load(folder: Path, split: str) -> dict:
    return json.loads((folder / f"{split}.json").read_text())


def _digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("name", ["demo", "bench"])
def test_tail_has_the_promised_groups(name):
    spec = S.SPECS[name]
    spec.validate()
    train, val = S.image_counts(spec)
    assert (np.diff(train) <= 0).all() and train[-1] == spec.min_image_count
    assert ((train > 100).sum(), ((train > 10) & (train <= 100)).sum(), (train <= 10).sum()) == (
        spec.num_frequent,
        spec.num_common,
        spec.num_rare,
    )
    # flattened: the rarest is at least 20 times less underrepresented in validation than in training
    assert (val[-1] / val[0]) / (train[-1] / train[0]) > 10 and val.min() >= 5


def test_the_two_sizes_are_the_documented_ones():
    demo, bench = S.SPECS["demo"], S.SPECS["bench"]
    assert (demo.image_size, demo.train_images, demo.val_images, demo.num_classes) == (128, 400, 160, 30)
    assert (demo.num_frequent, demo.num_common, demo.num_rare) == (6, 13, 11)
    assert (bench.image_size, bench.train_images, bench.val_images) == (192, 6000, 1500)
    assert bench.num_classes == 100 and bench.num_rare >= 30


def test_categories_are_distinct_and_a_rare_one_shares_two_of_three_attributes():
    spec = S.SPECS["bench"]
    classes = S.choose_classes(spec)
    assert len(set(classes)) == len(set(S.category_names(spec))) == spec.num_classes
    more_frequent = classes[: -spec.num_rare]
    for rare in classes[-spec.num_rare :]:
        assert max(sum(a == b for a, b in zip(rare, other)) for other in more_frequent) == 2
    shape, texture, hue = classes[0]
    assert S.category_names(spec)[0] == f"{texture} {hue} {shape}"


def test_plan_gives_every_class_its_images_and_rare_ones_frequent_company():
    counts = np.array([30, 25, 8, 2])
    held = S.plan_images(counts, 40, 2, np.random.default_rng(0))
    assert Counter(k for h in held for k in h) == dict(enumerate(counts.tolist()))
    assert all(min(h) < 2 for h in held if h and max(h) >= 2)


def test_files_are_lvis_and_agree_with_themselves(tiny):
    train, val = _load(tiny, "train"), _load(tiny, "val")
    assert "synthetic" in train["info"]["description"]
    for split, content, n in (("train", train, TINY.train_images), ("val", val, TINY.val_images)):
        assert [i["id"] for i in content["images"]] == list(range(1, n + 1))
        assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        positive: dict[int, set[int]] = {i["id"]: set() for i in content["images"]}
        for a in content["annotations"]:
            positive[a["image_id"]].add(a["category_id"])
        for image in content["images"]:
            picture = cv2.imread(str(tiny / split / image["file_name"]))
            assert picture.shape == (image["height"], image["width"], 3) == (48, 48, 3)
            # federated: verified absent is absent; not exhaustive only where the category is
            assert not positive[image["id"]] & set(image["neg_category_ids"])
            assert set(image["not_exhaustive_category_ids"]) <= positive[image["id"]]
    # the plan is kept to the image, although objects hide each other
    images = Counter(c for ids in _positive(train).values() for c in ids)
    assert [images[k + 1] for k in range(TINY.num_classes)] == S.image_counts(TINY)[0].tolist()
    assert [c["image_count"] for c in train["categories"]] == [images[k + 1] for k in range(TINY.num_classes)]
    instances = Counter(a["category_id"] for a in train["annotations"])
    assert [c["instance_count"] for c in train["categories"]] == [
        instances[k + 1] for k in range(TINY.num_classes)
    ]
    assert "".join(c["frequency"] for c in train["categories"]) == "ffccrr"
    assert val["categories"] == train["categories"]  # as in LVIS


def _positive(content: dict) -> dict[int, set[int]]:
    positive: dict[int, set[int]] = {}
    for a in content["annotations"]:
        positive.setdefault(a["image_id"], set()).add(a["category_id"])
    return positive


def test_boxes_polygons_and_areas_fit(tiny):
    for a in _load(tiny, "train")["annotations"]:
        x, y, w, h = a["bbox"]
        assert x >= 0 and y >= 0 and w > 1 and h > 1 and x + w <= 48.01 and y + h <= 48.01
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in a["segmentation"]])
        assert all(len(p) >= 6 and len(p) % 2 == 0 for p in a["segmentation"])
        np.testing.assert_allclose([*points.min(0), *points.max(0)], [x, y, x + w, y + h], atol=0.02)
        shoelace = sum(cv2.contourArea(np.reshape(p, (-1, 2)).astype(np.float32)) for p in a["segmentation"])
        assert shoelace == pytest.approx(a["area"], rel=0.12, abs=4)


def test_polygons_are_the_visible_pixels(monkeypatch):
    spec, overlaps = S.SPECS["demo"], []
    original = S.mask_to_polygons

    def watch(mask, scale=1.0, tolerance=0.5):
        polygons = original(mask, scale, tolerance)
        if polygons:
            runs = coco_mask.merge(
                coco_mask.frPyObjects([(np.array(p) * scale).tolist() for p in polygons], *mask.shape)
            )
            drawn = coco_mask.decode(runs).astype(bool)
            overlaps.append((drawn & mask).sum() / (drawn | mask).sum())
        return polygons

    monkeypatch.setattr(S, "mask_to_polygons", watch)
    for index in range(8):
        S.draw_image(spec, S.choose_classes(spec), [0, 5, 9, 17], "train", index)
    assert len(overlaps) >= 32 and min(overlaps) > 0.93 and np.mean(overlaps) > 0.98


def test_a_hole_stays_a_hole():
    mask = np.zeros((60, 60), bool)
    cv2_mask = np.zeros((60, 60), np.uint8)
    cv2.circle(cv2_mask, (30, 30), 25, 1, -1)
    cv2.circle(cv2_mask, (30, 30), 12, 0, -1)
    mask |= cv2_mask > 0
    polygons = S.mask_to_polygons(mask)
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 60, 60))).astype(bool)
    assert not drawn[30, 30] and (drawn & mask).sum() / (drawn | mask).sum() > 0.97


def test_polygons_of_simple_masks():
    mask = np.zeros((20, 30), bool)
    assert S.mask_to_polygons(mask) == []
    mask[5:10, 10:20] = True
    (polygon,) = S.mask_to_polygons(mask)
    xy = np.reshape(polygon, (-1, 2))
    assert xy.min(0).tolist() == [10, 5] and xy.max(0).tolist() == [20, 10]
    (small,) = S.mask_to_polygons(mask, scale=2.0)
    assert np.reshape(small, (-1, 2)).max(0).tolist() == [10, 5]


def test_mostly_hidden_objects_are_not_labelled_but_said(monkeypatch):
    spec = S.SPECS["demo"]
    classes = S.choose_classes(spec)
    found = [S.draw_image(spec, classes, [0, 1, 2], "train", i) for i in range(40)]
    assert any(not_exhaustive for _, _, not_exhaustive in found)
    assert all({label["class_id"] for label in labels} == {0, 1, 2} for _, labels, _ in found)


@pytest.mark.parametrize("shape", list(S.SHAPES))
def test_every_outline_is_a_toy_of_unit_size(shape):
    points = np.concatenate(S._unit_outline(shape))
    assert np.isfinite(points).all()
    assert np.abs(points).max() == pytest.approx(1, abs=1e-9)
    canvas = np.zeros((200, 200), np.uint8)
    cv2.fillPoly(canvas, [np.round(100 + 95 * c).astype(np.int32) for c in S._unit_outline(shape)], 1)
    assert 0.15 < canvas.mean() < 0.95


@pytest.mark.parametrize("texture", S.TEXTURES)
def test_textures_mix_within_bounds(texture):
    v, u = np.mgrid[-1:1:32j, -1:1:32j].astype(np.float32)
    mix = S._texture(texture, u, v, np.array([0.2, 0.4, 0.6]))
    assert mix.shape == (32, 32) and mix.min() >= 0 and mix.max() <= 1
    assert (mix.max() > 0.9) == (texture != "plain")


def test_an_image_without_objects_can_be_drawn():
    image, labels, not_exhaustive = S.draw_image(TINY, S.choose_classes(TINY), [], "val", 0)
    assert image.shape == (48, 48, 3) and image.dtype == np.uint8 and labels == [] and not_exhaustive == []


def test_same_bytes_whatever_the_workers(tiny, tmp_path):
    again = S.generate(tmp_path, TINY, workers=1, progress=False)
    assert _digest(again) == _digest(tiny)
    other = S.draw_image(dataclasses.replace(TINY, seed=4), S.choose_classes(TINY), [0], "train", 0)[0]
    assert not np.array_equal(other, S.draw_image(TINY, S.choose_classes(TINY), [0], "train", 0)[0])


def test_what_is_there_is_kept_and_what_is_missing_is_redrawn(tiny, tmp_path, monkeypatch):
    before = _digest(tiny)
    with monkeypatch.context() as patch:
        patch.setattr(S, "_draw_all", lambda *a: pytest.fail("drawn although it is there"))
        assert S.generate(tiny.parent, TINY) == tiny
    (tiny / "train" / "000003.jpg").unlink()
    S.generate(tiny.parent, TINY, progress=False)
    assert _digest(tiny) == before


def test_an_interrupted_drawing_leaves_no_set(tmp_path, monkeypatch):
    def interrupted(task):
        raise KeyboardInterrupt

    monkeypatch.setattr(S, "_draw_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        S.generate(tmp_path, TINY, workers=2, progress=False)
    assert not (tmp_path / "tiny").exists()


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.txt").write_text("mine")
    with pytest.raises(S.ShapesError, match="not drawn by rio.shapes"):
        S.generate(tmp_path, TINY, progress=False)
    assert (tmp_path / "tiny" / "thesis.txt").read_text() == "mine"


def test_another_spec_of_the_same_name_is_refused(tiny):
    with pytest.raises(S.ShapesError, match="image_size: there 48, asked 64"):
        S.generate(tiny.parent, dataclasses.replace(TINY, image_size=64), progress=False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train_images": 50}, "train_images = 50"),
        ({"num_rare": 5, "num_common": 1}, "num_classes"),
        ({"image_size": 8}, "image_size = 8"),
        ({"num_classes": 900}, "num_classes = 900"),
        ({"name": "a/b"}, "name"),
        ({"min_image_count": 11}, "min_image_count"),
        ({"max_image_frequency": 0.0}, "max_image_frequency"),
        ({"val_images": 0}, "val_images"),
        ({"negative_share": 1.5}, "negative_share"),
        ({"val_classes_per_image": 9.0}, "val_classes_per_image"),
        ({"supersampling": 0}, "supersampling"),
    ],
)
def test_impossible_specs_name_the_field(change, message, tmp_path):
    with pytest.raises(S.ShapesError, match=message):
        S.generate(tmp_path, dataclasses.replace(TINY, **change), progress=False)


def test_no_workers_is_an_error(tmp_path):
    with pytest.raises(S.ShapesError, match="workers = 0"):
        S.generate(tmp_path, TINY, workers=0, progress=False)


@pytest.mark.parametrize("rare, common", [(0, 0), (0, 2), (3, 0), (1, 1), (1, 0)])
def test_counts_for_missing_groups(rare, common):
    spec = dataclasses.replace(TINY, num_rare=rare, num_common=common)
    train, _ = S.image_counts(spec)
    assert ((train <= 10).sum(), ((train > 10) & (train <= 100)).sum()) == (rare, common)
    assert (np.diff(train) <= 0).all() and train.min() >= 1


def test_bad_texture_is_named():
    with pytest.raises(S.ShapesError, match="plaid"):
        S._texture("plaid", np.zeros((2, 2)), np.zeros((2, 2)), np.zeros(3))
