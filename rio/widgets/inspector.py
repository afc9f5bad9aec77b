"""Looking at predictions one by one: what is right, what is wrong, and why an object was missed.

`open_predictions` reads ground truth and results once, as columns; an image is opened when it is shown, so 20,000 of
them cost nothing. `Inspector` is the view. D predictions, A annotations.
"""

from __future__ import annotations

import dataclasses
import difflib
import html
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import traitlets

from rio import plots
from rio.data import names
from rio.data.annotations import Annotations, category_id_to_class_id, check_same_categories
from rio.data.images import read_image
from rio.results.errors import KINDS, box_iou, find_errors
from rio.results.federated import JudgedPairs
from rio.results.objects import Objects, objects_of, predictions_of
from rio.results.reading import Results, ResultsError, load_results
from rio.widgets import theme as _theme

LOWEST_SCORE = 0.05
"""Predictions below are not sorted into kinds (an LVIS run keeps 300 an image, most of them near 0); the explanation of a
missed object still shows them."""

FOUND_IOU = 0.5
MAX_SIDE = 1600  # px; larger pictures are made smaller for the page
CROPS = 9
KIND_HINTS = {
    "correct": "right class, box overlaps by 0.5 or more",
    "missed": "no prediction found the object",
    "classification": "right place, wrong class",
    "localisation": "right class, box too far off",
    "both": "wrong class and box too far off",
    "duplicate": "the object was found already",
    "background": "nothing there",
    "unverified": "LVIS does not judge this class in this image",
}
SHOWN_KINDS = ("missed", "classification", "localisation", "background", "duplicate", "both", "correct", "unverified")
ORDERS = {
    "highest score first": "score",
    "lowest score first": "-score",
    "rarest class first": "rarity",
    "by image": "image",
}

MADE_UP = (
    "No trained run was found, so these predictions are MADE UP from the ground truth, to show what this page does: they "
    "say nothing about RIO. `make demo` trains a real run."
)


# ------------------------------------------------------------------------------------------------------ data


