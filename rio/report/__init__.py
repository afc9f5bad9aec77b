"""One self-contained HTML page that says what a comparison of runs has shown: data, balance, AP, pictures,
settings.

Nothing is fetched when the page is opened: style and figures are inside, and its content security policy
forbids the rest. Every figure comes twice, for light and for dark pages. All that stems from files (names,
settings, titles) is escaped.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import io
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rio import __version__, plots
from rio.analysis import balance
from rio.data.annotations import Annotations
from rio.data.files import write_atomically
from rio.results.evaluation import GROUP_METRICS as METRICS
from rio.results.evaluation import Evaluation
from rio.results.objects import Objects, objects_of, predictions_of, ranked_examples
from rio.results.reading import Results, load_results
from rio.sampler import image_repeat_factors

IOU_NAMES = {"bbox": "boxes", "segm": "masks"}
ARM_NAMES = {"none": "No resampling", "rfs": "RFS", "irfs": "IRFS", "rio": "RIO", "bank": "Bank"}
SAMPLER_NAMES = {"rfs": "RFS", "irfs": "IRFS", "class_aware": "class-aware"}
PACKAGES = ("torch", "torchvision", "detectron2", "numpy", "hotcoco", "matplotlib")
PICTURES = 6
PICTURE_SCORE = 0.2  # after minutes of training rare classes are ranked well long before they are confident
PICTURE_PIXELS = 560


class ReportError(ValueError):
    """Run folders from which no report can be made; names the file, what was expected and the remedy."""


@dataclass(frozen=True)
class _Run:
    """What a run folder holds, read once."""

    arm: str
    name: str
    folder: Path
    config: dict
    evaluation: Evaluation
    results: Results
    metrics: pd.DataFrame

    def setting(self, key: str, default: object = None) -> object:
        """A value of config.yaml by its dotted key."""
        node: object = self.config
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return default
            node = node[part]
        return node

    @property
    def description(self) -> str:
        """What this arm resamples, in words: "images (RFS) and objects (memory bank)"."""
        if self.setting("MODEL.RIO") is None:
            return "settings unknown"
        sampler = str(self.setting("MODEL.RIO.SAMPLER"))
        images = f"images ({SAMPLER_NAMES.get(sampler, sampler)})" if sampler != "none" else ""
        objects = "objects (memory bank)" if self.setting("MODEL.RIO.BANK_ENABLED") else ""
        return " and ".join(filter(None, (images, objects))) or "nothing"


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    runs: Mapping[str, str | os.PathLike[str]],
    train: Annotations,
    val: Annotations,
) -> Path:
    """Write the report of one or several finished runs on the same data.

    Args:
        path: the HTML file; its folder is made if missing, and an older report is replaced at once.
        title: heading of the page.
        runs: name of the arm -> its run folder (config.yaml, evaluation.json, instances_results.json,
            metrics.json), in the order to show them, weakest first reads best.
        train: training set, for counts and balance.
        val: validation set, for the pictures; with its image folder, and with the training set's frequency
            groups.

    Returns:
        The path written.

    Raises:
        ReportError: no runs, a config.yaml or metrics.json that cannot be read.
        FileNotFoundError: a run folder lacks a file; names it.
        rio.results.reading.ResultsError: results of another data set.
    """
    if not runs:
        raise ReportError("runs: expected at least one arm and its run folder, found none. Train first.")
    path = Path(path)
    loaded = [_load(arm, Path(folder), val) for arm, folder in runs.items()]
    tables = {run.name: _exposures(train, run, loaded) for run in loaded}
    page = (
        _environment()
        .from_string(_PAGE)
        .render(
            title=title,
            style=_STYLE,
            colors=plots.COLORS,
            group_names=plots.GROUP_NAMES,
            runs=loaded,
            synthetic=_is_synthetic(loaded),
            tiles=_tiles(loaded),
            data=_data_section(train, val),
            balance=_balance_section(train, tables, loaded),
            results=_results_section(loaded),
            pictures=_pictures(loaded, val),
            picture_score=f"{PICTURE_SCORE:.0%}",
            training=[_loss_figure(run, i) for i, run in enumerate(loaded)],
            categories=_category_rows(loaded, train),
            settings=_settings(loaded),
            versions=_versions(),
            seeds=sorted({str(run.setting("SEED", "?")) for run in loaded}),
            logdir=_relative(Path(os.path.commonpath([run.folder.resolve() for run in loaded])), path.parent),
            folders={run.name: _relative(run.folder, path.parent) for run in loaded},
            written=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z").lstrip("0"),
        )
    )
    write_atomically(path, page.lstrip().encode())
    return path


def write_summary(
    path: str | os.PathLike[str], *, runs: Mapping[str, str | os.PathLike[str]], train: Annotations, val: Annotations
) -> Path:
    """Write the comparison as one picture for a slide or a README: the tail, AP by group, two images.

    Args:
        path: ends in .png, .svg or .pdf; replaced at once.
        runs: as in `write_report`; the images show ground truth, the first and the last arm.
        train: training set.
        val: validation set, as in `write_report`.

    Returns:
        The path written.

    Raises:
        ReportError, FileNotFoundError, rio.results.reading.ResultsError: as `write_report`.
    """
    if not runs:
        raise ReportError("runs: expected at least one arm and its run folder, found none. Train first.")
    path = Path(path)
    loaded = [_load(arm, Path(folder), val) for arm, folder in runs.items()]
    panels = []
    for index in ranked_examples(val, count=2):  # chosen on ground truth alone, as the report's are
        with Image.open(val.image_path(index)) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        panels.append(("ground truth", pixels, objects_of(val, index)))
        for run in loaded[:1] + loaded[1:][-1:]:
            found = predictions_of(run.results, val, index, score_threshold=PICTURE_SCORE)
            panels.append((run.name, pixels, found))

    with plots.style():
        figure = plt.figure(figsize=(14, 5.6), layout="constrained")
        try:
            above, below = figure.subfigures(2, 1, height_ratios=(1.0, 0.95))
            tail, ap = above.subplots(1, 2, width_ratios=(1, 1.15))
            plots.sorted_tail(_count_table(train), tail)
            tail.set_xticks([])  # the names would take half the picture; the report has them
            tail.set_xlabel(f"{train.num_classes} categories")
            frame = pd.DataFrame(
                [{"arm": r.name} | {m: r.evaluation.metrics["bbox"][m] for m in METRICS} for r in loaded]
            )
            plots.ap_by_group(frame, ap, label="AP of boxes (%)")
            for axes, (name, pixels, objects) in zip(below.subplots(1, len(panels)), panels, strict=True):
                height, width = pixels.shape[:2]
                axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
                figure.draw_without_rendering()  # labels are placed for the final size
                _draw(axes, pixels, objects, font_size=5.5)
                axes.set_title(name, fontsize=9)
            buffer = io.BytesIO()
            figure.savefig(buffer, format=path.suffix[1:] or "png", dpi=160)
        finally:
            plt.close(figure)
    write_atomically(path, buffer.getvalue())
    return path


# ------------------------------------------------------------------------------------------- reading runs


def _load(arm: str, folder: Path, val: Annotations) -> _Run:
    if not folder.is_dir():
        raise FileNotFoundError(f"arm {arm!r}: no run folder {folder}. Train it first, or leave the arm out.")
    for name in ("config.yaml", "evaluation.json", "instances_results.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"arm {arm!r}: {folder} holds no {name}. Let the run finish and evaluate, or "
                "run `python -m rio eval` on it."
            )
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReportError(f"{folder / 'config.yaml'}: expected the YAML a run writes, found: {error}") from error
    if not isinstance(config, dict):
        raise ReportError(f"{folder / 'config.yaml'}: expected keys and values, found {type(config).__name__}.")
    evaluation = Evaluation.from_json(folder / "evaluation.json")
    results = load_results(folder / "instances_results.json", val)
    return _Run(arm, ARM_NAMES.get(arm, arm), folder, config, evaluation, results, _read_metrics(folder))


def _read_metrics(folder: Path) -> pd.DataFrame:
    """Rows of metrics.json (one JSON object a line); empty where the run logged nothing."""
    file = folder / "metrics.json"
    if not file.is_file():
        return pd.DataFrame()
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # a killed run leaves half a line behind; everything before it counts
                continue
            raise ReportError(f"{file}, line {number}: expected a JSON object, found: {error}.") from error
        if not isinstance(row, dict):
            raise ReportError(f"{file}, line {number}: expected a JSON object, found {type(row).__name__}.")
        rows.append(row)
    return pd.DataFrame(rows)


def _is_synthetic(runs: list[_Run]) -> bool:
    """Whether the runs trained on the embedded data set."""
    names = [name for run in runs for name in (run.setting("DATASETS.TRAIN") or ())]
    return bool(names) and all(str(name).startswith("shapes_") for name in names)


# ------------------------------------------------------------------------------------------------- figures


def _figure(draw: Callable[[], Axes], alt: str, *, width: int = 43) -> dict[str, str | int]:
    """The figure as two SVG data URIs, for light and for dark pages; shown at most `width` rem wide."""
    uris = {}
    for mode in ("light", "dark"):
        with plots.style(dark=mode == "dark"):
            figure = draw().figure
            buffer = io.BytesIO()
            # Without a date or creator line the same runs give the same report.
            figure.savefig(
                buffer,
                format="svg",
                bbox_inches="tight",
                pad_inches=0.03,
                transparent=True,
                metadata={"Date": None, "Creator": None},
            )
            plt.close(figure)
        uris[mode] = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return {**uris, "alt": alt, "width": width}


def _loss_figure(run: _Run, order: int) -> dict[str, object] | None:
    losses = [c for c in run.metrics.columns if c == "total_loss" or str(c).startswith("loss")]
    if not losses or run.metrics[losses].isna().all().all():
        return None

    def draw() -> Axes:
        _, ax = plt.subplots(figsize=(3.5, 2.5), layout="constrained")
        return plots.loss_curves(run.metrics, ax)

    return {"name": run.name} | _figure(draw, f"Losses of {run.name} over the iterations of training.")


# ------------------------------------------------------------------------------------------------- sections


def _number(value: object, digits: int = 1) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:,.{digits}f}"


def _tiles(runs: list[_Run]) -> list[dict[str, str]]:
    return [
        {
            "name": run.name,
            "description": run.description,
            "rare": _number(run.evaluation.metrics.get("bbox", {}).get("APr")),
            "all": _number(run.evaluation.metrics.get("bbox", {}).get("AP")),
        }
        for run in runs
    ]


def _count_table(train: Annotations) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "name": train.category_names,
            "frequency": train.frequency,
            "image_count": train.image_count,
            "instance_count": train.instance_count,
        }
    )


def _data_section(train: Annotations, val: Annotations) -> dict[str, object]:
    table = _count_table(train)
    kept = ~train.iscrowd
    rows = []
    total = max(int(train.instance_count.sum()), 1)
    for group in plots.GROUPS:
        of_group = train.frequency == group
        with_group = np.unique(train.annotation_image[kept & of_group[train.annotation_class]])
        rows.append(
            {
                "group": group,
                "categories": f"{int(of_group.sum()):,}",
                "images": f"{len(with_group):,}",
                "objects": f"{int(train.instance_count[of_group].sum()):,}",
                "share": f"{train.instance_count[of_group].sum() / total:.1%}",
            }
        )
    return {
        "rows": rows,
        "train_images": f"{len(train.image_ids):,}",
        "val_images": f"{len(val.image_ids):,}",
        "categories": f"{len(train.category_ids):,}",
        "objects": f"{int(train.instance_count.sum()):,}",
        "counts": _figure(lambda: plots.count_by_group(table), "Share of categories and of objects by frequency group.")
        if train.instance_count.sum()
        else None,
        "tail": _figure(lambda: plots.sorted_tail(table), "Images of every category, sorted, on a log scale."),
    }


def _exposures(train: Annotations, run: _Run, runs: list[_Run]) -> pd.DataFrame | None:
    """Expected exposures under the run's settings; None where its config has no MODEL.RIO."""
    method = run.setting("MODEL.RIO.SAMPLER")
    if method is None or not train.instance_count.sum():
        return None
    factors = image_repeat_factors(
        train,
        str(method),
        float(run.setting("DATALOADER.REPEAT_THRESHOLD", 0.001)),
        bool(run.setting("MODEL.RIO.SAMPLER_SQRT", True)),
        filter_empty=bool(run.setting("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True)),
    )
    quota = float(run.setting("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 512)) * float(
        run.setting("MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.25)
    )
    options = {"foreground_per_image": quota}
    if (measured := _rois_per_instance(train, runs)) is not None:
        options["rois_per_instance"] = measured
    table = balance.exposures(train, factors, **options)
    if run.setting("MODEL.RIO.BANK_ENABLED"):
        table = balance.with_replay(
            table,
            run.setting("MODEL.RIO.BANK_CLASS_IDS") or [],
            replay_per_class=int(run.setting("MODEL.RIO.REPLAY_PER_CLASS", 20)),
            slots_per_class=int(run.setting("MODEL.RIO.SLOTS_PER_CLASS", 60)),
            batch_size=int(run.setting("SOLVER.IMS_PER_BATCH", 16)),
            epoch_length=float(factors.sum()),
            max_per_foreground=float(run.setting("MODEL.RIO.REPLAY_MAX_PER_FOREGROUND", 0.0)),
            absent_classes=int(run.setting("MODEL.RIO.REPLAY_ABSENT_CLASSES", 0)),
        )
    return table


def _rois_per_instance(train: Annotations, runs: list[_Run]) -> float | None:
    """Foreground RoIs an object, as the runs logged them: mean RoIs an image over mean objects an image."""
    logged = [
        run.metrics["roi_head/num_fg_samples"].mean()
        for run in runs
        if "roi_head/num_fg_samples" in run.metrics.columns
    ]
    annotated = len(np.unique(train.annotation_image[~train.iscrowd]))
    if not logged or not annotated or not np.isfinite(np.mean(logged)) or np.mean(logged) <= 0:
        return None
    return float(np.mean(logged) / (train.instance_count.sum() / annotated))


def _balance_section(
    train: Annotations, tables: Mapping[str, pd.DataFrame | None], runs: list[_Run]
) -> dict[str, object] | None:
    known = {arm: table for arm, table in tables.items() if table is not None}
    if not known:
        return None
    compared = balance.compare(known)
    measured = _rois_per_instance(train, runs)
    replay = {
        run.name: f"{run.metrics['memory_bank/replayed_per_foreground'].mean():.2f}"
        for run in runs
        if run.setting("MODEL.RIO.BANK_ENABLED") and "memory_bank/replayed_per_foreground" in run.metrics.columns
    }
    rows = [
        {
            "arm": row.arm,
            "level": plots.LEVEL_NAMES[row.level],
            "shares": [f"{getattr(row, group):.1%}" for group in plots.GROUPS],
            "measures": [
                f"{row.gini:.2f}",
                f"{row.normalised_entropy:.2f}",
                f"{row.effective_classes:.1f}",
                "∞" if np.isinf(row.max_min_ratio) else f"{row.max_min_ratio:,.0f}",
            ],
        }
        for row in compared.itertuples()
    ]
    return {
        "figure": _figure(
            lambda: plots.balance_by_group(compared), "Share of rare, common and frequent classes at three levels."
        ),
        "rows": rows,
        "classes": len(train.category_ids),
        "measured": None if measured is None else f"{measured:.1f}",
        "replay": replay,
    }


def _results_section(runs: list[_Run]) -> list[dict[str, object]]:
    sections = []
    for iou_type in IOU_NAMES:
        having = [run for run in runs if iou_type in run.evaluation.metrics]
        if not having:
            continue
        frame = pd.DataFrame(
            [{"arm": run.name} | {m: run.evaluation.metrics[iou_type][m] for m in METRICS} for run in having]
        )
        # The best of a column stands out; where all are equal there is none.
        best = {m: frame[m].max() if frame[m].nunique() > 1 else None for m in METRICS}
        rows = [
            {
                "arm": run.name,
                "description": run.description,
                "cells": [
                    {
                        "text": _number(run.evaluation.metrics[iou_type][m]),
                        "best": run.evaluation.metrics[iou_type][m] == best[m],
                    }
                    for m in METRICS
                ],
            }
            for run in having
        ]

        def draw(frame: pd.DataFrame = frame, label: str = IOU_NAMES[iou_type]) -> Axes:
            _, ax = plt.subplots(figsize=(max(4.4, 2.0 + 0.95 * len(frame)), 2.8), layout="constrained")
            return plots.ap_by_group(frame, ax, label=f"AP of {label} (%)")

        figure = _figure(draw, f"AP of {IOU_NAMES[iou_type]} by frequency group, one bar an arm.")
        sections.append({"name": IOU_NAMES[iou_type], "rows": rows, "figure": figure})
    return sections


def _pictures(runs: list[_Run], val: Annotations) -> list[dict[str, object]]:
    pictures = []
    for index in ranked_examples(val, count=PICTURES):
        file = val.file_names[index]
        truth = objects_of(val, index)
        order = np.argsort([plots.GROUPS.index(g) for g in truth.groups], kind="stable")
        names = list(dict.fromkeys((truth.names[i], str(truth.groups[i])) for i in order))
        try:
            with Image.open(val.image_path(index)) as opened:
                pixels = np.asarray(opened.convert("RGB"))
        except (OSError, ValueError) as error:
            pictures.append({"file": file, "names": names, "panels": [], "missing": type(error).__name__})
            continue
        panels = [{"title": "Ground truth", "note": _counted(len(truth), "object"), "uri": _panel(pixels, truth)}]
        for run in runs:
            found = predictions_of(run.results, val, index, score_threshold=PICTURE_SCORE)
            panels.append({"title": run.name, "note": _counted(len(found), "prediction"), "uri": _panel(pixels, found)})
        pictures.append({"file": file, "names": names, "panels": panels, "missing": None})
    return pictures


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _panel(pixels: np.ndarray, objects: Objects) -> str:
    """The image with its objects as a JPEG data URI, twice the size it is shown at."""
    height, width = pixels.shape[:2]
    scale = PICTURE_PIXELS / max(height, width)
    figure = Figure(figsize=(width * scale / 200, height * scale / 200), dpi=200)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="auto")
    _draw(ax, pixels, objects, font_size=8)
    ax.set_aspect("auto")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=200, pil_kwargs={"quality": 86, "optimize": True})
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _draw(ax: Axes, pixels: np.ndarray, objects: Objects, *, font_size: float) -> None:
    plots.draw_objects(
        ax,
        pixels,
        objects.boxes,
        objects.segmentations,
        objects.names,
        objects.groups,
        objects.scores,
        font_size=font_size,
    )


def _category_rows(runs: list[_Run], train: Annotations) -> list[dict[str, object]]:
    """AP of boxes of every category, rarest first; counts are the training set's."""
    counts = dict(zip(train.category_ids.tolist(), train.image_count.tolist(), strict=True))
    columns = [run.evaluation.per_category.set_index("category_id")["AP_bbox"] for run in runs]
    rows = [
        {
            "name": row.name_,
            "group": row.frequency,
            "images": counts.get(row.category_id, 0),
            "cells": [_number(column.get(row.category_id)) for column in columns],
        }
        for row in runs[0].evaluation.per_category.rename(columns={"name": "name_"}).itertuples()
    ]
    return sorted(rows, key=lambda row: (row["images"], row["name"]))


def _settings(runs: list[_Run]) -> list[tuple[str, list[str]]]:
    """Rows of the settings table: name and one value a run."""

    def bank(run: _Run, key: str) -> object:
        return run.setting(f"MODEL.RIO.{key}") if run.setting("MODEL.RIO.BANK_ENABLED") else None

    def targets(run: _Run) -> str | None:
        ids = bank(run, "BANK_CLASS_IDS")
        return None if ids is None else f"{len(ids)} with at most {bank(run, 'BANK_MAX_IMAGE_COUNT')} images"

    def losses(run: _Run) -> str | None:
        names = bank(run, "REPLAY_LOSSES")
        return None if names is None else " and ".join({"cls": "classification"}.get(n, n) for n in names)

    def slots(run: _Run) -> object:
        number, most = bank(run, "SLOTS_PER_CLASS"), bank(run, "WRITE_MAX_PER_OBJECT")
        return f"{number}, at most {most} of an object a step" if most else number

    def replay(run: _Run) -> str | None:
        if bank(run, "REPLAY_PER_CLASS") is None:
            return None
        words = [f"{bank(run, 'REPLAY_PER_CLASS')}, {bank(run, 'REPLAY_ORDER') or 'newest'}"]
        if absent := bank(run, "REPLAY_ABSENT_CLASSES"):
            words.append(f"{absent} absent classes besides")
        if most := bank(run, "REPLAY_MAX_PER_FOREGROUND"):
            words.append(f"at most {most} a foreground RoI")
        return "; ".join(words)

    def threshold(run: _Run) -> object:
        resamples = run.setting("MODEL.RIO.SAMPLER") in ("rfs", "irfs")
        return run.setting("DATALOADER.REPEAT_THRESHOLD") if resamples else None

    def joined(key: str) -> Callable[[_Run], str]:
        return lambda run: ", ".join(map(str, run.setting(key) or ())) or "–"

    values: dict[str, Callable[[_Run], object]] = {
        "Resampled": lambda run: run.description,
        "Repeat threshold": threshold,
        "Classifier": lambda run: run.setting("MODEL.RIO.CLASSIFIER"),
        "Classes in the bank": targets,
        "Slots a class": slots,
        "Replayed a class": replay,
        "Replay trains": losses,
        "Iterations": lambda run: run.setting("SOLVER.MAX_ITER"),
        "Images a step": lambda run: run.setting("SOLVER.IMS_PER_BATCH"),
        "Learning rate": lambda run: run.setting("SOLVER.BASE_LR"),
        "Seed": lambda run: run.setting("SEED"),
        "Seconds an iteration": lambda run: _seconds(run, per_iteration=True),
        "Training time": lambda run: _seconds(run),
        "Trained on": joined("DATASETS.TRAIN"),
        "Evaluated on": joined("DATASETS.TEST"),
    }
    rows = [(name, ["–" if (v := value(run)) is None else str(v) for run in runs]) for name, value in values.items()]
    return [(name, cells) for name, cells in rows if any(cell != "–" for cell in cells)]


def _seconds(run: _Run, *, per_iteration: bool = False) -> str | None:
    if "time" not in run.metrics.columns or run.metrics["time"].isna().all():
        return None
    each = float(run.metrics["time"].median())
    if per_iteration:
        return f"{each:.2f}"
    minutes = each * float(run.setting("SOLVER.MAX_ITER", run.metrics["iteration"].max())) / 60
    return f"about {minutes:.1f} min" if minutes < 100 else f"about {minutes / 60:.1f} h"


def _versions() -> dict[str, str]:
    """Versions at the time of writing; read from the installed packages, none is imported for it."""
    found = {"rio": __version__, "Python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


# ------------------------------------------------------------------------------------------------- page


def _relative(folder: Path, page_folder: Path) -> str:
    """A run folder as seen from the page: both can be copied elsewhere, and no machine's paths are told."""
    return os.path.relpath(folder.resolve(), page_folder.resolve())


def _environment() -> jinja2.Environment:
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


_STYLE = """
:root {
  color-scheme: light dark; --page: #ffffff; --ink: #1f2430; --quiet: #5c6470; --rule: #e3e6eb;
  --soft: #f6f7f9; --accent: #b93a4e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15181d; --ink: #e8ebf0; --quiet: #a3abb8; --rule: #2d333d; --soft: #1c2027; --accent: #ef8a99;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 66rem; margin: 0 auto; padding: 3.2rem 1.4rem 5rem; }
h1 { font-size: 2.1rem; line-height: 1.18; letter-spacing: -0.018em; margin: 0 0 0.7rem; text-wrap: balance; }
h2 {
  font-size: 1.36rem; letter-spacing: -0.01em; line-height: 1.25; margin: 3.6rem 0 0.6rem;
  padding-top: 1.5rem; border-top: 1px solid var(--rule);
}
h3 { font-size: 1rem; margin: 2rem 0 0.3rem; }
p, ul { max-width: 43rem; margin: 0.6rem 0 0.9rem; }
ul { padding-left: 1.2rem; }
li { margin: 0.35rem 0; }
.lead { font-size: 1.13rem; color: var(--quiet); }
.note {
  border-left: 3px solid var(--accent); background: var(--soft); padding: 0.7rem 1rem;
  border-radius: 0 6px 6px 0; max-width: 43rem;
}
.quiet, figcaption, .small { color: var(--quiet); font-size: 0.88rem; line-height: 1.5; }
figure { margin: 1.3rem 0 1.6rem; }
figcaption { max-width: 43rem; margin-top: 0.5rem; }
figure img { display: block; max-width: 100%; height: auto; }
.trio {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); gap: 0.5rem 1.6rem;
}
.trio figure { margin: 0.8rem 0; }
.pair {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 0.5rem 2.4rem;
  align-items: end;
}
.pair figure { margin: 0.8rem 0; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: 1rem;
  margin: 1.8rem 0 0.6rem;
}
.tile { background: var(--soft); border-radius: 10px; padding: 1rem 1.15rem 0.95rem; }
.tile b {
  display: block; font-size: 2.3rem; line-height: 1.1; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; margin: 0.35rem 0 0.1rem; color: var(--rare);
}
.tile span { display: block; }
.tile .name { font-weight: 650; }
.scroll { overflow-x: auto; margin: 1rem 0 1.4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.93rem; }
th, td {
  padding: 0.38rem 1.1rem 0.38rem 0; text-align: right; border-bottom: 1px solid var(--rule);
  vertical-align: top;
}
th { font-weight: 600; color: var(--quiet); font-size: 0.86rem; vertical-align: bottom; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
th:first-child, td:first-child { white-space: nowrap; }
td.best { font-weight: 700; }
tbody tr:hover { background: var(--soft); }
.dot { display: inline-block; width: 0.72em; height: 0.72em; border-radius: 2px; margin-right: 0.5em; }
.picture { margin: 1.5rem 0 2.2rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.7rem; }
.panels div { min-width: 0; }
.panels img { width: 100%; height: auto; border-radius: 5px; display: block; }
.panels .title { font-weight: 600; font-size: 0.9rem; margin-bottom: 0.25rem; }
.panels .title small { color: var(--quiet); font-weight: 400; }
.tag { display: inline-block; margin: 0 0.9rem 0.3rem 0; font-size: 0.88rem; }
code, pre { font: 0.88em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--soft); padding: 0.8rem 1rem; border-radius: 8px; overflow-x: auto; max-width: 52rem; }
summary { cursor: pointer; font-weight: 600; margin: 1rem 0; }
footer { margin-top: 4rem; }
@media print {
  details { display: block; }
  h2 { break-after: avoid; }
  .picture, figure { break-inside: avoid; }
}
"""

_PAGE = """
{% macro figure(f, caption) %}
<figure>
  <picture>
    <source media="(prefers-color-scheme: dark)" srcset="{{ f.dark }}">
    <img src="{{ f.light }}" alt="{{ f.alt }}" style="width: {{ f.width }}rem">
  </picture>
  {% if caption %}
  <figcaption>{{ caption }}</figcaption>
  {% endif %}
</figure>
{% endmacro %}
{% macro dot(group) %}<span class="dot" style="background: {{ colors[group] }}"></span>{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="generator" content="rio">
<title>{{ title }}</title>
<style>{{ style | safe }}:root { --rare: {{ colors.r }}; }</style>
</head>
<body>
<main>
<header>
<h1>{{ title }}</h1>
<p class="lead">{{ runs | length }} detector{{ "s" if runs | length != 1 }}, trained on the same images
{%- if runs | length > 1 %} and alike but for the settings listed below{% endif %}: how well does each find
the categories that it has hardly seen?</p>
<div class="tiles">
{% for tile in tiles %}
  <div class="tile">
    <span class="name">{{ tile.name }}</span>
    <span class="small">resampled: {{ tile.description }}</span>
    <b>{{ tile.rare }}</b>
    <span class="small">AP on rare categories · {{ tile.all }} on all</span>
  </div>
{% endfor %}
</div>
<p class="quiet">Average precision (AP) of boxes on the validation images, in percent: 0 finds nothing,
100 is perfect.</p>
{% if synthetic %}
<p class="note"><strong>Synthetic data.</strong> The images were drawn by a program: coloured shapes on
textured ground, with a long tail built in. They let everything run on a laptop within minutes. What is seen
here holds for this data set and this seed; it says nothing about photographs.</p>
{% endif %}
</header>

<section>
<h2>The data has a long tail</h2>
<p>{{ data.train_images }} training images show {{ data.objects }} objects of {{ data.categories }}
categories; the detectors are judged on {{ data.val_images }} others. A category is <em>rare</em> if at most
10 training images hold it, <em>common</em> up to 100, <em>frequent</em> beyond. These are the groups of the
LVIS benchmark.</p>
<div class="scroll"><table>
<thead><tr>
  <th>Group</th><th>Categories</th><th>Images with one</th><th>Objects</th><th>Share of objects</th>
</tr></thead>
<tbody>
{% for row in data.rows %}
<tr>
  <td>{{ dot(row.group) }}{{ group_names[row.group] }}</td>
  <td>{{ row.categories }}</td><td>{{ row.images }}</td><td>{{ row.objects }}</td><td>{{ row.share }}</td>
</tr>
{% endfor %}
</tbody></table></div>
{% if data.counts %}
{{ figure(data.counts, "Many categories, few objects: the share of the categories, and of the annotated
objects, that each group has.") }}
{% endif %}
{{ figure(data.tail, "Training images of every category, most frequent first. The vertical axis is
logarithmic: each line is ten times the one below.") }}
</section>

{% if balance %}
<section>
<h2>Image level, object level</h2>
<p>There are two places to help a rare category. At the <strong>image level</strong>, images that hold it are
shown more often (repeat factor sampling, RFS). That evens out the images, but every such image also holds
frequent objects, which are repeated along. At the <strong>object level</strong>, a memory bank keeps the
features of rare objects and feeds them to the classifier again whenever their class turns up (replay), and
nothing else is repeated.</p>
<p>The figure shows what training is expected to see in one pass over the data, by level: images that hold a
class, objects in them, and regions of interest (RoIs), which are what the classifier is trained on. Replay
counts as RoIs.</p>
{{ figure(balance.figure, "Effective classes: how many equally frequent classes would be as varied, out of "
~ balance.classes ~ ".") }}
<p class="small">Images and objects are exact expectations. RoIs are approximate: an object gets about
{% if balance.measured %}
{{ balance.measured }} foreground RoIs, the mean that these runs logged,
{% else %}
8 foreground RoIs, an assumption,
{% endif %}
and replay takes a step's images as drawn independently and the bank as full.
{% for arm, ratio in balance.replay.items() %}
Measured in the run {{ arm }}: {{ ratio }} replayed rows for every foreground RoI.
{% endfor %}
</p>
<details><summary>The numbers</summary>
<div class="scroll"><table>
<thead><tr>
  <th>Arm</th><th class="text">Level</th><th>Rare</th><th>Common</th><th>Frequent</th>
  <th>Gini</th><th>Normalised entropy</th><th>Effective classes</th><th>Max / min</th>
</tr></thead>
<tbody>
{% for row in balance.rows %}
<tr>
  <td>{{ row.arm }}</td><td class="text">{{ row.level }}</td>
  {% for cell in row.shares + row.measures %}
  <td>{{ cell }}</td>
  {% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
<p class="small">Gini: 0 is even, 1 is all in one class. Normalised entropy: 1 is even. Max / min: the most
seen class over the least seen.</p>
</details>
</section>
{% endif %}

<section>
<h2>Average precision</h2>
<p>AP over all categories, and over the rare (APr), common (APc) and frequent (APf) ones alone, by the LVIS
protocol, in percent.{% if runs | length > 1 %} The best value of a column is bold.{% endif %}</p>
<div class="pair">
{% for section in results %}
{{ figure(section.figure, "") }}
{% endfor %}
</div>
{% for section in results %}
<h3>{{ section.name | capitalize }}</h3>
<div class="scroll"><table>
<thead><tr>
  <th>Arm</th><th class="text">What is resampled</th>
  <th>AP</th><th>{{ dot("r") }}APr</th><th>{{ dot("c") }}APc</th><th>{{ dot("f") }}APf</th>
</tr></thead>
<tbody>
{% for row in section.rows %}
<tr>
  <td>{{ row.arm }}</td><td class="text">{{ row.description }}</td>
  {% for cell in row.cells %}
  <td{% if cell.best %} class="best"{% endif %}>{{ cell.text }}</td>
  {% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
<p class="note">
{% if seeds | length == 1 %}
One training run an arm, with one seed ({{ seeds[0] }}).
{% else %}
Runs with the seeds {{ seeds | join(", ") }}.
{% endif %}
APr rests on few categories and moves by points from seed to seed: repeat with other seeds before reading
much into small differences.</p>
<details><summary>Every category</summary>
<div class="scroll"><table>
<thead><tr>
  <th>Category</th><th>Training images</th>
  {% for run in runs %}
  <th>{{ run.name }}</th>
  {% endfor %}
</tr></thead>
<tbody>
{% for row in categories %}
<tr>
  <td>{{ dot(row.group) }}{{ row.name }}</td><td>{{ "{:,}".format(row.images) }}</td>
  {% for cell in row.cells %}
  <td>{{ cell }}</td>
  {% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
<p class="small">AP of boxes, percent; rarest first. – : not in the validation images.</p>
</details>
</section>

<section>
<h2>What the detectors see</h2>
<p>Validation images, those with rare categories first, chosen by their ground truth alone and not by who does
well on them. Predictions with a score of at least {{ picture_score }} are drawn.
{% for group in group_names %}
<span class="tag">{{ dot(group) }}{{ group_names[group] }}</span>
{% endfor %}
</p>
{% for picture in pictures %}
<div class="picture">
<p class="small">
{% for name, group in picture.names %}
<span class="tag">{{ dot(group) }}{{ name }}</span>
{% endfor %}
</p>
{% if picture.missing %}
<p class="note">The image {{ picture.file }} could not be opened ({{ picture.missing }}).</p>
{% endif %}
<div class="panels">
{% for panel in picture.panels %}
  <div>
    <div class="title">{{ panel.title }} <small>{{ panel.note }}</small></div>
    <img src="{{ panel.uri }}" alt="{{ panel.title }} in {{ picture.file }}: {{ panel.note }}">
  </div>
{% endfor %}
</div>
</div>
{% else %}
<p class="quiet">No validation image holds an object.</p>
{% endfor %}
</section>

<section>
<h2>How they were trained</h2>
<div class="trio">
{% for curve in training if curve %}
{{ figure(curve, curve.name ~ ": losses over iterations") }}
{% endfor %}
</div>
<div class="scroll"><table>
<thead><tr>
  <th></th>
  {% for run in runs %}
  <th class="text">{{ run.name }}</th>
  {% endfor %}
</tr></thead>
<tbody>
{% for name, cells in settings %}
<tr>
  <td>{{ name }}</td>
  {% for cell in cells %}
  <td class="text">{{ cell }}</td>
  {% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
<p class="small">
{% for name, version in versions.items() %}
{{ name }} {{ version }}{{ " · " if not loop.last }}
{% endfor %}
</p>
</section>

<section>
<h2>What to open next</h2>
<p>Every run folder holds <code>config.yaml</code> (every setting), <code>log.txt</code>,
<code>metrics.json</code>, <code>evaluation.json</code> (all the numbers, by category) and
<code>instances_results.json</code> (every prediction). Beside this page:</p>
<ul>
{% for name, folder in folders.items() %}
<li>{{ name }}: <code>{{ folder }}</code></li>
{% endfor %}
</ul>
<p>From the folder of this page: curves in the browser, predictions on your own pictures, training on your
own data.</p>
<pre>tensorboard --logdir {{ logdir }}
python -m rio predict --help
python -m rio train --help</pre>
<p>The README has the commands for GPUs, for LVIS and for a data set of your own; the notebooks take these
results apart.</p>
<footer class="quiet">Written on {{ written }} by rio.</footer>
</section>
</main>
</body>
</html>
"""
