"""`rio predict`: pictures of detections, or of a results file beside its ground truth."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rio.cli.common import UsageError, config, ground_truth, require_file
from rio.data.files import IMAGE_SUFFIXES


def predict(args: argparse.Namespace) -> int:
    """Pictures with detections; rare classes are highlighted."""
    words = args.inputs  # the first that is a key, and no file, begins the options
    keys = (i for i, word in enumerate(words) if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*", word))
    at = next((i for i in keys if not os.path.exists(words[i])), len(words))
    args.inputs, args.opts = words[:at], words[at:] + args.opts
    os.makedirs(args.output, exist_ok=True)
    drawn = _draw_results(args) if args.results else _draw_images(args)
    print(f"{drawn.count} picture{'s' * (drawn.count != 1)} in {args.output}")
    if drawn.empty:
        highest = f"; the highest score of all is {drawn.highest:.2f}" if drawn.highest >= 0 else ""
        print(f"No detection reaches --score-threshold {drawn.threshold:g} in {drawn.empty} of them{highest}")
    for fault in drawn.faults:
        print(f"left out: {fault}", file=sys.stderr)
    return 1 if drawn.faults else 0


class _Drawn:
    """What has been drawn so far, and why the rest has not."""

    def __init__(self, threshold: float) -> None:
        self.threshold, self.count, self.empty, self.highest = threshold, 0, 0, -1.0
        self.faults: list[str] = []

    def title(self, scores: Any) -> str:
        """Takes an image's scores into account, those below the threshold too; says how many are shown."""
        shown, highest = int((scores >= self.threshold).sum()), float(scores.max(initial=-1.0))
        self.highest, self.empty = max(self.highest, highest), self.empty + (not shown)
        rest = f", the highest {highest:.2f}" if len(scores) and not shown else ""
        return f"{shown} of {len(scores)} detections from {self.threshold:g} on{rest}"

    def each(self, items: Iterable[Any], draw: Callable[[Any], None]) -> _Drawn:
        """Draw every item; an image that cannot be read is left out and listed."""
        from tqdm.auto import tqdm

        from rio.data.images import ImageError

        for item in tqdm(items, disable=None, unit="image"):
            try:
                draw(item)
                self.count += 1
            except ImageError as error:
                self.faults.append(str(error))
        return self


def _draw_images(args: argparse.Namespace) -> _Drawn:
    if not args.inputs or not args.weights:
        raise UsageError("predict: expected images or folders and --weights, or --results, --gt and --gt-images")
    from rio.data.images import read_image
    from rio.data.names import annotations_of
    from rio.engine.inference import Predictor
    from rio.engine.setup import setup_inference, start_logging, training_annotations

    targets = _targets(_image_files(args.inputs), args.output)
    require_file("--weights", args.weights)
    start_logging(None)
    cfg = setup_inference(config(args), need_test_sets=False)
    known = training_annotations(cfg)
    if known is None and len(cfg.DATASETS.TEST):  # with neither, objects are labelled "class 12"
        known = annotations_of(cfg.DATASETS.TEST[0])
    predictor = Predictor(cfg, args.weights)
    drawn = _Drawn(_threshold_beside(args.weights) if args.score_threshold is None else args.score_threshold)

    def draw(one: tuple[str, str]) -> None:
        target, file = one
        image = read_image(file)
        found = predictor(image, file)
        title = drawn.title(found.scores.numpy())
        found = found[found.scores >= drawn.threshold]
        classes = found.pred_classes.numpy()
        boxes = found.pred_boxes.tensor.numpy().copy()
        boxes[:, 2:] -= boxes[:, :2]
        masks = list(found.pred_masks.numpy().astype(bool)) if found.has("pred_masks") else None
        labels = [known.category_names[c] if known else f"class {c}" for c in classes]
        groups = known.frequency[classes].tolist() if known else None
        _save(target, image, {"" if len(found) else title: (boxes, masks, labels, groups, found.scores.numpy())})

    return drawn.each(targets.items(), draw)


def _threshold_beside(weights: str) -> float:
    """Chosen from the results that the weights' run was evaluated by; says which, and why if there are none."""
    from rio.analysis.runs import Runs
    from rio.results.thresholds import FALLBACK, RULE

    folder = os.path.dirname(weights) or "."
    try:
        if not os.path.isfile(os.path.join(folder, "instances_results.json")):
            raise FileNotFoundError(f"{folder} holds no instances_results.json to choose by")
        (lowest,) = Runs(folder).thresholds.values()
        print(f"Drawn from score {lowest:g} on: {RULE} on {folder}/instances_results.json")
    except (OSError, ValueError) as error:
        lowest, why = FALLBACK, " ".join(str(error).split())
        print(f"Drawn from score {lowest:g} on; --score-threshold sets another ({why})")
    return lowest


