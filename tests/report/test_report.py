"""The report: complete, self-contained, harmless whatever the files hold, clear about what is missing."""

import base64
import hashlib
import html.parser
import json
import re
import shutil

import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from rio import plots
from rio.data.load import load_annotations
from rio.report import runs
from rio.report.page import write_report
from rio.report.runs import ReportError
from rio.report.summary import write_summary
from rio.results.evaluation import Evaluation, evaluate
from rio.study.result import RunResult, StudyResult
from tests.support import lab

EVIL = "<script>alert('x')</script>"

CONFIG = """
SEED: 5
DATASETS: {{TRAIN: [shapes_demo_train], TEST: [shapes_demo_val]}}
DATALOADER: {{REPEAT_THRESHOLD: 0.5, FILTER_EMPTY_ANNOTATIONS: true}}
SOLVER: {{MAX_ITER: 30, IMS_PER_BATCH: 2, BASE_LR: 0.03}}
MODEL:
  ROI_HEADS: {{BATCH_SIZE_PER_IMAGE: 64, POSITIVE_FRACTION: 0.25}}
  RIO: {{SAMPLER: {sampler}, SAMPLER_SQRT: true, BANK_ENABLED: {bank}, BANK_CLASS_IDS: [0],
      BANK_MAX_IMAGE_COUNT: 30,
        SLOTS_PER_CLASS: 60, REPLAY_PER_CLASS: 4, REPLAY_LOSSES: [cls],
            CLASSIFIER: linear}}
"""


