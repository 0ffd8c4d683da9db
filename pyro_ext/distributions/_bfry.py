r"""The BFRY families as functions of tensors: densities, integrals and draws.

Written with :math:`b = t + \tau`, :math:`r = \tau / b` and the level :math:`t` in logarithms, so
that neither a level that overflows nor a discount near zero does harm. Where there is no tilt,
:math:`\log r` is replaced by a number that nothing depends on.

Over its scale, a beta prime BFRY variable :math:`y` has the density, with respect to
:math:`z = \log y`,

.. math:: h(z) = \frac{\sigma \Gamma(k)}{\Gamma(1 - \sigma) \Gamma(\tau) D}
          y^{-\sigma} (1 + y)^{-k} \Big[ 1 - \Big( 1 + \frac{t y}{1 + y} \Big)^{-k} \Big] , \quad
          \tau = k + \sigma , \quad D = (1 + t)^\sigma - 1 .

It is a power law but for three knees, at :math:`1 / (t \max(k, 1))`, :math:`1 / \max(k, 1)` and 1.
Integrals run over panels that become longer away from each, so that powers of any length between
them are resolved, and end in the pure power laws on both sides.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_ext.distributions.bases import by_rejection, rsample_log_gamma
from pyro_ext.special import (
    exprel,
    gauss_legendre,
    in_double,
    log1mexp,
    log1mexp_at_log,
    log1prel,
    log_exprel,
    log_lower_gamma_at_log,
    log_upper_gamma,
    where_needed,
)

_NUM_TERMS = 24
_NARROW = 0.1
_NARROW_GAP = 0.1
_NUM_GAP_NODES = 5
_NUM_NODES = 8
_LARGEST_LOG = 700.0
FAR = 40.0  # from where on incomplete gamma functions vanish beside complete ones
SHALLOW = 1e-4  # up to where a discount is lost in rounding of what it is added to
_OFFSETS = (1.5, 4.5, 13.5, 40.0, 120.0, 360.0)
_LONG_OFFSETS = (1080.0, 3240.0, 9720.0)
_TAIL = 40.0  # beyond the knees, what deviates from a power law has fallen by exp(-40)
_NUM_PANEL_NODES = 20
_TINY_LOG = -36.0


def tilt_range(log_level: Tensor, tilt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r""":math:`\log (\tau + t)`; the log ratio of tilt to it, or -1; and whether there is a tilt."""
    is_tilted = tilt > 0
    log_tilt = torch.where(is_tilted, tilt, 1.0).log()
    log_top = torch.where(is_tilted, torch.logaddexp(log_level, log_tilt), log_level)
    log_ratio = logsigmoid(log_tilt - log_level)
    return log_top, torch.where(is_tilted, log_ratio, -1.0), is_tilted


@in_double
def log_width(discount: Tensor, log_level: Tensor, tilt: Tensor) -> Tensor:
    r""":math:`\log \{[(t + \tau)^\sigma - \tau^\sigma] / \sigma\}`."""
    log_top, log_ratio, is_tilted = tilt_range(log_level, tilt)
    tilted = torch.log(-log_ratio) + log_exprel(discount * log_ratio)
    untilted = -torch.where(is_tilted, 1.0, discount).log()
    return discount * log_top + torch.where(is_tilted, tilted, untilted)


def log_kernel(value: Tensor, discount: Tensor) -> Tensor:
    r""":math:`\log \{x^{-1-\sigma} (1 - e^{-x})\}`."""
    return -(1.0 + discount) * value.log() + log1mexp(value)


@in_double
def log_density(value: Tensor, discount: Tensor, log_level: Tensor, tilt: Tensor) -> Tensor:
    """Log density of the tilted distribution."""
    log_value = value.log()
    return (
        -(1.0 + discount) * log_value
        - tilt * value
        + log1mexp_at_log(log_level + log_value)
        - (1.0 - discount).lgamma()
        - log_width(discount, log_level, tilt)
    )


def log_rate(uniform: Tensor, discount: Tensor, log_level: Tensor, tilt: Tensor) -> Tensor:
    r"""Logarithm of the rate :math:`Y`, with density proportional to :math:`y^{\sigma-1}`."""
    log_top, log_ratio, is_tilted = tilt_range(log_level, tilt)
    power = discount * log_ratio
    tilted = uniform * log_ratio * exprel(power) * log1prel(uniform * torch.expm1(power))
    untilted = torch.log1p(-uniform) / torch.where(is_tilted, 1.0, discount)
    return log_top + torch.where(is_tilted, tilted, untilted)


@in_double
def log_moment(discount: Tensor, log_level: Tensor, tilt: Tensor, order: int) -> Tensor:
    r""":math:`\log E X^n` of the tilted distribution, infinite without tilt."""
    _, log_ratio, is_tilted = tilt_range(log_level, tilt)
    power = order - discount
    value = (
        power.lgamma()
        - (1.0 - discount).lgamma()
        - power * torch.where(is_tilted, tilt, 1.0).log()
        + log1mexp(-power * log_ratio)
        - log_width(discount, log_level, tilt)
    )
    return torch.where(is_tilted, value, math.inf)


@in_double
def log_partial_integral(log_high: Tensor, power: Tensor) -> Tensor:
    r""":math:`\log \int_0^C w^{p-1} (1 - e^{-w}) dw`."""
    log_high, power = torch.broadcast_tensors(log_high, power)
    is_long = log_high > 0.0
    head = _log_series(log_high.clamp(max=0.0), power)
    log_end = torch.where(is_long, log_high, 1.0)
    end, power = log_end.clamp(max=_LARGEST_LOG).exp(), torch.where(is_long, power, 0.5)
    # From 1 to C, of w^{p-1} and of w^{p-1} e^{-w}.
    log_algebraic = log_end.log() + log_exprel(power * log_end)
    log_all = log_upper_gamma(power, torch.ones_like(power))
    log_damped = log_all + log1mexp(log_all - log_upper_gamma(power, end))
    log_rest = log_algebraic + log1mexp(log_algebraic - log_damped)
    return torch.where(is_long, torch.logaddexp(head, log_rest), head)


@in_double
def log_far_integral(log_high: Tensor, discount: Tensor) -> Tensor:
    r""":math:`\log \int_0^C w^{-1-\sigma} (1 - e^{-w}) dw` for large ends.

    It is :math:`[\Gamma(1 - \sigma) - C^{-\sigma}] / \sigma`, but for
    :math:`\Gamma(-\sigma, C)`, which is less than rounding.
    """
    growth = (1.0 - discount).lgamma() + discount * log_high
    return torch.expm1(growth).log() - discount * log_high - discount.log()


@in_double
def log_cdf(value: Tensor, discount: Tensor, log_level: Tensor, tilt: Tensor) -> Tensor:
    """Logarithm of the distribution function of the tilted distribution."""
    value, discount, log_level, tilt = torch.broadcast_tensors(value, discount, log_level, tilt)
    log_top, log_ratio, is_tilted = tilt_range(log_level, tilt)
    log_high = value.log() + log_top
    # The integral of w^{-1-discount} (e^{-r w} - e^{-w}) up to the scaled value.
    log_low = torch.where(is_tilted, value.log() + torch.where(is_tilted, tilt, 1.0).log(), 0.0)
    upper = log_partial_integral(log_high, -discount)
    lower = discount * log_ratio + log_partial_integral(log_low, -discount)
    is_narrow = is_tilted & (log_ratio > -_NARROW)
    gap = torch.where(is_tilted & ~is_narrow, upper - lower, 1.0)
    wide = torch.where(is_tilted, upper + log1mexp(gap), upper)
    narrow = _log_narrow(log_ratio, -discount, 1.0 - discount, log_high)
    log_norm = log_width(discount, log_level, tilt) + (1.0 - discount).lgamma()
    integral = torch.where(is_narrow, narrow, wide)
    return (discount * log_top + integral - log_norm).clamp(max=0.0)


@in_double
def log_scaled_density(
    value: Tensor, scale: Tensor, discount: Tensor, tail_index: Tensor, log_level: Tensor
) -> Tensor:
    r"""Log density of a generalized variable over its scale, :math:`y = x / c`.

    Its last factor is :math:`\int_0^y w^{k-1} (e^{-w} - e^{-(t+1) w}) dw` with
    :math:`k = \tau - \sigma`.
    """
    log_x = value.log() - scale.log()
    power = tail_index - discount
    log_top = torch.logaddexp(log_level, torch.zeros_like(log_level))
    parts = torch.broadcast_tensors(log_x, power, log_level)
    log_part = where_needed(
        log_x + log_top < 0.0, _part_near_zero, _part_far, parts, (-1.0, 1.0, 0.0), (0.0,) * 3
    )
    result: Tensor = (
        tail_index.log()
        - (1.0 - discount).lgamma()
        - log_width(discount, log_level, torch.ones_like(log_x))
        - (1.0 + tail_index) * log_x
        + log_part
    )
    return result


def _part_near_zero(log_x: Tensor, power: Tensor, log_level: Tensor) -> Tensor:
    """That integral up to :math:`1 / (t + 1)` at most, by the series of the exponentials."""
    log_top = torch.logaddexp(log_level, torch.zeros_like(log_level))
    order, signs = _terms(power)
    width = log_top[..., None]
    # Of the differences of two powers, as multiples of the first.
    ratios = exprel(-order * width) / exprel(-width)
    logs = (order - 1.0) * (log_x + log_top)[..., None] - torch.lgamma(order)
    total = (signs * ratios * logs.exp() / (order + power[..., None])).sum(-1)
    return (power + 1.0) * log_x + log_level + total.log()


def _part_far(log_x: Tensor, power: Tensor, log_level: Tensor) -> Tensor:
    """That integral further on, by incomplete gamma functions."""
    log_top = torch.logaddexp(log_level, torch.zeros_like(log_level))
    upper = log_lower_gamma_at_log(power, log_x)
    gap = where_needed(
        log_top < _NARROW_GAP,
        _narrow_gap,
        _wide_gap,
        (log_x, power, log_top, upper),
        (0.0, 1.0, _NARROW_GAP, 0.0),
        (0.0, 1.0, 1.0, 0.0),
    )
    # It has a bound, below which rounding can bring it where the power is huge.
    log_more = log_level + log_x - torch.logaddexp((power + 1.0).log(), log_x)
    return upper + log1mexp(torch.maximum(gap, -power * logsigmoid(-log_more)))


def _wide_gap(log_x: Tensor, power: Tensor, log_top: Tensor, upper: Tensor) -> Tensor:
    r""":math:`\log \gamma(k, y) - \log \gamma(k, (t+1) y) + k \log (t+1)`."""
    return upper - log_lower_gamma_at_log(power, log_x + log_top) + power * log_top


def _narrow_gap(log_x: Tensor, power: Tensor, log_top: Tensor, upper: Tensor) -> Tensor:
    r"""The same over a narrow range, the integral of :math:`k - d \log \gamma(k, z) / d \log z`."""
    nodes, weights = gauss_legendre(_NUM_GAP_NODES, power.device)
    log_z, shape = log_x[..., None] + log_top[..., None] * nodes, power[..., None]
    slope = (shape * log_z - log_z.exp() - log_lower_gamma_at_log(shape, log_z)).exp()
    return log_top * ((shape - slope) * weights).sum(-1)


def sample_truncated(discount: Tensor, high: Tensor) -> Tensor:
    """Draws of the truncated distribution, by rejection under the smaller of two power laws."""
    return by_rejection(_propose_truncated, discount.reshape(-1), high.reshape(-1))


def _propose_truncated(discount: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    log_knee, log_high = high.clamp(max=1.0).log(), high.clamp(min=1.0).log()
    mass_below = torch.exp((1.0 - discount) * log_knee) / (1.0 - discount)
    mass_above = log_high * exprel(-discount * log_high)
    piece, x, accept = torch.rand((3, *high.shape), dtype=high.dtype, device=high.device)
    tiny = torch.finfo(high.dtype).tiny
    below = log_knee + x.clamp(min=tiny).log() / (1.0 - discount)
    above = x * mass_above * log1prel(x * torch.expm1(-discount * log_high))
    is_below = piece * (mass_below + mass_above) < mass_below
    draw = torch.where(is_below, below, above).exp().clamp(min=tiny)
    draw = torch.minimum(draw, high)
    return draw, accept * draw.clamp(max=1.0) < -torch.expm1(-draw)


def _terms(like: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the terms of a series, and their alternating signs."""
    order = torch.arange(1, _NUM_TERMS + 1, dtype=like.dtype, device=like.device)
    return order, 2.0 * (order % 2) - 1.0


