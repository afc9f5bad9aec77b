"""Weights into models; evaluation on the test sets; one image in, its detections out."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from functools import partial

import msgspec
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.structures import Instances
from detectron2.utils import comm

import rio.roi_heads  # noqa: F401  registers its modules with detectron2
from rio.data import names as datasets
from rio.data.annotations import Annotations, check_same_categories
from rio.data.files import write_atomically
from rio.engine import backbone, records
from rio.engine.checkpoints import is_bank
from rio.engine.errors import OUT_OF_MEMORY, TrainingError, own_words
from rio.engine.loader import Mapper, load_image
from rio.engine.setup import make_folder, training_annotations
from rio.engine.weights import CheckpointError, load_weights
from rio.results.evaluation import Evaluation, evaluate

logger = logging.getLogger(__name__)


def take_statistics_of_first_rank(model: torch.nn.Module) -> None:
    """Give all ranks the first one's batch norm statistics: the model that is evaluated is the one saved.

    Each rank's are of its own images (the training itself reads only the batch's). The bank is not touched.
    """
    if comm.get_world_size() == 1:
        return
    for name, buffer in model.named_buffers():
        if not is_bank(name):
            torch.distributed.broadcast(buffer, src=0)


def load_initial_weights(cfg: CfgNode, model: torch.nn.Module) -> None:
    """Load MODEL.WEIGHTS into a new model: a backbone's, detectron2's, the reference's, ours; "" is none."""
    if not cfg.MODEL.WEIGHTS:
        logger.info("MODEL.WEIGHTS is empty: training starts from random weights.")
        return
    found = backbone.resolve_weights(cfg.MODEL.WEIGHTS)
    if isinstance(found, dict):
        backbone.load_resolved(model, found)
        logger.info("Loaded the backbone's weights %s", cfg.MODEL.WEIGHTS)
    else:
        load_weights(model, found)


class ResultsCollector(DatasetEvaluator):
    """Gathers detections as LVIS/COCO result records, from all processes, in the order of the data set.

    Args:
        annotations: the test set; its categories are the training set's.
    """

    def __init__(self, annotations: Annotations):
        self._order = {int(image_id): i for i, image_id in enumerate(annotations.image_ids)}
        self._category_ids = annotations.category_ids.tolist()
        self.reset()

    def reset(self) -> None:
        self._results: list[dict] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for one, output in zip(inputs, outputs, strict=True):
            for result in instances_to_coco_json(output["instances"].to("cpu"), one["image_id"]):
                result["category_id"] = self._category_ids[result["category_id"]]
                self._results.append(result)

    def evaluate(self) -> dict[str, list[dict]]:
        gathered = comm.gather(self._results)
        results = [result for part in gathered for result in part]
        return {"results": sorted(results, key=lambda r: self._order[r["image_id"]])}


def evaluate_model(
    cfg: CfgNode, model: torch.nn.Module, *, output_dir: str, backend: str = "hotcoco"
) -> OrderedDict[str, Evaluation]:
    """Run a model over every data set of DATASETS.TEST, write results and scores.

    ``instances_results.json`` and ``evaluation.json`` go to `output_dir`, of further data sets to a folder
    named by their place; with TEST.AUG.ENABLED the augmented results go to ``tta`` below it.

    Args:
        cfg: from `setup_training` or `setup_inference`.
        model: in any mode; it is in the same mode afterwards.
        output_dir: an existing folder or one to be made.
        backend: see ``rio.results.evaluation.evaluate``.

    Returns:
        Name of the data set -> Evaluation; empty on all processes but the first, and without test sets.
    """
    if not len(cfg.DATASETS.TEST):
        logger.info("DATASETS.TEST is empty: no evaluation.")
    train = training_annotations(cfg)
    found: OrderedDict[str, Evaluation] = OrderedDict()
    for place, name in enumerate(cfg.DATASETS.TEST):
        test = datasets.annotations_of(name)
        if train is not None:
            check_same_categories(train, test)
            test = test.with_frequency_of(train)
        folder = output_dir if place == 0 else os.path.join(output_dir, f"test_{place}")
        passes = [("", model)]
        if cfg.TEST.AUG.ENABLED:
            passes.append(("tta", GeneralizedRCNNWithTTA(cfg, model)))
        for part, detector in passes:
            loader = build_detection_test_loader(
                records.records(datasets.annotations_of(name)),
                mapper=partial(load_image, Mapper(cfg, False)),
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            )
            try:
                outcome = inference_on_dataset(detector, loader, ResultsCollector(test))
            except OUT_OF_MEMORY as error:
                raise TrainingError(
                    f"CUDA out of memory in the evaluation on {name} "
                    f"({str(error).strip().splitlines()[0][:160]}). Lower INPUT.MIN_SIZE_TEST (now "
                    f"{cfg.INPUT.MIN_SIZE_TEST}), INPUT.MAX_SIZE_TEST (now {cfg.INPUT.MAX_SIZE_TEST}) or "
                    f"TEST.DETECTIONS_PER_IMAGE (now {cfg.TEST.DETECTIONS_PER_IMAGE}: their masks are "
                    "pasted into the whole image); the trained weights are saved"
                ) from error
            except TrainingError as error:
                raise own_words(error) from error
            if comm.is_main_process():
                where = os.path.join(folder, part)
                evaluation = _score(test, outcome["results"], where, cfg, backend)
                logger.info("%s%s:\n%s", name, f" ({part})" if part else "", evaluation.table())
                found[f"{name} ({part})" if part else name] = evaluation
    return found


def _score(test: Annotations, results: list[dict], folder: str, cfg: CfgNode, backend: str) -> Evaluation:
    make_folder(folder)
    write_atomically(os.path.join(folder, "instances_results.json"), msgspec.json.encode(results))
    started = time.perf_counter()
    kinds = ("bbox", "segm") if cfg.MODEL.MASK_ON and test.has_segmentations else ("bbox",)
    if not results:
        logger.warning("The model found nothing at all in %d images: every AP is 0.", test.num_images)
    evaluation = evaluate(test, results, iou_types=kinds, backend=backend, allow_empty=True)
    evaluation.to_json(os.path.join(folder, "evaluation.json"))
    logger.info("Scored %d detections in %.1f s", len(results), time.perf_counter() - started)
    return evaluation


def load_model(cfg: CfgNode, weights: str | None = None) -> torch.nn.Module:
    """A model in evaluation mode with trained weights.

    Args:
        cfg: from `setup_inference`.
        weights: a checkpoint; None takes MODEL.WEIGHTS.

    Raises:
        CheckpointError: no weights are named.
    """
    weights = weights or cfg.MODEL.WEIGHTS
    if not weights:
        raise CheckpointError("weights: expected a checkpoint, found none. Name it by --weights")
    model = build_model(cfg)
    load_weights(model, weights)
    return model.eval()


class Predictor:
    """One image in, its detections out.

    Args:
        cfg: from `setup_inference`.
        weights: a checkpoint; None takes MODEL.WEIGHTS.
    """

    def __init__(self, cfg: CfgNode, weights: str | None = None):
        self.cfg, self.model = cfg, load_model(cfg, weights)
        size = cfg.INPUT.MIN_SIZE_TEST
        self._resize = T.ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """Detect.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            Instances on the CPU, boxes XYXY in pixels of `image`.
        """
        height, width = image.shape[:2]
        source = image if self.cfg.INPUT.FORMAT == "RGB" else image[:, :, ::-1]
        resized = self._resize.get_transform(source).apply_image(source)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1).astype("float32")))
        return self.model([{"image": tensor, "height": height, "width": width}])[0]["instances"].to("cpu")
