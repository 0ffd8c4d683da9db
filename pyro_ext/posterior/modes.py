"""Modes of posteriors, their second derivatives, and starts of chains around them.

A quasi-Newton method searches for a mode, using all of the data. Second derivatives are differences
of gradients, so a posterior needs to provide only gradients.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.potential import FunctionPotential, InitStrategy, Potential, init_to_suggested
from pyro_ext.potential.arguments import named_arguments
from pyro_ext.potential.control_variates import Anchor, anchor_at
from pyro_ext.random import chain_keys, normal

ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps positions ``(num_points, size)`` to values ``(num_points,)`` and gradients."""

_TOLERANCE = 1e-2
_ROUNDING = 16.0  # rounding of a potential, in units of the last place
_MOST_NEWTON_STEPS = 8
_NUM_LENGTHS = 8
_MOST_LEFT = 0.01  # squared distance to the mode in standard deviations
_ROUNDS = 16
"""Each halves the logarithms of what is left; this many balance any scales of double precision."""
_MOST_PARAMETERS = 2000
_MOST_ROUNDS = 12
_DISTANCE = 0.5
_NEAR = (0.2, 1.2)
_MOST_CHANGE = 100.0
_MOST_DECREMENT = 1.0
_MOST_CORRELATION = 1.5  # one, and room for rounding and for tails that are not Gaussian
_INFLATION = 2.0
_STREAM_OF_STARTS = 2
_MOST_ITERATIONS = 1000
HISTORY = 20  # steps of a path from which second derivatives are known

Vector = npt.NDArray[np.float64]


def find_map(
    potential: Potential,
    initial_params: Mapping[str, Tensor] | None = None,
    *,
    init_strategy: InitStrategy = init_to_suggested,
) -> dict[str, Tensor]:
    """Find a mode of the posterior in unconstrained space, by L-BFGS over all of the data.

    It is a mode of the density that samplers use, which includes the Jacobian of the transforms.
    For a site with a bounded support, it differs from the mode of the density in constrained space.

    :param Potential potential: the potential.
    :param Mapping initial_params: where to start, in constrained space. **Shape:** ``(*event)``
        each.
    :param init_strategy: where to start without ``initial_params``, with seed zero.
    :returns: the mode, in constrained space. **Shape:** ``(*event)`` each.
    :raises ValueError: if arguments are out of range.

    Example::

        >>> from pyro_ext.potential import Potential
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x), subsample_size=2) as index:
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])
        >>> find_map(Potential(model, torch.tensor([1.0, 2.0, 3.0])))
        {'loc': tensor(1.5000)}
    """
    checks.instance("potential", potential, Potential, "a Potential")
    checks.function("init_strategy", init_strategy)
    if initial_params is None:
        batched = potential.init_chains(range(1), 0, init_strategy)
        start = potential.layout.flatten(batched)[0]
    else:
        start = flat_point(potential, initial_params, "initial_params")
    position = minimum(potential, start)
    return potential.constrain(potential.layout.unflatten(position))


def flat_point(potential: Potential, params: Mapping[str, Tensor], argument: str) -> Tensor:
    """A point in constrained space as a flat unconstrained vector.

    Shapes: params (*event); returns (size,).
    """
    params = checks.tensors(argument, params)
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
            f"{argument} has the potential {float(value)}: check that its values lie in the "
            "supports of their sites"
        )
    return potential.layout.flatten(unconstrained)


def minimum(potential: Potential | FunctionPotential, start: Tensor) -> Tensor:
    """Find a minimum of a potential over all of the data, and warn if there is none.

    Shapes: start, returns (size,).
    """
    position, result = search(potential, start)
    if not _is_near_minimum(result):
        warnings.warn(
            f"the search for a posterior mode did not converge in {result.nit} iterations "
            f"({result.message}); the potential there is {result.fun:.6g}",
            stacklevel=2,
        )
    return position


def search(potential: Potential | FunctionPotential, start: Tensor) -> tuple[Tensor, Any]:
    """Search for a minimum of a potential; returns the point, and SciPy's result.

    Shapes: start, returns (size,).
    """
    from scipy.optimize import minimize  # slow to import

    result = minimize(
        _Objective(potential),
        start.double().cpu().numpy(),
        method="L-BFGS-B",
        jac=True,
        # In single precision a search gets stuck in rounding before smaller changes.
        options={"maxiter": _MOST_ITERATIONS, "ftol": _ROUNDING * torch.finfo(start.dtype).eps},
    )
    return torch.from_numpy(result.x).to(start), result


