"""Averages of weights and the normal distribution around them: exact numbers, forms, resumption."""

from itertools import pairwise

import pyro
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pyro_ext.inference import Trainer
from pyro_ext.inference.averaging import SWA, SWAG, update_batch_norm
from pyro_ext.inference.training import ShuffledBatches

PATH = torch.tensor([[1.0, 0.0], [3.0, 1.0], [2.0, -1.0], [5.0, 0.5], [0.5, 2.0]])


def collected(path, max_rank=20):
    swag = SWAG(max_rank)
    for row in path:
        swag.collect(row)
    return swag


def test_weights_are_a_site_of_a_pyro_model():
    swag = collected(PATH)
    trace = pyro.poutine.trace(lambda: pyro.sample("weights", swag.distribution())).get_trace()
    assert trace.log_prob_sum().isfinite()


@pytest.mark.parametrize("max_rank", [2, 3, 5, 20])
def test_moments_of_a_path(max_rank):
    """Against all of it in memory; the deviations are the last ones, in their order."""
    swag = collected(PATH, max_rank)
    torch.testing.assert_close(swag.mean, PATH.mean(0))
    torch.testing.assert_close(swag.variance, PATH.var(0, correction=0))
    means = PATH.cumsum(0) / torch.arange(1, 6)[:, None]
    deviations = (PATH - means)[-max_rank:]
    torch.testing.assert_close(swag.deviations, deviations)
    low = deviations.mT @ deviations / (2 * (len(deviations) - 1))
    covariance = 3.0 * (swag.variance.diag() / 2 + low)
    torch.testing.assert_close(swag.distribution(3.0).covariance_matrix, covariance)


def test_a_small_variance_far_from_zero_is_not_lost():
    """q - m^2 in single precision is off by ten times the variance here."""
    path = 1e4 + 1e-1 * torch.randn(1000, 1, dtype=torch.float64)
    swag = collected(path.float())
    torch.testing.assert_close(
        swag.variance.double(), path.float().double().var(0, correction=0), rtol=1e-5, atol=0
    )
    assert collected(torch.ones(5, 1)).variance.item() == pytest.approx(1e-12)


@pytest.mark.statistical
def test_draws_have_the_covariance(float64):
    """Moments of 40,000 draws within 5 standard errors: false alarms below 1e-5 a number."""
    swag, size = collected(PATH.double()), 40_000
    draws = swag.sample(2.0, (size,), generator=torch.Generator().manual_seed(0))
    wanted = swag.distribution(2.0).covariance_matrix
    error = ((wanted.square() + wanted.diag().outer(wanted.diag())) / size).sqrt()
    assert bool(((draws.mT.cov() - wanted).abs() < 5 * error).all())
    assert bool(((draws.mean(0) - swag.mean).abs() < 5 * (wanted.diag() / size).sqrt()).all())


