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

pytestmark = pytest.mark.statistical

NUM_CHAINS = 20_000
ALLOWED = 3.5


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


def positions(num_chains: int = NUM_CHAINS, size: int = 1) -> torch.Tensor:
    return torch.zeros(num_chains, size, dtype=torch.float64)


def simulated(sampler: Any, num_steps: int, precision: float = 1.0, **options: Any) -> Any:
    """The state of chains in a normal distribution, which start at its mean."""
    start = sampler.init(positions())
    return simulate(sampler.step, start, lambda x: precision * x, num_steps, **options)


@pytest.mark.parametrize(
    ("step_size", "precision", "temperature"), [(0.1, 1.0, 1.0), (0.5, 2.0, 0.3), (0.2, 4.0, 2.0)]
)
def test_sgld_variance(step_size, precision, temperature, generator):
    state = simulated(
        sgld, 200, precision, generator=generator, step_size=step_size, temperature=temperature
    )
    exact = temperature / (precision * (1 - step_size * precision / 2))
    assert abs(estimate_moment(state.position**2).z_score(exact)) < ALLOWED
    assert abs(estimate_moment(state.position).z_score(0.0)) < ALLOWED


@pytest.mark.parametrize("corrected", [False, True])
def test_sgld_gradient_noise(corrected, generator):
    step_size, precision, noise = 0.2, 1.5, 4.0
    state = simulated(
        sgld,
        200,
        precision,
        generator=generator,
        gradient_noise=noise,
        step_size=step_size,
        temperature=1.0,
        noise_estimate=noise if corrected else 0.0,
    )
    excess = 0.0 if corrected else step_size**2 * noise
    exact = (2 * step_size + excess) / (1 - (1 - step_size * precision) ** 2)
    assert abs(estimate_moment(state.position**2).z_score(exact)) < ALLOWED


def sghmc_moments(h: float, a: float, precision: float, temperature: float) -> tuple[float, ...]:
    denominator = 4 - 2 * a - h**2 * precision
    return (
        2 * temperature * (2 - a) / (precision * denominator),
        4 * temperature / denominator,
        2 * temperature * h / denominator,
    )


@pytest.mark.parametrize(
    ("h", "a", "precision", "temperature"),
    [(0.1, 0.1, 1.0, 1.0), (0.6, 0.3, 2.0, 0.5), (0.3, 1.0, 1.0, 2.0)],
)
def test_sghmc_moments(h, a, precision, temperature, generator):
    state = simulated(
        sghmc, 400, precision, generator=generator, step_size=h, decay=a, temperature=temperature
    )
    exact = sghmc_moments(h, a, precision, temperature)
    products = (state.position**2, state.momentum**2, state.position * state.momentum)
    for product, value in zip(products, exact, strict=True):
        assert abs(estimate_moment(product).z_score(value)) < ALLOWED


@pytest.mark.slow
def test_sghmc_moments_at_small_friction(generator):
    state = simulated(sghmc, 3000, generator=generator, step_size=0.1, decay=0.01, temperature=1.0)
    assert sghmc_moments(0.1, 0.01, 1.0, 1.0)[:2] == pytest.approx((1.002519, 1.007557), abs=1e-6)
    assert abs(estimate_moment(state.position**2).z_score(1.002519)) < ALLOWED
    assert abs(estimate_moment(state.momentum**2).z_score(1.007557)) < ALLOWED


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sghmc_noise_estimate_takes_the_gradient_noise_out(temperature, generator):
    h, a, noise = 0.3, 0.3, 3.0
    state = simulated(
        sghmc,
        400,
        generator=generator,
        gradient_noise=noise,
        step_size=h,
        decay=a,
        temperature=temperature,
        noise_estimate=noise,
    )
    exact = sghmc_moments(h, a, 1.0, temperature)[0]
    assert abs(estimate_moment(state.position**2).z_score(exact)) < ALLOWED


def test_sghmc_mass_rescales_the_step(generator):
    start = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    mass, h = 4.0, 0.2
    both = []
    for step_size, momentum_scale, own_mass in ((h, 1.0, mass), (h / mass**0.5, mass**0.5, 1.0)):
        state = simulate(
            sghmc.step,
            sghmc.init(start),
            lambda x: x**3,
            20,
            generator=torch.Generator().manual_seed(1),
            step_size=step_size,
            decay=0.1,
            temperature=0.7,
            mass=own_mass,
        )
        both.append((state.position, state.momentum * momentum_scale))
    torch.testing.assert_close(both[0], both[1])


def test_sghmc_in_the_form_of_learning_rate_and_momentum():
    """The same process written for v = -h m, eta = h^2, alpha = h gamma."""
    h, alpha, temperature = 0.3, 0.2, 0.8
    eta = h**2
    theta = torch.randn(4, 2, dtype=torch.float64)
    velocity = torch.zeros_like(theta)
    noise = torch.randn(30, 4, 2, dtype=torch.float64)
    state = sghmc.init(theta)
    for xi in noise:
        velocity = (1 - alpha) * velocity - eta * theta.sin()
        velocity = velocity - math.sqrt(2 * alpha * eta * temperature) * xi
        theta = theta + velocity
        state, _ = sghmc.step(
            state,
            lambda x: (x.sum(-1), x.sin()),
            xi,
            step_size=torch.tensor(h, dtype=torch.float64),
            decay=torch.tensor(alpha, dtype=torch.float64),
            temperature=torch.tensor(temperature, dtype=torch.float64),
        )
    torch.testing.assert_close(state.position, theta)


