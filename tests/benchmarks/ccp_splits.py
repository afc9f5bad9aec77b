"""Further splits of CCP (real photographs), for configs/studies/ccp_trunks.yaml: its rare classes have 46 objects to
judge on, so that one split says little.

    python -m tests.benchmarks.ccp_splits [datasets/ccp]

Reads train.json and val.json, writes train2.json, val2.json, train3.json and val3.json beside them: the rule of the
first split (classes from the rarest on, 35 % of a class's photographs to validation) with other seeds. Frequency
groups stay those of the first. A photograph that is there twice (the same bytes) stays on one side.
"""

import argparse
import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from rio.data.files import write_atomically

VALIDATION = 0.35  # of a class's photographs
SEEDS = {2: 2, 3: 3}  # of each split


def joined(folder: Path) -> dict[str, Any]:
    """Both files of the first split as one; annotations get new ids."""
    train, val = (json.loads((folder / f"{name}.json").read_bytes()) for name in ("train", "val"))
    seen: dict[str, int] = {}
    for image in sorted(train["images"] + val["images"], key=lambda image: image["id"]):
        seen.setdefault(hashlib.sha256((folder / "images" / image["file_name"]).read_bytes()).hexdigest(), image["id"])
    kept = set(seen.values())
    annotations = [one for one in train["annotations"] + val["annotations"] if one["image_id"] in kept]
    return train | {
        "images": [image for image in train["images"] + val["images"] if image["id"] in kept],
        "annotations": [one | {"id": number} for number, one in enumerate(annotations, 1)],
    }


def validation_images(data: dict[str, Any], seed: int) -> set[int]:
    """Ids of the photographs to validate on."""
    images_of = defaultdict(set)
    for one in data["annotations"]:
        images_of[one["category_id"]].add(one["image_id"])
    chance, chosen, decided = np.random.default_rng(seed), set[int](), set[int]()
    for category in sorted(images_of, key=lambda c: (len(images_of[c]), c)):
        images = images_of[category]
        wanted = round(VALIDATION * len(images)) - len(images & chosen)
        free = sorted(images - decided)
        chosen |= set(chance.permutation(free)[: max(wanted, 0)].tolist())
        decided |= images
    return chosen


def write_splits(folder: Path) -> None:
    data = joined(folder)
    for number, seed in SEEDS.items():
        chosen = validation_images(data, seed)
        for name, is_val in (("train", False), ("val", True)):
            part = data | {
                "images": [image for image in data["images"] if (image["id"] in chosen) == is_val],
                "annotations": [one for one in data["annotations"] if (one["image_id"] in chosen) == is_val],
            }
            write_atomically(folder / f"{name}{number}.json", json.dumps(part).encode())
            print(f"{name}{number}.json: {len(part['images'])} photographs, {len(part['annotations'])} objects")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("datasets/ccp"))
    write_splits(parser.parse_args().folder)
