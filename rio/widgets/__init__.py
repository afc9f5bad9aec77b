"""Interactive views for the notebooks, one module a view. A name is imported when it is first used, like rio's own."""

from importlib import import_module

_MODULE_OF = {
    "NotebookError": "theme",
    "notice": "theme",
    "open_dataset": "dataset",
    "explore": "explorer",
    "compare_sampling": "balance",
    "balance_of": "balance",
    "TrainingPanel": "training",
    "open_runs": "runs",
    "open_study": "studies",
    "open_predictions": "source",
    "Inspector": "inspector",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rio.widgets' has no attribute {name!r}; expected one of {', '.join(__all__)}")
    return getattr(import_module(f"rio.widgets.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
