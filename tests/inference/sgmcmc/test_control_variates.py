"""Control variates: unbiased, without noise at the anchor, and the same on every backend."""

import math
import pickle
from dataclasses import replace
from itertools import combinations, product

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.datasets import load_breast_cancer
from pyro_ext.inference import MCMC, PSGLD, SGHMC, SGLD, SGNHT
from pyro_ext.inference.sgmcmc import find_map, kernel
from pyro_ext.inference.sgmcmc.minibatches import Minibatches
from pyro_ext.potential import Potential
from pyro_ext.potential.control_variates import anchor_at, control
from tests.potential.zoo import ZOO

KERNELS = {
    "SGLD": lambda **options: SGLD(logistic, step_size=1e-3, **options),
    "PSGLD": lambda **options: PSGLD(logistic, step_size=1e-2, **options),
    "SGHMC": lambda **options: SGHMC(logistic, step_size=0.03, friction=10.0, **options),
    "SGNHT": lambda **options: SGNHT(logistic, step_size=0.03, **options),
}


def logistic(x, y):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 0.5))
    with pyro.plate("data", len(x), subsample_size=len(x) // 8) as index:
        pyro.sample("y", dist.Bernoulli(logits=scale * (x[index] @ weight)), obs=y[index])


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(80, 3, generator=generator)
    y = (torch.rand(80, generator=generator) < torch.sigmoid(x.sum(-1))).to(x)
    return x, y


@pytest.mark.parametrize(
    "name", ["logistic_regression", "nested_subsampled_plates", "crossed_plates", "local_latents"]
)
def test_the_mean_over_all_minibatches_is_that_of_all_data(name, float64):
    problem = ZOO[name](False)
    potential = Potential(problem.model, *problem.args, **problem.kwargs)
    anchor, position = potential.layout.flatten(potential.init(2, seed=0))
    choices = product(
        *(
            combinations(range(plate.size), plate.subsample_size)
            for plate in potential.subsampled_plates
        )
    )
    indices = [torch.tensor(list(rows)) for rows in zip(*choices, strict=True)]
    rows = position.expand(len(indices[0]), -1)
    controlled = control(potential.gradient.over_any, anchor_at(potential, anchor))
    value, gradient = controlled(rows, *indices)
    expected = anchor_at(potential, position)
    torch.testing.assert_close(value.mean(0), expected.potential_energy, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient.mean(0), expected.gradient, rtol=1e-9, atol=1e-9)
    assert gradient.std(0).max() > 1e-3


def test_there_is_no_noise_at_the_anchor(float64):
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(3))
    potential = Potential(logistic, x, (x[:, 0] > 0).to(x))
    epoch = Minibatches(potential.subsampled_plates, range(1), seed=0)(0, 8)
    indices = [index[:, 0] for index in epoch]
    anchor = anchor_at(potential, torch.full((4,), 0.5))
    value, gradient = control(potential.gradient, anchor)(anchor.position.expand(8, -1), *indices)
    torch.testing.assert_close(value, anchor.potential_energy.expand(8))
    torch.testing.assert_close(gradient, anchor.gradient.expand(8, -1))
    assert potential.gradient(anchor.position.expand(8, -1), *indices)[1].std() > 1.0


