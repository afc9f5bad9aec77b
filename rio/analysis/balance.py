"""What a sampler and a memory bank do to the distribution of classes: expected exposures and measures of
imbalance.

Everything here is arithmetic on counts: nothing is sampled, no image is opened. The factors come from
`rio.sampler.image_repeat_factors`, so this module answers "what does training see?" for any sampler.

I: images, K: categories. *Exposure*: expected number of times that a class is seen in an epoch, at three
    levels: as images
that hold it, as instances in them, and as RoIs that reach the classifier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from rio.data.annotations import Annotations

GROUPS = ("r", "c", "f")
LEVELS = ("images", "instances", "rois")


class BalanceError(ValueError):
    """Counts or settings that no distribution has; the message says what was expected and the remedy."""


def exposures(
    annotations: Annotations,
    image_repeat_factors: np.ndarray,
    *,
    rois_per_instance: float = 8.0,
    foreground_per_image: float = 128.0,
) -> pd.DataFrame:
    """Expected exposures of every class in one epoch.

    With r(i) the expected showings of image i and n(i, c) its objects of class c (crowd regions aside):

        images(c)    = sum over i of r(i) [n(i, c) > 0]
        instances(c) = sum over i of r(i) n(i, c)
        rois(c)      = sum over i of r(i) n(i, c) min(m, F / n(i)),   n(i) = sum over c of n(i, c)

    The first two are exact. The third is an approximation: every object is matched by m proposals, and the F
    foreground RoIs that an image may contribute are shared evenly among its objects. m depends on the
    detector and grows as the RPN learns; give the number your run logs (foreground RoIs an object).

    Args:
        annotations: the training set.
        image_repeat_factors: (I,) float, expected showings of each image in an epoch.
        rois_per_instance: m above, > 0.
        foreground_per_image: F above: MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE * POSITIVE_FRACTION (512 * 0.25),
            > 0.

    Returns:
        One row a class, in the order of the file's category ids: category_id, name, frequency, image_count,
        instance_count (as annotated), images, instances, rois (expected in an epoch), replayed (0 here;
        `with_replay` fills it).

    Raises:
        BalanceError: factors of another data set, negative or NaN factors, settings <= 0.
    """
    factors = np.asarray(image_repeat_factors, dtype=np.float64)
    num_images, num_categories = len(annotations.image_ids), len(annotations.category_ids)
    if factors.shape != (num_images,):
        raise BalanceError(
            f"image_repeat_factors: expected shape ({num_images},), one factor an image of "
            f"{annotations.path}, found {factors.shape}. Compute them from the same annotations."
        )
    if not (np.isfinite(factors).all() and (factors >= 0).all()):
        raise BalanceError("image_repeat_factors: expected finite numbers >= 0.")
    for name, value in (("rois_per_instance", rois_per_instance), ("foreground_per_image", foreground_per_image)):
        if not value > 0:
            raise BalanceError(f"{name}: expected a number > 0, found {value}.")

    kept = ~np.asarray(annotations.iscrowd, dtype=bool)
    image = np.asarray(annotations.annotation_image)[kept].astype(np.int64)
    category = np.asarray(annotations.annotation_class)[kept].astype(np.int64)
    pairs, objects = np.unique(image * num_categories + category, return_counts=True)
    image, category = np.divmod(pairs, max(num_categories, 1))
    objects_of_image = np.bincount(image, weights=objects, minlength=num_images)
    rois_of_object = np.minimum(rois_per_instance, foreground_per_image / np.maximum(objects_of_image, 1))

    def total(weights: np.ndarray) -> np.ndarray:
        return np.bincount(category, weights=weights, minlength=num_categories)

    return pd.DataFrame(
        {
            "category_id": annotations.category_ids,
            "name": annotations.category_names,
            "frequency": annotations.frequency,
            "image_count": annotations.image_count,
            "instance_count": annotations.instance_count,
            "images": total(factors[image]),
            "instances": total(factors[image] * objects),
            "rois": total(factors[image] * objects * rois_of_object[image]),
            "replayed": np.zeros(num_categories),
        }
    )


def with_replay(
    table: pd.DataFrame,
    class_ids: Sequence[int],
    *,
    replay_per_class: int,
    batch_size: int,
    epoch_length: float,
    slots_per_class: int | None = None,
    max_per_foreground: float = 0.0,
    absent_classes: int = 0,
) -> pd.DataFrame:
    """Add the rows that a memory bank is expected to replay in an epoch.

    A target class is replayed in the steps in which it is present. With L showings in an epoch, B images a
    step and m showings that hold class c:

        P(c present in a step) = 1 - (1 - m / L) ** B                                                      (1)
        replayed(c)            = L / B * P(c replayed) * min(replay_per_class, slots_per_class)            (2)

    where P(c replayed) is P(c present) or, with `absent_classes` A of the target classes T besides,

        P(c replayed) = P(c present) + P(c absent) * min(1, A / sum over T of P(absent))                   (3)

    Approximations: a step draws its images independently (a shuffled epoch draws without replacement; the
        difference
    is of order B / L); a class in an image has at least one RoI sampled (detectron2 adds the ground truth to
    the proposals); the bank is full, as it is after the first `slots_per_class` writes of a class. The cap
    `max_per_foreground` is applied to the epoch's mean, though a run applies it step by step.

    Args:
        table: from `exposures`.
        class_ids: (T,) 0-based target classes, row numbers of the table.
        replay_per_class: rows replayed for a class that is present, >= 0.
        batch_size: images that share a bank in a step: IMS_PER_BATCH with one bank for all ranks, else a
            rank's share.
        epoch_length: showings in an epoch, `image_repeat_factors.sum()`.
        slots_per_class: slots of the bank; fewer than `replay_per_class` limit the replay.
        max_per_foreground: at most this many replayed rows per foreground RoI; 0 is no limit.
        absent_classes: target classes that are replayed in each step though none of their objects is in it.
            (3) takes the mean number of absent ones for the step's.

    Returns:
        A copy of the table with `present_in_batch` (probability; every class) and `replayed` (rows an epoch)
        filled in.

    Raises:
        BalanceError: class ids outside the table, settings out of range.
    """
    class_ids = np.asarray(class_ids, dtype=np.int64).reshape(-1)
    if class_ids.size and not (class_ids.min() >= 0 and class_ids.max() < len(table)):
        raise BalanceError(
            f"class_ids: expected 0..{len(table) - 1} (0-based, not category_id), found {class_ids.min()}.."
            f"{class_ids.max()}."
        )
    if batch_size < 1 or replay_per_class < 0 or max_per_foreground < 0 or absent_classes < 0:
        raise BalanceError(
            "expected batch_size >= 1, replay_per_class >= 0, max_per_foreground >= 0 and absent_classes >= 0, "
            f"found {batch_size}, {replay_per_class}, {max_per_foreground}, {absent_classes}."
        )
    most = table["images"].max() if len(table) else 0.0
    if not epoch_length > 0 or epoch_length < most * (1 - 1e-6):
        raise BalanceError(
            f"epoch_length: expected at least {most:g} (showings of the most frequent class), found "
            f"{epoch_length}. Give the sum of the image repeat factors that made the table."
        )
    rows = replay_per_class if slots_per_class is None else min(replay_per_class, slots_per_class)
    share = np.clip(table["images"].to_numpy() / epoch_length, 0.0, 1.0)
    present = 1.0 - (1.0 - share) ** batch_size  # (1)
    probability = present[class_ids]
    if absent_classes:
        absent = 1.0 - probability
        probability = probability + absent * min(1.0, absent_classes / max(absent.sum(), 1e-12))  # (3)
    replayed = np.zeros(len(table))
    replayed[class_ids] = epoch_length / batch_size * probability * rows  # (2)
    limit = max_per_foreground * table["rois"].sum()
    if max_per_foreground and replayed.sum() > limit:
        replayed *= limit / replayed.sum()
    return table.assign(present_in_batch=present, replayed=replayed)


def imbalance(counts: Sequence[float] | np.ndarray) -> dict[str, float]:
    """How unequal a distribution over classes is.

    With p(c) the share of class c of K, and H = - sum p ln p:

    - `gini`: 0 when all classes have the same count, (K - 1) / K when one has everything.
    - `normalised_entropy`: H / ln K; 1 when equal, 0 when one class has everything (1 by convention for K =
      1).
    - `effective_classes`: exp(H), the number of equally frequent classes with the same entropy, 1..K.
    - `max_min_ratio`: largest count over the smallest; inf when a class is never seen.

    Args:
        counts: (K,) counts or exposures, >= 0, not all 0.

    Raises:
        BalanceError: no classes, negative or NaN counts, nothing counted.

    >>> imbalance([5, 5])
    {'gini': 0.0, 'normalised_entropy': 1.0, 'effective_classes': 2.0, 'max_min_ratio': 1.0}
    >>> {key: round(value, 3) for key, value in imbalance([1, 3]).items()}
    {'gini': 0.25, 'normalised_entropy': 0.811, 'effective_classes': 1.755, 'max_min_ratio': 3.0}
    """
    counts = _counts(counts)
    k = len(counts)
    p = np.sort(counts) / counts.sum()
    # Half the mean absolute difference over the mean, by ranks: sum of (2 i - K - 1) p(i) / K over i = 1..K
    # ascending.
    gini = float(((2 * np.arange(1, k + 1) - k - 1) * p).sum() / k)
    seen = p[p > 0]
    entropy = max(float(-(seen * np.log(seen)).sum()), 0.0)
    return {
        "gini": gini,
        "normalised_entropy": entropy / float(np.log(k)) if k > 1 else 1.0,
        "effective_classes": float(np.exp(entropy)),
        "max_min_ratio": float(p[-1] / p[0]) if p[0] > 0 else float("inf"),
    }


def share_by_group(counts: Sequence[float] | np.ndarray, frequency: Sequence[str]) -> dict[str, float]:
    """Share of the rare, common and frequent classes in a total; they sum to 1.

    Args:
        counts: (K,) counts or exposures, >= 0, not all 0.
        frequency: (K,) 'r', 'c' or 'f'.

    Raises:
        BalanceError: as `imbalance`; lengths that differ; another letter.

    >>> share_by_group([1, 1, 2, 4], ["r", "r", "c", "f"])
    {'r': 0.25, 'c': 0.25, 'f': 0.5}
    """
    counts = _counts(counts)
    frequency = np.asarray(frequency, dtype="<U1")
    if frequency.shape != counts.shape or not np.isin(frequency, GROUPS).all():
        raise BalanceError(f"frequency: expected one of {', '.join(GROUPS)} for each of the {len(counts)} counts.")
    return {group: float(counts[frequency == group].sum() / counts.sum()) for group in GROUPS}


def compare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Group shares and imbalance of several samplers, level by level: the table behind the balance figures.

    Args:
        tables: name of the arm -> its table from `exposures` or `with_replay`, in the order to show them.

    Returns:
        One row an arm and level: arm, level ("images", "instances", "rois"), r, c, f (shares), and the
        measures of `imbalance`. The level "rois" counts what the classifier is trained on: `rois` +
        `replayed`.

    Raises:
        BalanceError: no arm given, or nothing to count in one.
    """
    if not tables:
        raise BalanceError("tables: expected at least one arm, found none.")
    rows = []
    for arm, table in tables.items():
        for level in LEVELS:
            counts = table[level] + table["replayed"] if level == "rois" else table[level]
            try:
                rows.append(
                    {"arm": arm, "level": level} | share_by_group(counts, table["frequency"]) | imbalance(counts)
                )
            except BalanceError as error:
                raise BalanceError(f"arm {arm!r}, level {level!r}: {error}") from error
    return pd.DataFrame(rows)


def _counts(counts: Sequence[float] | np.ndarray) -> np.ndarray:
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 1 or counts.size == 0:
        raise BalanceError(f"counts: expected shape (K,) with K >= 1 classes, found {counts.shape}.")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise BalanceError("counts: expected finite numbers >= 0.")
    if counts.sum() == 0:
        raise BalanceError("counts: expected something counted, found only zeros. Has the data set any annotation?")
    return counts
