"""Log-log plots of random measures, partitions and cluster sizes; power laws are straight lines."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.pyplot import axes_of, open_frame
from pyro_ext.random_measures.cluster_counts import as_table, counts_of_labels
from pyro_ext.random_measures.frequencies import rank_size_band, rank_sizes
from pyro_ext.random_measures.levy_measure import check_measure
from pyro_ext.random_measures.measure import CompletelyRandomMeasure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = [
    "plot_cluster_sizes",
    "plot_num_clusters",
    "plot_rank_sizes",
    "plot_ranked_weights",
    "plot_tail",
]

_LINE, _POINTS = "#2a6f97", "#d1495b"
_SIZE = (4.8, 3.6)
_QUANTILES = (0.05, 0.5, 0.95)
_INK = "#333333"
_NUM_RANKS = 60  # or sizes of samples, at most


def plot_tail(
    measure: CompletelyRandomMeasure, weights: Tensor | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Plot the tail of a Lévy density, and the number of sampled weights above each level.

    Power laws near zero and at infinity are straight lines, with minus the indices as slopes.

    :param measure: a measure without a batch shape.
    :param Tensor weights: sampled weights, such as those of a series, which set the range of the
        plot. Without them, it runs over the levels exceeded by 1,000 down to 0.01 weights on
        average.
    :param ax: the axes to draw on; a new figure by default.
    :returns: the axes.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> measure = GeneralizedGammaProcess(2.0, 0.4, 1.5)
        >>> ax = plot_tail(measure, measure.series(100, "inverse_levy", seed=0).weights)
        >>> ax.get_xscale(), ax.get_yscale()
        ('log', 'log')
    """
    ax = axes_of("plot_tail", ax, _SIZE)
    check_measure("measure", measure)
    if weights is None:
        ends = measure.inverse_tail(torch.tensor([1e3, 1e-2]))
    else:
        weights = checks.as_tensor("weights", weights, finite=True)
        if not bool((weights > 0).any()):
            raise ValueError(
                f"weights must contain a positive number, got {weights.tolist()!r:.80}"
            )
        weights = weights[weights > 0].flatten().sort(descending=True).values
        ends = torch.stack([weights.min(), weights.max()])
    levels = torch.logspace(float(ends[0].log10()), float(ends[1].log10()), 100)
    ax.plot(levels, measure.tail(levels), color=_LINE, label="mean number above")
    if weights is not None:
        ranks = np.arange(1, len(weights) + 1)
        ax.plot(weights, ranks, ".", color=_POINTS, markersize=3, label="sampled")
    ax.set(xscale="log", yscale="log", xlabel="level", ylabel="weights above it")
    return _finished(ax)


def plot_ranked_weights(weights: Tensor | Mapping[str, Tensor], ax: "Axes | None" = None) -> "Axes":
    """Plot weights in decreasing order against their ranks, with the spread over draws.

    With an index at zero of s, they fall as the rank to the power -1/s.

    :param weights: the weights of one or more draws, or a mapping from names of measures to such
        weights. **Shape:** ``(*draws, num_weights)``.
    :param ax: the axes to draw on; a new figure by default.
    :returns: the axes.

    Example::

        >>> from pyro_ext.random_measures import PitmanYor
        >>> sticks = PitmanYor(0.5, 1.0).sticks(50).sample()
        >>> weights = sticks * torch.cat([torch.ones(1), (1 - sticks).cumprod(-1)[:-1]])
        >>> plot_ranked_weights(weights).get_xlabel()
        'rank'
    """
    ax = axes_of("plot_ranked_weights", ax, _SIZE)
    for name, values in _by_name("weights", weights).items():
        ranked = values.reshape(-1, values.shape[-1]).sort(-1, descending=True).values
        _draw_spread(ax, np.arange(1, ranked.shape[-1] + 1), ranked, name)
    ax.set(xscale="log", yscale="log", xlabel="rank", ylabel="weight")
    return _finished(ax)


def plot_num_clusters(labels: Tensor | Mapping[str, Tensor], ax: "Axes | None" = None) -> "Axes":
    """Plot the number of clusters among the first n samples against n.

    With an index at zero of s, it grows as n to the power s.

    :param labels: labels of one or more partitions, numbered from zero in the order of first
        occurrence, or a mapping from names to such labels. **Shape:** ``(*draws, n)``.
    :param ax: the axes to draw on; a new figure by default.
    :returns: the axes.

    Example::

        >>> from pyro_ext.random_measures import PitmanYor
        >>> plot_num_clusters(PitmanYor(0.5, 1.0).partition(100).sample()).get_ylabel()
        'clusters'
    """
    ax = axes_of("plot_num_clusters", ax, _SIZE)
    for name, values in _by_name("labels", labels, "integers").items():
        rows = values.reshape(-1, values.shape[-1])
        sizes = np.unique(np.geomspace(1, rows.shape[-1], _NUM_RANKS).astype(int))
        numbers = rows.cummax(-1).values[:, sizes - 1] + 1
        _draw_spread(ax, sizes, numbers.double(), name)
    ax.set(xscale="log", yscale="log", xlabel="samples", ylabel="clusters")
    return _finished(ax)


