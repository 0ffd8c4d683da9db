"""Laws of function values against closed forms, differences and samples."""

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from pyro_ext.inference.pseudocoresets import (
    diagonal_marginal,
    full_marginal,
    linearized_marginal,
)
from pyro_ext.nn import MLP
from tests.inference.pseudocoresets.function_space_helpers import use_balanced_noise

pytestmark = pytest.mark.usefixtures("float64")

NETWORK = MLP(3, [4], 2, torch.nn.Tanh)
NAMES = {name: parameter.shape for name, parameter in NETWORK.named_parameters()}
SIZE = sum(shape.numel() for shape in NAMES.values())


def network_at(inputs: Tensor) -> Any:
    """Outputs of a network with flat parameters."""

    def function(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in NAMES.values()])
        values = {
            name: part.reshape(shape)
            for (name, shape), part in zip(NAMES.items(), parts, strict=True)
        }
        result: Tensor = functional_call(NETWORK, values, (inputs,))
        return result

    return function


def gaussian(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator) / size**0.5
    return torch.randn(size, generator=generator), root @ root.mT + 0.1 * torch.eye(size)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Self-check 1 of the spec: linear functions -------------------------------------------------------


@pytest.mark.parametrize("num_points", [2, 5])
def test_linear_push_forward(num_points: int) -> None:
    """Exact, also with more points than parameters, where the covariance is singular."""
    inputs, (mean, covariance) = some(num_points, 3), gaussian(3)
    law = linearized_marginal(lambda flat: inputs @ flat, mean, covariance, jitter=1e-16)
    torch.testing.assert_close(law.mean, inputs @ mean)
    torch.testing.assert_close(law.covariance_matrix, inputs @ covariance @ inputs.mT)
    lower = law.scale_tril
    torch.testing.assert_close(lower, lower.tril())
    assert bool((lower.diagonal() > 0).all())


def test_independent_parameters() -> None:
    inputs, mean, variances = some(4, 3), some(3, seed=1), some(3, seed=2).exp()
    law = linearized_marginal(lambda flat: inputs @ flat, mean, variances)
    other = linearized_marginal(lambda flat: inputs @ flat, mean, variances.diag())
    torch.testing.assert_close(law.covariance_matrix, other.covariance_matrix)
    torch.testing.assert_close(law.variance, inputs.square() @ variances + 1e-8, rtol=1e-10, atol=0)


@pytest.mark.statistical
def test_many_snapshots_have_the_variances_of_the_push_forward() -> None:
    """From 40,000 draws, within 4.5 standard errors: false-alarm rate 7e-5 for 5 + 5 numbers."""
    number, inputs, (mean, covariance) = 40_000, some(5, 3), gaussian(3)
    draws = mean + some(number, 3, seed=4) @ torch.linalg.cholesky(covariance).mT
    exact = linearized_marginal(lambda flat: inputs @ flat, mean, covariance)
    found = diagonal_marginal(lambda flat: inputs @ flat, draws, "average")
    ratio = found.variance / exact.variance
    assert float((ratio - 1.0).abs().max()) < 4.5 * (2.0 / number) ** 0.5
    errors = (exact.variance / number).sqrt()
    assert float(((found.mean - exact.mean) / errors).abs().max()) < 4.5


# Moments of snapshots -----------------------------------------------------------------------------


def test_moments_of_snapshots() -> None:
    """Mean and covariance with the divisor of the spec, of a network's outputs."""
    inputs, snapshots = some(6, 3), some(5, SIZE, seed=1)
    function = network_at(inputs)
    values = torch.stack([function(row) for row in snapshots])  # (5, 6, 2)
    average = values.mean(0)
    variance = values.square().mean(0) - average.square()
    for mean, expected in (("last", values[-1]), ("average", average)):
        law = diagonal_marginal(function, snapshots, mean)
        torch.testing.assert_close(law.mean, expected)
        torch.testing.assert_close(law.variance, variance, rtol=1e-7, atol=2e-8)
        assert law.event_shape == (6, 2)
        full = full_marginal(function, snapshots, mean)
        torch.testing.assert_close(full.mean, expected)
        products = (values[..., None] * values[..., None, :]).mean(0)
        expected_matrix = products - average[..., None] * average[..., None, :]
        torch.testing.assert_close(
            full.base_dist.covariance_matrix, expected_matrix, rtol=1e-7, atol=2e-8
        )


def test_values_without_output_dimension() -> None:
    inputs, snapshots = some(4, 3), some(5, 3, seed=1)
    law = full_marginal(lambda flat: inputs @ flat, snapshots)
    assert law.event_shape == (4, 1)
    diagonal = diagonal_marginal(lambda flat: inputs @ flat, snapshots)
    assert diagonal.event_shape == (4,)
    torch.testing.assert_close(law.variance[:, 0], diagonal.variance)


def test_one_snapshot_has_no_variance() -> None:
    """Self-check 4 of the spec, up to the jitter."""
    function, snapshots = network_at(some(6, 3)), some(1, SIZE, seed=1)
    for marginal in (diagonal_marginal, full_marginal):
        law = marginal(function, snapshots)
        torch.testing.assert_close(law.mean, function(snapshots[0]))
        torch.testing.assert_close(law.variance, torch.full((6, 2), 1e-8))


