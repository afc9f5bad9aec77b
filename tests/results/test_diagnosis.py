"""Results that are read wrongly are told apart from results of a bad detector."""

import re

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rio.data.load import load_annotations
from rio.results.diagnosis import LOOK_BELOW, diagnose
from rio.results.evaluation import Evaluation, evaluate
from rio.results.federated import JudgedPairs
from rio.results.reading import load_results
from tests.support.annotation_files import write
from tests.support.result_files import category, coco_file, prediction, thing

IMAGES, CLASSES, SIZES = 60, 9, ((640, 480), (480, 640), (500, 400))
IDS = [2, 3, 4, 6, 7, 8, 11, 13, 14]  # with gaps, as COCO's
NAMES = [f"{letter}ish" for letter in "qmzbxkafd"]  # not in the alphabet's order


def size_of(number):
    return SIZES[number % len(SIZES)]


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """COCO-format ground truth, images in which every class is seen now and then."""
    rng = np.random.default_rng(0)
    images, things = [], []
    for i in range(1, IMAGES + 1):
        width, height = size_of(i)
        images.append({"id": i, "width": width, "height": height, "file_name": f"{(7 * i) % 61:03d}.jpg"})
        for _ in range(int(rng.integers(1, 7))):
            w, h = (rng.uniform(0.08, 0.5, 2) * (width, height)).round(1).tolist()
            x, y = (rng.random(2) * (width - w, height - h)).round(1).tolist()
            kind = int(rng.choice(IDS, p=np.arange(9, 0, -1) / 45))
            things.append(thing(len(things) + 1, i, kind, [x, y, w, h]))
    categories = [category(k) | {"name": name} for k, name in zip(IDS, NAMES, strict=True)]
    content = {"images": images, "categories": categories, "annotations": things}
    return load_annotations(write(tmp_path_factory.mktemp("truth") / "gt.json", content))


def detector(truth, seed=1, *, jitter=0.08, right=0.9, missed=0.2, junk=6, calibrated=True):
    """What a detector finds: objects moved by a share of their sides, some missed or of another class, and junk."""
    rng, records = np.random.default_rng(seed), []
    for image, k, box in zip(
        truth.annotation_image.tolist(), truth.annotation_class.tolist(), truth.boxes, strict=True
    ):
        if rng.random() < missed:
            continue
        moved = box + rng.normal(0, jitter, 4) * box[[2, 3, 2, 3]]
        kind = IDS[k] if rng.random() < right else int(rng.choice(IDS))
        score = rng.beta(4, 2) if calibrated else rng.random()
        records.append(prediction(image + 1, kind, float(score), [*moved[:2], *moved[2:].clip(4)]))
    for i in range(1, IMAGES + 1):
        for _ in range(junk):
            w, h = rng.uniform(0.05, 0.5, 2) * size_of(i)
            x, y = rng.random(2) * (np.array(size_of(i)) - (w, h))
            score = rng.beta(1, 5) if calibrated else rng.random()
            records.append(prediction(i, int(rng.choice(IDS[:4])), float(score), [x, y, w, h]))
    return [record | {"bbox": [float(v) for v in record["bbox"]]} for record in records]


def of_classes(change):
    """Records with other category ids; those that get none are left out, as is one that the loader would refuse."""
    return lambda r: r | {"category_id": new} if (new := change(r["category_id"])) in IDS else None


def of_boxes(change):
    def changed(record):
        width, height = size_of(record["image_id"])
        return record | {"bbox": np.array(change(*record["bbox"], width, height), float).tolist()}

    return changed


def of_images(order):
    return lambda r: r | {"image_id": order[r["image_id"]]} if order.get(r["image_id"]) else None


