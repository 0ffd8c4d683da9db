"""The page on prior augmented data: its parts, a short run, and in full its claims."""

import math

import pytest
import torch

pytest.importorskip("sklearn")

PAGE = "prior-augmented-data"
pytestmark = pytest.mark.slow


def test_splits(names):
    """Rows to test with have more of the feature than any that were trained with."""
    by_chance, *tails = names["splits"](0)
    assert [len(part) for part in by_chance] == [340, 102]
    for feature, (first, second) in zip(names["FEATURES"], tails, strict=True):
        assert len(first) == 310 and len(set(first.tolist()) | set(second.tolist())) == 442
        measured = names["MEASURED"][:, feature]
        assert measured[first].max() <= measured[second].min()


def test_scores_of_a_regression(names):
    """Of a network that predicts N(0, 1) whatever comes."""
    net = names["network"]([10, 64, 64, 2], 0.1, 0)
    for parameter in net.parameters():
        parameter.data.zero_()
    uniform = (torch.arange(1000) + 0.5) / 1000
    labels = torch.distributions.Normal(0.0, 1.0).icdf(uniform)
    for passes in (1, 3):
        nll, rmse, calibration = names["regression_scores"](
            net, torch.randn(1000, 10), labels, passes
        )
        assert nll == pytest.approx((1 + math.log(2 * math.pi)) / 2, abs=5e-3)
        assert rmse == pytest.approx(1.0, abs=5e-3)
        assert calibration <= 1e-3
