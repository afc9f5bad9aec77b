"""What a user's files and folders may hold: `REFUSED` in words that help, or `TAKEN`, and how.

Annotation files have a table of their own, in `test_rules.py`; so have results, settings, names of data sets and
weights, in the tests of their rooms.
"""

from __future__ import annotations

import errno
import io
import json
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rio.cli.parser import main
from rio.data.annotations import Annotations
from rio.data.load import load_annotations
from rio.results.reading import load_results
from tests.support import fuzz, tiny_shapes
from tests.support.annotation_files import TRIANGLE, coco, write

RAMP = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
"""(48, 64) grey values."""


class CommandError(Exception):
    """A command ended with code 2 and this one message."""


class Place:
    """The entry points of the package, for the rows of the tables."""

    def __init__(self, folder: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.folder, self.drawn, self.monkeypatch, self.capsys = folder, drawn, monkeypatch, capsys

    def load(self, data: Any, **options: Any) -> Annotations:
        return load_annotations(write(self.folder / "set.json", data), **options)

    def results(self, data: Any) -> Any:
        return load_results(write(self.folder / "results.json", data), self.load(coco()))

    def image(
        self, make: bytes | Callable[[Path], Any], *, name: str = "a.png", size: tuple[int, int] = (64, 48)
    ) -> Any:
        """One image as training gets it, from a file of these bytes, or that `make` puts in its place."""
        from rio.config import load_config
        from rio.engine.loader import Mapper, TrainingSamples
        from rio.engine.records import records

        path = self.folder / name
        path.write_bytes(make) if isinstance(make, bytes) else make(path)
        found = {"id": 1, "image_id": 3, "category_id": 1, "bbox": [2, 2, 40, 40], "segmentation": [TRIANGLE]}
        image = {"id": 3, "width": size[0], "height": size[1], "file_name": name}
        data = {"images": [image], "categories": [{"id": 1, "name": "mug"}], "annotations": [found]}
        cfg = load_config(tiny_shapes.DEMO_CONFIG, tiny_shapes.model_options())
        samples = records(self.load(data, image_root=self.folder))
        return TrainingSamples(samples, Mapper(cfg, True), 1)[0, 0]["image"]

    def command(self, *words: Any) -> str:
        code = main([str(word) for word in words])
        out, error = self.capsys.readouterr()
        if code == 0:
            return out
        assert code == 2 and error.count("error: ") == 1 and "Traceback" not in out + error
        raise CommandError(error)

    def train(self, *options: Any, train: Any = None) -> str:
        """`python -m rio train` on the drawn set, or on other annotations of its images."""
        flags = tiny_shapes.data_flags(self.drawn)
        if train is not None:
            flags[1] = str(write(self.folder / "train.json", train))
            if "categories" in train:  # the same ones for validation
                val = json.loads((self.drawn / "val.json").read_text())
                known = {category["id"] for category in train["categories"]}
                val["annotations"] = [a for a in val["annotations"] if a["category_id"] in known]
                for image in val["images"]:
                    image["neg_category_ids"] = image["not_exhaustive_category_ids"] = []
                flags[5] = str(write(self.folder / "val.json", {**val, "categories": train["categories"]}))
        words = ["--config-file", tiny_shapes.DEMO_CONFIG, *flags, "--output-dir", self.folder / "run"]
        return self.command("train", *words, *tiny_shapes.model_options(1), "TEST.EVAL_PERIOD", 0, *options)

    def drawn_train(self, **changes: Any) -> dict[str, Any]:
        return {**json.loads((self.drawn / "train.json").read_text()), **changes}

    def fail(self, target: str, code: int) -> Place:
        """Make a function fail as the system would."""

        def broken(*args: Any, **kwargs: Any) -> None:
            raise OSError(code, os.strerror(code))

        self.monkeypatch.setattr(target, broken)
        return self


@pytest.fixture
def place(tmp_path, tiny_set, monkeypatch, capsys) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, tiny_set, monkeypatch, capsys)


def result(**keys: Any) -> list[dict[str, Any]]:
    return [{"image_id": 7, "category_id": 90, "score": 0.5, "bbox": [1, 1, 9, 9], **keys}]


