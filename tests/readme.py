"""The tables of README.md, configs/README.md and configs/studies/README.md, made from the files that hold the numbers.

    python -m tests.readme            # rewrites what stands between <!-- NAME --> and <!-- /NAME -->
    python -m tests.readme league     # draws the league's picture

`tests/test_readme.py` fails where the README shows other numbers.
"""

import ast
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from rio.results.evaluation import METRICS
from rio.study.result import Category, StudyResult, format_difference

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
STUDIES = ROOT / "configs" / "studies"
READMES = (README, ROOT / "configs" / "README.md", STUDIES / "README.md")
RESULTS = STUDIES / "results"
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


def _table(head: list[str], cells: list[list[str]]) -> str:
    aligned = ["left", *["right"] * (len(head) - 1)]
    return tabulate(cells, head, "github", disable_numparse=True, colalign=aligned)


def _box(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Comparisons of box AP, or of one group's, by arm and baseline."""
    return rows[(rows["iou_type"] == "bbox") & (rows["metric"] == metric)].set_index(["arm", "baseline"])


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
    """A committed study's `box_ap`."""
    return box_ap(StudyResult.from_json(RESULTS / f"{study}.json"))


def box_ap(result: StudyResult) -> pd.DataFrame:
    """Box AP: mean over seeds, METRIC_spread half the range; by arm, "_" for "+" and "-"."""
    table = result.table()
    table = table[table["iou_type"] == "bbox"]
    return table.set_index(table["arm"].str.replace("[-+]", "_", regex=True))


def kendall(one: pd.Series, other: pd.Series) -> float:
    """Kendall's tau of two rankings of the same arms: concordant pairs less discordant ones, by all."""
    pairs = list(itertools.combinations(one.index, 2))
    return sum(np.sign((one[a] - one[b]) * (other[a] - other[b])) for a, b in pairs) / len(pairs)


def length() -> str:
    """The eight arms fully trained, short and long, and on frozen features: AP (APr)."""
    studies = {"6 epochs": "factors", "24 epochs": "length", "on features, 24 epochs": "length_features"}
    return side_by_side({title: by_arm(study) for title, study in studies.items()})


def side_by_side(tables: dict[str, pd.DataFrame]) -> str:
    """AP (APr) of the same arms, a column a table; of the last two, whole and on features, Kendall's tau."""
    full, features = list(tables.values())[-2:]
    rows = [[f"`{arm}`", *(f"{t.at[arm, 'AP']:.1f} ({t.at[arm, 'APr']:.1f})" for t in tables.values())]
            for arm in full.index]  # fmt: skip
    taus = " and ".join(f"{kendall(full[m], features.loc[full.index, m]):.2f} for {m}" for m in ("AP", "APr"))
    text = _table(["", *tables], rows)
    range_ = f"{np.ptp(features['AP']):.1f}"
    return f"{text}\n\nKendall's tau between the last two columns: {taus}; on features all arms lie within {range_} AP."


def classifiers() -> str:
    """The eight arms on frozen features: box AP, mean over detectors ± half the range."""
    table, metrics = by_arm("classifiers").head(8), [m for m in METRICS if m in ("AP", "APr", "APc", "APf")]
    rows = [[f"`{row['arm']}`", *(f"{row[m]:.1f} ±{row[f'{m}_spread']:.1f}" for m in metrics)]
            for _, row in table.iterrows()]  # fmt: skip
    return _table(["", *metrics], rows)


LEAGUE = {
    "none-linear": "no resampling",
    "bank-linear": "bank",
    "rfs-linear": "RFS",
    "none-cosine": "cosine",
    "rfs-cosine": "RFS, cosine",
}
"""Settings of the league's arms (LOSS-SETTING), and how its table names them."""


def league_cells(kind: str = "bbox") -> pd.DataFrame:
    """The league: a row a loss (a calibration: softmax+METHOD), a column a setting, "AP (APr)" where measured."""
    table = StudyResult.from_json(RESULTS / "league.json").table()
    table = table[table["iou_type"] == kind]
    cells = table.apply(lambda row: f"{row['AP']:.1f} ({row['APr']:.1f})", axis=1)
    names = table["arm"].str.split("-", n=1)
    return pd.DataFrame({"loss": names.str[0], "setting": names.str[1], "cell": cells}).pivot(
        index="loss", columns="setting", values="cell"
    )


def league() -> str:
    """Every loss in every setting that was measured: box AP (APr), mean over detectors; the best with RFS first."""
    cells, fixed = league_cells(), league_cells("bbox_lvis_fixed")
    losses = cells[~cells.index.str.contains("+", regex=False)].sort_values("rfs-linear", ascending=False)
    shown = [setting for setting in LEAGUE if setting in cells]
    rows = [[f"`{loss}`", *own[shown].fillna(""), fixed.at[loss, "rfs-linear"]] for loss, own in losses.iterrows()]
    head = ["", *(LEAGUE[setting] for setting in shown), "RFS, AP-fixed"]
    return _table(head, rows)


def calibration() -> str:
    """Softmax without and with each calibration: box AP (APr), and AP-fixed (APr)."""
    result = StudyResult.from_json(RESULTS / "league.json")
    cells, fixed = league_cells(), league_cells("bbox_lvis_fixed")
    rows = []
    for name in ["softmax", *(name for name in cells.index if name.startswith("softmax+"))]:
        own = {setting: result.arms[f"{name}-{setting}"] for setting in ("none-linear", "rfs-linear")}
        strengths = [words[-1] for words in own.values() if name != "softmax"]
        label = f"`{name.partition('+')[2]}`, {' and '.join(dict.fromkeys(strengths))}" if strengths else "none"
        rows.append([label, *(part.at[name, setting] for setting in own for part in (cells, fixed))])
    head = ["", "no resampling", "AP-fixed", "RFS", "AP-fixed"]
    return _table(head, rows)


def league_findings() -> str:
    """What the league says, with its own numbers: points of box AP, with 95 % intervals."""
    result = StudyResult.from_json(RESULTS / "league.json")
    rows, table = result.comparisons(), result.table().set_index(["iou_type", "arm"])
    rows = rows[rows["metric"] == "AP"].set_index(["iou_type", "arm", "baseline"])
    plain, rfs, fixed = "softmax-none-linear", "softmax-rfs-linear", "bbox_lvis_fixed"

    def gain(arm: str, baseline: str, kind: str = "bbox") -> str:
        row = rows.loc[(kind, arm, baseline)]
        return format_difference(row) + ("" if row.resolved else " (not resolved)")

    # The best on the tuning split, not on this one.
    tau_norm, norcal = "softmax+tau_norm-none-linear", "softmax+norcal-rfs-linear"
    losses = [arm for arm in result.arms if arm.endswith("-rfs-linear") and "+" not in arm]
    sigmoid = ("sigmoid-rfs-linear", "sigmoid-none-linear")
    tau = kendall(*(table.loc[kind, "AP"][losses] for kind in ("bbox", fixed)))
    return f"""- **Seesaw is ahead of softmax**: {gain("seesaw-none-linear", plain)} without resampling,
  {gain("seesaw-rfs-linear", rfs)} with RFS. ECM is only without, {gain("ecm-none-linear", plain)}; the other nine are
  not ahead in either.
- **Calibrated softmax is not told from Seesaw, without another training**. The best on the tuning split, `tau_norm`
  without resampling: {gain(tau_norm, plain)}, by AP-fixed {gain(tau_norm, plain, fixed)}, against Seesaw
  {gain(tau_norm, "seesaw-none-linear")}; `norcal` with RFS: {gain(norcal, rfs)}, by AP-fixed
  {gain(norcal, rfs, fixed)}, against Seesaw {gain(norcal, "seesaw-rfs-linear")}.
- **The bank stays behind RFS** with softmax, {gain("softmax-bank-linear", rfs)}; with Seesaw and ECM it is not told
  from it, {gain("seesaw-bank-linear", "seesaw-rfs-linear")} and {gain("ecm-bank-linear", "ecm-rfs-linear")}.
- **The cosine classifier is not ahead once the linear one's learning rate is tuned**: softmax
  {gain("softmax-none-cosine", plain)} without resampling, {gain("softmax-rfs-cosine", rfs)} with RFS.
- **By AP-fixed RFS brings less**: softmax {gain(rfs, plain)} becomes {gain(rfs, plain, fixed)}, sigmoid
  {gain(*sigmoid)} becomes {gain(*sigmoid, fixed)}. The order of the twelve with RFS stays (Kendall's tau {tau:.2f}).
- Of these {len(result.pairs)} comparisons about one in twenty would look resolved by chance alone."""


def league_bank() -> str:
    """What the bank and RFS bring beside every loss: points of APr; bold where resolved."""
    result = StudyResult.from_json(RESULTS / "league_bank.json")
    comparisons, table = result.comparisons(), box_ap(result)
    rows = _box(comparisons, "APr")
    pairs = {"bank": ("bank", "none"), "RFS": ("rfs", "none"), "bank beside RFS": ("rfs+bank", "rfs")}
    losses = [arm.removesuffix("-none") for arm in result.arms if arm.endswith("-none")]
    of_none = {loss: table.loc[f"{loss}_none"] for loss in losses}
    cells = [
        [f"`{loss}`", f"{of_none[loss]['APr']:.1f} ±{of_none[loss]['APr_spread']:.1f}"]
        + [_bold(rows.loc[(f"{loss}-{arm}", f"{loss}-{baseline}")]) for arm, baseline in pairs.values()]
        for loss in sorted(losses, key=lambda loss: -table.at[f"{loss}_rfs_bank", "APr"])
    ]
    ap = _box(comparisons, "AP")
    heads = [arm.removesuffix("-none-cosine") for arm in result.arms if arm.endswith("-none-cosine")]
    cosine = [[f"`{x}`", *(_bold(ap.loc[(f"{x}-{s}-cosine", f"{x}-{s}")]) for s in ("none", "rfs"))] for x in heads]
    title = "The cosine classifier against the linear one, in points of AP:"
    return "\n\n".join(
        [_table(["", "APr of neither", *pairs], cells), title, _table(["", "no resampling", "RFS"], cosine)]
    )


def ccp_league() -> str:
    """The losses on photographs: box AP (APr), mean over splits; points of AP against softmax, bold where resolved."""
    result = StudyResult.from_json(RESULTS / "ccp_league.json")
    rows, table = _box(result.comparisons(), "AP"), result.table().set_index(["iou_type", "arm"])
    kinds = {"no resampling": ("bbox", "none"), "RFS": ("bbox", "rfs"), "RFS, AP-fixed": ("bbox_lvis_fixed", "rfs")}
    losses = [arm.removesuffix("-none") for arm in result.arms if arm.endswith("-none")]
    cells = []
    for loss in sorted(losses, key=lambda loss: -table.at[("bbox", f"{loss}-rfs"), "AP"]):
        own = [table.loc[(kind, f"{loss}-{sampler}")] for kind, sampler in kinds.values()]
        cells.append([f"`{loss}`", *(f"{row['AP']:.1f} ({row['APr']:.1f})" for row in own)])
        for sampler in ("none", "rfs"):
            pair = (f"{loss}-{sampler}", f"softmax-{sampler}")
            cells[-1].append(_bold(rows.loc[pair]) if pair in rows.index else "")
    told = rows[rows["resolved"] & rows.index.get_level_values("baseline").str.startswith("softmax")]
    names = {sign: told[np.sign(told["difference"]) == sign].index.get_level_values("arm") for sign in (1, -1)}
    ahead, behind = (", ".join(f"`{arm}`" for arm in names[sign]) or "none" for sign in (1, -1))
    said = f"Resolved ahead of softmax: {ahead}; behind it: {behind}."
    return _table(["", *kinds, "against softmax, no resampling", "against softmax, RFS"], cells) + f"\n\n{said}"


def _bold(row: pd.Series) -> str:
    return f"**{format_difference(row)}**" if row.resolved else format_difference(row)


def league_figure() -> None:
    """notebooks/images/league.png: box AP and APr of every loss by sampling and head."""
    from matplotlib.figure import Figure

    from rio import plots

    table = StudyResult.from_json(RESULTS / "league.json").table()
    table = table[table["iou_type"] == "bbox"].set_index("arm")
    names = [arm.partition("-")[0] for arm in table.index if arm.endswith("-rfs-linear")]
    names.sort(key=lambda name: -table.at[f"{name}-rfs-linear", "AP"])
    colors = plots.arm_colors(("none", "bank", "rfs"))
    with plots.style():
        figure = Figure(figsize=(8.6, 0.9 + 0.24 * len(names)), layout="constrained")
        for ax, metric in zip(figure.subplots(1, 2, sharey=True), ("AP", "APr"), strict=True):
            for setting, title in LEAGUE.items():
                sampling, head = setting.split("-")
                arms = [(y, f"{name}-{setting}") for y, name in enumerate(names) if f"{name}-{setting}" in table.index]
                look = {"s": 30, "edgecolor": colors[sampling], "zorder": 3, "label": title}
                look["facecolor"] = "#FFFFFF" if head == "cosine" else colors[sampling]
                if arms:
                    ax.scatter([table.at[arm, metric] for _, arm in arms], [y for y, _ in arms], **look)
            ax.set(
                xlabel=f"box {metric}, %", yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5)
            )
            ax.grid(axis="both")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        figure.savefig(ROOT / "notebooks" / "images" / "league.png", dpi=150, metadata={"Software": None})


