"""Run a study: trainings side by side, each in a process and a folder of its own, watched, resumable, compared.

Finished runs are skipped and interrupted ones resume, so the same command can be given as often as it takes.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from rio.data.errors import check
from rio.data.files import write_atomically
from rio.results.evaluation import GROUP_METRICS
from rio.study.collect import collect, draw, mark_finished, planned_result
from rio.study.plan import Run, Study, StudyError, features_folders, prepare
from rio.study.process import LaunchError, memory_of, train_command
from rio.study.result import StudyResult

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # many trainings are side by side
POLL_SECONDS = 0.5
MEMORY_SECONDS = 5.0  # between measurements of memory
LINE_SECONDS = 15.0  # between lines where no terminal shows the bar
STOP_SECONDS = 120.0  # a stopped training finishes its iteration and saves; after that it is killed
RESERVE_SECONDS = 30.0  # of the minutes given, for that and for the tables; a quarter of them at most
START_SECONDS = 30.0  # from the start of a run to its first iterations; with less time left, none is started


@dataclass(frozen=True)
class Outcome:
    """What `run_study` leaves behind."""

    folders: dict[tuple[str, int], Path]  # (arm, seed) -> run folder
    result: StudyResult  # of the runs finished so far
    seconds: float  # wall clock of this call
    peak_gib: float | None  # most memory that all processes held together, GiB; None if nothing had to be trained


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

    A failing run does not stop the others; the end of its log is shown, and a `StudyError` is raised when the others
    have finished. Ctrl-C stops all of them after they have saved a checkpoint; the same call resumes. However the call
    ends, study.json, study.md and the figures show the runs finished so far.

    Args:
        output_dir: gets a folder per run; made if needed.
        processes, gpus: override the study's.
        minutes: work at most so long, > 0: then the trainings are stopped as by Ctrl-C, and the call returns.
        options: KEY, VALUE, ... for every arm, over the arm's own.

    Raises:
        StudyError: some run failed; the folder is in use by another call; a run's settings changed since it began; a
            tuning study would see the split that is reported; fewer GPUs than asked for.
    """
    started, root, options = time.monotonic(), Path(output_dir), list(options)
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        runs = prepare(study, root, options)
        planned = planned_result(study, options)
        extract_features(study, root, runs, processes or study.processes)
        runner = Runner(study, planned, root, runs, processes or study.processes, gpus or study.gpus)
        if kept := len(runs) - len(runner.waiting):
            print(f"{kept} of {len(runs)} runs are finished already and are kept.", flush=True)
        try:
            runner.run(None if minutes is None else started + 60 * minutes)
        finally:
            result = publish(planned, root, runs)
    if runner.failed:
        raise StudyError(
            f"{len(runner.failed)} of {len(runs)} runs failed: {', '.join(runner.failed)}. The ends of their logs are "
            f"above, the whole logs in {root}/ARM-seedS/stdout.log. Fix: correct the cause and give the same command "
            "again; finished runs are kept"
        )
    if not result.complete:
        begun = sum(run.folder.progress().iteration > 0 and not run.is_finished for run in runs)
        left = "how much is left is not known yet; if it stays so, give more minutes"
        left = f"about {tqdm.format_interval(runner.left)} left" if runner.left is not None else left
        used = tqdm.format_interval(time.monotonic() - started)
        done = f"Time is up after {used}: {result.progress} are finished, {begun} more begun; {left}"
        print(f"{done}. Run the same command again; it resumes.", flush=True)
    folders = {(run.arm, run.seed): run.folder.path for run in runs}
    return Outcome(folders, result, time.monotonic() - started, runner.peak_gib)


def publish(planned: StudyResult, root: Path, runs: Sequence[Run]) -> StudyResult:
    """Write study.json, study.md and the figures of the runs finished so far."""
    result = keep_result(planned, root, runs)
    write_atomically(root / "study.md", result.to_markdown().encode())
    draw(result, root)
    return result


def keep_result(planned: StudyResult, root: Path, runs: Sequence[Run]) -> StudyResult:
    """Write study.json of the runs finished so far."""
    with FileLock(root / ".result.lock"):  # jobs of a cluster end at the same time: the last to write knows them all
        result = collect(planned, runs)
        result.to_json(root / "study.json")
    return result


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """One study per folder."""
    owner = root / ".lock.pid"
    try:
        with FileLock(root / ".lock", timeout=0):
            owner.write_text(str(os.getpid()))
            yield
    except Timeout:
        pid = owner.read_text() if owner.exists() else "unknown"
        found = f"another study (process {pid}) is running here"
        raise StudyError(f"{root}: {found}. Fix: wait for it or stop it") from None


