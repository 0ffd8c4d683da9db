"""Symmetries learned from data, and networks with as much symmetry as the data support."""

from pyro_ext.models.symmetry.axial_pde import XMPP, XCViT
from pyro_ext.models.symmetry.equations import (
    EQUATIONS,
    lie_generators,
    simulate,
    validity_pde,
)
from pyro_ext.models.symmetry.generators import (
    GeneratorLoss,
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
from pyro_ext.models.symmetry.soft_equivariance import EquivarianceTuner, SoftEMLP, SoftEMLPFit
from pyro_ext.models.symmetry.transport import kernel_fields, transport_fields, transport_step
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
    "EQUATIONS",
    "XMPP",
    "AffineField",
    "EquivarianceTuner",
    "FlowTransform",
    "FunctionField",
    "GeneratorField",
    "GeneratorLoss",
    "LieSymmetries",
    "OneParameterGroupAugmentation",
    "ScaledField",
    "SoftEMLP",
    "SoftEMLPFit",
    "VectorField",
    "XCViT",
    "feature_weights",
    "flow",
    "image_grid",
    "inner_products",
    "kernel_fields",
    "learn_lie_symmetries",
    "lie_generators",
    "lipschitz_loss",
    "ortho_loss",
    "simulate",
    "sobolev_loss",
    "train_generators",
    "transport_fields",
    "transport_step",
    "validity_images",
    "validity_images_tangent",
    "validity_pde",
    "validity_scores",
    "warp_images",
]
