"""Run a trained detector once and keep what its box head says: `python -m rio features`; and put a classifier back.

A training image's RoIs are sampled as in training: augmented, with the ground-truth boxes among the proposals. A test
image's RoIs are all its proposals. What is kept of an image does not depend on the number of processes.
"""

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from rio.data.files import write_atomically
from rio.data.names import annotations_of
from rio.engine.feature_store import FeatureError, FeatureSet, FeatureStore, sha256, size_of
from rio.engine.inference import load_model
from rio.engine.loader import STEP, Mapper, TrainingSamples, derived_seed, seed_libraries
from rio.engine.records import records
from rio.engine.weights import read_weights

logger = logging.getLogger(__name__)
PREDICTOR = "roi_heads.box_predictor."
BLOCK = 8  # images at once; a fixed number, so that padding, and with it the features, never depend on the processes


def extract(cfg: CfgNode, weights: str, output_dir: str) -> FeatureStore:
    """Keep the box features of DATASETS.TRAIN and DATASETS.TEST; goes on where an interrupted call stopped.

    `output_dir` is for one detector; sets that it lacks are added. `cfg` is from `rio.engine.setup.setup_inference`.

    Raises:
        FeatureError: a box head whose features cannot be kept, features of other weights there, too little disk.
        CheckpointError: weights that do not fit.
    """
    model = load_model(cfg, weights)
    heads = model.roi_heads
    if not hasattr(heads, "box_pooler") or isinstance(heads.box_predictor, nn.ModuleList):
        raise FeatureError(
            f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME}: expected one box head whose RoIs do not depend on its "
            "classifier, found none (a cascade has several). Fix: take a detector with RIOROIHeads or StandardROIHeads"
        )
    shape, world, seed = heads.box_head.output_shape, comm.get_world_size(), max(cfg.SEED, 0)
    about = {
        "weights": os.path.abspath(weights),
        "sha256": sha256(weights),
        "seed": seed,
        "rois": cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE,
        "views": cfg.MODEL.RIO.FEATURE_VIEWS,
        "width": shape.channels * (shape.height or 1) * (shape.width or 1),
    }
    sets = [(name, True) for name in cfg.DATASETS.TRAIN] + [(name, False) for name in cfg.DATASETS.TEST]
    os.makedirs(output_dir, exist_ok=True)
    lock = FileLock(os.path.join(output_dir, ".lock"), timeout=0)
    try:
        if comm.is_main_process():
            lock.acquire()
            store = FeatureStore.create(output_dir, about, cfg.dump(), heads.box_predictor.state_dict())
            before = set(store.about["sets"])
            try:
                for name, train in sets:
                    _announce(cfg, store, name, train)
                    store.add(name, annotations_of(name), _rois(cfg, train), train=train)
            except (FeatureError, OSError):  # nothing of this call stays: another --output may be on the same disk
                store.drop(store.about["sets"].keys() - before)
                raise
    except Timeout as error:
        raise FeatureError(f"features {output_dir}: another call is at work here. Fix: wait for it") from error
    comm.synchronize()
    store = FeatureStore(output_dir)
    try:
        for name, train in sets:
            _fill(cfg, model, store.open(name, train=train, writable=True), name, train, world)
            comm.synchronize()
    finally:
        lock.release()
    return store


def _rois(cfg: CfgNode, train: bool) -> int:
    return cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE if train else cfg.MODEL.RPN.POST_NMS_TOPK_TEST


def _announce(cfg: CfgNode, store: FeatureStore, name: str, train: bool) -> None:
    rows, rois = annotations_of(name).num_images * (store.views if train else 1), _rois(cfg, train)
    size = size_of(rows, rois, store.width, truth=train) / 1e9
    what = f"{store.views} views of each" if train and store.views > 1 else "one view of each"
    logger.info("%s: %d images, %s, at most %d RoIs of width %d: %.2f GB", name, rows, what, rois, store.width, size)


