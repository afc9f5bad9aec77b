"""An annotation file of the size and shape of LVIS v1's training set, without LVIS: seeded, about 1 GB.

Same number of images (100,170), annotations (1,270,141) and categories (1,203), polygons of LVIS's lengths (median 24
points, mean 34) and two decimals, its keys, its spelling (``json.dumps`` separators), its tail. The tail is the real
one where the real counts are at hand, else a log-linear approximation of it. Coordinates are random.

    python -m tests.benchmarks.lvis_size --out FILE.json [--scale 0.1]
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np

from rio.data.files import write_atomically

IMAGES, ANNOTATIONS, CATEGORIES = 100_170, 1_270_141, 1_203
IMAGES_A_CHUNK = 2_000
VERSION = 1  # of the generator: part of the cached file's name


class Tail(NamedTuple):
    """How often each category occurs: names, (K,) images, (K,) instances, K = 1,203 descending or as in LVIS."""

    names: list[str]
    image_count: np.ndarray
    instance_count: np.ndarray


def log_linear_tail() -> Tail:
    """LVIS v1's tail to a few percent: log image count falls linearly with the rank, faster among the first few."""
    rank = np.arange(CATEGORIES) / (CATEGORIES - 1)
    image_count = np.exp(6.8 - 6.2 * rank + 1.9 * np.exp(-rank / 0.1)).clip(1, 1_977).astype(np.int64)
    per_image = 1.0 + 8.0 * np.exp(-6.0 * rank)  # frequent things come in numbers
    instance_count = np.maximum(np.round(image_count * per_image).astype(np.int64), image_count)
    instance_count = _sum_to(instance_count, image_count, ANNOTATIONS)
    return Tail([f"thing_{k:04d}" for k in range(CATEGORIES)], image_count, instance_count)


def real_tail(path: Path) -> Tail:
    """The tail of a table with the columns name, image_count, instance_count."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    counts = [np.array([int(row[key]) for row in rows]) for key in ("image_count", "instance_count")]
    return Tail([row["name"] for row in rows], *counts)


def default_tail() -> Tail:
    """The real tail where the real counts are at hand (folder RIO_SHARED, or ``shared`` beside the checkout)."""
    shared = os.environ.get("RIO_SHARED") or Path(__file__).resolve().parents[3] / "shared"
    path = Path(shared) / "data" / "lvis_v1_train_categories.csv"
    return real_tail(path) if path.is_file() else log_linear_tail()


def _sum_to(counts: np.ndarray, least: np.ndarray, total: int) -> np.ndarray:
    """`counts` scaled so that they sum to `total`, none below `least` (sums to less than `total`)."""
    above = (counts - least).astype(np.float64)
    ends = np.round(np.cumsum(above) / above.sum() * (total - least.sum())).astype(np.int64)
    return least + np.diff(ends, prepend=0)


def scaled(tail: Tail, scale: float) -> tuple[Tail, int]:
    """The tail of a set of `scale` times as many images, and their number."""
    images = max(round(IMAGES * scale), 20)
    if scale == 1:
        return tail, images
    image_count = np.clip(np.round(tail.image_count * scale).astype(np.int64), 1, images)
    instance_count = np.maximum(np.round(tail.instance_count * scale).astype(np.int64), image_count)
    return Tail(tail.names, image_count, instance_count), images


def generate(path: str | os.PathLike[str], scale: float = 1.0, seed: int = 0, tail: Tail | None = None) -> Path:
    """Write the file, atomically; the same arguments give the same bytes.

    Args:
        path: Where to.
        scale: Share of LVIS's images, > 0.
        seed: Of everything random.
        tail: Counts a category; `default_tail` if None.
    """
    tail, num_images = scaled(tail or default_tail(), scale)
    rng = np.random.default_rng(seed)
    image_ids = rng.choice(581_929, num_images, replace=False) + 1  # as in LVIS: in any order, annotations by image
    width = rng.choice([640, 640, 640, 500, 480, 427], num_images)
    height = np.where(width == 640, rng.choice([480, 427, 425, 640], num_images), 640)
    image_of, class_of = _who_is_where(rng, tail, num_images)
    lists = {
        "images": _images(rng, image_ids, width, height, image_of, class_of),
        "annotations": _annotations(rng, image_ids, width, height, image_of, class_of),
        "categories": iter([_categories(tail)]),
    }

    def content(file: BinaryIO) -> None:
        file.write(b'{"info": {"description": "random, the size of LVIS v1", "year": 2026}')
        for key, chunks in lists.items():
            file.write(f', "{key}": ['.encode())
            _write_list(file, chunks)
            file.write(b"]")
        file.write(b', "licenses": [{"id": 1, "name": "none", "url": ""}]}')

    write_atomically(path, content)
    return Path(path)


def cached(scale: float = 1.0, folder: str | os.PathLike[str] | None = None) -> Path:
    """The file of seed 0, from an earlier run where there is one, in `folder` (RIO_BENCH, else the temp folder)."""
    folder = Path(folder or os.environ.get("RIO_BENCH") or Path(tempfile.gettempdir()) / "rio-benchmarks")
    kind = "real" if default_tail().names[0] != "thing_0000" else "approximate"
    path = folder / f"lvis_size_v{VERSION}_{kind}_{scale:g}.json"
    return path if path.is_file() else generate(path, scale)


def _who_is_where(rng: np.random.Generator, tail: Tail, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """(A,) image index, ascending, and (A,) class of every annotation; the tail's counts hold exactly."""
    pair_image, pair_class = [], []
    for k, count in enumerate(tail.image_count.tolist()):
        pair_image.append(rng.choice(num_images, count, replace=False, shuffle=False))
        pair_class.append(np.full(count, k))
    instances = []
    for images, objects in zip(tail.image_count.tolist(), tail.instance_count.tolist(), strict=True):
        # One in each of its images, the others unevenly: crowds of bananas, single sofas.
        share = rng.gamma(0.4, size=images) + 1e-9
        instances.append(1 + rng.multinomial(objects - images, share / share.sum()))
    repeats = np.concatenate(instances)
    image_of = np.repeat(np.concatenate(pair_image), repeats)
    class_of = np.repeat(np.concatenate(pair_class), repeats)
    order = np.lexsort((rng.random(len(image_of)), image_of))
    return image_of[order], class_of[order]


