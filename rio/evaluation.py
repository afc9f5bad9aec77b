"""Results JSON -> AP table, by category and by frequency group: the LVIS protocol, to the bit.

hotcoco is the engine. It differs from the official `lvis` package in what it accepts silently and in the
order in which it caps and filters, so this module prepares both sides itself (`_prepare`) and hands over
plain arrays. Of masks it only computes the overlaps, while their file is read; matching and accumulating
them is done here. The official package stays available as `backend="lvis"`; the tests hold the two together,
precision array and all.

A result record is a dict with `image_id`, `category_id`, `score` and a `bbox` (XYWH, pixels), a
`segmentation` (a COCO RLE of the image's size), or both.

The protocol in short (Gupta et al., LVIS, arXiv 1908.03195, section 2): a category is judged in an image only
where the image is known to hold it (it has ground truth) or known not to (it is in `neg_category_ids`); in an
image where it is listed as not exhaustively annotated, an unmatched prediction counts as neither right nor
wrong.

COCO-format ground truth has no such lists. There every category counts as verified in every image; a crowd
region is no ground truth, and makes its category not exhaustively annotated in its image.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypedDict

import msgspec
import numpy as np
import pandas as pd

from rio.annotations import (
    Annotations,
    category_id_to_class_id,
    load_annotations,
    rle_counts,
    without_collection,
)

IOU_TYPES = ("bbox", "segm")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREA_LABELS = ("all", "small", "medium", "large")
_AREA_RANGES = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))  # square pixels

# A piece at a time: its Python objects are in the processor's cache until they are columns, and free again.
_CHUNK_BYTES = 1 << 20
_RECORDS_CHUNK = 1024
_RLE_CHUNK = 512


class ResultsError(ValueError):
    """Results that cannot be evaluated; the message says where, what was expected, found, and what to do."""


def _error(source: str, where: str, expected: str, found: str, remedy: str) -> ResultsError:
    return ResultsError(f"{source}: {where}: expected {expected}, found {found}. {remedy}")


# ------------------------------------------------------------------------------------------------------------
# Results: JSON or dicts -> columns
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Results:
    """Predictions as columns, checked against the ground truth they belong to; row order is the file's.

    N predictions.

    Attributes:
        source: the file's path, or "results" for a list.
        image_index: (N,) int32, index into `Annotations.image_ids`.
        class_id: (N,) int32, 0-based.
        scores: (N,) float64, finite.
        boxes: (N, 4) float64 XYWH, pixels; the masks' bounding boxes where the records carry no `bbox`.
        has_boxes: whether the records carry `bbox`.
        rles: N dicts {"size": (height, width), "counts": str}, or None where the records carry no
            `segmentation`.
        mask_areas: (N,) float64 pixels, or None.
        num_images: number of images of the ground truth.
    """

    source: str
    image_index: np.ndarray
    class_id: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    has_boxes: bool
    rles: list[dict[str, Any]] | None
    mask_areas: np.ndarray | None
    num_images: int

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def _by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows grouped by image in the file's order, and (I + 1,) offsets."""
        order = np.arange(len(self))
        # Results are nearly always in the images' order already.
        if len(self) and (np.diff(self.image_index) < 0).any():
            order = np.argsort(self.image_index, kind="stable")
        return order, np.searchsorted(self.image_index[order], np.arange(self.num_images + 1))

    def of_image(self, image_index: int) -> np.ndarray:
        """Rows of one image, highest score first, equal scores in the file's order: (n,) int64."""
        order, offsets = self._by_image
        rows = order[offsets[image_index] : offsets[image_index + 1]]
        return rows[np.argsort(-self.scores[rows], kind="stable")]

    def capped(self, max_dets: int) -> np.ndarray:
        """Rows among the `max_dets` highest-scoring ones of their image (-1: all), grouped by image."""
        order, offsets = self._by_image
        over = np.flatnonzero(np.diff(offsets) > max_dets) if max_dets >= 0 else []
        if not len(over):
            return order
        keep = np.ones(len(order), bool)
        for image in over.tolist():
            rows = order[offsets[image] : offsets[image + 1]]
            lowest = np.argsort(-self.scores[rows], kind="stable")[max_dets:]
            keep[offsets[image] + lowest] = False
        return order[keep]


_Side = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Run = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class _Rle(TypedDict):
    size: tuple[_Side, _Side]
    counts: str | list[_Run]


