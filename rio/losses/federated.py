"""Federated loss: a step trains the classes that are in it and some others, not all of them."""

import math

import torch
from torch import Tensor

from rio.losses.counts import ClassCounts
from rio.losses.sigmoid import Sigmoid


class Federated(Sigmoid):
    """Federated loss (Zhou et al., "Probabilistic two-stage detection", 2021; CenterNet2, detectron2 after v0.6).

    L = 1/R sum over rows i and classes j in A of BCE(z_ij, t_ij). A is drawn anew each step, for all rows of a process
    together: the values of y, of which the background is one, then others until there are S = FEDERATED_CLASSES,
    without replacement and with probability proportional to n_c^FEDERATED_POWER. More than S present: those alone.
    Classes without images are never drawn. "Federated" are the classes, not LVIS's lists of verified ones. Scores:
    sigmoid(z). The bias starts where sigmoid gives 0.01.
    """

    options = ("FEDERATED_CLASSES", "FEDERATED_POWER")
    initial_bias = -math.log(0.99 / 0.01)
    weight: Tensor

    def __init__(self, counts: ClassCounts, federated_classes: int = 50, federated_power: float = 0.5) -> None:
        super().__init__(counts)
        self.size, count = federated_classes, counts.of("image_count")
        self.register_buffer("weight", (count**federated_power * (count > 0)).float(), persistent=False)

    def weights(self, target: Tensor, classes: Tensor) -> Tensor:
        present, background = target.any(dim=0), (classes == self.num_classes).any()
        # The smallest of exponential times / weight are a draw without replacement; first those who are there.
        time = (torch.empty_like(self.weight).exponential_() / self.weight).masked_fill(present, -1.0)
        place = torch.empty_like(time).scatter_(0, time.argsort(), torch.arange(len(time), device=time.device).to(time))
        drawn = (place < self.size - background.long()) & time.isfinite()
        return (present | drawn).to(target.dtype)
