"""YAML files and ``KEY VALUE`` options merged into a config; errors name file, key, expected, found and the fix.

YAML is read safely, and detectron2's own ``merge_from_list`` does the merging, key by key so that an error can name
the key and the file of the ``_BASE_`` chain in which it stands.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import yaml
from detectron2.config import CfgNode

from rio.data import errors

# Names of the reference implementation -> what to write instead.
REFERENCE_NAMES = {
    "TEMP_S": "MODEL.RIO.COSINE_SCALE (the same number)",
    "MIN_CACHE": "MODEL.RIO.REPLAY_PER_CLASS (the same number)",
    "MAX_CACHE": "MODEL.RIO.SLOTS_PER_CLASS (the same number)",
    "RANDOM_SELECT": "nothing in its place (the newest RoIs are replayed, as with its default False)",
    "CACHE_CAT_FILE": "MODEL.RIO.BANK_MAX_IMAGE_COUNT (30 means classes with image_count <= 30; no file is read)",
    "CLS_LAYER": "MODEL.RIO.CLASSIFIER ('cosine' or 'linear')",
    "MemoryROIHeads": "RIOROIHeads",
}
# Keys that are gone -> the one value that still says what is done. Runs and configs of before may have them.
REMOVED = {
    "MODEL.RIO.REPLAY_ORDER": "newest",
    "MODEL.RIO.REPLAY_MAX_PER_FOREGROUND": 0.0,
    "MODEL.RIO.BANK_START_ITER": 0,
}


class ConfigError(ValueError):
    """A config file, an option or a combination of keys that cannot be used; the message names the fix."""


class ConfigFileNotFound(ConfigError, FileNotFoundError):
    """A config file, or one that its ``_BASE_`` names, does not exist."""


check = partial(errors.check, error=ConfigError)


def merge_file(cfg: CfgNode, file: str, parents: tuple[str, ...] = ()) -> None:
    """Merge the file's ``_BASE_`` first, then its own keys; ``parents`` named it by theirs."""
    file = os.path.expanduser(file)
    where = f"config file {file}" + (f", named by _BASE_ in {parents[-1]}" if parents else "")
    circle = os.path.realpath(file) in map(os.path.realpath, parents)
    check(not circle, where, "_BASE_ to end somewhere", "a circle", "remove one _BASE_")
    if not os.path.isfile(file):
        what, folder = "a folder" if os.path.isdir(file) else "nothing there", os.path.dirname(file) or "."
        near = get_close_matches(os.path.basename(file), os.listdir(folder) if os.path.isdir(folder) else [], n=1)
        advice = f"did you mean {os.path.join(folder, near[0])}?" if near else "configs/ holds the project's own"
        raise ConfigFileNotFound(f"{where}: expected a YAML file, found {what}. Fix: {advice}")
    try:
        with open(file, encoding="utf-8") as stream:
            values = yaml.safe_load(stream)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{where}: expected plain YAML, found {text}. Fix: write no Python tags") from error
    values = {} if values is None else values
    check(isinstance(values, dict), where, "keys and values", type(values).__name__, "write KEY: VALUE")
    base = values.pop("_BASE_", None)
    check(base is None or isinstance(base, str), f"{where}: _BASE_", "the path of one YAML file", base, "name one")
    if base is not None:
        merge_file(cfg, os.path.join(os.path.dirname(file), os.path.expanduser(base)), (*parents, file))
    for key, value in values.items():
        _set(cfg, str(key), value, where)


def merge_options(cfg: CfgNode, opts: Sequence[Any]) -> None:
    """Merge ``KEY, VALUE, KEY, VALUE, ...``."""
    found, advice = f"{len(opts)} words, the last without a value: {opts[-1:]}", "write SOLVER.BASE_LR 0.01"
    check(len(opts) % 2 == 0, "options", "KEY VALUE pairs", found, advice)
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        _set(cfg, str(key), value, f"option {key}")


def _set(cfg: CfgNode, key: str, value: Any, where: str) -> None:
    """Merge one dotted key, or the keys below it, with detectron2's own merge_from_list."""
    *above, name = key.split(".")
    word = value if key == "MODEL.ROI_HEADS.NAME" else name
    if isinstance(word, str) and (new := REFERENCE_NAMES.get(word)):
        raise ConfigError(f"{where}: {key}: expected a name of RIO's, found the reference's {word}. Fix: write {new}")
    if key in REMOVED:
        expected, fix = f"{REMOVED[key]}, all that is left of this key", "remove the key, or use an older rio"
        check(yaml.safe_load(str(value)) == REMOVED[key], f"{where}: {key}", expected, value, fix)
        return
    old: Any = cfg
    for part in (*above, name):
        if not isinstance(old, CfgNode) or part not in old:
            raise ConfigError(f"{where}: unknown key {key}. Fix: {_suggest(key, list(_keys(cfg)))}")
        old = old[part]
    if isinstance(old, CfgNode):
        below = f"keys below it ({', '.join(sorted(old)[:4])}, ...)"
        check(isinstance(value, Mapping), f"{where}: {key}", below, repr(value), f"name one: {key}.{sorted(old)[0]}")
        for child, own in value.items():
            _set(cfg, f"{key}.{child}", own, where)
        return
    decoded = value if isinstance(value, Mapping) else CfgNode._decode_cfg_value(value)
    if type(old) is float and type(decoded) is int:
        value = float(decoded)  # yacs would refuse 48 for 48.0
    try:
        cfg.merge_from_list([key, value])
    except (ValueError, AssertionError, KeyError) as error:
        kind, found = type(old).__name__, f"{type(decoded).__name__} {decoded!r}"
        raise ConfigError(f"{where}: {key}: expected {kind}, found {found}. Fix: write one, such as {old!r}") from error


def _keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")


def _suggest(key: str, known: list[str]) -> str:
    """The key meant: in the wrong place first (SLOTS_PER_CLASS under MODEL), then a misspelt one."""
    name = key.rpartition(".")[2]
    near = [other for other in known if other.endswith(f".{name}")][:3] or get_close_matches(key, known, n=1)
    near = near or get_close_matches(f"MODEL.RIO.{name}", known, n=1, cutoff=0.75)
    return f"did you mean {' or '.join(near)}?" if near else "rio/config.py and detectron2's config list all keys"
