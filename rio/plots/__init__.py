"""Figures: a table in, a matplotlib `Axes` out. Nothing here reads or writes a file.

One look for notebooks, report and paper: rare, common and frequent have the same three colours in every
figure (far apart for colour-blind readers, and of different lightness in print), text is text-sized, lines
that carry no data are left out, and all of it exports as vectors. Every function takes `ax=None`; without one
it makes a figure of a size that suits it. The style is applied to the call, never to the process: `rcParams`
are as they were afterwards. `with style(dark=True):` around calls gives figures for a dark page.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from rio.data.annotations import GROUP_NAMES

GROUPS = tuple(GROUP_NAMES)
COLORS = {"r": "#DC5F71", "c": "#E3AC3D", "f": "#2768A7"}
LEVEL_NAMES = {"images": "images", "instances": "objects", "rois": "RoIs"}
LINE_COLORS = ("#332288", "#44AA99", "#CC6677", "#999933", "#88CCEE", "#AA4499", "#117733", "#DDCC77")

_INK = {False: ("#1F2430", "#5C6470", "#D9DDE3"), True: ("#E8EBF0", "#A3ABB8", "#3A414D")}  # text, quiet text, rules
_dark: ContextVar[bool | None] = ContextVar("dark", default=None)  # None: no style() is active


class PlotError(ValueError):
    """A table that cannot be drawn; the message names the column, what was expected and the remedy."""


# ------------------------------------------------------------------------------------------------- style


@contextmanager
def style(*, dark: bool = False) -> Iterator[None]:
    """Apply the project's look to everything drawn inside the `with` block, and to nothing else.

    Args:
        dark: light ink on a transparent ground, for dark pages. Otherwise dark ink on white.
    """
    _load_backend()
    ink, quiet, rule = _INK[dark]
    paper = "none" if dark else "white"
    token = _dark.set(dark)
    try:
        with mpl.rc_context(
            {
                "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
                "font.size": 9,
                "axes.titlesize": 10.5,
                "axes.titleweight": "bold",
                "axes.titlelocation": "left",
                "axes.titlepad": 10,
                "axes.labelsize": 9,
                "axes.labelcolor": quiet,
                "axes.edgecolor": quiet,
                "axes.linewidth": 0.7,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.axisbelow": True,
                "axes.facecolor": "none",
                "grid.color": rule,
                "grid.linewidth": 0.6,
                "text.color": ink,
                "xtick.color": quiet,
                "ytick.color": quiet,
                "xtick.labelsize": 8.5,
                "ytick.labelsize": 8.5,
                "xtick.major.width": 0.7,
                "ytick.major.width": 0.7,
                "legend.frameon": False,
                "legend.fontsize": 8.5,
                "lines.linewidth": 1.6,
                "figure.facecolor": paper,
                "savefig.facecolor": paper,
                "savefig.dpi": 200,
                "savefig.bbox": "tight",
                "svg.fonttype": "path",
                "svg.hashsalt": "rio",  # the same figure gives the same file
                "pdf.fonttype": 42,
            }
        ):
            yield
    finally:
        _dark.reset(token)


@functools.cache
def _load_backend() -> None:
    # A notebook's backend is loaded with the first figure and then turns interactive mode on, which is an
    # rcParam: loaded # inside the style it would be off again afterwards, and no figure would ever show.
    plt.switch_backend(mpl.get_backend())


def _styled(function: Callable[..., Axes]) -> Callable[..., Axes]:
    """Draw in the style of the surrounding `style()` block, or in the light one where there is none."""

    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> Axes:
        if _dark.get() is not None:
            return function(*args, **kwargs)
        with style():
            return function(*args, **kwargs)

    return wrapper


def _ink() -> tuple[str, str, str]:
    return _INK[bool(_dark.get())]


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)  # also on an Axes made outside the style
    return ax


def tint(color: str, amount: float) -> tuple[float, float, float]:
    """Mix a colour with the page: 1 is the colour itself, 0 the page."""
    page = np.array(to_rgb("#15181D" if _dark.get() else "white"))
    return tuple(page + amount * (np.array(to_rgb(color)) - page))


def _on(color: str | tuple[float, float, float]) -> str:
    """Black or white, whichever is easier to read on the colour (WCAG relative luminance)."""
    return "#14171C" if luminance(color) > 0.3 else "white"


def luminance(color: str | tuple[float, float, float]) -> float:
    """Relative luminance of a colour, 0 (black) to 1 (white), as WCAG 2 defines it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _need(table: pd.DataFrame, columns: Iterable[str], made_by: str) -> pd.DataFrame:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise PlotError(f"table: expected the column {missing[0]!r}, found {list(table.columns)}. {made_by} makes it.")
    if len(table) == 0:
        raise PlotError(f"table: expected at least one row, found none. {made_by} makes it.")
    if "frequency" in columns and not table["frequency"].isin(GROUPS).all():
        other = table.loc[~table["frequency"].isin(GROUPS), "frequency"].iloc[0]
        raise PlotError(f"table, column 'frequency': expected r, c or f, found {other!r}.")
    return table


def _group_legend(ax: Axes, groups: Iterable[str], **options: object) -> None:
    handles = [Patch(facecolor=COLORS[g], label=GROUP_NAMES[g]) for g in GROUPS if g in set(groups)]
    ax.legend(handles=handles, handlelength=0.9, handleheight=0.9, columnspacing=1.2, handletextpad=0.5, **options)


def _plain_number(value: float, _position: object = None) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _percent(share: float) -> str:
    percent = 100 * share
    if percent == 0:
        return "0%"
    return f"{percent:.0f}%" if percent >= 9.5 else f"{percent:.1f}%" if percent >= 0.1 else "<0.1%"


# ------------------------------------------------------------------------------------------------- data set


