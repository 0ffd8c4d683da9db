"""Valid calls of diffusion bridges and their parts, for :mod:`walk` to spoil."""

from typing import Any

import torch

from pyro_ext.models.ensembles import BridgeSchedule, BridgeSource, DiffusionBridgeNetwork, ScoreMLP
from pyro_ext.nn import MLP
from tests.bad_input.walk import Call, call, of


def bridges() -> dict[str, Call]:
    torch.manual_seed(0)
    x, members = torch.randn(6, 4), [MLP(4, [8], 3), MLP(4, [8], 3)]
    source = BridgeSource(members[0], x)
    bridge = DiffusionBridgeNetwork(source, BridgeSchedule(0.1, 0.2, 2))
    teacher = DiffusionBridgeNetwork(source)
    schedule, points = BridgeSchedule(0.1, 0.2, 4), torch.randn(5, 3)
    options: dict[str, Any] = dict(x=x, members=members, num_steps=1, batch_size=3)
    options |= dict(augment=torch.sin, mixup=0.4, alpha=0.5, optimizer=torch.optim.Adam)
    options |= dict(ema_decay=0.9, seed=0, checkpoint=None, progress=False)
    return {
        "BridgeSchedule": call(b1=0.1, b2=0.2),
        "BridgeSchedule.marginal": of(schedule, n=2, x0=points, x1=-points),
        "BridgeSchedule.posterior": of(schedule, n=2, x0=points, xn=-points),
        "BridgeSource": call(network=members[0], x=x, feature="1"),
        "ScoreMLP": call(num_classes=3, num_features=8, hidden_features=(4,)),
        "ScoreConvNet": call(num_classes=3, in_channels=2),
        "DiffusionBridgeNetwork": call(
            source=source, schedule=schedule, score=ScoreMLP(3, 8), annealing=(2.0, 0.4, 1.0, 5.0)
        ),
        "DiffusionBridgeNetwork.forward": of(bridge, x=x, y=torch.zeros(6, dtype=torch.int64)),
        "DiffusionBridgeNetwork.sample": of(bridge, x=x),
        "DiffusionBridgeNetwork.probs": of(bridge, x=x),
        "DiffusionBridgeNetwork.loss": of(bridge, x=x, members=members, teacher=teacher),
        "DiffusionBridgeNetwork.fit": of(bridge, **options, teacher=teacher),
        "DiffusionBridgeNetwork.distill": of(
            bridge, x=x, members=members, num_steps=1, batch_size=3, mixup=0.4, progress=False
        ),
        "average_bridges": call(bridges=[bridge], x=x),
        "ensemble_logits": call(logits=torch.randn(2, 5, 3)),
    }


TABLES = {"pyro_ext.models.ensembles (diffusion bridges)": bridges}
