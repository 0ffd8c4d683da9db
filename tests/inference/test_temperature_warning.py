"""The warning at the end of a run: of samplers that are too hot or too cold, and of no other."""

import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.inference import L2E, MCMC, PSGLD, SGHMC, SGLD, SGNHT, LaplaceHMC
from pyro_ext.inference.driver.end_of_run import temperatures_of
from pyro_ext.inference.sgmcmc import SGMCMCKernel
from pyro_ext.posterior import ConvergenceWarning

CALL: Any = {"warmup_steps": 200, "num_chains": 4, "thinning": 10, "seed": 0, "progress": False}


def classes(x: Tensor, y: Tensor) -> None:
    """Multinomial regression."""
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(3, 3), 1.0).to_event(2))
    with pyro.plate("data", len(x), subsample_size=20) as index:
        pyro.sample("y", dist.Categorical(logits=x[index] @ weight), obs=y[index])


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 3, generator=generator)
    return x, (x + 0.5 * torch.randn(100, 3, generator=generator)).argmax(-1)


def test_runs_that_are_off_are_told(subtests: pytest.Subtests) -> None:
    cold = r"draws of L2E are too cold: .* times the posterior's.* temperature is 0\.\d+ \+- 0\."
    hot = r"draws of SGHMC are too hot: their standard deviations are about \d.* smaller step_size"
    for kernel, told, num_chains in (
        (L2E.pretrained(classes), cold, 1),
        (SGHMC(classes, step_size=0.2, momentum_decay=0.1), hot, 4),
    ):
        with subtests.test(told=told[:20], num_chains=num_chains):
            with pytest.warns(UserWarning, match=told):
                MCMC(kernel, 80, **{**CALL, "num_chains": num_chains}).run(*data())


@pytest.mark.parametrize(
    "kernel",
    [
        SGHMC(classes, step_size=0.05, momentum_decay=0.1),
        SGHMC(classes, step_size=0.02, momentum_decay=0.1, temperature=0.0),
        pytest.param(SGLD(classes, step_size=0.004), marks=pytest.mark.slow),
        pytest.param(SGNHT(classes, step_size=0.03, friction=2.0), marks=pytest.mark.slow),
        pytest.param(PSGLD(classes, step_size=0.002), marks=pytest.mark.slow),
        pytest.param(
            SGHMC(classes, step_size=0.02, momentum_decay=0.3, temperature=0.1),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_good_runs_are_quiet(kernel: SGMCMCKernel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        MCMC(kernel, 80, **CALL).run(*data())


@pytest.mark.slow
@pytest.mark.statistical
def test_temperature_of_exact_draws(float64: None) -> None:
    """Those of Hamiltonian Monte Carlo have one; more than 4.5 errors come once in 1,000 seeds."""

    def whole() -> None:
        pyro.sample("scale", dist.LogNormal(1.0, 2.0))
        pyro.sample("share", dist.Beta(2.0, 3.0))
        pyro.sample("loc", dist.Normal(-40.0, 3.0))

    kernel = LaplaceHMC(whole, num_steps=6)
    mcmc = MCMC(kernel, 200, 50, num_chains=4, thinning=5, seed=0, progress=False).run()
    temperatures = temperatures_of(kernel, mcmc._readers(mcmc._store), *mcmc._choose(), 1050)
    assert temperatures is not None and list(temperatures) == ["", "scale", "share", "loc"]
    found = temperatures[""]
    assert abs(found.value - 1.0) < 4.5 * found.standard_error and found.standard_error < 0.2


def test_temperature_from_a_folder_and_of_some_chains(tmp_path: Path) -> None:
    """Draws that come in chunks, in groups of chains, are those of one run in memory."""
    kernel = SGHMC(classes, step_size=0.05, momentum_decay=0.1)
    found = []
    for options in ({}, {"checkpoint": tmp_path / "run", "group_size": 2}):
        mcmc = MCMC(kernel, 30, **CALL, **options)
        mcmc.run(*data())
        for numbers in ([0, 1, 2, 3], [1, 3]):
            readers = mcmc._readers(mcmc._store)
            found.append(temperatures_of(kernel, readers, numbers, 30, 500))
    assert found[:2] == found[2:] and found[0] != found[1]


def test_random_numbers_stay_as_they_are() -> None:
    """The check takes none of PyTorch's generator."""
    kernel = SGHMC(classes, step_size=0.05, momentum_decay=0.1)
    mcmc = MCMC(kernel, 30, **CALL).run(*data())
    state = torch.get_rng_state()
    temperatures_of(kernel, mcmc._readers(mcmc._store), *mcmc._choose(), 500)
    assert torch.equal(torch.get_rng_state(), state)
