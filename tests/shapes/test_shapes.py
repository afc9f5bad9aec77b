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
from rio.data.load import load_annotations

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


GOLDEN_PLANS = {
    "demo train": "0538d5ed875e8c8c",
    "demo val": "4bd0158154ab37f1",
    "demo tune": "e967bd889080318a",
    "demo balanced": "2a55f65ad4cb46e8",
    "bench train": "9cdd17228a78359f",
    "bench val": "41f920adef956d37",
    "bench tune": "e2bde6b552a9dc23",
    "bench balanced": "2a0b91f114c9f8d5",
}
GOLDEN_PICTURES = {
    "train": [9, 26.58, 29.61, 43.5, 41.16, 168.0, 114.2, 82.1],
    "val": [23, 65.0, 90.91, 19.0, 30.76, 181.2, 130.3, 103.4],
    "tune": [0, 47.67, 34.23, 27.06, 26.51, 143.0, 107.5, 86.0],
    "balanced": [22, 90.29, 55.26, 34.47, 40.41, 122.4, 102.5, 80.7],
}


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
    assert [c["instance_count"] for c in train["categories"]] == [instances[k + 1] for k in range(TINY.num_classes)]
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
        patch.setattr(S, "_draw_images", lambda *a: pytest.fail("drawn although it is there"))
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


# ---- what is drawn must not change


def test_golden_plans():
    """Folders drawn by earlier versions stay valid, so the same images must hold the same classes as ever."""
    found = {
        f"{name} {split}": hashlib.sha256(json.dumps(S.plan_split(spec, split)).encode()).hexdigest()[:16]
        for name, spec in S.SPECS.items()
        for split in ("train", "val", "tune", "balanced")
    }
    assert found == GOLDEN_PLANS, f"new values: {found}"


def test_golden_pictures():
    """Class and box (XYWH px) of the first object, mean RGB, up to what another OpenCV may round."""
    spec = S.SPECS["demo"]
    found = {}
    for split in ("train", "val", "tune", "balanced"):
        index, held = next((i, held) for i, held in enumerate(S.plan_split(spec, split)) if held)
        image, labels, _ = S.draw_image(spec, S.choose_classes(spec), held, split, index)
        found[split] = [labels[0]["class_id"], *labels[0]["bbox"], *image.mean((0, 1)).round(1).tolist()]
    assert found.keys() == GOLDEN_PICTURES.keys()
    for split, values in found.items():
        np.testing.assert_allclose(values, GOLDEN_PICTURES[split], atol=1.0, err_msg=f"new values: {found}")


# ---- tune and balanced


@pytest.fixture(scope="module")
def extras(tiny) -> dict[str, Path]:
    return {split: S.generate_extra(tiny.parent, TINY, split, workers=2, progress=False) for split in S.EXTRA_SPLITS}


def test_extra_splits_have_folders_of_their_own(tiny, extras):
    for split, folder in extras.items():
        assert folder == tiny.parent / f"tiny_{split}"
        assert {p.name for p in folder.iterdir()} == {f"{split}.json", split, "spec.json"}
    assert {p.name for p in tiny.iterdir()} == {"train.json", "train", "val.json", "val", "spec.json"}


def test_no_picture_is_in_two_splits(tiny, extras):
    folders = [tiny / "train", tiny / "val", extras["tune"] / "tune", extras["balanced"] / "balanced"]
    pictures = [_digest(folder) for folder in folders]
    assert [len(p) for p in pictures] == [110, 10, 10, 110]
    everything = [digest for split in pictures for digest in split.values()]
    assert len(set(everything)) == len(everything) == 240
    plans = [S.plan_split(S.SPECS["bench"], split) for split in ("val", "tune")]
    same = np.mean([a == b for a, b in zip(*plans)])
    assert same < 0.01, "tune is val's plan again"


def test_tune_is_drawn_by_the_rules_of_val(tiny, extras):
    val, tune = _load(tiny, "val"), _load(extras["tune"], "tune")
    assert tune["categories"] == val["categories"]
    assert [i["id"] for i in tune["images"]] == [i["id"] for i in val["images"]]
    images = [Counter(c for ids in _positive(content).values() for c in ids) for content in (val, tune)]
    assert images[0] == images[1] and sum(images[0].values()) == S.image_counts(TINY)[1].sum()
    assert tune["annotations"] != val["annotations"]


