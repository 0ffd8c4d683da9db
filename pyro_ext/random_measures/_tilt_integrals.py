r"""Integrals over the tilts of mixed generalized gamma measures.

The generalized BFRY and the beta prime process have Lévy densities

.. math:: \frac{\eta}{\Gamma(1 - \sigma)} w^{-1-\sigma} e^{-u w}
          \int_0^\infty x^{k-1} g(x) e^{-w x} dx , \quad k > 0 ,

where :math:`g` is the indicator of :math:`x < c` or :math:`e^{-c x}`. With a scale taken out of
:math:`x`, so that the mixing density ends about 1, what is needed are integrals over
:math:`v = \log x`, here by quadrature. ``damping`` is 0 where the density ends at 1, and 1 where it
falls as :math:`e^{-x}`. Names of arguments go with :math:`k` (power), :math:`q` (order),
:math:`t` (shift) and :math:`z` (tilt).
"""

import torch
from torch import Tensor

from pyro_ext.random_measures._numerics import sample_log_concave
from pyro_ext.special import in_double, log_exprel, opaque
from pyro_ext.special.quadrature import integrate_log, num_edges, panel_edges

_FALL = 42.0
_TINY_LOG = -30.0
_LARGEST_LOG = 300.0


@in_double
def log_moment_integral(power: Tensor, order: Tensor, log_tilt: Tensor, damping: Tensor) -> Tensor:
    r""":math:`\log \int x^{k-1} g(x) (x + z)^{-q} dx`, infinite where the integral diverges."""
    power, order, log_tilt, damping = torch.broadcast_tensors(power, order, log_tilt, damping)
    is_tilted = log_tilt > -torch.inf
    finite_tilt = torch.where(is_tilted, log_tilt, 0.0)
    edges = _moment_edges(power.detach(), order.detach(), finite_tilt.detach(), damping)
    wide = tuple(value[..., None] for value in (power, order, finite_tilt, damping))
    tilted = integrate_log(lambda x: _log_tilt_density(x, *wide), edges)
    gap = power - order
    safe = torch.where(gap > 0, gap, 1.0)
    untilted = torch.where(damping > 0, safe.lgamma(), -safe.log())
    untilted = torch.where(gap > 0, untilted, torch.inf)
    return torch.where(is_tilted, tilted, untilted)


@in_double
def log_exponent_integral(
    power: Tensor, discount: Tensor, log_shift: Tensor, log_tilt: Tensor, damping: Tensor
) -> Tensor:
    r""":math:`\log \int x^{k-1} g(x) [(x + z + t)^\sigma - (x + z)^\sigma] / \sigma \, dx`."""
    power, discount, log_shift, log_tilt, damping = torch.broadcast_tensors(
        power, discount, log_shift, log_tilt, damping
    )
    edges = _exponent_edges(
        power.detach(), discount.detach(), log_shift.detach(), log_tilt.detach(), damping
    )
    return integrate_log(
        lambda x: log_exponent_density(x, power, discount, log_shift, log_tilt, damping), edges
    )


def sample_log_tilt(power: Tensor, order: Tensor, log_tilt: Tensor, damping: Tensor) -> Tensor:
    r"""Draws of :math:`\log x` with density proportional to :math:`x^k g(x) (x + z)^{-q}`."""
    power, order, log_tilt, damping = torch.broadcast_tensors(power, order, log_tilt, damping)
    peak, low, high = _moment_range(power, order, log_tilt, damping)
    parameters = (power, order, log_tilt, damping)
    return sample_log_concave(_log_tilt_density, _slope, parameters, peak, low, high)


def _log_tilt_density(
    x: Tensor, power: Tensor, order: Tensor, log_tilt: Tensor, damping: Tensor
) -> Tensor:
    """Logarithm of the integrand over logarithms."""
    return power * x - order * torch.logaddexp(x, log_tilt) - damping * x.exp()


