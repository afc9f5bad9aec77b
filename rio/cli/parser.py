"""``python -m rio COMMAND``: the flags of every command, and how errors end.

Commands import what they need when they run, so ``--help`` answers at once. An error of ours is one message without a
traceback and exit code 2; ``-v`` or the environment variable RIO_DEBUG shows the traceback too.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rio.cli import commands, convert, launch, pictures
from rio.cli.common import drop_known_warnings, is_ours
from rio.results.protocols import PROTOCOLS

EPILOG = """examples:
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
        Exit code: 0, 2 for a user's error, 130 after Ctrl-C; 1 where `predict` left images out, `check` has warnings.
    """
    parser = make_parser()
    args, extra = parser.parse_known_args(argv)
    words = {"predict": "inputs", "info": None, "demo": None, "check": None, "convert": None}.get(args.command, "opts")
    if flags := [word for word in extra if word.startswith("-") or words is None]:
        parser.error(f"unknown argument {flags[0]!r}; see `python -m rio {args.command} --help`")
    if extra:  # argparse takes free words in one place only; ours may stand on both sides of a flag
        setattr(args, words, [*getattr(args, words), *extra])
    drop_known_warnings()
    try:
        return args.run(args)
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "\nStopped.", file=sys.stderr)
        return getattr(stop, "exit_code", 130)
    except (ValueError, OSError, RuntimeError) as error:
        if not is_ours(error):
            raise
        if args.verbose or os.environ.get("RIO_DEBUG"):
            import traceback

            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    parser = argparse.ArgumentParser(
        prog="python -m rio",
        description="RIO: image-level and object-level resampling for long-tailed detection.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int]) -> Callable[..., Any]:
        sub = subparsers.add_parser(name, help=run.__doc__, description=run.__doc__, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument("-v", "--verbose", action="store_true", help="show tracebacks of errors")
        return sub.add_argument

    def config(add: Callable[..., Any]) -> None:
        add("--config-file", metavar="YAML", help="see configs/; default: config.yaml beside the weights")
        for flag, what in (("train", "training"), ("val", "validation")):
            add(f"--{flag}-json", metavar="JSON", help=f"{what} annotations, LVIS or COCO format")
            add(f"--{flag}-images", metavar="DIR", help=f"folder of the {what} images")

    def processes(add: Callable[..., Any]) -> None:
        add("--num-gpus", **count, default=1, help="GPUs of this machine (default 1; without a GPU the CPU is used)")
        add("--num-machines", **count, default=1)
        add("--machine-rank", type=int, default=0, metavar="R", help="0 .. num-machines - 1")
        add("--dist-url", metavar="URL", help="with several machines: address of machine 0, tcp://HOST:PORT")

    count = {"type": _above_zero(int), "metavar": "N"}
    words = {"nargs": "*", "metavar": "KEY VALUE"}

    add = command("check", commands.check)
    add("annotations", metavar="ANNOTATIONS", help="an LVIS- or COCO-format JSON")
    add("--images", metavar="DIR", help="its image folder: pictures are looked for and their headers read")
    more = "the training set's file: categories and pictures are compared"
    add("--train-json", "--train", dest="train", metavar="JSON", help=more)
    add("--train-images", metavar="DIR", help="the training set's image folder")
    add("--results", metavar="JSON", help="a results file of these images: read, and evaluated for its diagnosis")
    add("--write", metavar="FIXED", help="write a repaired copy: what has one right answer; every change is listed")

    add = command("convert", convert.convert)
    add("format", choices=sorted(convert.FORMATS), help="; ".join(f"{k}: {v}" for k, v in convert.FORMATS.items()))
    add("source", metavar="SOURCE", help="the folder or file that the tool has exported")
    add("output", metavar="JSON", help="the COCO-format file to write")
    add("--images", required=True, metavar="DIR", help="the folder of the images")

    add = command("train", launch.train)
    config(add)
    add("--output-dir", metavar="DIR", help="the run's folder (OUTPUT_DIR)")
    add("--resume", action="store_true", help="resume the run in that folder, if there is one")
    also = [name for name in PROTOCOLS if name != "lvis"]
    what = "evaluate by this too at the end, to a folder of its name; lvis_fixed without a cap per image"
    add("--protocol", choices=also, action="append", default=[], help=what)
    processes(add)
    add("opts", **words, help="config keys, for example SOLVER.MAX_ITER 1000")

    add = command("features", launch.features)
    config(add)
    add("--weights", metavar="PTH", help="a trained detector's checkpoint")
    add("--export", metavar="RUN", help="instead: put the classifier that this run trained on features back")
    add("--output", required=True, metavar="DIR", help="folder of the features; given again, it goes on")
    processes(add)
    add("opts", **words, help="config keys, for example MODEL.RIO.FEATURE_VIEWS 2")

    add = command("eval", commands.evaluate)
    config(add)
    add("--weights", metavar="PTH", help="a checkpoint")
    add("--results", metavar="JSON", help="evaluate these results instead of running a model")
    add("--gt", metavar="JSON", help="with --results: the ground truth; --train-json then gives the frequency groups")
    what = "correct the scores of --weights for the classes' counts: norcal, logit_adjustment, fracal, tau_norm"
    what += "; norcal=0.6, or with --tune-on several: norcal=0.2,0.4,0.6; may be given again"
    add("--calibration", action="append", default=[], metavar="METHOD[=STRENGTH,...]", help=what)
    what = "compare calibrations of a classifier trained on features, on this set of other images than the "
    what += "reported ones"
    add("--tune-on", metavar="DATA", help=what)
    what = "lvis (default); lvis_fixed: the 10,000 best detections of each category, no cap per image (with --weights "
    what += "set TEST.DETECTIONS_PER_IMAGE -1); coco: pycocotools' AP, with APr, APc and APf"
    add("--protocol", choices=tuple(PROTOCOLS), default="lvis", help=what)
    what = "what overlaps are of; repeat it for several (default: bbox, and segm where there are masks); boundary: "
    what += "outlines of masks (Boundary AP)"
    add("--iou-type", action="append", choices=("bbox", "segm", "boundary"), help=what)
    what = "lvis, or with --protocol coco pycocotools: the official package, slow"
    add("--backend", choices=("hotcoco", "lvis", "pycocotools"), default="hotcoco", help=what)
    add("--output-dir", metavar="DIR", help="for results and scores (default: eval/ beside the weights)")
    add("opts", **words, help="config keys, for example TEST.AUG.ENABLED True")

    add = command("predict", pictures.predict)
    add("inputs", nargs="*", metavar="INPUT", help="images and folders of images; then KEY VALUE ...")
    config(add)
    add("--weights", metavar="PTH", help="a checkpoint")
    add("--results", metavar="JSON", help="draw these results beside their ground truth instead")
    add("--gt", metavar="JSON", help="with --results: the ground truth")
    add("--gt-images", metavar="DIR", help="with --results: its images")
    limit = "with --results: at most N pictures, images with rare objects first (default 50, 0 all)"
    add("--limit", type=int, default=50, metavar="N", help=limit)
    add("--output", required=True, metavar="DIR", help="folder for the pictures")
    what = "draw detections from here (default: chosen by F1, from --results or those beside --weights; else 0.5)"
    add("--score-threshold", type=float, metavar="S", help=what)
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys; they may also follow without --opts")

    add = command("study", commands.study)
    add("file", metavar="YAML", help="see configs/studies/")
    add("--output-dir", metavar="DIR", help="default output/NAME")
    add("--processes", **count, help="trainings side by side (default: the file's)")
    add("--num-gpus", **count, help="GPUs of this machine that the trainings share (default: the file's, else 1)")
    more = " (slurm: a job's time limit, default 240; it is queued again and resumes)"
    what = "save and stop after this time; run it again to resume"
    add("--minutes", type=_above_zero(float), metavar="M", help=what + more)
    add("--cluster", choices=("local", "slurm"), default="local", help="slurm: the runs are a job array")
    add("--partition", metavar="P", help="slurm: default the cluster's")
    add("--gpus-per-task", type=int, choices=range(17), metavar="N", help="slurm: GPUs of each training (default 1)")
    add("--max-parallel", **count, help="slurm: at most so many jobs at a time")
    what = "slurm: an option of sbatch, for example account=lab or mem=64G; can be given several times"
    add("--sbatch", action="append", metavar="KEY=VALUE", help=what)
    add("--status", action="store_true", default=None, help="slurm: show how far the runs are, and end")
    add("opts", **words, help="config keys for every arm")

    add = command("demo", commands.demo)
    add("--output-dir", default=os.path.join("output", "demo"), metavar="DIR")
    add("--processes", **count, help="trainings side by side (default 2)")
    add("--features-only", action="store_true", help="only the detector and its features, for notebook 06")

    command("info", commands.info)

    add = command("shapes", commands.shapes)
    add("--set", choices=("demo", "tail", "bench"), default="demo", help="default demo")
    more = "these too: other images to choose settings on; a balanced training set"
    add("--split", choices=("tune", "balanced"), nargs="+", default=[], help=more)
    add("--root", metavar="DIR", help="default: $DETECTRON2_DATASETS or datasets/")
    add("--workers", **count, help="threads (default: one per core)")
    add("opts", **words, help="fields of the set, for example: name big_shapes train_images 2000")
    return parser


def _above_zero(kind: type) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if not 0 < (value := kind(text)) < float("inf"):
            raise argparse.ArgumentTypeError(f"expected {kind.__name__} > 0, found {text}")
        return value

    convert.__name__ = kind.__name__  # argparse shows it
    return convert