def lvis_json(path, classes_of_images, names):
    """A small LVIS file with its images: 64 x 48 px, every object a square of 12 px."""
    folder = path.with_suffix("")
    folder.mkdir()
    images, annotations = [], []
    for i, classes in enumerate(classes_of_images, 1):
        Image.new("RGB", (64, 48), (40 + 5 * i,) * 3).save(folder / f"{i:03d}.png")
        verified = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        images.append({"id": i, "file_name": f"{i:03d}.png", "width": 64, "height": 48} | verified)
        for j, k in enumerate(classes):
            x, y = 4 + 14 * j, 6 + 2 * j
            square = [x, y, x + 12, y, x + 12, y + 12, x, y + 12]
            ids = {"id": len(annotations) + 1, "image_id": i, "category_id": k + 1, "iscrowd": 0}
            annotations.append(ids | {"bbox": [x, y, 12, 12], "area": 144, "segmentation": [square]})
    categories = [{"id": k, "name": name, "frequency": group} for k, (name, group) in enumerate(names, 1)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return load_annotations(path, image_root=folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three finished runs on a data set of three categories, one of them with a hostile name."""
    root = tmp_path_factory.mktemp("study")
    names = [(f"crown {EVIL}", "r"), ("kite", "c"), ("disc", "f")]
    train = lvis_json(root / "train.json", [[2, 2, 1], [2, 0], [2], [2, 1], [2, 2], []], names)
    val = lvis_json(root / "val.json", [[0, 2], [1, 2, 2], [2]], names)
    runs = {}
    arms = {"none": ("none", "false", (1, 2)), "rfs": ("rfs", "false", (2,)), "rio": ("rfs", "true", (0, 1, 2))}
    for arm, (sampler, bank, found) in arms.items():
        folder = root / arm
        folder.mkdir()
        (folder / "config.yaml").write_text(CONFIG.format(sampler=sampler, bank=bank))
        rows = zip(val.annotation_image, val.annotation_class, val.boxes.tolist(), strict=True)
        results = [
            {"image_id": int(val.image_ids[i]), "category_id": int(val.category_ids[k]), "bbox": box, "score": 0.9}
            for i, k, box in rows
            if k in found
        ]
        (folder / "instances_results.json").write_text(json.dumps(results))
        evaluate(val, results, iou_types=("bbox",)).to_json(folder / "evaluation.json")
        logged = {"time": 0.5, "roi_head/num_fg_samples": 6.0, "memory_bank/replayed_per_foreground": 0.25}
        rows = [{"iteration": i, "total_loss": 2 - i / 30, "loss_cls": 1 - i / 60} | logged for i in range(30)]
        text = "\n".join(map(json.dumps, rows)) + '\n{"iteration": 3'  # killed in a write
        (folder / "metrics.json").write_text(text)
        runs[arm] = folder
    page = write_report(root / "new" / "report.html", title=f"Title {EVIL}", runs=runs, train=train, val=val)
    return root, runs, train, val, page


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; complains about tags that do not close."""

    VOID = frozenset({"meta", "img", "source", "br", "input"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def page(study):
    return Page(study[-1].read_text(encoding="utf-8"))


def test_it_is_self_contained_and_small(study, page):
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base")
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "srcset", "href"):
                assert value.startswith(("data:image/", "#picture-")) and tag != "script"
            assert "url(" not in (value or "")
    policies = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies and policies[0].startswith("default-src 'none'")
    (script,) = re.findall(r"<script>(.*?)</script>", study[-1].read_text(encoding="utf-8"), re.DOTALL)
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policies[0].endswith(f"script-src 'sha256-{own}'"), "another script, or none, would run"
    assert study[-1].stat().st_size < 4e6
    assert str(study[0]) not in study[-1].read_text(encoding="utf-8")  # nothing of the machine it was written on
    assert [p.name for p in study[-1].parent.iterdir()] == ["report.html"]


@pytest.mark.browser
@pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "chromium and playwright are there")
@pytest.mark.parametrize(
    ("width", "media", "least"), [(400, "screen", 340), (1000, "screen", 280), (718, "print", 210)]
)
def test_nothing_is_cut_off_and_pictures_are_large(study, width, media, least):
    with lab.browser_page(width) as browser:
        browser.emulate_media(media=media)
        browser.goto(study[-1].as_uri())
        outside = """most => [...document.querySelectorAll('main *')].filter(node => node.checkVisibility()
            && node.getBoundingClientRect().right > most + 1).map(node => node.outerHTML.slice(0, 80))"""
        assert browser.evaluate(outside, width) == []
        assert browser.evaluate("document.querySelector('.panels svg').clientWidth") >= least


@pytest.mark.browser
@pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "chromium and playwright are there")
def test_layers_opacity_verdicts_and_zoom(study):
    def look(of, what):
        return of.evaluate(f"node => getComputedStyle(node).{what}")

    def shown(panels):
        return {panel.get_attribute("viewBox") for panel in panels.all()}

    with lab.browser_page(1000) as browser:
        browser.goto(study[-1].as_uri())
        first, second = (browser.locator(".picture").nth(i).locator("svg") for i in range(2))
        truth, arm = first.nth(0), first.nth(1)  # a crown, which the arm misses, and a disc, which it finds
        crown, disc = (arm.locator(f".truth .{group} .box") for group in "rf")
        assert not disc.is_visible() and arm.locator(".found .f").first.is_visible()
        browser.locator("#show-truth").check()
        browser.locator("#show-found").uncheck()
        assert (
            disc.is_visible()
            and not arm.locator(".found .f").first.is_visible()
            and truth.locator(".f").first.is_visible()
        )
        assert look(crown, "stroke") != look(disc, "stroke") == look(truth.locator(".f .box"), "stroke")
        browser.locator("#by-verdict").check()
        colors = [to_rgb(plots.KIND_COLORS[kind]) for kind in ("classification", "correct")]
        colors = ["rgb({:.0f}, {:.0f}, {:.0f})".format(*(255 * part for part in color)) for color in colors]
        assert [look(box, "stroke") for box in (crown, disc)] == colors
        browser.locator("[type=range]").fill("80")
        assert look(truth.locator(".mask").first, "fillOpacity") == "0.8"
        browser.locator("#show-labels").uncheck()
        assert not truth.locator(".label").first.is_visible()

        whole = shown(second)
        browser.locator(".picture").first.locator("[value='+']").click()
        (zoomed,) = shown(first)  # all panels of a picture together, and no other
        assert float(zoomed.split()[2]) == pytest.approx(64 / 1.5) and shown(second) == whole
        truth.hover()
        place = truth.bounding_box()
        browser.mouse.down()
        browser.mouse.move(place["x"] + 20, place["y"] + 30, steps=3)
        browser.mouse.up()
        assert shown(first) != {zoomed} and len(shown(first)) == 1
        browser.keyboard.press("f")
        assert shown(first) == {"0 0 64 48"}
        assert not browser.problems


def test_it_says_what_a_newcomer_needs(page):
    for words in (
        "Synthetic data.", "long tail", "Image level, object level", "Ground truth", "No resampling", "RIO", "APr",
        "What to open next", "images (RFS) and objects (memory bank)", "seed (5)", "python -m rio predict",
        "0.25 replayed rows", "about 0.2 min", "6 training images", "rio 0.",
    ):  # fmt: skip
        assert words in page.text, words
    # 6 foreground RoIs an image were logged; 5 annotated images hold 10 objects.
    assert "an object gets about 3.0 foreground RoIs, the mean that these runs logged" in page.text
    panels = [a["aria-label"] for tag, a in page.tags if tag == "svg"]
    assert len(panels) == 3 * 4  # every picture for the ground truth and the three arms
    assert "001.png" in panels[0]  # the image with the rare category first
    assert sum(tag == "image" for tag, _ in page.tags) == 3  # each picture is in the page once
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")


def test_its_numbers_are_those_of_the_evaluation(study, page):
    for arm, folder in study[1].items():
        metrics = Evaluation.from_json(folder / "evaluation.json").metrics["bbox"]
        assert f"{metrics['AP']:.1f}" in page.text
        if arm == "rfs":
            assert metrics["APr"] == 0 and metrics["APf"] == pytest.approx(100)


def test_names_from_files_are_escaped(study, page):
    text = study[-1].read_text(encoding="utf-8")
    assert EVIL not in text and "&lt;script&gt;" in text
    assert EVIL in page.text  # shown, as text


def test_one_arm_without_metrics_config_of_ours_or_pictures(study, tmp_path):
    root, runs, train, _, _ = study
    folder = shutil.copytree(runs["rio"], tmp_path / "run")
    (folder / "metrics.json").unlink()
    (folder / "config.yaml").write_text("SEED: 1\n")
    images = tmp_path / "val"
    images.mkdir()
    lonely = load_annotations(root / "val.json", image_root=images)
    runs = {f"mine {EVIL}": folder}
    written = write_report(tmp_path / "r.html", title="One", runs=runs, train=train, val=lonely).read_text()
    assert EVIL not in written and "mine &lt;script&gt;" in written
    text = Page(written).text
    assert "could not be opened (FileNotFoundError)" in text and "Synthetic data." not in text
    assert "settings unknown" in text and "Image level, object level" not in text


@pytest.mark.parametrize(
    "name, content, message",
    [
        *((name, None, f"arm 'rio': .* holds no {name}") for name in ("config.yaml", "evaluation.json")),
        ("instances_results.json", None, "arm 'rio': .* holds no instances_results.json"),
        ("config.yaml", "a: [", "config.yaml: expected the YAML"),
        ("config.yaml", "- 3", "expected keys and values, found list"),
        ("config.yaml", "a: !!python/object/apply:os.getcwd []", "config.yaml: expected the YAML"),
        ("metrics.json", "nonsense\n{}\n", "metrics.json, line 1"),
        ("metrics.json", "[1]\n{}\n", "line 1: expected a JSON object with an iteration"),
    ],
)
def test_missing_and_unreadable_files_are_named(study, tmp_path, name, content, message):
    _, runs, train, val, _ = study
    folder = shutil.copytree(runs["rio"], tmp_path / "run")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(FileNotFoundError if content is None else ReportError, match=message):
        write_report(tmp_path / "r.html", title="x", runs={"rio": folder}, train=train, val=val)
    assert not (tmp_path / "r.html").exists()


def test_no_runs_and_no_folder(study, tmp_path):
    _, _, train, val, _ = study
    with pytest.raises(ReportError, match="at least one arm"):
        write_report(tmp_path / "r.html", title="x", runs={}, train=train, val=val)
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path / "r.html", title="x", runs={"rio": tmp_path / "gone"}, train=train, val=val)


