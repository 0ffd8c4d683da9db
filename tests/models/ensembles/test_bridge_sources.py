"""Which layer a bridge looks at, in networks of many kinds, and what they have to have."""

import pytest
import torch
from torch import Tensor, nn

from pyro_ext.models.ensembles import BridgeSource
from pyro_ext.nn import MLP, ResNet


class Functional(nn.Module):
    """A network whose activations are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


class Listed(nn.Module):
    """Blocks in a list, and an output that is a view of that of the last module."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([MLP(4, [8], 6), MLP(6, [8], 3)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.view(x.shape)


def in_place() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("network", "shape", "feature", "size"),
    [
        (nn.Sequential(nn.Flatten(), *MLP(4, [8, 8], 3)), (2, 2), "2", (8,)),
        (nn.Sequential(nn.BatchNorm1d(4), MLP(4, [8], 3)), (4,), "1.1", (8,)),
        (ResNet(1, 3), (1, 8, 8), "blocks.0", (8, 8, 8)),
        (Functional(), (4,), "first", (8,)),
        (Listed(), (4,), "blocks.0", (6,)),
        (in_place(), (4,), "1", (8,)),
    ],
)
def test_early_layers(network, shape, feature, size):
    source = BridgeSource(network, torch.rand(2, *shape))
    assert (source.feature, tuple(source.feature_shape)) == (feature, size)
    logits, found = source(torch.rand(5, *shape))
    assert logits.shape == (5, 3) and found.shape == (5, *size)
    assert not any(layer._forward_hooks for layer in network.modules())


def test_features_by_name_or_function_are_those_of_the_layer():
    network, x = in_place(), torch.randn(2, 4)
    by_name, by_function = BridgeSource(network, x, "0"), BridgeSource(network, x, network[0])
    torch.testing.assert_close(by_name(x)[1], by_function(x)[1])
    assert bool((by_name(x)[1] < 0).any())


def test_it_is_frozen_and_a_copy():
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    x = torch.randn(6, 4)
    source = BridgeSource(network, x).train()
    before = source(x)[0]
    assert not source.network.training and network.training
    assert all(p.requires_grad for p in network.parameters())
    network[0].weight.data.zero_()
    assert torch.equal(source(x)[0], before) and torch.equal(source(x)[0], before)


def test_what_a_network_lacks():
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="network must have a layer before the one that gives"):
        BridgeSource(nn.Linear(4, 3), x)
    assert BridgeSource(nn.Linear(4, 3), x, lambda inputs: inputs)(x)[1].shape == (2, 4)
    with pytest.raises(ValueError, match=r"network must give logits of the shape \(2, num_cl"):
        BridgeSource(nn.Unflatten(1, (2, 2)), x)
    with pytest.raises(ValueError, match=r"feature must name a layer that .* got 'unused'"):
        BridgeSource(Functional(), x, "unused")
    with pytest.raises(ValueError, match=r"feature must give numbers of the shape \(2, ...\)"):
        BridgeSource(Functional(), x, lambda inputs: inputs.sum())
