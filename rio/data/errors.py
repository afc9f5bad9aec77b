"""The one check of arguments; errors of annotation files, and the list of what was left out instead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn


def check(good: Any, what: str, expected: str, found: object, fix: str, error: type[Exception] = ValueError) -> None:
    """Raise an error of what was expected, found and is to be done, unless good."""
    if not good:
        raise error(f"{what}: expected {expected}, found {found}. Fix: {fix}")


class AnnotationError(ValueError):
    """An annotation file breaks a rule. The message names file, record, key, expected, found and fix.

    `kind` is the rule's short name, as in the table of `rio.data.load`; `record` is such as ``"annotation 17"``.
    """

    def __init__(
        self, path: str | os.PathLike[str], record: str, key: str, expected: str, found: str, fix: str, kind: str = ""
    ) -> None:
        self.path, self.record, self.key = os.fspath(path), record, key
        self.expected, self.found, self.fix, self.kind = expected, found, fix, kind
        super().__init__(f"{self.path}: {record}, key '{key}': expected {expected}, found {found}. Fix: {fix}.")

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception pickles as its message; loader workers send theirs pickled.
        return type(self), (self.path, self.record, self.key, self.expected, self.found, self.fix, self.kind)


class AnnotationFileNotFoundError(FileNotFoundError):
    """The annotation file itself is not there."""


class Skipped(NamedTuple):
    """A record that was left out: the rule's `kind`, the `record` (``"annotation 17"``), what was found."""

    kind: str
    record: str
    detail: str


_FIXES = {
    "bbox": "give [x, y, width, height] in px as finite numbers",
    "segmentation": "give a list of polygons [[x, y, x, y, ...], ...] in px, or an RLE {size, counts}",
    **dict.fromkeys(("width", "height"), "give the image's size in px"),
    "annotations": 'add "annotations": [...] (an empty list is allowed)',
    "iscrowd": "give 0 or 1",
    "frequency": "give r, c or f, or leave the key out",
}


class Problems:
    """Raises an error for the first broken rule, or lists the record as skipped, as `on_error` asks."""

    def __init__(self, path: str, on_error: str) -> None:
        self.path, self.skip = path, on_error == "skip"
        self.skipped: list[Skipped] = []

    def fatal(self, kind: str, record: str, key: str, expected: str, found: str, fix: str | None = None) -> NoReturn:
        """Raise, whatever `on_error` says."""
        raise AnnotationError(self.path, record, key, expected, found, fix or _FIXES.get(key, "correct the file"), kind)

    def reject(
        self, kind: str, record: str, key: str, expected: str, found: str, fix: str | None = None, more: int = 0
    ) -> None:
        """Raise, mentioning how many `more` records break the same rule, or list the record."""
        if self.skip:
            self.skipped.append(Skipped(kind, record, f"{key}: expected {expected}, found {found}"))
            return
        fix = fix or _FIXES.get(key, "correct the record")
        fix += "; or leave such records out with on_error='skip' (in a data set's name: '?skip' at the end)"
        self.fatal(kind, record, key, expected, found + (f" ({more} more like it)" if more else ""), fix)


def listing(values: Sequence[Any], most: int = 5) -> str:
    """The first few values as text, and how many more there are."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more
