"""Every notebook keeps the house's rules, and runs from top to bottom on data that is drawn for it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbmake", reason="nbmake is not installed (the extra `test`)")
pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

import nbformat
from nbmake.nb_run import NotebookRun

from rio.shapes import dataset, spec
from tests.support import finished_runs, tiny_shapes

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
MOST_CELLS, MOST_LINES, MOST_COLUMNS, SECONDS = 12, 8, 120, 300
LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def tree(cell):
    """The cell's Python; lines for IPython itself are left out."""
    return ast.parse("\n".join("" if line.startswith(("%", "!")) else line for line in cell.source.splitlines()))


# ------------------------------------------------------------------------------------------------------ rules


@by_name
def test_is_thin(path):
    code = cells(path, "code")
    assert len(code) <= MOST_CELLS
    for cell in code:
        lines = cell.source.splitlines()
        assert len(lines) <= MOST_LINES, cell.source
        assert max(map(len, lines)) <= MOST_COLUMNS, cell.source
        loops = [type(node).__name__ for node in ast.walk(tree(cell)) if isinstance(node, LOOPS)]
        assert not loops, f"{loops} belong in rio/widgets or rio/plots:\n{cell.source}"


@by_name
def test_imports_rio_and_nothing_else(path):
    nodes = [node for cell in cells(path, "code") for node in ast.walk(tree(cell))]
    imports = [ast.unparse(node) for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert imports == ["import rio"]


@by_name
def test_says_first_what_it_asks_takes_and_needs(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    for words in ("**Question.**", "**Run time**", "**Needs**"):
        assert words in first.source


@by_name
def test_has_one_cell_of_parameters_with_plain_values(path):
    tagged = [cell for cell in cells(path, "code") if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0] == cells(path, "code")[0]
    for statement in tree(tagged[0]).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)


@by_name
def test_ends_with_an_assertion(path):
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree(cells(path, "code")[-1])))


@by_name
def test_is_stripped_and_knows_no_ci(path):
    for cell in cells(path, "code"):
        assert not cell.outputs
        assert cell.execution_count is None
        assert "CI" not in {node.value for node in ast.walk(tree(cell)) if isinstance(node, ast.Constant)}
        assert "environ" not in cell.source
    assert "widgets" not in nbformat.read(path, as_version=4).metadata
    nbformat.validate(nbformat.read(path, as_version=4))


def test_opening_the_views_loads_neither_torch_nor_detectron2():
    """01, 02, 04 and 05 open on a laptop at once."""
    heavy = {"torch", "torchvision", "detectron2", "fvcore"}
    views = "open_dataset explore compare_sampling TrainingPanel open_runs open_study open_predictions Inspector plots"
    code = f"import sys, rio; [getattr(rio, name) for name in {views.split()}]; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# -------------------------------------------------------------------------------------------------- execution


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A user's machine without anything on it but the embedded set, drawn, and finished runs on it."""
    root = tmp_path_factory.mktemp("world")
    dataset.generate(root / "datasets", spec.SPECS["demo"], workers=1, progress=False)
    names = {"train_name": "shapes_demo_train", "test_name": "shapes_demo_val"}
    finished_runs.make(root / "runs", root / "datasets" / "shapes_demo", seeds=(1, 2), **names)
    return root


