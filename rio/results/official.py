"""Packages that take records, on the same columns: the official `lvis` and pycocotools, the measure of everything else.

hotcoco can stand in for pycocotools, equal to the bit and some ten times as fast, so it is what "coco" runs on.
"""

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from rio.data.annotations import Annotations
from rio.results.boundary import CocoBoundaryEval
from rio.results.federated import JudgedPairs, keys_to_lists, records
from rio.results.matching import precision_without_predictions, segmentation_of
from rio.results.reading import Results


def lvis_precision(
    annotations: Annotations, judged: JudgedPairs, results: Results, rows: np.ndarray, iou_type: str, max_dets: int
) -> np.ndarray:
    """The precision array (T, R, K, area ranges) of some rows; the package caps, filters and matches by itself."""
    try:
        import lvis
    except ImportError as error:
        raise ImportError("backend='lvis' needs the official package: pip install lvis==0.5.3") from error
    predicted = np.unique(judged.keys(results.image_index, results.class_id))
    negative = keys_to_lists(annotations, predicted if judged.negative is None else judged.negative)
    images, categories = records(annotations, negative, keys_to_lists(annotations, judged.not_exhaustive))
    objects = _objects(annotations, np.flatnonzero(judged.ground_truth), iou_type)
    ground_truth = lvis.LVIS.__new__(lvis.LVIS)  # its constructor takes a path only
    ground_truth.logger = logging.getLogger("lvis.quiet")
    ground_truth.dataset = {"images": images, "categories": categories, "annotations": objects}
    ground_truth._create_index()
    with numpy_float():
        found = lvis.LVISResults(ground_truth, _predictions(results, rows, iou_type), max_dets=max_dets)
        evaluator = lvis.LVISEval(ground_truth, found, iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"]


def coco_precision(
    annotations: Annotations, results: Results, iou_type: str, max_dets: int, backend: str
) -> np.ndarray:
    """The precision array (T, R, K, area ranges) of COCO's protocol; the package caps and matches by itself.

    Every category is verified in every image. Any number of predictions may lie in a crowd region; they count neither
    as right nor as wrong.
    """
    objects = ~annotations.iscrowd
    if not len(results) or not objects.any():
        return precision_without_predictions(annotations, objects)
    if backend == "hotcoco" and iou_type != "boundary":
        from hotcoco import COCO, COCOeval
    else:  # brings in matplotlib
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    nothing: list[list[int]] = [[]] * annotations.num_images
    images, categories = records(annotations, nothing, nothing)
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        truth = _objects(annotations, np.arange(annotations.num_annotations), iou_type)
        ground_truth.dataset = {"images": images, "categories": categories, "annotations": truth}
        ground_truth.createIndex()
        found = ground_truth.loadRes(_predictions(results, np.arange(len(results)), iou_type))
        evaluator = (
            CocoBoundaryEval(ground_truth, found) if iou_type == "boundary" else COCOeval(ground_truth, found, iou_type)
        )
        evaluator.params.maxDets = [max_dets if max_dets != -1 else len(results)]
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"][..., 0]


def _objects(annotations: Annotations, rows: np.ndarray, iou_type: str) -> list[dict[str, Any]]:
    """Annotations as records, with ids from 1: pycocotools and `lvis` take an id of 0 for "not matched"."""
    a, found = annotations, []
    for number, row in enumerate(rows.tolist(), 1):
        record = {
            "id": number,
            "image_id": int(a.annotation_image[row]) + 1,
            "category_id": int(a.annotation_class[row]) + 1,
            "bbox": a.boxes[row].tolist(),
            "area": float(a.areas[row]),
            "iscrowd": int(a.iscrowd[row]),  # which `lvis` does not know
        }
        found.append(record | ({"segmentation": segmentation_of(a, row)} if iou_type != "bbox" else {}))
    return found


def _predictions(results: Results, rows: np.ndarray, iou_type: str) -> list[dict[str, Any]]:
    """Predictions as records, for masks without the box: both packages would take its area for the mask's."""
    as_boxes = iou_type == "bbox" and results.has_boxes
    shapes = results.boxes[rows].tolist() if as_boxes else [results.rles[row] for row in rows.tolist()]
    columns = (values[rows].tolist() for values in (results.image_index, results.class_id, results.scores))
    return [
        {"image_id": i + 1, "category_id": k + 1, "score": score, "bbox" if as_boxes else "segmentation": shape}
        for i, k, score, shape in zip(*columns, shapes, strict=True)
    ]


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
