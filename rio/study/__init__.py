"""Studies: train several arms (settings) with several seeds side by side, resumable, and compare their AP.

A study file is YAML:

    config: ../shapes/demo.yaml          # relative to the study file
    arms:
      none: [MODEL.RIO.SAMPLER, none, MODEL.RIO.BANK_ENABLED, false]
      rio:  [MODEL.RIO.SAMPLER, rfs]
    seeds: [0]
    processes: 2                          # trainings side by side
    gpus: 1                               # that they are dealt over; several processes share one
    comparisons: [[rio, none]]            # default: every arm against the first
    tune_on: shapes_demo_tune             # makes it a tuning study: evaluated there, never on DATASETS.TEST

Every run is ``python -m rio train --resume`` in a process and a folder of its own, ``OUTPUT/ARM-seedS``.
Finished runs are skipped, interrupted ones go on from their checkpoint, so the same command can be given as
often as it takes.

What came out is `StudyResult`: OUTPUT/study.json holds the raw values, OUTPUT/study.md and the figures
OUTPUT/study_*.svg are derived from it.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import heapq
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, TextIO

import msgspec
import numpy as np
import pandas as pd
import yaml
from tqdm.auto import tqdm

from rio.data.files import write_atomically
from rio.results.evaluation import GROUP_METRICS, IOU_TYPES, METRICS, Evaluation

IOU_NAMES = {"bbox": "box", "segm": "mask"}
# Scalars in metrics.json that a result keeps; a cascade has them a stage.
TELEMETRY = re.compile(r"(stage\d+/)?(memory_bank|rois)/")
BOOTSTRAP_DRAWS = 10_000
BOOTSTRAP_SEED = 20_220_101
# All n differences have one sign by chance alone in 2 / 2^n of cases: below six, more often than 5 %.
MIN_CATEGORIES = 6
POLL_SECONDS = 0.5
MEMORY_SECONDS = 5.0  # between measurements of memory
PLAIN_SECONDS = 15.0  # between lines where no terminal shows bars
STOP_SECONDS = 120.0  # a stopped training finishes its iteration and saves; after that it is killed
RESERVE_SECONDS = 30.0  # of the minutes given, for that and for the tables; a quarter of them at most
START_SECONDS = 30.0  # from the start of a run to its first iterations, until one has shown it
EVALUATION_SHARE = 0.15  # evaluation and start-up as a share of training, until a run has shown its own


class StudyError(ValueError):
    """A study that cannot be run, or runs of it that failed; the message says what to change."""


@dataclass(frozen=True)
class Study:
    """What to run.

    Attributes:
        name: the file's stem.
        config: path of the base config.
        arms: name -> [KEY, VALUE, ...] over the base config, as strings.
        seeds: one run per arm and seed.
        processes: trainings side by side.
        gpus: how many GPUs they are dealt over; on a machine without one the CPU is used.
        comparisons: (arm, baseline) pairs.
        tune_on: data set that is evaluated on in place of DATASETS.TEST; None: this study reports.
        file: the study file, relative to the repository where it is in it.
    """

    name: str
    config: str
    arms: dict[str, list[str]]
    seeds: tuple[int, ...]
    processes: int
    gpus: int = 1
    comparisons: tuple[tuple[str, str], ...] = ()
    tune_on: str | None = None
    file: str = ""


@dataclass
class Run:
    """One training of a study and how far it is; iterations, seconds."""

    arm: str
    seed: int
    folder: Path
    options: list[str]
    max_iter: int = 0
    iteration: int = 0
    first_iteration: int = 0  # of this call; above 0 where it goes on
    loss: float = float("nan")
    seconds_per_iteration: float | None = None
    started: float | None = None
    start_seconds: float | None = None  # until the first iterations of this call
    seconds: float = 0.0  # of all calls
    device: str | None = None  # CUDA_VISIBLE_DEVICES; None: as this process has it
    process: subprocess.Popen | None = field(default=None, repr=False)
    bar: Any = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"{self.arm}-seed{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What `run_study` leaves behind.

    Attributes:
        folders: (arm, seed) -> run folder.
        result: of the runs finished so far.
        seconds: wall clock of this call.
        peak_gib: most memory that all processes held together in this call, GiB; None where the system does
            not tell.
    """

    folders: dict[tuple[str, int], Path]
    result: StudyResult
    seconds: float
    peak_gib: float | None


