"""The checks of guides pass those of Pyro and ours, and refuse wrong ones."""

from copy import deepcopy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

from pyro_ext.inference import MCMC, SGLD, AmortizedMixtureGuide, AutoSWAG
from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, ForwardKL
from pyro_ext.models.neural_processes import NP
from pyro_ext.models.nonparametric import GraphGuide, GraphModel, bfry_weights
from pyro_ext.models.nonparametric.graph_pairs import SimpleGraph
from pyro_ext.models.sets import DeepSet
from pyro_ext.testing.guides import check_guide, check_samples

X = torch.linspace(0.5, 2.0, 20)
POINTS = (torch.randn(2, 5, 1), torch.randn(2, 5, 1), torch.randn(2, 4, 1), torch.randn(2, 4, 1))
GRAPH = SimpleGraph(12, torch.tensor([[0, 1], [1, 2], [0, 3], [4, 5], [0, 6]]))
GRAPH_MODEL = GraphModel(bfry_weights(12))
PLANE = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
PROCESS = NP(1, 1, 8)
UNTRAINED = deepcopy(PROCESS.state_dict())


def model(x):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc.sum(), rate), obs=x)


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        scales = pyro.sample("scales", dist.LogNormal(0.0, 1.0))
    components = dist.Normal(locs, scales[:, None]).to_event(1)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=x)


def mixture_guide():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AmortizedMixtureGuide(mixture, DeepSet(2, 3, 4, 8))


def process_guide():
    """The guide is a method of the model, whose parameters are those of both."""
    PROCESS.load_state_dict(UNTRAINED)
    return PROCESS.guide


# What makes each guide, its model, its arguments and options of the check.
GUIDES = {
    "AutoNormal": (lambda: AutoNormal(model), model, (X,), {}),
    "AutoMultivariateNormal": (lambda: AutoMultivariateNormal(model), model, (X,), {}),
    "AutoDelta": (lambda: AutoDelta(model), model, (X,), {"random": False}),
    "AutoSWAG": (lambda: AutoSWAG(model), model, (X,), {}),
    "AutoPseudocoreset": (
        partial(
            AutoPseudocoreset,
            model,
            X,
            size=4,
            weights="learned",
            kernel=partial(SGLD, step_size=1e-3, backend="eager"),
            num_samples=8,
            backend="eager",
            seed=0,
        ),
        model,
        (X,),
        {"loss": ForwardKL},
    ),
    "GraphGuide": (
        lambda: GraphGuide(GRAPH_MODEL, GRAPH, seed=0),
        GRAPH_MODEL,
        (GRAPH,),
        {"options": {"num_pairs": 10}},
    ),
    "NP": (process_guide, PROCESS, POINTS, {}),
    "AmortizedMixtureGuide": (mixture_guide, mixture, (PLANE,), {"random": False}),
}


@pytest.mark.parametrize(
    ("make", "model", "args", "options"),
    [
        pytest.param(*row, id=name, marks=[pytest.mark.slow] * (name == "AutoPseudocoreset"))
        for name, row in GUIDES.items()
    ],
)
def test_guides(make, model, args, options):
    check_guide(make, model, *args, **options)


class Learned(PyroModule):
    """A guide that is right, with parts to be changed."""

    sites = ("rate", "loc")
    event = (2,)

    def __init__(self):
        super().__init__(name="learned")
        self.loc = PyroParam(torch.zeros(2))
        self.scale = PyroParam(torch.ones(2), constraints.positive)

    def forward(self, x):
        if "rate" in self.sites:
            pyro.sample("rate", self.rate())
        pyro.sample("loc", dist.Normal(self.loc, self.scale).to_event(1))

    def rate(self):
        return dist.LogNormal(0.0, 1.0)


class LacksASite(Learned):
    sites = ("loc",)


class HasOneMore(Learned):
    def forward(self, x):
        super().forward(x)
        pyro.sample("more", dist.Normal(0.0, 1.0))


class Observes(Learned):
    def forward(self, x):
        super().forward(x)
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1), obs=x)


class WrongShape(Learned):
    def rate(self):
        return dist.LogNormal(torch.zeros(3), 1.0).to_event(1)


class OutsideOfTheSupport(Learned):
    def rate(self):
        return dist.Normal(-100.0, 1.0)


class Hidden(Learned):
    """It learns what is in no state dict."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def rate(self):
        self.calls += 1
        return dist.LogNormal(1.0 * self.calls, 1.0)


class Constant(Learned):
    def forward(self, x):
        pyro.sample("rate", dist.Delta(torch.tensor(1.0)))
        pyro.sample("loc", dist.Delta(self.loc * self.scale).to_event(1))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (LacksASite, r"the guide lacks the sites \['rate'\]"),
        (HasOneMore, r"the guide has sites that the model lacks: \['more'\]"),
        (Observes, r"the guide has observed sites: \['x'\]"),
        (WrongShape, r"'rate' has the shape \(3,\)"),
        (OutsideOfTheSupport, "'rate' is outside of its support"),
        (Hidden, "draws of 'rate' after one seed differ by"),
        (Constant, "8 draws are all the same"),
    ],
)
def test_guides_that_are_wrong(guide, message):
    check_guide(Learned, model, X)
    with pytest.raises(AssertionError, match=message):
        check_guide(guide, model, X)


def test_draws_that_do_not_fit_together():
    class Shuffled(MCMC):
        def get_samples(self, group_by_chain=False):
            samples = super().get_samples(group_by_chain)
            return samples if group_by_chain else {k: v.flip(0) for k, v in samples.items()}

    for kind in (MCMC, Shuffled):
        run = kind(SGLD(model, step_size=0.1), 4, num_chains=2, seed=0, progress=False).run(X)
        if kind is MCMC:
            check_samples(run, names={"rate", "loc"})
            with pytest.raises(AssertionError, match=r"draws of \['loc', 'rate'\], not \['loc'\]"):
                check_samples(run, names={"loc"})
        else:
            with pytest.raises(AssertionError, match="'rate' with chains apart or not differ by"):
                check_samples(run, names={"rate", "loc"})


def test_draws_of_a_coreset():
    guide = AutoPseudocoreset(model, X, size=4, num_samples=8, warmup_steps=5, seed=0)
    check_samples(guide.sample_posterior(num_chains=2), names={"rate", "loc"})
