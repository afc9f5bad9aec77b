"""Figures of a study: its arms over seeds, and their differences with intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from rio.plots import parts
from rio.plots.style import METRIC_NAMES, ink, metric_color, tint

METRICS = list(METRIC_NAMES)
MINUS = "\N{MINUS SIGN}"


def _rows(ax: Axes | None, names: Sequence[str], metrics: Sequence[str]) -> tuple[Axes, dict[str, float]]:
    """An Axes with a named row for each name, the first on top; where in a row each metric has its lane."""
    ax = parts.axes(ax, 6.4, 0.75 + (0.14 + 0.075 * max(len(metrics), 2)) * len(names))
    parts.bare_rows(ax, range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    for y in np.arange(len(names) - 1) + 0.5:
        ax.axhline(y, color=ink().rule, linewidth=0.6, zorder=0)
    ax.grid(axis="x")
    step = min(0.19, 0.62 / len(metrics))
    return ax, {metric: (i - (len(metrics) - 1) / 2) * step for i, metric in enumerate(metrics)}


def _legend(ax: Axes, metrics: Sequence[str], title: str | None, **look: object) -> None:
    names = {metric: f"{METRIC_NAMES[metric]} ({metric})" for metric in metrics}
    handles = [Line2D([], [], color=metric_color(m), marker="o", ms=4.5, label=names[m], **look) for m in metrics]
    parts.legend_above(ax, handles, title=title, columnspacing=1.0, handlelength=1.4)


@parts.figure("StudyResult.per_run()", "arm seed AP APr APc APf")
def arm_ap(table: pd.DataFrame, ax: Axes | None = None, *, label: str = "AP (%)") -> Axes:
    """AP, APr, APc and APf of a study's arms: the mean as a large point, every seed as a small one.

    Args:
        table: one row per run, of one IoU type: arm, seed, AP, APr, APc, APf in percent (NaN is left out); arms are
            drawn in the order in which they come.
        label: of the x axis.
    """
    parts.need_once(table, ["arm", "seed"], "choose one iou_type")
    arms = list(dict.fromkeys(table["arm"]))
    ax, lanes = _rows(ax, arms, METRICS)
    means = table.groupby("arm")[METRICS].mean().reindex(arms)
    for metric, shift in lanes.items():
        color = metric_color(metric)
        ax.scatter(table[metric], table["arm"].map(arms.index) + shift, s=9, color=tint(color, 0.6), lw=0, zorder=2)
        ax.scatter(means[metric], np.arange(len(arms)) + shift, s=27, color=color, linewidth=0, zorder=3)
    ax.set(xlabel=label, xlim=(0, None))
    several = table.groupby("arm")["seed"].nunique().max() > 1
    _legend(ax, METRICS, "large: mean over seeds; small: each seed" if several else None, linestyle="none")
    return ax


@parts.figure("StudyResult.comparisons()", "arm baseline metric difference low high resolved")
def paired_differences(table: pd.DataFrame, ax: Axes | None = None, *, label: str = "AP, difference in points") -> Axes:
    """A study's comparisons: the difference of two arms with its interval, for each metric in the table.

    A filled point is resolved, a hollow one is not.

    Args:
        table: one row per comparison and metric, of one IoU type: arm, baseline, metric (AP, APr, APc, APf),
            difference, low, high (points; NaN intervals are not drawn), resolved (bool); comparisons are drawn in the
            order in which they come.
        label: of the x axis.
    """
    if unknown := set(table["metric"]) - set(METRICS):
        raise parts.PlotError(f"table, column 'metric': expected {', '.join(METRICS)}, found {sorted(unknown)[0]!r}.")
    parts.need_once(table, ["arm", "baseline", "metric"], "choose one iou_type")
    names = table["arm"].map(str) + f" {MINUS} " + table["baseline"].map(str)
    names = names.map(lambda name: name if len(name) <= 30 else name.replace(f" {MINUS}", f"\n{MINUS}"))
    rows = list(dict.fromkeys(names))
    table = table.assign(row=names.map(rows.index))
    metrics = [metric for metric in METRICS if metric in set(table["metric"])]
    ax, lanes = _rows(ax, rows, metrics)
    ax.axvline(0, color=ink().quiet, linewidth=0.9, zorder=1)
    for metric, shift in lanes.items():
        of, color = table[table["metric"] == metric], metric_color(metric)
        y = of["row"] + shift
        ax.hlines(y, of["low"], of["high"], color=color, linewidth=1.3, zorder=2)
        fill = np.where(of["resolved"].astype(bool), color, ink().page)
        ax.scatter(of["difference"], y, s=24, facecolor=fill, edgecolor=color, linewidth=1.2, zorder=3)
    ax.set_xlabel(label)
    parts.span_at_least(ax.xaxis, 2)
    _legend(ax, metrics, "filled: resolved; hollow: not resolved; line: 95 % interval")
    return ax