class _Record(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    score: float
    bbox: tuple[float, float, float, float] | None = None
    segmentation: _Rle | None = None


@dataclass
class _Columns:
    """What is collected from the records, chunk by chunk, before it is checked."""

    image_ids: list[np.ndarray] = field(default_factory=list)
    category_ids: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    rles: list[dict[str, Any]] = field(default_factory=list)
    num_records: int = 0
    has_boxes: bool = False
    has_masks: bool = False
    masks: _MaskReader | None = None  # is given the RLEs in the place of `rles`


@without_collection()
def load_results(
    results: str | os.PathLike[str] | Sequence[dict[str, Any]] | Results, annotations: Annotations
) -> Results:
    """Reads results and checks them against their ground truth.

    A file is decoded in pieces of 1 MB straight into columns, so that a file of millions of boxes needs
    little more memory than its columns.

    Args:
        results: path of a COCO-style results JSON, a list of such records, or `Results` (returned as they
            are).
        annotations: the ground truth; gives the known image and category ids.

    Returns:
        Results; may be empty.

    Raises:
        FileNotFoundError: no such file.
        ResultsError: not a list of records, a key is missing or of the wrong type, an unknown image or
            category id, a score or box that is not finite, a mask of another size than its image. Names the
            first record at fault.
    """
    if isinstance(results, Results):
        if results.num_images != len(annotations.image_ids):
            raise _error(
                results.source,
                "results",
                f"results loaded for {annotations.path}",
                "results loaded for another ground truth",
                "Load them again with load_results.",
            )
        return results
    if isinstance(results, (str, os.PathLike)):
        source = str(results)
        columns = _columns_of_file(Path(results))
    else:
        source = "results"
        if not isinstance(results, Sequence):
            raise _error(source, "top level", "a list of records", type(results).__name__, _LIST_REMEDY)
        columns = _columns_of_dicts(results, source)
    return _checked(columns, annotations, source)


_LIST_REMEDY = (
    "A results file is a list of {image_id, category_id, score, bbox and/or segmentation}; "
    "a ground-truth file is none."
)


def _columns_of_file(path: Path, masks: Callable[[], _MaskReader] | None = None) -> _Columns:
    """The columns of a file; `masks` makes who is given the RLEs, which are then not kept."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such results file. Expected the JSON that `python -m rio eval` or "
            "detectron2's evaluator wrote (instances_results.json)."
        )
    decoder = msgspec.json.Decoder(list[_Record])
    columns = _Columns(masks=masks and masks())
    piece = b""
    try:
        with path.open("rb") as file:
            for piece in _pieces(file):
                _collect_structs(columns, decoder.decode(piece))
        return columns
    except (
        msgspec.MsgspecError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
        UnicodeDecodeError,
    ) as error:
        # A piece ends where one record ends and the next begins, as far as the text shows. A string
        # that holds "},{" fools that, so the whole file is tried before anybody is blamed.
        first_record = columns.num_records
        columns = _Columns(masks=masks and masks())
        with contextlib.suppress(Exception):
            _collect_structs(columns, decoder.decode(path.read_bytes()))
            return columns
        raise _explain_json(str(path), piece, first_record, error) from None


def _pieces(file: io.BufferedIOBase) -> Iterator[bytes]:
    """A JSON list of objects as shorter JSON lists of the same objects."""
    buffer = b""
    while block := file.read(_CHUNK_BYTES):
        buffer += block
        if len(block) < _CHUNK_BYTES:
            continue
        start = len(buffer)
        while (start := buffer.rfind(b"{", 0, start)) > 0:
            boundary = re.search(rb"\}\s*,\s*$", buffer[max(0, start - 64) : start])
            if boundary is not None:
                end = max(0, start - 64) + boundary.start() + 1
                yield buffer[:end] + b"]"
                buffer = b"[" + buffer[start:]
                break
    yield buffer


_IMAGE_ID, _CATEGORY_ID, _SCORE, _BBOX, _SEGMENTATION = map(attrgetter, _Record.__struct_fields__)


def _collect_structs(columns: _Columns, records: list[_Record]) -> None:
    if not records:
        return
    if columns.num_records == 0:
        columns.has_boxes, columns.has_masks = (
            value is not None for value in (records[0].bbox, records[0].segmentation)
        )
    if not (columns.has_boxes or columns.has_masks):
        raise ValueError("neither a bbox nor a segmentation")
    n = len(records)
    # Without a look at each record in Python: both are of a type that is never empty, so true where they are.
    if not columns.has_boxes and any(map(_BBOX, records)):
        raise ValueError("a bbox after records without")
    if not columns.has_masks and any(map(_SEGMENTATION, records)):
        raise ValueError("a segmentation after records without")
    columns.image_ids.append(np.fromiter(map(_IMAGE_ID, records), np.int64, n))
    columns.category_ids.append(np.fromiter(map(_CATEGORY_ID, records), np.int64, n))
    columns.scores.append(np.fromiter(map(_SCORE, records), np.float64, n))
    if columns.has_boxes:  # one without a bbox is a TypeError: None is nothing to iterate over
        sides = itertools.chain.from_iterable(map(_BBOX, records))
        columns.boxes.append(np.fromiter(sides, np.float64, 4 * n).reshape(n, 4))
    if columns.has_masks:
        rles = list(map(_SEGMENTATION, records))
        if None in rles:
            raise ValueError("no segmentation after records with one")
        if columns.masks is None:
            columns.rles.extend(rles)
        else:
            columns.masks.read(columns, rles)
    columns.num_records += n


def _columns_of_dicts(records: Sequence[dict[str, Any]], source: str) -> _Columns:
    columns = _Columns()
    try:
        for start in range(0, len(records), _RECORDS_CHUNK):
            _collect_structs(columns, msgspec.convert(records[start : start + _RECORDS_CHUNK], list[_Record]))
        return columns
    except (msgspec.ValidationError, TypeError, ValueError, OverflowError, RecursionError):
        pass  # a real fault, or merely numpy numbers and bytes: look at each record
    for index, record in enumerate(records):
        fault = _fault_of(record)
        if fault is not None:
            raise _error(source, f"record {index}, {fault[0]}", *fault[1:])
        for key in ("bbox", "segmentation"):
            expected = records[0].get(key) is not None
            if (record.get(key) is not None) != expected:
                raise _mixed_error(source, index, key, expected)
    columns = _Columns()
    _collect_structs(columns, [_plain(record) for record in records])
    return columns


def _plain(record: dict[str, Any]) -> _Record:
    box, rle = record.get("bbox"), record.get("segmentation")
    if rle is not None:
        counts = rle["counts"]
        rle = {
            "size": tuple(rle["size"]),
            "counts": counts.decode("latin-1") if isinstance(counts, bytes) else counts,
        }
    return _Record(
        record["image_id"], record["category_id"], record["score"], None if box is None else tuple(box), rle
    )


def _mixed_error(source: str, index: int, key: str, expected: bool) -> ResultsError:
    found = ("no " if expected else "a ") + key
    return _error(
        source,
        f"record {index}, key '{key}'",
        f"{'a' if expected else 'no'} {key}, as in record 0",
        found,
        "Give every record the same keys, or evaluate the two kinds apart.",
    )


def _is_number(value: Any, kinds: tuple[type, ...] = (int, float, np.integer, np.floating)) -> bool:
    return isinstance(value, kinds) and not isinstance(value, (bool, np.bool_))


def _is_finite(value: Any) -> bool:
    try:
        return _is_number(value) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _fault_of(record: Any) -> tuple[str, str, str, str] | None:
    """The first thing wrong with one record: (key, expected, found, remedy), or None."""

    def shown(value: Any) -> str:
        try:
            text = repr(value)
        except ValueError:  # an integer of thousands of digits
            text = "a huge number"
        return text if len(text) <= 60 else text[:57] + "..."

    if not isinstance(record, dict):
        return "the record", "an object", shown(record), _LIST_REMEDY
    for key in ("image_id", "category_id"):
        value = record.get(key, None)
        if not _is_number(value, (int, np.integer)) or not -(2**63) <= value < 2**63:
            found = "nothing" if key not in record else shown(value)
            return f"key '{key}'", "an integer", found, f"Write the {key} of the ground-truth file."
    score = record.get("score")
    if not _is_finite(score):
        found = "nothing" if "score" not in record else shown(score)
        return (
            "key 'score'",
            "a finite number",
            found,
            "A NaN score comes from a diverged model; leave such predictions out.",
        )
    box, mask = record.get("bbox"), record.get("segmentation")
    if box is None and mask is None:
        return (
            "keys 'bbox' and 'segmentation'",
            "at least one of them",
            "neither",
            "Write boxes (XYWH) or RLE masks.",
        )
    if box is not None:
        if not isinstance(box, (list, tuple, np.ndarray)) or len(box) != 4:
            return (
                "key 'bbox'",
                "four numbers [x, y, width, height]",
                shown(box),
                "Write boxes as XYWH in pixels.",
            )
        if not all(_is_finite(v) for v in box):
            return (
                "key 'bbox'",
                "four finite numbers",
                shown(box),
                "Leave predictions without a finite box out.",
            )
    if mask is not None:
        remedy = "Encode masks with pycocotools.mask.encode and decode the counts to str."
        if not isinstance(mask, dict) or "size" not in mask or "counts" not in mask:
            return "key 'segmentation'", "an RLE object {size, counts}", shown(mask), remedy
        size, counts = mask["size"], mask["counts"]
        if (
            not isinstance(size, (list, tuple))
            or len(size) != 2
            or not all(_is_number(v, (int, np.integer)) and 0 <= v < 2**31 for v in size)
        ):
            return "key 'segmentation.size'", "[height, width]", shown(size), remedy
        if isinstance(counts, list):
            if not all(_is_number(v, (int, np.integer)) and 0 <= v < 2**32 for v in counts):
                return "key 'segmentation.counts'", "non-negative integers", shown(counts), remedy
        elif not isinstance(counts, (str, bytes)):
            return "key 'segmentation.counts'", "a string", shown(counts), remedy
    return None


def _explain_json(source: str, piece: bytes, first_record: int, error: Exception) -> ResultsError:
    """Turns a failed decode into the record and key at fault; slow and thorough, as it runs once."""
    if not piece.strip():
        return _error(
            source,
            "top level",
            "a list of records",
            "an empty file",
            "The run that wrote it was cut off; evaluate again.",
        )
    try:
        # json accepts NaN and Infinity, which Python's own json.dump writes and which are no JSON.
        records = json.loads(piece)
    except (ValueError, RecursionError) as cause:
        where = f"after record {first_record - 1}" if first_record else "top level"
        return _error(
            source,
            where,
            "JSON",
            f"text that is none ({type(cause).__name__}: {cause})",
            "The file is truncated or not a results file; write it again.",
        )
    if not isinstance(records, list):
        found = (
            f"an object with the keys {sorted(records)[:5]}"
            if isinstance(records, dict)
            else type(records).__name__
        )
        return _error(source, "top level", "a list of records", found, _LIST_REMEDY)
    for index, record in enumerate(records):
        fault = _fault_of(record)
        if fault is not None:
            return _error(source, f"record {first_record + index}, {fault[0]}", *fault[1:])
    if not first_record:
        for index, record in enumerate(records):
            for key in ("bbox", "segmentation"):
                expected = records[0].get(key) is not None
                if (record.get(key) is not None) != expected:
                    return _mixed_error(source, index, key, expected)
    return _error(
        source,
        f"records {first_record} to {first_record + len(records) - 1}",
        "records that all have the same keys and types",
        str(error),
        _LIST_REMEDY,
    )


def _checked(columns: _Columns, annotations: Annotations, source: str) -> Results:
    n = columns.num_records

    def joined(parts: list[np.ndarray], dtype: type, width: int = 0) -> np.ndarray:
        column = np.concatenate(parts) if parts else np.empty((0, width) if width else 0, dtype)
        parts.clear()  # millions of boxes are not held twice
        return column

    image_ids, category_ids = joined(columns.image_ids, np.int64), joined(columns.category_ids, np.int64)
    scores, boxes = joined(columns.scores, np.float64), joined(columns.boxes, np.float64, 4)
    _require(
        np.isfinite(scores),
        source,
        "key 'score'",
        "a finite number",
        scores,
        "A NaN score comes from a diverged model; leave such predictions out.",
    )
    for key, ids, known in (
        ("image_id", image_ids, annotations.image_ids),
        ("category_id", category_ids, annotations.category_ids),
    ):
        _require(
            _are_in(ids, known),
            source,
            f"key '{key}'",
            f"one of the {len(known)} ids in {annotations.path}",
            ids,
            "These are results for another data set, or 0-based class ids were written; evaluate them with "
            "the ground truth they were made for.",
        )
    # Rows one by one only where the whole is not right at once: a tenth of the time.
    if not np.isfinite(boxes).all():
        _require(
            np.isfinite(boxes).all(1),
            source,
            "key 'bbox'",
            "four finite numbers",
            boxes,
            "Leave predictions without a finite box out.",
        )
    if not (boxes[:, 2:] >= 0).all():
        # Two negative sides have a positive area and would be evaluated; one negative side is dropped later.
        _require(
            (boxes[:, 2:] >= 0).any(1),
            source,
            "key 'bbox'",
            "a width and height of at least 0",
            boxes,
            "Write boxes as [x, y, width, height], not as corners.",
        )
    # image_ids are sorted (Annotations), so a binary search is the lookup
    image_index = np.searchsorted(annotations.image_ids, image_ids).astype(np.int32)
    class_id = np.asarray(category_id_to_class_id(annotations.category_ids, category_ids), np.int32)
    rles = mask_areas = None
    has_boxes = columns.has_boxes or not n
    if columns.has_masks and columns.masks is not None:
        mask_areas = joined(columns.masks.areas, np.float64)
    elif columns.has_masks:
        rles = columns.rles
        mask_areas = _check_masks(rles, 0, image_index, annotations, source)
        if not has_boxes:
            boxes = _boxes_of_masks(rles)
    return Results(
        source, image_index, class_id, scores, boxes, has_boxes, rles, mask_areas, len(annotations.image_ids)
    )


def _require(good: np.ndarray, source: str, key: str, expected: str, values: np.ndarray, remedy: str) -> None:
    if good.all():
        return
    first = int(np.argmin(good))
    found = f"{values[first].tolist()!r} (and {int((~good).sum()) - 1} more like it)"
    raise _error(source, f"record {first}, {key}", expected, found, remedy)


def _check_masks(
    rles: list[dict[str, Any]], first: int, image_index: np.ndarray, annotations: Annotations, source: str
) -> np.ndarray:
    """Checks that every RLE describes exactly its image's pixels; returns the masks' areas (n,) float64.

    The C and Rust decoders trust the runs: a mask of another size gives wrong overlaps in silence, or worse.
    Runs given as numbers are put into COCO's string in place. `first` is the first one's record.
    """
    import hotcoco

    n = len(rles)
    remedy = "Masks must be encoded at the size of their image; were they made for resized images?"
    heights, widths = annotations.image_height[image_index], annotations.image_width[image_index]
    for row, (rle, size) in enumerate(zip(rles, zip(heights.tolist(), widths.tolist()), strict=True)):
        if rle["size"] != size:
            raise _error(
                source,
                f"record {first + row}, key 'segmentation.size'",
                f"{list(size)} [height, width]",
                str(list(rle["size"])),
                remedy,
            )
    all_pixels = heights.astype(np.float64) * widths
    areas = np.empty(n)
    for start in range(0, n, _RLE_CHUNK):
        part = rles[start : start + _RLE_CHUNK]
        strings = [rle["counts"] for rle in part]
        for offset, counts in enumerate(strings):
            if isinstance(counts, list):
                where = f"record {first + start + offset}"
                rles[start + offset] = part[offset] = _compressed(part[offset], where, source)
                strings[offset] = part[offset]["counts"]
        pixels = all_pixels[start : start + len(part)]
        totals, refused = _rle_totals(strings), "text that is none"
        try:
            areas[start : start + len(part)] = hotcoco.mask.area(part)
        except ValueError as error:  # runs that are negative or beyond the image
            totals, refused = None, str(error)
        if totals is None or (totals != pixels).any():
            for offset, counts in enumerate(strings):
                where = f"record {first + start + offset}, key 'segmentation.counts'"
                try:
                    total = int(rle_counts(counts).sum())
                except ValueError as error:
                    raise _error(source, where, "an RLE string", str(error), remedy) from None
                if total != pixels[offset]:
                    raise _error(
                        source, where, f"runs of {pixels[offset]:.0f} pixels in all", str(total), remedy
                    )
            where = f"records {first + start} to {first + start + len(part) - 1}, key 'segmentation.counts'"
            raise _error(source, where, "RLE strings", refused, remedy)
    return areas


def _boxes_of_masks(rles: list[dict[str, Any]]) -> np.ndarray:
    """(n, 4) float64 XYWH."""
    import hotcoco

    return hotcoco.mask.toBbox(rles) if rles else np.empty((0, 4))


def _compressed(rle: dict[str, Any], where: str, source: str) -> dict[str, Any]:
    import hotcoco

    height, width = rle["size"]
    if min(rle["counts"], default=0) < 0:
        raise _error(
            source,
            f"{where}, key 'segmentation.counts'",
            "non-negative integers",
            str(min(rle["counts"])),
            "Encode masks with pycocotools.mask.encode and decode the counts to str.",
        )
    if sum(rle["counts"]) != height * width:
        raise _error(
            source,
            f"{where}, key 'segmentation.counts'",
            f"runs of {height * width} pixels in all",
            str(sum(rle["counts"])),
            "Masks must be encoded at the size of their image.",
        )
    packed = hotcoco.mask.frPyObjects({"size": [height, width], "counts": rle["counts"]}, height, width)
    return {"size": (height, width), "counts": packed["counts"].decode("ascii")}


def _rle_totals(strings: Sequence[str]) -> np.ndarray | None:
    """How many pixels each compressed COCO RLE describes, without decoding it: (n,) int64; None: not RLEs.

    All strings at once; `annotations.rle_counts` reads one of them, and describes the format. A total is
    right where no run is negative, which is not seen here.

    >>> _rle_totals(["042", "04"])  # an image of six pixels; a mask that stops short
    array([6, 4])
    """
    lengths = np.fromiter(map(len, strings), np.int64, len(strings))
    try:
        text = np.frombuffer("".join(strings).encode("ascii"), np.uint8)
    except UnicodeEncodeError:
        return None
    digits = text - np.uint8(48)  # wraps round below "0"
    string_ends = np.cumsum(lengths) - 1
    if not len(strings) or lengths.min() == 0 or digits.max() > 63 or (digits[string_ends] & 32).any():
        return None
    run_ends = np.flatnonzero(digits < 32)  # 32: more digits follow
    size = np.diff(run_ends, prepend=-1)
    if size.max() > 7:
        return None
    value = (digits[run_ends] ^ 16).astype(np.int64) - 16  # the highest digit, of two's complement
    place, longer = 1, np.flatnonzero(size > 1)
    while len(longer):
        value[longer] = value[longer] << 5 | digits[run_ends[longer] - place] & 31
        place += 1
        longer = longer[size[longer] > place]
    # From the fourth run on, a run is written as its difference from the run two before. So a number counts
    # once for its own run and once for every second one after it; the first run's is no other's base.
    last = np.searchsorted(run_ends, string_ends)
    first = np.concatenate([[0], last[:-1] + 1])
    times = ((np.repeat(last, last - first + 1) - np.arange(len(value))) >> 1) + 1
    times[first] = 1
    return np.add.reduceat(value * times, first)


# ------------------------------------------------------------------------------------------------------------
# The protocol
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Verified:
    """Which (image, class) pairs a prediction can be judged in; a pair's key is image_index * K + class_id.

    Attributes:
        num_classes: K.
        ground_truth: (A,) bool, the annotations that are ground truth (an area above 0; in COCO format no
            crowd region).
        positive: sorted unique int64 keys with ground truth.
        negative: sorted unique int64 keys verified to be absent; None where every pair is verified (COCO
            format).
        not_exhaustive: sorted unique int64 keys in which unmatched predictions are ignored.
    """

    num_classes: int
    ground_truth: np.ndarray
    positive: np.ndarray
    negative: np.ndarray | None
    not_exhaustive: np.ndarray

    @classmethod
    def of(cls, annotations: Annotations) -> Verified:
        """Reads the verified pairs off the ground truth."""
        num_classes = len(annotations.category_ids)
        keys = annotations.annotation_image.astype(np.int64) * num_classes + annotations.annotation_class
        ground_truth = (annotations.areas > 0) & (annotations.areas < np.inf)
        if annotations.federated:
            # LVIS knows no crowd regions: the official code takes every annotation as an object
            negative = _listed_keys(annotations, annotations.neg_category_ids)
            not_exhaustive = _listed_keys(annotations, annotations.not_exhaustive_category_ids)
        else:
            negative, not_exhaustive = None, np.unique(keys[annotations.iscrowd])
            ground_truth &= ~annotations.iscrowd
        return cls(num_classes, ground_truth, np.unique(keys[ground_truth]), negative, not_exhaustive)

    def keys(self, image_index: np.ndarray, class_id: np.ndarray) -> np.ndarray:
        """(N,) int64 keys of (image, class) pairs."""
        return image_index.astype(np.int64) * self.num_classes + class_id

    def is_judged(self, keys: np.ndarray) -> np.ndarray:
        """(N,) bool: predictions of these pairs enter the evaluation at all."""
        if self.negative is None:
            return np.ones(len(keys), bool)
        return _are_in(keys, self.positive) | _are_in(keys, self.negative)

    def counts_if_unmatched(self, keys: np.ndarray) -> np.ndarray:
        """(N,) bool: an unmatched prediction of these pairs is a false positive."""
        return self.is_judged(keys) & ~_are_in(keys, self.not_exhaustive)


def _are_in(keys: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """`np.isin`, which sorts `ascending` anew or makes a table of it: worth it for many keys only."""
    if len(keys) > 1 << 16:
        return np.isin(keys, ascending)
    if not len(ascending):
        return np.zeros(len(keys), bool)
    return ascending.take(np.searchsorted(ascending, keys), mode="clip") == keys


def _listed_keys(annotations: Annotations, lists: Sequence[Sequence[int]]) -> np.ndarray:
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    ids = np.fromiter(itertools.chain.from_iterable(lists), np.int64, int(lengths.sum()))
    image_index = np.repeat(np.arange(len(lists)), lengths)
    known = np.isin(
        ids, annotations.category_ids
    )  # an id the file does not declare can have no prediction either
    class_ids = category_id_to_class_id(annotations.category_ids, ids[known])
    return np.unique(image_index[known] * len(annotations.category_ids) + np.asarray(class_ids, np.int64))


def _keys_to_lists(keys: np.ndarray, num_images: int, num_classes: int) -> list[list[int]]:
    """Keys as one list per image of 1-based class numbers (what both engines are given for category ids)."""
    offsets = np.searchsorted(keys, np.arange(num_images + 1) * num_classes)
    numbers = (keys % num_classes + 1).tolist() if num_classes else []
    return [numbers[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


@without_collection()
def evaluate(
    annotations: Annotations | str | os.PathLike[str],
    results: Sequence[dict[str, Any]] | str | os.PathLike[str] | Results,
    *,
    iou_types: Sequence[str] | None = IOU_TYPES,
    max_dets: int = 300,
    backend: str = "hotcoco",
    allow_empty: bool = False,
) -> Evaluation:
    """LVIS AP of results, equal to the official `lvis` package to the last bit.

    Args:
        annotations: the ground truth, or the path of its JSON.
        results: path of a results JSON, list of records, or loaded `Results`.
        iou_types: of "bbox" and "segm"; None: whatever the results carry.
        max_dets: highest-scoring predictions kept per image, all categories together; -1 keeps all.
        backend: "hotcoco", or "lvis": the official package (slow, memory-hungry; `pip install lvis`).
        allow_empty: accept results without a single prediction (an AP of 0) in place of raising.

    Returns:
        Evaluation, in percent; NaN where there is no ground truth to judge by.

    Raises:
        ResultsError: results that cannot be evaluated (see `load_results`); empty ones; "segm" asked for but
            no masks in them (pass `iou_types=("bbox",)`).
        ValueError: an unknown IoU type or backend.
    """
    if not isinstance(annotations, Annotations):
        masks = iou_types is None or "segm" in iou_types
        annotations = load_annotations(annotations, segmentations=masks)
    if backend not in ("hotcoco", "lvis"):
        raise ValueError(f"backend: expected 'hotcoco' or 'lvis', found {backend!r}.")
    if isinstance(max_dets, bool) or not isinstance(max_dets, int) or (max_dets < 1 and max_dets != -1):
        raise ValueError(f"max_dets: expected a positive integer or -1 (all), found {max_dets!r}.")
    unknown_groups = set(np.unique(annotations.frequency).tolist()) - {"r", "c", "f"}
    if unknown_groups:
        raise ValueError(
            f"{annotations.path}: categories, key 'frequency': expected 'r', 'c' or 'f', found "
            f"{sorted(unknown_groups)}. Correct the file, or leave the key out to have groups derived."
        )
    verified = Verified.of(annotations)
    loaded = overlaps = None
    if backend == "hotcoco" and isinstance(results, (str, os.PathLike)):
        loaded, overlaps = _read_once(results, annotations, verified, iou_types or IOU_TYPES)
    if loaded is None:
        loaded = load_results(results, annotations)
    has_masks = loaded.mask_areas is not None
    if not len(loaded) and not allow_empty:
        raise _error(
            loaded.source,
            "top level",
            "at least one prediction",
            "an empty list",
            "The model predicted nothing: is it trained, and MODEL.ROI_HEADS.SCORE_THRESH_TEST low enough? "
            "allow_empty=True evaluates it as 0.",
        )
    if iou_types is None:
        iou_types = [t for t, there in (("bbox", True), ("segm", has_masks)) if there]
    for iou_type in iou_types:
        if iou_type not in IOU_TYPES:
            raise ValueError(f"iou_types: expected a selection of {IOU_TYPES}, found {iou_type!r}.")
        if iou_type == "segm" and len(loaded) and not has_masks:
            raise _error(
                loaded.source,
                "record 0, key 'segmentation'",
                "an RLE mask",
                "nothing",
                "Evaluate boxes only with iou_types=('bbox',), or write masks.",
            )
    precision, counts = {}, {}
    for iou_type in iou_types:
        prepared = _prepare(annotations, verified, loaded, iou_type, max_dets)
        if not len(prepared.rows) or not prepared.ground_truth.any():
            precision[iou_type] = _precision_without_predictions(annotations, prepared)
        elif backend == "lvis":
            precision[iou_type] = _lvis_precision(annotations, verified, loaded, iou_type, max_dets)
        elif iou_type == "bbox":
            precision[iou_type] = _hotcoco_precision(annotations, loaded, prepared)
        else:
            if overlaps is None:
                overlaps = _MaskOverlaps(annotations, verified)
                everything = np.arange(len(loaded))
                overlaps.add(
                    everything, loaded.image_index, loaded.class_id, loaded.rles, loaded.mask_areas
                )
            precision[iou_type] = _precision(annotations, verified, loaded, prepared, overlaps)
        counts[iou_type] = {"judged": len(prepared.rows), **prepared.dropped}
        del prepared
    source, num_predictions = loaded.source, len(loaded)
    del loaded, overlaps, results  # room for the summary
    return _summary(annotations, source, num_predictions, precision, counts, backend, max_dets)


@dataclass
class _Prepared:
    """Both sides as an engine gets them. Ids: image_index + 1, class_id + 1."""

    ground_truth: np.ndarray  # (A,) bool
    rows: np.ndarray  # (n,) rows of the results that are judged, grouped by image, else in the file's order
    areas: np.ndarray  # (n,) float64
    negatives: list[list[int]]
    not_exhaustive: list[list[int]]
    dropped: dict[str, int]


def _prepare(
    annotations: Annotations, verified: Verified, results: Results, iou_type: str, max_dets: int
) -> _Prepared:
    """The official package's order of steps: cap, then area, then federation."""
    rows = results.capped(max_dets)
    capped = len(results) - len(rows)
    # A mask's area for "segm" whether or not a bbox stands beside it (detectron2 strips the bbox for that
    # reason); for "bbox" w * h, unless the records carry masks only.
    if iou_type == "bbox" and results.has_boxes:
        areas = results.boxes[rows, 2] * results.boxes[rows, 3]
    else:
        areas = results.mask_areas[rows] if results.mask_areas is not None else np.empty(0)
    keep = (areas > 0) & (areas < np.inf)
    keys = verified.keys(results.image_index[rows], results.class_id[rows])
    judged = verified.is_judged(keys)
    dropped = {
        "over_max_dets": capped,
        "without_area": int((judged & ~keep).sum()),
        "unverified": int((~judged).sum()),
    }
    keep &= judged
    rows, areas, keys = rows[keep], areas[keep], keys[keep]
    num_images, num_classes = len(annotations.image_ids), len(annotations.category_ids)
    # Only pairs with predictions matter: full lists would be images x categories long for COCO-format data.
    predicted = np.unique(keys)
    negative = predicted if verified.negative is None else np.intersect1d(predicted, verified.negative)
    not_exhaustive = np.intersect1d(predicted, verified.not_exhaustive)
    return _Prepared(
        verified.ground_truth,
        rows,
        areas,
        _keys_to_lists(negative, num_images, num_classes),
        _keys_to_lists(not_exhaustive, num_images, num_classes),
        dropped,
    )


def _image_records(
    annotations: Annotations, negatives: list[list[int]], not_exhaustive: list[list[int]]
) -> list[dict]:
    columns = zip(
        annotations.image_width.tolist(),
        annotations.image_height.tolist(),
        negatives,
        not_exhaustive,
        strict=True,
    )
    return [
        {"id": i + 1, "width": w, "height": h, "neg_category_ids": neg, "not_exhaustive_category_ids": nel}
        for i, (w, h, neg, nel) in enumerate(columns)
    ]


def _category_records(annotations: Annotations) -> list[dict]:
    return [
        {"id": k + 1, "name": str(k), "frequency": f} for k, f in enumerate(annotations.frequency.tolist())
    ]


def _hotcoco_precision(annotations: Annotations, results: Results, prepared: _Prepared) -> np.ndarray:
    """Of boxes: the engine overlaps, matches and accumulates."""
    import hotcoco

    objects = np.flatnonzero(prepared.ground_truth)
    ground_truth = hotcoco.COCO.from_arrays(
        _image_records(annotations, prepared.negatives, prepared.not_exhaustive),
        _category_records(annotations),
        annotations.annotation_image[objects].astype(np.int64) + 1,
        annotations.annotation_class[objects].astype(np.int64) + 1,
        np.ascontiguousarray(annotations.boxes[objects]),
        ids=np.arange(1, len(objects) + 1),
        area=annotations.areas[objects],
    )
    rows = prepared.rows
    predictions = ground_truth.load_res(_table(results, rows))
    if not results.has_boxes:
        predictions.update_anns(ids=np.arange(1, len(rows) + 1), area=prepared.areas)
    # The cap is applied already; None tells the engine not to apply its own.
    evaluator = hotcoco.LVISeval(ground_truth, predictions.cap_detections_per_image(None), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["precision"].reshape(
        len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), -1, len(AREA_LABELS)
    )


def _table(results: Results, rows: np.ndarray) -> np.ndarray:
    """(n, 7) float64: image, x, y, width, height, score, class; 1-based."""
    table = np.empty((len(rows), 7))
    table[:, 0] = results.image_index[rows] + 1
    table[:, 1:5] = results.boxes[rows]
    table[:, 5] = results.scores[rows]
    table[:, 6] = results.class_id[rows] + 1
    return table


def _segmentation(annotations: Annotations, index: int) -> Any:
    segmentation = annotations.segmentation(index)
    if segmentation is None:
        raise ValueError(
            f"{annotations.path}: annotation {int(annotations.annotation_ids[index])}, key 'segmentation': "
            "expected polygons or an RLE, found nothing. Evaluate boxes only with iou_types=('bbox',), or "
            "load the annotations with segmentations=True."
        )
    return segmentation


def _precision_without_predictions(annotations: Annotations, prepared: _Prepared) -> np.ndarray:
    """As `lvis` has it: 0 for every class with ground truth in an area range, -1 for the others."""
    precision = np.full(
        (len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), len(annotations.category_ids), len(AREA_LABELS)), -1.0
    )
    areas = annotations.areas[prepared.ground_truth]
    classes = annotations.annotation_class[prepared.ground_truth]
    for column, (low, high) in enumerate(_AREA_RANGES):
        precision[:, :, np.unique(classes[(areas >= low) & (areas <= high)]), column] = 0
    return precision


