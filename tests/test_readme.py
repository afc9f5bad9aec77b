"""What the README shows is what was measured."""

import re

import pytest

from tests import readme


def without_line_counts(text: str) -> str:
    return re.sub(r"\|\s*\d+\s*\|", "| N |", text)


def test_tables_are_made_from_the_results():
    text = "".join(file.read_text(encoding="utf-8") for file in readme.READMES)
    assert set(re.findall(r"<!-- (\w[^>]*) -->", text)) == set(readme.BLOCKS)
    fresh = readme.written(text)
    squeezed = [re.sub(r"[ -]+", " ", without_line_counts(t)) for t in (text, fresh)]
    assert squeezed[0] == squeezed[1], "the README's tables are old: python -m tests.readme"


def test_line_counts_are_about_right():
    """Within a tenth, so that not every commit has to rewrite the README."""
    text = readme.README.read_text(encoding="utf-8")
    stated, now = ([int(n) for n in re.findall(r"\|\s*(\d+)\s*\|", t)] for t in (text, readme.written(text)))
    assert len(stated) == len(now) >= 18
    wrong = [(a, b) for a, b in zip(stated, now, strict=True) if abs(a - b) > max(20, b / 10)]
    assert not wrong, f"stated, counted: {wrong}; run python -m tests.readme"


def test_the_example_runs(tiny_set):
    pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")
    example = re.search(r"```python\n(.*?)```", readme.README.read_text(encoding="utf-8"), re.DOTALL)[1]
    names: dict = {}
    exec(example.replace("shapes_demo_train", f"{tiny_set}/train.json@{tiny_set}/train"), names)
    assert len(names["data"].table) == names["columns"].num_classes and names["bank"].num_target_classes == 2
