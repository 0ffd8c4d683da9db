"""What follows from draws: log likelihoods, deterministic values, predictions; and the prior."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from pyro_ext._lib import row_draws
from pyro_ext._lib.row_draws import drawn_over_rows, rows_at_once
from pyro_ext.potential import Potential, batched, model_at_values

TINY = 1e-4


def regression(x: Tensor, y: Tensor, size: int | None) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.deterministic("square", weight**2)
    with pyro.plate("data", len(x), subsample_size=size) as index:
        mean = pyro.deterministic("mean", x[index] @ weight)
        pyro.sample("y", dist.Normal(mean, scale), obs=y[index])


@pytest.fixture(params=["eager", "trace"])
def potential(request: pytest.FixtureRequest) -> Potential:
    x, y = torch.randn(7, 2), torch.randn(7)
    return Potential(regression, x, y, 3, backend=request.param)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (150,)])
def test_shapes_and_values(potential: Potential, leading: tuple[int, ...]) -> None:
    samples = {"weight": torch.randn(*leading, 2), "scale": 0.5 + torch.rand(leading)}
    x, y, _ = potential.args
    mean = samples["weight"] @ x.T
    deterministic = potential.deterministic(samples)
    torch.testing.assert_close(deterministic["mean"], mean)
    torch.testing.assert_close(deterministic["square"], samples["weight"] ** 2)
    likelihood = potential.log_likelihood(samples)
    expected = dist.Normal(mean, samples["scale"][..., None]).log_prob(y)
    torch.testing.assert_close(likelihood["y"], expected)
    assert potential.predictive(samples, seed=0)["y"].shape == (*leading, 7)
    constrained = potential.constrain(potential.unconstrain(samples))
    torch.testing.assert_close(constrained, samples)


def test_description(potential: Potential) -> None:
    assert potential.data_size == 7
    assert [plate.name for plate in potential.subsampled_plates] == ["data"]
    assert {name: tuple(site.shape) for name, site in potential.sites.items()} == {
        "weight": (2,),
        "scale": (),
    }
    assert potential.sites["weight"].event_dim == 1
    assert potential.observed_sites["y"].dims == ["data"]
    assert potential.deterministic_sites["mean"].dims == ["data"]
    assert tuple(potential.deterministic_sites["mean"].shape) == (7,)
    assert potential.sites["scale"].support is dist.constraints.nonnegative
    assert torch.equal(potential.observations()["y"], potential.args[1])


def test_predictive_follows_the_samples(potential: Potential) -> None:
    samples = {"weight": torch.randn(5, 2), "scale": torch.full((5,), TINY)}
    before = torch.get_rng_state()
    draws = [potential.predictive(samples, seed=seed)["y"] for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    mean = samples["weight"] @ potential.args[0].T
    torch.testing.assert_close(draws[0], mean, rtol=0, atol=10 * TINY)


def test_prior(potential: Potential) -> None:
    before = torch.get_rng_state()
    draws, again = potential.prior(40, seed=3), potential.prior(40, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "weight": (40, 2),
        "scale": (40,),
        "y": (40, 7),
    }
    assert all(torch.equal(value, again[name]) for name, value in draws.items())
    mean = draws["weight"] @ potential.args[0].T
    scaled = (draws["y"] - mean) / draws["scale"][:, None]
    # 280 standard normal numbers: five standard errors of mean and variance.
    assert abs(float(scaled.mean())) < 5 / 280**0.5
    assert abs(float(scaled.var()) - 1) < 5 * (2 / 280) ** 0.5


def crossed(size: tuple[int, int]) -> None:
    """Sites in crossed plates that subsample, those in both all but equal to sums of others."""
    rows = pyro.plate("rows", 5, subsample_size=size[0], dim=-2)
    columns = pyro.plate("columns", 4, subsample_size=size[1], dim=-1)
    top = pyro.sample("top", dist.Normal(0.0, 10.0))
    with rows:
        row = pyro.sample("row", dist.Normal(top, 1.0))
    with columns:
        column = pyro.sample("column", dist.Normal(top, 1.0))
        first = pyro.sample("first", dist.Normal(column, 1.0), obs=torch.zeros(size[1]))
    with rows, columns:
        cell = pyro.sample("cell", dist.Normal(row + column, TINY))
        pyro.sample("second", dist.Normal(cell + first, TINY), obs=torch.zeros(size))


@pytest.mark.parametrize("size", [(5, 4), (2, 4), (5, 3), (2, 3)])
def test_draws_are_of_one_piece(size: tuple[int, int]) -> None:
    """Parents have one value, though their children are drawn block by block."""
    draws = Potential(crossed, size, backend="eager").prior(6, seed=0)
    row, column = draws["row"], draws["column"]
    assert row.shape == (6, 5, 1) and column.shape == (6, 4) and draws["cell"].shape == (6, 5, 4)
    assert (row[:, :, 0] - draws["top"][:, None]).abs().max() < 5
    close = {"rtol": 0, "atol": 10 * TINY}
    torch.testing.assert_close(draws["cell"], row + column[:, None], **close)
    assert (draws["first"] - column).abs().max() < 5
    torch.testing.assert_close(draws["second"], draws["cell"] + draws["first"][:, None], **close)


def test_reparameterized_site_is_deterministic() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=2) as index:
            theta = pyro.sample("theta", dist.Normal(mean, 2.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y[index])

    config = {"theta": LocScaleReparam(centered=0.0)}
    potential = Potential(pyro.poutine.reparam(model, config=config), torch.zeros(5))
    assert list(potential.sites) == ["mean", "theta_decentered"]
    assert list(potential.observed_sites) == ["y"]
    samples = {"mean": torch.randn(3), "theta_decentered": torch.randn(3, 5)}
    theta = potential.deterministic(samples)["theta"]
    torch.testing.assert_close(theta, samples["mean"][:, None] + 2 * samples["theta_decentered"])


def test_values_that_are_no_floating_numbers() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.deterministic("is_positive", loc > 0)
        pyro.deterministic("rounded", loc.round().long())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(loc.exp()), obs=x)

    potential = Potential(model, torch.arange(3.0))
    values = potential.deterministic({"loc": torch.tensor([-1.6, 0.2])})
    assert values["is_positive"].tolist() == [False, True]
    assert values["rounded"].tolist() == [-2, 0]


def test_observation_that_is_broadcast() -> None:
    """One number observed for all elements of a plate has the plate's shape."""

    def model(size: int) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5, subsample_size=size):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(0.5))

    for size in (2, 5):
        potential = Potential(model, size)
        assert torch.equal(potential.observations()["x"], torch.full((5,), 0.5))
        samples = {"loc": torch.randn(3)}
        assert potential.predictive(samples, seed=0)["x"].shape == (3, 5)
        likelihood = potential.log_likelihood(samples)["x"]
        expected = dist.Normal(samples["loc"], 1.0).log_prob(torch.tensor(0.5))
        torch.testing.assert_close(likelihood, expected[:, None].expand(3, 5))


