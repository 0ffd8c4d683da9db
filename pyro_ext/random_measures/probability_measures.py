"""Random probability measures: normalized random measures, Pitman-Yor and Dirichlet processes.

[1] L. F. James, A. Lijoi, I. Prünster (2009), Posterior analysis for normalized random measures
with independent increments.

[2] F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
statistical models with double power-law behavior.

[3] J. Pitman, M. Yor (1997), The two-parameter Poisson-Dirichlet distribution derived from a stable
subordinator.
"""

import math
from typing import Any, Generic

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution
from typing_extensions import TypeVar

from pyro_ext._lib import checks
from pyro_ext.random_measures._numerics import as_double
from pyro_ext.random_measures.cluster_counts import ClusterSizes, check_counts, cluster_sizes
from pyro_ext.random_measures.levy_measure import LevyMeasure, check_measure
from pyro_ext.random_measures.partition import (
    ClusterCounts,
    ProbabilityMeasure,
    log_sums_by_blocks,
    log_sums_over_partitions,
    seat_by_arrivals,
    seat_by_counts,
)
from pyro_ext.special.operations import holds_everywhere
from pyro_ext.special.quadrature import (
    LogIntegrand,
    integrate_log,
    panel_edges,
    panel_nodes,
    sample_from_panels,
)

_FALL = 45.0

M = TypeVar("M", bound=LevyMeasure, default=Any)  # the class of the measure, wherever it is named


