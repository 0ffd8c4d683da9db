"""Small data whose posterior over all partitions is known exactly."""

import numpy as np
import torch
from scipy.special import gammaln

from pyro_ext.distributions import GaussianCluster, MultinomialCluster
from pyro_ext.random_measures import (
    DirichletProcess,
    GeneralizedGammaProcess,
    PitmanYor,
    StableBetaProcess,
)

POINTS = torch.tensor([[0.0, 0.0], [0.4, -0.1], [1.5, 1.2], [1.8, 0.9]], dtype=torch.float64)
COUNTS = torch.tensor(
    [[3.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 1.0, 3.0], [1.0, 1.0, 2.0]], dtype=torch.float64
)


ONE = torch.ones((), dtype=torch.float64)
PROCESSES = {
    "Dirichlet": DirichletProcess(1.3 * ONE),
    "Pitman-Yor": PitmanYor(0.3, 0.7 * ONE),
    "generalized gamma": GeneralizedGammaProcess(0.5 * ONE, 0.5, 1.0).normalize(),
    "stable beta": StableBetaProcess(ONE, 0.2, 2.0).normalize(),
}
CLOSED = sorted(PROCESSES)[:3]


def gaussian_cluster():
    scale = 0.5 * torch.eye(2, dtype=torch.float64)
    return GaussianCluster(torch.zeros(2, dtype=torch.float64), 0.5, 4.0, scale)


def multinomial_cluster():
    return MultinomialCluster(torch.full((3,), 0.5, dtype=torch.float64))


def partitions(number):
    """All partitions, as labels in the order of first occurrence."""

    def extended(labels, num_clusters):
        if len(labels) == number:
            yield tuple(labels)
            return
        for label in range(num_clusters + 1):
            yield from extended([*labels, label], max(num_clusters, label + 1))

    return list(extended([0], 1))


def posterior(cluster, points, log_prior):
    """Partitions and their exact probabilities.

    :param log_prior: maps sizes of clusters to the log prior, but for a constant.
    """
    every = partitions(len(points))
    logs = []
    for labels in every:
        blocks = [
            points[[i for i, label in enumerate(labels) if label == k]]
            for k in range(max(labels) + 1)
        ]
        log_data = sum(float(cluster.log_marginal(block)) for block in blocks)
        logs.append(log_data + float(log_prior([len(block) for block in blocks])))
    logs = np.array(logs)
    weights = np.exp(logs - logs.max())
    return every, weights / weights.sum()


def posterior_under(process, cluster, points):
    """Partitions and their exact probabilities, with those of a process before."""
    return posterior(cluster, points, lambda sizes: process.log_eppf(torch.tensor(sizes)))


def generalized_gamma_weights(number, mass=1.0, discount=0.5, tilt=1.0):
    """Factors of the paper's process with an auxiliary variable held fixed."""
    sizes = np.arange(1, number + 1)
    own = np.log(mass * discount) + gammaln(sizes - discount) - gammaln(1.0 - discount)
    own = own - (sizes - discount) * np.log1p(tilt)
    return np.concatenate([[0.0], own]), np.zeros(number + 2)


def pitman_yor_weights(number, discount=0.3, concentration=0.7):
    sizes = np.arange(1, number + 1)
    own = gammaln(sizes - discount) - gammaln(1.0 - discount)
    steps = np.log(concentration + discount * np.arange(1, number + 1))
    return np.concatenate([[0.0], own]), np.concatenate([[0.0, 0.0], np.cumsum(steps)])


def dirichlet_weights(number, concentration=1.0):
    return pitman_yor_weights(number, 0.0, concentration)


WEIGHTS = {
    "generalized gamma": generalized_gamma_weights,
    "Pitman-Yor": pitman_yor_weights,
    "Dirichlet": dirichlet_weights,
}
DATA = {"Gaussian": (gaussian_cluster, POINTS), "multinomial": (multinomial_cluster, COUNTS)}


def log_prior_of(weights):
    log_size, log_number = weights
    return lambda sizes: log_size[sizes].sum() + log_number[len(sizes)]


def partitions_of(tree, node):
    """All partitions that a tree holds below a node, as lists of lists of points."""
    if node < tree.num_leaves:
        return [[[node]]]
    left, right = tree.merges[node - tree.num_leaves].tolist()
    split = [a + b for a in partitions_of(tree, left) for b in partitions_of(tree, right)]
    return [[sum(split[0], [])], *split]
