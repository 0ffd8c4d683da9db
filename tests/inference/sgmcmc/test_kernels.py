"""The kernels around the samplers: arguments, backends, seeds, Pyro's driver."""

import math
import warnings

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
    PolynomialSchedule,
)

KERNELS = {
    "SGLD": lambda model=None, **options: SGLD(model, step_size=1e-4, **options),
    "PSGLD": lambda model=None, **options: PSGLD(model, step_size=1e-3, **options),
    "SGHMC": lambda model=None, **options: SGHMC(model, step_size=0.01, friction=20.0, **options),
    "SGNHT": lambda model=None, **options: SGNHT(model, step_size=0.01, **options),
    "L2E": lambda model=None, **options: L2E(model, step_size=0.01, **options),
    "MetaSGMCMC": lambda model=None, **options: MetaSGMCMC(model, step_size=0.01, **options),
}


def regression(x, y):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x), subsample_size=25) as index:
        pyro.sample("y", dist.Normal(x[index] @ weight, scale), obs=y[index])


def full_regression(x, y):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, scale), obs=y)


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


@pytest.mark.parametrize("name", KERNELS)
def test_eager_and_trace_draw_the_same(name, data):
    one = draws(KERNELS[name](regression, backend="eager"), *data, num_chains=2)
    other = draws(KERNELS[name](regression, backend="trace"), *data, num_chains=2)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("num_chains", [1, 3])
