"""``python -m rio COMMAND``: arguments to calls, nothing more.

Every command imports what it needs when it runs, so ``--help`` answers at once. Errors of this project are
one message without a traceback and exit code 2; with ``-v`` or the environment variable RIO_DEBUG the
traceback is shown too.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

_EPILOG = """examples:
  python -m rio demo
  python -m rio train --config-file configs/lvis_v1/rio_r50.yaml --num-gpus 8 --output-dir output/rio_r50
  torchrun --nproc_per_node 8 -m rio train --config-file ... --output-dir output/rio_r50
  python -m rio train --config-file configs/custom/rio_small_cpu.yaml \\
      --train-json my/train.json --train-images my/images \\
      --val-json my/val.json --val-images my/images --output-dir output/mine SOLVER.MAX_ITER 1000
  python -m rio eval --weights output/mine/model_final.pth
  python -m rio predict photo.jpg folder/ --weights output/mine/model_final.pth --output pictures
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``python -m rio``; None takes the process's own.

    Returns:
        Exit code: 0, 2 for an error of the user's making, 130 after Ctrl-C.
    """
    parser = _parser()
    args, extra = parser.parse_known_args(argv)
    words = {"predict": "inputs", "info": None, "demo": None}.get(args.command, "opts")
    flags = [word for word in extra if word.startswith("-") or words is None]
    if flags:
        parser.error(f"unknown argument {flags[0]!r}; see `python -m rio {args.command} --help`")
    if extra:  # argparse takes free words in one place only; ours may stand on both sides of a flag
        setattr(args, words, [*getattr(args, words), *extra])
    _drop_known_warnings()
    try:
        return args.run(args)
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "\nStopped.", file=sys.stderr)
        return getattr(stop, "exit_code", 130)
    except (ValueError, OSError, RuntimeError) as error:
        if not _is_ours(error):
            raise
        if args.verbose or os.environ.get("RIO_DEBUG"):
            import traceback

            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2


def _drop_known_warnings() -> None:
    """What detectron2 and torch say to each other's authors on every start."""
    import warnings

    for message in ("`torch.jit.script` is", "TypedStorage is deprecated", "`broadcast_buffers` is"):
        warnings.filterwarnings("ignore", message)


def _is_ours(error: BaseException) -> bool:
    # OSError: no such file, no permission, no space. Its text names the file; a traceback adds nothing.
    return type(error).__module__.split(".")[0] == "rio" or isinstance(error, OSError)


# --------------------------------------------------------------------------------------------------- commands


def _train(args: argparse.Namespace) -> int:
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # torchrun started this process and its siblings
        return _train_under_torchrun(args)
    import torch

    world = args.num_gpus * args.num_machines
    if world == 1:
        return _train_worker(args)
    if torch.cuda.device_count() < args.num_gpus:
        raise UsageError(
            f"--num-gpus {args.num_gpus}: expected as many GPUs on this machine, found "
            f"{torch.cuda.device_count()}. Lower it; several processes on a CPU: torchrun --nproc_per_node "
            f"{args.num_gpus} -m rio train ..."
        )
    if args.num_machines > 1 and args.dist_url is None:
        raise UsageError("--num-machines: expected --dist-url tcp://HOST:PORT too, the address of machine 0")
    import signal

    from detectron2.engine import launch
    from torch.multiprocessing import ProcessExitedException

    stopped = []
    # Ctrl-C reaches the children too: they save and end, and this process waits for them.
    before = signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    try:
        launch(_train_worker, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url or "auto", (args,))
    except ProcessExitedException as error:
        return error.exit_code or 1
    finally:
        signal.signal(signal.SIGINT, before)
    return 130 if stopped else 0


