"""Training, from top to bottom: `Trainer` is detectron2's DefaultTrainer whose runs can be stopped at any moment.

What is random follows from the seed, so checkpoints hold nothing of it:

    data order          rio.sampler, a function of (seed, iteration)
    augmentation        seeded by (seed, position in the sampler's stream)
    RoI/anchor choice   torch's generator, seeded by (seed, iteration, rank) before every step

They hold parameters, bank (of each rank without MODEL.RIO.BANK_SYNC), momentum, schedule and AMP scaler. So a run
that was stopped and resumed ends, on a CPU, with the same bits as one that was not. It may be resumed with another
number of processes: the global batch, the bank and, without DATALOADER.ASPECT_RATIO_GROUPING, the order of the images
stay; RoIs are chosen by other random numbers.
"""

import logging
import os
import signal
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from torch.nn.parallel import DistributedDataParallel

import rio.engine.backbone
import rio.roi_heads  # noqa: F401  both register their modules with detectron2
from rio.engine.checkpoints import Checkpointer
from rio.engine.errors import Interrupted, TrainingError, is_out_of_memory, not_finite, out_of_memory, own_words
from rio.engine.feature_training import FeatureLoader, build_feature_loader
from rio.engine.fewer_waits import AMPStep, Step, wait_less
from rio.engine.hooks import EvaluateAndKeepBest, PeriodicCheckpoints, Writers, forget_lines_from, stop_signals_go_to
from rio.engine.inference import evaluate_model, load_initial_weights, share_first_ranks_statistics
from rio.engine.loader import INIT, STEP, TrainingLoader, build_training_loader, derived_seed, seed_libraries

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):  # type: ignore[misc]
    """Trains what a config describes.

    >>> cfg = setup_training(load_config("configs/shapes/demo.yaml"))   # doctest: +SKIP
    >>> trainer = Trainer(cfg)                                          # doctest: +SKIP
    >>> trainer.resume_or_load(resume=True)                             # doctest: +SKIP
    >>> trainer.train()                                                 # doctest: +SKIP

    Args:
        cfg: from `rio.engine.setup.setup_training`.
    """

    def __init__(self, cfg: CfgNode):
        # Not DefaultTrainer.__init__, which wraps the model for GPUs only and saves by another checkpointer.
        TrainerBase.__init__(self)
        seed_libraries(derived_seed(cfg.SEED, INIT))
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._loader = self.build_train_loader(cfg)
        if comm.get_world_size() > 1:
            device_ids = [comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None
            model = DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
        self._trainer = (AMPStep if cfg.SOLVER.AMP.ENABLED else Step)(model, self._loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        own_banks = cfg.MODEL.RIO.BANK_ENABLED and not cfg.MODEL.RIO.BANK_SYNC
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, own_banks=own_banks, trainer=weakref.proxy(self))
        self._stop_signal: int | None = None
        self._in_step = False
        self._last_step = -1  # the last iteration that is complete
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        model: torch.nn.Module = wait_less(build_model(cfg))
        parameters = [(p.numel() / 1e6, p.requires_grad) for p in model.parameters()]
        logger.info(
            "Model: %s with %s, %.1f M parameters, %.1f M trained, on %s",
            cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME, sum(size for size, _ in parameters),
            sum(size for size, trained in parameters if trained), cfg.MODEL.DEVICE,
        )  # fmt: skip
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainingLoader | FeatureLoader:
        """Images, or their stored RoIs, in the order of MODEL.RIO.SAMPLER."""
        return build_feature_loader(cfg) if cfg.MODEL.RIO.FEATURES else build_training_loader(cfg)

    def build_hooks(self) -> list[HookBase]:
        """Learning rate, checkpoints, evaluation, and last the writers, which see what the others put."""
        found = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            PeriodicCheckpoints(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD),
            EvaluateAndKeepBest(self.cfg.TEST.EVAL_PERIOD, self._evaluate, self.checkpointer),
        ]
        if comm.is_main_process():
            found.append(Writers([], period=20 if self.max_iter >= 1000 else 5))
        return found

    def build_writers(self) -> list[EventWriter]:
        """The terminal, metrics.json and TensorBoard; lines behind the resumed checkpoint go."""
        path = os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")
        forget_lines_from(path, self.start_iter)
        board = TensorboardXWriter(self.cfg.OUTPUT_DIR, purge_step=self.start_iter)
        return [CommonMetricPrinter(self.max_iter), JSONWriter(path), board]

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the newest readable checkpoint in OUTPUT_DIR, or start from MODEL.WEIGHTS.

        Raises:
            CheckpointError: No checkpoint can be read, or shapes do not fit.
        """
        path = self.checkpointer.resume() if resume else None
        if path is not None:
            self.start_iter = self.iter + 1
            logger.info("Resumed from %s: %d of %d iterations are done.", path, self.start_iter, self.max_iter)
        else:
            load_initial_weights(self.cfg, self.checkpointer.model)
        self._loader.start_iteration = self.start_iter

    def state_dict(self) -> dict[str, Any]:
        """Iteration, scheduler and optimizer, which detectron2 0.6 leaves out."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        # A run begun in float32 has no AMP scaler: the new one's initial state stands in.
        self._trainer.load_state_dict(self._trainer.state_dict() | state_dict["_trainer"])

    def train(self) -> dict[str, dict[str, float]]:
        """Train to SOLVER.MAX_ITER, evaluate.

        Returns:
            {kind: {metric: percent}} of the evaluation on the first test set; empty without one.

        Raises:
            Interrupted: SIGINT or SIGTERM came; a checkpoint was saved first.
            TrainingError: Out of memory, a loss that is not finite, an image that cannot be loaded.
        """
        self._last_eval_results: dict[str, dict[str, float]] = {}
        with stop_signals_go_to(self._on_signal):
            try:
                super().train()
            except Interrupted:
                raise
            except KeyboardInterrupt:
                self._save_and_stop(agreed=False)
            finally:
                self._loader.close()
        return self._last_eval_results

    def before_step(self) -> None:
        self._in_step = True
        super().before_step()

    def run_step(self) -> None:
        seed_libraries(derived_seed(self.cfg.SEED, STEP, self.iter, comm.get_rank()))
        try:
            super().run_step()
        except TrainingError as error:  # from the loader
            raise own_words(error) from error
        except FloatingPointError as error:
            raise not_finite(self.cfg, self.iter, error) from error
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise out_of_memory(self.cfg, self.iter, error) from error
            raise

    def after_step(self) -> None:
        self._last_step = self.iter
        super().after_step()
        self._in_step = False
        if self._should_stop():
            self._save_and_stop(agreed=True)

    def _evaluate(self) -> dict[str, dict[str, float]]:
        before, self._in_step = self._in_step, False  # a signal may stop it at once: a checkpoint was saved before
        share_first_ranks_statistics(self.model)
        self._last_eval_results = self.test(self.cfg, self.model)
        self._in_step = before
        return self._last_eval_results

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> dict[str, dict[str, float]]:
        """Evaluate on DATASETS.TEST, see `evaluate_model`; the first one's {kind: {metric: percent}}."""
        evaluations = evaluate_model(cfg, model, output_dir=cfg.OUTPUT_DIR)
        return next(iter(evaluations.values())).metrics if evaluations else {}

    def _should_stop(self) -> bool:
        stop = self._stop_signal is not None
        if comm.get_world_size() == 1:
            return stop
        # All processes stop after the same iteration; asking costs a round trip, so every tenth time.
        return (self.iter + 1) % 10 == 0 and any(comm.all_gather(stop))

    def _save_and_stop(self, *, agreed: bool) -> None:
        """Save, unless in the middle of a step, and raise Interrupted."""
        done = min(self._last_step + 1, self.max_iter)
        # Where the ranks have not agreed, a checkpoint that gathers from all of them might wait for ever.
        can_save = agreed or not self.checkpointer.own_banks
        if can_save and self._last_step == self.iter and done < self.max_iter:
            self.checkpointer.save(f"model_{self.iter:07d}")
        what = f"after {done} of {self.max_iter} iterations" if done else "before the first iteration"
        raise Interrupted(
            f"Stopped {what}. Go on from the last checkpoint in {self.cfg.OUTPUT_DIR} with the same command and "
            "--resume",
            128 + (self._stop_signal or signal.SIGINT),
        )

    def _on_signal(self, number: int) -> None:
        """The first signal in a step lets it finish; a second one, or one between steps, stops at once."""
        finish, self._stop_signal = self._in_step and self._stop_signal is None, self._stop_signal or number
        if not finish:
            raise KeyboardInterrupt
        logger.info("Stopping after this iteration (once more to stop at once, without a checkpoint) ...")