NUMBERS = list(range(1, IMAGES + 1))
SHUFFLED = np.random.default_rng(3).permutation(NUMBERS).tolist()
OTHER_LIST = dict(zip(IDS, np.roll(IDS, 4).tolist(), strict=True))
ALPHABET = dict(zip(sorted(NAMES), IDS, strict=True))
MISREAD = {
    "one too low": (of_classes(lambda k: k - 1), "classes", "one too low.*add 1"),
    "one too high": (of_classes(lambda k: k + 1), "classes", "one too high.*subtract 1"),
    "contiguous from 1": (of_classes(lambda k: IDS.index(k) + 1), "classes", "contiguous numbers from 1"),
    "contiguous from 0": (of_classes(lambda k: IDS.index(k)), "classes", "contiguous numbers from 0"),
    "by the alphabet": (of_classes(lambda k: ALPHABET[NAMES[IDS.index(k)]]), "classes", "by the alphabet"),
    "another list": (of_classes(OTHER_LIST.get), "classes", "another list of categories, in which '.*' is '"),
    "corners": (of_boxes(lambda x, y, w, h, *_: (x, y, x + w, y + h)), "boxes", "x1, y1, x2, y2: .*Fix: write bbox"),
    "centres": (of_boxes(lambda x, y, w, h, *_: (x + w / 2, y + h / 2, w, h)), "boxes", "centre x, y"),
    "y first": (of_boxes(lambda x, y, w, h, *_: (y, x, h, w)), "boxes", "y, x, height, width"),
    "y first, corners": (of_boxes(lambda x, y, w, h, *_: (y, x, y + h, x + w)), "boxes", "y1, x1, y2, x2"),
    "shares": (of_boxes(lambda x, y, w, h, W, H: (x / W, y / H, w / W, h / H)), "boxes", "shares of the image, x, y"),
    "shares, centres": (
        of_boxes(lambda x, y, w, h, W, H: ((x + w / 2) / W, (y + h / 2) / H, w / W, h / H)), "boxes", "shares.*centre",
    ),
    "half the size": (of_boxes(lambda *b: np.array(b[:4]) / 2), "boxes", r"resized picture \(0\.(49|5).* times the"),
    "longer side": (of_boxes(lambda *b: np.array(b[:4]) * 1333 / max(b[4:])), "boxes", r"longer side about 13\d\d px"),
    "shorter side": (of_boxes(lambda *b: np.array(b[:4]) * 800 / min(b[4:])), "boxes", r"shorter side about (79|80)\d"),
    "a square": (
        of_boxes(lambda x, y, w, h, W, H: np.array([x / W, y / H, w / W, h / H]) * 300), "boxes", r"\(\d+ x \d+ px",
    ),
    "the image before": (of_images({i: i - 1 for i in NUMBERS}), "images", "the image before"),
    "ids as text": (of_images(dict(zip(NUMBERS, sorted(NUMBERS, key=str), strict=True))), "images", "ids as text"),
    "file names": (
        of_images(dict(zip(sorted(NUMBERS, key=lambda i: (7 * i) % 61), NUMBERS, strict=True))), "images", "file names",
    ),
    "shuffled": (of_images(dict(zip(NUMBERS, SHUFFLED, strict=True))), "images", "other images' .*those of .* fit "),
    "scores": (lambda r: r | {"score": 1 - r["score"]}, "scores", "scores seem to be reversed"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISREAD)
def test_another_reading_is_said_with_its_evidence_and_never_applied(name, truth):
    change, kind, words = MISREAD[name]
    sound = detector(truth)
    records = [new for record in sound if (new := change(record))]
    misread, right = evaluate(truth, records, iou_types=("bbox",)), evaluate(truth, sound, iou_types=("bbox",))
    results = load_results(records, truth)
    (finding,) = diagnose(truth, results, JudgedPairs.of(truth).ground_truth)
    assert finding.kind == kind and re.search(words, finding.text), finding.text
    assert misread.info["diagnosis"] == [finding.text]
    assert misread.table().endswith(f"Diagnosis (nothing was changed): {finding.text}.")
    assert misread.metrics["bbox"]["AP"] < (0.65 if kind == "scores" else 0.4) * right.metrics["bbox"]["AP"]
    again = evaluate(truth, finding.reread(results), iou_types=("bbox",)).metrics["bbox"]["AP"]
    whole = name not in ("another list", "shuffled")  # of which a sample shows a part only
    assert again > (0.8 if whole and len(records) > 0.9 * len(sound) else 0.25) * right.metrics["bbox"]["AP"]


def test_evidence_is_counted_by_hand(tmp_path):
    """Ten images of one object each, all found, all but one under the id before; no class is left for the tenth."""
    boxes = [[5 * i, 40, 30, 30] for i in range(1, 11)]
    things = [thing(i, i, 1 + i % 5, box) for i, box in enumerate(boxes, 1)]
    path = coco_file(tmp_path, things, range(1, 6), range(1, 11), (100, 100))
    records = [
        prediction(i, i % 5 if i < 10 and i % 5 else 5, 1 - i / 20, box) for i, box in enumerate(boxes, 1)
    ]  # 5 (class 1) and 10 (class 1) under class 5, the other eight one too low
    (text,) = evaluate(path, records, iou_types=None).info["diagnosis"]
    assert text.startswith(
        "every category_id seems one too low: as the results are, 0 of 10 objects looked at are found,"
    )
    assert "with this reading 8 of 10 (by class, at IoU 0.5). Fix: add 1: " in text


BAD = {
    f"{name}, seed {seed}": (seed, options)
    for seed in range(4)
    for name, options in {
        "boxes off": {"jitter": 0.35},
        "classes by chance": {"right": 0.0},
        "few classes right": {"right": 0.3, "junk": 20},
        "much missed": {"missed": 0.95, "junk": 20},
        "scores by chance": {"calibrated": False, "junk": 15},
        "all wrong": {"jitter": 0.6, "right": 0.2, "calibrated": False},
        "junk only": {"missed": 1.0, "junk": 25},
    }.items()
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_detector_is_no_misreading(name, truth):
    seed, options = BAD[name]
    evaluation = evaluate(truth, detector(truth, seed, **options), iou_types=("bbox",))
    assert evaluation.metrics["bbox"]["AP50"] < LOOK_BELOW and evaluation.info["diagnosis"] == []


def test_one_class_only_is_no_misreading(truth):
    """As after a few iterations: everything is the most frequent class."""
    records = [record | {"category_id": IDS[0]} for record in detector(truth)]
    assert evaluate(truth, records, iou_types=None).info["diagnosis"] == []


def test_real_detectors_are_no_misreadings(shared_dir):
    folder = shared_dir / "golden" / "coco_eval"
    for gt, names in (
        ("gt_coco611_val", ("yolox_nano_coco611val_bbox", "fastestdet_coco611val_bbox")),
        ("instances_val2014_100", ("instances_val2014_fakebbox100_results", "instances_val2014_fakesegm100_results")),
    ):
        real = load_annotations(folder / f"{gt}.json")
        for name in names:
            for protocol in ("lvis", "coco"):
                scored = evaluate(real, folder / f"{name}.json", iou_types=None, protocol=protocol)
                assert scored.info["diagnosis"] == []
                results = load_results(folder / f"{name}.json", real)
                assert diagnose(real, results, JudgedPairs.of(real).ground_truth) == []


def test_off_by_one_of_a_real_report(shared_dir):
    gt, results = (shared_dir / "cases" / f"off_by_one_{name}.json" for name in ("gt", "results"))
    scored = evaluate(gt, results, iou_types=None)
    assert scored.metrics["bbox"]["AP"] == 0 and "0 of 102 objects" in scored.table()
    truth = load_annotations(gt)
    loaded = load_results(results, truth)
    (finding,) = diagnose(truth, loaded, JudgedPairs.of(truth).ground_truth)
    assert evaluate(truth, finding.reread(loaded), iou_types=None).metrics["bbox"]["AP"] == pytest.approx(
        72.9, abs=0.05
    )


def test_scores_that_are_all_alike(truth):
    records = [record | {"score": 1.0} for record in detector(truth)]
    (text,) = evaluate(truth, records, iou_types=None).info["diagnosis"]
    assert text.startswith(f"all {len(records)} scores are 1: AP ranks") and "Fix: " in text


def test_a_low_cap_on_detections(truth):
    best = sorted(detector(truth), key=lambda record: -record["score"])
    kept = [r for i, r in enumerate(best) if sum(o["image_id"] == r["image_id"] for o in best[:i]) < 2]
    for records, options in ((kept, {}), (best, {"max_dets": 2})):
        (text,) = evaluate(truth, records, iou_types=("bbox",), **options).info["diagnosis"]
        assert text.startswith("no image has more than 2 predictions, and ") and "TEST.DETECTIONS_PER_IMAGE" in text
    assert evaluate(truth, best, iou_types=("bbox",), max_dets=8).info["diagnosis"] == []


@pytest.mark.parametrize("how", ["transposed", "C order"])
@pytest.mark.parametrize("protocol", ["lvis", "coco"])
def test_transposed_masks(how, protocol, tmp_path):
    """A square picture's masks pass every check of sizes; so do those encoded row by row."""
    rng, side = np.random.default_rng(0), 96
    things, records = [], []
    for i in range(1, 13):
        x, y, w, h = (int(v) for v in (*rng.integers(0, 40, 2), *rng.integers(15, 50, 2)))
        things.append(thing(i, i, 1, [x, y, w, h]))
        mask = np.zeros((side, side), np.uint8)
        mask[y : y + h, x : x + w] = 1
        wrong = np.asfortranarray(mask.T) if how == "transposed" else mask.ravel().reshape(side, side, order="F")
        for which, found in ((mask, "right"), (wrong, "wrong")):
            rle = coco_mask.encode(np.asfortranarray(which))
            shape = {"size": [side, side], "counts": rle["counts"].decode()}
            records.append((found, prediction(i, 1, 0.9 - i / 100, [x, y, w, h], segmentation=shape)))
    path = coco_file(tmp_path, things, [1], range(1, 13), (side, side))
    for which, expected in (("right", 0), ("wrong", 1)):
        chosen = [record for found, record in records if found == which]
        for given in (chosen, write(tmp_path / "dt.json", chosen)):
            found = evaluate(path, given, protocol=protocol).info["diagnosis"]
            assert len(found) == expected, found
            assert all("masks seem to be transposed" in text and "Fortran order" in text for text in found)


def test_nothing_to_diagnose(truth, tmp_path):
    assert evaluate(truth, [], iou_types=("bbox",), allow_empty=True).info["diagnosis"] == []
    empty = load_results(detector(truth)[:1], truth)
    assert diagnose(truth, empty, np.zeros(truth.num_annotations, bool)) == []
    scored = evaluate(truth, detector(truth), iou_types=("bbox",))
    scored.to_json(tmp_path / "evaluation.json")
    assert Evaluation.from_json(tmp_path / "evaluation.json").info["diagnosis"] == []
