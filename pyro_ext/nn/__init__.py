"""Networks: Bayesian ones as Pyro models, many in one, attention between sets, adapters."""

from pyro_ext.nn.attention import ISAB, MAB, PMA, SAB, InducedSetAttention
from pyro_ext.nn.batch_ensemble import BatchEnsemble, BatchEnsembleConv2d, BatchEnsembleLinear
from pyro_ext.nn.bayesian import BayesianClassifier, BayesianModule, init_to_module
from pyro_ext.nn.flows import FlowTransform, OneParameterGroupAugmentation, flow
from pyro_ext.nn.generators import (
    AffineField,
    FunctionField,
    GeneratorField,
    ScaledField,
    VectorField,
    image_grid,
    inner_products,
)
from pyro_ext.nn.lora import LoRALinear, add_lora, lora_layers, merge_lora
from pyro_ext.nn.lora_files import load_lora, save_lora
from pyro_ext.nn.networks import MLP, FilterResponseNorm, ResNet
from pyro_ext.nn.node_scaling import (
    NodeScale,
    asymmetric_variances,
    init_signs_,
    init_unit_variance_,
    largest_nodes,
    zipf_weights,
)

__all__ = [
    "ISAB",
    "MAB",
    "MLP",
    "PMA",
    "SAB",
    "BatchEnsemble",
    "BatchEnsembleConv2d",
    "BatchEnsembleLinear",
    "BayesianClassifier",
    "BayesianModule",
    "FilterResponseNorm",
    "InducedSetAttention",
    "LoRALinear",
    "NodeScale",
    "ResNet",
    "add_lora",
    "asymmetric_variances",
    "init_signs_",
    "init_to_module",
    "init_unit_variance_",
    "largest_nodes",
    "load_lora",
    "lora_layers",
    "merge_lora",
    "save_lora",
    "AffineField",
    "FlowTransform",
    "FunctionField",
    "GeneratorField",
    "OneParameterGroupAugmentation",
    "ScaledField",
    "VectorField",
    "flow",
    "image_grid",
    "inner_products",
    "zipf_weights",
]
