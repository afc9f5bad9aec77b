"""All benchmarks of this folder that fit the machine, as one table.

    python -m tests.benchmarks [--scale 1.0] [--only data,evaluation]

Each module ``bench_*.py`` with a function ``run(scale)`` returns its rows: dicts with the keys ``what``, ``peer``,
``ours_cpu_s``, ``peer_cpu_s``, ``cpu_ratio``, ``ours_peak_gib``, ``peer_peak_gib``, ``memory_ratio``, ``reach`` and, if
it can be said, ``met``; None where there is nothing to say. The table is printed and, at full scale, written to
RESULTS.md, rows that were not measured this time kept as they are in RESULTS.json beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("numpy", "msgspec", "torch", "detectron2", "lvis", "hotcoco")
COLUMNS = (
    ("what", "what"), ("peer", "peer"), ("CPU s", "ours_cpu_s"), ("peer's", "peer_cpu_s"), ("x less", "cpu_ratio"),
    ("peak GiB", "ours_peak_gib"), ("peer's", "peer_peak_gib"), ("x less", "memory_ratio"), ("reach", "reach"),
    ("met", "met"),
)  # fmt: skip


def modules(only: list[str] | None = None) -> list[str]:
    """Names of the benchmark modules, without ``bench_``."""
    names = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    unknown = set(only or ()) - set(names)
    if unknown:
        sys.exit(f"--only: expected some of {', '.join(names)}, found {', '.join(sorted(unknown))}")
    return [name for name in names if not only or name in only]


def machine() -> str:
    """What kind of machine this is, in words."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    memory = ""
    if hasattr(os, "sysconf"):
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    load = f", load {os.getloadavg()[0]:.1f} when it began" if hasattr(os, "getloadavg") else ""
    return f"{os.cpu_count()} cores of {model}{memory}, {platform.system()}{load}"


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


def cell(value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return str(value).replace("|", "\\|")


def table(results: dict[str, dict[str, Any]]) -> str:
    """All results as Markdown: a table a module, as each may be of another day."""
    text = ["# Measured", "", "Written by `make bench` (`python -m tests.benchmarks`); nothing here is typed in.",
            "CPU seconds are user + system, of all processes; x less: the peer's by ours.", ""]  # fmt: skip
    for name, result in results.items():
        text += [f"## {name}", "", f"{result['date']}, {result['machine']}; {result['versions']}.", ""]
        text.append("| " + " | ".join(title for title, _ in COLUMNS) + " |")
        text.append("|" + "---|" * len(COLUMNS))
        for row in result["rows"]:
            text.append("| " + " | ".join(cell(row.get(key)) for _, key in COLUMNS) + " |")
        text.append("")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="size of the data sets; only 1.0 goes to RESULTS.md")
    parser.add_argument("--only", type=lambda text: text.split(","), help="modules, e.g. data,evaluation")
    args = parser.parse_args()

    results: dict[str, dict[str, Any]] = {}
    missing = []
    about = {"machine": machine(), "versions": versions()}
    for name in modules(args.only):
        module = importlib.import_module(f"tests.benchmarks.bench_{name}")
        if not hasattr(module, "run"):
            missing.append(name)
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows = module.run(args.scale)
        results[name] = about | {"date": datetime.date.today().isoformat(), "rows": rows}
    print(table(results))
    for name in missing:
        print(f"bench_{name}.py has no run(scale): start it by itself, python -m tests.benchmarks.bench_{name}")
    if args.scale == 1 and results:
        stored = FOLDER / "RESULTS.json"
        kept = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
        results = dict(sorted((kept | results).items()))
        stored.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (FOLDER / "RESULTS.md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
