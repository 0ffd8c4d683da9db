"""The search for settings: its choices against exact posteriors, its score, and its manners."""

import itertools
import math
import re
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_value

from pyro_ext.diagnostics.stein import kernel_stein_discrepancy
from pyro_ext.inference import (
    MCMC,
    SGHMC,
    SGLD,
    SGNHT,
    CyclicalSchedule,
    MetaSGMCMC,
    PolynomialSchedule,
    tune,
)
from pyro_ext.inference.driver import tuning
from pyro_ext.inference.driver.pilot_scores import common_scale, discrepancy, scores
from pyro_ext.inference.vectorized import compiled_loop
from tests.killing import stopping

pytestmark = [
    # Searches of few steps find that these are few.
    pytest.mark.filterwarnings("ignore:draws of the best settings"),
    pytest.mark.filterwarnings("ignore:scores of"),
]

NUM = 100
STEPS = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]


def model(x, batch_size=10):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x), subsample_size=batch_size) as index:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])


def potential_fn(params):
    return 0.5 * params["x"].square().sum()


@pytest.fixture
def x():
    return 1.0 + torch.randn(NUM, generator=torch.Generator().manual_seed(0))


def pilot_of(kernel, x, start=None):
    """The pilot of a single candidate, with three chains."""
    search = tuning._Search(kernel, 3, 5, start, 0, (x,), {})
    search.add([{"step_size": 1e-3}])
    return search.pilots[0]


def short(kernel, *args, **options):
    """A search of few steps."""
    given = {"num_steps": 40, "num_chains": 3, "num_samples": 5, "seed": 0, "progress": False}
    return tune(kernel, *args, **given | options)


# What it finds ------------------------------------------------------------------------------------


def spread_and_shift(kernel, x, batch_size):
    """Of 1000 chains after 1208 steps, in exact standard deviations; 1 and 0 are right."""
    precision = NUM + 0.01
    start = {"loc": torch.full((1000,), -5.0)}
    # The warm-up ends within an epoch.
    mcmc = MCMC(kernel, 1, 1207, 1000, initial_params=start, seed=1, progress=False)
    draws = mcmc.run(x, batch_size=batch_size).get_samples()["loc"]
    shift = (draws.mean() - x.sum() / precision).abs()
    return float(draws.std() * precision**0.5), float(shift * precision**0.5)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("batch_size", [10, None])
@pytest.mark.parametrize(
    ("kernel", "grid", "allowed"),
    [
        (SGLD(model), {"step_size": STEPS}, 0.2),
        (SGHMC(model, step_size=0.004), {"friction": [0.25, 2.5, 25.0, 250.0]}, 0.1),
    ],
    ids=["step size", "friction"],
)
def test_settings_of_a_conjugate_posterior(kernel, grid, allowed, batch_size, x, float64):
    """The best arrives, from 60 standard deviations away, and has about the right spread.

    The extremes do not: ten times the usual step size, 1e-3, is too wide. None of 40 seeds failed,
    in any case: below 10 % of false alarms at 98 % confidence.
    """
    x = x.double()
    start = {"loc": torch.full((8,), -5.0)}
    options = {"batch_size": batch_size, "num_chains": 8, "num_samples": 25, "num_steps": 300}
    result = short(kernel, x, grid=grid, initial_params=start, **options)
    spread, shift = spread_and_shift(result.kernel, x, batch_size)
    assert abs(spread - 1) < allowed and shift < 0.2
    if "friction" in grid:
        for friction in (0.25, 250.0):
            assert spread_and_shift(kernel.replace(friction=friction), x, batch_size)[1] > 1
    else:
        assert spread_and_shift(kernel.replace(step_size=1e-2), x, batch_size)[0] > 1.35
        assert spread_and_shift(kernel.replace(step_size=1e-5), x, batch_size)[1] > 10


def test_the_default_grid_is_wide_and_holds_what_the_kernel_takes():
    kernel = SGHMC(potential_fn=potential_fn, step_size=0.05, friction=1.0)
    wanted = "0.5, is the largest that was tried, and SGHMC takes none .* larger: friction"
    with pytest.warns(UserWarning, match=wanted):
        result = short(kernel, initial_params={"x": torch.full((3, 2), 3.0)})
    tried = sorted(trial.settings["step_size"] for trial in result.trials)
    factors = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]  # thirty times 0.05 is too much friction
    assert tried == pytest.approx([0.05 * factor for factor in factors])
    assert result.kernel.friction == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("step_size", "is_up"), [(1e-7, True), (1.0, False)])
