"""The rules of annotations, boxes and masks, and the columns of what keeps to them. Shapes as in `rio.data.rules`."""

import contextlib
from typing import Any

import msgspec
import numpy as np

from rio.data.annotations import index_of
from rio.data.errors import EXAMPLES, Problems
from rio.data.masks import POLYGON_TOLERANCE, Mask, are_plain, decode, fault_of
from rio.data.reading import ANNOTATION, BROKEN_JSON, Rows, reject_type
from rio.data.repairs import Change, repair_mask
from rio.data.rules import Rule, Table, apply_rules, repeated

BOX_TOLERANCE = 1.0
"""How far (px) a box may stick out of its image without a word: annotation tools round. Training clips all of them."""


def _sticks_out(t: Table, tolerance: float = BOX_TOLERANCE) -> Any:
    before = (t["bbox"][:, :2] < -tolerance).any(1)
    return before | (t["right"] > t["width"] + tolerance) | (t["bottom"] > t["height"] + tolerance)


def _are_corners(t: Table) -> bool:
    """Whether the boxes, at least half of which do not fit into their images, all do as x1, y1, x2, y2."""
    out = _sticks_out(t)
    if 4 * out.sum() < len(out):  # nearly always, and in a moment
        return False
    x1, y1, x2, y2 = t["bbox"].T
    known = (t["width"] > 0) & (t["bbox"] != 0).any(1)
    fits = (x2 > x1) & (y2 > y1) & (x1 >= -BOX_TOLERANCE) & (y1 >= -BOX_TOLERANCE)
    fits &= (x2 <= t["width"] + BOX_TOLERANCE) & (y2 <= t["height"] + BOX_TOLERANCE)
    number = int(known.sum())
    return number > 0 and bool(fits[known].all()) and 2 * int((out & known).sum()) >= number


def _are_shares(t: Table) -> bool:
    """Whether nearly all boxes end within the first pixel, and not at whole numbers."""
    first = (t["right"] <= 1.001) & (t["bottom"] <= 1.001)
    if not first.any():  # nearly always
        return False
    known = (t["width"] > 2) & (t["bbox"][:, 2:] > 0).all(1)
    first &= known
    return bool(first.sum() > 0.9 * known.sum() and (t["bbox"][first] % 1 != 0).any())


def _is_empty(t: Table) -> Any:
    x, y = t["bbox"].T[:2]
    across = np.minimum(t["right"], t["width"]) <= np.maximum(x, 0)
    return across | (np.minimum(t["bottom"], t["height"]) <= np.maximum(y, 0))


_REFERENCE_RULES = (
    Rule("duplicate_annotation_id", "id", lambda t: repeated(t["id"], t["keep"]), "an id of its own", "{id} twice"),
    Rule("image_skipped", "image_id", lambda t: t["lost"], "", "image {image_id} was skipped"),
    Rule("unknown_image", "image_id", lambda t: t["image_index"] < 0, "the id of an image", "{image_id}"),
    Rule("unknown_category", "category_id", lambda t: t["class_id"] < 0, "the id of a category", "{category_id}"),
)
_BOX_RULES = (
    Rule(
        "negative_box", "bbox", lambda t: (t["bbox"][:, 2:] < 0).any(1),
        "[x, y, width, height] with width, height >= 0", "{bbox}",
    ),
    Rule("empty_box", "bbox", _is_empty, "", "bbox: {bbox} covers nothing of its image"),
    Rule(
        "box_outside", "bbox", lambda t: _sticks_out(t, POLYGON_TOLERANCE),
        f"[x, y, width, height] within {POLYGON_TOLERANCE} px of the image's {{width}} x {{height}} px", "{bbox}",
        "clip the box to its image; if the numbers are x1, y1, x2, y2, convert them",
    ),
    Rule("area", "area", lambda t: t["area"] < 0, "an area >= 0", "{area}"),
)  # fmt: skip


