"""Broken annotation files, results and images are taken, or refused in our words."""

import warnings

import numpy as np
import pytest

from tests.support import fuzz


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_a_hundred_broken_ones(tmp_path, kind):
    """`python -m tests.support.fuzz` tries thousands."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz.KINDS[kind](tmp_path / "input", np.random.default_rng(0))  # imports are no input's time or memory
        for seed in range(1, 101):
            fuzz.try_one(kind, seed, tmp_path / "input")
