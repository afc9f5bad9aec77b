"""`rio predict`: which pictures are drawn, from which score on, and what is said of the rest."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from rio.analysis.runs import Runs
from rio.cli.parser import main


def test_predict_draws_images_and_folders(run, tiny_set, tmp_path):
    single = tmp_path / "000001.jpg"  # the name of one in the folder, too
    Image.fromarray(np.full((40, 70, 3), 128, np.uint8)).save(single)
    words = ["predict", single, tiny_set / "val", "--weights", run / "model_final.pth", "--output", tmp_path / "out"]
    assert main([*map(str, words), "--score-threshold", "0.3"]) == 0
    pictures = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(pictures) == 1 + 6 and {"000001.jpg", "000001_2.jpg"} <= set(pictures)
    with Image.open(tmp_path / "out" / "000001.jpg") as picture:
        assert picture.width / picture.height == pytest.approx(70 / 40, rel=0.02)


def test_predict_draws_results_beside_ground_truth_rare_first(run, tiny_set, tmp_path):
    words = ["predict", "--results", run / "instances_results.json", "--gt", tiny_set / "val.json"]
    words += ["--gt-images", tiny_set / "val", "--output", tmp_path, "--limit", 2, "--score-threshold", 0.2]
    assert main(list(map(str, words))) == 0
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


def test_predict_says_where_no_detection_reaches_the_threshold(run, tiny_set, tmp_path, capsys):
    scores = [record["score"] for record in json.loads((run / "instances_results.json").read_text())]
    words = ["predict", "--results", run / "instances_results.json", "--gt", tiny_set / "val.json"]
    words += ["--gt-images", tiny_set / "val", "--output", tmp_path / "out", "--score-threshold", 1.0]
    assert main(list(map(str, words))) == 0
    expected = f"No detection reaches --score-threshold 1 in 6 of them; the highest score of all is {max(scores):.2f}"
    assert expected in capsys.readouterr().out
    words = ["predict", tiny_set / "val", "--weights", run / "model_final.pth", "--output", tmp_path / "more"]
    assert main([*map(str, words), "--score-threshold", "1.0"]) == 0
    assert "No detection reaches --score-threshold 1 in 6 of them" in capsys.readouterr().out


def test_predict_chooses_its_threshold_from_results_and_says_so(run, tiny_set, tmp_path, capsys):
    (chosen,) = Runs(run).thresholds.values()
    words = ["predict", "--results", run / "instances_results.json", "--gt", tiny_set / "val.json", "--limit", 1]
    words += ["--train-json", tiny_set / "train.json", "--gt-images", tiny_set / "val", "--output", tmp_path / "a"]
    assert main(list(map(str, words))) == 0
    assert f"Drawn from score {chosen:g} on: the highest geometric mean" in capsys.readouterr().out
    single = next((tiny_set / "val").glob("*.jpg"))
    words = ["predict", single, "--output", tmp_path / "b", "TEST.DETECTIONS_PER_IMAGE", 3, "--weights"]
    assert main(list(map(str, [*words, run / "model_final.pth"]))) == 0
    assert f"Drawn from score {chosen:g} on: " in capsys.readouterr().out
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    (tmp_path / "model.pth").write_bytes((run / "model_final.pth").read_bytes())
    assert main(list(map(str, [*words, tmp_path / "model.pth"]))) == 0
    assert "Drawn from score 0.5 on; --score-threshold sets another (" in capsys.readouterr().out


def test_predict_does_the_rest_where_some_pictures_cannot_be_read(run, tiny_set, tmp_path, capsys):
    """A folder as it comes: a Mac's shadow file, a download cut off, a folder named like a picture, a thin strip."""
    folder, whole = tmp_path / "in", next((tiny_set / "val").glob("*.jpg"))
    (folder / "b.jpg").mkdir(parents=True)
    (folder / "._a.jpg").write_bytes(b"\0\5\26\7")
    (folder / "cut.jpg").write_bytes(whole.read_bytes()[:-200])
    (folder / "whole.JPG").write_bytes(whole.read_bytes())
    Image.fromarray(np.full((2, 3000, 3), 128, np.uint8)).save(folder / "thin.png")
    words = ["predict", folder, "--weights", run / "model_final.pth", "--output", tmp_path / "out"]
    assert main(list(map(str, words))) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole.jpg"]
    said = capsys.readouterr()
    assert "1 picture in" in said.out and said.err.count("left out: image ") == 2 and "Traceback" not in said.err
    assert "cut.jpg: expected a picture" in said.err and "thin.png: expected sides of 1 px or more" in said.err


@pytest.mark.parametrize(
    ("size", "expected"), [((600, 60), (640, 128)), ((40, 80), (640, 640)), ((1400, 3), (1400, 6))]
)
def test_predicts_panels_leave_no_margins(size, expected, tmp_path, capsys):
    """Side by side, wide pictures one above the other; names are no markup."""
    width, height = size
    image = {"id": 1, "width": width, "height": height, "file_name": "a.png"}
    box = {"image_id": 1, "category_id": 1, "bbox": [width / 4, height / 4, width / 2, height / 2]}
    names = [{"id": 1, "name": "Ba$$in <b>{0}</b> 50% $5 and $10 \\frac_^"}]
    truth = {"images": [image], "categories": names, "annotations": [{**box, "id": 1, "area": 9}]}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dt.json").write_text(json.dumps([{**box, "score": 0.9}]))
    Image.new("RGB", size, (200, 20, 20)).save(tmp_path / "a.png")
    words = ["predict", "--results", tmp_path / "dt.json", "--gt", tmp_path / "gt.json", "--gt-images", tmp_path]
    assert main([*map(str, words), "--output", str(tmp_path / "out")]) == 0
    assert "groups by the image counts of" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "0000_a.jpg") as picture:
        assert picture.size == expected
        white = (np.array(picture).min(2) > 240).mean()
    assert white < 0.06  # of the line between the panels and the letters


# ---- the other commands
