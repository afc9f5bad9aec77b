"""What a config leaves open, filled in and checked against the data; logging."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from rio.config import ConfigError, get_rio_cfg, validate
from rio.data import names as datasets
from rio.data.annotations import Annotations, check_same_categories
from rio.data.files import write_atomically
from rio.engine import records
from rio.engine.errors import TrainingError
from rio.engine.weights import CheckpointError

logger = logging.getLogger(__name__)


def setup_training(cfg: CfgNode, *, resume: bool = False) -> CfgNode:
    """Resolve what the config leaves open, check it against the data, and write ``config.yaml``.

    Device, data set names, number of classes, the bank's class ids, the classes' frequency groups, the seed,
    and the schedule for the world size (``SOLVER.REFERENCE_WORLD_SIZE``) are filled in, so the file in
    ``OUTPUT_DIR`` says all there is to say of the run.

    Args:
        cfg: from ``rio.config.load_config``.
        resume: go on with the run in ``OUTPUT_DIR`` if there is one: a seed that was drawn then is taken
            again.

    Returns:
        A frozen copy.

    Raises:
        TrainingError: ``OUTPUT_DIR`` holds a run and `resume` is False.
        ConfigError: not exactly one training set; a class count or class lists that do not fit; a bank
            without classes; and all that ``rio.config.validate`` refuses.
    """
    cfg = cfg.clone()
    cfg.defrost()
    has_run = os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if has_run and not resume:
        raise TrainingError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR}: expected a folder without a run, found a checkpoint. Go on with "
            "it by --resume, choose another folder by --output-dir, or delete it"
        )
    make_folder(cfg.OUTPUT_DIR)
    start_logging(cfg.OUTPUT_DIR)
    _resolve_device(cfg)
    # Also what DefaultTrainer does; here, so that config.yaml holds the numbers that were trained with.
    scaled = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    cfg = scaled if scaled is cfg else scaled.clone()
    cfg.defrost()

    if len(cfg.DATASETS.TRAIN) != 1:
        raise ConfigError(
            f"DATASETS.TRAIN: expected one data set, found {list(cfg.DATASETS.TRAIN)}. Name one, for "
            "example DATASETS.TRAIN '(\"train.json@images\",)'; merge several JSON files into one first"
        )
    cfg.DATASETS.TRAIN = tuple(records.resolve(name) for name in cfg.DATASETS.TRAIN)
    cfg.DATASETS.TEST = tuple(records.resolve(name) for name in cfg.DATASETS.TEST)
    train = datasets.annotations_of(cfg.DATASETS.TRAIN[0], check_images=True)
    _resolve_num_classes(cfg, train, cfg.DATASETS.TRAIN[0])
    for name in cfg.DATASETS.TEST:
        check_same_categories(train, datasets.annotations_of(name))
    _resolve_masks(cfg, train)

    if cfg.MODEL.RIO.BANK_ENABLED and not len(cfg.MODEL.RIO.BANK_CLASS_IDS):
        ids = records.target_class_ids(train, cfg.MODEL.RIO.BANK_MAX_IMAGE_COUNT)
        if not len(ids):
            raise ConfigError(
                f"MODEL.RIO.BANK_MAX_IMAGE_COUNT {cfg.MODEL.RIO.BANK_MAX_IMAGE_COUNT}: expected some class "
                f"of {cfg.DATASETS.TRAIN[0]} with 1 to that many images, found none (the rarest has "
                f"{_rarest(train)}). Raise it, or set MODEL.RIO.BANK_ENABLED False"
            )
        cfg.MODEL.RIO.BANK_CLASS_IDS = [int(i) for i in ids]
    if not cfg.MODEL.RIO.CLASS_FREQUENCY:
        cfg.MODEL.RIO.CLASS_FREQUENCY = "".join(train.frequency.tolist())
    if cfg.SEED < 0:
        stored = stored_seed(cfg.OUTPUT_DIR) if has_run else None
        # One number for all ranks: the first rank's.
        cfg.SEED = comm.all_gather(stored if stored is not None else secrets.randbelow(2**31))[0]
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise ConfigError("TEST.PRECISE_BN.ENABLED: expected False, found True; it is not part of a resumable run here")
    if cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER > 0:
        logger.warning(
            "SOLVER.WARMUP_ITERS %d >= SOLVER.MAX_ITER %d: the learning rate is still being warmed up when "
            "training ends. Lower SOLVER.WARMUP_ITERS",
            cfg.SOLVER.WARMUP_ITERS,
            cfg.SOLVER.MAX_ITER,
        )
    if comm.get_world_size() > 1 and cfg.MODEL.RIO.BANK_ENABLED:
        if cfg.MODEL.RIO.BANK_SYNC:
            logger.info("%d processes share the writes to the memory bank.", comm.get_world_size())
        else:
            logger.warning(
                "%d processes, MODEL.RIO.BANK_SYNC False: each fills a memory bank of its own from its share "
                "of the images, so the method changes with their number. Checkpoints keep all of them.",
                comm.get_world_size(),
            )
    validate(cfg)
    if comm.is_main_process():
        if has_run:
            _say_what_changed(cfg)
        write_atomically(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump().encode())
    comm.synchronize()
    torch.backends.cudnn.benchmark = bool(cfg.CUDNN_BENCHMARK)
    cfg.freeze()
    return cfg


def setup_inference(cfg: CfgNode, *, need_test_sets: bool = True) -> CfgNode:
    """Resolve a config for evaluation or prediction; nothing is written.

    The bank is switched off (inference never touches it), so a config without resolved class ids works too.
    The training set gives class names and frequency groups; where it is not at hand, the test set does, which
    is said.

    Args:
        cfg: from ``rio.config.load_config``, best of a run's config.yaml.
        need_test_sets: False leaves out test sets whose files are not here, which is said; enough to
            detect on pictures.

    Returns:
        A frozen copy.
    """
    cfg = cfg.clone()
    cfg.defrost()
    _resolve_device(cfg)
    cfg.MODEL.RIO.BANK_ENABLED = False
    test_sets = []
    for name in cfg.DATASETS.TEST:
        try:
            test_sets.append(records.resolve(name))
        except FileNotFoundError as error:
            if need_test_sets:
                raise
            logger.warning("Without the test set %s: %s", name, str(error).splitlines()[0])
    cfg.DATASETS.TEST = tuple(test_sets)
    train = training_annotations(cfg)
    if train is not None:
        _resolve_num_classes(cfg, train, cfg.DATASETS.TRAIN[0])
    elif len(cfg.DATASETS.TEST):
        _resolve_num_classes(cfg, datasets.annotations_of(cfg.DATASETS.TEST[0]), cfg.DATASETS.TEST[0])
    elif cfg.MODEL.ROI_HEADS.NUM_CLASSES == 0:
        raise ConfigError(
            "MODEL.ROI_HEADS.NUM_CLASSES: expected the number of classes, found 0 (as many as the data set "
            "has) and no data set. Use the config.yaml of the run, or set the key"
        )
    validate(cfg)
    cfg.freeze()
    return cfg


def training_annotations(cfg: CfgNode) -> Annotations | None:
    """The training set's annotations, or None (said in the log) where its file is not on this machine."""
    if not len(cfg.DATASETS.TRAIN):
        return None
    try:
        return datasets.annotations_of(records.resolve(cfg.DATASETS.TRAIN[0]))
    except FileNotFoundError as error:
        logger.warning(
            "The training set %s is not at hand (%s): class names and frequency groups come from the test set's file.",
            cfg.DATASETS.TRAIN[0],
            str(error).splitlines()[0],
        )
        return None


