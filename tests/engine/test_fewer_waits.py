"""The parts that wait less for the GPU compute what detectron2's do, bit for bit."""

from importlib.metadata import version

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, PolygonMasks
from detectron2.utils.events import EventStorage

from rio.engine.fewer_waits import QuietMatcher, QuietPolygons, QuietPooler, QuietTransform, Step, wait_less
from rio.engine.telemetry import collected, log_accuracy, put_later
from tests.support.steps import differing, lines_of

CASCADE = ("MODEL.ROI_HEADS.NAME", "RIOCascadeROIHeads", "INPUT.MASK_FORMAT", "bitmask", "MODEL.RPN.LOSS_WEIGHT", 0.5)

GIOU = ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False, "DATASETS.TEST", "()")


@pytest.mark.parametrize("options", [(), CASCADE, GIOU])
def test_training_and_evaluation_are_bit_for_bit_detectron2s(options, prepared, tmp_path, monkeypatch):
    ours = prepared(tmp_path / "ours", *options, max_iter=5)
    monkeypatch.setattr("rio.trainer.wait_less", lambda model: model)
    monkeypatch.setattr("rio.trainer.Step", SimpleTrainer)
    theirs = prepared(tmp_path / "theirs", *options, max_iter=5)
    assert type(ours.model).__name__ == "QuietRCNN" and type(theirs.model).__name__ == "GeneralizedRCNN"
    for run in (ours, theirs):
        run.train()
    assert not differing(ours.model.state_dict(), theirs.model.state_dict())
    found, expected = (  # but for times
        [{k: v for k, v in line.items() if "time" not in k and "second" not in k} for line in lines_of(tmp_path / name)]
        for name in ("ours", "theirs")
    )
    assert found == expected and {"total_loss", "rpn/num_pos_anchors"} <= found[0].keys()
    assert any(key.endswith("fast_rcnn/fg_cls_accuracy") for key in found[0])


def test_only_detectron2s_own_classes_are_exchanged():
    class Another(ROIPooler):
        pass

    settings = dict(output_size=7, scales=(0.25, 0.125), sampling_ratio=0, pooler_type="ROIAlignV2")
    holder = torch.nn.ModuleList([ROIPooler(**settings), Another(**settings)])
    holder.matcher, holder.matchers = Matcher([0.5], [0, 1]), [Matcher([0.5], [0, 1])]
    wait_less(holder)
    assert [type(part) for part in holder] == [QuietPooler, Another]
    assert type(holder.matcher) is type(holder.matchers[0]) is QuietMatcher


@pytest.mark.parametrize("kind", [ROIPooler, Matcher, PolygonMasks])
def test_parts_of_a_detectron2_whose_methods_take_something_else_stay_its_own(kind, monkeypatch, caplog):
    method = {ROIPooler: "forward", Matcher: "set_low_quality_matches_", PolygonMasks: "crop_and_resize"}[kind]
    if kind is Matcher:
        monkeypatch.delattr(Matcher, method)
    else:
        monkeypatch.setattr(kind, method, lambda self, things, sizes: None)
    holder = torch.nn.ModuleList([ROIPooler(7, (0.25, 0.125), 0, "ROIAlignV2"), object.__new__(GeneralizedRCNN)])
    torch.nn.Module.__init__(holder[1])
    holder.matcher = Matcher([0.5], [0, 1])
    wait_less(holder)
    stays = {ROIPooler: holder[0], Matcher: holder.matcher, PolygonMasks: holder[1]}
    own = {one for one in stays if not type(stays[one]).__name__.startswith("Quiet")}
    assert own == {kind}
    says = "is missing" if kind is Matcher else "takes (self, things, sizes)"
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"detectron2 {version('detectron2')}: {kind.__name__}.{method} {says}, not what rio was")


