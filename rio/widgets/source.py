"""Ground truth and predictions, ready to be browsed: read once, as columns; no image is opened here."""

import dataclasses
import html
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from rio.analysis.run_folder import RunFolder
from rio.data import names
from rio.data.annotations import GROUP_NAMES, Annotations, category_id_to_class_id, check_same_categories
from rio.data.masks import rle_of
from rio.results.errors import OUTCOMES, find_errors, outcomes, verdicts
from rio.results.federated import JudgedPairs
from rio.results.reading import Results, ResultsError, load_results
from rio.results.thresholds import LOWEST_SCORE, best_threshold
from rio.widgets import theme

FOUND_IOU = 0.5
SHOWN_KINDS = ("missed", "classification", "localisation", "background", "duplicate", "both", "correct", "unverified")
PREDICTED = ("correct", "classification", "localisation", "both", "duplicate", "background", "unverified")
POINTING = ("correct", "classification", "localisation")  # kinds of predictions that leave their object not missed
# The columns of `PredictionSource.entries` to sort by. Missed objects have no score: the largest come first.
ORDERS = {
    "highest score first": ("is_object", "falling_score", "falling_area"),
    "lowest score first": ("is_object", "rising_score", "falling_area"),
    "rarest class first": ("rarity", "falling_score", "falling_area"),
    "by image": ("image", "is_object", "falling_score", "falling_area"),
}
UNSEEN = "u"  # group of categories that the training set has no object of; LVIS counts them as rare
GROUPS = GROUP_NAMES | {UNSEEN: "unseen"}
PREDICTIONS, OBJECTS = "predictions, by the predicted class's group", "objects, by their own class's group"
DEMO_RUN = "output/demo/rfs+bank-cosine-seed1"
MADE_UP = (
    "No trained run was found, so these predictions are MADE UP from the ground truth, to show what this page does: "
    "they say nothing about RIO. `make demo` trains a real run."
)


