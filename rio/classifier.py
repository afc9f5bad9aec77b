"""The cosine classifier: scaled cosine similarity with a learned norm per class.

Shape shorthand: R: RoIs, D: feature width, C: outputs (K foreground classes + background).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rio.data.errors import check


class CosineClassifier(nn.Module):
    """logits = s * (x / (||x|| + 1e-5)) . W^T with W_c = g_c * v_c / ||v_c||; no bias.

    A class's norm g_c is learned apart from its direction v_c, so a frequent class can be preferred, but not through
    the length of the feature. At the start W is PyTorch's default Linear initialisation. Under autocast it computes in
    float32: the scale would multiply the rounding of half-precision products, up to 0.1 in a logit.

    Args:
        in_features: D.
        num_outputs: C = K + 1.
        scale: s > 0, a multiplier (the inverse of a softmax temperature).

    Raises:
        ValueError: a width or a scale that is not positive; in forward, x (R, D) of another width.
    """

    def __init__(self, in_features: int, num_outputs: int, scale: float = 48.0) -> None:
        super().__init__()
        for name, value in {"in_features": in_features, "num_outputs": num_outputs, "scale": scale}.items():
            check(0 < value < math.inf, name, "a number > 0", value, "see COSINE_SCALE and FC_DIM")
        self.in_features, self.num_outputs, self.scale = in_features, num_outputs, float(scale)
        self.weight_g = nn.Parameter(torch.empty(num_outputs, 1))
        self.weight_v = nn.Parameter(torch.empty(num_outputs, in_features))
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))
        with torch.no_grad():
            self.weight_g.copy_(torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True))

    def weight(self) -> Tensor:
        """(C, D): the effective weight W."""
        norm = torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True)
        tiny = torch.finfo(norm.dtype).tiny  # a direction of length 0 gives weight 0, not NaN
        weight: Tensor = self.weight_v * (self.weight_g / norm.clamp_min(tiny))
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """(R, C) logits of RoI features x (R, D), in the dtype of the parameters; R may be 0."""
        expected, fits = f"(R, {self.in_features}), as the box head gives", x.shape[1:] == (self.in_features,)
        check(fits, "x", expected, tuple(x.shape), "change MODEL.ROI_BOX_HEAD.FC_DIM")
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.weight_v.dtype)
            norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            return F.linear(x * (self.scale / (norm + 1e-5)), self.weight())

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, num_outputs={self.num_outputs}, scale={self.scale:g}"
