"""The networks: formulas by hand, shapes, numbers of parameters, transforms."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pyro_ext.nn import MLP, FilterResponseNorm, ResNet


def test_mlp_by_hand():
    network = MLP(3, [4, 5], 2)
    state = network.state_dict()
    assert list(state) == ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
    x = torch.randn(6, 3)
    hidden = x @ state["0.weight"].T + state["0.bias"]
    hidden = hidden * hidden.sigmoid()
    hidden = hidden @ state["2.weight"].T + state["2.bias"]
    hidden = hidden * hidden.sigmoid()
    wanted = hidden @ state["4.weight"].T + state["4.bias"]
    torch.testing.assert_close(network(x), wanted)


def test_mlp_without_hidden_layers_and_with_another_activation():
    assert list(MLP(3, [], 2).state_dict()) == ["0.weight", "0.bias"]
    assert isinstance(MLP(3, [4], 2, nn.Tanh)[1], nn.Tanh)


def test_resnet_of_twenty_layers():
    """As in the paper, where shortcuts are no layers of their own."""
    network = ResNet(3, 10, (16, 32, 64), num_blocks=3)
    convolutions = [
        part
        for part in network.modules()
        if isinstance(part, nn.Conv2d) and part.kernel_size[0] > 1
    ]
    assert len(convolutions) + 1 == 20
    assert all(part.bias is None for part in convolutions)


@pytest.mark.parametrize("size", [8, 28])
def test_shapes(size):
    network = ResNet(1, 10)
    x = torch.randn(3, 1, size, size)
    sizes = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    assert network(x).shape == (3, 10)
    assert sizes == [(8, size, size), (16, size // 2, size // 2), (32, size // 4, size // 4)]


def norm(x, state, name):
    """The formula once more."""
    scale = (x.square().mean((2, 3), keepdim=True) + 1e-6).sqrt()
    weight, bias = (state[f"{name}.{part}"].reshape(-1, 1, 1) for part in ("weight", "bias"))
    return weight * x / scale + bias


def test_resnet_by_hand():
    network = ResNet(2, 3, channels=(4, 5))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter))
    state = network.state_dict()
    x = torch.randn(2, 2, 8, 8)

    def convolve(x, name, stride=1):
        kernel = state[f"{name}.weight"]
        return functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    h = functional.silu(norm(convolve(x, "stem"), state, "stem_norm"))
    for name, stride in (("blocks.0", 1), ("blocks.1", 2)):
        path = norm(convolve(h, f"{name}.first", stride), state, f"{name}.first_norm")
        path = convolve(functional.silu(path), f"{name}.second")
        path = norm(path, state, f"{name}.second_norm")
        if stride == 2:
            h = norm(convolve(h, f"{name}.shortcut.0", 2), state, f"{name}.shortcut.1")
        h = functional.silu(h + path)
    wanted = h.mean((2, 3)) @ state["head.weight"].T + state["head.bias"]
    torch.testing.assert_close(network(x), wanted)


def test_norms_follow_every_convolution():
    parts = [type(part) for part in ResNet(1, 10).modules()]
    assert parts.count(FilterResponseNorm) == parts.count(nn.Conv2d)
