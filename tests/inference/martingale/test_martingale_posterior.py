"""The driver of martingale posteriors: what it draws, and what it does where things go wrong."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive

from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference.martingale.functionals import Mean, Quantile
from pyro_ext.inference.martingale.gaussian import NormalPredictive, StudentTPredictive
from pyro_ext.inference.martingale.martingale_posterior import MartingalePosterior
from pyro_ext.inference.martingale.polya_urn import PolyaUrn
from pyro_ext.random import chain_keys


def data() -> torch.Tensor:
    return torch.linspace(-1.0, 2.0, 10)


def posterior(
    rule=None, functional=None, num_samples: int = 50, horizon: float = 500, **options
) -> MartingalePosterior:
    options = {"seed": 0, "progress": False, **options}
    return MartingalePosterior(
        rule or PolyaUrn(), functional or Mean(), num_samples, horizon, **options
    )


def moments(population) -> dict[str, torch.Tensor]:
    return {"loc": population.mean, "scale": population.variance.sqrt()}


@pytest.mark.parametrize("horizon", [500, math.inf])
def test_a_draw_is_the_functional_of_the_completed_population(horizon, float64):
    found = posterior(functional=Quantile(0.3), horizon=horizon, num_samples=4).run(data())
    rule = PolyaUrn()
    state = rule.begin((data(),), chain_keys(0, range(4)))
    if horizon == math.inf:
        population = rule.limit(state)
    else:
        population = rule.population(rule.advance(state, 500))
    assert population.num_points == 10
    torch.testing.assert_close(found.get_samples()["theta"], Quantile(0.3)(population))


@pytest.mark.parametrize("rule", [PolyaUrn(), NormalPredictive(), StudentTPredictive()])
@pytest.mark.parametrize("horizon", [500, math.inf])
def test_draws_follow_from_the_seed_and_their_number(rule, horizon, float64):
    def draw(num_samples: int = 25, **options) -> torch.Tensor:
        run = posterior(rule, num_samples=num_samples, horizon=horizon, **options)
        return run.run(data()).get_samples()["theta"]

    whole = draw()
    assert len(whole.unique()) == 25
    torch.testing.assert_close(draw(batch_size=7), whole)
    torch.testing.assert_close(draw(batch_size=1), whole)
    torch.testing.assert_close(draw(num_samples=5), whole[:5])
    torch.testing.assert_close(draw(num_checks=1), whole)
    assert not torch.isclose(draw(seed=1), whole).any()


def test_the_seed_of_pyro():
    draws = []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        draws.append(posterior(seed=None).run(data()).get_samples()["theta"])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_ctrl_c_keeps_complete_batches():
    calls = 0

    def functional(population):
        nonlocal calls
        calls += 1
        if calls == 6:  # one of the data, two for each of two batches, one within the third
            raise KeyboardInterrupt
        return population.mean

    run = posterior(functional=functional, batch_size=10, num_checks=2).run(data())
    assert run.interrupted
    whole = posterior(num_checks=2).run(data())
    assert not whole.interrupted
    torch.testing.assert_close(run.get_samples()["theta"], whole.get_samples()["theta"][:20])
    assert run.drift().sizes.tolist() == [10, 255, 510]

    calls = 4
    run.run(data())  # within the first batch
    assert run.interrupted
    with pytest.raises(RuntimeError, match="no draws yet"):
        run.get_samples()


def test_draws_that_are_not_finite_are_left_out():
    def functional(population):
        value = population.mean.clone()
        if len(value) > 2:
            value[3] = math.nan if len(value) == 8 else math.inf
        return {"one": value, "two": torch.zeros(len(value), 2)}

    run = posterior(functional=functional, num_samples=20, batch_size=8)
    with pytest.warns(RuntimeWarning, match=r"not finite in 3 of 20 draws.*numbers \[3, 11, 19\]"):
        run.run(data())
    assert run.diagnostics()["left_out"] == [3, 11, 19]
    samples = run.get_samples()
    assert samples["one"].shape == (17,) and samples["two"].shape == (17, 2)
    whole = posterior(num_samples=20).run(data()).get_samples()["theta"]
    kept = [i for i in range(20) if i not in (3, 11, 19)]
    torch.testing.assert_close(samples["one"], whole[kept])
    assert bool(run.drift().from_data["one"].isfinite().all())


def test_no_finite_draw():
    run = posterior(functional=lambda population: population.mean / 0.0 * 0.0)
    with pytest.raises(RuntimeError, match="not finite in any of 50 draws"):
        run.run(data())
    with pytest.raises(RuntimeError, match="no draws yet"):
        run.get_samples()


def test_a_value_that_is_not_finite_on_the_way_does_no_harm():
    def functional(population):
        return (population.weights[:, 0] - 0.1).abs().log()  # infinite on the data

    run = posterior(functional=functional, horizon=501, num_samples=200, tolerance=1.0)
    assert run.run(data()).get_samples()["theta"].shape == (200,)
    assert math.isfinite(run.diagnostics()["theta"]["remaining_fraction"])
    assert bool(run.drift().to_end["theta"][-1] == 0.0)


def test_summary_and_diagnostics(capsys):
    run = posterior(functional=moments, num_samples=400, tolerance=1.0).run(data())
    run.summary()
    printed = capsys.readouterr().out
    assert "loc" in printed and "scale" in printed and "5.0%" in printed
    found = run.diagnostics()
    error = run.get_samples()["loc"].std() / 20
    assert float(found["loc"]["standard_error"]) == pytest.approx(float(error), rel=1e-5)
    assert found["left_out"] == []
    with pytest.raises(RuntimeError, match="at least 4 draws, got 3"):
        posterior(num_samples=3, num_checks=1).run(data()).summary()


def test_progress_bar(capsys):
    posterior(progress=True, batch_size=20).run(data())
    shown = capsys.readouterr().err
    assert "PolyaUrn" in shown and "1500/1500" in shown


def test_arviz_and_predictive():
    def model(y=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.HalfNormal(10.0))
        with pyro.plate("data", 10):
            return pyro.sample("y", dist.Normal(loc, scale), obs=y)

    run = posterior(functional=moments).run(data())
    plain = to_arviz(run)
    assert dict(plain["posterior"].sizes) == {"chain": 1, "draw": 50}
    full = to_arviz(run, data(), model=model, posterior_predictive=True)
    assert full["log_likelihood"]["y"].shape == (1, 50, 10)
    assert full["posterior_predictive"]["y"].shape == (1, 50, 10)
    drawn = Predictive(model, posterior_samples=run.get_samples())()
    assert drawn["y"].shape == (50, 10)


def test_errors(subtests):
    for make, error, message in [
        (lambda: posterior().run(), ValueError, "at least one tensor of observations, got none"),
        (lambda: posterior().get_samples(), RuntimeError, "no draws yet"),
        (lambda: posterior().drift(), RuntimeError, "no draws yet"),
        (
            lambda: posterior(functional=lambda p: 3.0).run(data()),
            TypeError,
            "functional must return a tensor or a dict of tensors by name, got 3.0 for 'theta'",
        ),
        (
            lambda: posterior(functional=lambda p: p.mean.mean()).run(data()),
            ValueError,
            r"shape \(num_draws, \*event\), got the shape \(\) of 'theta' for 2 draws",
        ),
        (lambda: posterior(functional=lambda p: {}).run(data()), ValueError, "got an empty dict"),
        (
            lambda: posterior(functional=lambda p: p.weights[:, : len(p.weights)]).run(data()),
            ValueError,
            "names and shapes that it returns for the data alone",
        ),
    ]:
        with subtests.test(message), pytest.raises(error, match=message):
            make()


def test_function_of_observations_is_told_what_it_gets():
    with pytest.raises(TypeError) as caught:
        posterior(functional=torch.median).run(data())
    (note,) = caught.value.__notes__
    assert "a distribution of the population, here a WeightedSample, and not with a tensor" in note


def test_runs_leave_global_generators_alone():
    rule = PolyaUrn(dist.Normal(0.0, 1.0), 20.0)
    before = torch.random.get_rng_state()
    posterior(rule).run(data())
    assert torch.equal(torch.random.get_rng_state(), before)
