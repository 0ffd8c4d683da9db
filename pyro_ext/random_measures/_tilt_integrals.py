r"""Integrals over the tilts of mixed generalized gamma measures, and densities of total masses.

The generalized BFRY and the beta prime process have Lévy densities

.. math:: \frac{\eta}{\Gamma(1 - \sigma)} w^{-1-\sigma} e^{-u w}
          \int_0^\infty x^{k-1} g(x) e^{-w x} dx , \quad k > 0 ,

where :math:`g` is the indicator of :math:`x < c` or :math:`e^{-c x}`. With a scale taken out of
:math:`x`, so that the mixing density ends about 1, what is needed are integrals over
:math:`v = \log x`, here by quadrature. ``damping`` is 0 where the density ends at 1, and 1 where it
falls as :math:`e^{-x}`. Names of arguments go with :math:`k` (power), :math:`q` (order),
:math:`t` (shift) and :math:`z` (tilt).

Densities of total masses are by inversion of their Laplace transforms. Without tilt and on the
scale of the mixing density, the total mass :math:`S` has
:math:`E\, e^{-sS} = e^{-\psi(s)}` with

.. math:: \psi(s) = m \int_0^\infty x^{k-1} g(x) \frac{(x + s)^\sigma - x^\sigma}{\sigma} dx ,

which is analytic but for a cut along the negative numbers. A tilt :math:`u` multiplies the density
at :math:`x` by :math:`e^{\psi(u) - ux}`, so that with :math:`q(s) = 1`, and
:math:`q(s) = 1 / (s - u)` for the distribution function, what is needed is

.. math:: e^{\psi(u) - ux} \frac{1}{2 \pi i} \int e^{sx - \psi(s)} q(s) \, ds .

The contour starts at the saddle point right of zero, where all is real, and bends to the left. In
the tail, where there is no saddle point or its value is much larger than the integral, the contour
first follows the cut from zero. There the integrand is a small imaginary part, which is known by
itself and of one sign, so that densities of any size keep their precision.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.random_measures._numerics import sample_log_concave
from pyro_ext.special import in_double, log_exprel, log_sinc, opaque
from pyro_ext.special.operations import holds_everywhere
from pyro_ext.special.quadrature import integrate_log, num_edges, panel_edges, panel_nodes

_FALL = 42.0
_TINY_LOG = -30.0
_LARGEST_LOG = 300.0
_CHUNK = 16  # elements at once, of which each takes some 30 megabytes
_LOWEST, _HIGHEST = -300.0, 150.0
# Logarithms of values whose saddle points are within these; beyond them asymptotics go on.
_LEAST_VALUE, _LARGEST_VALUE = -100.0, 200.0
_LARGEST_RISE, _LARGEST_LOSS = 600.0, 1e300
_NUM_HALVINGS = 48
_NUM_POINTS = 32
_REACH = 40.0
_SMALL_SINE_LOG = -18.0
_TINY_RATIO = 40.0
_SHALLOW = -1.0
_NUM_STEPS, _NUM_ROUNDS = 12, 2
_NUM_PANELS = 12
_FAR = 40.0
_NUM_TERMS = 60
# Asymptotically the contour makes this angle with the positive numbers.
_ANGLE = 2.0
# How far the contour of the mixing variable turns away from the positive numbers.
_ROTATION = {0.0: 0.5 * math.pi, 1.0: 0.25 * math.pi}
# The last point on the cut, before the mixing density ends.
_LAST = {0.0: 0.7, 1.0: 5.0}
_NUM_PLANNED = 3 + num_edges(1)


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


class MixedExponent(NamedTuple):
    """Parameters of the exponent, in float64 and of one shape."""

    log_mass: Tensor
    power: Tensor
    discount: Tensor
    damping: float

    @property
    def _damping(self) -> Tensor:
        return torch.full_like(self.power, self.damping)

    def log_exponent(self, log_shift: Tensor) -> Tensor:
        """Logarithm of the exponent at a positive number, by its logarithm."""
        none = torch.full_like(log_shift, -torch.inf)
        return self.log_mass + log_exponent_integral(
            self.power, self.discount, log_shift, none, self._damping
        )

    def log_slope(self, log_shift: Tensor) -> Tensor:
        """Logarithm of its derivative."""
        return self.log_mass + log_moment_integral(
            self.power, 1.0 - self.discount, log_shift, self._damping
        )

    def log_bend(self, log_shift: Tensor) -> Tensor:
        """Logarithm of its second derivative, which is negative."""
        moment = log_moment_integral(self.power, 2.0 - self.discount, log_shift, self._damping)
        return self.log_mass + torch.log1p(-self.discount) + moment

    def exponent(self, point: Tensor) -> Tensor:
        """Exponent at points of the upper half plane, over one more axis."""
        power, discount, log_mass = (
            value[..., None, None] for value in (self.power, self.discount, self.log_mass)
        )
        with torch.no_grad():
            size = point.detach().abs().clamp(min=1e-300).log()
            wide = [value[..., None].detach() for value in (self.power, self.discount)]
            edges = _contour_edges(wide[0], wide[1], size, self.damping)
            points, log_weights = panel_nodes(edges)
            path, log_stretch = self._mixing_path(points)
        log_point = point[..., None].log()
        gap = log_point - path
        is_far = gap.real > 0
        ratio = torch.where(is_far, -gap, gap).exp()
        # The logarithm of a complex number next to one fails for the smallest numbers.
        is_tiny = gap.real.abs() > _TINY_RATIO
        log_growth = torch.where(is_tiny, ratio, torch.where(is_tiny, 0.0, ratio).log1p())
        growth = torch.where(is_far, gap, 0.0) + log_growth
        log_size = (power + discount) * path + log_stretch + log_weights
        if self.damping:
            log_size = log_size - path.exp()
        return _growth_times(growth, discount, log_size + log_mass).sum(-1)

    def _mixing_path(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the mixing variable, and of its derivative, along its path."""
        turn, size = _ROTATION[self.damping], x.exp()
        if self.damping:
            angle, slope = turn / (1.0 + size).sqrt(), -0.5 * turn * size * (1.0 + size) ** -1.5
        else:
            angle, slope = turn * (1.0 - size), -turn * size
        return torch.complex(x, angle), torch.complex(torch.ones_like(slope), slope).log()

    def real_exponent(self, depth: Tensor) -> Tensor:
        """Real part of the exponent on top of the cut, at depths over one more axis."""
        return self.exponent(torch.complex(-depth, torch.zeros_like(depth))).real

    def log_phase(self, log_depth: Tensor) -> Tensor:
        """Logarithm of the imaginary part of the exponent on top of the cut, at a depth."""
        power, discount = self.power[..., None], self.discount[..., None]
        beta = power.lgamma() + (1.0 + discount).lgamma() - (1.0 + power + discount).lgamma()
        sine = math.log(math.pi) + log_sinc(math.pi * discount, math.pi * (1.0 - discount))
        value = self.log_mass[..., None] + beta + sine + (power + discount) * log_depth
        if not self.damping:
            return value
        depth = log_depth.exp()
        total, term = torch.ones_like(depth), torch.ones_like(depth)
        for index in range(_NUM_TERMS):
            ratio = (1.0 + discount + index) / (1.0 + power + discount + index)
            term = term * ratio * depth / (index + 1.0)
            total = total + term
        return value - depth + total.log()


