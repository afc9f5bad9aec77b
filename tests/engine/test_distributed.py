"""Several processes against one: the bank's content, whole runs, evaluation, ranks that die, other world sizes."""

import json
import os
import re
import shutil
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
from tests.support.steps import differing

# Bank driven by given RoIs ---------------------------------------------------------------------------------

K, TARGETS, WIDTH, STEPS, IMAGES = 8, [1, 2, 5, 6], 3, 7, 4


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
        images.append((features, *boxes, classes))
    return images


KINDS = {
    "float32": {}, "float16": {"storage_dtype": torch.float16}, "bfloat16": {"storage_dtype": torch.bfloat16},
    "few": {"write_max_per_object": 1}, "own": {"sync": False},
}  # fmt: skip


def driven(kind: str, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """The state of a bank that took a rank's share of all steps, as the sampler deals positions r, r + W, ..."""
    sizes = {"num_classes": K, "class_ids": TARGETS, "feature_dim": WIDTH, "slots_per_class": 5, "replay_per_class": 3}
    bank = MemoryBank(**sizes, **({"sync": True} | KINDS[kind]))
    for step in range(STEPS):
        images = global_batch(step)[rank::world]
        columns = (torch.cat(column) for column in zip(*images, strict=True))
        bank.write(*columns, rois_per_image=[len(image[-1]) for image in images])
    return bank.state_dict()


def _drive(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    calls, gather = [], dist.all_gather
    dist.all_gather = lambda *arguments: (calls.append(1), gather(*arguments))[1]
    found = {kind: driven(kind, rank, world) for kind in KINDS}
    # Two collectives a step, one where no rank has a row; none for banks of their own.
    assert len(calls) == (4 * (2 * STEPS - 1) if world > 1 else 0)
    torch.save(found, f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_holds_the_bank_of_one_process(world, tmp_path):
    # Forked, not spawned: nothing is imported again. The bank has no gradients, the only thing a fork loses.
    mp.start_processes(_drive, args=(world, str(tmp_path)), nprocs=world, start_method="fork")
    alone = {kind: driven(kind) for kind in KINDS}
    assert alone["float32"]["num_written"].min() > 5, "the rings should have wrapped"
    assert 0 < alone["few"]["num_written"].sum() < alone["float32"]["num_written"].sum()
    for rank in range(world):
        found = torch.load(tmp_path / f"rank{rank}.pth", weights_only=True)
        assert torch.equal(found["own"]["features"], alone["float32"]["features"]) == (world == 1)
        for kind, state in (alone | {"own": driven("own", rank, world)}).items():
            assert not differing(found[kind], state), (rank, kind)


# Whole runs under torchrun ---------------------------------------------------------------------------------

BANK = "roi_heads.box_predictor.memory_bank."


def train_words(folder: Path, output: Path, *options: object, max_iter: int = 4) -> list[str]:
    common = ["--resume", "SEED", 7, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.CHECKPOINT_PERIOD", 2]
    common += ["DATALOADER.NUM_WORKERS", 0]
    return tiny_shapes.train_words(folder, output, *common, *options, max_iter=max_iter)


def first_half(whole: Path, halves: Path) -> None:
    """The folder of a run that was stopped after two iterations."""
    halves.mkdir()
    for name in ("model_0000001.pth", "config.yaml"):
        shutil.copy(whole / name, halves)
    (halves / "last_checkpoint").write_text("model_0000001.pth")


def torchrun(world: int, program: list[str], *flags: str) -> subprocess.CompletedProcess[str]:
    """In one process without torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *launcher, *flags, *program], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip


def run(world: int, words: list[str]) -> str:
    """Train and return what was printed."""
    done = torchrun(world, ["-m", "rio", *words])
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_several_ranks_evaluate_and_see_the_images_of_one(world, tiny_set, tmp_path):
    run(world, train_words(tiny_set, tmp_path / "several", max_iter=2))
    weights = tmp_path / "several" / "model_final.pth"
    run(1, ["eval", "--weights", str(weights), "--output-dir", str(tmp_path / "one")])
    for name in ("instances_results.json", "evaluation.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "several" / name).read_bytes(), name
    images = [row["image_id"] for row in json.loads((tmp_path / "one" / "instances_results.json").read_text())]
    assert images == sorted(images) and len(set(images)) == 6, "there should be detections in every image"
    assert (tmp_path / "several" / "log.txt.rank1").exists()
    state = load(weights)
    assert state["world_size"] == world and state["banks"] == []
    assert state["model"][BANK + "num_written"].sum() > 0


@pytest.mark.slow
def test_banks_of_their_own_are_saved_restored_and_dealt_out_anew(tiny_set, tmp_path):
    """Two ranks to the end; the same stopped and resumed; resumed by four, by one, and with BANK_SYNC."""
    options = ["MODEL.RIO.BANK_SYNC", False]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert "the method changes with their number" in run(2, train_words(tiny_set, whole, *options))
    state = load(whole / "model_final.pth")
    assert len(state["banks"]) == 1 and set(state["banks"][0]) == {k for k in state["model"] if BANK in k}
    assert not torch.equal(state["banks"][0][BANK + "features"], state["model"][BANK + "features"])

    first_half(whole, halves)
    run(2, train_words(tiny_set, halves, *options))
    again = load(halves / "model_final.pth")
    assert not differing(again["model"], state["model"]) and not differing(again["banks"][0], state["banks"][0])

    # From a finished run no step is taken: what is said, and kept, shows in the log and nothing moves.
    log = run(4, train_words(tiny_set, halves, *options, max_iter=5))
    assert re.search(r"saved by 2 processes, this run has 4.*Rank r takes .* of rank r modulo 2", log)
    banks = [b[BANK + "num_written"] for b in load(halves / "model_final.pth")["banks"]]
    before = [x[BANK + "num_written"] for x in (again["model"], again["banks"][0])]
    model = load(halves / "model_final.pth")["model"][BANK + "num_written"]
    assert all((now >= before[r % 2]).all() for r, now in enumerate([model, *banks]))
    log = run(1, train_words(tiny_set, halves, max_iter=6))
    assert re.search(r"saved by 4 processes, this run has 1.*All ranks take the memory bank of rank 0", log)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["error", "killed"])
def test_a_rank_that_dies_ends_the_job_with_its_error(how, tiny_set, tmp_path):
    program = str(Path(__file__).parents[1] / "support" / "rank_that_dies.py")
    started = time.monotonic()
    words = train_words(tiny_set, tmp_path / "run", max_iter=500)
    done = torchrun(2, [program, str(tmp_path / "died"), "1", "3", how, *words])
    output = done.stdout + done.stderr
    assert done.returncode != 0 and (tmp_path / "died").exists(), output[-4000:]
    assert time.monotonic() - started < 120
    assert ("rank 1 has had enough" if how == "error" else "SIGKILL") in output
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000001.pth"


@pytest.mark.slow
def test_an_elastic_restart_resumes(tiny_set, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run(2, train_words(tiny_set, straight))
    program = str(Path(__file__).parents[1] / "support" / "rank_that_dies.py")
    words = train_words(tiny_set, broken)
    done = torchrun(2, [program, str(tmp_path / "died"), "1", "3", "killed", *words], "--max-restarts", "1")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert (tmp_path / "died").exists() and "2 of 4 iterations are done" in done.stdout + done.stderr
    ours, theirs = (load(folder / "model_final.pth")["model"] for folder in (broken, straight))
    assert not differing(ours, theirs)
