"""Looking at predictions one by one: what is right, what is wrong, and why an object was missed.

An image is opened when it is shown, so 20,000 of them cost nothing.
"""

import contextlib
import html
from collections.abc import Sequence
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import traitlets

from rio import plots
from rio.data.annotations import GROUP_NAMES, Annotations
from rio.data.images import read_image
from rio.results.errors import verdicts_of_objects
from rio.results.objects import Objects, objects_of, predictions_of
from rio.widgets import scores, theme
from rio.widgets.explain import Explanation, explain_object, explain_prediction
from rio.widgets.explorer import largest_objects, open_image
from rio.widgets.selection import Selection
from rio.widgets.source import GROUPS, ORDERS, SHOWN_KINDS, PredictionSource, banner

MAX_SIDE = 1600  # px; larger pictures are made smaller for the page
CROPS = 9
GRID = 40  # crops of the list at once
TAGS = ("annotation wrong", "annotation missing", "ambiguous", "interesting", "other")  # keys 1, 2, ...
ONLY_A, ONLY_B = "found only by A", "found only by B"
KIND_HINTS = {
    "correct": "right class, box overlaps by 0.5 or more",
    "missed": "no prediction found the object",
    "classification": "right place, wrong class",
    "localisation": "right class, box too far off",
    "both": "wrong class and box too far off",
    "duplicate": "the object was found already",
    "background": "nothing there",
    "unverified": "LVIS does not judge this class in this image, or ignores the object",
    ONLY_A: "the first run finds the object, the second does not",
    ONLY_B: "the second run finds the object, the first does not",
    "tagged": "what you have tagged, by the keys 1 to 9",
}
# Outlines by right and wrong have the colours of errors in notebook 04.
VERDICTS = {"right": "correct", "wrong": "classification", "open": "missed"}


class Viewer(anywidget.AnyWidget):
    """Panels over one image, or a grid of crops, drawn in the browser; keys step through the list and tag."""

    _esm = plots.ZOOM_SCRIPT + (theme.FOLDER / "inspect_viewer.js").read_text("utf-8")
    _css = theme.FOLDER / "inspect_viewer.css"
    image = traitlets.Bytes(b"").tag(sync=True)
    scene = traitlets.Dict().tag(sync=True)