def _contour_edges(power: Tensor, discount: Tensor, log_size: Tensor, damping: float) -> Tensor:
    """Panels for the exponent at points of a size, narrow where the points are near."""
    power, discount, log_size = torch.broadcast_tensors(power, discount, log_size)
    none, fall = torch.full_like(log_size, -torch.inf), torch.full_like(log_size, damping)
    corners = torch.stack([log_size, log_size + 0.5, torch.zeros_like(log_size)], -1)
    low = corners.min(-1).values - 45.0 / power - 5.0
    return panel_edges(
        lambda x: log_exponent_density(x, power, discount, log_size, none, fall),
        low,
        log_mixing_end(power, fall),
        corners,
    )


def _growth_times(growth: Tensor, discount: Tensor, log_factor: Tensor) -> Tensor:
    r""":math:`e^f (e^{\sigma g} - 1) / \sigma`, with factors that may overflow."""
    product = discount * growth
    is_small = product.abs() < 0.05
    small = torch.where(is_small, product, 0.0)
    series = torch.ones_like(small)
    for number in range(9, 1, -1):
        series = 1.0 + small * series / number
    large = torch.where(is_small, 0.0, product)
    difference = (log_factor + large).exp() - log_factor.exp()
    direct = difference / torch.where(discount == 0, 1.0, discount)
    return torch.where(is_small, log_factor.exp() * growth * series, direct)