def load_study(path: str | os.PathLike[str]) -> Study:
    """Read and check a study file.

    Raises:
        FileNotFoundError: no such file, or no such base config.
        StudyError: names the key, what was expected and what was found.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such study file. configs/studies/ holds the project's own.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: expected YAML, found: {' '.join(str(error).split())}") from error

    def need(holds: bool, key: str, expected: str, found: Any) -> None:
        if not holds:
            raise StudyError(f"{path}: key '{key}': expected {expected}, found {found!r}")

    keys = ("config", "arms", "seeds", "processes", "gpus", "comparisons", "tune_on")
    need(isinstance(content, dict), "", f"keys {', '.join(keys)}", content)
    unknown = set(content) - set(keys)
    need(not unknown, ", ".join(map(str, sorted(unknown, key=str))), f"one of {', '.join(keys)}", "this key")
    config, arms = content.get("config"), content.get("arms")
    need(isinstance(config, str) and bool(config), "config", "the path of the base config", config)
    need(isinstance(arms, dict) and bool(arms), "arms", "names with lists [KEY, VALUE, ...]", arms)
    for name, options in arms.items():
        plain = isinstance(name, str) and name and Path(name).name == name and not name.startswith(".")
        need(bool(plain), f"arms.{name}", "a name that can be a folder's", name)
        need(
            isinstance(options or [], list) and len(options or []) % 2 == 0,
            f"arms.{name}",
            "[KEY, VALUE, ...]",
            options,
        )
    seeds = content.get("seeds", [0])
    good = (
        isinstance(seeds, list)
        and seeds
        and all(type(s) is int and s >= 0 for s in seeds)
        and len(set(seeds)) == len(seeds)
    )
    need(bool(good), "seeds", "a list of different integers >= 0", seeds)
    processes, gpus = content.get("processes", 1), content.get("gpus", 1)
    for key, value in (("processes", processes), ("gpus", gpus)):
        need(type(value) is int and value >= 1, key, "an integer >= 1", value)
    first, *others = arms
    comparisons = content.get("comparisons", [[arm, first] for arm in others])
    need(isinstance(comparisons, list), "comparisons", "a list of [ARM, BASELINE]", comparisons)
    for number, pair in enumerate(comparisons):
        good = isinstance(pair, list) and len(pair) == 2 and pair[0] != pair[1]
        good = good and all(isinstance(arm, str) and arm in arms for arm in pair)
        need(good, f"comparisons[{number}]", f"[ARM, BASELINE], two different of {', '.join(arms)}", pair)
    tune_on = content.get("tune_on")
    need(tune_on is None or isinstance(tune_on, str), "tune_on", "the name of a data set", tune_on)
    base = path.parent / os.path.expanduser(config)
    if not base.is_file():
        raise FileNotFoundError(f"{base}: no such config, named by 'config' in {path} (relative to that file)")
    return Study(
        path.stem,
        str(base),
        {n: [str(v) for v in o or []] for n, o in arms.items()},
        tuple(seeds),
        processes,
        gpus,
        tuple((arm, baseline) for arm, baseline in comparisons),
        tune_on,
        _shown_path(path),
    )


def _shown_path(path: Path) -> str:
    """A path as others can use it: relative to the repository, or its last part."""
    repository = Path(__file__).resolve().parents[2]
    file = path.resolve()
    return file.relative_to(repository).as_posix() if file.is_relative_to(repository) else file.name


def run_study(
    study: Study,
    output_dir: str | os.PathLike[str],
    *,
    processes: int | None = None,
    gpus: int | None = None,
    minutes: float | None = None,
    options: Sequence[str] = (),
) -> Outcome:
    """Train and evaluate what is not finished yet, `processes` runs side by side, and compare all arms.

    A failing run does not stop the others; the last lines of its log are shown, and after the others have
    finished a `StudyError` is raised. Ctrl-C stops all of them after they have saved a checkpoint. However
    the call ends, study.json, study.md and the figures show the runs finished so far.

    Args:
        study: from `load_study`.
        output_dir: gets a folder a run; made if needed.
        processes: overrides the study's.
        gpus: overrides the study's.
        minutes: work at most so long, > 0: then the trainings are stopped as by Ctrl-C, and the call returns.
        options: KEY, VALUE, ... for every arm, over the arm's own.

    Raises:
        StudyError: some run failed; the folder is in use by another call; a run's settings changed since it
            began; a tuning study would see the split that is reported; fewer GPUs than asked for.
        KeyboardInterrupt: stopped; the same call goes on.
    """
    started = time.monotonic()
    root = Path(output_dir)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root) as lock:
        runs = _prepare(study, root, list(options))
        about = _About.of(study, list(options))
        waiting = [run for run in runs if not _finished(run)]
        if len(waiting) < len(runs):
            print(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already and are kept.", flush=True)
        runner = _Runner(
            study.config,
            waiting,
            processes or study.processes,
            lock,
            devices=_devices(gpus or study.gpus) if waiting else [],
            about=about,
            after_each=lambda: _collect(study, about, runs).to_json(root / "study.json"),
        )
        try:
            runner.run(None if minutes is None else started + 60 * minutes)
        finally:
            result = _collect(study, about, runs)
            result.to_json(root / "study.json")
            write_atomically(root / "study.md", result.to_markdown().encode())
            _draw(result, root)
        if runner.failed:
            names = ", ".join(run.name for run in runner.failed)
            raise StudyError(
                f"{len(runner.failed)} of {len(runs)} runs failed: {names}. Their logs are above, whole in "
                f"{root}/ARM-seedS/stdout.log. Mend the cause and give the same command again; finished "
                "runs are kept"
            )
        if not result.complete:
            begun = sum(run.iteration > 0 and not _finished(run) for run in runs)
            left = "how much is left is not known yet; if it stays so, give more minutes"
            if runner.left is not None:
                left = f"about {_clock(runner.left)} left"
            print(
                f"Time is up after {_clock(time.monotonic() - started)}: {result.progress} are finished, "
                f"{begun} more begun; {left}. The same command goes on.",
                flush=True,
            )
    folders = {(run.arm, run.seed): run.folder for run in runs}
    return Outcome(folders, result, time.monotonic() - started, runner.peak_gib)


def demo(output_dir: str | os.PathLike[str] = "output/demo", *, processes: int | None = None) -> Path:
    """Draw the embedded data set, train the arms of ``configs/studies/demo.yaml``, compare, write a report.

    Args:
        output_dir: runs and report; given again, it goes on where it was.
        processes: trainings side by side; None: the study's.

    Returns:
        The report's path.
    """
    file = Path(__file__).resolve().parents[2] / "configs" / "studies" / "demo.yaml"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: the demo's study file is not there. Run the demo from a clone of the repository"
        )
    print("rio demo: a synthetic long-tailed data set, drawn here; what it shows holds for this set.", flush=True)
    study = load_study(file)
    outcome = run_study(study, output_dir, processes=processes)
    train, val = _annotations(study)

    from rio.report import write_report, write_summary  # the figures' libraries are needed at the end alone

    print("\nAverage precision on the validation images (percent), all / rare / common / frequent classes:\n")
    print(format_table(outcome.result.table()) + "\n")
    folders = {arm: outcome.folders[arm, study.seeds[0]] for arm in study.arms}
    shown = {"runs": folders, "train": train, "val": val.with_frequency_of(train)}
    title = "RIO on the embedded long-tailed set"
    report = write_report(Path(output_dir) / "report.html", title=title, **shown)
    summary = write_summary(Path(output_dir) / "summary.png", **shown)
    minutes = f"{outcome.seconds / 60:.1f} minutes"
    memory = "" if outcome.peak_gib is None else f", at most {outcome.peak_gib:.1f} GiB of memory"
    print(f"Done in {minutes}{memory}.")
    print(f"Report:      {report.resolve()}   <- open this first, in any browser")
    print(f"One picture: {summary.resolve()}")
    print(f"Runs:        {Path(output_dir).resolve()}   (tensorboard --logdir shows their curves)")
    print("Next:        notebooks/, or train on your own data: see README, 'Your own data'", flush=True)
    return report


# ---------------------------------------------------------------------------------------------------- results


class Category(msgspec.Struct, frozen=True):
    """One class, with the frequency group and the image count of the config's own training set."""

    category_id: int
    name: str
    frequency: Literal["r", "c", "f"]
    image_count: int


class RunResult(msgspec.Struct, frozen=True):
    """One finished training; AP in percent, None where a class is absent or nothing is there to judge by.

    Attributes:
        metrics: {"bbox": {"AP": ..., "AP50": ..., ...}, "segm": {...}}.
        per_category: {"bbox": AP of each of the study's categories, "segm": ...}.
        telemetry: scalars of the bank and of the RoIs, each the mean over the run's second half.
    """

    arm: str
    seed: int
    iterations: int
    seconds: float
    metrics: dict[str, dict[str, float | None]]
    per_category: dict[str, list[float | None]]
    telemetry: dict[str, float] = {}


class StudyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a study has measured so far, run by run; tables and comparisons are derived from it.

    Attributes:
        role: "tune": the numbers are for choosing settings, and no result.
        trained_on, evaluated_on: data sets of the base config; an arm's options may train on another.
        arms: name -> [KEY, VALUE, ...].
        pairs: (arm, baseline), "comparisons" in the file.
        seeds: planned; `runs` has those that are finished.
    """

    format: int = 1
    name: str
    role: Literal["report", "tune"]
    trained_on: list[str]
    evaluated_on: list[str]
    command: str
    machine: str
    versions: dict[str, str]
    date: str
    arms: dict[str, list[str]]
    pairs: list[tuple[str, str]] = msgspec.field(name="comparisons")
    seeds: list[int]
    categories: list[Category]
    runs: list[RunResult]

    @property
    def complete(self) -> bool:
        return len(self.runs) == len(self.arms) * len(self.seeds)

    @property
    def progress(self) -> str:
        """ "3 of 12 runs"."""
        return f"{len(self.runs)} of {len(self.arms) * len(self.seeds)} runs"

    def with_pairs(self, pairs: Sequence[tuple[str, str]]) -> StudyResult:
        """The same runs with other comparisons: (arm, baseline) of each."""
        return msgspec.structs.replace(self, pairs=[(arm, baseline) for arm, baseline in pairs])

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> StudyResult:
        """Read what `to_json` wrote.

        Raises:
            FileNotFoundError: no such file.
            StudyError: not a study's result; says where, what was expected and found.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such study result. `python -m rio study` writes study.json")
        try:
            found = msgspec.json.decode(path.read_bytes(), type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise StudyError(f"{path}: expected what StudyResult.to_json writes, found: {error}") from None

        def need(holds: bool, where: str, expected: str, value: Any) -> None:
            if not holds:
                raise StudyError(f"{path}: {where}: expected {expected}, found {value!r}")

        need(found.format == 1, "format", "1 (another one needs another version of rio)", found.format)
        for pair in found.pairs:
            need(set(pair) <= set(found.arms), "comparisons", f"two of {', '.join(found.arms)}", pair)
        planned = {(arm, seed) for arm in found.arms for seed in found.seeds}
        for number, run in enumerate(found.runs):
            where, key = f"runs[{number}]", (run.arm, run.seed)
            need(key in planned, where, "an arm and a seed of the study, once", key)
            planned.remove(key)
            for kind, values in run.metrics.items():
                missing = set(GROUP_METRICS) - values.keys()
                need(not missing, f"{where}.metrics.{kind}", ", ".join(GROUP_METRICS), sorted(values))
            for kind, values in run.per_category.items():
                need(kind in IOU_TYPES, f"{where}.per_category", f"one of {IOU_TYPES}", kind)
                need(
                    len(values) == len(found.categories),
                    f"{where}.per_category.{kind}",
                    f"{len(found.categories)} values, one a category",
                    len(values),
                )
        return found

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all raw values, atomically: a line a category and a run, so that versions can be compared."""
        lines = []
        for key, value in msgspec.to_builtins(self).items():
            if key in ("categories", "runs") and value:
                rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
                lines.append(f' "{key}": [\n{rows}\n ]')
            else:
                lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
        write_atomically(Path(path), ("{\n" + ",\n".join(lines) + "\n}\n").encode())

    def per_run(self) -> pd.DataFrame:
        """One row a finished run and IoU type: arm, iou_type, seed, AP, APr, APc, APf (percent, NaN absent).

        In the order of the study's arms and seeds, boxes first.
        """
        rows = [
            {"arm": run.arm, "iou_type": kind, "seed": run.seed} | {m: run.metrics[kind][m] for m in GROUP_METRICS}
            for kind in IOU_TYPES
            for run in self._in_order()
            if kind in run.metrics
        ]
        frame = pd.DataFrame(rows, columns=["arm", "iou_type", "seed", *GROUP_METRICS])
        return frame.astype(dict.fromkeys(GROUP_METRICS, float))

    def table(self) -> pd.DataFrame:
        """AP, APr, APc, APf of every arm with a finished run, in percent.

        Returns:
            One row an arm and IoU type: arm, iou_type, seeds (how many), for every metric its mean over
            seeds and, as METRIC_spread, half the distance between the highest and the lowest seed (NaN with
            one).
        """
        rows = []
        for (kind, arm), own in self.per_run().groupby(["iou_type", "arm"], sort=False):
            values = own[list(GROUP_METRICS)]
            spread = (values.max() - values.min()) / 2 if len(own) > 1 else values.mean() * float("nan")
            rows.append(
                {"arm": arm, "iou_type": kind, "seeds": len(own), **values.mean().to_dict()}
                | {f"{m}_spread": spread[m] for m in GROUP_METRICS}
            )
        spreads = [f"{m}_spread" for m in GROUP_METRICS]
        return pd.DataFrame(rows, columns=["arm", "iou_type", "seeds", *GROUP_METRICS, *spreads])

    def comparisons(self) -> pd.DataFrame:
        """What each arm gains over its baseline, with intervals and a verdict.

        Seeds are paired by number, classes by category. A class that either arm was not judged on is left
        out. The interval is a paired bootstrap over categories (10,000 draws, seeds fixed; percentiles,
        widened for the few categories as in ``_tail``; for AP within each frequency group, so that a draw has
        as many rare classes as the set): it says how far the difference depends on *which* categories the set
        happens to have. It does not cover what another training seed would give; with the few seeds of a
        study nothing honest can be said about that, so a difference is called resolved only if, besides,
        every seed shows it with the same sign. Of 1,000 made-up sets of normal differences it covers the
        truth in 94 % with 6 or 11 categories, 93 to 96 % with 100 and more; of exponential ones in 90, 92 and
        95 to 96 %. Of many comparisons without any difference behind them, about one in twenty has an
        interval that excludes 0: a single resolved one among many is weak evidence.

        Returns:
            One row a comparison, IoU type and metric, where both arms have a seed in common: arm, baseline,
            iou_type, metric (AP, APr, APc, APf), seeds (how many are paired), difference (mean over
            categories of the mean over seeds, points), low, high (NaN with fewer than 6 categories: even if
            all had the same sign, that would be no 95 %), seeds_agree (every seed's difference has the sign
            of the mean), resolved (0 is outside low..high, seeds_agree, and there are at least two seeds).
        """
        groups = np.array([c.frequency for c in self.categories])
        runs = {(run.arm, run.seed): run.per_category for run in self.runs}
        rows = []
        for (arm, baseline), kind in ((pair, kind) for pair in self.pairs for kind in IOU_TYPES):
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
                values = _difference(differences[:, own], groups[own])
                first = {"arm": arm, "baseline": baseline, "iou_type": kind, "metric": metric}
                rows.append({**first, "seeds": len(paired), **values})
        columns = ["arm", "baseline", "iou_type", "metric", "seeds"]
        return pd.DataFrame(rows, columns=[*columns, "difference", "low", "high", "seeds_agree", "resolved"])

    def telemetry(self) -> pd.DataFrame:
        """One row an arm with a finished run: arm, every scalar's mean over seeds (NaN: not logged)."""
        rows = pd.DataFrame([{"arm": run.arm, **run.telemetry} for run in self._in_order()] or {"arm": []})
        return rows.groupby("arm", sort=False).mean().reset_index()

    def to_markdown(self) -> str:
        """The tables, and what they can and cannot say, for a README or a folder of results."""
        parts = [f"# Study {self.name}"]
        if self.role == "tune":
            parts.append(f"**{_TUNING}**")
        elif not self.complete:
            parts.append("**Not complete.**")
        facts = {
            "Runs": f"{self.progress} finished; seeds {', '.join(map(str, self.seeds))}",
            "Trained on": ", ".join(self.trained_on),
            "Evaluated on": ", ".join(self.evaluated_on) + (" (for tuning)" if self.role == "tune" else ""),
            "Command": f"`{self.command}`",
            "Machine": self.machine,
            "Versions": ", ".join(f"{name} {version}" for name, version in self.versions.items()),
            "Date": self.date,
        }
        parts.append("\n".join(f"- {name}: {value}" for name, value in facts.items()))
        return "\n\n".join([*parts, *self._markdown_tables()]) + "\n"

    def _markdown_tables(self) -> list[str]:
        tuning = " (tuning)" if self.role == "tune" else ""
        parts, table, comparisons = [], self.table(), self.comparisons()
        if len(table):
            parts += [
                f"## AP{tuning}",
                "Percent; mean over seeds ± half the distance between the highest and the lowest seed.",
                _markdown(_ap_lines(table, counts=True)),
            ]
        for kind in dict.fromkeys(comparisons["iou_type"]):
            lines = _difference_lines(comparisons, kind)
            parts += [f"## Differences in {IOU_NAMES[kind]} AP{tuning}", _markdown(lines)]
        if len(comparisons):
            parts.append(_READING)
        telemetry = self.telemetry()
        if len(telemetry.columns) > 1:
            shown = telemetry.set_index("arm").map(lambda v: "-" if pd.isna(v) else f"{v:.3g}")
            lines = [["", *shown.columns], *map(list, shown.itertuples(name=None))]
            means = "Means over the second half of training and over seeds."
            parts += [f"## Bank and RoIs{tuning}", means, _markdown(lines)]
        return parts

    def _in_order(self) -> list[RunResult]:
        runs = {(run.arm, run.seed): run for run in self.runs}
        return [runs[arm, seed] for arm in self.arms for seed in self.seeds if (arm, seed) in runs]


_TUNING = "Tuning numbers: for choosing settings, measured on a split of their own. They are no results."
_READING = (
    "Points of AP, arm minus baseline: mean over categories and seeds, 95 % interval (paired bootstrap over "
    "categories). The interval covers which categories the set has, not what other seeds would give; "
    '"resolved" asks, besides, for two seeds or more that all show the same sign. Of many comparisons '
    "without any difference behind them, about one in twenty has an interval that excludes 0."
)


def _difference(differences: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """One metric of one comparison: differences (seeds, n) in points, groups (n,), no NaN."""
    seeds, n = differences.shape
    nothing = {"difference": np.nan, "low": np.nan, "high": np.nan, "seeds_agree": False, "resolved": False}
    if n == 0:
        return nothing
    by_category, by_seed = differences.mean(axis=0), differences.mean(axis=1)
    difference = float(by_category.mean())
    agree = bool(difference != 0 and (np.sign(by_seed) == np.sign(difference)).all())
    low = high = np.nan
    if n >= MIN_CATEGORIES:
        drawn, variances, freedoms = np.zeros(BOOTSTRAP_DRAWS), [], []
        for place, group in enumerate("rcf"):
            own = by_category[groups == group]
            k = len(own)
            if k > 1:  # the draws of one category are that category
                # Draws from k values vary by (k - 1) / k of what their spread (ddof 1) stands for.
                drawn += np.sqrt(k / (k - 1)) * (_times_drawn(k, place) @ (own - own.mean()))
                variances.append(k * own.var(ddof=1))
                freedoms.append(k - 1)
        tail = _tail(np.array(variances), np.array(freedoms))
        low, high = (difference + np.quantile(drawn / n, [tail, 1 - tail])).tolist()
    resolved = bool(seeds >= 2 and agree and (low > 0 or high < 0))
    return {"difference": difference, "low": low, "high": high, "seeds_agree": agree, "resolved": resolved}


def _tail(variances: np.ndarray, freedoms: np.ndarray) -> float:
    """The share of draws beyond each end of a 95 % interval, below 2.5 % where few categories are drawn from.

    As much of a normal distribution as lies beyond Student's 97.5 % quantile (Hesterberg, "What teachers
    should know about the bootstrap", 2015, arXiv 1411.5279: expanded percentile interval). Degrees of freedom
    of a sum of groups after Satterthwaite.

    Args:
        variances: of each group's sum.
        freedoms: categories of each group less one.
    """
    total = variances.sum()
    freedom = freedoms.sum() if total == 0 else total**2 / (variances**2 / freedoms).sum()
    return NormalDist().cdf(-student_t(float(freedom)))


def student_t(freedom: float) -> float:
    """The 97.5 % quantile of Student's distribution (Abramowitz and Stegun 26.7.5).

    Args:
        freedom: degrees of freedom, at least 2; within 0.04 at 2, 0.003 from 5 on.

    >>> round(student_t(10), 3)
    2.228
    """
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


@functools.lru_cache(maxsize=6)
def _times_drawn(n: int, group: int) -> np.ndarray:
    """(BOOTSTRAP_DRAWS, n) float32: how often each of n categories is in each draw of n, with replacement."""
    rng = np.random.default_rng([BOOTSTRAP_SEED, group, n])
    drawn = rng.integers(0, n, (BOOTSTRAP_DRAWS, n)) + n * np.arange(BOOTSTRAP_DRAWS)[:, None]
    return np.bincount(drawn.ravel(), minlength=BOOTSTRAP_DRAWS * n).reshape(-1, n).astype(np.float32)


def format_table(table: pd.DataFrame) -> str:
    """The table of `StudyResult.table` as aligned text."""
    return _aligned(_ap_lines(table))


def format_difference(row: Any, *, bold: bool = False) -> str:
    """One row of `StudyResult.comparisons`, "+2.3 [-0.4, +5.0]"; bold: in Markdown's way where resolved."""
    difference = f"{row.difference:+.1f}"
    difference = f"**{difference}**" if bold and row.resolved else difference
    return difference if pd.isna(row.low) else f"{difference} [{row.low:+.1f}, {row.high:+.1f}]"


def format_comparisons(comparisons: pd.DataFrame) -> str:
    """The comparisons of `StudyResult.comparisons` as aligned text; a star where resolved."""
    kinds = list(dict.fromkeys(comparisons["iou_type"]))
    return "\n\n".join(_aligned(_difference_lines(comparisons, kind, marks=(" *", "  "))) for kind in kinds)


def format_result(result: StudyResult) -> str:
    """What a terminal shows: AP of the arms, differences in box and mask AP, and how to read them."""
    table, comparisons = result.table(), result.comparisons()
    parts = [f"{result.name}, on {', '.join(result.evaluated_on)}: {result.progress} finished"]
    if result.role == "tune":
        parts.append(_TUNING)
    if len(table):
        parts.append(format_table(table))
    if len(comparisons):
        parts += [format_comparisons(comparisons), textwrap.fill(f"* resolved. {_READING}", 100)]
    return "\n\n".join(parts)


def _ap_lines(table: pd.DataFrame, *, counts: bool = False) -> list[list[str]]:
    def cell(row: pd.Series, metric: str) -> str:
        if pd.isna(row[metric]):
            return "-"
        spread = row[f"{metric}_spread"]
        return f"{row[metric]:.1f}" + ("" if pd.isna(spread) else f" ±{spread:.1f}")

    arms = list(dict.fromkeys(table["arm"]))
    kinds = list(dict.fromkeys(table["iou_type"]))
    lines = [["", *(f"{kind} {m}" if m == "AP" else m for kind in kinds for m in GROUP_METRICS)]]
    for arm in arms:
        line = [arm]
        for kind in kinds:
            found = table[(table["arm"] == arm) & (table["iou_type"] == kind)]
            line += [cell(found.iloc[0], m) if len(found) else "-" for m in GROUP_METRICS]
        lines.append(line)
    if counts:
        seeds = table.groupby("arm", sort=False)["seeds"].max()
        for line, count in zip(lines, ["seeds", *seeds], strict=True):
            line.insert(1, str(count))
    return lines


def _difference_lines(
    comparisons: pd.DataFrame, kind: str, marks: tuple[str, str] = (" resolved", " not resolved")
) -> list[list[str]]:
    def cell(row: pd.Series) -> str:
        if pd.isna(row["difference"]):
            return "-"
        return f"{format_difference(row)}{marks[0] if row['resolved'] else marks[1]}"

    lines = [["", "seeds", *(f"{IOU_NAMES[kind]} {m}" if m == "AP" else m for m in GROUP_METRICS)]]
    own = comparisons[comparisons["iou_type"] == kind]
    for (arm, baseline), rows in own.groupby(["arm", "baseline"], sort=False):
        by_metric = {row["metric"]: row for _, row in rows.iterrows()}
        cells = [cell(by_metric[m]) for m in GROUP_METRICS]
        lines.append([f"{arm} - {baseline}", str(rows["seeds"].iloc[0]), *cells])
    return lines


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    return "\n".join(text)


def _markdown(lines: list[list[str]]) -> str:
    rows = ["| " + " | ".join(cell.strip() for cell in line) + " |" for line in lines]
    rows.insert(1, "|---|" + "---:|" * (len(lines[0]) - 1))
    return "\n".join(rows)


def _collect(study: Study, about: _About, runs: Sequence[Run]) -> StudyResult:
    """The result of the runs finished so far."""
    finished, records = [], []
    for run in runs:
        if not _finished(run):
            continue
        records.append(json.loads((run.folder / "study_finished.json").read_bytes()))
        evaluation = Evaluation.from_json(run.folder / "evaluation.json")
        ids = evaluation.per_category["category_id"].tolist()
        if ids != [c.category_id for c in about.categories]:
            raise StudyError(
                f"{run.folder}/evaluation.json: expected the {len(about.categories)} categories of "
                f"{', '.join(about.evaluated_on)}, found {len(ids)} others. Delete that folder to train it "
                "anew"
            )
        finished.append(
            RunResult(
                run.arm,
                run.seed,
                run.max_iter,
                round(float(records[-1]["seconds"]), 1),
                {k: _metrics(evaluation, k, about.categories) for k in evaluation.metrics},
                {k: [_rounded(v) for v in evaluation.per_category[f"AP_{k}"]] for k in evaluation.metrics},
                _telemetry(run),
            )
        )
    # Runs may have been made by several calls: what each was made with stands in its own folder.
    machines = dict.fromkeys(record.get("machine", about.machine) for record in records)
    versions: dict[str, dict[str, None]] = {}
    for record in records:
        for name, version in record.get("versions", about.versions).items():
            versions.setdefault(name, {})[version] = None
    return StudyResult(
        name=study.name,
        role="report" if study.tune_on is None else "tune",
        trained_on=about.trained_on,
        evaluated_on=about.evaluated_on,
        command=about.command,
        machine="; ".join(machines) or about.machine,
        versions={name: " and ".join(found) for name, found in versions.items()} or about.versions,
        date=max((record.get("date", "") for record in records), default="") or _today(),
        arms={arm: [_without_folders(word) for word in own] for arm, own in study.arms.items()},
        pairs=list(study.comparisons),
        seeds=list(study.seeds),
        categories=about.categories,
        runs=finished,
    )


def _metrics(evaluation: Evaluation, kind: str, categories: Sequence[Category]) -> dict[str, float | None]:
    metrics = evaluation.metrics[kind]
    frequency = [c.frequency for c in categories]
    if evaluation.per_category["frequency"].tolist() != frequency:
        # An arm that trains on another set (a balanced one, say) has other groups: all arms are compared by
        # those of the config's own training set. A group's AP is the mean of its classes' AP.
        by_group = evaluation.per_category[f"AP_{kind}"].groupby(np.array(frequency)).mean()
        metrics = {**metrics, **{f"AP{g}": by_group.get(g, np.nan) for g in "rcf"}}
    return {m: _rounded(metrics[m]) for m in METRICS}


def _rounded(value: float) -> float | None:
    return None if value != value else round(float(value), 4)


def _telemetry(run: Run) -> dict[str, float]:
    """Mean of the bank's and the RoIs' scalars over the second half of the iterations."""
    rows: dict[int, dict[str, Any]] = {}
    with contextlib.suppress(OSError), open(run.folder / "metrics.json", encoding="utf-8") as file:
        for line in file:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                values = json.loads(line)
                rows[int(values["iteration"])] = values  # written again after an interruption: the last
    found: dict[str, list[float]] = {}
    for iteration, values in rows.items():
        if iteration + 1 > run.max_iter / 2:
            for name, value in values.items():
                if TELEMETRY.match(name):
                    found.setdefault(name, []).append(float(value))
    return {name: float(f"{np.mean(found[name]):.6g}") for name in sorted(found)}


def _draw(result: StudyResult, root: Path) -> None:
    """The figures study_*.svg and .png, once there is a finished run."""
    if not result.runs:
        return
    import matplotlib.pyplot as plt  # the figures' libraries are needed here alone

    from rio import plots

    runs, comparisons = result.per_run(), result.comparisons()
    note = " (tuning)" if result.role == "tune" else ""
    for kind in dict.fromkeys(runs["iou_type"]):
        name = f"{IOU_NAMES[kind]} AP{note}"
        for what, draw, rows, label in (
            ("arms", plots.arm_ap, runs, f"{name}, %"),
            ("differences", plots.paired_differences, comparisons, f"{name}, difference in points"),
        ):
            rows = rows[rows["iou_type"] == kind]
            if len(rows) == 0:
                continue
            with plots.style():
                figure = draw(rows, label=label).figure
                # Without a date, the same figure gives the same file.
                for suffix, metadata in (("svg", {"Date": None}), ("png", {})):
                    save = functools.partial(figure.savefig, format=suffix, metadata=metadata)
                    write_atomically(root / f"study_{what}_{kind}.{suffix}", save)
                plt.close(figure)


@dataclass(frozen=True)
class _About:
    """What a result says beside its runs."""

    command: str
    trained_on: list[str]
    evaluated_on: list[str]
    categories: list[Category]
    machine: str
    versions: dict[str, str]

    @classmethod
    def of(cls, study: Study, options: list[str]) -> _About:
        from rio.config import load_config
        from rio.data import names as datasets
        from rio.engine import info

        cfg = load_config(study.config, [*options, *_tuning_options(study)])
        train, test = (datasets.annotations_of(names[0]) for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST))
        test = test.with_frequency_of(train)
        count = dict(zip(train.category_names, train.image_count.tolist(), strict=True))
        columns = (test.category_ids.tolist(), test.category_names, test.frequency.tolist())
        here = info.collect()
        names = ("torch", "detectron2", "numpy", "hotcoco")
        return cls(
            command=shlex.join(["python", "-m", "rio", "study", study.file, *map(_without_folders, options)]),
            trained_on=[_without_folders(name) for name in cfg.DATASETS.TRAIN],
            evaluated_on=[_without_folders(cfg.DATASETS.TEST[0])],
            categories=[Category(i, n, f, count[n]) for i, n, f in zip(*columns, strict=True)],
            machine=_machine(here["cores"], [device["name"] for device in here["gpus"]["devices"]]),
            versions={"rio": here["rio"], "python": platform.python_version()}
            | {name: here["versions"][name] or "unknown" for name in names},
        )


def _machine(cores: int, gpus: Sequence[str]) -> str:
    """What a machine can do, not which one it is."""
    model = platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = " ".join(found[1].split()) if found else model
    parts = [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)] or ["no GPU"]
    return ", ".join([model, f"{cores} core{'s' * (cores != 1)}", *parts])


