"""AP against the length of training, so that nobody takes one for a method's merit that is the other's."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from rio.plots import parts
from rio.plots.labels import Labels
from rio.plots.style import METRIC_NAMES, arm_colors, ink, styled

DASHES = ("", (3, 1.5), (1, 1))
MOST_BANDS = 8  # colours; more bands hide each other


@styled
def study_curves(table: pd.DataFrame, ax: Axes | None = None, *, metric: str = "AP") -> Axes:
    """AP of a study's arms at every evaluation: the mean over seeds as a line, from lowest to highest seed as a band
    (of up to eight colours).

    Arms named PART-PART, such as "rfs-linear" and "rfs-cosine", share the colour of the first part (a way of resampling
    has the one that it has in every figure) and the dashes of the second; each colour is named at the end of its first
    line.

    Args:
        table: a row per evaluation: arm, seed, epoch, and `metric` in percent.
        metric: AP, APr, APc or APf.
    """
    parts.need(table, ("arm", "seed", "epoch", metric), "StudyResult.curves()")
    parts.need_once(table, ["arm", "seed", "epoch"], "pass each run once")
    ax = parts.axes(ax, 6.2, 3.4)
    names = table["arm"].str.rsplit("-", n=1, expand=True)
    paired = names.shape[1] == 2 and names[1].notna().all() and names[1].nunique() <= len(DASHES)
    color, dash = (names[0], names[1]) if paired else (table["arm"], "")
    rows = table.assign(color=color, dash=dash).dropna(subset=[metric])
    hues, styles = list(dict.fromkeys(rows["color"])), list(dict.fromkeys(rows["dash"]))
    colors, band = arm_colors(hues), ("pi", 100) if len(hues) <= MOST_BANDS else None
    sns.lineplot(
        rows, x="epoch", y=metric, hue="color", style="dash", palette=colors, errorbar=band, legend=False,
        hue_order=hues, style_order=styles, dashes=dict(zip(styles, DASHES, strict=False)), lw=1.5, ax=ax,
        err_kws={"alpha": 0.18, "linewidth": 0},
    )  # fmt: skip
    ax.set(xlabel="epochs (images shown / images of the training set)", ylabel=f"box AP, {METRIC_NAMES[metric]} (%)")
    ax.set_xlim(0, rows["epoch"].max())
    ax.grid(axis="y")
    parts.span_at_least(ax.yaxis, 2)
    last, ends = rows[rows["epoch"] == rows["epoch"].max()], []
    for hue in hues:
        own = last[(last["color"] == hue) & (last["dash"] == styles[0])]
        ends += [(own[metric].mean(), hue, colors[hue])] if len(own) else []
    Labels(ax, avoid_data=False).on_right(ends, fontsize=8.5)
    if len(styles) > 1:
        lines = [
            Line2D([], [], color=ink().text, dashes=d or (1, 0), label=s) for s, d in zip(styles, DASHES, strict=False)
        ]
        ax.legend(handles=lines, loc="lower right")
    return ax
