"""Other meanings that results could have: of their classes, boxes and images; each is one change of their columns.

A reading is as good as the mean over the classes of the share of their objects that are found, by class and an IoU of
`FOUND_IOU`, among a sample of images, by the best predictions of each, as many as it has objects.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from rio.data.annotations import Annotations, index_of
from rio.results.reading import Results

FOUND_IOU = 0.5
LEAST_OBJECTS = 4
_IMAGES, _PER_IMAGE = (40, 200), 30  # looked at: 1 image in 25, within these bounds; rows of an image at most
_TIMES, _MORE = 2.0, 0.12  # a reading is much better from this factor and share on, and `LEAST_OBJECTS` more found


class Reading(NamedTuple):
    """Another meaning of every prediction: columns of results -> the same columns; -1 is no class or image."""

    kind: str
    what: str
    fix: str
    change: Callable[[Results], dict[str, np.ndarray]]
    learned: bool = False  # fitted to the results one by one: what finds it is its evidence, the share is not

    def reread(self, results: Results) -> Results:
        new = dataclasses.replace(results, **self.change(results))
        known = np.flatnonzero((new.class_id >= 0) & (new.image_index >= 0))
        names = ("image_index", "class_id", "scores", "boxes", *(["mask_areas"] if new.mask_areas is not None else []))
        columns = {name: getattr(new, name)[known] for name in names}
        rles = [new.rles[row] for row in known.tolist()] if new.rles is not None else None
        return dataclasses.replace(new, **columns, rles=rles)


class Match(NamedTuple):
    """Predictions and objects that overlap: m pairs, and (G,) bool, which objects were to be found."""

    row: np.ndarray
    object: np.ndarray
    wanted: np.ndarray


class Sample:
    """Some images' best and worst predictions (n rows), and all images' objects (G)."""

    def __init__(
        self, annotations: Annotations, results: Results, ground_truth: np.ndarray, *, share: float = 1.0
    ) -> None:
        a = self.annotations = annotations
        self.results, self.ground_truth = results, ground_truth
        objects = np.flatnonzero(ground_truth)
        self.boxes, self.classes = a.boxes[objects], a.annotation_class[objects]
        self.first = np.searchsorted(a.annotation_image[objects], np.arange(a.num_images + 1))
        images = np.flatnonzero(np.bincount(results.image_index))
        count = min(int(share * np.clip(len(images) / 25, *_IMAGES)), 200)
        images = images[np.unique(np.linspace(0, len(images) - 1, count).astype(int))]
        ranked = [results.of_image(image) for image in images.tolist()]
        best, worst = [rows[:_PER_IMAGE] for rows in ranked], [rows[_PER_IMAGE:][-_PER_IMAGE:] for rows in ranked]
        self.rank = np.concatenate([np.arange(len(rows)) for part in (best, worst) for rows in part])
        self.is_best = np.repeat([True, False], [sum(map(len, part)) for part in (best, worst)])
        rows = np.concatenate([*best, *worst])
        names = ("image_index", "class_id", "scores", "boxes")
        columns = {name: getattr(results, name)[rows] for name in names}
        self.rows = dataclasses.replace(results, **columns, rles=None, mask_areas=None)
        pairs = self._pairs(self.rows.image_index)
        self.own = self._of_class(pairs, self.rows.class_id)
        self.now = self._close(pairs, self.rows.boxes)  # whatever the class
        self.share = self.found(self.now, self.rows.class_id)

    def match(self, rows: Results, chosen: np.ndarray | None = None) -> Match:
        """The best predictions of each image, as many as it has objects, against its objects of their class."""
        if chosen is None and rows.image_index is self.rows.image_index and rows.class_id is self.rows.class_id:
            pairs = self.own  # other boxes alone
        else:
            pairs = self._of_class(self._pairs(rows.image_index, chosen), rows.class_id)
        return self._close(pairs, rows.boxes)

    def _pairs(self, image: np.ndarray, chosen: np.ndarray | None = None) -> Match:
        objects = np.diff(self.first, append=self.first[-1])[image]  # 0 of image -1
        chosen = self.is_best & (self.rank < objects) if chosen is None else chosen & (objects > 0)
        at = np.flatnonzero(chosen)
        row, place = _each(at, objects[at])
        wanted = np.zeros(len(self.classes), bool)
        for one in (np.flatnonzero(np.bincount(image + 1)) - 1).tolist():  # in a tenth of the time of np.unique
            wanted[self.first[one] : self.first[one + 1] if one >= 0 else 0] = True
        return Match(row, self.first[image[row]] + place, wanted)

    def _of_class(self, pairs: Match, class_id: np.ndarray) -> Match:
        same = class_id[pairs.row] == self.classes[pairs.object]
        return Match(pairs.row[same], pairs.object[same], pairs.wanted)

    def _close(self, pairs: Match, boxes: np.ndarray) -> Match:
        close = pair_iou(boxes[pairs.row], self.boxes[pairs.object]) >= FOUND_IOU
        return Match(pairs.row[close], pairs.object[close], pairs.wanted)

    def found(self, match: Match, class_id: np.ndarray, which: np.ndarray | None = None) -> tuple[float, int, int]:
        """Mean over classes of the share of objects found; how many objects are found, and of how many."""
        wanted = match.wanted if which is None else match.wanted & which
        right = match.object[class_id[match.row] == self.classes[match.object]]
        hit = np.zeros(len(self.classes), bool)
        hit[right] = True
        hit &= wanted
        total = np.bincount(self.classes[wanted], minlength=1)
        there = np.flatnonzero(total)
        shares = np.bincount(self.classes[hit], minlength=len(total))[there] / total[there]
        return float(shares.mean()) if len(there) else 0.0, int(hit.sum()), int(wanted.sum())


def pair_iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of n pairs of XYWH boxes, (n, 4) each: (n,) in 0..1."""
    ends = np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    sides = (ends - np.maximum(one[:, :2], other[:, :2])).clip(0)
    both = sides[:, 0] * sides[:, 1]
    union = one[:, 2] * one[:, 3] + other[:, 2] * other[:, 3] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def is_much_better(new: tuple[float, int, int], now: tuple[float, int, int]) -> bool:
    return new[0] >= _TIMES * now[0] + _MORE and new[1] >= _TIMES * now[1] and new[1] - now[1] >= LEAST_OBJECTS


