"""How fast RIO trains on a GPU against plain detectron2, and which settings are worth it.

    python -m tests.benchmarks.gpu [--minutes 9] [--out gpu.json]
    python -m tests.benchmarks.gpu --device cpu --tiny      # seconds, and no result: that the benchmark runs

It needs a CUDA device (16 GiB should do), no weights and no network. R50-FPN Mask R-CNN of configs/lvis_v1 at 800 px
trains on random images of LVIS's sizes: 1,203 classes, a bank on 553. What does not begin within the minutes is left
out, and reported. The parts:

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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

import rio.engine.backbone
import rio.roi_heads  # noqa: F401  (both register modules)
from rio.config import load_config
from rio.engine.loader import build_training_loader
from rio.engine.setup import setup_training
from tests.benchmarks import bench_memory_bank

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CONFIG = CONFIGS / "lvis_v1" / "rio_r50.yaml"
PLAIN = (
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    *("MODEL.RIO.BANK_ENABLED", False, "MODEL.RIO.CLASSIFIER", "linear"),
)
OBJECTS_AN_IMAGE, TARGETS_A_BATCH = 12, 3  # LVIS: 12.7; the targets are rare, also under repeat factors
SIZES = ((480, 640), (427, 640), (640, 480), (640, 640))  # most of LVIS, before resizing


@dataclass(frozen=True)
class Setting:
    """How a step is run; the same for plain and RIO."""

    name: str
    tf32: bool = False  # matrix products of the heads too; convolutions have it from PyTorch
    amp: bool = False
    channels_last: bool = False
    fused: bool = False  # SGD in one kernel
    pinned: bool = False  # images are copied while the GPU computes


def settings() -> list[Setting]:
    """Each with one thing more than the one before."""
    found = [Setting("fp32")]
    more = {"tf32": "tf32", "+ AMP": "amp", "+ channels_last": "channels_last", "+ fused SGD": "fused"}
    for name, key in (more | {"+ pinned memory": "pinned"}).items():
        found.append(replace(found[-1], name=name, **{key: True}))
    return found


@dataclass(frozen=True)
class Size:
    """What is measured on: the real thing, or something that a CPU does in a second."""

    short_side: int = 800
    images: int = 4
    batches: int = 8
    classes: int = 1203
    targets: int = 553
    options: tuple = ()


TINY = Size(
    short_side=64,
    images=2,
    batches=2,
    classes=12,
    targets=5,
    options=(
        *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16),
        *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
        *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.ROI_MASK_HEAD.NUM_CONV", 1),
    ),
)


def config(kind: str, size: Size, device: str) -> CfgNode:
    """The config of "plain" (detectron2's own heads and classifier) or "rio"."""
    options = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device, "SEED", 1, "MODEL.ROI_HEADS.NUM_CLASSES", size.classes]
    options += ["MODEL.RIO.BANK_CLASS_IDS", target_ids(size)]
    return load_config(CONFIG, [*options, *(PLAIN if kind == "plain" else ()), *size.options])


def target_ids(size: Size) -> list[int]:
    return list(range(0, 2 * size.targets, 2))


def random_batches(size: Size, seed: int = 0) -> list[list[dict[str, Any]]]:
    """What detectron2's loader would give: uint8 images, boxes, classes, polygons; on the CPU."""
    rng = np.random.default_rng(seed)
    targets = target_ids(size)
    others = np.setdiff1d(np.arange(size.classes), targets)
    batches = []
    for _ in range(size.batches):
        classes = rng.choice(others, (size.images, OBJECTS_AN_IMAGE))
        rows = rng.choice(classes.size, TARGETS_A_BATCH, replace=False)
        classes.reshape(-1)[rows] = rng.choice(targets, TARGETS_A_BATCH)
        batches.append([_random_image(rng, size, own) for own in classes])
    return batches


def _random_image(rng: np.random.Generator, size: Size, classes: np.ndarray) -> dict[str, Any]:
    height, width = SIZES[int(rng.integers(len(SIZES)))]
    scale = size.short_side / min(height, width)
    height, width = round(height * scale), round(width * scale)
    extent = np.exp(rng.normal(np.log(0.12), 0.8, (len(classes), 2))).clip(0.03, 0.9) * (width, height)
    corner = rng.uniform(0, 1, (len(classes), 2)) * ((width, height) - extent)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1) / 2 + 0.5
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(np.concatenate([corner, corner + extent], 1), dtype=torch.float32))
    instances.gt_classes = torch.tensor(classes)
    instances.gt_masks = PolygonMasks([[(c + circle * e).ravel()] for c, e in zip(corner, extent, strict=True)])
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    return {"image": image, "instances": instances, "height": height, "width": width}