def _images(rng, image_ids, width, height, image_of, class_of):
    present_start = np.searchsorted(image_of, np.arange(len(image_ids) + 1))
    for start in range(0, len(image_ids), IMAGES_A_CHUNK):
        rows = []
        for i in range(start, min(start + IMAGES_A_CHUNK, len(image_ids))):
            present = set(class_of[present_start[i] : present_start[i + 1]].tolist())
            drawn = rng.integers(0, CATEGORIES, rng.poisson(9)).tolist()
            negative = sorted(set(drawn) - present)
            name = f"{image_ids[i]:012d}"
            rows.append({
                "date_captured": "2013-11-14 11:18:45", "neg_category_ids": [k + 1 for k in negative],
                "id": int(image_ids[i]), "license": 1, "height": int(height[i]), "width": int(width[i]),
                "flickr_url": f"http://images.example.org/flickr/{name}_z.jpg",
                "coco_url": f"http://images.example.org/train2017/{name}.jpg",
                "not_exhaustive_category_ids": sorted(k + 1 for k in present if rng.random() < 0.15),
            })  # fmt: skip
        yield rows


def _annotations(rng, image_ids, width, height, image_of, class_of):
    for start in range(0, len(image_of), 20_000):
        stop = min(start + 20_000, len(image_of))
        yield _objects(rng, start, image_ids, width, height, image_of[start:stop], class_of[start:stop])


def _objects(rng, first, image_ids, width, height, image_of, class_of) -> list[dict[str, Any]]:
    n = len(image_of)
    parts = 1 + (rng.random(n) < 0.09) * rng.integers(1, 4, n)  # most objects are one polygon
    owner = np.repeat(np.arange(n), parts)
    points = np.clip(np.exp(rng.normal(math.log(22.5), 0.84, len(owner))), 3, 300).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(points)])
    polygon = np.repeat(np.arange(len(owner)), points)
    angle = (np.arange(offsets[-1]) - offsets[:-1][polygon]) / points[polygon] * 2 * np.pi
    across, down = width[image_of][owner], height[image_of][owner]
    size = np.exp(rng.normal(math.log(0.05), 0.9, (2, len(owner)))).clip(0.012, 0.45)
    centre = rng.uniform(size, 1 - size)
    radius = rng.uniform(0.55, 1.0, offsets[-1])
    x = (centre[0][polygon] + size[0][polygon] * radius * np.cos(angle)) * across[polygon]
    y = (centre[1][polygon] + size[1][polygon] * radius * np.sin(angle)) * down[polygon]
    x, y = np.round(x * 100) / 100, np.round(y * 100) / 100
    xy = np.stack([x, y], axis=1).ravel().tolist()
    whole = offsets[np.concatenate([[0], np.cumsum(parts)])]  # where each object's points begin
    left, top = np.minimum.reduceat(x, whole[:-1]), np.minimum.reduceat(y, whole[:-1])
    right, bottom = np.maximum.reduceat(x, whole[:-1]), np.maximum.reduceat(y, whole[:-1])
    boxes = np.round(np.stack([left, top, right - left, bottom - top], axis=1) * 100) / 100
    areas = np.round((right - left) * (bottom - top) * 60) / 100 + 0.01
    ends = (2 * offsets).tolist()
    polygons = [xy[a:b] for a, b in itertools.pairwise(ends)]
    last = np.cumsum(parts).tolist()
    return [
        {"area": area, "id": first + i + 1, "segmentation": polygons[end - count : end], "image_id": image_id,
         "bbox": box, "category_id": k + 1}
        for i, (area, end, count, image_id, box, k) in enumerate(zip(
            areas.tolist(), last, parts.tolist(), image_ids[image_of].tolist(), boxes.tolist(), class_of.tolist(),
            strict=True,
        ))
    ]  # fmt: skip


def _categories(tail: Tail) -> list[dict[str, Any]]:
    return [
        {"name": name, "instance_count": instances, "def": "random", "synonyms": [name], "image_count": images,
         "id": k + 1, "frequency": "r" if images <= 10 else "c" if images <= 100 else "f", "synset": f"{name}.n.01"}
        for k, (name, images, instances) in enumerate(
            zip(tail.names, tail.image_count.tolist(), tail.instance_count.tolist(), strict=True)
        )
    ]  # fmt: skip


def _write_list(file, chunks) -> None:
    for number, rows in enumerate(chunks):
        text = msgspec.json.encode(rows)[1:-1]
        # Spelled as json.dumps does, like the official file: this is what parsers have to read over.
        text = text.replace(b",", b", ").replace(b'":', b'": ')
        file.write(b", " + text if number else text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="the JSON file")
    parser.add_argument("--scale", type=float, default=1.0, help="share of LVIS's 100,170 images")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    path = generate(args.out, args.scale, args.seed)
    print(f"{path}: {path.stat().st_size / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