def start_logging(output_dir: str | None) -> None:
    """Send the messages of rio, detectron2 and fvcore to stdout (first process) and ``output_dir/log.txt``.

    Handlers of an earlier call leave, so that several runs in one process do not write into each other's
    files.
    """
    rank = comm.get_rank()
    handlers: list[logging.Handler] = []
    if rank == 0:
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%H:%M:%S"))
        handlers.append(console)
    if output_dir:
        file = logging.FileHandler(os.path.join(output_dir, "log.txt" if rank == 0 else f"log.txt.rank{rank}"))
        file.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s"))
        handlers.append(file)
    for name in ("rio", "detectron2", "fvcore"):
        log = logging.getLogger(name)
        for old in list(log.handlers):
            log.removeHandler(old)
            old.close()
        for handler in handlers:
            log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    # Our own errors are complete sentences that the caller shows; detectron2 would put a traceback before
    # them.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_drop_own_tracebacks)


def _drop_own_tracebacks(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], (TrainingError, CheckpointError)))


def _resolve_device(cfg: CfgNode) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU is usable here: MODEL.DEVICE %s -> cpu.", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED:
        logger.warning("SOLVER.AMP.ENABLED True -> False: mixed precision needs a GPU; this run computes in float32.")
        cfg.SOLVER.AMP.ENABLED = False
    if cfg.MODEL.DEVICE == "cpu" and cfg.MODEL.RESNETS.NORM == "SyncBN":
        raise ConfigError("MODEL.RESNETS.NORM: SyncBN needs a GPU. Set it to BN or FrozenBN")


def _resolve_num_classes(cfg: CfgNode, annotations: Annotations, name: str) -> None:
    found, wanted = len(annotations.category_ids), cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if wanted == 0:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = found
    elif wanted != found:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NUM_CLASSES: expected {found}, as many as {name} has categories, found "
            f"{wanted}. Set MODEL.ROI_HEADS.NUM_CLASSES {found}, or 0 to take the number from the data set"
        )


def _resolve_masks(cfg: CfgNode, train: Annotations) -> None:
    if cfg.MODEL.MASK_ON and not train.has_segmentations:
        raise ConfigError(
            f"MODEL.MASK_ON True: expected masks in {train.path}, found boxes alone. Set MODEL.MASK_ON False"
        )
    if cfg.MODEL.MASK_ON and train.has_rle_objects and cfg.INPUT.MASK_FORMAT == "polygon":
        logger.warning("INPUT.MASK_FORMAT polygon -> bitmask: %s has run-length masks.", train.path)
        cfg.INPUT.MASK_FORMAT = "bitmask"


def _rarest(train: Annotations) -> str:
    seen = train.image_count[train.image_count > 0]
    return f"{int(seen.min())} images" if len(seen) else "no annotation at all"


def stored_seed(output_dir: str) -> int | None:
    try:
        with open(os.path.join(output_dir, "config.yaml"), encoding="utf-8") as file:
            return int(CfgNode.load_cfg(file.read()).SEED)
    except FileNotFoundError:
        return None


def _say_what_changed(cfg: CfgNode) -> None:
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        before = dict(_leaves(CfgNode.load_cfg(file.read())))
    # A run of an older version did what the defaults of newer keys say, and had no need of what is filled in.
    before = dict(_leaves(CfgNode.load_cfg(get_rio_cfg().dump()))) | before
    now = dict(_leaves(CfgNode.load_cfg(cfg.dump())))
    groups = "MODEL.RIO.CLASS_FREQUENCY"
    before[groups] = before[groups] or now[groups]
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            logger.warning("Resumed with another %s: %r -> %r", key, before.get(key), now.get(key))


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"OUTPUT_DIR {path}: expected a folder that can be written to, found: {error.strerror}. Choose "
            "another by --output-dir"
        ) from error
