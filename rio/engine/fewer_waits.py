"""A training step that makes the host wait less for its GPU, by overriding parts of detectron2; the numbers stay.

A wait empties the GPU's queue: the host can only queue the next kernels when it has the answer. detectron2 0.6 waits 84
times and more in a step of Mask R-CNN with 2 images, of which 30 to 35 remain (tests/benchmarks/RESULTS.md). Each class
says which it saves (N images, L levels). Losses and weights are bit for bit those of detectron2's own parts.

What remains cannot be had without copying long functions of detectron2: 6 N in `find_top_rpn_proposals` (finite scores
and boxes, empty boxes, NMS), 5 N in the choice of anchors and RoIs (`nonzero` of positives and of negatives, number of
background RoIs), N in `select_foreground_proposals`, 1 in the box loss.
"""

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import get_event_storage
from fvcore.nn import smooth_l1_loss
from torch import Tensor, nn

from rio.engine import info, telemetry
from rio.engine.rows import image_of_row

logger = logging.getLogger(__name__)


def wait_less(model: nn.Module) -> nn.Module:
    """Exchange the parts of a model that are exactly detectron2's classes for the ones below; returns the model.

    Parts whose methods take other parameters in the installed detectron2 stay its own, with a line in the log.
    """
    misfits = {quiet for quiet in (*_QUIET.values(), QuietPolygons) if not _fits(quiet)}
    misfits |= {QuietRCNN} if QuietPolygons in misfits else set()  # which makes them
    exchanged = {theirs: quiet for theirs, quiet in _QUIET.items() if quiet not in misfits}
    for module in list(model.modules()):
        for part in (module, *vars(module).values()):
            for one in part if isinstance(part, list) else [part]:
                if type(one) in exchanged:
                    one.__class__ = exchanged[type(one)]
    return model


def _fits(quiet: type) -> bool:
    theirs = quiet.__mro__[1]
    for name, method in vars(quiet).items():
        if not inspect.isfunction(method):
            continue
        expected = list(inspect.signature(getattr(theirs, name)).parameters) if hasattr(theirs, name) else None
        found = inspect.signature(method).parameters.values()
        if [p.name for p in found if p.name in (expected or ()) or p.default is p.empty] != expected:
            takes = f"takes ({', '.join(expected)})" if expected else "is missing"
            text = "detectron2 %s: %s.%s %s, not what rio was written for. Its own is used; a step waits more often."
            logger.warning(text, info.detectron2_origin()["version"], theirs.__name__, name, takes)
            return False
    return True


class QuietRCNN(GeneralizedRCNN):
    """Moves the batch at once and without waiting; N for the images, 2 N for boxes and classes, N more for bitmasks."""

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        return super().forward([{key: _moved(v, self.device) for key, v in one.items()} for one in batched_inputs])


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Instances):
        return Instances(value.image_size, **{key: _moved(own, device) for key, own in value.get_fields().items()})
    if isinstance(value, Boxes | BitMasks):
        return type(value)(value.tensor.to(device, non_blocking=True))
    if type(value) is PolygonMasks:
        return QuietPolygons(value.polygons, torch.arange(len(value), device=device))
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


class QuietPolygons(PolygonMasks):
    """Polygons of an image's objects whose selection, `index` (n,) int64, stays on the device until they are drawn:
    once an image, in place of 5 times.
    """

    def __init__(self, polygons: list[Any], index: Tensor | None = None):
        self._all, self._index = polygons, torch.arange(len(polygons)) if index is None else index

    @property
    def polygons(self) -> list[Any]:
        return [self._all[i] for i in self._index.tolist()]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, item: Any) -> PolygonMasks:
        return QuietPolygons(self._all, self._index[item]) if isinstance(item, Tensor) else super().__getitem__(item)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """(n, mask_size, mask_size) bool on the device of boxes (n, 4)."""
        both = torch.cat([self._index[:, None].double(), boxes.double()], dim=1).cpu()  # float64 holds either exactly
        chosen = PolygonMasks([self._all[i] for i in both[:, 0].long().tolist()])
        return chosen.crop_and_resize(both[:, 1:].to(boxes.dtype), mask_size).to(boxes.device, non_blocking=True)


class QuietMatcher(Matcher):
    """Asserts nothing of the IoU, which has no negative values, and sets the best matches by a mask; 3 N."""

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        if not match_quality_matrix.numel():
            return super().__call__(match_quality_matrix)
        best, matches = match_quality_matrix.max(dim=0)
        labels = torch.ones_like(matches, dtype=torch.int8)
        for label, low, high in zip(self.labels, self.thresholds[:-1], self.thresholds[1:], strict=True):
            labels.masked_fill_((best >= low) & (best < high), label)
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(labels, match_quality_matrix)
        return matches, labels

    def set_low_quality_matches_(self, match_labels: Tensor, match_quality_matrix: Tensor) -> None:
        best = match_quality_matrix.amax(dim=1, keepdim=True)  # of each object, ties included
        match_labels.masked_fill_((match_quality_matrix == best).any(dim=0), 1)


class QuietTransform(Box2BoxTransform):
    """Does not assert that boxes have a width, as proposals and anchors have; N + 1, in a cascade N + 3."""

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        (x, y, w, h), (target_x, target_y, target_w, target_h) = map(_centre_and_size, (src_boxes, target_boxes))
        wx, wy, ww, wh = self.weights
        shift = (wx * (target_x - x) / w, wy * (target_y - y) / h)
        return torch.stack((*shift, ww * torch.log(target_w / w), wh * torch.log(target_h / h)), dim=1)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height, width, height


