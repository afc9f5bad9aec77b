"""Looking at predictions one by one: what is right, what is wrong, and why an object was missed.

An image is opened when it is shown, so 20,000 of them cost nothing.
"""

from __future__ import annotations

import difflib
import html
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import traitlets

from rio import plots
from rio.data.annotations import GROUP_NAMES, Annotations
from rio.data.images import read_image
from rio.data.masks import decoded_mask
from rio.results.errors import KINDS
from rio.results.objects import Objects, objects_of, predictions_of
from rio.widgets import theme
from rio.widgets.explain import Explanation, explain_object, explain_prediction
from rio.widgets.explorer import largest_objects
from rio.widgets.source import ORDERS, SHOWN_KINDS, PredictionSource, banner

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
        group: "r", "c", "f", or "" for all.
        category: a category's name, or "" for all.
        order: one of `ORDERS`.

    Raises:
        NotebookError: an unknown kind, group, category or order.
    """

    @theme.sentences
    def __init__(
        self,
        source: PredictionSource,
        *,
        threshold: float = 0.3,
        kind: str = "missed",
        group: str = "",
        category: str = "",
        order: str = "rarest class first",
    ):
        self.source = source
        self._classes = {name: k for k, name in enumerate(source.truth.category_names)}
        _require("kind", kind, SHOWN_KINDS)
        _require("group", group, ("", *GROUP_NAMES))
        _require("category", category, ("", *self._classes))
        _require("order", order, tuple(ORDERS))
        self.rows = np.zeros(0, np.int64)
        self.position = 0
        self._asked: tuple[str, int] | None = None  # a clicked object: ("truth" | "found", row)
        self.explanation = Explanation("", pd.DataFrame())
        self._crops: dict[int, list[tuple[str, str]]] = {}
        self._quiet = False  # while this object, not the user, sets a control
        lowest, auto = max(round(source.lowest_score, 2), 0.01), {"button_width": "auto"}
        groups = [("all groups", ""), *((name, g) for g, name in GROUP_NAMES.items())]
        self.kind = ipywidgets.ToggleButtons(options=[(k, k) for k in SHOWN_KINDS], value=kind, style=auto)
        self.group = ipywidgets.ToggleButtons(options=groups, value=group, style=auto)
        self.category = ipywidgets.Combobox(
            options=sorted(self._classes, key=str.casefold), value=category, placeholder="any category",
            layout={"width": "190px"},
        )  # fmt: skip
        self.order = ipywidgets.Dropdown(options=list(ORDERS), value=order, layout={"width": "170px"})
        self.threshold = ipywidgets.FloatSlider(
            value=max(threshold, lowest), min=lowest, max=0.95, step=0.01, description="score ≥",
            readout_format=".2f", layout={"width": "280px"}, style={"description_width": "52px"},
        )  # fmt: skip
        self.previous_button = ipywidgets.Button(description="←", tooltip="previous", layout={"width": "44px"})
        self.next_button = ipywidgets.Button(description="→", tooltip="next", layout={"width": "44px"})
        self.viewer, self.item, self.why = Viewer(), ipywidgets.HTML(), ipywidgets.HTML()
        bar = ipywidgets.HBox([self.kind])
        bar2 = ipywidgets.HBox([self.group, self.category, self.order, self.threshold])
        steps = ipywidgets.HBox([self.previous_button, self.next_button, self.item], layout={"align_items": "center"})
        bar.add_class("rio-bar")
        bar2.add_class("rio-bar2")
        head = ipywidgets.HTML(theme.view(banner(source.note)))
        super().__init__([head, bar, bar2, steps, self.viewer, self.why])
        self.add_class("rio-inspector")
        for control in (self.kind, self.group, self.category, self.order, self.threshold):
            control.observe(self._on_control, "value")
        self.previous_button.on_click(lambda _: self.step(-1))
        self.next_button.on_click(lambda _: self.step(1))
        self.viewer.on_msg(self.on_message)
        self._filter()

    def step(self, by: int) -> None:
        """Go forward by this many entries (negative: back), to the ends at most."""
        if len(self.rows):
            self.show(self.position + by)

    def show(self, position: int) -> None:
        """Show the entry at a position of the list, 0 the first."""
        self.position = int(np.clip(position, 0, max(len(self.rows) - 1, 0)))
        self._asked = None
        self._draw()

    def ask(self, panel: str, row: int) -> None:
        """Explain another object ("truth", row of the annotations) or prediction ("found", row of the results)."""
        self._asked = (panel, row)
        self._draw()

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
        chosen = entries.select(self.threshold.value, group=self.group.value, class_id=self._classes.get(name, -1))
        if name and name not in self._classes:  # half typed: nothing to filter by yet
            chosen[:] = False
        counts = np.bincount(entries.kind[chosen], minlength=len(KINDS))
        options = [(f"{k}  {int(counts[KINDS.index(k)]):,}", k) for k in SHOWN_KINDS]
        if [*self.kind.options] != options:
            self._quiet, value = True, self.kind.value
            try:
                self.kind.options = options
                self.kind.value = value
            finally:
                self._quiet = False
        rows = np.flatnonzero(chosen & (entries.kind == KINDS.index(self.kind.value)))
        self.rows = entries.ordered(rows, ORDERS[self.order.value])
        where = np.flatnonzero(self.rows == shown) if keep else []
        self.show(int(where[0]) if len(where) else 0)

    def _draw(self) -> None:
        if not len(self.rows):
            self._draw_nothing()
            return
        entries, truth, threshold = self.source.entries, self.source.truth, self.threshold.value
        entry = int(self.rows[self.position])
        panel, row = self._asked or ("", -1)
        if panel == "found":
            asked = np.flatnonzero(entries.result_index == row)
            if not len(asked):
                return
            entry = int(asked[0])
        image = int(entries.image[entry])
        own_object, own_result = int(entries.annotation_index[entry]), int(entries.result_index[entry])
        class_id = int(entries.gt_class[entry] if entries.gt_class[entry] >= 0 else entries.class_id[entry])
        if panel == "truth":
            own_object, own_result, class_id = row, -1, int(truth.annotation_class[row])
        elif panel == "found":
            class_id = int(entries.class_id[entry])
        if own_result < 0:
            self.explanation = explain_object(self.source, own_object, threshold)
        else:
            self.explanation = explain_prediction(self.source, entry, threshold)
        picture, mime, problem = _picture(truth, image)
        objects = objects_of(truth, image)
        found = predictions_of(self.source.results, truth, image, score_threshold=threshold)
        panels = [
            _panel("truth", "Ground truth", objects, own_object, f"{len(objects)} objects{problem}"),
            _panel("found", "Predictions", found, own_result, f"{len(found)} with score ≥ {threshold:.2f}"),
        ]
        focus = [o["box"] for own in panels for o in own["objects"] if o["focus"]]
        for own in panels:
            own["focused"] = any(o["focus"] for o in own["objects"])
            own["ghost"] = focus[0] if focus and not own["focused"] else None
        scene = {
            "width": int(truth.image_width[image]),
            "height": int(truth.image_height[image]),
            "mime": mime,
            "colors": plots.COLORS,
            "inks": {g: plots.ink_on(c) for g, c in plots.COLORS.items()},
            "panels": panels,
        }
        with self.viewer.hold_sync():
            self.viewer.image, self.viewer.scene = picture, scene
        self.item.value = self._item_html(entry, image)
        self.why.value = self._why_html(class_id)

    def _draw_nothing(self) -> None:
        name = self.category.value.strip()
        text = (
            f"No entry of this kind ({self.kind.value}) with a score of {self.threshold.value:.2f} or more. Choose "
            "another kind or group, or move the slider."
        )
        if name and name not in self._classes:
            text = f"No category is called {name!r}. Choose one from the list."
        self.item.value, self.why.value = theme.view(html.escape(text), "rio-item rio-quiet"), ""
        with self.viewer.hold_sync():
            self.viewer.image, self.viewer.scene = b"", {}
        self.explanation = Explanation(text, pd.DataFrame())

    def _item_html(self, entry: int, image: int) -> str:
        entries, truth = self.source.entries, self.source.truth
        kind, class_id, score = KINDS[entries.kind[entry]], int(entries.class_id[entry]), ""
        if self._asked and self._asked[0] == "truth":
            kind, class_id = "asked about", int(truth.annotation_class[self._asked[1]])
        elif entries.result_index[entry] >= 0:
            score = f" · score {entries.score[entry]:.2f}"
        group, hint = str(truth.frequency[class_id]), html.escape(KIND_HINTS.get(kind, ""), quote=True)
        return theme.view(
            f'<span class="rio-at">{self.position + 1:,} of {len(self.rows):,}</span>'
            f'<span class="rio-chip" title="{hint}">{kind}</span>'
            f'<span class="rio-name"><span class="rio-dot {group}"></span>'
            f"{html.escape(truth.category_names[class_id])}</span>"
            f'<span class="rio-quiet">{GROUP_NAMES[group]}{score} · image {int(truth.image_ids[image])} · '
            f"{html.escape(truth.file_names[image])}</span>",
            "rio-item",
        )

    def _why_html(self, class_id: int) -> str:
        train, table = self.source.train, self.explanation.table
        rows = [
            [r.name, f"{r.score:.2f}", f"{r.iou:.2f}", f"{r.rank}", r.verdict] for r in table.itertuples(index=False)
        ]
        body = theme.html_table(["predicted class", "score", "IoU", "rank", ""], rows) if rows else ""
        left = f"<h4>Why?</h4><p>{html.escape(self.explanation.sentence)}</p>{body}"
        if train is None:
            return theme.view(f"<div>{left}</div>", "rio-why")
        if class_id not in self._crops:
            self._crops[class_id] = largest_objects(train, class_id, CROPS, side=96)
        pictures = "".join(
            f'<img src="{uri}" alt="training object" title="{html.escape(file, quote=True)}">'
            for uri, file in self._crops[class_id]
        )
        pictures = pictures or '<span class="rio-quiet">no image of it could be opened</span>'
        counts = f"{int(train.image_count[class_id]):,} images, {int(train.instance_count[class_id]):,} objects"
        right = f"<h4>{html.escape(train.category_names[class_id])} in training: {counts}</h4>"
        return theme.view(f'<div>{left}</div><div>{right}<div class="rio-crops">{pictures}</div></div>', "rio-why")

    def state(self) -> dict[str, Any]:
        """What is shown, for tests and for a closing assertion."""
        return {
            "position": self.position,
            "entries": len(self.rows),
            "kind": self.kind.value,
            "image_index": int(self.source.entries.image[self.rows[self.position]]) if len(self.rows) else -1,
            "why": self.explanation.sentence,
        }


def _require(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=3) or known[:8]
        raise ValueError(f"{what}: expected one of {', '.join(map(repr, close))}, found {value!r}")


def _panel(name: str, title: str, objects: Objects, focus: int, note: str) -> dict[str, Any]:
    shown = []
    for i, polygons in enumerate(_outlines(objects)):
        group, row = str(objects.groups[i]), int(objects.indices[i])
        label = objects.names[i] + ("" if objects.scores is None else f" {objects.scores[i]:.2f}")
        box, hint = [round(float(v), 2) for v in objects.boxes[i]], f"{label} ({GROUP_NAMES[group]})"
        own = {"id": row, "box": box, "polygons": polygons, "label": label, "hint": hint, "group": group}
        shown.append(own | {"focus": row == focus})
    return {"name": name, "title": title, "note": note, "objects": shown}


def _outlines(objects: Objects) -> list[list[list[float]]]:
    """Polygons of every object, from polygons or run-length masks; empty if there is no mask."""
    found: list[list[list[float]]] = []
    for segmentation in objects.segmentations or [None] * len(objects):
        if segmentation is None or isinstance(segmentation, list):
            found.append([[round(float(v), 1) for v in polygon] for polygon in segmentation or []])
            continue
        import cv2

        # Twice the size, so that outlines run along the pixels' edges and thin parts keep their width.
        doubled = np.repeat(np.repeat(decoded_mask(segmentation, objects.size).astype(np.uint8), 2, 0), 2, 1)
        contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_TC89_L1)
        found.append([((c.reshape(-1) + 0.5) / 2).round(1).tolist() for c in contours if len(c) > 2])
    return found


def _picture(annotations: Annotations, image: int) -> tuple[bytes, str, str]:
    """An image's bytes for the browser, their type, and what is wrong with it ("" if nothing)."""
    try:
        path = Path(annotations.image_path(image))
        mime = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}.get(path.suffix.lower())
        if mime and max(annotations.image_width[image], annotations.image_height[image]) <= MAX_SIDE:
            return path.read_bytes(), mime, ""  # the browser turns it as its EXIF data says
        return theme.jpeg(read_image(path, max_side=MAX_SIDE), 95), "image/jpeg", ""
    except (OSError, ValueError) as error:
        return b"", "image/jpeg", f" · image cannot be opened: {type(error).__name__}"
