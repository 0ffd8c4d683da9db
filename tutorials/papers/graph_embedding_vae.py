"""Graph embedding VAE: graphs from normal latent variables of their nodes, in any order."""

# %% [markdown]
# # Graph embedding VAE
#
# A model of graphs should not depend on how nodes are numbered. T. Duan, J. Lee (2019), Graph
# embedding VAE: a permutation invariant model of graph structure, begin with what a graph itself
# says about its nodes, the eigenvectors of its Laplacian. A flow that is equivariant maps this
# embedding to independent normal variables, and a network of sets maps it to rates of edges.
# Nothing has to be matched. The likelihood goes over all pairs of nodes, so that it costs the
# square of their number, and the eigenvectors cost its cube.
#
# Here are graphs of two communities, as in the paper, and neighborhoods in real social networks,
# against random graphs of Erdős and Rényi, of Barabási and Albert, and the model without its flow.
#
# `pyro-ext reproduce graph-embedding-vae` runs the page, and so does
# `python tutorials/papers/graph_embedding_vae.py`. Both print a table of claims and save it with
# the figures in `figures/graph-embedding-vae`.

# %%
import copy
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import networkx as nx
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext.diagnostics import graph_mmd
from pyro_ext.models.graphs import (
    EquivariantSplineFlow,
    GraphEmbeddingVAE,
    pad_graphs,
    spectral_embedding,
)
from pyro_ext.reproduction import Page

page = Page(
    "graph-embedding-vae",
    paper="T. Duan, J. Lee (2019), Graph embedding VAE: a permutation invariant model of graph "
    "structure, arXiv 1910.08057",
)
SEEDS = page.seeds
BLUE, GRAY = "#2a6f97", "#8d99ae"

# %% [markdown]
# ## Two communities
#
# A graph has 12 to 20 nodes in two halves. Inside a half any two nodes have an edge with
# probability 0.7; a single edge joins the halves. There are 300 of them to train on and 100 to
# compare with, other ones for each seed.

# %%
NUM_TRAIN, NUM_TEST = page.length((300, 100), smoke=(12, 6))


class Split(NamedTuple):
    """Graphs to train on and to compare with."""

    train: list[Any]
    test: list[Any]


def community(rng: random.Random) -> Any:
    """A connected graph of two communities, whose nodes are in random order."""
    while True:
        size = rng.randint(12, 20)
        half = size // 2
        graph = nx.disjoint_union(
            nx.gnp_random_graph(half, 0.7, seed=rng),
            nx.gnp_random_graph(size - half, 0.7, seed=rng),
        )
        graph.add_edge(rng.randrange(half), rng.randrange(half, size))
        if nx.is_connected(graph):
            order = rng.sample(range(size), size)
            shuffled = nx.empty_graph(size)
            shuffled.add_edges_from((order[a], order[b]) for a, b in graph.edges)
            return shuffled


def communities(seed: int) -> Split:
    """Graphs of a seed."""
    rng = random.Random(seed)
    graphs = [community(rng) for _ in range(NUM_TRAIN + NUM_TEST)]
    return Split(graphs[:NUM_TRAIN], graphs[NUM_TRAIN:])


# %% [markdown]
# ## What is compared
#
# The networks are smaller than the paper's, and trained by 600 steps of 32 graphs. The flow and the
# decoder of edges have no parameter in common, and add up in the bound: so the model without the
# flow is that with the same decoder and a normal embedding, whose mean over the nodes is near zero
# as that of eigenvectors is; the flow begins there. Rivals have the density of the training graphs,
# and the sizes of the graphs they are compared with. As in the paper the largest component of a
# generated graph counts.


# %%
class Scores(NamedTuple):
    """Nats for a pair of nodes."""

    total: float
    edges: float


def trained(
    graphs: Sequence[Any], num_steps: int, learning_rate: float, seed: int
) -> GraphEmbeddingVAE:
    """A model of graphs."""
    torch.manual_seed(seed)
    vae = GraphEmbeddingVAE()
    adjacency, mask = pad_graphs(graphs)
    options: dict[str, Any] = dict(batch_size=min(32, len(graphs)), learning_rate=learning_rate)
    vae.fit(adjacency, mask, num_steps, **options, seed=seed, progress=False)
    return vae


