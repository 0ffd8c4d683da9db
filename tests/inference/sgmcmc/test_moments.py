"""Stationary moments and exact trajectories of the pure samplers.

The moments are those of the discretized dynamics, so no step size has to be small. Each comparison
is over independent chains at a fixed seed and allows 3.5 standard errors: a false-alarm rate of
5e-4 each, for a new seed.
"""

import math
from typing import Any

import pytest
import torch

from pyro_ext.inference.sgmcmc import psgld, sghmc, sgld, sgnht
from pyro_ext.testing.moments import estimate_moment, simulate

pytestmark = [pytest.mark.statistical, pytest.mark.usefixtures("float64")]

NUM_CHAINS = 20_000
ALLOWED = 3.5


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


def simulated(sampler: Any, num_steps: int, precision: float = 1.0, **options: Any) -> Any:
    """The state of chains in a normal distribution, which start at its mean."""
    start = sampler.init(torch.zeros(NUM_CHAINS, 1))
    return simulate(sampler.step, start, lambda x: precision * x, num_steps, **options)


def steps(sampler: Any, state: Any, noise: torch.Tensor, gradient: Any, **numbers: Any) -> Any:
    """The state after steps with the given noise."""
    numbers = {k: torch.tensor(v) if isinstance(v, float) else v for k, v in numbers.items()}
    for xi in noise:
        state, _ = sampler.step(state, lambda x: (x.sum(-1), gradient(x)), xi, **numbers)
    return state


def assert_moment(values: torch.Tensor, exact: float) -> None:
    assert abs(estimate_moment(values).z_score(exact)) < ALLOWED


@pytest.mark.parametrize(
    ("h", "precision", "temperature", "noise", "estimate"),
    [
        (0.1, 1.0, 1.0, 0.0, 0.0),
        (0.5, 2.0, 0.3, 0.0, 0.0),
        (0.2, 4.0, 2.0, 0.0, 0.0),
        (0.2, 1.5, 1.0, 4.0, 0.0),
        (0.2, 1.5, 1.0, 4.0, 4.0),
    ],
)
def test_sgld_variance(h, precision, temperature, noise, estimate, generator):
    """Also with noise of the gradient, of which the sampler knows or not."""
    options = {"step_size": h, "temperature": temperature, "noise_estimate": estimate}
    state = simulated(sgld, 200, precision, generator=generator, gradient_noise=noise, **options)
    injected = 2 * h * temperature + h**2 * (noise - estimate)
    assert_moment(state.position**2, injected / (1 - (1 - h * precision) ** 2))
    assert_moment(state.position, 0.0)


def sghmc_moments(h: float, a: float, precision: float, temperature: float) -> tuple[float, ...]:
    denominator = 4 - 2 * a - h**2 * precision
    return (
        2 * temperature * (2 - a) / (precision * denominator),
        4 * temperature / denominator,
        2 * temperature * h / denominator,
    )


@pytest.mark.parametrize(
    ("num_steps", "h", "a", "precision", "temperature"),
    [
        (400, 0.1, 0.1, 1.0, 1.0),
        (400, 0.6, 0.3, 2.0, 0.5),
        (400, 0.3, 1.0, 1.0, 2.0),
        pytest.param(3000, 0.1, 0.01, 1.0, 1.0, marks=pytest.mark.slow),
    ],
)
def test_sghmc_moments(num_steps, h, a, precision, temperature, generator):
    options = {"step_size": h, "decay": a, "temperature": temperature}
    state = simulated(sghmc, num_steps, precision, generator=generator, **options)
    exact = sghmc_moments(h, a, precision, temperature)
    products = (state.position**2, state.momentum**2, state.position * state.momentum)
    for product, value in zip(products, exact, strict=True):
        assert_moment(product, value)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sghmc_noise_estimate_takes_the_gradient_noise_out(temperature, generator):
    options = {"step_size": 0.3, "decay": 0.3, "temperature": temperature, "noise_estimate": 3.0}
    state = simulated(sghmc, 400, generator=generator, gradient_noise=3.0, **options)
    assert_moment(state.position**2, sghmc_moments(0.3, 0.3, 1.0, temperature)[0])


