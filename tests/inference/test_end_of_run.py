"""What a run says at its end of draws that cannot be trusted; of good runs it says nothing."""

import re
import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

from pyro_ext import inference as ours
from pyro_ext.checkpoint.chains import Chunk
from pyro_ext.distributions import KnownVarianceGaussianCluster
from pyro_ext.inference import MCMC, SGLD, EarlyStopping, MarginalGibbs, StreamingMCMC
from pyro_ext.inference.driver.end_of_run import moments_of_halves, r_hats, warn_at_end
from pyro_ext.posterior import ConvergenceWarning
from pyro_ext.posterior.convergence import (
    effective_sample_size,
    is_constant,
    num_clusters,
    rank_diagnostics,
)
from pyro_ext.random_measures import DirichletProcess
from tests.inference.hmc.posteriors import EFFECTS, ERRORS

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
    assert {warning.filename for warning in caught} == {__file__}
    messages = {str(w.message): w.category for w in caught}
    *others, r_hat, size = messages
    assert all("too cold" in line and messages[line] is UserWarning for line in others)
    assert messages[r_hat] is messages[size] is ConvergenceWarning
    found = re.search(r"R-hat is (\S+) at 'x', .*more warmup_steps", r_hat)
    draws = mcmc.get_samples(True)["x"]
    worst = float(rank_diagnostics(draws).r_hat.max())
    assert found is not None and float(found[1]) == pytest.approx(worst, rel=0.005)
    assert re.search(r"few effective draws: \S+ at 'x', .* where 200 are wanted", size)


# Of draws that are made up -----------------------------------------------------------------------


def said(
    samples: dict[str, Tensor],
    statistics: dict[str, Tensor] | None = None,
    potential: Any = None,
    **kernel: Any,
) -> list[str]:
    """What is said of a run with these draws, ``(num_chains, num_draws, *event)``, in two files."""
    length = len(next(iter(samples.values()))[0])
    chunks = [
        Chunk(
            {name: value[:, rows].transpose(0, 1) for name, value in samples.items()},
            {name: value[:, rows].transpose(0, 1) for name, value in (statistics or {}).items()},
            [0] * 4,
        )
        for rows in (slice(None, length // 3), slice(length // 3, None))
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_at_end(
            SimpleNamespace(**kernel),
            [(range(4), partial(iter, chunks))],
            range(4),
            length,
            0,
            potential,
        )
    assert {warning.category for warning in caught} <= {ConvergenceWarning}
    return [str(warning.message) for warning in caught]


GOOD = {"x": torch.randn(4, 300, 2, generator=torch.Generator().manual_seed(0))}


def test_each_fault_has_its_own_warning(subtests: pytest.Subtests) -> None:
    x, flags = GOOD["x"][..., 0], torch.zeros(4, 300, dtype=torch.bool)
    few = flags.clone()
    few[1, :3] = True
    walk = x.cumsum(1) / 10.0
    cases: list[tuple[str, Any, Any, str]] = [
        ("divergences", GOOD, {"diverging": few}, r"^3 \(0.25%\) of the draws come after"),
        ("depth", GOOD, {"tree_depth": 3 * few}, r"^3 \(0.25%\) of the .* max_tree_depth=3,"),
        ("R-hat", {"x": x + torch.arange(4.0)[:, None]}, {}, r"R-hat is \S+ at 'x'"),
        ("size", {"x": x.repeat_interleave(10, 1)[:, :300]}, {}, r"few effective draws: \S+ at"),
        ("energy", GOOD, {"energy": walk}, r"BFMI is \S+ at 'chain \d'"),
    ]
    for name, samples, statistics, message in cases:
        with subtests.test(name):
            found = said(samples, statistics, max_tree_depth=3)
            assert any(re.search(message, line) for line in found), found
            assert len(found) == 1 or name in ("R-hat", "size")
    with subtests.test("nothing"):
        quiet = {"diverging": flags, "tree_depth": 0 * few, "energy": x}
        assert said(GOOD, quiet, max_tree_depth=3) == []
    with subtests.test("funnels"):
        names = {f"x{n}": ["tau"] for n in range(5)}
        potential = SimpleNamespace(funnels=lambda: names)
        *_, line = said(GOOD, {"diverging": few}, potential)
        assert "of 'x0' on 'tau'" in line and "2 more" in line and "'x2': LocScaleReparam" in line
        assert said(GOOD, {"diverging": flags}, potential) == []
    with subtests.test("few draws"):
        assert said({"x": 9.0 * torch.arange(4.0)[:, None] + x[:, :30]}) == []


@pytest.mark.parametrize("kernel", [ours.MEADS, ours.MCLMC])
def test_steps_of_one_gradient_are_warmed_up_and_thinned(kernel: Any) -> None:
    mcmc = MCMC(kernel(two_sites), 20)
    assert (mcmc.warmup_steps, mcmc.thinning) == (1000, 10)
    assert MCMC(kernel(two_sites), 2000).warmup_steps == 2000
    mcmc = MCMC(kernel(two_sites), 20, 30, thinning=1)
    assert (mcmc.warmup_steps, mcmc.thinning) == (30, 1)
    assert StreamingMCMC(kernel(two_sites), 20).thinning == 10
    assert MCMC(ours.NUTS(two_sites), 20).thinning == 1


def test_many_short_chains_are_judged_by_what_lasts() -> None:
    options: dict[str, Any] = {"num_chains": 64, "num_samples": 20}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        run(ours.MEADS(two_sites), **options)

    def two_modes() -> None:
        sides = dist.Normal(torch.tensor([-8.0, 8.0]), 1.0)
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), sides))

    with pytest.warns(ConvergenceWarning, match="R-hat is .* at 'x'"):
        run(ours.MEADS(two_modes), **options)