def without_flow(vae: GraphEmbeddingVAE) -> GraphEmbeddingVAE:
    """The same decoder, and a normal embedding."""
    other = copy.deepcopy(vae)
    other.flow = EquivariantSplineFlow(vae.dim, 0, mean_scale=1.0 / vae.noise)
    return other


@torch.no_grad()
def scores(vae: GraphEmbeddingVAE, graphs: Sequence[Any], seed: int) -> Scores:
    """Negative log likelihood by 128 importance draws, and what edges cost given embeddings."""
    adjacency, mask = pad_graphs(graphs)
    pairs = mask.sum(-1) * (mask.sum(-1) - 1) / 2
    likelihood = vae.log_likelihood(adjacency, mask, page.length(128, smoke=4), seed=seed)
    torch.manual_seed(seed)
    edges = vae.decode(vae.guide(adjacency, mask), mask).log_prob(adjacency)
    return Scores(*(-float((value / pairs).mean()) for value in (likelihood, edges)))


def largest_component(graph: Any) -> Any:
    """The largest connected part."""
    return graph.subgraph(max(nx.connected_components(graph), key=len))


def generated(vae: GraphEmbeddingVAE, split: Split, seed: int) -> dict[str, list[Any]]:
    """Graphs of all that are compared, as large as the test graphs."""
    rng = random.Random(seed)
    sizes = [len(graph) for graph in split.test]
    num_pairs = sum(len(graph) * (len(graph) - 1) / 2 for graph in split.train)
    num_edges, num_nodes = (
        sum(count(g) for g in split.train) for count in (nx.number_of_edges, nx.number_of_nodes)
    )
    density, new_edges = num_edges / num_pairs, round(num_edges / num_nodes)
    drawn = {
        "ours": vae.sample(sizes, seed=seed),
        "without flow": without_flow(vae).sample(sizes, seed=seed),
        "Erdős-Rényi": [nx.gnp_random_graph(size, density, seed=rng) for size in sizes],
        "Barabási-Albert": [nx.barabasi_albert_graph(n, new_edges, seed=rng) for n in sizes],
    }
    return {name: [largest_component(g) for g in graphs] for name, graphs in drawn.items()}


def distances(split: Split, drawn: dict[str, list[Any]]) -> dict[str, dict[str, float]]:
    """Squared discrepancies from the test graphs."""
    return {
        name: {kind: graph_mmd(split.test, graphs, kind) for kind in ("degree", "clustering")}
        for name, graphs in {**drawn, "training graphs": split.train}.items()
    }


class Comparison(NamedTuple):
    """All that is measured for a seed."""

    split: Split
    vae: GraphEmbeddingVAE
    with_flow: Scores
    without_flow: Scores
    drawn: dict[str, list[Any]]
    distances: dict[str, dict[str, float]]


def compare(split: Split, num_steps: int, learning_rate: float, seed: int) -> Comparison:
    """Train, score and generate."""
    vae = trained(split.train, num_steps, learning_rate, seed)
    own, other = (scores(model, split.test, seed) for model in (vae, without_flow(vae)))
    drawn = generated(vae, split, seed)
    return Comparison(split, vae, own, other, drawn, distances(split, drawn))


def show(found: dict[int, Comparison]) -> None:
    """Tables of bounds and of discrepancies."""
    rows = {"with flow": "with_flow", "without flow": "without_flow"}
    bounds = {
        f"{name}, seed {seed}": getattr(one, field)._asdict()
        for seed, one in found.items()
        for name, field in rows.items()
    }
    page.table(bounds, title="nats per pair of nodes")
    table = {
        f"{name}, seed {seed}": row
        for seed, one in found.items()
        for name, row in one.distances.items()
    }
    page.table(table, title="squared discrepancy")


NUM_STEPS = page.length(600, smoke=3)
on_communities = {seed: compare(communities(seed), NUM_STEPS, 3e-3, seed) for seed in SEEDS}
show(on_communities)

