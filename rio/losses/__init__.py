"""Losses of the box classifier, one method a file: formula, scores at test time, what it starts from; calibration."""

from collections.abc import Mapping
from typing import Any

from rio.losses.bags import BAGS
from rio.losses.base import Loss
from rio.losses.calibration import Calibration
from rio.losses.counts import ClassCounts
from rio.losses.ecm import ECM
from rio.losses.eql import EQL, DropLoss
from rio.losses.eqlv2 import EQLv2
from rio.losses.federated import Federated
from rio.losses.gumbel import Gumbel
from rio.losses.seesaw import Seesaw
from rio.losses.sigmoid import Sigmoid
from rio.losses.softmax import BalancedSoftmax, Softmax

LOSSES: dict[str, type[Loss]] = {
    "softmax": Softmax,
    "sigmoid": Sigmoid,
    "federated": Federated,
    "eql": EQL,
    "eqlv2": EQLv2,
    "seesaw": Seesaw,
    "balanced_softmax": BalancedSoftmax,
    "bags": BAGS,
    "ecm": ECM,
    "gumbel": Gumbel,
    "droploss": DropLoss,
}

# The losses' own keys of MODEL.RIO: (default, range). The official values.
KEYS: dict[str, tuple[Any, str]] = {
    # federated: classes that a step trains, and the power of their image counts in the draw.
    "FEDERATED_CLASSES": (50, ">= 1"),
    "FEDERATED_POWER": (0.5, ">= 0"),
    # eql, droploss, gumbel with GUMBEL_DROPLOSS: image frequency below which a class is spared. LVIS v0.5: 0.00177.
    "EQL_THRESHOLD": (0.0011, "> 0"),
    # eqlv2: slope and centre of the weights over the ratio of gradients, and the lead of positives.
    "EQLV2_GAMMA": (12.0, ">= 0"),
    "EQLV2_MU": (0.8, ">= 0"),
    "EQLV2_ALPHA": (4.0, ">= 0"),
    # seesaw: powers of the mitigation and of the compensation factor.
    "SEESAW_P": (0.8, ">= 0"),
    "SEESAW_Q": (2.0, ">= 0"),
    # balanced_softmax: how much of the classes' log shares is added.
    "BALANCED_TAU": (1.0, ">= 0"),
    # bags: rows of other classes per row of a group.
    "BAGS_OTHERS": (8.0, "> 0"),
    # gumbel: DropLoss's weights, which makes it GOL.
    "GUMBEL_DROPLOSS": (False, ""),
}


def build_loss(rio: Mapping[str, Any], num_classes: int) -> Loss:
    """The loss that the node MODEL.RIO names, for K classes.

    Raises:
        LossError: it needs counts of the training set that the node lacks.
    """
    kind = LOSSES[rio["CLS_LOSS"]]
    return kind(_counts(rio, num_classes), **{key.lower(): rio[key] for key in kind.options})


def build_calibration(rio: Mapping[str, Any], num_classes: int) -> Calibration | None:
    """The calibration that the node MODEL.RIO names; None for "none".

    Raises:
        LossError: see `build_loss`.
    """
    if rio["CALIBRATION"] == "none":
        return None
    return Calibration(rio["CALIBRATION"], _counts(rio, num_classes), rio["CALIBRATION_STRENGTH"])


def _counts(rio: Mapping[str, Any], num_classes: int) -> ClassCounts:
    columns = {key.lower(): rio[key] for key in ("IMAGE_COUNT", "INSTANCE_COUNT", "NUM_IMAGES", "FRACTAL_DIMENSION")}
    return ClassCounts(num_classes, **columns)
