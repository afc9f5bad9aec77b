"""Finished runs side by side: who gains, at which frequency, and by which kind of error.

A run is a folder that `python -m rio train`, `rio study` or `make demo` left: evaluation.json,
instances_results.json and config.yaml. Runs called ARM-seed1, ARM-seed2, ... are one arm. All AP are percent.

What a study has measured is one file, study.json; it is read here without the runs' folders.
"""

from __future__ import annotations

import html
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import traitlets
import yaml
from IPython.display import display

from rio import plots
from rio.analysis.intervals import student_t
from rio.data import names
from rio.data.annotations import Annotations
from rio.results.errors import find_errors
from rio.results.evaluation import GROUP_METRICS as METRICS
from rio.results.evaluation import Evaluation, evaluate
from rio.results.federated import JudgedPairs
from rio.results.reading import load_results
from rio.study.result import StudyResult, format_difference
from rio.widgets import dataset as _data
from rio.widgets import theme as _theme
from rio.widgets.balance import Lines

NAMES = {"none": "no resampling", "rfs": "RFS", "rio": "RIO (RFS + bank)"}
OUTCOMES = ("correct", "classification", "localisation", "missed")  # of an object
_WRONG = ("classification", "localisation", "both", "duplicate", "background")  # kinds of a wrong prediction
IOU_NAMES = {"bbox": "box AP", "segm": "mask AP"}
# Numbers of the literature, as published (percent), Mask R-CNN with R-50-FPN: data set, kind, method, AP,
# APr, APc, APf.
_REPORTED = [
    ("lvis_v0.5_val", "segm", "Mask R-CNN R50 1x", 21.2, 3.2, 21.1, 28.7),
    ("lvis_v0.5_val", "segm", "RFS R50 1x", 24.4, 16.0, 24.0, 28.3),
    ("lvis_v0.5_val", "segm", "EQL R50", 24.0, 9.4, 25.2, 28.4),
    ("lvis_v0.5_val", "segm", "EQL + RFS R50", 26.1, 17.2, 27.3, 28.2),
    ("lvis_v0.5_val", "segm", "Forest R-CNN R50", 25.6, 18.3, 26.4, 27.6),
    ("lvis_v0.5_val", "segm", "RIO R50", 26.0, 18.9, 26.2, 28.5),
    ("lvis_v0.5_val", "bbox", "RFS R50 1x", 23.6, None, None, None),
    ("lvis_v0.5_val", "bbox", "Forest R-CNN R50", 25.9, 16.9, 26.1, 29.2),
    ("lvis_v0.5_val", "bbox", "RIO R50", 25.7, 17.2, 25.1, 29.8),
    ("lvis_v1_val", "segm", "Mask R-CNN R50 1x", 16.1, 0.0, 12.0, 27.4),
    ("lvis_v1_val", "segm", "RFS R50 1x", 22.2, 11.5, 21.2, 28.0),
    ("lvis_v1_val", "segm", "EQLv2 R50 1x", 23.7, 14.9, 22.8, 28.6),
    ("lvis_v1_val", "segm", "Seesaw + RFS R50 2x", 26.4, None, None, None),
    ("lvis_v1_val", "segm", "GOL R50", 27.7, 21.4, 27.7, 30.4),
    ("lvis_v1_val", "segm", "FRACAL R50", 28.5, 23.0, 28.1, 31.5),
]


class RunsError(ValueError):
    """Runs that are not there or cannot be compared; the message says which and what to do."""


@_theme.sentences
def open_runs(
    where: str
    | os.PathLike[str]
    | Sequence[str | os.PathLike[str]]
    | Mapping[str, str | os.PathLike[str]] = "output/demo",
    *,
    ground_truth: str | None = None,
    training_set: str | None = None,
) -> Runs:
    """Open finished runs for comparison.

    Args:
        where: a folder of run folders (a study's output), one run folder, several of either, or a dict that
            names them.
        ground_truth: data set that the runs were evaluated on, as `open_dataset` takes it; None: as their
            configs say.
        training_set: data set whose image_count tells how rare a category was; None: as the configs say.

    Raises:
        NotebookError: no finished run, runs evaluated on different data, or a data set that is not there.
    """
    folders = _finished(where)
    return Runs(folders, ground_truth, training_set)


