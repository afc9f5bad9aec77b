"""Ways of resampling side by side: what a sampler and a memory bank make of a data set's distribution.

All numbers are the arithmetic of `rio.analysis.balance`, except those of `Arms.check`, which runs the sampler and the
bank and counts. I: images, K: categories.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from rio.analysis import balance
from rio.data.annotations import Annotations
from rio.sampler import epoch_indices, image_repeat_factors

NONE, BANK, RFS, IRFS, CLASS_AWARE, RFS_BANK = "none", "bank", "RFS", "IRFS", "class-aware", "RFS + bank"
ARMS = (NONE, BANK, RFS, IRFS, CLASS_AWARE, RFS_BANK)
WITH_BANK = (BANK, RFS_BANK)
_METHOD = {NONE: "none", BANK: "none", RFS: "rfs", IRFS: "irfs", CLASS_AWARE: "class_aware", RFS_BANK: "rfs"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the arms have in common; most are config keys of the same name."""

    repeat_threshold: float  # categories of a lower image frequency are repeated, (0, 1]
    batch_size: int = 16  # images that share a bank in a step (SOLVER.IMS_PER_BATCH with one bank for all GPUs)
    slots_per_class: int = 60
    replay_per_class: int = 20
    max_image_count: int = 30  # categories with at most this many images are replayed (BANK_MAX_IMAGE_COUNT)
    rois_per_instance: float = 8.0  # RoIs matched to an object, on average; runs log it
    foreground_per_image: float = 128.0  # most foreground RoIs (BATCH_SIZE_PER_IMAGE * POSITIVE_FRACTION)

    @classmethod
    def usual(cls, num_images: int, *, embedded: bool = False) -> Settings:
        """Those of the shipped configs: configs/shapes for the embedded set, otherwise the reference's.

        LVIS's threshold 0.001 is the image frequency of a category with 100 images there. Other sets get that of 100
        images in them, or 0.1 if they have fewer than 1,000.
        """
        if embedded:
            return cls(0.1, batch_size=8, replay_per_class=4, foreground_per_image=16.0)
        return cls(float(f"{min(100 / num_images, 0.1):.1g}"))


