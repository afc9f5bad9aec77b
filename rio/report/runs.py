"""Finished runs as the report needs them: their settings in words, what training saw, their evaluation."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from rio.analysis import arms, balance
from rio.analysis.run_folder import RunFolder, RunFolderError
from rio.data.annotations import Annotations
from rio.results.errors import find_errors
from rio.results.evaluation import Evaluation
from rio.results.reading import Results, load_results
from rio.results.thresholds import LOWEST_SCORE, best_threshold
from rio.sampler import image_repeat_factors

ARM_NAMES = {"none": "No resampling", "rfs": "RFS", "irfs": "IRFS", "rio": "RIO", "bank": "Bank"}
SAMPLER_NAMES = {"rfs": "RFS", "irfs": "IRFS", "class_aware": "class-aware"}


class ReportError(ValueError):
    """Run folders from which no report can be made; names the file, what was expected and found, and the fix."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds, read once."""

    name: str
    folder: RunFolder
    evaluation: Evaluation
    results: Results
    metrics: pd.DataFrame
    truth: Annotations

    @cached_property
    def errors(self) -> pd.DataFrame:
        """What its predictions from `LOWEST_SCORE` on are, worked out once for the report and the summary."""
        return find_errors(self.truth, self.results, score_threshold=LOWEST_SCORE)

    @cached_property
    def threshold(self) -> float:
        """The score from which its predictions are drawn."""
        return best_threshold(self.truth, self.results, errors=self.errors)

    def rio(self, key: str) -> Any:
        """A setting of MODEL.RIO; None where the config has none."""
        return self.folder.setting(f"MODEL.RIO.{key}")

    def of_bank(self, key: str) -> Any:
        """A setting of the memory bank; None where the run has no bank."""
        return self.rio(key) if self.rio("BANK_ENABLED") else None

    @property
    def description(self) -> str:
        """What this arm resamples, in words: "images (RFS) and objects (memory bank)"."""
        sampler = self.rio("SAMPLER")
        if sampler is None:
            return "settings unknown"
        images = f"images ({SAMPLER_NAMES.get(sampler, sampler)})" if sampler != "none" else ""
        objects = "objects (memory bank)" if self.rio("BANK_ENABLED") else ""
        return " and ".join(filter(None, (images, objects))) or "nothing"

    def mean(self, scalar: str) -> float | None:
        """The mean of a logged scalar; None where it was not logged."""
        return float(self.metrics[scalar].mean()) if scalar in self.metrics and self.metrics[scalar].any() else None

    @property
    def replayed_per_foreground(self) -> float | None:
        """Replayed rows for every foreground RoI, as logged."""
        return self.mean("memory_bank/replayed_per_foreground") if self.rio("BANK_ENABLED") else None

    def exposures(self, train: Annotations, rois_per_instance: float | None) -> pd.DataFrame:
        """Expected exposures of every category under the run's settings."""
        setting = self.folder.setting
        threshold, keep_root = setting("DATALOADER.REPEAT_THRESHOLD", 0.001), self.rio("SAMPLER_SQRT") is not False
        filter_empty = bool(setting("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True))
        factors = image_repeat_factors(
            train, self.rio("SAMPLER"), float(threshold), keep_root, filter_empty=filter_empty
        )
        quota = setting("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 512) * setting(
            "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.25
        )
        measured = {} if rois_per_instance is None else {"rois_per_instance": rois_per_instance}
        table = balance.exposures(train, factors, foreground_per_image=float(quota), **measured)
        if not self.rio("BANK_ENABLED"):
            return table
        table = balance.with_replay(
            table,
            self.rio("BANK_CLASS_IDS") or [],
            replay_per_class=setting("MODEL.RIO.REPLAY_PER_CLASS", 20),
            slots_per_class=setting("MODEL.RIO.SLOTS_PER_CLASS", 60),
            batch_size=setting("SOLVER.IMS_PER_BATCH", 16),
            epoch_length=float(factors.sum()),
            absent_classes=self.rio("REPLAY_ABSENT_CLASSES") or 0,
        )
        if cap := self.rio("REPLAY_MAX_PER_FOREGROUND"):  # runs of before may have one
            table["replayed"] *= min(1.0, cap * table["rois"].sum() / max(table["replayed"].sum(), 1e-12))
        return table

    def settings(self) -> dict[str, object]:
        """The settings that tell runs apart, in words; None where one does not apply."""
        setting, bank = self.folder.setting, self.of_bank
        ids, losses, per_class = bank("BANK_CLASS_IDS"), bank("REPLAY_LOSSES"), bank("REPLAY_PER_CLASS")
        slots = [
            bank("SLOTS_PER_CLASS"),
            (most := bank("WRITE_MAX_PER_OBJECT")) and f"at most {most} per object and step",
        ]
        # Runs of before may have had random slots or a cap.
        replay = [f"{per_class}, {bank('REPLAY_ORDER') or 'newest'}"]
        replay += [f"also {n} absent classes" for n in [bank("REPLAY_ABSENT_CLASSES")] if n]
        replay += [f"at most {n} per foreground RoI" for n in [bank("REPLAY_MAX_PER_FOREGROUND")] if n]
        repeats = self.rio("SAMPLER") in ("rfs", "irfs")
        seconds = float(self.metrics["time"].median()) if self.mean("time") else None
        minutes = seconds and seconds * float(setting("SOLVER.MAX_ITER", self.metrics["iteration"].max())) / 60
        if minutes:
            minutes = f"about {minutes:.1f} min" if minutes < 100 else f"about {minutes / 60:.1f} h"
        return {
            "Resampled": self.description,
            "Repeat threshold": setting("DATALOADER.REPEAT_THRESHOLD") if repeats else None,
            "Classifier": self.rio("CLASSIFIER"),
            "Classification loss": None if (loss := self.rio("CLS_LOSS")) == "softmax" else loss,
            "Trained": "the classifier, on frozen features" if self.rio("FEATURES") else None,
            "Classes in the bank": ids and f"{len(ids)} with at most {bank('BANK_MAX_IMAGE_COUNT')} images",
            "Slots per class": ", ".join(str(word) for word in slots if word) or None,
            "Replayed per class": None if per_class is None else "; ".join(replay),
            "Replay trains": losses and " and ".join({"cls": "classification"}.get(loss, loss) for loss in losses),
            "Iterations": setting("SOLVER.MAX_ITER"),
            "Images per step": setting("SOLVER.IMS_PER_BATCH"),
            "Learning rate": setting("SOLVER.BASE_LR"),
            "Seed": setting("SEED"),
            "Seconds per iteration": seconds and f"{seconds:.2f}",
            "Training time": minutes,
            "Trained on": ", ".join(self.folder.datasets("TRAIN")) or None,
            "Evaluated on": ", ".join(self.folder.datasets("TEST")) or None,
        }


def load_runs(runs: Mapping[str, str | os.PathLike[str]] | Sequence[Run], val: Annotations) -> Sequence[Run]:
    """Read finished runs, {arm: folder}; those read already stay. Raises what `write_report` raises."""
    if runs and not isinstance(runs, Mapping):
        return runs
    if not runs:
        raise ReportError("runs: expected at least one arm and its run folder, found none. Fix: train first.")
    return [_load(arm, RunFolder(path), val) for arm, path in runs.items()]


def _load(arm: str, folder: RunFolder, val: Annotations) -> Run:
    if not folder.path.is_dir():
        raise FileNotFoundError(f"arm {arm!r}: no run folder {folder.path}. Fix: train it first, or leave the arm out.")
    for file in (folder.config_file, folder.evaluation_file, folder.predictions_file):
        if not file.is_file():
            raise FileNotFoundError(
                f"arm {arm!r}: {folder.path} holds no {file.name}. Fix: let the run finish and evaluate, or run "
                "`python -m rio eval` on it."
            )
    try:
        folder.config()
        metrics = folder.metrics(strict=True)
    except RunFolderError as error:
        raise ReportError(f"{error}. Fix: restore the file, or train the arm again.") from error
    results = load_results(folder.predictions_file, val)
    return Run(ARM_NAMES.get(arm, arm), folder, folder.evaluation(), results, metrics, val)


def rois_per_instance(train: Annotations, runs: Sequence[Run]) -> float | None:
    """Foreground RoIs per object, as the runs logged them: mean RoIs per image over mean objects per image."""
    logged = [n for run in runs if (n := run.mean("roi_head/num_fg_samples")) is not None]
    return arms.rois_per_instance(train, logged)