def _lvis_precision(
    annotations: Annotations, verified: Verified, results: Results, iou_type: str, max_dets: int
) -> np.ndarray:
    """The official package on the same columns; it caps, filters and matches by itself."""
    try:
        import lvis
    except ImportError as error:
        raise ImportError("backend='lvis' needs the official package: pip install lvis==0.5.3") from error
    objects = np.flatnonzero(verified.ground_truth)
    predicted = np.unique(verified.keys(results.image_index, results.class_id))
    shape = len(annotations.image_ids), len(annotations.category_ids)
    negatives = _keys_to_lists(predicted if verified.negative is None else verified.negative, *shape)
    ground_truth = lvis.LVIS.__new__(lvis.LVIS)  # its constructor takes a path only
    ground_truth.logger = _quiet_logger()
    ground_truth.dataset = {
        "images": _image_records(annotations, negatives, _keys_to_lists(verified.not_exhaustive, *shape)),
        "categories": _category_records(annotations),
        "annotations": [
            {
                "id": number + 1,
                "image_id": int(annotations.annotation_image[a]) + 1,
                "category_id": int(annotations.annotation_class[a]) + 1,
                "bbox": annotations.boxes[a].tolist(),
                "area": float(annotations.areas[a]),
                **({"segmentation": _segmentation(annotations, a)} if iou_type == "segm" else {}),
            }
            for number, a in enumerate(objects.tolist())
        ],
    }
    ground_truth._create_index()
    as_boxes = iou_type == "bbox" and results.has_boxes
    records = [
        {
            "image_id": image + 1,
            "category_id": category + 1,
            "score": score,
            **({"bbox": results.boxes[i].tolist()} if as_boxes else {"segmentation": results.rles[i]}),
        }
        for i, (image, category, score) in enumerate(
            zip(results.image_index.tolist(), results.class_id.tolist(), results.scores.tolist(), strict=True)
        )
    ]
    with _numpy_float():
        evaluator = lvis.LVISEval(
            ground_truth, lvis.LVISResults(ground_truth, records, max_dets=max_dets), iou_type
        )
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"]


