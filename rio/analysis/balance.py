"""What a sampler and a memory bank do to the distribution of classes: expected exposures, measures of imbalance.

Arithmetic on counts: nothing is sampled, no image is opened. The image repeat factors come from `rio.sampler`.
I: images, K: classes. *Exposure*: expected times a class is seen in an epoch, as images that hold it, as instances
in them, and as RoIs that reach the classifier.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from rio.data.annotations import GROUP_NAMES, Annotations

LEVELS = ("images", "instances", "rois")


class BalanceError(ValueError):
    """Counts or settings that no distribution has; the message says what was expected and what to do."""


def exposures(
    annotations: Annotations,
    image_repeat_factors: np.ndarray,
    *,
    rois_per_instance: float = 8.0,
    foreground_per_image: float = 128.0,
) -> pd.DataFrame:
    """Expected exposures of every class in one epoch.

    With r(i) the expected showings of image i, n(i, c) its objects of class c without crowd regions, and n(i) their sum
    over c:

        images(c)    = sum over i of r(i) [n(i, c) > 0]
        instances(c) = sum over i of r(i) n(i, c)
        rois(c)      = sum over i of r(i) n(i, c) min(m, F / n(i))

    The first two are exact. The third is an approximation: m proposals match every object, and the F foreground RoIs
    that an image may contribute are shared evenly among its objects. m depends on the detector and grows as the RPN
    learns; give the number that your run logs.

    Args:
        image_repeat_factors: (I,) float, r.
        rois_per_instance: m, > 0.
        foreground_per_image: F, > 0: MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE * POSITIVE_FRACTION (512 * 0.25).

    Returns:
        One row per class, in the order of the file's category ids: category_id, name, frequency, image_count,
        instance_count (as annotated), images, instances, rois (expected in an epoch), replayed (0; see `with_replay`).

    Raises:
        BalanceError: factors of another data set, negative or NaN factors, settings <= 0.
    """
    a, k = annotations, len(annotations.category_ids)
    factors = np.asarray(image_repeat_factors, dtype=np.float64)
    num_images = len(a.image_ids)
    if factors.shape != (num_images,):
        raise BalanceError(
            f"image_repeat_factors: expected shape ({num_images},), one factor per image of {a.path}, found "
            f"{factors.shape}. Fix: compute them from the same annotations."
        )
    if not (np.isfinite(factors).all() and (factors >= 0).all()):
        raise BalanceError("image_repeat_factors: expected finite numbers >= 0.")
    for name, value in (("rois_per_instance", rois_per_instance), ("foreground_per_image", foreground_per_image)):
        if not value > 0:
            raise BalanceError(f"{name}: expected a number > 0, found {value}.")
    kept = ~np.asarray(a.iscrowd, dtype=bool)
    keys = np.asarray(a.annotation_image)[kept].astype(np.int64) * k + np.asarray(a.annotation_class)[kept]
    pairs, objects = np.unique(keys, return_counts=True)
    image, class_id = np.divmod(pairs, max(k, 1))
    objects_of_image = np.bincount(image, weights=objects, minlength=num_images)
    rois_of_object = np.minimum(rois_per_instance, foreground_per_image / np.maximum(objects_of_image, 1))
    seen = {
        "images": factors[image],
        "instances": factors[image] * objects,
        "rois": factors[image] * objects * rois_of_object[image],
    }
    table = pd.DataFrame({"category_id": a.category_ids, "name": a.category_names, "frequency": a.frequency})
    table = table.assign(image_count=a.image_count, instance_count=a.instance_count)
    return table.assign(**{level: np.bincount(class_id, w, minlength=k) for level, w in seen.items()}, replayed=0.0)


def with_replay(
    table: pd.DataFrame,
    class_ids: Sequence[int],
    *,
    replay_per_class: int,
    batch_size: int,
    epoch_length: float,
    slots_per_class: int | None = None,
    absent_classes: int = 0,
) -> pd.DataFrame:
    """A copy of a table of `exposures` with the rows that a memory bank is expected to replay in an epoch, `replayed`,
    and `present_in_batch`, every class's probability.

    A target class is replayed in the steps in which it is present. With L showings in an epoch, B images a step and m
    showings that hold class c:

        P(c present in a step) = 1 - (1 - m / L) ** B                                                      (1)
        replayed(c)            = L / B * P(c replayed) * min(replay_per_class, slots_per_class)            (2)

    where P(c replayed) is P(c present), or, if A of the T target classes that are absent are replayed as well,

        P(c replayed) = P(c present) + P(c absent) * min(1, A / sum over T of P(absent))                   (3)

    Approximations: a step draws its images independently (a shuffled epoch draws without replacement; the difference is
    of order B / L); a class in an image has at least one RoI sampled (detectron2 adds the ground truth to the
    proposals); the bank is full.

    Args:
        class_ids: (T,) 0-based target classes, row numbers of the table.
        batch_size: B, images that share a bank in a step: IMS_PER_BATCH with one for all ranks, else a rank's share.
        epoch_length: L, `image_repeat_factors.sum()`.
        absent_classes: A. (3) takes the absent classes' mean number for the step's.

    Raises:
        BalanceError: class ids outside the table, settings out of range.
    """
    class_ids = np.asarray(class_ids, dtype=np.int64).reshape(-1)
    if class_ids.size and not (class_ids.min() >= 0 and class_ids.max() < len(table)):
        found = f"{class_ids.min()}..{class_ids.max()}"
        raise BalanceError(f"class_ids: expected 0..{len(table) - 1} (0-based, not category_id), found {found}.")
    if batch_size < 1 or replay_per_class < 0 or absent_classes < 0:
        raise BalanceError(
            "expected batch_size >= 1, replay_per_class >= 0 and absent_classes >= 0, "
            f"found {batch_size}, {replay_per_class}, {absent_classes}."
        )
    most = table["images"].max() if len(table) else 0.0
    if not epoch_length > 0 or epoch_length < most * (1 - 1e-6):
        raise BalanceError(
            f"epoch_length: expected at least {most:g} (showings of the most frequent class), found {epoch_length}. "
            "Fix: give the sum of the image repeat factors that made the table."
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
    return table.assign(present_in_batch=present, replayed=replayed)


def imbalance(counts: Sequence[float] | np.ndarray) -> dict[str, float]:
    """How unequal a distribution over classes is, from (K,) counts or exposures >= 0, not all 0 (else a BalanceError).

    With p(c) the share of class c of K, and H = - sum p ln p:

    - `gini`: 0 when all classes have the same count, (K - 1) / K when one has everything.
    - `normalised_entropy`: H / ln K; 1 when equal (and for K = 1), 0 when one class has everything.
    - `effective_classes`: exp(H), the number of equally frequent classes with the same entropy, 1..K.
    - `max_min_ratio`: largest count over the smallest; inf when a class is never seen.

    >>> {key: round(value, 3) for key, value in imbalance([1, 3]).items()}
    {'gini': 0.25, 'normalised_entropy': 0.811, 'effective_classes': 1.755, 'max_min_ratio': 3.0}
    """
    counts = _counts(counts)
    k = len(counts)
    p = np.sort(counts) / counts.sum()
    # Half the mean absolute difference over the mean, by ranks: sum of (2 i - K - 1) p(i) / K, i = 1..K ascending.
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
    """Share of the rare, common and frequent classes in a total, from (K,) counts as for `imbalance` and (K,) 'r', 'c',
    'f' (else a BalanceError); the shares sum to 1.

    >>> share_by_group([1, 1, 2, 4], ["r", "r", "c", "f"])
    {'r': 0.25, 'c': 0.25, 'f': 0.5}
    """
    counts = _counts(counts)
    frequency = np.asarray(frequency, dtype="<U1")
    if frequency.shape != counts.shape or not np.isin(frequency, list(GROUP_NAMES)).all():
        raise BalanceError(f"frequency: expected one of {', '.join(GROUP_NAMES)} for each of the {len(counts)} counts.")
    return {group: float(counts[frequency == group].sum() / counts.sum()) for group in GROUP_NAMES}


def compare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Group shares and imbalance of several ways of sampling, level by level: the table behind the balance figures.

    `tables`: the arms' tables from `exposures` or `with_replay`, in the order to show them; a BalanceError without any,
    or with nothing to count in one. Returns one row per arm and level: arm, level ("images", "instances", "rois"), r,
    c, f (shares), and the measures of `imbalance`. The level "rois" counts what the classifier is trained on: `rois` +
    `replayed`.
    """
    if not tables:
        raise BalanceError("tables: expected at least one arm, found none.")
    rows = []
    for arm, table in tables.items():
        for level in LEVELS:
            counts = table[level] + table["replayed"] if level == "rois" else table[level]
            try:
                measures = share_by_group(counts, table["frequency"]) | imbalance(counts)
            except BalanceError as error:
                raise BalanceError(f"arm {arm!r}, level {level!r}: {error}") from error
            rows.append({"arm": arm, "level": level} | measures)
    return pd.DataFrame(rows)


def _counts(counts: Sequence[float] | np.ndarray) -> np.ndarray:
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 1 or counts.size == 0:
        raise BalanceError(f"counts: expected shape (K,) with K >= 1 classes, found {counts.shape}.")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise BalanceError("counts: expected finite numbers >= 0.")
    if counts.sum() == 0:
        raise BalanceError("counts: expected something counted, found only zeros. Fix: give a data set with objects.")
    return counts
