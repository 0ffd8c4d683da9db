"""Learned kinetics: the step, the features, the networks, and their files."""

import warnings
from functools import partial
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_ext.checkpoint.files import CheckpointError
from pyro_ext.inference import L2E, MCMC, SGHMC, MetaSGMCMC
from pyro_ext.inference.sgmcmc import LearnedKinetics, ResidualKinetics, l2e, sghmc
from pyro_ext.inference.sgmcmc.l2e import pretrained_kinetics
from pyro_ext.random import normal
from pyro_ext.reparam import ExpansionReparam

pytestmark = pytest.mark.usefixtures("float64")

SIZES = [6, 1, 4]
DECAYS = torch.tensor([0.1, 0.5, 0.9, 0.99, 0.999, 0.9999], dtype=torch.float64)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def potential(position):
    """A smooth potential that is no sum over its elements, and its gradient."""
    with torch.enable_grad():
        where = position.detach().requires_grad_()
        value = (where.square().sum(-1) + torch.cos(where.sum(-1))) * 3.0
        (gradient,) = torch.autograd.grad(value.sum(), where)
    return value.detach(), gradient


def l2e_step(state, noise, kinetics, sizes=SIZES, gradient=potential, **options):
    settings = {"step_size": 0.1, "temperature": 1.0, "momentum_decay": 0.2} | options
    tensors = {k: torch.tensor(float(v)) for k, v in settings.items()}
    return l2e.step(
        state,
        gradient,
        noise,
        kinetics=kinetics,
        decays=DECAYS,
        site_mean=l2e.SiteMean(sizes, torch.zeros(())),
        **tensors,
    )


def test_quadratic_kinetics_are_sghmc():
    start = numbers(3, 11)
    ours, theirs = l2e.init(start, 6), sghmc.init(start)
    for step in range(20):
        noise = numbers(3, 11, seed=step + 1)
        ours, _ = l2e_step(ours, noise, l2e.quadratic)
        theirs, _ = sghmc.step(
            theirs,
            potential,
            -noise,  # which has the sign of the gradient there
            step_size=torch.tensor(0.1),
            temperature=torch.tensor(1.0),
            decay=torch.tensor(0.2),
        )
        torch.testing.assert_close(ours.position, theirs.position, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours.momentum, theirs.momentum, rtol=1e-12, atol=1e-12)


def test_features_in_the_order_of_the_network():
    """One step by hand: what the network gets, and what becomes of its outputs."""
    seen = []

    def kinetics(features, momentum, normalized_momentum):
        seen.append((features.clone(), momentum.clone(), normalized_momentum.clone()))
        velocity = features[..., 0, :] - 2.0 * normalized_momentum
        return l2e.KineticGradients(features[..., 1, :], momentum**2, velocity)

    position, momentum, noise = numbers(11), numbers(11, seed=1), numbers(11, seed=2)
    averages = numbers(6, 11, seed=3)
    state = l2e.L2EState(position, momentum, averages)
    after, info = l2e_step(state, noise, kinetics, data_size=50, temperature=0.7)
    value, gradient = potential(position)

    def normalized(values):
        pieces = values.split(SIZES, -1)
        return torch.cat(
            [v / (1e-5 + v.square().mean(-1, keepdim=True)).sqrt() for v in pieces], -1
        )

    mean_gradient = gradient / 50
    new_averages = torch.stack(
        [d * a + (1 - d) * mean_gradient for d, a in zip(DECAYS, averages, strict=True)]
    )
    features = torch.stack([mean_gradient, position, *new_averages])
    new_momentum = (
        momentum
        - 0.1 * (gradient + normalized(position))
        - 0.2 * momentum**2
        + (2 * 0.2 * 0.7) ** 0.5 * noise
    )
    velocity = normalized(mean_gradient) - 2.0 * normalized(new_momentum)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(seen[0][0], normalized(features), **close)
    torch.testing.assert_close(seen[0][2], normalized(momentum), **close)
    torch.testing.assert_close(seen[1][1], new_momentum, **close)
    torch.testing.assert_close(after.averages, new_averages, **close)
    torch.testing.assert_close(after.momentum, new_momentum, **close)
    torch.testing.assert_close(after.position, position + 0.1 * velocity, **close)
    assert info.potential_energy == value