def _quiet_logger() -> Any:
    import logging

    return logging.getLogger("lvis.quiet")


@contextlib.contextmanager
def _numpy_float() -> Iterator[None]:
    """lvis 0.5.3 writes `np.float`, which NumPy 1.24 removed: lend it the name for as long as it runs."""
    if "float" in vars(np):
        yield
        return
    np.float = float
    try:
        yield
    finally:
        del np.float


# ------------------------------------------------------------------------------------------------------------
# Masks: overlaps as the file is read, then matching and accumulating
# ------------------------------------------------------------------------------------------------------------
#
# A mask is needed only to find which objects it overlaps by the least threshold, 0.5, or more: a handful of
# numbers. So the masks of a file are checked and compared piece by piece, and never held.


class _MaskOverlaps:
    """Which predictions overlap which objects of their image and class by at least `IOU_THRESHOLDS[0]`."""

    def __init__(self, annotations: Annotations, verified: Verified) -> None:
        self.annotations, self.verified = annotations, verified
        objects = np.flatnonzero(verified.ground_truth)
        keys = verified.keys(annotations.annotation_image[objects], annotations.annotation_class[objects])
        order = np.argsort(keys, kind="stable")
        self.objects, self.keys = objects[order], keys[order]
        self.masks: dict[int, list[dict[str, Any]]] = {}  # of an image and class, by its first object
        self.found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(
        self,
        rows: np.ndarray,
        image_index: np.ndarray,
        class_id: np.ndarray,
        rles: Sequence[dict[str, Any]],
        areas: np.ndarray,
    ) -> None:
        """Compares the next n predictions, `rows` of the results, with the ground truth."""
        from pycocotools import mask as coco_mask

        keys = self.verified.keys(image_index, class_id)
        order = np.argsort(keys, kind="stable")
        order = order[areas[order] > 0]
        keys = keys[order]
        begins = np.flatnonzero(np.diff(keys, prepend=-1))
        ends = np.append(begins[1:], len(keys))
        lows, highs = (np.searchsorted(self.keys, keys[begins], side) for side in ("left", "right"))
        there = lows < highs
        begins, ends, lows, highs = (array[there] for array in (begins, ends, lows, highs))
        ordered = [rles[i] for i in order.tolist()]
        ious = [np.empty(0)]
        for begin, end, low, high in zip(*map(np.ndarray.tolist, (begins, ends, lows, highs)), strict=True):
            truth = self._masks_of(low, high)
            # The masks are checked, so C may walk their runs: a third faster than the engine.
            ious.append(coco_mask.iou(ordered[begin:end], truth, [0] * len(truth)).ravel(order="F"))
        # Of all groups at once: which are close, and of whom.
        flat = np.concatenate(ious)
        close = np.flatnonzero(flat >= IOU_THRESHOLDS[0])
        firsts = np.cumsum((ends - begins) * (highs - lows)) - (ends - begins) * (highs - lows)
        group = np.searchsorted(firsts, close, side="right") - 1
        of_object, of_row = np.divmod(close - firsts[group], (ends - begins)[group])
        objects = self.objects[lows[group] + of_object]
        self.found.append((rows[order[begins[group] + of_row]], objects, flat[close]))

    def _masks_of(self, low: int, high: int) -> list[dict[str, Any]]:
        if low not in self.masks:
            self.masks[low] = [self._mask(a) for a in self.objects[low:high].tolist()]
        return self.masks[low]

    def _mask(self, index: int) -> dict[str, Any]:
        import hotcoco

        segmentation = _segmentation(self.annotations, index)
        image = self.annotations.annotation_image[index]
        size = int(self.annotations.image_height[image]), int(self.annotations.image_width[image])
        mask = hotcoco.mask.frPyObjects(segmentation, *size)
        if isinstance(mask, dict):
            return mask
        return mask[0] if len(mask) == 1 else hotcoco.mask.merge(mask)

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(m,) rows of the results, (m,) annotation indices, (m,) float64 IoUs."""
        none = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
        columns = tuple(np.concatenate(parts) for parts in zip(none, *self.found, strict=True))
        self.masks, self.found = {}, [columns]
        return columns


class _MaskReader:
    """Checks, measures and compares masks as they are read, for `_columns_of_file`.

    Where a prediction is not judged, as its category was not looked for in the image, only the size is looked
    at of a mask beside a box: it has no part in the evaluation.
    """

    def __init__(
        self,
        annotations: Annotations,
        verified: Verified,
        source: str,
        overlaps: _MaskOverlaps | None,
        *,
        keep_boxes: bool,
    ) -> None:
        self.annotations, self.verified = annotations, verified
        self.source, self.overlaps, self.keep_boxes = source, overlaps, keep_boxes
        self.areas: list[np.ndarray] = []

    def read(self, columns: _Columns, rles: list[dict[str, Any]]) -> None:
        """Takes the masks of the records whose ids are the last ones in `columns`."""
        image_index = self._index(columns.image_ids[-1], self.annotations.image_ids)
        class_id = self._index(columns.category_ids[-1], self.annotations.category_ids)
        first = columns.num_records
        if columns.has_boxes:  # else a mask says where a prediction is, also of those that are not judged
            judged = np.flatnonzero(self.verified.is_judged(self.verified.keys(image_index, class_id)))
            rles = [rles[row] for row in judged.tolist()]
            image_index, class_id = image_index[judged], class_id[judged]
        else:
            judged = np.arange(len(rles))
        if columns.has_boxes and not self.keep_boxes:
            boxes = columns.boxes.pop()
            if not (np.isfinite(boxes).all() and (boxes[:, 2:] >= 0).any(1).all()):
                raise ResultsError("a box")
        measured = _check_masks(rles, first, image_index, self.annotations, self.source)
        areas = np.ones(len(columns.image_ids[-1]))
        areas[judged] = measured
        self.areas.append(areas)
        if not columns.has_boxes:
            columns.boxes.append(_boxes_of_masks(rles))
        if self.overlaps is not None:
            self.overlaps.add(first + judged, image_index, class_id, rles, measured)

    @staticmethod
    def _index(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
        index = np.searchsorted(known, ids)
        if not len(known) or (known.take(index, mode="clip") != ids).any():
            raise ResultsError("an unknown id")
        return index


def _read_once(
    path: str | os.PathLike[str], annotations: Annotations, verified: Verified, iou_types: Sequence[str]
) -> tuple[Results | None, _MaskOverlaps | None]:
    """A file's results without their masks, and what these overlap; (None, None) where anything is wrong.

    What is wrong, `load_results` says, which reads all before it judges. Boxes are checked, and left out
    unless asked for.
    """
    masks = "segm" in iou_types
    made: list[_MaskReader] = []

    def reader() -> _MaskReader:
        overlaps = _MaskOverlaps(annotations, verified) if masks and annotations.has_segmentations else None
        made.append(_MaskReader(annotations, verified, str(path), overlaps, keep_boxes="bbox" in iou_types))
        return made[-1]

    try:
        results = _checked(_columns_of_file(Path(path), reader), annotations, str(path))
    except ResultsError:
        return None, None
    return results, made[-1].overlaps


_ALL_BITS = np.uint64((1 << (len(AREA_LABELS) * len(IOU_THRESHOLDS))) - 1)


def _bits_of_areas(areas: np.ndarray) -> np.ndarray:
    """(n,) uint64: of each area range that an area is in, all thresholds' bits."""
    bits = np.zeros(len(areas), np.uint64)
    for number, (low, high) in enumerate(_AREA_RANGES):
        of_range = ((1 << len(IOU_THRESHOLDS)) - 1) << (number * len(IOU_THRESHOLDS))
        bits[(areas >= low) & (areas <= high)] |= np.uint64(of_range)
    return bits


