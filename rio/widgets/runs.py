"""Finished runs side by side, in a notebook: `rio.analysis.runs` with curves and tables to copy."""

from __future__ import annotations

import asyncio
import functools
import html
from collections.abc import Callable, Sequence
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import traitlets
from matplotlib.axes import Axes

from rio import plots
from rio.analysis import runs as analysis
from rio.analysis.runs import IOU_NAMES, METRICS, NAMES, RunsError, Where
from rio.data import names
from rio.data.annotations import GROUP_NAMES
from rio.results.breakdown import taken_for as cell
from rio.results.federated import JudgedPairs
from rio.widgets import theme
from rio.widgets.balance import Lines
from rio.widgets.inspector import Inspector
from rio.widgets.run_table import RunTable, Shown
from rio.widgets.source import PredictionSource, open_predictions

MOST_SETTINGS = 30  # columns
SECONDS = 0.3  # from the last click in the table of runs until figures follow


@theme.sentences
def open_runs(
    where: Where = "output/demo", *, ground_truth: str | None = None, training_set: str | None = None
) -> Runs:
    """Open finished runs for comparison.

    Args:
        where: a folder of run folders (a study's output), one run folder, several of either, or a dict that names them.
        ground_truth: data set that the runs were evaluated on, as `open_dataset` takes it; None: as their configs say.
        training_set: data set whose image_count tells how rare a category was; None: as the configs say.

    Raises:
        NotebookError: no finished run, runs evaluated on different data, or a data set that is missing.
    """
    return Runs(where, ground_truth=ground_truth, training_set=training_set)


def _view(method: Callable[..., Any]) -> Callable[..., Any]:
    """Errors as sentences; tables with the arms' colours."""

    @functools.wraps(method)
    def view(self: Runs, *args: Any, **options: Any) -> Any:
        if isinstance(made := method(self, *args, **options), pd.DataFrame):
            made.attrs["colors"] = {self.title(arm): self.table.colors[arm] for arm in self.arms}
        return made

    return theme.sentences(view)


