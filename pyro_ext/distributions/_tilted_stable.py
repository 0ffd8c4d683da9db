r"""Exponentially tilted stable laws as functions of tensors.

A law of mass :math:`V` and tilt :math:`\tau` is :math:`V^{1/\sigma}` times one of mass one with
:math:`\tau V^{1/\sigma}` for a tilt, so that :math:`\lambda = V \tau^\sigma` and the stability
decide the shape.

[1] L. Devroye (2009), Random variate generation for exponentially and polynomially tilted stable
distributions.
"""

import math

import torch
from torch import Tensor

from pyro_ext.distributions import _stable
from pyro_ext.special import gauss_legendre, in_double, log_sinc

__all__ = ["cdf", "log_density", "sample_log"]

_ROOT_HALF_PI = math.sqrt(math.pi / 2.0)
_FEW_TRIALS = 1.0
_LEVELS = (40.0, 12.0, 3.0, 0.7)
_LOWEST = -42.0
_NUM_PANELS = 20
_NUM_NODES = 12
_NUM_HALVINGS = 30
_LARGEST_LOG = 300.0


@in_double
def log_density(log_value: Tensor, mass: Tensor, stability: Tensor, tilt: Tensor) -> Tensor:
    """Log density at the exponential of ``log_value``."""
    log_value, log_scale, log_power, is_tilted = _standardize(log_value, mass, stability, tilt)
    untilted = _stable.log_density(log_value, stability)
    tilted = _stable.log_tilted_density(log_value, stability, log_power)
    return torch.where(is_tilted, tilted, untilted) - log_scale


@in_double
def cdf(log_value: Tensor, mass: Tensor, stability: Tensor, tilt: Tensor) -> Tensor:
    """Distribution function at the exponential of ``log_value``."""
    log_value, _, log_power, is_tilted = _standardize(log_value, mass, stability, tilt)
    untilted = _stable.log_cdf(log_value, stability).exp()
    return torch.where(is_tilted, _tilted_cdf(log_value, stability, log_power), untilted)


@in_double
def sample_log(mass: Tensor, stability: Tensor, tilt: Tensor) -> Tensor:
    """Logarithms of independent draws, by rejection; all arguments of one shape."""
    _, log_scale, log_power, is_tilted = _standardize(mass, mass, stability, tilt)
    power = torch.where(is_tilted, log_power.exp(), 0.0).reshape(-1)
    flat_stability = stability.reshape(-1)
    result = torch.empty_like(power)
    waiting = torch.arange(power.numel(), device=power.device)
    while waiting.numel():
        lightly = power[waiting] <= _FEW_TRIALS
        left = []
        for part, propose in ((waiting[lightly], _plain_trial), (waiting[~lightly], _double_trial)):
            if part.numel():
                draw, is_accepted = propose(power[part], flat_stability[part])
                result[part[is_accepted]] = draw[is_accepted]
                left.append(part[~is_accepted])
        waiting = torch.cat(left)
    return result.view(mass.shape) + log_scale


