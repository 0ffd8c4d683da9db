"""Conversion to ArviZ: what counts as an observation, under masks and conditions."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_ext.diagnostics import to_arviz
from tests.diagnostics.arviz_models import arviz, groups_of, values

KEPT = torch.tensor([True, False, True, True, False])
Y = torch.tensor([0.5, 99.0, -1.0, 2.0, 99.0])


def _draws(*leading: int) -> dict[str, Tensor]:
    return {"loc": 0.1 * torch.randn(*leading)}


# Masks --------------------------------------------------------------------------------------------


def masked_by_handler(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=2) as index, poutine.mask(mask=KEPT[index]):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y[index])


def masked_distribution(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0).expand([5]).mask(KEPT), obs=y)


def masked_inside(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        fn = dist.Normal(loc, 1.0).expand([5, 1]).mask(KEPT[:, None]).to_event(1)
        pyro.sample("y", fn, obs=y[:, None])


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_masked_points_do_not_enter_loo(subtests: pytest.Subtests) -> None:
    draws = _draws(200)
    expected = dist.Normal(draws["loc"][:, None], 1.0).log_prob(Y[KEPT])
    for model in (masked_by_handler, masked_distribution, masked_inside):
        with subtests.test(model.__name__):
            data = to_arviz(
                draws,
                Y,
                model=model,
                coords={"data": list("abcde")},
                posterior_predictive=True,
                prior=3,
            )
            for group in ("log_likelihood", "posterior_predictive", "prior_predictive"):
                assert data[group]["y"].dims[:3] == ("chain", "draw", "y_observation")
                assert data[group]["y"].shape[2] == 3
                assert list(data[group]["y_data"].values) == ["a", "c", "d"]
            logs = values(data, "log_likelihood", "y")[0]
            np.testing.assert_allclose(logs, expected, rtol=1e-5)
            np.testing.assert_array_equal(values(data, "observed_data", "y").ravel(), Y[KEPT])
            loo = arviz().loo(data, pointwise=True)
            assert loo.n_data_points == 3


def test_values_outside_of_the_support_count_only_where_they_are_not_hidden() -> None:
    def model(y: Tensor, mask: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            fn = dist.LogNormal(loc, 1.0).expand([5, 1]).mask(mask[:, None]).to_event(1)
            pyro.sample("y", fn, obs=y[:, None])

    y = torch.tensor([1.0, -1.0, 2.0, 1.0, -3.0])
    assert values(to_arviz(_draws(3), y, KEPT, model=model), "log_likelihood", "y").shape[-1] == 3
    with pytest.raises(ValueError, match="'y' has observed values outside the support"):
        to_arviz(_draws(3), y, ~KEPT, model=model)


def test_a_mask_of_several_dimensions_and_in_part_of_an_event() -> None:
    mask = torch.rand(3, 4) < 0.5
    inside = torch.tensor([True, False])
    mask[0, 0], mask[2, 3] = True, False

    def model(y: Tensor, counts: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 3, dim=-2), pyro.plate("column", 4, dim=-1), poutine.mask(mask=mask):
            fn = dist.Normal(loc, 1.0).expand([3, 4, 2]).mask(inside).to_event(1)
            pyro.sample("y", fn, obs=y)
            pyro.sample("count", dist.Poisson(loc.exp()), obs=counts)

    y, counts = torch.randn(3, 4, 2), torch.arange(12).reshape(3, 4)
    data = to_arviz(_draws(7), y, counts, model=model)
    assert data["observed_data"]["y"].dims == ("y_observation", "y_dim_0")
    rows, columns = np.nonzero(mask.numpy())
    for group in ("observed_data", "log_likelihood"):
        for name in ("y", "count"):
            assert list(data[group][f"{name}_row"].values) == list(rows)
            assert list(data[group][f"{name}_column"].values) == list(columns)
    observed = values(data, "observed_data", "y")
    np.testing.assert_array_equal(observed[:, 0], y[mask][:, 0])
    assert np.isnan(observed[:, 1]).all()
    assert values(data, "observed_data", "count").dtype == np.int64
    np.testing.assert_array_equal(values(data, "observed_data", "count"), counts[mask])


def test_imputed_values_are_posterior() -> None:
    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y, obs_mask=KEPT)

    draws = _draws(9) | {"y_unobserved": torch.randn(9, 5)}
    data = to_arviz(draws, Y, model=model)
    assert set(data["posterior"].data_vars) == {"loc", "y", "y_unobserved"}
    assert set(data["log_likelihood"].data_vars) == {"y_observed"}
    imputed = torch.where(KEPT, Y, draws["y_unobserved"])
    np.testing.assert_array_equal(values(data, "posterior", "y")[0], imputed)
    np.testing.assert_array_equal(values(data, "observed_data", "y_observed"), Y[KEPT])


def test_masks_of_a_model_without_draws_of_its_latent_sites() -> None:
    drawn = {"y": torch.randn(6, 5)}
    data = to_arviz(drawn, Y, model=masked_distribution, log_likelihood=False)
    assert groups_of(data) == {"posterior_predictive", "observed_data"}
    np.testing.assert_array_equal(values(data, "posterior_predictive", "y")[0], drawn["y"][:, KEPT])


def test_a_site_that_is_masked_out_is_no_observation() -> None:
    def model(y: Tensor, mask: bool | Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)
            with poutine.mask(mask=mask):
                pyro.sample("hidden", dist.Normal(loc, 1.0), obs=y)

    for mask in (False, torch.zeros(5, dtype=torch.bool)):
        data = to_arviz(_draws(9), Y, mask, model=model)
        for group in ("log_likelihood", "observed_data"):
            assert set(data[group].data_vars) == {"y"}
            assert data[group]["y"].dims[-1] == "data"


def test_a_mask_that_depends_on_the_draw() -> None:
    def model(y: Tensor) -> None:
        change = pyro.sample("change", dist.Uniform(0.0, 5.0))
        with pyro.plate("data", len(y)), poutine.mask(mask=torch.arange(5.0) < change):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    draws = {"change": torch.tensor([1.5, 2.5, 3.5])}
    with pytest.warns(UserWarning, match=r"masks of the sites \['y'\] differ between draws"):
        data = to_arviz(draws, Y, model=model)
    assert groups_of(data) == {"posterior", "observed_data"}
    np.testing.assert_array_equal(values(data, "observed_data", "y"), Y[:4])
    with pytest.raises(ValueError, match="differ between draws"):
        to_arviz(draws, Y, model=model, log_likelihood=["y"])


# Conditions ---------------------------------------------------------------------------------------


def _two_levels(y: Tensor | None = None) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", 5):
        y = pyro.sample("y", dist.Normal(loc, scale), obs=y)
        pyro.deterministic("residual", y - loc)


def test_conditioned_latent_sites_are_constants() -> None:
    model = pyro.condition(_two_levels, data={"scale": torch.tensor(0.01)})
    draws = _draws(300)
    data = to_arviz(draws, Y, model=model, posterior_predictive=True, prior=300, seed=0)
    assert set(data["log_likelihood"].data_vars) == {"y"}
    assert set(data["observed_data"].data_vars) == {"y"}
    assert set(data["posterior"].data_vars) == {"loc", "residual"}
    assert values(data, "constant_data", "scale") == pytest.approx(0.01)
    for group, location in (("posterior_predictive", "posterior"), ("prior_predictive", "prior")):
        assert set(data[group].data_vars) == {"y"}
        # The scale stays what it was conditioned to be.
        noise = values(data, group, "y") - values(data, location, "loc")[..., None]
        assert 0.008 < noise.std() < 0.012


def test_data_may_be_given_by_a_condition() -> None:
    both = pyro.condition(_two_levels, data={"y": Y, "scale": torch.tensor(0.5)})
    data = to_arviz(_draws(9), model=both)
    assert set(data["log_likelihood"].data_vars) == {"y"}
    assert set(data["observed_data"].data_vars) == {"y"}
    assert set(data["constant_data"].data_vars) == {"scale"}


def test_conditioned_data_on_which_other_data_depend() -> None:
    def model() -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        last = pyro.sample("y_0", dist.Normal(0.0, 1.0))
        pyro.sample("y_1", dist.Normal(slope * last, 1.0))

    conditioned = pyro.condition(model, data={"y_0": torch.tensor(1.0), "y_1": torch.tensor(0.5)})
    draws = {"slope": torch.randn(9)}
    assert set(to_arviz(draws, model=conditioned)["log_likelihood"].data_vars) == {"y_1"}
    data = to_arviz(draws, model=conditioned, observed=["y_0"])
    assert set(data["log_likelihood"].data_vars) == {"y_0", "y_1"}
    assert "constant_data" not in groups_of(data)
    with pytest.raises(ValueError, match=r"observed names \['slope'\], but the observed sites"):
        to_arviz(draws, model=conditioned, observed="slope")
    with pytest.raises(TypeError, match="observed must be a name"):
        to_arviz(draws, model=conditioned, observed=3)
    with pytest.raises(ValueError, match="observed needs a model"):
        to_arviz(draws, observed=["y_0"])


def test_residuals_are_no_data() -> None:
    """They were those at a draw from the prior, another one at each conversion."""

    def model(x: Tensor, y: Tensor, size: int | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            pyro.sample("residual", dist.Normal(0.0, 1.0), obs=y[index] - slope * x[index])
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[index])

    x, y = torch.randn(5), torch.randn(5)
    draws = {"slope": torch.randn(6)}
    for size in (None, 2):
        with pytest.warns(UserWarning, match=r"observed_data lacks the sites \['residual'\]"):
            data = to_arviz(draws, x, y, size, model=model)
        np.testing.assert_array_equal(values(data, "observed_data", "x"), x)
        assert "residual" not in data["observed_data"]
        expected = dist.Normal(0.0, 1.0).log_prob(y - draws["slope"][:, None] * x)
        actual = values(data, "log_likelihood", "residual")[0]
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_a_prior_under_which_a_matrix_is_rarely_positive() -> None:
    """The model runs at draws from it; where it could not, it is run again."""

    def model(y: Tensor) -> None:
        correlation = pyro.sample("correlation", dist.Normal(0.0, 5.0))
        matrix = torch.eye(2) + correlation * (1.0 - torch.eye(2))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), matrix), obs=y)
        pyro.deterministic("square", correlation**2)

    y, draws = torch.randn(4, 2), {"correlation": torch.tensor([0.1, -0.3])}
    for seed in range(5):
        torch.manual_seed(seed)
        data = to_arviz(draws, y, model=model)
        np.testing.assert_array_equal(values(data, "observed_data", "y"), y)
