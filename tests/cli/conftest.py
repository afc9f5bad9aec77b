"""A trained run, for all tests of commands."""

from pathlib import Path

import pytest

from rio.cli.parser import main
from tests.support import tiny_shapes


@pytest.fixture(scope="session")
def run(tiny_set, tmp_path_factory) -> Path:
    """A trained run, from the command line."""
    output = tmp_path_factory.mktemp("runs") / "run"
    assert main(tiny_shapes.train_words(tiny_set, output)) == 0
    return output
