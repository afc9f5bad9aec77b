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
import tiny_shapes
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rio.memory_bank import MemoryBank

# Bank driven by given RoIs ---------------------------------------------------------------------------------

K, TARGETS, WIDTH, STEPS, IMAGES = 8, [1, 2, 5, 6], 3, 7, 4


def make_bank(dtype: torch.dtype, sync: bool = True) -> MemoryBank:
    return MemoryBank(
        num_classes=K, class_ids=TARGETS, feature_dim=WIDTH, slots_per_class=5, replay_per_class=3,
        storage_dtype=dtype, sync=sync,
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
        images.append((torch.randn(count, WIDTH, generator=generator) * 1e5, *boxes, classes))
    return images


def write(bank: MemoryBank, images: list[tuple[torch.Tensor, ...]]) -> None:
    columns = [torch.cat(column) for column in zip(*images, strict=True)]
    bank.write(*columns, rois_per_image=[len(image[-1]) for image in images])


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
    for rank in range(world):
        found = torch.load(tmp_path / f"rank{rank}.pth", weights_only=True)
        for dtype, state in alone.items():
            for name, value in state.items():
                assert torch.equal(found[str(dtype)][name], value), (rank, dtype, name)
        share = expected_bank(torch.float32, rank, world).state_dict()
        assert all(torch.equal(found["own"][name], value) for name, value in share.items())
        assert torch.equal(found["own"]["features"], alone[torch.float32]["features"]) == (world == 1)


def test_numbers_of_rois_must_fit_the_rows():
    bank = make_bank(torch.float32)
    with pytest.raises(ValueError, match=r"sum to the 3 rows, found \[1, 1\]"):
        bank.write(torch.zeros(3, WIDTH), *torch.zeros(2, 3, 4), torch.ones(3).long(), rois_per_image=[1, 1])
    assert bank.iteration == 0
