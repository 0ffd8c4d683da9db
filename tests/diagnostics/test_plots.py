"""The reliability diagram shows the numbers of the calibration bins."""

import numpy as np
import pytest

from pyro_ext.diagnostics.metrics import calibration_bins, ece
from pyro_ext.diagnostics.plots import plot_reliability

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(scope="module")
def ensemble():
    random = np.random.RandomState(0)
    probabilities = random.dirichlet(np.ones(4), size=(3, 500))
    return probabilities, random.randint(4, size=500)


def boxes(axes, label):
    """Left, bottom and top of the bars under a label of the legend."""
    for container in axes.containers:
        if container.get_label() == label:
            return np.array(
                [
                    (bar.get_x(), bar.get_y(), bar.get_y() + bar.get_height())
                    for bar in container.patches
                ]
            )
    return np.empty((0, 3))


@pytest.mark.parametrize("num_bins", [1, 7, 15])
def test_bars_are_the_calibration_bins(ensemble, num_bins):
    ax = plot_reliability(*ensemble, num_bins=num_bins)
    bins = calibration_bins(*ensemble, num_bins=num_bins)
    filled = (bins.counts > 0).numpy()
    left = bins.edges[:-1].numpy()[filled]
    accuracy, confidence = bins.accuracy.numpy()[filled], bins.confidence.numpy()[filled]
    bars = boxes(ax, "accuracy")
    np.testing.assert_allclose(bars, np.stack([left, 0 * left, accuracy], 1), atol=1e-12)
    gaps = np.concatenate([boxes(ax, "overconfident"), boxes(ax, "underconfident")])
    gaps = gaps[gaps[:, 0].argsort()]
    low, high = np.minimum(accuracy, confidence), np.maximum(accuracy, confidence)
    np.testing.assert_allclose(gaps, np.stack([left, low, high], 1), atol=1e-12)
    share = np.array([bar.get_height() for bar in ax.child_axes[0].patches])
    np.testing.assert_allclose(share, bins.counts.numpy()[filled] / 500)
    assert ax.get_title() == f"ECE = {ece(*ensemble, num_bins=num_bins):.3f}"


def test_kinds_of_gap():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    ax = plot_reliability(probabilities, np.array([0, 1, 0]), num_bins=5)
    np.testing.assert_allclose(boxes(ax, "overconfident"), [[0.8, 0.5, 0.9]])
    np.testing.assert_allclose(boxes(ax, "underconfident"), [[0.4, 0.6, 1.0]])


def test_perfect_calibration_has_no_gap():
    ax = plot_reliability(np.eye(3), np.arange(3))
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(texts) == ["accuracy", "perfectly calibrated"]
    assert ax.get_title() == "ECE = 0.000"


def test_axes_that_are_given_are_used(ensemble):
    figure, (first, second) = pyplot.subplots(1, 2, layout="constrained")
    assert plot_reliability(*ensemble, ax=second) is second
    assert not first.has_data() and len(pyplot.get_fignums()) == 1
    assert second.get_xlim() == second.get_ylim() == (0.0, 1.0)
    assert second.child_axes[0].get_xlabel() == "confidence"


def test_nothing_is_cut_off(ensemble):
    ax = plot_reliability(*ensemble)
    figure = ax.figure
    figure.canvas.draw()
    tight, full = figure.get_tightbbox(), figure.bbox_inches
    assert tight.x0 >= -1e-6 and tight.y0 >= -1e-6
    assert tight.x1 <= full.x1 + 1e-6 and tight.y1 <= full.y1 + 1e-6
