"""The figure of what losses make of positive and negative gradients."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from rio.plots import parts
from rio.plots.style import COLORS, GROUP_NAMES, GROUPS, ink


@parts.figure("rio.compare_sampling(...).gradients()", "loss arm frequency positive negative ratio")
def gradient_balance(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Positive over negative gradient on the classes' logits, a row per loss, a colour per frequency group.

    Large points are whole groups, small ones single classes of the first arm; open points are the second arm. The
    closer the three colours of a row, the more alike the loss treats the groups. Where a row lies as a whole depends on
    the start: a sigmoid that begins at "no" has little negative gradient yet.

    Args:
        table: loss, arm (at most two), frequency, positive, negative, ratio (NaN is left out), a row per class.
    """
    losses, arms = list(dict.fromkeys(table["loss"])), list(dict.fromkeys(table["arm"]))
    if len(arms) > 2:
        raise parts.PlotError(
            f"table, column 'arm': expected at most two, found {', '.join(arms)}. Fix: leave some out."
        )
    ax = parts.axes(ax, 6.8, 0.9 + 0.34 * len(losses))
    sums = table.groupby(["loss", "arm", "frequency"], observed=True)[["positive", "negative"]].sum()
    for y, loss in enumerate(losses):
        for place, arm in enumerate(arms):
            at = y + 0.16 * (2 * place - len(arms) + 1)
            for group in GROUPS:
                if (loss, arm, group) not in sums.index:
                    continue
                color, (positive, negative) = COLORS[group], sums.loc[loss, arm, group]
                own = table[(table["loss"] == loss) & (table["arm"] == arm) & (table["frequency"] == group)]["ratio"]
                if place == 0:
                    ax.scatter(own, np.full(len(own), at), s=7, color=color, alpha=0.3, linewidth=0, zorder=2)
                if positive > 0 < negative:
                    fill = color if place == 0 else ink().page
                    ax.scatter(positive / negative, at, s=52, facecolor=fill, edgecolor=color, linewidth=1.4, zorder=3)
    parts.log_scale(ax.xaxis, text="{x:g}")
    ax.axvline(1, color=ink().quiet, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    ax.set(xlabel="positive over negative gradient on a class's logit", ylim=(len(losses) - 0.4, -0.6))
    parts.bare_rows(ax, range(len(losses)), losses)
    ax.grid(axis="x")
    look = {"linestyle": "", "marker": "o", "markersize": 7}
    shown = [g for g in GROUPS if g in set(table["frequency"])]
    handles = [Line2D([], [], color=COLORS[g], label=GROUP_NAMES[g], **look) for g in shown]
    fills = (ink().quiet, "none")
    handles += [
        Line2D([], [], color=ink().quiet, markerfacecolor=f, label=arm, **look)
        for f, arm in zip(fills, arms, strict=False)
    ]
    parts.legend_above(ax, handles, ncols=5, handlelength=0.9)
    return ax