def _train_under_torchrun(args: argparse.Namespace) -> int:
    import torch
    from detectron2.utils import comm

    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    dist = torch.distributed
    backend = "nccl" if on_gpu else "gloo"
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts != "0" and os.environ.get("GROUP_WORLD_SIZE") == "1":
        # The agent's store may still hold the addresses of processes that are dead. Nodes count restarts each
        # for themselves, so this is for one node.
        store, rank, world = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(f"restart_{restarts}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    else:
        dist.init_process_group(backend)
    try:
        if hasattr(comm, "create_local_process_group"):  # detectron2 after v0.6
            comm.create_local_process_group(local_size)
        else:
            for first in range(0, dist.get_world_size(), local_size):
                group = dist.new_group(list(range(first, first + local_size)))
                if first <= dist.get_rank() < first + local_size:
                    comm._LOCAL_PROCESS_GROUP = group
        return _train_worker(args)
    finally:
        dist.destroy_process_group()


def _train_worker(args: argparse.Namespace) -> int:
    """Train in this process; also the entry point of processes that `launch` starts."""
    import multiprocessing

    _drop_known_warnings()
    from rio.engine.setup import setup_training
    from rio.trainer import Trainer

    try:
        cfg = setup_training(_config(args), resume=args.resume)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
    except (ValueError, OSError, RuntimeError) as error:
        if multiprocessing.parent_process() is None or not _is_ours(error):
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error
    return 0


def _eval(args: argparse.Namespace) -> int:
    if args.results:
        return _eval_results(args)
    if not args.weights:
        raise UsageError("eval: expected --weights CHECKPOINT, or --results JSON with --gt JSON")
    from rio.engine.inference import evaluate_model, load_model
    from rio.engine.setup import setup_inference, start_logging

    folder = args.output_dir or os.path.join(os.path.dirname(args.weights) or ".", "eval")
    args.output_dir = None
    start_logging(None)
    cfg = setup_inference(_config(args))
    if not len(cfg.DATASETS.TEST):
        raise UsageError("eval: expected a test set, found none. Give --val-json and --val-images, or DATASETS.TEST")
    evaluate_model(cfg, load_model(cfg, args.weights), output_dir=folder, backend=args.backend)  # shows the table
    print(f"Written to {folder}: evaluation.json, instances_results.json")
    return 0


def _eval_results(args: argparse.Namespace) -> int:
    from rio.results.evaluation import evaluate

    truth = _ground_truth(args)
    evaluation = evaluate(truth, args.results, iou_types=None, backend=args.backend)
    print(evaluation.table())
    if args.output_dir:
        os.makedirs(args.output_dir, exist_ok=True)
        evaluation.to_json(os.path.join(args.output_dir, "evaluation.json"))
        print(f"\nWritten to {args.output_dir}: evaluation.json")
    return 0


def _ground_truth(args: argparse.Namespace):
    from rio.data.load import load_annotations

    if not args.gt:
        raise UsageError("--results: expected --gt JSON, the ground truth that the results belong to")
    truth = load_annotations(args.gt, image_root=getattr(args, "gt_images", None))
    if args.train_json:
        truth = truth.with_frequency_of(load_annotations(args.train_json, segmentations=False))
    return truth


def _predict(args: argparse.Namespace) -> int:
    os.makedirs(args.output, exist_ok=True)
    count = _draw_results(args) if args.results else _draw_images(args)
    print(f"{count} picture{'s' * (count != 1)} in {args.output}")
    return 0


def _draw_images(args: argparse.Namespace) -> int:
    if not args.inputs or not args.weights:
        raise UsageError("predict: expected images or folders and --weights, or --results, --gt and --gt-images")
    import numpy as np
    from tqdm.auto import tqdm

    from rio.data.images import read_image
    from rio.data.names import annotations_of
    from rio.engine.inference import Predictor
    from rio.engine.setup import setup_inference, start_logging, training_annotations

    files = _image_files(args.inputs)
    start_logging(None)
    cfg = setup_inference(_config(args), need_test_sets=False)
    known = training_annotations(cfg)
    if known is None and len(cfg.DATASETS.TEST):  # with neither, objects are labelled "class 12"
        known = annotations_of(cfg.DATASETS.TEST[0])
    predictor = Predictor(cfg, args.weights)
    for file, target in tqdm(list(zip(files, _targets(files, args.output), strict=True)), disable=None, unit="image"):
        image = read_image(file)
        found = predictor(image)
        found = found[found.scores >= args.score_threshold]
        classes = found.pred_classes.numpy()
        boxes = found.pred_boxes.tensor.numpy().copy()
        boxes[:, 2:] -= boxes[:, :2]
        masks = list(found.pred_masks.numpy().astype(bool)) if found.has("pred_masks") else None
        labels = [known.category_names[c] if known else f"class {c}" for c in classes]
        groups = known.frequency[classes].tolist() if known else None
        _save_picture(target, [(image, boxes, masks, labels, groups, np.asarray(found.scores), None)])
    return len(files)


def _draw_results(args: argparse.Namespace) -> int:
    import numpy as np
    from pycocotools import mask as coco_mask
    from tqdm.auto import tqdm

    from rio.data.images import read_image
    from rio.results.reading import load_results

    if not args.gt_images:
        raise UsageError("predict --results: expected --gt-images FOLDER, where the ground truth's images are")
    truth = _ground_truth(args)
    results = load_results(args.results, truth)
    # Images with rare objects first; among equals the file's order.
    objects = [truth.annotations_of(i) for i in range(truth.num_images)]
    rare = np.array([(truth.frequency[truth.annotation_class[rows]] == "r").sum() for rows in objects])
    order = np.argsort(-rare, kind="stable")[: args.limit or None]
    for place, i in enumerate(tqdm(order.tolist(), disable=None, unit="image")):
        image = read_image(truth.image_path(i))
        own, rows = objects[i], results.of_image(i)
        rows = rows[results.scores[rows] >= args.score_threshold]

        def names(classes: np.ndarray) -> tuple[list[str], list[str]]:
            return [truth.category_names[c] for c in classes], truth.frequency[classes].tolist()

        own_masks = [_drawable(truth.segmentation(a), image.shape[:2]) for a in range(own.start, own.stop)]
        found_masks = None if results.rles is None else [coco_mask.decode(results.rles[r]).astype(bool) for r in rows]
        stem = os.path.splitext(os.path.basename(truth.file_names[i]))[0]
        _save_picture(
            os.path.join(args.output, f"{place:04d}_{stem}.jpg"),
            [
                (image, truth.boxes[own], own_masks, *names(truth.annotation_class[own]), None, "ground truth"),
                (
                    image,
                    results.boxes[rows],
                    found_masks,
                    *names(results.class_id[rows]),
                    results.scores[rows],
                    "predictions",
                ),
            ],
        )
    return len(order)


def _drawable(segmentation, size: tuple[int, int]):
    """Polygons as they are, run-length masks as bitmaps."""
    if not isinstance(segmentation, dict):
        return segmentation
    from pycocotools import mask as coco_mask

    if isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *size)
    return coco_mask.decode(segmentation).astype(bool)


