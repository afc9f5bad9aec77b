"""An annotation file's JSON -> its images, categories and annotations, checked by type only.

A sound file is read in pieces, in a fraction of its size of memory. What the piece reader does not understand is read
as a whole, which finds the broken record and names it.
"""

import contextlib
import gc
import itertools
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

import msgspec
import numpy as np

from rio.data.errors import AnnotationError, AnnotationFileNotFoundError, Problems
from rio.data.masks import Pixels
from rio.data.repairs import Ids, repair_fields, without_nan

PIECE = 1 << 20
"""Bytes decoded at a time: their records stay in the processor's cache until they are arrays."""

BROKEN_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises. Its ValidationError is a DecodeError: valid JSON of another type."""

ANNOTATION = "annotation {id} (image {image_id})"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # as Windows tools write
_LIST = re.compile(rb'"(images|categories|annotations)"\s*:\s*\[')
_BORDER = re.compile(rb"\}(\s*,\s*)(?=\{)")  # between two records, or between two objects within one

Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Image(msgspec.Struct, gc=False):
    id: Id
    width: Pixels
    height: Pixels
    file_name: str | None = None
    coco_url: str | None = None
    neg_category_ids: list[Id] | None = None
    not_exhaustive_category_ids: list[Id] | None = None


class Category(msgspec.Struct, gc=False):
    id: Id
    name: Annotated[str, msgspec.Meta(min_length=1)]
    frequency: str | None = None
    supercategory: Any = None


class Box(msgspec.Struct, gc=False):
    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: Literal[0, 1] | bool | None = 0
    ignore: Any = None


class Object(Box, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw()


class Rows(NamedTuple):
    """n annotations as arrays, in the file's order."""

    ids: np.ndarray  # (n,) int64, as the next two
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray  # (n, 4) float64
    areas: np.ndarray  # (n,) float64, NaN where the file has none
    iscrowd: np.ndarray  # (n,) bool
    ignored: np.ndarray  # (n,) bool
    mask_offsets: np.ndarray  # (n + 1,) int64
    mask_json: np.ndarray  # (M,) uint8

    def name_of(self, row: int) -> str:
        return ANNOTATION.format(id=self.ids[row], image_id=self.image_ids[row])


class _Identified(msgspec.Struct):
    id: Any = None


NOUNS = ("image", "category", "annotation")
Contents = tuple[list[Image], list[Category], Rows | None]
"""A file's three lists; None without the key "annotations"."""


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Pause the search for reference cycles: there are none, and many small objects set it off."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_file(path: str, problems: Problems, segmentations: bool) -> Contents:
    """The file's three lists. An error where it cannot be read; `problems` takes records of a wrong type."""
    with contextlib.suppress(OSError, *BROKEN_JSON):
        return read_in_pieces(path, segmentations)
    return read_whole(path, problems, segmentations)


def read_in_pieces(path: str, segmentations: bool) -> Contents:
    """The same if every record has the right types; else one of `BROKEN_JSON`: read it as a whole."""
    kinds = {"images": Image, "categories": Category, "annotations": Object if segmentations else Box}
    lists: dict[str, Any] = {}
    # What stands around the lists, each of them replaced by a text that the file does not hold, is decoded at the end.
    around, place = b"", uuid.uuid4().hex
    with open(path, "rb", buffering=0) as file:
        pieces = _Pieces(file)
        while not pieces.ended:
            pieces.read(max(len(pieces.data), PIECE))
            while match := _LIST.search(pieces.data):
                key = match[1].decode()
                if key in lists:
                    raise msgspec.DecodeError(f"{key} twice, or within another object")
                around += pieces.data[: match.end() - 1] + f'"{place}"'.encode()
                pieces.data = pieces.data[match.end() :]
                portions = pieces.records(kinds[key])
                lists[key] = rows_of(portions) if key == "annotations" else [record for p in portions for record in p]
    keys = msgspec.json.decode((around + pieces.data).removeprefix(_BYTE_ORDER_MARK), type=dict)
    if any(keys.get(key) != place for key in kinds):
        raise msgspec.DecodeError("not the file's own keys")
    return lists["images"], lists["categories"], lists["annotations"]


