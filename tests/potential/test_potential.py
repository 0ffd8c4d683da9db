"""Every model of the zoo against Pyro, finite differences, and itself on all backends."""

from itertools import combinations, product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from pyro_ext.potential import Potential
from pyro_ext.testing.potential import check_potential, pyro_potential
from tests.potential.zoo import ZOO

SUBSAMPLED = [
    "logistic_regression",
    "nested_subsampled_plates",
    "crossed_plates",
    "local_latents",
    "masked",
    "scaled_and_factored",
    "reparameterized",
]


LONG = [
    "gaussian_mixture",
    "local_latents",
    "nested_subsampled_plates",
    "ordinal_regression",
    "poisson_regression",
]


def build(name: str, full: bool = False, backend: str = "trace") -> Potential:
    problem = ZOO[name](full)
    return Potential(problem.model, *problem.args, backend=backend, **problem.kwargs)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in ZOO]
)
def test_model(name: str, float64: None) -> None:
    problem = ZOO[name](False)
    potential = check_potential(problem.model, *problem.args, **problem.kwargs)
    check_initial_points(potential)
    params = potential.init(2, seed=1)
    constrained = potential.constrain(params)
    check_whole_data(name, potential, params)
    check_derived(name, potential, constrained)


def test_one_chain_over_all_data_is_not_vectorized(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for a mode asks for hundreds of such values, of which that takes half the time."""
    calls = []
    vmap = torch.func.vmap
    potential = build("logistic_regression", full=True)
    potential.full_value_and_grad(potential.init(1, seed=0))
    monkeypatch.setattr(torch.func, "vmap", lambda *a, **k: calls.append(1) or vmap(*a, **k))
    potential.full_value_and_grad(potential.init(1, seed=1))
    assert not calls
    potential.full_value_and_grad(potential.init(2, seed=1))
    assert calls


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_model_in_single_precision(name: str) -> None:
    problem = ZOO[name](False)
    check_potential(problem.model, *problem.args, **problem.kwargs)


def check_initial_points(potential: Potential) -> None:
    """Initial points are finite, and follow from the seed and the chain's own number alone."""
    before = torch.get_rng_state()
    params = potential.init(3, seed=4)
    again, last = potential.init(3, seed=4), potential.init_chains(range(2, 3), 4)
    other = potential.init(1, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in params.items():
        assert value.shape == (3, *potential.sites[name].unconstrained_shape)
        assert torch.isfinite(value).all()
        assert torch.equal(value, again[name])
        assert torch.equal(value[2:], last[name])
    flat = potential.layout.flatten(params)
    assert not torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], potential.layout.flatten(other)[0])


def check_whole_data(name: str, potential: Potential, params: dict[str, Tensor]) -> None:
    """The potential over all of the data is that of the model whose plates are full."""
    whole = ZOO[name](True)
    for chain, value in enumerate(potential.full(params)):
        row = {site: value[chain] for site, value in params.items()}
        expected = pyro_potential(whole.model, whole.args, whole.kwargs, row)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    expected = build(name, full=True, backend="eager").value_and_grad(params)
    actual = potential.full_value_and_grad(params)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    one = potential.full_value_and_grad({site: value[1:] for site, value in params.items()})
    last = expected[0][1:], {site: value[1:] for site, value in expected[1].items()}
    torch.testing.assert_close(one, last, rtol=1e-9, atol=1e-9)


def check_derived(name: str, potential: Potential, samples: dict[str, Tensor]) -> None:
    """Log likelihoods, deterministic values and draws agree with those of the full plates."""
    whole = build(name, full=True, backend="eager")
    for kind in ("log_likelihood", "deterministic"):
        actual, expected = getattr(potential, kind)(samples), getattr(whole, kind)(samples)
        assert list(actual) == list(expected)
        for site, value in actual.items():
            torch.testing.assert_close(value, expected[site], rtol=1e-9, atol=1e-9)
    observations = whole.observations()
    for site, value in potential.observations().items():
        assert torch.equal(value, observations[site])
        assert (
            value.shape == potential.observed_sites[site].shape == whole.observed_sites[site].shape
        )
    draws = potential.predictive(samples, seed=0)
    for site, value in draws.items():
        assert value.shape == (2, *potential.observed_sites[site].shape)
        assert torch.equal(value, potential.predictive(samples, seed=0)[site])
    for site, description in whole.sites.items():
        assert potential.sites[site].shape == description.shape == samples[site].shape[1:]
        assert potential.sites[site].dims == description.dims


