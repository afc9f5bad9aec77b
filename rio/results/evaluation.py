"""Results JSON -> AP table, by category and by frequency group: the LVIS protocol, to the bit.

hotcoco is the engine. It differs from the official `lvis` package in what it accepts silently and in the
order in which it caps and filters, so this module prepares both sides itself (`_prepare`) and hands over
plain arrays. Masks are compared while their file is read (`rio.results.reading`); matching and accumulating them is
done here. The official package stays available as `backend="lvis"`; the tests hold the two together,
precision array and all.

The protocol in short (Gupta et al., LVIS, arXiv 1908.03195, section 2): a category is judged in an image only
where the image is known to hold it (it has ground truth) or known not to (it is in `neg_category_ids`); in an
image where it is listed as not exhaustively annotated, an unmatched prediction counts as neither right nor
wrong.

COCO-format ground truth has no such lists. There every category counts as verified in every image; a crowd
region is no ground truth, and makes its category not exhaustively annotated in its image.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from rio.data.annotations import GROUP_NAMES, Annotations
from rio.data.load import load_annotations
from rio.data.reading import without_collection
from rio.results.federated import JudgedPairs, is_in
from rio.results.reading import (
    LEAST_IOU,
    MaskOverlaps,
    Results,
    load_results,
    read_once,
    results_error,
    segmentation_of,
    write_atomically,
)

IOU_TYPES = ("bbox", "segm")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
GROUP_METRICS = ("AP", *(f"AP{group}" for group in GROUP_NAMES))
IOU_THRESHOLDS = np.linspace(LEAST_IOU, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREA_LABELS = ("all", "small", "medium", "large")
_AREA_RANGES = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))  # square pixels
_ROWS_CHUNK = 1 << 14


@without_collection()
def evaluate(
    annotations: Annotations | str | os.PathLike[str],
    results: Sequence[dict[str, Any]] | str | os.PathLike[str] | Results,
    *,
    iou_types: Sequence[str] | None = IOU_TYPES,
    max_dets: int = 300,
    backend: str = "hotcoco",
    allow_empty: bool = False,
    processes: int | None = None,
) -> Evaluation:
    """LVIS AP of results, equal to the official `lvis` package to the last bit.

    Args:
        annotations: the ground truth, or the path of its JSON.
        results: path of a results JSON, list of records, or loaded `Results`.
        iou_types: of "bbox" and "segm"; None: whatever the results carry.
        max_dets: highest-scoring predictions kept per image, all categories together; -1 keeps all.
        backend: "hotcoco", or "lvis": the official package (slow, memory-hungry; `pip install lvis`).
        allow_empty: accept results without a single prediction (an AP of 0) in place of raising.
        processes: how many read a file of results; None: one for each 128 MB, but 16 and one a core at most.

    Returns:
        Evaluation, in percent; NaN where there is no ground truth to judge by.

    Raises:
        ResultsError: results that cannot be evaluated (see `load_results`); empty ones; "segm" asked for but
            no masks in them (pass `iou_types=("bbox",)`).
        ValueError: an unknown IoU type or backend.
    """
    if not isinstance(annotations, Annotations):
        masks = iou_types is None or "segm" in iou_types
        annotations = load_annotations(annotations, segmentations=masks)
    if backend not in ("hotcoco", "lvis"):
        raise ValueError(f"backend: expected 'hotcoco' or 'lvis', found {backend!r}.")
    if isinstance(max_dets, bool) or not isinstance(max_dets, int) or (max_dets < 1 and max_dets != -1):
        raise ValueError(f"max_dets: expected a positive integer or -1 (all), found {max_dets!r}.")
    unknown_groups = set(np.unique(annotations.frequency).tolist()) - GROUP_NAMES.keys()
    if unknown_groups:
        raise ValueError(
            f"{annotations.path}: categories, key 'frequency': expected 'r', 'c' or 'f', found "
            f"{sorted(unknown_groups)}. Correct the file, or leave the key out to have groups derived."
        )
    verified = JudgedPairs.of(annotations)
    loaded = overlaps = None
    if backend == "hotcoco" and isinstance(results, (str, os.PathLike)):
        loaded, overlaps = read_once(results, annotations, verified, iou_types or IOU_TYPES, processes)
    if loaded is None:
        loaded = load_results(results, annotations, processes=processes)
    has_masks = loaded.mask_areas is not None
    if not len(loaded) and not allow_empty:
        raise results_error(
            loaded.source,
            "top level",
            "at least one prediction",
            "an empty list",
            "The model predicted nothing: is it trained, and MODEL.ROI_HEADS.SCORE_THRESH_TEST low enough? "
            "allow_empty=True evaluates it as 0.",
        )
    if iou_types is None:
        iou_types = [t for t, there in (("bbox", True), ("segm", has_masks)) if there]
    for iou_type in iou_types:
        if iou_type not in IOU_TYPES:
            raise ValueError(f"iou_types: expected a selection of {IOU_TYPES}, found {iou_type!r}.")
        if iou_type == "segm" and len(loaded) and not has_masks:
            raise results_error(
                loaded.source,
                "record 0, key 'segmentation'",
                "an RLE mask",
                "nothing",
                "Evaluate boxes only with iou_types=('bbox',), or write masks.",
            )
    precision, counts = {}, {}
    for iou_type in iou_types:
        prepared = _prepare(annotations, verified, loaded, iou_type, max_dets)
        if not len(prepared.rows) or not prepared.ground_truth.any():
            precision[iou_type] = _precision_without_predictions(annotations, prepared)
        elif backend == "lvis":
            precision[iou_type] = _lvis_precision(annotations, verified, loaded, iou_type, max_dets)
        elif iou_type == "bbox":
            precision[iou_type] = _hotcoco_precision(annotations, loaded, prepared)
        else:
            if overlaps is None:
                overlaps = MaskOverlaps(annotations, verified)
                everything = np.arange(len(loaded))
                overlaps.add(everything, loaded.image_index, loaded.class_id, loaded.rles, loaded.mask_areas)
            precision[iou_type] = _precision(annotations, verified, loaded, prepared, overlaps)
        counts[iou_type] = {"judged": len(prepared.rows), **prepared.dropped}
        del prepared
    source, num_predictions = loaded.source, len(loaded)
    del loaded, overlaps, results  # room for the summary
    return _summary(annotations, source, num_predictions, precision, counts, backend, max_dets)


@dataclass
class _Prepared:
    """Both sides as an engine gets them. Ids: image_index + 1, class_id + 1."""

    ground_truth: np.ndarray  # (A,) bool
    rows: np.ndarray  # (n,) rows of the results that are judged, grouped by image, else in the file's order
    areas: np.ndarray  # (n,) float64
    negatives: list[list[int]]
    not_exhaustive: list[list[int]]
    dropped: dict[str, int]


def _prepare(
    annotations: Annotations, verified: JudgedPairs, results: Results, iou_type: str, max_dets: int
) -> _Prepared:
    """The official package's order of steps: cap, then area, then federation."""
    rows = results.capped(max_dets)
    capped = len(results) - len(rows)
    # A mask's area for "segm" whether or not a bbox stands beside it (detectron2 strips the bbox for that
    # reason); for "bbox" w * h, unless the records carry masks only.
    if iou_type == "bbox" and results.has_boxes:
        areas = results.boxes[rows, 2] * results.boxes[rows, 3]
    else:
        areas = results.mask_areas[rows] if results.mask_areas is not None else np.empty(0)
    keep = (areas > 0) & (areas < np.inf)
    keys = verified.keys(results.image_index[rows], results.class_id[rows])
    judged = verified.is_judged(keys)
    dropped = {"over_max_dets": capped, "without_area": int((judged & ~keep).sum()), "unverified": int((~judged).sum())}
    keep &= judged
    rows, areas, keys = rows[keep], areas[keep], keys[keep]
    num_images, num_classes = len(annotations.image_ids), len(annotations.category_ids)
    # Only pairs with predictions matter: full lists would be images x categories long for COCO-format data.
    predicted = np.unique(keys)
    negative = predicted if verified.negative is None else np.intersect1d(predicted, verified.negative)
    not_exhaustive = np.intersect1d(predicted, verified.not_exhaustive)
    return _Prepared(
        verified.ground_truth,
        rows,
        areas,
        _keys_to_lists(negative, num_images, num_classes),
        _keys_to_lists(not_exhaustive, num_images, num_classes),
        dropped,
    )