class QuietRPN(RPN):
    """Finds the rows of its losses once, and counts them by that: 2 in place of 8, backward included."""

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """detectron2's losses; of another kind than smooth L1 its own."""
        if self.box_reg_loss_type != "smooth_l1":
            return super().losses(anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes)
        labels, number = torch.stack(gt_labels), len(gt_labels)
        foreground, used = ((labels >= least).nonzero(as_tuple=True) for least in (1, 0))
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", len(foreground[0]) / number)
        storage.put_scalar("rpn/num_neg_anchors", (len(used[0]) - len(foreground[0])) / number)
        boxes = type(anchors[0]).cat(anchors).tensor
        deltas = torch.stack([self.box2box_transform.get_deltas(boxes, own) for own in gt_boxes])
        predicted = torch.cat(pred_anchor_deltas, dim=1)[foreground]
        logits = torch.cat(pred_objectness_logits, dim=1)[used]
        found = {
            "loss_rpn_cls": F.binary_cross_entropy_with_logits(logits, labels[used].float(), reduction="sum"),
            "loss_rpn_loc": smooth_l1_loss(predicted, deltas[foreground], beta=self.smooth_l1_beta, reduction="sum"),
        }
        normalizer = self.batch_size_per_image * number
        return {name: loss / normalizer * self.loss_weight.get(name, 1.0) for name, loss in found.items()}


class QuietPooler(ROIPooler):
    """Sorts the boxes by level: once in place of L + 2 times, for boxes and for masks; with one level never."""

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """(R, C, P, P), see ROIPooler."""
        if not box_lists:
            return super().forward(x, box_lists)
        boxes = torch.cat([own.tensor for own in box_lists])
        image = image_of_row([*map(len, box_lists)], boxes).to(boxes.dtype)
        rois = torch.cat([image[:, None], boxes], dim=1)
        if len(self.level_poolers) == 1:
            return self.level_poolers[0](x[0], rois)
        levels = self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        level = assign_boxes_to_levels(box_lists, *levels)
        counts = (level[:, None] == torch.arange(len(x), device=level.device)).sum(0).tolist()
        parts = level.argsort(stable=True).split(counts)
        output = x[0].new_zeros(len(rois), x[0].shape[1], *self.output_size)
        for features, pooler, rows in zip(x, self.level_poolers, parts, strict=True):
            output.index_put_((rows,), pooler(features, rois[rows]))
        return output


class QuietMaskHead(MaskRCNNConvUpsampleHead):
    """Puts its statistics off, and chooses the classes' masks on the device; 4, and 2 more with a mask per class."""

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """The loss of training; in inference, and where masks are to be drawn, what MaskRCNNConvUpsampleHead does."""
        own = [one for one in instances if len(one)]
        if not self.training or self.vis_period > 0 or not own:
            return super().forward(x, instances)
        logits = self.layers(x)  # (R, C, M, M)
        side, classes = logits.shape[-1], torch.cat([one.gt_classes for one in own])
        truth = torch.cat([one.gt_masks.crop_and_resize(one.proposal_boxes.tensor, side) for one in own])
        if logits.shape[1] == 1:
            logits = logits[:, 0]
        else:
            logits = logits[torch.arange(len(logits), device=logits.device), classes]
        inside = truth if truth.dtype == torch.bool else truth > 0.5
        wrong, size = (logits > 0.0) != inside, logits.numel()

        def named(counts: list[float]) -> dict[str, float]:
            wrong, inside, wrong_inside = counts
            return {
                "mask_rcnn/accuracy": 1 - wrong / max(size, 1.0),
                "mask_rcnn/false_positive": (wrong - wrong_inside) / max(size - inside, 1.0),
                "mask_rcnn/false_negative": wrong_inside / max(inside, 1.0),
            }

        telemetry.put_later(torch.stack([one.sum() for one in (wrong, inside, wrong & inside)]), named)
        loss = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="mean")
        return {"loss_mask": loss * self.loss_weight}


_QUIET = {
    GeneralizedRCNN: QuietRCNN,
    Matcher: QuietMatcher,
    Box2BoxTransform: QuietTransform,
    RPN: QuietRPN,
    ROIPooler: QuietPooler,
    MaskRCNNConvUpsampleHead: QuietMaskHead,
}


class _OneTransfer:
    """Losses and what `telemetry.put_later` was given come to the host together: 1 in place of 1 a loss and more."""

    def run_step(self) -> None:
        with telemetry.collected() as self._statistics:
            super().run_step()  # type: ignore[misc]
        for values, put in self._statistics:  # a detectron2 that calls no _write_metrics
            put(values.tolist())

    def _write_metrics(self, loss_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> None:
        columns = [torch.stack([loss.detach().double() for loss in loss_dict.values()])]
        columns += [column.double() for column, _ in self._statistics]
        losses, *statistics = torch.cat(columns).cpu().split([*map(len, columns)])  # float64 holds all of them exactly
        super()._write_metrics(dict(zip(loss_dict, losses, strict=True)), *args, **kwargs)  # type: ignore[misc]
        for (_, put), values in zip(self._statistics, statistics, strict=True):
            put(values.tolist())
        self._statistics.clear()


class Step(_OneTransfer, SimpleTrainer):
    """detectron2's training step, with one transfer."""


class AMPStep(_OneTransfer, AMPTrainer):
    """The same in mixed precision."""