def test_masked_observations_count_for_nothing() -> None:
    def model(x: Tensor, present: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=present):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    present = torch.tensor([True, False, True])
    potential = Potential(model, torch.ones(3), present)
    likelihood = potential.log_likelihood({"loc": torch.zeros(2)})["x"]
    assert (likelihood != 0).tolist() == [present.tolist()] * 2


def many_kinds(x: Tensor) -> None:
    """Distributions whose draws fill memory, and some whose draws do not."""
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    rate = pyro.sample("rate", dist.Exponential(1.0))
    loc = pyro.sample("loc", dist.Laplace(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)
        pyro.sample("count", dist.Poisson(rate), obs=torch.ones(len(x)))
        pyro.sample("flag", dist.Bernoulli(logits=loc), obs=torch.ones(len(x)))
        pyro.sample("kind", dist.Categorical(logits=torch.zeros(3)), obs=torch.zeros(len(x)))


def asks_a_value(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0 if loc > -9.0 else 2.0), obs=x)


@pytest.mark.parametrize(("model", "is_vectorized"), [(many_kinds, True), (asks_a_value, False)])
def test_draws_over_rows_are_those_of_the_rows(
    model: Any, is_vectorized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row has numbers of its own, with the distribution that rows one by one give."""
    returned = []

    def over_rows(*arguments: Any) -> Any:
        returned.append(drawn_over_rows(*arguments))
        return returned[-1]

    def refused(*_: Any) -> Any:
        raise RuntimeError("one by one")

    potential = Potential(model, torch.zeros(3))
    found = []
    for function in (over_rows, refused):
        monkeypatch.setattr(model_at_values, "drawn_over_rows", function)
        prior = potential.prior(500, seed=0)
        latents = {name: prior[name] for name in potential.sites}
        predictive = potential.predictive(latents, seed=1)
        again = potential.predictive(latents, seed=1)
        assert all(torch.equal(again[name], value) for name, value in predictive.items())
        assert len(predictive["x"].unique()) > 0.99 * predictive["x"].numel()
        new = {f"new {name}": value for name, value in predictive.items()}
        found.append({name: value.double().atan() for name, value in (prior | new).items()})
    assert bool(returned) == is_vectorized
    for name, value in found[0].items():  # the arc tangent of heavy tails has moments
        variance = (value.var(0) + found[1][name].var(0)) / len(value)
        gap = (value.mean(0) - found[1][name].mean(0)).abs()
        assert (gap <= 5.0 * variance.sqrt() + 1e-12).all(), name


def test_rows_with_large_tensors_are_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a row takes is read from the graph, or seen in the first draws."""
    sizes = []

    def recorded(num_elements: int) -> int:
        sizes.append(num_elements)
        return rows_at_once(num_elements)

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            table = (loc + x)[:, None] * x  # of 300 times 300 numbers
            pyro.sample("x", dist.Normal(table.mean(-1), 1.0), obs=x)

    for module in (row_draws, batched):
        monkeypatch.setattr(module, "rows_at_once", recorded)
    potential = Potential(model, torch.randn(300))
    prior = potential.prior(100, seed=0)
    assert sizes == [90_000]
    potential.log_likelihood(prior)
    assert max(sizes[1:]) == 90_000
    assert [rows_at_once(number) for number in (90_000, 1024, 1)] == [64, 256, 1 << 18]
