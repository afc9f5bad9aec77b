"""Balanced group softmax: classes compete with those of like counts only."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rio.losses.base import Loss
from rio.losses.counts import ClassCounts

LIMITS = (10, 100, 1000)  # instances, where a group ends


class BAGS(Loss):
    """Balanced group softmax (Li et al., CVPR 2020), end to end.

    Classes are in G = 4 groups by instance count m_c: < 10, < 100, < 1,000, more. Each group is a softmax over its
    classes and "other"; one more is a two-way softmax of object and background. Columns: the K classes, the G "other",
    object, background. A group's rows are all those of its classes, and of the rest BAGS_OTHERS times as many, drawn
    at random; its loss is the mean cross-entropy over these, 0 without rows of its classes. L is the sum over the
    groups and the mean two-way cross-entropy over all rows. Scores: softmax of "object" x the class's softmax in its
    group; they need not sum to 1.
    """

    options = ("BAGS_OTHERS",)
    extra_columns = len(LIMITS) + 1 + 2
    group: Tensor

    def __init__(self, counts: ClassCounts, bags_others: float = 8.0) -> None:
        super().__init__(counts)
        self.others = bags_others
        group = torch.bucketize(counts.of("instance_count"), torch.tensor(LIMITS, dtype=torch.float64), right=True)
        self.register_buffer("group", group, persistent=False)

    def loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        background = classes == self.num_classes
        total = F.cross_entropy(logits[:, -2:], background.long(), reduction="sum") / max(len(classes), 1)
        for group, inside in enumerate(self._groups(logits)):
            member = ~background & (self.group[classes.clamp(max=self.num_classes - 1)] == group)
            cost = F.cross_entropy(inside, (classes + 1) * member, reduction="none")
            order = torch.rand(len(classes), device=classes.device).masked_fill(member, 2.0).argsort()
            place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
            chosen = member | (place < self.others * member.sum())
            total = total + (cost * chosen).sum() / chosen.sum().clamp(min=1)
        return total

    def _groups(self, logits: Tensor) -> list[Tensor]:
        """Each group's logits (R, 1 + K): "other", then the classes, -inf for those of other groups."""
        z, other = logits[:, : self.num_classes], logits[:, self.num_classes : -2]
        return [
            torch.cat([other[:, g, None], z.masked_fill(self.group != g, -torch.inf)], dim=1)
            for g in range(other.shape[1])
        ]

    def scores(self, logits: Tensor) -> Tensor:
        objectness = logits[:, -2:].softmax(dim=1)
        inside = sum(group.softmax(dim=1)[:, 1:] for group in self._groups(logits))
        return torch.cat([inside * objectness[:, :1], objectness[:, 1:]], dim=1)
