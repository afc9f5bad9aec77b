"""Training batches: augmentation by position only; images that cannot be loaded."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from rio.engine.errors import TrainingError
from rio.engine.loader import build_training_loader
from rio.engine.setup import setup_training


def test_augmentation_depends_on_the_position_only(tiny_config, tmp_path):
    samples = build_training_loader(setup_training(tiny_config(tmp_path))).samples
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = [samples[position, 5]["image"] for position in range(8)]
    assert random.getstate() == states[0], "loading in this process must not move the model's random numbers"
    assert (np.random.get_state()[1] == states[1]).all() and torch.equal(torch.get_rng_state(), states[2])
    np.random.seed(2)
    again = [samples[position, 5]["image"] for position in reversed(range(8))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    different = {(tuple(image.shape), image.float().sum().item(), image[0, 0, 0].item()) for image in first}
    assert len(different) > 1, "one image shown at eight positions should not look the same each time"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_loaded_is_named(prepared, tiny_set, tmp_path, workers):
    run = prepared(tmp_path / "run", "DATALOADER.NUM_WORKERS", workers)
    broken = tmp_path / "half.jpg"
    broken.write_bytes((tiny_set / "train" / "000001.jpg").read_bytes()[:300])
    samples = run.data_loader.samples
    samples.records = [{**record, "file_name": str(broken)} for record in samples.records]
    with pytest.raises(TrainingError, match=r"^image .*half\.jpg \(image_id \d+\): could not be loaded") as error:
        run.train()
    assert "Traceback" not in str(error.value)
