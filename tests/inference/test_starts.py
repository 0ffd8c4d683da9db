"""Where chains start: values, guides, earlier runs, checkpoints."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch.distributions import constraints

from pyro_ext import inference
from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, SGLD
from pyro_ext.posterior.draws import Context
from pyro_ext.posterior.starts import constrained_start
from pyro_ext.potential import WeightedPotential
from tests.inference.models import normal


def first_draws(x, start, num_chains=3):
    """Draws after a step too short to move."""
    kernel = SGLD(normal, step_size=1e-12, temperature=0.0)
    options = {"num_chains": num_chains, "initial_params": start, "seed": 0, "progress": False}
    return {k: v[:, 0] for k, v in MCMC(kernel, 1, **options).run(x).get_samples(True).items()}


def test_a_guide(x):
    guide = AutoNormal(normal)
    guide(x)
    starts = first_draws(x, guide)
    assert starts["loc"].shape == (3, 2) and (starts["scale"] > 0).all()
    assert len(starts["loc"].unique()) == 6
    again = first_draws(x, guide)
    torch.testing.assert_close(starts, again)
    delta = AutoDelta(normal)
    delta(x)
    starts = first_draws(x, delta)
    torch.testing.assert_close(starts["loc"], delta.median()["loc"].expand(3, 2), atol=1e-4, rtol=0)


def test_a_guide_written_by_hand(x):
    def guide(x):
        loc = pyro.param("loc_loc", torch.tensor([5.0, -5.0]))
        scale = pyro.param("scale_loc", torch.tensor(0.7), constraint=constraints.positive)
        pyro.sample("loc", dist.Normal(loc, 1e-3).to_event(1))
        pyro.sample("scale", dist.Delta(scale))

    expected = torch.tensor([5.0, -5.0]).expand(3, 2)
    torch.testing.assert_close(first_draws(x, guide)["loc"], expected, atol=0.02, rtol=0)


def test_an_earlier_run(x, tmp_path):
    options = {"num_chains": 3, "seed": 1, "progress": False}
    earlier = MCMC(SGLD(normal, step_size=1e-3), 20, checkpoint=tmp_path, **options).run(x)
    last = earlier.get_samples(True)
    for start in (earlier, tmp_path, str(tmp_path)):
        starts = first_draws(x, start)
        for name in ("loc", "scale"):
            torch.testing.assert_close(starts[name], last[name][:, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_chains", [1, 2, 5, 7])
def test_another_number_of_chains_takes_late_draws_of_all(x, num_chains):
    options = {"num_chains": 3, "seed": 1, "progress": False}
    earlier = MCMC(SGLD(normal, step_size=1e-3), 20, **options).run(x)
    starts = first_draws(x, earlier, num_chains)
    late = earlier.get_samples(True)["loc"][:, 10:].reshape(-1, 2)
    nearest = torch.cdist(starts["loc"], late).min(1)
    assert (nearest.values < 1e-3).all() and len(nearest.indices.unique()) == num_chains


def test_pyros_driver_and_kernels(x):
    mcmc = PyroMCMC(NUTS(normal), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(x)
    last = mcmc.get_samples(group_by_chain=True)["loc"][0, -1]
    torch.testing.assert_close(first_draws(x, mcmc, 1)["loc"][0], last, atol=1e-4, rtol=1e-4)
    guide = AutoDelta(normal)
    guide(x)
    ours = MCMC(NUTS(normal), 3, warmup_steps=3, num_chains=2, initial_params=guide, progress=False)
    assert ours.run(x).get_samples(True)["loc"].shape == (2, 3, 2)


def test_errors(x):
    with pytest.raises(RuntimeError, match="cannot be read"):
        MCMC(SGLD(normal), 1, initial_params="/nowhere", progress=False).run(x)
    with pytest.raises(RuntimeError, match="no draws yet"):
        MCMC(SGLD(normal), 1, initial_params=MCMC(SGLD(normal), 1), progress=False).run(x)


# Around a mode ------------------------------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize("kernel_type", [SGLD, NUTS])
def test_around_a_mode(kernel_type, float64):
    """Draws with twice the exact standard deviations: 400 give each within 5 standard errors."""
    x = 5.0 + torch.randn(40, 2)

    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 100.0).to_event(1))
        pyro.sample("scale", dist.LogNormal(3.0, 0.5))
        covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(loc, covariance), obs=x)

    context, known = Context(model, (x,), {}), ()
    if kernel_type is SGLD:
        kernel = SGLD(model)
        kernel.setup(0, x)
        known = kernel.potential, kernel.find_laplace
    starts = constrained_start("laplace", 400, 0, context, *known)
    loc, scale = starts["loc"], starts["scale"].log()
    exact = 4.0 * torch.tensor([[1.0, 0.9], [0.9, 1.0]]) / 40.0
    assert (loc.T.cov() - exact).abs().max() < 5.0 * exact[0, 0] * 2**0.5 / 20.0
    assert (loc.mean(0) - x.mean(0)).abs().max() < 5.0 * exact[0, 0] ** 0.5 / 20.0 + 1e-3
    assert abs(scale.std() - 1.0) < 5.0 / 800**0.5
    assert abs(scale.mean() - 3.0) < 5.0 / 20.0
    again = constrained_start("laplace", 3, 0, context, *known)
    torch.testing.assert_close(again["loc"], loc[:3])  # whatever the number of chains


def test_runs_that_start_around_a_mode(x):
    starts = first_draws(x, "laplace")
    assert len(starts["loc"].unique()) == 6 and (starts["scale"] > 0).all()
    assert (starts["loc"] - x.mean(0)).abs().max() < 1.5
    options = {"initial_params": "laplace", "progress": False}
    ours = MCMC(NUTS(normal), 3, 3, 2, **options)
    assert ours.run(x).get_samples(True)["loc"].shape == (2, 3, 2)
    kernel = SGLD(potential_fn=lambda z: z["x"].square().sum())
    kernel.initial_params = {"x": torch.zeros(2)}
    with pytest.raises(ValueError, match="initial_params='laplace' needs a kernel with a model"):
        MCMC(kernel, 1, **options).run()


# Starts where the density is finite, in models where hardly any other point has one --------------


def far_bounds(y):
    """The support of the observed value moves with the latent one."""
    x = pyro.sample("x", dist.Normal(0.0, 100.0))
    pyro.sample("y", dist.Uniform(x, x + 1.0), obs=y)


def falling(y):
    """The numbers of susceptible people in Pyro's SIR models: flat, and they may only fall."""
    size = pyro.sample("x", dist.Uniform(0.0, 100.0).mask(False).expand([len(y)]).to_event(1))
    is_possible = (size.diff() < 0.0).all()
    pyro.factor("y", torch.where(is_possible, -(size - y).square().sum(), -torch.inf))


