"""Errors of annotation files."""

from __future__ import annotations

import os
from typing import Any, NamedTuple


class AnnotationError(ValueError):
    """An annotation file breaks a rule. The message names file, record, key, expected, found and remedy.

    Args:
        path: The annotation file.
        record: Which record, e.g. ``"annotation 17"``.
        key: The JSON key.
        expected: What should be there.
        found: What is there.
        remedy: What to do about it.
        kind: The rule's short name, as in the module's table.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        record: str,
        key: str,
        expected: str,
        found: str,
        remedy: str,
        *,
        kind: str = "",
    ) -> None:
        self.path, self.record, self.key = os.fspath(path), record, key
        self.expected, self.found, self.remedy, self.kind = expected, found, remedy, kind
        super().__init__(f"{self.path}: {record}, key '{key}': expected {expected}, found {found}. Remedy: {remedy}.")

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle by their `args`, which hold the message only; loader workers send errors pickled.
        return _rebuild_error, (
            self.path, self.record, self.key, self.expected, self.found, self.remedy, self.kind,
        )  # fmt: skip


def _rebuild_error(*args: str) -> AnnotationError:
    return AnnotationError(*args[:-1], kind=args[-1])


class AnnotationFileNotFoundError(FileNotFoundError):
    """The annotation file itself is not there."""


class Skipped(NamedTuple):
    """A record that was left out: the rule's `kind`, the `record` (``"annotation 17"``), what was found."""

    kind: str
    record: str
    detail: str
