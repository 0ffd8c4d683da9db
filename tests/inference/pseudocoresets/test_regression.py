"""Coresets of regressions: real data with exact posteriors, and many points made few."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    ForwardKL,
    GaussianSurrogate,
    ReverseKL,
    Wasserstein,
)
from tests.inference.pseudocoresets.coreset_models import labeled, logistic

NOISE = 0.7


def linear(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, NOISE), obs=y)


def diabetes() -> tuple[Tensor, Tensor]:
    x, y = (torch.as_tensor(part) for part in load_diabetes(return_X_y=True))
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


@pytest.mark.usefixtures("float64")
def test_gaussians_are_exact() -> None:
    x, y = diabetes()
    guide = AutoPseudocoreset(linear, x, y, size=20, weights="scaled", seed=0)
    surrogate = GaussianSurrogate()
    u, v = guide.pseudodata
    for rows, targets, weights, found in (
        (x, y, torch.ones(len(x)), surrogate.data_gaussian(guide)),
        (u, v, guide.weights, surrogate.coreset_gaussian(guide)),
    ):
        precision = torch.eye(10) + (weights * rows.mT) @ rows / NOISE**2
        mean = torch.linalg.solve(precision, (weights * rows.mT) @ targets / NOISE**2)
        torch.testing.assert_close(found[0].detach(), mean, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(found[1].detach(), precision.inverse(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("divergence", [ForwardKL, ReverseKL, Wasserstein])
def test_single_precision(divergence: Any) -> None:
    """Value and gradients are those of double precision, to a hundredth."""
    x, y = labeled(30_000)
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        guide = AutoPseudocoreset(
            logistic, x.to(dtype), y.to(dtype), size=100, weights="learned", seed=0
        )
        loss = divergence().differentiable_loss(logistic, guide)
        loss.backward()
        gradients = [parameter.grad for parameter in guide.parameters()]
        found.append([loss.detach().double(), *[g.double() for g in gradients if g is not None]])
    for single, double in zip(*found, strict=True):
        assert float((single - double).norm() / double.norm()) < 0.01
