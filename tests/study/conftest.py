"""What the tests of studies share: a third data set, a study file, an evaluation."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from rio.data.load import load_annotations
from rio.results.evaluation import METRICS, Evaluation
from rio.study import runner
from rio.study.plan import Study, load_study
from tests.support import stub_training, tiny_shapes

EVALUATES = "shutil.copy(folder.parent / 'made.json', folder / 'evaluation.json')"


@pytest.fixture(scope="session")
def data(tiny_set) -> list[str]:
    """KEY, VALUE that name it."""
    return tiny_shapes.data_options(tiny_set)


@pytest.fixture(scope="session")
def other(tiny_set, tmp_path_factory) -> str:
    """The name of a third set with the same classes, in a folder of its own."""
    copy = tmp_path_factory.mktemp("other") / "tiny"
    shutil.copytree(tiny_set, copy)
    return f"{copy}/val.json@{copy}/val"


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """Write a study file of two arms and one seed, with changes."""

    def write(**content) -> Path:
        (tmp_path / "base.yaml").write_text(f"_BASE_: {tiny_shapes.DEMO_CONFIG}\n")
        base = {"config": "base.yaml", "arms": {"a": ["MODEL.RIO.BANK_ENABLED", False], "b": []}, "seeds": [1]}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**base, "processes": 2, **content}))
        return path

    return write


@pytest.fixture
def study(write) -> Callable[..., Study]:
    """The same, read."""
    return lambda **content: load_study(write(**content))


@pytest.fixture(scope="session")
def evaluation(tiny_set) -> Callable[[float], Evaluation]:
    """Of the tiny set's classes: all have the same AP, the rare ones were never looked for."""
    train = load_annotations(tiny_set / "train.json")

    def made(ap: float) -> Evaluation:
        columns = {
            "category_id": train.category_ids, "name": train.category_names, "frequency": train.frequency,
            "image_count": 1, "instance_count": 1, "AP_bbox": np.where(train.frequency == "r", np.nan, ap),
            "AP_segm": np.nan,
        }  # fmt: skip
        return Evaluation({"bbox": {**dict.fromkeys(METRICS, ap), "APr": float("nan")}}, pd.DataFrame(columns))

    return made


@pytest.fixture
def out(tmp_path, evaluation):
    """A study's folder, with the evaluation that every run copies."""
    (tmp_path / "out").mkdir()
    evaluation(12.5).to_json(tmp_path / "out" / "made.json")
    return tmp_path / "out"


@pytest.fixture
def stand_in(monkeypatch):
    """Runs do `body` in place of a training."""
    drawn = []
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(runner, "draw", lambda result, root: drawn.append(result))  # seconds; one test draws

    def use(body: str = "") -> None:
        def command(config, folder, *, num_gpus, options, resume):
            words = stub_training.command(folder, 3, 0.05, f"{body}\n{EVALUATES}")  # long enough to be seen at work
            return [*words, "--config-file", str(config), *["--resume"] * resume, *options]

        monkeypatch.setattr(runner, "train_command", command)

    return use