def test_sghmc_with_full_decay_is_sgld():
    h = torch.tensor(0.3, dtype=torch.float64)
    one = torch.tensor(1.0, dtype=torch.float64)
    start = torch.randn(4, 2, dtype=torch.float64)
    damped, langevin = sghmc.init(start), sgld.init(start)
    for xi in torch.randn(20, 4, 2, dtype=torch.float64):
        damped, _ = sghmc.step(
            damped, lambda x: (x.sum(-1), x), xi, step_size=h, decay=one, temperature=one
        )
        langevin, _ = sgld.step(
            langevin, lambda x: (x.sum(-1), x), -xi, step_size=h**2, temperature=one
        )
    torch.testing.assert_close(damped.position, langevin.position)


def test_sghmc_at_zero_temperature_is_sgd_with_momentum():
    h, a = 0.2, 0.1
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=h**2, momentum=1 - a)
    state = sghmc.init(parameter.detach().clone())
    zero = torch.tensor(0.0, dtype=torch.float64)
    for _ in range(25):
        optimizer.zero_grad()
        parameter.cosh().sum().backward()
        optimizer.step()
        state, info = sghmc.step(
            state,
            lambda x: (x.cosh().sum(-1), x.sinh()),
            torch.randn(3, dtype=torch.float64),
            step_size=torch.tensor(h, dtype=torch.float64),
            decay=torch.tensor(a, dtype=torch.float64),
            temperature=zero,
        )
    torch.testing.assert_close(state.position, parameter.detach())


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
    start = psgld.init(positions())
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
    theta = [1.5, -0.7]
    average = None
    state = psgld.init(torch.tensor([theta], dtype=torch.float64))
    noise = torch.randn(6, 1, 2, dtype=torch.float64)
    for xi in noise:
        gradient = [data_size * (value**3) for value in theta]
        squares = [(g / data_size) ** 2 for g in gradient]
        average = (
            squares
            if average is None
            else [
                decay * v + (1 - decay) * square for v, square in zip(average, squares, strict=True)
            ]
        )
        metric = [1 / (regularization + math.sqrt(v)) for v in average]
        theta = [
            value
            - step_size * m * g
            + math.sqrt(2 * step_size * temperature * m) * float(xi[0, point])
            for point, (value, m, g) in enumerate(zip(theta, metric, gradient, strict=True))
        ]
        state, _ = psgld.step(
            state,
            lambda x: (x.sum(-1), data_size * x**3),
            xi,
            step_size=torch.tensor(step_size, dtype=torch.float64),
            temperature=torch.tensor(temperature, dtype=torch.float64),
            decay=decay,
            regularization=regularization,
            data_size=data_size,
        )
    torch.testing.assert_close(state.position[0], torch.tensor(theta, dtype=torch.float64))


def run_sgnht(noise: float, generator: torch.Generator) -> sgnht.SGNHTState:
    start = torch.randn(200, 200, generator=generator, dtype=torch.float64)
    momentum = torch.randn(200, 200, generator=generator, dtype=torch.float64)
    return simulate(
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
    state = run_sgnht(noise, generator)
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
    heated = simulate(
        sghmc.step,
        sghmc.init(torch.zeros(200, 200, dtype=torch.float64)),
        lambda x: x,
        600,
        generator=generator,
        gradient_noise=noise,
        step_size=h,
        decay=h,
        temperature=1.0,
    )
    exact = sghmc_moments(h, h, 1.0, 1.0 + h * noise / 2)[0]
    assert exact == pytest.approx(1.40, abs=0.02)
    assert abs(estimate_moment(heated.position**2).z_score(exact)) < ALLOWED


def test_sgnht_against_an_independent_computation():
    h, temperature, friction = 0.1, 0.5, 0.7
    theta = torch.randn(3, 4, dtype=torch.float64)
    momentum = torch.randn(3, 4, dtype=torch.float64)
    zeta = torch.full((3,), friction, dtype=torch.float64)
    state = sgnht.init(theta.clone(), momentum.clone(), friction)
    for xi in torch.randn(10, 3, 4, dtype=torch.float64):
        for row in range(3):
            gradient = theta[row] ** 3
            noise = math.sqrt(2 * friction * h * temperature) * xi[row]
            momentum[row] = momentum[row] - h * gradient - h * zeta[row] * momentum[row] + noise
            theta[row] = theta[row] + h * momentum[row]
            zeta[row] = zeta[row] + h * (momentum[row] @ momentum[row] / 4 - temperature)
        state, _ = sgnht.step(
            state,
            lambda x: (x.sum(-1), x**3),
            xi,
            step_size=torch.tensor(h, dtype=torch.float64),
            temperature=torch.tensor(temperature, dtype=torch.float64),
            friction=friction,
        )
        torch.testing.assert_close(state.position, theta)
        torch.testing.assert_close(state.thermostat[:, 0], zeta)
