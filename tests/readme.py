"""The tables of README.md and configs/README.md, made from the files that hold the numbers.

    python -m tests.readme      # rewrites what stands between <!-- NAME --> and <!-- /NAME -->

`tests/test_readme.py` fails where the README shows other numbers.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from rio.results.evaluation import METRICS
from rio.study.result import StudyResult, format_difference

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
CONFIGS_README = ROOT / "configs" / "README.md"
RESULTS = ROOT / "configs" / "studies" / "results"
BENCHMARKS = ROOT / "tests" / "benchmarks" / "RESULTS.json"

BENCHMARK_ROWS = (  # how the row begins in RESULTS.json
    "0.94 GB JSON -> columns",
    "0.94 GB JSON -> training batches, RFS, 4 workers, cold",
    "evaluation, 5,000 images x 300 boxes",
    "memory bank: box branch with replay",
    "9,375 steps of 16 images",
)
BANK_SETTINGS = {
    "replay20": "20 rows a class",
    "absent4": "4 absent classes too",
    "perobject1": "one stored row per object and step",
    "replay1": "1 row a class",
    "cap": "at most 0.02 rows per foreground RoI",
    "random": "random slots",
    "slots200": "200 slots instead of 60",
}
METHOD = ("sampler", "memory_bank", "classifier", "roi_heads", "config", "trainer")
"""The six files at the top of rio/ that hold the method."""


def count(path: Path) -> int:
    """Lines of a Python file, or of all Python files below a folder."""
    files = [path] if path.is_file() else path.rglob("*.py")
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def about(path: Path) -> str:
    """First sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0].rstrip(".").replace("``", "`")


def method() -> str:
    rows = [[f"[`{name}.py`](rio/{name}.py)", count(file), about(file)]
            for name in METHOD for file in [ROOT / "rio" / f"{name}.py"]]  # fmt: skip
    return tabulate(rows, ["file", "lines", ""], tablefmt="github")


def rooms() -> str:
    """Every folder below rio/, then the whole."""
    folders = sorted(file.parent for file in (ROOT / "rio").glob("*/__init__.py"))
    rows = [[f"`rio/{folder.name}/`", count(folder), about(folder / "__init__.py")] for folder in folders]
    rows.append(["`rio/`", count(ROOT / "rio"), "all of it"])
    rows.append(["`tests/`", count(ROOT / "tests"), "mirror the rooms; `make bench` measures against the peers"])
    return tabulate(rows, ["", "lines", ""], tablefmt="github")


def by_arm(study: str) -> pd.DataFrame:
    """A committed study's box AP: mean over seeds, METRIC_spread half the range; by arm, "_" for "+" and "-"."""
    table = StudyResult.from_json(RESULTS / f"{study}.json").table()
    table = table[table["iou_type"] == "bbox"]
    return table.set_index(table["arm"].str.replace("[-+]", "_", regex=True))


def kendall(one: pd.Series, other: pd.Series) -> float:
    """Kendall's tau of two rankings of the same arms: concordant pairs less discordant ones, by all."""
    pairs = list(itertools.combinations(one.index, 2))
    return sum(np.sign((one[a] - one[b]) * (other[a] - other[b])) for a, b in pairs) / len(pairs)


def length() -> str:
    """The eight arms fully trained, short and long, and on frozen features: AP (APr)."""
    studies = {"6 epochs": "factors", "24 epochs": "length", "on features, 24 epochs": "length_features"}
    tables = {title: by_arm(study) for title, study in studies.items()}
    full, features = tables["24 epochs"], tables["on features, 24 epochs"]
    rows = [[f"`{arm}`", *(f"{t.at[arm, 'AP']:.1f} ({t.at[arm, 'APr']:.1f})" for t in tables.values())]
            for arm in full.index]  # fmt: skip
    taus = " and ".join(f"{kendall(full[m], features.loc[full.index, m]):.2f} for {m}" for m in ("AP", "APr"))
    text = tabulate(rows, ["", *tables], tablefmt="github", colalign=["left", *["right"] * 3])
    range_ = f"{np.ptp(features['AP']):.1f}"
    return f"{text}\n\nKendall's tau between the last two columns: {taus}; on features all arms lie within {range_} AP."


def classifiers() -> str:
    """The eight arms on frozen features: box AP, mean over detectors ± half the range."""
    table, metrics = by_arm("classifiers").head(8), [m for m in METRICS if m in ("AP", "APr", "APc", "APf")]
    rows = [[f"`{row['arm']}`", *(f"{row[m]:.1f} ±{row[f'{m}_spread']:.1f}" for m in metrics)]
            for _, row in table.iterrows()]  # fmt: skip
    return tabulate(rows, ["", *metrics], tablefmt="github", colalign=["left", *["right"] * 4])


