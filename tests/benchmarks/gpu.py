"""What a GPU makes of RIO: correctness, speed against plain detectron2, memory, profile, and a fidelity study.

    python -m tests.benchmarks.gpu [--minutes 9]              # again until nothing is left; it goes on
    python -m tests.benchmarks.gpu --device cpu --tiny --out output/tiny    # minutes, and no result: that it runs

It says first what it will do and about how long. It needs a CUDA device (16 GiB should do) and no network; the last
part also the demo's weights (`make install` brings them). R50-FPN Mask R-CNN of configs/lvis_v1 at 800 px trains on
random images of LVIS's sizes: 1,203 classes, a bank on 553. What would not end within the minutes is left for the next
call. gpu.json, and gpu.md, a page with machine, versions and tables, hold what has been measured; a part that fails is
named there, and tried again by the next call.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import detectron2
import torch

from tests.benchmarks import gpu_arms, gpu_parts
from tests.benchmarks.gpu_arms import TINY, Size
from tests.benchmarks.gpu_parts import MINUTES, Task
from tests.support import tiny_shapes


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts, as far as the minutes reach; what has been measured, by this call and earlier ones."""
    task = prepare(arguments)
    parts = {name: getattr(gpu_parts, name) for name in MINUTES if task.cuda or name != "synchronisations"}
    result = task.result
    print(plan(task, parts), flush=True)
    for name, part in parts.items():
        if task.is_done(name):
            continue
        if name in arguments.skip or not task.begin(name):
            result["left_out"].append(name)
            continue
        start = time.monotonic()
        try:
            result[name] = part(task)
        except Exception as error:  # whatever it is, the other parts can be measured
            traceback.print_exc()
            result["failed"][name] = f"{type(error).__name__}: {error}"
        task.free()
        result["seconds"][name] = round(result["seconds"].get(name, 0) + time.monotonic() - start, 1)
        if name not in result["failed"]:
            show(name, result[name])
            result["left_out"] += [] if task.is_done(name) else [name]
        task.save()
    task.save()
    for state in ("left_out", "failed"):
        if result[state]:
            print(f"\n{state.replace('_', ' ')}: {', '.join(result[state])}. The same command goes on.")
    return result


def prepare(arguments: argparse.Namespace) -> Task:
    """What the parts need, with what an earlier call has measured on this machine, with these versions and sizes."""
    out = Path(arguments.out)
    size, options = (TINY if arguments.tiny else Size()), arguments.bench_options
    if arguments.tiny:
        tiny = [*tiny_shapes.data_options(tiny_shapes.draw(out)), *tiny_shapes.model_options(2)]
        options = [*tiny, "DATALOADER.NUM_WORKERS", "0", *options]
    cuda = arguments.device == "cuda"
    every = [s for s in gpu_arms.settings() if cuda or not s.amp]
    chosen = [s for s in every if not arguments.only or s.name in arguments.only]
    shared = {name: getattr(arguments, name) for name in ("device", "tiny", "rounds", "block", "warm_up", "iterations")}
    ends = time.monotonic() + 60 * arguments.minutes
    task = Task(out, size=size, chosen=chosen, bench_options=options, ends=ends, **shared)
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "detectron2": detectron2.__version__}
    now = {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "versions": versions | {"python": platform.python_version()},
        "size": json.loads(json.dumps(asdict(size))),
    }
    earlier = json.loads((out / "gpu.json").read_bytes()) if (out / "gpu.json").is_file() else {}
    if different := [key for key in now if earlier and earlier.get(key) != now[key]]:
        found = f"{out}: measured with another {different[0]}: {earlier.get(different[0])}"
        raise SystemExit(f"{found}. Fix: another --out")
    task.result = {"date": datetime.date.today().isoformat(), "seconds": {}} | earlier
    task.result |= now | {"left_out": [], "failed": {}}
    return task


def plan(task: Task, parts: dict[str, Callable]) -> str:
    """What there is to do, and about how long."""
    result, left = task.result, 0.0
    size = f"{task.size.images} images of {task.size.short_side} px a step"
    lines = [f"{result['device']}; {json.dumps(result['versions'])}; {size}", ""]
    for name, part in parts.items():
        minutes = task.expected(name)
        if name == "speed":
            minutes *= len(task.chosen) - len(result.get("speed", []))
        state = f"about {minutes:.3g} min"
        if task.is_done(name):
            state, minutes = f"done in {result['seconds'].get(name, 0) / 60:.1f} min", 0
        elif begun := result["seconds"].get(name):
            state += f", begun: {begun / 60:.1f} min so far"
        left += minutes
        lines.append(f"  {name:17s}{state:16s} {part.__doc__.splitlines()[0]}")
    now = max(task.ends - time.monotonic(), 0) / 60
    lines += ["", f"About {left:.0f} minutes are left, a guess; this call takes at most {now:.0f}. Results: {task.out}"]
    return "\n".join(lines)


def show(name: str, found: Any) -> None:
    """What a part found, for the terminal."""
    print(f"\n{name}")
    if name == "profile":
        for part, ms in found["parts"].items():
            print(f"  {part:32s} host {ms['host_ms']:8.2f} ms   device {ms['device_ms']:8.2f} ms a step")
        print(found["table"])
    elif name != "speed":  # which shows its rows as they come
        print(json.dumps(found, indent=1))


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser("python -m tests.benchmarks.gpu", description=__doc__, formatter_class=formatter)
    for flag, default, text in (
        ("--device", "cuda", "cuda, or cpu; CUDA_VISIBLE_DEVICES chooses among GPUs"),
        ("--minutes", 9.0, "what would end later is not begun, studies are stopped"),
        ("--rounds", 20, "turns of each arm"),
        ("--block", 4, "steps per turn"),
        ("--warm-up", 16, "steps before timing"),
        ("--iterations", 200, "of the part `loss`"),
        ("--out", "output/gpu", "folder of gpu.json, gpu.md and the studies"),
    ):
        made.add_argument(flag, type=type(default), default=default, help=f"{text} (default: %(default)s)")
    made.add_argument("--tiny", action="store_true", help="a small model on small images: tries the benchmark")
    names = [setting.name for setting in gpu_arms.settings()]
    made.add_argument("--only", action="append", choices=names, help="a setting; repeatable")
    made.add_argument("--skip", action="append", default=[], choices=MINUTES, help="a part; repeatable")
    made.add_argument("--bench-options", nargs="*", default=[], metavar="KEY VALUE", help="over shapes/bench.yaml")
    return made


def main() -> None:
    arguments = parser().parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No CUDA device here. Fix: run it where there is one; --device cpu --tiny tries it.")
    try:
        run(arguments)
    except KeyboardInterrupt:
        raise SystemExit("\nStopped. The same command goes on.") from None


if __name__ == "__main__":
    main()
