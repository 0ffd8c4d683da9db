r"""Bayesian models of simple graphs, whose degrees follow a power law where the weights do.

[1] J. Lee, C. Heaukulani, Z. Ghahramani, L. F. James, S. Choi (2017),
Bayesian inference on random simple graphs with power law degree distributions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, TorchDistributionMixin
from torch import Tensor

from pyro_ext._checks import check_callable, check_integer, check_number
from pyro_ext.distributions import TruncatedBFRY
from pyro_ext.models.nonparametric.graph_odds import EdgeOdds, estimate_non_edges, log_non_edges
from pyro_ext.models.nonparametric.graph_pairs import SimpleGraph, on_device_of

__all__ = [
    "GraphModel",
    "MixedMembership",
    "WeightPrior",
    "bfry_weights",
    "check_num_nodes",
    "gamma_weights",
]

WeightPrior = Callable[[], TorchDistributionMixin]

_LEAST_DISCOUNT = 1e-3  # below, draws of weights underflow
_MOST_DISCOUNT = 1.0 - 1e-6


def bfry_weights(num_nodes: int, truncation: float = 1.0) -> WeightPrior:
    r"""Prior of weights with a power law, truncated at :math:`C = N^\beta` [1].

    Weights are truncated BFRY variables. Numbers of nodes whose degree exceeds :math:`d` then fall
    as :math:`d^{-\alpha}`, for degrees well below :math:`C`.

    :param int num_nodes: :math:`N`, the number of nodes of the graph.
    :param float truncation: :math:`\beta > 0`; with it the graph becomes denser. See
        :func:`cross_validate_truncation`.
    :returns: a Pyro model with the site ``"discount"``, which is :math:`\alpha`, uniform up to
        :math:`\min(1, 1 / \beta)`. It returns the law of a weight.
    :raises ValueError: for numbers out of range.

    Example::

        >>> bfry_weights(100)().high
        tensor(100.)
    """
    return _BFRYWeights(
        check_integer("num_nodes", num_nodes, 2), check_number("truncation", truncation, above=0)
    )


def gamma_weights() -> WeightPrior:
    """Prior of weights without a power law: gamma variables of rate one, the baseline of [1].

    :returns: a Pyro model with the site ``"concentration"``, log-normal with median 1 and a factor
        of :math:`e^2`. It returns the law of a weight.

    Example::

        >>> gamma_weights()().rate
        tensor(1.)
    """
    return _gamma_weights


@dataclass(frozen=True)
class _BFRYWeights:
    """Prior of :func:`bfry_weights`, which knows of how many nodes it is."""

    num_nodes: int
    truncation: float

    def __call__(self) -> TorchDistributionMixin:
        largest = min(_MOST_DISCOUNT, 1.0 / self.truncation)
        discount = pyro.sample(
            "discount", dist.Uniform(torch.tensor(_LEAST_DISCOUNT), torch.tensor(largest))
        )
        return TruncatedBFRY(discount, float(self.num_nodes) ** self.truncation)


def _gamma_weights() -> TorchDistributionMixin:
    concentration = pyro.sample("concentration", dist.LogNormal(torch.tensor(0.0), 2.0))
    return dist.Gamma(concentration, torch.ones_like(concentration))


def check_num_nodes(prior: WeightPrior, graph: SimpleGraph) -> None:
    """Check that a prior of weights is for graphs of that size.

    :param prior: a Pyro model; those of :func:`bfry_weights` know their number of nodes.
    :param SimpleGraph graph: the graph.
    :raises ValueError: where the number is another.
    """
    number = getattr(prior, "num_nodes", graph.num_nodes)
    if number != graph.num_nodes:
        raise ValueError(
            f"the prior of weights must be for graphs of {graph.num_nodes} nodes, as the graph is, "
            f"got num_nodes={number}"
        )


class MixedMembership:
    r"""Prior of communities, of each of which a node is a share [1].

    Memberships are :math:`V_i \sim \text{Dirichlet}(\gamma)` and rates :math:`\Phi_{kl} =
    \Phi_{lk} \sim \text{Gamma}(a, a)`, of mean one. The paper says that its model extends to
    communities; this form of it is ours.

    :param int num_communities: two at least.
    :param float concentration: :math:`\gamma > 0`, the same for all communities.
    :param float rate_concentration: :math:`a > 0`.
    :raises ValueError: for numbers out of range.

    Example::

        >>> memberships, rates = MixedMembership(3)(10)
        >>> memberships.shape, bool((rates == rates.T).all())
        (torch.Size([10, 3]), True)
    """

    def __init__(
        self, num_communities: int, concentration: float = 0.3, rate_concentration: float = 1.0
    ) -> None:
        self.num_communities = check_integer("num_communities", num_communities, 2)
        self.concentration = check_number("concentration", concentration, above=0)
        self.rate_concentration = check_number("rate_concentration", rate_concentration, above=0)
        self.num_rates = num_communities * (num_communities + 1) // 2

    def __call__(self, num_nodes: int) -> tuple[Tensor, Tensor]:
        """Sample the sites ``"memberships"`` and ``"rates"``, the latter as the upper triangle.

        :param int num_nodes: how many nodes.
        :returns: memberships and the matrix of rates.
        """
        law = dist.Dirichlet(torch.full((self.num_communities,), self.concentration))
        with pyro.plate("members", num_nodes):
            memberships = pyro.sample("memberships", law)
        shape = torch.tensor(self.rate_concentration)
        with pyro.plate("pairs_of_communities", self.num_rates):
            rates = pyro.sample("rates", dist.Gamma(shape, shape))
        return memberships, self.matrix(rates)

    def matrix(self, rates: Tensor) -> Tensor:
        """The symmetric matrix of rates from its upper triangle.

        :param Tensor rates: **Shape:** ``(num_rates,)``.
        """
        number = self.num_communities
        place = torch.empty(number, number, dtype=torch.int64, device=rates.device)
        row, column = torch.triu_indices(number, number, device=rates.device)
        place[row, column] = place[column, row] = torch.arange(self.num_rates, device=rates.device)
        return rates[place]


class GraphModel:
    r"""A simple graph with independent edges of odds :math:`r_{ij} = w_i w_j / L` [1].

    The weights :math:`w_i` are those of the prior, and :math:`L` is their sum. A node has about
    :math:`w_i` edges where its weight is small against :math:`\sqrt L`. Pairs that are held out
    count for nothing.

    It is a Pyro model of a graph, with the site ``"weights"`` beside those of the prior. Over all
    pairs it takes time that is quadratic in the number of nodes, and linear memory. With
    ``num_pairs`` the pairs are a random sample and with ``num_edges`` the edges are, and the log
    density is an estimate without bias. ``num_pairs`` is for SVI, as in :meth:`GraphGuide.fit`: the
    pairs come from PyTorch's generator within the model, which a
    :class:`~pyro_ext.potential.Potential` refuses. Samplers that follow gradients take all pairs,
    with minibatches of the edges or without.

    :param prior: a Pyro model of no arguments that returns the law of a weight.
    :param MixedMembership communities: prior of communities; by default there are none.
    :raises TypeError: where they are something else.

    Example::

        >>> from pyro_ext.potential import Potential
        >>> graph = SimpleGraph(10, torch.tensor([[0, 1], [0, 2], [0, 5], [3, 4]]))
        >>> sorted(Potential(GraphModel(bfry_weights(10)), graph).sites)
        ['discount', 'weights']
    """

    def __init__(self, prior: WeightPrior, communities: MixedMembership | None = None) -> None:
        check_callable("prior", prior, "a Pyro model of no arguments", or_class=False)
        if communities is not None and not isinstance(communities, MixedMembership):
            raise TypeError(f"communities must be a MixedMembership, got {communities!r:.80}")
        self.prior = prior
        self.communities = communities

    def __call__(
        self, graph: SimpleGraph, *, num_edges: int | None = None, num_pairs: int | None = None
    ) -> EdgeOdds:
        """Run the model on a graph.

        :param SimpleGraph graph: the graph.
        :param int num_edges: how many of its edges are looked at; by default all.
        :param int num_pairs: how many random pairs stand for all pairs; by default all pairs are
            looked at. For SVI only.
        :returns: the odds of edges.
        :raises ValueError: for numbers out of range, and a prior for graphs of another size.
        """
        check_num_nodes(self.prior, graph)
        if num_edges is not None:
            check_integer("num_edges", num_edges, 1)
            if num_edges > max(graph.num_edges, 1):
                raise ValueError(
                    f"num_edges must be at most {graph.num_edges}, the number of edges of the "
                    f"graph, got {num_edges}"
                )
        if num_pairs is not None:
            check_integer("num_pairs", num_pairs, 1)
        with on_device_of(graph):
            odds = self.odds(graph.num_nodes)
        if graph.num_edges:
            with pyro.plate("edges", graph.num_edges, subsample_size=num_edges) as index:
                pyro.factor("links", odds.log(*graph.edges[index].T))
        # A plate would list all pairs to pick some of them.
        if num_pairs is None:
            pyro.factor("pairs", log_non_edges(odds, graph))
        else:
            pyro.factor("pairs", estimate_non_edges(odds, graph.sample_pairs(num_pairs)))
        return odds

    def odds(self, num_nodes: int) -> EdgeOdds:
        """Sample what the odds of edges depend on, without a graph.

        :param int num_nodes: number of nodes.
        """
        # The plate's own expansion would compute a normalizer for each node.
        law = ExpandedDistribution(self.prior(), torch.Size([num_nodes]))
        with pyro.plate("nodes", num_nodes):
            weights = pyro.sample("weights", law)
        if self.communities is None:
            return EdgeOdds(weights)
        return EdgeOdds(weights, *self.communities(num_nodes))
