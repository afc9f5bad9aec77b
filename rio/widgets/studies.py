"""A study's result in a notebook: what its arms reach, and what each gains over another. Needs study.json only."""

from __future__ import annotations

import dataclasses
import functools
import html
import os
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from IPython.display import display

from rio import plots
from rio.analysis.runs import METRICS, RunsError
from rio.analysis.tables import latex_table, markdown_table, with_best, with_spread
from rio.data.names import find
from rio.study.result import KINDS, StudyResult, format_difference
from rio.widgets import theme
from rio.widgets.runs import Copy

Pairs = Sequence[tuple[str, str]] | None


@theme.sentences
def open_study(path: str | os.PathLike[str] | None) -> Study:
    """Open what a study has measured; the folders of its runs are not needed.

    Args:
        path: study.json, the folder it is in, or a committed result such as "configs/studies/results/factors.json";
            None: no study, and every view of it says so.

    Raises:
        NotebookError: no such file, or not a study's result.
    """
    if path is None:
        return Study(None)
    file = find(path)
    return Study(StudyResult.from_json(file / "study.json" if file.is_dir() else file))


def _view(method: Callable) -> Callable:
    """Where there is nothing to show, a sentence that says why; errors as sentences too."""

    @functools.wraps(method)
    def shown(self: Study, *args: Any, **kwargs: Any) -> Any:
        if self.result is not None and self.result.runs:
            return method(self, *args, **kwargs)
        text = "No study was named: open_study(None)."
        if self.result is not None:
            text = f"Study {self.result.name}: no run is finished yet."
        return Page(text, theme.notice(text))

    return theme.sentences(shown)


