"""Image level or object level: what a sampler and a memory bank make of a data set's distribution, to play
with.

All numbers come from `rio.analysis.balance` (arithmetic on counts) but those of `Balance.check`, which runs the
sampler and the bank themselves and counts. I: images, K: categories.
"""

from __future__ import annotations

import dataclasses
import html

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import traitlets

from rio import plots
from rio.analysis.arms import ARMS, BANK, CLASS_AWARE, IRFS, NONE, RFS, RFS_BANK, Arms, Settings
from rio.widgets import theme as _theme
from rio.widgets.dataset import Data

_COLOR = {BANK: "#999933", RFS: "#AA4499", IRFS: "#44AA99", CLASS_AWARE: "#88CCEE", RFS_BANK: "var(--ink)"}
_DASH = {IRFS: "6 3", CLASS_AWARE: "2 3"}
LEVELS = {"images": "images", "instances": "objects", "rois": "RoIs"}
FEATURE_DIM = 1024


class Balance(Arms):
    """What training sees of a data set under each way of resampling, with a panel. Made by `balance_of`."""

    def panel(self) -> ipywidgets.VBox:
        """Sliders for threshold, slots and replay, the exposures of every category, and the measures of
        imbalance."""
        return _Panel(self).view

    def _repr_html_(self) -> str:
        s, targets = self.settings, len(self.target_class_ids())
        text = (
            f"threshold {s.repeat_threshold:g} · batches of {s.batch_size} images · "
            f"the bank stores {targets:,} categories "
            f"with at most {s.max_image_count} images, {s.slots_per_class} slots each, "
            f"and replays {s.replay_per_class} of a "
            f"category that is in the batch · {s.rois_per_instance:g} RoIs an object, at most "
            f"{s.foreground_per_image:g} an image"
        )
        return f'<div class="rio-view rio-quiet"><style>{_theme.STYLE}</style>{html.escape(text)}</div>'


@_theme.sentences
def balance_of(data: Data, **settings: float | int | None) -> Balance:
    """What training would see of a data set.

    Args:
        data: the training set, from `open_dataset`.
        **settings: fields of `Settings` that differ from the usual ones; None stands for the usual.

    Raises:
        NotebookError: a setting out of range.
    """
    return Balance(data.annotations, embedded=data.embedded, **settings)


# ------------------------------------------------------------------------------------------------------ panel


class Lines(anywidget.AnyWidget):
    """A chart of lines, bars or points with hover; `spec` as chart.js documents it.

    Attributes:
        selected: index of what was clicked last, -1: nothing yet.
    """

    _esm = (_theme.FOLDER / "chart.js").read_text("utf-8") + (_theme.FOLDER / "lines.js").read_text("utf-8")
    _css = _theme.STYLE
    spec = traitlets.Dict().tag(sync=True)
    selected = traitlets.Int(-1).tag(sync=True)