def _bits_of_ious(ious: np.ndarray) -> np.ndarray:
    """(n,) uint64: of each threshold that an IoU reaches, all area ranges' bits."""
    reached = [
        sum(((1 << count) - 1) << (a * len(IOU_THRESHOLDS)) for a in range(len(AREA_LABELS)))
        for count in range(len(IOU_THRESHOLDS) + 1)
    ]
    return np.array(reached, np.uint64)[np.searchsorted(IOU_THRESHOLDS, ious, side="right")]


def _precision(
    annotations: Annotations,
    verified: Verified,
    results: Results,
    prepared: _Prepared,
    overlaps: _MaskOverlaps,
) -> np.ndarray:
    """The precision array, (T, R, K, area ranges), by the official package's rules and arithmetic.

    It decides everything once for each of the 10 thresholds and 4 area ranges. Here these 40 decisions are
    the bits of one number: bit `area range * 10 + threshold`.
    """
    # The order in which predictions count: by class, by score, ties by image, then by place in the file.
    order = np.lexsort((-results.scores[prepared.rows], results.class_id[prepared.rows]))
    rows = prepared.rows[order]
    position = np.full(len(results), -1)
    position[rows] = np.arange(len(rows))
    found, objects, ious = overlaps.columns()
    judged = position[found] >= 0
    inside = _bits_of_areas(annotations.areas)
    matched, ignored = _match(
        len(rows), position[found[judged]], objects[judged], ious[judged], inside, annotations, verified
    )
    class_id = results.class_id[rows]
    excused = ~_bits_of_areas(prepared.areas[order]) & _ALL_BITS
    keys = verified.keys(results.image_index[rows], class_id)
    excused[_are_in(keys, verified.not_exhaustive)] = _ALL_BITS
    ignored |= ~matched & excused
    num_objects = np.zeros((len(AREA_LABELS), len(annotations.category_ids)), np.int64)
    for number in range(len(AREA_LABELS)):
        counted = verified.ground_truth & (inside >> np.uint64(number * len(IOU_THRESHOLDS)) & 1).astype(bool)
        num_objects[number] = np.bincount(
            annotations.annotation_class[counted], minlength=len(annotations.category_ids)
        )
    return _accumulate(class_id, matched & ~ignored, ~matched & ~ignored & _ALL_BITS, num_objects)


