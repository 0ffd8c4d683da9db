"""Nonparametric learning against closed forms: means, least squares, the sandwich, coverage."""

import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import BatchLBFGS, BatchOptimizer, ExecutorError, PosteriorBootstrap
from pyro_ext.inference.martingale import BootstrapWeights, DirichletWeights, EmpiricalBase
from tests.killing import Killed, first_process, killed_after_draws, stopping

pytestmark = pytest.mark.usefixtures("float64")

Y = (1.0, 2.0, 4.0, 8.0)


def squares(params: dict[str, Tensor], y: Tensor) -> Tensor:
    return (y - params["mean"]).square()


def normal(y: Tensor, size: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 100.0))
    with pyro.plate("data", len(y), subsample_size=size) as index:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])


def regression(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(x.shape[-1]), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)


@pytest.mark.parametrize("concentration", [0.0, 5.0])
def test_draws_have_deterministic_sites(concentration):
    """As those of MCMC have, over the observations and not the atoms; ArviZ gets them once."""

    def model(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        pyro.deterministic("twice", 2.0 * slope)
        with pyro.plate("data", len(x)):
            line = pyro.deterministic("line", slope * x)
            pyro.sample("y", dist.Normal(line, 1.0), obs=y)

    x = torch.linspace(-1.0, 1.0, 20)
    weights = BootstrapWeights(concentration, lambda m: (torch.rand(m), torch.rand(m)))
    bootstrap = PosteriorBootstrap(model, 30, weights, seed=0, progress=False)
    bootstrap.run(x, 3.0 * x + x.cos())
    draws = bootstrap.get_samples()
    torch.testing.assert_close(draws["twice"], 2.0 * draws["slope"])
    torch.testing.assert_close(draws["line"], draws["slope"][:, None] * x)
    assert to_arviz(bootstrap).posterior["line"].shape == (1, 30, 20)


def of_squares(num_samples: int, *weights: Any, **options: Any) -> PosteriorBootstrap:
    start = {"mean": torch.tensor(0.0)}
    options = {"seed": 0, "progress": False, **options}
    return PosteriorBootstrap(
        None,
        num_samples,
        BootstrapWeights(*weights),
        loss_fn=squares,
        initial_params=start,
        **options,
    )


def heteroscedastic(num_points: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(num_points, generator=generator) * 3.0
    noise = torch.randn(num_points, generator=generator) * (0.2 + x.square())
    return torch.stack([torch.ones_like(x), x], -1), 1.0 + 2.0 * x + noise


# Exact answers -----------------------------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize("model", [None, normal])
def test_bayesian_bootstrap_of_a_mean(model: Any) -> None:
    """Mean 3.75 and variance 1.4375 within 4.5 standard errors: false-alarm rate 2e-5."""
    y = torch.tensor(Y)
    make = partial(of_squares, 8000) if model is None else None
    posterior = make() if make else PosteriorBootstrap(model, 8000, seed=0, progress=False)
    draws = posterior.run(y).get_samples()["mean"]
    assert float(draws.mean()) == pytest.approx(3.75, abs=4.5 * (1.4375 / 8000) ** 0.5)
    error = 4.5 * float((draws - draws.mean()).square().std()) / 8000**0.5
    assert float(draws.var()) == pytest.approx(1.4375, abs=error)


def test_draws_are_weighted_means() -> None:
    y = torch.tensor(Y)
    draws = of_squares(50).run(y).get_samples()["mean"]
    weights = DirichletWeights(4).draw(range(50), seed=0)
    torch.testing.assert_close(draws, weights @ y, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(("truncation", "variance"), [(200, 1.3233333), (2, 1.5119048)])
def test_base_measure_of_a_mean(truncation: int, variance: float) -> None:
    """Base N(0, 4), alpha 2: the mean is 2.5, the variance known; false-alarm rate 2e-5 each.

    With two atoms the draws would have another mean, by far, if they shared them.
    """
    posterior = of_squares(8000, 2.0, dist.Normal(0.0, 2.0), truncation)
    draws = posterior.run(torch.tensor(Y)).get_samples()["mean"]
    assert float(draws.mean()) == pytest.approx(2.5, abs=4.5 * (variance / 8000) ** 0.5)
    error = 4.5 * float((draws - draws.mean()).square().std()) / 8000**0.5
    assert float(draws.var()) == pytest.approx(variance, abs=error)


def test_atoms_that_all_draws_share() -> None:
    y, atoms = torch.tensor(Y), torch.tensor([10.0, 20.0])
    posterior = of_squares(20, 3.0, EmpiricalBase(atoms)).run(y)
    weights = DirichletWeights(4, 2, 3.0).draw(range(20), seed=0)
    expected = weights @ torch.cat([y, atoms])
    torch.testing.assert_close(posterior.get_samples()["mean"], expected, atol=1e-6, rtol=0)


def test_least_squares() -> None:
    x, y = heteroscedastic(60, seed=0)
    posterior = PosteriorBootstrap(regression, 30, seed=5, progress=False).run(x, y)
    weights = DirichletWeights(60).draw(range(30), seed=5)
    expected = torch.stack(
        [torch.linalg.solve((x.mT * row) @ x, (x.mT * row) @ y) for row in weights]
    )
    torch.testing.assert_close(posterior.get_samples()["slope"], expected, atol=1e-4, rtol=0)
    assert bool(posterior.diagnostics()["converged"].all())


@pytest.mark.statistical
def test_covariance_is_the_sandwich() -> None:
    """Within 15 % for 2,000 observations (Monte-Carlo error 3 %, order 1/n 1 %), far from the
    model's own covariance."""
    x, y = heteroscedastic(2000, seed=0)
    draws = PosteriorBootstrap(regression, 2000, seed=0, progress=False).run(x, y).get_samples()
    bread = torch.linalg.inv(x.mT @ x)
    residual = y - x @ (bread @ x.mT @ y)
    sandwich = bread @ (x.mT * residual.square()) @ x @ bread
    model_based = bread * residual.square().mean()
    found = draws["slope"].mT.cov()
    torch.testing.assert_close(found, sandwich, rtol=0.15, atol=0)
    assert float(found[1, 1] / model_based[1, 1]) > 1.5


def test_the_prior_counts_as_one_observation() -> None:
    """The weighted likelihood, n times, plus the log prior has its mode at a weighted mean."""

    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(1.0, 0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor(Y)
    posterior = PosteriorBootstrap(model, 20, include_prior=True, seed=0, progress=False).run(y)
    weights = DirichletWeights(4).draw(range(20), seed=0)
    expected = (4 * (weights @ y) + 4.0 * 1.0) / (4 + 4.0)
    torch.testing.assert_close(posterior.get_samples()["mean"], expected, atol=1e-5, rtol=0)


def test_a_regularizer_counts() -> None:
    posterior = of_squares(20, regularizer=lambda params: 0.5 * params["mean"].square())
    weights = DirichletWeights(4).draw(range(20), seed=0)
    expected = (weights @ torch.tensor(Y)) / 1.5
    found = posterior.run(torch.tensor(Y)).get_samples()["mean"]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_blocks() -> None:
    y = torch.arange(12.0)
    found = of_squares(10, 0.0, None, 100, 3).run(y).get_samples()["mean"]
    weights = DirichletWeights(12, num_blocks=3).draw(range(10), seed=0)
    torch.testing.assert_close(found, weights @ y, atol=1e-6, rtol=0)


# Ways to fit -------------------------------------------------------------------------------------


def test_restarts_find_the_lower_minimum() -> None:
    """A mixture's loss has two minima; with one start the draws are stuck at that of the start."""

    def losses(params: dict[str, Tensor], y: Tensor) -> Tensor:
        mean = params["mean"]
        near, far = (y - mean).square(), (y - 3.0 - mean).square()
        return torch.minimum(near, far + 1.0) + 0.05 * (mean + 4.0).abs().clamp(max=20.0)

    def strategy() -> dict[str, Tensor]:
        return {"mean": 6.0 * torch.randn(())}

    y = torch.randn(20) * 0.1
    start = {"mean": torch.tensor(-3.0)}
    make = partial(PosteriorBootstrap, None, 30, loss_fn=losses, seed=0, progress=False)
    stuck = make(initial_params=start).run(y)
    free = make(initial_params=start, num_restarts=12, init_strategy=strategy).run(y)
    assert float(stuck.get_samples()["mean"].max()) < -2.0
    assert float(free.get_samples()["mean"].min()) > -1.0
    assert bool((free.diagnostics()["loss"] < stuck.diagnostics()["loss"]).all())


def test_minibatches_come_close() -> None:
    y = torch.linspace(-1.0, 3.0, 40)
    search = BatchOptimizer(partial(torch.optim.SGD, lr=0.02), 800)
    posterior = PosteriorBootstrap(normal, 20, optimizer=search, seed=0, progress=False)
    found = posterior.run(y, 10).get_samples()["mean"]
    exact = DirichletWeights(40).draw(range(20), seed=0) @ y
    assert float((found - exact).abs().max()) < 0.1
    assert float((found - exact).abs().max()) < 0.6 * float((exact - y.mean()).abs().max())


@pytest.mark.parametrize("options", [{}, {"num_restarts": 2}])
def test_draws_do_not_depend_on_the_batches(options: Any) -> None:
    x, y = heteroscedastic(40, seed=0)
    make = partial(PosteriorBootstrap, regression, 9, seed=1, progress=False, **options)
    whole = make().run(x, y).get_samples()["slope"]
    for batch_size in (1, 4):
        parts = make(batch_size=batch_size).run(x, y).get_samples()["slope"]
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    again = make().run(x, y).get_samples()["slope"]
    assert torch.equal(again, whole)
    assert not torch.equal(make(seed=2).run(x, y).get_samples()["slope"], whole)


def test_a_second_run_sees_changed_data() -> None:
    """Its graphs are those of the run before, unless the data have changed in place."""
    x, y = heteroscedastic(30, seed=0)
    posterior = PosteriorBootstrap(regression, 5, seed=0, progress=False)
    first = posterior.run(x, y).get_samples()["slope"]
    assert torch.equal(posterior.run(x, y).get_samples()["slope"], first)
    y += 10.0
    fresh = PosteriorBootstrap(regression, 5, seed=0, progress=False).run(x, y).get_samples()
    torch.testing.assert_close(
        posterior.run(x, y).get_samples()["slope"], fresh["slope"], atol=1e-6, rtol=0
    )


# What a run leaves behind ------------------------------------------------------------------------


def test_arviz_and_predictive() -> None:
    x, y = heteroscedastic(30, seed=0)
    posterior = PosteriorBootstrap(regression, 12, seed=0, progress=False).run(x, y)
    data = to_arviz(posterior)
    assert data["posterior"]["slope"].shape == (1, 12, 2)
    assert data["log_likelihood"]["y"].shape == (1, 12, 30)
    draws = Predictive(regression, posterior.get_samples(), return_sites=["y"])(x, None)
    assert draws["y"].shape == (12, 30)


def test_diagnostics_and_summary(capsys: Any) -> None:
    posterior = of_squares(12).run(torch.tensor(Y))
    diagnostics = posterior.diagnostics()
    assert set(diagnostics) == {"loss", "gradient_norm", "converged", "num_steps", "left_out"}
    assert diagnostics["loss"].shape == (12,) and diagnostics["left_out"] == []
    posterior.summary()
    assert "mean" in capsys.readouterr().out


def test_fits_that_do_not_converge_are_told() -> None:
    x, y = heteroscedastic(30, seed=0)
    posterior = PosteriorBootstrap(
        regression, 5, optimizer=BatchLBFGS(max_steps=1, tolerance=1e-12), seed=0, progress=False
    )
    with pytest.warns(RuntimeWarning, match="5 of 5 fits have not converged"):
        posterior.run(x, y)


def test_draws_that_are_not_finite_are_left_out() -> None:
    """The loss has no value for draws whose first weight is large."""

    def losses(params: dict[str, Tensor], y: Tensor) -> Tensor:
        return squares(params, y) + torch.where(params["mean"] < 3.0, torch.nan, 0.0)

    def strategy() -> dict[str, Tensor]:
        return {"mean": torch.randn(()) + 3.5}

    posterior = PosteriorBootstrap(
        None, 20, loss_fn=losses, initial_params={"mean": torch.tensor(5.0)}, num_restarts=1,
        init_strategy=strategy, seed=0, progress=False,
    )  # fmt: skip
    with pytest.warns(RuntimeWarning, match="of 20 draws, which are left out"):
        posterior.run(torch.tensor(Y))
    left_out = posterior.diagnostics()["left_out"]
    assert 0 < len(left_out) < 20
    assert posterior.get_samples()["mean"].shape == (20 - len(left_out),)
    assert bool(posterior.get_samples()["mean"].isfinite().all())


def test_interrupted_runs_keep_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = of_squares(10, batch_size=4)
    # After the fit with equal weights and two batches.
    minimize = stopping(posterior.optimizer.minimize, 4)
    monkeypatch.setattr(posterior.optimizer, "minimize", minimize)
    posterior.run(torch.tensor(Y))
    assert posterior.interrupted
    whole = of_squares(10).run(torch.tensor(Y)).get_samples()["mean"]
    torch.testing.assert_close(posterior.get_samples()["mean"], whole[:8], atol=1e-6, rtol=0)


def test_a_checkpoint_goes_on(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, y = tmp_path / "run", torch.tensor(Y)
    first = of_squares(10, batch_size=4, checkpoint=folder)
    minimize = stopping(first.optimizer.minimize, 3, Killed)
    monkeypatch.setattr(first.optimizer, "minimize", minimize)
    with pytest.raises(Killed):
        first.run(y)
    assert len(list(folder.glob("draws-*"))) == 1
    kept = (folder / "draws-00000000-00000004.safetensors").read_bytes()
    second = of_squares(10, batch_size=4, checkpoint=folder, seed=None).run(y)
    assert (folder / "draws-00000000-00000004.safetensors").read_bytes() == kept
    whole = of_squares(10, batch_size=4).run(y).get_samples()["mean"]
    assert torch.equal(second.get_samples()["mean"], whole)
    with pytest.raises(CheckpointError, match="data: args.*concentration|seed is 0 there and 1"):
        of_squares(10, batch_size=4, checkpoint=folder, seed=1).run(y)
    with pytest.raises(CheckpointError, match="is of another run"):
        of_squares(10, batch_size=4, checkpoint=folder).run(y + 1.0)


def shifted(target: float) -> Any:
    return lambda params, y: (params["mean"] - y - target).square()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"loss_fn": shifted(0.0)}, {"loss_fn": shifted(5.0)}),
        ({}, {"regularizer": lambda params: params["mean"] ** 2}),
        (
            {"weights": BootstrapWeights(9.0, dist.Normal(0.0, 1.0))},
            {"weights": BootstrapWeights(9.0, dist.Normal(50.0, 1.0))},
        ),
        (
            {"num_restarts": 1, "init_strategy": lambda: {"mean": torch.randn(())}},
            {"num_restarts": 1, "init_strategy": lambda: {"mean": 9.0 + torch.randn(())}},
        ),
    ],
)
def test_a_checkpoint_is_of_one_loss(tmp_path: Any, before: Any, after: Any) -> None:
    """What has no name, a closure or a distribution, is told apart by the loss of a draw."""

    def run(options: Any) -> PosteriorBootstrap:
        options = {"loss_fn": squares, **options}
        return PosteriorBootstrap(
            num_samples=4,
            initial_params={"mean": torch.tensor(0.0)},
            checkpoint=tmp_path / "run",
            seed=0,
            progress=False,
            **options,
        ).run(torch.tensor(Y))

    run(before)
    run(before)
    with pytest.raises(CheckpointError, match="is of another run"):
        run(after)


def test_data_in_a_finer_type_than_the_parameters() -> None:
    """As from NumPy: rounding of the parameters hides what the finer loss would still see."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    y = torch.randn(50, dtype=torch.float64)

    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, scale), obs=y)

    posterior = PosteriorBootstrap(model, 200, seed=0, progress=False).run(y)
    fits = posterior.diagnostics()
    assert bool(fits["converged"].all()) and int(fits["num_steps"].max()) < 30


# On workers --------------------------------------------------------------------------------------


class Lossy(ThreadPoolExecutor):
    """Runs tasks in a thread, and loses the results of those with the given numbers."""

    def __init__(self, lost: Callable[[int], bool] = lambda number: False) -> None:
        super().__init__(1)
        self.lost = lost
        self.num_submitted = 0

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        number, self.num_submitted = self.num_submitted, self.num_submitted + 1

        def run() -> Any:
            result = function(*args, **kwargs)
            if self.lost(number):
                raise ConnectionError("the worker has gone")
            return result

        return super().submit(run)


def assert_same(one: PosteriorBootstrap, other: PosteriorBootstrap) -> None:
    fits, others = one.diagnostics(), other.diagnostics()
    for name, value in {**one.get_samples(), **fits}.items():
        found = {**other.get_samples(), **others}[name]
        assert torch.equal(value, found) if isinstance(value, Tensor) else value == found, name


@pytest.mark.parametrize("options", [{}, {"num_restarts": 2}])
def test_draws_do_not_depend_on_the_executor(options: Any) -> None:
    x, y = heteroscedastic(40, seed=0)
    make = partial(PosteriorBootstrap, regression, 10, seed=1, progress=False, batch_size=4)
    here = make(**options).run(x, y)
    with Lossy(lambda number: number in (1, 3)) as executor:
        there = make(executor=executor, **options).run(x, y)
        assert executor.num_submitted >= 5
    assert_same(here, there)


def test_what_an_executor_did_before_it_failed_is_kept(tmp_path: Any) -> None:
    """Some batches are there, and the checkpoint goes on with the others."""
    y, options = torch.tensor(Y), {"batch_size": 4, "checkpoint": tmp_path / "run"}
    with Lossy(lambda number: number > 7) as executor:
        broken = of_squares(20, executor=executor, **options)
        with pytest.raises(ExecutorError, match="executor=.*draws made before are kept"):
            broken.run(y)
    kept = broken.get_samples()["mean"]
    whole = of_squares(20, batch_size=4).run(y)
    assert 0 < len(kept) < 20 and bool(torch.isin(kept, whole.get_samples()["mean"]).all())
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("draws-*")}
    assert len(files) == len(kept) // 4
    assert_same(whole, of_squares(20, **options).run(y))
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())


@pytest.mark.slow
def test_a_process_that_dies(tmp_path: Any) -> None:
    """It takes the pool along; another pool goes on from the checkpoint."""
    x, y = heteroscedastic(200, seed=0)
    options = {"seed": 1, "progress": False, "batch_size": 10}
    make = partial(PosteriorBootstrap, regression, 400, **options)
    spawned = partial(ProcessPoolExecutor, 2, multiprocessing.get_context("spawn"))
    folder = tmp_path / "run"
    with spawned() as executor, killed_after_draws(folder, first_process(executor)):
        with pytest.raises(ExecutorError):
            make(executor=executor, checkpoint=folder).run(x, y)
    assert 0 < len(list(folder.glob("draws-*"))) < 40
    with spawned() as executor:
        there = make(executor=executor, checkpoint=folder).run(x, y)
    assert_same(make().run(x, y), there)


# Bad input ---------------------------------------------------------------------------------------


def test_bad_settings(subtests: pytest.Subtests) -> None:
    for make, error, message in [
        (lambda: PosteriorBootstrap(), ValueError, "either a model or a loss_fn"),
        (lambda: BootstrapWeights(1.0), ValueError, "needs a base_measure"),
        (lambda: BootstrapWeights(1.0, 4), TypeError, "base_measure must be a Pyro distribution"),
        (lambda: PosteriorBootstrap(normal, nonsense=3), TypeError, "those of LossOptions"),
        (lambda: PosteriorBootstrap(loss_fn=squares), ValueError, "initial_params must give"),
        (lambda: of_squares(5, include_prior=True), ValueError, "include_prior and plate need"),
        (lambda: of_squares(5, num_restarts=2), ValueError, "needs an init_strategy"),
        (
            lambda: PosteriorBootstrap(normal, subsample_size=3),
            ValueError,
            "subsample_size must be None without a loss_fn",
        ),
    ]:
        with subtests.test(message), pytest.raises(error, match=message):
            make()


def test_bad_runs(subtests: pytest.Subtests) -> None:
    for run, error, message in [
        (
            lambda y: PosteriorBootstrap(normal, 5, progress=False).run(y, 2),
            ValueError,
            "optimizer must take minibatches",
        ),
        (
            lambda y: of_squares(5, 1.0, dist.Normal(torch.zeros(3), 1.0)).run(y),
            ValueError,
            r"base_measure must give tensors of the shapes \[\(100,\)\]",
        ),
        (lambda y: of_squares(5).run(y, key=y), ValueError, "kwargs must be empty"),
        (
            lambda y: PosteriorBootstrap(
                lambda: normal(y), 5, BootstrapWeights(1.0, dist.Normal(0.0, 1.0)), progress=False
            ).run(),
            ValueError,
            "base_measure needs a model whose data are arguments",
        ),
        (lambda y: of_squares(5).get_samples(), RuntimeError, "call run"),
    ]:
        with subtests.test(message):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(error, match=message):
                    run(torch.tensor(Y))
