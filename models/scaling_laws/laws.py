"""Scaling laws with few parameters, fitted by least squares, and as Pyro models."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_ext._lib import checks
from pyro_ext.models.scaling_laws.prior import inflected_law, offset_law
from pyro_ext.random import seeded

_LARGEST = 12.0  # of a parameter on the real line
_MIN_DAMPING, _MAX_DAMPING = 1e-9, 1e9
_PATIENCE, _MUCH, _TINY = 8, 1.0 - 1e-4, 1e-20  # steps in which no sum of squares falls by as much
_NOISE_LOC, _NOISE_SCALE = -4.0, 1.0


class _Law(NamedTuple):
    """A law in units of the last size and the largest value.

    :param curve: maps parameters ``(..., p)``, sizes ``(..., n)`` and the least value ``(...)`` to
        values.
    :param names: of the parameters as people write them.
    :param loc: of the parameters on the real line; with ``scale`` their prior and their starts.
    """

    curve: Callable[[Tensor, Tensor, Tensor], Tensor]
    names: tuple[str, ...]
    loc: tuple[float, ...]
    scale: tuple[float, ...]


def _split(theta: Tensor) -> tuple[Tensor, ...]:
    return theta.unsqueeze(-2).unbind(-1)


def _m1(theta: Tensor, x: Tensor, least: Tensor) -> Tensor:
    log_scale, log_exponent = _split(theta)
    return (log_scale - log_exponent.exp() * x.log()).exp()


def _m2(theta: Tensor, x: Tensor, least: Tensor) -> Tensor:
    floor = least[..., None] * theta[..., 2:].sigmoid()
    return _m1(theta[..., :2], x, least) + floor


def _m3(theta: Tensor, x: Tensor, least: Tensor) -> Tensor:
    log_scale, log_exponent, floor, log_offset = _split(theta)
    law = offset_law(x, log_scale.exp(), log_exponent.exp(), log_offset.exp())
    return law + least[..., None] * floor.sigmoid()


def _m4(theta: Tensor, x: Tensor, least: Tensor) -> Tensor:
    log_scale, log_exponent, floor, log_alpha, excess = _split(theta)
    w = inflected_law(x, log_alpha.exp(), log_scale.exp(), log_exponent.exp())
    low, high = least[..., None] * floor.sigmoid(), 1.0 + excess.exp()
    return low + (high - low) * w


def _bnsl(theta: Tensor, x: Tensor, least: Tensor) -> Tensor:
    log_scale, log_exponent, floor, change, log_place, log_width = _split(theta)
    width, log_x = log_width.exp(), x.log()
    bend = softplus((log_x - log_place) / width) * width * change
    law = (log_scale - log_exponent.exp() * log_x - bend).exp()
    return law + least[..., None] * floor.sigmoid()


_LAWS = {
    "M1": _Law(_m1, ("beta", "c"), (-1.0, -1.0), (1.5, 1.0)),
    "M2": _Law(_m2, ("beta", "c", "e_inf"), (-1.0, -1.0, 0.0), (1.5, 1.0, 1.7)),
    "M3": _Law(_m3, ("beta", "c", "e_inf", "gamma"), (-1.0, -1.0, 0.0, 0.0), (1.5, 1.0, 1.7, 2.0)),
    "M4": _Law(
        _m4,
        ("beta", "c", "e_inf", "alpha", "e_0"),
        (-1.0, -1.0, 0.0, 0.0, -1.0),
        (2.0, 1.0, 1.7, 0.5, 1.5),
    ),
    "BNSL": _Law(
        _bnsl,
        ("beta", "c", "e_inf", "c_1", "d_1", "f_1"),
        (-1.0, -1.0, 0.0, 0.0, -1.0, -1.0),
        (1.5, 1.0, 1.7, 0.7, 1.5, 1.0),
    ),
}

LAWS = tuple(_LAWS)
"""Names of the laws."""


class ScalingLaw:
    r"""A law with few parameters for error or loss :math:`y` against size :math:`x`.

    * M1: :math:`y = \beta x^{-c}`
    * M2: :math:`y = \beta x^{-c} + \epsilon_\infty`
    * M3: :math:`y = \beta (x^{-1} + \gamma)^c + \epsilon_\infty`
    * M4: :math:`(y - \epsilon_\infty) / (\epsilon_0 - y)^\alpha = \beta x^{-c}` [1]
    * BNSL: :math:`y = \epsilon_\infty + \beta x^{-c} (1 + (x / d_1)^{1 / f_1})^{-c_1 f_1}`, a
      broken law with one break [2]

    where :math:`0 \le \epsilon_\infty \le \min y` and :math:`\epsilon_0 \ge \max y`. All of them
    are fitted by least squares on logarithms, with the Levenberg-Marquardt method from many starts.
    :attr:`model` is the same law with Gaussian noise as a Pyro model. Several curves with the same
    number of points are fitted at once.

    :param str name: one of :data:`LAWS`.
    :raises ValueError: for another name.

    [1] I. Alabdulmohsin, B. Neyshabur, X. Zhai (2022),
    Revisiting neural scaling laws in language and vision.

    [2] E. Caballero, K. Gupta, I. Rish, D. Krueger (2023), Broken neural scaling laws.

    Example::

        >>> x = torch.tensor([10.0, 20.0, 40.0, 80.0, 160.0])
        >>> law = ScalingLaw("M2").fit(x, 2.0 * x**-0.5 + 0.1)
        >>> {name: round(float(value), 3) for name, value in law.parameters.items()}
        {'beta': 2.0, 'c': 0.5, 'e_inf': 0.1}
        >>> law.predict([1000.0])
        tensor([0.1632])
    """

    x: Tensor
    y: Tensor
    theta: Tensor

    def __init__(self, name: str = "M2") -> None:
        checks.choice("name", name, LAWS)
        self.name = name
        self._law = _LAWS[name]

    def __repr__(self) -> str:
        state = f"{tuple(self.y.shape)} values" if hasattr(self, "theta") else "not fitted"
        return f"ScalingLaw({self.name!r}, {state})"

    def fit(
        self, x: Any, y: Any, *, num_starts: int = 16, num_steps: int = 100, seed: int = 0
    ) -> Self:
        """Fit by least squares on logarithms.

        :param Tensor x: sizes, positive. **Shape:** ``(*batch, n)``.
        :param Tensor y: errors or losses, positive. **Shape:** ``(*batch, n)``.
        :param int num_starts: number of starts, drawn from the prior of :attr:`model`.
        :param int num_steps: number of steps from each start.
        :param int seed: seed of the starts.
        """
        self.x, self.y = x, y = _checked_curve(x, y)
        num_starts = checks.integer("num_starts", num_starts, 1)
        num_steps = checks.integer("num_steps", num_steps, 1)
        wide = [value.double().reshape(-1, value.shape[-1]) for value in (x, y)]
        sizes, values, least = self._in_units(*wide)
        loc, scale = (torch.tensor(part, dtype=torch.float64) for part in self._law[2:])
        with seeded(seed):
            spread = torch.randn(num_starts, len(loc), dtype=torch.float64)
        spread[0] = 0.0
        starts = (loc + scale * spread).to(values.device).repeat(len(values), 1)
        repeat = [part.repeat_interleave(num_starts, 0) for part in (sizes, values, least)]

        def residuals(theta: Tensor, x: Tensor, y: Tensor, least: Tensor) -> Tensor:
            return self._law.curve(theta, x, least).log() - y.log()

        found, loss = _least_squares(residuals, starts, repeat, num_steps)
        best = loss.reshape(-1, num_starts).argmin(-1)
        theta = found.reshape(-1, num_starts, len(loc))[torch.arange(len(best)), best]
        self.theta = theta.reshape(*x.shape[:-1], len(loc)).to(x)
        return self

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Fitted parameters by name, in units of the data. **Shape:** ``(*batch,)`` each."""
        self._check_fitted()
        x_unit, y_unit = self.x[..., -1], self.y.amax(-1)
        theta, least = self.theta, self.y.amin(-1)
        c = theta[..., 1].exp()
        beta = theta[..., 0].exp() * x_unit**c
        values = [beta * y_unit, c]
        if self.name != "M1":
            values.append(least * theta[..., 2].sigmoid())
        if self.name == "M3":
            values.append(theta[..., 3].exp() / x_unit)
        elif self.name == "M4":
            alpha, high = theta[..., 3].exp(), y_unit * (1.0 + theta[..., 4].exp())
            values[0] = beta * (high - values[2]) ** (1.0 - alpha)
            values += [alpha, high]
        elif self.name == "BNSL":
            values += [theta[..., 3], theta[..., 4].exp() * x_unit, theta[..., 5].exp()]
        return dict(zip(self._law.names, values, strict=True))

    def predict(self, x: Any) -> Tensor:
        """Compute values of the fit at other sizes.

        :param Tensor x: sizes, positive. **Shape:** ``(*batch, n)``, or ``(n,)`` for all curves.
        :returns: **Shape:** ``(*batch, n)``.
        """
        self._check_fitted()
        return self._at(self.theta, x)

    def predictive(self, x: Any, samples: Mapping[str, Tensor] | None = None) -> Any:
        """Compute distributions of values at other sizes.

        :param Tensor x: sizes, positive. **Shape:** ``(*batch, n)``, or ``(n,)`` for all curves.
        :param Mapping samples: posterior draws of :attr:`model`, as ``get_samples()`` returns them.
            Without them, the distribution is normal around the fit, with the standard deviation of
            the residuals. Their sum of squares is divided by the number of points minus the number
            of parameters, if this is positive.
        :returns: a normal distribution, or with samples a mixture of normals, with batch shape
            ``(*batch, n)``.
        """
        self._check_fitted()
        if samples is None:
            residuals = self.y - self._at(self.theta, self.x)
            free = max(self.y.shape[-1] - len(self._law.names), 1)
            spread = (residuals.square().sum(-1, keepdim=True) / free).sqrt()
            spread = spread.clamp(min=1e-6 * float(self.y.amax()))
            return dist.Normal(self._at(self.theta, x), spread)
        samples = checks.tensors("samples", samples, ("theta", "noise"))
        loc = self._at(samples["theta"], x)
        noise = samples["noise"].reshape(*loc.shape[:-1], 1) * self.y.amax(-1)[..., None]
        last = [*range(1, loc.dim()), 0]
        normal = dist.Normal(loc.permute(last), noise.expand_as(loc).permute(last))
        weights = torch.zeros_like(normal.loc)
        return dist.MixtureSameFamily(dist.Categorical(logits=weights), normal)

    def model(self) -> None:
        r"""The law with Gaussian noise, given the fitted curves, as a Pyro model.

        Sites are ``theta``, parameters on the real line, with a normal prior that is wide in units
        of the largest value and the last size; ``noise``, the standard deviation in units of the
        largest value, whose logarithm is normal with mean -4 and standard deviation 1; and ``y``.

        Example::

            >>> from pyro.infer import Predictive
            >>> x = torch.tensor([10.0, 20.0, 40.0, 80.0, 160.0])
            >>> law = ScalingLaw("M1").fit(x, 2.0 * x**-0.5)
            >>> prior = Predictive(law.model, num_samples=20)()  # MCMC(NUTS(law.model), ...)
            >>> law.predictive([1000.0], prior).batch_shape
            torch.Size([1])
        """
        self._check_fitted()
        x, y, least = self._in_units(self.x, self.y)
        batch, size = y.shape[:-1], len(self._law.loc)
        loc, scale = (y.new_tensor(part).expand(*batch, size) for part in self._law[2:])
        theta = pyro.sample("theta", dist.Normal(loc, scale).to_event(loc.dim()))
        noise_prior = dist.LogNormal(_NOISE_LOC, _NOISE_SCALE).expand(batch).to_event(len(batch))
        noise = pyro.sample("noise", noise_prior)
        curve = self._law.curve(theta, x, least)
        pyro.sample("y", dist.Normal(curve, noise[..., None]).to_event(y.dim()), obs=y)

    def _in_units(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sizes and values in units of the last size and the largest value, and the least value."""
        values = y / y.amax(-1, keepdim=True)
        return x / x[..., -1:], values, values.amin(-1)

    def _at(self, theta: Tensor, x: Any) -> Tensor:
        sizes = checks.as_tensor("x", x, "(*batch, n)", finite=True, like=self.x).to(self.x)
        if not bool((sizes > 0).all()):
            raise ValueError(f"x must be positive, got {sizes.min().item():g}")
        if sizes.dim() > 1 and sizes.shape[:-1] != self.x.shape[:-1]:
            raise ValueError(
                f"x must have the leading dimensions {tuple(self.x.shape[:-1])} of the curves, got "
                f"{checks.shown(x)}"
            )
        unit = self.y.amax(-1, keepdim=True)
        least = self.y.amin(-1) / unit.squeeze(-1)
        theta = theta.to(self.x)
        return unit * self._law.curve(theta, sizes / self.x[..., -1:], least)

    def _check_fitted(self) -> None:
        if not hasattr(self, "theta"):
            raise ValueError(f"call fit() of {self!r} first")


def _checked_curve(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Sizes and values of one type and shape, positive."""
    values = checks.as_tensor("y", y, "(*batch, n)", finite=True)
    values = values if values.is_floating_point() else values.to(torch.get_default_dtype())
    sizes = checks.as_tensor("x", x, "(*batch, n)", finite=True, like=values).to(values)
    if sizes.shape != values.shape:
        raise ValueError(
            f"y must have one value for each size of x, got {checks.shown(y)} for {checks.shown(x)}"
        )
    if values.shape[-1] < 2:
        raise ValueError(f"x must be at least two sizes, got {values.shape[-1]}")
    for name, tensor in (("x", sizes), ("y", values)):
        if not bool((tensor > 0).all()):
            raise ValueError(f"{name} must be positive, got {tensor.min().item():g}")
    return sizes, values


def _least_squares(
    residuals: Callable[..., Tensor], start: Tensor, data: list[Tensor], num_steps: int
) -> tuple[Tensor, Tensor]:
    """Minimize many sums of squares by Levenberg-Marquardt steps, each with its own damping.

    :param residuals: maps parameters ``(p,)`` and data of one problem to residuals ``(n,)``.
    :param Tensor start: **Shape:** ``(num_problems, p)``.
    :param data: of the problems, the first dimension.
    :returns: parameters, and sums of squares ``(num_problems,)``.
    """

    def twice(theta: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
        value = residuals(theta, *data)
        return value, value

    value_of = torch.vmap(residuals)
    slopes_of = torch.vmap(torch.func.jacfwd(twice, has_aux=True))
    theta = start.clamp(-_LARGEST, _LARGEST)
    loss = value_of(theta, *data).square().sum(-1).nan_to_num(torch.inf, torch.inf)
    damping = torch.full_like(loss, 1e-2)
    identity = torch.eye(start.shape[-1]).to(start)
    num_idle = 0
    for _ in range(num_steps):
        slopes, value = slopes_of(theta, *data)
        slopes, value = slopes.nan_to_num(0.0, 0.0, 0.0), value.nan_to_num(0.0, 0.0, 0.0)
        matrix = slopes.mT @ slopes + damping[:, None, None] * identity
        step = torch.linalg.solve(matrix, (slopes.mT @ value[..., None])).squeeze(-1)
        moved = (theta - step).clamp(-_LARGEST, _LARGEST)
        new = value_of(moved, *data).square().sum(-1).nan_to_num(torch.inf, torch.inf)
        is_better = new < loss
        theta = torch.where(is_better[:, None], moved, theta)
        num_idle = 0 if bool((new < _MUCH * loss - _TINY).any()) else num_idle + 1
        loss = torch.where(is_better, new, loss)
        if num_idle == _PATIENCE:
            break
        damping = torch.where(is_better, damping / 3.0, damping * 4.0)
        damping = damping.clamp(_MIN_DAMPING, _MAX_DAMPING)
    return theta, loss
