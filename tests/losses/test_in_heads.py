"""The losses where they are used: in the heads, with replay, in checkpoints and in runs."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from rio.config import ConfigError, load_config, validate
from rio.engine.weights import CheckpointError, load_weights
from rio.losses import LOSSES
from rio.roi_heads import RIOFastRCNNOutputLayers
from tests.engine.test_distributed import first_half, load, run, train_words
from tests.support.steps import stopped_and_resumed
from tests.test_roi_heads import assert_finite, batch, build, equal, make_cfg, spied, train_steps

COUNTS = {"IMAGE_COUNT": [90, 3, 200, 20, 1], "INSTANCE_COUNT": [200, 4, 2000, 20, 1], "NUM_IMAGES": 1000}
COLUMNS = {"softmax": 1, "balanced_softmax": 1, "eqlv2": 1, "ecm": 1, "seesaw": 2, "bags": 6}  # above K; others have K
ALL = pytest.mark.parametrize("name", list(LOSSES))
STATEFUL = pytest.mark.parametrize("name", ["eqlv2", "seesaw", "bags", "federated"])  # or drawing at random


def cfg_of(name: str, **rio: object):
    cascade = rio.pop("cascade", False)
    cosine = "cosine" if LOSSES[name].initial_bias == 0 else "linear"
    return make_cfg(cascade=cascade, **{"CLS_LOSS": name, "CLASSIFIER": cosine, **COUNTS, **rio})


@ALL
@pytest.mark.parametrize("cascade", [False, True])
def test_training_and_detection(name, cascade):
    cfg = cfg_of(name, cascade=cascade)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0001
    heads = build(cfg)
    losses, log = train_steps(heads)
    assert_finite(losses)
    assert all(0 <= value <= 1 for key, value in log.items() if "accuracy" in key)
    predictors = heads.box_predictor if cascade else [heads.box_predictor]
    for predictor in predictors:
        assert predictor.cls_loss.columns == 5 + COLUMNS.get(name, 0)
    images, features, proposals, _ = batch(torch.Generator().manual_seed(9))
    with torch.no_grad():
        found = heads.eval()(images, features, proposals)[0]
    assert len(found[0]) > 0 and found[0].pred_classes.max() < 5 and 0 <= found[0].scores.max() <= 1


@ALL
def test_the_linear_classifier_starts_at_the_losses_bias(name):
    heads = build(cfg_of(name, CLASSIFIER="linear", BANK_ENABLED=False))
    bias = heads.box_predictor.cls_score.bias
    assert (bias == LOSSES[name].initial_bias).all()
    if name not in ("softmax", "bags", "seesaw", "eqlv2"):  # a row without objects costs about what the prior says
        logits = heads.box_predictor(torch.zeros(8, 12))[0]
        assert heads.box_predictor.cls_loss(logits, torch.full((8,), 5)) < 2
    reference = build(make_cfg(CLASSIFIER="linear", BANK_ENABLED=False)).state_dict()
    state = heads.state_dict()
    shared = [key for key in reference if "cls_score" not in key]
    assert all(torch.equal(state[key], reference[key]) for key in shared)  # arms differ in what they compare only


@STATEFUL
def test_own_and_replayed_rows_are_one_call(name):
    predictor: RIOFastRCNNOutputLayers = build(cfg_of(name, CLASSIFIER="linear")).box_predictor
    replayed, calls, forward = spied(predictor.memory_bank), [], predictor.cls_loss.forward
    predictor.cls_loss.forward = lambda *rows: calls.append(rows) or forward(*rows)
    box = torch.tensor([[5.0, 5.0, 30.0, 30.0]]).repeat(9, 1)
    proposals = Instances((64, 64), proposal_boxes=Boxes(box), gt_boxes=Boxes(box + 1))
    proposals.gt_classes = torch.tensor([0, 3, 5, 5, 1, 0, 5, 3, 3])
    with EventStorage():
        for _ in range(2):
            predictor.losses(predictor(torch.rand(9, 12)), [proposals])
    assert [len(rows[1]) for rows in calls] == [9, 9 + 5] and len(replayed[1]) == 5
    if name == "seesaw":  # a row is a row
        assert predictor.cls_loss.seen.tolist() == [2 + 2 + 2, 2, 0, 3 + 3 + 3, 0]


@STATEFUL
@pytest.mark.parametrize("cascade", [False, True])
def test_state_dicts_continue_exactly(name, cascade):
    heads = build(cfg_of(name, cascade=cascade))
    train_steps(heads)
    resumed = build(cfg_of(name, cascade=cascade), seed=77)
    resumed.load_state_dict(heads.state_dict())
    (a, _), (b, _) = train_steps(heads), train_steps(resumed)
    assert all(map(equal, a, b)) and equal(heads.state_dict(), resumed.state_dict())


def test_softmax_adds_nothing_to_the_state():
    state = build(make_cfg()).state_dict()
    assert not [key for key in state if "cls_loss" in key]


def test_weights_load_with_or_without_the_state_and_refuse_other_columns(tmp_path):
    path = tmp_path / "weights.pth"
    seesaw = build(cfg_of("seesaw", BANK_ENABLED=False))
    train_steps(seesaw)
    torch.save({"model": seesaw.state_dict()}, path)
    again = build(cfg_of("seesaw", BANK_ENABLED=False), seed=3)
    load_weights(again, path)
    assert equal(again.state_dict(), seesaw.state_dict()) and again.box_predictor.cls_loss.seen.sum() > 0
    with pytest.raises(CheckpointError, match=r"cls_score.*the file has 6 classes, the model 5.*MODEL.RIO.CLS_LOSS"):
        load_weights(build(cfg_of("softmax", BANK_ENABLED=False)), path)

    plain = build(cfg_of("softmax", BANK_ENABLED=False))
    torch.save({"model": plain.state_dict()}, path)
    eqlv2 = build(cfg_of("eqlv2", BANK_ENABLED=False))
    load_weights(eqlv2, path)  # as many columns: a start, with nothing counted yet
    assert eqlv2.box_predictor.cls_loss.gradients.sum() == 0
    report = load_weights(build(cfg_of("bags", BANK_ENABLED=False)), path, on_mismatch="skip")
    assert set(report.skipped) == {"box_predictor.cls_score.weight_g", "box_predictor.cls_score.weight_v"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["MODEL.RIO.CLS_LOSS", "seasaw"], "did you mean 'seesaw'"),
        (["MODEL.RIO.CLS_LOSS", "eql"], r"CLASSIFIER: expected 'linear' for CLS_LOSS eql.*found cosine"),
        (["MODEL.RIO.SEESAW_P", "-1"], "SEESAW_P: expected a number >= 0, found -1"),
        (["MODEL.RIO.FEDERATED_CLASSES", "0"], "FEDERATED_CLASSES"),
        (["MODEL.RIO.IMAGE_COUNT", "[1, 2]"], r"IMAGE_COUNT: .*as many as .*NUM_CLASSES \(80\), found 2 entries"),
        (["MODEL.RIO.INSTANCE_COUNT", str([-1] * 80)], "numbers >= 0"),
        (
            ["MODEL.RIO.CLS_LOSS", "eqlv2", "MODEL.RIO.CLASSIFIER", "linear", "MODEL.RIO.BANK_ENABLED", "False",
             "MODEL.ROI_HEADS.NAME", "StandardROIHeads"],
            "for CLS_LOSS eqlv2, found 'StandardROIHeads', which would ignore them",
        ),
    ],
)  # fmt: skip
def test_configurations_that_cannot_work(options, says):
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(opts=options)
    assert "Fix: " in str(caught.value)


def test_a_later_detectron2s_own_sigmoid_loss_is_refused():
    cfg = make_cfg()
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    with pytest.raises(ConfigError, match="USE_SIGMOID_CE: expected False.*CLS_LOSS sigmoid or federated"):
        validate(cfg)


@pytest.mark.parametrize("name", ["eqlv2", "federated"])  # a state, and drawing at random
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(name, prepared, tmp_path):
    options = ["MODEL.RIO.CLS_LOSS", name, "MODEL.RIO.CLASSIFIER", "linear", "DATASETS.TEST", "()"]
    straight = prepared(tmp_path / "straight", *options, max_iter=4)
    straight.train()
    second = stopped_and_resumed(prepared, tmp_path / "run", *options, at=1, max_iter=4)
    assert equal(second.model.state_dict(), straight.model.state_dict())
    stored = load_config(tmp_path / "run" / "config.yaml").MODEL.RIO
    assert len(stored.IMAGE_COUNT) == len(stored.INSTANCE_COUNT) == 6 and stored.NUM_IMAGES > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eqlv2", "seesaw"])
def test_two_ranks_resume_to_the_same_bits(name, tiny_set, tmp_path):
    options = ["MODEL.RIO.CLS_LOSS", name, "MODEL.RIO.CLASSIFIER", "linear"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(2, train_words(tiny_set, whole, *options))
    first_half(whole, halves)
    run(2, train_words(tiny_set, halves, *options))
    first, second = (load(folder / "model_final.pth")["model"] for folder in (whole, halves))
    assert equal(first, second)
    assert any("cls_loss" in key and value.sum() > 0 for key, value in first.items())
