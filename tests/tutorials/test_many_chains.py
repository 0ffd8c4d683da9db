"""The page on many chains: its exact moments, and in full its claims."""

import pytest
import torch

PAGE = "many-chains"
pytestmark = pytest.mark.slow


def test_moments_of_schools_are_those_of_importance_sampling(names):
    """Draws of the prior, weighted by the likelihood: errors of a hundredth."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mean, scale = 10.0 * torch.randn(2, 400_000, dtype=torch.float64)
        noise = torch.randn(400_000, 8, dtype=torch.float64)
    scale = scale.abs()
    spread = (names["EFFECTS"] - mean[:, None] - scale[:, None] * noise) / names["ERRORS"]
    weights = (-0.5 * spread.square().sum(-1)).softmax(0)
    draws = torch.cat([mean[:, None], scale[:, None], noise], -1)
    found = weights @ draws
    exact = names["POSTERIORS"]["schools"]
    assert ((found - exact.mean) / exact.sd).abs().max() < 0.03
    deviations = (weights @ draws.square() - found.square()).sqrt()
    assert (deviations / exact.sd - 1.0).abs().max() < 0.03


@pytest.mark.page
@pytest.mark.statistical
def test_full_run_meets_its_claims(full_run):
    """Both are far from their bounds: errors are below 0.03, or above 0.05 and warned of."""
    assert all(claim.holds for claim in full_run.report.claims) and full_run.returncode == 0
