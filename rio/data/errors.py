"""The one check of arguments; errors of annotation files, and the list of what was left out instead."""

import dataclasses
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


EXAMPLES = 5
"""Records that a `Finding` names; the others are counted."""

_FIXES = {
    "bbox": "give [x, y, width, height] in px as finite numbers",
    "segmentation": "give a list of polygons [[x, y, x, y, ...], ...] in px, or an RLE {size, counts}",
    **dict.fromkeys(("width", "height"), "give the image's size in px"),
    "annotations": 'add "annotations": [...] (an empty list is allowed)',
    "iscrowd": "give 0 or 1",
    "frequency": "give r, c or f, or leave the key out",
}


@dataclasses.dataclass
class Finding:
    """One kind of fault or repair in a file: how often, and the first few records.

    `level`: "error" (the file is refused), "warning" (it is taken, and a reader should know) or "note". `examples`:
    record, key, what was found. `taken`: what a record that is read otherwise than it is written is taken for.
    `means`: for training and AP, where the kind has no words of its own.
    """

    kind: str
    level: str
    expected: str = ""
    fix: str = ""
    count: int = 0
    examples: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    taken: str = ""
    means: str = ""

    def add(self, record: str, key: str, found: str, count: int = 1) -> None:
        """Count records; the first of them is an example where there is room."""
        self.count += count
        if len(self.examples) < EXAMPLES:
            self.examples.append((record, key, found))


class Problems:
    """What becomes of a broken rule, as `on_error` asks.

    "raise": an error for the first one. "skip": the record is left out and listed. "list": that, and every fault is
    counted by kind in `findings`, those too that stop the other two; only what cannot be read raises.
    """

    def __init__(self, path: str, on_error: str) -> None:
        self.path, self.skip, self.lists = path, on_error != "raise", on_error == "list"
        self.skipped: list[Skipped] = []
        self.findings: dict[str, Finding] = {}
        self.repaired: dict[str, Finding] = {}
        self.ids: dict[str, dict[int, str]] = {}  # those of images and categories that are text in the file, by number

    def fatal(self, kind: str, record: str, key: str, expected: str, found: str, fix: str | None = None) -> NoReturn:
        """Raise, whatever `on_error` says."""
        raise AnnotationError(self.path, record, key, expected, found, fix or _FIXES.get(key, "correct the file"), kind)

    def refuse(self, kind: str, record: str, key: str, expected: str, found: str, fix: str | None = None) -> None:
        """Raise unless faults are listed: what no skip can make good."""
        if not self.lists:
            self.fatal(kind, record, key, expected, found, fix)
        self._found(kind, "error", expected, fix or _FIXES.get(key, "correct the file")).add(record, key, found)

    def reject(
        self, kind: str, record: str, key: str, expected: str, found: str, fix: str | None = None, more: int = 0
    ) -> None:
        """Raise, mentioning how many `more` records break the same rule, or list the record."""
        fix = fix or _FIXES.get(key, "correct the record")
        if self.lists:
            self._found(kind, "error", expected, fix).add(record, key, found)
        elif self.skip:
            self.skipped.append(Skipped(kind, record, f"{key}: expected {expected}, found {found}"))
        else:
            fix += "; or leave such records out with on_error='skip' (in a data set's name: '?skip' at the end)"
            self.fatal(kind, record, key, expected, found + (f" ({more} more like it)" if more else ""), fix)

    def leave_out(self, kind: str, record: str, detail: str) -> None:
        """List a record that is left out in any case."""
        if self.lists:
            self._found(kind, "warning", "", "").add(record, "-", detail)
        else:
            self.skipped.append(Skipped(kind, record, detail))

    def repair(self, kind: str, record: str, key: str, found: str, taken: str, count: int = 1) -> None:
        """Count records that are taken for what they mean."""
        finding = self.repaired.setdefault(kind, Finding(kind, "warning", taken=taken))
        finding.add(record, key, found, count)

    def _found(self, kind: str, level: str, expected: str, fix: str) -> Finding:
        return self.findings.setdefault(kind, Finding(kind, level, expected, fix))


def listing(values: Sequence[Any], most: int = 5) -> str:
    """The first few values as text, and how many more there are."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more
