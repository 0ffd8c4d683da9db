"""Matrices as products of factors."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from scipy import integrate

from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, SGHMC
from pyro_ext.posterior.modes import find_map
from pyro_ext.potential import Potential
from pyro_ext.reparam import ExpansionReparam, merge_factors

X = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.7, 2.0], [0.1, 0.8]])
Y = torch.tensor([[0.5, 0.0, 1.0], [-0.2, 0.3, 0.1], [1.1, -1.0, 0.4], [0.0, 0.2, 0.7]])


def regression(x, y):
    weight = pyro.sample("weight", dist.Normal(0.0, 0.7).expand([3, 2]).to_event(2))
    with pyro.plate("points", len(x)):
        pyro.sample("y", dist.Normal(x @ weight.T, 0.5).to_event(1), obs=y)


def expanded(left=1, right=1, strength="width", model=regression):
    config = {"weight": ExpansionReparam(left, right, strength)}
    return poutine.reparam(model, config=config)


def product(values, left, right):
    factors = [values[f"weight.P{i + 1}"] for i in range(left)]
    others = [values[f"weight.Q{i + 1}"] for i in range(right)]
    return merge_factors(factors, values["weight.V"], others)


@pytest.mark.parametrize(("left", "right"), [(1, 0), (0, 1), (1, 1), (2, 1), (0, 3)])
def test_the_site_is_the_product(left, right):
    trace = poutine.trace(expanded(left, right)).get_trace(X, Y)
    values = {name: node["value"] for name, node in trace.nodes.items() if "value" in node}
    names = [f"weight.P{i + 1}" for i in range(left)] + ["weight.V"]
    names += [f"weight.Q{i + 1}" for i in range(right)]
    assert trace.stochastic_nodes == [*names, "points"]
    torch.testing.assert_close(values["weight"], product(values, left, right))
    whole = values["weight.V"]
    for i in range(left, 0, -1):
        whole = values[f"weight.P{i}"] @ whole
    for i in range(right):
        whole = whole @ values[f"weight.Q{i + 1}"]
    torch.testing.assert_close(values["weight"], whole)


@pytest.mark.parametrize(("strength", "precisions"), [("width", (3.0, 2.0)), (5.0, (5.0, 5.0))])
def test_density_of_the_factors(strength, precisions):
    trace = poutine.trace(expanded(strength=strength)).get_trace(X, Y)
    values = {name: node["value"] for name, node in trace.nodes.items() if "value" in node}
    wanted = dist.Normal(0.0, 0.7).log_prob(values["weight.V"]).sum()
    wanted += dist.Normal(0.0, precisions[0] ** -0.5).log_prob(values["weight.P1"]).sum()
    wanted += dist.Normal(0.0, precisions[1] ** -0.5).log_prob(values["weight.Q1"]).sum()
    wanted += dist.Normal(X @ values["weight"].T, 0.5).log_prob(Y).sum()
    torch.testing.assert_close(trace.log_prob_sum(), wanted)


def test_without_factors_chains_are_those_of_the_model():
    def run(model):
        kernel = SGHMC(model, step_size=1e-2, friction=5.0)
        return MCMC(kernel, 20, num_chains=2, seed=0, progress=False).run(X, Y).get_samples()

    plain, none = run(regression), run(expanded(0, 0))
    assert set(plain) == set(none)
    assert torch.equal(plain["weight"], none["weight"])


def test_chains_start_at_identity_matrices():
    potential = Potential(expanded(2, 1), X, Y)
    start = potential.constrain(potential.init(num_chains=3, seed=0))
    for name, size in (("weight.P1", 3), ("weight.P2", 3), ("weight.Q1", 2)):
        assert torch.equal(start[name], torch.eye(size).expand(3, size, size))
    plain = Potential(regression, X, Y).init(num_chains=3, seed=0)
    torch.testing.assert_close(start["weight.V"], plain["weight"])
    torch.testing.assert_close(potential.deterministic(start)["weight"], plain["weight"])


def test_a_start_of_the_site_is_one_of_the_middle_factor():
    value = torch.arange(6.0).reshape(3, 2)
    guide = AutoNormal(expanded(), init_loc_fn=init_to_value(values={"weight": value}))
    guide(X, Y)
    medians = guide.median(X, Y)
    torch.testing.assert_close(medians["weight.V"], value)
    torch.testing.assert_close(medians["weight.P1"], torch.eye(3))


@pytest.mark.parametrize(("left", "right"), [(1, 0), (1, 1), (2, 1), (1, 2)])
def test_implicit_preconditioner(left, right):
    """A step on the factors moves the product by the preconditioner of the formula."""
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    shapes = [(3, 3)] * left + [(3, 4)] + [(4, 4)] * right
    factors = [torch.randn(shape, **options).requires_grad_() for shape in shapes]
    gradient = torch.randn(3, 4, **options)
    whole = merge_factors(factors[:left], factors[left], factors[left + 1 :])
    steps = torch.autograd.grad((whole * gradient).sum(), factors)
    small = 1e-7
    moved = [factor - small * step for factor, step in zip(factors, steps, strict=True)]
    change = merge_factors(moved[:left], moved[left], moved[left + 1 :]) - whole

    def chain(parts, size):
        result = torch.eye(size, dtype=torch.float64)
        for part in parts:
            result = result @ part
        return result

    preconditioner = torch.zeros(12, 12, dtype=torch.float64)
    for i in range(len(factors)):
        after, before = chain(factors[i + 1 :], shapes[i][1]), chain(factors[:i], 3)
        preconditioner += torch.kron((after.T @ after).detach(), (before @ before.T).detach())
    expected = -small * (preconditioner @ gradient.T.flatten()).reshape(4, 3).T
    torch.testing.assert_close(change.detach(), expected, rtol=1e-4, atol=1e-12)


def scalar(y):
    w = pyro.sample("w", dist.Normal(torch.zeros(1, 1), 0.5**0.5).to_event(2))
    pyro.sample("y", dist.Normal(w.sum(), 0.5), obs=y)


def expanded_scalar():
    return poutine.reparam(scalar, config={"w": ExpansionReparam(strength=2.0)})


def exact_scalar_moments():
    """Mean and variance of the product of three normals given one noisy look, by quadrature."""

    def given(p):
        # The middle factor and a square one are integrated out: v and q are normal.
        def density(q):
            spread = 0.25 + 0.5 * (p * q) ** 2
            mean = 0.5 * (p * q) ** 2 / spread
            variance = 0.5 * (p * q) ** 2 * 0.25 / spread
            weight = np.exp(-(p**2) - q**2 - 0.5 / spread) / np.sqrt(spread)
            return weight, weight * mean, weight * (variance + mean**2)

        return [
            integrate.quad(lambda q, k=k: density(q)[k], 0.0, 8.0, epsabs=1e-12)[0]
            for k in range(3)
        ]

    norm, first, second = (
        integrate.quad(lambda p, k=k: given(p)[k], 0.0, 8.0, epsabs=1e-10)[0] for k in range(3)
    )
    return first / norm, second / norm - (first / norm) ** 2


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.usefixtures("float64")
def test_stochastic_gradient_chains_on_the_scalar_target():
    """Mean and variance within 5 standard errors over 64 chains, and 2 % for the step size."""
    kernel = SGHMC(expanded_scalar(), step_size=0.02, friction=2.0)
    mcmc = MCMC(
        kernel, 1500, warmup_steps=1000, num_chains=64, thinning=20, seed=0, progress=False
    ).run(torch.tensor(1.0))
    w = mcmc.get_samples(group_by_chain=True)["w"].reshape(64, -1)
    check_moments(w.mean(1), w.square().mean(1))


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.usefixtures("float64")
def test_nuts_on_the_scalar_target():
    """As above, over eight chains of Pyro's NUTS."""
    means, squares = [], []
    for seed in range(8):
        pyro.set_rng_seed(seed)
        mcmc = PyroMCMC(
            NUTS(expanded_scalar(), target_accept_prob=0.9),
            num_samples=500,
            warmup_steps=200,
            disable_progbar=True,
        )
        mcmc.run(torch.tensor(1.0))
        factors = mcmc.get_samples()
        w = (factors["w.P1"] * factors["w.V"] * factors["w.Q1"]).flatten()
        means.append(w.mean())
        squares.append(w.square().mean())
    check_moments(torch.stack(means), torch.stack(squares))


