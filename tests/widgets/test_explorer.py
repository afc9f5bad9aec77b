"""Data sets by name without detectron2, the explorer's tables worked by
hand."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("anywidget", reason="anywidget is not installed (the extra `notebooks`)")

from rio import plots, widgets
from rio.shapes import spec
from rio.widgets import explorer
from rio.widgets import theme as _theme
from tests.support import tiny_shapes

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def own(tmp_path):
    """Three images of 100 x 50 px: cat + dog, two cats, dog + owl + mouse; owl and mouse are rare, a fifth
    has no image."""
    names = ["cat", "dog", "owl", "mouse", EVIL]
    objects = [(1, 1), (1, 2), (2, 1), (2, 1), (3, 2), (3, 3), (3, 4)]
    boxes = [
        [0, 0, 10, 10],
        [20, 0, 20, 20],
        [0, 0, 50, 40],
        [60, 0, 40, 40],
        [0, 0, 5, 5],
        [10, 10, 10, 10],
        [50, 5, 20, 40],
    ]
    content = {
        "images": [{"id": i, "width": 100, "height": 50, "file_name": f"{i}.png"} for i in (1, 2, 3)],
        "annotations": [
            {"id": k, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for k, ((image, category), box) in enumerate(zip(objects, boxes, strict=True), 1)
        ],
        "categories": [{"id": k, "name": name, "frequency": "ffrrr"[k - 1]} for k, name in enumerate(names, 1)],
    }
    (tmp_path / "own.json").write_text(json.dumps(content))
    folder = tmp_path / "images"
    folder.mkdir()
    for i in (1, 2, 3):
        image = np.full((50, 100, 3), 40 * i, np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), image)
    return f"{tmp_path}/own.json@{folder}"


def refused(call, *args, **kwargs):
    with pytest.raises(widgets.NotebookError) as caught:
        call(*args, **kwargs)
    text = " ".join(caught.value._render_traceback_())
    assert text == str(caught.value)
    return text


# ---------------------------------------------------------------------------------------------------- opening


def test_opens_by_path_and_shows_itself(own):
    data = widgets.open_dataset(own)
    assert data.has_images
    assert data.table["image_count"].tolist() == [2, 2, 1, 1, 0]
    assert data.table["instance_count"].tolist() == [3, 2, 1, 1, 0]
    assert data.share("r") == pytest.approx(3 / 5)
    assert data.share("r", "instance_count") == pytest.approx(2 / 7)
    page = data._repr_html_()
    assert ">7<" in page
    assert "synthetic" not in page


def test_opens_without_images(own):
    data = widgets.open_dataset(own.partition("@")[0])
    assert not data.has_images
    assert "no thumbnails" in data._repr_html_()
    assert widgets.explore(data).thumbnails(0, 3) == []


@pytest.mark.parametrize("split", ["train", "val", "tune", "balanced"])
def test_embedded_set_is_drawn_where_it_is_missing(split, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setitem(spec.SPECS, "demo", dataclasses.replace(tiny_shapes.SPEC, name="shapes_demo"))
    data = widgets.open_dataset(f"shapes_demo_{split}")
    assert data.embedded and data.has_images
    assert Path(data.annotations.path).name == f"{split}.json"
    assert "synthetic" in data._repr_html_()


def test_lvis_by_name_as_detectron2_lays_it_out(tmp_path, monkeypatch, own):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    assert "lvis_v1_train.json" in refused(widgets.open_dataset, "lvis_v1_train")
    (tmp_path / "data" / "lvis").mkdir(parents=True)
    (tmp_path / "data" / "lvis" / "lvis_v0.5_val.json").write_bytes((tmp_path / "own.json").read_bytes())
    data = widgets.open_dataset("lvis_v0.5_val")
    assert data.annotations.image_root == str(tmp_path / "data" / "coco") + "/"  # the files' names hold the folder


@pytest.mark.parametrize("name", ["shapes_dmeo_train", "", "notes.txt", "nowhere.json", "nowhere.json@nowhere"])
def test_what_is_no_data_set_is_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = refused(widgets.open_dataset, name)
    assert "\n" not in text
    assert text[-1] == "."


def test_a_defect_of_ours_keeps_its_traceback():
    @_theme.sentences
    def broken():
        raise KeyError("ours")

    with pytest.raises(KeyError):
        broken()


def test_broken_records_are_left_out_only_on_request(own, tmp_path):
    content = json.loads((tmp_path / "own.json").read_text())
    content["annotations"][0]["bbox"] = [0, 0, 500, 10]
    (tmp_path / "own.json").write_text(json.dumps(content))
    assert "annotation 1" in refused(widgets.open_dataset, own)
    data = widgets.open_dataset(own + "?skip")
    assert data.annotations.num_annotations == 6
    assert "1 records left out (box_outside 1)" in data._repr_html_()


# ----------------------------------------------------------------------------------------------------- tables


def test_objects_and_categories_of_every_image(own):
    table = widgets.open_dataset(own).per_image()
    assert table["objects"].tolist() == [2, 2, 3]
    assert table["categories"].tolist() == [2, 1, 3]
    assert table["rarest"].tolist() == ["f", "f", "r"]


def test_sizes_are_sides_in_percent_of_the_image(own):
    table = widgets.open_dataset(own).sizes()
    assert table["side"].tolist()[2] == pytest.approx(100 * np.sqrt(2000 / 5000))
    assert table["frequency"].tolist() == list("fffffrr")


def test_company_of_rare_objects_by_hand(own):
    """Image 3 alone holds rare objects: the dog is with them, owl and mouse are with each other."""
    table = widgets.open_dataset(own).company("r").set_index("name")
    assert table["share"].to_dict() == {"dog": 1.0, "owl": 1.0, "mouse": 1.0}
    assert table["share_of_all"].to_dict() == pytest.approx({"dog": 2 / 3, "owl": 1 / 3, "mouse": 1 / 3})


# --------------------------------------------------------------------------------------------------- explorer


def test_explorer_begins_at_the_rarest_category_that_has_an_image(own):
    data = widgets.open_dataset(own)
    assert data.annotations.category_names[widgets.explore(data).selected] == "owl"
    assert widgets.explore(data, category="dog").selected == 1
    assert "'wolf'" in refused(widgets.explore, data, category="wolf")


def test_explorer_answers_for_thumbnails_and_details(own):
    view, sent = widgets.explore(widgets.open_dataset(own)), []
    view.send = sent.append
    view._answer(None, {"kind": "crops", "classes": [0, 4, 99, -1]}, None)
    crops = sent[0]["crops"]
    assert set(crops) == {0, 4}
    assert len(crops[0]) == 3
    assert crops[4] == []
    view._answer(None, {"kind": "detail", "index": 2}, None)
    assert sent[1]["names"] == ["dog", "mouse"]
    assert sent[1]["shares"] == [1.0, 1.0]
    view._answer(None, {"kind": "nonsense"}, None)
    assert len(sent) == 2


def test_thumbnails_come_from_different_images_first_and_do_without_missing_files(own, tmp_path):
    view = widgets.explore(widgets.open_dataset(own))
    shades = [int(decoded(uri).mean()) // 10 for uri in view.thumbnails(0, 3)]
    assert shades == [8, 4, 8]  # image 2 (the largest), image 1, image 2 again
    explorer._open.cache_clear()
    (tmp_path / "images" / "2.png").write_bytes(b"broken")
    assert [int(decoded(uri).mean()) // 10 for uri in view.thumbnails(0, 3)] == [4]


def decoded(uri):
    kind, _, content = uri.partition(";base64,")
    assert kind == "data:image/jpeg"
    return cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize("box", [[0, 0, 10, 10], [90, 40, 10, 10], [-5, -5, 300, 300], [50, 20, 0.5, 0.5]])
def test_a_crop_is_square_wherever_its_box_lies(box):
    assert _theme.crop(np.zeros((50, 100, 3), np.uint8), np.array(box, float), side=32).shape == (32, 32, 3)


def test_names_are_text_and_never_html(own):
    """In HTML that Python writes they are escaped; the views' JavaScript sets them as text alone."""
    assert EVIL not in _theme.html_table(["a"], [[EVIL]], caption=EVIL)
    assert EVIL not in _theme.notice(EVIL)
    for file in _theme.FOLDER.glob("*.js"):
        assert "innerHTML" not in file.read_text("utf-8"), file.name
    for name in ("chart.js", "explorer.js", "lines.js", "copy.js"):
        text = (_theme.FOLDER / name).read_text("utf-8")
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), f"{name} must not need a network"


