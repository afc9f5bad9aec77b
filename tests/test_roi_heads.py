"""The heads: golden steps, equality with detectron2 where nothing is on, replay in the losses, every mode."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from rio.config import get_rio_cfg
from rio.engine.telemetry import LOG_PERIOD
from rio.memory_bank import MemoryBank
from rio.roi_heads import RIOCascadeROIHeads, RIOFastRCNNOutputLayers, RIOROIHeads
from tests.golden import make_golden_steps
from tests.support.bank import ours_in

GOLDEN = Path(__file__).parent / "golden" / "golden_steps.npz"
TRANSFORM = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))


def golden_instances(boxes, gt_boxes, classes, *, num_classes) -> Instances:
    instances = Instances((800, 800), proposal_boxes=Boxes(torch.from_numpy(boxes)))
    instances.gt_classes = torch.from_numpy(classes)
    if (classes != num_classes).any():  # an image with only background has no gt_boxes in detectron2
        instances.gt_boxes = Boxes(torch.from_numpy(gt_boxes))
    return instances


def assert_golden(predictor: RIOFastRCNNOutputLayers, steps, expected: np.ndarray, rtol: float) -> None:
    """(steps, 3): loss_cls, loss_box_reg, norm of the gradient of their sum with respect to the features."""
    found = []
    with EventStorage():
        for features, proposals in steps:
            features = torch.from_numpy(features).requires_grad_()
            losses = predictor.losses(predictor(features), proposals)
            (losses["loss_cls"] + losses["loss_box_reg"]).backward()
            norm = 0.0 if features.grad is None else features.grad.double().norm().item()
            found.append((losses["loss_cls"].item(), losses["loss_box_reg"].item(), norm))
    found = np.array(found)
    error = np.abs(found - expected).max(axis=1) / np.maximum(np.abs(expected).max(axis=1), 1e-30)
    assert np.allclose(found, expected, rtol=rtol, atol=1e-12), f"new values:\n{found!r}\nrelative errors {error}"


def golden_predictor(data, *, targets, slots, replayed, scale, weights, losses=("cls", "box"), agnostic=True):
    """A predictor with the file's parameters, and a list that takes what its bank replays."""
    num_classes, width = int(data["num_classes"]), data["features"].shape[-1]
    bank = MemoryBank(
        num_classes=num_classes, class_ids=data[targets].tolist(), feature_dim=width, slots_per_class=int(data[slots]),
        replay_per_class=int(data[replayed]),
    )  # fmt: skip
    predictor = RIOFastRCNNOutputLayers(
        ShapeSpec(channels=width), box2box_transform=TRANSFORM, num_classes=num_classes, memory_bank=bank,
        cls_agnostic_bbox_reg=agnostic, classifier="cosine", cosine_scale=float(data[scale]), replay_losses=losses,
    )  # fmt: skip
    names = ("cls_score.weight_g", "cls_score.weight_v", "bbox_pred.weight", "bbox_pred.bias")
    parameters = {name: torch.from_numpy(data[key]) for name, key in zip(names, weights, strict=True)}
    predictor.load_state_dict(parameters, strict=False)
    return predictor, spied(bank)


def spied(bank: MemoryBank) -> list:
    """Takes each replay of the bank."""
    replayed, sample = [], bank.sample
    bank.sample = lambda *a, **k: replayed.append(sample(*a, **k)) or replayed[-1]
    return replayed


def test_the_references_ten_steps(shared_dir):
    data = np.load(shared_dir / "golden" / "rio_reference_steps.npz")
    weights = ("cls_score__L__weight_g", "cls_score__L__weight_v", "bbox_pred__weight", "bbox_pred__bias")
    keys = dict(targets="target_classes", slots="max_cache", replayed="min_cache", scale="temp_s", weights=weights)
    predictor, replayed = golden_predictor(data, **keys)
    names, number = ("proposal_boxes", "gt_boxes", "gt_classes"), predictor.num_classes
    steps = [
        (data["features"][i], [golden_instances(*(data[n][i, j] for n in names), num_classes=number) for j in (0, 1)])
        for i in range(10)
    ]
    assert_golden(predictor, steps, data["losses"], rtol=1e-5)
    assert [len(r) for r in replayed] == data["num_replayed"].tolist()
    for replay, classes in zip(replayed, data["replayed_classes_sorted"]):
        assert sorted(replay.gt_classes.tolist()) == classes[classes >= 0].tolist()