class NormalizedRandomMeasure(ProbabilityMeasure, Generic[M]):
    r"""Random probability measure :math:`G / S`, a completely random measure over its mass [1].

    For :math:`n` samples from it that form clusters of sizes :math:`n_1, \dots, n_K`, and the
    auxiliary variable :math:`U | S \sim \text{Gamma}(n, S)`,

    .. math:: p(n_1, \dots, n_K, u) = \frac{u^{n-1}}{\Gamma(n)} e^{-\psi(u)}
              \prod_{j=1}^K \kappa(n_j, u) .

    Its integral over :math:`u` is the exchangeable partition probability function (EPPF).

    :param measure: a measure with infinitely many weights.
    :raises ValueError: if the measure has finitely many weights, since its mass may then be zero.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> distribution = GeneralizedGammaProcess(2.0, 0.4, 1.5).normalize()
        >>> distribution.log_eppf([2, 1]).exp()
        tensor(0.1108)
    """

    measure: M

    def __init__(self, measure: M) -> None:
        check_measure("measure", measure)
        if not measure._has_infinitely_many():
            raise ValueError(
                f"measure must have infinitely many weights to be normalized, got {measure!r}"
            )
        self.measure = measure

    def __repr__(self) -> str:
        return f"{self.measure!r}.normalize()"

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the parameters."""
        return self.measure.batch_shape

    @property
    def index_at_zero(self) -> Tensor:
        """Index of the power law of small weights."""
        return self.measure.index_at_zero

    def log_joint(self, counts: Any, auxiliary: Any, multiplicity: Any = None) -> Tensor:
        r"""Logarithm of :math:`p(n_1, \dots, n_K, u)`.

        :param Tensor counts: cluster sizes, padded with zeros.
            **Shape:** ``(*batch, num_clusters)``.
        :param Tensor auxiliary: :math:`u > 0`. **Shape:** any that broadcasts with the batch.
        :param Tensor multiplicity: as in ``log_eppf``.
        """
        sizes = cluster_sizes(counts, multiplicity)
        log_auxiliary = self.measure._argument("auxiliary", auxiliary, "> 0").log()
        return self.measure._result(self._log_joint(sizes, log_auxiliary), auxiliary)

    def predictive(self, counts: Any, auxiliary: Any = None) -> Tensor:
        r"""Probabilities that the next sample joins each cluster, or a new one.

        Given :math:`u`, they are proportional to :math:`\kappa(n_j + 1, u) / \kappa(n_j, u)` and,
        for a new cluster, :math:`\kappa(1, u)`.

        :param Tensor counts: cluster sizes, padded with zeros.
            **Shape:** ``(*batch, num_clusters)``.
        :param Tensor auxiliary: :math:`u > 0`, to be drawn anew for each sample. Default: average
            the probabilities over it, given the counts.
        :returns: probabilities; the last is that of a new cluster.
            **Shape:** ``(*batch, num_clusters + 1)``.
        """
        sizes = check_counts(counts)
        if auxiliary is not None:
            log_auxiliary = self.measure._argument("auxiliary", auxiliary, "> 0").log()
            return self.measure._result(
                self._log_weights(sizes, log_auxiliary).softmax(-1), auxiliary
            )
        integrand, edges = self._auxiliary_panels(cluster_sizes(sizes))
        points, log_node_weights = panel_nodes(edges)
        log_terms = log_node_weights + integrand(points) + points
        wide = self._wide
        log_weights = wide._log_weights(sizes[..., None, :], points)
        return self.measure._result((log_terms[..., None] + log_weights).logsumexp(-2).softmax(-1))

    def sample_auxiliary(self, counts: Any, sample_shape: Any = ()) -> Tensor:
        r"""Draw the auxiliary variable :math:`u` given cluster sizes.

        :param Tensor counts: cluster sizes, padded with zeros.
            **Shape:** ``(*batch, num_clusters)``.
        :param torch.Size sample_shape: the shape of independent draws.
        """
        integrand, edges = self._auxiliary_panels(cluster_sizes(counts))
        edges = edges.expand(*checks.as_size("sample_shape", sample_shape), *edges.shape)
        return self.measure._result(sample_from_panels(integrand, edges).exp())

    def posterior_jumps(self, counts: Any, auxiliary: Any) -> Tensor:
        r"""Draw the weights of the clusters given their sizes and :math:`u`.

        They are independent, with densities proportional to :math:`w^{n_j} e^{-uw} \rho(w)`.

        :param Tensor counts: cluster sizes, padded with zeros.
            **Shape:** ``(*batch, num_clusters)``.
        :param Tensor auxiliary: :math:`u > 0`. **Shape:** any that broadcasts with the batch.
        :returns: the weights, zero for padding. **Shape:** ``(*batch, num_clusters)``.
        """
        sizes = check_counts(counts)
        log_auxiliary = self.measure._argument("auxiliary", auxiliary, "> 0").log()[..., None]
        wide = self.measure._unsqueezed()
        log_weights = wide._sample_jump(
            *torch.broadcast_tensors(sizes.clamp(min=1.0), log_auxiliary)
        )
        return self.measure._result(torch.where(sizes > 0, log_weights.exp(), 0.0), auxiliary)

    def posterior_measure(self, auxiliary: Any) -> M:
        r"""The measure without the weights of the observed clusters, given :math:`u`.

        :param auxiliary: :math:`u > 0`.
        """
        return self.measure.exponential_tilt(auxiliary)

    def log_num_clusters(self, num_samples: int) -> Tensor:
        """Log probabilities of 1 to n clusters among n samples.

        The cost is cubic in n, which should be at most a few hundred; for more, sample partitions.

        :param int num_samples: :math:`n`.
        :returns: the logarithms. **Shape:** ``(*batch_shape, n)``.
        """
        number = checks.integer("num_samples", num_samples, 1)
        points, log_weights = self._total_nodes(number)
        log_weights = log_weights - math.lgamma(number)
        sums = log_sums_by_blocks(self._wide._log_kappas(number, points))
        return self.measure._result((log_weights[..., None] + sums).logsumexp(-2))

    def expected_cluster_counts(self, num_samples: int) -> Tensor:
        """Expected numbers of clusters of sizes 1 to n among n samples.

        Their sum is the expected number of clusters. The cost is quadratic in n, which should be at
        most a few thousand.

        :param int num_samples: :math:`n`.
        :returns: the numbers. **Shape:** ``(*batch_shape, n)``.
        """
        number = checks.integer("num_samples", num_samples, 1)
        points, log_weights = self._total_nodes(number)
        log_kappas = self._wide._log_kappas(number, points)
        order = torch.arange(1, number + 1, dtype=torch.float64, device=points.device)
        rest = log_sums_over_partitions(log_kappas)[..., :-1].flip(-1)
        terms = log_weights[..., None] + log_kappas - (order + 1.0).lgamma() + rest
        return self.measure._result(number * terms.logsumexp(-2).exp())

    @property
    def _dtype(self) -> torch.dtype:
        return self.measure.dtype

    def _log_eppf(self, sizes: ClusterSizes) -> Tensor:
        """By quadrature over the auxiliary variable."""
        return integrate_log(*self._auxiliary_panels(sizes))

    def _sample_labels(self, num_samples: int, num_draws: int) -> Tensor:
        return seat_by_arrivals(self.measure, num_samples, num_draws)

    def _sample_sizes(self, num_samples: int, num_draws: int) -> list[Tensor]:
        sampler = ClusterCounts(self.measure, num_samples)
        return [sampler.sample() for _ in range(num_draws)]

    def _element(self, index: int) -> "NormalizedRandomMeasure":
        return NormalizedRandomMeasure(self.measure._element(index))

    @property
    def _wide(self) -> "NormalizedRandomMeasure[LevyMeasure]":
        """The same with one more axis, over nodes of quadrature."""
        return NormalizedRandomMeasure(self.measure._unsqueezed())

    def _log_kappas(self, number: int, log_auxiliary: Tensor) -> Tensor:
        order = torch.arange(1, number + 1, dtype=torch.float64, device=log_auxiliary.device)
        wide = self.measure._unsqueezed()
        return wide._log_moment(*torch.broadcast_tensors(order, log_auxiliary[..., None]))

    def _log_weights(self, sizes: Tensor, log_auxiliary: Tensor) -> Tensor:
        """Logarithms of the weights of all clusters, and of a new one, given u."""
        wide, log_u = self.measure._unsqueezed(), log_auxiliary[..., None]
        shape = torch.broadcast_shapes(sizes.shape, log_u.shape, (*self.batch_shape, 1))
        safe = sizes.clamp(min=1.0).expand(shape)
        own = wide._log_moment(safe + 1.0, log_u) - wide._log_moment(safe, log_u)
        own = torch.where(sizes > 0, own, -torch.inf)
        new = wide._log_moment(torch.ones_like(log_u), log_u).expand(*shape[:-1], 1)
        return torch.cat([own, new], -1)

    def _product_form(self, num_samples: int, auxiliary: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log factors of the joint density by sizes of clusters from zero, and by their number."""
        if auxiliary is None:
            raise ValueError(
                "auxiliary must be given, since partitions have a product form only given it"
            )
        own = self._log_kappas(num_samples, auxiliary.double().log())
        none = own.new_zeros((*own.shape[:-1], 1))
        return torch.cat([none, own], -1), own.new_zeros(num_samples + 2)

    def _log_joint(self, sizes: ClusterSizes, log_auxiliary: Tensor) -> Tensor:
        wide, log_u = self.measure._unsqueezed(), log_auxiliary[..., None]
        moments = wide._log_moment(*torch.broadcast_tensors(sizes.values, log_u))
        exponent = self.measure._log_exponent(self.measure._expanded(log_auxiliary)).exp()
        total = sizes.total
        power = (total - 1.0) * log_auxiliary - total.lgamma()
        return power - exponent + (sizes.multiplicity * moments).sum(-1)

    def _auxiliary_panels(self, sizes: ClusterSizes) -> tuple[LogIntegrand, Tensor]:
        """Integrand over the logarithm of the auxiliary variable, and panels that resolve it."""
        wide = self._wide
        # Beside the nodes of quadrature there is no other axis where there is no batch.
        is_single = sizes.values.dim() == 1
        inner = sizes if is_single else ClusterSizes(*(part[..., None, :] for part in sizes))

        def log_integrand(x: Tensor) -> Tensor:
            return wide._log_joint(inner, x) + x

        shape = torch.broadcast_shapes(sizes.number.shape, self.batch_shape)
        number, total = sizes.number.expand(shape), sizes.total.expand(shape)
        return log_integrand, self._edges(log_integrand, number, total)

    def _total_nodes(self, number: int) -> tuple[Tensor, Tensor]:
        """Logarithms of the auxiliary variable of n samples, and of factors without a partition."""
        wide = self._wide

        def log_factor(x: Tensor) -> Tensor:
            return number * x - wide.measure._log_exponent(x).exp()

        def log_integrand(x: Tensor) -> Tensor:
            return log_factor(x) + log_sums_over_partitions(wide._log_kappas(number, x))[..., -1]

        # The number of clusters is bounded by the number of samples.
        total = self.measure._filled(float(number))
        points, log_weights = panel_nodes(self._edges(log_integrand, total, total))
        return points, log_factor(points) + log_weights

    def _edges(self, log_integrand: LogIntegrand, num_clusters: Tensor, total: Tensor) -> Tensor:
        """Panels over the logarithm of the auxiliary variable, for a number of clusters."""
        measure = self.measure
        with torch.no_grad():
            # Little depends on u below the point where psi is one, and nothing is left where it
            # has far exceeded the number of clusters, once u is so large that even the largest
            # cluster depends on small weights only.
            most = num_clusters + 100.0 + 15.0 * num_clusters.sqrt()
            start = measure._inverse_exponent(torch.zeros_like(num_clusters))
            corners = [start, *(-corner for corner in measure._log_corners())]
            *corners, high = torch.broadcast_tensors(
                *corners, measure._inverse_exponent(most.log())
            )
            every = torch.stack(corners, -1)
            high = high.maximum(every.max(-1).values) + total.log() + 5.0
            slope = measure.index_at_infinity.double().clamp(max=1.0)
            low = every.min(-1).values - _FALL / slope - 10.0
            edges: Tensor = panel_edges(log_integrand, low, high.maximum(low + 1.0), every)
        if edges.dim() == 1 and holds_everywhere(edges.isfinite()):
            distinct: Tensor = edges.unique()
            return distinct
        return edges


