"""Figures inside a page: SVG that follows its theme, light or dark, and uses its width; and in a paper's column."""

import io
import itertools
import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from rio.plots.style import DRAWN, LIGHT, TINTS, style

ZOOM = 1.35  # of a figure's own size, as far as the page is that wide
# JupyterLab's and voila's variables; elsewhere the page is white.
VARIABLES = dict(
    zip(LIGHT, ("content-font-color1", "content-font-color2", "border-color2", "layout-color0"), strict=True)
)
_numbers = itertools.count()


def inline_svg(figure: Figure) -> str:
    """HTML of a figure drawn in the light style: its ink and paper become those of the page it is shown in."""
    buffer, theme = io.StringIO(), {color.lower(): f"var(--jp-{name}, {color})" for color, name in VARIABLES.items()}
    with style():
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    for color, (hue, amount) in TINTS.items():
        theme[color] = f"color-mix(in srgb, {theme.get(hue, hue)} {amount:.0%}, {theme[LIGHT.page.lower()]})"
    svg = buffer.getvalue().partition("<svg")[2]
    head, _, body = svg.partition(">")
    width = float(re.search(r'width="([\d.]+)pt"', head)[1]) * 96 / 72 * ZOOM
    head = re.sub(r'(width|height)="[\d.]+pt"', "", head)
    # Figures of one page share no ids: one that is scrolled away would take the others' clips with it.
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{next(_numbers)}-", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda color: theme.get(color[0], color[0]), body)
    look = f"background: {theme[LIGHT.page.lower()]}; width: min(100%, {width:.0f}px); height: auto; display: block"
    return f'<svg style="{look}"{head}>{body}'


def save_all(folder: str | os.PathLike[str]) -> list[Path]:
    """Write the figures of this process as NAME.pdf and NAME.svg, for \\includegraphics[width=\\columnwidth]{NAME}.

    Each is drawn anew for a column of 3.3 inches (wide ones: for \\textwidth), so that its text has 7 points there. The
    newest of a name counts; figures drawn into an Axes of one's own are left out.

    Args:
        folder: made if missing; files of these names are replaced.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    files = []
    for name, draw in list(DRAWN.items()):
        with style(column=True):
            figure = draw().figure
            for kind, date in (("pdf", "CreationDate"), ("svg", "Date")):
                files.append(Path(folder) / f"{name}.{kind}")
                figure.savefig(files[-1], metadata={date: None})
            plt.close(figure)
    return files
