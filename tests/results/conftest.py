"""Ground truth that several files of tests read."""

import functools

import pytest

from rio.data.load import load_annotations
from tests.support import result_files
from tests.support.result_files import category, image, thing


@pytest.fixture
def lvis_file(tmp_path):
    """Writes an LVIS file: lvis_file(images, categories, annotations) -> path."""
    return functools.partial(result_files.lvis_file, tmp_path)


@pytest.fixture
def small(lvis_file):
    """Two images, categories 3 and 8, loaded."""
    things = [thing(1, 5, 8, [10, 10, 20, 20]), thing(2, 9, 3, [10, 10, 20, 20])]
    return load_annotations(lvis_file([image(5, [3]), image(9)], [category(3), category(8, "r")], things))
