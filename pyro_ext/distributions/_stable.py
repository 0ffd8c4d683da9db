r"""Densities of positive stable laws and their exponential tilts, by Zolotarev's integral.

With :math:`b = \sigma / (1 - \sigma)` and Zolotarev's function :math:`A`, the stable law of
:math:`E\, e^{-tS} = e^{-t^\sigma}` has

.. math:: P(S \leq x) = \frac{1}{\pi} \int_0^\pi \exp\{-A(u)\, x^{-b}\} \, du , \quad
          A(u) = \Big[ \frac{\sin^\sigma \sigma u \, \sin^{1-\sigma} (1 - \sigma) u}{\sin u}
          \Big]^{1 / (1 - \sigma)} .

The integrals run over :math:`v = \log \{u / (\pi - u)\}`, where the integrands have one peak and
fall at least exponentially on both sides. Its place and the places where the logarithm of the
integrand has fallen by given amounts are found by bisection, and the panels between them get nodes
of their own, so that an integrand of any width is resolved. That of the distribution function has a
plateau too, and gets panels where it ends.
"""

import math

import torch
from torch import Tensor

from pyro_ext.special import expm1mx, gauss_legendre, in_double, opaque

__all__ = [
    "log_cdf",
    "log_density",
    "log_expm1",
    "log_tilted_density",
    "log_zolotarev_gain",
    "log_zolotarev_start",
    "rsample_log",
    "tilted_distance",
]

_DROPS = (1.5, 6.0, 14.0, 40.0)
_NUM_NODES = 24
_NUM_GOLDEN = 48
_NUM_HALVINGS = 14
_LEAST_LOG_DISTANCE = -30.0
_LOG_EXCESSES = (-12.0, -4.0, -1.0, 1.0)
_NUM_FINE_HALVINGS = 48
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_REACH = 60.0
_LARGEST_LOG = 600.0  # leaves room for the derivatives
_SMALLEST = 1e-300
_NEAR_ZERO = 1e-3
_SMALL_ANGLE = 0.1
# For n = 3, 5, ..., the polynomials {1 - s^n - (1 - s)^n} / p in p = s (1 - s), times the Taylor
# coefficient of -log(sin u / u) at u^{n - 1}.
_GAIN_SERIES = tuple(
    tuple(coefficient * number for number in polynomial)
    for coefficient, polynomial in (
        (1.0 / 6.0, (3.0,)),
        (1.0 / 180.0, (5.0, -5.0)),
        (1.0 / 2835.0, (7.0, -14.0, 7.0)),
        (1.0 / 37800.0, (9.0, -27.0, 30.0, -9.0)),
        (1.0 / 467775.0, (11.0, -44.0, 77.0, -55.0, 11.0)),
    )
)


def log_zolotarev_start(stability: Tensor) -> Tensor:
    r""":math:`\log A(0)`, the least value."""
    return torch.log1p(-stability) + stability / (1.0 - stability) * stability.log()


def log_zolotarev_gain(angle: Tensor, rest: Tensor, stability: Tensor) -> Tensor:
    r""":math:`\log A(u) - \log A(0)`, which increases from zero to infinity.

    :param Tensor angle: :math:`u` in :math:`(0, \pi)`.
    :param Tensor rest: :math:`\pi - u`, which tells what the angle cannot near :math:`\pi`.
    :param Tensor stability: :math:`\sigma`.
    """
    other = 1.0 - stability
    near = angle < _SMALL_ANGLE
    square = torch.where(near, angle, 0.0).square()
    # Near zero all logarithms cancel, and the rest of their series has the stability as a factor.
    series = torch.zeros_like(square + stability)
    for polynomial in reversed(_GAIN_SERIES):
        coefficient = torch.full_like(stability, polynomial[-1])
        for number in reversed(polynomial[:-1]):
            coefficient = number + stability * other * coefficient
        series = coefficient + square * series
    far, far_rest = torch.where(near, 1.0, angle), torch.where(near, math.pi - 1.0, rest)
    slow, fast = other * far, stability * far
    whole_sine = torch.minimum(far, far_rest).sin()
    slow_sine = torch.minimum(slow, fast + far_rest).sin()
    fast_sine = torch.minimum(fast, slow + far_rest).sin()
    direct = torch.log(slow_sine / (other * whole_sine))
    direct = direct + stability / other * torch.log(fast_sine / (stability * whole_sine))
    return torch.where(near, stability * square * series, direct)


