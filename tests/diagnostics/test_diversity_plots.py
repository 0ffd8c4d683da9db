"""The plots of chains of predictions show the numbers of their diagnostics."""

import math
import sys

import numpy as np
import pytest
import torch

from pyro_ext.diagnostics import diversity_plots

matplotlib = pytest.importorskip("matplotlib")
pyplot = pytest.importorskip("matplotlib.pyplot")


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


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


def calls():
    square = torch.zeros(2, 2)
    return [
        (diversity_plots.plot_predictive_ess, (square + 1.0,)),
        (diversity_plots.plot_predictive_rhat, (square + 1.0,)),
    ]


def test_axes_that_are_given_are_used():
    assert sorted(function.__name__ for function, _ in calls()) == diversity_plots.__all__
    for function, arguments in calls():
        _, (first, second) = pyplot.subplots(1, 2, layout="constrained")
        assert function(*arguments, ax=second) is second
        assert second.has_data() and not first.has_data() and len(pyplot.get_fignums()) == 1
        second.figure.canvas.draw()
        pyplot.close("all")


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for function, arguments in calls():
        with pytest.raises(ImportError, match=rf"^{function.__name__} .* 'pyro-ext\[plots\]'"):
            function(*arguments)
