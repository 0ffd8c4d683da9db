"""Minima of many problems at once: each is what it would be alone."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, rosen, rosen_der
from torch import Tensor

from pyro_ext.inference import BatchLBFGS, BatchOptimizer

DTYPES = [torch.float32, torch.float64]


def rosenbrock(position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = position.clone().requires_grad_()
        first, second = leaf[:, :-1], leaf[:, 1:]
        value = (100.0 * (second - first**2) ** 2 + (1.0 - first) ** 2).sum(-1)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


class Quadratics:
    """Problems of their own curvature and place, some of them badly scaled."""

    def __init__(self, number: int, size: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        factor = torch.randn(number, size, size, generator=generator, dtype=torch.float64)
        scale = torch.logspace(0, 2, number, dtype=torch.float64)[:, None, None]
        self.curvature = (factor @ factor.mT * scale + torch.eye(size)).to(dtype)
        self.point = torch.randn(number, size, generator=generator, dtype=torch.float64).to(dtype)
        self.num_rows = 0

    def __call__(self, position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        self.num_rows += len(rows)
        difference = position - self.point[rows]
        gradient = (self.curvature[rows] @ difference[..., None])[..., 0]
        return 0.5 * (difference * gradient).sum(-1), gradient


@pytest.mark.slow
def test_rosenbrock_in_as_many_steps_as_scipy() -> None:
    start = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = BatchLBFGS(tolerance=1e-6).minimize(rosenbrock, start)
    assert bool(found.converged.all())
    assert float(rosenbrock(found.position, torch.arange(40))[1].abs().max()) <= 1e-6
    peers = [
        minimize(
            rosen, row.numpy(), jac=rosen_der, method="L-BFGS-B", options={"gtol": 1e-6, "ftol": 0}
        )
        for row in start
    ]
    # Some starts lead to the other minimum, at 3.97, with both.
    values = np.array([peer.fun for peer in peers])
    assert np.mean(np.isclose(values, found.value.numpy(), atol=1e-8)) > 0.8
    mean_steps = float(found.num_steps.double().mean())
    assert mean_steps < 1.3 * np.mean([peer.nit for peer in peers])


@pytest.mark.parametrize("dtype", DTYPES)
def test_quadratics(dtype: torch.dtype) -> None:
    problems = Quadratics(30, 5, dtype)
    found = BatchLBFGS(tolerance=1e-3).minimize(problems, torch.zeros(30, 5, dtype=dtype))
    assert found.position.dtype == dtype and bool(found.converged.all())
    assert float((found.position - problems.point).abs().max()) < 2e-3
    torch.testing.assert_close(found.value, problems(found.position, torch.arange(30))[0])


def test_a_problem_alone_and_among_others() -> None:
    problems = Quadratics(20, 4, torch.float64)
    start = torch.ones(20, 4, dtype=torch.float64)
    together = BatchLBFGS().minimize(problems, start)
    for row in (0, 7, 19):
        alone = BatchLBFGS().minimize(
            lambda position, _, row=row: problems(position, torch.tensor([row])),
            start[row : row + 1],
        )
        torch.testing.assert_close(alone.position[0], together.position[row], rtol=0, atol=1e-10)
        assert int(alone.num_steps) == int(together.num_steps[row])


def test_what_is_done_costs_nothing() -> None:
    problems = Quadratics(20, 4, torch.float64)
    found = BatchLBFGS().minimize(problems, problems.point.clone())
    assert problems.num_rows == 20 and int(found.num_steps.max()) == 0
    problems.num_rows = 0
    found = BatchLBFGS().minimize(problems, torch.zeros(20, 4, dtype=torch.float64))
    assert problems.num_rows < 20 * int(found.num_steps.max())


def test_problems_that_are_not_finite() -> None:
    """One has no value at its start, one none where the first step leads; the third is as usual."""

    def objective(position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = (position - 3.0).square().sum(-1), 2.0 * (position - 3.0)
        value = torch.where((rows == 1) & (position[:, 0] > 1.0), torch.nan, value)
        return torch.where(rows == 0, torch.inf, value), gradient

    found = BatchLBFGS().minimize(objective, torch.zeros(3, 1))
    assert found.converged.tolist() == [False, True, True]
    assert float(found.value[0]) == torch.inf
    assert 0.9 < float(found.position[1]) <= 1.0
    torch.testing.assert_close(found.position[2], torch.tensor([3.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_starts_on_a_slope_that_does_not_change(dtype: torch.dtype) -> None:
    """The Huber loss is linear but for two units around its minimum; steps become longer there."""
    target = torch.tensor([5e3, -7e2, 0.3], dtype=dtype)

    def huber(position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        distance = position[:, 0] - target[rows]
        value = torch.nn.functional.huber_loss(
            distance, torch.zeros_like(distance), reduction="none"
        )
        return value, distance.clamp(-1.0, 1.0)[:, None]

    found = BatchLBFGS(60).minimize(huber, torch.zeros(3, 1, dtype=dtype))
    assert bool(found.converged.all())
    torch.testing.assert_close(found.position[:, 0], target, atol=1e-3, rtol=0)


def test_too_few_steps_are_told() -> None:
    start = torch.zeros(3, 6, dtype=torch.float64)
    found = BatchLBFGS(max_steps=2).minimize(rosenbrock, start)
    assert not bool(found.converged.any()) and found.num_steps.tolist() == [2, 2, 2]


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, partial(torch.optim.SGD, momentum=0.9)])
def test_optimizers_of_torch_keep_problems_apart(optimizer) -> None:
    problems = Quadratics(6, 3, torch.float64)
    problems.curvature /= problems.curvature.norm(dim=(1, 2), keepdim=True)
    start = torch.zeros(6, 3, dtype=torch.float64)
    search = BatchOptimizer(partial(optimizer, lr=0.1), 300)
    together = search.minimize(problems, start)
    alone = search.minimize(lambda position, _: problems(position, torch.tensor([4])), start[4:5])
    torch.testing.assert_close(alone.position[0], together.position[4])
    assert float(together.value.max()) < 0.1 * float(problems(start, torch.arange(6))[0].max())


def test_an_optimizer_that_leaves_the_finite_numbers() -> None:
    search = BatchOptimizer(partial(torch.optim.SGD, lr=100.0), 400, scheduler=None)
    found = search.minimize(
        lambda x, rows: (x.square().sum(-1), 2.0 * x), torch.tensor([[0.0], [1.0]])
    )
    assert found.converged.tolist() == [True, False]
    assert found.value.tolist() == [0.0, torch.inf]
