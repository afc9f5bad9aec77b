"""Figures: what is drawn where, by matplotlib's own objects; colours everybody can tell apart."""

import io
import itertools
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.patches import PathPatch, Rectangle

from rio import plots
from rio.plots import COLORS, PlotError, quality
from rio.results import breakdown

CATEGORIES = pd.DataFrame(
    [("dog", "c", 50, 60), ("emu", "r", 2, 24), ("fox", "f", 300, 900), ("gnu", "r", 0, 0)],
    columns=["name", "frequency", "image_count", "instance_count"],
)
ARMS = pd.DataFrame(
    {"arm": ["none", "rio"], "AP": [20.0, 30.0], "APr": [np.nan, 12.0], "APc": [20.0, 25.0], "APf": [40.0, 41.5]}
)
RARE = {"images": (0.05, 0.1), "instances": (0.02, 0.06), "rois": (0.02, 0.4)}
BALANCE = pd.DataFrame(
    [(arm, level, rare[i]) for i, arm in enumerate(("none", "rio")) for level, rare in RARE.items()],
    columns=["arm", "level", "r"],
)
BALANCE = BALANCE.assign(c=0.3, f=0.7 - BALANCE["r"], effective_classes=10 + 40 * BALANCE["r"])
LOSSES = [{"iteration": i, "total_loss": 3 - 0.02 * i, "loss_cls": 2 - 0.02 * i, "lr": 0.1} for i in range(0, 60, 2)]
LOSSES.append({"iteration": 59, "bbox/AP": 12.0})
RUNS = pd.DataFrame(
    [("rfs_cosine", 1, 40.0, 10.0), ("rfs_cosine", 2, 44.0, 20.0), ("a_long_name_of_an_arm", 1, 45.0, np.nan)],
    columns=["arm", "seed", "AP", "APr"],
).assign(APc=40.0, APf=60.0)
CURVES = pd.DataFrame(
    [
        (f"{arm}-{head}", seed, epoch, 10.0 + start + epoch + seed)
        for arm, start in (("none", 0), ("rfs", 20))
        for head in ("linear", "cosine")
        for seed in (1, 3)
        for epoch in (2, 4, 6)
    ],
    columns=["arm", "seed", "epoch", "AP"],
)
DIFFERENCES = pd.DataFrame(
    [("AP", 2.0, 1.0, 3.0, True), ("APr", 5.0, -1.0, 11.0, False), ("APf", -1.0, np.nan, np.nan, False)],
    columns=["metric", "difference", "low", "high", "resolved"],
).assign(arm="rio", baseline="rfs")
MATRIX = pd.DataFrame([[80.0, 0.0, 20.0], [60.0, 25.0, 15.0]], ["fox", "emu"], ["fox", "emu", "missed"])
MATRIX.insert(2, "others", 0.0)
MATRIX.attrs = {"arm": "rio", "frequency": ["f", "r"]}
TABLES = {
    "count_by_group": CATEGORIES,
    "sorted_tail": CATEGORIES,
    "image_vs_instance_count": CATEGORIES,
    "objects_per_image": pd.DataFrame({"objects": [0, 2, 70], "categories": [0, 1, 3]}),
    "sizes_by_group": pd.DataFrame({"frequency": ["r", "f", "f", "f"], "side": [3.0, 4.0, 9.0, 8.5]}),
    "company": CATEGORIES.assign(share=0.5, share_of_all=0.25),
    "balance_by_group": BALANCE,
    "image_or_object": BALANCE.assign(categories=4),
    "threshold_advice": pd.DataFrame({"repeat_threshold": [0.1, 0.2], "epoch_length": [1, 2.5]}).assign(
        method="RFS", effective_classes=[3, 4], suggested=[True, False], current=[False, True]
    ),
    "expected_vs_counted": CATEGORIES.assign(level="images", expected=[50, 2, 300, 0], counted=[51, 2, 290, 0]),
    "ap_by_group": ARMS,
    "ap_by_image_count": CATEGORIES.assign(category_id=range(4), arm="rio", AP=[10.0, 5.0, 50.0, np.nan]),
    "ap_difference": CATEGORIES.assign(difference=[1.0, -2.0, 3.0, np.nan]),
    "errors_by_group": pd.DataFrame(
        [("objects", "correct", 60.0), ("objects", "missed", 40.0), ("predictions", "background", 25.0)],
        columns=["part", "kind", "per_100"],
    ).assign(arm="rio", frequency="r", objects=5),
    "error_costs": pd.DataFrame([("r", 12.0), ("all", 3.0)], columns=["group", "classification"]).assign(
        arm="rio", AP50=50.0, localisation=1.0, both=0.0, duplicate=0.0, background=0.5, missed=2.0
    ),
    "confusions": MATRIX,
    "gradient_balance": pd.DataFrame(
        {"loss": ["softmax", "softmax", "eql"], "arm": "none", "frequency": list("rfr")}
    ).assign(positive=[1.0, 8.0, 3.0], negative=[10.0, 8.0, 3.0], ratio=[0.1, 1.0, np.nan]),
    "arm_ap": RUNS,
    "paired_differences": DIFFERENCES,
    "study_curves": CURVES,
    "loss_curves": pd.DataFrame(LOSSES),
}