def _log_series(log_high: Tensor, power: Tensor) -> Tensor:
    """The partial integral up to one at most, by the series of the exponential."""
    order, signs = _terms(power)
    powers = torch.exp((order - 1.0) * log_high[..., None] - torch.lgamma(order + 1.0))
    total = (signs * powers / (order + power[..., None])).sum(-1)
    return (power + 1.0) * log_high + total.log()


def _log_narrow(log_ratio: Tensor, power: Tensor, shape: Tensor, log_high: Tensor) -> Tensor:
    r"""Integral of :math:`s^{-p-1} \gamma(a, s z)` over a narrow range :math:`[r, 1]`."""
    log_ratio = log_ratio.clamp(min=-_NARROW)
    nodes, weights = gauss_legendre(_NUM_NODES, power.device)
    log_s = log_ratio[..., None] * nodes
    lower = log_lower_gamma_at_log(shape[..., None], log_high[..., None] + log_s)
    terms = weights.log() - power[..., None] * log_s + lower
    return torch.log(-log_ratio) + terms.logsumexp(-1)


def log_beta_prime_density(x: Tensor, discount: Tensor, power: Tensor, log_level: Tensor) -> Tensor:
    r""":math:`\log h(z)`."""
    log_constant = (
        power.lgamma()
        - (power + discount).lgamma()
        - (1.0 - discount).lgamma()
        - log_width(discount, log_level, torch.ones_like(discount))
    )
    return log_constant + _log_beta_prime_kernel(x, discount, power, log_level)


