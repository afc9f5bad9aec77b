"""Training: ``Trainer`` on detectron2's DefaultTrainer; a resumed run repeats data order and randomness.

What is random or state here, where it comes from, and what is saved of it:

    data order          rio.sampler, a function of (seed, iteration)       nothing
    augmentation        seeded by (seed, position of the showing)          nothing, any number of workers
    RoI/anchor choice   torch's generator, seeded by (seed, iteration,
                        rank) before every step                            nothing
    weights and bank    the model's parameters and buffers; without
                        MODEL.RIO.BANK_SYNC the bank of each rank          checkpoint
    optimiser, LR       momentum, scheduler, AMP scaler                    checkpoint

So a run that was stopped and resumed ends, on a CPU, with the same bits as one that was not.

A run may be resumed with another number of processes, which is said. The global batch, the bank and, without
DATALOADER.ASPECT_RATIO_GROUPING, the order of the images stay; RoIs are chosen by other random numbers. Of
banks of P ranks, rank r of the resumed run takes that of rank r modulo P; with BANK_SYNC all take rank 0's.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import math
import os
import random
import re
import secrets
import signal
import struct
import sys
import threading
import time
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader, detection_utils
from detectron2.data import transforms as T
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from PIL import Image
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from rio import roi_heads as _  # noqa: F401  as backbone does, it registers its modules with detectron2
from rio.config import ConfigError, get_rio_cfg, validate
from rio.data import names as datasets
from rio.data.annotations import Annotations, check_same_categories
from rio.data.files import write_atomically
from rio.engine import backbone, records
from rio.engine.weights import ADDED, CheckpointError, load_weights, read_weights
from rio.results.evaluation import Evaluation, evaluate
from rio.sampler import BatchSampler, TrainingSampler, aspect_ratio_groups

# Periodic checkpoints that stay in the run's folder, beside model_final and model_best. Each is about twice
# the weights (momentum) plus the bank; the reference's schedule would leave 18 of them.
CHECKPOINTS_KEPT = 3

_OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)  # its place before torch 2.5

logger = logging.getLogger(__name__)


class TrainingError(ValueError):
    """A run that cannot go on; the message says what to change."""


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal after it had saved a checkpoint.

    Attributes:
        exit_code: 128 + signal number, as shells report it (130 for Ctrl-C).
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


# ------------------------------------------------------------------------------------------------- randomness

_INIT, _AUGMENT, _STEP = range(3)  # what a seed is for, so that no two uses share a stream


def _derived_seed(*parts: int) -> int:
    """A 32-bit seed from a few integers >= 0; NumPy promises that SeedSequence never changes."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _seed_libraries(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for a block and put them back: detectron2's augmentations use NumPy's."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # the CPU's alone: a worker must not touch CUDA
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


# ------------------------------------------------------------------------------------------------- setup


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
    _make_folder(cfg.OUTPUT_DIR)
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
        stored = _stored_seed(cfg.OUTPUT_DIR) if has_run else None
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


def _stored_seed(output_dir: str) -> int | None:
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


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"OUTPUT_DIR {path}: expected a folder that can be written to, found: {error.strerror}. Choose "
            "another by --output-dir"
        ) from error


# ------------------------------------------------------------------------------------------------- data


class TrainingSamples(Dataset):
    """(position, image index) -> what detectron2's mapper makes of the image, the same in every process.

    Args:
        records: detectron2 dicts, see ``rio.engine.records.records``.
        mapper: a record -> model input; may draw from the global generators.
        seed: the run's.
    """

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], dict], seed: int):
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, sample: tuple[int, int]) -> dict:
        position, index = sample
        record = self.records[index]
        with _seeded(_derived_seed(self.seed, _AUGMENT, position)):
            return _load_image(self.mapper, record)


# What PIL's decoders raise on damaged files, and what it raises on one that unpacks to more than 179 Mpx.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, OverflowError)
_UNREADABLE += (detection_utils.SizeMismatchError, Image.DecompressionBombError)


def _load_image(mapper: Callable[[dict], dict], record: dict) -> dict:
    """What a mapper makes of a record's image.

    Raises:
        TrainingError: names an image that cannot be read or has another size, or that would be misread.
    """
    try:
        return mapper(record)
    except _UNREADABLE as error:
        raise TrainingError(
            f"image {record.get('file_name')} (image_id {record.get('image_id')}): could not be "
            f"loaded: {type(error).__name__}: {error}. Mend or remove the image, or check the image "
            "folder"
        ) from error


