"""Mixtures of conjugate clusters over random partitions of normalized random measures.

Numbers in brackets refer to the papers in the docstring of the package.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext._lib import checks
from pyro_ext.diagnostics.partitions import canonical_labels
from pyro_ext.distributions import ConjugateCluster, PartitionedBlock
from pyro_ext.inference.partitions.mixtures import check_process
from pyro_ext.random_measures import NormalizedRandomMeasure, PitmanYor

Process = NormalizedRandomMeasure | PitmanYor
Sites = Mapping[str, Tensor]
Value = TypeVar("Value")

# The quadrature of this many draws at a time takes about ten megabytes.
_DRAWS_AT_ONCE = 50


class NRMMixture:
    r"""Mixture over a random partition, with the parameters of its clusters integrated out [1].

    .. math:: \text{assignment} \sim \text{process} , \quad
              p(x | \text{assignment}) = \prod_c \int \prod_{i \in c} p(x_i | \theta) \, dP(\theta)

    This is a Pyro model with the sites of ``prior`` and ``cluster``, ``"assignment"``, which is a
    label vector, and ``"x"``. With the same ``prior`` and ``cluster``, the kernels
    :class:`~pyro_ext.inference.partitions.MarginalGibbs`,
    :class:`~pyro_ext.inference.partitions.SplitMerge` and
    :class:`~pyro_ext.inference.partitions.TreeGuided` draw from its posterior.

    :param prior: a normalized measure, a Pitman-Yor process, a Dirichlet process, or a Pyro model
        without arguments that returns one of these; its sample sites are the hyperparameters.
    :param cluster: a conjugate cluster, or a Pyro model without arguments that returns one.
    :raises TypeError: for arguments of another type.

    Example::

        >>> from pyro_ext.distributions import GaussianCluster
        >>> from pyro_ext.inference import MCMC, MarginalGibbs
        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> def prior():
        ...     mass = pyro.sample("mass", dist.Gamma(1.0, 1.0))
        ...     return GeneralizedGammaProcess(mass * 0.5, 0.5, 1.0).normalize()
        >>> x = torch.cat([torch.randn(20, 2) - 4.0, torch.randn(20, 2) + 4.0])
        >>> mixture = NRMMixture(prior, GaussianCluster.from_data(x))
        >>> kernel = MarginalGibbs(mixture.prior, mixture.cluster)
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=10, progress=False).run(x)
        >>> x_new = torch.tensor([[-4.0, -4.0], [0.0, 0.0]])
        >>> log_density = mixture.predictive_log_prob(x_new, x, mcmc.get_samples())
        >>> bool(log_density[0] > log_density[1])
        True
    """

    def __init__(
        self,
        prior: Process | Callable[[], Process],
        cluster: ConjugateCluster | Callable[[], ConjugateCluster],
    ) -> None:
        self.prior = check_prior(prior)
        if not isinstance(cluster, ConjugateCluster) and (
            isinstance(cluster, type | Distribution) or not callable(cluster)
        ):
            raise TypeError(_wrong_cluster(cluster))
        self.cluster = cluster

    def __repr__(self) -> str:
        return f"NRMMixture({self.prior!r}, {self.cluster!r})"

    def __call__(self, x: Tensor | None = None, *, num_points: int | None = None) -> Tensor:
        """Run the model, on data or to draw some.

        :param Tensor x: the data. **Shape:** ``(n, d)``, or ``(n,)`` where ``d`` is one.
        :param int num_points: how many points to draw where there are no data.
        :returns: the points. **Shape:** ``(n, d)``.
        :raises TypeError: where prior or cluster return something else than they should.
        :raises ValueError: where both arguments are given or none, or data do not fit.
        """
        if (x is None) == (num_points is None):
            raise ValueError(
                f"either x or num_points must be given, got x={x!r:.80} and num_points={num_points}"
            )
        process, cluster = self._parts()
        data = None if x is None else _check_points("x", x, cluster)
        number: Any = num_points if data is None else len(data)
        labels = pyro.sample("assignment", process.partition(number))
        points: Tensor = pyro.sample("x", PartitionedBlock(cluster, labels), obs=data)
        return points

    def log_joint(
        self, x: Tensor, assignment: Tensor, hyperparameters: Sites | None = None
    ) -> Tensor:
        """Compute the log density of data, a partition and constrained hyperparameters.

        :param Tensor x: the data. **Shape:** ``(n, d)``, or ``(n,)`` if ``d`` is one.
        :param Tensor assignment: labels, any integers. **Shape:** ``(n,)``.
        :param dict hyperparameters: values of the sites of prior and cluster by name.
        :returns: a scalar.
        :raises ValueError: if data or labels do not fit, or a site is missing.

        Example::

            >>> from pyro_ext.distributions import PoissonCluster
            >>> from pyro_ext.random_measures import DirichletProcess
            >>> cluster = PoissonCluster(torch.tensor([2.0]), 1.0)
            >>> mixture = NRMMixture(DirichletProcess(1.0), cluster)
            >>> mixture.log_joint(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0, 1, 0]))
            tensor(-6.1862)
        """
        if hyperparameters is not None:
            checks.mapping("hyperparameters", hyperparameters, "a dict of values by site")
        values = dict(hyperparameters or {})
        check_sites("hyperparameters", values, sites_of(self._parts))
        x = checks.as_tensor("x", x, "(n, ...)", finite=True)
        assignment = checks.as_tensor("assignment", assignment, f"({len(x)},)", kind="integers")
        values["assignment"] = canonical_labels(assignment)
        with poutine.block():
            trace = poutine.trace(poutine.condition(self.__call__, data=values)).get_trace(x)
        return torch.as_tensor(trace.log_prob_sum())

    def predictive_log_prob(
        self, x_new: Tensor, x: Tensor, samples: Sites, *, by_draw: bool = False
    ) -> Tensor:
        r"""Compute the log density of each new point given data, averaged over posterior draws.

        Given a draw, a new point joins each cluster or a new one with the probabilities
        :math:`w_c` of ``predictive`` of the process, with its auxiliary variable integrated out:

        .. math:: p(x_* | x, \text{draw}) = \sum_c w_c \, p(x_* | x_c) + w_\text{new} \, p(x_*) .

        :param Tensor x_new: points. **Shape:** ``(num_new, d)``, or ``(num_new,)`` if ``d`` is
            one.
        :param Tensor x: the data of the posterior. **Shape:** ``(n, d)``, or ``(n,)``.
        :param dict samples: draws as from ``get_samples`` of MCMC: ``"assignment"`` of shape
            ``(num_draws, n)`` and the sites of prior and cluster; others are ignored.
        :param bool by_draw: whether to return each draw instead of the average.
        :returns: log of the mean density, so that the sum is a predictive log likelihood.
            **Shape:** ``(num_new,)``, or ``(num_draws, num_new)`` with ``by_draw``.
        :raises ValueError: if points or labels do not fit, or a site is missing.

        Example::

            >>> from pyro_ext.distributions import PoissonCluster
            >>> from pyro_ext.random_measures import DirichletProcess
            >>> cluster = PoissonCluster(torch.tensor([2.0]), 1.0)
            >>> mixture = NRMMixture(DirichletProcess(1.0), cluster)
            >>> samples = {"assignment": torch.tensor([[0, 0], [0, 1]])}
            >>> x = torch.tensor([3.0, 1.0])
            >>> mixture.predictive_log_prob(torch.arange(30.0), x, samples).exp().sum()
            tensor(1.0000)
        """
        values = torch.stack([logs.logsumexp(-1) for _, logs in self._log_joins(x_new, x, samples)])
        return values if by_draw else values.logsumexp(0) - math.log(len(values))

    def predict_clusters(self, x_new: Tensor, x: Tensor, samples: Sites, labels: Tensor) -> Tensor:
        r"""Compute probabilities that new points lie in the clusters of a partition of the data.

        Given a posterior draw, a new point joins each of the draw's clusters or a new one. It then
        lies in the same cluster of the given partition as a random point of the cluster it joined:

        .. math:: P(x_* \in k) = \text{mean over draws of}
                  \sum_c P(x_* \text{ joins } c) \, |c \cap k| / |c| .

        :param Tensor x_new: points. **Shape:** ``(num_new, d)``, or ``(num_new,)``.
        :param Tensor x: the data of the posterior. **Shape:** ``(n, d)``, or ``(n,)``.
        :param dict samples: draws as for :meth:`predictive_log_prob`.
        :param Tensor labels: the partition, for example from
            :func:`~pyro_ext.diagnostics.partitions.point_estimate`. **Shape:** ``(n,)``.
        :returns: probabilities of its clusters in the order of first occurrence and, last, of none
            of them; they sum to one. **Shape:** ``(num_new, num_clusters + 1)``.
        :raises ValueError: if points or labels do not fit, or a site is missing.

        Example::

            >>> from pyro_ext.distributions import PoissonCluster
            >>> from pyro_ext.random_measures import DirichletProcess
            >>> cluster = PoissonCluster(torch.tensor([1.0]), 0.1)
            >>> mixture = NRMMixture(DirichletProcess(0.1), cluster)
            >>> samples = {"assignment": torch.tensor([[0, 0, 1], [0, 0, 1]])}
            >>> x = torch.tensor([1.0, 2.0, 30.0])
            >>> new = torch.tensor([0.0, 28.0])
            >>> mixture.predict_clusters(new, x, samples, torch.tensor([0, 0, 1])).argmax(-1)
            tensor([0, 1])
        """
        x = checks.as_tensor("x", x, "(n, ...)", finite=True)
        labels = checks.as_tensor("labels", labels, f"({len(x)},)", kind="integers")
        found = torch.nn.functional.one_hot(canonical_labels(labels))
        total, number = torch.zeros(()), 0
        for draw, logs in self._log_joins(x_new, x, samples):
            both = torch.nn.functional.one_hot(draw).T @ found
            weights = both.to(logs) / both.sum(-1, keepdim=True)
            joins = logs.softmax(-1)
            total = total + torch.cat([joins[:, :-1] @ weights, joins[:, -1:]], -1)
            number += 1
        return total / number

    def _log_joins(
        self, x_new: Tensor, x: Tensor, samples: Sites
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Labels of each draw, and log densities of new points in its clusters, a new one last."""
        x = checks.as_tensor("x", x, "(n, ...)", finite=True)
        samples = checks.tensors("samples", samples)
        names = sites_of(self._parts)
        check_sites("samples", samples, ["assignment", *names])
        labels = canonical_labels(samples["assignment"])
        if labels.dim() != 2 or labels.shape[-1] != len(x):
            raise ValueError(
                f"samples['assignment'] must have shape (num_draws, {len(x)}), with the draws of "
                f"all chains on one axis, got {tuple(labels.shape)}"
            )
        if wrong := [name for name in names if samples[name].shape[:1] != labels.shape[:1]]:
            shapes = {name: tuple(samples[name].shape) for name in wrong}
            raise ValueError(f"samples must have {len(labels)} draws of each site, got {shapes}")
        with torch.no_grad():
            draws = draws_of(self._parts, {name: samples[name] for name in names}, len(labels))
            _, cluster = draws[0]
            old, new = _check_points("x", x, cluster), _check_points("x_new", x_new, cluster)
            log_weights = log_predictive_weights([process for process, _ in draws], labels)
            for (_, cluster), own, weights in zip(draws, labels, log_weights, strict=True):
                yield own, _log_memberships(new, old, cluster, own, weights)

    def _parts(self) -> tuple[Process, ConjugateCluster]:
        process = process_of(self.prior)
        is_cluster = isinstance(self.cluster, ConjugateCluster)
        cluster: Any = self.cluster if is_cluster else self.cluster()
        if not isinstance(cluster, ConjugateCluster) or cluster.batch_shape:
            raise TypeError(_wrong_cluster(cluster))
        return process, cluster


