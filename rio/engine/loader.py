"""Training images in an order and with an augmentation that depend on seed and position only."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.utils import comm
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from rio.data import names as datasets
from rio.data.images import UNREADABLE, require_8_bits
from rio.engine import records
from rio.engine.errors import TrainingError
from rio.sampler import BatchSampler, aspect_ratio_groups, image_repeat_factors

INIT, AUGMENT, STEP = range(3)  # what a seed is for, so that no two uses share a stream


def derived_seed(*parts: int) -> int:
    """A 32-bit seed from a few integers >= 0; NumPy promises that SeedSequence never changes."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def seed_libraries(seed: int) -> None:
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
        with _seeded(derived_seed(self.seed, AUGMENT, position)):
            return load_image(self.mapper, record)


_UNREADABLE = (*UNREADABLE, detection_utils.SizeMismatchError)


def load_image(mapper: Callable[[dict], dict], record: dict) -> dict:
    """What a mapper makes of a record's image.

    Raises:
        TrainingError: names an image that cannot be read or has another size, or that would be misread.
    """
    try:
        return mapper(record)
    except _UNREADABLE as error:
        raise TrainingError(
            f"image {record.get('file_name')} (image_id {record.get('image_id')}): could not be "
            f"loaded: {type(error).__name__}: {error}. Fix: replace or remove the image, or "
            "check the image folder"
        ) from error


class Mapper(DatasetMapper):
    """detectron2's, for images that it reads right; the ground truth has the field "gt_object_ids" besides.

    That is (G, 2) int64, for each object the image's id and the object's place among the record's annotations:
    the same numbers whenever the image is shown.
    """

    def __call__(self, record: dict) -> dict:
        with Image.open(record["file_name"]) as image:
            require_8_bits(image)
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
    rio = cfg.MODEL.RIO
    batches = BatchSampler(
        image_repeat_factors(
            annotations,
            rio.SAMPLER,
            cfg.DATALOADER.REPEAT_THRESHOLD,
            rio.SAMPLER_SQRT,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        ),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=cfg.SEED,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        groups=aspect_ratio_groups(annotations) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
    )
    samples = TrainingSamples(records.records(annotations), Mapper(cfg, True), cfg.SEED)
    return TrainingLoader(samples, batches, cfg.DATALOADER.NUM_WORKERS)
