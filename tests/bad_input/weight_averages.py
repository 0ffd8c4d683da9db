"""Valid calls of averages of weights and classifiers for long tails, for :mod:`walk` to spoil."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_ext.inference.averaging import SWA, SWAG
from pyro_ext.models.ensembles import BalancedBatches, StochasticRepresentations
from tests.bad_input.walk import Call, call, of

X = torch.linspace(-1.0, 1.0, 24).reshape(8, 3)
LABELS = torch.arange(8) % 2
VECTORS = torch.tensor([[1.0, 0.0], [3.0, 1.0], [2.0, 2.0]])


def model(x):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc.sum(), 1.0), obs=x)


def averages() -> dict[str, Call]:
    swag, of_module, of_store = SWAG(), SWA(), SWA()
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for vector in VECTORS:
        swag.collect(vector)
        of_module.collect(network)
    store = pyro.params.param_store.ParamStoreDict()
    store["a"] = torch.ones(2)
    of_store.collect(store)
    candidates = {"a": torch.randn(3, 2), "b": torch.randn(3)}

    def loss(weights):
        return sum(value.square().sum() for value in weights.values())

    return {
        "SWA": call(),
        "SWA.collect": of(SWA().collect(VECTORS[0]), weights=VECTORS[1]),
        "SWA.weights": of(of_module, vector=torch.ones(12)),
        "SWA.module": of(of_module, module=network, vector=torch.ones(12), batches=[X]),
        "SWA.load_state_dict": of(SWA(), state=of_module.state_dict()),
        "SWAG": call(),
        "SWAG.distribution": of(swag),
        "SWAG.sample": of(swag, sample_shape=(2,), generator=torch.Generator()),
        "swag_distribution": call(mean=torch.zeros(2), variance=torch.ones(2), deviations=VECTORS),
        "update_batch_norm": call(module=nn.BatchNorm1d(3), batches=[X]),
        "AutoSWAG": call(model=model),
        "greedy_soup": call(candidates=candidates, loss=loss),
        "learned_soup": call(
            candidates=candidates,
            loss=loss,
            num_steps=1,
            optimizer=partial(torch.optim.Adam, lr=0.1),
        ),
    }


def long_tails() -> dict[str, Call]:
    counts = torch.tensor([6, 2])
    extractor, swag = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), SWAG()
    for _ in range(3):
        swag.collect({name: torch.randn(p.shape) for name, p in extractor.named_parameters()})
    parts: dict[str, Any] = dict(extractor=extractor, swag=swag, head=nn.Linear(4, 2))
    made = StochasticRepresentations(**parts, num_samples=2, batches=[X], seed=0)
    logits = torch.randn(2, 8, 2)
    losses: dict[str, Any] = dict(student=logits[0], teachers=logits, temperature=2.0)
    batches = BalancedBatches(X, LABELS, batch_size=4)
    return {
        "exponential_profile": call(num_first=300, num_classes=10, imbalance=100.0),
        "BalancedBatches": call(inputs=X, labels=LABELS, batch_size=4),
        "BalancedBatches.batch": of(batches, step=1, seed=0),
        "LearnableScales": call(classifier=nn.Linear(4, 2)),
        "tau_normalized": call(classifier=nn.Linear(4, 2)),
        "logit_adjusted": call(classifier=nn.Linear(4, 2), counts=counts),
        "accuracy_by_count": call(probabilities=logits[0], labels=LABELS, counts=counts),
        "StochasticRepresentations": call(**parts, batches=[X]),
        "StochasticRepresentations.fit": of(
            made,
            batches=batches,
            num_steps=1,
            optimizer=partial(torch.optim.SGD, lr=0.1),
            scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2),
            augment=torch.clone,
            progress=False,
        ),
        "distillation": call(**losses),
        "weighted_distillation": call(**losses),
        "dirichlet_distillation": call(**losses),
    }


TABLES = {
    "pyro_ext.inference.averaging": averages,
    "pyro_ext.models.ensembles (long tails)": long_tails,
}