def _log_integrand(
    place: Tensor, log_ratio: Tensor, stability: Tensor, power: float | Tensor
) -> Tensor:
    r"""Logarithm of :math:`\phi^p e^{-(\phi - \phi_0)} dv`, where :math:`\phi = A x^{-b}`.

    :param Tensor place: :math:`v`.
    :param Tensor log_ratio: :math:`\log \phi_0`.
    """
    angle, rest = math.pi * torch.sigmoid(place), math.pi * torch.sigmoid(-place)
    gain = log_zolotarev_gain(angle, rest, stability).clamp(min=0.0)
    excess = torch.exp((log_ratio + log_expm1(gain)).clamp(max=_LARGEST_LOG))
    jacobian = angle * rest / math.pi**2
    return power * (log_ratio + gain) - excess + jacobian.clamp(min=_SMALLEST).log()


def log_expm1(x: Tensor) -> Tensor:
    """Logarithm of ``expm1`` of numbers from zero on.

    Near zero by a series, since compiled code has ``expm1`` to an absolute error only.
    """
    near = x < _NEAR_ZERO
    small = torch.where(near, x, 1.0).clamp(min=_SMALLEST)
    large = torch.where(near, 1.0, x)
    series = small.log() + small * (0.5 + small / 24.0)
    return torch.where(near, series, large + torch.log(-torch.expm1(-large)))


def _farthest(stability: Tensor, log_value: Tensor) -> Tensor:
    """A place beyond which the integrand has vanished or falls."""
    return (stability * log_value).clamp(min=0.0) - torch.log1p(-stability) + 8.0


def _peak(log_ratio: Tensor, stability: Tensor, log_value: Tensor, power: Tensor) -> Tensor:
    """Where the integrand is largest, by golden section."""
    low = -0.5 * log_ratio.clamp(min=0.0) - 8.0
    high = _farthest(stability, log_value)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left = _log_integrand(left, log_ratio, stability, power)
    at_right = _log_integrand(right, log_ratio, stability, power)
    for _ in range(_NUM_GOLDEN):
        rises = at_left < at_right
        low, high = torch.where(rises, left, low), torch.where(rises, high, right)
        new = torch.where(rises, low + _GOLDEN * (high - low), high - _GOLDEN * (high - low))
        at_new = _log_integrand(new, log_ratio, stability, power)
        left, right = torch.where(rises, right, new), torch.where(rises, new, left)
        at_left, at_right = (
            torch.where(rises, at_right, at_new),
            torch.where(rises, at_new, at_left),
        )
    return 0.5 * (low + high)


@opaque("stable_edges", 2 * len(_DROPS) + 1)
def _edges(log_ratio: Tensor, stability: Tensor, log_value: Tensor, power: Tensor) -> Tensor:
    """Ends of the panels, from left to right, in a new last axis."""
    peak = _peak(log_ratio, stability, log_value, power)
    top = _log_integrand(peak, log_ratio, stability, power)[..., None]
    drops = torch.tensor([*reversed(_DROPS), *_DROPS], dtype=peak.dtype, device=peak.device)
    side = torch.tensor([-1.0] * len(_DROPS) + [1.0] * len(_DROPS)).to(peak)
    peak, log_ratio = peak[..., None], log_ratio[..., None]
    stability, power = stability[..., None], power[..., None]
    # In logarithms of distances, which become short where the stability is near one.
    near = torch.full_like(peak + drops, _LEAST_LOG_DISTANCE)
    far = (_REACH + peak.abs()).log().expand_as(near)
    for _ in range(_NUM_HALVINGS):
        middle = 0.5 * (near + far)
        place = peak + side * middle.exp()
        inside = _log_integrand(place, log_ratio, stability, power) > top - drops
        near, far = torch.where(inside, middle, near), torch.where(inside, far, middle)
    ends = peak + side * far.exp()
    half = len(_DROPS)
    return torch.cat([ends[..., :half], peak, ends[..., half:]], -1)


@opaque("stable_bends", len(_LOG_EXCESSES))
def _bends(log_ratio: Tensor, stability: Tensor, log_value: Tensor) -> Tensor:
    r"""Where :math:`\log(\phi - \phi_0)` has values around zero, at the end of the plateau."""
    log_ratio, stability, log_value = (
        value[..., None] for value in (log_ratio, stability, log_value)
    )
    wanted = torch.tensor(_LOG_EXCESSES, dtype=log_ratio.dtype, device=log_ratio.device)
    low = torch.zeros_like(log_ratio + wanted) - 0.5 * log_ratio.clamp(min=0.0) - 20.0
    high = torch.zeros_like(low) + _farthest(stability, log_value)
    for _ in range(_NUM_FINE_HALVINGS):
        middle = 0.5 * (low + high)
        angle, rest = math.pi * torch.sigmoid(middle), math.pi * torch.sigmoid(-middle)
        gain = log_zolotarev_gain(angle, rest, stability).clamp(min=0.0)
        is_low = log_ratio + log_expm1(gain) < wanted
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return 0.5 * (low + high)


