r"""The truncation of a prior of weights, by how well links are predicted that are held out.

[1] J. Lee, C. Heaukulani, Z. Ghahramani, L. F. James, S. Choi (2017),
Bayesian inference on random simple graphs with power law degree distributions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_ext._checks import check_instance, check_integer, check_number, check_sequence
from pyro_ext.models.nonparametric.graph_communities import spectral_memberships
from pyro_ext.models.nonparametric.graph_guide import GraphGuide
from pyro_ext.models.nonparametric.graph_model import GraphModel, MixedMembership, bfry_weights
from pyro_ext.models.nonparametric.graph_pairs import SimpleGraph
from pyro_ext.models.nonparametric.graph_prediction import score_links
from pyro_ext.random import seeded

__all__ = ["cross_validate_truncation"]


def cross_validate_truncation(
    graph: SimpleGraph,
    truncations: Sequence[float] = (0.6, 0.8, 1.0, 1.2, 1.4),
    communities: MixedMembership | None = None,
    *,
    num_splits: int = 5,
    fraction: float = 0.2,
    num_steps: int = 200,
    num_pairs: int | None = None,
    num_samples: int = 25,
    max_non_edges: int | None = None,
    seed: int = 0,
) -> dict[float, Tensor]:
    r"""Log likelihoods of held-out pairs at each truncation :math:`\beta` of the weights [1].

    At each split some of the observed pairs are held out, the same for all truncations, and a
    :class:`GraphGuide` is fitted to the rest. Splits are random, and may share pairs; those of [1]
    are parts of one partition.

    :param SimpleGraph graph: the graph; pairs of it that are held out already play no part.
    :param truncations: of :func:`bfry_weights`; the default is that of [1].
    :param MixedMembership communities: prior of communities, which start at
        :func:`spectral_memberships`; by default there are none.
    :param int num_splits: how many times pairs are held out.
    :param float fraction: of the pairs that are held out each time.
    :param int num_steps: steps of each fit.
    :param int num_pairs: random pairs of a minibatch; by default all pairs.
    :param int num_samples: draws of the odds that a prediction is the average of.
    :param int max_non_edges: as of :meth:`SimpleGraph.hold_out`.
    :param int seed: of splits, fits and draws.
    :returns: log likelihoods by truncation. **Shape:** ``(num_splits,)`` each.
    :raises ValueError: for numbers out of range, and splits without a held-out edge.
    :raises ImportError: without scikit-learn; names the extra.

    Example::

        >>> from pyro_ext.models.nonparametric import EdgeOdds, sample_graph
        >>> graph = sample_graph(EdgeOdds(torch.linspace(0.5, 9.0, 40)), seed=0)
        >>> scores = cross_validate_truncation(graph, [0.5, 1.0], num_splits=2, num_steps=20)
        >>> best = max(scores, key=lambda truncation: scores[truncation].mean())
        >>> best in scores, scores[best].shape
        (True, torch.Size([2]))
    """
    truncations = check_sequence("truncations", truncations, "a list of numbers")
    for number in truncations:
        check_number("truncations", number, above=0)
    check_instance("graph", graph, SimpleGraph, "a SimpleGraph")
    if communities is not None:
        check_instance("communities", communities, MixedMembership, "a MixedMembership or None")
    check_number("fraction", fraction, above=0, below=1)
    priors = {beta: bfry_weights(graph.num_nodes, beta) for beta in truncations}
    scores: dict[float, list[float]] = {beta: [] for beta in priors}
    with seeded(check_integer("seed", seed, 0)):
        seeds = torch.randint(2**31 - 1, (check_integer("num_splits", num_splits, 1),)).tolist()
    for own in seeds:
        train, test = graph.hold_out(fraction, seed=own, max_non_edges=max_non_edges)
        start = None
        if communities is not None:
            start = spectral_memberships(train, communities.num_communities, seed=own)
        for beta, prior in priors.items():
            model = GraphModel(prior, communities)
            guide = GraphGuide(model, train, memberships=start, seed=own)
            guide.fit(num_steps, num_pairs=num_pairs, progress=False)
            scores[beta].append(score_links(guide.odds(num_samples, seed=own), test).log_likelihood)
    return {beta: torch.tensor(values) for beta, values in scores.items()}