def test_noise_falls_with_the_square_of_the_distance(float64):
    """On real data, at a point drawn from about the posterior, and at nearer ones."""
    cancer = load_breast_cancer()
    x, y = cancer.train_inputs.double(), cancer.train_targets.double()
    one = {"scale": torch.tensor(1.0)}
    potential = Potential(pyro.condition(logistic, one), x, y)
    mode = find_map(potential)["weight"]
    shares = torch.sigmoid(x @ mode)
    precision = (x.T * (shares * (1 - shares))) @ x + torch.eye(len(mode))
    deviation = torch.linalg.cholesky(torch.linalg.inv(precision)) @ torch.randn(len(mode))
    (index,) = Minibatches(potential.subsampled_plates, range(1), seed=0)(0, 800)
    plain = potential.gradient.over_any
    controlled = control(plain, anchor_at(potential, mode))

    def noise(gradient, distance):
        points = (mode + distance * deviation).expand(800, -1)
        return gradient(points, index[:, 0])[1].var(0).sum()

    assert noise(plain, 0.1) > 40 * noise(controlled, 0.1)
    assert noise(plain, 1.0) > 1.5 * noise(controlled, 1.0)
    assert noise(controlled, 0.1) / noise(controlled, 0.05) == pytest.approx(4.0, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_compiled_steps_draw_the_same_whatever_the_anchor(name, data):
    compiled, graph = (
        KERNELS[name](backend=backend, control_variate="map") for backend in ("compile", "trace")
    )
    for each in (compiled, graph):
        each.setup(0, *data)
    start = graph.begin(range(3), seed=5)
    other = anchor_at(graph.potential, torch.full((4,), 0.3))
    results = []
    for anchor in (start.anchor, other):
        chains = replace(start, anchor=anchor)
        results.append(compiled.advance(chains, 20).position)
        expected = graph.advance(chains, 20).position
        torch.testing.assert_close(results[-1], expected, rtol=1e-3, atol=1e-4)
    assert (results[0] - results[1]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.statistical
def test_the_variance_of_a_conjugate_posterior(float64):
    """With control variates the variance is that of the full gradient, exactly known.

    All minibatches have the same curvature here, so that no noise is left at all. The allowance is
    4 standard errors, 6e-5 of false alarms; without control variates it is exceeded by far.
    """
    num, batch, step_size, num_chains = 400, 10, 1e-3, 4000
    x = 0.7 + torch.randn(num, generator=torch.Generator().manual_seed(5))

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", num, subsample_size=batch) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])

    precision = num + 0.25
    exact = 1 / (precision * (1 - step_size * precision / 2))
    allowed = 4 * exact * math.sqrt(2 / num_chains)
    start = {"loc": torch.full((num_chains,), x.mean().item())}
    variances = []
    for anchor in ({"loc": torch.tensor(0.2)}, None):
        kernel = SGLD(model, step_size=step_size, control_variate=anchor)
        # After the warm-up comes the epoch's first minibatch.
        mcmc = MCMC(kernel, 1, 39, num_chains, 2, initial_params=start, seed=11, progress=False)
        variances.append(mcmc.run(x).get_samples()["loc"].var())
    assert abs(variances[0] - exact) < allowed
    assert variances[1] - exact > 5 * allowed


def test_the_anchor_is_the_mode_and_begins_the_chains(data):
    sampler = KERNELS["SGLD"](control_variate="map")
    assert sampler.anchor is None
    sampler.setup(0, *data)
    layout = sampler.potential.layout
    mode = layout.flatten(sampler.potential.unconstrain(find_map(sampler.potential)))
    torch.testing.assert_close(sampler.anchor.position, mode)
    assert sampler.anchor.gradient.abs().max() < 0.1
    assert sampler.begin(range(2), seed=0).anchor is sampler.anchor


def test_the_anchor_is_searched_once_for_the_same_data(data, monkeypatch):
    searches = []
    search = kernel.minimum
    monkeypatch.setattr(kernel, "minimum", lambda *given: searches.append(1) or search(*given))
    sampler = KERNELS["SGLD"](control_variate="map")
    sampler.setup(0, *data)
    anchor = sampler.anchor
    travelled = pickle.loads(pickle.dumps(sampler))
    for same in (sampler, travelled, sampler.replace(step_size=2e-3)):
        same.setup(0, *data)
        assert all(map(torch.equal, same.anchor, anchor)) and len(searches) == 1
    for number, other in enumerate((sampler, travelled)):
        other.setup(0, data[0][:72], data[1][:72])
        assert not torch.equal(other.anchor.position, anchor.position)
        assert len(searches) == number + 2
    assert sampler.replace(control_variate=None).anchor is None


def test_what_cannot_be_controlled(data):
    def whole(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]).to_event(1), obs=x)

    with pytest.raises(ValueError, match="control_variate needs a plate with a subsample_size"):
        SGLD(whole, control_variate="map").setup(0, torch.ones(3))
    with pytest.raises(ValueError, match="control_variate needs a model"):
        SGLD(potential_fn=lambda z: z["x"].sum(), control_variate="map")
    with pytest.raises(ValueError, match="control_variate must be None, 'map' or a mapping"):
        SGLD(whole, control_variate="mode")
    for given, message in (
        ({"weight": torch.zeros(3)}, r"lacks the latent sites \['scale'\]"),
        ({"weight": torch.zeros(3), "scale": torch.tensor(-1.0)}, "supports of their sites"),
        ({"weight": torch.zeros(2, 3), "scale": torch.ones(2)}, "shape .2, 3., wanted .3,."),
    ):
        with pytest.raises(ValueError, match=message):
            SGLD(logistic, control_variate=given).setup(0, *data)
