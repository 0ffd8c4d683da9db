"""Models and data of the tests of pseudocoresets."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

FITS_ARE_SHORT = pytest.mark.filterwarnings("ignore:the posterior of the coreset is not that of")
"""For tests whose fits take a few steps, after which a coreset is no good yet."""


def location(x: Tensor) -> None:
    """Unit noise around a mean with a standard normal prior."""
    prior = dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1)
    mean = pyro.sample("mean", prior)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def logistic(x: Tensor, y: Tensor | None = None) -> Tensor:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(x.shape[-1]), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


def gamma(x: Tensor, y: Tensor) -> None:
    """Positive observations, and a latent site with a Jacobian."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    shape = pyro.sample("shape", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Gamma(shape, (slope * x).exp()), obs=y)


def points(num_points: int = 50, dim: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.0 + torch.randn(num_points, dim, generator=generator)


def labeled(num_points: int = 400, dim: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a logistic regression, ones being rarer."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_points, dim, generator=generator)
    probabilities = (x @ torch.linspace(1.0, -1.0, dim) - 1.0).sigmoid()
    return x, (torch.rand(num_points, generator=generator) < probabilities).to(x)


def location_answers(x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and variance of the posterior of the location model."""
    weights = torch.ones(len(x)) if weights is None else weights
    total = 1.0 + weights.sum()
    return (weights[:, None] * x).sum(0) / total, 1.0 / total


def saved_tensors(function: Callable[[], Any]) -> int:
    """Number of values that autograd keeps for the backward pass of a function."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return sum(tensor.numel() for tensor in kept)
