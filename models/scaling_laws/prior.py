r"""A prior for scaling curves: error or loss against the size of data or model.

Curves fall as power laws with offsets and inflections. Some have breaks between laws, and some rise
in between, as in double descent. All of them are noisy.

D. Lee, D. B. Lee, S. Adriaensen, J. Lee, S. J. Hwang, F. Hutter, S. J. Kim, H. B. Lee (2025),
Bayesian neural scaling law extrapolation with prior-data fitted networks.
"""

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch.nn.functional import softplus

from pyro_ext._lib import checks
from pyro_ext.random import seeded

FAMILIES = ("down", "down-down", "down-up-down")
"""Families of curves: without breaks, with one or two, and with a rise between two breaks."""

SMALLEST_SIZE = 0.01
"""The least size of a grid, of which the largest is one."""

_PROBS = (0.7, 0.2, 0.1)
_NUM_PIECES = 3
_MARGIN = 0.05  # between the last break and the cut
_SHORTEST, _LONGEST = 0.2, 0.4
_NUM_NEWTON = 8
_MOST_RUNS = 100  # with values that may allow nothing
# Means and deviations of logarithms: of scale, exponent and offset; alpha, scale and exponent.
_OFFSET_LOC, _OFFSET_SCALE = (-1.0, -2.0, 0.0), (0.5, 1.0, 1.0)
_INFLECTED_LOC, _INFLECTED_SCALE = (0.0, -1.0, 0.0), (0.5, 0.5, 0.5)
_NOISE_LOC, _NOISE_SCALE = -4.0, 1.0


class Pieces(NamedTuple):
    """Parameters of the pieces of curves, which have leading dimensions.

    :param Tensor inflected: whether a piece has an inflection. **Shape:** ``(..., 3)``.
    :param Tensor params: three positive numbers each. **Shape:** ``(..., 3, 3)``.
    :param Tensor first: value at the least size. **Shape:** ``(..., 3)``.
    :param Tensor fraction: of it that is left at the largest. **Shape:** ``(..., 3)``.
    :param Tensor ends: numbers of the first points after each break. **Shape:** ``(..., 2)``.
    :param Tensor rise: exponent, power and slope of a rise. **Shape:** ``(..., 3)``.
    :param Tensor rises: whether the middle piece is a rise. **Shape:** ``(...)``.
    """

    inflected: Tensor
    params: Tensor
    first: Tensor
    fraction: Tensor
    ends: Tensor
    rise: Tensor
    rises: Tensor


def offset_law(x: Tensor, scale: Tensor, exponent: Tensor, offset: Tensor) -> Tensor:
    r"""The law M3 without its floor, :math:`\beta (1/x + \gamma)^c`."""
    return scale * (1.0 / x + offset) ** exponent


def inflected_law(x: Tensor, alpha: Tensor, scale: Tensor, exponent: Tensor) -> Tensor:
    r"""The law M4 between floor 0 and ceiling 1, :math:`w = \beta x^{-c} (1 - w)^\alpha`.

    The logit of :math:`w` solves an equation whose slope lies between 1 and :math:`\alpha`, and
    which bends one way only, so that Newton's method finds it from anywhere.
    """
    target = scale.log() - exponent * x.log()
    logit = target
    for _ in range(_NUM_NEWTON):
        w = logit.sigmoid()
        excess = alpha * softplus(logit) - softplus(-logit) - target
        logit = logit - excess / (1.0 - w + alpha * w)
    return logit.sigmoid()


