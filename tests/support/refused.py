"""What a notebook shows of an error."""

from collections.abc import Callable

import pytest

from rio.widgets.theme import NotebookError


def refused(call: Callable, *args: object, **kwargs: object) -> str:
    """The one sentence that a call is refused with, as IPython would show it."""
    with pytest.raises(NotebookError) as caught:
        call(*args, **kwargs)
    text = " ".join(caught.value._render_traceback_())  # IPython's name for it
    assert text == str(caught.value)
    assert "\n" not in text and text[-1] in ".?"
    return text
