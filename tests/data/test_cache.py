"""The cache of columns: what is kept, what is used, what is made anew."""

import dataclasses
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rio.data import load as module
from rio.data.annotations import Annotations
from rio.data.errors import AnnotationError, AnnotationFileNotFoundError
from rio.data.load import cache_folder, load_annotations
from tests.support.annotation_files import assert_equal_columns, coco, lvis, many, masks_of, touch, write


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-v*"))


def no_reading(monkeypatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the JSON file was read")

    monkeypatch.setattr(module, "read_file", fail)


@pytest.mark.parametrize("segmentations", [True, False])
@pytest.mark.parametrize("make", [coco, lvis, lambda: many(60)], ids=["coco", "lvis", "many"])
def test_the_cache_gives_the_same_columns(tmp_path, cache, monkeypatch, make, segmentations):
    path = write(tmp_path / "set.json", make())
    plain = load_annotations(path, image_root="x", segmentations=segmentations, cache=False)
    assert not cache.exists()
    first = load_annotations(path, image_root="x", segmentations=segmentations, cache=True)
    assert len(entries(cache)) == 1 and not list(cache.glob(".*"))
    no_reading(monkeypatch)
    second = load_annotations(path, image_root="x", segmentations=segmentations, cache=True)
    for a in (first, second):
        assert_equal_columns(a, plain)
        assert type(a.mask_json) is np.ndarray
        if segmentations:
            assert isinstance(a.mask_json.base, np.memmap)
            with pytest.raises(ValueError, match="read-only"):
                a.mask_json[0] = 1
    other_root = load_annotations(path, image_root="y", segmentations=segmentations, cache=True)
    assert other_root.image_path(0) == os.path.join("y", plain.file_names[0])


def test_small_files_are_not_cached_unless_asked(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "set.json", coco())
    load_annotations(path)
    assert not cache.exists()
    monkeypatch.setattr(module, "CACHE_MIN_BYTES", path.stat().st_size)
    load_annotations(path)
    assert len(entries(cache)) == 1


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RIO_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "rio"
    monkeypatch.setenv("RIO_CACHE", "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"
    monkeypatch.setenv("RIO_CACHE", "off")
    assert cache_folder() is None
    load_annotations(write(tmp_path / "set.json", coco()), cache=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.json"]


def test_a_changed_file_is_read_again_even_with_its_size_and_time(tmp_path, cache):
    data = coco()
    path = write(tmp_path / "set.json", data)
    before = path.stat()
    assert load_annotations(path, cache=True).boxes[1].tolist() == [10, 10, 20, 15]
    data["annotations"][0]["bbox"] = [10, 10, 20, 14]
    write(path, data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert load_annotations(path, cache=True).boxes[1].tolist() == [10, 10, 20, 14]
    assert len(entries(cache)) == 2


def test_a_file_that_changed_just_now_or_while_it_was_read_is_not_kept(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "set.json", coco())
    read = module.read_file
    with monkeypatch.context() as patch:
        patch.setattr(module, "SETTLED_SECONDS", 3600.0)
        assert load_annotations(path, cache=True).num_annotations == 4 and not entries(cache)

    def slow(*args: Any) -> Any:
        contents = read(*args)
        path.write_text(path.read_text() + " ")
        return contents

    monkeypatch.setattr(module, "read_file", slow)
    assert load_annotations(path, cache=True).num_annotations == 4 and not entries(cache)


def test_entries_by_what_was_asked(tmp_path, cache, monkeypatch):
    data = coco()
    path = write(tmp_path / "set.json", data)
    load_annotations(path, cache=True)
    with monkeypatch.context() as patch:
        no_reading(patch)
        load_annotations(path, cache=True, on_error="skip")  # nothing had to be skipped: the same entry
        boxes = load_annotations(path, cache=True, segmentations=False)  # it holds the boxes too
    assert_equal_columns(boxes, load_annotations(path, segmentations=False, cache=False))

    data["annotations"][0]["bbox"] = [90, 10, -20, 15]
    data["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]
    write(path, data)
    for segmentations in (True, False):
        kwargs = {"on_error": "skip", "segmentations": segmentations}
        plain = load_annotations(path, cache=False, **kwargs)
        assert len(plain.skipped) == 1 + segmentations
        assert_equal_columns(load_annotations(path, cache=True, **kwargs), plain)
        with monkeypatch.context() as patch:
            no_reading(patch)
            assert_equal_columns(load_annotations(path, cache=True, **kwargs), plain)
        with pytest.raises(AnnotationError):  # an entry with records skipped is none for "raise"
            load_annotations(path, cache=True, segmentations=segmentations)


def test_missing_images_are_looked_for_behind_the_cache(tmp_path, cache):
    path = write(tmp_path / "set.json", coco())
    images = touch(tmp_path / "images", "a.jpg", "b.jpg")
    kwargs = {"image_root": images, "check_images": True, "cache": True}
    assert load_annotations(path, **kwargs).num_images == 2 == load_annotations(path, **kwargs).num_images
    (images / "b.jpg").unlink()
    with pytest.raises(AnnotationError, match="image 7"):
        load_annotations(path, **kwargs)
    assert load_annotations(path, on_error="skip", **kwargs).annotation_ids.tolist() == [102]
    (images / "b.jpg").touch()
    assert load_annotations(path, **kwargs).num_images == 2


def test_a_broken_file_is_never_cached(tmp_path, cache):
    path = write(tmp_path / "set.json", json.dumps(coco())[:-40])
    for _ in range(2):
        with pytest.raises(AnnotationError, match="truncated"):
            load_annotations(path, cache=True)
    assert not entries(cache)
    with pytest.raises(AnnotationFileNotFoundError):
        load_annotations(tmp_path / "none.json", cache=True)
    with pytest.raises(AnnotationError, match="a folder"):
        load_annotations(tmp_path, cache=True)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


EMPTY = '{"federated":false,"category_names":[],"file_names":[],"skipped":[],"arrays":{}}'
DAMAGE = {
    "an array cut off": lambda entry: cut_off(entry / "boxes.npy"),
    "an array empty": lambda entry: (entry / "boxes.npy").write_bytes(b""),
    "an array gone": lambda entry: (entry / "areas.npy").unlink(),
    "an array of another type": lambda entry: np.save(entry / "areas.npy", np.zeros(60, dtype=np.int16)),
    "no array": lambda entry: (entry / "boxes.npy").write_bytes(b"\x00" * 1000),
    "pickled objects": lambda entry: np.save(entry / "boxes.npy", np.array([{}], dtype=object), allow_pickle=True),
    "no meta.json": lambda entry: (entry / "meta.json").unlink(),
    "meta.json cut off": lambda entry: cut_off(entry / "meta.json"),
    "meta.json of another kind": lambda entry: (entry / "meta.json").write_text("{}"),
    "no array listed": lambda entry: (entry / "meta.json").write_text(EMPTY),
    "an empty folder": lambda entry: [file.unlink() for file in entry.iterdir()],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_broken_entry_is_made_anew(tmp_path, cache, caplog, monkeypatch, kind):
    path = write(tmp_path / "set.json", many(60))
    load_annotations(path, cache=True)
    (entry,) = entries(cache)
    DAMAGE[kind](entry)
    with caplog.at_level(logging.WARNING, logger="rio.data.load"):
        again = load_annotations(path, cache=True)
    assert_equal_columns(again, load_annotations(path, cache=False))
    assert "it is made anew" in caplog.text and str(entry) in caplog.text and entries(cache) == [entry]
    no_reading(monkeypatch)
    assert load_annotations(path, cache=True).num_annotations == 60


@pytest.mark.parametrize("how", ["a file in the way", "no space left"])
def test_without_a_folder_it_works_and_warns_once(tmp_path, cache, monkeypatch, caplog, how):
    path = write(tmp_path / "set.json", coco())
    if how == "a file in the way":
        cache.write_text("")
    else:

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module.np, "save", full)
    with caplog.at_level(logging.WARNING, logger="rio.data.load"):
        for _ in range(3):
            assert_equal_columns(load_annotations(path, cache=True), load_annotations(path, cache=False))
    assert len(caplog.records) == 1 and "Fix: set RIO_CACHE" in caplog.text
    assert not cache.is_dir() or [file.name for file in cache.iterdir()] == ["lock"]


def test_a_crash_while_writing_leaves_no_entry(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "set.json", coco())

    def crash(handle: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", crash)
        with pytest.raises(KeyboardInterrupt):
            load_annotations(path, cache=True)
    assert not entries(cache) and not list(cache.glob(".*"))
    killed = cache / ".killed.tmp"
    killed.mkdir()
    load_annotations(path, cache=True)
    assert not killed.exists() and len(entries(cache)) == 1


READ = """
import sys
from rio.data import load as module
module.SETTLED_SECONDS = -1.0
reads, read = [], module.read_file
module.read_file = lambda *args: (reads.append(1), read(*args))[1]
a = module.load_annotations(sys.argv[1], cache=True)
print(len(reads), a.num_annotations, a.mask_length.sum())
"""


def test_processes_at_once_share_one_reading(tmp_path, cache, repository):
    path = write(tmp_path / "set.json", many(2000))
    total = str(load_annotations(path, cache=False).mask_length.sum())
    running = [
        subprocess.Popen([sys.executable, "-c", READ, str(path)], stdout=subprocess.PIPE, text=True, cwd=repository)
        for _ in range(3)
    ]
    results = [process.communicate(timeout=120)[0].split() for process in running]
    assert sorted(results) == [["0", "2000", total]] * 2 + [["1", "2000", total]]
    assert len(entries(cache)) == 1 and not list(cache.glob(".*"))


def describe(annotations: Annotations, queue: Any) -> None:
    mapped = isinstance(annotations.mask_json.base, np.memmap)
    queue.put((mapped, masks_of(annotations)[:5], annotations.frequency.tolist()))


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_started_process_maps_the_columns(tmp_path, cache, start):
    a = load_annotations(write(tmp_path / "set.json", many(60)), cache=True)
    a = dataclasses.replace(a, frequency=np.array(["f", "f", "r"]))
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    process = context.Process(target=describe, args=(a, queue))
    process.start()
    assert queue.get(timeout=120) == (True, masks_of(a)[:5], ["f", "f", "r"])
    process.join()

    text = pickle.dumps(a)  # holds the columns
    shutil.rmtree(cache)
    assert_equal_columns(pickle.loads(text), a)
