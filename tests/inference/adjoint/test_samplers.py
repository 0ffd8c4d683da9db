"""Adjoint samplers against optimal controls in closed form, exact weights, and their training."""

import math
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext.checkpoint.files import CheckpointError
from pyro_ext.distributions import DirichletOU
from pyro_ext.inference import AdjointSampler, FunctionalAdjointSampler
from pyro_ext.inference.adjoint import (
    ConstantNoise,
    ControlNetwork,
    DoubleWell1D,
    GeometricNoise,
    OnsagerMachlup,
)
from pyro_ext.inference.training import TrainingDiverged
from tests.inference.adjoint.harmonic import (
    VARIANCE,
    Perturbed,
    gradients_at_optimum,
    one_mode,
    optimal_coefficient,
    quadratic,
)
from tests.inference.models import assert_mean

pytestmark = pytest.mark.usefixtures("float64")

STIFFNESS = 3.0
LOG_Z = -0.5 * math.log(1.0 + STIFFNESS * VARIANCE)


@pytest.mark.statistical
@pytest.mark.parametrize("stiffness", [0.0, STIFFNESS])
def test_the_loss_of_paths_is_least_at_the_optimal_control(stiffness):
    """Its gradient there is zero within 4.5 standard errors: false-alarm rate 2e-5 for three.

    Without an energy, too, where the control has to turn the distribution of the process at time
    one into the invariant one.
    """
    control = Perturbed(partial(optimal_coefficient, stiffness=stiffness))
    sampler = FunctionalAdjointSampler(one_mode(), quadratic(stiffness), control)
    scale = (1.0 + stiffness * VARIANCE) ** -0.5
    mean, error = gradients_at_optimum(sampler, lambda n: scale * torch.randn(n, 1, 1))
    assert bool((mean.abs() < 4.5 * error).all()), mean / error
    assert float(error.max()) < 2e-3  # the terms are of the order of one


@pytest.mark.statistical
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("schedule", [ConstantNoise(1.6), GeometricNoise(0.2, 1.6)])
def test_the_loss_of_vectors_is_least_at_the_optimal_control(schedule, temperature):
    """For a Gaussian of variance 0.64 as above; four cases, false-alarm rate 8e-5."""
    variance = 0.8**2
    whole = float(schedule.variance(torch.tensor(0.0), torch.tensor(1.0)))
    gain = 1.0 / variance - 1.0 / whole

    def coefficient(t):
        left = schedule.variance(t, torch.ones_like(t))
        return -schedule.scale(t) * gain / (1.0 + gain * left)

    sampler = AdjointSampler(
        lambda x: 0.5 * temperature * x.square().sum(-1) / variance,
        Perturbed(coefficient),
        schedule,
        temperature=temperature,
        event_shape=2,
    )
    mean, error = gradients_at_optimum(sampler, lambda n: 0.8 * torch.randn(n, 2))
    assert bool((mean.abs() < 4.5 * error).all()), mean / error


@pytest.mark.statistical
def test_weights_at_the_optimal_control():
    r"""The mean is :math:`Z` for any steps, and all weights become equal as steps are refined.

    Of 20,000 draws each, within 4.5 standard errors: false-alarm rate 3e-5 for five numbers. The
    standard deviation of log weights halves as there are four times as many steps.
    """
    control = Perturbed(partial(optimal_coefficient, stiffness=STIFFNESS))
    sampler = FunctionalAdjointSampler(one_mode(), quadratic(STIFFNESS), control)
    deviations = {}
    for num_steps in (5, 40, 160):
        draw = partial(sampler.sample, 20_000, return_log_weight=True, seed=num_steps)
        path, log_weight = draw(num_time_steps=num_steps)
        assert_mean((log_weight - LOG_Z).exp(), 1.0)
        deviations[num_steps] = float(log_weight.std())
    assert deviations[160] == pytest.approx(0.0548, rel=0.03)
    assert deviations[40] / deviations[160] == pytest.approx(2.0, rel=0.1)
    variance = float(sampler.reference.analysis(path).var()) * VARIANCE
    assert variance == pytest.approx(0.1526649, rel=0.05)  # 4.5 standard errors, and of the steps
    evidence = sampler.evaluate(20_000, num_time_steps=160, seed=160)
    assert evidence.lower_bound == pytest.approx(LOG_Z, abs=0.003)
    assert evidence.log_normalizer == pytest.approx(LOG_Z, abs=0.002)
    assert evidence.effective_fraction == pytest.approx(1.0 / (1.0 + 0.0548**2), abs=2e-3)