def _without_folders(text: str) -> str:
    """Absolute paths by their last part alone: where a file lies on this machine is nobody's business."""
    return re.sub(r"(?<![\w.])~?/(?:[^/\s'\"@,]+/)*", "", text)


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


# ------------------------------------------------------------------------------------------------ preparation


def _prepare(study: Study, root: Path, options: list[str]) -> list[Run]:
    """Check every arm's config and data sets, and hold settings to those that a run began with."""
    from rio.config import load_config
    from rio.data import names as datasets  # detectron2 takes seconds to import: not for `load_study` or `compare`

    tuning = _tuning_options(study)
    runs = []
    # Seed by seed: a study that is interrupted has all arms to compare, with fewer seeds.
    for seed in study.seeds:
        for arm, own in study.arms.items():
            run = Run(arm, seed, root / f"{arm}-seed{seed}", [*own, *options, *tuning, "SEED", str(seed)])
            try:
                cfg = load_config(study.config, run.options)
            except ValueError as error:
                raise StudyError(f"study {study.name}, arm {arm!r}: {error}") from error
            for key in ("TRAIN", "TEST"):
                if not len(cfg.DATASETS[key]):
                    raise StudyError(
                        f"study {study.name}, arm {arm!r}: DATASETS.{key}: expected a data set, found none. A "
                        "study needs one to train on and one to compare the arms on"
                    )
            for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
                datasets.annotations_of(name)
            if study.tune_on is not None:
                reported = load_config(study.config, options).DATASETS
                _hold_apart(study, arm, (*reported.TEST, *reported.TRAIN, *cfg.DATASETS.TRAIN))
            run.max_iter = cfg.SOLVER.MAX_ITER
            cfg.OUTPUT_DIR = ""
            _keep_settings(run, cfg.dump())
            _read_progress(run)
            runs.append(run)
    return runs