@pytest.mark.parametrize("kind", [LearnedKinetics, partial(ResidualKinetics, output_scale=1.0)])
def test_elements_of_a_site_are_treated_alike(kind):
    """A permutation within a site permutes the step; across sites it does something else."""
    kinetics = kind(seed=3)

    def gradient(position):
        return position.sum(-1), 10.0 * torch.sin(3.0 * position)

    within = torch.tensor([3, 1, 5, 0, 2, 4, 6, 8, 7, 10, 9])
    state = l2e.L2EState(numbers(2, 11), numbers(2, 11, seed=1), numbers(2, 6, 11, seed=2))
    noise = numbers(2, 11, seed=3)
    with torch.no_grad():
        plain, _ = l2e_step(state, noise, kinetics, gradient=gradient)
        moved = l2e.L2EState(*(leaf[..., within] for leaf in state))
        permuted, _ = l2e_step(moved, noise[..., within], kinetics, gradient=gradient)
    for one, other in zip(plain, permuted, strict=True):
        torch.testing.assert_close(one[..., within], other)


def test_networks_are_applied_to_each_element_alike():
    kinetics = LearnedKinetics(force_scale=1.0, velocity_scale=0.5)
    assert sum(parameter.numel() for parameter in kinetics.parameters()) == 1442
    features, momentum = torch.randn(2, 8, 12), torch.randn(2, 12)
    together = kinetics(features, momentum, momentum)
    for chain, element in product(range(2), range(12)):
        own = momentum[chain, [element]]
        one = kinetics(features[chain, :, [element]], own, own)
        for part, whole in zip(one, together, strict=True):
            torch.testing.assert_close(part[0], whole[chain, element])
    hidden = torch.cat([features[0], momentum[:1]])
    for number, (weight, bias) in enumerate(
        zip(kinetics.network.weights, kinetics.network.biases, strict=True)
    ):
        hidden = weight @ (hidden.relu() if number else hidden) + bias
    torch.testing.assert_close(together.force[0], hidden[0])
    torch.testing.assert_close(together.velocity[0], 0.5 * hidden[1])
    assert together.drag is together.velocity


def test_residual_kinetics():
    kinetics = ResidualKinetics((4,), force_scale=3.0, velocity_scale=0.5, output_scale=1.0)
    features, momentum, normalized = torch.randn(8, 5), torch.randn(5), torch.randn(5)
    force, velocity = kinetics.network(torch.cat([features, normalized[None]]))
    result = kinetics(features, momentum, normalized)
    torch.testing.assert_close(result.force, torch.zeros(5))
    torch.testing.assert_close(result.drag, momentum + 3.0 * force)
    torch.testing.assert_close(result.velocity, 0.5 * (normalized + velocity))


def test_parameters_of_their_own_for_each_chain():
    one, other = LearnedKinetics((4,), seed=1), LearnedKinetics((4,), seed=2)
    both = LearnedKinetics((4,))
    for parameter, *values in zip(
        both.parameters(), one.parameters(), other.parameters(), strict=True
    ):
        parameter.data = torch.stack(values)
    features, momentum = torch.randn(2, 8, 5), torch.randn(2, 5)
    together = both(features, momentum, momentum)
    for number, alone in enumerate((one, other)):
        expected = alone(features[number], momentum[number], momentum[number])
        torch.testing.assert_close(together.velocity[number], expected.velocity)


