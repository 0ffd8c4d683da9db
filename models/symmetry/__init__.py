"""Symmetries that are learned from data, and networks that hold as many as the data support."""

from pyro_ext.models.symmetry.equations import (
    EQUATIONS,
    Equation,
    dirichlet_kernel,
    lie_generators,
    principal_cosines,
    regrid,
    scattered_derivatives,
    simulate,
    validity_pde,
)
from pyro_ext.models.symmetry.generators import (
    feature_weights,
    lipschitz_loss,
    ortho_loss,
    sobolev_loss,
    train_generators,
    validity_images,
    validity_images_tangent,
    validity_scores,
    warp_images,
)
from pyro_ext.models.symmetry.lie_symmetries import LieSymmetries, learn_lie_symmetries
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

__all__ = [
    "learn_lie_symmetries",
    "LieSymmetries",
    "validity_pde",
    "simulate",
    "scattered_derivatives",
    "regrid",
    "principal_cosines",
    "lie_generators",
    "dirichlet_kernel",
    "Equation",
    "EQUATIONS",
    "AffineField",
    "FlowTransform",
    "FunctionField",
    "GeneratorField",
    "OneParameterGroupAugmentation",
    "ScaledField",
    "VectorField",
    "feature_weights",
    "flow",
    "image_grid",
    "inner_products",
    "lipschitz_loss",
    "ortho_loss",
    "sobolev_loss",
    "train_generators",
    "validity_images",
    "validity_images_tangent",
    "validity_scores",
    "warp_images",
]