def _draw_results(args: argparse.Namespace) -> _Drawn:
    if not args.gt_images:
        raise UsageError("predict --results: expected --gt-images FOLDER, where the ground truth's images are")
    import numpy as np

    from rio.data.images import read_image
    from rio.results.objects import objects_of, predictions_of
    from rio.results.reading import load_results
    from rio.results.thresholds import RULE, best_threshold

    truth = ground_truth(args)
    results = load_results(args.results, truth)
    if truth.declared_frequency is None:
        print(f"Colours: groups by the image counts of {truth.path} itself; --train-json gives the training set's")
    lowest = args.score_threshold
    if lowest is None:
        lowest = best_threshold(truth, results)
        print(f"Drawn from score {lowest:g} on: {RULE} on these results")
    drawn = _Drawn(lowest)
    # Images with rare objects first; among equals the file's order.
    is_rare = truth.frequency[truth.annotation_class] == "r"
    rare = np.bincount(truth.annotation_image, is_rare, minlength=truth.num_images)
    order = np.argsort(-rare, kind="stable")[: args.limit or None].tolist()

    def draw(one: tuple[int, int]) -> None:
        place, i = one
        image = read_image(truth.image_path(i))
        title = drawn.title(results.scores[results.of_image(i)])
        found = predictions_of(results, truth, i, score_threshold=lowest)
        panels = {
            title: (o.boxes, o.segmentations, o.names, o.groups.tolist(), o.scores)
            for title, o in (("ground truth", objects_of(truth, i)), (title, found))
        }
        stem = os.path.splitext(os.path.basename(truth.file_names[i]))[0]
        _save(os.path.join(args.output, f"{place:04d}_{stem}.jpg"), image, panels)

    return drawn.each(list(enumerate(order)), draw)


def _save(path: str, image: Any, panels: dict[str, tuple[Any, ...]]) -> None:
    """Draws the image once per panel (boxes, masks, labels, groups, scores), below its title; wide images stacked."""
    from matplotlib.figure import Figure

    from rio.plots import draw_objects

    height, width = image.shape[:2]
    scale = max(1.0, 640 / max(height, width)) / 100  # small images are enlarged, so that labels have room
    rows, columns = (len(panels), 1) if width > 1.5 * height else (1, len(panels))
    size = columns * width * scale, rows * height * scale
    figure = Figure(figsize=tuple(max(side, 0.01) for side in size), dpi=100)  # of 1 px at least
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.01, hspace=0.01)
    with warnings.catch_warnings():  # a category name in a script that the font lacks is drawn as boxes
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        for axes, (title, objects) in zip(grid, panels.items(), strict=True):
            draw_objects(axes, image, *objects)
            if title:
                box = {"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "pad": 2}
                place = {"va": "top", "transform": axes.transAxes, "zorder": 10_000}
                axes.text(0.01, 0.99, title, fontsize=8, color="white", bbox=box, **place)
        figure.savefig(path)


def _image_files(inputs: Sequence[str]) -> list[str]:
    """The images that are named, and those in the folders; there hidden files (._a.jpg) and folders are none."""
    files = []
    for path in inputs:
        names = sorted(os.listdir(path)) if os.path.isdir(path) else []
        names = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
        inside = [file for name in names if os.path.isfile(file := os.path.join(path, name))]
        if not inside and not os.path.isfile(path):
            where = "none in this folder" if os.path.isdir(path) else "nothing there"
            raise UsageError(f"{path}: expected an image or a folder of images {IMAGE_SUFFIXES}, found {where}")
        files += inside or [path]
    return files


def _targets(files: Sequence[str], folder: str) -> dict[str, str]:
    """Picture -> file. Files of the same name in different folders get numbers."""
    targets: dict[str, str] = {}
    for file in files:
        stem = os.path.join(folder, os.path.splitext(os.path.basename(file))[0])
        names = (f"{stem}{f'_{n}' if n > 1 else ''}.jpg" for n in itertools.count(1))
        targets[next(name for name in names if name not in targets)] = file
    return targets
