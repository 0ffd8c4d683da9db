"""Random simple graphs: odds of edges, priors on weights, communities, and the Pyro model.

Numbers in brackets refer to the papers in the docstring of the package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from pyro_ext._lib import checks
from pyro_ext.distributions import TruncatedBFRY
from pyro_ext.models.nonparametric.graph_pairs import (
    PairSample,
    SimpleGraph,
    draw_nodes,
    on_device_of,
)
from pyro_ext.random import fresh_seed
from pyro_ext.special.operations import may_hold_everywhere

_MOST_CANDIDATES = 2**22
_MOST_PAIRS = 2**30  # some minutes
_ASYMMETRY = 1e-4
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class EdgeOdds:
    r"""The odds of an edge between any two nodes [3].

    They are :math:`r_{ij} = w_i w_j / L`, with positive weights :math:`w_i` and their sum
    :math:`L`. With memberships :math:`V_i`, the proportions of a node in communities, and rates
    :math:`\Phi` of communities, they are :math:`r_{ij} = V_i^\top \Phi V_j \, w_i w_j / L`.

    :param Tensor weights: positive weights; those that underflow to zero count as 1e-30. **Shape:**
        ``(num_nodes,)``.
    :param Tensor memberships: rows that sum to one. **Shape:** ``(num_nodes, num_communities)``.
    :param Tensor rates: symmetric and positive. **Shape:** ``(num_communities, num_communities)``.
    :raises ValueError: for shapes that do not fit and, if arguments are validated, for invalid
        numbers.

    Example::

        >>> odds = EdgeOdds(torch.tensor([1.0, 2.0, 5.0]))
        >>> odds.log(torch.tensor([0]), torch.tensor([2])).exp()
        tensor([0.6250])
    """

    weights: Tensor
    memberships: Tensor | None = None
    rates: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        parts = {"weights": _as_floats("weights", self.weights, "(num_nodes,)")}
        number = len(parts["weights"])
        if number < 2:
            raise ValueError(f"weights must have the shape (num_nodes,), got ({number},)")
        if (self.memberships is None) != (self.rates is None):
            raise ValueError("memberships and rates must be given together, got one of them")
        if self.memberships is not None:
            members = _as_floats("memberships", self.memberships, f"({number}, num_communities)")
            shape = str((members.shape[1],) * 2)
            parts |= {"memberships": members, "rates": _as_floats("rates", self.rates, shape)}
        for name, part in parts.items():
            object.__setattr__(self, name, part)
        if Distribution._validate_args:
            _check_values(parts)

    def log(self, first: Tensor, second: Tensor) -> Tensor:
        """Compute log odds of edges.

        :param Tensor first: nodes.
        :param Tensor second: nodes; both broadcast against each other.
        """
        pairs = {"first": first, "second": second}
        nodes = {name: nodes_of(name, node, len(self.weights)) for name, node in pairs.items()}
        first, second = checks.as_parameters("EdgeOdds", nodes)
        # Weights underflow where the tail index is near zero.
        log_weights = self.weights.clamp(min=_TINY).log()
        base = log_weights[first] + log_weights[second] - self.weights.sum().log()
        return base if self.memberships is None else base + self.log_affinity(first, second)

    def log_affinity(self, first: Tensor, second: Tensor) -> Tensor:
        r"""Compute the contribution of the communities, :math:`\log V_i^\top \Phi V_j`.

        :param Tensor first: nodes.
        :param Tensor second: nodes; both broadcast against each other.
        """
        if self.memberships is None or self.rates is None:
            return self.weights.new_zeros(())
        mixed = (self.memberships @ self.rates)[first] * self.memberships[second]
        return mixed.sum(-1).clamp(min=_TINY).log()


def _as_floats(argument: str, value: Any, shape: str) -> Tensor:
    tensor = checks.as_tensor(argument, value, shape)
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def _check_values(parts: dict[str, Tensor]) -> None:
    for name, part in parts.items():
        is_valid = part.isfinite() & (part >= 0)
        if not may_hold_everywhere(is_valid):
            row = int(torch.nonzero(~is_valid)[0, 0])
            bad = part[row][~is_valid[row]].flatten()[0].item()
            raise ValueError(f"{name} must be finite and >= 0, got {bad:g} in row {row}")
        if not may_hold_everywhere((part > 0).any()):
            raise ValueError(f"{name} must not all be zero")
    rates = parts.get("rates")
    if rates is not None:
        largest = _ASYMMETRY * rates.detach().max()
        if not may_hold_everywhere((rates - rates.mT).abs() <= largest):
            raise ValueError(f"rates must be symmetric, got {rates.tolist()!r:.80}")


def log_non_edges(odds: EdgeOdds, graph: SimpleGraph) -> Tensor:
    r"""The sum of :math:`-\log(1 + r_{ij})` over all pairs that are observed."""
    check_odds("odds", odds, graph.num_nodes)

    def block_sum(first: Tensor, second: Tensor) -> Tensor:
        counts = graph.is_observed(first, second) & (first < second)
        return torch.where(counts, -softplus(odds.log(first, second)), 0.0).sum()

    blocks = list(graph.row_blocks())
    if len(blocks) == 1:
        return block_sum(*blocks[0])
    # Recomputed for gradients, so that memory stays linear in the number of edges.
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    return torch.stack([again(block_sum, *block) for block in blocks]).sum()


def graph_log_likelihood(odds: EdgeOdds, graph: SimpleGraph) -> Tensor:
    r"""Compute the log probability of the observed pairs of a graph.

    .. math:: \sum_{i < j} x_{ij} \log r_{ij} - \log(1 + r_{ij})

    :param EdgeOdds odds: odds of edges.
    :param SimpleGraph graph: the graph.

    Example::

        >>> graph = SimpleGraph(3, torch.tensor([[0, 2]]))
        >>> graph_log_likelihood(EdgeOdds(torch.tensor([1.0, 2.0, 5.0])), graph)
        tensor(-1.9896)
    """
    checks.instance("graph", graph, SimpleGraph, "a SimpleGraph")
    check_odds("odds", odds, graph.num_nodes)
    return odds.log(*graph.edges.T).sum() + log_non_edges(odds, graph)


def check_odds(argument: str, odds: object, num_nodes: int | None = None) -> None:
    """Check that these are odds, with weights for so many nodes; their numbers are checked."""
    checks.instance(argument, odds, EdgeOdds, "EdgeOdds")
    assert isinstance(odds, EdgeOdds)
    if num_nodes is not None and len(odds.weights) != num_nodes:
        raise ValueError(
            f"{argument} must have one weight for each of {num_nodes} nodes, got "
            f"{len(odds.weights)}"
        )


def nodes_of(argument: str, nodes: Any, num_nodes: int) -> Tensor:
    """Numbers of nodes that there are."""
    found = checks.as_tensor(argument, nodes, kind="integers", allow_empty=True)
    if not may_hold_everywhere((found >= 0) & (found < num_nodes)):
        raise ValueError(
            f"{argument} must be nodes from 0 to {num_nodes - 1}, got {found.tolist()!r:.80}"
        )
    return found


def estimate_non_edges(odds: EdgeOdds, pairs: PairSample) -> Tensor:
    """An estimate of :func:`log_non_edges` without bias, from random pairs."""
    terms = softplus(odds.log(pairs.first, pairs.second))
    return -(pairs.weight.to(terms.dtype) * terms).sum()


def sample_graph(odds: EdgeOdds, *, seed: int | None = None) -> SimpleGraph:
    r"""Draw a graph, in time linear in the sum of the weights or in the number of pairs.

    :param EdgeOdds odds: odds of edges.
    :param int seed: seed of the draw; by default drawn from PyTorch's generator.
    :raises ValueError: if both exceed a billion.

    Example::

        >>> sample_graph(EdgeOdds(torch.full((1000,), 3.0)), seed=0)
        SimpleGraph(1,000 nodes, 1,488 edges)
    """
    check_odds("odds", odds)
    weights = odds.weights.detach().double()
    device, num_nodes = weights.device, len(weights)
    generator = torch.Generator(device).manual_seed(fresh_seed(seed))
    largest = weights.new_ones(()) if odds.rates is None else odds.rates.detach().max().double()
    mean = (weights.sum() * largest / 2.0).reshape(1)
    num_pairs = num_nodes * (num_nodes - 1) // 2
    if min(float(mean), num_pairs) > _MOST_PAIRS:
        raise ValueError(
            "odds must have half the sum of their weights, times the largest rate, or their number "
            f"of pairs at most {_MOST_PAIRS:,}, got {float(mean):.3g} and {num_pairs:,}"
        )
    if float(mean) > num_pairs:
        return _draw_all_pairs(odds, generator)
    # There is an edge where a Poisson process of rate log(1 + r) has points, which are thinned from
    # those of one of rate w w' max(rates) / L, whose nodes are independent.
    waiting = int(torch.poisson(mean, generator=generator))
    codes = torch.empty(0, dtype=torch.int64, device=device)
    while waiting > 0:
        number = min(waiting, _MOST_CANDIDATES)
        waiting -= number
        pairs = draw_nodes(weights, 2 * number, generator).view(2, number)
        low, high = pairs.sort(0).values
        low, high = low[low < high], high[low < high]
        with torch.no_grad():
            log_odds = odds.log(low, high).double()
            log_bound = log_odds - odds.log_affinity(low, high) + largest.log()
        uniform = torch.rand(len(low), dtype=torch.float64, device=device, generator=generator)
        is_kept = uniform.log() + log_bound < softplus(log_odds).log()
        codes = torch.cat([codes, (low * num_nodes + high)[is_kept]]).unique()
    return SimpleGraph(num_nodes, torch.stack([codes // num_nodes, codes % num_nodes], -1))


def _draw_all_pairs(odds: EdgeOdds, generator: torch.Generator) -> SimpleGraph:
    """Draw each pair of nodes by itself."""
    num_nodes, edges = len(odds.weights), []
    none = torch.empty((0, 2), dtype=torch.int64, device=odds.weights.device)
    for first, second in SimpleGraph(num_nodes, none).row_blocks():
        with torch.no_grad():
            chance = odds.log(first, second).double().sigmoid()
        uniform = torch.rand(
            chance.shape, dtype=chance.dtype, device=none.device, generator=generator
        )
        row, column = torch.nonzero((uniform < chance) & (first < second), as_tuple=True)
        edges.append(torch.stack([first[row, 0], second[0, column]], -1))
    return SimpleGraph(num_nodes, torch.cat([none, *edges]))


WeightPrior = Callable[[], TorchDistributionMixin]

_LEAST_DISCOUNT = 1e-3  # below, draws of weights underflow
_MOST_DISCOUNT = 1.0 - 1e-6


def bfry_weights(num_nodes: int, truncation: float = 1.0) -> WeightPrior:
    r"""Prior of weights with a power law, truncated at :math:`C = N^\beta` [3].

    Weights are truncated BFRY variables. The number of nodes with a degree above :math:`d` then
    falls as :math:`d^{-\alpha}`, for degrees well below :math:`C`.

    :param int num_nodes: :math:`N`, the number of nodes of the graph.
    :param float truncation: :math:`\beta > 0`; a larger value makes the graph denser.
    :returns: a Pyro model with the site ``"discount"``, which is :math:`\alpha`, uniform up to
        :math:`\min(1, 1 / \beta)`. It returns the distribution of a weight.

    Example::

        >>> bfry_weights(100)().high
        tensor(100.)
    """
    checks.integer("num_nodes", num_nodes, 2)
    return _BFRYWeights(num_nodes, checks.number("truncation", truncation, above=0))


def gamma_weights() -> WeightPrior:
    """Prior of weights without a power law: gamma variables of rate one, the baseline of [3].

    :returns: a Pyro model with the site ``"concentration"``, log-normal with median 1 and a factor
        of :math:`e^2`. It returns the distribution of a weight.

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
        prior = dist.Uniform(torch.tensor(_LEAST_DISCOUNT), torch.tensor(largest))
        discount = pyro.sample("discount", prior)
        return TruncatedBFRY(discount, float(self.num_nodes) ** self.truncation)


