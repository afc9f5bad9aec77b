"""Study files and their mistakes; settings that changed; what a tuning study must not see."""

import os
from pathlib import Path

import pytest
import yaml

from rio.config import load_config
from rio.study.plan import StudyError, keep_settings, load_study, prepare
from tests.support import tiny_shapes

STUDIES = Path(__file__).resolve().parents[2] / "configs" / "studies"


@pytest.mark.parametrize("name", sorted(file.stem for file in STUDIES.glob("*.yaml")))
def test_every_arm_of_the_projects_own_studies_is_a_config(name):
    plan = load_study(STUDIES / f"{name}.yaml")
    if name == "demo":
        assert len(plan.arms) == 8 and plan.processes == 2 and plan.seeds == (1, 2, 3)
        assert plan.comparisons[0] == ("bank-linear", "none-linear") and plan.features[0].endswith("model_final.pth")
        assert plan.arms["none-linear"] == ["MODEL.RIO.SAMPLER", "none", "MODEL.RIO.BANK_ENABLED", "False"]
        assert os.path.samefile(plan.config, tiny_shapes.DEMO_CONFIG.with_name("tail_features.yaml"))
    assert plan.file == f"configs/studies/{name}.yaml"
    assert (plan.tune_on is not None) == name.endswith("_tune")
    settings = {arm: load_config(plan.config, options).dump() for arm, options in plan.arms.items()}
    assert len(set(settings.values())) == len(settings), "an arm is another arm under another name"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": 3}, "'config': expected the path"),
        ({"arms": {}}, "'arms': expected names"),
        ({"arms": {"a": ["SEED"]}}, "'arms.a': expected .KEY, VALUE"),
        ({"arms": {"../a": []}}, "a name that can be a folder's"),
        ({"seeds": [1, 1]}, "'seeds': expected a list of different integers"),
        ({"seeds": 1}, "'seeds'"),
        ({"seeds": [True]}, "'seeds'"),
        ({"seeds": {"one": []}}, "'seeds': expected a list of different integers >= 0, or a mapping"),
        ({"seeds": {1: ["DATASETS.TRAIN"]}}, r"'seeds.1': expected .KEY, VALUE"),
        ({"processes": 0}, "'processes': expected an integer >= 1"),
        ({"procesess": 2}, "'procesess': expected one of config, arms"),
        ({"gpus": "all"}, "'gpus': expected an integer >= 1"),
        ({"comparisons": {"b": "a"}}, "'comparisons': expected a list of"),
        ({"comparisons": [["b", "a"], ["b"]]}, r"'comparisons.1.': expected .ARM, BASELINE., two different"),
        ({"comparisons": [["b", "b"]]}, "two different of a, b, found .'b', 'b'."),
        ({"comparisons": [["b", "c"]]}, "two different of a, b, found .'b', 'c'."),
        ({"comparisons": [[["b"], "a"]]}, "two different"),
        ({"tune_on": ["x"]}, "'tune_on': expected the name of a data set"),
        ({"protocols": "lvis"}, "'protocols': expected lvis and others of lvis, lvis_fixed, coco, found 'lvis'"),
        ({"protocols": ["lvis_fixed"]}, "'protocols': expected lvis and others"),
        ({"protocols": ["lvis", "fixed"]}, "'protocols': expected lvis and others"),
        ({"features": 3}, "'features': expected a folder of features or weights, or a list of 1, one per seed"),
        ({"features": ["a", "b"]}, "or a list of 1, one per seed"),
    ],
)
def test_mistakes_in_a_study_file_are_named(study, change, message):
    with pytest.raises(StudyError, match=message):
        study(**change)


def test_comparisons_are_as_the_file_says_or_all_against_the_first(study):
    assert study().comparisons == (("b", "a"),)
    own = study(comparisons=[["a", "b"]])
    assert own.comparisons == (("a", "b"),) and own.gpus == 1 and own.file == "study.yaml"


def test_a_seed_has_options_of_its_own(study, tmp_path):
    plan = study(seeds={1: None, 2: ["SOLVER.BASE_LR", 0.5]}, arms={"a": ["SOLVER.BASE_LR", 0.1]})
    runs = prepare(plan, tmp_path / "runs", [])
    assert [(run.seed, load_config(plan.config, run.options).SOLVER.BASE_LR) for run in runs] == [(1, 0.1), (2, 0.5)]
    runs = prepare(plan, tmp_path / "called", ["SOLVER.BASE_LR", "0.3"])
    assert [load_config(plan.config, run.options).SOLVER.BASE_LR for run in runs] == [0.3, 0.3]


def test_files_that_are_missing_or_not_yaml(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such study file"):
        load_study(tmp_path / "none.yaml")
    with pytest.raises(FileNotFoundError, match="named by 'config'"):
        load_study(write(config="none.yaml"))
    for content in ("arms: [", "!!python/object/apply:os.system ['true']"):
        (tmp_path / "broken.yaml").write_text(content)
        with pytest.raises(StudyError, match="expected YAML"):
            load_study(tmp_path / "broken.yaml")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"arms": {"good": [], "bad": ["SOLVER.MAX_ITR", 3]}}, [], "arm 'bad'.*SOLVER.MAX_ITR"),
        ({}, ["DATASETS.TRAIN", "()"], "arm 'a': DATASETS.TRAIN: expected a data set .*, found ()"),
        ({}, ["DATASETS.TEST", "()"], "arm 'a': DATASETS.TEST: expected a data set .*, found ()"),
    ],
)
def test_arms_are_checked_before_anything_starts(study, data, tmp_path, changes, options, message):
    with pytest.raises(StudyError, match=message):
        prepare(study(**changes), tmp_path / "out", [*data, *options])