class _Mapper(DatasetMapper):
    """detectron2's, for images that it reads right; the ground truth has the field "gt_object_ids" besides.

    That is (G, 2) int64, for each object the image's id and the object's place among the record's annotations:
    the same numbers whenever the image is shown.
    """

    def __call__(self, record: dict) -> dict:
        _require_8_bits(record["file_name"])
        return super().__call__(record)

    def _transform_annotations(self, record: dict, transforms: T.TransformList, image_shape: tuple) -> None:
        # detectron2 keeps nothing of an annotation but box, class and mask, and drops empty ones. So the place
        # travels as the class: classes [7, 7, 4], the second object empty, give places [0, 2], classes [7, 4].
        classes = [annotation["category_id"] for annotation in record["annotations"]]
        for place, annotation in enumerate(record["annotations"]):
            annotation["category_id"] = place
        super()._transform_annotations(record, transforms, image_shape)
        instances = record["instances"]
        place = instances.gt_classes
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)[place]
        image = torch.full_like(place, record["image_id"])
        instances.gt_object_ids = torch.stack([image, place], dim=1)


def _require_8_bits(path: str) -> None:
    """Refuse 16- and 32-bit grey images: PIL clips them to 0..255 where RGB is asked for, so nearly all is white."""
    with Image.open(path) as image:
        if image.mode == "F" or image.mode.startswith("I"):
            raise ValueError(
                f"expected 8 bits a channel, found grey values of 16 or 32 bits (mode {image.mode}). Convert it "
                "to 8 bits; how to scale it depends on what its numbers mean"
            )


def _own_words(error: TrainingError) -> TrainingError:
    """An error without what torch puts around its message where it comes from a loader process."""
    return TrainingError(str(error).rsplit("TrainingError: ", 1)[-1].strip())


class TrainingLoader:
    """An endless iterable of training batches that begins at ``start_iteration``.

    The DataLoader is made when the first batch is asked for: only then is it known where a resumed run
    starts.

    Args:
        samples: the data set.
        batches: where to begin is set on it when iteration starts.
        num_workers: loader processes, 0 loads in this one.
    """

    def __init__(self, samples: TrainingSamples, batches: BatchSampler, num_workers: int):
        self.samples, self.batches, self.num_workers = samples, batches, num_workers
        self.start_iteration = 0
        self._open: list[Generator[list[dict], None, None]] = []

    def __iter__(self) -> Generator[list[dict], None, None]:
        self._open.append(self._batches())
        return self._open[-1]

    def close(self) -> None:
        """End the loader processes; whoever iterates gets no further batch."""
        for iterator in self._open:
            iterator.close()
        self._open.clear()

    def _batches(self) -> Generator[list[dict], None, None]:
        self.batches.start_iteration = self.start_iteration
        loader = DataLoader(
            self.samples,
            batch_sampler=self.batches,
            num_workers=self.num_workers,
            collate_fn=_as_list,
            worker_init_fn=_quiet_worker,
            # Without one of its own the loader takes a number from torch's generator, which belongs to the
            # step.
            generator=torch.Generator().manual_seed(0),
        )
        iterator = iter(loader)
        try:
            yield from iterator
        finally:
            # An error's traceback keeps the iterator alive until the garbage collector finds it, which then
            # waits five seconds for each worker in vain.
            if self.num_workers:
                iterator._shutdown_workers()


def _as_list(batch: list[dict]) -> list[dict]:
    return batch


