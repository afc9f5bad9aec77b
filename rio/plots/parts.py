"""What figures share: checks of their tables, scales, stacked bars, legends, words."""

import functools
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import Collection
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from rio.plots.page import inline_svg
from rio.plots.style import COLORS, GROUP_NAMES, GROUPS, in_column, ink, ink_on, size_of, styled

CENTRED = {"ha": "center", "va": "center"}
ABOVE = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom"}


class PlotError(ValueError):
    """A table that cannot be drawn. The message names the column, what was expected and found, and the fix."""


def figure(made_by: str, columns: str) -> Callable[[Callable[..., Axes]], Callable[..., Axes]]:
    """Marks a function that draws a table with these columns: they are checked, and the style is applied."""

    def decorate(draw: Callable[..., Axes]) -> Callable[..., Axes]:
        @functools.wraps(draw)
        def checked(table: pd.DataFrame, ax: Axes | None = None, **options: Any) -> Axes:
            need(table, columns.split(), made_by)
            return draw(table, ax, **options)

        return styled(checked)

    return decorate


def need(table: pd.DataFrame, columns: Iterable[str], made_by: str) -> None:
    """Raise PlotError unless the table has the columns, rows, and only known frequency groups."""
    fix = f"Fix: pass the table that {made_by} gives."
    for column in columns:
        if column not in table.columns:
            raise PlotError(f"table: expected the column {column!r}, found {list(table.columns)}. {fix}")
    if len(table) == 0:
        raise PlotError(f"table: expected at least one row, found none. {fix}")
    if "frequency" in columns and (unknown := set(table["frequency"]) - set(GROUPS)):
        raise PlotError(f"table, column 'frequency': expected r, c or f, found {min(unknown, key=str)!r}. {fix}")


def need_once(table: pd.DataFrame, key: list[str], fix: str) -> None:
    """Raise PlotError where two rows have the same key."""
    again = table[table.duplicated(key)]
    if len(again):
        found = ", ".join(f"{column} {str(again.iloc[0][column])!r}" for column in key)
        raise PlotError(f"table: expected one row per {' and '.join(key)}, found {found} twice. Fix: {fix}.")


def percent(share: float) -> str:
    """A share in 0..1 as 12%, 3.4%, <0.1%."""
    value = 100 * share
    return f"{value:.0f}%" if value >= 9.5 or value == 0 else f"{value:.1f}%" if value >= 0.1 else "<0.1%"


def counted(number: int, noun: str) -> str:
    """1 object, 1,234 objects."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short(name: object, most: int = 24) -> str:
    """The name, cut to `most` characters."""
    return text if len(text := str(name)) <= most else text[: most - 1] + "…"


def axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The Axes given, or that of a new figure (inches)."""
    if ax is None:
        figure, ax = plt.subplots(figsize=size_of(width, height), layout="constrained")
        figure._repr_html_ = functools.partial(inline_svg, figure)  # what a notebook shows
    ax.spines[["top", "right"]].set_visible(False)  # also on an Axes made outside the style
    return ax


class _LogTicks(LogLocator):
    """Powers of ten; also 3 times them, or 2 and 5 times, or even steps, where fewer than three would be in sight."""

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        for subs in ((1,), (1, 3), (1, 2, 5)):
            self.set_params(subs=subs)
            ticks = np.asarray(super().tick_values(vmin, vmax))
            if ((ticks >= vmin) & (ticks <= vmax)).sum() >= 3:
                return ticks
        return MaxNLocator(4).tick_values(vmin, vmax)


def log_scale(*of: Axis, text: str = "{x:,.9g}") -> None:
    """A log scale with plain numbers at three ticks or more."""
    for axis in of:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(_LogTicks())
        axis.set_major_formatter(text)
        axis.set_minor_formatter(NullFormatter())


def span_at_least(axis: Axis, least: float) -> None:
    """Widen an axis whose values hardly differ, so that nothing is made of their last digits."""
    low, high = axis.get_view_interval()
    if high - low < least:
        middle = (low + high) / 2
        axis.axes.set(**{f"{axis.axis_name}lim": (middle - least / 2, middle + least / 2)})


def ink_ramp(low: float, high: float) -> LinearSegmentedColormap:
    """From a trace of ink to much of it (opacities): it lies on whatever page there is."""
    return LinearSegmentedColormap.from_list("ink", [(*to_rgb(ink().text), alpha) for alpha in (low, high)])


def diagonal(ax: Axes) -> None:
    """The dashed line x = y."""
    ax.axline((1, 1), (2, 2), color=ink().quiet, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)


