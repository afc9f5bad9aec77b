"""Errors of training that say what to change."""

from __future__ import annotations

import torch

OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)  # its place before torch 2.5


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


def own_words(error: TrainingError) -> TrainingError:
    """An error without what torch puts around its message where it comes from a loader process."""
    return TrainingError(str(error).rsplit("TrainingError: ", 1)[-1].strip())
