"""Diffusion bridges: the schedule in numbers, exact scores, the Pyro program, and training."""

import copy
import math

import pyro
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor, nn

from pyro_ext.models.ensembles import (
    BridgeSchedule,
    BridgeSource,
    DiffusionBridgeNetwork,
    ScoreConvNet,
    ScoreMLP,
    average_bridges,
    ensemble_logits,
)
from pyro_ext.nn import MLP
from pyro_ext.potential import Potential

X0, X1 = torch.tensor([1.3], dtype=torch.float64), torch.tensor([-0.7], dtype=torch.float64)
NOT_ANNEALED = (1.0, 0.0, 1.0, 1.0)


class Towards(nn.Module):
    """The score of bridges whose logits at time zero are known."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.register_buffer("target", target)

    def forward(self, logits: Tensor, feature: Tensor, time: Tensor) -> Tensor:
        return logits - self.target.repeat(len(logits) // len(self.target), 1)


def inputs_and_members(num_members: int = 3) -> tuple[Tensor, list[MLP]]:
    torch.manual_seed(0)
    return torch.randn(40, 4), [MLP(4, [8], 3) for _ in range(num_members)]


# The schedule ------------------------------------------------------------------------------------


def test_variances_of_the_schedule():
    schedule = BridgeSchedule(1e-4, 3e-4, 5)
    assert schedule.variances.tolist() == pytest.approx(
        [0, 5.6e-5, 1.04e-4, 1.44e-4, 1.76e-4, 2e-4]
    )
    one, zero = torch.ones(1), torch.zeros(1)
    weights = [float(schedule.marginal(n, one, zero).mean) for n in range(6)]
    assert weights == pytest.approx([1, 0.72, 0.48, 0.28, 0.12, 0])
    assert [float(schedule.marginal(n, one, zero).variance) for n in (0, 5)] == [0.0, 0.0]


def test_a_symmetric_schedule():
    """The rate rises from 1 to 3 and falls again, and its integral over half the time is 1."""
    variances = BridgeSchedule(1.0, 3.0, 4, "symmetric").variances
    assert variances.tolist() == pytest.approx([0.0, 0.375, 1.0, 1.625, 2.0])


@pytest.mark.parametrize("kind", ["linear", "symmetric"])
def test_steps_take_one_marginal_to_the_one_before(kind):
    """The equation of Chapman and Kolmogorov, in closed form."""
    schedule = BridgeSchedule(1e-4, 3e-4, 5, kind)
    for n in range(1, 6):
        start, end = (schedule.marginal(m, X0, X1) for m in (n, n - 1))
        step = schedule.posterior(n, X0, start.mean)
        slope = schedule.variances[n - 1] / schedule.variances[n]
        assert float(step.mean) == pytest.approx(float(end.mean))
        variance = slope**2 * start.variance + step.variance
        assert float(variance) == pytest.approx(float(end.variance), abs=1e-18)
        if (n, kind) == (3, "linear"):
            assert float(end.mean) == pytest.approx(0.26)
            assert float(end.variance) == pytest.approx(4.992e-5)
            # That of the authors' code adds all of the variance of the step.
            wrong = slope**2 * start.variance + schedule.variances[3] - schedule.variances[2]
            assert float(wrong) == pytest.approx(6.10e-5, abs=1e-7)


def test_bridges_lose_no_digits():
    """Points in double precision, and Python's numbers beside them, in either place."""
    schedule, x0, x1 = BridgeSchedule(1e-4, 3e-4, 5), [1.3], [-0.7]
    for first, second in ((X0, x1), (x0, X1), (x0, X1.numpy())):
        for n in (3, torch.tensor([3])):
            mean = schedule.marginal(n, first, second).mean
            assert mean.dtype == torch.float64 and float(mean) == pytest.approx(-0.14, abs=1e-15)
    for first, second in ((X0.float(), X1), (X0, X1.float())):  # also where one has fewer
        assert schedule.posterior(3, first, second).mean.dtype == torch.float64
    assert schedule.marginal(3, x0, x1).mean.dtype == torch.float32


def test_many_steps_at_once():
    schedule = BridgeSchedule(0.1, 0.3, 3)
    x0, x1 = torch.randn(3, 2), torch.randn(3, 2)
    many = schedule.marginal(torch.tensor([1, 2, 3]), x0, x1)
    alone = [schedule.marginal(n, x0[n - 1], x1[n - 1]) for n in (1, 2, 3)]
    torch.testing.assert_close(many.mean, torch.stack([one.mean for one in alone]))
    torch.testing.assert_close(many.variance, torch.stack([one.variance for one in alone]))
    torch.testing.assert_close(many.sample()[2], x1[2])
    with pytest.raises(ValueError, match="n must be from 1 to 3, got 4"):
        schedule.posterior(4, x0, x1)


