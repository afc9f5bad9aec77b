"""RIO on detectron2: image-level and object-level resampling for long-tailed detection.

`import rio` takes no time: each name below is imported when it is first used, and brings only what it needs.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULE_OF = {
    # Notebooks: data, trainings, results.
    "open_dataset": "rio.widgets.dataset",
    "explore": "rio.widgets.explorer",
    "compare_sampling": "rio.widgets.balance",
    "TrainingPanel": "rio.widgets.training",
    "ClassifierLab": "rio.widgets.lab",
    "open_runs": "rio.widgets.runs",
    "open_study": "rio.widgets.studies",
    "open_predictions": "rio.widgets.source",
    "Inspector": "rio.widgets.inspector",
    "RunChoice": "rio.widgets.choice",
    "plots": "rio.plots",
    # Scripts: the parts of the method.
    "check": "rio.checks.check",
    "load_annotations": "rio.data.load",
    "category_repeat_factors": "rio.sampler",
    "MemoryBank": "rio.memory_bank",
    "CosineClassifier": "rio.classifier",
    "load_config": "rio.config",
    "Trainer": "rio.trainer",
    "evaluate": "rio.results.evaluation",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rio' has no attribute {name!r}; expected one of {', '.join(__all__)}")
    module = import_module(_MODULE_OF[name])
    value = globals()[name] = module if _MODULE_OF[name] == f"rio.{name}" else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
