"""Plots of sizes of clusters, on which power laws are lines."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_ext._checks import as_tensor, check_integer, check_mapping, check_number, check_sequence
from pyro_ext._pyplot import axes_of
from pyro_ext.random_measures._arguments import as_table
from pyro_ext.random_measures.goodness_of_fit import rank_size_band, rank_sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_rank_sizes"]

_INK = "#333333"


def plot_rank_sizes(
    observed: Tensor,
    predicted: Mapping[str, Sequence[Tensor]] | None = None,
    ax: "Axes | None" = None,
    *,
    colors: Mapping[str, str] | None = None,
    prob: float = 0.9,
    num_points: int = 60,
) -> "Axes":
    """Draw sizes of clusters against their ranks, with credible bands of predicted ones.

    :param Tensor observed: sizes and numbers of clusters. **Shape:** ``(num_rows, 2)``.
    :param predicted: tables of the draws of each model, by its name.
    :param ax: where to draw; a new figure without it.
    :param colors: of the models, by their names.
    :param float prob: probability mass of the bands at each rank.
    :param int num_points: number of ranks at which the sizes are looked at.
    :returns: the axes.
    :raises ImportError: without matplotlib; names the extra.
    :raises ValueError: for numbers out of range.

    Example::

        >>> observed = torch.tensor([[1, 30], [4, 3], [20, 1]])
        >>> ax = plot_rank_sizes(observed, {"same": [observed, observed]})
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('rank', 'size')
    """
    check_integer("num_points", num_points, 2)
    ax = axes_of("plot_rank_sizes", ax, (4.8, 3.6))
    observed = as_tensor("observed", as_table("observed", observed), "(num_rows, 2)")
    if predicted is not None:
        check_mapping("predicted", predicted, "a dict of lists of tables by name")
        for name, tables in predicted.items():
            check_sequence(f"predicted[{name!r}]", tables, "a list of tables")
            for table in tables:
                as_table(f"predicted[{name!r}]", table)
    if colors is not None:
        check_mapping("colors", colors, "a dict of colors by the names of the models")
        if missing := set(predicted or {}) - set(colors):
            raise ValueError(
                f"colors must have one for each of {sorted(missing)}, got {colors!r:.80}"
            )
        from matplotlib.colors import is_color_like

        if wrong := [color for color in colors.values() if not is_color_like(color)]:
            raise ValueError(f"colors must be colors of Matplotlib, got {wrong[0]!r:.80}")
    check_number("prob", prob, above=0, below=1)
    every = [observed, *(table for tables in (predicted or {}).values() for table in tables)]
    most = max(int(table[:, 1].sum()) for table in every)
    ranks = torch.logspace(0.0, torch.tensor(float(most)).log10().item(), num_points)
    ranks = ranks.round().long().clamp(max=most).unique()
    for name, tables in (predicted or {}).items():
        band = rank_size_band(tables, ranks, prob)
        (line,) = ax.plot(ranks, band.median.clamp(min=0.5), label=name)
        color = line.get_color() if colors is None else colors[name]
        line.set_color(color)
        low, high = band.low.clamp(min=0.5), band.high.clamp(min=0.5)
        ax.fill_between(ranks, low, high, color=color, alpha=0.2, linewidth=0)
    seen = rank_sizes(observed, ranks)
    is_there = seen > 0
    ax.plot(ranks[is_there], seen[is_there], ".", color=_INK, markersize=4, label="observed")
    ax.set(xscale="log", yscale="log", xlabel="rank", ylabel="size", ylim=(0.7, None))
    ax.legend(edgecolor="none", framealpha=0.85)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
