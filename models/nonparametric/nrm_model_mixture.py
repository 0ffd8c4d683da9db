r"""Mixtures over random partitions with any Pyro model for clusters.

Numbers in brackets refer to the papers in the docstring of the package.
"""

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution
from torch.utils import _pytree as pytree

from pyro_ext._lib import checks
from pyro_ext.diagnostics.partitions import canonical_labels
from pyro_ext.models.nonparametric.nrm_mixture import (
    Process,
    check_prior,
    check_sites,
    draws_of,
    log_predictive_weights,
    process_of,
    sites_of,
)
from pyro_ext.potential import PointPotential, Potential

Samples = Mapping[str, Tensor]


class NRMModelMixture:
    r"""Mixture over a random partition; each cluster has the latent sites of a Pyro model [1].

    .. math:: \text{assignment} \sim \text{process} , \quad \theta_c \sim P , \quad
              x_i \sim p(x | \theta_{\text{assignment}_i})

    This is a Pyro model. Its sites are those of ``prior``, ``"assignment"``, the sites in
    ``shared``, and the other sites of ``cluster`` once for each cluster, with the cluster's number
    appended to the name, as in ``"loc_0"``. Apply ``pyro.poutine.uncondition`` to draw data. An
    :class:`~pyro_ext.inference.partitions.AuxiliaryGibbs` kernel with the same three arguments
    samples its posterior. If the clusters are conjugate, :class:`NRMMixture` has kernels that mix
    faster.

    :param prior: a normalized measure, a Pitman-Yor process, a Dirichlet process, or a Pyro model
        without arguments that returns one of these; its sample sites are the hyperparameters.
    :param cluster: a Pyro model of the points of one cluster: latent sites outside a plate,
        observed sites in the plate of the points.
    :param shared: names of latent sites of ``cluster`` whose values all clusters share.
    :raises TypeError: for arguments of another type.

    Example::

        >>> from pyro_ext.inference import MCMC, AuxiliaryGibbs
        >>> from pyro_ext.random_measures import DirichletProcess
        >>> def cluster(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("points", len(x)):
        ...         pyro.sample("x", dist.StudentT(5.0, loc, 1.0), obs=x)
        >>> mixture = NRMModelMixture(DirichletProcess(1.0), cluster)
        >>> x = torch.cat([torch.randn(20) - 4.0, torch.randn(20) + 4.0])
        >>> kernel = AuxiliaryGibbs(mixture.prior, mixture.cluster)
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=10, progress=False).run(x)
        >>> log_density = mixture.predictive_log_prob(mcmc.get_samples(), torch.tensor([4.0, 0.0]))
        >>> bool(log_density[0] > log_density[1])
        True
    """

    def __init__(
        self,
        prior: Process | Callable[[], Process],
        cluster: Callable[..., Any],
        *,
        shared: Collection[str] = (),
    ) -> None:
        self.prior = check_prior(prior)
        if isinstance(cluster, type | Distribution) or not callable(cluster):
            raise TypeError(f"cluster must be a Pyro model, got {cluster!r:.80}")
        shared = checks.sequence("shared", shared, "a list of names of sites", 0, str)
        self.cluster, self.shared = cluster, tuple(shared)

    def __repr__(self) -> str:
        return f"NRMModelMixture({self.prior!r}, {self.cluster!r}, shared={self.shared!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the model.

        :param args: arguments of ``cluster`` for all points. A cluster gets the rows of its points
            of all tensors that have as many rows as the first one.
        :param kwargs: the same by keyword.
        :returns: the labels. **Shape:** ``(n,)``.
        :raises ValueError: where no argument is a tensor with rows.
        """
        leaves, tree = pytree.tree_flatten((args, kwargs))
        sizes = [len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]
        if not sizes:
            raise ValueError("an argument must be a tensor with a row for each point")
        labels: Tensor = pyro.sample("assignment", process_of(self.prior).partition(sizes[0]))
        common: dict[str, Tensor] = {}

        def of_members(leaf: Any, is_member: Tensor) -> Any:
            has_rows = isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == sizes[0]
            return leaf[is_member] if has_rows else leaf

        for number, label in enumerate(labels.unique().tolist()):
            own = [of_members(leaf, labels == label) for leaf in leaves]
            own_args, own_kwargs = pytree.tree_unflatten(own, tree)
            with _ClusterSites(number, self.shared, common):
                self.cluster(*own_args, **own_kwargs)
        return labels

    def predictive_log_prob(
        self,
        samples: Samples,
        *args: Any,
        num_prior_draws: int = 1000,
        by_draw: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        r"""Compute the log density of each new point, averaged over posterior draws.

        Given a draw, a new point joins each cluster or a new one with the probabilities
        :math:`w_c` of ``predictive`` of the process. The density of a new cluster is averaged over
        draws from its prior:

        .. math:: p(x_* | \text{draw}) = \sum_c w_c \, p(x_* | \theta_c)
                  + w_\text{new} \, \frac{1}{S} \sum_s p(x_* | \theta_s) .

        :param dict samples: draws of :class:`~pyro_ext.inference.partitions.AuxiliaryGibbs`, as
            ``get_samples`` of MCMC returns them.
        :param args: arguments of ``cluster`` for the new points.
        :param int num_prior_draws: :math:`S`. With ``shared`` sites, on which the prior of a
            cluster may depend, this number is divided among the posterior draws.
        :param bool by_draw: whether to return each draw instead of the average.
        :param kwargs: keyword arguments of ``cluster``.
        :returns: log of the mean density, so that the sum is a predictive log likelihood.
            **Shape:** ``(num_new,)``, or ``(num_draws, num_new)`` with ``by_draw``.
        :raises ValueError: if a site is missing in the draws, or shapes do not fit.
        """
        samples = checks.tensors("samples", samples)
        checks.integer("num_prior_draws", num_prior_draws, 1)
        points = PointPotential(self.cluster, *args, shared=self.shared, **kwargs)
        whole = Potential(self.cluster, *args, **kwargs)
        labels = self._check(samples, points)
        with torch.no_grad():
            names = sites_of(partial(process_of, self.prior))
            check_sites("samples", samples, names)
            values = {name: samples[name] for name in names}
            processes = draws_of(partial(process_of, self.prior), values, len(labels))
            log_weights = log_predictive_weights(processes, labels)
            positions = _occupied(samples, labels, points)
            fresh = self._fresh(samples, points, len(labels), num_prior_draws)
            own = _log_likelihood(whole, points, positions)
            new = _log_likelihood(whole, points, fresh).logsumexp(1) - math.log(len(fresh[0]))
            is_there = torch.arange(own.shape[1]) <= labels.max(1, keepdim=True).values
            log_own = torch.where(is_there, log_weights[:, :-1], -torch.inf)
            joined = (log_own.unsqueeze(-1) + own).logsumexp(1)
            logs = torch.logaddexp(joined, log_weights[:, -1:] + new)
        return logs if by_draw else logs.logsumexp(0) - math.log(len(logs))

    def _check(self, samples: Samples, points: PointPotential) -> Tensor:
        check_sites("samples", samples, ["assignment", *points.sites])
        labels = canonical_labels(samples["assignment"])
        if labels.dim() != 2:
            raise ValueError(
                "samples['assignment'] must have shape (num_draws, n), with the draws of all "
                f"chains on one axis, got {tuple(labels.shape)}"
            )
        for name, site in points.sites.items():
            batch = labels.shape[:1] if name in self.shared else labels.shape
            if samples[name].shape != batch + site.shape:
                raise ValueError(
                    f"samples[{name!r}] must have shape {tuple(batch + site.shape)}, got "
                    f"{tuple(samples[name].shape)}"
                )
        return labels

    def _fresh(
        self, samples: Samples, points: PointPotential, num_draws: int, number: int
    ) -> Tensor:
        """Positions of new clusters for each draw. **Shape:** ``(num_draws or 1, S, size)``."""
        if not self.shared:
            return points.draw(number)[None]
        each = max(1, number // num_draws)
        rows = [{name: samples[name][i] for name in self.shared} for i in range(num_draws)]
        return torch.stack([points.draw(each, row) for row in rows])


class _ClusterSites(Messenger):
    """Numbers the sites of a cluster, and lets shared ones occur once."""

    def __init__(self, number: int, shared: Collection[str], common: dict[str, Tensor]) -> None:
        super().__init__()
        self._number, self._shared, self._common = number, shared, common

    def _pyro_sample(self, msg: Any) -> None:
        if "_of_cluster" in msg:  # what do() passes on is numbered
            return
        if msg["name"] not in self._shared:
            msg["name"] = f"{msg['name']}_{self._number}"
            msg["_of_cluster"] = self._number
        elif msg["name"] in self._common:
            msg["value"], msg["done"], msg["stop"] = self._common[msg["name"]], True, True

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self._shared:
            self._common.setdefault(msg["name"], msg["value"])


def _occupied(samples: Samples, labels: Tensor, points: PointPotential) -> Tensor:
    """Positions of the clusters of each draw, padded by the first, ``(num_draws, most, size)``."""
    most = int(labels.max()) + 1
    is_first = labels.unsqueeze(1) == torch.arange(most).unsqueeze(-1)
    first = is_first.int().argmax(-1)  # zero, the first point, for a cluster that is not there
    values = {}
    for name, site in points.sites.items():
        value = samples[name]
        if name in points.shared:
            value = value.unsqueeze(1).expand(len(labels), most, *site.shape)
        else:
            value = value[torch.arange(len(labels)).unsqueeze(-1), first]
        values[name] = value.reshape(-1, *site.shape)
    return points.unconstrain(values).reshape(len(labels), most, -1)


def _log_likelihood(whole: Potential, points: PointPotential, positions: Tensor) -> Tensor:
    """Log density of each point at positions. **Shape:** ``(*leading, num_points)``."""
    values = points.constrain(positions.reshape(-1, positions.shape[-1]))
    total = torch.zeros(())
    for name, value in whole.log_likelihood(values).items():
        dim = whole.observed_sites[name].dims.index(points.plate.name)
        by_point = value.movedim(1 + dim, 1).flatten(2) if value.dim() > 2 else value
        total = total + (by_point.sum(2) if by_point.dim() > 2 else by_point)
    return total.reshape(*positions.shape[:-1], -1)
