"""Models, draws and a sampler that the tests of the conversion to ArviZ share."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext.potential import Potential

NUM_DATA = 12


# Models -------------------------------------------------------------------------------------------


def linear(x: Tensor, y: Tensor | None, subsample_size: int | None = None) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 0.3))
    with pyro.plate("data", len(x), subsample_size=subsample_size) as index:
        mean = pyro.deterministic("mean", x[index] @ weight)
        pyro.sample("y", dist.Normal(mean, noise), obs=None if y is None else y[index])


def counts(y: Tensor, sizes: tuple[int | None, int | None] = (None, None)) -> None:
    """Poisson counts of 3 sites in 5 years, with a rate for each site and a trend in the years."""
    trend = pyro.sample("trend", dist.Normal(0.0, 0.1))
    years = pyro.plate("year", 5, subsample_size=sizes[1], dim=-1)
    with pyro.plate("site", 3, subsample_size=sizes[0], dim=-2) as site:
        log_rate = pyro.sample("log_rate", dist.Normal(1.0, 0.5))
        with years as year:
            rate = torch.exp(log_rate + trend * year)
            pyro.sample("count", dist.Poisson(rate), obs=y[site][:, year])


def reading(y: Tensor) -> None:
    """A model with no plate, a batch without a name, an event, and two observed sites."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(4, 3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)
    pyro.sample("total", dist.Normal(loc.sum(), 1.0), obs=y.sum())


def global_only(y: Tensor, scale: float = 1.0) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


# Data and draws -----------------------------------------------------------------------------------


def linear_data() -> tuple[Tensor, Tensor]:
    x = torch.randn(NUM_DATA, 2)
    return x, x @ torch.tensor([0.5, -1.0]).to(x) + torch.randn(NUM_DATA)


def linear_draws(*leading: int) -> dict[str, Tensor]:
    return {
        "weight": torch.tensor([0.5, -1.0]) + 0.1 * torch.randn(*leading, 2),
        "noise": (0.1 * torch.randn(*leading)).exp(),
    }


def count_data() -> Tensor:
    return torch.poisson(torch.full((3, 5), 3.0)).long()


def count_draws(*leading: int) -> dict[str, Tensor]:
    return {
        "trend": 0.05 * torch.randn(*leading),
        "log_rate": 1.0 + 0.2 * torch.randn(*leading, 3, 1),
    }


def linear_log_likelihood(draws: Mapping[str, Tensor], x: Tensor, y: Tensor) -> np.ndarray:
    mean = torch.einsum("...k,nk->...n", draws["weight"], x)
    scale = draws["noise"][..., None]
    value = -0.5 * ((y - mean) / scale) ** 2 - scale.log() - 0.5 * np.log(2 * np.pi)
    return value.numpy()


def conjugate_posterior(y: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
    """Exact draws from the posterior of ``global_only``."""
    precision = len(y) / scale**2 + 0.01
    loc = y.sum() / scale**2 / precision
    return {"loc": loc + torch.randn(4, 250) / precision**0.5}


class FakeSampler:
    """What a sampler of this package looks like from outside."""

    def __init__(
        self,
        draws: dict[str, Tensor],
        model: Callable[..., Any] | None = None,
        *args: Any,
        statistics: dict[str, Tensor] | None = None,
    ) -> None:
        self.draws, self.model, self.args, self.kwargs = draws, model, args, {}
        self.potential = Potential(model, *args) if model is not None else None
        self.statistics = statistics or {}
        self.chain_numbers: tuple[int, ...] | None = None
        self.partitions: tuple[str, ...] = ()

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        return {k: v if group_by_chain else v.flatten(0, 1) for k, v in self.draws.items()}

    def sample_statistics(self) -> dict[str, Tensor]:
        return self.statistics


def groups_of(data: Any) -> set[str]:
    return set(data.children if hasattr(data, "children") else data.groups())


def values(data: Any, group: str, name: str) -> np.ndarray:
    return np.asarray(data[group][name].values)


def arviz() -> Any:
    import arviz

    return arviz
