"""The demo: from the embedded data set to a report, with one command."""

import dataclasses
import os
import time
from pathlib import Path

from rio.data import names as datasets
from rio.report.page import write_report
from rio.report.runs import load_runs
from rio.report.summary import write_summary
from rio.study.plan import features_folders, load_study, prepare
from rio.study.result import format_table
from rio.study.runner import extract_features, run_study

# Arms in detail in the report, by name; the curves and tables have all.
SHOWN = {"No resampling": "none-linear", "Bank": "bank-linear", "RFS": "rfs-linear", "RFS + bank": "rfs+bank-linear"}


def demo(
    output_dir: str | os.PathLike[str] = "output/demo", *, processes: int | None = None, features_only: bool = False
) -> Path:
    """Draw an embedded data set, train a detector on it and classifiers on its features, compare, write a report.

    The detector is the one arm of ``configs/studies/demo_detector.yaml``; ``configs/studies/demo.yaml`` has the others.

    Args:
        output_dir: runs and report; given again, it resumes.
        processes: trainings side by side; None: the study's.
        features_only: end after keeping the detector's features, which notebook 06 trains on.

    Returns:
        The report's path, or the folder of the features.

    Raises:
        FileNotFoundError: not run from a clone of the repository.
    """
    studies = Path(__file__).resolve().parents[2] / "configs" / "studies"
    if not (file := studies / "demo.yaml").is_file():
        raise FileNotFoundError(
            f"{file}: the demo's study file is missing. Fix: run the demo from a clone of the repository"
        )
    print("rio demo: a synthetic long-tailed data set, drawn here; what it shows holds for this set.", flush=True)
    started = time.monotonic()
    print("1 of 2: one detector, without any resampling", flush=True)
    detector = run_study(load_study(studies / "demo_detector.yaml"), Path(output_dir) / "detector", processes=1)
    (folder,) = detector.folders.values()
    print(f"2 of 2: {'its features' if features_only else 'classifiers on its features'}", flush=True)
    study = load_study(file)
    study = dataclasses.replace(study, features=(str(folder / "model_final.pth"),) * len(study.seeds))
    if features_only:
        root = Path(output_dir)
        extract_features(study, root, prepare(study, root, []), processes or study.processes)
        return features_folders(study, root)[study.features[0]]
    outcome = run_study(study, output_dir, processes=processes)
    result = outcome.result
    train, val = (datasets.annotations_of(names[0]) for names in (result.trained_on, result.evaluated_on))

    print("\nAverage precision on the validation images (percent), all / rare / common / frequent classes:\n")
    print(format_table(result.table()) + "\n")
    folders = {name: outcome.folders[arm, study.seeds[0]] for name, arm in SHOWN.items()}
    val = val.with_frequency_of(train)
    shown = {"runs": load_runs(folders, val), "train": train, "val": val, "study": result}
    title = "RIO on the embedded long-tailed set"
    report = write_report(Path(output_dir) / "report.html", title=title, **shown)
    summary = write_summary(Path(output_dir) / "summary.png", **shown)
    peak = max((gib for one in (detector, outcome) if (gib := one.peak_gib)), default=None)
    memory = "" if peak is None else f", at most {peak:.1f} GiB of memory"
    print(f"Done in {(time.monotonic() - started) / 60:.1f} minutes{memory}.")
    print(f"Report:      {report.resolve()}   <- open this first, in any browser")
    print(f"One picture: {summary.resolve()}")
    print(f"Runs:        {Path(output_dir).resolve()}   (tensorboard --logdir shows their curves)")
    print("Next:        notebooks/, or train on your own data: see README, 'Your own data'", flush=True)
    return report
