"""Pages of papers, one script each, and the published kernel of one of them."""

from typing import Any

__all__ = ["PublishedTreeGuided"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: listing the pages needs no PyTorch."""
    if name in __all__:
        from pyro_ext.tutorials.papers._tgmcmc_moves import PublishedTreeGuided

        return PublishedTreeGuided
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
