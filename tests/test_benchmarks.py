"""That the benchmarks run and compare what they say; not how long anything takes."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.benchmarks import (
    bench_evaluation,
    bench_waits,
    ccp_splits,
    gpu,
    gpu_arms,
    gpu_correctness,
    gpu_fidelity,
    gpu_parts,
)
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


SMALL = "--tiny --rounds 1 --block 1 --warm-up 1 --iterations 2"


def words(more: str, *settings: str, out) -> list[str]:
    return [*SMALL.split(), *more.split(), *(word for one in settings for word in ("--only", one)), "--out", str(out)]


def test_gpu_benchmark_runs_in_small_and_goes_on(tmp_path, capsys):
    precision = torch.get_float32_matmul_precision()
    skip = "--device cpu --skip bank --skip correctness --skip fidelity"
    arguments = gpu.parser().parse_args(words(skip, "fp32", "+ fewer waits", out=tmp_path))
    gpu.run(arguments)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not found["failed"] and found["left_out"] == ["correctness", "bank", "fidelity"]
    first, second = found["speed"]
    assert (first["setting"], first["quiet"], second["quiet"]) == ("fp32", False, True)
    for row in (first, second):
        assert row["rio_images_s"] == pytest.approx(1e3 * gpu_arms.TINY.images / row["rio_ms"])
        assert row["rio_by_plain"] == pytest.approx(row["rio_ms"] / row["plain_ms"])
        assert row["times_plain_fp32"] == pytest.approx(first["plain_ms"] / row["rio_ms"])
    assert np.isfinite([found["loss"][key][when] for key in ("first", "best") for when in ("begin", "end")]).all()
    parts = found["profile"]["parts"]
    assert set(parts) == {name for name, _, _ in gpu_parts.parts_of(arm("rio", gpu_arms.Setting("fp32")))}
    assert all(part["host_ms"] > 0 for part in parts.values())
    assert torch.get_float32_matmul_precision() == precision
    bench_set = found["bench_set"]
    assert bench_set["images"] == 2 and bench_set["arms"]["plain"] == "fp32"
    assert bench_set["rio: time by plain's"] == pytest.approx(bench_set["plain: images_s"] / bench_set["rio: images_s"])
    assert bench_set["loader_images_s"] > 0 and bench_set["rio, fewer waits: images_s"] > 0
    shown = capsys.readouterr().out
    assert shown.index("About ") < shown.index("rio_by_plain"), "what it will do comes first"
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("# CPU, ") and f"| + fewer waits | {second['plain_images_s']:.3g}" in page
    assert gpu.run(arguments) == found
    shown = capsys.readouterr().out
    assert "rio_by_plain" not in shown and shown.count("done in") == 4, "measured twice"
    (tmp_path / "gpu.json").write_text(json.dumps(found | {"device": "another GPU"}))
    with pytest.raises(SystemExit, match="measured with another device: another GPU. Fix: another --out"):
        gpu.run(arguments)


def test_gpu_benchmark_keeps_what_it_has_when_it_is_stopped_and_when_a_part_fails(tmp_path, monkeypatch):
    """Ctrl-C in the second setting, then a part that fails: the next call does what is left, and no more."""
    steps, timed = [], gpu_parts.Task.turns

    def stopped(task, arms, settings):
        steps.append(len(arms))
        if len(steps) == 2:
            raise KeyboardInterrupt
        return timed(task, arms, settings)

    def fails(task):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(gpu_parts.Task, "turns", stopped)
    monkeypatch.setattr(gpu_parts, "loss", fails)
    monkeypatch.setattr(gpu_parts, "profile", lambda task: {"setting": "fp32", "parts": {}, "table": ""})
    skip = "--device cpu --skip bank --skip correctness --skip bench_set --skip fidelity"
    arguments = gpu.parser().parse_args(words(skip, "fp32", "+ TF32", out=tmp_path))
    fails.__doc__ = gpu_parts.profile.__doc__ = "a part"
    with pytest.raises(KeyboardInterrupt):
        gpu.run(arguments)
    assert [row["setting"] for row in json.loads((tmp_path / "gpu.json").read_text())["speed"]] == ["fp32"]
    found = gpu.run(arguments)
    assert len(steps) == 3 and [row["setting"] for row in found["speed"]] == ["fp32", "+ TF32"]
    assert found["failed"] == {"loss": "RuntimeError: out of\nmemory"} and "profile" in found
    assert "loss failed: RuntimeError: out of memory" in (tmp_path / "gpu.md").read_text()
    monkeypatch.setattr(gpu_parts, "loss", gpu_parts.profile)
    assert not gpu.run(arguments)["failed"] and len(steps) == 3


@pytest.mark.slow
def test_gpu_benchmark_runs_on_a_pretend_gpu(monkeypatch, tmp_path, repository):
    """All parts; the studies' trainings, processes of their own, have a pretend GPU too."""
    monkeypatch.setattr(gpu_correctness, "STEPS", 2)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'rio' in sys.orig_argv:\n"
        "    from tests.support.pretend_cuda import pretend_cuda\n"
        "    gpu = pretend_cuda()\n"
        "    gpu.__enter__()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{repository}")
    arguments = gpu.parser().parse_args(words("--minutes 60", "fp32", "+ pinned memory", out=tmp_path))
    with pretend_cuda() as report:
        found = gpu.run(arguments)
    assert not found["failed"] and not found["left_out"] and not report.errors
    assert [row["setting"] for row in found["speed"]] == ["fp32", "+ pinned memory"]
    right = found["correctness"]
    assert right["cpu_within"] and right["bank_rows_equal"] == 1 and right["bank_equal"]
    assert right["resumed_difference"] == right["repeated_difference"] == 0
    assert all(0 < right[f"amp_{half}_difference"] < 0.5 for half in ("float16", "bfloat16"))
    assert np.isfinite(found["loss"]["first"]["end"]) and found["synchronisations"]["rio"] > 2
    whole, features = found["fidelity"]["ap"].values()
    assert list(whole) == list(features) == ["none_linear", "rfs_bank_cosine"]
    log = (tmp_path / "bench_features" / "rfs_bank_cosine-seed1" / "log.txt").read_text()
    assert "on cuda" in log
    assert "Kendall's tau" in (tmp_path / "gpu.md").read_text()


