"""The parts of the GPU benchmark: what each of them measures, and what they share."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rio.config import load_config
from rio.data.files import write_atomically
from rio.engine.loader import build_training_loader
from rio.engine.setup import setup_training
from tests.benchmarks import bench_memory_bank, gpu_arms, gpu_correctness, gpu_fidelity, gpu_table
from tests.benchmarks.gpu_arms import PLAIN, Arm, Setting, Size, numbers

MINUTES = {  # guesses for an H100 and 16 cores; of speed a setting's
    "correctness": 4, "bank": 0.5, "speed": 1, "loss": 2, "profile": 1, "synchronisations": 1, "bench_set": 4,
    "fidelity": 90,
}  # fmt: skip


@dataclass
class Task:
    """What all parts share, and what they have found."""

    out: Path
    device: str
    size: Size
    tiny: bool
    chosen: list[Setting]
    rounds: int
    block: int
    warm_up: int
    iterations: int
    bench_options: list[str]
    ends: float  # of time.monotonic; nothing begins that would not end before it
    result: dict[str, Any] = field(default_factory=dict)
    begun: bool = False  # something, in this call

    def __post_init__(self) -> None:
        self.batches = gpu_arms.random_batches(self.size)

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def best(self) -> Setting | None:
        """The setting of the fastest RIO, if all have been measured."""
        rows = {row["setting"]: row["rio_ms"] for row in self.result.get("speed", [])}
        return (
            min(self.chosen, key=lambda one: rows[one.name]) if {s.name for s in self.chosen} <= rows.keys() else None
        )

    def is_done(self, name: str) -> bool:
        """Whether nothing of a part is left."""
        found = self.result.get(name)
        return self.best is not None if name == "speed" else found is not None and found.get("done", True)

    def expected(self, name: str) -> float:
        """Minutes of a part, of speed a setting's; a guess, the studies' until the bench set's pace is known."""
        pace = self.result.get("bench_set", {}).get("rio, fewer waits: images_s")
        if name == "fidelity" and pace:
            return gpu_fidelity.images(self.out, self.bench_options) / pace / 60
        return 0.0 if self.tiny else MINUTES[name]

    def begin(self, name: str) -> bool:
        """Whether there is time for a part, of speed for a setting; a call does something, however short it is."""
        minutes = 1.0 if name == "fidelity" else self.expected(name)  # studies stop in time by themselves
        first, self.begun = not self.begun, True
        return time.monotonic() + (0.0 if first else 60 * minutes) < self.ends

    def save(self) -> None:
        """After whatever was measured: a call that is cut off has lost only what it was at."""
        write_atomically(self.out / "gpu.json", json.dumps(self.result, indent=1).encode())
        write_atomically(self.out / "gpu.md", gpu_table.page(self.result).encode())

    def arm(self, kind: str, setting: Setting) -> Arm:
        batches = copy.deepcopy(self.batches)
        if setting.pinned and self.cuda:
            batches = [[d | {"image": d["image"].pin_memory()} for d in batch] for batch in batches]
        return Arm(gpu_arms.config(kind, self.size, self.device), setting, itertools.cycle(batches))

    def turns(self, arms: dict[str, Arm], settings: dict[str, Setting]) -> dict[str, list[float]]:
        """Milliseconds a step of each arm, a block of steps at a time; who is first changes from round to round.

        Until the last kernel has ended; on a CPU of its time.
        """
        times: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(self.rounds):
            for name in list(arms) if number % 2 else list(arms)[::-1]:
                with numbers(settings[name]):
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


def correctness(task: Task) -> dict[str, Any]:
    """Losses and bank against the CPU's over 20 steps, AMP against float32, a resumed run against a straight one."""
    found = gpu_correctness.correctness(task.device, task.size, task.batches)
    with tempfile.TemporaryDirectory() as folder:
        return found | gpu_correctness.resume(task.device, Path(folder))


def bank(task: Task) -> dict[str, Any]:
    """Milliseconds and synchronisations of the bank by itself."""
    sample, write = bench_memory_bank.bank_alone(task.device, rounds=200 if task.cuda and not task.tiny else 3)
    found = {"sample_ms": sample, "write_ms": write}
    if task.cuda:
        found["synchronisations"] = bench_memory_bank.synchronisations(task.device)
    return found


