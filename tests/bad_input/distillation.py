"""Valid calls of batch ensembles and of their distillation, for :mod:`walk` to spoil."""

import torch

from pyro_ext.models.ensembles import BatchEnsembleDistiller
from pyro_ext.nn import MLP, BatchEnsemble
from tests.bad_input.walk import Call, call, of


def batch_ensembles() -> dict[str, Call]:
    return {
        "BatchEnsemble": call(network=MLP(4, [3], 2), num_members=2),
        "BatchEnsembleConv2d": call(in_channels=2, out_channels=3, kernel_size=3, num_members=2),
        "BatchEnsembleLinear": call(in_features=4, out_features=3, num_members=2),
    }


def distillation() -> dict[str, Call]:
    torch.manual_seed(0)
    teachers = [MLP(4, [6], 3) for _ in range(2)]
    network, x = MLP(4, [3], 3), torch.rand(5, 4)
    return {
        "BatchEnsembleDistiller": call(
            network=network, teachers=teachers, perturbation="tdiv", bounds=(0.0, 1.0)
        ),
        "BatchEnsembleDistiller.loss": of(
            BatchEnsembleDistiller(network, teachers, alpha=0.5),
            inputs=x,
            labels=torch.arange(5) % 3,
        ),
        "diversify": call(
            inputs=x, teachers=teachers, student=BatchEnsemble(network, 2), bounds=(0.0, 1.0)
        ),
    }


TABLES = {
    "pyro_ext.models.ensembles (distillation)": distillation,
    "pyro_ext.nn (batch ensembles)": batch_ensembles,
}
