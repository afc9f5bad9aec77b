"""The score from which a prediction counts in pictures and in counts of errors: one rule, for all views."""

import numpy as np
import pandas as pd

from rio.data.annotations import GROUP_NAMES, Annotations
from rio.results.errors import find_errors
from rio.results.federated import JudgedPairs
from rio.results.reading import Results

RULE = "the highest geometric mean of the groups' F1"
LOWEST_SCORE = 0.01  # predictions below are looked at only if asked for: an LVIS run keeps 300 an image, most near 0
FALLBACK = 0.5  # where nothing is right, or no results are there to choose by
_CANDIDATES = (np.arange(1, 100) / 100).round(2)


def best_threshold(annotations: Annotations, results: Results | None, *, errors: pd.DataFrame | None = None) -> float:
    """The score with the highest geometric mean of the frequency groups' F1 (IoU 0.5), of 0.01, 0.02, ..., 0.99.

    F1 of all predictions together is the frequent categories' choice, and above every score of a rare one where these
    are few; a geometric mean is 0 as soon as one group has nothing left. A group without a right prediction at any
    score has no say. Of equals the highest; `FALLBACK` where no prediction is right. `errors`: of `find_errors` on
    these results from `LOWEST_SCORE` on, if at hand.
    """
    table = f1_by_threshold(annotations, results, errors=errors)
    table = table.loc[:, table.max() > 0]
    return FALLBACK if table.empty else float(table[::-1].prod(axis=1).idxmax())


def f1_by_threshold(
    annotations: Annotations, results: Results | None, *, errors: pd.DataFrame | None = None
) -> pd.DataFrame:
    """F1 (0..1) at every score that `best_threshold` chooses from: a column for each frequency group that has objects.

    F1 = 2 right / (predictions + objects), of what LVIS judges; a prediction belongs to its category's group.
    """
    errors = find_errors(annotations, results, score_threshold=LOWEST_SCORE) if errors is None else errors
    judged = errors[(errors["result_index"] >= 0) & (errors["kind"] != "unverified")]
    groups = annotations.frequency[annotations.annotation_class[JudgedPairs.of(annotations).counted]]
    table = {}
    for group in GROUP_NAMES:
        if objects := int((groups == group).sum()):
            own = judged[judged["frequency"] == group]
            found, right = (_reaching(part["score"].to_numpy()) for part in (own, own[own["kind"] == "correct"]))
            table[group] = 2 * right / (found + objects)
    return pd.DataFrame(table, index=_CANDIDATES)


def _reaching(scores: np.ndarray) -> np.ndarray:
    """How many scores reach each candidate."""
    return len(scores) - np.searchsorted(np.sort(scores), _CANDIDATES)