@pytest.mark.parametrize("losses", ["cls_box", "cls", "box"])
@pytest.mark.parametrize("kind", ["agnostic", "specific"])
def test_our_own_steps(kind, losses):
    """Against a NumPy loop with gradients by hand; images have different numbers of RoIs, some none."""
    data = np.load(GOLDEN)
    weights = ("weight_g", "weight_v", f"bbox_{kind}_weight", f"bbox_{kind}_bias")
    keys = dict(targets="targets", slots="slots", replayed="replayed", scale="scale", weights=weights)
    predictor, _ = golden_predictor(data, **keys, losses=losses.split("_"), agnostic=kind == "agnostic")
    counts = data["num_rois"]
    cuts = [np.split(data[k], counts.cumsum()) for k in ("proposal_boxes", "gt_boxes", "gt_classes")]
    images = [golden_instances(*parts, num_classes=predictor.num_classes) for parts in zip(*cuts)]
    features = np.split(data["features"], counts.sum(1).cumsum())
    steps = [(own, images[2 * i : 2 * i + 2]) for i, own in enumerate(features[: len(counts)])]
    expected = data[f"losses_{kind}_{losses}"]
    assert expected[:, 3].sum() > 30  # the file exercises the bank
    assert_golden(predictor, steps, expected[:, :3], rtol=2e-5)


def test_the_golden_file_is_what_its_maker_makes(tmp_path):
    make_golden_steps.main(tmp_path)
    new, old = np.load(tmp_path / GOLDEN.name), np.load(GOLDEN)
    assert set(new) == set(old)
    for name in old:
        np.testing.assert_allclose(new[name], old[name], rtol=1e-9, err_msg=name)


# Heads on synthetic feature maps

NUM_CLASSES, SIZE = 5, 64
SHAPES = {"p2": ShapeSpec(channels=4, stride=4), "p3": ShapeSpec(channels=4, stride=8)}
SMALL = """
MODEL:
  MASK_ON: True
  ROI_HEADS: {NUM_CLASSES: 5, IN_FEATURES: [p2, p3], BATCH_SIZE_PER_IMAGE: 16}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 12, POOLER_RESOLUTION: 3}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 4, POOLER_RESOLUTION: 3}
  RIO: {BANK_CLASS_IDS: [0, 3], SLOTS_PER_CLASS: 6, REPLAY_PER_CLASS: 3}
SEED: 5
"""


def make_cfg(*, cascade=False, agnostic=None, predicted=False, **rio):
    cfg = get_rio_cfg()
    cfg.merge_from_other_cfg(CfgNode.load_cfg(SMALL))
    cfg.MODEL.ROI_HEADS.NAME = "RIOCascadeROIHeads" if cascade else "RIOROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = cascade if agnostic is None else agnostic
    cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = predicted
    cfg.merge_from_list([word for key, value in rio.items() for word in (f"MODEL.RIO.{key}", value)])
    return cfg


def build(cfg, seed=0):
    torch.manual_seed(seed)
    return build_roi_heads(cfg, SHAPES)


def batch(generator, classes=((0, 3, 1), (3,)), num_proposals=(20, 7)):
    """(images, features, proposals, targets): uneven numbers of objects and proposals an image."""
    n = len(classes)
    images = ImageList(torch.zeros(n, 3, SIZE, SIZE), [(SIZE, SIZE)] * n)
    features = {
        k: torch.rand(n, s.channels, SIZE // s.stride, SIZE // s.stride, generator=generator) for k, s in SHAPES.items()
    }
    proposals, targets = [], []
    for own, count in zip(classes, num_proposals):
        corner = torch.rand(len(own), 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + 10 + torch.rand(len(own), 2, generator=generator) * 20], 1)
        target = Instances((SIZE, SIZE), gt_boxes=Boxes(boxes), gt_classes=torch.tensor(own, dtype=torch.int64))
        target.gt_masks = BitMasks(torch.rand(len(own), SIZE, SIZE, generator=generator) > 0.5)
        targets.append(target)
        near = torch.tensor([[5.0, 5.0, 20.0, 20.0]]).repeat(count, 1)
        if len(own):
            near = boxes[torch.arange(count) % len(own)] + torch.rand(count, 4, generator=generator) * 4
        proposals.append(Instances((SIZE, SIZE), proposal_boxes=Boxes(near), objectness_logits=torch.zeros(count)))
    return images, features, proposals, targets


