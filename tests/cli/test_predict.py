"""`rio predict`: which pictures are drawn, from which score on, and what is said of the rest."""

import json

import numpy as np
import pytest
from PIL import Image

from rio.analysis.runs import Runs


@pytest.fixture
def of_results(run, tiny_set, command):
    """Function: draw the run's results beside the ground truth; what was printed."""
    words = ["predict", "--results", run / "instances_results.json", "--gt", tiny_set / "val.json"]
    return lambda *more: command(*words, "--gt-images", tiny_set / "val", *more)


def test_predict_draws_images_and_folders(run, tiny_set, tmp_path, command):
    single = tmp_path / "000001.jpg"  # the name of one in the folder, too
    Image.fromarray(np.full((40, 70, 3), 128, np.uint8)).save(single)
    words = [single, tiny_set / "val", "--weights", run / "model_final.pth", "--output", tmp_path / "out"]
    command("predict", *words, "--score-threshold", 0.3)
    pictures = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(pictures) == 1 + 6 and {"000001.jpg", "000001_2.jpg"} <= set(pictures)
    with Image.open(tmp_path / "out" / "000001.jpg") as picture:
        assert picture.width / picture.height == pytest.approx(70 / 40, rel=0.02)


def test_predict_draws_results_beside_ground_truth_rare_first(of_results, tiny_set, tmp_path):
    of_results("--output", tmp_path, "--limit", 2, "--score-threshold", 0.2)
    pictures = sorted(tmp_path.iterdir())
    assert [path.name[:5] for path in pictures] == ["0000_", "0001_"]
    truth = json.loads((tiny_set / "val.json").read_text())
    rare = {c["id"] for c in truth["categories"] if c["frequency"] == "r"}
    counts = {f"{image['id']:06d}": 0 for image in truth["images"]}
    for a in truth["annotations"]:
        counts[f"{a['image_id']:06d}"] += a["category_id"] in rare
    assert counts[pictures[0].stem[5:]] == max(counts.values())
    with Image.open(pictures[0]) as picture:
        assert picture.width == 2 * picture.height  # two square panels


def test_predict_says_where_no_detection_reaches_the_threshold(run, of_results, tiny_set, tmp_path, command):
    scores = [record["score"] for record in json.loads((run / "instances_results.json").read_text())]
    none = "No detection reaches --score-threshold 1 in 6 of them"
    said = of_results("--output", tmp_path / "out", "--score-threshold", 1.0)
    assert f"{none}; the highest score of all is {max(scores):.2f}" in said
    words = [tiny_set / "val", "--weights", run / "model_final.pth", "--output", tmp_path / "more"]
    assert none in command("predict", *words, "--score-threshold", 1.0)


def test_predict_chooses_its_threshold_from_results_and_says_so(run, of_results, tiny_set, tmp_path, command):
    (chosen,) = Runs(run).thresholds.values()
    said = of_results("--train-json", tiny_set / "train.json", "--output", tmp_path / "a", "--limit", 1)
    assert f"Drawn from score {chosen:g} on: the highest geometric mean" in said
    single = next((tiny_set / "val").glob("*.jpg"))
    words = ["predict", single, "--output", tmp_path / "b", "TEST.DETECTIONS_PER_IMAGE", 3, "--weights"]
    assert f"Drawn from score {chosen:g} on: " in command(*words, run / "model_final.pth")
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    (tmp_path / "model.pth").write_bytes((run / "model_final.pth").read_bytes())
    assert "Drawn from score 0.5 on; --score-threshold sets another (" in command(*words, tmp_path / "model.pth")


def test_predict_does_the_rest_where_some_pictures_cannot_be_read(run, tiny_set, tmp_path, command):
    """A folder as it comes: a Mac's shadow file, a download cut off, a folder named like a picture, a thin strip."""
    folder, whole = tmp_path / "in", next((tiny_set / "val").glob("*.jpg"))
    (folder / "b.jpg").mkdir(parents=True)
    (folder / "._a.jpg").write_bytes(b"\0\5\26\7")
    (folder / "cut.jpg").write_bytes(whole.read_bytes()[:-200])
    (folder / "whole.JPG").write_bytes(whole.read_bytes())
    Image.fromarray(np.full((2, 3000, 3), 128, np.uint8)).save(folder / "thin.png")
    said = command("predict", folder, "--weights", run / "model_final.pth", "--output", tmp_path / "out", code=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole.jpg"]
    assert "1 picture in" in said and said.count("left out: image ") == 2 and "Traceback" not in said
    assert "cut.jpg: expected a picture" in said and "thin.png: expected sides of 1 px or more" in said


@pytest.mark.parametrize(
    ("size", "expected"), [((600, 60), (640, 128)), ((40, 80), (640, 640)), ((1400, 3), (1400, 6))]
)
def test_predicts_panels_leave_no_margins(size, expected, tmp_path, command):
    """Side by side, wide pictures one above the other; names are no markup."""
    width, height = size
    image = {"id": 1, "width": width, "height": height, "file_name": "a.png"}
    box = {"image_id": 1, "category_id": 1, "bbox": [width / 4, height / 4, width / 2, height / 2]}
    names = [{"id": 1, "name": "Ba$$in <b>{0}</b> 50% $5 and $10 \\frac_^"}]
    truth = {"images": [image], "categories": names, "annotations": [{**box, "id": 1, "area": 9}]}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dt.json").write_text(json.dumps([{**box, "score": 0.9}]))
    Image.new("RGB", size, (200, 20, 20)).save(tmp_path / "a.png")
    words = ["--results", tmp_path / "dt.json", "--gt", tmp_path / "gt.json", "--gt-images", tmp_path]
    assert "groups by the image counts of" in command("predict", *words, "--output", tmp_path / "out")
    with Image.open(tmp_path / "out" / "0000_a.jpg") as picture:
        assert picture.size == expected
        white = (np.array(picture).min(2) > 240).mean()
    assert white < 0.06  # of the line between the panels and the letters