def test_changed_settings_are_refused_and_a_new_key_with_its_default_is_not(tmp_path):
    now = load_config(tiny_shapes.DEMO_CONFIG)
    before = now.clone()
    del before.MODEL.RIO["SAMPLER_SQRT"]
    keep_settings(tmp_path, before.dump())
    keep_settings(tmp_path, now.dump())  # True, the default
    now.MODEL.RIO.SAMPLER_SQRT = False
    with pytest.raises(StudyError, match="MODEL.RIO.SAMPLER_SQRT: True -> False"):
        keep_settings(tmp_path, now.dump())
    now.MODEL.RIO.SAMPLER_SQRT = True
    for order in ("newest", "random"):  # a key of before, and the one value of it that is left
        (tmp_path / order).mkdir()
        then = now.clone()
        then.MODEL.RIO.REPLAY_ORDER = order
        keep_settings(tmp_path / order, then.dump())
    keep_settings(tmp_path / "newest", now.dump())
    with pytest.raises(StudyError, match="MODEL.RIO.REPLAY_ORDER: 'random' -> 'newest'"):
        keep_settings(tmp_path / "random", now.dump())
    del now.MODEL.RIO["BANK_SYNC"]  # it was set then, and means nothing now
    with pytest.raises(StudyError, match="MODEL.RIO.BANK_SYNC: True -> None"):
        keep_settings(tmp_path, now.dump())


# ---------------------------------------------------------------------------------------------- tuning


def test_a_tuning_study_is_evaluated_only_on_its_own_set(study, data, other, tmp_path):
    for run in prepare(study(tune_on=other), tmp_path / "out", data):
        settings = yaml.safe_load((run.folder.path / "study_settings.yaml").read_text())
        assert settings["DATASETS"]["TEST"] == [other] and settings["SEED"] == 1
        assert run.options[-4:-1] == ["DATASETS.TEST", f"('{other}',)", "SEED"]


@pytest.mark.parametrize("split", ["train", "val", "link"])
def test_tuning_on_trained_or_reported_images_is_refused(study, tiny_set, data, tmp_path, split):
    name = f"{tiny_set}/{split}.json@{tiny_set}/{split}"
    if split == "link":  # the same images under another name
        (tmp_path / "link").symlink_to(tiny_set)
        name = f"{tmp_path}/link/val.json@{tmp_path}/link/val"
    with pytest.raises(StudyError, match=r"expected other images than those of .*, found \d+ in both"):
        prepare(study(tune_on=name), tmp_path / "out", data)


def test_an_arm_of_a_tuning_study_neither_trains_on_its_set_nor_names_a_test_set(study, tiny_set, other, tmp_path):
    plan = study(tune_on=other, arms={"a": [], "b": ["DATASETS.TRAIN", f"('{other}',)"]})
    sets = {"TRAIN": [f"{tiny_set}/train.json@{tiny_set}/train"], "TEST": [f"{tiny_set}/val.json@{tiny_set}/val"]}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"_BASE_": str(tiny_shapes.DEMO_CONFIG), "DATASETS": sets}))
    with pytest.raises(StudyError, match="found 6 in both"):
        prepare(plan, tmp_path / "out", [])
    arms = {"a": [], "b": ["DATASETS.TEST", f"('{other}',)"]}
    with pytest.raises(StudyError, match="arm 'b': DATASETS.TEST: expected no such key in a tuning study"):
        prepare(study(tune_on=other, arms=arms), tmp_path / "out", tiny_shapes.data_options(tiny_set))


def test_features_are_every_arms_or_none(study, data, tmp_path):
    runs = prepare(study(features="kept"), tmp_path / "out", data)
    assert all(run.options[-4:-2] == ["MODEL.RIO.FEATURES", str(tmp_path / "kept")] for run in runs)
    from_weights = prepare(study(features="model_final.pth"), tmp_path / "new", data)
    assert from_weights[0].options[-3] == str(tmp_path / "new" / "features")
    several = study(features=["kept", "a.pth", "b.pth"], seeds=[1, 2, 3])
    found = [run.options[-3] for run in prepare(several, tmp_path / "several", data)]
    folders = [str(tmp_path / name) for name in ("kept", "several/features", "several/features1")]
    assert found == [folder for folder in folders for _ in "ab"], "each seed has its own"
    mixed = {"arms": {"a": ["MODEL.RIO.FEATURES", "kept"], "b": []}}
    with pytest.raises(StudyError, match="arm 'a': MODEL.RIO.FEATURES: expected all arms on the same features or none"):
        prepare(study(**mixed), tmp_path / "mixed", data)
    with pytest.raises(StudyError, match="expected all arms on the same features or none"):
        prepare(study(features="kept", **mixed), tmp_path / "both", data)
