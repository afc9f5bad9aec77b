"""The config: every shipped file, every way to get it wrong, and what the error then says."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads

import rio.roi_heads  # noqa: F401  (registers the heads)
from rio.config import KEYS, ConfigError, ConfigFileNotFound, add_rio_config, get_rio_cfg, load_config, validate
from rio.engine.config_files import REFERENCE_NAMES

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(p for p in CONFIGS.rglob("*.yaml") if p.parent.name != "studies")
LVIS = [p for p in FILES if p.parent.name.startswith("lvis")]


def write(folder: Path, text: str, file: str = "c.yaml") -> Path:
    path = folder / file
    path.write_text(text, encoding="utf-8")
    return path


def name(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_shipped_files_load_and_their_heads_are_built(path, tmp_path):
    cfg = load_config(path)
    dumped = write(tmp_path, cfg.dump())  # what a run's config.yaml holds
    assert yaml.safe_load(load_config(dumped).dump()) == yaml.safe_load(cfg.dump())
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES == 0:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7
    cfg.MODEL.RIO.BANK_CLASS_IDS = [1, 4]  # as the trainer resolves them
    cfg.MODEL.RIO.NUM_IMAGES = 90
    cfg.MODEL.RIO.IMAGE_COUNT = cfg.MODEL.RIO.INSTANCE_COUNT = [9] * cfg.MODEL.ROI_HEADS.NUM_CLASSES
    validate(cfg)
    levels = {f"p{i}": ShapeSpec(channels=8, stride=2**i) for i in range(2, 7)}
    heads = build_roi_heads(cfg, levels)
    predictors = heads.box_predictor if "Cascade" in type(heads).__name__ else [heads.box_predictor]
    classifier = {"cosine": "CosineClassifier", "linear": "Linear"}[cfg.MODEL.RIO.CLASSIFIER]
    for predictor in predictors:
        assert (predictor.memory_bank is not None) == cfg.MODEL.RIO.BANK_ENABLED
        assert type(predictor.cls_score).__name__ == classifier


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name != "base"], ids=name)
def test_headers_say_command_gpus_hours_and_what_to_expect_of_which_method(path):
    header = "".join(line for line in path.open(encoding="utf-8") if line.startswith("#"))
    assert f"python -m rio train --config-file configs/{name(path)}" in header
    if path.parent.name in ("lvis_v0.5", "lvis_v1", "custom"):
        assert re.search(r"GPUs: \w+", header) and "Hours: " in header and "Expected" in header
    if path in LVIS:
        assert ("reported" in header) != ("no number is published" in header)
        assert "not reproduced yet" in header
        rio, method = load_config(path).MODEL.RIO, path.name.startswith("rio_")
        assert method == rio.BANK_ENABLED
        plain = path.name.startswith(("rio_", "rfs_"))
        assert plain == (rio.CLS_LOSS == "softmax")
        assert not plain or ("cosine" if method else "linear") == rio.CLASSIFIER


@pytest.mark.parametrize("path", FILES, ids=name)
def test_children_hold_only_what_differs(path):
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    if (base := own.pop("_BASE_", None)) is None:
        return

    def same(values, node, prefix=""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from same(value, node[key], f"{prefix}{key}.")
            elif node[key] == (tuple(value) if isinstance(node[key], tuple) else value):
                yield f"{prefix}{key}"

    assert list(same(own, load_config(path.parent / base))) == []


REFERENCE = {
    "lvis_v0.5/rio_r50.yaml": """
MODEL:
  RIO: {CLASSIFIER: cosine, COSINE_SCALE: 48.0, SLOTS_PER_CLASS: 60, REPLAY_PER_CLASS: 20, BANK_ENABLED: true,
        BANK_MAX_IMAGE_COUNT: 30, WRITE_MAX_PER_OBJECT: 0, REPLAY_ABSENT_CLASSES: 0,
        REPLAY_LOSSES: [cls, box], SAMPLER: rfs}
  ROI_HEADS: {SCORE_THRESH_TEST: 0.0001, NUM_CLASSES: 1230}
