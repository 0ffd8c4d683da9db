"""Plots of martingale posteriors."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from pyro_ext._checks import check_instance, check_sequence
from pyro_ext._pyplot import axes_of
from pyro_ext.inference.martingale.martingale_posterior import MartingalePosterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_drift"]


def plot_drift(
    posterior: MartingalePosterior,
    names: Collection[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw how far a functional has moved as the population grew.

    A line for each name shows the mean absolute distance from the value on the data alone; it
    levels off where the horizon is long enough. A dashed line of the same colour shows the distance
    to the value of the last population, which falls to zero.

    :param MartingalePosterior posterior: one that has run.
    :param Collection names: of the functional's results, by default all.
    :param ax: where to draw; a new figure without it.
    :returns: the axes.
    :raises ValueError: for an unknown name.
    :raises RuntimeError: before a run, or without checks.
    :raises ImportError: without matplotlib; names the extra.

    Example::

        >>> from pyro_ext.inference.martingale import MartingalePosterior, Mean, PolyaUrn
        >>> posterior = MartingalePosterior(PolyaUrn(), Mean(), 100, 1000, progress=False)
        >>> plot_drift(posterior.run(torch.arange(10.0))).get_xscale()
        'log'
    """
    check_instance("posterior", posterior, MartingalePosterior, "a MartingalePosterior")
    if names is not None:
        check_sequence("names", names, "a list of names")
    drift = posterior.drift()
    if unknown := sorted(set(names or ()) - set(drift.from_data)):
        raise ValueError(f"names has {unknown}, but the functional gives {sorted(drift.from_data)}")
    ax = axes_of("plot_drift", ax, (5.6, 3.6))
    sizes = drift.sizes.numpy()
    for name in drift.from_data if names is None else names:
        (line,) = ax.plot(
            sizes, drift.from_data[name].cpu().numpy(), "o-", markersize=4, label=name
        )
        end = drift.to_end[name].cpu().numpy()
        ax.plot(sizes, end, "--", linewidth=1.0, color=line.get_color())
    ax.set(
        xscale="log",
        xlabel="size of the population",
        ylabel="mean absolute distance",
        title="from the data (solid), to the end (dashed)",
    )
    ax.set_ylim(bottom=0.0)
    ax.legend(edgecolor="none")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