def extract_features(study: Study, root: Path, runs: Sequence[Run], processes: int) -> None:
    """Take the features of the study's weights, if that is what it names; goes on where an earlier call stopped. A
    StudyError where it failed; the command's own output says why.
    """
    folders = {own: folder for own, folder in features_folders(study, root).items() if str(folder) != own}
    if not folders or all(run.is_finished for run in runs):
        return
    from rio.config import load_config
    from rio.engine import info

    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    for weights, folder in folders.items():
        options = next(run.options for run in runs if study.features_of[run.seed] == weights)
        sets = load_config(study.config, options).DATASETS
        alone = processes == 1 or info.gpus()["found"]
        command = [sys.executable, *([] if alone else several), "-m", "rio", "features"]
        command += ["--weights", weights, "--output", str(folder)]
        command += ["DATASETS.TRAIN", repr(tuple(sets.TRAIN)), "DATASETS.TEST", repr(tuple(sets.TEST))]
        if code := subprocess.run(command, env=os.environ | ONE_THREAD).returncode:
            raise StudyError(f"features of {weights}: `rio features` ended with exit code {code}; see above")


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """A closed terminal or a kill stops a study as Ctrl-C does, unless someone handles it (nohup; a cluster's job)."""
    signals = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    signals = [number for number in signals if signal.getsignal(number) is signal.SIG_DFL]
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def devices_for(gpus: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES for each of `gpus` GPUs that this process may use; a StudyError where there are fewer.

    Empty with one: then a training chooses as `rio train` does, the first GPU or the CPU.
    """
    if gpus == 1:
        return []
    from rio.engine import info

    found = info.gpus()["found"]
    fix = "lower it (or `gpus` in the study file)"
    check(found >= gpus, f"--num-gpus {gpus}", "as many GPUs on this machine", found, fix, StudyError)
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (allowed.split(",") if allowed else [str(i) for i in range(found)])[:gpus]


class Runner:
    """Starts runs, watches them, shows how far they are, and leaves none behind.

    `processes` trainings are side by side, dealt over `gpus`, each with `num_gpus`; `only` names the one run to do.
    """

    def __init__(
        self,
        study: Study,
        planned: StudyResult,
        root: Path,
        runs: list[Run],
        processes: int,
        gpus: int,
        *,
        only: str = "",
        num_gpus: int = 1,
    ):
        self._study, self._planned, self._root, self._runs, self._slots = study, planned, root, runs, processes
        self._num_gpus = num_gpus
        self.waiting = [run for run in runs if not run.is_finished and only in ("", run.name)]
        self._todo = list(self.waiting)
        self._running: list[Run] = []
        self._devices = devices_for(gpus) if self.waiting else []
        self.failed: list[str] = []
        self.peak_gib: float | None = None
        self.left: float | None = None  # seconds, when time was up
        self._memory_due, self._line_due = 0.0, time.monotonic() + LINE_SECONDS
        self._is_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=sum(run.max_iter for run in self._todo),
            initial=self._done(),
            desc=study.name,
            unit="it",
            smoothing=0,  # the mean pace of this call tells the remaining time
            file=sys.stderr if self._is_terminal else io.StringIO(),
            dynamic_ncols=True,
            leave=False,
        )

    def run(self, end: float | None) -> None:
        """Until all is done, or until `end` (time.monotonic(), seconds), the stop and the tables included."""
        stop = None if end is None else end - min(RESERVE_SECONDS, (end - time.monotonic()) / 4)
        try:
            with _signals_as_interrupt():
                while self.waiting or self._running:
                    while self.waiting and len(self._running) < self._slots:
                        tried = len(self.waiting) < len(self._todo)  # a call does something, however short it is
                        if stop is not None and time.monotonic() + START_SECONDS * tried >= stop:
                            break
                        self._start(self.waiting.pop(0))
                    if not self._running or (stop is not None and time.monotonic() >= stop):
                        self.left = self._left()
                        break
                    time.sleep(POLL_SECONDS)
                    self._watch()
        except KeyboardInterrupt:
            count = len(self._running)
            _say(f"Stopping {count} training{'s' * (count != 1)} after a checkpoint (once more: at once) ...")
            raise KeyboardInterrupt("Stopped. Run the same command again; it resumes.") from None
        finally:
            self._stop_all(STOP_SECONDS if end is None else max(end - time.monotonic(), 1.0) * 2 / 3)
            self._bar.close()

    def _done(self) -> int:
        return sum(run.folder.progress().iteration for run in self._todo)

    def _left(self) -> float | None:
        """Seconds for the remaining iterations at this call's pace."""
        state = self._bar.format_dict
        done, left = self._done() - state["initial"], state["total"] - self._done()
        return state["elapsed"] / done * left if done > 0 else None

    def _start(self, run: Run) -> None:
        environment = dict(ONE_THREAD)
        if self._devices:  # the one that fewest of the others are on
            run.device = min(self._devices, key=[other.device for other in self._running].count)
            environment["CUDA_VISIBLE_DEVICES"] = run.device
        given = {"num_gpus": self._num_gpus, "options": run.options, "resume": True}
        command = train_command(self._study.config, run.folder.path, **given)
        command += [word for protocol in run.protocols for word in ("--protocol", protocol)]
        try:
            run.folder.start(command, environment=environment)
        except LaunchError as error:  # left behind by a study that was killed, for example
            raise StudyError(str(error)) from error
        run.started = time.monotonic()
        self._running.append(run)
        _say(f"{run.name}: started")

    def _watch(self) -> None:
        for run in [run for run in self._running if run.folder.exit_code() is not None]:
            self._end(run)
        states = []
        for run in self._running:
            done, _, loss, _ = run.folder.progress()
            state = f"loss {loss:.2f}" if done < run.max_iter else "evaluating"
            states.append(f"{run.name} {done}/{run.max_iter} {state if done else 'starting'}")
        self._bar.n = self._done()
        self._bar.set_postfix_str(", ".join(states), refresh=self._is_terminal)
        now = time.monotonic()
        if not self._is_terminal and now >= self._line_due:
            self._line_due = now + LINE_SECONDS
            _say(str(self._bar))
        if now >= self._memory_due:  # walking page tables takes the trainings' time
            self._memory_due = now + MEMORY_SECONDS
            self.peak_gib = max(self.peak_gib or 0.0, memory_of(os.getpid()) / 2**30)

    def _end(self, run: Run, *, stopped: bool = False) -> None:
        """Take an ended run off the list, keep the time it took in this call and before, and say how it went."""
        self._running.remove(run)
        file, code = run.folder.path / "study_seconds.json", run.folder.exit_code()
        seconds = time.monotonic() - run.started
        with contextlib.suppress(OSError, ValueError, KeyError):
            seconds += float(json.loads(file.read_bytes())["seconds"])
        write_atomically(file, json.dumps({"seconds": round(seconds, 1)}).encode())
        if code == 0:
            mark_finished(run, seconds, self._planned)
            metrics = run.folder.evaluation().metrics["bbox"]
            values = "  ".join(f"{m} {metrics[m]:.1f}" for m in GROUP_METRICS if metrics[m] == metrics[m])
            _say(f"{run.name}: finished in {tqdm.format_interval(seconds)}, box {values}")
            keep_result(self._planned, self._root, self._runs)
        elif not stopped:
            self.failed.append(run.name)
            why = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            why += ", by the system if memory ran out: try fewer --processes" if code == -signal.SIGKILL else ""
            log = "".join(f"\n    {line}" for line in run.folder.log().splitlines()[-12:])
            _say(f"{run.name}: failed ({why}). The end of {run.folder.path / 'stdout.log'}:{log}")

    def _stop_all(self, seconds: float) -> None:
        """Ask what runs to save and end; kill what has not after `seconds`, or at another Ctrl-C."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(KeyboardInterrupt):
            for run in self._running:
                with contextlib.suppress(LaunchError):  # it has just ended
                    run.folder.stop()
            while any(run.folder.exit_code() is None for run in self._running) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 5)
        for run in list(self._running):
            with contextlib.suppress(LaunchError):
                run.folder.stop(at_once=True)
            while run.folder.exit_code() is None:
                time.sleep(0.02)
            self._end(run, stopped=True)


def _say(text: str) -> None:
    """A line that leaves the bar whole."""
    tqdm.write(text, file=sys.stderr)
