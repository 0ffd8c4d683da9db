"""Data that do not fit a network or its loss are refused by name, before any step."""

import pytest
import torch
from torch import nn

from pyro_ext.inference.averaging import SparseWeightAveraging
from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.models.ensembles import StochasticRepresentations
from pyro_ext.models.federated import FederatedServer
from pyro_ext.nn import add_lora


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))


def federated(inputs, labels):
    server = FederatedServer(add_lora(network(), rank=2), num_local_steps=1, batch_size=4, seed=0)
    server.run([(inputs[:6], labels[:6]), (inputs[6:], labels[6:])], 1, progress=False)


def sparse(inputs, labels):
    averaging = SparseWeightAveraging(network(), num_particles=2, cycle_epochs=1, seed=0)
    averaging.run(ShuffledBatches(inputs, labels, batch_size=4), 1, progress=False)


def representations(inputs, labels):
    parts = nn.Sequential(nn.Linear(4, 5), nn.ReLU()), None, nn.Linear(5, 3)
    batches = ShuffledBatches(inputs, labels, batch_size=4)
    StochasticRepresentations(*parts, seed=0).fit(batches, 1, progress=False)


@pytest.mark.parametrize(
    ("train", "argument"),
    [(federated, "clients"), (sparse, "batches"), (representations, "batches")],
)
def test_data_that_do_not_fit(train, argument, subtests):
    inputs, labels = torch.randn(12, 4), torch.arange(12) % 3
    for wrong, reason in (
        ((inputs[:, :3], labels), r"shape \(.*, 3\): mat1 and mat2 shapes cannot be multiplied"),
        ((inputs.double(), labels), "float64 tensor.*: mat1 and mat2 must have the same dtype"),
        ((inputs, labels + 1), "Target 3 is out of bounds"),
    ):
        with subtests.test(reason):
            match = f"{argument} must be what the network and its loss take, got .*{reason}"
            with pytest.raises(ValueError, match=match):
                train(*wrong)
    train(inputs, labels)