@pytest.mark.parametrize("kind", [LearnedKinetics, ResidualKinetics])
def test_files(kind, tmp_path):
    kinetics = kind(hidden_sizes=(5,), decays=(0.5, 0.9), velocity_scale=0.25, seed=4)
    kinetics.save(tmp_path / "kinetics.safetensors", tasks=["a", "b"])
    loaded = kind.load(tmp_path / "kinetics.safetensors")
    assert loaded.decays == (0.5, 0.9) and loaded.velocity_scale == 0.25
    for one, other in zip(kinetics.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)
    other_kind = ResidualKinetics if kind is LearnedKinetics else LearnedKinetics
    with pytest.raises(ValueError, match=f"wanted a {other_kind.__name__}"):
        other_kind.load(tmp_path / "kinetics.safetensors")
    data = (tmp_path / "kinetics.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="changed after it was written"):
        kind.load(tmp_path / "cut.safetensors")


def flat_potential(z):
    return 0.5 * z["x"].square().sum() + torch.cos(z["x"].sum()) + z["y"] ** 2


def kernel_of(kind, **options):
    return MCMC(
        kind(potential_fn=flat_potential, **options),
        num_samples=5,
        thinning=3,
        num_chains=2,
        initial_params={"x": torch.ones(2, 3), "y": torch.zeros(2)},
        seed=3,
        progress=False,
    )


def test_the_kernel_with_quadratic_kinetics_is_sghmc():
    """At temperature zero, where the sign of the noise does not matter."""
    frictions = {"x": 5.0, "default": 2.0}
    options = {"step_size": 0.1, "friction": frictions, "temperature": 0.0}
    one = kernel_of(L2E, kinetics=l2e.quadratic, **options).run().get_samples()
    other = kernel_of(SGHMC, **options).run().get_samples()
    torch.testing.assert_close(one, other)


def test_the_noise_of_the_kernel():
    """One step from rest in a flat potential moves by the noise alone, also under friction."""
    options = {"kinetics": l2e.quadratic, "step_size": 0.1, "friction": 5.0}
    kernel = L2E(potential_fn=lambda z: 0.0 * z["x"].sum(), **options)
    kernel.initial_params = {"x": torch.zeros(4)}
    kernel.setup(0)
    chains = kernel.begin(range(2), 7, {"x": torch.zeros(2, 4)})
    noise = normal(chains.keys, torch.tensor(0), 4, dtype=torch.float64)
    moved = kernel.advance(chains, 1).position
    torch.testing.assert_close(moved, 0.1 * (2 * 0.5) ** 0.5 * noise)


def test_no_graph_grows():
    kernel = L2E(potential_fn=flat_potential, kinetics=ResidualKinetics())
    kernel.initial_params = {"x": torch.ones(3), "y": torch.zeros(())}
    kernel.setup(0)
    start = {"x": torch.ones(1, 3), "y": torch.zeros(1)}
    chains = kernel.advance(kernel.begin([0], 0, start), 4)
    assert not any(leaf.requires_grad for leaf in chains.state)


def test_the_step_size_goes_by_the_number_of_data():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=5):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:5])

    kernel = L2E(model)
    kernel.setup(0, torch.zeros(80))
    assert kernel.schedule.max_step_size == pytest.approx((0.05 / 80) ** 0.5)
    assert kernel.settings()["step_size"] is None and kernel.replace(friction=2.0).friction == 2.0
    assert L2E(model, step_size=0.01).schedule.max_step_size == 0.01


def test_the_pretrained_network_ships():
    kinetics = pretrained_kinetics()
    kernel = L2E.pretrained(potential_fn=flat_potential, friction=1.0, step_size=0.1)
    for one, other in zip(kinetics.parameters(), kernel.kinetics.parameters(), strict=True):
        assert torch.equal(one, other) and torch.isfinite(one).all()
    assert kernel.friction == 1.0


def test_friction_must_fit_the_default_step_size():
    with pytest.raises(ValueError, match="friction times the largest step_size"):
        kernel_of(L2E, friction=100.0).run()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [L2E, MetaSGMCMC])
def test_many_chains_of_an_expanded_model_compiled(kind):
    """Vectorized and compiled, with weights as products: the draws of the graph."""

    def network(x, y):
        weight0 = pyro.sample("weight0", dist.Normal(torch.zeros(6, 4), 0.5).to_event(2))
        weight1 = pyro.sample("weight1", dist.Normal(torch.zeros(3, 6), 0.5).to_event(2))
        with pyro.plate("data", len(x), subsample_size=20) as index:
            logits = torch.tanh(x[index] @ weight0.T) @ weight1.T
            pyro.sample("y", dist.Categorical(logits=logits), obs=y[index])

    model = poutine.reparam(
        network, config={"weight0": ExpansionReparam(), "weight1": ExpansionReparam()}
    )
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    draws = []
    for backend in ("compile", "trace"):
        mcmc = MCMC(kind(model, backend=backend), 5, 10, num_chains=8, seed=0, progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draws.append(mcmc.run(x, torch.arange(100) % 3).get_samples(group_by_chain=True))
    assert draws[0]["weight0"].shape == (8, 5, 6, 4) and "weight0.P1" in draws[0]
    torch.testing.assert_close(*draws, rtol=1e-3, atol=1e-4)
