"""Kinds of trouble in the columns of an annotation file, one small function each; those of its rules come before.

A function of `KINDS`, whose name is the kind's, takes a `Context` and returns `Hits`: how many records, and the first.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rio.data.annotations import GROUP_NAMES, RARE_MAX_IMAGES, Annotations, index_of
from rio.data.errors import EXAMPLES, Finding
from rio.data.images import Header
from rio.data.repairs import box_of, overlap

Hits = tuple[int, list[tuple[str, str, str]]]
NONE: Hits = (0, [])
MASKS_LOOKED_AT = 2_000
"""Masks compared with their boxes, evenly over the file."""


@dataclass
class Context:
    """What is looked at: the file's columns, its image folder, and those of the training set where one is given."""

    data: Annotations
    train: Annotations | None = None
    headers: list[Header] | None = None  # of the pictures, once they were read
    copies: dict[int, int] | None = None  # pictures with the bytes of a training picture, once they were compared

    @property
    def root(self) -> str | None:
        """The image folder."""
        return self.data.image_root


class Kind(NamedTuple):
    """A kind of trouble: what finds it, how grave it is, what it means for training and AP, and the fix."""

    find: Callable[[Context], Hits]
    level: str
    means: str
    fix: str


def findings(context: Context, kinds: Sequence[Kind]) -> list[Finding]:
    """What the kinds find, those that find something."""
    found = []
    for find, level, means, fix in kinds:
        count, examples = find(context)
        if count:
            found.append(Finding(find.__name__, level, "", fix, count, examples, means=means))
    return found


def hits(rows: Sequence[int] | np.ndarray, record: Callable[[int], str], key: str, found: Callable[[int], str]) -> Hits:
    """Rows as hits, whose first few are put into words."""
    return len(rows), [(record(row), key, found(row)) for row in list(rows[:EXAMPLES])]


def of_object(data: Annotations) -> Callable[[int], str]:
    """Row of an annotation -> its name in messages."""

    def name(row: int) -> str:
        return f"annotation {data.annotation_ids[row]} (image {data.image_ids[data.annotation_image[row]]})"

    return name


def of_image(data: Annotations) -> Callable[[int], str]:
    """Index of an image -> its name in messages."""
    return lambda row: f"image {data.image_ids[row]} ({data.file_names[row]})"


def of_category(data: Annotations) -> Callable[[int], str]:
    """Class id -> its name in messages."""
    return lambda row: f"category {data.category_ids[row]} ({data.category_names[row]})"


def no_image(c: Context) -> Hits:
    return (1, [("file", "images", "none, or none that can be read")]) if not c.data.num_images else NONE


def no_object(c: Context) -> Hits:
    empty = c.data.num_images and not c.data.num_annotations
    return (1, [("file", "annotations", "none, or none that can be read")]) if empty else NONE


def area_zero(c: Context) -> Hits:
    rows = np.flatnonzero((c.data.areas == 0) & ~c.data.iscrowd)
    return hits(rows, of_object(c.data), "area", lambda row: f"0, with the box {c.data.boxes[row].tolist()}")


def area_too_large(c: Context) -> Hits:
    box = c.data.boxes[:, 2] * c.data.boxes[:, 3]
    rows = np.flatnonzero(c.data.areas > 1.5 * box + 16)
    return hits(rows, of_object(c.data), "area", lambda row: f"{c.data.areas[row]:g} px², in a box of {box[row]:g} px²")


def box_twice(c: Context) -> Hits:
    """Annotations of the same image, class and box as one before them."""
    a = c.data
    same = np.lexsort((*a.boxes.T, a.annotation_class, a.annotation_image))
    keys = np.column_stack([a.annotation_image, a.annotation_class, a.boxes])[same]
    rows = np.sort(same[1:][(keys[1:] == keys[:-1]).all(1)])
    count, examples = hits(rows, of_object(a), "bbox", lambda row: f"{a.boxes[row].tolist()}, as another of its class")
    if count and 2 * count >= a.num_annotations:
        examples.insert(0, ("file", "annotations", "every object is there twice or more"))
    return count, examples


