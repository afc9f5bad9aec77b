"""The one reader of image files: RGB, turned as EXIF says, anything else refused; needs neither torch nor OpenCV."""

import contextlib
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

# What PIL's decoders raise on damaged files, and on one that unpacks to more than 179 Mpx.
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, OverflowError, Image.DecompressionBombError,
)  # fmt: skip


class ImageError(ValueError):
    """An image that cannot be read; the message names the file and the reason."""


def read_image(path: str | os.PathLike[str], *, max_side: int | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file of any format that Pillow reads, turned as the EXIF data says; an image
    whose longer side exceeds `max_side` px is shrunk. An ImageError where it is missing, damaged, or of 16 or 32 bits a
    channel.
    """
    try:
        with Image.open(path) as file:
            require_8_bits(file)
            image: Image.Image = file
            if max_side:
                image.thumbnail((max_side, max_side))
            with contextlib.suppress(Exception):  # broken EXIF: as it is, like detectron2
                image = ImageOps.exif_transpose(image)
            return np.array(image.convert("RGB"))
    except UNREADABLE as error:
        raise ImageError(f"image {path}: expected a picture, found: {type(error).__name__}: {error}") from error


class Header(NamedTuple):
    """What a picture's first bytes say: its size (px) as shown, whether EXIF turns it by a quarter, what is wrong."""

    width: int
    height: int
    turned: bool
    fault: str | None = None


def read_header(path: str | os.PathLike[str]) -> Header:
    """A picture's size without its pixels; a file that looks cut off is decoded to make sure."""
    try:
        with Image.open(path) as file:
            require_8_bits(file)
            turned = False
            with contextlib.suppress(Exception):  # broken EXIF: as it is
                turned = file.getexif().get(0x112, 1) in (5, 6, 7, 8)
            width, height = file.size[::-1] if turned else file.size
            if not _ends(path, file.format):
                file.load()
            return Header(width, height, turned)
    except UNREADABLE as error:
        return Header(0, 0, False, f"{type(error).__name__}: {error}")


_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}


def _ends(path: str | os.PathLike[str], kind: str | None) -> bool:
    """Whether the file ends as its format does."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 64))
        return _ENDS.get(kind or "", b"") in file.read()


def in_threads(work: Callable[[str], Any], paths: Sequence[str], what: str) -> list[Any]:
    """`work` of every path, with a bar where it takes long."""
    from tqdm.auto import tqdm  # a moment: not for one picture

    with ThreadPoolExecutor(8) as pool:
        return list(tqdm(pool.map(work, paths), total=len(paths), desc=what, unit="file", delay=2, disable=None))


def require_8_bits(image: Image.Image) -> None:
    """A ValueError for grey values of 16 or 32 bits: Pillow would clip them to 0..255, nearly all white."""
    if image.mode == "F" or image.mode.startswith("I"):
        raise ValueError(
            f"expected 8 bits a channel, found grey values of 16 or 32 bits (mode {image.mode}). Fix: convert it "
            "to 8 bits; how to scale it depends on what its numbers mean"
        )
