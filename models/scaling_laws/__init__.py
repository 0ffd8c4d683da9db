"""Extrapolation of scaling curves, with networks that have learned a prior."""

from pyro_ext.models.scaling_laws.prior import (
    FAMILIES,
    SMALLEST_SIZE,
    sample_scaling_curves,
    scaling_curve_prior,
    scaling_grid,
)

__all__ = [
    "FAMILIES",
    "SMALLEST_SIZE",
    "sample_scaling_curves",
    "scaling_curve_prior",
    "scaling_grid",
]
