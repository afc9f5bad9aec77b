"""Intervals of differences between arms: a paired bootstrap over categories, widened where there are few."""

import functools
from statistics import NormalDist
from typing import Any

import numpy as np

BOOTSTRAP_DRAWS = 10_000
BOOTSTRAP_SEED = 20_220_101
# All n differences have the same sign by chance in 2 / 2^n of cases: below six, more often than 5 %.
MIN_CATEGORIES = 6


def paired_difference(differences: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """The mean difference, its 95 % interval over categories, and whether it is resolved.

    The bootstrap draws categories with replacement within each frequency group, 10,000 times, with seeds fixed. Of
    1,000 made-up sets of normal differences the interval covers the truth in 94 % with 6 or 11 categories and in 93 to
    96 % with 100 and more; of exponential differences in 90, 92 and 95 to 96 %.

    `differences`: (seeds, n) points of AP, arm minus baseline, no NaN; `groups`: (n,) "r", "c" or "f". Returns
    difference (mean), low, high (NaN with fewer than 6 categories), seeds_agree (every seed's difference has the sign
    of the mean), resolved (0 is outside low..high, the seeds agree, and there are at least two).
    """
    seeds, n = differences.shape
    if n == 0:
        return {"difference": np.nan, "low": np.nan, "high": np.nan, "seeds_agree": False, "resolved": False}
    by_category, by_seed = differences.mean(axis=0), differences.mean(axis=1)
    difference = float(by_category.mean())
    agree = bool(difference != 0 and (np.sign(by_seed) == np.sign(difference)).all())
    low = high = np.nan
    if n >= MIN_CATEGORIES:
        drawn, variances, freedoms = np.zeros(BOOTSTRAP_DRAWS), [], []
        for place, group in enumerate("rcf"):
            own = by_category[groups == group]
            k = len(own)
            if k > 1:  # every draw of one category is that category
                # Draws from k values vary by (k - 1) / k of what their spread (ddof 1) stands for.
                drawn += np.sqrt(k / (k - 1)) * (_times_drawn(k, place) @ (own - own.mean()))
                variances.append(k * own.var(ddof=1))
                freedoms.append(k - 1)
        tail = _tail(np.array(variances), np.array(freedoms))
        low, high = (difference + np.quantile(drawn / n, [tail, 1 - tail])).tolist()
    resolved = bool(seeds >= 2 and agree and (low > 0 or high < 0))
    return {"difference": difference, "low": low, "high": high, "seeds_agree": agree, "resolved": resolved}


def student_t(freedom: float) -> float:
    """The 97.5 % quantile of Student's distribution (Abramowitz and Stegun 26.7.5), for degrees of freedom from 2 on;
    the error is 0.04 at 2 and at most 0.003 from 5 on.

    >>> round(student_t(10), 3)
    2.228
    """
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def interval_of_mean(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean from three values on; lowest and highest of two; NaN of one."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return np.nan, np.nan
    if len(values) == 2:
        return float(values.min()), float(values.max())
    half = student_t(len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _tail(variances: np.ndarray, freedoms: np.ndarray) -> float:
    """The share of draws beyond each end of a 95 % interval: 2.5 %, less with few categories.

    Hesterberg, "What teachers should know about the bootstrap" (arXiv 1411.5279): the expanded percentile interval.
    `variances` of each group's sum; degrees of freedom of their total after Satterthwaite.
    """
    total = variances.sum()
    freedom = freedoms.sum() if total == 0 else total**2 / (variances**2 / freedoms).sum()
    return NormalDist().cdf(-student_t(float(freedom)))


@functools.lru_cache(maxsize=6)
def _times_drawn(n: int, group: int) -> np.ndarray:
    """(BOOTSTRAP_DRAWS, n) float32: how often each of n categories is in each draw of n."""
    rng = np.random.default_rng([BOOTSTRAP_SEED, group, n])
    drawn = rng.integers(0, n, (BOOTSTRAP_DRAWS, n)) + n * np.arange(BOOTSTRAP_DRAWS)[:, None]
    return np.bincount(drawn.ravel(), minlength=BOOTSTRAP_DRAWS * n).reshape(-1, n).astype(np.float32)
