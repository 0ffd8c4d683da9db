"""The potential of a Pyro model as a pure function, vectorized over chains and compiled."""

from pyro_ext.potential._batched import (
    Backend,
    BatchedFunction,
    check_backend,
)
from pyro_ext.potential._capture import (
    CaptureError,
    capture,
    capture_abstract,
    value_and_gradient,
    warn_fallback,
)
from pyro_ext.potential._compilation import compile_graph
from pyro_ext.potential._distributions import bijection
from pyro_ext.potential._function import FunctionPotential
from pyro_ext.potential._layout import Layout
from pyro_ext.potential._points import PointDensities, PointPotential
from pyro_ext.potential._potential import Potential
from pyro_ext.potential._rounding import agree_but_for_rounding, outputs_agree
from pyro_ext.potential._runner import InitStrategy, init_to_prior, init_to_suggested
from pyro_ext.potential._simplify import fold_constants
from pyro_ext.potential._structure import Plate, Site
from pyro_ext.potential._weighted_function import WeightedFunction
from pyro_ext.potential._weighted_loss import Regularizer, WeightedLoss
from pyro_ext.potential._weighted_potential import WeightedPotential

__all__ = [
    "Backend",
    "BatchedFunction",
    "CaptureError",
    "FunctionPotential",
    "InitStrategy",
    "Layout",
    "Plate",
    "PointDensities",
    "PointPotential",
    "Potential",
    "Regularizer",
    "Site",
    "WeightedFunction",
    "WeightedLoss",
    "WeightedPotential",
    "agree_but_for_rounding",
    "bijection",
    "capture",
    "capture_abstract",
    "check_backend",
    "compile_graph",
    "fold_constants",
    "init_to_prior",
    "init_to_suggested",
    "outputs_agree",
    "value_and_gradient",
    "warn_fallback",
]