def _gamma_weights() -> TorchDistributionMixin:
    concentration = pyro.sample("concentration", dist.LogNormal(torch.tensor(0.0), 2.0))
    return dist.Gamma(concentration, torch.ones_like(concentration))


def check_num_nodes(prior: WeightPrior, graph: SimpleGraph) -> None:
    """Check that a prior of weights is for graphs of that size."""
    number = getattr(prior, "num_nodes", graph.num_nodes)
    if number != graph.num_nodes:
        raise ValueError(
            f"the prior of weights must be for graphs of {graph.num_nodes} nodes, as the graph is, "
            f"got num_nodes={number}"
        )


class MixedMembership:
    r"""Prior of communities, to each of which a node belongs in some proportion [3].

    Memberships are :math:`V_i \sim \text{Dirichlet}(\gamma)` and rates :math:`\Phi_{kl} =
    \Phi_{lk} \sim \text{Gamma}(a, a)`, with mean one. The paper says that its model extends to
    communities; this form of it is ours.

    :param int num_communities: number of communities, at least two.
    :param float concentration: :math:`\gamma > 0`, the same for all communities.
    :param float rate_concentration: :math:`a > 0`.

    Example::

        >>> memberships, rates = MixedMembership(3)(10)
        >>> memberships.shape, bool((rates == rates.T).all())
        (torch.Size([10, 3]), True)
    """

    def __init__(
        self, num_communities: int, concentration: float = 0.3, rate_concentration: float = 1.0
    ) -> None:
        self.num_communities = checks.integer("num_communities", num_communities, 2)
        self.concentration = checks.number("concentration", concentration, above=0)
        self.rate_concentration = checks.number("rate_concentration", rate_concentration, above=0)
        self.num_rates = num_communities * (num_communities + 1) // 2

    def __call__(self, num_nodes: int) -> tuple[Tensor, Tensor]:
        """Sample the sites ``"memberships"`` and ``"rates"``, the latter as the upper triangle.

        :param int num_nodes: how many nodes.
        :returns: memberships and the matrix of rates.
        """
        proportions = dist.Dirichlet(torch.full((self.num_communities,), self.concentration))
        with pyro.plate("members", num_nodes):
            memberships = pyro.sample("memberships", proportions)
        shape = torch.tensor(self.rate_concentration)
        with pyro.plate("pairs_of_communities", self.num_rates):
            rates = pyro.sample("rates", dist.Gamma(shape, shape))
        return memberships, self.matrix(rates)

    def matrix(self, rates: Tensor) -> Tensor:
        """Make the symmetric matrix of rates from its upper triangle.

        :param Tensor rates: **Shape:** ``(num_rates,)``.
        """
        number = self.num_communities
        index = torch.empty(number, number, dtype=torch.int64, device=rates.device)
        row, column = torch.triu_indices(number, number, device=rates.device)
        index[row, column] = index[column, row] = torch.arange(self.num_rates, device=rates.device)
        return rates[index]


