"""Conversion to ArviZ of models with discrete latent sites, drawn or summed out."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from torch import Tensor

from pyro_ext import inference
from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, EnumeratedSites, Gibbs
from tests.diagnostics.arviz_models import arviz, groups_of, values

Y = torch.tensor([-2.0, -1.5, 2.2, 1.9])


def mixture(y: Tensor, subsample_size: int | None = None) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("kinds", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y), subsample_size=subsample_size) as index:
        kind = pyro.sample("kind", dist.Categorical(weights))
        pyro.deterministic("own", loc[kind])
        pyro.sample("y", dist.Normal(loc[kind], 1.0), obs=y[index])
    pyro.deterministic("gap", loc[1] - loc[0], event_dim=0)


def _mixture_draws(number: int) -> dict[str, Tensor]:
    return {
        "weights": dist.Dirichlet(torch.ones(2)).sample((number,)),
        "loc": torch.tensor([-2.0, 2.0]) + 0.1 * torch.randn(number, 2),
    }


def test_draws_of_discrete_sites_condition_the_likelihood() -> None:
    def others(_: object) -> dict[str, Tensor]:
        return {name: value[0] for name, value in _mixture_draws(1).items()}

    blocks = [(others, ["weights", "loc"]), (EnumeratedSites(), ["kind"])]
    mcmc = MCMC(Gibbs(blocks, model=mixture), num_samples=8, seed=0, progress=False).run(Y)
    data = to_arviz(mcmc, posterior_predictive=True, prior=5)
    assert {"weights", "loc", "kind", "own", "gap"} == set(data["posterior"].data_vars)
    kind = torch.tensor(values(data, "posterior", "kind")[0])
    assert kind.dtype == torch.int64
    loc = torch.tensor(values(data, "posterior", "loc")[0]).gather(1, kind)
    expected = dist.Normal(loc, 1.0).log_prob(Y)
    np.testing.assert_allclose(values(data, "log_likelihood", "y")[0], expected, rtol=1e-5)
    np.testing.assert_allclose(values(data, "posterior", "own")[0], loc)
    assert values(data, "posterior_predictive", "y").shape == (1, 8, 4)
    assert values(data, "prior", "kind").shape == (1, 5, 4)


@pytest.mark.parametrize("subsample_size", [None, 3])
@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_discrete_sites_without_draws_are_summed_out(subsample_size: int | None) -> None:
    draws = _mixture_draws(200)
    data = to_arviz(draws, Y, subsample_size, model=mixture, posterior_predictive=True, seed=0)
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "data")
    components = dist.Normal(draws["loc"][:, None], 1.0)
    parts = dist.Categorical(draws["weights"][:, None])
    exact = dist.MixtureSameFamily(parts, components).log_prob(Y)
    np.testing.assert_allclose(values(data, "log_likelihood", "y")[0], exact, rtol=1e-4)
    assert set(data["posterior"].data_vars) == {"weights", "loc", "gap"}
    np.testing.assert_array_equal(values(data, "observed_data", "y"), Y)
    assert values(data, "posterior_predictive", "y").shape == (1, 200, 4)
    arviz().loo(data)


@config_enumerate
def chain(y: Tensor, lengths: Tensor) -> None:
    """Series of two hidden states, of different lengths."""
    move = pyro.sample("move", dist.Beta(torch.ones(2), 1.0).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    with pyro.plate("series", len(y)):
        state: Any = 0
        for t in pyro.markov(range(y.shape[1])):
            with poutine.mask(mask=t < lengths):
                state = pyro.sample(f"state_{t}", dist.Bernoulli(Vindex(move)[..., state])).long()
                pyro.sample(f"y_{t}", dist.Normal(bias + state, 1.0), obs=y[:, t])
        pyro.sample("other", dist.Normal(bias, 1.0), obs=y[:, 0])


def test_hidden_markov_model_has_a_likelihood_for_each_series() -> None:
    y, lengths = torch.randn(3, 4), torch.tensor([4, 2, 0])
    draws = {"move": torch.rand(6, 2), "bias": torch.randn(6)}
    data = to_arviz(draws, y, lengths, model=chain)
    assert set(data["log_likelihood"].data_vars) == {"series_joint", "other"}
    # All sequences of states, one by one; the third series has no step at all.
    expected = np.full((6, 2), -np.inf)
    for n, (move, bias) in enumerate(zip(draws["move"], draws["bias"], strict=True)):
        for series in range(2):
            for states in torch.cartesian_prod(*[torch.arange(2)] * int(lengths[series])):
                total, last = 0.0, 0
                for t, state in enumerate(states):
                    total += float(dist.Bernoulli(move[last]).log_prob(state.float()))
                    total += float(dist.Normal(bias + state, 1.0).log_prob(y[series, t]))
                    last = int(state)
                expected[n, series] = np.logaddexp(expected[n, series], total)
    np.testing.assert_allclose(
        values(data, "log_likelihood", "series_joint")[0], expected, rtol=1e-4
    )
    assert list(data["log_likelihood"]["series_joint_series"].values) == [0, 1]
    assert data["observed_data"]["y_2"].shape == (1,)


def test_a_model_that_branches_on_a_discrete_draw() -> None:
    def model(y: Tensor) -> None:
        number = pyro.sample("number", dist.Poisson(3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(float(number), 1.0), obs=y)

    number = torch.arange(4.0)
    data = to_arviz({"number": number}, Y, model=model)
    expected = dist.Normal(number[:, None], 1.0).log_prob(Y)
    np.testing.assert_allclose(values(data, "log_likelihood", "y")[0], expected, rtol=1e-5)


def test_points_within_an_element_share_a_discrete_site() -> None:
    def annotated(y: Tensor) -> None:
        accuracy = pyro.sample("accuracy", dist.Beta(2.0, 2.0))
        with pyro.plate("items", 3, dim=-2):
            truth = pyro.sample("truth", dist.Bernoulli(0.5))
            with pyro.plate("annotators", 4, dim=-1):
                share = torch.where(truth == 1.0, accuracy, 1.0 - accuracy)
                pyro.sample("y", dist.Bernoulli(share), obs=y)

    y = torch.bernoulli(torch.full((3, 4), 0.6))
    accuracy = torch.rand(5)
    data = to_arviz({"accuracy": accuracy}, y, model=annotated)
    assert data["log_likelihood"]["items_joint"].dims == ("chain", "draw", "items")
    ones = y.sum(1)
    a, b = accuracy[:, None].log(), (1.0 - accuracy)[:, None].log()
    true, false = ones * a + (4 - ones) * b, ones * b + (4 - ones) * a
    expected = torch.logaddexp(true, false) + np.log(0.5)
    np.testing.assert_allclose(
        values(data, "log_likelihood", "items_joint")[0], expected, rtol=1e-4
    )
    assert data["observed_data"]["y"].dims == ("items", "annotators")


def test_local_draws_tell_of_a_discrete_site_that_is_summed_out() -> None:
    centers = torch.tensor([-1.0, 2.0])

    def model(y: Tensor) -> None:
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(y)):
            kind = pyro.sample("kind", dist.Bernoulli(share)).long()
            level = pyro.sample("level", dist.Normal(centers[kind], 1.0))
            pyro.sample("y", dist.Normal(level + kind, 1.0), obs=y)

    share, level = torch.rand(6), torch.randn(6, 4)
    data = to_arviz({"share": share, "level": level}, Y, model=model)
    prior = torch.stack([1.0 - share, share], -1)[:, None].log()
    prior = prior + dist.Normal(centers, 1.0).log_prob(level[..., None])
    likelihood = dist.Normal(level[..., None] + torch.arange(2), 1.0).log_prob(Y[:, None])
    expected = (prior + likelihood).logsumexp(-1) - prior.logsumexp(-1)
    np.testing.assert_allclose(values(data, "log_likelihood", "y")[0], expected, rtol=1e-4)


def test_likelihoods_that_cannot_be_split_are_left_out_with_a_warning() -> None:
    def shared(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        sign = pyro.sample("sign", dist.Bernoulli(0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc * (2 * sign - 1), 1.0), obs=y)

    def counted(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        number = pyro.sample("number", dist.Poisson(3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc * number, 1.0), obs=y)

    for model, reason in [
        (shared, r"sites \['y'\] have no likelihood of single points"),
        (counted, r"discrete sites \['number'\].*cannot be summed out"),
    ]:
        with pytest.warns(UserWarning, match=reason):
            data = to_arviz({"loc": torch.randn(5)}, Y, model=model)
        assert groups_of(data) == {"posterior", "observed_data"}
        with pytest.raises(ValueError, match=reason):
            to_arviz({"loc": torch.randn(5)}, Y, model=model, log_likelihood=["y"])


def test_a_guide_from_which_discrete_sites_are_hidden() -> None:
    guide = AutoNormal(poutine.block(mixture, hide=["kind"]))
    guide(Y)
    data = to_arviz(guide, Y, num_samples=6)
    assert values(data, "log_likelihood", "y").shape == (1, 6, 4)
    assert set(data["posterior"].data_vars) == {"weights", "loc", "gap"}


@pytest.mark.parametrize("is_own", [False, True])
def test_nuts_with_enumeration(is_own: bool) -> None:
    """The discrete site is summed out in the run, and in the likelihood of each point."""
    mcmc: Any
    if is_own:
        mcmc = MCMC(inference.NUTS(mixture, max_tree_depth=3), 6, 4, progress=False)
    else:
        mcmc = PyroMCMC(NUTS(mixture, max_plate_nesting=1), 6, 4, disable_progbar=True)
    mcmc.run(Y)
    data = to_arviz(mcmc)
    assert values(data, "log_likelihood", "y").shape == (1, 6, 4)
    assert set(data["posterior"].data_vars) == {"weights", "loc", "gap"}
    np.testing.assert_array_equal(values(data, "observed_data", "y"), Y)
