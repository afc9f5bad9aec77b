"""What the README shows is what was measured."""

from __future__ import annotations

import re

from tests import readme


def test_tables_are_made_from_the_results():
    text = readme.README.read_text(encoding="utf-8")
    marks = re.findall(r"<!-- (\w[^>]*) -->", text)
    assert {"benchmarks", "factors: arms", "factors: differences"} <= set(marks) <= set(readme.blocks())
    assert all(text.count(f"<!-- /{name} -->") == 1 for name in marks)
    assert text == readme.written(text), "the README's tables are old: python -m tests.readme"