MODELS = {
    "bounds": (far_bounds, torch.tensor(200.0), torch.tensor(199.5)),
    "falling": (falling, torch.linspace(90.0, 20.0, 12), torch.linspace(90.0, 10.0, 12)),
}


@pytest.mark.parametrize("name", MODELS)
def test_starts_that_are_given_are_all_that_have_to_be_finite(name, subtests):
    model, y, x = MODELS[name]
    tiny = {"step_size": 1e-6, "adapt_step_size": False, "max_tree_depth": 1}
    ours = inference.NUTS(model, backend="eager", **tiny)
    at_value = ours.replace(init_strategy=init_to_value(values={"x": x}))

    def drawn(kernel, start=None, driver=MCMC, **options):
        options = options if driver is PyroMCMC else options | {"progress": False, "seed": 0}
        mcmc = driver(kernel, 2, 0, initial_params=start, **options)
        mcmc.run(y)
        torch.testing.assert_close(mcmc.get_samples()["x"][-1], x, atol=0.01, rtol=0.0)
        return mcmc

    sgld = SGLD(model, step_size=1e-12, backend="eager")
    with subtests.test("a strategy"):
        earlier = drawn(at_value)
        with subtests.test("an earlier run"):
            drawn(ours, earlier)
        with subtests.test("its observed values"):
            assert to_arviz(earlier, log_likelihood=False).posterior["x"].shape[1] == 2
    for kernel in (ours, sgld, NUTS(model, **tiny)):
        with subtests.test("values", kernel=type(kernel)):
            drawn(kernel, {"x": x})
    with subtests.test("values for Pyro's driver"):
        transform = pyro.infer.mcmc.util.initialize_model(model, (y,), initial_params={})[2]
        start = {k: f(x) for k, f in transform.items()}
        drawn(ours.replace(), start, PyroMCMC, disable_progbar=True)
    with subtests.test("elsewhere"), pytest.raises(ValueError, match="none of 100 initial points"):
        drawn(ours)
    with subtests.test("a bad one"), pytest.warns(RuntimeWarning, match=r"chains \[1\] of 2 stop"):
        drawn(ours, {"x": torch.stack([x, x.flip(0) if x.dim() else -x])}, num_chains=2)


def test_a_support_that_moves_is_tried_again_and_one_that_does_not_is_refused():
    def model(x, y):
        bound = pyro.sample("bound", dist.HalfNormal(1.0))
        pyro.sample("x", dist.Uniform(0.0, bound), obs=x)
        pyro.sample("y", dist.Beta(1.0, bound), obs=y)

    kernel = SGLD(model, step_size=1e-6)
    MCMC(kernel, 1, seed=0, progress=False).run(torch.tensor(0.8), torch.tensor(0.5))
    with pytest.raises(ValueError, match="'y' has observed values outside"):
        MCMC(kernel, 1, seed=0, progress=False).run(torch.tensor(0.8), torch.tensor(1.5))


def test_losses_start_where_a_strategy_says():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 100.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Uniform(x, x + 1.0), obs=y)

    y, strategy = torch.tensor([200.1, 200.3]), init_to_value(values={"x": torch.tensor(199.5)})
    with pytest.raises(ValueError, match="none of 100 initial points"):
        WeightedPotential(model, (y,), backend="eager")
    loss = WeightedPotential(model, (y,), backend="eager", init_strategy=strategy)
    assert loss.start(range(2), 0, strategy).tolist() == [[199.5]] * 2
