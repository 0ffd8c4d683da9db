"""Compiled clusters against the distributions of the same names."""

import math

import numpy as np
import pytest
import torch

from pyro_ext.distributions import (
    BernoulliCluster,
    GaussianCluster,
    KnownVarianceGaussianCluster,
    MultinomialCluster,
    PoissonCluster,
)
from pyro_ext.inference.partitions import _cluster_loops as loops
from pyro_ext.inference.partitions.mixtures import centered

pytestmark = pytest.mark.usefixtures("float64")

NUMBER, SIZE = 9, 3


def cases():
    generator = torch.Generator().manual_seed(0)
    real = 2.0 + torch.randn(NUMBER, SIZE, generator=generator, dtype=torch.float64)
    counts = torch.poisson(4.0 * torch.ones(NUMBER, SIZE, dtype=torch.float64), generator)
    counts[0] = 0.0
    counts[1, 0] = 40.0
    positive = torch.tensor([0.4, 1.0, 3.0], dtype=torch.float64)
    loc = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    scale = torch.eye(SIZE, dtype=torch.float64) + 0.3
    return {
        "Gaussian": (GaussianCluster(loc, 0.3, 5.0, scale), real),
        "known variance": (KnownVarianceGaussianCluster(loc, positive, positive + 0.2), real),
        "multinomial": (MultinomialCluster(positive), counts),
        "Bernoulli": (BernoulliCluster(positive, positive.flip(0)), (counts > 3.0).double()),
        "Poisson": (PoissonCluster(positive, positive + 0.5), counts),
    }


CASES = cases()


class Block:
    """A cluster and points as the loops take them."""

    def __init__(self, name):
        self.cluster, self.x = CASES[name]
        self.kind, center, self.parameters = centered(self.cluster)
        self.points = self.x.numpy() - center
        self.base = self.cluster.statistics(self.x)[:, 1].numpy()
        self.table = loops.constants(self.kind, self.parameters, SIZE, NUMBER)
        self.scratch = np.zeros(SIZE * SIZE + SIZE)

    def sums(self, rows):
        sums = np.zeros(loops.num_sums(self.kind, SIZE))
        for row in rows:
            loops.add_point(self.kind, sums, self.points[row], 1.0)
        return sums

    def log_marginal(self, rows):
        return loops.log_marginal(
            self.kind, self.parameters, SIZE, float(len(rows)), self.sums(rows), self.scratch
        )

    def record(self, rows):
        record = np.zeros(loops.record_size(self.kind, SIZE))
        loops.record_of(self.kind, self.parameters, SIZE, float(len(rows)), self.sums(rows), record)
        return record

    def log_predictive(self, record, count, row):
        return loops.log_predictive(
            self.kind, self.parameters, self.table, record, count, self.points[row], self.scratch
        )


@pytest.mark.parametrize("name", CASES)
def test_marginals(name):
    block = Block(name)
    for rows in ([], [0], [2, 5], list(range(NUMBER))):
        expected = float(block.cluster.log_marginal(block.x[rows])) - block.base[rows].sum()
        assert math.isclose(block.log_marginal(rows), expected, rel_tol=1e-11, abs_tol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_predictive_densities(name):
    block = Block(name)
    for rows, row in (([], 0), ([], 1), ([0], 1), ([0, 2, 3], 1), ([1, 2, 3, 4], 7)):
        process = block.cluster.posterior(block.x[rows])
        expected = float(process.log_prob(block.x[row])) - block.base[row]
        value = block.log_predictive(block.record(rows), len(rows), row)
        assert math.isclose(value, expected, rel_tol=1e-11, abs_tol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_points_come_and_go(name):
    """A record after many updates is that of the points that are left."""
    block = Block(name)
    record = np.zeros(loops.record_size(block.kind, SIZE))
    loops.empty_record(block.kind, block.parameters, SIZE, record)
    total = 0.0
    for row in range(NUMBER):
        total += block.log_predictive(record, row, row)
        loops.include(
            block.kind, block.parameters, record, float(row), block.points[row], block.scratch
        )
    assert math.isclose(total, block.log_marginal(range(NUMBER)), rel_tol=1e-11)
    for step, row in enumerate((4, 0, 8)):
        assert loops.exclude(
            block.kind,
            block.parameters,
            record,
            float(NUMBER - step),
            block.points[row],
            block.scratch,
        )
    left = [1, 2, 3, 5, 6, 7]
    for row in (0, 4):
        value = block.log_predictive(record, len(left), row)
        expected = block.log_predictive(block.record(left), len(left), row)
        assert math.isclose(value, expected, rel_tol=1e-9)


def test_far_points():
    """A point at a million leaves the digits of the others; the value is one in 60 digits."""
    scale = torch.eye(2)
    cluster = GaussianCluster(torch.zeros(2), 0.1, 5.0, scale)
    points = torch.tensor([[0.3, -0.2], [1e6, 2e6], [0.1, 0.4]])
    kind, center, parameters = centered(cluster)
    raw = points.numpy() - center
    scratch = np.zeros(6)
    record = np.zeros(loops.record_size(kind, 2))
    loops.empty_record(kind, parameters, 2, record)
    table = loops.constants(kind, parameters, 2, 3)
    total = 0.0
    for row in range(3):
        total += loops.log_predictive(kind, parameters, table, record, row, raw[row], scratch)
        loops.include(kind, parameters, record, float(row), raw[row], scratch)
    assert math.isclose(total, -119.95157269027867, rel_tol=1e-11)
    loops.exclude(kind, parameters, record, 3.0, raw[1], scratch)
    assert np.isfinite(record).all()
