"""Simplified graphs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.potential import Potential
from pyro_ext.potential._graph_passes import constants_of
from pyro_ext.potential.graph_capture import Gradient, capture, vectorize


def test_no_two_constants_share_memory() -> None:
    """Columns of one tensor do as arguments of a model, and a compiled loop takes no overlap."""

    def model(first: Tensor, second: Tensor, response: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(response), subsample_size=5) as index:
            mean = first[index] * weight[0] + second[index] * weight[1]
            pyro.sample("response", dist.Normal(mean, 1.0), obs=response[index])

    table = torch.randn(20, 3)
    potential = Potential(model, *table.unbind(-1))
    graph = potential.gradient.graph(2)
    assert isinstance(graph, torch.fx.GraphModule)
    constants = {id(constant): constant for constant in constants_of(graph)}.values()
    points = [constant.untyped_storage().data_ptr() for constant in constants]
    assert len(points) >= 3
    assert len(points) == len(set(points))

    params = potential.init(2, seed=0)
    index = {"rows": torch.arange(5)}
    before = potential(params, index)
    table[:5] += 1.0
    torch.testing.assert_close(
        potential(params, index), Potential(model, *table.unbind(-1))(params, index)
    )
    assert not torch.allclose(before, potential(params, index))


def test_products_with_one_and_first_powers_go() -> None:
    """Those that change the type stay, and so do other numbers."""

    def function(x: Tensor, count: Tensor) -> Tensor:
        return x * 1.0 + x**1.0 + x / 1.0 + 2.0 * x + count / 1.0

    x, count = torch.randn(5), torch.arange(5)
    graph = capture(function, x, count)
    torch.testing.assert_close(graph(x, count), function(x, count))
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert sorted(name.split(".")[1] for name in names) == [
        "add",
        "add",
        "add",
        "add",
        "div",
        "mul",
    ]


@pytest.mark.parametrize("num_chains", [1, 3])
def test_products_with_common_matrices_are_one(num_chains: int) -> None:
    """On either side; the common matrix is not copied for each chain."""
    data, output = torch.randn(7, 4).double(), torch.randn(3, 5).double()

    def function(x: Tensor) -> Tensor:
        hidden = (data @ x.reshape(4, 3)).tanh()
        of_vector = (data @ x[:4]).exp().sum()
        return (hidden @ output).square().sum() + (hidden.mT @ data).sum() + of_vector

    gradient = Gradient(function)
    x = torch.randn(num_chains, 12).double()
    graph = vectorize(capture(gradient, x[0]), x)
    values, gradients = graph(x)
    for chain, (value, found) in enumerate(zip(values, gradients, strict=True)):
        expected = gradient(x[chain])
        torch.testing.assert_close((value, found), expected)
    assert not any(node.target is torch.ops.aten.bmm.default for node in graph.graph.nodes)
    turned = [node for node in graph.graph.nodes if node.target is torch.ops.aten.mm.default]
    shapes = [node.args[0].meta["tensor_meta"].shape for node in turned if node.args[0].meta]
    assert torch.Size([num_chains, 4]) in shapes and torch.Size([7, 4]) not in shapes
    copied = (num_chains, *data.shape), (num_chains, *data.mT.shape)
    assert not any(constant.shape in copied for constant in constants_of(graph))
