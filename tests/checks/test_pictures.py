"""What the doctor says of pictures: their headers, and which of them are in the training set too."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

import rio
from tests.support.annotation_files import coco, write

SIZES = {"a.jpg": (64, 48), "b.jpg": (100, 50)}
TURNED = Image.Exif()
TURNED[0x112] = 6


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """A smooth picture like no other."""
    rough = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)


def draw(folder: Path, first: int = 0) -> Path:
    """a.jpg and b.jpg in a new folder."""
    folder.mkdir()
    for seed, (name, size) in enumerate(SIZES.items(), first):
        picture(seed, size).save(folder / name)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw(tmp_path / "val")


def found(folder: Path, root: Path, change: Any = None, **options: Any) -> dict[str, Any]:
    """Kind -> finding, of the small file with its pictures."""
    data = coco()
    if change is not None:
        change(data)
    report = rio.check(write(folder / "val.json", data), images=root, **options)
    return {finding.kind: finding for finding in report.findings if finding.kind != "category_unused"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def large(path: Path) -> None:
    picture(1, (1024, 768)).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:20_000])


# what, change, what is found, its words
WRONG = [
    ("cut off", cut, "picture_unreadable", "truncated"),
    ("half of a large one", large, "picture_unreadable", "truncated"),
    ("empty", lambda p: p.write_bytes(b""), "picture_unreadable", "cannot identify"),
    ("a page of an error", lambda p: p.write_text("<html>404</html>"), "picture_unreadable", "cannot identify"),
    ("16-bit grey", lambda p: Image.new("I;16", (64, 48)).save(p, "PNG"), "picture_unreadable", "16 or 32 bits"),
    ("swapped", lambda p: picture(0, (48, 64)).save(p), "picture_size", "the picture has 48 x 64: they are swapped"),
    ("turned by EXIF", lambda p: picture(0, (64, 48)).save(p, exif=TURNED), "picture_size", "48 x 64 once it is"),
    ("resized", lambda p: picture(0, (128, 96)).save(p), "picture_size", "128 x 96, 2 times as many: it was resized"),
    ("of another picture", lambda p: picture(0, (50, 90)).save(p), "picture_size", "the picture has 50 x 90"),
]  # fmt: skip


def test_sound_pictures(tmp_path, root):
    assert not found(tmp_path, root)


@pytest.mark.parametrize(("change", "kind", "words"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_pictures_that_training_would_stop_at(tmp_path, root, change, kind, words):
    change(root / "a.jpg")
    (finding,) = found(tmp_path, root).values()
    assert (finding.kind, finding.level, finding.count) == (kind, "error", 1)
    assert finding.examples[0][0] == "image 3 (a.jpg)" and words in finding.examples[0][2]


def test_a_picture_turned_by_exif_whose_size_is_the_shown_one_is_sound(tmp_path, root):
    picture(0, (48, 64)).save(root / "a.jpg", exif=TURNED)
    assert not found(tmp_path, root)


def test_missing_and_unlisted_pictures(tmp_path, root):
    (root / "a.jpg").rename(root / "c.JPG")
    findings = found(tmp_path, root)
    assert {kind: finding.count for kind, finding in findings.items()} == {"missing_image": 1, "picture_unlisted": 1}
    assert findings["picture_unlisted"].level == "note"


def test_pictures_that_the_training_file_lists_are_listed_though_its_folder_is_not_told(tmp_path, root):
    (root / "a.jpg").rename(root / "c.jpg")
    data = coco()
    data["images"][0]["file_name"] = "c.jpg"
    findings = found(tmp_path, root, train=write(tmp_path / "train.json", data))
    assert "picture_unlisted" not in findings and findings["missing_image"].count == 1


def test_a_folder_that_is_not_there(tmp_path):
    findings = found(tmp_path, tmp_path / "none")
    assert findings["missing_image"].count == 2 and findings["image_folder"].level == "error"


# how a picture of the training set comes into the other: as what it is found
LEAKS = {
    "a copy": (lambda picture, target: shutil.copy(picture.filename, target), "picture_in_train"),
    "written again": (lambda picture, target: picture.save(target, quality=60), "picture_like_train"),
    "smaller": (lambda picture, target: picture.resize((64, 48)).save(target), "picture_like_train"),
    "brighter": (lambda p, target: ImageEnhance.Brightness(p).enhance(1.2).save(target), "picture_like_train"),
    "mirrored": (lambda p, target: ImageOps.mirror(p).save(target), "picture_like_train"),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_pictures_of_the_training_set(tmp_path, root, kind):
    change, expected = LEAKS[kind]
    train = draw(tmp_path / "train", first=10)
    reference = {"train": write(tmp_path / "train.json", coco()), "train_images": train}
    assert not found(tmp_path, root, **reference)
    change(Image.open(root / "b.jpg"), train / "a.jpg")
    size = Image.open(train / "a.jpg").size
    data = coco()
    data["images"][1] |= dict(zip(("width", "height"), size, strict=True))
    write(tmp_path / "train.json", data)
    (finding,) = found(tmp_path, root, **reference).values()
    assert (finding.kind, finding.level, finding.count) == (expected, "warning", 1)
    assert finding.examples[0][0] == "image 7 (b.jpg)" and "a.jpg" in finding.examples[0][2]


def test_copies_that_roboflow_made_of_one_picture(tmp_path, root):
    train = draw(tmp_path / "train", first=10)
    data = coco()
    for number, image in enumerate(data["images"]):
        name = f"{image['file_name'][0]}_jpg.rf.{number}0.jpg"
        (train / image["file_name"]).rename(train / name)
        image["file_name"] = name
    reference = {"train": write(tmp_path / "train.json", data), "train_images": train}

    def renamed(data: Any) -> None:
        for image in data["images"]:
            name = f"{image['file_name'][0]}_jpg.rf.99.jpg"
            shutil.move(root / image["file_name"], root / name)
            image["file_name"] = name

    (finding,) = found(tmp_path, root, renamed, **reference).values()
    assert (finding.kind, finding.count) == ("name_in_train", 2)
