r"""Positive stable distributions and their exponential tilts as functions of tensors.

With :math:`b = \sigma / (1 - \sigma)` and Zolotarev's function :math:`A`, the stable distribution
of :math:`E\, e^{-tS} = e^{-t^\sigma}` has

.. math:: P(S \leq x) = \frac{1}{\pi} \int_0^\pi \exp\{-A(u)\, x^{-b}\} \, du , \quad
          A(u) = \Big[ \frac{\sin^\sigma \sigma u \, \sin^{1-\sigma} (1 - \sigma) u}{\sin u}
          \Big]^{1 / (1 - \sigma)} .

The integrals run over :math:`v = \log \{u / (\pi - u)\}`, where the integrands have one peak and
fall at least exponentially on both sides. The peak and the points where the logarithm of the
integrand has fallen by given amounts are found by bisection, and the panels between them get nodes
of their own, so that an integrand of any width is resolved. That of the distribution function has a
plateau too, and gets panels where it ends.

With mass :math:`V` and tilt :math:`\tau`, a variable is :math:`V^{1/\sigma}` times one of mass one
with the tilt :math:`\tau V^{1/\sigma}`, so that :math:`\lambda = V \tau^\sigma` and the stability
decide the shape.

[1] L. Devroye (2009), Random variate generation for exponentially and polynomially tilted stable
distributions.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_ext.distributions.bases import halved
from pyro_ext.special import expm1mx, in_double, log_sinc, opaque, panel_nodes

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
_ROOT_HALF_PI = math.sqrt(math.pi / 2.0)
_FEW_TRIALS = 1.8
_BLOCK_SIZE = 4096
_WIDE_SPREAD = 0.5 / math.pi
_SLACK_SPREAD = 0.1
_SLACK = 0.3
_LEVELS = (40.0, 12.0, 3.0, 0.7, 0.05, 3e-4, 1e-7, 1e-12)
_PLATEAU = 3  # which of them the plateau begins beyond
_LOWEST = -42.0
_NUM_PANELS = 20
_NUM_LEVEL_HALVINGS = 30
_LARGEST_LOG_POWER = 300.0
Trial = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def log_zolotarev_start(stability: Tensor) -> Tensor:
    r""":math:`\log A(0)`, the least value."""
    return torch.log1p(-stability) + stability / (1.0 - stability) * stability.log()


def log_zolotarev_gain(angle: Tensor, rest: Tensor, stability: Tensor) -> Tensor:
    r""":math:`\log A(u) - \log A(0)`, which increases from zero to infinity."""
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
    x: Tensor, log_ratio: Tensor, stability: Tensor, power: float | Tensor
) -> Tensor:
    r"""Logarithm of :math:`\phi^p e^{-(\phi - \phi_0)} dv`, where :math:`\phi = A x^{-b}`."""
    angle, rest = _angles(x)
    gain = log_zolotarev_gain(angle, rest, stability).clamp(min=0.0)
    excess = torch.exp((log_ratio + log_expm1(gain)).clamp(max=_LARGEST_LOG))
    jacobian = angle * rest / math.pi**2
    return power * (log_ratio + gain) - excess + jacobian.clamp(min=_SMALLEST).log()


def _angles(x: Tensor) -> tuple[Tensor, Tensor]:
    """Angles from the logarithms of their ratio to the rest, and the rest."""
    return math.pi * torch.sigmoid(x), math.pi * torch.sigmoid(-x)


def log_expm1(x: Tensor) -> Tensor:
    """Logarithm of ``expm1`` of numbers from zero on."""
    # By a series near zero, since compiled code has expm1 to an absolute error only.
    near = x < _NEAR_ZERO
    small = torch.where(near, x, 1.0).clamp(min=_SMALLEST)
    large = torch.where(near, 1.0, x)
    series = small.log() + small * (0.5 + small / 24.0)
    return torch.where(near, series, large + torch.log(-torch.expm1(-large)))


def _farthest(stability: Tensor, log_value: Tensor) -> Tensor:
    """A point beyond which the integrand has vanished or falls."""
    return (stability * log_value).clamp(min=0.0) - torch.log1p(-stability) + 8.0


def _peak(log_ratio: Tensor, stability: Tensor, log_value: Tensor, power: Tensor) -> Tensor:
    """Find the maximizer of the integrand by golden-section search."""
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

    def is_inside(log_distance: Tensor) -> Tensor:
        x = peak + side * log_distance.exp()
        return _log_integrand(x, log_ratio, stability, power) > top - drops

    ends = peak + side * halved(is_inside, near, far, _NUM_HALVINGS)[1].exp()
    half = len(_DROPS)
    return torch.cat([ends[..., :half], peak, ends[..., half:]], -1)


@opaque("stable_bends", len(_LOG_EXCESSES))
def _bends(log_ratio: Tensor, stability: Tensor, log_value: Tensor) -> Tensor:
    r"""Find where :math:`\log(\phi - \phi_0)` takes values around zero, at the plateau's end."""
    log_ratio, stability, log_value = (
        value[..., None] for value in (log_ratio, stability, log_value)
    )
    wanted = torch.tensor(_LOG_EXCESSES, dtype=log_ratio.dtype, device=log_ratio.device)
    low = torch.zeros_like(log_ratio + wanted) - 0.5 * log_ratio.clamp(min=0.0) - 20.0
    high = torch.zeros_like(low) + _farthest(stability, log_value)

    def is_low(x: Tensor) -> Tensor:
        gain = log_zolotarev_gain(*_angles(x), stability).clamp(min=0.0)
        return log_ratio + log_expm1(gain) < wanted

    low, high = halved(is_low, low, high, _NUM_FINE_HALVINGS)
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
        points, log_weights = panel_nodes(edges, _NUM_NODES)
    logs = _log_integrand(points, log_ratio[..., None], stability[..., None], power)
    return log_ratio, (log_weights + logs).logsumexp(-1)


