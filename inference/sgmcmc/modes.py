"""Posterior modes by a quasi-Newton method over all of the data."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._checks import check_callable, check_instance, check_integer, check_tensors
from pyro_ext.potential import FunctionPotential, InitStrategy, Potential, init_to_suggested

__all__ = ["find_map", "flat_point", "minimum"]

Vector = npt.NDArray[np.float64]

_TOLERANCE = 1e-2


def find_map(
    potential: Potential,
    initial_params: Mapping[str, Tensor] | None = None,
    *,
    init_strategy: InitStrategy = init_to_suggested,
    max_iterations: int = 1000,
) -> dict[str, Tensor]:
    """Find a mode of the posterior in unconstrained space, by L-BFGS over all of the data.

    It is a mode of the density that samplers see, with the Jacobian of the transforms; for a site
    whose support is bounded it differs from the mode of the density in constrained space.

    :param Potential potential: the potential.
    :param Mapping initial_params: where to start, in constrained space. **Shape:** ``(*event)``.
    :param init_strategy: where to start otherwise, with seed zero.
    :param int max_iterations: number of iterations at most.
    :returns: the mode in constrained space. **Shape:** ``(*event)`` each.
    :raises ValueError: for arguments out of range.

    Example::

        >>> from pyro_ext.potential import Potential
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x), subsample_size=2) as index:
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])
        >>> find_map(Potential(model, torch.tensor([1.0, 2.0, 3.0])))
        {'loc': tensor(1.5000)}
    """
    check_instance("potential", potential, Potential, "a Potential")
    check_callable("init_strategy", init_strategy)
    check_integer("max_iterations", max_iterations, 1)
    if initial_params is None:
        batched = potential.init_chains(range(1), 0, init_strategy)
        start = potential.layout.flatten(batched)[0]
    else:
        start = flat_point(potential, initial_params, "initial_params")
    position = minimum(potential, start, max_iterations)
    return potential.constrain(potential.layout.unflatten(position))


def flat_point(potential: Potential, params: Mapping[str, Tensor], argument: str) -> Tensor:
    """A point in constrained space as a flat unconstrained vector.

    :param Potential potential: the potential.
    :param Mapping params: value of each latent site. **Shape:** ``(*event)``.
    :param str argument: how the caller names them.
    :returns: **Shape:** ``(size,)``.
    :raises ValueError: where a site is missing, a shape does not fit, or the potential is not
        finite.
    """
    params = check_tensors(argument, params)
    if missing := set(potential.sites) - set(params):
        raise ValueError(f"{argument} lacks the latent sites {sorted(missing)}")
    for name, site in potential.sites.items():
        if params[name].shape != site.shape:
            raise ValueError(
                f"{argument}[{name!r}] has shape {tuple(params[name].shape)}, wanted "
                f"{tuple(site.shape)}"
            )
    unconstrained = potential.unconstrain(params)
    batched = {name: value[None] for name, value in unconstrained.items()}
    value = potential.full_value_and_grad(batched)[0]
    if not torch.isfinite(value).all():
        raise ValueError(
            f"{argument} has the potential {float(value)}: do its values lie in the supports of "
            "their sites?"
        )
    return potential.layout.flatten(unconstrained)


def minimum(
    potential: Potential | FunctionPotential, start: Tensor, max_iterations: int = 1000
) -> Tensor:
    """Find a minimum of a potential over all of the data.

    :param potential: the potential.
    :param Tensor start: a flat vector of unconstrained values at which the potential is finite.
        **Shape:** ``(size,)``.
    :param int max_iterations: number of iterations at most.
    :returns: the minimum. **Shape:** ``(size,)``.
    """
    from scipy.optimize import minimize  # slow to import

    result = minimize(
        _Objective(potential),
        start.double().cpu().numpy(),
        method="L-BFGS-B",
        jac=True,
        # In single precision a search gets stuck in rounding before smaller changes.
        options={"maxiter": max_iterations, "ftol": 16 * torch.finfo(start.dtype).eps},
    )
    if not _is_near_minimum(result):
        warnings.warn(
            f"the search for a posterior mode did not converge in {result.nit} iterations "
            f"({result.message}); the potential there is {result.fun:.6g}",
            stacklevel=2,
        )
    return torch.from_numpy(result.x).to(start)


class _Objective:
    """Potential and gradient over all of the data, in double precision.

    Where they are not finite, a slope takes their place that rises as steeply as the potential
    falls at the lowest point so far, so that the line search steps back by a moderate factor.
    """

    def __init__(self, potential: Potential | FunctionPotential) -> None:
        self._potential = potential
        self._lowest: tuple[float, Vector, Vector] | None = None

    def __call__(self, vector: Vector) -> tuple[float, Vector]:
        layout = self._potential.layout
        flat = torch.from_numpy(vector).to(layout.device, layout.dtype)
        values, slopes = self._potential.full_value_and_grad(layout.unflatten(flat[None]))
        value = values.item()
        gradient = layout.flatten(slopes)[0].double().cpu().numpy()
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            assert self._lowest is not None
            value, place, downhill = self._lowest
            return value - float(downhill @ (vector - place)), -downhill
        if self._lowest is None or value < self._lowest[0]:
            self._lowest = (value, vector.copy(), gradient)
        return value, gradient


def _is_near_minimum(result: Any) -> bool:
    """Whether the potential would hardly fall any more, by the curvature that the search saw."""
    decrease = 0.5 * result.jac @ (result.hess_inv @ result.jac)
    return bool(result.success or decrease < _TOLERANCE)
