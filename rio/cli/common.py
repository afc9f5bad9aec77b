"""What several commands share: the config their flags describe, the ground truth of a results file, usage errors."""

import argparse
import os
import warnings
from collections.abc import Sequence
from typing import Any

from rio.data.errors import check


class UsageError(ValueError):
    """Arguments that do not go together."""


def is_ours(error: BaseException) -> bool:
    """Whether the message is enough. OSError (no such file, no space): its text names the file."""
    return type(error).__module__.split(".")[0] == "rio" or isinstance(error, OSError)


def drop_known_warnings() -> None:
    """Hides what detectron2 and torch tell each other's authors on every start."""
    for message in ("`torch.jit.script` is", "TypedStorage is deprecated", "`broadcast_buffers` is", "`torch.cuda.amp"):
        warnings.filterwarnings("ignore", message)


def pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """KEY VALUE KEY VALUE ... as pairs."""
    if len(words) % 2:
        raise UsageError(
            f"options: expected KEY VALUE pairs, found {len(words)} words, the last unpaired: {words[-1]!r}"
        )
    return list(zip(words[0::2], words[1::2], strict=True))


def require_file(flag: str, path: str) -> None:
    """Raise UsageError unless a checkpoint is there; some weights are named by addresses."""
    if "://" not in path and not os.path.isfile(path):
        raise UsageError(f"{flag} {path}: expected a checkpoint, found no such file. Fix: a run writes model_final.pth")


def config(args: argparse.Namespace) -> Any:
    """The config (CfgNode) that a command's flags describe."""
    from rio.config import load_config

    path = args.config_file
    if path is None and getattr(args, "weights", None):
        beside = os.path.join(os.path.dirname(args.weights), "config.yaml")
        if os.path.isfile(beside):
            print(f"Config: {beside}")
            path = beside
    fix = "name one; configs/ holds the project's own"
    check(path is not None, "--config-file", "a config", "none", fix, UsageError)
    opts: list[str] = []  # flags are shorthands for keys and come first: a key that is written out wins
    for flag, key in (("train", "DATASETS.TRAIN"), ("val", "DATASETS.TEST")):
        file, images = getattr(args, f"{flag}_json"), getattr(args, f"{flag}_images")
        if (file is None) != (images is None):
            raise UsageError(f"--{flag}-json and --{flag}-images: expected both or neither")
        if file is not None:
            file, question, options = file.partition("?")
            opts += [key, repr((f"{file}@{images}{question}{options}",))]
    if getattr(args, "output_dir", None):
        opts += ["OUTPUT_DIR", args.output_dir]
    return load_config(path, [*opts, *args.opts])


def ground_truth(args: argparse.Namespace, *, segmentations: bool = True) -> Any:
    """The Annotations that a results file belongs to, grouped by the image counts of --train-json if given."""
    from rio.data.load import load_annotations
    from rio.data.names import split_options

    if not args.gt:
        raise UsageError("--results: expected --gt JSON, the ground truth that the results belong to")
    path, on_error, borders = split_options(args.gt)
    root = getattr(args, "gt_images", None)
    truth = load_annotations(path, image_root=root, on_error=on_error, segmentations=segmentations)
    if truth.skipped:
        kinds = ", ".join(f"{kind} {count}" for kind, count in truth.skipped_counts().items())
        print(f"{truth.path}: left out {len(truth.skipped)} records ({kinds}); the first: {truth.skipped[0].record}")
    truth = truth.with_borders(borders)
    if args.train_json:
        path, on_error, borders = split_options(args.train_json)
        train = load_annotations(path, segmentations=False, on_error=on_error)
        truth = truth.with_frequency_of(train.with_borders(borders))
    return truth