class GraphModel:
    r"""A simple graph with independent edges of odds :math:`r_{ij} = w_i w_j / L` [3].

    The weights :math:`w_i` are drawn from the prior, and :math:`L` is their sum. A node has about
    :math:`w_i` edges if its weight is small compared to :math:`\sqrt L`. Pairs that are held out do
    not count.

    This is a Pyro model of a graph, with the site ``"weights"`` and the sites of the prior. Over
    all pairs, it takes time quadratic in the number of nodes, and linear memory. With ``num_pairs``
    and ``num_edges``, which are for SVI only, pairs and edges are random samples, and the log
    density is an unbiased estimate.

    :param prior: a Pyro model without arguments that returns the distribution of a weight.
    :param MixedMembership communities: prior over communities; by default there are none.
    :raises TypeError: if ``communities`` has another type.

    Example::

        >>> from pyro_ext.potential import Potential
        >>> graph = SimpleGraph(10, torch.tensor([[0, 1], [0, 2], [0, 5], [3, 4]]))
        >>> sorted(Potential(GraphModel(bfry_weights(10)), graph).sites)
        ['discount', 'weights']
    """

    def __init__(self, prior: WeightPrior, communities: MixedMembership | None = None) -> None:
        checks.function("prior", prior, "a Pyro model of no arguments", or_class=False)
        kind = "a MixedMembership or None"
        checks.optional(checks.instance, "communities", communities, MixedMembership, kind)
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
        checks.optional(checks.integer, "num_edges", num_edges, 1)
        if num_edges is not None and num_edges > max(graph.num_edges, 1):
            raise ValueError(
                f"num_edges must be at most {graph.num_edges}, the number of edges of the graph, "
                f"got {num_edges}"
            )
        checks.optional(checks.integer, "num_pairs", num_pairs, 1)
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
        """Sample everything on which the odds of edges depend, without a graph.

        :param int num_nodes: number of nodes.
        """
        # The plate's own expansion would compute a normalizer for each node.
        prior = ExpandedDistribution(self.prior(), torch.Size([num_nodes]))
        with pyro.plate("nodes", num_nodes):
            weights = pyro.sample("weights", prior)
        if self.communities is None:
            return EdgeOdds(weights)
        return EdgeOdds(weights, *self.communities(num_nodes))
