"""Boundary IoU of masks (Cheng et al., CVPR 2021, arXiv 2103.16562): how well outlines agree, large objects included.

The boundary of a mask is what lies in it within d px of its outline, d being 2 % of the image's diagonal. Boundary AP
matches by the smaller of mask IoU and boundary IoU (section 5 there).
"""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

DILATION_RATIO = 0.02  # of the image's diagonal; the paper's for COCO and LVIS


def boundary_of(rle: dict[str, Any]) -> dict[str, Any]:
    """The boundary of a mask as an RLE; the image's edge counts as an outline."""
    import cv2  # only boundary AP needs it

    mask = coco_mask.decode(rle)
    distance = max(1, round(DILATION_RATIO * np.hypot(*mask.shape)))
    inside = cv2.erode(
        cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0), np.ones((3, 3)), iterations=distance
    )
    return coco_mask.encode(np.asfortranarray(mask - inside[1:-1, 1:-1]))


class CocoBoundaryEval(COCOeval):
    """pycocotools' evaluation of masks, on boundary IoU."""

    def __init__(self, ground_truth: Any, predictions: Any) -> None:
        super().__init__(ground_truth, predictions, "segm")

    def computeIoU(self, imgId: int, catId: int) -> Any:  # pycocotools calls it
        ious = super().computeIoU(imgId, catId)
        if not np.size(ious):
            return ious
        objects, predictions = self._gts[imgId, catId], self._dts[imgId, catId]
        best = np.argsort([-p["score"] for p in predictions], kind="mergesort")[: len(ious)]  # in its order
        ours, theirs = (
            [boundary_of(r["segmentation"]) for r in rs] for rs in ([predictions[i] for i in best], objects)
        )
        return np.minimum(ious, coco_mask.iou(ours, theirs, [o["iscrowd"] for o in objects]))
