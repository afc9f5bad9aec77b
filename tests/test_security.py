"""What comes from a file stays data: no code, no shell, no path outside its folder, no markup; local servers only.

- Weights are read without running code, `.pkl` of the model zoo too: its reader knows only arrays and plain containers.
- A file name in an annotation file leads below the image folder, by its letters. A link in that folder is followed
  wherever it leads: data sets are often laid out in links, and not by the annotation file. What is there is decoded as
  an image or refused; nothing else of it is shown.
"""

import ast
import functools
import html.parser
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from rio.data.errors import AnnotationError
from rio.data.load import load_annotations
from tests.support.annotation_files import coco, write

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted((REPOSITORY / "rio").rglob("*.py"))
EVIL = "<img src=x onerror=alert(1)>"
TAG = "!!python/object/apply:os.mkdir ['was_here']"


@pytest.fixture(scope="module")
def anywidget():
    return pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")


@functools.cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in the package: where it is, its dotted name, its node."""
    return [
        (f"{path}:{node.lineno}: {ast.unparse(node.func)}", ast.unparse(node.func), node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


# ---- no code


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("was_here",)


@pytest.mark.parametrize("name", ["weights.pth", "legacy.pth", "weights.pkl"])
def test_weights_run_no_code(tmp_path, monkeypatch, name):
    import torch

    from rio.engine.weights import CheckpointError, load_weights

    monkeypatch.chdir(tmp_path)
    content = {"model": {"weight": np.zeros(2), "bomb": Bomb()}, "__author__": "x"}
    if name == "weights.pth":
        torch.save(content, name)
    else:
        Path(name).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match="could run code and is not loaded"):
        load_weights(torch.nn.Linear(2, 2), name)
    assert not Path("was_here").exists()


def test_what_ruff_does_not_know_of_runs_no_code_either():
    """ruff refuses pickle, eval, exec, YAML's unsafe loaders and shells (flake8-bandit in pyproject.toml)."""
    unsafe = ("joblib.load", "hub.load", "load_state_dict_from_url", "__import__", "pickle.Unpickler")
    with_tags = ("load_yaml_with_base", "merge_from_file")  # of fvcore and detectron2: they allow Python tags
    for where, name, node in calls():
        if name == "torch.load":
            assert any(k.arg == "weights_only" and k.value.value is True for k in node.keywords), where
        assert not any(k.arg in ("allow_pickle", "shell") for k in node.keywords), where
        assert not name.endswith((*unsafe, *with_tags)) and not name.startswith(("pty.", "subprocess.get")), where


@pytest.mark.parametrize("where", ["config", "base", "study", "study's config", "resumed run"])
def test_yaml_is_data(tmp_path, monkeypatch, where):
    from rio import config
    from rio.engine.setup import stored_config
    from rio.study import plan, runner

    monkeypatch.chdir(tmp_path)
    evil = write(tmp_path / "config.yaml", f"MODEL: {{WEIGHTS: {TAG}}}")
    child = write(tmp_path / "child.yaml", "_BASE_: config.yaml\nSEED: 1\n")
    arms = "arms: {a: []}\nseeds: [1]\n"
    study = write(tmp_path / "s.yaml", f"config: {TAG if where == 'study' else 'child.yaml'}\n{arms}")
    attempts = {
        "config": lambda: config.load_config(str(evil)),
        "base": lambda: config.load_config(str(child)),
        "study": lambda: plan.load_study(study),
        "study's config": lambda: runner.run_study(plan.load_study(study), "out"),
        "resumed run": lambda: stored_config(str(tmp_path)),
    }
    with pytest.raises(Exception, match="python/object/apply"):
        attempts[where]()
    assert not Path("was_here").exists()


def test_yaml_of_finished_runs_is_data(anywidget, runs, tmp_path, monkeypatch):
    import rio
    from rio.report import page
    from rio.report.runs import ReportError
    from rio.study.process import Training
    from rio.widgets import theme

    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(runs / "rio-seed1", tmp_path / "rio-seed1"))
    write(run / "config.yaml", f"DATASETS: {TAG}")
    truth = load_annotations(runs.parent / "val.json", image_root=runs.parent / "val")
    with pytest.raises(ReportError, match="config.yaml"):
        page.write_report(tmp_path / "r.html", title="x", runs={"rio": run}, train=truth, val=truth)
    with pytest.raises(theme.NotebookError, match="config.yaml"):
        rio.open_runs(run)
    with pytest.raises(Exception, match="config.yaml"):
        rio.open_predictions(run=str(run))
    Training(run).explain()
    assert not Path("was_here").exists()


# ---- paths

NAMES = ["../a.jpg", "a/../../b.jpg", "..", "/etc/passwd", "a/..", "\\\\server\\a.jpg", "C:\\a.jpg", "c:a.jpg"]
NAMES += ["a\0.jpg", "..\\a.jpg", "a\\..\\..\\b.jpg", "", "a/", "//a", "/"]


