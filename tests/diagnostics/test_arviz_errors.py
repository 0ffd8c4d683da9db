"""Conversion to ArviZ: what it refuses, and what it says then."""

import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_ext.diagnostics import to_arviz
from pyro_ext.potential import Potential
from tests.diagnostics.arviz_models import (
    NUM_DATA,
    FakeSampler,
    global_only,
    groups_of,
    linear,
    linear_data,
    linear_draws,
)


def test_model_that_cannot_be_evaluated() -> None:
    draws = {"loc": torch.ones(10)}
    with pytest.raises(ValueError, match=r"missing 1 required.*pass log_likelihood=False"):
        to_arviz(draws, model=global_only)
    with pytest.warns(UserWarning, match=r"cannot be evaluated.*missing 1 required"):
        data = to_arviz(draws, model=global_only, log_likelihood=False)
    assert groups_of(data) == {"posterior"}


def test_a_random_model_still_has_its_draws() -> None:
    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.deterministic("noisy", loc + torch.randn(()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    draws = {"loc": torch.randn(6)}
    with pytest.warns(UserWarning, match=r"\['noisy'\] are left out: model gives two results"):
        data = to_arviz(draws, torch.randn(3), model=model, log_likelihood=False)
    assert groups_of(data) == {"posterior", "observed_data"}
    assert set(data["posterior"].data_vars) == {"loc"}


def test_wrong_options(subtests: pytest.Subtests) -> None:
    for options, error, message in [
        ({"log_likelihood": ["z"]}, ValueError, "log_likelihood names ['z']"),
        ({"posterior_predictive": {"y": np.zeros((6, 7))}}, ValueError, "['y'] has the shape (7,)"),
        ({"posterior_predictive": {"y": np.zeros((7, 3))}}, ValueError, "(1, 6, ...) or (6, ...)"),
        ({"prior": {"noise": np.zeros((3, 2))}}, ValueError, "prior['noise'] has the shape (2,)"),
        ({"dims": {"weigth": ["a"]}}, ValueError, "dims names ['weigth']"),
        ({"dims": {"weight": "a"}}, TypeError, "dims['weight'] must be a list"),
        ({"dims": {"weight": ["a", "b"]}}, ValueError, "dims['weight'] has 2 names"),
        ({"dims": {"weight": ["draw"]}}, ValueError, "must not name ['draw']"),
        ({"dims": {"weight": ["noise"]}}, ValueError, "which is a variable of posterior"),
        ({"dims": {"weight": ["data"]}}, ValueError, "dimension 'data' has size"),
        ({"coords": {"data": range(3)}}, ValueError, "3 in coords['data']"),
        ({"coords": {"data": np.zeros((12, 1))}}, ValueError, "coords['data'] must be a list"),
        ({"coords": {"data": "abc"}}, TypeError, "coords['data'] must be a list"),
    ]:
        with subtests.test(message):
            x, y = linear_data()
            with pytest.raises(error, match=re.escape(message)):
                to_arviz(linear_draws(6), x, y, **{"model": linear, **options})


def test_wrong_posterior(subtests: pytest.Subtests) -> None:
    for draws, error, message in [
        ({}, ValueError, "posterior has no variables"),
        ({"a": torch.zeros(())}, ValueError, "posterior['a'] has shape ()"),
        ({"a": torch.zeros(0)}, ValueError, "posterior['a'] has shape (0,)"),
        ({"a": torch.zeros(3), "b": torch.zeros(4)}, ValueError, "posterior['b'] has shape (4,)"),
        ({"a": ["one"]}, TypeError, "posterior['a'] must be a tensor or an array"),
        ({3: torch.zeros(3)}, TypeError, "names in posterior must be strings"),
        (3, TypeError, "posterior must be a sampler"),
    ]:
        with subtests.test(message), pytest.raises(error, match=re.escape(message)):
            to_arviz(draws)


def test_draws_model_and_arguments_belong_together(subtests: pytest.Subtests) -> None:
    x, y = linear_data()
    draws = linear_draws(5)
    twice = {"y": torch.zeros(5, NUM_DATA)}
    wide, subsampled = {"weight": torch.zeros(5, 3)}, {"y": torch.zeros(5, 4)}
    weight, both = {"weight": draws["weight"]}, {"model": linear, "posterior_predictive": twice}
    for own, args, options, message in [
        (draws | wide, (x, y), {"model": linear}, r"posterior\['weight'\] has the shape \(3,\)"),
        (weight, (x, y), {"model": linear}, r"lacks draws of the latent sites \['noise'\]"),
        (draws | subsampled, (x, y, 4), {"model": linear}, "rather than a subsample"),
        (draws, (x, y), {}, "no model: pass it as model="),
        (draws, (), {"prior": 3}, "prior needs a model"),
        (draws, (), {"posterior_predictive": True}, "posterior_predictive needs a model"),
        (draws, (x,), {"model": Potential(linear, x, y)}, "model is a Potential"),
        (draws | twice, (x, y), both, "pass them in one place"),
    ]:
        with subtests.test(message), pytest.raises(ValueError, match=message):
            to_arviz(own, *args, **options)


def test_sampler_that_has_not_run() -> None:
    with pytest.raises(ValueError, match="call its run method first"):
        to_arviz(MCMC(NUTS(global_only), num_samples=3))
    with pytest.raises(ValueError, match="wanted a value for each draw"):
        to_arviz(FakeSampler(linear_draws(2, 5), statistics={"lp": torch.zeros(2, 4)}))
