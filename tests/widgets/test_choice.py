"""A choice of run: what is offered, what follows, what is said where a run cannot be opened."""

import shutil

import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

import rio
from rio.data import names
from tests.support.refused import refused


@pytest.fixture
def view(finished_study, tmp_path):
    return rio.RunChoice(finished_study / "rio-seed1", folder=tmp_path)


def offered(dropdown):
    return [label for label, _ in dropdown.options]


def test_the_runs_beside_the_first_are_offered_and_the_inspector_follows(view, finished_study):
    arms = [f"{arm}-seed{seed}" for arm in ("none", "rfs", "rio") for seed in (1, 2)]
    assert sorted(label.rpartition("/")[2] for label in offered(view.run)) == arms
    assert view.dataset.layout.display == "none", "one data set is no choice"
    first = view.inspector
    first.kind.value, first.group.value = "correct", "f"
    first.tag(4)
    view.run.value = str(finished_study / "none-seed2")
    assert view.inspector.source.title.endswith("none-seed2") and view.children[-1] is view.inspector
    assert (view.inspector.kind.value, view.inspector.group.value) == ("correct", "f"), "filters stay"
    assert view.summary.children == (view.inspector.summary,) and "none-seed2" in view.head.value
    view.other.value = str(finished_study / "rfs-seed1")
    assert view.inspector.other.title.endswith("rfs-seed1")
    view.run.value, view.other.value = str(finished_study / "rio-seed1"), ""
    assert view.inspector is first and first.selection.tags, "what was tagged is still there"


def test_runs_of_other_data_are_another_choice(finished_study, tmp_path):
    for name in ("mine", "study/theirs"):
        copy = shutil.copytree(finished_study / "rio-seed1", tmp_path / name)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("/val.json@", "/gone.json@"))
    view = rio.RunChoice(tmp_path / "mine", folder=tmp_path)
    assert offered(view.run) == ["mine"] and offered(view.other) == ["–", "mine"]
    assert len(view.dataset.options) == 2 and view.dataset.layout.display == ""
    view.dataset.value = next(name for name in view.dataset.options if name != view.dataset.value)
    assert offered(view.run) == ["study/theirs"]
    assert "gone.json" in view.children[-1].value, "a data set that is not there is said"
    view.dataset.value = view.dataset.options[0]
    assert view.children[-1] is view.inspector and view.inspector.source.title.endswith("mine")


def test_a_real_run_goes_before_made_up_predictions(finished_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(names, "project_root", lambda: tmp_path)
    view = rio.RunChoice(folder=finished_study)
    assert view.inspector.source.title.endswith("none-seed1") and "MADE UP" not in view.head.value
    assert "found nothing at" in refused(rio.RunChoice, "no/such/run")


def test_a_results_file_can_be_looked_at_beside_runs(finished_study, tiny_set, tmp_path):
    file = finished_study / "rio-seed1" / "instances_results.json"
    view = rio.RunChoice(results=file, dataset=f"{tiny_set}/val.json@{tiny_set}/val", folder=finished_study)
    assert view.run.value == f"results {file}" and len(view.run.options) == 7
    view.other.value = str(finished_study / "rfs-seed1")
    assert view.inspector.other is not None
    view.run.value = str(finished_study / "rio-seed1")
    view.run.value = f"results {file}"
    assert view.children[-1] is view.inspector and view.inspector.source.title == f"results {file}"
    both = rio.RunChoice(finished_study / "rio-seed1", other=finished_study / "none-seed1", folder=tmp_path)
    assert both.inspector.other.title.endswith("none-seed1") and both.other.value.endswith("none-seed1")