class Study:
    """A study's result: what its arms reach, and what each gains over another. Made by `open_study`.

    The views take `iou_type` ("bbox" or "segm"; "bbox_lvis_fixed" and others where the study names more protocols) and,
    where they compare, `pairs`: the (arm, baseline) of each; None: those that the study names. They raise NotebookError
    if the study has no AP of this kind, or no such arm.

    Attributes:
        result: the raw values; None: no study was named.
    """

    def __init__(self, result: StudyResult | None) -> None:
        self.result = result

    @property
    def iou_types(self) -> list[str]:
        """Kinds of AP that the finished runs have: "bbox", "segm"."""
        runs = self.result.runs if self.result else []
        return [kind for kind in KINDS if any(kind in run.metrics for run in runs)]

    @_view
    def table(self, iou_type: str = "bbox") -> Table | Page:
        """AP of every arm with a finished run: `rio.study.result.StudyResult.table` of one kind of AP."""
        rows = self._of(iou_type, self.result.table())
        note = "Percent; mean over seeds ± half the distance between the highest and the lowest seed"
        return Table.of(rows, _arm_cells(rows), f"{self._on(iou_type)}. {note}")

    @_view
    def comparisons(self, iou_type: str = "bbox", pairs: Pairs = None) -> Table | Page:
        """What arms gain over others: `rio.study.result.StudyResult.comparisons` of one kind of AP."""
        rows = self._differences(iou_type, pairs)
        cells = _difference_cells(rows, lambda row: f"{format_difference(row)} {'●' if row.resolved else '○'}")
        return Table.of(rows, cells, f"{self._on(iou_type)}. Points and 95 % interval; ● resolved, ○ not resolved")

    @_view
    def findings(self, iou_type: str = "bbox", pairs: Pairs = None) -> Page:
        """What the comparisons say: how many are resolved, and the largest, of all categories and of each group."""
        table, of = self._differences(iou_type, pairs), self._on(iou_type)
        rows = [[metric, *_finding(table[table["metric"] == metric])] for metric in METRICS]
        columns = ["", "resolved gains", "the largest", "resolved losses", "the largest", "not resolved"]
        text = "\n".join([of, *(" | ".join(map(str, row)) for row in [columns, *rows])])
        return Page(text, theme.html_table(columns, rows, caption=of))

    def figures(self, iou_type: str = "bbox", pairs: Pairs = None) -> None:
        """Draw AP of the arms, seed by seed, the comparisons with their intervals, and AP against length of training.

        The last for boxes, of the first eight arms, where the runs were evaluated while they trained.
        """
        if nothing := self._draw(iou_type, pairs):
            display(nothing)

    @_view
    def _draw(self, iou_type: str, pairs: Pairs) -> None:
        differences = self._differences(iou_type, pairs)
        name = KINDS[iou_type] + (" (tuning)" if self.result.role == "tune" else "")
        plots.arm_ap(self._of(iou_type, self.result.per_run()), label=f"{name}, %")
        if len(differences):
            plots.paired_differences(differences, label=f"{name}, difference in points")
        curves = self.result.curves()
        curves = curves[curves["arm"].isin(list(self.result.arms)[:8])]
        if iou_type == "bbox" and curves["epoch"].nunique() > 2:
            for metric in ("APr", "AP"):
                plots.study_curves(curves, metric=metric)

    @_view
    def copy_table(self) -> Copy | Page:
        """AP and differences in Markdown and LaTeX, each with a button that copies it."""
        texts = {}
        for kind in self.iou_types:
            name, bold = KINDS[kind], functools.partial(format_difference, bold=True)
            differences = _difference_cells(self._differences(kind), bold)
            tables = {name: _arm_cells(self._of(kind, self.result.table())), f"{name}, points": differences}
            how = (
                f"{self._on(kind)}: mean ± half the distance between the highest and the lowest seed; "
                "difference and 95 % interval over categories (paired bootstrap), bold where resolved."
            )
            markdown, latex = (list(map(of, tables, tables.values())) for of in (markdown_table, latex_table))
            texts[f"Markdown, {name}"] = "\n\n".join([*markdown, how])
            texts[f"LaTeX, {name}"] = "\n".join([f"% {how}", *latex])
        return Copy(texts=texts)

    def _differences(self, iou_type: str, pairs: Pairs = None) -> pd.DataFrame:
        for arm in (arm for pair in pairs or () for arm in pair):
            if arm not in self.result.arms:
                raise RunsError(f"arm {arm!r}: expected one of {', '.join(self.result.arms)}")
        return self._of(iou_type, (self.result if pairs is None else self.result.with_pairs(pairs)).comparisons())

    def _of(self, iou_type: str, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of one kind of AP."""
        if iou_type not in self.iou_types:
            raise RunsError(f"iou_type: expected {' or '.join(self.iou_types)}, found {iou_type!r}")
        return table[table["iou_type"] == iou_type].reset_index(drop=True)

    def _on(self, iou_type: str) -> str:
        """What a number is of, such as "box AP on shapes_demo_val, 27 of 27 runs"."""
        result = self.result
        tuning = " (for choosing settings, not a result)" if result.role == "tune" else ""
        return f"{KINDS[iou_type]} on {', '.join(result.evaluated_on)}{tuning}, {result.progress}"

    @_view
    def _page(self) -> Page:
        result, kinds, tuning = self.result, self.iou_types, "for choosing settings, not a result"
        cells = {kind: {arm: own for arm, *own in _arm_cells(self._of(kind, self.result.table()))} for kind in kinds}
        arms = dict.fromkeys(arm for by_arm in cells.values() for arm in by_arm)
        rows = [[arm, *(c for kind in kinds for c in cells[kind].get(arm, ["–"] * len(METRICS)))] for arm in arms]
        columns = ["arm", *(KINDS[kind] if m == "AP" else m for kind in kinds for m in METRICS)]
        facts = [tuning] if result.role == "tune" else []
        facts += [f"trained on {', '.join(result.trained_on)}"]
        facts += ["mean over seeds ± half the distance between the highest and the lowest"]
        facts += filter(None, (result.command, result.machine, result.date))
        if all(name.startswith("shapes_") for name in result.evaluated_on):
            facts.append("the embedded, synthetic set: what you see here holds for this set only")
        caption = f"Study {result.name}: {result.progress}, on {', '.join(result.evaluated_on)}"
        quiet = theme.view(html.escape(" · ".join(facts)), "rio-quiet")
        return Page(caption, theme.html_table(columns, rows, caption=caption) + quiet)

    def _repr_html_(self) -> str:
        return self._page()._repr_html_()

    def __repr__(self) -> str:
        return f"Study({self.result.name}, {self.result.progress})" if self.result else "Study(None)"


@dataclasses.dataclass(repr=False)
class Page:
    """What a notebook shows: `text` where there is no browser, `page` where there is."""

    text: str
    page: str

    def _repr_html_(self) -> str:
        return self.page

    def __repr__(self) -> str:
        return self.text


class Table(pd.DataFrame):
    """A DataFrame that shows itself as readers need it; whatever is computed from it is an ordinary one."""

    _metadata = ["shown"]  # noqa: RUF012  pandas' own protocol

    @classmethod
    def of(cls, table: pd.DataFrame, cells: list[list[str]], caption: str) -> Table:
        """The table, shown as cells: a name, AP, APr, APc, APf."""
        shown = cls(table)
        shown.shown = theme.html_table(["", *METRICS], cells, caption=caption)
        return shown

    def _repr_html_(self) -> str:
        return self.shown


def _finding(rows: pd.DataFrame) -> list[object]:
    """Of one metric: how many resolved gains, the largest with its interval, the same of losses, how many others."""
    rows = rows.dropna(subset="difference").sort_values("difference", key=abs, ascending=False, kind="stable")
    resolved, gain = rows["resolved"].astype(bool), rows["difference"] > 0
    cells: list[object] = []
    for own in (rows[resolved & gain], rows[resolved & ~gain]):
        first = [f"{row.arm} over {row.baseline} {format_difference(row)}" for row in own.head(1).itertuples()]
        cells += [len(own), *(first or ["–"])]
    return [*cells, int((~resolved).sum())]


def _arm_cells(table: pd.DataFrame) -> list[list[str]]:
    """One row per arm of `StudyResult.table`: its name, and AP, APr, APc, APf with their spread."""
    rows = table.to_dict("records")
    cells = [[row["arm"], *(with_spread(row[m], row[f"{m}_spread"]) for m in METRICS)] for row in rows]
    return with_best(cells, table)


def _difference_cells(table: pd.DataFrame, cell: Callable[[Any], str]) -> list[list[str]]:
    """One row per comparison of `StudyResult.comparisons`: its name, and a cell for AP, APr, APc and APf."""
    rows = []
    for (arm, baseline), own in table.groupby(["arm", "baseline"], sort=False):
        by_metric = {row.metric: row for row in own.itertuples()}
        cells = ["–" if pd.isna(by_metric[m].difference) else cell(by_metric[m]) for m in METRICS]
        rows.append([f"{arm} − {baseline}", *cells])
    return rows
