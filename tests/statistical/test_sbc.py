"""Every kernel is calibrated, and kernels and models that are broken on purpose are found out.

The model has independent replicates, so that one run ranks 100 true values at once and ten
simulations give 1000 ranks. A test rejects at the level 0.001: that is the false-alarm rate of each
comparison but for the error of the finite steps, which widens or narrows the posterior by at most 1
per cent. With 1000 ranks a posterior that is 10 per cent too narrow or wide, or shifted by 0.15
standard deviations, is found with a chance of about 0.5, one that is off by twice that always.
"""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import NUTS
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext.diagnostics import SBCResult, sbc
from pyro_ext.inference import MCMC, PSGLD, SGHMC, SGLD, SGNHT
from pyro_ext.potential import Potential

pytestmark = [pytest.mark.statistical, pytest.mark.slow, pytest.mark.usefixtures("float64")]

LEVEL = 0.001
NUM_REPLICATES, SIZE, BATCH_SIZE = 100, 4, 2

Kernel = Callable[[Callable[..., None]], MCMCKernel]


def model(x: Tensor, batch_size: int = BATCH_SIZE) -> None:
    """Each loc has a normal posterior of precision 2; its minibatch gradients have variance 1."""
    with pyro.plate("replicates", NUM_REPLICATES, dim=-1):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", SIZE, subsample_size=batch_size, dim=-2) as index:
            pyro.sample("x", dist.Normal(loc, math.sqrt(SIZE)), obs=x[index])


def calibrate(
    kernel: Kernel,
    warmup_steps: int,
    thinning: int,
    program: Callable[..., None] | None = None,
) -> SBCResult:
    """100 draws of 20 chains, which forget where they were between two of them.

    With a program, inference takes it in place of the model that made the data.
    """

    def run(model: Callable[..., None], x: Tensor) -> MCMC:
        if program is not None:
            model, x = program, Potential(model, x).observations()["x"]
        return MCMC(
            kernel(model),
            num_samples=5,
            warmup_steps=warmup_steps,
            thinning=thinning,
            num_chains=20,
            progress=False,
        ).run(x)

    x = torch.zeros(SIZE, NUM_REPLICATES)
    return sbc(model, run, 10, x, seed=0, progress=False)


def p_value(result: SBCResult, name: str = "loc") -> float:
    return float(result.uniformity([name], pool=True)["p_value"].iloc[0])


# In steps, the time in which a chain forgets: 50 for SGLD and PSGLD, 20 for SGHMC, 80 for SGNHT.
KERNELS: dict[str, tuple[Kernel, int, int]] = {
    "SGLD": (lambda model: SGLD(model, step_size=0.01), 300, 150),
    "SGHMC": (lambda model: SGHMC(model, step_size=0.05, friction=2.0), 200, 80),
    "SGNHT": (lambda model: SGNHT(model, step_size=0.05, friction=0.5), 500, 250),
    # Without the drift that follows the curvature PSGLD is exact only where its preconditioner is
    # constant. Here the curvature is, the average is slow, and the regularization as large as the
    # root of the average, so that the preconditioner stays within some per cent.
    "PSGLD": (
        lambda model: PSGLD(model, step_size=3.7e-4, decay=0.999, regularization=0.02),
        3000,
        150,
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_is_calibrated(name):
    result = calibrate(*KERNELS[name])
    assert result.is_calibrated(LEVEL, pool=["loc"]), result.uniformity(pool=["loc"])


def test_nuts_is_calibrated():
    def run(model: Callable[..., None], x: Tensor, batch_size: int) -> MCMC:
        return MCMC(NUTS(model), num_samples=100, warmup_steps=80, progress=False).run(
            x, batch_size
        )

    x = torch.zeros(SIZE, NUM_REPLICATES)
    result = sbc(model, run, 5, x, SIZE, seed=0, progress=False)
    assert result.is_calibrated(LEVEL, pool=["loc"]), result.uniformity(pool=["loc"])


class ColdSGLD(SGLD):
    """Noise of half the variance, as where the factor of two is forgotten."""

    def _step(self, state, value_and_gradient, noise, **numbers):
        return super()._step(state, value_and_gradient, noise * math.sqrt(0.5), **numbers)


class HotSGHMC(SGHMC):
    """Noise of twice the variance."""

    def _step(self, state, value_and_gradient, noise, **numbers):
        return super()._step(state, value_and_gradient, noise * math.sqrt(2.0), **numbers)


@pytest.mark.parametrize(
    ("kernel", "is_narrow"),
    [
        ((lambda model: ColdSGLD(model, step_size=0.01), 300, 150), True),
        ((lambda model: HotSGHMC(model, step_size=0.05, friction=2.0), 200, 80), False),
    ],
    ids=["SGLD of half the noise", "SGHMC of twice the noise"],
)
def test_wrong_noise_is_caught(kernel, is_narrow):
    """The variance is off by a factor of two, which 1000 ranks miss with a chance below 1e-6."""
    result = calibrate(*kernel)
    assert p_value(result) < 1e-9
    spread = float(result.uniformity(["loc"], pool=True)["spread"].iloc[0])
    assert spread > 1.1 if is_narrow else spread < 0.9


def variant(prior_scale: float, scale: float) -> Callable[[Tensor], None]:
    """The model with another prior, or a likelihood to a power."""

    def program(x: Tensor) -> None:
        with pyro.plate("replicates", NUM_REPLICATES, dim=-1):
            loc = pyro.sample("loc", dist.Normal(0.0, prior_scale))
            with pyro.plate("data", SIZE, subsample_size=BATCH_SIZE, dim=-2) as index:
                with poutine.scale(scale=scale):
                    pyro.sample("x", dist.Normal(loc, math.sqrt(SIZE)), obs=x[index])

    return program


def test_the_same_model_written_again_is_calibrated():
    """What shows the next tests to be about the models and not about the way they run."""
    assert p_value(calibrate(*KERNELS["SGLD"], variant(1.0, 1.0))) > LEVEL


@pytest.mark.parametrize(
    "program",
    [variant(1.0, BATCH_SIZE / SIZE), variant(1.7, 1.0)],
    ids=["likelihood not rescaled to all of the data", "prior too wide"],
)
def test_wrong_model_is_caught(program):
    """What is wrong widens the posterior by 15 and 12 per cent, and moves it besides."""
    assert p_value(calibrate(*KERNELS["SGLD"], program)) < LEVEL


def test_the_prior_is_caught_by_the_likelihood():
    """A sampler that forgets the data has uniform ranks of all parameters."""

    def run(model: Callable[..., None], x: Tensor) -> dict[str, Tensor]:
        return {"loc": torch.randn(100, NUM_REPLICATES)}

    x = torch.zeros(SIZE, NUM_REPLICATES)
    result = sbc(model, run, 20, x, seed=0, progress=False)
    assert p_value(result, "loc") > LEVEL
    assert p_value(result, "log_likelihood") < 1e-9
