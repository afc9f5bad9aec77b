"""Figures in a page: its theme's colours, ids of their own; colours that no group has; axes that do not mislead."""

import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from rio import plots
from rio.plots import parts
from rio.plots.labels import Labels
from rio.plots.style import DRAWN

ARMS = pd.DataFrame({"arm": ["a", "b"], "AP": [20.0, 30.0], "APr": [1, 2], "APc": [20.0, 25.0], "APf": [40.0, 41.5]})


def shown(ax):
    """What a notebook shows of a figure, and the same without the colours that a theme replaces."""
    page = ax.figure._repr_html_()
    return page, re.sub(r"var\(--jp-[\w-]+, #\w+\)", "themed", page)


def test_a_figure_takes_the_inks_and_the_paper_of_its_page():
    page, fixed = shown(plots.ap_by_group(ARMS))
    assert page.startswith("<svg ") and "var(--jp-layout-color0, #FFFFFF)" in page
    assert "themed" in fixed and "color-mix(in srgb, themed 32%, themed)" in fixed, "a pale arm is mixed with the page"
    assert not {"#1f2430", "#5c6470", "#d9dde3", "#ffffff"} & set(re.findall("#[0-9a-f]{6}", fixed))
    assert plots.COLORS["r"].lower() in fixed, "groups keep their colours"
    words = shown(plots.count_by_group(pd.DataFrame({"frequency": ["f"], "instance_count": [9]})))[1]
    assert "#fefefe" in words, "the white of words in bars is not the page's"


def test_figures_of_one_page_share_no_ids():
    pages = [shown(plots.ap_by_group(ARMS))[0] for _ in range(2)]
    ids = [set(re.findall(r'\bid="([^"]+)"', page)) for page in pages]
    assert ids[0] and not ids[0] & ids[1]
    for page, own in zip(pages, ids, strict=True):
        used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
        assert used and {a or b for a, b in used} <= own


def test_a_figure_uses_the_page_but_is_not_blown_up():
    narrow, wide = (plots.sorted_tail(TAIL, plt.subplots(figsize=(w, 3))[1]) for w in (3, 9))
    widths = [float(re.search(r"min\(100%, (\d+)px\)", plots.inline_svg(ax.figure))[1]) for ax in (narrow, wide)]
    assert 300 < widths[0] < 500 < 1000 < widths[1] < 1400


TAIL = pd.DataFrame({"frequency": ["f", "r"], "name": ["a", "b"], "image_count": [200, 3]})


def lab(color, seen_by=((1, 0, 0), (0, 1, 0), (0, 0, 1))):
    """CIELAB of a colour, after the linear RGB that an eye makes of it."""
    linear = np.asarray(seen_by) @ np.power(to_rgb(color), 2.2)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear.clip(0)
    x, y, z = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(3),
        # Machado et al. 2009, severity 1: protanopia, deuteranopia, tritanopia; linear RGB.
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
        np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
    ],
    ids=["trichromat", "protanope", "deuteranope", "tritanope", "grey"],
)
def test_groups_can_be_told_apart_by_everybody(matrix):
    for one, other in itertools.combinations(plots.COLORS.values(), 2):
        assert np.linalg.norm(lab(one, matrix) - lab(other, matrix)) > 12  # about five just noticeable differences


def test_nothing_else_has_the_colours_of_the_groups():
    for others in (plots.KIND_COLORS.values(), plots.LINE_COLORS, plots.ARM_COLORS.values()):
        for other, group in itertools.product(others, plots.COLORS.values()):
            assert np.linalg.norm(lab(other) - lab(group)) > 25, (other, group)
        for one, other in itertools.combinations(others, 2):
            assert np.linalg.norm(lab(one) - lab(other)) > 20, (one, other)
    for kind, arm in itertools.product(
        plots.KIND_COLORS.values(), plots.arm_colors(["none", *plots.ARM_COLORS]).values()
    ):
        assert np.linalg.norm(lab(kind) - lab(arm)) > 20, "they stand in one figure"