def _keys_to_lists(keys: np.ndarray, num_images: int, num_classes: int) -> list[list[int]]:
    """Keys as one list per image of 1-based class numbers (what both engines are given for category ids)."""
    offsets = np.searchsorted(keys, np.arange(num_images + 1) * num_classes)
    numbers = (keys % num_classes + 1).tolist() if num_classes else []
    return [numbers[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def _image_records(annotations: Annotations, negatives: list[list[int]], not_exhaustive: list[list[int]]) -> list[dict]:
    columns = zip(
        annotations.image_width.tolist(), annotations.image_height.tolist(), negatives, not_exhaustive, strict=True
    )
    return [
        {"id": i + 1, "width": w, "height": h, "neg_category_ids": neg, "not_exhaustive_category_ids": nel}
        for i, (w, h, neg, nel) in enumerate(columns)
    ]


def _category_records(annotations: Annotations) -> list[dict]:
    return [{"id": k + 1, "name": str(k), "frequency": f} for k, f in enumerate(annotations.frequency.tolist())]


def _hotcoco_precision(annotations: Annotations, results: Results, prepared: _Prepared) -> np.ndarray:
    """Of boxes: the engine overlaps, matches and accumulates."""
    import hotcoco

    objects = np.flatnonzero(prepared.ground_truth)
    ground_truth = hotcoco.COCO.from_arrays(
        _image_records(annotations, prepared.negatives, prepared.not_exhaustive),
        _category_records(annotations),
        annotations.annotation_image[objects].astype(np.int64) + 1,
        annotations.annotation_class[objects].astype(np.int64) + 1,
        np.ascontiguousarray(annotations.boxes[objects]),
        ids=np.arange(1, len(objects) + 1),
        area=annotations.areas[objects],
    )
    rows = prepared.rows
    predictions = ground_truth.load_res(_table(results, rows))
    if not results.has_boxes:
        predictions.update_anns(ids=np.arange(1, len(rows) + 1), area=prepared.areas)
    # The cap is applied already; None tells the engine not to apply its own.
    evaluator = hotcoco.LVISeval(ground_truth, predictions.cap_detections_per_image(None), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["precision"].reshape(len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), -1, len(AREA_LABELS))


def _table(results: Results, rows: np.ndarray) -> np.ndarray:
    """(n, 7) float64: image, x, y, width, height, score, class; 1-based."""
    table = np.empty((len(rows), 7))
    for start in range(0, len(rows), _ROWS_CHUNK):  # so that nothing of the table's size is made beside it
        some, part = rows[start : start + _ROWS_CHUNK], table[start : start + _ROWS_CHUNK]
        part[:, 0] = results.image_index[some] + 1
        part[:, 1:5] = results.boxes[some]
        part[:, 5] = results.scores[some]
        part[:, 6] = results.class_id[some] + 1
    return table


def _precision_without_predictions(annotations: Annotations, prepared: _Prepared) -> np.ndarray:
    """As `lvis` has it: 0 for every class with ground truth in an area range, -1 for the others."""
    precision = np.full(
        (len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), len(annotations.category_ids), len(AREA_LABELS)), -1.0
    )
    areas = annotations.areas[prepared.ground_truth]
    classes = annotations.annotation_class[prepared.ground_truth]
    for column, (low, high) in enumerate(_AREA_RANGES):
        precision[:, :, np.unique(classes[(areas >= low) & (areas <= high)]), column] = 0
    return precision


def _lvis_precision(
    annotations: Annotations, verified: JudgedPairs, results: Results, iou_type: str, max_dets: int
) -> np.ndarray:
    """The official package on the same columns; it caps, filters and matches by itself."""
    try:
        import lvis
    except ImportError as error:
        raise ImportError("backend='lvis' needs the official package: pip install lvis==0.5.3") from error
    objects = np.flatnonzero(verified.ground_truth)
    predicted = np.unique(verified.keys(results.image_index, results.class_id))
    shape = len(annotations.image_ids), len(annotations.category_ids)
    negatives = _keys_to_lists(predicted if verified.negative is None else verified.negative, *shape)
    ground_truth = lvis.LVIS.__new__(lvis.LVIS)  # its constructor takes a path only
    ground_truth.logger = _quiet_logger()
    ground_truth.dataset = {
        "images": _image_records(annotations, negatives, _keys_to_lists(verified.not_exhaustive, *shape)),
        "categories": _category_records(annotations),
        "annotations": [
            {
                "id": number + 1,
                "image_id": int(annotations.annotation_image[a]) + 1,
                "category_id": int(annotations.annotation_class[a]) + 1,
                "bbox": annotations.boxes[a].tolist(),
                "area": float(annotations.areas[a]),
                **({"segmentation": segmentation_of(annotations, a)} if iou_type == "segm" else {}),
            }
            for number, a in enumerate(objects.tolist())
        ],
    }
    ground_truth._create_index()
    as_boxes = iou_type == "bbox" and results.has_boxes
    records = [
        {
            "image_id": image + 1,
            "category_id": category + 1,
            "score": score,
            **({"bbox": results.boxes[i].tolist()} if as_boxes else {"segmentation": results.rles[i]}),
        }
        for i, (image, category, score) in enumerate(
            zip(results.image_index.tolist(), results.class_id.tolist(), results.scores.tolist(), strict=True)
        )
    ]
    with _numpy_float():
        evaluator = lvis.LVISEval(ground_truth, lvis.LVISResults(ground_truth, records, max_dets=max_dets), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"]


def _quiet_logger() -> Any:
    import logging

    return logging.getLogger("lvis.quiet")


@contextlib.contextmanager
def _numpy_float() -> Iterator[None]:
    """lvis 0.5.3 writes `np.float`, which NumPy 1.24 removed: lend it the name for as long as it runs."""
    if "float" in vars(np):
        yield
        return
    np.float = float
    try:
        yield
    finally:
        del np.float


# ------------------------------------------------------------------------------------------------------------
# Matching and accumulating
# ------------------------------------------------------------------------------------------------------------

_ALL_BITS = np.uint64((1 << (len(AREA_LABELS) * len(IOU_THRESHOLDS))) - 1)


def _bits_of_areas(areas: np.ndarray) -> np.ndarray:
    """(n,) uint64: of each area range that an area is in, all thresholds' bits."""
    bits = np.zeros(len(areas), np.uint64)
    for number, (low, high) in enumerate(_AREA_RANGES):
        of_range = ((1 << len(IOU_THRESHOLDS)) - 1) << (number * len(IOU_THRESHOLDS))
        bits[(areas >= low) & (areas <= high)] |= np.uint64(of_range)
    return bits


def _bits_of_ious(ious: np.ndarray) -> np.ndarray:
    """(n,) uint64: of each threshold that an IoU reaches, all area ranges' bits."""
    reached = [
        sum(((1 << count) - 1) << (a * len(IOU_THRESHOLDS)) for a in range(len(AREA_LABELS)))
        for count in range(len(IOU_THRESHOLDS) + 1)
    ]
    return np.array(reached, np.uint64)[np.searchsorted(IOU_THRESHOLDS, ious, side="right")]


def _precision(
    annotations: Annotations, verified: JudgedPairs, results: Results, prepared: _Prepared, overlaps: MaskOverlaps
) -> np.ndarray:
    """The precision array, (T, R, K, area ranges), by the official package's rules and arithmetic.

    It decides everything once for each of the 10 thresholds and 4 area ranges. Here these 40 decisions are
    the bits of one number: bit `area range * 10 + threshold`.
    """
    # The order in which predictions count: by class, by score, ties by image, then by place in the file.
    order = np.lexsort((-results.scores[prepared.rows], results.class_id[prepared.rows]))
    rows = prepared.rows[order]
    position = np.full(len(results), -1)
    position[rows] = np.arange(len(rows))
    found, objects, ious = overlaps.columns()
    judged = position[found] >= 0
    inside = _bits_of_areas(annotations.areas)
    matched, ignored = _match(
        len(rows), position[found[judged]], objects[judged], ious[judged], inside, annotations, verified
    )
    class_id = results.class_id[rows]
    excused = ~_bits_of_areas(prepared.areas[order]) & _ALL_BITS
    keys = verified.keys(results.image_index[rows], class_id)
    excused[is_in(keys, verified.not_exhaustive)] = _ALL_BITS
    ignored |= ~matched & excused
    num_objects = np.zeros((len(AREA_LABELS), len(annotations.category_ids)), np.int64)
    for number in range(len(AREA_LABELS)):
        counted = verified.ground_truth & (inside >> np.uint64(number * len(IOU_THRESHOLDS)) & 1).astype(bool)
        num_objects[number] = np.bincount(
            annotations.annotation_class[counted], minlength=len(annotations.category_ids)
        )
    return _accumulate(class_id, matched & ~ignored, ~matched & ~ignored & _ALL_BITS, num_objects)


def _match(
    count: int,
    position: np.ndarray,
    objects: np.ndarray,
    ious: np.ndarray,
    inside: np.ndarray,
    annotations: Annotations,
    verified: JudgedPairs,
) -> tuple[np.ndarray, np.ndarray]:
    """The official package's greedy matching, of all images and classes side by side.

    Predictions choose one after the other, by score: of the objects left that overlap enough, one inside the
    area range if there is any, then the closest, the last of equal ones.

    Args:
        count: D, predictions.
        position: (m,) which prediction, 0..D-1 in the order in which they choose.
        objects: (m,) overlaps which annotation,
        ious: (m,) how much.
        inside: (A,) uint64, the bits of the area ranges that an annotation is in.

    Returns:
        (D,) uint64, where a prediction has its object; (D,) uint64, where that is one outside the area range.
    """
    matched, ignored = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    order = np.lexsort((-objects, -ious, position))  # a prediction's first choice first
    position, objects, enough = position[order], objects[order], _bits_of_ious(ious[order])
    first = np.flatnonzero(np.diff(position, prepend=-1))
    choices = np.diff(first, append=len(position))
    # The predictions of an image and class wait for each other: the n-th ones of all choose in round n.
    its = objects[first]
    keys = verified.keys(annotations.annotation_image[its], annotations.annotation_class[its])
    by_key = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(np.diff(keys[by_key], prepend=-1))
    rounds = np.empty(len(first), np.int64)
    rounds[by_key] = np.arange(len(first)) - np.repeat(begins, np.diff(begins, append=len(first)))
    by_round = np.argsort(rounds, kind="stable")
    taken = np.zeros(len(annotations.annotation_ids), np.uint64)
    for turn in np.split(by_round, np.flatnonzero(np.diff(rounds[by_round])) + 1):
        for wanted in (inside, ~inside):
            chooses, choice = turn, 0
            while len(chooses):
                at = first[chooses] + choice
                who, what = position[at], objects[at]
                has = enough[at] & wanted[what] & ~taken[what] & ~matched[who]
                taken[what] |= has
                matched[who] |= has
                if wanted is not inside:
                    ignored[who] |= has
                choice += 1
                chooses = chooses[choices[chooses] > choice]
    return matched, ignored


def _accumulate(class_id: np.ndarray, right: np.ndarray, wrong: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
    """Precision at the recall thresholds.

    The precision at a recall is the highest at that recall or above it. It is highest right behind a true
    positive, so only these are looked at.

    Args:
        class_id: (D,) ascending; within a class the predictions' order.
        right: (D,) uint64, where a prediction is a true positive.
        wrong: (D,) uint64, where it is a false one.
        num_objects: (area ranges, K).
    """
    num_classes = num_objects.shape[1]
    # Area range by area range, as they are made and as they are averaged later.
    precision = np.full((len(AREA_LABELS), len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), num_classes), -1.0)
    class_begins = np.searchsorted(class_id, np.arange(num_classes + 1))
    for area, total in enumerate(num_objects):
        there = np.flatnonzero(total)
        place = np.cumsum(total > 0) - 1  # of a class among those
        needed = _needed(total)
        its_bits = np.uint64(area * len(IOU_THRESHOLDS))
        its_right, its_wrong = ((bits >> its_bits).astype(np.uint16) for bits in (right, wrong))
        for threshold in range(len(IOU_THRESHOLDS)):
            bit = np.uint16(1 << threshold)
            at = np.flatnonzero(its_right & bit)
            first = np.searchsorted(at, class_begins)  # true positives before each class
            found = np.diff(first)
            classes = np.flatnonzero(found)
            if not len(classes):
                precision[area, threshold][:, there] = 0.0
                continue
            num_right = np.arange(1, len(at) + 1) - np.repeat(first[:-1], found)
            num_wrong = np.concatenate([[0], np.cumsum((its_wrong & bit) != 0, dtype=np.int64)])
            num_wrong = num_wrong[at] - np.repeat(num_wrong[class_begins[:-1]], found)
            values = num_right / ((num_wrong + num_right).astype(np.float64) + np.spacing(1))
            # From one recall threshold to the next the highest, then from each one on the highest.
            begins = first[classes, None] + np.minimum(needed[classes], found[classes, None]) - 1
            highest = np.maximum.reduceat(values, begins.ravel()).reshape(begins.shape)
            highest = np.maximum.accumulate(highest[:, ::-1], axis=1)[:, ::-1]
            of_class = np.zeros((len(there), len(RECALL_THRESHOLDS)))
            of_class[place[classes]] = np.where(needed[classes] <= found[classes, None], highest, 0.0)
            precision[area, threshold][:, there] = of_class.T
    return np.moveaxis(precision, 0, -1)


def _needed(total: np.ndarray) -> np.ndarray:
    """(K, R) int64: how many of (K,) objects make a recall of at least each threshold; 1 or more.

    >>> _needed(np.array([3]))[0, [0, 33, 34, 100]]
    array([1, 1, 2, 3])
    """
    objects = np.maximum(total, 1)[:, None]
    needed = np.ceil(RECALL_THRESHOLDS * objects)
    # Where rounding took it one too far up or down: recall is a quotient, compared as such.
    needed -= (needed - 1) / objects >= RECALL_THRESHOLDS
    needed += needed / objects < RECALL_THRESHOLDS
    return np.maximum(needed, 1).astype(np.int64)


# ------------------------------------------------------------------------------------------------------------
# The summary
# ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Evaluation:
    """AP of one set of results.

    Attributes:
        metrics: {"bbox": {"AP": ..., "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"}, "segm":
            {...}}; percent, NaN where no ground truth is there to judge by.
        per_category: one row per category: category_id, name, frequency, image_count, instance_count (counts
            of the ground truth evaluated on), AP_bbox, AP_segm (percent, NaN if absent or not evaluated).
        info: annotations, results (paths), images, predictions, max_dets, backend, and per IoU type how many
            predictions were judged and why the others were not.
        precision: {"bbox": (10 IoU thresholds, 101 recalls, K, 4 area ranges) float64 in 0..1, -1 absent};
            axes in IOU_THRESHOLDS, RECALL_THRESHOLDS, class_id, AREA_LABELS. Empty after `from_json`: it is
            not stored.
    """

    metrics: dict[str, dict[str, float]]
    per_category: pd.DataFrame
    info: dict[str, Any] = field(default_factory=dict)
    precision: dict[str, np.ndarray] = field(default_factory=dict)

    def table(self) -> str:
        """The nine metrics of each IoU type as aligned text; "-" where there is nothing to judge by."""
        rows = [["", *METRICS]]
        for iou_type, values in self.metrics.items():
            rows.append([iou_type, *("-" if math.isnan(values[m]) else f"{values[m]:.2f}" for m in METRICS)])
        lines = ["".join([row[0].ljust(6), *(cell.rjust(7) for cell in row[1:])]) for row in rows]
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join(lines)

    def precision_recall(self, category_id: int, *, iou_type: str = "bbox", iou_threshold: float = 0.5) -> pd.DataFrame:
        """Interpolated precision at the 101 recalls of one category: columns recall, precision (both 0..1).

        Raises:
            ValueError: unknown category id, or the precision array is not there (evaluate again: JSON has
                none).
        """
        if iou_type not in self.precision:
            raise ValueError(
                f"precision of {iou_type!r}: expected one of {sorted(self.precision)}. "
                "Evaluate the results again; evaluation.json does not hold the array."
            )
        row = np.flatnonzero(self.per_category["category_id"].to_numpy() == category_id)
        threshold = np.flatnonzero(np.isclose(IOU_THRESHOLDS, iou_threshold))
        if not len(row) or not len(threshold):
            raise ValueError(
                f"category_id {category_id}, iou_threshold {iou_threshold}: expected a category of the "
                f"ground truth and one of {IOU_THRESHOLDS.round(2).tolist()}."
            )
        values = self.precision[iou_type][threshold[0], :, row[0], 0]
        return pd.DataFrame({"recall": RECALL_THRESHOLDS, "precision": np.where(values < 0, np.nan, values)})

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes all but the precision array, atomically; NaN becomes null."""
        content = {
            "metrics": self.metrics,
            "info": self.info,
            "per_category": {name: self.per_category[name].tolist() for name in self.per_category},
        }
        write_atomically(Path(path), msgspec.json.format(msgspec.json.encode(content), indent=1))

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Reads what `to_json` wrote.

        Raises:
            FileNotFoundError: no such file.
            ResultsError: not an evaluation.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such evaluation. `python -m rio eval` writes it.")
        try:
            content = msgspec.json.decode(path.read_bytes(), type=_EvaluationContent)
            lengths = {len(content.per_category[name]) for name in _PER_CATEGORY}
            if len(lengths) != 1:
                raise ValueError(f"columns of different lengths in per_category: {sorted(lengths)}")
            if any(set(values) != set(METRICS) for values in content.metrics.values()):
                raise ValueError(f"metrics other than {METRICS}")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, ValueError) as error:
            raise results_error(
                str(path),
                "top level",
                "what Evaluation.to_json writes",
                f"{type(error).__name__}: {error}",
                "Evaluate the results again.",
            ) from None
        nan = float("nan")
        metrics = {
            t: {m: nan if values[m] is None else values[m] for m in METRICS} for t, values in content.metrics.items()
        }
        frame = pd.DataFrame({name: content.per_category[name] for name in _PER_CATEGORY})
        for name in ("AP_bbox", "AP_segm"):
            frame[name] = frame[name].astype(np.float64)
        return cls(metrics, frame, content.info)


_PER_CATEGORY = ("category_id", "name", "frequency", "image_count", "instance_count", "AP_bbox", "AP_segm")


class _EvaluationContent(msgspec.Struct):
    metrics: dict[str, dict[str, float | None]]
    info: dict[str, Any]
    per_category: dict[str, list[Any]]


def _summary(
    annotations: Annotations,
    source: str,
    num_predictions: int,
    precision: dict[str, np.ndarray],
    counts: dict,
    backend: str,
    max_dets: int,
) -> Evaluation:
    frame = pd.DataFrame(
        {
            "category_id": annotations.category_ids,
            "name": list(annotations.category_names),
            "frequency": annotations.frequency.tolist(),
            "image_count": annotations.image_count,
            "instance_count": annotations.instance_count,
            "AP_bbox": np.nan,
            "AP_segm": np.nan,
        }
    )
    metrics = {}
    for iou_type, array in precision.items():
        groups = {f"AP{g}": np.flatnonzero(annotations.frequency == g) for g in GROUP_NAMES}
        metrics[iou_type] = {
            "AP": _mean(array[:, :, :, 0]),
            "AP50": _mean(array[[0], :, :, 0]),
            "AP75": _mean(array[[5], :, :, 0]),
            **{f"AP{label[0]}": _mean(array[:, :, :, i]) for i, label in enumerate(AREA_LABELS) if i},
            **{name: _mean(array[:, :, classes, 0]) for name, classes in groups.items()},
        }
        by_class = array[:, :, :, 0].reshape(-1, array.shape[2]).T
        there = np.flatnonzero(by_class[:, 0] > -1)  # -1 is all of a class or nothing of it
        frame.loc[there, f"AP_{iou_type}"] = np.ascontiguousarray(by_class[there]).mean(1) * 100
    info = {
        "annotations": str(annotations.path),
        "results": source,
        "images": len(annotations.image_ids),
        "predictions": num_predictions,
        "max_dets": max_dets,
        "backend": backend,
        "protocol": "LVIS" if annotations.federated else "LVIS, every category verified (COCO-format ground truth)",
        **{f"predictions_{t}": c for t, c in counts.items()},
    }
    return Evaluation(metrics, frame, info, precision)


def _mean(precision: np.ndarray) -> float:
    """Mean of what is there, in percent; summed in the official package's order, for the last bit."""
    there = precision[precision > -1]
    return float(np.mean(there)) * 100 if len(there) else float("nan")
