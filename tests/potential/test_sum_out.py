"""Models whose discrete sites are summed out: densities against Pyro's, draws, and errors."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, NUTS
from pyro_ext.potential import Potential, sum_out
from tests.zoo import discrete_examples
from tests.zoo.examples import EXAMPLES

pytestmark = pytest.mark.usefixtures("float64")
Model = Callable[[Tensor], None]


def mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.deterministic("own", loc[z])
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def hidden_markov(x: Tensor) -> None:
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    z: Tensor | int = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(rows[z]))
        pyro.sample(f"x{t}", dist.Normal(loc[z], 1.0), obs=x[t])


def nested(x: Tensor) -> None:
    fraction = pyro.sample("fraction", dist.Beta(2.0, 2.0))
    with pyro.plate("groups", 3):
        z = pyro.sample("z", dist.Bernoulli(fraction))
        with pyro.plate("data", len(x) // 3), pyro.poutine.mask(mask=x.reshape(-1, 3) < 2.0):
            pyro.sample("x", dist.Normal(3.0 * z, 1.0), obs=x.reshape(-1, 3))
            pyro.factor("more", -(z + 1.0) * fraction)


def sign(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.HalfNormal(3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(loc * (2 * z - 1), 1.0), obs=x)


def robust(x: Tensor) -> None:
    """Errors of the inputs that are of one of two sizes, and of the scale that goes with them."""
    fraction = pyro.sample("fraction", dist.Beta(2.0, 2.0))
    kind = pyro.sample("kind", dist.Bernoulli(0.4))
    scale = pyro.sample("scale", dist.LogNormal(kind, 1.0))
    direction = pyro.sample("direction", dist.Dirichlet(1.0 + kind[..., None] * torch.ones(3)))
    with pyro.plate("data", len(x)):
        is_outlier = pyro.sample("is_outlier", dist.Bernoulli(fraction))
        mean = pyro.sample("mean", dist.Normal(direction[..., 0], scale * (1.0 + 4.0 * is_outlier)))
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "depth"), [(mixture, 1), (hidden_markov, 0), (nested, 2), (sign, 1), (robust, 1)]
)
def test_densities(model: Model, depth: int) -> None:
    """Those of Pyro's own kernels."""
    x = 2.0 * torch.randn(9, generator=torch.Generator().manual_seed(0))
    _, theirs, _, _ = initialize_model(model, (x,), max_plate_nesting=depth)
    potential = Potential(sum_out(model, x), x)
    starts = potential.init(num_chains=3, seed=0)
    for chain, value in enumerate(potential(starts)):
        torch.testing.assert_close(value, theirs({k: v[chain] for k, v in starts.items()}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the model cannot be recorded")  # one takes numbers of its data
@pytest.mark.parametrize("name", discrete_examples.NAMES)
def test_examples_of_pyro(name: str) -> None:
    """Densities and gradients of Pyro's examples with discrete sites are Pyro's."""
    model, args, *_ = EXAMPLES[name]()
    with pyro.validation_enabled(False):
        _, theirs, _, _ = initialize_model(model, args)
    potential = Potential(sum_out(model, *args), *args)
    points = potential.init(num_chains=2, seed=0)
    points = {k: value + 0.3 * torch.randn_like(value) for k, value in points.items()}
    values, gradients = potential.value_and_grad(points)
    for chain in range(2):
        row = {k: value[chain].clone().requires_grad_() for k, value in points.items()}
        expected = theirs(row)
        torch.testing.assert_close(values[chain], expected.detach())
        own = [gradients[k][chain] for k in row]
        torch.testing.assert_close(own, list(torch.autograd.grad(expected, list(row.values()))))


def test_without_discrete_sites() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))

    assert sum_out(model) is model


@pytest.mark.slow
@pytest.mark.statistical
def test_posterior() -> None:
    """The mean of a run against quadrature, and likelihoods of points for ArviZ."""
    x = torch.tensor([2.1, -1.4, -2.2, 1.7, -0.3, -2.9, 2.4])
    mcmc = MCMC(NUTS(sign), 500, 300, num_chains=4, seed=0, progress=False).run(x)
    grid = torch.linspace(1e-4, 8.0, 4000)
    parts = [dist.Normal(s * grid[:, None], 1.0).log_prob(x) for s in (1.0, -1.0)]
    logs = torch.logaddexp(parts[0] + torch.tensor(0.3).log(), parts[1] + torch.tensor(0.7).log())
    logs = logs.sum(-1) + dist.HalfNormal(3.0).log_prob(grid)
    exact = float((grid * logs.softmax(0)).sum())
    draws = mcmc.get_samples()["loc"]
    assert abs(float(draws.mean()) - exact) < 0.08
    assert to_arviz(mcmc, x).log_likelihood["x"].shape == (4, 500, 7)


@pytest.mark.slow
@pytest.mark.statistical
def test_posterior_of_a_continuous_site() -> None:
    """One that depends on a discrete site, against the mixture of two normal distributions."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.3))
        loc = pyro.sample("loc", dist.Normal(4.0 * z - 2.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 2.0), obs=x)

    x = torch.tensor(0.5)
    draws = MCMC(NUTS(model), 1000, 300, num_chains=8, seed=0, progress=False).run(x)
    prior = dist.Normal(torch.tensor([-2.0, 2.0]), 1.0)
    evidence = dist.Normal(prior.mean, 5.0**0.5).log_prob(x)
    weights = (evidence + torch.tensor([0.7, 0.3]).log()).softmax(0)
    exact = float(weights @ (0.8 * prior.mean + 0.2 * x))
    assert abs(float(draws.get_samples()["loc"].mean()) - exact) < 0.1


def subsampling(x: Tensor) -> None:
    with pyro.plate("data", len(x), subsample_size=2):
        pyro.sample("z", dist.Bernoulli(0.3))


def dependent(x: Tensor) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.sample("y", dist.Uniform(0.0, 1.0 + z))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (subsampling, r"all of its data where discrete sites are summed out.*\['data'\]"),
        (dependent, "site 'y' is continuous, and its support depends on a discrete one"),
    ],
)
def test_errors(model: Model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NUTS(model).setup(20, torch.zeros(5))
