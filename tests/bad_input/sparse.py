"""Valid calls of pruning, sparse averages and prior augmented data, for :mod:`walk` to spoil."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.functional import cross_entropy

from pyro_ext.inference.averaging import MagnitudePruner, SparseWeightAveraging
from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.models.ensembles import PseudoInputGenerator
from tests.bad_input.walk import Call, call, of

NETWORK = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
X, Y = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
SGD = partial(torch.optim.SGD, lr=0.01)


def model(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Categorical(logits=NETWORK(x)), obs=y)


def averaging() -> dict[str, Call]:
    pruner = MagnitudePruner()
    batches = ShuffledBatches(X, Y, batch_size=3)
    swamp = SparseWeightAveraging(NETWORK, cycle_epochs=1, seed=0)
    masks = pruner.step(NETWORK)
    return {
        "MagnitudePruner": call(),
        "MagnitudePruner.step": of(MagnitudePruner(), weights=NETWORK),
        "MagnitudePruner.apply": of(MagnitudePruner(), module=NETWORK),
        "SparseWeightAveraging": call(
            module=NETWORK, loss=cross_entropy, optimizer=SGD, pruner=pruner
        ),
        "SparseWeightAveraging.run": of(swamp, batches=batches, num_cycles=1),
        "SparseWeightAveraging.ticket": of(swamp, batches=batches),
        "SparseWeightAveraging.particles": of(
            swamp, batches=batches, ticket=dict(NETWORK.state_dict()), masks=masks
        ),
        "snip_scores": call(module=NETWORK, loss=lambda: cross_entropy(NETWORK(X), Y)),
        "synflow_scores": call(module=NETWORK, inputs=X),
    }


def ensembles() -> dict[str, Call]:
    generator, prior = PseudoInputGenerator(2, 4), dist.Categorical(torch.ones(2))
    options: dict[str, Any] = dict(elbo=Trace_ELBO(), site="obs", optimizer=SGD)
    numbers = dict()
    return {
        "PseudoInputGenerator": call(event_shape=2, bounds=(0.0, 1.0)),
        "PseudoInputGenerator.forward": of(generator, inputs=X, noise=torch.randn(6, 4)),
        "prior_weight": call(pseudo_inputs=X, inputs=X, lengthscale=0.5),
        "PriorAugmentedELBO": call(
            generator=generator, prior=prior, **options, **numbers, reference=X
        ),
    }


TABLES = {
    "pyro_ext.inference.averaging (sparse)": averaging,
    "pyro_ext.models.ensembles (prior augmented data)": ensembles,
}
