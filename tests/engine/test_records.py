"""Names, catalogs and the lazily built records, against detectron2's own."""

import copy
import json
import os
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.data import get_detection_dataset_dicts as detectron2s
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.datasets.lvis import load_lvis_json
from detectron2.structures import BoxMode
from PIL import Image
from torch.utils.data import DataLoader

import rio.data.load
from rio.data import names as datasets
from rio.data.errors import AnnotationError
from rio.data.load import load_annotations
from rio.data.names import annotations_of
from rio.engine.records import Records, records, resolve, target_class_ids
from rio.sampler import image_repeat_factors
from tests.benchmarks import lvis_size
from tests.support.annotation_files import SQUARE, TRIANGLE, coco, lvis, make_lvis, write


@pytest.fixture
def catalogs(empty_folder):
    """Leave detectron2's catalogs as they were."""
    before = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    yield
    DatasetCatalog.data, MetadataCatalog.data = before


@pytest.fixture
def own(catalogs, tmp_path) -> str:
    """The name of a data set given by path: the small COCO file with images that match it."""
    data = coco()
    (tmp_path / "pictures").mkdir()
    for image in data["images"]:
        picture = Image.new("RGB", (image["width"], image["height"]), (90, 120, 60))
        picture.save(tmp_path / "pictures" / image["file_name"])
    write(tmp_path / "set.json", data)
    return "set.json@pictures"


# ----------------------------------------------------------------------------------------- names and catalogs


def test_a_data_set_by_path(own):
    assert resolve(own) == own
    metadata = MetadataCatalog.get(own)
    assert (metadata.json_file, metadata.image_root, metadata.evaluator_type) == ("set.json", "pictures", "lvis")
    assert metadata.thing_classes == ["zèbre 斑马", "mug", "teddy"]
    assert metadata.thing_dataset_id_to_contiguous_id == {5: 0, 11: 1, 90: 2}
    assert metadata.class_image_count == [
        {"id": 5, "image_count": 1, "instance_count": 1},
        {"id": 11, "image_count": 0, "instance_count": 0},
        {"id": 90, "image_count": 1, "instance_count": 2},
    ]
    assert metadata.frequency == ["r", "r", "r"]
    assert isinstance(DatasetCatalog.get(own), Records)


def test_a_file_is_read_once_until_it_changes(own, tmp_path, monkeypatch):
    resolve(own)
    metadata = MetadataCatalog.get(own)
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_annotations", None)
        assert resolve(own) == own and MetadataCatalog.get(own) is metadata
    data = coco()
    data["annotations"].pop(0)
    write(tmp_path / "set.json", data)
    resolve(own)
    assert MetadataCatalog.get(own).class_image_count[2]["instance_count"] == 1
    assert len(DatasetCatalog.get(own)[1]["annotations"]) == 1


def test_names_survive_a_dumped_config(own, tmp_path):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (own, own + "?skip")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "config.yaml"))
    assert (own, own + "?skip") == again.DATASETS.TRAIN
    assert [resolve(name) for name in again.DATASETS.TRAIN] == [own, own + "?skip"]
    from_command_line = get_cfg()
    from_command_line.merge_from_list(["DATASETS.TRAIN", f"('{own}',)"])
    assert (own,) == from_command_line.DATASETS.TRAIN