def beta_prime_cdf(x: Tensor, discount: Tensor, power: Tensor, log_level: Tensor) -> Tensor:
    """Distribution function of the logarithm."""
    parts = torch.broadcast_tensors(x, discount, power, log_level)
    return _integral(torch.ones_like, *parts).clamp(max=1.0)


def beta_prime_expectation(
    function: Callable[[Tensor], Tensor], discount: Tensor, power: Tensor, log_level: Tensor
) -> Tensor:
    """Expectation of a function of the logarithm, constant beyond 40 from zero on the right."""
    end = torch.full_like(discount, _TAIL)
    inner = _integral(function, end, discount, power, log_level)
    outer = log_beta_prime_density(end, discount, power, log_level).exp() / (power + discount)
    return inner + outer * function(end[..., None]).squeeze(-1)


def rsample_log_beta_prime(discount: Tensor, power: Tensor, log_level: Tensor) -> Tensor:
    """Logarithms of draws, with gradients; all arguments of one shape."""
    log_gamma = rsample_log_gamma(1.0 - discount)
    uniform = torch.rand_like(discount)
    log_rate_ = log_rate(uniform, discount, log_level, torch.ones_like(discount))
    return log_gamma - log_rate_ - rsample_log_gamma(power + discount)


def _log_beta_prime_kernel(x: Tensor, discount: Tensor, power: Tensor, log_level: Tensor) -> Tensor:
    log_more = -logsigmoid(-x)
    # The logarithm of 1 + t y / (1 + y), times the power.
    log_part = log_level + x - log_more
    is_tiny = log_part < _TINY_LOG
    growth = torch.where(is_tiny, log_part, (-logsigmoid(-log_part.clamp(min=_TINY_LOG))).log())
    return log1mexp_at_log(power.log() + growth) - discount * x - power * log_more


