"""SetVAE: its losses against closed forms and Pyro's, sets under permutation and padding, seeds."""

import math
import pickle

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyro_ext.diagnostics.sets import chamfer_distance
from pyro_ext.models.sets import GaussianMixtureSet, SetVAE
from pyro_ext.models.sets.set_vae import _noise

SIZES = dict(scales=(1, 2, 4), hidden_size=16, latent_size=3, num_heads=2)


def make(**options):
    return SetVAE(2, initial_set=GaussianMixtureSet(5, 3), **(SIZES | options))


@pytest.fixture
def sets():
    mask = torch.arange(7) < torch.tensor([3, 7, 1, 5])[:, None]
    return torch.rand(4, 7, 2).masked_fill(~mask[..., None], torch.nan), mask


def same_draws(vae, trace, monkeypatch):
    """Let the network draw what its guide has drawn."""
    values = {
        name: trace.nodes[name]["value"].detach()
        for name in trace.stochastic_nodes
        if name != "sets"
    }
    latents = iter([values[name] for name in sorted(values) if name.startswith("z_")])
    noise = values["initial_gumbel"], values["initial_normal"]
    monkeypatch.setattr("pyro_ext.models.sets.set_vae._noise", lambda *_: noise)

    def drawn(posterior, _):
        # As a function of the parameters.
        noise = (next(latents) - posterior.loc.detach()) / posterior.scale.detach()
        return posterior.loc + posterior.scale * noise

    monkeypatch.setattr("pyro_ext.models.sets.set_vae._drawn", drawn)


# The loss --------------------------------------------------------------------------------------


def test_divergence_of_a_posterior_in_numbers(float64):
    """The number is 1/2 (dmu^2 / sigma^2 + dsigma^2 - log dsigma^2 - 1)."""
    vae = make(scales=(1,), latent_size=1)
    vae.network.top_prior.data[:] = torch.tensor([0.3, 2 * math.log(1.7)])
    torch.nn.init.zeros_(vae.network.posteriors[0].weight)
    vae.network.posteriors[0].bias.data[:] = torch.tensor([0.4, 2 * math.log(0.6)])
    terms = vae.terms(torch.rand(3, 4, 2))
    torch.testing.assert_close(terms.kl, torch.full((3, 1), 0.2185072847), atol=1e-10, rtol=0)
    guide = poutine.trace(vae.guide).get_trace(torch.rand(3, 4, 2))
    found = guide.nodes["z_1"]["fn"].base_dist
    assert found.loc.detach().flatten().tolist() == pytest.approx([0.7] * 3)
    assert found.scale.detach().flatten().tolist() == pytest.approx([1.7 * 0.6] * 3)


def test_terms_are_those_of_pyros_loss(sets, float64, monkeypatch):
    """Values, and the gradient of the sum."""
    vae, beta = make(), 0.3
    trace = poutine.trace(vae.guide).get_trace(*sets, beta)
    model = poutine.trace(poutine.replay(vae.model, trace)).get_trace(*sets, beta)
    model.compute_log_prob()
    guide = poutine.replay(vae.guide, trace)
    expected = TraceMeanField_ELBO().differentiable_loss(vae.model, guide, *sets, beta)
    same_draws(vae, trace, monkeypatch)
    terms = vae.terms(*sets)
    found = (terms.distance + beta * terms.kl.sum(-1)).sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(terms.distance, -model.nodes["x"]["log_prob"])
    for number in range(3):
        pair = [one.nodes[f"z_{number + 1}"]["fn"].base_dist for one in (trace, model)]
        divergence = kl_divergence(*pair).sum((-2, -1))
        torch.testing.assert_close(terms.kl[:, number], divergence)
    gradients = [
        torch.autograd.grad(loss, list(vae.parameters()), materialize_grads=True)
        for loss in (found, expected)
    ]
    for ours, pyros in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, pyros)


def test_prior_is_the_posterior_without_a_residual(sets, float64):
    vae = make()
    for layer in vae.network.posteriors:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    assert bool((vae.terms(*sets).kl == 0).all())
    found = vae.reconstruct(*sets, seed=3)
    drawn = vae.sample([3, 7, 1, 5], seed=3)
    torch.testing.assert_close(found.x, drawn.x)
    again = vae.sample([3, 7, 1, 5], latents=found.latents, seed=3)
    assert all(map(torch.equal, again.latents, found.latents))


def test_log_variances_are_bounded(sets):
    vae = make()
    for layer in (*vae.network.priors, *vae.network.posteriors):
        layer.bias.data[:] = 100.0
    sites = poutine.trace(vae.guide).get_trace(*sets).nodes
    assert sites["z_2"]["fn"].base_dist.scale.max().item() == pytest.approx(math.exp(3.0))