def _finished(where: object) -> dict[tuple[str, str], Path]:
    """(arm, seed) -> folder with an evaluation.json."""
    named = dict(where) if isinstance(where, Mapping) else None
    given = (
        list(named.values()) if named is not None else [where] if isinstance(where, (str, os.PathLike)) else list(where)
    )
    found: list[tuple[str, Path]] = []
    unfinished: list[str] = []
    for index, path in enumerate(given):
        root = names.find(path)
        folders = [root] if _is_run(root) else sorted(p for p in root.glob("*") if p.is_dir() and _is_run(p))
        for folder in folders:
            name = folder.name if named is None or len(folders) > 1 else list(named)[index]
            if (folder / "evaluation.json").is_file():
                found.append((name, folder))
            else:
                unfinished.append(str(folder))
    if not found:
        looked = ", ".join(str(names.find(path)) for path in given) or "no folder at all"
        begun = f" Begun and not finished: {', '.join(unfinished)}." if unfinished else ""
        raise RunsError(
            f"No finished run found (looked for evaluation.json in {looked} and the folders in it).{begun} "
            "`make demo` trains three on the embedded data set, on a CPU; `python -m rio train` trains one; "
            "then run this notebook again."
        )
    runs = {}
    for name, folder in found:
        arm, _, seed = name.rpartition("-seed")
        key = (arm, seed) if arm and seed.isdigit() else (name, "")
        if key in runs:
            raise RunsError(
                f"two runs are called {name!r}: {runs[key]} and {folder}; name them: open_runs({{'a': ..., 'b': ...}})"
            )
        runs[key] = folder
    order = {arm: i for i, arm in enumerate(("none", "rfs"))} | {"rio": 99}
    return dict(sorted(runs.items(), key=lambda item: (order.get(item[0][0], 50), item[0])))


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("evaluation.json", "metrics.json", "instances_results.json"))


