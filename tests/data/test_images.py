"""Images: RGB, turned as EXIF says, made smaller on request; what cannot be read right is refused by name."""

import numpy as np
import pytest
from PIL import Image

from rio.data.images import ImageError, read_header, read_image

PIXELS = np.zeros((40, 60, 3), np.uint8)
PIXELS[:10] = 200, 30, 40  # a red band along the top


def test_rgb_turned_as_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # to be shown turned by a quarter, clockwise
    Image.fromarray(PIXELS).save(tmp_path / "plain.png")
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "plain.png") == PIXELS).all()
    assert (read_image(tmp_path / "turned.png") == np.rot90(PIXELS, -1)).all()
    small = read_image(tmp_path / "turned.png", max_side=30)
    assert small.shape == (30, 20, 3) and small[15, 18, 0] > 150  # the band is at the right
    assert read_image(tmp_path / "plain.png", max_side=100).shape == PIXELS.shape


def test_what_cannot_be_read_is_named(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "text.jpg").write_text("no picture")
    words_of = {"deep.png": "8 bits .*Fix: convert", "text.jpg": "cannot identify", "none.jpg": "No such"}
    for name, words in words_of.items():
        with pytest.raises(ImageError, match=rf"{name}: expected a picture, found: .*{words}"):
            read_image(tmp_path / name)


def test_headers_tell_size_turn_and_damage(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 8
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg")
    Image.fromarray(PIXELS).save(tmp_path / "turned.jpg", exif=exif)
    for kind in ("png", "bmp", "webp", "tif"):
        Image.fromarray(PIXELS).save(tmp_path / f"a.{kind}")
        assert read_header(tmp_path / f"a.{kind}") == (60, 40, False, None)
    assert read_header(tmp_path / "a.jpg") == (60, 40, False, None)
    assert read_header(tmp_path / "turned.jpg") == (40, 60, True, None)
    (tmp_path / "long.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + b"\0" * 999)  # something behind: sound
    assert read_header(tmp_path / "long.jpg").fault is None
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-60])
    assert read_header(tmp_path / "cut.png").fault and read_header(tmp_path / "none.jpg").fault