# Training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, Trace_ELBO])
def test_svi(sets, elbo):
    vae, optimizer = make(unit_cube=True), pyro.optim.Adam({"lr": 0.01})
    svi = SVI(vae.model, vae.guide, optimizer, elbo())
    losses = [svi.step(*sets, beta=1e-3) for _ in range(15)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("unit", [0.01, 1.0, 30.0])
def test_the_weight_of_the_divergence_goes_with_distances(sets, unit):
    """As those do with the number of points and the square of their unit; with any padding."""
    vae, (x, mask) = make(), sets
    scales = [poutine.trace(vae.guide).get_trace(unit * x, mask).nodes["z_1"]["scale"]]
    scales += [poutine.trace(vae.model).get_trace(unit * x, mask).nodes["z_2"]["scale"]]
    points = [row[there] for row, there in zip(x, mask, strict=True)]
    apart = [chamfer_distance(each, each.mean(0).expand_as(each)) for each in points]
    expected = 1e-3 * unit**2 * float(torch.stack(apart).mean())
    assert scales == pytest.approx([expected] * 2, rel=1e-4)
    same = torch.ones(2, 3, 2)  # of which nothing is apart
    assert poutine.trace(vae.guide).get_trace(same).nodes["z_1"]["scale"] > 0.0


@pytest.mark.slow
def test_small_sets_do_not_collapse():
    """Six points near one place each: where that is, a weight of one loses."""
    torch.manual_seed(0)
    vae = SetVAE(2, (1, 2), 16, 4, 2)
    x = torch.rand(64, 1, 2) + 0.05 * torch.randn(64, 6, 2)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), TraceMeanField_ELBO())
    for _ in range(80):
        svi.step(x)
    lost = chamfer_distance(x, x.mean((0, 1)).expand_as(x)).mean()
    assert vae.terms(x).distance.mean() < 0.4 * lost


def test_a_unit_cube_holds_what_is_in_it(sets):
    vae, (x, mask) = make(unit_cube=True), sets
    for call in (vae.model, vae.guide, vae.terms, vae.reconstruct, vae.partition):
        call(x, mask)
        with pytest.raises(ValueError, match="x must be from 0 to 1 with unit_cube=True, got from"):
            call(3.0 * x - 1.0, mask)


def test_sites_and_weights_of_sites(sets):
    vae = make()
    trace = poutine.trace(vae.model).get_trace(*sets, beta=0.25)
    assert [name for name in trace.stochastic_nodes if name.startswith("z")] == [
        "z_1",
        "z_2",
        "z_3",
    ]
    assert trace.nodes["z_3"]["value"].shape == (4, 4, 3) and trace.nodes["z_3"]["scale"] == 0.25
    assert trace.nodes["x"]["scale"] == 1.0
    found = Predictive(vae.model, guide=vae.guide, num_samples=5)(*sets)
    assert found["z_2"].shape == (5, 4, 2, 3)


def test_particles_in_a_plate(sets):
    vae = make()
    elbo = TraceMeanField_ELBO(num_particles=3, vectorize_particles=True)
    assert elbo.differentiable_loss(vae.model, vae.guide, *sets, 0.1).isfinite()
    drawn = Predictive(vae.model, guide=vae.guide, num_samples=5, parallel=True)(*sets)
    assert drawn["z_3"].shape == (5, 4, 4, 3)


# Sets ------------------------------------------------------------------------------------------


