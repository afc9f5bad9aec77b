"""A trained run, for all tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from rio.cli.parser import main
from tests.support import tiny_shapes


@pytest.fixture(scope="session")
def run(tiny_set, tmp_path_factory) -> Path:
    """A trained run, from the command line."""
    output = tmp_path_factory.mktemp("runs") / "run"
    flags = ["--config-file", tiny_shapes.DEMO_CONFIG, *tiny_shapes.data_flags(tiny_set), "--output-dir", output]
    assert main(list(map(str, ["train", *flags, *tiny_shapes.model_options(3)]))) == 0
    return output
