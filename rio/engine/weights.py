"""Weights from files: our own, the reference implementation's, detectron2's model zoo.

Nothing that is loaded can run code: ``.pth`` files are read with ``weights_only=True``, and the model zoo's
    ``.pkl``
files by an unpickler that knows NumPy arrays and plain containers, and refuses all else.
"""

from __future__ import annotations

import collections
import logging
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

logger = logging.getLogger(__name__)


# Files of an earlier version lack these; the module that has them knows what that means.
ADDED = re.compile(r"(^|\.)memory_bank\.object_ids$")
# Not learned: set from the config, or (cell anchors) saved by old versions of detectron2 only.
_FROM_CONFIG = re.compile(r"(^|\.)(pixel_mean|pixel_std)$|anchor_generator\.cell_anchors|\.num_batches_tracked$")
_SHOWN = 8  # problems listed in an error
# What torch's and our unpickler say when a file asks for a class or a function that is not on their list.
_REFUSED = re.compile(r"global|reduce|instantiate|can only build", re.IGNORECASE)


def is_bank(name: str) -> bool:
    """Whether a tensor of a model belongs to its memory bank."""
    return ".memory_bank." in f".{name}"


class CheckpointError(ValueError):
    """A weights file that cannot be read or does not fit; the message names file, tensor and remedy."""


