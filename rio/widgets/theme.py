"""What all views share: their look, errors as one sentence, pictures as data URIs.

Text that comes from a file (names of categories, of images, of runs) is never HTML: it is escaped here, or
set as `textContent` by the views' JavaScript.
"""

from __future__ import annotations

import base64
import functools
import html
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
T = TypeVar("T")

FOLDER = Path(__file__).resolve().parent / "static"

STYLE = (FOLDER / "views.css").read_text(encoding="utf-8")
"""CSS of every view. Colours follow JupyterLab's theme (light and dark) and have defaults for voila."""


class NotebookError(Exception):
    """What went wrong as one sentence. A notebook shows the sentence and no traceback, and stops there."""

    def _render_traceback_(self) -> list[str]:
        # IPython asks an exception for the lines it wants shown.
        # JupyterLab breaks long lines within words, so they are broken between them here.
        return textwrap.wrap(str(self), 112, break_long_words=False, break_on_hyphens=False)


def sentences(function: Callable[P, T]) -> Callable[P, T]:
    """Turn the errors that users can mend (of a file, a name, a setting) into a `NotebookError`.

    Anything else is a defect of ours and keeps its traceback.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise NotebookError(sentence(error)) from None

    return wrapper


def sentence(error: BaseException) -> str:
    """An error's message on one line, ending in a full stop."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    text = re.sub(r"\s+", " ", text).strip() or type(error).__name__
    return text if text[-1] in ".!?" else f"{text}."


def notice(text: str) -> str:
    """HTML of a quiet box with one sentence, for what a view has to say instead of a picture."""
    return f'<div class="rio-view rio-notice"><style>{STYLE}</style>{html.escape(text)}</div>'


def html_table(columns: list[str], rows: list[list[Any]], *, caption: str = "") -> str:
    """HTML of a small table; numbers are right-aligned, everything is escaped."""
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(f'<td class="{_kind(cell)}">{html.escape(_shown(cell))}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    title = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="rio-view rio-figure"><style>{STYLE}</style>{title}'
        f'<table class="rio-plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></figure>'
    )


def _kind(cell: Any) -> str:
    is_number = not isinstance(cell, str) or re.match(r"[-–+±<≈]?\d|[–∞-]$", cell)
    return "rio-number" if is_number else "rio-text"


def _shown(cell: Any) -> str:
    return f"{cell:,}" if isinstance(cell, (int, np.integer)) and not isinstance(cell, bool) else str(cell)


# --------------------------------------------------------------------------------------------------- pictures


def data_uri(image: np.ndarray, *, format: str = "jpg", quality: int = 88) -> str:
    """An RGB image as a data URI.

    Args:
        image: (H, W, 3) or (H, W) uint8.
        format: "jpg" for photographs, "png" for drawings (lossless).
        quality: of a JPEG, 1..100.
    """
    import cv2  # only views with pictures need it

    pixels = np.ascontiguousarray(image[..., ::-1] if image.ndim == 3 else image)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if format == "jpg" else []
    done, encoded = cv2.imencode(f".{format}", pixels, options)
    if not done:
        raise ValueError(f"image: expected (H, W, 3) or (H, W) uint8, found {image.shape} {image.dtype}.")
    kind = "jpeg" if format == "jpg" else format
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode('ascii')}"


def crop(image: np.ndarray, box: np.ndarray, *, side: int = 72, margin: float = 0.15) -> np.ndarray:
    """A square thumbnail around a box, with some of its surroundings.

    Args:
        image: (H, W, 3) uint8.
        box: x, y, width, height in px.
        side: of the thumbnail, px.
        margin: surroundings on each side, as a share of the box's longer side.

    Returns:
        (side, side, 3) uint8; where the square leaves the image its edge is repeated.
    """
    import cv2

    x, y, w, h = (float(v) for v in box)
    half = max(max(w, h) * (0.5 + margin), 4.0)
    cx, cy = x + w / 2, y + h / 2
    x0, y0, x1, y1 = (int(np.floor(v)) for v in (cx - half, cy - half, cx + half + 1, cy + half + 1))
    height, width = image.shape[:2]
    rows = np.clip(np.arange(y0, y1), 0, height - 1)
    columns = np.clip(np.arange(x0, x1), 0, width - 1)
    square = image[rows[:, None], columns]
    shrinks = square.shape[0] > side
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