class Arm:
    """A model and its optimiser under a setting; `step` trains it on one batch.

    Args:
        cfg: what to build.
        setting: how a step is run.
        batches: what a loader gives, without end.
    """

    def __init__(self, cfg: CfgNode, setting: Setting, batches: Iterable[list[dict[str, Any]]]) -> None:
        self.setting, self.device = setting, torch.device(cfg.MODEL.DEVICE)
        torch.manual_seed(1)
        self.model = build_model(cfg).train()
        batches = iter(batches)
        first = next(batches)
        self.batches = itertools.chain([first], batches)
        self._normalise(first)
        if setting.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(cfg, self.model)
        if setting.fused:
            keys = ("params", "lr", "weight_decay", "momentum", "nesterov", "dampening")
            groups = [{key: group[key] for key in keys} for group in self.optimizer.param_groups]
            self.optimizer = torch.optim.SGD(groups, lr=cfg.SOLVER.BASE_LR, fused=True)
        # SOLVER.AMP.ENABLED: float16, with the gradients scaled; a CPU has bfloat16, which needs no scaling.
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        scaled = setting.amp and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda", enabled=scaled) if scaled else None
        # The configs' rate is for their batch; warmed up, as training begins.
        share = len(first) / cfg.SOLVER.IMS_PER_BATCH
        self.rates = [group["lr"] * share for group in self.optimizer.param_groups]
        self.steps = 0

    @torch.no_grad()
    def _normalise(self, batch: list[dict[str, Any]]) -> None:
        """Frozen norms take the first batch's statistics: with 0 and 1 random weights overflow."""

        def take(norm: FrozenBatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
            norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
            norm.running_var.copy_(inputs[0].var((0, 2, 3), unbiased=False) + 1e-5)

        norms = [m for m in self.model.modules() if isinstance(m, FrozenBatchNorm2d)]
        handles = [norm.register_forward_pre_hook(take) for norm in norms]
        self.model.backbone(self.model.preprocess_image(batch).tensor)
        for handle in handles:
            handle.remove()

    def step(self) -> torch.Tensor:
        """One iteration on the next batch; returns the loss, not waited for."""
        batch = next(self.batches)
        warm = min(1.0, (self.steps + 1) / 100)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * warm
        self.steps += 1
        if self.setting.pinned:
            batch = [d | {"image": d["image"].to(self.device, non_blocking=True)} for d in batch]
        with torch.autocast(self.device.type, self.dtype, enabled=self.setting.amp):
            loss = sum(self.model(batch).values())
        self.optimizer.zero_grad()
        if self.scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return loss.detach()


@contextlib.contextmanager
def numbers(setting: Setting) -> Iterator[None]:
    """float32 products in TF32 or not, for as long as the setting is measured."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if setting.tf32 else "highest")
    try:
        with EventStorage():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


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
        return Arm(config(kind, self.size, self.device), setting, itertools.cycle(batches))

    def milliseconds(self, work: Callable[[], Any]) -> float:
        """Until the last kernel has ended; on a CPU of its time."""
        start = bench_memory_bank.clock(self.device)
        work()
        return 1e3 * (bench_memory_bank.clock(self.device) - start)

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


def speed(task: Task, chosen: list[Setting]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for setting in chosen:
        if rows and time.monotonic() > task.ends:
            print(f"{setting.name:18s} left out: the minutes are over")
            continue
        row: dict[str, Any] = {"setting": setting.name, **{k: v for k, v in asdict(setting).items() if k != "name"}}
        with numbers(setting):
            arms = {}
            for kind in ("plain", "rio"):
                before = torch.cuda.memory_allocated() if task.cuda else 0
                arms[kind] = arm = task.arm(kind, setting)
                row[f"{kind}_peak_gib"] = task.peak(lambda arm=arm: _steps(arm, task.warm_up), before)
            times = {kind: [] for kind in arms}
            for number in range(task.rounds):
                for kind in ("plain", "rio") if number % 2 else ("rio", "plain"):
                    ms = task.milliseconds(lambda arm=arms[kind]: _steps(arm, task.block))
                    times[kind].append(ms / task.block)
        for kind, found in times.items():
            row[f"{kind}_ms"] = statistics.median(found)
            row[f"{kind}_images_s"] = 1e3 * task.size.images / row[f"{kind}_ms"]
        ratios = [r / p for r, p in zip(times["rio"], times["plain"], strict=True)]
        row["rio_by_plain"] = statistics.median(ratios)
        row["rio_by_plain_quartiles"] = [float(q) for q in np.quantile(ratios, (0.25, 0.75))]
        rows.append(row)
        row["times_plain_fp32"] = rows[0]["plain_ms"] / row["rio_ms"]
        print(json.dumps(row), flush=True)
        arms.clear()
        task.free()
    fastest = min(rows, key=lambda row: row["rio_ms"])["setting"]
    task.best = next(setting for setting in chosen if setting.name == fastest)
    return rows


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
        found[name] = {
            "setting": setting.name,
            "begin": statistics.mean(values[:last]),
            "end": statistics.mean(values[-last:]),
        }
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
    return [
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
            cfg = setup_training(load_config(CONFIGS / "shapes" / "bench.yaml", [*options, *task.bench_options]))
            loader = build_training_loader(cfg)
            stack.callback(loader.close)
            found |= {"images": cfg.SOLVER.IMS_PER_BATCH, "loader_workers": cfg.DATALOADER.NUM_WORKERS}
            if name == "plain":
                found["loader_images_s"] = _loader_alone(loader, found["images"], task)
            built[name] = Arm(cfg, setting, loader)
            with numbers(setting):
                _steps(built[name], task.warm_up)
        times: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(task.rounds):
            order = list(arms)
            for name in order if number % 2 else order[::-1]:
                with numbers(arms[name][1]):
                    ms = task.milliseconds(lambda name=name: _steps(built[name], task.block))
                times[name].append(ms / task.block)
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
    shared = {name: getattr(arguments, name) for name in ("device", "rounds", "block", "warm_up", "iterations")}
    task = Task(
        **shared,
        size=size,
        batches=random_batches(size),
        bench_options=arguments.bench_options,
        ends=begun + 60 * arguments.minutes,
    )
    if task.cuda:
        torch.cuda.set_device(torch.device(arguments.device).index or 0)
    chosen = [s for s in settings() if not arguments.only or s.name in arguments.only]
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "detectron2": detectron2.__version__}
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if task.cuda else "CPU",
        "date": datetime.date.today().isoformat(),
        "versions": versions | {"python": platform.python_version()},
        "size": asdict(size),
        "left_out": [],
    }
    print(f"{result['device']}; {json.dumps(result['versions'])}; {size.images} images of {size.short_side} px a step")
    parts: dict[str, Callable[[], Any]] = {
        "bank": lambda: bank(task),
        "speed": lambda: speed(task, chosen),
        "loss": lambda: loss(task, chosen[0]),
        "profile": lambda: profile(task, task.best or chosen[-1]),
        "synchronisations": lambda: synchronisations(task, task.best or chosen[-1]),
        "bench_set": lambda: bench_set(task, chosen[0]),
    }
    if not task.cuda:
        del parts["synchronisations"]
    for name, part in parts.items():
        if name in arguments.skip or time.monotonic() > task.ends:
            result["left_out"].append(name)
            continue
        result[name] = part()
        _show(name, result[name])
        result["seconds"] = round(time.monotonic() - begun, 1)
        if arguments.out:  # after each part: a call that is cut off has something to show
            Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if result["left_out"]:
        print(f"\nleft out: {', '.join(result['left_out'])}")
    return result


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
    made.add_argument("--only", action="append", choices=[s.name for s in settings()], help="a setting; repeatable")
    made.add_argument("--skip", action="append", default=[], metavar="PART", help="repeatable")
    made.add_argument("--bench-options", nargs="*", default=[], metavar="KEY VALUE", help="over shapes/bench.yaml")
    made.add_argument("--out", help="JSON file")
    return made


def main() -> None:
    arguments = parser().parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            "No CUDA device here. Fix: run it where there is one; --device cpu --tiny tries the benchmark."
        )
    run(arguments)


if __name__ == "__main__":
    main()