# ---------------------------------------------------------------------------------------------------- figures


def test_figures_of_the_closer_look(own):
    data = widgets.open_dataset(own)
    ax = plots.company(data.company())
    assert [bar.get_width() for bar in ax.patches[:3]] == [100.0, 100.0, 100.0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["dog", "owl", "mouse"]
    ax = plots.objects_per_image(data.per_image())
    assert "2.3 an image" in ax.texts[0].get_text()
    ax = plots.sizes_by_group(data.sizes())
    assert [text.get_text() for text in ax.get_yticklabels()] == ["frequent\n5 objects", "rare\n2 objects"]
    assert "No rare object" in plots.company(data.company().head(0)).texts[0].get_text()
    for figure in (plots.objects_per_image, plots.sizes_by_group):
        with pytest.raises(plots.PlotError, match="column"):
            figure(data.table)


def test_figures_show_in_a_notebook_although_their_style_ends_with_the_call():
    """The backend of a notebook turns interactive mode on when it is loaded; the style must not turn it off
    again."""
    import subprocess
    import sys

    code = (
        "import matplotlib as mpl; mpl.use('module://matplotlib_inline.backend_inline'); "
        "import pandas as pd; "
        "from rio import plots; import matplotlib.pyplot as plt; plt.ion(); "
        "t = pd.DataFrame({'frequency': ['r'], 'name': ['a'], 'image_count': [3], 'instance_count': [4]}); "
        "plots.sorted_tail(t); print(mpl.is_interactive())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("True")
