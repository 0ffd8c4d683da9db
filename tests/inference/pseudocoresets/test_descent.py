"""Descent on the loss of a coreset against closed forms, loops written out and differences."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, Coreset, descend
from pyro_ext.inference.pseudocoresets.trajectories import _descent_snapshots, _unrolled_descent
from tests.inference.pseudocoresets.coreset_models import (
    gamma,
    labeled,
    logistic,
    points,
)

pytestmark = pytest.mark.usefixtures("float64")

BOTH = pytest.mark.parametrize("method", [descend, _unrolled_descent])


def gamma_guide(**options: Any) -> AutoPseudocoreset:
    x, y = labeled()
    data = x[:, 0], y + 0.5 + x[:, 1].square()
    return AutoPseudocoreset(gamma, *data, size=12, weights="scaled", seed=0, **options)


def weighted(guide: AutoPseudocoreset) -> Coreset:
    """The coreset with weights that differ."""
    return Coreset(guide.pseudodata, torch.linspace(0.5, 3.0, guide.size))


def starts(number: int, size: int) -> Tensor:
    return 0.3 * torch.randn(number, size, generator=torch.Generator().manual_seed(5))


@BOTH
@pytest.mark.parametrize("backend", ["trace", "eager"])
def test_loss_has_neither_prior_nor_jacobian(method: Any, backend: Any) -> None:
    guide = gamma_guide(backend=backend)
    coreset, start = weighted(guide), starts(2, 2)
    x, y = coreset.rows
    end = method(guide.posterior, coreset, start, 4, 0.1)
    for row, found in zip(start, end, strict=True):
        flat = row.clone().requires_grad_()
        for _ in range(4):
            logs = dist.Gamma(flat[1].exp(), (flat[0] * x).exp()).log_prob(y)
            loss = -(coreset.weights * logs).sum() / coreset.weights.sum()
            (gradient,) = torch.autograd.grad(loss, flat)
            flat = (flat - 0.1 * gradient).detach().requires_grad_()
        torch.testing.assert_close(found.detach(), flat.detach())


def test_other_observations_are_no_part_of_it() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("other", dist.Normal(loc, 1.0), obs=torch.tensor(4.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    guide = AutoPseudocoreset(model, points()[:, 0], size=5, plate="data", seed=0)
    coreset, start = weighted(guide), starts(3, 1)
    mean = (coreset.weights * coreset.rows[0]).sum() / coreset.weights.sum()
    end = descend(guide.posterior, coreset, start, 6, 0.2)
    torch.testing.assert_close(end, mean + 0.8**6 * (start - mean))
    found = guide.posterior.log_likelihood(start, coreset)
    logs = dist.Normal(start, 1.0).log_prob(coreset.rows[0])
    torch.testing.assert_close(found, logs @ coreset.weights)


def test_snapshots_lie_on_the_way() -> None:
    guide = gamma_guide()
    posterior, coreset, start = guide.posterior, guide.coreset(), starts(2, 2)
    every = _descent_snapshots(posterior, coreset, start, 7, 0.1, 1)
    assert len(every) == 7
    for number, point in enumerate(every, start=1):
        assert torch.equal(point, descend(posterior, coreset, start, number, 0.1))
    third = _descent_snapshots(posterior, coreset, start, 7, 0.1, 3)
    assert len(third) == 2
    assert torch.equal(third[0], every[2]) and torch.equal(third[1], every[5])


@pytest.mark.parametrize("backend", ["trace", "eager"])
@pytest.mark.parametrize("model", [logistic, gamma])
def test_gradient_of_unrolled_descent_by_differences(model: Any, backend: Any) -> None:
    """Self-check 7 of the spec: rows, weights, start and learning rate."""
    x, y = labeled()
    if model is gamma:
        x, y = x[:, 0], y + 0.5 + x[:, 1].square()
    guide = AutoPseudocoreset(model, x, y, size=6, seed=0, backend=backend)
    size = guide.posterior.layout.size
    goal = torch.linspace(-1.0, 1.0, size)

    def loss(*leaves: Tensor) -> Tensor:
        u, v, weights, start, rate = leaves
        end = _unrolled_descent(guide.posterior, Coreset((u, v), weights), start, 3, rate)
        return (end - goal).square().sum()

    coreset = weighted(guide)
    point = (*coreset.rows, coreset.weights, starts(2, size), torch.tensor(0.3))
    leaves = [part.clone().requires_grad_() for part in point]
    assert torch.autograd.gradcheck(loss, leaves, rtol=1e-6, atol=1e-7, fast_mode=True)
