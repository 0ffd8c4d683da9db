"""Laplace approximation of a posterior, over all of the data: for masses, and for starts of chains.

Second derivatives are differences of gradients half a standard deviation away on both sides, so
that they are the curvature which the posterior has on its own scale, whatever the units of its
parameters, and so that the rounding of a sum over many data does not drown them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.inference._curvature import whitening_factor
from pyro_ext.inference._hamiltonian import finite_starts
from pyro_ext.inference.sgmcmc.control_variates import Anchor, anchor_at
from pyro_ext.inference.sgmcmc.modes import minimum
from pyro_ext.potential import FunctionPotential, Potential
from pyro_ext.random import chain_keys, normal

__all__ = ["Laplace", "dispersed_starts", "laplace_at"]

_MOST_PARAMETERS = 2000
_MOST_ROUNDS = 12
_DISTANCE = 0.5
_NEAR = (0.2, 1.2)
_MOST_CHANGE = 100.0
_MOST_DECREMENT = 1.0
_MOST_CORRELATION = 1.5  # one, and room for rounding and for tails that are not Gaussian
_INFLATION = 2.0
_STREAM_OF_STARTS = 2


class Laplace(NamedTuple):
    """A mode and the second derivatives of the potential there.

    :param Anchor mode: the mode.
    :param Tensor hessian: **Shape:** ``(size, size)``.
    """

    mode: Anchor
    hessian: Tensor


def laplace_at(potential: Potential | FunctionPotential, start: Tensor, argument: str) -> Laplace:
    """Find a mode of a posterior and its curvature.

    It takes some dozens of gradients over all of the data, and about six for each parameter.

    :param potential: the potential.
    :param Tensor start: where the search starts, unconstrained. **Shape:** ``(size,)``.
    :param str argument: what asks for it, such as ``"mass='laplace'"``.
    :returns: the approximation.
    :raises ValueError: for more than 2000 parameters, and where there is no mode with a positive
        curvature along each parameter.

    Example::

        >>> from pyro_ext.potential import Potential
        >>> def model():
        ...     pyro.sample("x", dist.Normal(3.0, 10.0))
        >>> laplace = laplace_at(Potential(model), torch.zeros(1), "mass='laplace'")
        >>> round(float(laplace.hessian), 4)
        0.01
    """
    layout = potential.layout
    if layout.size > _MOST_PARAMETERS:
        raise ValueError(
            f"{argument} takes second derivatives of at most {_MOST_PARAMETERS} parameters, and "
            f"the model has {layout.size}"
        )
    mode = anchor_at(potential, minimum(potential, start))
    distances = 0.01 * mode.position.abs().clamp(min=1.0)
    for _ in range(_MOST_ROUNDS):
        hessian = _differences(potential, mode.position, distances)
        curvature = hessian.diagonal().nan_to_num(nan=torch.inf)
        # In standard deviations; where there is no curvature to be seen, go further.
        reached = distances * curvature.clamp(min=0.0).sqrt()
        if bool(((reached >= _NEAR[0]) & (reached <= _NEAR[1])).all()):
            break
        change = _DISTANCE / reached
        distances = distances * change.clamp(1.0 / _MOST_CHANGE, _MOST_CHANGE)
    hessian = 0.5 * (hessian + hessian.mT)
    curvature = hessian.diagonal()
    bad = ~(curvature > 0) | ~hessian.isfinite().all(-1)
    # How far a step of Newton's method would go along a parameter, in standard deviations.
    bad |= mode.gradient.square() > _MOST_DECREMENT * curvature
    # Derivatives with these are not positive definite.
    unit = curvature.clamp(min=torch.finfo(curvature.dtype).tiny).rsqrt()
    bad |= (unit[:, None] * hessian * unit).abs().amax(-1) > _MOST_CORRELATION
    if bool(bad.any()):
        names = [name for name in layout.shapes if bool(bad[list(layout.columns(name))].any())]
        raise ValueError(
            f"{argument} wants a mode of the posterior with a positive curvature, and the search "
            f"came to none at {names}. Scales of groups have none where the data say little of "
            "them: give numbers by site instead, or write the model with LocScaleReparam"
        )
    return Laplace(mode, hessian)


def dispersed_starts(
    potential: Potential | FunctionPotential, laplace: Laplace, numbers: Sequence[int], seed: int
) -> dict[str, Tensor]:
    """Draw starts from the approximation with twice its standard deviations.

    :param potential: the potential.
    :param Laplace laplace: its approximation.
    :param Sequence numbers: numbers of the chains; a start follows from the seed and the number.
    :param int seed: a non-negative integer.
    :returns: in unconstrained space; the mode in place of points at which there is no density.
        **Shape:** ``(num_chains, *event)`` each.
    """
    layout, center = potential.layout, laplace.mode.position
    resolution = len(center) * torch.finfo(center.dtype).eps
    factor = whitening_factor(laplace.hessian.double(), resolution).to(center)
    keys = chain_keys(seed, numbers, center.device)
    step = torch.zeros((), dtype=torch.int64, device=center.device)
    noise = normal(keys, step, len(center), stream=_STREAM_OF_STARTS, dtype=center.dtype)

    def value_and_gradient(flat: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = potential.full_value_and_grad(layout.unflatten(flat))
        return value, layout.flatten(gradient)

    starts = center + _INFLATION * noise @ factor.mT
    return layout.unflatten(finite_starts(starts, value_and_gradient, center)[0])


def _differences(
    potential: Potential | FunctionPotential, position: Tensor, distances: Tensor
) -> Tensor:
    """Differences of gradients along each parameter. **Shape:** ``(size, size)``."""
    layout = potential.layout
    offsets = distances.diag()
    points = torch.cat([position + offsets, position - offsets])
    _, gradients = potential.full_value_and_grad(layout.unflatten(points))
    above, below = layout.flatten(gradients).chunk(2)
    # What the offsets came to in the numbers of the positions.
    lengths = (points[: len(position)] - points[len(position) :]).diagonal()
    return (above - below) / lengths[:, None]
