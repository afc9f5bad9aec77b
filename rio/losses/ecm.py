"""Effective class margins: how far a class's logits are from a fair decision follows from its count alone."""

import torch
from torch import Tensor

from rio.losses.counts import ClassCounts
from rio.losses.sigmoid import SigmoidWithBackground

BACKGROUND = 6.3313  # of the official code: the background's count per image of a class, summed over the classes


class ECM(SigmoidWithBackground):
    """Effective class margin loss (Cho & Kraehenbuehl, ECCV 2022); nothing to tune.

    K + 1 columns; n+ = n_c, and 6.3313 sum n for the background; n- = the sum of all n+ but the column's own. With
    a = n+^1/4 and b = n-^1/4 the margins are m+ = ln((a + b) / b), m- = ln((a + b) / a), and

        p = e^(z + m+) / (e^(z + m+) + e^(-z + m-)) = sigmoid(2 z + m+ - m-) = sigmoid(2 z + ln(a / b))          (1)
        L = 1/R sum over rows and columns of w_c BCE(p, t),  w = r ln((1 + r) / r),  r = n- / n+                 (2)

    Scores: sigmoid(z_c) (1 - sigmoid(z_bg)), without the factor 2 and the margins.
    """

    margin: Tensor
    weight: Tensor

    def __init__(self, counts: ClassCounts) -> None:
        super().__init__(counts)
        count = counts.of("image_count", at_least=1)
        positive = torch.cat([count, BACKGROUND * count.sum(0, keepdim=True)])
        ratio = (positive.sum() - positive) / positive
        self.register_buffer("margin", (-ratio.log() / 4).float(), persistent=False)  # ln(a / b)
        self.register_buffer("weight", (ratio * torch.log1p(1 / ratio)).float(), persistent=False)

    def cost(self, logits: Tensor, target: Tensor) -> Tensor:
        return super().cost(2 * logits + self.margin, target)  # (1)

    def weights(self, target: Tensor, classes: Tensor) -> Tensor:
        return self.weight
