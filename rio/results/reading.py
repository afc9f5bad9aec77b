"""Results JSON -> columns, checked against the ground truth; which are judged; what their masks overlap.

A result record is a dict with `image_id`, `category_id`, `score` and a `bbox` (XYWH, pixels), a
`segmentation` (a COCO RLE of the image's size), or both.

A large file is read by several processes, a part of it each. A mask is needed only to find which objects it
overlaps: a handful of numbers. So for an evaluation the masks of a file are checked and compared piece by
piece, and never held (`read_once`).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np

from rio.data.annotations import Annotations, index_of
from rio.data.files import write_atomically
from rio.data.masks import rle_counts
from rio.data.reading import without_collection
from rio.results.federated import JudgedPairs

LEAST_IOU = 0.5  # of the protocol's thresholds: who overlaps less never matches

# A piece at a time: its Python objects are in the processor's cache until they are columns, and free again.
_CHUNK_BYTES = 1 << 20
_RECORDS_CHUNK = 1024
_RLE_CHUNK = 512
_PAIRS_FOR_C = 256  # of masks; with one library for all, the overlaps take a sixth longer
# A process more for each of these: it starts in half a second, and reads as much in one or two.
_BYTES_A_PROCESS = 1 << 27
_MAX_PROCESSES = 16
_HEAD_START_BYTES = 1 << 25  # what the first process reads until the others have started


class ResultsError(ValueError):
    """Results that cannot be evaluated; the message says where, what was expected, found, and what to do."""


def results_error(source: str, where: str, expected: str, found: str, remedy: str) -> ResultsError:
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

    def extend(self, part: _Columns, of_masks: _OfMasks | None) -> None:
        """Takes what another process read from the next part of the file."""
        if (part.has_boxes, part.has_masks) != (self.has_boxes, self.has_masks):
            raise ValueError("some records have a bbox or a segmentation and some have none")
        for name in ("image_ids", "category_ids", "scores", "boxes"):
            getattr(self, name).extend(getattr(part, name))
        if of_masks is not None:
            self.masks.extend(of_masks, self.num_records)
        self.num_records += part.num_records


@without_collection()
def load_results(
    results: str | os.PathLike[str] | Sequence[dict[str, Any]] | Results,
    annotations: Annotations,
    *,
    processes: int | None = None,
) -> Results:
    """Reads results and checks them against their ground truth.

    A file is decoded in pieces of 1 MB straight into columns, so that a file of millions of boxes needs
    little more memory than its columns.

    Args:
        results: path of a COCO-style results JSON, a list of such records, or `Results` (returned as they
            are).
        annotations: the ground truth; gives the known image and category ids.
        processes: how many read a file of boxes; None: one for each 128 MB, but 16 and one a core at most.

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
            raise results_error(
                results.source,
                "results",
                f"results loaded for {annotations.path}",
                "results loaded for another ground truth",
                "Load them again with load_results.",
            )
        return results
    if isinstance(results, (str, os.PathLike)):
        source = str(results)
        columns = _columns_of_file(Path(results), processes=processes)
    else:
        source = "results"
        if not isinstance(results, Sequence):
            found = type(results).__name__
            raise results_error(source, "top level", "a list of records", found, _LIST_REMEDY)
        columns = _columns_of_dicts(results, source)
    return _checked(columns, annotations, source)


_LIST_REMEDY = (
    "A results file is a list of {image_id, category_id, score, bbox and/or segmentation}; a ground-truth file is none."
)


