"""`rio convert`: VOC, YOLO (with data.yaml or Label Studio's classes.txt) and CVAT give the same COCO file."""

import json

import pytest
from hotcoco import COCO
from PIL import Image

from rio.cli.parser import main

LABELS = {"a": "0 0.5 0.5 0.2 0.4\n1 0.25 0.25 0.1 0.2\n", "b.c": "1 0.5 0.5 1 1\n", "none": ""}


@pytest.fixture
def exported(tmp_path):
    """The same annotations as three tools write them: labels of 100 x 50 px pictures."""
    (tmp_path / "images").mkdir()
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    for name, text in LABELS.items():
        Image.new("RGB", (100, 50)).save(tmp_path / "images" / f"{name}.PNG")
        (labels / f"{name}.txt").write_text(text)
    (tmp_path / "data.yaml").write_text('names:\n  0: cat\n  1: "hot: dog, 2"\n')
    words = ["convert", "yolo", labels, tmp_path / "yolo.json", "--images", tmp_path / "images"]
    assert main(list(map(str, words))) in (0, 1)
    coco = COCO(str(tmp_path / "yolo.json"))
    coco.to_voc(str(tmp_path / "voc"))
    coco.to_cvat(str(tmp_path / "cvat.xml"))
    return tmp_path


def objects(file):
    content = json.loads(file.read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    rows = [(files[a["image_id"]], names[a["category_id"]], a["bbox"]) for a in content["annotations"]]
    return sorted(rows), sorted(files.values())


def test_yolo(exported):
    rows, files = objects(exported / "yolo.json")
    assert files == ["a.PNG", "b.c.PNG", "none.PNG"], "labels know no endings"
    assert rows[:2] == [("a.PNG", "cat", [40.0, 15.0, 20.0, 20.0]), ("a.PNG", "hot: dog, 2", [20.0, 7.5, 10.0, 10.0])]


@pytest.mark.parametrize(("kind", "source"), [("voc", "voc"), ("cvat", "cvat.xml"), ("yolo", "labels/train")])
def test_every_format_gives_the_same(exported, kind, source):
    (exported / "data.yaml").unlink()
    (exported / "labels" / "classes.txt").write_text("cat\nhot: dog, 2\n")  # as Label Studio exports them
    words = ["convert", kind, str(exported / source), str(exported / "out.json"), "--images", str(exported / "images")]
    assert main(words) in (0, 1)
    (rows, files), (expected, names) = objects(exported / "out.json"), objects(exported / "yolo.json")
    assert files == names
    for (file, name, box), (file_2, name_2, box_2) in zip(rows, expected, strict=True):
        assert (file, name) == (file_2, name_2) and box == pytest.approx(box_2, abs=1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["yolo", "{top}/images", "{top}/x.json", "--images", "{top}/images"], "neither data.yaml nor classes.txt"),
        (["voc", "{top}/nowhere", "{top}/x.json", "--images", "{top}/images"], "expected a folder with Annotations"),
        (["cvat", "{top}/data.yaml", "{top}/x.json", "--images", "{top}/images"], "CVAT for images 1.1"),
        (["yolo", "{top}/labels/train", "{top}/x.json", "--images", "{top}/none"], "expected the folder of the images"),
    ],
)
def test_what_cannot_be_converted(exported, capsys, words, expected):
    if words[0] == "yolo" and words[1].endswith("images"):
        (exported / "data.yaml").unlink()
    assert main(["convert", *(word.format(top=exported) for word in words)]) == 2
    assert expected in capsys.readouterr().err and not (exported / "x.json").exists()


def test_names_with_entities(exported, capsys):
    """hotcoco keeps them in CVAT's files, and cuts them off in VOC's."""
    for file in (exported / "cvat.xml", exported / "voc" / "Annotations" / "a.xml"):
        file.write_text(file.read_text().replace("hot: dog, 2", "Q&amp;A"))
    last = [str(exported / "out.json"), "--images", str(exported / "images")]
    assert main(["convert", "cvat", str(exported / "cvat.xml"), *last]) in (0, 1)
    assert {name for _, name, _ in objects(exported / "out.json")[0]} == {"cat", "Q&A"}
    assert main(["convert", "voc", str(exported / "voc"), *last]) == 2
    assert "Q&amp;A in a.xml" in capsys.readouterr().err
