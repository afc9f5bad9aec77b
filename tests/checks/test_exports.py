"""Files as labelling tools and libraries write them, by their documentation: taken, and said what is odd about them."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

import rio
from rio.cli.parser import main
from rio.data.load import load_annotations
from tests.support.annotation_files import write
from tests.support.result_files import coco_file, prediction, thing

NAMES = ("cat", "dog")
BOXES = [[10.0, 10.0, 30.0, 20.0], [40.0, 5.0, 20.0, 40.0], [5.0, 5.0, 50.0, 30.0]]  # in images 1, 1, 2 of 80 x 60 px


def made(
    first: int = 1, *, folder: str = "", root: str = "", images=None, categories=None, annotations=None
) -> dict[str, Any]:
    """Two images, two categories, three objects; ids from `first` on; what a tool adds to each record of a list."""
    size = {"width": 80, "height": 60}
    data = {
        "images": [{"id": i, **size, "file_name": f"{folder}{name}.jpg"} for i, name in enumerate("ab", first)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, first)],
        "annotations": [
            {**thing(i + first, (0, 0, 1)[i] + first, (0, 1, 0)[i] + first, box), "iscrowd": 0}
            for i, box in enumerate(BOXES)
        ],
    }
    for name, more in (("images", images), ("categories", categories), ("annotations", annotations)):
        for record in data[name]:
            record |= more(record) if callable(more) else more or {}
    if root:  # a category for the whole data set
        data["categories"].insert(0, {"id": 0, "name": root, "supercategory": "none"})
    return data


CVAT = {
    "images": {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0},
    "categories": {"supercategory": ""}, "annotations": {"attributes": {"occluded": False, "rotation": 0.0}},
}  # fmt: skip
ROBOFLOW = {
    "images": lambda image: {"file_name": f"{image['file_name'][0]}_jpg.rf.5a0f.jpg", "date_captured": "2026-01-01"},
    "categories": {"supercategory": "pets-x1y2"}, "annotations": {"segmentation": []},
}  # fmt: skip
FIFTYONE = {
    "images": {"license": None, "coco_url": None}, "categories": {"supercategory": None},
    "annotations": {"segmentation": None},
}  # fmt: skip
DATABASE = {
    "images": lambda image: {"id": f"img-{image['file_name'][0]}"},
    "annotations": lambda a: {"id": f"f00d-{a['id']}", "image_id": f"img-{'aab'[a['id'] - 1]}"},
}


def brush(annotation: dict[str, Any]) -> dict[str, Any]:
    """CVAT's masks: run lengths, and crowds."""
    x, y, w, h = map(int, annotation["bbox"])
    mask = np.zeros((60, 80), dtype=bool)
    mask[y : y + h, x : x + w] = True
    runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=False, append=~mask[-1, -1])), prepend=0)
    return {"segmentation": {"counts": runs.tolist(), "size": [60, 80]}, "iscrowd": 1}


def floats(annotation: dict[str, Any]) -> dict[str, Any]:
    """DataFrame.to_dict: whole numbers with a gap among them are floats."""
    return {key: float(annotation[key]) for key in ("id", "image_id", "category_id", "iscrowd")}


def corners(annotation: dict[str, Any]) -> dict[str, Any]:
    """torchvision's boxes, as home-made converters write them."""
    x, y, w, h = annotation["bbox"]
    return {"bbox": [x + 20, y + 20, x + 20 + w, y + 15 + h], "segmentation": None}


def shares(annotation: dict[str, Any]) -> dict[str, Any]:
    """YOLO's shares of the image, not multiplied."""
    box = [round(v / n, 6) for v, n in zip(annotation["bbox"], (80, 60, 80, 60), strict=True)]
    return {"bbox": box, "segmentation": None, "area": None}


LABEL_STUDIO = {"first": 0, "annotations": {"segmentation": [], "ignore": 0}}
# tool: its file, what is said of it beside notes
EXPORTS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "CVAT, polygons": (made(**CVAT), set()),
    "CVAT, a rectangle among polygons": (
        made(annotations=lambda a: {"segmentation": []} if a["id"] == 2 else {}), {"no_segmentation"},
    ),
    "CVAT, brush masks": (made(annotations=brush), {"mostly_crowd"}),
    "Label Studio": (made(folder="images/", **LABEL_STUDIO), set()),
    "Label Studio on Windows": (made(folder="images\\", **LABEL_STUDIO), {"file_name"}),
    "Label Studio, local storage": (made(folder="/label-studio/data/media/set/images/", **LABEL_STUDIO), {"file_name"}),
    "Roboflow": (made(root="pets-x1y2", **ROBOFLOW), {"root_category"}),
    "FiftyOne": (made(folder="data/", **FIFTYONE), set()),
    "labelme2coco, relative": (made(folder="./"), {"file_name"}),
    "labelme2coco on Windows": (made(folder="JPEGImages\\"), {"file_name"}),
    "labelme2coco, absolute": (made(folder="C:\\data\\set\\"), {"file_name"}),
    "a data frame": (made(annotations=floats), {"integral_float"}),
    "ids of a database": (made(**DATABASE), {"text_id"}),
    "corners": (made(annotations=corners), {"corner_boxes"}),
    "YOLO's shares": (made(annotations=shares), {"normalised_boxes"}),
}  # fmt: skip
REFUSED = {"corners", "YOLO's shares"}


@pytest.mark.parametrize("tool", EXPORTS)
def test_exports(tmp_path, tool):
    data, expected = EXPORTS[tool]
    root = tmp_path / "set"
    for name in ("a.jpg", "b.jpg", "a_jpg.rf.5a0f.jpg", "b_jpg.rf.5a0f.jpg"):
        for folder in ("", "images", "data", "JPEGImages"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (80, 60)).save(root / folder / name)
    path = write(tmp_path / "set.json", data)
    report = rio.check(path, images=root)
    assert {finding.kind for finding in report.findings if finding.level != "note"} == expected, str(report)
    if tool in REFUSED:
        assert report.exit_code == 2
        return
    found = load_annotations(path, image_root=root, check_images=True)
    assert found.boxes.tolist() == BOXES and found.category_names == list(NAMES)
    assert report.exit_code == bool(expected)


def test_results_are_read_and_diagnosed(tmp_path, capsys):
    boxes = BOXES * 10
    things = [thing(i, 1 + i % 20, 1 + i % 2, box) for i, box in enumerate(boxes, 1)]
    truth = coco_file(tmp_path, things, images=range(1, 21), size=(80, 60))
    good = [prediction(a["image_id"], a["category_id"], 0.5 + 0.001 * a["id"], a["bbox"]) for a in things]
    swapped = [{**record, "category_id": 3 - record["category_id"]} for record in good]
    unknown = [{**good[0], "category_id": 9}]
    for results, kind, code in ((good, None, 0), (swapped, "results_diagnosis", 1), (unknown, "results", 2)):
        file = write(tmp_path / "results.json", results)
        kinds = {finding.kind for finding in rio.check(truth, results=file).findings}
        assert kind in kinds if kind else not kinds & {"results", "results_diagnosis"}
        assert main(["check", str(truth), "--results", str(file)]) == code
    assert "category_id" in capsys.readouterr().out