@in_double
def log_density(log_value: Tensor, stability: Tensor) -> Tensor:
    """Log density of the positive stable distribution, of the logarithm of a number."""
    log_ratio, log_integral = _log_integral(log_value, stability, 1.0)
    return (stability / (1.0 - stability)).log() - log_value + log_integral - log_ratio.exp()


@in_double
def log_cdf(log_value: Tensor, stability: Tensor) -> Tensor:
    """Logarithm of the distribution function of the positive stable distribution."""
    log_ratio, log_integral = _log_integral(log_value, stability, 0.0)
    return (log_integral - log_ratio.exp()).clamp(max=0.0)


def log_tilted_density(
    log_value: Tensor, stability: Tensor, log_power: Tensor, is_tilted: Tensor
) -> Tensor:
    r"""Log density of the tilted distribution of mass one, in float64."""
    distance, _ = tilted_distance(log_value, stability, log_power)
    log_ratio, log_integral = _log_integral(log_value, stability, 1.0)
    distance = torch.where(is_tilted, distance, log_ratio.exp())
    return (stability / (1.0 - stability)).log() - log_value + log_integral - distance


def tilted_distance(
    log_value: Tensor, stability: Tensor, log_power: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The exponents at :math:`u = 0`, of integrand, tilt and constant, which all but cancel.

    Their sum is zero at :math:`\sigma \tau^{\sigma - 1}`, and taken from there.
    """
    exponent = stability / (1.0 - stability)
    log_multiple = log_value - stability.log() + log_power / exponent
    distance = _scaled_expm1mx(log_power + torch.log1p(-stability), -exponent * log_multiple)
    distance = distance + _scaled_expm1mx(log_power + stability.log(), log_multiple)
    return distance, log_multiple


def rsample_log(stability: Tensor) -> Tensor:
    """Logarithms of positive stable draws by Kanter's formula, with gradients."""
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


@in_double
def log_density_with_tilt(
    log_value: Tensor, mass: Tensor, stability: Tensor, tilt: Tensor
) -> Tensor:
    """Log density at the exponential of ``log_value``."""
    log_value, log_scale, log_power, is_tilted = _standardize(log_value, mass, stability, tilt)
    log_one = log_tilted_density(log_value, stability, log_power, is_tilted)
    return log_one - log_scale


@in_double
def tilted_cdf(log_value: Tensor, mass: Tensor, stability: Tensor, tilt: Tensor) -> Tensor:
    """Distribution function at the exponential of ``log_value``."""
    log_value, _, log_power, is_tilted = _standardize(log_value, mass, stability, tilt)
    untilted = log_cdf(log_value, stability).exp()
    return torch.where(is_tilted, _tilted_cdf(log_value, stability, log_power), untilted)


@in_double
def sample_log_tilted(mass: Tensor, stability: Tensor, tilt: Tensor) -> Tensor:
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
                draw, is_accepted = _first_accepted(propose, power[part], flat_stability[part])
                result[part] = draw
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


def _first_accepted(propose: Trial, power: Tensor, stability: Tensor) -> tuple[Tensor, Tensor]:
    """The first accepted of some trials each, more of them the fewer draws are wanted."""
    num_trials = max(1, _BLOCK_SIZE // power.numel())
    draws, are_accepted = propose(power.repeat(num_trials), stability.repeat(num_trials))
    are_accepted = are_accepted.view(num_trials, -1)
    first = are_accepted.byte().argmax(0, keepdim=True)
    draws = draws.view(num_trials, -1).gather(0, first).squeeze(0)
    return draws, are_accepted.any(0)


def _plain_trial(power: Tensor, stability: Tensor) -> tuple[Tensor, Tensor]:
    """A stable draw and whether it is kept, which takes ``exp(power)`` trials on average."""
    draw = rsample_log(stability)
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
    root, is_wide, bell, edge = _envelope(spread)
    bell_mass = bell * torch.where(is_wide, math.pi, _ROOT_HALF_PI / root)
    edge_mass = 2.0 * edge * math.sqrt(math.pi)
    choice, x, height = torch.rand((3, *power.shape), dtype=power.dtype, device=power.device)
    from_bell = torch.where(is_wide, math.pi * x, torch.randn_like(power).abs() / root)
    is_bell = choice * (bell_mass + edge_mass) < bell_mass
    from_edge = math.pi * x.square()
    angle = torch.where(is_bell, from_bell, math.pi - from_edge)
    rest = torch.where(is_bell, math.pi - from_bell, from_edge)
    safe = rest.clamp(min=torch.finfo(rest.dtype).tiny)
    gain, log_ratio, overshoot = angle_ratio(angle, safe, power, stability)
    log_height = torch.where(rest > 0.0, log_ratio + height.log(), math.inf)
    return gain, log_height, overshoot


def angle_ratio(
    angle: Tensor, rest: Tensor, power: Tensor, stability: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Gain of an angle, log ratio of its envelope to its density, and z.

    The envelope is that of [1] with two changes, both of which raise the acceptance. Its bell is
    used down to spreads of :math:`1 / (2 \pi)`, below which a uniform distribution has less mass,
    and not down to one; the bound of [1] for the uniform distribution is that of the bell. Above a
    spread of 0.1 it is lowered by a slack: the ratio exceeds :math:`e^{0.316}` there at every
    stability.
    """
    spread = power * stability * (1.0 - stability)
    root, is_wide, bell, edge = _envelope(spread)
    # Half the logarithm of the function B of the paper, which is 1 / A to a power.
    gain = log_zolotarev_gain(angle, rest, stability)
    log_zeta = -0.5 * (1.0 - stability) * gain
    zeta = log_zeta.exp()
    overshoot = -1.0 / torch.expm1(-torch.log1p(stability * zeta / root) / stability)
    fall = torch.where(is_wide, 0.0, -0.5 * spread * angle.square())
    envelope = (bell * fall.exp() + edge / rest.sqrt()) * math.pi
    target = (1.0 + _ROOT_HALF_PI) * root / zeta + overshoot
    log_ratio = power * torch.expm1(-2.0 * log_zeta) + torch.log(envelope / target)
    return gain, log_ratio - torch.where(spread < _SLACK_SPREAD, 0.0, _SLACK), overshoot


def _envelope(spread: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Root of the spread, whether a uniform distribution replaces the bell, and two heights."""
    root = spread.sqrt()
    bell = (1.0 + math.sqrt(2.0) * root * (2.0 + _ROOT_HALF_PI)) / math.pi
    edge = torch.exp(-spread * (math.pi**2 / 8.0)) * root
    return root, spread < _WIDE_SPREAD, bell, edge * ((2.0 + _ROOT_HALF_PI) / math.sqrt(math.pi))


def _propose_value(
    power: Tensor, stability: Tensor, gain: Tensor, log_height: Tensor, overshoot: Tensor
) -> tuple[Tensor, Tensor]:
    """Second stage: log value given the angle, and whether it is accepted.

    The proposal is a half normal left of the mode, uniform and then exponential right of it.
    """
    exponent = (1.0 - stability) / stability
    log_rate = log_zolotarev_start(stability) + gain
    log_mode = stability * (exponent.log() - log_rate) + power.log()
    # All lengths below are in multiples of the mode, and the rate too.
    rate = torch.exp(log_rate + log_mode)
    deviation = torch.sqrt(stability / rate)
    left, right = deviation * _ROOT_HALF_PI, overshoot / rate
    choice, x = torch.rand((2, *power.shape), dtype=power.dtype, device=power.device)
    normal = torch.randn_like(power).abs()
    exponential = -torch.log1p(-torch.rand_like(power))
    choice = choice * (left + deviation + right)
    is_left, is_right = choice < left, choice >= left + deviation
    step = torch.where(
        is_left,
        -deviation * normal,
        deviation * torch.where(is_right, 1.0, x) + torch.where(is_right, right * exponential, 0.0),
    )
    inside = step > -1.0
    log_step = torch.log1p(torch.where(inside, step, 0.0))
    cost = rate * (step + torch.expm1(-exponent * log_step) / exponent)
    cost = cost - torch.where(is_left, 0.5 * normal.square(), 0.0)
    cost = cost - torch.where(is_right, exponential, 0.0)
    return -exponent * (log_mode + log_step), inside & (cost <= -log_height)


def _tilted_cdf(log_value: Tensor, stability: Tensor, log_power: Tensor) -> Tensor:
    r"""Distribution function of the tilted distribution of mass one, by steepest descent.

    Zolotarev's integral is the inverse Laplace transform along the path of steepest descent, on
    which the exponent is real. The tilted distribution function has the same path and one factor
    more, :math:`1 / s`. Its pole lies right of the path beyond the mean; its residue is added then.
    """
    distance, log_multiple = tilted_distance(log_value, stability, log_power)
    log_start = log_zolotarev_start(stability)
    log_ratio = log_start - stability / (1.0 - stability) * log_value
    log_ratio = log_ratio.clamp(max=_LARGEST_LOG_POWER)
    with torch.no_grad():
        points, log_weights = _cdf_nodes(log_ratio, stability)
    angle, rest = _angles(points)
    shape = stability[..., None]
    gain = log_zolotarev_gain(angle, rest, shape)
    excess = (log_ratio[..., None] + log_expm1(gain)).clamp(max=2.0 * _LARGEST_LOG_POWER).exp()
    stretch = log_sinc(shape * angle, (1.0 - shape) * angle + rest) - log_sinc(angle, rest)
    log_radius = ((stretch - log_multiple[..., None]) / (1.0 - shape)).clamp(
        max=_LARGEST_LOG_POWER / 3
    )
    radius = log_radius.exp()
    sine = torch.minimum(angle, rest).sin()
    versine = 2.0 * (0.5 * angle).sin().square()
    across = torch.expm1(log_radius) + versine  # the radius less the cosine
    along = _log_radius_slope(angle, rest, shape) * sine
    factor = radius * (across - along) / (across.square() + sine.square())
    jacobian = torch.sigmoid(points) * torch.sigmoid(-points)
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
    ends = _cdf_ends(log_ratio, stability)
    # Shorter on the right, where the factor has poles close to the path.
    grid = torch.linspace(0.0, 1.0, _NUM_PANELS + 1, dtype=ends.dtype, device=ends.device) ** 1.5
    start = ends[..., _PLATEAU, None]
    tail = start + (_LOWEST - start) * grid
    return panel_nodes(torch.cat([tail, ends], -1).sort(-1).values)


@opaque("tilted_stable_cdf_ends", len(_LEVELS))
def _cdf_ends(log_ratio: Tensor, stability: Tensor) -> Tensor:
    """Find where the exponent has grown by each of the levels, by bisection."""
    levels = torch.tensor(_LEVELS, dtype=log_ratio.dtype, device=log_ratio.device).log()
    log_ratio, stability = log_ratio[..., None], stability[..., None]
    low = torch.full_like(log_ratio + stability + levels, _LOWEST)

    def is_low(x: Tensor) -> Tensor:
        return log_ratio + log_expm1(log_zolotarev_gain(*_angles(x), stability)) < levels

    return halved(is_low, low, torch.full_like(low, 60.0), _NUM_LEVEL_HALVINGS)[0]