def follow(potential: Potential, start: Tensor, take: Callable[[Vector, Vector], bool]) -> None:
    """Move toward a minimum, and pass on each point with its gradient, until told to stop.

    Shapes: start (size,).
    """
    from scipy.optimize import minimize  # slow to import

    objective = _Objective(potential)
    last: list[Vector] = []

    def function(vector: Vector) -> tuple[float, Vector]:
        value, gradient = objective(vector)
        if not last:
            take(vector.copy(), gradient)
        last[:] = vector.copy(), gradient
        return value, gradient

    def accepted(vector: Vector) -> None:
        # The search accepts the last point that it has looked at.
        if np.array_equal(last[0], vector) and take(*last):
            raise StopIteration

    eps = torch.finfo(start.dtype).eps
    minimize(
        function,
        start.double().cpu().numpy(),
        method="L-BFGS-B",
        jac=True,
        callback=accepted,
        options={"maxiter": _MOST_ITERATIONS, "maxcor": HISTORY, "ftol": _ROUNDING * eps},
    )


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
            if self._lowest is None:
                self._refuse(value)
            value, lowest, downhill = self._lowest
            return value - float(downhill @ (vector - lowest)), -downhill
        if self._lowest is None or value < self._lowest[0]:
            self._lowest = (value, vector.copy(), gradient)
        return value, gradient

    def _refuse(self, value: float) -> NoReturn:
        potential = self._potential
        if not isinstance(potential, Potential):
            raise ValueError(
                "initial_params must have a finite potential and gradient, got the potential "
                f"{value}"
            )
        with named_arguments(potential.model, potential.args, potential.kwargs):
            raise ValueError(
                f"the search for a mode starts where the potential over all of the data is {value} "
                "or its gradient is not finite. If the data are right, check the scale of the "
                "prior and the initialization (init_strategy or initial_params)"
            )


def _is_near_minimum(result: Any) -> bool:
    """Tell whether the potential would hardly decrease, by the curvature that the search saw."""
    decrease = 0.5 * result.jac @ (result.hess_inv @ result.jac)
    return bool(result.success or decrease < _TOLERANCE)


def whitening_factor(hessian: Tensor, resolution: float) -> Tensor:
    r"""Factor of the inverse of second derivatives, whose signs do not matter.

    With second derivatives :math:`H = V \operatorname{diag}(c) V^T` it is a :math:`F` with
    :math:`F F^T = V \operatorname{diag}(1 / |c|) V^T`, up to what follows. Coordinates are first
    put on one scale, so that :math:`H` has a unit diagonal where it is positive definite. Only then
    are directions that are flat up to rounding detected: the curvatures for a coefficient of
    incomes and for one of fractions differ by many powers of ten because of their units alone.

    Shapes: hessian, returns (size, size).
    """
    hessian = 0.5 * (hessian + hessian.mT)
    unit = torch.ones_like(hessian[0])
    for _ in range(_ROUNDS):
        # The largest entry of each row becomes one; of a positive definite matrix it is then that
        # on the diagonal. The diagonal alone may vanish at a saddle.
        largest = (unit[:, None] * hessian * unit).abs().amax(1)
        unit = unit * torch.where(largest > 0, largest, 1.0).rsqrt()
    balanced = unit[:, None] * hessian * unit
    is_free = (hessian == 0).all(1).to(hessian)
    curvature, directions = torch.linalg.eigh(balanced + is_free.diag())
    curvature = curvature.abs()
    scales = curvature.clamp(min=resolution * float(curvature.max())).rsqrt()
    # The symmetric root: unlike the directions it is a smooth function of the derivatives, so that
    # rounding does not turn the coordinates where some curvatures are equal.
    factor: Tensor = unit[:, None] * ((directions * scales) @ directions.mT)
    return factor


class Laplace(NamedTuple):
    """A mode, and the second derivatives of the potential at it.

    :param Anchor mode: the mode.
    :param Tensor hessian: the second derivatives. **Shape:** ``(size, size)``.
    """

    mode: Anchor
    hessian: Tensor