def picture_twice(c: Context) -> Hits:
    times = Counter(c.data.file_names)
    rows = [row for row, name in enumerate(c.data.file_names) if times[name] > 1]
    return hits(rows, of_image(c.data), "file_name", lambda row: f"in {times[c.data.file_names[row]]} images")


def names_alike(c: Context) -> Hits:
    first: dict[str, str] = {}
    rows = []
    for row, name in enumerate(c.data.category_names):
        key = "".join(character for character in name.casefold() if character.isalnum()) or name
        if first.setdefault(key, name) != name:
            rows.append(row)
    return hits(rows, of_category(c.data), "name", lambda row: repr(c.data.category_names[row]) + ", like another")


def frequency_partly(c: Context) -> Hits:
    declared = c.data.declared_frequency
    rows = np.flatnonzero(declared == "") if declared is not None else []
    return hits(rows, of_category(c.data), "frequency", lambda row: f"none; taken: {c.data.frequency[row]}")


def category_unused(c: Context) -> Hits:
    rows = np.flatnonzero(c.data.instance_count == 0) if c.data.num_annotations else []
    return hits(rows, of_category(c.data), "-", lambda row: "no object")


def image_empty(c: Context) -> Hits:
    rows = np.flatnonzero(np.diff(c.data.image_offsets) == 0) if c.data.num_annotations else []
    return hits(rows, of_image(c.data), "-", lambda row: "no object")


def size_swapped(c: Context) -> Hits:
    """Images whose boxes do not fit, and would all fit with width and height swapped."""
    a = c.data
    right, bottom = a.boxes[:, 0] + a.boxes[:, 2], a.boxes[:, 1] + a.boxes[:, 3]
    width, height = a.image_width[a.annotation_image], a.image_height[a.annotation_image]
    out, out_swapped = ((right > w + 1) | (bottom > h + 1) for w, h in ((width, height), (height, width)))
    bad, still_bad = (np.bincount(a.annotation_image, o, minlength=a.num_images) > 0 for o in (out, out_swapped))
    rows = np.flatnonzero(bad & ~still_bad)
    sizes = lambda row: f"{a.image_width[row]} x {a.image_height[row]} px, and its boxes fit into the swapped size"  # noqa: E731
    return hits(rows, of_image(a), "width, height", sizes)


