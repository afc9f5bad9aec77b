"""Errors that end a run; each says what to change."""

import re

from detectron2.config import CfgNode
from detectron2.utils import comm


class TrainingError(ValueError):
    """A run that cannot go on; the message says what to change."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run after it had saved a checkpoint; `exit_code` is 128 + its number, as in shells."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def is_out_of_memory(error: Exception) -> bool:
    """What torch's allocators, cuBLAS and cuDNN say when memory runs out; all are RuntimeErrors."""
    return bool(re.search(r"out of memory|can't allocate memory|ALLOC(ATION)?_FAILED", str(error)))


def own_words(error: TrainingError) -> TrainingError:
    """An error from a loader process without the traceback that torch puts around its message."""
    return TrainingError(str(error).rsplit("TrainingError: ", 1)[-1].strip())


def out_of_memory(cfg: CfgNode, iteration: int, error: Exception) -> TrainingError:
    """A training step for which memory did not suffice."""
    images, heads = cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.ROI_HEADS
    return TrainingError(
        f"out of memory at iteration {iteration} with {images // comm.get_world_size()} images per process "
        f"({str(error).strip().splitlines()[0][:160]}). Fix: lower SOLVER.IMS_PER_BATCH (now {images}; "
        "SOLVER.BASE_LR likewise, or set SOLVER.REFERENCE_WORLD_SIZE), INPUT.MIN_SIZE_TRAIN (now "
        f"{tuple(cfg.INPUT.MIN_SIZE_TRAIN)}) or MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE (now {heads.BATCH_SIZE_PER_IMAGE})"
        ", or set SOLVER.AMP.ENABLED True; then go on with --resume"
    )


def out_of_memory_in_evaluation(cfg: CfgNode, name: str, error: Exception) -> TrainingError:
    """The same in an evaluation."""
    return TrainingError(
        f"out of memory in the evaluation on {name} ({str(error).strip().splitlines()[0][:160]}). Fix: lower "
        f"INPUT.MIN_SIZE_TEST (now {cfg.INPUT.MIN_SIZE_TEST}), INPUT.MAX_SIZE_TEST (now {cfg.INPUT.MAX_SIZE_TEST}) or "
        f"TEST.DETECTIONS_PER_IMAGE (now {cfg.TEST.DETECTIONS_PER_IMAGE}: each mask is pasted into a whole image); the "
        "trained weights are saved"
    )


def not_finite(cfg: CfgNode, iteration: int, error: Exception) -> TrainingError:
    """A loss that is infinite or NaN."""
    solver = cfg.SOLVER
    return TrainingError(
        f"the loss is not finite at iteration {iteration} ({' '.join(str(error).split())}). Fix: lower SOLVER.BASE_LR "
        f"(now {solver.BASE_LR:g}), lengthen SOLVER.WARMUP_ITERS (now {solver.WARMUP_ITERS}), set "
        "SOLVER.CLIP_GRADIENTS.ENABLED True, or SOLVER.AMP.ENABLED False if it is on. Saved weights may have begun to "
        "diverge: start again, or write an earlier checkpoint's name into last_checkpoint and --resume"
    )