def check_prior(prior: Any) -> Any:
    """A process, or what may be a model that returns one."""
    return check_process(prior) if isinstance(prior, type) or not callable(prior) else prior


def process_of(prior: Process | Callable[[], Process]) -> Process:
    """The process that a prior is or returns."""
    return check_process(prior if isinstance(prior, Process) else prior())


def sites_of(model: Callable[[], Any]) -> list[str]:
    """Names of the hyperparameters that a model samples."""
    with poutine.block(), torch.no_grad():
        return list(poutine.trace(model).get_trace().stochastic_nodes)


def check_sites(argument: str, values: Sites, names: Iterable[str]) -> None:
    """Check that values of all sites are there."""
    if lacking := set(names) - set(values):
        raise ValueError(f"{argument} lacks the sites {sorted(lacking)}, got {sorted(values)}")


def draws_of(model: Callable[[], Value], values: Sites, number: int) -> list[Value]:
    """Run a model at each draw of its sites, or once for all draws if it has no sites."""
    with poutine.block():
        if not values:
            return [model()] * number
        rows = [{name: value[i] for name, value in values.items()} for i in range(number)]
        return [poutine.condition(model, data=row)() for row in rows]


def log_predictive_weights(processes: list[Process], labels: Tensor) -> Tensor:
    """Log probabilities that a further point joins each cluster of a draw, a new one last."""
    most = int(labels.max()) + 1
    counts = torch.stack([row.bincount(minlength=most) for row in labels])
    if all(one is processes[0] for one in processes):
        parts = [processes[0].predictive(rows) for rows in counts.split(_DRAWS_AT_ONCE)]
        return torch.cat(parts).log()
    rows = [one.predictive(row) for one, row in zip(processes, counts, strict=True)]
    return torch.stack(rows).log()


