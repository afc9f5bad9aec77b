"""Broken annotation files, results and images by the thousand: ``python -m tests.support.fuzz --seconds 60``.

Every input is made from a good one, by mutations of its values and of its bytes. It passes if it is read, or refused by an
error of ours, within `SECONDS_EACH` and `MEMORY`. A failure prints the seed that makes it again.
"""

import argparse
import contextlib
import copy
import io
import json
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from rio.checks.check import check
from rio.data.errors import AnnotationError
from rio.data.load import load_annotations
from rio.results.evaluation import evaluate
from rio.results.reading import ResultsError, load_results
from tests.support.annotation_files import coco, lvis

SECONDS_EACH = 5.0  # of processor time: other programs on the machine do not count
MEMORY = {"annotation files": 256 << 20, "checks": 256 << 20, "results": 256 << 20, "images": 3 << 30}  # more bytes
# Images: PIL refuses what unpacks to more than 179 Mpx; below that a few copies of 3 bytes a pixel are as it should be.

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 90, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30, 0.5, -0.0,
    1e-320, 1e15, 1e308, -1e308, float("nan"), float("inf"), "", "a", "7", "\0", "../x", "/x", "斑马", "o" * 40, "0" * 5000,
    "é", [], {}, [[]], [[[]]], [1, 2], [1, 2, 3, 4], [0, 0, 1e9, 1e9], [10**9, 10**9], {"size": [50, 100], "counts": [5000]},
    {"size": [2**31 - 1, 2**31 - 1], "counts": [2**32 - 1] * 4}, {"size": [50, 100], "counts": "oooooo0"}, [[1e9] * 6], [[1.0] * 8],
]  # fmt: skip
BYTES = [
    b"", b"\0", b'"', b"[", b"]", b"{", b"}", b",", b":", b"\\", b"\\ud800", b"NaN", b"-", b"1e999", b"9" * 400, b"\xff",
    b"[" * 3000, b'"x":', b"\xef\xbb\xbf", b" " * 100, b"null", b".5", b"/**/",
]  # fmt: skip
RESULTS = [
    {"image_id": 7, "category_id": 90, "score": 0.5, "bbox": [1, 1, 9, 9], "segmentation": {"size": [50, 100], "counts": [9, 4991]}},
    {"image_id": 3, "category_id": 5, "score": 0.25, "bbox": [0, 0, 5, 5], "segmentation": {"size": [48, 64], "counts": [0, 3072]}},
]  # fmt: skip


def _containers(value: Any) -> list[Any]:
    """The value's lists and objects, itself included."""
    if not isinstance(value, (dict, list)) or not value:
        return []
    parts = value.values() if isinstance(value, dict) else value
    return [value, *(found for part in parts for found in _containers(part))]


def _mutate(value: Any, rng: np.random.Generator) -> bytes:
    """Some of the value's parts replaced, removed, doubled or moved; then perhaps its bytes."""
    value = copy.deepcopy(value)
    for _ in range(rng.integers(0, 4)):
        places = _containers(value)
        if not places:
            break
        place = places[rng.integers(len(places))]
        key = list(place)[rng.integers(len(place))] if isinstance(place, dict) else int(rng.integers(len(place)))
        action = rng.integers(6)
        if action == 0:
            del place[key]
        elif action == 1 and isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        else:
            source = places if action == 2 else VALUES
            place[key] = copy.deepcopy(source[rng.integers(len(source))])
    data = json.dumps(value, ensure_ascii=bool(rng.integers(2))).encode("utf-8", errors="replace")
    for _ in range(max(0, int(rng.integers(-4, 3)))):
        at = int(rng.integers(len(data) + 1))
        cut = int(rng.integers(0, 20)) if rng.integers(2) else 0
        data = data[:at] + BYTES[rng.integers(len(BYTES))] + data[at + cut :]
    return data[: rng.integers(len(data) + 1)] if rng.integers(12) == 0 else data