def _fill(cfg: CfgNode, model: nn.Module, to: FeatureSet, name: str, train: bool, world: int) -> None:
    """Compute the rows that are missing, this process's share of them."""
    annotations = annotations_of(name)
    blocks = np.unique(to.missing // BLOCK)[comm.get_rank() :: world]
    rows = [range(b * BLOCK, min((b + 1) * BLOCK, len(to.counts))) for b in blocks.tolist()]
    samples = TrainingSamples(records(annotations), Mapper(cfg, train), max(cfg.SEED, 0))
    batches = [[(row, row % annotations.num_images) for row in block] for block in rows]
    loader = DataLoader(samples, batch_sampler=batches, num_workers=cfg.DATALOADER.NUM_WORKERS, collate_fn=list)
    shown = tqdm(total=sum(map(len, rows)), desc=name, unit="image", disable=not comm.is_main_process())
    started = time.monotonic()
    with torch.no_grad(), EventStorage(), shown:
        for number, (block, inputs) in enumerate(zip(rows, loader, strict=True)):
            found = training_rois(model, inputs, block, max(cfg.SEED, 0)) if train else test_rois(model, inputs)
            for row, own in zip(block, found, strict=True):
                to.write(row, **own)
            shown.update(len(block))
            if number == 0:
                minutes = (time.monotonic() - started) * len(rows) / 60
                logger.info("%s: about %.1f minutes, by the first %d images", name, minutes, len(block))
    to.flush()


def training_rois(model: nn.Module, inputs: list[dict], rows: Sequence[int], seed: int) -> Iterator[dict]:
    """Each image's sampled RoIs, as columns: what the box head would be trained on."""
    heads, rpn = model.roi_heads, model.proposal_generator
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    tests = rpn.pre_nms_topk[False], rpn.post_nms_topk[False]
    # As many proposals as in training; without its losses, which would need its labels.
    rpn.pre_nms_topk[False], rpn.post_nms_topk[False] = rpn.pre_nms_topk[True], rpn.post_nms_topk[True]
    proposals, _ = rpn(images, features, None)
    rpn.pre_nms_topk[False], rpn.post_nms_topk[False] = tests
    sampled = []
    for one, own, row in zip(inputs, proposals, rows, strict=True):
        seed_libraries(derived_seed(seed, STEP, row))  # an image's RoIs depend on nothing but the image
        sampled += heads.label_and_sample_proposals([own], [one["instances"].to(model.device)])
    for own, rois in zip(_columns(heads, features, sampled), sampled, strict=True):
        yield own | {
            "gt_boxes": _numpy((rois.gt_boxes if rois.has("gt_boxes") else rois.proposal_boxes).tensor),
            "gt_classes": _numpy(rois.gt_classes),
        }


def test_rois(model: nn.Module, inputs: list[dict]) -> Iterator[dict]:
    """Each image's proposals, as columns."""
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features, None)
    yield from _columns(model.roi_heads, features, proposals)


def _columns(heads: nn.Module, features: dict[str, Tensor], rois: list[Instances]) -> Iterator[dict]:
    maps = [features[name] for name in heads.box_in_features]
    found = heads.box_head(heads.box_pooler(maps, [own.proposal_boxes for own in rois])).flatten(1)
    limit = torch.finfo(torch.float16).max
    for own, part in zip(rois, found.clamp(-limit, limit).half().split([len(own) for own in rois]), strict=True):
        yield {
            "features": _numpy(part),
            "proposal_boxes": _numpy(own.proposal_boxes.tensor),
            "sizes": np.array(own.image_size, np.int32),
        }


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def export(run: str | os.PathLike[str], output_dir: str | os.PathLike[str]) -> Path:
    """Put a classifier that was trained on features back into the detector that they are of.

    `run` is the folder of the finished training; `output_dir` gets ``model_final.pth``, for `rio eval` and `rio
    predict`, and its ``config.yaml``. Returns the path of the weights. A FeatureError where it is not such a run, or
    the detector's weights are gone or have changed since.
    """
    from rio.engine.setup import stored_config

    trained = stored_config(str(run))
    if trained is None or not trained.MODEL.RIO.get("FEATURES"):
        found = "no config.yaml" if trained is None else "one that was trained on pictures"
        raise FeatureError(f"{run}: expected the folder of a training on features, found {found}")
    store = FeatureStore(trained.MODEL.RIO.FEATURES)
    weights = store.about["weights"]
    if not os.path.isfile(weights) or sha256(weights) != store.about["sha256"]:
        raise FeatureError(f"weights {weights}: expected the file that {store.folder} is of, found another or none")
    state = OrderedDict((k, v) for k, v in read_weights(weights)["model"].items() if "memory_bank." not in k)
    own = read_weights(os.path.join(run, "model_final.pth"))["model"]
    for name in [name for name in state if name.startswith(PREDICTOR)]:
        del state[name]
    state |= {name: value for name, value in own.items() if "memory_bank." not in name}
    cfg = CfgNode.load_cfg((store.folder / "config.yaml").read_text(encoding="utf-8"))
    cfg.MODEL.RIO = trained.MODEL.RIO.clone()
    cfg.MODEL.RIO.FEATURES = ""
    for key in ("SCORE_THRESH_TEST", "NMS_THRESH_TEST"):
        cfg.MODEL.ROI_HEADS[key] = trained.MODEL.ROI_HEADS[key]
    if cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads":
        cfg.MODEL.ROI_HEADS.NAME = "RIOROIHeads"
    path = Path(output_dir) / "model_final.pth"
    write_atomically(path.with_name("config.yaml"), cfg.dump().encode())
    write_atomically(path, lambda file: torch.save({"model": state}, file))
    return path
