"""Figures of a data set: how long its tail is, what its images hold."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from rio.plots import parts
from rio.plots.labels import Labels
from rio.plots.style import COLORS, GROUP_NAMES, GROUPS, ink, styled, tint

TABLE = "rio.open_dataset(...).table"
LABELS = {"image_count": "images with the category", "instance_count": "objects of the category"}


@parts.figure(TABLE, "frequency instance_count")
def count_by_group(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Share of the categories, and of the annotated objects, that is rare, common and frequent.

    Args:
        table: one row per category with frequency, instance_count (at least one object in all).
    """
    if table["instance_count"].sum() == 0:
        raise parts.PlotError("table, column 'instance_count': expected objects, found none. Fix: annotate some.")
    ax = parts.axes(ax, 6.2, 1.9)
    by_group = table.groupby("frequency")["instance_count"]
    for y, counts in enumerate((by_group.size(), by_group.sum())):
        counts = counts.reindex(GROUPS, fill_value=0)
        share = counts / counts.sum()
        words = {g: f"{counts[g]:,}\n{parts.percent(share[g])}" for g in GROUPS}
        if thin := parts.stacked_bar(ax, y, share, words, COLORS, least=0.09, height=0.62):  # listed below the bar
            at, side = (thin[0][1], "left") if thin[0][1] < 0.5 else (1.0, "right")
            text = ", ".join(f"{GROUP_NAMES[g]} {counts[g]:,} ({parts.percent(share[g])})" for g, _ in thin)
            look = {"textcoords": "offset points", "va": "top", "annotation_clip": False}
            ax.annotate(text, (at, y + 0.31), (0, -2.5), ha=side, fontsize=8, **look)
    parts.bare_bars(ax, {0: "categories", 1: "objects"}, 1, 1.72, -0.42)
    parts.legend_above(ax, **parts.group_squares(table["frequency"]))
    return ax


@styled
def sorted_tail(table: pd.DataFrame, ax: Axes | None = None, *, by: str = "image_count") -> Axes:
    """The long tail: the count of every category, sorted, on a log scale, coloured by frequency group.

    Args:
        table: one row per category with frequency, name and the column `by`.
        by: the count to show: image_count, instance_count, or an exposure.
    """
    parts.need(table, ("frequency", "name", by), TABLE)
    ax = parts.axes(ax, 6.2, 3.0)
    order = table.sort_values(by, ascending=False, kind="stable").reset_index(drop=True)
    height = order[by].to_numpy(float)
    least = height[height > 0].min(initial=max(height.max(), 1))
    lowest = 0.7 if least >= 1 else least / 1.5
    tops, width = np.maximum(height, lowest), 0.78 if len(order) <= 60 else 1.0
    ax.bar(order.index, tops - lowest, width, lowest, color=order["frequency"].map(COLORS), linewidth=0)
    parts.log_scale(ax.yaxis)
    ax.set(ylim=(lowest, max(height.max(), 1) * 3), ylabel=LABELS.get(by, by))
    parts.bare_columns(ax, order["name"])
    labels = Labels(ax)
    for group in GROUPS:
        members = order.index[order["frequency"] == group]
        if len(members):
            at, text = (float(np.median(members)), tops[members].max()), f"{len(members):,} {GROUP_NAMES[group]}"
            labels.beside(at, text, first=(0, 1), fontsize=8.5, fontweight="bold")
    return ax