class _Panel:
    """The controls of `Balance.panel` and what they change."""

    def __init__(self, of: Balance) -> None:
        self._of, s = of, of.settings
        a = of.annotations
        # Where a move takes long to compute, only the end of a drag counts.
        live = a.num_annotations < 100_000
        style = {"description_width": "128px"}
        layout = ipywidgets.Layout(width="420px")
        lowest = np.log10(1 / a.num_images)
        self.threshold = ipywidgets.FloatLogSlider(
            value=s.repeat_threshold,
            min=np.floor(lowest * 4) / 4,
            max=0,
            step=0.05,
            description="repeat threshold",
            readout_format=".4g",
            continuous_update=live,
            style=style,
            layout=layout,
        )
        common = {"continuous_update": live, "style": style, "layout": layout}
        self.replay = ipywidgets.IntSlider(s.replay_per_class, 0, 60, description="replay per class", **common)
        self.slots = ipywidgets.IntSlider(s.slots_per_class, 1, 120, description="slots per class", **common)
        self.targets = ipywidgets.IntSlider(s.max_image_count, 0, 200, description="bank: images up to", **common)
        self.level = ipywidgets.ToggleButtons(
            options=[("RoIs", "rois"), ("objects", "instances"), ("images", "images")],
            value="rois",
            style={"button_width": "84px"},
        )
        self.chart, self.measures, self.status = Lines(), ipywidgets.HTML(), ipywidgets.HTML()
        for control in (self.threshold, self.replay, self.slots, self.targets, self.level):
            control.observe(self._update, "value")
        left = ipywidgets.VBox([self.threshold, self.replay])
        right = ipywidgets.VBox([self.targets, self.slots])
        self.view = ipywidgets.VBox(
            [
                ipywidgets.HBox([left, right], layout=ipywidgets.Layout(flex_flow="row wrap")),
                self.status,
                self.level,
                self.chart,
                self.measures,
            ],
            layout=ipywidgets.Layout(max_width="1080px"),
        )
        self._update()

    def _settings(self) -> Settings:
        return dataclasses.replace(
            self._of.settings,
            repeat_threshold=float(self.threshold.value),
            replay_per_class=self.replay.value,
            slots_per_class=self.slots.value,
            max_image_count=self.targets.value,
        )

    def _update(self, _change: object = None) -> None:
        settings, level = self._settings(), self.level.value
        try:
            compared = self._of.compare(settings)
        except ValueError as error:
            self.status.value = _theme.notice(_theme.sentence(error))
            return
        self.chart.spec = self._spec(settings, level)
        self.measures.value = _measures(compared[compared["level"] == level], LEVELS[level])
        self.status.value = self._said(settings, compared)

    def _spec(self, settings: Settings, level: str) -> dict:
        tables = {arm: self._of.table(arm, settings) for arm in ARMS}
        order = np.argsort(-self._of.annotations.image_count, kind="stable")
        seen = {
            arm: (table[level] + table["replayed"] if level == "rois" else table[level]).to_numpy()[order]
            for arm, table in tables.items()
        }
        lines = [arm for arm in ARMS if arm != NONE and (level == "rois" or arm not in (BANK, RFS_BANK))]
        positive = np.concatenate([v[v > 0] for v in seen.values()])
        low, high = float(positive.min()) * 0.6, float(positive.max()) * 1.5
        x = list(range(len(order)))
        series = [
            {
                "name": f"{NONE} (bars)",
                "kind": "bars",
                "x": x,
                "y": _listed(seen[NONE]),
                "color": "var(--quiet)",
                "dim": True,
                "groups": self._of.annotations.frequency[order].tolist(),
            }
        ]
        series += [
            {
                "name": arm,
                "kind": "line",
                "x": x,
                "y": _listed(seen[arm]),
                "color": _COLOR[arm],
                "dash": _DASH.get(arm),
                "width": 2.6 if arm == RFS_BANK else 1.8,
            }
            for arm in lines
        ]
        count = self._of.annotations.image_count[order]
        return {
            "height": 290,
            "x": {
                "domain": [-0.8, len(x) - 0.2],
                "ticks": False,
                "label": f"{len(x):,} categories, from most to least frequent",
            },
            "y": {"domain": [low, high], "scale": "log", "label": f"{LEVELS[level]} seen in an epoch"},
            "series": series,
            "names": [self._of.annotations.category_names[k] for k in order.tolist()],
            "notes": [f"{n:,} image{'s' if n != 1 else ''} annotated" for n in count.tolist()],
        }

    def _said(self, settings: Settings, compared: pd.DataFrame) -> str:
        a = self._of.annotations
        table, length = (self._of.table(RFS_BANK, settings), compared.set_index("arm")["epoch_length"][RFS].iloc[0])
        targets = len(self._of.target_class_ids(settings))
        ratio = table["replayed"].sum() / max(table["rois"].sum(), 1e-9)
        mib = targets * settings.slots_per_class * (FEATURE_DIM * 4 + 2 * 16 + 8) / 2**20
        text = (
            f"RFS: an epoch of {length:,.0f} images ({length / a.num_images:.2f} times the data set). "
            f"Bank: {targets:,} of {a.num_classes:,} categories, {ratio:.2f} replayed rows a foreground RoI, "
            f"{mib:,.1f} MiB at width {FEATURE_DIM:,}."
        )
        return f'<div class="rio-view rio-status"><style>{_theme.STYLE}</style>{html.escape(text)}</div>'


def _listed(values: np.ndarray) -> list[float | None]:
    return [None if v <= 0 else float(f"{v:.5g}") for v in values.tolist()]


def _measures(rows: pd.DataFrame, level: str) -> str:
    """The table under the chart: one row an arm."""
    columns = [
        "",
        "rare",
        "common",
        "frequent",
        "Gini",
        "normalised entropy",
        "effective classes",
        "max / min",
        "epoch, images",
    ]
    cells = [
        [
            row.arm,
            *(_percent(getattr(row, g)) for g in plots.GROUPS),
            f"{row.gini:.3f}",
            f"{row.normalised_entropy:.3f}",
            f"{row.effective_classes:,.1f} of {row.categories:,}",
            "∞" if np.isinf(row.max_min_ratio) else f"{row.max_min_ratio:,.1f}",
            f"{row.epoch_length:,.0f}",
        ]
        for row in rows.itertuples()
    ]
    return _theme.html_table(columns, cells, caption=f"Shares and imbalance of the {level} that training sees")


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or share == 0 else "<0.1%"