class Arms:
    """What training would see of a data set under each way of resampling.

    `settings` are fields of `Settings` that differ from the usual ones, which depend on whether it is the `embedded`
    set; None stands for the usual. The attribute `settings` holds those of all arms, unless a method is given others. A
    BalanceError where a setting does not exist or is out of range.
    """

    def __init__(self, annotations: Annotations, *, embedded: bool = False, **settings: float | int | None) -> None:
        known = [field.name for field in dataclasses.fields(Settings)]
        for name in settings.keys() - set(known):
            raise balance.BalanceError(f"settings: expected {', '.join(known)}; found {name!r}")
        usual = Settings.usual(annotations.num_images, embedded=embedded)
        self.settings = dataclasses.replace(usual, **{k: v for k, v in settings.items() if v is not None})
        if self.settings.slots_per_class < 1:
            raise balance.BalanceError(f"slots_per_class: expected at least 1, found {self.settings.slots_per_class}")
        self.annotations = annotations
        cached = functools.lru_cache(maxsize=24)
        self._factors = cached(functools.partial(image_repeat_factors, annotations))
        self._exposures = cached(
            lambda method, threshold, rois, foreground: balance.exposures(
                annotations, self._factors(method, threshold), rois_per_instance=rois, foreground_per_image=foreground
            )
        )
        self.compare()  # bad settings fail here, not in the middle of a notebook

    def factors(self, arm: str, settings: Settings | None = None) -> np.ndarray:
        """(I,) expected showings of every image in an epoch."""
        return self._factors(*_method(arm, settings or self.settings))

    def epoch_length(self, arm: str, settings: Settings | None = None) -> float:
        """Expected showings of all images in an epoch."""
        return float(self.factors(arm, settings).sum(dtype=np.float64))

    def table(self, arm: str, settings: Settings | None = None) -> pd.DataFrame:
        """Expected exposures of every category in an epoch, see `balance.exposures` and `balance.with_replay`."""
        s = settings or self.settings
        table = self._exposures(*_method(arm, s), s.rois_per_instance, s.foreground_per_image)
        if arm not in WITH_BANK:
            return table
        return balance.with_replay(
            table, self.target_class_ids(s), replay_per_class=s.replay_per_class, slots_per_class=s.slots_per_class,
            batch_size=s.batch_size, epoch_length=self.epoch_length(arm, s),
        )  # fmt: skip

    def target_class_ids(self, settings: Settings | None = None) -> list[int]:
        """The classes that the bank stores: 1 <= image_count <= max_image_count."""
        count = self.annotations.image_count
        return np.flatnonzero((count >= 1) & (count <= (settings or self.settings).max_image_count)).tolist()

    def compare(self, settings: Settings | None = None) -> pd.DataFrame:
        """Shares and imbalance of every arm and level (`balance.compare`), with `epoch_length` in images."""
        compared = balance.compare({arm: self.table(arm, settings) for arm in ARMS})
        length = {arm: self.epoch_length(arm, settings) for arm in ARMS}
        return compared.assign(epoch_length=compared["arm"].map(length), categories=self.annotations.num_classes)

    def effective(self) -> pd.DataFrame:
        """Effective number of classes: one row per arm, one column per level (images, instances, rois)."""
        return self.compare().pivot(index="arm", columns="level", values="effective_classes").reindex(list(ARMS))

    def advice(self, *, gain: float = 0.9) -> pd.DataFrame:
        """Balance against epoch length, for a range of thresholds.

        Returns:
            One row per method ("RFS", "IRFS") and threshold: method, repeat_threshold, epoch_length (times the images),
            effective_classes (at the image level), rare_share, `current` (the settings' threshold) and `suggested`: the
            method's smallest threshold that reaches the share `gain` of its largest gain in effective classes.
        """
        a = self.annotations
        rarest = max(int(a.image_count[a.image_count > 0].min()), 1)
        lowest = np.geomspace(rarest / a.num_images, 1.0, 14)
        rows = []
        for arm in (RFS, IRFS):
            for threshold in np.unique(np.r_[lowest, self.settings.repeat_threshold]).tolist():
                settings = dataclasses.replace(self.settings, repeat_threshold=threshold)
                seen = self.table(arm, settings)["images"]
                length, rare = self.epoch_length(arm, settings), balance.share_by_group(seen, a.frequency)["r"]
                row = {"method": arm, "repeat_threshold": threshold, "epoch_length": length / a.num_images}
                effective = balance.imbalance(seen)["effective_classes"]
                rows.append(row | {"rare_share": rare, "effective_classes": effective})
        table = pd.DataFrame(rows)
        before = balance.imbalance(self.table(NONE)["images"])["effective_classes"]
        gained = table["effective_classes"] - before
        enough = gained >= gain * gained.groupby(table["method"]).transform("max") - 1e-9
        first = table[enough].groupby("method")["repeat_threshold"].transform("min")
        suggested = table["repeat_threshold"] == first.reindex(table.index)
        return table.assign(suggested=suggested, current=table["repeat_threshold"] == self.settings.repeat_threshold)

    def check(self, arm: str = RFS_BANK, *, epochs: int | None = None, seed: int = 0) -> pd.DataFrame:
        """Run the sampler, and a real `MemoryBank` behind it, and count what the arithmetic only expects.

        Each batch brings the classes of its objects' RoIs to the bank, which replays and is written to as in training
        (features are one number wide). The epoch before those counted fills it. Loads torch for arms with a bank.
        `epochs` None counts as many as show about 10,000 images, 1..2,000.

        Returns:
            One row per level (images, instances, and replayed if the arm has a bank) and category: name, frequency,
            level, expected, counted (both per epoch), epochs.
        """
        factors, table, a = self.factors(arm), self.table(arm), self.annotations
        if epochs is None:
            epochs = int(np.clip(round(10_000 / max(float(factors.sum()), 1.0)), 1, 2_000))
        stream = [epoch_indices(factors, seed, epoch) for epoch in range(epochs + 1)]
        shown = np.bincount(np.concatenate(stream[:epochs]), minlength=a.num_images)
        counted = balance.exposures(a, shown / epochs)
        levels = ["images", "instances"]
        if arm in WITH_BANK:
            levels.append("replayed")
            counted["replayed"] = self._replayed(stream, self.epoch_length(arm))
        rows = [
            table[["name", "frequency"]].assign(level=level, expected=table[level], counted=counted[level])
            for level in levels
        ]
        return pd.concat(rows, ignore_index=True).assign(epochs=epochs)

    def _replayed(self, stream: list[np.ndarray], epoch_length: float) -> np.ndarray:
        """(K,) rows per epoch that a real bank replays while it is fed the sampler's images."""
        import torch  # takes seconds to load: only here

        from rio.memory_bank import MemoryBank

        a, s, targets = self.annotations, self.settings, self.target_class_ids()
        total, steps = np.zeros(a.num_classes), 0
        if not targets:
            return total
        replay = min(s.replay_per_class, s.slots_per_class)
        sizes = {"slots_per_class": s.slots_per_class, "replay_per_class": replay}
        bank = MemoryBank(num_classes=a.num_classes, class_ids=targets, feature_dim=1, **sizes)
        kept = np.flatnonzero(~a.iscrowd)
        offsets = np.searchsorted(a.annotation_image[kept], np.arange(a.num_images + 1))
        classes_of = np.split(a.annotation_class[kept].astype(np.int64), offsets[1:-1])
        first, images = max(len(stream[0]) // s.batch_size, 1), np.concatenate(stream)  # from the first full bank on
        for step in range(len(images) // s.batch_size):
            batch = images[step * s.batch_size : (step + 1) * s.batch_size]
            classes = np.concatenate([classes_of[i] for i in batch])
            classes = torch.from_numpy(np.repeat(classes, max(round(s.rois_per_instance), 1)))
            if step >= first:
                total += np.bincount(bank.sample(classes).gt_classes.numpy(), minlength=len(total))
                steps += 1
            boxes = torch.zeros(len(classes), 4)
            bank.write(torch.zeros(len(classes), 1), boxes, boxes, classes)
        return total / max(steps, 1) * epoch_length / s.batch_size


def rois_per_instance(annotations: Annotations, logged: Sequence[float]) -> float | None:
    """Foreground RoIs an object: the mean of those an image, as runs log them, over mean objects an image; None without
    either.
    """
    annotated = len(np.unique(annotations.annotation_image[~annotations.iscrowd]))
    return float(np.mean(logged) / (annotations.instance_count.sum() / annotated)) if logged and annotated else None


def _method(arm: str, settings: Settings) -> tuple[str, float]:
    """The sampler of an arm, and its threshold (any for samplers that have none)."""
    method = _METHOD[arm]
    return method, settings.repeat_threshold if method in ("rfs", "irfs") else 0.5


def disagreement(check: pd.DataFrame) -> pd.DataFrame:
    """Expected and counted totals of `Arms.check`, level by level, and the relative difference."""
    totals = check.groupby("level", sort=False)[["expected", "counted"]].sum()
    difference = (totals["counted"] - totals["expected"]) / totals["expected"].where(totals["expected"] > 0)
    return totals.assign(difference=difference.fillna(0.0)).reset_index()
