"""The graph embedding VAE: its bound, padding, order of nodes, training and draws."""

import copy
import math

import networkx
import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Normal
from pyro.infer import SVI, Trace_ELBO

from pyro_ext.models.graphs import GraphEmbeddingVAE, pad_graphs, spectral_embedding

GRAPHS = [
    networkx.barabasi_albert_graph(size, 2, seed=size) for size in (9, 12, 14)
]  # simple spectra
LINKS = ("bernoulli_exponential", "logit")


def small(link="bernoulli_exponential", **options):
    torch.manual_seed(0)
    return GraphEmbeddingVAE(link=link, width=8, num_blocks=1, flow_width=8, **options)


def log_weights(vae, adjacency, mask, x):
    """By hand: of prior, likelihood and guide at an embedding."""
    loc = spectral_embedding(adjacency, mask, vae.dim)
    log_q = Normal(loc, vae.noise).log_prob(x).sum(-1)
    parts = vae.prior(mask).log_prob(x) + vae.decode(x, mask).log_prob(adjacency)
    return parts - torch.where(mask, log_q, 0.0).sum(-1)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.usefixtures("float64")
def test_bound_of_padded_graphs_is_that_of_graphs(link):
    vae, (adjacency, mask) = small(link), pad_graphs(GRAPHS)
    x = vae.guide(adjacency, mask)
    padded = log_weights(vae, adjacency, mask, x)
    guide = poutine.trace(poutine.condition(vae.guide, {"embedding": x}))
    model = poutine.trace(poutine.condition(vae.model, {"embedding": x}))
    traced = [trace.get_trace(adjacency, mask).log_prob_sum() for trace in (model, guide)]
    torch.testing.assert_close(traced[0] - traced[1], padded.sum())
    for index, graph in enumerate(GRAPHS):
        size = len(graph)
        alone = log_weights(vae, *pad_graphs([graph]), x[index : index + 1, :size])
        torch.testing.assert_close(alone[0], padded[index], atol=1e-5, rtol=0)


@pytest.mark.usefixtures("float64")
def test_entropy_of_the_guide():
    """Of 200 draws within 4.4 standard errors: false alarms 1e-5."""
    vae, (adjacency, mask) = small(), pad_graphs(GRAPHS)
    number = int(mask.sum()) * vae.dim
    exact = -number / 2 * (1 + math.log(2 * math.pi * vae.noise**2))
    trace = poutine.trace(vae.guide)
    draws = [trace.get_trace(adjacency, mask).log_prob_sum() for _ in range(200)]
    error = (number / 2 / 200) ** 0.5  # halves of chi-squared variables
    assert abs(float(torch.stack(draws).mean()) - exact) < 4.4 * error


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.usefixtures("float64")
def test_log_likelihood(link):
    """The logarithm of the mean of weights of the same draws."""
    vae, (adjacency, mask) = small(link), pad_graphs(GRAPHS[:1])
    found = vae.log_likelihood(adjacency, mask, 64, seed=0)
    pyro.set_rng_seed(0)
    x = Normal(spectral_embedding(adjacency), vae.noise).sample((64,))
    with torch.no_grad():
        exact = log_weights(vae, adjacency, mask, x).logsumexp(0) - math.log(64)
    torch.testing.assert_close(found, exact)
    assert vae.log_likelihood(adjacency, mask, 1, seed=0) < found


@pytest.mark.usefixtures("float64")
def test_order_of_nodes():
    vae, (adjacency, mask) = small(), pad_graphs(GRAPHS[:1])
    torch.manual_seed(0)
    x = vae.guide(adjacency, mask)
    order = torch.randperm(len(GRAPHS[0]))
    moved = adjacency[:, order][:, :, order]
    for value, other in (
        (vae.prior(mask).log_prob(x), vae.prior(mask).log_prob(x[:, order])),
        (
            vae.decode(x, mask).log_prob(adjacency),
            vae.decode(x[:, order], mask).log_prob(moved),
        ),
    ):
        torch.testing.assert_close(value, other)


def test_flow_and_decoder_do_not_meet():
    """So that the decoder is the same whatever flow it is trained with."""
    adjacency, mask = pad_graphs(GRAPHS)
    gradients = []
    for num_layers in (0, 2):
        vae = small()
        vae.flow = small(num_layers=num_layers).flow
        torch.manual_seed(0)
        vae.loss(adjacency, mask).backward()
        gradients.append([parameter.grad for parameter in vae.decoder.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("link", LINKS)
def test_training(link):
    """By its own loop, the same for the same seed, and by that of Pyro."""
    vae, data = small(link), pad_graphs(GRAPHS)
    twin, other = copy.deepcopy(vae), copy.deepcopy(vae)
    losses = vae.fit(*data, 5, batch_size=2, learning_rate=1e-2, seed=0, progress=False)
    assert sum(losses[-2:]) < sum(losses[:2])
    again = twin.fit(*data, 5, batch_size=2, learning_rate=1e-2, seed=0, progress=False)
    assert losses == again
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(other.model, other.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    steps = [svi.step(*data) for _ in range(5)]
    assert sum(steps[-2:]) < sum(steps[:2])


@pytest.mark.parametrize("link", LINKS)
def test_draws(link):
    vae = small(link)
    graphs = vae.sample([5, 1, 9], seed=0)
    assert [sorted(graph) for graph in graphs] == [list(range(size)) for size in (5, 1, 9)]
    assert not any(networkx.number_of_selfloops(graph) for graph in graphs)
    again = vae.sample([5, 1, 9], seed=0)
    assert all(networkx.utils.graphs_equal(*pair) for pair in zip(graphs, again, strict=True))
