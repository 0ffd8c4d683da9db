"""Valid calls of vector fields, their flows and what learns them, for :mod:`walk` to spoil."""

from functools import partial
from typing import Any

import torch

from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.models.symmetry import GeneratorLoss, simulate
from pyro_ext.nn import (
    AffineField,
    FlowTransform,
    GeneratorField,
    OneParameterGroupAugmentation,
    image_grid,
)
from tests.bad_input.walk import Call, call, of

Z = torch.randn(6, 2)
GRID = image_grid(8, 8)
WEIGHTS = torch.rand(8, 8) + 0.1
IMAGES = torch.rand(4, 1, 8, 8)
ADAM = partial(torch.optim.Adam, lr=1e-3)


def features(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)


def still(z: torch.Tensor) -> torch.Tensor:
    return 0.1 * z


def fields_of(z: torch.Tensor) -> torch.Tensor:
    return z[..., None, :]


def fields() -> dict[str, Call]:
    field = GeneratorField(2, 3, 8, 4)
    augment = OneParameterGroupAugmentation(AffineField(2), 0.1)
    transform = FlowTransform(still, 0.5)
    return {
        "VectorField": call(dim=2, n=3),
        "GeneratorField": call(dim=2, n=3, periods={0: 1.0}),
        "GeneratorField.forward": of(field, z=Z),
        "GeneratorField.each": of(field, z=torch.randn(3, 6, 2)),
        "VectorField.combination": of(field, weights=torch.randn(3)),
        "VectorField.normalized": of(field, points=GRID, weights=WEIGHTS),
        "AffineField": call(dim=2),
        "FunctionField": call(function=fields_of, dim=2, n=1),
        "ScaledField": call(field=field, scale=torch.randn(3)),
        "inner_products": call(values=torch.randn(3, 8, 8, 2), weights=WEIGHTS),
        "flow": call(field=still, z=Z),
        "FlowTransform": call(field=still),
        "FlowTransform.log_abs_det_jacobian": of(transform, x=Z, y=Z),
        "OneParameterGroupAugmentation": call(field=AffineField(2)),
        "OneParameterGroupAugmentation.forward": of(augment, x=IMAGES),
        "image_grid": call(height=8, width=8),
    }


def generators() -> dict[str, Call]:
    field = GeneratorField(2, 2, 8, 4)
    values = torch.randn(2, 8, 8, 2)

    def validity(moved: torch.Tensor, *_: Any) -> torch.Tensor:
        return moved.abs().mean((1, 2, 3))

    return {
        "ortho_loss": call(values=values, weights=WEIGHTS),
        "lipschitz_loss": call(values=values, points=GRID, grid_dim=2),
        "sobolev_loss": call(values=values),
        "warp_images": call(images=IMAGES, grid=GRID),
        "validity_images": call(features=features, images=IMAGES, grid=GRID[None]),
        "validity_images_tangent": call(features=features, images=IMAGES, velocity=GRID[None]),
        "feature_weights": call(features=features, images=IMAGES, num_windows=4),
        "train_generators": call(
            field=field,
            validity=validity,
            num_steps=1,
            batches=ShuffledBatches(IMAGES, batch_size=2),
            points=GRID,
            weights=WEIGHTS,
            loss=GeneratorLoss(flow_steps=1),
            optimizer=ADAM,
            progress=False,
        ),
        "GeneratorLoss": call(),
        "validity_scores": call(
            field=field, validity=validity, points=GRID, weights=WEIGHTS, num_times=2, flow_steps=1
        ),
    }


def equations() -> dict[str, Call]:
    solutions = simulate("kdv", 2, num_x=16, num_t=8, substeps=2, seed=0)
    return {
        "simulate": call(equation="kdv", num_solutions=1, num_t=3, substeps=2),
        "validity_pde": call(equation="kdv", points=solutions),
        "lie_generators": call(equation="kdv"),
        "learn_lie_symmetries": call(
            equation="kdv",
            solutions=solutions,
            num_steps=1,
            patch=(5, 8),
            batch_size=2,
            optimizer=ADAM,
            progress=False,
        ),
    }


TABLES = {
    "pyro_ext.nn (vector fields)": fields,
    "pyro_ext.models.symmetry (generators)": generators,
    "pyro_ext.models.symmetry (equations)": equations,
}
