r"""Positive stable distributions and their exponential tilts.

Numbers in brackets refer to the papers listed in the docstring of the package.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl

from pyro_ext.distributions import _stable
from pyro_ext.distributions.bases import UnivariateDistribution, attach_gradient, positive_exp
from pyro_ext.distributions.supports import positive


class PositiveStable(UnivariateDistribution):
    r"""Positive stable distribution.

    .. math:: E\, e^{-tX} = e^{-t^\sigma} , \quad
              E\, X^r = \frac{\Gamma(1 - r / \sigma)}{\Gamma(1 - r)} \;(r < \sigma) .

    It equals Pyro's ``Stable`` with skew 1, coordinates "S" and scale
    ``cos(pi * stability / 2) ** (1 / stability)``. Its mean is infinite. Draws are exact [5], with
    gradients with respect to the stability.

    :param stability: :math:`\sigma`, in (0, 1).

    Example::

        >>> PositiveStable(0.5).log_prob(torch.tensor([1e-2, 1.0, 1e12]))
        tensor([-19.3578,  -1.5155, -42.7120])
    """

    stability: Tensor
    arg_constraints = {"stability": constraints.unit_interval}
    support = positive

    def __init__(self, stability: Any, *, validate_args: bool | None = None) -> None:
        super().__init__({"stability": stability}, validate_args)
        self._check_open_interval("stability")

    def _log_prob(self, value: Tensor) -> Tensor:
        return _stable.log_density(value.log(), self.stability)

    def _rsample(self, shape: torch.Size) -> Tensor:
        return positive_exp(_stable.rsample_log(self.stability.expand(shape)))

    def _cdf(self, value: Tensor) -> Tensor:
        return _stable.log_cdf(value.log(), self.stability).exp()

    def _moment(self, order: int) -> Tensor:
        return torch.full_like(self.stability, torch.inf)


class TiltedStable(UnivariateDistribution):
    r"""Exponentially tilted positive stable distribution.

    .. math:: E\, e^{-tX} = \exp\{-V [(t + \tau)^\sigma - \tau^\sigma]\} , \quad
              E X = V \sigma \tau^{\sigma - 1} , \quad
              \operatorname{Var} X = V \sigma (1 - \sigma) \tau^{\sigma - 2} .

    Its density is that of a stable variable, multiplied by a constant and :math:`e^{-\tau x}`. It
    is the distribution of the total mass of a generalized gamma process. With
    :math:`\sigma = 1/2` it is the inverse Gaussian distribution with mean
    :math:`V / (2 \sqrt\tau)` and shape :math:`V^2 / 2`.

    Density and distribution function are computed by quadrature. Draws are exact [6], and their
    cost does not depend on the parameters. Gradients of draws are slow: a quarter of a millisecond
    each.

    :param mass: :math:`V > 0`.
    :param stability: :math:`\sigma`, in (0, 1).
    :param tilt: :math:`\tau \geq 0`; with a tilt of zero, the mean is infinite.

    Example::

        >>> distribution = TiltedStable(5.0, 0.7, 1.0)
        >>> distribution.log_prob(torch.tensor(4.0)), distribution.mean
        (tensor(-1.3097), tensor(3.5000))
    """

    mass: Tensor
    stability: Tensor
    tilt: Tensor
    arg_constraints = {
        "mass": constraints.positive,
        "stability": constraints.unit_interval,
        "tilt": constraints.nonnegative,
    }
    support = positive

    def __init__(
        self, mass: Any, stability: Any, tilt: Any, *, validate_args: bool | None = None
    ) -> None:
        super().__init__({"mass": mass, "stability": stability, "tilt": tilt}, validate_args)
        self._check_open_interval("stability")

    def _log_prob(self, value: Tensor) -> Tensor:
        return _stable.log_density_with_tilt(value.log(), self.mass, self.stability, self.tilt)

    def _rsample(self, shape: torch.Size) -> Tensor:
        parameters = (self.mass, self.stability, self.tilt)
        with torch.no_grad():
            log_draws = _stable.sample_log_tilted(*(value.expand(shape) for value in parameters))
        return attach_gradient(positive_exp(log_draws), parameters, self.cdf, self.log_prob)

    def _cdf(self, value: Tensor) -> Tensor:
        return _stable.tilted_cdf(value.log(), self.mass, self.stability, self.tilt)

    @property
    def mean(self) -> Tensor:
        """Mean, infinite without tilt."""
        return self.mass * self.stability * self.tilt ** (self.stability - 1.0)

    @property
    def variance(self) -> Tensor:
        """Variance, infinite without tilt."""
        return self.mean * (1.0 - self.stability) / self.tilt


@register_kl(TiltedStable, TiltedStable)  # type: ignore[untyped-decorator]
def _kl_tilted_stable(p: TiltedStable, q: TiltedStable) -> Tensor:
    """Closed where only the tilts differ."""
    if not (torch.equal(p.mass, q.mass) and torch.equal(p.stability, q.stability)):
        raise NotImplementedError(
            "the KL divergence of TiltedStable distributions requires equal mass and stability"
        )
    powers = p.tilt**p.stability - q.tilt**q.stability
    # Without tilt the mean is infinite, and the divergence too unless both have none.
    change = torch.where(p.tilt == q.tilt, 0.0, q.tilt - p.tilt)
    return p.mass * powers + torch.where(change == 0, 0.0, change * p.mean)


@register_kl(TiltedStable, PositiveStable)  # type: ignore[untyped-decorator]
def _kl_tilted_stable_positive_stable(p: TiltedStable, q: PositiveStable) -> Tensor:
    mass, tilt = torch.ones_like(q.stability), torch.zeros_like(q.stability)
    divergence: Tensor = kl_divergence(p, TiltedStable(mass, q.stability, tilt))
    return divergence
