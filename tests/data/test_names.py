"""Names of data sets: what each stands for, and what is said of one that is not there."""

import logging
import os
from pathlib import Path

import pytest

from rio.data.errors import AnnotationError
from rio.data.names import SHAPES, DatasetNameError, DatasetNotFoundError, annotations_of, browse, find_datasets
from rio.shapes import dataset, spec
from tests.support.annotation_files import coco, lvis, make_lvis, touch, write


@pytest.fixture
def folder(empty_folder) -> Path:
    return empty_folder


@pytest.fixture
def own(folder) -> str:
    """The name of a data set given by path: the small COCO file and an image for each of its records."""
    write(folder / "set.json", coco())
    touch(folder / "pictures", "a.jpg", "b.jpg")
    return "set.json@pictures"


def test_a_file_is_read_once_and_again_when_it_changed(own, folder):
    assert annotations_of(own) is annotations_of(own)
    data = coco()
    data["annotations"].pop(0)
    write(folder / "set.json", data)
    assert annotations_of(own).num_annotations == 3


def test_broken_records_of_an_own_data_set_are_an_error_unless_the_name_says_skip(own, folder, caplog):
    data = coco()
    data["annotations"][0]["bbox"] = [90, 10, -20, 15]
    write(folder / "set.json", data)
    with pytest.raises(AnnotationError, match=r"annotation 101.*\?skip"):
        annotations_of(own)
    with caplog.at_level(logging.WARNING, logger="rio.data.names"):
        annotations_of(own + "?skip")
    assert annotations_of(own + "?skip").skipped_counts() == {"negative_box": 1}
    assert "left out 1 records (negative_box 1); the first: annotation 101 (image 7), bbox" in caplog.text


def test_groups_by_other_borders(own, folder):
    data = coco()
    first = data["annotations"][0]  # its class is put into the other image too
    other = next(image["id"] for image in data["images"] if image["id"] != first["image_id"])
    data["annotations"].append({**first, "id": 999, "image_id": other, "bbox": [1, 1, 5, 5]})
    for record in data["annotations"]:
        record.pop("segmentation", None)
    write(folder / "set.json", data)
    counts = annotations_of(own).image_count.tolist()
    assert max(counts) == 2 and annotations_of(own).frequency.tolist() == ["r"] * len(counts)
    for name in (f"{own}?groups=1,2", f"{own}?skip&groups=1,2", "set.json?groups=1,2"):
        found = browse(name)[0] if name.startswith("set.json?") else annotations_of(name)
        assert found.frequency.tolist() == ["c" if count == 2 else "r" for count in counts]
        assert annotations_of(own).with_frequency_of(found).frequency.tolist() == found.frequency.tolist()
    data["categories"][0]["frequency"] = "f"  # what is asked for in the name wins
    write(folder / "set.json", data)
    assert "f" not in annotations_of(f"{own}?groups=1,2").frequency.tolist()


@pytest.mark.parametrize("options", ["groups=1", "groups=5,5", "groups=0,5", "group=1,2", "skip&groups=1,2&groups=1,2"])
def test_options_of_a_name_that_are_none(own, options):
    with pytest.raises(DatasetNameError, match=r"expected \?skip or \?groups=R,C.*Fix: for example \?groups=5,20"):
        annotations_of(f"{own}?{options}")


def test_own_images_must_be_there(own, folder):
    (folder / "pictures" / "a.jpg").unlink()
    with pytest.raises(AnnotationError, match=r"image 3, key 'file_name'.*a\.jpg"):
        annotations_of(own)
    with pytest.raises(DatasetNotFoundError, match=r"expected photos \(that is .*photos\)"):
        annotations_of("set.json@photos")
    with pytest.raises(DatasetNotFoundError, match=r"expected none\.json \(that is .*none\.json\).*Fix"):
        annotations_of("none.json@pictures")


