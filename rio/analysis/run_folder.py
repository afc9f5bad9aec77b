"""What a run has left in its folder, read: settings, metrics, progress, evaluation. Nothing here writes."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import yaml

if TYPE_CHECKING:
    from rio.results.evaluation import Evaluation

TELEMETRY = r"^(stage\d+/)?(memory_bank|rois)/"  # scalars of the bank and the RoIs; a cascade has them per stage


class RunFolderError(ValueError):
    """A file of a run that cannot be read; names the file, what was expected and what was found."""


class Progress(NamedTuple):
    """How far a run is, by its newest values."""

    iteration: int  # done
    max_iter: int  # 0: not known yet
    loss: float  # NaN before the first
    seconds_per_iteration: float | None


class RunFolder:
    """A run as its files tell it. The folder need not exist yet, and may still grow."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.json"
        self.evaluation_file = self.path / "evaluation.json"
        self.predictions_file = self.path / "instances_results.json"
        self._stamp: tuple[int, ...] | None = None  # of metrics.json when it was read last
        self._rows: list[dict[str, Any]] = []
        self._fault = ""
        self._table: pd.DataFrame | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run has been evaluated."""
        return self.evaluation_file.is_file()

    def config(self) -> dict[str, Any]:
        """config.yaml as nested dictionaries, read again only when the file changes. A FileNotFoundError without it, a
        RunFolderError where it is not YAML, or not keys and values.
        """
        status = self.config_file.stat()
        return _read_config(self.config_file, status.st_mtime_ns, status.st_size)

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of config.yaml by its dotted key; the default where the key or a readable file is missing."""
        try:
            return functools.reduce(lambda node, part: node[part], key.split("."), self.config())
        except (OSError, RunFolderError, KeyError, TypeError):
            return default

    def datasets(self, split: str) -> list[str]:
        """Names in DATASETS.TRAIN or DATASETS.TEST (`split`: "TRAIN", "TEST"); [] without config.yaml."""
        names = self.config_file.is_file() and self.config() and self.setting(f"DATASETS.{split}")
        if isinstance(names, str):  # a tuple dumped as text, or one name
            return re.findall(r"['\"]([^'\"]+)['\"]", names) if names.startswith("(") else [names]
        return [str(name) for name in names] if isinstance(names, (list, tuple)) else []

    def metrics(self, *, strict: bool = False) -> pd.DataFrame:
        """The rows of metrics.json so far: one per iteration, a column per scalar (NaN: not logged then); only
        `iteration` where there are no rows.

        A whole line that cannot be read is left out, or with `strict` a RunFolderError that names file and line; the
        half-written last line of a running or killed run is left out in either case.
        """
        rows = self._read()
        if strict and self._fault:
            raise RunFolderError(self._fault)
        if self._table is None:
            table = pd.DataFrame(rows) if rows else pd.DataFrame({"iteration": pd.Series(dtype=int)})
            self._table = table.groupby("iteration", as_index=False).last() if rows else table
        return self._table

    def progress(self) -> Progress:
        """How far the run is, by its newest lines."""
        rows, last = self._read(), self.setting("SOLVER.MAX_ITER", 0)
        trained = [row for row in rows[-100:] if isinstance(row.get("total_loss"), (int, float))]
        paces = [float(row["time"]) for row in trained if isinstance(row.get("time"), (int, float))]
        done = int(trained[-1]["iteration"]) + 1 if trained else 0
        done = max(done, int(rows[-1]["iteration"])) if rows else 0  # scores are logged after the last iteration
        loss = float(trained[-1]["total_loss"]) if trained else math.nan
        return Progress(min(done, last) if last else done, last, loss, paces[-1] if paces else None)

    def telemetry(self) -> dict[str, float]:
        """Scalars of the bank and the RoIs, each the mean over the second half of the iterations; six digits."""
        table, half = self.metrics(), self.setting("SOLVER.MAX_ITER", 0) / 2
        late = table[table["iteration"] + 1 > half].filter(regex=TELEMETRY)
        return {name: float(f"{late[name].mean():.6g}") for name in sorted(late) if late[name].notna().any()}

    def evaluation(self) -> Evaluation:
        """evaluation.json; raises what `Evaluation.from_json` raises."""
        from rio.results.evaluation import Evaluation

        return Evaluation.from_json(self.evaluation_file)

    def _read(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.json, read again only when the file changes."""
        try:
            status = self.metrics_file.stat()
            stamp = status.st_ino, status.st_size, status.st_mtime_ns
            if stamp != self._stamp:
                lines = self.metrics_file.read_bytes().split(b"\n")[:-1]
                self._stamp, self._rows, self._fault, self._table = stamp, [], "", None
                for number, line in enumerate(lines, 1):
                    self._add(line, number)
        except OSError:
            pass
        return self._rows

    def _add(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            int(row["iteration"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            fault = f"{self.metrics_file}, line {number}: expected a JSON object with an iteration, found: {error!r}"
            self._fault = self._fault or fault
        else:
            self._rows.append(row)


@functools.lru_cache(maxsize=64)
def _read_config(file: Path, _changed: int, _size: int) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        found = " ".join(str(error).split())
        raise RunFolderError(f"{file}: expected the YAML that a run writes, found: {found}") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{file}: expected keys and values, found {type(content).__name__}")
    return content
