"""A small annotation file to break: two images, three categories, three objects, a crowd region."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

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
        {
            "id": 101, "image_id": 7, "category_id": 90, "bbox": [10, 10, 20, 15], "area": 150.0,
            "iscrowd": 0, "segmentation": [TRIANGLE],
        },
        {
            "id": 102, "image_id": 3, "category_id": 5, "bbox": [10, 10, 40, 20], "area": 250.0, "iscrowd": 0,
            "segmentation": [TRIANGLE, SQUARE],
        },
        {
            "id": 100, "image_id": 7, "category_id": 90, "bbox": [40, 20, 10, 10], "iscrowd": 0,
            "segmentation": [SQUARE],
        },
        {  # 100 x 50 px, column by column: 4,990 px background, 10 px object
            "id": 99, "image_id": 7, "category_id": 5, "bbox": [99, 40, 1, 10], "area": 10.0, "iscrowd": 1,
            "segmentation": {"size": [50, 100], "counts": [4990, 10]},
        },
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
