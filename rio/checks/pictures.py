"""Kinds of trouble with the pictures: what their headers say, and which are in the training set too."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rio.checks.kinds import NONE, Context, Hits, Kind, hits, of_image
from rio.data.annotations import Annotations
from rio.data.files import IMAGE_SUFFIXES
from rio.data.images import UNREADABLE, Header, in_threads, read_header

COMPARED = 20_000
"""Pictures of both sets together up to which near duplicates are looked for."""
ALIKE = 0.98
"""Correlation of two pictures' 16 x 16 grey values from which they are near duplicates."""
_SIDE = 16


def headers(c: Context) -> list[Header]:
    """Those of the file's pictures, read once; [] without a folder."""
    if c.headers is None:
        c.headers = in_threads(read_header, paths_of(c.data), "headers") if c.root else []
    return c.headers


def copies(c: Context) -> dict[int, int]:
    """`same_files` of both sets, whose pictures are read once; both have folders."""
    if c.copies is None:
        c.copies = same_files(paths_of(c.data), paths_of(c.train))
    return c.copies


def picture_unreadable(c: Context) -> Hits:
    rows = [row for row, header in enumerate(headers(c)) if header.fault and os.path.exists(c.data.image_path(row))]
    return hits(rows, of_image(c.data), "file_name", lambda row: str(headers(c)[row].fault))


def picture_size(c: Context) -> Hits:
    a = c.data
    wrong = [
        row for row, found in enumerate(headers(c))
        if not found.fault and (found.width, found.height) != (a.image_width[row], a.image_height[row])
    ]  # fmt: skip
    return hits(wrong, of_image(a), "width, height", lambda row: _size(a, row, headers(c)[row]))


def _size(a: Annotations, row: int, found: Header) -> str:
    width, height = int(a.image_width[row]), int(a.image_height[row])
    text = f"{width} x {height} px, the picture has {found.width} x {found.height}"
    if (width, height) == (found.height, found.width):
        return text + (" once it is turned as its EXIF data says" if found.turned else ": they are swapped")
    across, down = found.width / width, found.height / height
    return text + (f", {across:.3g} times as many: it was resized" if abs(across / down - 1) < 0.02 else "")


def picture_unlisted(c: Context) -> Hits:
    """Pictures in the folders that the file names, which neither it nor the training set names."""
    if not c.root:
        return NONE
    named = {os.path.normpath(path) for a in (c.data, c.train) if a and a.image_root for path in paths_of(a)}
    if c.train and not c.train.image_root:  # its folder is not told: often the same one
        named |= {os.path.normpath(os.path.join(c.root, name)) for name in c.train.file_names}
    folders = sorted({os.path.dirname(path) for path in paths_of(c.data)})
    there = [os.path.join(folder, name) for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)]
    found = sorted(p for p in there if p.lower().endswith(IMAGE_SUFFIXES) and os.path.normpath(p) not in named)
    return hits(range(len(found)), lambda row: f"picture {found[row]}", "-", lambda row: "not in the file")


def paths_of(a: Annotations) -> list[str]:
    """Where its pictures are."""
    return [a.image_path(i) for i in range(a.num_images)]


def picture_in_train(c: Context) -> Hits:
    """Pictures whose bytes are those of a training picture."""
    if c.train is None or not (c.root and c.train.image_root):
        return NONE
    pairs, name = copies(c), c.train.file_names
    return hits(list(pairs), of_image(c.data), "file_name", lambda row: f"the same bytes as {name[pairs[row]]}")


def name_in_train(c: Context) -> Hits:
    """Names of training pictures, where the pictures cannot be compared; Roboflow's copies of one original."""
    if c.train is None:
        return NONE
    compared = c.root and c.train.image_root
    known = {_stem(name): name for name in c.train.file_names if not compared or ".rf." in name}
    rows = [row for row, name in enumerate(c.data.file_names) if _stem(name) in known]
    name = lambda row: f"in training: {known[_stem(c.data.file_names[row])]}"  # noqa: E731
    return hits(rows, of_image(c.data), "file_name", name)


def _stem(name: str) -> str:
    """A file's name; of Roboflow's augmented copies ("a_jpg.rf.HASH.jpg") the original's."""
    return os.path.basename(name).split(".rf.")[0]


def same_files(paths: Sequence[str], others: Sequence[str]) -> dict[int, int]:
    """Which of `paths` have the bytes of which of `others`: only files of equal size are read."""
    sizes: dict[int, list[int]] = defaultdict(list)
    for place, path in enumerate(others):
        sizes[_bytes(path)].append(place)
    rows = [row for row, path in enumerate(paths) if _bytes(path) in sizes]
    places = sorted({place for row in rows for place in sizes[_bytes(paths[row])]})
    digests = in_threads(_digest, [paths[row] for row in rows] + [others[place] for place in places], "contents")
    known = dict(zip(digests[len(rows) :], places, strict=True))
    return {row: known[digest] for row, digest in zip(rows, digests, strict=False) if digest and digest in known}


def _bytes(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return b""


def picture_like_train(c: Context) -> Hits:
    """Pictures that look like a training picture, mirrored or not, and are not the same bytes."""
    if c.train is None or not (c.root and c.train.image_root and c.data.num_images and c.train.num_images):
        return NONE
    if c.data.num_images + c.train.num_images > COMPARED:
        return 1, [("file", "-", f"more than {COMPARED:,} pictures: not looked for")]
    mine, others = (np.stack(in_threads(_thumbnail, p, "thumbnails")) for p in (paths_of(c.data), paths_of(c.train)))
    alike = mine.reshape(len(mine), -1) @ others.reshape(len(others), -1).T
    alike = np.maximum(alike, mine[:, :, ::-1].reshape(len(mine), -1) @ others.reshape(len(others), -1).T)
    best = alike.argmax(1)
    rows = [row for row in np.flatnonzero(alike.max(1) >= ALIKE).tolist() if row not in copies(c)]
    name = c.train.file_names
    return hits(rows, of_image(c.data), "file_name", lambda row: f"looks like {name[best[row]]}")


def _thumbnail(path: str) -> np.ndarray:
    """(16, 16) float32 grey values of mean 0 and length 1; zeros where there is no picture, or a plain one."""
    try:
        with Image.open(path) as file:
            file.draft("L", (4 * _SIDE, 4 * _SIDE))
            grey = np.asarray(file.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    except UNREADABLE:
        return np.zeros((_SIDE, _SIDE), dtype=np.float32)
    grey = grey - grey.mean()
    length = float(np.linalg.norm(grey))
    return grey / length if length > _SIDE * 8 else grey * 0


PICTURES = tuple(Kind(*row) for row in (
    (picture_unreadable, "error", "Training or evaluation stops when it comes to this picture, perhaps after days.",
     "copy the file again, or remove image and objects; grey values of 16 bits have to be scaled to 8"),
    (picture_size, "error", "Training stops at this picture: its boxes would lie elsewhere.",
     "give the size as shown (EXIF applied), and boxes for it; `--write` swaps what is swapped without EXIF"),
    (picture_unlisted, "note", "They are neither trained nor evaluated on.", ""),
    (picture_in_train, "warning", "What was trained on is evaluated on: AP is too high.",
     "remove them from one of the two"),
    (name_in_train, "note", "If they are the same pictures, or copies, AP is too high.",
     "compare them: give the folders of both sets by --images and --train-images"),
    (picture_like_train, "warning", "Copies of training pictures make AP too high.",
     "look at them; split by scene or by video"),
))  # fmt: skip
