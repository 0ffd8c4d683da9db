"""Pyro models of a normal mean, whose plates follow the data, are fixed, or subsample."""

import pyro
import pyro.distributions as dist


def model(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def fixed_size(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 10):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def subsampling(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y), subsample_size=4) as index:
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y[index])
