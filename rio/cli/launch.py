"""`rio train` and `rio features`: in this process, in one process per GPU, or as torchrun's child."""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable

from rio.cli.common import UsageError, config, drop_known_warnings, is_ours
from rio.data.errors import check


def train(args: argparse.Namespace) -> int:
    """Train a detector and evaluate it."""
    return _launch(_train, args)


def features(args: argparse.Namespace) -> int:
    """Keep a trained detector's RoI features, to train classifiers on; or put such a classifier back."""
    if args.export:
        from rio.engine.feature_extraction import export

        print(f"Written: {export(args.export, args.output)}, for rio eval and rio predict")
        return 0
    if not args.weights:
        raise UsageError("features: expected --weights CHECKPOINT, or --export RUN")
    return _launch(_extract, args)


def _launch(work: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run `work` in this process, in one process per GPU, or as torchrun's child."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # torchrun started this process and its siblings
        return _under_torchrun(work, args)
    if args.num_gpus * args.num_machines == 1:
        return _worker(work, args)
    import torch

    fix = f"torchrun --nproc_per_node {args.num_gpus} -m rio {args.command} ..."
    found, fix = torch.cuda.device_count(), f"lower it; for several processes on a CPU: {fix}"
    check(found >= args.num_gpus, f"--num-gpus {args.num_gpus}", "as many GPUs on this machine", found, fix, UsageError)
    if args.num_machines > 1 and args.dist_url is None:
        raise UsageError("--num-machines: expected --dist-url tcp://HOST:PORT too, the address of machine 0")
    from detectron2.engine import launch
    from torch.multiprocessing import ProcessExitedException

    from rio.engine.hooks import stop_signals_go_to

    stopped: list[int] = []
    # Ctrl-C and SLURM's SIGTERM reach the children too: they save and end, and this process waits for them.
    with stop_signals_go_to(stopped.append):
        try:
            launch(_worker, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url or "auto", (work, args))
        except ProcessExitedException as error:
            return error.exit_code or 1
    return 128 + stopped[0] if stopped else 0


def _under_torchrun(work: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    import torch
    from detectron2.utils import comm

    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpus = torch.cuda.is_available() and config(args).MODEL.DEVICE.startswith("cuda")
    if on_gpus:
        what, fix = f"torchrun --nproc_per_node {local_size}", "lower it, or train on the CPU: MODEL.DEVICE cpu"
        found = torch.cuda.device_count()
        check(found >= local_size, what, "as many GPUs on this machine", found, fix, UsageError)
        torch.cuda.set_device(local_rank)
    dist, backend = torch.distributed, "nccl" if on_gpus else "gloo"
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    given = {}
    if restarts != "0" and os.environ.get("GROUP_WORLD_SIZE") == "1":
        # The agent's store may still hold addresses of dead processes. Nodes count their own restarts: one node only.
        store, rank, world = next(dist.rendezvous("env://"))
        given = {"store": dist.PrefixStore(f"restart_{restarts}", store), "rank": rank, "world_size": world}
    dist.init_process_group(backend, **given)
    try:
        if hasattr(comm, "create_local_process_group"):  # detectron2 after v0.6
            comm.create_local_process_group(local_size)
        else:
            for first in range(0, dist.get_world_size(), local_size):
                ranks = range(first, first + local_size)
                group = dist.new_group(list(ranks))
                if dist.get_rank() in ranks:
                    comm._LOCAL_PROCESS_GROUP = group
        return _worker(work, args)
    finally:
        dist.destroy_process_group()


def _worker(work: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Runs in this process; also the entry point of the processes that `launch` starts."""
    drop_known_warnings()
    try:
        work(args)
    except (ValueError, OSError, RuntimeError) as error:
        if multiprocessing.parent_process() is None or not is_ours(error):
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error
    return 0


def _train(args: argparse.Namespace) -> None:
    from rio.engine.inference import evaluate_by
    from rio.engine.setup import setup_training
    from rio.trainer import Trainer

    trainer = Trainer(setup_training(config(args), resume=args.resume))
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    for protocol in args.protocol:
        evaluate_by(trainer.cfg, protocol)


def _extract(args: argparse.Namespace) -> None:
    from detectron2.utils import comm

    from rio.engine.feature_extraction import extract
    from rio.engine.setup import setup_inference, start_logging

    start_logging(None)
    store = extract(setup_inference(config(args)), args.weights, args.output)
    if comm.is_main_process():
        print(f"Features: {store.folder} (train on them: rio train ... MODEL.RIO.FEATURES {store.folder})")
