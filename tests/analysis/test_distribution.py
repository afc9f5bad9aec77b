"""Tables of a data set, worked by hand on three images."""

import numpy as np
import pytest

from rio.analysis.distribution import area_shares, category_table, company_of, image_class_pairs, per_image, sizes
from rio.data.load import load_annotations
from tests.support.annotation_files import three_images, write


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    content = three_images()
    # A crowd region, which no table counts.
    content["annotations"].append(content["annotations"][0] | {"id": 99, "image_id": 2, "category_id": 5, "iscrowd": 1})
    return load_annotations(write(tmp_path_factory.mktemp("own") / "own.json", content))


def test_categories_and_images(own):
    table = category_table(own)
    assert table["image_count"].tolist() == [2, 2, 1, 1, 0]
    assert table["instance_count"].tolist() == [3, 2, 1, 1, 0]
    table = per_image(own)
    assert table["objects"].tolist() == [2, 2, 3] and table["categories"].tolist() == [2, 1, 3]
    assert table["rarest"].tolist() == ["f", "f", "r"]
    assert np.transpose(image_class_pairs(own)).tolist() == [[0, 0], [0, 1], [1, 0], [2, 1], [2, 2], [2, 3]]


def test_sizes_are_sides_in_percent_of_the_image(own):
    table = sizes(own)
    assert table["side"].tolist()[2] == pytest.approx(100 * np.sqrt(2000 / 5000))
    assert table["frequency"].tolist() == list("fffffrr")
    assert area_shares(own)["area"].tolist()[2] == pytest.approx(2000 / 5000)


def test_company_of_rare_objects(own):
    """Only image 3 holds rare objects: the dog is with them, owl and mouse are with each other."""
    table = company_of(own, "r").set_index("name")
    assert table["share"].to_dict() == {"dog": 1.0, "owl": 1.0, "mouse": 1.0}
    assert table["share_of_all"].to_dict() == pytest.approx({"dog": 2 / 3, "owl": 1 / 3, "mouse": 1 / 3})
    assert company_of(own, "c").empty