def test_a_run_of_before_with_a_cap_on_replay_is_told_as_it_was(study, tmp_path):
    _, folders, train, val, _ = study
    shutil.copytree(folders["rio"], tmp_path / "rio")
    config = (tmp_path / "rio" / "config.yaml").read_text()
    capped = config.replace("REPLAY_PER_CLASS: 4", "REPLAY_PER_CLASS: 4, REPLAY_MAX_PER_FOREGROUND: 0.02")
    (tmp_path / "rio" / "config.yaml").write_text(capped)
    before, now = runs.load_runs({"before": tmp_path / "rio", "now": folders["rio"]}, val)
    told, free = (run.exposures(train, None) for run in (before, now))
    assert told["replayed"].sum() == pytest.approx(0.02 * told["rois"].sum())
    assert 0 < told["replayed"].sum() < free["replayed"].sum()
    assert "at most 0.02 per foreground RoI" in before.settings()["Replayed per class"]


def test_the_summary_shows_every_arm_in_one_picture(study, tmp_path):
    _, runs, train, val, _ = study
    svg = write_summary(tmp_path / "summary.svg", runs=runs, train=train, val=val).read_text("utf-8")
    # Matplotlib's SVG holds text as outlines with the words as comments.
    for words in ("No resampling", "RFS", "RIO", "ground truth", "3 categories", "APr"):
        assert f"<!-- {words} -->" in svg
    assert re.search(r"<!-- RIO: its \d best -->", svg)
    picture = write_summary(tmp_path / "summary.png", runs=runs, train=train, val=val)
    with Image.open(picture) as opened:
        assert opened.width > opened.height > 600
    with pytest.raises(ReportError, match="at least one arm"):
        write_summary(tmp_path / "none.png", runs={}, train=train, val=val)
    assert not (tmp_path / "none.png").exists()


