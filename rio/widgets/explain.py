"""Why an object was missed, and what a prediction is, in words and with the predictions that matter."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from rio.results.errors import KINDS, box_iou
from rio.results.objects import Objects, predictions_of
from rio.widgets.source import FOUND_IOU, PredictionSource


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why an object was missed, or what a prediction is.

    Attributes:
        sentence: in plain words.
        table: the predictions that matter: rank (by score in the image, 1 the best), name, group, score, iou, verdict.
    """

    sentence: str
    table: pd.DataFrame


def explain_object(source: PredictionSource, annotation_index: int, threshold: float, *, count: int = 6) -> Explanation:
    """Why was this object missed, or how was it found? Looks at all predictions of its image, however low their score.

    Args:
        source: from `open_predictions`.
        annotation_index: row of `truth`.
        threshold: score from which a prediction counts.
        count: rows of the table.
    """
    truth = source.truth
    image, class_id = int(truth.annotation_image[annotation_index]), int(truth.annotation_class[annotation_index])
    name, found = truth.category_names[class_id], predictions_of(source.results, truth, image)
    total, scores = len(found), found.scores
    iou = box_iou(found.boxes, truth.boxes[annotation_index][None])[:, 0] if total else np.zeros(0)
    same = found.class_ids == class_id
    right, overlapping = np.flatnonzero(same & (iou >= FOUND_IOU)), np.flatnonzero(iou >= FOUND_IOU)
    near = np.flatnonzero(same & (iou >= 0.1))
    if len(right) and scores[right[0]] >= threshold:
        first, best = right[0], overlapping[0]
        sentence = f"Found: {name} with score {scores[first]:.2f}, box overlap (IoU) {iou[first]:.2f}."
        if not same[best]:
            sentence += f" A higher score, {scores[best]:.2f}, calls it {found.names[best]}."
    elif len(right):
        first, best = right[0], overlapping[0]
        sentence = (
            f"The right answer is there, but its score {scores[first]:.2f} is below the threshold {threshold:.2f}: "
            f"rank {first + 1} of {total} in this image."
        )
        if best != first:
            sentence += f" At the same place {found.names[best]} has {scores[best]:.2f}."
    elif len(overlapping):
        first = overlapping[0]
        sentence = (
            f"The place is right (IoU {iou[first]:.2f}), the name is not: it is called {found.names[first]} with score "
            f"{scores[first]:.2f}, and no box there is called {name}."
        )
    elif len(near):
        first = near[np.argmax(iou[near])]
        sentence = (
            f"The name is right, the box is not: the best {name} overlaps it by only IoU {iou[first]:.2f} (score "
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
    rows = list(dict.fromkeys([*rows, *right[:1].tolist(), *np.flatnonzero(same)[:1].tolist()]))
    return Explanation(sentence, _table(found, rows, iou, same, threshold))


def explain_prediction(source: PredictionSource, entry: int, threshold: float) -> Explanation:
    """What a prediction is, and what else was predicted at its place.

    Args:
        source: from `open_predictions`.
        entry: row of `source.entries`.
        threshold: score from which a prediction counts.
    """
    entries, truth = source.entries, source.truth
    name, overlap = truth.category_names[int(entries.class_id[entry])], float(entries.iou[entry])
    found = predictions_of(source.results, truth, int(entries.image[entry]))
    own = int(np.flatnonzero(found.indices == entries.result_index[entry])[0])
    target = truth.category_names[int(entries.gt_class[entry])] if entries.gt_class[entry] >= 0 else ""
    it = f"{name} with score {found.scores[own]:.2f}, rank {own + 1} of {len(found)}"
    sentence = {
        "correct": f"Correct: {it}, overlaps its object by IoU {overlap:.2f}.",
        "classification": f"Wrong class: {it}, sits on a {target} (IoU {overlap:.2f}).",
        "localisation": f"Loose box: {it}, overlaps its {target} by only IoU {overlap:.2f}; {FOUND_IOU} is required.",
        "both": f"Wrong class and loose box: {it}, the nearest object is a {target} (IoU {overlap:.2f}).",
        "duplicate": f"Duplicate: {it}; this {target} was found already with a higher score.",
        "background": f"Background: {it}, but there is no object (highest overlap IoU {overlap:.2f}).",
        "unverified": f"Not judged: {it}; LVIS's annotators did not check {name} exhaustively in this image, so this "
        "counts neither as right nor as wrong.",
    }[KINDS[entries.kind[entry]]]
    if entries.annotation_index[entry] >= 0:
        table = explain_object(source, int(entries.annotation_index[entry]), threshold).table
        return Explanation(sentence, table)
    iou = box_iou(found.boxes, found.boxes[own][None])[:, 0]
    rows = np.flatnonzero(iou > 0.3)[:6].tolist()
    return Explanation(sentence, _table(found, rows, iou, None, threshold))


def _table(found: Objects, rows: list[int], iou: np.ndarray, same: np.ndarray | None, threshold: float) -> pd.DataFrame:
    """`same`: which predictions have the object's class; None: there is no object to judge by."""

    def verdict(row: int) -> str:
        parts = [] if same is None else ["right class" if same[row] else "other class"]
        if same is not None and iou[row] < FOUND_IOU:
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