def test_paths_may_hold_spaces_at_signs_and_a_home(own, folder, monkeypatch):
    (folder / "pictures").rename(folder / "my pictures@home")
    monkeypatch.setenv("HOME", str(folder))
    found = annotations_of(f"{folder}/set.json@~/my pictures@home")
    assert found.image_root == str(folder / "my pictures@home")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lvis_v1_trian", "Did you mean lvis_v1_train"),
        ("shapes_demo_tuen", "Did you mean shapes_demo_tune"),
        ("set.json", "'set.json@path/to/images'"),
        ("set.json@", "found 'set.json@'"),
        ("@pictures", "found '@pictures'"),
        ("coco_2017_train", "LVIS or COCO format"),
        ("", "found ''"),
        (None, "expected a string"),
    ],
)
def test_names_that_mean_nothing(folder, name, words):
    with pytest.raises(DatasetNameError, match="data set name") as caught:
        annotations_of(name)
    assert words in str(caught.value)


def test_a_missing_lvis_names_path_and_fix(folder, monkeypatch):
    with pytest.raises(DatasetNotFoundError) as caught:
        annotations_of("lvis_v1_train")
    looked_at = os.path.join("datasets", "lvis", "lvis_v1_train.json")
    assert looked_at in str(caught.value) and str(folder / looked_at) in str(caught.value)
    assert "DETECTRON2_DATASETS" in str(caught.value)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "elsewhere"))
    with pytest.raises(DatasetNotFoundError, match="elsewhere"):
        annotations_of("lvis_v1_train")


@pytest.mark.parametrize("name", ["lvis_v1_train", "lvis_v0.5_val"])
def test_lvis_below_detectron2s_folder(folder, monkeypatch, name):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "data"))
    data = lvis()
    data["annotations"][0]["category_id"] = 6  # nobody can correct the official file: left out
    make_lvis(folder / "data", f"{name}.json", data)
    found = annotations_of(name)
    assert found.path == str(folder / "data" / "lvis" / f"{name}.json")
    assert found.skipped_counts() == {"unknown_category": 1}
    assert found.image_path(0) == str(folder / "data" / "coco" / "train2017" / "a.jpg")
    with pytest.raises(DatasetNotFoundError, match="coco"):
        annotations_of(name, check_images=True)
    (folder / "data" / "coco" / "train2017").mkdir(parents=True)
    with pytest.raises(AnnotationError, match=r"image 3.*\(1 more like it\)"):
        annotations_of(name, check_images=True)
    touch(folder / "data" / "coco", *found.file_names)
    assert annotations_of(name, check_images=True) is found


@pytest.mark.parametrize("split", ["train", "val", "tune", "balanced"])
def test_an_embedded_set_is_drawn_on_first_use(folder, monkeypatch, split):
    assert [spec.SPECS[size].name for size in SHAPES] == ["shapes_demo", "shapes_tail", "shapes_bench"]
    drawn = []

    def generate(root, spec, split, **_):
        drawn.append((spec.name, split))
        place = Path(root) / (spec.name if split in ("train", "val") else f"{spec.name}_{split}")
        (place / split).mkdir(parents=True, exist_ok=True)
        if not (place / f"{split}.json").exists():
            write(place / f"{split}.json", lvis())

    monkeypatch.setattr(dataset, "generate", generate)
    name = f"shapes_demo_{split}"
    assert not any(row["found"] for row in find_datasets()) and not drawn
    found = annotations_of(name)
    assert annotations_of(name) is found and drawn == [("shapes_demo", split)]
    place = "shapes_demo" if split in ("train", "val") else name
    assert found.image_root == os.path.join("datasets", place, split)
    assert found.frequency.tolist() == ["c", "r", "f"]  # as declared, whatever its own counts
    assert [row["name"] for row in find_datasets() if row["found"]] == [name]


def test_find_datasets_says_where_it_looked(folder):
    data = lvis()
    del data["annotations"]  # of a test set
    make_lvis(folder / "datasets", "lvis_v1_image_info_test_dev.json", data)
    assert annotations_of("lvis_v1_test_dev").num_images == 2
    make_lvis(folder / "datasets", "lvis_v1_val.json", lvis())
    rows = {row["name"]: row for row in find_datasets()}
    looked_at = str(folder / "datasets" / "lvis" / "lvis_v1_val.json")
    assert rows["lvis_v1_val"] == {"name": "lvis_v1_val", "found": True, "looked_at": looked_at}
    assert not rows["lvis_v1_train"]["found"] and not rows["shapes_bench_val"]["found"]
    names = "lvis_v0.5_train lvis_v0.5_val lvis_v1_test_dev shapes_demo_train shapes_bench_tune"
    assert set(rows) >= set(names.split())
