"""What a check found: one entry a kind of fault, as text, as a table and in a notebook."""

import html
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from rio.checks.meanings import MEANINGS
from rio.data.errors import Finding
from rio.data.repairs import Change

LEVELS = {"error": "the file is refused, or training stops", "warning": "taken, but look at it", "note": "good to know"}
COLUMNS = ("level", "kind", "count", "first", "means", "fix")


@dataclass
class Report:
    """What `rio.check` found in a file."""

    path: str  # the file
    summary: str  # how much is in it, one line
    findings: list[Finding]  # by level, the most frequent first
    changes: list[tuple[str, Change]] = field(default_factory=list)  # what `write` repaired: record, what became what
    written: str | None = None  # the repaired file, if one was written
    left: list[Finding] = field(default_factory=list)  # what is found in that one

    def __post_init__(self) -> None:
        order = list(LEVELS)
        self.findings = sorted(self.findings, key=lambda finding: (order.index(finding.level), -finding.count))

    @property
    def exit_code(self) -> int:
        """2 with errors, 1 with warnings, else 0."""
        return max(({"error": 2, "warning": 1}.get(finding.level, 0) for finding in self.findings), default=0)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per kind: level, kind, count, the first record, what it means, the fix."""
        rows = [
            (f.level, f.kind, f.count, " ".join(_example(*f.examples[0]) if f.examples else []), *_words(f))
            for f in self.findings
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.summary}"]
        for finding in self.findings:
            means, fix = _words(finding)
            lines += ["", f"{finding.level.upper()} {finding.kind}: {finding.count:,}"]
            lines += [f"    {' '.join(_example(*example))}" for example in finding.examples]
            more = finding.count - len(finding.examples)
            lines += [f"    ... and {more:,} more"] * (more > 0 and bool(finding.examples))
            lines += [f"    Means: {means}"] * bool(means) + [f"    Fix: {fix}."] * bool(fix)
        counts = [(level, sum(finding.level == level for finding in self.findings)) for level in LEVELS]
        found = ", ".join(f"{count} kind{'s' * (count != 1)} of {level}" for level, count in counts if count)
        lines += ["", f"Found: {found}." if found else "Nothing wrong was found."]
        if self.written:
            lines += ["", f"Written: {self.written}, with {len(self.changes):,} changes:"]
            lines += [f"    {name}, key '{c.key}': {c.found} -> {c.taken} ({c.kind})" for name, c in self.changes]
            left = ", ".join(f"{f.kind} {f.count:,}" for f in self.left if f.level != "note")
            lines += [f"Left in it: {left}." if left else "Nothing but notes is left in it."]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        title = f"<b>{html.escape(self.path)}</b>: {html.escape(self.summary)}"
        if not self.findings:
            return f"<p>{title}. Nothing wrong was found.</p>"
        rows = "".join(
            "<tr>" + "".join(f'<td style="text-align:left">{html.escape(str(cell))}</td>' for cell in row) + "</tr>"
            for row in self.table.itertuples(index=False)
        )
        head = "".join(f'<th style="text-align:left">{column}</th>' for column in COLUMNS)
        return f"<p>{title}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _example(record: str, key: str, found: str) -> list[str]:
    return [f"{record}:" if key in ("", "-") else f"{record}, key '{key}':", found]


def _words(finding: Finding) -> tuple[str, str]:
    """What a finding means and how to fix it."""
    means, fix = MEANINGS.get(finding.kind, (finding.means, finding.fix))
    if finding.taken:
        fix = fix or "none is needed here; for other tools, `--write` writes it in the usual form"
    expected = f" Expected {finding.expected}." if finding.expected and finding.level == "error" else ""
    return means + expected, fix or finding.fix
