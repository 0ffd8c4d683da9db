"""Bayesian hierarchical clustering, greedily over all pairs."""

import math

import numpy as np
import torch
from torch import Tensor

from pyro_ext._checks import check_number
from pyro_ext.distributions import ConjugateCluster
from pyro_ext.inference.partitions._known_mixture import known_mixture
from pyro_ext.inference.partitions.dendrogram import Dendrogram
from pyro_ext.random_measures import DirichletProcess

__all__ = ["bhc"]


def bhc(
    x: Tensor,
    cluster: ConjugateCluster,
    concentration: float = 1.0,
    *,
    log_concentration: float | None = None,
) -> Dendrogram:
    r"""Cluster points by Bayesian hierarchical clustering [1].

    Each merge is a comparison of models under a Dirichlet process mixture of concentration
    :math:`\alpha`: that the points of two trees are one cluster, with weight :math:`h(a \cup b) =
    \alpha \Gamma(|a \cup b|) \, p(X_{a \cup b})`, or that they are apart in any way the two trees
    hold, with weight :math:`t(a) t(b)`. Here :math:`t(c) = h(c)` for a point, and :math:`h(c) +
    t(a) t(b)` for a union. The dissimilarity is :math:`d(a, b) = t(a) t(b) / h(a \cup b)`, the
    probability of the merge :math:`1 / (1 + d)`, and the pair that is merged next is the one where
    it is largest.

    Heights of the tree are :math:`\log d`, and it is cut at zero, where merge probabilities fall
    below one half. Its ``log_evidence_bound`` is the logarithm of the evidence of the mixture with
    the sum over all partitions restricted to those that the tree holds.

    It takes quadratic time, about :math:`n^2` evidences of clusters in practice, and memory for
    the sums of :math:`2 n` clusters.

    :param Tensor x: the points. **Shape:** ``(n, d)``, or ``(n,)`` where ``d`` is one.
    :param ConjugateCluster cluster: law of the points of a cluster.
    :param float concentration: :math:`\alpha`.
    :param float log_concentration: :math:`\log \alpha`, in the place of a concentration that is no
        float, such as the :math:`e^{-\beta \lambda}` whose limit :func:`rbhc` is.
    :returns: the tree; a point alone makes a tree without merges.
    :raises TypeError: for a cluster that is none.
    :raises ValueError: names the argument, what it got and what it wants; the first row of ``x``
        that the cluster can't have.

    [1] K. A. Heller, Z. Ghahramani (2005), Bayesian hierarchical clustering.

    Example::

        >>> from pyro_ext.distributions import GaussianCluster
        >>> x = torch.tensor([[0.0, 0.0], [0.4, -0.1], [1.5, 1.2], [1.8, 0.9]])
        >>> tree = bhc(x, GaussianCluster(torch.zeros(2), 0.5, 4.0, 0.5 * torch.eye(2)))
        >>> tree.cut(), tree.merge_probabilities
        (tensor([0, 0, 1, 1]), tensor([0.9286, 0.6427, 0.2291], dtype=torch.float64))
        >>> round(tree.log_evidence_bound, 4)
        -10.4704
    """
    if log_concentration is None:
        log_weight = math.log(check_number("concentration", concentration, above=0.0))
    elif concentration != 1.0:
        raise ValueError(
            "concentration and log_concentration exclude each other, got "
            f"concentration={concentration!r} and log_concentration={log_concentration!r}"
        )
    else:
        log_weight = check_number("log_concentration", log_concentration)
    law = DirichletProcess(torch.ones((), dtype=torch.float64))
    mixture = known_mixture(x, cluster, law)
    from pyro_ext.inference.partitions._bayesian_loops import merge_greedily
    from pyro_ext.inference.partitions._tree_loops import model_of

    number = mixture.num_points
    compiled, _ = mixture.compiled({})
    log_size, log_number = (part.numpy() for part in law._product_form(number, None))
    model = model_of(
        compiled.kind, compiled.parameters, compiled.points, log_size + log_weight, log_number
    )
    merges, heights = np.empty((number - 1, 2), np.int64), np.empty(number - 1)
    log_total = merge_greedily(model, merges, heights)
    log_base = cluster.statistics(mixture.points.double())[..., 1].sum()
    levels = torch.from_numpy(heights)
    return Dendrogram(
        torch.from_numpy(merges),
        levels,
        merge_probabilities=torch.sigmoid(-levels),
        log_evidence_bound=log_total + float(log_base) - _log_rising(log_weight, number),
        cut_height=0.0,
    )


def _log_rising(log_start: float, number: int) -> float:
    """Logarithm of a rising factorial."""
    steps = np.log(np.arange(1, number))
    return log_start + float(np.logaddexp(log_start, steps).sum())
