"""Networks: Bayesian ones with their priors as Pyro models, and attention between sets."""

from pyro_ext.nn.attention import MAB
from pyro_ext.nn.bayesian import BayesianModule
from pyro_ext.nn.classification import BayesianClassifier
from pyro_ext.nn.initialization import init_to_module
from pyro_ext.nn.networks import MLP, ResNet
from pyro_ext.nn.node_scaling import (
    NodeScale,
    asymmetric_variances,
    init_signs_,
    init_unit_variance_,
    largest_nodes,
    zipf_weights,
)
from pyro_ext.nn.normalization import FilterResponseNorm
from pyro_ext.nn.set_attention import ISAB, PMA, SAB, InducedSetAttention

__all__ = [
    "ISAB",
    "MAB",
    "MLP",
    "PMA",
    "SAB",
    "BayesianClassifier",
    "BayesianModule",
    "FilterResponseNorm",
    "InducedSetAttention",
    "NodeScale",
    "ResNet",
    "asymmetric_variances",
    "init_signs_",
    "init_to_module",
    "init_unit_variance_",
    "largest_nodes",
    "zipf_weights",
]