def box_unlike_mask(c: Context) -> Hits:
    """Boxes that hardly overlap the box around their mask, of an even choice of masks."""
    a = c.data
    rows = np.flatnonzero((a.mask_length > 0) & ~a.iscrowd)
    step = max(1, len(rows) // MASKS_LOOKED_AT)
    found: list[tuple[int, str]] = []
    for row in rows[::step].tolist():
        mask, box = box_of(a.segmentation(row)), a.boxes[row].tolist()
        if mask is None or overlap(mask, box) >= 0.5:
            continue
        x, y, w, h = box
        reading = "; x1, y1, x2, y2 would fit" if overlap(mask, [x, y, w - x, h - y]) >= 0.9 else ""
        reading = reading or ("; with x and y swapped it fits" if overlap(mask, [y, x, h, w]) >= 0.9 else "")
        found.append((row, f"{[round(v, 2) for v in box]}, where the mask's is {[round(v, 1) for v in mask]}{reading}"))
    words = dict(found)
    count, examples = hits(list(words), of_object(a), "bbox", words.__getitem__)
    return count * step, examples


def mostly_crowd(c: Context) -> Hits:
    """Crowd regions, where they are half of the annotations: labelling tools mark every brush mask so."""
    rows = np.flatnonzero(c.data.iscrowd)
    words = f"1, as {len(rows):,} of {c.data.num_annotations:,} annotations"
    return hits(rows, of_object(c.data), "iscrowd", lambda row: words) if 2 * len(rows) >= len(c.data.iscrowd) else NONE


def ignored(c: Context) -> Hits:
    how = "LVIS's evaluation leaves it out, training does not" if c.data.federated else "read by no COCO tool"
    return hits(np.flatnonzero(c.data.ignored), of_object(c.data), "ignore", lambda row: how)


def no_groups(c: Context) -> Hits:
    """A training set in which r, c and f say little: one group only."""
    groups = np.unique(c.data.frequency[c.data.instance_count > 0])
    one = len(groups) == 1 and c.data.num_classes > 1 and c.data.num_images > RARE_MAX_IMAGES
    return (1, [("file", "frequency", f"all categories with objects are {GROUP_NAMES[groups[0]]}")]) if one else NONE


def category_missing_in_train(c: Context) -> Hits:
    if c.train is None:
        return NONE
    a, t = c.data, c.train
    counts = dict(zip(t.category_names, t.instance_count.tolist(), strict=True))
    rows = [row for row, name in enumerate(a.category_names) if a.instance_count[row] and not counts.get(name)]
    return hits(rows, of_category(a), "-", lambda row: f"{a.instance_count[row]} objects, none in {t.path}")


def categories_unlike_train(c: Context) -> Hits:
    """Categories that the training set does not have under the same id and name; or has, and this file lacks."""
    if c.train is None:
        return NONE
    a, t = c.data, c.train
    known = dict(zip(t.category_ids.tolist(), t.category_names, strict=True))
    ids = dict(zip(t.category_names, t.category_ids.tolist(), strict=True))
    words: dict[int, str] = {}
    for row, (number, name) in enumerate(zip(a.category_ids.tolist(), a.category_names, strict=True)):
        if known.get(number) != name:
            there = f"{name!r} is category {ids[name]} there" if name in ids else f"{name!r} is not there"
            words[row] = f"{there}, {number} is {known[number]!r}" if number in known else there
    count, examples = hits(list(words), of_category(a), "id, name", words.__getitem__)
    lacking = np.flatnonzero(index_of(a.category_ids, t.category_ids) < 0)
    more = hits(lacking, of_category(t), "id, name", lambda row: f"in {t.path} only")
    return count + more[0], (examples + more[1])[:EXAMPLES]


KINDS = tuple(Kind(*row) for row in (
    (no_image, "error", "There is nothing to train or evaluate on.", "check the export; the split may be empty"),
    (no_object, "warning", "Nothing to learn from, and every AP is '-'.", "check that labels were exported"),
    (categories_unlike_train, "error", "A detector's class ids would mean other things here: training refuses it.",
     "give both files the same list of categories"),
    (category_missing_in_train, "warning", "These cannot be learned: their AP is 0 and lowers the mean.",
     "split so that training has objects of every category, the rare ones first"),
    (size_swapped, "warning", "Boxes are clipped, and training stops if the picture has another size.",
     "swap width and height; with --images `--write` does, where the pictures say so"),
    (box_unlike_mask, "warning", "Box and mask teach different things; one of the two is wrong.",
     "compute the boxes from the masks, or find what wrote them"),
    (mostly_crowd, "warning", "Crowd regions are left out of training, and of what AP asks to be found.",
     "set iscrowd to 0 where a mask shows one object"),
    (area_zero, "warning", "LVIS's evaluation leaves them out; if all are, every AP is '-'. Training uses them.",
     "`--write` writes the mask's or the box's area"),
    (area_too_large, "warning", "APs, APm and APl sort objects by area; it is larger than the box.",
     "leave 'area' out, or give it in px² of this image"),
    (box_twice, "warning", "Twins count twice in training, and one of the two is always missed: AP falls.",
     "remove one of each; `--write` does where they are equal in all but the id"),
    (picture_twice, "warning", "The picture counts twice, with half of its objects unlabelled if they are split.",
     "merge the images, with the objects of both"),
    (names_alike, "warning", "If they are one class, each is a false alarm for the other.", "merge or rename them"),
    (frequency_partly, "warning", "Their groups come from this file's own image counts, the others' are declared.",
     "declare 'frequency' for all categories or for none"),
    (category_unused, "note", "It cannot be learned from this file; AP leaves it out of the mean.", ""),
    (image_empty, "note", "Training leaves them out (DATALOADER.FILTER_EMPTY_ANNOTATIONS); evaluation does not.", ""),
    (ignored, "note", "The key means different things to different tools.", ""),
    (no_groups, "note", "APr, APc and APf say nothing more than AP: LVIS's borders are 10 and 100 images.", ""),
))  # fmt: skip
