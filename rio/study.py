"""Studies: train several arms (settings) with several seeds side by side, resumable, and compare their AP.

A study file is YAML:

    config: ../shapes/demo.yaml          # relative to the study file
    arms:
      none: [MODEL.RIO.SAMPLER, none, MODEL.RIO.BANK_ENABLED, false]
      rio:  [MODEL.RIO.SAMPLER, rfs]
    seeds: [0]
    processes: 2                          # trainings side by side

Every run is ``python -m rio train --resume`` in a process and a folder of its own, ``OUTPUT/ARM-seedS``.
Finished runs are skipped, interrupted ones go on from their checkpoint, so the same command can be given as
often as it takes.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import yaml
from tqdm.auto import tqdm

from rio.evaluation import Evaluation, write_atomically

GROUP_METRICS = ("AP", "APr", "APc", "APf")
POLL_SECONDS = 0.5
MEMORY_SECONDS = 5.0  # between measurements of memory
PLAIN_SECONDS = 15.0  # between lines where no terminal shows bars
STOP_SECONDS = 120.0  # a stopped training finishes its iteration and saves; after that it is killed
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
    """

    name: str
    config: str
    arms: dict[str, list[str]]
    seeds: tuple[int, ...]
    processes: int


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
    seconds: float = 0.0
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
        table: see `compare`.
        seconds: wall clock of this call.
        peak_gib: most memory that all processes held together in this call, GiB; None where the system does
            not tell.
    """

    folders: dict[tuple[str, int], Path]
    table: pd.DataFrame
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

    need(isinstance(content, dict), "", "keys config, arms, seeds, processes", content)
    unknown = set(content) - {"config", "arms", "seeds", "processes"}
    need(
        not unknown,
        ", ".join(map(str, sorted(unknown, key=str))),
        "config, arms, seeds or processes",
        "this key",
    )
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
    seeds, processes = content.get("seeds", [0]), content.get("processes", 1)
    good = (
        isinstance(seeds, list)
        and seeds
        and all(type(s) is int and s >= 0 for s in seeds)
        and len(set(seeds)) == len(seeds)
    )
    need(bool(good), "seeds", "a list of different integers >= 0", seeds)
    need(type(processes) is int and processes >= 1, "processes", "an integer >= 1", processes)
    base = path.parent / os.path.expanduser(config)
    if not base.is_file():
        raise FileNotFoundError(
            f"{base}: no such config, named by 'config' in {path} (relative to that file)"
        )
    return Study(
        path.stem, str(base), {n: [str(v) for v in o or []] for n, o in arms.items()}, tuple(seeds), processes
    )


def run_study(
    study: Study,
    output_dir: str | os.PathLike[str],
    *,
    processes: int | None = None,
    options: Sequence[str] = (),
) -> Outcome:
    """Train and evaluate what is not finished yet, `processes` runs side by side, and compare all arms.

    A failing run does not stop the others; the last lines of its log are shown, and after the others have
    finished a `StudyError` is raised. Ctrl-C stops all of them after they have saved a checkpoint.

    Args:
        study: from `load_study`.
        output_dir: gets a folder a run; made if needed.
        processes: overrides the study's.
        options: KEY, VALUE, ... for every arm, over the arm's own.

    Raises:
        StudyError: some run failed; the folder is in use by another call; a run's settings changed since it
            began.
        KeyboardInterrupt: stopped; the same call goes on.
    """
    started = time.monotonic()
    root = Path(output_dir)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root) as lock:
        runs = _prepare(study, root, list(options))
        waiting = [run for run in runs if not _finished(run)]
        if len(waiting) < len(runs):
            print(
                f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already and are kept.",
                flush=True,
            )
        runner = _Runner(study.config, waiting, processes or study.processes, lock)
        runner.run()
        if runner.failed:
            names = ", ".join(run.name for run in runner.failed)
            raise StudyError(
                f"{len(runner.failed)} of {len(runs)} runs failed: {names}. Their logs are above, whole in "
                f"{root}/ARM-seedS/stdout.log. Mend the cause and give the same command again; finished "
                "runs are kept"
            )
    folders = {(run.arm, run.seed): run.folder for run in runs}
    return Outcome(folders, compare(folders), time.monotonic() - started, runner.peak_gib)


def compare(folders: dict[tuple[str, int], Path]) -> pd.DataFrame:
    """AP, APr, APc, APf of every arm, in percent.

    Args:
        folders: (arm, seed) -> folder with an ``evaluation.json``.

    Returns:
        One row an arm and IoU type: arm, iou_type, seeds (how many), for every metric its mean over
        seeds and, as METRIC_spread, half the distance between the highest and the lowest seed (NaN with one).
    """
    rows = []
    arms = list(dict.fromkeys(arm for arm, _ in folders))
    evaluations = {key: Evaluation.from_json(folder / "evaluation.json") for key, folder in folders.items()}
    for iou_type in ("bbox", "segm"):
        for arm in arms:
            own = [
                e.metrics[iou_type] for (a, _), e in evaluations.items() if a == arm and iou_type in e.metrics
            ]
            if not own:
                continue
            values = pd.DataFrame(own)[list(GROUP_METRICS)]
            spread = (values.max() - values.min()) / 2 if len(own) > 1 else values.mean() * float("nan")
            rows.append(
                {
                    "arm": arm,
                    "iou_type": iou_type,
                    "seeds": len(own),
                    **values.mean().to_dict(),
                    **{f"{m}_spread": spread[m] for m in GROUP_METRICS},
                }
            )
    return pd.DataFrame(rows)


def format_table(table: pd.DataFrame) -> str:
    """The table of `compare` as aligned text."""

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
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    return "\n".join(text)


def demo(output_dir: str | os.PathLike[str] = "output/demo", *, processes: int | None = None) -> Path:
    """Draw the embedded data set, train the arms of ``configs/studies/demo.yaml``, compare, write a report.

    Args:
        output_dir: runs and report; given again, it goes on where it was.
        processes: trainings side by side; None: the study's.

    Returns:
        The report's path.
    """
    file = Path(__file__).resolve().parents[1] / "configs" / "studies" / "demo.yaml"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: the demo's study file is not there. Run the demo from a clone of the repository"
        )
    print(
        "rio demo: a synthetic long-tailed data set, drawn here; what it shows holds for this set.",
        flush=True,
    )
    study = load_study(file)
    outcome = run_study(study, output_dir, processes=processes)
    train, val = _annotations(study)

    from rio.report import write_report, write_summary  # the figures' libraries are needed at the end alone

    print("\nAverage precision on the validation images (percent), all / rare / common / frequent classes:\n")
    print(format_table(outcome.table) + "\n")
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


# ------------------------------------------------------------------------------------------------ preparation


def _prepare(study: Study, root: Path, options: list[str]) -> list[Run]:
    """Check every arm's config and data sets, and hold settings to those that a run began with."""
    from rio import datasets  # detectron2 takes seconds to import: not for `load_study` or `compare`
    from rio.config import load_config

    runs = []
    for arm, own in study.arms.items():
        for seed in study.seeds:
            run = Run(arm, seed, root / f"{arm}-seed{seed}", [*own, *options, "SEED", str(seed)])
            try:
                cfg = load_config(study.config, run.options)
            except ValueError as error:
                raise StudyError(f"study {study.name}, arm {arm!r}: {error}") from error
            for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
                datasets.resolve(name)
            run.max_iter = cfg.SOLVER.MAX_ITER
            cfg.OUTPUT_DIR = ""
            _keep_settings(run, cfg.dump())
            runs.append(run)
    return runs


