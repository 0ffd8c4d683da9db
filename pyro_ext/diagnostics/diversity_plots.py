"""Plots that show whether the chains of a Bayesian network agree in their predictions.

They plot the results of :mod:`pyro_ext.diagnostics.function_space`.
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

__all__ = ["plot_predictive_ess", "plot_predictive_rhat"]

_INK = "#444444"
_LARGEST_SHOWN = 2.0


def plot_predictive_rhat(
    r_hat: ArrayLike | Mapping[str, ArrayLike],
    thresholds: Sequence[float] = (1.01, 1.05, 1.2),
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot the empirical distribution function of R-hat over predictive probabilities.

    Dashed lines mark the thresholds, and the legend gives the fractions below them. Values above
    two lie beyond the right edge but count toward the fractions; NaN do not. If there are infinite
    values, a curve ends below one.

    :param r_hat: the result of :func:`~pyro_ext.diagnostics.function_space.predictive_rhat`, of any
        shape; or a mapping from labels to several results.
    :param Sequence thresholds: values of R-hat to mark. The larger defaults are older conventions.
    :param ax: the axes to draw on; a new figure by default.
    :returns: the axes.
    :raises ImportError: if matplotlib is missing; the message names the extra to install.

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
    """Plot the empirical distribution function of effective sample sizes.

    It works like :func:`plot_predictive_rhat`. Values to the left of a threshold are too small.

    :param effective_sample_sizes: the result of
        :func:`~pyro_ext.diagnostics.function_space.predictive_ess`, of any shape; or a mapping from
        labels to several results.
    :param Sequence thresholds: sizes to mark. Default: 400, a hundred for each of four chains.
    :param ax: the axes to draw on; a new figure by default.
    :returns: the axes.
    :raises ImportError: if matplotlib is missing; the message names the extra to install.

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
        flat = checks.as_tensor(name, as_numbers(name, value).double().cpu()).flatten()
        known = flat[~flat.isnan()].sort().values
        if not known.isfinite().any():
            raise ValueError(
                f"{name} must contain at least one finite number; got {len(flat)} others"
            )
        curves.append((label, known, fractions_below(known, thresholds)))
    if not curves:
        raise ValueError(f"{argument} must contain at least one array, got none")
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
