"""Beside AP, by frequency group: average recall, calibration error, what each kind of error costs, and confusions.

On boxes, and on what LVIS judges: predictions that the evaluation ignores (`unverified` in `rio.results.errors`) are
left out. hotcoco gives recall, calibration and confusions; dAP it knows of all categories together only, so dAP by
group is worked out here.
"""

from collections.abc import Sequence
from dataclasses import replace

import hotcoco
import numpy as np
import pandas as pd

from rio.data.annotations import GROUP_NAMES, Annotations
from rio.results.errors import box_iou, find_errors
from rio.results.evaluation import box_evaluator
from rio.results.federated import JudgedPairs, prepare
from rio.results.matching import AREA_LABELS, accumulate
from rio.results.reading import Results

COSTS = ("classification", "localisation", "both", "duplicate", "background", "missed")  # TIDE's kinds


def breakdown(annotations: Annotations, results: Results) -> pd.DataFrame:
    """What AP does not tell, for all categories and for each frequency group that has objects.

    Returns:
        One row per group, all but the last columns in percent: group ("all", "r", "c", "f"); AR, the share of objects
        found, mean over IoU thresholds 0.5 to 0.95 and categories; calibration_error, the mean distance between
        predictions' scores and the share of them that are right at IoU 0.5 (10 bins of equal width, weighted by
        predictions); AP50; and by kind of error, in points of AP50, what correcting all errors of that kind would bring
        (dAP of TIDE, Bolya et al., arXiv 2008.08115, section 2.3).
    """
    errors = find_errors(annotations, results)
    evaluator = _evaluator(annotations, results, errors)
    recall = evaluator.eval["recall"][:, :, 0, 0]
    costs, ap50 = _costs(annotations, errors)
    rows = []
    for group in ("all", *GROUP_NAMES):
        of_group = (annotations.frequency == group) | (group == "all")
        judged = of_group & (ap50 > -1)
        if not judged.any():
            continue
        evaluator.params.catIds = (np.flatnonzero(of_group) + 1).tolist()
        evaluator.evaluate()
        row = {"group": group, "AR": 100 * recall[:, judged].mean()}
        row |= {"calibration_error": 100 * evaluator.calibration()["ece"], "AP50": 100 * ap50[judged].mean()}
        rows.append(row | {kind: 100 * gain[judged].mean() for kind, gain in costs.items()})
    return pd.DataFrame(rows)


def confusions(annotations: Annotations, results: Results, *, score_threshold: float = 0.05) -> np.ndarray:
    """What objects are taken for, every prediction compared with every object of its image, whatever its class.

    Predictions count from `score_threshold` on. Returns (K + 1, K + 1) int64 counts at IoU 0.5: rows are the objects'
    classes, columns the predictions'; the last column counts objects that nothing found, the last row predictions of
    nothing.
    """
    errors = find_errors(annotations, results, score_threshold=score_threshold)
    evaluator = _evaluator(annotations, results, errors)
    return evaluator.confusion_matrix(iou_thr=0.5, max_det=max(len(errors), 1))["matrix"].astype(np.int64)


def taken_for(
    annotations: Annotations, results: Results, class_ids: Sequence[int], *, score_threshold: float = 0.05
) -> pd.Series:
    """The objects of some classes (index: rows of `annotations`) and their columns in `confusions`."""
    num_classes, objects = len(annotations.category_ids), np.flatnonzero(JudgedPairs.of(annotations).counted)
    asked = objects[np.isin(annotations.annotation_class[objects], class_ids)]
    errors = find_errors(annotations, results, score_threshold=score_threshold)
    errors = errors[(errors["kind"] != "unverified") & (errors["result_index"] >= 0)]
    taken = np.full(annotations.num_annotations, num_classes)
    for image in np.unique(annotations.annotation_image[asked]):
        rows = errors.loc[errors["image_index"] == image, "result_index"].to_numpy()  # by falling score
        there = objects[annotations.annotation_image[objects] == image]
        for row, own in zip(rows, box_iou(results.boxes[rows], annotations.boxes[there]), strict=True):
            own[taken[there] < num_classes] = 0  # each object once
            if own.max() >= 0.5:
                taken[there[own.argmax()]] = results.class_id[row]
    return pd.Series(taken[asked], asked)


def _evaluator(annotations: Annotations, results: Results, errors: pd.DataFrame) -> hotcoco.LVISeval:
    """hotcoco on the predictions that count."""
    rows = errors.loc[(errors["kind"] != "unverified") & (errors["result_index"] >= 0), "result_index"].to_numpy()
    judged = JudgedPairs.of(annotations)
    # Objects with "ignore" go, but what is predicted beside them stays judged.
    negative = judged.negative if judged.negative is None else np.union1d(judged.positive, judged.negative)
    judged = replace(judged, ground_truth=judged.counted, negative=negative)
    return box_evaluator(annotations, judged, results, prepare(annotations, judged, results, rows, "bbox"))


def _costs(annotations: Annotations, errors: pd.DataFrame) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """By kind of error what correcting it adds to AP50, (K,) each, and AP50 (K,), in 0..1; AP50 is -1 without objects.

    Of the classification and localisation errors at an object that nothing found, the best-scoring one becomes a true
    positive when its kind is corrected. All other errors of the kind are dropped; missed objects are not asked for.
    """
    of_object = annotations.annotation_class[errors["annotation_index"]]
    table = pd.DataFrame({
        "class_id": errors["name"].cat.codes.to_numpy(np.int64), "object_class": of_object, "score": errors["score"],
        "kind": errors["kind"].astype(str), "object": errors["annotation_index"],
    })  # fmt: skip
    missed = table["kind"] == "missed"
    size, counted = len(annotations.category_ids), JudgedPairs.of(annotations).counted
    objects = np.bincount(annotations.annotation_class[counted], minlength=size)
    lost = np.bincount(table.loc[missed, "class_id"], minlength=size)
    table = table[~missed & (table["kind"] != "unverified")]
    found = set(table.loc[table["kind"] == "correct", "object"])

    def ap(rows: pd.DataFrame, objects: np.ndarray) -> np.ndarray:
        rows = rows.iloc[np.lexsort((-rows["score"], rows["class_id"]))]
        right = (rows["kind"] == "correct").to_numpy(np.uint64)
        counts = np.zeros((len(AREA_LABELS), size), np.int64)
        counts[0] = objects
        return accumulate(rows["class_id"].to_numpy(), right, 1 - right, counts)[0, :, :, 0].mean(axis=0)

    near = table[table["kind"].isin(["classification", "localisation"]) & ~table["object"].isin(found)]
    near = near[counted[near["object"]]]
    near = near.sort_values("score", ascending=False, kind="stable").drop_duplicates("object")
    base, gains = ap(table, objects), {}
    for kind in COSTS:
        best = near[near["kind"] == kind]
        best = best.assign(class_id=best["object_class"], kind="correct")
        changed = pd.concat([table[table["kind"] != kind], best]).sort_index()
        fixed = ap(changed, objects - lost if kind == "missed" else objects)
        gains[kind] = np.where(base > -1, np.maximum(fixed, 0) - base, 0.0)
    return gains, base