def findings() -> str:
    """What the classifiers' study says, with its own numbers: points of APr and 95 % intervals."""
    tuned = StudyResult.from_json(RESULTS / "league.json").with_pairs([("softmax-rfs-linear", "softmax-none-linear")])
    names = ("classifiers", "classifiers_short", "bank_with_rfs")
    studies = [StudyResult.from_json(RESULTS / f"{name}.json") for name in names]
    rows = pd.concat([study.comparisons() for study in (*studies, tuned)])
    drawn = _box(rows, "APr")

    def gain(arm: str, baseline: str, rows: pd.DataFrame = drawn) -> str:
        row = rows.loc[(arm, baseline)]
        return f"{format_difference(row)} ({'resolved' if row.resolved else 'not resolved'})"

    bank = {what: gain(f"bank_{what}-linear", "bank-linear") for what in BANK_SETTINGS}
    settings = "; ".join(f"{name} {bank[what]}" for what, name in BANK_SETTINGS.items())
    pair = ("rfs+bank_perobject1-linear", "rfs+bank-linear")
    photographs = gain(*pair, _box(StudyResult.from_json(RESULTS / "ccp.json").comparisons(), "APr"))
    return f"""In points of APr:

- **RFS brings most with a linear classifier**, {gain("rfs-linear", "none-linear")}; the bank alone
  {gain("bank-linear", "none-linear")}, the cosine classifier alone {gain("none-cosine", "none-linear")}.
- **A larger learning rate does about half of that**: with 0.3, which the tuning split prefers to the 0.1 of these
  arms, RFS brings {gain("softmax-rfs-linear", "softmax-none-linear")}.
- **Beside RFS nothing is left for the reference's bank once training is long enough**:
  {gain("rfs+bank-linear", "rfs-linear")} with a linear classifier,
  {gain("rfs+bank-cosine", "rfs-cosine")} with a cosine one. On shorter schedules it gains, linear:
  {gain("rfs+bank-linear-4", "rfs-linear-4")} in 4 epochs, {gain("rfs+bank-linear-12", "rfs-linear-12")} in 12.
- **With one stored row per object and step the bank helps beside RFS too**, against RFS
  {gain("rfs+bank_perobject1", "rfs")}, against the bank that stores every row
  {gain("rfs+bank_perobject1", "rfs+bank")}; with a cosine classifier {gain("rfs+bank_perobject1-cosine", "rfs-cosine")}
  and {gain("rfs+bank_perobject1-cosine", "rfs+bank-cosine")}. It was the best of four variants there,
  and ahead without RFS as well; on the photographs below it is not: {photographs}.
  `configs/lvis_v1/rio_plus_r50.yaml` has it.
- **Without RFS, more replay is better**, against 4 rows a class, newest first: {settings}."""