def _log_integral(log_value: Tensor, stability: Tensor, power: float) -> tuple[Tensor, Tensor]:
    r""":math:`\log \phi_0` and :math:`\log \int \phi^p e^{-(\phi - \phi_0)} dv`."""
    log_value, stability = torch.broadcast_tensors(log_value, stability)
    exponent = stability / (1.0 - stability)
    log_ratio = (log_zolotarev_start(stability) - exponent * log_value).clamp(max=_LARGEST_LOG)
    with torch.no_grad():
        edges = _edges(log_ratio, stability, log_value, torch.full_like(log_ratio, power))
        if power == 0.0:
            bends = _bends(log_ratio, stability, log_value)
            bends = bends.maximum(edges[..., :1]).minimum(edges[..., -1:])
            edges = torch.cat([edges, bends], -1).sort(-1).values
        nodes, weights = gauss_legendre(_NUM_NODES, edges.device)
        lengths = edges.diff()[..., None]
        places = (edges[..., :-1, None] + lengths * nodes).flatten(-2)
        log_weights = (lengths * weights).clamp(min=_SMALLEST).log().flatten(-2)
    logs = _log_integrand(places, log_ratio[..., None], stability[..., None], power)
    return log_ratio, (log_weights + logs).logsumexp(-1)


@in_double
def log_density(log_value: Tensor, stability: Tensor) -> Tensor:
    """Log density of the positive stable law, of the logarithm of a number."""
    log_ratio, log_integral = _log_integral(log_value, stability, 1.0)
    return (stability / (1.0 - stability)).log() - log_value + log_integral - log_ratio.exp()


@in_double
def log_cdf(log_value: Tensor, stability: Tensor) -> Tensor:
    """Logarithm of the distribution function of the positive stable law."""
    log_ratio, log_integral = _log_integral(log_value, stability, 0.0)
    return (log_integral - log_ratio.exp()).clamp(max=0.0)


def log_tilted_density(
    log_value: Tensor, stability: Tensor, log_power: Tensor, is_tilted: Tensor
) -> Tensor:
    r"""Log density of the tilted law of mass one, in float64.

    :param Tensor log_value: logarithm of a number.
    :param Tensor stability: :math:`\sigma`.
    :param Tensor log_power: :math:`\log \tau^\sigma`, any number where there is no tilt.
    :param Tensor is_tilted: whether there is a tilt.
    """
    distance, _ = tilted_distance(log_value, stability, log_power)
    log_ratio, log_integral = _log_integral(log_value, stability, 1.0)
    distance = torch.where(is_tilted, distance, log_ratio.exp())
    return (stability / (1.0 - stability)).log() - log_value + log_integral - distance


def tilted_distance(
    log_value: Tensor, stability: Tensor, log_power: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The exponents at :math:`u = 0`, of integrand, tilt and constant, which all but cancel.

    Their sum is zero at :math:`\sigma \tau^{\sigma - 1}`, and taken from there.

    :returns: the sum, which is not negative; and the logarithm of the value as a multiple of that
        place.
    """
    exponent = stability / (1.0 - stability)
    log_multiple = log_value - stability.log() + log_power / exponent
    distance = _scaled_expm1mx(log_power + torch.log1p(-stability), -exponent * log_multiple)
    distance = distance + _scaled_expm1mx(log_power + stability.log(), log_multiple)
    return distance, log_multiple


def rsample_log(stability: Tensor) -> Tensor:
    """Logarithms of draws of the positive stable law by Kanter's formula, with gradients."""
    tiny = torch.finfo(stability.dtype).tiny
    uniform, other = torch.rand(
        (2, *stability.shape), dtype=stability.dtype, device=stability.device
    )
    angle, rest = math.pi * uniform, math.pi * (1.0 - uniform)
    log_zolotarev = log_zolotarev_start(stability) + log_zolotarev_gain(angle, rest, stability)
    log_exponential = torch.log(-torch.log1p(-other.clamp(min=tiny)))
    return (1.0 - stability) / stability * (log_zolotarev - log_exponential)


def _scaled_expm1mx(log_scale: Tensor, x: Tensor) -> Tensor:
    """``exp(log_scale) * expm1mx(x)``, also where one factor overflows and the other underflows."""
    near = x.abs() < 1.0
    scale = log_scale.exp()
    small = scale * expm1mx(torch.where(near, x, 0.0))
    large = (log_scale + x).clamp(max=_LARGEST_LOG).exp() - scale * (1.0 + x)
    return torch.where(near, small, large)
