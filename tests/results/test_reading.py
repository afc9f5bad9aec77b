"""Results files: every record becomes a row of columns, or an error that names it."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from rio.data.load import load_annotations
from rio.data.masks import rle_counts
from rio.results import reading
from rio.results.evaluation import evaluate
from rio.results.reading import ResultsError, load_results
from tests.support.annotation_files import write
from tests.support.result_files import GOOD, HEIGHT, MASK, WIDTH, category, coco_file, image, prediction, rle, thing


def mask_of(counts, size=(HEIGHT, WIDTH)):
    return {**MASK, "segmentation": {"size": list(size), "counts": counts}}


def without(key):
    return {k: v for k, v in GOOD.items() if k != key}


BAD = {
    "unknown image": ([GOOD, {**GOOD, "image_id": 77}], r"record 1, key 'image_id'.*2 ids.*77.*another data set"),
    "image id as text": ([{**GOOD, "image_id": "5"}], r"record 0, key 'image_id'.*`int`.*`str`"),
    "image id missing": ([without("image_id")], r"key 'image_id'.*no such key"),
    "huge image id": ([{**GOOD, "image_id": 2**70}], r"key 'image_id'.*`int`"),
    "unknown category": ([GOOD, GOOD, {**GOOD, "category_id": 0}], r"record 2, key 'category_id'.*found 0.*0-based"),
    "category missing": ([without("category_id")], r"key 'category_id'.*no such key"),
    "NaN score": ([GOOD, {**GOOD, "score": float("nan")}], r"record 1, key 'score'.*finite.*nan.*diverged"),
    "infinite score": ([{**GOOD, "score": float("inf")}], r"record 0, key 'score'.*finite.*inf"),
    "score missing": ([without("score")], r"key 'score'.*no such key"),
    "score null": ([{**GOOD, "score": None}], r"key 'score'.*null"),
    "three numbers": ([{**GOOD, "bbox": [1, 2, 3]}], r"record 0, key 'bbox'.*length 4.*found 3"),
    "box of text": ([{**GOOD, "bbox": [1, 2, 3, "4"]}], r"key 'bbox\[3\]'.*`float`.*`str`"),
    "NaN in a box": ([{**GOOD, "bbox": [1, 2, 3, float("nan")]}], r"key 'bbox'.*finite"),
    "both sides negative": ([{**GOOD, "bbox": [9, 9, -3, -4]}], r"key 'bbox'.*corners"),
    "neither": ([without("bbox")], r"record 0.*a bbox or a segmentation.*neither"),
    "box, then mask": ([GOOD, MASK], r"record 1, key 'bbox'.*as in record 0"),
    "mask, then both": ([MASK, {**MASK, **GOOD}], r"record 1, key 'bbox'.*no bbox"),
    "not a record": ([GOOD, 7], r"record 1, key '-'.*object.*`int`"),
    "polygon": ([{**MASK, "segmentation": [[1, 1, 9, 1]]}], r"record 0, key 'segmentation'.*object.*array.*pycoco"),
    "no counts": ([{**MASK, "segmentation": {"size": [HEIGHT, WIDTH]}}], r"key 'segmentation.counts'.*no such key"),
    "counts a number": ([mask_of(5)], r"counts'.*`str . array`.*`int`"),
    "bad size": ([{**MASK, "segmentation": {**MASK["segmentation"], "size": [HEIGHT]}}], r"size'.*length 2.*found 1"),
    "size swapped": (
        [mask_of("0", (WIDTH, HEIGHT))],
        r"record 0, key 'segmentation.size'.*\[90, 120\].*\[120, 90\].*transposed",
    ),
    "score of 400 digits": ([{**GOOD, "score": 10**400}], r"record 0, key 'score'.*out of range"),
    "box of 400 digits": ([{**GOOD, "bbox": [1, 2, 10**400, 4]}], r"record 0, key 'bbox.2.'.*out of range"),
    "size of 400 digits": ([mask_of("0", (10**400, 4))], r"size\[0\]'.*2147483647"),
    "runs of 400 digits": ([mask_of([10**400])], r"counts\[0\]'.*`int`"),
    "mask too short": ([MASK, mask_of("01")], r"record 1, key 'segmentation.counts'.*10800 px.*found 1"),
    "mask too long": ([mask_of("PPPPP1")], r"counts'.*10800"),
    "counts no RLE": ([mask_of("\u00e4~")], r"counts'.*ASCII"),
    "a run too long": ([mask_of("oooooooo1")], r"record 0, key 'segmentation.counts'"),
    "runs too short": ([mask_of([3, 4])], r"counts'.*10800.*found 7"),
    "negative runs": ([mask_of([-3, 10803])], r"counts\[0\]'.*`int`"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("source", ["list", "file"])
def test_bad_results_are_named(kind, source, small, tmp_path):
    records, message = BAD[kind]
    if source == "file":
        path = write(tmp_path / "dt.json", records)
        message = r"dt\.json: " + (message if message.startswith("record") else ".*" + message)
        records = path
    with pytest.raises(ResultsError, match="(?s)" + message):
        evaluate(small, records, iou_types=None)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty file"),
        ("  \n", "truncated"),
        ('[{"image_id": 5, "category_id": 8, "sco', "valid JSON.*truncated"),
        (json.dumps([GOOD])[:-1], "truncated"),
        ("{}", "a list of records, found an object"),
        ('{"images": [], "annotations": []}', "'annotations'.*ground-truth file"),
        ("3", "a list of records, found int"),
        ("hello", "valid JSON"),
        ("[" * 100_000, "nesting too deep|truncated"),
        ("\xff\xfe", "valid JSON"),
    ],
)
def test_files_that_are_no_results(text, message, small, tmp_path):
    path = tmp_path / "dt.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ResultsError, match=f"(?s)dt\\.json: .*({message})"):
        load_results(path, small)


def test_a_missing_file_and_a_wrong_type(small, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json: no such results file.*instances_results\.json"):
        load_results(tmp_path / "nothing.json", small)
    with pytest.raises(ResultsError, match="expected a list of records, found set"):
        load_results({1, 2}, small)


def test_results_of_another_ground_truth(small, tmp_path):
    results = load_results([GOOD], small)
    other = load_annotations(coco_file(tmp_path, [], images=(5, 9, 11)))
    assert load_results(results, small) is results
    with pytest.raises(ResultsError, match="another ground truth"):
        evaluate(other, results)


def test_a_file_is_read_in_pieces_whatever_it_holds(small, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    note = 'text with "}, {" and },{ in it'
    extra = {"a": [1, {"b": 2}]}
    records = [
        prediction(
            int(rng.choice([5, 9])), int(rng.choice([3, 8])), float(rng.random()), rng.uniform(1, 50, 4),
            segmentation=rle(rng.uniform(1, 40, 4)), extra=extra,
        )
        for _ in range(60)
    ]  # fmt: skip
    for indent, noted in ((None, False), (1, False), (None, True)):
        if noted:
            records[30]["note"] = note
        path = tmp_path / "dt.json"
        path.write_text(json.dumps(records, indent=indent))
        for size in (16, 333, 1 << 20):
            monkeypatch.setattr(reading, "PIECE_BYTES", size)
            results = load_results(path, small)
            np.testing.assert_array_equal(results.scores, [r["score"] for r in records])
            np.testing.assert_array_equal(results.boxes, [r["bbox"] for r in records])
            np.testing.assert_array_equal(small.image_ids[results.image_index], [r["image_id"] for r in records])
            np.testing.assert_array_equal(small.category_ids[results.class_id], [r["category_id"] for r in records])
            assert [r["counts"] for r in results.rles] == [r["segmentation"]["counts"] for r in records]
    monkeypatch.setattr(reading, "PIECE_BYTES", 333)
    records[41]["score"] = "high"
    with pytest.raises(ResultsError, match="record 41, key 'score'.*str"):
        load_results(write(path, records), small)
    del records[41:]
    records[40].pop("bbox")
    with pytest.raises(ResultsError, match="record"):
        load_results(write(path, records), small)


def test_lists_may_hold_numpy_numbers_bytes_and_plain_runs(small):
    plain = load_results([{**MASK, **GOOD}], small)
    counts = coco_mask.frPyObjects([[1, 2, 31, 2, 31, 42, 1, 42]], HEIGHT, WIDTH)[0]["counts"]
    runs = load_results([mask_of([9, 4, 10787])], small)
    assert runs.mask_areas.tolist() == [4]
    assert coco_mask.area(runs.rles[0]) == 4
    box, mask = np.array([1.0, 2, 3, 4], np.float32), {"size": (HEIGHT, WIDTH), "counts": counts}
    record = prediction(np.int64(5), np.int32(8), np.float32(0.5), box, segmentation=mask)
    numpy = load_results([record | {"bbox": box}], small)
    assert numpy.boxes.tolist() == plain.boxes.tolist() and [*numpy.rles] == [*plain.rles]
    assert numpy.image_index.tolist() == [0] and numpy.class_id.tolist() == [1] and len(numpy) == 1


def test_rows_of_an_image_come_by_score_ties_by_position(small):
    results = load_results(
        [prediction(i, 3, s, [0, 0, 1, 1]) for i, s in ((9, 0.5), (5, 0.2), (9, 0.7), (9, 0.5), (5, 0.3))], small
    )
    assert results.of_image(0).tolist() == [4, 1] and results.of_image(1).tolist() == [2, 0, 3]
    assert results.capped(2).tolist() == [1, 4, 0, 2] and results.capped(-1).tolist() == [1, 4, 0, 2, 3]


def test_a_mask_that_is_not_judged_is_not_decoded(lvis_file, tmp_path):
    path = lvis_file([image(1)], [category(1), category(2)], [thing(1, 1, 1, [10, 10, 20, 20])])
    records = [
        prediction(1, 1, 0.9, [10, 10, 20, 20], segmentation=rle([10, 10, 20, 20])),
        prediction(1, 2, 0.8, [1, 1, 5, 5], segmentation={"size": [HEIGHT, WIDTH], "counts": "01"}),
    ]
    results = write(tmp_path / "dt.json", records)
    result = evaluate(path, results)
    assert result.metrics["segm"]["AP"] == pytest.approx(100)
    assert result.info["predictions_segm"]["unverified"] == 1
    with pytest.raises(ResultsError, match="record 1, key 'segmentation.counts'"):
        load_results(results, load_annotations(path))
    records[1]["category_id"] = 1  # judged
    with pytest.raises(ResultsError, match="record 1, key 'segmentation.counts'"):
        evaluate(path, write(results, records))


@pytest.mark.parametrize("box", [[9, 9, -3, -4], [1, 2, 10**400, 4]])
def test_boxes_beside_masks_are_checked_also_where_only_masks_are_evaluated(box, small, tmp_path):
    records = [{**MASK, "bbox": [1, 2, 3, 4]}, {**MASK, "bbox": box}]
    with pytest.raises(ResultsError, match="record 1, key 'bbox"):
        evaluate(small, write(tmp_path / "dt.json", records), iou_types=("segm",))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_masks_are_taken_if_and_only_if_they_are_whole(data, small):
    """Runs of the right sum with swapped, doubled, cut and changed characters."""
    runs = data.draw(st.lists(st.integers(0, 900), min_size=1, max_size=9))
    runs.append(WIDTH * HEIGHT - sum(runs))
    differences = [run - runs[i - 2] if i > 2 else run for i, run in enumerate(runs)]
    counts = "".join(map(coco_number, differences))
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(counts)))
        new = data.draw(st.text(st.characters(min_codepoint=47, max_codepoint=112), max_size=2))
        counts = counts[:at] + new + counts[at + data.draw(st.integers(0, 2)) :]
    try:
        found = rle_counts(counts)
        whole = found.sum() == WIDTH * HEIGHT
    except ValueError:
        whole = False
    record = mask_of(counts)
    if whole:
        assert load_results([MASK, record], small).mask_areas[1] == found[1::2].sum()
    else:
        with pytest.raises(ResultsError, match="record 1, key 'segmentation.counts'"):
            load_results([MASK, record], small)


def coco_number(value):
    """One number of a compressed RLE: 5 bits a character, lowest first, two's complement."""
    text = ""
    while True:
        digit, value = value & 31, value >> 5
        more = value != (-1 if digit & 16 else 0)
        text += chr(48 + digit + 32 * more)
        if not more:
            return text
