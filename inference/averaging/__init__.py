"""More than one network in one: averages of weights, paths between modes, sparse and fused nets."""

from pyro_ext.inference.averaging.auto_swag import AutoSWAG
from pyro_ext.inference.averaging.pruning import MagnitudePruner, snip_scores, synflow_scores
from pyro_ext.inference.averaging.soups import (
    GreedySoup,
    LearnedSoup,
    greedy_soup,
    learned_soup,
)
from pyro_ext.inference.averaging.sparse_averages import SparseAverage, SparseWeightAveraging
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
    "GreedySoup",
    "LearnedSoup",
    "MagnitudePruner",
    "SWAGState",
    "SparseAverage",
    "SparseWeightAveraging",
    "greedy_soup",
    "learned_soup",
    "snip_scores",
    "swag_distribution",
    "synflow_scores",
    "update_batch_norm",
]