@pytest.mark.statistical
def test_without_an_energy_the_control_makes_the_invariant_distribution():
    """A variance of one, where the process alone comes to 0.63.

    Within 4.5 standard errors of 50,000 draws and 0.005 for the steps: false-alarm rate 7e-6.
    """
    control = partial(optimal_coefficient, stiffness=0.0, rate=0.5)
    reference = one_mode(rate=0.5)
    sampler = FunctionalAdjointSampler(reference, quadratic(0.0), Perturbed(control))
    with torch.no_grad():
        z, _ = sampler.simulate(50_000, 100)
    assert float(reference.variance) == pytest.approx(0.632, abs=1e-3)
    assert float(z.var()) == pytest.approx(1.0, abs=4.5 * (2.0 / 50_000) ** 0.5 + 0.005)


@pytest.mark.statistical
@pytest.mark.parametrize("schedule", [ConstantNoise(1.6), GeometricNoise(0.01, 1.6)])
def test_weights_of_vectors(schedule):
    r"""The mean weight is :math:`\int e^{-E/\tau}`, with a control that is far from optimal.

    Within 4.5 standard errors of 50,000 draws: false-alarm rate 1.4e-5 for two.
    """
    sampler = AdjointSampler(
        lambda x: (x - 0.5).square().sum(-1),
        lambda t, x: 0.3 * schedule.scale(t)[:, None] * (0.7 - x),
        schedule,
        temperature=0.9,
        event_shape=2,
        num_time_steps=11,
    )
    _, log_weight = sampler.sample(50_000, return_log_weight=True, seed=0)
    assert_mean(log_weight.exp() / (math.pi * 0.9), 1.0)


@pytest.mark.slow
@pytest.mark.statistical
def test_defaults_suit_a_double_well():
    r"""The mean of :math:`x^2` under :math:`e^{-(x^2 - 1)^2}`, 0.8333, and half on either side.

    Within 4.5 standard errors of 20,000 draws, 0.020 and 0.016, and 0.015 for the steps and what is
    left to learn.
    """
    schedule = ConstantNoise(1.0)
    torch.manual_seed(0)
    control = ControlNetwork(1, scale=schedule.scale).float()
    sampler = AdjointSampler(lambda x: (x.square() - 1).square().sum(-1), control, schedule, seed=0)
    x = sampler.fit(2000, progress=False).sample(20_000, seed=1)
    assert float(x.square().mean()) == pytest.approx(0.8333, abs=0.035)
    assert float((x > 0).double().mean()) == pytest.approx(0.5, abs=0.031)


def test_paths_become_vectors_as_rates_vanish():
    r"""With :math:`a \to 0`: the gradient of the cost is that of :math:`E - x^2 / 2 \sigma^2`."""
    sigma, rate = 1.3, 1e-6
    reference = one_mode(sigma**2 / (2.0 * rate), rate)
    scale = sigma / math.sqrt(2.0 * rate)

    def energy(path, grid):
        square = torch.trapezoid(path.square().sum(-1), grid, dim=-1)
        return 0.5 * STIFFNESS * square - 0.5 * square / scale**2

    sampler = FunctionalAdjointSampler(reference, energy, lambda t, z: z)
    x = torch.randn(6, 1, 1)
    gradient = sampler.terminal_gradient(x / scale) / scale
    torch.testing.assert_close(gradient, STIFFNESS * x - x / sigma**2, rtol=1e-5, atol=0)
    vectors = AdjointSampler(
        lambda x: 0.5 * STIFFNESS * x.square().sum((-1, -2)),
        lambda t, x: x,
        ConstantNoise(sigma),
        event_shape=(1, 1),
    )
    torch.testing.assert_close(vectors.terminal_gradient(x), gradient, rtol=1e-5, atol=0)