def readings(sample: Sample) -> Iterator[Reading]:
    """All readings, the simplest first."""
    yield from _class_readings(sample)
    yield from _box_readings(sample)
    yield from _image_readings(sample)


# ---- classes


def _class_readings(sample: Sample) -> Iterator[Reading]:
    ids, names = sample.annotations.category_ids, sample.annotations.category_names
    agnostic = _any_class(sample)
    if not is_much_better(agnostic, sample.share):
        return  # the places do not fit, so no other classes help
    alphabet = np.argsort(names, kind="stable")
    numbers = np.arange(len(ids))
    gaps = int(ids[0]) != 1 or bool((np.diff(ids) > 1).any())
    own, contiguous = "write the ids of the ground truth's categories", "contiguous numbers from"
    for what, fix, to in (
        ("every category_id seems one too low", f"add 1: {own}", index_of(ids, ids + 1)),
        ("every category_id seems one too high", f"subtract 1: {own}", index_of(ids, ids - 1)),
        (f"category_id seems to be {contiguous} 1, not the ground truth's ids", own, np.where(gaps, ids - 1, numbers)),
        (f"category_id seems to be {contiguous} 0, not the ground truth's ids", own, ids),
        ("the classes seem to be numbered by the alphabet, not as in the ground truth", own, alphabet),
        ("the ids seem to be those of a category file in another order", own, np.argsort(alphabet)),
    ):
        to = np.where(to < len(ids), to, -1)
        if (to != numbers).any():
            yield Reading("classes", what, fix, lambda r, to=to: {"class_id": to[r.class_id]})
    yield from _learned_classes(sample)


def _any_class(sample: Sample) -> tuple[float, int, int]:
    """As `Sample.found`, whatever the class."""
    wanted, hit = sample.now.wanted, np.zeros(len(sample.classes), bool)
    hit[sample.now.object] = True
    return float(hit[wanted].mean()), int(hit.sum()), int(wanted.sum())


def _learned_classes(sample: Sample) -> Iterator[Reading]:
    """Which class stands for which, from the overlaps in every second image; held against the other half."""
    sample = Sample(sample.annotations, sample.results, sample.ground_truth, share=5)  # of each class enough
    size, name = sample.annotations.num_classes, sample.annotations.category_names
    row, target, _ = sample.now
    second = (np.searchsorted(np.unique(sample.rows.image_index), sample.rows.image_index) % 2).astype(bool)
    first = ~second[row]
    to = _majority(sample.rows.class_id[row[first]], sample.classes[target[first]], size)
    moved, same = np.flatnonzero((to >= 0) & (to != np.arange(size))), (to == np.arange(size)).sum()
    if len(moved) < min(3, size) or same > len(moved) / 4:
        return
    held = np.zeros(len(sample.first) - 1, bool)
    held[sample.rows.image_index[second]] = True
    judged = np.repeat(held, np.diff(sample.first)) & np.isin(sample.classes, to[to >= 0])
    learned = np.where(to >= 0, to, np.arange(size))
    now, new = (sample.found(sample.now, ids, judged) for ids in (sample.rows.class_id, learned[sample.rows.class_id]))
    if is_much_better(new, now):
        pairs = ", ".join(f"{name[k]!r} is {name[to[k]]!r}" for k in moved[:3].tolist())
        more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
        what = f"the ids seem to be those of another list of categories, in which {pairs}{more}"
        fix = "write the ids of the ground truth's categories, by name"
        yield Reading("classes", what, fix, lambda r: {"class_id": learned[r.class_id]}, learned=True)