def jpeg(pixels: np.ndarray = RAMP, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


TURNED = Image.Exif()
TURNED[0x112] = 6  # to be shown turned by a quarter
BROKEN_EXIF = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40
RAMP_IMAGE = Image.fromarray(RAMP)


def bomb(path: Path, side: int = 30_000) -> None:
    """A hundred bytes that ask for 0.9 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)))


def one_class(place: Place) -> dict[str, Any]:
    data = place.drawn_train()
    data["categories"] = data["categories"][:1]
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] == data["categories"][0]["id"]]
    for image in data["images"]:
        image["neg_category_ids"] = image["not_exhaustive_category_ids"] = []
    return data


MASK = {"size": [50, 100], "counts": [2**32 - 1] * 9}
# kind -> (what is tried, what the message has to say)
REFUSED: dict[str, tuple[Callable[[Place], Any], list[str]]] = {
    # Images, as training reads them
    "image truncated": (lambda p: p.image(jpeg()[:-80]), ["a.png", "image_id 3", "truncated", "Fix:"]),
    "image empty": (lambda p: p.image(b""), ["a.png", "image_id 3", "cannot identify", "Fix:"]),
    "image that is none": (lambda p: p.image(b"hello"), ["a.png", "cannot identify"]),
    # Permissions do not stop every user that tests may run as.
    "image unreadable": (lambda p: p.fail("PIL.Image.open", errno.EACCES).image(jpeg()), ["a.png", "image_id 3", "could not be loaded", "Permission denied"]),
    "image 16-bit grey": (lambda p: p.image(Image.fromarray(RAMP.astype(np.uint16) << 8).save), ["a.png", "expected 8 bits", "16", "Fix: convert"]),
    "image of another size": (lambda p: p.image(RAMP_IMAGE.save, size=(640, 480)), ["a.png", "image_id 3", "(64, 48)", "(640, 480)"]),
    "image turned by EXIF, size as stored": (lambda p: p.image(jpeg(exif=TURNED)), ["a.png", "(48, 64)", "(64, 48)"]),
    "image that unpacks to gigapixels": (lambda p: p.image(bomb), ["a.png", "image_id 3", "exceeds limit"]),
    "image a link to itself": (lambda p: p.image(lambda path: path.symlink_to(path)), ["a.png", "symbolic links"]),
    "image a folder": (lambda p: p.image(Path.mkdir), ["a.png", "image_id 3", "directory"]),
    "results with masks of gigapixels": (lambda p: p.results(result(segmentation=MASK)), ["record 0", "5000 px"]),
    # Results and training sets
    "nothing to train on": (lambda p: p.train("MODEL.MASK_ON", False, train=p.drawn_train(annotations=[])), ["BANK_MAX_IMAGE_COUNT", "found none", "the rarest has 0 images"]),
    "nothing to train on, without a bank": (
        lambda p: p.train("MODEL.RIO.BANK_ENABLED", False, "MODEL.MASK_ON", False, train=p.drawn_train(annotations=[])),
        ["train.json", "annotations to train on", "check the file"],
    ),
    # Where to write
    "output folder is forbidden": (lambda p: p.fail("os.makedirs", errno.EACCES).train(), ["run", "Permission denied", "--output-dir"]),
    "output folder is read-only": (lambda p: p.fail("os.replace", errno.EROFS).train(), ["run", "Read-only file system", "--output-dir"]),
    "disk full": (lambda p: p.fail("os.fsync", errno.ENOSPC).train(), ["config.yaml", "No space left", "--output-dir"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_words_that_help(place, kind):
    attempt, words = REFUSED[kind]
    with pytest.raises(Exception) as caught:
        attempt(place)
    error = caught.value
    assert isinstance(error, CommandError) or type(error).__module__.startswith("rio."), repr(error)
    text = str(error)
    assert not [word for word in words if word not in text], text
    assert len(text) < 4000


MISSING: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: None,
    "link loop": lambda path: path.symlink_to(path),
    "dangling link": lambda path: path.symlink_to("gone.jpg"),
    "pipe": os.mkfifo,  # opening it would wait for ever
    "name too long": lambda path: None,
}


@pytest.mark.parametrize("how", MISSING)
def test_an_image_that_is_not_there_is_found_before_training(place, how):
    (place.folder / "b.jpg").write_bytes(jpeg())
    MISSING[how](place.folder / "a.jpg")
    data = coco()
    if how == "name too long":
        data["images"][1]["file_name"] = "a" * 5000 + ".jpg"
    with pytest.raises(ValueError, match="image 3, key 'file_name': expected an image file, found none at .*Fix"):
        place.load(data, image_root=place.folder, check_images=True)
    rest = place.load(data, image_root=place.folder, check_images=True, on_error="skip")
    assert rest.skipped_counts() == {"missing_image": 1, "image_skipped": 1} and rest.image_ids.tolist() == [7]


def linked_image(place: Place) -> bool:
    outside = place.folder.parent / f"{place.folder.name}-outside.jpg"
    outside.write_bytes(jpeg())
    return place.image(lambda path: path.symlink_to(outside)).float().std() > 50


def spread(image: Any) -> bool:
    """Whether a ramp from black to white came through as one."""
    values = image.float()
    return values.min() < 5 and values.max() > 250 and 110 < values.mean() < 145


# kind -> what holds after it was read; files of annotations are in test_load.py
TAKEN: dict[str, Callable[[Place], bool]] = {
    "training with one class and no rare one": lambda p: "Traceback" not in p.train("MODEL.RIO.BANK_ENABLED", False, "SOLVER.MAX_ITER", 1, train=one_class(p)),
    "unicode file names": lambda p: spread(p.image(jpeg(), name="斑马 é.jpg")),
    "greyscale image": lambda p: spread(p.image(RAMP_IMAGE.save)),
    "black and white image": lambda p: p.image(RAMP_IMAGE.convert("1").save).float().std() > 50,
    "image with palette": lambda p: spread(p.image(RAMP_IMAGE.convert("P").save)),
    "image with alpha": lambda p: spread(p.image(RAMP_IMAGE.convert("RGBA").save)),
    "CMYK image": lambda p: spread(p.image(jpeg(mode="CMYK"))),
    "image turned by EXIF, size as shown": lambda p: spread(p.image(jpeg(exif=TURNED), size=(48, 64))),
    "image with broken EXIF": lambda p: spread(p.image(jpeg(exif=BROKEN_EXIF))),
    "image a link to one elsewhere": linked_image,
    "results without a detection": lambda p: len(p.results([])) == 0,
    "results with boxes as large as floats": lambda p: len(p.results(result(bbox=[1e308] * 4))) == 1,
}  # fmt: skip


@pytest.mark.parametrize("kind", TAKEN)
def test_taken(place, kind):
    assert TAKEN[kind](place)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_a_hundred_broken_ones_are_taken_or_refused_in_our_words(tmp_path, kind):
    """`python -m tests.support.fuzz` tries thousands."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz.KINDS[kind](tmp_path / "input", np.random.default_rng(0))  # imports are no input's time or memory
        for seed in range(1, 101):
            fuzz.try_one(kind, seed, tmp_path / "input")
