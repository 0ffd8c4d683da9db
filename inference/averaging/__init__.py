"""More than one network in one: averages of weights, paths between modes, sparse and fused nets."""

from pyro_ext.inference.averaging.alignment import align_units
from pyro_ext.inference.averaging.auto_swag import AutoSWAG
from pyro_ext.inference.averaging.bezier_path import BezierPath
from pyro_ext.inference.averaging.landscape import (
    PlaneLosses,
    TraceEstimate,
    hutchinson_trace,
    path_losses,
    plane_losses,
)
from pyro_ext.inference.averaging.soups import GreedySoup, LearnedSoup, greedy_soup, learned_soup
from pyro_ext.inference.averaging.weight_averages import (
    SWA,
    SWAG,
    SWAGState,
    swag_distribution,
    update_batch_norm,
)

__all__ = [
    "SWA",
    "SWAG",
    "AutoSWAG",
    "BezierPath",
    "GreedySoup",
    "LearnedSoup",
    "PlaneLosses",
    "SWAGState",
    "TraceEstimate",
    "align_units",
    "greedy_soup",
    "hutchinson_trace",
    "learned_soup",
    "path_losses",
    "plane_losses",
    "swag_distribution",
    "update_batch_norm",
]