def _columns_of_file(
    path: Path, masks: Callable[[], _MaskReader] | None = None, processes: int | None = None
) -> _Columns:
    """The columns of a file; `masks` makes who is given the RLEs, which are then not kept."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such results file. Expected the JSON that `python -m rio eval` or "
            "detectron2's evaluator wrote (instances_results.json)."
        )
    with path.open("rb") as file:
        has_masks = b'"segmentation"' in file.read(1 << 16)
    parts = _parts(path, _processes(path, processes))
    # RLEs that are kept stay in one process: they would take longer to the first than from the file.
    if len(parts) > 1 and not (has_masks and masks is None):
        columns = _read_in_parallel(path, parts, masks if has_masks else None)
        if columns is not None:
            return columns
    columns = _Columns(masks=masks and masks())
    piece = b""
    try:
        with path.open("rb") as file:
            for piece in _pieces(file, range(path.stat().st_size)):
                _collect_structs(columns, _DECODER.decode(piece))
        return columns
    except _FAULTS as error:
        # A piece ends where one record ends and the next begins, as far as the text shows. A string
        # that holds "},{" fools that, so the whole file is tried before anybody is blamed.
        first_record = columns.num_records
        columns = _Columns(masks=masks and masks())
        with contextlib.suppress(Exception):
            _collect_structs(columns, _DECODER.decode(path.read_bytes()))
            return columns
        raise _explain_json(str(path), piece, first_record, error) from None


_DECODER = msgspec.json.Decoder(list[_Record])
# What broken content leads to; UnicodeDecodeError and ResultsError are ValueErrors.
_FAULTS = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)


def _pieces(file: io.BufferedIOBase, part: range) -> Iterator[bytes]:
    """A part of a JSON list of objects, by `_parts` or all of it, as shorter lists of the same objects."""
    has_end = part.stop == file.seek(0, os.SEEK_END)
    file.seek(part.start)
    buffer, left = b"[" if part.start else b"", len(part)
    while left and (block := file.read(min(_CHUNK_BYTES, left))):
        buffer += block
        left -= len(block)
        start = len(buffer) if left else 0
        while (start := buffer.rfind(b"{", 0, start)) > 0:
            boundary = re.search(rb"\}\s*,\s*$", buffer[max(0, start - 64) : start])
            if boundary is not None:
                end = max(0, start - 64) + boundary.start() + 1
                yield buffer[:end] + b"]"
                buffer = b"[" + buffer[start:]
                break
    yield buffer if has_end else buffer + b"]"


# ------------------------------------------------------------------------------------------------------------
# A large file: several processes
# ------------------------------------------------------------------------------------------------------------


def _processes(path: Path, processes: int | None) -> int:
    if processes is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(path.stat().st_size // _BYTES_A_PROCESS, cores, _MAX_PROCESSES)
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes: expected a positive integer or None, found {processes!r}.")
    return processes


def _parts(path: Path, count: int) -> list[range]:
    """The bytes of a file of records in at most `count` parts, the first of them longer by the head start.

    A part begins with a record and ends with one, but for the file's own first and last brackets.
    """
    size = path.stat().st_size
    head_start = min(_HEAD_START_BYTES, size // 4)
    begins, ends = [0], []
    with path.open("rb") as file:
        for number in range(1, count):
            at = file.seek(max(head_start + (size - head_start) * number // count, begins[-1]))
            between = re.search(rb"\}(\s*,\s*)\{", file.read(_CHUNK_BYTES))
            if between is not None:
                ends.append(at + between.start(1))
                begins.append(at + between.end(1))
    return [range(begin, end) for begin, end in zip(begins, [*ends, size], strict=True)]


def _read_in_parallel(path: Path, parts: list[range], masks: Callable[[], _MaskReader] | None) -> _Columns | None:
    """The columns of a file, its first part read here; None where anything is wrong: what, is not said."""
    job = pickle.dumps((path, masks and masks()), protocol=5)
    with contextlib.ExitStack() as stack:
        try:
            workers = [stack.enter_context(_Worker(part)) for part in parts[1:]]
            for worker in workers:
                worker.begin(job)
            columns = _read_part(path, parts[0], masks and masks())
            for worker in workers:
                columns.extend(*worker.result())
            return columns
        except _FAULTS:
            return None
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            logging.getLogger(__name__).warning(
                "%s: a process that read a part of it failed (%s: %s). One process reads it all now.",
                path,
                type(error).__name__,
                error,
            )
            return None


def _read_part(path: Path, part: range, masks: _MaskReader | None) -> _Columns:
    columns = _Columns(masks=masks)
    with path.open("rb") as file:
        for piece in _pieces(file, part):
            _collect_structs(columns, _DECODER.decode(piece))
    return columns


class _Worker:
    """A process that reads one part of a file.

    `multiprocessing` would do, but not in a script without `if __name__ == "__main__"`, which it runs anew.
    """

    def __init__(self, part: range) -> None:
        code = f"import sys; sys.path[:] = {sys.path!r}; from rio.results.reading import _work; _work()"
        self.part = part
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the first process, which ends this one
        )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.stdout.close()
        with contextlib.suppress(OSError):  # a job that was not read
            self.process.stdin.close()
        self.process.wait()

    def begin(self, job: bytes) -> None:
        pickle.dump(self.part, self.process.stdin)
        self.process.stdin.write(job)
        self.process.stdin.close()

    def result(self) -> tuple[_Columns, _OfMasks | None]:
        answer = pickle.load(self.process.stdout)
        if answer is None:
            raise ValueError(f"in bytes {self.part.start} to {self.part.stop}")
        return answer


def _work() -> None:
    """The other end of `_Worker`: a job from standard input, what it read or None to standard output."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that is printed gets into the answer
    part, (path, masks) = pickle.load(sys.stdin.buffer), pickle.load(sys.stdin.buffer)
    try:
        with without_collection():
            columns = _read_part(path, part, masks)
        columns.masks = None  # the ground truth stays here
        answer = columns, masks and masks.taken()
    except _FAULTS:
        answer = None
    with pipe:
        pickle.dump(answer, pipe, protocol=5)