def headlines() -> str:
    """What the studies say in a few lines, with their own numbers: points of APr, of AP in the league."""
    photographs = StudyResult.from_json(RESULTS / "ccp.json")
    highest = box_ap(photographs)["APr"].max()
    left, most = _without_the_best(photographs, "rfs-linear", "none-linear")
    classifiers, short, league = (
        StudyResult.from_json(RESULTS / f"{name}.json").comparisons()
        for name in ("classifiers", "classifiers_short", "league")
    )
    long, ap = _box(pd.concat([classifiers, short]), "APr"), _box(league, "AP")
    ccp = _box(photographs.comparisons(), "APr")

    def gain(arm: str, baseline: str, rows: pd.DataFrame = long) -> str:
        row = rows.loc[(arm, baseline)]
        return format_difference(row) + ("" if row.resolved else " (not resolved)")

    plain, rfs, seesaw = (f"{name}-linear" for name in ("softmax-none", "softmax-rfs", "seesaw-rfs"))
    return f"""- **Length of training comes first**: beside RFS the bank brings
  {gain("rfs+bank-linear-4", "rfs-linear-4")} points of APr in 4 epochs,
  {gain("rfs+bank-linear-12", "rfs-linear-12")} in 12 and {gain("rfs+bank-linear", "rfs-linear")} in 25,
  LVIS's usual schedule: what it brings to a short training, more training brings as well.
- **RFS brings most**: {gain("rfs-linear", "none-linear")} points of APr, the bank alone
  {gain("bank-linear", "none-linear")}, the cosine classifier alone {gain("none-cosine", "none-linear")}.
- **With the learning rate tuned, less is left for either**, and Seesaw is ahead of softmax: in points of AP, RFS
  {gain(rfs, plain, ap)}, Seesaw beside it {gain(seesaw, rfs, ap)}, calibrating softmax (`norcal`)
  without another training {gain("softmax+norcal-rfs-linear", rfs, ap)}.
- **Photographs** (1,004 of them, {len(photographs.seeds)} splits, APr of {highest:.1f} at most): in 25 epochs
  RFS brings {gain("rfs-linear", "none-linear", ccp)} points of APr
  ({left:+.1f} without the class that gains most: {most.name}, images to train on: {most.image_count}),
  the bank beside it {gain("rfs+bank-linear", "rfs-linear", ccp)}."""