@dataclasses.dataclass(frozen=True, eq=False)
class PredictionSource:
    """Ground truth and results, ready to be browsed.

    Attributes:
        truth: ground truth, with the frequency groups of the training set where there is one.
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
        return Entries.of(self.truth, self.matches)

    def summary(self, threshold: float = 0.3) -> pd.DataFrame:
        """How many predictions and missed objects of each kind there are: rows kinds, columns rare, common, frequent, all."""
        entries, shown = self.entries, self.entries.active(threshold)
        counts = {
            plots.GROUP_NAMES[g]: np.bincount(entries.kind[shown & (entries.own_group == k)], minlength=len(KINDS))
            for k, g in enumerate(plots.GROUPS)
        }
        table = pd.DataFrame(counts, index=pd.Index(KINDS, name="kind")).loc[list(SHOWN_KINDS)]
        return table.assign(all=table.sum(axis=1))

    def accounts_for_all(self, threshold: float = 0.3) -> bool:
        """Whether every prediction has one kind, and every object is found, pointed at or missed, exactly one of these."""
        entries, shown = self.entries, self.entries.active(threshold)
        predictions = int((self.matches["score"] >= threshold).sum())
        objects = int(JudgedPairs.of(self.truth).ground_truth.sum())
        missed = int((shown & (entries.result_index < 0)).sum())
        rows = self.matches[self.matches["score"] >= threshold]
        reached = rows[rows["kind"].isin(["correct", "classification", "localisation"])]["annotation_index"].nunique()
        return int(shown.sum()) == predictions + missed and objects == reached + missed

    def __repr__(self) -> str:
        return f"PredictionSource({self.title}: {self.truth.num_images} images, {len(self.results)} predictions)"

    def _repr_html_(self) -> str:
        groups = self.truth.frequency[self.truth.annotation_class]
        tiles = [
            (f"{self.truth.num_images:,}", "images"),
            (f"{len(groups):,}", "objects"),
            (f"{len(self.results):,}", "predictions"),
        ]
        tiles += [(f"{int((groups == g).sum()):,}", f"{name} objects") for g, name in plots.GROUP_NAMES.items()]
        body = "".join(
            f'<div class="rio-tile"><div class="rio-value">{value}</div><div class="rio-label">{label}</div></div>'
            for value, label in tiles
        )
        return (
            f'<div class="rio-view"><style>{_theme.STYLE}{STYLE}</style>{_banner(self.note)}<div class="rio-tiles">{body}'
            f'</div><div class="rio-quiet">{html.escape(self.title)}</div></div>'
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Entries:
    """Columns of all predictions (first) and all objects (as they can all be missed at some threshold).

    Attributes:
        score: (n,) a prediction's score; of an object the highest score of a prediction that finds or points at it,
            -inf if none: it is missed at every threshold above.
        kind, image, class_id, gt_class: (n,) kind code; image index; predicted class (the object's if missed); the
            object's class, -1: none.
        own_group, other_group: (n,) codes into ``plots.GROUPS`` of these two classes (the same where there is one).
        result_index, annotation_index: (n,) rows of `Results` and `Annotations`, -1: none.
        iou: (n,) as in `rio.results.errors.find_errors`.
        rarity: (n,) rank of the rarest class involved, 0 the rarest; area: (n,) px².
    """

    score: np.ndarray
    kind: np.ndarray
    image: np.ndarray
    class_id: np.ndarray
    gt_class: np.ndarray
    own_group: np.ndarray
    other_group: np.ndarray
    result_index: np.ndarray
    annotation_index: np.ndarray
    iou: np.ndarray
    rarity: np.ndarray
    area: np.ndarray

    @classmethod
    def of(cls, truth: Annotations, matches: pd.DataFrame) -> Entries:
        """Columns from the rows of `match`."""
        rows = matches[matches["result_index"] >= 0]
        objects = np.flatnonzero(JudgedPairs.of(truth).ground_truth)
        pointed = rows[rows["kind"].isin(["correct", "classification", "localisation"])]
        best = np.full(truth.num_annotations, -np.inf)
        np.maximum.at(best, pointed["annotation_index"].to_numpy(), pointed["score"].to_numpy())
        of_object = truth.annotation_class[objects].astype(np.int64)
        predicted = category_id_to_class_id(truth.category_ids, rows["category_id"].to_numpy())
        with_object = rows["annotation_index"].to_numpy()
        pointed_class = np.full(len(rows), -1)
        pointed_class[with_object >= 0] = truth.annotation_class[with_object[with_object >= 0]]
        class_id, gt_class = np.concatenate([predicted, of_object]), np.concatenate([pointed_class, of_object])
        code = np.array([plots.GROUPS.index(g) for g in truth.frequency.tolist()], np.int8)
        other = np.where(gt_class >= 0, gt_class, class_id)
        rank = np.argsort(np.lexsort((truth.image_count, code)))  # the group is the training set's, and comes first
        areas = np.concatenate([np.zeros(len(rows)), truth.areas[objects]])
        return cls(
            score=np.concatenate([rows["score"].to_numpy(), best[objects]]),
            kind=np.concatenate([rows["kind"].cat.codes.to_numpy(), np.full(len(objects), KINDS.index("missed"))]),
            image=np.concatenate([rows["image_index"].to_numpy(), truth.annotation_image[objects]]).astype(np.int64),
            own_group=code[class_id],
            other_group=code[other],
            class_id=class_id,
            gt_class=gt_class,
            result_index=np.concatenate([rows["result_index"].to_numpy(), np.full(len(objects), -1)]),
            annotation_index=np.concatenate([with_object, objects]),
            iou=np.concatenate([rows["iou"].to_numpy(), np.full(len(objects), np.nan)]),
            rarity=np.minimum(rank[class_id], rank[other]),
            area=areas,
        )

    def active(self, threshold: float) -> np.ndarray:
        """(n,) bool: predictions from the threshold on, and the objects that none of them finds or points at."""
        return np.where(self.result_index >= 0, self.score >= threshold, self.score < threshold)

    def select(self, threshold: float, *, group: str = "", class_id: int = -1) -> np.ndarray:
        """(n,) bool: active entries that involve a group or a class, as the predicted one or as the object's."""
        chosen = self.active(threshold)
        if group:
            code = plots.GROUPS.index(group)
            chosen &= (self.own_group == code) | (self.other_group == code)
        if class_id >= 0:
            chosen &= (self.class_id == class_id) | (self.gt_class == class_id)
        return chosen

    def ordered(self, rows: np.ndarray, order: str) -> np.ndarray:
        """Row numbers in an order of `ORDERS`. Missed objects have no score: the largest come first."""
        missed = self.result_index[rows] < 0
        score = np.where(missed, 0.0, self.score[rows])
        size = np.where(missed, -self.area[rows], 0.0)
        keys = {
            "score": (size, -score, missed),
            "-score": (size, score, missed),
            "rarity": (size, -score, self.rarity[rows]),
            "image": (size, -score, missed, self.image[rows]),
        }[order]
        return rows[np.lexsort(keys)]


@_theme.sentences
def open_predictions(
    run: str | os.PathLike[str] | None = "output/demo/rio-seed1",
    *,
    results: str | os.PathLike[str] | Sequence[dict[str, Any]] | None = None,
    dataset: str | None = None,
    train: str | None = None,
    lowest_score: float = LOWEST_SCORE,
) -> PredictionSource:
    """Read the predictions of a run, or any results file with its ground truth.

    Args:
        run: a run's folder; its config.yaml names the data sets. Where the folder is not there, predictions are made up
            from the embedded set, and the page says so.
        results: a COCO/LVIS results JSON (or its records) instead of a run; needs `dataset`.
        dataset: ground truth, as for `rio.widgets.open_dataset`: "val.json@images".
        train: training set, in the same way; gives frequency groups, counts and crops.
        lowest_score: predictions below are not sorted into kinds.

    Raises:
        NotebookError: files that are not there, or do not belong together.
    """
    if results is not None:
        if dataset is None:
            raise ResultsError("results: expected their ground truth too, found none. Give dataset='val.json@images'")
        title = f"results {results}" if isinstance(results, (str, os.PathLike)) else "results"
        given = names.find(results) if isinstance(results, (str, os.PathLike)) else results
        return _source(dataset, train, given, title, "", lowest_score)
    folder = names.find(run) if run is not None else None
    if folder is None or not folder.is_dir():
        if run is not None and os.fspath(run) not in ("", "output/demo/rio-seed1"):
            raise FileNotFoundError(
                f"run {run}: expected a folder with config.yaml and instances_results.json, found nothing at {folder}. "
                "`make demo` makes output/demo/rio-seed1"
            )
        truth, train_set = _annotations("shapes_demo_val"), _annotations("shapes_demo_train")
        made_up = load_results(made_up_results(truth), truth)
        return PredictionSource(truth, made_up, train_set, "made-up predictions, embedded set", MADE_UP, lowest_score)
    file = folder / "instances_results.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder}: expected instances_results.json, found none: the run has not been evaluated yet. It is written when "
            "training ends, or by `python -m rio eval`"
        )
    if dataset is None:
        sets = _datasets_of(folder)
        dataset, train = sets["TEST"], train or sets["TRAIN"]
    return _source(dataset, train, file, f"run {folder}", "", lowest_score)


