"""What the tests of training do to a run, and how they compare two."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch

from rio.engine.errors import Interrupted
from rio.trainer import Trainer


def do_in(run: Trainer, iteration: int, action: Callable[[], None]) -> None:
    """Have the run do something at the start of an iteration."""
    step = run.run_step

    def run_step() -> None:
        if run.iter == iteration:
            action()
        step()

    run.run_step = run_step


def train_until(run: Trainer, iteration: int) -> Interrupted:
    """Train, pressing Ctrl-C in an iteration."""
    do_in(run, iteration, lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        run.train()
    except Interrupted as stopped:
        return stopped
    raise AssertionError(f"the training was not stopped in iteration {iteration}")


def stopped_and_resumed(prepared: Callable, folder: Path, *options: object, at: int, max_iter: int) -> Trainer:
    """A run to its end, which Ctrl-C has stopped in an iteration in between."""
    train_until(prepared(folder, *options, max_iter=max_iter), at)
    run = prepared(folder, *options, resume=True, max_iter=max_iter)
    assert run.start_iter == at + 1
    run.train()
    return run


def lines_of(folder: Path | str) -> list[dict]:
    """What a run has logged in metrics.json."""
    return [json.loads(line) for line in Path(folder, "metrics.json").read_text().splitlines()]


def differing(a: dict, b: dict) -> list[str]:
    """Names of the tensors that differ in any bit, or are in one only."""
    return [name for name in a.keys() | b.keys() if name not in a or name not in b or not torch.equal(a[name], b[name])]
