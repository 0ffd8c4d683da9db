"""Hyperparameters of several shapes that broadcast together."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from pyro_ext._checks import as_parameter

__all__ = ["broadcast_hyperparameters"]


def broadcast_hyperparameters(
    owner: str, parameters: Mapping[str, Any], event_dims: Mapping[str, int]
) -> tuple[dict[str, Tensor], torch.Size, int]:
    """Hyperparameters in one type and of one batch shape, that shape, and the size of a point.

    A number stands for a vector of equal entries, never for a matrix.
    """
    parameters = {name: as_parameter(name, value) for name, value in parameters.items()}
    given = [value for value in parameters.values() if isinstance(value, Tensor)]
    dtype = reduce(torch.promote_types, (value.dtype for value in given), torch.bool)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    device = given[0].device if given else None
    tensors = {
        name: torch.as_tensor(value, dtype=dtype, device=device)
        for name, value in parameters.items()
    }
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    sizes = {shape[-1:] for name, shape in shapes.items() if event_dims[name]} - {()}
    sizes |= {shape[-2:-1] for name, shape in shapes.items() if event_dims[name] == 2}
    wrong = [shape for name, shape in shapes.items() if event_dims[name] > max(1, len(shape))]
    if len(sizes - {(1,)}) > 1 or not sizes or wrong:
        wanted = ", ".join(
            f"{name} {'(*batch' + ', d' * k + ')'}" for name, k in event_dims.items()
        )
        raise ValueError(f"{owner} takes the shapes {wanted}, got {shapes}")
    (size,) = max(sizes)
    batch_shapes = (
        value.shape[: max(0, value.dim() - event_dims[name])] for name, value in tensors.items()
    )
    try:
        batch_shape = torch.broadcast_shapes(*batch_shapes)
    except RuntimeError:
        raise ValueError(f"hyperparameters of {owner} do not broadcast, got {shapes}") from None
    expanded = {
        name: value.expand(batch_shape + (size,) * event_dims[name])
        for name, value in tensors.items()
    }
    return expanded, batch_shape, size
