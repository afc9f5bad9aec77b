"""Labels cover neither points, lines, bars nor each other."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.patches import Rectangle

from rio import plots
from rio.plots.labels import Labels


def crossed(box, start, end):
    """Whether a straight line touches a box."""
    at = np.linspace(start, end, 400)
    return bool(((at > box.min + 0.5) & (at < box.max - 0.5)).all(axis=1).any())  # a leader ends at its label


def assert_free(ax, labels):
    """The labels are in the Axes, and off each other and all that is drawn."""
    boxes = [label.get_window_extent() for label in labels]
    frame = ax.get_window_extent()
    for box, label in zip(boxes, labels, strict=True):
        word = label.get_text()
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, word
        for collection in ax.collections:
            if isinstance(collection, PathCollection) and len(collection.get_offsets()):
                points = ax.transData.transform(collection.get_offsets())
                radius = np.sqrt(collection.get_sizes()[0]) / 2 * ax.figure.dpi / 72
                nearest = np.clip(points, box.min, box.max)
                assert (np.hypot(*(points - nearest).T) >= radius).all(), f"{word} covers a point"
        for line in ax.lines:
            vertices = line.get_transform().transform(line.get_path().vertices)
            assert not any(crossed(box, a, b) for a, b in itertools.pairwise(vertices)), f"{word} lies on a line"
        for arrow in (text for text in ax.texts if getattr(text, "arrow_patch", None)):
            assert not crossed(box, *ax.transData.transform([arrow.xyann, arrow.xy])), f"{word} lies on an arrow"
        bars = [patch.get_window_extent() for patch in ax.patches if isinstance(patch, Rectangle)]
        assert not any(box.overlaps(bar) for bar in bars), f"{word} lies on a bar"
        if legend := ax.get_legend():
            assert not box.overlaps(legend.get_window_extent()), f"{word} lies on the legend"
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def advice(shift):
    length, tables = np.geomspace(1, 9, 12), []
    for method, stretch in (("RFS", 1.0), ("IRFS", 1.08)):
        columns = {"method": method, "repeat_threshold": length / 100, "epoch_length": length * stretch}
        table = pd.DataFrame(columns | {"effective_classes": 18 - 2 / (length * stretch) ** 3})
        tables.append(table.assign(suggested=table.index == 3, current=table.index == 3 + shift))
    return pd.concat(tables)


def compared(rfs):
    arms = {"none": (65, 46), "bank": (65, 67), "RFS": rfs, "RFS + bank": (67, 70), "IRFS": (66.9, 47)}
    arms["class-aware"] = (67.1, 48.5)
    rows = [(arm, level, of[i]) for arm, of in arms.items() for i, level in enumerate(("images", "rois"))]
    return pd.DataFrame(rows, columns=["arm", "level", "effective_classes"]).assign(categories=100)


def crowd(seed, number=60):
    rng = np.random.default_rng(seed)
    images = np.maximum(rng.lognormal(2.5, 1.2, number).astype(int), 1)
    frequency = np.where(images <= 10, "r", np.where(images <= 100, "c", "f"))
    objects = (images * (1 + rng.exponential(2, number))).astype(int)
    columns = {"name": [f"category {i}" for i in range(number)], "frequency": frequency}
    return pd.DataFrame(columns | {"image_count": images, "instance_count": objects})


@pytest.mark.parametrize(
    ("name", "table", "number"),
    [
        *[("threshold_advice", advice(shift), 4) for shift in (0, 1, 4)],
        *[("image_or_object", compared(rfs), 6) for rfs in ((67, 47.2), (67.1, 48.4), (70, 52))],
        *[("image_vs_instance_count", crowd(seed), None) for seed in range(4)],
        *[("sorted_tail", crowd(0, number), None) for number in (12, 60)],
    ],
)
def test_figures(name, table, number):
    given = plt.figure(figsize=(5, 3)).add_subplot() if number is None else None
    ax = getattr(plots, name)(table, given)
    ax.figure.draw_without_rendering()
    labels = [text for text in ax.texts if text.get_text()]
    assert number is None or len(labels) == number
    assert_free(ax, labels)
    plt.close(ax.figure)


def test_names_on_an_edge_are_pushed_aside():
    tail = pd.DataFrame({"frequency": ["f", "c", "c", *"r" * 97], "image_count": range(200, 100, -1)})
    ax = plots.ap_difference(tail.assign(name="a", difference=1.0))
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 3 and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    losses = {f"loss_{word}": [2.0, 0.5] for word in ("cls", "box_reg", "mask", "rpn_cls")}
    ax = plots.loss_curves(pd.DataFrame({"iteration": [0, 9], "total_loss": [8.0, 2.0]} | losses))
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 5 and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x0 >= ax.get_window_extent().x1 for box in boxes)


def test_a_name_is_left_out_where_nothing_is_free_unless_it_must_be_there():
    for must in (True, False):
        ax = plt.figure(figsize=(2, 2)).add_subplot()
        ax.scatter(*np.meshgrid(np.linspace(0, 1, 12), np.linspace(0, 1, 12)), s=60)
        Labels(ax).beside((0.5, 0.5), "here", must=must)
        assert [text.get_text() for text in ax.texts] == ["here"] * must


def test_a_distant_name_is_led_to():
    ax = plt.figure(figsize=(4, 4)).add_subplot()
    ax.scatter(*np.meshgrid(np.linspace(0.42, 0.58, 7), np.linspace(0.42, 0.58, 7)), s=40)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    Labels(ax).beside((0.42, 0.5), "left")
    assert not ax.lines  # the place beside it is free
    Labels(ax).beside((0.5, 0.5), "the one in the middle")
    assert len(ax.lines) == 1
    assert_free(ax, ax.texts[:1])
