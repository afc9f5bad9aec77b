"""The layout: which room may import which, what stays light, how long a file may be, what no file may mention."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "rio"
METHOD = ("sampler", "memory_bank", "classifier", "roi_heads", "config", "trainer")

# Every room (a module at the top of `rio/`, or a folder of modules), and what it may import beside the standard
# library: third-party packages, and our own rooms or modules. Imports inside functions count as well.
LIGHT = {"numpy", "tqdm"}
DETECTRON = LIGHT | {"torch", "torchvision", "detectron2", "fvcore"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {"rio"},  # lazily, by name
    "__main__": {"rio.cli"},
    # The method.
    "sampler": {"numpy", "torch", "rio.data"},
    "memory_bank": {"torch", "rio.data.errors", "rio.engine.rows"},
    "classifier": {"torch", "rio.data.errors"},
    "roi_heads": {"torch", "fvcore", "detectron2"}
    | {"rio.data.errors", "rio.memory_bank", "rio.classifier", "rio.losses", "rio.engine.telemetry"},
    "config": {"detectron2", "rio.engine.config_files", "rio.losses", "rio.memory_bank", "rio.sampler"},
    "trainer": DETECTRON | {"rio.config", "rio.data", "rio.engine", "rio.results", "rio.roi_heads", "rio.sampler"},
    # The rooms around it.
    "losses": {"torch", "rio.data.errors", "rio.engine.rows"},
    "data": LIGHT | {"PIL", "msgspec", "pycocotools", "filelock", "rio.shapes"},  # data.names draws the embedded set
    "shapes": LIGHT | {"cv2", "filelock"},
    "engine": DETECTRON
    | {"cv2", "PIL", "psutil", "yaml", "msgspec", "pycocotools", "iopath", "filelock"}
    | {"rio", "rio.config", "rio.data", "rio.results", "rio.roi_heads", "rio.sampler", "rio.memory_bank", "rio.losses"},
    "results": LIGHT | {"pandas", "msgspec", "hotcoco", "lvis", "vernier", "pycocotools", "cv2", "rio.data"},
    # torch only inside functions: the check of exposures by the sampler and the bank themselves.
    "analysis": LIGHT
    | {"pandas", "tabulate", "yaml", "torch"}
    | {"rio.data", "rio.results", "rio.sampler", "rio.memory_bank", "rio.losses"},
    "checks": LIGHT | {"pandas", "PIL", "msgspec", "pycocotools", "rio.data", "rio.results"},
    "plots": LIGHT | {"matplotlib", "seaborn", "pandas", "pycocotools", "cv2", "PIL", "rio.data"},
    "study": LIGHT
    | {"yaml", "msgspec", "pandas", "psutil", "matplotlib", "tabulate", "filelock", "submitit"}
    | {"rio.config", "rio.data", "rio.engine.info", "rio.results", "rio.analysis", "rio.plots"},
    "report": LIGHT
    | {"pandas", "matplotlib", "jinja2", "markupsafe", "PIL", "cv2", "yaml", "tabulate"}
    | {"rio", "rio.data", "rio.sampler", "rio.results", "rio.analysis", "rio.plots", "rio.study"},
    "widgets": LIGHT
    | {"pandas", "matplotlib", "ipywidgets", "anywidget", "traitlets", "IPython", "cv2", "PIL", "yaml", "psutil"}
    | {"pycocotools", "rio.data", "rio.results", "rio.analysis", "rio.plots", "rio.study"},
    "cli": LIGHT
    | {"torch", "detectron2", "matplotlib", "hotcoco", "yaml"}
    | {"rio.config", "rio.trainer", "rio.data", "rio.shapes", "rio.engine", "rio.results", "rio.plots", "rio.study"}
    | {"rio.report", "rio.checks", "rio.analysis"},
    "install": {"rio.data.files"},  # which is standard library only
}
TOP = {"rio.trainer", "rio.widgets", "rio.cli"}  # nothing imports these but the command line the trainer

# Notebooks on a laptop open in a second with these.
LAPTOP = ("data", "results", "checks", "analysis", "plots", "widgets")
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".ipynb", ".json", ".html", ".css", ".js", ".cfg", ""}


def sources() -> dict[str, list[Path]]:
    """The files of every room."""
    files = {path.stem: [path] for path in PACKAGE.glob("*.py")}
    return files | {path.parent.name: sorted(path.parent.rglob("*.py")) for path in PACKAGE.glob("*/__init__.py")}


def dotted(path: Path) -> str:
    """rio/data/names.py -> rio.data.names"""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path) for files in sources().values() for path in files}


def imported(tree: ast.AST, modules: set[str] = MODULES) -> set[str]:
    """Top-level third-party packages and modules of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write `from rio import ...`"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= members & modules or {node.module}  # `from rio import plots` imports rio.plots
    found = {name if name.split(".")[0] == "rio" else name.split(".")[0] for name in found}
    return {name for name in found if name not in sys.stdlib_module_names}


