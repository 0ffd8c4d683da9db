r"""Bregman divergences of exponential families.

An exponential family with sufficient statistics :math:`s(x)` and mean parameter :math:`m` has the
density :math:`\exp(-B(s(x), m))` up to a factor that depends on :math:`x` only. Here :math:`B(y, m)
= \phi(y) - \phi(m) - \langle y - m, \nabla\phi(m) \rangle` is the Bregman divergence of the convex
conjugate :math:`\phi` of the family's log partition function.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pyro_ext._lib import checks

SQUARE, ENTROPY, LOGARITHM, DETERMINANT = range(4)  # what compiled loops tell generators by


class BregmanGenerator(ABC):
    r"""A convex function :math:`\phi` of mean parameters, and its Bregman divergence.

    The generators are :class:`GaussianGenerator`, :class:`PoissonGenerator`,
    :class:`MultinomialGenerator`, :class:`ItakuraSaitoGenerator` and
    :class:`GaussianCovarianceGenerator`.

    A. Banerjee, S. Merugu, I. S. Dhillon, J. Ghosh (2005), Clustering with Bregman divergences.
    """

    _kind: ClassVar[int]
    _least: ClassVar[str] = ""  # how points compare with zero: "", ">= 0" or "> 0"
    floor: float = 0.0  # what is added to variances

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        """Compute the sufficient statistics of points, whose means are the mean parameters.

        :param Tensor x: points. **Shape:** ``(*batch, num_features)``.
        :returns: **Shape:** ``(*batch, num_statistics)``.
        :raises ValueError: for points outside the support of the family; names the first.
        """
        allowed = x.isfinite()
        if self._least:
            allowed = allowed & (x > 0.0 if self._least == "> 0" else x >= 0.0)
        _check_points(x, allowed, f"finite numbers {self._least}".rstrip())
        return x

    @abstractmethod
    def phi(self, mean: Tensor) -> Tensor:
        """The convex function, up to terms linear in the mean.

        :param Tensor mean: mean parameters. **Shape:** ``(*batch, num_statistics)``.
        :returns: **Shape:** ``(*batch,)``.
        """

    @abstractmethod
    def divergence(self, y: Tensor, mean: Tensor) -> Tensor:
        """The Bregman divergence of statistics from mean parameters.

        :param Tensor y: statistics. **Shape:** ``(*batch, num_statistics)``.
        :param Tensor mean: mean parameters, which broadcast against them.
        :returns: **Shape:** ``(*batch,)``.
        """

    def _loop_statistics(self, x: Tensor) -> Tensor:
        """Return the statistics of points that the compiled loops keep; see there."""
        return self.sufficient_statistics(x)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class GaussianGenerator(BregmanGenerator):
    r"""Normal distributions with known variance: :math:`\phi(m) = \|m\|^2 / 2`.

    Example::

        >>> GaussianGenerator().divergence(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]))
        tensor(2.5000)
    """

    _kind = SQUARE

    def phi(self, mean: Tensor) -> Tensor:
        """Half the squared norm."""
        return 0.5 * mean.square().sum(-1)

    def divergence(self, y: Tensor, mean: Tensor) -> Tensor:
        """Half the squared distance."""
        return self.phi(y - mean)


class PoissonGenerator(BregmanGenerator):
    r"""Poisson distributions, one for each feature: :math:`\phi(m) = \sum_k m_k \log m_k - m_k`.

    Values need not be integers.

    Example::

        >>> PoissonGenerator().divergence(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0]))
        tensor(1.)
    """

    _kind = ENTROPY
    _least = ">= 0"

    def phi(self, mean: Tensor) -> Tensor:
        """The sum of m log m - m."""
        return (torch.xlogy(mean, mean) - mean).sum(-1)

    def divergence(self, y: Tensor, mean: Tensor) -> Tensor:
        """The sum of y log (y / m) - y + m."""
        return (torch.xlogy(y, y) - torch.xlogy(y, mean) - y + mean).sum(-1)


class MultinomialGenerator(BregmanGenerator):
    r"""Multinomial distributions of frequencies: :math:`\phi(m) = \sum_k m_k \log m_k`.

    Points are counts, which need not be integers. Each point has the same weight, whatever its
    total.

    Example::

        >>> generator = MultinomialGenerator()
        >>> generator.sufficient_statistics(torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
        tensor([[0.7500, 0.2500],
                [0.0000, 1.0000]])
    """

    _kind = ENTROPY
    _least = ">= 0"

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        """Convert counts, which must be nonnegative and not all zero, to frequencies."""
        totals = super().sufficient_statistics(x).sum(-1, keepdim=True)
        _check_points(x, totals > 0.0, "a count > 0 in each row, since it has no frequencies else")
        return x / totals

    def phi(self, mean: Tensor) -> Tensor:
        """The negative entropy."""
        return torch.xlogy(mean, mean).sum(-1)

    def divergence(self, y: Tensor, mean: Tensor) -> Tensor:
        """The Kullback-Leibler divergence of frequencies."""
        return (torch.xlogy(y, y) - torch.xlogy(y, mean)).sum(-1)


class ItakuraSaitoGenerator(BregmanGenerator):
    r"""Exponential or fixed-shape gamma distributions: :math:`\phi(m) = -\sum_k \log m_k`.

    Example::

        >>> ItakuraSaitoGenerator().divergence(torch.tensor([2.0]), torch.tensor([1.0]))
        tensor(0.3069)
    """

    _kind = LOGARITHM
    _least = "> 0"

    def phi(self, mean: Tensor) -> Tensor:
        """Minus the sum of logarithms."""
        return -mean.log().sum(-1)

    def divergence(self, y: Tensor, mean: Tensor) -> Tensor:
        """The sum of y / m - log (y / m) - 1."""
        ratio = y / mean
        return (ratio - ratio.log() - 1.0).sum(-1)


class GaussianCovarianceGenerator(BregmanGenerator):
    r"""Normal distributions with unknown covariance.

    The statistics are :math:`(x, x x^\top)`, with the matrix row by row. With mean parameters
    :math:`(m, M)`, the covariance is :math:`M - m m^\top`. Since this is zero for a single point, a
    floor is added: :math:`\phi(m, M) = -\frac12 \log\det(M - m m^\top + \epsilon I)`.

    :param float floor: :math:`\epsilon`, the variance below which differences no longer count;
        choose it small compared to the variances within clusters.
    :raises ValueError: unless it is a finite number > 0.

    Example::

        >>> generator = GaussianCovarianceGenerator(floor=1.0)
        >>> y, mean = generator.sufficient_statistics(torch.tensor([[2.0], [0.0]]))
        >>> generator.divergence(y, mean)
        tensor(2.)
    """

    _kind = DETERMINANT

    def __init__(self, floor: float = 0.01) -> None:
        self.floor = checks.number("floor", floor, above=0.0)

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        """The points, followed by their outer products."""
        x = super().sufficient_statistics(x)
        return torch.cat([x, (x[..., :, None] * x[..., None, :]).flatten(-2)], -1)

    def phi(self, mean: Tensor) -> Tensor:
        """Minus half the log determinant of the floored covariance."""
        return -0.5 * self._mean_and_covariance(mean)[1].logdet()

    def divergence(self, y: Tensor, mean: Tensor) -> Tensor:
        """The Kullback-Leibler divergence of the normals with the floored covariances."""
        (first, inner), (second, outer) = map(self._mean_and_covariance, (y, mean))
        precision, difference = outer.inverse(), first - second
        spread = (precision * inner).sum((-2, -1)) - first.shape[-1]
        distance = (difference * (precision @ difference[..., None])[..., 0]).sum(-1)
        return 0.5 * (spread + distance + outer.logdet() - inner.logdet())

    def _mean_and_covariance(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        features = int(mean.shape[-1] ** 0.5)
        center = mean[..., :features]
        moment = mean[..., features:].unflatten(-1, (features, features))
        floor = self.floor * torch.eye(features, dtype=mean.dtype, device=mean.device)
        return center, moment - center[..., :, None] * center[..., None, :] + floor

    def _loop_statistics(self, x: Tensor) -> Tensor:
        x = super().sufficient_statistics(x)
        return torch.cat([x, x.new_zeros(*x.shape[:-1], x.shape[-1] ** 2)], -1)

    def __repr__(self) -> str:
        return f"GaussianCovarianceGenerator(floor={self.floor:g})"


_FAMILIES: dict[str, type[BregmanGenerator]] = {
    "gaussian": GaussianGenerator,
    "poisson": PoissonGenerator,
    "multinomial": MultinomialGenerator,
    "itakura_saito": ItakuraSaitoGenerator,
    "gaussian_covariance": GaussianCovarianceGenerator,
}


def generator_named(family: "str | BregmanGenerator") -> BregmanGenerator:
    """Generator of a family by its name; a generator is left as it is."""
    if isinstance(family, BregmanGenerator):
        return family
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ValueError(
            f"family must be one of {', '.join(_FAMILIES)}, or a BregmanGenerator, got "
            f"{family!r:.80}"
        )
    return _FAMILIES[family]()


def _check_points(x: Tensor, allowed: Tensor, wanted: str) -> None:
    """Check points, and name the first that is not allowed."""
    rows = allowed.all(-1).flatten()
    if not rows.all():
        row = int(rows.logical_not().nonzero()[0, 0])
        point = x.reshape(-1, x.shape[-1])[row].tolist()
        raise ValueError(f"x must hold {wanted}, got {str(point):.80} in row {row}")
