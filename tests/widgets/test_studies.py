"""Views of a study's result: tables, comparisons and findings are made from its numbers, and say what they rest on."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

import rio
from rio import plots
from rio.analysis.runs import METRICS
from rio.study.result import Category, RunResult, StudyResult
from rio.widgets import studies
from tests.support.refused import refused


def rounded(value):
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
                metrics[kind] = dict(zip(METRICS, map(rounded, means), strict=True))
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
    return rio.open_study(tmp_path)


def test_a_study_is_opened_by_file_or_folder(opened, tmp_path):
    assert repr(opened) == repr(rio.open_study(tmp_path / "study.json")) == "Study(made_up, 8 of 8 runs)"
    assert opened.iou_types == ["bbox", "segm"]
    page = opened._repr_html_()
    assert "&lt;go&gt;" in page and "<go>" not in page and "mask AP" in page
    assert "synthetic" not in page
    embedded = studies.Study(measured(evaluated_on=["shapes_demo_val"]))
    assert "synthetic" in embedded._repr_html_()


def test_a_studys_arms_by_hand(opened):
    table = opened.table()
    assert isinstance(table, pd.DataFrame) and type(table[table["seeds"] > 0]) is pd.DataFrame
    row = table.set_index("arm").loc["plus"]
    # rare: 10..15 + 2 + seed, seeds 1 and 2: 12.5 + 2 + 1.5
    assert (row["APr"], row["APr_spread"], row["APf"]) == (16.0, 0.5, 64.0) and np.isnan(row["APc"])
    page = table._repr_html_()
    assert '<td class="rio-number"><b>16.0 ± 0.5</b></td>' in page and '<td class="rio-number">–</td>' in page
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
    assert str(found).splitlines() == [
        "box AP on b, 8 of 8 runs",
        " | resolved gains | the largest | resolved losses | the largest | not resolved",
        "AP | 1 | plus over base +1.0 [+1.0, +1.0] | 1 | worse over base -0.5 [-0.5, -0.5] | 1",
        "APr | 1 | plus over base +2.0 [+2.0, +2.0] | 0 | – | 2",
        "APc | 0 | – | 0 | – | 0",
        "APf | 0 | – | 1 | worse over base -1.0 [-1.0, -1.0] | 2",
    ]
    assert "plus over base +1.0" in found._repr_html_()


def test_a_study_of_one_seed_resolves_nothing():
    one = measured()
    one = measured(seeds=[1], runs=[run for run in one.runs if run.seed == 1])
    assert str(studies.Study(one).findings()).count(" | 0 | – | 0 | – | 3") == 3
    assert "±" not in studies.Study(one).table()._repr_html_().partition("<table")[2]


def test_what_is_not_complete_or_for_tuning_says_so():
    runs = measured().runs[:3]
    begun = studies.Study(measured(runs=runs, role="tune"))
    for view in (begun.table(), begun.comparisons(), begun.findings(), begun):
        page = view._repr_html_()
        assert "3 of 8 runs" in page and "for choosing settings, not a result" in page
    assert "for choosing settings" in begun.copy_table().texts["Markdown, box AP"]


def test_without_a_study_every_view_is_a_sentence(capsys):
    for nothing, words in ((None, "No study was named"), (measured(runs=[]), "no run is finished yet")):
        study = studies.Study(nothing)
        for view in (study.table(), study.comparisons(), study.findings(), study.copy_table(), study):
            assert words in view._repr_html_() and "<table" not in view._repr_html_()
        study.figures()
        assert words in capsys.readouterr().out
        assert study.iou_types == []
    assert rio.open_study(None).result is None


def test_arms_that_are_not_paired_yet():
    study = studies.Study(measured(runs=measured().runs[2:4]))  # both of "plus", none of "base"
    assert len(study.table()) == 1 and study.comparisons().empty
    assert str(study.findings()).splitlines()[2] == "AP | 0 | – | 0 | – | 0"
    study.figures()
    assert len(study.copy_table().texts) == 4


def test_a_study_that_is_none(tmp_path):
    assert "nowhere.json: no such study result" in refused(rio.open_study, tmp_path / "nowhere.json")
    assert "study.json: no such study result" in refused(rio.open_study, tmp_path)
    for content in ("", "[]", "{}", '{"format": 2}', "\xff"):
        (tmp_path / "study.json").write_text(content, encoding="latin-1")
        assert "study.json" in refused(rio.open_study, tmp_path)


def test_a_studys_tables_for_a_paper(opened):
    texts = opened.copy_table().texts
    assert list(texts) == ["Markdown, box AP", "LaTeX, box AP", "Markdown, mask AP", "LaTeX, mask AP"]
    arms, differences, how = (" ".join(text.split()) for text in texts["Markdown, box AP"].split("\n\n"))
    assert "| plus | **40.0 ± 0.5** | **16.0 ± 0.5** | – | **64.0 ± 0.5** |" in arms
    assert "| plus − base | **+1.0** [+1.0, +1.0] | **+2.0** [+2.0, +2.0] | – | +0.0 [+0.0" in differences
    assert "bold where resolved" in how
    latex = " ".join(texts["LaTeX, box AP"].split())
    assert r"mixed & 39.0 $\pm$ 1.5 & 14.0 $\pm$ 3.5 & -- & \textbf{64.0 $\pm$ 0.5} \\" in latex
    assert r"worse $-$ base & $\mathbf{-0.5}$ [$-0.5$, $-0.5$] & $+0.0$" in latex


def test_a_studys_figures(opened):
    before = set(plt.get_fignums())
    assert opened.figures("segm") is None
    labels = [plt.figure(n).axes[0].get_xlabel() for n in plt.get_fignums() if n not in before]
    assert labels == ["mask AP, %", "mask AP, difference in points"]
    plt.close("all")
