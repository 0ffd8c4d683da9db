"""Alignment of hidden units: what a permutation did is undone, exactly."""

import copy

import pytest
import torch
from torch import nn

from pyro_ext.inference.averaging import align_units
from pyro_ext.nn import MLP, FilterResponseNorm


class ResidualNetwork(nn.Module):
    """Two stages with additions, normalizations, a depthwise convolution and a flattened map."""

    def __init__(self, norm):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), norm(8)
        self.inner, self.outer = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.features, self.readout = nn.Linear(8 * 4, 7), nn.Linear(7, 4)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(torch.tanh(self.inner(x)))
        x = torch.nn.functional.avg_pool2d(self.depthwise(x), 3)
        return self.readout(torch.tanh(self.features(x.view(x.size(0), -1))))


def networks(name):
    make = {
        "MLP": lambda: MLP(12, [16, 9], 4),
        "batch norm": lambda: ResidualNetwork(nn.BatchNorm2d),
        "filter response norm": lambda: ResidualNetwork(FilterResponseNorm),
        "group norm": lambda: ResidualNetwork(lambda size: nn.GroupNorm(1, size)),
    }[name]
    inputs = torch.randn((400, 12) if name == "MLP" else (60, 3, 6, 6))
    pair = [make(), make()]
    for network in pair:
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        network(inputs)  # statistics of batch normalization
    return (*pair, inputs)


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", ["MLP", "batch norm", "filter response norm", "group norm"])
def test_a_permutation_is_undone(name):
    network, other, inputs = networks(name)
    kept = copy.deepcopy(network.state_dict())
    permuted = align_units(other, network, inputs)
    assert not same(permuted, network)
    torch.testing.assert_close(permuted.eval()(inputs), network.eval()(inputs))
    assert same(align_units(network, permuted, inputs), network)
    torch.testing.assert_close(dict(network.state_dict()), dict(kept), rtol=0, atol=0)


def test_a_resnet():
    models = pytest.importorskip("torchvision.models")
    network, other = (models.resnet18(num_classes=10).train() for _ in "ab")
    inputs = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        for one in (network, other):
            one(inputs)
    aligned = align_units(network, other, inputs)
    assert (aligned.layer2[1].conv2.weight != other.layer2[1].conv2.weight).any()
    torch.testing.assert_close(aligned.eval()(inputs), other.eval()(inputs), rtol=1e-3, atol=1e-4)


def test_a_layer_that_is_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.last(self.again(self.again(self.first(x).tanh()).tanh()).tanh())

    network, other, inputs = Twice(), Twice(), torch.randn(200, 5)
    permuted = align_units(other, network, inputs)
    assert not same(permuted, network) and same(align_units(network, permuted, inputs), network)


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(9, 2)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(torch.cat([x, self.second(x)], 1))


class Branching(Joined):
    def forward(self, x):
        return self.first(x) if x.sum() > 0 else self.first(-x)


def test_what_is_not_known_is_refused(subtests):
    images = torch.randn(30, 3, 6, 6)
    cases = {
        "torch.fx can trace": (Branching, torch.randn(30, 5)),
        "keep its units apart .* at 'cat'": (Joined, torch.randn(30, 5)),
        "keep its units apart": (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)),
            images,
        ),
        "convolutions of one group": (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 2, 1)),
            images,
        ),
        "at most one parameter for each unit": (
            lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm((6, 8)), nn.Linear(8, 2)),
            images,
        ),
        "inputs must be what the network": (Joined, images),
    }
    for message, (make, inputs) in cases.items():
        with subtests.test(message), pytest.raises(ValueError, match=message):
            align_units(make(), make(), inputs)