def _quiet_worker(worker_id: int) -> None:
    # Ctrl-C reaches every process of the terminal: the run finishes its step and saves, so its workers go on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def build_training_loader(cfg: CfgNode) -> TrainingLoader:
    """The loader for a config that ``setup_training`` has been through."""
    annotations = datasets.annotations_of(cfg.DATASETS.TRAIN[0])
    sampler = TrainingSampler(
        annotations=annotations,
        method=cfg.MODEL.RIO.SAMPLER,
        repeat_threshold=cfg.DATALOADER.REPEAT_THRESHOLD,
        sqrt=cfg.MODEL.RIO.SAMPLER_SQRT,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        seed=cfg.SEED,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    groups = aspect_ratio_groups(annotations) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None
    batches = BatchSampler(sampler, batch_size=cfg.SOLVER.IMS_PER_BATCH, groups=groups)
    samples = TrainingSamples(records.records(annotations), _Mapper(cfg, True), cfg.SEED)
    return TrainingLoader(samples, batches, cfg.DATALOADER.NUM_WORKERS)


# ------------------------------------------------------------------------------------------------ checkpoints


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpoints: written atomically, read without running code, held to the model's shapes.

    Args:
        own_banks: every rank has a memory bank of its own, and each is saved (in the one file).
    """

    def __init__(self, *args: Any, own_banks: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.own_banks = own_banks and comm.get_world_size() > 1

    def save(self, name: str, **extra: Any) -> None:
        """Write ``name.pth`` with all that a resumed run needs and point ``last_checkpoint`` to it.

        With ``own_banks`` all ranks have to call it, as the first one gathers their banks.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written to; what was there before is
                untouched.
        """
        banks = self._gathered_banks() if self.own_banks else []
        if not self.save_dir or not self.save_to_disk:
            return
        state = {
            "model": self.model.state_dict(),
            "world_size": comm.get_world_size(),
            "banks": banks,  # of the ranks after the first, whose bank is part of the model
            **{k: o.state_dict() for k, o in self.checkpointables.items()},
            **extra,
        }
        self._write(f"{name}.pth", state)
        self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str) -> None:
        """Write ``name.pth`` with the model alone, for use and not for resuming."""
        if self.save_dir and self.save_to_disk:
            self._write(f"{name}.pth", {"model": self.model.state_dict()})

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        self._write_file("last_checkpoint", last_filename_basename.encode())

    def _gathered_banks(self) -> list[dict[str, torch.Tensor]]:
        """The banks of the second and all further ranks; only the first rank gets any."""
        own = self.model.state_dict()
        return comm.gather({name: own[name].cpu() for name in own if _is_bank(name)})[1:]

    def _write(self, basename: str, state: dict[str, Any]) -> None:
        self._write_file(basename, lambda file: torch.save(state, file))
        logger.info("Saved %s", os.path.join(self.save_dir, basename))

    def _write_file(self, basename: str, content: bytes | Callable[[Any], None]) -> None:
        path = os.path.join(self.save_dir, basename)
        try:
            write_atomically(path, content)
        except (OSError, RuntimeError) as error:  # torch reports a failed write of its zip file as RuntimeError
            raise CheckpointError(
                f"checkpoint {path}: could not be written: {error}. Earlier checkpoints are untouched; make "
                "room, then go on with --resume"
            ) from error

    def resume(self) -> str | None:
        """Load the newest checkpoint of the folder that can be read and fits; all ranks take the same one.

        Returns:
            Its path; None where the folder has none.

        Raises:
            CheckpointError: there are some, and none can be read or all belong to another model.
        """
        problems = []
        for path in comm.all_gather(self._candidates())[0]:
            problem = ""
            try:
                state = self._load_file(path)
                self._load_model(path, state)
            except CheckpointError as error:
                problem = str(error)
            found = [text for text in comm.all_gather(problem) if text]  # one rank's trouble is everybody's
            if not found:
                self._load_rest(path, state)
                return path
            logger.warning("%s. Trying the one before it.", found[0])
            problems.append(found[0])
        if problems and all("belongs to another model" in problem for problem in problems):
            raise CheckpointError(problems[0])
        if problems:
            raise CheckpointError(
                f"{self.save_dir}: none of its checkpoints can be read: {'; '.join(problems)}. Begin again "
                "in another folder (--output-dir)"
            )
        return None

    def _candidates(self) -> list[str]:
        """The tagged checkpoint first, then the other resumable ones, newest first."""
        if not self.has_checkpoint():
            return []
        tagged = self.get_checkpoint_file()
        others = sorted(_periodic(self.save_dir), reverse=True)
        final = os.path.join(self.save_dir, "model_final.pth")
        return list(dict.fromkeys([tagged, *([final] if os.path.exists(final) else []), *others]))

    def _load_file(self, filename: str) -> dict[str, Any]:
        state = read_weights(filename)
        if "trainer" not in state:
            raise CheckpointError(
                f"checkpoint {filename}: expected the states of model and trainer, found weights alone. "
                "Start from weights with MODEL.WEIGHTS, without --resume"
            )
        trainer = state["trainer"]
        if not isinstance(trainer, dict) or not {"iteration", "_trainer"} <= trainer.keys():
            raise CheckpointError(
                f"checkpoint {filename}: trainer: expected iteration and optimizer, as this project saves "
                "them, found another layout. Start from its weights with MODEL.WEIGHTS, without --resume"
            )
        return state

    def _load_model(self, path: str, state: dict[str, Any]) -> None:
        found, own = state["model"], self.model.state_dict()
        wrong = [
            f"{name}: {tuple(found[name].shape)} in the file, {tuple(value.shape)} in the model"
            for name, value in own.items()
            if name in found and found[name].shape != value.shape
        ]
        missing = [name for name in own if name not in found and not ADDED.search(name)]
        wrong += [f"{name}: only in the model" for name in missing]
        wrong += [f"{name}: only in the file" for name in found if name not in own]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise CheckpointError(
                f"checkpoint {path}: belongs to another model: {'; '.join(wrong[:5])}{more}. Resume with "
                "the config.yaml of that run, or choose another --output-dir"
            )
        try:
            self.model.load_state_dict(found)
        except RuntimeError as error:  # the bank holds other classes, though as many
            raise CheckpointError(f"checkpoint {path}: {' '.join(str(error).split())}") from error

    def _load_rest(self, path: str, state: dict[str, Any]) -> None:
        for key, target in self.checkpointables.items():
            target.load_state_dict(state[key])
        banks, world = state.get("banks", []), comm.get_world_size()
        if self.own_banks and comm.get_rank() % (1 + len(banks)):
            bank = banks[comm.get_rank() % (1 + len(banks)) - 1]
            self.model.load_state_dict({**self.model.state_dict(), **bank})
        before = state.get("world_size", world)
        if before == world and (not banks) == (not self.own_banks):
            return
        text = f"{path} was saved by {before} processes, this run has {world}"
        if before != world:
            text += ". RoIs are chosen by other random numbers from here on"
        if banks and not self.own_banks:
            text += ". All ranks take the memory bank of rank 0; the other ranks' are dropped"
        elif banks:
            text += f". Rank r takes the memory bank of rank r modulo {1 + len(banks)}"
        elif self.own_banks:
            text += ". Every rank goes on with a copy of its one memory bank"
        logger.warning("%s.", text)


def _is_bank(name: str) -> bool:
    return ".memory_bank." in name


def _periodic(folder: str) -> list[str]:
    return sorted(
        p for p in glob.glob(os.path.join(glob.escape(folder), "model_*.pth")) if re.search(r"_\d{7,}\.pth$", p)
    )


class _Checkpoints(HookBase):
    """Save every `period` iterations (CHECKPOINTS_KEPT stay) and model_final after the last."""

    def __init__(self, checkpointer: Checkpointer, period: int):
        self._checkpointer, self._period = checkpointer, period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done >= self.trainer.max_iter:
            self._checkpointer.save("model_final")
        elif self._period > 0 and done % self._period == 0:
            self._checkpointer.save(f"model_{self.trainer.iter:07d}")
            if comm.is_main_process():
                for old in _periodic(self._checkpointer.save_dir)[:-CHECKPOINTS_KEPT]:
                    os.unlink(old)


class _EvaluateAndKeepBest(HookBase):
    """Evaluate every `period` iterations and after a finished training; keep the weights with the best AP.

    detectron2's BestCheckpointer would move ``last_checkpoint`` to the best one and forget its AP on resume.
    """

    def __init__(self, period: int, function: Callable[[], dict[str, dict[str, float]]], checkpointer: Checkpointer):
        self._period, self._function, self._checkpointer = period, function, checkpointer

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done < self.trainer.max_iter:
            self._run(done)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:  # less than that after an error or a signal
            self.trainer.storage.iter = self.trainer.max_iter
            self._run(self.trainer.max_iter)

    def _run(self, iteration: int) -> None:
        metrics = self._function()
        flat = {
            f"{kind}/{name}": v for kind, values in metrics.items() for name, v in values.items() if math.isfinite(v)
        }
        self.trainer.storage.put_scalars(**flat, smoothing_hint=False)
        if comm.is_main_process():
            self._keep_best(flat, iteration)
        comm.synchronize()

    def _keep_best(self, flat: dict[str, float], iteration: int) -> None:
        metric = next((m for m in ("segm/AP", "bbox/AP") if m in flat), None)
        if metric is None:
            return
        note = os.path.join(self._checkpointer.save_dir, "model_best.json")
        best = {}
        with contextlib.suppress(FileNotFoundError), open(note, encoding="utf-8") as file:
            best = json.load(file)
        if best.get("metric") == metric and best["value"] >= flat[metric]:
            return
        self._checkpointer.save_weights("model_best")
        content = {"metric": metric, "value": flat[metric], "iteration": iteration}
        write_atomically(note, json.dumps(content).encode())


class _Writers(hooks.PeriodicWriter):
    """detectron2's writers, made when training starts: only then is it known where a resumed run begins."""

    def __init__(self, period: int):
        super().__init__([], period)

    def before_train(self) -> None:
        self._writers = self.trainer.build_writers()


# ------------------------------------------------------------------------------------------------ the trainer


class Trainer(DefaultTrainer):
    """detectron2's DefaultTrainer with a loader, checkpoints and evaluation of its own.

    >>> cfg = setup_training(load_config("configs/shapes/demo.yaml"))   # doctest: +SKIP
    >>> trainer = Trainer(cfg)                                          # doctest: +SKIP
    >>> trainer.resume_or_load(resume=True)                             # doctest: +SKIP
    >>> trainer.train()                                                 # doctest: +SKIP

    Args:
        cfg: from `setup_training`.
    """

    def __init__(self, cfg: CfgNode):
        # Not DefaultTrainer.__init__: it wraps the model for GPUs only, and starts loader processes before it
        # is known at which iteration a resumed run begins.
        TrainerBase.__init__(self)
        _seed_libraries(_derived_seed(cfg.SEED, _INIT))
        self.cfg = cfg
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._loader = self.build_train_loader(cfg)
        if comm.get_world_size() > 1:
            device_ids = [comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None
            model = DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
        kind = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = kind(model, self._loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            own_banks=cfg.MODEL.RIO.BANK_ENABLED and not cfg.MODEL.RIO.BANK_SYNC,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._stop_signal: int | None = None
        self._in_step = False
        self._last_step = -1  # the last iteration that is complete
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        model = build_model(cfg)
        count = sum(p.numel() for p in model.parameters()) / 1e6
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
        logger.info(
            "Model: %s with %s, %.1f M parameters, %.1f M trained, on %s",
            cfg.MODEL.BACKBONE.NAME,
            cfg.MODEL.ROI_HEADS.NAME,
            count,
            trained,
            cfg.MODEL.DEVICE,
        )
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainingLoader:
        return build_training_loader(cfg)

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> dict[str, dict[str, float]]:
        """Evaluate on DATASETS.TEST, see `evaluate_model`; the first one's {kind: {metric: percent}}."""
        evaluations = evaluate_model(cfg, model, output_dir=cfg.OUTPUT_DIR)
        return next(iter(evaluations.values())).metrics if evaluations else {}

    def build_hooks(self) -> list[HookBase]:
        cfg = self.cfg
        found = [hooks.IterationTimer(), hooks.LRScheduler()]
        found.append(_Checkpoints(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        found.append(_EvaluateAndKeepBest(cfg.TEST.EVAL_PERIOD, self._evaluate, self.checkpointer))
        if comm.is_main_process():
            found.append(_Writers(period=20 if self.max_iter >= 1000 else 5))
        return found

    def _evaluate(self) -> dict[str, dict[str, float]]:
        with self._outside_step():  # a signal may stop an evaluation at once: the checkpoint before it is complete
            _take_statistics_of_first_rank(self.model)
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def build_writers(self) -> list:
        path = os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")
        _forget_lines_from(path, self.start_iter)
        return [
            CommonMetricPrinter(self.max_iter),
            JSONWriter(path),
            TensorboardXWriter(self.cfg.OUTPUT_DIR, purge_step=self.start_iter),
        ]

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the newest readable checkpoint in OUTPUT_DIR, or start from MODEL.WEIGHTS.

        Raises:
            CheckpointError: no checkpoint can be read, or shapes do not fit.
        """
        path = self.checkpointer.resume() if resume else None
        if path is not None:
            self.start_iter = self.iter + 1
            logger.info("Resumed from %s: %d of %d iterations are done.", path, self.start_iter, self.max_iter)
        else:
            load_initial_weights(self.cfg, self.checkpointer.model)
        self._loader.start_iteration = self.start_iter

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["_trainer"] = self._trainer.state_dict()  # detectron2 0.6 leaves the optimiser out
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    def train(self) -> Any:
        """Train to SOLVER.MAX_ITER, evaluate.

        Returns:
            {kind: {metric: percent}} of the evaluation on the first test set; empty without one.

        Raises:
            Interrupted: SIGINT or SIGTERM came; a checkpoint was saved first.
            TrainingError: out of memory, a loss that is not finite, an image that cannot be loaded.
        """
        with self._handle_signals():
            try:
                super().train()
            except KeyboardInterrupt as error:
                if isinstance(error, Interrupted):
                    raise
                number = signal.SIGINT if self._stop_signal is None else self._stop_signal
                self._save_and_stop(number, agreed=False)
            finally:
                self._loader.close()
        return getattr(self, "_last_eval_results", {})

    def run_step(self) -> None:
        _seed_libraries(_derived_seed(self.cfg.SEED, _STEP, self.iter, comm.get_rank()))
        try:
            super().run_step()
        except _OUT_OF_MEMORY as error:
            raise TrainingError(self._out_of_memory("CUDA out of memory", error)) from error
        except FloatingPointError as error:
            raise TrainingError(self._not_finite(error)) from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error) or "CUDA out of memory" in str(error):
                raise TrainingError(self._out_of_memory("out of memory", error)) from error
            raise
        except TrainingError as error:  # from a loader process: what torch puts around the message says nothing more
            raise _own_words(error) from error

    def before_step(self) -> None:
        self._in_step = True
        super().before_step()

    def after_step(self) -> None:
        self._last_step = self.iter
        super().after_step()
        self._in_step = False
        if self._should_stop():
            self._save_and_stop(self._stop_signal or signal.SIGINT)

    def _should_stop(self) -> bool:
        if comm.get_world_size() == 1:
            return self._stop_signal is not None
        # All processes stop after the same iteration; asking costs a round trip, so not every time.
        if (self.iter + 1) % 10:
            return False
        return any(comm.all_gather(self._stop_signal is not None))

    def _save_and_stop(self, number: int, *, agreed: bool = True) -> None:
        # Not agreed on between the ranks, a checkpoint that gathers from all of them might wait for ever.
        can_save = agreed or not self.checkpointer.own_banks
        done = min(self._last_step + 1, self.max_iter)
        if (
            can_save and self._last_step == self.iter and done < self.max_iter
        ):  # not in the middle of a step, nor before the first
            self.checkpointer.save(f"model_{self.iter:07d}")
        what = f"after {done} of {self.max_iter} iterations" if self._last_step >= 0 else "before the first iteration"
        raise Interrupted(
            f"Stopped {what}. Go on from the last checkpoint in {self.cfg.OUTPUT_DIR} with the same command "
            "and --resume",
            128 + number,
        )

    @contextlib.contextmanager
    def _outside_step(self) -> Iterator[None]:
        before, self._in_step = self._in_step, False
        try:
            yield
        finally:
            self._in_step = before

    @contextlib.contextmanager
    def _handle_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
            yield
            return

        def on_signal(number: int, frame: Any) -> None:
            if self._in_step and self._stop_signal is None:
                logger.info("Stopping after this iteration (once more to stop at once, without a checkpoint) ...")
                self._stop_signal = number
            elif self._stop_signal is not None:
                raise KeyboardInterrupt
            else:
                self._stop_signal = number
                raise KeyboardInterrupt

        before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _out_of_memory(self, what: str, error: Exception) -> str:
        cfg, world = self.cfg, comm.get_world_size()
        return (
            f"{what} at iteration {self.iter} with {cfg.SOLVER.IMS_PER_BATCH // world} images a process "
            f"({str(error).strip().splitlines()[0][:160]}). Lower SOLVER.IMS_PER_BATCH (now "
            f"{cfg.SOLVER.IMS_PER_BATCH}; SOLVER.BASE_LR by the same factor, or set "
            f"SOLVER.REFERENCE_WORLD_SIZE), INPUT.MIN_SIZE_TRAIN (now {tuple(cfg.INPUT.MIN_SIZE_TRAIN)}) or "
            f"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE (now {cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE}), or set "
            "SOLVER.AMP.ENABLED True; then go on with --resume"
        )

    def _not_finite(self, error: Exception) -> str:
        solver = self.cfg.SOLVER
        return (
            f"the loss is not finite at iteration {self.iter} ({' '.join(str(error).split())}). Lower "
            f"SOLVER.BASE_LR (now {solver.BASE_LR:g}), lengthen SOLVER.WARMUP_ITERS (now "
            f"{solver.WARMUP_ITERS}), set SOLVER.CLIP_GRADIENTS.ENABLED True, or SOLVER.AMP.ENABLED False "
            "if it is on. Saved weights may have begun to diverge already: start again, or --resume from "
            "an earlier checkpoint by writing its name into last_checkpoint"
        )


def _take_statistics_of_first_rank(model: torch.nn.Module) -> None:
    """Give all ranks the first one's batch norm statistics: the model that is evaluated is the one saved.

    Each rank's are of its own images (the training itself reads only the batch's). The bank is not touched.
    """
    if comm.get_world_size() == 1:
        return
    for name, buffer in model.named_buffers():
        if not _is_bank(name):
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


def _forget_lines_from(path: str, iteration: int) -> None:
    """Drop what a killed run wrote into metrics.json after the checkpoint that it is resumed from."""
    try:
        with open(path, "rb") as file:
            lines = file.readlines()
    except FileNotFoundError:
        return
    kept = []
    for line in lines:
        try:
            if json.loads(line)["iteration"] < iteration:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the half line of a killed process
    if kept != lines:
        write_atomically(path, b"".join(kept))


# ------------------------------------------------------------------------------------------------- evaluation


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
                mapper=partial(_load_image, _Mapper(cfg, False)),
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            )
            try:
                outcome = inference_on_dataset(detector, loader, ResultsCollector(test))
            except _OUT_OF_MEMORY as error:
                raise TrainingError(
                    f"CUDA out of memory in the evaluation on {name} "
                    f"({str(error).strip().splitlines()[0][:160]}). Lower INPUT.MIN_SIZE_TEST (now "
                    f"{cfg.INPUT.MIN_SIZE_TEST}), INPUT.MAX_SIZE_TEST (now {cfg.INPUT.MAX_SIZE_TEST}) or "
                    f"TEST.DETECTIONS_PER_IMAGE (now {cfg.TEST.DETECTIONS_PER_IMAGE}: their masks are "
                    "pasted into the whole image); the trained weights are saved"
                ) from error
            except TrainingError as error:
                raise _own_words(error) from error
            if comm.is_main_process():
                where = os.path.join(folder, part)
                evaluation = _score(test, outcome["results"], where, cfg, backend)
                logger.info("%s%s:\n%s", name, f" ({part})" if part else "", evaluation.table())
                found[f"{name} ({part})" if part else name] = evaluation
    return found


def _score(test: Annotations, results: list[dict], folder: str, cfg: CfgNode, backend: str) -> Evaluation:
    _make_folder(folder)
    write_atomically(os.path.join(folder, "instances_results.json"), msgspec.json.encode(results))
    started = time.perf_counter()
    kinds = ("bbox", "segm") if cfg.MODEL.MASK_ON and test.has_segmentations else ("bbox",)
    if not results:
        logger.warning("The model found nothing at all in %d images: every AP is 0.", test.num_images)
    evaluation = evaluate(test, results, iou_types=kinds, backend=backend, allow_empty=True)
    evaluation.to_json(os.path.join(folder, "evaluation.json"))
    logger.info("Scored %d detections in %.1f s", len(results), time.perf_counter() - started)
    return evaluation


# ------------------------------------------------------------------------------------------------- prediction


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


def read_image(path: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as its EXIF data says.

    Raises:
        TrainingError: names the file, and why it cannot be read.
    """
    try:
        _require_8_bits(path)
        return np.ascontiguousarray(detection_utils.read_image(path, format="RGB"))
    except _UNREADABLE as error:
        raise TrainingError(f"image {path}: expected a picture, found: {type(error).__name__}: {error}") from error
