"""Weights from files: ours, the reference implementation's, detectron2's model zoo.

Nothing that is loaded can run code: ``.pth`` files are read with ``weights_only=True``, the model zoo's ``.pkl`` files
by an unpickler that knows NumPy arrays and plain containers and refuses all else.
"""

import collections
import importlib
import logging
import os
import pickle
import re
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# In files of an earlier version; ignored.
_REMOVED = re.compile(r"(^|\.)memory_bank\.object_ids$")
# Not learned: set from the config, or (cell anchors) saved by old versions of detectron2 only.
_FROM_CONFIG = re.compile(r"(^|\.)(pixel_mean|pixel_std)$|anchor_generator\.cell_anchors|\.num_batches_tracked$")
_SHOWN = 8  # problems listed in an error
# What torch's and our unpickler say when a file asks for a class or a function that is not on their list.
_REFUSED = re.compile(r"global|reduce|instantiate|can only build", re.IGNORECASE)


class CheckpointError(ValueError):
    """A weights file that cannot be read or does not fit; the message names file, tensor and fix."""


class CheckpointNotFound(CheckpointError, FileNotFoundError):
    """No file at the path of the weights."""

    def __str__(self) -> str:
        return str(self.args[0])


class LoadReport(NamedTuple):
    """What `load_weights` did, by names of tensors."""

    path: str
    loaded: list[str]
    missing: list[str]  # in the model, not in the file
    unexpected: list[str]  # in the file, no place in the model
    skipped: dict[str, str]  # name -> why it does not fit; only with on_mismatch="skip"

    def __str__(self) -> str:
        text = f"{self.path}: {len(self.loaded)} tensors loaded"
        for what, names in (("missing", self.missing), ("not used", self.unexpected), ("skipped", list(self.skipped))):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                text += f"; {len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"
        return text


def is_bank(name: str) -> bool:
    """Whether a tensor of a model belongs to its memory bank."""
    return ".memory_bank." in f".{name}"


def convert_reference_state_dict(state: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the classifier of the reference's checkpoints to ours; all other names are detectron2's already.

    >>> convert_reference_state_dict({"roi_heads.box_predictor.cls_score.L.weight_g": 1, "backbone.stem": 2})
    {'roi_heads.box_predictor.cls_score.weight_g': 1, 'backbone.stem': 2}
    """
    return {re.sub(r"(^|\.)cls_score\.L\.(weight_[gv])$", r"\1cls_score.\2", name): v for name, v in state.items()}


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a weights file without running code from it: {"model": {name: tensor}, ...}, other entries as they are.

    path: ``.pth`` (ours, detectron2's, the reference's, a bare state dict), ``.pkl`` (detectron2's or Detectron1's
    model zoo), or an address that detectron2 knows (``detectron2://ImageNetPretrained/MSRA/R-50.pkl``). A
    CheckpointNotFound where it is missing; a CheckpointError where it is truncated, of another kind, or holds objects
    other than tensors and plain containers.
    """
    path = os.fspath(path)
    try:
        local = PathManager.get_local_path(path)
    except (OSError, ValueError, AssertionError) as error:
        raise CheckpointNotFound(f"weights {path}: could not be fetched: {error}. Fix: download the file") from error
    if not os.path.isfile(local):
        found = "a folder" if os.path.isdir(local) else "nothing there"
        raise CheckpointNotFound(f"weights {path}: expected a .pth or .pkl file, found {found}. Fix: see MODEL.WEIGHTS")
    try:
        if path.endswith(".pkl"):
            with open(local, "rb") as file:
                data = _ArrayUnpickler(file, encoding="latin1").load()
        else:
            data = torch.load(local, map_location="cpu", weights_only=True)
    except Exception as error:  # what an unpickler raises on a file that is no pickle is anything at all
        reason = _reason(error)
        if isinstance(error, pickle.UnpicklingError) and _REFUSED.search(reason):
            raise CheckpointError(
                f"weights {path}: expected tensors in plain containers, found something else: {reason}. Such a file "
                "could run code and is not loaded. Fix: where it was written, save {'model': model.state_dict()}"
            ) from error
        raise CheckpointError(
            f"weights {path}: expected a PyTorch checkpoint or a model zoo .pkl, found a file that is truncated or of "
            f"another kind ({os.path.getsize(local)} bytes): {reason}. Fix: copy or download it again"
        ) from error
    if not isinstance(data, Mapping):
        raise CheckpointError(f"weights {path}: expected a state dict, found {type(data).__name__}")
    data = _layout(data, path.endswith(".pkl"))
    if not isinstance(data["model"], Mapping):
        raise CheckpointError(f"weights {path}: model: expected a state dict, found {type(data['model']).__name__}")
    model = collections.OrderedDict((name, _tensor(name, v, path)) for name, v in data["model"].items())
    for name in [name for name in model if _REMOVED.search(name)]:
        del model[name]
    model._metadata = getattr(data["model"], "_metadata", {})  # versions of the modules that saved it
    return data | {"model": model}


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, on_mismatch: str = "raise", bank: bool = False
) -> LoadReport:
    """Load weights into a model, to start training from them or to evaluate; `Checkpointer` resumes runs.

    A file of a detector must fill every parameter of the model; one of a backbone (the model zoo's ImageNet weights)
    must fit where it has something. Names of backbones are matched as detectron2 does.

    Args:
        path: see `read_weights`, which raises as well.
        on_mismatch: "raise", or "skip" to leave tensors of another shape and absent ones at their initial values, as
            fine-tuning on other classes needs; the report lists them.
        bank: load the memory bank too. Off, because another run's features mean nothing to a new start.

    Raises:
        CheckpointError: shapes that do not fit, each with name, expected, found and the likely reason; a file without
            anything for this model.
    """
    if on_mismatch not in ("raise", "skip"):
        raise ValueError(f"on_mismatch: expected 'raise' or 'skip', found {on_mismatch!r}")
    path = os.fspath(path)
    data = read_weights(path)
    state, own = convert_reference_state_dict(data["model"]), model.state_dict()
    if data.get("matching_heuristics"):
        matched = align_and_update_state_dicts(own, state, c2_conversion=data.get("__author__") == "Caffe2")
        state = matched if matched is not None else own  # before v0.6 it changed `own` and returned nothing
    state = {name: value for name, value in state.items() if bank or not is_bank(name)}

    tensors = {name: value for name, value in state.items() if isinstance(own.get(name), Tensor)}
    fits = {name: value for name, value in tensors.items() if value.shape == own[name].shape}
    problems = {
        name: _why_shape(name, tuple(own[name].shape), tuple(value.shape))
        for name, value in tensors.items()
        if name not in fits
    }
    needed = [n for n in own if not _FROM_CONFIG.search(n) and (bank or not is_bank(n))]
    needed = [n for n in needed if ".cls_loss." not in f".{n}"]  # what a loss has counted; another one starts from 0
    missing = [name for name in needed if name not in fits and name not in problems]
    unexpected = [name for name in state if name not in own and not _FROM_CONFIG.search(name)]
    if not fits:
        raise CheckpointError(
            f"weights {path}: expected tensors of this model ({', '.join(list(own)[:3])}, ...), found none among its "
            f"{len(data['model'])} ({', '.join(list(data['model'])[:3])}, ...). Another architecture. Fix: take the "
            "config that goes with the file"
        )
    if any("box_predictor" in name for name in state):  # a detector's; a backbone's may leave the rest untouched
        problems |= {name: _why_missing(name, unexpected) for name in missing}
    if problems and on_mismatch == "raise":
        listed = [f"  {name}: {why}" for name, why in list(problems.items())[:_SHOWN]]
        listed += [f"  ... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise CheckpointError(
            f"weights {path}: {len(problems)} tensors do not fit the model:\n" + "\n".join(listed) + "\nFix: take the "
            "config of the file; or load with on_mismatch='skip', to fine-tune and leave these at their initial values"
        )
    report = LoadReport(path, sorted(fits), missing, unexpected, problems)
    fits = collections.OrderedDict(fits)
    fits._metadata = data["model"]._metadata
    model.load_state_dict(fits, strict=False)
    logger.info("%s", report)
    return report


