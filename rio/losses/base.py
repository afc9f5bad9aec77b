"""What the box predictor asks of a loss.

R: rows, own and replayed RoIs alike        K: foreground classes, class_id K is background
C: columns of the logits
"""

import torch
from torch import Tensor, nn

from rio.losses.counts import ClassCounts


class Loss(nn.Module):
    """A classification loss over all rows of a step, and what goes with it.

    A step calls it once, with its own and its replayed rows: a row is a row, so replayed ones count as RoIs wherever a
    loss counts them. State is buffers, changed in training with gradients only and summed over processes. What is
    drawn at random comes from torch's generator, which the trainer seeds anew before every step.

    Attributes:
        options: keys of MODEL.RIO that the constructor takes, in lower case.
        columns: C, K + `extra_columns`.
        initial_bias: of the linear classifier. If it is not 0, the cosine classifier, which has no bias, does not do.
    """

    options: tuple[str, ...] = ()
    extra_columns = 1
    initial_bias = 0.0

    def __init__(self, counts: ClassCounts) -> None:
        super().__init__()
        self.num_classes = counts.num_classes
        self.columns = self.num_classes + self.extra_columns

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        """The loss, a scalar in float32 or better, of logits (R, C) and class ids (R,) int64 in 0..K; R may be 0."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        with torch.autocast(logits.device.type, enabled=False):
            return self.loss(logits, classes)

    def loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        raise NotImplementedError

    def scores(self, logits: Tensor) -> Tensor:
        """(R, K + 1) in [0, 1] at test time, the background's last."""
        raise NotImplementedError

    def learns(self) -> bool:
        """Whether a call may change the state."""
        return self.training and torch.is_grad_enabled()