def _save_picture(path: str, panels: list[tuple]) -> None:
    with warnings.catch_warnings():
        # A category name in a script that the font lacks is drawn as boxes; the picture is made all the same.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        _draw_picture(path, panels)


def _draw_picture(path: str, panels: list[tuple]) -> None:
    from matplotlib.figure import Figure

    from rio.plots import draw_objects

    height, width = panels[0][0].shape[:2]
    scale = max(1.0, 640 / max(height, width))  # small images are enlarged, so that labels have room
    figure = Figure(figsize=(len(panels) * width * scale / 100, height * scale / 100), dpi=100)
    for axes, (image, boxes, masks, labels, groups, scores, title) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        figure.subplots_adjust(0, 0, 1, 1, wspace=0.01)
        draw_objects(axes, image, boxes, masks, labels, groups, scores)
        if title:
            box = {"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "pad": 2}
            place = {"va": "top", "transform": axes.transAxes, "zorder": 10_000}
            axes.text(0.01, 0.99, title, fontsize=8, color="white", bbox=box, **place)
    figure.savefig(path)


def _image_files(inputs: Sequence[str]) -> list[str]:
    files = []
    for path in inputs:
        if os.path.isdir(path):
            inside = sorted(n for n in os.listdir(path) if n.lower().endswith(IMAGE_SUFFIXES))
            if not inside:
                raise UsageError(f"{path}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none in this folder")
            files += [os.path.join(path, name) for name in inside]
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise UsageError(f"{path}: expected an image or a folder of images, found nothing there")
    return files


def _targets(files: Sequence[str], folder: str) -> list[str]:
    """One picture a file; files of the same name in different folders get numbers."""
    targets, used = [], set()
    for file in files:
        stem = os.path.splitext(os.path.basename(file))[0]
        name, number = stem, 1
        while name in used:
            number += 1
            name = f"{stem}_{number}"
        used.add(name)
        targets.append(os.path.join(folder, f"{name}.jpg"))
    return targets


def _study(args: argparse.Namespace) -> int:
    from rio.study import plan, result, runner

    study = plan.load_study(args.file)
    folder = args.output_dir or os.path.join("output", study.name)
    outcome = runner.run_study(
        study, folder, processes=args.processes, gpus=args.num_gpus, minutes=args.minutes, options=args.opts
    )
    print(result.format_result(outcome.result))
    print(f"\nRuns: {folder} (study.md has all tables, study_*.svg the figures)")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from rio.report.demo import demo

    demo(args.output_dir, processes=args.processes)
    return 0


def _info(args: argparse.Namespace) -> int:
    from rio.engine.info import print_info

    print_info()
    return 0


def _shapes(args: argparse.Namespace) -> int:
    import dataclasses

    from rio.shapes.dataset import generate
    from rio.shapes.spec import SPECS

    spec = SPECS[args.set]
    fields = {f.name: f.type for f in dataclasses.fields(spec)}
    for key, text in _pairs(args.opts):
        if key not in fields:
            raise UsageError(f"option {key}: expected one of {', '.join(fields)}")
        kind = type(getattr(spec, key))
        try:
            spec = dataclasses.replace(spec, **{key: kind(text)})
        except ValueError as error:
            raise UsageError(f"option {key}: expected {kind.__name__}, found {text!r}") from error
    if spec != SPECS[args.set] and spec.name == SPECS[args.set].name:
        raise UsageError(f"another set than {args.set!r} needs another name: add `name my_shapes`")
    root = args.root or os.environ.get("DETECTRON2_DATASETS") or "datasets"
    folders = [generate(root, spec, split, workers=args.workers) for split in ("train", *args.split)]
    print(f"In {', '.join(map(str, folders))}: synthetic images, {spec.num_classes} classes")
    return 0


# -------------------------------------------------------------------------------------------------- arguments


class UsageError(ValueError):
    """Arguments that do not go together."""


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    if len(words) % 2:
        raise UsageError(f"options: expected KEY VALUE pairs, found {len(words)} words, the last alone: {words[-1]!r}")
    return list(zip(words[0::2], words[1::2], strict=True))


def _config(args: argparse.Namespace):
    """The config that a command's flags describe."""
    from rio.config import load_config

    path = args.config_file
    if path is None and getattr(args, "weights", None):
        beside = os.path.join(os.path.dirname(args.weights), "config.yaml")
        if os.path.isfile(beside):
            print(f"Config: {beside}")
            path = beside
    if path is None:
        raise UsageError("--config-file: expected a config, found none. configs/ holds the project's own")
    # The flags are shorthands for keys and come first: a key that is written out wins.
    opts: list[str] = []
    for flag, key in (("train", "DATASETS.TRAIN"), ("val", "DATASETS.TEST")):
        file, images = getattr(args, f"{flag}_json", None), getattr(args, f"{flag}_images", None)
        if (file is None) != (images is None):
            raise UsageError(f"--{flag}-json and --{flag}-images: expected both or neither")
        if file is not None:
            opts += [key, repr((f"{file}@{images}",))]
    if getattr(args, "output_dir", None):
        opts += ["OUTPUT_DIR", args.output_dir]
    return load_config(path, [*opts, *args.opts])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rio",
        description="RIO: image-level and object-level resampling for long-tailed detection.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument("-v", "--verbose", action="store_true", help="show tracebacks of errors")
        return sub

    def options(sub: argparse.ArgumentParser, what: str) -> None:
        sub.add_argument("opts", nargs="*", metavar="KEY VALUE", help=what)

    def config(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--config-file", metavar="YAML", help="see configs/; default: config.yaml beside the weights")
        for flag, what in (("train", "training"), ("val", "validation")):
            sub.add_argument(f"--{flag}-json", metavar="JSON", help=f"{what} annotations, LVIS or COCO format")
            sub.add_argument(f"--{flag}-images", metavar="DIR", help=f"folder of the {what} images")

    sub = command("train", _train, "Train a detector and evaluate it.")
    config(sub)
    sub.add_argument("--output-dir", metavar="DIR", help="the run's folder (OUTPUT_DIR)")
    sub.add_argument("--resume", action="store_true", help="go on with the run in that folder, if there is one")
    sub.add_argument(
        "--num-gpus",
        type=_positive,
        default=1,
        metavar="N",
        help="GPUs of this machine (default 1; on a machine without a GPU the CPU is used)",
    )
    sub.add_argument("--num-machines", type=_positive, default=1, metavar="N")
    sub.add_argument("--machine-rank", type=int, default=0, metavar="R", help="0 .. num-machines - 1")
    sub.add_argument("--dist-url", metavar="URL", help="with several machines: address of machine 0, tcp://HOST:PORT")
    options(sub, "config keys, for example SOLVER.MAX_ITER 1000")

    sub = command("eval", _eval, "AP of trained weights, or of a results file.")
    config(sub)
    sub.add_argument("--weights", metavar="PTH", help="a checkpoint")
    sub.add_argument("--results", metavar="JSON", help="evaluate these results instead of running a model")
    sub.add_argument(
        "--gt",
        metavar="JSON",
        help="with --results: their ground truth; with --train-json: whose image counts give the frequency groups",
    )
    sub.add_argument(
        "--backend", choices=("hotcoco", "lvis"), default="hotcoco", help="lvis: the official package, slow"
    )
    sub.add_argument("--output-dir", metavar="DIR", help="for results and scores (default: eval/ beside the weights)")
    options(sub, "config keys, for example TEST.AUG.ENABLED True")

    sub = command("predict", _predict, "Pictures with detections; rare classes are highlighted.")
    sub.add_argument("inputs", nargs="*", metavar="INPUT", help="images and folders of images")
    config(sub)
    sub.add_argument("--weights", metavar="PTH", help="a checkpoint")
    sub.add_argument("--results", metavar="JSON", help="draw these results beside their ground truth instead")
    sub.add_argument("--gt", metavar="JSON", help="with --results: the ground truth")
    sub.add_argument("--gt-images", metavar="DIR", help="with --results: its images")
    sub.add_argument(
        "--limit",
        type=int,
        default=50,
        metavar="N",
        help="with --results: at most N pictures, images with rare objects first (default 50, 0 all)",
    )
    sub.add_argument("--output", required=True, metavar="DIR", help="folder for the pictures")
    sub.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="S", help="draw detections from here (default 0.5)"
    )
    sub.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys")

    sub = command("study", _study, "Train arms x seeds from a study file side by side; resumable.")
    sub.add_argument("file", metavar="YAML", help="see configs/studies/")
    sub.add_argument("--output-dir", metavar="DIR", help="default output/NAME")
    sub.add_argument("--processes", type=_positive, metavar="N", help="trainings side by side (default: the file's)")
    sub.add_argument(
        "--num-gpus", type=_positive, metavar="N",
        help="GPUs of this machine that the trainings are dealt over (default: the file's, else 1)",
    )  # fmt: skip
    sub.add_argument(
        "--minutes", type=_minutes, metavar="M",
        help="work at most so long, then save and end; the same command goes on",
    )  # fmt: skip
    options(sub, "config keys for every arm")

    sub = command("demo", _demo, "Draw a data set, train three detectors on the CPU, compare them in a report.")
    sub.add_argument("--output-dir", default=os.path.join("output", "demo"), metavar="DIR")
    sub.add_argument("--processes", type=_positive, metavar="N", help="trainings side by side (default 2)")

    command("info", _info, "Versions, GPUs, data sets found and not found.")

    sub = command("shapes", _shapes, "Draw the embedded synthetic long-tailed data set.")
    sub.add_argument("--set", choices=("demo", "bench"), default="demo", help="default demo")
    sub.add_argument(
        "--split",
        choices=("tune", "balanced"),
        nargs="+",
        default=[],
        help="also these: other images to choose settings by; a balanced training set",
    )
    sub.add_argument("--root", metavar="DIR", help="default: $DETECTRON2_DATASETS or datasets/")
    sub.add_argument("--workers", type=_positive, metavar="N", help="processes (default: one a core)")
    options(sub, "fields of the set, for example: name big_shapes train_images 2000")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, found {text}")
    return value


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected minutes > 0, found {text}")
    return value
