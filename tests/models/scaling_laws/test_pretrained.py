"""The network that ships: calibrated on draws of the prior, and near to exact predictions."""

import math

import pytest
import torch
from scipy import stats

from pyro_ext.models.scaling_laws import (
    pretrained_network,
    sample_scaling_curves,
    scaling_grid,
)
from tests.models.scaling_laws.exact import exact_log_prob


@pytest.fixture(scope="module")
def network():
    return pretrained_network()


def predicted(network, x, y, num_context):
    return network.predictive(x[:, :num_context], y[:, :num_context], x[:, num_context:])


@pytest.mark.statistical
def test_ranks_of_held_out_draws_are_uniform(network, float64):
    """Simulation-based calibration in 12 settings, 500 curves each, by Kolmogorov and Smirnov.

    A calibrated network fails for one seed in 100. This one is an approximation whose tails are too
    light where there is little noise: 3.7 percent of the values fall outside the central 98
    percent, and 8 percent in the worst setting, at the first point that is not given.
    """
    outside = []
    for number, spacing in enumerate(("uniform", "log")):
        for num_context in (4, 10, 20):
            seed = 10 * number + num_context
            x = scaling_grid(500, 30, spacing=spacing, seed=seed)
            y = sample_scaling_curves(x, num_context=num_context, seed=100 + seed)
            below = predicted(network, x, y, num_context).cdf(y[:, num_context:])
            for ranks in (below[:, 0], below[:, -1]):
                assert stats.kstest(ranks.numpy(), "uniform").pvalue > 0.01 / 12
                outside.append(float(((ranks - 0.5).abs() > 0.49).double().mean()))
    assert max(outside) < 0.09 and sum(outside) / 12 < 0.04


@pytest.mark.statistical
def test_intervals_hold_what_they_should(network, float64):
    """Five standard errors of 2,000 curves, and 0.01 since the network is an approximation."""
    x = scaling_grid(2_000, 30, spacing="mixed", seed=0)
    y = sample_scaling_curves(x, num_context=10, seed=1)
    prediction = predicted(network, x, y, 10)
    below = prediction.cdf(y[:, 10:])[:, 10]
    for level in (0.5, 0.8, 0.9):
        error = math.sqrt(level * (1.0 - level) / 2_000)
        held = ((below - 0.5).abs() < level / 2.0).double().mean()
        assert float(held) == pytest.approx(level, abs=5.0 * error + 0.01)
    blind = network.predictive(x[:, :2], y[:, :2], x[:, 10:]).log_prob(y[:, 10:])
    assert float((prediction.log_prob(y[:, 10:]) - blind).mean()) > 0.5


@pytest.mark.slow
@pytest.mark.statistical
def test_predictions_are_near_the_exact_ones(network, float64):
    """Log densities of draws at 14 sizes, given eight, are 0.1 below the exact ones on average.

    The bounds are three standard errors more. Only the first values decide which draws count.
    """
    x = torch.logspace(-2.0, 0.0, 14)
    y = sample_scaling_curves(x.expand(120, 14), num_context=8, seed=0)
    exact, num_effective = exact_log_prob(x, y, 8, num_curves=150_000)
    found = predicted(network, x.expand(120, 14), y, 8).log_prob(y[:, 8:])
    gap = (exact - found).mean(-1)[num_effective > 50]
    error = float(gap.std()) / math.sqrt(len(gap))
    assert len(gap) > 60 and error < 0.1
    assert -3.0 * error < float(gap.mean()) < 0.1 + 3.0 * error
