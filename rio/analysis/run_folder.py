"""What a run has left in its folder, read: settings, metrics, progress, evaluation. Nothing here writes."""

from __future__ import annotations

import contextlib
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

# Scalars in metrics.json about the bank and the RoIs; a cascade has them per stage.
TELEMETRY = re.compile(r"^(stage\d+/)?(memory_bank|rois)/")


class RunFolderError(ValueError):
    """A file of a run that cannot be read; names the file, what was expected and what was found."""


class Progress(NamedTuple):
    """How far a run is, by its newest values."""

    iteration: int  # done
    max_iter: int  # 0: not known yet
    loss: float  # NaN before the first
    seconds_per_iteration: float | None


class RunFolder:
    """A run as its files tell it. The folder need not exist yet, and may still grow.

    Args:
        path: the folder.

    Attributes:
        path: the same.
        config_file, metrics_file, evaluation_file, predictions_file: config.yaml, metrics.json, evaluation.json and
            instances_results.json in it, there or not.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.json"
        self.evaluation_file = self.path / "evaluation.json"
        self.predictions_file = self.path / "instances_results.json"
        self._rows: list[dict[str, Any]] = []
        self._fault = ""
        self._lines = self._offset = 0
        self._identity: tuple[int, int] | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run has been evaluated."""
        return self.evaluation_file.is_file()

    def config(self) -> dict[str, Any]:
        """config.yaml as nested dictionaries, read again only when the file changes.

        Raises:
            FileNotFoundError: no such file.
            RunFolderError: not YAML, or not keys and values.
        """
        status = self.config_file.stat()
        return _read_config(self.config_file, status.st_mtime_ns, status.st_size)

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of config.yaml by its dotted key; the default where key or file are missing or the file is broken."""
        try:
            node: Any = self.config()
            for part in key.split("."):
                node = node[part]
        except (OSError, RunFolderError, KeyError, TypeError):
            return default
        return node

    def datasets(self, split: str) -> list[str]:
        """Names of the data sets in DATASETS.TRAIN or DATASETS.TEST (`split`: "TRAIN", "TEST"); [] without config.yaml.

        Raises:
            RunFolderError: as `config`.
        """
        with contextlib.suppress(OSError):
            self.config()
        names = self.setting(f"DATASETS.{split}")
        if isinstance(names, str):  # a tuple dumped as text, or one name
            return re.findall(r"['\"]([^'\"]+)['\"]", names) if names.startswith("(") else [names]
        return [str(name) for name in names] if isinstance(names, (list, tuple)) else []

    def metrics(self, *, strict: bool = False) -> pd.DataFrame:
        """The rows of metrics.json so far.

        Args:
            strict: raise where a whole line cannot be read; otherwise it is left out. The half-written last line of a
                running or killed run is left out in either case.

        Returns:
            One row per iteration, a column per scalar (NaN: not logged then); only `iteration` where there are no rows.

        Raises:
            RunFolderError: names file and line.
        """
        rows = self._read()
        if strict and self._fault:
            raise RunFolderError(self._fault)
        if not rows:
            return pd.DataFrame({"iteration": pd.Series(dtype=int)})
        return pd.DataFrame(rows).groupby("iteration", as_index=False).last()

    def progress(self) -> Progress:
        """How far the run is, by its newest lines."""
        done, loss, pace = 0, math.nan, None
        for row in reversed(self._read()):
            if pace is None and isinstance(row.get("time"), (int, float)):
                pace = float(row["time"])
            if math.isnan(loss):
                trained = isinstance(row.get("total_loss"), (int, float))
                done = max(done, int(row["iteration"]) + trained)  # scores are logged after the last iteration
                loss = float(row["total_loss"]) if trained else math.nan
            elif pace is not None:
                break
        last = self.setting("SOLVER.MAX_ITER", 0)
        return Progress(min(done, last) if last else done, last, loss, pace)

    def telemetry(self) -> dict[str, float]:
        """Scalars of the bank and the RoIs, each the mean over the second half of the iterations; six digits."""
        table, half = self.metrics(), self.setting("SOLVER.MAX_ITER", 0) / 2
        late = table[table["iteration"] + 1 > half].filter(regex=TELEMETRY)
        return {name: float(f"{late[name].mean():.6g}") for name in sorted(late) if late[name].notna().any()}

    def evaluation(self) -> Evaluation:
        """evaluation.json.

        Raises:
            FileNotFoundError, ValueError: as `Evaluation.from_json`.
        """
        from rio.results.evaluation import Evaluation

        return Evaluation.from_json(self.evaluation_file)

    def _read(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.json; reads only what was added since the last call."""
        try:
            status = self.metrics_file.stat()
            identity = status.st_dev, status.st_ino
            if identity != self._identity or status.st_size < self._offset:  # a resumed run rewrites its file
                self._rows, self._fault, self._lines, self._offset, self._identity = [], "", 0, 0, identity
            with open(self.metrics_file, "rb") as file:
                file.seek(self._offset)
                added = file.read()
        except OSError:
            return self._rows
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._lines += 1
            try:
                row = json.loads(line) if line.strip() else None
                if row is not None and not isinstance(row.get("iteration"), (int, float)):
                    raise ValueError("no iteration")
            except (ValueError, AttributeError, RecursionError) as error:
                where = f"{self.metrics_file}, line {self._lines}"
                self._fault = self._fault or f"{where}: expected a JSON object with an iteration, found: {error}"
            else:
                self._rows += [row] if row is not None else []
        return self._rows


@functools.lru_cache(maxsize=64)
def _read_config(file: Path, _changed: int, _size: int) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunFolderError(
            f"{file}: expected the YAML that a run writes, found: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{file}: expected keys and values, found {type(content).__name__}")
    return content
