"""That the benchmarks run and compare what they say; not how long anything takes."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.benchmarks import bench_evaluation, bench_waits, gpu, gpu_arms, gpu_correctness
from tests.support import tiny_shapes
from tests.support.pretend_cuda import pretend_cuda


def test_the_evaluations_row_compares_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("RIO_BENCH", str(tmp_path))
    monkeypatch.setattr(bench_evaluation, "PREDICTIONS_AN_IMAGE", 20)
    monkeypatch.setattr(bench_evaluation, "TURNS", {"masks": (1, 1)})
    row = bench_evaluation.row("masks", 0.0)
    assert row["what"] == "evaluation, 20 images x 20 masks: bit-identical"
    assert row["cpu_ratio"] == row["peer_cpu_s"] / row["ours_cpu_s"] and row["peer"] == "lvis"


def test_rows_without_a_peer_or_with_other_numbers(monkeypatch):
    def measured(side, *arguments, cache):
        return {"cpu_s": 20.0, "wall_s": 14.0, "peak_gib": 2.0, "answer": side.__name__}

    monkeypatch.setattr(bench_evaluation.process, "measure", measured)
    monkeypatch.setattr(bench_evaluation, "files", lambda *arguments: ("truth", "results"))
    row = bench_evaluation.row("full", 1.0)
    assert row["peer_cpu_s"] is row["cpu_ratio"] is None and row["met"] and row["ours_cpu_s"] == 20.0
    row = bench_evaluation.row("boxes", 1.0)
    assert row["what"].endswith("NOT THE SAME NUMBERS") and not row["met"]


def test_the_waits_row_counts_what_the_parts_save():
    ours, theirs = (bench_waits.waits("Mask", ours=ours) for ours in (True, False))
    assert ours["bank"] == 2 and theirs["bank"] == theirs["rio"] == 0
    assert sum(ours.values()) <= 40 < 80 < sum(theirs.values())


# The GPU's, in small on a CPU


def test_gpu_benchmark_runs_in_small(tiny_set, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    words = "--device cpu --tiny --rounds 1 --block 1 --warm-up 1 --iterations 2 --skip bank --skip correctness"
    words += " --only fp32 --only tf32"
    bench = [*tiny_shapes.data_options(tiny_set), *tiny_shapes.model_options(), "DATALOADER.NUM_WORKERS", "0"]
    precision = torch.get_float32_matmul_precision()
    arguments = gpu.parser().parse_args([*words.split(), "--out", str(out), "--bench-options", *bench])
    gpu.run(arguments)
    found = json.loads(out.read_text())
    assert [row["setting"] for row in found["speed"]] == ["fp32", "tf32"] and found["left_out"] == [
        "correctness",
        "bank",
    ]
    first, second = found["speed"]
    for row in (first, second):
        assert row["rio_images_s"] == pytest.approx(1e3 * gpu_arms.TINY.images / row["rio_ms"])
        assert row["rio_by_plain"] == pytest.approx(row["rio_ms"] / row["plain_ms"])
        assert row["times_plain_fp32"] == pytest.approx(first["plain_ms"] / row["rio_ms"])
    assert np.isfinite([found["loss"][key][when] for key in ("first", "best") for when in ("begin", "end")]).all()
    parts = found["profile"]["parts"]
    assert set(parts) == {name for name, _, _ in gpu.parts_of(arm("rio", gpu_arms.Setting("fp32")))}
    assert all(part["host_ms"] > 0 for part in parts.values())
    assert torch.get_float32_matmul_precision() == precision
    bench_set = found["bench_set"]
    assert bench_set["images"] == 2 and bench_set["arms"]["plain"] == "fp32"
    assert bench_set["rio: time by plain's"] == pytest.approx(bench_set["plain: images_s"] / bench_set["rio: images_s"])
    assert bench_set["loader_images_s"] > 0
    assert "rio_by_plain" in capsys.readouterr().out
    page = out.with_suffix(".md").read_text()
    assert page.startswith("# CPU, ") and f"| tf32      | {second['plain_images_s']:.3g}" in " ".join(page.split(" "))
    assert gpu.run(arguments) == found and "rio_by_plain" not in capsys.readouterr().out, "measured twice"
    out.write_text(json.dumps(found | {"device": "another GPU"}))
    with pytest.raises(SystemExit, match="measured with another device: another GPU. Fix: another --out"):
        gpu.run(arguments)


@pytest.mark.slow
def test_gpu_benchmark_runs_on_a_pretend_gpu(monkeypatch):
    """The plainest and the fastest setting; of the parts those that compute, time or count steps."""
    monkeypatch.setattr(gpu_correctness, "STEPS", 2)
    words = "--tiny --rounds 1 --block 1 --warm-up 1 --iterations 1 --skip bank --skip profile --skip bench_set"
    settings = ["--only", "fp32", "--only", "+ pinned memory", "--minutes", "60", "--out", ""]
    with pretend_cuda() as report:
        found = gpu.run(gpu.parser().parse_args([*words.split(), *settings]))
    assert [row["setting"] for row in found["speed"]] == ["fp32", "+ pinned memory"] and not report.errors
    assert found["correctness"]["cpu_within"] and found["correctness"]["bank_rows_equal"] == 1
    assert np.isfinite(found["loss"]["first"]["end"]) and found["synchronisations"]["rio"] > 2


def test_gpu_correctness_in_small(monkeypatch):
    monkeypatch.setattr(gpu_correctness, "STEPS", 2)
    size = gpu_arms.TINY
    found = gpu_correctness.correctness("cpu", size, gpu_arms.random_batches(size))
    assert found["cpu_difference"] == 0 and found["cpu_within"] and found["bank_rows_equal"] == 1
    assert 0 < found["amp_float16_difference"] < found["amp_bfloat16_difference"] < 0.5


def test_gpu_profile_takes_both_entries_of_a_name():
    def event(host, device):
        return SimpleNamespace(key="part: box head", cpu_time_total=host, device_time_total=device)

    other = SimpleNamespace(key="aten::mm", cpu_time_total=9.0, device_time_total=9.0)
    for events in ([event(4e3, 0), other, event(0, 6e3)], [event(0, 6e3), event(4e3, 2e3)]):
        assert gpu.part_times(events, steps=2) == {"box head": {"host_ms": 2.0, "device_ms": 3.0}}


def arm(kind, setting):
    cfg = gpu_arms.config(kind, gpu_arms.TINY, "cpu")
    return gpu_arms.Arm(cfg, setting, itertools.cycle(gpu_arms.random_batches(gpu_arms.TINY)))


def test_gpu_settings_do_what_they_say():
    every = gpu_arms.settings()[-1]
    assert [s.name for s in gpu_arms.settings()][:3] == ["fp32", "tf32", "+ AMP"]
    assert all((every.tf32, every.amp, every.channels_last, every.fused, every.pinned))
    one = arm("rio", gpu_arms.Setting("", channels_last=True, fused=True))
    weight = one.model.backbone.bottom_up.stem.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert all(group["fused"] for group in one.optimizer.param_groups)
    plain = arm("plain", gpu_arms.Setting(""))
    assert type(plain.model.roi_heads).__name__ == "StandardROIHeads"
    # The optimiser goes by detectron2's groups: what it trains, and with which decay, stays.
    groups = [
        sorted((group["weight_decay"], p.numel()) for group in each.optimizer.param_groups for p in group["params"])
        for each in (one, arm("rio", gpu_arms.Setting("")))
    ]
    assert groups[0] == groups[1]


def test_gpu_fused_sgd_survives_an_overflow_in_its_first_step():
    one = arm("rio", gpu_arms.Setting("", fused=True))
    group = one.optimizer.param_groups[0]
    parameter = group["params"][0]
    parameter.grad, before = torch.full_like(parameter, torch.inf), parameter.detach().clone()
    one.optimizer.grad_scale, one.optimizer.found_inf = None, torch.ones(())  # what GradScaler sets
    one.optimizer.step()
    buffer = one.optimizer.state[parameter]["momentum_buffer"]
    assert torch.equal(parameter, before) and not buffer.any()
    parameter.grad, one.optimizer.found_inf = torch.ones_like(parameter), torch.zeros(())
    one.optimizer.step()
    torch.testing.assert_close(buffer, 1 + group["weight_decay"] * before)


def test_gpu_loss_is_the_same_for_the_same_arm():
    """Two arms start alike and see alike images; the loss of two settings can be compared."""
    losses = []
    for _ in range(2):
        with gpu_arms.numbers(gpu_arms.Setting("")):
            one = arm("rio", gpu_arms.Setting(""))
            torch.manual_seed(0)
            losses.append([float(one.step()) for _ in range(2)])
    assert losses[0] == losses[1]
    written = one.model.roi_heads.box_predictor.memory_bank.num_written
    assert written.sum() > 0  # there are targets in the batches


def test_gpu_minutes_are_kept(capsys):
    result = gpu.run(gpu.parser().parse_args(["--device", "cpu", "--tiny", "--minutes", "-1", "--out", ""]))
    assert result["left_out"] == ["correctness", "bank", "speed", "loss", "profile", "bench_set"]


def test_gpu_random_batches_are_what_a_loader_gives():
    size = gpu_arms.Size(batches=2)
    batches = gpu_arms.random_batches(size)
    for record in batches[0]:
        height, width = record["image"].shape[1:]
        assert min(height, width) == 800 and record["instances"].image_size == (height, width)
        boxes = record["instances"].gt_boxes.tensor
        assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        masks = record["instances"].gt_masks.get_bounding_boxes().tensor
        torch.testing.assert_close(masks, boxes, atol=1e-2, rtol=0)
    classes = torch.cat([record["instances"].gt_classes for record in batches[0]])
    targets = np.isin(classes, gpu_arms.target_ids(size)).sum()
    assert targets == gpu_arms.TARGETS_A_BATCH and len(gpu_arms.target_ids(size)) == 553
    again = gpu_arms.random_batches(size)
    assert torch.equal(batches[1][3]["image"], again[1][3]["image"])