def test_draws_of_a_seed_and_of_no_scale():
    swag = collected(PATH)
    one, other = (swag.sample(generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, other) and not torch.equal(one, swag.mean)
    assert torch.equal(swag.sample(0.0), swag.mean)
    torch.manual_seed(3)
    assert torch.equal(swag.sample(), one)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_weights_of_every_kind():
    """A module, its parameters by name, their vector and a parameter store agree."""
    nets = [network() for _ in range(3)]
    for number, net in enumerate(nets):
        torch.manual_seed(number)
        for parameter in net.parameters():
            nn.init.normal_(parameter)
    before = [{n: v.clone() for n, v in net.state_dict().items()} for net in nets]
    batches = torch.randn(4, 8, 3)
    store = pyro.get_param_store()
    collectors = [SWAG() for _ in range(4)]
    for net in nets:
        parts = dict(net.named_parameters())
        pyro.clear_param_store()
        for name, value in parts.items():
            pyro.param(name, value.detach().clone())
        forms = (net, parts, torch.nn.utils.parameters_to_vector(net.parameters()), store)
        for swag, form in zip(collectors, forms, strict=True):
            swag.collect(form)
    for one, other in pairwise(collectors):
        assert torch.equal(one.deviations, other.deviations)
    made = [swag.module(nets[0], batches=batches.unbind()) for swag in collectors]
    for one, other in pairwise(made):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    average = torch.stack([net[0].weight for net in nets]).mean(0)
    torch.testing.assert_close(made[0][0].weight, average)
    assert made[0].training == nets[0].training
    for net, kept in zip(nets, before, strict=True):
        assert all(torch.equal(v, kept[n]) for n, v in net.state_dict().items())


def test_constrained_parameters_are_averaged_where_they_are_free():
    store, swa = pyro.get_param_store(), SWA()
    for value in (1.0, 4.0):
        pyro.clear_param_store()
        pyro.param("rate", torch.tensor(value), constraint=torch.distributions.constraints.positive)
        swa.collect(store)
    assert swa.mean.exp().item() == pytest.approx(2.0)  # the geometric mean


def test_statistics_of_batches_are_those_of_the_weights():
    net, batches = network(), [torch.randn(16, 3) for _ in range(3)]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    swag = SWAG()
    for number in range(3):
        torch.manual_seed(number)
        swag.collect({n: torch.randn_like(p) for n, p in net.named_parameters()})
    draw = swag.sample(generator=torch.Generator().manual_seed(0))
    for vector in (None, draw):
        made = swag.module(net, vector, batches=batches)
        hidden = torch.stack([made[0](batch) for batch in batches])
        torch.testing.assert_close(made[1].running_mean, hidden.mean((0, 1)).detach())
        torch.testing.assert_close(made[1].running_var, hidden.var(1).mean(0).detach())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    plain = nn.Sequential(nn.Linear(3, 2))
    assert torch.equal(update_batch_norm(plain, batches)[0].weight, plain[0].weight)


def trained(path, num_steps, kind):
    """A training that collects, up to a step, from where a file left it."""
    net, collector = network(), kind()
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    y = (x.sum(-1) > 0).long()
    trainer = Trainer(net, lambda p: torch.optim.SGD(p, 0.05, 0.9), stateful=[collector], seed=0)

    def loss(x, y):
        if trainer.num_steps >= 5 and trainer.num_steps % 3 == 0:
            collector.collect(net)
        return cross_entropy(net(x), y)

    batches = ShuffledBatches(x, y, batch_size=8)
    trainer.run(loss, num_steps, batches, checkpoint=path, save_every=4, progress=False)
    return collector


@pytest.mark.parametrize("kind", [SWA, lambda: SWAG(3)])
def test_a_killed_run_goes_on(kind, tmp_path):
    """Stopped before anything was collected, with few and with many weights."""
    whole = trained(tmp_path / "whole", 40, kind)
    for stop in (3, 9, 11, 30):
        trained(tmp_path / f"{stop}", stop, kind)
        resumed = trained(tmp_path / f"{stop}", 40, kind)
        for name, value in whole.state_dict().items():
            same = torch.equal(value, resumed.state_dict()[name]) if name in MOMENTS else True
            assert same, (stop, name)
    assert whole.num_collected == 12


MOMENTS = {"num_collected", "mean", "squares", "latest"}


def test_names_may_come_in_another_order():
    swa = SWA().collect({"a": torch.zeros(2), "b": torch.ones(1)})
    weights = swa.collect({"b": torch.ones(1), "a": torch.zeros(2)}).weights()
    assert weights["a"].tolist() == [0.0, 0.0] and weights["b"].tolist() == [1.0]


def test_memory_does_not_grow():
    swag = SWAG(max_rank=4)
    sizes = set()
    for number in range(20):
        swag.collect(torch.full((10,), float(number)))
        sizes.add(sum(v.numel() for n, v in swag.state_dict().items() if n in MOMENTS))
    assert sizes == {1 + 10 + 10 + 40}


def test_types():
    """Half precision is averaged in double, and weights are given back in half."""
    swa = SWA()
    for value in (1.0, 1.0 + 2**-7):
        swa.collect({"a": torch.full((2,), value).bfloat16(), "b": torch.full((1,), value)})
    weights = swa.weights()
    assert weights["a"].dtype == torch.bfloat16 and weights["b"].dtype == torch.float32
    assert weights["b"].item() == 1.0 + 2**-8
    assert SWAG().collect(torch.ones(2, dtype=torch.float64)).variance.dtype == torch.float64
    half = collected(PATH.bfloat16())
    assert half.distribution().sample().dtype == half.sample().dtype == torch.float32
    assert half.weights(half.sample())[""].dtype == torch.bfloat16


def test_what_is_refused(subtests):
    net, swag = network(), collected(PATH)
    of_net = SWAG().collect(net).collect(net)
    broken = {"good": torch.ones(2), "bad": torch.tensor([1.0, torch.nan])}
    other = nn.Sequential(nn.Linear(3, 5))
    for call, error, message in [
        (lambda: SWA().collect(broken), ValueError, r"weights\['bad'\] must be finite, got nan"),
        (lambda: swag.collect(torch.ones(3)), ValueError, "weights must be like those before"),
        (lambda: of_net.collect(other), ValueError, r"shape \(4, 3\) for '0.weight', got .*5, 3"),
        (lambda: SWA().collect(net.state_dict()), TypeError, "num_batches_tracked'] must be float"),
        (lambda: SWA().collect("abc"), TypeError, "weights must be a module, .* got 'abc'"),
        (lambda: SWA().collect(nn.ReLU()), ValueError, "weights must have parameters, got ReLU"),
        (lambda: SWA().mean, RuntimeError, "weights must be collected at least once"),
        (lambda: SWAG().collect(net).sample(), RuntimeError, "at least twice before"),
        (lambda: of_net.module(net), ValueError, "batches must be minibatches .* got None"),
        (lambda: of_net.module(net, batches=[]), ValueError, "batches must hold a minibatch"),
        (lambda: of_net.module(other), ValueError, r"module must have '0.weight' .* \(4, 3\)"),
        (lambda: swag.module(other), ValueError, "module must have 2 parameters in all, got 20"),
        (lambda: swag.weights(torch.ones(3)), ValueError, r"vector must have the shape \(2,\)"),
        (
            lambda: SWAG(3).load_state_dict(swag.state_dict()),
            ValueError,
            "same max_rank, 3, got 20",
        ),
    ]:
        with subtests.test(message), pytest.raises(error, match=message):
            call()
    assert swag.num_collected == 5
