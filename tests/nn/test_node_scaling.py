"""Scales of nodes: what they multiply, what is pruned, and how unequal they are."""

import pytest
import torch
from torch import nn

from pyro_ext.nn import (
    NodeScale,
    asymmetric_variances,
    largest_nodes,
    zipf_weights,
)


def test_nodes_are_multiplied_by_roots_of_variances():
    scale = NodeScale(torch.tensor([4.0, 0.0, 9.0]))
    nodes = torch.tensor([[1.0, 5.0, -1.0], [2.0, 1.0, 0.0]])
    torch.testing.assert_close(scale(nodes), torch.tensor([[2.0, 0.0, -3.0], [4.0, 0.0, 0.0]]))


def test_variances_are_a_parameter_only_if_they_are_to_be_learned():
    values = torch.tensor([1.0, 2.0])
    fixed, learnable = NodeScale(values), NodeScale(values, learnable=True)
    assert dict(fixed.named_parameters()) == {} and list(fixed.state_dict()) == ["variances"]
    assert list(dict(learnable.named_parameters())) == ["variances"]
    learnable(torch.ones(2)).sum().backward()
    torch.testing.assert_close(learnable.variances.grad, 0.5 / values.sqrt())
    values += 1.0  # a copy was taken
    assert fixed.variances.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("learnable", [True, False])
def test_a_pruned_network_is_that_of_the_nodes_that_stay(learnable):
    variances = torch.tensor([0.1, 3.0, 0.2, 1.0, 0.5])
    network = nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(), NodeScale(variances, learnable=learnable), nn.Linear(5, 2)
    )
    inputs = torch.randn(7, 3)
    before = network(inputs)
    network[2].prune(0.0)
    assert (network(inputs) == before).all()
    network[2].prune(0.4)
    kept = [1, 3, 4]
    hidden = network[1](network[0](inputs))[:, kept] * variances[kept].sqrt()
    expected = hidden @ network[3].weight[:, kept].T + network[3].bias
    torch.testing.assert_close(network(inputs), expected)


def test_pruned_nodes_have_no_gradient():
    scale = NodeScale(torch.tensor([0.1, 4.0, 1.0]), learnable=True)
    scale.prune(0.4)
    nodes = torch.tensor([[2.0, 3.0, 5.0]], requires_grad=True)
    scale(nodes).sum().backward()
    torch.testing.assert_close(scale.variances.grad, torch.tensor([0.0, 0.75, 2.5]))
    torch.testing.assert_close(nodes.grad, torch.tensor([[0.0, 2.0, 1.0]]))


def test_the_most_important_nodes_stay_in_each_row():
    importance = torch.tensor([[1.0, 4.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0]])
    assert largest_nodes(importance, 0.5).int().tolist() == [[0, 1, 0, 1], [1, 1, 0, 0]]
    assert largest_nodes(importance, 0.49).sum(-1).tolist() == [3, 3]
    assert largest_nodes(importance, 0.0).all()
    # Equal ones keep their order, however many there are.
    assert largest_nodes(torch.ones(5000), 0.5).int().diff().tolist().count(-1) == 1


def test_a_share_that_is_a_round_number_prunes_that_many(subtests):
    for percent in range(100):
        with subtests.test(percent=percent):
            kept = largest_nodes(torch.arange(100.0), percent / 100)
            assert int((~kept).sum()) == percent and not kept[:percent].any()


def test_weights_fall_as_a_power_of_the_rank():
    weights = zipf_weights(1000, 0.4).double()
    slopes = weights.log().diff() / torch.arange(1.0, 1001.0).double().log().diff()
    torch.testing.assert_close(slopes, torch.full_like(slopes, -2.5), rtol=1e-3, atol=0)
    assert weights[0] == 1.0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_variances_have_a_uniform_and_an_unequal_part(share):
    variances = asymmetric_variances(torch.tensor([[4.0, 3.0, 1.0], [1.0, 1.0, 0.0]]), share)
    torch.testing.assert_close(variances.sum(-1), torch.ones(2))
    expected = share / 3 + (1 - share) * torch.tensor([0.5, 0.375, 0.125])
    torch.testing.assert_close(variances[0], expected)


def test_bad_arguments_are_named(subtests):
    for call, message in [
        (lambda: asymmetric_variances(torch.tensor([1.0, -1.0]), 0.5), "weights must be finite"),
        (lambda: asymmetric_variances(torch.zeros(3), 0.5), "weights must not all be zero"),
    ]:
        with subtests.test(message), pytest.raises(ValueError, match=message):
            call()
