"""The page on unequal scales of nodes: its parts, and in full its claims."""

import math

import pytest
import torch

from pyro_ext.models.wide_networks import AsymmetricNetwork

pytest.importorskip("sklearn")

PAGE = "asymmetric-scaling"
pytestmark = pytest.mark.short_page


def test_simulated_data_are_those_of_the_paper(names):
    inputs, targets = names["simulate"](2000, 7, 3)
    torch.testing.assert_close(inputs.norm(dim=-1), torch.ones(2000))
    noise = targets[:, 0] - (5.0 * torch.sin(math.pi * inputs)).mean(-1)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.1)  # six standard errors
    assert abs(float(noise.mean())) < 0.014
    again = names["simulate"](2000, 7, 3)
    assert (again[0] == inputs).all() and (again[1] == targets).all()


def test_descent_is_that_of_the_whole_gradient(names):
    variances = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    network = AsymmetricNetwork(2, 1, variances, seed=0)
    inputs = torch.tensor([[1.0, 0.5], [-0.3, 1.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    start = network.hidden.weight.detach().clone()
    outputs = network(inputs).detach()
    losses = names["descend"](network, (inputs, targets), 0.1, 1)
    torch.testing.assert_close(losses, (outputs - targets).square().mean()[None])
    active = (inputs @ start.T > 0).double()
    slopes = active * network.output.weight * variances.sqrt() / math.sqrt(2)
    gradient = (2.0 * (outputs - targets) / 2 * slopes).T @ inputs
    torch.testing.assert_close(network.hidden.weight.detach(), start - 0.1 * gradient)


def test_a_loss_that_is_not_finite_is_an_error(names):
    network = AsymmetricNetwork(2, 1, torch.ones(30), seed=0)
    with pytest.raises(FloatingPointError, match="training diverged at step"):
        names["descend"](network, (torch.ones(3, 2), torch.full((3, 1), 1e30)), 0.1, 2)


def test_targets_are_noise_of_the_variance_of_the_outputs(names):
    inputs, targets = names["flow_inputs"], names["flow_targets"]
    outputs = [
        names["make_network"](names["TANGENT"], (10, 500, 1), seed, torch.float64)(inputs).detach()
        for seed in range(30)
    ]
    assert float(torch.cat(outputs).var()) == pytest.approx(0.1, rel=0.1)
    assert float(targets.var()) == pytest.approx(0.1, rel=0.5)  # three standard errors


def test_transfer_is_a_regression_on_the_largest_nodes(names, monkeypatch):
    """Targets that are such a feature are found; nothing is learned from points after the 500th."""
    monkeypatch.setitem(names["risk_ratio"].__globals__, "NUMBERS", (1, 2))
    variances = torch.tensor([0.1, 0.6, 0.3])
    network = AsymmetricNetwork(3, 1, variances, seed=0)
    inputs = torch.randn(800, 3)
    targets = network.features(inputs, 2)[:, 1:].detach()
    one, two = names["transfer_risks"](network, inputs, targets)
    assert two < 1e-4 * float(targets.var()) and one > 0.1 * float(targets.var())
    other = targets.clone()
    other[500:] += 1.0
    assert names["transfer_risks"](network, inputs, other)[1] == pytest.approx(1.0, rel=0.05)


def test_risks_are_compared_as_means_over_numbers_of_features(names):
    equal, mixed = names["TANGENT"], names["MIXED"]
    risks = {(equal, s): [1.0, 3.0] for s in range(3)} | {(mixed, s): [0.5, s] for s in range(3)}
    assert names["risk_ratio"](risks) == {0: 0.125, 1: 0.375, 2: 0.625}
