"""Checks of a model's potential against Pyro, finite differences and each backend."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_ext.potential import Potential
from pyro_ext.potential.evaluation import bijection

__all__ = ["check_potential", "finite_difference", "pyro_potential"]

_STEPS = (1e-5, 1e-6, 1e-7)


def check_potential(
    model: Callable[..., Any],
    *args: Any,
    num_chains: int = 3,
    seed: int = 0,
    tolerance: float | None = None,
    **kwargs: Any,
) -> Potential:
    """Check the potential of a model at random points, on random minibatches if it subsamples.

    Graph and eager runs must give the same values and gradients, for one chain and for several. The
    values must equal those of Pyro's own trace, and in float64 the gradients must agree with finite
    differences. Constrained values must lie in their supports and map back.

    :param model: a Pyro model that runs in the current default dtype.
    :param args: positional arguments of the model.
    :param int num_chains: number of points.
    :param int seed: seed of points and minibatches.
    :param float tolerance: allowed difference, relative to the size of the values. Default:
        ``1e-9`` in float64 and ``1e-3`` otherwise.
    :param kwargs: keyword arguments of the model.
    :returns: the potential, for further checks.
    :raises AssertionError: if a check fails; the message says which, and by how much.

    Example::

        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, scale), obs=x)
        >>> list(check_potential(model, torch.randn(5)).sites)
        ['scale']
    """
    potential = Potential(model, *args, **kwargs)
    eager = Potential(model, *args, backend="eager", **kwargs)
    layout = potential.layout
    is_double = set(layout.dtypes.values()) == {torch.float64}
    if tolerance is None:
        tolerance = 1e-9 if is_double else 1e-3
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_chains, layout.size, generator=generator)
    start = layout.flatten(potential.init(num_chains, seed=seed))
    params = layout.unflatten(start + 0.5 * noise.to(start))
    subsample = {
        plate.name: torch.stack(
            [
                torch.randperm(plate.size, generator=generator)[: plate.subsample_size]
                for _ in range(num_chains)
            ]
        ).to(layout.device)
        for plate in potential.subsampled_plates
    }
    value, gradient = potential.value_and_grad(params, subsample)
    flat = layout.flatten(gradient)

    expected, expected_gradient = eager.value_and_grad(params, subsample)
    _compare("value on the graph and without it", value, expected, tolerance)
    for name, own in expected_gradient.items():
        what = f"gradient of {name!r} on the graph and without it"
        _compare(what, gradient[name], own, tolerance)
    _compare("value alone and with its gradient", potential(params, subsample), value, tolerance)
    last = slice(num_chains - 1, num_chains)
    alone = potential.value_and_grad(_rows(params, last), _rows(subsample, last))
    _compare("value of one chain and of several", alone[0], value[last], tolerance)
    what = "gradient of one chain and of several"
    _compare(what, layout.flatten(alone[1]), flat[last], tolerance)

    for chain in range(num_chains):
        seen = {name: index[chain] for name, index in subsample.items()}

        def of_pyro(point: Tensor, seen: Mapping[str, Tensor] = seen) -> Tensor:
            return pyro_potential(model, args, kwargs, layout.unflatten(point), seen)

        point = layout.flatten(params)[chain]
        _compare("value and Pyro's own", value[chain], of_pyro(point), tolerance)
        if is_double:
            for _ in range(2):
                direction = torch.randn(layout.size, generator=generator).to(point)
                scale = float(flat[chain].norm() * direction.norm())
                _check_slope(flat[chain] @ direction, of_pyro, point, direction, scale)

    constrained = potential.constrain(params)
    back = potential.unconstrain(constrained)
    for name, site in potential.sites.items():
        assert constrained[name].shape == (num_chains, *site.shape), f"shape of {name!r}"
        _compare(f"{name!r} mapped to its support and back", back[name], params[name], 1e-4)
    return potential


def pyro_potential(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    params: Mapping[str, Tensor],
    subsample: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Compute the potential of one chain by Pyro's own trace, as a slow but simple reference.

    :param model: a Pyro model.
    :param tuple args: its positional arguments.
    :param Mapping kwargs: its keyword arguments.
    :param Mapping params: unconstrained values over all of the data. **Shape:** ``(*event)`` each.
    :param Mapping subsample: indices of subsampled plates.
    :returns: a scalar.
    """
    given = _Given(params, subsample or {})
    with given:
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    result: Tensor = -trace.log_prob_sum() - given.log_jacobian
    return result


def finite_difference(
    function: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor, step: float = 1e-5
) -> Tensor:
    """Compute the slope of a scalar function in a direction, by central differences.

    :param function: a function from a vector to a scalar.
    :param Tensor point: the point, in float64. **Shape:** ``(size,)``.
    :param Tensor direction: the direction. **Shape:** ``(size,)``.
    :param float step: the step, in units of the direction.
    :returns: a scalar.
    """
    with torch.no_grad():
        ahead, behind = function(point + step * direction), function(point - step * direction)
    return (ahead - behind) / (2 * step)


class _Given(Messenger):
    """Gives latent sites the images of unconstrained values, and plates their subsamples."""

    def __init__(self, params: Mapping[str, Tensor], subsample: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.params = params
        self.subsample = subsample
        self.log_jacobian = torch.zeros(())

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            if msg["value"] is None and msg["name"] in self.subsample:
                msg["value"] = self.subsample[msg["name"]]
        elif msg["name"] in self.params:
            assert not msg["is_observed"]
            transform = bijection(msg["fn"].support)
            value, scale = self.params[msg["name"]], 1.0
            for frame in msg["cond_indep_stack"]:
                if frame.name in self.subsample:
                    dim = frame.dim - transform.domain.event_dim
                    value = value.index_select(dim, self.subsample[frame.name])
                    scale *= frame.full_size / frame.size
            msg["value"] = transform(value)
            jacobian = transform.log_abs_det_jacobian(value, msg["value"])
            self.log_jacobian = self.log_jacobian + scale * jacobian.sum()


def _rows(tensors: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in tensors.items()}


def _check_slope(
    slope: Tensor,
    function: Callable[[Tensor], Tensor],
    point: Tensor,
    direction: Tensor,
    scale: float,
) -> None:
    """Compare with finite differences; a shorter step may avoid a kink that a longer one meets."""
    for step in _STEPS:
        expected = finite_difference(function, point, direction, step)
        if float((slope - expected).abs()) <= 1e-6 * (1.0 + scale):
            return
    _compare("slope and finite difference", slope, expected, 1e-6, scale)


def _compare(
    what: str, actual: Tensor, expected: Tensor, tolerance: float, scale: float = 0.0
) -> None:
    assert actual.shape == expected.shape, f"{what}: shapes {actual.shape} and {expected.shape}"
    assert bool(torch.isfinite(actual).all()), f"{what}: {actual} is not finite"
    if not actual.numel():
        return
    actual, expected = actual.detach().double(), expected.detach().double()
    error = float((actual - expected).abs().max())
    scale = 1.0 + max(scale, float(expected.abs().max()))
    assert error <= tolerance * scale, (
        f"{what} differ by {error:.3g}, more than {tolerance:g} times {scale:.3g}"
    )
