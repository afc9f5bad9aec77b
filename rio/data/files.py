"""Files written so that nothing is ever half there; which files are pictures; nested keys of YAML files."""

import contextlib
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file, and its folder, so that at any moment either the old or the new one is there, whole.

    `content`: the bytes, or a function that writes them to an open file. An OSError that names the file and the fix
    where the disk is full, or the folder may not be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a full disk's own error names no file
        fix = "Fix: make room there, or choose another folder by --output-dir (of `rio features`: --output)"
        raise OSError(error.errno, f"{error.strerror or error}. {fix}", str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    with contextlib.suppress(OSError):  # make the rename itself durable, where a folder can be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def dotted(node: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested keys as one: {"A": {"B": 1}} -> {"A.B": 1}."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= dotted(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return found
