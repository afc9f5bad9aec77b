"""Finished runs side by side: AP per frequency group and per category, gains, kinds of error. AP in percent.

A run is a folder that `python -m rio train`, `rio study` or `make demo` left. Folders called ARM-seed1, ARM-seed2, ...
are seeds of one arm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from rio.analysis.intervals import interval_of_mean
from rio.analysis.reported import REPORTED
from rio.analysis.run_folder import RunFolder
from rio.data.annotations import GROUP_NAMES, Annotations
from rio.data.names import browse, find
from rio.results.breakdown import breakdown, confusions
from rio.results.errors import find_errors
from rio.results.evaluation import GROUP_METRICS as METRICS
from rio.results.evaluation import Evaluation, evaluate
from rio.results.federated import JudgedPairs
from rio.results.reading import Results, load_results

NAMES = {"none": "no resampling", "rfs": "RFS", "rio": "RIO (RFS + bank)"}
IOU_NAMES = {"bbox": "box AP", "segm": "mask AP", "boundary": "boundary AP"}
OUTCOMES = ("correct", "classification", "localisation", "missed")  # of an object
WRONG = ("classification", "localisation", "both", "duplicate", "background")  # kinds of a wrong prediction

Where = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]]


class RunsError(ValueError):
    """Runs that are not there or cannot be compared; the message says which and what to do."""


class Runs:
    """Finished runs, by arm and seed.

    Args:
        where: a folder of run folders (a study's output), one run folder, several of either, or a dict that names them.
        ground_truth: data set that the runs were evaluated on (`rio.data.names`); None: as their configs say.
        training_set: data set whose image_count tells how rare a category was; None: as the configs say.

    Attributes:
        folders: (arm, seed) -> `RunFolder`; seed is "" where the folder's name has none.
        evaluations: the same keys -> Evaluation.

    Raises:
        RunsError: no finished run, or runs evaluated on different data.
    """

    def __init__(self, where: Where, *, ground_truth: str | None = None, training_set: str | None = None) -> None:
        self.folders = find_runs(where)
        self.first = next(iter(self.folders.values()))
        self.evaluations = {key: folder.evaluation() for key, folder in self.folders.items()}
        self.ground_truth = ground_truth or self._dataset("TEST")
        self.training_set = training_set or self._dataset("TRAIN")
        for key, evaluation in self.evaluations.items():
            if evaluation.per_category["category_id"].tolist() != self.category_ids:
                raise RunsError(
                    f"runs evaluated on different categories cannot be compared: {self.first.path} has "
                    f"{len(self.category_ids)}, {self.folders[key].path} has {len(evaluation.per_category)} or others. "
                    "Fix: open them separately"
                )

    def _dataset(self, split: str) -> str | None:
        """The data set that all runs' configs name first. Of several training sets it is the one of most runs: an arm
        trained on another one (a balanced set, say) is shown by the image counts of the rest."""
        sets = {str(f.path): f.datasets(split)[0] for f in self.folders.values() if f.datasets(split)}
        counts = Counter(sets.values())
        if split == "TEST" and len(counts) > 1:
            text = "; ".join(f"{folder} has {name}" for folder, name in sets.items())
            raise RunsError(
                f"runs evaluated on different data sets cannot be compared: {text}. Fix: open them separately"
            )
        if split == "TEST" and not counts:
            raise RunsError(
                f"{self.first.config_file}: expected DATASETS.TEST with a name, found none. Fix: name the one it was "
                "evaluated on: open_runs(..., ground_truth='path/to/val.json@path/to/images')"
            )
        return counts.most_common(1)[0][0] if counts else None

    @property
    def category_ids(self) -> list[int]:
        """The categories that all runs were evaluated on."""
        return next(iter(self.evaluations.values())).per_category["category_id"].tolist()

    @property
    def arms(self) -> list[str]:
        """Names of the arms, baseline first."""
        return list(dict.fromkeys(arm for arm, _ in self.folders))

    def title(self, arm: str) -> str:
        """An arm's name for readers, with the number of its seeds."""
        seeds = sum(a == arm for a, _ in self.folders)
        return NAMES.get(arm, arm) + (f", {seeds} seeds" if seeds > 1 else "")

    def of_arm(self, arm: str) -> list[Evaluation]:
        """The evaluations of an arm's seeds."""
        return [e for (a, _), e in self.evaluations.items() if a == arm]

    @property
    def iou_types(self) -> list[str]:
        """Kinds of AP that every run has: "bbox", "segm"."""
        return [t for t in IOU_NAMES if all(t in e.metrics for e in self.evaluations.values())]

    def require(self, iou_type: str) -> None:
        """Raise RunsError unless every run has this kind of AP."""
        if iou_type not in self.iou_types:
            raise RunsError(f"iou_type: expected {' or '.join(self.iou_types) or 'none'}, found {iou_type!r}")

    @cached_property
    def truth(self) -> Annotations:
        """The ground truth that the runs were evaluated on, with masks and the groups that they were evaluated by."""
        truth, _ = browse(self.ground_truth, segmentations=True)
        if truth.category_ids.tolist() != self.category_ids:
            raise RunsError(
                f"the runs were evaluated on {len(self.category_ids)} categories, {self.ground_truth} has "
                f"{truth.num_classes} or others. Fix: name the right data set: open_runs(..., ground_truth=...)"
            )
        groups = np.array(self.evaluations[next(iter(self.folders))].per_category["frequency"], dtype="<U1")
        return dataclasses.replace(truth, declared_frequency=groups, frequency=groups)  # those of the training set

    @cached_property
    def image_count(self) -> np.ndarray:
        """(K,) images that hold a category in the training set; in the ground truth without a training set."""
        if self.training_set is None:
            return next(iter(self.evaluations.values())).per_category["image_count"].to_numpy()
        train, _ = browse(self.training_set)
        counts = pd.Series(train.image_count, train.category_ids).reindex(self.category_ids)
        return counts.fillna(0).astype(int).to_numpy()

    def by_group(self, iou_type: str = "bbox", *, reported: bool = True) -> pd.DataFrame:
        """AP of all, rare, common and frequent categories.

        Args:
            iou_type: "bbox" or "segm".
            reported: put the literature's numbers first if the runs were evaluated on the same LVIS validation set.

        Returns:
            One row per arm: arm, AP, APr, APc, APf (mean over seeds; NaN where absent), `reported` (the literature's?),
            and if an arm has several seeds METRIC_low and METRIC_high: the 95 % interval of the mean (Student's t) from
            three seeds on, lowest and highest of two.

        Raises:
            RunsError: not every run has this kind of AP.
        """
        self.require(iou_type)
        rows = []
        for arm in self.arms:
            values = pd.DataFrame([e.metrics[iou_type] for e in self.of_arm(arm)])
            row: dict[str, object] = {"arm": self.title(arm), "seeds": len(values)}
            for metric in METRICS:
                row[metric] = values[metric].astype(float).mean()
                if len(self.folders) > len(self.arms):
                    row[f"{metric}_low"], row[f"{metric}_high"] = interval_of_mean(values[metric].to_numpy(float))
            rows.append(row)
        table = pd.DataFrame(rows).assign(reported=False)
        others = self.reported(iou_type) if reported else pd.DataFrame()
        table = table if others.empty else pd.concat([others, table], ignore_index=True)
        table.attrs["kind"] = IOU_NAMES[iou_type]
        return table

    def reported(self, iou_type: str = "bbox") -> pd.DataFrame:
        """Published numbers of R-50 models on the same validation set, marked "(reported)"; no rows for other sets."""
        rows = [
            {"arm": f"{method} (reported)", **dict(zip(METRICS, values, strict=True))}
            for dataset, kind, method, *values in REPORTED
            if dataset in str(self.ground_truth) and kind == iou_type
        ]
        return pd.DataFrame(rows, columns=["arm", *METRICS]).astype(dict.fromkeys(METRICS, float)).assign(reported=True)

    def per_category(self, iou_type: str = "bbox") -> pd.DataFrame:
        """AP per category and arm, mean over seeds: category_id, name, frequency, image_count (training), arm, AP."""
        self.require(iou_type)
        parts = []
        for arm in self.arms:
            tables = [e.per_category for e in self.of_arm(arm)]
            ap = np.mean([table[f"AP_{iou_type}"].to_numpy(float) for table in tables], axis=0)
            own = tables[0][["category_id", "name", "frequency"]]
            parts.append(own.assign(image_count=self.image_count, arm=self.title(arm), AP=ap))
        table = pd.concat(parts, ignore_index=True)
        table.attrs["kind"] = IOU_NAMES[iou_type]
        return table

    def difference(self, arm: str | None = None, baseline: str | None = None, iou_type: str = "bbox") -> pd.DataFrame:
        """What one arm gains over another, category by category.

        Args:
            arm: folder name without the seed, such as "rio"; None: the last.
            baseline: the same; None: the one before the last (RFS, in the demo).
            iou_type: "bbox" or "segm".

        Returns:
            category_id, name, frequency, image_count, difference (percentage points; NaN without ground truth); its
            `attrs` name the arms. Of one arm all differences are NaN, and `attrs` say why as `note`.

        Raises:
            RunsError: no arm of that name.
        """
        if len(self.arms) < 2:
            self._require_arms(*(name for name in (arm, baseline) if name))
            table = self.per_category(iou_type).drop(columns=["arm", "AP"]).assign(difference=np.nan)
            note = f"A difference needs two arms; there is one: {self.arms[0]}. Add the folder of another run."
            table.attrs.update(note=note)
            return table
        arm, baseline = arm or self.arms[-1], baseline or self.arms[-2]
        self._require_arms(arm, baseline)
        table = self.per_category(iou_type)
        first, second = (table[table["arm"] == self.title(a)].reset_index(drop=True) for a in (arm, baseline))
        table = first.drop(columns=["arm", "AP"]).assign(difference=first["AP"] - second["AP"])
        table.attrs.update(arm=NAMES.get(arm, arm), baseline=NAMES.get(baseline, baseline), kind=IOU_NAMES[iou_type])
        return table

    def _require_arms(self, *names: str) -> None:
        for name in names:
            if name not in self.arms:
                raise RunsError(f"arm: expected one of {', '.join(self.arms)}, found {name!r}")

    def results(self, key: tuple[str, str]) -> Results:
        """A run's predictions."""
        return load_results(self.folders[key].predictions_file, self.truth)

    @cached_property
    def evaluated_again(self) -> dict[tuple[str, str], Evaluation]:
        """Every run evaluated from its results file: these have the precision-recall arrays."""
        options = {"iou_types": self.iou_types, "allow_empty": True}
        return {key: evaluate(self.truth, self.results(key), **options) for key in self.folders}

    def recomputed(self) -> pd.DataFrame:
        """AP in evaluation.json and AP computed again from instances_results.json, per run and kind of AP."""
        rows = [
            {"run": folder.path.name, "kind": IOU_NAMES[kind], "stored": self.evaluations[key].metrics[kind]["AP"],
             "recomputed": self.evaluated_again[key].metrics[kind]["AP"]}
            for key, folder in self.folders.items()
            for kind in self.iou_types
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def errors(self, *, score_threshold: float = 0.05) -> pd.DataFrame:
        """What became of the objects of each frequency group, and which kinds of wrong predictions there are.

        An object counts once, under the best that happened to it. A wrong prediction counts under the group of the
        predicted category; those of categories that are not verified in their image are left out, as in LVIS.

        Args:
            score_threshold: lowest score of a prediction that counts, 0..1.

        Returns:
            arm, frequency, part ("objects" or "predictions"), kind, count (mean over seeds), objects (of the group),
            per_100 (count per 100 objects of the group).
        """
        truth, used = self.truth, JudgedPairs.of(self.truth).ground_truth
        groups = truth.frequency[truth.annotation_class]
        parts = []
        for key in self.folders:
            rows = find_errors(truth, self.results(key), score_threshold=score_threshold)
            outcome = np.full(len(used), "missed", dtype="<U14")
            for kind in ("localisation", "classification", "correct"):  # the best comes last and stays
                outcome[rows.loc[rows["kind"] == kind, "annotation_index"]] = kind
            objects = pd.DataFrame({"frequency": groups[used], "kind": outcome[used]})
            for part, table, kinds in (("objects", objects, OUTCOMES), ("predictions", rows, WRONG)):
                index = pd.MultiIndex.from_product([GROUP_NAMES, kinds], names=["frequency", "kind"])
                counts = table[["frequency", "kind"]].astype(str).value_counts().reindex(index, fill_value=0)
                parts.append(counts.reset_index(name="count").assign(arm=self.title(key[0]), part=part))
        table = pd.concat(parts).groupby(["arm", "frequency", "part", "kind"], sort=False)["count"].mean().reset_index()
        table["objects"] = table["frequency"].map(pd.Series(groups[used]).value_counts()).fillna(0).astype(int)
        table = table[table["objects"] > 0]
        return table.assign(per_100=100 * table["count"] / table["objects"]).reset_index(drop=True)

    def breakdown(self) -> pd.DataFrame:
        """By arm (mean over seeds) and group: `rio.results.breakdown.breakdown`, and arm."""
        tables = [breakdown(self.truth, self.results(key)).assign(arm=self.title(key[0])) for key in self.folders]
        return pd.concat(tables).groupby(["arm", "group"], sort=False).mean().reset_index()

    def confusions(self, arm: str | None = None, *, score_threshold: float = 0.05) -> pd.DataFrame:
        """Of 100 objects of each category, what they are taken for, from frequent to rare categories.

        Args:
            arm: of `arms`; None: the last.
            score_threshold: lowest score of a prediction that counts, 0..1.

        Returns:
            index: names of the categories that have objects, by falling image_count; columns: the same names, "others"
            (categories without objects) and "missed"; `attrs` name the arm and each category's frequency group.
        """
        truth, arm = self.truth, arm or self.arms[-1]
        self._require_arms(arm)
        own = [self.results(key) for key in self.folders if key[0] == arm]
        matrix = np.mean([confusions(truth, results, score_threshold=score_threshold) for results in own], axis=0)[:-1]
        there = np.flatnonzero(matrix.sum(axis=1))
        order = there[np.argsort(-self.image_count[there], kind="stable")]
        names = [truth.category_names[k] for k in order]
        table = pd.DataFrame(matrix[order][:, order], names, names)
        table["others"] = np.delete(matrix[order, :-1], order, axis=1).sum(axis=1)
        table["missed"] = matrix[order, -1]
        table = 100 * table.div(table.sum(axis=1), axis=0)
        table.attrs.update(arm=self.title(arm), frequency=truth.frequency[order].tolist())
        return table

    def markdown(self, iou_type: str = "bbox") -> str:
        """The table of `by_group` in Markdown."""
        self.require(iou_type)
        return markdown_table(IOU_NAMES[iou_type], self._cells(iou_type))

    def latex(self, iou_type: str = "bbox") -> str:
        """The table of `by_group` in LaTeX (needs the package booktabs)."""
        self.require(iou_type)
        return latex_table(IOU_NAMES[iou_type], self._cells(iou_type))

    def _cells(self, iou_type: str) -> list[list[str]]:
        cells, table = [], self.by_group(iou_type)
        for row in table.to_dict("records"):
            halves = {m: (row.get(f"{m}_high", np.nan) - row.get(f"{m}_low", np.nan)) / 2 for m in METRICS}
            cells.append([str(row["arm"]), *(with_spread(row[m], halves[m]) for m in METRICS)])
        return with_best(cells, table)


def find_runs(where: Where) -> dict[tuple[str, str], RunFolder]:
    """(arm, seed) -> folder of every finished run; `where` as for `Runs`.

    Raises:
        RunsError: no finished run, or two of one name.
    """
    if isinstance(where, (str, os.PathLike)):
        where = [where]
    named = isinstance(where, Mapping)
    runs: dict[tuple[str, str], RunFolder] = {}
    begun, looked = [], []
    for given in where:
        root = find(where[given] if named else given)
        looked.append(str(root))
        folders = [root] if _is_run(root) else _runs_in(root)
        for folder in map(RunFolder, folders):
            if not folder.is_finished:
                begun.append(str(folder.path))
                continue
            name = given if named and len(folders) == 1 else folder.path.name
            arm, _, seed = name.rpartition("-seed")
            key = (arm, seed) if arm and seed.isdigit() else (name, "")
            if key in runs:
                raise RunsError(
                    f"two runs are called {name!r}: {runs[key].path} and {folder.path}. Fix: name them: "
                    "open_runs({'a': ..., 'b': ...})"
                )
            runs[key] = folder
    if not runs:
        raise RunsError(
            f"No finished run found (looked for evaluation.json in {', '.join(looked) or 'no folder at all'} and the "
            f"folders in it).{' Started but not finished: ' + ', '.join(begun) + '.' if begun else ''} Fix: "
            "`make demo` trains some on an embedded data set, on a CPU; `python -m rio train` trains one."
        )
    return runs


def _runs_in(root: Path) -> list[Path]:
    """The runs in a folder, in the order of its study's arms, the baseline first."""
    order = {"none": 0, "rfs": 1, "rio": 99}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        order = {arm: place for place, arm in enumerate(json.loads((root / "study.json").read_bytes())["arms"])}
    found = (path for path in root.glob("*") if path.is_dir() and _is_run(path))
    return sorted(found, key=lambda path: (order.get(path.name.rpartition("-seed")[0] or path.name, 50), path.name))


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("evaluation.json", "metrics.json", "instances_results.json"))


def with_spread(value: float, spread: float) -> str:
    """ "12.3 ± 0.4"; without the spread if it is NaN, "–" if the value is."""
    return ("–" if pd.isna(value) else f"{value:.1f}") + ("" if pd.isna(spread) else f" ± {spread:.1f}")


def with_best(cells: list[list[str]], values: pd.DataFrame) -> list[list[str]]:
    """Rows of a name and the four metrics, the best of each column bold (**12.3**) unless all are equal.

    values: the numbers, a row for each row; equal to one digit is equal.
    """
    for column, metric in enumerate(METRICS, 1):
        own = values[metric].astype(float).round(1).to_numpy()
        if len(set(own[~np.isnan(own)])) > 1:
            for row in np.flatnonzero(own == np.nanmax(own)):
                cells[row][column] = f"**{cells[row][column]}**"
    return cells


def markdown_table(title: str, rows: list[list[str]]) -> str:
    """A Markdown table of the four metrics. rows: name, AP, APr, APc, APf."""
    rows = [[row[0].replace("|", "\\|"), *row[1:]] for row in rows]
    return tabulate(
        rows, [title, *METRICS], "pipe", disable_numparse=True, colalign=["left"] + ["right"] * len(METRICS)
    )


def latex_table(title: str, rows: list[list[str]]) -> str:
    """The same in LaTeX (booktabs), from the same cells."""
    align = ["left"] + ["right"] * len(METRICS)
    text = tabulate(rows, [title, *METRICS], "latex_booktabs", disable_numparse=True, colalign=align)
    text = re.sub(r"AP([rcf])\b", r"AP$_\1$", text, count=3)  # the heads
    text = re.sub(r"\*\*([+-][\d.]+)\*\*", r"$\\mathbf{\1}$", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
    text = re.sub(r"(?<=[ \[])[+-]\d+\.\d", r"$\g<0>$", text)
    return text.translate(str.maketrans({"−": "$-$", "–": "--", "±": r"$\pm$"}))