def banks_of(heads) -> list[MemoryBank]:
    return [module for module in heads.modules() if isinstance(module, MemoryBank)]


def equal(a: dict, b: dict) -> bool:
    """The same tensors, to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def assert_finite(losses) -> None:
    assert all(loss.isfinite() for step in losses for loss in step.values())


def train_steps(heads, number=4, at=0, **arguments):
    """Losses of some steps with fixed parameters, from iteration `at`, and the last step's logged scalars."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)  # detectron2 draws its RoIs from the global generator
    losses = []
    with EventStorage(at) as storage:
        for _ in range(number):
            _, step = heads(*batch(generator, **arguments))
            losses.append({k: v.detach() for k, v in step.items()})
            sum(step.values()).backward()
            storage.step()
    return losses, {k: v[0] for k, v in storage.latest().items()}


@pytest.mark.parametrize("cascade", [False, True])
def test_with_everything_off_it_is_detectron2_to_the_bit(cascade):
    cfg = make_cfg(CLASSIFIER="linear", BANK_ENABLED=False, cascade=cascade)
    ours = build(cfg)
    assert type(ours) is (RIOCascadeROIHeads if cascade else RIOROIHeads)
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads" if cascade else "StandardROIHeads"
    theirs = build(cfg)
    assert equal(ours.state_dict(), theirs.state_dict())  # the same seed gives the same initial weights
    (our_losses, our_log), (their_losses, their_log) = train_steps(ours), train_steps(theirs)
    assert all(map(equal, our_losses, their_losses)) and our_log == their_log
    assert equal(*({name: p.grad for name, p in heads.named_parameters()} for heads in (ours, theirs)))


def test_arms_of_a_study_start_from_the_same_weights():
    reference = build(make_cfg(CLASSIFIER="linear", BANK_ENABLED=False)).state_dict()
    for rio in ({"CLASSIFIER": "cosine"}, {"CLASSIFIER": "linear"}, {"BANK_ENABLED": False}):
        state = build(make_cfg(**rio)).state_dict()
        shared = state.keys() & reference.keys()
        assert "box_predictor.bbox_pred.weight" in shared and "mask_head.predictor.weight" in shared
        assert all(torch.equal(state[k], reference[k]) for k in shared)