def log_exponent_density(
    x: Tensor, power: Tensor, discount: Tensor, log_shift: Tensor, log_tilt: Tensor, damping: Tensor
) -> Tensor:
    power, discount, log_shift, log_tilt, damping = (
        value[..., None] for value in (power, discount, log_shift, log_tilt, damping)
    )
    log_rate = torch.logaddexp(x, log_tilt)
    log_ratio = log_shift - log_rate
    log_growth = torch.logaddexp(log_ratio, torch.zeros_like(log_ratio))
    is_tiny = log_ratio < _TINY_LOG
    log_log_growth = torch.where(is_tiny, log_ratio, torch.where(is_tiny, 1.0, log_growth).log())
    inner = discount * log_rate + log_log_growth + log_exprel(discount * log_growth)
    return power * x + inner - damping * x.exp()


def log_mixing_end(power: Tensor, damping: Tensor) -> Tensor:
    """Logarithm of a point beyond which nothing is left of the mixing density."""
    return damping * (power + 60.0 + 12.0 * power.sqrt()).log()


def _log_peak(power: Tensor, order: Tensor, log_tilt: Tensor, damping: Tensor) -> Tensor:
    """Find the maximizer of the moments' integrand, a root of a quadratic equation."""
    # Beyond any number that matters, the square of a tilt would overflow.
    log_tilt = log_tilt.clamp(max=_LARGEST_LOG)
    tilt = log_tilt.exp()
    slack = power - order - tilt
    root = (slack.square() + 4.0 * power * tilt).sqrt()
    falls = slack < 0
    above = (0.5 * (torch.where(falls, 1.0, slack) + root)).log()
    below = (2.0 * power).log() + log_tilt - (root - torch.where(falls, slack, -1.0)).log()
    gap = order - power
    sharp = power.log() + log_tilt - torch.where(gap > 0, gap, 1.0).log()
    sharp = torch.where(gap > 0, sharp, 0.0).clamp(max=0.0)
    return torch.where(damping > 0, torch.where(falls, below, above), sharp)


def _moment_range(
    power: Tensor, order: Tensor, log_tilt: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Peak of the integrand of the moments, and a range outside of which it has vanished."""
    peak = _log_peak(power, order, log_tilt, damping)
    excess = peak - log_tilt
    bend = order * torch.logaddexp(excess, torch.zeros_like(excess))
    low = peak - (_FALL + bend + damping * peak.exp()) / power
    return peak, low, torch.maximum(log_mixing_end(power, damping), peak)


@opaque("tilt_moment_edges", num_edges(2))
def _moment_edges(power: Tensor, order: Tensor, log_tilt: Tensor, damping: Tensor) -> Tensor:
    peak, low, high = _moment_range(power, order, log_tilt, damping)
    corners = torch.stack([log_tilt - order.clamp(min=1.0).log(), torch.zeros_like(log_tilt)], -1)
    wide = tuple(value[..., None] for value in (power, order, log_tilt, damping))
    return panel_edges(lambda x: _log_tilt_density(x, *wide), low, high, corners, peak)


@opaque("tilt_exponent_edges", num_edges(3))
def _exponent_edges(
    power: Tensor, discount: Tensor, log_shift: Tensor, log_tilt: Tensor, damping: Tensor
) -> Tensor:
    log_start = torch.where(log_tilt > -torch.inf, log_tilt, log_shift)
    corners = torch.stack(
        [log_start, torch.logaddexp(log_tilt, log_shift), torch.zeros_like(log_start)], -1
    )
    low = corners.min(-1).values - 45.0 / power - 5.0
    # A little right of the peak, where the integrand is not much smaller.
    peak = _log_peak(power, 1.0 - discount, corners[..., 1], damping)
    return panel_edges(
        lambda x: log_exponent_density(x, power, discount, log_shift, log_tilt, damping),
        low,
        log_mixing_end(power, damping),
        corners,
        peak,
    )


def _slope(x: Tensor, power: Tensor, order: Tensor, log_tilt: Tensor, damping: Tensor) -> Tensor:
    return power - order * torch.sigmoid(x - log_tilt) - damping * x.exp()
