"""Notebook 05 as a web page on this machine, served by voila: `make app`, or `python -m rio.widgets.app --run FOLDER`.

Bound to the loopback interface, opened by a token; fetches nothing from elsewhere.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rio.data.names import project_root

NOTEBOOK = "05_inspect_predictions.ipynb"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; the words after `python -m rio.widgets.app` in, the exit code out."""
    parser = argparse.ArgumentParser(prog="python -m rio.widgets.app", description="Look at predictions in a browser.")
    parser.add_argument("--run", metavar="DIR", help="a finished run (default: output/demo/rfs+bank-cosine-seed1)")
    parser.add_argument("--results", metavar="JSON", help="or a results file; with --dataset")
    parser.add_argument("--dataset", metavar="JSON@DIR", help="its ground truth and image folder")
    parser.add_argument("--train", metavar="JSON@DIR", help="the training set: frequency groups and crops")
    parser.add_argument("--other", metavar="DIR", help="a second run, shown beside the first")
    parser.add_argument("--threshold", type=float, metavar="S", help="score to begin with (default: chosen by F1)")
    parser.add_argument("--port", type=int, default=8866, metavar="N", help="default 8866")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    args = parser.parse_args(argv)
    if (args.results is None) != (args.dataset is None):
        parser.error("--results and --dataset: expected both or neither")
    if args.run is not None and not Path(args.run).expanduser().is_dir():
        fix = "Fix: `make demo` makes output/demo/rfs+bank-cosine-seed1"
        parser.error(f"--run {args.run}: expected a run's folder, found none there. {fix}")
    source = project_root() / "notebooks" / NOTEBOOK
    if not source.is_file():
        parser.error(f"{source}: no such notebook. Fix: run this from a clone of the repository")
    given = {
        name: _absolute(value)
        for name in ("run", "results", "dataset", "train", "other")
        if (value := vars(args)[name])
    }
    given["threshold"] = args.threshold
    with tempfile.TemporaryDirectory(prefix="rio-app-") as folder:
        return _serve(_copy(source, Path(folder), given), args.port, args.no_browser)


def _absolute(name: str) -> str:
    """A path, or both paths of "file.json@images", absolute; names of data sets stay."""
    file, at, images = name.partition(".json@")
    if at:
        return f"{Path(file).expanduser().absolute()}{at}{Path(images).expanduser().absolute()}"
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() or "/" in name or name.endswith(".json") else name


def _copy(source: Path, folder: Path, values: dict[str, object]) -> Path:
    """The notebook with other values behind its `parameters` cell."""
    notebook = json.loads(source.read_text(encoding="utf-8"))
    place = next(i for i, cell in enumerate(notebook["cells"]) if "parameters" in cell["metadata"].get("tags", []))
    # The page shows no code to change.
    notebook["cells"][place - 1]["source"] = (
        "Choose a run below: one in `output/`, or beside the one that this page began with (`make app RUN=FOLDER`)."
    )
    text = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    cell = {"cell_type": "code", "execution_count": None, "id": "given", "metadata": {}, "outputs": [], "source": text}
    notebook["cells"].insert(place + 1, cell)
    copy = folder / source.name
    copy.write_text(json.dumps(notebook), encoding="utf-8")
    return copy


def _serve(notebook: Path, port: int, no_browser: bool) -> int:
    here = Path(__file__).resolve()
    environment = dict(os.environ)
    for name, folder in (("JUPYTER_PATH", here.parent / "web"), ("PYTHONPATH", here.parents[2])):
        environment[name] = os.pathsep.join([str(folder), *filter(None, [environment.get(name)])])
    command = [
        sys.executable, "-m", "voila", str(notebook), "--token", "--template=rio", "--Voila.ip=127.0.0.1",
        # Show the sentence with which a notebook stops; voila's default only says that there was an error.
        "--VoilaConfiguration.show_tracebacks=True", f"--port={port}", *["--no-browser"] * no_browser,
    ]  # fmt: skip
    process = subprocess.Popen(command, env=environment)
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # the terminal signals voila too; it ends by itself
            return process.wait()


if __name__ == "__main__":
    sys.exit(main())