@parts.figure(TABLE, "frequency name image_count instance_count")
def image_vs_instance_count(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Objects against images of every category: how far apart object level and image level are.

    On the dashed line an image holds one object of the category; above it, several. The four with most are named.

    Args:
        table: one row per category with frequency, name, image_count (at least one above 0), instance_count.
    """
    seen = table[table["image_count"] > 0]
    if len(seen) == 0:
        raise parts.PlotError("table, column 'image_count': expected a category with images, found only zeros.")
    seen = seen.sort_values("frequency", key=lambda column: -column.map(GROUPS.index), kind="stable")  # rare on top
    ax = parts.axes(ax, 4.2, 3.6)
    parts.log_log_points(ax, seen, "image_count", "instance_count", s=float(np.clip(9000 / len(seen), 9, 34)))
    limits = {f"{axis}lim": (0.8, max(seen[column].max(), 10) * 1.6) for axis, column in zip("xy", LABELS, strict=True)}
    ax.set(xlabel=LABELS["image_count"], ylabel=LABELS["instance_count"], **limits)
    ax.legend(**parts.group_squares(seen["frequency"]), loc="lower right")
    ratio = (seen["instance_count"] / seen["image_count"]).nlargest(4)
    labels = Labels(ax)
    for index, dense in ratio[ratio > 1.5].items():
        at, name = tuple(seen.loc[index, list(LABELS)]), seen.loc[index, "name"]
        labels.beside(at, f"{name} ({dense:.0f} an image)", first=(-1, 0), must=False, fontsize=7.5)
    return ax


@parts.figure("rio.open_dataset(...).per_image()", "objects categories")
def objects_per_image(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How many objects, and how many categories, an image holds: both as shares of all images.

    Args:
        table: one row per image with objects, categories.
    """
    ax = parts.axes(ax, 6.2, 2.5)
    most = int(table["objects"].max())
    last = most if most <= 50 else max(int(table["objects"].quantile(0.99)), 40)  # all beyond share the last bar
    filled, outline = {"alpha": 0.55, "linewidth": 0, "zorder": 2}, {"fill": False, "linewidth": 1.4, "zorder": 3}
    handles = []
    for column, color, look in (("objects", COLORS["f"], filled), ("categories", ink().text, outline)):
        shown = table[column].clip(upper=last)
        bins = {"discrete": True, "binrange": (0, last), "stat": "percent", "element": "step"}
        sns.histplot(x=shown, color=color, ax=ax, **bins, **look)
        text = f"{column}: {table[column].mean():.1f} an image, at most {table[column].max():,}"
        handles.append(Patch(label=text, **{"color": color, **look}))
    ax.set(xlabel="in one image", ylabel="% of images", xlim=(-0.5, last + 0.5))
    parts.legend_above(ax, handles, handlelength=1.2, handleheight=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    if last < most:
        ticks = range(0, last - 4, 10 if last < 100 else 50)
        ax.set_xticks([*ticks, last], [*map(str, ticks), f"{last} or more"])
    ax.grid(axis="y")
    return ax


@parts.figure("rio.open_dataset(...).sizes()", "frequency side")
def sizes_by_group(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Object sizes of each frequency group: their distribution, its median and its middle half.

    Args:
        table: one row per object with frequency, and side: the root of its share of the image's area, in percent,
            above 0.
    """
    if not (table["side"] > 0).all():
        raise parts.PlotError("table, column 'side': expected sizes above 0. Fix: leave out objects without an area.")
    ax = parts.axes(ax, 6.2, 2.7)
    side = table["side"].clip(lower=table["side"].quantile(0.001))
    data = table.assign(side=side, group=table["frequency"].astype(str))
    present = [g for g in GROUPS if g in set(data["group"])]
    shared = {"data": data, "x": "side", "y": "group", "order": present, "log_scale": (True, False), "ax": ax}
    violin = {"cut": 0, "density_norm": "width", "inner": None, "bw_adjust": 0.6, "linewidth": 0, "saturation": 1}
    colors = {g: tint(COLORS[g], 0.75) for g in present}
    sns.violinplot(**shared, hue="group", palette=colors, legend=False, **violin)
    sns.pointplot(**shared, estimator="median", errorbar=("pi", 50), linestyle="none", color=ink().text, markersize=5)
    parts.log_scale(ax.xaxis)
    found = data.groupby("group")["side"].agg(["size", "median"]).loc[present].itertuples()
    names = [f"{GROUP_NAMES[g]}\n{parts.counted(size, 'object')}\nmedian {median:.3g}%" for g, size, median in found]
    parts.bare_rows(ax, range(len(present)), names)
    ax.set(xlabel="side of the object, % of the image's side", ylabel="")
    return ax


@styled
def company(table: pd.DataFrame, ax: Axes | None = None, *, group: str = "r") -> Axes:
    """What the objects of a group share their images with, beside how usual that company is anyway.

    A bar reaches to the share of the group's images that also hold the category, a ring to its share of all
    images: where a bar passes its ring, the group's images have this company more often than others.

    Args:
        table: by falling share: name, frequency, share, share_of_all (shares in 0..1). The first 14 rows are drawn;
            without rows the figure says that there is no company.
        group: whose company it is.
    """
    if len(table) == 0 and "share" in table.columns:
        ax = parts.axes(ax, 6.2, 0.6)
        ax.text(0, 0.5, f"No {GROUP_NAMES[group]} object shares its image with another category.", va="center")
        ax.set_axis_off()
        return ax
    parts.need(table, ("name", "frequency", "share", "share_of_all"), "rio.open_dataset(...).company()")
    table = table.head(14)
    ax, y = parts.axes(ax, 6.2, 0.75 + 0.22 * len(table)), range(len(table))
    share, overall = 100 * table["share"], 100 * table["share_of_all"]
    ax.barh(y, share, height=0.66, color=table["frequency"].map(COLORS), linewidth=0, zorder=2)
    ax.scatter(overall, y, s=34, facecolor=ink().page, edgecolor=ink().text, linewidth=1.3, zorder=3)
    parts.bare_rows(ax, y, map(parts.short, table["name"]))
    ax.set(xlim=(0, max(share.max(), overall.max()) * 1.08), ylim=(len(table) - 0.4, -0.6))
    ax.set_xlabel(f"% of images:  bar, those with a {GROUP_NAMES[group]} object;  ring, all")
    ax.grid(axis="x")
    parts.legend_above(ax, **parts.group_squares(table["frequency"]))
    return ax
