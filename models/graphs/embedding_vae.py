"""A generative model of graphs with a latent embedding of each node, and its guide."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Unpack, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module
from pyro_ext.distributions import BernoulliExponentialGraph, LogitGraph
from pyro_ext.inference.training import ShuffledBatches, Trainer, TrainingOptions
from pyro_ext.models.graphs.embedding import Sign, check_graphs, spectral_embedding
from pyro_ext.models.graphs.flow import EquivariantSplineFlow, SetNetwork
from pyro_ext.random import seeded

Link = Literal["bernoulli_exponential", "logit"]

_SHAPE = "(num_graphs, num_nodes, num_nodes)"
_LEAST_RATE = 1e-4  # without which an edge may be impossible


class GraphEmbeddingVAE(PyroModule):
    r"""Graphs of any size from independent normal latent variables of their nodes [1].

    An equivariant flow :math:`f` maps the embedding :math:`x` of the nodes to standard normal
    variables, and a set network maps it to the features of a graph's distribution:

    .. math:: f(x)_i \sim \mathcal{N}(0, I), \qquad
              A \mid x \sim \text{BernoulliExponentialGraph}(r(x)).

    The guide is fixed: the spectral embedding of the graph with a little noise, :math:`q(x \mid A)
    = \mathcal{N}(e(A), s^2)`. Model and guide depend on the order of nodes no more than the
    embedding does, so that bounds of the likelihood are those of the graph, without matching nodes.
    Flow and decoder share no parameters, and their terms add up in the bound.

    :param int dim: number of features of an embedding, which must be even.
    :param int num_layers: number of layers of the flow; with zero, the embedding is normal with a
        mean near zero.
    :param str link: ``"bernoulli_exponential"``, or ``"logit"`` as in the code of [1].
    :param float noise: :math:`s`; columns of the embedding have a mean square of one. Bounds with
        different noise are not comparable.
    :param int width: width of the decoder, a multiple of 4.
    :param int num_blocks: number of attention blocks of the decoder.
    :param int flow_width: width of the networks of the flow.
    :param int num_bins: number of bins of the splines of the flow.
    :param str sign: sign of the columns in training, as for
        :func:`~pyro_ext.models.graphs.spectral_embedding`.
    :raises ValueError: for arguments out of range.

    [1] T. Duan, J. Lee (2019),
    Graph embedding VAE: a permutation invariant model of graph structure.

    Example::

        >>> import networkx
        >>> from pyro_ext.models.graphs import GraphEmbeddingVAE, pad_graphs
        >>> graphs = [networkx.barabasi_albert_graph(8 + i, 2, seed=i) for i in range(4)]
        >>> vae = GraphEmbeddingVAE(width=16, num_blocks=1, flow_width=8)
        >>> losses = vae.fit(*pad_graphs(graphs), num_steps=3, batch_size=2, seed=0, progress=False)
        >>> vae.log_likelihood(*pad_graphs(graphs), num_particles=8).shape
        torch.Size([4])
        >>> [len(graph) for graph in vae.sample([8, 11], seed=0)]
        [8, 11]
    """

    def __init__(
        self,
        dim: int = 4,
        num_layers: int = 2,
        link: Link = "bernoulli_exponential",
        noise: float = 0.05,
        *,
        width: int = 48,
        num_blocks: int = 3,
        flow_width: int = 32,
        num_bins: int = 8,
        sign: Sign = "cubes",
    ) -> None:
        super().__init__()
        self.dim = checks.integer("dim", dim, 2)
        checks.choice("link", link, get_args(Link))
        checks.choice("sign", sign, get_args(Sign))
        checks.integer("flow_width", flow_width, 1)
        self.link, self.sign = link, sign
        self.noise = checks.number("noise", noise, above=0)
        # Means of columns are zero but for the noise.
        self.flow = EquivariantSplineFlow(
            dim, num_layers, mean_scale=1.0 / noise, num_bins=num_bins, width=flow_width
        )
        self.decoder = SetNetwork(dim, width, width, num_blocks, num_heads=4, layer_norm=True)
        self.bias = nn.Parameter(torch.tensor(-2.0))  # few edges to begin with
        if link == "logit":
            self.log_scale = nn.Parameter(torch.tensor(0.0))

    @pyro_method
    def model(self, adjacency: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """The model: the sites ``"embedding"`` and ``"adjacency"`` in the plate ``"graph"``.

        :param Tensor adjacency: graphs, or ``None`` to draw them.
            **Shape:** ``(num_graphs, num_nodes, num_nodes)``.
        :param Tensor mask: booleans, true for nodes and false for padding; without graphs, it sets
            the numbers of nodes. **Shape:** ``(num_graphs, num_nodes)``.
        :returns: the embedding. **Shape:** ``(num_graphs, num_nodes, dim)``.
        """
        if adjacency is None:
            mask = checks.as_tensor("mask", mask, "(num_graphs, num_nodes)", kind="booleans")
        else:
            adjacency, mask = check_graphs(adjacency, mask, _SHAPE, self.bias)
        with pyro.plate("graph", len(mask)):
            x: Tensor = pyro.sample("embedding", self.prior(mask))
            pyro.sample("adjacency", self.decode(x, mask), obs=adjacency)
        return x

    @pyro_method
    def guide(self, adjacency: Tensor, mask: Tensor | None = None) -> Tensor:
        """The guide, which has no parameters; arguments and result as for :meth:`model`."""
        adjacency, mask = check_graphs(adjacency, mask, _SHAPE, self.bias)
        loc = spectral_embedding(adjacency, mask, self.dim, sign=self.sign)
        normal = dist.Normal(loc, self.noise).mask(mask[..., None]).to_event(2)
        with pyro.plate("graph", len(adjacency)):
            x: Tensor = pyro.sample("embedding", normal)
        return x

    def prior(self, mask: Tensor) -> Any:
        """Distribution of embeddings.

        :param Tensor mask: booleans, true for nodes. **Shape:** ``(*batch, num_nodes)``.
        :returns: a distribution with batch shape ``(*batch)`` and event shape ``(num_nodes,
            dim)``.
        """
        mask = checks.as_tensor("mask", mask, "(*batch, num_nodes)", kind="booleans")
        zero = torch.zeros((*mask.shape, self.dim), device=mask.device, dtype=self.bias.dtype)
        normal = dist.Normal(zero, 1.0).mask(mask[..., None]).to_event(2)
        return dist.TransformedDistribution(normal, [self.flow.condition(mask).inv])

    def decode(
        self, embedding: Tensor, mask: Tensor | None = None
    ) -> BernoulliExponentialGraph | LogitGraph:
        """Distribution of graphs given embeddings of their nodes.

        :param Tensor embedding: **Shape:** ``(*batch, num_nodes, dim)``.
        :param Tensor mask: booleans, true for nodes. **Shape:** ``(*batch, num_nodes)``.
        """
        shape = f"(*batch, num_nodes, {self.dim})"
        embedding = checks.as_tensor("embedding", embedding, shape, like=self.bias, finite=True)
        if mask is not None:
            mask = checks.as_tensor(
                "mask", mask, f"(*batch, {embedding.shape[-2]})", kind="booleans"
            )
        features = self.decoder(embedding, mask)
        if self.link == "logit":
            return LogitGraph(features, self.log_scale, self.bias, mask)
        return BernoulliExponentialGraph(softplus(features + self.bias) + _LEAST_RATE, mask)

    def loss(self, adjacency: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the negative bound per pair of nodes in nats, averaged over graphs.

        It is Pyro's :class:`~pyro.infer.Trace_ELBO`; arguments as for :meth:`model`.
        """
        adjacency, mask = check_graphs(adjacency, mask, _SHAPE, self.bias)
        number = mask.sum(-1)
        scale = 2.0 / (len(adjacency) * number * (number - 1)).clamp(min=1).to(adjacency)
        model, guide = poutine.scale(self.model, scale), poutine.scale(self.guide, scale)
        loss: Tensor = Trace_ELBO().differentiable_loss(model, guide, adjacency, mask)
        return loss

    def fit(
        self,
        adjacency: Tensor,
        mask: Tensor | None = None,
        num_steps: int = 600,
        *,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        seed: int | None = None,
        **training: Unpack[TrainingOptions],
    ) -> list[float]:
        """Train with Adam, with a learning rate that falls to zero along a cosine.

        :param Tensor adjacency: **Shape:** ``(num_graphs, num_nodes, num_nodes)``.
        :param Tensor mask: booleans, true for nodes. **Shape:** ``(num_graphs, num_nodes)``.
        :param int num_steps: number of steps.
        :param int batch_size: number of graphs of a step; those that do not fill a minibatch are
            left out of the epoch.
        :param float learning_rate: learning rate of the first step.
        :param int seed: seed of minibatches and noise.
        :param training: options of :class:`~pyro_ext.inference.training.TrainingOptions`.
        :returns: the loss of every step.
        :raises TrainingDiverged: if loss or gradient are not finite.
        """
        adjacency, mask = check_graphs(adjacency, mask, _SHAPE, self.bias)
        checks.integer("num_steps", num_steps, 0)
        checks.number("learning_rate", learning_rate, above=0)
        trainer = Trainer(
            self,
            partial(torch.optim.Adam, lr=learning_rate, weight_decay=1e-5, fused=True),
            scheduler=partial(CosineAnnealingLR, T_max=max(num_steps, 1)),
            seed=seed,
        )
        batches = ShuffledBatches(adjacency, mask, batch_size=batch_size, drop_last=True)
        name = type(self).__name__
        return trainer.run(self.loss, num_steps, batches, description=name, **training)

    @torch.no_grad()
    def log_likelihood(
        self,
        adjacency: Tensor,
        mask: Tensor | None = None,
        num_particles: int = 128,
        *,
        seed: int | None = None,
    ) -> Tensor:
        r"""Compute a lower bound of the log likelihood of each graph by importance weighting.

        .. math:: \log \frac1K \sum_k \frac{p(x_k) p(A \mid x_k)}{q(x_k \mid A)}

        With one particle, it is the evidence lower bound. It is Pyro's
        :class:`~pyro.infer.RenyiELBO` of order zero.

        :param Tensor adjacency: **Shape:** ``(num_graphs, num_nodes, num_nodes)``.
        :param Tensor mask: booleans, true for nodes. **Shape:** ``(num_graphs, num_nodes)``.
        :param int num_particles: :math:`K`.
        :param int seed: seed of the draws; by default they come from PyTorch's generator.
        :returns: the bound in nats. **Shape:** ``(num_graphs,)``.
        """
        adjacency, mask = check_graphs(adjacency, mask, _SHAPE, self.bias)
        checks.integer("num_particles", num_particles, 1)
        elbo = RenyiELBO(
            alpha=0, num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True
        )
        with seeded(seed):
            # One by one: the weights of a particle would be those of all graphs of a plate.
            values = [
                -elbo.loss(self.model, self.guide, matrix[here][:, here][None])
                for matrix, here in zip(adjacency, mask, strict=True)
            ]
        return adjacency.new_tensor(values)

    @torch.no_grad()
    def sample(self, sizes: Sequence[int], *, seed: int | None = None) -> list[Any]:
        """Draw graphs; with the Bernoulli-exponential link, in time linear in nodes and edges.

        :param Sequence sizes: number of nodes of each graph.
        :param int seed: seed of the draws; by default they come from PyTorch's generator.
        :returns: networkx graphs.
        """
        networkx = optional_module("networkx", "sample", "networkx", "graphs")
        sizes = [
            checks.integer(f"sizes[{index}]", size, 1)
            for index, size in enumerate(checks.sequence("sizes", sizes, "a list of numbers"))
        ]
        number = torch.tensor(sizes, device=self.bias.device)[:, None]
        mask = torch.arange(max(sizes), device=number.device) < number
        with seeded(seed):
            decoded = self.decode(self.prior(mask).sample(), mask)
            if isinstance(decoded, BernoulliExponentialGraph):
                edges = [
                    BernoulliExponentialGraph(rates[:size]).sample_edges()
                    for rates, size in zip(decoded.rates, sizes, strict=True)
                ]
            else:
                edges = [matrix.triu().nonzero() for matrix in decoded.sample()]
        graphs = [networkx.empty_graph(size) for size in sizes]
        for graph, pairs in zip(graphs, edges, strict=True):
            graph.add_edges_from(pairs.tolist())
        return graphs
