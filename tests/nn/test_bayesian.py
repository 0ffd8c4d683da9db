"""Networks with priors: sites, densities, scales by pattern."""

import pickle

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import nn

from pyro_ext.nn import MLP, BayesianModule, FilterResponseNorm
from pyro_ext.reparam import expand_module

X = torch.randn(7, 4)


def values_of(trace):
    return {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}


def test_sites_are_the_parameters():
    network = MLP(4, [5], 3)
    trace = poutine.trace(BayesianModule(network)).get_trace(X)
    assert trace.stochastic_nodes == [name for name, _ in network.named_parameters()]
    network.load_state_dict(values_of(trace))
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], network(X))


@pytest.mark.parametrize(
    ("prior_scale", "wanted"),
    [
        (0.3, [0.3, 0.3, 0.3, 0.3]),
        ({"default": 0.3}, [0.3, 0.3, 0.3, 0.3]),
        ({"*.bias": 1.5, "default": 0.2}, [0.2, 1.5, 0.2, 1.5]),
        ({"0.*": 2.0, "*.bias": 1.5, "2.weight": 0.1}, [2.0, 2.0, 0.1, 1.5]),
    ],
)
def test_scales(prior_scale, wanted):
    network = BayesianModule(MLP(4, [5], 3), prior_scale)
    assert list(network.prior_scales.values()) == wanted
    trace = poutine.trace(network).get_trace(X)
    density = torch.zeros(())
    for (name, value), scale in zip(values_of(trace).items(), wanted, strict=True):
        torch.testing.assert_close(
            trace.nodes[name]["fn"].base_dist.scale, torch.full(value.shape, scale)
        )
        density = density + dist.Normal(0.0, scale).log_prob(value).sum()
    torch.testing.assert_close(trace.log_prob_sum(), density)


@pytest.mark.parametrize("width", [4, 400])
def test_default_priors_fit_the_width(width):
    """Logits are of the size of one, where priors of one scale make them grow with the width."""
    module = nn.Sequential(
        nn.Conv1d(2, width, 3), nn.GroupNorm(1, width), nn.ReLU(), nn.Flatten(), MLP(width, [9], 3)
    )
    network = BayesianModule(module)
    assert network.prior_scales["0.weight"] == 6**-0.5
    assert network.prior_scales["4.0.weight"] == width**-0.5
    assert network.prior_scales["1.weight"] == network.prior_scales["0.bias"] == 1.0
    inputs = torch.randn(20, 2, 3)
    logits = torch.stack([network(inputs) for _ in range(200)])
    assert 1.0 < float(logits.square().mean()) ** 0.5 < 3.0


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(6), (6,)),
        (nn.GroupNorm(2, 6), (6, 5)),
        (nn.BatchNorm1d(6).eval(), (6,)),
        (nn.InstanceNorm1d(6, affine=True), (6, 5)),
        (nn.LayerNorm(6, elementwise_affine=False), (6,)),
        (FilterResponseNorm(6), (6, 5)),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("make", [BayesianModule, expand_module])
@pytest.mark.parametrize("options", [{}, {"prior_scale": 0.5}])
def test_scales_of_normalization_layers_are_around_one(layer, shape, make, options):
    module = nn.Sequential(nn.Identity(), layer, nn.Flatten(), nn.LazyLinear(2))
    inputs = torch.randn(4, *shape)
    module(inputs)
    trace = poutine.trace(make(module, **options)).get_trace(inputs)
    centers = {
        name.removesuffix(".V"): trace.nodes[name]["fn"].mean.unique().tolist()
        for name in trace.stochastic_nodes
    }
    gain = centers.pop("1.weight", [1.0])
    assert gain == [1.0] and all(center == [0.0] for name, center in centers.items() if "." in name)


def test_type_of_the_parameters():
    trace = poutine.trace(BayesianModule(MLP(4, [5], 3).double(), 0.1)).get_trace(X.double())
    assert all(value.dtype == torch.float64 for value in values_of(trace).values())
    assert trace.nodes["0.weight"]["fn"].base_dist.scale[0, 0].item() == 0.1


def test_the_network_is_copied():
    module = MLP(4, [5], 3)
    network = BayesianModule(module)
    assert module[0].weight.requires_grad and not network.module[0].weight.requires_grad
    assert network.module[0].weight.data_ptr() != module[0].weight.data_ptr()


def test_buffers_stay():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3).eval())
    module[1].running_mean.fill_(2.0)
    network = BayesianModule(module)
    trace = poutine.trace(network).get_trace(X)
    module.load_state_dict(values_of(trace), strict=False)
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], module(X))


def test_pickle():
    network = pickle.loads(pickle.dumps(BayesianModule(MLP(4, [5], 3), {"default": 0.5})))
    assert network.prior_scales["0.weight"] == 0.5
    assert network(X).shape == (7, 3)


def test_what_users_may_get_wrong():
    module = MLP(4, [5], 3)
    with pytest.raises(ValueError, match="prior_scale names '1.\\*', which fits none of the sites"):
        BayesianModule(module, {"1.*": 0.5, "default": 1.0})
    with pytest.raises(ValueError, match="prior_scale has no entry for site '0.weight'"):
        BayesianModule(module, {"*.bias": 0.5})
    with pytest.raises(ValueError, match="module must have parameters, got SiLU"):
        BayesianModule(nn.SiLU())
