"""The look of every figure: colours and fonts."""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text

from rio.data.annotations import GROUP_NAMES

Color = str | tuple[float, float, float]

GROUPS = tuple(GROUP_NAMES)
METRIC_NAMES = {"AP": "all"} | {f"AP{group}": name for group, name in GROUP_NAMES.items()}
LEVEL_NAMES = {"images": "images", "instances": "objects", "rois": "RoIs"}
COLORS = {"r": "#DC5F71", "c": "#E3AC3D", "f": "#2768A7"}
# Of all else, so that nothing is taken for a group: curves; ways of resampling. Readable on white and on black.
LINE_COLORS = ("#6656C9", "#3BA693", "#94922C", "#AA4499", "#72BEE6", "#8A6248", "#2F7D3B", "#51626B", "#C2571F")
LINE_COLORS += ("#7CC242", "#C77FE0")
ARM_COLORS = {"bank": "#94922C", "RFS": "#AA4499", "IRFS": "#3BA693", "class-aware": "#72BEE6"}
ARM_COLORS["RFS + bank"] = "#C2571F"
# Kinds of errors, which stand beside arms: violet for a wrong class, pale for a box that is off, dark for both; browns
# for what is too many.
KIND_COLORS = {"correct": "#2F7D3B", "classification": "#7A5BD0", "localisation": "#B9A8EE", "missed": "#9AA1AC"}
KIND_COLORS |= {"both": "#3D2A78", "duplicate": "#8A6248", "background": "#CDB39E"}
TINTS: dict[str, tuple[str, float]] = {}  # what `tint` has mixed with white: its hex -> colour and amount


class Ink(NamedTuple):
    """Colours of a page: text, text that stays in the background, rules, and the page itself."""

    text: str
    quiet: str
    rule: str
    page: str


LIGHT = Ink("#1F2430", "#5C6470", "#D9DDE3", "#FFFFFF")
DARK = Ink("#E8EBF0", "#A3ABB8", "#3A414D", "#15181D")
_active: ContextVar[Ink | None] = ContextVar("ink", default=None)  # None: outside style()


_in_column: ContextVar[bool] = ContextVar("in_column", default=False)
DRAWN: dict[str, Callable[[], Axes]] = {}  # the newest figures of this process by name: draws each anew
MOST_DRAWN = 40


@contextmanager
def style(*, dark: bool = False, column: bool = False) -> Iterator[None]:
    """Apply the project's look to everything drawn inside the `with` block, and to nothing else.

    Args:
        dark: light ink on a transparent ground, for dark pages. Otherwise dark ink on white.
        column: new figures suit a paper: text of 7 points when they are set as wide as its column (or its page).
    """
    _load_backend()
    ink, paper = (DARK, "none") if dark else (LIGHT, LIGHT.page)
    look = {
        "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
        "font.size": 9, "lines.linewidth": 1.6, "text.color": ink.text, "grid.color": ink.rule, "grid.linewidth": 0.6,
        "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 10,
        "axes.labelsize": 9, "axes.labelcolor": ink.quiet, "axes.edgecolor": ink.quiet, "axes.linewidth": 0.7,
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.facecolor": "none",
        "xtick.color": ink.quiet, "xtick.labelsize": 8.5, "xtick.major.width": 0.7,
        "ytick.color": ink.quiet, "ytick.labelsize": 8.5, "ytick.major.width": 0.7,
        "legend.frameon": False, "legend.fontsize": 8.5, "legend.title_fontsize": 8.5,
        "text.parse_math": False,  # names are data: $5 is no formula
        "figure.facecolor": paper, "savefig.facecolor": paper, "savefig.dpi": 200, "savefig.bbox": "tight",
        "svg.fonttype": "path", "svg.hashsalt": "rio", "pdf.fonttype": 42,  # the same figure gives the same file
    }  # fmt: skip
    token, narrow = _active.set(ink), _in_column.set(column)
    try:
        with mpl.rc_context(look):
            yield
    finally:
        _active.reset(token)
        _in_column.reset(narrow)


