"""The default threshold, by hand."""

from __future__ import annotations

import json

import pytest

from rio.data.load import load_annotations
from rio.results.reading import load_results
from rio.results.thresholds import FALLBACK, best_threshold, f1_by_threshold
from tests.support.result_files import category, image, thing


@pytest.fixture
def truth(tmp_path):
    images = [image(i, (1, 2), (), 100, 100) for i in range(1, 11)]
    things = [thing(i, i, 1, [10, 10, 20, 20]) for i in range(1, 10)] + [thing(10, 10, 2, [10, 10, 20, 20])]
    file = tmp_path / "truth.json"
    file.write_text(
        json.dumps({"images": images, "categories": [category(1, "f"), category(2, "r")], "annotations": things})
    )
    return load_annotations(file)


def found(i, category, score, x=10):
    return {"image_id": i, "category_id": category, "bbox": [x, 10, 20, 20], "score": score}


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
