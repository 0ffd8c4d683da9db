"""Conjugate clusters of every family, and data for each."""

import pytest
import torch

from pyro_ext.distributions import (
    BernoulliCluster,
    GaussianCluster,
    KnownVarianceGaussianCluster,
    MultinomialCluster,
    PoissonCluster,
)

SQUARE = ((1.3, 0.4), (0.4, 0.7))
PARAMETERS = {
    GaussianCluster: ((0.3, -0.5), 0.6, 12.5, SQUARE),
    KnownVarianceGaussianCluster: ((0.3, -0.5), (1.4, 0.6), (0.5, 0.8)),
    MultinomialCluster: ((0.5, 1.7),),
    BernoulliCluster: ((0.5, 1.7), (1.2, 0.4)),
    PoissonCluster: ((0.5, 1.7), (0.8, 0.3)),
}
POINTS = [[0.4, -0.2], [1.1, 0.3], [-0.7, 0.9], [0.4, -0.2]]
COUNTS = [[3.0, 1.0], [0.0, 2.0], [0.0, 0.0], [1.0, 5.0]]
DATA = dict.fromkeys(PARAMETERS, POINTS) | dict.fromkeys(
    [MultinomialCluster, PoissonCluster], COUNTS
)
DATA[BernoulliCluster] = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
GAUSSIAN = (GaussianCluster, KnownVarianceGaussianCluster)
everything = pytest.mark.parametrize("make", PARAMETERS, ids=lambda make: make.__name__)
gaussian = pytest.mark.parametrize("make", GAUSSIAN, ids=lambda make: make.__name__)

X4 = [[0.0, 0.0], [0.4, -0.1], [1.5, 1.2], [1.8, 0.9]]


def tensors(make, dtype=None):
    return tuple(torch.tensor(value, dtype=dtype) for value in PARAMETERS[make])


def cluster_and_data(make, dtype=None):
    return make(*tensors(make, dtype)), torch.tensor(DATA[make], dtype=dtype)