def _majority(of: np.ndarray, to: np.ndarray, size: int) -> np.ndarray:
    """(size,) what most of each goes to; -1 without a majority, or where another one goes there more often."""
    pairs, counts = np.unique(of.astype(np.int64) * size + to, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    pairs, counts = pairs[order], counts[order]
    totals, found, taken = np.bincount(of, minlength=size), np.full(size, -1), np.zeros(size, bool)
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        source, goal = divmod(pair, size)
        if count >= 2 and 2 * count > totals[source] and not taken[goal]:
            found[source], taken[goal] = goal, True
    return found


# ---- boxes


def _box_readings(sample: Sample) -> Iterator[Reading]:
    a = sample.annotations
    sides = np.stack([a.image_width, a.image_height] * 2, axis=1).astype(float)
    shapes: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
        "": ("x, y, width, height", lambda b: b),
        "corners": ("x1, y1, x2, y2", lambda b: np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1)),
        "centre": ("centre x, y, width, height", lambda b: np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, 2:]], axis=1)),
        "yx": ("y, x, height, width", lambda b: b[:, [1, 0, 3, 2]]),
        "yx corners": ("y1, x1, y2, x2", lambda b: np.concatenate([b[:, [1, 0]], b[:, [3, 2]] - b[:, [1, 0]]], axis=1)),
    }  # fmt: skip
    shares = float(np.median(sample.rows.boxes.max(1))) <= 1.5
    for order, shape in shapes.values():
        what, fix = f"the boxes seem to be {order}", "write bbox as [x, y, width, height]"
        if shares:
            what, fix = f"the boxes seem to be shares of the image, {order}", f"{fix} in pixels of the image"
            change = lambda r, shape=shape: {"boxes": shape(r.boxes) * sides[r.image_index]}  # noqa: E731
        else:
            change = lambda r, shape=shape: {"boxes": shape(r.boxes)}  # noqa: E731
        if shares or order != "x, y, width, height":
            yield Reading("boxes", what, fix, change)
    if not shares:
        yield from _resized(sample, sides)


def _resized(sample: Sample, sides: np.ndarray) -> Iterator[Reading]:
    """Boxes in pixels of a resized picture: the ratio that most pairs of a class and image agree on."""
    rows = sample.rows
    count = np.diff(sample.first)[rows.image_index] * (sample.is_best & (sample.rank < 10))
    row, place = _each(np.arange(len(count)), count)
    target = sample.first[rows.image_index[row]] + place
    same = rows.class_id[row] == sample.classes[target]
    row, target = row[same], target[same]
    mine, theirs = rows.boxes[row], sample.boxes[target]
    good = (mine[:, 2:] > 0).all(1) & (theirs[:, 2:] > 0).all(1)
    mine, theirs, size = mine[good], theirs[good], sides[rows.image_index[row[good]], :2]
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.log(mine[:, 2:] / theirs[:, 2:])
        places = np.log((mine[:, :2] + mine[:, 2:] / 2) / (theirs[:, :2] + theirs[:, 2:] / 2))
        agree = (np.abs(lengths - places) < 0.2).all(1)
    if agree.sum() < LEAST_OBJECTS:
        return
    ratio, size = ((lengths + places) / 2)[agree], size[agree]
    even = np.abs(ratio[:, 0] - ratio[:, 1]) < 0.1
    fix = "divide the boxes by the ratio of the sizes, resized by original (detectron2: detector_postprocess)"
    what = "the boxes seem to be in pixels of a resized picture"
    if even.sum() >= LEAST_OBJECTS:
        middle = ratio[even].mean(1)
        for side, of in (("", None), ("longer ", np.max), ("shorter ", np.min)):
            lengths_of = 0.0 if of is None else np.log(of(size[even], axis=1))
            scale = float(np.exp(_mode(middle + lengths_of)))
            if of is None:
                by, words = np.full_like(sides, scale), f"{scale:.3g} times the size"
            else:
                by, words = (scale / of(sides, axis=1))[:, None] * np.ones(4), f"{side}side about {scale:.0f} px"
            if np.abs(np.log(by)).mean() > 0.1:
                change = lambda r, by=by: {"boxes": r.boxes / by[r.image_index]}  # noqa: E731
                yield Reading("boxes", f"{what} ({words})", fix, change)
    stretched = np.exp([_mode(ratio[:, axis] + np.log(size[:, axis])) for axis in (0, 1)])
    by = np.tile(stretched, 2) / sides
    if np.abs(np.log(by)).mean() > 0.1:
        change = lambda r: {"boxes": r.boxes / by[r.image_index]}  # noqa: E731
        yield Reading("boxes", f"{what} ({stretched[0]:.0f} x {stretched[1]:.0f} px)", fix, change)


