"""Intervals where the model is wrong, and a posterior of a functional without a prior.

The bootstrap of an overdispersed Poisson regression is compared with sandwich errors, the
martingale posterior of the Gini index with the Bayesian bootstrap, weights drawn by NumPy.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyro_ext.inference import MartingalePosterior, PolyaUrn, PosteriorBootstrap

generator = torch.Generator().manual_seed(11)
x = torch.randn(500, 2, generator=generator, dtype=torch.float64)
noise = torch.randn(500, generator=generator, dtype=torch.float64)
y = torch.poisson((1.0 + x @ x.new_tensor([0.4, -0.2]) + 0.7 * noise).exp(), generator=generator)


def model(x, y=None):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(2), 10.0).to_event(1))
    intercept = pyro.sample("intercept", dist.Normal(x.new_tensor(0.0), 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Poisson((x @ weight + intercept).exp()), obs=y)


samples = PosteriorBootstrap(model, num_samples=2000, seed=0).run(x, y).get_samples()
draws = torch.cat([samples["weight"], samples["intercept"][:, None]], 1)
design = torch.cat([x, torch.ones(500, 1, dtype=x.dtype)], 1)
fit = torch.zeros(3, dtype=x.dtype)
for _ in range(30):
    mean = (design @ fit).exp()
    information = (design * mean[:, None]).T @ design
    fit += torch.linalg.solve(information, design.T @ (y - mean))
scores = design * (y - mean)[:, None]
inverse = torch.linalg.inv(information)
sandwich = (inverse @ (scores.T @ scores) @ inverse).diagonal().sqrt()
naive = inverse.diagonal().sqrt()
print(draws.std(0) / sandwich, draws.std(0) / naive)
assert ((draws.mean(0) - fit).abs() < 0.25 * sandwich).all()
assert ((draws.std(0) / sandwich - 1).abs() < 0.15).all()  # second order in 500 rows
assert (draws.std(0) > 1.3 * naive).all()  # what the Poisson likelihood promises is too little


def gini(population):
    values, order = population.values[0].sort()  # all draws have the same points
    weights = population.weights[:, order]
    below = weights.cumsum(-1) - weights / 2
    return 2 * (weights * values * below).sum(-1) / population.mean - 1


income = torch.randn(300, generator=generator, dtype=torch.float64).exp()
posterior = MartingalePosterior(PolyaUrn(), gini, num_samples=2000, horizon=math.inf, seed=0)
index = next(iter(posterior.run(income).get_samples().values())).numpy()
weights = np.random.default_rng(0).dirichlet(np.ones(300), 20_000)
ordered = np.argsort(income.numpy())
weights, values = weights[:, ordered], income.numpy()[ordered]
below = weights.cumsum(1) - weights / 2
exact = 2 * (weights * values * below).sum(1) / (weights * values).sum(1) - 1
print(index.mean(), exact.mean(), index.std(), exact.std())
assert abs(index.mean() - exact.mean()) < 0.1 * exact.std()
assert abs(index.std() / exact.std() - 1) < 0.08
