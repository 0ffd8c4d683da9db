"""Random walks with Metropolis: what they leave invariant, and sites moved given the others."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import MCMC, ConditionalUpdate, Gibbs, LogJoint, PriorProposals, RandomWalk
from tests.inference.models import assert_mean

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.slow
@pytest.mark.statistical
def test_random_walk_draws_from_its_target():
    """Moments of two gammas within 4.5 standard errors: false alarms 3e-5, but for batches.

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
            assert_mean(moments.view(40, 75).mean(-1), exact)


def test_a_site_is_accepted_by_the_density_after_the_move_before() -> None:
    """The first site gains thousands of nats, which must not pay for what the second loses."""

    def model() -> None:
        pyro.sample("first", dist.Normal(0.0, 0.01))
        pyro.sample("second", dist.Normal(0.0, 0.1))

    start = {"first": torch.ones(40), "second": torch.zeros(40)}
    kernel = Gibbs([(RandomWalk(1.2), ["first", "second"])], model=model)
    mcmc = MCMC(kernel, 1, num_chains=40, initial_params=start, progress=False, seed=0).run()
    draws = mcmc.get_samples()
    assert (draws["second"].abs() < 1.0).all()  # each with a probability of e**-50
    assert int((draws["first"] != 1.0).sum()) > 5


def bounded() -> None:
    """A site whose support depends on another one."""
    high = pyro.sample("high", dist.Gamma(3.0, 1.0))
    pyro.sample("x", dist.Uniform(0.0, high))


@pytest.mark.slow
@pytest.mark.statistical
def test_a_support_that_depends_on_another_site() -> None:
    """Moments within 4.5 standard errors from fifteen batches of 200: false-alarm rate 2e-3.

    Pyro's checks are on, as they are by default: a proposal outside of a support is lost, no error.
    """
    kernel = Gibbs([(RandomWalk(1.5), ["high", "x"])], model=bounded)
    with pyro.validation_enabled(True):
        mcmc = MCMC(kernel, 3_000, warmup_steps=20, progress=False, seed=0).run()
    draws = mcmc.get_samples()
    found = ((draws["high"], 3.0), (draws["x"], 1.5), (draws["x"] / draws["high"], 0.5))
    for value, exact in found:
        assert_mean(value.view(15, 200).mean(-1), exact)


@pytest.mark.parametrize("update", [RandomWalk(2.0), PriorProposals()])
def test_no_density_outside_of_a_support(update: ConditionalUpdate) -> None:
    """The density of a Pareto distribution is finite below its scale as PyTorch has it."""

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Pareto(scale, 1.0), obs=torch.tensor(1.5))

    mcmc = MCMC(Gibbs([(update, ["scale"])], model=model), 200, progress=False, seed=0).run()
    draws = mcmc.get_samples()["scale"]
    assert len(draws.unique()) > 20
    assert float(draws[20:].max()) < 1.5


def test_values_that_are_masked_may_be_anything() -> None:
    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", 2), pyro.poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("x", dist.Exponential(scale), obs=torch.tensor([1.0, -1.0]))

    with pyro.validation_enabled(False):
        joint = LogJoint(model, (), {})
        expected = dist.LogNormal(0.0, 1.0).log_prob(torch.tensor(2.0))
        expected = expected + dist.Exponential(2.0).log_prob(torch.tensor(1.0))
        assert joint({"scale": torch.tensor(2.0)}) == pytest.approx(float(expected))


def test_a_discrete_site() -> None:
    def model() -> None:
        pyro.sample("count", dist.Poisson(3.0))

    kernel = Gibbs([(RandomWalk(1.0), ["count"])], model=model)
    with pytest.raises(ValueError, match="site 'count' cannot be moved by a random walk"):
        MCMC(kernel, 5, progress=False, seed=0).run()
