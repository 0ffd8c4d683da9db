"""Pruning by magnitude and by other scores."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from pyro_ext.inference.averaging import MagnitudePruner, snip_scores, synflow_scores


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_density_after_rounds(rate):
    """Within 1 / size a round of (1 - rate)^c."""
    pruner, weights = MagnitudePruner(rate), {"w": torch.randn(1000)}
    remaining = 1000
    for number in range(1, 11):
        pruner.step(weights)
        remaining -= math.floor(rate * remaining)
        assert int(pruner.masks["w"].sum()) == remaining
        assert abs(1 - pruner.sparsity() - (1 - rate) ** number) <= number / 1000


def test_the_smallest_go_and_stay_away():
    pruner = MagnitudePruner(0.5)
    first = pruner.step({"w": torch.tensor([1.0, -2.0, 3.0, -4.0])})
    assert first["w"].tolist() == [False, False, True, True]
    second = pruner.step({"w": torch.tensor([9.0, 9.0, -1.0, 2.0])})
    assert second["w"].tolist() == [False, False, False, True]
    assert first["w"].tolist() == [False, False, True, True]


def test_ties_and_zeros_among_the_remaining():
    """As many go as should, whatever their values."""
    pruner = MagnitudePruner(0.25)
    for remaining in (6, 5, 4, 3):
        assert int(pruner.step({"w": torch.zeros(8)})["w"].sum()) == remaining


def test_global_and_layer():
    """What is scaled down goes first, where all layers are looked at together."""
    torch.manual_seed(0)
    weights = {"a": torch.randn(20, 50), "b": 1e-3 * torch.randn(20, 50)}
    masks = MagnitudePruner(0.2).step(weights)
    gone = {name: int((~mask).sum()) for name, mask in masks.items()}
    assert gone["a"] <= 4 and gone["a"] + gone["b"] == 400
    masks = MagnitudePruner(0.2, scope="layer").step(weights)
    assert [int((~mask).sum()) for mask in masks.values()] == [200, 200]


def test_biases_and_norms_are_left_alone():
    assert list(MagnitudePruner().step(network())) == ["0.weight", "3.weight"]
    names = dict(network().named_parameters())
    assert "1.weight" in MagnitudePruner().step(names)  # without the module its layer is unknown


def test_apply_is_by_torch():
    module = network()
    pruner = MagnitudePruner(0.5)
    masks = pruner.step(module)
    pruner.apply(module)
    assert prune.is_pruned(module)
    assert torch.equal(module.get_submodule("0").weight != 0, masks["0.weight"])
    torch.optim.SGD(module.parameters(), 0.1).step()
    module(torch.randn(5, 8))
    assert not module.get_submodule("0").weight[~masks["0.weight"]].any()
    with pytest.raises(ValueError, match=r"module must have a parameter '0\.weight'"):
        pruner.apply(nn.Linear(2, 2))
    before = dict(module.named_parameters())
    again = pruner.step(module)  # in a loop: the module has pruned weights by now
    pruner.apply(module)
    assert round(pruner.sparsity(), 2) == 0.75
    assert not any((again[name] & ~masks[name]).any() for name in masks)
    assert torch.equal(module.get_submodule("0").weight != 0, again["0.weight"])
    assert all(before[name] is parameter for name, parameter in module.named_parameters())


def test_other_weights_are_refused():
    pruner = MagnitudePruner()
    pruner.step({"w": torch.ones(5)})
    for wrong in ({"w": torch.ones(4)}, {"v": torch.ones(5)}):
        with pytest.raises(ValueError, match="weights must hold for 'w'"):
            pruner.step(wrong)
    with pytest.raises(ValueError, match="weights must have a tensor without"):
        MagnitudePruner().step({"bias": torch.ones(5)})
    with pytest.raises(ValueError, match="finite"):
        pruner.step({"w": torch.tensor([1.0, 2.0, math.nan, 1.0, 1.0])})
    assert int(pruner.masks["w"].sum()) == 4


def test_scores():
    """SNIP of a linear loss; SynFlow: each layer carries all of the flow."""
    linear = nn.Linear(3, 2, bias=False)
    x = torch.randn(5, 3)
    scores = snip_scores(linear, lambda: linear(x).sum())
    torch.testing.assert_close(scores["weight"], (linear.weight * x.sum(0)).abs().detach())
    module = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    module.train()
    found = synflow_scores(module, torch.zeros(7, 4))
    weights = [parameter.detach().abs() for parameter in module.parameters()]
    flow = float((weights[1] @ weights[0]).sum())
    for name in ("0.weight", "2.weight"):
        assert float(found[name].sum()) == pytest.approx(flow, rel=1e-5)
    assert module.training and not MagnitudePruner(0.5).step(found)["0.weight"].all()