def annotation_file(path: Path, rng: np.random.Generator) -> None:
    """One annotation file, read as an error and with skips; what was read is whole."""
    path.write_bytes(_mutate(lvis() if rng.integers(2) else coco(), rng))
    for on_error in ("raise", "skip"):
        try:
            found = load_annotations(path, on_error=on_error, segmentations=bool(rng.integers(4)))
        except AnnotationError as error:
            assert "Fix: " in str(error)
            continue
        assert np.isfinite(found.boxes).all() and np.isfinite(found.areas).all()
        assert len(found.annotation_ids) == len(found.boxes) == len(found.mask_start)
        for row in range(found.num_annotations):
            found.segmentation(row)


def checked_file(path: Path, rng: np.random.Generator) -> None:
    """One annotation file under the doctor, whose verdict is the loader's, and whose copy reads as the file does."""
    path.write_bytes(_mutate(lvis() if rng.integers(2) else coco(), rng))
    target = path.with_name("copy.json")
    target.unlink(missing_ok=True)
    report = check(path, write=target)
    assert str(report) and len(report.table) == len(report.findings)
    try:
        found = load_annotations(path)
    except AnnotationError as error:
        assert report.exit_code == 2, error
        return
    assert not {f.kind for f in report.findings if f.level == "error"} - {"no_image"}
    copied, twins = load_annotations(target), sum(change.kind == "box_twice" for _, change in report.changes)
    assert found.num_annotations - twins <= copied.num_annotations <= found.num_annotations
    assert {finding.kind for finding in copied.repaired} <= {"box_clipped", "no_segmentation"}


def results_file(path: Path, rng: np.random.Generator) -> None:
    """One results file, evaluated where it is taken."""
    path.write_text(json.dumps(coco()))
    truth = load_annotations(path)
    path.write_bytes(_mutate(RESULTS, rng))
    with contextlib.suppress(ResultsError), np.errstate(over="ignore"):
        evaluate(truth, load_results(path, truth), iou_types=None, allow_empty=True)


def image_file(path: Path, rng: np.random.Generator) -> None:
    """One image with damaged bytes, read as training reads it."""
    from PIL import Image

    from rio.data.images import ImageError, read_image

    pixels = rng.integers(0, 255, (24, 32, 3)).astype(np.uint8)
    file = io.BytesIO()
    kind = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")[rng.integers(6)]
    Image.fromarray(pixels).save(file, kind)
    data = bytearray(file.getvalue())
    for _ in range(rng.integers(1, 12)):
        data[rng.integers(min(len(data), 64 if rng.integers(2) else len(data)))] = rng.integers(256)
    path.write_bytes(data[: rng.integers(len(data) + 1)] if rng.integers(6) == 0 else data)
    with contextlib.suppress(ImageError):
        read_image(str(path))


KINDS = {"annotation files": annotation_file, "checks": checked_file, "results": results_file, "images": image_file}


class FuzzError(AssertionError):
    """An input that was neither taken nor refused in our words; names kind and seed."""


def try_one(kind: str, seed: int, path: Path) -> None:
    """One input; raises `FuzzError` where anything but ours comes, or it takes too long or too much."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        KINDS[kind](path, np.random.default_rng(seed))
    except Exception as error:
        raise FuzzError(f"{kind}, seed {seed}: {type(error).__name__}: {error}") from error
    took = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    if took > SECONDS_EACH or grown > MEMORY[kind]:
        raise FuzzError(f"{kind}, seed {seed}: took {took:.1f} s and {grown >> 20} MB")


def main() -> int:
    """Fuzz until the time is over; the exit code is 1 if an input failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, metavar="N", help="default 60")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first input (default 0)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all, in turn")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    kinds, end, tried, failed = args.kind or list(KINDS), time.monotonic() + args.seconds, 0, 0
    with tempfile.TemporaryDirectory(prefix="rio-fuzz-") as folder:
        path = Path(folder) / "input"
        for kind in kinds:  # imports and the first tables are nobody's time or memory
            KINDS[kind](path, np.random.default_rng(args.seed))
        while time.monotonic() < end:
            for kind in kinds:
                try:
                    try_one(kind, args.seed + tried, path)
                except FuzzError as error:
                    failed += 1
                    print(error, flush=True)
            tried += 1
    print(f"{tried:,} inputs of each kind tried in {args.seconds:.0f} s: {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
