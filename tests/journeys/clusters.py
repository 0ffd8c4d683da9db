"""Clusters of unknown number in six columns: a partition that chains agree on, and known labels."""

import arviz as az
import pyro
import pyro.distributions as dist
import torch
from sklearn.metrics import adjusted_rand_score

from pyro_ext.diagnostics import to_arviz
from pyro_ext.diagnostics.partitions import co_clustering, credible_ball, point_estimate
from pyro_ext.distributions import GaussianCluster
from pyro_ext.inference import MCMC, TreeGuided
from pyro_ext.random_measures import DirichletProcess

generator = torch.Generator().manual_seed(3)
truth = torch.arange(200) % 5
centers = 60.0 * torch.randn(5, 6, generator=generator) + 500.0  # in units of their own
x = centers[truth] + 10.0 * torch.randn(200, 6, generator=generator)


def prior():
    return DirichletProcess(pyro.sample("concentration", dist.Gamma(1.0, 1.0)))


kernel = TreeGuided(prior, GaussianCluster.hyperprior(x))
mcmc = MCMC(kernel, num_samples=150, warmup_steps=75, num_chains=4, seed=0).run(x)
data = to_arviz(mcmc)
table = az.summary(data)
print(table)
assert table["r_hat"].max() < 1.1

assignment = mcmc.get_samples()["assignment"]
estimate = point_estimate(assignment)
together = co_clustering(assignment)
ball = credible_ball(assignment, estimate.labels)
print(estimate.expected_loss, ball.radius)
assert adjusted_rand_score(truth, estimate.labels) > 0.9
same = truth[:, None] == truth
assert together[same].mean() > 0.9 and together[~same].mean() < 0.05
assert abs(float(data["posterior"]["assignment_num_clusters"].mean()) - 5) < 1
