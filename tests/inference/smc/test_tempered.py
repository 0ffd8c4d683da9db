"""Tempered SMC: evidence against closed forms and quadrature, modes, schedules, what is refused."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import TemperedSMC
from pyro_ext.inference.smc import tempered
from pyro_ext.inference.smc.tempered import TemperedPotential, hamiltonian_transition
from pyro_ext.posterior import ConvergenceWarning
from tests.killing import Killed, stopping

pytestmark = pytest.mark.usefixtures("float64")


def normal_means(y, scale=10.0):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(y.shape[1]), scale).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


def evidence_of_means(y, scale=10.0):
    n, squares, sums = len(y), y.square().sum(0), y.sum(0)
    terms = n * math.log(2.0 * math.pi) + math.log(1.0 + n * scale**2) + squares
    return float(-0.5 * (terms - scale**2 * sums**2 / (1.0 + n * scale**2)).sum())


def two_modes(y):
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    modes = dist.Normal(torch.stack([x - 5.0, x + 5.0]), 0.5)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.7, 0.3])), modes)
    pyro.sample("y", mixture, obs=y)


Y = torch.tensor(1.0)


def of_two_modes(y=1.0):
    """Log evidence, and the mass of the right mode, by quadrature."""
    x = torch.linspace(-60.0, 60.0, 100_001)
    density = 0.7 * dist.Normal(x - 5.0, 0.5).log_prob(torch.tensor(y)).exp()
    density = density + 0.3 * dist.Normal(x + 5.0, 0.5).log_prob(torch.tensor(y)).exp()
    density = density * dist.Normal(0.0, 10.0).log_prob(x).exp()
    total = torch.trapezoid(density, x)
    return float(total.log()), float(torch.trapezoid(density[x > 0], x[x > 0]) / total)


def quiet(*args, **options):
    return TemperedSMC(*args, progress=False, **options)


@pytest.mark.statistical
def test_evidence_of_normal_means():
    """That of the specification: a prior a hundred times wider than the data allow."""
    y = torch.tensor(np.random.default_rng(5).normal(size=(20, 10)) + 1.0)
    exact = evidence_of_means(y)
    assert exact == pytest.approx(-311.9059, abs=1e-4)
    smc = quiet(normal_means, seed=0).run(y)
    assert abs(smc.log_evidence - exact) < 4.0 * smc.log_evidence_error + 0.1
    assert smc.log_evidence_error < 0.6 and smc.temperatures[-1] == 1.0
    assert (smc.temperatures.diff() > 0).all()
    draws = smc.get_samples()["mean"]
    assert ((draws.mean(0) - 2000.0 / 2001.0 * y.mean(0)) * 20**0.5).abs().max() < 0.2
    assert ((draws.std(0) * 20**0.5) - 1.0).abs().max() < 0.1


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("size", [2, 20, 100])
def test_errors_of_the_evidence_are_calibrated(size):
    """The mean error that five runs report is within a tenth of the spread of such means.

    Both come from the same 40 runs, so that their own spread cancels. The mean of the evidences is
    within five of its errors of the exact one, which one seed in 100,000 would exceed.
    """
    scale = torch.linspace(0.05, 0.5, size)

    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(size), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)

    y = torch.randn(size)
    exact = float(dist.Normal(0.0, (1.0 + scale**2).sqrt()).log_prob(y).sum())
    smc = quiet(model, num_runs=40, seed=1).run(y)
    assert abs(smc.log_evidence - exact) < 5.0 * smc.log_evidence_error
    groups = torch.stack([torch.randperm(40)[:5] for _ in range(2000)])
    drawn = smc.log_evidences[torch.randint(40, (2000, 5))]
    spread = float(drawn.logsumexp(-1).std())
    reported = [tempered._jackknife_error(smc.log_evidences[group]) for group in groups]
    assert np.mean(reported) == pytest.approx(spread, rel=0.1)


@pytest.mark.statistical
def test_modes_have_their_masses():
    evidence, mass = of_two_modes()
    smc = quiet(two_modes, 2000, seed=1).run(Y)
    assert smc.log_evidence == pytest.approx(evidence, abs=0.1)
    assert (smc.get_samples()["x"] > 0).double().mean() == pytest.approx(mass, abs=0.08)


@pytest.mark.statistical
def test_estimates_at_given_powers_have_no_bias():
    """However few particles: the mean of 400 estimates of 20 particles each."""
    evidence, _ = of_two_modes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so few do not agree
        smc = quiet(two_modes, 20, num_runs=400, seed=2).run(Y)
    assert abs(smc.log_evidence - evidence) < 4.0 * smc.log_evidence_error
    assert smc.log_evidence_error < 0.06


def test_a_bayes_factor_in_a_plate_with_a_factor_and_a_positive_site():
    x = torch.tensor([0.5, 1.5, 2.0])

    def model(x, is_exponential):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", len(x)):
            if is_exponential:
                pyro.sample("x", dist.Exponential(rate), obs=x)
            else:
                pyro.factor("x", dist.Gamma(2.0, rate).log_prob(x))

    smc = [quiet(model, seed=3).run(x, is_exponential) for is_exponential in (True, False)]
    # The gamma prior is conjugate: of shape 2 + 3 k after three draws of shape k.
    exact = [
        math.lgamma(2 + 3 * k) - (2 + 3 * k) * math.log(1.0 + 4.0) + (k - 1) * math.log(1.5)
        for k in (1, 2)
    ]
    for found, expected in zip(smc, exact, strict=True):
        assert abs(found.log_evidence - expected) < 4.0 * found.log_evidence_error + 0.02


def test_a_schedule_is_used_again_and_seeds_repeat():
    first, same = (quiet(two_modes, 200, seed=4).run(Y) for _ in range(2))
    assert torch.equal(first.get_samples()["x"], same.get_samples()["x"])
    assert first.get_samples(group_by_chain=True)["x"].shape == (5, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        other = quiet(two_modes, 200, seed=5).run(Y, schedule=first.schedule)
    assert torch.equal(other.temperatures, first.temperatures)
    assert not torch.equal(other.log_evidences, first.log_evidences)
    with pytest.raises(ValueError, match=r"factors of the shape \(n, 2, 2\)"):
        quiet(normal_means).run(torch.zeros(3, 2), schedule=first.schedule)


def test_compiled_runs_and_arviz():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        pyro.deterministic("double", 2.0 * mean)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    smc = quiet(model, 100, seed=0).run(torch.tensor([0.5, 1.0]))
    data = to_arviz(smc)
    assert data.posterior["double"].shape == (5, 100) and "y" in data.log_likelihood


@pytest.mark.slow
def test_compiled_runs_are_those_of_the_graph():
    one, other = (
        quiet(two_modes, 200, seed=6, backend=backend).run(Y) for backend in ("trace", "compile")
    )
    torch.testing.assert_close(one.log_evidences, other.log_evidences)


def test_discrete_sites_are_summed_out_where_priors_do_not_depend_on_them():
    def model(x, depends):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        sign = pyro.sample("sign", dist.Bernoulli(torch.tensor(0.5)))
        if depends:
            loc = pyro.sample("shifted", dist.Normal(loc + sign, 1.0))
        pyro.sample("x", dist.Normal(loc * (2.0 * sign - 1.0), 1.0), obs=x)

    x = torch.tensor(2.0)
    smc = quiet(model, seed=0).run(x, False)
    assert smc.log_evidence == pytest.approx(
        float(dist.Normal(0.0, 10.0**0.5).log_prob(x)), abs=0.1
    )
    with pytest.raises(ValueError, match=r"a prior of \['shifted'\]"):
        quiet(model).run(x, True)


def test_parts_add_up_to_the_potential():
    y = torch.randn(6, 3)
    potential = TemperedPotential(normal_means, y)
    flat = torch.randn(4, 3)
    values, gradients = potential.tempered(flat, torch.tensor([0.0, 0.3, 1.0, 1.0]))
    prior = dist.Normal(0.0, 10.0).log_prob(flat).sum(-1)
    likelihoods = potential.likelihoods(flat)
    torch.testing.assert_close(values, -prior - torch.tensor([0.0, 0.3, 1.0, 1.0]) * likelihoods)
    torch.testing.assert_close(values[2:], potential.value(flat[2:]))
    torch.testing.assert_close(gradients[2:], potential.gradient(flat[2:])[1])


def test_what_is_said_and_refused():
    with pytest.warns(ConvergenceWarning, match="log evidences of the runs spread"):
        quiet(normal_means, 10, chain_length=2, seed=0).run(torch.randn(20, 5) + 5.0)

    def impossible():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("edge", torch.where(x > 20.0, 0.0, -torch.inf))

    with pytest.raises(ValueError, match=r"initial points will do|likelihood is zero"):
        quiet(impossible, seed=0).run()

    def subsampled(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), subsample_size=2) as index:
            pyro.sample("y", dist.Normal(x, 1.0), obs=y[index])

    with pytest.raises(ValueError, match=r"it subsamples in \['rows'\]"):
        quiet(subsampled).run(torch.zeros(5))
    with pytest.raises(ValueError, match="must be a multiple of chain_length = 10"):
        TemperedSMC(normal_means, 15)
    with pytest.raises(RuntimeError, match=r"call run\(...\) first"):
        TemperedSMC(normal_means).get_samples()


@pytest.mark.parametrize("fraction", [0.3, 0.6, 1.0])  # in the search for powers, and in the runs
def test_a_killed_run_goes_on(fraction, tmp_path, monkeypatch):
    options = {"chain_length": 5, "num_runs": 3, "seed": 7}
    folder = tmp_path / "run"
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return hamiltonian_transition(*args, **kwargs)

    monkeypatch.setattr(tempered, "hamiltonian_transition", counted)
    whole = quiet(two_modes, 200, **options).run(Y)
    call = int(fraction * (number := len(calls)))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stopped = stopping(hamiltonian_transition, call, Killed)
        patch.setattr(tempered, "hamiltonian_transition", stopped)
        quiet(two_modes, 200, checkpoint=folder, **options).run(Y)
    calls.clear()
    resumed = quiet(two_modes, 200, checkpoint=folder, **options | {"seed": None}).run(Y)
    assert len(calls) <= number - call + 4  # with those of the stage that was not finished
    assert torch.equal(resumed.log_evidences, whole.log_evidences)
    assert torch.equal(resumed.get_samples()["x"], whole.get_samples()["x"])
    calls.clear()
    same = quiet(two_modes, 200, checkpoint=folder, **options).run(Y)
    assert same.log_evidence == whole.log_evidence and not calls
    with pytest.raises(CheckpointError, match=r"is of another run: run: num_particles is 200"):
        quiet(two_modes, 100, checkpoint=folder, **options).run(Y)
    with pytest.raises(CheckpointError, match=r"is of another run: .*args"):
        quiet(two_modes, 200, checkpoint=folder, **options).run(Y + 1.0)