# %%
page.claim(
    "On graphs of two communities the flow makes test graphs more likely than a normal embedding "
    "does (difference in nats per pair of nodes).",
    {seed: one.without_flow.total - one.with_flow.total for seed, one in on_communities.items()},
    ">",
    0.2,
    source="Duan and Lee (2019): a flow as the prior of the embedding; bound preregistered",
)
page.claim(
    "Given the embedding an edge costs about half of what it does at a fixed density, which is "
    "0.64 (nats per pair of nodes).",
    {seed: one.with_flow.edges for seed, one in on_communities.items()},
    "<",
    0.35,
    source="Duan and Lee (2019): edges by inner products of the embedding; bound preregistered",
)
page.claim(
    "Clustering of generated graphs is four times nearer to that of test graphs than that of "
    "Erdős-Rényi graphs (ratio of squared discrepancies).",
    {
        seed: one.distances["ours"]["clustering"] / one.distances["Erdős-Rényi"]["clustering"]
        for seed, one in on_communities.items()
    },
    "<",
    0.25,
    source="Duan and Lee (2019), experiments on communities; bound preregistered",
)
page.claim(
    "Clustering of generated graphs is near to that of test graphs (squared discrepancy).",
    {seed: one.distances["ours"]["clustering"] for seed, one in on_communities.items()},
    "<",
    0.2,
    source="Duan and Lee (2019), experiments on communities; bound preregistered",
)
page.claim(
    "Degrees of generated graphs are nearer to those of test graphs than those of Erdős-Rényi "
    "graphs (ratio of squared discrepancies).",
    {
        seed: one.distances["ours"]["degree"] / one.distances["Erdős-Rényi"]["degree"]
        for seed, one in on_communities.items()
    },
    "<",
    1.0,
    source="Duan and Lee (2019), experiments on communities; bound preregistered",
)

# %% [markdown]
# Generated graphs have two halves, but often no edge between them, where test graphs have just one:
# given the embedding edges are independent, and one of a hundred pairs is easily missed.


# %%
def draw(name: str, one: Comparison) -> None:
    """Graphs of each kind side by side."""
    rows = {"test graphs": one.split.test, **one.drawn}
    figure, panels = plt.subplots(len(rows), 6, figsize=(7.6, 6.4), layout="constrained")
    for panel_row, (label, graphs) in zip(panels, rows.items(), strict=True):
        panel_row[0].set_title(label, loc="left", fontsize=9)
        color = GRAY if label == "test graphs" else BLUE
        for panel, graph in zip(panel_row, graphs, strict=False):
            layout = nx.spring_layout(graph, seed=0)
            nx.draw(graph, layout, panel, node_size=14, node_color=color, edge_color="0.75")
        for panel in panel_row:
            panel.set_axis_off()
    page.figure(name, figure)


draw("communities", on_communities[SEEDS[0]])

# %% [markdown]
# ## The order of the nodes
#
# Nodes of test graphs are renumbered. With the same noise at each node the bound is the same,
# wherever the embedding is: that is where the first eigenvalues differ, and no column is
# symmetric. It is not so where two nodes have the same neighbors, for one: in a column that tells
# them apart the sign is anybody's. The likelihood does not depend on it, a bound of few draws does.


# %%
@torch.no_grad()
def bound(vae: GraphEmbeddingVAE, adjacency: Tensor, noise: Tensor) -> Tensor:
    """Evidence lower bound of one draw of the guide."""
    mask = torch.ones(noise.shape[:-1], dtype=torch.bool)
    loc = spectral_embedding(adjacency, mask, vae.dim)
    x = loc + vae.noise * noise
    log_q = dist.Normal(loc, vae.noise).to_event(2).log_prob(x)
    value: Tensor = vae.prior(mask).log_prob(x) + vae.decode(x).log_prob(adjacency) - log_q
    return value