def test_balanced_has_every_class_equally_often_and_images_as_crowded(tiny, extras):
    train, balanced = _load(tiny, "train"), _load(extras["balanced"], "balanced")
    counts = np.array([c["image_count"] for c in balanced["categories"]])
    assert counts.sum() == S.image_counts(TINY)[0].sum() and np.ptp(counts) <= 1
    positive = _positive(balanced)
    assert counts.tolist() == [sum(k + 1 in ids for ids in positive.values()) for k in range(6)]
    instances = Counter(a["category_id"] for a in balanced["annotations"])
    assert [c["instance_count"] for c in balanced["categories"]] == [instances[k + 1] for k in range(6)]
    assert len(balanced["annotations"]) == pytest.approx(len(train["annotations"]), rel=0.1)
    for spec in S.SPECS.values():
        held = [S.plan_split(spec, split) for split in ("train", "balanced")]
        crowds = [np.bincount([len(h) for h in plan], minlength=6) / spec.train_images for plan in held]
        np.testing.assert_allclose(*crowds, atol=0.03)  # the shares of images with 0, 1, 2, ... classes


def test_balanced_declares_the_groups_of_the_tail(tiny, extras):
    train, balanced = _load(tiny, "train"), _load(extras["balanced"], "balanced")
    assert "".join(c["frequency"] for c in balanced["categories"]) == "ffccrr"
    same = ("id", "name", "synset", "synonyms", "def", "frequency")
    assert [[c[k] for k in same] for c in balanced["categories"]] == [[c[k] for k in same] for c in train["categories"]]
    assert "no tail" in balanced["info"]["description"]


def test_a_detector_trained_on_balanced_is_scored_by_the_groups_of_the_tail(tiny, extras):
    train = load_annotations(tiny / "train.json")
    balanced = load_annotations(extras["balanced"] / "balanced.json")
    val = load_annotations(tiny / "val.json")
    assert (balanced.image_count > 10).all()  # by its own counts no class would be rare
    grouped = val.with_frequency_of(balanced)  # as the evaluation of a training run does
    assert grouped.frequency.tolist() == val.with_frequency_of(train).frequency.tolist() == list("ffccrr")


def test_deal_evenly_by_hand():
    rng = np.random.default_rng(0)
    assert S.deal_evenly([], 3, rng) == []
    assert S.deal_evenly([0, 3, 0], 3, rng) == [[], [0, 1, 2], []]
    held = S.deal_evenly([2, 2, 2], 3, rng)  # six places for three classes: each in two images
    assert Counter(k for h in held for k in h) == {0: 2, 1: 2, 2: 2} and all(len(set(h)) == 2 for h in held)
    held = S.deal_evenly([1, 4, 3, 5, 2, 2], 5, rng)  # 17 places for five classes
    assert sorted(Counter(k for h in held for k in h).values()) == [3, 3, 3, 4, 4]


def test_an_extra_split_draws_its_set_first_and_neither_twice(tiny, extras, tmp_path, monkeypatch):
    folder = S.generate_extra(tmp_path, TINY, "tune", workers=1, progress=False)
    assert _digest(folder) == _digest(extras["tune"]) and _digest(tmp_path / "tiny") == _digest(tiny)
    monkeypatch.setattr(S, "_draw_images", lambda *a: pytest.fail("drawn although it is there"))
    assert S.generate_extra(tmp_path, TINY, "tune") == folder


def test_an_interrupted_extra_split_leaves_the_set_alone(tiny, tmp_path, monkeypatch):
    (tmp_path / "tiny").symlink_to(tiny)

    def interrupted(task):
        raise KeyboardInterrupt

    monkeypatch.setattr(S, "_draw_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        S.generate_extra(tmp_path, TINY, "tune", workers=2, progress=False)
    assert not (tmp_path / "tiny_tune").exists() and (tmp_path / "tiny" / "val.json").is_file()


def test_extra_splits_refuse_what_is_not_theirs(tiny, extras, tmp_path):
    with pytest.raises(S.ShapesError, match="'test'; expected one of tune, balanced"):
        S.generate_extra(tmp_path, TINY, "test")
    with pytest.raises(S.ShapesError, match="split: there 'tune', asked None"):
        S.generate(tiny.parent, dataclasses.replace(TINY, name="tiny_tune"), progress=False)
    with pytest.raises(S.ShapesError, match="seed: there 3, asked 4"):
        S.generate_extra(tiny.parent, dataclasses.replace(TINY, seed=4), "tune", progress=False)
