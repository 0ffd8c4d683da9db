"""Paths between networks: exact points and gradients, training, guide, batch normalization."""

import copy

import pyro
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO
from torch import nn
from torch.nn.functional import cross_entropy

from pyro_ext.inference.averaging import BezierPath
from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def networks(number, dtype=torch.float32):
    return [MLP(4, [6], 3).to(dtype) for _ in range(number)]


def bent(a, b, control):
    path = BezierPath(a, b)
    path.control.load_state_dict(control.state_dict())
    return path


def assert_same(weights, module):
    torch.testing.assert_close(weights, dict(module.named_parameters()))


@each_dtype
def test_points(dtype):
    a, b, c = networks(3, dtype)
    path = bent(a, b, c)
    assert_same(path.weights(0.0), a)
    assert_same(path.weights(1.0), b)
    middle = path.weights(0.5)
    for name, value in middle.items():
        own = [module.get_parameter(name) for module in (a, c, b)]
        torch.testing.assert_close(value, (own[0] + 2 * own[1] + own[2]) / 4)
        assert value.dtype == dtype
    line = BezierPath(a, b).weights(0.3)
    for name, value in line.items():
        torch.testing.assert_close(value, 0.7 * a.get_parameter(name) + 0.3 * b.get_parameter(name))


def test_gradient_of_the_control_point(float64):
    """It is 2 r (1 - r) times the gradient at the point, nothing at the ends."""
    a, b, c = networks(3, torch.float64)
    path = bent(a, b, c)
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    for r in (0.0, 0.25, 0.5, 1.0):
        at_point = path.module_at(r)
        cross_entropy(at_point(x), y).backward()
        path.zero_grad()
        cross_entropy(path(x, r), y).backward()
        for name, control in path.control.named_parameters():
            expected = 2 * r * (1 - r) * at_point.get_parameter(name).grad
            torch.testing.assert_close(control.grad, expected)
    nodes = torch.arange(1000).add(0.5) / 1000
    assert float((2 * nodes * (1 - nodes)).mean()) == pytest.approx(1 / 3, abs=1e-6)


def test_training_changes_the_control_point_only():
    a, b = networks(2)
    for module in (a, b):
        module.requires_grad_(False)  # modes that are frozen differ, so their path is trained
    kept = copy.deepcopy(a.state_dict()), copy.deepcopy(b.state_dict())
    x = torch.randn(64, 4)
    y = x[:, :3].argmax(-1)

    def train():
        path = BezierPath(a, b)
        trainer = Trainer(path, seed=0)
        batches = ShuffledBatches(x, y, batch_size=16)
        trainer.run(
            lambda x, y: cross_entropy(path(x, torch.rand(())), y), 100, batches, progress=False
        )
        return path

    before = BezierPath(a, b).module_at()
    one, two = train(), train()
    assert cross_entropy(one.module_at()(x), y) < cross_entropy(before(x), y)
    assert_same(one.weights(0.0), a)
    assert_same(one.weights(1.0), b)
    torch.testing.assert_close(one.weights(0.4), two.weights(0.4), rtol=0, atol=0)
    torch.testing.assert_close((a.state_dict(), b.state_dict()), kept)
    assert not any(p.requires_grad for p in (*a.parameters(), *b.parameters()))


def test_what_is_frozen_and_equal_stays():
    a, b = networks(2)
    b[0].load_state_dict(a[0].state_dict())
    for module in (a, b):
        module[0].requires_grad_(False)
    trained = [n for n, p in BezierPath(a, b).named_parameters() if p.requires_grad]
    assert trained == ["control.2.weight", "control.2.bias"]


def test_guide():
    """Draws of weights lie on the curve, and the loss of inference is that of training."""
    a, b, c = networks(3)
    path = bent(a, b, c)
    model = BayesianClassifier(BayesianModule(MLP(4, [6], 3), 100.0))
    x, y = torch.randn(10, 4), torch.arange(10) % 3
    draws = Predictive(model, guide=path.guide, num_samples=5, return_sites=["0.weight", "label"])
    assert draws(x)["label"].shape == (5, 10)
    trace = pyro.poutine.trace(path.guide).get_trace(x)
    r = trace.nodes["r"]["value"]
    assert 0 < r < 1
    torch.testing.assert_close(trace.nodes["2.bias"]["value"], path.weights(r)["2.bias"])
    pyro.set_rng_seed(1)
    elbo = Trace_ELBO().differentiable_loss(model, path.guide, x, y)
    pyro.set_rng_seed(1)
    weights = path.weights(torch.rand(()))
    priors = sum(torch.distributions.Normal(0, 100.0).log_prob(w).sum() for w in weights.values())
    logits = torch.func.functional_call(a, weights, (x,))
    torch.testing.assert_close(elbo, cross_entropy(logits, y, reduction="sum") - priors)
    elbo.backward()
    assert all(p.grad.abs().sum() > 0 for p in path.control.parameters())


def test_statistics_of_batch_normalization_are_those_at_the_position():
    a, b = (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)) for _ in "ab")
    path = BezierPath(a, b)
    x = 3.0 + torch.randn(40, 4)
    module = path.module_at(0.3, x.split(20))
    assert not module.training
    torch.testing.assert_close(module[1].running_mean, module[0](x).mean(0))
    assert a[1].running_mean.abs().max() == 0
    with pytest.raises(ValueError, match="batches must be minibatches of inputs"):
        path.module_at(0.3)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"module_b .* got '0.weight' of the shape \(7, 4\)"):
        BezierPath(MLP(4, [6], 3), MLP(4, [7], 3))
    with pytest.raises(ValueError, match=r"module_b .* got '4.weight' of the shape \(3, 6\) in pl"):
        BezierPath(MLP(4, [6], 3), nn.Sequential(*MLP(4, [6], 3), nn.ReLU(), nn.Linear(6, 3)))
