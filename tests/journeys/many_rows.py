"""A logistic regression on 100,000 rows, with a rare column: minibatches, and all rows at once.

With so many rows the posterior is Gaussian to within a few percent, around the mode and with the
curvature there; both are computed in double precision.
"""

import pyro
import pyro.distributions as dist
import torch

from pyro_ext.inference import MCMC, SGHMC, LaplaceHMC

generator = torch.Generator().manual_seed(7)
x = torch.randn(100_000, 6, generator=generator)
x[:, 1] = (torch.rand(len(x), generator=generator) < 0.002).float()  # seldom 1
x[:, 2] += 0.8 * x[:, 3]
logits = x @ torch.tensor([0.5, -1.0, 0.3, 0.0, -0.2, 1.0]) - 1.0
y = (torch.rand(len(x), generator=generator) < logits.sigmoid()).float()


def model(x, y, batch_size=None):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(6), 2.0).to_event(1))
    intercept = pyro.sample("intercept", dist.Normal(x.new_tensor(0.0), 2.0))
    with pyro.plate("rows", len(x), subsample_size=batch_size) as index:
        logits = x[index] @ weight + intercept
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y[index])


def gaussian(x, y):
    """Mode and standard deviations, by Newton's method."""
    x = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    at = torch.zeros(7, dtype=torch.float64)
    for _ in range(20):
        p = (x @ at).sigmoid()
        precision = (x * (p * (1 - p))[:, None]).T @ x + torch.eye(7) / 4
        at += torch.linalg.solve(precision, x.T @ (y.double() - p) - at / 4)
    return at, torch.linalg.inv(precision).diagonal().sqrt()


mode, sd = gaussian(x, y)
kernel = SGHMC(model, mass="laplace", control_variate="map")
minibatches = MCMC(kernel, num_samples=500, warmup_steps=200, num_chains=4, thinning=10, seed=0)
minibatches.run(x, y, batch_size=500)
whole = MCMC(LaplaceHMC(model), num_samples=200, warmup_steps=20, num_chains=4, seed=0).run(x, y)
for name, mcmc in {"minibatches": minibatches, "all rows": whole}.items():
    samples = mcmc.get_samples()
    draws = torch.cat([samples["weight"], samples["intercept"][:, None]], 1).double()
    offsets = (draws.mean(0) - mode) / sd
    ratios = draws.std(0) / sd
    print(name, offsets, ratios, sep="\n")
    assert offsets.abs().max() < 0.2, offsets
    assert 0.85 < ratios.min() and ratios.max() < 1.2, ratios