def _log_memberships(
    x_new: Tensor, x: Tensor, cluster: ConjugateCluster, labels: Tensor, log_weights: Tensor
) -> Tensor:
    """Log densities of new points together with the cluster they join, a new one last."""
    number = int(labels.max()) + 1
    # No point has the last label, which leaves the prior for a new cluster.
    mask = labels == torch.arange(number + 1, device=labels.device).unsqueeze(-1)
    predictive = cluster.posterior(x.expand(number + 1, *x.shape), mask)
    own = torch.cat([log_weights[:number], log_weights[-1:]])
    joint: Tensor = own + predictive.log_prob(x_new.unsqueeze(-2))
    return joint


def _check_points(name: str, points: Any, cluster: ConjugateCluster) -> Tensor:
    """Points as a matrix of the size that the cluster has."""
    size = cluster.event_shape[0]
    values = checks.as_tensor(name, points, allow_empty=True)
    if values.dim() == 1 and size == 1:
        values = values.unsqueeze(-1)
    if values.dim() != 2 or values.shape[-1] != size or not len(values):
        raise ValueError(
            f"{name} must have shape (n, {size}), as the cluster has, with at least one row, got "
            f"{tuple(values.shape)}"
        )
    values = values if values.is_floating_point() else values.to(torch.get_default_dtype())
    support: Any = cluster.support
    outside = ~(support.check(values) & values.isfinite().all(-1))
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"{name} must be finite and in the support of {type(cluster).__name__}, got "
            f"{values[row].tolist()!s:.80} in row {row}"
        )
    return values


def _wrong_cluster(value: object) -> str:
    return f"cluster must be or return a conjugate cluster without batch shape, got {value!r:.80}"
