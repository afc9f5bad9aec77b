"""How fast RIO trains on a GPU against plain detectron2, and which settings are worth it.

    python -m tests.benchmarks.gpu [--minutes 9]            # again until nothing is left out; it goes on
    python -m tests.benchmarks.gpu --device cpu --tiny      # seconds, and no result: that the benchmark runs

It needs a CUDA device (16 GiB should do), no weights and no network. R50-FPN Mask R-CNN of configs/lvis_v1 at 800 px
trains on random images of LVIS's sizes: 1,203 classes, a bank on 553. What does not begin within the minutes is left
for the next call; gpu.json and gpu.md, a page with machine, versions and a table, hold what has been measured. How true
training on frozen features is to whole detectors: `rio study configs/studies/length.yaml --minutes 9`, and with
length_features.yaml, in the same manner. The parts:

0. `correctness`: losses and bank against the CPU's over 20 steps, AMP against float32.
1. `bank`: milliseconds and synchronisations of the bank by itself.
2. `speed`: for each setting images/s and peak memory of plain and of RIO, and the median of their paired ratios: the
   two take turns, a few steps each, on the same images.
3. `loss`: after the same iterations on the same images, plain fp32 settings and the best ones.
4. `profile`: where a step of RIO goes under the best settings.
5. `synchronisations`: how often a step makes the host wait.
6. `bench_set`: whole iterations of configs/shapes/bench.yaml (drawn on first use), loader included, for plain, RIO and
   RIO under the best settings; and how many images/s the loader gives.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import gc
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch

from rio.config import load_config
from rio.engine.loader import build_training_loader
from rio.engine.setup import setup_training
from tests.benchmarks import bench_memory_bank, gpu_arms, gpu_table
from tests.benchmarks.gpu_arms import PLAIN, TINY, Arm, Setting, Size, numbers
from tests.benchmarks.gpu_correctness import correctness


@dataclass
class Task:
    """What all parts share."""

    device: str
    size: Size
    rounds: int
    block: int
    warm_up: int
    iterations: int
    batches: list
    bench_options: list[str]
    ends: float = float("inf")  # of time.monotonic; nothing begins after it
    best: Setting | None = None

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def arm(self, kind: str, setting: Setting) -> Arm:
        batches = copy.deepcopy(self.batches)
        if setting.pinned and self.cuda:
            batches = [[d | {"image": d["image"].pin_memory()} for d in batch] for batch in batches]
        return Arm(gpu_arms.config(kind, self.size, self.device), setting, itertools.cycle(batches))

    def turns(self, arms: dict[str, Arm]) -> dict[str, list[float]]:
        """Milliseconds a step of each arm, a block of steps at a time; who is first changes from round to round.

        Until the last kernel has ended; on a CPU of its time.
        """
        times: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(self.rounds):
            for name in list(arms) if number % 2 else list(arms)[::-1]:
                with numbers(arms[name].setting):
                    start = bench_memory_bank.clock(self.device)
                    _steps(arms[name], self.block)
                    times[name].append(1e3 * (bench_memory_bank.clock(self.device) - start) / self.block)
        return times

    def peak(self, work: Callable[[], Any], before: int) -> float | None:
        """GiB allocated at most during `work`, beyond what was before the model was there."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**30 if self.cuda else None

    def free(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def bank(task: Task) -> dict[str, Any]:
    sample, write = bench_memory_bank.bank_alone(task.device, rounds=200 if task.cuda else 3)
    found = {"sample_ms": sample, "write_ms": write}
    if task.cuda:
        found["synchronisations"] = bench_memory_bank.synchronisations(task.device)
    return found


def speed(task: Task, chosen: list[Setting], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` of an earlier call, and those of the settings that it left out."""
    for setting in chosen:
        if setting.name in {row["setting"] for row in rows}:
            continue
        if rows and time.monotonic() > task.ends:
            print(f"{setting.name:18s} left out: the minutes are over")
            continue
        row, arms = asdict(setting), {}
        row["setting"] = row.pop("name")
        for kind in ("plain", "rio"):
            before = torch.cuda.memory_allocated() if task.cuda else 0
            with numbers(setting):
                arms[kind] = arm = task.arm(kind, setting)
                row[f"{kind}_peak_gib"] = task.peak(lambda arm=arm: _steps(arm, task.warm_up), before)
        times = task.turns(arms)
        for kind, found in times.items():
            row[f"{kind}_ms"] = statistics.median(found)
            row[f"{kind}_images_s"] = 1e3 * task.size.images / row[f"{kind}_ms"]
        ratios = [r / p for r, p in zip(times["rio"], times["plain"], strict=True)]
        row["rio_by_plain"] = statistics.median(ratios)
        row["rio_by_plain_quartiles"] = [float(q) for q in np.quantile(ratios, (0.25, 0.75))]
        rows.append(row)
        row["times_plain_fp32"] = rows[0]["plain_ms"] / row["rio_ms"]
        print(json.dumps(row), flush=True)
        del arm
        arms.clear()
        task.free()
    return rows


def fastest(rows: list[dict[str, Any]], chosen: list[Setting]) -> Setting | None:
    """The setting of the fastest RIO, if all have been measured."""
    named = {setting.name: setting for setting in chosen}
    best = min(rows, key=lambda row: row["rio_ms"], default=None)
    return named.get(best["setting"]) if best and len(rows) >= len(chosen) else None


def _steps(arm: Arm, number: int) -> None:
    for _ in range(number):
        arm.step()


def loss(task: Task, first: Setting) -> dict[str, Any]:
    """Mean of the last tenth of the iterations: both see the same images in the same order."""
    found: dict[str, Any] = {"iterations": task.iterations}
    for name, setting in (("first", first), ("best", task.best or first)):
        with numbers(setting):
            arm = task.arm("rio", setting)
            torch.manual_seed(2)  # RoIs are drawn at random: alike, whatever was drawn before
            losses = [arm.step() for _ in range(task.iterations)]
        values = torch.stack(losses).float().cpu().tolist()
        last = max(1, task.iterations // 10)
        begin, end = statistics.mean(values[:last]), statistics.mean(values[-last:])
        found[name] = {"setting": setting.name, "begin": begin, "end": end}
        del arm, losses
        task.free()
    found["best_by_first"] = found["best"]["end"] / found["first"]["end"]
    return found


def profile(task: Task, setting: Setting, steps: int = 3) -> dict[str, Any]:
    """Milliseconds a step of the model's parts (forward) and of the kernels; and PyTorch's own table."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if task.cuda else [])
    with numbers(setting):
        arm = task.arm("rio", setting)
        _steps(arm, task.warm_up)
        for name, owner, method in parts_of(arm):
            setattr(owner, method, _named(name, getattr(owner, method)))
        with torch.profiler.profile(activities=activities) as profiler:
            _steps(arm, steps)
            if task.cuda:
                torch.cuda.synchronize()
    events = profiler.key_averages()
    table = events.table(sort_by="self_device_time_total" if task.cuda else "self_cpu_time_total", row_limit=25)
    del arm
    task.free()
    return {"setting": setting.name, "steps": steps, "parts": part_times(events, steps), "table": table}


def part_times(events: Iterable[Any], steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds a step by part; from torch 2.15 on a name has two entries, of the host and of the device."""
    found: dict[str, dict[str, float]] = {}
    for event in events:
        if event.key.startswith("part: "):
            part = found.setdefault(event.key.removeprefix("part: "), {"host_ms": 0.0, "device_ms": 0.0})
            part["host_ms"] = max(part["host_ms"], event.cpu_time_total / 1e3 / steps)
            device = getattr(event, "device_time_total", None)  # cuda_time_total before torch 2.4
            device = event.cuda_time_total if device is None else device
            part["device_ms"] = max(part["device_ms"], device / 1e3 / steps)
    return found


def parts_of(arm: Arm) -> list[tuple[str, Any, str]]:
    model, heads = arm.model, arm.model.roi_heads
    predictor = heads.box_predictor
    return [  # what to show, owner, method
        ("images to the device, padded", model, "preprocess_image"),
        ("backbone", model.backbone, "forward"),
        ("proposals", model.proposal_generator, "forward"),
        ("matching of proposals", heads, "label_and_sample_proposals"),
        ("box pooler", heads.box_pooler, "forward"),
        ("box head", heads.box_head, "forward"),
        ("classifier and box regression", predictor, "forward"),
        ("box losses, bank included", predictor, "losses"),
        ("bank: sample", predictor.memory_bank, "sample"),
        ("bank: write", predictor.memory_bank, "write"),
        ("mask branch", heads, "_forward_mask"),
        ("optimiser", arm.optimizer, "step"),
    ]


def _named(name: str, function: Callable) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(f"part: {name}"):
            return function(*args, **kwargs)

    return call


def synchronisations(task: Task, setting: Setting) -> dict[str, int]:
    """How often one step of plain and of RIO makes the host wait for the GPU."""
    found = {}
    for kind in ("plain", "rio"):
        with numbers(setting):
            arm = task.arm(kind, setting)
            _steps(arm, task.warm_up)
            found[kind] = bench_memory_bank.waits(arm.step)
        del arm
        task.free()
    return found


def bench_set(task: Task, first: Setting) -> dict[str, Any]:
    """Images/s of whole iterations on the embedded set, loader included, and of the loader by itself.

    The best settings are taken without pinned memory: the loader's images are not pinned.
    """
    best = replace(task.best or first, pinned=False)
    arms: dict[str, tuple[str, Setting]] = {"plain": ("plain", first), "rio": ("rio", first)}
    if best != replace(first, pinned=False):
        arms["rio, best"] = ("rio", replace(best, name=f"{best.name}, not pinned"))
    found: dict[str, Any] = {"arms": {name: setting.name for name, (_, setting) in arms.items()}}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        built: dict[str, Arm] = {}
        for name, (kind, setting) in arms.items():
            options = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", task.device, "SEED", 1]
            options += ["OUTPUT_DIR", str(Path(folder) / name), *(PLAIN if kind == "plain" else ())]
            file = gpu_arms.CONFIGS / "shapes" / "bench.yaml"
            cfg = setup_training(load_config(file, [*options, *task.bench_options]))
            loader = build_training_loader(cfg)
            stack.callback(loader.close)
            found |= {"images": cfg.SOLVER.IMS_PER_BATCH, "loader_workers": cfg.DATALOADER.NUM_WORKERS}
            if name == "plain":
                found["loader_images_s"] = _loader_alone(loader, found["images"], task)
            built[name] = Arm(cfg, setting, loader)
            with numbers(setting):
                _steps(built[name], task.warm_up)
        times = task.turns(built)
    for name, milliseconds in times.items():
        found[f"{name}: images_s"] = 1e3 * found["images"] / statistics.median(milliseconds)
        if name != "plain":
            ratios = [a / b for a, b in zip(milliseconds, times["plain"], strict=True)]
            found[f"{name}: time by plain's"] = statistics.median(ratios)
    return found


def _loader_alone(loader: Iterable[list[dict[str, Any]]], images: int, task: Task) -> float:
    """Images/s of the loader."""
    batches, steps = iter(loader), task.rounds * task.block
    list(itertools.islice(batches, task.warm_up))
    start = time.perf_counter()
    list(itertools.islice(batches, steps))
    seconds = time.perf_counter() - start
    batches.close()
    return images * steps / seconds


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts, as far as the minutes reach; what was measured."""
    begun = time.monotonic()
    size = TINY if arguments.tiny else Size()
    names = ("device", "rounds", "block", "warm_up", "iterations", "bench_options")
    shared = {name: getattr(arguments, name) for name in names}
    task = Task(**shared, size=size, batches=gpu_arms.random_batches(size), ends=begun + 60 * arguments.minutes)
    if task.cuda:
        torch.cuda.set_device(torch.device(arguments.device).index or 0)
    chosen = [s for s in gpu_arms.settings() if not arguments.only or s.name in arguments.only]
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "detectron2": detectron2.__version__}
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if task.cuda else "CPU",
        "date": datetime.date.today().isoformat(),
        "versions": versions | {"python": platform.python_version()},
        "size": asdict(size),
        "left_out": [],
    }
    result = _with_earlier(result, arguments.out)
    print(f"{result['device']}; {json.dumps(result['versions'])}; {size.images} images of {size.short_side} px a step")
    task.best = fastest(result.get("speed", []), chosen)
    parts: dict[str, Callable[[], Any]] = {
        "correctness": lambda: correctness(task.device, size, task.batches),
        "bank": lambda: bank(task),
        "speed": lambda: speed(task, chosen, result.get("speed", [])),
        "loss": lambda: loss(task, chosen[0]),
        "profile": lambda: profile(task, task.best or chosen[-1]),
        "synchronisations": lambda: synchronisations(task, task.best or chosen[-1]),
        "bench_set": lambda: bench_set(task, chosen[0]),
    }
    if not task.cuda:
        del parts["synchronisations"]
    for name, part in parts.items():
        if name in result and (name != "speed" or task.best):
            continue
        if name in arguments.skip or time.monotonic() > task.ends:
            result["left_out"].append(name)
            continue
        result[name] = part()
        _show(name, result[name])
        if name == "speed":
            task.best = fastest(result[name], chosen)
            result["left_out"] += [] if task.best else ["speed, some settings"]
        result["seconds"] = round(time.monotonic() - begun, 1)
        if arguments.out:  # after each part: a call that is cut off has something to show
            Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            Path(arguments.out).with_suffix(".md").write_text(gpu_table.page(result), encoding="utf-8")
    if result["left_out"]:
        print(f"\nleft out: {', '.join(result['left_out'])}")
    return result


def _with_earlier(result: dict[str, Any], out: str | None) -> dict[str, Any]:
    """What an earlier call has measured is kept, if it was on this machine, with these versions and sizes."""
    if not out or not Path(out).is_file():
        return result
    earlier, same = json.loads(Path(out).read_text(encoding="utf-8")), ("device", "versions", "size")
    now = json.loads(json.dumps(result))
    if different := [key for key in same if earlier.get(key) != now[key]]:
        raise SystemExit(
            f"{out}: measured with another {different[0]}: {earlier.get(different[0])}. Fix: another --out"
        )
    return earlier | {"left_out": []}


def _show(name: str, found: Any) -> None:
    print(f"\n{name}")
    if name == "profile":
        for part, ms in found["parts"].items():
            print(f"  {part:32s} host {ms['host_ms']:8.2f} ms   device {ms['device_ms']:8.2f} ms a step")
        print(found["table"])
    elif name != "speed":
        print(json.dumps(found, indent=1))


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser("python -m tests.benchmarks.gpu", description=__doc__, formatter_class=formatter)
    for flag, default, text in (
        ("--device", "cuda", "cuda, cuda:1, cpu"),
        ("--minutes", 9.0, "no part begins after these"),
        ("--rounds", 20, "turns of each arm"),
        ("--block", 4, "steps per turn"),
        ("--warm-up", 16, "steps before timing"),
        ("--iterations", 200, "of the part `loss`"),
    ):
        made.add_argument(flag, type=type(default), default=default, help=f"{text} (default: %(default)s)")
    made.add_argument("--tiny", action="store_true", help="a small model on small images: tries the benchmark")
    names = [setting.name for setting in gpu_arms.settings()]
    made.add_argument("--only", action="append", choices=names, help="a setting; repeatable")
    made.add_argument("--skip", action="append", default=[], metavar="PART", help="repeatable")
    made.add_argument("--bench-options", nargs="*", default=[], metavar="KEY VALUE", help="over shapes/bench.yaml")
    made.add_argument("--out", default="gpu.json", help="JSON file; the page lies beside it (default: %(default)s)")
    return made


def main() -> None:
    arguments = parser().parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("No CUDA device here. Fix: run it where there is one; --device cpu --tiny tries it.")
    run(arguments)


if __name__ == "__main__":
    main()
