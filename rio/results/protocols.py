"""The protocols that results can be judged by: one table, and nothing to import."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """What sets one protocol apart."""

    title: str  # its name in full, as in evaluation.json
    max_dets: int  # highest-scoring predictions kept, of an image (COCO: of an image and category); -1: all
    per_category: int  # highest-scoring predictions kept of each category, over all images; -1: all
    backends: tuple[str, ...]  # the packages that can compute it, ours first, then the official one


PROTOCOLS = {
    "lvis": Protocol("LVIS", 300, -1, ("hotcoco", "lvis")),
    # Dave et al., arXiv 2102.01066: a cap of 300 an image makes categories compete for places.
    "lvis_fixed": Protocol("LVIS, AP-fixed: 10,000 predictions a category", -1, 10_000, ("hotcoco", "lvis")),
    "coco": Protocol("COCO", 100, -1, ("hotcoco", "pycocotools")),
}
