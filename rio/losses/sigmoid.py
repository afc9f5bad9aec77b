"""Sigmoid cross-entropy: one yes-or-no question per class, none for the background."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rio.losses.base import Loss


class Sigmoid(Loss):
    """L = 1/R sum over rows i and classes j of w_ij BCE(z_ij, t_ij), over K columns; t is one-hot, 0 for background.

    Here all weights w are 1; federated, EQL, DropLoss and Gumbel change them or the BCE. Scores: sigmoid(z). The bias
    starts where sigmoid gives 0.001, else K wrong answers of 0.5 a row would drown the rest.
    """

    extra_columns = 0
    initial_bias = -math.log(0.999 / 0.001)

    def loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        target = self.one_hot(logits, classes)
        cost = self.cost(logits, target) * self.weights(target, classes)
        return cost.sum() / max(len(classes), 1)

    def one_hot(self, logits: Tensor, classes: Tensor) -> Tensor:
        """(R, C) targets in the logits' dtype."""
        return F.one_hot(classes, self.num_classes + 1)[:, : self.columns].to(logits.dtype)

    def cost(self, logits: Tensor, target: Tensor) -> Tensor:
        """(R, C) cost of every answer."""
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none")

    def weights(self, target: Tensor, classes: Tensor) -> Tensor:
        """(R, C), or what broadcasts to it."""
        return torch.ones_like(target[:1])

    def scores(self, logits: Tensor) -> Tensor:
        return self.with_background(logits.sigmoid())

    def with_background(self, scores: Tensor) -> Tensor:
        """(R, K + 1): nothing scores the background, so it gets what the best class lacks; for logged accuracies."""
        return torch.cat([scores, 1 - scores.amax(dim=1, keepdim=True)], dim=1)


class SigmoidWithBackground(Sigmoid):
    """The same over K + 1 columns, the last of which answers "background"; scores: sigmoid(z_c) (1 - sigmoid(z_bg))."""

    extra_columns = 1
    initial_bias = 0.0

    def scores(self, logits: Tensor) -> Tensor:
        background = logits[:, -1:].sigmoid()
        return torch.cat([logits[:, :-1].sigmoid() * (1 - background), background], dim=1)
