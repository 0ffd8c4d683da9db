"""Random walks with Metropolis: their law, and that each site is moved given the others."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import MCMC, Gibbs, RandomWalk

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.statistical
def test_random_walk_draws_from_its_target():
    """Moments of two Gamma laws within 4.5 standard errors, false alarms 3e-5 but for batching.

    Sites are moved one after the other: the second needs the density after the first has moved.
    """

    def model():
        first = pyro.sample("first", dist.Gamma(3.0, 2.0))
        pyro.sample("second", dist.Gamma(3.0, 2.0 / first))  # of a scale of the first

    kernel = Gibbs([(RandomWalk(1.2), ["first", "second"])], model=model)
    mcmc = MCMC(kernel, 3_000, warmup_steps=20, progress=False, seed=0).run()
    draws = mcmc.get_samples()
    ratio = 2.0 * draws["second"] / draws["first"]  # Gamma(3, 1), independent of the first
    for value, mean, variance in ((draws["first"], 1.5, 0.75), (ratio, 3.0, 3.0)):
        for moments, exact in ((value, mean), ((value - mean) ** 2, variance)):
            error = float(moments.view(40, 75).mean(-1).std()) / 40**0.5
            assert abs(float(moments.mean()) - exact) < 4.5 * error


def test_a_site_is_accepted_by_the_density_after_the_move_before() -> None:
    """The first site gains thousands of nats, which must not pay for what the second loses."""

    def model() -> None:
        pyro.sample("first", dist.Normal(0.0, 0.01))
        pyro.sample("second", dist.Normal(0.0, 0.1))

    start = {"first": torch.ones(1), "second": torch.zeros(1)}
    num_moved = 0
    for seed in range(40):
        kernel = Gibbs([(RandomWalk(1.2), ["first", "second"])], model=model)
        mcmc = MCMC(kernel, 1, initial_params=start, progress=False, seed=seed).run()
        draws = mcmc.get_samples()
        num_moved += int(draws["first"] != 1.0)
        assert abs(float(draws["second"])) < 1.0  # which has a probability of e**-50
    assert num_moved > 5


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="scale must be a finite number > 0, got 0"):
        RandomWalk(0.0)