def laplace_at(potential: Potential | FunctionPotential, start: Tensor, argument: str) -> Laplace:
    """Find a mode of a posterior and its curvature.

    It takes a few dozen gradients over all of the data, plus about six for each parameter.

    :param potential: the potential.
    :param Tensor start: where the search starts, in unconstrained space. **Shape:** ``(size,)``.
    :param str argument: the setting that asks for it, such as ``"mass='laplace'"``, for messages.
    :returns: the approximation.
    :raises ValueError: if there are more than 2000 parameters, or there is no mode with positive
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
            f"{argument} supports at most {_MOST_PARAMETERS} parameters, whose second derivatives "
            f"it needs, and the model has {layout.size}"
        )
    mode = anchor_at(potential, search(potential, start)[0])  # whose curvature is checked below
    value_and_gradient = partial(_at_positions, potential)
    distances = 0.01 * mode.position.abs().clamp(min=1.0)
    for num_left in reversed(range(_MOST_NEWTON_STEPS + 1)):
        hessian, distances = _second_derivatives(value_and_gradient, mode.position, distances)
        # On a potential in the hundred thousands a change of one is lost in single precision, and a
        # search by values ends short of the mode along what is on a smaller scale than the rest.
        closer = _newton_step(value_and_gradient, mode.position, hessian) if num_left else None
        if closer is None:
            break
        mode = anchor_at(potential, closer)
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
            f"found none at {names}. Scales of groups have none if the data say little about "
            "them: give numbers by site instead, or write the model with LocScaleReparam. Inputs "
            "on very different scales hide one: standardize them, or compute in float64"
        )
    return Laplace(mode, hessian)


def _at_positions(potential: Potential | FunctionPotential, flat: Tensor) -> tuple[Tensor, Tensor]:
    value, gradient = potential.full_value_and_grad(potential.layout.unflatten(flat))
    return value, potential.layout.flatten(gradient)


def _second_derivatives(
    value_and_gradient: ValueAndGradient, position: Tensor, distances: Tensor
) -> tuple[Tensor, Tensor]:
    """Differences of gradients about half a standard deviation apart, and how far that is.

    Shapes: position, distances (size,); returns (size, size), (size,).
    """
    for _ in range(_MOST_ROUNDS):
        hessian = gradient_differences(lambda z: value_and_gradient(z)[1], position, distances)
        curvature = hessian.diagonal().nan_to_num(nan=torch.inf)
        # In standard deviations; if no curvature is visible, go further.
        reached = distances * curvature.clamp(min=0.0).sqrt()
        if bool(((reached >= _NEAR[0]) & (reached <= _NEAR[1])).all()):
            break
        change = _DISTANCE / reached
        distances = distances * change.clamp(1.0 / _MOST_CHANGE, _MOST_CHANGE)
    return 0.5 * (hessian + hessian.mT), distances


def _newton_step(
    value_and_gradient: ValueAndGradient, position: Tensor, hessian: Tensor
) -> Tensor | None:
    """Return a lower point toward the mode of the quadratic, or ``None`` if none is found.

    Shapes: position, returns (size,); hessian (size, size).
    """
    if not bool(hessian.isfinite().all()):
        return None
    eps = torch.finfo(position.dtype).eps
    factor = whitening_factor(hessian.double(), len(position) * eps)
    (value,), (gradient,) = value_and_gradient(position[None])
    unit_gradient = factor.mT @ gradient.double()
    if not float(unit_gradient.square().sum()) > _MOST_LEFT:
        return None
    lengths = 0.5 ** torch.arange(_NUM_LENGTHS).to(factor)
    points = position - (lengths[:, None] * (factor @ unit_gradient)).to(position)
    values, gradients = value_and_gradient(points)
    is_lower = (values <= value + _ROUNDING * eps * value.abs()) & gradients.isfinite().all(-1)
    is_lower &= (gradients.double() @ factor).norm(dim=-1) < unit_gradient.norm()
    lower: Tensor = points[is_lower]
    return lower[0] if len(lower) else None


def dispersed_starts(
    potential: Potential | FunctionPotential, laplace: Laplace, numbers: Sequence[int], seed: int
) -> dict[str, Tensor]:
    """Draw starts from the approximation with twice its standard deviations.

    :param potential: the potential.
    :param Laplace laplace: its approximation.
    :param Sequence numbers: indices of the chains; a start depends on the seed and the index.
    :param int seed: a non-negative integer.
    :returns: starts in unconstrained space; the mode replaces points without a density.
        **Shape:** ``(num_chains, *event)`` each.
    """
    layout, center = potential.layout, laplace.mode.position
    resolution = len(center) * torch.finfo(center.dtype).eps
    factor = whitening_factor(laplace.hessian.double(), resolution).to(center)
    keys = chain_keys(seed, numbers, center.device)
    step = torch.zeros((), dtype=torch.int64, device=center.device)
    noise = normal(keys, step, len(center), stream=_STREAM_OF_STARTS, dtype=center.dtype)
    starts = center + _INFLATION * noise @ factor.mT
    return layout.unflatten(finite_starts(starts, partial(_at_positions, potential), center)[0])


def gradient_differences(
    gradient: Callable[[Tensor], Tensor], position: Tensor, distances: Tensor
) -> Tensor:
    """Central differences of gradients along each parameter: second derivatives.

    Shapes: position, distances (size,); returns (size, size).
    """
    offsets = distances.diag()
    points = torch.cat([position + offsets, position - offsets])
    above, below = gradient(points).chunk(2)
    # What the offsets came to in the numbers of the positions.
    lengths = (points[: len(position)] - points[len(position) :]).diagonal()
    return (above - below) / lengths[:, None]


def finite_starts(
    starts: Tensor, value_and_gradient: ValueAndGradient, center: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Starts of chains, with a center in the place of those at which there is no density.

    Shapes: starts (num_chains, size); center (size,).
    """
    value, gradient = value_and_gradient(starts)
    is_finite = value.isfinite() & gradient.isfinite().all(-1)
    if not bool(is_finite.all()):
        starts = torch.where(is_finite[:, None], starts, center)
        value, gradient = value_and_gradient(starts)
    return starts, value, gradient
