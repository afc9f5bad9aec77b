"""Equalisation loss v2: weights that balance the gradients a class has got as a positive and as a negative."""

import torch
from torch import Tensor

from rio.engine.rows import summed
from rio.losses.counts import ClassCounts
from rio.losses.sigmoid import SigmoidWithBackground


class EQLv2(SigmoidWithBackground):
    """Equalisation loss v2 (Tan et al., CVPR 2021).

    L = 1/R sum over rows i and K + 1 columns j of W_ij BCE(z_ij, t_ij),  W = w+ t + w- (1 - t)                  (1)

        w-_j = 1 / (1 + exp(-gamma (g_j - mu))),  w+_j = 1 + alpha (1 - w-_j),  both 1 for the background        (2)
        g_j = G+_j / (G-_j + 1e-10)                                                                              (3)

    with G+_j, G-_j the sums of |sigmoid(z_ij) - t_ij| W_ij over rows that are j and are not, over all steps before this
    one and all processes. As long as a class has got nothing, g is 100 and both weights are 1. Scores: sigmoid(z_c)
    (1 - sigmoid(z_bg)). The bias starts at 0.
    """

    options = ("EQLV2_GAMMA", "EQLV2_MU", "EQLV2_ALPHA")
    gradients: Tensor

    def __init__(
        self, counts: ClassCounts, eqlv2_gamma: float = 12.0, eqlv2_mu: float = 0.8, eqlv2_alpha: float = 4.0
    ) -> None:
        super().__init__(counts)
        self.gamma, self.mu, self.alpha = eqlv2_gamma, eqlv2_mu, eqlv2_alpha
        self.register_buffer("gradients", torch.zeros(2, self.num_classes, dtype=torch.float64))  # G+, G-

    def weights(self, target: Tensor, classes: Tensor) -> Tensor:
        positive, negative = self.gradients
        ratio = torch.where(negative > 0, positive / (negative + 1e-10), 100.0)  # (3)
        below = torch.sigmoid(self.gamma * (ratio - self.mu))
        above = 1 + self.alpha * (1 - below)  # (2)
        below, above = (torch.cat([w, w.new_ones(1)]).to(target.dtype) for w in (below, above))
        return above * target + below * (1 - target)

    def loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        target = self.one_hot(logits, classes)
        weight = self.weights(target, classes)
        if self.learns():
            pull = (logits.detach().sigmoid() - target).abs() * weight
            got = torch.stack([(pull * t).sum(0, dtype=torch.float64)[:-1] for t in (target, 1 - target)])
            self.gradients += summed(got)
        return (self.cost(logits, target) * weight).sum() / max(len(classes), 1)  # (1)
