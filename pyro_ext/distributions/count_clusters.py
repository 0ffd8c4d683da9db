"""Clusters of counts and binary features, with their probabilities or rates integrated out."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.distributions._evidence import log_rising
from pyro_ext.distributions.clusters import ConjugateCluster, Summary
from pyro_ext.special import in_double

_POSITIVE_VECTOR = constraints.independent(constraints.positive, 1)


class _CountCluster(ConjugateCluster):
    """Cluster of integers, whose blocks are known by their number, base measure and sum."""

    support = constraints.independent(constraints.nonnegative_integer, 1)

    def _moments(self, x: Tensor) -> Tensor:
        return x

    def _summary(self, x: Tensor, present: Tensor) -> Summary:
        total = (self._statistics(x) * present.unsqueeze(-1)).sum(-2)
        return total[..., 0], total[..., 1], total[..., 2:]

    def _summary_of_point(self, value: Tensor) -> Summary:
        statistics = self._statistics(value)
        return statistics[..., 0], statistics[..., 1], statistics[..., 2:]


class MultinomialCluster(_CountCluster):
    r"""Row of counts, such as the words of a document, from a cluster with unknown probabilities.

    .. math:: p \sim \text{Dirichlet}(a) , \quad x_i \sim \text{Multinomial}(N_i, p) .

    A point may have any total :math:`N_i`. The distribution is conditional on it: the probabilities
    of all rows with the same total sum to one. The statistics of a point are 1, the logarithm of
    its multinomial coefficient, and :math:`x`.

    :param concentration: :math:`a > 0`, one number for each word. **Shape:** ``(*batch, W)``.
    :param int total_count: the total of each draw, and the total for which the mean and the
        variance are computed.

    Example::

        >>> cluster = MultinomialCluster(torch.full((3,), 0.5))
        >>> cluster.log_marginal(torch.tensor([[3, 1, 0], [2, 2, 0]]))
        tensor(-4.6180)
    """

    concentration: Tensor
    arg_constraints = {"concentration": _POSITIVE_VECTOR}
    _kind = 2

    def __init__(
        self, concentration: Any, total_count: int = 1, *, validate_args: bool | None = None
    ) -> None:
        self.total_count = checks.integer("total_count", total_count, 1)
        super().__init__({"concentration": concentration}, validate_args)

    @property
    def _point_distribution(self) -> Any:
        return dist.DirichletMultinomial(self.concentration, self.total_count, validate_args=False)

    def _log_base(self, x: Tensor) -> Tensor:
        return (x.sum(-1) + 1.0).lgamma() - (x + 1.0).lgamma().sum(-1)

    def _log_marginal(self, summary: Summary) -> Tensor:
        _, base, total = summary
        return _multinomial_evidence(base, total, self.concentration)

    def _posterior(self, summary: Summary) -> dict[str, Any]:
        concentration = self.concentration + summary[2]
        return {"concentration": concentration, "total_count": self.total_count}

    def _draw_block(self, shape: torch.Size, num_points: int) -> Tensor:
        probs = torch._sample_dirichlet(self.concentration.expand(*shape, *self.event_shape))
        distribution = dist.Multinomial(self.total_count, probs, validate_args=False)
        draws: Tensor = distribution.sample(torch.Size((num_points,)))
        return draws.movedim(0, -2)

    def _compiled_parts(self) -> list[Tensor]:
        return [self.concentration, self.concentration.double().sum()]


class BernoulliCluster(_CountCluster):
    r"""Vector of binary features from a cluster with unknown probabilities.

    .. math:: p_w \sim \text{Beta}(a_1, a_0) , \quad x_{iw} \sim \text{Bernoulli}(p_w) .

    The statistics of a point are 1, 0 and :math:`x`.

    :param concentration1: :math:`a_1 > 0`. **Shape:** ``(*batch, d)``; a number applies to all
        dimensions, but at least one of the two arguments must have the dimension ``d``.
    :param concentration0: :math:`a_0 > 0`. **Shape:** likewise.

    Example::

        >>> cluster = BernoulliCluster(torch.ones(2), 1.0)
        >>> cluster.log_marginal(torch.tensor([[1, 0], [1, 0], [1, 1]]))
        tensor(-3.8712)
    """

    concentration1: Tensor
    concentration0: Tensor
    arg_constraints = {"concentration1": _POSITIVE_VECTOR, "concentration0": _POSITIVE_VECTOR}
    support = constraints.independent(constraints.boolean, 1)
    _kind = 3

    def __init__(
        self, concentration1: Any, concentration0: Any, *, validate_args: bool | None = None
    ) -> None:
        parameters = {"concentration1": concentration1, "concentration0": concentration0}
        super().__init__(parameters, validate_args)

    @property
    def _point_distribution(self) -> Any:
        logits = self.concentration1.log() - self.concentration0.log()
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(1)

    def _log_marginal(self, summary: Summary) -> Tensor:
        count, base, total = summary
        return _bernoulli_evidence(count, base, total, self.concentration1, self.concentration0)

    def _posterior(self, summary: Summary) -> dict[str, Any]:
        count, _, total = summary
        return {
            "concentration1": self.concentration1 + total,
            "concentration0": self.concentration0 + count.unsqueeze(-1) - total,
        }

    def _draw_block(self, shape: torch.Size, num_points: int) -> Tensor:
        distribution = dist.Beta(self.concentration1, self.concentration0, validate_args=False)
        probs = distribution.expand((*shape, *self.event_shape)).sample().unsqueeze(-2)
        return torch.bernoulli(probs.expand(*shape, num_points, -1))


class PoissonCluster(_CountCluster):
    r"""Vector of counts from a cluster with unknown rates.

    .. math:: \lambda_w \sim \text{Gamma}(a, b) , \quad x_{iw} \sim \text{Poisson}(\lambda_w) .

    The statistics of a point are 1, :math:`-\sum_w \log x_w!` and :math:`x`.

    :param concentration: :math:`a > 0`. **Shape:** ``(*batch, d)``; a number applies to all
        dimensions, but at least one of the two arguments must have the dimension ``d``.
    :param rate: :math:`b > 0`. **Shape:** likewise.

    Example::

        >>> cluster = PoissonCluster(torch.full((2,), 2.0), 1.0)
        >>> cluster.log_marginal(torch.tensor([[3, 0], [1, 0]]))
        tensor(-5.7932)
    """

    concentration: Tensor
    rate: Tensor
    arg_constraints = {"concentration": _POSITIVE_VECTOR, "rate": _POSITIVE_VECTOR}
    _kind = 4

    def __init__(self, concentration: Any, rate: Any, *, validate_args: bool | None = None) -> None:
        super().__init__({"concentration": concentration, "rate": rate}, validate_args)

    @property
    def _point_distribution(self) -> Any:
        return dist.GammaPoisson(self.concentration, self.rate, validate_args=False).to_event(1)

    def _log_base(self, x: Tensor) -> Tensor:
        return -(x + 1.0).lgamma().sum(-1)

    def _log_marginal(self, summary: Summary) -> Tensor:
        count, base, total = summary
        return _poisson_evidence(count, base, total, self.concentration, self.rate)

    def _posterior(self, summary: Summary) -> dict[str, Any]:
        count, _, total = summary
        return {
            "concentration": self.concentration + total,
            "rate": self.rate + count.unsqueeze(-1),
        }

    def _draw_block(self, shape: torch.Size, num_points: int) -> Tensor:
        gamma = torch._standard_gamma(self.concentration.expand(*shape, *self.event_shape))
        rate = (gamma / self.rate).unsqueeze(-2)
        return torch.poisson(rate.expand(*shape, num_points, -1))


@in_double
def _multinomial_evidence(base: Tensor, total: Tensor, concentration: Tensor) -> Tensor:
    words = log_rising(concentration, total).sum(-1)
    return base + words - log_rising(concentration.sum(-1), total.sum(-1))


@in_double
def _bernoulli_evidence(
    count: Tensor, base: Tensor, total: Tensor, concentration1: Tensor, concentration0: Tensor
) -> Tensor:
    count = count.unsqueeze(-1)
    terms = (
        log_rising(concentration1, total)
        + log_rising(concentration0, count - total)
        - log_rising(concentration1 + concentration0, count)
    )
    return base + terms.sum(-1)


@in_double
def _poisson_evidence(
    count: Tensor, base: Tensor, total: Tensor, concentration: Tensor, rate: Tensor
) -> Tensor:
    count = count.unsqueeze(-1)
    terms = (
        log_rising(concentration, total)
        - concentration * torch.log1p(count / rate)
        - total * (rate + count).log()
    )
    return base + terms.sum(-1)
