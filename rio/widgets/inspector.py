"""Looking at predictions one by one: what is right, what is wrong, and why an object was missed.

An image is opened when it is shown, so 20,000 of them cost nothing.
"""

from __future__ import annotations

import html
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import traitlets

from rio import plots
from rio.data.annotations import GROUP_NAMES, Annotations
from rio.data.images import read_image
from rio.results.objects import Objects, objects_of, predictions_of
from rio.widgets import theme
from rio.widgets.explain import Explanation, explain_object, explain_prediction
from rio.widgets.explorer import largest_objects
from rio.widgets.source import LOWEST_SCORE, ORDERS, SHOWN_KINDS, PredictionSource, banner

MAX_SIDE = 1600  # px; larger pictures are made smaller for the page
CROPS = 9
KIND_HINTS = {
    "correct": "right class, box overlaps by 0.5 or more",
    "missed": "no prediction found the object",
    "classification": "right place, wrong class",
    "localisation": "right class, box too far off",
    "both": "wrong class and box too far off",
    "duplicate": "the object was found already",
    "background": "nothing there",
    "unverified": "LVIS does not judge this class in this image",
}


class Viewer(anywidget.AnyWidget):
    """Two panels over one image, drawn in the browser; keys step through the list, a click asks about an object."""

    _esm = theme.FOLDER / "inspect_viewer.js"
    _css = theme.FOLDER / "inspect_viewer.css"
    image = traitlets.Bytes(b"").tag(sync=True)
    scene = traitlets.Dict().tag(sync=True)


