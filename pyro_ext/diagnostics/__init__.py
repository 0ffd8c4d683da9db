"""Diagnostics: conversion to ArviZ, calibration, predictive metrics, partitions, graphs and plots.

Names are resolved when they are first used, so that importing this package imports neither ArviZ
nor matplotlib.

Example::

    >>> from pyro_ext import diagnostics
    >>> diagnostics.metrics.nll.__name__
    'nll'
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_ext.diagnostics import (
        diversity,
        diversity_plots,
        function_space,
        metrics,
        partitions,
        plots,
        ranking,
        sets,
    )
    from pyro_ext.diagnostics.arviz_conversion import to_arviz
    from pyro_ext.diagnostics.calibration import SBCResult, sbc
    from pyro_ext.diagnostics.graphs import graph_mmd
    from pyro_ext.diagnostics.importance import GuideWeights, psis
    from pyro_ext.diagnostics.nested import nested_rhat
    from pyro_ext.diagnostics.recalibration import IsotonicRecalibrator

__all__ = [
    "GuideWeights",
    "IsotonicRecalibrator",
    "SBCResult",
    "diversity",
    "diversity_plots",
    "function_space",
    "graph_mmd",
    "metrics",
    "nested_rhat",
    "partitions",
    "plots",
    "psis",
    "ranking",
    "sbc",
    "sets",
    "to_arviz",
]

# Where a name lives that is not a module itself.
_HOMES = {
    "GuideWeights": "importance",
    "IsotonicRecalibrator": "recalibration",
    "SBCResult": "calibration",
    "graph_mmd": "graphs",
    "nested_rhat": "nested",
    "psis": "importance",
    "sbc": "calibration",
    "to_arviz": "arviz_conversion",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
    value = getattr(module, name) if name in _HOMES else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the names that are there and those that are yet to be imported."""
    return sorted({*globals(), *__all__})
