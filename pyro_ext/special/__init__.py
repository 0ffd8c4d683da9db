"""Special functions in logarithms, with derivatives in every argument.

:mod:`torch.special` has incomplete gamma functions without a derivative in their first argument,
for positive first arguments, and not in logarithms. These have none of the three limits. The
incomplete gamma functions compute in float64 and return the type of their arguments. Integrals of
functions with a single peak are computed in logarithms too, whatever their width and size.
"""

from pyro_ext.special.elementary import (
    expm1mx,
    exprel,
    log1mexp,
    log1mexp_at_log,
    log1prel,
    log_exprel,
    log_sinc,
)
from pyro_ext.special.incomplete_gamma import (
    log_lower_gamma,
    log_lower_gamma_at_log,
    log_upper_gamma,
)
from pyro_ext.special.operations import in_double, opaque, where_needed
from pyro_ext.special.quadrature import (
    gauss_legendre,
    integrate_log,
    num_edges,
    panel_edges,
    panel_nodes,
    point_with_gradient,
    points_of_fall,
    sample_from_panels,
)

__all__ = [
    "expm1mx",
    "exprel",
    "gauss_legendre",
    "in_double",
    "integrate_log",
    "log1mexp",
    "log1mexp_at_log",
    "log1prel",
    "log_exprel",
    "log_lower_gamma",
    "log_lower_gamma_at_log",
    "log_sinc",
    "log_upper_gamma",
    "num_edges",
    "opaque",
    "panel_edges",
    "panel_nodes",
    "point_with_gradient",
    "points_of_fall",
    "sample_from_panels",
    "where_needed",
]
