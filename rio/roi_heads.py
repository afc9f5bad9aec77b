"""Where the memory bank meets the loss: RoI heads and their box predictor.

    N: images of a step            R: RoIs of a step, all images together     M: replayed rows of a step
    K: foreground classes          D: width of an RoI feature                 C: columns of the classifier

The bank belongs to the predictor: ``forward`` sees the RoI features, ``losses`` their labels. So the heads only
exchange the predictor, and detectron2's forward, mask, cascade and predicted-box code runs unchanged on the R RoIs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor, nn

from rio.classifier import CosineClassifier
from rio.data.errors import check
from rio.engine import telemetry
from rio.losses import build_calibration, build_loss
from rio.losses.base import Loss
from rio.losses.calibration import Calibration
from rio.losses.counts import ClassCounts
from rio.losses.softmax import Softmax
from rio.memory_bank import MemoryBank


class Predictions(tuple[Tensor, Tensor]):
    """detectron2's (scores, deltas), which it unpacks as such, with the features they were predicted from."""

    features: Tensor


class RIOFastRCNNOutputLayers(FastRCNNOutputLayers):  # type: ignore[misc]
    """detectron2's box predictor with a choice of classifier and, in training, replay from a memory bank.

    Args:
        input_shape: of the RoI features.
        classifier: "cosine" or "linear" (detectron2's own).
        cosine_scale: s, only for "cosine".
        cls_loss: of ``rio.losses``, which says how many columns the classifier has; None = softmax cross-entropy.
        calibration: of softmax scores, at inference; None = none.
        memory_bank: None = no replay. It is only sampled and written in training with gradients enabled.
        replay_losses: the losses that replayed rows enter, of "cls" and "box".
        class_frequency: frequency group of each of the K classes, one letter r, c or f per class, for the
            telemetry; "" = not known.
        **kwargs: of detectron2's ``FastRCNNOutputLayers``.
    """

    @configurable  # type: ignore[untyped-decorator]
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        classifier: str = "linear",
        cosine_scale: float = 48.0,
        cls_loss: Loss | None = None,
        calibration: Calibration | None = None,
        memory_bank: MemoryBank | None = None,
        replay_losses: Sequence[str] = ("cls", "box"),
        class_frequency: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape, **kwargs)
        width, number, cls_or_box = self.bbox_pred.in_features, self.num_classes, {"cls", "box"}
        bank_of = None if memory_bank is None else (memory_bank.feature_dim, memory_bank.num_classes)
        for name, good, expected, found in (
            ("classifier", classifier in ("cosine", "linear"), "'cosine' or 'linear'", classifier),
            ("replay_losses", cls_or_box >= {*replay_losses} > set(), "one or both of 'cls', 'box'", replay_losses),
            ("memory_bank", bank_of in (None, (width, number)), f"feature_dim {width}, num_classes {number}", bank_of),
        ):
            check(good, name, expected, found, "correct the argument or its key")
        self.cls_loss, self.calibration = cls_loss or Softmax(ClassCounts(number)), calibration
        if classifier == "cosine":
            self.cls_score: nn.Module = CosineClassifier(width, self.cls_loss.columns, cosine_scale)
        elif not isinstance(self.cls_loss, Softmax):
            self.cls_score = linear = nn.Linear(width, self.cls_loss.columns)
            nn.init.normal_(linear.weight, std=0.01)  # detectron2's
            nn.init.constant_(linear.bias, self.cls_loss.initial_bias)
        self.memory_bank, self.replay_losses = memory_bank, tuple(replay_losses)
        groups = telemetry.frequency_groups(class_frequency, number)
        self.register_buffer("frequency_group", groups, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, stage: int = 0) -> dict[str, Any]:
        rio, bank, number = cfg.MODEL.RIO, None, cfg.MODEL.ROI_HEADS.NUM_CLASSES
        advice = "let the trainer resolve 0 to that of the training set, or take the config.yaml of a run"
        check(number >= 1, "MODEL.ROI_HEADS.NUM_CLASSES", "at least 1", number, advice)
        if rio.BANK_ENABLED:
            bank = MemoryBank(
                num_classes=number,
                class_ids=rio.BANK_CLASS_IDS,
                feature_dim=input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1),
                slots_per_class=rio.SLOTS_PER_CLASS,
                replay_per_class=rio.REPLAY_PER_CLASS,
                replay_absent_classes=rio.REPLAY_ABSENT_CLASSES,
                write_max_per_object=rio.WRITE_MAX_PER_OBJECT,
                storage_dtype=getattr(torch, rio.BANK_DTYPE),
                seed=max(cfg.SEED, 0) + stage,
                sync=rio.BANK_SYNC,
            )
        theirs: dict[str, Any] = super().from_config(cfg, input_shape)
        return theirs | {
            "classifier": rio.CLASSIFIER,
            "cosine_scale": rio.COSINE_SCALE,
            "cls_loss": build_loss(rio, number),
            "calibration": build_calibration(rio, number),
            "memory_bank": bank,
            "replay_losses": rio.REPLAY_LOSSES,
            "class_frequency": rio.CLASS_FREQUENCY,
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits (R, C), deltas (R, 4 or K * 4)) of RoI features (R, D); C = K + 1 for softmax, as detectron2."""
        x = torch.flatten(x, start_dim=1)
        predictions: tuple[Tensor, Tensor] = super().forward(x)
        if self.memory_bank is not None and self.training and torch.is_grad_enabled():
            predictions = Predictions(predictions)
            predictions.features = x.detach()
        return predictions

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """detectron2's losses: means over the R RoIs of the N images, and over R + M rows where replay enters.

        Args:
            predictions: what ``forward`` returned.
            proposals: N Instances with "proposal_boxes", "gt_classes" and, if the image has objects, "gt_boxes".

        Returns:
            "loss_cls", "loss_box_reg" (detectron2's names), weighted by ``loss_weight``; without the second where the
            box regressor is frozen.
        """
        logits, deltas = predictions
        classes, boxes, gt_boxes = _columns(proposals, deltas.device)
        softmax = isinstance(self.cls_loss, Softmax)
        telemetry.log_accuracy(logits if softmax else self.cls_loss.scores(logits.detach()), classes, self.num_classes)
        bank, replay, features = self.memory_bank, None, getattr(predictions, "features", None)
        if bank is not None and features is not None:  # sample what was there before, then write this step's RoIs
            replay = bank.sample(classes, dtype=features.dtype)
            bank.write(features, boxes, gt_boxes, classes, rois_per_image=[*map(len, proposals)])
        if torch.is_grad_enabled() and (proposals or features is not None) and telemetry.is_log_step():
            telemetry.log(classes, self.num_classes, self.frequency_group, bank, features, replay)

        rows = [logits, classes]
        if replay is not None and "cls" in self.replay_losses:
            replayed = [self.cls_score(replay.features), replay.gt_classes]
            rows = [torch.cat(pair) for pair in zip(rows, replayed, strict=True)]
        found = {"loss_cls": self.cls_loss(*rows)}
        if self.bbox_pred.weight.requires_grad:
            rows = [boxes, gt_boxes, deltas, classes]
            if replay is not None and "box" in self.replay_losses:
                replayed = [replay.proposal_boxes, replay.gt_boxes, self.bbox_pred(replay.features), replay.gt_classes]
                rows = [torch.cat(pair) for pair in zip(rows, replayed, strict=True)]
            found["loss_box_reg"] = self.box_reg_loss(*rows)
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in found.items()}

    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> list[Tensor]:
        """Each image's scores (its number of RoIs, K + 1), the background's last."""
        logits, calibrate = predictions[0], self.calibration
        scores = self.cls_loss.scores(logits) if calibrate is None else calibrate(logits, self.cls_score)
        return list(torch.split(scores, [len(p) for p in proposals]))


def _columns(proposals: list[Instances], device: torch.device) -> list[Tensor]:
    """Of all images' RoIs: (R,) int64 class ids, (R, 4) proposal boxes, (R, 4) boxes of their objects."""
    classes, boxes = [torch.zeros(0, dtype=torch.int64, device=device)], [torch.zeros(0, 4, device=device)]
    # An image without objects has no gt_boxes; its RoIs are background, whose box is never read.
    gt_boxes = [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
    own, theirs = [p.gt_classes for p in proposals], [p.proposal_boxes.tensor for p in proposals]
    return [torch.cat(column) for column in (classes + own, boxes + theirs, boxes + gt_boxes)]


def _exchange_predictor(
    cfg: CfgNode, predictor: FastRCNNOutputLayers, shape: ShapeSpec, stage: int = 0
) -> RIOFastRCNNOutputLayers:
    """A RIO predictor in place of the one detectron2 built, with its initial weights where they exist.

    The global random state stays as detectron2 left it: with one seed all other parts of the model start equal, so
    arms of a study differ only in what they compare.
    """
    transform = predictor.box2box_transform
    with torch.random.fork_rng(devices=[]):
        ours: RIOFastRCNNOutputLayers = RIOFastRCNNOutputLayers(cfg, shape, stage=stage, box2box_transform=transform)
    ours.bbox_pred.load_state_dict(predictor.bbox_pred.state_dict())
    if cfg.MODEL.RIO.CLASSIFIER == "linear" and isinstance(ours.cls_loss, Softmax):
        ours.cls_score.load_state_dict(predictor.cls_score.state_dict())
    return ours


@ROI_HEADS_REGISTRY.register()
class RIOROIHeads(StandardROIHeads):  # type: ignore[misc]
    """StandardROIHeads with ``RIOFastRCNNOutputLayers``; with everything off, exactly StandardROIHeads."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        found: dict[str, Any] = super()._init_box_head(cfg, input_shape)
        found["box_predictor"] = _exchange_predictor(cfg, found["box_predictor"], found["box_head"].output_shape)
        return found


@ROI_HEADS_REGISTRY.register()
class RIOCascadeROIHeads(CascadeROIHeads):  # type: ignore[misc]
    """CascadeROIHeads with ``RIOFastRCNNOutputLayers``: one bank per stage, of that stage's features."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        found: dict[str, Any] = super()._init_box_head(cfg, input_shape)
        stages = enumerate(zip(found["box_heads"], found["box_predictors"], strict=True))
        found["box_predictors"] = [_exchange_predictor(cfg, own, head.output_shape, n) for n, (head, own) in stages]
        return found
