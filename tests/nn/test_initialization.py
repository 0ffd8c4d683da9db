"""Starts of chains at what a network is initialized with."""

import pickle

import torch

from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule, ResNet, init_to_module
from pyro_ext.potential import Potential
from pyro_ext.reparam import expand_module

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 3


def starts(network, module, inputs=X, num_chains=3):
    potential = Potential(BayesianClassifier(network), inputs, Y)
    strategy = pickle.loads(pickle.dumps(init_to_module(module=module)))
    return potential.init(num_chains, seed=0, init_strategy=strategy)


def test_layers_start_within_the_bounds_of_pytorch_and_chains_apart():
    module = MLP(4, [64], 3)
    found = starts(BayesianModule(module, 50.0), module)
    for name, fan_in in (("0.weight", 4), ("0.bias", 4), ("2.weight", 64), ("2.bias", 64)):
        bound = fan_in**-0.5
        assert 0.6 * bound < found[name].abs().max() <= bound
        assert not torch.equal(found[name][0], found[name][1])


def test_norms_start_as_they_are_and_factors_at_the_identity():
    module = ResNet(1, 3, channels=(4, 6))
    found = starts(expand_module(module, 0.2), module, torch.randn(30, 1, 8, 8))
    assert (found["stem_norm.weight.V"] == 1.0).all()
    assert torch.equal(found["stem.P1"], torch.eye(4).expand(3, 4, 4))
    assert found["stem.weight.V"].shape == (3, 4, 1, 3, 3) and found["stem.weight.V"].std() > 0.1


def test_the_module_is_left_alone():
    module = MLP(4, [5], 3)
    before = [parameter.clone() for parameter in module.parameters()]
    starts(BayesianModule(module), module)
    for one, other in zip(before, module.parameters(), strict=True):
        assert torch.equal(one, other)
