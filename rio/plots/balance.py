"""Figures of what training sees: shares, effective classes, thresholds."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rio.plots import parts
from rio.plots.labels import Labels
from rio.plots.style import ARM_COLORS, COLORS, GROUPS, LEVEL_NAMES, ink

COMPARED, ADVICE = "rio.compare_sampling(...).compare()", "rio.compare_sampling(...).advice()"
STEPS = [("none", "RFS", "RFS"), ("bank", "RFS + bank", "RFS"), ("none", "bank", "bank"), ("RFS", "RFS + bank", "bank")]
COUNTED = {"images": ("o", "images"), "instances": ("^", "objects"), "replayed": ("s", "replayed rows")}


@parts.figure(COMPARED, "arm level r c f effective_classes")
def balance_by_group(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What training sees at each level under each arm: the share of rare, common and frequent classes.

    Args:
        table: one row per arm and level (images, instances, rois): arm, level, r, c, f (shares in 0..1) and
            effective_classes.
    """
    if absent := sorted(set(LEVEL_NAMES) - set(table["level"])):
        raise parts.PlotError(f"table, column 'level': expected {absent[0]!r}, found {sorted(set(table['level']))}.")
    ax = parts.axes(ax, 6.6, 0.5 + 0.27 * len(LEVEL_NAMES) * (table["arm"].nunique() + 1.3))
    beside = {"textcoords": "offset points", "annotation_clip": False, **parts.CENTRED}
    for at, title in ((22, "rare\nshare"), (60, "effective\nclasses")):
        ax.annotate(title, (1, 0), (at, 0), color=ink().quiet, fontsize=8, linespacing=1.1, **beside)
    arms, y = {}, 0.0
    for level, name in LEVEL_NAMES.items():
        ax.text(-0.012, y, name, ha="right", va="center", fontweight="bold", fontsize=9)
        for row in table[table["level"] == level].to_dict("records"):
            y += 1
            arms[y] = row["arm"]
            words = {group: parts.percent(row[group]) for group in GROUPS}
            parts.stacked_bar(ax, y, {group: row[group] for group in GROUPS}, words, COLORS, least=0.06)
            ax.annotate(words["r"], (1, y), (22, 0), fontsize=8.5, fontweight="bold", **beside)
            ax.annotate(f"{row['effective_classes']:.1f}", (1, y), (60, 0), fontsize=8.5, **beside)
        y += 1.3
    parts.bare_bars(ax, arms, 1, y - 0.7, -0.6)
    parts.legend_above(ax, **parts.group_squares())
    return ax


