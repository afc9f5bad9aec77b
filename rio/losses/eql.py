"""Equalisation loss and DropLoss: rare classes are spared what other classes' objects and the background teach them."""

import torch
from torch import Tensor

from rio.losses.counts import ClassCounts
from rio.losses.sigmoid import Sigmoid


class EQL(Sigmoid):
    """Equalisation loss (Tan et al., CVPR 2020).

    The sigmoid loss with w_ij = 1 - E_i T_j (1 - t_ij): E_i = 1 for rows with an object, T_j = 1 for rare classes,
    those with n_j / N < EQL_THRESHOLD (0.0011 for LVIS v1, 0.00177 for v0.5). So an object of another class does not
    push a rare one down; background rows still do. Scores: sigmoid(z).
    """

    options: tuple[str, ...] = ("EQL_THRESHOLD",)
    rare: Tensor

    def __init__(self, counts: ClassCounts, eql_threshold: float = 0.0011) -> None:
        super().__init__(counts)
        self.register_buffer("rare", counts.frequency() < eql_threshold, persistent=False)

    def weights(self, target: Tensor, classes: Tensor) -> Tensor:
        spared = (classes < self.num_classes)[:, None] & self.rare & (target == 0)
        return (~spared).to(target.dtype)


class DropLoss(EQL):
    """DropLoss (Hsieh et al., AAAI 2021): EQL, and the background too spares rare classes, at random.

    In background row i and for rare class j, w_ij = 1 with probability rho, else 0, with rho the share of rare ones
    among the step's rows with an object (0 where there is none). So the fewer rare objects, the less they are pushed
    down.
    """

    def weights(self, target: Tensor, classes: Tensor) -> Tensor:
        number = (classes < self.num_classes).sum().clamp(min=1)
        rho = (target * self.rare).sum() / number
        background = (classes == self.num_classes)[:, None]
        dropped = background & self.rare & (torch.rand_like(target) >= rho)
        return super().weights(target, classes) * ~dropped
