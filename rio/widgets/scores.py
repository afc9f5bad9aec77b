"""What a score's slider does: histograms by frequency group with what lies below it, and counts of what is left."""

import numpy as np

from rio.results.thresholds import RULE
from rio.widgets import theme
from rio.widgets.source import PredictionSource

BINS, HEIGHT = 50, 20  # px


def histograms(source: PredictionSource, threshold: float) -> str:
    """HTML: scores of each group's judged predictions (pale) and of the right ones among them (solid), heights as roots
    of the counts, and how many of them lie below the threshold.
    """
    rows = []
    for group, (every, right) in source.scores_by_group.items():
        most, bars = np.sqrt(max(np.histogram(every, BINS, (0, 1))[0].max(), 1)), ""
        for scores, opacity in ((every, 0.35), (right, 1)):
            tops = HEIGHT * np.sqrt(np.histogram(scores, BINS, (0, 1))[0]) / most
            places = [(4 * at, top) for at, top in enumerate(tops.tolist()) if top]
            path = "".join(f"M{x} {HEIGHT}v{-top:.1f}h3.4v{top:.1f}z" for x, top in places)
            bars += f'<path d="{path}" fill="var(--{group[0]}, var(--quiet))" opacity="{opacity}"/>'
        line = f'<path d="M{4 * BINS * threshold:.1f} 0v{HEIGHT}" stroke="var(--ink)" stroke-width="1.5"/>'
        size = f'width="{4 * BINS}" height="{HEIGHT}" viewBox="0 0 {4 * BINS} {HEIGHT}"'
        below, all_below = (int(np.searchsorted(scores, threshold)) for scores in (right, every))
        rows.append(
            f"<tr><td>{group}</td><td><svg {size}>{bars}{line}</svg></td>"
            f"<td>{below:,} of {len(right):,} right ones below, {all_below:,} of {len(every):,} in all</td></tr>"
        )
    own = f"Chosen from these predictions: {source.best:.2f} ({RULE})."
    return theme.view(f'<table class="rio-scores">{"".join(rows)}</table><div class="rio-quiet">{own}</div>')


def tables(source: PredictionSource, threshold: float) -> str:
    """HTML of `source.summary`."""
    shown = ""
    for name, table in source.summary(threshold).groupby(level=0, sort=False):
        rows = [[kind, *row] for (_, kind), row in zip(table.index, table.to_numpy().tolist(), strict=True)]
        caption = f"Score {threshold:.2f} or more: {name}"
        shown += theme.html_table(["", *table.columns], [*rows, ["sum", *table.sum().tolist()]], caption=caption)
    return shown
