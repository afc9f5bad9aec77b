"""The code keeps to the layout: who may import whom, what stays light, and what no file may mention."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "rio"

# Every module, and what it may import beside the standard library: third-party packages, and modules of ours.
# Imports inside functions count as well.
LIGHT = {"numpy", "tqdm"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "annotations": LIGHT | {"msgspec", "pycocotools"},
    "shapes": LIGHT | {"cv2"},
    "datasets": LIGHT | {"detectron2", "pycocotools", "rio.annotations", "rio.shapes"},
    "balance": LIGHT | {"pandas", "rio.annotations"},
    "backbone": LIGHT | {"torch", "torchvision", "detectron2", "fvcore"},
    "sampler": LIGHT | {"torch", "rio.annotations"},
    "memory_bank": {"torch"},
    "classifier": {"torch"},
    "roi_heads": {"torch", "fvcore", "detectron2", "rio.memory_bank", "rio.classifier"},
    "config": {"yaml", "yacs", "fvcore", "detectron2"},
    "checkpoints": LIGHT | {"torch", "fvcore", "detectron2"},
    # Without pandas: each process that reads a part of a large file imports it.
    "results": LIGHT | {"msgspec", "hotcoco", "pycocotools", "rio.annotations"},
    "evaluation": LIGHT | {"pandas", "msgspec", "hotcoco", "lvis", "vernier", "rio.annotations", "rio.results"},
    "predictions": LIGHT | {"pandas", "msgspec", "pycocotools", "hotcoco", "rio.annotations", "rio.results"},
    "plots": LIGHT | {"matplotlib", "seaborn", "pandas", "pycocotools", "cv2", "PIL"},
    "report": LIGHT
    | {
        "pandas",
        "matplotlib",
        "jinja2",
        "markupsafe",
        "PIL",
        "cv2",
        "yaml",
        "rio.annotations",
        "rio.balance",
        "rio.evaluation",
        "rio.predictions",
        "rio.plots",
        "rio.results",
        "rio.sampler",
    },
    "study": LIGHT
    | {"yaml", "msgspec", "pandas", "psutil", "matplotlib", "rio.config", "rio.datasets", "rio.evaluation"}
    | {"rio.info", "rio.plots", "rio.report", "rio.results"},
    "info": {"torch", "rio.datasets"},
    "trainer": LIGHT
    | {
        "torch",
        "torchvision",
        "detectron2",
        "fvcore",
        "cv2",
        "PIL",
        "psutil",
        "yaml",
        "msgspec",
        "pycocotools",
        "rio.annotations",
        "rio.backbone",
        "rio.balance",
        "rio.checkpoints",
        "rio.classifier",
        "rio.config",
        "rio.datasets",
        "rio.evaluation",
        "rio.memory_bank",
        "rio.results",
        "rio.roi_heads",
        "rio.sampler",
        "rio.shapes",
    },
    # torch only inside functions: the check of exposures by the sampler and the bank themselves.
    "widgets": LIGHT
    | {"pandas", "matplotlib", "ipywidgets", "anywidget", "traitlets", "IPython", "cv2", "PIL", "yaml", "psutil"}
    | {"pycocotools", "torch", "rio.annotations", "rio.balance", "rio.evaluation", "rio.memory_bank", "rio.plots"}
    | {"rio.predictions", "rio.results", "rio.sampler", "rio.shapes", "rio.study", "rio.datasets"},
}
ALL_OF_OURS = {f"rio.{name}" for name in MAY_IMPORT if name != "__init__"}
MAY_IMPORT["__main__"] = (
    LIGHT
    | ALL_OF_OURS
    | {"torch", "detectron2", "cv2", "PIL", "psutil", "yaml", "matplotlib", "pycocotools", "rio"}
)

# Notebooks on a laptop open in a second with these.
LAPTOP = ("annotations", "balance", "results", "evaluation", "predictions", "plots", "widgets")
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".ipynb", ".json", ".html", ".css", ".js", ".cfg", ""}


def imported(tree: ast.AST, modules: set[str]) -> set[str]:
    """Top-level third-party packages and modules of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write `from rio import ...`"
            names = [node.module]
            if (
                node.module == "rio"
            ):  # `from rio import plots` imports rio.plots; `from rio import __version__` rio
                names = [f"rio.{alias.name}" if alias.name in modules else "rio" for alias in node.names]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            found.add(".".join(name.split(".")[:2]) if top == "rio" else top)
    return {
        name
        for name in found
        if name.partition(".")[0] not in sys.stdlib_module_names and name != "rio.__init__"
    }