def test_elements_that_do_not_change_are_no_false_alarm() -> None:
    """As the diagonal of a matrix of correlations, which is one but for rounding."""
    factor = dist.LKJCholesky(3, 1.0).sample((4, 100))
    same = {
        "x": GOOD["x"],
        "ones": torch.ones(4, 300),
        "corr": (factor @ factor.mT).repeat(1, 3, 1, 1),
    }
    assert is_constant(same["corr"]).equal(torch.eye(3, dtype=torch.bool))
    assert not any("ones" in line for line in said(same))
    diagonal = {"x": same["corr"].diagonal(dim1=-2, dim2=-1)}
    assert said(diagonal) == []
    stuck = {"x": torch.arange(4.0)[:, None].expand(4, 300)}
    assert any("do not agree" in line for line in said(stuck))


def test_of_many_elements_the_worst_is_found() -> None:
    x = torch.randn(4, 100, 30, 40)
    x[0, :, 17, 23] += 4.0
    (line,) = (each for each in said({"x": x}) if "do not agree" in each)
    found = re.search(r"R-hat is (\S+) at 'x'.* look at what they predict", line)
    assert found and float(found[1]) == pytest.approx(
        float(rank_diagnostics(x[:, :, 17, 23]).r_hat), rel=0.005
    )


def test_numbers_of_clusters_are_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    labels = torch.zeros(4, 100, 6, dtype=torch.int64)
    labels[..., 0] = torch.randint(2, (4, 100))
    labels[0, ..., 1] = 5
    assert num_clusters(labels[0]).tolist() == [len(row.unique()) for row in labels[0]]
    found = said({"labels": labels}, partitions=("labels",))
    assert any("'clusters of labels'" in line and "do not agree" in line for line in found)
    kernel = MarginalGibbs(
        DirichletProcess(1.0), KnownVarianceGaussianCluster(torch.zeros(1), 3.0, 0.5)
    )
    mcmc = MCMC(kernel, 10, num_chains=2, seed=0, progress=False).run(torch.randn(6, 1))
    mcmc.summary()
    assert "clusters of assignment" in capsys.readouterr().out
    assert "clusters of assignment" in mcmc.diagnostics()


