"""Hooks of the trainer: checkpoints, evaluation with the best weights, writers; signals."""

import contextlib
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from rio.data.files import write_atomically
from rio.engine.checkpoints import CHECKPOINTS_KEPT, Checkpointer, periodic_checkpoints


class PeriodicCheckpoints(HookBase):
    """Save every `period` iterations, of which the last CHECKPOINTS_KEPT stay, and model_final after the last one.

    fvcore's hook forgets the files from before a resume, and saves a periodic checkpoint right before model_final:
    killed between the two, a run would resume as finished and never have a model_final.
    """

    def __init__(self, checkpointer: Checkpointer, period: int):
        self._checkpointer, self._period = checkpointer, period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done >= self.trainer.max_iter:
            self._checkpointer.save("model_final")
        elif self._period > 0 and done % self._period == 0:
            self._checkpointer.save(f"model_{self.trainer.iter:07d}")
            if comm.is_main_process():
                for path in periodic_checkpoints(self._checkpointer.save_dir)[CHECKPOINTS_KEPT:]:
                    os.unlink(path)


class EvaluateAndKeepBest(HookBase):
    """Evaluate every `period` iterations and after the last; keep the weights with the best AP.

    detectron2's BestCheckpointer would move ``last_checkpoint`` to the best one and forget its AP on resume.
    """

    def __init__(self, period: int, function: Callable[[], dict[str, dict[str, float]]], checkpointer: Checkpointer):
        self._period, self._function, self._checkpointer = period, function, checkpointer

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done < self.trainer.max_iter:
            self._evaluate(done)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:  # less than that after an error or a signal
            self.trainer.storage.iter = self.trainer.max_iter
            self._evaluate(self.trainer.max_iter)

    def _evaluate(self, iteration: int) -> None:
        scores = {f"{kind}/{name}": v for kind, metrics in self._function().items() for name, v in metrics.items()}
        scores = {name: value for name, value in scores.items() if math.isfinite(value)}
        self.trainer.storage.put_scalars(**scores, smoothing_hint=False)
        metric = next((name for name in ("segm/AP", "bbox/AP") if name in scores), None)
        if metric is not None and comm.is_main_process():
            self._keep_best(metric, scores[metric], iteration)
        comm.synchronize()

    def _keep_best(self, metric: str, value: float, iteration: int) -> None:
        note, best = os.path.join(self._checkpointer.save_dir, "model_best.json"), {}
        with contextlib.suppress(FileNotFoundError), open(note, encoding="utf-8") as file:
            best = json.load(file)
        if best.get("metric") != metric or best["value"] < value:
            self._checkpointer.save_weights("model_best")
            content = {"metric": metric, "value": value, "iteration": iteration}
            write_atomically(note, json.dumps(content).encode())


class Writers(hooks.PeriodicWriter):
    """detectron2's writers, made when training starts: only then is it known where a resumed run begins."""

    def before_train(self) -> None:
        self._writers = self.trainer.build_writers()
        if self.trainer.start_iter:  # for figures: detectron2's medians of 20 steps begin anew here
            self.trainer.storage.put_scalar("resumed", 1, smoothing_hint=False)


def forget_lines_from(path: str, iteration: int) -> None:
    """Drop what a killed run wrote into metrics.json after the checkpoint that it resumes from."""
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        lines = file.readlines()
    kept = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # the half line of a killed process
            if json.loads(line)["iteration"] < iteration:
                kept.append(line)
    if kept != lines:
        write_atomically(path, b"".join(kept))


@contextlib.contextmanager
def stop_signals_go_to(function: Callable[[int], None]) -> Iterator[None]:
    """Call `function` with the number of every SIGINT and SIGTERM; only in the main thread, which signals belong to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, frame: function(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
