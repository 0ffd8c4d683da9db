"""A hierarchical model of counts: NUTS, ArviZ, predictions and a comparison of two models.

The posterior of rates that are gamma given two hyperparameters is known up to an integral over
these two, which a grid does.
"""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Predictive
from scipy.special import gammaln

from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, NUTS

# Pump failures: counts and thousands of hours of operation.
HOURS = torch.tensor([94.3, 15.7, 62.9, 126.0, 5.24, 31.4, 1.05, 1.05, 2.1, 10.5])
COUNTS = torch.tensor([5.0, 1.0, 5.0, 14.0, 3.0, 19.0, 1.0, 1.0, 4.0, 22.0])


def varying(hours, counts=None):
    shape = pyro.sample("shape", dist.Exponential(1.0))
    inverse_scale = pyro.sample("inverse_scale", dist.Gamma(0.1, 1.0))
    with pyro.plate("pumps", len(hours)):
        rate = pyro.sample("rate", dist.Gamma(shape, inverse_scale))
        pyro.sample("counts", dist.Poisson(rate * hours), obs=counts)


def pooled(hours, counts=None):
    rate = pyro.sample("rate", dist.Exponential(1.0))
    with pyro.plate("pumps", len(hours)):
        pyro.sample("counts", dist.Poisson(rate * hours), obs=counts)


mcmc = MCMC(NUTS(varying), num_samples=1000, num_chains=4, seed=0).run(HOURS, COUNTS)
data = to_arviz(mcmc, posterior_predictive=True)
table = az.summary(data)
print(table)

# The exact means and standard deviations of rates, by a grid over logarithms.
a, b = np.meshgrid(np.exp(np.linspace(-6, 3, 400)), np.exp(np.linspace(-14, 3, 600)), indexing="ij")
y, t = COUNTS.double().numpy(), HOURS.double().numpy()
weight = -a - 0.9 * np.log(b) - b + np.log(a) + np.log(b)
for count, hours in zip(y, t, strict=True):
    weight += gammaln(a + count) - gammaln(a) + a * np.log(b) - (a + count) * np.log(b + hours)
weight = np.exp(weight - weight.max())
weight /= weight.sum()
for pump, (count, hours) in enumerate(zip(y, t, strict=True)):
    first, second = (a + count) / (b + hours), (a + count) * (a + count + 1) / (b + hours) ** 2
    mean = (weight * first).sum()
    sd = ((weight * second).sum() - mean**2) ** 0.5
    row = table.loc[f"rate[{pump}]"]
    assert abs(row["mean"] - mean) < 0.1 * sd + 0.001, (pump, row["mean"], mean)
    assert abs(row["sd"] / sd - 1) < 0.1, (pump, row["sd"], sd)
assert table["r_hat"].max() < 1.02 and table["ess_bulk"].min() > 400
assert int(data["sample_stats"]["diverging"].sum()) == 0

# Predictions repeat the data, and Pyro's own draws from the same posterior are like ours.
predicted = data["posterior_predictive"]["counts"].values.reshape(4000, 10)
low, high = np.quantile(predicted, [0.025, 0.975], axis=0)
assert ((low <= y) & (y <= high)).all()
again = Predictive(varying, mcmc.get_samples())(HOURS)["counts"].double().numpy()
assert np.allclose(again.mean(0), predicted.mean(0), rtol=0.15, atol=0.3)

# Rates that are all one are far worse, and LOO says so.
other = to_arviz(MCMC(NUTS(pooled), num_samples=1000, num_chains=4, seed=0).run(HOURS, COUNTS))
comparison = az.compare({"varying": data, "pooled": other})
print(comparison)
assert comparison.index[0] == "varying"
assert float(az.loo(data)["elpd_loo"]) - float(az.loo(other)["elpd_loo"]) > 20
