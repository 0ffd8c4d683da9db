"""What a run says at its end of chains that do not agree; of good runs it says nothing."""

import re
import warnings
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import NUTS
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

from pyro_ext.checkpoint.chains import Chunk
from pyro_ext.distributions import KnownVarianceGaussianCluster
from pyro_ext.inference import MCMC, SGLD, EarlyStopping, MarginalGibbs
from pyro_ext.inference._running.end_of_run import largest_r_hat, moments_of_halves, r_hat_of_noise
from pyro_ext.posterior.convergence import effective_sample_size
from pyro_ext.random_measures import DirichletProcess

FAR = {"x": torch.tensor([[-9.0, 0.0], [9.0, 0.0]]), "y": torch.zeros(2)}


def two_sites() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(0.0, 1.0))


def run(kernel: Any, num_samples: int = 100, **options: Any) -> MCMC:
    options = {"num_chains": 2, "seed": 0, "progress": False} | options
    return MCMC(kernel, num_samples, **options).run()


def test_chains_that_do_not_agree_are_named_with_numbers() -> None:
    with pytest.warns(UserWarning) as caught:
        mcmc = run(SGLD(two_sites, step_size=1e-3), initial_params=FAR)
    (warning,) = caught  # one for all that is wrong, with a line each
    assert warning.filename == __file__
    *others, last = str(warning.message).splitlines()
    found = re.search(r"R-hat is (\S+) at 'x'.*more warmup_steps", last)
    assert found is not None
    assert float(found[1]) == pytest.approx(
        float(mcmc.diagnostics()["x"]["r_hat"].max()), rel=0.005
    )
    assert all("too cold" in line for line in others)


def test_chains_of_pyros_kernels_are_looked_at_too() -> None:
    """One starts 9 standard deviations away and takes tiny steps."""
    kernel = NUTS(two_sites, step_size=1e-3, adapt_step_size=False, max_tree_depth=1)
    with pytest.warns(UserWarning, match="the chains do not agree"):
        run(kernel, 40, initial_params=FAR)


def test_what_is_quiet(subtests: pytest.Subtests) -> None:
    still = SGLD(two_sites, step_size=1e-3)
    for name, kernel, options in (
        ("good", SGLD(two_sites, step_size=0.1), {"thinning": 20}),
        ("few draws", still, {"num_samples": 30, "initial_params": FAR}),
        ("optimization", still.replace(temperature=0.0), {"initial_params": FAR}),
    ):
        with subtests.test(name), warnings.catch_warnings():
            warnings.simplefilter("error")
            run(kernel, **options)


def test_a_run_without_real_numbers_is_quiet() -> None:
    """Labels of a partition have no R-hat."""
    kernel = MarginalGibbs(
        DirichletProcess(1.0), KnownVarianceGaussianCluster(torch.zeros(1), 3.0, 0.5)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MCMC(kernel, 60, num_chains=2, seed=0, progress=False).run(torch.zeros(4, 1))


@pytest.mark.statistical
def test_independent_draws_are_below_the_limit_of_noise(float64: None) -> None:
    """In 2000 runs of 20 elements one false alarm of a thousand each: 10 come once in 20,000."""
    draws = torch.randn(2, 40, 2000, 20)
    limit = r_hat_of_noise(4, 20, 20)
    assert int((split_gelman_rubin(draws) > limit).any(-1).sum()) < 10
    assert int((split_gelman_rubin(draws) > 0.9 * limit).any(-1).sum()) > 10


def test_r_hat_is_that_of_all_draws_however_they_are_stored(float64: None) -> None:
    """Of chunks of groups of chains, without some of the chains, in an odd number of draws."""
    draws = torch.randn(5, 67, 3) + 0.3 * torch.randn(5, 1, 3)
    chunks = {
        members: [
            Chunk({"x": part, "label": part.long()}, {}, [])
            for part in draws[list(members)].transpose(0, 1).split(10)
        ]
        for members in (range(3), range(3, 5))
    }
    groups = [(members, partial(iter, parts)) for members, parts in chunks.items()]
    for numbers, length in (([0, 1, 2, 3, 4], 67), ([1, 3], 67), ([4], 50)):
        halves = moments_of_halves(groups, numbers, length)
        assert list(halves) == ["x"]
        expected = split_gelman_rubin(draws[numbers, :length]).max()
        assert largest_r_hat(halves["x"]) == pytest.approx(float(expected))


def test_elements_that_do_not_change_do_not_count() -> None:
    draws = torch.randn(2, 50, 3)
    draws[..., 1] = 1.0
    draws[..., 2] = 0.1 + 1e-8 * torch.arange(2.0)[:, None]

    def largest() -> float:
        chunk = Chunk({"x": draws.transpose(0, 1)}, {}, [])
        return largest_r_hat(
            moments_of_halves([(range(2), lambda: iter([chunk]))], [0, 1], 50)["x"]
        )

    assert largest() == pytest.approx(max(1.0, float(split_gelman_rubin(draws[..., 0]))))
    draws[..., 1] = torch.arange(2.0)[:, None]
    assert largest() > 1e3


def alternating(num_chains: int, num_draws: int) -> Tensor:
    """Draws that jump from one side of zero to the other."""
    signs = 1.0 - 2.0 * (torch.arange(num_draws) % 2)
    return (signs + 0.01 * torch.randn(num_chains, num_draws))[..., None]


def test_effective_sample_sizes_are_positive(float64: None) -> None:
    from pyro.ops import stats

    draws = torch.cat([alternating(4, 200), torch.randn(4, 200, 1)], -1)
    assert stats.effective_sample_size(draws)[0] < 0 or stats.effective_sample_size(draws)[0] > 1e5
    size = effective_sample_size(draws)
    assert size[0] == pytest.approx(800 * torch.tensor(800.0).log10())
    assert size[1] == stats.effective_sample_size(draws)[1]


def test_a_run_whose_draws_alternate(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="at 'x' are too hot|the draws of SGLD are too hot"):
        mcmc = run(SGLD(two_sites, step_size=1.95), 400, num_chains=4)
    assert (mcmc.diagnostics()["x"]["n_eff"] > 0).all()
    mcmc.summary()
    printed = capsys.readouterr().out.split()
    assert {"x[0]", "x[1]", "y", "n_eff", "r_hat"} <= set(printed)
    values = [float(word) for word in printed[-7:]]
    assert values[0] == pytest.approx(float(mcmc.get_samples()["y"].mean()), abs=0.01)
    assert values[5] > 0


def test_early_stopping_takes_these_sizes() -> None:
    stopping = EarlyStopping(effective_sample_size=400, r_hat=1.05)
    assert stopping.is_satisfied({"x": alternating(4, 200)})
