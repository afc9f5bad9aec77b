"""The embedded set: the promised tail, labels that fit the pictures, the same bytes every time, nothing overwritten."""

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rio.data.load import load_annotations
from rio.shapes import outlines, scene, surfaces
from rio.shapes.dataset import generate
from rio.shapes.scene import draw_image, mask_to_polygons
from rio.shapes.spec import (
    EXTRA_SPLITS,
    SPECS,
    TEXTURES,
    ShapesError,
    ShapesSpec,
    category_names,
    choose_classes,
    deal_evenly,
    image_counts,
    plan_images,
    plan_split,
)

TINY = ShapesSpec(
    "tiny", 48, 110, 10, num_classes=6, num_rare=2, num_common=2, seed=3, max_image_frequency=0.95,
    val_classes_per_image=3.0, supersampling=2,
)  # fmt: skip
GOLDEN_PLANS = {
    "demo train": "0538d5ed875e8c8c", "demo val": "4bd0158154ab37f1", "demo tune": "e967bd889080318a",
    "demo balanced": "2a55f65ad4cb46e8", "tail train": "dfef941b2fed3722", "tail val": "0ff1371d596184d7",
    "tail tune": "a8deaef42500e9af", "tail balanced": "9286c930d8d4c55e",
    "bench train": "9cdd17228a78359f", "bench val": "41f920adef956d37",
    "bench tune": "e2bde6b552a9dc23", "bench balanced": "2a0b91f114c9f8d5",
}  # fmt: skip
GOLDEN_PICTURES = {
    "train": [9, 26.58, 29.61, 43.5, 41.16, 168.0, 114.2, 82.1],
    "val": [23, 65.0, 90.91, 19.0, 30.76, 181.2, 130.3, 103.4],
    "tune": [0, 47.67, 34.23, 27.06, 26.51, 143.0, 107.5, 86.0],
    "balanced": [22, 90.29, 55.26, 34.47, 40.41, 122.4, 102.5, 80.7],
}


def draw(root: Path, split: str = "train", spec: ShapesSpec = TINY, workers: int | None = 2) -> Path:
    return generate(root, spec, split, workers=workers, progress=False)


def load(folder: Path, split: str) -> dict:
    return json.loads((folder / f"{split}.json").read_text())


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def positive(content: dict) -> dict[int, set[int]]:
    """Category ids in each image."""
    found: dict[int, set[int]] = {image["id"]: set() for image in content["images"]}
    for a in content["annotations"]:
        found[a["image_id"]].add(a["category_id"])
    return found


def counts(content: dict) -> tuple[list[int], list[int]]:
    """Images and instances of each class."""
    images = Counter(k for ids in positive(content).values() for k in ids)
    instances = Counter(a["category_id"] for a in content["annotations"])
    ids = [category["id"] for category in content["categories"]]
    return [images[k] for k in ids], [instances[k] for k in ids]


