"""Random ground truth and results, and what the official `lvis` says of them."""

import copy
import logging
import math

import numpy as np

from rio.results.evaluation import METRICS
from rio.results.official import numpy_float
from tests.support.result_files import HEIGHT, WIDTH, category, image, prediction, rle, thing


def random_ground_truth(rng, num_images=12, masks=True):
    """LVIS ground truth with everything that engines treat differently."""
    ids = rng.choice(np.arange(1, 60), 9, replace=False).tolist()
    categories = [category(c, "rcf"[int(rng.integers(3))]) for c in sorted(ids)]
    images, annotations = [], []
    for i in rng.permutation(num_images).tolist():
        negative = rng.choice(ids, 3, replace=False).tolist()
        images.append(image(7 * i + 3, negative, rng.choice(ids, 2, replace=False).tolist()))
        for _ in range(int(rng.integers(0, 6))):
            x, y = rng.integers(0, 70), rng.integers(0, 50)
            w, h = rng.integers(2, WIDTH - x), rng.integers(2, HEIGHT - y)
            a = thing(len(annotations) + 1, 7 * i + 3, int(rng.choice(ids)), [float(v) for v in (x, y, w, h)])
            kind = rng.random()
            if kind < 0.1:
                a["area"] = 0  # not an object, says the official package
            elif kind < 0.2:
                a["iscrowd"] = 1  # which LVIS does not know: an object as any
            elif kind < 0.3 and masks:
                a["segmentation"] = rle(a["bbox"])
            elif kind < 0.4:
                a["area"] = float(rng.integers(1, 12000))  # the file's area counts, not the box's
            elif kind < 0.5:
                a["ignore"] = (1, True, 0, 2)[int(rng.integers(4))]
            annotations.append(a)
    return {"images": images, "categories": categories, "annotations": annotations}


def random_results(rng, ground_truth, per_image=30, masks=True):
    """Jittered ground truth and noise: tied scores, empty boxes, empty masks, unverified categories, any order."""
    ids = [c["id"] for c in ground_truth["categories"]]
    by_image = {
        i["id"]: [a for a in ground_truth["annotations"] if a["image_id"] == i["id"]] for i in ground_truth["images"]
    }
    records = []
    for image_id, annotations in by_image.items():
        for _ in range(int(rng.integers(0, per_image))):
            if annotations and rng.random() < 0.8:
                a = annotations[rng.integers(len(annotations))]
                box, category_id = np.array(a["bbox"]) + rng.normal(0, 3, 4), a["category_id"]
            else:
                box, category_id = rng.uniform(0, 60, 4), int(rng.choice(ids))
            box[:2] = np.clip(box[:2], 0, 80)
            box[2:] = np.clip(box[2:], 0, 60)
            if rng.random() < 0.1:
                box[2] = 0
            elif rng.random() < 0.03:
                box[3] = -2.0
            record = prediction(image_id, category_id, round(float(rng.random()), 1), box.tolist())
            if masks:
                outline = [*box[:2], max(box[2], 0), max(box[3], 0)] if rng.random() < 0.9 else [5, 5, 0, 0]
                record["segmentation"] = rle(outline)
            records.append(record)
    return [records[i] for i in rng.permutation(len(records))]


def without_boxes(records):
    """Records of masks: beside boxes, official packages take w * h for a mask's area."""
    return [{k: v for k, v in record.items() if k != "bbox"} for record in records]


def official(path, records, iou_type, max_dets=300):
    """The official package from file to numbers, nothing of ours in between: precision (T, R, K, A), the metrics."""
    import lvis

    records = without_boxes(records) if iou_type == "segm" else copy.deepcopy(records)
    logging.disable(logging.WARNING)
    try:
        with numpy_float():
            ground_truth = lvis.LVIS(str(path))
            run = lvis.LVISEval(ground_truth, lvis.LVISResults(ground_truth, records, max_dets=max_dets), iou_type)
            run.run()
    finally:
        logging.disable(logging.NOTSET)
    return run.eval["precision"], {name: float(value) for name, value in run.results.items() if name in METRICS}


def assert_identical(result, expected, iou_type):
    precision, metrics = expected
    np.testing.assert_array_equal(result.precision[iou_type], precision)
    for name in METRICS:
        ours, theirs = result.metrics[iou_type][name], metrics[name]
        assert math.isnan(ours) if theirs == -1 else ours == theirs * 100, (iou_type, name, ours, theirs)
    for k, ap in enumerate(result.per_category[f"AP_{iou_type}"]):
        there = precision[:, :, k, 0][precision[:, :, k, 0] > -1]
        assert math.isnan(ap) if not len(there) else ap == np.mean(there) * 100