def _match(
    count: int,
    position: np.ndarray,
    objects: np.ndarray,
    ious: np.ndarray,
    inside: np.ndarray,
    annotations: Annotations,
    verified: Verified,
) -> tuple[np.ndarray, np.ndarray]:
    """The official package's greedy matching, of all images and classes side by side.

    Predictions choose one after the other, by score: of the objects left that overlap enough, one inside the
    area range if there is any, then the closest, the last of equal ones.

    Args:
        count: D, predictions.
        position: (m,) which prediction, 0..D-1 in the order in which they choose.
        objects: (m,) overlaps which annotation,
        ious: (m,) how much.
        inside: (A,) uint64, the bits of the area ranges that an annotation is in.

    Returns:
        (D,) uint64, where a prediction has its object; (D,) uint64, where that is one outside the area range.
    """
    matched, ignored = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    order = np.lexsort((-objects, -ious, position))  # a prediction's first choice first
    position, objects, enough = position[order], objects[order], _bits_of_ious(ious[order])
    first = np.flatnonzero(np.diff(position, prepend=-1))
    choices = np.diff(first, append=len(position))
    # The predictions of an image and class wait for each other: the n-th ones of all choose in round n.
    its = objects[first]
    keys = verified.keys(annotations.annotation_image[its], annotations.annotation_class[its])
    by_key = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(np.diff(keys[by_key], prepend=-1))
    rounds = np.empty(len(first), np.int64)
    rounds[by_key] = np.arange(len(first)) - np.repeat(begins, np.diff(begins, append=len(first)))
    by_round = np.argsort(rounds, kind="stable")
    taken = np.zeros(len(annotations.annotation_ids), np.uint64)
    for turn in np.split(by_round, np.flatnonzero(np.diff(rounds[by_round])) + 1):
        for wanted in (inside, ~inside):
            chooses, choice = turn, 0
            while len(chooses):
                at = first[chooses] + choice
                who, what = position[at], objects[at]
                has = enough[at] & wanted[what] & ~taken[what] & ~matched[who]
                taken[what] |= has
                matched[who] |= has
                if wanted is not inside:
                    ignored[who] |= has
                choice += 1
                chooses = chooses[choices[chooses] > choice]
    return matched, ignored


