"""Configuration: every key of ``MODEL.RIO``, its meaning, unit, default and range; all else is detectron2's.

``load_config`` is the way in. Files and options are read in rio.engine.config_files.
"""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from math import inf
from typing import Any

from detectron2.config import CfgNode, get_cfg

from rio.engine.config_files import REMOVED, ConfigError, ConfigFileNotFound, check, merge_file, merge_options
from rio.losses import KEYS as LOSS_KEYS
from rio.losses import LOSSES
from rio.losses.calibration import STRENGTHS
from rio.losses.softmax import Softmax
from rio.sampler import METHODS

__all__ = ["KEYS", "REMOVED", "ConfigError", "ConfigFileNotFound"]
__all__ += ["add_rio_config", "get_rio_cfg", "load_config", "validate"]
ROI_HEADS = ("RIOROIHeads", "RIOCascadeROIHeads")

# Key of MODEL.RIO: (default, range). The reference's R-50 settings.
KEYS: dict[str, tuple[Any, str | tuple[str, ...]]] = {
    # Classifier: "cosine" (learned norm per class, no bias) or "linear" (detectron2's). Reference: CLS_LAYER.
    "CLASSIFIER": ("cosine", ("cosine", "linear")),
    # Multiplier s of the cosine logits. Reference: TEMP_S.
    "COSINE_SCALE": (48.0, "> 0"),
    # Loss of the classifier. Those whose bias has to start elsewhere than at 0 need the linear classifier.
    "CLS_LOSS": ("softmax", tuple(LOSSES)),
    **LOSS_KEYS,
    # Softmax scores corrected for the classes' counts, at inference only; and how much, -1 = the method's own default.
    "CALIBRATION": ("none", tuple(STRENGTHS)),
    "CALIBRATION_STRENGTH": (-1.0, ">= -1"),
    # Images and instances of each class in the training set, and its images, for the losses that use them; fractal
    # dimension of the centres of each class's objects, for CALIBRATION fracal. [], 0 = the trainer fills them in.
    "IMAGE_COUNT": ([], ""),
    "INSTANCE_COUNT": ([], ""),
    "NUM_IMAGES": (0, ">= 0"),
    "FRACTAL_DIMENSION": ([], ""),
    # Object-level resampling on or off.
    "BANK_ENABLED": (True, ""),
    # RoIs stored per target class; the oldest leaves when a class is full. Reference: MAX_CACHE. The newest
    # REPLAY_PER_CLASS are all that is read: more slots change nothing but the memory.
    "SLOTS_PER_CLASS": (60, ">= 1"),
    # RoIs replayed per step for each target class in the batch, the newest. Reference: MIN_CACHE.
    "REPLAY_PER_CLASS": (20, ">= 1"),
    # RoIs of one object stored per step at most, those with the highest IoU with it. 0 = all (reference): up to a
    # quarter of an image's RoIs, so one object can fill a class's slots.
    "WRITE_MAX_PER_OBJECT": (0, ">= 0"),
    # Target classes replayed per step although not in the batch, drawn anew each step. 0 = none (reference).
    "REPLAY_ABSENT_CLASSES": (0, ">= 0"),
    # Target classes: in 1 to this many training images (CACHE_CAT_FILE); 0 = the rarer half; its number is stored.
    "BANK_MAX_IMAGE_COUNT": (30, ">= 0"),
    # The 0-based class ids that the line above gives. [] = the trainer fills them in from the training set and
    # stores them with the run, so the model can be built again without the data.
    "BANK_CLASS_IDS": ([], ""),
    # Frequency group of each class in the training set, one letter r, c or f per class, for the telemetry. "" = the
    # trainer fills it in and stores it; a model built with "" does not log the shares of the groups.
    "CLASS_FREQUENCY": ("", ""),
    # Losses that replayed RoIs enter: "cls", "box" or both (reference). Without "box" the box loss and its
    # normaliser are exactly detectron2's.
    "REPLAY_LOSSES": (("cls", "box"), ""),
    # Storage type of the features; the halves take half the memory and round.
    "BANK_DTYPE": ("float32", ("float32", "float16", "bfloat16")),
    # With several processes: True = all ranks store the writes of all ranks in the order of the global batch, so
    # the bank does not depend on the number of GPUs; False (reference) = each rank stores its own images' RoIs.
    "BANK_SYNC": (True, ""),
    # Image level: "none", "rfs" (repeat factors), "irfs" (instance-aware) or "class_aware". The threshold t is
    # detectron2's DATALOADER.REPEAT_THRESHOLD. Reference: DATALOADER.SAMPLER_TRAIN.
    "SAMPLER": ("rfs", METHODS),
    # Folder of `python -m rio features`: the classifier alone is trained, on it. "" = the whole detector, on pictures.
    "FEATURES": ("", ""),
    # Augmented views of every training image whose features are kept.
    "FEATURE_VIEWS": (1, ">= 1"),
    # Square root in r(c) = max(1, sqrt(t / f(c))); False leaves it out.
    "SAMPLER_SQRT": (True, ""),
}
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}