def log_log_points(ax: Axes, table: pd.DataFrame, x: str, y: str, **options: Any) -> None:
    """Points in the colours of their groups on two log scales, with the line x = y."""
    import seaborn as sns  # only some figures need it

    look = {"alpha": 0.85, "linewidth": 0.4, "edgecolor": ink().page, "zorder": 3, "legend": False}
    sns.scatterplot(table, x=x, y=y, hue="frequency", palette=COLORS, ax=ax, **look, **options)
    log_scale(ax.xaxis, ax.yaxis)
    diagonal(ax)
    ax.grid(True)


def bare_rows(ax: Axes, ticks: Iterable[float], names: Iterable[object]) -> None:
    """A y axis of names, without line and ticks."""
    ax.set_yticks(list(ticks), list(map(str, names)))
    ax.tick_params(axis="y", length=0, labelcolor=ink().text)
    ax.spines["left"].set_visible(False)


def color_of_arm(table: pd.DataFrame, arm: object) -> str | None:
    """The colour that `attrs["colors"]` give an arm; None: none."""
    return table.attrs.get("colors", {}).get(arm)


def arm_squares(ax: Axes, table: pd.DataFrame, rows: Mapping[float, object]) -> None:
    """A square in the arm's colour before each row's name, where the table has colours; rows: y -> arm."""
    if colors := {y: color for y, arm in rows.items() if (color := color_of_arm(table, arm))}:
        ax.tick_params(axis="y", pad=16)
        place = {"transform": ax.get_yaxis_transform() + ScaledTranslation(-9 / 72, 0, ax.figure.dpi_scale_trans)}
        ax.scatter([0] * len(colors), list(colors), s=38, c=list(colors.values()), marker="s", clip_on=False, **place)


def pickable(artist: Collection, items: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Marks a collection's elements as things to point at in a page: of each its words, and what a click asks for."""
    picks = artist.figure.__dict__.setdefault("picks", [])
    artist.set_gid(f"pick-{len(picks)}")
    picks.append(list(items))


def bare_bars(ax: Axes, names: Mapping[float, object], width: float, bottom: float, top: float) -> None:
    """Stacked bars need no x axis: only names, by their y."""
    ax.set(xlim=(0, width), ylim=(bottom, top))
    bare_rows(ax, names, names.values())
    ax.xaxis.set_visible(False)
    ax.spines["bottom"].set_visible(False)


def bare_columns(ax: Axes, names: Sequence[str]) -> None:
    """Categories along x, from most to least frequent: by name where there is room, otherwise their number."""
    if len(names) <= 45:
        ax.set_xticks(range(len(names)), list(map(short, names)), rotation=90, fontsize=7)
    else:
        ax.set_xticks([])
        ax.set_xlabel(f"{len(names):,} categories, from most to least frequent")
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.8, len(names) - 0.2)
    ax.grid(axis="y")


def stacked_bar(
    ax: Axes, y: float, widths: Mapping[str, float], words: Mapping[str, str], colors: Mapping[str, str], **options: Any
) -> list[tuple[str, float]]:
    """A horizontal bar of pieces with words in them; returns kind and start of pieces narrower than `least`."""
    options = {"left": 0.0, "height": 0.78, "least": 0.0} | options
    left, thin = options["left"], []
    for kind, width in widths.items():
        if width > 0:
            ax.barh(y, width, left=left, height=options["height"], color=colors[kind], linewidth=0)
        if width >= options["least"]:
            look = {"fontsize": 8, "color": ink_on(colors[kind]), "linespacing": 1.15}
            ax.text(left + width / 2, y, words[kind], **CENTRED, **look)
        elif width > 0:
            thin.append((kind, left))
        left += width
    return thin


def legend_above(ax: Axes, handles: Sequence[Any] | None = None, **options: Any) -> None:
    """A legend in rows above the Axes, on the left."""
    spacing = {"columnspacing": 1.2, "handletextpad": 0.5, "borderaxespad": 0.1, "alignment": "left", "ncols": 4}
    options = spacing | options
    if in_column():  # as many side by side as fit
        most = int(14 * ax.get_window_extent().width / ax.figure.dpi)  # characters
        names = [handle.get_label() for handle in handles or ax.get_legend_handles_labels()[0]]
        options["ncols"] = min(options["ncols"], max(most // (max(map(len, names), default=0) + 5), 1))
        options["title"] = textwrap.fill(options.get("title") or "", most) or None
    legend = ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 1.0), **options)
    legend.set_in_layout(not in_column())  # there it may reach beyond its Axes


def squares(colors: Mapping[str, str]) -> dict[str, Any]:
    """Legend options: a small square in each colour."""
    handles = [Patch(facecolor=color, label=name) for name, color in colors.items()]
    return {"handles": handles, "handlelength": 0.9, "handleheight": 0.9}


def group_squares(groups: Iterable[str] = GROUPS) -> dict[str, Any]:
    """Legend options for the frequency groups that occur."""
    return squares({GROUP_NAMES[g]: COLORS[g] for g in sorted(set(groups), key=GROUPS.index)})
