"""Matplotlib, which plots need and nothing else."""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def load_pyplot(function: str) -> ModuleType:
    """Return ``matplotlib.pyplot``."""
    return optional_module("matplotlib.pyplot", function, "matplotlib", "plots")


def open_frame(ax: "Axes") -> "Axes":
    """Take the frame away at the top and the right."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def axes_of(
    function: str, ax: Any, size: tuple[float, float], layout: str = "constrained"
) -> "Axes":
    """Return the axes that the caller gave, or those of a new figure."""
    pyplot = load_pyplot(function)
    if ax is None:
        _, ax = pyplot.subplots(figsize=size, layout=layout)
    elif isinstance(ax, type) or not all(hasattr(ax, name) for name in ("plot", "set_xlabel")):
        raise TypeError(f"ax must be axes of Matplotlib or None, got {checks.shown(ax)}")
    axes: Axes = ax
    return axes
