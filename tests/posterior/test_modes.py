"""Posterior modes against closed forms."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference.sgmcmc import find_map
from pyro_ext.potential import Potential


def ridge(x, y):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=7) as index:
        pyro.sample("y", dist.Normal(x[index] @ weight, 0.5), obs=y[index])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ridge_regression(dtype):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 3, generator=generator, dtype=dtype)
    y = x.sum(-1) + torch.randn(50, generator=generator, dtype=dtype)
    expected = torch.linalg.solve(x.T @ x + 0.25 * torch.eye(3, dtype=dtype), x.T @ y)
    found = find_map(Potential(ridge, x, y))["weight"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_jacobian_counts(float64):
    """In the logarithm of a rate the mode of a gamma posterior is its mean."""

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 3.0))
        pyro.sample("x", dist.Exponential(rate).expand([4]).to_event(1), obs=x)

    potential = Potential(model, torch.tensor([0.5, 1.0, 1.5, 2.0]))
    start = {"rate": torch.tensor(20.0)}
    for found in (find_map(potential), find_map(potential, start)):
        assert found["rate"].item() == pytest.approx(6.0 / 8.0, rel=1e-4)


def test_a_search_that_ends_early_says_so(float64, monkeypatch):
    monkeypatch.setattr("pyro_ext.posterior.modes._MOST_ITERATIONS", 2)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 3, generator=generator) * torch.tensor([1.0, 10.0, 100.0])
    potential = Potential(ridge, x, x.sum(-1))
    with pytest.warns(UserWarning, match="did not converge in 2 iterations"):
        find_map(potential)


def test_points_without_density_are_stepped_back_from(float64):
    """A gamma posterior given in its own space: the first step of the search leaves the support."""

    def model():
        rate = pyro.sample("rate", dist.ImproperUniform(dist.constraints.real, (), ()))
        inside = torch.where(rate > 0, rate, torch.nan)
        pyro.factor("gamma", 4.0 * inside.log() - 8.0 * inside)

    potential = Potential(model, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = find_map(potential, {"rate": torch.tensor(3.0)})
    assert found["rate"].item() == pytest.approx(0.5, rel=1e-3)
