"""Networks whose weights are products of matrices."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import nn

from pyro_ext.inference import MCMC, SGHMC
from pyro_ext.potential import Potential
from pyro_ext.reparam import expand_module

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


def network():
    return nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 3)
    )


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.SiLU(), nn.Conv2d(3, 5, 2), nn.Flatten(), nn.Linear(45, 2)
    )


def classifier(expanded):
    def model(x, y=None):
        logits = expanded(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model


def values_of(trace):
    return {name: node["value"] for name, node in trace.nodes.items() if node["type"] == "sample"}


def test_names_and_shapes_of_sites():
    trace = poutine.trace(expand_module(network(), left=2)).get_trace(X)
    shapes = {name: tuple(trace.nodes[name]["value"].shape) for name in trace.stochastic_nodes}
    assert shapes == {
        "0.P1": (8, 8),
        "0.P2": (8, 8),
        "0.weight.V": (8, 4),
        "0.bias.V": (8,),
        "1.P1": (8, 8),
        "1.P2": (8, 8),
        "1.weight.V": (8,),
        "1.bias.V": (8,),
        "3.P1": (8, 8),
        "3.P2": (8, 8),
        "3.Q1": (8, 8),
        "3.weight.V": (8, 8),
        "3.bias.V": (8,),
        "5.Q1": (8, 8),
        "5.weight.V": (3, 8),
        "5.bias": (3,),
    }


@pytest.mark.parametrize(("make", "x"), [(network, X), (convolutions, torch.randn(2, 1, 6, 6))])
def test_merged_parameters_are_those_of_the_network(make, x):
    module = make()
    expanded = expand_module(module, prior_scale=0.5)
    torch.manual_seed(0)
    trace = poutine.trace(expanded).get_trace(x)
    merged = expanded.merge(values_of(trace))
    assert set(merged) == set(module.state_dict())
    module.load_state_dict(merged)
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], module(x))
    for name, value in merged.items():
        assert value.shape == module.state_dict()[name].shape
        torch.testing.assert_close(trace.nodes[name]["value"], value)


def test_products_by_hand():
    expanded = expand_module(network(), left=2, right=1)
    torch.manual_seed(1)
    values = values_of(poutine.trace(expanded).get_trace(X))
    left = values["3.P1"] @ values["3.P2"]
    merged = expanded.merge(values)
    wanted = left @ values["3.weight.V"] @ values["3.Q1"]
    torch.testing.assert_close(merged["3.weight"], wanted)
    torch.testing.assert_close(merged["3.bias"], left @ values["3.bias.V"])
    norm = values["1.P1"] @ values["1.P2"]
    torch.testing.assert_close(merged["1.weight"], norm @ values["1.weight.V"])
    assert torch.equal(merged["5.bias"], values["5.bias"])


def test_draws_of_many_chains_merge_together():
    expanded = expand_module(network())
    rows = [values_of(poutine.trace(expanded).get_trace(X)) for _ in range(6)]
    names = [name for name in rows[0] if "value" not in name]
    stacked = {n: torch.stack([row[n] for row in rows]).unflatten(0, (2, 3)) for n in names}
    merged = expanded.merge(stacked)
    assert merged["3.weight"].shape == (2, 3, 8, 8) and merged["3.bias"].shape == (2, 3, 8)
    torch.testing.assert_close(merged["3.weight"][1, 2], expanded.merge(rows[5])["3.weight"])


def test_the_start_is_the_network_of_the_middle_factors():
    """The function is unchanged bit for bit: products with identity matrices are exact."""
    module = network()
    model = classifier(expand_module(module, prior_scale=0.3))
    potential = Potential(model, X, Y)
    start = potential.constrain(potential.init(seed=0))
    start = {name: value[0] for name, value in start.items()}
    own = {name.removesuffix(".V"): v for name, v in start.items() if name[-2:] not in ("P1", "Q1")}
    wanted = torch.func.functional_call(module, own, (X,))
    with poutine.condition(data=start):
        assert torch.equal(expand_module(module, prior_scale=0.3)(X), wanted)


def test_density():
    expanded = expand_module(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)), 0.3, strength=7.0)
    trace = poutine.trace(expanded).get_trace(X)
    values = values_of(trace)
    wanted = torch.zeros(())
    for name in trace.stochastic_nodes:
        scale = 7.0**-0.5 if name[-2:] in ("P1", "Q1") else 0.3
        wanted = wanted + dist.Normal(0.0, scale).log_prob(values[name]).sum()
    torch.testing.assert_close(trace.log_prob_sum(), wanted)


def test_without_factors_sites_are_the_parameters():
    expanded = expand_module(network(), left=0, right=0)
    trace = poutine.trace(expanded).get_trace(X)
    assert trace.stochastic_nodes == [name for name, _ in network().named_parameters()]


def test_other_parameters_are_left_alone():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 4)
            self.scale = nn.Parameter(torch.ones(()))
            self.head = nn.Linear(4, 3)

        def forward(self, index):
            return self.head(self.scale * self.table(index))

    trace = poutine.trace(expand_module(Embedded())).get_trace(torch.tensor([0, 4]))
    assert set(trace.stochastic_nodes) == {"scale", "table.weight", "head.weight", "head.bias"}


@pytest.mark.parametrize("backend", ["eager", "trace"])
def test_chains(backend):
    expanded = expand_module(network(), prior_scale=0.3)
    friction = {"*.P?": 1.0, "*.Q?": 1.0, "default": 50.0}
    kernel = SGHMC(classifier(expanded), step_size=1e-3, friction=friction, backend=backend)
    run = MCMC(kernel, 3, num_chains=2, thinning=4, seed=0, progress=False).run(X, Y)
    draws = run.get_samples()
    torch.testing.assert_close(draws["3.weight"], expanded.merge(draws)["3.weight"])
    assert draws["0.weight"].shape == (6, 8, 4)


def test_what_users_may_get_wrong():
    with pytest.raises(ValueError, match="module must have parameters, got ReLU"):
        expand_module(nn.ReLU())
    expanded = expand_module(network())
    with pytest.raises(ValueError, match="samples lacks the sites \\['0.P1', '0.weight.V'\\]"):
        expanded.merge({})


def test_predictions_of_convolutions_in_a_model_with_a_plate():
    """Pyro gives the factors of draws dimensions for the plate, which layers would trip over."""
    model = classifier(expand_module(convolutions()))
    images = torch.randn(12, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    draws = Predictive(model, num_samples=3)(images)
    latent = set(poutine.trace(model).get_trace(images).stochastic_nodes) - {"y"}
    samples = {name: value.flatten(0, 1) for name, value in draws.items() if name in latent}
    predicted = Predictive(model, samples)(images)
    assert predicted["y"].shape == (3, 12)
    assert predicted["0.weight"].flatten(0, 1).shape == (3, 3, 1, 3, 3)