def iou(polygons: list, mask: np.ndarray, scale: float = 1.0) -> float:
    runs = coco_mask.frPyObjects([(np.array(p) * scale).tolist() for p in polygons], *mask.shape)
    drawn = coco_mask.decode(coco_mask.merge(runs)).astype(bool)
    return (drawn & mask).sum() / (drawn | mask).sum()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return draw(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def extras(tiny) -> dict[str, Path]:
    return {split: draw(tiny.parent, split) for split in EXTRA_SPLITS}


# ---- what is planned


@pytest.mark.parametrize(
    ("name", "sizes", "groups"),
    [("demo", (128, 400, 160, 30), (6, 13, 11)), ("bench", (192, 6000, 1500, 100), (30, 34, 36))],
)
def test_sizes_and_tail_are_the_documented_ones(name, sizes, groups):
    spec = SPECS[name]
    spec.validate()
    assert (spec.image_size, spec.train_images, spec.val_images, spec.num_classes) == sizes
    train, val = image_counts(spec)
    assert (np.diff(train) <= 0).all() and train[-1] == spec.min_image_count
    assert ((train > 100).sum(), ((train > 10) & (train <= 100)).sum(), (train <= 10).sum()) == groups
    # flattened: the rarest class is at least 10 times less underrepresented in validation than in training
    assert (val[-1] / val[0]) / (train[-1] / train[0]) > 10 and val.min() >= 5


@pytest.mark.parametrize(("rare", "common"), [(0, 0), (0, 2), (3, 0), (1, 1), (1, 0)])
def test_counts_for_missing_groups(rare, common):
    train, _ = image_counts(dataclasses.replace(TINY, num_rare=rare, num_common=common))
    assert ((train <= 10).sum(), ((train > 10) & (train <= 100)).sum()) == (rare, common)
    assert (np.diff(train) <= 0).all() and train.min() >= 1


def test_categories_are_distinct_and_a_rare_one_shares_two_of_three_attributes():
    spec = SPECS["bench"]
    classes = choose_classes(spec)
    assert len(set(classes)) == len(set(category_names(spec))) == spec.num_classes
    for rare in classes[-spec.num_rare :]:
        assert max(sum(map(str.__eq__, rare, other)) for other in classes[: -spec.num_rare]) == 2
    shape, texture, hue = classes[0]
    assert category_names(spec)[0] == f"{texture} {hue} {shape}"


def test_plan_gives_every_class_its_images_and_rare_ones_frequent_company():
    wanted = np.array([30, 25, 8, 2])
    held = plan_images(wanted, 40, 2, np.random.default_rng(0))
    assert Counter(k for h in held for k in h) == dict(enumerate(wanted.tolist()))
    assert all(min(h) < 2 for h in held if h and max(h) >= 2)


IMPOSSIBLE = {
    "train_images": 50, "image_size": 8, "num_classes": 900, "min_image_count": 11, "max_image_frequency": 0.0,
    "val_images": 0, "negative_share": 1.5, "val_classes_per_image": 9.0, "supersampling": 0,
}  # fmt: skip


def test_deal_evenly_by_hand():
    rng = np.random.default_rng(0)
    assert deal_evenly([], 3, rng) == []
    assert deal_evenly([0, 3, 0], 3, rng) == [[], [0, 1, 2], []]
    held = deal_evenly([2, 2, 2], 3, rng)  # six places for three classes: each in two images
    assert Counter(k for h in held for k in h) == {0: 2, 1: 2, 2: 2} and all(len(set(h)) == 2 for h in held)
    held = deal_evenly([1, 4, 3, 5, 2, 2], 5, rng)  # 17 places for five classes
    assert sorted(Counter(k for h in held for k in h).values()) == [3, 3, 3, 4, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({key: value}, f"{key} = {value}") for key, value in IMPOSSIBLE.items()),
        ({"num_rare": 5, "num_common": 1}, "num_classes"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_impossible_specs_name_the_field(change, message, tmp_path):
    with pytest.raises(ShapesError, match=message):
        draw(tmp_path, spec=dataclasses.replace(TINY, **change))


# ---- what must not change


def test_golden_plans():
    """Folders drawn by earlier versions stay valid, so the same images must hold the same classes as ever."""
    found = {
        f"{name} {split}": hashlib.sha256(json.dumps(plan_split(spec, split)).encode()).hexdigest()[:16]
        for name, spec in SPECS.items()
        for split in ("train", "val", "tune", "balanced")
    }
    assert found == GOLDEN_PLANS, f"new values: {found}"


def test_golden_pictures():
    """Class and box (XYWH px) of the first object, mean RGB, up to what another OpenCV may round."""
    spec, found = SPECS["demo"], {}
    for split in GOLDEN_PICTURES:
        index, held = next((i, held) for i, held in enumerate(plan_split(spec, split)) if held)
        image, labels, _ = draw_image(spec, choose_classes(spec), held, split, index)
        found[split] = [labels[0]["class_id"], *labels[0]["bbox"], *image.mean((0, 1)).round(1).tolist()]
    for split, values in found.items():
        np.testing.assert_allclose(values, GOLDEN_PICTURES[split], atol=1.0, err_msg=f"new values: {found}")


# ---- pictures and labels


@pytest.mark.parametrize("shape", list(outlines.SHAPES))
def test_every_outline_is_a_toy_of_unit_size(shape):
    contours = outlines.unit_outline(shape)
    assert np.abs(np.concatenate(contours)).max() == pytest.approx(1, abs=1e-9)
    canvas = np.zeros((200, 200), np.uint8)
    cv2.fillPoly(canvas, [np.round(100 + 95 * c).astype(np.int32) for c in contours], 1)
    assert 0.15 < canvas.mean() < 0.95


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_mix_within_bounds(texture):
    v, u = np.mgrid[-1:1:32j, -1:1:32j].astype(np.float32)
    mix = surfaces.texture(texture, u, v, np.array([0.2, 0.4, 0.6]))
    assert mix.shape == (32, 32) and mix.min() >= 0 and mix.max() <= 1
    assert (mix.max() > 0.9) == (texture != "plain")


def test_polygons_of_simple_masks():
    mask = np.zeros((20, 30), bool)
    assert mask_to_polygons(mask) == []
    mask[5:10, 10:20] = True
    (polygon,) = mask_to_polygons(mask)
    xy = np.reshape(polygon, (-1, 2))
    assert xy.min(0).tolist() == [10, 5] and xy.max(0).tolist() == [20, 10]
    (small,) = mask_to_polygons(mask, scale=2.0)
    assert np.reshape(small, (-1, 2)).max(0).tolist() == [10, 5]

    # A hole stays a hole.
    disc = cv2.circle(np.zeros((60, 60), np.uint8), (30, 30), 25, 1, -1)
    mask = cv2.circle(disc, (30, 30), 12, 0, -1) > 0
    assert iou(mask_to_polygons(mask), mask) > 0.97


def test_polygons_are_the_visible_pixels(monkeypatch):
    overlaps = []

    def watch(mask, scale=1.0, tolerance=0.5):
        polygons = mask_to_polygons(mask, scale, tolerance)
        if polygons:
            overlaps.append(iou(polygons, mask, scale))
        return polygons

    monkeypatch.setattr(scene, "mask_to_polygons", watch)
    for index in range(8):
        draw_image(SPECS["demo"], choose_classes(SPECS["demo"]), [0, 5, 9, 17], "train", index)
    assert len(overlaps) >= 32 and min(overlaps) > 0.93 and np.mean(overlaps) > 0.98


def test_mostly_hidden_objects_are_not_labelled_but_listed():
    spec = dataclasses.replace(SPECS["demo"], supersampling=1)
    found = [draw_image(spec, choose_classes(spec), [0, 1, 2], "train", i) for i in range(40)]
    assert any(not_exhaustive for _, _, not_exhaustive in found)
    assert all({label["class_id"] for label in labels} == {0, 1, 2} for _, labels, _ in found)


def test_an_image_without_objects_can_be_drawn_and_no_unknown_texture(tmp_path):
    with pytest.raises(ShapesError, match="plaid"):
        surfaces.texture("plaid", np.zeros((2, 2)), np.zeros((2, 2)), np.zeros(3))
    image, labels, not_exhaustive = draw_image(TINY, choose_classes(TINY), [], "val", 0)
    assert image.shape == (48, 48, 3) and image.dtype == np.uint8 and labels == [] and not_exhaustive == []


# ---- the files


def test_files_are_lvis_and_agree_with_themselves(tiny):
    train, val = load(tiny, "train"), load(tiny, "val")
    assert "synthetic" in train["info"]["description"]
    for split, content, n in (("train", train, 110), ("val", val, 10)):
        assert [i["id"] for i in content["images"]] == list(range(1, n + 1))
        assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        held = positive(content)
        for image in content["images"]:
            picture = cv2.imread(str(tiny / split / image["file_name"]))
            assert picture.shape == (image["height"], image["width"], 3) == (48, 48, 3)
            # federated: verified absent is absent; not exhaustive only where the category is
            assert not held[image["id"]] & set(image["neg_category_ids"])
            assert set(image["not_exhaustive_category_ids"]) <= held[image["id"]]
    images, instances = counts(train)
    assert [c["image_count"] for c in train["categories"]] == images == image_counts(TINY)[0].tolist()  # as planned
    assert [c["instance_count"] for c in train["categories"]] == instances
    assert "".join(c["frequency"] for c in train["categories"]) == "ffccrr"
    assert val["categories"] == train["categories"]  # as in LVIS


def test_boxes_polygons_and_areas_fit(tiny):
    for a in load(tiny, "train")["annotations"]:
        x, y, w, h = a["bbox"]
        assert x >= 0 and y >= 0 and w > 1 and h > 1 and x + w <= 48.01 and y + h <= 48.01
        assert all(len(p) >= 6 and len(p) % 2 == 0 for p in a["segmentation"])
        polygons = [np.reshape(p, (-1, 2)).astype(np.float32) for p in a["segmentation"]]
        points = np.concatenate(polygons)
        np.testing.assert_allclose([*points.min(0), *points.max(0)], [x, y, x + w, y + h], atol=0.02)
        assert sum(map(cv2.contourArea, polygons)) == pytest.approx(a["area"], rel=0.12, abs=4)


def test_extra_splits_have_folders_and_pictures_of_their_own(tiny, extras):
    for split, folder in extras.items():
        assert folder == tiny.parent / f"tiny_{split}"
        assert {p.name for p in folder.iterdir()} == {f"{split}.json", split, "spec.json"}
    assert {p.name for p in tiny.iterdir()} == {"train.json", "train", "val.json", "val", "spec.json"}
    pictures = [digest(f) for f in (tiny / "train", tiny / "val", *(extras[s] / s for s in EXTRA_SPLITS))]
    assert [len(p) for p in pictures] == [110, 10, 10, 110]
    assert len({value for split in pictures for value in split.values()}) == 240
    val, tune = (plan_split(SPECS["bench"], split) for split in ("val", "tune"))
    assert np.mean([a == b for a, b in zip(val, tune, strict=True)]) < 0.01, "tune is val's plan again"


def test_tune_is_drawn_by_the_rules_of_val(tiny, extras):
    val, tune = load(tiny, "val"), load(extras["tune"], "tune")
    assert tune["categories"] == val["categories"] and tune["annotations"] != val["annotations"]
    assert [i["id"] for i in tune["images"]] == [i["id"] for i in val["images"]]
    assert counts(val)[0] == counts(tune)[0] == image_counts(TINY)[1].tolist()


def test_balanced_has_every_class_equally_often_and_images_as_crowded(tiny, extras):
    train, balanced = load(tiny, "train"), load(extras["balanced"], "balanced")
    images, instances = counts(balanced)
    assert [c["image_count"] for c in balanced["categories"]] == images
    assert [c["instance_count"] for c in balanced["categories"]] == instances
    assert sum(images) == image_counts(TINY)[0].sum() and np.ptp(images) <= 1
    assert len(balanced["annotations"]) == pytest.approx(len(train["annotations"]), rel=0.1)
    for spec in SPECS.values():
        held = [plan_split(spec, split) for split in ("train", "balanced")]
        crowds = [np.bincount([len(h) for h in plan], minlength=6) / spec.train_images for plan in held]
        np.testing.assert_allclose(*crowds, atol=0.03)  # the shares of images with 0, 1, 2, ... classes


def test_a_detector_trained_on_balanced_is_scored_by_the_groups_of_the_tail(tiny, extras):
    written, tail = load(extras["balanced"], "balanced"), load(tiny, "train")
    same = ("id", "name", "synset", "synonyms", "def", "frequency")
    assert [[c[k] for k in same] for c in written["categories"]] == [[c[k] for k in same] for c in tail["categories"]]
    assert "no tail" in written["info"]["description"]
    balanced = load_annotations(extras["balanced"] / "balanced.json")
    assert (balanced.image_count > 10).all()  # by its own counts no class would be rare
    val = load_annotations(tiny / "val.json").with_frequency_of(balanced)  # as the evaluation of a training run does
    assert val.frequency.tolist() == list("ffccrr")


# ---- drawn once, whole, and never over something else


def test_same_bytes_for_any_number_of_workers(tiny, extras, tmp_path):
    folder = draw(tmp_path, "tune", workers=1)  # draws the set as well
    assert digest(folder) == digest(extras["tune"]) and digest(tmp_path / "tiny") == digest(tiny)
    seeds = [draw_image(dataclasses.replace(TINY, seed=s), choose_classes(TINY), [0], "train", 0)[0] for s in (3, 4)]
    assert not np.array_equal(*seeds)


def test_what_is_there_is_kept_and_what_is_missing_is_redrawn(tiny, extras, monkeypatch):
    before = digest(tiny)
    with monkeypatch.context() as patch:
        patch.setattr(scene, "draw_image", lambda *a: pytest.fail("drawn although it is there"))
        assert draw(tiny.parent) == tiny and draw(tiny.parent, "tune") == extras["tune"]
    (tiny / "val" / "000003.jpg").unlink()
    draw(tiny.parent)
    assert digest(tiny) == before


@pytest.mark.parametrize("split", ["train", "tune"])
def test_an_interrupted_drawing_leaves_no_set(tiny, tmp_path, monkeypatch, split):
    if split == "tune":
        (tmp_path / "tiny").symlink_to(tiny)

    def interrupted(*task):
        raise KeyboardInterrupt

    monkeypatch.setattr(scene, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, split)
    found = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert found == (set() if split == "train" else {"tiny"}) and (tiny / "val.json").is_file()


def test_foreign_folders_are_refused(tmp_path):
    with pytest.raises(ShapesError, match="workers = 0"):
        draw(tmp_path, workers=0)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.txt").write_text("mine")
    with pytest.raises(ShapesError, match=r"not drawn by rio.shapes.*Fix: "):
        draw(tmp_path)
    assert (tmp_path / "tiny" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        ({"image_size": 64}, "train", "image_size: there 48, asked 64"),
        ({"seed": 4}, "tune", "seed: there 3, asked 4"),
        ({"name": "tiny_tune"}, "train", "split: there 'tune', asked None"),
        ({}, "test", "'test'; expected one of train, val, tune, balanced"),
    ],
)
def test_a_folder_of_another_spec_is_refused(tiny, extras, change, split, message):
    with pytest.raises(ShapesError, match=message):
        draw(tiny.parent, split, dataclasses.replace(TINY, **change))
