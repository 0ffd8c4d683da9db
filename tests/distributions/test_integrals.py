"""Densities integrate to one, to their distribution functions, moments and Laplace transforms."""

import numpy as np
import pytest
import torch

from pyro_ext.distributions import (
    BetaPrimeBFRY,
    PositiveStable,
    RectifiedGamma,
    StableBetaBFRY,
    TiltedStable,
)
from tests.distributions.exact import CASES, Case

pytestmark = pytest.mark.usefixtures("float64")

NUM_PANELS = 200
NUM_NODES = 16
NARROW = 8.0
LARGEST_LOG_ODDS = 20.0
FARTHEST = 690.0  # of logarithms, before numbers overflow
RARE = 1e-13


class Rule:
    """Gaussian quadrature of a law in panels over the logarithm, or that of the odds.

    At an end where there is a power law it goes on in closed form.
    """

    def __init__(self, case: Case, low: float, high: float, tail: float = np.inf) -> None:
        law, is_odds = case.law(), case.make is StableBetaBFRY
        nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
        knee = min(high, low + NARROW)
        edges = np.unique(np.linspace([low, knee], [knee, high], NUM_PANELS + 1, axis=1))
        half = 0.5 * np.diff(edges)[:, None]
        inner = (edges[:-1, None] + half * (1 + nodes)).ravel()
        place = torch.from_numpy(np.concatenate([[low], inner, [high]]))
        bound = torch.as_tensor(getattr(law.support, "upper_bound", np.inf))
        self.x = torch.minimum(torch.sigmoid(place) if is_odds else place.exp(), bound)
        log_slope = self.x.log() + (torch.log1p(-self.x) if is_odds else 0.0)
        self.density = (law.log_prob(self.x) + log_slope).exp()
        self.weight = self.density * torch.from_numpy(np.pad((half * weights).ravel(), 1))
        self.start = case.start if low <= -FARTHEST else np.inf
        self.tail = tail
        self.factor = case.factor

    def __call__(self, function, power: int = 0) -> float:
        """Of a function that grows with a power."""
        terms = function(self.x)
        whole = float((self.weight * terms).sum())
        whole += float(self.density[0] * terms[0]) / self.start
        if self.tail < np.inf:
            beyond = float(self.density[-1] * terms[-1]) / (self.tail - power)
            whole += self.factor * beyond
        return whole


def ends(case: Case) -> tuple[float, float]:
    """Logarithms, or those of odds; outside there is next to no mass, or a power law."""
    law = case.law()
    low, high = law.icdf(torch.tensor([RARE, 1.0 - RARE])).log().tolist()
    if case.make is StableBetaBFRY:
        high = LARGEST_LOG_ODDS
    elif case.tail < np.inf:
        high = min(high + 40.0, FARTHEST)
    else:
        bound = torch.as_tensor(getattr(law.support, "upper_bound", np.inf))
        high = min(high + np.log(2.0), bound.log().item())
    return max(low, -FARTHEST), high


SLOW = (PositiveStable, TiltedStable)  # their densities are integrals themselves


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow if c.make in SLOW else (), id=str(c)) for c in CASES],
)
def test_integrals(case):
    law = case.law()
    low, high = ends(case)
    rule = Rule(case, low, high, case.tail)
    atom = law.log_prob(law.high).exp() if case.make is RectifiedGamma else torch.zeros(())
    end = torch.as_tensor(getattr(law.support, "upper_bound", 1.0))

    def expectation(function, power=0) -> float:
        # On the unit interval no function grows at the end.
        power = 0 if case.make is StableBetaBFRY else power
        return rule(function, power) + float(atom * function(end))

    assert expectation(torch.ones_like) == pytest.approx(1.0, abs=1e-8)
    quantiles = law.icdf(torch.tensor([1e-3, 0.3, 0.5, 0.9]))
    median = quantiles[2].item()
    for t in (0.1 / median, 1.0 / median, 10.0 / median):
        value = expectation(lambda x, t=t: torch.exp(-t * x))
        assert value == pytest.approx(case.laplace(t), abs=1e-8), t
    for quantile in quantiles:
        rest = torch.log1p(-quantile) if case.make is StableBetaBFRY else 0.0
        place = (quantile.log() - rest).item()
        if low < place < high - 1e-9:
            value = Rule(case, low, place)(torch.ones_like)
            assert law.cdf(quantile).item() == pytest.approx(value, abs=1e-8)
    mean, variance = law.mean.item(), law.variance.item()
    if np.isfinite(mean):
        assert expectation(lambda x: x / mean, 1) == pytest.approx(1.0, abs=1e-8)
    if np.isfinite(variance):
        value = expectation(lambda x: ((x - mean) / variance**0.5).square(), 2)
        assert value == pytest.approx(1.0, abs=1e-8)


def test_moments_of_a_stable_beta_atom():
    """Of the specification: the number of atoms times the mean."""
    for level, num_atoms, mass in ((24.744151, 20, 1.561350), (4025.1699, 200, 1.977134)):
        law = StableBetaBFRY(0.4, 1.5, level)
        assert num_atoms * law.mean.item() == pytest.approx(mass, abs=2e-6)


def test_huge_levels():
    """Far above the knee, levels change a density by a constant."""
    place = torch.tensor([1e-3, 0.1, 0.7])
    for make, others in ((StableBetaBFRY, (1.5,)), (BetaPrimeBFRY, (2.3,))):
        low, high = (make(0.3, *others, log_level=level) for level in (600.0, 8_000.0))
        ratio = low.log_prob(place) - high.log_prob(place)
        torch.testing.assert_close(ratio, torch.full_like(ratio, 0.3 * 7_400.0))
        limit = make(0.0, *others, log_level=600.0).log_prob(place)
        near = make(1e-9, *others, log_level=600.0).log_prob(place)
        torch.testing.assert_close(near, limit, rtol=0, atol=2e-6)
