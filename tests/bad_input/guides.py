"""Valid calls of amortized guides, for :mod:`walk` to spoil."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch

from pyro_ext.inference import AmortizedMixtureGuide
from tests.bad_input.walk import Call, call, of

X = torch.linspace(-1.0, 1.0, 8)
POINTS = torch.stack([X, X.cos()], -1)


def guides() -> dict[str, Call]:
    def mixture(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
            scales = pyro.sample("scales", dist.LogNormal(0.0, 1.0))
        components = dist.Normal(locs, scales[:, None]).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=x)

    class Zeros(torch.nn.Module):
        def forward(self, x, mask=None):
            return x.new_zeros(*x.shape[:-2], 2, 4)

    guide = AmortizedMixtureGuide(mixture, Zeros())
    mask = torch.ones(8, dtype=torch.bool)
    some: dict[str, Any] = dict(x=POINTS, mask=mask)
    known: dict[str, Any] = dict(**some, values=guide.median(POINTS))
    return {
        "AmortizedMixtureGuide": call(
            model=mixture, network=Zeros(), weights="weights", locs="locs", scales="scales"
        ),
        "AmortizedMixtureGuide.median": of(guide, **some),
        "AmortizedMixtureGuide.likelihood_loss": of(guide, **some),
        "AmortizedMixtureGuide.elbo_loss": of(guide, **some),
        "AmortizedMixtureGuide.log_likelihood": of(guide, **known),
        "AmortizedMixtureGuide.assign": of(guide, **known),
        "AmortizedMixtureGuide.em_step": of(guide, **known),
    }


TABLES = {"pyro_ext.inference (guides)": guides}