def test_predictions_are_sorted_into_kinds_once(study, tmp_path, monkeypatch):
    _, folders, train, val, _ = study
    calls, once = [], runs.find_errors
    monkeypatch.setattr(runs, "find_errors", lambda *words, **more: calls.append(words) or once(*words, **more))
    shown = {"runs": runs.load_runs(folders, val), "train": train, "val": val}
    write_report(tmp_path / "r.html", title="x", **shown)
    write_summary(tmp_path / "s.png", **shown)
    assert len(calls) == len(folders)


def test_ap_against_the_length_of_training(study, tmp_path):
    _, runs, train, val, _ = study
    facts = {"name": "s", "role": "report", "trained_on": [], "evaluated_on": [], "command": "", "machine": ""}
    empty = {"versions": {}, "date": "", "pairs": [], "categories": [], "arms": {"a-linear": [], "b-linear": []}}
    measured = []
    for arm, ap in (("a-linear", 10.0), ("b-linear", 20.0)):
        for seed in (1, 2):
            values = [ap + seed, ap + seed + 1, ap + seed + 2]
            curve = {"epoch": [2.0, 4.0, 6.0], **dict.fromkeys(("AP", "APr", "APc", "APf"), values)}
            measured.append(RunResult(arm, seed, 60, 1.0, {}, {}, {}, curve))
    result = StudyResult(**facts, **empty, seeds=[1, 2], runs=measured)
    shown = {"title": "x", "runs": runs, "train": train, "val": val}
    text = Page(write_report(tmp_path / "r.html", study=result, **shown).read_text("utf-8")).text
    assert "How long is long enough?" in text and "mean over 2 seeds" in text
    assert "a-linear 11.5 13.5 11.5 13.5 b-linear 21.5 23.5 21.5 23.5" in text
    svg = write_summary(tmp_path / "s.svg", runs=runs, train=train, val=val, study=result)
    assert svg.stat().st_size > write_summary(tmp_path / "t.svg", runs=runs, train=train, val=val).stat().st_size
    at_the_end = StudyResult(**facts, **empty, seeds=[1], runs=[])
    assert "How long" not in write_report(tmp_path / "e.html", study=at_the_end, **shown).read_text("utf-8")