def bars(ax):
    """(x, height, colour) of all vertical bars, left to right."""
    found = [p for c in ax.containers if isinstance(c, BarContainer) for p in c.patches]
    return sorted((round(p.get_x() + p.get_width() / 2, 3), p.get_height(), to_hex(p.get_facecolor())) for p in found)


def texts(ax):
    return [t.get_text() for t in ax.texts]


# ------------------------------------------------------------------------------------------ the look


def test_style_is_local_and_follows_the_page():
    before = dict(mpl.rcParams)
    with plots.style(dark=True):
        assert mpl.rcParams["text.color"] != before["text.color"]
        dark = plots.sorted_tail(CATEGORIES)
    light = plots.sorted_tail(CATEGORIES)
    assert dict(mpl.rcParams) == before
    assert plots.luminance(dark.texts[0].get_color()) > 0.6 > 0.1 > plots.luminance(light.texts[0].get_color())
    with pytest.raises(RuntimeError), plots.style():
        raise RuntimeError
    assert dict(mpl.rcParams) == before


def test_figures_show_in_a_notebook_although_their_style_ends_with_the_call():
    """A notebook's backend turns interactive mode on when it is loaded; the style must not turn it off again."""
    code = (
        "import matplotlib as mpl; mpl.use('module://matplotlib_inline.backend_inline'); import pandas as pd; "
        "from rio import plots; import matplotlib.pyplot as plt; plt.ion(); "
        "plots.count_by_group(pd.DataFrame({'frequency': ['r'], 'instance_count': [4]})); print(mpl.is_interactive())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("True")


@pytest.mark.parametrize("name", TABLES)
def test_names_are_no_formulas(name):
    """A category or an arm may be called Ba$$in, or $5; in Axes made before, too."""
    table, odd = TABLES[name].copy(), {"dog": "Ba$$in", "emu": "$5 and $10", "rio": "$rio$", "fox": "fox^$"}
    named = [column for column in ("name", "arm", "baseline") if column in table]
    table[named] = table[named].replace(odd)
    table = table.rename(index=odd, columns=odd)
    table.attrs = TABLES[name].attrs
    if "rfs_cosine" in set(table.get("arm", ())):
        table["arm"] = table["arm"].str.replace("rfs", "$rfs$ $$")
    drawn = getattr(plots, name)(table, ax=plt.subplots()[1])
    drawn.figure.savefig(io.BytesIO(), dpi=20)  # a formula that is none is an error here
    assert not any(text.get_parse_math() for text in drawn.findobj(mpl.text.Text))


@pytest.mark.parametrize("name", TABLES)
def test_figures_draw_into_the_axes_given_and_export_the_same_vectors_twice(name):
    table, copy, svgs = TABLES[name], TABLES[name].copy(), []
    for _ in range(2):
        figure, ax = plt.subplots()
        assert getattr(plots, name)(table, ax) is ax
        pd.testing.assert_frame_equal(table, copy)  # plots do not write into their tables
        buffer = io.BytesIO()
        with plots.style():
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        svgs.append(buffer.getvalue())
        plt.close(figure)
    assert not plt.get_fignums()
    assert svgs[0].startswith(b"<?xml") and b"<path" in svgs[0] and svgs[0] == svgs[1]


# ------------------------------------------------------------------------------------------ data set


def test_count_by_group_shows_shares():
    ax = plots.count_by_group(CATEGORIES)
    widths = {}
    for patch in (p for c in ax.containers for p in c.patches):
        widths[round(patch.get_y() + patch.get_height() / 2), to_hex(patch.get_facecolor()).upper()] = patch.get_width()
    assert widths[0, COLORS["r"]] == 0.5 and widths[0, COLORS["f"]] == 0.25
    assert widths[1, COLORS["f"]] == pytest.approx(900 / 984)
    assert "rare 24 (2.4%), common 60 (6.1%)" in texts(ax)  # too thin to hold their numbers


def test_sorted_tail_sorts_and_colours():
    ax = plots.sorted_tail(CATEGORIES)
    assert ax.get_yscale() == "log"
    tops = [(p.get_y() + p.get_height(), to_hex(p.get_facecolor()).upper()) for p in ax.containers[0].patches]
    assert [color for _, color in tops] == [COLORS[g] for g in "fcrr"]
    assert [top for top, _ in tops][:3] == pytest.approx([300, 50, 2])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["fox", "dog", "emu", "gnu"]
    assert {"2 rare", "1 common", "1 frequent"} == set(texts(ax))
    many = pd.concat([CATEGORIES] * 300, ignore_index=True)
    assert plots.sorted_tail(many, by="instance_count").get_xlabel() == "1,200 categories, from most to least frequent"


def test_image_vs_instance_count_leaves_out_the_unseen_and_names_the_dense():
    ax = plots.image_vs_instance_count(CATEGORIES)
    drawn = np.concatenate([c.get_offsets() for c in ax.collections])
    assert sorted(map(tuple, drawn.tolist())) == [(2, 24), (50, 60), (300, 900)]
    assert texts(ax) == ["emu (12 an image)", "fox (3 an image)"]


# ------------------------------------------------------------------------------------------ balance, results


def test_balance_by_group_stacks_to_one():
    ax = plots.balance_by_group(BALANCE)
    ends = {}
    for patch in (p for c in ax.containers for p in c.patches):
        row = round(patch.get_y(), 3)
        ends[row] = max(ends.get(row, 0), patch.get_x() + patch.get_width())
    assert len(ends) == 6 and list(ends.values()) == pytest.approx([1.0] * 6)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["none", "rio"] * 3
    assert {"images", "objects", "RoIs", "40%", "26.0"} <= set(texts(ax))


def test_ap_by_group_has_a_bar_an_arm_and_says_what_is_absent():
    ax = plots.ap_by_group(ARMS)
    assert [height for _, height, _ in bars(ax)] == [20.0, 30.0, 12.0, 20.0, 25.0, 40.0, 41.5]
    assert {"20.0", "41.5", "n/a"} <= set(texts(ax))
    full = [color.upper() for x, _, color in bars(ax) if x % 1 < 0.5]  # the last arm has the group's own colour
    assert full[1:] == [COLORS[g] for g in "rcf"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["none", "rio"]


def test_ap_by_group_draws_intervals_over_seeds():
    table = ARMS.assign(APr=[5.0, 12.0])
    for metric in ("AP", "APr", "APc", "APf"):
        table[f"{metric}_low"], table[f"{metric}_high"] = table[metric] - 1, table[metric] + 2
    ax = plots.ap_by_group(table)
    segments = [line.get_segments()[0] for c in ax.containers if not isinstance(c, BarContainer) for line in c[2]]
    assert len(segments) == 8 and all(s[1, 1] - s[0, 1] == pytest.approx(3) for s in segments)


def test_loss_curves_skip_rows_of_the_evaluation_and_use_the_later_of_a_resume():
    rows = [*LOSSES, {"iteration": 0, "total_loss": 9.0, "loss_cls": 8.0}]
    ax = plots.loss_curves(rows)
    total = ax.lines[0]
    assert total.get_xdata()[0] == 0 and total.get_ydata()[0] == 9.0 and len(total.get_xdata()) == 30
    assert set(texts(ax)) == {"total", "cls"}
    resumed = plots.loss_curves([*LOSSES, {"iteration": 30, "resumed": 1.0}])
    assert [list(line.get_xdata()) for line in resumed.lines if line.get_linestyle() == "--"] == [[30, 30]]
    assert "resumed" in texts(resumed) and "resumed" not in texts(ax)
    one = plots.loss_curves(LOSSES[:1])
    assert one.get_xlim() == (0, 1)


@pytest.mark.parametrize("seam", [120, 123])
def test_a_falling_loss_makes_no_step_down_where_the_run_was_resumed(seam):
    loss = 3 * np.exp(-np.arange(300) / 100)

    def logged(begin):  # as detectron2 does: every 5 steps the median of the last 20, after a resume of those since
        every = range(4, 300, 5)
        return pd.Series([np.median(loss[max(k - 19, begin * (k >= begin)) : k + 1]) for k in every], every)

    whole, resumed = logged(0), logged(seam)
    before, after = (np.abs(values - whole).max() for values in (resumed, plots.over_seams(resumed, [seam])))
    assert after < before / 1.9
    table = pd.DataFrame({"iteration": resumed.index, "total_loss": resumed.to_numpy()})
    table = pd.concat([table, pd.DataFrame([{"iteration": seam, "resumed": 1.0}])]).sort_values("iteration")
    values, smooth = plots.loss_curves(table).lines[:2]
    assert list(values.get_ydata()) == pytest.approx(resumed.tolist())  # as logged
    steps = [np.diff(np.interp(range(100, 160), *line.get_data())) for line in (values, smooth)]
    assert steps[1].min() > steps[0].min() / 1.5  # no step down
    assert plots.over_seams(resumed, [0]).equals(resumed), "a run whose first rows are gone"


# ------------------------------------------------------------------------------------------ objects


def canvas(pixels=200):
    figure = plt.figure(figsize=(4, 4), dpi=100)
    return figure.add_axes((0, 0, 1, 1)), np.full((pixels, pixels, 3), 90, np.uint8)


def test_object_shapes_are_those_of_draw_objects_in_px_of_the_image():
    boxes = [[10, 10, 40, 40], [5, 5, 150, 120], [60, 60, 50, 50]]
    masks = [None, [[5, 5, 155, 5, 155, 125]], np.pad(np.ones((50, 50), bool), ((60, 40), (60, 90)))]
    shapes = plots.object_shapes((150, 200), boxes, masks, ["emu", "fox", "dog"], list("rfc"), [0.914, 0.5, 0.25])
    assert [shape["index"] for shape in shapes] == [1, 2, 0]  # the rare one last, so on top
    assert [shape["text"] for shape in shapes] == ["fox 50%", "dog 25%", "emu 91%"]
    assert shapes[0]["path"] == "M5 5 155 5 155 125Z" and shapes[2]["path"] == ""
    assert np.ptp(np.reshape(shapes[1]["path"][1:-1].split(), (-1, 2)).astype(float), axis=0) == pytest.approx(
        50, abs=1
    )
    x, y, width, height = np.transpose([shape["place"] for shape in shapes])
    assert (x >= 0).all() and (y >= 0).all() and (x + width <= 200).all() and (y + height <= 150).all()
    assert plots.object_shapes((150, 200), [], None, [], []) == []


def test_draw_objects_puts_rare_ones_on_top_and_bolder():
    ax, image = canvas()
    boxes = [[10, 10, 40, 40], [5, 5, 150, 150], [60, 60, 50, 50]]
    plots.draw_objects(ax, image, boxes, None, ["emu", "fox", "dog"], ["r", "f", "c"], [0.914, 0.5, 0.25])
    drawn = [p for p in ax.patches if isinstance(p, Rectangle)]
    by_depth = sorted(drawn, key=lambda p: p.get_zorder())
    assert [to_hex(p.get_edgecolor()).upper() for p in by_depth] == [COLORS[g] for g in "fcr"]
    assert by_depth[2].get_linewidth() > by_depth[0].get_linewidth()
    # Pixel k covers k - 0.5 .. k + 0.5 of the axes: a box from 10 begins at 9.5.
    assert by_depth[2].get_bbox().bounds == (9.5, 9.5, 40, 40)
    assert set(texts(ax)) == {"emu 91%", "fox 50%", "dog 25%"}
    assert ax.get_xlim() == (-0.5, 199.5) and ax.get_ylim() == (199.5, -0.5)


def test_masks_may_be_bitmaps_polygons_or_rle():
    mask_module = pytest.importorskip("pycocotools.mask")
    ax, image = canvas(20)
    bitmap = np.zeros((20, 20), bool)
    bitmap[2:6, 3:9] = True
    rle = mask_module.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    masks = [bitmap, rle, {"size": [20, 20], "counts": [42, 4, 354]}, [[1, 1, 5, 1, 5, 5]], None, np.zeros_like(bitmap)]
    plots.draw_objects(ax, image, [[3, 2, 6, 4]] * 6, masks)
    drawn = [p.get_path().get_extents().extents.tolist() for p in ax.patches if isinstance(p, PathPatch)]
    expected = np.array([[3, 2, 9, 6], [3, 2, 9, 6], [2, 2, 3, 6], [1, 1, 5, 5]]) - 0.5
    np.testing.assert_allclose(drawn, expected, atol=0.2)  # along the pixels' edges; nothing for an empty mask
    assert len(ax.patches) == 6 + 4
    assert ax.get_xlim() == (-0.5, 19.5)


def test_labels_stay_in_the_image_and_off_each_other():
    ax, image = canvas()
    rng = np.random.default_rng(0)
    boxes = np.c_[rng.uniform(0, 150, (9, 2)), rng.uniform(20, 50, (9, 2))]
    boxes[0] = [0, 0, 30, 30]  # above it there is no room
    plots.draw_objects(ax, image, boxes, None, [f"category {i}" for i in range(9)], list("rrccfffff"), [0.5] * 9)
    frame = ax.get_window_extent()
    extents = [t.get_window_extent() for t in ax.texts]
    for extent in extents:
        assert frame.x0 <= extent.x0 and extent.x1 <= frame.x1 and frame.y0 <= extent.y0 and extent.y1 <= frame.y1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))


