"""What classification losses make of positive and negative gradients, class by class (the question of EQL's paper).

EQL (Tan et al., CVPR 2020, section 3): an RoI of one class pushes every other class down, so a rare class gets far more
negative than positive gradient. K: classes, R: rows of a step, C: columns of the logits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from rio.analysis.arms import NONE, RFS_BANK, Arms

ROWS, STEPS = 2048, 24


def gradient_balance(
    balance: Arms, losses: Sequence[str] | None = None, arms: Sequence[str] = (NONE, RFS_BANK), **options: Any
) -> pd.DataFrame:
    """Gradients on the classes' logits at the start of training, when a classifier gives every RoI the same logits.

    Steps of rows are drawn from the RoIs that an arm is expected to show, replayed ones included, with three background
    rows for every place of a foreground row (POSITIVE_FRACTION 0.25). Each loss runs on them as in training, its state
    included. Loads torch.

    Args:
        losses: names of `rio.losses`; None: all.
        **options: the losses' own keys, in lower case, such as eql_threshold; for this one the default is the official
            0.0011, but at least the image frequency of a class with 10 images.

    Returns:
        One row per loss, arm and class that training shows: loss, arm, name, frequency, positive, negative (sums of the
        absolute gradients on its logit from rows of the class and from all others), ratio (positive / negative, NaN
        where no row of the class was drawn).
    """
    import torch  # takes seconds to load: only here

    from rio.losses import KEYS, LOSSES, build_loss

    a = balance.annotations
    node = {key: value for key, (value, _) in KEYS.items()} | {key.upper(): value for key, value in options.items()}
    if "eql_threshold" not in options:
        node["EQL_THRESHOLD"] = max(node["EQL_THRESHOLD"], 10 / a.num_images)
    node |= {"IMAGE_COUNT": a.image_count.tolist(), "INSTANCE_COUNT": a.instance_count.tolist()}
    node |= {"NUM_IMAGES": a.num_images, "FRACTAL_DIMENSION": ()}
    parts = []
    for arm in arms:
        table = balance.table(arm)
        rois, places = table["rois"] + table["replayed"], 4 * balance.settings.foreground_per_image
        background = max(places * balance.epoch_length(arm) - table["rois"].sum(), 0.0)
        share = np.append(rois, background)
        draws = np.random.default_rng(0).choice(len(share), (STEPS, ROWS), p=share / share.sum())
        for name in losses or LOSSES:
            loss = build_loss(node | {"CLS_LOSS": name}, a.num_classes)
            positive, negative = np.zeros((2, a.num_classes))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                for classes in torch.from_numpy(draws):
                    logits = torch.full((ROWS, loss.columns), float(loss.initial_bias), requires_grad=True)
                    loss(logits, classes).backward()
                    pull = logits.grad[:, : a.num_classes].abs().double()
                    own = classes[:, None] == torch.arange(a.num_classes)
                    positive += (pull * own).sum(0).numpy()
                    negative += (pull * ~own).sum(0).numpy()
            part = table[["name", "frequency"]].assign(loss=name, arm=arm, positive=positive, negative=negative)
            parts.append(part[rois > 0])
    table = pd.concat(parts, ignore_index=True)
    return table.assign(ratio=(table["positive"] / table["negative"]).where(table["positive"] > 0))
