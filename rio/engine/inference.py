"""Weights into models; a model's detections on the test sets, scored; one image in, its detections out."""

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.structures import Instances
from detectron2.utils import comm

import rio.engine.feature_training
import rio.roi_heads  # noqa: F401  both register their modules with detectron2
from rio.data.annotations import Annotations, check_same_categories
from rio.data.files import write_atomically
from rio.data.images import ImageError
from rio.data.names import annotations_of
from rio.engine.backbone import load_resolved, resolve_weights
from rio.engine.errors import TrainingError, is_out_of_memory, out_of_memory_in_evaluation, own_words
from rio.engine.loader import Mapper
from rio.engine.records import records
from rio.engine.setup import make_folder, setup_inference, training_annotations
from rio.engine.weights import CheckpointError, is_bank, load_weights
from rio.results.evaluation import Evaluation, evaluate

logger = logging.getLogger(__name__)


def load_initial_weights(cfg: CfgNode, model: torch.nn.Module) -> None:
    """Load MODEL.WEIGHTS into a new model: a backbone's, detectron2's, the reference's or ours; "" loads nothing."""
    if not cfg.MODEL.WEIGHTS:
        logger.info("MODEL.WEIGHTS is empty: training starts from random weights.")
        return
    found = resolve_weights(cfg.MODEL.WEIGHTS)
    if isinstance(found, dict):
        load_resolved(model, found)
        logger.info("Loaded the backbone's weights %s", cfg.MODEL.WEIGHTS)
    else:
        load_weights(model, found)


def load_model(cfg: CfgNode, weights: str | None = None) -> torch.nn.Module:
    """A model in evaluation mode with trained weights (None: MODEL.WEIGHTS); `cfg` from `setup_inference`.

    A CheckpointError where no weights are named, or they do not fit.
    """
    weights = weights or cfg.MODEL.WEIGHTS
    if not weights:
        raise CheckpointError("weights: expected a checkpoint, found none. Fix: name it by --weights")
    model = build_model(cfg)
    load_weights(model, weights)
    return model.eval()


def share_first_ranks_statistics(model: torch.nn.Module) -> None:
    """Give all ranks the first one's batch norm statistics, so that the model that is evaluated is the one saved."""
    if comm.get_world_size() > 1:
        for name, buffer in model.named_buffers():
            if not is_bank(name):
                torch.distributed.broadcast(buffer, src=0)


class ResultsCollector(DatasetEvaluator):
    """Gathers detections as LVIS/COCO result records, from all processes, in the order of the data set."""

    def __init__(self, annotations: Annotations):
        self._order = {int(image_id): i for i, image_id in enumerate(annotations.image_ids)}
        self._category_ids = annotations.category_ids.tolist()
        self._texts = {f"{noun}_id": texts for noun, texts in annotations.text_ids.items() if texts}
        self.reset()

    def reset(self) -> None:
        self._results: list[dict] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for one, output in zip(inputs, outputs, strict=True):
            for result in instances_to_coco_json(output["instances"].to("cpu"), one["image_id"]):
                result["category_id"] = self._category_ids[result["category_id"]]
                self._results.append(result)

    def evaluate(self) -> dict[str, list[dict]]:
        results = [result for part in comm.gather(self._results) for result in part]
        results.sort(key=lambda result: self._order[result["image_id"]])
        for key, texts in self._texts.items():  # ids that are text in the annotation file are in results too
            for result in results:
                result[key] = texts.get(result[key], result[key])
        return {"results": results}