def _tuning_options(study: Study) -> list[str]:
    return [] if study.tune_on is None else ["DATASETS.TEST", repr((study.tune_on,))]


def _hold_apart(study: Study, arm: str, others: Sequence[str]) -> None:
    """A tuning study must see neither the split that is reported nor what it trains on."""
    from rio.data import names as datasets

    def files(name: str) -> set[str]:
        found = datasets.annotations_of(name)
        folder = os.path.realpath(found.image_root or "")
        return {os.path.normpath(os.path.join(folder, file)) for file in found.file_names}

    if "DATASETS.TEST" in study.arms[arm][::2]:
        raise StudyError(
            f"study {study.name}, arm {arm!r}: DATASETS.TEST: expected no such key in a tuning study, which "
            f"is evaluated on tune_on ({study.tune_on}) alone. Remove it"
        )
    tuning = files(study.tune_on)
    for name in dict.fromkeys(others):
        shared = tuning & files(name)
        if shared:
            raise StudyError(
                f"study {study.name}: tune_on {study.tune_on}: expected other images than those of {name}, "
                f"found {len(shared)} in both, for example {min(shared)}. What is chosen on images that are "
                "trained on or reported looks better than it is: tune on a set of its own"
            )


def _annotations(study: Study) -> tuple[Any, Any]:
    from rio.config import load_config
    from rio.data import names as datasets

    cfg = load_config(study.config)  # arms may change what is trained, not what it is compared on
    return tuple(datasets.annotations_of(n) for n in (cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]))


