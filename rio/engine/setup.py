"""Configs ready to run: what they leave open is filled in from the data and checked against it; logging."""

import logging
import os
import secrets
import sys

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from rio.config import REMOVED, ConfigError, get_rio_cfg, validate
from rio.data.annotations import Annotations, check_same_categories
from rio.data.files import dotted, write_atomically
from rio.data.names import annotations_of
from rio.engine.config_files import check
from rio.engine.errors import TrainingError
from rio.engine.feature_store import FeatureStore
from rio.engine.preflight import check_sides, check_test_set
from rio.engine.records import fractal_dimensions, rarer_half, resolve, target_class_ids
from rio.engine.weights import CheckpointError

logger = logging.getLogger(__name__)
_COUNTS = ("CLASS_FREQUENCY", "IMAGE_COUNT", "INSTANCE_COUNT", "NUM_IMAGES")  # of the training set, in MODEL.RIO


def setup_training(cfg: CfgNode, *, resume: bool = False) -> CfgNode:
    """Fill in what the config leaves open (device, classes, seed, schedule), check it and write ``config.yaml``.

    With `resume` it goes on with the run in OUTPUT_DIR if there is one, with the seed that it drew. Returns a frozen
    copy, which describes the run completely.

    Raises:
        TrainingError: OUTPUT_DIR holds a run and `resume` is False, it is not writable, or a validation picture cannot
            be read or has another size than its record.
        ConfigError: Not exactly one training set, something that does not fit the data, or see `rio.config.validate`.
    """
    has_run = os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    fix = "go on with it by --resume, choose another folder by --output-dir, or delete it"
    what, expected = f"OUTPUT_DIR {cfg.OUTPUT_DIR}", "a folder without a run"
    check(resume or not has_run, what, expected, "a checkpoint", fix, error=TrainingError)
    make_folder(cfg.OUTPUT_DIR)
    start_logging(cfg.OUTPUT_DIR)
    # Also what DefaultTrainer does; here, so that config.yaml holds the numbers that were trained with.
    cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size()).clone()
    cfg.defrost()
    _resolve_device(cfg)
    fix = "name one, for example DATASETS.TRAIN '(\"train.json@images\",)'; merge several JSON files into one first"
    check(len(cfg.DATASETS.TRAIN) == 1, "DATASETS.TRAIN", "one data set", list(cfg.DATASETS.TRAIN), fix)
    cfg.DATASETS.TRAIN = tuple(resolve(name) for name in cfg.DATASETS.TRAIN)
    cfg.DATASETS.TEST = tuple(resolve(name) for name in cfg.DATASETS.TEST)
    train = annotations_of(cfg.DATASETS.TRAIN[0], check_images=not cfg.MODEL.RIO.FEATURES)
    _resolve_num_classes(cfg, train, cfg.DATASETS.TRAIN[0])
    for name in cfg.DATASETS.TEST:
        check_same_categories(train, annotations_of(name))
        check_test_set(cfg, name, annotations_of(name))
    if not cfg.MODEL.RIO.FEATURES:
        check_sides(train, min(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN, "TRAIN")
    _resolve_features(cfg, train)
    _resolve_masks(cfg, train)
    _resolve_bank(cfg, train)
    _resolve_counts(cfg, train)
    stored = stored_config(cfg.OUTPUT_DIR) if has_run else None
    if cfg.SEED < 0:  # one number for all ranks: the first rank's
        cfg.SEED = comm.all_gather(int(stored.SEED) if stored else secrets.randbelow(2**31))[0]
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise ConfigError("TEST.PRECISE_BN.ENABLED: expected False, found True; a resumable run does not support it")
    if cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER > 0:
        text = "SOLVER.WARMUP_ITERS %d >= SOLVER.MAX_ITER %d: the learning rate never reaches SOLVER.BASE_LR."
        logger.warning(text + " Lower SOLVER.WARMUP_ITERS", cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER)
    validate(cfg)
    if comm.is_main_process():
        if stored:
            _log_changes(stored, cfg)
        write_atomically(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump().encode())
    comm.synchronize()
    torch.backends.cudnn.benchmark = bool(cfg.CUDNN_BENCHMARK)
    cfg.freeze()
    return cfg


def setup_inference(cfg: CfgNode, *, need_test_sets: bool = True) -> CfgNode:
    """A frozen copy of a config, best of a run's config.yaml, filled in for evaluation or prediction; writes nothing.

    The bank is switched off, as inference never reads it. Class names and frequency groups are the training set's;
    where its file is missing, the test set's. `need_test_sets` False leaves out test sets whose files are missing,
    enough to detect on pictures; else that is a FileNotFoundError. A ConfigError where the number of classes does not
    fit the data, or there is none and no data set to count them.
    """
    cfg = cfg.clone()
    cfg.defrost()
    _resolve_device(cfg)
    cfg.MODEL.RIO.BANK_ENABLED = False
    test_sets = []
    for name in cfg.DATASETS.TEST:
        try:
            test_sets.append(resolve(name))
        except FileNotFoundError as error:
            if need_test_sets:
                raise
            logger.warning("Without the test set %s: %s", name, str(error).splitlines()[0])
    cfg.DATASETS.TEST = tuple(test_sets)
    train = training_annotations(cfg)
    if train is not None:
        _resolve_num_classes(cfg, train, cfg.DATASETS.TRAIN[0])
        _resolve_counts(cfg, train)
    elif test_sets:
        _resolve_num_classes(cfg, annotations_of(test_sets[0]), test_sets[0])
    else:
        found, fix = "0 (as many as the data set has) and no data set", "use the config.yaml of the run, or set the key"
        check(cfg.MODEL.ROI_HEADS.NUM_CLASSES, "MODEL.ROI_HEADS.NUM_CLASSES", "the number of classes", found, fix)
    validate(cfg)
    cfg.freeze()
    return cfg


def training_annotations(cfg: CfgNode) -> Annotations | None:
    """The training set's annotations, or None with a warning where its file is not on this machine."""
    if not len(cfg.DATASETS.TRAIN):
        return None
    try:
        return annotations_of(resolve(cfg.DATASETS.TRAIN[0]))
    except FileNotFoundError as error:
        text = "The training set %s is missing (%s): class names and frequency groups come from the test set's file."
        logger.warning(text, cfg.DATASETS.TRAIN[0], str(error).splitlines()[0])
        return None


def start_logging(output_dir: str | None) -> None:
    """Send messages of rio, detectron2 and fvcore to stdout (first process) and ``output_dir/log.txt``.

    Handlers of an earlier call are removed, so that runs in one process do not write into each other's files.
    """
    rank, handlers = comm.get_rank(), []
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stdout))
        handlers[0].setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%H:%M:%S"))
    if output_dir:
        handlers.append(logging.FileHandler(os.path.join(output_dir, f"log.txt.rank{rank}" if rank else "log.txt")))
        handlers[-1].setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s"))
    for log in map(logging.getLogger, ("rio", "detectron2", "fvcore")):
        for old in log.handlers:
            old.close()
        log.handlers[:] = handlers
        log.setLevel(logging.INFO)
        log.propagate = False
    # The caller shows our own errors, which are complete sentences; detectron2 would put a traceback before them.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_foreign)


