"""Frozen RoI features in a folder: a trained detector's box head on every image, kept to train classifiers on.

    I: images of a set     V: augmented views of a training image     R: RoIs of an image at most     D: feature width

    DIR/features.json           which weights and sets they come from; config.yaml: the detector's; predictor.pth: its
                                box predictor
    DIR/SET/features.npy        (V * I, R, D) float16, view after view; SET is train, or a number for each test set
    DIR/SET/proposal_boxes.npy  (V * I, R, 4) float32, XYXY, pixels of the resized image; gt_boxes.npy alike
    DIR/SET/gt_classes.npy      (V * I, R) int32, K is background
    DIR/SET/sizes.npy           (V * I, 2) int32, height and width of the resized image
    DIR/SET/counts.npy          (V * I,) int32, RoIs of the image; -1: not there yet

The columns are memory-mapped. An image's count is written after all else of it, so an interrupted call goes on where
it stopped. A test set has its proposals' features, boxes and sizes, but no ground truth.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rio.data.annotations import Annotations
from rio.data.errors import check
from rio.data.files import write_atomically

_FORMAT = 1


class FeatureError(ValueError):
    """Features that are not there, are incomplete or do not belong; the message names the folder and the fix."""


def columns(rois: int, width: int, *, truth: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape of one image) of a set's columns, with or without ground truth."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "features": ("float16", (rois, width)),
        "proposal_boxes": ("float32", (rois, 4)),
        "sizes": ("int32", (2,)),
        "counts": ("int32", ()),
    }
    if truth:
        found |= {"gt_boxes": ("float32", (rois, 4)), "gt_classes": ("int32", (rois,))}
    return found


def size_of(rows: int, rois: int, width: int, *, truth: bool) -> int:
    """Bytes of a set on the disk."""
    own = columns(rois, width, truth=truth).values()
    return rows * sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in own)


def fingerprint(annotations: Annotations) -> str:
    """Tells whether a data set is still the one that features were taken from: its images and objects."""
    parts = (annotations.image_ids, annotations.annotation_image, annotations.annotation_class, annotations.boxes)
    crc = 0
    for part in parts:
        crc = zlib.crc32(np.ascontiguousarray(part).tobytes(), crc)
    return f"{annotations.num_images} images, {annotations.num_annotations} objects, crc {crc:08x}"


def sha256(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FeatureSet:
    """One set's columns, memory-mapped; attributes are named as the files."""

    def __init__(self, folder: Path, names: list[str], *, writable: bool = False):
        self.folder = folder
        self._columns = {n: np.load(folder / f"{n}.npy", mmap_mode="r+" if writable else "r") for n in names}
        vars(self).update(self._columns)

    @property
    def missing(self) -> np.ndarray:
        """Rows that are not there yet, ascending."""
        return np.flatnonzero(np.asarray(self.counts) < 0)

    def write(self, row: int, **values: np.ndarray) -> None:
        """Store one image's RoIs; `counts` comes last, so that a row is there whole or not at all."""
        for name, value in values.items():
            if value.ndim:
                self._columns[name][row][: len(value)] = value
        self._columns["counts"][row] = len(values["features"])

    def flush(self) -> None:
        for column in self._columns.values():
            column.flush()


