"""A choice of run for notebook 05 and the web page: the evaluated runs in a folder; the inspector follows."""

import contextlib
import os
from pathlib import Path
from typing import Any

import ipywidgets
import traitlets

from rio.analysis.find_runs import runs_with_results
from rio.analysis.run_folder import RunFolder
from rio.data import names
from rio.widgets import theme
from rio.widgets.inspector import Inspector
from rio.widgets.source import DEMO_RUN, open_predictions


class RunChoice(ipywidgets.VBox):
    """Predictions to browse, with a choice of data set where there are several, of run, and of another one beside it.

    Args:
        run: what to begin with, as for `open_predictions`; where the demo's is missing, any run there is.
        other: a second run's folder; None: none.
        folder: where runs are looked for; those beside `run` are offered too.
        given: results, dataset, train, threshold as for `open_predictions`; the threshold holds for every run.

    Attributes:
        inspector: of the runs chosen.
        summary: its `summary`.

    Raises:
        NotebookError: as `open_predictions` and `Inspector`.
    """

    @theme.sentences
    def __init__(self, run: Any = DEMO_RUN, *, other: Any = None, folder: Any = "output", **given: Any) -> None:
        root = names.find(folder).absolute()
        self._sets = runs_with_results(root)
        if run == DEMO_RUN and given.get("results") is None and not names.find(run).is_dir():
            run = next(iter(self._sets), run)
        first = open_predictions(run, **given)
        start = first.title
        if start.startswith("run "):
            start = str(names.find(run).absolute())
            self._sets |= runs_with_results(Path(start).parent, depth=1)
        chosen = [start, *([str(names.find(other).absolute())] if other else [])]
        data = given.get("dataset") or next(iter(RunFolder(start).datasets("TEST")), "shapes_demo_val")
        self._sets |= dict.fromkeys(chosen, data)
        self._root, self._tagged, self._threshold = root, dict[Any, Inspector](), given.get("threshold")
        self._given, self._opened = {start: first}, {}
        if other:  # with the data sets named, which its config may lack
            self._given[chosen[1]] = open_predictions(other, **given | {"results": None})
        look = {"layout": {"width": "370px"}, "style": {"description_width": "initial"}}
        self.dataset, self.run, self.other = controls = [
            ipywidgets.Dropdown(description=name, **look) for name in ("data set", "run", "beside it")
        ]
        self.dataset.options = list(dict.fromkeys(self._sets.values()))
        self.dataset.value, self.dataset.layout.display = data, "" if len(self.dataset.options) > 1 else "none"
        self.head, self.summary, self.inspector = ipywidgets.HTML(), ipywidgets.VBox(), None
        super().__init__([ipywidgets.HBox(controls, layout={"flex_flow": "row wrap"})])
        self._offer(*chosen)
        self._show()
        for control in controls:
            control.observe(self._follow, "value")

    def _offer(self, run: str, other: str = "") -> None:
        """The runs of the data set."""
        options = [(self._label(key), key) for key, data in self._sets.items() if data == self.dataset.value]
        self._quiet = True
        self.run.options, self.other.options = options, [("–", ""), *options]
        self.run.value, self.other.value, self._quiet = run, other, False

    def _label(self, run: str) -> str:
        """A run's path below the folder; of one that lies elsewhere the last two names."""
        inside = run.startswith(f"{self._root}/")
        return os.path.relpath(run, self._root) if inside else "/".join(Path(run).parts[-2:])

    def _follow(self, change: Any) -> None:
        if self._quiet:
            return
        if change["owner"] is self.dataset:
            self._offer(next(run for run, data in self._sets.items() if data == change["new"]))
        try:
            self._show()
        except theme.NotebookError as error:
            self.children = (self.children[0], ipywidgets.HTML(theme.notice(str(error))))

    def _show(self) -> None:
        """Open what is chosen; filters stay, and so do the tags of a run that is opened again."""
        runs, before = (self.run.value, self.other.value), self.inspector
        opened = {run: (self._given | self._opened).get(run) for run in runs if run}  # no others: they may be large
        for run in [run for run, source in opened.items() if source is None]:
            opened[run] = open_predictions(run, threshold=self._threshold)
        view = self._tagged.get(runs) or Inspector(opened[runs[0]], other=opened.get(runs[1]))
        if before is not None and before.selection.tags:
            self._tagged[self._runs] = before
        for name in ("group", "category", "order", "kind") if before is not None else ():
            with contextlib.suppress(traitlets.TraitError):  # a list that only two runs have
                getattr(view, name).value = getattr(before, name).value
        self.inspector, self._opened, self._runs, self.summary.children = view, opened, runs, [view.summary]
        self.head.value = view.source._repr_html_()
        self.children = (self.children[0], self.head, view)