@parts.figure(COMPARED, "arm level effective_classes categories")
def image_or_object(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Image level or object level? The balance of the images shown against that of the RoIs trained on, per arm.

    Balance is the effective number of classes in percent of all. Repeating images moves an arm along the
    diagonal: what it shows more often, the classifier sees more often. Replaying objects moves it straight up.

    Args:
        table: one row per arm and level ("images" and "rois"): arm, level, effective_classes, and the number of
            `categories`. Arms named "none", "bank", "RFS", "RFS + bank" are joined by arrows.
    """
    wide = table.pivot(index="arm", columns="level", values="effective_classes")
    if missing := {"images", "rois"} - set(wide.columns):
        raise parts.PlotError(f"table, column 'level': expected images and rois, found no {sorted(missing)[0]}.")
    wide = 100 * wide[["images", "rois"]] / table["categories"].iloc[0]
    low, high = wide.min(), wide.max()
    reach = high.max() - low.min()
    ax = parts.axes(ax, 6.2, 4.4)
    parts.diagonal(ax)
    arrow = {"arrowstyle": "-|>,head_width=0.28,head_length=0.5", "linewidth": 2.2, "shrinkA": 6, "shrinkB": 7}
    for start, end, way in STEPS:
        if {start, end} <= set(wide.index) and np.hypot(*(wide.loc[end] - wide.loc[start])) >= 0.02 * reach:
            ax.annotate("", wide.loc[end], wide.loc[start], zorder=2, arrowprops={**arrow, "color": ARM_COLORS[way]})
    kinds = (("RFS", ">", "repeat images (RFS)"), ("bank", "^", "replay objects (bank)"))
    parts.legend_above(ax, [Line2D([], [], color=ARM_COLORS[w], lw=2.4, marker=m, label=text) for w, m, text in kinds])
    main = wide.index.isin([arm for step in STEPS for arm in step[:2]])
    for of, size, marker, color in ((wide[main], 70, "o", ink().text), (wide[~main], 42, "D", ink().quiet)):
        ax.scatter(of["images"], of["rois"], s=size, marker=marker, color=color, zorder=4, linewidth=0)
    pad = max(0.14 * reach, 0.5)
    ax.set(xlim=(low["images"] - 1.3 * pad, high["images"] + 2.2 * pad), ylim=(low["rois"] - pad, high["rois"] + pad))
    ax.set_xlabel("Image level: effective classes among the images shown, % of all")
    ax.set_ylabel("Object level: effective classes\namong the RoIs trained on, % of all")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6))
    ax.grid(True)
    labels, bold, quiet = Labels(ax), {"fontsize": 9.5, "fontweight": "bold"}, {"fontsize": 8.5, "color": ink().quiet}
    for of, look in ((wide[main], bold), (wide[~main], quiet)):
        for arm, at in of.iterrows():
            labels.beside(tuple(at), str(arm), **look)
    return ax


@parts.figure(
    "rio.compare_sampling(...).advice()", "method repeat_threshold epoch_length effective_classes suggested current"
)
def threshold_advice(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Balance of the images against the length of an epoch at each threshold: what a longer epoch buys.

    Args:
        table: one row per method and threshold: method, repeat_threshold, epoch_length (in passes over the
            images), effective_classes, suggested (bool: ringed and named), current (bool: marked).
    """
    ax = parts.axes(ax, 6.2, 3.0)
    x, y = "epoch_length", "effective_classes"
    names = []
    for method, rows in table.groupby("method", sort=False):
        color = ARM_COLORS[method]
        ax.plot(rows[x], rows[y], color=color, marker="o", markersize=3.5, label=str(method), zorder=3)
        best, used = rows[rows["suggested"]], rows[rows["current"]]
        ax.scatter(best[x], best[y], s=110, facecolor="none", edgecolor=color, zorder=4, linewidth=1.6)
        ax.scatter(used[x], used[y], s=50, marker="x", color=ink().text, zorder=4, linewidth=1.6)
        names += [(row, "suggested", {"color": color, "fontweight": "bold"}) for _, row in best.iterrows()]
        names += [(row, "in use", {}) for _, row in used.iterrows()]
    parts.log_scale(ax.xaxis, text="{x:.3g}×")
    ax.margins(x=0.06, y=0.16)
    parts.span_at_least(ax.yaxis, 1)
    ax.set(xlabel="length of an epoch, times the images", ylabel="effective classes, image level")
    ax.grid(True)
    ax.legend(loc="lower right")
    labels = Labels(ax)
    for row, kind, look in names:
        labels.beside((row[x], row[y]), f"{kind}: {row['repeat_threshold']:.2g}", fontsize=8.5, **look)
    return ax


@parts.figure("rio.compare_sampling(...).check()", "frequency level expected counted")
def expected_vs_counted(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What the arithmetic expects against what the sampler and the bank did when run. On the line they agree.

    Args:
        table: one row per category and level: frequency, level, expected, counted.
    """
    table = table[(table["expected"] > 0) & (table["counted"] > 0)]
    if len(table) == 0:
        raise parts.PlotError("table: expected categories that are seen, found only zeros.")
    ax = parts.axes(ax, 4.6, 3.4)
    kinds = {level: COUNTED.get(level, ("D", level)) for level in dict.fromkeys(table["level"])}
    markers = {level: marker for level, (marker, _) in kinds.items()}
    parts.log_log_points(ax, table, "expected", "counted", style="level", markers=markers, s=26)
    values = table[["expected", "counted"]].to_numpy(float)
    limits = (values.min() / 1.5, values.max() * 1.5)
    ax.set(xlim=limits, ylim=limits, xlabel="expected per epoch", ylabel="counted per epoch")
    handles = [Line2D([], [], ls="", ms=5, color=ink().quiet, marker=m, label=name) for m, name in kinds.values()]
    ax.legend(handles=handles, loc="upper left", handletextpad=0.2)
    return ax
