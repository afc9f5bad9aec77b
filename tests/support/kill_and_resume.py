"""Kill a training at random moments, resume it, and compare its end with that of an uninterrupted one.

    python -m tests.support.kill_and_resume --points 20

Every kill is SIGKILL to a process of its own, at a random moment: starting, a step, writing a checkpoint, evaluating.
Each resumption loads its images with another number of worker processes. A run that ends before the points are used up
is compared, and another one begins. Compared bit for bit: all of model_final.pth and the detections of the last
evaluation. A second uninterrupted run must agree too.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from torch.utils._pytree import keystr, tree_flatten_with_path

import rio.trainer  # noqa: F401  (before the first fork)
from rio.cli.parser import main as main_of_rio
from tests.support import tiny_shapes

WORKERS = (0, 1, 2, 3)


def differences(a: Any, b: Any) -> list[str]:
    """Where two nested structures of tensors and numbers differ, bit for bit."""
    (ours, shape), (theirs, other) = tree_flatten_with_path(a), tree_flatten_with_path(b)
    if shape != other:
        return ["other keys or lengths"]
    pairs = [(keystr(place), x, y) for (place, x), (_, y) in zip(ours, theirs, strict=True)]
    return [
        place
        for place, x, y in pairs
        if type(x) is not type(y)
        or not (x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y)
    ]


def compare(run: Path, straight: Path) -> list[str]:
    """Differences between the ends of two runs."""
    found, expected = (torch.load(f / "model_final.pth", weights_only=True) for f in (run, straight))
    results = [(f / "instances_results.json").read_bytes() for f in (run, straight)]
    return differences(found, expected) + ([] if results[0] == results[1] else ["instances_results.json"])


class Run:
    """`rio train` in a forked process: torch and detectron2 are imported once for all of them."""

    def __init__(self, folder: Path, data: Path, iterations: int, workers: int):
        options = ["--resume", "SOLVER.CHECKPOINT_PERIOD", 2, "DATALOADER.NUM_WORKERS", workers, "SEED", 7]
        words = tiny_shapes.train_words(data, folder, *options, max_iter=iterations)
        self.folder, self.pid = folder, os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setpgid(0, 0)
                folder.mkdir(parents=True, exist_ok=True)
                output = os.open(folder / "stdout.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                code = main_of_rio(words)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def wait(self, seconds: float = 600.0) -> int | None:
        """The exit code; None where it still runs after that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        return None

    def finish(self) -> None:
        """Wait for its good end."""
        if self.wait() != 0:
            raise RuntimeError((self.folder / "stdout.log").read_text()[-2000:])

    def kill(self) -> str:
        """Kill it; returns what it had on disk."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        done, halves = self.folder / "last_checkpoint", len(list(self.folder.glob(".*.tmp")))
        return f"{done.read_text() if done.exists() else 'no checkpoint yet'}, {halves} half-written files"


def kill_and_resume(root: Path, points: int, iterations: int = 40, seed: int = 1) -> tuple[int, int, int]:
    """Do it in an empty folder, print each event in one line; returns kills, runs compared, runs that differ."""
    chance, data = random.Random(seed), tiny_shapes.draw(root / "data")
    straight, started = root / "straight", time.monotonic()
    Run(straight, data, iterations, 0).finish()
    length = time.monotonic() - started
    Run(root / "again", data, iterations, 2).finish()
    wrong = compare(root / "again", straight)
    print(f"uninterrupted: {iterations} iterations in {length:.1f} s; again: {wrong[:5] or 'the same'}", flush=True)
    if wrong:
        raise RuntimeError(f"the same seed gave another end: {wrong[:5]}")

    killed = runs = different = 0
    while killed < points:
        folder, before, ended = root / f"killed{runs}", killed, False
        while not ended:
            workers = chance.choice(WORKERS)
            run = Run(folder, data, iterations, workers)
            if killed >= points:
                run.finish()
                break
            ended = run.wait(chance.uniform(0.1, 0.6) * length) is not None
            if not ended:
                killed += 1
                print(f"kill {killed}: {workers} workers, {run.kill()}", flush=True)
        wrong = compare(folder, straight)
        print(f"run {runs} ended after {killed - before} kills: {wrong[:5] or 'as the uninterrupted one'}", flush=True)
        shutil.rmtree(folder)
        runs, different = runs + 1, different + bool(wrong)
    return killed, runs, different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20, help="kills to survive (default 20)")
    parser.add_argument("--iterations", type=int, default=40, help="length of the run (default 40)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default 1)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stderr(io.StringIO()):
        killed, runs, different = kill_and_resume(Path(root), args.points, args.iterations, args.seed)
    print(f"{killed} kills survived, {runs} runs compared with the uninterrupted one, {different} different")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
