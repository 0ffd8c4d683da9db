"""A model for tests of drivers, where its posterior does not matter, and what compares draws."""

import pyro
import pyro.distributions as dist
import pyro.infer
import torch

from pyro_ext.inference.laplace import gaussian_at_mode
from pyro_ext.potential.potential import energy
from pyro_ext.random import seeded
from tests.killing import stopping


def normal(x, subsample_size=None):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    pyro.deterministic("ratio", loc / scale, event_dim=1)
    with pyro.plate("data", len(x), subsample_size=subsample_size) as index:
        pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x[index])


def subsampled_normal(x):
    normal(x, 20)


def whole(x):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def interrupting(count):
    """A potential that is interrupted at its evaluation of that number."""
    return stopping(lambda z: 0.5 * z["x"].square().sum(), count)


def assert_same(one, other):
    """Draws of two runs are the same to the last bit."""
    one, other = one.get_samples(True), other.get_samples(True)
    assert set(one) == set(other)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_mean(values, exact, most=4.5):
    """The mean of independent rows is within so many standard errors of what it should be."""
    scores = (values.mean(0) - exact) / (values.std(0) / len(values) ** 0.5)
    assert float(scores.abs().max()) < most, scores


def data():
    return torch.randn(60, 2, generator=torch.Generator().manual_seed(1)) + 1.0


def nuts_at_the_mode(potential, start, num_samples, *, warmup_steps=100, seed=0):
    """Draws by Pyro's NUTS in the coordinates of the Gaussian at the mode, which need few steps."""
    flat = potential.layout.flatten(potential.unconstrain(start))
    laplace = gaussian_at_mode(potential, flat[None])

    def standardized(params):
        return energy(laplace.mode + laplace.scale_tril @ params["z"], potential)

    with seeded(seed):
        mcmc = pyro.infer.MCMC(
            pyro.infer.NUTS(potential_fn=standardized, step_size=0.4, adapt_mass_matrix=False),
            num_samples,
            warmup_steps=warmup_steps,
            initial_params={"z": torch.zeros_like(laplace.mode)},
            disable_progbar=True,
        )
        mcmc.run()
    flat = laplace.mode + mcmc.get_samples()["z"] @ laplace.scale_tril.mT
    return potential.constrain(potential.layout.unflatten(flat))
