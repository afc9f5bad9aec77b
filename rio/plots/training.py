"""The figure of a training: its losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd
from matplotlib.axes import Axes

from rio.plots import parts
from rio.plots.labels import Labels
from rio.plots.style import LINE_COLORS, ink, styled


@styled
def loss_curves(table: pd.DataFrame | Iterable[Mapping[str, float]], ax: Axes | None = None) -> Axes:
    """Losses over iterations, from the rows of detectron2's metrics.json.

    Faint lines are the values, strong ones their running median over a tenth of the rows. Dashed lines mark where the
    run was resumed: the values, medians of 20 steps, begin anew there, so a step down at one is no progress.

    Args:
        table: rows with `iteration`, total_loss and columns whose names begin with "loss" (rows without a loss, as of
            the evaluation, are left out).
    """
    table = table if isinstance(table, pd.DataFrame) else pd.DataFrame(list(table))
    parts.need(table, ("iteration",), "metrics.json of a run")
    losses = sorted(table.filter(regex="^(total_)?loss"), key=lambda name: (name != "total_loss", name))
    if table[losses].isna().all(axis=None):
        found = f"found columns {list(table.columns)}. Fix: wait until the run has logged an iteration."
        raise parts.PlotError(f"table: expected losses, {found}")
    seams = table.loc[table["resumed"].notna(), "iteration"].unique() if "resumed" in table else []
    ax = parts.axes(ax, 6.2, 3.0)
    # After a resume detectron2 appends; an iteration logged twice counts as the later run logged it.
    table = table.dropna(subset=losses, how="all").drop_duplicates("iteration", keep="last")
    table = table.sort_values("iteration").set_index("iteration")
    window = max(len(table) // 10, 1)
    ends = []
    for i, name in enumerate(losses):
        total = name == "total_loss"
        color = ink().text if total else LINE_COLORS[i % len(LINE_COLORS)]
        rows = table[name].dropna()
        ax.plot(rows, color=color, linewidth=0.7, alpha=0.35 if window > 1 else 1.0)
        line = rows.rolling(window, min_periods=1, center=True).median()
        if window > 1:
            ax.plot(line, color=color, linewidth=1.6 if total else 1.2)
        ends += [(end, name, color) for end in line.iloc[-1:]]
    for seam in seams:
        ax.axvline(seam, color=ink().quiet, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        place = {"xycoords": ("data", "axes fraction"), "xytext": (3, -1), "textcoords": "offset points", "va": "top"}
        ax.annotate("resumed", (seam, 1), fontsize=8, color=ink().quiet, **place)
    first, last = table.index.min(), table.index.max()
    low, high = ax.get_ylim()
    ax.set(xlabel="iteration", ylabel="loss", xlim=(first, max(last, first + 1)), ylim=(min(0, low), high))
    ax.grid(axis="y")
    words = {name: name.removeprefix("loss_").replace("total_loss", "total").replace("_", " ") for name in losses}
    Labels(ax, avoid_data=False).on_right([(value, words[name], color) for value, name, color in ends], fontsize=8.5)
    return ax
