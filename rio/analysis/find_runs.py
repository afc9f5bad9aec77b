"""Which folders hold finished runs, and which settings tell them apart."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from rio.analysis.run_folder import RunFolder, RunFolderError
from rio.data.files import dotted
from rio.data.names import find

# Not what a researcher has changed: where it ran, and what follows from the data.
_COUNTS = ["IMAGE_COUNT", "INSTANCE_COUNT", "NUM_IMAGES", "CLASS_FREQUENCY", "FRACTAL_DIMENSION", "BANK_CLASS_IDS"]
ASIDE = {"OUTPUT_DIR", "SEED", "VERSION", *(f"MODEL.RIO.{name}" for name in _COUNTS)}

Where = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]]


class RunsError(ValueError):
    """Runs that are not there or cannot be compared; the message says which and what to do."""


def find_runs(where: Where) -> dict[tuple[str, str], RunFolder]:
    """(arm, seed) -> folder of every finished run, `where` as for `Runs`; a RunsError without any, or with two of one
    name.
    """
    if isinstance(where, (str, os.PathLike)):
        where = [where]
    named = isinstance(where, Mapping)
    runs: dict[tuple[str, str], RunFolder] = {}
    begun, looked = [], []
    for given in where:
        root = find(where[given] if named else given)
        looked.append(str(root))
        folders = [root] if _is_run(root) else _runs_in(root)
        for folder in map(RunFolder, folders):
            if not folder.is_finished:
                begun.append(str(folder.path))
                continue
            name = given if named and len(folders) == 1 else folder.path.name
            arm, _, seed = name.rpartition("-seed")
            key = (arm, seed) if arm and seed.isdigit() else (name, "")
            if key in runs:
                raise RunsError(
                    f"two runs are called {name!r}: {runs[key].path} and {folder.path}. Fix: name them: "
                    "open_runs({'a': ..., 'b': ...})"
                )
            runs[key] = folder
    if not runs:
        raise RunsError(
            f"No finished run found (looked for evaluation.json in {', '.join(looked) or 'no folder at all'} and the "
            f"folders in it).{' Started but not finished: ' + ', '.join(begun) + '.' if begun else ''} Fix: "
            "`make demo` trains some on an embedded data set, on a CPU; `python -m rio train` trains one."
        )
    return runs


def runs_with_results(root: Path, *, depth: int = 3) -> dict[str, str]:
    """Folders at most so deep below one that hold a run's predictions -> the data set that they are of."""
    found = {}
    files = (file for level in range(1, depth + 1) for file in root.glob("*/" * level + "instances_results.json"))
    for run in (RunFolder(file.parent) for file in sorted(files)):
        with contextlib.suppress(RunFolderError):
            found |= {str(run.path): name for name in run.datasets("TEST")[:1]}
    return found


def _runs_in(root: Path) -> list[Path]:
    """The runs in a folder, in the order of its study's arms, the baseline first."""
    order = {"none": 0, "rfs": 1, "rio": 99}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        order = {arm: place for place, arm in enumerate(json.loads((root / "study.json").read_bytes())["arms"])}
    found = (path for path in root.glob("*") if path.is_dir() and _is_run(path))
    return sorted(found, key=lambda path: (order.get(path.name.rpartition("-seed")[0] or path.name, 50), path.name))


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("evaluation.json", "metrics.json", "instances_results.json"))


def settings_that_differ(folders: Mapping[tuple[str, str], RunFolder]) -> pd.DataFrame:
    """What the configs of runs do not share: one row per run, one column per key that differs: text, "–" if not there.

    Left out: seed, output folder, and what a config holds that follows from the training set. Runs without a readable
    config.yaml have no row.
    """
    rows = {}
    for key, folder in folders.items():
        with contextlib.suppress(OSError, RunFolderError):
            rows[key] = dotted(folder.config())
    names = dict.fromkeys(name for row in rows.values() for name in row if name not in ASIDE)
    names = [name for name in names if len({str(row.get(name, "–")) for row in rows.values()}) > 1]
    return pd.DataFrame(
        [[str(row.get(name, "–")) for name in names] for row in rows.values()],
        pd.Index(list(rows), tupleize_cols=False),
        names,
    )
