"""Error kinds by hand, and against the evaluation: what is called correct here is a true positive there."""

import hotcoco
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rio.data.load import load_annotations
from rio.results.errors import KINDS, box_iou, find_errors, outcomes, verdicts, verdicts_of_objects
from rio.results.evaluation import evaluate
from rio.results.federated import JudgedPairs
from rio.results.objects import objects_of, predictions_of, ranked_examples
from rio.results.reading import ResultsError, load_results
from tests.support.result_files import image, prediction, thing

SIZE = (100, 200)  # height, width
COLUMNS = "image_id image_index annotation_id category_id name frequency score iou kind gt_category_id result_index "
COLUMNS = (COLUMNS + "annotation_index").split()


def box(left, width=20.0):
    """A box of height 20; two of width 20 that are `d` apart overlap with an IoU of (20 - d) / (20 + d)."""
    return [float(left), 10.0, float(width), 20.0]


@pytest.fixture
def load(lvis_file):
    """load(objects, negative=..., ...) -> Annotations; objects are (image_id, category_id, box[, extra])."""

    def make(objects, images=(1,), negative=None, not_exhaustive=None, frequency="rcf", federated=True):
        records = [image(i, (negative or {}).get(i, []), (not_exhaustive or {}).get(i, []), *SIZE) for i in images]
        annotations = [
            thing(100 + n, i, c, b, **(extra[0] if extra else {})) for n, (i, c, b, *extra) in enumerate(objects)
        ]
        names = enumerate(zip(("cat", "dog", "eel"), frequency, strict=True), 1)
        categories = [{"id": 10 * k, "name": name, "frequency": f} for k, (name, f) in names]
        if not federated:
            for record in records:
                del record["neg_category_ids"], record["not_exhaustive_category_ids"]
        return load_annotations(lvis_file(records, categories, annotations))

    return make


CAT, DOG, EEL = 10, 20, 30


def predict(category_id, score, b, image_id=1):
    return prediction(image_id, category_id, score, b)


def kinds(frame):
    return frame["kind"].astype(str).tolist()


def test_every_kind_by_hand(load):
    annotations = load([(1, CAT, box(10)), (1, DOG, box(100)), (1, CAT, box(150))], negative={1: [30]})
    frame = find_errors(
        annotations,
        [
            predict(CAT, 0.90, box(12)),  # 18/22: the first cat
            predict(CAT, 0.80, box(13)),  # 17/23: a cat that is taken
            predict(DOG, 0.70, box(11)),  # 19/21 with a cat
            predict(CAT, 0.60, box(22)),  # 8/32 with a cat
            predict(DOG, 0.50, box(60)),  # nothing there
            predict(EEL, 0.40, box(110)),  # 10/30 with a dog
        ],
    )
    assert list(frame) == COLUMNS
    named = ["correct", "duplicate", "classification", "localisation", "background", "both", "missed", "missed"]
    assert kinds(frame) == named
    assert frame["annotation_id"].tolist() == [100, 100, 100, 100, -1, 101, 101, 102]
    np.testing.assert_allclose(frame["iou"], [18 / 22, 17 / 23, 19 / 21, 0.25, 0, 1 / 3, 1 / 3, 0])
    assert frame["name"].astype(str).tolist() == ["cat", "cat", "dog", "cat", "dog", "eel", "dog", "cat"]
    assert frame["frequency"].astype(str).tolist() == list("rrcrcfcr")
    assert frame["gt_category_id"].tolist() == [CAT, CAT, CAT, CAT, -1, DOG, DOG, CAT]
    assert frame["result_index"].tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert frame["annotation_index"].tolist() == [0, 0, 0, 0, -1, 1, 1, 2]
    np.testing.assert_array_equal(frame["score"], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, np.nan, np.nan])
    assert set(kinds(frame)) | {"unverified"} == set(KINDS)
    assert list(frame["kind"].cat.categories) == list(KINDS)


def test_an_object_that_an_error_points_at_is_not_missed(load):
    annotations = load([(1, CAT, box(10)), (1, DOG, box(60)), (1, EEL, box(120))])
    frame = find_errors(annotations, [predict(CAT, 0.9, box(20)), predict(EEL, 0.8, box(61))])
    assert kinds(frame) == ["localisation", "classification", "missed"]  # only the eel has nothing pointing at it
    assert frame["annotation_id"].tolist() == [100, 101, 102]


