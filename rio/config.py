"""Configuration: every key of ``MODEL.RIO``, its meaning, unit and default; loading and validation.

One yacs node, ``MODEL.RIO``, is added to detectron2's config; all else is detectron2's own keys.
``load_config`` is the way in: it reads a YAML and its ``_BASE_`` chain safely, merges ``KEY VALUE`` options,
and refuses what it does not know with an error that names file, key, what was expected, what was found and
the remedy.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

CLASSIFIERS = ("cosine", "linear")
REPLAY_ORDERS = ("newest", "random", "diverse")
REPLAY_LOSSES = ("cls", "box")
BANK_DTYPES = ("float32", "float16", "bfloat16")
SAMPLERS = ("none", "rfs", "irfs", "class_aware")
ROI_HEADS = ("RIOROIHeads", "RIOCascadeROIHeads")

# Keys of the reference implementation (YAML or KEY VALUE) -> what to write instead.
REFERENCE_KEYS = {
    "TEMP_S": "MODEL.RIO.COSINE_SCALE (the same number, as a float)",
    "MIN_CACHE": "MODEL.RIO.REPLAY_PER_CLASS (the same number)",
    "MAX_CACHE": "MODEL.RIO.SLOTS_PER_CLASS (the same number)",
    "RANDOM_SELECT": "MODEL.RIO.REPLAY_ORDER ('newest' for False, 'random' for True)",
    "CACHE_CAT_FILE": ("MODEL.RIO.BANK_MAX_IMAGE_COUNT (30 means: classes with image_count <= 30; no file is read)"),
    "CLS_LAYER": "MODEL.RIO.CLASSIFIER ('cosine' or 'linear')",
}
# Values of the reference that have another name here: (key, value) -> remedy.
REFERENCE_VALUES = {("MODEL.ROI_HEADS.NAME", "MemoryROIHeads"): "RIOROIHeads"}


class ConfigError(ValueError):
    """A config file, an option or a combination of keys that cannot be used; the message names the remedy."""


class ConfigFileNotFound(ConfigError, FileNotFoundError):
    """A config file, or one that its ``_BASE_`` names, does not exist."""

    def __str__(self) -> str:  # FileNotFoundError would otherwise print errno fields
        return str(self.args[0])


def add_rio_config(cfg: CfgNode) -> None:
    """Add the node ``MODEL.RIO`` with the reference's R-50 settings as defaults.

    Args:
        cfg: a detectron2 config; changed in place, and nothing outside ``MODEL.RIO`` is touched.
    """
    _C = cfg.MODEL.RIO = CfgNode()
    # Classifier: "cosine" (learned norm per class, no bias) or "linear" (detectron2's). Reference: CLS_LAYER.
    _C.CLASSIFIER = "cosine"
    # Multiplier s of the cosine logits, > 0. Reference: TEMP_S.
    _C.COSINE_SCALE = 48.0

    # Object-level resampling on or off.
    _C.BANK_ENABLED = True
    # Stored RoIs a target class, >= 1; the oldest leaves when a class is full. Reference: MAX_CACHE.
    _C.SLOTS_PER_CLASS = 60
    # RoIs replayed a step for each target class in the batch, 1..SLOTS_PER_CLASS. Reference: MIN_CACHE.
    _C.REPLAY_PER_CLASS = 20
    # Which slots are replayed: "newest", or "random" without replacement (reference: RANDOM_SELECT); or
    # "diverse", not in the reference: as many different objects as there are, each object's newest slot
    # first, then each one's second newest, and so on.
    _C.REPLAY_ORDER = "newest"
    # At most so many RoIs of one object are stored a step (RoIs, >= 0), those with the highest IoU with it;
    # 0 = all (reference), up to a quarter of an image's RoIs, so that one object can fill a class's slots.
    _C.WRITE_MAX_PER_OBJECT = 0
    # So many target classes that are not in the batch, of those with stored RoIs, are replayed too (classes a
    # step, >= 0), drawn anew each step; 0 = none (reference).
    _C.REPLAY_ABSENT_CLASSES = 0
    # Target classes: 1 <= image_count <= this in the training set (images). Reference: CACHE_CAT_FILE.
    _C.BANK_MAX_IMAGE_COUNT = 30
    # The 0-based class ids that the line above resolved to. Filled in by the trainer from the training set
    # and stored with the run, so that the model can be built again without the data. [] = resolve.
    _C.BANK_CLASS_IDS = []
    # The frequency group of each class in the training set, one letter r, c or f a class, for the telemetry
    # (rois/share_r and the like). Filled in and stored as the line above. "" = resolve; a model built with ""
    # does not log the shares.
    _C.CLASS_FREQUENCY = ""
    # Losses that replayed RoIs enter: "cls", "box" or both (the reference). Without "box" the box loss and
    # its normaliser are exactly detectron2's.
    _C.REPLAY_LOSSES = ("cls", "box")
    # At most this many replayed rows for each foreground RoI of the step (ratio, >= 0); 0 = no cap
    # (reference).
    _C.REPLAY_MAX_PER_FOREGROUND = 0.0
    # Replay starts at this training step (iterations, >= 0); the bank is written from the first step on.
    _C.BANK_START_ITER = 0
    # Storage type of the bank: "float32", "float16" or "bfloat16". The halves take half the memory; features
    # are rounded.
    _C.BANK_DTYPE = "float32"
    # With several processes: True = all ranks store the writes of all ranks, image by image in the order of
    # the global batch, so the bank depends on the images and not on the number of GPUs; False (the reference)
    # = each rank has a bank of its own, filled from its share of the images. No effect with one process.
    _C.BANK_SYNC = True

    # Image-level resampling: "none", "rfs" (repeat factors), "irfs" (instance-aware) or "class_aware".
    # The threshold t is detectron2's DATALOADER.REPEAT_THRESHOLD. Reference: DATALOADER.SAMPLER_TRAIN.
    _C.SAMPLER = "rfs"
    # Square root in r(c) = max(1, sqrt(t / f(c))); False leaves it out.
    _C.SAMPLER_SQRT = True


def get_rio_cfg() -> CfgNode:
    """detectron2's default config with ``MODEL.RIO``, ``RIOROIHeads`` and LVIS's repeat threshold."""
    cfg = get_cfg()
    add_rio_config(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "RIOROIHeads"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.001  # detectron2's 0.0 would make "rfs" do nothing
    return cfg


def load_config(path: str | os.PathLike[str] | None = None, opts: Sequence[str] = ()) -> CfgNode:
    """Read a config file (and its ``_BASE_`` chain), merge options over it, validate.

    Integers are taken for keys that hold floats (``COSINE_SCALE 32``). YAML is loaded safely: no Python tags.

    Args:
        path: a YAML file; None for the defaults alone. Its ``_BASE_`` is relative to the file that names it.
        opts: ``KEY, VALUE, KEY, VALUE, ...`` as on the command line; they win over the file.

    Returns:
        A config that is not frozen.

    Raises:
        ConfigFileNotFound: a file of the chain is missing.
        ConfigError: broken YAML, unknown or misspelt key, a key of the reference implementation, a wrong
            type, a value out of range, keys that contradict each other. The message says where, and what to
            write.
    """
    cfg = get_rio_cfg()
    if path is not None:
        for file, values in _file_chain(os.fspath(path)):
            _check_keys(values, cfg, where=f"config file {file}")
            _merge(cfg, values, where=f"config file {file}")
    opts = list(opts)
    if len(opts) % 2:
        raise ConfigError(
            f"options: expected KEY VALUE pairs, found {len(opts)} words, the last without a partner:"
            f" {opts[-1]!r}. Write every option as KEY VALUE, for example SOLVER.BASE_LR 0.01"
        )
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        where = f"option {key}"
        if not isinstance(key, str) or not all(key.split(".")):
            raise ConfigError(f"{where}: expected a dotted key such as SOLVER.BASE_LR")
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _check_keys(nested, cfg, where=where)
        if isinstance(_lookup(cfg, key), CfgNode):
            raise ConfigError(f"{where}: is a group of keys, not a value. Name one of {sorted(_lookup(cfg, key))}")
        _merge(cfg, nested, where=where)
    validate(cfg)
    return cfg


def validate(cfg: CfgNode) -> None:
    """Check ``MODEL.RIO`` and the detectron2 keys it depends on: types, ranges, choices, contradictions.

    Args:
        cfg: a config with ``MODEL.RIO``. Unresolved ``NUM_CLASSES 0`` and ``BANK_CLASS_IDS []`` are fine.

    Raises:
        ConfigError: names the key, what is expected, what was found and the remedy.
    """
    if "RIO" not in cfg.MODEL:
        raise ConfigError(
            "MODEL.RIO: expected a config with this node, found none. Call rio.config.add_rio_config(cfg) first"
        )
    rio = cfg.MODEL.RIO

    _choice("CLASSIFIER", rio.CLASSIFIER, CLASSIFIERS)
    _choice("REPLAY_ORDER", rio.REPLAY_ORDER, REPLAY_ORDERS)
    _choice("BANK_DTYPE", rio.BANK_DTYPE, BANK_DTYPES)
    _choice("SAMPLER", rio.SAMPLER, SAMPLERS)
    for key in ("BANK_ENABLED", "BANK_SYNC", "SAMPLER_SQRT"):
        if not isinstance(rio[key], bool):
            raise ConfigError(f"MODEL.RIO.{key}: expected True or False, found {rio[key]!r}")
    _number("COSINE_SCALE", rio.COSINE_SCALE, float, low=0.0, low_open=True)
    _number("REPLAY_MAX_PER_FOREGROUND", rio.REPLAY_MAX_PER_FOREGROUND, float, low=0.0)
    _number("SLOTS_PER_CLASS", rio.SLOTS_PER_CLASS, int, low=1)
    _number("REPLAY_PER_CLASS", rio.REPLAY_PER_CLASS, int, low=1)
    _number("BANK_MAX_IMAGE_COUNT", rio.BANK_MAX_IMAGE_COUNT, int, low=1)
    _number("BANK_START_ITER", rio.BANK_START_ITER, int, low=0)
    _number("WRITE_MAX_PER_OBJECT", rio.WRITE_MAX_PER_OBJECT, int, low=0)
    _number("REPLAY_ABSENT_CLASSES", rio.REPLAY_ABSENT_CLASSES, int, low=0)
    if rio.REPLAY_PER_CLASS > rio.SLOTS_PER_CLASS:
        raise ConfigError(
            f"MODEL.RIO.REPLAY_PER_CLASS: expected at most SLOTS_PER_CLASS ({rio.SLOTS_PER_CLASS}), found"
            f" {rio.REPLAY_PER_CLASS}: more than is stored cannot be replayed. Raise SLOTS_PER_CLASS or lower"
            " REPLAY_PER_CLASS"
        )

    losses = rio.REPLAY_LOSSES
    if not isinstance(losses, (list, tuple)) or not losses or len(set(map(str, losses))) != len(losses):
        raise ConfigError(
            f"MODEL.RIO.REPLAY_LOSSES: expected one or both of {list(REPLAY_LOSSES)}, each once, found"
            f" {losses!r}. For no replay at all set MODEL.RIO.BANK_ENABLED False"
        )
    for loss in losses:
        _choice("REPLAY_LOSSES", loss, REPLAY_LOSSES)

    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise ConfigError(
            "MODEL.ROI_HEADS.NUM_CLASSES: expected the number of classes, or 0 for as many as the training"
            f" set has, found {num_classes!r}"
        )
    _check_class_ids(rio.BANK_CLASS_IDS, num_classes)
    _check_class_frequency(rio.CLASS_FREQUENCY, num_classes)

    head = cfg.MODEL.ROI_HEADS.NAME
    wanted = [f"{k} {rio[k]}" for k, off in (("BANK_ENABLED", False), ("CLASSIFIER", "linear")) if rio[k] != off]
    if wanted and head not in ROI_HEADS:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NAME: expected one of {list(ROI_HEADS)} because MODEL.RIO.{wanted[0]} is set,"
            f" found {head!r}, which would ignore it. Set MODEL.ROI_HEADS.NAME RIOROIHeads (or"
            " RIOCascadeROIHeads), or MODEL.RIO.BANK_ENABLED False and MODEL.RIO.CLASSIFIER linear"
        )
    t = cfg.DATALOADER.REPEAT_THRESHOLD
    if rio.SAMPLER in ("rfs", "irfs") and not 0.0 < t <= 1.0:
        raise ConfigError(
            "DATALOADER.REPEAT_THRESHOLD: expected an image frequency in (0, 1] for MODEL.RIO.SAMPLER"
            f" {rio.SAMPLER}, found {t!r}. The reference uses 0.001; for no resampling set MODEL.RIO.SAMPLER"
            " none"
        )


def _check_class_ids(class_ids: Any, num_classes: int) -> None:
    if not isinstance(class_ids, (list, tuple)) or any(
        isinstance(c, bool) or not isinstance(c, int) for c in class_ids
    ):
        raise ConfigError(f"MODEL.RIO.BANK_CLASS_IDS: expected a list of 0-based class ids, found {class_ids!r}")
    if len(set(class_ids)) != len(class_ids):
        twice = sorted({c for c in class_ids if list(class_ids).count(c) > 1})
        raise ConfigError(f"MODEL.RIO.BANK_CLASS_IDS: expected every class id once, found {twice} more than once")
    high = num_classes if num_classes else float("inf")
    bad = [c for c in class_ids if not 0 <= c < high]
    if bad:
        raise ConfigError(
            "MODEL.RIO.BANK_CLASS_IDS: expected 0-based class ids below MODEL.ROI_HEADS.NUM_CLASSES"
            f" ({num_classes}), found {bad[:5]}. Class ids are not the category_ids of the file; leave the"
            " key at [] and the trainer fills it in"
        )


def _check_class_frequency(groups: Any, num_classes: int) -> None:
    if not isinstance(groups, str) or not set(groups) <= set("rcf"):
        raise ConfigError(
            f"MODEL.RIO.CLASS_FREQUENCY: expected letters r, c and f, one a class, found {groups!r}. Leave"
            ' the key at "" and the trainer fills it in'
        )
    if groups and num_classes and len(groups) != num_classes:
        raise ConfigError(
            f"MODEL.RIO.CLASS_FREQUENCY: expected as many letters as MODEL.ROI_HEADS.NUM_CLASSES"
            f' ({num_classes}), found {len(groups)}. Leave the key at "" and the trainer fills it in'
        )


def _choice(key: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value).lower(), choices, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"MODEL.RIO.{key}: expected one of {list(choices)}, found {value!r}.{hint}")


def _number(key: str, value: Any, kind: type, *, low: float, low_open: bool = False) -> None:
    what = "a whole number" if kind is int else "a number"
    bound = f"> {low:g}" if low_open else f">= {low:g}"
    types = (int,) if kind is int else (int, float)
    good = isinstance(value, types) and not isinstance(value, bool)
    good = good and value < float("inf") and (value > low if low_open else value >= low)  # NaN fails both
    if not good:
        raise ConfigError(f"MODEL.RIO.{key}: expected {what} {bound}, found {value!r}")


def _file_chain(path: str) -> list[tuple[str, dict]]:
    """The file's ``_BASE_`` chain, the root of it first, as (path, content without ``_BASE_``)."""
    chain: list[tuple[str, dict]] = []
    seen: list[str] = []
    file, named_by = os.path.expanduser(path), ""
    while True:
        real = os.path.realpath(file)
        if real in seen:
            raise ConfigError(
                f"config file {path}: _BASE_ goes in a circle, {file} is reached again. Remove one _BASE_"
            )
        seen.append(real)
        values = _read_yaml(file, named_by)
        base = values.pop("_BASE_", None)
        chain.append((file, values))
        if base is None:
            return chain[::-1]
        if not isinstance(base, str) or not base:
            raise ConfigError(f"config file {file}: _BASE_: expected the path of one YAML file, found {base!r}")
        base = os.path.expanduser(base)
        named_by = f", named by _BASE_ in {file}"
        file = base if os.path.isabs(base) else os.path.join(os.path.dirname(file), base)


