"""Extrapolation of scaling curves: a prior, laws with few parameters, and a pretrained network.

D. Lee, D. B. Lee, S. Adriaensen, J. Lee, S. J. Hwang, F. Hutter, S. J. Kim, H. B. Lee (2025),
Bayesian neural scaling law extrapolation with prior-data fitted networks.
"""

from pyro_ext.models.scaling_laws.extrapolation import (
    Extrapolation,
    extrapolate,
    pretrained_network,
    read_curve,
)
from pyro_ext.models.scaling_laws.laws import LAWS, ScalingLaw
from pyro_ext.models.scaling_laws.prior import (
    FAMILIES,
    SMALLEST_SIZE,
    sample_scaling_curves,
    scaling_curve_prior,
    scaling_grid,
)

__all__ = [
    "FAMILIES",
    "LAWS",
    "SMALLEST_SIZE",
    "Extrapolation",
    "ScalingLaw",
    "extrapolate",
    "pretrained_network",
    "read_curve",
    "sample_scaling_curves",
    "scaling_curve_prior",
    "scaling_grid",
]
