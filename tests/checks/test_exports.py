"""Files as labelling tools and libraries write them, by their documentation: taken, and said what is odd about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import rio
from rio.cli.parser import main
from rio.data.load import load_annotations
from tests.support.annotation_files import write
from tests.support.result_files import prediction

NAMES = ("cat", "dog")
BOXES = [[10.0, 10.0, 30.0, 20.0], [40.0, 5.0, 20.0, 40.0], [5.0, 5.0, 50.0, 30.0]]  # in images 1, 1, 2 of 80 x 60 px


def outline(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def base(first: int = 1) -> dict[str, Any]:
    """Two images, two categories, three objects; ids from `first` on."""
    size = {"width": 80, "height": 60}
    return {
        "images": [{"id": i, **size, "file_name": f"{name}.jpg"} for i, name in enumerate("ab", first)],
        "categories": [{"id": i + first, "name": name} for i, name in enumerate(NAMES)],
        "annotations": [
            {
                "id": i + first, "image_id": (0, 0, 1)[i] + first, "category_id": (0, 1, 0)[i] + first, "bbox": box,
                "area": box[2] * box[3], "iscrowd": 0, "segmentation": [outline(box)],
            }
            for i, box in enumerate(BOXES)
        ],
    }  # fmt: skip


def cvat(shape: str = "polygon") -> dict[str, Any]:
    """COCO 1.0 of CVAT: empty strings, attributes; rectangles have no polygon, brush masks are RLE crowds."""
    data = {"licenses": [{"name": "", "id": 0, "url": ""}], "info": {"contributor": "", "year": ""}, **base()}
    for image in data["images"]:
        image |= {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
    for category in data["categories"]:
        category["supercategory"] = ""
    for annotation in data["annotations"]:
        annotation["attributes"] = {"occluded": False, "rotation": 0.0}
    if shape == "rectangle":
        data["annotations"][1]["segmentation"] = []
    for annotation in data["annotations"] if shape == "brush" else ():
        x, y, w, h = map(int, annotation["bbox"])
        mask = np.zeros((60, 80), dtype=bool)
        mask[y : y + h, x : x + w] = True
        runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=False, append=~mask[-1, -1])), prepend=0)
        annotation |= {"segmentation": {"counts": runs.tolist(), "size": [60, 80]}, "iscrowd": 1}
    return data


def label_studio(folder: str = "images/") -> dict[str, Any]:
    """Ids from 0, `ignore`, no polygons; paths of its storage or of Windows."""
    data = base(0)
    for image in data["images"]:
        image["file_name"] = folder + image["file_name"]
    for annotation in data["annotations"]:
        annotation |= {"segmentation": [], "ignore": 0}
    return data


def roboflow() -> dict[str, Any]:
    """A category for the whole data set first, names with a hash."""
    data = base()
    data["categories"] = [{**category, "supercategory": "pets-x1y2"} for category in data["categories"]]
    data["categories"].insert(0, {"id": 0, "name": "pets-x1y2", "supercategory": "none"})
    for image in data["images"]:
        image |= {"file_name": f"{image['file_name'][0]}_jpg.rf.5a0f.jpg", "license": 1, "date_captured": "2026-01-01"}
    for annotation in data["annotations"]:
        annotation["segmentation"] = []
    return data


def fiftyone() -> dict[str, Any]:
    """null where it knows nothing, "data/" before the names."""
    data = {"info": {}, "licenses": [], **base()}
    for category in data["categories"]:
        category["supercategory"] = None
    for image in data["images"]:
        image |= {"license": None, "coco_url": None, "file_name": f"data/{image['file_name']}"}
    for annotation in data["annotations"]:
        annotation["segmentation"] = None
    return data


def labelme2coco(before: str) -> dict[str, Any]:
    data = base()
    for image in data["images"]:
        image["file_name"] = before + image["file_name"]
    return data


def data_frame() -> dict[str, Any]:
    """DataFrame.to_dict: whole numbers with a gap among them are floats."""
    data = base()
    for annotation in data["annotations"]:
        annotation |= {key: float(annotation[key]) for key in ("id", "image_id", "category_id", "iscrowd")}
    return data


def corners() -> dict[str, Any]:
    """torchvision's boxes, as home-made converters write them."""
    data = base()
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation |= {"bbox": [x + 20, y + 20, x + 20 + w, y + 15 + h]}
        del annotation["segmentation"]
    data["annotations"].pop()
    return data


def yolo() -> dict[str, Any]:
    """YOLO's shares of the image, not multiplied."""
    data = base()
    for annotation in data["annotations"]:
        annotation["bbox"] = [round(v / n, 6) for v, n in zip(annotation["bbox"], (80, 60, 80, 60), strict=True)]
        del annotation["segmentation"], annotation["area"]
    return data


def text(data: dict[str, Any]) -> dict[str, Any]:
    """Ids of a database."""
    for image in data["images"]:
        image["id"] = f"img-{image['file_name'][0]}"
    for annotation in data["annotations"]:
        annotation["image_id"] = ("img-a", "img-a", "img-b")[annotation["id"] - 1]
        annotation["id"] = f"f00d-{annotation['id']}"
    return data


# tool: its file, what is said of it beside notes
EXPORTS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "CVAT, polygons": (cvat(), set()),
    "CVAT, a rectangle among polygons": (cvat("rectangle"), {"no_segmentation"}),
    "CVAT, brush masks": (cvat("brush"), {"mostly_crowd"}),
    "Label Studio": (label_studio(), set()),
    "Label Studio on Windows": (label_studio("images\\"), {"file_name"}),
    "Label Studio, local storage": (label_studio("/label-studio/data/media/set/images/"), {"file_name"}),
    "Roboflow": (roboflow(), {"root_category"}),
    "FiftyOne": (fiftyone(), set()),
    "labelme2coco, relative": (labelme2coco("./"), {"file_name"}),
    "labelme2coco on Windows": (labelme2coco("JPEGImages\\"), {"file_name"}),
    "labelme2coco, absolute": (labelme2coco("C:\\data\\set\\"), {"file_name"}),
    "a data frame": (data_frame(), {"integral_float"}),
    "ids of a database": (text(base()), {"text_id"}),
    "corners": (corners(), {"corner_boxes"}),
    "YOLO's shares": (yolo(), {"normalised_boxes"}),
}
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
    data = base()
    data["annotations"] = [
        {**annotation, "id": 100 * copy + annotation["id"], "image_id": annotation["image_id"] + 2 * copy}
        for copy in range(10)
        for annotation in data["annotations"]
    ]
    data["images"] = [{**data["images"][0], "id": number + 1, "file_name": f"{number}.jpg"} for number in range(20)]
    truth = write(tmp_path / "gt.json", data)
    good = [
        prediction(a["image_id"], a["category_id"], 0.5 + 0.001 * a["id"] / 10, a["bbox"]) for a in data["annotations"]
    ]
    swapped = [{**record, "category_id": 3 - record["category_id"]} for record in good]
    unknown = [{**good[0], "category_id": 9}]
    for results, kind, code in ((good, None, 0), (swapped, "results_diagnosis", 1), (unknown, "results", 2)):
        file = write(tmp_path / "results.json", results)
        kinds = {finding.kind for finding in rio.check(truth, results=file).findings}
        assert kind in kinds if kind else not kinds & {"results", "results_diagnosis"}
        assert main(["check", str(truth), "--results", str(file)]) == code
    assert "category_id" in capsys.readouterr().out