def _accumulate(
    class_id: np.ndarray, right: np.ndarray, wrong: np.ndarray, num_objects: np.ndarray
) -> np.ndarray:
    """Precision at the recall thresholds.

    The precision at a recall is the highest at that recall or above it. It is highest right behind a true
    positive, so only these are looked at.

    Args:
        class_id: (D,) ascending; within a class the predictions' order.
        right: (D,) uint64, where a prediction is a true positive.
        wrong: (D,) uint64, where it is a false one.
        num_objects: (area ranges, K).
    """
    num_classes = num_objects.shape[1]
    precision = np.full((len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), num_classes, len(AREA_LABELS)), -1.0)
    class_begins = np.searchsorted(class_id, np.arange(num_classes + 1))
    for area, total in enumerate(num_objects):
        precision[:, :, total > 0, area] = 0.0
        needed = _needed(total)
        its_bits = np.uint64(area * len(IOU_THRESHOLDS))
        its_right, its_wrong = ((bits >> its_bits).astype(np.uint16) for bits in (right, wrong))
        for threshold in range(len(IOU_THRESHOLDS)):
            bit = np.uint16(1 << threshold)
            at = np.flatnonzero(its_right & bit)
            first = np.searchsorted(at, class_begins)  # true positives before each class
            found = np.diff(first)
            classes = np.flatnonzero(found)
            if not len(classes):
                continue
            num_right = np.arange(1, len(at) + 1) - np.repeat(first[:-1], found)
            num_wrong = np.concatenate([[0], np.cumsum((its_wrong & bit) != 0, dtype=np.int64)])
            num_wrong = num_wrong[at] - np.repeat(num_wrong[class_begins[:-1]], found)
            values = num_right / ((num_wrong + num_right).astype(np.float64) + np.spacing(1))
            # From one recall threshold to the next the highest, then from each one on the highest.
            begins = first[classes, None] + np.minimum(needed[classes], found[classes, None]) - 1
            highest = np.maximum.reduceat(values, begins.ravel()).reshape(begins.shape)
            highest = np.maximum.accumulate(highest[:, ::-1], axis=1)[:, ::-1]
            precision[threshold, :, classes, area] = np.where(
                needed[classes] <= found[classes, None], highest, 0.0
            )
    return precision


def _needed(total: np.ndarray) -> np.ndarray:
    """(K, R) int64: how many of (K,) objects make a recall of at least each threshold; 1 or more.

    >>> _needed(np.array([3]))[0, [0, 33, 34, 100]]
    array([1, 1, 2, 3])
    """
    objects = np.maximum(total, 1)[:, None]
    needed = np.ceil(RECALL_THRESHOLDS * objects)
    # Where rounding took it one too far up or down: recall is a quotient, compared as such.
    needed -= (needed - 1) / objects >= RECALL_THRESHOLDS
    needed += needed / objects < RECALL_THRESHOLDS
    return np.maximum(needed, 1).astype(np.int64)


