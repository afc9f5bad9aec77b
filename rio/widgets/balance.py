"""Image level or object level: what a sampler and a memory bank make of a data set's distribution, to play
with.

All numbers come from `rio.analysis.balance` (arithmetic on counts) but those of `Balance.check`, which runs the
sampler and the bank themselves and counts. I: images, K: categories.
"""

from __future__ import annotations

import dataclasses
import functools
import html

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import traitlets

from rio import plots
from rio.analysis import balance
from rio.sampler import epoch_indices, image_repeat_factors
from rio.widgets import theme as _theme
from rio.widgets.dataset import Data

NONE, BANK, RFS, IRFS, CLASS_AWARE, RFS_BANK = "none", "bank", "RFS", "IRFS", "class-aware", "RFS + bank"
ARMS = (NONE, BANK, RFS, IRFS, CLASS_AWARE, RFS_BANK)
_METHOD = {NONE: "none", BANK: "none", RFS: "rfs", IRFS: "irfs", CLASS_AWARE: "class_aware", RFS_BANK: "rfs"}
_COLOR = {BANK: "#999933", RFS: "#AA4499", IRFS: "#44AA99", CLASS_AWARE: "#88CCEE", RFS_BANK: "var(--ink)"}
_DASH = {IRFS: "6 3", CLASS_AWARE: "2 3"}
LEVELS = {"images": "images", "instances": "objects", "rois": "RoIs"}
FEATURE_DIM = 1024


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the arms have in common.

    Attributes:
        repeat_threshold: DATALOADER.REPEAT_THRESHOLD, share of images below which a category is repeated, in
            (0, 1].
        batch_size: images that share a bank in a step (SOLVER.IMS_PER_BATCH with one bank for all GPUs).
        slots_per_class: MODEL.RIO.SLOTS_PER_CLASS.
        replay_per_class: MODEL.RIO.REPLAY_PER_CLASS.
        max_image_count: MODEL.RIO.BANK_MAX_IMAGE_COUNT: categories with at most so many images are replayed.
        rois_per_instance: proposals matched to an object, on average; runs log it.
        foreground_per_image: most foreground RoIs of an image (BATCH_SIZE_PER_IMAGE * POSITIVE_FRACTION).
    """

    repeat_threshold: float
    batch_size: int = 16
    slots_per_class: int = 60
    replay_per_class: int = 20
    max_image_count: int = 30
    rois_per_instance: float = 8.0
    foreground_per_image: float = 128.0

    @classmethod
    def usual(cls, data: Data) -> Settings:
        """Those of the shipped configs: configs/shapes for the embedded set, else the reference's.

        LVIS's threshold 0.001 is the share that a category with 100 images has there; other sets get the
        share that 100 images, or a tenth of all where there are fewer than 1,000, have in them.
        """
        if data.embedded:
            return cls(0.1, batch_size=8, replay_per_class=4, foreground_per_image=16.0)
        images = data.annotations.num_images
        return cls(float(f"{min(100 / images, 0.1):.1g}"))


class Balance:
    """What training sees of a data set under each way of resampling. Made by `balance_of`.

    Attributes:
        data: the training set.
        settings: of the arms; the panel has its own, which begin at these.
    """

    def __init__(self, data: Data, settings: Settings) -> None:
        self.data, self.settings = data, settings
        self._factors = functools.lru_cache(maxsize=24)(self._factors_anew)
        self._exposures = functools.lru_cache(maxsize=24)(self._exposures_anew)
        self.compare()  # faults of the settings come up here, not in the middle of a notebook

    def _factors_anew(self, method: str, threshold: float) -> np.ndarray:
        return image_repeat_factors(self.data.annotations, method, threshold)

    def _exposures_anew(self, method: str, threshold: float, m: float, quota: float) -> pd.DataFrame:
        return balance.exposures(
            self.data.annotations, self._factors(method, threshold), rois_per_instance=m, foreground_per_image=quota
        )

    def factors(self, arm: str, settings: Settings | None = None) -> np.ndarray:
        """(I,) expected showings of every image in an epoch."""
        s = settings or self.settings
        method = _METHOD[arm]
        return self._factors(method, s.repeat_threshold if method in ("rfs", "irfs") else 0.5)

    def table(self, arm: str, settings: Settings | None = None) -> pd.DataFrame:
        """Expected exposures of every category in an epoch, as `rio.analysis.balance.exposures` and `with_replay` have
        them."""
        s = settings or self.settings
        method = _METHOD[arm]
        threshold = s.repeat_threshold if method in ("rfs", "irfs") else 0.5
        table = self._exposures(method, threshold, s.rois_per_instance, s.foreground_per_image)
        if arm not in (BANK, RFS_BANK):
            return table
        return balance.with_replay(
            table,
            self.target_class_ids(s),
            replay_per_class=s.replay_per_class,
            slots_per_class=s.slots_per_class,
            batch_size=s.batch_size,
            epoch_length=float(self._factors(method, threshold).sum(dtype=np.float64)),
        )

    def target_class_ids(self, settings: Settings | None = None) -> list[int]:
        """The classes that the bank stores: 1 <= image_count <= max_image_count."""
        count = self.data.annotations.image_count
        return np.flatnonzero((count >= 1) & (count <= (settings or self.settings).max_image_count)).tolist()

    def compare(self, settings: Settings | None = None) -> pd.DataFrame:
        """Shares and imbalance of every arm at every level (`rio.analysis.balance.compare`), with `epoch_length` in
        images."""
        compared = balance.compare({arm: self.table(arm, settings) for arm in ARMS})
        length = {arm: float(self.factors(arm, settings).sum(dtype=np.float64)) for arm in ARMS}
        return compared.assign(epoch_length=compared["arm"].map(length), categories=self.data.annotations.num_classes)

    def effective(self) -> pd.DataFrame:
        """Effective number of classes: a row an arm, a column a level (images, instances, rois)."""
        return self.compare().pivot(index="arm", columns="level", values="effective_classes").reindex(list(ARMS))

    # ------------------------------------------------------------------------------------------------ advisor

    def advice(self, *, gain: float = 0.9) -> pd.DataFrame:
        """Balance against epoch length, threshold by threshold.

        Args:
            gain: share of the balance that can be had by repeating images at which to stop.

        Returns:
            One row a method ("RFS", "IRFS") and threshold: method, repeat_threshold, epoch_length (times the
            images), effective_classes (at the image level), rare_share, and `suggested`: the smallest
            threshold of the method that reaches `gain` of the largest gain in effective classes among all its
            thresholds.
        """
        images = self.data.annotations.num_images
        rarest = max(int(self.data.annotations.image_count[self.data.annotations.image_count > 0].min()), 1)
        thresholds = np.unique(np.r_[np.geomspace(rarest / images, 1.0, 14), self.settings.repeat_threshold])
        rows = []
        for arm in (RFS, IRFS):
            for threshold in thresholds.tolist():
                settings = dataclasses.replace(self.settings, repeat_threshold=threshold)
                seen = self.table(arm, settings)["images"]
                rows.append(
                    {
                        "method": arm,
                        "repeat_threshold": threshold,
                        "epoch_length": float(self.factors(arm, settings).sum(dtype=np.float64)) / images,
                        "effective_classes": balance.imbalance(seen)["effective_classes"],
                        "rare_share": balance.share_by_group(seen, self.data.annotations.frequency)["r"],
                    }
                )
        table = pd.DataFrame(rows)
        before = balance.imbalance(self.table(NONE)["images"])["effective_classes"]
        gained = table["effective_classes"] - before
        enough = gained >= gain * gained.groupby(table["method"]).transform("max") - 1e-9
        first = table[enough].groupby("method")["repeat_threshold"].transform("min")
        suggested = table["repeat_threshold"] == first.reindex(table.index)
        return table.assign(suggested=suggested, current=table["repeat_threshold"] == self.settings.repeat_threshold)

    # -------------------------------------------------------------------------------------------------- check

    def check(self, arm: str = RFS_BANK, *, epochs: int | None = None, seed: int = 0) -> pd.DataFrame:
        """Run the sampler, and a memory bank behind it, and count what the arithmetic only expects.

        The sampler's own epochs are cut into batches; each batch's objects bring their RoIs' classes to a
        real `MemoryBank`, which replays and is written to as in training (its features are one number wide).
        One epoch before those counted fills the bank. Loads torch for arms with a bank.

        Args:
            arm: one of `ARMS`.
            epochs: epochs counted; None: as many as show about 10,000 images, 1..20.
            seed: of the sampler.

        Returns:
            One row a category and level (images, instances, and replayed where the arm has a bank): name,
            frequency, level, expected, counted (both an epoch).
        """
        factors, table = self.factors(arm), self.table(arm)
        if epochs is None:
            epochs = int(np.clip(round(10_000 / max(float(factors.sum()), 1.0)), 1, 20))
        a = self.data.annotations
        kept = np.flatnonzero(~a.iscrowd)
        offsets = np.searchsorted(a.annotation_image[kept], np.arange(a.num_images + 1))
        classes_of = [a.annotation_class[kept[i:j]] for i, j in zip(offsets[:-1], offsets[1:], strict=True)]
        shown = np.zeros(a.num_images)
        for epoch in range(epochs):
            shown += np.bincount(epoch_indices(factors, seed, epoch), minlength=a.num_images)
        counted = balance.exposures(a, shown / epochs)
        levels = ["images", "instances"]
        if arm in (BANK, RFS_BANK):
            levels.append("replayed")
            counted["replayed"] = self._replayed(factors, classes_of, epochs, seed)
        rows = [
            pd.DataFrame(
                {
                    "name": table["name"],
                    "frequency": table["frequency"],
                    "level": level,
                    "expected": table[level],
                    "counted": counted[level],
                }
            )
            for level in levels
        ]
        return pd.concat(rows, ignore_index=True).assign(epochs=epochs)

    def _replayed(self, factors: np.ndarray, classes_of: list[np.ndarray], epochs: int, seed: int) -> np.ndarray:
        """Rows a class and epoch that a real bank replayed."""
        import torch  # takes seconds to load: only here

        from rio.memory_bank import MemoryBank

        s, total = self.settings, np.zeros(self.data.annotations.num_classes)
        targets = self.target_class_ids()
        if not targets:
            return total
        bank = MemoryBank(
            num_classes=len(total),
            class_ids=targets,
            feature_dim=1,
            slots_per_class=s.slots_per_class,
            replay_per_class=min(s.replay_per_class, s.slots_per_class),
        )
        stream = [epoch_indices(factors, seed, epoch) for epoch in range(epochs + 1)]
        first = len(stream[0]) // s.batch_size
        positions, steps = np.concatenate(stream), 0
        rois = max(round(s.rois_per_instance), 1)
        for start in range(0, len(positions) - s.batch_size + 1, s.batch_size):
            batch = np.concatenate([classes_of[i] for i in positions[start : start + s.batch_size]])
            classes = torch.from_numpy(np.repeat(batch, rois).astype(np.int64))
            if start // s.batch_size >= first:
                total += np.bincount(bank.sample(classes).gt_classes.numpy(), minlength=len(total))
                steps += 1
            boxes = torch.zeros(len(classes), 4)
            bank.write(torch.zeros(len(classes), 1), boxes, boxes, classes)
        return total / max(steps, 1) * float(factors.sum(dtype=np.float64)) / s.batch_size

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
    given = {name: value for name, value in settings.items() if value is not None}
    unknown = set(given) - {field.name for field in dataclasses.fields(Settings)}
    if unknown:
        names = ", ".join(field.name for field in dataclasses.fields(Settings))
        raise ValueError(f"settings: expected {names}; found {sorted(unknown)[0]!r}")
    chosen = dataclasses.replace(Settings.usual(data), **given)
    if chosen.slots_per_class < 1:
        raise ValueError(f"slots_per_class: expected at least 1, found {chosen.slots_per_class}")
    return Balance(data, chosen)


def disagreement(check: pd.DataFrame) -> pd.DataFrame:
    """Expected against counted totals of `Balance.check`, level by level, and the relative difference."""
    totals = check.groupby("level", sort=False)[["expected", "counted"]].sum()
    difference = (totals["counted"] - totals["expected"]) / totals["expected"].where(totals["expected"] > 0)
    return totals.assign(difference=difference.fillna(0.0)).reset_index()


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
        a = of.data.annotations
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
        order = np.argsort(-self._of.data.annotations.image_count, kind="stable")
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
                "groups": self._of.data.annotations.frequency[order].tolist(),
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
        count = self._of.data.annotations.image_count[order]
        return {
            "height": 290,
            "x": {
                "domain": [-0.8, len(x) - 0.2],
                "ticks": False,
                "label": f"{len(x):,} categories, from most to least frequent",
            },
            "y": {"domain": [low, high], "scale": "log", "label": f"{LEVELS[level]} seen in an epoch"},
            "series": series,
            "names": [self._of.data.annotations.category_names[k] for k in order.tolist()],
            "notes": [f"{n:,} image{'s' if n != 1 else ''} annotated" for n in count.tolist()],
        }

    def _said(self, settings: Settings, compared: pd.DataFrame) -> str:
        a = self._of.data.annotations
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