@_styled
def count_by_group(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Share of the categories, and of the annotated objects, that is rare, common and frequent.

    Args:
        table: one row a category with frequency, instance_count (`rio.analysis.balance.exposures` has them).
        ax: where to draw; a new figure if None.

    Raises:
        PlotError: a column is missing, or nothing is annotated.
    """
    _need(table, ("frequency", "instance_count"), "rio.analysis.balance.exposures")
    if table["instance_count"].sum() == 0:
        raise PlotError("table, column 'instance_count': expected annotated objects, found none.")
    ax = _axes(ax, 6.2, 1.9)
    rows = {
        "categories": table.groupby("frequency").size(),
        "objects": table.groupby("frequency")["instance_count"].sum(),
    }
    for y, counts in enumerate(rows.values()):
        counts = counts.reindex(GROUPS, fill_value=0)
        left, thin = 0.0, []
        for group in GROUPS:
            width = counts[group] / counts.sum()
            ax.barh(y, width, left=left, height=0.62, color=COLORS[group], edgecolor="none")
            if width > 0.09:
                ax.text(
                    left + width / 2,
                    y,
                    f"{counts[group]:,}\n{_percent(width)}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=_on(COLORS[group]),
                    linespacing=1.15,
                )
            elif counts[group]:
                thin.append((left, f"{GROUP_NAMES[group]} {counts[group]:,} ({_percent(width)})"))
            left += width
        if thin:  # pieces too thin for their number: listed below the bar
            at, side = (thin[0][0], "left") if thin[0][0] < 0.5 else (1.0, "right")
            ax.annotate(
                ", ".join(text for _, text in thin),
                (at, y + 0.31),
                xytext=(0, -2.5),
                ha=side,
                va="top",
                textcoords="offset points",
                fontsize=8,
                annotation_clip=False,
            )
    ax.set(xlim=(0, 1), ylim=(1.72, -0.42), yticks=[0, 1], yticklabels=list(rows))
    ax.tick_params(axis="y", length=0, labelcolor=_ink()[0])
    ax.xaxis.set_visible(False)
    ax.spines[:].set_visible(False)
    _group_legend(ax, table["frequency"], loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, borderaxespad=0.1)
    return ax


@_styled
def sorted_tail(table: pd.DataFrame, ax: Axes | None = None, *, by: str = "image_count") -> Axes:
    """The long tail: every category's count, sorted, on a log scale, coloured by frequency group.

    Args:
        table: one row a category with frequency, name and the column `by`.
        ax: where to draw; a new figure if None.
        by: the count to show: image_count, instance_count, or an exposure.

    Raises:
        PlotError: a column is missing.
    """
    _need(table, ("frequency", "name", by), "rio.analysis.balance.exposures")
    ax = _axes(ax, 6.2, 3.0)
    order = table.sort_values(by, ascending=False, kind="stable").reset_index(drop=True)
    height = order[by].to_numpy(float)
    lowest = 0.7 if height[height > 0].min(initial=1.0) >= 1 else height[height > 0].min() / 1.5
    few = len(order) <= 60
    ax.bar(
        order.index,
        np.maximum(height, lowest) - lowest,
        bottom=lowest,
        width=0.78 if few else 1.0,
        color=order["frequency"].map(COLORS),
        linewidth=0,
    )
    ax.set_yscale("log")
    top = max(height.max(), 1)
    ax.set(xlim=(-0.7, len(order) - 0.3), ylim=(lowest, top * 2.2))
    for group in GROUPS:
        members = order.index[order["frequency"] == group]
        if len(members):
            middle = float(np.median(members))
            tallest = height[members].max()
            ax.annotate(
                f"{GROUP_NAMES[group]}\n{len(members)}",
                (middle, max(tallest, lowest)),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8.5,
                fontweight="bold",
                linespacing=1.2,
            )
    ax.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y")
    label = {"image_count": "images with the category", "instance_count": "objects of the category"}.get(by, by)
    ax.set_ylabel(label)
    if len(order) <= 45:
        ax.set_xticks(order.index, order["name"], rotation=90, fontsize=7)
        ax.tick_params(axis="x", length=0)
    else:
        ax.set_xlabel(f"{len(order):,} categories, from most to least frequent")
    return ax


@_styled
def image_vs_instance_count(table: pd.DataFrame, ax: Axes | None = None, *, annotate: int = 4) -> Axes:
    """Objects against images of every category: how far object level and image level are apart.

    On the dashed line an image holds one object of the category; above it, several.

    Args:
        table: one row a category with frequency, name, image_count, instance_count.
        ax: where to draw; a new figure if None.
        annotate: number of categories, those with most objects an image, to name.

    Raises:
        PlotError: a column is missing, or no category has an image.
    """
    _need(table, ("frequency", "name", "image_count", "instance_count"), "rio.analysis.balance.exposures")
    seen = table[table["image_count"] > 0]
    if len(seen) == 0:
        raise PlotError("table, column 'image_count': expected a category with images, found only zeros.")
    ax = _axes(ax, 4.2, 3.6)
    _, quiet, _ = _ink()
    limit = max(seen["instance_count"].max(), 10) * 1.6
    ax.plot([0.8, limit], [0.8, limit], color=quiet, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    size = float(np.clip(9000 / len(seen), 9, 34))
    for group in reversed(GROUPS):
        members = seen[seen["frequency"] == group]
        ax.scatter(
            members["image_count"],
            members["instance_count"],
            s=size,
            color=COLORS[group],
            alpha=0.85,
            linewidth=0.4,
            edgecolor=tint("#FFFFFF", 1.0) if not _dark.get() else "#15181D",
            zorder=3,
        )
    ax.set(xscale="log", yscale="log", xlim=(0.8, max(seen["image_count"].max(), 10) * 1.6), ylim=(0.8, limit))
    ax.grid(True)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(base=10))
        axis.set_major_formatter(FuncFormatter(_plain_number))
        axis.set_minor_formatter(NullFormatter())
    densest = (seen["instance_count"] / seen["image_count"]).nlargest(annotate)
    ax.set(xlabel="images with the category", ylabel="objects of the category")
    _group_legend(ax, seen["frequency"], loc="lower right")
    if ax.figure.get_layout_engine() is not None:
        ax.figure.draw_without_rendering()  # the names below need the final size of the Axes
    taken: list[Bbox] = []
    for index, ratio in densest[densest > 1.5].items():
        row = seen.loc[index]
        _name_point(ax, (row["image_count"], row["instance_count"]), f"{row['name']} ({ratio:.0f} an image)", taken)
    return ax


def _name_point(ax: Axes, point: tuple[float, float], text: str, taken: list[Bbox]) -> None:
    """Write a name beside a point, inside the Axes and off other names; leave it out where none fits."""
    halo = [withStroke(linewidth=2.2, foreground=tint("white", 0.0))]
    label = ax.annotate(
        text, point, xytext=(6, 0), textcoords="offset points", fontsize=7.5, path_effects=halo, zorder=5
    )
    frame = ax.get_window_extent()
    for x, y in ((-6, 0), (-6, 9), (6, 9), (-6, -9), (6, 0), (-6, 18), (6, 18), (6, -9), (-6, -18), (6, -18)):
        label.xyann = (x, y)
        label.set(ha="left" if x > 0 else "right", va="center")
        extent = label.get_window_extent()
        inside = frame.x0 <= extent.x0 and extent.x1 <= frame.x1 and frame.y0 <= extent.y0 and extent.y1 <= frame.y1
        if inside and not any(extent.overlaps(other) for other in taken):
            taken.append(extent)
            return
    label.remove()


# ------------------------------------------------------------------------------------------------- balance


@_styled
def balance_by_group(
    table: pd.DataFrame, ax: Axes | None = None, *, levels: Sequence[str] = ("images", "instances", "rois")
) -> Axes:
    """What training sees, level by level and arm by arm: the share of rare, common and frequent classes.

    Args:
        table: from `rio.analysis.balance.compare`: arm, level, r, c, f and effective_classes.
        ax: where to draw; a new figure if None.
        levels: which levels to show, top to bottom.

    Raises:
        PlotError: a column or a level is missing.
    """
    _need(table, ("arm", "level", "r", "c", "f", "effective_classes"), "rio.analysis.balance.compare")
    absent = [level for level in levels if level not in set(table["level"])]
    if absent:
        raise PlotError(f"table, column 'level': expected {absent[0]!r}, found {sorted(set(table['level']))}.")
    arms = list(dict.fromkeys(table["arm"]))
    ax = _axes(ax, 6.6, 0.5 + 0.27 * len(levels) * (len(arms) + 1.3))
    ink, quiet, _ = _ink()
    ticks, names, y = [], [], 0.0
    for level in levels:
        rows = table[table["level"] == level].set_index("arm")
        ax.text(-0.012, y, LEVEL_NAMES.get(level, level), ha="right", va="center", fontweight="bold", fontsize=9)
        if level == levels[0]:
            for at, title in ((1.06, "rare\nshare"), (1.16, "effective\nclasses")):
                ax.text(at, y, title, ha="center", va="center", color=quiet, fontsize=8, linespacing=1.1)
        for arm in arms:
            if arm not in rows.index:
                continue
            y += 1
            left = 0.0
            for group in GROUPS:
                width = float(rows.loc[arm, group])
                ax.barh(y, width, left=left, height=0.78, color=COLORS[group], edgecolor="none")
                if width > 0.06:
                    ax.text(
                        left + width / 2,
                        y,
                        _percent(width),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color=_on(COLORS[group]),
                    )
                left += width
            ax.text(1.06, y, _percent(rows.loc[arm, "r"]), ha="center", va="center", fontsize=8.5, fontweight="bold")
            ax.text(1.16, y, f"{rows.loc[arm, 'effective_classes']:.1f}", ha="center", va="center", fontsize=8.5)
            ticks.append(y)
            names.append(arm)
        y += 1.3
    ax.set(xlim=(0, 1), ylim=(y - 0.7, -0.6), yticks=ticks)
    ax.set_yticklabels(names)
    ax.tick_params(axis="y", length=0, labelcolor=ink)
    ax.xaxis.set_visible(False)
    ax.spines[:].set_visible(False)
    _group_legend(ax, GROUPS, loc="lower left", bbox_to_anchor=(-0.005, 1.0), ncols=3, borderaxespad=0.2)
    return ax


@_styled
def image_or_object(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Image level or object level? One point an arm: balance of the images shown against balance of the RoIs
    trained on.

    Balance is the effective number of classes in percent of all. Repeating images moves an arm along the
    diagonal: what it shows more often the classifier sees more often. Replaying objects moves it straight up.

    Args:
        table: from `rio.analysis.balance.compare`: arm, level ("images" and "rois"), effective_classes, and the number
            of `categories`. Arms named "none", "bank", "RFS", "RFS + bank" are joined by arrows.
        ax: where to draw; a new figure if None.

    Raises:
        PlotError: a column or a level is missing.
    """
    _need(table, ("arm", "level", "effective_classes", "categories"), "rio.widgets.balance.Balance.compare")
    wide = table.pivot(index="arm", columns="level", values="effective_classes")
    if missing := {"images", "rois"} - set(wide.columns):
        raise PlotError(f"table, column 'level': expected images and rois, found no {sorted(missing)[0]}.")
    wide = 100 * wide / table["categories"].iloc[0]
    ax = _axes(ax, 6.2, 4.4)
    ink, quiet, _ = _ink()
    low = min(wide["images"].min(), wide["rois"].min())
    high = max(wide["images"].max(), wide["rois"].max())
    pad = max(0.14 * (high - low), 0.5)
    ax.axline((low, low), slope=1, color=quiet, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    steps = [("none", "RFS", "f"), ("bank", "RFS + bank", "f"), ("none", "bank", "r"), ("RFS", "RFS + bank", "r")]
    for start, end, group in steps:
        if start not in wide.index or end not in wide.index:
            continue
        a, b = (wide.loc[start, ["images", "rois"]].to_numpy(float), wide.loc[end, ["images", "rois"]].to_numpy(float))
        if np.hypot(*(b - a)) < 0.02 * (high - low):
            continue
        ax.annotate("", b, a, zorder=2, arrowprops={"arrowstyle": "-|>,head_width=0.28,head_length=0.5",
                    "color": COLORS[group], "linewidth": 2.2, "shrinkA": 6, "shrinkB": 7})  # fmt: skip
    for group, text in (("f", "repeat images (RFS)"), ("r", "replay objects (bank)")):
        ax.plot([], [], color=COLORS[group], linewidth=2.4, marker=">" if group == "f" else "^", label=text)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, borderaxespad=0.1, handlelength=1.4)
    halo = [withStroke(linewidth=3, foreground=tint("white", 0.0))]
    main = {"none", "bank", "RFS", "RFS + bank"}
    for arm, row in wide.iterrows():
        own = arm in main
        ax.scatter(row["images"], row["rois"], s=70 if own else 42, color=ink if own else quiet, zorder=4,
                   linewidth=0 if own else 1.2, marker="o" if own else "D")  # fmt: skip
        left = arm == "bank"  # the others have their arrows there
        ax.annotate(
            str(arm),
            (row["images"], row["rois"]),
            xytext=(-9 if left else 9, 2 if left else -1),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=9.5 if own else 8.5,
            fontweight="bold" if own else "normal",
            color=ink if own else quiet,
            path_effects=halo,
            zorder=5,
        )
    ax.set(xlim=(wide["images"].min() - 1.3 * pad, wide["images"].max() + 2.2 * pad),
           ylim=(wide["rois"].min() - pad, wide["rois"].max() + pad))  # fmt: skip
    ax.set_xlabel("Image level: effective classes among the images shown, % of all")
    ax.set_ylabel("Object level: effective classes\namong the RoIs trained on, % of all")
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.grid(True)
    return ax


@_styled
def threshold_advice(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Balance of the images against length of the epoch, threshold by threshold: what a longer epoch buys.

    Args:
        table: one row a method and threshold: method, repeat_threshold, epoch_length (times the images),
            effective_classes, suggested (bool: ringed and named), current (bool: marked).
        ax: where to draw; a new figure if None.

    Raises:
        PlotError: a column is missing.
    """
    columns = ("method", "repeat_threshold", "epoch_length", "effective_classes", "suggested", "current")
    _need(table, columns, "rio.widgets.balance.Balance.advice")
    ax = _axes(ax, 6.2, 3.0)
    ink, quiet, _ = _ink()
    for i, (method, rows) in enumerate(table.groupby("method", sort=False)):
        color = ("#AA4499", "#2E8B7A")[i % 2]
        ax.plot(rows["epoch_length"], rows["effective_classes"], color=color, marker="o", markersize=3.5,
                label=str(method), zorder=3)  # fmt: skip
        for kind, marker, size, text in (("suggested", "o", 110, "suggested"), ("current", "x", 50, "in use")):
            for _, row in rows[rows[kind]].iterrows():
                ax.scatter(
                    row["epoch_length"],
                    row["effective_classes"],
                    s=size,
                    marker=marker,
                    zorder=4,
                    linewidth=1.6,
                    **({"facecolor": "none", "edgecolor": color} if marker == "o" else {"color": ink}),
                )
                below = (i == 0) != (kind == "current" and i == 1)
                ax.annotate(
                    f"{text}: {row['repeat_threshold']:.2g}",
                    (row["epoch_length"], row["effective_classes"]),
                    xytext=(9, -11 if below else 9),
                    textcoords="offset points",
                    color=color if marker == "o" else ink,
                    fontsize=8.5,
                    va="center",
                    fontweight="bold" if marker == "o" else "normal",
                )
    ax.set_xscale("log")
    ax.margins(x=0.06, y=0.16)
    ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="length of an epoch, times the images", ylabel="effective classes, image level")
    ax.grid(True)
    ax.legend(loc="lower right")
    return ax


@_styled
def expected_vs_counted(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What the arithmetic expects against what a run of the sampler and the bank counted; on the line they
    agree.

    Args:
        table: one row a category and level: frequency, level, expected, counted.
        ax: where to draw; a new figure if None.

    Raises:
        PlotError: a column is missing, or nothing is above 0.
    """
    _need(table, ("frequency", "level", "expected", "counted"), "rio.widgets.balance.Balance.check")
    table = table[(table["expected"] > 0) & (table["counted"] > 0)]
    if len(table) == 0:
        raise PlotError("table: expected categories that are seen, found only zeros.")
    ax = _axes(ax, 4.6, 3.4)
    _, quiet, _ = _ink()
    low, high = (table[["expected", "counted"]].min().min() / 1.5, table[["expected", "counted"]].max().max() * 1.5)
    ax.plot([low, high], [low, high], color=quiet, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    markers = dict(zip(("images", "instances", "replayed"), "o^s", strict=True))
    names = {"images": "images", "instances": "objects", "replayed": "replayed rows"}
    for level, rows in table.groupby("level", sort=False):
        ax.scatter(
            rows["expected"],
            rows["counted"],
            s=26,
            marker=markers.get(level, "D"),
            alpha=0.85,
            zorder=3,
            color=rows["frequency"].map(COLORS),
            linewidth=0.4,
            edgecolor=tint("#FFFFFF", 0.0),
        )
        ax.scatter([], [], s=26, marker=markers.get(level, "D"), color=quiet, label=names.get(level, str(level)))
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    ax.set(xlabel="expected in an epoch", ylabel="counted, an epoch")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(_plain_number))
        axis.set_minor_formatter(NullFormatter())
    ax.grid(True)
    ax.legend(loc="upper left", handletextpad=0.2)
    return ax


# ------------------------------------------------------------------------------------------------- results


@_styled
def ap_by_group(table: pd.DataFrame, ax: Axes | None = None, *, label: str = "AP (%)") -> Axes:
    """AP of all, rare, common and frequent categories, one bar an arm.

    Hue says which group, depth of colour which arm (the last one full). Absent values (NaN) leave a gap and
    say "n/a".

    Args:
        table: one row an arm: arm, AP, APr, APc, APf in percent; optional AP_low, AP_high, APr_low, ... draw
            intervals.
        ax: where to draw; a new figure if None.
        label: of the y axis.

    Raises:
        PlotError: a column is missing, or an arm appears twice.
    """
    metrics = ("AP", "APr", "APc", "APf")
    _need(table, ("arm", *metrics), "rio.results.evaluation (one Evaluation an arm)")
    if table["arm"].duplicated().any():
        twice = table.loc[table["arm"].duplicated(), "arm"].iloc[0]
        raise PlotError(f"table, column 'arm': {twice!r} appears twice. Average its seeds first, or rename one.")
    ax = _axes(ax, min(1.6 + 1.35 * max(len(table), 3), 10.0), 2.9)
    ink, quiet, _ = _ink()
    hues = (ink, COLORS["r"], COLORS["c"], COLORS["f"])
    depths = np.linspace(0.32, 1.0, len(table)) if len(table) > 1 else np.array([1.0])
    width = 0.82 / len(table)
    others = table["reported"].to_numpy(bool) if "reported" in table.columns else np.zeros(len(table), bool)

    def fill(hue: str, i: int) -> dict[str, object]:
        color = tint(hue, depths[i])
        if others[i]:  # published, not run here: an outline, so that nobody takes it for a measurement
            return {
                "facecolor": tint(hue, 0.07),
                "edgecolor": tint(hue, max(depths[i], 0.5)),
                "linewidth": 1.0,
                "hatch": "////",
                "hatch_linewidth": 0.5,
            }
        return {"facecolor": color, "linewidth": 0}

    for i, (_, row) in enumerate(table.iterrows()):
        for x, (metric, hue) in enumerate(zip(metrics, hues, strict=True)):
            at = x + (i - (len(table) - 1) / 2) * width
            value = row[metric]
            if pd.isna(value):
                ax.annotate(
                    "n/a", (at, 0), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7.5, color=quiet
                )
                continue
            ax.bar(at, value, width=width * 0.92, **fill(hue, i))
            top = value
            if f"{metric}_low" in table.columns:
                low, high = row[f"{metric}_low"], row[f"{metric}_high"]
                ax.errorbar(at, value, yerr=[[value - low], [high - value]], color=ink, linewidth=0.9, capsize=2)
                top = max(top, high)
            ax.annotate(
                f"{value:.1f}",
                (at, top),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8 if len(table) <= 4 else 6.5,
            )
    ax.set_xticks(range(4), ["all\nAP", "rare\nAPr", "common\nAPc", "frequent\nAPf"])
    ax.tick_params(axis="x", length=0, labelcolor=ink)
    ax.set(xlim=(-0.55, 3.55), ylabel=label)
    ax.set_ylim(0, max(ax.get_ylim()[1] * 1.06, 1.0))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    handles = [Patch(label=str(arm), **fill(ink, i)) for i, arm in enumerate(table["arm"])]
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=min(len(table), 5),
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=1.2,
        handletextpad=0.5,
        borderaxespad=0.1,
    )
    return ax


@_styled
def ap_by_image_count(table: pd.DataFrame, ax: Axes | None = None, *, label: str = "AP (%)") -> Axes:
    """AP of every category against its training images, arm by arm.

    Each category is a point an arm, in the colour of its frequency group, paler for earlier arms; the arms of
    a category are joined. Lines are the running means of the arms.

    Args:
        table: one row a category and arm: category_id, frequency, image_count, arm, AP in percent (NaN is
            left out).
        ax: where to draw; a new figure if None.
        label: of the y axis.

    Raises:
        PlotError: a column is missing, or no category has an AP.
    """
    _need(table, ("category_id", "frequency", "image_count", "arm", "AP"), "rio.widgets.runs.Runs.per_category")
    table = table[table["AP"].notna()]
    if len(table) == 0:
        raise PlotError("table, column 'AP': expected a category with ground truth, found none.")
    ax = _axes(ax, 6.4, 3.5)
    ink, quiet, _ = _ink()
    arms = list(dict.fromkeys(table["arm"]))
    depths = np.linspace(0.32, 1.0, len(arms)) if len(arms) > 1 else np.array([1.0])
    few = table["category_id"].nunique() <= 100
    x_of = np.maximum(table["image_count"], 0.7)
    if few and len(arms) > 1:
        ends = table.assign(x=x_of).groupby("category_id").agg(x=("x", "first"), low=("AP", "min"), high=("AP", "max"))
        ax.vlines(ends["x"], ends["low"], ends["high"], color=quiet, linewidth=0.6, zorder=1)
    for arm, depth in zip(arms, depths, strict=True):
        rows = table[table["arm"] == arm]
        colors = [tint(COLORS[g], depth) for g in rows["frequency"]]
        ax.scatter(
            np.maximum(rows["image_count"], 0.7),
            rows["AP"],
            s=30 if few else 7,
            color=colors,
            linewidth=0,
            zorder=2 + depth,
            alpha=1.0 if few else 0.5,
        )
        # One value an image count: categories that share one would make the line jump up and down.
        rows = rows.groupby("image_count", as_index=False)["AP"].mean()
        window = max(len(rows) // 6, 3)
        mean = rows["AP"].rolling(window, min_periods=max(window // 2, 1), center=True).mean()
        ax.plot(
            np.maximum(rows["image_count"], 0.7),
            mean,
            color=tint(ink, depth),
            label=str(arm),
            linewidth=1.8,
            zorder=4 + depth,
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(_plain_number))
    ax.xaxis.set_minor_formatter(NullFormatter())
    low = min(0.0, table["AP"].min())
    ax.set(
        xlabel="training images with the category", ylabel=label, ylim=(low - 2, min(table["AP"].max() * 1.08 + 2, 104))
    )
    ax.grid(axis="y")
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=min(len(arms), 4),
        borderaxespad=0.1,
        handlelength=1.4,
        columnspacing=1.2,
    )
    return ax


@_styled
def ap_difference(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What one arm gains over another, category by category, from the most to the least frequent; group means
    beside.

    Args:
        table: one row a category: name, frequency, image_count, difference (percentage points, NaN is left
            out); `attrs` may name arm, baseline and kind.
        ax: where to draw; a new figure if None.

    Raises:
        PlotError: a column is missing, or there is no difference to draw.
    """
    _need(table, ("name", "frequency", "image_count", "difference"), "rio.widgets.runs.Runs.difference")
    rows = table[table["difference"].notna()].sort_values("image_count", ascending=False, kind="stable")
    if len(rows) == 0:
        raise PlotError("table, column 'difference': expected a category that both arms were judged on, found none.")
    ax = _axes(ax, 6.4, 3.3)
    ink, quiet, _ = _ink()
    x = np.arange(len(rows))
    few = len(rows) <= 60
    ax.bar(
        x, rows["difference"], width=0.78 if few else 1.0, color=rows["frequency"].map(COLORS), linewidth=0, zorder=2
    )
    ax.axhline(0, color=quiet, linewidth=0.9, zorder=3)
    for group in GROUPS:
        own = (rows["frequency"] == group).to_numpy()
        if own.any():
            mean = rows["difference"][own].mean()
            ax.hlines(mean, x[own].min() - 0.4, x[own].max() + 0.4, color=ink, linewidth=1.4, zorder=4)
            ax.text(
                x[own].mean(),
                1.0,
                f"{GROUP_NAMES[group]}: {mean:+.1f}",
                transform=ax.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=8.5,
                fontweight="bold",
            )
    kind, arm, baseline = (table.attrs.get(k, "") for k in ("kind", "arm", "baseline"))
    ax.set_ylabel(f"{kind or 'AP'}, difference in points")
    if arm and baseline:
        ax.set_title(f"{arm} minus {baseline}", pad=22)
    if len(rows) <= 45:
        ax.set_xticks(x, [_short(n) for n in rows["name"]], rotation=90, fontsize=7)
    else:
        ax.set_xticks([])
        ax.set_xlabel(f"{len(rows):,} categories, from most to least frequent")
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.8, len(rows) - 0.2)
    ax.margins(y=0.08)
    ax.grid(axis="y")
    return ax


# ------------------------------------------------------------------------------------------------- studies

_METRICS = {"AP": "all"} | {f"AP{group}": name for group, name in GROUP_NAMES.items()}


def _metric_color(metric: str) -> str:
    return _ink()[0] if metric == "AP" else COLORS[metric[2:]]


def _rows(ax: Axes | None, names: Sequence[str], lanes: int, width: float) -> Axes:
    """An Axes with a named row for each of `names`, the first on top, each with room for so many lanes."""
    ax = _axes(ax, width, 0.75 + (0.14 + 0.075 * lanes) * len(names))
    ink, _, rule = _ink()
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    for y in np.arange(len(names) - 1) + 0.5:
        ax.axhline(y, color=rule, linewidth=0.6, zorder=0)
    ax.tick_params(axis="y", length=0, labelcolor=ink)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    return ax


def _lanes(count: int) -> np.ndarray:
    """Where in a row of height 1 its lanes are, from its middle."""
    return (np.arange(count) - (count - 1) / 2) * min(0.19, 0.62 / max(count, 1))


@_styled
def arm_ap(table: pd.DataFrame, ax: Axes | None = None, *, label: str = "AP (%)") -> Axes:
    """AP, APr, APc and APf of a study's arms: the mean as a large point, every seed as a small one.

    Args:
        table: one row a run: arm, seed, AP, APr, APc, APf in percent (NaN is left out); arms are drawn in the
            order in which they come.
        ax: where to draw; a new figure if None.
        label: of the x axis.

    Raises:
        PlotError: a column is missing, a run appears twice (two IoU types, say), or there are no runs.
    """
    _need(table, ("arm", "seed", *_METRICS), "rio.study.StudyResult.per_run")
    if table.duplicated(["arm", "seed"]).any():
        twice = table[table.duplicated(["arm", "seed"])].iloc[0]
        raise PlotError(
            f"table: expected every arm and seed once, found {twice['arm']!r}, seed {twice['seed']}, again. "
            "Choose one iou_type."
        )
    arms = list(dict.fromkeys(table["arm"]))
    ax = _rows(ax, [str(arm) for arm in arms], len(_METRICS), 6.4)
    for metric, shift in zip(_METRICS, _lanes(len(_METRICS)), strict=True):
        color = _metric_color(metric)
        means = table.groupby("arm")[metric].mean().reindex(arms)
        y = np.arange(len(arms)) + shift
        own = table["arm"].map({arm: at for arm, at in zip(arms, y, strict=True)})
        ax.scatter(table[metric], own, s=9, color=tint(color, 0.6), linewidth=0, zorder=2)
        ax.scatter(means, y, s=27, color=color, linewidth=0, zorder=3, label=f"{_METRICS[metric]} ({metric})")
    ax.set(xlabel=label, xlim=(0, None))
    several = table.groupby("arm")["seed"].nunique().max() > 1
    ax.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, handletextpad=0.1, columnspacing=1.0,
        borderaxespad=0.1, title="large: mean over seeds; small: each seed" if several else None,
        title_fontsize=8.5, alignment="left",
    )  # fmt: skip
    return ax


@_styled
def paired_differences(table: pd.DataFrame, ax: Axes | None = None, *, label: str = "AP, difference in points") -> Axes:
    """A study's comparisons: the difference of two arms with its interval, for each metric in the table.

    A filled point is resolved, a hollow one is not.

    Args:
        table: one row a comparison and metric: arm, baseline, metric (AP, APr, APc, APf), difference, low,
            high (points; NaN intervals are not drawn), resolved (bool); comparisons are drawn in the order in
            which they come.
        ax: where to draw; a new figure if None.
        label: of the x axis.

    Raises:
        PlotError: a column is missing, an unknown metric, a comparison and metric twice (two IoU types,
            say), or there are no comparisons.
    """
    columns = ("arm", "baseline", "metric", "difference", "low", "high", "resolved")
    _need(table, columns, "rio.study.StudyResult.comparisons")
    unknown = set(table["metric"]) - set(_METRICS)
    if unknown:
        raise PlotError(f"table, column 'metric': expected {', '.join(_METRICS)}, found {sorted(unknown)[0]!r}.")
    key = ["arm", "baseline", "metric"]
    if table.duplicated(key).any():
        twice = table[table.duplicated(key)].iloc[0]
        raise PlotError(
            f"table: expected every comparison and metric once, found {twice['arm']!r} - "
            f"{twice['baseline']!r}, {twice['metric']}, again. Choose one iou_type."
        )
    pairs = list(dict.fromkeys(zip(table["arm"], table["baseline"], strict=True)))
    metrics = [metric for metric in _METRICS if metric in set(table["metric"])]
    ax = _rows(ax, [_pair_name(*map(str, pair)) for pair in pairs], max(len(metrics), 2), 6.4)
    ink, quiet, _ = _ink()
    ax.axvline(0, color=quiet, linewidth=0.9, zorder=1)
    page = tint(ink, 0.0)
    place = dict(zip(metrics, _lanes(len(metrics)), strict=True))
    for row in table.itertuples():
        if pd.isna(row.difference):
            continue
        y = pairs.index((row.arm, row.baseline)) + place[row.metric]
        color = _metric_color(row.metric)
        if not pd.isna(row.low):
            ax.hlines(y, row.low, row.high, color=color, linewidth=1.3, zorder=2)
        fill = color if row.resolved else page
        ax.scatter(row.difference, y, s=24, facecolor=[fill], edgecolor=color, linewidth=1.2, zorder=3)
    ax.set_xlabel(label)
    handles = [
        Line2D([], [], color=_metric_color(m), marker="o", markersize=4.5, label=f"{_METRICS[m]} ({m})")
        for m in metrics
    ]
    ax.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, handletextpad=0.5,
        columnspacing=1.0, handlelength=1.4, borderaxespad=0.1,
        title="filled: resolved; hollow: not resolved; line: 95 % interval", title_fontsize=8.5,
        alignment="left",
    )  # fmt: skip
    return ax


def _pair_name(arm: str, baseline: str) -> str:
    line = f"{arm} \N{MINUS SIGN} {baseline}"
    return line if len(line) <= 30 else f"{arm}\n\N{MINUS SIGN} {baseline}"


KIND_COLORS = {
    "correct": "#2E8B6F",
    "classification": "#CC6677",
    "localisation": "#DDCC77",
    "missed": "#9AA1AC",
    "both": "#AA4499",
    "duplicate": "#88CCEE",
    "background": "#8C6BB1",
}


@_styled
def errors_by_group(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What became of the objects of each frequency group, and of which kind the wrong predictions are, arm by
    arm.

    Left: every object once, in percent. Right: the wrong predictions by kind, and how many there are for 100
        objects.

    Args:
        table: arm, frequency, part ("objects", "predictions"), kind, count, per_100 (for 100 objects of the
            group), objects.
        ax: where to draw; a new figure if None.

    Raises:
        PlotError: a column is missing.
    """
    _need(table, ("arm", "frequency", "part", "kind", "per_100", "objects"), "rio.widgets.runs.Runs.errors")
    arms = list(dict.fromkeys(table["arm"]))
    groups = [g for g in GROUPS if g in set(table["frequency"])]
    ax = _axes(ax, 8.6, 0.9 + 0.27 * len(groups) * (len(arms) + 1.2))
    ink, quiet, _ = _ink()
    kinds = [k for k in KIND_COLORS if k in set(table["kind"])]
    values = table.set_index(["frequency", "arm", "part", "kind"])["per_100"]
    gap, wide = 108.0, 72.0  # where the right half begins, and its width
    ticks, names, y = [], [], 0.0
    for group in groups:
        objects = int(table.loc[table["frequency"] == group, "objects"].iloc[0])
        ax.text(
            -0.012,
            y,
            f"{GROUP_NAMES[group]}, {_counted(objects, 'object')}",
            transform=ax.get_yaxis_transform(),
            ha="right",
            va="center",
            fontweight="bold",
            color=ink,
            fontsize=9,
        )
        if group == groups[0]:
            ax.text(0, y, "objects, %", color=quiet, fontsize=8.5, va="center")
            ax.text(gap, y, "wrong predictions by kind, %", color=quiet, fontsize=8.5, va="center")
            ax.text(gap + wide + 3, y, "for 100 objects", color=quiet, fontsize=8.5, va="center")
        for arm in arms:
            y += 1
            for part, start, scale in (("objects", 0.0, 1.0), ("predictions", gap, None)):
                own = {kind: float(values.get((group, arm, part, kind), 0.0)) for kind in kinds}
                total = sum(own.values())
                if scale is None:
                    ax.text(gap + wide + 3, y, f"{total:,.0f}", va="center", fontsize=8.5, fontweight="bold")
                    scale = wide / total if total else 0.0
                left = start
                for kind, amount in own.items():
                    width = amount * scale
                    if width > 0:
                        ax.barh(y, width, left=left, height=0.78, color=KIND_COLORS[kind], linewidth=0)
                    if width >= 7:
                        share = amount if part == "objects" else 100 * amount / total
                        ax.text(left + width / 2, y, f"{share:.0f}", ha="center", va="center", fontsize=8,
                                color=_on(KIND_COLORS[kind]))  # fmt: skip
                    left += width
            ticks.append(y)
            names.append(str(arm))
        y += 1.35
    ax.set(xlim=(0, gap + wide + 24), ylim=(y - 0.7, -0.7), yticks=ticks, yticklabels=names)
    ax.xaxis.set_visible(False)
    ax.tick_params(axis="y", length=0, labelcolor=ink)
    ax.spines[:].set_visible(False)
    handles = [Patch(facecolor=KIND_COLORS[k], label=k) for k in kinds]
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=7,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=1.0,
        handletextpad=0.4,
        borderaxespad=0.2,
    )
    return ax


@_styled
def loss_curves(
    table: pd.DataFrame | Iterable[Mapping[str, float]],
    ax: Axes | None = None,
    *,
    losses: Sequence[str] | None = None,
    smooth: int = 0,
) -> Axes:
    """Losses over iterations, from the rows of detectron2's metrics.json.

    Args:
        table: rows with `iteration` and the losses (rows without a loss, as those of the evaluation, are left
            out).
        ax: where to draw; a new figure if None.
        losses: columns to draw; by default total_loss and every column whose name begins with "loss".
        smooth: rows in a running median drawn over the faint raw curve; 0 chooses a tenth of the rows, 1 is
            none.

    Raises:
        PlotError: no iteration, or no loss in the rows.
    """
    table = table if isinstance(table, pd.DataFrame) else pd.DataFrame(list(table))
    _need(table, ("iteration",), "metrics.json of a run")
    if losses is None:
        losses = [c for c in table.columns if c == "total_loss" or c.startswith("loss")]
        # Losses of stages and branches are parts of the total, which is drawn first and in ink.
        losses = sorted(losses, key=lambda c: (c != "total_loss", c))
    absent = [c for c in losses if c not in table.columns]
    if absent or not losses or table[list(losses)].isna().all().all():
        raise PlotError(
            f"table: expected losses{f' such as {absent[0]!r}' if absent else ''}, found columns "
            f"{list(table.columns)}. Has the run logged an iteration yet?"
        )
    ax = _axes(ax, 6.2, 3.0)
    ink, _, _ = _ink()
    # After a resume detectron2 appends; an iteration logged twice counts as the later run logged it.
    table = table.dropna(subset=list(losses), how="all").drop_duplicates("iteration", keep="last")
    table = table.sort_values("iteration")
    window = smooth or max(len(table) // 10, 1)
    ends = []
    for i, name in enumerate(losses):
        color = ink if name == "total_loss" else LINE_COLORS[i % len(LINE_COLORS)]
        if _dark.get() and luminance(color) < 0.12:
            color = tint(color, 0.6) if luminance(color) > 0.5 else "#9A8FE0"
        rows = table.dropna(subset=[name])
        ax.plot(rows["iteration"], rows[name], color=color, linewidth=0.7, alpha=0.35 if window > 1 else 1.0)
        line = rows[name].rolling(window, min_periods=1, center=True).median()
        if window > 1:
            ax.plot(rows["iteration"], line, color=color, linewidth=1.6 if name == "total_loss" else 1.2)
        if len(rows):
            ends.append([float(line.iloc[-1]), name, color])
    low, high = ax.get_ylim()
    ax.set_ylim(min(0, low), high)
    # Names stand at the ends of their curves, pushed apart so that none covers another.
    ends.sort(key=lambda end: end[0])
    points = ax.get_window_extent().height / ax.figure.dpi * 72
    gap = (high - min(0, low)) * 13 / points  # a line of text; the layout will yet take some of the height
    at = -np.inf
    for value, name, color in ends:
        at = max(value, at + gap)
        ax.annotate(
            name.removeprefix("loss_").replace("total_loss", "total").replace("_", " "),
            (1, at),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=8.5,
            annotation_clip=False,
        )
    first, last = table["iteration"].min(), table["iteration"].max()
    ax.set_xlim(first, last if last > first else first + 1)
    ax.set(xlabel="iteration", ylabel="loss")
    ax.grid(axis="y")
    return ax


# ------------------------------------------------------------------------------------------------- objects


@_styled
def draw_objects(
    ax: Axes,
    image: np.ndarray,
    boxes: np.ndarray,
    masks: Sequence[np.ndarray | Sequence[Sequence[float]] | Mapping[str, object] | None] | None = None,
    labels: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
    *,
    font_size: float = 7.5,
) -> Axes:
    """An image with its objects, in the colours of their frequency groups; rare ones on top, with a bolder
    outline.

    Give the Axes its final size before: labels are placed so that they stay in the image and off each other
    at that size.

    Args:
        ax: where to draw.
        image: (H, W, 3) or (H, W) uint8, RGB.
        boxes: (n, 4) XYWH in px; n may be 0.
        masks: n entries, each an (H, W) array of bool, a list of polygons [x0, y0, x1, y1, ...] in px, a COCO
            RLE {"size": [H, W], "counts": ...} as results files hold it, or None.
        labels: n names; None draws none.
        groups: n of 'r', 'c', 'f'; None draws all in one colour.
        scores: n in [0, 1], printed behind the name; None for ground truth.
        font_size: of the labels, in points.

    Raises:
        PlotError: an image or a mask of another shape, lists of different lengths, an unknown group.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise PlotError(f"image: expected (H, W, 3) or (H, W), found {image.shape}.")
    height, width = image.shape[:2]
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    for name, values in (("masks", masks), ("labels", labels), ("groups", groups), ("scores", scores)):
        if values is not None and len(values) != len(boxes):
            raise PlotError(f"{name}: expected one for each of the {len(boxes)} boxes, found {len(values)}.")
    if groups is not None and not set(groups) <= set(GROUPS):
        raise PlotError(f"groups: expected r, c or f, found {sorted(set(groups) - set(GROUPS))}.")
    groups = ["f"] * len(boxes) if groups is None else list(groups)

    ax.imshow(image, cmap="gray" if image.ndim == 2 else None, interpolation="antialiased", zorder=0)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)

    # Frequent first, rare last and so on top; within a group large before small, that the small stay visible.
    order = sorted(range(len(boxes)), key=lambda i: (-GROUPS.index(groups[i]), -boxes[i, 2] * boxes[i, 3]))
    for depth, i in enumerate(order):
        rare = groups[i] == "r"
        color = COLORS[groups[i]]
        line = 1.9 if rare else 1.0
        mask = masks[i] if masks is not None else None
        if isinstance(mask, Mapping):
            mask = _decode(mask)
        if isinstance(mask, np.ndarray) and mask.ndim == 2:
            if mask.shape != (height, width):
                raise PlotError(f"masks[{i}]: expected shape {(height, width)} of the image, found {mask.shape}.")
            if mask.any():
                _draw_mask(ax, mask.astype(bool), color, line, 2 + depth)
        elif mask is not None:
            path = Path.make_compound_path(*(_polygon(p, i) for p in mask)) if len(mask) else None
            if path is not None:
                ax.add_patch(
                    PathPatch(
                        path,
                        facecolor=(*to_rgb(color), 0.34),
                        edgecolor=color,
                        linewidth=line,
                        joinstyle="round",
                        zorder=2 + depth,
                    )
                )
        x, y, w, h = boxes[i]
        ax.add_patch(
            Rectangle(
                (x - 0.5, y - 0.5),
                w,
                h,
                fill=False,
                edgecolor=color,
                zorder=2 + depth,
                linewidth=line if mask is None or rare else 0.6,
                linestyle="-" if mask is None or rare else (0, (3, 2)),
            )
        )
    if labels is not None or scores is not None:
        taken: list[tuple[float, float, float, float]] = []
        for i in reversed(order):  # the rare ones choose their places first
            text = str(labels[i]) if labels is not None else ""
            if scores is not None:
                text = f"{text} {100 * scores[i]:.0f}%".strip()
            _place_label(ax, boxes[i], text, groups[i], taken, font_size, (width, height), 10 + len(boxes))
    return ax


def _draw_mask(ax: Axes, mask: np.ndarray, color: str, line: float, zorder: float) -> None:
    """Fill and outline of a bitmap, on its own bounding box only: cheap for small objects in large images."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = mask[y0:y1, x0:x1]
    fill = np.zeros((*inside.shape, 4))
    fill[inside] = (*to_rgb(color), 0.34)
    limits = ax.axis()
    ax.imshow(fill, extent=(x0 - 0.5, x1 - 0.5, y1 - 0.5, y0 - 0.5), interpolation="nearest", zorder=zorder)
    padded = np.pad(inside, 1).astype(float)
    ax.contour(
        np.arange(x0 - 1, x1 + 1),
        np.arange(y0 - 1, y1 + 1),
        padded,
        levels=[0.5],
        colors=[color],
        linewidths=line,
        zorder=zorder,
    )
    ax.axis(limits)  # imshow and contour would zoom to the object


def _decode(rle: Mapping[str, object]) -> np.ndarray:
    from pycocotools import mask as coco_mask  # only figures with masks need it

    if isinstance(rle["counts"], list):
        rle = coco_mask.frPyObjects(dict(rle), *rle["size"])
    return coco_mask.decode(dict(rle)).astype(bool)


def _polygon(flat: Sequence[float], index: int) -> Path:
    points = np.asarray(flat, dtype=float)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2:
        raise PlotError(f"masks[{index}]: expected polygons of at least 3 points as [x0, y0, ...], found {flat!r}.")
    points = points.reshape(-1, 2) - 0.5  # annotation px have their origin at the corner, imshow's at the centre
    return Path(np.vstack([points, points[:1]]), closed=True)


def _place_label(
    ax: Axes,
    box: np.ndarray,
    text: str,
    group: str,
    taken: list[tuple[float, float, float, float]],
    font_size: float,
    size: tuple[int, int],
    zorder: float,
) -> None:
    """Put a label at the corner of its box where it covers least of other labels and stays in the image."""
    label = ax.text(
        0,
        0,
        text,
        fontsize=font_size,
        color=_on(COLORS[group]),
        ha="left",
        va="bottom",
        zorder=zorder,
        fontweight="bold" if group == "r" else "normal",
        clip_on=True,
        bbox={"facecolor": COLORS[group], "edgecolor": "none", "pad": 1.2, "alpha": 0.92},
    )
    extent = label.get_window_extent()
    # Size of the padded label in image px; the y axis of an image points down.
    pad = 2.4 * ax.figure.dpi / 72
    per_px = np.abs(ax.transData.transform((1, 1)) - ax.transData.transform((0, 0)))
    w, h = (extent.width + pad) / per_px[0], (extent.height + pad) / per_px[1]
    x, y, bw, bh = box
    corners = [(x, y - h), (x, y + bh), (x + bw - w, y - h), (x + bw - w, y + bh), (x, y), (x, y + bh - h)]
    corners += [(x + bw, y), (x - w, y), (x + bw, y + bh - h), (x - w, y + bh - h)]
    corners += [(x, y - (k + 1) * h) for k in (1, 2)] + [(x, y + bh + k * h) for k in (1, 2)]
    best, least = None, np.inf
    for rank, (left, top) in enumerate(corners):
        left = float(np.clip(left, 0, max(size[0] - w, 0)))
        top = float(np.clip(top, 0, max(size[1] - h, 0)))
        covered = sum(
            max(0.0, min(left + w, r) - max(left, l)) * max(0.0, min(top + h, b) - max(top, t)) for l, t, r, b in taken
        )
        cost = covered / (w * h) + 0.02 * rank
        if cost < least:
            best, least = (left, top), cost
    left, top = best
    inset = pad / 2 / per_px
    label.set_position((left + inset[0] - 0.5, top + h - inset[1] - 0.5))
    taken.append((left, top, left + w, top + h))


# ------------------------------------------------------------------------------------------- data set, closer


@_styled
def objects_per_image(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How many objects, and how many categories, an image holds: both as shares of all images.

    Args:
        table: one row an image with objects, categories.
        ax: where to draw; a new figure if None.

    Raises:
        PlotError: a column is missing.
    """
    _need(table, ("objects", "categories"), "rio.widgets.explorer.per_image")
    ax = _axes(ax, 6.2, 2.5)
    ink, quiet, _ = _ink()
    most = int(max(table["objects"].max(), 1))
    # Whole numbers have bins of their own as long as they fit; beyond, a handful of ever wider ones.
    edges = np.arange(-0.5, most + 1.5) if most <= 40 else np.unique(np.r_[np.arange(-0.5, 15.5), np.round(
        np.geomspace(16, most + 1, 22)) - 0.5])  # fmt: skip
    for column, color, filled in (("objects", COLORS["f"], True), ("categories", ink, False)):
        share, _ = np.histogram(table[column], edges)
        # Wider bins would stand out: their height is for each number of objects in them.
        ax.stairs(
            100 * share / len(table) / np.diff(edges),
            edges,
            fill=filled,
            color=tint(color, 0.55) if filled else color,
            linewidth=0 if filled else 1.4,
            zorder=2 if filled else 3,
        )
        mean = table[column].mean()
        at = 0.97 if filled else 0.83
        ax.text(
            0.99,
            at,
            f"{column}: {mean:.1f} an image, at most {int(table[column].max()):,}",
            ha="right",
            va="top",
            transform=ax.transAxes,
            fontsize=8.5,
            fontweight="bold",
            color=tint(color, 0.9),
        )
    ax.set(xlabel="in one image", ylabel="% of images", xlim=(edges[0], edges[-1]))
    if most > 40:
        ax.set_xscale("symlog", linthresh=15, linscale=1.2)
        ticks = [t for t in (0, 1, 2, 5, 10, 15, 30, 50, 100, 200, 500, 1000) if t <= most]
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    ax.grid(axis="y")
    return ax


@_styled
def sizes_by_group(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Object sizes, group by group: the distribution, its median and its middle half.

    Args:
        table: one row an object with frequency, and side: the root of its share of the image's area, in
            percent.
        ax: where to draw; a new figure if None.

    Raises:
        PlotError: a column is missing, or a size is not above 0.
    """
    _need(table, ("frequency", "side"), "rio.widgets.explorer.sizes")
    if not (table["side"] > 0).all():
        raise PlotError("table, column 'side': expected sizes above 0. Leave out objects without an area.")
    ax = _axes(ax, 6.2, 2.7)
    ink, quiet, _ = _ink()
    logs = np.log10(table["side"].to_numpy(float))
    low, high = np.quantile(logs, 0.001) - 0.1, logs.max() + 0.05
    edges = np.linspace(low, high, 61)
    present = [g for g in GROUPS if (table["frequency"] == g).any()]
    for y, group in enumerate(reversed(present)):
        own = logs[(table["frequency"] == group).to_numpy()]
        share, _ = np.histogram(np.clip(own, low, high), edges)
        kernel = np.exp(-0.5 * (np.arange(-6, 7) / 2.0) ** 2)
        height = np.convolve(share, kernel / kernel.sum(), mode="same")
        height = 0.6 * height / max(height.max(), 1e-9)
        middle = (edges[:-1] + edges[1:]) / 2
        ax.fill_between(middle, y, y + height, color=tint(COLORS[group], 0.75), linewidth=0, zorder=2)
        a, median, b = np.quantile(own, [0.25, 0.5, 0.75])
        ax.plot([a, b], [y - 0.055] * 2, color=COLORS[group], linewidth=3, solid_capstyle="butt", zorder=3)
        ax.plot(median, y - 0.055, marker="o", markersize=5, color=ink, zorder=4)
        ax.annotate(
            f"median {10**median:.3g}%",
            (median, y - 0.055),
            xytext=(0, -5),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
        )
    names = [f"{GROUP_NAMES[g]}\n{_counted(int((table['frequency'] == g).sum()), 'object')}" for g in reversed(present)]
    ax.set_yticks(np.arange(len(present)) + 0.15, names)
    ax.tick_params(axis="y", length=0, labelcolor=ink)
    ax.spines["left"].set_visible(False)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= np.log10(t) <= high]
    ax.set_xticks(np.log10(ticks), [f"{t:g}" for t in ticks])
    ax.set(xlim=(low, high), ylim=(-0.42, len(present) - 0.1), xlabel="side of the object, % of the image's side")
    return ax


@_styled
def company(table: pd.DataFrame, ax: Axes | None = None, *, group: str = "r", most: int = 14) -> Axes:
    """With what the objects of a group share their images, beside how usual that company is anyway.

    A bar reaches to the share of the group's images that also hold the category, a ring to its share of all
    images: a bar beyond its ring is company that the group's images have more than others.

    Args:
        table: by falling share: name, frequency, share, share_of_all (shares in 0..1).
        ax: where to draw; a new figure if None.
        group: whose company it is.
        most: categories drawn.

    Raises:
        PlotError: a column is missing. (Without rows it says that there is no company.)
    """
    if len(table) == 0 and "share" in table.columns:
        ax = _axes(ax, 6.2, 0.6)
        ax.text(0, 0.5, f"No {GROUP_NAMES[group]} object shares its image with another category.", va="center")
        ax.set_axis_off()
        return ax
    _need(table, ("name", "frequency", "share", "share_of_all"), "rio.widgets.explorer.company_of")
    table = table.head(most)
    ax = _axes(ax, 6.2, 0.75 + 0.22 * len(table))
    ink, quiet, _ = _ink()
    y = np.arange(len(table))
    ax.barh(y, 100 * table["share"], height=0.66, color=table["frequency"].map(COLORS), linewidth=0, zorder=2)
    page = tint(ink, 0.0)
    ax.scatter(100 * table["share_of_all"], y, s=34, facecolor=page, edgecolor=ink, linewidth=1.3, zorder=3)
    ax.set_yticks(y, [_short(name) for name in table["name"]])
    ax.tick_params(axis="y", length=0, labelcolor=ink)
    ax.set(
        ylim=(len(table) - 0.4, -0.6), xlabel=f"% of images:  bar, those with a {GROUP_NAMES[group]} object;  ring, all"
    )
    ax.set_xlim(0, max(100 * table["share"].max(), 100 * table["share_of_all"].max()) * 1.08)
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    _group_legend(ax, table["frequency"], loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, borderaxespad=0.1)
    return ax


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
