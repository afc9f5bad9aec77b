"""Makes golden_steps.npz: a few training steps of RIO's predictor and bank, worked out independently.

Nothing of ``rio`` or PyTorch is used: NumPy in float64, loops over rows, a list per class, gradients by hand.
The numbers of RoIs differ from image to image and may be zero, so that a row stored under another image's
feature shows.

    python tests/golden/make_golden_steps.py
"""

from pathlib import Path

import numpy as np

NUM_CLASSES, WIDTH, SCALE = 12, 8, 48.0
TARGETS = [0, 3, 4, 9]
SLOTS, REPLAYED = 4, 3
REGRESSION_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
NUM_ROIS = [(6, 9), (11, 4), (0, 8), (7, 0), (13, 2), (3, 10), (0, 0), (9, 9)]  # a step: two images
HERE = Path(__file__).parent


def deltas_of(box, target):
    """Box regression targets (dx, dy, dw, dh), weighted."""
    width, height = box[2] - box[0], box[3] - box[1]
    target_width, target_height = target[2] - target[0], target[3] - target[1]
    dx = (target[0] + target_width / 2 - box[0] - width / 2) / width
    dy = (target[1] + target_height / 2 - box[1] - height / 2) / height
    raw = (dx, dy, np.log(target_width / width), np.log(target_height / height))
    return np.array([w * d for w, d in zip(REGRESSION_WEIGHTS, raw)])


def row_losses(row, weight_g, weight_v, box_weight, box_bias):
    """One row's cross-entropy and L1 box loss, and their gradients with respect to its feature."""
    x, box, gt_box, label = row
    length = np.sqrt((x * x).sum())
    weight = np.stack([g * v / np.sqrt((v * v).sum()) for g, v in zip(weight_g[:, 0], weight_v)])
    logits = SCALE * weight @ (x / (length + 1e-5))
    shifted = logits - logits.max()
    p = np.exp(shifted) / np.exp(shifted).sum()
    cls_loss = -np.log(p[label])
    p[label] -= 1
    pull = SCALE * weight.T @ p  # with respect to x / (||x|| + eps)
    cls_gradient = pull / (length + 1e-5)
    if length > 0:
        cls_gradient = cls_gradient - x * (x @ pull) / (length * (length + 1e-5) ** 2)

    if label == NUM_CLASSES:
        return cls_loss, 0.0, cls_gradient, np.zeros_like(x)
    own = slice(0, 4) if len(box_bias) == 4 else slice(4 * label, 4 * label + 4)
    difference = box_weight[own] @ x + box_bias[own] - deltas_of(box, gt_box)
    return cls_loss, np.abs(difference).sum(), cls_gradient, box_weight[own].T @ np.sign(difference)


def run(steps, weight_g, weight_v, box_weight, box_bias, replay_losses):
    """(steps, 4): loss_cls, loss_box_reg, L2 norm of the gradient of their sum, replayed rows."""
    bank = {c: [] for c in TARGETS}
    results = []
    for rows in steps:
        present = [c for c in TARGETS if any(row[3] == c for row in rows)]
        replayed = [row for c in present for row in bank[c][-REPLAYED:]]
        for row in rows:
            if row[3] in bank:
                bank[row[3]] = (bank[row[3]] + [row])[-SLOTS:]
        arguments = (weight_g, weight_v, box_weight, box_bias)
        cls_rows = len(rows) + (len(replayed) if "cls" in replay_losses else 0)
        box_rows = len(rows) + (len(replayed) if "box" in replay_losses else 0)
        cls_sum = box_sum = squares = 0.0
        for row in rows:
            cls, box, cls_gradient, box_gradient = row_losses(row, *arguments)
            cls_sum += cls
            box_sum += box
            gradient = cls_gradient / cls_rows + box_gradient / box_rows
            squares += (gradient * gradient).sum()
        for row in replayed:
            cls, box, _, _ = row_losses(row, *arguments)
            cls_sum += cls * ("cls" in replay_losses)
            box_sum += box * ("box" in replay_losses)
        results.append((cls_sum / max(cls_rows, 1), box_sum / max(box_rows, 1), np.sqrt(squares), len(replayed)))
    return np.array(results)


def boxes(rng, number):
    corner = rng.uniform(0, 200, (number, 2))
    return np.concatenate([corner, corner + rng.uniform(8, 120, (number, 2))], axis=1)


def main(folder: Path = HERE) -> None:
    rng = np.random.default_rng(20210614)
    total = sum(map(sum, NUM_ROIS))

    def single(a):  # what float32 code will read: the same numbers in float64 here
        return a.astype(np.float32)

    features = single(np.maximum(rng.normal(0.3, 1, (total, WIDTH)), 0))
    proposal_boxes, gt_boxes = single(boxes(rng, total)), single(boxes(rng, total))
    likely = np.array(TARGETS + TARGETS + list(range(NUM_CLASSES)) + [NUM_CLASSES] * 8)
    gt_classes = rng.choice(likely, total)
    weight_v = single(rng.normal(0, 0.4, (NUM_CLASSES + 1, WIDTH)))
    weight_g = single(np.sqrt((weight_v**2).sum(1, keepdims=True)) * rng.uniform(0.5, 1.5, (NUM_CLASSES + 1, 1)))
    box_weights = {
        "agnostic": (single(rng.normal(0, 0.1, (4, WIDTH))), single(rng.normal(0, 0.1, 4))),
        "specific": (single(rng.normal(0, 0.1, (4 * NUM_CLASSES, WIDTH))), single(rng.normal(0, 0.1, 4 * NUM_CLASSES))),
    }

    flat = [
        (features[i].astype(float), proposal_boxes[i].astype(float), gt_boxes[i].astype(float), gt_classes[i])
        for i in range(total)
    ]
    steps, first = [], 0
    for counts in NUM_ROIS:
        steps.append(flat[first : first + sum(counts)])
        first += sum(counts)

    golden = dict(
        num_rois=np.array(NUM_ROIS), features=features, proposal_boxes=proposal_boxes, gt_boxes=gt_boxes,
        gt_classes=gt_classes, targets=np.array(TARGETS), slots=SLOTS, replayed=REPLAYED, scale=SCALE,
        num_classes=NUM_CLASSES, weight_g=weight_g, weight_v=weight_v,
    )  # fmt: skip
    for kind, (weight, bias) in box_weights.items():
        golden[f"bbox_{kind}_weight"], golden[f"bbox_{kind}_bias"] = weight, bias
        parameters = [a.astype(float) for a in (weight_g, weight_v, weight, bias)]
        for losses in (("cls", "box"), ("cls",), ("box",)):
            golden[f"losses_{kind}_{'_'.join(losses)}"] = run(steps, *parameters, losses)
    np.savez_compressed(folder / "golden_steps.npz", **golden)


if __name__ == "__main__":
    main()
