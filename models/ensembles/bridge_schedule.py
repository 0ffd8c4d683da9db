"""Brownian bridges between two points on a grid of steps."""

from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ext._lib import checks


@dataclass(frozen=True)
class BridgeSchedule:
    r"""A Brownian bridge on a grid of steps, with noise that changes over time [1].

    Its variance grows with :math:`\sigma^2_n`, from zero at :math:`t_0 = 0` to :math:`S =
    (b_1 + b_2) / 2` at :math:`t_N = 1`.

    :param float b1: rate of the noise at time one, or at both ends if symmetric.
    :param float b2: rate at time zero, or in the middle.
    :param int num_steps: number of steps :math:`N`.
    :param str kind: whether the rate is ``"linear"`` in time, or ``"symmetric"``: linear up to the
        middle and back.

    [1] H. Kim, J. Yoon, J. Lee (2024),
    Fast ensembling with diffusion Schrödinger bridge.

    Example::

        >>> schedule = BridgeSchedule(1e-4, 3e-4, 5)
        >>> [round(float(v), 9) for v in schedule.variances]
        [0.0, 5.6e-05, 0.000104, 0.000144, 0.000176, 0.0002]
        >>> marginal = schedule.marginal(3, torch.tensor([1.3]), torch.tensor([-0.7]))
        >>> round(float(marginal.mean), 4), round(float(marginal.variance), 9)
        (-0.14, 4.032e-05)
    """

    b1: float
    b2: float
    num_steps: int = 5
    kind: Literal["linear", "symmetric"] = "linear"

    def __post_init__(self) -> None:
        checks.number("b1", self.b1, above=0)
        checks.number("b2", self.b2, above=0)
        checks.integer("num_steps", self.num_steps, 1)
        checks.choice("kind", self.kind, ("linear", "symmetric"))

    @property
    def variances(self) -> Tensor:
        r""":math:`\sigma^2_0, \dots, \sigma^2_N` in double precision."""
        values = [self._variance(n) for n in range(self.num_steps + 1)]
        return torch.tensor(values, dtype=torch.float64)

    def _variance(self, n: int) -> float:
        t, b1, b2 = n / self.num_steps, self.b1, self.b2
        if self.kind == "linear":
            return 0.5 * (b1 - b2) * t**2 + b2 * t
        if t < 0.5:
            return (b2 - b1) * t**2 + b1 * t
        return 0.5 * (b1 - b2) + (b1 - b2) * t**2 + (2.0 * b2 - b1) * t

    def marginal(self, n: int | Tensor, x0: Tensor, x1: Tensor) -> TorchDistributionMixin:
        r"""Return the marginal of the bridge between two points after ``n`` steps from time zero.

        .. math:: N(w_n x_0 + (1 - w_n) x_1, \sigma^2_n w_n), \qquad w_n = 1 - \sigma^2_n / S

        :param n: number of the step, from 0 to ``num_steps``, or a tensor of them.
            **Shape:** ``(*batch,)``.
        :param Tensor x0: point at time zero. **Shape:** ``(*batch, size)``.
        :param Tensor x1: point at time one. **Shape:** ``(*batch, size)``.
        :returns: a normal distribution, or a :class:`pyro.distributions.Delta` if there is no
            noise. With a tensor of steps, those without noise have draws but no density.
        """
        x0, x1 = _points(x0=x0, x1=x1)
        (variance,) = self._at(n, 0, 0)
        weight = 1.0 - variance / self._variance(self.num_steps)
        return _normal(x1.lerp(x0, _like(weight, x0)), variance * weight)

    def posterior(self, n: int | Tensor, x0: Tensor, xn: Tensor) -> TorchDistributionMixin:
        r"""Return the distribution one step closer to time zero, given both ``x0`` and ``xn``.

        .. math:: N\left(\frac{a}{\sigma^2_n} x_0 + \frac{\sigma^2_{n-1}}{\sigma^2_n} x_n,
            \frac{\sigma^2_{n-1} a}{\sigma^2_n}\right), \qquad a = \sigma^2_n - \sigma^2_{n-1}

        It is exact: given the true point at time zero, it takes one marginal to the previous one.
        (The authors' code has the variance :math:`a`, which does not.)

        :param n: number of the step, from 1 to ``num_steps``, or a tensor of them.
            **Shape:** ``(*batch,)``.
        :param Tensor x0: point at time zero. **Shape:** ``(*batch, size)``.
        :param Tensor xn: point after ``n`` steps. **Shape:** ``(*batch, size)``.
        :returns: as for :meth:`marginal`; the last step, ``n=1``, has no noise.
        """
        x0, xn = _points(x0=x0, xn=xn)
        variance, before = self._at(n, 1, 0, -1)
        weight = before / variance
        return _normal(x0.lerp(xn, _like(weight, x0)), weight * (variance - before))

    def _at(self, n: int | Tensor, least: int, *shifts: int) -> list[Any]:
        """Variances at steps: numbers, or in double precision with a last dimension of one."""
        if isinstance(n, Tensor):
            steps = checks.as_tensor("n", n, kind="integers").cpu()
            is_inside = bool(((steps >= least) & (steps <= self.num_steps)).all())
        else:
            is_inside = checks.integer("n", n, least) <= self.num_steps
        if not is_inside:
            raise ValueError(f"n must be from {least} to {self.num_steps}, got {n!r:.80}")
        if not isinstance(n, Tensor):
            return [self._variance(n + shift) for shift in shifts]
        steps = steps[..., None] if steps.dim() else steps
        return [self.variances[steps + shift] for shift in shifts]


def _points(**points: Any) -> list[Tensor]:
    """Points as floating-point numbers of one type."""
    kind = torch.get_default_dtype()
    # Python's numbers take the type of the others, and lose nothing on the way.
    kinds = [
        checks.as_tensor(name, value).dtype
        for name, value in points.items()
        if hasattr(value, "dtype")
    ]
    if kinds := [each for each in kinds if each.is_floating_point]:
        kind = reduce(torch.promote_types, kinds)
    return [
        checks.as_tensor(name, value, finite=True, dtype=kind) for name, value in points.items()
    ]


def _like(weight: Any, x: Tensor) -> Any:
    return weight.to(x) if isinstance(weight, Tensor) else weight


def _normal(mean: Tensor, variance: Any) -> TorchDistributionMixin:
    """A normal distribution over the last dimension, or a point."""
    num_dims = min(1, mean.dim())
    is_checked = None
    if isinstance(variance, Tensor):
        is_checked = None if bool(variance.all()) else False
    elif not variance:
        return dist.Delta(mean, event_dim=num_dims)
    normal: Any = dist.Normal(mean, _like(variance**0.5, mean), validate_args=is_checked)
    in_last: TorchDistributionMixin = normal.to_event(num_dims)
    return in_last