def log_inverse(
    log_value: Tensor,
    log_mass: Tensor,
    power: Tensor,
    discount: Tensor,
    tilt: Tensor,
    pole: Tensor,
    damping: float,
) -> Tensor:
    r"""Logarithm of the density, or of a probability, of the total mass."""
    values = torch.broadcast_tensors(log_value, log_mass, power, discount, tilt, pole)
    log_value, log_mass, power, discount, tilt, pole = values

    least = (log_mass.detach() + _LEAST_VALUE * (1.0 - discount.detach())).clamp(max=0.0)
    inside = log_value.clamp(max=_LARGEST_VALUE).maximum(least)
    flat = torch.stack([value.reshape(-1) for value in (inside, *values[1:])])
    chunks = [_log_inverse(damping, *chunk) for chunk in flat.split(_CHUNK, -1)]
    result = torch.cat(chunks).view(inside.shape)

    # The tail is that of a weight.
    above = (log_value - inside).clamp(min=0.0)
    rise = torch.where(tilt > 0, log_value.exp() - inside.exp(), 0.0)
    fall = (1.0 + power + discount) * above + tilt * rise
    result = result - torch.where((above > 0) & (pole == 0), fall, 0.0)

    # Near zero the exponent is a power, and the saddle point with it.
    below = (least - log_value).clamp(min=0.0)
    total = log_mass + (power.lgamma() if damping else -power.log())
    rate = discount / (1.0 - discount)
    height = (total / (1.0 - discount) - rate * least).clamp(max=_LARGEST_RISE).exp()
    safe = rate.clamp(min=1e-9)
    growth = (safe * below).clamp(max=_LARGEST_RISE).expm1() / safe
    slope = torch.where(pole == 0, 0.5 * (2.0 - discount), -0.5 * discount) / (1.0 - discount)
    loss = (height * growth).clamp(max=_LARGEST_LOSS) - slope * below
    return result - torch.where(below > 0, loss, 0.0)


def _log_inverse(
    damping: float,
    log_value: Tensor,
    log_mass: Tensor,
    power: Tensor,
    discount: Tensor,
    tilt: Tensor,
    pole: Tensor,
) -> Tensor:
    mixed = MixedExponent(log_mass, power, discount, damping)
    plan = _plan_of[damping](log_value, log_mass, power, discount, tilt, pole)
    start, width, reach = plan[..., :3].unbind(-1)
    value, base = log_value.exp(), torch.where(pole > 0, tilt, 0.0)
    parts = [_bent_part(mixed, value, base, pole, start, width, reach)]
    if not holds_everywhere(start > 0):
        parts.append(_cut_part(mixed, value, plan[..., 3:], start < 0))
    tops = torch.stack([part[0] for part in parts], -1)
    sums = torch.stack([part[1] for part in parts], -1)
    top = tops.amax(-1)
    total = (sums * (tops - top[..., None]).exp()).sum(-1)
    is_tilted = tilt > 0
    safe = torch.where(is_tilted, tilt, 1.0)
    gain = torch.where(is_tilted, mixed.log_exponent(safe.log()).exp(), 0.0)
    gain = gain - torch.where(pole > 0, 0.0, tilt * value)
    return top + total.clamp(min=1e-300).log() + gain - math.log(math.pi)


def _bent_part(
    mixed: MixedExponent,
    value: Tensor,
    base: Tensor,
    pole: Tensor,
    start: Tensor,
    width: Tensor,
    reach: Tensor,
) -> tuple[Tensor, Tensor]:
    """Part of the contour in the upper half plane: a logarithm, and what is multiplied by it."""
    edges = reach[..., None] * torch.linspace(
        0.0, 1.0, _NUM_PANELS + 1, dtype=reach.dtype, device=reach.device
    )
    points, log_weights = panel_nodes(edges)
    point, slope = _contour(points, start[..., None], width[..., None])
    exponent = point * value[..., None] - mixed.exponent(point + base[..., None])
    factor = torch.where(pole[..., None] > 0, 1.0 / point, 1.0)
    top = exponent.detach().real.amax(-1)
    terms = (exponent - top[..., None] + log_weights).exp() * slope * factor
    return top, terms.imag.sum(-1)


def _cut_part(
    mixed: MixedExponent, value: Tensor, edges: Tensor, is_taken: Tensor
) -> tuple[Tensor, Tensor]:
    """Part of the contour on the cut, likewise, where it is taken."""
    points, log_weights = panel_nodes(edges)
    logs = log_weights + _log_cut_integrand(mixed, value, points)
    top = torch.where(is_taken, logs.detach().amax(-1), -torch.inf)
    safe = torch.where(is_taken, top, 0.0)[..., None]
    total = torch.where(is_taken[..., None], logs - safe, -torch.inf).exp().sum(-1)
    return top, total


def _log_cut_integrand(mixed: MixedExponent, value: Tensor, x: Tensor) -> Tensor:
    """Logarithm of the integrand on the cut, over logarithms of the depth."""
    depth, log_phase = x.exp(), mixed.log_phase(x)
    is_small = log_phase < _SMALL_SINE_LOG
    sine = torch.where(is_small, 1.0, log_phase.exp()).sin()
    log_sine = torch.where(is_small, log_phase, sine.log())
    return x - depth * value[..., None] - mixed.real_exponent(depth) + log_sine


