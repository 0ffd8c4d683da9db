"""Simple graphs with unobserved pairs of nodes, and random pairs of their nodes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.random import chain_keys, philox

_WORDS = 2**32
_LARGEST_BLOCK = 2**18


@dataclass(frozen=True)
class HeldOutPairs:
    """A random set of pairs of nodes, edges and non-edges alike, which takes no memory.

    :param float fraction: the probability of each pair, in [0, 1).
    :param int seed: determines the pairs.
    :param HeldOutPairs others: another such set, whose pairs are also held out.
    :raises ValueError: for numbers out of range, or the seed of another set.

    Example::

        >>> pairs = HeldOutPairs(0.2, seed=1)
        >>> first, second = torch.triu_indices(500, 500, 1)
        >>> round(float(pairs.contains(first, second).float().mean()), 2)
        0.2
    """

    fraction: float
    seed: int
    others: "HeldOutPairs | None" = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        checks.number("fraction", self.fraction, least=0, below=1)
        checks.integer("seed", self.seed, 0)
        wanted = "HeldOutPairs or None"
        checks.optional(checks.instance, "others", self.others, HeldOutPairs, wanted)
        if self.seed in self._other_seeds():
            raise ValueError(
                f"seed must differ from those of pairs that are held out already, got {self.seed}"
            )

    @property
    def probability(self) -> float:
        """Probability that a pair is held out, by this set or by others."""
        others = 0.0 if self.others is None else self.others.probability
        return self.fraction + (1.0 - self.fraction) * others

    def contains(self, first: Tensor, second: Tensor) -> Tensor:
        """Tell whether the set contains pairs, in either order of their nodes.

        :param Tensor first: nodes, integers.
        :param Tensor second: other nodes; both broadcast against each other.
        :returns: **Shape:** the broadcast shape.
        """
        first, second = torch.broadcast_tensors(first, second)
        key = chain_keys(self.seed, [0], first.device)[0]
        zero = torch.zeros((), dtype=torch.int64, device=first.device)
        nodes = torch.minimum(first, second), torch.maximum(first, second)
        own = philox((key[0], key[1]), (*nodes, zero, zero))[0] < self.fraction * _WORDS
        return own if self.others is None else own | self.others.contains(first, second)

    def _other_seeds(self) -> set[int]:
        return set() if self.others is None else {self.others.seed, *self.others._other_seeds()}


class PairSample(NamedTuple):
    """Random pairs of nodes, with what a function of them counts for in an estimate of its sum.

    :param Tensor first: nodes. **Shape:** ``(num_pairs,)``.
    :param Tensor second: other nodes. **Shape:** ``(num_pairs,)``.
    :param Tensor weight: zero for pairs that are not observed. **Shape:** ``(num_pairs,)``.
    """

    first: Tensor
    second: Tensor
    weight: Tensor


class UnseenPairs(NamedTuple):
    """Pairs that were held out: edges first, then pairs without an edge.

    :param Tensor first: nodes. **Shape:** ``(num_pairs,)``.
    :param Tensor second: other nodes. **Shape:** ``(num_pairs,)``.
    :param Tensor is_edge: whether there is an edge. **Shape:** ``(num_pairs,)``.
    :param Tensor weight: number of pairs that each stands for; more than one if only a sample of
        the pairs without an edge is included. **Shape:** ``(num_pairs,)``.
    """

    first: Tensor
    second: Tensor
    is_edge: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class SimpleGraph:
    """An undirected graph without loops, in memory linear in the number of edges.

    :param int num_nodes: number of nodes, which are numbered from zero; at least two.
    :param Tensor edges: pairs of different nodes, in any order; duplicates count once.
        **Shape:** ``(num_edges, 2)``.
    :param HeldOutPairs held_out: pairs that are not observed; none of them may be an edge.
    :raises TypeError: for edges that are not integers.

    Example::

        >>> graph = SimpleGraph(4, torch.tensor([[2, 0], [0, 1], [0, 2]]))
        >>> graph, graph.edges.tolist(), graph.degrees.tolist()
        (SimpleGraph(4 nodes, 2 edges), [[0, 1], [0, 2]], [2, 1, 1, 0])
    """

    num_nodes: int
    edges: Tensor
    held_out: HeldOutPairs | None = None

    def __post_init__(self) -> None:
        """Check the arguments, and sort the edges."""
        checks.integer("num_nodes", self.num_nodes, 2)
        edges = self.edges
        if isinstance(edges, Tensor) and edges.dtype == torch.bool:
            raise TypeError(f"edges must be integers, got {edges.dtype}")
        edges = checks.as_tensor(
            "edges", edges, "(num_edges, 2)", kind="integers", allow_empty=True
        )
        wanted = "HeldOutPairs or None"
        checks.optional(checks.instance, "held_out", self.held_out, HeldOutPairs, wanted)
        low, high = edges.long().sort(-1).values.unbind(-1)
        if bool(((low < 0) | (high >= self.num_nodes)).any()):
            raise ValueError(
                f"edges must join nodes in 0 .. {self.num_nodes - 1}, got {int(low.min())} .. "
                f"{int(high.max())}"
            )
        if bool((low == high).any()):
            loop = int(low[low == high][0])
            raise ValueError(f"edges must join different nodes, got a loop at {loop}")
        edges = self._pairs_of((low * self.num_nodes + high).unique())
        object.__setattr__(self, "edges", edges)
        if self.held_out is not None and bool(self.held_out.contains(*edges.T).any()):
            raise ValueError("edges must not be among the pairs that are held out; see hold_out")

    def __repr__(self) -> str:
        """Show the sizes, never the edges."""
        held_out = "" if self.held_out is None else f", {self.held_out.probability:.0%} held out"
        return f"SimpleGraph({self.num_nodes:,} nodes, {self.num_edges:,} edges{held_out})"

    @property
    def num_edges(self) -> int:
        """Number of observed edges."""
        return len(self.edges)

    @property
    def num_pairs(self) -> int:
        """Number of pairs of nodes, observed or not."""
        return self.num_nodes * (self.num_nodes - 1) // 2

    @property
    def observed_fraction(self) -> float:
        """Expected fraction of the pairs that is observed, over seeds."""
        return 1.0 if self.held_out is None else 1.0 - self.held_out.probability

    @property
    def degrees(self) -> Tensor:
        """Number of edges at each node. **Shape:** ``(num_nodes,)``."""
        return self.edges.flatten().bincount(minlength=self.num_nodes)

    def is_observed(self, first: Tensor, second: Tensor) -> Tensor:
        """Tell whether two nodes differ and their pair is not held out.

        :param Tensor first: nodes.
        :param Tensor second: nodes; both broadcast against each other.
        """
        differ = first != second
        return differ if self.held_out is None else differ & ~self.held_out.contains(first, second)

    def has_edge(self, first: Tensor, second: Tensor) -> Tensor:
        """Tell whether there are edges between nodes, by bisection.

        :param Tensor first: nodes. **Shape:** ``(num_pairs,)``.
        :param Tensor second: nodes. **Shape:** ``(num_pairs,)``.
        """
        if not self.num_edges:
            return torch.zeros_like(first, dtype=torch.bool)
        codes = self.edges[:, 0] * self.num_nodes + self.edges[:, 1]
        wanted = torch.minimum(first, second) * self.num_nodes + torch.maximum(first, second)
        index = torch.searchsorted(codes, wanted).clamp(max=self.num_edges - 1)
        return codes[index] == wanted

    def row_blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over all pairs of nodes: blocks of nodes with those from the first of them on.

        Each pair occurs once with the smaller node first; ignore pairs whose first node is not
        smaller.

        :returns: nodes of shapes ``(num_rows, 1)`` and ``(1, num_nodes)``, block after block.
        """
        nodes = torch.arange(self.num_nodes, device=self.edges.device)
        rows = max(1, max(self.num_edges, _LARGEST_BLOCK) // self.num_nodes)
        for start in range(0, self.num_nodes, rows):
            yield nodes[start : start + rows, None], nodes[None, start:]

    def sample_pairs(self, num_pairs: int) -> PairSample:
        r"""Draw pairs for estimates of sums over all observed pairs.

        Both nodes of a pair are drawn independently with probabilities :math:`q_i \propto D_i + 1`,
        where :math:`D_i` are the degrees, so that likely edges are drawn often. The estimate

        .. math:: \sum_{i < j} f_{ij} \approx \frac{1}{n} \sum_{(i, j)} \frac{f_{ij}}{2 q_i q_j}

        is unbiased. The draws come from PyTorch's generator.

        :param int num_pairs: :math:`n`.
        """
        probabilities = self.degrees.double() + 1.0
        probabilities /= probabilities.sum()
        first, second = draw_nodes(probabilities, 2 * num_pairs).view(2, num_pairs)
        density = 2.0 * probabilities[first] * probabilities[second] * num_pairs
        weight = torch.where(self.is_observed(first, second), density.reciprocal(), 0.0)
        return PairSample(first, second, weight)

    def hold_out(
        self, fraction: float, *, seed: int, max_non_edges: int | None = None
    ) -> tuple["SimpleGraph", UnseenPairs]:
        """Hold out a fraction of all observed pairs, edges and non-edges alike.

        :param float fraction: probability that a pair is held out.
        :param int seed: determines the pairs; use another seed if some are already held out.
        :param int max_non_edges: largest number of test pairs without an edge; if there are more,
            the test pairs contain a random sample of them. By default all, whose number is
            quadratic in the number of nodes.
        :returns: the graph without those pairs, and the pairs.
        :raises ValueError: for numbers out of range, or a seed that was used already.

        Example::

            >>> graph = SimpleGraph(50, torch.triu_indices(50, 50, 1).T[:300])
            >>> train, test = graph.hold_out(0.2, seed=0)
            >>> train.num_edges + int(test.is_edge.sum())
            300
        """
        checks.optional(checks.integer, "max_non_edges", max_non_edges, 1)
        held_out = HeldOutPairs(fraction, seed)
        is_out = held_out.contains(*self.edges.T)
        every = HeldOutPairs(fraction, seed, self.held_out)
        train = SimpleGraph(self.num_nodes, self.edges[~is_out], every)
        edges = self.edges[is_out]
        non_edges, weight = self._non_edges(held_out, len(edges), max_non_edges)
        first, second = torch.cat([edges, non_edges]).unbind(-1)
        is_edge = torch.arange(len(first), device=first.device) < len(edges)
        return train, UnseenPairs(first, second, is_edge, torch.where(is_edge, 1.0, weight))

    def _non_edges(
        self, held_out: HeldOutPairs, num_edges: int, most: int | None
    ) -> tuple[Tensor, float]:
        """Pairs without an edge that are held out, and how many pairs each stands for."""
        mean = held_out.fraction * self.observed_fraction * self.num_pairs
        # Where there are enough for certain, as in large graphs, random pairs are looked through.
        if most is not None and mean - num_edges > most + 10.0 * (mean**0.5 + 1.0):
            return self._some_non_edges(held_out, most), (mean - num_edges) / most
        every = self._all_non_edges(held_out)
        if most is None or len(every) <= most:
            return every, 1.0
        generator = self._generator(held_out)
        chosen = torch.randperm(len(every), generator=generator, device=every.device)[:most]
        return every[chosen], len(every) / most

    def _all_non_edges(self, held_out: HeldOutPairs) -> Tensor:
        found = []
        for first, second in self.row_blocks():
            is_out = held_out.contains(first, second) & self.is_observed(first, second)
            rows, columns = (is_out & (first < second)).nonzero().T
            pairs = torch.stack([first[rows, 0], second[0, columns]], -1)
            found.append(pairs[~self.has_edge(*pairs.T)])
        return torch.cat(found)

    def _some_non_edges(self, held_out: HeldOutPairs, number: int) -> Tensor:
        generator = self._generator(held_out)
        codes = torch.empty(0, dtype=torch.int64, device=self.edges.device)
        while len(codes) < number:
            pairs = torch.randint(
                self.num_nodes, (2, 8 * number), generator=generator, device=self.edges.device
            )
            low, high = pairs.sort(0).values
            is_out = held_out.contains(low, high) & self.is_observed(low, high)
            keep = is_out & ~self.has_edge(low, high)
            codes = torch.cat([codes, (low * self.num_nodes + high)[keep]]).unique()
        chosen = torch.randperm(len(codes), generator=generator, device=codes.device)[:number]
        return self._pairs_of(codes[chosen])

    def _pairs_of(self, codes: Tensor) -> Tensor:
        return torch.stack([codes // self.num_nodes, codes % self.num_nodes], -1)

    def _generator(self, held_out: HeldOutPairs) -> torch.Generator:
        return torch.Generator(self.edges.device).manual_seed(held_out.seed)


def on_device_of(graph: SimpleGraph) -> AbstractContextManager[Any]:
    """Put numbers of priors, which know no device, on that of a graph."""
    device = graph.edges.device
    # Where nothing changes, models are recorded without the mode that changes it.
    return nullcontext() if device == torch.get_default_device() else device


def draw_nodes(
    probabilities: Tensor, number: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw nodes, of which there may be more than :func:`torch.multinomial` takes."""
    total = probabilities.cumsum(0)
    uniform = torch.rand(number, dtype=total.dtype, device=total.device, generator=generator)
    return torch.searchsorted(total, uniform * total[-1], right=True).clamp(max=len(total) - 1)
