"""Coresets of regressions: real data with exact posteriors, and many points made few."""

from functools import partial
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


def many_points(num_points: int = 100_000, dim: int = 10) -> tuple[Tensor, Tensor]:
    """Correlated inputs and labels of a logistic regression."""
    generator = torch.Generator().manual_seed(1)
    mixing = 0.3 * torch.randn(dim, dim, generator=generator) + torch.eye(dim)
    x = torch.randn(num_points, dim, generator=generator) @ mixing
    weight = 0.5 * torch.randn(dim, generator=generator)
    y = (torch.rand(num_points, generator=generator) < (x @ weight).sigmoid()).to(x)
    return x, y


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


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weights", ["uniform", "scaled", "learned"])
@pytest.mark.parametrize("divergence", [ForwardKL, ReverseKL])
def test_diabetes(divergence: Any, weights: Any) -> None:
    """Below a twentieth of the mean over three random subsets of the same weights."""
    x, y = diabetes()
    surrogate = GaussianSurrogate()
    loss = divergence(surrogate)
    guides = [
        AutoPseudocoreset(linear, x, y, size=20, weights=weights, seed=seed) for seed in range(3)
    ]
    of_subsets = sum(loss.loss(linear, guide) for guide in guides) / len(guides)
    guides[0].fit(loss, 600, optimizer=partial(torch.optim.Adam, lr=0.02), progress=False)
    assert guides[0].losses[-1] < 0.05 * of_subsets


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


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.usefixtures("float64")
def test_a_hundred_thousand_points() -> None:
    """Means of NUTS on 100 points within 0.2 standard deviations of the full posterior's.

    That one is Gaussian but for a thousandth. The coreset posterior's mean is within 0.02 of it;
    1,500 draws that are worth 400 or more leave errors of 0.05 in each of ten numbers, so that the
    false-alarm rate is 3e-3 at most, and far less for a longer-worth run.
    """
    x, y = many_points()
    guide = AutoPseudocoreset(logistic, x, y, size=100, weights="learned", seed=0)
    loss = ForwardKL()
    guide.fit(loss, 1000, progress=False)
    mean, covariance = GaussianSurrogate().data_gaussian(guide)
    deviations = covariance.diagonal().sqrt()
    run = guide.sample_posterior(1500, warmup_steps=300)
    draws = run.get_samples()["weight"]
    assert float(run.diagnostics()["weight"]["n_eff"].min()) > 400
    assert float(((draws.mean(0) - mean) / deviations).abs().max()) < 0.2
    ratio = draws.std(0) / deviations
    assert 0.7 < float(ratio.min()) <= float(ratio.max()) < 1.3
