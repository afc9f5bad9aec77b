"""The classifier alone, on frozen RoI features: a model and a loader for the same trainer, sampler, bank and losses.

Decoupled training (cRT, Kang et al., ICLR 2020, section 4): the detector stays as it is, its box classifier starts
anew. Box regression is the detector's; so REPLAY_LOSSES "box" has no part in it. Masks need pictures: see `export` in
rio.engine.feature_extraction, which puts the trained classifier back into the detector.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from rio.data.annotations import Annotations
from rio.data.errors import check
from rio.data.names import annotations_of
from rio.engine import telemetry
from rio.engine.feature_store import FeatureError, FeatureSet, FeatureStore
from rio.engine.loader import build_batch_sampler
from rio.roi_heads import RIOFastRCNNOutputLayers
from rio.sampler import BatchSampler

logger = logging.getLogger(__name__)
TEST_IMAGES = 16  # scored at once


class Batch(NamedTuple):
    """The RoIs of a step's N images."""

    features: Tensor  # (R, D) float32
    proposals: list[Instances]  # N, with proposal_boxes, gt_boxes, gt_classes


@META_ARCH_REGISTRY.register()
class FrozenFeatureClassifier(nn.Module):
    """A detector's box predictor alone, by its tensors' names: the classifier is trained, the box regression frozen."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.store = FeatureStore(cfg.MODEL.RIO.FEATURES)
        predictor: RIOFastRCNNOutputLayers = RIOFastRCNNOutputLayers(cfg, ShapeSpec(channels=self.store.width))
        theirs = {
            n.removeprefix("bbox_pred."): v for n, v in self.store.predictor().items() if n.startswith("bbox_pred.")
        }
        predictor.bbox_pred.load_state_dict(theirs)
        predictor.bbox_pred.requires_grad_(False)
        self.roi_heads = nn.ModuleDict({"box_predictor": predictor})

    @property
    def device(self) -> torch.device:
        return self.roi_heads.box_predictor.bbox_pred.weight.device

    def forward(self, batch: Batch | list[dict[str, Any]]) -> Any:
        """Losses of a `Batch`; of a list of `test_images` their detections, as detectron2's models give them."""
        predictor, device = self.roi_heads.box_predictor, self.device
        if self.training:
            features, proposals = batch
            if telemetry.is_log_step():  # detectron2's name, per image, as its heads log it
                foreground = sum(int((own.gt_classes < predictor.num_classes).sum()) for own in proposals)
                get_event_storage().put_scalar("roi_head/num_fg_samples", foreground / len(proposals))
            proposals = proposals if device.type == "cpu" else [own.to(device) for own in proposals]
            return predictor.losses(predictor(features.to(device)), proposals)
        return self.detect(batch, *self.predict(batch))

    def predict(self, batch: list[dict[str, Any]]) -> tuple[tuple[Tensor, Tensor], list[Instances]]:
        """The predictor's (logits, deltas) of a list of `test_images`, and their proposals."""
        found = "a picture: these weights are a classifier's alone"
        fix = "python -m rio features --export RUN --output DIR puts it back into its detector"
        check("features" in batch[0], "model", "stored features", found, fix, FeatureError)
        features = torch.cat([one["features"] for one in batch]).to(self.device)
        return self.roi_heads.box_predictor(features), [one["proposals"].to(self.device) for one in batch]

    def detect(
        self, batch: list[dict[str, Any]], predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[dict[str, Any]]:
        """Detections of what `predict` gave, as detectron2's models give them."""
        found, _ = self.roi_heads.box_predictor.inference(predictions, proposals)
        sizes = [(one["height"], one["width"]) for one in batch]
        return [{"instances": detector_postprocess(own, *size)} for own, size in zip(found, sizes, strict=True)]

    def test_images(self, name: str) -> TestImages:
        """A test set's proposals in place of its pictures."""
        annotations = annotations_of(name)
        self.store.check(name, annotations, train=False)
        return TestImages(annotations, self.store.open(name, train=False))


class FeatureLoader:
    """Training batches of stored RoIs in the sampler's order; the counterpart of `rio.engine.loader.TrainingLoader`.

    `batches` is the stream of (position, image index). Which of the `views` a showing gets follows from its position.
    """

    def __init__(self, rois: FeatureSet, num_images: int, batches: BatchSampler, views: int):
        self.rois, self.num_images, self.batches, self.views = rois, num_images, batches, views
        self.start_iteration = 0

    def __iter__(self) -> Iterator[Batch]:
        self.batches.start_iteration = self.start_iteration
        for batch in self.batches:
            yield self.read(batch)

    def close(self) -> None:
        """Nothing to end: there are no processes."""

    def read(self, batch: list[tuple[int, int]]) -> Batch:
        """The RoIs of (position, image index) pairs."""
        position, image = np.array(batch).T
        view = (position * 2654435761 % 2**32) * self.views // 2**32  # Knuth's hash: each view equally often
        row = view * self.num_images + image
        rois = self.rois
        counts, sizes = rois.counts[row].tolist(), rois.sizes[row].tolist()
        kept = np.arange(rois.features.shape[1]) < rois.counts[row][:, None]
        columns = {
            "proposal_boxes": torch.from_numpy(rois.proposal_boxes[row][kept]),
            "gt_boxes": torch.from_numpy(rois.gt_boxes[row][kept]),
            "gt_classes": torch.from_numpy(rois.gt_classes[row][kept].astype(np.int64)),
        }
        parts = zip(*(column.split(counts) for column in columns.values()), strict=True)
        proposals = [
            Instances(tuple(size), proposal_boxes=Boxes(boxes), gt_boxes=Boxes(truth), gt_classes=classes)
            for size, (boxes, truth, classes) in zip(sizes, parts, strict=True)
        ]
        return Batch(torch.from_numpy(rois.features[row][kept]).float(), proposals)


def build_feature_loader(cfg: CfgNode) -> FeatureLoader:
    """The loader for a config from `rio.engine.setup.setup_training` whose MODEL.RIO.FEATURES names a folder."""
    annotations, store = annotations_of(cfg.DATASETS.TRAIN[0]), FeatureStore(cfg.MODEL.RIO.FEATURES)
    rois = store.open(cfg.DATASETS.TRAIN[0], train=True)
    return FeatureLoader(rois, annotations.num_images, build_batch_sampler(cfg, annotations), store.views)


class TestImages:
    """An iterable of lists of a test set's images, this process's share, as `FrozenFeatureClassifier` takes them."""

    def __init__(self, annotations: Annotations, rois: FeatureSet):
        self.annotations, self.rois = annotations, rois
        share = range(annotations.num_images)[comm.get_rank() :: comm.get_world_size()]
        self._batches = [share[i : i + TEST_IMAGES] for i in range(0, len(share), TEST_IMAGES)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self._batches:
            yield [self._image(i) for i in batch]

    def _image(self, i: int) -> dict[str, Any]:
        known, count = self.annotations, int(self.rois.counts[i])
        boxes = torch.from_numpy(np.array(self.rois.proposal_boxes[i, :count]))
        return {
            "image_id": int(known.image_ids[i]),
            "height": int(known.image_height[i]),
            "width": int(known.image_width[i]),
            "features": torch.from_numpy(self.rois.features[i, :count].astype(np.float32)),
            "proposals": Instances(tuple(self.rois.sizes[i].tolist()), proposal_boxes=Boxes(boxes)),
        }