def _layout(data: Mapping[str, Any], is_pickle: bool) -> dict[str, Any]:
    """The file's content as {"model": ...}, whichever of the known layouts it has."""
    if is_pickle and not ("model" in data and "__author__" in data):  # Detectron1's; only detectors have "blobs"
        blobs = {k: v for k, v in data.get("blobs", data).items() if not str(k).endswith("_momentum")}
        return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
    return dict(data) if "model" in data else {"model": data}


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

    known: ClassVar = {
        "collections.OrderedDict", "numpy.ndarray", "numpy.dtype", "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar", "numpy._core.numeric._frombuffer",
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # its name before NumPy 2
        if (module, name) == ("_codecs", "encode"):  # how arrays spell their bytes in protocol 2
            return _encode
        if f"{module}.{name}" not in self.known:
            raise pickle.UnpicklingError(f"the global {module}.{name}")
        return getattr(importlib.import_module(module), name)


def _reason(error: Exception) -> str:
    """The error's own words in one line; of torch's long advice only the line that says what was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = [line for line in lines if "error:" in line or _REFUSED.search(line)] or lines
    return f"{type(error).__name__}: {found[0][:200]}" if found else type(error).__name__


def _why_shape(name: str, own: tuple[int, ...], found: tuple[int, ...]) -> str:
    """Expected, found, and the likely reason."""
    other_rows = len(own) == len(found) and own[1:] == found[1:] and own[0] != found[0]
    if "memory_bank" in name:
        why = "target classes, slots, width: MODEL.RIO and the training set must be the run's"
    elif len(own) != len(found):
        why = "another kind of layer"
    elif other_rows and "cls_score" in name:
        why = f"with CLS_LOSS softmax classes + 1: the file has {found[0] - 1} classes, the model {own[0] - 1}; else "
        why += "compare MODEL.RIO.CLS_LOSS, whose losses have from classes + 0 to classes + 6 columns"
    elif other_rows and "bbox_pred" in name and "box_predictor" in name:
        why = f"4 per class: the file has {found[0] // 4} classes, the model {own[0] // 4}"
        if 4 in (own[0], found[0]):
            why = f"the file was trained with MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG {found[0] == 4}"
    elif other_rows and "mask_head.predictor" in name:
        why = f"one mask per class: the file has {found[0]} classes, the model {own[0]}"
        if 1 in (own[0], found[0]):
            why = f"the file was trained with MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK {found[0] == 1}"
    elif name.startswith("backbone."):
        why = "another backbone: compare MODEL.BACKBONE.NAME and MODEL.RESNETS"
    elif "box_head" in name or "box_predictor" in name:
        why = "another width: compare MODEL.ROI_BOX_HEAD"
    else:
        why = ""
    return f"expected {own}, found {found}" + (f" ({why})" if why else "")


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
