"""The plots of ensembles show the numbers of their diagnostics."""

import math
import sys

import numpy as np
import pytest
import torch

from pyro_ext.diagnostics import diversity, diversity_plots

matplotlib = pytest.importorskip("matplotlib")
pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(scope="module")
def ensemble():
    random = np.random.RandomState(0)
    return random.dirichlet(np.ones(4), size=(6, 50)), random.randint(4, size=50)


def lines(ax):
    """Lines by label."""
    return {line.get_label(): line for line in ax.lines}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_distances():
    draws = {"w": torch.randn(3, 9, 2, generator=torch.Generator().manual_seed(0))}
    distances = diversity.consecutive_distances(draws)
    ax = diversity_plots.plot_consecutive_distances(distances)
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines], distances.numpy())
    np.testing.assert_array_equal(ax.lines[2].get_xdata(), np.arange(1, 9))
    assert legend(ax) == ["chain 0", "chain 1", "chain 2"]
    assert ax.get_ylim()[0] == 0.0
    assert diversity_plots.plot_consecutive_distances(distances[:1]).get_legend() is None


def test_paths():
    positions = torch.tensor([0.0, 0.25, 1.0])
    values = torch.tensor([[1.0, 4.0, 5.0], [2.0, 0.0, 2.0]])
    ax = diversity_plots.plot_path_values(positions, values, labels=["up", "down"])
    # The straight line of the first is at two after a quarter; the second stays below its own.
    assert legend(ax) == ["up: 2", "down: 0"]
    shown = [line.get_ydata().tolist() for line in ax.lines]
    assert shown == [[1.0, 4.0, 5.0], [1.0, 5.0], [2.0, 0.0, 2.0], [2.0, 2.0]]
    assert ax.lines[1].get_xdata().tolist() == [0.0, 1.0]
    assert ax.lines[0].get_color() == ax.lines[1].get_color() != ax.lines[2].get_color()
    assert legend(diversity_plots.plot_path_values(positions, values[0])) == ["barrier 2"]


def test_positions_may_start_elsewhere():
    positions = np.array([1.0, 2.0, 3.0])
    ax = diversity_plots.plot_path_values(positions, np.array([0.0, 0.5, 4.0]))
    assert legend(ax) == ["barrier 0"]


def test_rounding_is_no_barrier():
    positions = torch.linspace(0.0, 1.0, 21)
    ax = diversity_plots.plot_path_values(positions, 2.0 - positions)
    assert legend(ax) == ["barrier 0"]


def test_a_path_through_infinity():
    ax = diversity_plots.plot_path_values(torch.arange(3), torch.tensor([1.0, math.inf, 2.0]))
    assert legend(ax) == ["barrier inf"]
    ax.figure.canvas.draw()


