"""What every test shares: real data where it is at hand, one thread a process, no window."""

import os
import sys
from pathlib import Path

# Before NumPy or torch come in: xdist runs a process a core, and threads on top of that only wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's top folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with real annotations, photographs and golden files that are not part of the repository.

    The folder named by the environment variable RIO_SHARED, or `shared` beside the checkout; the test is
    skipped where neither is there.
    """
    named = os.environ.get("RIO_SHARED")
    folder = Path(named) if named else REPOSITORY.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data: {folder}/data does not exist (set RIO_SHARED to the folder that holds it)")
    return folder


@pytest.fixture(autouse=True)
def _quiet_libraries():
    """Hold torch to one thread and close the figures a test left open, where a test brought either in."""
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def empty_folder(monkeypatch, tmp_path) -> Path:
    """The working directory, where no data set is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    return tmp_path


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The cache's folder, not made yet; files count as old enough to trust their time stamps at once."""
    monkeypatch.setenv("RIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rio.data.load.SETTLED_SECONDS", -1.0)
    return tmp_path / "cache"


@pytest.fixture
def command(capsys):
    """Function: what a command of `python -m rio` prints; `code` is its exit code, an error one message."""
    from rio.cli.parser import main

    def run(*words: object, code: int = 0) -> str:
        found = main([str(word) for word in words])
        out, error = capsys.readouterr()
        assert found == code, out + error
        assert code != 2 or (f"\n{error}".count("\nerror: ") == 1 and "Traceback" not in out + error)
        return out + error

    return run


# Trainings of the drawn set, for tests of the trainer and the engine. Imports are late: torch takes seconds.


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory) -> Path:
    """Folder of the drawn data set, to be read only."""
    from tests.support import tiny_shapes

    return tiny_shapes.draw(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="session")
def tiny_config(tiny_set):
    """Function: the config of a run in a folder, with options on top of the tiny ones."""
    from rio.config import load_config
    from tests.support import tiny_shapes

    def make(output: Path, *options: object, max_iter: int = 6):
        common = [*tiny_shapes.data_options(tiny_set), *tiny_shapes.model_options(max_iter)]
        return load_config(tiny_shapes.DEMO_CONFIG, [*common, "OUTPUT_DIR", str(output), *map(str, options)])

    return make


@pytest.fixture(scope="session")
def prepared(tiny_config):
    """Function: a trainer that is ready to train."""
    from rio.engine.setup import setup_training
    from rio.trainer import Trainer

    def make(output: Path, *options: object, resume: bool = False, max_iter: int = 6) -> Trainer:
        run = Trainer(setup_training(tiny_config(output, *options, max_iter=max_iter), resume=resume))
        run.resume_or_load(resume=resume)
        return run

    return make


@pytest.fixture(scope="session")
def straight(prepared, tmp_path_factory):
    """Six iterations without a break; its folder is to be read only."""
    run = prepared(tmp_path_factory.mktemp("straight"))
    run.train()
    return run


@pytest.fixture(scope="session")
def finished_study(tiny_set, tmp_path_factory) -> Path:
    """Three arms of two seeds on the drawn set, without a training; to be read only."""
    from tests.support import finished_runs

    return finished_runs.make(tmp_path_factory.mktemp("study"), tiny_set, seeds=(1, 2))
