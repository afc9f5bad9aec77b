"""Training batches that depend on the seed and the iteration only, not on the number of loader processes.

Every showing of an image has a position in the sampler's stream; its augmentation is seeded by (seed, position).
"""

import contextlib
import random
import signal
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.utils import comm
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from rio.data.annotations import Annotations
from rio.data.images import UNREADABLE, require_8_bits
from rio.data.names import annotations_of
from rio.engine.errors import TrainingError
from rio.engine.records import records
from rio.sampler import BatchSampler, aspect_ratio_groups, image_repeat_factors

INIT, AUGMENT, STEP = range(3)  # what a seed is for, so that no two uses share a stream


def derived_seed(*parts: int) -> int:
    """A 32-bit seed from a few integers >= 0; NumPy promises that SeedSequence never changes."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def seed_libraries(seed: int) -> None:
    """Seed the global generators, as detectron2 draws from them."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for a block, then put them back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # the CPU's only: a worker must not touch CUDA
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Mapper(DatasetMapper):
    """detectron2's, which refuses images that it would misread."""

    def __call__(self, record: dict) -> dict:
        """Load, augment; a TrainingError if the image is unreadable, of another size or more than 8 bits a channel."""
        try:
            with Image.open(record["file_name"]) as image:
                require_8_bits(image)
            return super().__call__(record)
        except (*UNREADABLE, detection_utils.SizeMismatchError) as error:
            raise TrainingError(
                f"image {record['file_name']} (image_id {record.get('image_id')}): could not be loaded: "
                f"{type(error).__name__}: {error}. Fix: replace or remove the image, or check the image folder"
            ) from error


class TrainingSamples(Dataset):
    """(position, image index) -> model input, the same in every process.

    `mapper` makes it of one of `records`, and may draw from the global generators; `seed` is the run's.
    """

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], dict], seed: int):
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, sample: tuple[int, int]) -> dict:
        position, index = sample
        with _seeded(derived_seed(self.seed, AUGMENT, position)):
            return self.mapper(self.records[index])


class TrainingLoader:
    """An endless iterable of training batches that begins at `start_iteration`; `num_workers` 0 loads in this process.

    Its processes start with the first batch: only then is it known where a resumed run begins.
    """

    def __init__(self, samples: TrainingSamples, batches: BatchSampler, num_workers: int):
        self.samples, self.batches, self.num_workers = samples, batches, num_workers
        self.start_iteration = 0
        self._iterator: Generator[list[dict], None, None] | None = None

    def __iter__(self) -> Generator[list[dict], None, None]:
        self._iterator = self._load()
        return self._iterator

    def close(self) -> None:
        """End the loader processes."""
        if self._iterator is not None:
            self._iterator.close()

    def _load(self) -> Generator[list[dict], None, None]:
        self.batches.start_iteration = self.start_iteration
        iterator = iter(
            DataLoader(
                self.samples, batch_sampler=self.batches, num_workers=self.num_workers, collate_fn=list,
                worker_init_fn=_quiet_worker,
                generator=torch.Generator().manual_seed(0),  # torch's global one belongs to the training step
            )
        )  # fmt: skip
        try:
            yield from iterator
        finally:
            if self.num_workers:  # else an error's traceback keeps them until the garbage collector comes
                iterator._shutdown_workers()


def _quiet_worker(worker_id: int) -> None:
    # Ctrl-C reaches every process of the terminal, SLURM's SIGTERM every process of the job; the run finishes its step
    # and saves, so its workers go on. They end with the run.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def build_training_loader(cfg: CfgNode) -> TrainingLoader:
    """The loader for a config from `rio.engine.setup.setup_training`."""
    annotations = annotations_of(cfg.DATASETS.TRAIN[0])
    samples = TrainingSamples(records(annotations), Mapper(cfg, True), cfg.SEED)
    return TrainingLoader(samples, build_batch_sampler(cfg, annotations), cfg.DATALOADER.NUM_WORKERS)


def build_batch_sampler(cfg: CfgNode, annotations: Annotations) -> BatchSampler:
    """The order of the training images, for this process."""
    rio = cfg.MODEL.RIO
    return BatchSampler(
        image_repeat_factors(
            annotations, rio.SAMPLER, cfg.DATALOADER.REPEAT_THRESHOLD, rio.SAMPLER_SQRT,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        ),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=cfg.SEED,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        groups=aspect_ratio_groups(annotations) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
    )  # fmt: skip
