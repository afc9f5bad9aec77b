"""Draw the set to disk: pictures and LVIS annotations, complete or not there at all.

A set is `train` and `val`. Extra splits have folders and pictures of their own: `tune`, to choose settings on, so that
`val` is looked at once; `balanced`, a training set without a tail. The `frequency` of `balanced` is that of `train`, so
that a detector trained on it is scored by the same groups.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from rio.shapes import scene
from rio.shapes.spec import (
    DRAWING_VERSION,
    EXTRA_SPLITS,
    GROUP_LIMITS,
    STREAMS,
    Category,
    ShapesError,
    ShapesSpec,
    category_names,
    choose_classes,
    plan_split,
)

# Of one image: the classes it was to hold, its labels, and its classes that are not exhaustive.
Drawn = tuple[list[int], list[dict], list[int]]


def generate(
    root: str | os.PathLike,
    spec: ShapesSpec,
    split: str = "train",
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Draws the folder that holds a split, unless it is there; it appears only when complete. Returns its path.

    Args:
        root: gets `spec.name/` with `{train,val}.json`, `{train,val}/*.jpg` and `spec.json`, and for an extra split
            `{spec.name}_{split}/` too.
        spec: what to draw, one of SPECS or your own.
        split: "train" or "val" (drawn together), "tune" or "balanced".
        workers: threads; None: one per usable core.

    Raises:
        ShapesError: the spec is impossible (the message names the field), there is no such split, or the folder holds
            something else.
    """
    spec.validate()
    if split not in STREAMS:
        raise ShapesError(f"split = {split!r}; expected one of {', '.join(STREAMS)}.")
    extra = split in EXTRA_SPLITS
    sizes = {"train": spec.train_images, "val": spec.val_images, "tune": spec.val_images, "balanced": spec.train_images}
    sizes = {name: sizes[name] for name in ([split] if extra else ["train", "val"])}

    def draw(folder: Path) -> None:
        base = generate(root, spec, workers=workers, progress=progress) if extra else None
        drawn = _draw_images(folder, spec, list(sizes), workers, progress)
        counted = _categories(spec, drawn.get("balanced") or drawn.get("train") or [])
        categories = json.loads((base / "train.json").read_text())["categories"] if base else counted
        if split == "balanced":
            categories = [new | {"frequency": c["frequency"]} for new, c in zip(counted, categories, strict=True)]
        for name in sizes:
            _write_json(folder / f"{name}.json", _lvis_json(spec, name, drawn[name], categories))

    name = f"{spec.name}_{split}" if extra else spec.name
    return _once(Path(root), name, _marker(spec, split if extra else None), sizes, draw)


def _once(root: Path, name: str, marker: dict, sizes: dict[str, int], draw: Callable[[Path], None]) -> Path:
    """root/name; unless it is there, drawn by `draw` into a folder that gets the name when it is complete."""
    root.mkdir(parents=True, exist_ok=True)
    target = root / name
    if _is_complete(target, marker, sizes):
        return target
    with FileLock(root / f".{name}.lock"):  # of two trainings that start side by side, the second waits for the first
        if _is_complete(target, marker, sizes):
            return target
        partial = root / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        draw(partial)
        _write_json(partial / "spec.json", marker)
        shutil.rmtree(target, ignore_errors=True)  # ours, with files missing; or empty
        partial.rename(target)
    return target


def _marker(spec: ShapesSpec, split: str | None = None) -> dict:
    """The content of spec.json. `split`: the one extra split of the folder; None: train and val."""
    marker = {"generator": "rio.shapes", "synthetic": True, "drawing_version": DRAWING_VERSION}
    marker["spec"] = dataclasses.asdict(spec)
    return marker if split is None else marker | {"split": split}


def _is_complete(folder: Path, marker: dict, sizes: dict[str, int]) -> bool:
    """Whether the set is there with this spec.json and sizes[split] images; ShapesError if the folder is another's."""
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / "spec.json").read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("generator") != "rio.shapes":
        if folder.is_dir() and not any(folder.iterdir()):
            return False
        raise ShapesError(
            f"{folder} exists and was not drawn by rio.shapes (no valid spec.json in it). Fix: choose another folder "
            "(DETECTRON2_DATASETS) or move this one away."
        )
    if found != marker:
        pairs = [(key, found.get("spec", {}).get(key), value) for key, value in marker["spec"].items()]
        pairs += [(key, found.get(key), marker.get(key)) for key in ("drawing_version", "split")]
        differs = "; ".join(f"{key}: there {old!r}, asked {new!r}" for key, old, new in pairs if old != new)
        raise ShapesError(
            f"{folder} was drawn from another spec ({differs}). Fix: remove it to have it drawn anew, or give the new "
            "spec another name."
        )
    counts = {split: len(list((folder / split).glob("*.jpg"))) for split in sizes}
    return counts == sizes and all((folder / f"{split}.json").is_file() for split in sizes)


