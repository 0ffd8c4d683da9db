"""Matplotlib, which plots need and nothing else."""

from types import ModuleType

from pyro_ext._optional import optional_module

__all__ = ["load_pyplot"]


def load_pyplot(function: str) -> ModuleType:
    """Return ``matplotlib.pyplot``.

    :param str function: name of the function that needs it.
    :raises ImportError: without matplotlib; names the extra.
    """
    return optional_module("matplotlib.pyplot", function, "matplotlib", "plots")
