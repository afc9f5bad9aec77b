"""Why is AP low? What is probably wrong with results is said, with its evidence. Nothing is ever applied."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import hotcoco
import numpy as np

from rio.data.annotations import Annotations
from rio.results.reading import Results
from rio.results.readings import FOUND_IOU, LEAST_OBJECTS, Sample, is_much_better, pair_iou, readings

LOOK_BELOW = 45.0
"""AP50 in percent from which no other reading can be much better; the matching is then left out."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is probably wrong with results."""

    kind: str  # "classes", "boxes", "images", "scores", "cap" or "masks"
    text: str  # what it is, with its evidence, and what to do about it
    reread: Callable[[Results], Results] | None = None  # the results as they are probably meant, to compare their AP


def diagnose(
    annotations: Annotations,
    results: Results,
    ground_truth: np.ndarray,
    *,
    ap50: float = 0.0,
    max_dets: int = -1,
    masks: Sequence[tuple[int, dict[str, Any]]] = (),
) -> list[Finding]:
    """What is probably wrong with results; [] where no other reading explains them much better.

    Args:
        ground_truth: (A,) bool, the annotations that are objects to be found.
        ap50: the lowest AP50 of the evaluation, percent; from `LOOK_BELOW` on predictions are not matched anew.
        max_dets: predictions kept per image by the protocol, -1: all.
        masks: some rows of the results, each with its RLE.

    Returns:
        At most one finding of another reading, then facts about scores, number of predictions and masks.
    """
    if not len(results) or not ground_truth.any():
        return []
    facts = [*_alike(results), *_cap(annotations, results, ground_truth, max_dets)]
    if ap50 >= LOOK_BELOW or np.isnan(ap50):
        return facts
    facts += _masks(annotations, results, masks)
    if len(results.boxes) == len(results):  # masks alone, read from a file, leave none
        facts = _other_reading(Sample(annotations, results, ground_truth)) + facts
    return facts


def _other_reading(sample: Sample) -> list[Finding]:
    """The reading that fits best, if it fits much better than the results as they are."""
    tried = []
    for reading in readings(sample):
        changed = reading.change(sample.rows)
        new = dataclasses.replace(sample.rows, **changed)
        # Another class leaves the overlaps as they are.
        match = sample.now if changed.keys() == {"class_id"} else sample.match(new)
        tried.append((sample.found(match, new.class_id), reading))
    good = [one for one in tried if is_much_better(one[0], sample.share)]
    good = [one for one in good if not one[1].learned] or good
    if not good:
        return _reversed_scores(sample)
    best = max(found[0] for found, _ in good)
    (_, hits, total), reading = next(one for one in good if one[0][0] >= 0.97 * best)  # the simplest of equals
    _, now, of = sample.share
    text = (
        f"{reading.what}: as the results are, {now} of {of} objects looked at are found, with this reading {hits} of "
        f"{total} (by class, at IoU {FOUND_IOU}). Fix: {reading.fix}"
    )
    return [Finding(reading.kind, text, reading.reread)]


def _reversed_scores(sample: Sample) -> list[Finding]:
    """Right predictions have the lowest scores."""
    match = sample.match(sample.rows, np.ones(len(sample.rank), bool))
    right = np.zeros(len(sample.rank), bool)
    right[match.row[sample.rows.class_id[match.row] == sample.classes[match.object]]] = True
    good, bad = (np.sort(sample.rows.scores[which]) for which in (right, ~right))
    if min(len(good), len(bad)) < 2 * LEAST_OBJECTS:
        return []
    above = (np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")).mean() / 2 / len(bad)
    if above > 0.2:  # how often a right one scores higher than a wrong one
        return []
    text = (
        f"the scores seem to be reversed: in {100 * (1 - above):.0f} % of all pairs of a right and a wrong prediction "
        "the wrong one scores higher. Fix: write scores that are higher for what is more certain"
    )
    return [Finding("scores", text, lambda results: dataclasses.replace(results, scores=-results.scores))]


def _alike(results: Results) -> list[Finding]:
    first = results.scores[0]
    if len(results) < 10 or (results.scores[:1000] != first).any() or (results.scores != first).any():
        return []
    text = (
        f"all {len(results)} scores are {first:g}: AP ranks predictions by score, and here by their place in the file"
    )
    return [Finding("scores", f"{text}. Fix: write the detector's scores")]


def _cap(annotations: Annotations, results: Results, ground_truth: np.ndarray, max_dets: int) -> list[Finding]:
    """So few predictions of each image that even right ones could not find the objects."""
    predicted = np.bincount(results.image_index, minlength=annotations.num_images)
    predicted = predicted if max_dets == -1 else np.minimum(predicted, max_dets)
    objects = np.bincount(annotations.annotation_image[ground_truth], minlength=annotations.num_images)
    most = int(predicted.max())
    at_most = int((predicted == most).sum())
    reach = np.minimum(objects, most).sum() / objects.sum()
    if reach > 0.9 or at_most < max(3, 0.3 * (predicted > 0).sum()):
        return []
    text = (
        f"no image has more than {most} predictions, and {at_most} of {int((predicted > 0).sum())} have that many: at "
        f"most {100 * reach:.0f} % of the objects can be found. Fix: raise the cap on detections of an image "
        "(TEST.DETECTIONS_PER_IMAGE), or lower the score threshold"
    )
    return [Finding("cap", text)]


def _masks(annotations: Annotations, results: Results, masks: Sequence[tuple[int, dict[str, Any]]]) -> list[Finding]:
    """Masks that do not lie in their boxes, and would if they were transposed."""
    if not len(masks) or not results.has_boxes or len(results.boxes) != len(results):
        return []
    rows = np.array([row for row, _ in masks])
    boxes, found = results.boxes[rows], hotcoco.mask.toBbox([rle for _, rle in masks])
    apart = np.flatnonzero(pair_iou(boxes, found) < FOUND_IOU)
    if len(apart) < max(LEAST_OBJECTS, len(rows) / 2):
        return []
    some = apart[:16]
    pictures = [hotcoco.mask.decode(masks[i][1]) for i in some.tolist()]
    # Turned; and row by row where COCO's runs go column by column: the same bits, in the picture's other order.
    others = (
        [picture.T for picture in pictures],
        [picture.ravel(order="F").reshape(picture.shape) for picture in pictures],
    )
    rereads = [hotcoco.mask.toBbox([hotcoco.mask.encode(mask) for mask in own]) for own in others]
    fits = max(int((pair_iou(boxes[some], other) >= FOUND_IOU).sum()) for other in rereads)
    if 2 * fits <= len(some):
        return []
    text = (
        f"the masks seem to be transposed: {len(apart)} of {len(rows)} looked at do not lie in their box, {fits} of "
        f"{len(some)} do when turned. Fix: pass pycocotools.mask.encode a (height, width) array in Fortran order"
    )
    return [Finding("masks", text)]