def league() -> str:
    """Every loss without resampling and with RFS: box AP (APr), mean over detectors; the best with RFS first."""
    table = StudyResult.from_json(RESULTS / "losses.json").table()
    table = table[table["iou_type"] == "bbox"].set_index("arm")
    names = sorted({arm.rpartition("-")[0] for arm in table.index}, key=lambda name: -table.at[f"{name}-rfs", "AP"])
    cells = table.apply(lambda row: f"{row['AP']:.1f} ({row['APr']:.1f})", axis=1)
    rows = [[f"`{name}`", cells[f"{name}-none"], cells[f"{name}-rfs"]] for name in names]
    return tabulate(rows, ["", "no resampling", "RFS"], tablefmt="github", colalign=["left", "right", "right"])


def findings() -> str:
    """What the classifiers' study says, with its own numbers: points of APr and 95 % intervals."""
    tuned = StudyResult.from_json(RESULTS / "losses.json").with_pairs([("softmax-rfs", "softmax-none")])
    studies = [StudyResult.from_json(RESULTS / f"classifiers{kind}.json") for kind in ("", "_short")]
    rows = pd.concat([study.comparisons() for study in (*studies, tuned)])
    rows = rows[(rows["iou_type"] == "bbox") & (rows["metric"] == "APr")].set_index(["arm", "baseline"])

    def gain(arm: str, baseline: str) -> str:
        row = rows.loc[(arm, baseline)]
        return f"{format_difference(row)} ({'resolved' if row.resolved else 'not resolved'})"

    bank = {what: gain(f"bank_{what}-linear", "bank-linear") for what in BANK_SETTINGS}
    settings = "; ".join(f"{name} {bank[what]}" for what, name in BANK_SETTINGS.items())
    return f"""In points of APr:

- **RFS brings most with a linear classifier**, {gain("rfs-linear", "none-linear")}; the bank alone
  {gain("bank-linear", "none-linear")}, the cosine classifier alone {gain("none-cosine", "none-linear")}.
- **A larger learning rate does about half of that**: with 0.3, which the tuning split prefers to the 0.1 of these
  arms, RFS brings {gain("softmax-rfs", "softmax-none")}.
- **Beside RFS nothing is left for the bank once training is long enough**: {gain("rfs+bank-linear", "rfs-linear")} with
  a linear classifier, {gain("rfs+bank-cosine", "rfs-cosine")} with a cosine one. On shorter schedules it gains, linear:
  {gain("rfs+bank-linear-4", "rfs-linear-4")} in 4 epochs, {gain("rfs+bank-linear-12", "rfs-linear-12")} in 12.
- **Without RFS, more replay is better**, against 4 rows a class, newest first: {settings}."""


def benchmarks() -> str:
    """Four rows of RESULTS.json: ratios against the peer, and our own figures."""
    rows = []
    measured = [row for result in json.loads(BENCHMARKS.read_text(encoding="utf-8")).values() for row in result["rows"]]
    for start in BENCHMARK_ROWS:
        row = next(row for row in measured if row["what"].startswith(start))
        numbers = [row["cpu_ratio"], row["memory_ratio"], row["ours_cpu_s"], row["ours_peak_gib"]]
        rows.append([row["what"], row["peer"], *(f"{number:.3g}" if number else "" for number in numbers)])
    titles = ["", "against", "x less CPU", "x less memory", "CPU s", "peak GiB"]
    return tabulate(rows, titles, tablefmt="github", disable_numparse=True)


def losses() -> str:
    """What the headers of the configs with another loss than softmax say: the method, and what is published."""
    rows = []
    for path in sorted(
        (ROOT / "configs").glob("lvis_*/*_r50.yaml"), key=lambda path: (path.parent.name == "lvis_v0.5", path.name)
    ):
        lines = path.read_text(encoding="utf-8").splitlines()
        if not any("CLS_LOSS" in line for line in lines):
            continue
        header = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
        what = re.search(r"R-50-FPN; (.*?)\. python -m", header)[1]
        published = re.search(r" val: (.*)\. By this project", header)[1]
        rows.append([f"`{path.parent.name}/{path.name}`", what, published])
    return tabulate(rows, ["", "", "published"], tablefmt="github")


BLOCKS = {
    "method": method,
    "rooms": rooms,
    "length": length,
    "classifiers": classifiers,
    "findings": findings,
    "benchmarks": benchmarks,
    "losses": losses,
    "league": league,
}


def written(text: str) -> str:
    """The README's text with every block that it has marks for made anew."""
    for name, block in BLOCKS.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(rf"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        made = f"{begin}\n{block()}\n{end}".replace("\\", r"\\")
        text = pattern.sub(made, text)
    return text


if __name__ == "__main__":
    for file in (README, CONFIGS_README):
        file.write_text(written(file.read_text(encoding="utf-8")), encoding="utf-8")
