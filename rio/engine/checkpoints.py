"""Checkpoints of a run: written atomically, read without running code, resumed only by the model that wrote them."""

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
from rio.engine.weights import CheckpointError, is_bank, read_weights

CHECKPOINTS_KEPT = 3  # periodic ones, beside model_final and model_best: each is about twice the weights

logger = logging.getLogger(__name__)


def periodic_checkpoints(folder: str) -> list[str]:
    """The files that are saved every SOLVER.CHECKPOINT_PERIOD iterations, newest first."""
    paths = glob.glob(os.path.join(glob.escape(folder), "model_*.pth"))
    return sorted((path for path in paths if re.search(r"_\d{7,}\.pth$", path)), reverse=True)


class Checkpointer(DetectionCheckpointer):
    """detectron2's, written atomically; resumes from the newest file that can be read and fits.

    With `own_banks` every rank has a memory bank of its own; all are saved in the one file.
    """

    def __init__(self, *args: Any, own_banks: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.own_banks = own_banks and comm.get_world_size() > 1

    def save(self, name: str, **extra: Any) -> None:
        """Write ``name.pth`` with all that a resumed run needs, called by every rank; point ``last_checkpoint`` to it.
        A CheckpointError where the disk is full or the folder not writable; earlier files are untouched.
        """
        banks = []  # of the ranks after the first, whose bank is part of the model
        if self.own_banks:
            own = self.model.state_dict()
            banks = comm.gather({key: own[key].cpu() for key in own if is_bank(key)})[1:]
        if self.save_dir and self.save_to_disk:
            trained = {key: target.state_dict() for key, target in self.checkpointables.items()}
            model, world = self.model.state_dict(), comm.get_world_size()
            self._save(name, {"model": model, "world_size": world, "banks": banks, **trained, **extra})
            self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str) -> None:
        """Write ``name.pth`` with the model only, for use and not for resuming."""
        if self.save_dir and self.save_to_disk:
            self._save(name, {"model": self.model.state_dict()})

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        self._write("last_checkpoint", last_filename_basename.encode())

    def _save(self, name: str, state: dict[str, Any]) -> None:
        self._write(f"{name}.pth", lambda file: torch.save(state, file))
        logger.info("Saved %s", os.path.join(self.save_dir, f"{name}.pth"))

    def _write(self, basename: str, content: bytes | Callable[[Any], None]) -> None:
        path = os.path.join(self.save_dir, basename)
        try:
            write_atomically(path, content)
        except (OSError, RuntimeError) as error:  # torch reports a failed write of its zip file as RuntimeError
            raise CheckpointError(
                f"checkpoint {path}: could not be written: {error}. Earlier checkpoints are untouched. Fix: make room, "
                "then go on with --resume"
            ) from error

    def resume(self) -> str | None:
        """Load the newest checkpoint that can be read and fits, the same on all ranks; its path, None without any.

        A CheckpointError where none of them can be read or all belong to another model.
        """
        problems = []
        for path in comm.all_gather(self._candidates())[0]:
            problem = ""
            try:
                state = _read_resumable(path)
                self._load_model_exactly(path, state["model"])
            except CheckpointError as error:
                problem = str(error)
            found = [text for text in comm.all_gather(problem) if text]  # one rank's trouble is everybody's
            if not found:
                for key, target in self.checkpointables.items():
                    target.load_state_dict(state[key])
                self._load_banks(path, state)
                return path
            logger.warning("%s. Trying the one before it.", found[0])
            problems.append(found[0])
        if not problems:
            return None
        if all("belongs to another model" in problem for problem in problems):
            raise CheckpointError(problems[0])
        raise CheckpointError(
            f"{self.save_dir}: none of its checkpoints can be read: {'; '.join(problems)}. Fix: begin again in another "
            "folder (--output-dir)"
        )

    def _candidates(self) -> list[str]:
        """The tagged checkpoint first, then the other resumable ones, newest first."""
        if not self.has_checkpoint():
            return []
        final = glob.glob(os.path.join(glob.escape(self.save_dir), "model_final.pth"))
        return list(dict.fromkeys([self.get_checkpoint_file(), *final, *periodic_checkpoints(self.save_dir)]))

    def _load_model_exactly(self, path: str, found: dict[str, torch.Tensor]) -> None:
        own = self.model.state_dict()
        wrong = [
            f"{name}: {tuple(found[name].shape)} in the file, {tuple(value.shape)} in the model"
            for name, value in own.items()
            if name in found and found[name].shape != value.shape
        ]
        wrong += [f"{name}: only in the model" for name in own if name not in found]
        wrong += [f"{name}: only in the file" for name in found if name not in own]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise CheckpointError(
                f"checkpoint {path}: belongs to another model: {'; '.join(wrong[:5])}{more}. Fix: resume with the "
                "config.yaml of that run, or choose another --output-dir"
            )
        try:
            self.model.load_state_dict(found)
        except RuntimeError as error:  # the bank holds other classes, though as many
            raise CheckpointError(f"checkpoint {path}: {' '.join(str(error).split())}") from error

    def _load_banks(self, path: str, state: dict[str, Any]) -> None:
        """Of P ranks' banks, rank r takes that of rank r modulo P; says so where the number of ranks changed."""
        banks, world = state.get("banks", []), comm.get_world_size()
        place = comm.get_rank() % (1 + len(banks))
        if self.own_banks and place:
            self.model.load_state_dict({**self.model.state_dict(), **banks[place - 1]})
        before = state.get("world_size", world)
        if before == world and bool(banks) == self.own_banks:
            return
        text = f"{path} was saved by {before} processes, this run has {world}."
        if before != world:
            text += " RoIs are chosen by other random numbers from here on."
        if banks and not self.own_banks:
            text += " All ranks take the memory bank of rank 0; the other ranks' are dropped."
        elif banks:
            text += f" Rank r takes the memory bank of rank r modulo {1 + len(banks)}."
        elif self.own_banks:
            text += " Every rank goes on with a copy of its one memory bank."
        logger.warning("%s", text)


def _read_resumable(path: str) -> dict[str, Any]:
    """The states of model and trainer."""
    state = read_weights(path)
    if "trainer" not in state:
        found = "found weights only"
    elif not isinstance(state["trainer"], dict) or not {"iteration", "_trainer"} <= state["trainer"].keys():
        found = "found another layout"
    else:
        return state
    raise CheckpointError(
        f"checkpoint {path}: expected the states of model and trainer (iteration, optimizer) as this project saves "
        f"them, {found}. Fix: start from its weights with MODEL.WEIGHTS, without --resume"
    )