def test_a_constant_moves_no_variance() -> None:
    """Self-check 6 of the spec."""
    function, snapshots = network_at(some(6, 3)), some(5, SIZE, seed=1)

    def moved(flat: Tensor) -> Tensor:
        values: Tensor = function(flat)
        return values + torch.tensor([1e3, -2e3])

    for marginal in (diagonal_marginal, full_marginal):
        one, other = marginal(function, snapshots), marginal(moved, snapshots)
        torch.testing.assert_close(one.variance, other.variance)
        assert bool((one.variance > 0).all())
        torch.testing.assert_close(other.mean - one.mean, torch.tensor([1e3, -2e3]).expand(6, 2))


# Gradients ----------------------------------------------------------------------------------------


def laws(inputs: Tensor) -> dict[str, Any]:
    """One of each kind, with fewer snapshots than values."""
    function, snapshots = network_at(inputs), some(3, SIZE, seed=1)
    mean, covariance = gaussian(SIZE, seed=2)
    return {
        "diagonal": diagonal_marginal(function, snapshots),
        "average": diagonal_marginal(function, snapshots, "average"),
        "full": full_marginal(function, snapshots),
        "jacobian": linearized_marginal(function, mean, covariance),
        "independent": linearized_marginal(function, mean, covariance.diagonal()),
    }


@pytest.mark.parametrize("kind", ["diagonal", "average", "full", "jacobian", "independent"])
def test_gradients_in_the_inputs(kind: str) -> None:
    """Of means and of covariances, against differences."""
    inputs, direction = some(4, 3), some(4, 3, seed=5)

    def moments(length: Tensor) -> Tensor:
        law = laws(inputs + length * direction)[kind]
        base = law.base_dist if kind == "full" else law
        if hasattr(base, "covariance_matrix"):
            spread = base.covariance_matrix
        else:
            spread = law.variance
        return torch.cat([law.mean.flatten(), spread.flatten()])

    zero = torch.zeros(())
    jacobian = torch.autograd.functional.jacobian(moments, zero)
    numeric = (moments(zero + 1e-5) - moments(zero - 1e-5)) / 2e-5
    torch.testing.assert_close(jacobian, numeric, rtol=1e-6, atol=1e-8)
    assert float(jacobian.abs().max()) > 0.1


@pytest.mark.parametrize("kind", ["diagonal", "full", "jacobian"])
def test_draws_carry_gradients_of_both_moments(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean square of draws has the gradient of squared mean plus variance."""
    use_balanced_noise(monkeypatch)
    inputs = some(4, 3).requires_grad_()
    law = laws(inputs)[kind]
    draws = law.rsample((2 * law.event_shape[-1],))
    assert draws.shape[1:] == law.event_shape
    square, variance = law.mean.square().sum(), law.variance.sum()
    (expected,) = torch.autograd.grad(square + variance, inputs, retain_graph=True)
    (found,) = torch.autograd.grad(draws.square().mean(0).sum(), inputs, retain_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
    (of_variance,) = torch.autograd.grad(variance, inputs)
    assert float(of_variance.norm() / expected.norm()) > 0.1


def test_single_precision_of_singular_covariances() -> None:
    """Fewer snapshots than outputs: draws and gradients are finite, and those of double."""
    found = []
    for dtype in (torch.float32, torch.float64):
        inputs = some(4, 3).to(dtype).requires_grad_()
        weight = some(3, 12 * 3, seed=1).to(dtype)

        def function(flat: Tensor, inputs: Tensor = inputs) -> Tensor:
            return (inputs @ flat.reshape(3, 12)).tanh()

        law = full_marginal(function, weight)
        noise = some(7, 4, 12, seed=3).to(dtype)
        draws = law.mean + torch.einsum("pij,spj->spi", law.base_dist.scale_tril, noise)
        loss = -dist.Categorical(logits=draws).log_prob(torch.arange(4)).mean()
        found.append([loss.detach(), *torch.autograd.grad(loss, inputs)])
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=2e-3, atol=2e-4)


# What is not there --------------------------------------------------------------------------------


def test_errors() -> None:
    function = network_at(some(4, 3))
    with pytest.raises(ValueError, match="mean must be 'last' or 'average', got 'first'"):
        diagonal_marginal(function, some(2, SIZE), "first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"snapshots must have the shape .* got \(26,\)"):
        full_marginal(function, some(SIZE))
    with pytest.raises(ValueError, match="covariance must have the shape"):
        linearized_marginal(function, some(SIZE), some(3, 3))


def test_what_is_not_finite_shows_in_the_draws() -> None:
    """No error from the factorization: training reports a loss that is not finite."""
    inputs, mean = some(4, 3), some(3)
    law = linearized_marginal(lambda flat: inputs @ flat, mean, torch.full((3, 3), torch.nan))
    assert bool(law.rsample().isnan().all())
    law = diagonal_marginal(lambda flat: inputs @ flat, torch.full((2, 3), torch.nan))
    assert bool(law.rsample().isnan().all())
