"""Costs of errors, recall and calibration against hotcoco, small cases by hand; the default threshold."""

import hotcoco
import numpy as np
import pytest

from rio.data.load import load_annotations
from rio.results.breakdown import COSTS, breakdown, confusions
from rio.results.evaluation import evaluate
from rio.results.reading import load_results
from rio.results.thresholds import FALLBACK, best_threshold, f1_by_threshold
from tests.support.finished_runs import invented
from tests.support.result_files import category, image, prediction, thing

KINDS = dict(zip(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), COSTS, strict=True))


@pytest.fixture(scope="module")
def drawn(tiny_set):
    annotations = load_annotations(tiny_set / "val.json")
    found = {"r": 0.2, "c": 0.4, "f": 0.5}
    return annotations, [
        record for seed in range(4) for record in invented(annotations, found, np.random.default_rng(seed), masks=False)
    ]


def test_all_categories_equal_hotcoco(drawn):
    annotations, records = drawn
    whole = breakdown(annotations, load_results(records, annotations)).set_index("group").loc["all"]
    ground_truth = hotcoco.COCO(str(annotations.path))
    found = ground_truth.load_res([record | {"area": record["bbox"][2] * record["bbox"][3]} for record in records])
    peer = hotcoco.LVISeval(ground_truth, found, "bbox")
    peer.run()
    tide = peer.tide_errors()
    assert tide["ap_base"] * 100 == pytest.approx(whole["AP50"], abs=1e-9)
    assert tide["counts"]["Cls"] > 5 < tide["counts"]["Loc"]
    for theirs, ours in KINDS.items():
        assert whole[ours] == pytest.approx(100 * tide["delta_ap"][theirs], abs=1e-9), ours
    assert whole["AR"] == pytest.approx(100 * peer.get_results()["AR@300"], abs=1e-9)
    assert whole["calibration_error"] == pytest.approx(100 * peer.calibration()["ece"], abs=1e-9)


def test_groups_have_the_evaluations_ap50_and_make_up_the_whole(drawn):
    annotations, records = drawn
    table = breakdown(annotations, load_results(records, annotations)).set_index("group")
    assert table.loc["all", "AP50"] == pytest.approx(
        evaluate(annotations, records, iou_types=("bbox",)).metrics["bbox"]["AP50"]
    )
    judged = annotations.instance_count > 0
    sizes = {group: (judged & (annotations.frequency == group)).sum() for group in table.index[1:]}
    for column in ("AP50", "AR", *COSTS):
        mean = sum(table.loc[g, column] * n for g, n in sizes.items()) / sum(sizes.values())
        assert table.loc["all", column] == pytest.approx(mean), column


FIRST, SECOND, DOG = ([10.0 + 40 * i, 10.0, 20.0, 20.0] for i in range(3))


@pytest.fixture
def load(lvis_file):
    """Function: two cats and a dog in one image, some of them to be ignored."""

    def load(*ignored):
        objects = enumerate(zip((10, 10, 20), (FIRST, SECOND, DOG), strict=True), 1)
        things = [thing(i, 1, c, box, ignore=int(i in ignored)) for i, (c, box) in objects]
        categories = [{"id": 10, "name": "cat", "frequency": "f"}, {"id": 20, "name": "dog", "frequency": "r"}]
        return load_annotations(lvis_file([image(1, [], [], 100, 200)], categories, things))

    return load


def test_by_hand(load):
    annotations = load()
    results = load_results([prediction(1, 10, 0.95, FIRST), prediction(1, 10, 0.85, DOG)], annotations)  # cat, dog
    table = breakdown(annotations, results).set_index("group")
    # Cats: one of two found, then a false positive: precision 1 to recall 0.5 (51 of 101 thresholds). Dogs: none.
    assert table.loc["f", "AP50"] == pytest.approx(100 * 51 / 101) and table.loc["r", "AP50"] == 0
    assert table.loc["r", "classification"] == pytest.approx(100) and table.loc["f", "classification"] == 0
    assert table.loc["f", "missed"] == pytest.approx(100 * 50 / 101) and table.loc["r", "missed"] == 0
    assert table.loc["f", "AR"] == 50 and table.loc["all", "AR"] == 25
    assert table.loc["f", "calibration_error"] == pytest.approx(100 * (0.05 + 0.85) / 2)
    # Rows: cat, dog, nothing; columns: taken for cat, dog, missed.
    assert confusions(annotations, results).tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert confusions(annotations, results, score_threshold=0.9).tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]


def test_ignored_objects_have_no_part(load):
    annotations = load(2, 3)
    found = ((10, 0.9, FIRST), (10, 0.8, SECOND), (10, 0.7, DOG), (20, 0.6, SECOND))
    records = [prediction(1, c, s, box) for c, s, box in found]
    results = load_results(records, annotations)
    table = breakdown(annotations, results).set_index("group")
    expected = evaluate(annotations, results, iou_types=("bbox",)).metrics["bbox"]
    assert table.index.tolist() == ["all", "f"]
    assert [*table.loc["f", ["AP50", "AR"]], expected["APf"]] == pytest.approx([100] * 3)
    assert (table[list(COSTS)] == 0).all(axis=None)
    # A dog taken for a cat and a cat for a dog are ignored as objects, not as predictions.
    assert confusions(annotations, results).tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]


def test_without_a_prediction(load):
    annotations = load()
    table = breakdown(annotations, load_results([], annotations)).set_index("group")
    assert (table[["AP50", "AR"]] == 0).all(axis=None)
    assert confusions(annotations, load_results([], annotations)).sum(axis=1).tolist() == [2, 1, 0]


@pytest.fixture
def truth(lvis_file):
    images = [image(i, (1, 2), (), 100, 100) for i in range(1, 11)]
    things = [thing(i, i, 1, [10, 10, 20, 20]) for i in range(1, 10)] + [thing(10, 10, 2, [10, 10, 20, 20])]
    return load_annotations(lvis_file(images, [category(1, "f"), category(2, "r")], things))


def found(i, category_id, score, x=10):
    return prediction(i, category_id, score, [x, 10, 20, 20])


FREQUENT = [found(i, 1, 0.9) for i in range(1, 10)] + [found(i, 1, 0.5, x=70) for i in range(1, 10)]


def test_one_low_rare_detection_is_not_hidden(truth):
    results = load_results([*FREQUENT, found(10, 2, 0.1)], truth)
    scores = f1_by_threshold(truth, results)
    assert scores.loc[0.6].to_dict() == {"r": 0.0, "f": 1.0}
    assert scores.loc[0.1].to_dict() == {"r": 1.0, "f": pytest.approx(2 * 9 / (18 + 9))}
    assert scores["f"].idxmax() == 0.51 and best_threshold(truth, results) == 0.1


def test_among_equals_the_highest_and_a_group_that_finds_nothing_has_no_say(truth):
    wrong = load_results([*FREQUENT, found(10, 2, 0.1, x=70)], truth)
    assert best_threshold(truth, wrong) == 0.9
    assert best_threshold(truth, load_results([found(10, 2, 0.4, x=70)], truth)) == FALLBACK
    assert best_threshold(truth, load_results([], truth)) == FALLBACK
