"""Which predictions the LVIS protocol judges (Gupta et al., arXiv 1908.03195, section 2).

A category is judged in an image only where it was looked for: the image holds it (there is ground truth), or is known
not to (`neg_category_ids`). Where it is listed as not exhaustively annotated, an unmatched prediction is ignored.
COCO-format ground truth has no such lists: every category counts as verified in every image; a crowd region is no
ground truth, and makes its category not exhaustively annotated in its image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rio.data.annotations import Annotations, index_of
from rio.results.reading import Results


@dataclass(frozen=True, eq=False)
class JudgedPairs:
    """Which (image, class) pairs a prediction can be judged in; a pair's key is image_index * K + class_id.

    Keys are int64, sorted, unique.
    """

    num_classes: int  # K
    ground_truth: np.ndarray  # (A,) bool, annotations with an area above 0; in COCO format no crowd region
    counted: np.ndarray  # (A,) bool, those of them that have to be found: in LVIS format not those with "ignore"
    positive: np.ndarray  # keys with ground truth
    negative: np.ndarray | None  # keys verified to be absent; None where every pair is verified (COCO format)
    not_exhaustive: np.ndarray  # keys in which unmatched predictions are ignored

    @classmethod
    def of(cls, annotations: Annotations) -> JudgedPairs:
        """Reads the judged pairs off the ground truth."""
        num_classes = len(annotations.category_ids)
        keys = annotations.annotation_image.astype(np.int64) * num_classes + annotations.annotation_class
        ground_truth = (annotations.areas > 0) & (annotations.areas < np.inf)
        if annotations.federated:
            # LVIS knows no crowd regions: the official code takes every annotation as an object.
            negative = _listed(annotations, annotations.neg_ids, annotations.neg_offsets)
            not_exhaustive = _listed(annotations, annotations.not_exhaustive_ids, annotations.not_exhaustive_offsets)
        else:
            negative, not_exhaustive = None, np.unique(keys[annotations.iscrowd])
            ground_truth &= ~annotations.iscrowd
        counted = ground_truth & ~(annotations.ignored & annotations.federated)
        return cls(num_classes, ground_truth, counted, np.unique(keys[ground_truth]), negative, not_exhaustive)

    def keys(self, image_index: np.ndarray, class_id: np.ndarray) -> np.ndarray:
        """(N,) int64 keys of (image, class) pairs."""
        return image_index.astype(np.int64) * self.num_classes + class_id

    def is_judged(self, keys: np.ndarray) -> np.ndarray:
        """(N,) bool: predictions of these pairs enter the evaluation at all."""
        return np.ones(len(keys), bool) if self.negative is None else is_in(keys, self._judged)

    @cached_property
    def _judged(self) -> np.ndarray:
        return np.union1d(self.positive, self.negative)

    def counts_if_unmatched(self, keys: np.ndarray) -> np.ndarray:
        """(N,) bool: an unmatched prediction of these pairs is a false positive."""
        return self.is_judged(keys) & ~is_in(keys, self.not_exhaustive)


def _listed(annotations: Annotations, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The keys of all images' lists of category ids."""
    image_index = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    class_ids = index_of(annotations.category_ids, ids)
    known = class_ids >= 0  # an id the file does not declare can have no prediction either
    return np.unique(image_index[known] * len(annotations.category_ids) + class_ids[known])


def is_in(keys: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """`np.isin`, which sorts `ascending` or makes a table of it each time: worth it for many keys only."""
    if len(keys) > 1 << 16:
        return np.isin(keys, ascending)
    if not len(ascending):
        return np.zeros(len(keys), bool)
    return ascending.take(np.searchsorted(ascending, keys), mode="clip") == keys


@dataclass
class Prepared:
    """Both sides as an engine gets them. Ids: image_index + 1, class_id + 1."""

    rows: np.ndarray  # (n,) rows of the results that are judged, grouped by image, else in the file's order
    areas: np.ndarray  # (n,) float64, of these
    negative: list[list[int]]
    not_exhaustive: list[list[int]]
    counts: dict[str, int]  # of predictions that are judged, and that are not for which reason


def best_of_categories(results: Results, count: int) -> np.ndarray:
    """Rows among the `count` highest-scoring ones of their category (-1: all), grouped by image."""
    rows = results.capped(-1)
    if count == -1:
        return rows
    order = np.lexsort((-results.scores, results.class_id))  # equal scores in the file's order
    of_class = results.class_id[order]
    keep = np.empty(len(order), bool)
    keep[order] = np.arange(len(order)) - np.searchsorted(of_class, of_class) < count
    return rows[keep[rows]]


def prepare(
    annotations: Annotations, judged: JudgedPairs, results: Results, rows: np.ndarray, iou_type: str
) -> Prepared:
    """The official package's order of steps: cap (which left `rows`), then area, then federation."""
    counts = {"judged": 0, "over_max_dets": len(results) - len(rows)}
    # A mask's area for "segm" whether or not there is a bbox (detectron2 strips the bbox for that reason); for "bbox"
    # width * height, unless the records carry masks only.
    if iou_type == "bbox" and results.has_boxes:
        areas = results.boxes[rows, 2] * results.boxes[rows, 3]
    else:
        areas = np.empty(0) if results.mask_areas is None else results.mask_areas[rows]
    keep = (areas > 0) & (areas < np.inf)
    keys = judged.keys(results.image_index[rows], results.class_id[rows])
    verified = judged.is_judged(keys)
    counts |= {"without_area": int((verified & ~keep).sum()), "unverified": int((~verified).sum())}
    keep &= verified
    rows, areas, keys = rows[keep], areas[keep], keys[keep]
    counts["judged"] = len(rows)
    # Only pairs with predictions matter: full lists would be images x categories long for COCO-format data.
    predicted = np.unique(keys)
    negative = predicted if judged.negative is None else np.intersect1d(predicted, judged.negative)
    not_exhaustive = np.intersect1d(predicted, judged.not_exhaustive)
    return Prepared(
        rows, areas, keys_to_lists(annotations, negative), keys_to_lists(annotations, not_exhaustive), counts
    )


def keys_to_lists(annotations: Annotations, keys: np.ndarray) -> list[list[int]]:
    """Keys as one list per image of 1-based class numbers (what both engines are given for category ids)."""
    num_images, num_classes = len(annotations.image_ids), len(annotations.category_ids)
    offsets = np.searchsorted(keys, np.arange(num_images + 1) * num_classes).tolist()
    numbers = (keys % num_classes + 1).tolist() if num_classes else []
    return [numbers[offsets[i] : offsets[i + 1]] for i in range(num_images)]


def records(
    annotations: Annotations, negative: list[list[int]], not_exhaustive: list[list[int]]
) -> tuple[list[dict], list[dict]]:
    """Image and category records for an engine."""
    sides = zip(annotations.image_width.tolist(), annotations.image_height.tolist(), strict=True)
    images = [
        {"id": i + 1, "width": w, "height": h, "neg_category_ids": neg, "not_exhaustive_category_ids": nel}
        for i, ((w, h), neg, nel) in enumerate(zip(sides, negative, not_exhaustive, strict=True))
    ]
    groups = enumerate(annotations.frequency.tolist())
    return images, [{"id": k + 1, "name": str(k), "frequency": group} for k, group in groups]
