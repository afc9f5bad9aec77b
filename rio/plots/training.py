"""The figure of a training: its losses."""

from collections.abc import Iterable, Mapping

import pandas as pd
from matplotlib.axes import Axes

from rio.plots import parts
from rio.plots.labels import Labels
from rio.plots.style import LINE_COLORS, ink, styled

STEPS = 20  # whose medians detectron2 logs


def seams_of(table: pd.DataFrame) -> list[int]:
    """The iterations at which a run was resumed, from the rows of its metrics.json."""
    return sorted(table.loc[table["resumed"].notna(), "iteration"].unique()) if "resumed" in table else []


def over_seams(values: pd.Series, seams: Iterable[int]) -> pd.Series:
    """Logged losses as if the run had not been resumed.

    What is logged is the median of the last 20 steps, after a resume of those since. There the last value before it
    stands for the missing ones, so that a falling loss makes no step down.

    Args:
        values: by iteration, ascending.
        seams: of `seams_of`.
    """
    values = values.copy()
    for seam in seams:
        before, after = values[values.index < seam], values[(values.index >= seam) & (values.index < seam + STEPS - 1)]
        if len(before):
            share = (after.index - seam + 1) / STEPS
            values[after.index] = share * after + (1 - share) * before.iloc[-1]
    return values


@styled
def loss_curves(table: pd.DataFrame | Iterable[Mapping[str, float]], ax: Axes | None = None) -> Axes:
    """Losses over iterations, from the rows of detectron2's metrics.json.

    Faint lines are the values, strong ones their running median over a tenth of the rows. Dashed lines mark where the
    run was resumed: the values, medians of 20 steps, begin anew there; the strong lines go on (`over_seams`).

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
    seams = seams_of(table)
    ax = parts.axes(ax, 6.2, 3.0)
    # After a resume detectron2 appends; an iteration logged twice counts as the later run logged it.
    table = table.dropna(subset=losses, how="all").drop_duplicates("iteration", keep="last")
    table = table.sort_values("iteration").set_index("iteration")
    window = max(len(table) // 10, 1)
    smooth = window > 1 or len(seams) > 0
    ends = []
    for i, name in enumerate(losses):
        total = name == "total_loss"
        color = ink().text if total else LINE_COLORS[i % len(LINE_COLORS)]
        rows = table[name].dropna()
        ax.plot(rows, color=color, linewidth=0.7, alpha=0.35 if smooth else 1.0)
        line = over_seams(rows, seams).rolling(window, min_periods=1, center=True).median()
        if smooth:
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