class CheckpointNotFound(CheckpointError, FileNotFoundError):
    """No file at the path of the weights."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class LoadReport:
    """What ``load_weights`` did, by the model's tensor names.

    Attributes:
        path: the file.
        loaded: tensors filled from it.
        missing: parameters and buffers of the model that it does not have.
        unexpected: tensors of the file that the model has no place for.
        skipped: name -> why, for tensors of another shape (only with ``on_mismatch="skip"``).
    """

    path: str
    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.path}: {len(self.loaded)} tensors loaded"
        for what, names in (("missing", self.missing), ("not used", self.unexpected), ("skipped", list(self.skipped))):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                text += f"; {len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"
        return text


def convert_reference_state_dict(state: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the classifier of the reference's checkpoints to ours; all other names are detectron2's already.

    >>> convert_reference_state_dict({"roi_heads.box_predictor.cls_score.L.weight_g": 1, "backbone.stem": 2})
    {'roi_heads.box_predictor.cls_score.weight_g': 1, 'backbone.stem': 2}
    """
    return {re.sub(r"(^|\.)cls_score\.L\.(weight_[gv])$", r"\1cls_score.\2", name): v for name, v in state.items()}


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a weights file without running code from it.

    Args:
        path: ``.pth`` (ours, detectron2's, the reference's, a bare state dict), ``.pkl`` (detectron2's or
            Detectron1's model zoo), or an address that detectron2 knows
            (``detectron2://ImageNetPretrained/MSRA/R-50.pkl``).

    Returns:
        ``{"model": {name: tensor}, "matching_heuristics": bool, "__author__": str, ...}``; other entries of
        the file (optimizer, iteration) as they are.

    Raises:
        CheckpointNotFound: no such file.
        CheckpointError: truncated, of another kind, or holding objects other than tensors and plain
            containers.
    """
    path = os.fspath(path)
    try:
        local = PathManager.get_local_path(path)
    except (OSError, ValueError, AssertionError) as error:
        raise CheckpointNotFound(
            f"weights {path}: could not be fetched: {error}. Download it and give the file"
        ) from error
    if not os.path.isfile(local):
        found = "a folder" if os.path.isdir(local) else "nothing there"
        raise CheckpointNotFound(f"weights {path}: expected a .pth or .pkl file, found {found}. Check MODEL.WEIGHTS")
    try:
        data = (
            _read_pickle(local) if path.endswith(".pkl") else torch.load(local, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # what an unpickler raises on a file that is no pickle is anything at all
        reason = _reason(error)
        if isinstance(error, pickle.UnpicklingError) and _REFUSED.search(reason):
            raise CheckpointError(
                f"weights {path}: expected tensors in plain containers, found something else: {reason}. Such"
                " a file could run code and is not loaded; in the program that wrote it, save {'model':"
                " model.state_dict()}"
            ) from error
        raise CheckpointError(
            f"weights {path}: expected a PyTorch checkpoint or a model zoo .pkl, found a file that is"
            f" truncated or of another kind ({os.path.getsize(local)} bytes): {reason}. Copy or download it"
            " again"
        ) from error
    if not isinstance(data, Mapping):
        raise CheckpointError(f"weights {path}: expected a state dict, found {type(data).__name__}")
    data = _layout(data, path)
    model = collections.OrderedDict((name, _tensor(name, v, path)) for name, v in data["model"].items())
    model._metadata = getattr(data["model"], "_metadata", {})  # versions of the modules that saved it
    return data | {"model": model}


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, on_mismatch: str = "raise", bank: bool = False
) -> LoadReport:
    """Load weights into a model, to start training from them or to evaluate; resuming is the checkpointer's.

    A file of a detector has to fill every parameter of the model; one of a backbone alone (the model zoo's
    ImageNet weights) has to fit where it has something. Names of backbones are matched as detectron2 does.

    Args:
        model: a detectron2 model, or a part of one; moved nowhere.
        path: see ``read_weights``.
        on_mismatch: "raise", or "skip" to leave tensors of another shape and absent ones at their initial
            values, as fine-tuning on other classes needs; they are listed in the report.
        bank: load the memory bank as well. Off, because another run's stored features mean nothing to a new
            start, and inference never reads them.

    Returns:
        What was loaded, missing, unexpected, skipped.

    Raises:
        CheckpointNotFound, CheckpointError: see ``read_weights``; shapes that do not fit, each with name,
            expected, found and the likely reason; a file without anything for this model.
    """
    if on_mismatch not in ("raise", "skip"):
        raise ValueError(f"on_mismatch: expected 'raise' or 'skip', found {on_mismatch!r}")
    path = os.fspath(path)
    data = read_weights(path)
    state = convert_reference_state_dict(data["model"])
    own = model.state_dict()
    if data.get("matching_heuristics"):
        caffe2 = data.get("__author__") == "Caffe2"
        matched = align_and_update_state_dicts(own, state, c2_conversion=caffe2)
        # detectron2 returns either the matched dict (v0.6, main) or None after changing `own` in place
        # (older).
        state = matched if matched is not None else own
    if not bank:
        state = {name: value for name, value in state.items() if not is_bank(name)}

    fits: dict[str, Tensor] = {}
    problems: dict[str, str] = {}
    for name, value in state.items():
        if name not in own or not isinstance(own[name], Tensor):
            continue
        if tuple(value.shape) == tuple(own[name].shape):
            fits[name] = value
        else:
            problems[name] = _why_shape(name, tuple(own[name].shape), tuple(value.shape))
    needed = [n for n in own if not _FROM_CONFIG.search(n) and (bank or not is_bank(n))]
    needed = [n for n in needed if not ADDED.search(n)]
    missing = [n for n in needed if n not in fits and n not in problems]
    unexpected = [n for n in state if n not in own and not _FROM_CONFIG.search(n)]

    if not fits:
        raise CheckpointError(
            f"weights {path}: expected tensors of this model ({', '.join(list(own)[:3])}, ...), found none"
            f" among its {len(data['model'])} ({', '.join(list(data['model'])[:3])}, ...). Another"
            " architecture: take the config that goes with the file"
        )
    # A detector's file has box predictor weights; only a backbone's may leave the rest of the model
    # untouched.
    is_detector = any("box_predictor" in name for name in state)
    if is_detector:
        problems |= {n: _why_missing(n, unexpected) for n in missing}
    if problems and on_mismatch == "raise":
        listed = [f"  {name}: {why}" for name, why in list(problems.items())[:_SHOWN]]
        if len(problems) > _SHOWN:
            listed.append(f"  ... and {len(problems) - _SHOWN} more")
        raise CheckpointError(
            f"weights {path}: {len(problems)} tensors do not fit the model:\n"
            + "\n".join(listed)
            + "\nTo fine-tune from "
            "it anyway, leaving these at their initial values, load with on_mismatch='skip'"
        )

    fits = collections.OrderedDict(fits)
    fits._metadata = data["model"]._metadata
    model.load_state_dict(fits, strict=False)  # what is missing and unexpected was sorted out above
    report = LoadReport(path, sorted(fits), missing, unexpected, problems)
    logger.info("%s", report)
    return report


def _layout(data: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The file's content as {"model": ...}, whichever of the known layouts it has."""
    if path.endswith(".pkl"):
        if "model" in data and "__author__" in data:  # detectron2's model zoo
            return dict(data)
        blobs = data.get("blobs", data)  # Detectron1: detectors have "blobs", ImageNet models have not
        blobs = {k: v for k, v in blobs.items() if not str(k).endswith("_momentum")}
        return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
    if "model" in data:
        if not isinstance(data["model"], Mapping):
            raise CheckpointError(f"weights {path}: model: expected a state dict, found {type(data['model']).__name__}")
        return data
    return {"model": data}


def _tensor(name: Any, value: Any, path: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and np.asarray(value).dtype.kind in "fiub":
        return torch.from_numpy(np.array(value))  # a copy: what was unpickled may be read-only
    raise CheckpointError(f"weights {path}: {name}: expected a tensor or a numeric array, found {type(value).__name__}")


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the global _codecs.encode for {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Knows NumPy arrays, scalars and plain containers; model zoo files hold nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode,  # how arrays spell their bytes in protocol 2
        }
        if (module, name) in known:
            return known[module, name]
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            import numpy._core.multiarray as multiarray

            return getattr(multiarray, name)
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            import numpy._core.numeric as numeric

            return numeric._frombuffer
        raise pickle.UnpicklingError(f"the global {module}.{name}")


def _reason(error: Exception) -> str:
    """The error's own words in one line; of torch's long advice only the line that says what was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = [line for line in lines if "error:" in line or _REFUSED.search(line)] or lines
    return f"{type(error).__name__}: {found[0][:200]}" if found else type(error).__name__


def _read_pickle(path: str) -> Any:
    with open(path, "rb") as f:
        return _ArrayUnpickler(f, encoding="latin1").load()


def _why_shape(name: str, own: tuple[int, ...], found: tuple[int, ...]) -> str:
    text = f"expected {own}, found {found}"
    if "memory_bank" in name:
        return text + " (target classes, slots, width: MODEL.RIO and the training set must be the run's)"
    if len(own) != len(found):
        return text + " (another kind of layer)"
    if own[1:] == found[1:] and own[0] != found[0]:
        if "cls_score" in name:
            return (
                text + f" (classes + 1: the file has {found[0] - 1} classes, MODEL.ROI_HEADS.NUM_CLASSES is"
                f" {own[0] - 1})"
            )
        if "bbox_pred" in name and "box_predictor" in name:
            if 4 in (own[0], found[0]):
                agnostic = found[0] == 4
                return text + f" (the file was trained with MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG {agnostic})"
            return text + f" (4 a class: the file has {found[0] // 4} classes, the model {own[0] // 4})"
        if "mask_head.predictor" in name:
            if 1 in (own[0], found[0]):
                agnostic = found[0] == 1
                return text + f" (the file was trained with MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK {agnostic})"
            return text + f" (masks a class: the file has {found[0]} classes, the model {own[0]})"
    if name.startswith("backbone."):
        return text + " (another backbone: compare MODEL.BACKBONE.NAME and MODEL.RESNETS)"
    if "box_head" in name or "box_predictor" in name:
        return text + " (another width: compare MODEL.ROI_BOX_HEAD)"
    return text


def _why_missing(name: str, unexpected: list[str]) -> str:
    prefix = name.rsplit(".", 1)[0]
    has = {n.rsplit(".", 1)[1] for n in unexpected if n.startswith(prefix + ".")}
    if name.endswith((".weight_g", ".weight_v")) and "weight" in has:
        return "absent (the file has a linear classifier, the model a cosine one: set MODEL.RIO.CLASSIFIER linear)"
    if "cls_score" in name and {"weight_g", "weight_v"} & has:
        return "absent (the file has a cosine classifier, the model a linear one: set MODEL.RIO.CLASSIFIER cosine)"
    if "mask_head" in name:
        return "absent (the file has no mask head like the model's: compare MODEL.MASK_ON and MODEL.ROI_MASK_HEAD)"
    return "absent"