def _source(
    dataset: str, train: str | None, results: Any, title: str, note: str, lowest_score: float
) -> PredictionSource:
    truth = _annotations(dataset)
    train_set = None
    if train:
        try:
            train_set = _annotations(train)
        except (FileNotFoundError, names.DatasetNameError) as error:
            note = f"The training set is not at hand, so there are no crops of it: {_theme.sentence(error)}"
        else:
            check_same_categories(train_set, truth)
            truth = truth.with_frequency_of(train_set)
    return PredictionSource(truth, load_results(results, truth), train_set, title, note, lowest_score)


def _annotations(name: str) -> Annotations:
    return names.browse(name)[0]


def _datasets_of(folder: Path) -> dict[str, str]:
    """Names of the training and the first test set that a run's config.yaml holds."""
    import yaml

    file = folder / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: expected a run's config.yaml, found none. Give dataset='val.json@images'")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {split: str(content["DATASETS"][split][0]) for split in ("TRAIN", "TEST")}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, IndexError, TypeError) as error:
        raise ResultsError(
            f"{file}: expected DATASETS.TRAIN and DATASETS.TEST with a name each, found {type(error).__name__}. Give "
            "dataset='val.json@images'"
        ) from error


def made_up_results(annotations: Annotations, seed: int = 0) -> list[dict[str, Any]]:
    """Results disturbed out of the ground truth: for demonstration and tests, never to be taken for a model's.

    Args:
        annotations: any ground truth.
        seed: other results for another seed.

    Returns:
        LVIS result records; rare classes are mistaken and missed more often than frequent ones.
    """
    rng = np.random.default_rng(seed)
    found = {"r": 0.35, "c": 0.6, "f": 0.8}
    frequent = np.flatnonzero(annotations.frequency == "f")
    frequent = frequent if len(frequent) else np.arange(annotations.num_classes)
    records = []
    for a in range(annotations.num_annotations):
        i, k = int(annotations.annotation_image[a]), int(annotations.annotation_class[a])
        luck, skill = rng.random(), found[str(annotations.frequency[k])]
        if luck > skill + 0.3:
            continue
        named = k if luck < skill else int(rng.choice(frequent))
        looseness = 0.35 if rng.random() < 0.12 else 0.05
        for score, class_id, loose in (
            (rng.beta(6, 2), named, looseness),
            (rng.beta(1, 7), int(rng.integers(annotations.num_classes)), 0.2),
        ):
            x, y, w, h = annotations.boxes[a]
            dx, dy, dw, dh = rng.normal(0, loose, 4)
            width, height = float(annotations.image_width[i]), float(annotations.image_height[i])
            x0, y0 = float(np.clip(x + dx * w, 0, width - 2)), float(np.clip(y + dy * h, 0, height - 2))
            x1 = float(np.clip(x0 + w * np.exp(dw), x0 + 2, width))
            y1 = float(np.clip(y0 + h * np.exp(dh), y0 + 2, height))
            record = {
                "image_id": int(annotations.image_ids[i]),
                "category_id": int(annotations.category_ids[class_id]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(np.clip(score, 0.001, 0.999)),
            }
            if annotations.has_segmentations:
                record["segmentation"] = _moved_mask(annotations, a, (x, y, w, h), (x0, y0, x1 - x0, y1 - y0))
            records.append(record)
    return records


def _moved_mask(annotations: Annotations, a: int, source: Sequence[float], target: Sequence[float]) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    i = int(annotations.annotation_image[a])
    size = int(annotations.image_height[i]), int(annotations.image_width[i])
    polygons = annotations.segmentation(a)
    if not isinstance(polygons, list):
        x, y, w, h = target
        polygons = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        source = target
    scale = np.array([target[2] / max(source[2], 1e-6), target[3] / max(source[3], 1e-6)])
    moved = [((np.reshape(p, (-1, 2)) - source[:2]) * scale + target[:2]).ravel().tolist() for p in polygons]
    rle = coco_mask.merge(coco_mask.frPyObjects(moved, *size))
    return {"size": list(size), "counts": rle["counts"].decode()}


# ------------------------------------------------------------------------------------------------------ explanations


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why an object was missed, or what a prediction is.

    Attributes:
        sentence: in plain words.
        table: rows of the predictions that matter: rank (by score within the image, 1 the best), name, group, score, iou, verdict.
    """

    sentence: str
    table: pd.DataFrame


def explain_object(source: PredictionSource, annotation_index: int, threshold: float, *, count: int = 6) -> Explanation:
    """Why was this object missed (or was it found)? All predictions of its image are asked, also those far below.

    Args:
        source: from `open_predictions`.
        annotation_index: row of `truth`.
        threshold: score from which a prediction counts.
        count: rows of the table.
    """
    truth = source.truth
    image, class_id = int(truth.annotation_image[annotation_index]), int(truth.annotation_class[annotation_index])
    name = truth.category_names[class_id]
    found = predictions_of(source.results, truth, image)
    iou = box_iou(found.boxes, truth.boxes[annotation_index][None])[:, 0] if len(found) else np.zeros(0)
    same, scores = found.class_ids == class_id, found.scores if len(found) else np.zeros(0)
    right = np.flatnonzero(same & (iou >= FOUND_IOU))
    overlapping = np.flatnonzero(iou >= FOUND_IOU)
    near = np.flatnonzero(same & (iou >= 0.1))
    total = len(found)
    if len(right) and scores[right[0]] >= threshold:
        sentence = f"Found: {name} with score {scores[right[0]]:.2f}, box overlap (IoU) {iou[right[0]]:.2f}."
        best_other = overlapping[0] if not same[overlapping[0]] else -1
        if best_other >= 0:
            sentence += f" A higher score, {scores[best_other]:.2f}, calls it {found.names[best_other]}."
    elif len(right):
        first = right[0]
        sentence = (
            f"The right answer is there, but its score {scores[first]:.2f} is below the threshold {threshold:.2f}: rank "
            f"{first + 1} of {total} in this image."
        )
        if overlapping[0] != first:
            other = overlapping[0]
            sentence += f" At the same place {found.names[other]} has {scores[other]:.2f}."
    elif len(overlapping):
        first = overlapping[0]
        sentence = (
            f"The place is right (IoU {iou[first]:.2f}), the name is not: it is called {found.names[first]} with score "
            f"{scores[first]:.2f}, and no box there is called {name}."
        )
    elif len(near):
        first = near[np.argmax(iou[near])]
        sentence = (
            f"The name is right, the box is not: the best {name} overlaps it by IoU {iou[first]:.2f} only (score "
            f"{scores[first]:.2f})."
        )
    elif total and iou.max() > 0.1:
        first = int(iou.argmax())
        sentence = (
            f"No box fits: the closest of {total} overlaps by IoU {iou[first]:.2f} and is called {found.names[first]} "
            f"(score {scores[first]:.2f})."
        )
    elif total:
        sentence = f"Nothing was predicted here: none of the image's {total} boxes overlaps it by more than IoU 0.1."
    else:
        sentence = "Nothing at all was predicted in this image."
    touching = np.flatnonzero(iou > 0.05)
    rows = touching[np.argsort(-iou[touching], kind="stable")][:count].tolist()
    best_named = np.flatnonzero(same)
    for extra in [*right[:1].tolist(), *best_named[:1].tolist()]:
        if extra not in rows:
            rows.append(extra)
    return Explanation(sentence, _table(found, rows, iou, same, threshold))


def explain_prediction(source: PredictionSource, entry: int, threshold: float) -> Explanation:
    """What a prediction is, and what else was predicted at its place.

    Args:
        source: from `open_predictions`.
        entry: row of ``source.entries``.
        threshold: score from which a prediction counts.
    """
    entries, truth = source.entries, source.truth
    kind, image = KINDS[entries.kind[entry]], int(entries.image[entry])
    name = truth.category_names[int(entries.class_id[entry])]
    found = predictions_of(source.results, truth, image)
    own = int(np.flatnonzero(found.indices == entries.result_index[entry])[0])
    overlap = float(entries.iou[entry])
    object_name = truth.category_names[int(entries.gt_class[entry])] if entries.gt_class[entry] >= 0 else ""
    said = f"{name} with score {found.scores[own]:.2f}, rank {own + 1} of {len(found)}"
    sentence = {
        "correct": f"Correct: {said}, overlaps its object by IoU {overlap:.2f}.",
        "classification": f"Wrong class: {said}, sits on a {object_name} (IoU {overlap:.2f}).",
        "localisation": f"Loose box: {said}, overlaps its {object_name} by IoU {overlap:.2f} only; "
        f"{FOUND_IOU} is asked for.",
        "both": f"Wrong class and loose box: {said}, the nearest object is a {object_name} (IoU {overlap:.2f}).",
        "duplicate": f"Duplicate: {said}; this {object_name} was found already with a higher score.",
        "background": f"Background: {said}, but there is no object (highest overlap IoU {overlap:.2f}).",
        "unverified": f"Not judged: {said}; LVIS's annotators did not check {name} exhaustively in this image, so this "
        "counts neither as right nor as wrong.",
    }[kind]
    if entries.annotation_index[entry] >= 0:
        return dataclasses.replace(
            explain_object(source, int(entries.annotation_index[entry]), threshold), sentence=sentence
        )
    iou = box_iou(found.boxes, found.boxes[own][None])[:, 0]
    rows = np.flatnonzero(iou > 0.3)[:6].tolist()
    same = np.zeros(len(found), bool)
    return Explanation(sentence, _table(found, rows, iou, same, threshold, judged=False))


def _table(
    found: Objects, rows: list[int], iou: np.ndarray, same: np.ndarray, threshold: float, *, judged: bool = True
) -> pd.DataFrame:
    def verdict(row: int) -> str:
        if not judged:
            return "" if found.scores[row] >= threshold else "below threshold"
        parts = ["right class" if same[row] else "other class"]
        if iou[row] < FOUND_IOU:
            parts.append("box off")
        if found.scores[row] < threshold:
            parts.append("below threshold")
        return " · ".join(parts)

    return pd.DataFrame(
        {
            "rank": [row + 1 for row in rows],
            "name": [found.names[row] for row in rows],
            "group": [str(found.groups[row]) for row in rows],
            "score": [float(found.scores[row]) for row in rows],
            "iou": [float(iou[row]) for row in rows],
            "verdict": [verdict(row) for row in rows],
        }
    )


# ------------------------------------------------------------------------------------------------------ the view

STYLE = """
.rio-banner { border-left: 4px solid #E3AC3D; background: color-mix(in srgb, #E3AC3D 14%, transparent); padding: 8px 12px;
  border-radius: 0 6px 6px 0; margin: 2px 0 8px; }
.rio-item { display: flex; align-items: baseline; gap: 10px; flex-wrap: wrap; padding: 2px 4px; font-size: 13px; }
.rio-item .rio-at { font-variant-numeric: tabular-nums; font-weight: 600; }
.rio-item .rio-name { font-weight: 600; font-size: 15px; }
.rio-chip { display: inline-flex; align-items: center; border: 1px solid var(--rule); border-radius: 99px; padding: 0 9px; font-size: 12px; }
.rio-why { display: flex; gap: 28px; flex-wrap: wrap; padding: 4px; align-items: flex-start; }
.rio-why > div { flex: 1 1 300px; min-width: 0; }
.rio-why > div:first-child { flex-grow: 1.5; }
.rio-why table.rio-plain td:last-child { color: var(--quiet); }
.rio-why h4 { margin: 4px 0 5px; font-size: 13px; font-weight: 600; }
.rio-why p { margin: 0 0 8px; max-width: 66ch; line-height: 1.5; }
.rio-crops { display: flex; flex-wrap: wrap; gap: 6px; }
.rio-crops img { width: 62px; height: 62px; border-radius: 5px; margin: 0; display: block; image-rendering: auto; }
.rio-inspector .rio-bar, .rio-inspector .rio-bar2 { flex-wrap: wrap; gap: 2px 10px; align-items: center; }
.rio-inspector .widget-toggle-button { border-radius: 6px; }
.rio-inspector .widget-toggle-button.mod-active { background: #2a6cab; color: #fff; box-shadow: none; }
"""


def _banner(text: str) -> str:
    return f'<div class="rio-banner">{html.escape(text)}</div>' if text else ""


class Viewer(anywidget.AnyWidget):
    """Two panels over one image, drawn in the browser; keys step through the list, a click asks about an object."""

    _esm = _theme.FOLDER / "inspect_viewer.js"
    _css = _theme.FOLDER / "inspect_viewer.css"
    image = traitlets.Bytes(b"").tag(sync=True)
    scene = traitlets.Dict().tag(sync=True)


class Inspector(ipywidgets.VBox):
    """Browse predictions and missed objects.

    Args:
        source: from `open_predictions`.
        threshold: score from which a prediction counts.
        kind: one of `SHOWN_KINDS`.
        group: "r", "c", "f", or "" for all.
        category: a category's name, or "" for all.
        order: one of `ORDERS`.

    Raises:
        NotebookError: an unknown kind, group, category or order.
    """

    @_theme.sentences
    def __init__(
        self,
        source: PredictionSource,
        *,
        threshold: float = 0.3,
        kind: str = "missed",
        group: str = "",
        category: str = "",
        order: str = "rarest class first",
    ):
        self.source = source
        self._classes = {name: k for k, name in enumerate(source.truth.category_names)}
        for what, value, known in (
            ("kind", kind, SHOWN_KINDS),
            ("group", group, ("", *plots.GROUPS)),
            ("category", category, ("", *self._classes)),
            ("order", order, tuple(ORDERS)),
        ):
            if value not in known:
                close = difflib.get_close_matches(str(value), known, n=3) or known[:8]
                raise ValueError(f"{what}: expected one of {', '.join(map(repr, close))}, found {value!r}")
        self.rows = np.zeros(0, np.int64)
        self.position = 0
        self._asked: tuple[str, int] | None = None  # a clicked object: ("truth" | "found", row)
        self.explanation = Explanation("", pd.DataFrame())
        self._crops: dict[int, list[tuple[str, str]]] = {}
        self._quiet = False  # while this object, not the user, sets a control
        lowest = max(round(source.lowest_score, 2), 0.01)
        self.kind = ipywidgets.ToggleButtons(
            options=[(k, k) for k in SHOWN_KINDS], value=kind, style={"button_width": "auto"}
        )
        self.group = ipywidgets.ToggleButtons(
            options=[("all groups", ""), *((name, g) for g, name in plots.GROUP_NAMES.items())],
            value=group,
            style={"button_width": "auto"},
        )
        self.category = ipywidgets.Combobox(
            options=sorted(self._classes, key=str.casefold), value=category, placeholder="any category",
            layout={"width": "190px"},
        )  # fmt: skip
        self.order = ipywidgets.Dropdown(options=list(ORDERS), value=order, layout={"width": "170px"})
        self.threshold = ipywidgets.FloatSlider(
            value=max(threshold, lowest), min=lowest, max=0.95, step=0.01, description="score ≥",
            readout_format=".2f", layout={"width": "280px"}, style={"description_width": "52px"},
        )  # fmt: skip
        self.previous_button = ipywidgets.Button(description="←", tooltip="previous", layout={"width": "44px"})
        self.next_button = ipywidgets.Button(description="→", tooltip="next", layout={"width": "44px"})
        self.viewer = Viewer()
        self.item = ipywidgets.HTML()
        self.why = ipywidgets.HTML()
        bar = ipywidgets.HBox([self.kind])
        bar2 = ipywidgets.HBox([self.group, self.category, self.order, self.threshold])
        steps = ipywidgets.HBox([self.previous_button, self.next_button, self.item], layout={"align_items": "center"})
        bar.add_class("rio-bar")
        bar2.add_class("rio-bar2")
        head = f'<div class="rio-view"><style>{_theme.STYLE}{STYLE}</style>{_banner(source.note)}</div>'
        super().__init__([ipywidgets.HTML(head), bar, bar2, steps, self.viewer, self.why])
        self.add_class("rio-inspector")
        for control in (self.kind, self.group, self.category, self.order, self.threshold):
            control.observe(self._on_control, "value")
        self.previous_button.on_click(lambda _: self.step(-1))
        self.next_button.on_click(lambda _: self.step(1))
        self.viewer.on_msg(self._on_message)
        self._filter()

    # ---------------------------------------------------------------- what happens

    def step(self, by: int) -> None:
        """Go on by so many entries (negative: back); the ends hold."""
        if len(self.rows):
            self.show(self.position + by)

    def show(self, position: int) -> None:
        """Show the entry at a position of the list, 0 the first."""
        self.position = int(np.clip(position, 0, max(len(self.rows) - 1, 0)))
        self._asked = None
        self._draw()

    def ask(self, panel: str, row: int) -> None:
        """Explain another object ("truth", row of the annotations) or prediction ("found", row of the results) shown."""
        self._asked = (panel, row)
        self._draw()

    def _on_control(self, change: Any) -> None:
        if not self._quiet:
            self._filter(keep=change["owner"] is self.threshold)

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if not isinstance(content, dict):
            return
        if isinstance(content.get("step"), int):
            self.step(content["step"])
        elif isinstance(content.get("select"), int) and content.get("panel") in ("truth", "found"):
            self.ask(content["panel"], content["select"])

    def _filter(self, keep: bool = False) -> None:
        """Make the list anew; `keep` stays at the entry that is shown, if it is still in the list."""
        entries = self.source.entries
        shown = self.rows[self.position] if keep and len(self.rows) else -1
        name = self.category.value.strip()
        class_id = self._classes.get(name, -1)
        unknown = bool(name) and class_id < 0
        chosen = entries.select(self.threshold.value, group=self.group.value, class_id=class_id)
        if unknown:  # a name half typed: nothing to filter by yet, and that is said
            chosen[:] = False
        counts = np.bincount(entries.kind[chosen], minlength=len(KINDS))
        self._quiet = True
        try:
            value = self.kind.value
            options = [(f"{k}  {int(counts[KINDS.index(k)]):,}", k) for k in SHOWN_KINDS]
            if [*self.kind.options] != options:
                self.kind.options = options
                self.kind.value = value
        finally:
            self._quiet = False
        rows = np.flatnonzero(chosen & (entries.kind == KINDS.index(self.kind.value)))
        self.rows = entries.ordered(rows, ORDERS[self.order.value])
        where = np.flatnonzero(self.rows == shown) if keep else []
        self.show(int(where[0]) if len(where) else 0)

    # ---------------------------------------------------------------- what is shown

    def _draw(self) -> None:
        if not len(self.rows):
            name = self.category.value.strip()
            text = (
                f"No category is called {name!r}. Choose one of the list."
                if name and name not in self._classes
                else f"No entry of this kind ({self.kind.value}) with a score of {self.threshold.value:.2f} or more. "
                "Choose another kind or group, or move the slider."
            )
            self.item.value = f'<div class="rio-view rio-item rio-quiet">{html.escape(text)}</div>'
            self.why.value = ""
            with self.viewer.hold_sync():
                self.viewer.image, self.viewer.scene = b"", {}
            self.explanation = Explanation(text, pd.DataFrame())
            return
        entries, truth = self.source.entries, self.source.truth
        entry = int(self.rows[self.position])
        image = int(entries.image[entry])
        objects = objects_of(truth, image)
        found = predictions_of(self.source.results, truth, image, score_threshold=self.threshold.value)
        own_object, own_result = int(entries.annotation_index[entry]), int(entries.result_index[entry])
        if self._asked is not None:
            panel, row = self._asked
            own_object, own_result = (row, -1) if panel == "truth" else (-1, row)
            other = np.flatnonzero(entries.result_index == row) if panel == "found" else []
            if panel == "truth":
                self.explanation = explain_object(self.source, row, self.threshold.value)
                class_id = int(truth.annotation_class[row])
            elif len(other):
                entry = int(other[0])
                own_object = int(entries.annotation_index[entry])
                self.explanation = explain_prediction(self.source, entry, self.threshold.value)
                class_id = int(entries.class_id[entry])
            else:
                return
        else:
            self.explanation = (
                explain_object(self.source, own_object, self.threshold.value)
                if own_result < 0
                else explain_prediction(self.source, entry, self.threshold.value)
            )
            class_id = int(entries.gt_class[entry] if entries.gt_class[entry] >= 0 else entries.class_id[entry])
        bytes_, mime, problem = _picture(truth, image)
        panels = [
            _panel("truth", "Ground truth", objects, own_object, f"{len(objects)} objects{problem}"),
            _panel("found", "Predictions", found, own_result, f"{len(found)} with score ≥ {self.threshold.value:.2f}"),
        ]
        for panel in panels:
            panel["focused"] = any(o["focus"] for o in panel["objects"])
        focus = [o["box"] for panel in panels for o in panel["objects"] if o["focus"]]
        for panel in panels:
            panel["ghost"] = focus[0] if focus and not panel["focused"] else None
        scene = {
            "width": int(truth.image_width[image]),
            "height": int(truth.image_height[image]),
            "mime": mime,
            "colors": plots.COLORS,
            "inks": {g: plots._on(c) for g, c in plots.COLORS.items()},
            "panels": panels,
        }
        with self.viewer.hold_sync():
            self.viewer.image, self.viewer.scene = bytes_, scene
        self.item.value = self._item_html(entry, image)
        self.why.value = self._why_html(class_id)

    def _item_html(self, entry: int, image: int) -> str:
        entries, truth = self.source.entries, self.source.truth
        kind = KINDS[entries.kind[entry]] if self._asked is None or self._asked[0] == "found" else "asked about"
        if self._asked is not None and self._asked[0] == "truth":
            class_id = int(truth.annotation_class[self._asked[1]])
        else:
            class_id = int(entries.class_id[entry])
        group = str(truth.frequency[class_id])
        score = (
            f" · score {entries.score[entry]:.2f}" if entries.result_index[entry] >= 0 and kind != "asked about" else ""
        )
        hint = html.escape(KIND_HINTS.get(kind, ""), quote=True)
        return (
            f'<div class="rio-view rio-item"><span class="rio-at">{self.position + 1:,} of {len(self.rows):,}</span>'
            f'<span class="rio-chip" title="{hint}">{kind}</span>'
            f'<span class="rio-name"><span class="rio-dot {group}"></span>{html.escape(truth.category_names[class_id])}</span>'
            f'<span class="rio-quiet">{plots.GROUP_NAMES[group]}{score} · image {int(truth.image_ids[image])} · '
            f"{html.escape(truth.file_names[image])}</span></div>"
        )

    def _why_html(self, class_id: int) -> str:
        truth, table = self.source.truth, self.explanation.table
        rows = [
            [r.name, f"{r.score:.2f}", f"{r.iou:.2f}", f"{r.rank}", r.verdict] for r in table.itertuples(index=False)
        ]
        body = _theme.html_table(["predicted class", "score", "IoU", "rank", ""], rows) if rows else ""
        left = f"<h4>Why?</h4><p>{html.escape(self.explanation.sentence)}</p>{body}"
        right = ""
        if self.source.train is not None:
            train = self.source.train
            counts = f"{int(train.image_count[class_id]):,} images, {int(train.instance_count[class_id]):,} objects"
            if class_id not in self._crops:
                self._crops[class_id] = training_crops(train, class_id)
            pictures = "".join(
                f'<img src="{uri}" alt="training object" title="{html.escape(file, quote=True)}">'
                for uri, file in self._crops[class_id]
            )
            pictures = pictures or '<span class="rio-quiet">no image of it could be opened</span>'
            right = (
                f"<div><h4>{html.escape(truth.category_names[class_id])} in training: {counts}</h4>"
                f'<div class="rio-crops">{pictures}</div></div>'
            )
        return f'<div class="rio-view rio-why"><div>{left}</div>{right}</div>'

    def state(self) -> dict[str, Any]:
        """What is shown, for tests and for a closing assertion."""
        entry = int(self.rows[self.position]) if len(self.rows) else -1
        return {
            "position": self.position,
            "entries": len(self.rows),
            "kind": self.kind.value,
            "image_index": int(self.source.entries.image[entry]) if entry >= 0 else -1,
            "why": self.explanation.sentence,
        }


def _panel(name: str, title: str, objects: Objects, focus: int, note: str) -> dict[str, Any]:
    outlines = _outlines(objects)
    shown = []
    for i in range(len(objects)):
        group = str(objects.groups[i])
        score = "" if objects.scores is None else f" {objects.scores[i]:.2f}"
        hint = f"{objects.names[i]}{score} ({plots.GROUP_NAMES[group]})"
        shown.append(
            {
                "id": int(objects.indices[i]),
                "box": [round(float(v), 2) for v in objects.boxes[i]],
                "polygons": outlines[i],
                "label": f"{objects.names[i]}{score}",
                "hint": hint,
                "group": group,
                "focus": int(objects.indices[i]) == focus,
            }
        )
    return {"name": name, "title": title, "note": note, "objects": shown}


def _outlines(objects: Objects) -> list[list[list[float]]]:
    """Polygons of every object, from polygons or run-length masks; empty where there is no mask."""
    if objects.segmentations is None:
        return [[] for _ in range(len(objects))]
    import cv2
    from pycocotools import mask as coco_mask

    found: list[list[list[float]]] = []
    for segmentation in objects.segmentations:
        if segmentation is None:
            found.append([])
        elif isinstance(segmentation, list):
            found.append([[round(float(v), 1) for v in polygon] for polygon in segmentation])
        else:
            if isinstance(segmentation["counts"], list):
                segmentation = coco_mask.frPyObjects(segmentation, *objects.size)
            # Twice the size, so that outlines run along the pixels' edges and thin parts keep their width.
            mask = coco_mask.decode(segmentation)
            doubled = np.repeat(np.repeat(mask, 2, 0), 2, 1)
            contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_TC89_L1)
            found.append([((c.reshape(-1) + 0.5) / 2).round(1).tolist() for c in contours if len(c) > 2])
    return found


def _picture(annotations: Annotations, image: int) -> tuple[bytes, str, str]:
    """An image's bytes for the browser, their type, and what is wrong with it ("" if nothing)."""
    try:
        path = Path(annotations.image_path(image))
        mime = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}.get(path.suffix.lower())
        if mime and max(annotations.image_width[image], annotations.image_height[image]) <= MAX_SIDE:
            return path.read_bytes(), mime, ""
        import cv2

        pixels = read_image(path, max_side=MAX_SIDE)
        done, encoded = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]))
        return (encoded.tobytes(), "image/jpeg", "") if done else (b"", "image/jpeg", ", image cannot be shown")
    except (OSError, ValueError) as error:
        return b"", "image/jpeg", f" · image cannot be opened: {type(error.__cause__ or error).__name__}"


def training_crops(train: Annotations, class_id: int, count: int = CROPS) -> list[tuple[str, str]]:
    """Cut-outs of a class's training objects, from different images as far as possible, the largest first.

    Args:
        train: the training set, with its image folder.
        class_id: 0-based.
        count: at most so many; only their images are opened.

    Returns:
        (data URI, file name) pairs; images that cannot be opened are left out.
    """
    rows = np.flatnonzero((train.annotation_class == class_id) & ~train.iscrowd)
    rows = rows[np.argsort(-train.areas[rows], kind="stable")]
    _, first = np.unique(train.annotation_image[rows], return_index=True)
    first = np.sort(first)
    order = np.concatenate([first, np.setdiff1d(np.arange(len(rows)), first)])
    crops: list[tuple[str, str]] = []
    for a in rows[order][: 3 * count].tolist():
        i = int(train.annotation_image[a])
        try:
            picture = read_image(train.image_path(i))
        except (OSError, ValueError):
            continue
        crops.append((_theme.data_uri(_theme.crop(picture, train.boxes[a], side=96)), train.file_names[i]))
        if len(crops) == count:
            break
    return crops
