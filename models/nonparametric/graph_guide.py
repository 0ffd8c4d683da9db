"""Variational inference for graph models with gamma approximations, and its initialization.

Numbers in brackets refer to the papers in the docstring of the package.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_median
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints
from torch.optim.lr_scheduler import ExponentialLR

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module
from pyro_ext.distributions import RectifiedGamma
from pyro_ext.inference.training import Trainer
from pyro_ext.models.nonparametric.graph_model import (
    EdgeOdds,
    GraphModel,
    MixedMembership,
    check_num_nodes,
)
from pyro_ext.models.nonparametric.graph_pairs import SimpleGraph, on_device_of
from pyro_ext.random import fresh_seed, seeded

_OWN_PROPORTION = 0.9  # of a node in the community where it starts


def spectral_memberships(graph: SimpleGraph, num_communities: int, *, seed: int = 0) -> Tensor:
    r"""Find memberships by regularized spectral clustering [4].

    Nodes are clustered by the directions of their rows in the largest eigenvectors of
    :math:`D_\tau^{-1/2} A D_\tau^{-1/2}`. In :math:`D_\tau`, the mean degree is added to each
    degree, so that neither large nor small degrees dominate.

    :param SimpleGraph graph: the graph.
    :param int num_communities: at least two, and fewer than there are nodes.
    :param int seed: seed of the initial eigenvectors and clusters.
    :returns: **Shape:** ``(num_nodes, num_communities)``.
    :raises ImportError: if scikit-learn is not installed; the message names the extra to install.

    Example::

        >>> from pyro_ext.models.nonparametric import SimpleGraph
        >>> triangles = torch.tensor([[0, 1], [0, 2], [1, 2], [3, 4], [3, 5], [4, 5], [2, 3]])
        >>> group = spectral_memberships(SimpleGraph(6, triangles), 2).argmax(-1)
        >>> (group == group[0]).tolist()
        [True, True, True, False, False, False]
    """
    checks.instance("graph", graph, SimpleGraph, "a SimpleGraph")
    checks.integer("seed", seed, 0)
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import eigsh

    cluster = optional_module("sklearn.cluster", "spectral_memberships", "scikit-learn", "data")
    checks.integer("num_communities", num_communities, 2)
    if num_communities >= graph.num_nodes:
        raise ValueError(
            f"num_communities must be less than the number of nodes, {graph.num_nodes}, got "
            f"{num_communities}"
        )
    degrees = graph.degrees.cpu().double().numpy()
    root = 1.0 / np.sqrt(degrees + max(degrees.mean(), 1e-12))
    first, second = graph.edges.cpu().numpy().T
    values = root[first] * root[second]
    shape = (graph.num_nodes, graph.num_nodes)
    half = coo_array((values, (first, second)), shape=shape)
    start = np.random.RandomState(seed).standard_normal(graph.num_nodes)
    _, vectors = eigsh((half + half.T).tocsr(), k=num_communities, which="LA", v0=start)
    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    labels = cluster.KMeans(num_communities, n_init=10, random_state=seed).fit(rows).labels_
    rest = (1.0 - _OWN_PROPORTION) / (num_communities - 1)
    memberships = torch.full(shape[:1] + (num_communities,), rest)
    memberships[torch.arange(graph.num_nodes), torch.from_numpy(labels).long()] = _OWN_PROPORTION
    return memberships.to(graph.edges.device)


_INITIAL_MEMBERSHIP = 2.0
_RATE_CONCENTRATION = 10.0
_LAST_RATE = 0.05


class GraphGuide(PyroModule):
    r"""Mean-field guide of a :class:`GraphModel` with gamma distributions [3].

    Weights are gamma variables, clipped at the upper end of the prior's support, if there is one.
    Hyperparameters are point estimates, as in [3]. Memberships are Dirichlet variables, which are
    normalized gamma variables, and rates of communities are gamma variables.

    The guide draws one sample at a time: :class:`~pyro.infer.Trace_ELBO` can use several particles,
    but not with ``vectorize_particles``.

    The guide starts from the degrees :math:`D_i`, at weights
    :math:`\text{Gamma}(D_i + \tfrac12, 1)`, which are close to the posterior if edges are rare.

    :param GraphModel model: the model.
    :param SimpleGraph graph: the graph.
    :param Tensor memberships: initial memberships, rows that sum to one, for example from
        :func:`spectral_memberships`. The default, random memberships, seldom ends well. **Shape:**
        ``(num_nodes, num_communities)``.
    :param int seed: seed of the initialization and of the draws of :meth:`fit`.
    :raises TypeError: if model or graph are something else.
    :raises ValueError: for memberships that do not fit, or a model for graphs of another size.

    Example::

        >>> from pyro_ext.models.nonparametric import bfry_weights, sample_graph
        >>> graph = sample_graph(EdgeOdds(torch.rand(30).reciprocal()), seed=0)
        >>> model = GraphModel(bfry_weights(30))
        >>> guide = GraphGuide(model, graph, seed=0).fit(num_steps=20, progress=False)
        >>> guide.sample(5)["weights"].shape
        torch.Size([5, 30])
    """

    def __init__(
        self,
        model: GraphModel,
        graph: SimpleGraph,
        *,
        memberships: Tensor | None = None,
        seed: int | None = None,
    ) -> None:
        checks.instance("model", model, GraphModel, "a GraphModel")
        checks.instance("graph", graph, SimpleGraph, "a SimpleGraph")
        check_num_nodes(model.prior, graph)
        with _local_parameters(), seeded(seed), on_device_of(graph):
            super().__init__(name=type(self).__name__)
            self.model, self.graph, self.seed = model, graph, seed
            self._next_seed = seed
            self.losses: list[float] = []
            self.hyperparameters = AutoDelta(model.prior, init_loc_fn=init_to_median)
            with poutine.block(), torch.no_grad():
                self.high = getattr(model.prior(), "high", None)
            degrees = graph.degrees.to(torch.get_default_dtype())
            self.concentration: Any = PyroParam(degrees + 0.5, constraints.positive)
            rate = torch.full_like(degrees, graph.observed_fraction)
            self.rate: Any = PyroParam(rate, constraints.positive)
            if model.communities is not None:
                self._add_communities(model.communities, memberships)
            elif memberships is not None:
                raise ValueError(
                    "memberships must be None, since the model has no communities, got "
                    f"{checks.shown(memberships)}"
                )

    def _add_communities(self, communities: MixedMembership, memberships: Tensor | None) -> None:
        number = communities.num_communities
        start = _start(self.graph.num_nodes, number, memberships)
        self.membership: Any = PyroParam(start, constraints.positive)
        concentrated = start.new_full((communities.num_rates,), _RATE_CONCENTRATION)
        self.rate_concentration: Any = PyroParam(concentrated, constraints.positive)
        self.rate_rate: Any = PyroParam(concentrated.clone(), constraints.positive)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw the sites of the model.

        :param args: arguments of the model, which are ignored.
        :param kwargs: keyword arguments of the model.
        :returns: values by name.
        :raises ValueError: under vectorized particles.
        """
        with on_device_of(self.graph):
            values: dict[str, Tensor] = dict(self.hyperparameters())
        num_nodes, communities = self.graph.num_nodes, self.model.communities
        with pyro.plate("nodes", num_nodes):
            if self.high is None:
                weights: Any = dist.Gamma(self.concentration, self.rate)
            else:
                weights = _ScarceAtom(self.concentration, self.rate, self.high)
            values["weights"] = pyro.sample("weights", weights)
        if values["weights"].dim() > 1:
            raise ValueError(
                "a GraphGuide must run outside of other plates, and Trace_ELBO with "
                "vectorize_particles=False, got weights of shape "
                f"{tuple(values['weights'].shape)}"
            )
        if communities is not None:
            with pyro.plate("members", num_nodes):
                memberships = dist.Dirichlet(self.membership)
                values["memberships"] = pyro.sample("memberships", memberships)
            with pyro.plate("pairs_of_communities", communities.num_rates):
                rates = dist.Gamma(self.rate_concentration, self.rate_rate)
                values["rates"] = pyro.sample("rates", rates)
        return values

    def fit(
        self,
        num_steps: int = 2_000,
        *,
        learning_rate: float = 0.05,
        num_edges: int | None = None,
        num_pairs: int | None = None,
        progress: bool = True,
    ) -> "GraphGuide":
        """Maximize the evidence lower bound with Adam; the learning rate falls to a twentieth.

        It continues from the current state of the guide, with new random numbers. Ctrl-C keeps
        whole steps.

        :param int num_steps: number of steps.
        :param float learning_rate: learning rate of the first step.
        :param int num_edges: number of edges of a minibatch; by default all.
        :param int num_pairs: number of random pairs of a minibatch; by default all pairs.
        :param bool progress: whether to show a progress bar.
        :returns: the guide, with the loss of each step in ``losses``.
        :raises TrainingDiverged: if loss or gradient are not finite.
        """
        checks.integer("num_steps", num_steps, 1)
        checks.number("learning_rate", learning_rate, above=0)
        arguments = {"num_edges": num_edges, "num_pairs": num_pairs}
        with seeded(self._next_seed), _local_parameters(), ExitStack() as unchecked:
            model: Any = self.model
            loss = Trace_ELBO()(model, self)
            loss(self.graph, **arguments)  # makes the parameters of the inner guide
            # What that call has checked is checked no more, as in Pyro's MCMC after warm-up.
            unchecked.enter_context(pyro.validation_enabled(False))
            optimizer = partial(torch.optim.Adam, lr=learning_rate)
            scheduler = partial(ExponentialLR, gamma=_LAST_RATE ** (1 / num_steps))
            trainer = Trainer(loss, optimizer, scheduler=scheduler)
            objective = partial(loss, self.graph, **arguments)
            try:
                trainer.run(objective, num_steps, progress=progress, description="ELBO")
            finally:
                self.losses += trainer.losses
            self._next_seed = None if self.seed is None else fresh_seed(None)
        return self

    def sample(self, num_samples: int, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draw from the guide.

        :param int num_samples: number of draws.
        :param int seed: seed of the draws; by default they come from PyTorch's generator.
        :returns: the sites of the model by name. **Shape:** ``(num_samples, *event)`` each.
        """
        checks.integer("num_samples", num_samples, 1)
        with seeded(seed), _local_parameters(), torch.no_grad(), poutine.block():
            draws = [self() for _ in range(num_samples)]
        return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}

    def odds(self, num_samples: int, *, seed: int | None = None) -> list[EdgeOdds]:
        """Draw odds of edges from the guide.

        :param int num_samples: number of draws.
        :param int seed: seed of the draws; by default they come from PyTorch's generator.
        """
        samples = self.sample(num_samples, seed=seed)
        communities = self.model.communities
        if communities is None:
            return [EdgeOdds(weights) for weights in samples["weights"]]
        rows = zip(samples["weights"], samples["memberships"], samples["rates"], strict=True)
        return [EdgeOdds(weights, members, communities.matrix(r)) for weights, members, r in rows]

    def elbo(
        self, num_samples: int = 25, *, num_pairs: int | None = None, seed: int | None = None
    ) -> float:
        """Estimate the evidence lower bound by an average over draws from the guide.

        :param int num_samples: number of draws.
        :param int num_pairs: number of random pairs for each draw; by default all pairs.
        :param int seed: seed of the draws; by default they come from PyTorch's generator.
        """
        checks.integer("num_samples", num_samples, 1)
        local = _local_parameters()
        with seeded(seed), local, torch.no_grad():
            bound = Trace_ELBO(num_particles=num_samples)
            return -float(bound.loss(self.model, self, self.graph, num_pairs=num_pairs))


class _ScarceAtom(RectifiedGamma):
    """Rectified gamma distribution whose costly atom is computed for draws at it only."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, and at ``high`` the logarithm of its probability."""
        gamma: Any = dist.Gamma(self.concentration, self.rate, validate_args=False)
        density: Tensor = gamma.log_prob(value)
        is_atom = value >= self.high
        if not bool(is_atom.any()):
            return density
        atoms = RectifiedGamma(
            self.concentration[is_atom], self.rate[is_atom], self.high[is_atom], validate_args=False
        )
        return density.masked_scatter(is_atom, atoms.log_prob(value[is_atom]))


def _local_parameters() -> Any:
    """Parameters of modules are their own, and not those of others of the same name."""
    return pyro.settings.context(module_local_params=True)


def _start(num_nodes: int, number: int, memberships: Tensor | None) -> Tensor:
    """Concentrations of memberships to start with."""
    if memberships is None:
        memberships = torch.rand(num_nodes, number)
        memberships /= memberships.sum(-1, keepdim=True)
    is_one = (memberships.sum(-1) - 1.0).abs() < 1e-3
    are_proportions = bool((memberships >= 0).all()) and bool(is_one.all())
    if memberships.shape != (num_nodes, number) or not are_proportions:
        raise ValueError(
            "memberships must be rows of proportions that sum to one, of shape "
            f"{(num_nodes, number)}, got shape {tuple(memberships.shape)}"
        )
    return _INITIAL_MEMBERSHIP * memberships + 0.1
