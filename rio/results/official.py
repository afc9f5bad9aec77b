"""The official `lvis` package on the same columns: slow, and the measure of everything else (`backend="lvis"`)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import numpy as np

from rio.data.annotations import Annotations
from rio.results.federated import JudgedPairs, keys_to_lists, records
from rio.results.matching import segmentation_of
from rio.results.reading import Results


def lvis_precision(
    annotations: Annotations, judged: JudgedPairs, results: Results, iou_type: str, max_dets: int
) -> np.ndarray:
    """The precision array (T, R, K, area ranges); the package caps, filters and matches by itself."""
    try:
        import lvis
    except ImportError as error:
        raise ImportError("backend='lvis' needs the official package: pip install lvis==0.5.3") from error
    predicted = np.unique(judged.keys(results.image_index, results.class_id))
    negative = keys_to_lists(annotations, predicted if judged.negative is None else judged.negative)
    images, categories = records(annotations, negative, keys_to_lists(annotations, judged.not_exhaustive))
    ground_truth = lvis.LVIS.__new__(lvis.LVIS)  # its constructor takes a path only
    ground_truth.logger = logging.getLogger("lvis.quiet")
    ground_truth.dataset = {
        "images": images,
        "categories": categories,
        "annotations": [
            {
                "id": number,
                "image_id": int(annotations.annotation_image[a]) + 1,
                "category_id": int(annotations.annotation_class[a]) + 1,
                "bbox": annotations.boxes[a].tolist(),
                "area": float(annotations.areas[a]),
                **({"segmentation": segmentation_of(annotations, a)} if iou_type == "segm" else {}),
            }
            for number, a in enumerate(np.flatnonzero(judged.ground_truth).tolist(), 1)
        ],
    }
    ground_truth._create_index()
    as_boxes = iou_type == "bbox" and results.has_boxes
    shapes = results.boxes.tolist() if as_boxes else results.rles
    columns = (results.image_index.tolist(), results.class_id.tolist(), results.scores.tolist(), shapes)
    predictions = [
        {"image_id": i + 1, "category_id": k + 1, "score": score, "bbox" if as_boxes else "segmentation": shape}
        for i, k, score, shape in zip(*columns, strict=True)
    ]
    with numpy_float():
        found = lvis.LVISResults(ground_truth, predictions, max_dets=max_dets)
        evaluator = lvis.LVISEval(ground_truth, found, iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"]


@contextlib.contextmanager
def numpy_float() -> Iterator[None]:
    """lvis 0.5.3 writes `np.float`, which NumPy 1.24 removed: lends it the name for as long as it runs."""
    if "float" in vars(np):
        yield
        return
    np.float = float
    try:
        yield
    finally:
        del np.float
