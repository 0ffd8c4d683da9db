"""The checks of models pass all Pyro programs that are exported, and refuse wrong ones."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_ext.distributions import DirichletOU, GaussianCluster, PoissonCluster
from pyro_ext.inference.adjoint import PathModel
from pyro_ext.models.diffusion import RewardModel
from pyro_ext.models.ensembles import BridgeSource, DiffusionBridgeNetwork
from pyro_ext.models.graphs import GraphEmbeddingVAE
from pyro_ext.models.molecules import RACE, EnergyForceModel
from pyro_ext.models.neural_processes import ANP, BNP, CNP, MPNP, NP
from pyro_ext.models.nonparametric import (
    FrequencyModel,
    GraphModel,
    MixedMembership,
    NRMMixture,
    NRMModelMixture,
    bfry_weights,
    pitman_yor_prior,
)
from pyro_ext.models.nonparametric.graph_pairs import SimpleGraph
from pyro_ext.models.scaling_laws import FAMILIES, ScalingLaw, scaling_curve_prior
from pyro_ext.models.sets import SetVAE, gaussian_mixtures, labeled_mixtures
from pyro_ext.models.symmetry import AffineField, OneParameterGroupAugmentation
from pyro_ext.models.temporal_graphs import EventStream, TemporalGraphNetwork
from pyro_ext.models.time_series import SupervisedNotMIWAE
from pyro_ext.models.vision import MaskedAutoencoder
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule
from pyro_ext.random_measures import (
    DirichletProcess,
    GeneralizedGammaProcess,
    TruncatedSeries,
    random_measure,
)
from pyro_ext.testing.models import check_model

ADAM = partial(torch.optim.Adam, lr=0.05)
GRID = torch.linspace(0.01, 1.0, 12)
X = torch.linspace(-1.0, 1.0, 6)[:, None]
ROWS = torch.ones(2, 5, dtype=torch.bool).tril(3)
GRAPH = SimpleGraph(6, torch.tensor([[0, 1], [1, 2], [0, 3], [4, 5]]))
MEASURE = GeneralizedGammaProcess(2.0, 0.4, 1.0)
IMAGES = torch.rand(2, 1, 8, 8)
POINTS = torch.randn(2, 5, 1), torch.randn(2, 5, 1), torch.randn(2, 4, 1)
STREAM = EventStream([0, 1, 2, 0], [1, 2, 0, 2], [0, 1, 2, 3])


def law():
    x = torch.tensor([10.0, 20.0, 40.0, 80.0, 160.0])
    return poutine.uncondition(ScalingLaw("M1").fit(x, 2.0 * x**-0.5).model)


def reward(feedback):
    images = torch.randn(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    model = RewardModel(lambda x: x.flatten(1), hidden=[4], num_steps=100, optimizer=ADAM)
    labels = images[:, 0, 0, 0] > 0
    if feedback == "labels":
        model.fit_binary(images, labels, seed=0, progress=False)
        return poutine.uncondition(model.last_layer(images, labels))
    lists = [[a, b] for a in range(6) for b in range(6, 12) if labels[a] > labels[b]]
    model.fit_ranking(images, lists, seed=0, progress=False)
    return poutine.uncondition(model.last_layer(images, lists))


def events():
    network = TemporalGraphNetwork(3, hidden_size=4)
    return poutine.uncondition(
        partial(network, network.reset(), STREAM, torch.tensor([2, 0, 1, 1]))
    )


def member(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("points", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def classifier():
    return partial(BayesianClassifier(BayesianModule(MLP(1, [3], 2))), X)


def bridge():
    return partial(DiffusionBridgeNetwork(BridgeSource(MLP(1, [3], 2), X)), X)


def path():
    return PathModel(DirichletOU(1.0, 4, 2), lambda path, grid: path.square().sum((-2, -1)))


def series():
    x = torch.randn(2, 5, 3)
    return poutine.uncondition(partial(SupervisedNotMIWAE(3, 2, width=8).model, x, x > -1))


def augmented():
    return partial(OneParameterGroupAugmentation(AffineField(2), 0.1), IMAGES)


# What makes each model, and sites that it has to predict.
MODELS = {
    "ANP": (lambda: partial(ANP(1, 1, 8), *POINTS), {"y"}),
    "BNP": (lambda: partial(BNP(1, 1, 8), *POINTS), {"rows", "y"}),
    "CNP": (lambda: partial(CNP(1, 1, 8), *POINTS), {"y"}),
    "MPNP": (lambda: partial(MPNP(1, 1, 8), *POINTS), {"noise", "y"}),
    "NP": (lambda: partial(NP(1, 1, 8), *POINTS), {"z", "y"}),
    "BayesianClassifier": (classifier, {"label", "0.weight"}),
    "DiffusionBridgeNetwork": (bridge, {"obs", "l_1"}),
    "FrequencyModel": (
        lambda: partial(FrequencyModel(pitman_yor_prior), num_samples=20),
        {"discount"},
    ),
    "GaussianCluster": (lambda: GaussianCluster.hyperprior(torch.randn(5, 2)), {"loc_precision"}),
    "GraphEmbeddingVAE": (
        lambda: partial(GraphEmbeddingVAE(dim=2).model, None, ROWS),
        {"embedding", "adjacency"},
    ),
    "GraphModel": (lambda: partial(GraphModel(bfry_weights(6)), GRAPH), {"weights"}),
    "GraphModel communities": (
        lambda: partial(GraphModel(bfry_weights(6), MixedMembership(2)), GRAPH),
        {"memberships", "rates"},
    ),
    "MaskedAutoencoder": (
        lambda: partial(
            MaskedAutoencoder((1, 8, 8), 4, width=8, num_heads=2).model, IMAGES, predict=True
        ),
        {"noise", "patches"},
    ),
    "NRMMixture": (
        lambda: partial(
            NRMMixture(MEASURE.normalize(), PoissonCluster(torch.tensor([2.0]), 1.0)), num_points=5
        ),
        {"assignment", "x"},
    ),
    "NRMModelMixture": (
        lambda: partial(NRMModelMixture(DirichletProcess(1e-9), member), torch.randn(4)),
        {"assignment"},
    ),
    "OneParameterGroupAugmentation": (augmented, {"s"}),
    "PathPCN": (path, {"z"}),
    "EnergyForceModel": (
        lambda: partial(
            EnergyForceModel(RACE([1, 8], channels=4, num_radial=4, radial_hidden=4), [1, 8]),
            torch.randn(2, 2, 3),
        ),
        {"energy", "forces"},
    ),
    "random_measure finite": (
        lambda: partial(random_measure, "G", MEASURE, dist.Normal(0.0, 1.0), 5),
        {"G_atoms", "G_jumps"},
    ),
    "random_measure series": (
        lambda: partial(
            random_measure, "G", MEASURE.normalize(), dist.Normal(0.0, 1.0), TruncatedSeries(5)
        ),
        {"G_gaps"},
    ),
    "random_measure sticks": (
        lambda: partial(random_measure, "G", DirichletProcess(1.0), dist.Normal(0.0, 1.0), 5),
        {"G_sticks"},
    ),
    "RewardModel labels": (lambda: reward("labels"), {"weight", "label"}),
    "RewardModel rankings": (lambda: reward("rankings"), {"weight", "preference"}),
    "ScalingLaw": (law, {"theta", "y"}),
    **{
        f"scaling_curve_prior {family}": (
            partial(partial, scaling_curve_prior, GRID, family),
            {"noise", "y"},
        )
        for family in FAMILIES
    },
    "gaussian_mixtures": (lambda: partial(gaussian_mixtures, 2, 5), {"labels", "x"}),
    "labeled_mixtures": (
        lambda: partial(labeled_mixtures, torch.randn(9, 2), torch.arange(9) % 4, 2, 5),
        {"labels"},
    ),
    "SetVAE": (
        lambda: partial(
            SetVAE(2, (1, 2), hidden_size=8, latent_size=2, num_heads=2).model, None, ROWS
        ),
        {"z_1", "z_2", "x"},
    ),
    "SupervisedNotMIWAE": (series, {"z", "y"}),
    "TemporalGraphNetwork": (events, {"link"}),
}


SLOW = {name for name in MODELS if name.startswith("scaling")} | {"GraphEmbeddingVAE", "NRMMixture"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS]
)
def test_models(name):
    make, predicted = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    try:
        names = check_model(model)
    finally:
        pyro.clear_param_store()
    assert predicted <= names, f"{name} does not predict {predicted - names}, but {names}"


class Right:
    """A model with parts to be changed."""

    def __call__(self):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", 4):
            return self.data(loc, scale)

    def data(self, loc, scale):
        return pyro.sample("x", dist.Normal(loc, scale))


class Hidden(Right):
    """Its values are of a run that handlers do not reach."""

    def __call__(self):
        with poutine.block():
            hidden = poutine.trace(super().__call__).get_trace()
        with poutine.replay(trace=hidden):
            super().__call__()
        return hidden.nodes["x"]["value"]


class Forgets(Right):
    """What is given has no consequences."""

    def data(self, loc, scale):
        return pyro.sample("x", dist.Normal(torch.randn(()), scale))


class Comes(Right):
    """A site that comes and goes."""

    def data(self, loc, scale):
        if loc > 0:
            pyro.sample("more", dist.Normal(loc, 1.0))
        return super().data(loc, scale)


class IsNoDraw(Right):
    """Its values are of another law."""

    def data(self, loc, scale):
        with poutine.block():
            hidden = poutine.trace(super().data).get_trace(loc + 1000 * scale, scale)
        with poutine.replay(trace=hidden):
            return super().data(loc, scale)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Hidden, "results"),
        (Forgets, "replay: densities of 'x' differ"),
        (IsNoDraw, "'x' is no draw from its distribution in a run"),
        (Comes, r"only one run has \['more'\]|Predictive has no 'more'"),
    ],
)
def test_models_that_are_wrong(model, message):
    assert check_model(Right()) == {"loc", "scale", "x"}
    with pytest.raises(AssertionError, match=message):
        check_model(model())
