"""Discrepancies of sets of graphs, against kernels in SciPy."""

import math

import networkx
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from pyro_ext.diagnostics import graph_mmd

SETS = [[networkx.gnp_random_graph(10 + i, p, seed=i) for i in range(6)] for p in (0.3, 0.6)]


def by_scipy(first, second, kind):
    """With distances of samples; clustering coefficients are at the left ends of their bins."""

    def values(graph):
        if kind == "degree":
            return [degree for _, degree in graph.degree]
        found = np.array(list(networkx.clustering(graph).values()))
        return np.minimum(np.floor(found * 100 + 1e-9), 99) / 100

    def mean(a, b):
        sigma = 1.0 if kind == "degree" else 0.1
        terms = [
            math.exp(-(wasserstein_distance(values(g), values(h)) ** 2) / (2 * sigma**2))
            for g in a
            for h in b
        ]
        return sum(terms) / len(terms)

    return mean(first, first) + mean(second, second) - 2 * mean(first, second)


@pytest.mark.parametrize("kind", ["degree", "clustering"])
def test_by_scipy(kind):
    found = graph_mmd(*SETS, kind)
    assert found == pytest.approx(by_scipy(*SETS, kind), abs=1e-9)
    assert found == pytest.approx(graph_mmd(*SETS[::-1], kind))
    assert graph_mmd(SETS[0], SETS[0], kind) == pytest.approx(0.0, abs=1e-12)


def test_bad_arguments():
    for graph in (networkx.DiGraph([(0, 1)]), networkx.Graph()):
        with pytest.raises(ValueError, match="generated must be undirected graphs .* index 0"):
            graph_mmd(SETS[0], [graph])