def test_a_way_of_resampling_has_one_colour():
    found = plots.arm_colors(
        ["none-linear", "rfs-linear", "rfs+bank-linear", "rfs-cosine", "rfs_bank", "bank_replay20", "x"]
    )
    assert found["rfs-linear"] == plots.ARM_COLORS["RFS"] and len(set(found.values())) == len(found)
    paler = np.array(to_rgb(found["rfs-cosine"])) - to_rgb(found["rfs-linear"])
    assert (paler > 0).all() and plots.arm_colors(["RFS", "irfs"])["RFS"] == found["rfs-linear"]
    assert {found["bank_replay20"], found["x"]} <= set(plots.LINE_COLORS)


@pytest.mark.parametrize("limits", [(1, 1000), (0.5, 100), (4, 60), (1, 3), (1.1, 1.9), (1900, 2100)])
def test_a_logarithmic_axis_has_three_numbers(limits):
    ax = plt.figure(figsize=(5, 3)).add_subplot()
    ax.plot(limits, limits)
    parts.log_scale(ax.xaxis)
    ax.set_xlim(*limits)
    ax.figure.canvas.draw()
    ticks = zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
    assert sum(limits[0] <= at <= limits[1] and bool(label.get_text()) for at, label in ticks) >= 3


def test_no_axis_makes_much_of_nothing():
    nothing = TAIL.assign(difference=[0.0, 1e-5])
    assert np.ptp(plots.ap_difference(nothing).get_ylim()) == pytest.approx(2)
    same = pd.DataFrame({"repeat_threshold": [0.1, 0.2], "epoch_length": [1, 2.5], "effective_classes": [3, 3.00001]})
    same = same.assign(method="RFS", suggested=[True, False], current=False)
    assert np.ptp(plots.threshold_advice(same).get_ylim()) == pytest.approx(1)


def test_names_of_curves_stand_at_their_ends():
    ax = plt.figure(figsize=(5, 3)).add_subplot()
    ax.set(xlim=(0, 1), ylim=(0, 100))
    ends = [(90.0, "far", "k"), (40.0, "low", "k"), (40.1, "high", "k")]
    Labels(ax).on_right(ends)
    at = {text.get_text(): text.get_window_extent() for text in ax.texts}
    middle = {name: ax.transData.inverted().transform((0, (box.y0 + box.y1) / 2))[1] for name, box in at.items()}
    assert middle["far"] == pytest.approx(90, abs=2)
    assert middle["low"] < 40 < middle["high"] and middle["low"] + middle["high"] == pytest.approx(80, abs=2)
    assert at["low"].y1 <= at["high"].y0 + 1 and len(ax.lines) == 2, "two had to move: a line leads to each"


def test_shades_of_a_matrix_follow_the_theme():
    square = pd.DataFrame([[90.0, 10.0, 0.0, 0.0], [40.0, 50.0, 0.0, 10.0]], ["a", "b"], ["a", "b", "others", "missed"])
    square.attrs["frequency"] = ["f", "r"]
    fixed = shown(plots.confusions(square))[1]
    groups = {color.lower() for color in plots.COLORS.values()}
    assert "<image" not in fixed and set(re.findall("#[0-9a-f]{6}", fixed)) <= groups


def test_the_figures_of_a_notebook_are_written_for_a_paper(tmp_path):
    DRAWN.clear()
    plots.ap_by_group(ARMS.rename_axis(None))
    mask = ARMS.copy()
    mask.attrs["kind"] = "mask AP"
    plots.ap_by_group(mask)
    plots.ap_by_group(mask)  # run again
    wide = plots.sorted_tail(TAIL, by="image_count")
    plots.sorted_tail(TAIL, plt.figure().add_subplot())  # in an Axes of one's own
    before = plt.get_fignums()
    files = plots.save_all(tmp_path / "new")
    names = ["ap_by_group", "ap_by_group_mask_AP", "sorted_tail_image_count"]
    assert [file.name for file in files] == [f"{name}.{kind}" for name in names for kind in ("pdf", "svg")]
    assert sorted(tmp_path.joinpath("new").iterdir()) == sorted(files) and plt.get_fignums() == before
    assert files[0].read_bytes().startswith(b"%PDF")
    width = float(re.search(r'width="([\d.]+)pt"', files[-1].read_text())[1]) / 72
    assert 3 < width < 4.5 < wide.figure.get_figwidth()
    assert plots.save_all(tmp_path)[0].read_bytes() == files[0].read_bytes(), "and again the same"