def _keep_settings(run: Run, settings: str) -> None:
    """Write the settings into the run's folder, or hold them to those it began with.

    A key that the run's settings lack was added to rio since: the run is the same as long as the key has its
    default, which does what was done before there was the key.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    file = run.folder / "study_settings.yaml"
    if not file.exists():
        write_atomically(file, settings.encode())
        return
    from rio.config import get_rio_cfg

    defaults, began, now = (
        _flat(yaml.safe_load(text)) for text in (get_rio_cfg().dump(), file.read_text(encoding="utf-8"), settings)
    )
    before = {key: value for key, value in defaults.items() if key in now} | began
    changed = [
        f"{k}: {before.get(k)!r} -> {now.get(k)!r}"
        for k in sorted(before.keys() | now.keys())
        if before.get(k) != now.get(k)
    ]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise StudyError(
            f"{run.folder}: was begun with other settings ({'; '.join(changed[:5])}{more}). Choose another "
            "--output-dir, or delete that folder to train it anew"
        )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {k: v for key, value in node.items() for k, v in _flat(value, f"{prefix}{key}.").items()}


def _finished(run: Run) -> bool:
    return (run.folder / "study_finished.json").exists() and (run.folder / "evaluation.json").exists()


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[int]:
    """One study a folder. Trainings inherit the lock: those that outlive a killed study keep it."""
    handle = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            raise StudyError(
                f"{root}: another study (process {owner}), or a training it started, is at work here. Wait "
                "for it or stop it"
            ) from error
        os.truncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield handle
    finally:
        os.close(handle)


# --------------------------------------------------------------------------------------------------- running


class _Runner:
    """Starts runs, watches them, shows how far they are, and leaves none behind."""

    def __init__(
        self,
        config: str,
        runs: list[Run],
        processes: int,
        lock: int,
        *,
        devices: Sequence[str],
        about: _About,
        after_each: Callable[[], None],
    ):
        self._config, self._waiting, self._slots, self._lock = config, list(runs), max(processes, 1), lock
        self._devices, self._about, self._after_each = devices, about, after_each
        self._running: list[Run] = []
        self._start_seconds: list[float] = []  # from a start to the first iterations, of this call's runs
        self._total = len(runs)
        self._display = _Display(sys.stderr, sum(run.max_iter for run in runs), min(self._slots, len(runs)))
        self._overhead: list[float] = []  # seconds beside the iterations, of finished runs
        self.failed: list[Run] = []
        self.finished: list[Run] = []
        self.peak_gib: float | None = None
        self.left: float | None = None  # seconds, when time was up
        self._memory_due = 0.0

    def run(self, end: float | None = None) -> None:
        """Until all is done, or until `end` (time.monotonic(), seconds), the stop and the tables included."""
        stop = end
        if end is not None:
            stop = end - min(RESERVE_SECONDS, (end - time.monotonic()) / 4)
        try:
            with _signals_as_interrupt():
                while self._waiting or self._running:
                    while self._waiting and len(self._running) < self._slots and self._worth_a_start(stop):
                        self._start(self._waiting.pop(0))
                    if not self._running or (stop is not None and time.monotonic() >= stop):
                        self.left = self._remaining()
                        break
                    time.sleep(POLL_SECONDS)
                    self._watch()
        except KeyboardInterrupt:
            self._display.close()
            count = len(self._running)
            print(
                f"\nStopping {count} training{'s' * (count != 1)} after a checkpoint (once more: at once) ...",
                flush=True,
            )
            raise KeyboardInterrupt("Stopped. The same command goes on where it was.") from None
        finally:
            self._stop_all(STOP_SECONDS if end is None else max(end - time.monotonic(), 1.0) * 2 / 3)
            self._display.close()

    def _worth_a_start(self, stop: float | None) -> bool:
        """Whether a run started now would get to its first iterations before the stop."""
        if stop is None:
            return True
        tried = self._running or self.finished  # a call does something, however short it is
        needed = max(self._start_seconds, default=START_SECONDS) if tried else 0.0
        return time.monotonic() + needed < stop

    def _start(self, run: Run) -> None:
        command = [
            sys.executable,
            "-m",
            "rio",
            "train",
            "--resume",
            "--config-file",
            self._config,
            "--output-dir",
            str(run.folder),
            *run.options,
        ]
        if self._devices:  # the one that fewest of the others are on
            taken = [other.device for other in self._running]
            run.device = min(self._devices, key=taken.count)
        with open(run.folder / "stdout.log", "ab") as log:
            run.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=_environment(run.device),
                start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which passes it on
                pass_fds=(self._lock,),
            )
        _read_progress(run)
        run.first_iteration = run.iteration
        run.started = time.monotonic()
        self._running.append(run)
        self._display.begin(run)

    def _watch(self) -> None:
        for run in list(self._running):
            _read_progress(run)
            if run.start_seconds is None and run.iteration > run.first_iteration:
                run.start_seconds = time.monotonic() - run.started
                self._start_seconds.append(run.start_seconds)
            self._display.show(run)
            code = run.process.poll()
            if code is None:
                continue
            self._ended(run)
            if code == 0:
                self._finish(run)
            else:
                self._fail(run, code)
        self._measure_memory()
        self._display.total(self._iterations_done(), self._remaining())

    def _ended(self, run: Run) -> None:
        """Take it off the list, and keep the time that it has taken in this call and before."""
        self._running.remove(run)
        self._display.end(run)
        file = run.folder / "study_seconds.json"
        with contextlib.suppress(OSError, ValueError, KeyError):
            run.seconds = float(json.loads(file.read_bytes())["seconds"])
        run.seconds += time.monotonic() - run.started
        write_atomically(file, json.dumps({"seconds": round(run.seconds, 1)}).encode())

    def _finish(self, run: Run) -> None:
        self.finished.append(run)
        if run.seconds_per_iteration:
            trained = run.seconds_per_iteration * (run.max_iter - run.first_iteration)
            self._overhead.append(max(time.monotonic() - run.started - trained, 0.0))
        made = {"machine": self._about.machine, "versions": self._about.versions, "date": _today()}
        record = {"seconds": round(run.seconds, 1), **made}
        write_atomically(run.folder / "study_finished.json", json.dumps(record).encode())
        metrics = Evaluation.from_json(run.folder / "evaluation.json").metrics["bbox"]
        values = "  ".join(f"{m} {metrics[m]:.1f}" for m in GROUP_METRICS if metrics[m] == metrics[m])
        self._display.say(f"{run.name}: finished in {_clock(run.seconds)}, box {values}")
        self._after_each()

    def _fail(self, run: Run, code: int) -> None:
        self.failed.append(run)
        why = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            why += ", by the system if memory ran out: try fewer --processes"
        log = (run.folder / "stdout.log").read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        self._display.say(
            "\n".join(
                [
                    f"{run.name}: failed ({why}). The end of {run.folder / 'stdout.log'}:",
                    *("    " + line for line in log),
                ]
            )
        )

    def _iterations_done(self) -> int:
        ended = sum(run.max_iter for run in (*self.finished, *self.failed))
        return ended + sum(run.iteration for run in (*self._running, *self._waiting))

    def _remaining(self) -> float | None:
        """Seconds until the last run ends, as far as it can be told."""
        all_runs = (*self._running, *self.finished, *self._waiting)
        known = [run.seconds_per_iteration for run in all_runs if run.seconds_per_iteration]
        if not known and (self._running or self._waiting):
            return None
        speed = sum(known) / len(known) if known else 0.0
        overhead = sum(self._overhead) / len(self._overhead) if self._overhead else None

        def left(run: Run) -> float:
            pace = run.seconds_per_iteration or speed
            extra = overhead if overhead is not None else EVALUATION_SHARE * pace * run.max_iter
            return pace * (run.max_iter - run.iteration) + extra

        return makespan([left(r) for r in self._running], [left(r) for r in self._waiting], self._slots)

    def _measure_memory(self) -> None:
        # The kernel walks every page table for it, tens of milliseconds a gigabyte that the trainings lack.
        if time.monotonic() < self._memory_due:
            return
        self._memory_due = time.monotonic() + MEMORY_SECONDS
        held = memory_of_sessions({run.process.pid for run in self._running} | {os.getpid()})
        if held is not None:
            self.peak_gib = max(self.peak_gib or 0.0, held / 2**30)

    def _stop_all(self, seconds: float) -> None:
        """Ask what runs to save and end; what has not after so many seconds is killed."""
        alive = [run for run in self._running if run.process.poll() is None]
        for run in alive:
            with contextlib.suppress(ProcessLookupError):
                run.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + seconds
        try:
            for run in alive:
                run.process.wait(max(deadline - time.monotonic(), 0.1))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass
        for run in list(self._running):
            if run.process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(run.process.pid, signal.SIGKILL)  # the session: its loader processes too
                run.process.wait()
            self._ended(run)
            if run.process.returncode == 0:  # it was about to end anyway
                self._finish(run)


def _environment(device: str | None) -> dict[str, str]:
    """Of a training: one thread (many trainings are side by side), and its GPU."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    gpu = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
    return {**os.environ, **threads, "PYTHONUNBUFFERED": "1", **gpu}


