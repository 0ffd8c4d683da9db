"""Crank-Nicolson proposals over paths: exact moments, what draws depend on, drivers."""

import pickle
import warnings

import pytest
import torch
from pyro.infer import MCMC as PyroMCMC

from pyro_ext.checkpoint.files import CheckpointError
from pyro_ext.diagnostics import to_arviz
from pyro_ext.distributions import DirichletOU
from pyro_ext.inference import MCMC, PathPCN
from pyro_ext.inference.adjoint import DoubleWell1D, OnsagerMachlup
from pyro_ext.posterior import ConvergenceWarning
from tests.inference.adjoint.harmonic import quadratic
from tests.inference.models import assert_mean

pytestmark = pytest.mark.usefixtures("float64")

LENGTH, MODES = 2.0, 4
SCALES = LENGTH / (torch.pi * torch.arange(1, MODES + 1))


def kernel(stiffness=6.0, **options):
    return PathPCN(DirichletOU(LENGTH, MODES, 1), quadratic(stiffness), **options)


def run(num_samples, num_chains=3, warmup_steps=5, made=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # short ones need not
        made = made or kernel()
        driver = MCMC(
            made,
            num_samples,
            warmup_steps,
            num_chains=num_chains,
            seed=0,
            progress=False,
            **options,
        )
        return driver.run()


@pytest.mark.statistical
@pytest.mark.parametrize("step_size", [0.4, 1.0])
def test_moments_in_a_quadratic_energy(step_size):
    r"""Modes are normal with variances :math:`1 / (1 + \kappa v_k)`, from 200 chains.

    Within 4.5 standard errors from the means of chains: sixteen numbers, false-alarm rate 1e-4.
    """
    mcmc = run(100, num_chains=200, warmup_steps=40, made=kernel(step_size=step_size))
    z = mcmc.get_samples(group_by_chain=True)["z"].double()[..., 0]
    exact = 1.0 / (1.0 + 6.0 * SCALES.square())
    for values, expected in ((z, torch.zeros(MODES)), (z.square(), exact)):
        assert_mean(values.mean(1), expected)
    assert 0.1 < float(mcmc.sample_statistics()["acceptance_rate"].mean()) < 0.9


def test_without_an_energy_every_proposal_is_taken():
    mcmc = run(50, made=kernel(0.0, step_size=0.7))
    assert bool((mcmc.sample_statistics()["acceptance_rate"] == 1.0).all())


def test_draws_follow_from_seed_and_number_of_the_chain(tmp_path):
    whole = run(30).get_samples(group_by_chain=True)["z"]
    assert torch.equal(run(30, num_chains=1).get_samples(group_by_chain=True)["z"], whole[:1])
    run(12, checkpoint=tmp_path / "run")
    eager = run(30, made=kernel(backend="eager")).get_samples(group_by_chain=True)["z"]
    torch.testing.assert_close(eager, whole)
    copied = pickle.loads(
        pickle.dumps(kernel(step_size=0.3).replace(step_size=0.4, steps_per_sample=2))
    )
    assert copied.step_size == 0.4 and copied.steps_per_sample == 2
    with pytest.raises(TypeError, match=r"PathPCN has no setting \['beta'\]"):
        copied.replace(beta=0.3)
    with pytest.raises(CheckpointError, match="path_energy"):
        run(40, made=kernel(5.0), checkpoint=tmp_path / "run")


@pytest.mark.slow
def test_compiled_draws():
    whole = run(100).get_samples()["z"]
    compiled = run(100, made=kernel(backend="compile")).get_samples()["z"]
    torch.testing.assert_close(compiled, whole)


def test_paths_come_with_the_draws():
    reference = DirichletOU(LENGTH, MODES, 1, start=-1.0, end=1.0)
    made = PathPCN(reference, OnsagerMachlup(DoubleWell1D()), grid=torch.linspace(0.0, 2.0, 9))
    mcmc = run(4, made=made)
    samples = mcmc.get_samples()
    assert samples["path"].shape == (12, 9, 1)
    torch.testing.assert_close(samples["path"], reference.synthesis(samples["z"], made.grid))
    posterior = to_arviz(mcmc).posterior
    assert posterior["path"].shape == (3, 4, 9, 1)
    potential = made.potential({"z": samples["z"]})
    energy = OnsagerMachlup(DoubleWell1D())(samples["path"], made.grid)
    prior = reference.invariant.log_prob(samples["z"])
    torch.testing.assert_close(potential, energy - prior)


def test_under_the_driver_of_pyro():
    driver = PyroMCMC(kernel(), 20, 5, disable_progbar=True)
    driver.run()
    assert driver.get_samples()["z"].unique(dim=0).shape[0] > 2
