"""Prediction of edges: scores of pairs, simulated graphs, and the choice of a truncation.

Numbers in brackets refer to the papers in the docstring of the package.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module
from pyro_ext.models.nonparametric.graph_guide import GraphGuide
from pyro_ext.models.nonparametric.graph_model import (
    EdgeOdds,
    nodes_of,
    sample_graph,
)
from pyro_ext.models.nonparametric.graph_pairs import SimpleGraph, UnseenPairs, on_device_of
from pyro_ext.random import fresh_seed, seeded

_PAIRS_AT_ONCE = 2**18


class LinkScores(NamedTuple):
    """Quality of the predictions of held-out pairs.

    :param float log_likelihood: sum of the log probabilities of the held-out pairs.
    :param float auc: probability that an edge is ranked above a pair without one.
    :param float average_precision: area under the precision-recall curve.
    """

    log_likelihood: float
    auc: float
    average_precision: float


def log_link_probabilities(
    odds: Sequence[EdgeOdds], first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute log probabilities of an edge and of no edge, averaged over draws of the odds.

    :param odds: at least one draw, for example from :meth:`GraphGuide.odds`.
    :param Tensor first: nodes. **Shape:** ``(num_pairs,)``.
    :param Tensor second: other nodes. **Shape:** ``(num_pairs,)``.
    :returns: both log probabilities. **Shape:** ``(num_pairs,)`` each.
    :raises ValueError: without a draw.

    Example::

        >>> odds = [EdgeOdds(torch.full((4,), weight)) for weight in (4.0, 12.0)]
        >>> present, absent = log_link_probabilities(odds, torch.tensor([0]), torch.tensor([1]))
        >>> present.exp(), absent.exp()
        (tensor([0.6250]), tensor([0.3750]))
    """
    odds = checks.sequence("odds", odds, "a list of EdgeOdds", kind=EdgeOdds)
    number = len(odds[0].weights)
    first = checks.as_tensor("first", nodes_of("first", first, number), "(num_pairs,)")
    second = checks.as_tensor("second", nodes_of("second", second, number), f"({len(first)},)")
    parts = []
    with torch.no_grad():
        for left, right in torch.stack([first, second]).split(_PAIRS_AT_ONCE, 1):
            logits = torch.stack([draw.log(left, right) for draw in odds])
            both = torch.stack([logsigmoid(logits), logsigmoid(-logits)])
            parts.append(both.logsumexp(1) - math.log(len(odds)))
    present, absent = torch.cat(parts, 1)
    return present, absent


def score_links(odds: Sequence[EdgeOdds], test: UnseenPairs) -> LinkScores:
    """Score the predictions of pairs that were held out.

    :param odds: at least one draw of the odds of edges.
    :param UnseenPairs test: pairs from :meth:`SimpleGraph.hold_out`, with and without edges.
    :raises ValueError: without a draw, or if the pairs are of one kind only.
    :raises ImportError: if scikit-learn is not installed; the message names the extra to install.

    Example::

        >>> graph = SimpleGraph(60, torch.triu_indices(60, 60, 1).T[:500])
        >>> train, test = graph.hold_out(0.2, seed=0)
        >>> score_links([degree_odds(train)], test).auc > 0.9
        True
    """
    checks.instance("test", test, UnseenPairs, "the pairs that hold_out() of a SimpleGraph returns")
    metrics = optional_module("sklearn.metrics", "score_links", "scikit-learn", "data")
    if bool(test.is_edge.all()) or not bool(test.is_edge.any()):
        raise ValueError("test must hold edges and pairs without an edge, got one kind only")
    present, absent = log_link_probabilities(odds, test.first, test.second)
    terms = torch.where(test.is_edge, present, absent).double() * test.weight
    arguments = test.is_edge.cpu().numpy(), present.cpu().numpy()
    weight = test.weight.cpu().numpy()
    return LinkScores(
        float(terms.sum()),
        float(metrics.roc_auc_score(*arguments, sample_weight=weight)),
        float(metrics.average_precision_score(*arguments, sample_weight=weight)),
    )


def erdos_renyi_odds(graph: SimpleGraph) -> EdgeOdds:
    """Odds of a graph whose edges all have the same probability, the observed fraction.

    :param SimpleGraph graph: the graph. Half an edge is added to the number of its edges.

    Example::

        >>> odds = erdos_renyi_odds(SimpleGraph(5, torch.tensor([[0, 1], [0, 2]])))
        >>> odds.log(torch.tensor([3]), torch.tensor([4])).sigmoid()
        tensor([0.2273])
    """
    checks.instance("graph", graph, SimpleGraph, "a SimpleGraph")
    num_observed = graph.observed_fraction * graph.num_pairs
    fraction = (graph.num_edges + 0.5) / (num_observed + 1.0)
    weight = graph.num_nodes * fraction / (1.0 - fraction)
    return EdgeOdds(torch.full((graph.num_nodes,), weight, device=graph.edges.device))


def degree_odds(graph: SimpleGraph) -> EdgeOdds:
    """Odds with the degrees as weights, corrected for held-out pairs, without a prior.

    Half an edge is added to each degree, so that nodes without observed edges may still have edges.

    :param SimpleGraph graph: the graph.

    Example::

        >>> degree_odds(SimpleGraph(3, torch.tensor([[0, 1]]))).weights
        tensor([1.5000, 1.5000, 0.5000])
    """
    checks.instance("graph", graph, SimpleGraph, "a SimpleGraph")
    degrees = graph.degrees.to(torch.get_default_dtype())
    return EdgeOdds((degrees + 0.5) / graph.observed_fraction)


def simulate_graphs(
    guide: GraphGuide, num_graphs: int, *, seed: int | None = None
) -> Iterator[SimpleGraph]:
    """Draw new graphs with new nodes, given draws of everything that nodes share from the guide.

    The shared quantities are the hyperparameters and the rates of communities. Weights and
    memberships are new.

    :param GraphGuide guide: guide of the model.
    :param int num_graphs: number of graphs.
    :param int seed: seed of the draws; by default they come from PyTorch's generator.
    :returns: an iterator over graphs with as many nodes as the graph of the guide.
    """
    checks.instance("guide", guide, GraphGuide, "a GraphGuide")
    checks.integer("num_graphs", num_graphs, 1)
    return _simulated(guide, num_graphs, None if seed is None else fresh_seed(seed))


def _simulated(guide: GraphGuide, num_graphs: int, seed: int | None) -> Iterator[SimpleGraph]:
    samples = guide.sample(num_graphs, seed=seed)
    own = {"weights", "memberships"}
    with seeded(seed):
        seeds = torch.randint(2**31 - 1, (num_graphs,)).tolist()
    for draw, own_seed in enumerate(seeds):
        values = {name: value[draw] for name, value in samples.items() if name not in own}
        given = poutine.condition(data=values)
        device = on_device_of(guide.graph)
        with seeded(own_seed), poutine.block(), given, torch.no_grad(), device:
            odds = guide.model.odds(guide.graph.num_nodes)
        yield sample_graph(odds, seed=own_seed)
