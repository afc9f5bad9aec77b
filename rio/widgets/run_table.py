"""The table of runs in notebook 04, and the figures that follow it."""

from collections.abc import Callable
from typing import Any

import anywidget
import ipywidgets
import matplotlib.pyplot as plt
import pandas as pd
import traitlets
from matplotlib.axes import Axes

from rio.widgets import theme


class RunTable(anywidget.AnyWidget):
    """Arms as rows that are sorted, ticked, moved and coloured in the browser: `order`, `ticked`, `colors`.

    `columns`: names and full names; `rows`: by arm cells (texts), values (to sort by; None comes last), and a note.
    """

    _esm = (theme.FOLDER / "chart.js").read_text("utf-8") + (theme.FOLDER / "run_table.js").read_text("utf-8")
    _css = theme.STYLE
    columns = traitlets.List().tag(sync=True)
    rows = traitlets.Dict().tag(sync=True)
    order = traitlets.List(traitlets.Unicode()).tag(sync=True)
    ticked = traitlets.List(traitlets.Unicode()).tag(sync=True)
    colors = traitlets.Dict().tag(sync=True)


class Picks(anywidget.AnyWidget):
    """What of the figure beside it can be pointed at and clicked; `words` of each element, "" for none."""

    _esm = (theme.FOLDER / "chart.js").read_text("utf-8") + (theme.FOLDER / "picks.js").read_text("utf-8")
    _css = theme.STYLE
    words = traitlets.List().tag(sync=True)


class Shown(ipywidgets.VBox):
    """A figure drawn of a table, or without `draw` the table itself; a click on the figure opens something below it:
    `opens` takes what the figure has marked the element with.
    """

    def __init__(
        self, table: Callable[[], pd.DataFrame], draw: Callable[..., Axes] | None, opens: Callable[..., Any]
    ) -> None:
        self._table, self._draw, self._opens = table, draw, opens
        self.picks, self.picture = Picks(), ipywidgets.HTML()
        super().__init__([self.picks, self.picture])
        self.add_class("rio-shown")
        self.picks.on_msg(self.on_message)
        self.redraw()

    def redraw(self) -> None:
        """Draw it, or say why it cannot be drawn."""
        items = []
        try:
            table = self._table()
            if self._draw is None:
                rows = [
                    [f"{v:.1f}" if isinstance(v, float) else v for v in row] for row in table.itertuples(index=False)
                ]
                text = theme.html_table([*map(str, table.columns)], rows)
            else:
                figure = self._draw(table).figure
                text, items = figure._repr_html_(), getattr(figure, "picks", [])
                plt.close(figure)
        except (theme.NotebookError, ValueError) as error:
            text = theme.notice(theme.sentence(error))
        self._asked = [[asked for _, asked in of] for of in items]
        self.picture.value, self.picks.words = text, [[words for words, _ in of] for of in items]

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """With what is shown now, for readers without widgets."""
        return super()._repr_mimebundle_(**options) | {"text/html": self.picture.value}

    def on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """What the browser says was clicked."""
        try:
            below = self._opens(**self._asked[content["of"]][content["index"]])
        except (KeyError, IndexError, TypeError):
            return
        except theme.NotebookError as error:
            below = ipywidgets.HTML(theme.notice(str(error)))
        self.children = (*self.children[:2], below)
