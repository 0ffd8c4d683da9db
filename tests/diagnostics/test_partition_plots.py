"""The heat map and the bars show the numbers of the summaries, in the order that is asked for."""

from itertools import permutations

import numpy as np
import pytest
import torch

from pyro_ext.diagnostics.partitions import co_clustering, num_clusters_distribution
from pyro_ext.diagnostics.plots import plot_co_clustering, plot_num_clusters

pyplot = pytest.importorskip("matplotlib.pyplot")

DRAWS = torch.tensor([[[0, 1, 2, 1, 0, 1], [0, 1, 0, 1, 0, 1]], [[3, 1, 3, 1, 3, 0], [5] * 6]])


def test_heat_map_follows_a_partition():
    ax = plot_co_clustering(DRAWS, order=torch.tensor([8, 4, 8, 4, 4, 1]))
    shown, shares = np.asarray(ax.images[0].get_array()), co_clustering(DRAWS).numpy()
    orders = [
        [*three, *two, 5] for three in permutations([1, 3, 4]) for two in permutations([0, 2])
    ]
    assert any(np.array_equal(shown, shares[np.ix_(order, order)]) for order in orders)
    assert sorted({line.get_xdata()[0] for line in ax.lines} - {0}) == [2.5, 4.5]
    assert ax.images[0].get_clim() == (0.0, 1.0)


def test_linkage_puts_points_that_belong_together_side_by_side():
    two = torch.tensor([0, 1, 0, 1, 1, 0, 1]).repeat(3, 1)
    shown = np.asarray(plot_co_clustering(two).images[0].get_array())
    wanted = np.kron(np.eye(2), np.ones((4, 4)))
    assert any(np.array_equal(shown, wanted[i : i + 7, i : i + 7]) for i in (0, 1))
    assert plot_co_clustering(torch.tensor([[0]])).images[0].get_array().shape == (1, 1)


def test_bars_are_probabilities_and_points_those_of_chains():
    ax = plot_num_clusters(DRAWS)
    shares = num_clusters_distribution(DRAWS).numpy()
    points = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    np.testing.assert_allclose(points, [1, 2, 3])
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], shares[1:])
    np.testing.assert_allclose(
        [line.get_ydata() for line in ax.lines], [[0, 0.5, 0.5]] + [[0.5, 0, 0.5]]
    )
    assert not plot_num_clusters(DRAWS[0]).lines


def test_given_axes():
    _, (first, second) = pyplot.subplots(1, 2)
    assert plot_co_clustering(DRAWS, ax=first) is first
    assert plot_num_clusters(DRAWS, ax=second) is second
