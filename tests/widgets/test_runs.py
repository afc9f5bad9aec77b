"""Finished runs: which are found, what is refused, and that every number is the evaluation's own."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

import matplotlib.pyplot as plt

from rio import plots, widgets
from rio.results.errors import find_errors
from rio.study.result import Category, RunResult, StudyResult
from rio.widgets import runs as results
from tests.support import finished_runs, tiny_shapes


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three arms of two seeds on the tiny set."""
    root = tmp_path_factory.mktemp("study")
    return finished_runs.make(root / "runs", tiny_shapes.draw(root), seeds=(1, 2))


@pytest.fixture(scope="module")
def runs(study):
    return widgets.open_runs(study)


@pytest.fixture
def copy(study, tmp_path):
    return shutil.copytree(study, tmp_path / "runs")


def refused(call, *args, **kwargs):
    with pytest.raises(widgets.NotebookError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------- finding


def test_finds_arms_and_seeds_baseline_first(runs):
    assert runs.arms == ["none", "rfs", "rio"]
    assert [seed for _, seed in runs.folders] == ["1", "2"] * 3
    assert "6 finished runs" in runs._repr_html_()


def test_takes_one_run_several_folders_or_names_for_them(study):
    assert widgets.open_runs(study / "rio-seed1").arms == ["rio"]
    assert len(widgets.open_runs([study / "rio-seed1", study / "rfs-seed2"]).folders) == 2
    assert widgets.open_runs({"mine": study / "rio-seed2", "theirs": study / "none-seed1"}).arms == ["mine", "theirs"]


def test_no_run_says_what_to_do(tmp_path, copy):
    for where in (tmp_path / "nowhere", [], tmp_path):
        assert "make demo" in refused(widgets.open_runs, where)
    (copy / "rio-seed1" / "evaluation.json").unlink()
    assert "Begun and not finished" in refused(widgets.open_runs, copy / "rio-seed1")


def test_two_runs_of_one_name(study, copy):
    assert "two runs are called" in refused(widgets.open_runs, [study / "rio-seed1", copy / "rio-seed1"])


def test_runs_on_different_data(copy, tmp_path):
    file = copy / "rio-seed1" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["DATASETS"]["TEST"] = ["elsewhere.json@images"]
    file.write_text(yaml.safe_dump(config))
    assert "different data sets" in refused(widgets.open_runs, copy)


def test_runs_on_different_categories(copy):
    file = copy / "rio-seed1" / "evaluation.json"
    content = json.loads(file.read_text())
    content["per_category"] = {name: values[:-1] for name, values in content["per_category"].items()}
    file.write_text(json.dumps(content))
    assert "different categories" in refused(widgets.open_runs, copy)


@pytest.mark.parametrize("broken", ["", "{", "[]", "{}"])
def test_broken_evaluation(copy, broken):
    (copy / "rio-seed1" / "evaluation.json").write_text(broken)
    assert "evaluation.json" in refused(widgets.open_runs, copy)


@pytest.mark.parametrize(
    "broken", ["{", "- 1", "DATASETS: 3", "DATASETS: {TEST: []}", "a: !!python/object:os.system x"]
)
def test_broken_config(study, tmp_path, broken):
    shutil.copytree(study / "rio-seed1", tmp_path / "rio-seed1")
    (tmp_path / "rio-seed1" / "config.yaml").write_text(broken)
    assert "config.yaml" in refused(widgets.open_runs, tmp_path)


def test_a_config_may_be_missing_where_the_data_is_named(study, tmp_path, runs):
    shutil.copytree(study / "rio-seed1", tmp_path / "rio-seed1")
    (tmp_path / "rio-seed1" / "config.yaml").unlink()
    assert "ground_truth" in refused(widgets.open_runs, tmp_path)
    opened = widgets.open_runs(tmp_path, ground_truth=runs._truth_name)
    assert opened.truth.num_images == runs.truth.num_images
    assert opened.per_category()["image_count"].tolist() == runs.truth.image_count.tolist()


def test_detectron2_dumps_tuples_as_text():
    assert results._listed("('a.json@b', 'c')") == ["a.json@b", "c"]
    assert results._listed("name") == ["name"]
    assert results._listed(("a", "b")) == ["a", "b"]
    assert results._listed(None) == []


# ---------------------------------------------------------------------------------------------------- numbers


def test_means_over_seeds_are_the_evaluations(runs):
    table = runs.by_group("segm").set_index("arm")
    own = [e.metrics["segm"]["APc"] for (arm, _), e in runs.evaluations.items() if arm == "rio"]
    row = table.loc["RIO (RFS + bank), 2 seeds"]
    assert row["APc"] == pytest.approx(np.mean(own))
    assert (row["APc_low"], row["APc_high"]) == pytest.approx((min(own), max(own)))


def test_interval_of_three_seeds_is_students():
    low, high = results._interval(np.array([1.0, 2.0, 3.0]))
    half = 4.303 / np.sqrt(3)  # Student's with 2 degrees of freedom, which student_t gives within 1 %
    assert (low, high) == pytest.approx((2 - half, 2 + half), abs=0.01 * half)
    assert np.isnan(results._interval(np.array([1.0, np.nan]))).all()


def test_differences_by_hand(runs):
    table = runs.difference("rio", "none")
    mean = {
        arm: np.mean([e.per_category["AP_bbox"] for (a, _), e in runs.evaluations.items() if a == arm], axis=0)
        for arm in ("rio", "none")
    }
    np.testing.assert_allclose(table["difference"], mean["rio"] - mean["none"])
    assert table.attrs == {"arm": "RIO (RFS + bank)", "baseline": "no resampling", "kind": "box AP"}
    assert runs.difference().attrs["baseline"] == "RFS"
    assert "'rios'" in refused(runs.difference, "rios")
    assert "segment" in refused(runs.by_group, "segment")


def test_counts_are_those_of_training(runs):
    train = widgets.open_dataset(runs._train_name)
    assert runs.per_category().head(6)["image_count"].tolist() == train.table["image_count"].tolist()


def test_evaluated_anew_gives_the_same(runs):
    again = runs.recomputed()
    assert len(again) == 12
    np.testing.assert_allclose(again["stored"], again["recomputed"])


def test_every_object_has_one_outcome(runs):
    table = runs.errors(score_threshold=0.0)
    assert set(table["arm"]) == {"no resampling, 2 seeds", "RFS, 2 seeds", "RIO (RFS + bank), 2 seeds"}
    objects = table[table["part"] == "objects"]
    assert set(objects["kind"]) == set(results.OUTCOMES)
    np.testing.assert_allclose(objects.groupby(["arm", "frequency"])["per_100"].sum(), 100)
    found = objects[objects["kind"] == "correct"].groupby("arm")["count"].sum()
    assert found["no resampling, 2 seeds"] < found["RIO (RFS + bank), 2 seeds"]
    nothing = runs.errors(score_threshold=1.0)
    assert (nothing.loc[nothing["kind"] == "missed", "per_100"] == 100).all()
    assert (nothing.loc[nothing["part"] == "predictions", "count"] == 0).all()


def test_kinds_of_errors_are_those_of_match(runs):
    key = ("rio", "1")
    rows = find_errors(runs.truth, runs.folders[key] / "instances_results.json", score_threshold=0.2)
    own = widgets.open_runs(runs.folders[key]).errors(score_threshold=0.2)
    wrong = own[own["part"] == "predictions"].groupby("kind")["count"].sum()
    for kind in ("classification", "localisation", "both", "duplicate", "background"):
        assert wrong[kind] == (rows["kind"] == kind).sum()
    correct = own[(own["part"] == "objects") & (own["kind"] == "correct")]["count"].sum()
    assert correct == (rows["kind"] == "correct").sum()


def test_results_of_another_data_set(copy):
    file = copy / "rio-seed1" / "instances_results.json"
    records = json.loads(file.read_text())
    records[3]["category_id"] = 999
    file.write_text(json.dumps(records))
    opened = widgets.open_runs(copy)
    for call in (opened.errors, opened.curves, opened.recomputed):
        assert "category_id" in refused(call)
    file.unlink()
    assert "instances_results.json" in refused(widgets.open_runs(copy).errors)


# --------------------------------------------------------------------------------------------------- reported


def test_reported_numbers_stand_beside_lvis_alone(runs, monkeypatch):
    assert runs.reported("segm").empty
    assert not runs.by_group()["reported"].any()
    monkeypatch.setattr(runs, "_truth_name", "lvis_v1_val")
    table = runs.by_group("segm")
    assert table["reported"].tolist() == [True] * 6 + [False] * 3
    assert table["arm"].str.endswith("(reported)").tolist() == table["reported"].tolist()
    row = table.set_index("arm").loc["RFS R50 1x (reported)"]
    assert row[["AP", "APr", "APc", "APf"]].tolist() == [22.2, 11.5, 21.2, 28.0]
    assert "(reported)" in runs.markdown("segm")
    ax = plots.ap_by_group(table)
    hatched = [bar for bar in ax.patches if bar.get_hatch()]
    assert len(hatched) == 5 * 4 + 1  # five methods with all groups, and one that published AP alone
    assert "RIO" not in " ".join(table["arm"][table["reported"]]), "RIO has published no number on v1"


# ------------------------------------------------------------------------------------------------------ views


def test_curves_follow_the_choice_of_category(runs):
    choice, chart, status = runs.curves().children
    assert "2 training images" in choice.options[0][0] or runs._image_count.min() != 2
    assert [series["name"] for series in chart.spec["series"]] == [runs.title(arm) for arm in runs.arms]
    before = status.value
    choice.value = choice.options[-1][1]
    assert status.value != before
    first = next(iter(runs._anew.values())).precision_recall(int(runs.truth.category_ids[choice.value]))
    assert len(chart.spec["series"][0]["y"]) == len(first)
    assert "'wolf'" in refused(runs.curves, "wolf")
    assert runs.curves(runs.truth.category_names[1]).children[0].value == 1


def test_tables_for_a_paper(runs):
    markdown = runs.markdown().splitlines()
    assert markdown[0] == "| box AP | AP | APr | APc | APf |"
    assert len({line.count("|") for line in markdown}) == 1
    latex = runs.latex("segm")
    assert latex.count(r"\\") == 4
    assert " $\\pm$ " in latex
    assert results._escape_latex("a_b & 50% #1") == r"a\_b \& 50\% \#1"
    assert list(runs.copy_table().texts) == ["Markdown, box AP", "LaTeX, box AP", "Markdown, mask AP", "LaTeX, mask AP"]


def test_figures(runs):
    plots.ap_by_group(runs.by_group())
    ax = plots.ap_by_image_count(runs.per_category())
    assert len(ax.lines) == 3
    ax = plots.ap_difference(runs.difference())
    assert "RIO (RFS + bank) minus RFS" in ax.get_title(loc="left")
    ax = plots.errors_by_group(runs.errors())
    assert ax.texts[0].get_text().startswith("rare, ")
    widths = [bar.get_width() for bar in ax.patches if bar.get_x() < 100]
    assert sum(widths) == pytest.approx(100 * 9)  # three arms, three groups, every object once
    nothing = pd.DataFrame({"name": ["a"], "frequency": ["r"], "image_count": [1], "difference": [np.nan]})
    with pytest.raises(plots.PlotError, match="none"):
        plots.ap_difference(nothing)


# ---------------------------------------------------------------------------------------------------- studies


def _rounded(value):
    return None if np.isnan(value) else round(float(value), 4)


def measured(**changes) -> StudyResult:
    """Twelve classes, rare and frequent; "plus" finds 2 points more of the rare ones, "mixed" 4 and then 4
    fewer, "worse" 1 fewer of the frequent ones; masks score half of what boxes do."""
    categories = [Category(k + 1, f"toy {k}", "r" if k < 6 else "f", 3 if k < 6 else 200) for k in range(12)]
    runs = []
    for arm, (r, f) in {"base": (0, 0), "plus": (2, 0), "mixed": (4, 0), "worse": (0, -1)}.items():
        for seed in (1, 2):
            rare = r if arm != "mixed" or seed == 1 else -r
            metrics, values = {}, {}
            for kind, scale in (("bbox", 1.0), ("segm", 0.5)):
                first = [scale * (10 + k + rare + seed) for k in range(6)]
                last = [scale * (60 + k + f + seed) for k in range(6)]
                values[kind] = first + last
                means = (np.mean(first + last), np.mean(first), np.nan, np.mean(last))
                metrics[kind] = dict(zip(results.METRICS, map(_rounded, means), strict=True))
            runs.append(RunResult(arm, seed, 40, 1.0, metrics, values))
    fields = {
        "name": "made_up", "role": "report", "trained_on": ["a"], "evaluated_on": ["b"], "command": "<go>",
        "machine": "", "versions": {}, "date": "", "arms": {"base": [], "plus": [], "mixed": [], "worse": []},
        "pairs": [("plus", "base"), ("mixed", "base"), ("worse", "base")], "seeds": [1, 2],
        "categories": categories, "runs": runs,
    }  # fmt: skip
    return StudyResult(**fields | changes)


@pytest.fixture
def opened(tmp_path):
    measured().to_json(tmp_path / "study.json")
    return widgets.open_study(tmp_path)


def test_a_study_is_opened_by_file_or_folder(opened, tmp_path):
    assert repr(opened) == repr(widgets.open_study(tmp_path / "study.json")) == "Study(made_up, 8 of 8 runs)"
    assert opened.iou_types == ["bbox", "segm"]
    page = opened._repr_html_()
    assert "&lt;go&gt;" in page and "<go>" not in page and "mask AP" in page
    assert "synthetic" not in page
    embedded = results.Study(measured(evaluated_on=["shapes_demo_val"]))
    assert "synthetic" in embedded._repr_html_()


def test_a_studys_arms_by_hand(opened):
    table = opened.table()
    assert isinstance(table, pd.DataFrame) and type(table[table["seeds"] > 0]) is pd.DataFrame
    row = table.set_index("arm").loc["plus"]
    # rare: 10..15 + 2 + seed, seeds 1 and 2: 12.5 + 2 + 1.5
    assert (row["APr"], row["APr_spread"], row["APf"]) == (16.0, 0.5, 64.0) and np.isnan(row["APc"])
    page = table._repr_html_()
    assert '<td class="rio-number">16.0 ± 0.5</td>' in page and '<td class="rio-number">–</td>' in page
    assert "box AP on b, 8 of 8 runs" in page


def test_a_studys_comparisons_show_interval_and_verdict(opened):
    table = opened.comparisons()
    assert table["metric"].tolist() == ["AP", "APr", "APc", "APf"] * 3
    plus = table[table["arm"] == "plus"].set_index("metric")
    assert plus.loc["APr", ["difference", "low", "high", "resolved"]].tolist() == [2.0, 2.0, 2.0, True]
    page = table._repr_html_()
    assert "plus − base" in page and "+2.0 [+2.0, +2.0] ●" in page and "+0.0 [+0.0, +0.0] ○" in page
    assert opened.comparisons("segm")["difference"].iloc[0] == 0.5
    plots.paired_differences(table)


def test_other_pairs_can_be_compared(opened):
    table = opened.comparisons(pairs=[("plus", "worse")])
    assert table["difference"].dropna().tolist() == [1.5, 2.0, 1.0]
    assert "'plsu': expected one of base, plus" in refused(opened.comparisons, pairs=[("plsu", "base")])
    assert "'segment'" in refused(opened.comparisons, "segment")


def test_findings_are_made_from_the_numbers(opened):
    found = opened.findings()
    assert found.sentences == [
        "All categories. Resolved gains: plus over base +1.0 [+1.0, +1.0]. "
        "Resolved losses: worse over base -0.5 [-0.5, -0.5]. Not resolved: mixed over base.",
        "Rare categories. Resolved gains: plus over base +2.0 [+2.0, +2.0]. "
        "Resolved losses: none. Not resolved: mixed over base; worse over base.",
        "Common categories. Nothing to compare.",
        "Frequent categories. Resolved gains: none. Resolved losses: worse over base -1.0 [-1.0, -1.0]. "
        "Not resolved: plus over base; mixed over base.",
    ]
    assert str(found).startswith("box AP on b, 8 of 8 runs\nAll")
    assert "<b>All categories.</b> Resolved gains: plus over base" in found._repr_html_()


def test_a_study_of_one_seed_resolves_nothing():
    one = measured()
    one = measured(seeds=[1], runs=[run for run in one.runs if run.seed == 1])
    assert str(results.Study(one).findings()).count("Resolved gains: none. Resolved losses: none.") == 3
    assert "±" not in results.Study(one).table()._repr_html_().partition("<table")[2]


def test_what_is_not_complete_or_for_tuning_says_so():
    runs = measured().runs[:3]
    begun = results.Study(measured(runs=runs, role="tune"))
    for view in (begun.table(), begun.comparisons(), begun.findings(), begun):
        page = view._repr_html_()
        assert "3 of 8 runs" in page and "for choosing settings, no result" in page
    assert "for choosing settings" in begun.copy_table().texts["Markdown, box AP"]


def test_without_a_study_every_view_is_a_sentence(capsys):
    for nothing, words in ((None, "No study was named"), (measured(runs=[]), "no run is finished yet")):
        study = results.Study(nothing)
        for view in (study.table(), study.comparisons(), study.findings(), study.copy_table(), study):
            assert words in view._repr_html_() and "<table" not in view._repr_html_()
        study.figures()
        assert words in capsys.readouterr().out
        assert study.iou_types == []
    assert widgets.open_study(None).result is None


def test_arms_that_are_not_paired_yet():
    study = results.Study(measured(runs=measured().runs[2:4]))  # both of "plus", none of "base"
    assert len(study.table()) == 1 and study.comparisons().empty
    assert study.findings().sentences[0] == "All categories. Nothing to compare."
    study.figures()
    assert len(study.copy_table().texts) == 4


def test_a_study_that_is_none(tmp_path):
    assert "nowhere.json: no such study result" in refused(widgets.open_study, tmp_path / "nowhere.json")
    assert "study.json: no such study result" in refused(widgets.open_study, tmp_path)
    for content in ("", "[]", "{}", '{"format": 2}', "\xff"):
        (tmp_path / "study.json").write_text(content, encoding="latin-1")
        assert "study.json" in refused(widgets.open_study, tmp_path)


def test_a_studys_tables_for_a_paper(opened):
    texts = opened.copy_table().texts
    assert list(texts) == ["Markdown, box AP", "LaTeX, box AP", "Markdown, mask AP", "LaTeX, mask AP"]
    arms, differences, how = texts["Markdown, box AP"].split("\n\n")
    assert "| plus | 40.0 ± 0.5 | 16.0 ± 0.5 | – | 64.0 ± 0.5 |" in arms.splitlines()
    assert "| plus − base | **+1.0** [+1.0, +1.0] | **+2.0** [+2.0, +2.0] | – | +0.0 [+0.0" in differences
    assert "bold where resolved" in how
    latex = texts["LaTeX, box AP"]
    assert r"plus & 40.0 $\pm$ 0.5 & 16.0 $\pm$ 0.5 & -- & 64.0 $\pm$ 0.5 \\" in latex
    assert r"worse $-$ base & $\mathbf{-0.5}$ [$-0.5$, $-0.5$] & $+0.0$" in latex


def test_a_studys_figures(opened):
    before = set(plt.get_fignums())
    assert opened.figures("segm") is None
    labels = [plt.figure(n).axes[0].get_xlabel() for n in plt.get_fignums() if n not in before]
    assert labels == ["mask AP, %", "mask AP, difference in points"]
    plt.close("all")


def test_counts_are_those_of_the_training_set_of_most_runs(copy, runs):
    file = copy / "rio-seed1" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["DATASETS"]["TRAIN"] = ["balanced.json@images"]  # is not there, and is not looked for
    file.write_text(yaml.safe_dump(config))
    assert widgets.open_runs(copy).per_category().equals(runs.per_category())
