"""Results + ground truth -> one row per prediction and per missed object, for looking at them.

The kinds of errors are TIDE's (Bolya et al., arXiv 2008.08115, section 2.2), on boxes, within the LVIS
protocol: what `rio.results.evaluation` neither counts as right nor as wrong is `unverified` here. D predictions, G
objects of one image.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from rio.data.annotations import GROUP_NAMES, Annotations
from rio.results.federated import JudgedPairs
from rio.results.reading import Results, load_results

KINDS = ("correct", "classification", "localisation", "both", "duplicate", "background", "missed", "unverified")
OUTCOMES = ("correct", "classification", "localisation", "missed")  # of an object
_CODE = {kind: code for code, kind in enumerate(KINDS)}


def box_iou(predicted: np.ndarray, ground_truth: np.ndarray) -> np.ndarray:
    """(D, G) intersection over union of XYWH boxes (D, 4) and (G, 4), pixels, rounded exactly as pycocotools does.

    >>> box_iou(np.array([[0.0, 0, 2, 2]]), np.array([[0.0, 0, 2, 2], [1, 0, 2, 2]])).round(3).tolist()
    [[1.0, 0.333]]
    """
    x, y, w, h = (column[:, None] for column in predicted.T)
    gx, gy, gw, gh = (column[None, :] for column in ground_truth.T)
    width = np.minimum(x + w, gx + gw) - np.maximum(x, gx)
    height = np.minimum(y + h, gy + gh) - np.maximum(y, gy)
    intersection = np.where((width > 0) & (height > 0), width * height, 0.0)
    union = w * h + gw * gh - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def find_errors(
    annotations: Annotations,
    results: Results | str | os.PathLike[str] | Sequence[dict[str, Any]],
    *,
    iou_threshold: float = 0.5,
    background_threshold: float = 0.1,
    score_threshold: float = 0.0,
    max_dets: int = 300,
) -> pd.DataFrame:
    """Says of every prediction what it is, and which objects nothing found.

    Predictions claim objects of their class in order of score, as in the evaluation. What is left over is, in order:

    - `unverified`: its category is not verified in the image, or not exhaustively annotated there, or the object that
      it claims has "ignore"; LVIS ignores it;
    - `localisation`: overlaps an object of its class by at least `background_threshold`, and none by `iou_threshold`;
    - `classification`: overlaps an object of another class by `iou_threshold`;
    - `duplicate`: overlaps an object of its class by `iou_threshold` that a better one has claimed;
    - `background`: overlaps nothing by more than `background_threshold`;
    - `both`: the rest: overlaps an object of another class, between the two thresholds.

    `missed` are objects that no prediction claims, and that no localisation or classification error points at (TIDE's
    rule: without that error they would be found). All objects without a `correct` row were not found. Predictions
    beyond the `max_dets` best of an image (-1: all), below `score_threshold` or without area are left out.

    Returns:
        One row per prediction and per missed object; by image, predictions by falling score, then missed objects:
        image_id; image_index; annotation_id (the object claimed or pointed at, -1: none); category_id (the predicted
        one; the object's own if missed), name, frequency: of that category; score (NaN if missed); iou (with that
        object; for unverified and background the highest with any; for missed the highest of any prediction); kind;
        gt_category_id (of the object, -1: none); result_index and annotation_index (rows of `Results` and
        `Annotations`, -1: none).

    Raises:
        ResultsError: results of another data set and the like, see `load_results`.
        ValueError: thresholds out of order.

    Example: on an object of class cat, predictions cat 0.9 (IoU 0.8), cat 0.8 (IoU 0.7), dog 0.7 (IoU 0.8)
    and cat 0.6 (IoU 0.3) are correct, duplicate, classification and localisation.
    """
    if not 0 <= background_threshold < iou_threshold <= 1:
        raise ValueError(
            f"thresholds: expected 0 <= background_threshold < iou_threshold <= 1, found "
            f"{background_threshold} and {iou_threshold}."
        )
    results = load_results(results, annotations)
    verified = JudgedPairs.of(annotations)
    rows = results.capped(max_dets)
    areas = results.boxes[rows, 2] * results.boxes[rows, 3]
    rows = rows[(results.scores[rows] >= score_threshold) & (areas > 0) & (areas < np.inf)]
    rows = rows[np.lexsort((-results.scores[rows], results.image_index[rows]))]
    objects = np.flatnonzero(verified.ground_truth)
    num_images = len(annotations.image_ids)
    p_offsets = np.searchsorted(results.image_index[rows], np.arange(num_images + 1)).tolist()
    g_offsets = np.searchsorted(annotations.annotation_image[objects], np.arange(num_images + 1)).tolist()
    p_boxes, p_classes = results.boxes[rows], results.class_id[rows]
    counted = verified.counted[objects]
    g_boxes, g_classes = annotations.boxes[objects], annotations.annotation_class[objects]
    counts = verified.counts_if_unmatched(verified.keys(results.image_index[rows], p_classes))

    # For each prediction the object it claims, and the highest IoU with an object of its class and of another one; the
    # objects are rows of `objects`, -1: none.
    claimed, same, other = (np.full(len(rows), -1) for _ in range(3))
    claimed_iou, same_iou, other_iou = (np.zeros(len(rows)) for _ in range(3))
    missed_ious = np.zeros(len(objects))
    for image in range(num_images):
        p, g = slice(*p_offsets[image : image + 2]), slice(*g_offsets[image : image + 2])
        if p.start == p.stop or g.start == g.stop:
            continue  # no overlap
        iou = box_iou(p_boxes[p], g_boxes[g])
        of_class = p_classes[p, None] == g_classes[None, g]
        in_class, beyond = np.where(of_class, iou, 0.0), np.where(of_class, 0.0, iou)
        for overlap, chosen, partner, values in (
            # An object with "ignore" is claimed only where no other is left.
            (iou, _claims(np.where(counted[g], iou, iou - 1), of_class & (iou >= iou_threshold)), claimed, claimed_iou),
            (in_class, in_class.argmax(1), same, same_iou),
            (beyond, beyond.argmax(1), other, other_iou),
        ):
            partner[p] = np.where(chosen >= 0, chosen + g.start, -1)
            values[p] = overlap[np.arange(len(overlap)), chosen]
        missed_ious[g] = iou.max(0)

    best, none = np.maximum(same_iou, other_iou), np.full(len(rows), -1)
    near = (same_iou >= background_threshold) & (same_iou < iou_threshold) & (same_iou > 0)
    names, conditions, partners, ious = zip(
        # The first that holds: kind, where, object, IoU.
        ("unverified", ~np.append(counted, True)[claimed], none, best),
        ("correct", claimed >= 0, claimed, claimed_iou),
        ("unverified", ~counts, none, best),
        ("localisation", near, same, same_iou),
        ("classification", other_iou >= iou_threshold, other, other_iou),
        ("duplicate", same_iou >= iou_threshold, same, same_iou),
        ("background", best <= background_threshold, none, best),
        strict=True,
    )
    kinds = np.select(conditions, [_CODE[name] for name in names], _CODE["both"]).astype(np.int8)
    partner, iou = np.select(conditions, partners, other), np.select(conditions, ious, other_iou)

    is_missed = counted.copy()
    is_missed[partner[np.isin(kinds, [_CODE[kind] for kind in ("correct", "classification", "localisation")])]] = False
    lost = np.flatnonzero(is_missed)
    nothing = np.full(len(lost), -1)
    partner = np.concatenate([partner, lost])
    points = partner >= 0
    annotation_index = np.where(points, objects[partner] if len(objects) else -1, -1)
    image_index = np.concatenate([results.image_index[rows], annotations.annotation_image[objects[lost]]])
    class_id = np.concatenate([p_classes, g_classes[lost]])

    def of_object(values: np.ndarray) -> np.ndarray:
        return np.where(points, values[annotation_index] if len(values) else -1, -1)

    frame = pd.DataFrame(
        {
            "image_id": annotations.image_ids[image_index],
            "image_index": image_index.astype(np.int64),
            "annotation_id": of_object(annotations.annotation_ids),
            "category_id": annotations.category_ids[class_id],
            "name": pd.Categorical.from_codes(class_id, annotations.category_names),
            "frequency": pd.Categorical(annotations.frequency[class_id].astype(object), list(GROUP_NAMES)),
            "score": np.concatenate([results.scores[rows], np.full(len(lost), np.nan)]),
            "iou": np.concatenate([iou, missed_ious[lost]]),
            "kind": pd.Categorical.from_codes(np.concatenate([kinds, np.full(len(lost), _CODE["missed"])]), KINDS),
            "gt_category_id": of_object(annotations.category_ids[annotations.annotation_class]),
            "result_index": np.concatenate([rows, nothing]),
            "annotation_index": annotation_index,
        }
    )
    # Predictions are sorted by image and score, missed objects by image: a stable sort joins them.
    return frame.iloc[np.argsort(image_index, kind="stable")].reset_index(drop=True)


def outcomes(annotations: Annotations, errors: pd.DataFrame) -> pd.Series:
    """What became of every object: the best that happened to it, of `OUTCOMES`; indexed by row of `annotations`.

    errors: rows of `find_errors`, those of predictions that count.
    """
    rows = np.flatnonzero(JudgedPairs.of(annotations).counted)
    outcome = np.full(annotations.num_annotations, len(OUTCOMES) - 1)
    for code in (2, 1, 0):  # the best comes last and stays
        outcome[errors.loc[errors["kind"] == OUTCOMES[code], "annotation_index"]] = code
    return pd.Series(pd.Categorical.from_codes(outcome[rows], OUTCOMES), rows)


def verdicts(errors: pd.DataFrame, num_predictions: int) -> np.ndarray:
    """(predictions,) "right", "wrong", or "open": not judged, or not in the rows of `find_errors`."""
    found = errors[errors["result_index"] >= 0]
    said = np.full(num_predictions, "open", object)
    kinds = [found["kind"] == "correct", found["kind"] == "unverified"]
    said[found["result_index"]] = np.select(kinds, ["right", "open"], "wrong")
    return said


def verdicts_of_objects(annotations: Annotations, errors: pd.DataFrame, score_threshold: float) -> np.ndarray:
    """(annotations,) "right": found by a prediction of this score or more; "wrong"; "open": not to be found."""
    found = errors[(errors["kind"] == "correct") & (errors["score"] >= score_threshold)]
    said = np.where(JudgedPairs.of(annotations).counted, "wrong", "open").astype(object)
    said[found["annotation_index"]] = "right"
    return said


def _claims(iou: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Greedy matching in row order: (D,) claimed object, -1: none. A tie goes to the later object (LVIS)."""
    rows, columns = np.nonzero(candidates)
    claimed = np.full(len(iou), -1)
    taken: set[int] = set()
    row_now, best, best_iou = -1, -1, -1.0
    # Candidate pairs are few (a prediction overlaps few objects of its class), so plain Python is fastest.
    for row, column, value in zip(rows.tolist(), columns.tolist(), iou[rows, columns].tolist(), strict=True):
        if row != row_now:
            if best >= 0:
                claimed[row_now] = best
                taken.add(best)
            row_now, best, best_iou = row, -1, -1.0
        if value >= best_iou and column not in taken:
            best, best_iou = column, value
    if best >= 0:
        claimed[row_now] = best
    return claimed
