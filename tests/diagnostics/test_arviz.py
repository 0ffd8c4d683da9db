"""Conversion to ArviZ: the same tests run under ArviZ 0.x and ArviZ 1."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor

import pyro_ext
from pyro_ext.diagnostics import to_arviz
from pyro_ext.potential import Potential
from tests.diagnostics.arviz_models import (
    NUM_DATA,
    FakeSampler,
    arviz,
    conjugate_posterior,
    count_data,
    count_draws,
    counts,
    global_only,
    groups_of,
    linear,
    linear_data,
    linear_draws,
    linear_log_likelihood,
    reading,
    values,
)

# A dict -------------------------------------------------------------------------------------------


def test_the_object_is_that_of_the_installed_arviz() -> None:
    data = to_arviz({"a": torch.randn(10)})
    is_version_1 = not arviz().__version__.startswith("0.")
    assert type(data).__name__ == ("DataTree" if is_version_1 else "InferenceData")
    attributes = data["posterior"].attrs
    assert attributes["inference_library"] == "pyro_ext"
    assert attributes["inference_library_version"] == pyro_ext.__version__
    assert "created_at" in attributes


def test_dict_without_model_is_all_posterior() -> None:
    draws = {"a": torch.randn(10, 3), "b": np.arange(10), "c": [0.5] * 10}
    data = to_arviz(draws)
    assert groups_of(data) == {"posterior"}
    assert data["posterior"]["a"].dims == ("chain", "draw", "a_dim_0")
    np.testing.assert_array_equal(values(data, "posterior", "a"), draws["a"].numpy()[None])
    assert values(data, "posterior", "b").dtype == np.arange(10).dtype
    assert values(data, "posterior", "c").shape == (1, 10)


def test_dict_with_chains() -> None:
    a = torch.randn(6, 2, 3, requires_grad=True)  # more chains than draws is no mistake here
    data = to_arviz({"a": a}, group_by_chain=True)
    np.testing.assert_array_equal(values(data, "posterior", "a"), a.detach().numpy())


@pytest.mark.parametrize("subsample_size", [None, 5, 4])
@pytest.mark.usefixtures("float64")
def test_log_likelihood_is_that_computed_by_hand(subsample_size: int | None) -> None:
    x, y = linear_data()
    draws = linear_draws(2, 7)
    data = to_arviz(draws, x, y, subsample_size, model=linear, group_by_chain=True)
    assert groups_of(data) == {"posterior", "log_likelihood", "observed_data"}
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "data")
    np.testing.assert_allclose(
        values(data, "log_likelihood", "y"), linear_log_likelihood(draws, x, y), rtol=1e-10
    )
    np.testing.assert_array_equal(values(data, "observed_data", "y"), y.numpy())
    assert data["posterior"]["mean"].dims == ("chain", "draw", "data")
    mean = torch.einsum("cdk,nk->cdn", draws["weight"], x)
    np.testing.assert_allclose(values(data, "posterior", "mean"), mean.numpy(), rtol=1e-10)


@pytest.mark.parametrize("sizes", [(None, None), (2, None), (2, 3)])
def test_nested_plates(sizes: tuple[int | None, int | None]) -> None:
    y = count_data()
    draws = count_draws(20)
    data = to_arviz(draws, model=Potential(counts, y, sizes=sizes))
    assert data["posterior"]["log_rate"].dims == ("chain", "draw", "site", "log_rate_dim_0")
    assert data["log_likelihood"]["count"].dims == ("chain", "draw", "site", "year")
    assert data["observed_data"]["count"].dims == ("site", "year")
    observed = values(data, "observed_data", "count")
    assert observed.dtype == np.int64
    np.testing.assert_array_equal(observed, y.numpy())
    rate = torch.exp(draws["log_rate"] + draws["trend"][:, None, None] * torch.arange(5))
    expected = y * rate.log() - rate - torch.lgamma(y + 1.0)
    np.testing.assert_allclose(
        values(data, "log_likelihood", "count")[0], expected.numpy(), rtol=1e-4, atol=1e-5
    )


def test_dims_without_plates_are_numbered_or_given() -> None:
    y = torch.randn(4, 3)
    draws = {"loc": torch.randn(30, 4, 3)}
    data = to_arviz(draws, y, model=reading)
    assert data["posterior"]["loc"].dims == ("chain", "draw", "loc_dim_0", "loc_dim_1")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "y_dim_0")
    assert data["log_likelihood"]["total"].dims == ("chain", "draw")
    data = to_arviz(draws, y, model=reading, dims={"y": ["person", "test"]}, log_likelihood=["y"])
    assert list(data["log_likelihood"].data_vars) == ["y"]
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "person")
    assert data["observed_data"]["y"].dims == ("person", "test")
    for nothing in ([], False):
        data = to_arviz(draws, y, model=reading, log_likelihood=nothing)
        assert "log_likelihood" not in groups_of(data)


def test_events_in_a_plate() -> None:
    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)

    data = to_arviz({"loc": torch.randn(10, 3)}, torch.randn(3, 3), model=model)
    assert data["posterior"]["loc"].dims == ("chain", "draw", "loc_dim_0")
    assert data["observed_data"]["y"].dims == ("data", "y_dim_0")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "data")


def test_observed_sites_of_a_dict_are_predictive() -> None:
    x, y = linear_data()
    draws = linear_draws(30)
    drawn = Predictive(linear, draws)(x, None)
    assert set(drawn) == {"y", "mean"}
    data = to_arviz(draws | drawn, x, y, model=linear)
    assert set(data["posterior"].data_vars) == {"weight", "noise", "mean"}
    assert set(data["posterior_predictive"].data_vars) == {"y"}
    np.testing.assert_array_equal(values(data, "posterior_predictive", "y")[0], drawn["y"].numpy())
    again = to_arviz(draws | drawn, x, y, model=linear, posterior_predictive=True)
    np.testing.assert_array_equal(values(again, "posterior_predictive", "y")[0], drawn["y"].numpy())
    only = to_arviz({"y": drawn["y"]}, x, y, model=linear, log_likelihood=False)
    assert groups_of(only) == {"posterior_predictive", "observed_data"}


def test_half_precision_and_integers() -> None:
    data = to_arviz(
        {
            "a": torch.ones(5, dtype=torch.bfloat16),
            "b": torch.tensor([2**24 + 1] * 5),
            "c": torch.ones(5, dtype=torch.bool),
        }
    )
    assert values(data, "posterior", "a").dtype == np.float32
    assert values(data, "posterior", "b")[0, 0] == 2**24 + 1
    assert values(data, "posterior", "c").dtype == bool


# Predictive and prior draws -----------------------------------------------------------------------


@pytest.mark.parametrize("subsample_size", [None, 5])
def test_posterior_predictive_has_the_moments_of_the_model(subsample_size: int | None) -> None:
    x, y = linear_data()
    num_draws = 400
    weight = torch.tensor([0.5, -1.0])
    draws = {"weight": weight.expand(2, num_draws, 2), "noise": torch.full((2, num_draws), 0.5)}
    data = to_arviz(
        draws,
        x,
        y,
        subsample_size,
        model=linear,
        group_by_chain=True,
        posterior_predictive=True,
        log_likelihood=False,
        seed=3,
    )
    drawn = values(data, "posterior_predictive", "y")
    assert drawn.shape == (2, num_draws, NUM_DATA)
    # 24 z-scores in all; five standard errors fail once in 70,000 seeds.
    errors = drawn.mean((0, 1)) - (x @ weight).numpy()
    assert np.abs(errors).max() < 5 * 0.5 / np.sqrt(2 * num_draws)
    assert abs(drawn.std((0, 1)).mean() / 0.5 - 1) < 0.05


def test_seed_fixes_all_that_is_drawn() -> None:
    y = count_data()
    options: dict[str, Any] = {"model": counts, "posterior_predictive": True, "prior": 6}
    draws = count_draws(10)
    state = torch.get_rng_state()
    first, second, other = (to_arviz(draws, y, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for group, name in (("posterior_predictive", "count"), ("prior", "trend")):
        np.testing.assert_array_equal(values(first, group, name), values(second, group, name))
        assert (values(first, group, name) != values(other, group, name)).any()


def test_counts_are_drawn_as_integers() -> None:
    y = count_data()
    data = to_arviz(count_draws(10), y, model=counts, posterior_predictive=True, prior=True)
    for group, num_draws in (("posterior_predictive", 10), ("prior_predictive", 500)):
        drawn = values(data, group, "count")
        assert drawn.dtype == np.int64
        assert drawn.shape == (1, num_draws, 3, 5)
    assert values(data, "prior", "log_rate").shape == (1, 500, 3, 1)


def test_given_predictive_and_prior_draws() -> None:
    x, y = linear_data()
    draws = linear_draws(2, 15)
    flat = {"y": torch.randn(30, NUM_DATA)}
    grouped = {"y": flat["y"].reshape(2, 15, NUM_DATA)}
    prior = linear_draws(8) | {"y": torch.randn(8, NUM_DATA)}
    for predictive in (flat, grouped):
        data = to_arviz(
            draws,
            x,
            y,
            model=linear,
            group_by_chain=True,
            posterior_predictive=predictive,
            prior=prior,
        )
        np.testing.assert_array_equal(
            values(data, "posterior_predictive", "y"), grouped["y"].numpy()
        )
        assert set(data["prior"].data_vars) == {"weight", "noise"}
        assert values(data, "prior_predictive", "y").shape == (1, 8, NUM_DATA)
    without_model = to_arviz(draws, group_by_chain=True, posterior_predictive=flat, prior=prior)
    assert groups_of(without_model) == {"posterior", "posterior_predictive", "prior"}


@pytest.mark.parametrize("subsample_size", [None, 5])
def test_prior_holds_deterministic_sites(subsample_size: int | None) -> None:
    x, y = linear_data()
    data = to_arviz(linear_draws(4), x, y, subsample_size, model=linear, prior=300, seed=0)
    assert set(data["prior"].data_vars) == {"weight", "noise", "mean"}
    mean = values(data, "prior", "weight") @ x.numpy().T
    np.testing.assert_allclose(values(data, "prior", "mean"), mean, rtol=1e-4, atol=1e-5)
    residual = values(data, "prior_predictive", "y") - mean
    # Noise with E noise^2 = exp(2 * 0.3^2); 3,600 residuals in 300 groups.
    assert abs(np.mean(residual**2) / np.exp(0.18) - 1) < 0.2


# Names of dimensions ------------------------------------------------------------------------------


def test_coords_and_dims_of_the_user() -> None:
    x, y = linear_data()
    coords = {"data": [f"row {i}" for i in range(NUM_DATA)], "feature": ["a", "b"], "other": [1]}
    data = to_arviz(
        linear_draws(9),
        x,
        y,
        model=linear,
        coords=coords,
        dims={"weight": ["feature"]},
        posterior_predictive=True,
    )
    assert list(data["posterior"]["weight"].sel(feature="b").dims) == ["chain", "draw"]
    for group in ("posterior", "log_likelihood", "posterior_predictive", "observed_data"):
        assert list(data[group]["data"].values) == coords["data"]


def test_dims_override_plates() -> None:
    y = count_data()
    data = to_arviz(
        count_draws(9),
        y,
        model=counts,
        dims={"count": ["place"], "log_rate": (None, "one")},
        coords={"place": torch.arange(10, 13)},
    )
    assert data["log_likelihood"]["count"].dims == ("chain", "draw", "place", "year")
    assert data["posterior"]["log_rate"].dims == ("chain", "draw", "site", "one")
    assert list(data["observed_data"]["place"].values) == [10, 11, 12]


@pytest.mark.parametrize("name", ["y", "loc", "chain", "draw", "sample"])
def test_plate_with_a_name_that_is_taken(name: str) -> None:
    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate(name):  # with a size, Pyro itself would not let a site have the same name
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    coords = {name: list("abcdef")}
    data = to_arviz({"loc": torch.randn(10)}, torch.randn(6), model=model, coords=coords)
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", f"{name}_dim")
    assert list(data["observed_data"][f"{name}_dim"].values) == coords[name]
    arviz().summary(data)


def test_statistics_may_share_the_names_of_sites() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("lp", 2):
            temperature = pyro.sample("temperature", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(temperature.sum(), 1.0), obs=y)

    statistics = {"temperature": torch.ones(2, 10), "lp": torch.zeros(2, 10)}
    sampler = FakeSampler(
        {"temperature": torch.randn(2, 10, 2)}, model, torch.tensor(0.0), statistics=statistics
    )
    data = to_arviz(sampler, dims={"temperature": ["city"]})
    assert data["sample_stats"]["temperature"].dims == ("chain", "draw")
    assert data["posterior"]["temperature"].dims == ("chain", "draw", "city")


# ArviZ works with the result ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame")  # ArviZ 0.x with pandas 3
def test_summary_loo_and_compare() -> None:
    az = arviz()
    y = torch.randn(40) + 2.0
    data = to_arviz(FakeSampler(conjugate_posterior(y), global_only, y), posterior_predictive=True)
    summary = az.summary(data, round_to="none" if az.__version__.startswith("0.") else None)
    assert list(summary.index) == ["loc"]
    assert abs(summary["mean"].iloc[0] - float(y.mean())) < 0.05
    loo = az.loo(data, pointwise=True)
    elpd = getattr(loo, "elpd", None) or loo.elpd_loo
    # The leave-one-out predictive of a normal mean in closed form.
    precision = 39 + 0.01
    loc = (y.sum() - y) / precision
    exact = float(dist.Normal(loc, (1 + 1 / precision) ** 0.5).log_prob(y).sum())
    assert abs(elpd - exact) < 0.2

    other = to_arviz(FakeSampler(conjugate_posterior(y, 3.0), global_only, y, 3.0))
    comparison = az.compare({"wide": other, "right": data})
    assert list(comparison.index) == ["right", "wide"]


def test_round_trip_through_netcdf(tmp_path: Path) -> None:
    y = count_data()
    draws = count_draws(2, 10)
    statistics = {"diverging": torch.rand(2, 10) < 0.5, "lp": torch.randn(2, 10)}
    data = to_arviz(
        FakeSampler(draws, counts, y, statistics=statistics),
        posterior_predictive=True,
        prior=7,
        coords={"site": ["north", "south", "west"]},
    )
    data.to_netcdf(str(tmp_path / "posterior.nc"))
    loaded = arviz().from_netcdf(str(tmp_path / "posterior.nc"))
    assert (
        groups_of(loaded)
        == groups_of(data)
        == {
            "posterior",
            "sample_stats",
            "log_likelihood",
            "posterior_predictive",
            "prior",
            "prior_predictive",
            "observed_data",
        }
    )
    for group in groups_of(data):
        for name, variable in data[group].data_vars.items():
            again = loaded[group][name]
            assert again.dims == variable.dims
            assert again.dtype == variable.dtype
            np.testing.assert_array_equal(again.values, variable.values)
    assert list(loaded["observed_data"]["site"].values) == ["north", "south", "west"]
    assert loaded["posterior"].attrs["inference_library"] == "pyro_ext"
