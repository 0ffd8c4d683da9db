"""Random walks and effects that sum to zero: densities, the rotation, and as priors."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to

from pyro_ext.distributions import GaussianRandomWalk, ZeroSumNormal
from pyro_ext.inference import MCMC, NUTS

pytestmark = pytest.mark.usefixtures("float64")


def test_walks_are_normal():
    """With the covariance min(s, t) times the variance of a step."""
    walk = GaussianRandomWalk(torch.tensor([0.5, 2.0]), 4)
    time = torch.arange(1.0, 5.0)
    covariance = torch.minimum(time[:, None], time) * torch.tensor([0.25, 4.0])[:, None, None]
    exact = dist.MultivariateNormal(torch.zeros(4), covariance)
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(walk.log_prob(x), exact.log_prob(x))
    torch.testing.assert_close(walk.variance, exact.variance)


@pytest.mark.parametrize("event_shape", [(4,), (2, 3), (2, 2, 3)])
def test_the_rotation(event_shape):
    """It keeps distances and the density; sums vanish, and its inverse is one."""
    law = ZeroSumNormal(torch.tensor(1.3), event_shape)
    rotation = biject_to(law.support)
    shape = rotation.inverse_shape(torch.Size(event_shape))
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    y = rotation(x)
    assert y.shape[1:] == rotation.forward_shape(x.shape[1:]) == event_shape
    for dim in range(1, y.dim()):
        torch.testing.assert_close(y.sum(dim), torch.zeros_like(y.sum(dim)))
    torch.testing.assert_close(rotation.inv(y), x)
    torch.testing.assert_close(y.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    free = dist.Normal(0.0, 1.3).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(law.log_prob(y), free)
    jacobian = torch.autograd.functional.jacobian(rotation, x[0]).reshape(-1, x[0].numel())
    torch.testing.assert_close(jacobian.mT @ jacobian, torch.eye(x[0].numel()))
    assert not bool(law.support.check(y + 0.1).any()) and bool(law.support.check(y).all())


@pytest.mark.statistical
def test_draws():
    """Of variance s^2 (1 - 1/m) (1 - 1/n): 20,000 draws, means of squares within 4.5 errors, a
    false-alarm rate of 7e-6 for each of six."""
    law = ZeroSumNormal(1.3, (2, 3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = law.sample((20_000,))
    assert bool(law.support.check(draws).all())
    square = draws.square()
    error = square.std(0) / 20_000**0.5
    assert ((square.mean(0) - law.variance).abs() < 4.5 * error).all()


def test_as_priors():
    """Effects beside an intercept, of which two groups have data; exact by linear algebra."""
    y = torch.tensor([1.0, 3.0])

    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        effects = pyro.sample("effects", ZeroSumNormal(1.0, (2,)))
        pyro.sample("y", dist.Normal(mean + effects, 0.5).to_event(1), obs=y)

    mcmc = MCMC(NUTS(model, backend="trace"), 500, 300, num_chains=4, seed=0, progress=False).run()
    draws = mcmc.get_samples()
    # The difference has the prior N(0, 2) and is seen with the variance 1/2.
    assert float(draws["effects"][:, 1].mean()) == pytest.approx(0.5 * 2.0 * 2.0 / 2.5, abs=0.06)
    torch.testing.assert_close(draws["effects"].sum(-1), torch.zeros(2000))


@pytest.mark.parametrize(("event_shape", "error"), [((1,), ValueError), ((2.5,), TypeError)])
def test_shapes(event_shape, error):
    with pytest.raises(error, match="event_shape"):
        ZeroSumNormal(1.0, event_shape)
