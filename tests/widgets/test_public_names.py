"""`import rio` offers sixteen names, each loaded when it is first used."""

from __future__ import annotations

import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

import rio
from rio import widgets


@pytest.mark.parametrize("module", [rio, widgets], ids=["rio", "rio.widgets"])
def test_every_name_is_there(module):
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nothing'; expected one of"):
        module.nothing  # noqa: B018


def test_the_names_are_those_of_their_modules():
    from rio.sampler import category_repeat_factors

    assert len(rio.__all__) == 16
    assert rio.category_repeat_factors is category_repeat_factors
    assert rio.plots.count_by_group
    assert widgets.balance_of is rio.compare_sampling
