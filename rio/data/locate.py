"""Where the pictures lie: file names in other spellings, and the folder that holds them, found by looking."""

import os
import re
import unicodedata
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

LOOKED_AT = 2_000
"""Folders that are looked into for the pictures, at most."""


def plain_name(name: str, root: str | None) -> str:
    """A file name with / for \\, without ./ and doubled /, relative to the folder if it lies below it."""
    plain = re.sub(r"(?<=.)/{2,}", "/", name.replace("\\", "/"))
    while plain.startswith("./"):
        plain = plain[2:]
    if root and (plain.startswith("/") or re.match("[A-Za-z]:/", plain)):
        for folder in (root, os.path.abspath(root)):
            prefix = folder.replace("\\", "/").rstrip("/") + "/"
            if plain.startswith(prefix):
                return plain[len(prefix) :]
        # Of another machine: what follows the folder's own name, if that is there.
        parts, own = plain.split("/"), os.path.basename(os.path.abspath(root))
        for place in [i for i, part in enumerate(parts[:-1]) if part == own]:
            tail = "/".join(parts[place + 1 :])
            if ".." not in parts and os.path.isfile(os.path.join(root, tail)):
                return tail
    return plain.replace("/./", "/")


def resolved(root: str, names: Sequence[str], missing: np.ndarray) -> dict[int, str]:
    """Names of files that are there in another spelling: percent-encoded, in other case, in another normal form.

    `names` are relative to the image folder `root`, `missing` the positions of those without a file. Returns by
    position the name of the one file that is meant; a file that two names would share is left out.
    """
    listings: dict[str, dict[str, list[str]]] = {}
    found: dict[int, str] = {}
    for row in missing.tolist():
        for name in dict.fromkeys((names[row], urllib.parse.unquote(names[row]), names[row].replace("/", "\\"))):
            if name and (match := _match(root, name, listings)):
                found[row] = match
                break
    taken = set(names) if found else set()
    counts = Counter(found.values())
    return {row: name for row, name in found.items() if counts[name] == 1 and name not in taken}


def _match(root: str, name: str, listings: dict[str, dict[str, list[str]]]) -> str | None:
    """The one file below the folder whose path has the same letters, if case and normal form do not count."""
    if ".." in name.split("/") or "\0" in name:
        return None
    here: list[str] = []
    for part in name.split("/"):
        folder = os.path.join(root, *here)
        if folder not in listings:
            listings[folder] = {}
            for entry in _names_in(folder):
                listings[folder].setdefault(_key(entry), []).append(entry)
        options = listings[folder].get(_key(part), [])
        match = part if part in options else options[0] if len(options) == 1 else None
        if match is None:
            return None
        here.append(match)
    return "/".join(here) if os.path.isfile(os.path.join(root, *here)) else None


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def hint(root: str, paths: Sequence[str], missing: np.ndarray) -> list[str]:
    """For the first missing picture, where a file of its name lies nearby, as the end of a sentence; "" for others."""
    hints = [""] * len(paths)
    rows = np.flatnonzero(missing)
    if len(rows) and paths[rows[0]] and (place := _find(root, os.path.relpath(paths[rows[0]], root or "."))):
        hints[int(rows[0])] = f"; {place}"
    return hints


def _find(root: str, name: str) -> str | None:
    """Words that name the folder to give, or the one to put before the names."""
    name = name.replace("\\", "/")
    for folder in _around(root):
        if os.path.isfile(os.path.join(folder, name)):
            return f"the pictures lie below {folder}: give that folder"
    base = os.path.basename(name)
    for folder in _around(root):
        if os.path.isfile(os.path.join(folder, base)):
            relative = os.path.relpath(folder, root)
            if relative.startswith(".."):
                return f"a picture of that name lies in {folder}: give that folder"
            if relative == ".":
                return f"a picture of that name lies in {folder} itself: write names without folders"
            return f"a picture of that name lies in {folder}: give that folder, or write '{relative}/{base}'"
    return None


def _around(root: str) -> Iterator[str]:
    """The folder above, this one and the folders below it, then those beside it; nearest first."""
    root = os.path.normpath(root or ".")
    above = os.path.normpath(os.path.join(root, ".."))
    yield above
    waiting, seen = [root, above], 0
    while waiting and seen < LOOKED_AT:
        folder = waiting.pop(0)
        seen += 1
        yield folder
        try:
            with os.scandir(folder) as entries:
                waiting += sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            continue
