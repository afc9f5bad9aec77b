"""The classifier lab: train classifiers on frozen features, and watch their AP by frequency group grow side by side."""

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure

from rio import plots
from rio.analysis.runs import REPORTED
from rio.data import names
from rio.results.evaluation import GROUP_METRICS
from rio.study.process import ALIVE, LaunchError, Training, train_command
from rio.widgets import theme

REFRESH_SECONDS = 2.0
SAMPLING = {"none": ("none", False), "bank": ("none", True), "rfs": ("rfs", False), "rfs+bank": ("rfs", True)}
CLASSIFIERS = {"linear": 1.0, "cosine": 0.3}  # times the learning rate, as in configs/studies/demo.yaml
LOSSES = [
    "softmax", "sigmoid", "federated", "eql", "eqlv2", "seesaw", "balanced_softmax", "bags", "ecm", "gumbel",
    "droploss",
]  # fmt: skip
EVALUATIONS = 8  # of a training, evenly


class ClassifierLab(ipywidgets.VBox):
    """Choose arms, train each as a process of its own, and compare them with all earlier ones on the same features.

    Args:
        features: folder from `python -m rio features`. If the default one is missing, *Train* makes it first, as
            `make demo` does: a detector of the embedded tail set and its features, some minutes.
        output_dir: gets a folder per run; runs that are there are shown.
        config: name of a project config, or path of a YAML file.
        options: KEY, VALUE, ... for every arm.
    """

    def __init__(
        self,
        features: str | os.PathLike[str] = "output/demo/features",
        output_dir: str | os.PathLike[str] = "output/lab",
        *,
        config: str | os.PathLike[str] = "configs/shapes/tail_features.yaml",
        options: Sequence[str] = (),
    ):
        self._folder, self._root, self._config = names.find(features), names.find(output_dir), names.find(config)
        self._options, self._queue, self._drawn = [str(word) for word in options], {}, None
        self._making, self._waits = Training(self._folder.parent / "making_features"), False
        self.trouble = ""  # the last error, in a sentence

        def many(options: Sequence[str], chosen: Sequence[str], what: str) -> ipywidgets.SelectMultiple:
            look = {"layout": {"width": "210px"}, "style": {"description_width": "64px"}}
            return ipywidgets.SelectMultiple(options=options, value=chosen, description=what, rows=5, **look)

        def number(value: float, most: float, what: str) -> ipywidgets.BoundedFloatText:
            look = {"layout": {"width": "200px"}, "style": {"description_width": "100px"}}
            return ipywidgets.BoundedFloatText(value=value, min=1e-6, max=most, description=what, **look)

        self.sampling = many(list(SAMPLING), ["none", "rfs"], "sampling")
        self.classifiers = many(list(CLASSIFIERS), ["linear"], "classifier")
        self.losses = many(LOSSES, ["softmax"], "loss")
        self.epochs = number(25, 1000, "epochs")
        self.threshold, self.rate = number(0.03, 1, "threshold t"), number(0.1, 10, "learning rate")
        buttons = [ipywidgets.Button(description=text, icon=icon, button_style=look)
                   for text, icon, look in (("Train", "play", "success"), ("Stop", "stop", "warning"))]  # fmt: skip
        buttons[0].on_click(lambda _: self.train())
        buttons[1].on_click(lambda _: self.stop())
        self.status, self.figure = ipywidgets.HTML(), ipywidgets.HTML(layout={"display": "none"})
        column = ipywidgets.VBox([self.epochs, self.threshold, self.rate, ipywidgets.HBox(buttons)])
        form = ipywidgets.HBox([self.sampling, self.classifiers, self.losses, column], layout={"flex_flow": "row wrap"})
        super().__init__([form, self.status, self.figure])
        self._watching: asyncio.Task[None] | None = None
        self.refresh()

    def about(self) -> dict[str, Any]:
        """features.json: which detector and data sets the features are of.

        Raises:
            LaunchError: no features there.
        """
        try:
            return json.loads((self._folder / "features.json").read_bytes())
        except (OSError, ValueError) as error:
            raise LaunchError(
                f"features {self._folder}: expected a folder with features.json, found none. Fix: `make demo` makes "
                f"the default ones, `python -m rio features --weights PTH --output {self._folder}` those of a detector"
            ) from error

    @property
    def folder(self) -> Path:
        """Of the runs on these features."""
        return self._root / str(self.about()["sha256"])[:8]

    def commands(self) -> dict[str, list[str]]:
        """Name of a run -> the command that trains it, for every combination chosen."""
        sets, batch = self.about()["sets"], 16
        steps = max(round(sets["train"]["images"] * self.epochs.value / batch), 1)
        shared = {
            "MODEL.RIO.FEATURES": self._folder.absolute(),
            "DATASETS.TRAIN": (sets["train"]["data"],),
            "DATASETS.TEST": tuple(one["data"] for key, one in sets.items() if key != "train")[:1],
            "DATALOADER.REPEAT_THRESHOLD": self.threshold.value,
            "SOLVER.MAX_ITER": steps,
            "SOLVER.IMS_PER_BATCH": batch,
            "SOLVER.WARMUP_ITERS": max(min(steps // 10, 100), 1),
            "TEST.EVAL_PERIOD": max(steps // EVALUATIONS, 1),
        }
        found = {}
        for arm, loss, head in itertools.product(self.sampling.value, self.losses.value, self.classifiers.value):
            sampler, bank = SAMPLING[arm]
            own = {"SAMPLER": sampler, "BANK_ENABLED": bank, "CLASSIFIER": head, "CLS_LOSS": loss}
            own = {f"MODEL.RIO.{key}": value for key, value in own.items()}
            own["SOLVER.BASE_LR"] = self.rate.value * CLASSIFIERS[head]
            words = [str(word) for pair in (shared | own).items() for word in pair]
            name = f"{arm} {loss} {self.epochs.value:g}ep lr{self.rate.value:g} t{self.threshold.value:g}-{head}"
            found[name] = train_command(self._config, self.folder / name, options=[*words, *self._options])
        return found

    def runs(self) -> dict[str, Training]:
        """The runs on these features, by name, in the order in which they were begun."""
        with contextlib.suppress(LaunchError, OSError):
            found = [Training(path) for path in self.folder.iterdir() if (path / "run.json").is_file()]
            return {run.path.name: run for run in sorted(found, key=lambda run: run.note().get("started", 0.0))}
        return {}

    def train(self) -> None:
        """Train every chosen arm that is not there yet, as many at once as there are cores; stopped ones resume."""
        self.trouble = ""
        with self._errors():
            self._waits = self._waits or self._make_features()
            runs, commands = self.runs(), {} if self._waits else self.commands()  # refresh() comes back here
            for name, words in commands.items():
                if name not in runs:
                    self._queue[name] = words
                elif runs[name].state() == "stopped":
                    runs[name].resume()
        self.refresh()
        with contextlib.suppress(RuntimeError):  # no kernel: whoever called calls refresh() too
            if self._watching is None or self._watching.done():
                self._watching = asyncio.get_running_loop().create_task(self._watch())

    def _make_features(self) -> bool:
        """Start making the embedded set's features, if these are asked for and missing; True if so."""
        default = self._folder.name == "features" and self._config.name == "tail_features.yaml"
        if not default or (self._folder / "features.json").is_file():
            return False
        command = [sys.executable, "-m", "rio", "demo", "--features-only", "--output-dir", str(self._folder.parent)]
        self._making.start(command, cwd=names.project_root())
        return True

    def stop(self) -> None:
        """Stop all trainings, each after a checkpoint; what waits is not started."""
        self._queue.clear()
        self._waits = False
        for run in [self._making, *self.runs().values()]:
            with contextlib.suppress(LaunchError):  # it has ended
                run.stop()
        self.refresh()

    def is_busy(self) -> bool:
        """Whether something trains or waits."""
        return self._waits or bool(self._queue) or any(run.state() in ALIVE for run in self.runs().values())

    async def _watch(self) -> None:
        while self.is_busy():
            self.refresh()
            await asyncio.sleep(REFRESH_SECONDS)
        self.refresh()

    @contextlib.contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except (LaunchError, OSError, KeyError, TypeError) as error:
            self.trouble = theme.sentence(error)
            self._queue.clear()

    def curves(self) -> pd.DataFrame:
        """A row per run and evaluation: arm, seed, epoch, AP, APr, APc, APf (percent)."""
        parts, runs = [], self.runs()
        images = self.about()["sets"]["train"]["images"] if runs else 0
        for name, run in runs.items():
            table = run.metrics().reindex(columns=["iteration", *(f"bbox/{m}" for m in GROUP_METRICS)]).dropna(thresh=2)
            shown = (table["iteration"] + 1) * run.setting("SOLVER.IMS_PER_BATCH", 16)
            table = table.rename(columns=lambda column: column.removeprefix("bbox/"))
            parts.append(table.assign(arm=name, seed=0, epoch=shown / images))
        return pd.concat(parts or [pd.DataFrame()]).reindex(columns=["arm", "seed", "epoch", *GROUP_METRICS])

    def _reported(self) -> list[list[str]]:
        """Published box AP on the test set, for LVIS."""
        with contextlib.suppress(LaunchError):
            tests = {one["data"] for key, one in self.about()["sets"].items() if key != "train"}
            rows = [row for row in REPORTED if row[0] in tests and row[1] == "bbox"]
            return [[row[2], "reported", *("–" if v is None else f"{v:.1f}" for v in row[3:])] for row in rows]
        return []

    def refresh(self) -> None:
        """Start what waits, read the folder and show it."""
        if self._waits and self._making.pid() is None:
            self._waits = False
            if (self._folder / "features.json").is_file():
                return self.train()
            self.trouble = self._making.explain()
        runs = self.runs()
        with self._errors():
            while self._queue and sum(run.state() in ALIVE for run in runs.values()) < (os.cpu_count() or 1):
                name = next(iter(self._queue))
                runs[name] = Training(self.folder / name)
                one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
                runs[name].start(self._queue.pop(name), cwd=names.project_root(), environment=one_thread)
        table = self.curves()
        last = table.groupby("arm").last().reindex(runs)
        rows = [
            [n, runs[n].explain(), *(f"{last.at[n, m]:.1f}".replace("nan", "–") for m in GROUP_METRICS)] for n in runs
        ]
        if self._waits:
            detector = Training(self._folder.parent / "detector" / "none-seed1").progress()
            step = f"iteration {detector.iteration:,} of {detector.max_iter:,}" if detector.iteration else "starting"
            kept = "" if detector.iteration < (detector.max_iter or 1) else "; keeping its features"
            rows.append(["the detector that the features are of", step + kept, *"––––"])
        rows += [[name, "waits", *"––––"] for name in self._queue] + self._reported()
        shown = theme.html_table(["run", "state", *GROUP_METRICS], rows) if rows else theme.status("No run yet.")
        self.status.value = (theme.notice(self.trouble) if self.trouble else "") + shown
        if len(table) and self._drawn != (drawn := (len(runs), len(table))):
            self._drawn, self.figure.layout.display = drawn, None
            self.figure.value = _draw(table)


def _draw(table: pd.DataFrame) -> str:
    """AP of every group against epochs, as SVG."""
    table = table.assign(arm=table["arm"].str.replace(" softmax", ""))
    with plots.style():
        figure = Figure(figsize=(11, 7), layout="constrained")
        for ax, metric in zip(figure.subplots(2, 2).flat, GROUP_METRICS, strict=True):
            if table[metric].notna().any():
                plots.study_curves(table, ax, metric=metric)
    return plots.inline_svg(figure)