def allowed(name: str, room: str) -> bool:
    own = f"rio.{room}"
    if name == own or name.startswith(own + "."):
        return True
    return any(name == entry or (entry != "rio" and name.startswith(entry + ".")) for entry in MAY_IMPORT[room])


@pytest.mark.parametrize("room", sorted(sources()))
def test_imports(room):
    assert room in MAY_IMPORT, "a new room needs a line in MAY_IMPORT, and a reason"
    for path in sources()[room]:
        wrong = sorted(name for name in imported(ast.parse(path.read_text())) if not allowed(name, room))
        assert not wrong, f"{path.relative_to(REPOSITORY)} imports {wrong}; see MAY_IMPORT"


def test_no_file_is_longer_than_a_reader_bears():
    lengths = {str(path): len(path.read_text().splitlines()) for files in sources().values() for path in files}
    assert max(lengths.values()) <= 400, {path: n for path, n in lengths.items() if n > 400}


def test_imports_are_found_wherever_they_stand():
    source = "import os.path\nfrom rio import plots, __version__\n"
    source += "def f():\n    import torch.nn\n    from rio.a import b\n    from rio.data import names\n"
    found = imported(ast.parse(source), {"rio.plots", "rio.data.names"})
    assert found == {"rio.plots", "rio.a", "torch", "rio.data.names"}


def test_no_import_circles():
    graph = {
        dotted(path): {name for name in imported(ast.parse(path.read_text())) if name in MODULES} - {dotted(path)}
        for files in sources().values()
        for path in files
    }
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    assert not graph, f"modules that import each other: {sorted(graph)}"


def test_nothing_imports_the_top():
    for room, files in sources().items():
        if room in ("__init__", "__main__"):
            continue
        for path in files:
            top = {".".join(name.split(".")[:2]) for name in imported(ast.parse(path.read_text()))} & TOP
            assert top <= ({"rio.trainer"} if room == "cli" else set()) | {f"rio.{room}"}, f"{path}: {top}"


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in memory after a fresh python ran a statement."""
    code = f"import json, sys; before = set(sys.modules); {statement}; "
    code += "print(json.dumps(sorted(set(sys.modules) - before)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY.parent)
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}


def test_import_rio_is_instant():
    assert loaded_by("import rio") - sys.stdlib_module_names == {"rio"}


def test_laptop_modules_bring_neither_torch_nor_detectron2():
    pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")
    laptop = [dotted(path) for room in LAPTOP for path in sources()[room]]
    loaded = loaded_by("import " + ", ".join(laptop))
    assert not loaded & {"torch", "torchvision", "detectron2", "fvcore"}, "a notebook on a laptop would wait for these"


def repository_files() -> list[Path]:
    """Text files under version control, or not ignored by it; all files of an unpacked archive."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPOSITORY, capture_output=True
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = [REPOSITORY / name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in paths if path.suffix in TEXT and path.is_file()]


# Written in halves: this file is searched too.
INDEX_HOSTS = ["py" + "pi.org", "python" + "hosted.org"]
INDEX_HOSTS += [f"{host}.org" for host in ("download." + "pytorch", "repo." + "anaconda", "conda." + "anaconda")]
MACHINE_PATHS = [f"/{name}/" for name in ("root", "work", "home", "Users", "tmp", "opt")]


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
    known = {"notebooks", "rio", "configs", "tests", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"}
    known |= {"LICENSE", "Makefile", "constraints.txt", "environment.yml", "pyproject.toml"}
    tracked = {path.relative_to(REPOSITORY).parts[0] for path in repository_files()}
    assert {name for name in tracked if not name.startswith(".")} <= known
