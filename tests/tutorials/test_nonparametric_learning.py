"""The page on nonparametric learning: its parts against exact answers."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.handlers import data_weights
from tests.pages import check_short_report

PAGE = "nonparametric-learning"
pytestmark = pytest.mark.slow


def test_short_run_saves_a_report_and_figures(short_run):
    check_short_report(short_run[1], PAGE, 7, {"restarts"})


def test_exact_moments_of_a_mean(parts):
    assert parts["exact_moments"](0.0) == pytest.approx((3.75, 1.4375))
    assert parts["exact_moments"](2.0) == pytest.approx((2.5, 1.3233333))


def test_distance_in_standard_errors(parts):
    """Draws with the exact mean and variance, shifted by three standard errors."""
    draws = torch.linspace(-1.0, 1.0, 101)
    draws = draws * (1.4375 / draws.var(correction=0)).sqrt() + 3.75
    assert parts["distance"](draws, 0.0) < 1e-6
    shifted = draws + 3.0 * (1.4375 / 101) ** 0.5
    assert parts["distance"](shifted, 0.0) == pytest.approx(3.0)


def test_mixture_has_two_minima(parts):
    """On a fine grid of the two locations, with the other order left out."""
    grid = torch.linspace(-6.0, 6.0, 121)
    positions = torch.cartesian_prod(grid, grid)
    distribution = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(len(positions), 1, 2)), dist.Normal(positions[:, None], 0.7)
    )
    loss = -distribution.log_prob(parts["clusters"]).mean(-1).reshape(121, 121)
    inner = loss[1:-1, 1:-1]
    shifts = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
    lowest = torch.stack([loss[1 + a : 120 + a, 1 + b : 120 + b] for a, b in shifts]).amin(0)
    rows, columns = (inner < lowest).nonzero(as_tuple=True)
    found = torch.stack([grid[1 + rows], grid[1 + columns]], -1)
    found = found[found[:, 0] < found[:, 1]]
    torch.testing.assert_close(found, torch.tensor([[-4.0, 2.0], [-2.0, 4.0]]), atol=0.05, rtol=0)


def test_weighted_posterior(parts):
    """By quadrature of the weighted model's density, with its prior."""
    weighted = data_weights("data", parts["weights"])(parts["normal"])
    positions = torch.linspace(2.0, 8.0, 601)
    densities = []
    for position in positions:
        model = pyro.poutine.condition(weighted, {"mean": position})
        densities.append(pyro.poutine.trace(model).get_trace(parts["y"]).log_prob_sum())
    density = torch.stack(densities).softmax(0)
    mean = float((density * positions).sum())
    assert parts["exact_mean"] == pytest.approx(mean, abs=1e-3)
    variance = float((density * (positions - mean).square()).sum())
    assert parts["exact_sd"] == pytest.approx(variance**0.5, rel=1e-3)