# The logits of an ensemble -----------------------------------------------------------------------


def test_logits_of_the_mean():
    torch.manual_seed(0)
    logits = 5.0 * torch.randn(3, 7, 4, dtype=torch.float64)
    found = ensemble_logits(logits)
    torch.testing.assert_close(found.softmax(-1), logits.softmax(-1).mean(0), atol=1e-12, rtol=0)
    assert float(found.sum(-1).abs().max()) < 1e-12


# Draws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_an_exact_score_ends_where_it_should(num_steps):
    x, members = inputs_and_members()
    target = ensemble_logits(torch.stack([member(x).detach() for member in members]))
    schedule = BridgeSchedule(0.5, 0.1, num_steps)
    bridge = DiffusionBridgeNetwork(BridgeSource(members[0], x), schedule, Towards(target))
    torch.testing.assert_close(bridge.sample(x, 4, seed=1), target.expand(4, 40, 3))


@pytest.mark.statistical
def test_sites_of_the_program_have_the_marginals_of_the_bridge(float64):
    """Under an exact score. False alarms: one seed in 1,000 (24 z-scores below 4)."""
    x, target = torch.randn(2, 4), torch.tensor([[1.0, -1.0, 0.0], [2.0, 0.0, -2.0]])
    schedule = BridgeSchedule(0.4, 0.2, 5, "symmetric")
    bridge = DiffusionBridgeNetwork(BridgeSource(MLP(4, [8], 3), x), schedule, Towards(target))
    pyro.set_rng_seed(0)
    num_draws = 4000
    sites = Predictive(bridge, num_samples=num_draws, parallel=True)(x)
    for n in range(1, 5):
        exact = schedule.marginal(n, target, sites["l_5"][0])
        drawn = sites[f"l_{n}"]
        error = (drawn.mean(0) - exact.mean) / (exact.variance / num_draws).sqrt()
        assert float(error.abs().max()) < 4
        error = (drawn.var(0) / exact.variance - 1) / math.sqrt(2 / num_draws)
        assert float(error.abs().max()) < 4


def test_without_noise_draws_agree():
    x, members = inputs_and_members()
    source, score = BridgeSource(members[0], x), ScoreMLP(3, 8)
    for noise in (1e-2, 1e-6, 1e-12):
        bridge = DiffusionBridgeNetwork(source, BridgeSchedule(noise, noise, 5), score)
        first, second = (bridge.sample(x, seed=seed) for seed in (0, 1))
        assert float((first - second).abs().max()) < 5 * noise**0.5 + 1e-6
    assert torch.equal(bridge.sample(x, seed=0), first)


def test_the_pyro_program():
    x, members = inputs_and_members()
    bridge = DiffusionBridgeNetwork(BridgeSource(members[0], x))
    for parallel in (False, True):
        found = Predictive(bridge, num_samples=3, parallel=parallel)(x)
        assert {k: tuple(v.shape) for k, v in found.items()} == {
            "obs": (3, 40),
            **{f"l_{n}": (3, 40, 3) for n in range(6)},
        }
    trace = pyro.poutine.trace(bridge).get_trace(x, torch.zeros(40, dtype=torch.int64))
    expected = trace.nodes["l_0"]["value"].log_softmax(-1)[:, 0].sum()
    for n in range(5, 1, -1):
        value, before = (trace.nodes[f"l_{m}"]["value"] for m in (n, n - 1))
        estimate = bridge.estimate(value, bridge.source(x)[1], n)
        expected = expected + bridge.schedule.posterior(n, estimate, value).log_prob(before).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    assert "source.network.0.weight" not in pyro.get_param_store()


def test_the_program_is_recorded():
    """The density of the chain given classes, as samplers of this package see it."""
    x, members = inputs_and_members()
    schedule = BridgeSchedule(0.5, 0.2, 3)
    bridge = DiffusionBridgeNetwork(BridgeSource(members[0], x), schedule)
    y = torch.arange(40) % 3
    potential = Potential(bridge, x, y)
    z = potential.init(num_chains=2, seed=0)
    assert sorted(z) == ["l_1", "l_2"]
    for chain, value in enumerate(potential(z)):
        conditioned = pyro.condition(bridge, {name: z[name][chain] for name in z})
        exact = pyro.poutine.trace(conditioned).get_trace(x, y).log_prob_sum()
        torch.testing.assert_close(value, -exact, rtol=1e-4, atol=1e-3)


def test_several_bridges():
    x, members = inputs_and_members()
    source = BridgeSource(members[0], x)
    one_step = BridgeSchedule(0.1, 0.1, 1)
    bridges = [DiffusionBridgeNetwork(source, one_step) for _ in range(3)]
    expected = torch.stack([bridge.probs(x) for bridge in bridges]).mean(0)
    torch.testing.assert_close(average_bridges(bridges, x, 2, seed=0), expected)
    other = DiffusionBridgeNetwork(BridgeSource(members[0], x), one_step)
    with pytest.raises(ValueError, match=r"bridges must have one source.*bridges\[1\]"):
        average_bridges([bridges[0], other], x)


