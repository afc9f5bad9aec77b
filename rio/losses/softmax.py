"""Softmax cross-entropy, detectron2's own and RIO's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rio.losses.base import Loss
from rio.losses.counts import ClassCounts


class Softmax(Loss):
    """L = mean over rows of -ln softmax(z)_y, over K + 1 columns; scores: softmax(z)."""

    def loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(logits, classes) if len(classes) else logits.sum() * 0.0

    def scores(self, logits: Tensor) -> Tensor:
        return F.softmax(logits, dim=-1)


class BalancedSoftmax(Softmax):
    """Balanced softmax (Ren et al., NeurIPS 2020); the logit-adjusted loss (Menon et al., ICLR 2021) with tau = 1.

    L = mean over rows of -ln softmax(z + tau ln pi)_y with pi_c = n_c / sum n and nothing added to the background:
    a frequent class is given its lead, so z need not learn it. Scores: softmax(z).
    """

    options = ("BALANCED_TAU",)
    prior: Tensor

    def __init__(self, counts: ClassCounts, balanced_tau: float = 1.0) -> None:
        super().__init__(counts)
        prior = torch.cat([balanced_tau * counts.log_share(), torch.zeros(1)])
        self.register_buffer("prior", prior.float(), persistent=False)

    def loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        return super().loss(logits + self.prior, classes)
