"""The potential of a Pyro model as a pure function, vectorized over chains and compiled."""

from pyro_ext.potential._graph_passes import constants_of, fold_constants
from pyro_ext.potential.batched import (
    Backend,
    BatchedFunction,
    agree_but_for_rounding,
    check_backend,
    outputs_agree,
)
from pyro_ext.potential.compilation import CompiledGraph, compile_graph
from pyro_ext.potential.enumeration import sum_out
from pyro_ext.potential.evaluation import bijection
from pyro_ext.potential.graph_capture import (
    CaptureError,
    capture,
    capture_abstract,
    value_and_gradient,
    warn_fallback,
)
from pyro_ext.potential.layout import Layout
from pyro_ext.potential.potential import FunctionPotential, Potential
from pyro_ext.potential.rows import PointDensities, PointPotential
from pyro_ext.potential.runner import InitStrategy, init_to_prior, init_to_suggested
from pyro_ext.potential.structure import Plate, Site
from pyro_ext.potential.weighted import (
    Regularizer,
    WeightedFunction,
    WeightedLoss,
    WeightedPotential,
)

__all__ = [
    "Backend",
    "BatchedFunction",
    "CaptureError",
    "CompiledGraph",
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
    "constants_of",
    "fold_constants",
    "init_to_prior",
    "init_to_suggested",
    "outputs_agree",
    "sum_out",
    "value_and_gradient",
    "warn_fallback",
]
