"""Bars against quadrature, and quantiles against probabilities, on random distributions."""

import math

import pytest
import torch
from torch.distributions import kl_divergence

from pyro_ext.distributions import BarDistribution, bar_borders
from pyro_ext.special import gauss_legendre

pytestmark = pytest.mark.usefixtures("float64")
NUM_BORDERS, NUM_EACH = 40, 25


def random_distributions():
    """A thousand distributions of two to thirty bars, from nearly uniform to nearly one bar."""
    generator = torch.Generator().manual_seed(0)
    for number in range(NUM_BORDERS):
        num_bars = 2 + number % 29
        widths = torch.randn(num_bars, generator=generator).exp()
        borders = torch.cat([torch.zeros(1), widths.cumsum(0)]) - 3.0 * number / NUM_BORDERS
        scale = 10.0 ** torch.linspace(-1.0, 1.0, NUM_EACH)[:, None]
        yield borders, scale * torch.randn(NUM_EACH, num_bars, generator=generator)


def integrals(bars, functions):
    """Integrals of functions times the density, bar by bar, and twelve scales into each tail."""
    nodes, weights = gauss_legendre(16)
    first, last = bars._scales()
    steps = torch.arange(13.0)
    down, up = bars.borders[1] - first * steps, bars.borders[-2] + last * steps
    edges = [(bars.borders[1:-2], bars.borders[2:-1]), (down[1:], down[:-1]), (up[:-1], up[1:])]
    panels = torch.cat([torch.stack(pair, -1) for pair in edges])
    at = (panels[:, :1] + panels.diff() * nodes).flatten()[:, None]
    density = bars.log_prob(at).exp()
    mass = (panels.diff() * weights).flatten()[:, None] * density
    return [(mass * function(at)).sum(0) for function in functions]


def test_a_thousand_distributions():
    probs = torch.linspace(0.001, 0.999, 41)[:, None]
    for borders, logits in random_distributions():
        bars = BarDistribution(logits, borders)
        ones, mean = integrals(bars, [torch.ones_like, lambda x: x])
        torch.testing.assert_close(ones, torch.ones(NUM_EACH), rtol=1e-9, atol=0)
        torch.testing.assert_close(mean, bars.mean, rtol=1e-9, atol=1e-9)
        second, entropy = integrals(
            bars,
            [lambda x, bars=bars: (x - bars.mean).square(), lambda x, bars=bars: -bars.log_prob(x)],
        )
        torch.testing.assert_close(second, bars.variance, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(entropy, bars.entropy(), rtol=1e-8, atol=1e-9)
        quantiles = bars.icdf(probs)
        assert bool((quantiles.diff(dim=0) > 0).all())
        torch.testing.assert_close(
            bars.cdf(quantiles), probs.expand_as(quantiles), rtol=1e-10, atol=1e-12
        )


def test_half_of_a_tail_is_within_its_outermost_border():
    bars = BarDistribution(torch.tensor([0.2, -0.4, 0.9]), torch.tensor([-1.0, 0.0, 1.0, 3.0]))
    first, _, last = bars.probs
    assert bars.cdf(torch.tensor(-1.0)).item() == pytest.approx(first.item() / 2)
    assert bars.cdf(torch.tensor(3.0)).item() == pytest.approx(1 - last.item() / 2)
    far = torch.tensor([-7.0, 15.0])  # log densities of half-normal distributions
    scale = torch.tensor([1.0, 2.0]) / 0.6744897501960817
    z = torch.tensor([7.0, 14.0]) / scale
    exact = bars.probs[[0, 2]].log() + math.log(2 / math.sqrt(2 * math.pi)) - scale.log() - z**2 / 2
    torch.testing.assert_close(bars.log_prob(far), exact)


def test_equal_logits():
    """A density inside is one over so many times the width; the mean is in the middle."""
    borders = torch.linspace(0.0, 1.0, 1001)
    bars = BarDistribution(torch.full((1001 - 1,), 3.0), borders)
    assert bars.mean.item() == pytest.approx(0.5, abs=1e-12)
    value = torch.tensor([0.20003, 0.5, 0.98765])
    torch.testing.assert_close(bars.log_prob(value), -torch.log(torch.full((3,), 1000 * 0.001)))
    uneven = torch.tensor([0.0, 0.1, 0.4, 0.5])
    nll = -BarDistribution(torch.zeros(3), uneven).log_prob(torch.tensor(0.2))
    assert nll.item() == pytest.approx(math.log(3 * 0.3))


def test_borders_are_quantiles():
    values = torch.randn(9_000, generator=torch.Generator().manual_seed(0)).exp()
    borders = bar_borders(values.reshape(90, 100), 30)
    counts = torch.histc(torch.bucketize(values, borders[1:-1]).double(), 30, -0.5, 29.5)
    assert counts.tolist() == [300] * 30
    low, high = values[values < borders[1]], values[values > borders[-2]]
    assert float(borders[0]) == pytest.approx(float(low.quantile(0.5)))
    assert float(borders[-1]) == pytest.approx(float(high.quantile(0.5)))


def test_borders_of_many_draws_leave_moments_as_they_are():
    """Tails as wide as the draws', however far away the greatest draw is."""
    normal = torch.distributions.Normal(0.0, 1.0)
    values = normal.icdf((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    bars = BarDistribution(torch.zeros(20, dtype=torch.float64), bar_borders(values, 20))
    assert float(bars.variance) == pytest.approx(1.0, abs=0.02)
    excess = normal.log_prob(values) - bars.log_prob(values)
    assert 0.0 < float(excess.mean()) < 0.02


def test_wrong_borders():
    for borders in ([0.0, 1.0, 1.0], [0.0, 2.0, 1.0], [0.0, float("nan"), 1.0], [0.0, 1.0]):
        with pytest.raises(ValueError, match="borders"):
            BarDistribution(torch.zeros(2), torch.tensor(borders))
    with pytest.raises(ValueError, match="at least 2"):
        BarDistribution(torch.zeros(1), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="fewer bars"):
        bar_borders(torch.zeros(50), 5)


def test_divergence_by_quadrature():
    borders = torch.tensor([-0.7, -0.2, 0.1, 0.9])
    one, other = (BarDistribution(torch.randn(2, 3), borders) for _ in range(2))
    value = torch.linspace(-15.0, 15.0, 300_001)[:, None]
    density = one.log_prob(value)
    expected = torch.trapezoid(density.exp() * (density - other.log_prob(value)), value, dim=0)
    torch.testing.assert_close(kl_divergence(one, other), expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(NotImplementedError, match="equal borders"):
        kl_divergence(one, BarDistribution(torch.zeros(3), borders + 1.0))