def _without_the_best(study: StudyResult, arm: str, baseline: str) -> tuple[float, Category]:
    """What is left of a gain in APr without the rare class that gains most, and that class."""
    ap = {(run.arm, run.seed): np.array(run.per_category["bbox"], float) for run in study.runs}
    by_class = np.mean([ap[arm, seed] - ap[baseline, seed] for seed in study.seeds], axis=0)
    rare = np.array([category.frequency == "r" for category in study.categories])
    gains = by_class[rare & ~np.isnan(by_class)]
    most = study.categories[int(np.nanargmax(np.where(rare, by_class, np.nan)))]
    return (gains.sum() - gains.max()) / (len(gains) - 1), most


def ccp() -> str:
    """What the studies of real photographs show."""
    trunks, study = (StudyResult.from_json(RESULTS / f"{name}.json") for name in ("ccp_trunks", "ccp"))
    rows = study.comparisons()
    rows = rows[rows["iou_type"] == "bbox"].set_index(["arm", "baseline", "metric"])
    table = study.table()
    highest = table.loc[table["iou_type"] == "bbox", "APr"].max()
    *others, last = (f"{run.metrics['bbox']['AP']:.1f}" for run in trunks.runs)
    whole = f"{', '.join(others)} and {last}"

    def gain(arm: str, baseline: str) -> str:
        found = [(metric, rows.loc[(arm, baseline, metric)]) for metric in ("AP", "APr")]
        return ", ".join(f"{format_difference(r)} {m}{'' if r.resolved else ' (not resolved)'}" for m, r in found)

    def without_one(arm: str, baseline: str) -> str:
        left, most = _without_the_best(study, arm, baseline)
        s = "s" * (most.image_count > 1)
        return f"{left:+.1f} APr without {most.name}, where it gains most ({most.image_count} training image{s})"

    return f"""**Real photographs** (CCP: 1,004 images, 53 classes; three splits, each with a small detector of its
own, of AP {whole}, trained to 16 epochs, short of flat; nothing tuned on them).
In 4 epochs RFS brings {gain("rfs-linear-4", "none-linear-4")};
the bank beside it {gain("rfs+bank-linear-4", "rfs-linear-4")}, {without_one("rfs+bank-linear-4", "rfs-linear-4")}.
In 25, RFS {gain("rfs-linear", "none-linear")},
{without_one("rfs-linear", "none-linear")};
the bank beside it {gain("rfs+bank-linear", "rfs-linear")}.
APr is at most {highest:.1f} in any arm. Of {len(study.pairs)} comparisons in four measures, one in twenty would look
resolved by chance."""


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
    "calibration": calibration,
    "league_findings": league_findings,
    "ccp": ccp,
    "headlines": headlines,
    "league_bank": league_bank,
    "ccp_league": ccp_league,
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
    if sys.argv[1:] == ["league"]:
        league_figure()
        sys.exit()
    for file in READMES:
        file.write_text(written(file.read_text(encoding="utf-8")), encoding="utf-8")
