"""The commands besides `train` and `predict`; each imports what it needs when it runs."""

import argparse
import os

from rio.cli.common import UsageError, config, ground_truth, pairs, require_file
from rio.data.errors import check as check_that
from rio.results.protocols import PROTOCOLS


def check(args: argparse.Namespace) -> int:
    """What is wrong with an annotation file, what it means for training and AP, and the fix."""
    from rio.checks.check import check

    given = {"train": args.train, "train_images": args.train_images, "results": args.results, "write": args.write}
    report = check(args.annotations, images=args.images, **given)
    print(report)
    return report.exit_code


def evaluate(args: argparse.Namespace) -> int:
    """AP of trained weights, or of a results file."""
    protocol = PROTOCOLS[args.protocol]
    how = {"protocol": args.protocol, "backend": args.backend, "iou_types": args.iou_type}
    expected = f"{' or '.join(protocol.backends)} with --protocol {args.protocol}"
    check_that(args.backend in protocol.backends, "--backend", expected, args.backend, "leave it out", UsageError)
    if args.protocol != "lvis":
        print(f"Protocol: {protocol.title}")
    if args.results:
        if args.calibration or args.tune_on:
            raise UsageError("--calibration: expected --weights, found --results, whose scores are final")
        from rio.results.evaluation import evaluate
        from rio.results.records import carries_masks

        masks = carries_masks(args.results) if args.iou_type is None else args.iou_type != ["bbox"]
        evaluation = evaluate(ground_truth(args, segmentations=masks), args.results, **how)
        print(evaluation.table())
        if args.output_dir:
            os.makedirs(args.output_dir, exist_ok=True)
            evaluation.to_json(os.path.join(args.output_dir, "evaluation.json"))
            print(f"\nWritten to {args.output_dir}: evaluation.json")
        return 0
    if not args.weights:
        raise UsageError("eval: expected --weights CHECKPOINT, or --results JSON with --gt JSON")
    require_file("--weights", args.weights)
    from rio.engine.inference import evaluate_model, load_model
    from rio.engine.setup import setup_inference, start_logging

    folder = args.output_dir or os.path.join(os.path.dirname(args.weights) or ".", "eval")
    args.output_dir = None
    tried = [(method, one) for method, strengths in map(_calibration, args.calibration) for one in strengths]
    if args.tune_on or len(tried) > 1:
        return _sweep(args, tried)
    if tried:
        given = zip(("CALIBRATION", "CALIBRATION_STRENGTH"), tried[0], strict=True)
        args.opts = [word for key, value in given for word in (f"MODEL.RIO.{key}", str(value))] + args.opts
    start_logging(None)
    cfg = setup_inference(config(args))
    if not len(cfg.DATASETS.TEST):
        raise UsageError("eval: expected a test set, found none. Fix: --val-json and --val-images, or DATASETS.TEST")
    evaluate_model(cfg, load_model(cfg, args.weights), output_dir=folder, **how)  # shows the table
    print(f"Written to {folder}: evaluation.json, instances_results.json")
    return 0


def _calibration(text: str) -> tuple[str, list[float]]:
    """METHOD=STRENGTH,STRENGTH,... -> the method and its strengths; -1, the method's own, where none is given."""
    method, _, strengths = text.partition("=")
    try:
        found = [float(one) for one in strengths.split(",")] if strengths else [-1.0]
    except ValueError:
        found = []
    good = found and (not strengths or all(0 <= one < float("inf") for one in found))
    expected = "METHOD, METHOD=STRENGTH or METHOD=STRENGTH,STRENGTH,... with strengths >= 0"
    check_that(good, "--calibration", expected, repr(text), "for example norcal=0.6", UsageError)
    return method, found


