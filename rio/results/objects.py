"""What is in one image: its objects or predictions, ready to draw; and which images are worth showing."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rio.data.annotations import Annotations
from rio.data.masks import decoded_mask
from rio.results.federated import JudgedPairs
from rio.results.reading import Results

CROWDED = 15  # objects: images with more are hard to read, and rank lower


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects or the predictions of one image, ready to draw; n of them."""

    boxes: np.ndarray  # (n, 4) float64 XYWH, pixels
    class_ids: np.ndarray  # (n,) 0-based
    names: list[str]  # n category names
    groups: np.ndarray  # (n,) '<U1', frequency group
    scores: np.ndarray | None  # (n,) float64; None for ground truth
    indices: np.ndarray  # (n,) int64 rows of `Annotations` or of `Results`
    size: tuple[int, int]  # (height, width) of the image
    segmentations: list[Any] | None  # n COCO segmentations (polygons or RLE); None where there are none

    def __len__(self) -> int:
        return len(self.boxes)

    @cached_property
    def masks(self) -> np.ndarray | None:
        """(n, height, width) bool, decoded when first asked for; None where there are no segmentations."""
        if self.segmentations is None:
            return None
        masks = np.zeros((len(self), *self.size), bool)
        for mask, segmentation in zip(masks, self.segmentations, strict=True):
            mask[:] = decoded_mask(segmentation, self.size)
        return masks


def objects_of(annotations: Annotations, image_index: int) -> Objects:
    """Ground truth of one image, crowd regions left out; an IndexError where there is no such image."""
    rows = annotations.annotations_of(image_index)
    indices = np.arange(rows.start, rows.stop)[~annotations.iscrowd[rows] | annotations.federated]
    columns = annotations.boxes[indices], annotations.annotation_class[indices], None
    segmentations = [annotations.segmentation(i) for i in indices.tolist()]
    return _objects(annotations, image_index, indices, *columns, segmentations if any(segmentations) else None)


def predictions_of(
    results: Results, annotations: Annotations, image_index: int, *, score_threshold: float = 0, most: int | None = None
) -> Objects:
    """Predictions of one image from `score_threshold` on, at most `most`, highest score first.

    `annotations` are those that the results were loaded with. An IndexError where there is no such image.
    """
    if not 0 <= image_index < len(annotations.image_ids):
        raise IndexError(f"image index: expected 0..{len(annotations.image_ids) - 1}, found {image_index}")
    indices = results.of_image(image_index)
    indices = indices[results.scores[indices] >= score_threshold][:most]
    columns = results.boxes[indices], results.class_id[indices], results.scores[indices]
    segmentations = None if results.rles is None else [results.rles[i] for i in indices.tolist()]
    return _objects(annotations, image_index, indices, *columns, segmentations)


def _objects(
    annotations: Annotations, image_index: int, indices: np.ndarray, boxes: np.ndarray, class_ids: np.ndarray,
    scores: np.ndarray | None, segmentations: list[Any] | None,
) -> Objects:  # fmt: skip
    size = int(annotations.image_height[image_index]), int(annotations.image_width[image_index])
    names = [annotations.category_names[k] for k in class_ids.tolist()]
    return Objects(boxes, class_ids, names, annotations.frequency[class_ids], scores, indices, size, segmentations)


def ranked_examples(annotations: Annotations, *, count: int = 6) -> list[int]:
    """Indices of at most `count` images worth showing, best first: rare classes, then classes not shown before.

    The choice rests on the ground truth alone, so that it flatters no model. Images without objects are none.
    """
    usable = np.flatnonzero(JudgedPairs.of(annotations).counted)
    num_images, num_classes = len(annotations.image_ids), len(annotations.category_ids)
    if not len(usable) or count < 1:
        return []
    image, classes = (annotations.annotation_image[usable].astype(np.int64), annotations.annotation_class[usable])
    pixels = annotations.image_width[image].astype(np.float64) * annotations.image_height[image]
    size = annotations.boxes[usable, 2] * annotations.boxes[usable, 3] / pixels
    pairs, pair_of = np.unique(image * num_classes + classes, return_inverse=True)
    largest = np.zeros(len(pairs))
    np.maximum.at(largest, pair_of, size)
    pair_image, pair_class = pairs // num_classes, pairs % num_classes
    worth = np.select([annotations.frequency == group for group in "rc"], [100.0, 10.0], 1.0)
    # An object of less than a hundredth of the image is hard to see: it counts by its share.
    weights = worth[pair_class] * np.minimum(1.0, largest / 0.01)
    crowding = np.maximum(1.0, np.bincount(image, minlength=num_images) / CROWDED)
    shown, chosen = np.zeros(num_classes, bool), np.zeros(num_images, bool)
    order: list[int] = []
    while len(order) < min(count, len(np.unique(pair_image))):
        values = np.bincount(pair_image, weights * ~shown[pair_class], num_images) / crowding
        values[chosen] = -1
        best = int(values.argmax())
        if values[best] <= 0:
            if not shown.any():
                break
            shown[:] = False  # every class has been shown once: start over
            continue
        order.append(best)
        chosen[best] = True
        shown[pair_class[pair_image == best]] = True
    return order