def test_sghmc_mass_rescales_the_step():
    start, noise = torch.randn(50, 3), torch.randn(20, 50, 3)
    both = []
    for step_size, momentum_scale, mass in ((0.2, 1.0, 4.0), (0.1, 2.0, 1.0)):
        options = {"step_size": step_size, "decay": 0.1, "temperature": 0.7, "mass": mass}
        state = steps(sghmc, sghmc.init(start), noise, lambda x: x**3, **options)
        both.append((state.position, state.momentum * momentum_scale))
    torch.testing.assert_close(both[0], both[1])


def test_sghmc_in_the_form_of_learning_rate_and_momentum():
    """The same process written for v = -h m, eta = h^2, alpha = h gamma."""
    h, alpha, temperature = 0.3, 0.2, 0.8
    eta = h**2
    theta, noise = torch.randn(4, 2), torch.randn(30, 4, 2)
    options = {"step_size": h, "decay": alpha, "temperature": temperature}
    state = steps(sghmc, sghmc.init(theta), noise, torch.sin, **options)
    velocity = torch.zeros_like(theta)
    for xi in noise:
        velocity = (1 - alpha) * velocity - eta * theta.sin()
        velocity = velocity - math.sqrt(2 * alpha * eta * temperature) * xi
        theta = theta + velocity
    torch.testing.assert_close(state.position, theta)


def test_sghmc_with_full_decay_is_sgld():
    start, noise = torch.randn(4, 2), torch.randn(20, 4, 2)
    options = {"step_size": 0.3, "decay": 1.0, "temperature": 1.0}
    damped = steps(sghmc, sghmc.init(start), noise, torch.clone, **options)
    options = {"step_size": 0.3**2, "temperature": 1.0}
    langevin = steps(sgld, sgld.init(start), -noise, torch.clone, **options)
    torch.testing.assert_close(damped.position, langevin.position)


def test_step_reports_the_potential_it_started_from():
    position = torch.randn(5, 3)
    for init, step, extra in (
        (sgld.init, sgld.step, {}),
        (psgld.init, psgld.step, {}),
        (sghmc.init, sghmc.step, {"decay": 0.1}),
        (lambda x: sgnht.init(x, x, 1.0), sgnht.step, {"friction": 1.0}),
    ):
        _, info = step(
            init(position),
            lambda x: (x.square().sum(-1), 2 * x),
            torch.zeros(5, 3),
            step_size=torch.tensor(0.1),
            temperature=torch.tensor(1.0),
            **extra,
        )
        torch.testing.assert_close(info.potential_energy, position.square().sum(-1))


@pytest.mark.parametrize("precision", [1.0, 25.0])
def test_psgld_variance(precision, generator):
    """With a slow average the preconditioner is all but constant, and the moment that of SGLD."""
    step_size = 0.05
    # The fixed point of v = precision^2 Var and Var = 1 / (precision (1 - s G precision / 2)).
    scale = 1.0
    for _ in range(100):
        scale = 1 / math.sqrt(precision / (1 - step_size * scale * precision / 2))
    variance = 1 / (precision * (1 - step_size * scale * precision / 2))
    start = psgld.init(torch.zeros(NUM_CHAINS, 1))
    start = start._replace(
        square_average=torch.full_like(start.position, precision**2 * variance),
        num_averaged=start.num_averaged + 1,
    )
    state = simulate(
        psgld.step,
        start,
        lambda x: precision * x,
        800,
        generator=generator,
        step_size=step_size,
        temperature=1.0,
        decay=0.9999,
        regularization=1e-8,
    )
    # The average still moves by a few per cent: allow one per cent of bias.
    estimate = estimate_moment(state.position**2)
    assert abs(estimate.value - variance) < 0.01 * variance + ALLOWED * estimate.standard_error