# ------------------------------------------------------------------------------------------------------------
# The summary
# ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Evaluation:
    """AP of one set of results.

    Attributes:
        metrics: {"bbox": {"AP": ..., "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"}, "segm":
            {...}}; percent, NaN where no ground truth is there to judge by.
        per_category: one row per category: category_id, name, frequency, image_count, instance_count (counts
            of the ground truth evaluated on), AP_bbox, AP_segm (percent, NaN if absent or not evaluated).
        info: annotations, results (paths), images, predictions, max_dets, backend, and per IoU type how many
            predictions were judged and why the others were not.
        precision: {"bbox": (10 IoU thresholds, 101 recalls, K, 4 area ranges) float64 in 0..1, -1 absent};
            axes in IOU_THRESHOLDS, RECALL_THRESHOLDS, class_id, AREA_LABELS. Empty after `from_json`: it is
            not stored.
    """

    metrics: dict[str, dict[str, float]]
    per_category: pd.DataFrame
    info: dict[str, Any] = field(default_factory=dict)
    precision: dict[str, np.ndarray] = field(default_factory=dict)

    def table(self) -> str:
        """The nine metrics of each IoU type as aligned text; "-" where there is nothing to judge by."""
        rows = [["", *METRICS]]
        for iou_type, values in self.metrics.items():
            rows.append([iou_type, *("-" if math.isnan(values[m]) else f"{values[m]:.2f}" for m in METRICS)])
        lines = ["".join([row[0].ljust(6), *(cell.rjust(7) for cell in row[1:])]) for row in rows]
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join(lines)

    def precision_recall(
        self, category_id: int, *, iou_type: str = "bbox", iou_threshold: float = 0.5
    ) -> pd.DataFrame:
        """Interpolated precision at the 101 recalls of one category: columns recall, precision (both 0..1).

        Raises:
            ValueError: unknown category id, or the precision array is not there (evaluate again: JSON has
                none).
        """
        if iou_type not in self.precision:
            raise ValueError(
                f"precision of {iou_type!r}: expected one of {sorted(self.precision)}. "
                "Evaluate the results again; evaluation.json does not hold the array."
            )
        row = np.flatnonzero(self.per_category["category_id"].to_numpy() == category_id)
        threshold = np.flatnonzero(np.isclose(IOU_THRESHOLDS, iou_threshold))
        if not len(row) or not len(threshold):
            raise ValueError(
                f"category_id {category_id}, iou_threshold {iou_threshold}: expected a category of the "
                f"ground truth and one of {IOU_THRESHOLDS.round(2).tolist()}."
            )
        values = self.precision[iou_type][threshold[0], :, row[0], 0]
        return pd.DataFrame({"recall": RECALL_THRESHOLDS, "precision": np.where(values < 0, np.nan, values)})

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes all but the precision array, atomically; NaN becomes null."""
        content = {
            "metrics": self.metrics,
            "info": self.info,
            "per_category": {name: self.per_category[name].tolist() for name in self.per_category},
        }
        write_atomically(Path(path), msgspec.json.format(msgspec.json.encode(content), indent=1))

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Reads what `to_json` wrote.

        Raises:
            FileNotFoundError: no such file.
            ResultsError: not an evaluation.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such evaluation. `python -m rio eval` writes it.")
        try:
            content = msgspec.json.decode(path.read_bytes(), type=_EvaluationContent)
            lengths = {len(content.per_category[name]) for name in _PER_CATEGORY}
            if len(lengths) != 1:
                raise ValueError(f"columns of different lengths in per_category: {sorted(lengths)}")
            if any(set(values) != set(METRICS) for values in content.metrics.values()):
                raise ValueError(f"metrics other than {METRICS}")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, ValueError) as error:
            raise _error(
                str(path),
                "top level",
                "what Evaluation.to_json writes",
                f"{type(error).__name__}: {error}",
                "Evaluate the results again.",
            ) from None
        nan = float("nan")
        metrics = {
            t: {m: nan if values[m] is None else values[m] for m in METRICS}
            for t, values in content.metrics.items()
        }
        frame = pd.DataFrame({name: content.per_category[name] for name in _PER_CATEGORY})
        for name in ("AP_bbox", "AP_segm"):
            frame[name] = frame[name].astype(np.float64)
        return cls(metrics, frame, content.info)


_PER_CATEGORY = ("category_id", "name", "frequency", "image_count", "instance_count", "AP_bbox", "AP_segm")


class _EvaluationContent(msgspec.Struct):
    metrics: dict[str, dict[str, float | None]]
    info: dict[str, Any]
    per_category: dict[str, list[Any]]


def _summary(
    annotations: Annotations,
    source: str,
    num_predictions: int,
    precision: dict[str, np.ndarray],
    counts: dict,
    backend: str,
    max_dets: int,
) -> Evaluation:
    frame = pd.DataFrame(
        {
            "category_id": annotations.category_ids,
            "name": list(annotations.category_names),
            "frequency": annotations.frequency.tolist(),
            "image_count": annotations.image_count,
            "instance_count": annotations.instance_count,
            "AP_bbox": np.nan,
            "AP_segm": np.nan,
        }
    )
    metrics = {}
    for iou_type, array in precision.items():
        groups = {f"AP{g}": np.flatnonzero(annotations.frequency == g) for g in "rcf"}
        metrics[iou_type] = {
            "AP": _mean(array[:, :, :, 0]),
            "AP50": _mean(array[[0], :, :, 0]),
            "AP75": _mean(array[[5], :, :, 0]),
            **{f"AP{label[0]}": _mean(array[:, :, :, i]) for i, label in enumerate(AREA_LABELS) if i},
            **{name: _mean(array[:, :, classes, 0]) for name, classes in groups.items()},
        }
        by_class = np.ascontiguousarray(array[:, :, :, 0].transpose(2, 0, 1))
        frame[f"AP_{iou_type}"] = [_mean(of_class) for of_class in by_class]
    info = {
        "annotations": str(annotations.path),
        "results": source,
        "images": len(annotations.image_ids),
        "predictions": num_predictions,
        "max_dets": max_dets,
        "backend": backend,
        "protocol": "LVIS"
        if annotations.federated
        else "LVIS, every category verified (COCO-format ground truth)",
        **{f"predictions_{t}": c for t, c in counts.items()},
    }
    return Evaluation(metrics, frame, info, precision)


def _mean(precision: np.ndarray) -> float:
    """Mean of what is there, in percent; summed in the official package's order, for the last bit."""
    there = precision[precision > -1]
    return float(np.mean(there)) * 100 if len(there) else float("nan")


def results_to_json(path: str | os.PathLike[str], results: Sequence[dict[str, Any]]) -> None:
    """Writes result records as a results file, atomically. RLE counts may be bytes or str, numbers may be
    NumPy's.

    Raises:
        ResultsError: a record that `load_results` would refuse by itself; nothing is written then.
    """
    for index, record in enumerate(results):
        fault = _fault_of(record)
        if fault is not None:
            raise _error("results", f"record {index}, {fault[0]}", *fault[1:])

    def plain(record: dict[str, Any]) -> dict[str, Any]:
        out = {
            "image_id": int(record["image_id"]),
            "category_id": int(record["category_id"]),
            "score": float(record["score"]),
        }
        if record.get("bbox") is not None:
            out["bbox"] = [float(v) for v in record["bbox"]]
        if (rle := record.get("segmentation")) is not None:
            counts = rle["counts"]
            out["segmentation"] = {
                "size": [int(v) for v in rle["size"]],
                "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
            }
        return out

    write_atomically(Path(path), msgspec.json.encode([plain(r) for r in results]))


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file so that at any moment either the old or the new one is there, whole.

    Args:
        path: the file; its folder is made if missing.
        content: the bytes, or a function that writes them to an open file.

    Raises:
        OSError: the disk is full, or the folder may not be written to; names the file and the remedy.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files; a run is read by others too
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):  # a full disk's own error names no file
            remedy = "Make room there, or choose another folder by --output-dir"
            raise OSError(error.errno, f"{error.strerror or error}. {remedy}", str(path)) from error
        raise
    # Make the rename itself durable; not every file system lets a folder be synced.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
