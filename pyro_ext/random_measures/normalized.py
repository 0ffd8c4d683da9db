r"""Normalized completely random measures, and the random partitions that they induce.

[1] L. F. James, A. Lijoi, I. Prünster (2009), Posterior analysis for normalized random measures
with independent increments.

[2] F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
statistical models with double power-law behavior.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_ext._checks import as_size, check_integer
from pyro_ext.random_measures._arguments import check_measure
from pyro_ext.random_measures._counts import ClusterSizes, check_counts, cluster_sizes
from pyro_ext.random_measures._partition_sums import (
    log_sums_by_blocks,
    log_sums_over_partitions,
)
from pyro_ext.random_measures._roots import holds_everywhere
from pyro_ext.random_measures._urn import seat_by_arrivals
from pyro_ext.random_measures.partition import RandomPartition
from pyro_ext.special.quadrature import (
    LogIntegrand,
    integrate_log,
    panel_edges,
    panel_nodes,
    sample_from_panels,
)

if TYPE_CHECKING:
    from pyro_ext.random_measures._measure import CompletelyRandomMeasure

__all__ = ["NormalizedRandomMeasure"]

_FALL = 45.0


class NormalizedRandomMeasure:
    r"""Random probability measure :math:`G / S` of a completely random measure [1].

    Among :math:`n` samples of it, of which :math:`n_j` are of the :math:`j`-th kind, with the
    auxiliary variable :math:`U | S \sim \text{Gamma}(n, S)`,

    .. math:: p(n_1, \dots, n_K, u) = \frac{u^{n-1}}{\Gamma(n)} e^{-\psi(u)}
              \prod_{j=1}^K \kappa(n_j, u) .

    Its integral over :math:`u` is the exchangeable partition probability function (EPPF).

    :param measure: one with infinitely many weights.
    :raises ValueError: for a measure with finitely many, which may have no mass.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> law = GeneralizedGammaProcess(2.0, 0.4, 1.5).normalize()
        >>> law.log_eppf([2, 1]).exp()
        tensor(0.1108)
    """

    measure: "CompletelyRandomMeasure"

    def __init__(self, measure: "CompletelyRandomMeasure") -> None:
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

    def log_joint(self, counts: Any, tilt: Any, multiplicity: Any = None) -> Tensor:
        r"""Logarithm of :math:`p(n_1, \dots, n_K, u)`.

        :param Tensor counts: sizes of clusters, zeros for padding.
            **Shape:** ``(*batch, num_clusters)``.
        :param Tensor tilt: :math:`u > 0`. **Shape:** one that broadcasts with the batch.
        :param Tensor multiplicity: as of :meth:`log_eppf`.
        """
        sizes = cluster_sizes(counts, multiplicity)
        log_tilt = self.measure._argument("tilt", tilt, "> 0").log()
        return self.measure._result(self._log_joint(sizes, log_tilt), tilt)

    def log_eppf(self, counts: Any, multiplicity: Any = None) -> Tensor:
        r"""Logarithm of the probability of a partition, by quadrature over :math:`u`.

        It is that of one partition of labelled elements with these block sizes, so that
        :math:`p(3) + 3 p(2, 1) + p(1, 1, 1) = 1`.

        :param Tensor counts: sizes of clusters in any order, zeros for padding.
            **Shape:** ``(*batch, num_clusters)``.
        :param Tensor multiplicity: number of clusters of each size, one by default. Equal sizes of
            a single partition are put together by themselves, unless the function is recorded as a
            graph, which profits from sizes that differ and their multiplicity.
        """
        integrand, edges = self._tilt_panels(cluster_sizes(counts, multiplicity))
        return self.measure._result(integrate_log(integrand, edges))

    def predictive(self, counts: Any, tilt: Any = None) -> Tensor:
        r"""Probabilities that the next sample joins each cluster, or a new one.

        Given :math:`u` they are proportional to :math:`\kappa(n_j + 1, u) / \kappa(n_j, u)` and,
        for a new cluster, :math:`\kappa(1, u)`.

        :param Tensor counts: sizes of clusters, zeros for padding.
            **Shape:** ``(*batch, num_clusters)``.
        :param Tensor tilt: :math:`u > 0`; without it, the average over its law given the counts.
            One that is drawn once may not be used for several samples, each of which changes its
            law.
        :returns: probabilities, the last that of a new cluster.
            **Shape:** ``(*batch, num_clusters + 1)``.
        """
        sizes = check_counts(counts)
        if tilt is not None:
            log_tilt = self.measure._argument("tilt", tilt, "> 0").log()
            return self.measure._result(self._log_weights(sizes, log_tilt).softmax(-1), tilt)
        integrand, edges = self._tilt_panels(cluster_sizes(sizes))
        places, log_node_weights = panel_nodes(edges)
        log_shares = log_node_weights + integrand(places) + places
        wide = NormalizedRandomMeasure(self.measure._unsqueezed())
        log_weights = wide._log_weights(sizes[..., None, :], places)
        return self.measure._result((log_shares[..., None] + log_weights).logsumexp(-2).softmax(-1))

    def sample_tilt(self, counts: Any, sample_shape: Any = ()) -> Tensor:
        r"""Draw the auxiliary variable :math:`u` given cluster sizes.

        :param Tensor counts: sizes of clusters, zeros for padding.
            **Shape:** ``(*batch, num_clusters)``.
        :param torch.Size sample_shape: how many draws.
        """
        integrand, edges = self._tilt_panels(cluster_sizes(counts))
        edges = edges.expand(*as_size("sample_shape", sample_shape), *edges.shape)
        return self.measure._result(sample_from_panels(integrand, edges).exp())

    def posterior_jumps(self, counts: Any, tilt: Any) -> Tensor:
        r"""Draw the weights of the clusters given their sizes and :math:`u`.

        They are independent, with densities proportional to :math:`w^{n_j} e^{-uw} \rho(w)`.

        :param Tensor counts: sizes of clusters, zeros for padding.
            **Shape:** ``(*batch, num_clusters)``.
        :param Tensor tilt: :math:`u > 0`. **Shape:** one that broadcasts with the batch.
        :returns: the weights, zero for padding. **Shape:** ``(*batch, num_clusters)``.
        """
        sizes = check_counts(counts)
        log_tilt = self.measure._argument("tilt", tilt, "> 0").log()[..., None]
        wide = self.measure._unsqueezed()
        log_weights = wide._sample_jump(*torch.broadcast_tensors(sizes.clamp(min=1.0), log_tilt))
        return self.measure._result(torch.where(sizes > 0, log_weights.exp(), 0.0), tilt)

    def posterior_measure(self, tilt: Any) -> "CompletelyRandomMeasure":
        r"""Law of the measure without the clusters that were seen, given :math:`u`.

        :param tilt: :math:`u > 0`.
        """
        return self.measure.exponential_tilt(tilt)

    def partition(self, num_samples: int) -> RandomPartition:
        """Law of the partition of a number of samples, as a distribution of label vectors.

        :param int num_samples: how many.
        """
        return RandomPartition(self, num_samples)

    def log_num_clusters(self, num_samples: int) -> Tensor:
        """Log probabilities of 1 to n clusters among n samples.

        The cost is cubic in their number, which should be hundreds at most; for more, sample
        partitions.

        :param int num_samples: :math:`n`.
        :returns: the logarithms. **Shape:** ``(*batch_shape, n)``.
        """
        number = check_integer("num_samples", num_samples, 1)
        integrand, edges = self._total_panels(number)
        places, log_weights = panel_nodes(edges)
        constant = math.lgamma(number)
        wide = NormalizedRandomMeasure(self.measure._unsqueezed())
        inner = number * places - wide.measure._log_exponent(places).exp() + log_weights - constant
        sums = log_sums_by_blocks(wide._log_kappas(number, places))
        return self.measure._result((inner[..., None] + sums).logsumexp(-2))

    def expected_cluster_counts(self, num_samples: int) -> Tensor:
        """Expected numbers of clusters of sizes 1 to n among n samples.

        Their sum is the expected number of clusters. The cost is quadratic in the number of
        samples, which should be thousands at most.

        :param int num_samples: :math:`n`.
        :returns: the numbers. **Shape:** ``(*batch_shape, n)``.
        """
        number = check_integer("num_samples", num_samples, 1)
        _, edges = self._total_panels(number)
        places, log_weights = panel_nodes(edges)
        wide = NormalizedRandomMeasure(self.measure._unsqueezed())
        log_kappas = wide._log_kappas(number, places)
        order = torch.arange(1, number + 1, dtype=torch.float64, device=places.device)
        rest = log_sums_over_partitions(log_kappas)[..., :-1].flip(-1)
        inner = number * places - wide.measure._log_exponent(places).exp() + log_weights
        terms = inner[..., None] + log_kappas - (order + 1.0).lgamma() + rest
        return self.measure._result(number * terms.logsumexp(-2).exp())

    def _sample_labels(self, num_samples: int, num_draws: int) -> Tensor:
        return seat_by_arrivals(self.measure, num_samples, num_draws)

    def _element(self, index: int) -> "NormalizedRandomMeasure":
        return NormalizedRandomMeasure(self.measure._element(index))

    def _log_kappas(self, number: int, log_tilt: Tensor) -> Tensor:
        order = torch.arange(1, number + 1, dtype=torch.float64, device=log_tilt.device)
        wide = self.measure._unsqueezed()
        return wide._log_moment(*torch.broadcast_tensors(order, log_tilt[..., None]))

    def _log_weights(self, sizes: Tensor, log_tilt: Tensor) -> Tensor:
        """Logarithms of the weights of all clusters, and of a new one, given the tilt."""
        wide, tilt = self.measure._unsqueezed(), log_tilt[..., None]
        shape = torch.broadcast_shapes(sizes.shape, tilt.shape, (*self.batch_shape, 1))
        safe = sizes.clamp(min=1.0).expand(shape)
        own = wide._log_moment(safe + 1.0, tilt) - wide._log_moment(safe, tilt)
        own = torch.where(sizes > 0, own, -torch.inf)
        new = wide._log_moment(torch.ones_like(tilt), tilt).expand(*shape[:-1], 1)
        return torch.cat([own, new], -1)

    def _product_form(self, num_samples: int, tilt: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log factors of the joint density by sizes of clusters from zero, and by their number."""
        if tilt is None:
            raise ValueError("tilt must be given, since partitions have a product form only then")
        sizes = torch.arange(1, num_samples + 1, dtype=torch.float64, device=tilt.device)
        wide = self.measure._unsqueezed()
        own = wide._log_moment(*torch.broadcast_tensors(sizes, tilt.double().log()[..., None]))
        none = own.new_zeros((*own.shape[:-1], 1))
        return torch.cat([none, own], -1), own.new_zeros(num_samples + 2)

    def _log_joint(self, sizes: ClusterSizes, log_tilt: Tensor) -> Tensor:
        wide, tilt = self.measure._unsqueezed(), log_tilt[..., None]
        moments = wide._log_moment(*torch.broadcast_tensors(sizes.values, tilt))
        exponent = self.measure._log_exponent(self.measure._expanded(log_tilt)).exp()
        total = sizes.total
        power = (total - 1.0) * log_tilt - total.lgamma()
        return power - exponent + (sizes.multiplicity * moments).sum(-1)

    def _tilt_panels(self, sizes: ClusterSizes) -> tuple[LogIntegrand, Tensor]:
        """Integrand over the logarithm of the auxiliary variable, and panels that resolve it."""
        wide = NormalizedRandomMeasure(self.measure._unsqueezed())
        # Beside the nodes of quadrature there is no other axis where there is no batch.
        is_single = sizes.values.dim() == 1
        inner = sizes if is_single else ClusterSizes(*(part[..., None, :] for part in sizes))

        def log_integrand(place: Tensor) -> Tensor:
            return wide._log_joint(inner, place) + place

        shape = torch.broadcast_shapes(sizes.number.shape, self.batch_shape)
        number, total = sizes.number.expand(shape), sizes.total.expand(shape)
        return log_integrand, self._edges(log_integrand, number, total)

    def _total_panels(self, number: int) -> tuple[LogIntegrand, Tensor]:
        """Law of the logarithm of the auxiliary variable of n samples, whatever their partition."""
        wide = NormalizedRandomMeasure(self.measure._unsqueezed())

        def log_integrand(place: Tensor) -> Tensor:
            sums = log_sums_over_partitions(wide._log_kappas(number, place))[..., -1]
            return number * place - wide.measure._log_exponent(place).exp() + sums

        # The number of clusters is bounded by the number of samples.
        total = self.measure._filled(float(number))
        return log_integrand, self._edges(log_integrand, total, total)

    def _edges(self, log_integrand: LogIntegrand, num_clusters: Tensor, total: Tensor) -> Tensor:
        """Panels over the logarithm of the auxiliary variable, for a number of clusters."""
        measure = self.measure
        with torch.no_grad():
            # Little depends on u below the place where psi is one, and nothing is left where it
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
