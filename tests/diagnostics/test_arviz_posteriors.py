"""Conversion to ArviZ of samplers and of guides."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor

from pyro_ext.diagnostics import to_arviz
from tests.diagnostics.arviz_models import (
    FakeSampler,
    arviz,
    count_data,
    counts,
    global_only,
    groups_of,
    linear,
    linear_data,
    linear_draws,
    linear_log_likelihood,
    values,
)

# Samplers -----------------------------------------------------------------------------------------


def test_sampler_on_other_data() -> None:
    x, y = linear_data()
    draws = linear_draws(2, 10)
    new_x, new_y = torch.randn(7, 2), torch.randn(7)
    data = to_arviz(FakeSampler(draws, linear, x, y), new_x, new_y)
    expected = linear_log_likelihood(draws, new_x, new_y)
    np.testing.assert_allclose(values(data, "log_likelihood", "y"), expected, rtol=1e-3, atol=1e-5)


def test_sampler_without_a_model() -> None:
    data = to_arviz(FakeSampler(linear_draws(2, 10)))
    assert groups_of(data) == {"posterior"}
    with pytest.raises(ValueError, match="log_likelihood needs a model"):
        to_arviz(FakeSampler(linear_draws(2, 10)), log_likelihood=["y"])


def test_sampler_with_get_samples_only() -> None:
    class Minimal:
        def get_samples(self, group_by_chain: bool = False) -> dict[str, Tensor]:
            return linear_draws(2, 10)

    x, y = linear_data()
    assert groups_of(to_arviz(Minimal())) == {"posterior"}
    assert "log_likelihood" in groups_of(to_arviz(Minimal(), x, y, model=linear))


def run_pyro(kernel: MCMCKernel, *args: Any, **options: Any) -> MCMC:
    mcmc = MCMC(kernel, **{"num_samples": 10, "warmup_steps": 10, **options}, disable_progbar=True)
    mcmc.run(*args)
    return mcmc


def test_nuts_of_pyro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.cpu_count", lambda: 1)
    x, y = linear_data()
    with pytest.warns(UserWarning, match="available_cpu"):
        mcmc = run_pyro(NUTS(linear), x, y, num_chains=2)
    data = to_arviz(mcmc)
    assert groups_of(data) == {"posterior", "sample_stats", "log_likelihood", "observed_data"}
    draws = mcmc.get_samples(group_by_chain=True)
    np.testing.assert_array_equal(values(data, "posterior", "weight"), draws["weight"].numpy())
    expected = linear_log_likelihood(draws, x, y)
    np.testing.assert_allclose(values(data, "log_likelihood", "y"), expected, rtol=1e-3, atol=1e-5)
    assert "mean" in data["posterior"]
    assert values(data, "sample_stats", "diverging").shape == (2, 10)


def test_divergences_of_pyro_and_few_draws() -> None:
    kernel = NUTS(global_only, step_size=1e6, adapt_step_size=False)
    mcmc = run_pyro(kernel, torch.randn(5), num_samples=3, warmup_steps=0)
    assert values(to_arviz(mcmc), "sample_stats", "diverging").tolist() == [[True] * 3]


def test_potential_function_under_pyro() -> None:
    kernel = HMC(potential_fn=lambda z: 0.5 * (z["a"] ** 2).sum(), step_size=0.1)
    mcmc = run_pyro(kernel, initial_params={"a": torch.zeros(3)})
    assert groups_of(to_arviz(mcmc)) == {"posterior", "sample_stats"}


def test_custom_kernel_under_pyro() -> None:
    class Walk(MCMCKernel):  # notes no divergences
        def __init__(self, model: Callable[..., Any]) -> None:
            self.model, self.transforms = model, {}

        @property
        def initial_params(self) -> dict[str, Tensor]:
            return {"loc": torch.zeros(())}

        @initial_params.setter
        def initial_params(self, params: dict[str, Tensor]) -> None: ...

        def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None: ...

        def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value + torch.randn(()) for name, value in params.items()}

    y = torch.randn(5)
    data = to_arviz(run_pyro(Walk(global_only), y))
    assert groups_of(data) == {"posterior", "log_likelihood", "observed_data"}


def test_own_mcmc() -> None:
    from pyro_ext.inference import MCMC, SGLD

    x, y = linear_data()
    kernel = SGLD(linear, step_size=1e-3)
    mcmc = MCMC(
        kernel, num_samples=30, warmup_steps=400, num_chains=2, thinning=60, seed=0, progress=False
    ).run(x, y, 5)
    data = to_arviz(mcmc, posterior_predictive=True)
    draws = mcmc.get_samples(group_by_chain=True)
    assert values(data, "posterior", "weight").shape == (2, 30, 2)
    np.testing.assert_allclose(
        values(data, "log_likelihood", "y"),
        linear_log_likelihood(draws, x, y),
        rtol=1e-3,
        atol=1e-4,
    )
    assert data["posterior"]["mean"].dims == ("chain", "draw", "data")
    for statistic in data["sample_stats"].data_vars.values():
        assert statistic.shape == (2, 30)
    arviz().summary(data)


def test_chains_keep_their_numbers_where_one_is_left_out(tmp_path: Path) -> None:
    from pyro_ext.inference import MCMC, SGLD

    def cliff(z: dict[str, Tensor]) -> Tensor:
        slope = torch.where(z["x"] > 1.0, torch.nan, -0.1)
        return (z["x"] * slope).sum()

    start = {"x": torch.tensor([[-1e3], [-2.0], [-1e3], [-1e3]])}
    mcmc = MCMC(
        SGLD(potential_fn=cliff, step_size=0.1),
        num_samples=20,
        num_chains=4,
        thinning=2,
        initial_params=start,
        seed=0,
        progress=False,
        checkpoint=tmp_path,
    )
    with pytest.warns(RuntimeWarning, match=r"chains \[1\] of 4"):
        mcmc.run()
    for posterior in (mcmc, tmp_path):
        data = to_arviz(posterior)
        for group in ("posterior", "sample_stats"):
            assert list(data[group]["chain"].values) == [0, 2, 3]
    named = to_arviz(mcmc, coords={"chain": ["a", "b", "c"]})
    assert list(named["posterior"]["chain"].values) == ["a", "b", "c"]


def test_chains_of_the_prior_are_others() -> None:
    sampler = FakeSampler({"loc": torch.randn(2, 5)}, global_only, torch.randn(4))
    sampler.chain_numbers = (1, 3)
    data = to_arviz(sampler, prior=7, posterior_predictive=True)
    for group in ("posterior", "log_likelihood", "posterior_predictive"):
        assert list(data[group]["chain"].values) == [1, 3]
    assert list(data["prior_predictive"]["chain"].values) == [0]


def test_a_conversion_of_arviz_itself_names_ours() -> None:
    from pyro_ext.inference import MCMC, SGLD

    if not hasattr(arviz(), "from_pyro"):
        pytest.skip("ArviZ 1 has no from_pyro")
    mcmc = MCMC(SGLD(global_only, step_size=1e-3), 2, progress=False).run(torch.randn(5))
    with pytest.raises(AttributeError, match=r"diagnostics.to_arviz\(mcmc\)"):
        arviz().from_pyro(mcmc)


# Guides -------------------------------------------------------------------------------------------


def train(model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> None:
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(5):
        svi.step(*args)


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal, AutoDelta])
def test_automatic_guide(kind: Any) -> None:
    x, y = linear_data()
    guide = kind(linear)
    train(linear, guide, x, y)
    data = to_arviz(guide, x, y, num_samples=200, seed=0)
    assert groups_of(data) == {"posterior", "log_likelihood", "observed_data"}
    assert set(data["posterior"].data_vars) == {"weight", "noise", "mean"}
    draws = {name: torch.tensor(values(data, "posterior", name)) for name in ("weight", "noise")}
    assert draws["weight"].shape == (1, 200, 2)
    expected = linear_log_likelihood(draws, x, y)
    np.testing.assert_allclose(values(data, "log_likelihood", "y"), expected, rtol=1e-3, atol=1e-5)
    median = guide.median(x, y)["weight"].detach()
    if kind is AutoDelta:
        assert (draws["weight"] == median).all()
    else:  # a standard deviation of 0.1, so a standard error of 0.007
        assert (draws["weight"].mean((0, 1)) - median).abs().max() < 0.04


def test_guide_over_subsampled_plates() -> None:
    y = count_data()
    guide = AutoNormal(counts)
    guide(y, (2, 3))
    loc = torch.tensor([[-3.0], [0.0], [3.0]])
    with torch.no_grad():
        guide.locs.log_rate.copy_(loc)
    data = to_arviz(guide, y, (2, 3), num_samples=50, seed=0, log_likelihood=False)
    drawn = values(data, "posterior", "log_rate")
    assert drawn.shape == (1, 50, 3, 1)
    # Each element of the plate has its own draws: around its own location, by 0.1.
    assert np.abs(drawn.mean((0, 1)) - loc.numpy()).max() < 0.1
    assert np.all(np.abs(drawn.std((0, 1)) - 0.1) < 0.05)


@pytest.mark.parametrize("has_helper", [True, False])
def test_guide_keeps_what_blocks_share(has_helper: bool) -> None:
    def plates() -> tuple[pyro.plate, pyro.plate]:
        return pyro.plate("row", 5, subsample_size=2, dim=-2), pyro.plate("column", 3, 2, dim=-1)

    def model(y: Tensor) -> None:
        rows, columns = plates()
        pyro.sample("shift", dist.Normal(0.0, 1.0))
        with rows as row:
            pyro.sample("local", dist.Normal(0.0, 1.0))
            with columns as column:
                inner = pyro.sample("inner", dist.Normal(0.0, 1.0))
                pyro.sample("y", dist.Normal(inner, 1.0), obs=y[row][:, column])

    def guide(y: Tensor) -> None:
        rows, columns = plates()
        start = torch.randn(())
        if has_helper:
            start = pyro.sample("helper", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        shift = pyro.sample("shift", dist.Delta(start))
        with rows as row:
            center = start if has_helper else shift
            local = pyro.sample("local", dist.Normal(center + row[:, None], 0.1))
            with columns as column:
                pyro.sample("inner", dist.Delta(local + 100.0 * column))

    data = to_arviz(guide, torch.randn(5, 3), model=model, num_samples=4)
    assert set(data["posterior"].data_vars) == {"shift", "local", "inner"}
    shift, local = values(data, "posterior", "shift"), values(data, "posterior", "local")
    assert np.abs(local[..., 0] - shift[..., None] - np.arange(5)).max() < 0.6
    # The last block of an uneven plate draws its first elements once more.
    inner = values(data, "posterior", "inner") - 100.0 * np.arange(3)
    np.testing.assert_allclose(inner, np.broadcast_to(local, inner.shape), atol=1e-4)


def test_guide_written_by_hand() -> None:
    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("weight", dist.Normal(pyro.param("loc", torch.ones(2)), 0.1).to_event(1))
        pyro.sample("noise", dist.LogNormal(0.0, 0.1))

    x, y = linear_data()
    alone = to_arviz(guide, x, y, num_samples=20)
    assert groups_of(alone) == {"posterior"}
    data = to_arviz(guide, x, y, model=linear, num_samples=20)
    assert groups_of(data) == {"posterior", "log_likelihood", "observed_data"}
    assert set(data["posterior"].data_vars) == {"weight", "noise", "mean"}


def test_guide_as_a_module() -> None:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = PyroSample(dist.Normal(0.0, 1.0))

        def forward(self, y: Tensor) -> None:
            loc = self.loc
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.center = PyroParam(torch.tensor(2.0))

        def forward(self, y: Tensor) -> None:
            pyro.sample("loc", dist.Normal(self.center, 0.1))

    y = torch.randn(5)
    data = to_arviz(Guide(), y, model=Model(), num_samples=30, seed=0)
    assert abs(values(data, "posterior", "loc").mean() - 2.0) < 0.1
    assert values(data, "log_likelihood", "y").shape == (1, 30, 5)
