"""The training panel of notebook 03: choose, start, watch, stop, resume a training, and find it again."""

import asyncio
import contextlib
import datetime
import html
import itertools
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from rio import plots
from rio.data import names
from rio.study.process import ALIVE, LaunchError, Training, train_command
from rio.widgets import theme
from rio.widgets.watch import Watch

REFRESH_SECONDS = 2.0
FINISHED = (
    "Finished: notebook 04 compares this run with others, notebook 05 shows what it finds and misses. For another run "
    "name another folder; to train longer, run the command with --resume and a larger SOLVER.MAX_ITER."
)
STYLE = (theme.FOLDER / "training.css").read_text(encoding="utf-8")
# Columns of metrics.json, what they are called, their formats; and those of them that have a small figure.
COLUMNS = {
    "total_loss": ("loss", "{:.2f}"),
    "lr": ("learning rate", "{:.2g}"),
    "memory_bank/fill": ("bank filled", "{:.0%}"),
    "memory_bank/replayed_per_foreground": ("replayed / foreground RoI", "{:.2f}"),
    "bbox/AP": ("box AP", "{:.1f}"),
    "bbox/APr": ("box APr", "{:.1f}"),
    "segm/AP": ("mask AP", "{:.1f}"),
}
SMALL = ("lr", "memory_bank/fill", "memory_bank/replayed_per_foreground", "bbox/AP")
BUTTONS = {  # name -> icon, look, tip
    "Start": ("play", "success", "Begins a new run"),
    "Stop": ("stop", "warning", "Saves a checkpoint first"),
    "Resume": ("forward", "info", "Continues from the last checkpoint"),
}


def find_configs() -> dict[str, Path]:
    """The project's training configs: name ("shapes/demo") -> file."""
    root = names.project_root() / "configs"
    files = sorted(p for p in root.rglob("*.yaml") if p.parent.name not in ("base", "studies"))
    return {str(p.relative_to(root).with_suffix("")): p for p in files}


def describe_config(file: Path) -> str:
    """The comment that a config opens with: what it is, hours, expected AP."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = itertools.takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
        return "\n".join(line.lstrip("# ").rstrip() for line in lines)
    return ""


def count_gpus() -> int:
    """NVIDIA GPUs of this machine, without importing torch; 0 if none can be seen."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return sum(part.strip() not in ("", "-1") for part in visible.split(","))
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
        return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
    return 0


