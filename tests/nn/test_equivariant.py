"""Layers of tensors: equivariance once projected, residuals, sites, and what they refuse."""

import copy

import pyro
import pytest
import torch
from torch import nn

from pyro_ext.groups import SO, EmbeddedO2, EquivariantProjector, Group, O, Scale, TensorRep
from pyro_ext.nn.equivariant import (
    EquivariantBilinear,
    GatedNonlinearity,
    SoftEquivariantLinear,
    equivariance_error,
    equivariance_residuals,
    project_weights_,
)

XY = EmbeddedO2(0, 1)
IN, HIDDEN, OUT = TensorRep({0: 2, 1: 2}), TensorRep({0: 3, 1: 3, 2: 2}), TensorRep({2: 1, 0: 1})


class Block(nn.Module):
    """Linear, bilinear and gates, and a linear map to the outputs."""

    def __init__(self, groups, soft=False):
        super().__init__()
        self.gate = GatedNonlinearity(HIDDEN, 3, soft=soft)
        self.linear = SoftEquivariantLinear(IN, self.gate.rep_in, groups)
        self.bilinear = EquivariantBilinear(self.gate.rep_in, groups[0])
        self.output = SoftEquivariantLinear(HIDDEN, OUT, groups)

    def forward(self, x):
        x = self.linear(x)
        return self.output(self.gate(x + self.bilinear(x)))


@pytest.mark.parametrize("group", [O(3), XY, SO(3) | Scale(3)], ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_projected_layers_are_equivariant(group, dtype, bound):
    torch.manual_seed(0)
    network, x = Block([group]).to(dtype), torch.randn(100, 8, dtype=dtype)
    before = equivariance_error(network, IN, OUT, group, x)
    project_weights_(network, 0)
    assert equivariance_error(network, IN, OUT, group, x) < bound < 0.01 < before
    assert float(equivariance_residuals(network).detach()) < 1e-12


def test_groups_of_layers_are_compared_by_their_matrices():
    vector = TensorRep({1: 1})
    reflections = [Group(discrete=torch.tensor(m).diag()[None]) for m in ([1.0, -1.0], [-1.0, 1.0])]
    for second, differs in ((reflections[0], False), (reflections[1], True)):
        pair = [SoftEquivariantLinear(vector, vector, [g]) for g in (reflections[0], second)]
        if not differs:
            assert equivariance_residuals(copy.deepcopy(nn.Sequential(*pair))).shape == (1,)
            continue
        with pytest.raises(ValueError, match="module must have the same groups"):
            equivariance_residuals(nn.Sequential(*pair))


def test_soft_gates_break_the_symmetry_a_little():
    torch.manual_seed(0)
    network, x = project_weights_(Block([O(3)], soft=True), 0), 10.0 * torch.randn(100, 8)
    assert network.gate.weight.detach().unique().tolist() == pytest.approx([1e-3])
    assert 1e-5 < equivariance_error(network, IN, OUT, O(3), x) < 0.05


def test_products_make_matrices_of_vectors():
    """Linear maps do not: without products a network under O(3) is blind to directions."""
    vectors, rep = torch.randn(50, 3, dtype=torch.float64), TensorRep({1: 1, 2: 1})
    assert EquivariantProjector(TensorRep({1: 1}), TensorRep({2: 1}), O(3)).rank == 0
    layer = EquivariantBilinear(rep, O(3)).double()
    found = layer(torch.cat([vectors, torch.zeros(50, 9).double()], -1))[:, 3:]
    outer = (vectors[:, :, None] * vectors[:, None, :]).flatten(1)
    ratio = found / outer
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio))
    assert (1, 1, 0, 2) in layer.paths and (1, 2, 1, 1) in layer.paths


def test_gates():
    gate = GatedNonlinearity(TensorRep({1: 2, 0: 1}), 3, soft=False)
    assert gate.rep_in == TensorRep({0: 3, 1: 2})
    x = torch.randn(4, 9)
    first, second, third = x[:, :3].unbind(1)
    exact = [x[:, 3:6] * second[:, None].sigmoid(), x[:, 6:] * third[:, None].sigmoid()]
    exact.append((first * first.sigmoid())[:, None])
    torch.testing.assert_close(gate(x), torch.cat(exact, -1))


def test_residuals_and_penalty():
    torch.manual_seed(0)
    layer = SoftEquivariantLinear(IN, HIDDEN, [O(3), XY])
    exact = torch.stack(
        [
            EquivariantProjector(IN, HIDDEN, group).residual(layer.weight)
            + EquivariantProjector(None, HIDDEN, group).residual(layer.bias)
            for group in (O(3), XY)
        ]
    )
    torch.testing.assert_close(layer.residuals(), exact)
    strengths = torch.tensor([0.3, 2.0])
    torch.testing.assert_close(layer.penalty(strengths), strengths @ exact)
    double = nn.Sequential(layer, SoftEquivariantLinear(HIDDEN, OUT, [O(3), XY]))
    torch.testing.assert_close(equivariance_residuals(double), exact + double[1].residuals())
    half = project_weights_(nn.Sequential(layer), 1, fraction=0.5)
    torch.testing.assert_close(equivariance_residuals(half)[1], exact[1] / 4)
    gradient = torch.autograd.grad(layer.penalty(torch.tensor([0.0, 1.0])), layer.weight)[0]
    rest = layer.weight - EquivariantProjector(IN, HIDDEN, XY).project(layer.weight)
    torch.testing.assert_close(gradient, rest)


def test_start():
    torch.manual_seed(0)
    layer = SoftEquivariantLinear(IN, HIDDEN, [O(3)])
    weight, bias = layer.weight.detach(), layer.bias.detach()
    torch.testing.assert_close(weight.T @ weight, torch.eye(8))
    assert 0.0 <= float(bias.min()) and float(bias.max()) <= HIDDEN.size(3) ** -0.5
    assert SoftEquivariantLinear(IN, HIDDEN, [O(3)], bias=False).bias is None


def test_sites():
    layer = SoftEquivariantLinear(IN, OUT, [O(3), XY], [0.0, 3.0])
    trace = pyro.poutine.trace(layer).get_trace(torch.randn(4, 8))
    weight, bias = (trace.nodes[name]["value"] for name in ("weight", "bias"))
    x = torch.randn(4, 8)
    found = pyro.condition(layer, {"weight": weight, "bias": bias})(x)
    torch.testing.assert_close(found, x @ weight.T + bias)
    residuals = layer.residuals(weight, bias)
    prior = trace.nodes["weight"]["fn"], trace.nodes["bias"]["fn"]
    total = prior[0].penalty(weight) + prior[1].penalty(bias)
    torch.testing.assert_close(total, 3.0 * residuals[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SoftEquivariantLinear(TensorRep({1: 1}, dim=3), OUT, [O(2)]),
            r"groups\[0\] must act on the 3 dimensions of rep_in = 1T\(1\), got O\(2\)",
        ),
        (
            lambda: SoftEquivariantLinear(IN, OUT, [O(3), O(2)]),
            r"groups\[1\] must act on 3 dimensions .* got O\(2\), which acts on 2",
        ),
        (
            lambda: SoftEquivariantLinear(IN, OUT, [O(3)], 1.0).residuals(),
            "weight must be given if it is a sample site",
        ),
        (
            lambda: equivariance_residuals(nn.Linear(2, 2)),
            "module must have SoftEquivariantLinear layers with parameters",
        ),
        (
            lambda: project_weights_(SoftEquivariantLinear(IN, OUT, [O(3)]), 1),
            "group must be below the 1 of module, got 1",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
