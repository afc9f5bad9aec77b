"""Results + ground truth -> one row per prediction and per missed object, for looking at them.

The kinds of errors are TIDE's (Bolya et al., arXiv 2008.08115, section 2.2), on boxes, within the LVIS
protocol: what `rio.results.evaluation` neither counts as right nor as wrong is `unverified` here. D predictions, G
objects of one image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rio.data.annotations import GROUP_NAMES, Annotations
from rio.results.federated import JudgedPairs
from rio.results.reading import Results, load_results

KINDS = ("correct", "classification", "localisation", "both", "duplicate", "background", "missed", "unverified")
_CODE = {kind: code for code, kind in enumerate(KINDS)}


def box_iou(predicted: np.ndarray, ground_truth: np.ndarray) -> np.ndarray:
    """Intersection over union of XYWH boxes, rounded exactly as pycocotools does.

    Args:
        predicted: (D, 4) float64, pixels.
        ground_truth: (G, 4) float64, pixels.

    Returns:
        (D, G) float64 in [0, 1].

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

    Predictions claim objects of their class in order of score, as in the evaluation; what is left over is, in
    this order:

    - `unverified`: its category is not verified in the image, or not exhaustively annotated there; LVIS
      ignores it;
    - `localisation`: overlaps an object of its class by at least `background_threshold`, and none by
      `iou_threshold`;
    - `classification`: overlaps an object of another class by `iou_threshold`;
    - `duplicate`: overlaps an object of its class by `iou_threshold` that a better one has claimed;
    - `background`: overlaps nothing by more than `background_threshold`;
    - `both`: the rest: overlaps an object of another class, between the two thresholds.

    `missed` are objects that no prediction claims, and that no localisation or classification error points at
    (TIDE's rule: mending that error would find them). All objects that were not found are those without a
    `correct` row.

    Args:
        annotations: the ground truth.
        results: predictions; those beyond the `max_dets` best of an image, below `score_threshold` or without
            area are left out.
        iou_threshold: box IoU from which an object counts as found.
        background_threshold: box IoU up to which a prediction has nothing to do with an object.
        score_threshold: lowest score kept.
        max_dets: predictions kept an image, -1 for all.

    Returns:
        One row per prediction and per missed object; by image, predictions by falling score, then missed
        objects:
        image_id; image_index; annotation_id (the object claimed or pointed at, -1: none); category_id (the
        predicted one; the object's own if missed), name, frequency: of that category; score (NaN if missed);
        iou (with that object; for unverified and background the highest with any; for missed the highest of
        any prediction); kind; gt_category_id (of the object, -1: none); result_index and annotation_index
        (rows of `Results` and `Annotations`, -1: none).

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
    g_boxes, g_classes = annotations.boxes[objects], annotations.annotation_class[objects]
    counts = verified.counts_if_unmatched(verified.keys(results.image_index[rows], p_classes))

    # Image by image only what needs the matrix of IoUs; an image without objects leaves no overlap.
    overlaps = _Overlaps.none(len(rows))
    missed_ious = np.zeros(len(objects))
    for image in range(num_images):
        p, g = slice(*p_offsets[image : image + 2]), slice(*g_offsets[image : image + 2])
        if p.start == p.stop or g.start == g.stop:
            continue
        iou = box_iou(p_boxes[p], g_boxes[g])
        same = p_classes[p, None] == g_classes[None, g]
        overlaps.take(p, g.start, iou, same, iou_threshold)
        missed_ious[g] = iou.max(0)
    kinds, partners, ious = _kinds(overlaps, counts, iou_threshold, background_threshold)
    missed = np.ones(len(objects), bool)
    missed[partners[np.isin(kinds, _FINDS)]] = False
    return _frame(annotations, results, rows, objects, kinds, partners, ious, missed, missed_ious)


_FINDS = tuple(_CODE[kind] for kind in ("correct", "classification", "localisation"))


@dataclass(frozen=True, eq=False)
class _Overlaps:
    """What is left of the IoU matrices: (D,) arrays over the predictions of all images.

    Objects are rows of `find_errors`'s objects, -1: none. same / other: with objects of the predicted class, of
    another; the first of the highest where several are alike.
    """

    claimed: np.ndarray
    claimed_iou: np.ndarray
    best_same: np.ndarray
    same: np.ndarray
    best_other: np.ndarray
    other: np.ndarray

    @classmethod
    def none(cls, number: int) -> _Overlaps:
        objects, ious = (lambda: np.full(number, -1, np.int64)), (lambda: np.zeros(number))
        return cls(objects(), ious(), ious(), objects(), ious(), objects())

    def take(self, p: slice, first_object: int, iou: np.ndarray, same: np.ndarray, found: float) -> None:
        """The rows `p` from one image: iou (D, G), same (D, G) whether of the same class."""
        row = np.arange(len(iou))
        claimed = _claims(iou, same & (iou >= found))
        self.claimed[p] = np.where(claimed >= 0, claimed + first_object, -1)
        self.claimed_iou[p] = iou[row, claimed]
        for overlap, best, column in (
            (np.where(same, iou, 0.0), self.best_same, self.same),
            (np.where(same, 0.0, iou), self.best_other, self.other),
        ):
            highest = overlap.argmax(1)
            best[p], column[p] = overlap[row, highest], highest + first_object


def _kinds(
    overlaps: _Overlaps, counts: np.ndarray, found: float, background: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kind codes (D,), the object claimed or pointed at (D,), -1: none, and the IoU (D,)."""
    o = overlaps
    best = np.maximum(o.best_same, o.best_other)
    no_object = np.full(len(best), -1)
    cases = [  # the first that holds: kind, where, object, IoU
        ("correct", o.claimed >= 0, o.claimed, o.claimed_iou),
        ("unverified", ~counts, no_object, best),
        ("localisation", (o.best_same >= background) & (o.best_same < found) & (o.best_same > 0), o.same, o.best_same),
        ("classification", o.best_other >= found, o.other, o.best_other),
        ("duplicate", o.best_same >= found, o.same, o.best_same),
        ("background", best <= background, no_object, best),
    ]
    names, conditions, objects, ious = zip(*cases, strict=True)
    kind = np.select(conditions, [_CODE[name] for name in names], _CODE["both"]).astype(np.int8)
    return kind, np.select(conditions, objects, o.other), np.select(conditions, ious, o.best_other)


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


def _frame(
    annotations: Annotations,
    results: Results,
    rows: np.ndarray,
    objects: np.ndarray,
    kinds: np.ndarray,
    partners: np.ndarray,
    ious: np.ndarray,
    missed: np.ndarray,
    missed_ious: np.ndarray,
) -> pd.DataFrame:
    lost = np.flatnonzero(missed)
    partner = np.concatenate([partners, lost])
    annotation_index = np.full(len(partner), -1, np.int64)
    annotation_index[partner >= 0] = objects[partner[partner >= 0]]
    image_index = np.concatenate([results.image_index[rows], annotations.annotation_image[objects[lost]]])
    class_id = np.concatenate([results.class_id[rows], annotations.annotation_class[objects[lost]]])

    def of_object(values: np.ndarray) -> np.ndarray:
        out = np.full(len(partner), -1, np.int64)
        out[partner >= 0] = values[annotation_index[partner >= 0]]
        return out

    frame = pd.DataFrame(
        {
            "image_id": annotations.image_ids[image_index],
            "image_index": image_index.astype(np.int64),
            "annotation_id": of_object(annotations.annotation_ids),
            "category_id": annotations.category_ids[class_id],
            "name": pd.Categorical.from_codes(class_id, annotations.category_names),
            "frequency": pd.Categorical(annotations.frequency[class_id].astype(object), list(GROUP_NAMES)),
            "score": np.concatenate([results.scores[rows], np.full(len(lost), np.nan)]),
            "iou": np.concatenate([ious, missed_ious[lost]]),
            "kind": pd.Categorical.from_codes(
                np.concatenate([kinds, np.full(len(lost), _CODE["missed"], np.int8)]), KINDS
            ),
            "gt_category_id": of_object(annotations.category_ids[annotations.annotation_class]),
            "result_index": np.concatenate([rows, np.full(len(lost), -1, np.int64)]),
            "annotation_index": annotation_index,
        }
    )
    # Predictions come in order of image and score, missed objects of image: a stable sort joins them.
    return frame.iloc[np.argsort(image_index, kind="stable")].reset_index(drop=True)
