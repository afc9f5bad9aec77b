"""Records of results: their types, how a file is cut into pieces, and what is taken for what it can only mean.

Taken, as `rio.data.load` does: 1.0 for 1 in ids and sizes, ids that are text in the ground truth, an empty box or mask
for none, polygons for the mask that they outline; NumPy's numbers and RLE counts as bytes; a byte-order mark.
"""

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np

from rio.data.annotations import Annotations, index_of
from rio.data.masks import fault_of, rle_of
from rio.data.names import split_options
from rio.data.reading import explain_json, reject_type
from rio.data.repairs import NONE, repair_mask

EXPECTED_LIST = "a list of records"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Side = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Run = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class _Rle(TypedDict):
    size: tuple[_Side, _Side]
    counts: str | list[_Run]


class Record(msgspec.Struct, gc=False):
    image_id: _Id
    category_id: _Id
    score: float
    bbox: tuple[float, float, float, float] | None = None
    segmentation: _Rle | None = None


_decode = msgspec.json.Decoder(list[Record]).decode
_FAULTS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)  # UnicodeDecodeError is a ValueError


class NotJSONError(Exception):
    """Expected, found, fix."""


def pieces(file: io.BufferedIOBase, size: int) -> Iterator[tuple[int, bytes]]:
    """A JSON list of objects as shorter lists of the same objects, with where each begins in the file."""
    start = first = 0 if file.read(3) != _BYTE_ORDER_MARK else 3
    file.seek(first)
    buffer = b""
    while block := file.read(size):
        buffer += block
        end = len(buffer)
        while (end := buffer.rfind(b"{", 0, end)) > 0:
            before = max(0, end - 64)
            boundary = re.search(rb"\}\s*,\s*$", buffer[before:end])
            if boundary is not None:
                yield start, (b"[" if start > first else b"") + buffer[: before + boundary.start() + 1] + b"]"
                start, buffer = start + end, buffer[end:]
                break
    yield start, (b"[" if start > first else b"") + buffer


def carries_masks(results: Any) -> bool:
    """Whether results (a path, a list of records or loaded ones) have masks, by their beginning; True where unknown."""
    if isinstance(results, (str, os.PathLike)):
        try:
            with open(split_options(os.fspath(results))[0], "rb") as file:
                return b'"segmentation"' in file.read(1 << 16)
        except OSError:
            return True
    if isinstance(results, Sequence):
        return any(isinstance(record, dict) and "segmentation" in record for record in results[:1])
    return getattr(results, "mask_areas", None) is not None


def records_of_json(text: bytes, columns: Any) -> list[Record]:
    """The records of a piece of a file; `columns` is where they go, and knows how its errors are named."""
    with contextlib.suppress(*_FAULTS):
        return _decode(text)
    try:
        records = json.loads(text)  # reads NaN and Infinity, which Python's own json.dump writes and which are not JSON
    except (ValueError, RecursionError):
        try:
            records = msgspec.json.decode(text)
        except _FAULTS as error:
            raise NotJSONError(*explain_json(text, error)) from None
    if not isinstance(records, list):
        is_object = isinstance(records, dict)
        found = f"an object with the keys {sorted(records)[:5]}" if is_object else type(records).__name__
        raise columns.error(None, EXPECTED_LIST, found)
    return records_of(records, columns)


def records_of(records: Sequence[Any], columns: Any) -> list[Record]:
    with contextlib.suppress(*_FAULTS):
        return msgspec.convert(records, list[Record])
    found = []  # a real fault, or merely another spelling: look at each record
    for row, record in enumerate(records):
        try:
            found.append(msgspec.convert(_meant(_plain(record), columns.annotations), Record))
        except _FAULTS as error:
            reject_type(error, str(row), columns.reject)
    return found


def _meant(record: Any, annotations: Annotations) -> Any:
    """A record in the one spelling that the types above know, where it can mean one thing only."""
    if not isinstance(record, dict):
        return record
    record = {key: value for key, value in record.items() if key not in ("bbox", "segmentation") or value not in NONE}
    for key, noun in (("image_id", "image"), ("category_id", "category")):
        value = record.get(key)
        if isinstance(value, float) and value.is_integer():
            record[key] = int(value)
        elif isinstance(value, str):
            numbers = {text: number for number, text in annotations.text_ids.get(noun, {}).items()}
            record[key] = numbers.get(value, value)
    if "segmentation" in record and type(record.get("image_id")) is int:
        image = int(index_of(annotations.image_ids, np.array([record["image_id"]]))[0])
        if image >= 0:
            size = int(annotations.image_height[image]), int(annotations.image_width[image])
            record["segmentation"] = _mask(record["segmentation"], size)
    return record


def _mask(value: Any, size: tuple[int, int]) -> Any:
    mask, _ = repair_mask(value, size, None)
    if not isinstance(mask, list):
        return mask
    try:
        polygons = msgspec.convert(mask, list[list[float]])
    except msgspec.ValidationError:
        return value
    if not polygons or fault_of(polygons, *size):
        return value
    rle = rle_of(polygons, *size)
    return {"size": list(size), "counts": rle["counts"].decode("ascii")}


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, tuples and bytes as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