def add_rio_config(cfg: CfgNode) -> None:
    """Add the node ``MODEL.RIO`` with its defaults; nothing else is touched."""
    cfg.MODEL.RIO = CfgNode({key: default for key, (default, _) in KEYS.items()})


def get_rio_cfg() -> CfgNode:
    """detectron2's default config with ``MODEL.RIO``, ``RIOROIHeads`` and LVIS's repeat threshold."""
    cfg = get_cfg()
    add_rio_config(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "RIOROIHeads"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.001  # detectron2's 0.0 would make "rfs" do nothing
    return cfg


def load_config(path: str | os.PathLike[str] | None = None, opts: Sequence[Any] = ()) -> CfgNode:
    """Read a config file and its ``_BASE_`` chain, merge options over it, validate.

    Args:
        path: a YAML file; None for the defaults. Its ``_BASE_`` is relative to the file that names it.
        opts: ``KEY, VALUE, KEY, VALUE, ...`` as on the command line; they win over the file.

    Returns:
        A config that is not frozen.

    Raises:
        ConfigFileNotFound: a file of the chain is missing.
        ConfigError: broken YAML or Python tags, an unknown key, a name of the reference implementation, a wrong
            type, a value out of range, keys that contradict each other.
    """
    cfg = get_rio_cfg()
    if path is not None:
        merge_file(cfg, os.fspath(path))
    merge_options(cfg, opts)
    validate(cfg)
    return cfg


def validate(cfg: CfgNode) -> None:
    """Check ``MODEL.RIO`` and the detectron2 keys it depends on: types, ranges, choices, contradictions.

    Args:
        cfg: a config with ``MODEL.RIO``. Unresolved ``NUM_CLASSES 0`` and ``BANK_CLASS_IDS []`` are fine.

    Raises:
        ConfigError: names the key, what is expected, what was found and the fix.
    """
    check("RIO" in cfg.MODEL, "MODEL.RIO", "this node", "none", "call rio.config.add_rio_config(cfg) first")
    check(cfg.VERSION == 2, "VERSION", "2, detectron2's current format", cfg.VERSION, "rewrite the config file")
    rio = cfg.MODEL.RIO
    for key, (default, allowed) in KEYS.items():
        value, kind, advice = rio[key], type(default), f"the default is {default!r}"
        same = type(value) is kind or (kind, type(value)) in ((float, int), (list, tuple), (tuple, list))
        good, expected = same, KINDS.get(kind, "a list")
        if isinstance(allowed, tuple):
            good, expected = value in allowed, f"one of {list(allowed)}"
            near = get_close_matches(str(value).lower(), allowed, n=1)
            advice = f"did you mean {near[0]!r}?" if near else advice
        elif allowed:
            low, expected = float(allowed.split()[1]), f"{expected} {allowed}"
            good = good and low <= value < inf and (value > low or ">=" in allowed)
        check(good, f"MODEL.RIO.{key}", expected, repr(value), advice)
    known, losses = KEYS["REPLAY_LOSSES"][0], rio.REPLAY_LOSSES
    once, advice = all(losses.count(x) == 1 and x in known for x in losses), "for no replay write BANK_ENABLED False"
    check(once and losses, "MODEL.RIO.REPLAY_LOSSES", f"one or both of {list(known)}, each once", losses, advice)
    slots, replayed = rio.SLOTS_PER_CLASS, rio.REPLAY_PER_CLASS
    advice = "raise SLOTS_PER_CLASS or lower REPLAY_PER_CLASS: no more can be replayed than is stored"
    check(replayed <= slots, "MODEL.RIO.REPLAY_PER_CLASS", f"at most SLOTS_PER_CLASS ({slots})", replayed, advice)

    number = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    whole, advice = type(number) is int and number >= 0, "0 takes the number of the training set"
    check(whole, "MODEL.ROI_HEADS.NUM_CLASSES", "a number of classes", repr(number), advice)
    below = f"MODEL.ROI_HEADS.NUM_CLASSES ({number})"
    ids, groups = list(rio.BANK_CLASS_IDS), rio.CLASS_FREQUENCY
    bad = [c for i, c in enumerate(ids) if type(c) is not int or not 0 <= c < (number or inf) or c in ids[:i]]
    advice = "leave the key at [] and the trainer fills it in; category_ids of a file are other numbers"
    check(not bad, "MODEL.RIO.BANK_CLASS_IDS", f"0-based class ids below {below}, each once", bad[:5], advice)
    fits, found = set(groups) <= set("rcf") and len(groups) in (0, number or len(groups)), f"{groups[:40]!r}"
    expected, advice = f"letters r, c and f, as many as {below}", 'leave the key at "" and the trainer fills it in'
    check(fits, "MODEL.RIO.CLASS_FREQUENCY", expected, f"{found} ({len(groups)})", advice)

    for key in ("IMAGE_COUNT", "INSTANCE_COUNT", "FRACTAL_DIMENSION"):
        counts, advice = list(rio[key]), "leave the key at [] and the trainer fills it in"
        fits = len(counts) in (0, number or len(counts)) and all(type(n) in (int, float) and n >= 0 for n in counts)
        check(fits, f"MODEL.RIO.{key}", f"numbers >= 0, as many as {below}", f"{len(counts)} entries", advice)

    needs_bias, advice = LOSSES[rio.CLS_LOSS].initial_bias != 0, "write MODEL.RIO.CLASSIFIER linear"
    expected = f"'linear' for CLS_LOSS {rio.CLS_LOSS}, whose bias does not start at 0"
    check(not needs_bias or rio.CLASSIFIER == "linear", "MODEL.RIO.CLASSIFIER", expected, rio.CLASSIFIER, advice)
    softmax, expected = issubclass(LOSSES[rio.CLS_LOSS], Softmax), f"'none' for CLS_LOSS {rio.CLS_LOSS}"
    advice = "calibrate a model with softmax scores (CLS_LOSS softmax or balanced_softmax)"
    check(softmax or rio.CALIBRATION == "none", "MODEL.RIO.CALIBRATION", expected, repr(rio.CALIBRATION), advice)
    later, advice = cfg.MODEL.ROI_BOX_HEAD.get("USE_SIGMOID_CE", False), "write MODEL.RIO.CLS_LOSS sigmoid or federated"
    check(not later, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "False, as RIO has losses of its own", later, advice)
    head, threshold = cfg.MODEL.ROI_HEADS.NAME, cfg.DATALOADER.REPEAT_THRESHOLD
    off = {"BANK_ENABLED": False, "CLASSIFIER": "linear", "CLS_LOSS": "softmax", "CALIBRATION": "none"}
    used = [f"{key} {rio[key]}" for key in off if rio[key] != off[key]]
    expected, found = f"one of {list(ROI_HEADS)} for {', '.join(used)}", f"{head!r}, which would ignore them"
    advice = f"write one of them, or {', '.join(f'MODEL.RIO.{key} {value}' for key, value in off.items())}"
    check(head in ROI_HEADS or not used, "MODEL.ROI_HEADS.NAME", expected, found, advice)
    shares, expected = rio.SAMPLER not in ("rfs", "irfs") or 0 < threshold <= 1, f"for MODEL.RIO.SAMPLER {rio.SAMPLER}"
    advice = "the reference uses 0.001; for no resampling write MODEL.RIO.SAMPLER none"
    check(shares, "DATALOADER.REPEAT_THRESHOLD", f"an image frequency in (0, 1] {expected}", threshold, advice)
