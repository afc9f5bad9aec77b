"""Interactive views for the notebooks, one module a view; a notebook says `from rio import widgets`.

What is listed here is imported when it is first asked for: importing `rio.widgets` takes no time, and none of
the views loads torch or detectron2 before a cell needs them.
"""

from __future__ import annotations

import importlib

_WHERE = {
    "NotebookError": "theme",
    "notice": "theme",
    "open_dataset": "dataset",
    "open_predictions": "source",
    "Inspector": "inspector",
    "TrainingPanel": "training",
    "explore": "explorer",
    "balance_of": "balance",
    "open_runs": "runs",
    "open_study": "studies",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> object:
    """Import what is asked for (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module 'rio.widgets' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"rio.widgets.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