@dataclasses.dataclass(frozen=True, eq=False)
class PredictionSource:
    """Ground truth and results, ready to be browsed.

    Attributes:
        truth: ground truth, with the frequency groups of the training set if there is one.
        results: predictions.
        train: training set, for crops and counts; None: not at hand.
        title: what this is, for a reader.
        note: what the reader must know about it; "" if nothing.
        asked: score from which a prediction counts; None: `best`.
    """

    truth: Annotations
    results: Results
    train: Annotations | None
    title: str
    note: str = ""
    asked: float | None = None

    @property
    def lowest(self) -> float:
        """Predictions below this score are not sorted into kinds; "Why?" still shows them."""
        return LOWEST_SCORE if self.asked is None else min(self.asked, LOWEST_SCORE)

    @property
    def threshold(self) -> float:
        """The score from which a prediction counts, unless another is asked for."""
        return self.best if self.asked is None else self.asked

    @cached_property
    def best(self) -> float:
        """`rio.results.thresholds.best_threshold` of these predictions."""
        return best_threshold(self.truth, self.results, errors=self.matches)

    @cached_property
    def groups(self) -> np.ndarray:
        """(K,) "r", "c", "f", or `UNSEEN`."""
        unseen = self.train is not None and self.train.image_count == 0
        return np.where(unseen, UNSEEN, self.truth.frequency)

    @cached_property
    def group_names(self) -> dict[str, str]:
        """The groups' names; "unseen" where there are such categories only."""
        return {group: name for group, name in GROUPS.items() if group != UNSEEN or (self.groups == UNSEEN).any()}

    @cached_property
    def scores_by_group(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Name of a group -> ascending scores of its judged predictions, and of the right ones among them."""
        rows, names = (
            self.entries[~self.entries["is_object"] & (self.entries["kind"] != "unverified")],
            self.group_names,
        )
        own = {name: rows[rows["own_group"] == group] for group, name in names.items()}
        parts = {name: (of["score"], of.loc[of["kind"] == "correct", "score"]) for name, of in own.items()}
        return {name: (np.sort(every), np.sort(right)) for name, (every, right) in parts.items()}

    @cached_property
    def matches(self) -> pd.DataFrame:
        """`rio.results.errors.find_errors` of all predictions from `lowest` on."""
        return find_errors(self.truth, self.results, iou_threshold=FOUND_IOU, score_threshold=self.lowest)

    @cached_property
    def entries(self) -> pd.DataFrame:
        """All that can be browsed, whatever the threshold: predictions first, then all objects.

        Columns: kind, iou, result_index, annotation_index as in `find_errors`; score (of an object the highest of a
        prediction that finds or points at it: it is missed at every threshold above; -inf: at all); image (index);
        class_id, gt_class (predicted, the object's own if missed; the object's, -1: none), own_group, other_group
        (of these two classes; the same if there is one); rarity (rank of the rarest of them), and what `ORDERS` needs.
        """
        truth, columns = self.truth, ["kind", "score", "iou", "image_index", "result_index", "annotation_index"]
        found = self.matches[self.matches["result_index"] >= 0]
        pointing = found[found["kind"].isin(POINTING)].groupby("annotation_index")["score"].max()
        rows = np.flatnonzero(JudgedPairs.of(truth).counted)
        objects = pd.DataFrame({"score": pointing.reindex(rows, fill_value=-np.inf).array, "annotation_index": rows})
        objects["kind"] = pd.Categorical(["missed"] * len(rows), found["kind"].cat.categories)
        objects = objects.assign(image_index=truth.annotation_image[rows], result_index=-1, iou=np.nan)
        table = pd.concat([found[columns], objects[columns]], ignore_index=True)
        predicted = category_id_to_class_id(truth.category_ids, found["category_id"].to_numpy())
        class_id = np.append(predicted, truth.annotation_class[rows])
        gt_class = np.append(truth.annotation_class, -1)[table["annotation_index"]]  # annotation -1 has no class
        other, is_object = np.where(gt_class >= 0, gt_class, class_id), table["result_index"] < 0
        group = pd.Categorical(self.groups, list(GROUPS))
        in_group = pd.Categorical(truth.frequency, list(GROUP_NAMES))
        # The group is the training set's, and comes first.
        rank = np.argsort(np.lexsort((truth.image_count, in_group.codes)))
        falling_area = np.append(np.zeros(len(found)), -truth.areas[rows])
        return table.rename(columns={"image_index": "image"}).assign(
            class_id=class_id, gt_class=gt_class, own_group=group[class_id], other_group=group[other],
            rarity=np.minimum(rank[class_id], rank[other]), is_object=is_object, falling_area=falling_area,
            rising_score=table["score"].where(~is_object, 0), falling_score=-table["score"].where(~is_object, 0),
        )  # fmt: skip

    def active(self, threshold: float) -> pd.Series:
        """Which entries there are from a score on: predictions, and objects that none of them finds or points at."""
        return (self.entries["score"] >= threshold) ^ self.entries["is_object"]

    @cached_property
    def found_score(self) -> np.ndarray:
        """(annotations,) highest score of a prediction that finds the object; -inf: none does."""
        found = self.matches[self.matches["kind"] == "correct"]
        scores = np.full(self.truth.num_annotations, -np.inf)
        scores[found["annotation_index"]] = found["score"]
        return scores

    @cached_property
    def verdicts(self) -> np.ndarray:
        """(predictions,) "right", "wrong", or "open": not judged, or below `lowest`."""
        return verdicts(self.matches, len(self.results))

    def involving(self, group: str = "", class_id: int = -1) -> pd.Series:
        """Which entries involve a frequency group or a class, as the predicted class's or the object's.

        Args:
            group: "r", "c", "f" or `UNSEEN`; "": all.
            class_id: -1: all.
        """
        table = self.entries
        chosen = pd.Series(True, table.index)
        if group:
            chosen &= (table["own_group"] == group) | (table["other_group"] == group)
        if class_id >= 0:
            chosen &= (table["class_id"] == class_id) | (table["gt_class"] == class_id)
        return chosen

    def summary(self, threshold: float | None = None) -> pd.DataFrame:
        """Two tables, each by one rule: predictions from a score on, by kind and the predicted class's group; objects,
        by the best that happened to them and their own group, so that a column adds up to the group's objects.

        Args:
            threshold: None: `threshold`.

        Returns:
            Rows (`PREDICTIONS` or `OBJECTS`, kind); columns rare, common, frequent (and unseen, if any), all.
        """
        rows = self.matches[self.matches["score"] >= (self.threshold if threshold is None else threshold)]
        outcome = outcomes(self.truth, rows)
        classes = category_id_to_class_id(self.truth.category_ids, rows["category_id"].to_numpy())
        parts = {}
        for name, kind, class_id, kinds in (
            (PREDICTIONS, rows["kind"].astype(str).to_numpy(), classes, PREDICTED),
            (OBJECTS, outcome.astype(str).to_numpy(), self.truth.annotation_class[outcome.index], OUTCOMES),
        ):
            table = pd.crosstab(kind, self.groups[class_id]).reindex(
                index=kinds, columns=self.group_names, fill_value=0
            )
            parts[name] = table.set_axis(list(self.group_names.values()), axis=1).rename_axis(index=None, columns=None)
        table = pd.concat(parts)
        return table.assign(all=table.sum(axis=1))

    def accounts_for_all(self, threshold: float | None = None) -> bool:
        """Whether each prediction has exactly one kind, and each object is either found, pointed at or missed."""
        threshold = self.threshold if threshold is None else threshold
        shown, rows = self.active(threshold), self.matches[self.matches["score"] >= threshold]
        missed, counted = (shown & self.entries["is_object"]).sum(), JudgedPairs.of(self.truth).counted
        reached = counted[rows[rows["kind"].isin(POINTING)]["annotation_index"].unique()].sum()
        return bool(shown.sum() == len(rows) + missed and counted.sum() == reached + missed)

    def __repr__(self) -> str:
        return f"PredictionSource({self.title}: {self.truth.num_images} images, {len(self.results)} predictions)"

    def _repr_html_(self) -> str:
        groups = self.truth.frequency[self.truth.annotation_class]
        cells = [(self.truth.num_images, "images"), (len(groups), "objects"), (len(self.results), "predictions")]
        cells += [((groups == g).sum(), f"{name} objects") for g, name in GROUP_NAMES.items()]
        return theme.view(banner(self.note) + theme.tiles(cells, self.title))


def banner(text: str) -> str:
    """A coloured box with what the reader must know; "" for no text."""
    return f'<div class="rio-banner">{html.escape(text)}</div>' if text else ""


@theme.sentences
def open_predictions(
    run: str | os.PathLike[str] | None = DEMO_RUN,
    *,
    results: str | os.PathLike[str] | Sequence[dict[str, Any]] | None = None,
    dataset: str | None = None,
    train: str | None = None,
    threshold: float | None = None,
) -> PredictionSource:
    """Read the predictions of a run, or any results file with its ground truth.

    Args:
        run: a run's folder; its config.yaml names the data sets. If the demo's folder is missing, predictions are made
            up from the embedded set, and the page says so.
        results: a COCO/LVIS results JSON (or its records) instead of a run; needs `dataset`.
        dataset: ground truth, as for `open_dataset`: "val.json@images".
        train: training set, in the same form; gives frequency groups, counts and crops.
        threshold: score from which a prediction counts, 0..1; None: chosen from these predictions, see
            `rio.results.thresholds.best_threshold`.

    Raises:
        NotebookError: files that are missing, or do not belong together.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ResultsError(f"threshold: expected a score of 0 to 1, found {threshold}. Fix: None chooses one")
    if results is not None:
        if dataset is None:
            raise ResultsError(
                "results: expected their ground truth too, found none. Fix: give dataset='val.json@images'"
            )
        is_file = isinstance(results, (str, os.PathLike))
        title = f"results {results}" if is_file else "results"
        return _source(dataset, train, names.find(results) if is_file else results, title, threshold)
    folder = RunFolder(names.find(run)) if run is not None else None
    if folder is None or not folder.path.is_dir():
        if run is not None and os.fspath(run) not in ("", DEMO_RUN):
            raise FileNotFoundError(
                f"run {run}: expected a folder with config.yaml and instances_results.json, found nothing at "
                f"{folder.path}. Fix: `make demo` makes {DEMO_RUN}"
            )
        truth, train_set = names.browse("shapes_demo_val", segmentations=True)[0], names.browse("shapes_demo_train")[0]
        made_up = load_results(made_up_results(truth), truth)
        return PredictionSource(truth, made_up, train_set, "made-up predictions, embedded set", MADE_UP, threshold)
    if not folder.predictions_file.is_file():
        raise FileNotFoundError(
            f"{folder.path}: expected instances_results.json, found none: the run has not been evaluated yet. It is "
            "written when training ends. Fix: let it finish, or run `python -m rio eval`"
        )
    if dataset is None:
        sets = {split: folder.datasets(split) for split in ("TRAIN", "TEST")}
        if not all(sets.values()):
            raise ResultsError(
                f"{folder.config_file}: expected DATASETS.TRAIN and DATASETS.TEST with a name each, found no file or "
                "no names. Fix: give dataset='val.json@images'"
            )
        dataset, train = sets["TEST"][0], train or sets["TRAIN"][0]
    return _source(dataset, train, folder.predictions_file, f"run {folder.path}", threshold)


def _source(dataset: str, train: str | None, results: Any, title: str, threshold: float | None) -> PredictionSource:
    truth, _ = names.browse(dataset, segmentations=True)
    train_set, note = None, ""
    if train:
        try:
            train_set, _ = names.browse(train)
        except (FileNotFoundError, names.DatasetNameError) as error:
            note = f"The training set is not at hand, so there are no crops of it: {theme.sentence(error)}"
        else:
            check_same_categories(train_set, truth)
            truth = truth.with_frequency_of(train_set)
    return PredictionSource(truth, load_results(results, truth), train_set, title, note, threshold)


def made_up_results(annotations: Annotations, seed: int = 0) -> list[dict[str, Any]]:
    """LVIS results made from the ground truth, for demonstration and tests; rare classes are missed more often."""
    rng, a = np.random.default_rng(seed), annotations
    found, frequent = {"r": 0.35, "c": 0.6, "f": 0.8}, np.flatnonzero(annotations.frequency == "f")
    records = []
    for row in range(a.num_annotations):
        i, k = int(a.annotation_image[row]), int(a.annotation_class[row])
        luck, skill = rng.random(), found[str(a.frequency[k])]
        if luck > skill + 0.3:
            continue
        named = k if luck < skill or not len(frequent) else int(rng.choice(frequent))
        loose = 0.35 if rng.random() < 0.12 else 0.05
        other = int(rng.integers(a.num_classes))
        size, source = np.array([a.image_width[i], a.image_height[i]], float), a.boxes[row]
        for score, class_id, noise in ((rng.beta(6, 2), named, loose), (rng.beta(1, 7), other, 0.2)):
            move, stretch = rng.normal(0, noise, (2, 2))
            low = np.clip(source[:2] + move * source[2:], 0, size - 2)
            high = np.clip(low + np.exp(stretch) * source[2:], low + 2, size)
            record = {"image_id": int(a.image_ids[i]), "category_id": int(a.category_ids[class_id])}
            record |= {"bbox": [*low.tolist(), *(high - low).tolist()]}
            record["score"] = float(np.clip(score, 0.001, 0.999))
            polygons = a.segmentation(row)
            if isinstance(polygons, list):  # moved with the box
                scale = (high - low) / np.maximum(source[2:], 1e-6)
                moved = [((np.reshape(p, (-1, 2)) - source[:2]) * scale + low).ravel().tolist() for p in polygons]
                rle = rle_of(moved, *size[::-1].astype(int).tolist())
                record["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
            records.append(record)
    return records