def test_better_scores_claim_first_and_take_the_best_object(load):
    annotations = load([(1, CAT, box(10)), (1, CAT, box(14))])
    records = [predict(CAT, 0.5, box(10)), predict(CAT, 0.9, box(11)), predict(CAT, 0.9, box(15))]
    frame = find_errors(annotations, records)
    assert frame["result_index"].tolist() == [1, 2, 0]  # equal scores in the file's order
    assert kinds(frame) == ["correct", "correct", "duplicate"]
    assert frame["annotation_id"].tolist() == [100, 101, 100]
    tie = find_errors(load([(1, CAT, box(10)), (1, CAT, box(10))]), [predict(CAT, 0.9, box(10))])
    assert tie["annotation_id"].tolist() == [101, 100]  # as in LVIS, the later object


def test_what_lvis_ignores_is_unverified(load):
    objects = [(1, CAT, box(10)), (2, DOG, box(10)), (3, CAT, box(10))]
    annotations = load(objects, images=(1, 2, 3), negative={1: [DOG]}, not_exhaustive={3: [CAT]})
    frame = find_errors(
        annotations,
        [
            predict(EEL, 0.9, box(10), 1),  # nobody looked for eels, even if this one lies on a cat
            predict(DOG, 0.8, box(10), 1),  # dogs are known to be absent
            predict(CAT, 0.9, box(90), 3),
            predict(CAT, 0.8, box(10), 3),  # not every cat of image 3 is annotated
            predict(DOG, 0.9, box(10), 2),
        ],
    )
    assert kinds(frame) == ["unverified", "classification", "correct", "unverified", "correct"]
    assert frame["image_id"].tolist() == [1, 1, 2, 3, 3] and frame["image_index"].tolist() == [0, 0, 1, 2, 2]
    assert frame["annotation_id"].tolist() == [-1, 100, 101, -1, 102]
    assert frame["iou"].tolist() == [1, 1, 1, 0, 1]


def test_coco_crowds_excuse_and_are_no_objects(load):
    crowd = {"iscrowd": 1, "segmentation": {"size": list(SIZE), "counts": [0, 50, SIZE[0] * SIZE[1] - 50]}}
    annotations = load([(1, CAT, box(10)), (1, CAT, box(100, 60), crowd)], federated=False)
    frame = find_errors(annotations, [predict(CAT, 0.9, box(110)), predict(DOG, 0.8, box(110))])
    assert kinds(frame) == ["unverified", "background", "missed"]
    assert len(objects_of(annotations, 0)) == 1


def test_what_is_left_out(load):
    annotations = load([(1, CAT, box(10)), (1, DOG, box(50), {"area": 0})], negative={1: [DOG]})
    records = [predict(CAT, 0.1, box(10)), predict(CAT, 0.4, box(90, 0)), predict(CAT, 0.5, box(90))]
    # Left out are the empty box and the object of no area; the empty one takes its place under a cap.
    for options in ({}, {"max_dets": -1}):
        assert kinds(find_errors(annotations, records, **options)) == ["background", "correct"]
    for options in ({"score_threshold": 0.5}, {"max_dets": 2}):
        assert kinds(find_errors(annotations, records, **options)) == ["background", "missed"]


def test_empty_cases(load):
    nothing = find_errors(load([]), [])
    assert list(nothing) == COLUMNS and len(nothing) == 0
    assert kinds(find_errors(load([(1, CAT, box(10))]), [])) == ["missed"]
    records = [predict(CAT, 0.9, box(10)), predict(DOG, 0.8, box(9))]
    assert kinds(find_errors(load([], negative={1: [CAT]}), records)) == ["background", "unverified"]
    assert ranked_examples(load([])) == []


def test_thresholds(load):
    annotations = load([(1, CAT, box(10)), (1, DOG, box(100))])
    records = [predict(CAT, 0.9, box(20)), predict(DOG, 0.8, box(117))]  # IoU 1/3; 3/37
    assert kinds(find_errors(annotations, records)) == ["localisation", "background", "missed"]
    assert kinds(find_errors(annotations, records, iou_threshold=0.3)) == ["correct", "background", "missed"]
    assert kinds(find_errors(annotations, records, background_threshold=0.05)) == ["localisation", "localisation"]
    for bad in ({"iou_threshold": 0.1}, {"background_threshold": -1}, {"iou_threshold": 1.5}):
        with pytest.raises(ValueError, match="thresholds: expected"):
            find_errors(annotations, records, **bad)
    with pytest.raises(ResultsError, match="image_id"):
        find_errors(annotations, [predict(CAT, 0.9, box(20), image_id=7)])


