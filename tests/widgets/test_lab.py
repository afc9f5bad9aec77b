"""The classifier lab: a training per arm, errors as sentences, earlier runs beside new ones."""

import itertools
import json
import sys
import time

import pytest

pytest.importorskip("ipywidgets", reason="ipywidgets is not installed (the extra `notebooks`)")

import rio
from rio.losses import LOSSES
from rio.widgets import lab as module


@pytest.fixture
def features(tmp_path):
    """features.json as `rio features` writes it."""
    sets = {
        "train": {"data": "a", "folder": "train", "images": 160},
        "b": {"data": "b", "folder": "test_0", "images": 9},
    }
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "features.json").write_text(json.dumps({"sha256": "0123456789", "sets": sets}))
    return tmp_path / "features"


def test_it_offers_every_loss(features, tmp_path):
    assert set(rio.ClassifierLab(features, tmp_path).losses.options) == set(LOSSES)


def test_missing_features_are_a_sentence(tmp_path):
    lab = rio.ClassifierLab(tmp_path / "none", tmp_path / "runs")
    lab.train()  # not the default ones: nothing can be made
    assert "expected a folder with features.json, found none. Fix: `make demo`" in lab.trouble
    assert lab.trouble.split(":")[0] in lab.status.value and not lab.is_busy() and lab.curves().empty


def test_published_numbers_stand_beside_runs_on_lvis(features, tmp_path):
    file = features / "features.json"
    assert "reported" not in rio.ClassifierLab(features, tmp_path).status.value
    file.write_text(file.read_text().replace('"data": "b"', '"data": "lvis_v0.5_val"'))
    shown = rio.ClassifierLab(features, tmp_path).status.value
    assert "RIO R50" in shown and "25.7" in shown and "reported" in shown


def test_a_command_per_arm(features, tmp_path):
    lab = rio.ClassifierLab(features, tmp_path / "runs", options=["SEED", 3])
    lab.classifiers.value, lab.epochs.value = ("linear", "cosine"), 5
    commands = lab.commands()
    assert len(commands) == 4 and list(commands)[1] == "none softmax 5ep lr0.1 t0.03-cosine"
    for name, words in commands.items():
        value = dict(itertools.pairwise(words))
        assert value["SOLVER.MAX_ITER"] == "50" and words[-2:] == ["SEED", "3"]
        assert float(value["SOLVER.BASE_LR"]) == pytest.approx(0.03 if name.endswith("cosine") else 0.1)
        assert value["DATASETS.TEST"] == "('b',)" and value["MODEL.RIO.FEATURES"] == str(features)


def until_done(lab):
    end = time.monotonic() + 60
    while lab.is_busy() and time.monotonic() < end:
        time.sleep(0.05)
        lab.refresh()
    lab.refresh()


@pytest.mark.parametrize("fails", [False, True])
def test_the_embedded_sets_features_are_made_if_they_are_missing(features, tmp_path, monkeypatch, fails):
    maker = tmp_path / "python"  # in place of `python -m rio demo --features-only --output-dir DIR`
    work = "echo 'error: no room'; exit 1" if fails else f'cp -r "{features}" "$6/features"'
    maker.write_text(f'#!/bin/sh\n[ "$3 $4" = "demo --features-only" ] && {{ sleep 0.5; {work}; }}\n')
    maker.chmod(0o755)
    command = [sys.executable, "-c", "pass"]
    monkeypatch.setattr(module.sys, "executable", str(maker))
    monkeypatch.setattr(module, "train_command", lambda config, folder, options: command)
    lab = rio.ClassifierLab(tmp_path / "demo" / "features", tmp_path / "runs")
    lab.sampling.value = ("rfs",)
    lab.train()
    assert not lab.trouble
    assert "the detector that the features are of" in lab.status.value
    until_done(lab)
    assert list(lab.runs()) == ([] if fails else ["rfs softmax 25ep lr0.1 t0.03-linear"])
    assert ("no room" in lab.trouble) == fails


def test_trainings_run_are_shown_and_stand_beside_earlier_ones(features, tmp_path, monkeypatch):
    work = """
import json, sys
folder = sys.argv[1]
open(folder + "/config.yaml", "w").write("SOLVER: {MAX_ITER: 50, IMS_PER_BATCH: 16}")
row = {"iteration": 24, "total_loss": 1.0, "bbox/AP": 12.5, "bbox/APr": 3.0, "bbox/APc": 9.0, "bbox/APf": 20.0}
open(folder + "/metrics.json", "w").write(json.dumps(row) + "\\n")
open(folder + "/model_final.pth", "w").close()
"""
    monkeypatch.setattr(
        module, "train_command", lambda config, folder, options: [sys.executable, "-c", work, str(folder)]
    )
    lab = rio.ClassifierLab(features, tmp_path / "runs")
    lab.train()
    until_done(lab)
    assert lab.curves()["epoch"].tolist() == [2.5, 2.5] and "12.5" in lab.status.value and lab.figure.value
    lab.epochs.value = 10
    again = rio.ClassifierLab(features, tmp_path / "runs")
    assert list(again.runs()) == ["none softmax 25ep lr0.1 t0.03-linear", "rfs softmax 25ep lr0.1 t0.03-linear"]
    again.train()
    assert not again.trouble and not again.is_busy(), "what is there is not trained again"
    again.stop()
