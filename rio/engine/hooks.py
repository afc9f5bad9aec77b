"""Hooks of the trainer: periodic checkpoints, evaluation and the best weights, writers."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from rio.data.files import write_atomically
from rio.engine.checkpoints import CHECKPOINTS_KEPT, Checkpointer, periodic


class PeriodicCheckpoints(HookBase):
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
                for old in periodic(self._checkpointer.save_dir)[:-CHECKPOINTS_KEPT]:
                    os.unlink(old)


class EvaluateAndKeepBest(HookBase):
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


class Writers(hooks.PeriodicWriter):
    """detectron2's writers, made when training starts: only then is it known where a resumed run begins."""

    def __init__(self, period: int):
        super().__init__([], period)

    def before_train(self) -> None:
        self._writers = self.trainer.build_writers()


def forget_lines_from(path: str, iteration: int) -> None:
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
