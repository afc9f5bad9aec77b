"""What `tests.benchmarks.gpu` measured, as a Markdown page: machine, versions, settings, parts, fidelity."""

from __future__ import annotations

from typing import Any

import pandas as pd
from tabulate import tabulate

from tests.readme import side_by_side

COLUMNS = {
    "plain_images_s": "plain, images/s", "rio_images_s": "RIO, images/s", "rio_by_plain": "RIO : plain, time",
    "times_plain_fp32": "against plain fp32", "plain_peak_gib": "plain, GiB", "rio_peak_gib": "RIO, GiB",
}  # fmt: skip


def page(result: dict[str, Any]) -> str:
    """Markdown of a result of `tests.benchmarks.gpu.run`."""
    size, versions = result["size"], ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"# {result['device']}, {result['date']}", "", f"{versions}. R50-FPN Mask R-CNN, {size['classes']:,} classes, "
        f"{size['images']} random images of {size['short_side']} px a step. `python -m tests.benchmarks.gpu`", "",
    ]  # fmt: skip
    rows = [
        [row["setting"], *("–" if row[key] is None else f"{row[key]:.3g}" for key in COLUMNS)]
        for row in result.get("speed", [])
    ]
    lines += [tabulate(rows, ["setting", *COLUMNS.values()], "pipe", disable_numparse=True), ""] if rows else []
    for part in ("correctness", "bank", "loss", "synchronisations", "bench_set"):
        if part in result:
            lines.append(f"- **{part}**: {', '.join(_item(*item) for item in result[part].items())}")
    if "profile" in result:
        parts = result["profile"]["parts"].items()
        named = ", ".join(f"{name} {ms['host_ms']:.1f} / {ms['device_ms']:.1f}" for name, ms in parts)
        lines.append(f"- **profile**, {result['profile']['setting']}, ms a step, host / device: {named}")
    if fidelity := result.get("fidelity"):
        lines += ["", f"**fidelity**, box AP (APr) on the embedded bench set; {', '.join(fidelity['progress'])}", ""]
        if fidelity["done"]:
            tables = {name: pd.DataFrame.from_dict(ap, orient="index") for name, ap in fidelity["ap"].items()}
            lines += [side_by_side(tables)]
    lines += [""] + [f"{name} failed: {' '.join(error.split())}" for name, error in result["failed"].items()]
    if result["left_out"]:
        lines += [f"Not measured yet: {', '.join(result['left_out'])}. The same command goes on."]
    return "\n".join(lines) + "\n"


def _item(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{name} ({', '.join(_item(*item) for item in value.items())})"
    return f"{name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
