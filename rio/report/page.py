"""The page: data, balance, AP, pictures and settings of a comparison, in one HTML file that fetches nothing.

Every figure comes twice, for light and for dark pages. All that stems from files (names, settings, titles) is escaped.
"""

import base64
import contextlib
import datetime
import hashlib
import io
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rio import __version__, plots
from rio.analysis import balance
from rio.analysis.distribution import category_table, image_class_pairs
from rio.analysis.runs import IOU_NAMES
from rio.data.annotations import GROUP_NAMES, Annotations
from rio.data.files import write_atomically
from rio.data.images import read_image
from rio.plots.parts import counted
from rio.report.runs import Run, load_runs, rois_per_instance
from rio.results.errors import verdicts, verdicts_of_objects
from rio.results.evaluation import GROUP_METRICS
from rio.results.objects import Objects, objects_of, predictions_of, ranked_examples
from rio.results.thresholds import RULE
from rio.study.result import StudyResult

# Classes of the pictures' objects: groups, and whether they are right.
_TONES = plots.COLORS | {"right": plots.KIND_COLORS["correct"], "wrong": plots.KIND_COLORS["classification"]}
_TONES |= {"open": plots.KIND_COLORS["missed"]}
PACKAGES = ("torch", "torchvision", "detectron2", "numpy", "hotcoco", "matplotlib")
PICTURES = 6
PICTURE_PIXELS = 1280  # of a picture at most; there is room to zoom in


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    runs: Mapping[str, str | os.PathLike[str]] | Sequence[Run],
    train: Annotations,
    val: Annotations,
    study: StudyResult | None = None,
) -> Path:
    """Write the report of one or several finished runs on the same data.

    Args:
        path: the HTML file; its folder is made if missing, and an older report is replaced at once.
        title: heading of the page.
        runs: name of the arm -> its run folder (config.yaml, evaluation.json, instances_results.json, metrics.json),
            in the order to show them; weakest first reads best. Or what `rio.report.runs.load_runs` made of these.
        train: training set, for counts and balance.
        val: validation set, for the pictures; with its image folder and the training set's frequency groups.
        study: shown too, if its runs were evaluated while they trained: AP against the length of training.

    Returns:
        The path written.

    Raises:
        ReportError: no runs, a config.yaml or metrics.json that cannot be read.
        FileNotFoundError: a run folder lacks a file; names it.
        rio.results.reading.ResultsError: results of another data set.
    """
    path, loaded = Path(path), load_runs(runs, val)
    trained_on = [name for run in loaded for name in run.folder.datasets("TRAIN")]
    settings = [run.settings() for run in loaded]
    rows = [(name, [of[name] for of in settings]) for name in settings[0]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = _number
    script = plots.ZOOM_SCRIPT + Path(__file__).with_name("pictures.js").read_text("utf-8")
    page = environment.get_template("page.html.j2").render(
        **{"title": title, "runs": loaded, "train": train, "val": val, "rule": RULE},
        **{"colors": plots.COLORS, "group_names": GROUP_NAMES, "level_names": plots.LEVEL_NAMES},
        # The page's policy runs this script and no other.
        script=markupsafe.Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        tones={kind: (color, plots.ink_on(color)) for kind, color in _TONES.items()},
        **_data(train),
        synthetic=bool(trained_on) and all(name.startswith("shapes_") for name in trained_on),
        balance=_balance(train, loaded),
        results=_results(loaded),
        on_features=all(run.rio("FEATURES") for run in loaded),
        curves=_curves(study),
        pictures=_pictures(loaded, val),
        training=[curve for run in loaded if (curve := _losses(run))],
        categories=_categories(loaded, train),
        settings=[(name, cells) for name, cells in rows if any(cell is not None for cell in cells)],
        versions=_versions(),
        seeds=sorted({str(run.folder.setting("SEED", "?")) for run in loaded}),
        # Both can be copied elsewhere, and no machine's paths are told.
        relative=lambda folder: os.path.relpath(Path(folder).resolve(), path.parent.resolve()),
        common=os.path.commonpath([run.folder.path.resolve() for run in loaded]),
        written=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z").lstrip("0"),
    )
    write_atomically(path, page.lstrip().encode())
    return path


def _number(value: float | None, digits: int = 1) -> str:
    if value is None or pd.isna(value):
        return "–"
    return "∞" if np.isinf(value) else f"{value:,.{digits}f}"


def _versions() -> dict[str, str]:
    """Versions at the time of writing, read from the installed packages; none is imported for it."""
    found = {"rio": __version__, "Python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _uri(figure: Figure, **options: Any) -> str:
    figure.savefig(buffer := io.BytesIO(), format="svg", **options)
    return _data_uri(buffer, "svg+xml")


def _data_uri(buffer: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _figure(
    draw: Callable[..., Axes], *table: Any, alt: str, size: tuple[float, float] | None = None, **options: Any
) -> dict[str, str]:
    """A figure of `rio.plots` as two SVG data URIs, for light and for dark pages."""
    uris = {"alt": alt}
    for mode in ("light", "dark"):
        with plots.style(dark=mode == "dark"):
            ax = None if size is None else plt.subplots(figsize=size, layout="constrained")[1]
            figure = draw(*table, ax, **options).figure
            # Without a date or creator line the same runs give the same report.
            nameless = {"metadata": {"Date": None, "Creator": None}, "transparent": True}
            uris[mode] = _uri(figure, bbox_inches="tight", pad_inches=0.03, **nameless)
            plt.close(figure)
    return uris


def _data(train: Annotations) -> dict[str, Any]:
    table = category_table(train)
    image, classes = image_class_pairs(train)
    rows = table.groupby("frequency")["instance_count"].agg(["size", "sum"]).reindex(list(GROUP_NAMES), fill_value=0)
    rows.columns = ["categories", "objects"]
    rows["images"] = [len(np.unique(image[train.frequency[classes] == group])) for group in rows.index]
    rows["share"] = 100 * rows["objects"] / max(rows["objects"].sum(), 1)
    share, tail = (
        "Share of categories and of objects by frequency group.",
        "Images of every category, sorted, on a log scale.",
    )
    counts = _figure(plots.count_by_group, table, alt=share) if rows["objects"].any() else None
    return {"groups": rows.to_dict("index"), "counts": counts, "tail": _figure(plots.sorted_tail, table, alt=tail)}


def _balance(train: Annotations, runs: Sequence[Run]) -> dict[str, Any] | None:
    """What training saw under each arm whose config has MODEL.RIO."""
    measured = rois_per_instance(train, runs)
    known = [run for run in runs if run.rio("SAMPLER") is not None and train.instance_count.any()]
    if not known:
        return None
    table = balance.compare({run.name: run.exposures(train, measured) for run in known})
    figure = _figure(plots.balance_by_group, table, alt="Share of rare, common and frequent classes at three levels.")
    return {"figure": figure, "rows": table.to_dict("records"), "measured": measured}


def _results(runs: Sequence[Run]) -> list[dict[str, Any]]:
    sections = []
    for kind, name in IOU_NAMES.items():
        having = [run for run in runs if kind in run.evaluation.metrics]
        if having:
            metrics = [{m: run.evaluation.metrics[kind][m] for m in GROUP_METRICS} for run in having]
            table = pd.DataFrame(metrics).assign(arm=[run.name for run in having])
            table.attrs["kind"] = name
            alt, size = f"{name} by frequency group, one bar per arm.", (max(4.4, 2.0 + 0.95 * len(table)), 2.8)
            figure = _figure(plots.ap_by_group, table, alt=alt, size=size)
            # The best of a column stands out, unless all are equal.
            best = {m: table[m].max() if table[m].nunique() > 1 else None for m in GROUP_METRICS}
            rows = table.assign(description=[run.description for run in having]).to_dict("records")
            sections.append({"name": name, "figure": figure, "best": best, "rows": rows})
    return sections


def _curves(study: StudyResult | None) -> dict[str, Any] | None:
    """AP of a study's arms against the length of training; None where they were evaluated at the end only."""
    if study is None or (table := study.curves())["epoch"].nunique() < 3:
        return None
    alt = "{} of every arm against epochs of training."
    means = table.drop(columns="seed").groupby(["arm", "epoch"], sort=False, as_index=False).mean()
    first, last = (means.groupby("arm", sort=False).nth(i).set_index("arm") for i in (0, -1))
    figures = []
    for metric, what in (("APr", "rare categories"), ("AP", "all categories")):
        figures.append(_figure(plots.study_curves, table, alt=alt.format(metric), metric=metric, size=(5.2, 3.4)))
        if len(end := last[metric].dropna().sort_values()):
            least, most = f"{end.iloc[0]:.1f} ({end.index[0]})", f"{end.iloc[-1]:.1f} ({end.index[-1]})"
            figures[-1]["claim"] = f"{what.capitalize()}: at the end of training from {least} to {most}."
    rows = first.add_suffix("_first").join(last.add_suffix("_last")).reset_index().to_dict("records")
    return {"figures": figures, "rows": rows, "seeds": table["seed"].nunique(), "categories": len(study.categories)}


def _pictures(runs: Sequence[Run], val: Annotations) -> list[dict[str, Any]]:
    pictures, predicted = [], [verdicts(run.errors, len(run.results)) for run in runs]
    reached = np.array([verdicts_of_objects(val, run.errors, run.threshold) for run in runs])
    by_all = np.where((reached == reached[0]).all(axis=0), reached[0], "open")
    for index in ranked_examples(val, count=PICTURES):
        truth = objects_of(val, index)
        order = sorted(range(len(truth)), key=lambda i, groups=truth.groups: plots.GROUPS.index(groups[i]))
        names = dict.fromkeys((truth.names[i], str(truth.groups[i])) for i in order)
        picture = {"file": val.file_names[index], "names": list(names), "panels": [], "missing": None}
        pictures.append(picture)
        try:
            pixels = read_image(val.image_path(index), max_side=PICTURE_PIXELS)
        except (OSError, ValueError) as error:
            picture["missing"] = type(error.__cause__ or error).__name__
            continue
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
        picture |= {"uri": _data_uri(buffer, "jpeg"), "height": truth.size[0], "width": truth.size[1]}
        shapes, note = _shapes(truth, by_all), counted(len(truth), "object")
        picture["panels"] = [{"title": "Ground truth", "note": note, "objects": shapes, "truth": []}]
        for run, own, missed in zip(runs, predicted, reached, strict=True):
            found = predictions_of(run.results, val, index, score_threshold=run.threshold)
            note = f"{counted(len(found), 'prediction')} from {run.threshold:.2f} on"
            panel = {"title": run.name, "note": note, "objects": _shapes(found, own)}
            under = [shape | {"verdict": missed[truth.indices[shape["index"]]]} for shape in shapes]
            picture["panels"].append(panel | {"truth": under})
    return pictures


def _shapes(objects: Objects, verdict: np.ndarray) -> list[dict[str, Any]]:
    """Objects as the page draws them; verdict: of all objects or predictions of the data set."""
    of = objects
    shapes = plots.object_shapes(of.size, of.boxes, of.segmentations, of.names, of.groups, of.scores)
    return [s | {"group": str(of.groups[i]), "verdict": verdict[of.indices[i]]} for s in shapes for i in [s["index"]]]


def draw_on(ax: Axes, pixels: np.ndarray, objects: Objects, *, font_size: float) -> None:
    """The image with its objects."""
    of = objects
    plots.draw_objects(ax, pixels, of.boxes, of.segmentations, of.names, of.groups, of.scores, font_size=font_size)


def _losses(run: Run) -> dict[str, str] | None:
    losses = run.metrics.filter(regex="^(total_)?loss")
    if losses.isna().all(axis=None):
        return None
    alt = f"Losses of {run.name} over the iterations of training."
    return {"name": run.name} | _figure(plots.loss_curves, run.metrics, alt=alt, size=(3.5, 2.5))


def _categories(runs: Sequence[Run], train: Annotations) -> list[dict[str, Any]]:
    """Box AP of every category, rarest first; counts are the training set's."""
    first = runs[0].evaluation.per_category.set_index("category_id")[["name", "frequency"]]
    images = pd.Series(train.image_count, train.category_ids).reindex(first.index, fill_value=0)
    columns = [run.evaluation.per_category.set_index("category_id")["AP_bbox"].reindex(first.index) for run in runs]
    table = first.assign(images=images, ap=np.stack(columns, axis=1).tolist())
    return table.sort_values(["images", "name"]).to_dict("records")
