"""Results files -> columns, checked against the ground truth they belong to.

A record is {image_id, category_id, score} with a `bbox` (XYWH, pixels), a `segmentation` (a COCO RLE of the image's
size), or both. A file is decoded 1 MB at a time, and each piece becomes checked columns before the next one is read:
millions of boxes need little more memory than their columns.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NoReturn

import hotcoco
import numpy as np

from rio.data.annotations import Annotations, index_of
from rio.data.masks import RLE, fault_of
from rio.data.names import split_options
from rio.data.reading import without_collection
from rio.results.records import EXPECTED_LIST, NotJSONError, Record, pieces, records_of, records_of_json
from rio.results.rles import Rles, rle_totals

PIECE_BYTES = 1 << 19  # its Python objects stay in the processor's cache until they are columns
PIECE_RECORDS = 512


class ResultsError(ValueError):
    """Results that cannot be evaluated; the message names file, record, key, expected, found and fix."""


def results_error(source: str, where: str, expected: str, found: str, fix: str) -> ResultsError:
    return ResultsError(f"{source}: {where}: expected {expected}, found {found}. Fix: {fix}.")


_FIXES = {
    "": "give a list of {image_id, category_id, score, bbox and/or segmentation}, not a ground-truth file",
    "image_id": "write ids of the ground truth that is evaluated on; these results may belong to another data set "
    "(?skip at the end of the file's name leaves predictions of other images out)",
    "category_id": "write ids of the ground truth that is evaluated on, not 0-based class ids "
    "(?skip at the end of the file's name leaves predictions of other categories out)",
    "score": "leave such predictions out; a NaN score comes from a diverged model",
    "bbox": "write boxes as [x, y, width, height] in pixels, not as corners, and leave those that are not finite out",
    "segmentation": "encode masks by pycocotools.mask.encode at the size of their image, and decode the counts to str",
    "both": "give every record the same keys, or evaluate the two kinds apart",
}


@dataclass(frozen=True, eq=False)
class Results:
    """N predictions as columns, checked against the ground truth they belong to; row order is the file's."""

    source: str  # the file's path, or "results" for a list
    image_index: np.ndarray  # (N,) int32, index into `Annotations.image_ids`
    class_id: np.ndarray  # (N,) int32, 0-based
    scores: np.ndarray  # (N,) float64, finite
    boxes: np.ndarray  # (N, 4) float64 XYWH, pixels; the masks' bounding boxes where the records carry no `bbox`
    has_boxes: bool  # whether the records carry `bbox`
    rles: Rles | None  # N masks; None where the records carry no `segmentation`
    mask_areas: np.ndarray | None  # (N,) float64, pixels
    num_images: int  # of the ground truth
    left_out: int = 0  # predictions of categories or images that the ground truth lacks

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def _by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows grouped by image in the file's order, and (I + 1,) offsets."""
        order = np.arange(len(self))
        if (np.diff(self.image_index) < 0).any():  # results are nearly always in the images' order already
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
        over = np.flatnonzero(np.diff(offsets) > max_dets) if max_dets >= 0 else np.empty(0, np.int64)
        if not len(over):
            return order
        left_out = np.concatenate([self.of_image(image)[max_dets:] for image in over.tolist()])
        keep = np.ones(len(self), bool)
        keep[left_out] = False
        return order[keep[order]]


@without_collection()
def load_results(
    results: str | os.PathLike[str] | Sequence[dict[str, Any]] | Results,
    annotations: Annotations,
    *,
    taker: Any = None,
    on_error: str = "raise",
) -> Results:
    """Results checked against their ground truth, whose image and category ids are the known ones; may be empty.

    Args:
        results: path of a COCO-style results JSON, a list of such records (with NumPy's numbers and RLE counts as
            bytes, too), or `Results` (returned as they are).
        taker: a `rio.results.matching.MaskOverlaps`, which is given the masks as they are read: they are then not
            kept (`Results.rles` is None).
        on_error: "raise", or "skip" (also as "?skip" at the end of a path): leave predictions of categories and images
            that the ground truth lacks out, counted in `Results.left_out`.

    Raises:
        FileNotFoundError: no such file.
        ResultsError: not a list of records, a key is missing or of the wrong type, an unknown image or category id, a
            score or box that is not finite, a mask of another size than its image. Names the first record at fault.
    """
    if isinstance(results, Results):
        if results.num_images != len(annotations.image_ids):
            expected, found = f"results loaded for {annotations.path}", "results loaded for another ground truth"
            raise results_error(results.source, "results", expected, found, "load them again with load_results")
        return results
    if isinstance(results, (str, os.PathLike)):
        path, of_name, _ = split_options(os.fspath(results))
        columns = _Columns(annotations, path, taker, "skip" in (on_error, of_name))
        _read_file(Path(path), columns)
    else:
        columns = _Columns(annotations, "results", taker, on_error == "skip")
        if not isinstance(results, Sequence):
            raise columns.error(None, EXPECTED_LIST, type(results).__name__)
        for start in range(0, len(results), PIECE_RECORDS):
            columns.add(records_of(results[start : start + PIECE_RECORDS], columns))
    return columns.results()