def test_variances_of_schedules():
    for schedule in (ConstantNoise(0.7), GeometricNoise(1e-3, 1.0)):
        t = torch.linspace(0.2, 0.9, 20_001)
        whole = torch.trapezoid(schedule.scale(t).square(), t)
        torch.testing.assert_close(schedule.variance(t[0], t[-1]), whole, rtol=1e-6, atol=0)
    late = torch.tensor([0.99, 0.999], dtype=torch.float32)
    found = GeometricNoise(1e-3, 1.0).variance(late, late + 1e-3)
    expected = GeometricNoise(1e-3, 1.0).variance(late.double(), (late + 1e-3).double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


# Training ----------------------------------------------------------------------------------------


def paths(seed=0, num_modes=3, hidden_features=(16,), energy=None, **options):
    reference = DirichletOU(2.0, num_modes, 1, start=-1.0, end=1.0)
    torch.manual_seed(seed)
    control = ControlNetwork((num_modes, 1), hidden_features)
    given = dict(num_draws=32, batch_size=16, steps_per_round=3, num_time_steps=5)
    path_energy = energy or OnsagerMachlup(DoubleWell1D())
    return FunctionalAdjointSampler(reference, path_energy, control, seed=seed, **given | options)


@pytest.mark.statistical
def test_training_on_a_gaussian():
    """Means, standard deviations and normalizer of a correlated Gaussian off the origin.

    Bounds of 4.5 standard errors of 20,000 weighted draws, whose effective number is above
    18,000: false-alarm rate 4e-5 for five numbers.
    """
    loc, precision = torch.tensor([0.8, -0.4]), torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    schedule = ConstantNoise(1.0)
    torch.manual_seed(0)
    sampler = AdjointSampler(
        lambda x: 0.5 * ((x - loc) @ precision * (x - loc)).sum(-1),
        ControlNetwork(2, (32,), schedule.scale),
        schedule,
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        scheduler=partial(CosineAnnealingLR, T_max=400),
        num_draws=256,
        batch_size=256,
        seed=0,
    )
    before = sampler.evaluate(2000, seed=0)
    sampler.fit(400, progress=False)
    x, log_weight = sampler.sample(20_000, return_log_weight=True, seed=0)
    weight = log_weight.softmax(0)
    evidence = sampler.evaluate(20_000, seed=0)
    assert evidence.effective_fraction > 0.9 > 0.5 > before.effective_fraction
    assert before.lower_bound < evidence.lower_bound - 0.5
    deviation = precision.inverse().diagonal().sqrt()
    assert bool((((weight @ x) - loc).abs() < 4.5 / 18_000**0.5 * deviation).all())
    found = (weight @ (x - loc).square()).sqrt() / deviation
    assert bool(((found - 1.0).abs() < 4.5 / 36_000**0.5).all())
    log_z = math.log(2.0 * math.pi) - 0.5 * float(precision.logdet())
    error = (1.0 / evidence.effective_fraction - 1.0) ** 0.5 / 20_000**0.5
    assert abs(evidence.log_normalizer - log_z) < 4.5 * error
    assert bool(((x.mean(0) - loc).abs() < 0.1).all())  # the learned draws themselves


@pytest.mark.slow
@pytest.mark.statistical
def test_training_on_a_double_well():
    """Effective draws and the bound rise, and the bound stays below the normalizer.

    Its logarithm is 1.74 from 400,000 draws of the bridge; weights of 8,000 draws with an effective
    number above 400 have an error of 0.05, of which 0.3 is six: false-alarm rate 1e-5.
    """
    torch.set_default_dtype(torch.float32)
    sampler = paths(
        num_modes=8,
        hidden_features=(64, 64),
        clip_norm=50.0,
        num_draws=1024,
        batch_size=256,
        steps_per_round=50,
        num_time_steps=40,
        scheduler=partial(CosineAnnealingLR, T_max=3000),
    )
    first = sampler.evaluate(8000, seed=1)
    last = sampler.fit(3000, progress=False).evaluate(8000, seed=1)
    assert last.lower_bound > first.lower_bound + 5.0
    assert last.effective_fraction > 0.05 > first.effective_fraction
    assert last.lower_bound < 1.74 and last.log_normalizer == pytest.approx(1.74, abs=0.3)
    assert 0.0 <= sampler.clipped_fraction < 0.05


def test_steps_and_runs_are_the_same():
    one, other = paths(), paths()
    stepped = [one.step() for _ in range(7)]
    assert other.fit(7, progress=False).losses == stepped == one.losses
    assert len(set(stepped)) == 7 and repr(one) == "FunctionalAdjointSampler((3, 1), 7 steps)"
    torch.testing.assert_close(one.sample(3, seed=1), other.sample(3, seed=1), rtol=0, atol=0)
    assert paths(seed=1).step() != stepped[0]


def test_a_training_goes_on_bit_for_bit(tmp_path):
    options = dict(ema_decay=0.9, num_rounds_kept=2)
    whole = paths(**options).fit(11, progress=False)
    paths(**options).fit(4, checkpoint=tmp_path / "run", progress=False)
    again = paths(**options).fit(11, checkpoint=tmp_path / "run", progress=False)
    assert again.losses == whole.losses and again.clipped_fraction == whole.clipped_fraction
    assert torch.equal(again.sample(4, seed=0), whole.sample(4, seed=0))
    with pytest.raises(CheckpointError, match="clip_norm"):
        paths(**options, clip_norm=3.0).fit(12, checkpoint=tmp_path / "run", progress=False)


def test_clipping_and_what_is_kept_of_it():
    sampler = paths(clip_norm=1e-3, num_rounds_kept=2)
    assert sampler.clipped_fraction == 0.0
    sampler.fit(1, progress=False)
    assert sampler.clipped_fraction == 1.0
    _, gradient = sampler._buffer.draw(100)
    norms = gradient.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 1e-3))
    assert paths(clip_norm=1e9).fit(1, progress=False).clipped_fraction == 0.0


