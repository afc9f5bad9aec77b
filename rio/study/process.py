"""A training as a process of its own: start it, find it again, stop it, resume it.

It runs in its own session, so it outlives the notebook or study that started it. run.json in its folder names it by id
and start time: an id that the system has since given to another process is not mistaken for it.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from rio.analysis.run_folder import RunFolder
from rio.data.files import write_atomically

ALIVE = ("starting", "training", "evaluating", "stopping")
STATES = {
    "new": "No run in this folder yet.",
    "starting": "Loading libraries, data and weights.",
    "training": "Training.",
    "evaluating": "Evaluating.",
    "stopping": "Stopping after this iteration; a checkpoint is saved first.",
    "finished": "Finished.",
    "stopped": "Stopped.",
    "failed": "The process ended without output; it was probably killed. Resume continues from the last checkpoint.",
    "elsewhere": "Running on another machine, or started by other means.",
}
_children: dict[int, subprocess.Popen] = {}  # only a parent learns an exit code, and it must ask for it


class LaunchError(ValueError):
    """A training that cannot be started, stopped or resumed as asked; the message says what to change."""


def train_command(
    config: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    num_gpus: int = 1,
    seed: int | None = None,
    data: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    resume: bool = False,
) -> list[str]:
    """The command that trains, as words.

    `num_gpus` 1 means the CPU on a machine without a GPU; `seed` None leaves it to the config; `data` is own data:
    train_json, train_images, val_json, val_images, of which empty ones are left out; `options` are KEY, VALUE, ..., an
    odd number of which is a LaunchError.

    >>> " ".join(train_command("a.yaml", "out", seed=3)[1:])
    '-m rio train --config-file a.yaml --output-dir out SEED 3'
    """
    if len(options) % 2:
        raise LaunchError(
            f"options: expected KEY VALUE pairs, found {len(options)} words, the last being {options[-1]!r}"
        )
    words = [sys.executable, "-m", "rio", "train", "--config-file", os.fspath(config)]
    words += ["--output-dir", os.fspath(output_dir)]
    words += ["--num-gpus", str(num_gpus)] if num_gpus > 1 else []
    for key, value in (data or {}).items():
        words += [f"--{key.replace('_', '-')}", value] if value else []
    words += ["--resume"] if resume else []
    words += ["SEED", str(seed)] if seed is not None else []
    return [*words, *map(str, options)]


def process_start(pid: int) -> float | None:
    """When a process started (seconds since 1970); None if there is none of that id, or it has ended."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def memory_of(pid: int) -> int:
    """Bytes that a process and its children hold; on Linux shared memory is counted once."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for process in (root := psutil.Process(pid), *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # ended meanwhile
                total += process.memory_full_info().pss if psutil.LINUX else process.memory_info().rss
    return total


class Training(RunFolder):
    """A run's folder and the process at work in it, whoever started it."""

    def note(self) -> dict[str, Any]:
        """run.json: pid, process_start, host, command, cwd, started (s), log_offset, stopping; {} if invalid."""
        try:
            note = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            return note if isinstance(note["pid"], int) and isinstance(note["command"], list) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def log(self, most: int = 20_000) -> str:
        """What the process of the last start wrote; of more than `most` bytes the end."""
        try:
            with open(self.path / "stdout.log", "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(int(self.note().get("log_offset", 0)), size - most))
                return file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""

    def pid(self) -> int | None:
        """The training's process, if it is alive on this machine."""
        note = self.note()
        self.exit_code()
        start, known = process_start(note["pid"]) if note else None, note.get("process_start")
        # Linux gives the start time since boot, and the time of boot in whole seconds.
        return note["pid"] if start is not None and isinstance(known, float) and abs(start - known) < 2 else None

    def exit_code(self) -> int | None:
        """Of the last process, if this process started it and it has ended; -N: killed by signal N."""
        child = _children.get(self.note().get("pid", -1))
        return child.poll() if child is not None else None

    def state(self) -> str:
        """One of `STATES`."""
        note, progress = self.note(), self.progress()
        if self.pid() is not None:
            fresh = self.metrics_file.exists() and self.metrics_file.stat().st_mtime >= note.get("started", 0)
            working = "evaluating" if progress.iteration == progress.max_iter else "training"
            return "stopping" if note.get("stopping") else working if fresh and progress.iteration else "starting"
        final = (self.path / "model_final.pth").exists()
        if not note or note.get("host") not in (None, socket.gethostname()):
            if self.is_finished or (final and not note):
                return "finished"
            return "elsewhere" if note or progress.iteration else "new"
        if self._error():
            return "failed"
        if "\nStopped" in "\n" + self.log():
            return "stopped"
        return "finished" if final else "failed"

    def explain(self) -> str:
        """The state in a sentence; after a failure why, and where to read more."""
        state = self.state()
        if state == "failed":
            return f"{self._error() or STATES[state]} (whole log: {self.path / 'stdout.log'})"
        stopped = re.findall(r"(?m)^Stopped.*", self.log()) if state == "stopped" else []
        return stopped[-1] if stopped else STATES[state]

    def _error(self) -> str:
        """Why the last process failed, in a sentence; "" if it left no reason."""
        parts = re.split(r"(?m)^(?:(?:__main__\.py|python -m rio)[^:\n]*: )?error: ", self.log())
        if len(parts) > 1:
            return " ".join(parts[-1].split())
        if re.search(r"(?m)^Traceback \(most recent call last\)", parts[0]):
            errors = re.findall(r"(?m)^[\w.]+(?:Error|Exception|Interrupt|Exit)\b.*", parts[0])
            return f"An unforeseen error ended the process: {(errors or parts[0].splitlines())[-1]}"
        code = self.exit_code() or 0
        if code < 0:
            why = "by the system if memory ran out: lower SOLVER.IMS_PER_BATCH" if code == -9 else "from outside"
            name = signal.Signals(-code).name
            return f"The process was killed ({name}), {why}. Resume continues from the last checkpoint."
        return ""

    def start(
        self, command: Sequence[str], *, cwd: str | os.PathLike[str] = ".", environment: Mapping[str, str] | None = None
    ) -> int:
        """Start a training that outlives this process, by a command of `train_command` for this folder; its process id.

        It runs in `cwd`, where relative paths of the config begin, with the variables of `environment` beside those of
        this process. A LaunchError where a training is running here, a run is here and the command does not resume it,
        or the folder cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path / ".start.lock"):  # two notebooks may be asked to start the same run
                if pid := self.pid():
                    raise LaunchError(f"{self.path}: a training is running here (process {pid}). Fix: stop it first")
                if (self.path / "last_checkpoint").exists() and "--resume" not in command:
                    raise LaunchError(f"{self.path}: holds a run already. Fix: resume it, or choose another folder")
                return self._launch(list(command), os.fspath(Path(cwd).absolute()), environment or {})
        except OSError as error:
            found = f"expected a folder that can be written to, found: {error.strerror or error}"
            raise LaunchError(f"{self.path}: {found}. Fix: choose another") from error

    def _launch(self, command: list[str], cwd: str, environment: Mapping[str, str]) -> int:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JPY_", "MPLBACKEND"))}
        # A notebook runs in its own folder; the training must find the same rio from wherever it runs.
        package = [str(Path(__file__).resolve().parents[2]), *filter(None, [inherited.get("PYTHONPATH")])]
        inherited |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(package)}
        with open(self.path / "stdout.log", "ab") as log:
            offset = log.tell()
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            streams = {"stdout": log, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
            # In a session of its own no terminal's Ctrl-C reaches it.
            process = subprocess.Popen(command, cwd=cwd, env=inherited | environment, start_new_session=True, **streams)
        _children[process.pid] = process
        note = {"pid": process.pid, "process_start": process_start(process.pid), "host": socket.gethostname()}
        note |= {"command": command, "cwd": cwd, "started": time.time(), "log_offset": offset, "stopping": False}
        self._write_note(note)
        return process.pid

    def _write_note(self, note: dict[str, Any]) -> None:
        write_atomically(self.path / "run.json", json.dumps(note, indent=1).encode())

    def stop(self, *, at_once: bool = False) -> None:
        """Ask the training to save a checkpoint and end, as Ctrl-C does, or kill it; a LaunchError if none runs."""
        pid = self.pid()
        if pid is None:
            raise LaunchError(f"{self.path}: no training is running here, so there is nothing to stop")
        # The whole session, as a terminal does: every process of a training on several GPUs saves and ends.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL if at_once else signal.SIGINT)
        self._write_note({**self.note(), "stopping": True})

    def resume(self) -> int:
        """Continue from the last checkpoint with the command that the run was started by; a LaunchError if it is
        running, or this folder has no run.json.
        """
        note = self.note()
        if not note:
            raise LaunchError(f"{self.path}: expected run.json of an earlier start, found none. Fix: choose Start")
        command = [word for word in note["command"] if word != "--resume"]
        at = command.index("--output-dir") if "--output-dir" in command else len(command)
        return self.start([*command[:at], "--resume", *command[at:]], cwd=note.get("cwd", "."))

    def memory(self) -> tuple[float, str] | None:
        """(GiB, of what): the GPU's peak according to the log; on a CPU what the processes hold now."""
        with contextlib.suppress(OSError):
            log = (self.path / "log.txt").read_bytes()  # all of it: an evaluation writes thousands of lines
            found = re.match(rb"max_mem: (\d+)M", log[log.rfind(b"max_mem: ") :])
            if found and int(found[1]):  # 0: a run on the CPU of a machine that has a GPU
                return int(found[1]) / 1024, "GPU memory (most)"
        pid = self.pid()
        return (memory_of(pid) / 2**30, "memory") if pid is not None else None
