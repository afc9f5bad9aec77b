"""From the folders of a study's finished runs to its result and its figures."""

import datetime
import functools
import json
import platform
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from rio.data.files import write_atomically
from rio.results.evaluation import GROUP_METRICS, METRICS, Evaluation
from rio.study.plan import Run, Study, StudyError
from rio.study.result import KINDS, Category, RunResult, StudyResult


def planned_result(study: Study, options: Sequence[str]) -> StudyResult:
    """The study's result without any run: what it compares, on which data, on this machine, today."""
    from rio.config import load_config  # torch and detectron2: not for reading results
    from rio.data import names as datasets
    from rio.engine import info

    own = [[*of_seed, *options, *study.tuning_options] for of_seed in study.seed_options.values()]
    sets = [load_config(study.config, one).DATASETS for one in own]
    train, test = (datasets.annotations_of(names[0]) for names in (sets[0].TRAIN, sets[0].TEST))
    test = test.with_frequency_of(train)
    count = dict(zip(train.category_names, train.image_count.tolist(), strict=True))
    columns = (test.category_ids.tolist(), test.category_names, test.frequency.tolist())
    here = info.collect()
    libraries = ("torch", "detectron2", "numpy", "hotcoco")
    return StudyResult(
        name=study.name,
        role="report" if study.tune_on is None else "tune",
        trained_on=list(dict.fromkeys(without_folders(name) for one in sets for name in one.TRAIN)),
        evaluated_on=list(dict.fromkeys(without_folders(one.TEST[0]) for one in sets)),
        command=shlex.join(["python", "-m", "rio", "study", study.file, *map(without_folders, options)]),
        machine=_machine(here["cores"], [device["name"] for device in here["gpus"]["devices"]]),
        versions={"rio": here["rio"], "python": platform.python_version()}
        | {name: here["versions"][name] or "unknown" for name in libraries},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        arms={arm: [without_folders(word) for word in own] for arm, own in study.arms.items()},
        pairs=list(study.comparisons),
        seeds=list(study.seeds),
        categories=[Category(i, n, f, count[n]) for i, n, f in zip(*columns, strict=True)],
        runs=[],
    )


def mark_finished(run: Run, seconds: float, planned: StudyResult) -> None:
    """Write study_finished.json: how long the run took, and what it was made with."""
    made: dict[str, Any] = {name: getattr(planned, name) for name in ("machine", "versions", "date")}
    record = json.dumps({"seconds": round(seconds, 1), **made})
    write_atomically(run.folder.path / "study_finished.json", record.encode())


def collect(planned: StudyResult, runs: Sequence[Run]) -> StudyResult:
    """The result of the runs finished so far; a StudyError where one was evaluated on other categories."""
    ids, finished, records = [c.category_id for c in planned.categories], [], []
    for run in (run for run in runs if run.is_finished):
        record = json.loads((run.folder.path / "study_finished.json").read_bytes())
        metrics, ap = {}, {}
        for protocol in ("", *run.protocols):
            file = run.evaluation_file(protocol) if protocol else run.folder.evaluation_file
            evaluation = Evaluation.from_json(file)
            table = evaluation.per_category
            if table["category_id"].tolist() != ids:
                raise StudyError(
                    f"{file}: expected the {len(ids)} categories of {planned.evaluated_on[0]}, found {len(table)} "
                    "others. Fix: delete that folder to train it anew"
                )
            for kind in evaluation.metrics:
                name = f"{kind}_{protocol}" if protocol else kind
                metrics[name] = _metrics(evaluation, kind, planned.categories)
                ap[name] = [_rounded(v) for v in table[f"AP_{kind}"]]
        seconds = round(float(record["seconds"]), 1)
        finished.append(
            RunResult(run.arm, run.seed, run.max_iter, seconds, metrics, ap, run.folder.telemetry(), curve_of(run))
        )
        records.append({"machine": planned.machine, "versions": planned.versions, "date": ""} | record)
    if not finished:
        return planned
    # Several calls may have made the runs: each folder says what it was made with.
    versions: dict[str, dict[str, None]] = {}
    for name, version in (item for record in records for item in record["versions"].items()):
        versions.setdefault(name, {})[version] = None
    return msgspec.structs.replace(
        planned,
        runs=finished,
        machine="; ".join(dict.fromkeys(record["machine"] for record in records)),
        versions={name: " and ".join(found) for name, found in versions.items()},
        date=max(record["date"] for record in records) or planned.date,
    )


