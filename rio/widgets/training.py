"""A training as a process of its own, seen from a notebook: start, watch, stop, resume, find again.

Nothing here imports torch or detectron2. A training is ``python -m rio train ...`` in a session of its own, so it goes on
when the kernel or the browser is closed; what is known of it is read from its folder (metrics.json, log.txt, config.yaml,
stdout.log) and from ``run.json``, which names its process by id *and* birth: an id that the system has given to another
process since is not mistaken for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import html
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
import psutil
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rio import plots
from rio.widgets import dataset as _data
from rio.widgets import theme as _theme

REFRESH_SECONDS = 2.0
ALIVE = ("starting", "training", "evaluating", "stopping")
STATES = {
    "new": "no run in this folder yet",
    "starting": "loading libraries, data and weights",
    "training": "training",
    "evaluating": "evaluating",
    "stopping": "stopping after this iteration; a checkpoint is saved first",
    "finished": "finished",
    "stopped": "stopped; it can be resumed",
    "failed": "ended with an error",
    "elsewhere": "running on another machine, or begun outside this notebook",
}
_children: dict[int, subprocess.Popen] = {}  # ours: only a parent learns an exit code, and must take it


class LaunchError(ValueError):
    """A training that cannot be started, stopped or resumed as asked; the message says what to change."""


# ------------------------------------------------------------------------------------------------------ commands


def find_configs() -> dict[str, Path]:
    """The project's training configs: name ("shapes/demo") -> file."""
    root = _data.project_root() / "configs"
    files = sorted(p for p in root.rglob("*.yaml") if p.parent.name not in ("base", "studies"))
    return {str(p.relative_to(root).with_suffix("")): p for p in files}


def describe_config(file: Path) -> str:
    """The comment that a config opens with: what it is, hours, expected AP."""
    lines = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.lstrip("# ").rstrip())
    return "\n".join(lines)


def count_gpus() -> int:
    """NVIDIA GPUs of this machine, without importing torch; 0 if none can be seen."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())


def train_command(
    config: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    num_gpus: int = 1,
    seed: int | None = None,
    data: dict[str, str] | None = None,
    options: Sequence[str] = (),
    resume: bool = False,
) -> list[str]:
    """The command that trains, as words.

    Args:
        config: the YAML file.
        output_dir: the run's folder.
        num_gpus: on a machine without a GPU, 1 means its CPU.
        seed: None leaves it to the config.
        data: own data: train_json, train_images, val_json, val_images; empty ones are left out.
        options: KEY, VALUE, ...
        resume: go on with the run in that folder.

    Raises:
        LaunchError: an odd number of options.

    >>> " ".join(train_command("a.yaml", "out", seed=3)[1:])
    '-m rio train --config-file a.yaml --output-dir out SEED 3'
    """
    if len(options) % 2:
        raise LaunchError(
            f"options: expected KEY VALUE pairs, found {len(options)} words, the last alone: {options[-1]!r}"
        )
    words = [
        sys.executable,
        "-m",
        "rio",
        "train",
        "--config-file",
        os.fspath(config),
        "--output-dir",
        os.fspath(output_dir),
    ]
    if num_gpus > 1:
        words += ["--num-gpus", str(num_gpus)]
    for key, value in (data or {}).items():
        if value:
            words += [f"--{key.replace('_', '-')}", value]
    words += ["--resume"] if resume else []
    words += ["SEED", str(seed)] if seed is not None else []
    return [*words, *(str(o) for o in options)]


# ------------------------------------------------------------------------------------------------------ processes


def birth_of(pid: int) -> str | None:
    """What tells a process from every other that had or will have its id; None: no such process, or a dead one."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            after_name = stat.read_text().rsplit(")", 1)[1].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except (OSError, IndexError):
            return None
        # Field 3 is the state (Z: ended, its parent has not asked yet), field 22 the start in ticks since boot.
        return None if after_name[0] in "ZX" else f"{boot}:{after_name[19]}"
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.1f}"
    except psutil.Error:
        return None


