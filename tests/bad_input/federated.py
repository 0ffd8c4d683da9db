"""Valid calls of low-rank adapters, DP-SGD and federated training, for :mod:`walk` to spoil."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_ext.inference.privacy import PrivateLoss, example_loss
from pyro_ext.models.federated import FederatedServer
from pyro_ext.models.federated.strategies import average
from pyro_ext.nn import add_lora, save_lora
from tests.bad_input.walk import Call, call, of

X, Y = torch.randn(8, 3), torch.arange(8) % 2


def adapters() -> dict[str, Call]:
    network = nn.Sequential(nn.Linear(3, 2))
    adapted = add_lora(network, rank=2)
    folder = tempfile.mkdtemp()
    save_lora(adapted, folder)
    settings: dict[str, Any] = dict(rank=2, alpha=4.0)
    return {
        "LoRALinear": call(base=nn.Linear(3, 2), **settings),
        "add_lora": call(module=network, layers=["0"], **settings),
        "lora_layers": call(module=adapted),
        "save_lora": call(module=adapted, folder=str(Path(folder) / "new")),
        "load_lora": call(module=network, folder=folder),
    }


def privacy() -> dict[str, Call]:
    network = nn.Linear(3, 2)
    loss, parameters = example_loss(network), dict(network.named_parameters())
    options: dict[str, Any] = dict(max_norm=1.0, noise_multiplier=1.0)
    private = PrivateLoss(loss, parameters, expected_batch_size=4.0, **options)
    steps: dict[str, Any] = dict(sampling_rate=0.5, noise_multiplier=20.0, num_steps=2, delta=1e-3)
    return {
        "example_loss": call(module=network, loss=nn.functional.cross_entropy),
        "example_gradients": call(
            {"batch": X}, loss=lambda p, x: p["a"] * x.sum(), parameters={"a": torch.ones(())}
        ),
        "clipped_sum": call(gradients={"a": torch.ones(3, 2)}, max_norm=1.0),
        "PrivateLoss": call(
            loss=loss, parameters=parameters, expected_batch_size=4.0, chunk_size=2, **options
        ),
        "PrivateLoss.__call__": of(private, batch=(X, Y)),
        "PoissonBatches": call({"rows": X}, sampling_rate=0.5),
        "pld_epsilon": call(**steps),
        "noise_multiplier_for": call(epsilon=1.0, delta=1e-3, sampling_rate=0.5, num_steps=1),
    }


def federated() -> dict[str, Call]:
    network, clients = add_lora(nn.Linear(3, 2), rank=2), [(X[:5], Y[:5]), (X[5:], Y[5:])]
    options: dict[str, Any] = dict(num_local_steps=1, batch_size=4, seed=0)
    server = FederatedServer(network, **options)
    server.run(clients, 1, progress=False)
    return {
        "FederatedServer": call(
            module=network,
            loss=nn.functional.cross_entropy,
            optimizer=torch.optim.SGD,
            noise_multiplier=1.0,
            chunk_size=2,
            **options,
        ),
        "FederatedServer.round": of(server, clients=clients),
        "FederatedServer.run": of(server, clients=clients, num_rounds=1),
        "FederatedServer.epsilon": of(server),
        "FederatedServer.sampling_rate": of(server, size=10),
        "Strategy": call(train_A=True, aggregate=average, svd_period=1),
        "dirichlet_split": call(labels=Y, num_clients=2),
    }


TABLES = {
    "pyro_ext.nn (adapters)": adapters,
    "pyro_ext.inference.privacy": privacy,
    "pyro_ext.models.federated": federated,
}