def speed(task: Task) -> list[dict[str, Any]]:
    """Images/s and memory of plain and RIO by setting: they take turns, a few steps each, on the same images."""
    rows: list[dict[str, Any]] = task.result.setdefault("speed", [])
    measured = {row["setting"] for row in rows}
    for number, setting in enumerate(one for one in task.chosen if one.name not in measured):
        if number and not task.begin("speed"):
            break
        row, arms = asdict(setting), {}
        row["setting"] = row.pop("name")
        for kind in ("plain", "rio"):
            before = torch.cuda.memory_allocated() if task.cuda else 0
            with numbers(setting):
                arms[kind] = arm = task.arm(kind, setting)
                row[f"{kind}_peak_gib"] = task.peak(lambda arm=arm: _steps(arm, task.warm_up), before)
        times = task.turns(arms, dict.fromkeys(arms, setting))
        for kind, found in times.items():
            row[f"{kind}_ms"] = statistics.median(found)
            row[f"{kind}_images_s"] = 1e3 * task.size.images / row[f"{kind}_ms"]
        ratios = [r / p for r, p in zip(times["rio"], times["plain"], strict=True)]
        row["rio_by_plain"] = statistics.median(ratios)
        row["rio_by_plain_quartiles"] = [float(q) for q in np.quantile(ratios, (0.25, 0.75))]
        rows.append(row)
        row["times_plain_fp32"] = rows[0]["plain_ms"] / row["rio_ms"]
        task.save()
        print(json.dumps(row), flush=True)
        del arm
        arms.clear()
        task.free()
    return rows


def _steps(arm: Arm, number: int) -> None:
    for _ in range(number):
        arm.step()


def loss(task: Task) -> dict[str, Any]:
    """Loss after the same iterations on the same images, plain fp32 settings and the best ones."""
    found: dict[str, Any] = {"iterations": task.iterations}
    for name, setting in (("first", task.chosen[0]), ("best", task.best or task.chosen[-1])):
        with numbers(setting):
            arm = task.arm("rio", setting)
            torch.manual_seed(2)  # RoIs are drawn at random: alike, whatever was drawn before
            values = [arm.step() for _ in range(task.iterations)]
        last = max(1, task.iterations // 10)
        begin, end = statistics.mean(values[:last]), statistics.mean(values[-last:])
        found[name] = {"setting": setting.name, "begin": begin, "end": end}
        del arm
        task.free()
    found["best_by_first"] = found["best"]["end"] / found["first"]["end"]
    return found


def profile(task: Task) -> dict[str, Any]:
    """Where a step of RIO goes under the best setting: milliseconds of the model's parts (forward), PyTorch's table."""
    setting, steps = task.best or task.chosen[-1], 1 if task.tiny else 3
    with numbers(setting):
        arm = task.arm("rio", setting)
        _steps(arm, task.warm_up)
        for name, owner, method in parts_of(arm):
            setattr(owner, method, _named(name, getattr(owner, method)))
        with torch.profiler.profile(activities=torch.profiler.supported_activities()) as profiler:
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


def synchronisations(task: Task) -> dict[str, int]:
    """How often a step of plain and of RIO makes the host wait for the GPU, under the best setting."""
    found, setting = {}, task.best or task.chosen[-1]
    for kind in ("plain", "rio"):
        with numbers(setting):
            arm = task.arm(kind, setting)
            _steps(arm, task.warm_up)
            found[kind] = bench_memory_bank.waits(arm.step)
        del arm
        task.free()
    return found


def bench_set(task: Task) -> dict[str, Any]:
    """Images/s of whole iterations on the embedded bench set, drawn on first use, loader included, and of the loader.

    The best setting is taken without pinned memory: the loader's images are not pinned.
    """
    first, best = task.chosen[0], task.best or task.chosen[-1]
    settings = {"plain": first, "rio": first, "rio, fewer waits": replace(first, name="fewer waits", quiet=True)}
    settings["rio, best"] = replace(best, pinned=False)
    found: dict[str, Any] = {"arms": {name: setting.name for name, setting in settings.items()}}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        built: dict[str, Arm] = {}
        for name, setting in settings.items():
            options = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", task.device, "SEED", 1]
            options += ["OUTPUT_DIR", str(Path(folder) / name), *(PLAIN if name == "plain" else ())]
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
        times = task.turns(built, settings)
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


def fidelity(task: Task) -> dict[str, Any]:
    """Eight arms fully trained on the bench set, whole detectors against classifiers on frozen features."""
    return gpu_fidelity.fidelity(task.out, task.ends, task.bench_options, small=task.tiny)
