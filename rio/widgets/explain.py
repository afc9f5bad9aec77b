"""Why an object was missed, and what a prediction is, in words and with the predictions that matter."""

import dataclasses

import numpy as np
import pandas as pd

from rio.results.errors import box_iou
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


def explain_object(source: PredictionSource, annotation_index: int, threshold: float) -> Explanation:
    """Why was this object missed, or how was it found? Looks at all predictions of its image, however low their score.

    Args:
        source: from `open_predictions`.
        annotation_index: row of `truth`.
        threshold: score from which a prediction counts.
    """
    truth, row = source.truth, annotation_index
    image, class_id = int(truth.annotation_image[row]), int(truth.annotation_class[row])
    name, found = truth.category_names[class_id], predictions_of(source.results, truth, image)
    total, names, scores, named = len(found), found.names, found.scores, []
    iou, same = box_iou(found.boxes, truth.boxes[row][None])[:, 0], found.class_ids == class_id
    right, overlapping = np.flatnonzero(same & (iou >= FOUND_IOU)), np.flatnonzero(iou >= FOUND_IOU)
    near = np.flatnonzero(same & (iou >= 0.1))
    if len(right):
        first, best = named = right[0], overlapping[0]
        if scores[first] >= threshold:
            sentence = f"Found: {name} with score {scores[first]:.2f}, box overlap (IoU) {iou[first]:.2f}."
            other = f" A higher score, {scores[best]:.2f}, calls it {names[best]}."
        else:
            sentence = (
                f"The right answer is there, but its score {scores[first]:.2f} is below the threshold {threshold:.2f}: "
                f"rank {first + 1} of {total} in this image."
            )
            other = f" At the same place {names[best]} has {scores[best]:.2f}."
        sentence += other if best != first else ""
    elif len(overlapping):
        first, *_ = named = overlapping[:1]
        sentence = (
            f"The place is right (IoU {iou[first]:.2f}), the name is not: it is called {names[first]} with score "
            f"{scores[first]:.2f}, and no box there is called {name}." + _elsewhere(source, found.indices[first], row)
        )
    elif len(near):
        first, *_ = named = [near[iou[near].argmax()]]
        overlap = f"the best {name} overlaps it by only IoU {iou[first]:.2f} (score {scores[first]:.2f})"
        sentence = f"The name is right, the box is not: {overlap}."
    elif total and iou.max() > 0.1:
        first, *_ = named = [iou.argmax()]
        called = f"is called {names[first]} (score {scores[first]:.2f})"
        sentence = f"No box fits: the closest of {total} overlaps by IoU {iou[first]:.2f} and {called}."
    elif total:
        sentence = f"Nothing was predicted here: none of the image's {total} boxes overlaps it by more than IoU 0.1."
    else:
        sentence = "Nothing at all was predicted in this image."
    touching = np.flatnonzero(iou > 0.05)
    rows = [*touching[np.argsort(-iou[touching], kind="stable")][:6], *named, *np.flatnonzero(same)[:1]]
    rows = list(dict.fromkeys(map(int, rows)))  # all that the sentence names
    return Explanation(sentence, _table(found, rows, iou, same, threshold))


def _elsewhere(source: PredictionSource, result_index: int, annotation_index: int) -> str:
    """Why an object is missed although a box of another class covers it; "" where that box is its wrong class."""
    own = source.entries[source.entries["result_index"] == result_index]
    if own.empty or own["annotation_index"].iloc[0] == annotation_index:
        return ""
    kind, at = own["kind"].iloc[0], own["gt_class"].iloc[0]
    if kind == "unverified":
        return " LVIS does not judge that class in this image, so the object counts as missed, not as misclassified."
    what = "is the right answer for" if kind == "correct" else "is counted at"
    return f" But that box {what} another object, a {source.truth.category_names[at]}: this one counts as missed."


def explain_prediction(source: PredictionSource, entry: int, threshold: float) -> Explanation:
    """What a prediction is, and what else was predicted at its place.

    Args:
        source, threshold: as for `explain_object`.
        entry: row of `source.entries`.
    """
    row, class_names = source.entries.loc[entry], source.truth.category_names
    name, target = class_names[row.class_id], class_names[row.gt_class] if row.gt_class >= 0 else ""
    found = predictions_of(source.results, source.truth, row.image)
    own = int(np.flatnonzero(found.indices == row.result_index)[0])
    it = f"{name} with score {found.scores[own]:.2f}, rank {own + 1} of {len(found)}"
    sentence = {
        "correct": f"Correct: {it}, overlaps its object by IoU {row.iou:.2f}.",
        "classification": f"Wrong class: {it}, sits on a {target} (IoU {row.iou:.2f}).",
        "localisation": f"Loose box: {it}, overlaps its {target} by only IoU {row.iou:.2f}; {FOUND_IOU} is required.",
        "both": f"Wrong class and loose box: {it}, the nearest object is a {target} (IoU {row.iou:.2f}).",
        "duplicate": f"Duplicate: {it}; this {target} was found already with a higher score.",
        "background": f"Background: {it}, but there is no object (highest overlap IoU {row.iou:.2f}).",
        "unverified": f"Not judged: {it}; LVIS's annotators did not check {name} exhaustively in this image, or marked "
        'the object "ignore", so this counts neither as right nor as wrong.',
    }[row.kind]
    if row.annotation_index >= 0:
        return Explanation(sentence, explain_object(source, row.annotation_index, threshold).table)
    iou = box_iou(found.boxes, found.boxes[own][None])[:, 0]
    return Explanation(sentence, _table(found, np.flatnonzero(iou > 0.3)[:6].tolist(), iou, None, threshold))


def _table(found: Objects, rows: list[int], iou: np.ndarray, same: np.ndarray | None, threshold: float) -> pd.DataFrame:
    """`same`: which predictions have the object's class; None: there is no object to judge by."""
    table = pd.DataFrame({"rank": np.arange(len(found)) + 1, "name": found.names, "group": found.groups})
    table = table.assign(score=found.scores, iou=iou).iloc[rows]
    words = [np.where(table["score"] < threshold, "below threshold", "")]
    if same is not None:
        name, box = np.where(same[rows], "right class", "other class"), table["iou"] < FOUND_IOU
        words = [name, np.where(box, "box off", ""), *words]
    return table.assign(verdict=[" · ".join(filter(None, own)) for own in zip(*words, strict=True)])
