"""Masses of parameters: a number, numbers by site, or the curvature of the posterior."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.posterior.modes import Laplace
from pyro_ext.potential import FunctionPotential, Potential

Mass: TypeAlias = float | Mapping[str, float | Tensor] | Tensor | Literal["laplace"]
"""A number, numbers or tensors of unconstrained shape by pattern of site names, a tensor for the
flat vector of all parameters, or ``"laplace"``: second derivatives of the potential at its mode, so
that steps are in units of the posterior's standard deviations."""

_GRID = 8.0


def check_mass(mass: Any) -> Mass:
    """Return the mass, or raise if it is invalid."""
    if isinstance(mass, str):
        if mass != "laplace":
            raise ValueError(
                "mass must be a positive number, numbers or tensors by site, a tensor, or "
                f"'laplace', got {mass!r}"
            )
        return "laplace"
    if not isinstance(mass, Mapping):
        return _positive("mass", mass)
    if not mass:
        raise ValueError("mass must hold a number or a tensor by site, got an empty mapping")
    for name, value in mass.items():
        _positive(f"mass[{name!r}]", value)
    return mass


def smallest_mass(mass: Mass) -> float:
    """The smallest of given numbers."""
    values = mass.values() if isinstance(mass, Mapping) else [mass]
    return min(float(torch.as_tensor(value).min()) for value in values)


def mass_of(
    potential: Potential | FunctionPotential, mass: Mass, laplace: Laplace | None
) -> float | Tensor:
    """One mass for all parameters, or one for each."""
    layout = potential.layout
    if isinstance(mass, str):
        assert laplace is not None
        # On a grid, so that rounding, which may differ in another process, leaves draws alone.
        logarithms = (_GRID * laplace.hessian.diagonal().log2()).round() / _GRID
        return torch.exp2(logarithms).to(layout.device, layout.dtype)
    if isinstance(mass, Mapping):
        return layout.expand(mass, "mass")
    if isinstance(mass, Tensor):
        if mass.dim() > 0 and mass.shape != (layout.size,):
            raise ValueError(
                f"mass must have the shape ({layout.size},) of all unconstrained parameters of "
                f"{list(layout.shapes)}, got {tuple(mass.shape)}"
            )
        return mass.to(layout.device, layout.dtype).expand(layout.size).clone()
    return mass


def _positive(argument: str, value: Any) -> float | Tensor:
    if not isinstance(value, Tensor):
        return checks.number(argument, value, above=0)
    if not value.is_floating_point() or not bool(((value > 0) & value.isfinite()).all()):
        raise ValueError(f"{argument} must hold finite numbers > 0, got {value!r:.80}")
    return value