class Runs:
    """Finished runs, by arm and seed. Made by `open_runs`.

    Attributes:
        folders: (arm, seed) -> folder; seed is "" where the folder's name has none.
        evaluations: the same keys -> Evaluation.
    """

    def __init__(
        self, folders: dict[tuple[str, str], Path], ground_truth: str | None, training_set: str | None
    ) -> None:
        self.folders = folders
        self.evaluations = {key: Evaluation.from_json(folder / "evaluation.json") for key, folder in folders.items()}
        self._truth_name = ground_truth or self._named("TEST", required=True)
        self._train_name = training_set or self._named("TRAIN", required=False)
        first = next(iter(self.evaluations))
        ids = self.evaluations[first].per_category["category_id"].tolist()
        for key, evaluation in self.evaluations.items():
            if evaluation.per_category["category_id"].tolist() != ids:
                raise RunsError(
                    "runs evaluated on different categories cannot be compared: "
                    f"{folders[first]} has {len(ids)}, "
                    f"{folders[key]} has {len(evaluation.per_category)} or others; open them apart"
                )

    def _named(self, split: str, *, required: bool) -> str | None:
        """The one data set that all runs' configs name. Of several training sets it is the one of most runs:
        an arm trained on another one (a balanced set, say) is shown by the image counts of the rest."""
        names: dict[str, Path] = {}
        runs: Counter[str] = Counter()
        for folder in self.folders.values():
            file = folder / "config.yaml"
            try:
                config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise RunsError(f"{file}: expected the YAML a run writes, found {type(error).__name__}") from error
            sets = config.get("DATASETS") if isinstance(config, dict) else None
            for name in _listed(sets.get(split) if isinstance(sets, dict) else None)[:1]:
                names.setdefault(name, folder)
                runs[name] += 1
        if len(names) > 1 and required:
            text = "; ".join(f"{folder} has {name}" for name, folder in names.items())
            raise RunsError(f"runs evaluated on different data sets cannot be compared: {text}. Open them apart")
        if not names and required:
            raise RunsError(
                f"{next(iter(self.folders.values()))}: its config.yaml names no DATASETS.{split}; "
                "say which data set it was evaluated on: "
                "open_runs(..., ground_truth='path/to/val.json@path/to/images')"
            )
        return max(runs, key=runs.__getitem__, default=None)

    # ------------------------------------------------------------------------------------------ what there is

    @property
    def arms(self) -> list[str]:
        """Names of the arms, baseline first."""
        return list(dict.fromkeys(arm for arm, _ in self.folders))

    def title(self, arm: str) -> str:
        """An arm's name for readers, with the number of its seeds."""
        seeds = sum(a == arm for a, _ in self.folders)
        return NAMES.get(arm, arm) + (f", {seeds} seeds" if seeds > 1 else "")

    @property
    def iou_types(self) -> list[str]:
        """Kinds of AP that every run has: "bbox", "segm"."""
        return [t for t in ("bbox", "segm") if all(t in e.metrics for e in self.evaluations.values())]

    @cached_property
    def truth(self) -> Annotations:
        """The ground truth that the runs were evaluated on, with the training set's frequency groups."""
        truth = _data.open_dataset(self._truth_name, segmentations=True).annotations
        groups = next(iter(self.evaluations.values())).per_category
        if truth.category_ids.tolist() != groups["category_id"].tolist():
            raise RunsError(
                f"the runs were evaluated on {len(groups)} categories, "
                f"{self._truth_name} has {truth.num_classes} or others; "
                "name the data set they were evaluated on: open_runs(..., ground_truth=...)"
            )
        return truth

    @cached_property
    def _image_count(self) -> np.ndarray:
        """(K,) images a category has in the training set; in the ground truth where no training set is at
        hand."""
        table = next(iter(self.evaluations.values())).per_category
        if self._train_name is None:
            return table["image_count"].to_numpy()
        train = _data.open_dataset(self._train_name).table.set_index("category_id")["image_count"]
        return train.reindex(table["category_id"]).fillna(0).astype(int).to_numpy()

    # ------------------------------------------------------------------------------------------------ AP

    @_theme.sentences
    def by_group(self, iou_type: str = "bbox", *, reported: bool = True) -> pd.DataFrame:
        """AP of all, rare, common and frequent categories: one row an arm.

        Args:
            iou_type: "bbox" or "segm".
            reported: put the literature's numbers before, where the runs were evaluated on the same LVIS
                validation set.

        Returns:
            arm, AP, APr, APc, APf (mean over seeds) and, for arms of several seeds, METRIC_low and
            METRIC_high: the 95 % interval of the mean (Student's t) from three seeds on, lowest and highest
                of two. NaN where absent.
            `reported` marks the literature's.

        Raises:
            NotebookError: no run has this kind of AP.
        """
        self._check(iou_type)
        rows = []
        for arm in self.arms:
            values = pd.DataFrame([e.metrics[iou_type] for (a, _), e in self.evaluations.items() if a == arm])
            row: dict[str, object] = {"arm": self.title(arm), "seeds": len(values)}
            for metric in METRICS:
                column = values[metric].astype(float)
                row[metric] = column.mean()
                if len(self.folders) > len(self.arms):
                    row[f"{metric}_low"], row[f"{metric}_high"] = _interval(column.to_numpy())
            rows.append(row)
        table = pd.DataFrame(rows).assign(reported=False)
        others = self.reported(iou_type) if reported else pd.DataFrame()
        return table if others.empty else pd.concat([others, table], ignore_index=True)

    def reported(self, iou_type: str = "bbox") -> pd.DataFrame:
        """Published numbers of R-50 models on the same validation set, marked "(reported)"; empty for any
        other set."""
        name = next((n for n in ("lvis_v0.5_val", "lvis_v1_val") if n in str(self._truth_name)), None)
        rows = [
            {"arm": f"{method} (reported)", **dict(zip(METRICS, values, strict=True))}
            for dataset, kind, method, *values in _REPORTED
            if dataset == name and kind == iou_type
        ]
        return pd.DataFrame(rows, columns=["arm", *METRICS]).astype(dict.fromkeys(METRICS, float)).assign(reported=True)

    @_theme.sentences
    def per_category(self, iou_type: str = "bbox") -> pd.DataFrame:
        """AP of every category, mean over seeds: category_id, name, frequency, image_count (training), arm,
        AP."""
        self._check(iou_type)
        parts = []
        for arm in self.arms:
            own = [e.per_category for (a, _), e in self.evaluations.items() if a == arm]
            table = own[0][["category_id", "name", "frequency"]].assign(
                image_count=self._image_count, arm=self.title(arm)
            )
            parts.append(table.assign(AP=np.mean([t[f"AP_{iou_type}"].to_numpy(float) for t in own], axis=0)))
        return pd.concat(parts, ignore_index=True)

    @_theme.sentences
    def difference(self, arm: str | None = None, baseline: str | None = None, iou_type: str = "bbox") -> pd.DataFrame:
        """What one arm gains over another, category by category.

        Args:
            arm: folder name without the seed, such as "rio"; None: the last.
            baseline: the same; None: the one before the last (RFS, in the demo).
            iou_type: "bbox" or "segm".

        Returns:
            name, frequency, image_count, difference (percentage points; NaN where there is nothing to judge
            by); its `attrs` name the arms.

        Raises:
            NotebookError: fewer than two arms, or no arm of that name.
        """
        if len(self.arms) < 2:
            raise RunsError(
                f"a difference needs two arms, found one: {self.arms[0]}; finish another run, or add its folder"
            )
        arm, baseline = arm or self.arms[-1], baseline or self.arms[-2]
        for name in (arm, baseline):
            if name not in self.arms:
                raise RunsError(f"arm {name!r}: expected one of {', '.join(self.arms)}")
        wide = self.per_category(iou_type).pivot(index="category_id", columns="arm", values="AP")
        table = self.per_category(iou_type).drop_duplicates("category_id")[
            ["category_id", "name", "frequency", "image_count"]
        ]
        gain = (wide[self.title(arm)] - wide[self.title(baseline)]).reindex(table["category_id"]).to_numpy()
        table = table.assign(difference=gain).reset_index(drop=True)
        table.attrs.update(arm=NAMES.get(arm, arm), baseline=NAMES.get(baseline, baseline), kind=IOU_NAMES[iou_type])
        return table

    def _check(self, iou_type: str) -> None:
        if iou_type not in self.iou_types:
            raise RunsError(f"iou_type {iou_type!r}: every run has {' and '.join(self.iou_types) or 'none'}")

    # -------------------------------------------------------------------------------------------- predictions

    def _results(self, key: tuple[str, str]) -> object:
        return load_results(self.folders[key] / "instances_results.json", self.truth)

    @cached_property
    def _anew(self) -> dict[tuple[str, str], Evaluation]:
        """Every run evaluated again from its results file: this has the precision-recall arrays."""
        kinds = self.iou_types
        return {
            key: evaluate(self.truth, self._results(key), iou_types=kinds, allow_empty=True) for key in self.folders
        }

    @_theme.sentences
    def recomputed(self) -> pd.DataFrame:
        """AP in evaluation.json against AP evaluated anew from instances_results.json, run by run and kind by
        kind."""
        rows = [
            {
                "run": folder.name,
                "kind": IOU_NAMES[kind],
                "stored": self.evaluations[key].metrics[kind]["AP"],
                "recomputed": self._anew[key].metrics[kind]["AP"],
            }
            for key, folder in self.folders.items()
            for kind in self.iou_types
        ]
        return pd.DataFrame(rows)

    @_theme.sentences
    def errors(self, *, score_threshold: float = 0.05) -> pd.DataFrame:
        """What became of the objects of each frequency group, and of which kind the wrong predictions are.

        Objects count once, under the best that happened to them: `correct`; `classification`, a box that fits
        with another class; `localisation`, the class with a box that is off; `missed`. Wrong predictions
        count under the group of the predicted category; those of categories that are not verified in their
        image are left out, as LVIS leaves them out.

        Args:
            score_threshold: lowest score of a prediction that counts, 0..1.

        Returns:
            arm, frequency, part ("objects" or "predictions"), kind, count (mean over seeds), objects (of the
            group),
            per_100: count for 100 objects of the group.
        """
        truth = self.truth
        groups = truth.frequency[truth.annotation_class]
        used = JudgedPairs.of(truth).ground_truth
        objects = pd.Series(groups[used]).value_counts().reindex(list(plots.GROUPS), fill_value=0)
        parts = []
        for key in self.folders:
            rows = find_errors(truth, self._results(key), score_threshold=score_threshold)
            outcome = np.where(used, "missed", "").astype("<U14")
            for kind in ("localisation", "classification", "correct"):  # the best comes last and stays
                outcome[rows.loc[rows["kind"] == kind, "annotation_index"]] = kind
            wrong = rows[rows["kind"].isin(_WRONG)]
            tables = {
                "objects": pd.DataFrame({"frequency": groups[used], "kind": outcome[used]}),
                "predictions": wrong[["frequency", "kind"]].astype(str),
            }
            for part, table in tables.items():
                kinds = OUTCOMES if part == "objects" else _WRONG
                index = pd.MultiIndex.from_product([plots.GROUPS, kinds], names=["frequency", "kind"])
                counts = (
                    table.groupby(["frequency", "kind"]).size().reindex(index, fill_value=0).reset_index(name="count")
                )
                parts.append(counts.assign(arm=self.title(key[0]), part=part))
        table = pd.concat(parts).groupby(["arm", "frequency", "part", "kind"], sort=False)["count"].mean().reset_index()
        table["objects"] = table["frequency"].map(objects).astype(int)
        table = table[table["objects"] > 0]
        return table.assign(per_100=100 * table["count"] / table["objects"]).reset_index(drop=True)

    @_theme.sentences
    def curves(self, category: str | None = None, *, iou_type: str = "bbox") -> ipywidgets.VBox:
        """Precision against recall of a category at IoU 0.5, all arms; the category can be chosen.

        Args:
            category: name of the first one; None: the rarest that has objects to be found.
            iou_type: "bbox" or "segm".

        Raises:
            NotebookError: no such category, or results of another data set.
        """
        self._check(iou_type)
        return _Curves(self, category, iou_type).view

    # -------------------------------------------------------------------------------------------- for a paper

    def _cells(self, iou_type: str, plus_minus: str) -> list[list[str]]:
        table = self.by_group.__wrapped__(self, iou_type)
        rows = []
        for _, row in table.iterrows():
            cells = [str(row["arm"])]
            for metric in METRICS:
                text = "–" if pd.isna(row[metric]) else f"{row[metric]:.1f}"
                if f"{metric}_low" in table.columns and not pd.isna(row[f"{metric}_low"]):
                    text += f"{plus_minus}{(row[f'{metric}_high'] - row[f'{metric}_low']) / 2:.1f}"
                cells.append(text)
            rows.append(cells)
        return rows

    @_theme.sentences
    def markdown(self, iou_type: str = "bbox") -> str:
        """The table of `by_group` in Markdown."""
        self._check(iou_type)
        return _markdown_table(IOU_NAMES[iou_type], self._cells(iou_type, " ± "))

    @_theme.sentences
    def latex(self, iou_type: str = "bbox") -> str:
        """The table of `by_group` in LaTeX (needs booktabs)."""
        self._check(iou_type)
        return _latex_table(IOU_NAMES[iou_type], self._cells(iou_type, " $\\pm$ "))

    @_theme.sentences
    def copy_table(self) -> Copy:
        """The tables in Markdown and LaTeX, each with a button that copies it."""
        texts = {}
        for kind in self.iou_types:
            texts[f"Markdown, {IOU_NAMES[kind]}"], texts[f"LaTeX, {IOU_NAMES[kind]}"] = (
                self.markdown(kind),
                self.latex(kind),
            )
        return Copy(texts=texts)

    def _repr_html_(self) -> str:
        rows = []
        for (arm, seed), folder in self.folders.items():
            metrics = self.evaluations[arm, seed].metrics
            numbers = [
                "–" if pd.isna(metrics[t][m]) else f"{metrics[t][m]:.1f}" for t in self.iou_types for m in METRICS
            ]
            rows.append([NAMES.get(arm, arm), seed or "–", *numbers, str(folder)])
        columns = [
            "arm",
            "seed",
            *(f"{IOU_NAMES[t]}" if m == "AP" else m for t in self.iou_types for m in METRICS),
            "folder",
        ]
        note = ""
        if str(self._truth_name).startswith("shapes_"):
            note = "Evaluated on the embedded, synthetic set: what is seen here holds for it, and for no other."
        elif self.reported(self.iou_types[0] if self.iou_types else "bbox").empty:
            note = "No published numbers are at hand for this data set; none are shown."
        return _theme.html_table(columns, rows, caption=f"{len(rows)} finished runs on {self._truth_name}") + (
            f'<div class="rio-view rio-quiet">{html.escape(note)}</div>' if note else ""
        )

    def __repr__(self) -> str:
        return f"Runs({', '.join(f.name for f in self.folders.values())} on {self._truth_name})"


