"""Weighted samples and functionals against NumPy and closed forms."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference.martingale.functionals import Expectation, Mean, Quantile, Variance
from pyro_ext.inference.martingale.weighted_sample import WeightedSample


def square(x: torch.Tensor) -> torch.Tensor:
    return x[..., 0] ** 2


def repeated(counts: list[list[int]], values: torch.Tensor) -> list[np.ndarray]:
    """Each distribution as a plain list of points."""
    return [values.numpy().repeat(row, 0) for row in counts]


@pytest.mark.parametrize("is_shared", [True, False])
def test_against_numpy(is_shared, float64):
    counts = [[1, 0, 3, 2], [4, 1, 0, 1]]
    values = torch.randn(4, 3)
    weights = torch.tensor(counts) / 6
    points = values if is_shared else values.expand(2, 4, 3)
    population = WeightedSample((points,), weights, is_shared)
    lists = repeated(counts, values)

    def exact(function) -> torch.Tensor:
        return torch.from_numpy(np.stack([function(points) for points in lists]))

    torch.testing.assert_close(Mean()(population), exact(lambda x: x.mean(0)))
    torch.testing.assert_close(Variance()(population), exact(lambda x: x.var(0)))
    for probability in (0.2, 1 / 3, 0.5, 0.9):
        wanted = exact(lambda x, p=probability: np.quantile(x, p, 0, method="inverted_cdf"))
        torch.testing.assert_close(Quantile(probability)(population), wanted)
    both = Quantile((0.2, 0.9))(population)
    torch.testing.assert_close(both[..., 1], Quantile(0.9)(population))
    torch.testing.assert_close(
        Expectation(square)(population), exact(lambda x: (x[:, 0] ** 2).mean())
    )
    torch.testing.assert_close(
        population.cdf(values[1]), exact(lambda x: (x <= values[1].numpy()).mean(0))
    )
    assert population.batch_shape == (2,) and population.num_points == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantiles_at_jumps(dtype):
    """A tenth of ten equal weights is reached by the first point, whatever rounding says."""
    for number in (10, 49, 98, 1000):
        weights = torch.full((1, number), 1 / number, dtype=dtype)
        population = WeightedSample((torch.arange(number, dtype=dtype),), weights)
        quantiles = Quantile([k / number for k in range(1, number)])(population)
        assert quantiles[0].tolist() == [float(k) for k in range(number - 1)]
        single = [population.icdf(torch.tensor(k / number, dtype=dtype)) for k in range(1, number)]
        assert torch.equal(torch.stack(single, 1), quantiles)


def test_variance_far_from_zero():
    values = 1e4 + torch.tensor([-1.0, 1.0])
    population = WeightedSample((values,), torch.tensor([[0.5, 0.5]]))
    assert float(population.variance) == pytest.approx(1.0, rel=1e-5)


def test_functionals_of_distributions(float64):
    distribution = dist.Normal(torch.tensor([0.0, 2.0]), 3.0)
    torch.testing.assert_close(Mean()(distribution), torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(Variance()(distribution), torch.tensor([9.0, 9.0]))
    torch.testing.assert_close(
        Quantile((0.5, 0.975))(distribution)[1], torch.tensor([2.0, 7.8798919536])
    )
    found = Expectation(torch.cos, num_points=20_000)(distribution)
    exact = torch.tensor([1.0, np.cos(2.0)]) * np.exp(-4.5)
    # The cosine goes up and down by 2 in each pi, and the points span 8 standard deviations.
    variation = 2 * 8 * 3 / np.pi
    torch.testing.assert_close(found, exact, atol=variation / 40_000, rtol=0)


def test_samples_follow_the_weights():
    x, y = torch.arange(3.0), torch.arange(3.0) + 10
    population = WeightedSample((x, y), torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]))
    first, second = population.sample((50, 2))
    assert first.shape == (50, 2, 2)
    assert torch.equal(first + 10, second)
    assert set(first[..., 0].flatten().tolist()) == {0.0, 2.0}
    assert set(first[..., 1].flatten().tolist()) == {1.0}


def test_errors(subtests):
    for make, error, message in [
        (lambda: Quantile(()), ValueError, "got an empty one"),
        (
            lambda: WeightedSample((torch.zeros(3),), torch.zeros(3)),
            ValueError,
            r"weights must have the shape \(num_draws, num_points\), got \(3,\)",
        ),
        (
            lambda: WeightedSample((torch.zeros(3),), torch.zeros(2, 4)),
            ValueError,
            r"leading dimensions \(4,\), as the weights do, got the shape \(3,\)",
        ),
        (
            lambda: Mean()(WeightedSample((torch.zeros(3), torch.zeros(3)), torch.zeros(2, 3))),
            ValueError,
            "mean is that of a single tensor",
        ),
        (
            lambda: Expectation(torch.sum)(WeightedSample((torch.zeros(3),), torch.zeros(2, 3))),
            ValueError,
            r"one value for each point, got \(\)",
        ),
        (
            lambda: Expectation(torch.cos)(dist.Normal(torch.zeros(2, 2), 1.0)),
            TypeError,
            r"got Normal of batch shape \(2, 2\)",
        ),
    ]:
        with subtests.test(message), pytest.raises(error, match=message):
            make()
