"""Calibrations side by side: a classifier's scores on stored proposals once, corrected by every method and strength."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from tqdm.auto import tqdm

from rio.data.annotations import Annotations, check_same_categories
from rio.data.errors import check
from rio.data.names import annotations_of
from rio.engine.feature_store import FeatureError
from rio.engine.inference import load_model
from rio.engine.setup import training_annotations
from rio.losses import build_calibration
from rio.losses.calibration import STRENGTHS
from rio.results.evaluation import GROUP_METRICS, Evaluation, evaluate
from rio.results.reading import Results

logger = logging.getLogger(__name__)


def sweep(
    cfg: CfgNode, weights: str, tried: Sequence[tuple[str, float]], *, protocol: str = "lvis"
) -> list[tuple[str, float, Evaluation]]:
    """Box AP of every calibration on the first of DATASETS.TEST; nothing is written.

    `weights` are a checkpoint of a training on features, `cfg` its config from `rio.engine.setup.setup_inference`;
    `tried` holds (method, strength) of `rio.losses.calibration.Calibration`, a negative strength being the method's
    own. Returns (method, strength, its evaluation), "none" first, then in the order of `tried`.

    Raises:
        FeatureError: weights that were not trained on features, or features that lack the set.
        LossError, CheckpointError: an unknown method; weights that do not fit.
    """
    fix = "keep its features by python -m rio features, and train the classifier on them (MODEL.RIO.FEATURES)"
    expected, found = "a classifier trained on frozen features", "a detector's config"
    check(cfg.MODEL.RIO.FEATURES, weights, expected, found, fix, FeatureError)
    tried = [(method, STRENGTHS.get(method, one) if one < 0 else one) for method, one in tried]
    tried = list(dict.fromkeys([("none", 0.0), *tried]))
    name, model, train = cfg.DATASETS.TEST[0], load_model(cfg, weights), training_annotations(cfg)
    test = annotations_of(name)
    if train is not None:
        check_same_categories(train, test)
        test = test.with_frequency_of(train)
    predictor, found = model.roi_heads.box_predictor, [_Columns() for _ in tried]
    ways = []
    for method, strength in tried:
        node = dict(cfg.MODEL.RIO) | {"CALIBRATION": method, "CALIBRATION_STRENGTH": float(strength)}
        way = build_calibration(node, predictor.num_classes)
        ways.append(way if way is None else way.to(model.device))
    first = 0
    with torch.no_grad():
        for batch in tqdm(model.test_images(name), desc=name, unit="batch", disable=None):
            predicted = model.predict(batch)
            for predictor.calibration, columns in zip(ways, found, strict=True):
                columns.add(first, model.detect(batch, *predicted))
            first += len(batch)
    return [
        (*one, evaluate(test, columns.results(test), iou_types=("bbox",), protocol=protocol, allow_empty=True))
        for one, columns in zip(tried, found, strict=True)
    ]


class _Columns:
    """Detections as columns: those of twenty strengths side by side would be gigabytes of records."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, ...]] = [
            (np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0), np.empty((0, 4)))
        ]

    def add(self, first: int, detections: list[dict[str, Any]]) -> None:
        """Of the images from index `first` on, which the loader gives in the order of the data set."""
        for image, one in enumerate(detections, first):
            own = one["instances"].to("cpu")
            boxes = own.pred_boxes.tensor.numpy().copy()
            boxes[:, 2:] -= boxes[:, :2]
            index = np.full(len(own), image, np.int32)
            columns = own.pred_classes.numpy().astype(np.int32), own.scores.numpy().astype(float), boxes.astype(float)
            self._parts.append((index, *columns))

    def results(self, test: Annotations) -> Results:
        columns = [np.concatenate(column) for column in zip(*self._parts, strict=True)]
        return Results("results", *columns, True, None, None, test.num_images)


def format_sweep(rows: Sequence[tuple[str, float, Evaluation]], name: str) -> str:
    """A line for each calibration, * at the best AP of its method, and the best of all in a sentence."""
    values = [[evaluation.metrics["bbox"][m] for m in GROUP_METRICS] for _, _, evaluation in rows]
    best = {method: max((v[0], -i) for i, v in enumerate(values) if rows[i][0] == method) for method, _, _ in rows}
    lines = ["calibration".ljust(24) + "".join(metric.rjust(8) for metric in GROUP_METRICS)]
    for i, ((method, strength, _), own) in enumerate(zip(rows, values, strict=True)):
        label = method if method == "none" else f"{method}={strength:g}"
        cells = "".join(("-" if value != value else f"{value:.2f}").rjust(8) for value in own)
        lines.append(label.ljust(24) + cells + (" *" if best[method] == (own[0], -i) and method != "none" else ""))
    top, place = max(best.values())
    method, strength, _ = rows[-place]
    which = "no calibration" if method == "none" else f"--calibration {method}={strength:g}"
    gain = "" if method == "none" else f", {top - values[0][0]:+.2f}"
    return "\n".join([*lines, f"* best of its method. Best on {name}: {which} (box AP {top:.2f}{gain})."])
