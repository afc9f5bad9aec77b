"""Whether training on frozen features is true to whole detectors: eight arms both ways, on the embedded bench set.

Two studies: of configs/studies/bench.yaml the first seed of the eight arms, and configs/studies/bench_features.yaml on
features of three of these detectors.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rio.config import load_config
from rio.study.plan import Study, load_study
from rio.study.process import Training
from rio.study.runner import run_study
from tests.benchmarks.gpu_arms import CONFIGS
from tests.readme import box_ap

WHOLE, FEATURES = "whole detectors", "on features"


def studies(root: Path, *, small: bool = False) -> dict[str, Study]:
    """What is trained below `root`; small: two arms and one trunk."""
    bench, features = (load_study(CONFIGS / "studies" / f"{name}.yaml") for name in ("bench", "bench_features"))
    arms, trunks = list(features.arms), len(features.seeds)
    arms, trunks = (arms[::7], 1) if small else (arms, trunks)
    weights = [root / bench.name / Path(one).parent.name / "model_final.pth" for one in features.features[:trunks]]
    chosen = {"arms": {arm: features.arms[arm] for arm in arms}, "comparisons": ()}
    return {
        WHOLE: replace(bench, **chosen | {"arms": {arm: bench.arms[arm] for arm in arms}}, seeds=bench.seeds[:1]),
        FEATURES: replace(features, **chosen, seeds=features.seeds[:trunks], features=tuple(map(str, weights))),
    }


def images(root: Path, options: list[str]) -> int:
    """How many images the whole detectors are trained on, all together."""
    study = studies(root)[WHOLE]
    solver = load_config(study.config, options).SOLVER
    return len(study.arms) * solver.MAX_ITER * solver.IMS_PER_BATCH


def fidelity(root: Path, ends: float, options: list[str], *, small: bool = False) -> dict[str, Any]:
    """Train what is not finished, until `ends` (time.monotonic()).

    Returns:
        done; progress, in words; ap: {column: {arm: {AP, APr}}}, box AP of the finished arms, mean over trunks.
    """
    found: dict[str, Any] = {"done": True, "progress": [], "ap": {}}
    for column, study in studies(root, small=small).items():
        _stop_what_was_left(root / study.name)
        minutes = max(ends - time.monotonic(), 1.0) / 60
        result = run_study(study, root / study.name, minutes=minutes, options=options).result
        found["progress"].append(f"{column}: {result.progress} finished")
        found["ap"][column] = box_ap(result)[["AP", "APr"]].to_dict(orient="index")
        if not result.complete:
            return found | {"done": False}
    return found


def _stop_what_was_left(folder: Path) -> None:
    """Trainings outlive a study that was killed; they save and end."""
    left = [run for run in map(Training, folder.glob("*-seed*")) if run.pid() is not None]
    for run in left:
        run.stop()
    while any(run.pid() is not None for run in left):
        time.sleep(0.5)
