"""Finished runs: which are found, what is refused, and that every number is the evaluation's own."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from rio import plots
from rio.analysis import runs as analysis
from rio.analysis.intervals import interval_of_mean
from rio.analysis.runs import Runs, RunsError
from rio.analysis.tables import latex_table, markdown_table, with_best
from rio.data.load import load_annotations
from rio.results import breakdown as results
from rio.results.errors import find_errors


@pytest.fixture(scope="module")
def runs(finished_study):
    return Runs(finished_study)


@pytest.fixture
def copy(finished_study, tmp_path):
    return shutil.copytree(finished_study, tmp_path / "runs")


def config_of(run, split, names):
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["DATASETS"][split] = names
    file.write_text(yaml.safe_dump(config))


def test_finds_arms_and_seeds_baseline_first(runs, finished_study):
    assert runs.arms == ["none", "rfs", "rio"]
    assert [seed for _, seed in runs.folders] == ["1", "2"] * 3
    assert Runs(finished_study / "rio-seed1").arms == ["rio"]
    assert len(Runs([finished_study / "rio-seed1", finished_study / "rfs-seed2"]).folders) == 2
    named = {"mine": finished_study / "rio-seed2", "theirs": finished_study / "none-seed1"}
    assert Runs(named).arms == ["mine", "theirs"]


def test_some_arms_are_chosen_in_another_order(finished_study):
    runs = Runs(finished_study)
    every, breakdown = runs.errors(), runs.breakdown()
    runs.choose(["rio", "none"])
    assert runs.arms == ["rio", "none"] and len(runs.evaluations) == len(runs.evaluated_again) == 4
    assert runs.difference().attrs["arm"] == "no resampling"
    for table, own in ((every, runs.errors()), (breakdown, runs.breakdown())):
        expected = table[table["arm"] == runs.title("rio")].reset_index(drop=True)
        pd.testing.assert_frame_equal(own[own["arm"] == runs.title("rio")].reset_index(drop=True), expected)
    runs.choose(["none", "rfs", "rio"])
    assert list(dict.fromkeys(runs.by_group()["arm"])) == list(map(runs.title, ("none", "rfs", "rio")))
    for arms, words in ((["rios"], "'rios'"), ([], "at least one")):
        with pytest.raises(RunsError, match=words):
            runs.choose(arms)


def test_tables_give_half_the_distance_of_the_seeds(runs):
    own = [evaluation.metrics["bbox"]["AP"] for evaluation in runs.of_arm("rio")]
    table = runs.by_group().set_index("arm").loc[runs.title("rio")]
    assert table["AP_spread"] == pytest.approx(abs(own[0] - own[1]) / 2)
    assert f"{table['AP']:.1f} ± {table['AP_spread']:.1f}" in runs.markdown()


def test_a_cell_of_the_matrix_has_as_many_objects_as_it_counts(runs):
    key, truth = ("rio", "1"), runs.truth
    everything = list(range(truth.num_classes))
    for threshold in (0.05, 0.5):
        matrix = results.confusions(truth, runs.results(key), score_threshold=threshold)[:-1]
        taken = results.taken_for(truth, runs.results(key), everything, score_threshold=threshold)
        counted = np.zeros_like(matrix)
        np.add.at(counted, (truth.annotation_class[taken.index], taken), 1)
        np.testing.assert_array_equal(counted, matrix)
        one = results.taken_for(truth, runs.results(key), [1], score_threshold=threshold)
        assert one.equals(taken[truth.annotation_class[taken.index] == 1])


def test_categories_never_seen_in_training_are_told_apart(copy, tiny_set, tmp_path):
    train = json.loads((tiny_set / "train.json").read_text())
    rare = next(c["id"] for c in train["categories"] if c["frequency"] == "r")
    train["annotations"] = [a for a in train["annotations"] if a["category_id"] != rare]
    (tmp_path / "train.json").write_text(json.dumps(train))
    assert not Runs(copy).remarks()
    runs = Runs(copy, training_set=str(tmp_path / "train.json"))
    (remark,) = runs.remarks()
    table = runs.per_category().query("arm == @runs.title('rio')").set_index("category_id")
    others = table[table["frequency"] == "r"].drop(rare)["AP"].mean()
    assert remark.startswith("1 category was never seen in training (")
    assert f"{table.at[rare, 'AP']:.1f}, {others:.1f}." in remark


def test_no_finished_run_and_two_of_one_name(tmp_path, copy, finished_study):
    for where in (tmp_path / "nowhere", [], tmp_path):
        with pytest.raises(RunsError, match="make demo"):
            Runs(where)
    with pytest.raises(RunsError, match="two runs are called 'rio-seed1'"):
        Runs([finished_study / "rio-seed1", copy / "rio-seed1"])
    (copy / "rio-seed1" / "evaluation.json").unlink()
    with pytest.raises(RunsError, match=r"Started but not finished: .*rio-seed1"):
        Runs(copy / "rio-seed1")


def test_runs_on_different_data(copy):
    config_of(copy / "rio-seed1", "TEST", ["elsewhere.json@images"])
    with pytest.raises(RunsError, match="different data sets"):
        Runs(copy)
    shutil.rmtree(copy / "rio-seed1")
    file = copy / "rio-seed2" / "evaluation.json"
    content = json.loads(file.read_text())
    content["per_category"] = {name: values[:-1] for name, values in content["per_category"].items()}
    file.write_text(json.dumps(content))
    with pytest.raises(RunsError, match="different categories"):
        Runs(copy)


@pytest.mark.parametrize(
    ("file", "contents"),
    [
        ("evaluation.json", ["", "{", "[]", "{}"]),
        ("config.yaml", ["{", "- 1", "DATASETS: 3", "DATASETS: {TEST: []}", "a: !!python/object:os.system x"]),
    ],
)
def test_broken_files(finished_study, tmp_path, file, contents):
    shutil.copytree(finished_study / "rio-seed1", tmp_path / "rio-seed1")
    for content in contents:
        (tmp_path / "rio-seed1" / file).write_text(content)
        with pytest.raises(ValueError, match=file):
            Runs(tmp_path)


def test_a_config_may_be_missing_if_the_data_is_named(copy, runs):
    run = copy / "rio-seed1"
    (run / "config.yaml").unlink()
    with pytest.raises(RunsError, match="ground_truth"):
        Runs(run)
    opened = Runs(run, ground_truth=runs.ground_truth)
    assert opened.per_category()["image_count"].tolist() == runs.truth.image_count.tolist()


def test_counts_are_those_of_the_training_set_of_most_runs(copy, runs, tiny_set):
    train = load_annotations(tiny_set / "train.json")
    assert runs.per_category().head(6)["image_count"].tolist() == train.image_count.tolist()
    config_of(copy / "rio-seed1", "TRAIN", ["balanced.json@images"])  # does not exist; nobody looks for it
    assert Runs(copy).per_category().equals(runs.per_category())


def test_means_over_seeds_are_the_evaluations(runs):
    own = [e.metrics["segm"]["APc"] for e in runs.of_arm("rio")]
    row = runs.by_group("segm").set_index("arm").loc["RIO (RFS + bank), 2 seeds"]
    assert row["APc"] == pytest.approx(np.mean(own))
    assert (row["APc_low"], row["APc_high"]) == pytest.approx((min(own), max(own)))
    with pytest.raises(RunsError, match="'segment'"):
        runs.by_group("segment")


def test_interval_of_three_seeds_is_students():
    half = 4.303 / np.sqrt(3)  # Student's with 2 degrees of freedom, which student_t gives within 1 %
    assert interval_of_mean(np.array([1.0, 2.0, 3.0])) == pytest.approx((2 - half, 2 + half), abs=0.01 * half)
    assert np.isnan(interval_of_mean(np.array([1.0, np.nan]))).all()


def test_differences_by_hand(runs):
    table = runs.difference("rio", "none")
    mean = {arm: np.mean([e.per_category["AP_bbox"] for e in runs.of_arm(arm)], axis=0) for arm in ("rio", "none")}
    np.testing.assert_allclose(table["difference"], mean["rio"] - mean["none"])
    assert table.attrs == {"arm": "RIO (RFS + bank)", "baseline": "no resampling", "kind": "box AP"}
    assert runs.difference().attrs["baseline"] == "RFS"
    with pytest.raises(RunsError, match="'rios'"):
        runs.difference("rios")
    one = Runs(runs.folders["rio", "1"].path)
    assert one.difference()["difference"].isna().all()
    ax = plots.ap_difference(one.difference())
    assert [text.get_text() for text in ax.texts] == [one.difference().attrs["note"]]
    assert "needs two arms; there is one: rio" in ax.texts[0].get_text()
    with pytest.raises(RunsError, match="'rfs'"):
        one.difference("rio", "rfs")


def test_computed_again_it_is_the_same(runs):
    again = runs.recomputed()
    assert len(again) == 12
    np.testing.assert_allclose(again["stored"], again["recomputed"])


def test_groups_are_those_that_the_runs_were_evaluated_by(copy):
    for run in copy.glob("*-seed*"):
        stored = json.loads((run / "evaluation.json").read_text())
        stored["per_category"]["frequency"] = ["f"] * len(stored["per_category"]["frequency"])
        (run / "evaluation.json").write_text(json.dumps(stored))
    runs = Runs(copy)
    assert set(runs.truth.frequency) == {"f"}
    assert set(runs.errors(score_threshold=0.0)["frequency"]) == {"f"}


def test_every_object_has_one_outcome(runs):
    table = runs.errors(score_threshold=0.0)
    objects = table[table["part"] == "objects"]
    assert set(objects["kind"]) == {"correct", "classification", "localisation", "missed"}
    np.testing.assert_allclose(objects.groupby(["arm", "frequency"])["per_100"].sum(), 100)
    found = objects[objects["kind"] == "correct"].groupby("arm")["count"].sum()
    assert found["no resampling, 2 seeds"] < found["RIO (RFS + bank), 2 seeds"]
    nothing = runs.errors(score_threshold=1.0)
    assert (nothing.loc[nothing["kind"] == "missed", "per_100"] == 100).all()
    assert (nothing.loc[nothing["part"] == "predictions", "count"] == 0).all()


def test_kinds_of_errors_are_those_of_find_errors(runs):
    folder = runs.folders["rio", "1"]
    rows = find_errors(runs.truth, folder.predictions_file, score_threshold=0.2)
    own = Runs(folder.path).errors(score_threshold=0.2)
    wrong = own[own["part"] == "predictions"].groupby("kind")["count"].sum()
    for kind in ("classification", "localisation", "both", "duplicate", "background"):
        assert wrong[kind] == (rows["kind"] == kind).sum()
    correct = own[(own["part"] == "objects") & (own["kind"] == "correct")]["count"].sum()
    assert correct == (rows["kind"] == "correct").sum()


def test_a_runs_errors_are_found_once_for_all_thresholds(finished_study, monkeypatch):
    calls = []
    monkeypatch.setattr(
        analysis, "find_errors", lambda *words, **more: calls.append(words) or find_errors(*words, **more)
    )
    runs = Runs(finished_study)
    tables = [runs.errors(), runs.errors(score_threshold=0.3), runs.confusions("rio", score_threshold=0.3)]
    assert len(calls) == len(runs.folders) and all(map(len, tables))
    runs.errors(score_threshold=0.001)  # below what is kept
    assert len(calls) == 2 * len(runs.folders)


def test_results_of_another_data_set_or_missing(copy):
    file = copy / "rio-seed1" / "instances_results.json"
    records = json.loads(file.read_text())
    records[3]["category_id"] = 999
    file.write_text(json.dumps(records))
    opened = Runs(copy / "rio-seed1")
    for call in (opened.errors, opened.recomputed):
        with pytest.raises(ValueError, match="category_id"):
            call()
    file.unlink()
    with pytest.raises(OSError, match=r"instances_results\.json"):
        opened.errors()


def test_reported_numbers_stand_beside_lvis_only(runs, finished_study):
    assert runs.reported("segm").empty and not runs.by_group()["reported"].any()
    lvis = Runs(finished_study, ground_truth="lvis_v1_val")
    table = lvis.by_group("segm")
    assert table["reported"].tolist() == [True] * 6 + [False] * 3
    assert table["arm"].str.endswith("(reported)").tolist() == table["reported"].tolist()
    row = table.set_index("arm").loc["RFS R50 1x (reported)"]
    assert row[["AP", "APr", "APc", "APf"]].tolist() == [22.2, 11.5, 21.2, 28.0]
    assert "(reported)" in lvis.markdown("segm")
    assert "RIO" not in " ".join(table["arm"][table["reported"]]), "RIO has published no number on v1"


def test_tables_for_a_paper(runs):
    lines = runs.markdown().splitlines()
    assert lines[0].split() == ["|", "box", "AP", "|", "AP", "|", "APr", "|", "APc", "|", "APf", "|"]
    assert len({line.count("|") for line in lines}) == 1
    assert " $\\pm$ " in runs.latex("segm")
    rows = [["a_b & 50% #1", "**-1.0** [-2.0, +0.5]", "–", "1.0 ± 0.2", "+2.0"], ["a − b | c", "1", "2", "3", "4"]]
    assert runs.markdown().count("**") >= 2 and r"\textbf{" in runs.latex(), "the best of every column is bold"
    values = pd.DataFrame({"AP": [1.04, 1.0, 0.5], "APr": [2.0, 2.0, 2.0], "APc": [np.nan, 3.0, 1.0], "APf": np.nan})
    cells = [[f"arm {i}", *map(str, row)] for i, row in enumerate(values.to_numpy())]
    bold = [[cell.startswith("**") for cell in row[1:]] for row in with_best(cells, values)]
    assert bold == [[True, False, False, False], [True, False, True, False], [False] * 4]
    latex = latex_table("box AP", rows)
    words = (r"\toprule", "AP$_r$", r"a\_b \& 50\% \#1", r"$\mathbf{-1.0}$ [$-2.0$, $+0.5$]", "--", r"1.0 $\pm$ 0.2")
    assert all(word in latex for word in (*words, "a $-$ b")), latex
    assert latex.count(r"\\") == 3
    assert "a − b \\| c" in markdown_table("box AP", rows)


def test_breakdown_and_confusions_are_means_over_seeds(runs):
    table = runs.breakdown().set_index(["arm", "group"])
    single = [results.breakdown(runs.truth, runs.results(("rio", seed))).set_index("group") for seed in "12"]
    own = table.loc[runs.title("rio")]
    assert own["AR"].tolist() == pytest.approx(((single[0] + single[1]) / 2)["AR"].tolist())
    taken_for = runs.confusions(score_threshold=0.2)
    assert taken_for.attrs["arm"] == runs.title("rio") and taken_for.sum(axis=1).tolist() == pytest.approx(
        [100] * len(taken_for)
    )
    counts = dict(zip(runs.truth.category_names, runs.image_count.tolist(), strict=True))
    assert [counts[name] for name in taken_for.index] == sorted((counts[n] for n in taken_for.index), reverse=True)
    assert np.diag(runs.confusions("none").to_numpy()).mean() < np.diag(taken_for.to_numpy()).mean()
    with pytest.raises(RunsError, match="arm: expected one of none, rfs, rio, found 'eql'"):
        runs.confusions("eql")
