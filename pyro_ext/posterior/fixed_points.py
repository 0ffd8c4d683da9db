r"""Evaluations of a model at fixed points, which distinguish it from other models.

Names and settings do not suffice: a prior may have another scale, a function another body. A
*fingerprint* reduces a tensor at each point to one number, the sum of its elements with weights of
either sign. Two programs that are equal up to rounding, on another machine or with more threads,
have the same fingerprint within a tolerance proportional to the size of the elements. At the
relative precision :math:`\epsilon` of the program's dtype, elements have errors of about
:math:`\epsilon`, amplified by ill-conditioned steps; a tolerance of :math:`\epsilon^{2/3}` times
their norm, 2e-5 in single and 4e-11 in double precision, allows for condition numbers of
:math:`\epsilon^{-1/3}`, 200 and 2e5. Random signs make errors of one direction cancel, so that a
change in a few elements among many is detected.
"""

import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import get_rng_state, set_rng_seed, set_rng_state
from torch import Tensor

from pyro_ext.potential.evaluation import bijection

Noise = Callable[[str, Sequence[int]], Tensor]
"""Draws standard normal numbers for a name and shape, times the scale of the point."""

# Near the center of unconstrained space and far from it, and each with the opposite sign, so that
# functions that agree only on one side are not taken as equal.
_SCALES = (0.1, -0.1, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0)


class FixedPoint(NamedTuple):
    """Evaluation of a model at a point.

    :param dict terms: terms of the log density by site or factor, element by element.
    :param dict values: values of the sites that a draw holds.
    """

    terms: dict[str, Tensor]
    values: dict[str, Tensor]


PointOf = Callable[[Noise], FixedPoint]


def points_of(point_of: PointOf, scales: Sequence[float] = _SCALES) -> list[FixedPoint | None]:
    """Evaluate a model at fixed points."""
    found: list[FixedPoint | None] = []
    before = get_rng_state()
    try:
        for number, scale in enumerate(scales):
            set_rng_seed(number)
            found.append(_or_none(partial(point_of, _noise(scale))))
    finally:
        set_rng_state(before)
    return found


def function_at(
    function: Callable[[dict[str, Tensor]], Tensor], points: Iterable[FixedPoint | None]
) -> list[Tensor | None]:
    """Return values of a function of a draw at all points, ``None`` if it raises an error."""
    before = get_rng_state()
    try:
        return [
            None if point is None else _or_none(partial(function, dict(point.values)))
            for point in points
        ]
    finally:
        set_rng_state(before)


def fingerprint(
    tensors: Sequence[Tensor | None], epsilon: float, scale: float = 0.0
) -> dict[str, list[float | None]]:
    """One number for a tensor at each point, and how far it may be off."""
    rows = [_project(tensor, epsilon, scale) for tensor in tensors]
    names = ("value", "tolerance", "not_finite")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def epsilon_of(tensors: Iterable[Tensor | None]) -> float:
    """Relative precision of the coarsest type among tensors, double without one."""
    kinds = {
        tensor.dtype for tensor in tensors if tensor is not None and tensor.is_floating_point()
    }
    return max((torch.finfo(kind).eps for kind in kinds), default=torch.finfo(torch.double).eps)


def model_at(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> PointOf:
    """Log densities of the sites of a Pyro model, at unconstrained values that are the point's.

    Discrete sites take any value of their support with the same probability. A site without a map
    from unconstrained space takes a draw from its distribution.
    """

    def point_of(noise: Noise) -> FixedPoint:
        with pyro.validation_enabled(False), _Fixed(noise):
            trace = poutine.trace(model).get_trace(*args, **kwargs)
            trace.compute_log_prob()
        terms, values = {}, {}
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or site_is_subsample(node):
                continue
            value = torch.as_tensor(node["value"]).detach()
            is_deterministic = "_deterministic" in (node["infer"] or {})
            if not is_deterministic:
                terms[name] = torch.as_tensor(node["log_prob"]).detach()
            if is_deterministic or not node["is_observed"]:
                values[name] = value
        return FixedPoint(terms, values)

    return point_of


class _Fixed(Messenger):
    """Gives latent sites and subsamples values that do not depend on their distributions."""

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        self._noise = noise

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None:
            return
        name, fn = msg["name"], msg["fn"]
        if site_is_subsample(msg):
            order = self._noise(name, (fn.size,)).argsort()
            msg["value"] = order[: fn.subsample_size].sort().values.to(fn.device)
            return
        value = _or_none(partial(_value_at, fn, name, self._noise))
        if value is not None:
            msg["value"] = value


def _value_at(fn: Any, name: str, noise: Noise) -> Tensor:
    """A value in the support of a distribution."""
    if fn.has_enumerate_support:
        support = fn.enumerate_support(expand=False).reshape(-1, *fn.event_shape)
        fraction = torch.special.ndtr(noise(name, fn.batch_shape))
        number = (fraction * len(support)).long().clamp(max=len(support) - 1)
        chosen: Tensor = support[number.to(support.device)]
        return chosen
    if fn.support.is_discrete:
        raise NotImplementedError
    transform = bijection(fn.support)
    like = _or_none(fn.sample)  # of the type and on the device of values
    like = torch.zeros(()) if like is None else like
    position = noise(name, transform.inverse_shape(fn.shape()))
    value: Tensor = transform(position.to(like))
    return value


def _noise(scale: float) -> Noise:
    def noise(name: str, shape: Sequence[int]) -> Tensor:
        generator = np.random.default_rng([zlib.crc32(name.encode()), round(10 * abs(scale))])
        return scale * torch.from_numpy(np.asarray(generator.standard_normal(tuple(shape))))

    return noise


def _project(
    tensor: Tensor | None, epsilon: float, scale: float
) -> tuple[float | None, float | None, int | None]:
    if tensor is None:
        return None, None, None
    flat = torch.as_tensor(tensor).detach().reshape(-1).cpu()
    flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
    flat = flat.double()
    finite = flat.isfinite()
    uniform = np.random.default_rng(len(flat)).uniform(-1.0, 1.0, len(flat))
    weights = torch.from_numpy(uniform + 0.5 * np.sign(uniform))
    kept = torch.where(finite, flat, 0.0)
    tolerance = epsilon ** (2 / 3) * math.hypot(float(kept.norm()), scale) + 100 * epsilon
    return float(kept @ weights), tolerance, int((~finite).sum())


def _or_none(function: Callable[[], Any]) -> Any:
    """Call a function, and return ``None`` if it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function()
        except Exception:
            return None
