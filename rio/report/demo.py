"""The demo: from the embedded data set to a report, with one command."""

from __future__ import annotations

import os
from pathlib import Path

from rio.data import names as datasets
from rio.report.page import write_report
from rio.report.summary import write_summary
from rio.study.plan import load_study
from rio.study.result import format_table
from rio.study.runner import run_study


def demo(output_dir: str | os.PathLike[str] = "output/demo", *, processes: int | None = None) -> Path:
    """Draw the embedded data set, train the arms of ``configs/studies/demo.yaml``, compare, write a report.

    Args:
        output_dir: runs and report; given again, it resumes.
        processes: trainings side by side; None: the study's.

    Returns:
        The report's path.

    Raises:
        FileNotFoundError: not run from a clone of the repository.
    """
    file = Path(__file__).resolve().parents[2] / "configs" / "studies" / "demo.yaml"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: the demo's study file is missing. Fix: run the demo from a clone of the repository"
        )
    print("rio demo: a synthetic long-tailed data set, drawn here; what it shows holds for this set.", flush=True)
    study = load_study(file)
    outcome = run_study(study, output_dir, processes=processes)
    result = outcome.result
    train, val = (datasets.annotations_of(names[0]) for names in (result.trained_on, result.evaluated_on))

    print("\nAverage precision on the validation images (percent), all / rare / common / frequent classes:\n")
    print(format_table(result.table()) + "\n")
    folders = {arm: outcome.folders[arm, study.seeds[0]] for arm in study.arms}
    shown = {"runs": folders, "train": train, "val": val.with_frequency_of(train)}
    title = "RIO on the embedded long-tailed set"
    report = write_report(Path(output_dir) / "report.html", title=title, **shown)
    summary = write_summary(Path(output_dir) / "summary.png", **shown)
    memory = "" if outcome.peak_gib is None else f", at most {outcome.peak_gib:.1f} GiB of memory"
    print(f"Done in {outcome.seconds / 60:.1f} minutes{memory}.")
    print(f"Report:      {report.resolve()}   <- open this first, in any browser")
    print(f"One picture: {summary.resolve()}")
    print(f"Runs:        {Path(output_dir).resolve()}   (tensorboard --logdir shows their curves)")
    print("Next:        notebooks/, or train on your own data: see README, 'Your own data'", flush=True)
    return report