def test_an_ignored_object_is_neither_found_nor_missed(load):
    ignored = {"ignore": 1}
    annotations = load([(1, CAT, box(10), ignored), (1, CAT, box(16)), (1, DOG, box(100), ignored)])
    records = [
        predict(CAT, 0.9, box(11)),  # nearer to the ignored cat, but the other one is free
        predict(CAT, 0.8, box(10)),  # the ignored cat
        predict(CAT, 0.7, box(9)),  # the ignored cat is taken: a false positive
        predict(CAT, 0.6, box(100)),  # a false positive, on an ignored dog
    ]
    frame = find_errors(annotations, records)
    assert kinds(frame) == ["correct", "unverified", "duplicate", "classification"]
    assert frame["annotation_id"].tolist() == [101, -1, 100, 102]
    assert outcomes(annotations, frame).to_dict() == {1: "correct"}
    assert verdicts(frame, len(records)).tolist() == ["right", "open", "wrong", "wrong"]
    assert verdicts_of_objects(annotations, frame, 0.5).tolist() == ["open", "right", "open"]
    assert verdicts_of_objects(annotations, frame, 0.95).tolist() == ["open", "wrong", "open"]
    plain = load([(1, CAT, box(10), ignored), (1, DOG, box(100))], federated=False)  # COCO has no such key
    assert kinds(find_errors(plain, records[1:2])) == ["correct", "missed"]


def random_case(load, rng, federated, ignore=False):
    categories = [CAT, DOG, EEL]
    images = range(1, 25)

    def some():
        place = [*rng.uniform(0, 60, 2).round(1), *rng.uniform(5, 40, 2).round(1)]
        return (
            int(rng.choice(images)),
            int(rng.choice(categories)),
            place,
            {"ignore": int(ignore and rng.random() < 0.3)},
        )

    def lists(p):
        return {i: [c for c in categories if rng.random() < p] for i in images}

    objects = [some() for _ in range(90)]
    annotations = load(objects, images, lists(0.3), lists(0.15), federated=federated)
    records = []
    for _ in range(900):
        i, c, b, _ = objects[rng.integers(len(objects))]
        b = np.clip(np.array(b) + rng.normal(0, 4, 4), 0, None).tolist()
        c = c if rng.random() < 0.7 else int(rng.choice(categories))
        records.append(predict(c, round(float(rng.random()), 2), b, i))
    return annotations, records


def average_precision(correct, num_objects):
    """Interpolated at 101 recalls, as the evaluation does, written down once more from its definition."""
    tp = np.cumsum(correct)
    precision = np.maximum.accumulate((tp / np.arange(1, len(tp) + 1))[::-1])[::-1]
    at = np.searchsorted(tp / num_objects, np.linspace(0, 1, 101), side="left")
    return 100 * np.mean(np.where(at < len(tp), precision[np.minimum(at, len(tp) - 1)], 0))


@pytest.mark.parametrize(("federated", "ignore"), [(True, False), (False, False), (True, True), (False, True)])
@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_ap_from_the_rows_is_the_evaluations(load, federated, ignore, threshold):
    annotations, records = random_case(load, np.random.default_rng(4), federated, ignore)
    frame = find_errors(annotations, records, iou_threshold=threshold)
    result = evaluate(annotations, records, iou_types=("bbox",))
    classes = annotations.annotation_class[JudgedPairs.of(annotations).counted]
    for k, category_id in enumerate((CAT, DOG, EEL)):
        rows = frame[(frame["category_id"] == category_id) & ~frame["kind"].isin(["missed", "unverified"])]
        rows = rows.sort_values("score", ascending=False, kind="stable")
        ap = average_precision((rows["kind"] == "correct").to_numpy(), int((classes == k).sum()))
        reference = result.precision["bbox"][0 if threshold == 0.5 else 5, :, k, 0].mean() * 100
        assert ap == pytest.approx(reference, abs=1e-9) and 0 < ap < 95


@pytest.mark.parametrize("federated", [True, False])
def test_error_counts_are_tides(load, federated, monkeypatch):
    """hotcoco counts TIDE's errors on what the evaluation handed it, by code that shares nothing with ours."""
    runs, engine = [], hotcoco.LVISeval
    monkeypatch.setattr(hotcoco, "LVISeval", lambda *arguments: runs.append(engine(*arguments)) or runs[0])
    annotations, records = random_case(load, np.random.default_rng(6), federated)
    evaluate(annotations, records, iou_types=("bbox",))
    theirs = runs[0].tide_errors()["counts"]
    ours = find_errors(annotations, records)["kind"].value_counts()
    names = {"Cls": "classification", "Loc": "localisation", "Both": "both", "Dupe": "duplicate", "Bkg": "background"}
    names["Miss"] = "missed"
    assert {short: ours[kind] for short, kind in names.items()} == theirs
    assert min(theirs["Cls"], theirs["Loc"], theirs["Both"], theirs["Dupe"], theirs["Bkg"]) > 0