def largest_change(one: Comparison, seed: int) -> float:
    """Of the bound of test graphs whose nodes are renumbered, in nats."""
    generator = torch.Generator().manual_seed(seed)
    vae, changes = copy.deepcopy(one.vae).double(), []
    for graph in one.split.test:
        ((adjacency,), _) = pad_graphs([graph], dtype=torch.float64)
        values = torch.linalg.eigvalsh(torch.diag(adjacency.sum(-1)) - adjacency)
        cubes = spectral_embedding(adjacency, dim=vae.dim).pow(3).mean(0)
        if values[1 : vae.dim + 2].diff().min() < 1e-6 or cubes.min() < 1e-6:
            continue
        noise = torch.randn(len(graph), vae.dim, generator=generator, dtype=torch.float64)
        order = torch.randperm(len(graph), generator=generator)
        moved = bound(vae, adjacency[order][:, order], noise[order])
        changes.append(float((bound(vae, adjacency, noise) - moved).abs()))
    print(f"seed {seed}: {len(changes)} of {len(one.split.test)} graphs renumbered")
    return max(changes)


page.claim(
    "The bound does not depend on the order of the nodes (largest change over test graphs, in "
    "nats).",
    {seed: largest_change(one, seed) for seed, one in on_communities.items()},
    "<",
    1e-4,
    source="Duan and Lee (2019), title; bound preregistered",
)

# %% [markdown]
# ## Neighborhoods in real networks
#
# All that is within one step of a character of Les Misérables, and within two of a member of
# Zachary's karate club, of a woman or an event in Davis' study of the South, and of a Florentine
# family: of 6 to 30 nodes, and without those that come twice. Three quarters are for training, 65
# graphs. There are half of the steps, of a third of the size: those from above are too many for so
# few, and edges of test graphs then cost up to 3.2 nats, where at a fixed density it is 0.7.

# %%
SOURCES = {
    nx.les_miserables_graph: 1,
    nx.karate_club_graph: 2,
    nx.davis_southern_women_graph: 2,
    nx.florentine_families_graph: 2,
}


def neighborhoods() -> list[Any]:
    """Different graphs, without attributes of nodes and edges."""
    found = {}
    for load, radius in SOURCES.items():
        network = load()
        for node in network:
            near = nx.ego_graph(network, node, radius=radius)
            if 6 <= len(near) <= 30:
                # In the order of the network: that of a set of names is another one in each run.
                graph = nx.empty_graph([other for other in network if other in near])
                graph.add_edges_from(near.edges)
                found[load.__name__, frozenset(graph)] = graph
    return list(found.values())


def split_of(graphs: list[Any], seed: int) -> Split:
    """Three quarters, and the rest."""
    order = random.Random(seed).sample(graphs, len(graphs))
    number = 3 * len(order) // 4
    return Split(order[:number], order[number:])


real = neighborhoods()
print(f"{len(real)} graphs")
NUM_REAL_STEPS = page.length(300, smoke=3)
on_real = {seed: compare(split_of(real, seed), NUM_REAL_STEPS, 1e-3, seed) for seed in SEEDS}
show(on_real)
draw("real", on_real[SEEDS[0]])

# %%
page.claim(
    "On neighborhoods in real networks the flow makes test graphs more likely than a normal "
    "embedding does (difference in nats per pair of nodes).",
    {seed: one.without_flow.total - one.with_flow.total for seed, one in on_real.items()},
    ">",
    0.1,
    source="Duan and Lee (2019): a flow as the prior of the embedding; data and bound "
    "preregistered",
    reason="the bound was set for a rival whose embedding has a free mean, which costs it 0.16 "
    "nats more; with its mean near zero the rival is better, and 65 graphs are few to train on",
)
page.claim(
    "On neighborhoods in real networks clustering of generated graphs is nearer to that of test "
    "graphs than that of Erdős-Rényi graphs (ratio of squared discrepancies).",
    {
        seed: one.distances["ours"]["clustering"] / one.distances["Erdős-Rényi"]["clustering"]
        for seed, one in on_real.items()
    },
    "<",
    1.0,
    source="Duan and Lee (2019), experiments on ego networks; data and bound preregistered",
)

# %%
page.finish({"graphs": {"training": NUM_TRAIN, "test": NUM_TEST, "real": len(real)}})
