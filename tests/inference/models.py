"""A model for tests of drivers, where its posterior does not matter."""

import pyro
import pyro.distributions as dist
import torch


def normal(x, subsample_size=None):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    pyro.deterministic("ratio", loc / scale, event_dim=1)
    with pyro.plate("data", len(x), subsample_size=subsample_size) as index:
        pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x[index])


def subsampled_normal(x):
    normal(x, 20)


def data():
    return torch.randn(60, 2, generator=torch.Generator().manual_seed(1)) + 1.0
