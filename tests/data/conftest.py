"""Shared by the tests of the data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rio.data.annotations import Annotations
from rio.data.load import load_annotations
from tests.support.annotation_files import write


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Annotations]:
    """Function: the columns of a file with this content."""

    def load(data: Any, **options: Any) -> Annotations:
        return load_annotations(write(tmp_path / "set.json", data), **options)

    return load