def test_a_path_from_path_values():
    ends = {"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])}
    path = diversity.path_values(lambda draws: 1.0 - draws["w"].square().sum(-1), *ends)
    assert legend(diversity_plots.plot_path_values(*path)) == ["barrier 1"]


def test_singular_values():
    weight = torch.randn(2, 20, 5, 4, generator=torch.Generator().manual_seed(0))
    values = diversity.weight_singular_values(weight)
    ax = diversity_plots.plot_singular_values({"draws": values, "one": values[0, 0]})
    shown = lines(ax)
    flat = values.reshape(40, 4).numpy()
    np.testing.assert_allclose(shown["draws"].get_ydata(), np.median(flat, 0))
    np.testing.assert_array_equal(shown["draws"].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(shown["one"].get_ydata(), values[0, 0].numpy())
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    for rank in range(1, 5):
        at_rank = corners[corners[:, 0] == rank, 1]
        wanted = np.quantile(flat[:, rank - 1], [0.05, 0.95])
        np.testing.assert_allclose([at_rank.min(), at_rank.max()], wanted)
    assert ax.get_yscale() == "log" and legend(ax) == ["draws", "one"]


def test_a_zero_on_a_logarithmic_scale():
    ax = diversity_plots.plot_singular_values({"w": torch.tensor([[2.0, 0.0], [1.0, 0.0]])})
    np.testing.assert_array_equal(lines(ax)["w"].get_ydata(), [1.5, 0.0])
    ax.figure.canvas.draw()  # which warns of nothing
    low, high = ax.get_ylim()
    assert 0.0 < low < 1.5 < high


def test_distribution_of_r_hat():
    r_hat = torch.tensor([[1.1, 1.0, math.nan], [math.inf, 1.02, 5.0]], dtype=torch.float64)
    ax = diversity_plots.plot_predictive_rhat(r_hat)
    curve = ax.lines[0]
    assert curve.get_xdata().tolist() == [1.0, 1.0, 1.02, 1.1, 5.0]
    np.testing.assert_allclose(curve.get_ydata(), [0.0, 0.2, 0.4, 0.6, 0.8])
    assert curve.get_drawstyle() == "steps-post"
    assert [line.get_xdata()[0] for line in ax.lines[1:]] == [1.01, 1.05, 1.2]
    assert legend(ax) == ["20% below 1.01, 40% below 1.05, 60% below 1.2"]
    assert ax.get_xlim()[1] == pytest.approx(2.04)


def test_distributions_by_label():
    ax = diversity_plots.plot_predictive_rhat(
        {"good": torch.tensor([1.0, 1.001]), "bad": np.array([1.01, 1.5])}, thresholds=[1.05]
    )
    assert legend(ax) == ["good: 100% below 1.05", "bad: 50% below 1.05"]
    assert ax.lines[0].get_color() != ax.lines[1].get_color()
    assert legend(diversity_plots.plot_predictive_rhat({"a": torch.ones(2)}, [])) == ["a"]


def test_distribution_of_effective_sample_sizes():
    sizes = torch.tensor([[50.0, 900.0], [400.0, math.nan]])
    ax = diversity_plots.plot_predictive_ess(sizes)
    assert ax.lines[0].get_xdata().tolist() == [50.0, 50.0, 400.0, 900.0]
    assert ax.lines[1].get_xdata()[0] == 400.0
    assert legend(ax) == ["33% below 400"]
    assert ax.get_xlim()[0] == 0.0


def calls(ensemble):
    square = torch.zeros(2, 2)
    return [
        (diversity_plots.plot_consecutive_distances, (square,)),
        (diversity_plots.plot_path_values, (torch.arange(2), square)),
        (diversity_plots.plot_singular_values, ({"w": square + 1.0},)),
        (diversity_plots.plot_predictive_ess, (square + 1.0,)),
        (diversity_plots.plot_predictive_rhat, (square + 1.0,)),
    ]


def test_axes_that_are_given_are_used(ensemble):
    assert sorted(function.__name__ for function, _ in calls(ensemble)) == diversity_plots.__all__
    for function, arguments in calls(ensemble):
        _, (first, second) = pyplot.subplots(1, 2, layout="constrained")
        assert function(*arguments, ax=second) is second
        assert second.has_data() and not first.has_data() and len(pyplot.get_fignums()) == 1
        second.figure.canvas.draw()
        pyplot.close("all")


def test_missing_matplotlib_names_the_extra(ensemble, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for function, arguments in calls(ensemble):
        with pytest.raises(ImportError, match=rf"^{function.__name__} .* 'pyro-ext\[plots\]'"):
            function(*arguments)


def test_wrong_arguments_leave_no_figure(ensemble):
    two, three = torch.zeros(2), torch.zeros(3)
    for function, arguments, message in [
        (diversity_plots.plot_consecutive_distances, (two,), "distances must have the shape"),
        (diversity_plots.plot_consecutive_distances, (torch.zeros(2, 0),), "distances must not be"),
        (diversity_plots.plot_path_values, (three, three), "positions must be at least two rising"),
        (diversity_plots.plot_path_values, (torch.arange(3), two), "values must have the shape"),
        (diversity_plots.plot_path_values, (torch.arange(2), two, ["a", "b"]), "labels must be 1"),
        (diversity_plots.plot_singular_values, ({},), "values must hold singular values by label"),
        (diversity_plots.plot_singular_values, ({"w": two - 1.0},), r"values\['w'\] must have"),
        (diversity_plots.plot_predictive_rhat, (two * math.nan,), "r_hat must hold at least one"),
        (diversity_plots.plot_predictive_rhat, ({},), "r_hat must hold at least one"),
        (diversity_plots.plot_predictive_ess, ({"a": torch.zeros(0)},), r"sizes\['a'\] must not"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            function(*arguments)
    assert pyplot.get_fignums() == []
