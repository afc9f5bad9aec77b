"""Several processes against one: the bank's content, whole runs, evaluation, ranks that die, other world sizes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rio.memory_bank import MemoryBank
from tests.support import tiny_shapes

# Bank driven by given RoIs ---------------------------------------------------------------------------------

K, TARGETS, WIDTH, STEPS, IMAGES = 8, [1, 2, 5, 6], 3, 7, 4


def make_bank(dtype: torch.dtype, sync: bool = True, **variants: object) -> MemoryBank:
    return MemoryBank(
        num_classes=K, class_ids=TARGETS, feature_dim=WIDTH, slots_per_class=5, replay_per_class=3,
        storage_dtype=dtype, sync=sync, **variants,
    )  # fmt: skip


def global_batch(step: int) -> list[tuple[torch.Tensor, ...]]:
    """The RoIs of a step, an entry an image; step 2 has none of a target class, step 4 in its last image only."""
    generator = torch.Generator().manual_seed(step)
    images = []
    for image in range(IMAGES):
        count = int(torch.randint(0, 9, (), generator=generator))  # uneven, none at times
        classes = torch.randint(-1, K + 1, (count,), generator=generator)
        if step == 2 or (step == 4 and image < IMAGES - 1):
            classes[:] = K
        boxes = torch.rand(2, count, 4, generator=generator)
        features = torch.randn(count, WIDTH, generator=generator) * 1e5
        place = torch.randint(0, 2, (count,), generator=generator)  # two objects an image, a box each
        boxes[1] = boxes[1, :2][place] if count > 1 else boxes[1]
        ids = torch.stack([torch.full_like(place, IMAGES * step + image), place], 1)
        images.append((features, *boxes, classes, ids))
    return images


def write(bank: MemoryBank, images: list[tuple[torch.Tensor, ...]]) -> None:
    *columns, ids = (torch.cat(column) for column in zip(*images, strict=True))
    bank.write(*columns, rois_per_image=[len(image[-1]) for image in images], object_ids=ids)


def _drive(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    calls = []
    gather = dist.all_gather
    dist.all_gather = lambda *arguments: (calls.append(1), gather(*arguments))[1]
    found = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        bank = make_bank(dtype)
        for step in range(STEPS):
            write(bank, global_batch(step)[rank::world])  # as the sampler deals positions r, r + W, ...
        found[str(dtype)] = bank.state_dict()
    # Two collectives a step, one where no rank has a row.
    assert len(calls) == (3 * (2 * STEPS - 1) if world > 1 else 0)
    few = make_bank(torch.float32, write_max_per_object=1)
    for step in range(STEPS):
        write(few, global_batch(step)[rank::world])
    found["few"] = few.state_dict()
    own = make_bank(torch.float32, sync=False)
    for step in range(STEPS):
        write(own, global_batch(step)[rank::world])
    found["own"] = own.state_dict()
    torch.save(found, f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


def expected_bank(dtype: torch.dtype, rank: int = 0, world: int = 1) -> MemoryBank:
    bank = make_bank(dtype)
    for step in range(STEPS):
        write(bank, global_batch(step)[rank::world])
    return bank


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_holds_the_bank_of_one_process(world, tmp_path):
    # Forked, not spawned: nothing is imported again. The bank has no gradients, the only thing a fork loses.
    mp.start_processes(_drive, args=(world, str(tmp_path)), nprocs=world, start_method="fork")
    alone = {d: expected_bank(d).state_dict() for d in (torch.float32, torch.float16, torch.bfloat16)}
    assert alone[torch.float32]["num_written"].min() > 5, "the rings should have wrapped"
    few = make_bank(torch.float32, write_max_per_object=1)
    for step in range(STEPS):
        write(few, global_batch(step))
    assert 0 < few.num_written.sum() < alone[torch.float32]["num_written"].sum()
    for rank in range(world):
        found = torch.load(tmp_path / f"rank{rank}.pth", weights_only=True)
        for dtype, state in alone.items():
            for name, value in state.items():
                assert torch.equal(found[str(dtype)][name], value), (rank, dtype, name)
        assert all(torch.equal(found["few"][name], value) for name, value in few.state_dict().items()), rank
        share = expected_bank(torch.float32, rank, world).state_dict()
        assert all(torch.equal(found["own"][name], value) for name, value in share.items())
        assert torch.equal(found["own"]["features"], alone[torch.float32]["features"]) == (world == 1)


def test_numbers_of_rois_must_fit_the_rows():
    bank = make_bank(torch.float32)
    with pytest.raises(ValueError, match=r"sum to the 3 rows, found \[1, 1\]"):
        bank.write(torch.zeros(3, WIDTH), *torch.zeros(2, 3, 4), torch.ones(3).long(), rois_per_image=[1, 1])
    assert bank.iteration == 0


# Whole runs under torchrun ---------------------------------------------------------------------------------

BANK = "roi_heads.box_predictor.memory_bank."


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_shapes.draw(tmp_path_factory.mktemp("shapes"))


def train_words(data: Path, output: Path, *options: object, max_iter: int = 4) -> list[str]:
    return [
        "train", "--config-file", str(tiny_shapes.DEMO_CONFIG), "--output-dir", str(output), "--resume",
        *tiny_shapes.data_flags(data), *tiny_shapes.model_options(max_iter), "SEED", "7",
        "SOLVER.IMS_PER_BATCH", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "DATALOADER.NUM_WORKERS", "0",
        *map(str, options),
    ]  # fmt: skip


def torchrun(world: int, program: list[str], *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*command, *flags, *program], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip


def run(world: int, words: list[str]) -> str:
    """Train and return what was printed."""
    if world == 1:
        path = str(Path(__file__).resolve().parents[2])
        done = subprocess.run(
            [sys.executable, "-m", "rio", *words], capture_output=True, text=True, timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )  # fmt: skip
    else:
        done = torchrun(world, ["-m", "rio", *words])
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_several_ranks_evaluate_and_see_the_images_of_one(world, data, tmp_path):
    run(world, train_words(data, tmp_path / "several", max_iter=2))
    weights = tmp_path / "several" / "model_final.pth"
    run(1, ["eval", "--weights", str(weights), "--output-dir", str(tmp_path / "one")])
    for name in ("instances_results.json", "evaluation.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "several" / name).read_bytes(), name
    assert json.loads((tmp_path / "one" / "instances_results.json").read_text()), "there should be detections"
    state = load(weights)
    assert state["world_size"] == world and state["banks"] == []
    assert state["model"][BANK + "num_written"].sum() > 0


@pytest.mark.slow
def test_banks_of_their_own_are_saved_restored_and_dealt_out_anew(data, tmp_path):
    """Two ranks to the end; the same stopped and resumed; resumed by four, by one, and with BANK_SYNC."""
    options = ["MODEL.RIO.BANK_SYNC", False]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert "the method changes with their number" in run(2, train_words(data, whole, *options))
    state = load(whole / "model_final.pth")
    assert len(state["banks"]) == 1 and set(state["banks"][0]) == {k for k in state["model"] if BANK in k}
    assert not torch.equal(state["banks"][0][BANK + "features"], state["model"][BANK + "features"])

    for path in (whole / "model_0000001.pth", whole / "config.yaml"):
        (halves / path.name).parent.mkdir(exist_ok=True)
        (halves / path.name).write_bytes(path.read_bytes())
    (halves / "last_checkpoint").write_text("model_0000001.pth")
    run(2, train_words(data, halves, *options))
    again = load(halves / "model_final.pth")
    for name, value in state["model"].items():
        assert torch.equal(again["model"][name], value), name
    for name, value in state["banks"][0].items():
        assert torch.equal(again["banks"][0][name], value), name

    # From a finished run no step is taken: what is said, and kept, shows in the log and nothing moves.
    log = run(4, train_words(data, halves, *options, max_iter=5))
    assert re.search(r"saved by 2 processes, this run has 4.*Rank r takes .* of rank r modulo 2", log)
    banks = [b[BANK + "num_written"] for b in load(halves / "model_final.pth")["banks"]]
    before = [x[BANK + "num_written"] for x in (again["model"], again["banks"][0])]
    model = load(halves / "model_final.pth")["model"][BANK + "num_written"]
    assert all((now >= before[r % 2]).all() for r, now in enumerate([model, *banks]))
    log = run(1, train_words(data, halves, max_iter=6))
    assert re.search(r"saved by 4 processes, this run has 1.*All ranks take the memory bank of rank 0", log)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["error", "killed"])
def test_a_rank_that_dies_ends_the_job_with_its_error(how, data, tmp_path):
    program = str(Path(__file__).parents[1] / "support" / "rank_that_dies.py")
    started = time.monotonic()
    words = train_words(data, tmp_path / "run", max_iter=500)
    done = torchrun(2, [program, str(tmp_path / "died"), "1", "3", how, *words])
    output = done.stdout + done.stderr
    assert done.returncode != 0 and (tmp_path / "died").exists(), output[-4000:]
    assert time.monotonic() - started < 120
    assert ("rank 1 has had enough" if how == "error" else "SIGKILL") in output
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000001.pth"


@pytest.mark.slow
def test_an_elastic_restart_resumes(data, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run(2, train_words(data, straight))
    program = str(Path(__file__).parents[1] / "support" / "rank_that_dies.py")
    words = train_words(data, broken)
    done = torchrun(2, [program, str(tmp_path / "died"), "1", "3", "killed", *words], "--max-restarts", "1")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert (tmp_path / "died").exists() and "2 of 4 iterations are done" in done.stdout + done.stderr
    ours, theirs = (load(folder / "model_final.pth")["model"] for folder in (broken, straight))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
