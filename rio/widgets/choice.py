"""A choice of run for notebook 05 and the web page: the evaluated runs in a folder; the inspector follows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ipywidgets

from rio.analysis.find_runs import runs_with_results
from rio.analysis.run_folder import RunFolder
from rio.data import names
from rio.widgets import theme
from rio.widgets.inspector import Inspector
from rio.widgets.source import DEMO_RUN, PredictionSource, open_predictions

FILTERS = ("group", "category", "order", "kind")  # controls of the inspector that stay as they are


class RunChoice(ipywidgets.VBox):
    """Predictions of a run to browse, with a choice of run, of a second one beside it, and of data set.

    Args:
        run, results, dataset, train, threshold: what to begin with, as for `open_predictions`; the threshold holds for
            every run.
        other: a second run's folder, shown beside the first; None: none.
        folder: where runs are looked for; beside the run given too.

    Attributes:
        dataset, run, other: the dropdowns. Other runs of the same data set can be the other one.
        inspector: of the runs chosen.
        summary: its `summary`.

    Raises:
        NotebookError: as `open_predictions`, or two runs evaluated on different data.
    """

    @theme.sentences
    def __init__(
        self, run: str | os.PathLike[str] | None = DEMO_RUN, *, results: Any = None, dataset: str | None = None,
        train: str | None = None, threshold: float | None = None, other: str | None = None,
        folder: str | os.PathLike[str] = "output",
    ):  # fmt: skip
        root = names.find(folder).absolute()
        self._sets = runs_with_results(root)
        if run == DEMO_RUN and results is None and not names.find(run).is_dir():
            run = next(iter(self._sets), run)  # any real run rather than made-up predictions
        elif run is not None and results is None:
            self._sets |= runs_with_results(Path(_path(run)).parent, depth=1)
        given = {"dataset": dataset, "train": train, "threshold": threshold}
        first = open_predictions(run, results=results, **given)
        keys = [_path(run) if first.title.startswith("run ") else first.title]
        self._opened: dict[str, PredictionSource] = {keys[0]: first}
        if other:
            keys.append(_path(other))
            self._opened[keys[1]] = open_predictions(other, **given)
        self._threshold, self._tagged = threshold, dict[tuple[str, str], Inspector]()
        named = RunFolder(keys[0]).datasets("TEST")
        start = dataset or (named[0] if named else "shapes_demo_val")
        self._sets |= dict.fromkeys(keys, start)
        self._labels = {key: _label(key, root) for key in self._sets}
        sets = dict.fromkeys(self._sets.values())
        self.dataset, self.run, self.other = (
            ipywidgets.Dropdown(description=name, layout={"width": "370px"}, style={"description_width": "initial"})
            for name in ("data set", "run", "beside it")
        )
        self.dataset.options, self.dataset.value = list(sets), start
        self.dataset.layout.display = "" if len(sets) > 1 else "none"
        self.head, self.summary = ipywidgets.HTML(), ipywidgets.VBox()
        bar = ipywidgets.HBox([self.dataset, self.run, self.other], layout={"flex_flow": "row wrap"})
        super().__init__([bar, self.head])
        self._offer(keys[0], keys[1] if other else "")
        self._show()
        self.dataset.observe(lambda _: self._offer(), "value")
        for control in (self.run, self.other):
            control.observe(lambda _: self._quiet or self._follow(), "value")

    def _offer(self, run: str = "", other: str = "") -> None:
        """The runs of the data set."""
        options = [(label, key) for key, label in self._labels.items() if self._sets[key] == self.dataset.value]
        self._quiet = True
        self.other.options = [("–", ""), *options]
        self.run.options, self.other.value = options, other
        self.run.value, self._quiet = run or options[0][1], False
        if not run:
            self._follow()

    def _follow(self) -> None:
        try:
            self._show()
        except theme.NotebookError as error:
            self.children = (*self.children[:1], ipywidgets.HTML(theme.notice(str(error))))

    def _show(self) -> None:
        """Open what is chosen; filters stay, and so do the tags of a run that is opened again."""
        before, chosen = getattr(self, "inspector", None), (self.run.value, self.other.value)
        for key in filter(None, chosen):
            self._opened[key] = self._opened.get(key) or open_predictions(key, threshold=self._threshold)
        self._opened = {key: self._opened[key] for key in chosen if key}  # the rest may be large
        first, second = map(self._opened.get, chosen)
        view = self._tagged.get(chosen) or Inspector(first, other=second)
        if before is not None:
            if before.selection.tags:
                self._tagged[self._chosen] = before
            for name in FILTERS:
                value, control = getattr(before, name).value, getattr(view, name)
                if name == "category" or value in [o[-1] if isinstance(o, tuple) else o for o in control.options]:
                    control.value = value
        self.inspector, self._chosen, self.summary.children = view, chosen, [view.summary]
        self.head.value = first._repr_html_()
        self.children = (*self.children[:1], self.head, view)


def _label(run: str, root: Path) -> str:
    """A run's path below the folder; of one that lies elsewhere the last two names."""
    return os.path.relpath(run, root) if run.startswith(f"{root}/") else "/".join(Path(run).parts[-2:])


def _path(run: Any) -> str:
    return str(names.find(run).absolute())
