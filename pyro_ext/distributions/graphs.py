"""Random graphs whose edges are independent given features of their nodes."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import pad, softplus

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import ParametricDistribution
from pyro_ext.special import log1mexp

_MOST_POINTS = 2**28


class _SimpleGraphs(constraints.Constraint):
    """Symmetric matrices of zeros and ones, zero on the diagonal and at absent nodes."""

    is_discrete = True
    event_dim = 2

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        super().__init__()

    def __repr__(self) -> str:
        return "adjacency matrices of simple graphs"

    def check(self, value: Tensor) -> Tensor:
        """Check whether each matrix is the adjacency matrix of a simple graph."""
        is_binary = (value == 0) | (value == 1)
        allowed = _pairs(self.mask) | (value == 0)
        return (is_binary & allowed & (value == value.mT)).all(-1).all(-1)


class _IndependentEdges(ParametricDistribution):
    """Graphs with independent edges; subclasses give the probability of one from a pair's score.

    The first parameter holds the features of the nodes.
    """

    node_mask: Tensor

    def __init__(
        self,
        parameters: dict[str, Any],
        event_dims: dict[str, int],
        node_mask: Any,
        validate_args: bool | None,
    ) -> None:
        name, *others = parameters
        features = checks.as_tensor(name, parameters[name], "(*batch, num_nodes, num_features)")
        if not features.is_floating_point():
            features = features.to(torch.get_default_dtype())
        shape = f"(*batch, {features.shape[-2]})"
        checks.optional(checks.as_tensor, "node_mask", node_mask, shape, kind="booleans")
        if node_mask is None:
            node_mask = torch.ones(features.shape[-2], dtype=torch.bool)
        mask = torch.as_tensor(node_mask, device=features.device)
        scalars = {
            other: torch.as_tensor(checks.as_parameter(other, parameters[other])).to(features)
            for other in others
        }
        shapes = [
            features.shape[:-2],
            mask.shape[:-1],
            *(value.shape for value in scalars.values()),
        ]
        try:
            batch_shape = torch.broadcast_shapes(*shapes)
        except RuntimeError:
            found = ", ".join(str(tuple(shape)) for shape in shapes)
            raise ValueError(
                f"{', '.join([name, 'node_mask', *others])} of {type(self).__name__} must "
                f"broadcast, got the batch shapes {found}"
            ) from None
        features = features.expand(batch_shape + features.shape[-2:])
        mask = mask.expand(batch_shape + mask.shape[-1:])
        tensors = {name: features.masked_fill(~mask[..., None], 0), "node_mask": mask}
        tensors |= {other: value.expand(batch_shape) for other, value in scalars.items()}
        event_shape = torch.Size(features.shape[-2:-1] * 2)
        dims = {**event_dims, "node_mask": 1}
        super().__init__(tensors, dims, batch_shape, event_shape, validate_args)

    @abstractmethod
    def _scores(self) -> Tensor:
        """A score of each pair of nodes. **Shape:** ``(*batch, num_nodes, num_nodes)``."""

    @abstractmethod
    def _log_prob(self, score: Tensor, is_edge: Tensor) -> Tensor:
        """Log probability that there is an edge, or none."""

    @abstractmethod
    def _probability(self, score: Tensor) -> Tensor:
        """Probability of an edge."""

    @constraints.dependent_property(is_discrete=True, event_dim=2)
    def support(self) -> constraints.Constraint:
        """Adjacency matrices of simple graphs without edges at absent nodes."""
        return _SimpleGraphs(self.node_mask)

    @property
    def mean(self) -> Tensor:
        """Probability of each edge. **Shape:** ``(*batch, num_nodes, num_nodes)``."""
        return torch.where(_pairs(self.node_mask), self._probability(self._scores()), 0.0)

    @property
    def variance(self) -> Tensor:
        """Variance of each entry. **Shape:** ``(*batch, num_nodes, num_nodes)``."""
        mean = self.mean
        return mean * (1.0 - mean)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of graphs, in time that is quadratic in the number of nodes.

        :param Tensor value: adjacency matrices, of numbers or booleans. **Shape:**
            ``(*batch, num_nodes, num_nodes)``.
        :returns: **Shape:** ``(*batch)``.
        :raises ValueError: if arguments are validated and a graph is directed or weighted, or has
            self-loops or edges at absent nodes.
        """
        if self._validate_args:
            self._validate_sample(value)
        terms = self._log_prob(self._scores(), value == 1)
        return torch.where(_pairs(self.node_mask).triu(1), terms, 0.0).sum((-1, -2))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw adjacency matrices.

        :param torch.Size sample_shape: shape of independent draws.
        :returns: zeros and ones. **Shape:** ``(*sample_shape, *batch, num_nodes, num_nodes)``.
        """
        with torch.no_grad():
            probability = self.mean.expand(self._extended_shape(torch.Size(sample_shape)))
            upper = (torch.rand_like(probability) < probability).triu(1)
            return (upper | upper.mT).to(probability.dtype)

    def _validate_sample(self, value: Tensor) -> None:
        size = self.event_shape[0]
        value = checks.as_tensor("value", value, f"(*batch, {size}, {size})", allow_empty=True)
        try:
            torch.broadcast_shapes(value.shape[:-2], self.batch_shape)
        except RuntimeError:
            raise ValueError(
                f"value must broadcast with the batch shape {tuple(self.batch_shape)}, got "
                f"{checks.shown(value)}"
            ) from None
        diagonal = torch.eye(size, dtype=torch.bool, device=value.device)
        for wanted, is_wrong in (
            ("unweighted, zeros and ones", (value != 0) & (value != 1)),
            ("undirected, a symmetric matrix", value != value.mT),
            ("without self-loops", (value != 0) & diagonal),
            ("without edges at absent nodes", (value != 0) & ~(_pairs(self.node_mask) | diagonal)),
        ):
            if bool(is_wrong.any()):
                *_, row, column = (int(i) for i in is_wrong.nonzero()[0])
                found = value.expand_as(is_wrong)[is_wrong][0].item()
                raise ValueError(
                    f"value must be a graph that is {wanted}, got {found:g} between nodes {row} "
                    f"and {column}"
                )


class BernoulliExponentialGraph(_IndependentEdges):
    r"""Simple graphs with independent edges, computed in time linear in the number of edges [1].

    Two nodes are joined if an exponential variable with the rate :math:`r_i \cdot r_j` is less than
    one,

    .. math:: P(a_{ij} = 1) = 1 - \exp(-r_i \cdot r_j), \qquad r_i \in [0, \infty)^p .

    The sum of the rates over all pairs follows from cumulative sums over the nodes, so that
    :meth:`log_prob_edges` takes time that is linear in the numbers of nodes and edges. So does
    :meth:`sample_edges`. ``log_prob`` and ``sample`` look at all pairs.

    :param Tensor rates: :math:`r`. **Shape:** ``(*batch, num_nodes, num_features)``.
    :param Tensor node_mask: booleans, true for nodes that are present and false for padding, which
        has no edges. **Shape:** ``(*batch, num_nodes)``.
    :raises ValueError: for negative rates or shapes that do not match.

    [1] T. Duan, J. Lee (2019),
    Graph embedding VAE: a permutation invariant model of graph structure.

    Example::

        >>> from pyro_ext.distributions import BernoulliExponentialGraph
        >>> graph = BernoulliExponentialGraph(torch.tensor([[0.5, 0.0], [2.0, 1.0], [0.0, 0.7]]))
        >>> graph.mean
        tensor([[0.0000, 0.6321, 0.0000],
                [0.6321, 0.0000, 0.5034],
                [0.0000, 0.5034, 0.0000]])
        >>> edges = torch.tensor([[0, 1], [1, 2]])
        >>> graph.log_prob_edges(edges)
        tensor(-1.1450)
    """

    rates: Tensor
    arg_constraints = {"rates": constraints.independent(constraints.nonnegative, 2)}

    def __init__(
        self, rates: Tensor, node_mask: Tensor | None = None, *, validate_args: bool | None = None
    ) -> None:
        super().__init__({"rates": rates}, {"rates": 2}, node_mask, validate_args)

    def log_prob_edges(self, edges: Tensor) -> Tensor:
        """Log probability of one graph, in time that is linear in its nodes and edges.

        :param Tensor edges: the two nodes of each edge, in any order. List each edge once.
            **Shape:** ``(num_edges, 2)``.
        :returns: **Shape:** ``(*batch)``.
        :raises ValueError: if arguments are validated and there are self-loops, repeated edges, or
            nodes that do not exist.
        """
        edges = checks.as_tensor(
            "edges", edges, "(num_edges, 2)", kind="integers", allow_empty=True
        )
        first, second = edges.long().unbind(-1)
        if self._validate_args:
            self._validate_edges(first, second)
        # Not as half of |sum r|^2 - sum |r|^2, whose terms may cancel.
        before = pad(self.rates.cumsum(-2)[..., :-1, :], (0, 0, 1, 0))
        no_edges = -(self.rates * before).sum((-1, -2))
        score = (self.rates[..., first, :] * self.rates[..., second, :]).sum(-1)
        return no_edges + (score + log1mexp(score)).sum(-1)

    @torch.no_grad()
    def sample_edges(self) -> Tensor:
        """Draw one graph, in time that is linear in its nodes, edges and features.

        This draws the points of a Poisson process over pairs of nodes and features. Pairs with
        points are the edges. Time and memory grow with the number of points, so ``sample`` is
        faster if most pairs have several.

        :returns: the two nodes of each edge, the smaller one first, in sorted order. **Shape:**
            ``(num_edges, 2)``.
        :raises ValueError: for a batch of distributions, whose draws would have different lengths,
            or if about a hundred million points or more are expected.
        """
        if self.batch_shape:
            raise ValueError(
                "rates must have no batch shape for sample_edges, which draws one graph, "
                f"got {checks.shown(self.rates)}"
            )
        rates = self.rates.double().mT
        num_features, num_nodes = rates.shape
        cumulative = rates.cumsum(-1)
        mean = cumulative[:, -1].square() / 2.0
        if not float(mean.sum()) <= _MOST_POINTS:
            raise ValueError(
                f"rates must give at most {_MOST_POINTS:,} expected points, "
                f"got {float(mean.sum()):.3g}"
            )
        number = torch.poisson(mean).long()
        feature = torch.arange(num_features, device=rates.device).repeat_interleave(number)
        # One increasing sequence: feature k goes from k to k + 1.
        cumulative /= cumulative[:, -1:].clamp(min=torch.finfo(rates.dtype).tiny)
        cumulative += torch.arange(num_features, device=rates.device)[:, None]
        position = torch.rand(2, len(feature), dtype=rates.dtype, device=rates.device) + feature
        end = torch.nextafter((feature + 1).to(position), feature.to(position))
        position = torch.minimum(position, end)
        nodes = torch.searchsorted(cumulative.flatten(), position, right=True)
        low, high = (nodes - feature * num_nodes).sort(0).values
        codes = (low * num_nodes + high)[low != high].unique()
        return torch.stack([codes // num_nodes, codes % num_nodes], -1)

    def _scores(self) -> Tensor:
        return self.rates @ self.rates.mT

    def _log_prob(self, score: Tensor, is_edge: Tensor) -> Tensor:
        of_edge = log1mexp(torch.where(is_edge, score, 1.0))
        return torch.where(is_edge, of_edge, -score)

    def _probability(self, score: Tensor) -> Tensor:
        return -torch.expm1(-score)

    def _validate_edges(self, first: Tensor, second: Tensor) -> None:
        size = self.event_shape[0]
        is_wrong = (first < 0) | (first >= size) | (second < 0) | (second >= size)
        if bool(is_wrong.any()):
            pair = first[is_wrong][0].item(), second[is_wrong][0].item()
            raise ValueError(f"edges must join nodes from 0 to {size - 1}, got {pair}")
        is_there = self.node_mask.reshape(-1, size).all(0)
        for wanted, is_wrong in (
            ("join different nodes", first == second),
            ("join nodes that are present in node_mask", ~(is_there[first] & is_there[second])),
        ):
            if bool(is_wrong.any()):
                pair = first[is_wrong][0].item(), second[is_wrong][0].item()
                raise ValueError(f"edges must {wanted}, got {pair}")
        codes = torch.minimum(first, second) * size + torch.maximum(first, second)
        if (number := len(codes.unique())) < len(codes):
            raise ValueError(f"edges must be distinct, got {len(codes) - number} repeated")


class LogitGraph(_IndependentEdges):
    r"""Simple graphs whose edges have log odds that are inner products of the nodes' features [1].

    .. math:: P(a_{ij} = 1) = \mathrm{sigmoid}(e^c \, r_i \cdot r_j + b)

    Unlike :class:`BernoulliExponentialGraph`, it always has to look at all pairs of nodes.

    :param Tensor features: :math:`r`. **Shape:** ``(*batch, num_nodes, num_features)``.
    :param Tensor log_scale: :math:`c`. **Shape:** ``(*batch)``.
    :param Tensor bias: :math:`b`. **Shape:** ``(*batch)``.
    :param Tensor node_mask: booleans, true for nodes that are present and false for padding, which
        has no edges. **Shape:** ``(*batch, num_nodes)``.
    :raises ValueError: if shapes do not match.

    [1] See :class:`BernoulliExponentialGraph`.

    Example::

        >>> from pyro_ext.distributions import LogitGraph
        >>> LogitGraph(torch.tensor([[1.0], [-1.0], [0.0]])).mean
        tensor([[0.0000, 0.2689, 0.5000],
                [0.2689, 0.0000, 0.5000],
                [0.5000, 0.5000, 0.0000]])
    """

    features: Tensor
    log_scale: Tensor
    bias: Tensor
    arg_constraints = {
        "features": constraints.independent(constraints.real, 2),
        "log_scale": constraints.real,
        "bias": constraints.real,
    }

    def __init__(
        self,
        features: Tensor,
        log_scale: Any = 0.0,
        bias: Any = 0.0,
        node_mask: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {"features": features, "log_scale": log_scale, "bias": bias}
        event_dims = {"features": 2, "log_scale": 0, "bias": 0}
        super().__init__(parameters, event_dims, node_mask, validate_args)

    def _scores(self) -> Tensor:
        scale, bias = self.log_scale.exp()[..., None, None], self.bias[..., None, None]
        return scale * (self.features @ self.features.mT) + bias

    def _log_prob(self, score: Tensor, is_edge: Tensor) -> Tensor:
        return -softplus(torch.where(is_edge, -score, score))

    def _probability(self, score: Tensor) -> Tensor:
        return score.sigmoid()


def _pairs(mask: Tensor) -> Tensor:
    """Return a mask of the pairs of distinct present nodes. **Shape:** ``(*batch, n, n)``."""
    differ = ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    return mask[..., :, None] & mask[..., None, :] & differ