def _standardize(
    log_value: Tensor, mass: Tensor, stability: Tensor, tilt: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Log value and log scale for mass one, :math:`\log \lambda`, and whether there is a tilt."""
    is_tilted = tilt > 0
    log_scale = mass.log() / stability
    log_power = mass.log() + stability * torch.where(is_tilted, tilt, 1.0).log()
    return log_value - log_scale, log_scale, log_power, is_tilted


def _plain_trial(power: Tensor, stability: Tensor) -> tuple[Tensor, Tensor]:
    """A stable draw and whether it is kept, which takes ``exp(power)`` trials on average."""
    draw = _stable.rsample_log(stability)
    tilted = torch.exp(draw + power.log() / stability)
    return draw, torch.rand_like(draw).log() <= -tilted


def _double_trial(power: Tensor, stability: Tensor) -> tuple[Tensor, Tensor]:
    """One trial of the double rejection of [1], which takes a bounded number of them."""
    gain, log_height, overshoot = _propose_angle(power, stability)
    inside = torch.nonzero(log_height <= 0.0).squeeze(-1)
    draw, is_accepted = torch.empty_like(power), torch.zeros_like(power, dtype=torch.bool)
    draw[inside], is_accepted[inside] = _propose_value(
        *(part[inside] for part in (power, stability, gain, log_height, overshoot))
    )
    return draw, is_accepted


def _propose_angle(power: Tensor, stability: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First stage: gain of the angle, log height under its envelope, accepted up to zero, and z."""
    spread = power * stability * (1.0 - stability)
    root = spread.sqrt()
    bell = (1.0 + math.sqrt(2.0) * root * (2.0 + _ROOT_HALF_PI)) / math.pi
    edge = (
        torch.exp(-spread * (math.pi**2 / 8.0)) * (2.0 + _ROOT_HALF_PI) * root / math.sqrt(math.pi)
    )
    is_wide = spread < 1.0
    bell_mass = torch.where(is_wide, bell * math.pi, bell * _ROOT_HALF_PI / root)
    edge_mass = 2.0 * edge * math.sqrt(math.pi)
    choice, place, height = torch.rand((3, *power.shape), dtype=power.dtype, device=power.device)
    from_bell = torch.where(is_wide, math.pi * place, torch.randn_like(power).abs() / root)
    is_bell = choice * (bell_mass + edge_mass) < bell_mass
    angle = torch.where(is_bell, from_bell, math.pi * (1.0 - place.square()))
    rest = torch.where(is_bell, math.pi - angle, math.pi * place.square())
    outside = rest <= 0.0
    angle, rest = torch.where(outside, 1.0, angle), torch.where(outside, math.pi - 1.0, rest)
    # Half the logarithm of the function B of the paper, which is 1 / A to a power.
    gain = _stable.log_zolotarev_gain(angle, rest, stability)
    log_zeta = -0.5 * (1.0 - stability) * gain
    zeta = log_zeta.exp()
    overshoot = -1.0 / torch.expm1(-torch.log1p(stability * zeta / root) / stability)
    envelope = torch.where(is_wide, bell, bell * torch.exp(-0.5 * spread * angle.square()))
    envelope = envelope + edge / rest.sqrt()
    log_ratio = math.log(math.pi) + power * torch.expm1(-2.0 * log_zeta)
    log_ratio = log_ratio + envelope.log()
    log_ratio = log_ratio - torch.log((1.0 + _ROOT_HALF_PI) * root / zeta + overshoot)
    log_height = torch.where(outside, math.inf, log_ratio + height.log())
    return gain, log_height, overshoot


def _propose_value(
    power: Tensor, stability: Tensor, gain: Tensor, log_height: Tensor, overshoot: Tensor
) -> tuple[Tensor, Tensor]:
    """Second stage: log value given the angle, and whether it is accepted.

    The proposal is a half normal left of the mode, uniform and then exponential right of it.
    """
    exponent = (1.0 - stability) / stability
    log_rate = _stable.log_zolotarev_start(stability) + gain
    log_mode = stability * (exponent.log() - log_rate) + power.log()
    # All lengths below are in multiples of the mode, and the rate too.
    rate = torch.exp(log_rate + log_mode)
    deviation = torch.sqrt(stability / rate)
    left, right = deviation * _ROOT_HALF_PI, overshoot / rate
    choice, place = torch.rand((2, *power.shape), dtype=power.dtype, device=power.device)
    normal = torch.randn_like(power).abs()
    exponential = -torch.log1p(-torch.rand_like(power))
    choice = choice * (left + deviation + right)
    is_left, is_right = choice < left, choice >= left + deviation
    step = torch.where(
        is_left,
        -deviation * normal,
        deviation * torch.where(is_right, 1.0, place)
        + torch.where(is_right, right * exponential, 0.0),
    )
    inside = step > -1.0
    log_step = torch.log1p(torch.where(inside, step, 0.0))
    cost = rate * (step + torch.expm1(-exponent * log_step) / exponent)
    cost = cost - torch.where(is_left, 0.5 * normal.square(), 0.0)
    cost = cost - torch.where(is_right, exponential, 0.0)
    return -exponent * (log_mode + log_step), inside & (cost <= -log_height)


def _tilted_cdf(log_value: Tensor, stability: Tensor, log_power: Tensor) -> Tensor:
    r"""Distribution function of the tilted law of mass one, by steepest descent.

    Zolotarev's integral is the inverse Laplace transform along the path of steepest descent, on
    which the exponent is real. The tilted distribution function has the same path and one factor
    more, :math:`1 / s`. Its pole lies right of the path beyond the mean; its residue is added then.
    """
    distance, log_multiple = _stable.tilted_distance(log_value, stability, log_power)
    log_start = _stable.log_zolotarev_start(stability)
    log_ratio = log_start - stability / (1.0 - stability) * log_value
    log_ratio = log_ratio.clamp(max=_LARGEST_LOG)
    with torch.no_grad():
        places, log_weights = _cdf_nodes(log_ratio, stability)
    angle, rest = math.pi * torch.sigmoid(places), math.pi * torch.sigmoid(-places)
    shape = stability[..., None]
    gain = _stable.log_zolotarev_gain(angle, rest, shape)
    excess = torch.exp(log_ratio[..., None]) * torch.expm1(gain.clamp(max=_LARGEST_LOG))
    stretch = log_sinc(shape * angle, (1.0 - shape) * angle + rest) - log_sinc(angle, rest)
    log_radius = ((stretch - log_multiple[..., None]) / (1.0 - shape)).clamp(max=_LARGEST_LOG / 3)
    radius = log_radius.exp()
    sine = torch.minimum(angle, rest).sin()
    versine = 2.0 * (0.5 * angle).sin().square()
    across = torch.expm1(log_radius) + versine  # the radius less the cosine
    along = _log_radius_slope(angle, rest, shape) * sine
    factor = radius * (across - along) / (across.square() + sine.square())
    jacobian = torch.sigmoid(places) * torch.sigmoid(-places)
    terms = torch.exp(log_weights - excess.clamp(max=700.0)) * factor * jacobian
    integral = terms.sum(-1) * torch.exp(-distance.clamp(max=700.0))
    return (torch.where(log_multiple > 0, 1.0, 0.0) + integral).clamp(0.0, 1.0)


def _log_radius_slope(angle: Tensor, rest: Tensor, stability: Tensor) -> Tensor:
    """Derivative of the logarithm of the path's radius in its angle."""
    near = angle < 1e-2
    small = torch.where(near, angle, 0.0)
    squares = 1.0 + stability.square()
    series = small * (1.0 + stability) * (1.0 / 3.0 + small.square() * squares / 45.0)
    far, far_rest = torch.where(near, 1.0, angle), torch.where(near, 1.0, rest)
    is_left = far < 0.5 * math.pi
    cotangent = torch.where(is_left, 1.0, -1.0) / torch.where(is_left, far, far_rest).tan()
    inner = stability / (stability * far).tan()
    return torch.where(near, series, (inner - cotangent) / (1.0 - stability))


def _cdf_nodes(log_ratio: Tensor, stability: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and log weights over panels that end where the integrand has vanished."""
    levels = torch.tensor(_LEVELS, dtype=log_ratio.dtype, device=log_ratio.device).log()
    low = torch.full_like(log_ratio[..., None] + levels, _LOWEST)
    high = torch.full_like(low, 60.0)
    for _ in range(_NUM_HALVINGS):
        middle = 0.5 * (low + high)
        angle, rest = math.pi * torch.sigmoid(middle), math.pi * torch.sigmoid(-middle)
        gain = _stable.log_zolotarev_gain(angle, rest, stability[..., None]).clamp(min=1e-300)
        log_excess = log_ratio[..., None] + gain + torch.log(-torch.expm1(-gain))
        inside = log_excess < levels
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    grid = torch.linspace(1.0, 0.0, _NUM_PANELS + 1, dtype=low.dtype, device=low.device)
    tail = low[..., -1:] + (_LOWEST - low[..., -1:]) * (1.0 - grid)
    edges = torch.cat([tail.flip(-1), low[..., :-1].flip(-1)], -1)
    nodes, weights = gauss_legendre(_NUM_NODES, low.device)
    lengths = edges.diff()[..., None]
    places = (edges[..., :-1, None] + lengths * nodes).flatten(-2)
    log_weights = (lengths * weights).clamp(min=1e-300).log().flatten(-2)
    return places, log_weights