class PitmanYor(ProbabilityMeasure):
    r"""Pitman-Yor process, a random probability measure [3].

    With :math:`(x)_m = \Gamma(x + m) / \Gamma(x)`, the probability of a partition is

    .. math:: p(n_1, \dots, n_K) = \frac{\prod_{i=1}^{K-1} (\theta + i \sigma)}{(\theta + 1)_{n-1}}
              \prod_{j=1}^K (1 - \sigma)_{n_j - 1} .

    :param discount: :math:`\sigma`, in [0, 1). Zero gives the Dirichlet process.
    :param concentration: :math:`\theta > -\sigma`.

    Example::

        >>> PitmanYor(0.4, 1.3).log_eppf([2, 1]).exp()
        tensor(0.1344)
    """

    discount: Tensor
    concentration: Tensor
    _validate: bool

    def __init__(
        self, discount: Any, concentration: Any, *, validate_args: bool | None = None
    ) -> None:
        values = {"discount": discount, "concentration": concentration}
        sigma, theta = checks.as_parameters(type(self).__name__, values)
        is_checked = Distribution._validate_args if validate_args is None else validate_args
        vars(self).update(discount=sigma, concentration=theta, _validate=is_checked)
        self._check("discount", (sigma >= 0) & (sigma < 1), "in [0, 1)")
        self._check("concentration", theta.isfinite() & (theta > -sigma), "finite and > -discount")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable, {name} cannot be set")

    def __repr__(self) -> str:
        values = f"discount={self.discount}, concentration={self.concentration}"
        return f"{type(self).__name__}({values})"

    def _check(self, name: str, is_valid: Tensor, wanted: str) -> None:
        if self._validate and not bool(is_valid.all()):
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

    def log_joint(self, counts: Any, auxiliary: Any, multiplicity: Any = None) -> Tensor:
        r"""Logarithm of the joint density of a partition and an auxiliary variable.

        For a positive discount, the process is the normalized stable process, with its distribution
        weighted by :math:`S^{-\theta}`, and :math:`U | S \sim \text{Gamma}(n + \theta, S)`. With a
        discount of zero, it is the normalized gamma process, and
        :math:`U | S \sim \text{Gamma}(n, S)`. The arguments are those of
        :meth:`NormalizedRandomMeasure.log_joint`.
        """
        sizes, log_u = cluster_sizes(counts, multiplicity), as_double(auxiliary, "auxiliary").log()
        sigma, theta = self.discount.double(), self.concentration.double()
        total, number = sizes.total, sizes.number
        has_discount = sigma > 0
        safe = torch.where(has_discount, sigma, 0.5)
        constant = (theta + 1.0).lgamma() - (theta / safe + 1.0).lgamma()
        stable = (
            constant
            + (theta + number * safe - 1.0) * log_u
            - (total + theta).lgamma()
            - (safe * log_u).exp()
            + number * safe.log()
        )
        growth = torch.logaddexp(log_u, torch.zeros_like(log_u))
        mass = torch.where(has_discount, 1.0, theta)
        gamma = (
            (total - 1.0) * log_u - total.lgamma() - (mass + total) * growth + number * mass.log()
        )
        blocks = _log_rising((1.0 - sigma)[..., None], sizes.values - 1.0)
        blocks = (sizes.multiplicity * blocks).sum(-1)
        return (torch.where(has_discount, stable, gamma) + blocks).to(self.discount.dtype)

    def predictive(self, counts: Any, auxiliary: Any = None) -> Tensor:
        """Probabilities that the next sample joins each cluster, or a new one.

        The arguments are those of :meth:`NormalizedRandomMeasure.predictive`. The result does not
        depend on the auxiliary variable.
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
        r"""Distribution of the fractions that are broken off a stick, one after the other.

        :math:`V_k \sim \text{Beta}(1 - \sigma, \theta + k \sigma)`, and the weights in size-biased
        order are :math:`V_k \prod_{i < k} (1 - V_i)`.

        :param int num_sticks: the number of fractions.
        :returns: a distribution with batch shape ``(*batch_shape, num_sticks)``.
        """
        number = checks.integer("num_sticks", num_sticks, 1)
        order = torch.arange(1, number + 1, dtype=self.discount.dtype, device=self.discount.device)
        sigma, theta = self.discount[..., None], self.concentration[..., None]
        return dist.Beta(1.0 - sigma, theta + order * sigma, validate_args=self._validate)

    def log_num_clusters(self, num_samples: int) -> Tensor:
        """Log probabilities of 1 to n clusters among n samples.

        The cost is cubic in n, which should be at most a few thousand.

        :param int num_samples: :math:`n`.
        :returns: the logarithms. **Shape:** ``(*batch_shape, n)``.
        """
        number, order, sigma, theta = self._for_samples(num_samples)
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
        number, order, sigma, theta = self._for_samples(num_samples)
        rest = number - order
        log_choices = math.lgamma(number + 1.0) - (order + 1.0).lgamma() - (rest + 1.0).lgamma()
        value = log_choices + _log_rising(1.0 - sigma, order - 1.0)
        value = value + _log_rising(theta + sigma, rest)
        value = value - _log_rising(theta + 1.0, torch.full_like(theta, number - 1.0))
        return value.exp().to(self.discount.dtype)

    def _for_samples(self, num_samples: int) -> tuple[int, Tensor, Tensor, Tensor]:
        """Number of samples, numbers up to it, and the parameters over one more axis."""
        number = checks.integer("num_samples", num_samples, 1)
        order = torch.arange(1, number + 1, dtype=torch.float64, device=self.discount.device)
        return (
            number,
            order,
            self.discount.double()[..., None],
            self.concentration.double()[..., None],
        )

    def _product_form(self, num_samples: int, auxiliary: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log factors of the probability by sizes of clusters from zero, and by their number."""
        order = torch.arange(num_samples + 2, dtype=torch.float64, device=self.discount.device)
        sigma, theta = self.discount.double()[..., None], self.concentration.double()[..., None]
        own = _log_rising(1.0 - sigma, order[:-1] - 1.0)
        return torch.where(order[:-1] > 0, own, 0.0), self._log_new(sigma, theta, order)

    @staticmethod
    def _log_new(sigma: Tensor, theta: Tensor, number: Tensor) -> Tensor:
        r""":math:`\log \prod_{i=1}^{K-1} (\theta + i \sigma)`."""
        more = (number - 1.0).clamp(min=0.0)
        # Gamma functions of theta / sigma lose all precision where sigma is small beside theta.
        is_small = more * sigma < 1e-3 * theta
        theta_small = torch.where(is_small, theta, 1.0)
        ratio = torch.where(is_small, sigma / theta_small, 0.0)
        corrections = 0.5 - ratio * ((2.0 * more + 1.0) / 12.0 - ratio * more * (more + 1.0) / 12.0)
        small = more * theta_small.log() + ratio * more * (more + 1.0) * corrections
        safe = torch.where(is_small, 1.0, sigma)
        theta_other = torch.where(is_small, 1.0, theta)
        other = more * safe.log() + _log_rising(theta_other / safe + 1.0, more)
        return torch.where(is_small, small, other)

    @property
    def _dtype(self) -> torch.dtype:
        return self.discount.dtype

    def _log_eppf(self, sizes: ClusterSizes) -> Tensor:
        sigma, theta = self.discount.double(), self.concentration.double()
        total, number = sizes.total, sizes.number
        value = self._log_new(sigma, theta, number) - _log_rising(theta + 1.0, total - 1.0)
        blocks = _log_rising((1.0 - sigma)[..., None], sizes.values - 1.0)
        value = value + (sizes.multiplicity * blocks).sum(-1)
        return torch.where(total > 0, value, 0.0)

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

    Example::

        >>> DirichletProcess(2.0).log_eppf([2]).exp()
        tensor(0.3333)
    """

    def __init__(self, concentration: Any, *, validate_args: bool | None = None) -> None:
        super().__init__(0.0, concentration, validate_args=validate_args)


def _log_rising(start: Tensor, number: Tensor) -> Tensor:
    r""":math:`\log (x)_m`, for positive x."""
    return (start + number).lgamma() - start.lgamma()