@pytest.mark.parametrize("key", ["file_name", "coco_url"])
@pytest.mark.parametrize("name", NAMES)
def test_file_names_lead_below_the_image_folder(tmp_path, name, key):
    data = coco()
    image = data["images"][0]
    del image["file_name"]
    image[key] = name if key == "file_name" else f"http://host/{name}"
    root = tmp_path / "images"
    try:
        found = load_annotations(write(tmp_path / "set.json", data), image_root=root)
    except AnnotationError as error:
        assert error.kind == "file_name"
        return
    assert key == "coco_url"  # of an address the last two parts count, and these may be harmless
    path = Path(os.path.normpath(found.image_path(1)))
    assert path.is_relative_to(root) and path != root


def test_a_link_is_followed_and_shows_nothing_but_an_image(tmp_path):
    from PIL import Image

    from rio.data.images import ImageError, read_image

    Image.new("RGB", (100, 50), "red").save(tmp_path / "outside.jpg")
    write(tmp_path / "secret.txt", "the secret")
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.jpg").symlink_to(tmp_path / "secret.txt")
    (root / "b.jpg").symlink_to(tmp_path / "outside.jpg")
    found = load_annotations(write(tmp_path / "set.json", coco()), image_root=root, check_images=True)
    assert read_image(found.image_path(1)).shape == (50, 100, 3)
    with pytest.raises(ImageError) as error:
        read_image(found.image_path(0))
    assert "a.jpg" in str(error.value) and "the secret" not in str(error.value)


def test_pictures_of_predictions_stay_in_their_folder(tmp_path, capsys):
    from PIL import Image

    from rio.cli.parser import main

    data = coco()
    data["images"][0]["file_name"] = "deep/er/..b.jpg"
    (tmp_path / "images" / "deep" / "er").mkdir(parents=True)
    for image in data["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / "images" / image["file_name"])
    truth = write(tmp_path / "set.json", data)
    results = write(tmp_path / "r.json", [{"image_id": 7, "category_id": 90, "score": 0.9, "bbox": [1, 1, 9, 9]}])
    before = set(tmp_path.rglob("*"))
    flags = {"--results": results, "--gt": truth, "--gt-images": tmp_path / "images", "--output": tmp_path / "out"}
    assert main(["predict", *(str(word) for pair in flags.items() for word in pair)]) == 0
    new = set(tmp_path.rglob("*")) - before - {tmp_path / "out"}
    assert len(new) == 2 and all(path.parent == tmp_path / "out" for path in new)


# ---- markup


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs on the tiny set, whose categories have hostile names."""
    from tests.support import finished_runs, tiny_shapes

    folder = tiny_shapes.draw(tmp_path_factory.mktemp("hostile"))
    for split in ("train", "val"):
        data = json.loads((folder / f"{split}.json").read_text())
        for i, category in enumerate(data["categories"]):
            category["name"] = f"{EVIL} {i}"
        (folder / f"{split}.json").write_text(json.dumps(data))
    return finished_runs.make(folder / "runs", folder)


class Markup(html.parser.HTMLParser):
    """No tag of a page carries code or comes from a name."""

    def handle_starttag(self, tag, attrs):
        assert not any(name.startswith("on") or (name in ("src", "href") and value == "x") for name, value in attrs)


def test_the_notebooks_views_escape_names(anywidget, runs):
    import rio
    from rio.widgets import inspector as inspect

    folder = runs.parent
    data = rio.open_dataset(f"{folder}/train.json@{folder}/train")
    found = rio.open_runs(runs)
    view = inspect.Inspector(rio.open_predictions(run=str(runs / "rio-seed1"), threshold=0.0))
    pages = [data._repr_html_(), found._repr_html_(), view.source._repr_html_(), view.item.value, view.why.value]
    balance = rio.compare_sampling(data)
    pages += [balance._repr_html_(), *_html(balance.panel()), *_html(found.curves()), *_html(view)]
    for page in pages:
        Markup().feed(page)
    assert "&lt;img" in view.item.value + view.why.value  # shown, as text


def _html(widget) -> list[str]:
    """The HTML of a view's parts."""
    import ipywidgets

    if isinstance(widget, ipywidgets.HTML):
        return [widget.value]
    return [text for child in getattr(widget, "children", ()) for text in _html(child)]


def test_the_views_javascript_writes_text_not_markup():
    scripts = sorted((REPOSITORY / "rio" / "widgets").rglob("*.js"))
    assert scripts
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        unsafe = "innerHTML|outerHTML|insertAdjacentHTML|document.write|eval\\(|new Function|DOMParser"
        assert not re.search(unsafe, text), path.name
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), f"{path.name}: an address"


# ---- servers


def test_jupyter_listens_to_this_machine_alone_and_asks_for_a_token():
    makefile = (REPOSITORY / "Makefile").read_text()
    lab = re.search(r"^lab:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    assert "--ServerApp.ip=127.0.0.1" in lab
    as_root = "$(if $(filter 0,$(shell id -u)),--allow-root)"  # in containers; the token is asked for all the same
    assert lab.count(as_root) == 1
    for text in (makefile.replace(as_root, ""), *(path.read_text(encoding="utf-8") for path in SOURCES)):
        assert "0.0.0.0" not in text
        unsafe = r"(token|password)=(''|\"\"|$)|disable_check_xsrf|allow_origin|allow.root"
        assert not re.search(unsafe, text, re.IGNORECASE)
