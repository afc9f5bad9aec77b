"""Finished runs side by side, in a notebook: `rio.analysis.runs` with curves and tables to copy."""

from __future__ import annotations

import html

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import traitlets

from rio import plots
from rio.analysis import runs as analysis
from rio.analysis.runs import IOU_NAMES, METRICS, NAMES, RunsError, Where, with_best, with_spread
from rio.data import names
from rio.data.annotations import GROUP_NAMES
from rio.widgets import theme
from rio.widgets.balance import Lines
from rio.widgets.inspector import Inspector
from rio.widgets.source import open_predictions

MOST_SETTINGS = 30  # columns; runs that differ in more are not of one kind


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


class Runs(analysis.Runs):
    """`rio.analysis.runs.Runs` for notebooks. Made by `open_runs`."""

    by_group, per_category, difference, recomputed, errors, breakdown, confusions, markdown, latex = map(
        theme.sentences,
        (analysis.Runs.by_group, analysis.Runs.per_category, analysis.Runs.difference, analysis.Runs.recomputed,
         analysis.Runs.errors, analysis.Runs.breakdown, analysis.Runs.confusions, analysis.Runs.markdown,
         analysis.Runs.latex),
    )  # fmt: skip

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
        texts = {f"{form}, {IOU_NAMES[kind]}": of(kind) for kind in self.iou_types for form, of in forms.items()}
        return Copy(texts=texts)

    @theme.sentences
    def inspect(self, category: str = "") -> Inspector:
        """Notebook 05's view of the last arm's first seed, in step with the arm before it.

        Args:
            category: name of the one to begin with; "": all.

        Raises:
            NotebookError: results that are not there, or of another data set.
        """
        paths = [next(f.path for (a, _), f in self.folders.items() if a == arm) for arm in self.arms[-2:]]
        sets = {"dataset": str(self.ground_truth), "train": self.training_set}
        *before, last = (open_predictions(path, **sets) for path in paths)
        view = Inspector(last, other=before[0] if before else None)
        view.category.value = category
        return view

    def save_figures(self, folder: str = "output/figures") -> Figures:
        """A button that writes all figures drawn so far for a paper: `rio.plots.save_all`."""
        return Figures(folder)

    def _repr_html_(self) -> str:
        kinds, rows = self.iou_types, []
        for arm, seed in self.folders:
            rows.append([NAMES.get(arm, arm), seed or "–"])
        for t in kinds:
            values = pd.DataFrame([e.metrics[t] for e in self.evaluations.values()])
            cells = with_best(
                [["", *(with_spread(v, np.nan) for v in own)] for own in values[[*METRICS]].to_numpy(float)], values
            )
            rows = [[*row, *numbers] for row, (_, *numbers) in zip(rows, cells, strict=True)]
        rows = [[*row, str(folder.path)] for row, folder in zip(rows, self.folders.values(), strict=True)]
        columns = ["arm", "seed", *(IOU_NAMES[t] if m == "AP" else m for t in kinds for m in METRICS), "folder"]
        table = theme.html_table(columns, rows, caption=f"{len(rows)} finished runs on {self.ground_truth}")
        for key, evaluation in self.evaluations.items():
            for text in evaluation.info.get("diagnosis", ()):  # of runs evaluated since there is one
                table += theme.view(html.escape(f"{self.folders[key].path.name}: {text}."), "rio-quiet")
        differ = self.settings()
        if 0 < len(differ.columns) <= MOST_SETTINGS:
            shown = differ.drop_duplicates() if len(self.arms) < len(differ) else differ
            cells = [
                [NAMES.get(arm, arm), *map(str, row)]
                for (arm, _), row in zip(shown.index, shown.to_numpy(), strict=True)
            ]
            table += theme.html_table(["", *differ.columns], cells, caption="Settings that differ")
        table += "".join(theme.notice(text) for text in self.remarks())
        if str(self.ground_truth).startswith("shapes_"):
            note = "Evaluated on the embedded, synthetic set: what you see here holds for this set only."
        elif self.reported(kinds[0] if kinds else "bbox").empty:
            note = "There are no published numbers for this data set."
        else:
            return table
        return table + theme.view(html.escape(note), "rio-quiet")

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
        for i, arm in enumerate(runs.arms):
            own = [e for (a, _), e in runs.evaluated_again.items() if a == arm]
            curves = [e.precision_recall(category_id, iou_type=kind)["precision"].to_numpy() for e in own]
            y = [None if np.isnan(v) else round(float(v), 4) for v in np.mean(curves, axis=0)]
            color = "var(--ink)" if arm == runs.arms[-1] else plots.LINE_COLORS[i % len(plots.LINE_COLORS)]
            series.append({"name": runs.title(arm), "kind": "line", "color": color, "x": recall, "y": y, "width": 2.2})
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