# Of runs ----------------------------------------------------------------------------------------


def half_line() -> None:
    """A support that no distribution tells of."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("positive", torch.where(x > 0.0, 0.0, -torch.inf))


def funnel() -> None:
    scale = pyro.sample("scale", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), (0.5 * scale).exp()).to_event(1))


def schools() -> None:
    y, errors = torch.tensor(EFFECTS), torch.tensor(ERRORS)
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        effect = pyro.sample("effect", dist.Normal(loc, scale))
        pyro.sample("y", dist.Normal(effect, errors), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (half_line, ["diverged"]),
        (schools, ["diverged", "config={'effect': LocScaleReparam(0.0)}"]),
        (funnel, ["do not agree", "few effective", "BFMI", "that of 'x' on 'scale'"]),
        (two_sites, []),
    ],
)
def test_the_shortest_call_says_which_posteriors_are_hard(model: Any, words: list[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        MCMC(ours.NUTS(model), 300, 200, num_chains=4, seed=0, progress=False).run()
    found = [str(w.message) for w in caught if w.category is ConvergenceWarning]
    assert all(any(word in line for line in found) for word in words) and bool(words) == bool(found)


SMALL = {"step_size": 0.5, "adapt_step_size": False, "max_tree_depth": 2}


@pytest.mark.parametrize(
    "kernel",
    [
        partial(ours.NUTS, half_line, **SMALL),
        lambda: ours.Gibbs([(ours.NUTS(half_line, **SMALL), ["x"])]),
        partial(NUTS, half_line, **SMALL),
    ],
    ids=["NUTS", "Gibbs", "Pyro's NUTS"],
)
def test_divergences_are_reported(kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """In diagnostics, tables and statistics of both drivers."""
    with pytest.warns(ConvergenceWarning, match="diverged"):
        mcmc = run(kernel(), 10, num_chains=1)
    diverging = mcmc.sample_statistics()["diverging"][0].nonzero().flatten().tolist()
    assert diverging and mcmc.diagnostics()["divergences"] == {"chain 0": diverging}
    assert (mcmc.get_samples()["x"] > 0.0).all()
    mcmc.summary()
    assert f"Number of divergences: {len(diverging)}\n" in capsys.readouterr().out
    pyro.set_rng_seed(1)
    theirs = PyroMCMC(kernel(), 20, 3, disable_progbar=True)
    theirs.run()
    found = theirs.diagnostics()["divergences"]["chain 0"]
    assert found == sorted(found) and 0 < len(found) <= 20 and set(found) <= set(range(20))
    theirs.summary()
    assert f"Number of divergences: {len(found)}\n" in capsys.readouterr().out


def test_chains_of_pyros_kernels_are_looked_at_too() -> None:
    """One starts 9 standard deviations away and takes tiny steps."""
    kernel = NUTS(two_sites, step_size=1e-3, adapt_step_size=False, max_tree_depth=1)
    with pytest.warns(ConvergenceWarning, match="the chains do not agree"):
        run(kernel, 40, initial_params=FAR)


def test_what_is_quiet(subtests: pytest.Subtests) -> None:
    still = SGLD(two_sites, step_size=1e-3)
    for name, kernel, options in (
        ("good", SGLD(two_sites, step_size=0.1), {"thinning": 20, "num_samples": 250}),
        ("few draws", still, {"num_samples": 30, "initial_params": FAR}),
        ("optimization", still.replace(temperature=0.0), {"initial_params": FAR}),
    ):
        with subtests.test(name), warnings.catch_warnings():
            warnings.simplefilter("error")
            run(kernel, **options)


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
        assert float(r_hats(halves["x"]).max()) == pytest.approx(float(expected))


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
    assert size[1] == pytest.approx(float(stats.effective_sample_size(draws)[1]), rel=0.1)


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
