"""Simulation-based calibration: its ranks, how it runs, its result and plots."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

import hypothesis.strategies as st
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_ext.diagnostics import SBCResult, sbc
from pyro_ext.diagnostics._simulations import _rank
from pyro_ext.diagnostics._uniformity import ecdf_band, ecdf_difference, holm
from pyro_ext.diagnostics.plots import plot_sbc
from pyro_ext.inference import MCMC, SGLD

pyplot = pytest.importorskip("matplotlib.pyplot")


# Ranks --------------------------------------------------------------------------------------------


def normal(x: Tensor, size: int | None = None) -> None:
    """The posterior of each loc is Normal(x / 2, sqrt(1 / 2))."""
    with pyro.plate("replicates", len(x), subsample_size=size) as index:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])


def exact(model, x: Tensor, scale: float = 0.5**0.5, shift: float = 0.0) -> dict[str, Tensor]:
    x = poutine.trace(model).get_trace(x).nodes["x"]["value"]
    return {"loc": x / 2 + shift + scale * torch.randn(200, len(x))}


def from_prior(model, x: Tensor) -> dict[str, Tensor]:
    return {"loc": torch.randn(200, len(x))}


DATA = torch.zeros(5)


def run(inference=exact, num_simulations=100, *, model=normal, data=DATA, **options) -> SBCResult:
    return sbc(model, inference, num_simulations, data, progress=False, **{"seed": 0, **options})


@pytest.mark.slow
@pytest.mark.statistical
def test_exact_inference_is_calibrated():
    """At a level of 0.001, the false-alarm rate."""
    result = run()
    assert result.ranks["loc"].shape == (100, 5) and result.ranks["loc"].dtype == np.int64
    assert result.ranks["log_likelihood"].shape == (100,)
    assert result.ranks["loc"].min() == 0 and result.ranks["loc"].max() == 100
    assert result.is_calibrated(0.001) and result.is_calibrated(0.001, pool=["loc"])


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("options", "column", "sign"),
    [
        ({"scale": 0.5}, "spread", 1),
        ({"scale": 1.0}, "spread", -1),
        ({"shift": 0.3}, "mean_rank", -1),
        ({"shift": -0.3}, "mean_rank", 1),
    ],
)
def test_wrong_inference_is_not(options, column, sign):
    """Each error makes p-values below 1e-6 with 500 pooled ranks."""
    result = run(lambda model, x: exact(model, x, **options), log_likelihood=False)
    row = result.uniformity(pool=True).loc["loc"]
    assert row["p_value"] < 1e-6 and not result.is_calibrated(pool=True)
    assert sign * (row[column] - {"spread": 1.0, "mean_rank": 0.5}[column]) > 0.08


@pytest.mark.slow
@pytest.mark.statistical
def test_the_prior_is_caught_by_the_data_alone():
    """Ranks of the parameters are uniform (false-alarm rate 0.001), those of the likelihood not."""
    result = run(from_prior)
    assert result.is_calibrated(0.001, names=["loc"])
    assert result.uniformity(["log_likelihood"])["p_value"].iloc[0] < 1e-6


@pytest.mark.slow
@pytest.mark.statistical
def test_distances_see_what_single_sites_do_not():
    """Two locations with the right margins and a correlation of the wrong sign; of the right ones
    the ranks are uniform (false-alarm rate 0.001)."""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(loc.sum(), 0.3), obs=x)

    # Given x the half sum is normal about x / 2.09, and the half difference stays what it was.
    deviations = torch.tensor([(0.5 * 0.09 / 2.09) ** 0.5, 0.5**0.5])

    def inference(model, x: Tensor, turned: bool = False) -> dict[str, Tensor]:
        x = poutine.trace(model).get_trace(x).nodes["x"]["value"]
        half_sum, half_difference = (torch.randn(200, 2) * deviations).unbind(-1)
        if turned:
            half_sum, half_difference = half_difference, half_sum
        draws = torch.stack([half_sum + half_difference, half_sum - half_difference], -1)
        return {"loc": x / 2.09 + draws}

    options = {"data": DATA[0], "distance": True, "log_likelihood": False}
    assert run(inference, 150, model=model, **options).is_calibrated(0.001)
    wrong = run(lambda m, x: inference(m, x, True), 600, model=model, **options)
    assert wrong.uniformity(["loc"])["p_value"].min() > 1e-4
    assert wrong.uniformity(["distance"])["p_value"].iloc[0] < 1e-3


def test_coverage():
    """Of ranks that are each number once it is exact; of ones in the middle, all are covered."""
    whole = np.arange(101)
    result = SBCResult({"loc": np.stack([whole, 40 + whole // 5], 1)}, num_draws=100)
    table = result.coverage([0.5, 0.9])
    np.testing.assert_allclose(table.loc["loc[0]"], table.loc["expected"])
    assert (abs(table.loc["expected"] - [0.5, 0.9]) < 0.02).all()
    np.testing.assert_allclose(table.loc["loc[1]"], 1.0)
    assert list(result.coverage([0.01]).loc["expected"]) == [1 / 101]


def test_ties_are_broken_at_random():
    """All draws are equal to the truth, so the rank is any number."""

    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Uniform(0.0, 1.0)).round(), 1.0), obs=x)

    result = run(
        lambda model, x: {"z": torch.rand(20)},
        model=model,
        data=DATA[0],
        quantities={"constant": lambda values: torch.ones(2, dtype=torch.int64)},
        num_draws=20,
    )
    assert result.ranks["constant"].shape == (100, 2)
    assert set(result.ranks["constant"].ravel().tolist()) == set(range(21))


class Fixed:
    """A generator that gives the smallest or the largest number it may."""

    def __init__(self, is_high: bool) -> None:
        self.is_high = is_high

    def integers(self, low, high, endpoint):
        assert low == 0 and endpoint
        return high if self.is_high else 0 * high


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_ranks_of_exchangeable_values_are_uniform(values):
    """Whichever value is the true one: with any ties, each rank has the same probability."""
    rows = np.array(values)
    probabilities = np.zeros(len(rows))
    for number in range(len(rows)):
        rolled = np.roll(rows, -number)
        low, high = (int(_rank("x", rolled, Fixed(is_high))) for is_high in (False, True))
        probabilities[low : high + 1] += 1.0 / (high - low + 1)
    np.testing.assert_allclose(probabilities, 1.0)


def test_quantities_see_latents_and_simulated_data():
    seen = []

    def residual(values: dict[str, Tensor]) -> Tensor:
        seen.append(values)
        return (values["x"] - values["loc"]).square().sum()

    result = run(num_simulations=3, quantities={"residual": residual}, num_draws=50)
    assert set(seen[0]) == {"loc", "x"} and seen[0]["x"].shape == (5,)
    assert len(seen) == 3 * 51 and seen[0]["x"].abs().sum() > 0.0
    # The log likelihood falls as the residual grows, so one rank mirrors the other.
    np.testing.assert_array_equal(result.ranks["residual"], 50 - result.ranks["log_likelihood"])


def test_deterministic_sites_are_seen_by_quantities():
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        twice = pyro.deterministic("twice", 2.0 * loc)
        pyro.sample("x", dist.Normal(twice, 1.0), obs=x)

    result = run(
        lambda model, x: {"loc": torch.randn(100)},
        5,
        model=model,
        data=DATA[0],
        quantities={"twice": lambda values: values["twice"]},
        log_likelihood=False,
    )
    np.testing.assert_array_equal(result.ranks["twice"], result.ranks["loc"])
    assert set(result.ranks) == {"loc", "twice"}


def test_counts_stay_counts():
    types = []

    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def inference(model, x: Tensor) -> dict[str, Tensor]:
        types.append(poutine.trace(model).get_trace(x).nodes["x"]["value"].dtype)
        return {"rate": torch.rand(100)}

    run(inference, 1, model=model, data=DATA[:4].long())
    assert types == [torch.int64]


def test_draws_are_taken_at_equal_distances():
    def inference(model, x: Tensor) -> dict[str, Tensor]:
        """The first half of the draws lies below any truth, the second above."""
        low, high = torch.full((150, 5), -99.0), torch.full((150, 5), 99.0)
        return {"loc": torch.cat([low, high])}

    result = run(inference, 4, num_draws=10, log_likelihood=False)
    assert (result.ranks["loc"] == 5).all()


def test_every_kind_of_posterior():
    def sampler(model, x: Tensor, size: int) -> MCMC:
        kernel = SGLD(model, step_size=0.05)
        return MCMC(kernel, 30, warmup_steps=20, num_chains=2, progress=False).run(x, size)

    def by_chain(model, x: Tensor, size: int) -> dict[str, Tensor]:
        return sampler(model, x, size).get_samples(group_by_chain=True)

    def guide(model, x: Tensor, size: int) -> AutoNormal:
        guide = AutoNormal(model)
        SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(x, len(x))
        return guide

    ranks = []
    for inference in (sampler, by_chain, guide):
        size = 5 if inference is guide else 2
        result = sbc(normal, inference, 2, DATA, size, num_draws=40, seed=1, progress=False)
        assert result.ranks["loc"].shape == (2, 5)
        ranks.append(result.ranks["loc"])
    np.testing.assert_array_equal(ranks[0], ranks[1])


# How it runs --------------------------------------------------------------------------------------


def spawned() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


@contextmanager
def dask_executor() -> Iterator[Executor]:
    """Of one worker that runs two threads, each of which has the global state of the other."""
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client.get_executor()


@pytest.mark.slow
@pytest.mark.parametrize("executor", [spawned, dask_executor])
def test_results_do_not_depend_on_the_executor(executor):
    pyro.param("unused", torch.ones(()))
    options = {"num_simulations": 4, "quantities": {"square": lambda v: v["loc"] ** 2}}
    here = run(lambda model, x: exact(model, x), **options)
    with executor() as workers:
        there = run(lambda model, x: exact(model, x), executor=workers, **options)
    for name, ranks in here.ranks.items():
        np.testing.assert_array_equal(ranks, there.ranks[name])
    assert list(pyro.get_param_store()) == ["unused"]


class Inline(Executor):
    """Runs what is submitted at once; the given number interrupts."""

    def __init__(self, interrupt_at: int = -1) -> None:
        self.interrupt_at = interrupt_at
        self.num_submitted = 0

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        number, self.num_submitted = self.num_submitted, self.num_submitted + 1
        if number == self.interrupt_at:
            future.set_exception(KeyboardInterrupt())
        else:
            future.set_result(function(*args, **kwargs))
        return future


def test_simulations_depend_on_seed_and_number_alone():
    few, many = run(num_simulations=2), run(num_simulations=5)
    sent = run(num_simulations=5, executor=Inline())
    for name in few.ranks:
        np.testing.assert_array_equal(few.ranks[name], many.ranks[name][:2])
        np.testing.assert_array_equal(sent.ranks[name], many.ranks[name])
    for seed in (1, 2**40):
        other = run(num_simulations=5, seed=seed)
        assert (other.ranks["loc"] != many.ranks["loc"]).any()


def test_draws_of_a_guide_do_not_share_the_noise_that_trained_it():
    noise = []

    def guide(x: Tensor) -> None:
        with pyro.plate("replicates", 5):
            noise.append(pyro.sample("loc", dist.Normal(0.0, 1.0)))

    def inference(model, x: Tensor):
        noise.append(torch.randn(5))
        return guide

    run(inference, 1)
    assert len(noise) == 101 and not any(torch.equal(noise[0], other) for other in noise[1:])


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_global_state_is_left_alone(two_threads):
    loc = pyro.param("loc", torch.tensor(2.0))

    def inference(model, x: Tensor) -> dict[str, Tensor]:
        assert pyro.param("loc").item() == 2.0 and torch.get_num_threads() == 1
        pyro.get_param_store()["loc"].data.fill_(9.0)
        pyro.param("own", torch.ones(()))
        return exact(model, x)

    before = torch.random.get_rng_state()
    run(inference, 2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert list(pyro.get_param_store()) == ["loc"] and loc.item() == 2.0
    assert torch.get_num_threads() == 2


def failing(model, x: Tensor) -> dict[str, Tensor]:
    draws = exact(model, x)
    if draws["loc"][:, 0].mean() > 0.2:
        raise ArithmeticError("too large")
    return draws


@pytest.mark.parametrize("executor", [None, Inline()])
def test_failures_are_kept_and_told(executor):
    with pytest.warns(
        RuntimeWarning, match=r"of 20 simulations failed.*ArithmeticError: too large"
    ):
        result = run(failing, 20, executor=executor)
    assert 0 < len(result.failures) < 20
    assert all("ArithmeticError: too large" in text for text in result.failures.values())
    assert sorted([*result.simulations, *result.failures]) == list(range(20))
    assert len(result.ranks["loc"]) == len(result.simulations) == 20 - len(result.failures)


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ({"loc": torch.zeros(99, 5)}, "returned 99 draws, wanted at least num_draws = 100"),
        ({"loc": torch.full((100, 5), float("nan"))}, "'loc' has values that are not numbers"),
        ({"other": torch.zeros(100, 5)}, r"no draws of the latent sites \['loc'\]"),
        ({"loc": torch.zeros(100, 4)}, r"shape \(4,\)"),
        (None, "TypeError: posterior must be"),
    ],
)
def test_what_inference_must_give(draws, message):
    with pytest.raises(RuntimeError, match=rf"all 2 simulations failed(.|\n)*{message}"):
        run(lambda model, x: draws, 2)


def test_interrupts_keep_what_has_finished():
    class Interrupted(dict):
        interrupted = True

    calls = []

    def inference(model, x: Tensor) -> dict[str, Tensor]:
        calls.append(x)
        return exact(model, x) if len(calls) < 4 else Interrupted()

    result = run(inference, 10)
    assert result.interrupted and result.simulations.tolist() == [0, 1, 2]
    with pytest.raises(KeyboardInterrupt):
        run(inference, 10)
    run(exact, 6, executor=Inline())  # so that the process has the work, and asks for it no more
    kept = run(exact, 6, executor=Inline(interrupt_at=2))
    assert kept.interrupted and kept.simulations.tolist() == [0, 1, 3, 4, 5]


def test_wrong_arguments_are_named():
    for options, kind, message in (
        ({"quantities": {"a": 1}}, TypeError, r"quantities\['a'\] must be a function, got 1"),
        ({"quantities": {"loc": len}}, ValueError, r"quantities names \['loc'\], which are ranked"),
        ({"executor": ThreadPoolExecutor(1)}, ValueError, "executor must run in processes"),
    ):
        with pytest.raises(kind, match=message):
            run(**options)

    def improper(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(ValueError, match="'loc' cannot be drawn from its prior"):
        sbc(improper, exact, 2, torch.zeros(()))
    with pytest.raises(ValueError, match=r"got no observed site: .* sbc\(model, .*x, y\)"):
        sbc(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), exact, 2)


# The result ---------------------------------------------------------------------------------------


@pytest.fixture
def result() -> SBCResult:
    generator = np.random.default_rng(0)
    loc, scale = generator.integers(0, 51, (80, 2, 3)), generator.integers(0, 51, 80)
    wrong = generator.integers(0, 26, (80, 4))
    return SBCResult({"loc": loc, "scale": scale, "wrong": wrong}, 50)


def test_rows_are_scalars_unless_pooled(result):
    labels = list(result.uniformity().index)
    assert labels[:3] == ["loc[0, 0]", "loc[0, 1]", "loc[0, 2]"]
    assert labels[6] == "scale" and labels[-1] == "wrong[3]" and len(labels) == 11
    pooled = result.uniformity(pool=["wrong"])
    assert pooled.loc["wrong", "num_ranks"] == 320 and len(pooled) == 8
    assert list(result.uniformity(pool=True).index) == ["loc", "scale", "wrong"]
    np.testing.assert_array_equal(result.columns()["loc[1, 2]"], result.ranks["loc"][:, 1, 2])


def test_adjusted_p_values_are_holm(result):
    table = result.uniformity()
    np.testing.assert_allclose(table["adjusted_p_value"], holm(table["p_value"].to_numpy()))
    assert not result.is_calibrated() and result.is_calibrated(names=["loc", "scale"])


def test_summary_tells_what_is_missing(result, capsys):
    SBCResult(result.ranks, 50, failures={7: "error"}, interrupted=True).summary(["scale"])
    printed = capsys.readouterr().out
    for part in ("scale", "80 simulations", "interrupted", "1 simulations failed", "[7]"):
        assert part in printed
    assert "wrong" not in printed


def test_names_are_checked(result):
    with pytest.raises(ValueError, match=r"pool must be a list of names.*\['nothing'\]"):
        result.uniformity(pool=["nothing"])


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"loc": np.array([0, 51])}, r"ranks\['loc'\] must be integers from 0 to num_draws = 50"),
        ({"loc": np.array([-1, 3])}, r"ranks\['loc'\] must be integers.*got array\(\[-1,  3\]\)"),
        ({"loc": np.array([0.5, 1.0])}, r"ranks\['loc'\] must be integers"),
        (
            {"loc": np.zeros(3, int), "scale": np.zeros(2, int)},
            r"ranks must have the shape \(num_simulations, \*event\) each, got .*\(2,\)",
        ),
    ],
)
def test_ranks_are_checked(ranks, message):
    with pytest.raises(ValueError, match=message):
        SBCResult(ranks, 50)


# Plots --------------------------------------------------------------------------------------------


def test_ecdf_plot_shows_differences_and_band(result):
    axes = plot_sbc(result)
    titles = ["loc: 0 of 6 outside", "scale: 0 of 1 outside", "wrong: 4 of 4 outside"]
    assert [ax.get_title() for ax in axes] == titles
    lines = [line.get_ydata() for line in axes[2].lines[:4]]
    np.testing.assert_allclose(np.stack(lines, 1), ecdf_difference(result.ranks["wrong"], 50))
    corners = axes[0].collections[0].get_paths()[0].vertices
    low, high = ecdf_band(80, 50, 0.95)
    assert corners[:, 1].min() == pytest.approx(low.min())
    assert corners[:, 1].max() == pytest.approx(high.max())


def test_histogram_shows_densities(result):
    axes = plot_sbc(result, ["wrong", "scale"], kind="histogram")
    values, edges, _ = axes[0].patches[1].get_data()
    assert (values * np.diff(edges)).sum() == pytest.approx(1.0)
    assert values[edges[:-1] > 0.52].max() == 0.0
    assert [ax.get_title() for ax in axes] == ["wrong", "scale"]


def test_axes_that_are_given_are_used(result):
    _, (first, second) = pyplot.subplots(1, 2)
    assert plot_sbc(result, ["scale"], ax=second)[0] is second and not first.has_data()
    assert len(pyplot.get_fignums()) == 1
    assert plot_sbc(result, ["wrong"], pool=True)[0].get_title() == "wrong: 1 of 1 outside"
    pyplot.close("all")
    with pytest.raises(ValueError, match="ax must have 3 axes"):
        plot_sbc(result, ax=second)
