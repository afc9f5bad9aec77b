"""Figures of AP and errors by frequency group."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from rio.plots import parts
from rio.plots.labels import Labels
from rio.plots.style import COLORS, GROUP_NAMES, GROUPS, KIND_COLORS, METRIC_NAMES, ink, metric_color, tint


def _kind(table: pd.DataFrame) -> str:
    """What the y axis is of: "box AP (%)"."""
    return f"{table.attrs.get('kind', 'AP')} (%)"


def _depths(arms: int) -> np.ndarray:
    """How deep the colour of each arm is; the last has the full one."""
    return np.linspace(0.32, 1.0, arms) if arms > 1 else np.ones(arms)


def _fill(hue: str, depth: float, reported: bool) -> dict[str, object]:
    """Of a bar. Published numbers are outlines: nobody may take them for measurements."""
    if not reported:
        return {"facecolor": tint(hue, depth), "linewidth": 0}
    edge = {"edgecolor": tint(hue, max(depth, 0.5)), "hatch": "////", "hatch_linewidth": 0.5}
    return {"facecolor": tint(hue, 0.07), **edge}


@parts.figure("rio.open_runs(...).by_group()", "arm AP APr APc APf")
def ap_by_group(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """AP of all, rare, common and frequent categories, one bar per arm.

    Hue says which group, depth of colour which arm (the last one full); where arms have colours, hue says which arm.
    Absent values (NaN) leave a gap and say "n/a".

    Args:
        table: one row per arm, each arm once: arm, AP, APr, APc, APf in percent. Optional: AP_low, AP_high, APr_low,
            ... draw intervals; reported (bool) marks published numbers, which are drawn as outlines; `attrs` may name
            the kind of AP, and as `colors` give each arm its own.
    """
    parts.need_once(table, ["arm"], "average the seeds of an arm, or rename one")
    ax = parts.axes(ax, min(1.6 + 1.35 * max(len(table), 3), 10.0), 2.9)
    width = 0.82 / len(table)
    group = 72 * ax.get_window_extent().width / ax.figure.dpi / 3.6  # points; the layout will make it wider
    size = np.clip(group * width / 2.5, 5, 8)  # four characters are 2.5 times as wide as their size
    handles = []
    for i, (depth, row) in enumerate(zip(_depths(len(table)), table.to_dict("records"), strict=True)):
        reported, own = bool(row.get("reported", False)), parts.color_of_arm(table, row["arm"])
        depth = 1.0 if own else depth
        handles.append(Patch(label=str(row["arm"]), **_fill(own or ink().text, depth, reported)))
        for x, metric in enumerate(METRIC_NAMES):
            at, value = x + (i - (len(table) - 1) / 2) * width, row[metric]
            if pd.isna(value):
                ax.annotate("n/a", (at, 0), fontsize=7.5, color=ink().quiet, **parts.ABOVE)
                continue
            ax.bar(at, value, width=width * 0.92, **_fill(own or metric_color(metric), depth, reported))
            low, high = row.get(f"{metric}_low", value), row.get(f"{metric}_high", value)
            if low < high:
                ax.errorbar(at, value, yerr=[[value - low], [high - value]], color=ink().text, lw=0.9, capsize=2)
            ax.annotate(f"{value:.1f}", (at, np.nanmax([value, high])), fontsize=size, **parts.ABOVE)
    ax.set_xticks(range(4), [f"{name}\n{metric}" for metric, name in METRIC_NAMES.items()])
    ax.tick_params(length=0)
    for label, metric in zip(ax.get_xticklabels(), METRIC_NAMES, strict=True):
        label.set_color(metric_color(metric) if "colors" in table.attrs else ink().text)
    ax.set(xlim=(-0.55, 3.55), ylabel=_kind(table), ylim=(0, max(ax.get_ylim()[1] * 1.06, 1.0)))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    parts.legend_above(ax, handles, ncols=min(len(table), 5), handlelength=0.9, handleheight=0.9)
    return ax


@parts.figure("rio.open_runs(...).per_category()", "category_id frequency image_count arm AP")
def ap_by_image_count(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """AP of every category against its number of training images, for each arm.

    Each category is one point per arm, in the colour of its frequency group, paler for earlier arms; the arms of
    a category are joined. Lines are the running means of the arms. Where arms have colours, points have these, and
    strokes along the axis those of the groups.

    Args:
        table: one row per category and arm: category_id, frequency, image_count, arm, AP in percent (NaN is
            left out); optionally name; `attrs` may name the kind of AP, and as `colors` give each arm its own.
    """
    table = table[table["AP"].notna()]
    if len(table) == 0:
        raise parts.PlotError("table, column 'AP': expected a category with ground truth, found none.")
    table = table.assign(x=table["image_count"].clip(lower=0.7))
    ax = parts.axes(ax, 6.4, 3.5)
    arms = list(dict.fromkeys(table["arm"]))
    few = table["category_id"].nunique() <= 100
    if few and len(arms) > 1:
        ends = table.groupby("category_id").agg(x=("x", "first"), low=("AP", "min"), high=("AP", "max"))
        ax.vlines(ends["x"], ends["low"], ends["high"], color=ink().quiet, linewidth=0.6, zorder=1)
    points = {"s": 30, "alpha": 1.0} if few else {"s": 7, "alpha": 0.5}
    for arm, depth in zip(arms, _depths(len(arms)), strict=True):
        rows, own = table[table["arm"] == arm], parts.color_of_arm(table, arm)
        colors = own or [tint(COLORS[g], depth) for g in rows["frequency"]]
        drawn = ax.scatter(rows["x"], rows["AP"], color=colors, linewidth=0, zorder=2 + depth, **points)
        if "name" in rows:
            words = "{}: AP {:.1f}, {}, {:,} training images"
            parts.pickable(
                drawn,
                [
                    (words.format(n, ap, arm, count), {"category": n, "arm": arm})
                    for n, ap, count in rows[["name", "AP", "image_count"]].itertuples(index=False)
                ],
            )
        # One value per image count: categories that share one would make the line jump up and down.
        mean = rows.groupby("x")["AP"].mean()
        window = max(len(mean) // 6, 3)
        mean = mean.rolling(window, min_periods=max(window // 2, 1), center=True).mean()
        ax.plot(mean, color=own or tint(ink().text, depth), label=str(arm), linewidth=1.8, zorder=4 + depth)
    parts.log_scale(ax.xaxis)
    limits = (min(0.0, table["AP"].min()) - 2, min(table["AP"].max() * 1.08 + 2, 104))
    ax.set(xlabel="training images with the category", ylabel=_kind(table), ylim=limits)
    if "colors" in table.attrs:
        ax.scatter(table["x"], [limits[0]] * len(table), s=70, c=table["frequency"].map(COLORS), marker="|", zorder=5)
    ax.grid(axis="y")
    fit = max(72 // (max(len(str(arm)) for arm in arms) + 6), 1)  # names beside each other above the Axes
    parts.legend_above(ax, ncols=min(len(arms), 4, fit), handlelength=1.4)
    return ax


@parts.figure("rio.open_runs(...).difference()", "name frequency image_count difference")
def ap_difference(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What one arm gains over another on each category, from the most to the least frequent, and the group means.

    Args:
        table: one row per category: name, frequency, image_count, difference (percentage points, NaN is left
            out); `attrs` may name arm, baseline and kind, and say as `note` why there is nothing to draw.
    """
    rows = table[table["difference"].notna()].sort_values("image_count", ascending=False, kind="stable")
    if len(rows) == 0 and "note" in table.attrs:
        ax = parts.axes(ax, 6.4, 0.5)
        ax.text(0, 0.5, table.attrs["note"], va="center", color=ink().quiet)
        ax.set_axis_off()
        return ax
    if len(rows) == 0:
        expected = "expected a category that both arms were judged on"
        raise parts.PlotError(f"table, column 'difference': {expected}, found none.")
    ax = parts.axes(ax, 6.4, 3.3)
    x, width = np.arange(len(rows)), 0.78 if len(rows) <= 60 else 1.0
    ax.bar(x, rows["difference"], width=width, color=rows["frequency"].map(COLORS), linewidth=0, zorder=2)
    ax.axhline(0, color=ink().quiet, linewidth=0.9, zorder=3)
    kind, arm, baseline = (table.attrs.get(k, "") for k in ("kind", "arm", "baseline"))
    ax.set_ylabel(f"{kind or 'AP'}, difference in points")
    if arm and baseline:
        ax.set_title(f"{arm} minus {baseline}", pad=22)
    parts.bare_columns(ax, rows["name"])
    ax.margins(y=0.08)
    parts.span_at_least(ax.yaxis, 2)
    labels = Labels(ax, avoid_data=False)
    for group in GROUPS:
        own = x[(rows["frequency"] == group).to_numpy()]
        if len(own):
            mean = rows["difference"].iloc[own].mean()
            ax.hlines(mean, own.min() - 0.4, own.max() + 0.4, color=ink().text, linewidth=1.4, zorder=4)
            labels.on_top(own.mean(), f"{GROUP_NAMES[group]}: {mean:+.1f}", fontsize=8.5, fontweight="bold")
    return ax


