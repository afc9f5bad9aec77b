"""Calibration: worked by hand, against recorded scores, and through the heads and the command line's flag."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rio.classifier import CosineClassifier
from rio.config import ConfigError, load_config
from rio.data.load import load_annotations
from rio.engine.records import fractal_dimensions
from rio.losses.calibration import STRENGTHS, Calibration
from rio.losses.counts import ClassCounts, LossError
from tests.losses.test_losses import LOGITS, close
from tests.support.result_files import coco_file, thing
from tests.test_roi_heads import batch, build, make_cfg

COUNTS = ClassCounts(3, [1000, 100, 5], [4000, 150, 6], 2000, [1.9, 1.5, 1.0])


def scores(method: str, strength: float = -1.0) -> Tensor:
    return Calibration(method, COUNTS, strength)(LOGITS, None)


def test_norcal_divides_by_a_power_of_the_image_count():
    found = scores("norcal")
    close(found[0], 0.059477, 0.032045, 0.071135, 0.837344)
    close(found[2], 0.025208, 0.022392, 0.367287, 0.585113)
    close(found[3, 3], 0.995510)


def test_logit_adjustment_takes_the_share_out():
    close(scores("logit_adjustment")[0], 0.079919, 0.108158, 0.795785, 0.016138)


def test_fracal_adds_the_spread_of_the_objects():
    calibration = Calibration("fracal", COUNTS)
    close(calibration.offset, -0.176091, 0.823909, 2.124939, 0.0)
    found = calibration(LOGITS, None)
    close(found[2], 0.039341, 0.038285, 0.860067, 0.062307)
    close(found[3, 3], 0.920359)
    close(scores("fracal", 0.0)[2], 0.123440, 0.074870, 0.747536, 0.054155)  # the counts alone


@pytest.mark.parametrize("method", ["norcal", "logit_adjustment", "tau_norm"])
def test_strength_0_is_softmax(method):
    linear = nn.Linear(2, 4)
    close(Calibration(method, COUNTS, 0.0)(LOGITS, linear), *LOGITS.softmax(1).flatten().tolist())


@pytest.mark.parametrize("cosine", [False, True])
def test_tau_norm_divides_a_classs_weights_by_their_length(cosine):
    torch.manual_seed(0)
    classifier = CosineClassifier(6, 4, 20.0) if cosine else nn.Linear(6, 4)
    x, tau = torch.randn(5, 6), 0.7
    found = Calibration("tau_norm", COUNTS, tau)(classifier(x), classifier)
    with torch.no_grad():
        weight = classifier.weight_g if cosine else classifier.weight
        length = weight.norm(dim=1, keepdim=True) ** tau
        length[3] = 1  # the background's
        weight /= length
    torch.testing.assert_close(found, classifier(x).softmax(1))


def test_recorded_scores(shared_dir):
    data = np.load(shared_dir / "golden" / "methods.npz")
    counts = ClassCounts(12, data["image_count"].tolist(), num_images=int(data["num_images"]))
    logits = torch.from_numpy(data["posthoc_logits"])
    for method, strength, key in (
        ("norcal", float(data["norcal_gamma"]), "norcal_scores"),
        ("logit_adjustment", 1.0, "logit_adjusted_scores_tau1"),
    ):
        np.testing.assert_allclose(Calibration(method, counts, strength)(logits, None), data[key], rtol=1e-5)


def test_what_is_not_known_names_the_key():
    with pytest.raises(LossError, match="MODEL.RIO.IMAGE_COUNT: expected 3 numbers"):
        Calibration("norcal", ClassCounts(3))
    with pytest.raises(LossError, match="MODEL.RIO.FRACTAL_DIMENSION"):
        Calibration("fracal", ClassCounts(3, [1, 1, 1], [1, 1, 1], 3))
    with pytest.raises(LossError, match="CALIBRATION: expected one of .*found none"):
        Calibration("none", COUNTS)


def test_fractal_dimension_of_object_centres(tmp_path):
    """Four on the diagonal of a picture are a line, four in its corners a plane, three are too few to tell."""
    groups = [[(0.1, 0.1), (0.4, 0.4), (0.6, 0.6), (0.9, 0.9)], [(x, y) for x in (0.1, 0.9) for y in (0.1, 0.9)]]
    groups.append(groups[1][:3])
    points = [(c, x, y) for c, own in enumerate(groups, 1) for x, y in own]
    things = [thing(i, 1, c, [200 * x - 2, 100 * y - 1, 4, 2]) for i, (c, x, y) in enumerate(points, 1)]
    path = coco_file(tmp_path, things, (1, 2, 3), (1,), (200, 100))
    assert fractal_dimensions(load_annotations(path)) == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("method", [name for name in STRENGTHS if name != "none"])
@pytest.mark.parametrize("cascade", [False, True])
def test_the_heads_calibrate_at_inference_only(method, cascade):
    counts = {"IMAGE_COUNT": [90, 3, 200, 20, 1], "NUM_IMAGES": 1000, "FRACTAL_DIMENSION": [1.9, 1.0, 1.2, 1.0, 1.0]}
    plain, calibrated = (build(make_cfg(cascade=cascade, CALIBRATION=name, **counts)) for name in ("none", method))
    assert plain.state_dict().keys() == calibrated.state_dict().keys()
    predictors = [heads.box_predictor[-1] if cascade else heads.box_predictor for heads in (plain, calibrated)]
    features, proposals = torch.rand(27, 12), batch(torch.Generator().manual_seed(1))[2]
    before, after = (torch.cat(p.predict_probs(p(features), proposals)) for p in predictors)
    assert after.shape == (27, 6) and not torch.allclose(before, after)
    torch.testing.assert_close(after.sum(1), torch.ones(27))
    assert torch.equal(*(p.cls_loss(p(features)[0], torch.zeros(27).long()) for p in predictors))


def test_losses_without_softmax_cannot_be_calibrated():
    with pytest.raises(ConfigError, match="CALIBRATION: expected 'none' for CLS_LOSS seesaw, found 'norcal'"):
        load_config(opts=["MODEL.RIO.CLS_LOSS", "seesaw", "MODEL.RIO.CALIBRATION", "norcal"])
    load_config(opts=["MODEL.RIO.CLS_LOSS", "balanced_softmax", "MODEL.RIO.CALIBRATION", "norcal"])


def test_eval_with_a_calibration(straight, tmp_path, command):
    words = ["eval", "--weights", f"{straight.cfg.OUTPUT_DIR}/model_final.pth"]

    def scores(*calibration: str) -> list[float]:
        command(*words, "--output-dir", tmp_path, *calibration)
        return [row["score"] for row in json.loads((tmp_path / "instances_results.json").read_text())]

    plain = scores()
    assert plain == scores("--calibration", "norcal=0") != scores("--calibration", "norcal=0.6")
    assert scores("--calibration", "norcal") == scores("--calibration", "norcal=0.6") and scores(
        "--calibration", "fracal"
    )
    assert "did you mean 'norcal'" in command(*words, "--calibration", "norca", code=2)
    command("eval", "--results", "r.json", "--gt", "g.json", "--calibration", "norcal", code=2)
