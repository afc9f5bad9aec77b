"""The README's tables of measured numbers, made from the files that hold the numbers.

    python -m tests.readme      # rewrites what stands between <!-- NAME --> and <!-- /NAME -->

`tests/test_readme.py` fails where the README shows anything else.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from rio.results.evaluation import GROUP_METRICS
from rio.study.result import StudyResult, format_difference

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "configs" / "studies" / "results"
BENCHMARKS = ROOT / "tests" / "benchmarks" / "RESULTS.json"


def _table(rows: list[list[str]], right: int) -> str:
    """Markdown; the last `right` columns are numbers."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" * (len(rows[0]) - right) + "|--:" * right + "|")
    return "\n".join(lines)


def arms(result: StudyResult, kind: str = "bbox") -> str:
    """Every arm: mean over seeds ± half the range."""
    table = result.table()
    rows = [["", *GROUP_METRICS]]
    for _, row in table[table["iou_type"] == kind].iterrows():
        rows.append([f"`{row['arm']}`", *(f"{row[m]:.1f} ±{row[f'{m}_spread']:.1f}" for m in GROUP_METRICS)])
    return _table(rows, len(GROUP_METRICS))


def differences(result: StudyResult, kind: str = "bbox") -> str:
    """Every comparison: difference and 95 % interval, bold where resolved."""
    table = result.comparisons()
    rows = [["", *GROUP_METRICS]]
    for (arm, baseline), own in table[table["iou_type"] == kind].groupby(["arm", "baseline"], sort=False):
        cells = [format_difference(row, bold=True) for row in own.itertuples()]
        rows.append([f"`{arm}` − `{baseline}`", *cells])
    return _table(rows, len(GROUP_METRICS))


def benchmarks() -> str:
    """The rows of tests/benchmarks/RESULTS.json, with the machine they are from."""
    results = json.loads(BENCHMARKS.read_text(encoding="utf-8"))
    rows = [["", "against", "aim", "reached", "x less CPU", "x less memory", "CPU s", "peak GiB"]]
    for result in results.values():
        for row in result["rows"]:
            ratios = [row["cpu_ratio"], row["memory_ratio"]]
            numbers = [f"{r:.1f}" if r else "" for r in ratios]
            numbers += [f"{row[key]:.2g}" if row[key] else "" for key in ("ours_cpu_s", "ours_peak_gib")]
            met = {True: "yes", False: "**no**", None: ""}[row.get("met")]
            rows.append([row["what"], row["peer"] or "", row["reach"], met, *numbers])
    about = dict.fromkeys(f"{r['date']}, {r['machine']}" for r in results.values())
    return _table(rows, 4) + f"\n\n<sub>`make bench`; {'; '.join(about)}.</sub>"


def blocks() -> dict[str, str]:
    """Name -> what stands between its marks."""
    found = {"benchmarks": benchmarks()}
    for file in sorted(RESULTS.glob("*.json")):
        result = StudyResult.from_json(file)
        found[f"{file.stem}: arms"] = arms(result)
        found[f"{file.stem}: differences"] = differences(result)
    return found


def written(text: str) -> str:
    """The README's text with every block that it has marks for made anew."""
    for name, block in blocks().items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(rf"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text = pattern.sub(lambda _, whole=f"{begin}\n{block}\n{end}": whole, text)
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
