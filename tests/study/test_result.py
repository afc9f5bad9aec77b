"""What a study has measured: its file, its tables, its comparisons, the committed results."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rio.config import REMOVED
from rio.results.evaluation import METRICS
from rio.study.plan import StudyError, load_study
from rio.study.result import Category, RunResult, StudyResult, format_result, format_table

STUDIES = Path(__file__).resolve().parents[2] / "configs" / "studies"
FREQUENCIES = "r" * 6 + "c" * 6 + "f" * 8


def _rounded(value: float) -> float | None:
    return None if value != value else round(float(value), 4)


def _result(values: dict[tuple[str, int], Sequence[float]], *, kind: str = "bbox", **changes) -> StudyResult:
    """A result from (arm, seed) -> AP of each of 20 categories: 6 rare, 6 common, 8 frequent."""
    categories = [Category(i + 1, f"c{i}", f, 5 * i + 1) for i, f in enumerate(FREQUENCIES)]
    runs = []
    for (arm, seed), ap in values.items():
        ap = np.broadcast_to(np.asarray(ap, float), len(FREQUENCIES))
        mean = {"AP": pd.Series(ap).mean(), **pd.Series(ap).groupby([f"AP{f}" for f in FREQUENCIES]).mean()}
        metrics = {m: _rounded(mean.get(m, 1.0)) for m in METRICS}
        stored = [_rounded(v) for v in ap]
        runs.append(RunResult(arm, seed, 100, 12.5, {kind: metrics}, {kind: stored}, {"rois/share_r": 0.125}))
    arms = list(dict.fromkeys(arm for arm, _ in values))
    about = {
        "name": "made", "role": "report", "trained_on": ["train"], "evaluated_on": ["val"],
        "command": "python -m rio study made.yaml", "machine": "a processor, 2 cores, no GPU",
        "versions": {"rio": "1.0"}, "date": "2026-01-31", "arms": {arm: ["SEED", "1"] for arm in arms},
        "pairs": [(arm, arms[0]) for arm in arms[1:]], "seeds": sorted({seed for _, seed in values}),
        "categories": categories, "runs": runs,
    }  # fmt: skip
    return StudyResult(**(about | changes))


def _row(result: StudyResult, metric: str = "AP") -> pd.Series:
    """The one comparison of a result."""
    rows = result.comparisons()
    return rows[rows["metric"] == metric].iloc[0]


def test_table_has_means_and_spreads():
    made = _result({("rfs", 1): [10.0], ("rfs", 2): [14.0], ("rio", 1): [np.nan] * 6 + [20.0] * 14})
    table = made.table()
    assert table["AP"].tolist() == [12.0, 20.0] and table["seeds"].tolist() == [2, 1]
    assert table["AP_spread"].tolist() == pytest.approx([2.0, np.nan], nan_ok=True)
    lines = format_table(table).splitlines()
    assert lines[0].split() == ["bbox", "AP", "APr", "APc", "APf"]
    assert lines[2].split() == ["rfs", *(["12.0", "±2.0"] * 4)]
    assert lines[3].split() == ["rio", "20.0", "-", "20.0", "20.0"]


def test_a_result_survives_its_file(tmp_path):
    ap = [np.nan, *range(1, 20)]
    made = _result({("a", 1): ap, ("b", 1): [30.0], ("b", 2): [31.5]}, role="tune")
    made.to_json(tmp_path / "study.json")
    again = StudyResult.from_json(tmp_path / "study.json")
    assert again == made and again.runs[0].per_category["bbox"][0] is None
    pd.testing.assert_frame_equal(again.comparisons(), made.comparisons())
    again.to_json(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "study.json").read_bytes()
    assert list(json.loads((tmp_path / "study.json").read_bytes())) == [
        "format", "name", "role", "trained_on", "evaluated_on", "command", "machine", "versions", "date", "arms",
        "comparisons", "seeds", "categories", "runs",
    ]  # fmt: skip
    lines = (tmp_path / "study.json").read_text().splitlines()
    assert sum(line.startswith("  {") for line in lines) == 20 + 3, "a line a category and a run"
    runs = again.per_run()
    assert runs[["arm", "seed"]].values.tolist() == [["a", 1], ["b", 1], ["b", 2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('"format": 1|"format": 2', "format: expected 1"),
        ('"tune"|"tuned"', "Invalid enum value 'tuned'"),
        ('["b", "a"]|["b", "c"]', "comparisons: expected two of a, b, found"),
        ('"arm": "b", "seed": 2|"arm": "b", "seed": 1', r"runs.2.: expected an arm and a seed of the study, once"),
        ('"seed": 2|"seed": 3', r"runs.2.: expected an arm and a seed"),
        ('"segm"|"mask"', "expected one of .'bbox', 'segm', 'boundary', 'bbox_lvis_fixed', .*, found 'mask'"),
        ("[30.0, |[", r"runs.1..per_category.segm: expected 20 values, one per category, found 19"),
        ('"APr": 30.0|"AP2": 30.0', r"runs.1..metrics.segm: expected AP, APr, APc, APf, found .'AP', 'AP2'"),
        ('"runs"|"ruins"', "missing required field `runs`"),
        ("{|", "expected what StudyResult.to_json writes"),
    ],
)
def test_files_that_are_no_result_are_refused(tmp_path, change, message):
    made = _result({("a", 1): [1.0], ("b", 1): [30.0], ("b", 2): [31.5]}, kind="segm", role="tune")
    made.to_json(tmp_path / "study.json")
    old, new = change.split("|")
    (tmp_path / "study.json").write_text((tmp_path / "study.json").read_text().replace(old, new))
    with pytest.raises(StudyError, match=message):
        StudyResult.from_json(tmp_path / "study.json")
    with pytest.raises(FileNotFoundError, match="no such study result"):
        StudyResult.from_json(tmp_path / "none.json")


def test_a_study_without_a_finished_run_can_be_read(tmp_path):
    made = _result({}, arms={"a": [], "b": []}, pairs=[("b", "a")], seeds=[1])
    made.to_json(tmp_path / "study.json")
    again = StudyResult.from_json(tmp_path / "study.json")
    assert again.progress == "0 of 2 runs" and len(again.table()) == 0 and len(again.comparisons()) == 0
    assert len(again.telemetry()) == 0 and "0 of 2 runs finished" in again.to_markdown()
    assert format_result(again).splitlines() == ["made, on val: 0 of 2 runs finished"]


def test_differences_by_hand():
    step = np.r_[[6.0] * 6, [3.0] * 6, [0.0] * 8]  # rare gain 6, common 3, frequent none
    made = _result({("a", 1): [10.0], ("a", 2): [12.0], ("b", 1): 10 + step, ("b", 2): 14 + step})
    rows = made.comparisons()
    assert rows["metric"].tolist() == ["AP", "APr", "APc", "APf"] and (rows["seeds"] == 2).all()
    # seed 1: + step, seed 2: + step + 2; no category differs from its group, so no draw does.
    assert rows["difference"].tolist() == pytest.approx([54 / 20 + 1, 7, 4, 1])
    assert rows["low"].tolist() == pytest.approx(rows["difference"].tolist())
    assert rows["high"].tolist() == pytest.approx(rows["difference"].tolist())
    assert rows["resolved"].tolist() == [True, True, True, False]  # frequent: seed 1 shows no gain at all
    assert rows["seeds_agree"].tolist() == [True, True, True, False]


def test_identical_arms_differ_by_exactly_nothing():
    rng = np.random.default_rng(0)
    ap = {seed: rng.uniform(0, 90, 20) for seed in (1, 2, 3)}
    rows = _result({(arm, seed): ap[seed] for arm in "ab" for seed in ap}).comparisons()
    assert (rows[["difference", "low", "high"]] == 0).all(axis=None)
    assert not rows["resolved"].any() and not rows["seeds_agree"].any()


def test_one_seed_resolves_nothing_nor_do_seeds_that_disagree():
    row = _row(_result({("a", 1): [10.0], ("b", 1): [50.0], ("b", 2): [50.0]}))
    assert (row["seeds"], row["difference"], row["low"]) == (1, 40, 40) and row["seeds_agree"]
    assert not row["resolved"], "seed 2 has no partner"
    row = _row(_result({("a", 1): [10.0], ("a", 2): [10.0], ("b", 1): [30.0], ("b", 2): [9.0]}))
    assert row["difference"] == 9.5 and row["low"] > 0 and not row["seeds_agree"] and not row["resolved"]


def test_classes_that_one_arm_was_not_judged_on_are_left_out():
    ap = np.full(20, 10.0)
    gap, gain = ap.copy(), ap + 2
    gap[0], gain[0], gain[19] = np.nan, 80.0, np.nan
    rows = _result({("a", 1): gap, ("b", 1): gain}).comparisons()
    assert rows["difference"].tolist() == [2, 2, 2, 2]
    # Five rare classes are left: no interval; AP and the others have one.
    assert rows["low"].isna().tolist() == [False, True, False, False]
    nothing = _result({("a", 1): [np.nan] * 6 + [1.0] * 14, ("b", 1): [2.0] * 20})
    assert np.isnan(_row(nothing, "APr")["difference"]) and not _row(nothing, "APr")["resolved"]


def test_tables_for_people():
    step = np.r_[[6.0] * 6, [0.0] * 14]
    made = _result({("a", 1): [10.0], ("a", 2): [12.0], ("b", 1): 10 + step, ("b", 2): 12 + step})
    markdown = made.to_markdown()
    assert "| b | 2 | 12.8 ±1.0 | 17.0 ±1.0 | 11.0 ±1.0 | 11.0 ±1.0 |" in markdown
    assert "| b - a | 2 | +1.8 [+1.8, +1.8] resolved | +6.0 [+6.0, +6.0] resolved | +0.0 [" in markdown
    assert "+0.0 [+0.0, +0.0] not resolved" in markdown and "one in twenty" in markdown
    assert "| a | 0.125 |" in markdown and "`python -m rio study made.yaml`" in markdown
    shown = format_result(made)
    assert "made, on val: 4 of 4 runs finished" in shown
    line = next(line for line in shown.splitlines() if line.startswith("b - a"))
    assert line.split() == ["b", "-", "a", "2", *["*", "+1.8", "[+1.8,", "+1.8]", "*", "+6.0", "[+6.0,", "+6.0]"],
                            *["+0.0", "[+0.0,", "+0.0]", "+0.0", "[+0.0,", "+0.0]"]]  # fmt: skip


@pytest.mark.parametrize("file", sorted((STUDIES / "results").glob("*.json")), ids=lambda file: file.stem)
def test_committed_results_are_of_the_study_beside_them(file):
    """What the README and notebook 04 show: whole, of the study's present arms, its text made from its values."""
    result, planned = StudyResult.from_json(file), load_study(STUDIES / f"{file.stem}.yaml")
    # Keys were removed because of what these studies measured; their arms stay in the results.
    removed = {arm for arm, options in result.arms.items() if REMOVED.keys() & {*options}}
    present = {arm: options for arm, options in result.arms.items() if arm not in removed}
    assert result.complete and present == planned.arms and result.seeds == list(planned.seeds)
    assert tuple(pair for pair in result.pairs if not removed & set(pair)) == planned.comparisons
    assert result.role == ("report" if planned.tune_on is None else "tune")
    assert file.with_suffix(".md").read_text(encoding="utf-8") == result.to_markdown()
