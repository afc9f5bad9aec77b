"""A run's folder as its files tell it: half-written, growing, rewritten, broken."""

import json
import math
import os

import pytest

from rio.analysis.run_folder import RunFolder, RunFolderError

CONFIG = "SOLVER: {MAX_ITER: 8}\nDATASETS: {TRAIN: [a, b], TEST: \"('c',)\"}\n"


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_an_empty_folder(tmp_path):
    run = RunFolder(tmp_path / "none")
    assert not run.is_finished and run.progress()[:2] == (0, 0) and math.isnan(run.progress().loss)
    assert list(run.metrics().columns) == ["iteration"] and run.telemetry() == {}
    assert run.setting("SEED", 3) == 3 and run.datasets("TRAIN") == []
    for read in (run.config, run.evaluation):
        with pytest.raises(FileNotFoundError):
            read()


def test_settings_follow_the_file(tmp_path):
    run = RunFolder(tmp_path)
    run.config_file.write_text(CONFIG)
    assert run.datasets("TRAIN") == ["a", "b"] and run.datasets("TEST") == ["c"]
    assert run.setting("SOLVER.MAX_ITER") == 8 and run.setting("SOLVER.MAX_ITER.X", 1) == 1
    run.config_file.write_text("DATASETS: {TRAIN: one}\nSOLVER: {MAX_ITER: 20}")
    assert run.setting("SOLVER.MAX_ITER") == 20 and run.datasets("TRAIN") == ["one"]


@pytest.mark.parametrize("content", ["a: [", "!!python/object/apply:os.system ['true']", "text", b"\xff"])
def test_a_broken_config(tmp_path, content):
    run = RunFolder(tmp_path)
    run.config_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (run.config, lambda: run.datasets("TEST")):
        with pytest.raises(RunFolderError, match="config.yaml: expected"):
            read()
    assert run.setting("SEED", 3) == 3


def test_metrics_are_read_as_they_grow(tmp_path):
    run = RunFolder(tmp_path)
    file = run.metrics_file
    file.write_text('{"iteration": 0, "total_loss": 3.0}\n{"iteration": 5, "tot')
    assert run.metrics(strict=True)["iteration"].tolist() == [0]
    with open(file, "a") as more:
        more.write('al_loss": 2.0}\nnonsense\n[1]\n{"iteration": 5, "bbox/AP": 12.0}\n')
    table = run.metrics()
    assert table["iteration"].tolist() == [0, 5]
    assert table.loc[1, "total_loss"] == 2.0 and table.loc[1, "bbox/AP"] == 12.0
    with pytest.raises(RunFolderError, match="metrics.json, line 3: expected a JSON object"):
        run.metrics(strict=True)
    replacement = tmp_path / "new"  # a resumed run forgets what came after its checkpoint
    replacement.write_text('{"iteration": 0, "total_loss": 3.5}\n')
    os.replace(replacement, file)
    assert run.metrics(strict=True)["total_loss"].tolist() == [3.5]


@pytest.mark.parametrize(
    ("rows", "progress"),
    [
        ([{"iteration": 3, "total_loss": 2.0, "time": 0.5}, {"iteration": 4, "total_loss": 1.5}], (5, 8, 1.5, 0.5)),
        ([{"iteration": 7, "total_loss": 1.5, "time": 1}, {"iteration": 8, "bbox/AP": 3.0}], (8, 8, 1.5, 1.0)),
        ([{"iteration": 6, "bbox/AP": 3.0}], (6, 8, None, None)),
        ([{"iteration": 30, "total_loss": 1.5}], (8, 8, 1.5, None)),
    ],
)
def test_progress(tmp_path, rows, progress):
    run = RunFolder(tmp_path)
    run.config_file.write_text(CONFIG)
    run.metrics_file.write_text(lines(*rows) + '{"iteration": 7, "total_lo')
    found = run.progress()
    assert (*found[:2], None if math.isnan(found.loss) else found.loss, found.seconds_per_iteration) == progress


def test_telemetry_is_the_mean_of_the_second_half(tmp_path):
    run = RunFolder(tmp_path)
    run.config_file.write_text(CONFIG)
    rows = [
        {"iteration": 3, "rois/share_r": 9.0, "stage1/memory_bank/age": 2.0},
        {"iteration": 5, "rois/share_r": 9.0, "memory_bank/fill": 1.0, "total_loss": 3.0},
        {"iteration": 5, "rois/share_r": 0.25, "memory_bank/fill": 1.0, "other/memory_bank/fill": 3.0},  # written again
        {"iteration": 7, "rois/share_r": 0.75, "stage1/memory_bank/age": 3.0, "stage1/loss_cls": 1.0},
        {"iteration": 8, "bbox/AP": 3.0},
    ]
    run.metrics_file.write_text(lines(*rows))
    assert run.telemetry() == {"memory_bank/fill": 1.0, "rois/share_r": 0.5, "stage1/memory_bank/age": 3.0}