def _is_foreign(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], (TrainingError, CheckpointError)))


def stored_config(output_dir: str) -> CfgNode | None:
    """The config that the run in a folder was started with, or None; YAML without Python tags."""
    try:
        with open(os.path.join(output_dir, "config.yaml"), encoding="utf-8") as file:
            return CfgNode.load_cfg(file.read())
    except FileNotFoundError:
        return None


def make_folder(path: str) -> None:
    """Make a folder for output, or raise TrainingError."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"OUTPUT_DIR {path}: expected a folder that can be written to, found: {error.strerror}. Fix: choose "
            "another by --output-dir"
        ) from error


def _resolve_device(cfg: CfgNode) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU is usable here: MODEL.DEVICE %s -> cpu.", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE.startswith("cuda:"):
        expected = f"cuda, as each of the {comm.get_world_size()} processes has a GPU of its own"
        fix = "set MODEL.DEVICE cuda; CUDA_VISIBLE_DEVICES chooses among the GPUs"
        check(comm.get_world_size() == 1, "MODEL.DEVICE", expected, cfg.MODEL.DEVICE, fix)
        torch.cuda.set_device(cfg.MODEL.DEVICE)  # detectron2 also asks for "the current device"
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED:
        logger.warning("SOLVER.AMP.ENABLED True -> False: mixed precision needs a GPU; this run computes in float32.")
        cfg.SOLVER.AMP.ENABLED = False
    if cfg.MODEL.DEVICE == "cpu" and cfg.MODEL.RESNETS.NORM == "SyncBN":
        raise ConfigError("MODEL.RESNETS.NORM: SyncBN needs a GPU. Fix: set it to BN or FrozenBN")


def _resolve_num_classes(cfg: CfgNode, annotations: Annotations, name: str) -> None:
    found, wanted = len(annotations.category_ids), cfg.MODEL.ROI_HEADS.NUM_CLASSES
    key, expected = "MODEL.ROI_HEADS.NUM_CLASSES", f"{found}, as many as {name} has categories"
    check(wanted in (0, found), key, expected, wanted, f"set {key} {found}, or 0 to take the number from the data set")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = found


def _resolve_features(cfg: CfgNode, train: Annotations) -> None:
    """With MODEL.RIO.FEATURES: the classifier alone, on features that belong to the data; no pictures, no masks."""
    if not cfg.MODEL.RIO.FEATURES:
        return
    cfg.MODEL.RIO.FEATURES = os.path.abspath(os.path.expanduser(cfg.MODEL.RIO.FEATURES))
    store = FeatureStore(cfg.MODEL.RIO.FEATURES)
    store.check(cfg.DATASETS.TRAIN[0], train, train=True)
    for name in cfg.DATASETS.TEST:
        store.check(name, annotations_of(name), train=False)
    if cfg.MODEL.ROI_HEADS.NAME != "RIOROIHeads" or cfg.TEST.AUG.ENABLED:
        raise ConfigError(
            f"MODEL.RIO.FEATURES: expected MODEL.ROI_HEADS.NAME RIOROIHeads and TEST.AUG.ENABLED False, found "
            f"{cfg.MODEL.ROI_HEADS.NAME} and {cfg.TEST.AUG.ENABLED}; stored RoIs are one head's, of one picture"
        )
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS, cfg.MODEL.MASK_ON = "FrozenFeatureClassifier", "", False


def _resolve_masks(cfg: CfgNode, train: Annotations) -> None:
    if not cfg.MODEL.MASK_ON:
        return
    expected = f"masks in {train.path}"
    check(train.has_segmentations, "MODEL.MASK_ON True", expected, "boxes only", "set MODEL.MASK_ON False")
    if train.has_rle_objects and cfg.INPUT.MASK_FORMAT == "polygon":
        logger.warning("INPUT.MASK_FORMAT polygon -> bitmask: %s has run-length masks.", train.path)
        cfg.INPUT.MASK_FORMAT = "bitmask"


def _resolve_counts(cfg: CfgNode, train: Annotations) -> None:
    rio = cfg.MODEL.RIO
    counts = train.image_count.tolist(), train.instance_count.tolist(), train.num_images
    for key, value in zip(_COUNTS, ("".join(train.frequency.tolist()), *counts), strict=True):
        rio[key] = rio[key] or value
    if rio.CALIBRATION == "fracal" and not len(rio.FRACTAL_DIMENSION):
        rio.FRACTAL_DIMENSION = fractal_dimensions(train)


def _resolve_bank(cfg: CfgNode, train: Annotations) -> None:
    rio, world = cfg.MODEL.RIO, comm.get_world_size()
    if not rio.BANK_ENABLED:
        return
    if not rio.BANK_MAX_IMAGE_COUNT:
        rio.BANK_MAX_IMAGE_COUNT = rarer_half(train)
    if not len(rio.BANK_CLASS_IDS):
        rio.BANK_CLASS_IDS = target_class_ids(train, rio.BANK_MAX_IMAGE_COUNT)
    if not rio.BANK_CLASS_IDS:
        rarest = min(train.image_count[train.image_count > 0].tolist(), default=0)
        raise ConfigError(
            f"MODEL.RIO.BANK_MAX_IMAGE_COUNT {rio.BANK_MAX_IMAGE_COUNT}: expected some class of "
            f"{cfg.DATASETS.TRAIN[0]} with 1 to that many images, found none (the rarest has {rarest} images). Fix: "
            "raise it, set it to 0 (the rarer half of the classes), or set MODEL.RIO.BANK_ENABLED False"
        )
    if world > 1 and rio.BANK_SYNC:
        logger.info("%d processes share the writes to the memory bank.", world)
    elif world > 1:
        logger.warning(
            "%d processes, MODEL.RIO.BANK_SYNC False: each fills a memory bank of its own from its share of the "
            "images, so the method changes with their number. Checkpoints keep all of them.",
            world,
        )


def _log_changes(stored: CfgNode, cfg: CfgNode) -> None:
    """Warn of every key that differs; a key that one version does not know has its default's meaning there."""
    defaults, now = (REMOVED | dotted(CfgNode.load_cfg(one.dump())) for one in (get_rio_cfg(), cfg))
    before = defaults | dotted(stored)
    for key in (f"MODEL.RIO.{key}" for key in _COUNTS):
        before[key] = before[key] or now[key]
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            logger.warning("Resumed with another %s: %.200r -> %.200r", key, before.get(key), now.get(key))
