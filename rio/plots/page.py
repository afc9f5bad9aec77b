"""A figure inside a page: SVG that follows the page's theme, light or dark, and uses its width."""

from __future__ import annotations

import io
import itertools
import re

from matplotlib.figure import Figure

from rio.plots.style import LIGHT, TINTS, style

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
