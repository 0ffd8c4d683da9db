"""Integrals of a Lévy density over places, and the inverses of such integrals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_ext.random_measures._roots import solve_monotone
from pyro_ext.special.log_integral import LogIntegrand, panel_edges

if TYPE_CHECKING:
    from pyro_ext.random_measures._measure import CompletelyRandomMeasure

__all__ = ["invert_exponent", "invert_tail", "levy_panels"]

_FALL = 45.0
_REACH = 1e5


def levy_panels(
    measure: "CompletelyRandomMeasure",
    log_factor: LogIntegrand,
    corners: Sequence[Tensor],
    order_at_infinity: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> tuple[LogIntegrand, Tensor]:
    r"""Integrand over places, and panels that resolve it, of :math:`\int f(w) \rho(w) dw`.

    :param measure: of which :math:`\rho` is the Lévy density.
    :param log_factor: :math:`\log f` at :math:`\log w`, about :math:`w` or less near zero.
    :param corners: logarithms of the sizes where its slope changes.
    :param Tensor order_at_infinity: its slope at infinity.
    :param Tensor low: logarithm of the least size, if there is one.
    :param Tensor high: logarithm of the largest.
    """
    own = [measure._place(corner) for corner in (*measure._log_corners(), *corners)]
    *own, order = torch.broadcast_tensors(*own, order_at_infinity)
    every = torch.stack(own, -1)
    first = every.min(-1).values - _FALL / (1.0 - measure.index_at_zero.double()) - 5.0
    last = every.max(-1).values + _FALL / measure._slope_at_infinity(order) + 9.0
    low = first if low is None else measure._place(low)
    high = last.maximum(low + 1.0) if high is None else measure._place(high)
    low, high = torch.broadcast_tensors(low.minimum(high), high)
    unsqueezed = measure._unsqueezed()

    def log_integrand(place: Tensor) -> Tensor:
        return unsqueezed._log_mass(place) + log_factor(unsqueezed._log_size(place))

    with torch.no_grad():
        edges = panel_edges(log_integrand, low, high, every)
    # A range that ends where the integrand has not vanished ends there with its gradient.
    first, inner, last = edges[..., :1], edges[..., 1:-1], edges[..., -1:]
    first = torch.where(first <= low[..., None], low[..., None], first)
    last = torch.where(last >= high[..., None], high[..., None], last)
    return log_integrand, torch.cat([first, inner, last], -1)


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
