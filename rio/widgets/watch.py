"""Curves of several runs, while they train or after: whatever metrics.json holds, with hover and a log scale."""

import asyncio
import contextlib
import os
from collections.abc import Sequence

import ipywidgets
import numpy as np
import pandas as pd

from rio import plots
from rio.data import names
from rio.study.process import ALIVE, Training
from rio.widgets import theme
from rio.widgets.balance import Lines

REFRESH_SECONDS = 2.0
POINTS = 400  # of a curve at most
FIRST = ("total_loss", "loss_cls", "bbox/AP", "bbox/APr", "bbox/APc", "bbox/APf", "segm/AP", "lr", "memory_bank/fill")


class Watch(ipywidgets.VBox):
    """One scalar of several runs over their iterations. Made by `TrainingPanel.beside`.

    Args:
        folders: of runs, which may begin later.
    """

    def __init__(self, folders: Sequence[str | os.PathLike[str]]) -> None:
        paths = [names.find(folder) for folder in folders]
        shared = os.path.commonpath([path.parent for path in paths]) if paths else ""
        self.runs = {os.path.relpath(path, shared): Training(path) for path in paths}
        self.scalar = ipywidgets.Dropdown(options=["total_loss"], description="curve", layout={"width": "340px"})
        self.logarithmic = ipywidgets.Checkbox(description="log scale", indent=False, layout={"width": "100px"})
        self.smooth = ipywidgets.Checkbox(True, description="smooth", indent=False, layout={"width": "90px"})
        self.chart, self.status = Lines(), ipywidgets.HTML()
        super().__init__([ipywidgets.HBox([self.scalar, self.logarithmic, self.smooth]), self.status, self.chart])
        for control in (self.scalar, self.logarithmic, self.smooth):
            control.observe(self._draw, "value")
        self.refresh()
        with contextlib.suppress(RuntimeError):  # no kernel: a script calls refresh() itself
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while any(run.state() in (*ALIVE, "new", "elsewhere") for run in self.runs.values()):
            await asyncio.sleep(REFRESH_SECONDS)
            self.refresh()

    def refresh(self) -> None:
        """Read the folders again and draw what is there."""
        found = {name for run in self.runs.values() for name in run.metrics().select_dtypes("number")} - {
            "iteration",
            "resumed",
        }
        options, chosen = sorted(found, key=lambda n: (FIRST.index(n) if n in FIRST else 99, n)), self.scalar.value
        if options and [*self.scalar.options] != options:
            self.scalar.options = options
            self.scalar.value = chosen if chosen in options else options[0]
        self._draw()

    def _draw(self, _change: object = None) -> None:
        columns, seams = {}, {}
        for name, run in self.runs.items():
            table, scalar = run.metrics(), self.scalar.value
            values = table.set_index("iteration")[scalar].dropna() if scalar in table else pd.Series(dtype=float)
            seams[name] = plots.seams_of(table)
            if self.smooth.value and "loss" in scalar:
                values = plots.over_seams(values, seams[name])
            if self.smooth.value and len(values) > 50:
                values = values.rolling(len(values) // 25, min_periods=1, center=True).median()
            columns[name] = values[values > 0] if self.logarithmic.value else values
        # One x for all, so that a point of the chart names every run's value there.
        table = pd.concat(columns, axis=1).sort_index().interpolate("index", limit_area="inside")
        table = table.iloc[:: max(len(table) // POINTS, 1)]
        self.status.value = theme.status(" · ".join(f"{name}: {run.explain()}" for name, run in self.runs.items()))
        if not len(table):
            self.chart.spec = {}
            return
        low, high = float(table.min(axis=None)), float(table.max(axis=None))
        room = 0.06 * max(high - low, abs(high) * 0.01, 1e-9)
        log = self.logarithmic.value
        domain = [low / 1.15, high * 1.15] if log else [min(0, low), high + room]
        colors = (*plots.LINE_COLORS, "var(--ink)")
        marks = [
            {"at": int(at), "color": colors[i % len(colors)], "text": "resumed"}
            for i, name in enumerate(table)
            for at in seams[name]
        ]
        series = [
            {"name": name, "kind": "line", "color": colors[i % len(colors)], "x": table.index.tolist(),
             "y": [None if np.isnan(v) else float(f"{v:.5g}") for v in table[name]]}
            for i, name in enumerate(table)
        ]  # fmt: skip
        self.chart.spec = {
            "height": 300, "series": series, "names": [f"iteration {at:,}" for at in table.index.tolist()],
            "x": {"domain": [0, max(int(table.index.max()), 1)], "label": "iteration", "marks": marks},
            "y": {"domain": domain, "label": str(self.scalar.value), "scale": "log" if log else "linear"},
        }  # fmt: skip
