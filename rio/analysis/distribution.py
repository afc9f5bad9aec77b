"""What a data set holds: tables of its categories, images, object sizes, and which categories appear together.

I: images, A: annotations, K: categories. Crowd regions are left out throughout, as in the counts.
"""

import numpy as np
import pandas as pd

from rio.data.annotations import Annotations


def category_table(annotations: Annotations) -> pd.DataFrame:
    """One row per category: category_id, name, frequency, image_count, instance_count."""
    a = annotations
    columns = {"category_id": a.category_ids, "name": a.category_names, "frequency": a.frequency}
    return pd.DataFrame(columns | {"image_count": a.image_count, "instance_count": a.instance_count})


def per_image(annotations: Annotations) -> pd.DataFrame:
    """One row per image: image_id, objects, categories, and `rarest`, a group ('r', 'c', 'f'; '' if empty)."""
    a = annotations
    image, classes = image_class_pairs(a)
    rarest = np.full(a.num_images, "", dtype="<U1")
    for group in "fcr":  # the rarest comes last and stays
        rarest[image[a.frequency[classes] == group]] = group
    objects = np.bincount(a.annotation_image[~a.iscrowd], minlength=a.num_images)
    categories = np.bincount(image, minlength=a.num_images)
    return pd.DataFrame({"image_id": a.image_ids, "objects": objects, "categories": categories, "rarest": rarest})


def area_shares(annotations: Annotations) -> pd.DataFrame:
    """One row per object: class_id, frequency, and `area`, its share of the image's area, 0..1."""
    a = annotations
    kept = ~a.iscrowd
    image, classes = a.annotation_image[kept], a.annotation_class[kept]
    pixels = a.image_width[image].astype(np.float64) * a.image_height[image]
    share = np.clip(a.areas[kept], 0, None) / np.maximum(pixels, 1)
    return pd.DataFrame({"class_id": classes, "frequency": a.frequency[classes], "area": share})


def sizes(annotations: Annotations) -> pd.DataFrame:
    """One row per object: frequency, and `side`, the root of its share of the image's area, in percent."""
    table = area_shares(annotations)
    table = table.assign(side=100 * np.sqrt(table["area"]))[["frequency", "side"]]
    return table[table["side"] > 0].reset_index(drop=True)


def company_of(annotations: Annotations, group: str = "r") -> pd.DataFrame:
    """Which categories share images with the objects of a frequency group, "r", "c" or "f".

    Returns:
        One row per category that shares an image with one of the group, by falling `share`: name, frequency, `share`
        of the group's images that also hold it, `share_of_all` images that hold it. A category of the group itself
        counts where another one of the group is in the image. Empty where the group has no image.
    """
    a = annotations
    image, classes = image_class_pairs(a)
    of_group = a.frequency[classes] == group
    members = np.bincount(image[of_group], minlength=a.num_images)  # categories of the group, by image
    beside = members[image] - of_group > 0
    together = np.bincount(classes[beside], minlength=a.num_classes)
    share, of_all = together / max(np.count_nonzero(members), 1), a.image_count / max(a.num_images, 1)
    table = pd.DataFrame({"name": a.category_names, "frequency": a.frequency, "share": share, "share_of_all": of_all})
    return table[together > 0].sort_values("share", ascending=False, kind="stable").reset_index(drop=True)


def image_class_pairs(annotations: Annotations) -> tuple[np.ndarray, np.ndarray]:
    """Every (image, class) once: (P,) image indices and (P,) class ids, by image."""
    a = annotations
    kept = ~a.iscrowd
    keys = a.annotation_image[kept].astype(np.int64) * a.num_classes + a.annotation_class[kept]
    return np.divmod(np.unique(keys), max(a.num_classes, 1))
