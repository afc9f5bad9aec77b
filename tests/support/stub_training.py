"""A small script in place of a training: writes what a training writes, saves and ends at Ctrl-C, takes no time."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROW = {
    "total_loss": 2.5, "loss_cls": 1.5, "loss_box_reg": 1.0, "lr": 0.01, "time": 0.5, "eta_seconds": 20.0,
    "memory_bank/fill": 0.25, "memory_bank/replayed_per_foreground": 0.1,
}  # fmt: skip
CONFIG = "SEED: 1\nSOLVER: {MAX_ITER: %d, IMS_PER_BATCH: 8}\nMODEL: {RIO: {BANK_ENABLED: true}}\n"

# Ctrl-C: a checkpoint, the sentence, exit code 130, as `python -m rio train` does.
SCRIPT = r"""
import json, os, pathlib, shutil, signal, sys, time
row, config, iterations, pause = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
folder = pathlib.Path(sys.argv[sys.argv.index("--output-dir") + 1])
stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
(folder / "config.yaml").write_text(config)
print("told:", sys.argv, flush=True)
first = 10 if (folder / "last_checkpoint").exists() else 0
for i in range(first, iterations):
    with open(folder / "metrics.json", "a") as file:
        file.write(json.dumps({"iteration": i, **row}) + "\n")
    time.sleep(pause)
    if stopped:
        (folder / "last_checkpoint").write_text("model_0000009.pth")
        sys.exit(print(f"\nStopped after {i + 1} of {iterations} iterations.") or 130)
BODY
(folder / "model_final.pth").touch()
"""


def command(folder: Path, iterations: int = 2000, pause: float = 0.05, body: str = "") -> list[str]:
    """What `train_command` would give: rows for `iterations`, `pause` seconds each; then `body` (Python)."""
    words = [json.dumps(ROW), CONFIG % iterations, str(iterations), str(pause)]
    return [sys.executable, "-IS", "-c", SCRIPT.replace("BODY", body), *words, "--output-dir", str(folder)]


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)
