"""The web page's command: what it passes on to the notebook, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("ipywidgets", reason="ipywidgets is not installed (the extra `notebooks`)")

from rio.widgets import app


@pytest.fixture
def served(monkeypatch, tmp_path):
    """What would be served: the notebook's copy, read before it goes."""
    calls = []

    def serve(notebook, port, no_browser):
        calls.append((json.loads(Path(notebook).read_text()), port, no_browser))
        return 0

    monkeypatch.setattr(app, "_serve", serve)
    monkeypatch.chdir(tmp_path)
    return calls


def given(call):
    cells = [cell for cell in call[0]["cells"] if cell["cell_type"] == "code"]
    assert "parameters" in cells[0]["metadata"]["tags"]
    values = {}
    exec("".join(cells[0]["source"]), values)  # the notebook's own
    exec(cells[1]["source"], values)  # what the command gave
    return values


def test_defaults_leave_the_notebook_its_own(served):
    assert app.main([]) == 0
    values = given(served[0])
    assert (values["run"], values["results"]) == ("output/demo/rio-seed1", None)
    assert served[0][1:] == (8866, False)


def test_paths_are_seen_from_anywhere(served, tmp_path):
    (tmp_path / "mine").mkdir()
    app.main(["--run", "mine", "--threshold", "0.5", "--port", "9000", "--no-browser"])
    values = given(served[0])
    assert (values["run"], values["threshold"]) == (str(tmp_path / "mine"), 0.5)
    assert served[0][1:] == (9000, True)
    app.main(["--results", "r.json", "--dataset", "val.json@images", "--train", "shapes_demo_train"])
    values = given(served[1])
    assert values["results"] == str(tmp_path / "r.json")
    assert values["dataset"] == f"{tmp_path}/val.json@{tmp_path}/images"
    assert values["train"] == "shapes_demo_train"


def test_quotes_in_a_path_stay_a_path(served, tmp_path):
    (tmp_path / "a'; import os #").mkdir()
    app.main(["--run", "a'; import os #"])
    assert given(served[0])["run"].endswith("a'; import os #")


def test_a_run_that_is_not_there(served, capsys):
    with pytest.raises(SystemExit):
        app.main(["--run", "nowhere"])
    assert "make demo" in capsys.readouterr().err
    assert not served


def test_results_need_their_ground_truth(served, capsys):
    with pytest.raises(SystemExit):
        app.main(["--results", "r.json"])
    assert "--results and --dataset: expected both or neither" in capsys.readouterr().err
    assert not served


def test_the_page_is_bound_to_this_machine_and_has_a_token(monkeypatch, tmp_path):
    seen = []

    class Process:
        def __init__(self, command, env):
            seen.append((command, env))

        def wait(self):
            return 0

    monkeypatch.setattr(app.subprocess, "Popen", Process)
    assert app._serve(tmp_path / "n.ipynb", 8866, True) == 0
    command, environment = seen[0]
    assert {"--token", "--Voila.ip=127.0.0.1", "--template=rio", "--no-browser"} <= set(command)
    template = Path(environment["JUPYTER_PATH"].split(":")[0]) / "voila" / "templates" / "rio" / "index.html.j2"
    assert template.is_file() and "https://" not in template.read_text()
