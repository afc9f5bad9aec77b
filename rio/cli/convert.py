"""`rio convert`: other tools' annotations as a COCO-format JSON, by hotcoco's readers, and what is wrong with them."""

import argparse
import html
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from rio.cli.common import UsageError
from rio.data.files import IMAGE_SUFFIXES, write_atomically

FORMATS = {
    "voc": "a folder with Annotations/*.xml, as Pascal VOC, LabelImg and Label Studio write",
    "yolo": "a folder of .txt labels, with data.yaml or Label Studio's classes.txt there or up to two folders above",
    "cvat": "one XML file, CVAT for images 1.1",
}


def convert(args: argparse.Namespace) -> int:
    """Other tools' annotations to COCO format, then what `rio check` says of them."""
    from hotcoco import COCO

    from rio.checks.check import check

    source, images = Path(args.source), Path(args.images)
    if not images.is_dir():
        raise UsageError(f"--images {images}: expected the folder of the images, found none there")
    try:
        if args.format == "yolo":
            content = _yolo(source, images)
        elif args.format == "voc":
            content = _voc(source)
        else:
            content = COCO.from_cvat(str(source)).dataset
            for category in content["categories"]:
                category["name"] = html.unescape(category["name"])
        if not content["images"]:
            raise ValueError("no image in it")
    except (ValueError, OSError) as error:
        expected = f"expected {FORMATS[args.format]}"
        raise UsageError(f"{source}: {expected}, found: {error}. Fix: name what the tool has exported") from error
    files = {path.name for path in images.iterdir()}
    by_stem = {Path(name).stem: name for name in sorted(files) if name.lower().endswith(IMAGE_SUFFIXES)}
    for image in content["images"]:  # YOLO's labels know no endings, and some tools write paths of their machine
        name = Path(str(image["file_name"]).replace("\\", "/")).name
        image["file_name"] = name if name in files else by_stem.get(name, by_stem.get(Path(name).stem, name))
    write_atomically(Path(args.output), json.dumps(content).encode())
    counts = ", ".join(f"{len(content[key]):,} {key}" for key in ("images", "annotations", "categories"))
    print(f"{args.output}: {counts}\n")
    report = check(args.output, images=str(images))
    print(report)
    return report.exit_code


def _voc(source: Path) -> dict[str, Any]:
    """Names that hotcoco's reader would cut off are refused."""
    from hotcoco import COCO

    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    for file in sorted(folder.glob("*.xml")):
        if escaped := re.search(rb"<name>([^<]*&[^<]*)</name>", file.read_bytes()):
            name = escaped[1].decode(errors="replace")
            raise ValueError(f"the name {name} in {file.name}, which would be cut off: rename the category")
    return COCO.from_voc(str(source)).dataset


def _yolo(source: Path, images: Path) -> dict[str, Any]:
    """Labels with a data.yaml beside them, as hotcoco's reader wants it, wherever the tool has put the names."""
    import yaml
    from hotcoco import COCO

    folders = source, *source.absolute().parents[:2]
    places = (folder / name for folder in folders for name in ("data.yaml", "classes.txt"))
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError("neither data.yaml nor classes.txt")
    text = file.read_text(encoding="utf-8")
    names = text.splitlines() if file.suffix == ".txt" else yaml.safe_load(text)["names"]
    names = [names[key] for key in sorted(names)] if isinstance(names, dict) else [name for name in names if name]
    with tempfile.TemporaryDirectory(prefix="rio-convert-") as folder:
        for label in source.glob("*.txt"):
            if label.name != "classes.txt":
                (Path(folder) / label.name).symlink_to(label.absolute())
        # Its reader of YAML knows the simplest form only: names are filled in afterwards.
        (Path(folder) / "data.yaml").write_text(f"names: [{', '.join(f'c{i}' for i in range(len(names)))}]")
        content = COCO.from_yolo(folder, str(images)).dataset
    for category in content["categories"]:
        category["name"] = str(names[int(category["name"][1:])])
    return content