def _devices(gpus: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES for each of so many GPUs of those that this process may use.

    With one, trainings choose as `rio train` does: the first GPU, or the CPU. Then the list is empty.

    Raises:
        StudyError: there are fewer.
    """
    if gpus == 1:
        return []
    from rio.engine import info

    found = info.gpus()["found"]
    if found < gpus:
        raise StudyError(
            f"--num-gpus {gpus}: expected as many GPUs on this machine, found {found}. Lower it (or `gpus` "
            "in the study file)"
        )
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (allowed.split(",") if allowed else [str(i) for i in range(found)])[:gpus]


def makespan(running: Sequence[float], waiting: Sequence[float], slots: int) -> float:
    """When the last job ends, if waiting jobs start in order as slots become free.

    Args:
        running: seconds left of the jobs that run.
        waiting: seconds that the others will take.
        slots: jobs side by side, >= 1.

    Returns:
        Seconds.

    >>> makespan([10.0, 4.0], [5.0, 1.0], slots=2)
    10.0
    >>> makespan([3.0], [5.0, 1.0], slots=1)
    9.0
    """
    free = [*running, *([0.0] * (slots - len(running)))]
    heapq.heapify(free)
    for seconds in waiting:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free, default=0.0)


def memory_of_sessions(sessions: set[int]) -> int | None:
    """Bytes that all processes of these sessions (and these processes) hold together; None without a /proc.

    Proportional set size: what several processes share is counted once.
    """
    total = 0
    proc = Path("/proc")
    if not (proc / "self" / "stat").exists():
        return None
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if int(entry.name) not in sessions:
                after_name = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(after_name[3]) not in sessions:
                    continue
            for line in (entry / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
                    break
        except (OSError, IndexError, ValueError):  # ended meanwhile, or another user's
            continue
    return total


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """A closed terminal or a kill stops a study as Ctrl-C does: its trainings save and end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read_progress(run: Run) -> None:
    """Iteration, loss and pace from the last whole line of the run's metrics.json."""
    try:
        with open(run.folder / "metrics.json", "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - 8192, 0))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return
    for line in reversed(lines):
        try:
            values = json.loads(line)
            iteration = int(values["iteration"])
        except (ValueError, KeyError, TypeError):
            continue
        if "total_loss" not in values:  # scores, written after the last iteration
            run.iteration = max(run.iteration, min(iteration, run.max_iter))
            continue
        run.iteration = max(run.iteration, min(iteration + 1, run.max_iter))
        run.loss = float(values["total_loss"])
        run.seconds_per_iteration = float(values["time"]) if "time" in values else run.seconds_per_iteration
        return


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Display:
    """Bars where a terminal shows them (one a running arm and one for all), plain lines elsewhere."""

    def __init__(self, stream: TextIO, iterations: int, slots: int):
        self._stream, self._bars = stream, stream.isatty()
        self._free = list(range(slots))
        self._runs: list[Run] = []
        self._last_line = time.monotonic()
        self._all = None
        self._iterations = iterations
        if self._bars and iterations:
            self._all = tqdm(
                total=iterations,
                position=slots,
                file=stream,
                desc="all",
                leave=False,
                bar_format="{desc:<16.16}{percentage:3.0f}%|{bar}| {elapsed} so far{postfix}",
            )

    def begin(self, run: Run) -> None:
        self._runs.append(run)
        if not self._bars:
            self.say(f"{run.name}: started")
            return
        place = self._free.pop(0) if self._free else 0
        run.bar = tqdm(
            total=run.max_iter,
            position=place,
            file=self._stream,
            desc=run.name,
            leave=False,
            bar_format="{desc:<16.16}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        )
        run.bar.slot = place

    def show(self, run: Run) -> None:
        if run.bar is None:
            return
        run.bar.n = run.iteration
        run.bar.set_postfix_str(_state(run), refresh=False)
        run.bar.refresh()

    def end(self, run: Run) -> None:
        if run not in self._runs:  # closed before
            return
        self._runs.remove(run)
        if run.bar is not None:
            self._free.insert(0, run.bar.slot)
            run.bar.close()
            run.bar = None

    def total(self, done: int, remaining: float | None) -> None:
        left = "remaining time is being measured" if remaining is None else f"about {_clock(remaining)} left"
        if self._all is not None:
            self._all.n = done
            self._all.set_postfix_str(left, refresh=False)
            self._all.refresh()
        elif not self._bars and self._runs and time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.monotonic()
            parts = [f"{run.name} {run.iteration}/{run.max_iter}, {_state(run)}" for run in self._runs]
            self.say(" | ".join([f"{100 * done // max(self._iterations, 1)} %", *parts, left]))

    def say(self, text: str) -> None:
        if self._bars:
            tqdm.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        for run in list(self._runs):
            self.end(run)
        if self._all is not None:
            self._all.close()
            self._all = None
            self._stream.write("\r")


def _state(run: Run) -> str:
    if run.iteration == 0:
        return "starting"
    if run.iteration >= run.max_iter:
        return "evaluating"
    left = (
        ""
        if not run.seconds_per_iteration
        else f", {_clock(run.seconds_per_iteration * (run.max_iter - run.iteration))}"
    )
    return f"loss {run.loss:.2f}{left}"
