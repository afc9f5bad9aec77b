"""What all views share: their look, errors as one sentence, thumbnails as data URIs.

Text that comes from a file (names of categories, images, runs) is never HTML: it is escaped here, or set as
`textContent` by the views' JavaScript.
"""

import base64
import functools
import html
import io
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

F = TypeVar("F", bound=Callable)

FOLDER = Path(__file__).resolve().parent / "static"
# CSS of every view. Colours follow JupyterLab's theme (light and dark) and have defaults for voila.
STYLE = (FOLDER / "views.css").read_text(encoding="utf-8")


class NotebookError(Exception):
    """What went wrong, in one sentence. A notebook shows the sentence without a traceback, and stops there."""

    def _render_traceback_(self) -> list[str]:
        # IPython asks an exception for the lines to show. JupyterLab would break long lines within words.
        return textwrap.wrap(str(self), 112, break_long_words=False, break_on_hyphens=False)


def sentences(function: F) -> F:
    """Turn errors that users can fix (of a file, name or setting) into a `NotebookError`; bugs keep their traceback."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise NotebookError(sentence(error)) from None

    return wrapper  # type: ignore[return-value]


def sentence(error: BaseException) -> str:
    """An error's message on one line, with a full stop."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    text = " ".join(text.split()) or type(error).__name__
    return text if text[-1] in ".!?" else f"{text}."


def view(body: str, kind: str = "") -> str:
    """HTML of a view; `kind` is a class of views.css."""
    return f'<div class="rio-view {kind}"><style>{STYLE}</style>{body}</div>'


def notice(text: str) -> str:
    """A quiet box with one sentence, in place of a view that has nothing to show."""
    return view(html.escape(text), "rio-notice")


def status(text: str) -> str:
    """A quiet line under a chart or a table."""
    return view(html.escape(text), "rio-status")


def tiles(cells: Iterable[tuple[object, str]], note: str) -> str:
    """Large numbers with a label each, and a quiet line below. A label "r", "c" or "f" first: its dot's colour."""
    shown = ""
    for value, label in cells:
        group, bar, name = label.rpartition("|")
        dot = f'<span class="rio-dot {group}"></span>' if bar else ""
        shown += f'<div class="rio-tile"><div class="rio-value">{html.escape(_shown(value))}</div>'
        shown += f'<div class="rio-label">{dot}{html.escape(name)}</div></div>'
    return f'<div class="rio-tiles">{shown}</div><div class="rio-quiet">{html.escape(note)}</div>'


def html_table(columns: list[str], rows: list[list[Any]], *, caption: str = "") -> str:
    """HTML of a small table; numbers are right-aligned, everything is escaped."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    title = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="rio-view rio-figure"><style>{STYLE}</style>{title}'
        f'<table class="rio-plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></figure>'
    )


def _cell(value: Any) -> str:
    kind = "rio-number" if re.match(r"[-–+±<≈]?\d|[–∞-]$", text := _shown(value)) else "rio-text"
    if text.startswith("**") and text.endswith("**") and len(text) > 4:
        return f'<td class="rio-number"><b>{html.escape(text[2:-2])}</b></td>'
    return f'<td class="{kind}">{html.escape(text)}</td>'


def _shown(cell: Any) -> str:
    return f"{cell:,}" if isinstance(cell, (int, np.integer)) and not isinstance(cell, bool) else str(cell)


def thumbnail(image: np.ndarray, box: np.ndarray, *, side: int = 72) -> str:
    """A square cut around a box, with some of its surroundings, as a data URI.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: x, y, width, height in px. Where the square leaves the image, the edge is repeated.
        side: of the thumbnail, px.
    """
    (x, y, w, h), reach = box, np.clip(0.65 * max(box[2:]), 4.0, max(image.shape))
    rows, columns = (np.arange(np.floor(c - reach), np.floor(c + reach + 1)) for c in (y + h / 2, x + w / 2))
    rows, columns = (np.clip(at, 0, n - 1).astype(int) for at, n in zip((rows, columns), image.shape, strict=False))
    square = image[rows[:, None], columns]
    square = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC))
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(square)).decode()}"


def jpeg(image: np.ndarray, quality: int = 88) -> bytes:
    """An (H, W, 3) uint8 RGB image as a JPEG file's bytes."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()
