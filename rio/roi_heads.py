"""Where the memory bank meets the loss: RoI heads and their predictor.

Shape shorthand in this module:

    N: images of a step
    R: RoIs of a step, all images together
    M: replayed rows of a step
    K: foreground classes; class_id K is background
    D: width of an RoI feature (the box head's output)
    G: objects of an image

The bank belongs to the box predictor: its ``forward`` sees the RoI features, its ``losses`` their labels. So
the heads only exchange the predictor, and detectron2's forward, mask, cascade and predicted-box code runs as
it is, on the N images' RoIs alone.

Which object an RoI was matched to comes as the field "gt_object_ids" (G, 2) of the ground truth, image id and
place among its annotations (rio.engine.loader's mapper adds it); detectron2 carries it to the proposals as any other
"gt_" field. Ground truth without it is fine: the bank then knows no objects.

Telemetry, in metrics.json and TensorBoard every LOG_PERIOD steps ("stage0/..." and so on in a cascade). What
cannot be computed in a step is left out of it.

    memory_bank/fill                        share of the slots that hold an RoI
    memory_bank/stored                      RoIs stored, mean over the target classes with any
    memory_bank/distinct_objects, _images   different objects and images among them; only where all are known
    memory_bank/replayed_per_foreground     replayed rows a foreground RoI of the step
    memory_bank/age                         mean steps since the replayed rows were written
    memory_bank/drift                       mean cosine of a replayed feature and the mean of the step's own RoI
                                            features of its class, where the class has any
    rois/share_r, _c, _f                    the step's foreground RoIs by frequency group of their class, 0..1
    rois/share_r_with_replay, ...           the same with the replayed rows
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat, cross_entropy
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from rio.classifier import CosineClassifier
from rio.memory_bank import MemoryBank, Replay

LOG_PERIOD = 20  # steps; the period of detectron2's writers, for each of their lines
FREQUENCY_GROUPS = "rcf"


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
        class_frequency: the frequency group of each of the K classes, one letter r, c or f a class; "" = not
            known, the telemetry then leaves out the shares of the groups.
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
        class_frequency: str = "",
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
            raise ValueError(f"memory_bank: expected num_classes {self.num_classes}, found {memory_bank.num_classes}")
        if class_frequency and (
            len(class_frequency) != self.num_classes or not set(class_frequency) <= set(FREQUENCY_GROUPS)
        ):
            raise ValueError(
                f"class_frequency: expected {self.num_classes} letters r, c or f, one a class, found "
                f"{len(class_frequency)}: {class_frequency[:40]!r} (MODEL.RIO.CLASS_FREQUENCY)"
            )
        if classifier == "cosine":
            self.cls_score = CosineClassifier(width, self.cls_score.out_features, cosine_scale)
        self.memory_bank = memory_bank
        self.replay_losses = tuple(replay_losses)
        self.replay_max_per_foreground = replay_max_per_foreground
        self.bank_start_iter = bank_start_iter
        # class_id + 1 -> r, c, f = 0, 1, 2; 3 = none of them. The shift gives "ignore" (-1) a place.
        groups = [FREQUENCY_GROUPS.index(letter) for letter in class_frequency]
        groups = torch.tensor([3, *groups, 3]) if groups else None
        self.register_buffer("frequency_group", groups, persistent=False)

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
            class_frequency=rio.CLASS_FREQUENCY,
        )
        if rio.BANK_ENABLED:
            ret["memory_bank"] = MemoryBank(
                num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
                class_ids=rio.BANK_CLASS_IDS,
                feature_dim=input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1),
                slots_per_class=rio.SLOTS_PER_CLASS,
                replay_per_class=rio.REPLAY_PER_CLASS,
                replay_order=rio.REPLAY_ORDER,
                replay_absent_classes=rio.REPLAY_ABSENT_CLASSES,
                write_max_per_object=rio.WRITE_MAX_PER_OBJECT,
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
        if not isinstance(predictions, Predictions):  # no bank, or no gradients: BN statistics, ...
            if self.memory_bank is None and torch.is_grad_enabled() and proposals and _is_log_step():
                self._log(cat([p.gt_classes for p in proposals]))
            return losses
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

    def _sample_and_write(self, predictions: Predictions, proposals: list[Instances]) -> Replay | None:
        bank, features = self.memory_bank, predictions.features
        object_ids = None
        if proposals:
            gt_classes = cat([p.gt_classes for p in proposals])
            proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals])
            # An image without objects has no gt_boxes and no ids; all its RoIs are background and never read.
            gt_boxes = cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
            if any(p.has("gt_object_ids") for p in proposals):
                object_ids = cat(
                    [
                        p.gt_object_ids if p.has("gt_object_ids") else p.gt_classes.new_full((len(p), 2), -1)
                        for p in proposals
                    ]
                )
        else:
            gt_classes = torch.zeros(0, dtype=torch.int64, device=features.device)
            proposal_boxes = gt_boxes = features.new_zeros(0, 4)

        replay = None
        if bank.iteration >= self.bank_start_iter:
            replay = bank.sample(gt_classes, max_per_foreground=self.replay_max_per_foreground, dtype=features.dtype)
        bank.write(
            features,
            proposal_boxes,
            gt_boxes,
            gt_classes,
            rois_per_image=[len(p) for p in proposals],
            object_ids=object_ids,
        )
        if _is_log_step():
            self._log(gt_classes, features, replay)
        return replay

    def _log(self, gt_classes: Tensor, features: Tensor | None = None, replay: Replay | None = None) -> None:
        """Write the telemetry of a step, with one synchronisation; see the module's docstring.

        Args:
            gt_classes: (R,) int64 of the step's own RoIs.
            features: (R, D) of the same; None without a bank.
            replay: what was sampled; None where replay has not begun, or without a bank.
        """
        found: dict[str, Tensor] = {}
        num_foreground = ((gt_classes >= 0) & (gt_classes < self.num_classes)).sum()
        if self.frequency_group is not None:
            own = self._rois_of_groups(gt_classes)
            found |= _shares("rois/share_{}", own)
        if self.memory_bank is not None:
            found |= {f"memory_bank/{k}": v for k, v in self.memory_bank.statistics().items()}
            num_replayed = 0 if replay is None else len(replay)
            found["memory_bank/replayed_per_foreground"] = num_replayed / num_foreground
            if replay is not None:
                step = self.memory_bank.iteration - 1  # this one; write() has counted it
                found["memory_bank/age"] = (step - replay.written_at).float().mean()
                found["memory_bank/drift"] = self.memory_bank.drift(replay, features, gt_classes)
            if self.frequency_group is not None:
                replayed = 0 if replay is None else self._rois_of_groups(replay.gt_classes)
                found |= _shares("rois/share_{}_with_replay", own + replayed)
        if found:
            storage = get_event_storage()
            for name, value in zip(found, torch.stack(list(found.values())).tolist(), strict=True):
                if math.isfinite(value):  # else there was nothing to compute it from, as a mean of no rows
                    # As it is: detectron2 would write the median of the last 20, which a resumed run lacks.
                    storage.put_scalar(name, value, smoothing_hint=False)

    def _rois_of_groups(self, classes: Tensor) -> Tensor:
        """(3,) int64: how many of the class ids (R,) are of frequency group r, c, f."""
        group = self.frequency_group.index_select(0, classes + 1)
        return (group[:, None] == torch.arange(3, device=group.device)).sum(0)


def _is_log_step() -> bool:
    return (get_event_storage().iter + 1) % LOG_PERIOD == 0


def _shares(name: str, counts: Tensor) -> dict[str, Tensor]:
    """The shares of (3,) counts by frequency group; NaN if all are 0."""
    shares = counts / counts.sum()
    return {name.format(group): share for group, share in zip(FREQUENCY_GROUPS, shares, strict=True)}


def _exchange_predictor(cfg: CfgNode, predictor: FastRCNNOutputLayers, shape: ShapeSpec, stage: int = 0) -> nn.Module:
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

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """detectron2's, which gives the later stages' proposals classes and boxes; here their objects too."""
        proposals = super()._match_and_label_boxes(proposals, stage, targets)
        if self.box_predictor[stage].memory_bank is not None:
            for own, target in zip(proposals, targets, strict=True):
                if len(target) and target.has("gt_object_ids"):
                    # As detectron2's matcher: the object of the highest IoU, the first of equal ones.
                    matched = pairwise_iou(target.gt_boxes, own.proposal_boxes).max(dim=0).indices
                    own.gt_object_ids = target.gt_object_ids[matched]
        return proposals
