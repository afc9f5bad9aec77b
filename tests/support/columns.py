"""The columns of Annotations that samplers and balance read, from the class ids of each image."""

from types import SimpleNamespace

import numpy as np


def columns(objects: list[list[int]], frequency: str, crowd: tuple[tuple[int, int], ...] = ()) -> SimpleNamespace:
    """objects[i] lists the class ids of image i, frequency a letter a class; (i, j) of crowd: objects[i][j] is one."""
    rows = [(i, c, (i, j) in crowd) for i, classes in enumerate(objects) for j, c in enumerate(classes)]
    image, category, iscrowd = np.array(rows, dtype=np.int32).reshape(-1, 3).T
    kept = [(i, c) for i, c, crowded in rows if not crowded]
    images, instances = (np.bincount([c for _, c in own], minlength=len(frequency)) for own in (set(kept), kept))
    return SimpleNamespace(
        path="made_up.json", image_ids=np.arange(len(objects)), category_ids=np.arange(1, len(frequency) + 1),
        category_names=[f"class {c}" for c in range(len(frequency))], frequency=np.array(list(frequency)),
        image_count=images, instance_count=instances, annotation_image=image, annotation_class=category,
        iscrowd=iscrowd.astype(bool),
    )  # fmt: skip