def test_psgld_against_an_independent_computation():
    step_size, temperature, decay, regularization, data_size = 0.01, 0.6, 0.9, 1e-3, 50
    start, noise = torch.tensor([1.5, -0.7]), torch.randn(6, 2)
    state = steps(
        psgld,
        psgld.init(start),
        noise,
        lambda x: data_size * x**3,
        step_size=step_size,
        temperature=temperature,
        decay=decay,
        regularization=regularization,
        data_size=data_size,
    )
    for point in range(2):
        theta, average = float(start[point]), None
        for xi in noise[:, point].tolist():
            square = theta**6  # of the gradient for each of the data
            average = square if average is None else decay * average + (1 - decay) * square
            metric = 1 / (regularization + math.sqrt(average))
            theta -= step_size * metric * data_size * theta**3
            theta += math.sqrt(2 * step_size * temperature * metric) * xi
        assert float(state.position[point]) == pytest.approx(theta)


def sgnht_moments(h: float, friction: float, noise: float) -> tuple[float, float]:
    """Variance and thermostat where the momentum has unit variance, for many dimensions.

    The momentum's noise makes an SGHMC of decay h zeta and temperature
    (friction + h noise / 2) / zeta
    of it; setting its momentum variance to one determines zeta.
    """
    zeta = friction
    for _ in range(200):
        zeta = (friction + h * noise / 2) / (1 - h * zeta / 2 - h**2 / 4)
    return (2 - h * zeta) / 2, zeta


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 16.0])
def test_sgnht_absorbs_gradient_noise(noise, generator):
    start, momentum = torch.randn(2, 200, 200, generator=generator)
    state = simulate(
        sgnht.step,
        sgnht.init(start, momentum, 1.0),
        lambda x: x,
        1500,
        generator=generator,
        gradient_noise=noise,
        step_size=0.05,
        temperature=1.0,
        friction=1.0,
    )
    variance, thermostat = sgnht_moments(0.05, 1.0, noise)
    if noise:
        assert (variance, thermostat) == pytest.approx((0.96, 1.46), abs=0.01)
    for products, exact in (
        (state.position**2, variance),
        (state.momentum**2, 1.0),
        (state.thermostat, thermostat),
    ):
        estimate = estimate_moment(products)
        # In 200 dimensions the thermostat is not quite constant: half a per cent of bias.
        assert abs(estimate.value - exact) < 0.005 + ALLOWED * estimate.standard_error


def test_sghmc_does_not_absorb_gradient_noise(generator):
    h, noise = 0.05, 16.0
    options = {"step_size": h, "decay": h, "temperature": 1.0}
    heated = simulated(sghmc, 600, generator=generator, gradient_noise=noise, **options)
    exact = sghmc_moments(h, h, 1.0, 1.0 + h * noise / 2)[0]
    assert exact == pytest.approx(1.40, abs=0.02)
    assert_moment(heated.position**2, exact)


def test_sgnht_against_an_independent_computation():
    h, temperature, friction = 0.1, 0.5, 0.7
    theta, momentum = torch.randn(2, 3, 4)
    zeta = torch.full((3, 1), friction)
    start, noise = sgnht.init(theta, momentum, friction), torch.randn(10, 3, 4)
    options = {"step_size": h, "temperature": temperature, "friction": friction}
    state = steps(sgnht, start, noise, lambda x: x**3, **options)
    for xi in noise:
        kick = math.sqrt(2 * friction * h * temperature) * xi
        momentum = momentum - h * theta**3 - h * zeta * momentum + kick
        theta = theta + h * momentum
        zeta = zeta + h * (momentum.square().sum(-1, keepdim=True) / 4 - temperature)
    torch.testing.assert_close(state.position, theta)
    torch.testing.assert_close(state.thermostat, zeta)
