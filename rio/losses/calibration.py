"""Calibration: softmax scores of a trained detector corrected for the counts of the classes; at test time only."""

from typing import Any

import torch
from torch import Tensor, nn

from rio.data.errors import check
from rio.losses.counts import ClassCounts, LossError

# Method of MODEL.RIO.CALIBRATION: its strength unless CALIBRATION_STRENGTH says another; 0 changes nothing of it.
STRENGTHS = {"none": 0.0, "norcal": 0.6, "logit_adjustment": 1.0, "fracal": 2.0, "tau_norm": 1.0}


class Calibration(nn.Module):
    """Scores (R, K + 1) of softmax logits z, with the background's left as it is before all are normalised.

        norcal            softmax(z_c - s ln n_c)                        NorCal (Pan et al., NeurIPS 2021), s = gamma
        logit_adjustment  softmax(z_c - s ln(n_c / sum n))               Menon et al., ICLR 2021, s = tau
        fracal            softmax(z_c - log10(n_c / N) - log10 K) / D_c^s, normalised again, with D_c the fractal
                          dimension of the centres of a class's objects  FRACAL (Alexandridis et al., CVPR 2025)
        tau_norm          softmax of z with w_c / |w_c|^s for the weights of class c; the bias stays
                          Kang et al., ICLR 2020, s = tau

    n_c: images with class c in the training set, 0 counting as 1; N: its images. A strength is best tuned on a part of
    the training set, not on the test set.

    Args:
        method: of `STRENGTHS`, but not "none".
        counts: of the training set.
        strength: s >= 0; negative = the method's own.

    Raises:
        LossError: an unknown method, or counts that it needs and are not known.
    """

    offset: Tensor
    divisor: Tensor

    def __init__(self, method: str, counts: ClassCounts, strength: float = -1.0) -> None:
        super().__init__()
        known = [name for name in STRENGTHS if name != "none"]
        check(method in known, "MODEL.RIO.CALIBRATION", f"one of {known}", method, "write one of them", LossError)
        self.method, self.strength = method, STRENGTHS[method] if strength < 0 else strength
        offset = torch.zeros(counts.num_classes, dtype=torch.float64)
        divisor = torch.ones_like(offset)
        if method == "norcal":
            offset = -self.strength * counts.of("image_count", at_least=1).log()
        elif method == "logit_adjustment":
            offset = -self.strength * counts.log_share()
        elif method == "fracal":
            offset = -(counts.frequency(at_least=1) * counts.num_classes).log10()
            divisor = counts.of("fractal_dimension", at_least=1) ** self.strength
        background = torch.zeros(1, dtype=torch.float64)
        self.register_buffer("offset", torch.cat([offset, background]).float(), persistent=False)
        self.register_buffer("divisor", torch.cat([divisor, background + 1]).float(), persistent=False)

    def forward(self, logits: Tensor, classifier: Any) -> Tensor:
        """Of logits (R, K + 1) and the classifier that gave them: detectron2's linear one or the cosine one."""
        if self.method == "tau_norm":
            weight, bias = classifier.weight, getattr(classifier, "bias", 0.0)
            weight = weight() if callable(weight) else weight
            scale = torch.linalg.vector_norm(weight, dim=1).clamp(min=1e-6) ** -self.strength
            scale[-1] = 1.0
            logits = (logits - bias) * scale + bias
        scores = (logits + self.offset).softmax(dim=1)
        if self.method == "fracal":
            scores = scores / self.divisor
            scores = scores / scores.sum(dim=1, keepdim=True)
        return scores
