r"""The generalized BFRY distribution, with one power law near zero and another in the tail.

[1] F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
statistical models with double power-law behavior.

[2] J. Lee, X. Miscouridou, F. Caron (2019), A unified construction for series representations and
finite approximations of completely random measures.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.distributions import _bfry
from pyro_ext.distributions._base import (
    discount_constraint,
    positive_exp,
    variance_of,
)
from pyro_ext.distributions._levels import LevelDistribution, log_level_of
from pyro_ext.distributions._supports import positive
from pyro_ext.special import in_double

__all__ = ["GeneralizedBFRY"]


class GeneralizedBFRY(LevelDistribution):
    r"""Generalized BFRY distribution, the law of :math:`c W P` [1, 2].

    :math:`W` has the tilted BFRY distribution of discount :math:`\sigma`, level :math:`t` and tilt
    1, :math:`P` a Pareto distribution with :math:`P(P > x) = x^{-\tau}` for :math:`x > 1`, and they
    are independent. With :math:`k = \tau - \sigma`, :math:`y = x / c` and the regularized
    incomplete gamma function :math:`P(k, y)`,

    .. math:: f(x) = \frac{1}{c} \frac{\tau \sigma \Gamma(k)}
              {\Gamma(1 - \sigma) \{(t + 1)^\sigma - 1\}} y^{-1-\tau}
              \big[ P(k, y) - (t + 1)^{-k} P(k, (t + 1) y) \big] .

    The density falls as :math:`x^{-1-\sigma}` between :math:`c / t` and :math:`c`, and as
    :math:`x^{-1-\tau}` beyond. It is the law of one atom in a finite approximation of a generalized
    BFRY process. Where :math:`\sigma = 0` the limit is meant. Draws have gradients in all
    parameters.

    :param discount: :math:`\sigma`, in [0, 1).
    :param tail_index: :math:`\tau`, greater than the discount.
    :param level: :math:`t > 0`. Levels beyond the numbers of a type can be given as ``log_level``.
    :param scale: :math:`c > 0`.
    :param log_level: :math:`\log t`, in place of ``level``.
    :raises ValueError: where a parameter is out of range.

    Example::

        >>> law = GeneralizedBFRY(0.4, 2.3, 30.0, 1.0)
        >>> law.log_prob(torch.tensor([1e-6, 1.0, 1e6]))
        tensor([  6.2994,  -2.8352, -47.1949])
    """

    discount: Tensor
    tail_index: Tensor
    scale: Tensor
    arg_constraints = {
        "discount": discount_constraint,
        "tail_index": constraints.positive,
        "level": constraints.positive,
        "scale": constraints.positive,
    }
    support = positive
    has_rsample = True

    def __init__(
        self,
        discount: Any,
        tail_index: Any,
        level: Any = None,
        scale: Any = 1.0,
        *,
        log_level: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {
            "discount": discount,
            "tail_index": tail_index,
            "log_level": log_level_of(level, log_level, validate_args),
            "scale": scale,
        }
        super().__init__(parameters, validate_args)
        self._check_parameter("tail_index", self.tail_index > self.discount, "> discount")

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density.

        :param Tensor value: positive numbers.
        """
        if self._validate_args:
            self._validate_sample(value)
        log_scaled = _bfry.log_scaled_density(
            value, self.scale, self.discount, self.tail_index, self.log_level
        )
        return log_scaled - self.scale.log()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients in the parameters.

        :param torch.Size sample_shape: how many.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        discount = self.discount.expand(shape)
        log_gamma = _bfry.rsample_log_gamma(1.0 - discount)
        uniform, tail = torch.rand((2, *shape), dtype=discount.dtype, device=discount.device)
        log_rate = _bfry.log_rate(uniform, discount, self.log_level, torch.ones_like(discount))
        log_pareto = -torch.log1p(-tail) / self.tail_index
        return positive_exp(self.scale.log() + log_gamma - log_rate + log_pareto)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function.

        :param Tensor value: positive numbers.
        """
        if self._validate_args:
            self._validate_sample(value)
        return _cdf(value, self.discount, self.tail_index, self.log_level, self.scale)

    @property
    def mean(self) -> Tensor:
        """Mean, infinite for tail indices up to 1."""
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        """Variance, infinite for tail indices up to 2."""
        return variance_of(self.mean, self._moment(2))

    def _moment(self, order: int) -> Tensor:
        is_finite = self.tail_index > order
        tail_index = torch.where(is_finite, self.tail_index, order + 1.0)
        tilt = torch.ones_like(self.discount)
        inner = _bfry.log_moment(self.discount, self.log_level, tilt, order).exp()
        moment = self.scale**order * inner * tail_index / (tail_index - order)
        return torch.where(is_finite, moment, torch.inf)


@in_double
def _cdf(
    value: Tensor, discount: Tensor, tail_index: Tensor, log_level: Tensor, scale: Tensor
) -> Tensor:
    limits = torch.finfo(value.dtype)
    place = (value / scale).clamp(min=limits.tiny, max=limits.max)
    inner = _bfry.log_cdf(place, discount, log_level, torch.ones_like(place)).exp()
    density = _bfry.log_scaled_density(value, scale, discount, tail_index, log_level)
    # The Pareto factor moves mass beyond a place, in proportion to the density there.
    return (inner - torch.exp(place.log() + density) / tail_index).clamp(min=0.0)
