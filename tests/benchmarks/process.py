"""One measurement in a process of its own: CPU and wall seconds without imports, highest memory, what it found.

CPU time is user + system of the process and its children that ended. Memory is the peak of the resident set or, with
`tree`, of the proportional set (PSS, shared pages counted once) summed over the process and its children.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


def measure(
    function: Callable[..., Callable[[], Any]], *words: Path | str, cache: Path | str, tree: bool = False
) -> Any:
    """What `function(*words)()` returns, costs and takes: answer, cpu_s, wall_s, peak_gib.

    Args:
        function: of a module; imports what is needed and returns the work.
        words: its arguments.
        cache: folder of the cache of annotation files; "off": none.
        tree: memory of all its processes together.
    """
    environment = os.environ | {"RIO_CACHE": str(cache), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    module = sys.modules[function.__module__].__spec__.name  # also where it runs as a program
    command = [sys.executable, "-W", "ignore", "-m", __name__, module, function.__name__, *map(str, words)]
    pipe, top = subprocess.PIPE, Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=top)
    peak = [0]
    if tree:
        threading.Thread(target=_watch, args=(process, peak), daemon=True).start()
    out, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{function.__name__} ended with code {process.returncode}:\n{errors[-3000:]}")
    figures = json.loads(out.splitlines()[-1])
    return figures | {"peak_gib": max(figures["peak_gib"], peak[0] / 2**30)}


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    time.sleep(0.2)  # until it has its program, a new process has its parent's memory
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(process.pid)
            family = [parent, *parent.children(recursive=True)]
            peak[0] = max(peak[0], sum(member.memory_full_info().pss for member in family))
        time.sleep(0.2)


def _cpu_seconds() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


def row(
    what: str, ours: dict[str, Any], reach: str, peer: str = "", theirs: dict[str, Any] | None = None,
    least: tuple[float, float] | None = None, most: tuple[float, float | None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One row of the table; `least` are ratios of CPU and memory, `most` CPU seconds and GB, to be reached."""
    peers = theirs or dict.fromkeys(ours)
    ratios = {key: theirs[key] / ours[key] if theirs else None for key in ("cpu_s", "peak_gib")}
    met = True
    if least:
        met = ratios["cpu_s"] >= least[0] and ratios["peak_gib"] >= least[1]
    if most:
        met = ours["cpu_s"] <= most[0] and (most[1] is None or ours["peak_gib"] * 2**30 <= most[1] * 1e9)
    return {
        "what": what, "peer": peer, "ours_cpu_s": ours["cpu_s"], "peer_cpu_s": peers["cpu_s"],
        "cpu_ratio": ratios["cpu_s"], "ours_peak_gib": ours["peak_gib"], "peer_peak_gib": peers["peak_gib"],
        "memory_ratio": ratios["peak_gib"], "reach": reach, "met": met, "ours_wall_s": ours["wall_s"],
    }  # fmt: skip


def main(module: str, function: str, *words: str) -> None:
    """In the new process; the last line printed is the figures."""
    run = getattr(importlib.import_module(module), function)(*words)
    before, begin = _cpu_seconds(), time.monotonic()
    answer = run()
    wall, cpu = time.monotonic() - begin, _cpu_seconds() - before
    # ru_maxrss would begin with the memory of the parent.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    print(json.dumps({"answer": answer, "cpu_s": cpu, "wall_s": wall, "peak_gib": peak / 2**20}))


if __name__ == "__main__":
    main(*sys.argv[1:])
