"""Finished runs without a training: results made from the ground truth, evaluated as a real run's are.

What the tests of the notebooks and of their views share. The predictions are invented; nothing may be
concluded from them.
"""

import json
from pathlib import Path

import numpy as np
import yaml
from pycocotools import mask as coco_mask

from rio.data.annotations import Annotations
from rio.data.load import load_annotations
from rio.results.evaluation import evaluate

# Chance that an object of a group is found.
FOUND = {
    "none": {"r": 0.15, "c": 0.6, "f": 0.85},
    "rfs": {"r": 0.4, "c": 0.7, "f": 0.85},
    "rio": {"r": 0.6, "c": 0.75, "f": 0.85},
}


def make(
    root: Path, data: Path, *, arms: tuple[str, ...] = ("none", "rfs", "rio"), seeds: tuple[int, ...] = (1,),
    masks: bool = True, train_name: str | None = None, test_name: str | None = None,
) -> Path:  # fmt: skip
    """A study's output, ROOT/ARM-seedS, on a drawn data set, which the configs name by its path or as is said here."""
    train, val = load_annotations(data / "train.json"), load_annotations(data / "val.json")
    for arm in arms:
        for seed in seeds:
            folder = root / f"{arm}-seed{seed}"
            folder.mkdir(parents=True)
            names = {"TRAIN": [train_name or f"{data}/train.json@{data}/train"]}
            names["TEST"] = [test_name or f"{data}/val.json@{data}/val"]
            method = {"SAMPLER": "none" if arm == "none" else "rfs", "BANK_ENABLED": arm == "rio"}
            config = {"DATASETS": names, "MODEL": {"RIO": method}, "SEED": seed, "OUTPUT_DIR": str(folder)}
            config["SOLVER"] = {"MAX_ITER": 40, "IMS_PER_BATCH": 2}
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            results = invented(val, FOUND[arm], np.random.default_rng(seed), masks=masks)
            (folder / "instances_results.json").write_text(json.dumps(results))
            evaluate(val, folder / "instances_results.json", iou_types=None).to_json(folder / "evaluation.json")
            loss = {i: 1.0 / (1 + i / 9) for i in range(9, 40, 10)}
            always = {"lr": 0.01, "time": 0.2}
            rows = [{"iteration": i, "total_loss": 3 * x, "loss_cls": x} | always for i, x in loss.items()]
            (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / "last_checkpoint").write_text("model_final.pth")
            (folder / "log.txt").write_text("invented run\n")
    assert len(train.category_ids) == len(val.category_ids)
    return root


def invented(val: Annotations, found: dict[str, float], rng: np.random.Generator, *, masks: bool = True) -> list[dict]:
    """Predictions of every kind: correct, of a wrong class, with a box that is off, twice, of nothing."""
    results: list[dict] = []

    def add(image: int, category: int, box: np.ndarray, score: float, row: int | None) -> None:
        size = [int(val.image_height[image]), int(val.image_width[image])]
        corner = np.clip(box[:2], 0, [size[1] - 2, size[0] - 2])
        box = np.r_[corner, np.maximum(box[2:], 2)].tolist()
        record = {"image_id": int(val.image_ids[image]), "category_id": category, "bbox": box, "score": float(score)}
        if masks:
            polygons = val.segmentation(row) if row is not None else None
            x, y, w, h = box
            outline = polygons if isinstance(polygons, list) else [[x, y, x + w, y, x + w, y + h, x, y + h]]
            rle = coco_mask.merge(coco_mask.frPyObjects(outline, *size))
            record["segmentation"] = rle | {"counts": rle["counts"].decode()}
        results.append(record)

    for row in range(val.num_annotations):
        image, k = int(val.annotation_image[row]), int(val.annotation_class[row])
        box, category = val.boxes[row], int(val.category_ids[k])
        chance = found[str(val.frequency[k])]
        shift = rng.normal(0, 0.04, 4) * np.r_[box[2:], box[2:]]
        if rng.random() < chance:
            add(image, category, box + shift, rng.uniform(0.4, 0.99), row)
            if rng.random() < 0.1:
                add(image, category, box + 2 * shift, rng.uniform(0.3, 0.6), row)
        elif rng.random() < 0.4:
            add(image, int(rng.choice(val.category_ids)), box + shift, rng.uniform(0.3, 0.8), row)
        elif rng.random() < 0.4:
            add(image, category, box + np.r_[0.45 * box[2:], 0, 0], rng.uniform(0.3, 0.8), None)
    for image in range(val.num_images):
        size = np.array([val.image_width[image], val.image_height[image]], float)
        category = int(rng.choice(val.category_ids))
        box = np.r_[rng.uniform(0, 0.7, 2) * size, 0.15 * size]
        add(image, category, box, rng.uniform(0.05, 0.5), None)
    return results
