"""A small annotation file to break: two images, three categories, three objects, a crowd region."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rio.data.annotations import Annotations

TRIANGLE = [10.0, 10.0, 30.0, 10.0, 10.0, 25.0]
SQUARE = [40.0, 20.0, 50.0, 20.0, 50.0, 30.0, 40.0, 30.0]

COCO: dict[str, Any] = {
    "images": [  # not in the order of their ids
        {"id": 7, "width": 100, "height": 50, "file_name": "b.jpg"},
        {"id": 3, "width": 64, "height": 48, "file_name": "a.jpg"},
    ],
    "categories": [  # ids with gaps, not in order
        {"id": 90, "name": "teddy"},
        {"id": 5, "name": "zèbre 斑马"},
        {"id": 11, "name": "mug"},
    ],
    "annotations": [
        {"id": 101, "image_id": 7, "category_id": 90, "bbox": [10, 10, 20, 15], "area": 150.0,
         "iscrowd": 0, "segmentation": [TRIANGLE]},
        {"id": 102, "image_id": 3, "category_id": 5, "bbox": [10, 10, 40, 20], "area": 250.0,
         "iscrowd": 0, "segmentation": [TRIANGLE, SQUARE]},
        {"id": 100, "image_id": 7, "category_id": 90, "bbox": [40, 20, 10, 10],
         "iscrowd": 0, "segmentation": [SQUARE]},
        # 100 x 50 px, column by column: 4,990 px background, 10 px object
        {"id": 99, "image_id": 7, "category_id": 5, "bbox": [99, 40, 1, 10], "area": 10.0,
         "iscrowd": 1, "segmentation": {"size": [50, 100], "counts": [4990, 10]}},
    ],
}  # fmt: skip


def coco() -> dict[str, Any]:
    """A copy to change."""
    return copy.deepcopy(COCO)


def lvis() -> dict[str, Any]:
    """The same in LVIS's format: no crowd region, verified categories an image, groups, file names by URL."""
    data = coco()
    data["annotations"].pop()
    for image, split in zip(data["images"], ("val2017", "train2017"), strict=True):
        image["coco_url"] = f"http://images.example.org/{split}/{image.pop('file_name')}"
        image["neg_category_ids"] = [11]
        image["not_exhaustive_category_ids"] = [90] if image["id"] == 3 else []
    for category, frequency in zip(data["categories"], "fcr", strict=True):
        category["frequency"] = frequency
    return data


def write(path: Path, data: Any) -> Path:
    """`data` as JSON; text and bytes as they are."""
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def at(list_name: str, position: int, **changes: Any) -> Callable[[dict[str, Any]], None]:
    """Change keys of one record; `...` removes a key."""

    def change(data: dict[str, Any]) -> None:
        for key, value in changes.items():
            if value is ...:
                del data[list_name][position][key]
            else:
                data[list_name][position][key] = value

    return change


def obj(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Change annotation 102, in image 3."""
    return at("annotations", 1, **changes)


def same_id(data: dict[str, Any]) -> None:
    """As exporters repeat ids: all annotations have 1."""
    for annotation in data["annotations"]:
        annotation["id"] = 1


def with_root(data: dict[str, Any], **changes: Any) -> None:
    """The category that exporters put first."""
    for category in data["categories"]:
        category["supercategory"] = "animals"
    data["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none", **changes})


def twice(name: str) -> Callable[[dict[str, Any]], None]:
    """All records of a list once more, under new ids."""
    return lambda data: data[name].extend([record | {"id": record["id"] + 1000} for record in data[name]])


def touch(folder: Path, *names: str) -> Path:
    """The folder, with empty files in place of pictures."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def many(number: int, seed: int = 0) -> dict[str, Any]:
    """`number` annotations like LVIS's in a fifth as many images, in no order."""
    rng = np.random.default_rng(seed)
    data = lvis()
    data["images"] = [
        {"id": int(i), "width": 640, "height": 480, "coco_url": f"http://images.example.org/train2017/{i}.jpg",
         "neg_category_ids": rng.choice([5, 11, 90], 2).tolist(), "not_exhaustive_category_ids": []}
        for i in rng.permutation(number // 5 + 1)
    ]  # fmt: skip
    data["annotations"] = [
        {"id": i, "image_id": int(rng.integers(number // 5 + 1)), "category_id": int(rng.choice([5, 11, 90])),
         "bbox": [1.5, 2, 30.25, 40], "area": 7.5, "segmentation": [
             np.round(rng.uniform(0, 640, 2 * rng.integers(3, 9)), 2).tolist()
             for _ in range(rng.integers(1, 3))
         ]}
        for i in range(number)
    ]  # fmt: skip
    return data


def three_images(fifth: str = "eel") -> dict[str, Any]:
    """100 x 50 px: cat + dog, two cats, dog + owl + mouse; owl and mouse are rare, of a fifth category is nothing."""
    objects = [
        (1, 1, [0, 0, 10, 10]), (1, 2, [20, 0, 20, 20]), (2, 1, [0, 0, 50, 40]), (2, 1, [60, 0, 40, 40]),
        (3, 2, [0, 0, 5, 5]), (3, 3, [10, 10, 10, 10]), (3, 4, [50, 5, 20, 40]),
    ]  # fmt: skip
    names = enumerate(zip(("cat", "dog", "owl", "mouse", fifth), "ffrrr", strict=True), 1)
    return {
        "images": [{"id": i, "width": 100, "height": 50, "file_name": f"{i}.png"} for i in (1, 2, 3)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (image, category, box) in enumerate(objects, 1)
        ],
        "categories": [{"id": k, "name": name, "frequency": frequency} for k, (name, frequency) in names],
    }


def make_lvis(root: Path, name: str, data: Any) -> Path:
    """A file in the folder of LVIS below a folder of data sets."""
    (root / "lvis").mkdir(parents=True, exist_ok=True)
    return write(root / "lvis" / name, data)


def masks_of(annotations: Annotations) -> list[Any]:
    """Every annotation's mask as in the file."""
    return [annotations.segmentation(row) for row in range(annotations.num_annotations)]


def assert_equal_columns(a: Annotations, b: Annotations) -> None:
    """The same columns of the same types, and the same masks."""
    for field in dataclasses.fields(Annotations):
        mine, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == other.dtype and np.array_equal(mine, other), field.name
        else:
            assert mine == other, field.name
    assert masks_of(a) == masks_of(b)
