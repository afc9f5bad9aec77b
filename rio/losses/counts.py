"""What a loss may ask of the training set: counts per class, which the trainer stores with the run.

K: foreground classes; n, m, N: images with a class, its instances, images of the training set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rio.data.errors import check


class LossError(ValueError):
    """A loss or a calibration that cannot be built; the message names the key and the fix."""


@dataclass(frozen=True)
class ClassCounts:
    """Of the training set, one number per class; empty = not known, an error only where a loss needs it.

    Attributes:
        num_classes: K.
        image_count, instance_count: n_c and m_c, K numbers >= 0 each.
        num_images: N, annotated or not.
        fractal_dimension: of the centres of a class's objects, K numbers in [1, 2].
    """

    num_classes: int
    image_count: Sequence[int] = ()
    instance_count: Sequence[int] = ()
    num_images: int = 0
    fractal_dimension: Sequence[float] = ()

    def of(self, name: str, at_least: float = 0) -> Tensor:
        """(K,) float64, the attribute of this name; smaller numbers count as `at_least`."""
        found, expected = getattr(self, name), f"{self.num_classes} numbers, one per class"
        advice = "let the trainer fill it in from the training set, or take the config.yaml of a run"
        check(len(found) == self.num_classes, f"MODEL.RIO.{name.upper()}", expected, len(found), advice, LossError)
        return torch.tensor(found, dtype=torch.float64).clamp(min=at_least)

    def log_share(self) -> Tensor:
        """(K,) ln(n_c / sum n)."""
        count = self.of("image_count", at_least=1)
        return (count / count.sum()).log()

    def frequency(self, at_least: float = 0) -> Tensor:
        """(K,) n_c / N."""
        advice = "set it together with IMAGE_COUNT, or leave both to the trainer"
        check(self.num_images >= 1, "MODEL.RIO.NUM_IMAGES", "at least 1", self.num_images, advice, LossError)
        return self.of("image_count", at_least) / self.num_images