def _read_yaml(file: str, named_by: str) -> dict:
    if not os.path.isfile(file):
        what = "a folder" if os.path.isdir(file) else "nothing there"
        folder = os.path.dirname(file) or "."
        near = (
            difflib.get_close_matches(os.path.basename(file), os.listdir(folder), n=1) if os.path.isdir(folder) else []
        )
        hint = (
            f"Did you mean {os.path.join(folder, near[0])}?"
            if near
            else "Check the path; configs/ holds the project's own."
        )
        raise ConfigFileNotFound(f"config file {file}{named_by}: expected a YAML file, found {what}. {hint}")
    try:
        with open(file, encoding="utf-8") as f:
            values = yaml.safe_load(f)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"config file {file}: expected plain YAML (no Python tags), found: {text}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"config file {file}: expected keys and values, found {type(values).__name__}")
    return values


def _walk(values: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        full = f"{prefix}{key}"
        yield full, value
        if isinstance(value, Mapping):
            yield from _walk(value, f"{full}.")


def _lookup(cfg: CfgNode, full_key: str) -> Any:
    node: Any = cfg
    for part in full_key.split("."):
        node = node[part]
    return node


def _check_keys(values: Mapping, cfg: CfgNode, *, where: str) -> None:
    known = dict(_walk(cfg))
    for full, value in _walk(values):
        name = full.rsplit(".", 1)[-1]
        if full in known:
            new = REFERENCE_VALUES.get((full, value)) if isinstance(value, str) else None
            if new:
                raise ConfigError(f"{where}: {full}: {value!r} is the reference implementation's name. Write {new}")
            continue
        if name in REFERENCE_KEYS:
            raise ConfigError(f"{where}: {full} is a key of the reference implementation. Write {REFERENCE_KEYS[name]}")
        parent = full.rpartition(".")[0]
        if parent and parent not in known:
            continue  # its parent was reported already, or is a plain value: the merge says so
        if parent and not isinstance(known[parent], CfgNode):
            raise ConfigError(
                f"{where}: {parent}: expected a value like {known[parent]!r}, found the key {name!r} below it"
            )
        raise ConfigError(f"{where}: unknown key {full}. {_suggest(full, known)}")


def _suggest(full: str, known: Mapping[str, Any]) -> str:
    leaf = full.rsplit(".", 1)[-1]
    same_leaf = [k for k in known if k.rsplit(".", 1)[-1] == leaf]
    # A key in the wrong place first (SLOTS_PER_CLASS under MODEL), then a misspelt one.
    near = same_leaf[:3] or difflib.get_close_matches(full, known, n=1, cutoff=0.6)
    if not near:
        near = difflib.get_close_matches(f"MODEL.RIO.{leaf}", known, n=1, cutoff=0.75)
    if not near:
        return "See rio/config.py and detectron2's config reference for the keys there are"
    return f"Did you mean {' or '.join(near)}?"


def _merge(cfg: CfgNode, values: Mapping, *, where: str) -> None:
    # Key by key, so that an error names its key and the file it stands in.
    for full, value in _walk(values):
        old = _lookup(cfg, full)
        if isinstance(old, CfgNode):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{where}: {full}: expected keys below it ({', '.join(sorted(old)[:4])}, ...), found {value!r}"
                )
            continue
        decoded = CfgNode._decode_cfg_value(value)
        if isinstance(old, float) and isinstance(decoded, int) and not isinstance(decoded, bool):
            decoded = float(decoded)  # yacs would refuse 48 for 48.0
        node: Any = decoded
        for part in reversed(full.split(".")):
            node = {part: node}
        try:
            cfg.merge_from_other_cfg(CfgNode(node))
        except (ValueError, AssertionError, KeyError) as error:
            raise ConfigError(f"{where}: {full}: expected {_kind(old)}, found {_kind(decoded)}") from error
    if cfg.VERSION != 2:
        found, cfg.VERSION = cfg.VERSION, 2
        raise ConfigError(
            f"{where}: VERSION: expected 2, detectron2's current config format, found {found!r}. Rewrite the file"
        )


def _kind(value: Any) -> str:
    return f"{type(value).__name__} (such as {value!r})" if value not in ("", [], (), None) else type(value).__name__
