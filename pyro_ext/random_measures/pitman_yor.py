r"""The Pitman-Yor and the Dirichlet process.

[1] J. Pitman, M. Yor (1997), The two-parameter Poisson-Dirichlet distribution derived from a stable
subordinator.
"""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext._checks import as_parameters, check_integer
from pyro_ext.random_measures._counts import check_counts, cluster_sizes
from pyro_ext.random_measures._logarithms import as_double
from pyro_ext.random_measures._partition_sums import log_sums_by_blocks
from pyro_ext.random_measures._urn import seat_by_counts
from pyro_ext.random_measures.partition import RandomPartition

__all__ = ["DirichletProcess", "PitmanYor"]


class PitmanYor:
    r"""Pitman-Yor process, a random probability measure [1].

    Its random partitions have, with :math:`(x)_m = \Gamma(x + m) / \Gamma(x)`,

    .. math:: p(n_1, \dots, n_K) = \frac{\prod_{i=1}^{K-1} (\theta + i \sigma)}{(\theta + 1)_{n-1}}
              \prod_{j=1}^K (1 - \sigma)_{n_j - 1} .

    :param discount: :math:`\sigma`, in [0, 1). With zero it is the Dirichlet process.
    :param concentration: :math:`\theta > -\sigma`.
    :raises ValueError: where a parameter is out of range.

    Example::

        >>> PitmanYor(0.4, 1.3).log_eppf([2, 1]).exp()
        tensor(0.1344)
    """

    discount: Tensor
    concentration: Tensor

    def __init__(
        self, discount: Any, concentration: Any, *, validate_args: bool | None = None
    ) -> None:
        put = object.__setattr__
        values = {"discount": discount, "concentration": concentration}
        sigma, theta = as_parameters(type(self).__name__, values)
        put(self, "discount", sigma)
        put(self, "concentration", theta)
        put(
            self,
            "_validate",
            Distribution._validate_args if validate_args is None else validate_args,
        )
        self._check("discount", (sigma >= 0) & (sigma < 1), "in [0, 1)")
        self._check("concentration", theta.isfinite() & (theta > -sigma), "finite and > -discount")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable, {name} cannot be set")

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(discount={self.discount}, concentration={self.concentration})"
        )

    def _check(self, name: str, is_valid: Tensor, wanted: str) -> None:
        if self._validate and not bool(is_valid.all()):  # type: ignore[attr-defined]
            bad = getattr(self, name)[~is_valid].flatten()[0].item()
            raise ValueError(f"{name} of {type(self).__name__} must be {wanted}, got {bad:g}")

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the parameters."""
        return self.discount.shape

    @property
    def index_at_zero(self) -> Tensor:
        """Index of the power law of small weights, the discount."""
        return self.discount

    def log_eppf(self, counts: Any, multiplicity: Any = None) -> Tensor:
        """Logarithm of the probability of a partition.

        It is that of one partition of labelled elements with these block sizes.

        :param Tensor counts: sizes of clusters in any order, zeros for padding.
            **Shape:** ``(*batch, num_clusters)``.
        :param Tensor multiplicity: number of clusters of each size, one by default.
        """
        sizes = cluster_sizes(counts, multiplicity)
        sigma, theta = self.discount.double(), self.concentration.double()
        total, number = sizes.total, sizes.number
        value = self._log_new(sigma, theta, number) - _log_rising(theta + 1.0, total - 1.0)
        blocks = _log_rising((1.0 - sigma)[..., None], sizes.values - 1.0)
        value = value + (sizes.multiplicity * blocks).sum(-1)
        return torch.where(total > 0, value, 0.0).to(self.discount.dtype)

    def log_joint(self, counts: Any, tilt: Any, multiplicity: Any = None) -> Tensor:
        r"""Logarithm of the joint density of a partition and an auxiliary variable.

        For a positive discount the process is the normalized stable process with a law that is
        weighted by :math:`S^{-\theta}`, and :math:`U | S \sim \text{Gamma}(n + \theta, S)`. Without
        discount it is the normalized gamma process, and :math:`U | S \sim \text{Gamma}(n, S)`.

        :param Tensor counts: sizes of clusters, zeros for padding.
            **Shape:** ``(*batch, num_clusters)``.
        :param Tensor tilt: :math:`u > 0`. **Shape:** one that broadcasts with the batch.
        :param Tensor multiplicity: number of clusters of each size, one by default.
        """
        sizes, log_tilt = cluster_sizes(counts, multiplicity), as_double(tilt, "tilt").log()
        sigma, theta = self.discount.double(), self.concentration.double()
        total, number = sizes.total, sizes.number
        has_discount = sigma > 0
        safe = torch.where(has_discount, sigma, 0.5)
        constant = (theta + 1.0).lgamma() - (theta / safe + 1.0).lgamma()
        stable = (
            constant
            + (theta + number * safe - 1.0) * log_tilt
            - (total + theta).lgamma()
            - (safe * log_tilt).exp()
            + number * safe.log()
        )
        growth = torch.logaddexp(log_tilt, torch.zeros_like(log_tilt))
        mass = torch.where(has_discount, 1.0, theta)
        gamma = (
            (total - 1.0) * log_tilt
            - total.lgamma()
            - (mass + total) * growth
            + number * mass.log()
        )
        blocks = _log_rising((1.0 - sigma)[..., None], sizes.values - 1.0)
        blocks = (sizes.multiplicity * blocks).sum(-1)
        return (torch.where(has_discount, stable, gamma) + blocks).to(self.discount.dtype)

    def predictive(self, counts: Any, tilt: Any = None) -> Tensor:
        """Probabilities that the next sample joins each cluster, or a new one.

        :param Tensor counts: sizes of clusters, zeros for padding.
            **Shape:** ``(*batch, num_clusters)``.
        :param tilt: taken for the sake of one interface; nothing depends on it.
        :returns: probabilities, the last that of a new cluster.
            **Shape:** ``(*batch, num_clusters + 1)``.
        """
        sizes = check_counts(counts)
        sigma, theta = self.discount.double()[..., None], self.concentration.double()[..., None]
        number = (sizes > 0).double().sum(-1, keepdim=True)
        own = torch.where(sizes > 0, sizes - sigma, 0.0)
        new = torch.where(number > 0, theta + sigma * number, 1.0)
        own = own.expand(*torch.broadcast_shapes(own.shape[:-1], new.shape[:-1]), own.shape[-1])
        weights = torch.cat([own, new.expand(*own.shape[:-1], 1)], -1)
        return (weights / weights.sum(-1, keepdim=True)).to(self.discount.dtype)

    def sticks(self, num_sticks: int) -> dist.Beta:
        r"""Law of the shares that are broken off a stick, one after the other.

        :math:`V_k \sim \text{Beta}(1 - \sigma, \theta + k \sigma)`, and the weights in size-biased
        order are :math:`V_k \prod_{i < k} (1 - V_i)`.

        :param int num_sticks: how many.
        :returns: a distribution of batch shape ``(*batch_shape, num_sticks)``.
        """
        number = check_integer("num_sticks", num_sticks, 1)
        order = torch.arange(1, number + 1, dtype=self.discount.dtype, device=self.discount.device)
        sigma, theta = self.discount[..., None], self.concentration[..., None]
        return dist.Beta(1.0 - sigma, theta + order * sigma, validate_args=self._validate)  # type: ignore[attr-defined]

    def partition(self, num_samples: int) -> RandomPartition:
        """Law of the partition of a number of samples, as a distribution of label vectors.

        :param int num_samples: how many.
        """
        return RandomPartition(self, num_samples)

    def log_num_clusters(self, num_samples: int) -> Tensor:
        """Log probabilities of 1 to n clusters among n samples.

        The cost is cubic in their number, which should be thousands at most.

        :param int num_samples: :math:`n`.
        :returns: the logarithms. **Shape:** ``(*batch_shape, n)``.
        """
        number = check_integer("num_samples", num_samples, 1)
        order = torch.arange(1, number + 1, dtype=torch.float64, device=self.discount.device)
        sigma, theta = self.discount.double()[..., None], self.concentration.double()[..., None]
        sums = log_sums_by_blocks(_log_rising(1.0 - sigma, order - 1.0))
        total = torch.full_like(theta, number - 1.0)
        value = self._log_new(sigma, theta, order) - _log_rising(theta + 1.0, total) + sums
        return value.to(self.discount.dtype)

    def expected_cluster_counts(self, num_samples: int) -> Tensor:
        r"""Expected numbers of clusters of sizes 1 to n among n samples.

        .. math:: \binom{n}{j} \frac{(1 - \sigma)_{j-1} (\theta + \sigma)_{n-j}}
                  {(\theta + 1)_{n-1}} .

        :param int num_samples: :math:`n`.
        :returns: the numbers. **Shape:** ``(*batch_shape, n)``.
        """
        number = check_integer("num_samples", num_samples, 1)
        order = torch.arange(1, number + 1, dtype=torch.float64, device=self.discount.device)
        sigma, theta = self.discount.double()[..., None], self.concentration.double()[..., None]
        rest = number - order
        log_choices = math.lgamma(number + 1.0) - (order + 1.0).lgamma() - (rest + 1.0).lgamma()
        value = log_choices + _log_rising(1.0 - sigma, order - 1.0)
        value = value + _log_rising(theta + sigma, rest)
        value = value - _log_rising(theta + 1.0, torch.full_like(theta, number - 1.0))
        return value.exp().to(self.discount.dtype)

    def _product_form(self, num_samples: int, tilt: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log factors of the probability by sizes of clusters from zero, and by their number."""
        order = torch.arange(num_samples + 2, dtype=torch.float64, device=self.discount.device)
        sigma, theta = self.discount.double()[..., None], self.concentration.double()[..., None]
        own = _log_rising(1.0 - sigma, order[:-1] - 1.0)
        return torch.where(order[:-1] > 0, own, 0.0), self._log_new(sigma, theta, order)

    @staticmethod
    def _log_new(sigma: Tensor, theta: Tensor, number: Tensor) -> Tensor:
        r""":math:`\log \prod_{i=1}^{K-1} (\theta + i \sigma)`."""
        more = (number - 1.0).clamp(min=0.0)
        has_discount = sigma > 0
        safe = torch.where(has_discount, sigma, 1.0)
        with_discount = more * safe.log() + _log_rising(theta / safe + 1.0, more)
        mass = torch.where(has_discount, 1.0, theta)
        return torch.where(has_discount, with_discount, more * mass.log())

    def _sample_labels(self, num_samples: int, num_draws: int) -> Tensor:
        discount, concentration = float(self.discount), float(self.concentration)
        return seat_by_counts(discount, concentration, num_samples, num_draws)

    def _element(self, index: int) -> "PitmanYor":
        return PitmanYor(self.discount.reshape(-1)[index], self.concentration.reshape(-1)[index])


class DirichletProcess(PitmanYor):
    r"""Dirichlet process, the normalized gamma process.

    .. math:: p(n_1, \dots, n_K) = \frac{\theta^K \Gamma(\theta)}{\Gamma(\theta + n)}
              \prod_{j=1}^K \Gamma(n_j) .

    :param concentration: :math:`\theta > 0`.
    :raises ValueError: where it is not positive.

    Example::

        >>> DirichletProcess(2.0).log_eppf([2]).exp()
        tensor(0.3333)
    """

    def __init__(self, concentration: Any, *, validate_args: bool | None = None) -> None:
        super().__init__(0.0, concentration, validate_args=validate_args)


def _log_rising(start: Tensor, number: Tensor) -> Tensor:
    r""":math:`\log (x)_m`, for positive x."""
    return (start + number).lgamma() - start.lgamma()
