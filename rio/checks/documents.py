"""What a JSON file is that is no LVIS- or COCO-format annotation file, by its keys."""

import msgspec

from rio.data.errors import AnnotationError
from rio.data.reading import BROKEN_JSON, content_of

_FORMATS: tuple[tuple[set[str], str, str], ...] = (
    ({"image_id", "score"}, "a results file (detections)", "give the ground truth here, and this file by --results"),
    ({"shapes", "imagePath"}, "a labelme file of one picture", "convert the folder, for example by labelme2coco"),
    ({"_via_img_metadata"}, "a project of VGG Image Annotator", "export it from there in COCO format"),
    ({"data", "annotations"}, "Label Studio's own JSON", "export it from there as COCO"),
    ({"data", "completions"}, "Label Studio's own JSON", "export it from there as COCO"),
    ({"samples"}, "a FiftyOne dataset", "export it by dataset.export(dataset_type=fo.types.COCODetectionDataset)"),
    ({"image", "annotations"}, "a file of SA-1B (SAM), whose masks have no classes", "give every mask a class first"),
    ({"asset", "regions"}, "a VoTT file", "export it from there in another format, and convert that to COCO"),
    ({"images", "annotations"}, "COCO format without 'categories'", "list the classes under 'categories'"),
)
Keys = dict[str, msgspec.Raw]


def what_it_is(path: str) -> tuple[str, str] | None:
    """What a file looks like, and what to do with it; None if its keys say nothing."""
    try:
        content = content_of(path)
        keys = msgspec.json.decode(content, type=Keys | list[Keys])
    except (*BROKEN_JSON, AnnotationError):
        return None
    record = (keys[0] if keys else {}) if isinstance(keys, list) else keys
    for wanted, name, fix in _FORMATS:
        if wanted <= record.keys():
            return name, fix
    if isinstance(keys, dict) and not {"images", "annotations", "categories"} & keys.keys():
        first = next(iter(keys.values()), b"")
        if bytes(first).lstrip().startswith(b"{") and b'"regions"' in bytes(first):
            return "annotations of VGG Image Annotator", "export them from there in COCO format"
    return None
