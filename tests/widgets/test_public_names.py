"""`import rio` offers nineteen names, each loaded when it is first used."""

import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

import rio


def test_every_name_is_there():
    assert len(rio.__all__) == 19 and set(rio.__all__) <= set(dir(rio))
    for name in rio.__all__:
        assert getattr(rio, name) is not None
    with pytest.raises(AttributeError, match="module 'rio' has no attribute 'nothing'; expected one of"):
        rio.nothing  # noqa: B018


def test_the_names_are_those_of_their_modules():
    from rio.sampler import category_repeat_factors

    assert rio.category_repeat_factors is category_repeat_factors
    assert rio.plots.count_by_group
