"""Training batches: augmentation by position only; which pictures are taken, and how the others are refused."""

import errno
import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rio.config import load_config
from rio.engine.errors import TrainingError
from rio.engine.loader import Mapper, TrainingSamples, build_training_loader
from rio.engine.setup import setup_training
from tests.support import tiny_shapes


def test_augmentation_depends_on_the_position_only(tiny_config, tmp_path):
    samples = build_training_loader(setup_training(tiny_config(tmp_path))).samples
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = [samples[position, 5]["image"] for position in range(8)]
    assert random.getstate() == states[0], "loading in this process must not move the model's random numbers"
    assert (np.random.get_state()[1] == states[1]).all() and torch.equal(torch.get_rng_state(), states[2])
    np.random.seed(2)
    again = [samples[position, 5]["image"] for position in reversed(range(8))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    different = {(tuple(image.shape), image.float().sum().item(), image[0, 0, 0].item()) for image in first}
    assert len(different) > 1, "one image shown at eight positions should not look the same each time"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_loaded_is_named(prepared, tiny_set, tmp_path, workers):
    run = prepared(tmp_path / "run", "DATALOADER.NUM_WORKERS", workers)
    broken = tmp_path / "half.jpg"
    broken.write_bytes((tiny_set / "train" / "000001.jpg").read_bytes()[:300])
    samples = run.data_loader.samples
    samples.records = [{**record, "file_name": str(broken)} for record in samples.records]
    with pytest.raises(TrainingError, match=r"^image .*half\.jpg \(image_id \d+\): could not be loaded") as error:
        run.train()
    assert "Traceback" not in str(error.value)


# ---- pictures

RAMP = Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1)))  # grey, 64 x 48 px
DEEP = Image.fromarray(np.full((48, 64), 40_000, np.uint16))
TURNED = Image.Exif()
TURNED[0x112] = 6  # to be shown turned by a quarter
BROKEN_EXIF = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    RAMP.convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def bomb(path: Path, side: int = 30_000) -> None:
    """A hundred bytes that ask for 0.9 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)))


@pytest.fixture
def loaded(tmp_path):
    """Function: the picture as training gets it, from a file of these bytes, or that `make` puts in its place."""

    def load(make, size=(64, 48), name="a.png"):
        path = tmp_path / name
        path.write_bytes(make) if isinstance(make, bytes) else make(path)
        record = {"file_name": str(path), "image_id": 3, "width": size[0], "height": size[1], "annotations": []}
        cfg = load_config(tiny_shapes.DEMO_CONFIG, tiny_shapes.model_options())
        return TrainingSamples([record], Mapper(cfg, True), 1)[0, 0]["image"].float()

    return load


TAKEN = {
    "unicode file name": (jpeg(), (64, 48), "斑马 é.jpg"),
    "greyscale": (RAMP.save,),
    "palette": (RAMP.convert("P").save,),
    "alpha": (RAMP.convert("RGBA").save,),
    "CMYK": (jpeg("CMYK"),),
    "turned by EXIF, size as shown": (jpeg(exif=TURNED), (48, 64)),
    "broken EXIF": (jpeg(exif=BROKEN_EXIF),),
    "black and white": (RAMP.convert("1").save,),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_pictures_that_are_taken(loaded, kind):
    """A ramp from black to white comes through as one."""
    values = loaded(*TAKEN[kind])
    assert values.min() < 5 and values.max() > 250 and 110 < values.mean() < 145


REFUSED = {
    "truncated": (jpeg()[:-80], (64, 48), "truncated"),
    "empty": (b"", (64, 48), "cannot identify"),
    "no picture": (b"hello", (64, 48), "cannot identify"),
    "16-bit grey": (DEEP.save, (64, 48), "expected 8 bits.*16.*Fix: convert"),
    "another size": (RAMP.save, (640, 480), r"\(64, 48\).*\(640, 480\)"),
    "turned by EXIF, size as stored": (jpeg(exif=TURNED), (64, 48), r"\(48, 64\).*\(64, 48\)"),
    "gigapixels": (bomb, (64, 48), "exceeds limit"),
    "a link to itself": (lambda path: path.symlink_to(path), (64, 48), "symbolic links"),
    "a folder": (Path.mkdir, (64, 48), "directory"),
}


@pytest.mark.parametrize("kind", [*REFUSED, "unreadable"])
def test_pictures_that_are_refused_are_named(loaded, kind, monkeypatch):
    make, size, words = REFUSED.get(kind, (jpeg(), (64, 48), "Permission denied"))
    if kind == "unreadable":  # permissions do not stop every user that tests may run as
        error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        monkeypatch.setattr("PIL.Image.open", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(TrainingError, match=rf"(?s)a\.png \(image_id 3\): could not be loaded: .*{words}.*Fix: "):
        loaded(make, size)