DATALOADER: {REPEAT_THRESHOLD: 0.001}
SOLVER: {MAX_ITER: 90000, STEPS: [60000, 80000], IMS_PER_BATCH: 16, BASE_LR: 0.02}
TEST: {DETECTIONS_PER_IMAGE: 300}
INPUT: {MIN_SIZE_TRAIN: [640, 672, 704, 736, 768, 800]}
""",
    "lvis_v1/rio_x101.yaml": """
MODEL:
  RIO: {SLOTS_PER_CLASS: 100, REPLAY_PER_CLASS: 5}
  PIXEL_STD: [57.375, 57.120, 58.395]
  RESNETS: {STRIDE_IN_1X1: false}
  ROI_HEADS: {NUM_CLASSES: 1203}
SOLVER: {MAX_ITER: 180000, STEPS: [120000, 160000]}
""",
}


@pytest.mark.parametrize("file", REFERENCE)
def test_the_references_numbers(file, tmp_path):
    cfg = load_config(CONFIGS / file)
    merged = cfg.clone()
    merged.merge_from_file(str(write(tmp_path, REFERENCE[file])))
    assert merged == cfg


def test_files_then_options(tmp_path):
    write(tmp_path, "MODEL: {RIO: {SLOTS_PER_CLASS: 40, REPLAY_PER_CLASS: 10}}\nSEED: 3", "base.yaml")
    path = write(tmp_path, "_BASE_: base.yaml\nMODEL:\n  RIO:\n    SLOTS_PER_CLASS: 30\n")
    cfg = load_config(path, ["MODEL.RIO.REPLAY_PER_CLASS", "5", "SOLVER.BASE_LR", "1e-3", "MODEL.WEIGHTS", "a/b.pth"])
    assert (cfg.MODEL.RIO.SLOTS_PER_CLASS, cfg.MODEL.RIO.REPLAY_PER_CLASS, cfg.SEED) == (30, 5, 3)
    assert cfg.SOLVER.BASE_LR == 1e-3 and cfg.MODEL.WEIGHTS == "a/b.pth"
    assert not cfg.is_frozen()
    # Whole numbers may stand for floats, and lists for tuples.
    path = write(tmp_path, "MODEL: {RIO: {COSINE_SCALE: 32, REPLAY_LOSSES: [cls]}}")
    rio = load_config(path, ["MODEL.RIO.CALIBRATION_STRENGTH", "1"]).MODEL.RIO
    assert rio.COSINE_SCALE == 32.0 and isinstance(rio.COSINE_SCALE, float)
    assert rio.REPLAY_LOSSES == ("cls",) and rio.CALIBRATION_STRENGTH == 1.0


def test_what_is_allowed(tmp_path):
    assert load_config(write(tmp_path, "")) == load_config() == get_rio_cfg()
    classes = ["MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.RIO.CLASS_FREQUENCY", "rcf", "MODEL.RIO.BANK_CLASS_IDS", [0, 2]]
    assert load_config(opts=classes).MODEL.RIO.CLASS_FREQUENCY == "rcf"
    before = "MODEL: {RIO: {REPLAY_ORDER: newest, REPLAY_MAX_PER_FOREGROUND: 0.0, BANK_START_ITER: 0}}"
    options = ["MODEL.RIO.REPLAY_MAX_PER_FOREGROUND", "0", "MODEL.RIO.BANK_START_ITER", "0"]
    assert load_config(write(tmp_path, before), options) == get_rio_cfg()
    off = ["MODEL.RIO.BANK_ENABLED", "False", "MODEL.RIO.CLASSIFIER", "linear"]  # then another head is fine
    assert load_config(opts=[*off, "MODEL.ROI_HEADS.NAME", "StandardROIHeads"])


@pytest.mark.parametrize("old", sorted(REFERENCE_NAMES.keys() - {"MemoryROIHeads", "RANDOM_SELECT"}))
def test_keys_of_the_reference_name_the_new_one(old, tmp_path):
    new = REFERENCE_NAMES[old].split()[0]
    assert new.removeprefix("MODEL.RIO.") in KEYS
    for place in ("", "MODEL.", "MODEL.ROI_HEADS.", "MODEL.RIO."):
        with pytest.raises(ConfigError, match=rf"the reference's {old}. Fix: write {re.escape(new)}"):
            load_config(opts=[place + old, "20"])
    write(tmp_path, f"MODEL: {{RIO: {{{old}: 20}}}}", "old.yaml")
    says = rf"old.yaml, named by _BASE_ in .*c.yaml: MODEL.RIO.{old}: .*{re.escape(new)}"
    with pytest.raises(ConfigError, match=says):
        load_config(write(tmp_path, "_BASE_: old.yaml"))  # the file that holds it


OUT_OF_RANGE = {"BANK_DTYPE": "float8", "BANK_SYNC": "2", "BANK_MAX_IMAGE_COUNT": "-1"}


@pytest.mark.parametrize(
    ("opts", "says"),
    [
        (["MODEL.RIO.SLOT_PER_CLASS", "3"], "did you mean MODEL.RIO.SLOTS_PER_CLASS"),
        (["MODEL.SLOTS_PER_CLASS", "3"], "did you mean MODEL.RIO.SLOTS_PER_CLASS"),
        (["SOLVER.BASE_RL", "3"], "did you mean SOLVER.BASE_LR"),
        (["SLOTS_PER_CLAS", "3"], "did you mean MODEL.RIO.SLOTS_PER_CLASS"),
        (["QQQ", "3"], "unknown key QQQ"),
        (["MODEL.RIO.COSINE_SCALE.X", "3"], "unknown key MODEL.RIO.COSINE_SCALE.X"),
        (["MODEL.RIO", "3"], "MODEL.RIO: expected keys below it"),
        (["MODEL.RIO.", "3"], "unknown key MODEL.RIO."),
        (["MODEL.RIO.SLOTS_PER_CLASS"], "KEY VALUE pairs, found 1"),
        (["MODEL.RIO.SLOTS_PER_CLASS", "many"], "SLOTS_PER_CLASS: expected int, found str 'many'"),
        (["MODEL.RIO.SLOTS_PER_CLASS", "0"], "SLOTS_PER_CLASS: expected a whole number >= 1, found 0"),
        (["MODEL.RIO.SLOTS_PER_CLASS", "10"], "REPLAY_PER_CLASS: expected at most SLOTS_PER_CLASS .10., found 20"),
        (["MODEL.RIO.REPLAY_PER_CLASS", "-1"], ">= 1, found -1"),
        (["MODEL.RIO.COSINE_SCALE", "0"], "> 0, found 0.0"),
        (["MODEL.RIO.COSINE_SCALE", "1e999"], "found inf"),
        (["MODEL.RIO.COSINE_SCALE", "None"], "found None"),
        (["MODEL.RIO.CLASSIFIER", "cosin"], "did you mean 'cosine'"),
        (["MODEL.RIO.CLASSIFIER", "3"], "CLASSIFIER: expected str"),
        (["MODEL.RIO.REPLAY_ORDER", "random"], "REPLAY_ORDER: expected newest, .*found random. .*remove the key"),
        (["MODEL.RIO.REPLAY_MAX_PER_FOREGROUND", "0.25"], "expected 0.0, .*found 0.25. Fix: remove the key"),
        (["MODEL.RIO.RANDOM_SELECT", "True"], "the reference's RANDOM_SELECT. Fix: write nothing in its place"),
        (["MODEL.RIO.SAMPLER", "RFS"], "did you mean 'rfs'"),
        (["MODEL.RIO.BANK_ENABLED", "1"], "expected bool"),
        (["MODEL.RIO.BANK_ENABLED", "None"], "expected True or False"),
        (["MODEL.RIO.REPLAY_LOSSES", "()"], "BANK_ENABLED False"),
        (["MODEL.RIO.REPLAY_LOSSES", "('mask',)"], "found .'mask',"),
        (["MODEL.RIO.REPLAY_LOSSES", "('cls','cls')"], "each once"),
        (["MODEL.RIO.REPLAY_LOSSES", "cls"], "expected tuple"),
        (["MODEL.RIO.BANK_CLASS_IDS", "[1, 2, 1]"], r"each once, found \[1\]"),
        (["MODEL.RIO.BANK_CLASS_IDS", "[80]"], r"below MODEL.ROI_HEADS.NUM_CLASSES \(80\), each once, found \[80\]"),
        (["MODEL.RIO.BANK_CLASS_IDS", "[-1]"], "0-based"),
        (["MODEL.RIO.BANK_CLASS_IDS", "[1.5]"], r"found \[1.5\]"),
        *(([f"MODEL.RIO.{key}", value], key) for key, value in OUT_OF_RANGE.items()),
        (["MODEL.RIO.WRITE_MAX_PER_OBJECT", "-1"], "WRITE_MAX_PER_OBJECT: expected a whole number >= 0"),
        (["MODEL.RIO.REPLAY_ABSENT_CLASSES", "-3"], "REPLAY_ABSENT_CLASSES: expected a whole number >= 0"),
        (["MODEL.RIO.REPLAY_ABSENT_CLASSES", "0.5"], "expected int"),
        (["MODEL.RIO.CLASS_FREQUENCY", "rcx"], "letters r, c and f.* found 'rcx' .3."),
        (["MODEL.RIO.CLASS_FREQUENCY", "rcf"], r"NUM_CLASSES \(80\), found 'rcf' \(3\)"),
        (["MODEL.RIO.CLASS_FREQUENCY", "3"], "CLASS_FREQUENCY: expected str"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "-1"], "NUM_CLASSES"),
        (["MODEL.ROI_HEADS.NAME", "MemoryROIHeads"], "write RIOROIHeads"),
        (["MODEL.ROI_HEADS.NAME", "StandardROIHeads"], "which would ignore them"),
        (["DATALOADER.REPEAT_THRESHOLD", "0"], "MODEL.RIO.SAMPLER none"),
        (["VERSION", "1"], "VERSION: expected 2"),
    ],
    ids=lambda v: "=".join(v) if isinstance(v, list) else "",
)
def test_wrong_options(opts, says):
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(opts=opts)
    assert "Fix: " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("MODEL: [1, 2", "expected plain YAML"),
        ("!!python/object/apply:os.system ['true']", "plain YAML.* no Python tags"),
        ("MODEL: {WEIGHTS: !!python/name:os.system }", "plain YAML.* no Python tags"),
        ("- 1\n- 2", "expected keys and values, found list"),
        ("MODEL: 3", "MODEL: expected keys below it"),
        ("MODEL: {RIO: null}", "MODEL.RIO: expected keys below it"),
        ("_BASE_: [a.yaml]", "_BASE_: expected the path of one YAML file"),
        ("_BASE_: c.yaml", "found a circle"),
        ("MODEL: {RIO: {SLOTS_PER_CLASS: '1_0x'}}", "expected int"),
        ("MODEL: {RIO: {SLOTS_PER_CLASS: {a: 1}}}", "SLOTS_PER_CLASS: expected int, found dict"),
        ("1: 2", "unknown key 1"),
    ],
)
def test_wrong_files(text, says, tmp_path):
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(write(tmp_path, text))
    assert "c.yaml" in str(caught.value) and "Fix: " in str(caught.value)


def test_missing_files(tmp_path):
    write(tmp_path, "", "rio_r50.yaml")
    with pytest.raises(ConfigFileNotFound, match="did you mean .*rio_r50.yaml") as caught:
        load_config(tmp_path / "rio_r51.yaml")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(ConfigFileNotFound, match="found a folder"):
        load_config(tmp_path)
    with pytest.raises(ConfigFileNotFound, match="named by _BASE_ in .*c.yaml"):
        load_config(write(tmp_path, "_BASE_: nowhere.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="plain YAML"):
        load_config(tmp_path / "binary.yaml")


def test_add_rio_config_touches_nothing_else():
    cfg = get_cfg()
    add_rio_config(cfg)
    del cfg.MODEL["RIO"]
    assert cfg == get_cfg()
    with pytest.raises(ConfigError, match="add_rio_config"):
        validate(cfg)


def test_storage_types_are_torchs():
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in KEYS["BANK_DTYPE"][1])
