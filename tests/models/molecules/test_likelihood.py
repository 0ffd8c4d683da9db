"""Losses, the joint likelihood as a Pyro model, ensembles and their posteriors."""

import math
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO

from pyro_ext.distributions import ForceNormal
from pyro_ext.inference import AutoSWAG
from pyro_ext.models.molecules import (
    RACE,
    EnergyForceModel,
    ensemble_prediction,
    potential_loss,
    predictive_moments,
)
from pyro_ext.nn import BayesianModule

SPECIES = (8, 1, 1)
WATER = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]])


@pytest.fixture
def frames():
    generator = torch.Generator().manual_seed(0)
    positions = WATER + 0.05 * torch.randn(6, 3, 3, generator=generator)
    return positions, torch.randn(6, generator=generator), torch.randn(6, 3, 3, generator=generator)


def race(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = RACE(SPECIES, channels=4, num_radial=4, radial_hidden=4, num_layers=2)
        for _, outputs in made.readouts:
            torch.nn.init.normal_(outputs.weight, 0.0, 0.2)
    return made


@pytest.mark.parametrize("densities", [False, True])
def test_losses_by_hand(frames, densities):
    positions, energies, forces = frames
    found = race()(positions, SPECIES)
    loss = partial(
        potential_loss,
        found,
        energies,
        forces,
        energy_weight=2.0,
        force_weight=3.0,
        densities=densities,
    )
    square = (energies - found.energy).square()
    apart = forces - found.forces
    torch.testing.assert_close(loss("mse"), (2 * square).mean() + 3 * apart.square().sum(-1).mean())
    variance = found.log_variance.exp()
    of_energy = (2 * square / variance + (2 if densities else 1) * variance.log()).mean()
    torch.testing.assert_close(loss("energy"), of_energy + 3 * apart.square().sum(-1).mean())
    covariance = ForceNormal(found.forces, found.l6).covariance_matrix
    solved = torch.linalg.solve(covariance, apart)
    of_force = 3 * (apart * solved).sum(-1) + (3 if densities else 1) * covariance.logdet()
    torch.testing.assert_close(loss("joint"), of_energy + of_force.mean())


def test_by_default_losses_and_models_are_likelihoods(frames):
    """Of every force, so that a larger molecule does not learn its forces less well."""
    positions, energies, forces = frames
    network = race()
    network.center(SPECIES, energies, forces)
    energies = network.relative(SPECIES, energies)
    found = network(positions, SPECIES)
    normal = torch.distributions.Normal(found.energy, (0.5 * found.log_variance).exp())
    covariance = ForceNormal(found.forces, found.l6).covariance_matrix
    of_forces = torch.distributions.MultivariateNormal(found.forces, covariance).log_prob(forces)
    density = normal.log_prob(energies).sum() + of_forces.sum()
    constant = 6 * (1 + 3 * 3) * math.log(2 * math.pi)
    loss = potential_loss(found, energies, forces)
    torch.testing.assert_close(6 * loss, -2 * density - constant, rtol=1e-4, atol=1e-4)
    trace = pyro.poutine.trace(EnergyForceModel(network, SPECIES)).get_trace(*frames)
    torch.testing.assert_close(trace.log_prob_sum(), density, rtol=1e-4, atol=1e-4)


def test_model_is_the_loss(frames):
    positions, energies, forces = frames
    network = race()
    network.center(SPECIES, energies - 200.0, forces)
    loss = potential_loss(
        network(positions, SPECIES),
        network.relative(SPECIES, energies - 200.0),
        forces,
        energy_weight=2.0,
        force_weight=3.0,
        densities=True,
    )
    model = EnergyForceModel(network, SPECIES, energy_weight=2.0, force_weight=3.0)
    trace = pyro.poutine.trace(model).get_trace(positions, energies - 200.0, forces)
    density = trace.log_prob_sum()
    constant = 2 * math.log(2 * math.pi) + 3 * 3 * math.log(2 * math.pi)
    torch.testing.assert_close(-2 * density / 6, loss + constant, rtol=1e-4, atol=1e-4)
    assert set(trace.observation_nodes) == {"energy", "forces"}


def test_energies_count_from_where_they_are(frames):
    """A network that is not centered is by the model, and warned of by the loss."""
    positions, energies, forces = frames
    totals, network = energies - 2079.9, race()
    with pytest.warns(UserWarning, match="energies are 2.08e.03 eV from .* network.center"):
        potential_loss(network(positions, SPECIES), totals, forces)
    centered = race()
    centered.center(SPECIES, totals, forces)
    relative = centered.relative(SPECIES, totals)
    assert potential_loss(centered(positions, SPECIES), relative, forces) < 1e3
    model = EnergyForceModel(network, SPECIES)
    model(positions, totals, forces)
    assert torch.equal(network.reference, centered.reference)
    assert network.is_centered and torch.equal(network.scale, centered.scale)
    model(positions, energies, 2.0 * forces)  # once for all
    assert torch.equal(network.scale, centered.scale)


def test_minibatches_are_rescaled(frames):
    model = EnergyForceModel(race(), SPECIES, batch_size=2)
    with pyro.plate("structures", 6, subsample=torch.tensor([1, 4])):
        pass
    conditioned = pyro.poutine.trace(model).get_trace(*frames)
    assert conditioned.nodes["energy"]["value"].shape == (2,)
    assert conditioned.nodes["energy"]["scale"] == 3.0


def test_swag_of_the_weights(frames):
    """The guide of averages takes the model as it is, and draws whole networks."""
    model = EnergyForceModel(BayesianModule(race(), 1.0), SPECIES)
    guide = AutoSWAG(model, start=3, max_rank=3)
    with torch.random.fork_rng():
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        losses = [svi.step(*frames) for _ in range(8)]
        draws = Predictive(model, guide=guide, num_samples=3, return_sites=["energy", "forces"])
        found = draws(frames[0])
    assert guide.num_collected == 5
    assert losses[-1] < losses[0]
    assert found["forces"].shape == (3, 6, 3, 3)


def test_members_at_once_and_one_by_one(frames):
    members = [race(seed) for seed in range(3)]
    found = ensemble_prediction(members, frames[0], SPECIES)
    for number, one in enumerate(members):
        alone = one(frames[0], SPECIES)
        for part, own in zip(found, alone, strict=True):
            torch.testing.assert_close(part[number], own.detach(), rtol=1e-4, atol=1e-5)
    moments = predictive_moments(found)
    torch.testing.assert_close(moments.energy, found.energy.mean(0))
    between = found.energy.var(0, correction=0)
    torch.testing.assert_close(moments.energy_variance, found.log_variance.exp().mean(0) + between)
    assert (torch.linalg.eigvalsh(moments.force_covariance) > 0).all()


def test_members_in_other_modes(frames):
    members = [race(seed) for seed in range(2)]
    wanted = ensemble_prediction(members, frames[0], SPECIES)
    members[0].eval()
    members[1].requires_grad_(False).embedding.requires_grad_(True)
    found = ensemble_prediction(members, frames[0], SPECIES)
    assert torch.equal(found.energy, wanted.energy) and not found.energy.requires_grad


def test_errors_of_structures_reach_ensembles(frames):
    members = [race(seed) for seed in range(2)]
    with pytest.raises(ValueError, match="positions must have atoms at least"):
        ensemble_prediction(members, torch.zeros(3, 3), SPECIES)
    with pytest.raises(ValueError, match="networks must all have the same form"):
        ensemble_prediction([race(), RACE(SPECIES, channels=3)], WATER, SPECIES)
    made = RACE(SPECIES, channels=4)
    others = dict(cutoff=4.0, num_neighbors=20.0, extensive=True)
    for name, value in others.items():
        other = RACE(SPECIES, channels=4, **{name: value})
        with pytest.raises(ValueError, match=rf"got networks\[1\] of which {name} is not"):
            ensemble_prediction([made, other], WATER, SPECIES)
    with pytest.raises(ValueError, match=r"networks\[1\] of which species is not"):
        ensemble_prediction([made, RACE((7, 1), channels=4)], WATER, (1, 1, 1))
