"""Views of finished runs: curves, tables to copy, errors in one sentence. The numbers: tests/analysis/test_runs.py."""

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
from rio.results.breakdown import confusions
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
    assert "RIO (RFS + bank) 40, longer 80" in both._repr_html_()
    assert [both.table.rows[arm]["cells"][-2] for arm in both.arms] == ["40", "80"]


def test_the_table_of_runs_has_arms_settings_and_ap(runs, finished_study):
    heads = [head for head, _ in runs.table.columns]
    kinds = ["box AP", "APr", "APc", "APf", "mask AP", "APr", "APc", "APf"]
    assert heads == ["run", "BANK_ENABLED", "SAMPLER", *kinds, "iterations", "seeds"]
    row, ap = runs.table.rows["rio"], [e.metrics["bbox"]["AP"] for e in runs.of_arm("rio")]
    assert row["cells"][:3] == ["RIO (RFS + bank)", "True", "rfs"] and row["cells"][-2:] == ["40", "2"]
    assert row["cells"][3].strip("*") == f"{np.mean(ap):.1f} ± {np.ptp(ap) / 2:.1f}"
    assert row["values"][3] == pytest.approx(np.mean(ap)) and row["values"][-2:] == [40, 2]
    assert row["note"].splitlines() == [str(finished_study / f"rio-seed{n}") for n in (1, 2)]


def test_what_is_shown_follows_the_table_of_runs(finished_study):
    runs = rio.open_runs(finished_study)
    shown = runs.show(runs.by_group, plots.ap_by_group, iou_type="bbox")
    table, curves, copy = runs.show(runs.breakdown), runs.curves(), runs.copy_table()
    colors = {arm: color.lower() for arm, color in runs.table.colors.items()}
    assert len(set(colors.values())) == 3 and all(color in shown.picture.value.lower() for color in colors.values())
    runs.table.ticked = ["none", "rio"]
    assert colors["rfs"] not in shown.picture.value and "RFS, 2 seeds" not in table.picture.value
    assert [series["color"].lower() for series in curves.chart.spec["series"]] == [colors["none"], colors["rio"]]
    assert "RFS, 2 seeds" not in copy.texts["LaTeX, box AP"] and "4 finished runs" in runs.notes.value
    runs.table.order = ["rio", "rfs", "none"]
    assert runs.arms == ["rio", "none"] and runs.difference().attrs["baseline"] == "RIO (RFS + bank)"
    runs.table.colors = {**runs.table.colors, "rio": "#123456"}
    assert "#123456" in shown.picture.value and curves.chart.spec["series"][0]["color"] == "#123456"
    runs.table.ticked = []
    assert runs.arms == ["rio", "none"], "with nothing ticked, what was shown stays"
    assert "text/html" in shown._repr_mimebundle_() and "RIO (RFS" in runs._repr_mimebundle_()["text/html"]


def test_a_point_opens_its_category(runs):
    shown = runs.show(runs.per_category, plots.ap_by_image_count)
    words = shown.picks.words[1][2]
    assert "AP " in words and "RFS, 2 seeds" in words
    for nonsense in (None, {}, {"of": 99, "index": 0}, {"of": "1", "index": 2}):
        shown.on_message(None, nonsense, [])
    assert len(shown.children) == 2
    shown.on_message(None, {"of": 1, "index": 2}, [])
    view = shown.children[-1]
    assert words.startswith(view.category.value) and view.source.title.endswith("rfs-seed1")
    assert view.other.title.endswith("none-seed1"), "beside the arm before it"


def test_a_cell_opens_its_objects(runs):
    shown, names = runs.show(runs.confusions, plots.confusions), runs.truth.category_names
    threshold = runs.thresholds["rio", "1"]
    matrix = confusions(runs.truth, runs.results(("rio", "1")), score_threshold=threshold)
    words = shown.picks.words[0]
    for kind, column in ((" found", None), (" missed", -1), (" taken for ", None)):
        index = next(i for i, said in enumerate(words) if kind in said)
        name = words[index].rpartition(":")[0]
        objects, _, other = name.partition(kind)
        k = names.index(objects)
        shown.on_message(None, {"of": 0, "index": index}, [])
        view = shown.children[-1]
        assert view.kind.value == name and view.threshold.value == pytest.approx(threshold, abs=0.005)
        assert len(view.rows) == matrix[k, k if column is None and not other else column or names.index(other)]
        assert (view.source.entries.loc[view.rows, "class_id"] == k).all()
    assert len(shown.children) == 3, "in place of the last one"


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
    cells = re.findall(r"<b>([\d.]+) ±", runs._repr_html_())
    best, worst = (of(runs.by_group()["AP"]) for of in (max, min))
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