@pytest.mark.parametrize(("cascade", "agnostic"), [(False, False), (False, True), (True, True)])
def test_replay_changes_the_losses_it_enters_and_no_logged_accuracy(cascade, agnostic):
    base = dict(CLASSIFIER="linear", cascade=cascade, agnostic=agnostic)
    off, off_log = train_steps(build(make_cfg(BANK_ENABLED=False, **base)))
    for losses in (("cls", "box"), ("cls",), ("box",)):
        heads = build(make_cfg(REPLAY_LOSSES=losses, **base))
        on, log = train_steps(heads)
        assert equal(on[0], off[0])  # the first step has nothing to replay
        for key in off[0]:
            same = {torch.equal(a[key], b[key]) for a, b in zip(on[1:], off[1:])}
            assert same == {not any(name in key for name in losses)}, key
        assert log == off_log  # fg_cls_accuracy and the like, of the images' RoIs only
    assert len(banks_of(heads)) == (3 if cascade else 1)
    assert all(bank.iteration == 4 and bank.num_written.sum() > 0 for bank in banks_of(heads))


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_equal_to_detectron2_on_the_longer_list_of_rois(loss_type, agnostic, classifier):
    """The joint mean, against detectron2's own losses on the images' RoIs followed by the replayed ones."""
    torch.manual_seed(0)
    bank = MemoryBank(num_classes=NUM_CLASSES, class_ids=[0, 3], feature_dim=6, slots_per_class=9, replay_per_class=4)
    predictor = RIOFastRCNNOutputLayers(
        ShapeSpec(channels=6), box2box_transform=TRANSFORM, num_classes=NUM_CLASSES, cls_agnostic_bbox_reg=agnostic,
        box_reg_loss_type=loss_type, loss_weight={"loss_cls": 0.7, "loss_box_reg": 2.0}, classifier=classifier,
        memory_bank=bank,
    )  # fmt: skip
    replayed = spied(bank)

    def instances(n):
        corner = torch.rand(n, 2) * 50
        boxes = torch.cat([corner, corner + 5 + 10 * torch.rand(n, 2)], 1)
        result = Instances((SIZE, SIZE), proposal_boxes=Boxes(boxes), gt_boxes=Boxes(boxes + torch.rand(n, 4)))
        result.gt_classes = torch.randint(0, NUM_CLASSES + 1, (n,))
        return result

    with EventStorage():
        for _ in range(3):
            features, proposals = torch.rand(17, 6), [instances(12), instances(5)]
            losses = predictor.losses(predictor(features), proposals)
            replay = replayed[-1]
            extra = Instances((SIZE, SIZE), gt_classes=replay.gt_classes)
            extra.proposal_boxes, extra.gt_boxes = Boxes(replay.proposal_boxes), Boxes(replay.gt_boxes)
            predictions = FastRCNNOutputLayers.forward(predictor, torch.cat([features, replay.features]))
            expected = FastRCNNOutputLayers.losses(predictor, predictions, [*proposals, extra])
            for key in expected:
                torch.testing.assert_close(losses[key], expected[key], rtol=2e-6, atol=0)
            grads = (torch.autograd.grad(sum(x.values()), [*predictor.parameters()]) for x in (losses, expected))
            for ours, theirs in zip(*grads, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert len(replayed[-1]) > 0


@pytest.mark.parametrize("cascade", [False, True])
def test_a_frozen_box_regressor_has_no_loss(cascade):
    """As when the classifier is trained on frozen features."""
    reference, _ = train_steps(build(make_cfg(cascade=cascade)))
    heads = build(make_cfg(cascade=cascade))
    for predictor in heads.box_predictor if cascade else [heads.box_predictor]:
        predictor.bbox_pred.requires_grad_(False)
    losses, _ = train_steps(heads)
    assert all(equal(a, {k: v for k, v in b.items() if "box_reg" not in k}) for a, b in zip(losses, reference))


@pytest.mark.parametrize("cascade", [False, True])
def test_without_gradients_nothing_touches_the_bank(cascade):
    """Inference; and batch norm statistics and validation losses run the model in training mode under no_grad."""
    heads = build(make_cfg(cascade=cascade))
    train_steps(heads)
    before = copy.deepcopy(heads.state_dict())
    images, features, proposals, targets = batch(torch.Generator().manual_seed(9))
    with torch.no_grad(), EventStorage():
        heads(images, features, copy.deepcopy(proposals), targets)
        with_bank = heads.eval()(images, features, proposals)[0]
        assert equal(heads.state_dict(), before)
        for module in heads.modules():
            if isinstance(module, RIOFastRCNNOutputLayers):
                module.memory_bank = None
        without = heads(images, features, proposals)[0]
    assert all(torch.equal(a.scores, b.scores) for a, b in zip(with_bank, without))


@pytest.mark.parametrize("agnostic", [False, True])
def test_training_on_predicted_boxes(agnostic):
    heads = build(make_cfg(predicted=True, agnostic=agnostic))
    assert_finite(train_steps(heads)[0])
    # The bank keeps the boxes that the features were pooled from, not the predicted ones.
    (bank,) = banks_of(heads)
    occupied = bank.written_at >= 0
    assert occupied.any() and (bank.proposal_boxes[occupied] - bank.gt_boxes[occupied]).abs().max() < 10


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize(
    ("classes", "num_proposals"),
    [
        (((), ()), (5, 3)),  # no objects at all
        (((0, 3), ()), (8, 4)),  # an image without objects
        (((), (0,)), (0, 6)),  # an image without proposals and objects
        (((0,), (3, 3)), (0, 0)),  # the RPN found nothing: only ground truth
        (((1, 2), (4,)), (9, 9)),  # no target class
    ],
)
def test_empty_cases(classes, num_proposals, cascade):
    heads = build(make_cfg(cascade=cascade))
    assert_finite(train_steps(heads, number=3, classes=classes, num_proposals=num_proposals)[0])


def test_no_image_at_all():
    predictor = build(make_cfg(agnostic=True)).box_predictor
    with EventStorage():
        losses = predictor.losses(predictor(torch.zeros(0, 12)), [])
    assert predictor.memory_bank.iteration == 1 and losses["loss_box_reg"].item() == 0


def test_telemetry_of_a_cascade_is_a_stages_every_twenty_steps():
    cfg = make_cfg(cascade=True, CLASS_FREQUENCY="rrcff")
    assert ours_in(train_steps(build(cfg), number=5, at=LOG_PERIOD - 6)[1]) == {}
    log = ours_in(train_steps(build(cfg), number=6, at=LOG_PERIOD - 6)[1])
    stages = [{k.partition("/")[2] for k in log if k.startswith(f"stage{n}/")} for n in range(3)]
    assert len(stages[0]) == 11 and stages[0] == stages[1] == stages[2] and len(log) == 3 * 11
    assert log["stage0/memory_bank/fill"] == 1.0  # both classes in every batch


VARIANTS = {"WRITE_MAX_PER_OBJECT": 2, "REPLAY_ABSENT_CLASSES": 1}


@pytest.mark.parametrize("kind", ["plain", "cascade", "predicted boxes"])
def test_the_variants_of_replay(kind):
    heads = build(make_cfg(cascade=kind == "cascade", predicted=kind == "predicted boxes", **VARIANTS))
    nothing = dict(classes=((), ()), num_proposals=(5, 3))
    for what in ({}, nothing, dict(classes=((0,), ()), num_proposals=(0, 6))):
        assert_finite(train_steps(heads, **what)[0])
    for bank in banks_of(heads):
        # Steps 0 to 3 have three objects of target classes, 8 to 11 one: at most two rows of each.
        assert 0 < bank.num_written.sum() <= 2 * 3 * 4 + 2 * 4
        replay = bank.sample(torch.zeros(0, dtype=torch.int64))
        assert 0 < len(replay) <= 3 and len(set(replay.gt_classes.tolist())) == 1  # an absent class


def test_state_dict_continues_exactly_through_the_heads():
    heads = build(make_cfg(**VARIANTS))
    train_steps(heads)
    resumed = build(make_cfg(**VARIANTS), seed=77)
    resumed.load_state_dict(heads.state_dict())
    (a, _), (b, _) = train_steps(heads), train_steps(resumed)
    assert all(map(equal, a, b))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast(dtype, autocast):
    """Half-precision autocast and storage stay within 2 % of float32, the bank's content within its rounding."""
    exact = build(make_cfg())
    full, _ = train_steps(exact)
    heads = build(make_cfg(BANK_DTYPE=dtype))
    with torch.autocast("cpu", dtype=autocast):
        half, _ = train_steps(heads)
    for a, b in zip(half, full):
        for key in ("loss_cls", "loss_box_reg"):
            torch.testing.assert_close(a[key].float(), b[key], rtol=0.02, atol=0.01)
    ours, theirs = heads.box_predictor.memory_bank, exact.box_predictor.memory_bank
    assert torch.equal(ours.num_written, theirs.num_written)
    assert torch.equal(ours.gt_boxes, theirs.gt_boxes) and torch.equal(ours.written_at, theirs.written_at)
    torch.testing.assert_close(ours.features.float(), theirs.features, rtol=0.05, atol=0.02)


def test_heads_need_classes_and_targets():
    cfg = make_cfg(BANK_CLASS_IDS=[])
    with pytest.raises(ValueError, match="BANK_MAX_IMAGE_COUNT"):
        build(cfg)
    cfg.MODEL.RIO.BANK_ENABLED = False
    build(cfg)
    for cascade in (False, True):
        cfg = make_cfg(cascade=cascade)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0
        with pytest.raises(ValueError, match="NUM_CLASSES.*training set"):
            build(cfg)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (dict(classifier="cos"), "classifier"),
        (dict(replay_losses=()), "replay_losses"),
        (dict(replay_losses=("mask",)), "replay_losses"),
        (dict(class_frequency="rc"), "expected 3 letters .* found 2: 'rc'"),
        (dict(class_frequency="rcx"), "CLASS_FREQUENCY"),
        (dict(memory_bank=MemoryBank(num_classes=3, class_ids=[0], feature_dim=5)), "feature_dim 4"),
        (dict(memory_bank=MemoryBank(num_classes=4, class_ids=[0], feature_dim=4)), "num_classes 3"),
    ],
)
def test_bad_arguments(bad, says):
    with pytest.raises(ValueError, match=says):
        RIOFastRCNNOutputLayers(ShapeSpec(channels=4), box2box_transform=TRANSFORM, num_classes=3, **bad)