# Training ----------------------------------------------------------------------------------------


def test_the_loss_is_that_of_scores():
    """The error of (l_n - l_0) / sigma_n, times the largest variance."""
    x, members = inputs_and_members()
    schedule = BridgeSchedule(0.2, 0.1, 3)
    source = BridgeSource(members[0], x)
    bridge = DiffusionBridgeNetwork(source, schedule, annealing=NOT_ANNEALED)
    torch.manual_seed(5)
    found = bridge.loss(x, members)
    torch.manual_seed(5)
    torch.distributions.Beta(torch.tensor(1.0), torch.tensor(1.0)).sample()
    target = ensemble_logits(torch.stack([member(x).detach() for member in members]))
    n = torch.randint(1, 4, (40,))
    assert n.unique().tolist() == [1, 2, 3]
    logits, feature = source(x)
    noisy = schedule.marginal(n, target, logits).sample()
    scale = schedule.variances[n].sqrt().float()[:, None]
    score = bridge.score(noisy, feature, n / 3) / scale
    expected = 0.15 * (score - (noisy - target) / scale).square().sum(-1).mean()
    torch.testing.assert_close(found, expected)
    exact = DiffusionBridgeNetwork(source, schedule, Towards(target))
    assert float(exact.loss(x, members)) == pytest.approx(0.0, abs=1e-10)


def test_training_approaches_the_ensemble_and_goes_on_from_a_checkpoint(tmp_path):
    x, members = inputs_and_members()
    for member in members:
        member[-1].weight.data *= 4.0
    before = copy.deepcopy([member.state_dict() for member in members])
    members[1].eval()

    def trained(num_steps: int, name: str) -> DiffusionBridgeNetwork:
        torch.manual_seed(1)
        bridge = DiffusionBridgeNetwork(BridgeSource(members[0], x))
        file = tmp_path / name
        options = dict(batch_size=20, mixup=0.0, seed=0, checkpoint=file, progress=False)
        bridge.fit(x, members, num_steps, **options)
        return bridge

    bridge, again = trained(200, "one"), trained(200, "one")
    assert torch.equal(bridge.sample(x, seed=0), again.sample(x, seed=0))
    target = torch.stack([member(x).softmax(-1).detach() for member in members]).mean(0)
    start = (members[0](x).detach() / (2 + 0.4 / 6)).softmax(-1)
    error = (bridge.probs(x, seed=0) - target).square().sum()
    assert float(error) < 0.2 * float((start - target).square().sum())
    fast = bridge.distill(x, members, 20, batch_size=20, seed=0, progress=False)
    assert fast.schedule.num_steps == 1 and fast.source is bridge.source
    assert torch.equal(again.sample(x, seed=0), bridge.sample(x, seed=0))
    assert [member.training for member in members] == [True, False, True]
    for member, state in zip(members, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in member.state_dict().items())


def test_distillation_has_two_targets():
    x, members = inputs_and_members()
    source = BridgeSource(members[0], x)
    target = ensemble_logits(torch.stack([member(x).detach() for member in members]))
    one_step = BridgeSchedule(0.01, 0.01, 1)
    of_teacher = target + torch.randn(40, 3)
    teacher = DiffusionBridgeNetwork(source, score=Towards(of_teacher))
    student = DiffusionBridgeNetwork(source, one_step, Towards(target.lerp(of_teacher, 0.3)))
    loss = student.loss(x, members, teacher=teacher, alpha=0.3)
    assert float(loss) == pytest.approx(0.0, abs=1e-10)


def test_wrong_arguments():
    x, members = inputs_and_members()
    bridge = DiffusionBridgeNetwork(BridgeSource(members[0], x))
    with pytest.raises(ValueError, match=r"members\[1\] must give logits of shape \(2, 3\)"):
        bridge.fit(x, [members[0], MLP(4, [8], 5)], 1, batch_size=20)
    with pytest.raises(ValueError, match="mixup must be 0 for inputs of torch.int64, got 0.4"):
        bridge.fit(torch.ones(40, 4, dtype=torch.int64), members, 1)


# Networks of any kind ----------------------------------------------------------------------------


def test_maps_of_features_and_double_precision():
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).double()
    x = torch.rand(6, 1, 9, 9, dtype=torch.float64)
    bridge = DiffusionBridgeNetwork(BridgeSource(network, x))
    assert isinstance(bridge.score, ScoreConvNet) and bridge.source.feature == "1"
    bridge.fit(x, [network], 2, batch_size=3, progress=False)
    assert bridge.sample(x, 2).dtype == torch.float64
