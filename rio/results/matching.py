"""Masks: which overlap, who gets which object, and the precision that follows, to the last bit of the official `lvis`.

D predictions, A annotations, K classes, T = 10 IoU thresholds, R = 101 recall thresholds, 4 area ranges.
"""

from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np
from pycocotools import mask as coco_mask

from rio.data.annotations import Annotations
from rio.data.errors import AnnotationError
from rio.data.masks import rle_of
from rio.results.boundary import boundary_of
from rio.results.federated import JudgedPairs, Prepared, is_in
from rio.results.reading import Results

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREA_LABELS = ("all", "small", "medium", "large")
AREA_RANGES = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))  # square pixels
LEAST_IOU = IOU_THRESHOLDS[0]  # pairs below this IoU can never match
_T = len(IOU_THRESHOLDS)
PAIRS_FOR_C = 256  # of masks; with one library for all, the overlaps take a sixth longer

# The protocol decides everything once for each threshold and area range. Here these 40 decisions are the bits of one
# number: bit `area range * 10 + threshold`.
_ALL_BITS = np.uint64((1 << (len(AREA_LABELS) * _T)) - 1)


class MaskOverlaps:
    """Which predictions overlap which objects of their image and class by at least `LEAST_IOU`.

    Takes masks as they are read, so that they are never held all at once: of each, a few overlaps remain.
    """

    def __init__(self, annotations: Annotations, judged: JudgedPairs, iou_types: Sequence[str]) -> None:
        self.annotations, self.judged = annotations, judged
        self.keeps_boxes = "bbox" in iou_types  # whether `Results.boxes` are needed as well
        self._outlines = "boundary" in iou_types
        self._compares = self._outlines or "segm" in iou_types
        objects = np.flatnonzero(judged.ground_truth)
        keys = judged.keys(annotations.annotation_image[objects], annotations.annotation_class[objects])
        order = np.argsort(keys, kind="stable")
        self._objects, self._keys = objects[order], keys[order]
        self._masks: dict[int, list[dict[str, Any]]] = {}  # of an image and class, by its first object
        self.some: list[tuple[int, dict[str, Any]]] = []  # rows of the results and their masks, a sample
        self._boundaries: dict[int, dict[str, Any]] = {}  # of an object
        self._found: list[tuple[np.ndarray, ...]] = [(*np.empty((2, 0), np.int64), *np.empty((2, 0)))]

    def wants(self, image_index: np.ndarray, class_id: np.ndarray) -> np.ndarray:
        """(n,) bool: whether a mask of that image and class has a part in the evaluation."""
        return self.judged.is_judged(self.judged.keys(image_index, class_id))

    def add(
        self, rows: np.ndarray, image_index: np.ndarray, class_id: np.ndarray, rles: Sequence[dict], areas: np.ndarray
    ) -> None:
        """Compares the next n predictions, `rows` of the results, with the ground truth."""
        if not self._compares:
            return
        if len(self.some) < 64:
            self.some += [(int(rows[i]), rles[i]) for i in range(0, len(rows), max(len(rows) // 16, 1))]
        keys = self.judged.keys(image_index, class_id)
        order = np.argsort(keys, kind="stable")
        order = order[areas[order] > 0]
        keys = keys[order]
        begins = np.flatnonzero(np.diff(keys, prepend=-1))
        ends = np.append(begins[1:], len(keys))
        lows, highs = (np.searchsorted(self._keys, keys[begins], side) for side in ("left", "right"))
        begins, ends, lows, highs = (column[lows < highs] for column in (begins, ends, lows, highs))
        ordered = [rles[i] for i in order.tolist()]
        ious = [np.empty(0)]
        for begin, end, low, high in zip(*map(np.ndarray.tolist, (begins, ends, lows, highs)), strict=True):
            truth = self._masks_of(low, high)
            # The same numbers from both. hotcoco is faster to call, pycocotools to walk the runs (which are checked).
            library = coco_mask if (end - begin) * (high - low) > PAIRS_FOR_C else hotcoco.mask
            ious.append(library.iou(ordered[begin:end], truth, [0] * len(truth)).ravel(order="F"))
        # Of all groups at once: which pairs are close, and whose they are.
        flat = np.concatenate(ious)
        close = np.flatnonzero(flat >= LEAST_IOU)
        pairs = (ends - begins) * (highs - lows)
        firsts = np.cumsum(pairs) - pairs
        group = np.searchsorted(firsts, close, side="right") - 1
        of_object, of_row = np.divmod(close - firsts[group], (ends - begins)[group])
        objects, own = self._objects[lows[group] + of_object], order[begins[group] + of_row]
        outlines = self._boundary_ious(rles, own, objects) if self._outlines else np.ones(len(own))
        self._found.append((rows[own], objects, flat[close], np.minimum(outlines, flat[close])))

    def _boundary_ious(self, rles: Sequence[dict], own: np.ndarray, objects: np.ndarray) -> np.ndarray:
        ious, mine = np.empty(len(own)), {}
        for pair, (i, index) in enumerate(zip(own.tolist(), objects.tolist(), strict=True)):
            if i not in mine:
                mine[i] = boundary_of(rles[i])
            if index not in self._boundaries:
                self._boundaries[index] = boundary_of(self._mask(index))
            ious[pair] = coco_mask.iou([mine[i]], [self._boundaries[index]], [0])[0, 0]
        return ious

    def columns(self) -> tuple[np.ndarray, ...]:
        """(m,) rows of the results, (m,) annotation indices, (m,) float64 IoUs, (m,) those for boundary AP."""
        self._masks, self._boundaries = {}, {}
        return tuple(map(np.concatenate, zip(*self._found, strict=True)))

    def _masks_of(self, low: int, high: int) -> list[dict[str, Any]]:
        if low not in self._masks:
            self._masks[low] = [self._mask(index) for index in self._objects[low:high].tolist()]
        return self._masks[low]

    def _mask(self, index: int) -> dict[str, Any]:
        image = self.annotations.annotation_image[index]
        size = int(self.annotations.image_height[image]), int(self.annotations.image_width[image])
        return rle_of(segmentation_of(self.annotations, index), *size)


def segmentation_of(annotations: Annotations, index: int) -> Any:
    """An annotation's mask as in the file; an AnnotationError where there is none."""
    segmentation = annotations.segmentation(index)
    if segmentation is None:
        record = f"annotation {int(annotations.annotation_ids[index])}"
        fix = "evaluate boxes only with iou_types=('bbox',) (--iou-type bbox), or load the annotations with "
        expected, fix = "polygons or an RLE", fix + "segmentations=True"
        raise AnnotationError(annotations.path, record, "segmentation", expected, "nothing", fix, "no_segmentation")
    return segmentation


def mask_precision(
    annotations: Annotations, judged: JudgedPairs, results: Results, prepared: Prepared,
    columns: tuple[np.ndarray, ...], iou_type: str,
) -> np.ndarray:  # fmt: skip
    """The precision array (T, R, K, area ranges) by the official package's rules and arithmetic, from
    `MaskOverlaps.columns`; iou_type: "segm" or "boundary"."""
    # The order in which predictions count: by class, by score, ties by image, then by place in the file.
    order = np.lexsort((-results.scores[prepared.rows], results.class_id[prepared.rows]))
    rows = prepared.rows[order]
    position = np.full(len(results), -1)
    position[rows] = np.arange(len(rows))
    found, objects, masks, outlines = columns
    ious = outlines if iou_type == "boundary" else masks
    takes_part = position[found] >= 0
    found, objects, ious = position[found[takes_part]], objects[takes_part], ious[takes_part]
    inside = _bits_of_areas(annotations.areas)
    matched, ignored = _match(len(rows), found, objects, ious, inside, annotations, judged)
    class_id = results.class_id[rows]
    excused = ~_bits_of_areas(prepared.areas[order]) & _ALL_BITS
    excused[is_in(judged.keys(results.image_index[rows], class_id), judged.not_exhaustive)] = _ALL_BITS
    ignored |= ~matched & excused
    num_objects = np.zeros((len(AREA_LABELS), len(annotations.category_ids)), np.int64)
    for number, counts in enumerate(num_objects):
        counted = judged.ground_truth & (inside >> np.uint64(number * _T) & 1).astype(bool)
        counts[:] = np.bincount(annotations.annotation_class[counted], minlength=len(counts))
    return accumulate(class_id, matched & ~ignored, ~matched & ~ignored & _ALL_BITS, num_objects)


def _bits_of_areas(areas: np.ndarray) -> np.ndarray:
    """(n,) uint64: for each area range that an area is in, all thresholds' bits."""
    bits = np.zeros(len(areas), np.uint64)
    for number, (low, high) in enumerate(AREA_RANGES):
        bits[(areas >= low) & (areas <= high)] |= np.uint64(((1 << _T) - 1) << (number * _T))
    return bits


def _bits_of_ious(ious: np.ndarray) -> np.ndarray:
    """(n,) uint64: for each threshold that an IoU reaches, all area ranges' bits."""
    reached = [sum(((1 << n) - 1) << (area * _T) for area in range(len(AREA_LABELS))) for n in range(_T + 1)]
    return np.array(reached, np.uint64)[np.searchsorted(IOU_THRESHOLDS, ious, side="right")]


def _match(
    count: int, position: np.ndarray, objects: np.ndarray, ious: np.ndarray, inside: np.ndarray,
    annotations: Annotations, judged: JudgedPairs,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The official package's greedy matching, of all images and classes side by side.

    Predictions choose one after the other, by score: of the objects left that overlap enough, one inside the area
    range if there is any, then the closest, the last of equal ones. Prediction `position` (m,), 0..D-1 in the order in
    which they choose, overlaps annotation `objects` (m,) by `ious` (m,); `inside`: (A,) bits of the area ranges that an
    annotation is in. Returns (D,) uint64, where a prediction has its object, and where that is outside the area range.
    """
    matched, ignored = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    order = np.lexsort((-objects, -ious, position))  # a prediction's first choice first
    position, objects, enough = position[order], objects[order], _bits_of_ious(ious[order])
    first = np.flatnonzero(np.diff(position, prepend=-1))
    choices = np.diff(first, append=len(position))
    # The predictions of an image and class wait for each other: the n-th ones of all choose in round n.
    its = objects[first]
    keys = judged.keys(annotations.annotation_image[its], annotations.annotation_class[its])
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


def accumulate(class_id: np.ndarray, right: np.ndarray, wrong: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
    """Precision at the recall thresholds, (T, R, K, area ranges); -1 for a class without objects.

    The precision at a recall is the highest at that recall or above it. It is highest right behind a true positive,
    so only these are looked at. class_id: (D,) ascending, within a class the predictions' order; right, wrong: (D,)
    uint64, where a prediction is a true and a false positive; num_objects: (area ranges, K).
    """
    num_classes = num_objects.shape[1]
    # Area range by area range, as they are made and as they are averaged later.
    precision = np.full((len(AREA_LABELS), _T, len(RECALL_THRESHOLDS), num_classes), -1.0)
    class_begins = np.searchsorted(class_id, np.arange(num_classes + 1))
    for area, total in enumerate(num_objects):
        there = np.flatnonzero(total)
        place = np.cumsum(total > 0) - 1  # of a class among those
        needed = objects_needed(total)
        its_right, its_wrong = ((bits >> np.uint64(area * _T)).astype(np.uint16) for bits in (right, wrong))
        for threshold in range(_T):
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


def precision_without_predictions(annotations: Annotations, objects: np.ndarray) -> np.ndarray:
    """As the official packages have it: 0 for every class with `objects` (A,) bool in an area range, else -1."""
    shape = len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), len(annotations.category_ids), len(AREA_LABELS)
    precision = np.full(shape, -1.0)
    areas, classes = annotations.areas[objects], annotations.annotation_class[objects]
    for column, (low, high) in enumerate(AREA_RANGES):
        precision[:, :, np.unique(classes[(areas >= low) & (areas <= high)]), column] = 0
    return precision


def objects_needed(total: np.ndarray) -> np.ndarray:
    """(K, R) int64: how many of (K,) objects make a recall of at least each threshold; 1 or more.

    >>> objects_needed(np.array([3]))[0, [0, 33, 34, 100]]
    array([1, 1, 2, 3])
    """
    objects = np.maximum(total, 1)[:, None]
    needed = np.ceil(RECALL_THRESHOLDS * objects)
    # Where rounding took it one too far up or down: recall is a quotient, compared as such.
    needed -= (needed - 1) / objects >= RECALL_THRESHOLDS
    needed += needed / objects < RECALL_THRESHOLDS
    return np.maximum(needed, 1).astype(np.int64)
