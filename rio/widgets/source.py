"""Ground truth and predictions, ready to be browsed: read once, as columns; no image is opened here.

D: predictions, A: annotations, n: entries (predictions first, then objects).
"""

from __future__ import annotations

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
from rio.results.errors import KINDS, find_errors
from rio.results.federated import JudgedPairs
from rio.results.reading import Results, ResultsError, load_results
from rio.widgets import theme

# Predictions below are not sorted into kinds (an LVIS run keeps 300 per image, most near 0). The explanation of a
# missed object still shows them.
LOWEST_SCORE = 0.05

FOUND_IOU = 0.5
SHOWN_KINDS = ("missed", "classification", "localisation", "background", "duplicate", "both", "correct", "unverified")
POINTING = ("correct", "classification", "localisation")  # kinds of predictions that leave their object not missed
GROUPS = tuple(GROUP_NAMES)
ORDERS = {
    "highest score first": "score",
    "lowest score first": "-score",
    "rarest class first": "rarity",
    "by image": "image",
}
DEMO_RUN = "output/demo/rio-seed1"
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
        lowest_score: predictions below are not sorted into kinds.
    """

    truth: Annotations
    results: Results
    train: Annotations | None
    title: str
    note: str = ""
    lowest_score: float = LOWEST_SCORE

    @cached_property
    def matches(self) -> pd.DataFrame:
        """`rio.results.errors.find_errors` of all predictions from `lowest_score` on."""
        return find_errors(self.truth, self.results, iou_threshold=FOUND_IOU, score_threshold=self.lowest_score)

    @cached_property
    def entries(self) -> Entries:
        """All that can be browsed, whatever the threshold."""
        return Entries(self.truth, self.matches)

    def summary(self, threshold: float = 0.3) -> pd.DataFrame:
        """Predictions and missed objects of each kind: one row per kind; columns rare, common, frequent, all."""
        entries, shown = self.entries, self.entries.active(threshold)
        counts = {
            name: np.bincount(entries.kind[shown & (entries.own_group == k)], minlength=len(KINDS))
            for k, name in enumerate(GROUP_NAMES.values())
        }
        table = pd.DataFrame(counts, index=pd.Index(KINDS, name="kind")).loc[list(SHOWN_KINDS)]
        return table.assign(all=table.sum(axis=1))

    def accounts_for_all(self, threshold: float = 0.3) -> bool:
        """Whether each prediction has exactly one kind, and each object is either found, pointed at or missed."""
        shown, rows = self.entries.active(threshold), self.matches[self.matches["score"] >= threshold]
        missed = int((shown & (self.entries.result_index < 0)).sum())
        objects = int(JudgedPairs.of(self.truth).ground_truth.sum())
        reached = rows[rows["kind"].isin(POINTING)]["annotation_index"].nunique()
        return int(shown.sum()) == len(rows) + missed and objects == reached + missed

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


class Entries:
    """Columns of all predictions (first) and all objects (each can be missed at some threshold), from `find_errors`.

    Attributes:
        score: (n,) a prediction's score; of an object the highest score of a prediction that finds or points at it:
            it is missed at every threshold above (-inf: at all).
        kind, image: (n,) code into `KINDS`; image index.
        class_id, gt_class: (n,) predicted class (the object's own if missed); the object's class, -1: none.
        own_group, other_group: (n,) codes into `GROUP_NAMES` of these two classes (the same if there is one).
        result_index, annotation_index: (n,) rows of `Results` and `Annotations`, -1: none.
        iou: (n,) as in `find_errors`.
        rarity: (n,) rank of the rarest class involved, 0 the rarest.
        area: (n,) px², 0 of predictions.
    """

    def __init__(self, truth: Annotations, matches: pd.DataFrame) -> None:
        rows = matches[matches["result_index"] >= 0]
        objects = np.flatnonzero(JudgedPairs.of(truth).ground_truth)
        pointed = rows[rows["kind"].isin(POINTING)]
        best = np.full(truth.num_annotations, -np.inf)
        np.maximum.at(best, pointed["annotation_index"].to_numpy(), pointed["score"].to_numpy())

        def joined(of_predictions: Any, of_objects: Any) -> np.ndarray:
            return np.concatenate([np.asarray(of_predictions), np.broadcast_to(of_objects, len(objects))])

        self.score = joined(rows["score"], best[objects])
        self.kind = joined(rows["kind"].cat.codes, KINDS.index("missed"))
        self.image = joined(rows["image_index"], truth.annotation_image[objects]).astype(np.int64)
        self.result_index = joined(rows["result_index"], -1)
        self.annotation_index = joined(rows["annotation_index"], objects)
        self.iou = joined(rows["iou"], np.nan)
        self.area = joined(np.zeros(len(rows)), truth.areas[objects])
        classes = np.append(truth.annotation_class, -1).astype(np.int64)  # annotation -1 has no class
        predicted = category_id_to_class_id(truth.category_ids, rows["category_id"].to_numpy())
        self.class_id = joined(predicted, classes[objects])
        self.gt_class = classes[self.annotation_index]
        other = np.where(self.gt_class >= 0, self.gt_class, self.class_id)
        group = np.array([GROUPS.index(g) for g in truth.frequency.tolist()], np.int8)
        self.own_group, self.other_group = group[self.class_id], group[other]
        rank = np.argsort(np.lexsort((truth.image_count, group)))  # the group is the training set's, and comes first
        self.rarity = np.minimum(rank[self.class_id], rank[other])

    def active(self, threshold: float) -> np.ndarray:
        """(n,) bool: predictions from the threshold on, and the objects that none of them finds or points at."""
        return np.where(self.result_index >= 0, self.score >= threshold, self.score < threshold)

    def select(self, threshold: float, *, group: str = "", class_id: int = -1) -> np.ndarray:
        """(n,) bool: active entries that involve a group or a class, as the predicted one or as the object's."""
        chosen = self.active(threshold)
        if group:
            code = GROUPS.index(group)
            chosen &= (self.own_group == code) | (self.other_group == code)
        if class_id >= 0:
            chosen &= (self.class_id == class_id) | (self.gt_class == class_id)
        return chosen

    def ordered(self, rows: np.ndarray, order: str) -> np.ndarray:
        """Row numbers in an order of `ORDERS`. Missed objects have no score: the largest come first."""
        missed = self.result_index[rows] < 0
        score, size = np.where(missed, 0.0, self.score[rows]), np.where(missed, -self.area[rows], 0.0)
        keys = {
            "score": (size, -score, missed),
            "-score": (size, score, missed),
            "rarity": (size, -score, self.rarity[rows]),
            "image": (size, -score, missed, self.image[rows]),
        }[order]
        return rows[np.lexsort(keys)]


@theme.sentences
def open_predictions(
    run: str | os.PathLike[str] | None = DEMO_RUN,
    *,
    results: str | os.PathLike[str] | Sequence[dict[str, Any]] | None = None,
    dataset: str | None = None,
    train: str | None = None,
    lowest_score: float = LOWEST_SCORE,
) -> PredictionSource:
    """Read the predictions of a run, or any results file with its ground truth.

    Args:
        run: a run's folder; its config.yaml names the data sets. If the demo's folder is missing, predictions are made
            up from the embedded set, and the page says so.
        results: a COCO/LVIS results JSON (or its records) instead of a run; needs `dataset`.
        dataset: ground truth, as for `open_dataset`: "val.json@images".
        train: training set, in the same form; gives frequency groups, counts and crops.
        lowest_score: predictions below are not sorted into kinds.

    Raises:
        NotebookError: files that are missing, or do not belong together.
    """
    if results is not None:
        if dataset is None:
            raise ResultsError(
                "results: expected their ground truth too, found none. Fix: give dataset='val.json@images'"
            )
        if not isinstance(results, (str, os.PathLike)):
            return _source(dataset, train, results, "results", lowest_score)
        return _source(dataset, train, names.find(results), f"results {results}", lowest_score)
    folder = RunFolder(names.find(run)) if run is not None else None
    if folder is None or not folder.path.is_dir():
        if run is not None and os.fspath(run) not in ("", DEMO_RUN):
            raise FileNotFoundError(
                f"run {run}: expected a folder with config.yaml and instances_results.json, found nothing at "
                f"{folder.path}. Fix: `make demo` makes {DEMO_RUN}"
            )
        (truth, _), (train_set, _) = (
            names.browse("shapes_demo_val", segmentations=True),
            names.browse("shapes_demo_train"),
        )
        made_up = load_results(made_up_results(truth), truth)
        return PredictionSource(truth, made_up, train_set, "made-up predictions, embedded set", MADE_UP, lowest_score)
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
    return _source(dataset, train, folder.predictions_file, f"run {folder.path}", lowest_score)


def _source(dataset: str, train: str | None, results: Any, title: str, lowest_score: float) -> PredictionSource:
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
    return PredictionSource(truth, load_results(results, truth), train_set, title, note, lowest_score)


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
        size, (x, y, w, h) = np.array([a.image_width[i], a.image_height[i]], float), a.boxes[row]
        for score, class_id, noise in ((rng.beta(6, 2), named, loose), (rng.beta(1, 7), other, 0.2)):
            dx, dy, dw, dh = rng.normal(0, noise, 4)
            low = np.clip([x + dx * w, y + dy * h], 0, size - 2)
            high = np.clip(low + np.exp([dw, dh]) * (w, h), low + 2, size)
            box = [*low.tolist(), *(high - low).tolist()]
            record = {"image_id": int(a.image_ids[i]), "category_id": int(a.category_ids[class_id]), "bbox": box}
            record["score"] = float(np.clip(score, 0.001, 0.999))
            if a.has_segmentations:
                record["segmentation"] = _moved_mask(a, row, (x, y, w, h), box)
            records.append(record)
    return records


def _moved_mask(annotations: Annotations, row: int, source: Sequence[float], target: Sequence[float]) -> dict[str, Any]:
    """An object's polygons, moved from one box to another, as RLE."""
    i = int(annotations.annotation_image[row])
    size = int(annotations.image_height[i]), int(annotations.image_width[i])
    polygons = annotations.segmentation(row)
    if not isinstance(polygons, list):
        (x, y, w, h), source = target, target
        polygons = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    scale = np.divide(target[2:], np.maximum(source[2:], 1e-6))
    moved = [((np.reshape(p, (-1, 2)) - source[:2]) * scale + target[:2]).ravel().tolist() for p in polygons]
    rle = rle_of(moved, *size)
    return {"size": list(size), "counts": rle["counts"].decode()}
