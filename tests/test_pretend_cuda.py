"""The pretend GPU finds what a GPU would refuse, names the line, and counts what makes the host wait."""

import re
import types
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

from rio import classifier, memory_bank
from rio.engine import rows, telemetry
from rio.losses import federated
from rio.losses.counts import ClassCounts
from tests.support.bank import K, make
from tests.support.bank import rows as numbered
from tests.support.pretend_cuda import DeviceError, pretend_cuda
from tests.support.pretend_cuda_parts import UnsupportedTorch


@pytest.fixture
def gpu():
    with pretend_cuda() as report:
        yield report


def with_a_mistake(module: types.ModuleType, right: str, wrong: str) -> types.ModuleType:
    """The module with one piece of its source exchanged."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert source.count(right) == 1, f"{module.__name__} has changed: choose another place for this mistake"
    made = types.ModuleType(module.__name__)
    exec(compile(source.replace(right, wrong), module.__file__, "exec"), made.__dict__)
    return made


def a_step(bank: memory_bank.MemoryBank) -> None:
    """Write and sample, with what is logged of it."""
    step = [column.cuda() for column in numbered([1, 2, 3], [1, 6, 4])]
    bank.write(*step, rois_per_image=[2, 1])
    bank.sample(step[3])


def bank_step(module: types.ModuleType) -> None:
    changes = {"replay_absent_classes": 1, "write_max_per_object": 1}
    bank = module.MemoryBank(num_classes=K, class_ids=[1, 4], feature_dim=2, replay_per_class=2, **changes)
    a_step(bank.cuda())


def rows_step(module: types.ModuleType) -> None:
    number = module.image_of_row([2, 1], torch.zeros(3, device="cuda"))
    module.rank_in_group(number, torch.tensor([0, 1, 0]).cuda())


def loss_step(module: types.ModuleType) -> None:
    loss = module.Federated(ClassCounts(K, image_count=[9, 3, 20, 2, 1, 5], num_images=30)).cuda()
    loss(torch.rand(4, loss.columns, device="cuda"), torch.tensor([0, 1, 6, 4]).cuda())


def log_step(module: types.ModuleType) -> None:
    bank, step = make().cuda(), [column.cuda() for column in numbered([1, 2, 3], [1, 6, 4])]
    bank.write(*step)
    groups = module.frequency_groups("rrccff", K).cuda()
    with EventStorage():
        module.log(step[3], K, groups, bank, step[0], bank.sample(step[3]))


def classify(module: types.ModuleType) -> None:
    module.CosineClassifier(2, K + 1).cuda()(torch.rand(3, 2, device="cuda"))


BUFFER = 'self.register_buffer("target_index", target_index, persistent=False)'
MISTAKES = [  # module, what runs it, what is right, what is put in its place
    (
        memory_bank,
        bank_step,
        "(num_targets + 1, dtype=torch.bool, device=device)",
        "(num_targets + 1, dtype=torch.bool)",
    ),
    (memory_bank, bank_step, "(self.replay_per_class, device=device)", "(self.replay_per_class)"),
    (memory_bank, bank_step, "torch.Generator(device=device)", "torch.Generator()"),
    (memory_bank, bank_step, BUFFER, "self.target_index = target_index"),  # model.to() leaves it behind
    (memory_bank, bank_step, "torch.arange(row.numel(), device=row.device)", "torch.arange(row.numel())"),
    (memory_bank, bank_step, "torch.zeros_like(self.num_written)", "torch.zeros(2, dtype=torch.int64)"),
    (rows, rows_step, ".to(like.device, non_blocking=True)", ""),
    (rows, rows_step, "(len(keys[0]), device=keys[0].device)", "(len(keys[0]))"),
    (telemetry, log_step, "torch.arange(3, device=group.device)", "torch.arange(3)"),
    (telemetry, log_step, "bank.feature_dim, device=features.device)", "bank.feature_dim)"),
    (telemetry, log_step, "stack(list(found.values())), list", "stack(list(found.values())).numpy(), list"),
    (federated, loss_step, "place = torch.empty_like(time)", "place = torch.empty(len(time))"),
    (classifier, classify, "norm.clamp_min(tiny)", "norm.cpu().clamp_min(tiny)"),
]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_mistake_is_found_and_its_file_and_line_named(number, gpu):
    module, work, right, wrong = MISTAKES[number]
    work(module)
    assert not gpu.errors
    with pytest.raises((DeviceError, TypeError)) as caught:
        work(with_a_mistake(module, right, wrong))
    assert re.search(rf", at \w+/{Path(module.__file__).name}:\d+ \w+$", str(caught.value))
    assert gpu.errors == [str(caught.value)], "also for whoever catches it"


def test_a_wait_that_was_not_there_is_counted(gpu):
    bank_step(memory_bank)
    before = gpu.waits.copy()
    bank_step(with_a_mistake(memory_bank, "if row.numel():", "if row.sum() >= 0:"))
    (added,) = gpu.waits - before - before
    assert added[:2] == ("_local_scalar_dense", "rio") and re.match(r"rio/memory_bank.py:\d+ write", added[2])


def test_what_waits_and_what_does_not(gpu):
    def waits(work) -> int:
        gpu.waits.clear()
        work()
        return sum(gpu.waits.values())

    x, mask, host = torch.rand(4, 2, device="cuda"), torch.tensor([1, 0, 1, 0]).cuda() > 0, torch.rand(4, 2)
    for once in (
        lambda: x[mask], lambda: mask.nonzero(), lambda: x.sum().item(), lambda: bool(mask.any()), x.cpu, x.tolist,
        lambda: x.to("cpu", torch.float64), host.cuda, lambda: torch.tensor([1.0], device="cuda"),
        lambda: x.copy_(host), torch.cuda.synchronize, lambda: mask.long().unique(),
        lambda: torch.where(mask), lambda: torch.equal(x, x), lambda: x.to("cpu", non_blocking=True),
    ):  # fmt: skip
        assert waits(once) == 1
    for never in (
        lambda: x.masked_fill(mask[:, None], 0.0), lambda: torch.full((3,), 1.0, device="cuda"), lambda: x + 1,
        lambda: host.to("cuda", non_blocking=True), lambda: x[torch.arange(2, device="cuda")], lambda: x[1:3, 0],
        lambda: torch.where(mask, x[:, 0], 0.0), lambda: x.__setitem__(mask, 0.0), lambda: x.sort(0), x.clone,
    ):  # fmt: skip
        assert waits(never) == 0


def test_autocast_gradients_and_generators_are_a_gpus(gpu):
    layer = torch.nn.Linear(3, 2).cuda()
    with torch.autocast("cuda"):
        out = layer(torch.rand(4, 3, device="cuda"))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert layer(torch.rand(4, 3, device="cuda")).dtype == torch.bfloat16
    assert out.dtype == torch.float16 and out.softmax(1).is_cuda
    out.float().sum().backward()
    assert layer.weight.grad.is_cuda and layer.weight.grad.dtype == torch.float32
    state = torch.get_rng_state()
    torch.cuda.manual_seed(3)
    first = torch.rand(3, device="cuda")
    assert torch.equal(torch.get_rng_state(), state), "the CPU's numbers are another stream"
    torch.cuda.manual_seed(3)
    assert torch.equal(first, torch.rand(3, device="cuda"))


def test_nothing_stays_behind():
    names = ("is_available", "device_count", "synchronize", "Event", "manual_seed")
    before = {name: getattr(torch.cuda, name) for name in names}, torch.Generator
    with pretend_cuda():
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
    assert ({name: getattr(torch.cuda, name) for name in names}, torch.Generator) == before
    assert torch.ones(2).device.type == "cpu"


def test_a_torch_without_a_private_name_is_refused(monkeypatch):
    monkeypatch.delattr("torch._C._DisableTorchDispatch")
    says = r"on private names of torch 2.15, found torch .* without: torch._C._DisableTorchDispatch. Fix: run"
    with pytest.raises(UnsupportedTorch, match=says), pretend_cuda():
        raise AssertionError("nothing may run")


def test_a_torch_where_they_mean_something_else_is_refused(monkeypatch):
    monkeypatch.setattr("torch._C._current_autograd_node", lambda: True)  # as if always in backward: no check at all
    with pytest.raises(UnsupportedTorch, match="without: mix. Fix: "), pretend_cuda():
        raise AssertionError("nothing may run")
