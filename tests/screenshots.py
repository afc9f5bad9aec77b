"""Pictures of the notebooks for the README: real runs, the real JupyterLab, a real browser.

    make demo && make screenshots          # or: python -m tests.screenshots --runs FOLDER --only 05
    python -m tests.screenshots --all FOLDER --width 1600 --dark [--dataset JSON@DIR]

Each notebook is run from top to bottom and photographed at its main view, into notebooks/images/; with --all, as a
whole, to look at, in either theme.
"""

import argparse
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support import lab

IMAGES = lab.NOTEBOOKS / "images"
MOST_BYTES = 300_000
WIDTH = 1280  # px
QUIET = """
    .jp-SideBar, #jp-bottom-panel, .jp-NotebookPanel-toolbar { display: none !important; }
    #main, #jp-main-content-panel, #jp-main-dock-panel, #jp-main-vsplit-panel { background: #fff !important; }
    .rio-view, .widget-vbox { scroll-margin-top: 12px; }
"""
# Where this checkout lies on this machine is nobody's concern.
NEUTRAL = """(names) => {
    const neutral = (text) => names.reduce((t, [from, to]) => t.replaceAll(from, to), text);
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const node = walk.currentNode, text = neutral(node.data);
        if (text !== node.data && !node.parentElement.closest('.cm-editor')) node.data = text;
    }
    for (const input of document.querySelectorAll('input')) input.value = neutral(input.value);
}"""


@dataclass(frozen=True)
class Shot:
    """What to photograph: the notebook, what stands at the top of the picture, and what is done before."""

    notebook: str
    top: str  # CSS selector
    height: int = 860  # px


SLIDERS = ".widget-vbox:has(> .widget-vbox .widget-slider), .widget-vbox:has(.widget-slider)"
SHOTS = (
    Shot("01_distribution_analysis.ipynb", ".rio-explorer"),
    Shot("02_image_vs_object_balance.ipynb", SLIDERS),
    Shot("03_train.ipynb", ".rio-training", height=960),
    Shot("04_per_frequency_ap.ipynb", "h2:has-text('By frequency group')"),
    Shot("06_classifier_lab.ipynb", ".widget-vbox:has(select[multiple])", height=1000),
    Shot("05_inspect_predictions.ipynb", ".rio-inspector", height=900),
)


@dataclass(frozen=True)
class Look:
    """How it is photographed."""

    width: int = WIDTH  # px
    dark: bool = False
    all: Path | None = None  # folder for a picture of the whole notebook
    dataset: str | None = None  # for the notebooks that take one


def take(shot: Shot, runs: Path, folder: Path, look: Look = Look()) -> Path:
    """Run one notebook and photograph it; returns the picture's path."""
    # The notebooks as they are: their own parameters find the runs where `make demo` puts them.
    copy = folder / "notebooks"
    (copy / "output").mkdir(parents=True)
    (copy / "output" / "demo").symlink_to(runs)
    (copy / "output" / "lab").symlink_to(runs.parent / "lab")
    (copy / "output" / "notebook").symlink_to(runs / "detector" / "none-seed1")
    if look.dataset and shot.notebook.startswith(("01", "02")):
        lab.copy_with(copy, shot.notebook, dataset=look.dataset)
    else:
        shutil.copy(lab.NOTEBOOKS / shot.notebook, copy)
    with lab.jupyter_lab(copy, folder) as address, lab.browser_page(look.width, shot.height) as page:
        if look.dark:
            page.emulate_media(color_scheme="dark")
        errors = lab.run_notebook(page, address, shot.notebook) + page.problems
        if errors:
            raise RuntimeError(f"{shot.notebook}: " + "\n".join(errors))
        for command in ("application:toggle-left-area", "application:toggle-mode"):
            page.evaluate("command => window.jupyterapp.commands.execute(command)", command)
        page.add_style_tag(content=QUIET.replace("#fff", "var(--jp-layout-color0)"))
        if look.dark:
            page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        if look.all:
            return photograph_all(page, look, Path(shot.notebook).stem)
        page.evaluate("window.dispatchEvent(new Event('resize'))")
        top = page.locator(shot.top).first
        top.wait_for()
        for _ in range(4):  # cells that come into view take their height only then, and move the others
            top.evaluate("node => node.scrollIntoView({block: 'start'})")
            page.wait_for_timeout(900)
        page.evaluate(
            NEUTRAL,
            [[f"{copy}/", ""], [f"{runs}/", "output/demo/"], [str(lab.REPOSITORY), "~/rio"], [sys.prefix, ".venv"]],
        )
        page.wait_for_timeout(200)
        picture = Image.open(io.BytesIO(page.screenshot()))
    IMAGES.mkdir(exist_ok=True)
    target = IMAGES / f"{Path(shot.notebook).stem}.png"
    picture = picture.convert("RGB")
    picture.save(target, optimize=True)
    if target.stat().st_size > MOST_BYTES:  # a palette: a third of the size, and text stays sharp
        palette = picture.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=3)
        colors = palette.getpalette()
        for i in range(0, len(colors), 3):  # the mean of many near-white pixels is a grey page
            colors[i : i + 3] = [255] * 3 if min(colors[i : i + 3]) >= 248 else colors[i : i + 3]
        palette.putpalette(colors)
        picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)
    return target


def photograph_all(page: Any, look: Look, stem: str) -> Path:
    """The whole notebook in one picture."""
    page.set_viewport_size({"width": look.width, "height": 12_000})
    page.wait_for_timeout(1000)
    page.locator(".jp-WindowedPanel-outer").first.evaluate("node => { node.scrollTop = 0; }")
    page.wait_for_timeout(4000)
    bottom = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.jp-Cell')].map(n => n.getBoundingClientRect().bottom))"
    )
    target = look.all / f"{stem}-{look.width}{'-dark' * look.dark}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=target, clip={"x": 0, "y": 0, "width": look.width, "height": min(bottom + 20, 12_000)})
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Take all pictures, or those of the notebooks whose names begin with --only."""
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=lab.REPOSITORY / "output" / "demo", help="default: output/demo")
    parser.add_argument("--only", default="", metavar="NN", help="for example 05")
    parser.add_argument("--all", type=Path, metavar="DIR", help="the whole notebooks, into this folder")
    parser.add_argument("--width", type=int, default=WIDTH, metavar="PX", help="with --all (default %(default)s)")
    parser.add_argument("--dark", action="store_true", help="with --all: JupyterLab's dark theme")
    parser.add_argument("--dataset", metavar="JSON@DIR", help="with --all: for the notebooks that take a data set")
    args = parser.parse_args(argv)
    look = Look(args.width, args.dark, args.all and args.all.absolute(), args.dataset) if args.all else Look()
    if lab.missing():
        parser.error(lab.missing())
    runs = args.runs.absolute()
    if not (runs / "rfs+bank-cosine-seed1" / "instances_results.json").is_file():
        parser.error(f"{runs}: expected the runs of `make demo`, found none. Run it first, or name them by --runs")
    os.environ.setdefault("DETECTRON2_DATASETS", str(lab.REPOSITORY / "datasets"))
    for shot in SHOTS:
        if not shot.notebook.startswith(args.only):
            continue
        with tempfile.TemporaryDirectory(prefix="rio-screenshots-") as folder:
            target = take(shot, runs, Path(folder), look)
        print(f"{os.path.relpath(target, lab.REPOSITORY)}: {target.stat().st_size / 1000:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
