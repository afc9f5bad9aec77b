"""Pictures of the notebooks for the README: real runs, the real JupyterLab, a real browser.

    make demo && make screenshots          # or: python -m tests.screenshots --runs FOLDER --only 05

Each notebook is run from top to bottom and photographed at its main view, into notebooks/images/.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))

import lab

IMAGES = lab.NOTEBOOKS / "images"
MOST_BYTES = 300_000
SIZE = (1280, 860)


@dataclass(frozen=True)
class Shot:
    """What to photograph: the notebook, what stands at the top of the picture, and what is done before."""

    notebook: str
    top: str  # CSS selector
    parameters: dict[str, Any] = field(default_factory=dict)
    prepare: str = ""  # JavaScript


def shots(runs: Path) -> list[Shot]:
    """One a notebook.

    Args:
        runs: folder of the runs of `make demo`.
    """
    rio = str(runs / "rio-seed1")
    return [
        Shot("01_distribution_analysis.ipynb", ".rio-explorer"),
        Shot("02_image_vs_object_balance.ipynb", ".jp-OutputArea-output:has(.widget-slider)"),
        Shot("03_train.ipynb", ".rio-training", {"output_dir": rio}),
        Shot("04_per_frequency_ap.ipynb", "h1"),
        Shot("05_inspect_predictions.ipynb", ".rio-inspector", {"run": rio}),
    ]


def take(shot: Shot, folder: Path) -> Path:
    """Run one notebook and photograph it.

    Returns:
        The picture's path.

    Raises:
        RuntimeError: a cell failed, or the browser's console has errors.
    """
    (folder / "notebooks").mkdir(parents=True)
    lab.copy_with(folder / "notebooks", shot.notebook, **shot.parameters)
    with lab.jupyter_lab(folder / "notebooks", folder) as address, lab.browser_page(*SIZE) as page:
        errors = lab.run_notebook(page, address, shot.notebook) + page.problems
        if errors:
            raise RuntimeError(f"{shot.notebook}: " + "\n".join(errors))
        for command in ("application:toggle-left-area", "application:toggle-mode"):
            page.evaluate("command => window.jupyterapp.commands.execute(command)", command)
        page.add_style_tag(content=".jp-SideBar, #jp-bottom-panel, .jp-NotebookPanel-toolbar { display: none !important; }")
        page.evaluate("window.dispatchEvent(new Event('resize'))")
        page.locator(shot.top).first.wait_for()
        if shot.prepare:
            page.evaluate(shot.prepare)
        page.wait_for_timeout(1500)
        page.locator(shot.top).first.evaluate("node => node.scrollIntoView({block: 'start'})")
        page.wait_for_timeout(1500)
        picture = Image.open(io.BytesIO(page.screenshot()))
    IMAGES.mkdir(exist_ok=True)
    target = IMAGES / f"{Path(shot.notebook).stem}.png"
    for colors in (256, 128, 64):  # a palette: a third of the size, and text stays sharp
        picture.convert("RGB").quantize(colors, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)
        if target.stat().st_size <= MOST_BYTES:
            break
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Take all pictures, or those of the notebooks whose names begin with --only."""
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=lab.REPOSITORY / "output" / "demo", help="default: output/demo")
    parser.add_argument("--only", default="", metavar="NN", help="for example 05")
    args = parser.parse_args(argv)
    if lab.missing():
        parser.error(lab.missing())
    runs = args.runs.absolute()
    if not (runs / "rio-seed1" / "instances_results.json").is_file():
        parser.error(f"{runs}: expected the runs of `make demo`, found none. Run it first, or name them by --runs")
    os.environ.setdefault("DETECTRON2_DATASETS", str(lab.REPOSITORY / "datasets"))
    for shot in shots(runs):
        if not shot.notebook.startswith(args.only):
            continue
        with tempfile.TemporaryDirectory(prefix="rio-screenshots-") as folder:
            target = take(shot, Path(folder))
        print(f"{target.relative_to(lab.REPOSITORY)}: {target.stat().st_size / 1000:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
