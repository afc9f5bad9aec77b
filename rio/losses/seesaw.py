"""Seesaw loss: a rarer class is punished less, but more where it is scored too high; objectness of its own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rio.engine.rows import summed
from rio.losses.base import Loss
from rio.losses.counts import ClassCounts

EPSILON = 0.01


class Seesaw(Loss):
    """Seesaw loss (Wang et al., CVPR 2021).

    K + 2 columns: the classes, then object and background. For a row of class y and another class j

        M_yj = min(1, N_j / N_y)^p                        mitigation                                             (1)
        C_yj = max(1, s_j / max(s_y, 0.01))^q             compensation                                           (2)
        L = 1/R (sum over rows with an object of CE(z_j + ln(M_yj C_yj))
                 + sum over all rows of CE(last two columns))                                                    (3)

    with s the softmax over the K columns, without gradient, and N_c the rows of class c in all steps so far, this one
    included, at least 1, over all processes. Scores: softmax over the classes x softmax of "object".
    """

    options = ("SEESAW_P", "SEESAW_Q")
    extra_columns = 2
    seen: Tensor

    def __init__(self, counts: ClassCounts, seesaw_p: float = 0.8, seesaw_q: float = 2.0) -> None:
        super().__init__(counts)
        self.p, self.q = seesaw_p, seesaw_q
        self.register_buffer("seen", torch.zeros(self.num_classes, dtype=torch.int64))

    def loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        number, foreground = self.num_classes, classes < self.num_classes
        # All rows, as picking those with an object would wait for the device; the others are ignored in the sum.
        z, y = logits[:, :number], classes.clamp(max=number - 1)
        step = torch.zeros_like(self.seen).index_add_(0, y, foreground.to(y.dtype))
        if self.learns():
            self.seen += summed(step)
        seen = self.seen if self.learns() else self.seen + step
        count, own = seen.clamp(min=1).to(z.dtype), z.detach().softmax(dim=1)
        mitigation = (count / count[y, None]).clamp(max=1).log() * self.p  # ln of (1)
        compensation = (own / own.gather(1, y[:, None]).clamp(min=EPSILON)).clamp(min=1).log() * self.q
        z = z + mitigation + compensation  # both are 0 for y itself
        loss = F.cross_entropy(z, classes, ignore_index=number, reduction="sum")  # (3)
        loss = loss + F.cross_entropy(logits[:, number:], (~foreground).long(), reduction="sum")
        return loss / max(len(classes), 1)

    def scores(self, logits: Tensor) -> Tensor:
        objectness = logits[:, self.num_classes :].softmax(dim=1)
        return torch.cat([logits[:, : self.num_classes].softmax(dim=1) * objectness[:, :1], objectness[:, 1:]], dim=1)