def test_rows_add_up(load):
    annotations, records = random_case(load, np.random.default_rng(5), True)
    frame = find_errors(annotations, records)
    found = frame[frame["kind"] == "correct"]["annotation_id"]
    pointed = frame[frame["kind"].isin(["classification", "localisation"])]["annotation_id"]
    missed = frame[frame["kind"] == "missed"]["annotation_id"]
    assert found.is_unique and missed.is_unique
    assert set(found) | set(pointed) | set(missed) == set(annotations.annotation_ids)
    assert not set(missed) & (set(found) | set(pointed))
    assert frame["image_index"].is_monotonic_increasing
    taken = sorted(frame["result_index"][frame["result_index"] >= 0])
    assert taken == [i for i, record in enumerate(records) if min(record["bbox"][2:]) > 0]
    for _, scores in frame.groupby("image_index")["score"]:
        assert scores.dropna().is_monotonic_decreasing and scores.isna().is_monotonic_increasing


def test_box_iou_is_pycocotools():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 50, (40, 4)), rng.uniform(0, 50, (30, 4))
    b[:5] = a[:5]
    b[5, 2] = 0
    np.testing.assert_array_equal(box_iou(a, b), coco_mask.iou(a, b, [0] * len(b)))
    assert box_iou(a[:0], b).shape == (0, 30) and box_iou(a, b[:0]).shape == (40, 0)
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0.0]]


def test_objects_of(load):
    runs = {"segmentation": {"size": list(SIZE), "counts": [3, 5, SIZE[0] * SIZE[1] - 8]}}
    annotations = load([(2, DOG, box(10)), (1, CAT, box(50)), (1, EEL, box(90), runs)], images=(1, 2, 3))
    objects = objects_of(annotations, 0)
    assert objects.names == ["cat", "eel"] and objects.groups.tolist() == ["r", "f"] and objects.scores is None
    assert objects.boxes.tolist() == [box(50), box(90)] and objects.size == SIZE and len(objects) == 2
    assert objects.masks.shape == (2, *SIZE) and objects.masks.dtype == bool
    assert objects.masks.sum((1, 2)).tolist() == [400, 5]
    assert objects.masks[0, 10:30, 50:70].all()
    assert annotations.annotation_ids[objects.indices].tolist() == [101, 102]
    assert len(objects_of(annotations, 2)) == 0
    with pytest.raises(IndexError, match="0..2, found 3"):
        objects_of(annotations, 3)
    without = load_annotations(annotations.path, segmentations=False)
    assert objects_of(without, 0).masks is None


def test_predictions_of(load):
    annotations = load([(1, CAT, box(50))], images=(1, 2))
    mask = coco_mask.encode(np.asfortranarray(np.ones(SIZE, np.uint8)))
    records = [
        {**predict(c, s, box(20)), "segmentation": {"size": list(SIZE), "counts": mask["counts"].decode()}}
        for c, s in ((DOG, 0.2), (CAT, 0.9), (EEL, 0.5))
    ]
    results = load_results(records, annotations)
    shown = predictions_of(results, annotations, 0, score_threshold=0.3)
    assert shown.names == ["cat", "eel"] and shown.scores.tolist() == [0.9, 0.5] and shown.indices.tolist() == [1, 2]
    assert shown.masks.all() and shown.masks.shape == (2, *SIZE)
    assert predictions_of(results, annotations, 0, most=1).names == ["cat"]
    assert len(predictions_of(results, annotations, 1)) == 0
    boxes_only = load_results([predict(DOG, 0.2, box(1))], annotations)
    assert predictions_of(boxes_only, annotations, 0).masks is None
    with pytest.raises(IndexError, match="0..1, found 2"):
        predictions_of(results, annotations, 2)


def test_examples_show_rare_classes_first_and_each_class_once(load):
    large = [20.0, 20.0, 60.0, 60.0]
    objects = [(1, EEL), (2, DOG), (3, CAT), (4, CAT), (4, DOG)]
    objects = [(i, c, large) for i, c in objects] + [(5, CAT, [1.0, 1.0, 4.0, 4.0])]
    annotations = load(objects, images=range(1, 7))
    order = ranked_examples(annotations, count=10)
    assert order[0] == 3  # cat and dog, the rarest two
    assert order[1] == 0  # the one class not shown yet
    assert order[2] == 2  # all shown once: the other large cat
    assert sorted(order) == [0, 1, 2, 3, 4]  # never the empty image
    assert ranked_examples(annotations, count=2) == order[:2] and ranked_examples(annotations, count=0) == []
    crowded = load([(1, CAT, large)] * 40 + [(2, CAT, large)], images=(1, 2))
    assert ranked_examples(crowded, count=1) == [1]