@pytest.fixture
def execute(world, tmp_path, monkeypatch):
    """Runs a notebook in an empty folder with parameters injected; returns nbmake's result."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world / "datasets"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook's own
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "RIO_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)

    def run(stem, **parameters):
        path = next(path for path in NOTEBOOKS if path.stem.startswith(stem))
        notebook = nbformat.read(path, as_version=4)
        at = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
        known = {target.id for statement in tree(notebook.cells[at]).body for target in statement.targets}
        assert set(parameters) <= known, f"{path.name} has no parameter {set(parameters) - known}"
        source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(source or "pass"))
        copy = tmp_path / path.name
        nbformat.write(notebook, copy)
        return NotebookRun(copy, SECONDS).execute()

    return run


def outputs(result, mime="text/plain"):
    """Everything that the cells gave in a format, as one text."""
    found = []
    for cell in result.nb.cells:
        for output in cell.get("outputs", []):
            found.append(output.get("text", "") if mime == "text/plain" else "")
            found.append(str(output.get("data", {}).get(mime, "")))
    return "\n".join(found)


def figures(result):
    return sum("image/svg+xml" in o.get("data", {}) for c in result.nb.cells for o in c.get("outputs", []))


def test_01_on_the_embedded_set(execute):
    result = execute("01")
    assert result.error is None, result.error
    assert figures(result) == 5
    assert "Rare categories: 37% of the categories, 3.6% of the objects." in outputs(result)
    assert "application/vnd.jupyter.widget-view+json" in str(result.nb)


def test_01_and_02_on_ones_own_data_without_its_images(execute, tiny_set):
    result = execute("01", dataset=f"{tiny_set}/train.json")
    assert result.error is None, result.error
    assert figures(result) == 5
    result = execute(
        "02", dataset=f"{tiny_set}/train.json", repeat_threshold=0.3, replay_per_class=3, slots_per_class=2
    )
    assert result.error is None, result.error


def test_02_on_the_embedded_set(execute):
    result = execute("02")
    assert result.error is None, result.error
    assert figures(result) == 4
    assert "replayed" in outputs(result)


@pytest.mark.slow
def test_03_trains(execute, tiny_set, tmp_path):
    data = {
        f"{split}_{kind}": str(tiny_set / f"{split}{ending}")
        for split in ("train", "val")
        for kind, ending in (("json", ".json"), ("images", ""))
    }
    options = tiny_shapes.model_options(3)
    result = execute("03", output_dir=str(tmp_path / "run"), data=data, options=options, num_gpus=0, wait=280)
    assert result.error is None, result.error
    assert (tmp_path / "run" / "evaluation.json").is_file()


def test_04_on_finished_runs_of_several_seeds(execute, world):
    result = execute("04", runs_folder=str(world / "runs"))  # with the study that lies in the repository
    assert result.error is None, result.error
    assert figures(result) == 6
    assert "Resolved gains: rfs_cosine over rfs_linear +" in outputs(result)
    assert "recomputed" in outputs(result)


def test_04_without_a_study(execute, world):
    result = execute("04", runs_folder=str(world / "runs"), study_file=None)
    assert result.error is None, result.error
    assert figures(result) == 4
    assert outputs(result).count("No study was named") >= 4


def test_05_on_a_finished_run(execute, world):
    result = execute("05", run=str(world / "runs" / "rio-seed1"))
    assert result.error is None, result.error


def test_05_without_a_run_says_that_its_predictions_are_made_up(execute):
    result = execute("05", run=None)
    assert result.error is None, result.error
    assert "MADE UP" in str(result.nb)


# -------------------------------------------------------------------------------------------------- bad input


def refused(result):
    """The error output of the cell that stopped the notebook: a sentence, and nothing of a traceback."""
    errors = [o for c in result.nb.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert len(errors) == 1
    assert errors[0].ename == "NotebookError"
    sentence = " ".join(errors[0].traceback)
    assert 'File "' not in sentence
    assert "Traceback" not in sentence
    assert "\n" not in sentence
    assert sentence[-1] in ".!?"
    return sentence


def test_a_notebook_stops_with_a_sentence(execute, tmp_path):
    """What can be wrong with each input is tested with the views."""
    assert "found nothing there" in refused(execute("02", dataset="nowhere/train.json"))
    (tmp_path / "empty.json").write_text("{}")
    assert "empty.json" in refused(execute("01", dataset=str(tmp_path / "empty.json")))
    assert "make demo" in refused(execute("05", run="nowhere/run"))


def test_04_without_a_run_says_how_to_make_one(execute, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.json").write_text("")
    sentence = refused(execute("04", runs_folder=str(tmp_path), study_file=None))
    assert "make demo" in sentence
    assert str(tmp_path / "begun") in sentence
