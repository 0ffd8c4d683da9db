"""Plots that ArviZ lacks."""

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from pyro_ext._lib import checks
from pyro_ext._lib.pyplot import axes_of, load_pyplot, open_frame
from pyro_ext.diagnostics.metrics import ArrayLike, calibration_bins

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes

    from pyro_ext.diagnostics.calibration import SBCResult

__all__ = ["plot_co_clustering", "plot_num_clusters", "plot_reliability", "plot_sbc"]

SBCPlot = Literal["ecdf", "histogram"]

_ACCURACY, _OVER, _UNDER, _INK = "#2a6f97", "#d1495b", "#e09f3e", "#444444"
_BAND = "#d9e2e8"


def plot_reliability(
    probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 15, ax: "Axes | None" = None
) -> "Axes":
    """Draw a reliability diagram: how often predictions with a given confidence are right.

    Bars show the accuracy in each confidence bin. Hatched boxes show the gap to the bin's mean
    confidence: above the bar if the ensemble is overconfident, within it if it is underconfident.
    The dashed diagonal is perfect calibration. A histogram below shows the fraction of the points
    in each bin. The bins are those of :func:`pyro_ext.diagnostics.metrics.calibration_bins`.

    :param probabilities: **Shape:** ``(num_draws, n, classes)``, or averaged ``(n, classes)``.
    :param labels: the observed classes. **Shape:** ``(n,)``.
    :param num_bins: number of bins, at least 1.
    :param ax: the axes to draw on, with the histogram beneath; a new figure by default.
    :returns: the axes of the diagram; the histogram is ``ax.child_axes[0]``.
    :raises ImportError: if matplotlib is missing; the message names the extra to install.

    Reference: C. Guo, G. Pleiss, Y. Sun and K. Weinberger (2017), *On calibration of modern neural
    networks*, https://arxiv.org/abs/1706.04599.

    Example::

        >>> import numpy as np
        >>> probabilities = np.array([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.25]])
        >>> ax = plot_reliability(probabilities, np.array([0, 1, 1, 1]))
        >>> ax.get_title()
        'ECE = 0.250'
    """
    bins = calibration_bins(probabilities, labels, num_bins)
    filled = bins.counts > 0
    edges, width = bins.edges[:-1][filled].numpy(), 1.0 / len(bins.counts)
    accuracy, confidence = bins.accuracy[filled].numpy(), bins.confidence[filled].numpy()
    fraction = (bins.counts[filled] / bins.counts.sum()).numpy()

    ax = axes_of("plot_reliability", ax, (4.8, 5.6))
    box: dict[str, Any] = {"width": width, "align": "edge", "linewidth": 0.8}
    ax.bar(edges, accuracy, **box, color=_ACCURACY, edgecolor="white", label="accuracy", zorder=2)
    gap = confidence - accuracy
    for sign, color, name in ((1.0, _OVER, "overconfident"), (-1.0, _UNDER, "underconfident")):
        chosen = sign * gap > 0.0
        if chosen.any():
            ax.bar(
                edges[chosen],
                sign * gap[chosen],
                **box,
                bottom=accuracy.clip(max=confidence)[chosen],
                facecolor="white" if sign > 0.0 else _ACCURACY,
                edgecolor=color,
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
    below.bar(edges, fraction, **box, color=_INK, edgecolor="white")
    below.set(xlabel="confidence", ylabel="fraction")
    ax.tick_params(labelbottom=False)
    open_frame(below)
    return open_frame(ax)


def plot_sbc(
    result: "SBCResult",
    names: Collection[str] | None = None,
    pool: bool | Collection[str] = False,
    kind: SBCPlot = "ecdf",
    prob: float = 0.95,
    ax: "Axes | npt.NDArray[Any] | None" = None,
) -> "npt.NDArray[Any]":
    """Plot the ranks of simulation-based calibration against what to expect of uniform ranks.

    There is one plot for each site and quantity, with a line for each of its elements. ``"ecdf"``
    shows the empirical distribution function of the ranks minus that of uniform ranks, with a band
    that contains a whole line with probability ``prob`` if the inference is calibrated; lines that
    leave it are red. If a line is above the band on the left, the posterior lies too high or is too
    narrow; if it first falls and then rises, the posterior is too wide. ``"histogram"`` shows how
    often ranks fall into bins, and the interval that contains each bar with probability ``prob``.

    :param SBCResult result: the result of :func:`~pyro_ext.diagnostics.sbc`.
    :param Collection names: sites and quantities to plot, by default all.
    :param pool: take the elements of a site together, as in
        :meth:`SBCResult.uniformity() <pyro_ext.diagnostics.SBCResult.uniformity>`.
    :param str kind: ``"ecdf"`` or ``"histogram"``; the latter takes elements together.
    :param float prob: the probability of the band.
    :param ax: the axes to draw on, one for each name; a new figure by default.
    :returns: the axes. **Shape:** ``(num_names,)``.
    :raises ImportError: if matplotlib is missing; the message names the extra to install.

    Reference: T. Säilynoja, P.-C. Bürkner, A. Vehtari (2022), *Graphical test for discrete
    uniformity and its applications in goodness-of-fit evaluation and multiple sample comparison*,
    https://arxiv.org/abs/2103.10522.

    Example::

        >>> import numpy as np
        >>> from pyro_ext.diagnostics import SBCResult
        >>> ranks = np.random.default_rng(0).integers(0, 100, size=(200, 2))
        >>> axes = plot_sbc(SBCResult({"loc": ranks, "shifted": ranks // 2}, num_draws=99))
        >>> [ax.get_title() for ax in axes]
        ['loc: 0 of 2 outside', 'shifted: 2 of 2 outside']
    """
    from pyro_ext.diagnostics.calibration import SBCResult

    checks.instance("result", result, SBCResult, "an SBCResult")
    checks.number("prob", prob, above=0, below=1)
    checks.choice("kind", kind, get_args(SBCPlot))
    pyplot = load_pyplot("plot_sbc")
    chosen = result.ranks if names is None else names
    labels = checks.sequence("names", chosen, "a list of names of ranks")
    columns = {
        name: np.stack(list(result.columns([name], pool or kind == "histogram").values()), 1)
        for name in labels
    }
    if ax is None:
        num_rows, num_columns = -(-len(labels) // 4), min(len(labels), 4)
        size = (3.2 * num_columns, 2.6 * num_rows)
        figure, grid = pyplot.subplots(
            num_rows, num_columns, figsize=size, squeeze=False, layout="constrained"
        )
        for unused in grid.ravel()[len(labels) :]:
            figure.delaxes(unused)
        ax = grid.ravel()[: len(labels)]
    axes = np.asarray(ax, dtype=object).ravel()
    if not all(hasattr(axis, "fill_between") and not isinstance(axis, type) for axis in axes):
        raise TypeError(f"ax must be Matplotlib axes, one for each name, got {checks.shown(ax)}")
    if len(axes) != len(labels):
        raise ValueError(f"ax must have {len(labels)} axes, one for each name, got {len(axes)}")
    draw = _draw_ecdf if kind == "ecdf" else _draw_histogram
    for name, axis in zip(labels, axes, strict=True):
        draw(axis, name, columns[name], result.num_draws, prob)
        open_frame(axis)
    return axes


def plot_co_clustering(
    labels: ArrayLike, order: "Literal['linkage'] | ArrayLike" = "linkage", ax: "Axes | None" = None
) -> "Axes":
    """Plot the posterior probability that two points share a cluster as a heat map.

    Points that belong together are next to each other. They are ordered by the leaves of an average
    linkage tree, either all of them or within each cluster of a partition; clusters are separated
    by lines, the largest first.

    :param labels: draws of labels. **Shape:** ``(num_draws, n)`` or
        ``(num_chains, num_draws, n)``.
    :param order: ``"linkage"``, or a partition such as
        :func:`pyro_ext.diagnostics.partitions.point_estimate` finds. **Shape:** ``(n,)``.
    :param ax: the axes to draw on; a new figure by default.
    :returns: the axes.
    :raises TypeError: if labels are not integers.
    :raises ImportError: if matplotlib is missing; the message names the extra to install.

    Example::

        >>> draws = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 0]])
        >>> ax = plot_co_clustering(draws, order=draws[0])
        >>> ax.images[0].get_array().tolist()[0]
        [1.0, 1.0, 0.0, 0.5]
    """
    from pyro_ext.diagnostics.partitions import co_clustering
    from pyro_ext.diagnostics.partitions.labels import check_partition

    probabilities = co_clustering(labels).numpy()
    leaves, ends = _leaves(probabilities), np.empty(0)
    if isinstance(order, str):
        if order != "linkage":
            raise ValueError(f"order must be 'linkage' or a vector of labels, got {order!r:.80}")
    else:
        partition = check_partition("order", order, len(probabilities)).numpy()
        sizes = np.bincount(partition)
        ranks = np.argsort(np.argsort(-sizes, kind="stable"))
        leaves = leaves[np.argsort(ranks[partition[leaves]], kind="stable")]
        ends = np.sort(sizes)[::-1].cumsum()[:-1] - 0.5
    ax = axes_of("plot_co_clustering", ax, (5.6, 4.8))
    image = ax.imshow(
        probabilities[np.ix_(leaves, leaves)],
        vmin=0.0,
        vmax=1.0,
        cmap="Blues",
        interpolation="nearest",
    )
    for end in ends:
        ax.axhline(end, color=_INK, linewidth=0.6)
        ax.axvline(end, color=_INK, linewidth=0.6)
    ax.set(xlabel="points, in order", ylabel="points, in order")
    ax.figure.colorbar(image, ax=ax, label="probability of the same cluster")
    return ax


def plot_num_clusters(labels: ArrayLike, ax: "Axes | None" = None) -> "Axes":
    """Plot the posterior probability of each number of clusters.

    Bars are for all draws together. If there are several chains, points show each of them; they are
    close together if the chains agree.

    :param labels: draws of labels. **Shape:** ``(num_draws, n)`` or
        ``(num_chains, num_draws, n)``.
    :param ax: the axes to draw on; a new figure by default.
    :returns: the axes.
    :raises TypeError: if labels are not integers.
    :raises ImportError: if matplotlib is missing; the message names the extra to install.

    Example::

        >>> ax = plot_num_clusters(torch.tensor([[0, 1, 0], [0, 1, 2], [0, 1, 1], [0, 0, 1]]))
        >>> [float(bar.get_height()) for bar in ax.patches]
        [0.75, 0.25]
    """
    from matplotlib.ticker import MaxNLocator

    from pyro_ext.diagnostics.partitions import num_clusters, num_clusters_distribution

    probabilities = num_clusters_distribution(labels).numpy()
    by_chain = num_clusters(labels).numpy()
    occurring = np.arange(np.flatnonzero(probabilities)[0], len(probabilities))
    ax = axes_of("plot_num_clusters", ax, (4.8, 3.6))
    ax.bar(
        occurring, probabilities[occurring], color=_ACCURACY, edgecolor="white", label="all draws"
    )
    if by_chain.ndim == 2 and len(by_chain) > 1:
        for chain in by_chain:
            own = np.bincount(chain, minlength=len(probabilities))[occurring] / len(chain)
            ax.plot(occurring, own, "o", color=_UNDER, markersize=4, markeredgecolor=_INK)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="clusters", ylabel="probability")
    return open_frame(ax)


def _leaves(probabilities: "npt.NDArray[np.float64]") -> "npt.NDArray[np.int64]":
    """Order of the leaves of a tree of average linkage."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(probabilities) == 1:
        return np.zeros(1, np.int64)
    tree = linkage(squareform(1.0 - probabilities, checks=False), "average")
    return np.asarray(leaves_list(tree), np.int64)


def _draw_ecdf(
    ax: "Axes", name: str, ranks: "npt.NDArray[np.int64]", num_draws: int, prob: float
) -> None:
    from pyro_ext.diagnostics._uniformity import ecdf_band, ecdf_difference

    low, high = ecdf_band(len(ranks), num_draws, prob)
    difference = ecdf_difference(ranks, num_draws)
    rounding = 1e-12
    is_below, is_above = difference < low[:, None] - rounding, difference > high[:, None] + rounding
    is_outside = np.asarray((is_below | is_above).any(0))
    position = np.arange(1, num_draws + 1) / (num_draws + 1)
    ax.fill_between(position, low, high, color=_BAND, linewidth=0.0, label=f"{prob:.0%} band")
    for column, outside in zip(difference.T, is_outside, strict=True):
        ax.plot(position, column, color=_OVER if outside else _ACCURACY, linewidth=1.0)
    ax.axhline(0.0, color=_INK, linewidth=0.8, linestyle="--")
    title = f"{name}: {is_outside.sum()} of {len(is_outside)} outside"
    ax.set(xlim=(0, 1), xlabel="scaled rank", ylabel="ECDF difference", title=title)


def _draw_histogram(
    ax: "Axes", name: str, ranks: "npt.NDArray[np.int64]", num_draws: int, prob: float
) -> None:
    from scipy.stats import binom

    # As equal as may be: numbers of ranks in bins differ by one at most.
    num_bins = min(num_draws + 1, max(5, math.isqrt(len(ranks))), 40)
    edges = np.round(np.linspace(0, num_draws + 1, num_bins + 1))
    counts, _ = np.histogram(ranks, edges - 0.5)
    fraction = np.diff(edges) / (num_draws + 1)
    low, high = (
        binom.ppf(level, ranks.size, fraction) / (ranks.size * fraction)
        for level in ((1.0 - prob) / 2.0, (1.0 + prob) / 2.0)
    )
    edges = edges / (num_draws + 1)
    density = counts / (ranks.size * fraction)
    ax.stairs(high, edges, baseline=low, fill=True, color=_BAND, label=f"{prob:.0%} each")
    ax.stairs(density, edges, color=_ACCURACY, linewidth=1.4, baseline=None)
    ax.axhline(1.0, color=_INK, linewidth=0.8, linestyle="--")
    ax.set(xlim=(0, 1), xlabel="scaled rank", ylabel="density", title=name)
    ax.set_ylim(bottom=0.0)
