"""Valid calls of paths between networks and of bridge networks, for :mod:`walk` to spoil."""

from typing import Any

import torch
from torch import nn

from pyro_ext.inference.averaging import BezierPath
from pyro_ext.models.ensembles import BridgeEnsemble, BridgeNetwork
from pyro_ext.nn import MLP
from tests.bad_input.walk import Call, call, of

X = torch.randn(6, 4)


def half(module: nn.Module) -> torch.Tensor:
    return module(X).square().mean() / 2


def averaging() -> dict[str, Call]:
    torch.manual_seed(0)
    two: dict[str, Any] = {f"module_{name}": MLP(4, [3], 2) for name in "ab"}
    path = BezierPath(**two)
    weights = {"x": torch.ones(3)}
    return {
        "BezierPath": call(**two),
        "BezierPath.weights": of(path, r=torch.tensor([0.2, 0.5])),
        "BezierPath.module_at": of(path, batches=[X]),
        "align_units": call(**two, inputs=X),
        "hutchinson_trace": call(
            loss=lambda w: w["x"].pow(4).sum(), weights=weights, num_probes=3, seed=0
        ),
        "path_losses": call(
            path=path, loss=half, positions=torch.tensor([0.2, 0.5]), batches=[X], progress=False
        ),
    }


def bridges() -> dict[str, Call]:
    torch.manual_seed(0)
    path = BezierPath(MLP(4, [3], 2), MLP(4, [3], 2))
    bridge = BridgeNetwork(path, "1", nn.Linear(3, 2))
    ensemble = BridgeEnsemble([bridge])
    return {
        "BridgeEnsemble": call(bridges=[bridge]),
        "BridgeEnsemble.probabilities": of(ensemble, inputs=X),
        "BridgeEnsemble.relative_cost": of(ensemble, inputs=X),
        "BridgeNetwork": call(path=path, features="1", head=nn.Linear(3, 2), batches=[X]),
        "BridgeNetwork.log_prob": of(bridge, inputs=X),
        "BridgeNetwork.loss": of(bridge, inputs=X),
    }


TABLES = {
    "pyro_ext.inference.averaging (paths)": averaging,
    "pyro_ext.models.ensembles (bridge networks)": bridges,
}
