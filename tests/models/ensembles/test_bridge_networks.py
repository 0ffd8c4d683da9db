"""Bridge networks: exact divergences, training, ensembles and their cost."""

import copy

import pytest
import torch
from torch import nn

from pyro_ext.inference.averaging import BezierPath
from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.models.ensembles import BridgeEnsemble, BridgeNetwork
from pyro_ext.nn import MLP


def network():
    return nn.Sequential(*MLP(4, [6, 5], 3))


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def path():
    return BezierPath(network(), network())


def test_the_tail_of_an_end_has_no_divergence_from_it():
    end = network()
    bridge = BridgeNetwork(BezierPath(end, network()), "1", end[2:], r=0.0)
    x = torch.randn(50, 4)
    torch.testing.assert_close(bridge.log_prob(x), end(x).log_softmax(-1))
    for alpha in (0.0, 0.4):
        assert float(bridge.loss(x, mixup_alpha=alpha).detach()) == pytest.approx(0.0, abs=1e-6)


def test_loss_is_the_divergence_from_the_middle(float64):
    way = path()
    bridge = BridgeNetwork(way, "1", MLP(12, [4], 3), kind=2)
    x = torch.randn(7, 4)
    middle = way.module_at(0.5)(x).softmax(-1)
    ends = [end(x) for end in (way.module_a, way.module_b)]
    joined = torch.cat([end[:2](x) for end in (way.module_a, way.module_b)], -1)
    log_prob = bridge.head(joined).log_softmax(-1)
    torch.testing.assert_close(bridge.log_prob(x), log_prob)
    expected = (middle * (middle.log() - log_prob)).sum(-1).mean()
    torch.testing.assert_close(bridge.loss(x, mixup_alpha=0.0), expected)
    away = [(e.softmax(-1) * (e.log_softmax(-1) - log_prob)).sum(-1).mean() for e in ends]
    torch.testing.assert_close(
        bridge.loss(x, mixup_alpha=0.0, repulsion=0.2), expected - 0.1 * sum(away)
    )


def test_mixup_mixes_each_row_with_another(monkeypatch):
    """Inputs, and so features and target, are the same mixture."""
    seen = []
    bridge = BridgeNetwork(path(), "1", MLP(6, [4], 3))
    for module in (bridge.target, bridge.ends[0]):
        module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    x = torch.eye(8)[:, :4] + torch.arange(8)[:, None] * 10.0
    bridge.loss(x)
    assert torch.equal(*seen) and not torch.equal(seen[0], x)
    torch.manual_seed(0)
    bridge.loss(torch.arange(20_000.0).reshape(-1, 1).expand(-1, 4))
    torch.manual_seed(0)
    weight = torch.distributions.Beta(0.4, 0.4).sample((20_000,))
    assert float(weight.var()) == pytest.approx(0.25 / 1.8, rel=0.05)
    other = torch.randperm(20_000)
    expected = weight * torch.arange(20_000.0) + (1 - weight) * other
    torch.testing.assert_close(seen[-1][:, 0], expected)


def test_only_the_head_is_trained():
    way = path()
    bridge = BridgeNetwork(way, "1", nn.Sequential(nn.Dropout(), MLP(6, [4], 3)))
    bridge.train()
    assert bridge.head.training and not bridge.target.training and not bridge.ends.training
    kept = copy.deepcopy((bridge.target.state_dict(), bridge.ends.state_dict(), way.state_dict()))
    x = torch.randn(40, 4)
    first = copy.deepcopy(bridge.head.state_dict())

    def trained():
        own = copy.deepcopy(bridge)
        batches = ShuffledBatches(x, batch_size=20)
        Trainer(own, seed=0).run(own.loss, 10, batches, progress=False)
        return own

    one, two = trained(), trained()
    after = one.target.state_dict(), one.ends.state_dict(), way.state_dict()
    torch.testing.assert_close(after, kept, rtol=0, atol=0)
    torch.testing.assert_close(one.head.state_dict(), two.head.state_dict(), rtol=0, atol=0)
    assert any((one.head.state_dict()[n] != w).any() for n, w in first.items())


def test_ensembles_run_each_end_once():
    a, b, c = (network() for _ in range(3))
    heads = [MLP(6, [4], 3) for _ in range(2)]
    ab, ac = BezierPath(a, b), BezierPath(a, c)
    single = BridgeEnsemble([BridgeNetwork(ab, "1", heads[0]), BridgeNetwork(ac, "1", heads[1])])
    x = torch.randn(10, 4)
    members = single.probabilities(x)
    assert members.shape == (3, 10, 3) and not members.requires_grad
    torch.testing.assert_close(members[0], a(x).softmax(-1).detach())
    torch.testing.assert_close(members[2], single.bridges[1].log_prob(x).exp().detach())
    of_network, of_head = 4 * 6 + 6 * 5 + 5 * 3, 6 * 4 + 4 * 3
    assert single.relative_cost(x) == pytest.approx(1 + 2 * of_head / of_network)
    large = MLP(12, [4], 3)
    both = BridgeEnsemble([BridgeNetwork(ab, "1", large, kind=2)])
    assert both.relative_cost(x) == pytest.approx(2 + (12 * 4 + 4 * 3) / of_network)
    torch.testing.assert_close(both.probabilities(x)[1], b(x).softmax(-1).detach())

    def first(end, inputs):
        return end[:2](inputs)

    beside = BridgeEnsemble([BridgeNetwork(ab, first, heads[0])])
    torch.testing.assert_close(beside.probabilities(x), members[:2])
    assert beside.relative_cost(x) == pytest.approx(1 + (of_head + 4 * 6) / of_network)


def test_wrong_features_are_refused():
    with pytest.raises(ValueError, match="kind must be 1 or 2, got 3"):
        BridgeNetwork(path(), "1", MLP(6, [4], 3), kind=3)
    bridges = [BridgeNetwork(path(), name, MLP(6, [4], 3)) for name in "01"]
    with pytest.raises(ValueError, match="bridges must take the same features, got"):
        BridgeEnsemble(bridges)
    with pytest.raises(ValueError, match="features must be 1 tensors, got 2"):
        bridges[0](torch.ones(2, 6), torch.ones(2, 6))


@pytest.mark.parametrize("kind", [1, 2])
def test_a_step_on_a_resnet(kind):
    models = pytest.importorskip("torchvision.models")
    way = BezierPath(*(models.resnet18(num_classes=10) for _ in "ab"))
    x = torch.randn(8, 3, 32, 32)
    head = nn.Sequential(
        nn.Conv2d(256 * kind, 64, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    with pytest.raises(ValueError, match="batches must be minibatches"):
        BridgeNetwork(way, "layer3", head, kind)
    bridge = BridgeNetwork(way, "layer3", head, kind, batches=[x])
    assert same(bridge.ends[-1], (way.module_a, way.module_b)[kind - 1])  # and own statistics
    losses = Trainer(bridge, seed=0).run(lambda: bridge.loss(x), 2, progress=False)
    assert all(torch.tensor(losses).isfinite())
    ensemble = BridgeEnsemble([bridge])
    assert ensemble.probabilities(x).shape == (kind + 1, 8, 10)
    assert kind < ensemble.relative_cost(x) < kind + 0.1