class Inspector(ipywidgets.VBox):
    """Browse predictions and missed objects.

    Args:
        source: from `open_predictions`.
        threshold: score from which a prediction counts.
        kind: one of `SHOWN_KINDS`.

    Raises:
        NotebookError: an unknown kind.
    """

    @theme.sentences
    def __init__(self, source: PredictionSource, *, threshold: float = 0.3, kind: str = "missed"):
        if kind not in SHOWN_KINDS:
            raise ValueError(f"kind: expected one of {', '.join(SHOWN_KINDS)}, found {kind!r}")
        self.source = source
        self._classes = {name: k for k, name in enumerate(source.truth.category_names)}
        self.rows = np.zeros(0, np.int64)  # of `source.entries`, in the order of the list
        self.position = 0
        self.explanation = Explanation("", pd.DataFrame())
        self._crops: dict[int, list[tuple[str, str]]] = {}
        self._quiet = False  # while this object, not the user, sets a control
        auto = {"button_width": "auto"}
        groups = [("all groups", ""), *((name, g) for g, name in GROUP_NAMES.items())]
        self.kind = ipywidgets.ToggleButtons(options=[(k, k) for k in SHOWN_KINDS], value=kind, style=auto)
        self.group = ipywidgets.ToggleButtons(options=groups, style=auto)
        options = sorted(self._classes, key=str.casefold)
        self.category = ipywidgets.Combobox(options=options, placeholder="any category", layout={"width": "190px"})
        self.order = ipywidgets.Dropdown(options=list(ORDERS), value="rarest class first", layout={"width": "170px"})
        self.threshold = ipywidgets.FloatSlider(
            value=max(threshold, LOWEST_SCORE), min=LOWEST_SCORE, max=0.95, step=0.01, description="score ≥",
            readout_format=".2f", layout={"width": "280px"}, style={"description_width": "52px"},
        )  # fmt: skip
        buttons = []
        for arrow, name, by in (("←", "previous", -1), ("→", "next", 1)):
            buttons.append(ipywidgets.Button(description=arrow, tooltip=name, layout={"width": "44px"}))
            buttons[-1].on_click(lambda _, by=by: self.step(by))
        self.viewer, self.item, self.why = Viewer(), ipywidgets.HTML(), ipywidgets.HTML()
        controls = [self.kind, self.group, self.category, self.order, self.threshold]
        head, bar = ipywidgets.HTML(theme.view(banner(source.note))), ipywidgets.HBox(controls[:1]).add_class("rio-bar")
        bar2 = ipywidgets.HBox(controls[1:]).add_class("rio-bar2")
        line = ipywidgets.HBox([*buttons, self.item], layout={"align_items": "center"})
        super().__init__([head, bar, bar2, line, self.viewer, self.why])
        self.add_class("rio-inspector")
        for control in controls:
            control.observe(self._on_control, "value")
        self.viewer.on_msg(self.on_message)
        self._filter()

    def step(self, by: int) -> None:
        """Go forward by this many entries (negative: back), to the ends at most."""
        self.show(self.position + by)

    def show(self, position: int) -> None:
        """Show the entry at a position of the list, 0 the first."""
        self.position = int(np.clip(position, 0, max(len(self.rows) - 1, 0)))
        if len(self.rows):
            self._draw(self.source.entries.loc[self.rows[self.position]])
        else:
            self._draw_nothing()

    def ask(self, panel: str, row: int) -> None:
        """Explain another object ("truth", row of the annotations) or prediction ("found", row of the results)."""
        entries = self.source.entries
        column = {"truth": "annotation_index", "found": "result_index"}[panel]
        at = np.flatnonzero((entries[column] == row) & (entries["is_object"] == (panel == "truth")))
        if len(at):
            self._draw(entries.loc[at[0]], "asked about" if panel == "truth" else entries["kind"][at[0]])

    def on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """What the browser says: a key was pressed, or an object clicked."""
        if not isinstance(content, dict):
            return
        if isinstance(content.get("step"), int):
            self.step(content["step"])
        elif isinstance(content.get("select"), int) and content.get("panel") in ("truth", "found"):
            self.ask(content["panel"], content["select"])

    def _on_control(self, change: Any) -> None:
        if not self._quiet:
            self._filter(keep=change["owner"] is self.threshold)

    def _filter(self, keep: bool = False) -> None:
        """Rebuild the list; `keep` stays at the entry that is shown, if it is still in the list."""
        entries, name = self.source.entries, self.category.value.strip()
        shown = self.rows[self.position] if keep and len(self.rows) else -1
        active = self.source.active(self.threshold.value, group=self.group.value, class_id=self._classes.get(name, -1))
        half_typed = bool(name) and name not in self._classes  # nothing to filter by yet
        kinds = entries["kind"][active & (not half_typed)]
        counts = kinds.value_counts()
        options = [(f"{k}  {counts[k]:,}", k) for k in SHOWN_KINDS]
        if [*self.kind.options] != options:
            self._quiet, value = True, self.kind.value
            self.kind.options = options
            self.kind.value, self._quiet = value, False
        rows = kinds.index[kinds == self.kind.value].to_numpy()
        self.rows = rows[np.lexsort([entries[name].to_numpy()[rows] for name in reversed(ORDERS[self.order.value])])]
        self.show(next(iter(np.flatnonzero(self.rows == shown)), 0))

    def _draw(self, row: pd.Series, kind: str = "") -> None:
        """Show an entry's image; `kind` is written in place of the entry's own."""
        truth, image, threshold = self.source.truth, row.image, self.threshold.value
        if row.is_object:
            self.explanation = explain_object(self.source, row.annotation_index, threshold)
        else:
            self.explanation = explain_prediction(self.source, row.name, threshold)
        picture, problem = _picture(truth, image)
        objects = objects_of(truth, image)
        found = predictions_of(self.source.results, truth, image, score_threshold=threshold)
        panels = [
            _panel("truth", "Ground truth", objects, row.annotation_index, f"{len(objects)} objects{problem}"),
            _panel("found", "Predictions", found, row.result_index, f"{len(found)} with score ≥ {threshold:.2f}"),
        ]
        focus = [o["box"] for own in panels for o in own["objects"] if o["focus"]]
        for own in panels:
            own["focused"] = any(o["focus"] for o in own["objects"])
            own["ghost"] = focus[0] if focus and not own["focused"] else None
        size = {"width": int(truth.image_width[image]), "height": int(truth.image_height[image])}
        inks = {g: plots.ink_on(color) for g, color in plots.COLORS.items()}
        scene = {"colors": plots.COLORS, "inks": inks, "panels": panels, **size}
        with self.viewer.hold_sync():
            self.viewer.image, self.viewer.scene = picture, scene
        self.item.value = self._item_html(row, kind or row.kind)
        self.why.value = self._why_html(row.gt_class if row.gt_class >= 0 and not kind else row.class_id)

    def _draw_nothing(self) -> None:
        name, least = self.category.value.strip(), f"{self.threshold.value:.2f}"
        text = f"No entry of this kind ({self.kind.value}) with a score of {least} or more. Choose another kind or "
        text += "group, or move the slider."
        if name and name not in self._classes:
            text = f"No category is called {name!r}. Choose one from the list."
        self.item.value, self.why.value = theme.view(html.escape(text), "rio-item rio-quiet"), ""
        with self.viewer.hold_sync():
            self.viewer.image, self.viewer.scene = b"", {}
        self.explanation = Explanation(text, pd.DataFrame())

    def _item_html(self, row: pd.Series, kind: str) -> str:
        truth, hint = self.source.truth, html.escape(KIND_HINTS.get(kind, ""), quote=True)
        group, score = truth.frequency[row.class_id], "" if row.is_object else f" · score {row.score:.2f}"
        return theme.view(
            f'<span class="rio-at">{self.position + 1:,} of {len(self.rows):,}</span>'
            f'<span class="rio-chip" title="{hint}">{kind}</span>'
            f'<span class="rio-name"><span class="rio-dot {group}"></span>'
            f"{html.escape(truth.category_names[row.class_id])}</span>"
            f'<span class="rio-quiet">{GROUP_NAMES[group]}{score} · image {truth.image_ids[row.image]} · '
            f"{html.escape(truth.file_names[row.image])}</span>",
            "rio-item",
        )

    def _why_html(self, class_id: int) -> str:
        train, table = self.source.train, self.explanation.table
        rows = [[r.name, f"{r.score:.2f}", f"{r.iou:.2f}", f"{r.rank}", r.verdict] for r in table.itertuples(False)]
        body = theme.html_table(["predicted class", "score", "IoU", "rank", ""], rows) if rows else ""
        columns = f"<div><h4>Why?</h4><p>{html.escape(self.explanation.sentence)}</p>{body}</div>"
        if train is not None:
            if class_id not in self._crops:
                self._crops[class_id] = largest_objects(train, class_id, CROPS, side=96)
            pictures = "".join(
                f'<img src="{uri}" alt="training object" title="{html.escape(file, quote=True)}">'
                for uri, file in self._crops[class_id]
            )
            pictures = pictures or '<span class="rio-quiet">no image of it could be opened</span>'
            counts = f"{train.image_count[class_id]:,} images, {train.instance_count[class_id]:,} objects"
            head = f"<h4>{html.escape(train.category_names[class_id])} in training: {counts}</h4>"
            columns += f'<div>{head}<div class="rio-crops">{pictures}</div></div>'
        return theme.view(columns, "rio-why")


def _panel(name: str, title: str, objects: Objects, focus: int, note: str) -> dict[str, Any]:
    shown = []
    for i, row in enumerate(objects.indices.tolist()):
        group, mask = str(objects.groups[i]), objects.segmentations[i] if objects.segmentations else None
        label = objects.names[i] + ("" if objects.scores is None else f" {objects.scores[i]:.2f}")
        polygons = [polygon.round(1).ravel().tolist() for polygon in plots.outlines(mask, objects.size)]
        own = {"id": row, "box": objects.boxes[i].round(2).tolist(), "polygons": polygons, "label": label}
        shown.append(own | {"hint": f"{label} ({GROUP_NAMES[group]})", "group": group, "focus": bool(row == focus)})
    return {"name": name, "title": title, "note": note, "objects": shown}


def _picture(annotations: Annotations, image: int) -> tuple[bytes, str]:
    """An image as a JPEG for the browser, and what is wrong with it ("" if nothing)."""
    try:
        return theme.jpeg(read_image(annotations.image_path(image), max_side=MAX_SIDE), 95), ""
    except (OSError, ValueError) as error:
        return b"", f" · image cannot be opened: {type(error).__name__}"
