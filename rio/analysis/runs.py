"""Finished runs side by side: AP per frequency group and per category, gains, kinds of error. AP in percent.

A run is a folder that `python -m rio train`, `rio study` or `make demo` left. Folders called ARM-seed1, ARM-seed2, ...
are seeds of one arm.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from rio.analysis.find_runs import RunsError, Where, find_runs, settings_that_differ
from rio.analysis.intervals import interval_of_mean
from rio.analysis.reported import REPORTED
from rio.analysis.tables import latex_table, markdown_table, with_best, with_spread
from rio.data.annotations import GROUP_NAMES, Annotations
from rio.data.names import browse
from rio.results.breakdown import breakdown, confusions
from rio.results.errors import OUTCOMES, find_errors, outcomes
from rio.results.evaluation import GROUP_METRICS as METRICS
from rio.results.evaluation import Evaluation, evaluate
from rio.results.federated import JudgedPairs
from rio.results.reading import Results, load_results
from rio.results.thresholds import LOWEST_SCORE, best_threshold

NAMES = {"none": "no resampling", "rfs": "RFS", "rio": "RIO (RFS + bank)"}
IOU_NAMES = {"bbox": "box AP", "segm": "mask AP", "boundary": "boundary AP"}
MATCHES = ["kind", "frequency", "score", "annotation_index", "result_index"]  # what is kept of a run's
WRONG = ("classification", "localisation", "both", "duplicate", "background")  # kinds of a wrong prediction
_ALIGN = ["left"] + ["right"] * len(METRICS)


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
        self._matches: dict[tuple[str, str], pd.DataFrame] = {}
        self.first = next(iter(self.folders.values()))
        self.evaluations = {key: folder.evaluation() for key, folder in self.folders.items()}
        self._opened = self.folders, self.evaluations
        self._kept: dict[tuple[object, ...], Any] = {}
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

    def choose(self, arms: Sequence[str]) -> None:
        """Go on with some of the arms that were opened, in this order; at least one.

        Raises:
            RunsError: no arm of a name, or none named.
        """
        self.folders, self.evaluations = folders, _ = self._opened
        keys = [key for arm in map(self.arm, arms) for key in folders if key[0] == arm]
        if not keys:
            raise RunsError(f"arms: expected at least one of {', '.join(self.arms)}, found none")
        self.folders, self.evaluations = ({key: of[key] for key in keys} for of in self._opened)

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
        """Kinds of AP that every run opened has: "bbox", "segm"."""
        return [t for t in IOU_NAMES if all(t in e.metrics for e in self._opened[1].values())]

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
        """AP of all, rare, common and frequent categories; a RunsError where not every run has this kind of AP.

        `reported` puts the literature's numbers first if the runs were evaluated on the same LVIS validation set.

        Returns:
            One row per arm: arm, AP, APr, APc, APf (mean over seeds; NaN where absent), `reported` (the literature's?),
            and if an arm has several seeds METRIC_low and METRIC_high: the 95 % interval of the mean (Student's t) from
            three seeds on, lowest and highest of two; METRIC_spread: half the distance of lowest and highest, as in
            studies' tables.
        """
        self.require(iou_type)
        rows = []
        for arm in self.arms:
            values = pd.DataFrame([e.metrics[iou_type] for e in self.of_arm(arm)])
            row: dict[str, object] = {"arm": self.title(arm), "seeds": len(values)}
            for metric in METRICS:
                row[metric] = values[metric].astype(float).mean()
                if len(self.folders) > len(self.arms):
                    own = values[metric].to_numpy(float)
                    row[f"{metric}_low"], row[f"{metric}_high"] = interval_of_mean(own)
                    row[f"{metric}_spread"] = (own.max() - own.min()) / 2 if len(own) > 1 else np.nan
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
        """What one arm gains over another, category by category; a RunsError where there is no arm of that name.

        Args:
            arm: folder name without the seed, such as "rio"; None: the last.
            baseline: the same; None: the one before the last (RFS, in the demo).

        Returns:
            category_id, name, frequency, image_count, difference (percentage points; NaN without ground truth); its
            `attrs` name the arms. Of one arm all differences are NaN, and `attrs` say why as `note`.
        """
        if len(self.arms) < 2:
            for name in filter(None, (arm, baseline)):
                self.arm(name)
            table = self.per_category(iou_type).drop(columns=["arm", "AP"]).assign(difference=np.nan)
            note = f"A difference needs two arms; there is one: {self.arms[0]}. Add the folder of another run."
            table.attrs.update(note=note)
            return table
        arm, baseline = self.arm(arm or self.arms[-1]), self.arm(baseline or self.arms[-2])
        table = self.per_category(iou_type)
        first, second = (table[table["arm"] == self.title(a)].reset_index(drop=True) for a in (arm, baseline))
        table = first.drop(columns=["arm", "AP"]).assign(difference=first["AP"] - second["AP"])
        table.attrs.update(arm=NAMES.get(arm, arm), baseline=NAMES.get(baseline, baseline), kind=IOU_NAMES[iou_type])
        return table

    def arm(self, name: str) -> str:
        """The arm of a name as its folder has it, or as the figures and tables do."""
        for arm in self.arms:
            if name in (arm, NAMES.get(arm, arm), self.title(arm)):
                return arm
        raise RunsError(f"arm: expected one of {', '.join(self.arms)}, found {name!r}")

    def settings(self) -> pd.DataFrame:
        """`rio.analysis.find_runs.settings_that_differ` of these runs."""
        return settings_that_differ(self.folders)

    def remarks(self) -> list[str]:
        """What is to be known before these runs are compared: unlike lengths, categories never seen in training."""
        length = {arm: folder.setting("SOLVER.MAX_ITER") for (arm, _), folder in self.folders.items()}
        said = []
        if len(set(length.values())) > 1:
            text = ", ".join(f"{self.title(arm)} {steps or 'unknown'}" for arm, steps in length.items())
            said.append(f"Trained for unlike numbers of iterations, which alone moves AP: {text}.")
        ids = np.array(self.category_ids)[self.image_count == 0] if self.training_set is not None else np.array([])
        if len(ids):
            first = next(iter(self.evaluations.values())).per_category.set_index("category_id").loc[ids]
            names = ", ".join(first["name"][:5]) + (", ..." if len(ids) > 5 else "")
            number = "1 category was" if len(ids) == 1 else f"{len(ids)} categories were"
            apart = f"{number} never seen in training ({names}), counted as rare."
            if "bbox" in self.iou_types:
                ap = {arm: self._unseen(arm, ids) for arm in self.arms}
                apart += " Box AP of them, and APr without them: "
                apart += ", ".join(f"{self.title(arm)} {own:.1f}, {rest:.1f}" for arm, (own, rest) in ap.items()) + "."
            said.append(apart)
        return said

    def _unseen(self, arm: str, category_ids: np.ndarray) -> tuple[float, float]:
        """Mean box AP of these categories, and of the other rare ones; over seeds."""
        table = self.per_category().query("arm == @self.title(@arm)")
        is_unseen = table["category_id"].isin(category_ids)
        return table.loc[is_unseen, "AP"].mean(), table.loc[~is_unseen & (table["frequency"] == "r"), "AP"].mean()

    def results(self, key: tuple[str, str]) -> Results:
        """A run's predictions."""
        return load_results(self._opened[0][key].predictions_file, self.truth)

    def _of_run(self, function: Callable[..., Any], key: tuple[str, str], **options: Any) -> Any:
        """What a function makes of a run's predictions; kept, for runs are chosen again and again."""
        kept = (function, key, *map(str, options.values()))
        if kept not in self._kept:
            self._kept[kept] = function(self.truth, self.results(key), **options)
        return self._kept[kept]

    @property
    def evaluated_again(self) -> dict[tuple[str, str], Evaluation]:
        """Every run evaluated from its results file: these have the precision-recall arrays."""
        options = {"iou_types": self.iou_types, "allow_empty": True}
        return {key: self._of_run(evaluate, key, **options) for key in self.folders}

    def recomputed(self) -> pd.DataFrame:
        """AP in evaluation.json and AP computed again from instances_results.json, per run and kind of AP."""
        rows = [
            {"run": folder.path.name, "kind": IOU_NAMES[kind], "stored": self.evaluations[key].metrics[kind]["AP"],
             "recomputed": self.evaluated_again[key].metrics[kind]["AP"]}
            for key, folder in self.folders.items()
            for kind in self.iou_types
        ]  # fmt: skip
        return pd.DataFrame(rows)

    @cached_property
    def thresholds(self) -> dict[tuple[str, str], float]:
        """Of every run the score from which a prediction counts: `rio.results.thresholds.best_threshold`."""
        return {
            key: best_threshold(self.truth, None, errors=self.matches(key, LOWEST_SCORE)) for key in self._opened[0]
        }

    def matches(self, key: tuple[str, str], score_threshold: float) -> pd.DataFrame:
        """`rio.results.errors.find_errors` of a run's predictions of this score or more, without missed objects."""
        if score_threshold < LOWEST_SCORE:
            return find_errors(self.truth, self.results(key), score_threshold=score_threshold)
        if key not in self._matches:  # once for all thresholds: predictions of lower scores change nothing above them
            self._matches[key] = find_errors(self.truth, self.results(key), score_threshold=LOWEST_SCORE)[MATCHES]
        return self._matches[key][self._matches[key]["score"] >= score_threshold]

    def errors(self, *, score_threshold: float | None = None) -> pd.DataFrame:
        """What became of the objects of each frequency group, and which kinds of wrong predictions there are.

        An object counts once, under the best that happened to it. A wrong prediction counts under the group of the
        predicted category; those of categories that are not verified in their image are left out, as in LVIS.
        Predictions count from `score_threshold` (0..1) on; None: each run's own, see `thresholds`.

        Returns:
            arm, frequency, part ("objects" or "predictions"), kind, count (mean over seeds), objects (of the group),
            per_100 (count per 100 objects of the group), score_threshold (mean over seeds).
        """
        groups = self.truth.frequency[self.truth.annotation_class[JudgedPairs.of(self.truth).counted]]
        parts = []
        for key in self.folders:
            rows = self.matches(key, threshold := self.thresholds[key] if score_threshold is None else score_threshold)
            objects = pd.DataFrame({"frequency": groups, "kind": outcomes(self.truth, rows).to_numpy()})
            for part, table, kinds in (("objects", objects, OUTCOMES), ("predictions", rows, WRONG)):
                index = pd.MultiIndex.from_product([GROUP_NAMES, kinds], names=["frequency", "kind"])
                counts = table[["frequency", "kind"]].astype(str).value_counts().reindex(index, fill_value=0)
                own = {"arm": self.title(key[0]), "part": part, "score_threshold": threshold}
                parts.append(counts.reset_index(name="count").assign(**own))
        table = pd.concat(parts).groupby(["arm", "frequency", "part", "kind"], sort=False).mean().reset_index()
        table["objects"] = table["frequency"].map(pd.Series(groups).value_counts()).fillna(0).astype(int)
        table = table[table["objects"] > 0]
        return table.assign(per_100=100 * table["count"] / table["objects"]).reset_index(drop=True)

    def breakdown(self) -> pd.DataFrame:
        """By arm (mean over seeds) and group: `rio.results.breakdown.breakdown`, and arm."""
        tables = [self._of_run(breakdown, key).assign(arm=self.title(key[0])) for key in self.folders]
        return pd.concat(tables).groupby(["arm", "group"], sort=False).mean().reset_index()

    def confusions(self, arm: str | None = None, *, score_threshold: float | None = None) -> pd.DataFrame:
        """Of 100 objects of each category, what they are taken for, from frequent to rare categories.

        `arm` None is the last; `score_threshold` as for `errors`. Index: names of the categories that have objects, by
        falling image_count; columns: the same names, "others" (categories without objects) and "missed"; `attrs` name
        the arm, each category's frequency group and the score_threshold.
        """
        truth, arm = self.truth, self.arm(arm or self.arms[-1])
        keys = [key for key in self.folders if key[0] == arm]
        lowest = {key: self.thresholds[key] if score_threshold is None else score_threshold for key in keys}
        matrix = np.mean([self._of_run(confusions, k, score_threshold=lowest[k]) for k in keys], axis=0)[:-1]
        there = np.flatnonzero(matrix.sum(axis=1))
        order = there[np.argsort(-self.image_count[there], kind="stable")]
        names = [truth.category_names[k] for k in order]
        table = pd.DataFrame(matrix[order][:, order], names, names)
        table["others"] = np.delete(matrix[order, :-1], order, axis=1).sum(axis=1)
        table["missed"] = matrix[order, -1]
        table = 100 * table.div(table.sum(axis=1), axis=0)
        table.attrs.update(arm=self.title(arm), frequency=truth.frequency[order].tolist())
        table.attrs.update(score_threshold=score_threshold)
        return table

    def markdown(self, iou_type: str = "bbox") -> str:
        """The table of `by_group` in Markdown."""
        self.require(iou_type)
        return markdown_table(IOU_NAMES[iou_type], self._cells(iou_type))

    def latex(self, iou_type: str = "bbox") -> str:
        """The table of `by_group` in LaTeX (needs the package booktabs)."""
        self.require(iou_type)
        return latex_table(IOU_NAMES[iou_type], self._cells(iou_type))

    def _cells(self, iou_type: str, **options: bool) -> list[list[str]]:
        cells, table = [], self.by_group(iou_type, **options)
        for row in table.to_dict("records"):
            cells.append([str(row["arm"]), *(with_spread(row[m], row.get(f"{m}_spread", np.nan)) for m in METRICS)])
        return with_best(cells, table)
