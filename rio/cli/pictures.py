"""`rio predict`: pictures of detections, or of a results file beside its ground truth."""

from __future__ import annotations

import argparse
import itertools
import os
import warnings
from collections.abc import Sequence
from typing import Any

from rio.cli.common import UsageError, config, ground_truth

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def predict(args: argparse.Namespace) -> int:
    """Pictures with detections; rare classes are highlighted."""
    os.makedirs(args.output, exist_ok=True)
    count = _draw_results(args) if args.results else _draw_images(args)
    print(f"{count} picture{'s' * (count != 1)} in {args.output}")
    return 0


def _draw_images(args: argparse.Namespace) -> int:
    if not args.inputs or not args.weights:
        raise UsageError("predict: expected images or folders and --weights, or --results, --gt and --gt-images")
    from tqdm.auto import tqdm

    from rio.data.images import read_image
    from rio.data.names import annotations_of
    from rio.engine.inference import Predictor
    from rio.engine.setup import setup_inference, start_logging, training_annotations

    targets = _targets(_image_files(args.inputs), args.output)
    start_logging(None)
    cfg = setup_inference(config(args), need_test_sets=False)
    known = training_annotations(cfg)
    if known is None and len(cfg.DATASETS.TEST):  # with neither, objects are labelled "class 12"
        known = annotations_of(cfg.DATASETS.TEST[0])
    predictor = Predictor(cfg, args.weights)
    for target, file in tqdm(targets.items(), disable=None, unit="image"):
        image = read_image(file)
        found = predictor(image)
        found = found[found.scores >= args.score_threshold]
        classes = found.pred_classes.numpy()
        boxes = found.pred_boxes.tensor.numpy().copy()
        boxes[:, 2:] -= boxes[:, :2]
        masks = list(found.pred_masks.numpy().astype(bool)) if found.has("pred_masks") else None
        labels = [known.category_names[c] if known else f"class {c}" for c in classes]
        groups = known.frequency[classes].tolist() if known else None
        _save(target, image, {"": (boxes, masks, labels, groups, found.scores.numpy())})
    return len(targets)


def _draw_results(args: argparse.Namespace) -> int:
    if not args.gt_images:
        raise UsageError("predict --results: expected --gt-images FOLDER, where the ground truth's images are")
    import numpy as np
    from tqdm.auto import tqdm

    from rio.data.images import read_image
    from rio.results.objects import objects_of, predictions_of
    from rio.results.reading import load_results

    truth = ground_truth(args)
    results = load_results(args.results, truth)
    # Images with rare objects first; among equals the file's order.
    is_rare = truth.frequency[truth.annotation_class] == "r"
    rare = np.bincount(truth.annotation_image, is_rare, minlength=truth.num_images)
    order = np.argsort(-rare, kind="stable")[: args.limit or None].tolist()
    for place, i in enumerate(tqdm(order, disable=None, unit="image")):
        found = predictions_of(results, truth, i, score_threshold=args.score_threshold)
        panels = {
            title: (o.boxes, o.segmentations, o.names, o.groups.tolist(), o.scores)
            for title, o in (("ground truth", objects_of(truth, i)), ("predictions", found))
        }
        stem = os.path.splitext(os.path.basename(truth.file_names[i]))[0]
        _save(os.path.join(args.output, f"{place:04d}_{stem}.jpg"), read_image(truth.image_path(i)), panels)
    return len(order)


def _save(path: str, image: Any, panels: dict[str, tuple[Any, ...]]) -> None:
    """Draws the image once per panel (boxes, masks, labels, groups, scores), side by side, below its title."""
    from matplotlib.figure import Figure

    from rio.plots import draw_objects

    height, width = image.shape[:2]
    scale = max(1.0, 640 / max(height, width)) / 100  # small images are enlarged, so that labels have room
    figure = Figure(figsize=(len(panels) * width * scale, height * scale), dpi=100)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.01)
    with warnings.catch_warnings():  # a category name in a script that the font lacks is drawn as boxes
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        for axes, (title, objects) in zip(row, panels.items(), strict=True):
            draw_objects(axes, image, *objects)
            if title:
                box = {"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "pad": 2}
                place = {"va": "top", "transform": axes.transAxes, "zorder": 10_000}
                axes.text(0.01, 0.99, title, fontsize=8, color="white", bbox=box, **place)
        figure.savefig(path)


def _image_files(inputs: Sequence[str]) -> list[str]:
    files = []
    for path in inputs:
        names = sorted(os.listdir(path)) if os.path.isdir(path) else []
        inside = [os.path.join(path, name) for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
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
