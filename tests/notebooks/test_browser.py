"""The notebooks in a real browser: JupyterLab and voila, a slider moved, a step taken, nothing wrong in the console.

python -m pytest tests/notebooks/test_browser.py  # skips without chromium or playwright
"""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rio.data.load import load_annotations
from tests.support import lab

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "chromium and playwright are there"),
]


@pytest.fixture(scope="module")
def notebooks(tiny_set, finished_study, tmp_path_factory) -> Path:
    """Copies of 02, 04 and 05 on the tiny set; the runs' results are made up."""
    pytest.importorskip("anywidget")
    from rio.widgets.source import made_up_results

    top = tmp_path_factory.mktemp("browser")
    names = {split: f"{tiny_set}/{split}.json@{tiny_set}/{split}" for split in ("train", "val")}
    run = top / "run"
    run.mkdir()
    truth = load_annotations(tiny_set / "val.json", image_root=str(tiny_set / "val"))
    (run / "instances_results.json").write_text(json.dumps(made_up_results(truth)))
    (run / "config.yaml").write_text(json.dumps({"DATASETS": {"TRAIN": [names["train"]], "TEST": [names["val"]]}}))
    shutil.copytree(run, top / "other_run")
    copies = top / "notebooks"
    copies.mkdir()
    lab.copy_with(copies, "02_image_vs_object_balance.ipynb", dataset=names["train"])
    lab.copy_with(copies, "04_per_frequency_ap.ipynb", runs_folder=str(finished_study), study_file=None)
    lab.copy_with(copies, "05_inspect_predictions.ipynb", run=str(run), train=names["train"])
    return copies


@pytest.fixture(scope="module")
def address(notebooks, tmp_path_factory):
    with lab.jupyter_lab(notebooks, tmp_path_factory.mktemp("lab")) as address:
        yield address


@pytest.fixture
def page():
    with lab.browser_page() as page:
        page.hosts = set()
        page.on("request", lambda request: page.hosts.add(urlsplit(request.url).hostname))
        yield page
        assert not page.problems, page.problems
        outside = page.hosts - {"127.0.0.1", "localhost", None, ""}
        assert not outside, f"a page that has to work offline asked {outside}"


def move_slider(page, slider, steps: int) -> None:
    """By keyboard, as noUiSlider's handle takes it: in its own steps."""
    handle = slider.locator(".noUi-handle").first
    handle.focus()
    for _ in range(abs(steps)):
        handle.press("ArrowRight" if steps > 0 else "ArrowLeft")


def changes(page, locator, before: str) -> str:
    """Wait until a part of the page says something else."""
    handle = locator.element_handle()
    page.wait_for_function("([node, before]) => node.innerText !== before", arg=[handle, before], timeout=60_000)
    return locator.inner_text()


def use_inspector(page) -> None:
    """What 05 is for, in JupyterLab and under voila alike."""
    inspector = page.locator(".rio-inspector")
    inspector.locator(".rio-viewer svg image").first.wait_for()
    item, why = inspector.locator(".rio-item"), inspector.locator(".rio-why")
    # Correct predictions are many whatever the luck of the made-up results.
    inspector.get_by_role("button", name=re.compile("^correct")).click()
    page.wait_for_function("() => document.querySelector('.rio-chip')?.innerText === 'correct'")
    first, reason = item.inner_text(), why.inner_text()
    assert re.match(r"1 of \d+", first), first
    assert re.match(r"Why\?\s+Correct:", reason), reason
    image = inspector.locator(".rio-viewer svg image").first
    width = "node => { const i = new Image(); i.src = node.href.baseVal; return i.decode().then(() => i.width) }"
    assert image.evaluate(width) == 48

    viewer = inspector.locator(".rio-viewer")
    viewer.locator("figcaption").first.click()
    page.keyboard.press("ArrowRight")
    second = changes(page, item, first)
    assert second.startswith("2 of"), second
    page.keyboard.press("k")
    assert changes(page, item, second) == first
    inspector.get_by_role("button", name="→").click()
    assert changes(page, item, first) == second

    count = int(re.search(r"of ([\d,]+)", second)[1])
    note = viewer.locator("figcaption span").nth(1)
    seen = note.inner_text()
    higher = f"{float(seen.rpartition('≥ ')[2]) + 0.2:.2f}"  # it begins at the score that suits the predictions
    move_slider(page, inspector.locator(".widget-slider"), 20)
    page.wait_for_function(
        "value => document.querySelectorAll('.rio-viewer figcaption span')[1]?.innerText.includes(value)", arg=higher
    )
    assert note.inner_text() != seen and note.inner_text().endswith(f"score ≥ {higher}")
    fewer = int(re.search(r"of ([\d,]+)", item.inner_text())[1])
    assert fewer < count, "a higher threshold leaves fewer predictions"

    # All panels zoom in step; a key tags, and the grid shows the tag.
    viewer.locator("figcaption").first.click()
    page.keyboard.press("+")
    boxes = [svg.get_attribute("viewBox").split() for svg in viewer.locator("svg").all()]
    assert boxes[0] == boxes[1] and float(boxes[0][2]) == 48 / 1.5
    page.keyboard.press("f")
    page.keyboard.press("1")
    item.get_by_text("annotation wrong").wait_for()
    inspector.get_by_role("button", name="grid").click()
    viewer.locator(".rio-grid em").get_by_text("annotation wrong").wait_for()
    viewer.locator(".rio-grid button").first.click()
    viewer.locator("svg image").first.wait_for()

    # A click on a ground truth object asks about it.
    before = why.inner_text()
    viewer.locator("figure").first.locator(".rio-object").last.dispatch_event("click")
    page.wait_for_function("() => document.querySelector('.rio-focus') !== null")
    assert why.inner_text() and before


