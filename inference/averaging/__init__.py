"""Averages of weights, paths between modes, and sparse and fused networks."""

from pyro_ext.inference.averaging.alignment import align_units
from pyro_ext.inference.averaging.auto_swag import AutoSWAG
from pyro_ext.inference.averaging.bayesian_optimization import BayesianOptimizer
from pyro_ext.inference.averaging.bezier_path import BezierPath
from pyro_ext.inference.averaging.fusion import CheckpointCollector, FusionHistory, ModelFusion
from pyro_ext.inference.averaging.hypervolumes import (
    expected_hypervolume_improvement,
    hypervolume,
    pareto_mask,
)
from pyro_ext.inference.averaging.landscape import (
    TraceEstimate,
    hutchinson_trace,
    path_losses,
)
from pyro_ext.inference.averaging.pruning import MagnitudePruner, snip_scores, synflow_scores
from pyro_ext.inference.averaging.soups import GreedySoup, LearnedSoup, greedy_soup, learned_soup
from pyro_ext.inference.averaging.sparse_averages import SparseAverage, SparseWeightAveraging
from pyro_ext.inference.averaging.transfer_ensembles import (
    L2SP,
    FineTunedEnsemble,
    Soup,
    SWAGPrior,
    TransferEnsemble,
    soft_cross_entropy,
)
from pyro_ext.inference.averaging.weight_averages import (
    SWA,
    SWAG,
    SWAGState,
    swag_distribution,
    update_batch_norm,
)

__all__ = [
    "L2SP",
    "SWA",
    "SWAG",
    "AutoSWAG",
    "BayesianOptimizer",
    "BezierPath",
    "CheckpointCollector",
    "FineTunedEnsemble",
    "FusionHistory",
    "GreedySoup",
    "LearnedSoup",
    "MagnitudePruner",
    "ModelFusion",
    "SWAGPrior",
    "SWAGState",
    "Soup",
    "SparseAverage",
    "SparseWeightAveraging",
    "TraceEstimate",
    "TransferEnsemble",
    "align_units",
    "expected_hypervolume_improvement",
    "greedy_soup",
    "hutchinson_trace",
    "hypervolume",
    "learned_soup",
    "pareto_mask",
    "path_losses",
    "snip_scores",
    "soft_cross_entropy",
    "swag_distribution",
    "synflow_scores",
    "update_batch_norm",
]