def evaluate_model(
    cfg: CfgNode,
    model: torch.nn.Module,
    *,
    output_dir: str,
    iou_types: Sequence[str] | None = None,
    keep_results: bool = True,
    **how: str,
) -> OrderedDict[str, Evaluation]:
    """Run a model over every data set of DATASETS.TEST; write ``instances_results.json`` and ``evaluation.json``.

    Those of further data sets go to ``test_1``, ...; with TEST.AUG.ENABLED the augmented ones to ``tta`` below. The
    model is in the same mode afterwards.

    Args:
        iou_types: see `rio.results.evaluation.evaluate`; None: boxes, and masks where the model and the data have any.
        keep_results: False leaves ``instances_results.json`` out.
        how: backend, protocol: see there. lvis_fixed wants TEST.DETECTIONS_PER_IMAGE -1 (all) or some thousands: what
            it cuts off in an image is lost, and a warning says so.

    Returns:
        Name of the data set -> Evaluation; empty without test sets and on all processes but the first.

    Raises:
        TrainingError: Out of memory, or an image that cannot be loaded.
    """
    if not len(cfg.DATASETS.TEST):
        logger.info("DATASETS.TEST is empty: no evaluation.")
    if how.get("protocol") == "lvis_fixed" and cfg.TEST.DETECTIONS_PER_IMAGE >= 0:
        logger.warning(
            "TEST.DETECTIONS_PER_IMAGE: expected -1 (all) for lvis_fixed, which has no cap per image, found %d: images "
            "with more detections lose the rest. Fix: TEST.DETECTIONS_PER_IMAGE -1, or some thousands to save memory.",
            cfg.TEST.DETECTIONS_PER_IMAGE,
        )
    train, found = training_annotations(cfg), OrderedDict()
    for place, name in enumerate(cfg.DATASETS.TEST):
        test = annotations_of(name)
        if train is not None:
            check_same_categories(train, test)
            test = test.with_frequency_of(train)
        passes = {"": model} | ({"tta": GeneralizedRCNNWithTTA(cfg, model)} if cfg.TEST.AUG.ENABLED else {})
        for part, detector in passes.items():
            results = _detect(cfg, detector, name, test)
            if comm.is_main_process():
                folder = os.path.join(output_dir, f"test_{place}" if place else "", part)
                label = f"{name} ({part})" if part else name
                make_folder(folder)
                if keep_results:
                    write_atomically(os.path.join(folder, "instances_results.json"), msgspec.json.encode(results))
                found[label] = _score(test, results, folder, cfg, iou_types, **how)
                logger.info("%s:\n%s", label, found[label].table())
    return found


def evaluate_by(cfg: CfgNode, protocol: str) -> None:
    """Evaluate a finished run by another protocol than LVIS's; lvis_fixed, which has no cap per image, without one. Its
    ``evaluation.json`` goes to the folder OUTPUT_DIR/PROTOCOL.
    """
    cfg, run = cfg.clone(), cfg.OUTPUT_DIR
    cfg.defrost()
    if protocol == "lvis_fixed":
        cfg.TEST.DETECTIONS_PER_IMAGE = -1
    cfg = setup_inference(cfg)
    model = load_model(cfg, os.path.join(run, "model_final.pth"))
    evaluate_model(cfg, model, output_dir=os.path.join(run, protocol), protocol=protocol, keep_results=False)


def _detect(cfg: CfgNode, model: torch.nn.Module, name: str, test: Annotations) -> list[dict]:
    """Result records of a data set, all of them in the first process."""
    if cfg.MODEL.RIO.FEATURES:
        loader = getattr(model, "module", model).test_images(name)
    else:
        images, workers = records(annotations_of(name)), cfg.DATALOADER.NUM_WORKERS
        loader = build_detection_test_loader(images, mapper=Mapper(cfg, False), num_workers=workers)
    try:
        return inference_on_dataset(model, loader, ResultsCollector(test))["results"]
    except TrainingError as error:
        raise own_words(error) from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise out_of_memory_in_evaluation(cfg, name, error) from error
        raise


def _score(
    test: Annotations, results: list[dict], folder: str, cfg: CfgNode, iou_types: Sequence[str] | None, **how: str
) -> Evaluation:
    if not results:
        logger.warning("The model found nothing at all in %d images: every AP is 0.", test.num_images)
    started = time.perf_counter()
    kinds = iou_types or (("bbox", "segm") if cfg.MODEL.MASK_ON and test.has_segmentations else ("bbox",))
    evaluation = evaluate(test, results, iou_types=kinds, allow_empty=True, **how)
    evaluation.to_json(os.path.join(folder, "evaluation.json"))
    logger.info("Scored %d detections in %.1f s", len(results), time.perf_counter() - started)
    return evaluation


class Predictor(DefaultPredictor):
    """One image in, its detections out; arguments as for `load_model`."""

    def __init__(self, cfg: CfgNode, weights: str | None = None):
        self.cfg, self.model, self.input_format = cfg, load_model(cfg, weights), cfg.INPUT.FORMAT
        self.aug = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, image: np.ndarray, name: str = "") -> Instances:
        """Detections on an (H, W, 3) uint8 RGB image: Instances on the CPU, boxes XYXY in its pixels.

        An ImageError, with the file's `name`, where the image is so thin that nothing is left of it once it is resized.
        """
        height, width = image.shape[:2]
        smallest = self.aug.get_output_shape(height, width, self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)
        if self.cfg.INPUT.MIN_SIZE_TEST and not min(smallest):
            raise ImageError(
                f"image {name}: expected sides of 1 px or more after resizing to at most INPUT.MAX_SIZE_TEST "
                f"{self.cfg.INPUT.MAX_SIZE_TEST} px, found none of {width} x {height} px. Fix: cut it into pieces"
            )
        return super().__call__(image[:, :, ::-1])["instances"].to("cpu")  # detectron2 takes BGR
