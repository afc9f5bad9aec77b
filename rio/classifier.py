"""The cosine classifier: scaled cosine similarity with a learned norm per class.

Shape shorthand: R: RoIs, D: feature width, C: outputs (K foreground classes + background).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-5  # added to ||x||, as the reference does; a zero feature gives zero logits


class CosineClassifier(nn.Module):
    """logits = s * (x / (||x|| + 1e-5)) . W^T with W_c = g_c * v_c / ||v_c||; no bias.

    The norm g_c of each class is learned apart from its direction v_c, so that a frequent class can still be
    preferred, but not through the length of the feature. At the start g_c = ||v_c|| of PyTorch's default
    Linear initialisation.

    Under autocast it computes in float32: the scale of 48 also multiplies the rounding of half-precision
    products, which would put logits off by up to 0.1.

    Args:
        in_features: D.
        num_outputs: C = K + 1.
        scale: s > 0, a multiplier (the inverse of a softmax temperature).

    Raises:
        ValueError: a width or a scale that is not positive.
    """

    def __init__(self, in_features: int, num_outputs: int, scale: float = 48.0) -> None:
        super().__init__()
        if in_features < 1 or num_outputs < 1:
            raise ValueError(f"in_features, num_outputs: expected at least 1 each, found {in_features}, {num_outputs}")
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale: expected a finite number > 0, found {scale} (MODEL.RIO.COSINE_SCALE)")
        self.in_features = in_features
        self.num_outputs = num_outputs
        self.scale = float(scale)
        self.weight_g = nn.Parameter(torch.empty(num_outputs, 1))
        self.weight_v = nn.Parameter(torch.empty(num_outputs, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Directions as PyTorch's Linear initialises its weight, norms equal to theirs."""
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))
        with torch.no_grad():
            self.weight_g.copy_(torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True))

    def weight(self) -> Tensor:
        """(C, D): the effective weight g_c * v_c / ||v_c||."""
        norm = torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True)
        tiny = torch.finfo(norm.dtype).tiny  # a direction of length 0 gives weight 0, not NaN
        return self.weight_v * (self.weight_g / norm.clamp_min(tiny))

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (R, D) RoI features; R may be 0.

        Returns:
            (R, C) logits, in the dtype of the parameters.

        Raises:
            ValueError: a width other than D.
        """
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(
                f"x: expected (R, {self.in_features}), found {tuple(x.shape)}. The classifier is built for"
                " the width of the box head's output (MODEL.ROI_BOX_HEAD.FC_DIM)"
            )
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.weight_v.dtype)
            norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            return F.linear(x * (self.scale / (norm + _EPS)), self.weight())

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, num_outputs={self.num_outputs}, scale={self.scale:g}"
