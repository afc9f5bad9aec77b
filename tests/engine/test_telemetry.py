"""What a step logs: worked by hand, left out where it cannot be computed, and with one wait for the device."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from rio.engine import telemetry
from rio.engine.telemetry import LOG_PERIOD
from rio.memory_bank import MemoryBank
from rio.roi_heads import RIOFastRCNNOutputLayers
from tests.support.bank import K, Waits, make, ours_in, rows

SIZE = 64
TRANSFORM = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))


def of_classes(classes: list[int]) -> Instances:
    result = Instances((SIZE, SIZE), gt_classes=torch.tensor(classes, dtype=torch.int64))
    result.proposal_boxes = Boxes(torch.tensor([[5.0, 5, 15, 15]]).repeat(len(classes), 1))
    result.gt_boxes = Boxes(torch.tensor([[5.0, 5, 15, 25]]).repeat(len(classes), 1))
    return result


def logged_step(predictor, features: list, *proposals: Instances, at: int = LOG_PERIOD - 1) -> dict[str, float]:
    with EventStorage(at) as storage:
        predictor.losses(predictor(torch.tensor(features).reshape(-1, 2)), list(proposals))
        return ours_in({k: round(v[0], 6) for k, v in storage.latest().items()})


def predictor_of(bank: MemoryBank | None, class_frequency: str = "rcf") -> RIOFastRCNNOutputLayers:
    return RIOFastRCNNOutputLayers(
        ShapeSpec(channels=2), box2box_transform=TRANSFORM, num_classes=3, memory_bank=bank,
        class_frequency=class_frequency, cls_agnostic_bbox_reg=True,
    )  # fmt: skip


def small_bank() -> MemoryBank:
    return make(num_classes=3, class_ids=[0, 1], slots_per_class=4, replay_per_class=3)


def test_telemetry_by_hand():
    bank = small_bank()
    predictor = predictor_of(bank)
    first = of_classes([0, 0, 1, 3])
    assert logged_step(predictor, [1.0, 0, 0, 1, 1, 1, 5, 5], first, at=3) == {}
    # Replayed are class 0's (0, 1) and (1, 0), from one step ago; class 1 is not in the batch. Class 0's RoIs
    # now have the mean (2, 0). 2 rows beside 3 foreground RoIs: groups r, f, r; with the replay r, f, r, r, r.
    second = of_classes([0, 2])
    third = of_classes([0, 3, 3])
    log = logged_step(predictor, [1.0, 0, 1, 1, 3, 0, 8, 8, 9, 9], second, third)
    assert log == {
        "memory_bank/fill": (4 + 1) / 8, "memory_bank/stored": (4 + 1) / 2,
        "memory_bank/replayed_per_foreground": round(2 / 3, 6),
        "memory_bank/age": 1.0, "memory_bank/drift": 0.5,
        "rois/share_r": round(2 / 3, 6), "rois/share_c": 0.0, "rois/share_f": round(1 / 3, 6),
        "rois/share_r_with_replay": 0.8, "rois/share_c_with_replay": 0.0, "rois/share_f_with_replay": 0.2,
    }  # fmt: skip
    # Now 3 of class 0: two of the step before, one of the first. Groups not known.
    bank.iteration += 4
    predictor.frequency_group = None
    log = logged_step(predictor, [1.0, 0], of_classes([0]))
    assert log["memory_bank/age"] == round((5 + 5 + 6) / 3, 6)
    assert log["memory_bank/replayed_per_foreground"] == 3
    left = ("fill", "stored", "replayed_per_foreground", "age", "drift")
    assert set(log) == {f"memory_bank/{name}" for name in left}


def test_telemetry_leaves_out_what_cannot_be_computed():
    predictor = predictor_of(small_bank())
    fill = {"memory_bank/fill": 0.0}
    assert logged_step(predictor, []) == fill  # no image
    assert logged_step(predictor, [1.0, 1], of_classes([3])) == fill  # no foreground
    log = logged_step(predictor, [1.0, 1], of_classes([2]))  # nothing stored, nothing replayed
    shares = {f"rois/share_{group}{what}" for group in "rcf" for what in ("", "_with_replay")}
    assert set(log) == {*fill, "memory_bank/replayed_per_foreground"} | shares
    assert log["memory_bank/replayed_per_foreground"] == 0
    assert set(logged_step(predictor, [1.0, 1], of_classes([2]))) == set(log)


def test_telemetry_without_a_bank():
    predictor = predictor_of(None)
    assert logged_step(predictor, [1.0, 0, 1, 1, 2, 2, 1, 1], of_classes([0, 2, 2]), of_classes([3])) == {
        "rois/share_r": round(1 / 3, 6), "rois/share_c": 0.0, "rois/share_f": round(2 / 3, 6),
    }  # fmt: skip
    assert logged_step(predictor, [1.0, 0], of_classes([0]), at=LOG_PERIOD) == {}
    assert logged_step(predictor, [1.0, 0], of_classes([3])) == {}
    assert logged_step(predictor_of(None, ""), [1.0, 0], of_classes([0])) == {}
    with torch.no_grad():
        assert logged_step(predictor, [1.0, 0], of_classes([0])) == {}


def test_telemetry_waits_for_the_device_once():
    bank, classes, tolist, read = small_bank(), torch.tensor([0, 1, 3]), torch.Tensor.tolist, []
    groups = telemetry.frequency_groups("rcf", 3)
    for _ in range(2):
        replay = bank.sample(classes)
        bank.write(torch.rand(3, 2), *torch.rand(2, 3, 4), classes)
    with EventStorage(LOG_PERIOD - 1), pytest.MonkeyPatch.context() as patch, Waits() as waits:
        patch.setattr(torch.Tensor, "tolist", lambda tensor: read.append(1) or tolist(tensor))
        telemetry.log(classes, 3, groups, bank, torch.rand(3, 2), replay)
    assert len(read) == 1 and waits.seen == []


def test_drift():
    bank = make(slots_per_class=4, replay_per_class=4)
    none = bank.sample(torch.tensor([1]))
    assert telemetry.drift(bank, none, torch.ones(1, 2), torch.tensor([1])).isnan()
    _, boxes, _, _ = rows([1, 2, 3], [1, 1, 4])
    bank.write(torch.tensor([[2.0, 0], [0, 1], [1, 1]]), boxes, boxes, torch.tensor([1, 1, 4]))
    replay = bank.sample(torch.tensor([1, 4]))
    now = torch.tensor([[3.0, 0], [1, 0], [-9, -9], [7, 7], [0, 5]])
    # Class 1's mean is (2, 0): cosines 1 and 0; class 4 has none; background, another class, an ignored one.
    assert telemetry.drift(bank, replay, now, torch.tensor([1, 1, K, 0, -1])).item() == pytest.approx(1 / 2)
    # Class 4's mean (-4.5, -2) and (1, 1): -6.5 / (sqrt(24.25) sqrt(2)).
    expected = (1 + 0 - 6.5 / 48.5**0.5) / 3
    assert telemetry.drift(bank, replay, now, torch.tensor([1, 1, 4, 0, 4])).item() == pytest.approx(expected)
    assert telemetry.drift(bank, replay, now.half(), torch.tensor([0, K, -1, 0, 0])).isnan()
    assert telemetry.drift(bank, replay, now[:0], torch.zeros(0, dtype=torch.int64)).isnan()
