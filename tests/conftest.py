"""What every test shares: real data where it is at hand, one thread a process, no window."""

from __future__ import annotations

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
