"""Plots of how the draws of a Bayesian network differ, and of whether its chains agree.

They show the numbers of :mod:`pyro_ext.diagnostics.diversity`,
:mod:`pyro_ext.diagnostics.function_space` and :func:`pyro_ext.diagnostics.metrics.ambiguity`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.pyplot import axes_of, open_frame
from pyro_ext.diagnostics.metrics import ArrayLike, as_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "plot_consecutive_distances",
    "plot_path_values",
    "plot_predictive_ess",
    "plot_predictive_rhat",
    "plot_singular_values",
]

_INK = "#444444"
_MOST_NAMED = 10
_LARGEST_SHOWN = 2.0
_ROUNDING = 1e-6  # of values in single precision


def plot_consecutive_distances(distances: ArrayLike, ax: "Axes | None" = None) -> "Axes":
    """Draw how far each draw lies from the one before, a line for each chain.

    :param distances: what :func:`~pyro_ext.diagnostics.diversity.consecutive_distances` returns.
        **Shape:** ``(num_chains, num_draws - 1)``.
    :param ax: where to draw; a new figure without it.
    :returns: the axes. A distance is at the later of its two draws, which count from zero.
    :raises ImportError: without matplotlib; names the extra.

    Example::

        >>> ax = plot_consecutive_distances(torch.tensor([[5.0, 1.0], [2.0, 3.0]]))
        >>> [line.get_ydata().tolist() for line in ax.lines]
        [[5.0, 1.0], [2.0, 3.0]]
    """
    values = _floats("distances", distances, "(num_chains, num_draws - 1)")
    ax = axes_of("plot_consecutive_distances", ax, (4.8, 3.6))
    draws = torch.arange(1, values.shape[1] + 1).numpy()
    for index, chain in enumerate(values.numpy()):
        ax.plot(draws, chain, linewidth=1.0, label=f"chain {index}")
    if 1 < len(values) <= _MOST_NAMED:
        ax.legend(edgecolor="none", framealpha=0.85)
    ax.set(xlabel="draw", ylabel="distance to the draw before")
    ax.set_ylim(bottom=0.0)
    return open_frame(ax)


def plot_path_values(
    positions: ArrayLike,
    values: ArrayLike,
    labels: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw values of a function, such as a loss, along straight paths between two draws.

    The dashed line is straight between the values at the ends. The barrier, which the legend gives,
    is the most by which a path rises above it; zero where it does not.

    :param positions: on the path, rising, both ends included, as
        :func:`~pyro_ext.diagnostics.diversity.path_values` returns them. **Shape:**
        ``(num_points,)``.
    :param values: there, of one path or several. **Shape:** ``(num_points,)`` or ``(num_paths,
        num_points)``.
    :param Sequence labels: names of the paths.
    :param ax: where to draw; a new figure without it.
    :returns: the axes.
    :raises ImportError: without matplotlib; names the extra.

    Example::

        >>> ax = plot_path_values(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 4.0, 3.0]))
        >>> ax.lines[0].get_label()
        'barrier 2'
    """
    position = _floats("positions", positions, "(num_points,)")
    if len(position) < 2 or not (position[1:] > position[:-1]).all():
        raise ValueError(
            f"positions must be at least two rising numbers, got {position.tolist()!r:.80}"
        )
    rows = _floats("values", values, f"(*num_paths, {len(position)})").reshape(-1, len(position))
    if labels is not None and len(checks.sequence("labels", labels, "a list of names")) != len(
        rows
    ):
        raise ValueError(f"labels must be {len(rows)} names, one for each path; got {labels!r:.80}")
    fraction = (position - position[0]) / (position[-1] - position[0])
    straight = torch.lerp(rows[:, :1], rows[:, -1:], fraction)
    barriers = (rows - straight).amax(-1)
    is_rounding = barriers.isfinite() & (barriers <= _ROUNDING * rows.abs().amax(-1))
    barriers = torch.where(is_rounding, 0.0, barriers)
    ax = axes_of("plot_path_values", ax, (4.8, 3.6))
    for index, (row, barrier) in enumerate(zip(rows, barriers.tolist(), strict=True)):
        name = f"barrier {barrier:.3g}" if labels is None else f"{labels[index]}: {barrier:.3g}"
        (line,) = ax.plot(position.numpy(), row.numpy(), linewidth=1.4, label=name)
        ends = [0, -1]
        color = line.get_color()
        ax.plot(position[ends].numpy(), row[ends].numpy(), "--", color=color, linewidth=0.8)
    if len(rows) <= _MOST_NAMED:
        title = None if labels is None else "barrier"
        ax.legend(title=title, edgecolor="none", framealpha=0.85)
    ax.set(xlabel="position on the path", ylabel="value")
    return open_frame(ax)


