"""Checkpoints of a run: written atomically, read without running code, held to the model's shapes."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

from rio.data.files import write_atomically
from rio.engine.weights import ADDED, CheckpointError, read_weights

logger = logging.getLogger(__name__)


# Periodic checkpoints that stay in the run's folder, beside model_final and model_best. Each is about twice
# the weights (momentum) plus the bank; the reference's schedule would leave 18 of them.
CHECKPOINTS_KEPT = 3


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
        return comm.gather({name: own[name].cpu() for name in own if is_bank(name)})[1:]

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
        others = sorted(periodic(self.save_dir), reverse=True)
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


def is_bank(name: str) -> bool:
    return ".memory_bank." in name


def periodic(folder: str) -> list[str]:
    return sorted(
        p for p in glob.glob(os.path.join(glob.escape(folder), "model_*.pth")) if re.search(r"_\d{7,}\.pth$", p)
    )