def _read_file(path: Path, columns: _Columns) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such results file. Expected the instances_results.json that `python -m rio eval` or "
            "detectron2's evaluator wrote."
        )
    with path.open("rb") as file:
        for start, piece in pieces(file, PIECE_BYTES):
            try:
                columns.add(records_of_json(piece, columns))
            except NotJSONError:  # a string that holds "},{" fools `pieces`: try the rest in one piece
                file.seek(start)
                try:
                    columns.add(records_of_json((b"[" if columns.count else b"") + file.read(), columns))
                except NotJSONError as error:
                    raise columns.error(None, *error.args) from None
                return


_DTYPES = {"image_index": np.int32, "class_id": np.int32, "scores": np.float64, "boxes": np.float64}
_DTYPES |= {"areas": np.float64, "lengths": np.int64, "sizes": np.int32, "counts": np.uint8}


def _indices(known: np.ndarray, key: str, records: list[Record]) -> np.ndarray:
    """(n,) int64: where each record's id is among the known ones, -1 where it is not."""
    return index_of(known, np.fromiter(map(attrgetter(key), records), np.int64, len(records)))


class _Columns:
    """What the records read so far hold; checked."""

    def __init__(self, annotations: Annotations, source: str, taker: Any, skip: bool) -> None:
        self.annotations, self.source, self.taker, self.skip = annotations, source, taker, skip
        self.seen, self.left_out = 0, 0  # records before the piece that is being read, and those left out
        self.position: np.ndarray | None = None  # of the rest of the piece, where records were left out of it
        self.sizes = np.stack([annotations.image_height, annotations.image_width], axis=1).astype(np.int32)
        self.count, self.has_boxes, self.has_masks = 0, True, False
        self.bytes: defaultdict[str, bytearray] = defaultdict(bytearray)  # which grow in place; arrays would be copied

    def error(self, row: int | None, *words: str) -> ResultsError:
        """`row` of the piece being read, None: of no record; then key (of a record), expected, found, perhaps a fix."""
        if row is None:
            where, key = f"after record {self.count - 1}" if self.count else "top level", ""
        else:
            key, *words = words
            row = row if self.position is None else int(self.position[row])
            where = f"record {self.seen + row}, key '{key}'"
        expected, found, fix = (*words, _FIXES.get(re.split(r"\W", key)[0], _FIXES[""]))[:3]
        return results_error(self.source, where, expected, found, fix)

    def reject(self, kind: str, row: str, key: str, expected: str, found: str) -> NoReturn:
        """For `reject_type`."""
        raise self.error(int(row), key, expected, found)

    def require(self, good: np.ndarray, key: str, expected: str, values: np.ndarray) -> None:
        if not good.all():
            row = int(np.argmin(good))
            raise self.error(row, key, expected, repr(values[row].tolist()))

    def add(self, records: list[Record]) -> None:
        """Checks the next n records and takes them over."""
        self.position, total = None, len(records)
        if self.skip:
            a = self.annotations
            known = _indices(a.image_ids, "image_id", records) >= 0
            known &= _indices(a.category_ids, "category_id", records) >= 0
            self.position = np.flatnonzero(known)
            records = [records[row] for row in self.position.tolist()]
            self.left_out += total - len(records)
        self._add(records)
        self.seen += total

    def _add(self, records: list[Record]) -> None:
        if not records:
            return
        n = len(records)
        if not self.count:
            self.has_boxes, self.has_masks = records[0].bbox is not None, records[0].segmentation is not None
            if not (self.has_boxes or self.has_masks):
                raise self.error(0, "bbox", "a bbox or a segmentation", "neither")
        for key, expected in (("bbox", self.has_boxes), ("segmentation", self.has_masks)):
            values = map(attrgetter(key), records)  # neither type is ever empty, so true where it is there
            if not all(values) if expected else any(values):
                row = next(row for row, record in enumerate(records) if (getattr(record, key) is not None) != expected)
                words = (f"a {key}", f"no {key}")
                raise self.error(row, key, words[not expected] + ", as in record 0", words[expected], _FIXES["both"])
        scores = np.fromiter(map(attrgetter("score"), records), np.float64, n)
        self.require(np.isfinite(scores), "score", "a finite number", scores)
        part = {"scores": scores}
        for key, name, known in (
            ("image_id", "image_index", self.annotations.image_ids),
            ("category_id", "class_id", self.annotations.category_ids),
        ):
            ids = np.fromiter(map(attrgetter(key), records), np.int64, n)
            index = index_of(known, ids)
            self.require(index >= 0, key, f"one of the {len(known)} ids in {self.annotations.path}", ids)
            part[name] = index.astype(np.int32)
        if self.has_boxes:
            values = itertools.chain.from_iterable(map(attrgetter("bbox"), records))
            sides = np.fromiter(values, np.float64, 4 * n).reshape(n, 4)
            if not np.isfinite(sides).all():
                self.require(np.isfinite(sides).all(1), "bbox", "four finite numbers", sides)
            if not (sides[:, 2:] >= 0).all():
                # Two negative sides have a positive area and would be evaluated; one negative side is dropped later.
                self.require((sides[:, 2:] >= 0).any(1), "bbox", "a width and height of at least 0", sides)
            part["boxes"] = sides
        if self.has_masks:
            part |= self._masks(list(map(attrgetter("segmentation"), records)), part["image_index"], part["class_id"])
            if self.taker is not None and not self.taker.keeps_boxes:
                part.pop("boxes")
        for name, values in part.items():
            self.bytes[name] += memoryview(values)
        self.count += n

    def _masks(self, rles: list[dict], image_index: np.ndarray, class_id: np.ndarray) -> dict[str, np.ndarray]:
        """Checks the next n masks and takes them over, or hands them on."""
        n, columns = len(rles), {}
        values = itertools.chain.from_iterable(map(itemgetter("size"), rles))
        sizes = np.fromiter(values, np.int32, 2 * n).reshape(n, 2)
        if (sizes != self.sizes[image_index]).any():
            row = int((sizes != self.sizes[image_index]).any(1).argmax())
            expected = f"{self.sizes[image_index[row]].tolist()} [height, width]"
            found, turned = str(sizes[row].tolist()), sizes[row].tolist()[::-1] == self.sizes[image_index[row]].tolist()
            fix = ["the mask may be transposed: encode a (height, width) array in Fortran order"] if turned else []
            raise self.error(row, "segmentation.size", expected, found, *fix)
        rows = np.arange(n)
        if self.taker is not None and self.has_boxes:  # else a mask says where a prediction is, wanted or not
            rows = np.flatnonzero(self.taker.wants(image_index, class_id))
            rles = [rles[row] for row in rows.tolist()]
        areas = np.ones(n)
        areas[rows] = self._measured(rles, rows)
        if not self.has_boxes:
            columns["boxes"] = hotcoco.mask.toBbox(rles)
        if self.taker is not None:
            self.taker.add(self.count + rows, image_index[rows], class_id[rows], rles, areas[rows])
        else:
            strings = list(map(itemgetter("counts"), rles))
            self.bytes["counts"] += "".join(strings).encode("ascii")
            columns |= {"lengths": np.fromiter(map(len, strings), np.int64, n), "sizes": sizes}
        return columns | {"areas": areas}

    def _measured(self, rles: list[dict[str, Any]], rows: np.ndarray) -> np.ndarray:
        """Areas of some masks (n,) float64; checks that each describes exactly its image's pixels.

        The C and Rust decoders trust the runs: a mask of another size gives wrong overlaps in silence, or worse. Runs
        given as numbers are put into COCO's string in place.
        """
        pixels = [rle["size"][0] * rle["size"][1] for rle in rles]
        try:
            for i, rle in enumerate(rles):
                if isinstance(rle["counts"], list) and sum(rle["counts"]) == pixels[i]:
                    counts = hotcoco.mask.frPyObjects(rle, *rle["size"])["counts"].decode("ascii")
                    rles[i] = {"size": rle["size"], "counts": counts}
            if rle_totals(list(map(itemgetter("counts"), rles))).tolist() == pixels:
                return hotcoco.mask.area(rles)
        except (ValueError, TypeError):  # runs that are negative or beyond the image
            pass
        for row, rle in zip(rows.tolist(), rles, strict=True):
            if fault := fault_of(RLE(**rle), *rle["size"]):
                raise self.error(row, *fault[1:4])
        raise self.error(int(rows[0]), "segmentation.counts", "RLEs", "some that hotcoco does not read")

    def results(self) -> Results:
        columns = {name: np.frombuffer(self.bytes[name], dtype) for name, dtype in _DTYPES.items()}
        image_index, class_id, scores, boxes, areas, lengths, sizes, counts = columns.values()
        rles = None
        if self.has_masks and self.taker is None:
            rles = Rles(counts, np.concatenate([[0], np.cumsum(lengths)]), sizes.reshape(-1, 2))
        return Results(
            self.source, image_index, class_id, scores, boxes.reshape(-1, 4), self.has_boxes,
            rles, areas if self.has_masks else None, len(self.sizes), self.left_out,
        )  # fmt: skip