def _draw_images(
    folder: Path, spec: ShapesSpec, splits: Sequence[str], workers: int | None, progress: bool
) -> dict[str, list[Drawn]]:
    """Draws splits into folder/SPLIT/*.jpg; returns what is in the pictures, by split."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise ShapesError(f"workers = {workers}; expected 1 or more, or None for one per usable core.")
    classes = choose_classes(spec)
    tasks = [(split, i, held) for split in splits for i, held in enumerate(plan_split(spec, split))]
    for split in splits:
        (folder / split).mkdir()

    def draw(task: tuple[str, int, list[int]]) -> Drawn:
        split, index, held = task
        return held, *_draw_file(folder / split / f"{index + 1:06d}.jpg", spec, classes, held, split, index)

    drawn: dict[str, list[Drawn]] = {split: [] for split in splits}
    name = f"drawing {spec.name} {' and '.join(splits)} ({spec.image_size} px)"
    # Threads, not processes: NumPy and OpenCV release the interpreter's lock; spawned processes would run a user's
    # unguarded script again, and forked ones can hang beside torch's threads.
    bar = tqdm(total=len(tasks), desc=name, unit="image", disable=None if progress else True)
    with bar, ThreadPoolExecutor(workers) as pool:
        try:
            for (split, _, _), image in zip(tasks, pool.map(draw, tasks), strict=True):
                drawn[split].append(image)
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return drawn


def _draw_file(
    path: Path, spec: ShapesSpec, classes: Sequence[Category], held: list[int], split: str, index: int
) -> tuple[list[dict], list[int]]:
    image, labels, not_exhaustive = scene.draw_image(spec, classes, held, split, index)
    quality = int(np.random.default_rng([spec.seed, 3, STREAMS[split], index]).integers(86, 96))
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ShapesError(f"{path}: opencv could not encode the JPEG.")
    path.write_bytes(data.tobytes())
    return labels, not_exhaustive


def _categories(spec: ShapesSpec, drawn: list[Drawn]) -> list[dict]:
    """LVIS's categories, ids 1..K, with the counts and groups of a training set; val.json has them too, as in LVIS."""
    instances, images = np.zeros(spec.num_classes, int), np.zeros(spec.num_classes, int)
    for _, labels, _ in drawn:
        ids = [label["class_id"] for label in labels]
        np.add.at(instances, ids, 1)
        images[sorted(set(ids))] += 1
    categories = []
    for k, name in enumerate(category_names(spec)):
        word, group = name.replace(" ", "_"), "rcf"[int(np.searchsorted(GROUP_LIMITS, images[k]))]
        text = {"synset": f"{word}.n.01", "synonyms": [word], "def": f"a synthetic, drawn toy: {name}"}
        counts = {"frequency": group, "image_count": int(images[k]), "instance_count": int(instances[k])}
        categories.append({"id": k + 1, "name": name} | text | counts)
    return categories


def _lvis_json(spec: ShapesSpec, split: str, drawn: list[Drawn], categories: list[dict]) -> dict:
    rng = np.random.default_rng([spec.seed, 5, STREAMS[split]])
    images, annotations = [], []
    for i, (held, labels, not_exhaustive) in enumerate(drawn):
        absent = np.setdiff1d(np.arange(spec.num_classes), held)
        verified = absent[rng.random(absent.size) < spec.negative_share]
        file = {"file_name": f"{i + 1:06d}.jpg", "width": spec.image_size, "height": spec.image_size}
        lists = {"neg_category_ids": (verified + 1).tolist()}
        lists["not_exhaustive_category_ids"] = [k + 1 for k in not_exhaustive]
        images.append({"id": i + 1} | file | lists)
        for label in labels:
            ids = {"id": len(annotations) + 1, "image_id": i + 1, "category_id": label["class_id"] + 1}
            annotations.append(ids | {key: label[key] for key in ("bbox", "area", "segmentation")})
    tail = 'no tail, but "frequency" as with it' if split == "balanced" else "long tail"
    text = f"rio shapes {spec.name!r} {split}: synthetic pictures, {tail}, LVIS v1 format"
    info = {"description": text, "version": str(DRAWING_VERSION), "synthetic": True}
    return {"info": info, "licenses": [], "categories": categories, "images": images, "annotations": annotations}


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")
