"""Noise, posteriors and models for the tests of function space."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.inference.pseudocoresets import ParameterDistributions, parameter_distributions
from pyro_ext.nn import MLP, BayesianModule


class KnownPosteriors:
    """Distributions of the latent values that are simply given."""

    def __init__(self, data: Any, coreset: Any) -> None:
        self.distributions = ParameterDistributions(data, coreset)


@parameter_distributions.register
def _(posteriors: KnownPosteriors, guide: Any, coreset: Any) -> ParameterDistributions:
    del guide, coreset
    return posteriors.distributions


def balanced_noise(shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Noise whose first two moments over the draws are exact, for means of quadratics.

    Of an even number of draws, one half mirrors the other. Draws that are twice as many as the last
    dimension is long go through its directions; the others have entries of absolute value one.
    """
    number, size = shape[0] // 2, shape[-1]
    if number == size:
        half = size**0.5 * torch.eye(size, dtype=dtype, device=device)
        half = half.reshape(size, *[1] * (len(shape) - 2), size).expand(size, *shape[1:])
    else:
        half = torch.ones(number, *shape[1:], dtype=dtype, device=device)
    return torch.cat([half, -half])


def use_balanced_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let normal distributions take it."""
    for module in (torch.distributions.normal, torch.distributions.multivariate_normal):
        monkeypatch.setattr(module, "_standard_normal", balanced_noise)


class Classifier:
    """Labels that follow the logits of a network, which are a deterministic site."""

    def __init__(self, hidden: list[int], activation: Any = torch.nn.ReLU) -> None:
        self.network = BayesianModule(MLP(3, hidden, 4, activation), 0.7)

    def __call__(self, x: Tensor, y: Tensor) -> None:
        logits = pyro.deterministic("logits", self.network(x), event_dim=1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def categorical(logits: Tensor) -> dist.Categorical:
    return dist.Categorical(logits=logits)


def classes(num_points: int = 80, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Four classes of points in three dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_points) % 4
    centers = 1.5 * torch.randn(4, 3, generator=generator)
    return centers[labels] + 0.5 * torch.randn(num_points, 3, generator=generator), labels
