"""Best fits as functionals: closed forms, any population, and the posterior they make."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.inference import MartingalePosterior, PolyaUrn
from pyro_ext.inference.martingale import (
    Mean,
    MEstimator,
    NormalPredictive,
    WeightedMLE,
    WeightedSample,
)

pytestmark = pytest.mark.usefixtures("float64")


def model(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


def line(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return (y - params["slope"] * x).square()


@pytest.mark.parametrize("is_shared", [True, False])
def test_maximum_likelihood_of_a_normal_model(is_shared: bool) -> None:
    values = torch.randn(12) if is_shared else torch.randn(5, 12)
    population = WeightedSample((values,), torch.rand(5, 12).softmax(-1), is_shared)
    found = WeightedMLE(model)(population)
    torch.testing.assert_close(found["loc"], population.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["scale"], population.variance.sqrt(), atol=1e-5, rtol=0)


def test_least_squares() -> None:
    x, y = torch.randn(20), torch.randn(20)
    population = WeightedSample((x, y), torch.rand(6, 20).softmax(-1))
    found = MEstimator(line, {"slope": torch.tensor(0.0)})(population)["slope"]
    weights = population.weights
    torch.testing.assert_close(found, (weights @ (x * y)) / (weights @ x**2), atol=1e-6, rtol=0)


def test_a_law_of_numbers_is_taken_by_its_quantiles() -> None:
    law = dist.Normal(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 0.5]))
    found = WeightedMLE(model, num_points=2000)(law)
    torch.testing.assert_close(found["loc"], law.mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(found["scale"], law.stddev, atol=2e-3, rtol=0)


def test_the_posterior_is_that_of_the_mean() -> None:
    """Draw by draw, for populations that share their points and for those that do not."""
    y = torch.randn(15)
    for rule, horizon in ((PolyaUrn(), 300), (NormalPredictive(1.0, 0.0), 300)):
        options: Any = {"seed": 0, "progress": False, "tolerance": 1.0}
        fitted = MartingalePosterior(rule, WeightedMLE(model), 12, horizon, **options).run(y)
        exact = MartingalePosterior(rule, Mean(), 12, horizon, **options).run(y)
        torch.testing.assert_close(
            fitted.get_samples()["loc"], exact.get_samples()["theta"], atol=1e-4, rtol=0
        )


def test_a_population_without_a_finite_loss_is_told() -> None:
    values = torch.tensor([[0.0, 1.0], [torch.nan, 1.0]])
    population = WeightedSample((values,), torch.full((2, 2), 0.5), is_shared=False)
    found = WeightedMLE(model)(population)["loc"]
    assert found.isfinite().tolist() == [True, False]


def test_bad_population() -> None:
    with pytest.raises(TypeError, match="population must be a WeightedSample or a law of numbers"):
        WeightedMLE(model)(dist.MultivariateNormal(torch.zeros(2, 3), torch.eye(3)))
    with pytest.raises(ValueError, match="num_points must be an integer >= 1"):
        MEstimator(line, {"slope": torch.tensor(0.0)}, num_points=0)