def _sweep(args: argparse.Namespace, tried: list[tuple[str, float]]) -> int:
    """Several calibrations side by side, on a set to choose on."""
    if not args.tune_on or not tried or args.output_dir:
        expected = "--calibration METHOD=STRENGTH,... and --tune-on DATA, without --output-dir"
        raise UsageError(
            f"eval: expected {expected}, to choose among calibrations. The best on the reported images would look "
            "better than it is. Fix: --tune-on, the name of a set of other images whose features are there as well"
        )
    from rio.engine.calibration_sweep import format_sweep, sweep
    from rio.engine.setup import setup_inference, start_logging
    from rio.study.plan import check_disjoint

    start_logging(None)
    methods = [method for method, _ in tried]
    # The one that needs more than counts; checks the loss, too.
    args.opts = ["MODEL.RIO.CALIBRATION", "fracal" if "fracal" in methods else methods[0], *args.opts]
    reported = config(args).DATASETS
    check_disjoint(f"--tune-on {args.tune_on}", args.tune_on, (*reported.TEST, *reported.TRAIN))
    args.opts = [*args.opts, "DATASETS.TEST", repr((args.tune_on,))]
    print(format_sweep(sweep(setup_inference(config(args)), args.weights, tried, protocol=args.protocol), args.tune_on))
    return 0


def study(args: argparse.Namespace) -> int:
    """Train arms x seeds from a study file side by side, here or on a cluster; resumable."""
    from rio.study import cluster, plan, result, runner

    belongs = dict.fromkeys(("processes", "num_gpus"), "local")
    belongs |= dict.fromkeys(("partition", "gpus_per_task", "max_parallel", "sbatch", "status"), "slurm")
    for name, where in belongs.items():
        if getattr(args, name) is not None and where != args.cluster:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag}: expected --cluster {where}, found {args.cluster}. Fix: leave {flag} out")
    planned = plan.load_study(args.file)
    folder = args.output_dir or os.path.join("output", planned.name)
    if args.status:
        print(cluster.status(planned, folder, args.opts))
        return 0
    if args.cluster == "local":
        cluster.refuse_if_queued(folder)
        given = {"processes": args.processes, "gpus": args.num_gpus, "minutes": args.minutes, "options": args.opts}
        found = runner.run_study(planned, folder, **given).result
    else:
        words = [word.partition("=")[::2] for word in args.sbatch or ()]
        if wrong := [key for key, value in words if not key or not value]:
            raise UsageError(f"--sbatch: expected KEY=VALUE, found {wrong[0]!r}. Fix: for example --sbatch account=lab")
        gpus = 1 if args.gpus_per_task is None else args.gpus_per_task
        asked = cluster.Slurm(args.partition, gpus, args.max_parallel, args.minutes or 240, dict(words))
        names = cluster.submit(planned, folder, asked, args.opts)
        print(f"Submitted: {', '.join(names) or 'nothing; all runs are finished or in the queue'}", flush=True)
        found = cluster.watch(planned, folder, args.opts)
    print(result.format_result(found))
    print(f"\nRuns: {folder} (study.md has all tables, study_*.svg the figures)")
    return 0


def demo(args: argparse.Namespace) -> int:
    """Draw a data set, train a detector and classifiers on the CPU, compare them in a report."""
    from rio.report.demo import demo

    demo(args.output_dir, processes=args.processes, features_only=args.features_only)
    return 0


def info(args: argparse.Namespace) -> int:
    """Versions, GPUs, data sets found and not found."""
    from rio.engine.info import collect, format_info

    print(format_info(collect()))
    return 0


def shapes(args: argparse.Namespace) -> int:
    """Draw the embedded synthetic long-tailed data set."""
    import dataclasses

    from rio.shapes.dataset import generate
    from rio.shapes.spec import SPECS

    spec = SPECS[args.set]
    for key, text in pairs(args.opts):
        if key not in (fields := dataclasses.asdict(spec)):
            raise UsageError(f"option {key}: expected one of {', '.join(fields)}")
        kind = type(fields[key])
        try:
            spec = dataclasses.replace(spec, **{key: kind(text)})
        except ValueError as error:
            raise UsageError(f"option {key}: expected {kind.__name__}, found {text!r}") from error
    if spec != SPECS[args.set] and spec.name == SPECS[args.set].name:
        raise UsageError(f"a set other than {args.set!r} needs another name. Fix: add `name my_shapes`")
    root = args.root or os.environ.get("DETECTRON2_DATASETS") or "datasets"
    folders = [generate(root, spec, split, workers=args.workers) for split in ("train", *args.split)]
    print(f"In {', '.join(map(str, folders))}: synthetic images, {spec.num_classes} classes")
    return 0