@functools.cache
def _load_backend() -> None:
    # A notebook's backend turns interactive mode on when the first figure loads it. That is an rcParam: loaded
    # inside the style it would be off again afterwards, and no figure would ever show.
    plt.switch_backend(mpl.get_backend())


def styled(function: Callable[..., Axes]) -> Callable[..., Axes]:
    """Draw in the style of the surrounding `style()` block, or in the light one outside of any."""

    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> Axes:
        with nullcontext() if _active.get() else style():
            for given in (*args, *kwargs.values()):
                if isinstance(given, Axes):
                    _take_literally(given)
            drawn = function(*args, **kwargs)
            _take_literally(drawn)
        if len(args) == 1 and kwargs.get("ax") is None and not _in_column.get():
            _remember(function.__name__, functools.partial(wrapper, *args, **kwargs))
        return drawn

    return wrapper


def _remember(name: str, draw: functools.partial[Axes]) -> None:
    """Keep what draws a figure, under a name made from its function, kind of AP and options."""
    kind = getattr(draw.args[0], "attrs", {}).get("kind", "")
    name = re.sub(r"\W+", "_", "_".join(filter(None, map(str, (name, kind, *draw.keywords.values()))))).strip("_")
    DRAWN.pop(name, None)
    DRAWN[name] = draw
    for oldest in list(DRAWN)[:-MOST_DRAWN]:
        del DRAWN[oldest]


def in_column() -> bool:
    """Whether new figures are for the column of a paper."""
    return _in_column.get()


def size_of(width: float, height: float) -> tuple[float, float]:
    """The size of a new figure (inches): the one asked for, or in a paper that of its column or its page."""
    if not _in_column.get():
        return width, height
    return (4.1 if width < 7 else 8.4), height * (0.9 if width < 7 else 1)


def _take_literally(ax: Axes) -> None:
    """Names are data, "$5" no formula, in Axes made outside `style` too: of which ticks are made when asked for."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_majorticklabels()
    for text in ax.findobj(Text):
        text.set_parse_math(False)


def ink() -> Ink:
    """The colours of the page drawn on."""
    return _active.get() or LIGHT


def tint(color: Color, amount: float) -> tuple[float, float, float]:
    """Mix a colour with the page: 1 is the colour itself, 0 the page."""
    page = np.array(to_rgb(ink().page))
    mixed = tuple(page + amount * (np.array(to_rgb(color)) - page))
    if ink() is LIGHT and amount < 1:
        TINTS[to_hex(mixed)] = to_hex(color), amount
    return mixed


def arm_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each arm. One named after a way of resampling ("rfs", "rfs+bank"; "rfs-linear") has that of the way,
    which it has in every figure; a second one of that way ("rfs-cosine") a paler one.
    """
    ways = {"none": ink().quiet, "rio": ARM_COLORS["RFS + bank"]}
    ways |= {way.lower().replace(" + ", "-"): color for way, color in ARM_COLORS.items()}  # "rfs-bank"
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"\s*[_+]\s*", "-", name.lower())
        way = plain if plain in ways else plain.rpartition("-")[0]
        both = [ways[way], to_hex(tint(ways[way], 0.45))] if way in ways else []
        found[name] = next((color for color in both if color not in found.values()), "")
    others = itertools.cycle(color for color in LINE_COLORS if color not in found.values())
    return {name: color or next(others) for name, color in found.items()}


def luminance(color: Color) -> float:
    """Relative luminance of a colour, 0 (black) to 1 (white), as WCAG 2 defines it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def ink_on(color: Color) -> str:
    """Black or white, whichever is easier to read on the colour; neither is the page's, which a theme changes."""
    return "#14171C" if luminance(color) > 0.3 else "#FEFEFE"


def metric_color(metric: str) -> str:
    """The colour of AP, APr, APc or APf."""
    return ink().text if metric == "AP" else COLORS[metric[2:]]
