"""The classifier lab."""

from __future__ import annotations

import json

import numpy as np

import rio
from rio.losses import LOSSES


def features(folder, count=16):
    sets = {"train": {"data": "a", "folder": "train", "fingerprint": "160 images, 9 objects, crc 0"}}
    sets["b"] = {"data": "b", "folder": "test_0", "fingerprint": ""}
    for one in sets.values():
        (folder / one["folder"]).mkdir(parents=True)
        np.save(folder / one["folder"] / "counts.npy", np.array([16, count]))
    (folder / "features.json").write_text(json.dumps({"sets": sets}))
    return folder


def test_offers_every_loss(tmp_path):
    assert set(rio.ClassifierLab(output_dir=tmp_path).losses.options) == set(LOSSES)


def test_missing_or_unfinished_features_are_a_sentence(tmp_path):
    for folder in (tmp_path / "none", features(tmp_path / "begun", -1)):
        lab = rio.ClassifierLab(folder, tmp_path / "runs")
        lab.train()
        assert str(folder) in lab.trouble and "Fix:" in lab.trouble and not lab.is_busy()


def test_one_command_per_arm(tmp_path):
    lab = rio.ClassifierLab(features(tmp_path / "f"), tmp_path / "runs")
    lab.classifiers.value = ("linear", "cosine")
    commands = lab.commands()
    assert len(commands) == 4
    assert all(words[words.index("SOLVER.MAX_ITER") + 1] == "50" for words in commands.values())


def test_runs_of_an_earlier_time_are_shown(tmp_path):
    run = tmp_path / "rfs softmax 5ep lr0.1 t0.03-linear"
    run.mkdir()
    (run / "run.json").write_text('{"pid": 1, "command": []}')
    (run / "config.yaml").write_text("SOLVER: {MAX_ITER: 50}")
    row = {"iteration": 24, "bbox/AP": 12.5, "bbox/APr": 3.0, "bbox/APc": 9.0, "bbox/APf": 20.0}
    (run / "metrics.json").write_text(json.dumps(row) + "\n")
    lab = rio.ClassifierLab(output_dir=tmp_path)
    assert lab.curves()["epoch"].tolist() == [2.5] and "12.5" in lab.status.value and lab.figure.value
