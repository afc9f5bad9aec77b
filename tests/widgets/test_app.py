"""The web page's command: what it passes on to the notebook, and what it refuses."""

import json
from pathlib import Path

import pytest

pytest.importorskip("ipywidgets", reason="ipywidgets is not installed (the extra `notebooks`)")

from rio.widgets import app


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Every server that would start: its command, environment, and the values of its notebook's parameters."""
    calls = []

    class Server:
        def __init__(self, command, env):  # a list of words, and no shell
            assert isinstance(command, list)
            notebook = json.loads(Path(command[3]).read_text())
            first, given = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"][:2]
            assert "parameters" in first["metadata"]["tags"]
            values = {}
            exec("".join(first["source"]), values)  # the notebook's own
            exec(given["source"], values)  # what the command gave
            calls.append((command, env, values))

        def wait(self):
            return 0

    monkeypatch.setattr(app.subprocess, "Popen", Server)
    monkeypatch.chdir(tmp_path)
    return calls


def test_defaults_leave_the_notebook_its_own(served):
    assert app.main([]) == 0
    command, environment, values = served[0]
    assert (values["run"], values["results"]) == ("output/demo/rfs+bank-cosine-seed1", None)
    assert {"--token", "--Voila.ip=127.0.0.1", "--template=rio", "--port=8866"} <= set(command)
    assert "--no-browser" not in command
    template = Path(environment["JUPYTER_PATH"].split(":")[0]) / "voila" / "templates" / "rio" / "index.html.j2"
    assert template.is_file() and "https://" not in template.read_text()


def test_paths_are_seen_from_anywhere(served, tmp_path):
    hostile = "a'\"; touch was_here; import os\n #"  # quotes in a path stay a path
    (tmp_path / hostile).mkdir()
    app.main(["--run", hostile, "--threshold", "0.5", "--port", "9000", "--no-browser"])
    command, _, values = served[0]
    assert (values["run"], values["threshold"]) == (str(tmp_path / hostile), 0.5)
    assert not any("was_here" in word for word in command)
    assert {"--port=9000", "--no-browser"} <= set(command)
    app.main(["--results", "r.json", "--dataset", "val.json@images", "--train", "shapes_demo_train"])
    values = served[1][2]
    assert values["results"] == str(tmp_path / "r.json")
    assert values["dataset"] == f"{tmp_path}/val.json@{tmp_path}/images"
    assert values["train"] == "shapes_demo_train"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "nowhere"], "make demo"),
        (["--results", "r.json"], "--results and --dataset: expected both or neither"),
    ],
)
def test_refuses(served, capsys, words, message):
    with pytest.raises(SystemExit):
        app.main(words)
    assert message in capsys.readouterr().err and not served
