"""Mass matrices from gradients: estimators against exact results, windows, and runs."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.inference import HMC, MCMC, NUTS
from pyro_ext.inference.hmc.adaptation import (
    add_draw,
    axes_of_mean,
    first_factor,
    fisher_factor,
    growing_windows,
    low_rank_factor,
    new_moments,
)
from pyro_ext.inference.hmc.trajectories import Outcome, Paths, Point, Settings, leapfrog

pytestmark = pytest.mark.usefixtures("float64")

SIZE = 50


def correlated(size: int = SIZE) -> Tensor:
    """A covariance with three long directions."""
    torch.manual_seed(1)
    directions = torch.linalg.qr(torch.randn(size, 3))[0]
    return torch.eye(size) + 100.0 * directions @ directions.mT


def condition(factor: Tensor, covariance: Tensor) -> float:
    """Condition number of a covariance in the coordinates of a factor."""
    inverse = torch.linalg.inv(factor)
    values = torch.linalg.eigvalsh(inverse @ covariance @ inverse.mT)
    return float(values[-1] / values[0])


def normal_model(covariance: Tensor) -> Any:
    def model() -> None:
        loc = torch.zeros(len(covariance), dtype=covariance.dtype)
        pyro.sample("x", dist.MultivariateNormal(loc, covariance))

    return model


def test_scales_of_independent_coordinates_are_exact_after_three_draws() -> None:
    """From anywhere: the draws are not from the target."""
    torch.manual_seed(0)
    scale = torch.tensor([0.1, 1.0, 30.0])
    draws = 5.0 + 100.0 * torch.rand(3, 2, 3)
    moments, before = new_moments(torch.zeros(2, 6)), torch.ones(2, 3)
    for draw in draws:
        assert torch.equal(fisher_factor(moments, before), before)
        moments = add_draw(moments, torch.cat([draw, draw / scale.square()], -1))
    found = fisher_factor(moments, before)
    torch.testing.assert_close(found, scale.expand_as(found), rtol=1e-10, atol=0.0)


def test_draws_that_are_no_good_count_for_nothing() -> None:
    first, second = torch.randn(2, 2, 4)
    is_good = torch.tensor([True, False])
    moments = add_draw(add_draw(new_moments(first), first), second, is_good)
    assert moments.number.tolist() == [2.0, 1.0]
    assert torch.equal(moments.mean[1], first[1])


@pytest.mark.parametrize(("number", "least", "most"), [(60, 1.1, 2.5), (100, 0.0, 1.01)])
def test_low_rank(number: int, least: float, most: float) -> None:
    """With more draws than dimensions it is the covariance, of few but for eigenvalues near one."""
    covariance = correlated()
    precision = torch.linalg.inv(covariance)
    for draws in (
        torch.randn(number, SIZE) @ torch.linalg.cholesky(covariance).mT,
        12.0 * torch.rand(number, SIZE) - 3.0,  # no relation to the target
    ):
        factor = low_rank_factor(draws, draws @ precision)
        assert factor is not None and least < condition(factor, covariance) < most
        scaled = low_rank_factor(7.0 * draws, draws @ precision / 7.0)
        torch.testing.assert_close(scaled, 7.0 * factor)


def test_axes_of_the_geometric_mean() -> None:
    covariance, precision = torch.tensor([1.0, 4.0, 8.0]), torch.tensor([1.0, 1.0, 0.5])
    vectors, values = axes_of_mean(covariance.sqrt().diag(), precision.sqrt().diag())
    mean = vectors * values @ vectors.mT
    torch.testing.assert_close(mean, torch.tensor([1.0, 2.0, 4.0]).diag())
    torch.manual_seed(0)
    roots = torch.randn(2, 6, 6).triu() + 2.0 * torch.eye(6)
    vectors, values = axes_of_mean(*roots)
    mean = vectors * values @ vectors.mT
    first, second = roots.mT @ roots
    torch.testing.assert_close(mean @ second @ mean, first, rtol=1e-10, atol=1e-10)


def test_gradients_show_what_few_draws_do_not() -> None:
    """Twenty draws in fifty dimensions, one of them a hundred times narrower than the others."""
    torch.manual_seed(0)
    narrow = torch.nn.functional.normalize(torch.randn(SIZE), dim=0)
    precision = torch.eye(SIZE) + 1e4 * torch.outer(narrow, narrow)
    covariance = torch.linalg.inv(precision)
    draws = torch.randn(20, SIZE) @ torch.linalg.cholesky(covariance).mT
    factor = low_rank_factor(draws, draws @ precision)
    assert factor is not None and condition(factor, covariance) < 1e3


def test_low_rank_far_from_the_mode() -> None:
    """On the way from a far start draws and gradients lie on a line and span many magnitudes."""
    torch.manual_seed(0)
    covariance = torch.tensor([1e6, 1.0, 1e-6]).diag()
    path = torch.logspace(0, -6, 12)[:, None] * torch.tensor([1e3, 1e8, 1e8])
    draws = path + 1e-3 * torch.randn(12, 3)
    factor = low_rank_factor(draws, draws @ torch.linalg.inv(covariance))
    assert factor is not None and factor.isfinite().all()


def test_first_scales_near_a_mode() -> None:
    """Gradients that are zero, or rounding, say nothing of scales."""
    gradient = torch.tensor([[0.0, 0.0], [0.0, 4.0], [1e-4, 100.0], [torch.nan, 1.0]])
    found = first_factor(gradient)
    torch.testing.assert_close(found[0], torch.ones(2))
    assert found.isfinite().all()
    torch.testing.assert_close(found[1:3, 1], torch.tensor([0.5, 0.1]))
    assert float(found[1, 0] / found[1, 1]) == pytest.approx(100.0)


def test_runs_that_start_at_a_mode() -> None:
    """Where the first proposals are no good masses are still unknown when steps are looked for."""
    kernel = NUTS(potential_fn=lambda z: 0.5 * z["x"].square().sum())
    start = {"x": torch.zeros(4, 3)}
    mcmc = MCMC(kernel, 100, 60, 4, initial_params=start, seed=0)
    draws = mcmc.run().get_samples()["x"]
    assert (draws.std(0) - 1.0).abs().max() < 0.25


def test_low_rank_of_what_tells_nothing() -> None:
    assert low_rank_factor(torch.randn(2, 4), torch.randn(2, 4)) is None
    assert low_rank_factor(torch.full((9, 4), torch.nan), torch.randn(9, 4)) is None


def test_windows() -> None:
    """Those of nutpie, whose steps are counted from zero."""
    assert growing_windows(400).switches == (*range(9, 120, 10), 199)
    assert growing_windows(800).switches[-3:] == (239, 319, 439)
    assert growing_windows(400).symmetric == 199
    assert growing_windows(400).searches == (3, 9)
    for number in (0, 1, 5, 20, 150, 1000):
        windows = growing_windows(number)
        assert all(0 < step <= number for step in windows.updates)
        assert set(windows.switches) <= set(windows.updates) and windows.symmetric <= number


def test_symmetric_rates_are_as_large_on_average() -> None:
    """From exact draws of 20 dimensions; the errors are far below the tolerance."""
    torch.manual_seed(0)
    position, momentum = torch.randn(2, 100_000, 20)
    uniforms, size = torch.rand(len(position), 4), torch.full((len(position),), 0.8)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * x.square().sum(-1), x

    value, gradient = function(position)
    paths, factor = Paths(None, 1), torch.ones(1, 20)
    path = paths.start(position, value, gradient, momentum)
    _, _, outcome, symmetric = paths.extend(path, function, uniforms, Settings(size, factor, size))
    assert abs(float(outcome.acceptance_rate.mean() - symmetric.mean())) < 5e-3
    point = Point(position, momentum, gradient)
    _, _, energy = leapfrog(point, function, size, factor)
    change = value + 0.5 * momentum.square().sum(-1) - energy
    expected = 2.0 * change.exp().clamp(max=1.0) / (1.0 + change.exp())
    torch.testing.assert_close(symmetric, expected)


@pytest.mark.parametrize("full_mass", [False, "low_rank"])
def test_adaptation_finds_the_covariance(full_mass: Any) -> None:
    scale = torch.tensor([0.01, 1.0, 50.0, 3.0])
    correlation = torch.eye(4) + 0.95 * (torch.ones(4, 4) - torch.eye(4)) * bool(full_mass)
    covariance = scale[:, None] * correlation * scale
    kernel = NUTS(normal_model(covariance), full_mass=full_mass)
    kernel.setup(60)
    chains = kernel.advance(kernel.begin(range(3), 0), 60)
    for factor in chains.state.factor:
        matrix = factor if full_mass else factor.diag()
        # Eigenvalues between a half and two stay.
        assert condition(matrix, covariance) < (4.5 if full_mass else 1.0 + 1e-6)
    after = kernel.advance(chains, 40)
    assert torch.equal(after.state.factor, chains.state.factor)
    assert int((after.state.num_leapfrogs - chains.state.num_leapfrogs).max()) < 40 * 16


def test_step_sizes_vary_where_they_adapt() -> None:
    model = normal_model(torch.eye(3))

    def sizes(**options: Any) -> Tensor:
        mcmc = MCMC(NUTS(model, **options), 20, 30, seed=0, progress=False).run()
        return mcmc.sample_statistics()["step_size"]

    found = sizes()
    assert float(found.max() / found.min()) > 1.05
    assert float(found.max() / found.min()) < 1.1 / 0.9
    assert len(sizes(full_mass=True).unique()) == 1
    fixed = sizes(adapt_step_size=False, step_size=0.4)
    assert len(fixed.unique()) == 1


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("kernel_type", [NUTS, HMC])
@pytest.mark.parametrize("full_mass", [False, "low_rank"])
def test_moments(kernel_type: Any, full_mass: Any) -> None:
    """Of a skewed posterior with correlated sites, within five standard errors."""

    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(4.0), 2.0))
        pyro.sample("x", dist.Normal(2.0 * rate, 3.0))

    kernel = kernel_type(model, full_mass=full_mass)
    mcmc = MCMC(kernel, 2000, 200, num_chains=4, seed=0, progress=False).run()
    samples = mcmc.get_samples(group_by_chain=True)
    n_eff = mcmc.diagnostics()
    for name, mean, deviation in (("rate", 2.0, 1.0), ("x", 4.0, 13.0**0.5)):
        size = float(n_eff[name]["n_eff"])
        assert size > 500.0
        assert abs(float(samples[name].mean()) - mean) < 5.0 * deviation / size**0.5
        assert abs(float(samples[name].std()) / deviation - 1.0) < 5.0 / size**0.5


def test_which_draws_masses_are_estimated_from() -> None:
    """Not from those of chains that stayed, nor where a trajectory diverged at once."""
    kernel = NUTS(normal_model(torch.eye(2)))
    kernel.setup(40)
    state = kernel.begin(range(4), 0).state
    moved = state.position + torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None]
    last = state._replace(
        position=moved,
        diverging=torch.tensor([False, False, True, True]),
        num_steps=torch.tensor([1, 7, 3, 9]),
    )
    made = Outcome(*(part[None] for part in last.outcome()))
    collected = kernel._masses.collected(last, state.position, made)
    assert collected.moments.number.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert collected.window.isfinite().all(-1)[:, -1].tolist() == [True, False, False, True]


@pytest.mark.parametrize("full_mass", [False, "low_rank"])
@pytest.mark.parametrize("cuts", [(17, 23), (1, 1, 1, 19, 4, 14), (5, 31, 3, 1)])
def test_runs_go_on_in_the_warm_up(full_mass: Any, cuts: tuple[int, ...]) -> None:
    """Also in the middle of a window, with float32 parameters and double precision inside.

    To the last bit: where the clock cuts a run in parts must not show.
    """
    covariates = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)).float()

    def model() -> None:
        weights = pyro.sample("weights", dist.Normal(covariates.new_zeros(6), 1.0).to_event(1))
        with pyro.plate("rows", 300):  # so many that rounding depends on how many sum at a time
            pyro.sample("y", dist.Normal(covariates @ weights, 1.0), obs=covariates.sum(1))

    kernel = NUTS(model, full_mass=full_mass, max_tree_depth=3)
    kernel.setup(40)
    whole = kernel.advance(kernel.begin(range(2), 0), 40)
    again = kernel.begin(range(2), 0)
    for number in cuts:
        again = kernel.restored(range(2), 0, *kernel.saved(kernel.advance(again, number)))
    assert whole.state.factor.dtype == torch.float32
    expected, found = (kernel.saved(chains)[0] for chains in (whole, again))
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 400), ({"full_mass": False}, 400), ({"full_mass": True}, 900)],
)
def test_warm_ups_are_as_long_as_masses_need(options: dict[str, Any], expected: int) -> None:
    model = normal_model(torch.eye(2))
    assert MCMC(NUTS(model, **options), 900).warmup_steps == expected
    assert MCMC(HMC(model, **options), 900).warmup_steps == expected
    assert MCMC(NUTS(model, **options), 30).warmup_steps == 30
    fixed = NUTS(model, step_size=0.1, adapt_step_size=False, adapt_mass_matrix=False)
    assert MCMC(fixed, 900).warmup_steps == 0


@pytest.mark.parametrize(("size", "dims"), [(50, 3), (51, 2)])
def test_directions_are_known_of_few_parameters(size: int, dims: int) -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(size), 1.0).to_event(1))

    kernel = NUTS(model, backend="trace")
    kernel.setup(20)
    assert kernel.begin(range(2), 0).state.factor.dim() == dims
