"""`rio info`: what is there, what is missing, and what to do about it."""

import importlib.metadata
import importlib.util
import json
import re

import pytest

from rio.engine import info
from rio.engine.info import collect, format_info


def some_info(**changes) -> dict:
    kind = "pure-Python wheel"
    return {
        **{"rio": "1.0", "python": "3.12.1 (python)", "platform": "Linux", "cores": 2},
        "versions": {"torch": "2.15.0", "lvis": None},
        "detectron2": {"version": "0.6+rio.0", "kind": kind, "path": "site/detectron2"},
        "gpus": {"found": 0, "devices": [], "note": "no NVIDIA driver on this machine"},
        "datasets": [{"name": "lvis_v1_train", "found": False, "looked_at": "datasets/lvis/lvis_v1_train.json"}],
        "demo_weights": {"package": "some-weights", "found": False, "version": None},
    } | changes


def test_it_says_what_is_missing_and_what_to_do():
    text = format_info(some_info())
    assert re.search(r"GPU +none: no NVIDIA driver", text)
    assert re.search(r"demo weights +not found: package some-weights .*: make install", text)
    assert re.search(r"lvis +not installed", text)
    assert re.search(r"lvis_v1_train +not found +datasets/lvis/lvis_v1_train.json", text)
    missing = format_info(some_info(detectron2={"version": None, "kind": "missing", "path": None}))
    assert re.search(r"detectron2 +missing\n.*: make install", missing)
    gpu = format_info(some_info(gpus={"found": 1, "devices": [{"name": "H100", "memory_gib": 79.2}], "note": ""}))
    assert re.search(r"GPU +H100, 79.2 GiB", gpu) and "none" not in gpu


@pytest.mark.parametrize(
    ("version", "compiled", "kind"),
    [
        ("0.6+rio.01234567", False, "pure-Python wheel"),
        ("0.6", True, "official build"),
        ("0.6", False, "without compiled"),
    ],
)
def test_it_says_where_detectron2_comes_from(tmp_path, monkeypatch, version, compiled, kind):
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").touch()
    if compiled:
        (package / "_C.cpython-312-x86_64-linux-gnu.so").touch()
    spec = importlib.util.spec_from_file_location("detectron2", package / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    origin = info.detectron2_origin()
    assert origin["kind"].startswith(kind) and origin["path"] == str(package) and origin["version"] == version
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert info.detectron2_origin()["kind"] == "missing"


def test_this_environment():
    found = collect()
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["detectron2"]["kind"] != "missing"
    assert found["datasets"] and all({"name", "found", "looked_at"} <= set(entry) for entry in found["datasets"])
    json.dumps(found)
    assert all(entry["looked_at"] in format_info(found) for entry in found["datasets"])
