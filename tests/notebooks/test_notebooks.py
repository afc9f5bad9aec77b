"""Every notebook keeps the house's rules, and runs from top to bottom on data that is drawn for it."""

import ast
import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("nbmake", reason="nbmake is not installed (the extra `test`)")
pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

import nbformat
from nbmake.nb_run import NotebookRun

from rio.shapes import dataset, spec
from tests.support import finished_runs, lab, tiny_shapes

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
def test_is_thin_and_imports_rio_only(path):
    code = cells(path, "code")
    assert len(code) <= MOST_CELLS
    for cell in code:
        lines = cell.source.splitlines()
        assert len(lines) <= MOST_LINES and max(map(len, lines)) <= MOST_COLUMNS, cell.source
        loops = [type(node).__name__ for node in ast.walk(tree(cell)) if isinstance(node, LOOPS)]
        assert not loops, f"{loops} belong in rio/widgets or rio/plots:\n{cell.source}"
    nodes = [node for cell in code for node in ast.walk(tree(cell))]
    assert [ast.unparse(node) for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))] == ["import rio"]


@by_name
def test_begins_with_a_question_and_parameters_and_ends_with_an_assertion(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert all(words in first.source for words in ("**Question.**", "**Run time**", "**Needs**"))
    code = cells(path, "code")
    assert [cell for cell in code if "parameters" in cell.metadata.get("tags", [])] == code[:1]
    for statement in tree(code[0]).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree(code[-1])))


@by_name
def test_is_stripped_and_knows_no_ci(path):
    for cell in cells(path, "code"):
        assert not cell.outputs and cell.execution_count is None
        assert "CI" not in {node.value for node in ast.walk(tree(cell)) if isinstance(node, ast.Constant)}
        assert "environ" not in cell.source
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    nbformat.validate(notebook)


# -------------------------------------------------------------------------------------------------- execution


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A user's machine without anything on it but the embedded set, drawn, and finished runs on it."""
    root = tmp_path_factory.mktemp("world")
    # Drawn coarsely: the labels are the same, in a quarter of the time.
    coarse = dataclasses.replace(spec.SPECS["demo"], supersampling=1)
    marker = dataset.generate(root / "datasets", coarse, workers=1, progress=False) / "spec.json"
    marker.write_text(marker.read_text().replace('"supersampling":1', '"supersampling":3'))
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
        known = {target.id for statement in tree(cells(path, "code")[0]).body for target in statement.targets}
        assert set(parameters) <= known, f"{path.name} has no parameter {set(parameters) - known}"
        return NotebookRun(lab.copy_with(tmp_path, path.name, **parameters), SECONDS).execute()

    return run


def outputs(result):
    return [output for cell in result.nb.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize(
    ("stem", "parameters", "number", "words"),
    [
        ("01", {}, 5, ["Rare categories: 37% of the categories, 3.6% of the objects.", "vnd.jupyter.widget-view+json"]),
        ("01", {"dataset": "{tiny}/train.json"}, 5, []),  # one's own data, without its images
        ("02", {}, 5, ["replayed"]),
        ("02", {"dataset": "{tiny}/train.json", "repeat_threshold": 0.3, "replay_per_class": 3}, 5, []),
        # Runs of several seeds; with the study that lies in the repository, and without one.
        ("06", {"features": "none"}, 0, ["vnd.jupyter.widget-view+json"]),
        ("04", {"runs_folder": "{runs}"}, 10, ["resolved gains", "rfs-linear over none-linear +", "recomputed"]),
        ("04", {"runs_folder": "{runs}", "study_file": None}, 6, ["No study was named"] * 4),
        ("05", {"run": "{runs}/rio-seed1"}, 0, []),
        ("05", {"run": None}, 0, ["MADE UP"]),
    ],
)
def test_it_runs_from_top_to_bottom(execute, world, tiny_set, stem, parameters, number, words):
    places = {"tiny": tiny_set, "runs": world / "runs"}
    result = execute(stem, **{k: v.format(**places) if isinstance(v, str) else v for k, v in parameters.items()})
    assert result.error is None, result.error
    assert sum("<svg style" in output.get("data", {}).get("text/html", "") for output in outputs(result)) == number
    shown = "\n".join(output.get("text", "") + str(output.get("data", "")) for output in outputs(result))
    shown += str(result.nb.metadata.get("widgets", ""))  # what stands inside the views
    assert all(shown.count(word) >= words.count(word) for word in words), shown


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


# -------------------------------------------------------------------------------------------------- bad input


def refused(result):
    """The error output of the cell that stopped the notebook: a sentence, and nothing of a traceback."""
    (error,) = [output for output in outputs(result) if output.output_type == "error"]
    assert error.ename == "NotebookError"
    sentence = " ".join(error.traceback)
    assert not any(part in sentence for part in ('File "', "Traceback", "\n")) and sentence[-1] in ".!?"
    return sentence


def test_a_notebook_stops_with_a_sentence(execute, tmp_path):
    """What can be wrong with each input is tested with the views."""
    assert "make demo" in refused(execute("05", run="nowhere/run"))
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.json").write_text("")
    sentence = refused(execute("04", runs_folder=str(tmp_path), study_file=None))
    assert "make demo" in sentence and str(tmp_path / "begun") in sentence
