"""Matplotlib, which plots need and nothing else."""

from types import ModuleType

__all__ = ["load_pyplot"]


def load_pyplot(function: str) -> ModuleType:
    """Return ``matplotlib.pyplot``.

    :param str function: name of the function that needs it.
    :raises ImportError: without matplotlib; names the extra.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            f"{function} needs matplotlib; install it with: pip install 'pyro-ext[plots]'"
        ) from error
    return pyplot
