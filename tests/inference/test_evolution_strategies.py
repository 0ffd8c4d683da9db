"""The antithetic estimate of a gradient, against its expectations in closed form."""

import pytest
import torch

from pyro_ext.inference import antithetic_gradient
from tests.inference.models import assert_mean


def estimate(function, parameters, scale, num_pairs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return antithetic_gradient(
        function, parameters, scale=scale, num_pairs=num_pairs, generator=generator
    )


@pytest.mark.statistical
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_a_quadratic_function(scale):
    """Its gradient in expectation at every scale: four standard errors, 6e-5 each of three."""
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    matrix, where = root @ root.T, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    noise_free = torch.stack(
        [
            estimate(lambda x: 0.5 * ((x @ matrix) * x).sum(-1), where, scale, 50, seed)[0]
            for seed in range(2000)
        ]
    )
    assert_mean(noise_free, matrix @ where, most=4.0)


def test_pairs_lie_on_either_side():
    seen = []

    def function(points):
        seen.append(points)
        return points.sum(-1)

    gradient, values = estimate(function, torch.tensor([1.0, 2.0]), 0.3, 4)
    noise = seen[0][:4] - torch.tensor([1.0, 2.0])
    torch.testing.assert_close(seen[0][4:], torch.tensor([1.0, 2.0]) - noise)
    torch.testing.assert_close(values, seen[0].sum(-1))
    expected = (2 * noise.sum(-1, keepdim=True) * noise).mean(0) / (2 * 0.09)
    torch.testing.assert_close(gradient, expected)


def test_a_constant_has_no_gradient_at_all():
    gradient, _ = estimate(lambda x: torch.full((len(x),), 7.3), torch.ones(5), 0.02, 6)
    assert torch.equal(gradient, torch.zeros(5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_takes_its_pair_out(bad):
    def function(points):
        values = points.sum(-1)
        values[1] = bad
        return values

    def without(points):
        values = points.sum(-1)
        values[1] = values[4]
        return values

    found, values = estimate(function, torch.ones(3), 0.1, 3)
    expected, _ = estimate(without, torch.ones(3), 0.1, 3)
    torch.testing.assert_close(found, expected)
    assert not torch.isfinite(values[1])


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"must return the shape \(4,\).*got \(\)"):
        antithetic_gradient(lambda x: x.sum(), torch.ones(2), scale=1.0, num_pairs=2)
