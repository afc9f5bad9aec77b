"""Masks: run lengths, and which polygons are taken without decoding them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rio.data.masks import are_plain, rle_counts


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_rle_strings_decode_as_pycocotools_does(seed, height, width):
    mask = pytest.importorskip("pycocotools.mask")
    pixels = np.asfortranarray(np.random.default_rng(seed).random((height, width)) < 0.3, dtype=np.uint8)
    encoded = mask.encode(pixels)
    runs = rle_counts(encoded["counts"])
    expected = np.diff(np.flatnonzero(np.diff(pixels.T.ravel(), prepend=0, append=2)), prepend=0)
    assert runs.tolist() == expected.tolist() and runs.sum() == height * width
    assert rle_counts(encoded["counts"].decode()).tolist() == runs.tolist()
    assert mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width) == encoded


def test_rle_of_nothing():
    assert rle_counts("").tolist() == [] == rle_counts([]).tolist()


def plain(texts: list[str]) -> list[bool]:
    offsets = np.cumsum([0, *map(len, texts)])
    return are_plain(np.frombuffer("".join(texts).encode(), dtype=np.uint8), offsets).tolist()


NOT_PLAIN = [
    "[]", "null", "5", '"[[1,2,3,4,5,6]]"', "[5, [1, 2, 3, 4, 5, 6]]", "[[]]", "[[1, 2, 3, 4, 5]]", "[[1, 2, 3, 4, 5, 6, 7]]",
    "[[1, 2, 3, 4]]", "[[1, 2, 3, 4, 5, 6], 7]", "[[1, 2, 3, 4, 5, null]]", "[{}]", "[[[1, 2], [3, 4], [5, 6]]]", "[[1, 2, 3, 4, 5, 6], []]",
    "[[1, 2, 3, 4, 5, 10000]]", "[[-1, 2, 3, 4, 5, 6]]", "[[1e1, 2, 3, 4, 5, 6]]", '{"size": [1, 1], "counts": [1]}',
    "[[1, 2, 3, 4, 5, 6], [[1, 2, 3, 4, 5, 6]]]", "[[1, 2, 3, 4, 5, true]]",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_PLAIN)
def test_masks_to_look_at(text):
    assert plain([text]) == [False] and plain([text, "[[1, 2, 3, 4, 5, 6]]"])[0] is False


coordinate = st.one_of(st.integers(0, 9999), st.floats(0, 9999).map(lambda v: round(v, 2)))
polygon = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=6).map(lambda xy: [v for p in xy for v in p])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(polygon, min_size=1, max_size=3), min_size=1, max_size=5), st.sampled_from([None, 0]))
def test_ordinary_polygons_are_plain(masks, indent):
    texts = [json.dumps(mask, indent=indent).replace("[\n[", "[[") for mask in masks]
    assert all(plain(texts))
