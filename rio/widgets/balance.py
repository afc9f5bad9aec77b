"""Image level or object level, to play with: `rio.analysis.arms` with sliders."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import traitlets

from rio import plots
from rio.analysis import arms
from rio.analysis.arms import CLASS_AWARE, IRFS, NONE, RFS, RFS_BANK, Arms, Settings
from rio.analysis.gradients import gradient_balance
from rio.analysis.run_folder import RunFolder
from rio.data.annotations import GROUP_NAMES
from rio.data.names import find
from rio.widgets import theme
from rio.widgets.dataset import Data

COLORS = {NONE: "var(--quiet)"} | plots.ARM_COLORS
DASHES = {IRFS: "6 3", CLASS_AWARE: "2 3"}
LEVELS = plots.LEVEL_NAMES
FEATURE_DIM = 1024
MOST_CATEGORIES, BINS = 200, 60  # more categories than that are shown in bins


class Balance(Arms):
    """`rio.analysis.arms.Arms` for notebooks: what training would see, with sliders. Made by `compare_sampling`."""

    source = "assumed"  # where rois_per_instance is from
    disagreement = staticmethod(arms.disagreement)
    gradients = theme.sentences(gradient_balance)

    def panel(self) -> Panel:
        """Sliders for threshold, slots and replay, the exposures of every category, and the measures of imbalance."""
        return Panel(self)

    def _repr_html_(self) -> str:
        s = self.settings
        return theme.status(
            f"threshold {s.repeat_threshold:g} · batches of {s.batch_size} images · the bank stores "
            f"{len(self.target_class_ids()):,} categories with at most {s.max_image_count} images, {s.slots_per_class} "
            f"slots each, and replays {s.replay_per_class} for each in the batch · {s.rois_per_instance:.2g} RoIs an "
            f"object ({self.source}), at most {s.foreground_per_image:g} an image"
        )


@theme.sentences
def compare_sampling(
    data: Data, *, run: str | os.PathLike[str] | None = None, **settings: float | int | None
) -> Balance:
    """What training would see of a data set under each way of resampling.

    Args:
        data: the training set, from `open_dataset`.
        run: folder of a run on this training set: foreground RoIs an object as logged there, in place of an assumed 8.
        **settings: fields of `rio.analysis.arms.Settings` that differ from the usual ones; None stands for the usual.

    Raises:
        NotebookError: a setting that does not exist or is out of range.
    """
    logged = RunFolder(find(run)).metrics().get("roi_head/num_fg_samples") if run is not None else None
    fits = logged is not None and data.name in RunFolder(find(run)).datasets("TRAIN") and logged.notna().any()
    if measured := fits and arms.rois_per_instance(data.annotations, [float(logged.mean())]):
        settings = {"rois_per_instance": measured} | settings
    balance = Balance(data.annotations, embedded=data.embedded, **settings)
    balance.source = f"as {run} logged" if measured else "assumed"
    return balance


class Lines(anywidget.AnyWidget):
    """A chart of lines, bars or points with hover; `spec` as chart.js documents it."""

    _esm = (theme.FOLDER / "chart.js").read_text("utf-8") + (theme.FOLDER / "lines.js").read_text("utf-8")
    _css = theme.STYLE
    spec = traitlets.Dict().tag(sync=True)


class Panel(ipywidgets.VBox):
    """The controls of `Balance.panel` and what they change."""

    def __init__(self, balance: Balance) -> None:
        self._balance, s, a = balance, balance.settings, balance.annotations
        # If a move takes long to compute, only the end of a drag counts.
        common: dict[str, Any] = {"continuous_update": a.num_annotations < 100_000}
        common |= {"style": {"description_width": "128px"}, "layout": {"width": "420px"}}
        self.threshold = ipywidgets.FloatLogSlider(
            s.repeat_threshold, min=np.floor(np.log10(1 / a.num_images) * 4) / 4, max=0, step=0.05,
            description="repeat threshold", readout_format=".4g", **common,
        )  # fmt: skip
        self.replay = ipywidgets.IntSlider(s.replay_per_class, 0, 60, description="replay per class", **common)
        self.slots = ipywidgets.IntSlider(s.slots_per_class, 1, 120, description="slots per class", **common)
        self.targets = ipywidgets.IntSlider(s.max_image_count, 0, 200, description="bank: images up to", **common)
        levels = [(LEVELS[level], level) for level in ("rois", "instances", "images")]
        self.level = ipywidgets.ToggleButtons(options=levels, value="rois", style={"button_width": "84px"})
        self.chart, self.measures, self.status = Lines(), ipywidgets.HTML(), ipywidgets.HTML()
        controls = [self.threshold, self.replay, self.targets, self.slots]
        columns = [ipywidgets.VBox(controls[:2]), ipywidgets.VBox(controls[2:])]
        sliders = ipywidgets.HBox(columns, layout={"flex_flow": "row wrap"})
        super().__init__([sliders, self.status, self.level, self.chart, self.measures], layout={"max_width": "1080px"})
        for control in (*controls, self.level):
            control.observe(self._update, "value")
        self._update()

    def _update(self, change: object = None) -> None:
        level = self.level.value
        chosen = {"repeat_threshold": float(self.threshold.value), "replay_per_class": self.replay.value}
        chosen |= {"slots_per_class": self.slots.value, "max_image_count": self.targets.value}
        settings = dataclasses.replace(self._balance.settings, **chosen)
        try:
            compared = self._balance.compare(settings)
        except ValueError as error:
            self.status.value = theme.notice(theme.sentence(error))
            return
        self._balance.settings = settings  # one state: what is drawn below later, is drawn with the sliders' settings
        self.chart.spec = self._spec(settings, level)
        self.measures.value = _measures(compared[compared["level"] == level], LEVELS[level])
        below = " The figures below take these settings when their cells are run again." if change else ""
        self.status.value = theme.status(self._summary(settings) + below)

    def _spec(self, settings: Settings, level: str) -> dict:
        a, replayed = self._balance.annotations, ["replayed"] if level == "rois" else []
        order = np.argsort(-a.image_count, kind="stable")[: (a.image_count > 0).sum()]
        shown = [arm for arm in arms.ARMS if level == "rois" or arm not in arms.WITH_BANK]
        tables = {arm: self._balance.table(arm, settings) for arm in shown}
        seen = pd.DataFrame({arm: of[[level, *replayed]].sum(axis=1) for arm, of in tables.items()})
        seen = seen.iloc[order].where(seen > 0)
        number, binned = len(order), len(order) > MOST_CATEGORIES
        bins = np.arange(number) * BINS // number if binned else np.arange(number)
        middle = pd.Series(range(number)).groupby(bins).median().astype(int).tolist()
        of_bins, series = seen.groupby(bins), []
        levels = {"y": 0.5} | ({"low": 0.1, "high": 0.9} if binned else {})
        values = {name: of_bins.quantile(q) for name, q in levels.items()}
        names, counts = [a.category_names[k] for k in order.tolist()], a.image_count[order]
        for arm in shown:
            own = {k: [None if np.isnan(v) else float(f"{v:.5g}") for v in of[arm]] for k, of in values.items()}
            own = own if arm in (NONE, RFS_BANK) else {"y": own["y"]}  # six bands hide each other
            look = {"color": COLORS[arm], "dash": DASHES.get(arm), "width": 2.6 if arm == RFS_BANK else 1.8}
            series.append({"name": arm, "kind": "line", "x": middle} | own | look)
        if not binned:
            series[0] |= {"name": f"{NONE} (bars)", "kind": "bars", "dim": True, "groups": a.frequency[order].tolist()}
        label, size = f"{number:,} categories with images, from most to least frequent", round(number / BINS)
        label += f"; lines: the median of {size} each, bands: eight tenths of them" if binned else ""
        several = f"{size:,} categories around "
        limits = [0.6 * seen.min(axis=None), 1.5 * seen.max(axis=None)]
        return {
            "height": 290,
            "x": {"domain": [-0.8, number - 0.2], "ticks": False, "label": label},
            "y": {"domain": limits, "scale": "log", "label": f"{LEVELS[level]} seen in an epoch"},
            "series": series,
            "names": [several * binned + names[at] for at in middle],
            "notes": [f"{plots.counted(int(counts[at]), 'image')} annotated" for at in middle],
        }

    def _summary(self, settings: Settings) -> str:
        of, a = self._balance, self._balance.annotations
        table, targets = of.table(RFS_BANK, settings), of.target_class_ids(settings)
        length = of.epoch_length(RFS, settings)
        ratio = table["replayed"].sum() / max(table["rois"].sum(), 1e-9)
        mib = len(targets) * settings.slots_per_class * (FEATURE_DIM * 4 + 2 * 16 + 8) / 2**20
        return (
            f"RFS: an epoch of {length:,.0f} images ({length / a.num_images:.2f} times the data set). "
            f"Bank: {len(targets):,} of {a.num_classes:,} categories, {ratio:.2f} replayed rows a foreground RoI, "
            f"{mib:,.1f} MiB at width {FEATURE_DIM:,}."
        )


def _measures(rows: pd.DataFrame, level: str) -> str:
    """The table under the chart: one row per arm."""
    columns = ["", *GROUP_NAMES.values(), "Gini", "normalised entropy", "effective classes", "max / min"]
    cells = [
        [row.arm, *(plots.percent(getattr(row, group)) for group in GROUP_NAMES), f"{row.gini:.3f}",
         f"{row.normalised_entropy:.3f}", f"{row.effective_classes:,.1f} of {row.categories:,}",
         "∞" if np.isinf(row.max_min_ratio) else f"{row.max_min_ratio:,.1f}", f"{row.epoch_length:,.0f}"]
        for row in rows.itertuples()
    ]  # fmt: skip
    caption = f"Shares and imbalance of the {level} that training sees"
    return theme.html_table([*columns, "epoch, images"], cells, caption=caption)