class FeatureStore:
    """A folder from ``python -m rio features``: reads it, and makes room for sets that are to be added. A FeatureError
    where there are no features, or of another version.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        try:
            self.about: dict[str, Any] = json.loads((self.folder / "features.json").read_bytes())
        except FileNotFoundError as error:
            raise FeatureError(
                f"features {folder}: expected a folder with features.json, found none. Fix: "
                f"python -m rio features --weights WEIGHTS --output {folder}"
            ) from error
        except ValueError as error:
            raise FeatureError(f"features {self.folder}/features.json: expected JSON, found {error}") from error
        found, fix = self.about.get("format"), "extract them anew"
        check(found == _FORMAT, f"features {folder}", f"format {_FORMAT}", found, fix, FeatureError)
        self.width, self.views = int(self.about["width"]), int(self.about["views"])  # D, V

    @classmethod
    def create(cls, folder: str | os.PathLike[str], about: dict[str, Any], config: str, predictor: Any) -> FeatureStore:
        """Begin a folder of features, or open one; a FeatureError if it has features of other weights or settings.

        `about` is what features depend on: weights, sha256, seed, rois, views, width. `config` is the detector's YAML,
        `predictor` the state dict of its box predictor.
        """
        folder, own = Path(folder), {"format": _FORMAT, **about}
        if (folder / "features.json").exists():
            there = cls(folder)
            for key, value in own.items():
                found = f"{there.about.get(key)!r}, with which the folder was begun"
                same, expected = there.about.get(key) == value, f"{value!r}, as now asked for"
                fix = "choose another --output, or delete the folder"
                check(key == "weights" or same, f"features {folder}: {key}", expected, found, fix, FeatureError)
            return there
        write_atomically(folder / "config.yaml", config.encode())
        write_atomically(folder / "predictor.pth", lambda file: torch.save(predictor, file))
        write_atomically(folder / "features.json", json.dumps({**own, "sets": {}}, indent=1).encode())
        return cls(folder)

    def predictor(self) -> dict[str, torch.Tensor]:
        """State dict of the detector's box predictor."""
        return torch.load(self.folder / "predictor.pth", map_location="cpu", weights_only=True)

    def add(self, name: str, annotations: Annotations, rois: int, *, train: bool) -> None:
        """Reserve the disk space of a set, filled with "not there yet", unless it is there. A FeatureError where the
        disk has too little room; nothing is left behind.
        """
        sets = self.about["sets"]
        key = "train" if train else name
        if key in sets:
            self.check(name, annotations, train=train)
            return
        rows = annotations.num_images * (self.views if train else 1)
        folder = self.folder / ("train" if train else f"test_{sum(k != 'train' for k in sets)}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            for column, (dtype, shape) in columns(rois, self.width, truth=train).items():
                array = np.lib.format.open_memmap(folder / f"{column}.npy", "w+", dtype, (rows, *shape))
                size = os.stat(folder / f"{column}.npy").st_size
                del array
                with open(folder / f"{column}.npy", "r+b") as file:  # else a full disk kills a process that writes
                    os.posix_fallocate(file.fileno(), 0, size)
            counts = np.load(folder / "counts.npy", mmap_mode="r+")
            counts[:] = -1
            counts.flush()
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            needed, free = size_of(rows, rois, self.width, truth=train), shutil.disk_usage(self.folder).free
            less = "MODEL.RPN.POST_NMS_TOPK_TEST"
            if train:
                less = "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE, MODEL.RIO.FEATURE_VIEWS"
            raise FeatureError(
                f"features {folder}: expected {needed / 1e9:.1f} GB of disk for {rows} images with {rois} RoIs of "
                f"width {self.width}, found {free / 1e9:.1f} GB ({error.strerror}). Fix: choose another --output, or "
                f"lower {less}"
            ) from error
        about = {"images": annotations.num_images, "rois": rois, "fingerprint": fingerprint(annotations)}
        sets[key] = {"data": name, "folder": folder.name, **about}
        self._save()

    def drop(self, keys: Iterable[str]) -> None:
        """Give back the disk space of sets: "train", or the names of test sets."""
        for key in keys:
            shutil.rmtree(self.folder / self.about["sets"].pop(key)["folder"])
        self._save()

    def _save(self) -> None:
        write_atomically(self.folder / "features.json", json.dumps(self.about, indent=1).encode())

    def check(self, name: str, annotations: Annotations, *, train: bool) -> None:
        """Raise FeatureError unless the folder has this data set, unchanged."""
        sets = self.about["sets"]
        entry = sets.get("train" if train else name)
        if entry is None:
            have = ", ".join(one["data"] for one in sets.values()) or "none"
            key = "DATASETS.TRAIN" if train else "DATASETS.TEST"
            raise FeatureError(
                f"features {self.folder}: expected {name}, found features of {have}. Fix: add them: python -m rio "
                f"features --weights {self.about['weights']} --output {self.folder} {key} '(\"{name}\",)'"
            )
        now, own = fingerprint(annotations), f"{entry['data']}: {entry['fingerprint']}"
        what, fix = f"features {self.folder}: {name}", "extract them anew into another folder"
        check(now == entry["fingerprint"], what, f"the data they were taken from ({own})", now, fix, FeatureError)

    def open(self, name: str, *, train: bool, writable: bool = False) -> FeatureSet:
        """A set's columns; for reading, a FeatureError where images are not there yet."""
        entry = self.about["sets"]["train" if train else name]
        names = list(columns(1, 1, truth=train))
        found = FeatureSet(self.folder / entry["folder"], names, writable=writable)
        if not writable and len(missing := found.missing):
            raise FeatureError(
                f"features {self.folder}: {name}: expected all {len(found.counts)} images, {len(missing)} are missing. "
                "Fix: give the command that was interrupted again; it goes on where it stopped"
            )
        return found
