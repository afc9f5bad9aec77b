"""Entries of notebook 05 that somebody has tagged: a CSV file of ids, written and read again."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from rio.data.names import find
from rio.widgets.source import PredictionSource

KEY = ["result_index", "annotation_id", "image_id", "category_id"]  # what an entry is known by; -1: none
COLUMNS = [*KEY, "kind", "score", "category", "file_name", "tag"]


class Selection:
    """Tags of a source's entries.

    Attributes:
        tags: row of `source.entries` -> tag.
    """

    def __init__(self, source: PredictionSource) -> None:
        self.source = source
        self.tags: dict[int, str] = {}

    def table(self) -> pd.DataFrame:
        """The tagged entries: result_index (row of the results file, -1: an object), annotation_id (of the object, or
        of the one that a prediction finds or points at, -1: none), image_id, category_id, kind, score (empty: an
        object), category, file_name, tag.
        """
        return self._ids(sorted(self.tags)).assign(tag=[self.tags[row] for row in sorted(self.tags)])[COLUMNS]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `table` as CSV; the folder is made if missing."""
        file = find(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        self.table().to_csv(file, index=False)
        return file

    def load(self, path: str | os.PathLike[str]) -> int:
        """Add the tags of a CSV file; returns how many.

        Raises:
            ValueError: not such a file, or one of other results.
            FileNotFoundError: no such file.
        """
        file = find(path)
        given = pd.read_csv(file, keep_default_na=False)
        if missing := [name for name in (*KEY, "tag") if name not in given]:
            raise ValueError(f"{file}: expected the column {missing[0]!r}, found {', '.join(given)}. Fix: save it anew")
        entries = self.source.entries
        known = self._ids(entries.index)[KEY].assign(row=entries.index).astype(str)
        rows = given[KEY].astype(str).merge(known, how="left", on=KEY)["row"]
        if rows.isna().any():
            bad = int(np.flatnonzero(rows.isna())[0])
            found = ", ".join(f"{name} {given.at[bad, name]}" for name in KEY)
            raise ValueError(
                f"{file}, line {bad + 2}: expected an entry of {self.source.title}, found {found}, which it lacks. "
                "Fix: open the results that the selection was made on"
            )
        self.tags |= dict(zip(rows.astype(int), given["tag"].astype(str), strict=True))
        return len(given)

    def _ids(self, rows: list[int] | pd.Index) -> pd.DataFrame:
        own, truth = self.source.entries.loc[rows], self.source.truth
        ids = np.append(truth.annotation_ids, -1)[own["annotation_index"]]
        names, files = np.array(truth.category_names, object), np.array(truth.file_names, object)
        return pd.DataFrame({
            "result_index": own["result_index"], "annotation_id": ids, "image_id": truth.image_ids[own["image"]],
            "category_id": truth.category_ids[own["class_id"]], "kind": own["kind"].astype(str),
            "score": own["score"].where(~own["is_object"]).round(4), "category": names[own["class_id"]],
            "file_name": files[own["image"]],
        })  # fmt: skip