class _Pieces:
    """The part of a file that is being looked at; the file goes on behind it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.data, self.ended = file, b"", False

    def read(self, size: int) -> None:
        more = self.file.read(size)
        self.data, self.ended = self.data + more, len(more) < size

    def records(self, kind: type) -> Iterator[list[Any]]:
        """The objects of the list that `data` begins in, in portions; afterwards `data` is what follows the list.

        Portions are decoded from left to right, so one that decodes as whole records can only end behind a record.
        """
        decoder, size = msgspec.json.Decoder(list[kind]), PIECE  # type: ignore[valid-type]
        while True:
            if len(self.data) < size and not self.ended:
                self.read(size - len(self.data))
            borders = list(_BORDER.finditer(self.data, max(len(self.data) - 65536, 0)))
            borders = borders or list(_BORDER.finditer(self.data))
            inside = memoryview(self.data)[: borders[-1].start(1) if borders else None]
            try:
                yield decoder.decode(b"".join((b"[", inside, b"]" if borders else b"")))
                if not borders:  # the list ends with the data
                    self.data = b""
                    return
                self.data, size = self.data[borders[-1].end() :], PIECE
            except msgspec.DecodeError as error:
                end = re.search(r"trailing characters \(byte (\d+)\)", str(error))
                if end:  # the list ends before
                    yield decoder.decode(b"[" + self.data[: int(end[1]) - 2])
                    self.data = self.data[int(end[1]) - 2 :]
                    return
                if self.ended or isinstance(error, msgspec.ValidationError):
                    raise
                size *= 2  # a border within a record, or a long record


def rows_of(portions: Iterable[Sequence[Box]]) -> Rows:
    """The annotations as arrays."""
    # glibc keeps as much memory at hand as a program was seen to free. Without this untouched array it would hand the
    # memory of each portion back and fetch it again, page by page: a third of the time.
    np.empty(31 << 20, dtype=np.uint8)
    parts, text = [], bytearray()
    for objects in itertools.chain([[]], portions):
        n = len(objects)
        masks: list[Any] = [b""] * n
        if n and isinstance(objects[0], Object):
            masks = [o.segmentation for o in objects]  # type: ignore[attr-defined]
        text += b"".join(masks)
        xywh = itertools.chain.from_iterable([o.bbox for o in objects])
        parts.append((
            np.fromiter([o.id for o in objects], np.int64, n),
            np.fromiter([o.image_id for o in objects], np.int64, n),
            np.fromiter([o.category_id for o in objects], np.int64, n),
            np.fromiter(xywh, np.float64, 4 * n).reshape(n, 4),
            np.fromiter([np.nan if o.area is None else o.area for o in objects], np.float64, n),
            np.fromiter([bool(o.iscrowd) for o in objects], np.bool_, n),
            np.fromiter([bool(o.ignore) for o in objects], np.bool_, n),
            np.fromiter(map(len, masks), np.int32, n),
        ))  # fmt: skip
        del objects, masks  # before the next portion is decoded
    *columns, lengths = (np.concatenate(column) for column in zip(*parts, strict=True))
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Rows._make([*columns, offsets, np.frombuffer(text, dtype=np.uint8)])


def read_whole(path: str, problems: Problems, segmentations: bool) -> Contents:
    """As `read_file`, all at once; where a record has a wrong type, record by record."""
    data, kind = content_of(path), Object if segmentations else Box
    if problems.lists and (found := without_nan(data))[1]:
        data, words = memoryview(found[0]), f"NaN or infinity, {found[1]} times"
        problems.refuse("nan", "file", "-", "finite numbers", words, "`--write` writes null")
    try:
        try:
            images, categories, boxes = lists_of(data, Image, Category, kind)
        except msgspec.ValidationError:
            raws = lists_of(data, msgspec.Raw, msgspec.Raw, msgspec.Raw)
            ids, kinds = ids_of(raws), (Image, Category, kind)
            decoded = [
                None if part is None else _decode_each(part, kind, noun, problems, ids)
                for part, kind, noun in zip(raws, kinds, NOUNS, strict=True)
            ]
            images, categories = ([record for portion in part or () for record in portion] for part in decoded[:2])
            problems.ids = ids.of
            return images, categories, None if decoded[2] is None else rows_of(decoded[2])
    except msgspec.ValidationError as error:
        reject_type(error, "file", problems.fatal)
        raise
    except BROKEN_JSON as error:
        problems.fatal("json", "file", "-", *explain_json(data, error))
    return images, categories, None if boxes is None else rows_of([boxes])


def ids_of(raws: Sequence[list[msgspec.Raw] | None]) -> Ids:
    """What stands for the ids that are text, from the raw images, categories and annotations."""
    ids, decoder = Ids(), msgspec.json.Decoder(_Identified)
    for part, noun in zip(raws, NOUNS, strict=True):
        found = []
        for raw in part or ():
            with contextlib.suppress(*BROKEN_JSON):
                found.append(decoder.decode(raw).id)
        ids.learn(noun, found)
    return ids


def lists_of(data: memoryview, image: Any, category: Any, box: Any) -> tuple[Any, ...]:
    """The three lists, their records decoded as these types; the last one is None where the key is missing."""
    fields: list[Any] = [
        ("images", list[image]),
        ("categories", list[category]),
        ("annotations", list[box] | None, None),
    ]
    return msgspec.structs.astuple(msgspec.json.decode(data, type=msgspec.defstruct("File", fields, gc=False)))


def content_of(path: str) -> memoryview:
    """The file's bytes; an error that helps where there is none."""
    try:
        return memoryview(Path(path).read_bytes().removeprefix(_BYTE_ORDER_MARK))
    except FileNotFoundError:
        folder = os.path.dirname(os.path.abspath(path))
        state = "its folder has no such file" if os.path.isdir(folder) else f"there is no folder {folder}"
        fix = "give the path of the JSON file, absolute or relative to the working directory"
        expected = "expected an LVIS or COCO annotation file"
        raise AnnotationFileNotFoundError(f"{path}: {expected}, found none: {state}. Fix: {fix}.") from None
    except IsADirectoryError:
        fix = "give the path of the JSON file in it"
        raise AnnotationError(path, "file", "-", "a JSON file", "a folder", fix, "json") from None


