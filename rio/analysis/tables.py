"""Tables of AP to be shown and copied: spreads, the best in bold, Markdown and LaTeX."""

import re

import numpy as np
import pandas as pd
from tabulate import tabulate

from rio.results.evaluation import GROUP_METRICS as METRICS


def with_spread(value: float, spread: float) -> str:
    """ "12.3 ± 0.4"; without the spread if it is NaN, "–" if the value is."""
    return ("–" if pd.isna(value) else f"{value:.1f}") + ("" if pd.isna(spread) else f" ± {spread:.1f}")


def with_best(cells: list[list[str]], values: pd.DataFrame) -> list[list[str]]:
    """Rows of a name and the four metrics, the best of each column bold (**12.3**) unless all are equal.

    values: the numbers, a row for each row; equal to one digit is equal.
    """
    for column, metric in enumerate(METRICS, 1):
        own = values[metric].astype(float).round(1).to_numpy()
        if len(set(own[~np.isnan(own)])) > 1:
            for row in np.flatnonzero(own == np.nanmax(own)):
                cells[row][column] = f"**{cells[row][column]}**"
    return cells


def markdown_table(title: str, rows: list[list[str]]) -> str:
    """A Markdown table of the four metrics. rows: name, AP, APr, APc, APf."""
    rows = [[row[0].replace("|", "\\|"), *row[1:]] for row in rows]
    return tabulate(
        rows, [title, *METRICS], "pipe", disable_numparse=True, colalign=["left"] + ["right"] * len(METRICS)
    )


def latex_table(title: str, rows: list[list[str]]) -> str:
    """The same in LaTeX (booktabs), from the same cells."""
    align = ["left"] + ["right"] * len(METRICS)
    text = tabulate(rows, [title, *METRICS], "latex_booktabs", disable_numparse=True, colalign=align)
    text = re.sub(r"AP([rcf])\b", r"AP$_\1$", text, count=3)  # the heads
    text = re.sub(r"\*\*([+-][\d.]+)\*\*", r"$\\mathbf{\1}$", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
    text = re.sub(r"(?<=[ \[])[+-]\d+\.\d", r"$\g<0>$", text)
    return text.translate(str.maketrans({"−": "$-$", "–": "--", "±": r"$\pm$"}))
