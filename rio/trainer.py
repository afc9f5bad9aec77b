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
import logging
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from torch.nn.parallel import DistributedDataParallel

import rio.roi_heads  # noqa: F401  registers its modules with detectron2
from rio.engine.checkpoints import Checkpointer
from rio.engine.errors import OUT_OF_MEMORY, Interrupted, TrainingError, own_words
from rio.engine.hooks import EvaluateAndKeepBest, PeriodicCheckpoints, Writers, forget_lines_from
from rio.engine.inference import evaluate_model, load_initial_weights, take_statistics_of_first_rank
from rio.engine.loader import INIT, STEP, TrainingLoader, build_training_loader, derived_seed, seed_libraries

logger = logging.getLogger(__name__)


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
        seed_libraries(derived_seed(cfg.SEED, INIT))
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
        found.append(PeriodicCheckpoints(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        found.append(EvaluateAndKeepBest(cfg.TEST.EVAL_PERIOD, self._evaluate, self.checkpointer))
        if comm.is_main_process():
            found.append(Writers(period=20 if self.max_iter >= 1000 else 5))
        return found

    def _evaluate(self) -> dict[str, dict[str, float]]:
        with self._outside_step():  # a signal may stop an evaluation at once: the checkpoint before it is complete
            take_statistics_of_first_rank(self.model)
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def build_writers(self) -> list:
        path = os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")
        forget_lines_from(path, self.start_iter)
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
        seed_libraries(derived_seed(self.cfg.SEED, STEP, self.iter, comm.get_rank()))
        try:
            super().run_step()
        except OUT_OF_MEMORY as error:
            raise TrainingError(self._out_of_memory("CUDA out of memory", error)) from error
        except FloatingPointError as error:
            raise TrainingError(self._not_finite(error)) from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error) or "CUDA out of memory" in str(error):
                raise TrainingError(self._out_of_memory("out of memory", error)) from error
            raise
        except TrainingError as error:  # from a loader process: what torch puts around the message says nothing more
            raise own_words(error) from error

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
