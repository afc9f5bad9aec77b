"""Gumbel activation in place of the sigmoid; with DropLoss's weights it is GOL."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rio.losses.counts import ClassCounts
from rio.losses.eql import DropLoss


class Gumbel(DropLoss):
    """Gumbel activation and Gumbel optimised loss, GOL (Alexandridis et al., ECCV 2022).

    L = 1/R sum w_ij BCE(p_ij, t_ij) with p = exp(-exp(-z)) and z clamped to [-4, 10], over K columns. Its gradient for
    an object, -exp(-z), grows without the sigmoid's bound of 1 where a class is scored too low, down to z = -3.3: where
    p < 1e-12 torch's BCE lets it vanish, in the official code as here. Weights w are 1, or with GUMBEL_DROPLOSS
    DropLoss's, which makes it GOL. Scores: p of the z as it is. The bias starts at -2, p = 0.0006.
    """

    options = ("GUMBEL_DROPLOSS", "EQL_THRESHOLD")
    initial_bias = -2.0

    def __init__(self, counts: ClassCounts, gumbel_droploss: bool = False, eql_threshold: float = 0.0011) -> None:
        super().__init__(counts, eql_threshold)
        self.drops = gumbel_droploss

    def cost(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy(torch.exp(-torch.exp(-logits.clamp(-4, 10))), target, reduction="none")

    def weights(self, target: Tensor, classes: Tensor) -> Tensor:
        return super().weights(target, classes) if self.drops else torch.ones_like(target[:1])

    def scores(self, logits: Tensor) -> Tensor:
        return self.with_background(torch.exp(-torch.exp(-logits)))
