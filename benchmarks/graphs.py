"""Time of densities and draws of random graphs, by the number of their edges.

One distribution of independent edges, by its list of edges and by its adjacency matrix, which only
the smallest graph has the memory for. Graphs have ten edges a node. Quality has the time of a
density and a draw over those of a graph of ten times fewer edges: ten if it is linear. One thread.
"""

from collections.abc import Iterator

import torch
from _common import OURS, Case, Options, Timings, cpu_seconds, in_turn, main

from pyro_ext.distributions import BernoulliExponentialGraph

NUM_EDGES = (10_000, 100_000, 1_000_000)
NUM_FEATURES = 8
DENSE = f"{OURS}, adjacency matrix"


def graph_of(num_edges: int) -> BernoulliExponentialGraph:
    """Rates of which so many edges are expected."""
    torch.manual_seed(0)
    rates = torch.rand(num_edges // 10, NUM_FEATURES).square()
    rates *= (2.0 * num_edges / rates.sum(0).square().sum()).sqrt()
    return BernoulliExponentialGraph(rates, validate_args=False)


def density(num_edges: int, rounds: int) -> Timings:
    """Of one graph."""
    graph = graph_of(num_edges)
    edges = graph.sample_edges()
    sides = {OURS: lambda: cpu_seconds(lambda: graph.log_prob_edges(edges))}
    if num_edges == NUM_EDGES[0]:
        adjacency = graph.sample()
        sides[DENSE] = lambda: cpu_seconds(lambda: graph.log_prob(adjacency))
    return in_turn(sides, rounds)


def draw(num_edges: int, rounds: int) -> Timings:
    """Of one graph."""
    graph = graph_of(num_edges)
    sides = {OURS: lambda: cpu_seconds(graph.sample_edges)}
    if num_edges == NUM_EDGES[0]:
        sides[DENSE] = lambda: cpu_seconds(graph.sample)
    return in_turn(sides, rounds)


def cases(options: Options) -> Iterator[Case]:
    """Densities and draws of each size."""
    for name, measure in (("density", density), ("draw", draw)):
        before = None
        for num_edges in NUM_EDGES[:1] if options.smoke else NUM_EDGES:
            timings = measure(num_edges, options.rounds)
            time = timings.medians()[OURS]
            quality = (
                {} if before is None else {OURS: {"over ten times fewer edges": time / before}}
            )
            yield Case(f"{name} of a graph of {num_edges:,} edges", timings, quality=quality)
            before = time


if __name__ == "__main__":
    main(cases, "s", rounds=9)
