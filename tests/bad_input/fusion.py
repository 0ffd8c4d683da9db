"""Valid calls of hypervolumes, Bayesian optimization and model fusion, for :mod:`walk` to spoil."""

from typing import Any

import torch
from torch import nn

from pyro_ext.inference.averaging import (
    BayesianOptimizer,
    CheckpointCollector,
    ModelFusion,
)
from tests.bad_input.walk import Call, call, of


def evaluate(module):
    return {"size": module.weight.square().sum(), "first": module.weight[0, 0]}


def fusion() -> dict[str, Call]:
    points, reference = torch.rand(4, 2), torch.zeros(2)
    box = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    searched: dict[str, Any] = dict(bounds=box, reference=reference, num_initial=3, seed=0)
    search = BayesianOptimizer(**searched)
    module = nn.Linear(2, 1)
    weights = {"weight": torch.rand(3, 1, 2), "bias": torch.rand(3, 1)}
    fused: dict[str, Any] = dict(
        module=module,
        checkpoints=weights,
        evaluate=evaluate,
        objectives={"size": "minimize", "first": "maximize"},
        batches=[torch.rand(3, 2)],
        optimizer=BayesianOptimizer,
        seed=0,
    )
    one = ModelFusion(**fused)
    collector = CheckpointCollector(module, 10, 2)
    return {
        "pareto_mask": call(points=points),
        "hypervolume": call(points=points, reference=reference),
        "expected_hypervolume_improvement": call(
            mean=torch.rand(3, 2), sd=torch.rand(3, 2), front=points, reference=reference
        ),
        "BayesianOptimizer": call(**searched),
        "BayesianOptimizer.tell": of(search, x=torch.rand(2), y=torch.rand(2)),
        "CheckpointCollector": call(module=module, num_steps=10, num=2, start=0.5),
        "CheckpointCollector.watch": of(
            collector, optimizer=torch.optim.SGD(module.parameters(), lr=0.1)
        ),
        "CheckpointCollector.load_state_dict": of(collector, state=collector.state_dict()),
        "ModelFusion": call(**fused),
        "ModelFusion.fuse": of(one, coefficients=torch.rand(3)),
        "ModelFusion.evaluate": of(one, coefficients=torch.rand(3)),
        "ModelFusion.run": of(one, num_iterations=0),
    }


TABLES = {"pyro_ext.inference.averaging (fusion)": fusion}