def test_draws_of_old_rounds_leave_the_buffer():
    sampler = paths(num_rounds_kept=2)
    seen = []
    for _ in range(3):
        sampler.fit(sampler.trainer.num_steps + 3, progress=False)
        seen.append({row.sum().item() for row in sampler._buffer.draw(4000)[0]})
    assert len(seen[0]) == 32 and len(seen[1]) == len(seen[2]) == 64
    assert len(seen[2] & seen[0]) == 0 and len(seen[2] & seen[1]) == 32


def test_what_is_not_finite_is_reported():
    def energy(path, grid):
        return OnsagerMachlup(DoubleWell1D())(path, grid) / (path[:, 3, 0] > -0.5)

    with pytest.raises(TrainingDiverged, match=r"energy must have a finite gradient.*of 32 in"):
        paths(energy=energy).step()

    def rarely(path, grid):
        # Of 32 draws of the bridge one or two lie below.
        return OnsagerMachlup(DoubleWell1D())(path, grid) / (path[:, 9, 0] > -1.3)

    sampler = paths(energy=rarely)
    with pytest.warns(UserWarning, match=r"got [12] of 32 in round 1 that are not; other draws"):
        sampler.step()
    assert 0 < sampler.num_lost < 3
    ends, gradients = sampler._buffer.draw(200)
    assert bool(gradients.isfinite().all())
    assert bool((sampler.reference.synthesis(ends, torch.ones(1)) > -1.3).all())


def test_an_average_of_the_weights_draws():
    sampler = paths(ema_decay=0.5).fit(3, progress=False)
    assert sampler.trainer.average is not None
    drawn = sampler.sample(4, seed=0)
    with torch.no_grad():
        sampler.control.network[-1].bias.add_(10.0)
    assert torch.equal(sampler.sample(4, seed=0), drawn)


def test_new_grids():
    sampler = paths().fit(3, progress=False)
    coarse = sampler.sample(5, seed=0)
    fine, log_weight = sampler.sample(
        5, torch.linspace(0.0, 2.0, 73), return_log_weight=True, seed=0
    )
    assert fine.shape == (5, 73, 1) and coarse.shape == (5, 19, 1)
    torch.testing.assert_close(fine[:, ::4], coarse)
    assert bool((fine[:, 0] == -1.0).all()) and bool((fine[:, -1] == 1.0).all())
    _, other = sampler.sample(5, return_log_weight=True, seed=0)
    energy = sampler.path_energy
    shift = energy(coarse, sampler.grid) - energy(fine, torch.linspace(0.0, 2.0, 73))
    torch.testing.assert_close(log_weight - other, shift)


def test_single_precision():
    torch.set_default_dtype(torch.float32)
    sampler = paths().fit(2, progress=False)
    path, log_weight = sampler.sample(5, return_log_weight=True)
    assert path.dtype == log_weight.dtype == torch.float32


def test_errors():
    schedule, reference = ConstantNoise(1.0), DirichletOU(2.0, 3, 1)
    network = ControlNetwork(2, (4,))
    cases = [
        (lambda: AdjointSampler(torch.sum, torch.sin, schedule), "event_shape must be"),
        (
            lambda: AdjointSampler(lambda x: x, network, schedule).step(),
            r"energy must return a tensor of shape \(1024,\)",
        ),
        (
            lambda: AdjointSampler(torch.sum, lambda t, x: t, schedule, event_shape=2).sample(5),
            r"control must return a tensor of shape \(5, 2\), got a",
        ),
        (
            lambda: AdjointSampler(torch.sum, torch.sin, schedule, event_shape=2).step(),
            "control must be a module with parameters",
        ),
        (
            lambda: FunctionalAdjointSampler(reference.expand([2]), torch.sum, network),
            "reference must be a single process",
        ),
        (
            lambda: FunctionalAdjointSampler(
                reference, torch.sum, network, grid=torch.tensor([1.0, 0.0])
            ),
            "grid must increase",
        ),
        (lambda: GeometricNoise(1.0, 0.5), "high must be greater than low = 1, got 0"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
