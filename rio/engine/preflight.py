"""What would stop a run hours later, looked at before its first iteration: the sets that it is evaluated on."""

import logging

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm

from rio.config import ConfigError
from rio.data.annotations import Annotations
from rio.data.images import in_threads, read_header
from rio.engine.errors import TrainingError

logger = logging.getLogger(__name__)


def check_test_set(cfg: CfgNode, name: str, test: Annotations) -> None:
    """Make sure that a model can be evaluated on a set: a ConfigError if it holds no image, a TrainingError if a
    picture cannot be read, by its header, or has another size than its record.
    """
    if not test.num_images:
        left_out = ", ".join(f"{kind} {count}" for kind, count in test.skipped_counts().items())
        raise ConfigError(
            f"DATASETS.TEST {name}: expected images, found no image to evaluate on"
            f"{f' ({len(test.skipped)} records were left out: {left_out})' if left_out else ''}. Fix: correct the "
            "file, or name none: DATASETS.TEST '()'"
        )
    if not test.instance_count.sum():
        logger.warning("%s has no object: every AP will be '-'.", name)
    if cfg.MODEL.RIO.FEATURES:
        return
    check_sides(test, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "TEST")
    # One process looks, all raise.
    if fault := comm.all_gather(_fault_of_pictures(test) if comm.is_main_process() else "")[0]:
        raise TrainingError(fault)


def check_sides(annotations: Annotations, smallest: int, largest: int, when: str) -> None:
    """Raise a TrainingError where a picture is so thin that nothing is left of it once it is resized."""
    sides = np.sort(np.stack([annotations.image_width, annotations.image_height], axis=1).astype(float), axis=1)
    thin = np.flatnonzero(sides[:, 0] * largest / sides[:, 1] < 0.5) if smallest else []
    if len(thin):
        width, height = int(annotations.image_width[thin[0]]), int(annotations.image_height[thin[0]])
        raise TrainingError(
            f"{annotations.path}: image {annotations.image_ids[thin[0]]}: expected sides of 1 px or more after "
            f"resizing to at most INPUT.MAX_SIZE_{when} {largest} px, found none of {width} x {height} px"
            f"{f' ({len(thin) - 1} more like it)' if len(thin) > 1 else ''}. Fix: cut it into pieces, or leave it out"
        )


def _fault_of_pictures(test: Annotations) -> str:
    """What is wrong with the set's pictures; "" if nothing."""
    paths, faults = [test.image_path(i) for i in range(test.num_images)], []
    headers = in_threads(read_header, paths, "headers")
    for row, (path, header) in enumerate(zip(paths, headers, strict=True)):
        width, height = int(test.image_width[row]), int(test.image_height[row])
        if header.fault:
            faults.append(f"{path}: expected a picture, found: {header.fault}")
        elif (header.width, header.height) != (width, height):
            how = ", turned by its EXIF data" if header.turned else ""
            found = f"found {header.width} x {header.height} px{how}"
            faults.append(
                f"{path} (image {test.image_ids[row]}): expected {width} x {height} px as in {test.path}, {found}"
            )
    if not faults:
        return ""
    more = f" ({len(faults) - 1} more pictures with a fault)" if len(faults) > 1 else ""
    return f"validation picture {faults[0]}{more}. Fix: replace the picture or correct its record"