@pytest.mark.parametrize("name", SUBSAMPLED)
def test_mean_over_subsamples(name: str, float64: None) -> None:
    """The mean over all subsamples, listed one by one, is the potential of all of the data."""
    potential = build(name, backend="eager")
    params = potential.init(1, seed=2)
    row = {site: value[0] for site, value in params.items()}
    plates = potential.subsampled_plates
    choices = (combinations(range(plate.size), plate.subsample_size) for plate in plates)
    values = [
        potential.potential(
            row, {plate.name: torch.tensor(c) for plate, c in zip(plates, choice, strict=True)}
        )
        for choice in product(*choices)
    ]
    mean = torch.stack(values).mean()
    torch.testing.assert_close(mean, potential.full(params)[0], rtol=1e-9, atol=1e-9)


def test_prior_is_not_scaled(float64: None) -> None:
    """Twice the data and half the subsample change the likelihood alone."""

    def model(x: Tensor, size: int) -> None:
        loc = pyro.sample("loc", pyro.distributions.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=x[index])

    x = torch.full((6,), 0.5)
    loc = torch.tensor([0.3])
    standard = pyro.distributions.Normal(0.0, 1.0)
    for size in (1, 2, 3, 6):
        value = Potential(model, x, size)({"loc": loc})
        expected = -standard.log_prob(loc) - 6 * standard.log_prob(x[:1] - loc)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    "name", ["logistic_regression", "local_latents", "hierarchical_regression", "pyro_module"]
)
def test_transforms_of_torch(name: str, float64: None) -> None:
    """The function of one chain can be differentiated and vectorized by its user."""
    potential = build(name, backend="eager")
    params = potential.init(3, seed=0)
    subsample = {
        plate.name: torch.stack([torch.randperm(plate.size)[: plate.subsample_size]] * 3)
        for plate in potential.subsampled_plates
    }
    function = torch.func.grad_and_value(potential.potential)
    gradient, value = torch.func.vmap(function)(params, subsample)
    expected, expected_gradient = potential.value_and_grad(params, subsample)
    torch.testing.assert_close(value, expected)
    for site in params:
        torch.testing.assert_close(gradient[site], expected_gradient[site])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logistic_regression", "local_latents", "convolutional_network"])
def test_compiled(name: str) -> None:
    """Compiled numbers are those of the graph; no warning is given on the way."""
    potential, graph = build(name, backend="compile"), build(name)
    for num_chains in (1, 5) if name == "logistic_regression" else (3,):
        params = potential.init(num_chains, seed=3)
        subsample = {
            plate.name: torch.arange(plate.subsample_size) for plate in graph.subsampled_plates
        }
        value, gradient = potential.value_and_grad(params, subsample)
        expected, expected_gradient = graph.value_and_grad(params, subsample)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(potential(params, subsample), expected)
        torch.testing.assert_close(potential.full(params), graph.full(params))
        for site in params:
            torch.testing.assert_close(
                gradient[site], expected_gradient[site], rtol=1e-4, atol=1e-4
            )


class Flat(dist.TorchDistribution):
    """A user's distribution, which does not say what its parameters are."""

    support = dist.constraints.real

    def __init__(self) -> None:
        super().__init__(validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.randn(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)


def test_funnels_are_the_sites_whose_scale_others_decide() -> None:
    def model() -> None:
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("groups", 3):
            local = pyro.sample("local", dist.HalfCauchy(1.0))
            pyro.sample("weight", dist.StudentT(3.0, 0.0, tau * local))
            pyro.sample("positive", dist.LogNormal(0.0, tau))
        x = pyro.sample("x", dist.Normal(torch.zeros(2), tau).to_event(1))
        pyro.sample("flat", Flat())
        pyro.sample("masked", dist.Normal(0.0, tau).mask(True))
        pyro.sample("loc", dist.Normal(x.sum(), 1.0))
        pyro.sample("y", dist.Normal(0.0, tau), obs=torch.tensor(0.3))

    found = Potential(model).funnels()
    assert found == {"weight": ["local", "tau"], "x": ["tau"]}
    names = {name: LocScaleReparam(0.0) for name in found}
    assert Potential(pyro.poutine.reparam(model, names)).funnels() == {}