def draw_progress(table: pd.DataFrame, max_iter: int = 0) -> Figure:
    """Loss curves, and beside them learning rate, bank fill and replay, as far as the rows have them.

    Args:
        table: from `RunFolder.metrics`.
        max_iter: right end of the axes; 0: the last row.

    Raises:
        PlotError: no loss in the rows.
    """
    small = [column for column in SMALL if column in table and table[column].notna().any()]
    right = max_iter if max_iter > 1 else None
    with plots.style():
        figure = Figure(figsize=(9.8, 3.3), layout="constrained")
        grid = figure.add_gridspec(max(len(small), 1), 2, width_ratios=[2.3, 1])
        left = figure.add_subplot(grid[:, 0] if small else grid[:, :])
        plots.loss_curves(table, left)
        if right:
            left.set_xlim(0, right)
        for row, column in enumerate(small):
            ax, values = figure.add_subplot(grid[row, 1]), table.set_index("iteration")[column].dropna()
            ax.plot(values, color=plots.LINE_COLORS[0], marker="o" if len(values) == 1 else None, markersize=4)
            ax.fill_between(values.index, values, color=plots.LINE_COLORS[0], alpha=0.1, linewidth=0)
            title = f"{COLUMNS[column][0]}  {values.iloc[-1]:.3g}"
            ax.set_title(title, fontsize=8.5, fontweight="normal", pad=3)
            ax.set(xlim=(0, right), ylim=(0, max(float(values.max()) * 1.15, 1e-9)))
            ax.yaxis.set_major_locator(MaxNLocator(2))
            ax.tick_params(labelbottom=row == len(small) - 1, labelsize=7.5)
    return figure


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
        self._configs, given = find_configs(), os.fspath(config)
        if given not in self._configs:
            self._configs = {given: names.find(given), **self._configs}
        gpus = count_gpus()

        def made(kind: type[ipywidgets.Widget], width: int, **words: Any) -> Any:
            return kind(style={"description_width": "92px"}, layout={"width": f"{width}px"}, **words)

        def text(width: int, **words: Any) -> ipywidgets.Text:
            return made(ipywidgets.Text, width, continuous_update=False, **words)

        self.config = made(ipywidgets.Dropdown, 330, options=list(self._configs), value=given, description="config")
        self.output_dir = text(330, value=os.fspath(output_dir), description="folder")
        self.num_gpus = made(
            ipywidgets.BoundedIntText, 170, value=num_gpus or max(gpus, 1), min=1, max=max(gpus, num_gpus or 1),
            description="GPUs" if gpus else "GPUs (none)", disabled=not gpus,
        )  # fmt: skip
        self.seed = made(ipywidgets.BoundedIntText, 190, value=seed, min=0, max=2**31 - 1, description="seed")
        options = shlex.join(map(str, options))
        self.options = text(520, value=options, description="options", placeholder="KEY VALUE ...")
        self.data = {
            key: text(430, value=(data or {}).get(key, ""), description=key.replace("_", " "), placeholder=what)
            for split in ("train", "val")
            for key, what in ((f"{split}_json", "file.json"), (f"{split}_images", "folder"))
        }
        fields = ipywidgets.HBox(list(self.data.values()), layout={"flex_flow": "row wrap"})
        titles, opened = ("Your own data (LVIS or COCO format)",), 0 if data else None
        own = ipywidgets.Accordion([fields], titles=titles, selected_index=opened)
        self.about, self.command, self.status = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.figure = ipywidgets.HTML(layout={"display": "none"})
        self.start_button, self.stop_button, self.resume_button = buttons = [
            ipywidgets.Button(description=name, icon=icon, button_style=look, tooltip=tip, layout={"width": "110px"})
            for name, (icon, look, tip) in BUTTONS.items()
        ]
        controls = [self.config, self.output_dir, self.num_gpus, self.seed, self.options]
        style = ipywidgets.HTML(f'<div class="rio-view"><style>{theme.STYLE}{STYLE}</style></div>')
        form, row = ipywidgets.HBox(controls).add_class("rio-form"), ipywidgets.HBox(buttons)
        super().__init__([style, form, own, self.about, self.command, row, self.status, self.figure])
        self.add_class("rio-training")
        self._trouble, self._drawn = "", ()
        self.watching: asyncio.Task | None = None
        self.run = Training(names.find(self.output_dir.value))
        for control in (*controls, *self.data.values()):
            control.observe(self._on_setting, "value")
        stop = lambda: self.run.stop(at_once=self.run.state() == "stopping")  # noqa: E731
        for button, action in zip(buttons, (self._start, stop, lambda: self.run.resume()), strict=True):
            button.on_click(lambda _, action=action: self._try(action))
        self._on_setting()

    def words(self) -> list[str]:
        """The command that Start runs.

        Raises:
            LaunchError: a config that is not there, or options that cannot be read.
        """
        config = self._configs[self.config.value]
        if not config.is_file():
            expected = "expected one of configs/ or a YAML file, found nothing there"
            raise LaunchError(f"config {self.config.value}: {expected}")
        try:
            options = shlex.split(self.options.value)
        except ValueError as error:
            raise LaunchError(f"options: expected KEY VALUE pairs, found {self.options.value!r}: {error}") from error
        data = {key: _short(names.find(text.value)) for key, text in self.data.items() if text.value.strip()}
        choices = {"num_gpus": self.num_gpus.value, "seed": self.seed.value, "data": data, "options": options}
        return train_command(_short(config), _short(self.run.path), **choices)

    def start(self) -> str:
        """Start the training, and return its state; a run that is in the folder already is left as it is."""
        if self.run.state() == "new":
            self._try(self._start)
        self.refresh()
        return self.run.state()

    def beside(self, *folders: str | os.PathLike[str]) -> Watch:
        """Curves of this run and others over their iterations, kept up to date while any of them trains.

        Args:
            folders: of the other runs.
        """
        return Watch(list(dict.fromkeys([self.run.path, *map(names.find, folders)])))

    def wait(self, seconds: float) -> str:
        """Wait until the training has ended, at most `seconds`, and return its state; the figure is kept up to date."""
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
        self.run.start(self.words(), cwd=names.project_root())

    def _try(self, action: Callable[[], Any]) -> None:
        """Do it; an error becomes a sentence on the panel."""
        self._trouble = ""
        try:
            action()
        except LaunchError as error:
            self._trouble = theme.sentence(error)
        self.refresh()
        self._watch()

    def _on_setting(self, _change: Any = None) -> None:
        folder = names.find(self.output_dir.value.strip() or ".")
        if folder != self.run.path:
            self.run, self._drawn = Training(folder), ()
        text = html.escape(describe_config(self._configs[self.config.value]))
        self.about.value = f'<div class="rio-view rio-quiet" style="white-space: pre-line">{text}</div>'
        self._try(self._show_command)

    def _show_command(self) -> None:
        text = html.escape(f"cd {shlex.quote(str(names.project_root()))}\n{shlex.join(self.words())}")
        self.command.value = f'<div class="rio-view"><div class="rio-command">{text}</div></div>'

    def _watch(self) -> None:
        """Refresh while a training is alive, on the kernel's event loop: between cells, so the kernel stays free."""
        with contextlib.suppress(RuntimeError):  # no kernel: a script calls refresh() itself
            loop = asyncio.get_running_loop()
            if self.watching is None or self.watching.done():
                self.watching = loop.create_task(self._keep_watching())

    async def _keep_watching(self) -> None:
        while self.run.state() in (*ALIVE, "elsewhere"):
            self.refresh()
            await asyncio.sleep(REFRESH_SECONDS)
        self.refresh()

    def refresh(self) -> None:
        """Read the folder and show it."""
        state, table = self.run.state(), self.run.metrics()
        begin_again = state == "failed" and not (self.run.path / "last_checkpoint").exists()
        self.start_button.disabled = not begin_again and (state != "new" or bool(self._trouble))
        self.stop_button.disabled = state not in ALIVE
        self.stop_button.description = "Stop at once" if state == "stopping" else "Stop"
        self.resume_button.disabled = state not in ("stopped", "failed") or begin_again or not self.run.note()
        self.status.value = self._status_html(state, table)
        last = self.run.progress().max_iter
        drawn = (str(self.run.path), len(table), last)
        has_loss = "total_loss" in table and table["total_loss"].notna().any()
        self.figure.layout.display = None if has_loss else "none"
        if has_loss and drawn != self._drawn:
            self.figure.value, self._drawn = plots.inline_svg(draw_progress(table, last)), drawn

    def _status_html(self, state: str, table: pd.DataFrame) -> str:
        done, last, *_ = self.run.progress()
        said = [("trouble", self._trouble)] if self._trouble else []
        if state in ("failed", "stopped", "stopping", "elsewhere", "new"):
            said.append(("trouble" if state == "failed" else "quiet", self.run.explain()))
        if state == "finished":
            said.append(("quiet", FINISHED))
        if 0 < last <= (warmup := self.run.setting("SOLVER.WARMUP_ITERS", 0)):
            text = f"Warm-up is as long as the run or longer ({warmup} of {last} iterations): the learning rate never "
            said.append(("trouble", text + "reaches SOLVER.BASE_LR. Lower SOLVER.WARMUP_ITERS."))
        parts = [f'<div class="rio-{kind}">{html.escape(text)}</div>' for kind, text in said]
        if last and state != "new":
            parts.append(f'<div class="rio-track"><div style="width:{100 * done / last:.1f}%"></div></div>')
        since, pid = self.run.note().get("started"), self.run.pid()
        where = [f"started {datetime.datetime.fromtimestamp(since):%d %b %H:%M}"] if since and state != "new" else []
        where += [f"process {pid}"] if pid else []
        parts.append(theme.tiles(self._tiles(state, table), " · ".join([*where, _short(self.run.path)])))
        pill = f'<div class="rio-state"><span class="rio-pill {state}">{state}</span></div>'
        return f'<div class="rio-view">{pill}{"".join(parts)}</div>'

    def _tiles(self, state: str, table: pd.DataFrame) -> list[tuple[str, str]]:
        """(value, label) of everything that is known."""
        if table.empty:
            return []
        done, last, _, pace = self.run.progress()
        tiles = [(f"{done:,}" + (f" / {last:,}" if last else ""), "iterations")]
        if state == "training" and pace and last:
            tiles.append((tqdm.format_interval(pace * (last - done)), "left"))
        if pace and (batch := self.run.setting("SOLVER.IMS_PER_BATCH")):
            tiles.append((f"{batch / pace:.1f}", "images/s"))
        if memory := self.run.memory():
            tiles.append((f"{memory[0]:.1f} GiB", memory[1]))
        known = table.reindex(columns=COLUMNS).ffill().iloc[-1].dropna()
        return tiles + [(COLUMNS[name][1].format(value), COLUMNS[name][0]) for name, value in known.items()]


def _short(path: Path) -> str:
    """Relative to the repository, where the training runs, if it is inside; otherwise absolute."""
    path, root = path.absolute(), names.project_root()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