def between(y: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Stretch and shift curves so that they have the given first and last values."""
    start, end = y[..., :1], y[..., -1:]
    return torch.lerp(last.expand_as(y), first.expand_as(y), (y - end) / (start - end))


def break_points(x: Tensor, lengths: Tensor, num_context: int, kept: Tensor, rises: Tensor) -> Any:
    """Numbers of the first points after the two breaks, the second at the end where not kept.

    :param Tensor lengths: of pieces. **Shape:** ``(..., 2)``.
    :param Tensor kept: whether there are two breaks. **Shape:** ``(...)``, as ``rises``.
    """
    places = lengths.cumprod(-1).flip(-1)  # the product of two comes first
    single = torch.stack([lengths[..., 0], torch.full_like(lengths[..., 0], 2.0)], -1)
    places = torch.where(kept[..., None], places, single)
    latest = x[..., num_context] - _MARGIN
    decisive = torch.where(rises | ~kept, places[..., 0], places[..., 1])
    shrunk = torch.minimum(decisive, latest) / decisive
    places = torch.where(places < 2.0, places * shrunk[..., None], places)
    before = (x[..., None, :] < places[..., :, None]).sum(-1)
    return before.clamp(min=1)


def curves_of(x: Tensor, pieces: Pieces, full_rise: bool) -> Tensor:
    """Curves without noise. **Shape:** ``(..., n)``."""
    sizes = x[..., None, :]
    one, two, three = (number[..., None] for number in pieces.params.unbind(-1))
    law = torch.where(
        pieces.inflected[..., None],
        inflected_law(sizes, one, two, three),
        offset_law(sizes, one, two, three),
    )
    first = pieces.first[..., None]
    law = between(law, first, first * pieces.fraction[..., None])
    if bool(pieces.rises.any()):
        middle = torch.where(
            pieces.rises[..., None], _rise(x, pieces.ends, pieces.rise, full_rise), law[..., 1, :]
        )
        law = torch.stack([law[..., 0, :], middle, law[..., 2, :]], -2)
    # Each piece goes on where the one before ended, so that what counts are its steps.
    number = torch.arange(x.shape[-1], device=x.device)
    index = (number >= pieces.ends[..., :, None]).sum(-2, keepdim=True)
    steps = law.diff(dim=-1).gather(-2, index[..., 1:]).squeeze(-2)
    start = law[..., 0, :1]
    return torch.cat([start, start + steps.cumsum(-1)], -1)


def _rise(x: Tensor, ends: Tensor, rise: Tensor, full: bool) -> Tensor:
    """A rise between two breaks by the distribution function of a symmetric beta distribution."""
    from scipy.special import betainc

    exponent, power, slope = rise[..., None].unbind(-2)
    at = x.gather(-1, ends - 1)
    start, end = at[..., :1], at[..., 1:]
    length = (end - start).clamp(min=torch.finfo(x.dtype).tiny)
    place = ((x - start) / (length if full else end)).clamp(0.0, 1.0)
    shape = exponent.expand_as(place).cpu().numpy()
    fraction = torch.as_tensor(betainc(shape, shape, place.cpu().numpy())).to(x)
    return slope * (end - start) * fraction**power


def is_allowed(y: Tensor, rises: Tensor) -> Tensor:
    """Return a mask of curves without negative values or NaN; rising ones must begin highest."""
    is_inside = (y >= 0).all(-1)
    return is_inside & (~rises | (y <= y[..., :1]).all(-1))


# Draws a site, given its name and law and, where it is known, its value.
Draw = Callable[..., Tensor]


class _Accepted:
    """Draws the sites of a program of curves as they are in curves that are allowed.

    Each site but the family is distributed as in the whole program, given the sites before it and
    that the curve is allowed: the program is run ahead, out of Pyro's sight, until it is.
    Sites are drawn from such a run as long as each had the value that it has there. After one that
    had another, as under ``condition``, the rest is run ahead again.
    """

    def __init__(self, program: Callable[[Draw], Tensor]) -> None:
        self.program = program
        self.before: dict[str, Tensor] = {}
        self.ahead: dict[str, Tensor] = {}
        self.runs: Iterable[int] = itertools.count()

    def __call__(self, name: str, law: Any, **options: Any) -> Tensor:
        if name != "family":
            law.sample = law.rsample = lambda *_: self._value_ahead(name)
        if (value := options.get("obs")) is None or am_i_wrapped():
            value = torch.as_tensor(pyro.sample(name, law, **options))
        for method in {"sample", "rsample"} & set(vars(law)):
            delattr(law, method)
        self.before[name] = value
        if name in self.ahead and not torch.equal(value.to(self.ahead[name]), self.ahead[name]):
            self.ahead, self.runs = {}, range(_MOST_RUNS)
        return value

    def _value_ahead(self, name: str) -> Tensor:
        if not self.ahead:
            for _ in self.runs:
                self.ahead = {}
                self.program(self._hidden)
                if bool(is_allowed(self.ahead["y"], self.ahead["family"] == 2)):
                    break
        return self.ahead[name]

    def _hidden(self, name: str, law: Any, **_: Any) -> Tensor:
        self.ahead[name] = self.before[name] if name in self.before else law()
        return self.ahead[name]


def _curve(
    x: Tensor, num_context: int, given: Tensor | None, full_rise: bool, draw: Draw
) -> Tensor:
    """A curve with noise, before any is rejected."""
    family = draw("family", dist.Categorical(x.new_tensor(_PROBS)), obs=given)
    rises, breaks = family == 2, family > 0

    def only(condition: Tensor | bool, name: str, law: Any) -> Tensor:
        """A site of the curves that have it; of others it is its mean, and counts nothing."""
        if not bool(condition):
            mean = torch.zeros_like(law.mean) if law.support.is_discrete else law.mean
            law = dist.Delta(mean, event_dim=law.event_dim).mask(False)
        return draw(name, law)

    kept = only(family == 1, "two_breaks", dist.Bernoulli(x.new_tensor(0.5))).bool() | rises
    lengths = dist.Uniform(_shortest(x, num_context), _LONGEST).expand([2]).to_event(1)
    lengths = only(breaks, "breaks", lengths)
    low, high = x.new_tensor([0.5, 0.01]), x.new_tensor([1.0, 0.7])
    exponent, slope = only(rises, "rise", dist.Uniform(low, high).to_event(1))
    power = only(rises, "rise_power", dist.LogNormal(x.new_tensor(0.0), 0.1))
    inflected, params, first, fraction = [], [], [], []
    num_pieces = 1 + int(breaks) + int(kept)
    for number in range(_NUM_PIECES):
        piece = partial(only, number < num_pieces)
        kind = piece(f"inflected_{number}", dist.Bernoulli(x.new_tensor(0.5))).bool()
        law = dist.LogNormal(*_log_params(x, kind)).to_event(1)
        params.append(piece(f"params_{number}", law))
        first.append(piece(f"first_{number}", dist.Uniform(x.new_tensor(0.2), 1.2)))
        fraction.append(piece(f"fraction_{number}", dist.Uniform(x.new_tensor(0.0), 1.0)))
        inflected.append(kind)
    kinds, numbers, firsts, fractions = (
        torch.stack([part[min(k, num_pieces - 1)] for k in range(_NUM_PIECES)])
        for part in (inflected, params, first, fraction)
    )
    ends = torch.full((2,), x.shape[-1], device=x.device)
    if bool(breaks):
        ends = break_points(x, lengths, num_context, kept, rises)
    rise = torch.stack([exponent.exp(), power, slope])
    pieces = Pieces(kinds, numbers, firsts, fractions, ends, rise, rises)
    curve = curves_of(x, pieces, full_rise)
    known = dict(obs=curve, infer={"_deterministic": True})  # as pyro.deterministic has it
    curve = draw("curve", dist.Delta(curve, event_dim=1).mask(False), **known)
    noise = draw("noise", dist.LogNormal(x.new_tensor(_NOISE_LOC), _NOISE_SCALE))
    return draw("y", dist.Normal(curve, noise).to_event(1))


def scaling_curve_prior(
    x: Any,
    family: str | None = None,
    *,
    num_context: int | None = None,
    full_rise: bool = False,
) -> Tensor:
    r"""One scaling curve with noise, as a Pyro model [1].

    A curve falls by one law (with probability 0.7), by two or three with breaks between them (0.2),
    or rises in between (0.1). A law is :math:`\beta (1/x + \gamma)^c`, or the root :math:`w` of
    :math:`w = \beta x^{-c} (1 - w)^\alpha`. Either is stretched to a first value that is uniform on
    (0.2, 1.2) and to a last value that is uniform below it. All breaks, except the end of a rise,
    come before the cut between context and prediction. A curve with a negative value, or one that
    rises above its first value, is drawn again, with all of its sites except the family; the
    densities of the sites do not account for this. If sites are given, for example by
    :func:`pyro.condition`, the sites drawn after them follow from their values. They are also drawn
    again, up to 100 times, since given values may allow no valid curve.

    Sites are ``family``; ``two_breaks``, ``breaks``, ``rise``, ``rise_power``; ``inflected_k``,
    ``params_k``, ``first_k`` and ``fraction_k`` of the pieces 0 to 2; ``curve``; ``noise``, its
    standard deviation; and ``y``, the values. Sites that a curve does not have add nothing to the
    density.

    :param Tensor x: sizes between 0 and 1, increasing. **Shape:** ``(n,)``.
    :param str family: one of :data:`FAMILIES`; by default random.
    :param int num_context: number of points before the cut; by default half of them.
    :param bool full_rise: whether a rise ends level with its piece. In the official code, and by
        default, it is cut short, because it extends over sizes from zero on.
    :returns: values of the curve. **Shape:** ``(n,)``.
    :raises ValueError: for sizes that do not increase or are not in (0, 1].

    [1] D. Lee et al. (2025), Bayesian neural scaling law extrapolation with prior-data fitted
    networks, section 4.

    Example::

        >>> pyro.set_rng_seed(0)
        >>> x = torch.linspace(0.01, 1.0, 30)
        >>> trace = pyro.poutine.trace(scaling_curve_prior).get_trace(x, "down")
        >>> trace.nodes["y"]["value"].shape, trace.nodes["params_0"]["value"].shape
        (torch.Size([30]), torch.Size([3]))
        >>> pyro.infer.Predictive(scaling_curve_prior, num_samples=8)(x)["y"].shape
        torch.Size([8, 30])
    """
    x, num_context, number = _checked(x, num_context, family, full_rise, "(n,)")
    given = None if number is None else torch.tensor(number, device=x.device)
    program = partial(_curve, x, num_context, given, full_rise)
    return program(_Accepted(program))


def sample_scaling_curves(
    x: Any,
    family: str | None = None,
    *,
    num_context: int | None = None,
    full_rise: bool = False,
    seed: int | None = None,
) -> Tensor:
    """Draw many curves of :func:`scaling_curve_prior` at once.

    :param Tensor x: sizes of each curve. **Shape:** ``(num_curves, n)``.
    :param str family: as for :func:`scaling_curve_prior`, like the other arguments.
    :param int seed: seed of the draws; ``None`` uses PyTorch's global generator.
    :returns: values of the curves. **Shape:** ``(num_curves, n)``.

    Example::

        >>> x = scaling_grid(100, 30, seed=0)
        >>> sample_scaling_curves(x, num_context=10, seed=0).shape
        torch.Size([100, 30])
    """
    x, num_context, number = _checked(x, num_context, family, full_rise, "(num_curves, n)")
    with seeded(seed):
        if number is None:
            families = dist.Categorical(x.new_tensor(_PROBS)).sample((len(x),))
        else:
            families = torch.full((len(x),), number, device=x.device)
        y = torch.empty_like(x)
        waiting = torch.arange(len(x), device=x.device)
        while len(waiting):
            # Several at once of the few that are left, of which the first that is right counts.
            rows = waiting.repeat(max(len(x) // len(waiting), 1))
            proposed = _proposals(x[rows], num_context, families[rows], full_rise)
            is_right = is_allowed(proposed, families[rows] == 2).reshape(-1, len(waiting))
            is_found, first = is_right.max(0)
            found = proposed.reshape(*is_right.shape, -1)[first, torch.arange(len(waiting))]
            y[waiting[is_found]] = found[is_found]
            waiting = waiting[~is_found]
    return y


def _proposals(x: Tensor, num_context: int, families: Tensor, full_rise: bool) -> Tensor:
    """Curves with noise, one a row, before any is rejected."""
    rows = len(x)
    uniform = partial(torch.rand, dtype=x.dtype, device=x.device)
    normal = partial(torch.randn, dtype=x.dtype, device=x.device)
    inflected = uniform(rows, _NUM_PIECES) < 0.5
    loc, scale = _log_params(x, inflected[..., None])
    rises = families == 2
    kept = rises | ((families == 1) & (uniform(rows) < 0.5))
    shortest = _shortest(x, num_context)[:, None]
    lengths = shortest + (_LONGEST - shortest) * uniform(rows, 2)
    ends = break_points(x, lengths, num_context, kept, rises)
    ends = torch.where((families > 0)[:, None], ends, x.shape[-1])
    exponent, power = (0.5 + 0.5 * uniform(rows)).exp(), (0.1 * normal(rows)).exp()
    pieces = Pieces(
        inflected,
        (loc + scale * normal(rows, _NUM_PIECES, 3)).exp(),
        0.2 + uniform(rows, _NUM_PIECES),
        uniform(rows, _NUM_PIECES),
        ends,
        torch.stack([exponent, power, 0.01 + 0.69 * uniform(rows)], -1),
        rises,
    )
    noise = (_NOISE_LOC + _NOISE_SCALE * normal(rows, 1)).exp()
    return curves_of(x, pieces, full_rise) + noise * torch.randn_like(x)


def scaling_grid(
    num_curves: int, num_points: int, *, spacing: str = "uniform", seed: int | None = None
) -> Tensor:
    """Draw random sizes for curves, increasing from 0.01 to 1.

    :param int num_curves: number of curves.
    :param int num_points: number of points of each, at least two.
    :param str spacing: how points between the ends are drawn: ``"uniform"``, as in the paper,
        ``"log"``, uniformly on a logarithmic scale, or ``"mixed"``, half of the curves each.
    :param int seed: seed of the draws; ``None`` uses PyTorch's global generator.
    :returns: **Shape:** ``(num_curves, num_points)``.

    Example::

        >>> scaling_grid(2, 3, seed=0)[:, [0, 2]]
        tensor([[0.0100, 1.0000],
                [0.0100, 1.0000]])
    """
    num_curves = checks.integer("num_curves", num_curves, 1)
    num_points = checks.integer("num_points", num_points, 2)
    checks.choice("spacing", spacing, ("uniform", "log", "mixed"))
    with seeded(seed):
        inner = torch.rand(num_curves, num_points - 2)
        is_log = torch.rand(num_curves, 1) < {"uniform": 0.0, "log": 1.0, "mixed": 0.5}[spacing]
    even = SMALLEST_SIZE + (1.0 - SMALLEST_SIZE) * inner
    inner = torch.where(is_log, SMALLEST_SIZE ** (1.0 - inner), even).sort(-1).values
    ends = inner.new_tensor([SMALLEST_SIZE, 1.0]).expand(num_curves, 2)
    return torch.cat([ends[:, :1], inner, ends[:, 1:]], -1)


def _checked(
    x: Any, num_context: int | None, family: str | None, full_rise: bool, shape: str
) -> tuple[Tensor, int, int | None]:
    """Arguments that the prior and its sampler share."""
    x = checks.as_tensor("x", x, shape, finite=True)
    if not x.is_floating_point():
        x = x.to(torch.get_default_dtype())
    is_right = (x > 0).all() & (x <= 1).all() & (x.diff(dim=-1) >= 0).all()
    if x.shape[-1] < 3 or not bool(is_right & (x[..., -1] > x[..., 0]).all()):
        raise ValueError(f"x must be at least three sizes, in (0, 1] and rising, got {x!r:.80}")
    if num_context is None:
        num_context = x.shape[-1] // 2
    num_context = checks.integer("num_context", num_context, 1)
    if num_context >= x.shape[-1]:
        raise ValueError(
            f"num_context must be less than the {x.shape[-1]} points of x, got {num_context}"
        )
    if family is not None:
        checks.choice("family", family, FAMILIES)
    checks.boolean("full_rise", full_rise)
    return x, num_context, None if family is None else FAMILIES.index(family)


def _shortest(x: Tensor, num_context: int) -> Tensor:
    """The least length of a piece."""
    return (x[..., num_context] - _MARGIN).clamp(0.0, _SHORTEST)


def _log_params(x: Tensor, inflected: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the logarithms of parameters."""
    loc = torch.where(inflected, x.new_tensor(_INFLECTED_LOC), x.new_tensor(_OFFSET_LOC))
    scale = torch.where(inflected, x.new_tensor(_INFLECTED_SCALE), x.new_tensor(_OFFSET_SCALE))
    return loc, scale