def _annotations(study: Study) -> tuple[Any, Any]:
    from rio import datasets
    from rio.config import load_config

    cfg = load_config(study.config)  # arms may change what is trained, not what it is compared on
    return tuple(
        datasets.annotations_of(datasets.resolve(n)) for n in (cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0])
    )


def _keep_settings(run: Run, settings: str) -> None:
    """Write the settings into the run's folder, or hold them to those it began with."""
    run.folder.mkdir(parents=True, exist_ok=True)
    file = run.folder / "study_settings.yaml"
    if not file.exists():
        write_atomically(file, settings.encode())
        return
    before, now = _flat(yaml.safe_load(file.read_text(encoding="utf-8"))), _flat(yaml.safe_load(settings))
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

    def __init__(self, config: str, runs: list[Run], processes: int, lock: int):
        self._config, self._waiting, self._slots, self._lock = config, list(runs), max(processes, 1), lock
        self._running: list[Run] = []
        self._total = len(runs)
        self._display = _Display(sys.stderr, sum(run.max_iter for run in runs), min(self._slots, len(runs)))
        self._overhead: list[float] = []  # seconds beside the iterations, of finished runs
        self.failed: list[Run] = []
        self.finished: list[Run] = []
        self.peak_gib: float | None = None
        self._memory_due = 0.0

    def run(self) -> None:
        try:
            with _signals_as_interrupt():
                while self._waiting or self._running:
                    while self._waiting and len(self._running) < self._slots:
                        self._start(self._waiting.pop(0))
                    time.sleep(POLL_SECONDS)
                    self._watch()
        except KeyboardInterrupt:
            self._display.close()
            count = len(self._running)
            print(
                f"\nStopping {count} training{'s' * (count != 1)} after a checkpoint (once more: at once) "
                "...",
                flush=True,
            )
            raise KeyboardInterrupt("Stopped. The same command goes on where it was.") from None
        finally:
            self._stop_all()
            self._display.close()

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
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with open(run.folder / "stdout.log", "ab") as log:
            run.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
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
            self._display.show(run)
            code = run.process.poll()
            if code is None:
                continue
            self._running.remove(run)
            run.seconds = time.monotonic() - run.started
            self._display.end(run)
            if code == 0:
                self._finish(run)
            else:
                self._fail(run, code)
        self._measure_memory()
        self._display.total(self._iterations_done(), self._remaining())

    def _finish(self, run: Run) -> None:
        self.finished.append(run)
        if run.seconds_per_iteration:
            trained = run.seconds_per_iteration * (run.max_iter - run.first_iteration)
            self._overhead.append(max(run.seconds - trained, 0.0))
        write_atomically(
            run.folder / "study_finished.json", json.dumps({"seconds": round(run.seconds, 1)}).encode()
        )
        metrics = Evaluation.from_json(run.folder / "evaluation.json").metrics["bbox"]
        values = "  ".join(f"{m} {metrics[m]:.1f}" for m in GROUP_METRICS if metrics[m] == metrics[m])
        self._display.say(f"{run.name}: finished in {_clock(run.seconds)}, box {values}")

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
        return ended + sum(run.iteration for run in self._running)

    def _remaining(self) -> float | None:
        """Seconds until the last run ends, as far as it can be told."""
        known = [r.seconds_per_iteration for r in (*self._running, *self.finished) if r.seconds_per_iteration]
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

    def _stop_all(self) -> None:
        alive = [run for run in self._running if run.process.poll() is None]
        for run in alive:
            with contextlib.suppress(ProcessLookupError):
                run.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + STOP_SECONDS
        try:
            for run in alive:
                run.process.wait(max(deadline - time.monotonic(), 0.1))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass
        for run in alive:
            if run.process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(run.process.pid, signal.SIGKILL)  # the session: its loader processes too
                run.process.wait()


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
