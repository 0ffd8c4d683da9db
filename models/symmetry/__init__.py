"""Symmetries that are learned from data, and networks that hold as many as the data support."""

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
from pyro_ext.nn.generators import (
    AffineField,
    FlowTransform,
    FunctionField,
    GeneratorField,
    OneParameterGroupAugmentation,
    ScaledField,
    VectorField,
    flow,
    image_grid,
    inner_products,
)

__all__ = [
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
