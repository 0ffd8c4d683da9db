"""Valid calls of temporal graphs, their attacks and defenses, for :mod:`walk` to spoil."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from pyro_ext.models.temporal_graphs import (
    CosineFilter,
    Defense,
    EventStream,
    LinkScores,
    LowRankWeights,
    StructuralAttack,
    TemporalGraphNetwork,
    TShield,
    TSpear,
)
from tests.bad_input.walk import Call, call, of

ENDS = dict(sources=torch.tensor([0, 1, 2, 0, 1, 2]), destinations=torch.tensor([1, 2, 0] * 2))
TIMES = torch.arange(6.0)
STREAM = EventStream(**ENDS, times=TIMES)
NETWORK = TemporalGraphNetwork(3, 4)
ADAM = partial(torch.optim.Adam, lr=1e-3)


def streams() -> dict[str, Call]:
    fake = torch.tensor([False] * 5 + [True])
    return {
        "EventStream": call(
            **ENDS, times=TIMES, features=torch.randn(6, 2), num_nodes=4, fake=fake
        ),
        "EventStream.batches": of(STREAM, batch_size=2),
        "EventStream.negatives": of(STREAM, num_negatives=2, pool=torch.tensor([0, 1, 2])),
    }


def networks() -> dict[str, Call]:
    state = NETWORK.reset()
    nodes = torch.tensor([0, 1])
    score: dict[str, Any] = dict(sources=nodes, destinations=nodes, times=TIMES[:2])
    pairs = dict(sources=torch.randn(2, 4), destinations=torch.randn(2, 4))
    keep, negatives = torch.tensor([True] * 5 + [False]), ENDS["sources"]
    weights = torch.rand(6) + 0.5
    size: dict[str, Any] = dict(num_nodes=3, hidden_size=4, num_features=1, num_neighbors=2)
    more: dict[str, Any] = dict(dropout=0.1, node_features=torch.randn(3, 2))
    every: dict[str, Any] = dict(batch_size=3)
    fit: dict[str, Any] = dict(network=NETWORK, stream=STREAM, num_epochs=1)
    return {
        "TemporalGraphNetwork": call(**size, **more),
        "TemporalGraphNetwork.embed": of(NETWORK, state=state, nodes=nodes, times=TIMES[:2]),
        "TemporalGraphNetwork.score": of(NETWORK, state=state, **score),
        "TemporalGraphNetwork.decode": of(NETWORK, **pairs),
        "TemporalGraphNetwork.update": of(NETWORK, state=state, events=STREAM, keep=keep),
        "TemporalGraphNetwork.forward": of(
            NETWORK, state=state, events=STREAM, negatives=negatives, keep=keep, weights=weights
        ),
        "fit_links": call(**fit, **every, optimizer=ADAM, defense=Defense()),
        "evaluate_links": call(
            network=NETWORK, history=STREAM[:3], stream=STREAM[3:], num_negatives=2, **every
        ),
        "LinkScores.hits": of(LinkScores(torch.randn(3), torch.randn(3, 4)), k=2),
    }


def attacks() -> dict[str, Call]:
    options: dict[str, Any] = dict(budget=0.5, batch_size=3, extra_rounds=1)
    options |= dict(resolution=1.0, bandwidth=0.1)
    given: dict[str, Any] = dict(stream=STREAM[3:], history=STREAM[:3])
    return {
        "TSpear": call(surrogate=NETWORK, **options),
        "TSpear.perturb": of(TSpear(NETWORK, batch_size=2), **given),
        "StructuralAttack": call(kind="degree", **options),
        "StructuralAttack.perturb": of(StructuralAttack("jaccard", batch_size=2), **given),
        "spread_pairs": call(costs=torch.rand(3, 3), num_pairs=2, extra_rounds=1),
    }


def defenses() -> dict[str, Call]:
    shield = TShield()
    given: dict[str, Any] = dict(logits=torch.randn(3), embeddings=torch.randn(2, 3, 4))
    rows = torch.randn(3, 4)
    return {
        "CosineFilter": call(),
        "CosineFilter.keep": of(CosineFilter(), **given, progress=0.5),
        "Defense": call(),
        "LowRankWeights": call(rank=2),
        "LowRankWeights.weights": of(LowRankWeights(2), stream=STREAM),
        "TShield": call(tau_start=0.1, theta=0.1, schedule="linear"),
        "TShield.threshold": of(shield, progress=0.5),
        "TShield.keep": of(shield, **given, progress=0.5),
        "temporal_smoothness": call(embeddings=rows, previous=rows, lapse=torch.rand(3), theta=0.1),
    }


def ranking() -> dict[str, Call]:
    given: dict[str, Any] = dict(scores=torch.randn(3), negatives=torch.randn(3, 4))
    return {
        "ranks": call(**given),
        "mean_reciprocal_rank": call(**given),
        "hits_at": call(**given),
    }


def contacts() -> dict[str, Call]:
    return {"load_contacts": call(name="hospital")}


TABLES: dict[str, Callable[[], dict[str, Call]]] = {
    "pyro_ext.models.temporal_graphs (streams)": streams,
    "pyro_ext.models.temporal_graphs (networks)": networks,
    "pyro_ext.models.temporal_graphs (attacks)": attacks,
    "pyro_ext.models.temporal_graphs (defenses)": defenses,
    "pyro_ext.diagnostics.ranking": ranking,
    "pyro_ext.datasets (contacts)": contacts,
}
