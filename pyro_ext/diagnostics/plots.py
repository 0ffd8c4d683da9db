"""Plots that ArviZ lacks."""

from typing import TYPE_CHECKING, Any

from pyro_ext.diagnostics.metrics import ArrayLike, calibration_bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_reliability"]

_ACCURACY, _OVER, _UNDER, _INK = "#2a6f97", "#d1495b", "#e09f3e", "#444444"


def plot_reliability(
    probabilities: ArrayLike,
    labels: ArrayLike,
    num_bins: int = 15,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw a reliability diagram: how often predictions of a given confidence are right.

    Bars show the accuracy per bin of confidence, hatched boxes the gap to the mean confidence of
    the bin (above the bar where the ensemble is overconfident, within it where it is
    underconfident), the dashed diagonal perfect calibration. Below is the share of the points in
    each bin.
    The title gives the expected calibration error, :func:`pyro_ext.diagnostics.metrics.ece`; bins
    and numbers are those of :func:`pyro_ext.diagnostics.metrics.calibration_bins`.

    Shape: ``probabilities (num_draws, n, classes)`` or ``(n, classes)``, ``labels (n,)``.

    :param probabilities: predictive probabilities, averaged over the draws.
    :param labels: the observed classes.
    :param num_bins: number of bins, at least 1.
    :param ax: where to draw; a new figure without it. The histogram is placed beneath these axes.
    :returns: the axes of the diagram; the histogram is ``ax.child_axes[0]``.
    :raises ValueError: names the argument, what it got and what it wants.
    :raises ImportError: without matplotlib; names the extra.

    Reference: C. Guo, G. Pleiss, Y. Sun and K. Weinberger (2017), *On calibration of modern neural
    networks*, https://arxiv.org/abs/1706.04599.

    Example::

        >>> import numpy as np
        >>> probabilities = np.array([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.25]])
        >>> ax = plot_reliability(probabilities, np.array([0, 1, 1, 1]))
        >>> ax.get_title()
        'ECE = 0.250'
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "plot_reliability needs matplotlib; install it with: pip install 'pyro-ext[plots]'"
        ) from error

    bins = calibration_bins(probabilities, labels, num_bins)
    filled = bins.counts > 0
    edges, width = bins.edges[:-1][filled].numpy(), 1.0 / len(bins.counts)
    accuracy, confidence = bins.accuracy[filled].numpy(), bins.confidence[filled].numpy()
    share = (bins.counts[filled] / bins.counts.sum()).numpy()

    if ax is None:
        _, ax = pyplot.subplots(figsize=(4.8, 5.6), layout="constrained")
    box: dict[str, Any] = {"width": width, "align": "edge", "linewidth": 0.8}
    ax.bar(edges, accuracy, **box, color=_ACCURACY, edgecolor="white", label="accuracy", zorder=2)
    gap = confidence - accuracy
    for sign, colour, name in ((1.0, _OVER, "overconfident"), (-1.0, _UNDER, "underconfident")):
        chosen = sign * gap > 0.0
        if chosen.any():
            ax.bar(
                edges[chosen],
                sign * gap[chosen],
                **box,
                bottom=accuracy.clip(max=confidence)[chosen],
                facecolor="white" if sign > 0.0 else _ACCURACY,
                edgecolor=colour,
                hatch="/////",
                label=name,
                zorder=3,
            )
    ax.plot([0, 1], [0, 1], "--", color=_INK, linewidth=1.0, label="perfectly calibrated", zorder=4)
    ax.set(
        xlim=(0, 1),
        ylim=(0, 1),
        ylabel="accuracy",
        title=f"ECE = {bins.expected_calibration_error:.3f}",
    )
    ax.legend(loc="upper left", edgecolor="none", framealpha=0.85).set_zorder(5)

    below = ax.inset_axes((0.0, -0.26, 1.0, 0.2), sharex=ax)
    below.bar(edges, share, **box, color=_INK, edgecolor="white")
    below.set(xlabel="confidence", ylabel="share")
    ax.tick_params(labelbottom=False)
    for axes in (ax, below):
        axes.spines[["top", "right"]].set_visible(False)
    return ax
