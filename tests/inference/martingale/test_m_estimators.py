"""Best fits as functionals: closed forms, any population, and the posterior they make."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.inference import BatchLBFGS
from pyro_ext.inference.martingale import (
    MEstimator,
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
    torch.testing.assert_close(found["loc"], population.mean, atol=3e-5, rtol=0)
    torch.testing.assert_close(found["scale"], population.variance.sqrt(), atol=1e-5, rtol=0)


def test_a_law_of_numbers_is_taken_by_its_quantiles() -> None:
    distribution = dist.Normal(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 0.5]))
    found = WeightedMLE(model, num_points=2000)(distribution)
    torch.testing.assert_close(found["loc"], distribution.mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(found["scale"], distribution.stddev, atol=2e-3, rtol=0)


def test_a_functional_does_not_depend_on_earlier_populations() -> None:
    """Rows of each draw's own, in another type and at another place."""
    estimator = MEstimator(
        lambda params, y: (y - params["center"]).abs(),
        {"center": torch.tensor(0.0)},
        optimizer=BatchLBFGS(30),
    )
    first, second = torch.randn(2, 9), 7.0 + torch.randn(2, 9)
    weights = torch.rand(2, 9).softmax(-1)

    def fit(functional: MEstimator, points: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return functional(WeightedSample((points,), weights, is_shared=False))["center"]

    fit(estimator, first)
    found = fit(estimator, second)
    fresh = MEstimator(estimator.loss_fn, estimator.initial_params, optimizer=estimator.optimizer)
    assert torch.equal(found, fit(fresh, second))
    likelihood = WeightedMLE(model)
    for points in (first, first.to(torch.float32)):
        sample = WeightedSample((points,), weights, is_shared=False)
        torch.testing.assert_close(
            likelihood(sample)["loc"], sample.mean.double(), atol=1e-4, rtol=0
        )


def test_fits_that_do_not_converge_are_told() -> None:
    y = torch.full((5,), 50.0)
    estimator = MEstimator(
        lambda params, y: torch.nn.functional.huber_loss(
            params["center"].expand(len(y)), y, reduction="none"
        ),
        {"center": torch.tensor(0.0)},
        optimizer=BatchLBFGS(2),
    )
    with pytest.warns(RuntimeWarning, match="3 of 3 fits have not converged"):
        estimator(WeightedSample((y,), torch.full((3, 5), 0.2)))


def test_a_law_needs_no_mean() -> None:
    """A Cauchy distribution has quantiles, and here nothing else."""

    class Quantiles:
        batch_shape, event_shape = torch.Size([2]), torch.Size()

        def icdf(self, value: Tensor) -> Tensor:
            return dist.Cauchy(torch.tensor([0.0, 3.0]), 1.0).icdf(value)

    center = MEstimator(lambda p, y: (y - p["c"]).square().log1p(), {"c": torch.tensor(0.0)})
    torch.testing.assert_close(
        center(Quantiles())["c"], torch.tensor([0.0, 3.0]), atol=1e-4, rtol=0
    )


def test_a_population_without_a_finite_loss_is_told() -> None:
    values = torch.tensor([[0.0, 1.0], [torch.nan, 1.0]])
    population = WeightedSample((values,), torch.full((2, 2), 0.5), is_shared=False)
    found = WeightedMLE(model)(population)["loc"]
    assert found.isfinite().tolist() == [True, False]


def test_bad_population() -> None:
    with pytest.raises(TypeError, match=r"or a distribution of numbers.*event shape \(3,\)"):
        WeightedMLE(model)(dist.MultivariateNormal(torch.zeros(2, 3), torch.eye(3)))
    with pytest.raises(TypeError, match=r"of batch shape \(2, 3\)"):
        WeightedMLE(model)(dist.Normal(torch.zeros(2, 3), 1.0))