class Inspector(ipywidgets.VBox):
    """Browse predictions and missed objects.

    Args:
        source: from `open_predictions`.
        threshold: score from which a prediction counts; None: `source.threshold`.
        kind: one of `SHOWN_KINDS`.
        other: a second run's predictions on the same ground truth, shown in step: B beside A.
        tags: what the keys 1, 2, ... tag an entry with.
        picked: name of a list to begin with, and its objects (rows of `source.truth`).

    Attributes:
        selection: what is tagged; `selection.table()`, `.save(path)`, `.load(path)`.
        summary: `source.summary` at the slider's score, as a widget that follows it.

    Raises:
        NotebookError: an unknown kind, a threshold below `source.lowest`, or another ground truth.
    """

    @theme.sentences
    def __init__(
        self, source: PredictionSource, *, threshold: float | None = None, kind: str = "missed",
        other: PredictionSource | None = None, tags: Sequence[str] = TAGS,
        picked: tuple[str, np.ndarray] | None = None,
    ):  # fmt: skip
        if kind not in SHOWN_KINDS:
            raise ValueError(f"kind: expected one of {', '.join(SHOWN_KINDS)}, found {kind!r}")
        threshold = source.threshold if threshold is None else threshold
        if threshold < source.lowest:
            raise ValueError(
                f"threshold: expected {source.lowest} or more, from where {source.title} is sorted into kinds, found "
                f"{threshold}. Fix: open_predictions(..., threshold={threshold})"
            )
        if other is not None and not np.array_equal(source.truth.annotation_ids, other.truth.annotation_ids):
            raise ValueError(
                f"other: expected predictions on {source.truth.path}, found some on {other.truth.path}. Fix: compare "
                "runs that were evaluated on the same data"
            )
        self.source, self.other, self._tags, self.selection = source, other, list(tags), Selection(source)
        self.picked = picked
        self._classes = {name: k for k, name in enumerate(source.truth.category_names)}
        self.rows = np.zeros(0, np.int64)  # of `source.entries`, in the order of the list
        self.position = 0
        self.explanation = Explanation("", pd.DataFrame())
        self._crops: dict[int, list[tuple[str, str]]] = {}
        self._quiet = False  # while this object, not the user, sets a control
        auto = {"button_width": "auto"}
        groups = [("all groups", ""), *((name, g) for g, name in source.group_names.items())]
        self.kind = ipywidgets.ToggleButtons(options=[(k, k) for k in SHOWN_KINDS], value=kind, style=auto)
        self.group = ipywidgets.ToggleButtons(options=groups, style=auto)
        options = sorted(self._classes, key=str.casefold)
        self.category = ipywidgets.Combobox(options=options, placeholder="any category", layout={"width": "190px"})
        self.order = ipywidgets.Dropdown(options=list(ORDERS), value="rarest class first", layout={"width": "170px"})
        self.threshold = ipywidgets.FloatSlider(
            value=threshold, min=source.lowest, max=max(threshold, 0.99), step=0.01, description="score ≥",
            readout_format=".2f" if source.lowest >= 0.01 else ".3g", layout={"width": "280px"},
            style={"description_width": "52px"},
        )  # fmt: skip
        buttons = []
        for arrow, name, by in (("←", "previous", -1), ("→", "next", 1)):
            buttons.append(ipywidgets.Button(description=arrow, tooltip=name, layout={"width": "44px"}))
            buttons[-1].on_click(lambda _, by=by: self.step(by))
        self.at = ipywidgets.BoundedIntText(1, min=1, layout={"width": "76px"}, tooltip="go to this entry")
        self.viewer, self.item, self.why = Viewer(), ipywidgets.HTML(), ipywidgets.HTML()
        self.scores, self.summary = ipywidgets.HTML(), ipywidgets.HTML()
        self.grid = ipywidgets.ToggleButton(description="grid", icon="th", layout={"width": "80px"})
        self.file = ipywidgets.Text("output/selection.csv", layout={"width": "220px"})
        files = []
        actions = ("Save", "write the tagged entries' ids", self._save), ("Load", "add a file's", self._load)
        for name, tip, action in actions:
            files.append(ipywidgets.Button(description=name, tooltip=tip, layout={"width": "70px"}))
            files[-1].on_click(lambda _, action=action: action())
        keys = theme.status("Tag by key: " + " · ".join(f"{n} {tag}" for n, tag in enumerate(tags, 1)) + " · 0 none")
        self.saved = ipywidgets.HTML(keys)
        controls = [self.kind, self.group, self.category, self.order, self.threshold, self.grid]
        head, bar = ipywidgets.HTML(theme.view(banner(source.note))), ipywidgets.HBox(controls[:1]).add_class("rio-bar")
        bar2 = ipywidgets.HBox(controls[1:]).add_class("rio-bar2")
        line = ipywidgets.HBox([*buttons, self.at, self.item], layout={"align_items": "center"})
        last = ipywidgets.HBox([self.file, *files, self.saved]).add_class("rio-bar2")
        super().__init__([head, bar, bar2, self.scores, line, self.viewer, last, self.why])
        self.add_class("rio-inspector")
        for control in controls:
            control.observe(self._on_control, "value")
        self.at.observe(lambda change: self._quiet or self.show(change["new"] - 1), "value")
        self.threshold.observe(lambda _: self._count(), "value")
        self._count()
        self.viewer.on_msg(self.on_message)
        self._filter()
        self.kind.value = picked[0] if picked is not None else kind

    def step(self, by: int) -> None:
        """Go forward by this many entries (negative: back), to the ends at most."""
        self.show(self.position + by)

    def show(self, position: int) -> None:
        """Show the entry at a position of the list, 0 the first."""
        self.position = int(np.clip(position, 0, max(len(self.rows) - 1, 0)))
        self._quiet = True
        self.at.max, self.at.value, self._quiet = max(len(self.rows), 1), self.position + 1, False
        if len(self.rows) and self.grid.value:
            self._draw_grid()
        elif len(self.rows):
            kind = "" if self.kind.value in (*SHOWN_KINDS, "tagged") else self.kind.value
            self._draw(self.source.entries.loc[self.rows[self.position]], kind)
        else:
            self._draw_nothing()

    def tag(self, number: int) -> None:
        """Tag the entry shown with the n-th tag; 0, or the tag that it has: none."""
        row = int(self.rows[self.position]) if len(self.rows) else -1
        if row < 0 or not 0 <= number <= len(self._tags):
            return
        old, new = self.selection.tags.pop(row, ""), self._tags[number - 1] if number else ""
        self.selection.tags |= {row: new} if new not in ("", old) else {}
        self._filter(keep=True)

    @theme.sentences
    def go(self, entry: str) -> None:
        """Show an entry by the name that its link has: "object-ANNOTATION_ID" or "prediction-RESULT_INDEX"."""
        entries, (kind, _, number) = self.source.entries, entry.partition("-")
        ids = {"object": np.append(self.source.truth.annotation_ids, -1)[entries["annotation_index"]]}
        ids |= {"prediction": entries["result_index"].to_numpy()}
        found = np.array([], int)
        if kind in ids and number.isdigit():
            found = np.flatnonzero((ids[kind] == int(number)) & (entries["is_object"] == (kind == "object")))
        if not len(found):
            raise ValueError(f"entry: expected object-ID or prediction-INDEX of {self.source.title}, found {entry!r}")
        row, at = entries.loc[found[0]], np.flatnonzero(self.rows == found[0])
        self.grid.value = False
        if len(at):
            self.show(int(at[0]))
        else:
            self._draw(row, "asked about" if row.is_object else "")

    def _count(self) -> None:
        """What changes with the slider only."""
        self.scores.value = scores.histograms(self.source, self.threshold.value)
        self.summary.value = scores.tables(self.source, self.threshold.value)

    def _save(self) -> None:
        try:
            file = self.selection.save(self.file.value)
            self.saved.value = theme.status(f"{len(self.selection.tags)} written to {file}")
        except OSError as error:
            self.saved.value = theme.notice(theme.sentence(error))

    def _load(self) -> None:
        try:
            self.saved.value = theme.status(f"{self.selection.load(self.file.value)} read from {self.file.value}")
        except (OSError, ValueError) as error:
            self.saved.value = theme.notice(theme.sentence(error))
        self._filter(keep=True)

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
        elif isinstance(content.get("tag"), int):
            self.tag(content["tag"])
        elif isinstance(content.get("show"), int):
            self.position, self.grid.value = content["show"], False
            self.show(content["show"])
        elif isinstance(content.get("go"), str):
            with contextlib.suppress(theme.NotebookError):  # an address of another page
                self.go(content["go"])
        elif isinstance(content.get("select"), int) and content.get("panel") in ("truth", "found"):
            self.ask(content["panel"], content["select"])

    def _on_control(self, change: Any) -> None:
        if not self._quiet:
            self._filter(keep=change["owner"] in (self.threshold, self.grid))

    def _filter(self, keep: bool = False) -> None:
        """Rebuild the list; `keep` stays at the entry that is shown, if it is still in the list."""
        entries, name = self.source.entries, self.category.value.strip()
        shown = self.rows[self.position] if keep and len(self.rows) else -1
        half_typed = bool(name) and name not in self._classes  # nothing to filter by yet
        chosen = self.source.involving(self.group.value, self._classes.get(name, -1)) & (not half_typed)
        kinds = entries["kind"].where(chosen & self.source.active(self.threshold.value))
        lists = {kind: kinds == kind for kind in SHOWN_KINDS}
        if self.other is not None:
            mine, theirs = (
                np.append(of.found_score, -np.inf)[entries["annotation_index"]] >= self.threshold.value
                for of in (self.source, self.other)
            )
            own = chosen & entries["is_object"]
            lists |= {ONLY_A: own & mine & ~theirs, ONLY_B: own & ~mine & theirs}
        if self.picked is not None:
            lists[self.picked[0]] = chosen & entries["is_object"] & entries["annotation_index"].isin(self.picked[1])
        lists["tagged"] = chosen & entries.index.isin(self.selection.tags)
        options = [(f"{kind}  {own.sum():,}", kind) for kind, own in lists.items()]
        if [*self.kind.options] != options:
            self._quiet, value = True, self.kind.value
            self.kind.options = options
            self.kind.value, self._quiet = value, False
        rows = np.flatnonzero(lists[self.kind.value])
        self.rows = rows[np.lexsort([entries[name].to_numpy()[rows] for name in reversed(ORDERS[self.order.value])])]
        self.show(next(iter(np.flatnonzero(self.rows == shown)), 0))

    def _draw(self, row: pd.Series, kind: str = "") -> None:
        """Show an entry's image; `kind` is written in place of the entry's own."""
        truth, image, threshold = self.source.truth, row.image, self.threshold.value
        self._shown = row
        if row.is_object:
            self.explanation = explain_object(self.source, row.annotation_index, threshold)
        else:
            self.explanation = explain_prediction(self.source, row.name, threshold)
        picture, problem = _picture(truth, image)
        objects = objects_of(truth, image)
        reached = verdicts_of_objects(truth, self.source.matches, threshold)[objects.indices]
        note = f"{plots.counted(len(objects), 'object')}{problem}"
        panels = [_panel("truth", "Ground truth", objects, row.annotation_index, note, reached)]
        runs = [("found", self.source, row.result_index)] + [("other", self.other, -1)] * (self.other is not None)
        for (name, of, focus), letter in zip(runs, "AB", strict=False):
            found = predictions_of(of.results, truth, image, score_threshold=threshold)
            title = "Predictions" if self.other is None else f"{letter}: {of.title.rpartition('/')[2]}"
            note = f"{len(found)} with score ≥ {threshold:.2f}"
            panels.append(_panel(name, title, found, focus, note, of.verdicts[found.indices]))
        focus = [o["box"] for own in panels for o in own["objects"] if o["focus"]]
        for own in panels:
            own["focused"] = any(o["focus"] for o in own["objects"])
            own["ghost"] = focus[0] if focus and not own["focused"] else None
        size = {"width": int(truth.image_width[image]), "height": int(truth.image_height[image])}
        colors = plots.COLORS | {name: plots.KIND_COLORS[kind] for name, kind in VERDICTS.items()}
        inks = {name: plots.ink_on(color) for name, color in colors.items()}
        number = truth.annotation_ids[row.annotation_index] if row.is_object else row.result_index
        entry = f"{'object' if row.is_object else 'prediction'}-{number}"
        scene = {"colors": colors, "inks": inks, "panels": panels, "image": int(image), "entry": entry, **size}
        with self.viewer.hold_sync():
            self.viewer.image, self.viewer.scene = picture, scene
        self.item.value = self._item_html(row, kind or row.kind)
        self.why.value = self._why_html(row.gt_class if row.gt_class >= 0 and not kind else row.class_id)

    def _draw_grid(self) -> None:
        """Crops of the list from the page that the position is on."""
        source, first = self.source, self.position // GRID * GRID
        crops = []
        for at, row in enumerate(self.rows[first : first + GRID].tolist(), first):
            own = source.entries.loc[row]
            of, index = (source.truth, own.annotation_index) if own.is_object else (source.results, own.result_index)
            try:
                uri = theme.thumbnail(open_image(source.truth.image_path(own.image)), of.boxes[index], side=120)
            except (OSError, ValueError):
                uri = ""
            name = source.truth.category_names[own.class_id] + ("" if own.is_object else f" {own.score:.2f}")
            tag = self.selection.tags.get(row, "")
            group = source.truth.frequency[own.class_id]
            crops.append({"at": at, "uri": uri, "name": name, "group": group, "tag": tag})
        with self.viewer.hold_sync():
            self.viewer.image, self.viewer.scene = b"", {"grid": crops, "colors": plots.COLORS, "at": self.position}
        text = f"{first + 1:,} to {first + len(crops):,} of {len(self.rows):,} {self.kind.value}"
        self.item.value, self.why.value = theme.view(html.escape(text), "rio-item"), ""
        self.explanation = Explanation(text, pd.DataFrame())

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
        group, score = self.source.groups[row.class_id], "" if row.is_object else f" · score {row.score:.2f}"
        tag = html.escape(self.selection.tags.get(row.name, ""))
        tag = f'<span class="rio-chip rio-tagged">{tag}</span>' if tag else ""
        return theme.view(
            f'<span class="rio-at">{self.position + 1:,} of {len(self.rows):,}</span>'
            f'<span class="rio-chip" title="{hint}">{kind}</span>'
            f'<span class="rio-name"><span class="rio-dot {group}"></span>'
            f"{html.escape(truth.category_names[row.class_id])}</span>"
            f"{tag}"
            f'<span class="rio-quiet">{GROUPS[group]}{score} · image {truth.image_ids[row.image]} · '
            f"{html.escape(truth.file_names[row.image])}</span>",
            "rio-item",
        )

    def _why_html(self, class_id: int) -> str:
        train, table = self.source.train, self.explanation.table
        rows = [[r.name, f"{r.score:.2f}", f"{r.iou:.2f}", f"{r.rank}", r.verdict] for r in table.itertuples(False)]
        body = theme.html_table(["predicted class", "score", "IoU", "rank", ""], rows) if rows else ""
        columns = f"<div><h4>Why?</h4><p>{html.escape(self.explanation.sentence)}</p>{body}</div>"
        if self.other is not None and (row := self._shown).is_object:
            sentence = explain_object(self.other, row.annotation_index, self.threshold.value).sentence
            columns += f"<div><h4>And B?</h4><p>{html.escape(sentence)}</p></div>"
        if train is not None:
            if class_id not in self._crops:
                self._crops[class_id] = largest_objects(train, class_id, CROPS, side=96)
            pictures = "".join(
                f'<img src="{uri}" alt="training object" title="{html.escape(file, quote=True)}">'
                for uri, file in self._crops[class_id]
            )
            pictures = pictures or '<span class="rio-quiet">no image of it could be opened</span>'
            counts = ", ".join(
                plots.counted(of[class_id], noun)
                for of, noun in ((train.image_count, "image"), (train.instance_count, "object"))
            )
            head = f"<h4>{html.escape(train.category_names[class_id])} in training: {counts}</h4>"
            columns += f'<div>{head}<div class="rio-crops">{pictures}</div></div>'
        return theme.view(columns, "rio-why")


def _panel(name: str, title: str, objects: Objects, focus: int, note: str, verdicts: np.ndarray) -> dict[str, Any]:
    shown = []
    for i, row in enumerate(objects.indices.tolist()):
        group, mask = str(objects.groups[i]), objects.segmentations[i] if objects.segmentations else None
        label = objects.names[i] + ("" if objects.scores is None else f" {objects.scores[i]:.2f}")
        polygons = [polygon.round(1).ravel().tolist() for polygon in plots.outlines(mask, objects.size)]
        own = {"verdict": verdicts[i], "id": row, "box": objects.boxes[i].round(2).tolist(), "polygons": polygons}
        shown.append(
            own
            | {"label": label, "hint": f"{label} ({GROUP_NAMES[group]})", "group": group, "focus": bool(row == focus)}
        )
    return {"name": name, "title": title, "note": note, "objects": shown}


def _picture(annotations: Annotations, image: int) -> tuple[bytes, str]:
    """An image as a JPEG for the browser, and what is wrong with it ("" if nothing)."""
    try:
        return theme.jpeg(read_image(annotations.image_path(image), max_side=MAX_SIDE), 95), ""
    except (OSError, ValueError) as error:
        return b"", f" · no picture: {theme.sentence(error)}"