def test_the_default_grid_goes_on_while_the_best_is_at_its_end(step_size, is_up, x):
    """The right step is 10,000 times what the kernel has, or a thousandth of it."""
    result = short(SGLD(model, step_size=step_size), x, num_steps=100)
    sizes = sorted(trial.settings["step_size"] for trial in result.trials)
    assert len(sizes) > 9
    assert 1e-4 < result.settings["step_size"] < 2e-2
    assert sizes[0] < result.settings["step_size"] < sizes[-1]
    assert (sizes[-1] > 200 * step_size) == is_up


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("control_variate", ["map", None])
def test_few_draws_choose_no_step_that_is_too_wide(control_variate, float64):
    """Of logistic regression on 10,000 rows, in five dimensions, with eight draws for each score.

    The spread of draws by the chosen settings is that of the Laplace approximation to a fifth, or a
    warning says by how much it is off, to a third of it.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10_000, 5, generator=generator)
    y = (torch.rand(10_000, generator=generator) < torch.sigmoid(x.sum(-1))).to(x)

    def logistic(x, y):
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(5), 1.0).to_event(1))
        with pyro.plate("data", len(x), subsample_size=50) as index:
            pyro.sample("y", dist.Bernoulli(logits=x[index] @ weight), obs=y[index])

    kernel = SGHMC(logistic, step_size=0.01, control_variate=control_variate)
    kernel.setup(0, x, y)
    deviations = kernel.find_laplace("here").hessian.inverse().diagonal().sqrt()
    for seed in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sizes = {"num_chains": 4, "num_samples": 2, "num_steps": 300}
            result = short(kernel, x, y, seed=seed, **sizes)
            options = {"num_chains": 8, "thinning": 10, "seed": 1, "progress": False}
            run = MCMC(result.kernel, 100, 500, **options).run(x, y)
        spread = float((run.get_samples()["weight"].std(0) / deviations).mean())
        found = re.search(r"as if they were (\S+) times", str(caught[0].message) if caught else "")
        expected = 1.0 if found is None else float(found[1])
        assert spread == pytest.approx(expected, rel=0.2 if found is None else 0.35), seed


# How it judges ------------------------------------------------------------------------------------


def test_the_score_is_the_mean_over_pairs_of_different_draws(float64):
    points, gradients, scale = torch.randn(6, 3), torch.randn(6, 3), torch.tensor([0.5, 1.0, 2.0])

    def total(*numbers):
        chosen = list(numbers)
        mean = kernel_stein_discrepancy(points[chosen], gradients[chosen], scale=scale).square()
        return mean * len(chosen) ** 2

    pairs = itertools.combinations(range(6), 2)
    expected = [0.5 * (total(i, j) - total(i) - total(j)) for i, j in pairs]
    actual = discrepancy(points, gradients, scale)
    torch.testing.assert_close(actual, torch.stack(expected).mean())


@pytest.mark.statistical
@pytest.mark.parametrize("size", [1, 10, 100])
def test_the_right_spread_has_the_best_score(size, float64):
    """Draws of exact, of half and of double spread, in few dimensions and in many.

    Over 1000 seeds the exact one always came first: below 0.4 % of false alarms at 98 % confidence.
    With the terms of draws with themselves, half the spread would win in 100 dimensions.
    """
    draws = {spread: spread * torch.randn(200, size) for spread in (0.5, 1.0, 2.0)}
    judged = dict(zip(draws, scores([(points, -points) for points in draws.values()]), strict=True))
    assert min(judged, key=judged.__getitem__) == 1.0


def test_the_scale_is_that_of_the_posterior_however_draws_spread(float64):
    deviations = torch.tensor([1e-3, 1.0, 50.0])
    for spreads in ([0.01, 0.1, 3.0], [1.0, 1e4, 1e6], [1e-6]):
        runs = []
        for spread in spreads:
            points = 7.0 + spread * deviations * torch.randn(50, 3)
            runs.append((points, -(points - 7.0) / deviations**2))
        torch.testing.assert_close(common_scale(runs), deviations)


def test_bad_candidates_do_not_change_the_comparison_of_good_ones(float64):
    """However many stand still or spread too much, beside those that are compared."""

    def run(spread):
        points = spread * torch.randn(100, 2)
        return points, -points

    compared = [run(1.0), run(1.4)]
    expected = [score for score, _ in scores(compared)]
    nowhere = (torch.full((100, 2), math.nan), torch.full((100, 2), math.nan))
    point = (torch.ones(100, 2), -torch.ones(100, 2))
    for others in ([run(1e-4)] * 5, [run(1e3)] * 5, [nowhere] * 5, [point]):
        found = [score for score, _ in scores([*compared, *others])]
        assert found[:2] == pytest.approx(expected)
        assert min(found[2:]) > max(expected)
    assert scores([nowhere])[0][0] == math.inf
    assert math.isfinite(scores([point])[0][0])


def test_the_gradients_are_those_of_all_of_the_data_at_the_temperature(x, float64):
    x = x.double()
    kernel = SGLD(model, step_size=1e-3, temperature=0.5)
    pilot = pilot_of(kernel, x)
    points, gradients = pilot.draw(40, 5)
    assert points.shape == gradients.shape == (15, 1)
    exact = x.sum() - (NUM + 0.01) * points
    torch.testing.assert_close(gradients, exact / 0.5)


# How it goes about --------------------------------------------------------------------------------


def test_survivors_run_on_and_no_step_is_taken_twice(x, monkeypatch):
    taken = []
    record = SGLD.record

    def counting(kernel, chains, steps):
        after, draws = record(kernel, chains, steps)
        taken.append((kernel.step_size, chains.step, after.step))
        return after, draws

    monkeypatch.setattr(SGLD, "record", counting)
    result = short(SGLD(model), x, grid={"step_size": STEPS})
    assert [trial.num_steps for trial in result.trials] == [160, 160, 80, 40, 40]
    for trial in result.trials:
        own = [steps for size, *steps in taken if size == trial.settings["step_size"]]
        assert own == [[0, 40], [40, 80], [80, 160]][: len(own)]
        assert own[-1][1] == trial.num_steps
    assert result.trials[0].score <= result.trials[1].score


@pytest.mark.statistical
def test_temperatures_are_those_of_the_discretized_chain(float64):
    """Of a Gaussian under steps of full gradients, 1 / (1 - s / 2), within 5 standard errors.

    100 chains of four draws in two dimensions: the standard error of the mean square is 0.06.
    """
    kernel = SGLD(potential_fn=potential_fn)
    start = {"x": torch.randn(100, 2)}
    grid = {"step_size": [0.1, 1.0, 1.8]}
    options = {"num_chains": 100, "num_samples": 4, "num_steps": 80}
    with pytest.warns(UserWarning, match="the best step_size, 0.1, is the smallest"):
        result = short(kernel, grid=grid, initial_params=start, **options)
    for trial in result.trials:
        exact = 1.0 / (1.0 - 0.5 * trial.settings["step_size"])
        assert trial.temperature == pytest.approx(exact, rel=0.3)
    assert result.trials[-1].heat > 1.0 and result.trials[0].heat < 0.01


def test_noise_is_that_of_the_score(float64):
    """Standard errors by leaving out chains, against the spread of scores over 300 seeds."""
    pairs = []
    for _ in range(300):
        points = 1.5 * torch.randn(40, 2)
        pairs += scores([(points, -points)], num_chains=8)
    found = torch.tensor(pairs)
    assert 0.7 < float(found[:, 1].mean() / found[:, 0].std()) < 1.5


def test_settings_that_cannot_be_told_apart_are_named(x):
    grid = {"step_size": [1e-4, 1e-3]}
    kernel = SGLD(model, control_variate="map")
    with pytest.warns(UserWarning, match="scores of step_size from 0.0001 to 0.001 differ by less"):
        result = short(kernel, x, grid=grid)
    assert result.tied == result.trials
    others = short(SGLD(model), x, grid={"step_size": [1e-3, 1e-7]}).tied
    assert others[0].settings == {"step_size": 1e-3}


def test_the_best_of_bad_settings_is_told_to_be_one(x):
    """Minibatches of one row, with steps that noise alone makes more than twice too wide."""
    kernel = SGLD(model, init_strategy=init_to_value(values={"loc": x.mean()}))
    grid = {"step_size": [4e-3, 8e-3]}
    wanted = "have the temperature .* as if they were .* times as wide"
    with pytest.warns(UserWarning, match=wanted):
        result = short(kernel, x, batch_size=1, grid=grid, num_steps=200, num_samples=25)
    assert result.settings == {"step_size": 4e-3} and result.trials[0].temperature > 1.5


@pytest.mark.slow
def test_one_seed_gives_one_result(x):
    grid = {"step_size": [1e-4, 3e-4, 1e-3, 1e-1]}
    results = [short(SGLD(model), x, grid=grid, seed=seed) for seed in (3, 3, 4)]
    assert results[0].trials == results[1].trials
    assert results[0].trials != results[2].trials
    drawn = []
    for _ in range(2):
        pyro.set_rng_seed(5)
        drawn.append(short(SGLD(model), x, grid=grid, seed=None).trials)
    assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_backends_agree_and_the_kernel_is_left_alone(x, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("pilot runs do not compile")

    monkeypatch.setattr(compiled_loop, "compile_graph", refuse)
    kernels = {name: SGLD(model, backend=name) for name in ("eager", "trace", "compile")}
    grid = {"step_size": [1e-4, 3e-4, 1e-3, 1e-1]}
    results = {name: short(kernel, x, grid=grid) for name, kernel in kernels.items()}
    for name, result in results.items():
        assert result.settings == results["trace"].settings
        assert result.kernel.settings() == {**kernels[name].settings(), **result.settings}
        assert kernels[name].step_size is None
        for each in (kernels[name], result.kernel):
            with pytest.raises(RuntimeError, match="setup"):
                each.potential  # noqa: B018


def test_a_potential_fn_needs_a_start():
    kernel = SGNHT(potential_fn=potential_fn, step_size=0.1)
    grid = {"friction": np.array([0.5, 1.0])}
    with pytest.raises(ValueError, match="initial_params"):
        short(kernel, grid=grid)
    result = short(kernel, grid=grid, initial_params={"x": torch.zeros(3, 2)})
    assert result.kernel.friction in (0.5, 1.0) and type(result.kernel.friction) is float


def test_values_start_the_chains(x):
    def scale_model(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=10) as index:
            pyro.sample("x", dist.Normal(0.0, scale), obs=x[index])

    kernel = SGLD(scale_model)
    start = {"scale": torch.tensor([0.5, 1.0, 2.0])}
    pilot = pilot_of(kernel, x, start)
    torch.testing.assert_close(pilot.chains.position[:, 0], start["scale"].log())
    short(kernel, x, grid={"step_size": [1e-3]}, initial_params=start)


def test_numbers_rescale_a_schedule_and_schedules_replace_it(x):
    schedule = CyclicalSchedule(1e-3, num_cycles=8, num_steps=160, exploration=0.5, minimum=1e-4)
    kernel = SGLD(model, step_size=schedule)
    other = PolynomialSchedule(1e-3)
    result = short(kernel, x, grid={"step_size": [2e-3, other]})
    tried = {repr(trial.settings["step_size"]) for trial in result.trials}
    assert tried == {"0.002", repr(other)}
    tuned = short(kernel, x, grid={"step_size": [2e-3]}).kernel
    assert tuned.step_size == schedule.rescaled(2e-3)


def test_draws_are_of_sampling_steps():
    schedule = CyclicalSchedule(1e-3, num_cycles=4, num_steps=160, exploration=0.5)
    kept = tuning._kept_steps(schedule, 160, 8)
    assert len(kept) == len(set(kept)) == 8 and kept.min() > 80 and kept.max() == 160
    assert schedule.is_sampling(kept - 1).all()
    assert tuning._kept_steps(SGLD(model).schedule, 8, 4).tolist() == [5, 6, 7, 8]
    assert tuning._kept_steps(SGLD(model).schedule, 80, 4).tolist() == [50, 60, 70, 80]


def test_the_anchor_is_searched_once_and_handed_on(x, monkeypatch):
    from pyro_ext.inference.sgmcmc import kernel as kernels

    searches = []
    minimum = kernels.minimum
    monkeypatch.setattr(kernels, "minimum", lambda *args: searches.append(args) or minimum(*args))
    kernel = SGLD(model, control_variate="map")
    result = short(kernel, x, grid={"step_size": [1e-4, 1e-3]})
    result.kernel.setup(0, x)
    assert len(searches) == 1 and kernel.anchor is None
    assert result.kernel.control_variate == "map"


def test_combinations_that_the_kernel_refuses_are_left_out(x):
    grid = {"step_size": [0.001, 0.01], "friction": [10.0, 500.0]}
    result = short(SGHMC(model, friction=1.0), x, grid=grid)
    tried = sorted(tuple(trial.settings.values()) for trial in result.trials)
    assert tried == [(0.001, 10.0), (0.001, 500.0), (0.01, 10.0)]
    numbers = ["score", "num_steps", "temperature", "noise"]
    best = {name: getattr(result.trials[0], name) for name in numbers}
    assert result.table().iloc[0].to_dict() == result.settings | best


# What goes wrong ----------------------------------------------------------------------------------


def test_a_diverged_candidate_is_infinitely_bad(x):
    grid = {"step_size": [1e-3, 1e3, 1e6]}
    with pytest.warns(UserWarning, match="smallest"):
        result = short(SGLD(model), x, grid=grid)
    assert result.settings == {"step_size": 1e-3}
    assert [trial.score for trial in result.trials[1:]] == [math.inf, math.inf]
    assert [trial.num_steps for trial in result.trials] == [40, 40, 40]
    with pytest.raises(RuntimeError, match="all 2 candidates diverged"):
        short(SGLD(model), x, grid={"step_size": [1e3, 1e6]})


@pytest.mark.slow
@pytest.mark.parametrize("calls", [2, 7])
def test_after_an_interrupt_the_best_so_far_is_returned(calls, x, monkeypatch):
    grid = {"step_size": STEPS}
    whole = short(SGLD(model), x, grid=grid)
    assert not whole.interrupted
    monkeypatch.setattr(SGLD, "record", stopping(SGLD.record, calls))
    if calls <= len(STEPS):
        with pytest.raises(KeyboardInterrupt):
            short(SGLD(model), x, grid=grid)
        return
    result = short(SGLD(model), x, grid=grid)
    assert result.interrupted
    assert [trial.num_steps for trial in result.trials] == [40] * 5
    kept = {trial.settings["step_size"] for trial in whole.trials if trial.num_steps > 40}
    assert {trial.settings["step_size"] for trial in result.trials[:3]} == kept


def test_the_progress_bar_ends_full(x, capsys):
    """Also where so few candidates are left that the last rungs are not run."""
    with pytest.warns(UserWarning, match="smallest"):
        short(SGLD(model), x, grid={"step_size": [1e-3, 1e3, 1e6]}, num_chains=8, progress=True)
    assert "tune SGLD: 100%" in capsys.readouterr().err


def test_errors_come_before_the_model_runs(subtests):
    def unused(x):
        raise AssertionError("the model ran")

    for options, message in [
        ({"grid": {"step_size": []}}, r"grid\['step_size'\] must hold at least one value"),
        ({"grid": {"step_size": 1e-3}}, r"grid\['step_size'\] must be a list .* got 0.001"),
        ({"grid": {"step_size": [1e-3, -1.0]}}, r"grid\['step_size'\] holds -1.0, .* > 0"),
        ({"grid": {"step_size": [math.nan]}}, r"grid\['step_size'\] holds nan, which SGLD"),
        ({"grid": {"friction": [1.0]}}, r"grid names 'friction', but what can be tuned of SGLD"),
        ({"grid": {"temperature": [1.0]}}, "grid names 'temperature'"),
        ({"num_steps": 8}, "num_steps must leave num_samples = 5 steps .* 4 to 8 4 sample"),
        ({"num_chains": 1, "num_samples": 1}, "num_chains times num_samples must be at least 2"),
        ({"initial_params": {"loc": torch.zeros(2)}}, r"initial_params\['loc'\] must be a tensor"),
    ]:
        with subtests.test(message), pytest.raises(ValueError, match=message):
            short(SGLD(unused), torch.zeros(3), **options)


def test_what_is_no_kernel_of_a_posterior_is_refused():
    with pytest.raises(ValueError, match="kernel must have a positive temperature"):
        short(SGLD(model, temperature=0.0))
    cyclical = CyclicalSchedule(1e-3, num_cycles=1, num_steps=100, exploration=0.9)
    with pytest.raises(ValueError, match="of the steps from 20 to 40 0 sample"):
        short(SGLD(model, step_size=cyclical))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*end of")
def test_a_step_size_that_goes_by_the_data_is_where_the_default_grid_is_laid(x):
    result = short(MetaSGMCMC(model), x)
    tried = sorted(trial.settings["step_size"] for trial in result.trials)
    assert tried[0] < (0.05 / NUM) ** 0.5 < tried[-1]