# ------------------------------------------------------------------------------------------------------------
# Records -> columns
# ------------------------------------------------------------------------------------------------------------


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
            raise results_error(source, f"record {index}, {fault[0]}", *fault[1:])
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
        rle = {"size": tuple(rle["size"]), "counts": counts.decode("latin-1") if isinstance(counts, bytes) else counts}
    return _Record(record["image_id"], record["category_id"], record["score"], None if box is None else tuple(box), rle)


def _mixed_error(source: str, index: int, key: str, expected: bool) -> ResultsError:
    found = ("no " if expected else "a ") + key
    return results_error(
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
        return ("keys 'bbox' and 'segmentation'", "at least one of them", "neither", "Write boxes (XYWH) or RLE masks.")
    if box is not None:
        if not isinstance(box, (list, tuple, np.ndarray)) or len(box) != 4:
            return ("key 'bbox'", "four numbers [x, y, width, height]", shown(box), "Write boxes as XYWH in pixels.")
        if not all(_is_finite(v) for v in box):
            return ("key 'bbox'", "four finite numbers", shown(box), "Leave predictions without a finite box out.")
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
        return results_error(
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
        return results_error(
            source,
            where,
            "JSON",
            f"text that is none ({type(cause).__name__}: {cause})",
            "The file is truncated or not a results file; write it again.",
        )
    if not isinstance(records, list):
        found = (
            f"an object with the keys {sorted(records)[:5]}" if isinstance(records, dict) else type(records).__name__
        )
        return results_error(source, "top level", "a list of records", found, _LIST_REMEDY)
    for index, record in enumerate(records):
        fault = _fault_of(record)
        if fault is not None:
            return results_error(source, f"record {first_record + index}, {fault[0]}", *fault[1:])
    if not first_record:
        for index, record in enumerate(records):
            for key in ("bbox", "segmentation"):
                expected = records[0].get(key) is not None
                if (record.get(key) is not None) != expected:
                    return _mixed_error(source, index, key, expected)
    return results_error(
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
    # Both are ascending (Annotations).
    image_index = index_of(annotations.image_ids, image_ids)
    class_id = index_of(annotations.category_ids, category_ids)
    for key, index, ids, known in (
        ("image_id", image_index, image_ids, annotations.image_ids),
        ("category_id", class_id, category_ids, annotations.category_ids),
    ):
        _require(
            index >= 0,
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
    image_index, class_id = image_index.astype(np.int32), class_id.astype(np.int32)
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
    raise results_error(source, f"record {first}, {key}", expected, found, remedy)


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
    sizes = list(zip(heights.tolist(), widths.tolist(), strict=True))
    if (found := [rle["size"] for rle in rles]) != sizes:
        row = next(row for row in range(n) if found[row] != sizes[row])
        raise results_error(
            source,
            f"record {first + row}, key 'segmentation.size'",
            f"{list(sizes[row])} [height, width]",
            str(list(found[row])),
            remedy,
        )
    all_pixels = heights.astype(np.float64) * widths
    areas = np.empty(n)
    for start in range(0, n, _RLE_CHUNK):
        part = rles[start : start + _RLE_CHUNK]
        strings = [rle["counts"] for rle in part]
        if list in set(map(type, strings)):
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
                    raise results_error(source, where, "an RLE string", str(error), remedy) from None
                if total != pixels[offset]:
                    raise results_error(
                        source, where, f"runs of {pixels[offset]:.0f} pixels in all", str(total), remedy
                    )
            where = f"records {first + start} to {first + start + len(part) - 1}, key 'segmentation.counts'"
            raise results_error(source, where, "RLE strings", refused, remedy)
    return areas


def _boxes_of_masks(rles: list[dict[str, Any]]) -> np.ndarray:
    """(n, 4) float64 XYWH."""
    import hotcoco

    return hotcoco.mask.toBbox(rles) if rles else np.empty((0, 4))


def _compressed(rle: dict[str, Any], where: str, source: str) -> dict[str, Any]:
    import hotcoco

    height, width = rle["size"]
    if min(rle["counts"], default=0) < 0:
        raise results_error(
            source,
            f"{where}, key 'segmentation.counts'",
            "non-negative integers",
            str(min(rle["counts"])),
            "Encode masks with pycocotools.mask.encode and decode the counts to str.",
        )
    if sum(rle["counts"]) != height * width:
        raise results_error(
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
# Masks: overlaps as the file is read
# ------------------------------------------------------------------------------------------------------------


class MaskOverlaps:
    """Which predictions overlap which objects of their image and class by at least `LEAST_IOU`."""

    def __init__(self, annotations: Annotations, verified: JudgedPairs) -> None:
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
        import hotcoco
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
            # The same numbers from both. The engine is faster to call, C to walk the runs (which are checked).
            library = coco_mask if (end - begin) * (high - low) > _PAIRS_FOR_C else hotcoco.mask
            ious.append(library.iou(ordered[begin:end], truth, [0] * len(truth)).ravel(order="F"))
        # Of all groups at once: which are close, and of whom.
        flat = np.concatenate(ious)
        close = np.flatnonzero(flat >= LEAST_IOU)
        pairs = (ends - begins) * (highs - lows)
        firsts = np.cumsum(pairs) - pairs
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
        from pycocotools import mask as coco_mask

        image = self.annotations.annotation_image[index]
        size = int(self.annotations.image_height[image]), int(self.annotations.image_width[image])
        polygons = self.annotations.polygons(index)
        if not polygons:
            return hotcoco.mask.frPyObjects(segmentation_of(self.annotations, index), *size)
        masks = coco_mask.frPyObjects(polygons, *size)
        return masks[0] if len(masks) == 1 else coco_mask.merge(masks)

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(m,) rows of the results, (m,) annotation indices, (m,) float64 IoUs."""
        none = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
        columns = tuple(np.concatenate(parts) for parts in zip(none, *self.found, strict=True))
        self.masks, self.found = {}, [columns]
        return columns


# What one `_MaskReader` hands to another: its `areas`, and the `found` of its `MaskOverlaps`.
_OfMasks = tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray, np.ndarray]]]


class _MaskReader:
    """Checks, measures and compares masks as they are read, for `_columns_of_file`.

    Where a prediction is not judged, as its category was not looked for in the image, only the size is looked
    at of a mask beside a box: it has no part in the evaluation.
    """

    def __init__(
        self,
        annotations: Annotations,
        verified: JudgedPairs,
        source: str,
        overlaps: MaskOverlaps | None,
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

    def taken(self) -> _OfMasks:
        """The areas, and which overlap which objects."""
        return self.areas, self.overlaps.found if self.overlaps is not None else []

    def extend(self, of_masks: _OfMasks, first: int) -> None:
        """Adds what another reader has `taken` from the records after the `first` ones."""
        areas, found = of_masks
        self.areas.extend(areas)
        if self.overlaps is not None:
            self.overlaps.found.extend((first + rows, objects, ious) for rows, objects, ious in found)

    @staticmethod
    def _index(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
        index = index_of(known, ids)
        if (index < 0).any():
            raise ResultsError("an unknown id")
        return index


def read_once(
    path: str | os.PathLike[str],
    annotations: Annotations,
    verified: JudgedPairs,
    iou_types: Sequence[str],
    processes: int | None = None,
) -> tuple[Results | None, MaskOverlaps | None]:
    """A file's results without their masks, and what these overlap; (None, None) where anything is wrong.

    What is wrong, `load_results` says, which reads all before it judges. Boxes are checked, and left out
    unless asked for.
    """
    compares = "segm" in iou_types and annotations.has_segmentations

    def reader() -> _MaskReader:
        overlaps = MaskOverlaps(annotations, verified) if compares else None
        return _MaskReader(annotations, verified, str(path), overlaps, keep_boxes="bbox" in iou_types)

    try:
        columns = _columns_of_file(Path(path), reader, processes)
        return _checked(columns, annotations, str(path)), columns.masks and columns.masks.overlaps
    except ResultsError:
        return None, None


def segmentation_of(annotations: Annotations, index: int) -> Any:
    segmentation = annotations.segmentation(index)
    if segmentation is None:
        raise ValueError(
            f"{annotations.path}: annotation {int(annotations.annotation_ids[index])}, key 'segmentation': "
            "expected polygons or an RLE, found nothing. Evaluate boxes only with iou_types=('bbox',), or "
            "load the annotations with segmentations=True."
        )
    return segmentation


# ----------------------------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------------------------


def results_to_json(path: str | os.PathLike[str], results: Sequence[dict[str, Any]]) -> None:
    """Writes result records as a results file, atomically. RLE counts may be bytes or str, numbers may be
    NumPy's.

    Raises:
        ResultsError: a record that `load_results` would refuse by itself; nothing is written then.
    """
    for index, record in enumerate(results):
        fault = _fault_of(record)
        if fault is not None:
            raise results_error("results", f"record {index}, {fault[0]}", *fault[1:])

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
