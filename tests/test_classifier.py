"""The cosine classifier against its formula, by hand, and its gradient."""

import math

import pytest
import torch
from torch import nn

from rio.classifier import CosineClassifier


def test_by_hand():
    classifier = CosineClassifier(2, 3, scale=10.0)
    with torch.no_grad():
        classifier.weight_v.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5], [1.0, 1.0]]))
        classifier.weight_g.copy_(torch.tensor([[1.0], [2.0], [1.0]]))
    logits = classifier(torch.tensor([[0.0, 7.0], [4.0, 3.0], [0.0, 0.0]]))
    # (0, 7) points along (0, 1): cosines 0, 1, 1/sqrt2; times g, times 10. (4, 3) along (0.8, 0.6).
    half = math.sqrt(0.5)
    expected = torch.tensor([[0.0, 20.0, 10 * half], [8.0, 12.0, 14 * half], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)


def test_starts_as_a_linear_layer_does():
    torch.manual_seed(3)
    weight = nn.Linear(16, 5, bias=False).weight
    torch.manual_seed(3)
    classifier = CosineClassifier(16, 5)
    torch.testing.assert_close(classifier.weight(), weight)
    assert {n: tuple(p.shape) for n, p in classifier.named_parameters()} == {"weight_g": (5, 1), "weight_v": (5, 16)}


def test_equal_to_torchs_weight_norm_also_in_its_gradient():
    classifier = CosineClassifier(8, 4, scale=48.0).double()
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4, bias=False).double())
    theirs = linear.parametrizations.weight
    theirs.original0.data, theirs.original1.data = classifier.weight_g.data.clone(), classifier.weight_v.data.clone()
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    ours, expected = classifier(x), 48 * linear(x / (x.norm(dim=1, keepdim=True) + 1e-5))
    torch.testing.assert_close(ours, expected)
    grads = torch.autograd.grad(ours.logsumexp(1).sum(), [x, classifier.weight_g, classifier.weight_v])
    expected = torch.autograd.grad(expected.logsumexp(1).sum(), [x, theirs.original0, theirs.original1])
    torch.testing.assert_close(grads, expected)


def test_zero_rows_and_zero_lengths_stay_finite():
    classifier = CosineClassifier(4, 3)
    with torch.no_grad():
        classifier.weight_v[0] = 0
    x = torch.zeros(2, 4, requires_grad=True)
    logits = classifier(x)
    logits.sum().backward()
    assert torch.equal(logits, torch.zeros(2, 3))
    assert x.grad.isfinite().all() and classifier.weight_v.grad.isfinite().all()
    assert classifier(torch.zeros(0, 4)).shape == (0, 3)


def test_autocast_computes_in_float32():
    classifier, x = CosineClassifier(256, 11), torch.rand(32, 256)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = classifier(x.bfloat16())
    assert logits.dtype == torch.float32 and torch.equal(logits, classifier(x.bfloat16().float()))
    # All that is left is the rounding of the feature itself: 2^-9 relative, a sum over 256 of random sign.
    torch.testing.assert_close(logits, classifier(x), rtol=0, atol=0.05)


@pytest.mark.parametrize("arguments", [(0, 3), (3, 0), (3, 3, 0.0), (3, 3, -1.0), (3, 3, math.nan), (3, 3, math.inf)])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="expected a number > 0, found .* Fix: "):
        CosineClassifier(*arguments)


def test_bad_width():
    with pytest.raises(ValueError, match=r"expected \(R, 4\), .*found \(2, 5\).*FC_DIM"):
        CosineClassifier(4, 3)(torch.zeros(2, 5))
