"""What a study has measured: raw values in study.json; tables, comparisons and study.md are derived from them."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pandas as pd
from tabulate import tabulate

from rio.analysis.intervals import paired_difference
from rio.data.files import write_atomically
from rio.results.evaluation import GROUP_METRICS
from rio.study.plan import StudyError, require

IOU_NAMES = {"bbox": "box", "segm": "mask", "boundary": "boundary"}
_BY_PROTOCOL = {"": "AP", "_lvis_fixed": "AP-fixed", "_coco": "AP (COCO)"}
KINDS = {f"{iou}{protocol}": f"{name} {ap}" for protocol, ap in _BY_PROTOCOL.items() for iou, name in IOU_NAMES.items()}
"""Kinds of AP: an IoU type, with another protocol than LVIS's behind it; their names."""

TUNING = "Tuning numbers: for choosing settings, measured on a split of their own. They are no results."
READING = (
    "Points of AP, arm minus baseline: mean over categories and seeds, 95 % interval (paired bootstrap over "
    "categories). The interval covers which categories the set has, not what other seeds would give; "
    '"resolved" asks, besides, for two seeds or more that all show the same sign. Of many comparisons '
    "without any difference behind them, about one in twenty has an interval that excludes 0."
)


class Category(msgspec.Struct, frozen=True):
    """One class, with its frequency group and image count in the training set of the study's config."""

    category_id: int
    name: str
    frequency: Literal["r", "c", "f"]
    image_count: int


class RunResult(msgspec.Struct, frozen=True):
    """One finished training; AP in percent, None where absent."""

    arm: str
    seed: int
    iterations: int
    seconds: float
    metrics: dict[str, dict[str, float | None]]  # {"bbox": {"AP": ..., "AP50": ..., ...}, "segm": {...}}; see `KINDS`
    per_category: dict[str, list[float | None]]  # {"bbox": AP of each of the study's categories, "segm": ...}
    telemetry: dict[str, float] = {}  # scalars of the bank and the RoIs, each the mean over the run's second half
    curve: dict[str, list[float | None]] = {}  # "epoch" and box AP, APr, APc, APf of every evaluation, in order


class StudyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a study has measured so far, run by run."""

    format: int = 1
    name: str
    role: Literal["report", "tune"]  # "tune": the numbers are for choosing settings and are no result
    trained_on: list[str]  # data sets of the base config and the seeds; an arm's options may train on another
    evaluated_on: list[str]
    command: str
    machine: str
    versions: dict[str, str]
    date: str
    arms: dict[str, list[str]]  # name -> [KEY, VALUE, ...]
    pairs: list[tuple[str, str]] = msgspec.field(name="comparisons")  # (arm, baseline)
    seeds: list[int]  # planned; `runs` has those that are finished
    categories: list[Category]
    runs: list[RunResult]

    @property
    def complete(self) -> bool:
        return len(self.runs) == len(self.arms) * len(self.seeds)

    @property
    def progress(self) -> str:
        """For example "3 of 12 runs"."""
        return f"{len(self.runs)} of {len(self.arms) * len(self.seeds)} runs"

    def with_pairs(self, pairs: Sequence[tuple[str, str]]) -> StudyResult:
        """The same runs with other comparisons: (arm, baseline) of each."""
        return msgspec.structs.replace(self, pairs=[(arm, baseline) for arm, baseline in pairs])

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> StudyResult:
        """What `to_json` wrote; a StudyError says where the file is no study's result, what was expected and found."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such study result. Fix: `python -m rio study` writes study.json")
        try:
            found = msgspec.json.decode(path.read_bytes(), type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise StudyError(f"{path}: expected what StudyResult.to_json writes, found: {error}") from None
        require(found.format == 1, f"{path}: format", "1 (another one needs another version of rio)", found.format)
        for pair in found.pairs:
            require(set(pair) <= set(found.arms), f"{path}: comparisons", f"two of {', '.join(found.arms)}", pair)
        planned = {(arm, seed) for arm in found.arms for seed in found.seeds}
        for number, run in enumerate(found.runs):
            where, key, count = f"{path}: runs[{number}]", (run.arm, run.seed), len(found.categories)
            require(key in planned, where, "an arm and a seed of the study, once", key)
            planned.remove(key)
            for kind, names in run.metrics.items():
                holds = set(GROUP_METRICS) <= names.keys()
                require(holds, f"{where}.metrics.{kind}", ", ".join(GROUP_METRICS), sorted(names))
            for kind, ap in run.per_category.items():
                require(kind in KINDS, f"{where}.per_category", f"one of {tuple(KINDS)}", kind)
                expected = f"{count} values, one per category"
                require(len(ap) == count, f"{where}.per_category.{kind}", expected, len(ap))
        return found

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all raw values, atomically: a line per category and per run, so that versions can be compared."""
        lines = []
        for key, value in msgspec.to_builtins(self).items():
            text = json.dumps(value)
            if key in ("categories", "runs") and value:
                text = "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n ]"
            lines.append(f' "{key}": {text}')
        write_atomically(Path(path), ("{\n" + ",\n".join(lines) + "\n}\n").encode())

    def per_run(self) -> pd.DataFrame:
        """One row per finished run and IoU type, in the order of the study's arms and seeds, boxes first: arm,
        iou_type, seed, AP, APr, APc, APf (percent, NaN absent).
        """
        runs = [(kind, run) for kind in KINDS for run in self._in_order() if kind in run.metrics]
        rows = [(run.arm, kind, run.seed, *(run.metrics[kind][m] for m in GROUP_METRICS)) for kind, run in runs]
        frame = pd.DataFrame(rows, columns=["arm", "iou_type", "seed", *GROUP_METRICS])
        return frame.astype(dict.fromkeys(GROUP_METRICS, float))

    def table(self) -> pd.DataFrame:
        """AP, APr, APc, APf of every arm with a finished run, in percent, one row per arm and IoU type: arm, iou_type,
        seeds (how many), for every metric its mean over seeds and, as METRIC_spread, half the distance between the
        highest and the lowest seed (NaN with one).
        """
        spreads = [f"{m}_spread" for m in GROUP_METRICS]
        rows = []
        for (kind, arm), own in self.per_run().groupby(["iou_type", "arm"], sort=False):
            values = own[list(GROUP_METRICS)]
            spread = (values.max() - values.min()) / 2 if len(own) > 1 else values.mean() * np.nan
            row = {"arm": arm, "iou_type": kind, "seeds": len(own), **values.mean().to_dict()}
            rows.append(row | dict(zip(spreads, spread, strict=True)))
        return pd.DataFrame(rows, columns=["arm", "iou_type", "seeds", *GROUP_METRICS, *spreads])

    def comparisons(self) -> pd.DataFrame:
        """What each arm gains over its baseline, with intervals and a verdict (see `paired_difference`).

        Seeds are paired by number; a class that either arm was not judged on is left out. The interval says how far the
        difference depends on which categories the set happens to have, not what other seeds would give: a study has too
        few to tell, so "resolved" also asks that two seeds or more all show the same sign.

        Returns:
            One row per comparison, IoU type and metric, where both arms have a seed in common: arm, baseline, iou_type,
            metric, seeds (how many are paired), difference (points), low, high, seeds_agree, resolved.
        """
        groups = np.array([c.frequency for c in self.categories])
        runs = {(run.arm, run.seed): run.per_category for run in self.runs}
        rows = []
        for (arm, baseline), kind in ((pair, kind) for pair in self.pairs for kind in KINDS):
            paired = [
                np.array(runs[arm, seed][kind], float) - np.array(runs[baseline, seed][kind], float)
                for seed in self.seeds
                if kind in runs.get((arm, seed), {}) and kind in runs.get((baseline, seed), {})
            ]
            if not paired:
                continue
            differences = np.stack(paired)  # (seeds, K) points
            judged = ~np.isnan(differences).any(axis=0)
            for metric in GROUP_METRICS:
                own = judged & ((groups == metric[2:]) | (metric == "AP"))
                first = {"arm": arm, "baseline": baseline, "iou_type": kind, "metric": metric, "seeds": len(paired)}
                rows.append(first | paired_difference(differences[:, own], groups[own]))
        columns = ["arm", "baseline", "iou_type", "metric", "seeds"]
        return pd.DataFrame(rows, columns=[*columns, "difference", "low", "high", "seeds_agree", "resolved"])

    def curves(self) -> pd.DataFrame:
        """Box AP against length of training: arm, seed, epoch, AP, APr, APc, APf (percent), a row per evaluation."""
        runs = [pd.DataFrame(run.curve).assign(arm=run.arm, seed=run.seed) for run in self._in_order()]
        columns = ["arm", "seed", "epoch", *GROUP_METRICS]
        return pd.concat(runs or [pd.DataFrame()]).reindex(columns=columns).reset_index(drop=True)

    def telemetry(self) -> pd.DataFrame:
        """One row per arm with a finished run: arm, every scalar's mean over seeds (NaN: not logged)."""
        rows = pd.DataFrame([{"arm": run.arm, **run.telemetry} for run in self._in_order()] or {"arm": []})
        return rows.groupby("arm", sort=False).mean().reset_index()

    def to_markdown(self) -> str:
        """The tables, and what they can and cannot say, for a README or a folder of results."""
        tuning = " (tuning)" if self.role == "tune" else ""
        parts = [f"# Study {self.name}"]
        if tuning or not self.complete:
            parts.append(f"**{TUNING}**" if tuning else "**Not complete.**")
        facts = {
            "Runs": f"{self.progress} finished; seeds {', '.join(map(str, self.seeds))}",
            "Trained on": ", ".join(self.trained_on),
            "Evaluated on": ", ".join(self.evaluated_on) + (" (for tuning)" if tuning else ""),
            "Command": f"`{self.command}`",
            "Machine": self.machine,
            "Versions": ", ".join(f"{name} {version}" for name, version in self.versions.items()),
            "Date": self.date,
        }
        parts.append("\n".join(f"- {name}: {value}" for name, value in facts.items()))
        table, comparisons, telemetry = self.table(), self.comparisons(), self.telemetry()
        if len(table):
            how = "Percent; mean over seeds ± half the distance between the highest and the lowest seed."
            parts += [f"## AP{tuning}", how, _markdown(_ap_lines(table, counts=True))]
        for kind in dict.fromkeys(comparisons["iou_type"]):
            lines = _difference_lines(comparisons, kind, "{} resolved", "{} not resolved")
            parts += [f"## Differences in {KINDS[kind]}{tuning}", _markdown(lines)]
        if len(comparisons):
            parts.append(READING)
        if len(telemetry.columns) > 1:
            shown = telemetry.set_index("arm").map(lambda v: "-" if pd.isna(v) else f"{v:.3g}")
            lines = [["", *shown.columns], *map(list, shown.itertuples(name=None))]
            how = "Means over the second half of training and over seeds."
            parts += [f"## Bank and RoIs{tuning}", how, _markdown(lines)]
        return "\n\n".join(parts) + "\n"

    def _in_order(self) -> list[RunResult]:
        runs = {(run.arm, run.seed): run for run in self.runs}
        return [runs[arm, seed] for arm in self.arms for seed in self.seeds if (arm, seed) in runs]


def format_table(table: pd.DataFrame) -> str:
    """The table of `StudyResult.table` as aligned text."""
    return _aligned(_ap_lines(table))


def format_difference(row: Any, *, bold: bool = False) -> str:
    """One row of `StudyResult.comparisons`, "+2.3 [-0.4, +5.0]"; `bold` sets a resolved one in bold (Markdown)."""
    difference = f"**{row.difference:+.1f}**" if bold and row.resolved else f"{row.difference:+.1f}"
    return difference if pd.isna(row.low) else f"{difference} [{row.low:+.1f}, {row.high:+.1f}]"


def format_result(result: StudyResult) -> str:
    """What a terminal shows: AP of the arms, differences in box and mask AP, and how to read them."""
    table, comparisons = result.table(), result.comparisons()
    parts = [f"{result.name}, on {', '.join(result.evaluated_on)}: {result.progress} finished"]
    parts += [TUNING] if result.role == "tune" else []
    parts += [format_table(table)] if len(table) else []
    if len(comparisons):
        kinds = dict.fromkeys(comparisons["iou_type"])
        parts += [_aligned(_difference_lines(comparisons, kind, "* {}", "{}")) for kind in kinds]
        parts.append(textwrap.fill(f"* resolved. {READING}", 100))
    return "\n\n".join(parts)


def _ap_lines(table: pd.DataFrame, *, counts: bool = False) -> list[list[str]]:
    """A head and one line per arm: its name, the number of its seeds if asked for, AP of every kind and group."""

    def cell(row: pd.Series | None, metric: str) -> str:
        if row is None or pd.isna(row[metric]):
            return "-"
        spread = row[f"{metric}_spread"]
        return f"{row[metric]:.1f}" + ("" if pd.isna(spread) else f" ±{spread:.1f}")

    kinds = list(dict.fromkeys(table["iou_type"]))
    columns = [(kind, metric) for kind in kinds for metric in GROUP_METRICS]
    heads = {kind: f"{kind} AP" if kind in IOU_NAMES else KINDS[kind] for kind in kinds}
    lines = [["", *["seeds"] * counts, *(heads[kind] if m == "AP" else m for kind, m in columns)]]
    for arm, own in table.groupby("arm", sort=False):
        rows = {row["iou_type"]: row for _, row in own.iterrows()}
        lines.append([arm, *[str(own["seeds"].max())] * counts, *(cell(rows.get(kind), m) for kind, m in columns)])
    return lines


def _difference_lines(comparisons: pd.DataFrame, kind: str, resolved: str, other: str) -> list[list[str]]:
    """A head and one line per comparison of one kind of AP; each difference is put into one of the two patterns."""
    lines = [["", "seeds", *(KINDS[kind] if m == "AP" else m for m in GROUP_METRICS)]]
    own = comparisons[comparisons["iou_type"] == kind]
    for (arm, baseline), rows in own.groupby(["arm", "baseline"], sort=False):
        cells = [
            "-" if pd.isna(row.difference) else (resolved if row.resolved else other).format(format_difference(row))
            for row in rows.itertuples()  # in the order of GROUP_METRICS
        ]
        lines.append([f"{arm} - {baseline}", str(rows["seeds"].iloc[0]), *cells])
    return lines


def _aligned(lines: list[list[str]]) -> str:
    align = ["left"] + ["right"] * (len(lines[0]) - 1)
    return tabulate(lines, headers="firstrow", colalign=align, disable_numparse=True)


def _markdown(lines: list[list[str]]) -> str:
    """Without padding (tabulate pads): study.md stays as it is, and a new row changes no other."""
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|---|" + "---:|" * (len(lines[0]) - 1), *rows[1:]])
