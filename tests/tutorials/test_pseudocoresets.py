"""The page on pseudocoresets: its parts against exact answers."""

import pytest
import torch

from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, GaussianSurrogate
from tests.inference.pseudocoresets.coreset_models import FITS_ARE_SHORT
from tests.pages import check_short_report

PAGE = "pseudocoresets"

pytestmark = [pytest.mark.slow, FITS_ARE_SHORT]


def test_short_run_saves_a_report_and_figures(short_run):
    check_short_report(short_run[1], PAGE, 6, {"in-the-plane"})


def test_distances_by_hand(parts):
    """Divergence and scales of Gaussian posteriors, from their formulas."""
    x, y, noise = parts["x"][:60], parts["y"][:60], parts["NOISE"]
    guide = AutoPseudocoreset(parts["linear"], x, y, size=20, weights="scaled", seed=0)
    found = parts["distance"](guide, GaussianSurrogate())
    (inputs, targets), weights = guide.pseudodata, guide.weights
    precision = torch.eye(10) + x.mT @ x / noise**2
    own_precision = torch.eye(10) + (weights * inputs.mT) @ inputs / noise**2
    mean = torch.linalg.solve(precision, x.mT @ y / noise**2)
    own_mean = torch.linalg.solve(own_precision, (weights * inputs.mT) @ targets / noise**2)
    distribution, own = (
        torch.distributions.MultivariateNormal(m, precision_matrix=p)
        for m, p in ((mean, precision), (own_mean, own_precision))
    )
    divergence = torch.distributions.kl_divergence(distribution, own)
    scale = precision.inverse().diag().sqrt()
    assert found.divergence == pytest.approx(float(divergence), rel=1e-6)
    ratio = own_precision.inverse().diag().sqrt() / scale
    assert found.scale == pytest.approx(float(ratio.max()), rel=1e-6)


def test_all_of_the_data_is_its_own_coreset(parts):
    x, y = parts["x"][:30], parts["y"][:30]
    guide = AutoPseudocoreset(parts["linear"], x, y, size=30, weights="uniform", seed=0)
    found = parts["distance"](guide, GaussianSurrogate())
    assert found == pytest.approx((0.0, 1.0), abs=1e-6)


def test_data_are_large(parts):
    """Covariates of neighbours have the correlation of a half."""
    correlations = torch.corrcoef(parts["many"].mT)
    neighbours = correlations.diagonal(1)
    assert float((neighbours - 0.5).abs().max()) < 5 * 0.75 / 2000**0.5
