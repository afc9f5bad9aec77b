"""Setup: what a config leaves open is filled in from the data; what does not fit names the key and the fix."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from PIL import Image

from rio.config import ConfigError, load_config
from rio.data.names import annotations_of
from rio.engine.errors import TrainingError
from rio.engine.setup import setup_inference, setup_training


def test_setup_fills_in_what_the_config_leaves_open(tiny_config, tmp_path):
    cfg = setup_training(tiny_config(tmp_path, "SEED", -1))
    train = annotations_of(cfg.DATASETS.TRAIN[0])
    assert cfg.is_frozen() and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 6 and cfg.SEED >= 0
    assert list(cfg.MODEL.RIO.BANK_CLASS_IDS) == np.flatnonzero(train.image_count <= 30).tolist()
    assert cfg.MODEL.RIO.CLASS_FREQUENCY == "".join(train.frequency) == "fcccrr"
    stored = load_config(tmp_path / "config.yaml")
    assert stored.MODEL.RIO.CLASS_FREQUENCY == "fcccrr"
    assert stored.SEED == cfg.SEED and stored.MODEL.RIO.BANK_CLASS_IDS == cfg.MODEL.RIO.BANK_CLASS_IDS
    if not torch.cuda.is_available():
        assert cfg.MODEL.DEVICE == "cpu"
        assert "MODEL.DEVICE cuda -> cpu" in (tmp_path / "log.txt").read_text()
        assert not setup_training(tiny_config(tmp_path, "SOLVER.AMP.ENABLED", True)).SOLVER.AMP.ENABLED
        assert "SOLVER.AMP.ENABLED True -> False" in (tmp_path / "log.txt").read_text()


def test_the_banks_classes_can_be_the_rarer_half(tiny_config, tmp_path):
    cfg = setup_training(tiny_config(tmp_path, "MODEL.RIO.BANK_MAX_IMAGE_COUNT", 0))
    counts = annotations_of(cfg.DATASETS.TRAIN[0]).image_count
    most = int(np.sort(counts)[2])  # of six
    assert most == load_config(tmp_path / "config.yaml").MODEL.RIO.BANK_MAX_IMAGE_COUNT
    assert list(cfg.MODEL.RIO.BANK_CLASS_IDS) == np.flatnonzero(counts <= most).tolist()


def test_groups_by_other_borders_are_stored_with_the_run(tiny_config, tiny_set, tmp_path):
    name = f"{tiny_set}/train.json@{tiny_set}/train?groups=2,3"
    cfg = setup_training(tiny_config(tmp_path, "DATASETS.TRAIN", repr((name,))))
    counts = annotations_of(f"{tiny_set}/train.json@{tiny_set}/train").image_count
    expected = "".join("r" if n <= 2 else "c" if n <= 3 else "f" for n in counts)
    assert load_config(tmp_path / "config.yaml").MODEL.RIO.CLASS_FREQUENCY == expected != "fcccrr"
    assert (name,) == cfg.DATASETS.TRAIN


def test_a_seed_that_was_drawn_is_kept_on_resume_and_changes_are_logged(tiny_config, tmp_path):
    first = setup_training(tiny_config(tmp_path, "SEED", -1))
    (tmp_path / "last_checkpoint").write_text("model_0000000.pth")
    options = ["SEED", -1, "SOLVER.BASE_LR", 0.5, "MODEL.RIO.WRITE_MAX_PER_OBJECT", 1]
    assert setup_training(tiny_config(tmp_path, *options), resume=True).SEED == first.SEED
    log = (tmp_path / "log.txt").read_text()
    assert "Resumed with another SOLVER.BASE_LR: 0.03 -> 0.5" in log
    assert "Resumed with another MODEL.RIO.WRITE_MAX_PER_OBJECT: 0 -> 1" in log and log.count("Resumed") == 2


def test_one_gpu_by_number_is_for_one_process(tiny_config, tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    config = tiny_config(tmp_path, "MODEL.DEVICE", "cuda:1")
    assert setup_training(config).MODEL.DEVICE == "cuda:1" and chosen == ["cuda:1"]
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"MODEL.DEVICE: expected cuda, .* of the 2 processes.* found cuda:1. Fix: "):
        setup_training(config)
    assert chosen == ["cuda:1"]


def test_schedule_follows_the_reference_world_size(tiny_config, tmp_path):
    cfg = setup_training(tiny_config(tmp_path, "SOLVER.REFERENCE_WORLD_SIZE", 2, "SOLVER.CHECKPOINT_PERIOD", 50))
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (1, 12, 0.015)
    assert load_config(tmp_path / "config.yaml").SOLVER.IMS_PER_BATCH == 1


def test_setup_errors_name_the_key_and_the_fix(tiny_config, tiny_set, straight, tmp_path):
    def error(kind: type, text: str, *options: object) -> None:
        with pytest.raises(kind, match=text):
            setup_training(tiny_config(tmp_path / "run", *options))

    error(ConfigError, r"NUM_CLASSES: expected 6, .* found 80", "MODEL.ROI_HEADS.NUM_CLASSES", 80)
    two = repr((f"{tiny_set}/train.json@{tiny_set}/train",) * 2)
    error(ConfigError, r"DATASETS.TRAIN: expected one data set", "DATASETS.TRAIN", two)
    error(ConfigError, r"DATASETS.TRAIN: expected one data set", "DATASETS.TRAIN", "()")
    error(ConfigError, r"the rarest has 2 images.*set it to 0.*BANK_ENABLED False", "MODEL.RIO.BANK_MAX_IMAGE_COUNT", 1)
    error(ConfigError, r"PRECISE_BN", "TEST.PRECISE_BN.ENABLED", True)
    with pytest.raises(TrainingError, match=r"found a checkpoint.*--resume"):
        setup_training(tiny_config(Path(straight.cfg.OUTPUT_DIR)))
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="expected a folder that can be written to"):
        setup_training(tiny_config(tmp_path / "file" / "run"))

    renamed = json.loads((tiny_set / "val.json").read_text())
    renamed["categories"][0]["name"] = "something else"
    (tmp_path / "renamed.json").write_text(json.dumps(renamed))
    error(ValueError, "something else", "DATASETS.TEST", repr((f"{tmp_path}/renamed.json@{tiny_set}/val",)))

    boxes = json.loads((tiny_set / "train.json").read_text())
    for annotation in boxes["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    options = ["DATASETS.TRAIN", repr((f"{tmp_path}/boxes.json@{tiny_set}/train",))]
    error(ConfigError, "found boxes only. Fix: set MODEL.MASK_ON False", *options)
    assert not setup_training(tiny_config(tmp_path / "run", *options, "MODEL.MASK_ON", False)).MODEL.MASK_ON


def test_a_training_set_without_objects_is_refused(tiny_config, tiny_set, tmp_path):
    data = json.loads((tiny_set / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(data | {"annotations": []}))
    options = ["DATASETS.TRAIN", repr((f"{tmp_path}/train.json@{tiny_set}/train",)), "MODEL.MASK_ON", False]
    with pytest.raises(ConfigError, match="BANK_MAX_IMAGE_COUNT.*found none.*the rarest has 0 images"):
        setup_training(tiny_config(tmp_path / "run", *options))


def test_inference_needs_no_training_set(tiny_config, tmp_path):
    nowhere = "('gone/train.json@gone/images',)"
    cfg = setup_inference(tiny_config(tmp_path, "DATASETS.TRAIN", nowhere))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 6 and not cfg.MODEL.RIO.BANK_ENABLED
    with pytest.raises(ConfigError, match="NUM_CLASSES"):
        setup_inference(tiny_config(tmp_path, "DATASETS.TRAIN", nowhere, "DATASETS.TEST", "()"))
    neither = ["DATASETS.TRAIN", nowhere, "DATASETS.TEST", nowhere, "MODEL.ROI_HEADS.NUM_CLASSES", 6]
    with pytest.raises(FileNotFoundError, match="gone/train.json"):
        setup_inference(tiny_config(tmp_path, *neither))
    assert len(setup_inference(tiny_config(tmp_path, *neither), need_test_sets=False).DATASETS.TEST) == 0


# ---- before the first iteration


@pytest.fixture
def val_copy(tiny_set, tmp_path):
    """A copy of the validation set, to spoil: its records, and a function that gives its name once they are written."""
    shutil.copytree(tiny_set / "val", tmp_path / "pictures")
    data = json.loads((tiny_set / "val.json").read_text())

    def name(options: str = "") -> str:
        (tmp_path / "val.json").write_text(json.dumps(data))
        return repr((f"{tmp_path}/val.json@{tmp_path}/pictures{options}",))

    return data, tmp_path / "pictures", name


def test_a_set_without_images_is_found_before_training(tiny_config, tmp_path, val_copy):
    data, _, name = val_copy
    for image in data["images"]:
        image["width"] = 32.5
    with pytest.raises(ConfigError, match=r"val\.json.*no image to evaluate on \(.* records were left out: .*type 6"):
        setup_training(tiny_config(tmp_path / "run", "DATASETS.TEST", name("?skip")))
    data["images"], data["annotations"] = [], []
    with pytest.raises(ConfigError, match=r"no image to evaluate on\. Fix"):
        setup_training(tiny_config(tmp_path / "run", "DATASETS.TEST", name()))


def test_a_set_without_objects_is_said_before_training(tiny_config, tmp_path, val_copy):
    data, _, name = val_copy
    data["annotations"] = []
    setup_training(tiny_config(tmp_path / "run", "DATASETS.TEST", name()))
    assert "has no object: every AP will be '-'" in (tmp_path / "run" / "log.txt").read_text()


def test_spoilt_validation_pictures_are_found_before_training(tiny_config, tmp_path, val_copy):
    data, folder, name = val_copy
    first, second = (folder / data["images"][i]["file_name"] for i in (0, 1))
    whole, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(whole[:-300])
    with pytest.raises(TrainingError, match=rf"validation picture .*{first.name}: expected a picture, found: .*Fix: "):
        setup_training(tiny_config(tmp_path / "run", "DATASETS.TEST", name()))
    second.write_bytes(other[:50])
    with pytest.raises(TrainingError, match=r"\(1 more pictures with a fault\)"):
        setup_training(tiny_config(tmp_path / "run", "DATASETS.TEST", name()))
    second.write_bytes(other)
    with Image.open(io.BytesIO(whole)) as picture:
        width, height = picture.size
        exif = picture.getexif()
        exif[0x112] = 6
        picture.crop((0, 0, width, height // 2)).save(first, exif=exif)
    words = (
        rf"expected {width} x {height} px as in .*val\.json, found {height // 2} x {width} px, turned by its EXIF data"
    )
    with pytest.raises(TrainingError, match=words):
        setup_training(tiny_config(tmp_path / "run", "DATASETS.TEST", name()))


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_a_picture_too_thin_to_resize_is_found_before_training(split, tiny_config, tmp_path, val_copy):
    data, folder, name = val_copy
    data["images"][0] |= {"width": 3000, "height": 2}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != data["images"][0]["id"]]
    Image.new("RGB", (3000, 2)).save(folder / data["images"][0]["file_name"])
    with pytest.raises(TrainingError, match=rf"sides of 1 px or more .*MAX_SIZE_{split}.* found none of 3000 x 2 px"):
        setup_training(tiny_config(tmp_path / "run", f"DATASETS.{split}", name()))