class Runs(analysis.Runs):
    """`rio.analysis.runs.Runs` for notebooks: a `table` of runs, and what follows it. Made by `open_runs`."""

    by_group, per_category, difference, recomputed, errors, breakdown, confusions, markdown, latex = map(
        _view,
        (analysis.Runs.by_group, analysis.Runs.per_category, analysis.Runs.difference, analysis.Runs.recomputed,
         analysis.Runs.errors, analysis.Runs.breakdown, analysis.Runs.confusions, analysis.Runs.markdown,
         analysis.Runs.latex),
    )  # fmt: skip

    def __init__(self, where: Where, **options: Any) -> None:
        super().__init__(where, **options)
        self.table = RunTable(order=self.arms, ticked=self.arms, colors=plots.arm_colors(self.arms))
        self._fill_table()
        self.notes = ipywidgets.HTML(self._notes())
        self._followers: dict[object, Callable[[], Any]] = {}
        self._sources: dict[tuple[str, str], PredictionSource] = {}
        self.table.observe(self._changed, ["order", "ticked", "colors"])

    def show(self, table: Callable[..., Any], draw: Callable[..., Axes] | None = None, **options: Any) -> Shown:
        """What a method of this gives of the ticked runs (`runs.by_group`, its options), drawn by a function of
        `rio.plots` or as a table; drawn again when the table of runs changes. Clicks on points and cells open objects.
        """
        view = Shown(functools.partial(table, **options), draw, self.inspect)
        self._followers[table.__name__, draw, str(options)] = view.redraw
        return view

    def _changed(self, _change: object) -> None:
        """Follow the table of runs, once for several clicks."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel
            return self._follow()
        if hasattr(self, "_timer"):
            self._timer.cancel()
        self._timer = loop.call_later(SECONDS, self._follow)

    def _follow(self) -> None:
        if chosen := [arm for arm in self.table.order if arm in self.table.ticked]:
            self.choose(chosen)
            self.notes.value = self._notes()
            for redraw in self._followers.values():
                redraw()

    @theme.sentences
    def curves(self, category: str | None = None, *, iou_type: str = "bbox") -> Curves:
        """Precision against recall of a category at IoU 0.5, all arms; the category can be chosen.

        Args:
            category: name of the first one; None: the rarest that some run finds.
            iou_type: "bbox" or "segm".

        Raises:
            NotebookError: no such category, or results of another data set.
        """
        self.require(iou_type)
        return Curves(self, category, iou_type)

    @theme.sentences
    def copy_table(self) -> Copy:
        """The tables in Markdown and LaTeX, each with a button that copies it."""
        forms = {"Markdown": self.markdown, "LaTeX": self.latex}
        copy = Copy()
        self._followers["copy"] = lambda: copy.set_trait(
            "texts", {f"{form}, {IOU_NAMES[kind]}": of(kind) for kind in self.iou_types for form, of in forms.items()}
        )
        self._followers["copy"]()
        return copy

    @theme.sentences
    def inspect(
        self, category: str = "", *, arm: str | None = None, name: str = "", objects: Sequence[str] = (),
        taken_for: Sequence[str] = (), score_threshold: float | None = None,
    ) -> Inspector:  # fmt: skip
        """Notebook 05's view of an arm's first seed, in step with the arm before it (of the first: after it).

        Args:
            category: name of the one to begin with; "": all.
            arm: of `arms`; None: the last.
            name, objects, taken_for, score_threshold: of a cell of `confusions`: list its objects under this name.

        Raises:
            NotebookError: results that are not there, or of another data set.
        """
        arms, arm, sources = self.arms, self.arm(arm or self.arms[-1]), []
        at = arms.index(arm)
        beside = (arm, *arms[at - 1 : at], *arms[at + 1 :])
        keys = [next(key for key in self.folders if key[0] == own) for own in beside]
        for key in keys[:2]:
            if key not in self._sources:
                sets = {"dataset": str(self.ground_truth), "train": self.training_set}
                self._sources[key] = open_predictions(self.folders[key].path, **sets)
            sources.append(self._sources[key])
        source, options = sources[0], dict[str, Any](other=next(iter(sources[1:]), None))
        if objects:
            least = self.thresholds[keys[0]] if score_threshold is None else score_threshold
            truth, of = self.truth, {of: k for k, of in enumerate(self.truth.category_names)}
            taken = cell(truth, self.results(keys[0]), [of[own] for own in objects], score_threshold=least)
            without = np.setdiff1d(np.arange(truth.num_classes), truth.annotation_class[JudgedPairs.of(truth).counted])
            of |= {"missed": truth.num_classes}
            classes = without if list(taken_for) == ["others"] else [of[own] for own in taken_for]
            options |= {"threshold": max(least, source.lowest), "picked": (name, taken.index[taken.isin(classes)])}
        view = Inspector(source, **options)
        view.category.value = category
        return view

    def save_figures(self, folder: str = "output/figures") -> Figures:
        """A button that writes all figures drawn so far for a paper: `rio.plots.save_all`."""
        return Figures(folder)

    def _fill_table(self) -> None:
        """Arms with the settings that differ, AP of every kind, iterations and seeds."""
        settings, own = self.settings().drop(columns="SOLVER.MAX_ITER", errors="ignore"), [*self.folders.items()]
        named = [NAMES.get(arm, arm) for arm in self.arms]
        columns: list[tuple[str, str, Any, Any]] = [("run", "", named, named)]  # head, its full form, texts, values
        for name in settings:
            said = {arm: [v for (a, _), v in settings[name].items() if a == arm] for arm in self.arms}
            texts = [", ".join(dict.fromkeys(values)) or "–" for values in said.values()]
            if len(set(texts)) > 1 and len(columns) <= MOST_SETTINGS:
                columns.append((name.rpartition(".")[2], name, texts, texts))
        for kind in self.iou_types:
            table, texts = self.by_group(kind, reported=False), zip(*self._cells(kind, reported=False), strict=True)
            for metric, shown in zip(METRICS, list(texts)[1:], strict=True):
                values = [None if np.isnan(value) else value for value in table[metric].astype(float)]
                columns.append((IOU_NAMES[kind] if metric == "AP" else metric, "", shown, values))
        steps = [next(f.setting("SOLVER.MAX_ITER") for (a, _), f in own if a == arm) for arm in self.arms]
        columns.append(("iterations", "", [f"{n:,}" if n else "–" for n in steps], steps))
        seeds = [len(self.of_arm(arm)) for arm in self.arms]
        columns.append(("seeds", "", [*map(str, seeds)], seeds))
        cells, values = (list(zip(*(column[i] for column in columns), strict=True)) for i in (2, 3))
        notes = ["\n".join(str(f.path) for (a, _), f in own if a == arm) for arm in self.arms]
        self.table.columns = [[head, full] for head, full, *_ in columns]
        parts = zip(self.arms, map(list, cells), map(list, values), notes, strict=True)
        self.table.rows = {arm: {"cells": own, "values": by, "note": note} for arm, own, by, note in parts}

    def _notes(self) -> str:
        """What is to be known about the runs ticked."""
        shown = f"{len(self.folders)} finished runs on {self.ground_truth}."
        if len(self.folders) > len(self.arms):
            shown += " Mean over seeds ± half the distance between the highest and the lowest."
        notes = theme.view(html.escape(shown), "rio-quiet")
        for key, evaluation in self.evaluations.items():
            for text in evaluation.info.get("diagnosis", ()):  # of runs evaluated since there is one
                notes += theme.view(html.escape(f"{self.folders[key].path.name}: {text}."), "rio-quiet")
        notes += "".join(theme.notice(text) for text in self.remarks())
        if str(self.ground_truth).startswith("shapes_"):
            note = "Evaluated on the embedded, synthetic set: what you see here holds for this set only."
        elif self.reported(self.iou_types[0] if self.iou_types else "bbox").empty:
            note = "There are no published numbers for this data set."
        else:
            return notes
        return notes + theme.view(html.escape(note), "rio-quiet")

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        view = ipywidgets.VBox([self.table, self.notes])
        return view._repr_mimebundle_(**options) | {"text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        """The table without its controls, for readers without widgets."""
        rows = [self.table.rows[arm]["cells"] for arm in self.table.order]
        return theme.html_table([full or name for name, full in self.table.columns], rows) + self.notes.value

    def __repr__(self) -> str:
        return f"Runs({', '.join(folder.path.name for folder in self.folders.values())} on {self.ground_truth})"


class Curves(ipywidgets.VBox):
    """Precision-recall curves with a choice of category."""

    def __init__(self, runs: Runs, category: str | None, iou_type: str) -> None:
        self._runs, self._kind, truth = runs, iou_type, runs.truth
        runs.evaluated_again  # noqa: B018  bad results files fail here
        judged = np.flatnonzero(truth.instance_count > 0)
        order = judged[np.argsort(runs.image_count[judged], kind="stable")].tolist()
        best = np.nanmax([e.per_category[f"AP_{iou_type}"] for e in runs.evaluations.values()], axis=0)
        rarest = next((k for k in order if best[k] > 0), order[0])  # the rarest that some run finds
        by_name = {truth.category_names[k]: k for k in order}
        if category is not None and category not in by_name:
            raise RunsError(f"category {category!r}: the ground truth has no object of a category of that name")
        options = [
            (f"{name}   ({GROUP_NAMES[truth.frequency[k]]}, {runs.image_count[k]:,} training images)", k)
            for name, k in by_name.items()
        ]
        value, layout = rarest if category is None else by_name[category], {"width": "520px"}
        self.choice = ipywidgets.Dropdown(options=options, value=value, description="category", layout=layout)
        self.chart, self.status = Lines(), ipywidgets.HTML()
        look = ipywidgets.Button(description="Look at them", tooltip="as in notebook 05", icon="eye")
        look.on_click(lambda _: self.look())
        head = ipywidgets.HBox([self.choice, look])
        super().__init__([head, self.chart, self.status])
        self.choice.observe(self._update, "value")
        runs._followers["curves", iou_type] = self._update
        self._update()

    def look(self) -> None:
        """Open the category's objects and predictions below the chart."""
        try:
            below = self._runs.inspect(self._runs.truth.category_names[self.choice.value])
        except theme.NotebookError as error:
            below = ipywidgets.HTML(theme.notice(str(error)))
        self.children = (*self.children[:3], below)

    def _update(self, _change: object = None) -> None:
        runs, k, kind = self._runs, self.choice.value, self._kind
        category_id, recall = int(runs.truth.category_ids[k]), np.linspace(0, 1, 101).tolist()
        series, ap = [], []
        for arm in runs.arms:
            own = [e for (a, _), e in runs.evaluated_again.items() if a == arm]
            curves = [e.precision_recall(category_id, iou_type=kind)["precision"].to_numpy() for e in own]
            y = [None if np.isnan(v) else round(float(v), 4) for v in np.mean(curves, axis=0)]
            series.append(
                {
                    "name": runs.title(arm),
                    "kind": "line",
                    "color": runs.table.colors[arm],
                    "x": recall,
                    "y": y,
                    "width": 2.2,
                }
            )
            ap.append(f"{runs.title(arm)} {np.mean([e.per_category[f'AP_{kind}'][k] for e in own]):.1f}")
        self.chart.spec = {
            "height": 280, "x": {"domain": [0, 1], "label": "recall"}, "series": series,
            "y": {"domain": [0, 1.02], "label": "precision, IoU 0.5"}, "names": [f"recall {r:.2f}" for r in recall],
        }  # fmt: skip
        objects = f"{plots.counted(int(runs.truth.instance_count[k]), 'object')} to be found"
        self.status.value = theme.status(f"{objects}. {IOU_NAMES[kind]} over all IoU thresholds: {', '.join(ap)}.")


class Figures(ipywidgets.HBox):
    """A button that writes the figures of this notebook as PDF and SVG, in a paper's column."""

    def __init__(self, folder: str) -> None:
        self.folder = ipywidgets.Text(folder, description="folder", layout={"width": "330px"})
        self.button = ipywidgets.Button(
            description="Save all figures (PDF, SVG)", icon="save", layout={"width": "230px"}
        )
        self.status = ipywidgets.HTML()
        super().__init__([self.folder, self.button, self.status])
        self.button.on_click(lambda _: self.save())

    def save(self) -> None:
        """Write them, and say what was written."""
        self.status.value = theme.status("drawing ...")
        try:
            files = plots.save_all(names.find(self.folder.value))
            self.status.value = theme.status(f"{len(files)} files, for \\includegraphics[width=\\columnwidth]")
        except OSError as error:
            self.status.value = theme.notice(theme.sentence(error))


class Copy(anywidget.AnyWidget):
    """Texts under tabs, each with a button that copies it."""

    _esm = (theme.FOLDER / "chart.js").read_text("utf-8") + (theme.FOLDER / "copy.js").read_text("utf-8")
    _css = theme.STYLE
    texts = traitlets.Dict().tag(sync=True)
