"""Batch ensembles: what members compute, what merges, and which networks are taken."""

import pytest
import torch
from torch import nn

from pyro_ext.nn import MLP, BatchEnsemble, BatchEnsembleConv2d, BatchEnsembleLinear, ResNet


class Attention(nn.Module):
    """A layer that another one looks into, and one that is shared."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first = self.second = nn.Linear(8, 8)

    def forward(self, x):
        return self.second(self.first(self.attention(x, x, x)[0]))


@torch.no_grad()
def disperse(module):
    """Give factors other values than one."""
    for name, parameter in module.named_parameters():
        if name.endswith("factors"):
            parameter.add_(0.3 * torch.randn_like(parameter))


@torch.no_grad()
def average(module):
    """Give each member the averages of the factors."""
    for name, parameter in module.named_parameters():
        if name.endswith("factors"):
            parameter.copy_(parameter.mean(0).expand_as(parameter))


NETWORKS = {
    "linear": (lambda: nn.Linear(4, 3), (5, 4)),
    "MLP": (lambda: MLP(4, [6], 3), (5, 4)),
    "of sequences": (lambda: MLP(4, [6], 3), (5, 7, 4)),
    "no bias": (lambda: nn.Linear(4, 3, bias=False), (5, 4)),
    "convolution": (
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="circular"),
        (5, 4, 8, 8),
    ),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (5, 4, 8, 8)),
    "ResNet": (lambda: ResNet(1, 3, (4, 6)), (5, 1, 8, 8)),
    "batch norm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)
        ),
        (5, 1, 8, 8),
    ),
    "attention": (Attention, (5, 6, 8)),
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def case(request, float64):
    make, shape = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield make().eval(), torch.randn(shape)


class TestAnyNetwork:
    def test_members_start_as_the_network(self, case):
        network, x = case
        ensemble = BatchEnsemble(network, 3)
        expected = network(x.repeat(3, *[1] * (x.dim() - 1))).unflatten(0, (3, -1))
        assert torch.equal(ensemble(x), expected)
        assert torch.equal(ensemble.merge()(x), network(x))

    def test_merged_is_the_member_with_average_factors(self, case):
        network, x = case
        ensemble = BatchEnsemble(network, 3)
        disperse(ensemble)
        merged = ensemble.merge()
        members = ensemble(x)
        assert (members[0] - members[1]).abs().max() > 1e-3
        average(ensemble)
        torch.testing.assert_close(merged(x).expand(3, *[-1] * members[0].dim()), ensemble(x))

    def test_merged_is_of_the_first_classes(self, case):
        network, _ = case
        ensemble = BatchEnsemble(network, 2)
        merged = ensemble.merge()
        assert [type(m) for m in merged.modules()] == [type(m) for m in network.modules()]
        assert merged.state_dict().keys() == network.state_dict().keys()
        assert repr(merged) == repr(network)

    def test_the_network_is_not_changed(self, case):
        network, x = case
        before = {name: value.clone() for name, value in network.state_dict().items()}
        text = repr(network)
        ensemble = BatchEnsemble(network, 2)
        disperse(ensemble)
        ensemble(x).sum().backward()
        ensemble.merge()
        assert repr(network) == text and all(p.grad is None for p in network.parameters())
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())

    def test_some_members(self, case):
        network, x = case
        ensemble = BatchEnsemble(network, 4)
        disperse(ensemble)
        torch.testing.assert_close(ensemble(x, members=[3, 1]), ensemble(x)[[3, 1]])


@pytest.mark.usefixtures("float64")
class TestFormulas:
    def test_members_of_a_linear_layer(self):
        layer, x = BatchEnsembleLinear(4, 3, num_members=2), torch.randn(2, 5, 4)
        disperse(layer)
        r, s = layer.in_factors, layer.out_factors
        expected = s[:, None] * ((x * r[:, None]) @ layer.weight.T + layer.bias)
        torch.testing.assert_close(layer(x.flatten(0, 1)).view(2, 5, 3), expected)

    def test_members_of_a_convolution(self):
        layer, x = BatchEnsembleConv2d(4, 6, 3, num_members=2, groups=2), torch.randn(2, 5, 4, 8, 8)
        disperse(layer)
        outputs = layer(x.flatten(0, 1)).view(2, 5, 6, 6, 6)
        for member in range(2):
            r, s = (
                factors[member][:, None, None] for factors in (layer.in_factors, layer.out_factors)
            )
            plain = nn.functional.conv2d(r * x[member], layer.weight, layer.bias, groups=2)
            torch.testing.assert_close(outputs[member], s * plain)

    @pytest.mark.parametrize("constant", ["in_factors", "out_factors", None])
    def test_mean_weight_differs_by_the_covariance_of_factors(self, constant):
        layer = BatchEnsembleLinear(4, 3, num_members=5)
        disperse(layer)
        if constant:
            average(nn.ParameterDict({constant: getattr(layer, constant)}))
        r, s = layer.in_factors, layer.out_factors
        weights = layer.weight * s[:, :, None] * r[:, None, :]
        covariance = (s - s.mean(0)).T @ (r - r.mean(0)) / 5
        difference = weights.mean(0) - layer.merge().weight
        torch.testing.assert_close(difference, layer.weight * covariance, atol=1e-12, rtol=0)
        assert (difference.abs().max() < 1e-12) == (constant is not None)


class TestLayers:
    def test_of_other_types_and_modes(self):
        layer = nn.Linear(4, 3, dtype=torch.float64).requires_grad_(False)
        calls = []
        layer.register_forward_hook(lambda *_: calls.append(1))
        ensemble = BatchEnsemble(nn.Sequential(layer), 2)
        assert ensemble(torch.randn(5, 4, dtype=torch.float64)).dtype == torch.float64
        assert calls == [1]
        assert not ensemble.merge()[0].weight.requires_grad

    def test_no_random_numbers_are_drawn(self):
        network = MLP(4, [6], 3)
        state = torch.get_rng_state()
        BatchEnsemble(network, 2).merge()
        assert torch.equal(state, torch.get_rng_state())

    def test_what_shares_a_weight_keeps_it(self):
        embedding, layer = nn.Embedding(3, 4), nn.Linear(4, 3)
        layer.weight = embedding.weight
        ensemble = BatchEnsemble(nn.Sequential(embedding, layer), 2)
        disperse(ensemble)
        merged = ensemble.merge()
        assert torch.equal(merged[0].weight, embedding.weight)
        assert not torch.equal(merged[1].weight, embedding.weight)


class TestErrors:
    def test_rows_that_are_not_divided(self):
        with pytest.raises(ValueError, match=r"inputs must have as many rows .* = 2.*\(5, 4\)"):
            BatchEnsembleLinear(4, 3, num_members=2)(torch.randn(5, 4))

    def test_networks(self):
        with pytest.raises(ValueError, match="network must have a torch.nn.Linear"):
            BatchEnsemble(nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU()), 2)
        with pytest.raises(ValueError, match="network must be an ordinary network"):
            BatchEnsemble(BatchEnsemble(nn.Linear(2, 3), 2), 2)
        with pytest.warns(FutureWarning):
            normed = nn.utils.weight_norm(nn.Linear(2, 3))
        with pytest.raises(ValueError, match="layers whose weight is a parameter, got Linear"):
            BatchEnsemble(nn.Sequential(normed), 2)

    def test_outputs_that_are_no_rows(self):
        with pytest.raises(ValueError, match="network must return a tensor with a row for each"):
            BatchEnsemble(nn.Sequential(nn.Linear(2, 3), nn.Flatten(0)), 2)(torch.randn(5, 2))