def test_an_image_without_objects_is_just_the_image():
    ax, image = canvas()
    plots.draw_objects(ax, image, np.empty((0, 4)), [], [], [], [])
    assert len(ax.images) == 1 and not ax.patches and not ax.texts


# ------------------------------------------------------------------------------------------ bad input


def objects(**change):
    arguments = {"image": np.zeros((8, 8, 3), np.uint8), "boxes": [[0, 0, 2, 2]]} | change
    return plots.draw_objects(plt.figure().add_subplot(), **arguments)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: plots.count_by_group(CATEGORIES.assign(instance_count=0)), "instance_count"),
        (lambda: plots.sorted_tail(CATEGORIES, by="images"), "'images'"),
        (lambda: plots.sorted_tail(CATEGORIES.assign(frequency="x")), "expected r, c or f, found 'x'"),
        (lambda: plots.image_vs_instance_count(CATEGORIES.assign(image_count=0)), "only zeros"),
        (lambda: plots.sizes_by_group(TABLES["sizes_by_group"].assign(side=0)), "above 0"),
        (lambda: plots.balance_by_group(BALANCE[BALANCE.level != "rois"]), "'rois'"),
        (lambda: plots.image_or_object(BALANCE[BALANCE.level != "images"].assign(categories=4)), "no images"),
        (lambda: plots.expected_vs_counted(TABLES["expected_vs_counted"].assign(counted=0)), "only zeros"),
        (lambda: plots.ap_by_group(ARMS.assign(arm="rio")), "one row per arm, found arm 'rio' twice"),
        (lambda: plots.ap_by_image_count(TABLES["ap_by_image_count"].assign(AP=np.nan)), "found none"),
        (lambda: plots.ap_difference(TABLES["ap_difference"].assign(difference=np.nan)), "found none"),
        (lambda: plots.arm_ap(pd.concat([RUNS, RUNS])), "arm 'rfs_cosine', seed '1' twice. Fix: choose one"),
        (lambda: plots.study_curves(pd.concat([CURVES] * 2)), "epoch '2' twice. Fix: pass each run once"),
        (lambda: plots.paired_differences(pd.concat([DIFFERENCES] * 2)), "baseline 'rfs', metric 'AP' twice"),
        (lambda: plots.paired_differences(DIFFERENCES.assign(metric="AP50")), "expected AP, APr, .* found 'AP50'"),
        (lambda: plots.loss_curves([{"iteration": 3, "lr": 0.1}]), "logged an iteration"),
        (lambda: objects(image=np.zeros((8, 8, 2))), r"\(H, W, 3\)"),
        (lambda: objects(labels=["a", "b"]), "labels: expected one for each of the 1 boxes"),
        (lambda: objects(groups=["q"]), "expected r, c or f"),
        (lambda: objects(masks=[np.zeros((4, 4), bool)]), r"masks\[0\]: expected shape \(8, 8\)"),
        (lambda: objects(masks=[[[1, 2, 3, 4]]]), "at least 3 points"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(PlotError, match=message):
        call()


def test_costs_of_errors_stand_by_group_all_first():
    assert quality.COSTS == breakdown.COSTS, "the columns of the table that is drawn"
    ax = plots.error_costs(TABLES["error_costs"])
    assert [t for t in texts(ax) if t.isalpha()] == ["all", "rare"]
    assert [t for t in texts(ax) if not t.isalpha()][:2] == ["3.0", "1.0"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["rio  (AP50 50.0)"] * 2


def test_gradients_of_groups_are_points_of_their_ratio():
    ax = plots.gradient_balance(TABLES["gradient_balance"])
    large = [c.get_offsets()[0].tolist() for c in ax.collections if c.get_sizes()[0] > 20]
    assert large == [[0.1, 0.0], [1.0, 0.0], [1.0, 1.0]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["softmax", "eql"]
    many = [TABLES["gradient_balance"].assign(arm=arm) for arm in "abc"]
    with pytest.raises(PlotError, match="at most two, found a, b, c. Fix"):
        plots.gradient_balance(pd.concat(many))


def test_confusions_are_pooled_where_categories_are_many():
    ax = plots.confusions(MATRIX)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["fox", "emu", "missed"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["fox", "emu"]
    assert ax.collections[0].get_array().reshape(2, 3).tolist() == [[80, 0, 20], [60, 25, 15]]
    names = [f"category {i}" for i in range(240)]
    many = pd.DataFrame(90 * np.eye(240), names, names).assign(others=0.0, missed=10.0)
    many.attrs = {"frequency": ["f"] * 100 + ["c"] * 60 + ["r"] * 80}
    cells = plots.confusions(many).collections[0].get_array().reshape(120, -1)
    assert cells[0, [0, 1, -1]].tolist() == [90, 0, 10] and set(cells.sum(axis=1).round(6)) == {100 + 10 * 4}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_lacks_a_column_or_all_rows(name):
    with pytest.raises(PlotError, match="expected the column .* found .*Fix: pass the table that"):
        getattr(plots, name)(pd.DataFrame({"other": [1]}))
    if name == "company":
        assert "No rare object" in texts(plots.company(TABLES[name][:0]))[0]
        return
    with pytest.raises(PlotError, match="at least one row"):
        getattr(plots, name)(TABLES[name][:0])


# ------------------------------------------------------------------------------------------ studies


def points(ax):
    """(x, y, face colour) of every point."""
    return [
        (round(float(x), 6), round(float(y), 2), to_hex(color))
        for collection in ax.collections
        if len(collection.get_offsets()) and len(collection.get_facecolor())
        for (x, y), color in zip(collection.get_offsets(), itertools.cycle(collection.get_facecolor()), strict=False)
        if np.isfinite(x)
    ]


def test_arm_ap_shows_every_seed_and_the_mean():
    ax = plots.arm_ap(RUNS)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["rfs_cosine", "a_long_name_of_an_arm"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first arm is on top"
    rare = [(x, y) for x, y, color in points(ax) if color == COLORS["r"].lower()]
    assert [x for x, _ in rare] == [15.0], "the mean of the seeds; the other arm was not judged on rare classes"
    seeds = [x for x, y, color in points(ax) if y == rare[0][1] and color != COLORS["r"].lower()]
    assert sorted(seeds) == [10.0, 20.0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "all (AP)", "rare (APr)", "common (APc)", "frequent (APf)",
    ]  # fmt: skip
    assert "each seed" in ax.get_legend().get_title().get_text()
    alone = plots.arm_ap(RUNS[RUNS["seed"] == 1], label="mask AP")
    assert alone.get_legend().get_title().get_text() == "" and alone.get_xlabel() == "mask AP"


def test_study_curves_are_means_over_seeds_in_bands():
    ax = plots.study_curves(CURVES)
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert [line.get_ydata().tolist() for line in lines] == [[14, 16, 18]] * 2 + [[34, 36, 38]] * 2
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert len(ax.collections) == 4 and ax.collections[0].get_paths()[0].get_extents().y0 == pytest.approx(13)
    assert {text.get_text() for text in ax.texts} == {"none", "rfs"} and ax.get_xlim() == (0, 6)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["linear", "cosine"]
    assert lines[2].get_color() == plots.ARM_COLORS["RFS"]
    alone = plots.study_curves(CURVES[CURVES["arm"] == "rfs-linear"].assign(arm="mine"))
    assert alone.get_legend() is None and [text.get_text() for text in alone.texts] == ["mine"]


def test_paired_differences_fill_what_is_resolved():
    ax = plots.paired_differences(DIFFERENCES)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["rio \N{MINUS SIGN} rfs"]
    found = {x: color for x, _, color in points(ax)}
    assert found == {2.0: to_hex("#1F2430"), 5.0: "#ffffff", -1.0: "#ffffff"}
    lines = [s[:, 0].tolist() for c in ax.collections if hasattr(c, "get_segments") for s in c.get_segments() if len(s)]
    assert lines == [[1.0, 3.0], [-1.0, 11.0]], "an interval that is not known is not drawn"
    assert any(list(line.get_xdata()) == [0, 0] for line in ax.lines), "the line of no difference"
    assert len(ax.get_legend().get_texts()) == 3, "common is not in the table"


@pytest.mark.parametrize("number", [1, 9, 18])
def test_rows_of_studies_have_room(number):
    rows = [label.get_text() for label in plots.paired_differences(DIFFERENCES.assign(arm="a" * 30)).get_yticklabels()]
    assert rows[0].count("\n") == 1  # a long name takes two lines
    runs = pd.concat([RUNS.assign(arm=f"arm_{i}_of_a_long_name") for i in range(number)])
    runs = runs.drop_duplicates(["arm", "seed"])
    differences = pd.concat([DIFFERENCES.assign(arm=f"arm_{i}_of_a_long_name") for i in range(number)])
    for ax in (plots.arm_ap(runs), plots.paired_differences(differences)):
        ax.figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
        assert len(boxes) == number and not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
