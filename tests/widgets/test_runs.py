"""Views of finished runs: curves, tables to copy, errors in one sentence. The numbers: tests/analysis/test_runs.py."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

import rio
from rio import plots
from rio.plots.style import DRAWN
from tests.support.refused import refused


@pytest.fixture(scope="module")
def runs(finished_study):
    return rio.open_runs(finished_study)


def test_runs_show_themselves(runs):
    assert "6 finished runs" in runs._repr_html_()
    assert "no published numbers" in runs._repr_html_()
    assert "rio-seed2" in repr(runs)


def test_what_was_found_wrong_with_the_results_is_shown(finished_study, tmp_path):
    copy = shutil.copytree(finished_study / "rio-seed1", tmp_path / "rio-seed1")
    stored = json.loads((copy / "evaluation.json").read_text())
    stored["info"]["diagnosis"] = ["every category_id seems <one> too low"]
    (copy / "evaluation.json").write_text(json.dumps(stored))
    assert "rio-seed1: every category_id seems &lt;one&gt; too low." in rio.open_runs(copy)._repr_html_()


def test_what_tells_runs_apart_stands_beside_them(runs, finished_study, tmp_path):
    shown = runs._repr_html_()
    assert "MODEL.RIO.SAMPLER" in shown and "MODEL.RIO.BANK_ENABLED" in shown and "SOLVER.MAX_ITER" not in shown
    assert runs.settings()["MODEL.RIO.SAMPLER"].tolist() == ["none"] * 2 + ["rfs"] * 4
    assert not runs.remarks()
    longer = shutil.copytree(finished_study / "rio-seed1", tmp_path / "longer")
    text = (longer / "config.yaml").read_text()
    (longer / "config.yaml").write_text(text.replace("MAX_ITER: 40", "MAX_ITER: 80"))
    both = rio.open_runs([finished_study / "rio-seed1", longer])
    assert "RIO (RFS + bank) 40, longer 80" in both._repr_html_() and "SOLVER.MAX_ITER" in both._repr_html_()


def test_settings_that_are_lists_stand_beside_runs_of_several_seeds(finished_study, tmp_path):
    other = shutil.copytree(finished_study / "rio-seed1", tmp_path / "other")
    text = (other / "config.yaml").read_text()
    assert "RIO:\n" in text
    (other / "config.yaml").write_text(
        text.replace("RIO:\n", "RIO:\n    REPLAY_LOSSES: [cls]\n    BANK_CLASS_IDS: [1]\n")
    )
    runs = rio.open_runs([finished_study / "rio-seed1", finished_study / "rio-seed2", other])
    assert runs.settings().to_dict("list") == {"MODEL.RIO.REPLAY_LOSSES": ["–", "–", "['cls']"]}
    assert "[&#x27;cls&#x27;]" in runs._repr_html_()


def test_names_as_shown_are_names_as_taken(runs):
    for name in ("rfs", "RFS", runs.title("rfs")):
        assert runs.difference(name, "none").attrs["arm"] == "RFS"
    assert runs.confusions("RIO (RFS + bank)").attrs["arm"] == runs.title("rio")


def test_curves_begin_with_the_rarest_category_that_some_run_finds(runs):
    curves = runs.curves()
    best = np.nanmax([e.per_category["AP_bbox"] for e in runs.evaluations.values()], axis=0)
    first = curves.choice.value
    assert best[first] > 0
    assert not any(best[k] > 0 for k in np.flatnonzero(runs.image_count < runs.image_count[first]))


def test_errors_are_sentences(runs, finished_study, tmp_path):
    assert "make demo" in refused(rio.open_runs, tmp_path)
    assert "'rios'" in refused(rio.open_runs(finished_study / "rio-seed1").difference, "rios")
    for call in (runs.by_group, runs.per_category, runs.markdown, runs.latex):
        assert "'segment'" in refused(call, "segment")
    copy = shutil.copytree(finished_study / "rio-seed1", tmp_path / "rio-seed1")
    (copy / "instances_results.json").unlink()
    opened = rio.open_runs(copy)
    for call in (opened.errors, opened.curves, opened.recomputed):
        assert "instances_results.json" in refused(call)


def test_curves_follow_the_choice_of_category(runs):
    curves = runs.curves()
    assert [series["name"] for series in curves.chart.spec["series"]] == [runs.title(arm) for arm in runs.arms]
    before, choice = curves.status.value, curves.choice
    choice.value = choice.options[-1][1]
    assert curves.status.value != before
    first = next(iter(runs.evaluated_again.values())).precision_recall(int(runs.truth.category_ids[choice.value]))
    assert len(curves.chart.spec["series"][0]["y"]) == len(first)
    assert "'wolf'" in refused(runs.curves, "wolf")
    assert runs.curves(runs.truth.category_names[1]).choice.value == 1


def test_a_category_of_the_curves_opens_its_objects(runs, finished_study, tmp_path):
    curves = runs.curves()
    curves.look()
    view, name = curves.children[-1], runs.truth.category_names[curves.choice.value]
    assert view.category.value == name and view.other is not None
    assert view.source.title.endswith("rio-seed1") and view.other.title.endswith("rfs-seed1")
    classes = view.source.entries.loc[view.rows, ["class_id", "gt_class"]]
    assert (classes == curves.choice.value).any(axis=1).all()
    curves.look()
    assert len(curves.children) == 4, "in place of the first"
    alone = rio.open_runs(finished_study / "rio-seed1").inspect()
    assert alone.other is None and alone.category.value == ""
    copy = rio.open_runs(shutil.copytree(finished_study / "rio-seed1", tmp_path / "rio-seed1"))
    (tmp_path / "rio-seed1" / "instances_results.json").unlink()
    assert "instances_results.json" in refused(copy.inspect)


def test_tables_to_copy(runs):
    texts = runs.copy_table().texts
    assert list(texts) == ["Markdown, box AP", "LaTeX, box AP", "Markdown, mask AP", "LaTeX, mask AP"]
    assert texts["LaTeX, mask AP"] == runs.latex("segm")


def test_one_button_saves_all_figures(runs, tmp_path):
    DRAWN.clear()
    plots.ap_by_group(runs.by_group("segm"))
    saving = runs.save_figures(str(tmp_path / "figures"))
    saving.button.click()
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {
        f"ap_by_group_mask_AP.{k}" for k in ("pdf", "svg")
    }
    assert "2 files" in saving.status.value
    (tmp_path / "file").touch()
    saving.folder.value = str(tmp_path / "file")
    saving.save()
    assert "rio-notice" in saving.status.value


def test_the_best_run_of_a_column_is_bold(runs):
    cells = re.findall(r"<b>([\d.]+)</b>", runs._repr_html_())
    best, worst = (of(e.metrics["bbox"]["AP"] for e in runs.evaluations.values()) for of in (max, min))
    assert f"{best:.1f}" in cells and f"{worst:.1f}" not in cells


def test_figures(runs):
    plots.ap_by_group(runs.by_group())
    assert len(plots.ap_by_image_count(runs.per_category()).lines) == 3
    assert "RIO (RFS + bank) minus RFS" in plots.ap_difference(runs.difference()).get_title(loc="left")
    ax = plots.errors_by_group(runs.errors())
    assert ax.texts[0].get_text().startswith("rare, ")
    widths = [bar.get_width() for bar in ax.patches if bar.get_x() < 100]
    assert sum(widths) == pytest.approx(100 * 9)  # three arms, three groups, every object once
    nothing = pd.DataFrame({"name": ["a"], "frequency": ["r"], "image_count": [1], "difference": [np.nan]})
    with pytest.raises(plots.PlotError, match="none"):
        plots.ap_difference(nothing)