def _mode(values: np.ndarray, width: float = 0.1) -> float:
    """The median of the most values within a window."""
    values = np.sort(values)
    within = np.searchsorted(values, values + width) - np.arange(len(values))
    begin = int(within.argmax())
    return float(np.median(values[begin : begin + within[begin]]))


# ---- images


def _image_readings(sample: Sample) -> Iterator[Reading]:
    if _any_class(sample)[0] > 0.3:
        return  # the places fit
    a = sample.annotations
    number = np.arange(a.num_images)
    by_text, by_name = np.argsort(list(map(str, a.image_ids.tolist()))), np.argsort(a.file_names, kind="stable")
    fix = "take each prediction's image_id from the image that it was made for"
    for what, to in (
        ("every image_id seems to be that of the image before", number + 1),
        ("every image_id seems to be that of the image after", number - 1),
        ("the images seem to be in reverse order", number[::-1]),
        ("the images seem to be in the order of their ids as text (1, 10, 2)", by_text),
        ("the images seem to be in the order of their ids as text (1, 10, 2)", np.argsort(by_text)),
        ("the images seem to be in the order of their file names", by_name),
        ("the images seem to be in the order of their file names", np.argsort(by_name)),
    ):
        to = np.where(to < len(number), to, -1)
        if (to != number).any():
            yield Reading("images", what, fix, lambda r, to=to: {"image_index": to[r.image_index]})
    yield from _learned_images(sample, fix)


def _learned_images(sample: Sample, fix: str) -> Iterator[Reading]:
    """Which image's objects the predictions of a few images fit: most of them, of several classes."""
    a, rows = sample.annotations, sample.rows
    images = np.unique(rows.image_index)
    images = images[np.linspace(0, len(images) - 1, min(len(images), 24)).astype(int)]
    of_class = np.bincount(sample.classes, minlength=a.num_classes)
    few = sample.is_best & (sample.rank < 10) & np.isin(rows.image_index, images)
    few = np.flatnonzero(few & (of_class[rows.class_id] <= 2000))  # of the most frequent ones many would fit
    by_class = np.argsort(sample.classes, kind="stable")
    row, place = _each(few, of_class[rows.class_id[few]])
    target = by_class[(np.cumsum(of_class) - of_class)[rows.class_id[row]] + place]
    close = pair_iou(rows.boxes[row], sample.boxes[target]) >= FOUND_IOU
    size = len(sample.classes)
    its, target = np.divmod(np.unique(rows.image_index[row[close]].astype(np.int64) * size + target[close]), size)
    other = np.searchsorted(sample.first, target, side="right") - 1
    pairs, pair_of, hits = np.unique(its * a.num_images + other, return_inverse=True, return_counts=True)
    kinds = np.unique(pair_of * a.num_classes + sample.classes[target]) // a.num_classes
    its, other = np.divmod(pairs, a.num_images)
    share = hits / np.diff(sample.first)[other] * (hits > 2) * (np.bincount(kinds, minlength=len(pairs)) > 1)
    best = np.full(a.num_images, -1)
    order = np.argsort(share, kind="stable")
    order = order[share[order] > 0.5]
    best[its[order]] = other[order]  # the last one written is the best
    same = best == np.arange(a.num_images)
    moved = np.flatnonzero((best >= 0) & ~same)
    if len(moved) >= max(3, len(images) / 5) and len(moved) > 4 * same.sum():
        named = ", ".join(f"those of {a.image_ids[i]} fit {a.image_ids[best[i]]}" for i in moved[:3].tolist())
        what = f"the predictions seem to be other images' ({named})"
        yield Reading("images", what, fix, lambda r: {"image_index": best[r.image_index]}, learned=True)


def _each(items: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every item `counts` times, and 0 .. count - 1 beside it."""
    return np.repeat(items, counts), np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
