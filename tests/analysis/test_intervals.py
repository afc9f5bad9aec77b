"""Intervals of differences: the bootstrap itself, what it covers, and the verdict."""

import numpy as np
import pytest

from rio.analysis.intervals import paired_difference, student_t

GROUPS = np.array(["r"] * 6 + ["c"] * 6 + ["f"] * 8)


def test_the_interval_is_the_bootstraps_own():
    """Against the plain definition: draw categories with replacement within groups, again and again.

    Widened for the few there are: 6 rare classes by sqrt(6 / 5), cut off where normal tails are Student's of 5."""
    rng = np.random.default_rng(1)
    gain = rng.normal(3, 5, 20)
    blocks = [gain[:6], gain[6:12], gain[12:]]
    wide = [b.mean() + (rng.choice(b, (20_000, len(b))) - b.mean()) * np.sqrt(len(b) / (len(b) - 1)) for b in blocks]
    row, means = paired_difference(gain[None], GROUPS), np.concatenate(wide, axis=1).mean(axis=1)
    tail = 0.0171  # of about 14 degrees of freedom, t = 2.14, by Satterthwaite and the three variances
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(means, [tail, 1 - tail]).tolist(), abs=0.15)
    rare, means = paired_difference(gain[None, :6], GROUPS[:6]), wide[0].mean(axis=1)
    tail = 0.00508  # t = 2.571
    assert [rare["low"], rare["high"]] == pytest.approx(np.quantile(means, [tail, 1 - tail]).tolist(), abs=0.3)


@pytest.mark.parametrize(
    ("freedom", "value", "within"), [(2, 4.303, 0.04), (5, 2.571, 0.003), (10, 2.228, 5e-4), (100, 1.984, 5e-4)]
)
def test_students_quantile(freedom, value, within):
    """Against the tables of any textbook."""
    assert student_t(freedom) == pytest.approx(value, abs=within)


def test_shift_scale_and_sign_of_the_interval():
    gain = np.random.default_rng(2).normal(1, 4, (1, 20))

    def interval(change):
        row = paired_difference(change, GROUPS)
        return np.array([row["difference"], row["low"], row["high"]])

    plain = interval(gain)
    assert interval(gain + 5) == pytest.approx(plain + 5, abs=1e-3)
    assert interval(2 * gain) == pytest.approx(2 * plain, abs=1e-3)
    assert interval(-gain) == pytest.approx(-plain[[0, 2, 1]], abs=1e-3)  # the same draws, mirrored


def test_intervals_cover_what_they_say():
    """Of many made-up sets of categories about 19 in 20 intervals hold the true difference; arms that do not differ are
    seldom called different, though the interval alone would, 1 in 20."""
    rng = np.random.default_rng(3)
    groups = np.array(["r"] * 11 + ["c"] * 40 + ["f"] * 6)
    hit, wrong = {"AP": 0, "APr": 0, "APf": 0}, 0
    for _ in range(200):
        gain = rng.normal(2, 6, (1, 57)) + rng.normal(0, 2, (3, 57))  # of the category, and of each seed
        for metric in hit:
            own = (groups == metric[2:]) | (metric == "AP")
            found = paired_difference(gain[:, own], groups[own])
            hit[metric] += found["low"] <= 2 <= found["high"]
        wrong += paired_difference(rng.normal(0, 5, (3, 40)), groups[11:51])["resolved"]
    assert all(182 <= number <= 198 for number in hit.values()), hit  # 91 to 99 %
    assert wrong <= 14
