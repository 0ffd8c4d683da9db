"""Integrals of a Lévy density over places, and the inverses of such integrals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pyro_ext.random_measures._roots import solve_monotone
from pyro_ext.special.quadrature import LogIntegrand, panel_edges

if TYPE_CHECKING:
    from pyro_ext.random_measures._measure import CompletelyRandomMeasure

__all__ = ["Factor", "invert_exponent", "invert_tail", "levy_panels"]

_FALL = 45.0
_REACH = 1e5


class Factor(NamedTuple):
    """A factor by which a Lévy density is multiplied before it is integrated.

    :param log_value: logarithm of the factor at logarithms of sizes.
    :param corners: logarithms of the sizes where its slope changes.
    :param Tensor order: its slope at infinity.
    :param Tensor low: logarithm of the least size, if there is one.
    :param Tensor high: logarithm of the largest.
    :param float order_at_zero: its slope at zero, if that is less than one.
    """

    log_value: LogIntegrand
    corners: Sequence[Tensor]
    order: Tensor
    low: Tensor | None = None
    high: Tensor | None = None
    order_at_zero: float = 1.0


def levy_panels(measure: "CompletelyRandomMeasure", factor: Factor) -> tuple[LogIntegrand, Tensor]:
    """Integrand over places, and panels that resolve it.

    :param measure: whose Lévy density is multiplied.
    :param Factor factor: by what.
    """
    own = [measure._place(corner) for corner in (*measure._log_corners(), *factor.corners)]
    *own, order = torch.broadcast_tensors(*own, factor.order)
    every = torch.stack(own, -1)
    slope_at_zero = min(factor.order_at_zero, 1.0) - measure.index_at_zero.double()
    first = every.min(-1).values - _FALL / slope_at_zero - 5.0
    last = every.max(-1).values + _FALL / measure._slope_at_infinity(order) + 9.0
    low = first if factor.low is None else measure._place(factor.low)
    high = last.maximum(low + 1.0) if factor.high is None else measure._place(factor.high)
    low, high = torch.broadcast_tensors(low.minimum(high), high)
    unsqueezed = measure._unsqueezed()

    def log_integrand(place: Tensor) -> Tensor:
        return unsqueezed._log_mass(place) + factor.log_value(unsqueezed._log_size(place))

    with torch.no_grad():
        edges = panel_edges(log_integrand, low, high, every)
    # A range that ends where the integrand has not vanished ends there with its gradient, which all
    # edges that coincide with the end take on: a panel without length has none.
    low, high = low[..., None], high[..., None]
    edges = torch.where(edges <= low, low, torch.where(edges >= high, high, edges))
    return log_integrand, edges


def invert_exponent(measure: "CompletelyRandomMeasure", log_target: Tensor) -> Tensor:
    r""":math:`\log t` where :math:`\psi(t)` has a given logarithm."""

    def slope(place: Tensor, value: Tensor) -> Tensor:
        return (place + measure._log_moment(torch.ones_like(place), place) - value).exp()

    reach = torch.full_like(log_target, _REACH)
    return solve_monotone(measure._log_exponent, slope, log_target, -reach, reach)


def invert_tail(measure: "CompletelyRandomMeasure", log_target: Tensor) -> Tensor:
    r""":math:`\log x` where the tail has a given logarithm."""
    reach = torch.full_like(log_target, _REACH)
    return measure._log_size(
        solve_monotone(
            lambda place: measure._log_tail(measure._log_size(place)),
            lambda place, value: -(measure._log_mass(place) - value).exp(),
            log_target,
            -reach,
            reach,
        )
    )