def test_lvis_below_detectron2s_folder(catalogs, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    make_lvis(tmp_path / "data", "lvis_v1_train.json", lvis())
    assert resolve("lvis_v1_train") == "lvis_v1_train" == resolve("lvis_v1_train")
    metadata = MetadataCatalog.get("lvis_v1_train")
    assert metadata.json_file == str(tmp_path / "data" / "lvis" / "lvis_v1_train.json")
    assert metadata.thing_classes == ["zèbre 斑马", "mug", "teddy"]  # the file's, not detectron2's list
    assert metadata.frequency == ["c", "r", "f"] and len(metadata.class_image_count) == 3
    first = DatasetCatalog.get("lvis_v1_train")[0]
    assert first["file_name"] == str(tmp_path / "data" / "coco" / "train2017" / "a.jpg")


# ---------------------------------------------------------------------------------------------------- records


def test_records_by_hand(own):
    all_records = records(annotations_of(own))
    assert isinstance(all_records, Sequence) and len(all_records) == 2 and all_records.num_crowd == 1
    assert all_records[0] == {
        "file_name": os.path.join("pictures", "a.jpg"), "height": 48, "width": 64, "image_id": 3,
        "not_exhaustive_category_ids": [], "neg_category_ids": [],
        "annotations": [{
            "bbox": [10, 10, 40, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0,
            "segmentation": [TRIANGLE, SQUARE],
        }],
    }  # fmt: skip
    # The crowd region of image 7 is left out.
    assert [o["category_id"] for o in all_records[1]["annotations"]] == [2, 2]
    assert [o["segmentation"] for o in all_records[-1]["annotations"]] == [[TRIANGLE], [SQUARE]]
    assert all_records[:1] == [all_records[0]] and list(all_records)[1] == all_records[np.int64(1)]
    assert list(pickle.loads(pickle.dumps(all_records))) == list(all_records)
    all_records[0]["annotations"].clear()  # a mapper may do that
    assert len(all_records[0]["annotations"]) == 1
    for index in (2, -3):
        with pytest.raises(IndexError, match=r"-2\.\.1"):
            all_records[index]


def test_records_without_masks_and_without_annotations(own, tmp_path):
    data = coco()
    del data["annotations"][1:], data["annotations"][0]["segmentation"]
    write(tmp_path / "set.json", data)
    empty, boxed = records(annotations_of(own))
    assert empty["annotations"] == [] and "segmentation" not in boxed["annotations"][0]


def test_rle_objects_reach_the_mapper_as_compressed_rle(own, tmp_path):
    mask = pytest.importorskip("pycocotools.mask")
    data = coco()
    data["annotations"][3]["iscrowd"] = 0
    write(tmp_path / "set.json", data)
    annotations = annotations_of(own)
    assert annotations.has_rle_objects
    segmentation = records(annotations)[1]["annotations"][2]["segmentation"]
    decoded = mask.decode(segmentation)
    assert decoded.shape == (50, 100) and decoded.sum() == 10 and decoded[40:, 99].all()
    masks = {"use_instance_mask": True, "instance_mask_format": "bitmask"}
    mapped = DatasetMapper(True, augmentations=[], image_format="BGR", **masks)(records(annotations)[1])
    assert mapped["instances"].gt_masks.tensor.sum(dim=(1, 2))[-1] == 10


def test_detectron2_reads_the_records(own):
    resolve(own)
    # Its own filter and our indices agree.
    kept = detectron2s((own,), filter_empty=True)
    assert [r["image_id"] for r in kept] == [3, 7]
    mapper = DatasetMapper(False, augmentations=[], image_format="BGR")
    loader = build_detection_test_loader(DatasetCatalog.get(own), mapper=mapper, num_workers=0)
    shapes = [tuple(batch[0]["image"].shape) for batch in loader]
    assert shapes == [(3, 48, 64), (3, 50, 100)]


def test_training_images_are_those_that_detectron2_keeps(own, tmp_path):
    data = coco()
    data["images"].append({"id": 9, "width": 5, "height": 5, "file_name": "a.jpg"})
    data["annotations"] = data["annotations"][1:2] + data["annotations"][3:]  # image 7 has the crowd region only
    write(tmp_path / "set.json", data)
    annotations = annotations_of(own)
    all_records = records(annotations)
    kept = filter_images_with_only_crowd_annotations(list(all_records))
    indices = np.flatnonzero(image_repeat_factors(annotations, "none", 1.0, filter_empty=True))
    assert [all_records[i]["image_id"] for i in indices.tolist()] == [r["image_id"] for r in kept] == [3]
    assert image_repeat_factors(annotations, "none", 1.0).tolist() == [1, 1, 1]


def test_what_is_asked_for_in_vain(own):
    with pytest.raises(AnnotationError, match="image_root=FOLDER"):
        records(load_annotations("set.json"))
    annotations = annotations_of(own)
    assert target_class_ids(annotations, 30) == [0, 2] and target_class_ids(annotations, 1) == [0, 2]
    assert target_class_ids(annotations, 0) == []
    with pytest.raises(ValueError, match="BANK_MAX_IMAGE_COUNT"):
        target_class_ids(annotations, -1)


# ------------------------------------------------------------------------------------------------- real files


def like_load_lvis_json(ours: Records, theirs: list[dict]) -> bool:
    """Values, and the order of keys, record by record; theirs may hold images and annotations in any order."""
    theirs = sorted(theirs, key=lambda record: record["image_id"])
    return all(
        list(mine) == list(their) and mine == their
        and [list(a) for a in mine["annotations"]] == [list(a) for a in their["annotations"]]
        for mine, their in zip(ours, theirs, strict=True)
    )  # fmt: skip


def test_records_equal_detectron2s_on_lvis(shared_dir, catalogs, tmp_path):
    source = shared_dir / "data" / "lvis_val_100.json"
    path = make_lvis(tmp_path / "datasets", "lvis_v0.5_val.json", json.loads(source.read_text()))
    ours = DatasetCatalog.get(resolve("lvis_v0.5_val"))
    assert len(ours) == 100
    assert like_load_lvis_json(ours, load_lvis_json(str(path), os.path.join("datasets", "coco/"), None))


def test_records_equal_detectron2s_on_a_file_like_lvis_v1(catalogs, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(rio.data.load, "CACHE_MIN_BYTES", 0)
    # Several pieces of the file, images in no order, polygons of LVIS's lengths.
    tail = lvis_size.log_linear_tail()
    path, again = (lvis_size.generate(tmp_path / f"{n}.json", scale=0.002, tail=tail) for n in "ab")
    assert path.read_bytes() == again.read_bytes()
    theirs = load_lvis_json(str(path), "images/")
    for _ in range(2):
        annotations = load_annotations(path, image_root="images/")
        assert like_load_lvis_json(records(annotations), theirs)
    assert isinstance(annotations.mask_json.base, np.memmap) and len(list(cache.glob("*-v*"))) == 1
    counts = {category["id"]: category for category in json.loads(path.read_text())["categories"]}
    assert annotations.image_count.tolist() == [counts[k]["image_count"] for k in sorted(counts)]
    assert annotations.instance_count.tolist() == [counts[k]["instance_count"] for k in sorted(counts)]


def test_loader_workers_read_the_cached_columns(catalogs, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(rio.data.load, "CACHE_MIN_BYTES", 0)
    path = lvis_size.generate(tmp_path / "train.json", scale=0.0005, tail=lvis_size.log_linear_tail())
    load_annotations(path, image_root="images")
    ours = records(load_annotations(path, image_root="images"))
    assert list(pickle.loads(pickle.dumps(ours))) == list(ours)  # what a worker gets that is started anew
    how = {"num_workers": 2, "multiprocessing_context": "fork", "collate_fn": copy.copy}  # records as they are
    assert list(DataLoader(ours, batch_size=None, **how)) == list(ours)
