"""Special functions in logarithms, with derivatives in every argument.

The incomplete gamma functions of :mod:`torch.special` have no derivative in their first argument,
require it to be positive, and do not return logarithms. Those of this package have none of these
limitations; they compute in float64 and return the type of their arguments. Integrals of functions
with a single peak are also computed in logarithms, whatever their width and size.
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
