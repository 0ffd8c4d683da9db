"""The kernels around the samplers: arguments, backends, seeds, Pyro's driver."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import (
    L2E,
    MCMC,
    PSGLD,
    SGHMC,
    SGLD,
    SGNHT,
    CyclicalSchedule,
    MetaSGMCMC,
)
from pyro_ext.inference.sgmcmc import LearnedDiffusion, ResidualKinetics
from pyro_ext.testing.kernels import check_gaussian, check_kernel

ANCHOR = {"weight": torch.tensor([1.0, -0.5, 0.0]), "scale": torch.tensor(0.4)}
# Type and options of each kernel.
KERNELS = {
    "SGLD": (SGLD, {"step_size": 1e-4}),
    "PSGLD": (PSGLD, {"step_size": 1e-3, "decay": 0.9, "regularization": 1e-3}),
    "SGHMC": (SGHMC, {"step_size": 0.01, "friction": 20.0, "momentum_decay": None, "mass": 2.0}),
    "SGNHT": (SGNHT, {"step_size": 0.01, "friction": 2.0}),
    "L2E": (L2E, {"step_size": 0.01, "kinetics": ResidualKinetics((4,)), "friction": 3.0}),
    "MetaSGMCMC": (
        MetaSGMCMC,
        {"step_size": 0.01, "diffusion": LearnedDiffusion(), "momentum_decay": 0.2},
    ),
}
each_kernel = pytest.mark.parametrize(("kernel_type", "options"), KERNELS.values(), ids=KERNELS)


def regression(x, y, batch_size=25):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x), subsample_size=batch_size) as index:
        pyro.sample("y", dist.Normal(x[index] @ weight, scale), obs=y[index])


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 3, generator=generator)
    y = x @ torch.tensor([1.0, -0.5, 0.0]) + 0.4 * torch.randn(200, generator=generator)
    return x, y


def draws(kernel, *args, **options):
    options = {"num_samples": 5, "warmup_steps": 3, "thinning": 4, "seed": 11} | options
    mcmc = MCMC(kernel, progress=False, **options)
    return mcmc.run(*args).get_samples(group_by_chain=True)


@each_kernel
@pytest.mark.parametrize(
    "check", ["arguments", "settings", "draws", pytest.param("drivers", marks=pytest.mark.slow)]
)
def test_kernels(kernel_type, options, check, data):
    check_kernel(kernel_type, regression, *data, options=options, checks=[check])


@each_kernel
def test_draws_on_a_device(kernel_type, options, data, device):
    """They stay there, and are those of the processor."""
    backend = "trace" if device.type == "cuda" else "eager"
    kernel = kernel_type(regression, backend=backend, **options)
    with torch.device("cpu"):
        expected = draws(kernel, *data, num_chains=2)
    found = draws(kernel, *(part.to(device) for part in data), num_chains=2)
    for name, values in found.items():
        assert values.device == device
        torch.testing.assert_close(values.cpu(), expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["SGLD", "PSGLD", "SGHMC", "SGNHT"])
def test_draws_at_an_anchor(name, data):
    kernel_type, options = KERNELS[name]
    options = options | {"control_variate": ANCHOR}
    check_kernel(kernel_type, regression, *data, options=options, checks=["draws"])


@pytest.mark.slow
@each_kernel
def test_compiled_draws(kernel_type, options, data):
    """Over enough steps for many calls of the loop."""
    check_kernel(
        kernel_type,
        regression,
        *data,
        options=options,
        checks=["draws"],
        backends=("trace", "compile"),
        steps=(1, 2, 3, 7, 8, 100, 101, 102, 150),
        tolerance=1e-3,
    )


def test_pyros_driver_takes_initial_params_and_a_potential_fn():
    kernel = SGLD(potential_fn=lambda z: 0.5 * z["x"].square().sum(), step_size=0.1)
    start = {"x": torch.full((2,), 50.0)}
    mcmc = pyro.infer.MCMC(kernel, 4, 0, initial_params=start, disable_progbar=True)
    mcmc.run()
    first = mcmc.get_samples()["x"][0]
    assert first.shape == (2,) and (first > 40).all()


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("kernel_type", "options", "variance", "bias"),
    [
        (SGLD, {"step_size": 0.1}, 1 / 0.95, 0.0),
        (SGHMC, {"step_size": 0.2, "friction": 1.0}, 3.6 / 3.56, 0.0),
        (SGNHT, {"step_size": 0.1, "friction": 1.0}, 1.0, 0.08),
        (PSGLD, {"step_size": 0.05, "decay": 0.999}, 1.0, 0.08),
    ],
)
def test_gaussian(kernel_type, options, variance, bias):
    """Means and variances within 4 standard errors: a false-alarm rate of 6e-5 each."""
    check_gaussian(kernel_type, options=options, variance=variance, bias=bias)


def test_temperature_zero_finds_the_mode(data):
    x, y = data
    kernel = SGHMC(regression, step_size=0.01, friction=5.0, temperature=0.0)
    samples = draws(kernel, x, y, None, num_samples=1, warmup_steps=2000, thinning=1)
    # The mode in the scale's unconstrained space depends on its Jacobian; the weights' does not:
    # ridge regression at the found scale.
    scale = samples["scale"][0, 0]
    gram = x.T @ x / scale**2 + torch.eye(3)
    expected = torch.linalg.solve(gram, x.T @ y / scale**2)
    torch.testing.assert_close(samples["weight"][0, 0], expected, rtol=1e-3, atol=1e-4)


def test_exploration_injects_no_noise():
    """A cycle that only explores moves as gradient descent does, whatever the seed."""

    schedule = CyclicalSchedule(0.1, num_cycles=1, num_steps=10, exploration=0.8)
    kernel = SGLD(potential_fn=lambda z: 0.5 * z["x"].square().sum(), step_size=schedule)
    kernel.initial_params = {"x": torch.ones(2)}
    kernel.setup(0)
    runs = []
    for seed in (0, 1):
        chains = kernel.begin(range(2), seed, {"x": torch.ones(2, 2)})
        chains = kernel.advance(chains, 8)
        expected = np.prod(1 - schedule.step_sizes(np.arange(8)))
        assert chains.position == pytest.approx(torch.full((2, 2), expected), rel=1e-5)
        runs.append(kernel.advance(chains, 1).position)
    assert not torch.allclose(runs[0], runs[1])


def momentum_after(kernel, step_size, **start):
    """Momenta of one in a flat potential, after one step without noise."""
    kernel.initial_params = start
    kernel.setup(0)
    state = kernel.begin([0], 0, {name: value[None] for name, value in start.items()}).state
    state, _ = kernel._step(
        state._replace(momentum=torch.ones_like(state.position)),
        lambda x: (x.sum(-1), torch.zeros_like(x)),
        torch.zeros_like(state.position),
        step_size=torch.tensor(step_size),
        temperature=torch.tensor(0.0),
    )
    return state.momentum[0].tolist()


def test_friction_by_site():
    friction = {"weight*": 2.0, "default": 5.0}
    kernel = SGHMC(potential_fn=lambda z: z["a"].sum(), step_size=0.1, friction=friction)
    found = momentum_after(kernel, 0.1, a=torch.zeros(1), weight_b=torch.zeros(2))
    assert found == pytest.approx([0.5, 0.8, 0.8])


def test_momentum_decay_does_not_follow_the_schedule():
    kernel = SGHMC(potential_fn=lambda z: z["x"].sum(), step_size=0.5, momentum_decay=0.25)
    for step_size in (0.5, 0.01):
        assert momentum_after(kernel, step_size, x=torch.zeros(1)) == [0.75]


def test_unknown_site_in_friction(data):
    kernel = SGHMC(regression, step_size=0.01, friction={"wieght": 1.0, "default": 2.0})
    with pytest.raises(ValueError, match="'wieght'.*weight"):
        kernel.setup(0, *data)
    kernel = SGHMC(regression, step_size=0.01, friction={"weight": 1.0})
    with pytest.raises(ValueError, match="scale.*default"):
        kernel.setup(0, *data)
