"""Network blocks: Bayesian networks, ensembles, set attention, adapters and mean teachers."""

from pyro_ext.nn.attention import ISAB, MAB, PMA, SAB, InducedSetAttention
from pyro_ext.nn.batch_ensemble import BatchEnsemble, BatchEnsembleConv2d, BatchEnsembleLinear
from pyro_ext.nn.bayesian import BayesianClassifier, BayesianModule, init_to_module
from pyro_ext.nn.equivariant import (
    EquivariantBilinear,
    GatedNonlinearity,
    SoftEquivariantLinear,
    equivariance_error,
    equivariance_residuals,
    project_weights_,
)
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
from pyro_ext.nn.lora import LoRALinear, add_lora, lora_layers
from pyro_ext.nn.lora_files import load_lora, save_lora
from pyro_ext.nn.mean_teacher import (
    MeanTeacher,
    TeacherDecomposition,
    teacher_gradient_decomposition,
)
from pyro_ext.nn.networks import MLP, FilterResponseNorm, ResNet
from pyro_ext.nn.node_scaling import (
    NodeScale,
    asymmetric_variances,
    largest_nodes,
    zipf_weights,
)

__all__ = [
    "ISAB",
    "MAB",
    "MLP",
    "PMA",
    "SAB",
    "AffineField",
    "BatchEnsemble",
    "BatchEnsembleConv2d",
    "BatchEnsembleLinear",
    "BayesianClassifier",
    "BayesianModule",
    "EquivariantBilinear",
    "FilterResponseNorm",
    "FlowTransform",
    "FunctionField",
    "GatedNonlinearity",
    "GeneratorField",
    "InducedSetAttention",
    "LoRALinear",
    "MeanTeacher",
    "NodeScale",
    "OneParameterGroupAugmentation",
    "ResNet",
    "ScaledField",
    "SoftEquivariantLinear",
    "TeacherDecomposition",
    "VectorField",
    "add_lora",
    "asymmetric_variances",
    "equivariance_error",
    "equivariance_residuals",
    "flow",
    "image_grid",
    "init_to_module",
    "inner_products",
    "largest_nodes",
    "load_lora",
    "lora_layers",
    "project_weights_",
    "save_lora",
    "teacher_gradient_decomposition",
    "zipf_weights",
]
