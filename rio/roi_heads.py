"""Where the memory bank meets the loss: RoI heads and their predictor.

Shape shorthand in this module:

    N: images of a step
    R: RoIs of a step, all images together
    M: replayed rows of a step
    K: foreground classes; class_id K is background
    D: width of an RoI feature (the box head's output)

The bank belongs to the box predictor: its ``forward`` sees the RoI features, its ``losses`` their labels. So
the heads only exchange the predictor, and detectron2's forward, mask, cascade and predicted-box code runs as
it is, on the N images' RoIs alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat, cross_entropy
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from rio.classifier import CosineClassifier
from rio.memory_bank import MemoryBank, Replay

LOG_PERIOD = 20  # steps; the period of detectron2's writers, for each of their lines


class Predictions(tuple):
    """detectron2's (scores, deltas), with the features they were predicted from as an attribute.

    A tuple of two, because detectron2 unpacks it as such in several places.
    """

    features: Tensor

    @classmethod
    def of(cls, predictions: tuple[Tensor, Tensor], features: Tensor) -> Predictions:
        result = cls(predictions)
        result.features = features
        return result


class RIOFastRCNNOutputLayers(FastRCNNOutputLayers):
    """detectron2's box predictor with a choice of classifier and, in training, replay from a memory bank.

    Args:
        input_shape: of the RoI features.
        classifier: "cosine" or "linear" (detectron2's own).
        cosine_scale: s, only for "cosine".
        memory_bank: None = no replay. It is sampled and written in training with gradients enabled, never
            else.
        replay_losses: the losses that replayed rows enter, of "cls" and "box".
        replay_max_per_foreground: replay at most this many rows a foreground RoI; 0 = no cap.
        bank_start_iter: first training step with replay; the bank is written from the first step on.
        **kwargs: detectron2's ``FastRCNNOutputLayers``.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        classifier: str = "linear",
        cosine_scale: float = 48.0,
        memory_bank: MemoryBank | None = None,
        replay_losses: Sequence[str] = ("cls", "box"),
        replay_max_per_foreground: float = 0.0,
        bank_start_iter: int = 0,
        **kwargs,
    ) -> None:
        super().__init__(input_shape, **kwargs)
        if classifier not in ("cosine", "linear"):
            raise ValueError(f"classifier: expected 'cosine' or 'linear', found {classifier!r}")
        if not replay_losses or not set(replay_losses) <= {"cls", "box"}:
            raise ValueError(f"replay_losses: expected one or both of 'cls', 'box', found {replay_losses!r}")
        width = self.cls_score.in_features
        if memory_bank is not None and memory_bank.feature_dim != width:
            raise ValueError(
                f"memory_bank: expected feature_dim {width}, the width of the box head's output, found "
                f"{memory_bank.feature_dim}"
            )
        if memory_bank is not None and memory_bank.num_classes != self.num_classes:
            raise ValueError(
                f"memory_bank: expected num_classes {self.num_classes}, found {memory_bank.num_classes}"
            )
        if classifier == "cosine":
            self.cls_score = CosineClassifier(width, self.cls_score.out_features, cosine_scale)
        self.memory_bank = memory_bank
        self.replay_losses = tuple(replay_losses)
        self.replay_max_per_foreground = replay_max_per_foreground
        self.bank_start_iter = bank_start_iter

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, stage: int = 0) -> dict:
        ret = super().from_config(cfg, input_shape)
        rio = cfg.MODEL.RIO
        ret.update(
            classifier=rio.CLASSIFIER,
            cosine_scale=rio.COSINE_SCALE,
            memory_bank=None,
            replay_losses=rio.REPLAY_LOSSES,
            replay_max_per_foreground=rio.REPLAY_MAX_PER_FOREGROUND,
            bank_start_iter=rio.BANK_START_ITER,
        )
        if rio.BANK_ENABLED:
            ret["memory_bank"] = MemoryBank(
                num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
                class_ids=rio.BANK_CLASS_IDS,
                feature_dim=input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1),
                slots_per_class=rio.SLOTS_PER_CLASS,
                replay_per_class=rio.REPLAY_PER_CLASS,
                replay_order=rio.REPLAY_ORDER,
                storage_dtype=getattr(torch, rio.BANK_DTYPE),
                seed=max(cfg.SEED, 0) + stage,
                sync=rio.BANK_SYNC,
            )
        return ret

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(scores (R, K + 1), deltas (R, 4 or K * 4)) of RoI features (R, D), as detectron2."""
        if x.dim() > 2:
            x = torch.flatten(x, start_dim=1)
        predictions = super().forward(x)
        if self.memory_bank is not None and self.training and torch.is_grad_enabled():
            return Predictions.of(predictions, x.detach())
        return predictions

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """detectron2's losses on the N images' RoIs, with the replayed rows taken into the means.

        Both of detectron2's losses are sums over rows divided by the number of rows. With R own and M
        replayed rows the joint mean is R/(R+M) of the own one and M/(R+M) of the replayed one, so detectron2
        computes (and logs) the own one untouched.

        Args:
            predictions: what ``forward`` returned.
            proposals: N Instances with "proposal_boxes", "gt_classes" and, where the image has objects,
                "gt_boxes".

        Returns:
            "loss_cls", "loss_box_reg" (detectron2's names), weighted by ``loss_weight``.
        """
        losses = super().losses(predictions, proposals)
        replay = self._sample_and_write(predictions, proposals)
        if replay is None or len(replay) == 0:
            return losses

        num_own, num_replayed = predictions[0].shape[0], len(replay)
        share = num_replayed / (num_own + num_replayed)
        joint = {}
        if "cls" in self.replay_losses:
            joint["loss_cls"] = self._replayed_cls_loss(replay)
        if "box" in self.replay_losses:
            joint["loss_box_reg"] = self.box_reg_loss(
                replay.proposal_boxes, replay.gt_boxes, self.bbox_pred(replay.features), replay.gt_classes
            )
        for name, loss in joint.items():
            losses[name] = (1 - share) * losses[name] + share * self.loss_weight.get(name, 1.0) * loss
        return losses

    def _replayed_cls_loss(self, replay: Replay) -> Tensor:
        scores = self.cls_score(replay.features)
        if getattr(self, "use_sigmoid_ce", False):  # detectron2 after v0.6
            return self.sigmoid_cross_entropy_loss(scores, replay.gt_classes)
        return cross_entropy(scores, replay.gt_classes, reduction="mean")

    def _sample_and_write(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> Replay | None:
        if not isinstance(predictions, Predictions):
            return None  # no bank, or a pass without gradients: BN statistics, a validation loss
        bank, features = self.memory_bank, predictions.features
        if proposals:
            gt_classes = cat([p.gt_classes for p in proposals])
            proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals])
            # An image without objects has no gt_boxes; all its RoIs are background and never read.
            gt_boxes = cat(
                [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
            )
        else:
            gt_classes = torch.zeros(0, dtype=torch.int64, device=features.device)
            proposal_boxes = gt_boxes = features.new_zeros(0, 4)

        replay = None
        if bank.iteration >= self.bank_start_iter:
            replay = bank.sample(
                gt_classes, max_per_foreground=self.replay_max_per_foreground, dtype=features.dtype
            )
        bank.write(
            features, proposal_boxes, gt_boxes, gt_classes, rois_per_image=[len(p) for p in proposals]
        )
        self._log(gt_classes, 0 if replay is None else len(replay))
        return replay

    def _log(self, gt_classes: Tensor, num_replayed: int) -> None:
        storage = get_event_storage()
        if (storage.iter + 1) % LOG_PERIOD:
            return
        foreground = ((gt_classes >= 0) & (gt_classes < self.num_classes)).sum()
        fill, foreground = torch.stack([self.memory_bank.fill(), foreground]).tolist()  # one synchronisation
        storage.put_scalar("memory_bank/fill", fill)
        storage.put_scalar("memory_bank/replayed_per_foreground", num_replayed / max(foreground, 1))


def _exchange_predictor(
    cfg: CfgNode, predictor: FastRCNNOutputLayers, shape: ShapeSpec, stage: int = 0
) -> nn.Module:
    """A RIO predictor in place of the one detectron2 built, with its initial weights where they exist.

    The global random state is left as detectron2 left it: with one seed all other parts of the model start
    equal, whatever the classifier and the bank, and arms of a study differ in nothing but what they compare.
    """
    with torch.random.fork_rng(devices=[]):
        ours = RIOFastRCNNOutputLayers(cfg, shape, stage=stage, box2box_transform=predictor.box2box_transform)
    ours.bbox_pred.load_state_dict(predictor.bbox_pred.state_dict())
    if cfg.MODEL.RIO.CLASSIFIER == "linear":
        ours.cls_score.load_state_dict(predictor.cls_score.state_dict())
    return ours


def _check_num_classes(cfg: CfgNode) -> None:
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES < 1:
        raise ValueError(
            "MODEL.ROI_HEADS.NUM_CLASSES: expected the number of classes, found"
            f" {cfg.MODEL.ROI_HEADS.NUM_CLASSES}. 0 means as many as the training set has: let the trainer"
            " resolve it, or take the config.yaml of a run"
        )


@ROI_HEADS_REGISTRY.register()
class RIOROIHeads(StandardROIHeads):
    """StandardROIHeads with ``RIOFastRCNNOutputLayers``; with everything off, exactly StandardROIHeads."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        _check_num_classes(cfg)
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = _exchange_predictor(cfg, ret["box_predictor"], ret["box_head"].output_shape)
        return ret


@ROI_HEADS_REGISTRY.register()
class RIOCascadeROIHeads(CascadeROIHeads):
    """CascadeROIHeads with ``RIOFastRCNNOutputLayers``: one bank a stage, of that stage's features."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        _check_num_classes(cfg)
        ret = super()._init_box_head(cfg, input_shape)
        heads_and_predictors = zip(ret["box_heads"], ret["box_predictors"], strict=True)
        ret["box_predictors"] = [
            _exchange_predictor(cfg, predictor, head.output_shape, stage)
            for stage, (head, predictor) in enumerate(heads_and_predictors)
        ]
        return ret