def _contour(x: Tensor, start: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Points of the upper half of a hyperbola, and their derivatives."""
    left, up = width * math.cos(_ANGLE), width * math.sin(_ANGLE)
    point = torch.complex(start + left * (x.cosh() - 1.0), up * x.sinh())
    return point, torch.complex(left * x.sinh(), up * x.cosh())


def _planner(name: str, damping: float) -> Callable[..., Tensor]:
    """An operation that finds start, width and reach of the hyperbola, and panels on the cut."""

    @opaque(name, _NUM_PLANNED)
    def plan(
        log_value: Tensor,
        log_mass: Tensor,
        power: Tensor,
        discount: Tensor,
        tilt: Tensor,
        pole: Tensor,
    ) -> Tensor:
        mixed, value = MixedExponent(log_mass, power, discount, damping), log_value.exp()
        base = torch.where(pole > 0, tilt, 0.0)
        log_saddle = _log_saddle(mixed, value, base, pole)
        is_tail = (pole == 0) & (log_saddle + log_value < 0)
        log_depth = _log_depth(mixed, value) if bool(is_tail.any()) else -log_value
        is_deep = is_tail & (log_depth + log_value > _SHALLOW)
        # Between saddle point and tail there is nothing to be won on the cut.
        log_start = torch.where(is_deep, log_depth, torch.where(is_tail, -log_value, log_saddle))
        start = torch.where(is_deep, -1.0, 1.0) * log_start.exp()
        # The width is that of the peak, and no more than the distance from the singularity.
        log_size = torch.where(is_deep, torch.logaddexp(log_depth, -log_value), log_start)
        bend = mixed.log_bend((log_size.exp() + base).log()).exp()
        width = torch.rsqrt(bend + (-2.0 * log_size).exp())
        edges = panel_edges(
            # The transform itself changes slowly there.
            lambda x: x - (log_value[..., None] + x).exp() + mixed.log_phase(x),
            torch.minimum(log_depth, -log_value) - _REACH / (power + discount) - 5.0,
            log_depth,
            -log_value[..., None],
        )
        reach = _contour_reach(mixed, value, base, start, width)
        return torch.cat([torch.stack([start, width, reach], -1), edges], -1)

    return plan


_plan_of = {
    damping: _planner(f"{name}_tilt_inversion", damping)
    for name, damping in (("sharp", 0.0), ("damped", 1.0))
}


def _bisected(is_left: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Upper end of a bracket of where a condition ceases to hold."""
    for _ in range(_NUM_HALVINGS):
        middle = 0.5 * (low + high)
        goes_on = is_left(middle)
        low, high = torch.where(goes_on, middle, low), torch.where(goes_on, high, middle)
    return high


def _log_saddle(mixed: MixedExponent, value: Tensor, base: Tensor, pole: Tensor) -> Tensor:
    """Logarithm of the distance of the saddle point right of the singularity."""

    def is_left(x: Tensor) -> Tensor:
        return mixed.log_slope((x.exp() + base).log()).exp() + pole * (-x).exp() > value

    low, high = torch.full_like(value, _LOWEST), torch.full_like(value, _HIGHEST)
    return _bisected(is_left, low, high)


def _log_depth(mixed: MixedExponent, value: Tensor) -> Tensor:
    """Logarithm of the point on the cut where the contour leaves it."""
    high = torch.full_like(value, math.log(_LAST[mixed.damping]))
    low = torch.minimum(high, -value.log()) + _LOWEST
    right_angle = math.log(0.5 * math.pi)
    high = _bisected(lambda x: mixed.log_phase(x[..., None]).squeeze(-1) < right_angle, low, high)
    steps = torch.linspace(0.0, 1.0, _NUM_POINTS, dtype=high.dtype, device=high.device)
    points = high[..., None] - _REACH * steps.square()
    modulus = -points.exp() * value[..., None] - mixed.real_exponent(points.exp())
    return points.gather(-1, modulus.argmin(-1, keepdim=True)).squeeze(-1)


def _contour_reach(
    mixed: MixedExponent, value: Tensor, base: Tensor, start: Tensor, width: Tensor
) -> Tensor:
    """Point on the hyperbola beyond which the integrand has vanished."""

    def log_modulus(x: Tensor) -> Tensor:
        point, _ = _contour(x, start[..., None], width[..., None])
        exponent = point * value[..., None] - mixed.exponent(point + base[..., None])
        return exponent.real + x

    low, length = torch.zeros_like(start), torch.full_like(start, _FAR)
    least = log_modulus(low[..., None]) - _FALL
    steps = torch.arange(1.0, _NUM_STEPS, dtype=start.dtype, device=start.device) / _NUM_STEPS
    for _ in range(_NUM_ROUNDS):
        is_inside = log_modulus(low[..., None] + length[..., None] * steps) > least
        length = length / _NUM_STEPS
        low = low + length * is_inside.sum(-1)
    return low + length
