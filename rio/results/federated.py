"""Which predictions the LVIS protocol judges (Gupta et al., arXiv 1908.03195, section 2).

A category is judged in an image only where it was looked for: the image holds it (there is ground truth), or is known
not to (`neg_category_ids`). Where it is listed as not exhaustively annotated, an unmatched prediction is ignored.
COCO-format ground truth has no such lists: every category counts as verified in every image; a crowd region is no
ground truth, and makes its category not exhaustively annotated in its image.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rio.data.annotations import Annotations, index_of


@dataclass(frozen=True, eq=False)
class JudgedPairs:
    """Which (image, class) pairs a prediction can be judged in; a pair's key is image_index * K + class_id.

    Attributes:
        num_classes: K.
        ground_truth: (A,) bool, the annotations that are ground truth (an area above 0; in COCO format no
            crowd region).
        positive: sorted unique int64 keys with ground truth.
        negative: sorted unique int64 keys verified to be absent; None where every pair is verified (COCO
            format).
        not_exhaustive: sorted unique int64 keys in which unmatched predictions are ignored.
    """

    num_classes: int
    ground_truth: np.ndarray
    positive: np.ndarray
    negative: np.ndarray | None
    not_exhaustive: np.ndarray

    @classmethod
    def of(cls, annotations: Annotations) -> JudgedPairs:
        """Reads the verified pairs off the ground truth."""
        num_classes = len(annotations.category_ids)
        keys = annotations.annotation_image.astype(np.int64) * num_classes + annotations.annotation_class
        ground_truth = (annotations.areas > 0) & (annotations.areas < np.inf)
        if annotations.federated:
            # LVIS knows no crowd regions: the official code takes every annotation as an object
            negative = _keys_of_lists(annotations, annotations.neg_category_ids)
            not_exhaustive = _keys_of_lists(annotations, annotations.not_exhaustive_category_ids)
        else:
            negative, not_exhaustive = None, np.unique(keys[annotations.iscrowd])
            ground_truth &= ~annotations.iscrowd
        return cls(num_classes, ground_truth, np.unique(keys[ground_truth]), negative, not_exhaustive)

    def keys(self, image_index: np.ndarray, class_id: np.ndarray) -> np.ndarray:
        """(N,) int64 keys of (image, class) pairs."""
        return image_index.astype(np.int64) * self.num_classes + class_id

    def is_judged(self, keys: np.ndarray) -> np.ndarray:
        """(N,) bool: predictions of these pairs enter the evaluation at all."""
        if self.negative is None:
            return np.ones(len(keys), bool)
        return is_in(keys, self._judged)

    @cached_property
    def _judged(self) -> np.ndarray:
        return np.union1d(self.positive, self.negative)

    def counts_if_unmatched(self, keys: np.ndarray) -> np.ndarray:
        """(N,) bool: an unmatched prediction of these pairs is a false positive."""
        return self.is_judged(keys) & ~is_in(keys, self.not_exhaustive)


def is_in(keys: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """`np.isin`, which sorts `ascending` anew or makes a table of it: worth it for many keys only."""
    if len(keys) > 1 << 16:
        return np.isin(keys, ascending)
    if not len(ascending):
        return np.zeros(len(keys), bool)
    return ascending.take(np.searchsorted(ascending, keys), mode="clip") == keys


def _keys_of_lists(annotations: Annotations, lists: Sequence[Sequence[int]]) -> np.ndarray:
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    ids = np.fromiter(itertools.chain.from_iterable(lists), np.int64, int(lengths.sum()))
    image_index = np.repeat(np.arange(len(lists)), lengths)
    class_ids = index_of(annotations.category_ids, ids)
    known = class_ids >= 0  # an id the file does not declare can have no prediction either
    return np.unique(image_index[known] * len(annotations.category_ids) + class_ids[known])