def _listed(value: object) -> list[str]:
    """DATASETS.TRAIN as YAML may hold it: a list, a name, or a tuple that was dumped as text."""
    if isinstance(value, str):
        return re.findall(r"['\"]([^'\"]+)['\"]", value) if value.startswith("(") else [value]
    return [str(v) for v in value] if isinstance(value, (list, tuple)) else []


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean from three values on; lowest and highest of two; NaN of one."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float("nan"), float("nan")
    if len(values) == 2:
        return float(values.min()), float(values.max())
    half = student_t(len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _markdown_table(title: str, rows: list[list[str]]) -> str:
    """A table of the four metrics. rows: name, AP, APr, APc, APf."""
    lines = [f"| {title} | AP | APr | APc | APf |", "|:--|--:|--:|--:|--:|"]
    lines += ["| " + " | ".join([row[0].replace("|", "\\|"), *row[1:]]) + " |" for row in rows]
    return "\n".join(lines)


def _latex_table(title: str, rows: list[list[str]]) -> str:
    """The same in LaTeX (booktabs); cells but the first are LaTeX already."""
    lines = [r"\begin{tabular}{lrrrr}", r"  \toprule", f"  {title} & AP & AP$_r$ & AP$_c$ & AP$_f$ \\\\", r"  \midrule"]
    for row in rows:
        cells = [_escape_latex(row[0]), *(cell.replace("–", "--") for cell in row[1:])]
        lines.append("  " + " & ".join(cells) + r" \\")
    return "\n".join([*lines, r"  \bottomrule", r"\end{tabular}"])


def _escape_latex(text: str) -> str:
    return re.sub(
        r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash ").replace("~", r"\textasciitilde ")
    ).replace("−", "$-$")


# ---------------------------------------------------------------------------------------------------- studies


@_theme.sentences
def open_study(path: str | os.PathLike[str] | None) -> Study:
    """Open what a study has measured; the folders of its runs are not needed.

    Args:
        path: study.json, the folder it is in, or a committed result such as
            "configs/studies/results/factors.json"; None: no study, and every view of it says so.

    Raises:
        NotebookError: no such file, or not a study's result.
    """
    if path is None:
        return Study(None)
    file = names.find(path)
    return Study(StudyResult.from_json(file / "study.json" if file.is_dir() else file))


class Study:
    """A study's result: what its arms reach, and what each gains over another. Made by `open_study`.

    Attributes:
        result: the raw values; None: no study was named.
    """

    def __init__(self, result: StudyResult | None) -> None:
        self.result = result

    @property
    def _nothing(self) -> Note | None:
        """Why there is nothing to show, if there is nothing."""
        if self.result is None:
            return Note("No study was named: open_study(None).")
        if not self.result.runs:
            return Note(f"Study {self.result.name}: no run is finished yet.")
        return None

    @property
    def iou_types(self) -> list[str]:
        """Kinds of AP that the finished runs have: "bbox", "segm"."""
        runs = self.result.runs if self.result else []
        return [kind for kind in IOU_NAMES if any(kind in run.metrics for run in runs)]

    # ------------------------------------------------------------------------------------------- numbers

    @_theme.sentences
    def table(self, iou_type: str = "bbox") -> Table | Note:
        """AP of every arm with a finished run: `rio.study.StudyResult.table` of one kind of AP.

        Raises:
            NotebookError: the study has no AP of this kind.
        """
        if self._nothing:
            return self._nothing
        rows = self._arms(iou_type)
        note = "Percent; mean over seeds ± half the distance between the highest and the lowest seed"
        return self._shown(rows, _arm_cells(rows), f"{self._on(iou_type)}. {note}")

    @_theme.sentences
    def comparisons(self, iou_type: str = "bbox", pairs: Sequence[tuple[str, str]] | None = None) -> Table | Note:
        """What arms gain over others: `rio.study.StudyResult.comparisons` of one kind of AP.

        Args:
            iou_type: "bbox" or "segm".
            pairs: (arm, baseline) of each comparison; None: those that the study names.

        Raises:
            NotebookError: the study has no AP of this kind, or no such arm.
        """
        if self._nothing:
            return self._nothing
        rows = self._differences(iou_type, pairs)
        note = "Points and 95 % interval; ● resolved, ○ not resolved"
        return self._shown(rows, _difference_cells(rows, _plain), f"{self._on(iou_type)}. {note}")

    @_theme.sentences
    def findings(self, iou_type: str = "bbox", pairs: Sequence[tuple[str, str]] | None = None) -> Findings | Note:
        """What the comparisons say, in sentences made from their numbers.

        Args:
            iou_type: "bbox" or "segm".
            pairs: as for `comparisons`.

        Raises:
            NotebookError: as for `comparisons`.
        """
        if self._nothing:
            return self._nothing
        return Findings(self._on(iou_type), self._differences(iou_type, pairs))

    def _arms(self, iou_type: str) -> pd.DataFrame:
        self._check(iou_type)
        table = self.result.table()
        return table[table["iou_type"] == iou_type].reset_index(drop=True)

    def _differences(self, iou_type: str, pairs: Sequence[tuple[str, str]] | None = None) -> pd.DataFrame:
        self._check(iou_type)
        result = self.result
        if pairs is not None:
            for arm in (arm for pair in pairs for arm in pair):
                if arm not in result.arms:
                    raise RunsError(f"arm {arm!r}: expected one of {', '.join(result.arms)}")
            result = result.with_pairs(pairs)
        table = result.comparisons()
        return table[table["iou_type"] == iou_type].reset_index(drop=True)

    def _check(self, iou_type: str) -> None:
        if iou_type not in self.iou_types:
            raise RunsError(f"iou_type {iou_type!r}: the study has {' and '.join(self.iou_types)}")

    def _on(self, iou_type: str) -> str:
        """What a number is of, such as "box AP on shapes_demo_val, 27 of 27 runs"."""
        result = self.result
        tuning = " (for choosing settings, no result)" if result.role == "tune" else ""
        return f"{IOU_NAMES[iou_type]} on {', '.join(result.evaluated_on)}{tuning}, {result.progress}"

    def _shown(self, table: pd.DataFrame, cells: list[list[str]], caption: str) -> Table:
        shown = Table(table)
        shown.shown = _theme.html_table(["", *METRICS], cells, caption=caption)
        return shown

    # ------------------------------------------------------------------------------------------- figures

    @_theme.sentences
    def figures(self, iou_type: str = "bbox", pairs: Sequence[tuple[str, str]] | None = None) -> None:
        """Draw AP of the arms, seed by seed, and the comparisons with their intervals.

        Args:
            iou_type: "bbox" or "segm".
            pairs: as for `comparisons`.

        Raises:
            NotebookError: as for `comparisons`.
        """
        if self._nothing:
            display(self._nothing)
            return
        runs, differences = self.result.per_run(), self._differences(iou_type, pairs)
        name = IOU_NAMES[iou_type] + (" (tuning)" if self.result.role == "tune" else "")
        plots.arm_ap(runs[runs["iou_type"] == iou_type], label=f"{name}, %")
        if len(differences):
            plots.paired_differences(differences, label=f"{name}, difference in points")

    # --------------------------------------------------------------------------------------- for a paper

    @_theme.sentences
    def copy_table(self) -> Copy | Note:
        """AP and differences in Markdown and LaTeX, each with a button that copies it."""
        if self._nothing:
            return self._nothing
        texts = {}
        for kind in self.iou_types:
            name, points = IOU_NAMES[kind], f"{IOU_NAMES[kind]}, points"
            arms, rows = _arm_cells(self._arms(kind)), self._differences(kind)
            how = (
                f"{self._on(kind)}: mean ± half the distance between the highest and the lowest seed; "
                "difference and 95 % interval over categories (paired bootstrap), bold where resolved."
            )
            tables = _markdown_table(name, arms), _markdown_table(points, _difference_cells(rows, _bold))
            texts[f"Markdown, {name}"] = "\n\n".join([*tables, how])
            arms = [[arm, *(cell.replace("±", r"$\pm$") for cell in cells)] for arm, *cells in arms]
            tables = _latex_table(name, arms), _latex_table(points, _difference_cells(rows, _math))
            texts[f"LaTeX, {name}"] = "\n".join([f"% {how}", *tables])
        return Copy(texts=texts)

    def _repr_html_(self) -> str:
        if self._nothing:
            return self._nothing._repr_html_()
        result = self.result
        tables = {kind: _arm_cells(self._arms(kind)) for kind in self.iou_types}
        arms = list(dict.fromkeys(row[0] for rows in tables.values() for row in rows))
        none = ["–"] * len(METRICS)
        cells = {kind: {arm: cells for arm, *cells in rows} for kind, rows in tables.items()}
        rows = [[arm, *(c for kind in tables for c in cells[kind].get(arm, none))] for arm in arms]
        columns = ["arm", *(IOU_NAMES[kind] if m == "AP" else m for kind in tables for m in METRICS)]
        facts = [
            f"trained on {', '.join(result.trained_on)}",
            "mean over seeds ± half the distance between the highest and the lowest",
            *(f for f in (result.command, result.machine, result.date) if f),
        ]
        if result.role == "tune":
            facts.insert(0, "for choosing settings, no result")
        if all(name.startswith("shapes_") for name in result.evaluated_on):
            facts.append("the embedded, synthetic set: what is seen here holds for it, and for no other")
        caption = f"Study {result.name}: {result.progress}, on {', '.join(result.evaluated_on)}"
        quiet = f'<div class="rio-view rio-quiet">{html.escape(" · ".join(facts))}</div>'
        return _theme.html_table(columns, rows, caption=caption) + quiet

    def __repr__(self) -> str:
        return f"Study({self.result.name}, {self.result.progress})" if self.result else "Study(None)"


class Note:
    """One sentence in place of a view that has nothing to show."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        return _theme.notice(self.text)

    def __repr__(self) -> str:
        return self.text


class Table(pd.DataFrame):
    """A DataFrame that shows itself as readers need it; whatever is computed from it is an ordinary one."""

    _metadata = ["shown"]

    def _repr_html_(self) -> str:
        return self.shown


class Findings:
    """A study's comparisons in sentences.

    Attributes:
        of: what the numbers are of.
        sentences: about all categories, then about each frequency group.
    """

    def __init__(self, of: str, comparisons: pd.DataFrame) -> None:
        names = {"AP": "All", **{f"AP{g}": name.capitalize() for g, name in plots.GROUP_NAMES.items()}}
        self.of = of
        self.sentences = [
            _finding(f"{names[metric]} categories", comparisons[comparisons["metric"] == metric]) for metric in METRICS
        ]

    def _repr_html_(self) -> str:
        parts = (sentence.partition(". ") for sentence in self.sentences)
        lines = "".join(f"<p><b>{html.escape(of)}.</b> {html.escape(text)}</p>" for of, _, text in parts)
        head = f'<p class="rio-quiet">{html.escape(self.of)}</p>'
        return f'<div class="rio-view"><style>{_theme.STYLE}</style>{head}{lines}</div>'

    def __repr__(self) -> str:
        return "\n".join([self.of, *self.sentences])


def _finding(categories: str, rows: pd.DataFrame) -> str:
    """Gains and losses with their intervals, largest first, and what is not resolved: of one metric."""
    rows = rows.dropna(subset="difference").sort_values("difference", ascending=False, kind="stable")
    if not len(rows):
        return f"{categories}. Nothing to compare."
    names = [f"{row.arm} over {row.baseline}" for row in rows.itertuples()]
    signed = [f"{name} {format_difference(row)}" for name, row in zip(names, rows.itertuples(), strict=True)]
    resolved, gain = rows["resolved"].astype(bool), rows["difference"] > 0
    parts = {
        "Resolved gains": list(compress(signed, resolved & gain)),
        "Resolved losses": list(compress(signed, resolved & ~gain))[::-1],
        "Not resolved": list(compress(names, ~resolved)),
    }
    said = (f"{verdict}: {'; '.join(own) or 'none'}." for verdict, own in parts.items())
    return " ".join([f"{categories}.", *said])


def _arm_cells(table: pd.DataFrame) -> list[list[str]]:
    """One row an arm of `StudyResult.table`: its name, and AP, APr, APc, APf with their spread."""
    rows = []
    for _, row in table.iterrows():
        spreads = ["" if pd.isna(row[f"{m}_spread"]) else f" ± {row[f'{m}_spread']:.1f}" for m in METRICS]
        values = ["–" if pd.isna(row[m]) else f"{row[m]:.1f}" for m in METRICS]
        rows.append([row["arm"], *(value + spread for value, spread in zip(values, spreads, strict=True))])
    return rows


def _difference_cells(table: pd.DataFrame, cell: Callable[[Any], str]) -> list[list[str]]:
    """One row a comparison of `StudyResult.comparisons`: its name, and a cell for AP, APr, APc and APf."""
    rows = []
    for (arm, baseline), own in table.groupby(["arm", "baseline"], sort=False):
        by_metric = {row.metric: row for row in own.itertuples()}
        cells = ["–" if pd.isna(by_metric[m].difference) else cell(by_metric[m]) for m in METRICS]
        rows.append([f"{arm} − {baseline}", *cells])
    return rows


def _plain(row: Any) -> str:
    return f"{format_difference(row)} {'●' if row.resolved else '○'}"


def _bold(row: Any) -> str:
    return format_difference(row, bold=True)


def _math(row: Any) -> str:
    difference = rf"\mathbf{{{row.difference:+.1f}}}" if row.resolved else f"{row.difference:+.1f}"
    return f"${difference}$" + ("" if pd.isna(row.low) else f" [${row.low:+.1f}$, ${row.high:+.1f}$]")


# ------------------------------------------------------------------------------------------------------ views


class _Curves:
    """Precision-recall curves with a choice of category."""

    def __init__(self, runs: Runs, category: str | None, iou_type: str) -> None:
        self._runs, self._kind, truth = runs, iou_type, runs.truth
        runs._anew  # noqa: B018  faults of the results files come up here
        judged = np.flatnonzero(truth.instance_count > 0)
        order = judged[np.argsort(runs._image_count[judged], kind="stable")]
        names = [truth.category_names[k] for k in order.tolist()]
        if category is not None and category not in names:
            raise RunsError(f"category {category!r}: the ground truth has no object of a category of that name")
        options = [
            (f"{name}   ({plots.GROUP_NAMES[truth.frequency[k]]}, {runs._image_count[k]:,} training images)", int(k))
            for name, k in zip(names, order.tolist(), strict=True)
        ]
        value = int(order[names.index(category)] if category is not None else order[0])
        self.choice = ipywidgets.Dropdown(
            options=options, value=value, description="category", layout=ipywidgets.Layout(width="520px")
        )
        self.chart, self.status = Lines(), ipywidgets.HTML()
        self.choice.observe(self._update, "value")
        self.view = ipywidgets.VBox([self.choice, self.chart, self.status], layout=ipywidgets.Layout(max_width="860px"))
        self._update()

    def _update(self, _change: object = None) -> None:
        runs, k = self._runs, int(self.choice.value)
        category_id = int(runs.truth.category_ids[k])
        series, said = [], []
        kind = self._kind
        recall = np.linspace(0, 1, 101).tolist()
        for i, arm in enumerate(runs.arms):
            own = [e for (a, _), e in runs._anew.items() if a == arm]
            curve = np.mean(
                [e.precision_recall(category_id, iou_type=kind)["precision"].to_numpy() for e in own], axis=0
            )
            ap = np.mean([e.per_category[f"AP_{kind}"][k] for e in own])
            color = "var(--ink)" if i == len(runs.arms) - 1 else ("#44AA99", "#AA4499", "#88CCEE", "#999933")[i % 4]
            y = [None if np.isnan(v) else round(float(v), 4) for v in curve]
            series.append({"name": runs.title(arm), "kind": "line", "color": color, "x": recall, "y": y, "width": 2.2})
            said.append(f"{runs.title(arm)} {ap:.1f}")
        n = int(runs.truth.instance_count[k])
        self.chart.spec = {
            "height": 280,
            "x": {"domain": [0, 1], "label": "recall"},
            "y": {"domain": [0, 1.02], "label": "precision, IoU 0.5"},
            "series": series,
            "names": [f"recall {r:.2f}" for r in recall],
        }
        objects = f"{n:,} object{'s' if n != 1 else ''} to be found"
        text = f"{objects}. {IOU_NAMES[kind]} over all IoU thresholds: {', '.join(said)}."
        self.status.value = f'<div class="rio-view rio-status"><style>{_theme.STYLE}</style>{html.escape(text)}</div>'


class Copy(anywidget.AnyWidget):
    """Texts under tabs, each with a button that copies it."""

    _esm = (_theme.FOLDER / "chart.js").read_text("utf-8") + (_theme.FOLDER / "copy.js").read_text("utf-8")
    _css = _theme.STYLE
    texts = traitlets.Dict().tag(sync=True)