def test_metrics_that_detectron2_does_not_ask_for_are_written_all_the_same(monkeypatch):
    """As a version would that has another name for `_write_metrics`."""

    def run_step(self):
        put_later(torch.tensor([3.0]), lambda values: {"found": values[0]})

    monkeypatch.setattr(SimpleTrainer, "run_step", run_step)
    with EventStorage() as storage:
        Step(torch.nn.Linear(1, 1), [], None).run_step()
        assert storage.latest()["found"][0] == 3.0


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("objects", [0, 1, 5])
def test_matching(objects, low):
    iou = (torch.rand(objects, 40, generator=torch.Generator().manual_seed(objects)) * 8).round() / 8  # with ties
    settings = ([0.3, 0.7], [0, -1, 1], low)
    for own, their in zip(QuietMatcher(*settings)(iou), Matcher(*settings)(iou), strict=True):
        assert torch.equal(own, their) and own.dtype == their.dtype


def boxes(number: int, size: float = 60.0) -> torch.Tensor:
    corner, extent = torch.rand(2, number, 2, generator=torch.Generator().manual_seed(number)) * size
    return torch.cat([corner, corner + extent + 1], 1)


def test_box_deltas():
    own, their = (kind((10.0, 10.0, 5.0, 5.0)) for kind in (QuietTransform, Box2BoxTransform))
    source, target = boxes(33), boxes(33) + torch.rand(33, 4)
    assert torch.equal(own.get_deltas(source, target), their.get_deltas(source, target))
    assert own.get_deltas(source[:0], target[:0]).shape == (0, 4)


@pytest.mark.parametrize("scales", [(0.25,), (0.25, 0.125, 0.0625)])
def test_pooling(scales):
    settings = dict(output_size=3, scales=scales, sampling_ratio=0, pooler_type="ROIAlignV2", canonical_box_size=30)
    maps = [torch.rand(2, 4, int(128 * scale), int(128 * scale), requires_grad=True) for scale in scales]
    for lists in ([boxes(9), boxes(4)], [boxes(3), boxes(0)], [boxes(0), boxes(0)]):
        found = [kind(**settings)(maps, [*map(Boxes, lists)]) for kind in (QuietPooler, ROIPooler)]
        assert torch.equal(*found)
    assert QuietPooler(**settings)([own[:0] for own in maps], []).shape == (0, 4, 3, 3)


def test_polygons_that_are_chosen_twice_and_drawn():
    square = [[10.0, 10.0, 40.0, 10.0, 40.0, 40.0, 10.0, 40.0]]
    triangle = [[0.0, 0.0, 50.0, 0.0, 0.0, 50.0]]
    two = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0], [20.0, 20.0, 30.0, 20.0, 30.0, 30.0]]
    theirs = PolygonMasks([square, triangle, two])
    own = QuietPolygons(theirs.polygons, torch.arange(3))
    chosen = torch.tensor([2, 0, 0, 1])
    kept = torch.tensor([True, False, True, True])
    first, second = (masks[chosen][kept] for masks in (own, theirs))
    assert len(first) == 3 and torch.equal(first.crop_and_resize(boxes(3), 7), second.crop_and_resize(boxes(3), 7))
    assert torch.equal(first.get_bounding_boxes().tensor, second.get_bounding_boxes().tensor)
    assert first[chosen[:0]].crop_and_resize(boxes(0), 7).shape == (0, 7, 7)
    assert len(own[1:]) == len(own[[0, 2]]) == 2 and len(PolygonMasks.cat([own, theirs])) == 6
    assert len(QuietPolygons.cat([first, own])) == 6


def test_accuracy_worked_by_hand():
    """Two classes, background 2; found 0 2 2 1 0."""
    logits = torch.eye(3)[[0, 2, 2, 1, 0]]
    classes = torch.tensor([0, 2, 1, 1, 2])
    expected = {"cls_accuracy": 3 / 5, "fg_cls_accuracy": 2 / 3, "false_negative": 1 / 3}
    with EventStorage() as storage:
        log_accuracy(logits, classes, 2)
        log_accuracy(logits[:0], classes[:0], 2)  # an image without RoIs says nothing
        found = {key: value for key, (value, _) in storage.latest().items()}
    assert found == {f"fast_rcnn/{key}": value for key, value in expected.items()}
    with EventStorage() as storage, collected() as later:
        with storage.name_scope("stage1"):
            log_accuracy(logits, classes, 2)
        assert not storage.latest()
        for values, put in later:
            put(values.tolist())
        assert storage.latest()["stage1/fast_rcnn/cls_accuracy"][0] == 3 / 5