def _decode_each(raws: list[msgspec.Raw], kind: type, noun: str, problems: Problems, ids: Ids) -> Iterator[list[Any]]:
    """Portions of records of the right types; what can be repaired is, others are rejected, categories as an error."""
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
    reject = problems.refuse if noun == "category" else problems.reject
    records: list[Any] = []
    for position, raw in enumerate(raws):
        if len(records) == 4096:
            yield records
            records = []
        try:
            records.append(decoder.decode(raw))
            continue
        except BROKEN_JSON as error:
            fault, name = error, f"{noun} at position {position}"
        with contextlib.suppress(*BROKEN_JSON):
            found = msgspec.json.decode(raw)
            if isinstance(found, dict) and "id" in found:
                name += f" (id {found['id']!r})"
            if changes := repair_fields(noun, found, ids):
                try:
                    records.append(decoder.decode(msgspec.json.encode(found)))
                except BROKEN_JSON as error:  # in the words for what is left to repair
                    fault = error
                else:
                    for change in changes:
                        problems.repair(change.kind, name, change.key, change.found, change.taken)
                    continue
        reject_type(fault, name, reject)
    yield records


def reject_type(error: Exception, record: str, reject: Callable[..., None], within: str = "") -> None:
    """Reject a record in msgspec's words, "Expected `int`, got `str` - at `$.image_id`"; `within` is a value's key."""
    text, _, where = str(error).partition(" - at `$")
    key = (within + where.rstrip("`")).lstrip(".") or "-"
    if missing := re.search(r"missing required field `(.+?)`", text):
        reject("missing_key", record, f"{key}.{missing[1]}".removeprefix("-."), "a value", "no such key")
    elif wrong := re.fullmatch(r"Expected (.+?)(?:, got (.+))?", text):
        reject("type", record, key, wrong[1], wrong[2] or "another value")
    else:
        reject("type", record, key, "a valid value", text)


def explain_json(data: bytes | memoryview, error: Exception) -> tuple[str, str, str]:
    """Why a text is not valid JSON, from msgspec's error: what was expected, what was found, how to fix it."""
    where = re.search(r"\(byte (\d+)\)", str(error))
    at = int(where[1]) if where else 0
    excerpt = repr(bytes(data[max(at - 20, 0) : at + 20]).decode("utf-8", errors="replace"))
    if where and re.match(rb"-?(NaN|Inf)|N$|I$|aN|nf", bytes(data[at : at + 4])):
        fix = "write such records without the value, or leave them out"
        return "finite numbers", f"NaN or infinity at byte {at}: {excerpt}", fix
    if isinstance(error, RecursionError):
        return "lists and objects", "nesting too deep to read", "check that this is the file you meant"
    if not len(data):
        return "a JSON object", "an empty file", "copy or download the file again"
    found, fix = f"{error}: {excerpt}" if where else str(error), "copy or download the file again; it may be cut off"
    return "valid JSON in UTF-8", found, fix