def plot_singular_values(values: Mapping[str, ArrayLike], ax: "Axes | None" = None) -> "Axes":
    """Draw singular values of weights in falling order, on a logarithmic scale.

    Lines are medians over the draws, bands hold the middle nine tenths of these.

    :param Mapping values: by label, what
        :func:`~pyro_ext.diagnostics.diversity.weight_singular_values` returns. **Shape:**
        ``(*batch, size)`` each.
    :param ax: where to draw; a new figure without it.
    :returns: the axes.
    :raises ImportError: without matplotlib; names the extra.

    Example::

        >>> ax = plot_singular_values({"first layer": torch.tensor([[4.0, 1.0], [2.0, 1.0]])})
        >>> ax.lines[0].get_ydata().tolist()
        [3.0, 1.0]
    """
    if not isinstance(values, Mapping) or not values:
        raise ValueError(f"values must hold singular values by label, got {values!r:.80}")
    by_label = {label: _floats(f"values[{label!r}]", value) for label, value in values.items()}
    for label, value in by_label.items():
        if value.dim() < 1 or not (value >= 0).all():
            raise ValueError(
                f"values[{label!r}] must have the shape (*batch, size) and no negative entry; got "
                f"the shape {tuple(value.shape)} and at least {float(value.min())}"
            )
    ax = axes_of("plot_singular_values", ax, (4.8, 3.6))
    ax.set_yscale("log")
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    for label, value in by_label.items():
        rows = value.reshape(-1, value.shape[-1])
        ranks = torch.arange(1, rows.shape[1] + 1).numpy()
        low, median, high = rows.quantile(levels, 0).numpy()
        (line,) = ax.plot(ranks, median, linewidth=1.4, label=label)
        if len(rows) > 1:
            color = line.get_color()
            ax.fill_between(ranks, low, high, color=color, alpha=0.2, linewidth=0.0)
    ax.legend(edgecolor="none", framealpha=0.85)
    ax.set(xlabel="rank", ylabel="singular value")
    return open_frame(ax)


def plot_predictive_rhat(
    r_hat: ArrayLike | Mapping[str, ArrayLike],
    thresholds: Sequence[float] = (1.01, 1.05, 1.2),
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw which fraction of the predictive probabilities has an R-hat of at most so much.

    The legend gives the fractions below the thresholds, which are dashed. Values above two are
    beyond the right edge and count as all others do; NaN are left out. Curves that end below one
    leave room for infinite values.

    :param r_hat: what :func:`~pyro_ext.diagnostics.function_space.predictive_rhat` returns, of any
        shape; or several by label.
    :param Sequence thresholds: the larger ones are older.
    :param ax: where to draw; a new figure without it.
    :returns: the axes.
    :raises ImportError: without matplotlib; names the extra.

    Example::

        >>> ax = plot_predictive_rhat(torch.tensor([1.0, 1.02, 1.1, 1.5]), thresholds=[1.05])
        >>> ax.lines[0].get_label()
        '50% below 1.05'
    """
    ax, largest = _distributions("plot_predictive_rhat", "r_hat", r_hat, thresholds, ax)
    ax.set(xlabel="R-hat", xlim=(0.98, 1.02 * max(min(largest, _LARGEST_SHOWN), *thresholds, 1.0)))
    return ax


def plot_predictive_ess(
    effective_sample_sizes: ArrayLike | Mapping[str, ArrayLike],
    thresholds: Sequence[float] = (400.0,),
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw which fraction of predictive probabilities has an effective sample size of so much.

    At most so much, as in :func:`plot_predictive_rhat`: what is left of a threshold is too little.

    :param effective_sample_sizes: what
        :func:`~pyro_ext.diagnostics.function_space.predictive_ess` returns, of any shape; or
        several by label.
    :param Sequence thresholds: by default 400, a hundred for each of four chains.
    :param ax: where to draw; a new figure without it.
    :returns: the axes.
    :raises ImportError: without matplotlib; names the extra.

    Example::

        >>> ax = plot_predictive_ess({"SGHMC": torch.tensor([100.0, 500.0, 600.0, 800.0])})
        >>> ax.lines[0].get_label()
        'SGHMC: 25% below 400'
    """
    name = "effective_sample_sizes"
    ax, _ = _distributions("plot_predictive_ess", name, effective_sample_sizes, thresholds, ax)
    ax.set(xlabel="effective sample size")
    ax.set_xlim(left=0.0)
    return ax


def _distributions(
    function: str,
    argument: str,
    values: ArrayLike | Mapping[str, ArrayLike],
    thresholds: Sequence[float],
    ax: "Axes | None",
) -> "tuple[Axes, float]":
    """Draw empirical distribution functions; return the axes and the largest finite value."""
    from pyro_ext.diagnostics.function_space import fractions_below

    curves: list[tuple[str, Tensor, dict[float, float]]] = []
    by_label = values if isinstance(values, Mapping) else {"": values}
    for label, value in by_label.items():
        name = f"{argument}[{label!r}]" if isinstance(values, Mapping) else argument
        flat = _floats(name, value).flatten()
        known = flat[~flat.isnan()].sort().values
        if not known.isfinite().any():
            raise ValueError(f"{name} must hold at least one finite number; got {len(flat)} others")
        curves.append((label, known, fractions_below(known, thresholds)))
    if not curves:
        raise ValueError(f"{argument} must hold at least one array, got none")
    ax = axes_of(function, ax, (4.8, 3.6))
    largest = 0.0
    for label, known, below in curves:
        text = ", ".join(f"{fraction:.0%} below {number:g}" for number, fraction in below.items())
        text = f"{label}: {text}" if label and text else label or text
        heights = torch.arange(len(known) + 1, dtype=torch.float64) / len(known)
        edges = torch.cat([known[:1], known])
        is_finite = edges.isfinite()
        edges, heights = edges[is_finite], heights[is_finite]
        largest = max(largest, float(edges[-1]))
        ax.step(edges.numpy(), heights.numpy(), where="post", linewidth=1.4, label=text)
    for threshold in thresholds:
        ax.axvline(threshold, color=_INK, linestyle="--", linewidth=0.8)
    corner: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0)}  # above the curves
    ax.legend(**corner, frameon=False, fontsize="small")
    ax.set(ylim=(0.0, 1.02), ylabel="fraction of points and classes")
    return open_frame(ax), largest


def _floats(argument: str, value: ArrayLike, shape: str | None = None) -> Tensor:
    """Return a checked array of numbers in double precision, on the CPU."""
    return checks.as_tensor(argument, as_numbers(argument, value).double().cpu(), shape)