def check_moments(means, squares):
    mean, variance = exact_scalar_moments()
    for values, wanted in ((means, mean), (squares, variance + mean**2)):
        error = float(values.std() / len(values) ** 0.5)
        assert abs(float(values.mean()) - wanted) < 5.0 * error + 0.02 * wanted


def test_draws_have_the_shape_of_the_site():
    kernel = SGHMC(
        expanded(), step_size=1e-3, friction={"*.P?": 1.0, "*.Q?": 1.0, "default": 100.0}
    )
    mcmc = MCMC(kernel, 6, num_chains=2, thinning=5, seed=0, progress=False).run(X, Y)
    draws = mcmc.get_samples(group_by_chain=True)
    assert draws["weight"].shape == (2, 6, 3, 2)
    torch.testing.assert_close(draws["weight"], product(draws, 1, 1))
    assert to_arviz(mcmc).posterior["weight"].shape == (2, 6, 3, 2)


def test_guides_and_predictions():
    guide = AutoNormal(expanded())
    inference = SVI(expanded(), guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [inference.step(X, Y) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    drawn = Predictive(expanded(), guide=guide, num_samples=7)(X, None)
    assert drawn["y"].shape == (7, 4, 3)
    prior = Predictive(expanded(), num_samples=50)(X, None)
    assert float(prior["weight.P1"].std()) > 0.3


def test_find_map_of_the_factors():
    assert set(find_map(Potential(expanded(), X, Y))) >= {"weight.P1", "weight.V", "weight.Q1"}


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 3, 5)])
def test_kernels_of_convolutions_mix_channels(shape):
    def model():
        pyro.sample("kernel", dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))

    reparam = {"kernel": ExpansionReparam()}
    nodes = poutine.trace(poutine.reparam(model, config=reparam)).get_trace().nodes
    p, v, q = (nodes[f"kernel.{name}"]["value"] for name in ("P1", "V", "Q1"))
    assert p.shape == (4, 4) and q.shape == (3, 3)
    wanted = torch.einsum("oi,ij...,jl->ol...", p, v, q)
    torch.testing.assert_close(nodes["kernel"]["value"], wanted)


def test_sites_in_a_plate():
    def model():
        with pyro.plate("members", 5):
            pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))

    nodes = (
        poutine.trace(poutine.reparam(model, config={"w": ExpansionReparam(2, 1)}))
        .get_trace()
        .nodes
    )
    assert nodes["w.P1"]["value"].shape == (5, 3, 3)
    p, v, q = (nodes[f"w.{name}"]["value"] for name in ("P1", "V", "Q1"))
    wanted = p @ nodes["w.P2"]["value"] @ v @ q
    torch.testing.assert_close(nodes["w"]["value"], wanted)


def test_names_that_are_taken():
    def model():
        pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
        pyro.sample("w_P1", dist.Normal(0.0, 1.0))
        pyro.sample("w_V", dist.Normal(0.0, 1.0))

    assert len(Potential(poutine.reparam(model, config={"w": ExpansionReparam()})).sites) == 5


def test_what_users_may_get_wrong():

    def vector():
        pyro.sample("weight", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    with pytest.raises(ValueError, match="must have at least two event dimensions"):
        expanded(model=vector)()
    seen = poutine.condition(regression, data={"weight": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match="site 'weight' is observed"):
        expanded(model=seen)(X, Y)
