"""Figures of what errors cost and of which classes are taken for each other."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import PowerNorm

from rio.plots import parts
from rio.plots.style import COLORS, GROUP_NAMES, ink

COSTS = ("classification", "localisation", "both", "duplicate", "background", "missed")
_MOST_CELLS = 120  # along a side; more categories are pooled


@parts.figure("rio.open_runs(...).breakdown()", "group arm AP50 " + " ".join(COSTS))
def error_costs(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What correcting all errors of one kind would bring, in points of AP50, by frequency group and arm (TIDE's dAP).

    Costs of different kinds do not add up: each is that of correcting this kind alone.

    Args:
        table: one row per group and arm: group ("all", "r", "c", "f"), arm, AP50, and a column per kind of error.
    """
    import seaborn as sns

    table = table.sort_values("group", kind="stable", key=lambda groups: groups.map(("all", *GROUP_NAMES).index))
    ax = parts.axes(ax, 8.4, 0.8 + 0.23 * len(table))
    values = table[list(COSTS)].to_numpy()
    top, words = max(np.nanmax(values), 1.0), {"size": 8, "color": ink().text}
    sns.heatmap(
        values, ax=ax, annot=True, fmt=".1f", cmap=parts.ink_ramp(0.03, 0.45), norm=PowerNorm(0.6, 0, top), cbar=False,
        annot_kws=words,
    )  # fmt: skip
    ax.set_xticklabels(COSTS)
    ax.xaxis.tick_top()
    names = [f"{arm}  (AP50 {ap:.1f})" for arm, ap in zip(table["arm"], table["AP50"], strict=True)]
    ax.set_yticklabels(names, rotation=0)
    ax.tick_params(length=0, labelcolor=ink().text)
    parts.arm_squares(ax, table, dict(zip(np.arange(len(table)) + 0.5, table["arm"], strict=True)))
    groups = table["group"]
    for group, rows in groups.groupby(groups, sort=False):
        first = int(np.flatnonzero((groups == group).to_numpy())[0])
        ax.axhline(first, color=ink().page, linewidth=3)
        name = GROUP_NAMES.get(group, group)
        color = COLORS.get(group, ink().text)
        where = {"xycoords": ax.get_yaxis_transform(), "xytext": (8, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(name, (1, first + len(rows) / 2), color=color, fontweight="bold", **where)
    return ax


@parts.figure("rio.open_runs(...).confusions()", "others missed")
def confusions(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What objects are taken for, as a matrix from frequent to rare categories; each row is a category's objects.

    Above the diagonal objects are taken for rarer categories, below it for more frequent ones. More than 120 categories
    are pooled, neighbours in frequency together.

    Args:
        table: percent of the row's objects; index: names of categories; columns: the same names, others, missed;
            `attrs` hold the rows' frequency groups and may name the arm.
    """
    import seaborn as sns

    groups, size = np.array(table.attrs["frequency"]), len(table)
    cell = -(-size // _MOST_CELLS)
    starts = np.arange(0, size, cell)
    square = np.add.reduceat(table.to_numpy()[:, :size], starts, axis=1)
    ends = [name for name in ("others", "missed") if table[name].any()]
    wide = max(len(starts) // 22, 1)  # cells of a column at the end, for its name
    cells = np.hstack([square, np.repeat(table[ends].to_numpy(), wide, axis=1)])
    cells = np.add.reduceat(cells, starts, axis=0) / np.diff(starts, append=size)[:, None]
    ax = parts.axes(ax, 6.6, 5.6)
    sns.heatmap(
        cells, ax=ax, cmap=parts.ink_ramp(0.0, 1.0), norm=PowerNorm(0.5, 0, 100), xticklabels=False, yticklabels=False,
        cbar_kws={"label": "% of the objects", "ticks": [0, 5, 20, 50, 100], "shrink": 0.6},
    )  # fmt: skip
    _pickable(ax.collections[0], cells, table, starts, [name for name in ends for _ in range(wide)])
    ax.collections[0].colorbar.solids.set_rasterized(False)  # as a bitmap it would not follow a theme
    places, names = len(starts) + wide * (np.arange(len(ends)) + 0.5), ends
    if size <= 45:
        own = np.arange(size) + 0.5
        places, names = [*own, *places], [*map(parts.short, table.index), *ends]
        ax.set_yticks(own, names[:size], rotation=0, fontsize=7)
    ax.set_xticks(places, names, rotation=90, fontsize=7)
    ax.tick_params(length=0)
    edge = 0.018 * len(starts)
    for group in dict.fromkeys(groups.tolist()):
        first, last = np.flatnonzero(groups == group)[[0, -1]] / cell
        look = {"color": COLORS[group], "linewidth": 4, "clip_on": False, "solid_capstyle": "butt"}
        ax.plot([first, last + 1], [-edge, -edge], **look)
        ax.plot([-edge, -edge], [first, last + 1], **look)
        look = {"color": COLORS[group], "ha": "center", "va": "bottom", "annotation_clip": False}
        ax.annotate(GROUP_NAMES[group], ((first + last + 1) / 2, -2 * edge), **look)
    ax.axvline(len(starts), color=ink().rule, linewidth=1)
    ax.set(xlabel=f"taken for, {size:,} categories from frequent to rare")
    ax.set_ylabel("objects of", labelpad=12)
    arm = table.attrs.get("arm", "")
    ax.set_title(f"{arm}: what objects are taken for", pad=26, color=parts.color_of_arm(table, arm) or ink().text)
    return ax


def _pickable(mesh: QuadMesh, cells: np.ndarray, table: pd.DataFrame, starts: np.ndarray, ends: list[str]) -> None:
    """Every cell says its categories and share, and asks for its objects."""
    names = list(table.index)
    rows = [names[first:last] for first, last in itertools.pairwise([*starts.tolist(), len(names)])]
    columns = [*rows, *([name] for name in ends)]
    arm, least, items = table.attrs.get("arm"), table.attrs.get("score_threshold"), []
    for (i, row), column in itertools.product(enumerate(rows), range(len(columns))):
        first, second = (own[0] if len(own) == 1 else f"{own[0]} to {own[-1]}" for own in (row, columns[column]))
        name = (
            f"{first} found" if i == column else f"{first} taken for {second}".replace(" taken for missed", " missed")
        )
        asked = {"name": name, "objects": row, "taken_for": columns[column], "arm": arm, "score_threshold": least}
        share = cells[i, column]
        items.append((f"{name}: {share:.0f}%" if share else "", asked))
    parts.pickable(mesh, items)