def sources() -> dict[str, list[Path]]:
    """The files of every module; a folder of files is one module."""
    files = {path.stem: [path] for path in PACKAGE.glob("*.py")}
    files.update({path.parent.name: sorted(path.parent.rglob("*.py")) for path in PACKAGE.glob("*/__init__.py")})
    return files


def modules() -> set[str]:
    return set(sources())


def imported_by(module: str) -> set[str]:
    """What a module's files import, itself left out."""
    found = set()
    for path in sources()[module]:
        found |= imported(ast.parse(path.read_text()), modules())
    return found - {f"rio.{module}"}


def test_every_module_has_a_place():
    assert modules() <= set(MAY_IMPORT), "a new module needs a line in MAY_IMPORT, and a reason"
    assert "utils" not in modules()


@pytest.mark.parametrize("module", sorted(sources()))
def test_imports(module):
    found = imported_by(module)
    allowed = MAY_IMPORT[module] | (
        {"rio"} if module in ("info", "report", "trainer") else set()
    )  # its version
    assert found <= allowed, f"rio.{module} imports {sorted(found - allowed)}; see MAY_IMPORT"


def test_imports_are_found_wherever_they_stand():
    source = "import os.path\nfrom rio import plots, __version__\n"
    source += "def f():\n    import torch.nn\n    from rio.a import b\n"
    assert imported(ast.parse(source), {"plots"}) == {"rio", "rio.plots", "rio.a", "torch"}


def test_nothing_imports_the_top():
    for module in modules() - {"__main__"}:
        top = imported_by(module) & {"rio.trainer", "rio.widgets", "rio.__main__"}
        assert not top, f"rio.{module} imports {top}"


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in memory after a fresh python ran a statement."""
    code = f"import json, sys; before = set(sys.modules); {statement}; "
    code += "print(json.dumps(sorted(set(sys.modules) - before)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY.parent
    )
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}


def test_import_rio_is_instant():
    assert loaded_by("import rio") - sys.stdlib_module_names == {"rio"}


def test_laptop_modules_bring_neither_torch_nor_detectron2():
    there = [name for name in LAPTOP if name in modules()]
    loaded = loaded_by("import " + ", ".join(f"rio.{name}" for name in there))
    assert not loaded & {
        "torch",
        "torchvision",
        "detectron2",
        "fvcore",
    }, "a notebook on a laptop would wait for these"


def repository_files() -> list[Path]:
    """Text files under version control, or not ignored by it; all files of an unpacked archive."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = [REPOSITORY / name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in paths if path.suffix in TEXT and path.is_file()]


# Written in halves: this file is searched too.
INDEX_HOSTS = (
    "py" "pi.org",
    "python" "hosted.org",
    "download." "pytorch.org",
    "repo." "anaconda.com",
    "conda." "anaconda.org",
)
MACHINE_PATHS = ("/ro" "ot/", "/wo" "rk/", "/ho" "me/", "/Us" "ers/", "/tm" "p/", "/o" "pt/")


@pytest.mark.parametrize(
    "words", [INDEX_HOSTS, MACHINE_PATHS], ids=["hosts of package indexes", "paths of one machine"]
)
def test_no_file_mentions(words):
    """Which index serves a package, and where a checkout lies, is the machine's configuration, not ours."""
    found = []
    for path in repository_files():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            found += [f"{path.relative_to(REPOSITORY)}:{number}: {word}" for word in words if word in line]
    assert not found, "\n".join(found)


def test_top_level():
    """Nothing at the top but the rooms of the layout, dot-files and packaging."""
    rooms = {"notebooks", "rio", "configs", "tests"}
    packaging = {
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "environment.yml",
        "install.py",
        "pyproject.toml",
        "CITATION.cff",
    }
    tracked = {path.relative_to(REPOSITORY).parts[0] for path in repository_files()}
    assert {name for name in tracked if not name.startswith(".")} <= rooms | packaging