@pytest.mark.parametrize("name", KERNELS)
def test_compiled_steps_draw_the_same(name, num_chains, data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = KERNELS[name](regression, backend="compile")
        one = draws(compiled, *data, num_chains=num_chains)
    other = draws(KERNELS[name](regression, backend="trace"), *data, num_chains=num_chains)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", KERNELS)
def test_a_chain_draws_the_same_alone_and_among_others(name, data):
    many = draws(KERNELS[name](regression), *data, num_chains=3)
    alone = draws(KERNELS[name](regression), *data, num_chains=1)
    one_by_one = draws(KERNELS[name](regression), *data, num_chains=3, chain_method="sequential")
    for site in many:
        torch.testing.assert_close(many[site][:1], alone[site], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(many[site], one_by_one[site], rtol=1e-3, atol=1e-4)
        assert (many[site][0] - many[site][1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", KERNELS)
def test_the_seed_decides(name, data):
    kernel = KERNELS[name](regression)
    state = torch.get_rng_state()
    first = draws(kernel, *data, num_chains=2)
    assert torch.equal(state, torch.get_rng_state())
    torch.randn(10)
    torch.testing.assert_close(draws(kernel, *data, num_chains=2), first, rtol=0, atol=0)
    assert not torch.equal(draws(kernel, *data, num_chains=2, seed=12)["scale"], first["scale"])
    pyro.set_rng_seed(5)
    unseeded = draws(kernel, *data, seed=None)
    pyro.set_rng_seed(5)
    torch.testing.assert_close(draws(kernel, *data, seed=None), unseeded, rtol=0, atol=0)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_run_under_pyros_driver(name, data):
    mcmc = pyro.infer.MCMC(
        KERNELS[name](regression, num_steps=3),
        num_samples=6,
        warmup_steps=2,
        num_chains=1,
        disable_progbar=True,
    )
    mcmc.run(*data)
    samples = mcmc.get_samples()
    assert samples["weight"].shape == (6, 3) and (samples["scale"] > 0).all()
    assert len(samples["scale"].unique()) == 6
    assert "scale" in mcmc.diagnostics()


def test_pyros_driver_takes_initial_params_and_a_potential_fn():
    kernel = SGLD(potential_fn=lambda z: 0.5 * z["x"].square().sum(), step_size=0.1)
    mcmc = pyro.infer.MCMC(
        kernel,
        num_samples=4,
        warmup_steps=0,
        initial_params={"x": torch.full((2,), 50.0)},
        disable_progbar=True,
    )
    mcmc.run()
    first = mcmc.get_samples()["x"][0]
    assert first.shape == (2,) and (first > 40).all()


@pytest.mark.statistical
@pytest.mark.parametrize(
    "make",
    [
        lambda f: SGLD(potential_fn=f, step_size=0.1),
        lambda f: SGHMC(potential_fn=f, step_size=0.2, friction=1.0),
        lambda f: SGNHT(potential_fn=f, step_size=0.1, friction=1.0),
        lambda f: PSGLD(potential_fn=f, step_size=0.05, decay=0.999),
    ],
    ids=["SGLD", "SGHMC", "SGNHT", "PSGLD"],
)
def test_potential_fn_moments_through_the_driver(make):
    """400 chains of ten standard normals: means within 4 standard errors, 6e-5 each; the variance
    within what the step size biases."""

    def potential_fn(z):
        return 0.5 * z["x"].square().sum()

    start = {"x": torch.randn(400, 10, generator=torch.Generator().manual_seed(1))}
    samples = draws(
        make(potential_fn),
        num_samples=3,
        warmup_steps=400,
        thinning=100,
        num_chains=400,
        initial_params=start,
    )["x"]
    assert samples.shape == (400, 3, 10)
    assert abs(samples.mean()) < 4 / math.sqrt(12_000)
    assert samples.var() == pytest.approx(1.0, abs=0.08)


@pytest.mark.slow
@pytest.mark.statistical
def test_minibatch_posterior_of_a_conjugate_model():
    """Normal mean with known variance: mean and variance of the exact posterior.

    At this step size the noise of the minibatches adds four per cent to the variance at most.
    """
    generator = torch.Generator().manual_seed(5)
    x = 0.7 + torch.randn(500, generator=generator)

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", 500, subsample_size=100) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])

    precision = 500 + 0.25
    start = {"loc": torch.full((200,), 0.7)}
    loc = draws(
        SGLD(model, step_size=2e-5),
        x,
        num_samples=20,
        warmup_steps=300,
        thinning=100,
        num_chains=200,
        initial_params=start,
    )["loc"].double()
    exact_mean, exact_variance = x.sum().item() / precision, 1 / precision
    # 200 chains of 20 draws, 100 steps apart: autocorrelation exp(-1), 1,850 effective draws.
    assert abs(loc.mean() - exact_mean) < 4 * math.sqrt(exact_variance / 1850)
    assert loc.var() == pytest.approx(exact_variance, rel=0.04 + 4 * math.sqrt(2 / 1850))


def test_temperature_zero_finds_the_mode(data):
    x, y = data
    samples = draws(
        SGHMC(full_regression, step_size=0.01, friction=5.0, temperature=0.0),
        x,
        y,
        num_samples=1,
        warmup_steps=2000,
        thinning=1,
    )
    # The mode in the scale's unconstrained space depends on its Jacobian; the weights' does not:
    # ridge regression at the found scale.
    scale = samples["scale"][0, 0]
    gram = x.T @ x / scale**2 + torch.eye(3)
    expected = torch.linalg.solve(gram, x.T @ y / scale**2)
    torch.testing.assert_close(samples["weight"][0, 0], expected, rtol=1e-3, atol=1e-4)


def test_exploration_injects_no_noise():
    """A cycle that only explores moves as gradient descent does, whatever the seed."""

    def potential_fn(z):
        return 0.5 * z["x"].square().sum()

    schedule = CyclicalSchedule(0.1, num_cycles=1, num_steps=10, exploration=0.8)
    kernel = SGLD(potential_fn=potential_fn, step_size=schedule)
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


def test_friction_by_site():
    def potential_fn(z):
        return z["a"].sum() * 0.0 + z["weight_b"].sum() * 0.0

    kernel = SGHMC(
        potential_fn=potential_fn,
        step_size=0.1,
        friction={"weight*": 2.0, "default": 5.0},
        temperature=0.0,
    )
    kernel.initial_params = {"a": torch.zeros(1), "weight_b": torch.zeros(2)}
    kernel.setup(0)
    chains = kernel.begin(range(1), 0, {"a": torch.zeros(1, 1), "weight_b": torch.zeros(1, 2)})
    state = chains.state._replace(momentum=torch.ones(1, 3))
    state, _ = kernel._step(
        state,
        lambda x: (x.sum(-1), torch.zeros_like(x)),
        torch.zeros(1, 3),
        step_size=torch.tensor(0.1),
        temperature=torch.tensor(0.0),
    )
    torch.testing.assert_close(state.momentum, torch.tensor([[0.5, 0.8, 0.8]]))


def test_momentum_decay_does_not_follow_the_schedule():
    kernel = SGHMC(
        potential_fn=lambda z: z["x"].sum() * 0.0,
        step_size=0.5,
        momentum_decay=0.25,
        temperature=0.0,
    )
    kernel.initial_params = {"x": torch.zeros(1)}
    kernel.setup(0)
    for step_size in (0.5, 0.01):
        state, _ = kernel._step(
            kernel.begin(range(1), 0, {"x": torch.zeros(1, 1)}).state._replace(
                momentum=torch.ones(1, 1)
            ),
            lambda x: (x.sum(-1), torch.zeros_like(x)),
            torch.zeros(1, 1),
            step_size=torch.tensor(step_size),
            temperature=torch.tensor(0.0),
        )
        assert state.momentum.item() == 0.75


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGLD(), "either model or potential_fn"),
        (lambda: SGLD(regression, potential_fn=lambda z: z), "either model or potential_fn"),
        (lambda: SGLD(regression, step_size=-1.0), "step_size"),
        (lambda: SGLD(regression, temperature=-0.1), "temperature"),
        (lambda: SGLD(regression, temperature=float("nan")), "temperature"),
        (lambda: SGLD(regression, backend="jit"), "backend"),
        (lambda: SGLD(regression, num_steps=0), "num_steps"),
        (lambda: SGLD(regression, noise_estimate=-1.0), "noise_estimate"),
        (lambda: SGLD(regression, step_size=0.1, noise_estimate=21.0), "noise_estimate"),
        (lambda: SGHMC(regression, step_size=0.1, friction=11.0), "friction"),
        (lambda: SGHMC(regression, friction=0.0), "friction"),
        (lambda: SGHMC(regression, friction={}), "friction"),
        (lambda: SGHMC(regression, friction=1.0, momentum_decay=0.1), "not both"),
        (lambda: SGHMC(regression, momentum_decay=1.5), "momentum_decay"),
        (lambda: SGHMC(regression, mass=0.0), "mass"),
        (lambda: SGHMC(regression, step_size=0.1, friction=1.0, noise_estimate=21.0), "noise"),
        (lambda: SGNHT(regression, friction=-1.0), "friction"),
        (lambda: PSGLD(regression, decay=1.0), "decay"),
        (lambda: PSGLD(regression, regularization=0.0), "regularization"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_site_in_friction(data):
    kernel = SGHMC(regression, step_size=0.01, friction={"wieght": 1.0, "default": 2.0})
    with pytest.raises(ValueError, match="'wieght'.*weight"):
        kernel.setup(0, *data)
    kernel = SGHMC(regression, step_size=0.01, friction={"weight": 1.0})
    with pytest.raises(ValueError, match="scale.*default"):
        kernel.setup(0, *data)


def test_polynomial_schedule_reaches_the_sampler(data):
    kernel = SGLD(regression, step_size=PolynomialSchedule(1e-3, exponent=1.0))
    mcmc = MCMC(kernel, num_samples=3, thinning=2, num_chains=2, seed=0, progress=False).run(*data)
    step_size = mcmc.sample_statistics()["step_size"]
    assert step_size[0].tolist() == pytest.approx([1e-3 / 2, 1e-3 / 4, 1e-3 / 6])