def annotation_columns(
    rows: Rows, images: dict[str, Any], skipped_images: np.ndarray, category_ids: np.ndarray, problems: Problems
) -> dict[str, Any]:
    """The columns of the annotations, sorted by image."""
    image_index = index_of(images["image_ids"], rows.image_ids)
    # A record of an unknown image, which has the index -1, gets the last size here; it is rejected all the same.
    width, height = (np.append(images[key], np.int32(0))[image_index] for key in ("image_width", "image_height"))
    keep = np.ones(len(rows.ids), dtype=bool)
    with np.errstate(over="ignore"):  # of numbers near the largest float, which lie outside
        x, y, w, h = rows.boxes.T
        right, bottom = x + w, y + h
        areas = np.where(np.isnan(rows.areas), w * h, rows.areas)
    table: Table = {
        "id": rows.ids, "image_id": rows.image_ids, "category_id": rows.category_ids, "bbox": rows.boxes,
        "right": right, "bottom": bottom, "area": areas, "iscrowd": rows.iscrowd, "width": width, "height": height,
        "image_index": image_index, "class_id": index_of(category_ids, rows.category_ids),
        "lost": index_of(skipped_images, rows.image_ids) >= 0, "keep": keep,
        "mask_length": np.diff(rows.mask_offsets),
    }  # fmt: skip
    if problems.skip:
        _new_ids(table, problems)
    apply_rules(_REFERENCE_RULES, table, ANNOTATION, problems, keep)
    first = rows.name_of(0) if len(keep) else ""
    if len(keep) and _are_shares(table):
        found = f"{rows.boxes[0].tolist()}, and hardly a box of the file reaches beyond the first pixel"
        fix = (
            "multiply boxes and polygons by the image's width and height (YOLO's boxes are centre x, y, width, height)"
        )
        problems.refuse("normalised_boxes", first, "bbox", "[x, y, width, height] in px", found, fix)
    elif _are_corners(table):
        found = f"{rows.boxes[0].tolist()}: most boxes do not fit into their images, and all do as x1, y1, x2, y2"
        fix = "convert them: [x1, y1, x2 - x1, y2 - y1]"
        problems.refuse("corner_boxes", first, "bbox", "[x, y, width, height]", found, fix)
    apply_rules(_BOX_RULES, table, ANNOTATION, problems, keep)
    out = np.flatnonzero(_sticks_out(table) & keep)
    for row in out[:EXAMPLES].tolist():
        box, size = rows.boxes[row].round(2).tolist(), (int(width[row]), int(height[row]))
        taken = "a box that training clips and evaluation does not"
        problems.repair("box_clipped", rows.name_of(row), "bbox", f"{box} in {size[0]} x {size[1]} px", taken)
    if len(out) > EXAMPLES:
        problems.repaired["box_clipped"].count += len(out) - EXAMPLES
    repaired = _check_masks(rows, table, problems, keep)

    class_ids, lengths, starts, text = table["class_id"], table["mask_length"], rows.mask_offsets[:-1], rows.mask_json
    if repaired:  # behind the file's own
        starts, at = starts.copy(), len(text)
        for row, mask in repaired.items():
            starts[row], lengths[row], at = at, len(mask), at + len(mask)
        text = np.concatenate([text, np.frombuffer(b"".join(repaired.values()), dtype=np.uint8)])
    annotation_ids = table["id"]
    del table, right, bottom, width, height  # 40 MB for LVIS
    order = np.flatnonzero(keep)
    order = order[np.argsort(image_index[order], kind="stable")]
    return {
        "annotation_ids": annotation_ids[order],
        "annotation_image": image_index[order].astype(np.int32),
        "annotation_class": class_ids[order].astype(np.int32),
        "boxes": rows.boxes[order],
        "areas": areas[order],
        "iscrowd": rows.iscrowd[order],
        "ignored": rows.ignored[order],
        "image_offsets": np.searchsorted(image_index[order], np.arange(len(images["image_ids"]) + 1)),
        "mask_json": text,
        "mask_start": starts[order],
        "mask_length": lengths[order].astype(np.int32),
    }


def _new_ids(table: Table, problems: Problems) -> None:
    """Annotations that repeat an id get new ones: an id serves nothing in training, the object does."""
    if len(rows := np.flatnonzero(repeated(table["id"], np.ones(len(table["id"]), dtype=bool)))):
        table["id"] = table["id"].copy()
        new = int(table["id"].max()) + 1 + np.arange(len(rows))
        for row, number in zip(rows[:EXAMPLES].tolist(), new.tolist(), strict=False):
            found = str(table["id"][row])
            name = ANNOTATION.format(id=found, image_id=table["image_id"][row])
            problems.repair("duplicate_annotation_id", name, "id", f"{found} again", str(number))
        problems.repaired["duplicate_annotation_id"].count = len(rows)
        problems.repaired["duplicate_annotation_id"].level = "error"  # unless records may be left out
        table["id"][rows] = new


def _check_masks(rows: Rows, table: Table, problems: Problems, keep: np.ndarray) -> dict[int, bytes]:
    """Reject broken masks; those that can be repaired, as JSON by row. The length of an empty one becomes 0.

    An object without a mask among others with masks gets its box's rectangle.
    """
    length, repaired = table["mask_length"], {}
    for row in np.flatnonzero(~are_plain(rows.mask_json, rows.mask_offsets) & keep & (length > 0)).tolist():
        raw = rows.mask_json[rows.mask_offsets[row] : rows.mask_offsets[row + 1]].data
        size = int(table["height"][row]), int(table["width"][row])
        error = fault = mask = None
        try:
            mask = decode(raw)
            fault = fault_of(mask, *size) if mask else None
        except BROKEN_JSON as broken:
            error = broken
        if fault or error:
            mask, changes, fault, error = _repaired_mask(raw, size, rows.boxes[row].tolist(), fault, error)
            for change in changes:
                problems.repair(change.kind, rows.name_of(row), change.key, change.found, change.taken)
            if changes and mask:
                repaired[row] = msgspec.json.encode(mask)
        if error:
            reject_type(error, rows.name_of(row), problems.reject, within="segmentation")
            keep[row] = False
        elif fault:
            kind, key, expected, found, fix = fault
            problems.reject(kind, rows.name_of(row), key, expected, found, fix)
            keep[row] = False
        elif not mask:
            length[row] = 0
    if length[keep].any():
        for row in np.flatnonzero((length == 0) & ~table["iscrowd"] & keep).tolist():
            x, y, w, h = rows.boxes[row].tolist()
            repaired[row] = msgspec.json.encode([[x, y, x + w, y, x + w, y + h, x, y + h]])
            taken = "its box's rectangle"
            problems.repair("no_segmentation", rows.name_of(row), "segmentation", "no mask, as others have", taken)
    return repaired


def _repaired_mask(
    raw: Any, size: tuple[int, int], box: list[float], *faults: Any
) -> tuple[Any, list[Change], Any, Any]:
    """A faulty mask in its right spelling, and what was changed; else what is wrong with it: a fault or an error."""
    with contextlib.suppress(*BROKEN_JSON):
        found, changes = repair_mask(msgspec.json.decode(raw), size, box)
        if changes:
            try:
                mask = msgspec.convert(found, Mask)
                fault = fault_of(mask, *size) if mask else None
                return (mask, changes, None, None) if not fault else (None, [], fault, None)
            except msgspec.ValidationError as error:
                return None, [], None, error
    return None, [], *faults