def test_order_of_data_does_not_matter(sets, float64):
    vae, (x, mask) = make(), sets
    order = torch.randperm(7)
    features = [
        vae.network.encode(*vae._sets(vae.network, *pair))
        for pair in (sets, (x[:, order], mask[:, order]))
    ]
    for found, expected in zip(*features, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    latents = [vae.reconstruct(x[:, o], mask[:, o], seed=0).latents for o in (order, slice(None))]
    parts = [vae.partition(x[:, o], mask[:, o]) for o in (order, slice(None))]
    for level in range(3):
        if level == 0:  # those of finer scales depend on where the padding is, by the noise there
            torch.testing.assert_close(latents[0][level], latents[1][level])
        assert torch.equal(parts[0][level], parts[1][level][:, order])


def test_permuted_noise_gives_permuted_sets(sets, float64):
    vae, (_, mask) = make(unit_cube=True), sets
    noise = _noise(vae.network, mask, torch.Generator().manual_seed(0))
    order = torch.randperm(7)

    def mean(number, prior, gathered):
        return prior.loc

    points, latents = vae.network.decode(mask, noise, mean)
    permuted, again = vae.network.decode(mask[:, order], tuple(n[:, order] for n in noise), mean)
    torch.testing.assert_close(permuted, points[:, order], atol=1e-12, rtol=0)
    for found, expected in zip(again, latents, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert bool((points[~mask] == 0).all()) and 0.0 < points[mask].min() < points[mask].max() < 1.0


def test_padding_does_not_matter(sets, float64):
    """Each set, with the noise of its points alone, is what it is among larger ones."""
    vae, (x, mask) = make(), sets
    features = vae.network.encode(*vae._sets(vae.network, x, mask))
    noise = _noise(vae.network, mask, None)

    def mean(of, number, prior, gathered):
        return vae.network.posterior(number, prior, of, gathered).loc

    points, latents = vae.network.decode(mask, noise, lambda *args: mean(features, *args))
    parts = vae.partition(x, mask)
    for row, size in enumerate((3, 7, 1, 5)):
        alone, there = x[row : row + 1, :size], mask[row : row + 1, :size]
        own = vae.network.encode(*vae._sets(vae.network, alone, None))
        found, drawn = vae.network.decode(
            there,
            tuple(n[row : row + 1, :size] for n in noise),
            lambda *args, own=own: mean(own, *args),
        )
        torch.testing.assert_close(found[0], points[row, :size], atol=1e-12, rtol=0)
        for level in range(3):
            torch.testing.assert_close(own[level][0], features[level][row], atol=1e-12, rtol=0)
            torch.testing.assert_close(drawn[level][0], latents[level][row], atol=1e-12, rtol=0)
            assert torch.equal(vae.partition(alone)[level][0], parts[level][row, :size])
            assert bool((parts[level][row, size:] == -1).all())


def test_elements_are_divided_among_inducing_points(sets, float64):
    """Weights over inducing points sum to one, and those of an inducing point nearly so."""
    vae, (x, mask) = make(), sets
    gather = vae.network.encoder_gathers[-1].block
    x, mask = vae._sets(vae.network, x, mask)
    elements = vae.network.input(x)
    query = gather.query(vae.network.encoder_gathers[-1].seeds).unflatten(-1, (2, 8))
    key = gather.key(elements).unflatten(-1, (2, 8))
    weights = (torch.einsum("mhd,bnhd->bhmn", query, key) / 16**0.5).softmax(-2)
    torch.testing.assert_close(weights.sum(-2), torch.ones(4, 2, 7))
    weights = weights.detach() * mask[:, None, None]
    rows = (weights / (weights + 1e-5 * mask[:, None, None]).sum(-1, keepdim=True)).sum(-1)
    assert float((rows - 1).abs().max()) < 1e-4
    labels = vae.partition(x, mask)[-1]
    assert torch.equal(labels[mask], weights.mean(1).argmax(1)[mask])
    assert int(vae.partition(x, mask)[0].max()) == 0  # one inducing point has it all


def test_larger_sets_of_the_same_latent_variables():
    vae = make()
    few = vae.sample([3, 5], seed=0)
    many = vae.sample([300, 500], few.latents, seed=1)
    assert many.x.shape == (2, 500, 2) and many.mask.sum(1).tolist() == [300, 500]
    assert all(map(torch.equal, many.latents, few.latents))
    assert few.x.requires_grad is False


def test_mixture_of_the_initial_set(float64):
    torch.manual_seed(0)
    mixture = GaussianMixtureSet(2, 3)
    mixture.logits = torch.tensor([0.5, 0.3, 0.2]).log().requires_grad_()
    mixture.loc.requires_grad_()
    gumbel = torch.distributions.Gumbel(0.0, 1.0).sample((20_000, 3))
    elements = mixture(gumbel, torch.zeros(20_000, 2))
    rates = [(elements - loc).norm(dim=-1).lt(1e-9).double().mean() for loc in mixture.loc]
    assert torch.stack(rates).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.015)
    elements.sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in (mixture.logits, mixture.loc))


def test_types_and_copies(sets):
    vae = make()
    x, mask = sets
    assert vae.terms(x.double(), mask).kl.dtype == torch.float32
    assert vae.double().terms(x, mask).distance.dtype == torch.float64
    copy = pickle.loads(pickle.dumps(vae))
    assert torch.equal(copy.sample([3], seed=0).x, vae.sample([3], seed=0).x)
    as_lists = vae.partition(x.nan_to_num().tolist(), mask.tolist())
    assert all(map(torch.equal, as_lists, vae.partition(x, mask)))


def test_wrong_input_is_named(sets, subtests):
    vae, (x, mask) = make(), sets
    cases = {
        r"mask must be true .*got none at \(2,\)": lambda: vae.terms(
            x, mask & (torch.arange(4) != 2)[:, None]
        ),
        r"mask must have the shape \(4, 7\)": lambda: vae.model(x, mask[:, :5]),
        "x must be finite": lambda: vae.terms(x),
        "latents must be as many as the 3 scales, got 1": lambda: vae.sample([3], [torch.zeros(1)]),
        r"latents must have the shape \(1, 2, 3\)": lambda: vae.sample(
            [3], [torch.zeros(1, 1, 3)] * 3
        ),
        "hidden_size must be a multiple of num_heads=4": lambda: SetVAE(2, hidden_size=6),
    }
    for message, call in cases.items():
        with subtests.test(message), pytest.raises((ValueError, TypeError), match=message):
            call()
