"""Axial blocks: exact values, and what the checker of equivariance finds."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, layer_norm, multi_head_attention_forward

from pyro_ext.nn.axial import (
    GXCNN,
    SXCNN,
    AxialConv,
    AxialGraphConv,
    AxialLift,
    AxialPool,
    AxialSelfAttention,
    check_axis_equivariance,
)
from pyro_ext.testing.nn import check_axial_block

SIZES = [(7,), (5, 7), (4, 5, 6), (3, 4, 5, 3)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_a_strided_layer_is_a_symmetric_kernel():
    """Kernel (a, b), average pooling and a sum are [[a, (a + b) / 2], [(a + b) / 2, b]]."""
    a, b = 0.7, -1.3
    block = AxialConv(1, 1, 2, "sum", stride=2, activation=None)
    with torch.no_grad():
        block.operator[0].weight.copy_(torch.tensor([[[a, b]]]))
        block.operator[0].bias.zero_()
    patch = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert block(patch[None, :, :, None]).item() == pytest.approx(-6.0, abs=1e-6)
    images = torch.randn(3, 4, 6)
    kernel = torch.tensor([[a, (a + b) / 2], [(a + b) / 2, b]])
    expected = conv2d(images[:, None], kernel[None, None], stride=2)[:, 0]
    torch.testing.assert_close(block(images[..., None])[..., 0], expected)


def test_a_layer_is_the_maximum_over_axes():
    """Each axis by hand: convolution, norm over channels, ReLU."""
    block = AxialConv(2, 4)
    conv, (norm, _) = block.operator
    field = torch.randn(3, 4, 5, 2)
    rows = conv(field.flatten(0, 1).transpose(1, 2)).transpose(1, 2).unflatten(0, (3, 4))
    columns = conv(field.transpose(1, 2).flatten(0, 1).transpose(1, 2))
    columns = columns.transpose(1, 2).unflatten(0, (3, 5)).transpose(1, 2)
    both = [layer_norm(one, (4,), norm.weight, norm.bias).relu() for one in (rows, columns)]
    torch.testing.assert_close(block(field), torch.maximum(*both))


def test_along_a_constant_axis_a_convolution_is_of_a_constant():
    block = AxialConv(1, 4)
    field = torch.randn(2, 1, 6, 1).expand(-1, 9, -1, -1)
    outputs = block(field)
    torch.testing.assert_close(outputs[:, 1:-1], outputs[:, 1:2].expand(-1, 7, -1, -1))
    assert not torch.allclose(outputs[:, 0], outputs[:, 1])
    periodic = AxialConv(1, 4, padding_mode="circular")(field)
    torch.testing.assert_close(periodic, periodic[:, :1].expand(-1, 9, -1, -1))


def test_attention_along_a_line_is_ordinary_attention():
    block = AxialSelfAttention(8, 2, "sum")
    project, output = block.operator.project, block.operator.output
    line = torch.randn(3, 6, 8)
    expected, _ = multi_head_attention_forward(
        *[line.transpose(0, 1)] * 3,
        *(8, 2, project.weight, project.bias, None, None, False, 0.0),
        *(output.weight, output.bias),
        need_weights=False,
    )
    torch.testing.assert_close(block(line), expected.transpose(0, 1))
    value = line @ project.weight[16:].mT + project.bias[16:]
    alone = value @ output.weight.mT + output.bias  # each position by itself, along an axis of one
    torch.testing.assert_close(block(line[:, None])[:, 0], block(line) + alone)


def test_attention_knows_distances_and_their_direction():
    block = AxialSelfAttention(2, 1, max_distance=1)
    with torch.no_grad():
        block.operator.bias.copy_(torch.tensor([[-50.0, -50.0, 50.0]]))  # the next one only
        block.operator.project.weight.copy_(torch.eye(2).repeat(3, 1))
        block.operator.project.bias.zero_()
        block.operator.output.weight.copy_(torch.eye(2))
        block.operator.output.bias.zero_()
    line = torch.rand(1, 4, 2)
    found = block(line)
    torch.testing.assert_close(found[:, 2], line[:, 3])
    assert not torch.allclose(found[:, 0], line[:, 1])  # two further ones count as near


def test_a_lift_sees_ordered_pairs():
    """Rows of the kernel are along the neighbor, columns along the axis itself."""
    lift = AxialLift(1, 1, activation=None)
    image = torch.randn(2, 5, 6, 1)
    kernel, bias = lift.operator[0].weight, lift.operator[0].bias
    by_hand = [
        conv2d(image[..., 0][:, None], k, bias, padding=1)[:, 0] for k in (kernel.mT, kernel)
    ]
    torch.testing.assert_close(lift(image)[..., 0], torch.stack(by_hand, 1))
    line = torch.randn(2, 5, 1)
    wide = line[:, None, :, 0].expand(-1, 3, -1)
    expected = conv2d(wide[:, None], kernel, bias, padding=1)[:, 0].mean(1)
    torch.testing.assert_close(lift(line)[:, 0, :, 0], expected)


def test_messages_are_along_the_own_axis_of_the_sender():
    block = AxialGraphConv(1, 1, agg="sum", activation=None)
    node, neighbor = block.node[0], block.neighbor[0]
    features = torch.randn(2, 2, 4, 5, 1)

    def along(conv, field, axis):
        lines = field[..., 0].movedim(axis, -1)
        return (
            conv(lines.flatten(0, 1)[:, None])[:, 0].unflatten(0, lines.shape[:2]).movedim(-1, axis)
        )

    first, second = features.unbind(1)
    expected = [
        along(node, first, 1) + along(neighbor, second, 2),
        along(node, second, 2) + along(neighbor, first, 1),
    ]
    torch.testing.assert_close(block(features)[..., 0], torch.stack(expected, 1))
    torch.testing.assert_close(AxialPool("mean")(features), features.mean(1))


@pytest.mark.parametrize("make", [SXCNN, GXCNN])
def test_parameters_do_not_know_the_axes(make):
    network = make(2, 3, channels=8)
    before = sum(parameter.numel() for parameter in network.parameters())
    for sizes in SIZES:
        assert network(torch.randn(2, *sizes, 2)).shape == (2, 3)
        check_axis_equivariance(network.backbone, (2, *sizes, 2))
    assert before == sum(parameter.numel() for parameter in network.parameters())


def test_defaults_are_those_of_the_paper():
    convs = [m for m in SXCNN(1).modules() if isinstance(m, nn.Conv1d)]
    assert [(c.out_channels, c.kernel_size) for c in convs] == [(64, (3,))] * 5
    network = GXCNN(1)
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 1
    assert sum(isinstance(m, AxialGraphConv) for m in network.modules()) == 4


def test_sizes_of_strided_and_transposed_layers():
    field = torch.randn(2, 7, 9, 3)
    assert AxialConv(3, 4, 5, stride=3)(field).shape == (2, 2, 3, 4)
    assert AxialConv(3, 4, 2, stride=2, transposed=True)(field).shape == (2, 14, 18, 4)


class Misaligned(nn.Module):
    """A layer that forgets to move the axis back."""

    def forward(self, inputs):
        return inputs + inputs.movedim(1, -2).cumsum(-2).reshape(inputs.shape)


class Ordered(nn.Module):
    """A layer that works along the first axis only."""

    def forward(self, inputs):
        return inputs.cumsum(1)


class Blind(nn.Module):
    """A layer that sees nothing."""

    def forward(self, inputs):
        return inputs * 0.0


@pytest.mark.parametrize("make", [Misaligned, Ordered])
def test_the_checker_finds_what_is_not_equivariant(make):
    module = make()
    with pytest.raises(AssertionError, match="axes in the order"):
        check_axis_equivariance(module, (2, 4, 5, 3))
    with pytest.raises(AssertionError, match="axes in the order"):
        check_axial_block(make, 3)


def test_the_checker_refuses_nan_and_other_outputs():
    with pytest.raises(AssertionError, match="differ by nan"):
        check_axis_equivariance(lambda x: x * torch.nan, (2, 4, 5, 3))
    for wrong in (torch.sum, lambda x: (x,), lambda x: x[:1], lambda x: x.long()):
        with pytest.raises(ValueError, match="module must map"):
            check_axis_equivariance(wrong, (2, 4, 5, 3))
    with pytest.raises(TypeError, match="dtype must be a type of floating-point numbers"):
        check_axis_equivariance(nn.Identity(), (2, 4, 5, 3), dtype=torch.long)
    seen = []
    module = nn.Linear(3, 3, device="meta")
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].device.type))
    with pytest.raises((NotImplementedError, RuntimeError)):  # there are no values to compare
        check_axis_equivariance(module, (2, 4, 5, 3))
    assert seen[0] == "meta"
    with pytest.raises(AssertionError, match="does not count"):
        check_axial_block(Blind, 3)


def test_wrong_fields_are_refused():
    with pytest.raises(ValueError, match=r"inputs must have the shape \(batch, \*spatial, 2\)"):
        AxialConv(2, 3)(torch.randn(2, 4, 3))
    with pytest.raises(
        ValueError, match=r"features must have the shape \(batch, K, \*spatial, 2\)"
    ):
        AxialGraphConv(2, 3)(torch.randn(2, 3, 4, 5, 2))
    with pytest.raises(ValueError, match="kernel_size must be stride=2 plus an even number"):
        AxialConv(2, 3, 3, stride=2)
    with pytest.raises(ValueError, match="padding_mode must be 'zeros' if transposed"):
        AxialConv(2, 3, padding_mode="circular", transposed=True)
    for block, least in (
        (AxialConv(2, 3, 7, padding_mode="circular"), 3),
        (AxialConv(2, 3, 4, stride=4), 4),
        (AxialLift(2, 3, 7, padding_mode="circular", stride=3, depth=2), 9),
    ):
        assert block(torch.randn(1, least, least, 2)).shape[0] == 1
        for sizes in ((least - 1, 9), (9, least - 1)):
            with pytest.raises(ValueError, match=f"inputs must have axes of size at least {least}"):
                block(torch.randn(1, *sizes, 2))
    with pytest.raises(ValueError, match="features must have axes of size at least 4"):
        AxialGraphConv(2, 3, 4, stride=4)(torch.randn(1, 2, 3, 5, 2))
