"""Costs of errors against hotcoco's TIDE, recall and calibration against hotcoco, and small cases by hand."""

from __future__ import annotations

import hotcoco
import numpy as np
import pytest

from rio.data.load import load_annotations
from rio.results.breakdown import COSTS, breakdown, confusions
from rio.results.evaluation import evaluate
from rio.results.reading import load_results
from tests.support import result_files
from tests.support.finished_runs import invented
from tests.support.result_files import image, thing

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


@pytest.fixture
def two_cats_and_a_dog(tmp_path):
    boxes = [[10.0 + 40 * i, 10.0, 20.0, 20.0] for i in range(3)]
    things = [thing(1 + i, 1, c, b) for i, (c, b) in enumerate(zip((10, 10, 20), boxes, strict=True))]
    categories = [{"id": 10, "name": "cat", "frequency": "f"}, {"id": 20, "name": "dog", "frequency": "r"}]
    return load_annotations(result_files.lvis_file(tmp_path, [image(1, [], [], 100, 200)], categories, things)), boxes


def test_by_hand(two_cats_and_a_dog):
    annotations, (first, _, dog) = two_cats_and_a_dog
    records = [
        {"image_id": 1, "category_id": 10, "score": 0.95, "bbox": first},
        {"image_id": 1, "category_id": 10, "score": 0.85, "bbox": dog},  # a dog taken for a cat
    ]
    results = load_results(records, annotations)
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


def test_ignored_objects_have_no_part(two_cats_and_a_dog, tmp_path):
    annotations, (first, second, dog) = two_cats_and_a_dog
    things = [thing(1 + i, 1, c, b) for i, (c, b) in enumerate(zip((10, 10, 20), (first, second, dog), strict=True))]
    things[1]["ignore"] = things[2]["ignore"] = 1
    categories = [{"id": 10, "name": "cat", "frequency": "f"}, {"id": 20, "name": "dog", "frequency": "r"}]
    path = result_files.lvis_file(tmp_path, [image(1, [], [], 100, 200)], categories, things, "ignored.json")
    annotations = load_annotations(path)
    boxes = ((10, 0.9, first), (10, 0.8, second), (10, 0.7, dog), (20, 0.6, second))
    records = [{"image_id": 1, "category_id": c, "score": s, "bbox": b} for c, s, b in boxes]
    results = load_results(records, annotations)
    table = breakdown(annotations, results).set_index("group")
    expected = evaluate(annotations, results, iou_types=("bbox",)).metrics["bbox"]
    assert table.index.tolist() == ["all", "f"]
    assert [*table.loc["f", ["AP50", "AR"]], expected["APf"]] == pytest.approx([100] * 3)
    assert (table[list(COSTS)] == 0).all(axis=None)
    # A dog taken for a cat and a cat for a dog are ignored as objects, not as predictions.
    assert confusions(annotations, results).tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]


def test_without_a_prediction(two_cats_and_a_dog):
    annotations, _ = two_cats_and_a_dog
    table = breakdown(annotations, load_results([], annotations)).set_index("group")
    assert (table[["AP50", "AR"]] == 0).all(axis=None)
    assert confusions(annotations, load_results([], annotations)).sum(axis=1).tolist() == [2, 1, 0]