def _memory_of(pid: int) -> int:
    """Bytes that a process and its children hold."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += one.memory_info().rss
    return total


# ------------------------------------------------------------------------------------------------------ a run


class RunFolder:
    """A run as its files tell it, whoever started it.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._rows: list[dict[str, float]] = []
        self._offset = 0
        self._identity: tuple[int, int] | None = None

    # -------------------------------------------------------------- files

    def note(self) -> dict[str, Any]:
        """run.json: pid, birth, host, command, cwd, started (s), log_offset, stopping; empty where there is none."""
        try:
            content = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        good = (
            isinstance(content, dict)
            and isinstance(content.get("pid"), int)
            and isinstance(content.get("command"), list)
        )
        return content if good else {}

    def settings(self) -> dict[str, Any]:
        """max_iter, batch (images an iteration), bank (whether it has one), of the run's config.yaml; else nothing."""
        try:
            cfg = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
            return {
                "max_iter": int(cfg["SOLVER"]["MAX_ITER"]),
                "batch": int(cfg["SOLVER"]["IMS_PER_BATCH"]),
                "bank": bool(cfg["MODEL"]["RIO"]["BANK_ENABLED"]),
                "seed": int(cfg["SEED"]),
            }
        except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError):
            return {}

    def metrics(self) -> pd.DataFrame:
        """Rows of metrics.json so far, by iteration; only what was added since the last call is read."""
        file = self.path / "metrics.json"
        try:
            status = file.stat()
            identity = status.st_dev, status.st_ino
            if identity != self._identity or status.st_size < self._offset:  # a resumed run may have rewritten it
                self._rows, self._offset, self._identity = [], 0, identity
            with open(file, "rb") as lines:
                lines.seek(self._offset)
                added = lines.read()
        except OSError:
            added = b""
        whole = added[: added.rfind(b"\n") + 1]  # the last line may still be being written
        self._offset += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("iteration"), (int, float)):
                    self._rows.append(row)
        table = pd.DataFrame(self._rows)
        if not len(table):
            return pd.DataFrame({"iteration": pd.Series(dtype=int)})
        return table.groupby("iteration", as_index=False).last()

    def log(self, most: int = 20_000) -> str:
        """The end of what the process of the last start wrote."""
        try:
            with open(self.path / "stdout.log", "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(int(self.note().get("log_offset", 0)), size - most))
                return file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""

    # -------------------------------------------------------------- process

    def pid(self) -> int | None:
        """The training's process, if it lives on this machine."""
        note = self.note()
        if not note:
            return None
        child = _children.get(note["pid"])
        if child is not None:
            child.poll()
        return note["pid"] if birth_of(note["pid"]) == note.get("birth") else None

    def state(self) -> str:
        """One of `STATES`."""
        note, table = self.note(), self.metrics()
        done, last = self.progress(table)
        if self.pid() is not None:
            if note.get("stopping"):
                return "stopping"
            if not self._rows or self._stale(note):
                return "starting"
            return "evaluating" if last and done >= last else "training"
        if not note:
            if (self.path / "evaluation.json").exists() or (self.path / "model_final.pth").exists():
                return "finished"
            return "elsewhere" if len(table) else "new"
        if note.get("host") not in (None, socket.gethostname()):
            return "finished" if (self.path / "evaluation.json").exists() else "elsewhere"
        if self._error() or self._killed():
            return "failed"
        if "\nStopped" in "\n" + self.log():
            return "stopped"
        return "finished" if (self.path / "model_final.pth").exists() else "failed"

    def _stale(self, note: dict[str, Any]) -> bool:
        """Whether metrics.json has said nothing yet since the last start."""
        try:
            return (self.path / "metrics.json").stat().st_mtime < note.get("started", 0)
        except OSError:
            return True

    def progress(self, table: pd.DataFrame | None = None) -> tuple[int, int]:
        """(iterations done, iterations in all; 0 if not known)."""
        table = self.metrics() if table is None else table
        last = self.settings().get("max_iter", 0)
        if not len(table):
            return 0, last
        trained = table[table["total_loss"].notna()] if "total_loss" in table else table
        done = int(trained["iteration"].max()) + 1 if len(trained) else int(table["iteration"].max())
        return (min(done, last) if last else done), last

    def _killed(self) -> str:
        note = self.note()
        child = _children.get(note.get("pid", -1))
        code = child.poll() if child is not None else None
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            why = "by the system if memory ran out: lower SOLVER.IMS_PER_BATCH" if code == -9 else "from outside"
            return f"The process was killed ({name}), {why}. Resume goes on from the last checkpoint."
        return ""

    def _error(self) -> str:
        """The last error of the last start in plain words; "" if there is none."""
        lines = [line.rstrip() for line in self.log().splitlines()]
        for at in range(len(lines) - 1, -1, -1):
            if lines[at].startswith("error: "):
                return " ".join(line.strip() for line in lines[at:] if line.strip()).removeprefix("error: ")
            if re.match(r"(__main__\.py|python -m rio)[^:]*: error: ", lines[at]):
                return lines[at].split("error: ", 1)[1]
        if any(line.startswith("Traceback (most recent call last)") for line in lines):
            last = next(
                (line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit)\b", line)),
                lines[-1],
            )
            return f"An unforeseen error ended the process: {last}"
        return ""

    def explain(self) -> str:
        """The state in a sentence; after a failure why, and where to read more."""
        state = self.state()
        if state == "failed":
            why = self._error() or self._killed()
            why = (
                why
                or "The process ended without a word; it was probably killed. Resume goes on from the last checkpoint."
            )
            return f"{why} (whole log: {self.path / 'stdout.log'})"
        if state == "stopped":
            line = next((line for line in reversed(self.log().splitlines()) if line.startswith("Stopped")), "")
            return line or "Stopped."
        return STATES[state][0].upper() + STATES[state][1:] + "."

    # -------------------------------------------------------------- actions

    def start(self, command: Sequence[str], *, cwd: str | os.PathLike[str] | None = None) -> int:
        """Start a training that outlives this process.

        Args:
            command: from `train_command`, with this folder as its output folder.
            cwd: where it runs; relative paths of the config begin there. Default: the repository.

        Returns:
            The process id.

        Raises:
            LaunchError: a training is at work here already; a run is here and the command does not resume it; the folder
                cannot be made or written to.
        """
        cwd = Path(cwd) if cwd is not None else _data.project_root()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._locked():
                if self.pid() is not None:
                    raise LaunchError(
                        f"{self.path}: a training is at work here already (process {self.pid()}). Stop it first"
                    )
                if (self.path / "last_checkpoint").exists() and "--resume" not in command:
                    raise LaunchError(f"{self.path}: holds a run already. Resume it, or choose another folder")
                return self._launch(list(command), cwd)
        except OSError as error:
            raise LaunchError(
                f"{self.path}: expected a folder that can be written to, found: {error.strerror or error}. Choose another"
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Two notebooks may be asked to start the same run; one does."""
        with open(self.path / ".start.lock", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _launch(self, command: list[str], cwd: Path) -> int:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JPY_", "MPLBACKEND"))}
        environment["PYTHONUNBUFFERED"] = "1"
        # A notebook runs in its own folder; the repository's rio has to be found from wherever the training runs.
        package = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [environment.get("PYTHONPATH")])])
        with open(self.path / "stdout.log", "ab") as log:
            offset = log.tell()
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=cwd, env=environment,
                start_new_session=True,
            )  # fmt: skip
        _children[process.pid] = process
        self._write_note(
            {
                "pid": process.pid,
                "birth": birth_of(process.pid),
                "host": socket.gethostname(),
                "command": command,
                "cwd": str(cwd),
                "started": time.time(),
                "log_offset": offset,
                "stopping": False,
            }
        )
        return process.pid

    def _write_note(self, note: dict[str, Any]) -> None:
        temporary = self.path / f".run.json.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(note, indent=1), encoding="utf-8")
        os.replace(temporary, self.path / "run.json")

    def stop(self, *, at_once: bool = False) -> None:
        """Ask the training to save a checkpoint and end (as Ctrl-C does in a terminal), or kill it.

        Raises:
            LaunchError: nothing is running.
        """
        pid = self.pid()
        if pid is None:
            raise LaunchError(f"{self.path}: no training is at work here, so there is nothing to stop")
        # The whole session, as a terminal does: each process of a training on several GPUs saves and ends.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL if at_once else signal.SIGINT)
        self._write_note({**self.note(), "stopping": True})

    def resume(self) -> int:
        """Go on from the last checkpoint with the command that the run was started by.

        Raises:
            LaunchError: it runs, or this folder's run was not started from a notebook.
        """
        note = self.note()
        if not note:
            raise LaunchError(
                f"{self.path}: expected run.json of an earlier start, found none. Choose the settings and start"
            )
        command = [w for w in note["command"] if w != "--resume"]
        at = command.index("--output-dir") if "--output-dir" in command else len(command)
        return self.start([*command[:at], "--resume", *command[at:]], cwd=note.get("cwd"))

    def memory(self) -> tuple[float, str] | None:
        """(GiB, of what): the GPU's most, as the log tells it; on a CPU what the processes hold now."""
        try:
            with open(self.path / "log.txt", "rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 8192, 0))
                found = re.findall(rb"max_mem: (\d+)M", file.read())
        except OSError:
            found = []
        if found:
            return int(found[-1]) / 1024, "GPU memory (most)"
        pid = self.pid()
        return (_memory_of(pid) / 2**30, "memory") if pid is not None else None


# ------------------------------------------------------------------------------------------------------ figures


def draw_progress(table: pd.DataFrame, max_iter: int = 0) -> Figure:
    """Loss curves, and beside them learning rate, bank fill and replay, as far as the rows have them.

    Args:
        table: from `RunFolder.metrics`.
        max_iter: right end of the axes; 0: the last row.

    Raises:
        PlotError: no loss in the rows.
    """
    small = [
        (column, title)
        for column, title in (
            ("lr", "learning rate"),
            ("memory_bank/fill", "bank fill"),
            ("memory_bank/replayed_per_foreground", "replayed rows per foreground RoI"),
            ("bbox/AP", "box AP"),
        )
        if column in table and table[column].notna().any()
    ]
    if len(table) > 800:  # more rows than pixels: every n-th, and all that an evaluation wrote
        keep = pd.Series(range(len(table))) % (len(table) // 400) == 0
        keep |= table["bbox/AP"].notna().to_numpy() if "bbox/AP" in table else False
        keep.iloc[-1] = True
        table = table[keep.to_numpy()]
    with plots.style():
        figure = Figure(figsize=(9.8, 3.3), layout="constrained")
        grid = figure.add_gridspec(max(len(small), 1), 2, width_ratios=[2.3, 1])
        left = figure.add_subplot(grid[:, 0] if small else grid[:, :])
        plots.loss_curves(table, left)
        if max_iter > 1:
            left.set_xlim(0, max_iter)
        for row, (column, title) in enumerate(small):
            ax = figure.add_subplot(grid[row, 1])
            rows = table[table[column].notna()]
            ax.plot(
                rows["iteration"], rows[column], color="#2A6CAB", marker="o" if len(rows) == 1 else None, markersize=4
            )
            ax.fill_between(rows["iteration"], rows[column], color="#2A6CAB", alpha=0.1, linewidth=0)
            ax.set_title(f"{title}  {_short(rows[column].iloc[-1])}", fontsize=8.5, fontweight="normal", pad=3)
            ax.set(xlim=(0, max_iter if max_iter > 1 else None), ylim=(0, max(float(rows[column].max()) * 1.15, 1e-9)))
            ax.yaxis.set_major_locator(MaxNLocator(2))
            ax.tick_params(labelbottom=row == len(small) - 1, labelsize=7.5)
            ax.spines[["top", "right"]].set_visible(False)
    return figure


def _short(value: float) -> str:
    return f"{value:.3g}"


# ------------------------------------------------------------------------------------------------------ the view

STYLE = """
.rio-training .rio-form { flex-wrap: wrap; gap: 4px 18px; align-items: center; }
.rio-command { background: var(--soft); border: 1px solid var(--rule); border-radius: 8px; padding: 9px 12px; margin: 6px 0;
  font: 12.5px/1.5 var(--jp-code-font-family, ui-monospace, monospace); white-space: pre-wrap; word-break: break-word; user-select: all; }
.rio-state { display: flex; align-items: center; gap: 10px; margin: 8px 0 4px; }
.rio-pill { border-radius: 99px; padding: 1px 11px; font-weight: 600; font-size: 12.5px; color: #fff; background: #5c6470; white-space: nowrap; }
.rio-pill.training, .rio-pill.evaluating { background: #2a6cab; } .rio-pill.starting, .rio-pill.stopping { background: #7a6a1f; }
.rio-pill.finished { background: #2e7d4f; } .rio-pill.failed { background: #b3323f; }
.rio-track { height: 7px; border-radius: 4px; background: var(--soft); overflow: hidden; margin: 6px 0 10px; }
.rio-track > div { height: 100%; background: #2a6cab; border-radius: 4px; transition: width .4s; }
.rio-training .rio-tiles { gap: 7px; } .rio-training .rio-tile { min-width: 84px; padding: 6px 10px 7px; } .rio-training .rio-tile .rio-value { font-size: 19px; }
.rio-trouble { border-left: 4px solid #b3323f; background: color-mix(in srgb, #b3323f 9%, transparent); padding: 8px 12px;
  border-radius: 0 6px 6px 0; margin: 6px 0; max-width: 90ch; }
.rio-training img { max-width: 1120px; width: 100%; }
"""


class TrainingPanel(ipywidgets.VBox):
    """Choose, start, watch, stop and resume a training.

    Args:
        config: name of a project config ("shapes/demo") or path of a YAML file.
        output_dir: the run's folder; a run that is there is found again.
        num_gpus: None: all of this machine, at least 1 (which means the CPU where there is none).
        seed: of the run.
        data: own data: train_json, train_images, val_json, val_images.
        options: KEY, VALUE, ... over the config.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] = "shapes/demo",
        output_dir: str | os.PathLike[str] = "output/notebook",
        *,
        num_gpus: int | None = None,
        seed: int = 1,
        data: dict[str, str] | None = None,
        options: Sequence[str] = (),
    ):
        self._configs = find_configs()
        names = list(self._configs)
        given = os.fspath(config)
        if given not in self._configs:
            self._configs[given] = _data.find(given)
            names.insert(0, given)
        self._gpus = count_gpus()
        wide = {"description_width": "92px"}
        self.config = ipywidgets.Dropdown(
            options=names, value=given, description="config", style=wide, layout={"width": "330px"}
        )
        self.output_dir = ipywidgets.Text(
            value=os.fspath(output_dir),
            description="folder",
            style=wide,
            layout={"width": "330px"},
            continuous_update=False,
        )
        self.num_gpus = ipywidgets.BoundedIntText(
            value=num_gpus or max(self._gpus, 1), min=1, max=max(self._gpus, num_gpus or 1, 1), style=wide,
            description="GPUs" if self._gpus else "GPUs (none)", layout={"width": "170px"}, disabled=not self._gpus,
        )  # fmt: skip
        self.seed = ipywidgets.BoundedIntText(
            value=seed, min=0, max=2**31 - 1, description="seed", style=wide, layout={"width": "190px"}
        )
        self.options = ipywidgets.Text(
            value=shlex.join(str(o) for o in options), description="options", placeholder="KEY VALUE ...", style=wide,
            layout={"width": "520px"}, continuous_update=False,
        )  # fmt: skip
        self.data = {
            key: ipywidgets.Text(
                value=(data or {}).get(key, ""), description=key.replace("_", " "), style=wide, layout={"width": "430px"},
                continuous_update=False, placeholder="file.json" if key.endswith("json") else "folder",
            )
            for key in ("train_json", "train_images", "val_json", "val_images")
        }  # fmt: skip
        own = ipywidgets.Accordion(
            [ipywidgets.HBox(list(self.data.values()), layout={"flex_flow": "row wrap"})],
            titles=("Your own data (LVIS or COCO format)",),
            selected_index=0 if data else None,
        )
        self.about, self.command = ipywidgets.HTML(), ipywidgets.HTML()
        button = {"width": "110px"}
        self.start_button = ipywidgets.Button(description="Start", icon="play", button_style="success", layout=button)
        self.stop_button = ipywidgets.Button(
            description="Stop", icon="stop", button_style="warning", layout=button, tooltip="Saves a checkpoint first"
        )
        self.resume_button = ipywidgets.Button(description="Resume", icon="forward", button_style="info", layout=button)
        self.status, self.figure = ipywidgets.HTML(), ipywidgets.Image(format="png", layout={"display": "none"})
        form = ipywidgets.HBox([self.config, self.output_dir, self.num_gpus, self.seed, self.options])
        form.add_class("rio-form")
        super().__init__(
            [
                ipywidgets.HTML(f'<div class="rio-view"><style>{_theme.STYLE}{STYLE}</style></div>'),
                form,
                own,
                self.about,
                self.command,
                ipywidgets.HBox([self.start_button, self.stop_button, self.resume_button]),
                self.status,
                self.figure,
            ]
        )
        self.add_class("rio-training")
        self._trouble = ""
        self._drawn: tuple[Any, ...] = ()
        self._task: asyncio.Task | None = None
        self.run = RunFolder(_data.find(self.output_dir.value))
        for control in (self.config, self.output_dir, self.num_gpus, self.seed, self.options, *self.data.values()):
            control.observe(self._on_setting, "value")
        self.start_button.on_click(lambda _: self._try(self._start))
        self.stop_button.on_click(lambda _: self._try(self._stop))
        self.resume_button.on_click(lambda _: self._try(self.run.resume))
        self._on_setting()
        self._watch()

    # -------------------------------------------------------------- what happens

    def words(self) -> list[str]:
        """The command that Start runs.

        Raises:
            LaunchError: options that cannot be read.
        """
        try:
            options = shlex.split(self.options.value)
        except ValueError as error:
            raise LaunchError(f"options: expected KEY VALUE pairs, found {self.options.value!r}: {error}") from error
        return train_command(
            self._short_path(self._configs[self.config.value]), self._short_path(self.run.path),
            num_gpus=self.num_gpus.value, seed=self.seed.value, options=options,
            data={key: self._short_path(_data.find(text.value)) for key, text in self.data.items() if text.value.strip()},
        )  # fmt: skip

    @staticmethod
    def _short_path(path: Path) -> str:
        """Relative to the repository, where the training runs, if it is inside; otherwise absolute."""
        path = path.absolute()
        with contextlib.suppress(ValueError):
            return str(path.relative_to(_data.project_root()))
        return str(path)

    def start(self) -> str:
        """Start the training; a run that is in the folder already, at work or ended, is found again and left as it is.

        Returns:
            The state.
        """
        if self.run.state() == "new":
            self._try(self._start)
        self.refresh()
        return self.run.state()

    def wait(self, seconds: float) -> str:
        """Wait until the training has ended, at most so long; the figure is kept up to date meanwhile.

        Returns:
            The state then.
        """
        deadline = time.monotonic() + seconds
        while self.run.state() in ALIVE and time.monotonic() < deadline:
            self.refresh()
            time.sleep(min(REFRESH_SECONDS, max(deadline - time.monotonic(), 0.05)))
        self.refresh()
        return self.run.state()

    def explain(self) -> str:
        """The state, or what went wrong, in a sentence."""
        return self._trouble or self.run.explain()

    def _start(self) -> None:
        self.run.start(self.words())

    def _stop(self) -> None:
        self.run.stop(at_once=self.run.state() == "stopping")

    def _try(self, action: Any) -> None:
        self._trouble = ""
        try:
            action()
        except LaunchError as error:
            self._trouble = _theme.sentence(error)
        self.refresh()
        self._watch()

    def _on_setting(self, _change: Any = None) -> None:
        self._trouble = ""
        folder = _data.find(self.output_dir.value.strip() or ".")
        if folder != self.run.path:
            self.run, self._drawn = RunFolder(folder), ()
        text = describe_config(self._configs[self.config.value])
        self.about.value = f'<div class="rio-view rio-quiet" style="white-space: pre-line">{html.escape(text)}</div>'
        try:
            if not self._configs[self.config.value].is_file():
                raise LaunchError(
                    f"config {self.config.value}: expected one of configs/ or a YAML file, found nothing there"
                )
            self._show_command(self.words())
        except LaunchError as error:
            self._trouble = _theme.sentence(error)
        self.refresh()
        self._watch()

    def _show_command(self, words: list[str]) -> None:
        text = f"cd {shlex.quote(str(_data.project_root()))}\n{shlex.join(words)}"
        self.command.value = f'<div class="rio-view"><div class="rio-command">{html.escape(text)}</div></div>'

    # -------------------------------------------------------------- what is shown

    def _watch(self) -> None:
        """Refresh while a training is alive. The kernel stays free: this runs between cells, on its event loop."""
        if self._task is not None and not self._task.done():
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # no kernel: a script calls refresh() itself
        self._task = loop.create_task(self._keep_watching())

    async def _keep_watching(self) -> None:
        while self.run.state() in (*ALIVE, "elsewhere"):
            self.refresh()
            await asyncio.sleep(REFRESH_SECONDS)
        self.refresh()

    def refresh(self) -> None:
        """Read the folder and show it."""
        state, table = self.run.state(), self.run.metrics()
        alive = state in ALIVE
        self.start_button.disabled = state != "new" or bool(self._trouble)
        self.stop_button.disabled = not alive
        self.stop_button.description = "Stop at once" if state == "stopping" else "Stop"
        self.resume_button.disabled = alive or state not in ("stopped", "failed") or not self.run.note()
        if state == "failed" and not (self.run.path / "last_checkpoint").exists():
            self.start_button.disabled, self.resume_button.disabled = False, True  # nothing to resume from: begin again
        self.status.value = self._status_html(state, table)
        last = self.run.settings().get("max_iter", 0)
        drawn = (str(self.run.path), len(table), last)
        if "total_loss" in table and table["total_loss"].notna().any() and drawn != self._drawn:
            buffer = io.BytesIO()
            draw_progress(table, last).savefig(buffer, format="png", dpi=180)
            self.figure.value, self._drawn = buffer.getvalue(), drawn
            self.figure.layout.display = None
        elif "total_loss" not in table:
            self.figure.layout.display = "none"

    def _status_html(self, state: str, table: pd.DataFrame) -> str:
        done, last = self.run.progress(table)
        parts = [f'<div class="rio-trouble">{html.escape(self._trouble)}</div>'] if self._trouble else []
        if state in ("failed", "stopped"):
            kind = "rio-trouble" if state == "failed" else "rio-quiet"
            parts.append(f'<div class="{kind}">{html.escape(self.run.explain())}</div>')
        elif state in ("stopping", "elsewhere", "new"):
            parts.append(f'<div class="rio-quiet">{html.escape(self.run.explain())}</div>')
        if last and state != "new":
            parts.append(f'<div class="rio-track"><div style="width:{100 * done / last:.1f}%"></div></div>')
        tiles = self._tiles(state, table, done, last)
        parts.append('<div class="rio-tiles">' + "".join(_tile(*tile) for tile in tiles) + "</div>")
        since = self.run.note().get("started")
        when = f"started {datetime.datetime.fromtimestamp(since):%d %b %H:%M}" if since and state != "new" else ""
        pid = self.run.pid()
        where = f"{when}{f' · process {pid}' if pid else ''} · {self._short_path(self.run.path)}"
        return (
            f'<div class="rio-view"><div class="rio-state"><span class="rio-pill {state}">{state}</span>'
            f'<span class="rio-quiet">{html.escape(where.strip(" ·"))}</span></div>{"".join(parts)}</div>'
        )

    def _tiles(self, state: str, table: pd.DataFrame, done: int, last: int) -> list[tuple[str, str]]:
        tiles: list[tuple[str, str]] = []
        if not len(table):
            return tiles

        def newest(column: str) -> float | None:
            known = table[column].dropna() if column in table else ()
            return float(known.iloc[-1]) if len(known) else None

        tiles.append((f"{done:,}" + (f" / {last:,}" if last else ""), "iterations"))
        pace, batch = newest("time"), self.run.settings().get("batch")
        if state == "training" and pace and last:
            tiles.append((_clock(pace * (last - done)), "left"))
        for column, label, form in (("total_loss", "loss", "{:.2f}"), ("lr", "learning rate", "{:.2g}")):
            value = newest(column)
            if value is not None:
                tiles.append((form.format(value), label))
        if pace and batch:
            tiles.append((f"{batch / pace:.1f}", "images/s"))
        memory = self.run.memory()
        if memory is not None:
            tiles.append((f"{memory[0]:.1f} GiB", memory[1]))
        fill, replayed = newest("memory_bank/fill"), newest("memory_bank/replayed_per_foreground")
        if fill is not None:
            tiles.append((f"{100 * fill:.0f}%", "bank filled"))
        if replayed is not None:
            tiles.append((f"{replayed:.2f}", "replayed / foreground RoI"))
        for column, label in (("bbox/AP", "box AP"), ("bbox/APr", "box APr"), ("segm/AP", "mask AP")):
            value = newest(column)
            if value is not None:
                tiles.append((f"{value:.1f}", label))
        return tiles


def _tile(value: str, label: str) -> str:
    return f'<div class="rio-tile"><div class="rio-value">{html.escape(value)}</div><div class="rio-label">{label}</div></div>'


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