def plot_cluster_sizes(labels: Tensor | Mapping[str, Tensor], ax: "Axes | None" = None) -> "Axes":
    """Plot the number of clusters of each size, averaged over partitions.

    With an index at zero of s, the fraction of clusters of size j falls as j to the power -1-s.

    :param labels: labels of one or more partitions, or a mapping from names of measures to such
        labels. **Shape:** ``(*draws, n)``.
    :param ax: the axes to draw on; a new figure by default.
    :returns: the axes.

    Example::

        >>> from pyro_ext.random_measures import PitmanYor
        >>> plot_cluster_sizes(PitmanYor(0.5, 1.0).partition(100).sample()).get_xlabel()
        'size'
    """
    ax = axes_of("plot_cluster_sizes", ax, _SIZE)
    for name, values in _by_name("labels", labels, "integers").items():
        rows = values.reshape(-1, values.shape[-1])
        counts = counts_of_labels(rows)
        sizes, numbers = counts[counts > 0].unique(return_counts=True)
        ax.plot(sizes, numbers / len(rows), ".", markersize=4, label=name)
    ax.set(xscale="log", yscale="log", xlabel="size", ylabel="clusters of this size")
    return _finished(ax)


def _by_name(argument: str, values: Any, kind: str = "numbers") -> Mapping[str, Tensor]:
    if not isinstance(values, Mapping):
        return {"": checks.as_tensor(argument, values, "(*draws, n)", kind=kind)}
    return {
        name: checks.as_tensor(f"{argument}[{name!r}]", value, "(*draws, n)", kind=kind)
        for name, value in values.items()
    }


def _draw_spread(ax: "Axes", points: Any, values: Tensor, name: str) -> None:
    """Median and central 90 % over draws."""
    low, middle, high = np.quantile(values.numpy(), _QUANTILES, axis=0)
    (line,) = ax.plot(points, middle, label=name)
    ax.fill_between(points, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _finished(ax: "Axes") -> "Axes":
    if any(label for label in ax.get_legend_handles_labels()[1]):
        ax.legend(edgecolor="none", framealpha=0.85)
    return open_frame(ax)


def plot_rank_sizes(
    observed: Tensor,
    predicted: Mapping[str, Sequence[Tensor]] | None = None,
    ax: "Axes | None" = None,
    *,
    colors: Mapping[str, str] | None = None,
) -> "Axes":
    """Plot observed cluster sizes against their ranks, with 90% bands of predicted sizes.

    :param Tensor observed: rows of a size and the number of clusters of this size. **Shape:**
        ``(num_rows, 2)``.
    :param predicted: a mapping from names of models to predicted tables, one for each draw.
    :param ax: the axes to draw on; a new figure by default.
    :param colors: a mapping from names of models to colors.
    :returns: the axes.

    Example::

        >>> observed = torch.tensor([[1, 30], [4, 3], [20, 1]])
        >>> ax = plot_rank_sizes(observed, {"same": [observed, observed]})
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('rank', 'size')
    """
    ax = axes_of("plot_rank_sizes", ax, _SIZE)
    observed = checks.as_tensor("observed", as_table("observed", observed), "(num_rows, 2)")
    checks.optional(checks.mapping, "predicted", predicted, "a dict of lists of tables by name")
    predicted = predicted or {}
    for name, tables in predicted.items():
        for table in checks.sequence(f"predicted[{name!r}]", tables, "a list of tables"):
            as_table(f"predicted[{name!r}]", table)
    if colors is not None:
        checks.mapping("colors", colors, "a dict of colors by the names of the models")
        if missing := set(predicted) - set(colors):
            raise ValueError(
                f"colors must have a color for each of {sorted(missing)}, got {colors!r:.80}"
            )
        from matplotlib.colors import is_color_like

        if wrong := [color for color in colors.values() if not is_color_like(color)]:
            raise ValueError(f"colors must be Matplotlib colors, got {wrong[0]!r:.80}")
    every = [observed, *(table for tables in predicted.values() for table in tables)]
    most = max(int(table[:, 1].sum()) for table in every)
    ranks = torch.logspace(0.0, torch.tensor(float(most)).log10().item(), _NUM_RANKS)
    ranks = ranks.round().long().clamp(max=most).unique()
    for name, tables in predicted.items():
        band = rank_size_band(tables, ranks)
        (line,) = ax.plot(ranks, band.median.clamp(min=0.5), label=name)
        color = line.get_color() if colors is None else colors[name]
        line.set_color(color)
        low, high = band.low.clamp(min=0.5), band.high.clamp(min=0.5)
        ax.fill_between(ranks, low, high, color=color, alpha=0.2, linewidth=0)
    seen = rank_sizes(observed, ranks)
    is_there = seen > 0
    ax.plot(ranks[is_there], seen[is_there], ".", color=_INK, markersize=4, label="observed")
    ax.set(xscale="log", yscale="log", xlabel="rank", ylabel="size", ylim=(0.7, None))
    return _finished(ax)
