"""The plots show the numbers that they say they show."""

import numpy as np
import pytest
import torch

from pyro_ext.random_measures import GeneralizedGammaProcess, PitmanYor
from pyro_ext.random_measures.plots import (
    plot_cluster_sizes,
    plot_num_clusters,
    plot_ranked_weights,
    plot_tail,
)

pyplot = pytest.importorskip("matplotlib.pyplot")


MEASURE = GeneralizedGammaProcess(2.0, 0.4, 1.5)


LABELS = torch.tensor([[0, 0, 1, 0, 2], [0, 1, 2, 1, 3]])


def test_tail():
    series = MEASURE.series(50, "inverse_levy", seed=0)
    axes = plot_tail(MEASURE, series.weights)
    line, points = axes.lines
    levels = torch.as_tensor(line.get_xdata())
    np.testing.assert_allclose(line.get_ydata(), MEASURE.tail(levels), rtol=1e-5)
    assert levels.min() == pytest.approx(series.weights.min().item(), rel=1e-4)
    np.testing.assert_allclose(points.get_xdata(), series.weights, rtol=1e-6)
    np.testing.assert_array_equal(points.get_ydata(), np.arange(1, 51))
    # The tail itself is what the ordered series inverts.
    at_points = MEASURE.tail(series.weights).numpy()
    assert np.abs(np.log(at_points) - np.log(np.arange(1, 51)))[10:].max() < 1.0
    alone = plot_tail(MEASURE).lines[0].get_ydata()
    assert alone.max() == pytest.approx(1e3, rel=1e-2)
    assert alone.min() == pytest.approx(1e-2, rel=1e-2)


def test_ranked_weights():
    weights = torch.tensor([[0.1, 0.5, 0.2], [0.3, 0.1, 0.6]])
    axes = plot_ranked_weights(weights)
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), [0.55, 0.25, 0.1], rtol=1e-6)
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_spread_over_draws():
    """Of the weights 1, 2, ..., 101, and of ten times them, from the 5th to the 95th percentile."""
    draws = torch.arange(1.0, 102.0)[:, None] * torch.tensor([1.0, 10.0])
    axes = plot_ranked_weights(draws[torch.randperm(101, generator=torch.manual_seed(0))])
    (band,) = axes.collections
    positions, levels = band.get_paths()[0].vertices.T
    np.testing.assert_allclose(np.unique(levels[positions == 1]), [60.0, 960.0], rtol=1e-6)
    np.testing.assert_allclose(np.unique(levels[positions == 2]), [6.0, 96.0], rtol=1e-6)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [510.0, 51.0], rtol=1e-6)


def test_number_of_clusters():
    axes = plot_num_clusters({"one": LABELS, "two": LABELS[:1]})
    first, second = axes.lines
    np.testing.assert_array_equal(first.get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_allclose(first.get_ydata(), [1, 1.5, 2.5, 2.5, 3.5])
    np.testing.assert_allclose(second.get_ydata(), [1, 1, 2, 2, 3])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]


def test_slope_of_the_number_of_clusters():
    torch.manual_seed(0)
    (line,) = plot_num_clusters(PitmanYor(0.5, 1.0).partition(100_000).sample((20,))).lines
    positions, numbers = line.get_xdata(), line.get_ydata()
    late = positions > 1000
    slope, _ = np.polyfit(np.log(positions[late]), np.log(numbers[late]), 1)
    assert slope == pytest.approx(0.5, abs=0.05)


def test_cluster_sizes():
    axes = plot_cluster_sizes(LABELS)
    (points,) = axes.lines
    np.testing.assert_array_equal(points.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(points.get_ydata(), [2.5, 0.5, 0.5])


def test_draws_where_it_is_told():
    _, axes = pyplot.subplots()
    assert plot_cluster_sizes(LABELS, ax=axes) is axes
    assert plot_tail(MEASURE, ax=axes) is axes
