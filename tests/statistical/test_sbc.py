"""Every kernel is calibrated, and kernels and models that are broken on purpose are found out.

The model has independent replicates, so that one run ranks 300 true values at once and four
simulations give 1200 ranks. A test rejects at the level 0.001: that is the false-alarm rate of each
comparison but for the error of the finite steps, which widens or narrows the posterior by at most 1
per cent. With so many ranks a posterior that is 10 per cent too narrow or wide, or shifted by 0.15
standard deviations, is found with a chance of about 0.5, one that is off by twice that always.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import NUTS
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext import inference
from pyro_ext.diagnostics import SBCResult, sbc
from pyro_ext.inference import MCMC, PSGLD, SGHMC, SGLD, SGNHT, MetaSGMCMC
from pyro_ext.inference.sgmcmc import LearnedDiffusion
from pyro_ext.potential import Potential
from tests.inference.hmc.posteriors import ERRORS

pytestmark = [pytest.mark.statistical, pytest.mark.slow, pytest.mark.usefixtures("float64")]

LEVEL = 0.001
NUM_SIMULATIONS, NUM_REPLICATES = 4, 300
SIZE, BATCH_SIZE = 4, 2

Kernel = Callable[[Callable[..., None]], MCMCKernel]


def model(x: Tensor, batch_size: int = BATCH_SIZE) -> None:
    """Each loc has a normal posterior of precision 2.

    Its minibatch gradients have the variance ``len(x) / batch_size - 1``.
    """
    with pyro.plate("replicates", NUM_REPLICATES, dim=-1):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=batch_size, dim=-2) as index:
            pyro.sample("x", dist.Normal(loc, math.sqrt(len(x))), obs=x[index])


def outward(values: dict[str, Tensor]) -> Tensor:
    """Each loc, positive where it lies on the side of its data."""
    return values["loc"] * values["x"].mean(0).sign()


def ranks_of(run: Callable[..., MCMC], batch_size: int = BATCH_SIZE, size: int = SIZE) -> SBCResult:
    return sbc(
        model,
        run,
        NUM_SIMULATIONS,
        torch.zeros(size, NUM_REPLICATES),
        batch_size,
        quantities={"outward": outward},
        log_likelihood=False,
        seed=0,
        progress=False,
    )


def calibrate(
    kernel: Kernel,
    warmup_steps: int,
    thinning: int,
    program: Callable[..., None] | None = None,
    **sizes: int,
) -> SBCResult:
    """100 draws of 20 chains, which forget where they were between two of them.

    With a program, inference takes it in place of the model that made the data.
    """

    def run(model: Callable[..., None], x: Tensor, batch_size: int) -> MCMC:
        if program is not None:
            model, x = program, Potential(model, x, batch_size).observations()["x"]
        mcmc = MCMC(kernel(model), 5, warmup_steps, 20, thinning, progress=False)
        return mcmc.run(x, batch_size)

    return ranks_of(run, **sizes)


def assert_calibrated(result: SBCResult) -> None:
    assert result.is_calibrated(LEVEL, pool=True), result.uniformity(pool=True)


# In steps, the time in which a chain forgets: 50 for SGLD and PSGLD, 20 for SGHMC, 80 for SGNHT. An
# odd thinning takes draws from within epochs too, at whose ends the noise of minibatches cancels.
KERNELS: dict[str, tuple[Kernel, int, int]] = {
    "SGLD": (lambda model: SGLD(model, step_size=0.01), 300, 151),
    "SGHMC": (lambda model: SGHMC(model, step_size=0.05, friction=2.0), 200, 81),
    "SGNHT": (lambda model: SGNHT(model, step_size=0.05, friction=0.5), 500, 251),
    # Curl and diffusion that vary with energy, gradient and momentum, by some ten per cent.
    "MetaSGMCMC": (
        lambda model: MetaSGMCMC(
            model, diffusion=LearnedDiffusion(output_scale=0.5), step_size=0.03, friction=2.0
        ),
        400,
        151,
    ),
    # Without the drift that follows the curvature PSGLD is exact only where its preconditioner is
    # constant. Here the curvature is, the average is slow, and the regularization as large as the
    # root of the average, so that the preconditioner stays within some per cent.
    "PSGLD": (
        lambda model: PSGLD(model, step_size=3.7e-4, decay=0.999, regularization=0.02),
        3000,
        151,
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_is_calibrated(name):
    assert_calibrated(calibrate(*KERNELS[name]))


# They see all of the data. MEADS takes a gradient a step, the others some for each trajectory.
WHOLE_KERNELS: dict[str, tuple[Kernel, int, int]] = {
    "HMC": (lambda model: inference.HMC(model), 100, 5),
    "NUTS": (lambda model: inference.NUTS(model), 60, 3),
    "MAMS": (lambda model: inference.MAMS(model), 100, 3),
    "ChEES": (lambda model: inference.ChEES(model), 100, 3),
    "MEADS": (lambda model: inference.MEADS(model), 1000, 301),
}


@pytest.mark.parametrize("name", WHOLE_KERNELS)
def test_kernel_on_all_data_is_calibrated(name):
    assert_calibrated(calibrate(*WHOLE_KERNELS[name], batch_size=SIZE))


@pytest.mark.filterwarnings("ignore:the draws of")
@pytest.mark.parametrize("control_variate", [None, "map"])
def test_control_variate_takes_out_the_noise(control_variate):
    """Single elements of 200 heat the chains to a variance twice too large, without it."""
    result = calibrate(
        lambda model: SGLD(model, step_size=0.01, control_variate=control_variate),
        300,
        151,
        batch_size=1,
        size=200,
    )
    if control_variate:
        assert_calibrated(result)
    else:
        row = result.uniformity(["loc"], pool=True).loc["loc"]
        assert row["p_value"] < 1e-9 and row["spread"] < 0.9


def test_nuts_is_calibrated():
    def run(model: Callable[..., None], *args: Any) -> MCMC:
        return MCMC(NUTS(model), num_samples=100, warmup_steps=80, progress=False).run(*args)

    assert_calibrated(ranks_of(run, batch_size=SIZE))


class ColdSGLD(SGLD):
    """Noise of half the variance, as where the factor of two is forgotten."""

    def _step(self, state, value_and_gradient, noise, **numbers):
        return super()._step(state, value_and_gradient, noise * math.sqrt(0.5), **numbers)


class HotSGHMC(SGHMC):
    """Noise of twice the variance."""

    def _step(self, state, value_and_gradient, noise, **numbers):
        return super()._step(state, value_and_gradient, noise * math.sqrt(2.0), **numbers)


@pytest.mark.filterwarnings("ignore:the draws of")
@pytest.mark.parametrize(
    ("kernel", "is_narrow"),
    [
        ((lambda model: ColdSGLD(model, step_size=0.01), 300, 150), True),
        ((lambda model: HotSGHMC(model, step_size=0.05, friction=2.0), 200, 80), False),
    ],
    ids=["SGLD of half the noise", "SGHMC of twice the noise"],
)
def test_wrong_noise_is_caught(kernel, is_narrow):
    """The variance is off by a factor of two: a p-value above 1e-9 has a chance below 0.01."""
    row = calibrate(*kernel).uniformity(["loc"], pool=True).loc["loc"]
    assert row["p_value"] < 1e-9
    assert row["spread"] > 1.1 if is_narrow else row["spread"] < 0.9


def variant(prior_scale: float, scale: float) -> Callable[..., None]:
    """The model with another prior, or a likelihood to a power."""

    def program(x: Tensor, batch_size: int) -> None:
        with pyro.plate("replicates", NUM_REPLICATES, dim=-1):
            loc = pyro.sample("loc", dist.Normal(0.0, prior_scale))
            with pyro.plate("data", SIZE, subsample_size=batch_size, dim=-2) as index:
                with poutine.scale(scale=scale):
                    pyro.sample("x", dist.Normal(loc, math.sqrt(SIZE)), obs=x[index])

    return program


def test_the_same_model_written_again_is_calibrated():
    """What shows the next tests to be about the models and not about the way they run."""
    assert_calibrated(calibrate(*KERNELS["SGLD"], variant(1.0, 1.0)))


@pytest.mark.parametrize(
    ("program", "is_near"),
    [(variant(1.0, BATCH_SIZE / SIZE), True), (variant(1.7, 1.0), False)],
    ids=["likelihood not rescaled to all of the data", "prior too wide"],
)
def test_wrong_model_is_caught(program, is_near):
    """The posterior lies 0.23 of its deviations too near to zero, or 0.32 too far from it."""
    row = calibrate(*KERNELS["SGLD"], program).uniformity(["outward"], pool=True).loc["outward"]
    assert row["p_value"] < LEVEL
    assert row["mean_rank"] > 0.5 if is_near else row["mean_rank"] < 0.5


def test_the_prior_is_caught_by_the_likelihood():
    """A sampler that forgets the data has uniform ranks of all parameters."""

    def run(model: Callable[..., None], x: Tensor) -> dict[str, Tensor]:
        return {"loc": torch.randn(100, NUM_REPLICATES)}

    x = torch.zeros(SIZE, NUM_REPLICATES)
    result = sbc(model, run, 20, x, seed=0, progress=False)
    assert result.is_calibrated(LEVEL, names=["loc"], pool=True)
    assert not result.is_calibrated(1e-9, names=["log_likelihood"])


def test_the_shortest_call_of_nuts_is_calibrated():
    """On eight schools, whose masses adapt by gradients in a warm-up of 200 steps."""

    def schools(effects: Tensor, errors: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        spread = pyro.sample("spread", dist.HalfNormal(5.0))
        with pyro.plate("schools", len(errors)):
            standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
            center = mean + spread * standard
            pyro.sample("effect", dist.Normal(center, errors), obs=effects)

    def run(model: Callable[..., None], *data: Tensor) -> MCMC:
        return MCMC(inference.NUTS(model), 200, num_chains=4, progress=False).run(*data)

    data = torch.zeros(8), torch.tensor(ERRORS)
    result = sbc(schools, run, 60, *data, num_draws=50, seed=0, progress=False)
    assert result.is_calibrated(LEVEL), result.uniformity()
