"""The comparison as one picture."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from rio import plots
from rio.analysis.distribution import category_table
from rio.analysis.runs import IOU_NAMES
from rio.data.annotations import Annotations
from rio.data.files import write_atomically
from rio.data.images import read_image
from rio.report.page import draw_on
from rio.report.runs import Run, load_runs
from rio.results.objects import objects_of, predictions_of, ranked_examples
from rio.study.result import StudyResult


def write_summary(
    path: str | os.PathLike[str],
    *,
    runs: Mapping[str, str | os.PathLike[str]] | Sequence[Run],
    train: Annotations,
    val: Annotations,
    study: StudyResult | None = None,
) -> Path:
    """Write the comparison as one picture for a slide or a README: the tail, AP by group, two images.

    Args:
        path: ends in .png, .svg or .pdf; replaced at once.
        runs: as in `write_report`; the images show ground truth, the first and the last arm, whose predictions of the
            highest scores are drawn, as many as there are objects.
        train: training set.
        val: validation set, as in `write_report`.
        study: as in `write_report`; its APr against the length of training stands between the two.

    Returns:
        The path written.

    Raises:
        ReportError, FileNotFoundError, rio.results.reading.ResultsError: as `write_report`.
    """
    path, loaded, panels = Path(path), load_runs(runs, val), []
    for index in ranked_examples(val, count=2):  # chosen on ground truth only, as the report's are
        pixels = read_image(val.image_path(index))
        panels.append(("ground truth", pixels, truth := objects_of(val, index)))
        for run in (*loaded[:1], *loaded[1:][-1:]):
            found = predictions_of(run.results, val, index, score_threshold=run.threshold, most=len(truth))
            panels.append((f"{run.name}: its {len(found)} best", pixels, found))
    with plots.style():
        figure = plt.figure(figsize=(15 if study else 14, 5.6), layout="constrained")
        try:
            above, below = figure.subfigures(2, 1, height_ratios=(1.0, 0.95))
            curves = pd.DataFrame() if study is None else study.curves()
            tail, *between, ap = (
                above.subplots(1, 3, width_ratios=(0.8, 1, 1.4)) if len(curves) else above.subplots(1, 2)
            )
            for ax in between:
                plots.study_curves(curves, ax, metric="APr")
            plots.sorted_tail(category_table(train), tail)
            tail.set_xticks([])  # the names would take half the picture; the report has them
            tail.set_xlabel(f"{train.num_classes} categories")
            table = pd.DataFrame([{"arm": run.name} | run.evaluation.metrics["bbox"] for run in loaded])
            table.attrs["kind"] = IOU_NAMES["bbox"]
            plots.ap_by_group(table, ap)
            for ax, (name, pixels, objects) in zip(below.subplots(1, len(panels)), panels, strict=True):
                ax.set(xlim=(-0.5, pixels.shape[1] - 0.5), ylim=(pixels.shape[0] - 0.5, -0.5))
                draw_on(ax, pixels, objects, font_size=5.5)
                ax.set_title(name, fontsize=9)
            write_atomically(path, partial(figure.savefig, format=path.suffix[1:] or "png", dpi=160))
        finally:
            plt.close(figure)
    return path