def test_inspector_in_jupyterlab(address, page):
    assert lab.run_notebook(page, address, "05_inspect_predictions.ipynb") == []
    use_inspector(page)


def test_runs_are_sorted_ticked_and_clicked(address, page):
    assert lab.run_notebook(page, address, "04_per_frequency_ap.ipynb") == []
    table, points = page.locator(".rio-runs"), ".rio-shown [id*='-pick-']:has(use)"
    table.wait_for()
    order = "() => [...document.querySelectorAll('.rio-runs tbody tr')].map((row) => row.dataset.arm).join()"
    assert page.evaluate(order) == "none,rfs,rio"
    table.get_by_role("button", name="run", exact=True).click()
    table.get_by_role("button", name="run").click()
    assert page.evaluate(order) == "none,rio,rfs", "by name, downwards"
    table.get_by_role("button", name="move RFS").press("ArrowUp")
    assert page.evaluate(order) == "none,rfs,rio"
    page.wait_for_function("points => document.querySelectorAll(points).length === 3", arg=points)
    table.get_by_role("checkbox", name="show no resampling").uncheck()
    page.wait_for_function("points => document.querySelectorAll(points).length === 2", arg=points)
    shown = page.locator(".rio-shown").filter(has=page.locator("[id*='-pick-'] use"))
    shown.locator("[id*='-pick-1'] use").last.click()  # of the last run ticked
    shown.locator(".rio-inspector figcaption", has_text="A: rio-seed1").wait_for()
    matrix = page.locator(".rio-shown").filter(has=page.locator("[id*='-pick-0'] > path"))
    cell = matrix.locator("[id*='-pick-0'] > path").first
    cell.hover()
    said = matrix.locator(".rio-tip").inner_text()
    assert re.fullmatch(r".* found: \d+%", said), said
    cell.click()
    chosen = matrix.locator(".rio-inspector .mod-active", has_text=" found ")
    chosen.wait_for()
    assert chosen.inner_text().startswith(said.partition(":")[0])


def test_inspector_as_a_web_page(notebooks, tmp_path, page):
    with lab.app(tmp_path, "--run", str(notebooks.parent / "run")) as address:
        assert urlsplit(address).hostname == "127.0.0.1"
        page.goto(address.partition("?")[0])
        assert page.locator(".rio-inspector").count() == 0, "without the token there is nothing to see"
        page.goto(address)
        page.locator(".rio-inspector").wait_for(timeout=lab.CELL_SECONDS * 1000)
        assert page.locator(".jp-InputArea-editor").count() == 0, "the page shows no code"
        use_inspector(page)
        run = page.locator(".widget-dropdown", has_text="run").locator("select").first
        other = next(label for label in run.locator("option").all_inner_texts() if label.endswith("other_run"))
        run.select_option(label=other)
        page.get_by_text(re.compile("run .*/other_run$")).first.wait_for()  # below the counts
        page.locator(".rio-chip", has_text="correct").wait_for()  # the filter stays


def test_bad_results_are_a_sentence_on_the_page(tiny_set, tmp_path, page):
    (tmp_path / "results.json").write_text("[")
    dataset = f"{tiny_set}/val.json@{tiny_set}/val"
    with lab.app(tmp_path, "--results", str(tmp_path / "results.json"), "--dataset", dataset) as address:
        page.goto(address)
        page.get_by_text("results.json").first.wait_for(timeout=lab.CELL_SECONDS * 1000)
        assert "Traceback" not in page.inner_text("body")


def test_balance_in_jupyterlab(address, page):
    assert lab.run_notebook(page, address, "02_image_vs_object_balance.ipynb") == []
    slider = page.locator(".widget-slider", has_text="replay per class").first
    slider.wait_for()
    panel = page.locator(".jp-OutputArea-output", has=slider).last
    before = panel.inner_text()
    move_slider(page, slider, 5)
    after = changes(page, panel, before)
    measures = [re.findall(r"\d+\.\d+", text) for text in (before, after)]
    assert measures[0] != measures[1], "more replay, other measures"