def _integral(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    discount: Tensor,
    power: Tensor,
    log_level: Tensor,
) -> Tensor:
    """Integral of a function of the logarithm up to a point; it is constant on the far left."""
    with torch.no_grad():
        edges = _edges(power, log_level)
    edges = torch.minimum(edges, x[..., None])
    nodes, weights = gauss_legendre(_NUM_PANEL_NODES, edges.device)
    lengths = edges.diff()[..., None]
    points = (edges[..., :-1, None] + lengths * nodes).flatten(-2)
    weights = (lengths * weights).flatten(-2)
    parts = (discount[..., None], power[..., None], log_level[..., None])
    inner = (log_beta_prime_density(points, *parts).exp() * weights * function(points)).sum(-1)
    start = edges[..., :1]
    outer = log_beta_prime_density(start, *parts).exp() / (1.0 - parts[0]) * function(start)
    return inner + outer.squeeze(-1)


def _edges(power: Tensor, log_level: Tensor) -> Tensor:
    """Ends of the panels in increasing order, in a new last axis."""
    bend = -power.clamp(min=1.0).log()
    knees = torch.stack([bend - log_level, bend, torch.zeros_like(bend)], -1)
    near = torch.tensor(
        [*(-offset for offset in _OFFSETS), 0.0, *_OFFSETS], dtype=bend.dtype, device=bend.device
    )
    far = torch.tensor(_LONG_OFFSETS, dtype=bend.dtype, device=bend.device)
    edges = torch.cat([(knees[..., None] + near).flatten(-2), knees[..., :1] + far], -1)
    start = knees.amin(-1, keepdim=True) - _TAIL
    return torch.cat([start, torch.maximum(edges, start).sort(-1).values], -1)