def test_gpu_studies_are_the_eight_arms_both_ways(tmp_path):
    whole, features = gpu_fidelity.studies(tmp_path).values()
    assert len(whole.arms) == 8 and list(whole.arms) == list(features.arms) and whole.seeds == (1,)
    assert len(features.seeds) == len(features.features) == 3
    made = {str(tmp_path / "bench" / f"{arm}-seed1" / "model_final.pth") for arm in whole.arms}
    assert set(features.features) <= made
    for arm, options in features.arms.items():  # the same but for the learning rate
        assert [word for word in options if word not in ("SOLVER.BASE_LR", "0.03")] == whole.arms[arm]
    assert gpu_fidelity.images(tmp_path, []) == 8 * 9000 * 16


def test_gpu_profile_takes_both_entries_of_a_name():
    def event(host, device):
        return SimpleNamespace(key="part: box head", cpu_time_total=host, device_time_total=device)

    other = SimpleNamespace(key="aten::mm", cpu_time_total=9.0, device_time_total=9.0)
    for events in ([event(4e3, 0), other, event(0, 6e3)], [event(0, 6e3), event(4e3, 2e3)]):
        assert gpu_parts.part_times(events, steps=2) == {"box head": {"host_ms": 2.0, "device_ms": 3.0}}


def arm(kind, setting):
    cfg = gpu_arms.config(kind, gpu_arms.TINY, "cpu")
    return gpu_arms.Arm(cfg, setting, itertools.cycle(gpu_arms.random_batches(gpu_arms.TINY)))


def test_gpu_settings_do_what_they_say():
    every = gpu_arms.settings()[-1]
    names = [s.name for s in gpu_arms.settings()]
    assert names[:3] == ["fp32", "+ fewer waits", "+ TF32"] and names[-1] == "all but fewer waits"
    assert all((every.tf32, every.amp, every.channels_last, every.fused, every.pinned)) and not every.quiet
    assert gpu_arms.settings()[-2].quiet
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
            losses.append([one.step() for _ in range(2)])
    assert losses[0] == losses[1]
    written = one.model.roi_heads.box_predictor.memory_bank.num_written
    assert written.sum() > 0  # there are targets in the batches


def test_gpu_minutes_are_kept(tmp_path, capsys):
    result = gpu.run(gpu.parser().parse_args(words("--device cpu --minutes -1", out=tmp_path)))
    assert result["left_out"] == ["correctness", "bank", "speed", "loss", "profile", "bench_set", "fidelity"]


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


def test_splits_of_photographs_keep_the_share_of_every_class(tmp_path):
    (tmp_path / "images").mkdir()
    names = [f"{n}.jpg" for n in range(40)]
    for n, name in enumerate(names):
        (tmp_path / "images" / name).write_bytes(bytes([n or 1]))  # the first two are one photograph
    classes = {n: [1] + [2] * (n % 4 == 0) + [3] * (n in (8, 9)) for n in range(40)}
    for part, own in (("train", range(0, 26)), ("val", range(26, 40))):
        content = {
            "categories": [{"id": c, "name": str(c), "frequency": "r"} for c in (1, 2, 3)],
            "images": [{"id": n, "file_name": names[n]} for n in own],
            "annotations": [{"id": i, "image_id": n, "category_id": c} for i, n in enumerate(own) for c in classes[n]],
        }
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    ccp_splits.write_splits(tmp_path)
    splits = []
    for number in (2, 3):
        train, val = (json.loads((tmp_path / f"{part}{number}.json").read_text()) for part in ("train", "val"))
        images = [{image["id"] for image in data["images"]} for data in (train, val)]
        assert not images[0] & images[1] and images[0] | images[1] == set(range(40)) - {1}
        held = [[one["category_id"] for one in data["annotations"]].count(c) for data in (train, val) for c in (2, 3)]
        assert held == [6, 1, 4, 1] and {c["frequency"] for c in val["categories"]} == {"r"}
        ids = [one["id"] for data in (train, val) for one in data["annotations"]]
        assert len(set(ids)) == len(ids)
        splits.append(images[1])
    assert splits[0] != splits[1]