@parts.figure("rio.open_runs(...).errors()", "arm frequency part kind per_100 objects")
def errors_by_group(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What became of the objects of each frequency group, and of which kind the wrong predictions are, per arm.

    Left: every object once, in percent. Right: the wrong predictions by kind, and how many there are for 100
    objects.

    Args:
        table: arm, frequency, part ("objects", "predictions"), kind, per_100 (for 100 objects of the group),
            objects (of the group), optionally score_threshold (from which predictions count); `attrs` may give each
            arm its colour as `colors`.
    """
    kinds = {kind: color for kind, color in KIND_COLORS.items() if kind in set(table["kind"])}
    wide = table.pivot_table("per_100", ["frequency", "arm", "part"], "kind", "sum", observed=True)
    wide = wide.reindex(columns=list(kinds)).fillna(0.0)
    arms, sizes = list(dict.fromkeys(table["arm"])), table.groupby("frequency", observed=True)["objects"].first()
    lowest = table.groupby("arm")["score_threshold"].first() if "score_threshold" in table else {}
    groups = [g for g in GROUPS if g in sizes.index]
    ax = parts.axes(ax, 8.6, 0.9 + 0.27 * len(groups) * (len(arms) + 1.2))
    start, width = 108.0, 72.0  # of the right half
    end = start + width + 3
    names, arm_at, y = {}, {}, 0.0
    for group in groups:
        heading = f"{GROUP_NAMES[group]}, {parts.counted(int(sizes[group]), 'object')}"
        ax.annotate(heading, (-0.012, y), xycoords=ax.get_yaxis_transform(), ha="right", va="center", fontweight="bold")
        for arm in arms:
            y += 1
            arm_at[y], names[y] = arm, f"{arm}, score ≥ {lowest[arm]:.2f}" if arm in lowest else arm
            total = 0.0
            for part, left, wide_as in (("objects", 0.0, 100.0), ("predictions", start, width)):
                if (group, arm, part) in wide.index:
                    amounts = wide.loc[group, arm, part]
                    total = amounts.sum()
                    share = 100 * amounts / max(total, 1e-9)
                    words = {kind: f"{amount:.0f}" for kind, amount in share.items()}
                    parts.stacked_bar(ax, y, share * wide_as / 100, words, kinds, least=7, left=left)
            ax.text(end, y, f"{total:,.0f}", va="center", fontsize=8.5, fontweight="bold")
        y += 1.35
    for at, title in ((0, "objects, %"), (start, "wrong predictions by kind, %"), (end, "for 100 objects")):
        ax.text(at, 0, title, color=ink().quiet, fontsize=8.5, va="center")
    parts.bare_bars(ax, names, end + 21, y - 0.7, -0.7)
    parts.arm_squares(ax, table, arm_at)
    parts.legend_above(ax, **parts.squares(kinds), ncols=7, columnspacing=1.0, handletextpad=0.4, borderaxespad=0.2)
    return ax
