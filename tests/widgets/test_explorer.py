"""Data sets by name without detectron2, and the explorer of their categories."""

import base64
import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

import rio
from rio import plots
from rio.shapes import spec
from rio.widgets import explorer, theme
from tests.support import tiny_shapes
from tests.support.annotation_files import three_images, write
from tests.support.refused import refused

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def own(tmp_path):
    """The name of `three_images`; the fifth category's is hostile."""
    write(tmp_path / "own.json", three_images(fifth=EVIL))
    (tmp_path / "images").mkdir()
    for i in (1, 2, 3):
        cv2.imwrite(f"{tmp_path}/images/{i}.png", np.full((50, 100, 3), 40 * i, np.uint8))
    return f"{tmp_path}/own.json@{tmp_path}/images"


def test_opens_by_path_and_shows_itself(own):
    data = rio.open_dataset(own)
    assert data.has_images
    assert data.table["instance_count"].tolist() == [3, 2, 1, 1, 0]
    assert data.share("r") == pytest.approx(3 / 5)
    assert data.share("r", "instance_count") == pytest.approx(2 / 7)
    assert (len(data.per_image()), len(data.sizes()), len(data.company())) == (3, 7, 3)
    page = data._repr_html_()
    assert ">7<" in page and "synthetic" not in page
    data = rio.open_dataset(own.partition("@")[0])
    assert not data.has_images
    assert "no thumbnails" in data._repr_html_()
    assert rio.explore(data).thumbnails(0, 3) == []


@pytest.mark.parametrize("split", ["train", "balanced"])
def test_embedded_set_is_drawn_where_it_is_missing(split, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setitem(spec.SPECS, "demo", dataclasses.replace(tiny_shapes.SPEC, name="shapes_demo"))
    data = rio.open_dataset(f"shapes_demo_{split}")
    assert data.embedded and data.has_images
    assert Path(data.annotations.path).name == f"{split}.json"
    assert "synthetic" in data._repr_html_()


def test_lvis_by_name_as_detectron2_lays_it_out(tmp_path, monkeypatch, own):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    assert "lvis_v1_train.json" in refused(rio.open_dataset, "lvis_v1_train")
    (tmp_path / "data" / "lvis").mkdir(parents=True)
    content = json.loads((tmp_path / "own.json").read_text())
    for image in content["images"]:
        image |= {"coco_url": f"http://x/val2017/{image['id']}.png", "neg_category_ids": []}
        image |= {"not_exhaustive_category_ids": []}
    (tmp_path / "data" / "lvis" / "lvis_v0.5_val.json").write_text(json.dumps(content))
    data = rio.open_dataset("lvis_v0.5_val")
    assert data.annotations.image_path(0) == str(tmp_path / "data" / "coco" / "val2017" / "1.png")


@pytest.mark.parametrize("name", ["shapes_dmeo_train", "", "notes.txt", "nowhere.json", "nowhere.json@nowhere"])
def test_what_is_no_data_set_is_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "data set name" in (text := refused(rio.open_dataset, name)) or "found nothing there" in text


def test_a_bug_of_ours_keeps_its_traceback():
    @theme.sentences
    def broken():
        raise KeyError("ours")

    with pytest.raises(KeyError):
        broken()


def test_broken_records_are_left_out_only_on_request(own, tmp_path):
    content = json.loads((tmp_path / "own.json").read_text())
    content["annotations"][0]["bbox"] = [0, 0, -5, 10]
    (tmp_path / "own.json").write_text(json.dumps(content))
    assert "annotation 1" in refused(rio.open_dataset, own)
    data = rio.open_dataset(own + "?skip")
    assert data.annotations.num_annotations == 6
    assert "1 records left out (negative_box 1)" in data._repr_html_()


def test_explorer_begins_at_the_rarest_category_that_has_an_image(own):
    data = rio.open_dataset(own)
    assert data.annotations.category_names[rio.explore(data).selected] == "owl"
    assert rio.explore(data, category="dog").selected == 1
    assert "'wolf'" in refused(rio.explore, data, category="wolf")


def test_the_explorer_and_the_figure_mean_the_same_by_size(own):
    data = rio.open_dataset(own)
    medians = data.sizes().assign(name=[data.annotations.category_names[k] for k in data.annotations.annotation_class])
    medians = medians.groupby("name")["side"].median()
    table = rio.explore(data).categories
    shown = {name: side for name, side in zip(table["name"], table["side"], strict=True) if side is not None}
    assert len(shown) == len(medians) == 4 and shown == pytest.approx(medians.to_dict())


def test_explorer_answers_for_thumbnails_and_details(own):
    view, sent = rio.explore(rio.open_dataset(own)), []
    view.send = sent.append
    view.answer(None, {"kind": "crops", "classes": [0, 4, 99, -1]}, None)
    assert {k: len(crops) for k, crops in sent[0]["crops"].items()} == {0: 3, 4: 0}
    view.answer(None, {"kind": "detail", "index": 2}, None)
    assert sent[1]["names"] == ["dog", "mouse"] and sent[1]["shares"] == [1.0, 1.0]
    view.answer(None, {"kind": "nonsense"}, None)
    assert len(sent) == 2


def test_thumbnails_come_from_different_images_first_and_do_without_missing_files(own, tmp_path):
    view = rio.explore(rio.open_dataset(own))
    shades = [int(decoded(uri).mean()) // 10 for uri in view.thumbnails(0, 3)]
    assert shades == [8, 4, 8]  # image 2 (the largest), image 1, image 2 again
    explorer.open_image.cache_clear()
    (tmp_path / "images" / "2.png").write_bytes(b"broken")
    assert [int(decoded(uri).mean()) // 10 for uri in view.thumbnails(0, 3)] == [4]


def decoded(uri):
    kind, _, content = uri.partition(";base64,")
    assert kind == "data:image/jpeg"
    return cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize("box", [[0, 0, 10, 10], [90, 40, 10, 10], [-5, -5, 300, 300], [50, 20, 0.5, 0.5]])
def test_a_thumbnail_is_square_wherever_its_box_lies(box):
    uri = theme.thumbnail(np.zeros((50, 100, 3), np.uint8), np.array(box, float), side=32)
    assert decoded(uri).shape == (32, 32, 3)


def test_names_are_text_and_never_html():
    for page in (theme.html_table(["a"], [[EVIL]], caption=EVIL), theme.notice(EVIL), theme.tiles([(1, EVIL)], EVIL)):
        assert EVIL not in page and "&lt;img" in page


def test_figures_of_the_closer_look(own):
    data = rio.open_dataset(own)
    ax = plots.company(data.company())
    assert [bar.get_width() for bar in ax.patches[:3]] == [100.0, 100.0, 100.0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["dog", "owl", "mouse"]
    legend = plots.objects_per_image(data.per_image()).get_legend().get_texts()
    assert "2.3 an image" in legend[0].get_text()
    ax = plots.sizes_by_group(data.sizes())
    labels = [text.get_text().rpartition("\n")[0] for text in ax.get_yticklabels()]
    assert labels == ["rare\n2 objects", "frequent\n5 objects"]