def curve_of(run: Run) -> dict[str, list[float | None]]:
    """Every evaluation of a run while it trained: its epoch (images shown / images of the training set) and box AP."""
    from rio.data import names as datasets

    folder, table = run.folder, run.folder.metrics()
    if not (columns := {m: f"bbox/{m}" for m in GROUP_METRICS if f"bbox/{m}" in table}):
        return {}
    shown = folder.setting("SOLVER.IMS_PER_BATCH") / datasets.annotations_of(folder.datasets("TRAIN")[0]).num_images
    table = table[table[list(columns.values())].notna().any(axis=1)]
    # Scores of an evaluation while training stand in the line of its last iteration, those of the end in the next.
    done = np.minimum(table["iteration"] + 1, run.max_iter)
    curve = {"epoch": [round(float(n) * shown, 3) for n in done]}
    return curve | {metric: [_rounded(v) for v in table[name]] for metric, name in columns.items()}


def draw(result: StudyResult, root: Path) -> None:
    """The figures study_*.svg and .png, once there is a finished run."""
    if not result.runs:
        return
    import matplotlib.pyplot as plt

    from rio import plots

    def save(stem: Path, plot: Any, table: Any, **given: Any) -> None:
        with plots.style():
            figure = plot(table, **given).figure
            for suffix, metadata in (("svg", {"Date": None}), ("png", {})):  # no date: the same bytes each time
                write = functools.partial(figure.savefig, format=suffix, metadata=metadata)
                write_atomically(stem.with_suffix(f".{suffix}"), write)
            plt.close(figure)

    runs, comparisons = result.per_run(), result.comparisons()
    note = " (tuning)" if result.role == "tune" else ""
    curves = result.curves()
    for metric in GROUP_METRICS if curves["epoch"].nunique() > 2 else ():
        save(root / f"study_curves_{metric}", plots.study_curves, curves, metric=metric)
    for kind in dict.fromkeys(runs["iou_type"]):
        name = f"{KINDS[kind]}{note}"
        for what, plot, rows, label in (
            ("arms", plots.arm_ap, runs, f"{name}, %"),
            ("differences", plots.paired_differences, comparisons, f"{name}, difference in points"),
        ):
            if len(rows := rows[rows["iou_type"] == kind]):
                save(root / f"study_{what}_{kind}", plot, rows, label=label)


def without_folders(text: str) -> str:
    """Absolute paths shortened to their last part: a published result does not tell where files lie on a machine."""
    return re.sub(r"(?<![\w.])~?/(?:[^/\s'\"@,]+/)*", "", text)


def _metrics(evaluation: Evaluation, kind: str, categories: Sequence[Category]) -> dict[str, float | None]:
    metrics, table = evaluation.metrics[kind], evaluation.per_category
    frequency = [c.frequency for c in categories]
    if table["frequency"].tolist() != frequency:
        # An arm that trains on another set (a balanced one, say) has other groups: all arms are compared by those of
        # the config's own training set. A group's AP is the mean of its classes' AP.
        by_group = table[f"AP_{kind}"].groupby(np.array(frequency)).mean()
        metrics = {**metrics, **{f"AP{g}": by_group.get(g, np.nan) for g in "rcf"}}
    return {m: _rounded(metrics[m]) for m in METRICS}


def _rounded(value: float) -> float | None:
    return None if value != value else round(float(value), 4)


def _machine(cores: int, gpus: Sequence[str]) -> str:
    """What a machine can do, not which one it is."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"(?m)^model name\s*:\s*(.+)$", cpuinfo.read_text() if cpuinfo.exists() else "")
    model = " ".join(found[1].split()) if found else platform.machine()
    parts = [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)] or ["no GPU"]
    return ", ".join([model, f"{cores} core{'s' * (cores != 1)}", *parts])
