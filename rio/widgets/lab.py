"""The classifier lab: train classifiers on frozen features, and watch their AP by frequency group grow side by side."""

from __future__ import annotations

import asyncio
import contextlib
import html
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rio import plots
from rio.data import names
from rio.study.process import ALIVE, LaunchError, Training, train_command
from rio.widgets import theme

REFRESH_SECONDS = 2.0
METRICS = ("AP", "APr", "APc", "APf")
SAMPLING = {"none": ("none", False), "bank": ("none", True), "rfs": ("rfs", False), "rfs+bank": ("rfs", True)}
CLASSIFIERS = ("linear", "cosine")
LOSSES = (
    "softmax", "sigmoid", "federated", "eql", "eqlv2", "seesaw", "balanced_softmax", "bags", "ecm", "gumbel", "droploss",
)  # fmt: skip


def read_features(folder: Path) -> dict:
    """features.json of a finished folder of features.

    Raises:
        LaunchError: none there, or some images are missing.
    """
    fix = f"Fix: python -m rio features --weights WEIGHTS --output {folder}"
    try:
        about = json.loads((folder / "features.json").read_bytes())
        sets = about["sets"]
        missing = sum(int((np.load(folder / s["folder"] / "counts.npy") < 0).sum()) for s in sets.values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LaunchError(f"features {folder}: expected a folder with features.json, found none. {fix}") from error
    if "train" not in sets or len(sets) < 2 or missing:
        found = f"{len(sets)} sets, {missing} images missing"
        raise LaunchError(f"features {folder}: expected a training and a test set, complete, found {found}. {fix}")
    return about


class ClassifierLab(ipywidgets.VBox):
    """Choose arms, train each as a process of its own, and compare them with the earlier ones.

    Args:
        features: folder from `python -m rio features`.
        output_dir: a folder per run goes here; runs that are there are shown.
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
        self._config, self._options = names.find(config), [str(word) for word in options]
        self.features = ipywidgets.Text(value=os.fspath(features), description="features", continuous_update=False)
        self.output_dir = names.find(output_dir)
        self.sampling = ipywidgets.SelectMultiple(options=list(SAMPLING), value=["none", "rfs"], description="sampling")
        self.classifiers = ipywidgets.SelectMultiple(options=CLASSIFIERS, value=["linear"], description="classifier")
        self.losses = ipywidgets.SelectMultiple(options=LOSSES, value=["softmax"], description="loss")
        self.epochs = ipywidgets.BoundedFloatText(value=5, min=0.01, max=1000, description="epochs")
        self.threshold = ipywidgets.BoundedFloatText(value=0.03, min=1e-6, max=1, description="threshold")
        self.rate = ipywidgets.BoundedFloatText(value=0.1, min=1e-6, max=10, description="learning rate")
        self.train_button = ipywidgets.Button(description="Train", icon="play", button_style="success")
        self.stop_button = ipywidgets.Button(description="Stop", icon="stop", button_style="warning")
        self.status, self.figure = ipywidgets.HTML(), ipywidgets.Image(format="png", layout={"display": "none"})
        form = [self.features, self.sampling, self.classifiers, self.losses, self.epochs, self.threshold, self.rate]
        box = ipywidgets.HBox(form, layout={"flex_flow": "row wrap"})
        super().__init__([box, ipywidgets.HBox([self.train_button, self.stop_button]), self.status, self.figure])
        self.trouble, self.queue, self.watching = "", [], None
        self.train_button.on_click(lambda _: self.train())
        self.stop_button.on_click(lambda _: self.stop())
        self.refresh()

    def commands(self) -> dict[str, list[str]]:
        """Name of a run -> the command that trains it.

        Raises:
            LaunchError: no features there, or unfinished ones.
        """
        folder = names.find(self.features.value)
        sets = read_features(folder)["sets"]
        batch, epochs, rate, t = 16, self.epochs.value, self.rate.value, self.threshold.value
        images = int(sets["train"]["fingerprint"].split()[0])
        steps, tests = max(round(images * epochs / batch), 1), tuple(s["data"] for k, s in sets.items() if k != "train")
        found = {}
        for arm in ((s, c, x) for s in self.sampling.value for c in self.classifiers.value for x in self.losses.value):
            (sampler, bank), classifier, loss = SAMPLING[arm[0]], *arm[1:]
            values = {
                "MODEL.RIO.FEATURES": folder, "MODEL.RIO.SAMPLER": sampler, "MODEL.RIO.BANK_ENABLED": bank,
                "MODEL.RIO.CLASSIFIER": classifier, "MODEL.RIO.CLS_LOSS": loss, "DATALOADER.REPEAT_THRESHOLD": t,
                "SOLVER.BASE_LR": rate, "SOLVER.MAX_ITER": steps, "SOLVER.IMS_PER_BATCH": batch,
                "SOLVER.WARMUP_ITERS": max(steps // 10, 1), "TEST.EVAL_PERIOD": max(steps // 8, 1),
                "DATASETS.TRAIN": (sets["train"]["data"],), "DATASETS.TEST": tests,
            }  # fmt: skip
            name = f"{arm[0]} {loss} {epochs:g}ep lr{rate:g} t{t:g}-{classifier}"
            words = [str(word) for pair in values.items() for word in pair]
            found[name] = train_command(self._config, self.output_dir / name, options=[*words, *self._options])
        return found

    def runs(self) -> dict[str, Training]:
        """The runs in the folder, by name."""
        found = self.output_dir.iterdir() if self.output_dir.is_dir() else ()
        return {path.name: Training(path) for path in sorted(found) if (path / "run.json").is_file()}

    def train(self) -> None:
        """Train every chosen arm that is not in the folder yet, as many at once as there are cores."""
        self.trouble = ""
        try:
            known = self.runs().keys() | dict(self.queue).keys()
            self.queue += [(name, words) for name, words in self.commands().items() if name not in known]
        except LaunchError as error:
            self.trouble = theme.sentence(error)
        self.refresh()
        with contextlib.suppress(RuntimeError):  # no kernel: a script calls refresh() itself
            if self.watching is None or self.watching.done():
                self.watching = asyncio.get_running_loop().create_task(self._watch())

    def stop(self) -> None:
        """Stop all trainings; what waits is not started."""
        self.queue.clear()
        for run in self.runs().values():
            if run.pid() is not None:
                run.stop()
        self.refresh()

    def is_busy(self) -> bool:
        """Whether something trains or waits."""
        return bool(self.queue) or any(run.state() in ALIVE for run in self.runs().values())

    async def _watch(self) -> None:
        while self.is_busy():
            self.refresh()
            await asyncio.sleep(REFRESH_SECONDS)
        self.refresh()

    def curves(self) -> pd.DataFrame:
        """A row per run and evaluation: arm, seed, epoch, AP, APr, APc, APf (percent)."""
        parts = []
        for name, run in self.runs().items():
            table = run.metrics().reindex(columns=["iteration", *(f"bbox/{m}" for m in METRICS)]).dropna(thresh=2)
            table = table.rename(columns=lambda column: column.removeprefix("bbox/"))
            epochs = float(name.split("ep lr")[0].rsplit(" ", 1)[-1]) if "ep lr" in name else 1.0
            last = run.progress().max_iter or 1
            parts.append(table.assign(arm=name, seed=0, epoch=(table["iteration"] + 1) / last * epochs))
        return pd.concat(parts or [pd.DataFrame()]).reindex(columns=["arm", "seed", "epoch", *METRICS])

    def refresh(self) -> None:
        """Start what waits, read the folder and show it."""
        runs = self.runs()
        try:
            while self.queue and sum(run.state() in ALIVE for run in runs.values()) < (os.cpu_count() or 1):
                name, words = self.queue.pop(0)
                runs[name] = Training(self.output_dir / name)
                runs[name].start(words, cwd=names.project_root(), environment={"OMP_NUM_THREADS": "1"})
        except LaunchError as error:
            self.trouble = theme.sentence(error)
            self.queue.clear()
        table = self.curves()
        last = table.groupby("arm").last().reindex(runs)
        rows = [[n, runs[n].explain(), *(f"{last.at[n, m]:.1f}".replace("nan", "–") for m in METRICS)] for n in runs]
        shown = theme.html_table(["run", "state", *METRICS], rows) if rows else theme.status("No run yet.")
        trouble = f'<div class="rio-trouble">{html.escape(self.trouble)}</div>' if self.trouble else ""
        self.status.value = trouble + shown
        self.figure.layout.display = "none" if table.empty else None
        if len(table):
            with plots.style():
                figure = Figure(figsize=(10, 6.6), layout="constrained")
                for ax, metric in zip(figure.subplots(2, 2).flat, METRICS, strict=True):
                    if table[metric].notna().any():
                        plots.study_curves(table, ax, metric=metric)
                buffer = io.BytesIO()
                figure.savefig(buffer, format="png", dpi=150)
            self.figure.value = buffer.getvalue()
